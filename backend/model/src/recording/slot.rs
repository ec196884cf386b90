//! Slots and segments as they are in the file.
//!
//! A slot is six little-endian 64-bit words. Word 0 is 0 until the slot is committed; then, from
//! its low end: kind (8 bits, never 0), flags (8), aux (16), and a crc32c (32) over the slot's
//! number, the low half of word 0, and words 1 to 5.

use crate::event::{Event, Mark, Negotiation, Op, Payload, ResetCause, Segment, Seq, Status};
use crate::event::{SECTOR, Submit};

/// Bytes of the header: where the first segment begins.
pub(super) const DATA_START: u64 = 64 << 10;
/// Bytes at the start of a segment that are its own.
pub(super) const SEGMENT_HEADER: u64 = 4 << 10;
pub(super) const WORDS: usize = 6;
pub(super) const SLOT: u64 = 8 * WORDS as u64;
/// `Visible` pairs that fit in one slot.
pub(super) const PAIRS: usize = 4;
/// Bytes of a mark's name that fit in its slot.
const MARK_INLINE: usize = 32;
/// Bytes of a [`Segment`] in payload space.
const SEGMENT: usize = 24;

const INLINE: u8 = 0x80;
const UNMAP: u8 = 0x01;
/// Added to the kind of a submission: it completed, with OK, at that very moment.
const AT_ONCE: u8 = 0x20;

pub(super) type Words = [u64; WORDS];

/// Where things are, for one size of segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub segment: u64,
    /// Slots in a segment.
    pub slots: u64,
}

impl Geometry {
    /// `None` where the size is no multiple of 64 KiB (of every page size), or out of range.
    pub(super) fn new(segment: u64) -> Option<Geometry> {
        (segment != 0 && segment.is_multiple_of(64 << 10) && segment <= 1 << 40)
            .then(|| Geometry { segment, slots: (segment - SEGMENT_HEADER) / SLOT })
    }

    /// Byte position of segment `n`; where no file reaches, if a file says that it has so many.
    pub(super) fn segment_at(&self, n: u32) -> u64 {
        u64::from(n).saturating_mul(self.segment).saturating_add(DATA_START)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentKind {
    /// The `ordinal`th of the slots.
    Slots { ordinal: u32 },
    /// `run` segments in a row are one room for payload.
    Payload { run: u32 },
}

impl SegmentKind {
    const MAGIC: u64 = 0x6765_736e_726f_7401;

    pub(super) fn words(self, segment: u32) -> [u64; 3] {
        let (kind, value) = match self {
            SegmentKind::Slots { ordinal } => (1, ordinal),
            SegmentKind::Payload { run } => (2, run),
        };
        let word = kind | u64::from(value) << 32;
        [Self::MAGIC, word, Self::crc(word, segment)]
    }

    pub(super) fn parse(words: [u64; 3], segment: u32) -> Option<SegmentKind> {
        if words[0] != Self::MAGIC || words[2] != Self::crc(words[1], segment) {
            return None;
        }
        let value = (words[1] >> 32) as u32;
        match words[1] as u32 {
            1 => Some(SegmentKind::Slots { ordinal: value }),
            2 if value > 0 => Some(SegmentKind::Payload { run: value }),
            _ => None,
        }
    }

    fn crc(word: u64, segment: u32) -> u64 {
        let crc = crc32c::crc32c(&word.to_le_bytes());
        u64::from(crc32c::crc32c_append(crc, &segment.to_le_bytes()))
    }
}

fn checksum(seq: u64, words: &Words) -> u32 {
    let mut bytes = [0; 8 + 4 + 8 * (WORDS - 1)];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&(words[0] as u32).to_le_bytes());
    for (to, word) in bytes[12..].chunks_exact_mut(8).zip(&words[1..]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    crc32c::crc32c(&bytes)
}

/// Puts the checksum in.
pub(super) fn seal(seq: u64, words: &mut Words) {
    words[0] = (words[0] & 0xffff_ffff) | u64::from(checksum(seq, words)) << 32;
}

/// Of a committed slot (word 0 is not 0).
pub(super) fn intact(seq: u64, words: &Words) -> bool {
    (words[0] >> 32) as u32 == checksum(seq, words)
}

/// Data that does not fit in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outside {
    pub payload: Payload,
    pub len: usize,
}

/// A slot, understood.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Pairs that come before the event.
    pub visible: smallvec::SmallVec<[(u16, u16); PAIRS]>,
    /// `None`: the pairs are all there is.
    pub event: Option<Event>,
    /// The event is a submission, and its completion with OK follows with the same number.
    pub at_once: bool,
    /// A completion of a request that was not executed.
    pub not_executed: bool,
    /// The event is incomplete until [`fill`] was given these bytes.
    pub outside: Option<Outside>,
}

fn word0(kind: u8, flags: u8, aux: u16) -> u64 {
    u64::from(kind) | u64::from(flags) << 8 | u64::from(aux) << 16
}

fn pairs(words: &mut Words, visible: &[(u16, u16)]) {
    debug_assert!(visible.len() <= PAIRS, "the caller splits them");
    for (i, (queue, index)) in visible.iter().enumerate() {
        words[2 + i / 2] |= (u64::from(*queue) | u64::from(*index) << 16) << (32 * (i % 2));
    }
}

pub(super) fn visible(pairs_seen: &[(u16, u16)]) -> Words {
    let mut words = [word0(7, pairs_seen.len() as u8, 0), 0, 0, 0, 0, 0];
    pairs(&mut words, pairs_seen);
    words
}

pub(super) fn complete(
    pairs_seen: &[(u16, u16)],
    request: Seq,
    status: Status,
    executed: bool,
) -> Words {
    let status = match status {
        Status::Ok => 0,
        Status::IoErr => 1,
        Status::Unsupp => 2,
    };
    let not = u64::from(!executed);
    let mut words = [word0(6, pairs_seen.len() as u8, status), request.0, 0, 0, not, 0];
    pairs(&mut words, pairs_seen);
    words
}

/// The bytes of `event` that must lie in payload space, if any.
pub(super) fn outside(event: &Event) -> Option<Vec<u8>> {
    match event {
        Event::Mark(mark) if mark.name.len() > MARK_INLINE => Some(mark.name.clone().into_bytes()),
        Event::Submit(Submit {
            op: Op::Discard { segments } | Op::WriteZeroes { segments },
            ..
        }) if segments.len() > 1 => {
            let mut out = Vec::with_capacity(segments.len() * SEGMENT);
            for s in segments {
                out.extend(s.offset.to_le_bytes());
                out.extend(s.len.to_le_bytes());
                out.extend(u64::from(s.unmap).to_le_bytes());
            }
            Some(out)
        }
        _ => None,
    }
}

/// `at`: where [`outside`]'s bytes were put.
pub(super) fn encode(event: &Event, at: Payload) -> Words {
    let outside = [at.position, u64::from(at.crc)];
    match event {
        Event::Visible { queue, index } => visible(&[(*queue, *index)]),
        Event::Complete { request, status } => {
            complete(&[], *request, *status, *status == Status::Ok)
        }
        Event::Submit(s) => {
            let who = u64::from(s.queue)
                | u64::from(s.position) << 16
                | u64::from(s.head) << 32
                | u64::from(s.ioprio) << 48;
            let cut = |kind, segments: &[Segment]| match segments {
                [one] => {
                    let flags = INLINE | if one.unmap { UNMAP } else { 0 };
                    [word0(kind, flags, 0), who, one.offset, one.len, 0, 0]
                }
                many => [word0(kind, 0, 0), who, 0, many.len() as u64, outside[0], outside[1]],
            };
            match &s.op {
                Op::Read { offset, len } => [word0(1, 0, 0), who, *offset, *len, 0, 0],
                Op::Write { offset, len, fua, atomic, payload } => {
                    let flags = u8::from(*fua) | u8::from(*atomic) << 1;
                    let (at, crc) = (payload.position, u64::from(payload.crc));
                    [word0(2, flags, 0), who, *offset, *len, at, crc]
                }
                Op::Flush { offset, len } => [word0(3, 0, 0), who, *offset, *len, 0, 0],
                Op::Discard { segments } => cut(4, segments),
                Op::WriteZeroes { segments } => cut(5, segments),
            }
        }
        Event::Mark(Mark { name }) if name.len() > MARK_INLINE => {
            [word0(8, 0, 0), 0, 0, name.len() as u64, outside[0], outside[1]]
        }
        Event::Mark(Mark { name }) => {
            let mut words = [word0(8, INLINE | name.len() as u8, 0), 0, 0, 0, 0, 0];
            for (i, byte) in name.bytes().enumerate() {
                words[2 + i / 8] |= u64::from(byte) << (8 * (i % 8));
            }
            words
        }
        Event::SetWriteback { on } => [word0(9, u8::from(*on), 0), 0, 0, 0, 0, 0],
        Event::Negotiate(n) => {
            let flags = u8::from(n.flush_offered)
                | u8::from(n.flush) << 1
                | u8::from(n.config_wce) << 2
                | u8::from(n.writeback) << 3;
            [word0(10, flags, 0), 0, 0, 0, 0, 0]
        }
        Event::Reset { cause, queue } => {
            let cause = match cause {
                ResetCause::Device => 0,
                ResetCause::QueueStop => 1,
                ResetCause::Reconnect => 2,
                ResetCause::Restart => 3,
                ResetCause::PowerCut => 4,
            };
            [word0(11, cause, queue.unwrap_or(0)), u64::from(queue.is_some()), 0, 0, 0, 0]
        }
    }
}

/// A request that is submitted and completed, with OK, at one moment. `event`: its submission.
pub(super) fn encode_at_once(event: &Event, at: Payload) -> Words {
    let mut words = encode(event, at);
    debug_assert!((1..=5).contains(&(words[0] as u8)), "a submission");
    words[0] |= u64::from(AT_ONCE);
    words
}

/// `None`: no such slot is ever written, though its checksum fits.
pub(super) fn decode(words: &Words) -> Option<Decoded> {
    let (kind, flags, aux) = (words[0] as u8, (words[0] >> 8) as u8, (words[0] >> 16) as u16);
    let at_once = kind & AT_ONCE != 0;
    let kind = kind & !AT_ONCE;
    if at_once && !(1..=5).contains(&kind) {
        return None;
    }
    let payload = Payload { position: words[4], crc: words[5] as u32 };
    let away = |unit: u64| {
        let len = usize::try_from(words[3].checked_mul(unit)?).ok()?;
        Some(Outside { payload, len })
    };
    let mut outside = None;
    let mut seen = smallvec::SmallVec::new();
    let submit = |op| {
        Event::Submit(Submit {
            queue: words[1] as u16,
            position: (words[1] >> 16) as u16,
            head: (words[1] >> 32) as u16,
            ioprio: (words[1] >> 48) as u16,
            op,
        })
    };
    let event = match kind {
        1 => Some(submit(Op::Read { offset: words[2], len: words[3] })),
        2 => Some(submit(Op::Write {
            offset: words[2],
            len: words[3],
            fua: flags & 1 != 0,
            atomic: flags & 2 != 0,
            payload,
        })),
        // Of everything, before several disks could share a recording.
        3 => Some(submit(Op::Flush { offset: words[2], len: words[3] })),
        4 | 5 => {
            let segments = if flags & INLINE != 0 {
                vec![Segment { offset: words[2], len: words[3], unmap: flags & UNMAP != 0 }]
            } else {
                if words[3] > 0 {
                    outside = Some(away(SEGMENT as u64)?);
                }
                Vec::new()
            };
            Some(submit(if kind == 4 {
                Op::Discard { segments }
            } else {
                Op::WriteZeroes { segments }
            }))
        }
        6 | 7 => {
            let n = usize::from(flags);
            if n > PAIRS {
                return None;
            }
            for i in 0..n {
                let pair = words[2 + i / 2] >> (32 * (i % 2));
                seen.push((pair as u16, (pair >> 16) as u16));
            }
            if kind == 7 {
                None
            } else {
                let status = match aux {
                    0 => Status::Ok,
                    1 => Status::IoErr,
                    2 => Status::Unsupp,
                    _ => return None,
                };
                Some(Event::Complete { request: Seq(words[1]), status })
            }
        }
        8 => {
            let name = if flags & INLINE != 0 {
                let len = usize::from(flags & !INLINE);
                let bytes: Vec<u8> = words[2..].iter().flat_map(|w| w.to_le_bytes()).collect();
                String::from_utf8(bytes.get(..len)?.to_vec()).ok()?
            } else {
                outside = Some(away(1)?);
                String::new()
            };
            Some(Event::Mark(Mark { name }))
        }
        9 => Some(Event::SetWriteback { on: flags != 0 }),
        10 => Some(Event::Negotiate(Negotiation {
            flush_offered: flags & 1 != 0,
            flush: flags & 2 != 0,
            config_wce: flags & 4 != 0,
            writeback: flags & 8 != 0,
        })),
        11 => {
            let cause = match flags {
                0 => ResetCause::Device,
                1 => ResetCause::QueueStop,
                2 => ResetCause::Reconnect,
                3 => ResetCause::Restart,
                4 => ResetCause::PowerCut,
                _ => return None,
            };
            Some(Event::Reset { cause, queue: (words[1] != 0).then_some(aux) })
        }
        _ => return None,
    };
    if outside.is_some_and(|o| !o.payload.position.is_multiple_of(SECTOR)) {
        return None;
    }
    let not_executed = kind == 6 && words[4] & 1 != 0;
    Some(Decoded { visible: seen, event, at_once, not_executed, outside })
}

/// Puts into `event` what was kept outside of its slot. `None`: that makes no sense.
pub(super) fn fill(event: &mut Event, bytes: Vec<u8>) -> Option<()> {
    match event {
        Event::Mark(mark) => mark.name = String::from_utf8(bytes).ok()?,
        Event::Submit(Submit {
            op: Op::Discard { segments } | Op::WriteZeroes { segments },
            ..
        }) => {
            for piece in bytes.chunks_exact(SEGMENT) {
                let word = |i: usize| piece[8 * i..8 * i + 8].try_into().map(u64::from_le_bytes);
                let (offset, len, unmap) = (word(0).ok()?, word(1).ok()?, word(2).ok()?);
                segments.push(Segment { offset, len, unmap: unmap != 0 });
            }
        }
        _ => return None,
    }
    Some(())
}

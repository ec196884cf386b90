//! The events of a recording as a stream of bytes, with the data of every write, in no format of a
//! file: whoever reads it makes a new recording of it, in which every event has its old number.

use super::super::is_piece;
use super::BundleError;
use std::io::{Read, Write};
use tornblk_model::event::{Event, Mark, Negotiation, Op, Payload, ResetCause};
use tornblk_model::event::{Segment, Seq, Status, Submit};
use tornblk_model::recording::{Completion, MARK_MAX, Reader, Writer};

/// Stands where a slot of the original was never committed, so that what follows keeps its number.
const HOLE: &str = "(never committed)";

/// Slots that were never committed, in all: a device leaves a few where it is killed. Far more can
/// be said in a few bytes.
const HOLES: u64 = 1 << 16;

/// A discard's segments in one request: far more than any device takes.
const SEGMENTS: u64 = 1 << 16;

const END: u8 = 0;
const VISIBLE: u8 = 1;
const SUBMIT: u8 = 2;
const COMPLETE: u8 = 3;
const MARK: u8 = 4;
const WRITEBACK: u8 = 5;
const NEGOTIATE: u8 = 6;
const RESET: u8 = 7;

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 2;
const DISCARD: u8 = 3;
const ZEROES: u8 = 4;
/// Of one disk of several.
const FLUSH_OF: u8 = 5;

/// Writes all events up to and including `last`, and the rest of what the recording says of itself:
/// a crash point may lie before that. → whether there is anything in it that came with format
/// [`SEVERAL`](super::SEVERAL).
pub(super) fn write(reader: &Reader, last: Seq, out: &mut dyn Write) -> Result<bool, BundleError> {
    let failed = reader.not_executed()?;
    let (mut before, mut several) = (0, false);
    for event in reader.events() {
        let (seq, event) = event?;
        if seq > last && !matches!(&event, Event::Mark(mark) if is_piece(mark)) {
            continue;
        }
        let flush = |event: &Event| match event {
            Event::Submit(Submit { op: Op::Flush { len, .. }, .. }) => *len > 0,
            _ => false,
        };
        several |= flush(&event);
        let mut bytes = Vec::with_capacity(64);
        let data = encode(&event, failed.contains(&completed(&event)), &mut bytes);
        // The tag goes first, so that the end of the stream needs no number.
        out.write_all(&bytes[..1]).map_err(BundleError::Pack)?;
        let mut delta = Vec::new();
        number(seq.0 - before, &mut delta);
        out.write_all(&delta).map_err(BundleError::Pack)?;
        out.write_all(&bytes[1..]).map_err(BundleError::Pack)?;
        if let Some((payload, offset, len)) = data {
            let len = reader.payload_len(offset, len) as usize;
            out.write_all(&reader.payload(&payload, len)?).map_err(BundleError::Pack)?;
        }
        before = seq.0;
    }
    out.write_all(&[END]).map_err(BundleError::Pack)?;
    Ok(several)
}

fn completed(event: &Event) -> Seq {
    match event {
        Event::Complete { request, .. } => *request,
        // No request: the beginning of a recording is no submission.
        _ => Seq(u64::MAX),
    }
}

/// → the data that belongs to it.
fn encode(event: &Event, not_executed: bool, out: &mut Vec<u8>) -> Option<(Payload, u64, u64)> {
    match event {
        Event::Visible { queue, index } => {
            out.push(VISIBLE);
            number(u64::from(*queue), out);
            number(u64::from(*index), out);
        }
        Event::Submit(Submit { queue, position, head, ioprio, op }) => {
            out.push(SUBMIT);
            for value in [queue, position, head, ioprio] {
                number(u64::from(*value), out);
            }
            return operation(op, out);
        }
        Event::Complete { request, status } => {
            out.push(COMPLETE);
            number(request.0, out);
            let status = match status {
                Status::Ok => 0,
                Status::IoErr => 1,
                Status::Unsupp => 2,
            };
            out.push(status | u8::from(not_executed) << 7);
        }
        Event::Mark(Mark { name }) => {
            out.push(MARK);
            number(name.len() as u64, out);
            out.extend_from_slice(name.as_bytes());
        }
        Event::SetWriteback { on } => out.extend([WRITEBACK, u8::from(*on)]),
        Event::Negotiate(Negotiation { flush_offered, flush, config_wce, writeback }) => {
            let bits = [flush_offered, flush, config_wce, writeback];
            let bits = bits.iter().enumerate().fold(0, |b, (i, on)| b | u8::from(**on) << i);
            out.extend([NEGOTIATE, bits]);
        }
        Event::Reset { cause, queue } => {
            let cause = match cause {
                ResetCause::Device => 0,
                ResetCause::QueueStop => 1,
                ResetCause::Reconnect => 2,
                ResetCause::Restart => 3,
                ResetCause::PowerCut => 4,
            };
            out.extend([RESET, cause]);
            number(queue.map_or(0, |q| u64::from(q) + 1), out);
        }
    }
    None
}

fn operation(op: &Op, out: &mut Vec<u8>) -> Option<(Payload, u64, u64)> {
    let mut range = |kind: u8, offset: u64, len: u64| {
        out.push(kind);
        number(offset, out);
        number(len, out);
    };
    match op {
        Op::Read { offset, len } => range(READ, *offset, *len),
        Op::Write { offset, len, fua, atomic, payload } => {
            range(WRITE, *offset, *len);
            let kept = payload.position != 0;
            out.push(u8::from(*fua) | u8::from(*atomic) << 1 | u8::from(kept) << 2);
            return kept.then_some((*payload, *offset, *len));
        }
        Op::Flush { len: 0, .. } => out.push(FLUSH),
        Op::Flush { offset, len } => range(FLUSH_OF, *offset, *len),
        Op::Discard { segments } | Op::WriteZeroes { segments } => {
            out.push(if matches!(op, Op::Discard { .. }) { DISCARD } else { ZEROES });
            number(segments.len() as u64, out);
            for Segment { offset, len, unmap } in segments {
                number(*offset, out);
                number(*len, out);
                out.push(u8::from(*unmap));
            }
        }
    }
    None
}

/// LEB128.
pub(super) fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Makes the recording anew, of at most `most` bytes. Everything that does not fit together is damage.
pub(super) fn read(from: &mut dyn Read, most: u64, to: &Writer) -> Result<(), BundleError> {
    let mut input = Input(from);
    let mut before = 0;
    let mut holes = HOLES;
    // What became visible before the completion that comes next, at the same number.
    let mut visible: Vec<(u16, u16)> = Vec::new();
    let mut visible_at = 0;
    loop {
        let tag = input.byte()?;
        if tag == END {
            return flush(&mut visible, visible_at, &mut holes, to);
        }
        let seq = input.number()?.checked_add(before).ok_or_else(BundleError::nonsense)?;
        before = seq;
        if tag == VISIBLE {
            if visible_at != seq {
                flush(&mut visible, visible_at, &mut holes, to)?;
            }
            visible.push((input.small()?, input.small()?));
            visible_at = seq;
            continue;
        }
        if tag == COMPLETE {
            let request = Seq(input.number()?);
            let flags = input.byte()?;
            let status = match flags & 0x7f {
                0 => Status::Ok,
                1 => Status::IoErr,
                2 => Status::Unsupp,
                _ => return Err(BundleError::nonsense()),
            };
            let end = Completion { request, status, executed: flags & 0x80 == 0, last: false };
            if visible_at != seq {
                flush(&mut visible, visible_at, &mut holes, to)?;
            }
            fill(seq, &mut holes, to)?;
            let at = to.complete(&std::mem::take(&mut visible), end)?;
            same(at, seq)?;
            continue;
        }
        flush(&mut visible, visible_at, &mut holes, to)?;
        let event = input.event(tag, most, to)?;
        fill(seq, &mut holes, to)?;
        same(to.append(&event)?, seq)?;
    }
}

/// What became visible without a completion has an event of its own.
fn flush(
    visible: &mut Vec<(u16, u16)>,
    at: u64,
    holes: &mut u64,
    to: &Writer,
) -> Result<(), BundleError> {
    if visible.is_empty() {
        return Ok(());
    }
    fill(at, holes, to)?;
    same(to.visible(&std::mem::take(visible))?, at)
}

/// Events that the original never committed.
fn fill(seq: u64, holes: &mut u64, to: &Writer) -> Result<(), BundleError> {
    while to.events() < seq {
        *holes = holes.checked_sub(1).ok_or_else(BundleError::nonsense)?;
        to.append(&Event::Mark(Mark { name: HOLE.to_owned() }))?;
    }
    Ok(())
}

fn same(at: Seq, seq: u64) -> Result<(), BundleError> {
    if at.0 == seq { Ok(()) } else { Err(BundleError::nonsense()) }
}

pub(super) struct Input<'a>(pub(super) &'a mut dyn Read);

impl Input<'_> {
    pub(super) fn bytes(&mut self, buf: &mut [u8]) -> Result<(), BundleError> {
        self.0.read_exact(buf).map_err(|_| BundleError::nonsense())
    }

    fn byte(&mut self) -> Result<u8, BundleError> {
        let mut byte = [0];
        self.bytes(&mut byte)?;
        Ok(byte[0])
    }

    pub(super) fn number(&mut self) -> Result<u64, BundleError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BundleError::nonsense())
    }

    fn small(&mut self) -> Result<u16, BundleError> {
        u16::try_from(self.number()?).map_err(|_| BundleError::nonsense())
    }

    fn event(&mut self, tag: u8, most: u64, to: &Writer) -> Result<Event, BundleError> {
        Ok(match tag {
            SUBMIT => Event::Submit(Submit {
                queue: self.small()?,
                position: self.small()?,
                head: self.small()?,
                ioprio: self.small()?,
                op: self.operation(most, to)?,
            }),
            MARK => {
                let len = self.number()?;
                if len > MARK_MAX as u64 {
                    return Err(BundleError::nonsense());
                }
                let mut name = vec![0; len as usize];
                self.bytes(&mut name)?;
                let name = String::from_utf8(name).map_err(|_| BundleError::nonsense())?;
                Event::Mark(Mark { name })
            }
            WRITEBACK => Event::SetWriteback { on: self.byte()? != 0 },
            NEGOTIATE => {
                let bits = self.byte()?;
                let on = |bit: u8| bits >> bit & 1 != 0;
                Event::Negotiate(Negotiation {
                    flush_offered: on(0),
                    flush: on(1),
                    config_wce: on(2),
                    writeback: on(3),
                })
            }
            RESET => {
                let cause = match self.byte()? {
                    0 => ResetCause::Device,
                    1 => ResetCause::QueueStop,
                    2 => ResetCause::Reconnect,
                    3 => ResetCause::Restart,
                    4 => ResetCause::PowerCut,
                    _ => return Err(BundleError::nonsense()),
                };
                let queue = self.number()?.checked_sub(1);
                let queue = queue.map(u16::try_from).transpose();
                Event::Reset { cause, queue: queue.map_err(|_| BundleError::nonsense())? }
            }
            _ => return Err(BundleError::nonsense()),
        })
    }

    fn operation(&mut self, most: u64, to: &Writer) -> Result<Op, BundleError> {
        Ok(match self.byte()? {
            READ => Op::Read { offset: self.number()?, len: self.number()? },
            WRITE => {
                let (offset, len) = (self.number()?, self.number()?);
                let flags = self.byte()?;
                let disk = to.disk();
                if offset.checked_add(len).is_none_or(|end| end > disk.capacity) {
                    return Err(BundleError::nonsense());
                }
                let payload = if flags & 4 == 0 {
                    Payload::default()
                } else {
                    let blocks = disk.touched(offset, len);
                    let bytes = (blocks.end - blocks.start) * u64::from(disk.lb_size);
                    // Before the host's disk has to have room for it.
                    if bytes > most {
                        return Err(BundleError::nonsense());
                    }
                    let mut space = to.reserve(bytes as usize)?;
                    self.bytes(space.as_mut_slice())?;
                    space.finish()?
                };
                Op::Write { offset, len, fua: flags & 1 != 0, atomic: flags & 2 != 0, payload }
            }
            FLUSH => Op::FLUSH,
            FLUSH_OF => Op::Flush { offset: self.number()?, len: self.number()? },
            kind @ (DISCARD | ZEROES) => {
                let count = self.number()?;
                if count > SEGMENTS {
                    return Err(BundleError::nonsense());
                }
                let mut segments = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    let (offset, len) = (self.number()?, self.number()?);
                    segments.push(Segment { offset, len, unmap: self.byte()? != 0 });
                }
                match kind {
                    DISCARD => Op::Discard { segments },
                    _ => Op::WriteZeroes { segments },
                }
            }
            _ => return Err(BundleError::nonsense()),
        })
    }
}

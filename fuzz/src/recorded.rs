//! Sound recordings, and the places in their files that somebody may change: slots, segments and
//! the header, with their checksums made right again.
//!
//! The layout is that of `tornblk_model::recording`, written down once more: what is repaired here
//! must not be repaired by the code that is tried.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tornblk_model::event::{
    Disk, Event, Mark, Negotiation, Op, Payload, ResetCause, Segment, Seq, Status, Submit,
};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Writer};

pub(crate) const CAPACITY: u64 = 256 << 10;
pub(crate) const HEADER: usize = 64 << 10;
pub(crate) const SEGMENT: usize = 64 << 10;
const SEGMENT_HEADER: usize = 4096;
const SLOT: usize = 48;
const SLOTS: usize = (SEGMENT - SEGMENT_HEADER) / SLOT;
const TEXT: usize = 32;

/// Bytes of the base image, which most recordings begin on.
pub(crate) fn base() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |i: u64| if (i / 4096).is_multiple_of(3) { 0 } else { (i / 512 % 255) as u8 + 1 };
    MADE.get_or_init(|| (0..CAPACITY).map(byte).collect())
}

/// A recording in memory.
#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) bytes: Vec<u8>,
    /// Where each segment of slots begins.
    slots: Vec<usize>,
}

/// Makes requests, one after another.
struct Hand<'a> {
    writer: &'a Writer,
    position: u16,
}

impl Hand<'_> {
    fn submit(&mut self, op: Op) -> Seq {
        let position = self.position;
        self.position += 1;
        let submit = Submit { queue: position % 3, position, head: position % 64, ioprio: 0, op };
        self.writer.append(&Event::Submit(submit)).unwrap()
    }

    fn write(&mut self, offset: u64, len: u64, fua: bool, atomic: bool) -> Seq {
        let disk = self.writer.disk();
        let blocks = disk.touched(offset, len);
        let bytes = (blocks.end - blocks.start) * u64::from(disk.lb_size);
        let data: Vec<u8> = (0..bytes).map(|i| (i / 512) as u8 ^ self.position as u8).collect();
        let payload = self.writer.payload(&data).unwrap();
        self.submit(Op::Write { offset, len, fua, atomic, payload })
    }

    fn end(&self, request: Seq, status: Status, executed: bool) {
        let visible = [(0, self.position), (1, self.position), (2, self.position)];
        let end = Completion { request, status, executed, last: false };
        self.writer.complete(&visible[..usize::from(self.position % 4).min(3)], end).unwrap();
    }

    fn done(&self, request: Seq) {
        self.end(request, Status::Ok, true);
    }

    fn append(&self, event: Event) {
        self.writer.append(&event).unwrap();
    }

    fn mark(&self, name: &str) {
        self.append(Event::Mark(Mark { name: name.to_owned() }));
    }
}

/// How many different ones there are.
pub(crate) const KINDS: u8 = 4;

/// A recording at `path`, on the image at `image`.
pub(crate) fn record(kind: u8, path: &Path, image: &Path) {
    let lb_size = if kind & 1 == 0 { 512 } else { 4096 };
    let base = BaseImage::identify(image).unwrap();
    let disk = Disk { capacity: base.size, lb_size };
    let new = NewRecording {
        segment_size: SEGMENT as u64,
        ..NewRecording::new(disk, base, serde_json::json!({ "profile": "lb512" }))
    };
    let writer = Writer::create(path, new).unwrap();
    let mut hand = Hand { writer: &writer, position: 0 };
    let negotiated =
        Negotiation { flush_offered: true, flush: true, config_wce: true, writeback: true };
    hand.append(Event::Negotiate(negotiated));
    let lb = u64::from(lb_size);
    let first = hand.write(0, 4 * lb, false, false);
    hand.done(first);
    let flush = hand.submit(Op::FLUSH);
    let over = hand.write(lb, 8 * lb, false, true);
    hand.done(flush);
    // A part of a block.
    let part = hand.write(2 * lb + 512, 512, true, false);
    hand.done(part);
    hand.done(over);
    hand.mark("one");
    hand.mark(&"a mark that does not fit into its slot ".repeat(3));
    let segments = |n: u64, unmap| {
        (0..n).map(|i| Segment { offset: (3 + 5 * i) * lb, len: 2 * lb, unmap }).collect()
    };
    let gone = hand.submit(Op::Discard { segments: segments(3, false) });
    hand.done(gone);
    let gone = hand.submit(Op::Discard { segments: segments(1, false) });
    hand.end(gone, Status::IoErr, true);
    let zeroes = hand.submit(Op::WriteZeroes { segments: segments(2, true) });
    hand.done(zeroes);
    let read = hand.submit(Op::Read { offset: 512, len: 4096 });
    hand.end(read, Status::Unsupp, false);
    hand.append(Event::SetWriteback { on: false });
    let through = hand.write(16 * lb, lb, false, false);
    hand.done(through);
    hand.append(Event::SetWriteback { on: true });
    if kind & 2 != 0 {
        hand.append(Event::Reset { cause: ResetCause::QueueStop, queue: Some(1) });
        for i in 0..SLOTS as u64 {
            hand.mark(if i % 2 == 0 { "m" } else { "n" });
        }
        let long = hand.write(64 << 10, 96 << 10, false, false);
        hand.done(long);
        let position = 9;
        let payload = writer.payload(&[7; 4096]).unwrap();
        let op = Op::Write { offset: 4096, len: 4096, fua: false, atomic: false, payload };
        let submit = Submit { queue: 0, position, head: 0, ioprio: 0, op };
        writer.append_at_once(submit).unwrap();
        hand.append(Event::Reset { cause: ResetCause::PowerCut, queue: None });
    }
    let lost = hand.write(5 * lb, 3 * lb, false, false);
    let _ = hand.write(6 * lb, lb, false, false);
    hand.append(Event::Reset { cause: ResetCause::Reconnect, queue: None });
    hand.position -= 2;
    let again = hand.write(5 * lb, 3 * lb, false, false);
    hand.done(again);
    // Its end is not seen any more.
    hand.done(lost);
    hand.mark("last");
}

impl Recorded {
    pub(crate) fn new(kind: u8) -> Recorded {
        static MADE: [OnceLock<Recorded>; KINDS as usize] =
            [const { OnceLock::new() }; KINDS as usize];
        let kind = kind % KINDS;
        MADE[usize::from(kind)].get_or_init(|| Recorded::made(kind)).clone()
    }

    fn made(kind: u8) -> Recorded {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("base.img"), dir.path().join("disk.rec"));
        std::fs::write(&image, base()).unwrap();
        record(kind, &path, &image);
        let bytes = std::fs::read(&path).unwrap();
        let segments = (HEADER..bytes.len()).step_by(SEGMENT);
        let slots = segments.filter(|at| bytes[at + 8] == 1).collect();
        let mut recorded = Recorded { bytes, slots };
        // The same bytes whenever it is made.
        recorded.change_header(|header: &mut serde_json::Value| {
            header["created"] = 1.into();
            header["base"]["path"] = "base.img".into();
            header["base"]["modified"] = serde_json::Value::Null;
        });
        recorded
    }

    /// Changes what the header says, and makes its checksum right.
    pub(crate) fn change_header(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let Some(text) = self.header() else { return };
        let Ok(mut header) = serde_json::from_slice(text) else { return };
        change(&mut header);
        let text = serde_json::to_vec(&header).unwrap();
        self.set_header(&text);
    }

    fn header(&self) -> Option<&[u8]> {
        let len = u32::from_le_bytes(self.bytes.get(12..16)?.try_into().unwrap());
        self.bytes.get(TEXT..TEXT + len as usize)
    }

    pub(crate) fn set_header(&mut self, text: &[u8]) {
        if TEXT + text.len() > HEADER || self.bytes.len() < HEADER {
            return;
        }
        self.bytes[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        self.bytes[TEXT..TEXT + text.len()].copy_from_slice(text);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.bytes[..16]), text);
        self.bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }

    /// Says that there are so many segments.
    pub(crate) fn set_segments(&mut self, count: u32) {
        let crc = crc32c::crc32c(&count.to_le_bytes());
        if let Some(word) = self.bytes.get_mut(24..32) {
            word[..4].copy_from_slice(&count.to_le_bytes());
            word[4..].copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// Says what a segment is: of slots (1), or of payload (2).
    pub(crate) fn set_segment(&mut self, n: u32, kind: u32, value: u32) {
        let word = u64::from(kind) | u64::from(value) << 32;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&word.to_le_bytes()), &n.to_le_bytes());
        let at = HEADER + n as usize * SEGMENT;
        if let Some(bytes) = self.bytes.get_mut(at..at + 24) {
            bytes[..8].copy_from_slice(&0x6765_736e_726f_7401u64.to_le_bytes());
            bytes[8..16].copy_from_slice(&word.to_le_bytes());
            bytes[16..].copy_from_slice(&u64::from(crc).to_le_bytes());
        }
    }

    fn slot(&self, seq: u64) -> Option<usize> {
        let segment = *self.slots.get(seq as usize / SLOTS)?;
        let at = segment + SEGMENT_HEADER + seq as usize % SLOTS * SLOT;
        (at + SLOT <= self.bytes.len()).then_some(at)
    }

    pub(crate) fn words(&self, seq: u64) -> Option<[u64; 6]> {
        let at = self.slot(seq)?;
        let word = |i: usize| self.bytes[at + 8 * i..at + 8 * i + 8].try_into().unwrap();
        Some([0, 1, 2, 3, 4, 5].map(|i| u64::from_le_bytes(word(i))))
    }

    /// Puts a slot there, and makes its checksum right.
    pub(crate) fn set_words(&mut self, seq: u64, mut words: [u64; 6]) {
        let Some(at) = self.slot(seq) else { return };
        let mut sealed = seq.to_le_bytes().to_vec();
        sealed.extend((words[0] as u32).to_le_bytes());
        sealed.extend(words[1..].iter().flat_map(|word| word.to_le_bytes()));
        let crc = crc32c::crc32c(&sealed);
        words[0] = words[0] & 0xffff_ffff | u64::from(crc) << 32;
        for (i, word) in words.iter().enumerate() {
            self.bytes[at + 8 * i..at + 8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn clear(&mut self, seq: u64) {
        if let Some(at) = self.slot(seq) {
            self.bytes[at..at + SLOT].fill(0);
        }
    }

    /// Makes the checksum of what a slot keeps elsewhere right.
    pub(crate) fn seal_payload(&mut self, seq: u64, len: u64) {
        let Some(mut words) = self.words(seq) else { return };
        let at = words[4] as usize;
        let end = at.saturating_add(len as usize);
        if let Some(bytes) = self.bytes.get(at..end) {
            words[5] = crc32c::crc32c(bytes).into();
            self.set_words(seq, words);
        }
    }

    /// Where a payload may be, and does not fail its alignment.
    pub(crate) fn place(&self, n: u64) -> Payload {
        Payload { position: HEADER as u64 + n * 512, crc: 0 }
    }

    /// Slots that are in use.
    pub(crate) fn len(&self) -> u64 {
        let all = 0..(self.slots.len() * SLOTS) as u64;
        all.rev().find(|seq| self.words(*seq).is_some_and(|w| w[0] != 0)).map_or(0, |seq| seq + 1)
    }
}

/// Puts a value at a place in JSON (`/a/b`), if there is something that it can be in.
pub(crate) fn set(json: &mut serde_json::Value, at: &str, value: serde_json::Value) {
    let (parent, key) = at.rsplit_once('/').unwrap();
    if let Some(serde_json::Value::Object(map)) = json.pointer_mut(parent) {
        map.insert(key.to_owned(), value);
    }
}

/// Files of a case.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    /// With the base image in it.
    pub(crate) fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        std::fs::write(place.base(), base()).unwrap();
        place
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.dir.path().join("base.img")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

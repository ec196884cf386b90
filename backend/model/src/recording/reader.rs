//! Reads a recording: its events, its data, and whether it is sound. Also while it is written.

use super::RecordingError;
use super::header::{self, Header};
use super::slot::{self, DATA_START, Decoded, Geometry, Outside, PAIRS, SEGMENT_HEADER, SLOT};
use super::slot::{SegmentKind, WORDS, Words};
use crate::event::{Event, Mark, Op, Payload, ResetCause, Seq, Status, Submit};
use rustix::fs::SeekFrom;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Slots looked at in one read.
const BATCH: u64 = 16 << 10;
/// Bytes of data that are looked at at once.
const PIECE: u64 = 1 << 20;
/// Looks at a slot that a live writer commits right now, before it counts as damaged.
const LOOKS: u32 = 1000;

/// A recording, read-only.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    header: Header,
    geometry: Geometry,
    segments: RwLock<Segments>,
    /// A bit for each event whose data was found to fit its checksum, by words of 64.
    sound: Mutex<HashMap<u64, u64>>,
}

#[derive(Debug, Default)]
struct Segments {
    /// What each segment is; `None` inside of a run.
    kinds: Vec<Option<SegmentKind>>,
    /// Segments of slots, in order.
    slots: Vec<u32>,
}

/// What [`Reader::info`] counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub reads: u64,
    pub writes: u64,
    /// Writes that covered a part of a logical block.
    pub sub_block: u64,
    pub flushes: u64,
    /// Of them, those of one disk of several.
    pub flushes_of_one: u64,
    pub discards: u64,
    pub write_zeroes: u64,
    /// Requests that ended with another status than OK.
    pub failed: u64,
    /// Requests without an end.
    pub unanswered: u64,
    pub marks: u64,
    pub visible: u64,
    pub negotiations: u64,
    pub writeback_changes: u64,
    pub resets: u64,
    /// Times the device was started again with this recording.
    pub restarts: u64,
    pub power_cuts: u64,
    /// Requests that were submitted and completed at one moment: they were imported.
    pub at_once: u64,
}

/// A recording, told in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    pub header: Header,
    /// Committed slots.
    pub events: u64,
    pub last: Option<Seq>,
    /// Slots below `last` that were never committed: a process died there.
    pub holes: u64,
    pub counts: Counts,
    /// Bytes of written data that are kept.
    pub payload_bytes: u64,
    /// Bytes of the file, and of those what takes space on the host.
    pub file_bytes: u64,
    pub allocated_bytes: u64,
    /// How many writes have which length in bytes.
    pub write_sizes: BTreeMap<u64, u64>,
    pub marks: Vec<(Seq, Mark)>,
}

impl Info {
    /// All requests.
    pub fn requests(&self) -> u64 {
        let c = &self.counts;
        c.reads + c.writes + c.flushes + c.discards + c.write_zeroes
    }
}

/// What [`Reader::verify`] looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub events: u64,
    pub writes: u64,
    pub payload_bytes: u64,
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Reader {
    /// Opens the recording at `path`. A writer may be at work on it.
    ///
    /// # Errors
    /// It is not there, foreign, of another version, cut short or damaged.
    pub fn open(path: &Path) -> Result<Reader, RecordingError> {
        super::is_file(path)?;
        let file = File::open(path).map_err(RecordingError::io("open the recording", path))?;
        Reader::of(file, path)
    }

    /// As [`Reader::open`], of a file that is open: it may have lost its name since.
    pub(super) fn of(file: File, path: &Path) -> Result<Reader, RecordingError> {
        let (header, geometry) = Header::read(&file, path)?;
        let reader = Reader {
            path: path.to_owned(),
            file,
            header,
            geometry,
            segments: RwLock::new(Segments::default()),
            sound: Mutex::default(),
        };
        reader.refresh()?;
        Ok(reader)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn segments(&self) -> Vec<Option<SegmentKind>> {
        self.read_segments().kinds.clone()
    }

    fn read_segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for segments that were added since.
    fn refresh(&self) -> Result<(), RecordingError> {
        let count = header::read_segments(&self.file, &self.path)?;
        let mut known = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        if known.kinds.len() as u32 >= count {
            return Ok(());
        }
        let needs = self.geometry.segment_at(count);
        let meta = self.file.metadata().map_err(RecordingError::io("read", &self.path))?;
        if meta.len() < needs {
            let (path, has) = (self.path.clone(), meta.len());
            return Err(RecordingError::Truncated { path, has, needs });
        }
        while (known.kinds.len() as u32) < count {
            let n = known.kinds.len() as u32;
            let mut bytes = [0; 24];
            self.pread(&mut bytes, self.geometry.segment_at(n))?;
            let word = |i: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
                u64::from_le_bytes(word)
            };
            let kind = SegmentKind::parse([word(0), word(1), word(2)], n);
            let run = match kind {
                Some(SegmentKind::Slots { ordinal }) if ordinal == known.slots.len() as u32 => {
                    known.slots.push(n);
                    1
                }
                Some(SegmentKind::Payload { run }) if run <= count - n => run,
                _ => {
                    let what = format!("segment {n} has no sound beginning");
                    return Err(RecordingError::corrupt(&self.path, what));
                }
            };
            known.kinds.push(kind);
            known.kinds.extend((1..run).map(|_| None));
        }
        Ok(())
    }

    fn pread(&self, buf: &mut [u8], at: u64) -> Result<(), RecordingError> {
        self.file.read_exact_at(buf, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => RecordingError::Truncated {
                path: self.path.clone(),
                has: self.file.metadata().map_or(0, |m| m.len()),
                needs: at + buf.len() as u64,
            },
            _ => RecordingError::io("read", &self.path)(e),
        })
    }

    /// The committed events, in order. Of a live recording, those that were committed when it got
    /// there; a slot still being filled then looks like a hole.
    pub fn events(&self) -> Events<'_> {
        Events {
            scan: self.scan(),
            seq: Seq(0),
            visible: smallvec::SmallVec::new().into_iter(),
            event: None,
            at_once: false,
            failed: false,
        }
    }

    /// The committed slots with their numbers.
    pub(super) fn scan(&self) -> Scan<'_> {
        let failed = self.refresh().err();
        let places = self.read_segments().slots.clone();
        Scan { reader: self, places, next: 0, batch: Vec::new(), at: 0, failed }
    }

    /// The event in slot `seq` (for a completion, without what became visible before it).
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn event(&self, seq: Seq) -> Result<Event, RecordingError> {
        let none = || RecordingError::NoSuchEvent { path: self.path.clone(), seq: seq.0 };
        let at = match self.slot_at(seq.0) {
            Some(at) => at,
            None => {
                self.refresh()?;
                self.slot_at(seq.0).ok_or_else(none)?
            }
        };
        let mut bytes = [0; SLOT as usize];
        self.pread(&mut bytes, at)?;
        let words = words_of(&bytes);
        if words[0] == 0 {
            return Err(none());
        }
        let decoded = self.understand(seq.0, words)?;
        self.whole(seq.0, decoded)?.event.ok_or_else(none)
    }

    fn slot_at(&self, seq: u64) -> Option<u64> {
        let ordinal = usize::try_from(seq / self.geometry.slots).ok()?;
        let n = *self.read_segments().slots.get(ordinal)?;
        let within = SEGMENT_HEADER + seq % self.geometry.slots * SLOT;
        Some(self.geometry.segment_at(n) + within)
    }

    /// A committed slot. A live writer's may have been read while it was stored: looks again.
    fn understand(&self, seq: u64, mut words: Words) -> Result<Decoded, RecordingError> {
        let mut looks = 0;
        while !slot::intact(seq, &words) {
            looks += 1;
            let at = self.slot_at(seq).filter(|_| looks < LOOKS);
            let Some(at) = at else {
                let what = format!("event {seq} does not fit its checksum");
                return Err(RecordingError::corrupt(&self.path, what));
            };
            std::thread::yield_now();
            let mut bytes = [0; SLOT as usize];
            self.pread(&mut bytes, at)?;
            words = words_of(&bytes);
        }
        slot::decode(&words).ok_or_else(|| {
            RecordingError::corrupt(&self.path, format!("event {seq} makes no sense"))
        })
    }

    /// Fetches what is kept outside of the slot.
    fn whole(&self, seq: u64, mut decoded: Decoded) -> Result<Decoded, RecordingError> {
        if let (Some(Outside { payload, len }), Some(event)) =
            (decoded.outside.take(), &mut decoded.event)
        {
            let bad = || RecordingError::corrupt(&self.path, format!("event {seq} has bad data"));
            if len > 1 << 20 {
                return Err(bad());
            }
            let bytes = self.payload(&payload, len).map_err(|e| match e {
                RecordingError::Corrupt { .. } | RecordingError::Truncated { .. } => bad(),
                other => other,
            })?;
            slot::fill(event, bytes).ok_or_else(bad)?;
        }
        Ok(decoded)
    }

    /// The first byte of the file that this event and none before it needs not.
    pub(super) fn payload_end(&self, decoded: &Decoded) -> u64 {
        let (at, len) = match (&decoded.event, decoded.outside) {
            (_, Some(Outside { payload, len })) => (payload.position, len as u64),
            (Some(Event::Submit(Submit { op, .. })), None) => match op {
                Op::Write { offset, len, payload, .. } if payload.position != 0 => {
                    (payload.position, self.payload_len(*offset, *len))
                }
                _ => return 0,
            },
            _ => return 0,
        };
        // As anything in a slot it may be made up: then no file reaches so far.
        let end = at.saturating_add(len.max(1));
        end.checked_next_multiple_of(crate::event::SECTOR).unwrap_or(u64::MAX)
    }

    /// Bytes of the payload of a write: the whole logical blocks that it touches.
    pub fn payload_len(&self, offset: u64, len: u64) -> u64 {
        let blocks = self.header.disk.touched(offset, len);
        (blocks.end - blocks.start).saturating_mul(u64::from(self.header.disk.lb_size))
    }

    /// Reads bytes of a payload from `skip` on. Not verified.
    ///
    /// # Errors
    /// It is not kept, or cannot be read.
    pub fn read_payload(
        &self,
        payload: &Payload,
        skip: u64,
        buf: &mut [u8],
    ) -> Result<(), RecordingError> {
        if payload.position == 0 {
            return Err(RecordingError::NoPayload { path: self.path.clone() });
        }
        let at = payload.position.checked_add(skip);
        let end = at.and_then(|at| at.checked_add(buf.len() as u64));
        let (Some(at), Some(_)) = (at.filter(|at| *at >= DATA_START), end) else {
            let what = format!("it has no payload at {}", payload.position);
            return Err(RecordingError::corrupt(&self.path, what));
        };
        self.pread(buf, at)
    }

    /// The payload of a write of which [`Reader::payload_len`] says the length.
    ///
    /// # Errors
    /// It is not kept, cannot be read, or is damaged.
    pub fn payload(&self, payload: &Payload, len: usize) -> Result<Vec<u8>, RecordingError> {
        self.reaches(payload, len as u64)?;
        let mut out = vec![0; len];
        self.read_payload(payload, 0, &mut out)?;
        if crc32c::crc32c(&out) != payload.crc {
            return Err(self.unsound(payload));
        }
        Ok(out)
    }

    /// Does the file have these bytes? Before any room is made for them: their number comes from a
    /// slot, and may be anything in a recording that somebody made up.
    fn reaches(&self, payload: &Payload, len: u64) -> Result<(), RecordingError> {
        let meta = self.file.metadata().map_err(RecordingError::io("read", &self.path))?;
        let (has, needs) = (meta.len(), payload.position.saturating_add(len));
        if needs > has {
            return Err(RecordingError::Truncated { path: self.path.clone(), has, needs });
        }
        // Where none is kept, who reads it says so.
        if payload.position != 0 && !self.is_room(payload.position, needs) {
            // A writer that lives may have added some.
            self.refresh()?;
            if !self.is_room(payload.position, needs) {
                let what = format!("no data are kept at byte {}", payload.position);
                return Err(RecordingError::corrupt(&self.path, what));
            }
        }
        Ok(())
    }

    /// Are these bytes of the file room for payload? Elsewhere slots lie, or will.
    pub(super) fn is_room(&self, from: u64, to: u64) -> bool {
        let at = |n: usize| self.geometry.segment_at(u32::try_from(n).unwrap_or(u32::MAX));
        let kinds = &self.read_segments().kinds;
        let inside = from.saturating_sub(slot::DATA_START) / self.geometry.segment;
        let Ok(inside) = usize::try_from(inside) else { return false };
        let Some(before) = kinds.get(..=inside) else { return false };
        match before.iter().rposition(Option::is_some).map(|first| (first, before[first])) {
            Some((first, Some(SegmentKind::Payload { run }))) => {
                from >= at(first) && to <= at(first.saturating_add(run as usize))
            }
            _ => false,
        }
    }

    fn unsound(&self, payload: &Payload) -> RecordingError {
        let what = format!("the data at byte {} fails its checksum", payload.position);
        RecordingError::corrupt(&self.path, what)
    }

    /// As [`Reader::payload`], where nobody wants the bytes: a piece at a time.
    fn check(&self, payload: &Payload, len: u64) -> Result<(), RecordingError> {
        self.reaches(payload, len)?;
        let mut piece = vec![0; PIECE.min(len) as usize];
        let (mut crc, mut done) = (0, 0);
        // At least once: that nothing is kept is an error, whatever the length.
        loop {
            let n = PIECE.min(len - done);
            self.read_payload(payload, done, &mut piece[..n as usize])?;
            crc = crc32c::crc32c_append(crc, &piece[..n as usize]);
            done += n;
            if done == len {
                break;
            }
        }
        if crc != payload.crc { Err(self.unsound(payload)) } else { Ok(()) }
    }

    /// Checks the payload of the write at `seq` against its checksum, the first time it is asked.
    ///
    /// # Errors
    /// As [`Reader::payload`].
    pub(super) fn check_payload(
        &self,
        seq: Seq,
        payload: &Payload,
        len: u64,
    ) -> Result<(), RecordingError> {
        let (word, bit) = (seq.0 / 64, 1 << (seq.0 % 64));
        let sound = || self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        if sound().get(&word).is_some_and(|bits| bits & bit != 0) {
            return Ok(());
        }
        self.check(payload, len)?;
        *sound().entry(word).or_default() |= bit;
        Ok(())
    }

    /// Reads every event and all data, and checks what each says about another.
    ///
    /// # Errors
    /// The first thing that is wrong, with the event it is about.
    pub fn verify(&self) -> Result<Verified, RecordingError> {
        let mut out = Verified { events: 0, writes: 0, payload_bytes: 0 };
        // Whether each request that was submitted has ended.
        let mut ended: HashMap<u64, bool> = HashMap::new();
        let mut last = None;
        for found in self.events() {
            let (seq, event) = found?;
            // A request and its answer may share one.
            out.events += u64::from(last.replace(seq) != Some(seq));
            let wrong =
                |what: &str| RecordingError::corrupt(&self.path, format!("event {seq}: {what}"));
            match event {
                Event::Submit(Submit { op, .. }) => {
                    if !self.header.disk.holds(&op) {
                        return Err(wrong("the request lies outside of the disk"));
                    }
                    if let Op::Write { offset, len, payload, .. } = op {
                        out.writes += 1;
                        if payload.position != 0 {
                            let len = self.payload_len(offset, len);
                            self.check(&payload, len).map_err(|e| match e {
                                RecordingError::Corrupt { what, .. } => wrong(&what),
                                other => other,
                            })?;
                            out.payload_bytes += len;
                        }
                    }
                    ended.insert(seq.0, false);
                }
                Event::Complete { request, .. } => {
                    match ended.insert(request.0, true) {
                        Some(false) => {}
                        Some(true) => return Err(wrong("the request ends a second time")),
                        // In a live recording its slot may have been filled after it was passed.
                        None if matches!(self.event(request), Ok(Event::Submit(_))) => {}
                        None => return Err(wrong("the request that ends was never submitted")),
                    };
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// Reads every event and counts.
    ///
    /// # Errors
    /// The recording is damaged.
    pub fn info(&self) -> Result<Info, RecordingError> {
        let mut counts = Counts::default();
        let (mut slots, mut last, mut payload_bytes) = (0, None, 0);
        let (mut submitted, mut completed, mut newest) = (0, 0, None);
        let mut write_sizes = BTreeMap::new();
        let mut marks = Vec::new();
        let lb = u64::from(self.header.disk.lb_size);
        for found in self.events() {
            let (seq, event) = found?;
            if last.replace(seq) != Some(seq) {
                slots += 1;
            }
            match event {
                Event::Submit(Submit { op, .. }) => {
                    submitted += 1;
                    newest = Some(seq);
                    match op {
                        Op::Read { .. } => counts.reads += 1,
                        Op::Write { offset, len, payload, .. } => {
                            counts.writes += 1;
                            *write_sizes.entry(len).or_default() += 1;
                            if !offset.is_multiple_of(lb) || !len.is_multiple_of(lb) {
                                counts.sub_block += 1;
                            }
                            if payload.position != 0 {
                                payload_bytes =
                                    self.payload_len(offset, len).saturating_add(payload_bytes);
                            }
                        }
                        Op::Flush { len, .. } => {
                            counts.flushes += 1;
                            counts.flushes_of_one += u64::from(len > 0);
                        }
                        Op::Discard { .. } => counts.discards += 1,
                        Op::WriteZeroes { .. } => counts.write_zeroes += 1,
                    }
                }
                Event::Complete { status, .. } => {
                    completed += 1;
                    counts.at_once += u64::from(newest == Some(seq));
                    counts.failed += u64::from(status != Status::Ok);
                }
                Event::Visible { .. } => counts.visible += 1,
                Event::Mark(mark) => {
                    counts.marks += 1;
                    marks.push((seq, mark));
                }
                Event::SetWriteback { .. } => counts.writeback_changes += 1,
                Event::Negotiate(_) => counts.negotiations += 1,
                Event::Reset { cause, .. } => match cause {
                    ResetCause::Restart => counts.restarts += 1,
                    ResetCause::PowerCut => counts.power_cuts += 1,
                    _ => counts.resets += 1,
                },
            }
        }
        counts.unanswered = u64::saturating_sub(submitted, completed);
        let meta = self.file.metadata().map_err(RecordingError::io("read", &self.path))?;
        Ok(Info {
            header: self.header.clone(),
            events: slots,
            last,
            holes: last.map_or(0, |last| last.0 + 1 - slots),
            counts,
            payload_bytes,
            file_bytes: meta.len(),
            allocated_bytes: meta.blocks() * 512,
            write_sizes,
            marks,
        })
    }
}

fn words_of(bytes: &[u8]) -> Words {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        *word = u64::from_le_bytes(eight);
    }
    words
}

/// Walks over the committed slots.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    reader: &'a Reader,
    /// Segments of slots, in order.
    places: Vec<u32>,
    /// The next slot to be read into `batch`.
    next: u64,
    batch: Vec<u8>,
    /// Slots of `batch` that were looked at.
    at: u64,
    failed: Option<RecordingError>,
}

impl Scan<'_> {
    /// Reads the next slots. `false`: there are none.
    fn more(&mut self) -> Result<bool, RecordingError> {
        let geometry = self.reader.geometry;
        loop {
            let (ordinal, within) = (self.next / geometry.slots, self.next % geometry.slots);
            let Some(segment) = self.places.get(ordinal as usize) else { return Ok(false) };
            let start = geometry.segment_at(*segment) + SEGMENT_HEADER;
            let end = start + geometry.slots * SLOT;
            let mut from = start + within * SLOT;
            // What was never stored is a hole in most file systems: leaves it out.
            match rustix::fs::seek(&self.reader.file, SeekFrom::Data(from)) {
                Ok(data) if data < end => from = from.max(start + (data - start) / SLOT * SLOT),
                Ok(_) | Err(rustix::io::Errno::NXIO) => {
                    self.next = (ordinal + 1) * geometry.slots;
                    continue;
                }
                Err(_) => {}
            }
            let n = BATCH.min((end - from) / SLOT);
            self.batch.resize((n * SLOT) as usize, 0);
            self.reader.pread(&mut self.batch, from)?;
            self.next = ordinal * geometry.slots + (from - start) / SLOT + n;
            self.at = 0;
            return Ok(true);
        }
    }

    fn step(&mut self) -> Result<Option<(u64, Decoded)>, RecordingError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        loop {
            let slots = self.batch.len() as u64 / SLOT;
            while self.at < slots {
                let at = (self.at * SLOT) as usize;
                let seq = self.next - slots + self.at;
                self.at += 1;
                let bytes = &self.batch[at..at + SLOT as usize];
                if bytes[..8] != [0; 8] {
                    let words = words_of(bytes);
                    return Ok(Some((seq, self.reader.understand(seq, words)?)));
                }
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(u64, Decoded), RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// The events of a recording, in order. Ends after the first error.
#[derive(Debug)]
pub struct Events<'a> {
    scan: Scan<'a>,
    /// Of the slot that was read last: what was not given yet.
    seq: Seq,
    visible: smallvec::IntoIter<[(u16, u16); PAIRS]>,
    event: Option<Event>,
    at_once: bool,
    failed: bool,
}

impl Iterator for Events<'_> {
    type Item = Result<(Seq, Event), RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((queue, index)) = self.visible.next() {
                return Some(Ok((self.seq, Event::Visible { queue, index })));
            }
            if let Some(event) = self.event.take() {
                return Some(Ok((self.seq, event)));
            }
            if std::mem::take(&mut self.at_once) {
                let ended = Event::Complete { request: self.seq, status: Status::Ok };
                return Some(Ok((self.seq, ended)));
            }
            if self.failed {
                return None;
            }
            let found = self.scan.next()?;
            match found.and_then(|(seq, d)| Ok((seq, self.scan.reader.whole(seq, d)?))) {
                Err(e) => {
                    self.failed = true;
                    return Some(Err(e));
                }
                Ok((seq, decoded)) => {
                    self.seq = Seq(seq);
                    self.visible = decoded.visible.into_iter();
                    self.event = decoded.event;
                    self.at_once = decoded.at_once;
                }
            }
        }
    }
}

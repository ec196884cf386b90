//! Appends to a recording, from many threads at once.

use super::header::{self, BaseImage, Header, OuterState};
use super::mapping::Mapping;
use super::opening::{Opening, Survey};
use super::reader::Reader;
use super::slot::{self, Geometry, PAIRS, SEGMENT_HEADER, SLOT, SegmentKind, Words};
use super::space::{Space, WRITTEN};
use super::{MARK_MAX, RecordingError, SEGMENT_SIZE};
use crate::event::{Disk, Event, Payload, ResetCause, SECTOR, Seq, Status, Submit};
use crate::lock::{Access, LockError};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tornblk_lockfree::{Order, Places};

/// Segments before a new one that stay in memory: those that are still being written.
const RESIDENT: u64 = 2;
/// Numbers that threads may take between looking at the capacity and taking one.
const RACE: u64 = 256;
/// Slots kept for completions: a request is refused before, so that one that was taken can end.
const KEPT: u64 = 16 << 10;

/// What a new recording is of.
#[derive(Clone, Debug)]
pub struct NewRecording {
    pub disk: Disk,
    pub base: BaseImage,
    /// The state of another recording that it begins on; `None`: the base image itself.
    pub on: Option<OuterState>,
    /// See [`Header::data`].
    pub data: bool,
    /// The device's options, as JSON.
    pub options: serde_json::Value,
    /// Bytes; a multiple of 64 KiB. [`SEGMENT_SIZE`] is right for all but tests.
    pub segment_size: u64,
}

impl NewRecording {
    pub fn new(disk: Disk, base: BaseImage, options: serde_json::Value) -> NewRecording {
        NewRecording { disk, base, on: None, data: true, options, segment_size: SEGMENT_SIZE }
    }
}

/// A recording that is being written. One a file ([`crate::lock`]), any number of threads.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    header: Header,
    geometry: Geometry,
    map: Mapping,
    /// Slot numbers, and the power cut.
    order: Order,
    /// The cut is on record: see [`Writer::note_cut`]. Locked by who puts it there.
    noted: Mutex<bool>,
    /// Segment of each slot.
    slots: Places,
    /// Where the next payload goes; 0 or the end of a segment: in a new one.
    cursor: AtomicU64,
    grow: Mutex<Grow>,
}

#[derive(Debug)]
struct Grow {
    /// Segments that are part of the file.
    segments: u32,
    /// Rooms for payload that a writer before us left unused: first segment and run.
    unused: Vec<(u32, u32)>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its [`Event::Submit`].
    pub request: Seq,
    pub status: Status,
    /// The disk was changed, whatever the status says. No part of the [`Event`]: the crash model
    /// leaves both open for a request that failed. It is for a device that is started again, which
    /// must show what it showed before: see [`Reader::not_executed`].
    pub executed: bool,
    /// Cut the power right after.
    pub last: bool,
}

impl Completion {
    /// It ended with OK.
    pub fn ok(request: Seq) -> Completion {
        Completion { request, status: Status::Ok, executed: true, last: false }
    }
}

impl Writer {
    /// Makes a new recording at `path`.
    ///
    /// # Errors
    /// The file exists, cannot be made, or has no space.
    pub fn create(path: &Path, new: NewRecording) -> Result<Writer, RecordingError> {
        let (header, bytes) = head(new)?;
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|e| {
                match e.kind() {
                    io::ErrorKind::AlreadyExists => {
                        RecordingError::Exists { path: path.to_owned() }
                    }
                    _ => RecordingError::io("create the recording", path)(e),
                }
            })?;
        let made = Writer::begin(file, path, header, &bytes);
        if made.is_err() {
            // What was made a moment ago holds nothing; the error says why.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// As [`Writer::create`], in a file that is empty; `path` is for messages.
    pub(super) fn create_over(
        file: File,
        path: &Path,
        new: NewRecording,
    ) -> Result<Writer, RecordingError> {
        let (header, bytes) = head(new)?;
        Writer::begin(file, path, header, &bytes)
    }

    fn begin(
        file: File,
        path: &Path,
        header: Header,
        bytes: &[u8],
    ) -> Result<Writer, RecordingError> {
        let Some(geometry) = Geometry::new(header.segment_size) else {
            return Err(RecordingError::Invalid(format!(
                "a segment of {} bytes is impossible: give a multiple of 65536",
                header.segment_size
            )));
        };
        lock(&file, path)?;
        // The magic last: a file without it is nobody's recording.
        file.write_all_at(&bytes[8..], 8)
            .and_then(|()| file.write_all_at(&bytes[..8], 0))
            .map_err(|e| no_space(path, e))?;
        let writer = Writer::over(path, file, header, geometry, 0, 0)?;
        writer.room(0)?;
        Ok(writer)
    }

    /// Opens a recording to append to it: goes on after the last committed slot, with
    /// [`Event::Reset`] of cause [`ResetCause::Restart`].
    ///
    /// # Errors
    /// No sound recording, or another process writes to it. The base image is not looked at: see
    /// [`BaseImage::check`].
    pub fn open(path: &Path) -> Result<Writer, RecordingError> {
        Opening::new(path)?.go_on()
    }

    /// As [`Writer::open`], of a file that is locked and was read.
    pub(super) fn go_on(
        file: File,
        reader: &Reader,
        survey: &Survey,
    ) -> Result<Writer, RecordingError> {
        let Survey { next, used, .. } = *survey;
        let (path, geometry) = (reader.path(), reader.geometry());
        let header = reader.header().clone();
        let segments = reader.segments();
        // What the writer before gave back.
        let all = geometry.segment_at(segments.len() as u32) - slot::DATA_START;
        // What lies behind is no part of it, and is taken for zeroes where a segment is added.
        file.set_len(slot::DATA_START + all).map_err(RecordingError::io("cut", path))?;
        if all > 0 {
            allocate(&file, slot::DATA_START, all).map_err(|e| no_space(path, e))?;
        }
        let segment_count = segments.len() as u32;
        let writer = Writer::over(path, file, header, geometry, segment_count, next)?;
        let mut grow = writer.lock_grow();
        for (n, kind) in segments.iter().enumerate() {
            let start = geometry.segment_at(n as u32);
            match kind {
                Some(SegmentKind::Slots { .. }) if writer.slots.add(n as u32) => {}
                Some(SegmentKind::Slots { .. }) => return Err(writer.too_large()),
                Some(SegmentKind::Payload { run }) => {
                    let end = start + u64::from(*run) * geometry.segment;
                    if used <= start {
                        grow.unused.push((n as u32, *run));
                    } else if used < end && *run == 1 {
                        writer.cursor.store(used, Ordering::Relaxed);
                    }
                }
                None => {}
            }
        }
        drop(grow);
        writer.append(&Event::Reset { cause: ResetCause::Restart, queue: None })?;
        Ok(writer)
    }

    fn over(
        path: &Path,
        file: File,
        header: Header,
        geometry: Geometry,
        segments: u32,
        next: u64,
    ) -> Result<Writer, RecordingError> {
        let map = Mapping::new().map_err(RecordingError::io("set addresses aside for", path))?;
        map.extend(&file, geometry.segment_at(segments))
            .map_err(RecordingError::io("map", path))?;
        let most = (map.limit() / geometry.segment).min(1 << 20) as usize;
        Ok(Writer {
            path: path.to_owned(),
            file,
            header,
            geometry,
            map,
            order: Order::new(next),
            noted: Mutex::new(false),
            slots: Places::new(geometry.slots, most),
            cursor: AtomicU64::new(0),
            grow: Mutex::new(Grow { segments, unused: Vec::new() }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn disk(&self) -> &Disk {
        &self.header.disk
    }

    /// Reads what was recorded until now, also where the file has lost its name, or that is another
    /// file's by now.
    ///
    /// # Errors
    /// As [`Reader::open`]; the process has too many open files.
    pub fn reader(&self) -> Result<Reader, RecordingError> {
        let file = self.file.try_clone();
        let file = file.map_err(RecordingError::io("open the recording once more", &self.path))?;
        Reader::of(file, &self.path)
    }

    /// Looks whether the host has failed to write to its disk what was recorded: it does so in the
    /// background, and would tell nobody. Asks nothing of the disk and waits for nothing.
    ///
    /// # Errors
    /// It has: nothing is recorded any more.
    pub fn look(&self) -> Result<(), RecordingError> {
        if self.map.poisoned() || self.map.lost(&self.file) { Err(self.poisoned()) } else { Ok(()) }
    }

    /// Slots taken so far, holes included: one more than the last `Seq`.
    pub fn events(&self) -> u64 {
        self.order.events()
    }

    /// Takes room for `len` bytes of a write.
    ///
    /// # Errors
    /// No space.
    pub fn reserve(&self, len: usize) -> Result<Space<'_>, RecordingError> {
        let align = u64::from(self.header.disk.lb_size).clamp(SECTOR, 4096);
        let position = self.take_room(len as u64, align)?;
        Ok(if len < WRITTEN {
            Space::mapped(position, self.exclusive(position, len))
        } else {
            Space::written(self, position, len)
        })
    }

    /// Writes data into room that was taken for them.
    pub(super) fn put_data(&self, position: u64, data: &[u8]) -> Result<(), RecordingError> {
        // Beyond the end of a file that was cut short a write makes it grow again, with a hole where
        // events were. Who cuts it between the two looks is found by the second, unless these data end
        // where the file does: then by whoever touches what is gone.
        self.is_whole()?;
        let written = self.file.write_all_at(data, position);
        written.map_err(RecordingError::io("write data to", &self.path))?;
        self.is_whole()
    }

    /// The file has all that is mapped of it.
    fn is_whole(&self) -> Result<(), RecordingError> {
        // It grows before it is mapped.
        let mapped = self.map.mapped();
        let found = rustix::fs::fstat(&self.file).map_err(io::Error::from);
        let found = found.map_err(RecordingError::io("read", &self.path))?;
        if (found.st_size as u64) < mapped {
            self.map.poison();
        }
        if self.map.poisoned() { Err(self.poisoned()) } else { Ok(()) }
    }

    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)]
    fn exclusive(&self, position: u64, len: usize) -> &mut [u8] {
        // SAFETY: called only with a range that `take_room` has just given out, which it never
        // does twice in the life of a writer; `with_bytes` is for finished payloads.
        unsafe { self.map.exclusive(position, len) }
    }

    /// Puts `data` into the recording.
    ///
    /// # Errors
    /// No space.
    pub fn payload(&self, data: &[u8]) -> Result<Payload, RecordingError> {
        let mut space = self.reserve(data.len())?;
        space.as_mut_slice().copy_from_slice(data);
        space.finish()
    }

    /// Shows bytes of a finished payload.
    ///
    /// # Safety
    /// They are that: of [`Space::finish`], or of a recording that [`Reader::survey`] found sound. Others
    /// may change meanwhile.
    ///
    /// # Errors
    /// The position is none of this recording's, or its file failed.
    #[allow(unsafe_code)]
    pub unsafe fn with_bytes<T>(
        &self,
        position: u64,
        len: usize,
        f: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, RecordingError> {
        if position < slot::DATA_START
            || position.checked_add(len as u64).is_none_or(|end| end > self.map.mapped())
        {
            return Err(RecordingError::Invalid(format!(
                "byte {position} of {} is not payload",
                self.path.display()
            )));
        }
        // SAFETY: mapped (checked), and by contract payload, which is never written again after its
        // `Space` is finished, by way of the mapping or of the file.
        let out = f(unsafe { self.map.bytes(position, len) });
        if self.map.poisoned() { Err(self.poisoned()) } else { Ok(out) }
    }

    /// Appends one event.
    ///
    /// # Errors
    /// No space, the power was cut, or the file failed. Nothing was appended then.
    pub fn append(&self, event: &Event) -> Result<Seq, RecordingError> {
        self.append_event(event, false)
    }

    /// Appends one event and cuts the power right after it: it is the last of the order.
    ///
    /// # Errors
    /// As [`Writer::append`]. With [`RecordingError::Frozen`], another cut came before.
    pub fn append_last(&self, event: &Event) -> Result<Seq, RecordingError> {
        self.append_event(event, true)
    }

    fn append_event(&self, event: &Event, last: bool) -> Result<Seq, RecordingError> {
        if let Event::Mark(mark) = event
            && mark.name.len() > MARK_MAX
        {
            return Err(RecordingError::Invalid(format!(
                "the mark has {} bytes: at most {MARK_MAX} are kept",
                mark.name.len()
            )));
        }
        let kept = match event {
            Event::Submit(_) | Event::Mark(_) => KEPT.min(self.geometry.slots / 2),
            _ => 0,
        };
        self.room(kept)?;
        let at = self.outside(event)?;
        self.put(slot::encode(event, at), last)
    }

    /// Puts what does not fit into the event's slot elsewhere.
    fn outside(&self, event: &Event) -> Result<Payload, RecordingError> {
        let Some(bytes) = slot::outside(event) else { return Ok(Payload::default()) };
        let position = self.take_room(bytes.len() as u64, SECTOR)?;
        self.exclusive(position, bytes.len()).copy_from_slice(&bytes);
        Ok(Payload { position, crc: crc32c::crc32c(&bytes) })
    }

    /// Appends a request that was submitted and completed, with OK, at one moment: both have the
    /// `Seq` that is returned, and no crash point lies between them.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn append_at_once(&self, submit: Submit) -> Result<Seq, RecordingError> {
        self.room(0)?;
        let event = Event::Submit(submit);
        let at = self.outside(&event)?;
        self.put(slot::encode_at_once(&event, at), false)
    }

    /// Appends the end of a request, and before it what became visible until then.
    ///
    /// # Errors
    /// As [`Writer::append`], and [`Writer::append_last`] where it is to be the last.
    pub fn complete(
        &self,
        mut visible: &[(u16, u16)],
        end: Completion,
    ) -> Result<Seq, RecordingError> {
        while visible.len() > PAIRS {
            let (now, later) = visible.split_at(PAIRS);
            self.room(0)?;
            self.put(slot::visible(now), false)?;
            visible = later;
        }
        self.room(0)?;
        let words = slot::complete(visible, end.request, end.status, end.executed);
        self.put(words, end.last)
    }

    /// Appends what became visible, as one event: at most four pairs of queue and index.
    ///
    /// # Errors
    /// As [`Writer::append`]; more than four pairs are [`RecordingError::Invalid`].
    pub fn visible(&self, pairs: &[(u16, u16)]) -> Result<Seq, RecordingError> {
        if pairs.len() > PAIRS {
            let said = format!("{} queues in one event: at most {PAIRS}", pairs.len());
            return Err(RecordingError::Invalid(said));
        }
        self.room(0)?;
        self.put(slot::visible(pairs), false)
    }

    /// Cuts the power: no event comes after the one returned, and all up to it are committed.
    /// From then on every append fails with [`RecordingError::Frozen`]. Once cut, says the same
    /// again. `None`: nothing was ever recorded.
    pub fn freeze(&self) -> Option<Seq> {
        self.order.freeze().checked_sub(1).map(Seq)
    }

    /// `None`: there is power. Otherwise the last event before the cut, if there is one.
    pub fn frozen(&self) -> Option<Option<Seq>> {
        self.order.frozen().map(|cut| cut.checked_sub(1).map(Seq))
    }

    /// Is the power cut? A load, and never waits.
    pub fn is_frozen(&self) -> bool {
        self.order.is_frozen()
    }

    /// How often [`Writer::thaw`] brought the power back. Changes before
    /// [`Writer::is_frozen`] does.
    pub fn thaws(&self) -> u64 {
        self.order.thaws()
    }

    /// Puts the power cut on record, [`Event::Reset`] of cause [`ResetCause::PowerCut`], for those
    /// who find the recording if this process is killed. The power stays off: what
    /// [`Writer::freeze`], [`Writer::frozen`] and [`Writer::events`] say ends before this event.
    /// Does nothing where there is power, and at the second time.
    ///
    /// # Errors
    /// No space, or the file failed: [`Writer::thaw`] tries again.
    pub fn note_cut(&self) -> Result<(), RecordingError> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(cut) = self.order.frozen() else { return Ok(()) };
        if !*noted {
            // Nobody else takes a number without power, and all that were taken are settled.
            let event = Event::Reset { cause: ResetCause::PowerCut, queue: None };
            let words = slot::encode(&event, Payload::default());
            self.fill(cut, words)?;
            *noted = true;
        }
        Ok(())
    }

    /// The power is back: appends [`Event::Reset`] of cause [`ResetCause::PowerCut`] (unless
    /// [`Writer::note_cut`] did), and takes events again. They are not part of the order before
    /// it. Does nothing where there is power.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn thaw(&self) -> Result<(), RecordingError> {
        // Of several threads one gets the cut.
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let was_noted = *noted;
        if self.order.thaw(was_noted) {
            *noted = false;
            if !was_noted {
                self.append(&Event::Reset { cause: ResetCause::PowerCut, queue: None })?;
            }
        }
        Ok(())
    }

    fn put(&self, words: Words, last: bool) -> Result<Seq, RecordingError> {
        if self.map.poisoned() {
            return Err(self.poisoned());
        }
        self.order.record(last, |seq| self.fill(seq, words)).ok_or(RecordingError::Frozen)?
    }

    /// Commits the slot of a number that the caller alone has.
    fn fill(&self, seq: u64, mut words: Words) -> Result<Seq, RecordingError> {
        match self.slot_at(seq) {
            Some(at) => {
                slot::seal(seq, &mut words);
                self.map.commit(at, &words);
                if self.map.poisoned() { Err(self.poisoned()) } else { Ok(Seq(seq)) }
            }
            // More threads raced for the end than can be: a hole, and an error for this one.
            None => Err(no_space(&self.path, io::Error::from(io::ErrorKind::StorageFull))),
        }
    }

    fn slot_at(&self, seq: u64) -> Option<u64> {
        let (segment, within) = self.slots.find(seq)?;
        Some(self.geometry.segment_at(segment) + SEGMENT_HEADER + within * SLOT)
    }

    /// Sees to it that there is room for the next slot and `kept` more.
    fn room(&self, kept: u64) -> Result<(), RecordingError> {
        let enough = || {
            let spare = kept + RACE.min(self.geometry.slots / 4);
            // Frozen: whoever records is told.
            self.order.taken().is_none_or(|next| next + spare <= self.slots.capacity())
        };
        while !enough() {
            let mut grow = self.lock_grow();
            if enough() {
                break;
            }
            let ordinal = self.slots.next().ok_or_else(|| self.too_large())?;
            let segment = self.add(&mut grow, 1, SegmentKind::Slots { ordinal })?;
            self.slots.add(segment);
        }
        Ok(())
    }

    /// Gives out `len` bytes of payload space, each byte once.
    fn take_room(&self, len: u64, align: u64) -> Result<u64, RecordingError> {
        if self.map.poisoned() {
            return Err(self.poisoned());
        }
        let segment = self.geometry.segment;
        // At least one byte, so that no two payloads have one position.
        let need = len.max(1).next_multiple_of(SECTOR);
        let fits = |from: u64| -> Option<u64> {
            let at = from.next_multiple_of(align);
            // The cursor never stands at the start of a segment, so the end is that of its own.
            let within = from.checked_sub(slot::DATA_START)?;
            (at + need <= within.next_multiple_of(segment) + slot::DATA_START).then_some(at)
        };
        loop {
            let from = self.cursor.load(Ordering::Acquire);
            if let Some(at) = fits(from) {
                let moved = self.cursor.compare_exchange_weak(
                    from,
                    at + need,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                if moved.is_ok() {
                    return Ok(at);
                }
                continue;
            }
            let mut grow = self.lock_grow();
            if self.cursor.load(Ordering::Acquire) != from {
                continue;
            }
            let run = (SEGMENT_HEADER + need).div_ceil(segment);
            let run = u32::try_from(run).map_err(|_| self.too_large())?;
            let found = grow.unused.iter().position(|(_, r)| *r == run);
            let start = match found {
                Some(i) => grow.unused.remove(i).0,
                None => self.add(&mut grow, run, SegmentKind::Payload { run })?,
            };
            let at = self.geometry.segment_at(start) + SEGMENT_HEADER;
            if run == 1 {
                self.cursor.store(at + need, Ordering::Release);
            }
            return Ok(at);
        }
    }

    /// Adds `run` segments to the file.
    fn add(&self, grow: &mut Grow, run: u32, kind: SegmentKind) -> Result<u32, RecordingError> {
        let first = grow.segments;
        let (start, end) = (self.geometry.segment_at(first), self.geometry.segment_at(first + run));
        if end > self.map.limit() {
            return Err(self.too_large());
        }
        allocate(&self.file, start, end - start).map_err(|e| no_space(&self.path, e))?;
        self.map.extend(&self.file, end).map_err(|e| no_space(&self.path, e))?;
        // A recording may be far larger than memory, and what was written is seldom looked at.
        self.map.let_go(start.saturating_sub(RESIDENT * self.geometry.segment));
        for (i, word) in kind.words(first).into_iter().enumerate() {
            self.map.store(start + 8 * i as u64, word);
        }
        // Part of the file from here on.
        self.map.store(header::SEGMENTS_AT, header::segments_word(first + run));
        if self.map.poisoned() {
            return Err(self.poisoned());
        }
        grow.segments = first + run;
        Ok(first)
    }

    fn lock_grow(&self) -> MutexGuard<'_, Grow> {
        self.grow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poisoned(&self) -> RecordingError {
        RecordingError::Poisoned { path: self.path.clone() }
    }

    fn too_large(&self) -> RecordingError {
        RecordingError::NoSpace {
            path: self.path.clone(),
            why: format!("it would exceed {} bytes of address space", self.map.limit()),
        }
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Writer {
    /// Gives back what was allocated ahead: a recording that is kept is as large as what it holds.
    fn drop(&mut self) {
        if self.map.poisoned() {
            return;
        }
        // Of every page size, and of the blocks of file systems.
        let grain = 64 << 10;
        let free = |from: u64, end: u64| {
            let from = (from - slot::DATA_START).next_multiple_of(grain) + slot::DATA_START;
            if from < end {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // Where that is not possible it stays allocated.
                let _ = rustix::fs::fallocate(&self.file, how, from, end - from);
            }
        };
        let geometry = self.geometry;
        let end =
            |at: u64| (at - slot::DATA_START).next_multiple_of(geometry.segment) + slot::DATA_START;
        let noted = *self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.events() + u64::from(noted);
        let capacity = self.slots.capacity();
        while next < capacity {
            if let Some(at) = self.slot_at(next) {
                free(at, end(at));
            }
            next = (next / geometry.slots + 1) * geometry.slots;
        }
        let cursor = self.cursor.load(Ordering::Acquire);
        if cursor != 0 {
            free(cursor, end(cursor));
        }
        for (first, run) in &self.lock_grow().unused {
            let start = geometry.segment_at(*first);
            free(start + SEGMENT_HEADER, start + u64::from(*run) * geometry.segment);
        }
    }
}

/// The header of a new recording, and its bytes.
fn head(new: NewRecording) -> Result<(Header, Vec<u8>), RecordingError> {
    let header = Header {
        disk: new.disk,
        base: new.base,
        on: new.on,
        data: new.data,
        options: new.options,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        segment_size: new.segment_size,
    };
    let lb = header.disk.lb_size;
    if lb < SECTOR as u32 || !lb.is_power_of_two() {
        return Err(RecordingError::Invalid(format!(
            "a logical block of {lb} bytes is impossible: give a power of two from 512"
        )));
    }
    let bytes = header.encode()?;
    Ok((header, bytes))
}

pub(super) fn lock(file: &File, path: &Path) -> Result<(), RecordingError> {
    crate::lock::lock(file, Access::Write).map_err(|e| match e {
        LockError::InUse(by) => RecordingError::Busy { path: path.to_owned(), by },
        LockError::Impossible(e) => RecordingError::io("lock", path)(e),
    })
}

fn no_space(path: &Path, error: io::Error) -> RecordingError {
    RecordingError::NoSpace { path: path.to_owned(), why: error.to_string() }
}

/// Allocates bytes of the file, so that storing into a mapping of them needs no space.
fn allocate(file: &File, start: u64, len: u64) -> io::Result<()> {
    // Beyond the limit the kernel would raise SIGXFSZ, which ends the process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    if limit.current.is_some_and(|most| start + len > most) {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    loop {
        return match rustix::fs::fallocate(file, FallocateFlags::empty(), start, len) {
            Err(Errno::INTR) => continue,
            // A file system without it: zeroes allocate as well, only slower.
            Err(Errno::OPNOTSUPP) => {
                let zeroes = vec![0; 1 << 20];
                let mut at = start;
                while at < start + len {
                    let n = (start + len - at).min(zeroes.len() as u64) as usize;
                    file.write_all_at(&zeroes[..n], at)?;
                    at += n as u64;
                }
                Ok(())
            }
            other => Ok(other?),
        };
    }
}

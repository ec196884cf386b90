//! The recorded store: the base image is never written, every request and its data go into a
//! recording, and an index says which version each block shows.
//!
//! The order of work is that of [`tornblk_model::event`]. What a block shows is the write with the
//! greatest submit event among those executed, which is the crash model's own order where nothing
//! was lost.
//!
//! A write that covers a part of a logical block is completed to whole blocks when it is
//! submitted, from what was *submitted* before, executed or not; and takes its place in the order
//! under the block's lock. So of two such writes in flight the later one contains the earlier, and
//! none loses the other's bytes. WRITE ZEROES of a part of a block is recorded as a write, as a
//! request of its own.
//!
//! A request whose queue stops while it is held counts as executed: it may be old or new, and is
//! new, also after the device was started again.

mod index;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::gate::{Engine, Gate, GatedQueue, Step};
use super::{Buffers, Failure, Op, Request, Rings, Store, StoreQueue, broken};
use index::{Index, Piece, Place};
use smallvec::SmallVec;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tornblk_model::crash::{AtomicMode, DiscardReads, Profile, discard_reads_zeroes};
use tornblk_model::event::{
    self, Disk, Event, Mark, Negotiation, Payload, ResetCause, SECTOR, Segment, Seq, Status, Submit,
};
use tornblk_model::recording::{
    BaseImage, Completion, NewRecording, Reader, RecordingError, Trust, Writer,
};

/// Queues whose available index is remembered; those above are recorded at every completion.
const QUEUES: usize = 256;
/// No available index was recorded (they are 16 bit).
const UNSEEN: u32 = u32::MAX;

/// How a [`RecordingStore`] behaves.
#[derive(Clone, Debug)]
pub struct RecordingOptions {
    /// Says which writes the gate is told to be eligible, and what a discard leaves.
    pub profile: Profile,
    /// Of what `discard-either` leaves.
    pub seed: u64,
    pub read_only: bool,
}

pub struct RecordingStore {
    shared: Arc<Shared>,
    gate: Arc<dyn Gate>,
}

struct Shared {
    writer: Writer,
    disk: Disk,
    options: RecordingOptions,
    base: File,
    base_path: PathBuf,
    index: Index,
    rings: RwLock<Option<Arc<dyn Rings>>>,
    /// The available index that was last recorded of each queue.
    seen: Box<[AtomicU32]>,
    /// Requests that covered a part of a logical block.
    sub_block: AtomicU64,
    /// Something that decides what is stable could not be recorded: no request may follow.
    broken: AtomicBool,
}

impl fmt::Debug for RecordingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingStore")
            .field("recording", &self.shared.writer.path())
            .finish_non_exhaustive()
    }
}

impl RecordingStore {
    /// Makes a new recording over `image`, which is only read from now on.
    ///
    /// # Errors
    /// The recording exists or cannot be made; the image cannot be read, or is no whole number of
    /// blocks.
    pub fn create(
        recording: &Path,
        image: &Path,
        lb_size: u32,
        description: serde_json::Value,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let base = BaseImage::identify(image)?;
        let disk = Disk { capacity: base.size, lb_size };
        whole(&disk, image)?;
        let writer = Writer::create(recording, NewRecording::new(disk, base, description))?;
        RecordingStore::over(writer, gate, options)
    }

    /// Goes on with a recording, after the device was started again.
    ///
    /// # Errors
    /// It is none, or damaged; its image is not `image`, or changed since; its disk has another
    /// logical block size; or the power was cut in it, so that there is no live disk to go on with.
    pub fn reopen(
        recording: &Path,
        image: &Path,
        lb_size: u32,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let reader = Reader::open(recording)?;
        let header = reader.header();
        header.base.check(Some(image), Trust::Unchanged)?;
        if header.disk.lb_size != lb_size {
            return Err(RecordingError::Invalid(format!(
                "{} is of a disk with logical blocks of {} bytes, and the device was asked for \
                 {lb_size}: start it with --logical-block-size {}",
                recording.display(),
                header.disk.lb_size,
                header.disk.lb_size
            )));
        }
        drop(reader);
        RecordingStore::over(Writer::open(recording)?, gate, options)
    }

    /// A store over a writer that is open already. What was recorded before is shown.
    ///
    /// # Errors
    /// As [`RecordingStore::reopen`].
    pub fn over(
        writer: Writer,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let disk = writer.disk().clone();
        let base_path = writer.header().base.path.clone();
        whole(&disk, &base_path)?;
        let base = File::open(&base_path).map_err(|source| RecordingError::Io {
            what: "open the image",
            path: base_path.clone(),
            source,
        })?;
        let shared = Shared {
            index: Index::new(disk.lb_size),
            writer,
            disk,
            options,
            base,
            base_path,
            rings: RwLock::new(None),
            seen: (0..QUEUES).map(|_| AtomicU32::new(UNSEEN)).collect(),
            sub_block: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        };
        shared.replay()?;
        Ok(RecordingStore { shared: Arc::new(shared), gate })
    }

    pub fn writer(&self) -> &Writer {
        &self.shared.writer
    }

    /// Names this moment.
    ///
    /// # Errors
    /// No space, the power was cut, the name is too long.
    pub fn mark(&self, name: &str) -> Result<Seq, RecordingError> {
        self.shared.writer.append(&Event::Mark(Mark { name: name.to_owned() }))
    }

    /// Names this moment and cuts the power right after.
    ///
    /// # Errors
    /// As [`RecordingStore::mark`].
    pub fn mark_last(&self, name: &str) -> Result<Seq, RecordingError> {
        self.shared.writer.append_last(&Event::Mark(Mark { name: name.to_owned() }))
    }

    /// Cuts the power: nothing is recorded, executed or completed any more, what is in flight
    /// included. The cut lies right after the event returned; [`Seq`] 0 where none was recorded.
    pub fn freeze(&self) -> Seq {
        self.shared.writer.freeze().unwrap_or_default()
    }

    /// Requests that covered only a part of a logical block.
    pub fn sub_block(&self) -> u64 {
        self.shared.sub_block.load(Ordering::Relaxed)
    }

    /// Reads what the disk shows now, past the queues and the recording: for tools and tests.
    ///
    /// # Errors
    /// The bytes lie outside of the disk, or cannot be read.
    pub fn peek(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let mut buffers = Buffers::from_vec(vec![0; buf.len()]);
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.shared.disk.capacity) {
            return Err(Failure::Io(io::ErrorKind::InvalidInput.into()));
        }
        self.shared.read(offset, &mut buffers, false)?;
        buffers.copy_to(0, buf);
        Ok(())
    }
}

impl Store for RecordingStore {
    fn disk(&self) -> Disk {
        self.shared.disk.clone()
    }

    fn read_only(&self) -> bool {
        self.shared.options.read_only
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        let engine = RecordingEngine(Arc::clone(&self.shared));
        let profile =
            Some(self.shared.options.profile.clone()).filter(|p| p.mode != AtomicMode::None);
        broken::or_broken(GatedQueue::new(n, engine, Arc::clone(&self.gate), profile))
    }

    fn connected(&self, rings: Arc<dyn Rings>) {
        self.shared.unsee(None);
        *self.shared.rings.write().unwrap_or_else(PoisonError::into_inner) = Some(rings);
    }

    fn negotiated(&self, what: Negotiation) {
        self.shared.must(&Event::Negotiate(what));
    }

    fn set_writeback(&self, on: bool) {
        self.shared.must(&Event::SetWriteback { on });
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        self.shared.must(&Event::Reset { cause, queue });
        self.shared.unsee(queue);
        if cause == ResetCause::Reconnect && queue.is_none() {
            *self.shared.rings.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Is the image a whole number of blocks?
fn whole(disk: &Disk, image: &Path) -> Result<(), RecordingError> {
    if disk.capacity == 0 || !disk.capacity.is_multiple_of(u64::from(disk.lb_size)) {
        return Err(RecordingError::Invalid(format!(
            "the image {} has {} bytes, which is no whole number of logical blocks of {} bytes: \
                 resize it to {}",
            image.display(),
            disk.capacity,
            disk.lb_size,
            disk.capacity.max(1).next_multiple_of(u64::from(disk.lb_size))
        )));
    }
    Ok(())
}

fn failed(error: RecordingError) -> Failure {
    let kind = match error {
        RecordingError::NoSpace { .. } => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    Failure::Io(io::Error::new(kind, error))
}

impl Shared {
    /// Records what later events cannot be understood without.
    fn must(&self, event: &Event) {
        match self.writer.append(event) {
            Ok(_) | Err(RecordingError::Frozen) => {}
            Err(e) => {
                log::error!("{e}; every request fails from now on");
                self.broken.store(true, Ordering::Release);
            }
        }
    }

    fn unsee(&self, queue: Option<u16>) {
        match queue {
            Some(n) => {
                if let Some(seen) = self.seen.get(usize::from(n)) {
                    seen.store(UNSEEN, Ordering::Release);
                }
            }
            None => self.seen.iter().for_each(|seen| seen.store(UNSEEN, Ordering::Release)),
        }
    }

    /// Shows what the recording holds.
    fn replay(&self) -> Result<(), RecordingError> {
        let reader = Reader::open(self.writer.path())?;
        let untouched: HashSet<Seq> = reader.not_executed()?;
        for found in reader.events() {
            let (seq, event) = found?;
            match event {
                Event::Reset { cause: ResetCause::PowerCut, .. } => {
                    return Err(RecordingError::Invalid(format!(
                        "the power was cut in {} (event {seq}): there is no live disk to go on \
                         with; record to another file",
                        reader.path().display()
                    )));
                }
                Event::Submit(submit) if !untouched.contains(&seq) => {
                    let work = match submit.op {
                        event::Op::Write { offset, len, payload, .. } => {
                            if payload.position == 0 {
                                let path = reader.path().to_owned();
                                return Err(RecordingError::NoPayload { path });
                            }
                            self.write_work(offset, len, payload)
                        }
                        event::Op::WriteZeroes { segments } => self.zero_work(&segments),
                        event::Op::Discard { segments } => self.discard_work(&segments),
                        event::Op::Read { .. } | event::Op::Flush => Work::Nothing,
                    };
                    self.apply(seq, &work);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write_work(&self, offset: u64, len: u64, payload: Payload) -> Work {
        let blocks = self.disk.touched(offset, len);
        Work::Put(SmallVec::from_elem(Piece { blocks, place: Place::At(payload.position) }, 1))
    }

    /// Of segments that are whole blocks.
    fn zero_work(&self, segments: &[Segment]) -> Work {
        let piece = |s: &Segment| Piece {
            blocks: self.disk.touched(s.offset, s.len),
            place: Place::Zeroes,
        };
        Work::Put(segments.iter().map(piece).collect())
    }

    /// A disk forgets whole blocks.
    fn discard_work(&self, segments: &[Segment]) -> Work {
        let lb = u64::from(self.disk.lb_size);
        let blocks = segments
            .iter()
            .map(|s| s.offset.div_ceil(lb)..(s.offset + s.len) / lb)
            .filter(|blocks| !blocks.is_empty())
            .collect();
        Work::Discard(blocks)
    }

    /// Executes what changes the disk.
    fn apply(&self, seq: Seq, work: &Work) {
        match work {
            Work::Nothing => {}
            Work::Put(pieces) => {
                let blocks: SmallVec<[_; 1]> = pieces.iter().map(|p| p.blocks.clone()).collect();
                let mut locked = self.index.lock(&blocks);
                for piece in pieces {
                    locked.put(seq, piece);
                }
                locked.withdraw(seq);
            }
            Work::Discard(blocks) => {
                let (discard, seed) = (self.options.profile.discard, self.options.seed);
                let mut locked = self.index.lock(blocks);
                for blocks in blocks {
                    match discard {
                        DiscardReads::Old => {}
                        DiscardReads::Zeroes => {
                            let blocks = blocks.clone();
                            locked.put(seq, &Piece { blocks, place: Place::Zeroes });
                        }
                        DiscardReads::Either => {
                            for block in blocks.clone() {
                                if discard_reads_zeroes(seed, seq, block) {
                                    let blocks = block..block + 1;
                                    locked.put(seq, &Piece { blocks, place: Place::Zeroes });
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// It will not be executed after all.
    fn withdraw(&self, seq: Seq, work: &Work) {
        if let Work::Put(pieces) = work
            && self.whole_needed()
        {
            let blocks: SmallVec<[_; 1]> = pieces.iter().map(|p| p.blocks.clone()).collect();
            self.index.lock(&blocks).withdraw(seq);
        }
    }

    /// Can a request cover a part of a block?
    fn whole_needed(&self) -> bool {
        u64::from(self.disk.lb_size) > SECTOR
    }

    fn read(&self, offset: u64, buffers: &mut Buffers, stale: bool) -> Result<(), Failure> {
        let (lb, len) = (u64::from(self.disk.lb_size), buffers.len() as u64);
        let blocks = self.disk.touched(offset, len);
        // Bytes of a payload never change: only where they are needs the lock.
        let pieces = self.index.lock(std::slice::from_ref(&blocks)).pieces(blocks, stale);
        for piece in pieces {
            let start = (piece.blocks.start * lb).max(offset);
            let end = (piece.blocks.end * lb).min(offset + len);
            let at = (start - offset) as usize;
            match piece.place.plus(start - piece.blocks.start * lb) {
                Place::Zeroes => self.fill(buffers, at, end - start),
                Place::Base => self.read_base(start, buffers, at, end - start)?,
                Place::At(position) => self
                    .writer
                    .with_bytes(position, (end - start) as usize, |b| buffers.copy_from(at, b))
                    .map(drop)
                    .map_err(failed)?,
            }
        }
        Ok(())
    }

    fn fill(&self, buffers: &mut Buffers, at: usize, len: u64) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROES.len() as u64);
            buffers.copy_from(at + done as usize, &ZEROES[..n as usize]);
            done += n;
        }
    }

    fn read_base(
        &self,
        offset: u64,
        buffers: &mut Buffers,
        at: usize,
        len: u64,
    ) -> Result<(), Failure> {
        let mut bounce = vec![0; len.min(256 << 10) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(bounce.len() as u64) as usize;
            self.base.read_exact_at(&mut bounce[..n], offset + done).map_err(|e| {
                let path = self.base_path.display();
                io::Error::new(e.kind(), format!("cannot read the image {path}: {e}"))
            })?;
            buffers.copy_from(at + done as usize, &bounce[..n]);
            done += n as u64;
        }
        Ok(())
    }

    fn read_block(&self, block: u64, place: Place, to: &mut [u8]) -> Result<(), Failure> {
        match place {
            Place::Zeroes => to.fill(0),
            Place::Base => {
                self.base.read_exact_at(to, block * u64::from(self.disk.lb_size))?;
            }
            Place::At(position) => self
                .writer
                .with_bytes(position, to.len(), |bytes| to.copy_from_slice(bytes))
                .map_err(failed)?,
        }
        Ok(())
    }
}

/// What a request does to the index.
#[derive(Debug)]
enum Work {
    Nothing,
    Put(SmallVec<[Piece; 1]>),
    Discard(SmallVec<[Range<u64>; 1]>),
}

/// A part of a request that has its own place in the order. All but WRITE ZEROES of parts of
/// blocks have one.
#[derive(Debug)]
struct Part {
    seq: Seq,
    work: Work,
}

#[derive(Debug, Default)]
struct Ticket {
    parts: SmallVec<[Part; 1]>,
    executed: bool,
}

/// What comes of recording one part.
enum Recorded {
    Next,
    Last,
    Off,
}

struct RecordingEngine(Arc<Shared>);

impl RecordingEngine {
    /// Records the submission of one part, and announces it.
    fn record(
        &self,
        request: &Request,
        op: event::Op,
        work: Work,
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        let pieces = match &work {
            Work::Put(pieces) if shared.whole_needed() => pieces.as_slice(),
            _ => &[],
        };
        let blocks: SmallVec<[_; 1]> = pieces.iter().map(|p| p.blocks.clone()).collect();
        let mut locked = shared.index.lock(&blocks);
        let seq = match submit(shared, request, op, last) {
            Ok(seq) => seq,
            Err(RecordingError::Frozen) => return Ok(Recorded::Off),
            Err(e) => return Err(failed(e)),
        };
        for piece in pieces {
            locked.announce(seq, piece);
        }
        drop(locked);
        ticket.parts.push(Part { seq, work });
        Ok(if last { Recorded::Last } else { Recorded::Next })
    }

    /// Records the submission of a write of `len` bytes, given by `fill`, which gets the bytes of
    /// the request's own range.
    #[allow(clippy::too_many_arguments)]
    fn record_write(
        &self,
        request: &Request,
        (offset, len): (u64, u64),
        (fua, atomic): (bool, bool),
        fill: impl FnOnce(&mut [u8]),
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        let lb = u64::from(shared.disk.lb_size);
        let blocks = shared.disk.touched(offset, len);
        let room = ((blocks.end - blocks.start) * lb) as usize;
        let mut space = shared.writer.reserve(room).map_err(failed)?;
        let skip = (offset % lb) as usize;
        fill(&mut space.as_mut_slice()[skip..skip + len as usize]);
        let op = |payload| event::Op::Write { offset, len, fua, atomic, payload };
        if skip == 0 && room == len as usize {
            let payload = space.finish();
            let work = shared.write_work(offset, len, payload);
            return self.record(request, op(payload), work, last, ticket);
        }
        // A part of a block: the rest of it is read, and the write takes its place in the order,
        // before anybody else can touch the block.
        let mut locked = shared.index.lock(std::slice::from_ref(&blocks));
        let bytes = space.as_mut_slice();
        let mut block = vec![0; lb as usize];
        if skip > 0 {
            shared.read_block(blocks.start, locked.submitted(blocks.start), &mut block)?;
            bytes[..skip].copy_from_slice(&block[..skip]);
        }
        let end = skip + len as usize;
        if end < room {
            let last = blocks.end - 1;
            shared.read_block(last, locked.submitted(last), &mut block)?;
            let from = end % lb as usize;
            bytes[end..].copy_from_slice(&block[from..]);
        }
        let payload = space.finish();
        let work = shared.write_work(offset, len, payload);
        let seq = match submit(shared, request, op(payload), last) {
            Ok(seq) => seq,
            Err(RecordingError::Frozen) => return Ok(Recorded::Off),
            Err(e) => return Err(failed(e)),
        };
        locked.announce(seq, &Piece { blocks, place: Place::At(payload.position) });
        drop(locked);
        ticket.parts.push(Part { seq, work });
        Ok(if last { Recorded::Last } else { Recorded::Next })
    }

    fn record_zeroes(
        &self,
        request: &Request,
        segments: &[Segment],
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let lb = u64::from(self.0.disk.lb_size);
        let whole = |s: &Segment| s.offset.is_multiple_of(lb) && s.len.is_multiple_of(lb);
        if segments.iter().all(whole) {
            let op = event::Op::WriteZeroes { segments: segments.to_vec() };
            return self.record(request, op, self.0.zero_work(segments), last, ticket);
        }
        // Segments are independent, and so are the pieces that one is made of.
        let (mut blocks, mut parts) = (Vec::new(), Vec::new());
        for s in segments {
            let (start, end) = (s.offset, s.offset + s.len);
            let (first, upto) = (start.next_multiple_of(lb).min(end), end / lb * lb);
            if first >= upto {
                // Inside of one block, or over one border and no whole block.
                parts.push((start, first - start));
                parts.push((first, end - first));
            } else {
                parts.push((start, first - start));
                blocks.push(Segment { offset: first, len: upto - first, unmap: s.unmap });
                parts.push((upto, end - upto));
            }
        }
        parts.retain(|(_, len)| *len > 0);
        if !blocks.is_empty() {
            let op = event::Op::WriteZeroes { segments: blocks.clone() };
            let cut = last && parts.is_empty();
            match self.record(request, op, self.0.zero_work(&blocks), cut, ticket)? {
                Recorded::Next => {}
                other => return Ok(other),
            }
        }
        let n = parts.len();
        for (i, part) in parts.into_iter().enumerate() {
            let cut = last && i + 1 == n;
            let fill = |bytes: &mut [u8]| bytes.fill(0);
            match self.record_write(request, part, (false, false), fill, cut, ticket)? {
                Recorded::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Recorded::Next)
    }

    fn take(
        &self,
        request: &Request,
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        let len = request.buffers.len() as u64;
        match &request.op {
            Op::Read { offset } => {
                let op = event::Op::Read { offset: *offset, len };
                self.record(request, op, Work::Nothing, last, ticket)
            }
            Op::Flush => self.record(request, event::Op::Flush, Work::Nothing, last, ticket),
            Op::Write { offset, fua, atomic } => {
                let fill = |to: &mut [u8]| {
                    request.buffers.copy_to(0, to);
                };
                let flags = (*fua, *atomic);
                self.record_write(request, (*offset, len), flags, fill, last, ticket)
            }
            Op::Discard { segments } => {
                let op = event::Op::Discard { segments: segments.clone() };
                self.record(request, op, shared.discard_work(segments), last, ticket)
            }
            Op::WriteZeroes { segments } => self.record_zeroes(request, segments, last, ticket),
        }
    }

    fn is_sub_block(&self, request: &Request) -> bool {
        let lb = u64::from(self.0.disk.lb_size);
        let part = |at: u64, n: u64| !at.is_multiple_of(lb) || !n.is_multiple_of(lb);
        match &request.op {
            Op::Read { offset } | Op::Write { offset, .. } => {
                part(*offset, request.buffers.len() as u64)
            }
            Op::Flush => false,
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().any(|s| part(s.offset, s.len))
            }
        }
    }
}

fn submit(
    shared: &Shared,
    request: &Request,
    op: event::Op,
    last: bool,
) -> Result<Seq, RecordingError> {
    let origin = request.origin;
    let event = Event::Submit(Submit {
        queue: origin.queue,
        position: origin.position,
        head: origin.head,
        ioprio: origin.ioprio,
        op,
    });
    if last { shared.writer.append_last(&event) } else { shared.writer.append(&event) }
}

impl Engine for RecordingEngine {
    type Ticket = Ticket;

    fn begin(&mut self, request: &Request, last: bool) -> Result<Step<Ticket>, Failure> {
        let shared = &self.0;
        if shared.broken.load(Ordering::Acquire) {
            return Err(Failure::Io(io::Error::other("the recording cannot be continued")));
        }
        let changes = !matches!(request.op, Op::Read { .. } | Op::Flush);
        if changes && shared.options.read_only {
            return Err(Failure::ReadOnly);
        }
        if self.is_sub_block(request) {
            shared.sub_block.fetch_add(1, Ordering::Relaxed);
        }
        let mut ticket = Ticket::default();
        match self.take(request, last, &mut ticket) {
            Ok(Recorded::Next) => Ok(Step::Next(ticket)),
            Ok(Recorded::Last) => Ok(Step::Last(ticket)),
            Ok(Recorded::Off) => Ok(Step::Off),
            Err(failure) => {
                // Its first parts are recorded and will never happen: they failed.
                self.end(&ticket, Status::IoErr, false).map_err(failed)?;
                Err(failure)
            }
        }
    }

    fn records(&self) -> bool {
        true
    }

    fn seq(&self, ticket: &Ticket) -> Option<Seq> {
        ticket.parts.first().map(|part| part.seq)
    }

    fn execute(
        &mut self,
        request: &mut Request,
        ticket: &mut Ticket,
        stale: bool,
    ) -> Result<(), Failure> {
        if let Op::Read { offset } = request.op {
            return self.0.read(offset, &mut request.buffers, stale);
        }
        for part in &ticket.parts {
            self.0.apply(part.seq, &part.work);
        }
        ticket.executed = true;
        Ok(())
    }

    fn finish(
        &mut self,
        _: &Request,
        ticket: Ticket,
        result: &Result<(), Failure>,
        last: bool,
    ) -> Result<Step<Seq>, Failure> {
        let status = if result.is_ok() { Status::Ok } else { Status::IoErr };
        match self.end(&ticket, status, last) {
            Ok(Some(seq)) if last => Ok(Step::Last(seq)),
            Ok(seq) => Ok(Step::Next(seq.unwrap_or_default())),
            Err(RecordingError::Frozen) => Ok(Step::Off),
            Err(e) => Err(failed(e)),
        }
    }

    fn off(&self) -> bool {
        self.0.writer.is_frozen()
    }

    fn forget(&mut self, ticket: Ticket) {
        // With the power off, nothing is shown any more. Otherwise old and new are both right:
        // new is what the disk shows when it is opened again.
        if !ticket.executed && !self.off() {
            for part in &ticket.parts {
                self.0.apply(part.seq, &part.work);
            }
        }
    }
}

impl RecordingEngine {
    /// Records that the parts ended. What became visible until then comes first.
    fn end(
        &self,
        ticket: &Ticket,
        status: Status,
        last: bool,
    ) -> Result<Option<Seq>, RecordingError> {
        let shared = &*self.0;
        if !ticket.executed {
            for part in &ticket.parts {
                shared.withdraw(part.seq, &part.work);
            }
        }
        let mut visible = SmallVec::<[(u16, u16); 4]>::new();
        if let Some(rings) = &*shared.rings.read().unwrap_or_else(PoisonError::into_inner) {
            rings.available(&mut |queue, index| {
                let seen = shared.seen.get(usize::from(queue));
                if seen.is_none_or(|s| s.load(Ordering::Acquire) != u32::from(index)) {
                    visible.push((queue, index));
                }
            });
        }
        let mut seq = None;
        for (i, part) in ticket.parts.iter().enumerate() {
            let completion = Completion {
                request: part.seq,
                status,
                executed: ticket.executed || status == Status::Ok,
                last: last && i + 1 == ticket.parts.len(),
            };
            let before: &[_] = if i == 0 { &visible } else { &[] };
            seq = Some(shared.writer.complete(before, completion)?);
            if i == 0 {
                // Only now: whoever does not record an index because it was seen may rely on its
                // event being before his own.
                for (queue, index) in &visible {
                    if let Some(seen) = shared.seen.get(usize::from(*queue)) {
                        seen.store(u32::from(*index), Ordering::Release);
                    }
                }
            }
        }
        Ok(seq)
    }
}

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
//! Without data ([`Header::data`](tornblk_model::recording::Header)) it is a *trace*: the requests are
//! recorded all the same, and a raw store has the bytes.
//!
//! A request whose queue stops while it is held counts as executed: it may be old or new, and is
//! new, also after the device was started again. One that comes again then ([`Past`](super::Past)) is
//! the same request, with the place in the order that it has: it is completed, and not recorded or
//! executed once more. Only what was recorded as several parts begins anew.

mod engine;
mod index;
mod open;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::gate::{Gate, GatedQueue};
use super::{Buffers, Failure, RawStore, ResizeError, Rings, Store, StoreQueue, broken};
use crate::made::Made;
use crossbeam_utils::sync::ShardedLock;
use engine::{RecordingEngine, TraceEngine};
use index::{Index, Piece, Place};
use open::Open;
use smallvec::SmallVec;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use tornblk_lockfree::Seen;
use tornblk_model::crash::{AtomicMode, DiscardReads, Profile, discard_reads_zeroes};
use tornblk_model::event::{
    self, Disk, Event, Mark, Negotiation, Payload, ResetCause, SECTOR, Segment, Seq,
};
use tornblk_model::recording::{
    BaseImage, NewRecording, Opening, RecordingError, StateReader, Survey, Trust, Writer,
};

/// Queues whose available index is remembered; those above are recorded at every completion.
const QUEUES: usize = 256;

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
    /// Of a trace: who has the bytes.
    raw: Option<RawStore>,
}

struct Shared {
    writer: Writer,
    disk: Disk,
    options: RecordingOptions,
    base: Base,
    index: Index,
    rings: ShardedLock<Option<Arc<dyn Rings>>>,
    /// The available index that was last recorded of each queue.
    seen: Seen,
    /// Power cuts that the writer came back from when this store was made: after one more this
    /// store is over, whatever the writer does.
    thaws: u64,
    /// Requests that covered a part of a logical block.
    sub_block: AtomicU64,
    open: Open,
    /// Something that decides what is stable could not be recorded: no request may follow.
    broken: AtomicBool,
}

/// What the disk was when the recording began. Only read.
enum Base {
    Image {
        file: File,
        path: PathBuf,
    },
    /// In a state of another recording.
    State(StateReader),
    /// Of a trace, which does not know.
    Elsewhere,
}

impl Base {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Base::Image { file, path } => file.read_exact_at(bytes, offset).map_err(|e| {
                let why = match e.kind() {
                    io::ErrorKind::UnexpectedEof => "it was cut short".to_owned(),
                    _ => e.to_string(),
                };
                io::Error::new(e.kind(), format!("cannot read the image {}: {why}", path.display()))
            }),
            Base::State(state) => state.read_at(offset, bytes).map_err(io::Error::other),
            Base::Elsewhere => Err(io::Error::other("it was recorded without data")),
        }
    }
}

impl fmt::Debug for RecordingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingStore")
            .field("recording", &self.shared.writer.path())
            .finish_non_exhaustive()
    }
}

impl RecordingStore {
    /// Makes a new recording over an image that is open, and only read from now on; `path` is its.
    ///
    /// # Errors
    /// The recording exists or cannot be made; the image cannot be read, or is no whole number of
    /// blocks.
    pub fn create(
        recording: &Path,
        (image, path): (&File, &Path),
        lb_size: u32,
        description: serde_json::Value,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let base = BaseImage::identify_open(image, path)?;
        let disk = Disk { capacity: base.size, lb_size };
        whole(&disk, path)?;
        let image = again(image, path)?;
        let writer = Writer::create(recording, NewRecording::new(disk, base, description))?;
        let made = Made::of(recording, &writer);
        let store = RecordingStore::on_base(writer, image, Survey::default(), gate, options);
        if let (Err(_), Ok(made)) = (&store, made) {
            made.take_back();
        }
        store
    }

    /// Makes a trace of what is done to `raw`, whose image is at `image`, or goes on with one. Was it
    /// made?
    ///
    /// # Errors
    /// The recording has data, or cannot be made or gone on with; it is of another disk.
    pub fn trace(
        recording: &Path,
        image: &Path,
        raw: RawStore,
        description: serde_json::Value,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<(RecordingStore, bool), RecordingError> {
        let disk = raw.disk();
        let base = BaseImage::identify(image)?;
        let there = recording.try_exists().unwrap_or(true);
        let (writer, survey) = if there {
            let opening = Opening::new(recording)?;
            let header = opening.header();
            if header.data {
                return Err(RecordingError::Invalid(format!(
                    "{} has the data of writes: leave out --record-payload no, or record to another \
                     file",
                    recording.display()
                )));
            }
            // What is in the image is another thing each time.
            if header.disk != disk || header.base.path != base.path {
                return Err(RecordingError::Invalid(format!(
                    "{} is of the disk {} ({} bytes, logical blocks of {}), and not of {} ({} bytes, {}): \
                     record to another file",
                    recording.display(),
                    header.base.path.display(),
                    header.disk.capacity,
                    header.disk.lb_size,
                    base.path.display(),
                    disk.capacity,
                    disk.lb_size
                )));
            }
            let survey = sound(&opening, recording)?;
            (opening.go_on()?, survey)
        } else {
            whole(&disk, image)?;
            let new = NewRecording { data: false, ..NewRecording::new(disk, base, description) };
            (Writer::create(recording, new)?, Survey::default())
        };
        let store = RecordingStore::on_base(writer, Base::Elsewhere, survey, gate, options)?;
        Ok((RecordingStore { raw: Some(raw), ..store }, !there))
    }

    /// Goes on with a recording, after the device was started again, on its image, which is open: it may
    /// have another `path` since.
    ///
    /// # Errors
    /// It is none, or damaged; its image is not this one, or changed since; its disk has another
    /// logical block size; or the power was cut in it, so that there is no live disk to go on with.
    pub fn reopen(
        recording: &Path,
        (image, path): (&File, &Path),
        lb_size: u32,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let opening = Opening::new(recording)?;
        let header = opening.header();
        if !header.data {
            return Err(RecordingError::Invalid(format!(
                "{} was recorded without data: go on with --record-payload no, or record to another \
                 file",
                recording.display()
            )));
        }
        header.base.check_open(image, path, Trust::Unchanged)?;
        if header.disk.lb_size != lb_size {
            return Err(RecordingError::Invalid(format!(
                "{} is of a disk with logical blocks of {} bytes, and the device was asked for \
                 {lb_size}: start it with --logical-block-size {}",
                recording.display(),
                header.disk.lb_size,
                header.disk.lb_size
            )));
        }
        let survey = sound(&opening, recording)?;
        let base = match &header.on {
            Some(on) => Base::State(on.state_reader(None, Trust::Unchanged)?),
            None => again(image, path)?,
        };
        RecordingStore::on_base(opening.go_on()?, base, survey, gate, options)
    }

    /// A store over a writer that is open already, on the image that is where it was. What was recorded
    /// before is shown.
    ///
    /// # Errors
    /// As [`RecordingStore::reopen`].
    pub fn over(
        writer: Writer,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let survey = writer.reader()?.survey()?;
        if !writer.header().data {
            return Err(RecordingError::NoPayload { path: writer.path().to_owned() });
        }
        if let Some(on) = &writer.header().on {
            let state = on.state_reader(None, Trust::Unchanged)?;
            return RecordingStore::on_base(writer, Base::State(state), survey, gate, options);
        }
        let path = writer.header().base.path.clone();
        whole(writer.disk(), &path)?;
        let file = File::open(&path).map_err(|source| RecordingError::Io {
            what: "open the image",
            path: path.clone(),
            source,
        })?;
        RecordingStore::on_base(writer, Base::Image { file, path }, survey, gate, options)
    }

    /// A store over a writer, on a state of another recording.
    ///
    /// # Errors
    /// As [`RecordingStore::reopen`].
    pub fn on_state(
        writer: Writer,
        state: StateReader,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        let survey = writer.reader()?.survey()?;
        RecordingStore::on_base(writer, Base::State(state), survey, gate, options)
    }

    fn on_base(
        writer: Writer,
        base: Base,
        survey: Survey,
        gate: Arc<dyn Gate>,
        options: RecordingOptions,
    ) -> Result<RecordingStore, RecordingError> {
        makes_sense(&survey, writer.path())?;
        let disk = writer.disk().clone();
        let thaws = writer.thaws();
        let shared = Shared {
            index: Index::new(disk.lb_size),
            writer,
            disk,
            options,
            base,
            rings: ShardedLock::new(None),
            seen: Seen::new(QUEUES),
            thaws,
            sub_block: AtomicU64::new(0),
            open: Open::default(),
            broken: AtomicBool::new(false),
        };
        shared.replay(&survey.not_executed)?;
        Ok(RecordingStore { shared: Arc::new(shared), gate, raw: None })
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

    fn resize(&self) -> Result<u64, ResizeError> {
        Err(if self.raw.is_some() { ResizeError::Traced } else { ResizeError::Fixed })
    }

    fn read_only(&self) -> bool {
        self.shared.options.read_only
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        let engine = RecordingEngine(Arc::clone(&self.shared));
        if let Some(raw) = &self.raw {
            return raw.queue_of(n, |raw| TraceEngine { trace: engine, raw });
        }
        let profile =
            Some(self.shared.options.profile.clone()).filter(|p| p.mode != AtomicMode::None);
        broken::or_broken(GatedQueue::new(n, engine, Arc::clone(&self.gate), profile))
    }

    fn bell(&self, n: u16) -> Option<Arc<OwnedFd>> {
        self.raw.as_ref()?.bell(n)
    }

    fn connected(&self, rings: Arc<dyn Rings>) {
        self.shared.unsee();
        *self.shared.rings.write().unwrap_or_else(PoisonError::into_inner) = Some(rings);
    }

    fn negotiated(&self, what: Negotiation) {
        self.shared.must(&Event::Negotiate(what));
        if let Some(raw) = &self.raw {
            raw.negotiated(what);
        }
    }

    fn set_writeback(&self, on: bool) {
        self.shared.must(&Event::SetWriteback { on });
        if let Some(raw) = &self.raw {
            raw.set_writeback(on);
        }
    }

    /// A queue that begins anew after a reconnect or restart is another driver's, maybe: its requests
    /// are none of those before, though they may look like them.
    fn begun(&self, n: u16, again: bool) {
        if self.shared.open.begun(n) && !again {
            self.reset(ResetCause::QueueStop, Some(n));
        }
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        // Indexes that were read before are recorded first.
        let mut rings = self.shared.rings.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.must(&Event::Reset { cause, queue });
        self.shared.open.reset(cause, queue);
        self.shared.unsee();
        if cause == ResetCause::Reconnect && queue.is_none() {
            *rings = None;
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

/// What is to be known before anything is written to it: a recording stays as a power cut left it.
fn sound(opening: &Opening, recording: &Path) -> Result<Survey, RecordingError> {
    let survey = opening.survey();
    if let Some(cut) = survey.power_cut {
        return Err(over_for_good(recording, cut));
    }
    makes_sense(survey, recording)?;
    Ok(survey.clone())
}

fn makes_sense(survey: &Survey, recording: &Path) -> Result<(), RecordingError> {
    match survey.nonsense.clone() {
        Some(what) => Err(RecordingError::Corrupt { path: recording.to_owned(), what }),
        None => Ok(()),
    }
}

/// An image that is open, for as long as a store lives: the same open file, and so the same lock.
fn again(image: &File, path: &Path) -> Result<Base, RecordingError> {
    let file = image.try_clone().map_err(|source| RecordingError::Io {
        what: "open the image once more",
        path: path.to_owned(),
        source,
    })?;
    Ok(Base::Image { file, path: path.to_owned() })
}

fn over_for_good(recording: &Path, cut: Seq) -> RecordingError {
    RecordingError::Invalid(format!(
        "the power was cut in {} (event {cut}): there is no live disk to go on with; record to \
         another file",
        recording.display()
    ))
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

    fn unsee(&self) {
        self.seen.forget();
    }

    fn off(&self) -> bool {
        self.writer.is_frozen() || self.writer.thaws() != self.thaws
    }

    /// Shows what the recording holds, but for requests that changed nothing.
    fn replay(&self, untouched: &HashSet<Seq>) -> Result<(), RecordingError> {
        let reader = self.writer.reader()?;
        for found in reader.events() {
            let (seq, event) = found?;
            match event {
                Event::Reset { cause: ResetCause::PowerCut, .. } => {
                    return Err(over_for_good(reader.path(), seq));
                }
                Event::Reset { cause, queue } => self.open.reset(cause, queue),
                Event::Complete { request, status } => self.open.end(request, status),
                Event::Submit(ref submit) => self.open.begin(seq, submit),
                _ => {}
            }
            match event {
                // A request that reaches beyond the disk is none that a device recorded.
                Event::Submit(submit) if !self.disk.holds(&submit.op) => {
                    let what = format!("event {seq}: the request lies outside of the disk");
                    return Err(RecordingError::Corrupt { path: reader.path().to_owned(), what });
                }
                Event::Submit(submit) if self.keeps_data() && !untouched.contains(&seq) => {
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
                        event::Op::Read { .. } | event::Op::Flush { .. } => Work::Nothing,
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

    /// Otherwise it is a trace.
    fn keeps_data(&self) -> bool {
        self.writer.header().data
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
                Place::At(position) => {
                    let copy = |bytes: &[u8]| buffers.copy_from(at, bytes);
                    // SAFETY: the index has only what was finished, or what a survey found sound.
                    unsafe { self.writer.with_bytes(position, (end - start) as usize, copy) }
                        .map(drop)
                        .map_err(failed)?;
                }
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
            self.base.read(offset + done, &mut bounce[..n])?;
            buffers.copy_from(at + done as usize, &bounce[..n]);
            done += n as u64;
        }
        Ok(())
    }

    fn read_block(&self, block: u64, place: Place, to: &mut [u8]) -> Result<(), Failure> {
        match place {
            Place::Zeroes => to.fill(0),
            Place::Base => self.base.read(block * u64::from(self.disk.lb_size), to)?,
            Place::At(position) => {
                let len = to.len();
                // SAFETY: as in `read`.
                unsafe { self.writer.with_bytes(position, len, |bytes| to.copy_from_slice(bytes)) }
                    .map_err(failed)?;
            }
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

//! The disk in one state of a recording, writable: after a crash, and for `use-state`.
//!
//! What is written goes to an overlay that dies with the store: an unlinked file beside the
//! recording, as large as what was written. Nothing of it is recorded, and neither the recording
//! nor the base image is changed. Sectors are kept, not logical blocks, so a request that covers a
//! part of a block needs no care.
//!
//! The state can be exchanged in place ([`StateStore::patch`]): for the one who shows thousands of
//! them, each differs from the last in a few blocks.

use super::broken;
use super::gate::{Engine, Gate, GatedQueue, Moved, Step};
use super::recording::RecordingOptions;
use super::{Buffers, Failure, Op, Request, Rings, Store, StoreQueue};
use crate::made::folder_of;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tornblk_model::crash::{AtomicMode, Content, DiscardReads, Source, discard_reads_zeroes};
use tornblk_model::event::{Disk, Negotiation, ResetCause, SECTOR, Segment, Seq};
use tornblk_model::recording::{RecordingError, StateReader};

/// Sectors in a word of the overlay's map.
const WORD: u64 = 64;
/// Bytes moved at once.
const PIECE: usize = 256 << 10;

pub struct StateStore {
    shared: Arc<Shared>,
    gate: Arc<dyn Gate>,
}

struct Shared {
    disk: Disk,
    options: RecordingOptions,
    /// Held while bytes move, so that a read sees all of a write or nothing.
    shown: RwLock<Shown>,
    /// Discards so far: what `discard-either` leaves depends on it.
    discards: AtomicU64,
}

struct Shown {
    state: StateReader,
    /// [`Content::fingerprint`] of it.
    fingerprint: u128,
    overlay: Overlay,
}

/// What was written since the state was shown.
struct Overlay {
    /// Sector `n` is at its place on the disk; or why there is no file.
    file: Result<File, io::Error>,
    /// By the 64 sectors.
    words: HashMap<u64, Word>,
}

/// One bit a sector.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    /// The overlay has something to say.
    covered: u64,
    /// Of those: zeroes, whatever the file holds.
    zero: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    State,
    Zeroes,
    File,
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shared.shown();
        f.debug_struct("StateStore").field("state", &shown.state).finish_non_exhaustive()
    }
}

impl StateStore {
    /// Shows `state`. Where no overlay can be made beside the recording, reads work and writes
    /// fail; the log says why.
    pub fn new(state: StateReader, gate: Arc<dyn Gate>, options: RecordingOptions) -> StateStore {
        let recording = state.reader().path();
        let dir = folder_of(recording);
        let file = tempfile::tempfile_in(dir);
        if let Err(e) = &file
            && !options.read_only
        {
            let dir = dir.display();
            log::error!("no file for what is written to the state can be made in {dir}: {e}");
        }
        let overlay = Overlay { file, words: HashMap::new() };
        let fingerprint = state.content().fingerprint();
        let disk = state.disk().clone();
        let shown = RwLock::new(Shown { state, fingerprint, overlay });
        let shared = Shared { disk, options, shown, discards: AtomicU64::new(0) };
        StateStore { shared: Arc::new(shared), gate }
    }

    /// Can it be written to?
    ///
    /// # Errors
    /// Why there is no file for what is written.
    pub fn writable(&self) -> Result<(), RecordingError> {
        let shown = self.shared.shown();
        let Err(e) = &shown.overlay.file else { return Ok(()) };
        let path = shown.state.reader().path();
        let what = "make a file for what is written, beside";
        let source = io::Error::new(e.kind(), e.to_string());
        Err(RecordingError::Io { what, path: path.to_owned(), source })
    }

    /// A reader of what is shown, without what was written to it.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn reader(&self) -> Result<StateReader, RecordingError> {
        self.shared.shown().state.try_clone()
    }

    /// [`Content::fingerprint`] of what is shown, without what was written to it.
    pub fn fingerprint(&self) -> u128 {
        self.shared.shown().fingerprint
    }

    /// Shows another state of the same recording, and forgets what was written: → its fingerprint.
    /// No request may be in flight.
    pub fn set_content(&self, content: Content) -> u128 {
        let mut shown = self.shared.shown_mut();
        shown.overlay.clear();
        shown.fingerprint = content.fingerprint();
        shown.state.set_content(content);
        self.shared.discards.store(0, Ordering::Relaxed);
        shown.fingerprint
    }

    /// As [`StateStore::set_content`], with the blocks in which the other state differs.
    pub fn patch(&self, blocks: impl Iterator<Item = (u64, Source)>) -> u128 {
        let mut shown = self.shared.shown_mut();
        shown.overlay.clear();
        for (block, source) in blocks {
            let old = shown.state.content().of(block).fingerprint(block);
            let new = source.fingerprint(block);
            shown.fingerprint = shown.fingerprint.wrapping_sub(old).wrapping_add(new);
            shown.state.set(block, source);
        }
        self.shared.discards.store(0, Ordering::Relaxed);
        shown.fingerprint
    }
}

impl Store for StateStore {
    fn disk(&self) -> Disk {
        self.shared.disk.clone()
    }

    fn read_only(&self) -> bool {
        self.shared.options.read_only
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        let profile =
            Some(self.shared.options.profile.clone()).filter(|p| p.mode != AtomicMode::None);
        let engine = StateEngine(Arc::clone(&self.shared));
        broken::or_broken(GatedQueue::new(n, engine, Arc::clone(&self.gate), profile))
    }

    fn connected(&self, _: Arc<dyn Rings>) {}

    fn negotiated(&self, _: Negotiation) {}

    fn set_writeback(&self, _: bool) {}

    fn reset(&self, _: ResetCause, _: Option<u16>) {}
}

impl Overlay {
    /// Forgets everything.
    fn clear(&mut self) {
        if self.words.is_empty() {
            return;
        }
        self.words.clear();
        // Only to give the space back: nothing of it is read any more.
        if let Ok(file) = &self.file
            && let Err(e) = file.set_len(0)
        {
            log::warn!("the space of what was written to a state is not given back: {e}");
        }
    }

    fn file(&self) -> Result<&File, Failure> {
        self.file.as_ref().map_err(|e| Failure::Io(io::Error::new(e.kind(), e.to_string())))
    }

    /// Where the bytes are, in runs of sectors.
    fn runs(&self, sectors: Range<u64>) -> Vec<(Range<u64>, From)> {
        let mut runs: Vec<(Range<u64>, From)> = Vec::new();
        for (n, mask) in words(sectors) {
            let word = self.words.get(&n).copied().unwrap_or_default();
            for bit in (0..WORD).filter(|bit| mask & 1 << bit != 0) {
                let from = match (word.covered >> bit & 1, word.zero >> bit & 1) {
                    (0, _) => From::State,
                    (_, 0) => From::File,
                    _ => From::Zeroes,
                };
                let sector = n * WORD + bit;
                match runs.last_mut() {
                    Some((run, same)) if *same == from => run.end = sector + 1,
                    _ => runs.push((sector..sector + 1, from)),
                }
            }
        }
        runs
    }

    fn cover(&mut self, sectors: Range<u64>, zero: bool) {
        for (n, mask) in words(sectors) {
            let word = self.words.entry(n).or_default();
            word.covered |= mask;
            word.zero = if zero { word.zero | mask } else { word.zero & !mask };
        }
    }
}

/// The words that hold these sectors, with the bits that are meant.
fn words(sectors: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let Range { start, end } = sectors;
    let numbers = if start < end { start / WORD..(end - 1) / WORD + 1 } else { 0..0 };
    numbers.map(move |n| {
        let from = start.saturating_sub(n * WORD).min(WORD);
        let upto = (end - n * WORD).min(WORD);
        let below = |bits: u64| if bits == WORD { u64::MAX } else { (1 << bits) - 1 };
        (n, below(upto) & !below(from))
    })
}

impl Shared {
    fn shown(&self) -> RwLockReadGuard<'_, Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown_mut(&self) -> RwLockWriteGuard<'_, Shown> {
        self.shown.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, offset: u64, buffers: &mut Buffers) -> Result<(), Failure> {
        let shown = self.shown();
        let overlay = &shown.overlay;
        let sectors = offset / SECTOR..(offset + buffers.len() as u64) / SECTOR;
        let mut bounce = vec![0; buffers.len().min(PIECE)];
        for (run, from) in overlay.runs(sectors) {
            let (mut at, end) = (run.start * SECTOR, run.end * SECTOR);
            while at < end {
                let n = (end - at).min(bounce.len() as u64) as usize;
                let piece = &mut bounce[..n];
                match from {
                    From::Zeroes => piece.fill(0),
                    From::State => shown.state.read_at(at, piece).map_err(io::Error::other)?,
                    From::File => overlay.file()?.read_exact_at(piece, at)?,
                }
                buffers.copy_from((at - offset) as usize, piece);
                at += n as u64;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers) -> Result<(), Failure> {
        let overlay = &mut self.shown_mut().overlay;
        let mut bounce = vec![0; buffers.len().min(PIECE)];
        let mut done = 0;
        while done < buffers.len() {
            let n = buffers.copy_to(done, &mut bounce);
            let at = offset + done as u64;
            overlay.file()?.write_all_at(&bounce[..n], at)?;
            // Where a later piece fails, this one is there: a failed write is old or new.
            overlay.cover(at / SECTOR..(at + n as u64) / SECTOR, false);
            done += n;
        }
        Ok(())
    }

    fn zero(&self, segments: &[Segment]) {
        let overlay = &mut self.shown_mut().overlay;
        for s in segments {
            overlay.cover(s.offset / SECTOR..(s.offset + s.len) / SECTOR, true);
        }
    }

    /// As on the recorded disk: whole blocks, and by the profile.
    fn discard(&self, segments: &[Segment]) {
        let lb = u64::from(self.disk.lb_size);
        let request = Seq(self.discards.fetch_add(1, Ordering::Relaxed));
        let overlay = &mut self.shown_mut().overlay;
        for s in segments {
            for block in s.offset.div_ceil(lb)..(s.offset + s.len) / lb {
                let zero = match self.options.profile.discard {
                    DiscardReads::Zeroes => true,
                    DiscardReads::Old => false,
                    DiscardReads::Either => discard_reads_zeroes(self.options.seed, request, block),
                };
                if zero {
                    overlay.cover(block * lb / SECTOR..(block + 1) * lb / SECTOR, true);
                }
            }
        }
    }
}

struct StateEngine(Arc<Shared>);

impl Engine for StateEngine {
    type Ticket = ();

    fn begin(&mut self, request: &Request, _: bool) -> Result<Step<()>, Failure> {
        match request.op {
            Op::Read { .. } | Op::Flush { .. } => Ok(Step::Next(())),
            _ if self.0.options.read_only => Err(Failure::ReadOnly),
            _ => Ok(Step::Next(())),
        }
    }

    fn execute(&mut self, request: &mut Request, (): &mut (), _: bool, _: usize) -> Moved {
        let result = match &request.op {
            Op::Read { offset } => self.0.read(*offset, &mut request.buffers),
            Op::Write { offset, .. } => self.0.write(*offset, &request.buffers),
            // The overlay lives no longer than this process: there is nothing to make durable.
            Op::Flush { .. } => Ok(()),
            Op::Discard { segments } => {
                self.0.discard(segments);
                Ok(())
            }
            Op::WriteZeroes { segments } => {
                self.0.zero(segments);
                Ok(())
            }
        };
        result.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::gate::AlwaysGo;
    use crate::store::recording::RecordingStore;
    use crate::store::testing::{
        ask, discard, flush, image, plain_profile, read, request, write, zeroes,
    };
    use proptest::prelude::*;
    use std::path::PathBuf;
    use tornblk_model::crash::Profile;
    use tornblk_model::recording::{BaseImage, NewRecording, Reader, Trust, Writer};

    const SIZE: u64 = 256 << 10;

    struct Setup {
        dir: tempfile::TempDir,
        recording: PathBuf,
        /// The disk in the state.
        bytes: Vec<u8>,
    }

    fn options(discard: DiscardReads, read_only: bool) -> RecordingOptions {
        RecordingOptions { profile: Profile { discard, ..plain_profile() }, seed: 3, read_only }
    }

    impl Setup {
        /// A recording with one write of 16 KiB at 4096, and a state that shows half of it.
        fn new() -> Setup {
            let (dir, image, mut bytes) = image(SIZE);
            let recording = dir.path().join("disk.rec");
            let options = options(DiscardReads::Zeroes, false);
            let gate = Arc::new(AlwaysGo);
            let base = BaseImage::identify(&image).unwrap();
            let disk = Disk { capacity: SIZE, lb_size: 4096 };
            let new = NewRecording::new(disk, base, serde_json::Value::Null);
            let new = NewRecording { segment_size: 64 << 10, ..new };
            let writer = Writer::create(&recording, new).unwrap();
            let store = RecordingStore::over(writer, gate, options).unwrap();
            ask(&mut *store.queue(0), write(0, 4096, vec![0xaa; 16 << 10])).unwrap();
            bytes[8192..12288].fill(0xaa);
            bytes[16384..20480].fill(0xaa);
            bytes[20480..24576].fill(0);
            Setup { dir, recording, bytes }
        }

        fn store(&self, options: RecordingOptions) -> StateStore {
            let written = |block| Source::Written { request: Seq(0), block };
            let blocks = [(2, written(1)), (4, written(3)), (5, Source::Zeroes)].into();
            let reader = Arc::new(Reader::open(&self.recording).unwrap());
            let state =
                StateReader::new(reader, None, Trust::Unchanged, Content { blocks }).unwrap();
            StateStore::new(state, Arc::new(AlwaysGo), options)
        }
    }

    /// (kind, first sector, sectors, byte): lies inside the disk.
    fn step() -> impl Strategy<Value = (u8, u64, u64, u8)> {
        (0..5u8, 0..SIZE / 512, 1..=150u64, any::<u8>())
            .prop_map(|(kind, at, n, byte)| (kind, at, n.min(SIZE / 512 - at), byte))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_state_is_a_disk_like_any_other(steps in prop::collection::vec(step(), 1..40)) {
            let setup = Setup::new();
            let recorded = std::fs::read(&setup.recording).unwrap();
            let mut disk = setup.bytes.clone();
            let store = setup.store(options(DiscardReads::Zeroes, false));
            let mut queue = store.queue(0);
            for (kind, at, n, byte) in steps {
                let (offset, len) = (at * 512, n * 512);
                let range = offset as usize..(offset + len) as usize;
                match kind {
                    0 => {
                        let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8).collect();
                        ask(&mut *queue, write(0, offset, data.clone())).unwrap();
                        disk[range].copy_from_slice(&data);
                    }
                    1 => {
                        let data = ask(&mut *queue, read(0, offset, len as usize)).unwrap();
                        prop_assert!(data == disk[range]);
                    }
                    2 => {
                        ask(&mut *queue, flush(0)).unwrap();
                    }
                    3 => {
                        ask(&mut *queue, discard(0, offset, len)).unwrap();
                        let whole = offset.next_multiple_of(4096)..(offset + len) / 4096 * 4096;
                        if whole.start < whole.end {
                            disk[whole.start as usize..whole.end as usize].fill(0);
                        }
                    }
                    _ => {
                        ask(&mut *queue, zeroes(0, offset, len, byte & 1 == 0)).unwrap();
                        disk[range].fill(0);
                    }
                }
            }
            let all = ask(&mut *queue, read(0, 0, SIZE as usize)).unwrap();
            prop_assert!(all == disk);
            // The overlay is nobody else's, has no name, and changes nothing beneath.
            let fresh = setup.store(options(DiscardReads::Zeroes, false));
            let all = ask(&mut *fresh.queue(0), read(0, 0, SIZE as usize)).unwrap();
            prop_assert!(all == setup.bytes);
            prop_assert!(std::fs::read(&setup.recording).unwrap() == recorded);
            prop_assert_eq!(std::fs::read_dir(setup.dir.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn bits_of_a_word_are_the_sectors_meant() {
        let all = |range: Range<u64>| -> Vec<u64> {
            words(range)
                .flat_map(|(n, mask)| {
                    (0..64).filter(move |b| mask >> b & 1 == 1).map(move |b| n * 64 + b)
                })
                .collect()
        };
        for start in 0..130 {
            for end in start..200 {
                assert_eq!(all(start..end), (start..end).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn several_segments_and_what_a_discard_leaves() {
        for rule in [DiscardReads::Zeroes, DiscardReads::Old, DiscardReads::Either] {
            let setup = Setup::new();
            let store = setup.store(options(rule, false));
            let mut queue = store.queue(0);
            ask(&mut *queue, write(0, 0, vec![9; SIZE as usize])).unwrap();
            let half = |offset| Segment { offset, len: SIZE / 2, unmap: false };
            let segments = vec![half(0), half(SIZE / 2)];
            ask(&mut *queue, request(0, Op::Discard { segments }, Buffers::empty())).unwrap();
            let all = ask(&mut *queue, read(0, 0, SIZE as usize)).unwrap();
            let blocks = SIZE as usize / 4096;
            let zeroed = all.chunks(4096).filter(|b| b.iter().all(|b| *b == 0)).count();
            let old = all.chunks(4096).filter(|b| b.iter().all(|b| *b == 9)).count();
            assert_eq!(zeroed + old, blocks, "whole blocks, {rule:?}");
            match rule {
                DiscardReads::Zeroes => assert_eq!(old, 0),
                DiscardReads::Old => assert_eq!(zeroed, 0),
                DiscardReads::Either => assert!(zeroed > 8 && old > 8, "{zeroed} of {blocks}"),
            }
        }
    }

    #[test]
    fn a_read_only_state_takes_no_write() {
        let setup = Setup::new();
        let store = setup.store(options(DiscardReads::Zeroes, true));
        let mut queue = store.queue(0);
        for refused in [write(0, 0, vec![1; 512]), discard(0, 0, 512), zeroes(0, 0, 512, true)] {
            assert!(matches!(ask(&mut *queue, refused), Err(Failure::ReadOnly)));
        }
        assert!(ask(&mut *queue, read(0, 0, SIZE as usize)).unwrap() == setup.bytes);
        assert!(ask(&mut *queue, flush(0)).is_ok());
    }

    #[test]
    fn a_read_sees_all_of_a_write_or_nothing() {
        let setup = Setup::new();
        let store = setup.store(options(DiscardReads::Zeroes, false));
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                let mut queue = store.queue(0);
                for round in 0..200u16 {
                    let data = vec![round as u8; 32 << 10];
                    ask(&mut *queue, write(round, 64 << 10, data)).unwrap();
                }
            });
            let mut queue = store.queue(1);
            ask(&mut *queue, write(0, 64 << 10, vec![0; 32 << 10])).unwrap();
            while !writer.is_finished() {
                let data = ask(&mut *queue, read(0, 64 << 10, 32 << 10)).unwrap();
                assert!(data.iter().all(|b| *b == data[0]), "a torn read");
            }
        });
    }
}

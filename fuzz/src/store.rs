//! Real stores beneath a device, and somebody between them who holds the device to what
//! [`tornblk_backend::store`] says that a store may rely on, and the store to what it promises.

use crate::reach::Count;
use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tempfile::TempDir;
use tornblk_backend::store::gate::{Gate, GateContext, Verdict, Waker};
use tornblk_backend::store::{
    Cache, Done, Image, Op, Origin, RawStore, RecordingOptions, RecordingStore, Request, Rings,
    Store, StoreQueue,
};
use tornblk_model::crash::{History, Profile};
use tornblk_model::event::{Disk, Negotiation, ResetCause};
use tornblk_model::recording::{BaseImage, NewRecording, Reader, Writer};

/// Bytes of the disk.
pub(crate) const DISK: u64 = 64 << 10;
/// Of a recording: as small as it goes, so that a case begins new ones.
const SEGMENT: u64 = 64 << 10;

/// Which disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) recorded: bool,
    pub(crate) read_only: bool,
    pub(crate) lb_size: u32,
}

impl Kind {
    /// From the lower half of a case's first byte.
    pub(crate) fn of(setup: u8) -> Kind {
        Kind {
            recorded: setup & 1 != 0,
            read_only: setup & 6 == 6,
            lb_size: if setup & 8 != 0 { 4096 } else { 512 },
        }
    }
}

/// A disk in files, and who watches it.
pub(crate) struct Disks {
    kind: Kind,
    dir: TempDir,
    pub(crate) store: Arc<Watched>,
    pub(crate) gate: Arc<Stalls>,
    /// For the end: the recording must be whole then.
    recording: Option<Arc<RecordingStore>>,
}

fn content() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| (0..DISK).map(|i| (i / 512 % 251 + 1) as u8).collect())
}

impl Disks {
    pub(crate) fn new(kind: Kind, profile: &Profile) -> Disks {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, content()).unwrap();
        let gate = Arc::new(Stalls::default());
        let Kind { recorded, read_only, lb_size } = kind;
        let profile = profile.clone();
        let mut recording = None;
        let beneath: Arc<dyn Store> = if recorded {
            let base = BaseImage::identify(&image).unwrap();
            let disk = Disk { capacity: base.size, lb_size };
            let new = NewRecording {
                segment_size: SEGMENT,
                ..NewRecording::new(disk, base, serde_json::Value::Null)
            };
            let writer = Writer::create(&dir.path().join("disk.rec"), new).unwrap();
            let options = RecordingOptions { profile, seed: 1, read_only };
            let store = RecordingStore::over(writer, gate.clone(), options).unwrap();
            let store = Arc::new(store);
            recording = Some(store.clone());
            store
        } else {
            let image = Image::open(&image, lb_size, read_only).unwrap();
            let cache = Cache::Unsafe;
            Arc::new(RawStore::new(image, lb_size, read_only, cache, gate.clone(), profile))
        };
        let store = Arc::new(Watched { beneath, seen: Arc::default() });
        Disks { kind, dir, store, gate, recording }
    }

    /// The device is gone: is everything as it may be?
    pub(crate) fn end(self) {
        let image = std::fs::read(self.dir.path().join("disk.img")).unwrap();
        let mut before = content().to_vec();
        assert_eq!(image.len(), before.len(), "the image has another length");
        let seen = std::mem::take(&mut *self.store.seen.lock().unwrap());
        assert!(seen.open.is_empty() || self.gate.on(), "never done: {:?}", seen.open);
        if !self.kind.recorded {
            for range in seen.written {
                before[range.clone()].copy_from_slice(&image[range]);
            }
        }
        assert!(image == before, "a byte of the image that no request names");
        let Some(recording) = self.recording else { return };
        let path = self.dir.path().join("disk.rec");
        drop((self.store, recording));
        let reader = Reader::open(&path).unwrap();
        reader.verify().unwrap();
        let events: Result<Vec<_>, _> = reader.events().collect();
        History::new(reader.header().disk.clone(), events.unwrap()).unwrap();
    }
}

/// Holds requests before they are executed, or before they are done, while it is told to.
#[derive(Default)]
pub(crate) struct Stalls {
    before: AtomicBool,
    after: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Stalls {
    pub(crate) fn stall(&self, executed: bool) {
        if executed { &self.after } else { &self.before }.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.before.store(false, Ordering::SeqCst);
        self.after.store(false, Ordering::SeqCst);
        self.wakers.lock().unwrap().iter().for_each(Waker::wake);
    }

    fn on(&self) -> bool {
        self.before.load(Ordering::SeqCst) || self.after.load(Ordering::SeqCst)
    }
}

impl Gate for Stalls {
    fn attach(&self, _: u16, waker: Waker) {
        self.wakers.lock().unwrap().push(waker);
    }

    fn before_io(&self, _: &GateContext<'_>) -> Verdict {
        if self.before.load(Ordering::SeqCst) { Verdict::Hold } else { Verdict::Go }
    }

    fn before_completion(&self, _: &GateContext<'_>) -> Verdict {
        if self.after.load(Ordering::SeqCst) { Verdict::Hold } else { Verdict::Go }
    }
}

/// A store that looks at what passes.
pub(crate) struct Watched {
    beneath: Arc<dyn Store>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    open: HashSet<(u16, u16, u16)>,
    /// Bytes that some request may have changed.
    written: Vec<Range<usize>>,
}

pub(crate) static READS: Count = Count::new("reads");
pub(crate) static WRITES: Count = Count::new("writes");
pub(crate) static FLUSHES: Count = Count::new("flushes");
pub(crate) static CUTS: Count = Count::new("discards and zeroes");

impl Store for Watched {
    fn disk(&self) -> Disk {
        self.beneath.disk()
    }

    fn read_only(&self) -> bool {
        self.beneath.read_only()
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        let (beneath, seen) = (self.beneath.queue(n), Arc::clone(&self.seen));
        // What the earlier one still held is over.
        seen.lock().unwrap().open.retain(|(queue, ..)| *queue != n);
        let read_only = self.read_only();
        Box::new(WatchedQueue { beneath, seen, capacity: self.disk().capacity, read_only })
    }

    fn connected(&self, rings: Arc<dyn Rings>) {
        self.beneath.connected(rings);
    }

    fn negotiated(&self, what: Negotiation) {
        self.beneath.negotiated(what);
    }

    fn set_writeback(&self, on: bool) {
        self.beneath.set_writeback(on);
    }

    fn is_off(&self) -> bool {
        self.beneath.is_off()
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        let all = |of: &u16| queue.is_none_or(|queue| queue == *of);
        self.seen.lock().unwrap().open.retain(|(of, ..)| !all(of));
        self.beneath.reset(cause, queue);
    }
}

struct WatchedQueue {
    beneath: Box<dyn StoreQueue>,
    seen: Arc<Mutex<Seen>>,
    capacity: u64,
    read_only: bool,
}

fn key(origin: Origin) -> (u16, u16, u16) {
    (origin.queue, origin.position, origin.head)
}

impl StoreQueue for WatchedQueue {
    fn submit(&mut self, request: Request) {
        let len = request.buffers.len() as u64;
        let mut seen = self.seen.lock().unwrap();
        let on_disk = |offset: u64, len: u64| {
            let end = offset.checked_add(len).unwrap();
            assert!(len > 0 && end <= self.capacity, "outside of the disk: {:?}", request.op);
            assert!(offset.is_multiple_of(512) && len.is_multiple_of(512), "{:?}", request.op);
            offset as usize..end as usize
        };
        match &request.op {
            Op::Read { offset } => {
                READS.one();
                on_disk(*offset, len);
            }
            Op::Write { offset, .. } => {
                WRITES.one();
                seen.written.push(on_disk(*offset, len));
            }
            Op::Flush { .. } => FLUSHES.one(),
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                CUTS.one();
                seen.written.extend(segments.iter().map(|s| on_disk(s.offset, s.len)));
            }
        }
        let changes = !matches!(request.op, Op::Read { .. } | Op::Flush { .. });
        assert!(!(changes && self.read_only), "of a read-only disk: {:?}", request.op);
        assert!(
            changes && !matches!(request.op, Op::Discard { .. } | Op::WriteZeroes { .. })
                || matches!(request.op, Op::Read { .. })
                || len == 0
        );
        let pieces = request.pieces.iter().sum::<u64>();
        assert!(pieces == 0 || pieces == len, "pieces of {pieces} bytes, of {len}");
        assert!(seen.open.insert(key(request.origin)), "in flight already: {:?}", request.origin);
        drop(seen);
        self.beneath.submit(request);
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        let WatchedQueue { beneath, seen, .. } = self;
        beneath.reap(&mut |done| {
            let known = seen.lock().unwrap().open.remove(&key(done.request.origin));
            assert!(known, "done twice: {:?}", done.request.origin);
            f(done);
        });
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.beneath.wake_fd()
    }

    fn in_flight(&self) -> usize {
        self.beneath.in_flight()
    }

    fn drain(&mut self) {
        self.beneath.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tornblk_backend::store::Buffers;

    fn disks(recorded: bool, read_only: bool) -> Disks {
        Disks::new(Kind { recorded, read_only, lb_size: 512 }, &Profile::PLAIN)
    }

    fn request(op: Op, len: usize) -> Request {
        let origin = Origin { queue: 0, position: 1, head: 2, ioprio: 0 };
        Request::new(origin, op, Buffers::from_vec(vec![7; len]))
    }

    fn write(offset: u64) -> Op {
        Op::Write { offset, fua: false, atomic: false }
    }

    fn ask(disks: &Disks, requests: impl IntoIterator<Item = Request>) {
        let mut queue = disks.store.queue(0);
        requests.into_iter().for_each(|request| queue.submit(request));
        queue.reap(&mut drop);
    }

    #[test]
    fn what_lies_on_the_disk_passes() {
        for recorded in [false, true] {
            let disks = disks(recorded, false);
            ask(&disks, [request(write(DISK - 512), 512)]);
            disks.end();
        }
    }

    #[test]
    #[should_panic(expected = "outside of the disk")]
    fn what_reaches_beyond_the_disk_is_noticed() {
        ask(&disks(false, false), [request(write(DISK - 512), 1024)]);
    }

    #[test]
    #[should_panic(expected = "of a read-only disk")]
    fn a_write_to_a_read_only_disk_is_noticed() {
        ask(&disks(false, true), [request(write(0), 512)]);
    }

    #[test]
    #[should_panic(expected = "in flight already")]
    fn a_head_that_is_out_is_noticed() {
        ask(&disks(false, false), [request(write(0), 512), request(write(0), 512)]);
    }

    #[test]
    #[should_panic(expected = "never done")]
    fn a_request_that_is_never_done_is_noticed() {
        let disks = disks(false, false);
        let mut queue = disks.store.queue(0);
        queue.submit(request(write(0), 512));
        drop(queue);
        disks.end();
    }

    #[test]
    #[should_panic(expected = "that no request names")]
    fn an_image_that_changes_by_itself_is_noticed() {
        let disks = disks(true, false);
        let mut image = content().to_vec();
        image[700] ^= 1;
        std::fs::write(disks.dir.path().join("disk.img"), image).unwrap();
        disks.end();
    }

    #[test]
    #[should_panic(expected = "another length")]
    fn an_image_that_grows_is_noticed() {
        let disks = disks(false, false);
        let mut image = content().to_vec();
        image.push(0);
        std::fs::write(disks.dir.path().join("disk.img"), image).unwrap();
        disks.end();
    }
}

mod cut;
mod order;

use super::*;
use crate::store::gate::{AlwaysGo, GateContext, Point, Verdict, Waker};
use crate::store::testing::{
    ask, data, discard, flush, image, plain_profile, read, reap, request, write, zeroes,
};
use crate::store::{Done, Op};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tornblk_model::crash::{Content, History, Source, StateName};
use tornblk_model::event::{Status, Submit};
use tornblk_model::recording::Reader;
use tornblk_model::recording::StateReader;

const SIZE: u64 = 64 << 10;

/// Opens what is locked by nobody. A test beside this one starts a process, which has our descriptors,
/// and so our locks, for a moment: until it runs its program.
fn free<T>(open: impl Fn() -> Result<T, RecordingError>) -> Result<T, RecordingError> {
    let start = std::time::Instant::now();
    loop {
        match open() {
            Err(RecordingError::Busy { .. }) if start.elapsed().as_secs() < 10 => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// A gate that a test tells what to do.
#[derive(Default)]
struct Told {
    before_io: Mutex<BTreeMap<u16, Verdict>>,
    before_completion: Mutex<BTreeMap<u16, Verdict>>,
    cut: Mutex<Option<(u16, Point)>>,
    was_cut: Mutex<Option<Seq>>,
    waker: Mutex<Option<Waker>>,
    ended: AtomicU64,
}

impl Told {
    /// By the position of the request; `Go` unless told.
    fn tell(&self, point: Point, position: u16, verdict: Verdict) {
        let which = match point {
            Point::Submit => &self.before_io,
            Point::Complete => &self.before_completion,
        };
        which.lock().unwrap().insert(position, verdict);
    }

    fn let_go(&self) {
        self.before_io.lock().unwrap().clear();
        self.before_completion.lock().unwrap().clear();
        self.waker.lock().unwrap().as_ref().unwrap().wake();
    }
}

impl Gate for Told {
    fn attach(&self, _: u16, waker: Waker) {
        *self.waker.lock().unwrap() = Some(waker);
    }

    fn cut_after(&self, ctx: &GateContext<'_>, point: Point) -> bool {
        *self.cut.lock().unwrap() == Some((ctx.origin.position, point))
    }

    fn cut(&self, after: Seq) {
        *self.was_cut.lock().unwrap() = Some(after);
    }

    fn before_io(&self, ctx: &GateContext<'_>) -> Verdict {
        let told = self.before_io.lock().unwrap();
        told.get(&ctx.origin.position).copied().unwrap_or(Verdict::Go)
    }

    fn before_completion(&self, ctx: &GateContext<'_>) -> Verdict {
        let told = self.before_completion.lock().unwrap();
        told.get(&ctx.origin.position).copied().unwrap_or(Verdict::Go)
    }

    fn ended(&self, _: u64) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

struct Setup {
    dir: tempfile::TempDir,
    image: PathBuf,
    bytes: Vec<u8>,
    gate: Arc<Told>,
}

fn options(discard: DiscardReads) -> RecordingOptions {
    let profile = Profile { discard, ..plain_profile() };
    RecordingOptions { profile, seed: 5, read_only: false }
}

impl Setup {
    fn new() -> Setup {
        let (dir, image, bytes) = image(SIZE);
        Setup { dir, image, bytes, gate: Arc::default() }
    }

    fn recording(&self) -> PathBuf {
        self.dir.path().join("disk.rec")
    }

    fn create(&self, lb_size: u32, discard: DiscardReads) -> RecordingStore {
        self.create_with(lb_size, discard, Arc::clone(&self.gate) as _)
    }

    fn create_with(
        &self,
        lb_size: u32,
        discard: DiscardReads,
        gate: Arc<dyn Gate>,
    ) -> RecordingStore {
        let base = BaseImage::identify(&self.image).unwrap();
        let disk = Disk { capacity: SIZE, lb_size };
        let new = NewRecording::new(disk, base, serde_json::json!({}));
        let new = NewRecording { segment_size: 256 << 10, ..new };
        let writer = Writer::create(&self.recording(), new).unwrap();
        RecordingStore::over(writer, gate, options(discard)).unwrap()
    }

    fn store(&self, lb_size: u32) -> RecordingStore {
        self.create(lb_size, DiscardReads::Zeroes)
    }

    fn reopen(&self, lb_size: u32, discard: DiscardReads) -> RecordingStore {
        let gate = || Arc::clone(&self.gate) as _;
        let options = options(discard);
        let again = || {
            let image = File::open(&self.image).unwrap();
            let open = (&image, &*self.image);
            RecordingStore::reopen(&self.recording(), open, lb_size, gate(), options.clone())
        };
        free(again).unwrap()
    }

    fn reader(&self) -> Reader {
        let reader = Reader::open(&self.recording()).unwrap();
        reader.verify().unwrap();
        reader
    }

    fn events(&self) -> Vec<(Seq, Event)> {
        self.reader().events().collect::<Result<_, _>>().unwrap()
    }

    /// The disk as the crash model says it is, where nothing was lost.
    fn by_the_model(&self, discard: DiscardReads, lose: &[Seq]) -> Vec<u8> {
        let reader = self.reader();
        let history = History::new(reader.header().disk.clone(), self.events()).unwrap();
        let last = history.last().unwrap();
        let profile = Profile { discard, ..plain_profile() };
        let lost: Vec<String> = lose.iter().map(|seq| format!(",-w{seq}")).collect();
        let profile = profile.on(&reader.header().disk);
        let name = StateName(format!("{profile}/p{last}:all{}", lost.concat()));
        let content = history.build(&name).unwrap();
        self.bytes_of(content)
    }

    fn bytes_of(&self, content: Content) -> Vec<u8> {
        let reader = Arc::new(self.reader());
        let state = StateReader::new(reader, None, Trust::Unchanged, content).unwrap();
        let mut all = vec![0; SIZE as usize];
        state.read_at(0, &mut all).unwrap();
        all
    }
}

fn content(store: &RecordingStore) -> Vec<u8> {
    let mut all = vec![0; SIZE as usize];
    store.peek(0, &mut all).unwrap();
    all
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, u64, u8),
    Read(u64, u64),
    Discard(u64, u64),
    Zeroes(Vec<(u64, u64)>),
    Flush,
    Reopen,
    Fail(bool, u64, u64),
}

/// Sectors: lies inside the disk.
fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SIZE / 512, 1..=24u64).prop_map(|(at, n)| (at * 512, n.min(SIZE / 512 - at) * 512))
}

fn step() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, n), byte)| Action::Write(at, n, byte)),
        2 => range().prop_map(|(at, n)| Action::Read(at, n)),
        1 => range().prop_map(|(at, n)| Action::Discard(at, n)),
        1 => prop::collection::vec(range(), 0..4).prop_map(Action::Zeroes),
        1 => Just(Action::Flush),
        1 => Just(Action::Reopen),
        1 => (any::<bool>(), range()).prop_map(|(early, (at, n))| Action::Fail(early, at, n)),
    ]
}

fn pattern(len: u64, byte: u8) -> Vec<u8> {
    (0..len).map(|i| byte ^ (i / 512) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// Against a plain array, through restarts and failures; and the crash model says the same.
    #[test]
    fn a_disk_is_what_was_written(
        steps in prop::collection::vec(step(), 1..40),
        lb_size in prop::sample::select(vec![512u32, 4096]),
    ) {
        let place = Setup::new();
        let mut disk = place.bytes.clone();
        let mut store = place.store(lb_size);
        let mut queue = store.queue(0);
        let mut lost = 0;
        for step in steps {
            match step {
                Action::Write(at, n, byte) => {
                    let data = pattern(n, byte);
                    ask(&mut *queue, write(0, at, data.clone())).unwrap();
                    disk[at as usize..(at + n) as usize].copy_from_slice(&data);
                }
                Action::Read(at, n) => {
                    let data = ask(&mut *queue, read(0, at, n as usize)).unwrap();
                    prop_assert_eq!(&data, &disk[at as usize..(at + n) as usize]);
                }
                Action::Discard(at, n) => {
                    ask(&mut *queue, discard(0, at, n)).unwrap();
                    let lb = u64::from(lb_size);
                    let (start, end) = (at.next_multiple_of(lb), (at + n) / lb * lb);
                    if start < end {
                        disk[start as usize..end as usize].fill(0);
                    }
                }
                Action::Zeroes(ranges) => {
                    let segments = ranges
                        .iter()
                        .map(|(offset, len)| Segment { offset: *offset, len: *len, unmap: true })
                        .collect();
                    let zero = request(0, Op::WriteZeroes { segments }, Buffers::empty());
                    ask(&mut *queue, zero).unwrap();
                    for (at, n) in ranges {
                        disk[at as usize..(at + n) as usize].fill(0);
                    }
                }
                Action::Flush => {
                    ask(&mut *queue, flush(0)).unwrap();
                }
                Action::Reopen => {
                    drop((queue, store));
                    store = place.reopen(lb_size, DiscardReads::Zeroes);
                    queue = store.queue(0);
                }
                Action::Fail(early, at, n) => {
                    let point = if early { Point::Submit } else { Point::Complete };
                    place.gate.tell(point, 9, Verdict::Fail);
                    let data = pattern(n, 0x77);
                    let failed = ask(&mut *queue, write(9, at, data.clone()));
                    prop_assert!(matches!(failed, Err(Failure::Injected)));
                    place.gate.let_go();
                    if early {
                        lost += 1;
                    } else {
                        disk[at as usize..(at + n) as usize].copy_from_slice(&data);
                    }
                }
            }
            prop_assert_eq!(queue.in_flight(), 0);
        }
        prop_assert!(content(&store) == disk);
        let mut lose: Vec<Seq> = place.reader().not_executed().unwrap().into_iter().collect();
        lose.sort();
        prop_assert_eq!(lose.len(), lost);
        prop_assert!(place.by_the_model(DiscardReads::Zeroes, &lose) == disk);
        drop((queue, store));
        let store = place.reopen(lb_size, DiscardReads::Zeroes);
        prop_assert!(content(&store) == disk);
        prop_assert_eq!(&std::fs::read(&place.image).unwrap(), &place.bytes, "never written");
    }

    /// Requests in flight together, executed and completed in any order: what is shown is the
    /// order of submission.
    #[test]
    fn the_order_of_submission_decides(
        writes in prop::collection::vec((range(), any::<u8>()), 2..8),
        order in any::<prop::sample::Index>(),
        late in any::<bool>(),
        lb_size in prop::sample::select(vec![512u32, 4096]),
    ) {
        let place = Setup::new();
        let mut disk = place.bytes.clone();
        let store = place.store(lb_size);
        let mut queues: Vec<_> = writes.iter().map(|_| store.queue(0)).collect();
        let point = if late { Point::Complete } else { Point::Submit };
        let mut wakers = Vec::new();
        // One queue each, so that they can be let go one by one.
        for (i, ((at, n), byte)) in writes.iter().enumerate() {
            queues[i] = store.queue(0);
            wakers.push(place.gate.waker.lock().unwrap().clone().unwrap());
            place.gate.tell(point, i as u16, Verdict::Hold);
            let data = pattern(*n, *byte);
            queues[i].submit(write(i as u16, *at, data.clone()));
            disk[*at as usize..(at + n) as usize].copy_from_slice(&data);
            prop_assert!(reap(&mut *queues[i]).is_empty());
            prop_assert_eq!(queues[i].in_flight(), 1);
        }
        if !late {
            prop_assert_eq!(content(&store), place.bytes.clone(), "nothing was executed");
        }
        let mut left: Vec<usize> = (0..writes.len()).collect();
        while !left.is_empty() {
            let i = left.remove(order.index(left.len()));
            place.gate.tell(point, i as u16, Verdict::Go);
            wakers[i].wake();
            prop_assert_eq!(reap(&mut *queues[i]).len(), 1);
        }
        prop_assert!(content(&store) == disk);
        prop_assert!(place.by_the_model(DiscardReads::Zeroes, &[]) == disk);
        drop((queues, store));
        prop_assert!(content(&place.reopen(lb_size, DiscardReads::Zeroes)) == disk);
    }
}

#[test]
fn events_come_in_the_order_of_work() {
    struct Indexes(Mutex<Vec<(u16, u16)>>);
    impl Rings for Indexes {
        fn available(&self, f: &mut dyn FnMut(u16, u16)) {
            self.0.lock().unwrap().iter().for_each(|(queue, index)| f(*queue, *index));
        }
    }
    let place = Setup::new();
    let store = place.store(512);
    let indexes = Arc::new(Indexes(Mutex::new(vec![(0, 1), (1, 4)])));
    store.connected(Arc::clone(&indexes) as _);
    let negotiation =
        Negotiation { flush_offered: true, flush: true, config_wce: true, writeback: true };
    store.negotiated(negotiation);
    let mut queue = store.queue(0);
    ask(&mut *queue, write(0, 512, vec![7; 1024])).unwrap();
    indexes.0.lock().unwrap()[0].1 = 2;
    ask(&mut *queue, flush(1)).unwrap();
    ask(&mut *queue, read(2, 0, 512)).unwrap();
    store.set_writeback(false);
    store.reset(ResetCause::Device, None);
    ask(&mut *queue, read(0, 0, 512)).unwrap();

    let events = place.events();
    let Event::Submit(Submit { op: event::Op::Write { payload, .. }, .. }) = &events[1].1 else {
        panic!("{:?}", events[1]);
    };
    let submit =
        |position, op| Event::Submit(Submit { queue: 0, position, head: position, ioprio: 0, op });
    let done = |request| Event::Complete { request: Seq(request), status: Status::Ok };
    let seen = |queue, index| Event::Visible { queue, index };
    let op =
        event::Op::Write { offset: 512, len: 1024, fua: false, atomic: false, payload: *payload };
    let get = event::Op::Read { offset: 0, len: 512 };
    let expected = vec![
        (0, Event::Negotiate(negotiation)),
        (1, submit(0, op)),
        (2, seen(0, 1)),
        (2, seen(1, 4)),
        (2, done(1)),
        (3, submit(1, event::Op::FLUSH)),
        (4, seen(0, 2)),
        (4, done(3)),
        (5, submit(2, get.clone())),
        (6, done(5)),
        (7, Event::SetWriteback { on: false }),
        (8, Event::Reset { cause: ResetCause::Device, queue: None }),
        (9, submit(0, get)),
        // After a reset every index is news again.
        (10, seen(0, 2)),
        (10, seen(1, 4)),
        (10, done(9)),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(n, e)| (Seq(n), e)).collect();
    assert_eq!(events, expected);
    let held = place.reader().payload(payload, 1024).unwrap();
    assert_eq!(held, [7; 1024]);
}

#[test]
fn an_index_that_was_read_before_a_reset_is_not_recorded_after_it() {
    use std::sync::mpsc::{Receiver, Sender, channel};
    /// Lets a reset begin once the indexes are read, and gives it the time to end.
    struct Racing(Sender<()>, Mutex<Receiver<()>>);
    impl Rings for Racing {
        fn available(&self, f: &mut dyn FnMut(u16, u16)) {
            f(1, 4);
            self.0.send(()).unwrap();
            let _ = self.1.lock().unwrap().recv_timeout(std::time::Duration::from_millis(200));
        }
    }
    let place = Setup::new();
    let store = place.store(512);
    let (begin, begun) = channel();
    let (end, ended) = channel();
    store.connected(Arc::new(Racing(begin, Mutex::new(ended))));
    std::thread::scope(|scope| {
        let store = &store;
        scope.spawn(move || {
            begun.recv().unwrap();
            store.reset(ResetCause::QueueStop, Some(1));
            let _ = end.send(());
        });
        ask(&mut *store.queue(0), flush(0)).unwrap();
    });
    let events = place.events();
    let at = |what: &Event| events.iter().position(|(_, e)| e == what).unwrap();
    let reset = Event::Reset { cause: ResetCause::QueueStop, queue: Some(1) };
    assert!(at(&Event::Visible { queue: 1, index: 4 }) < at(&reset), "{events:?}");
}

#[test]
fn two_parts_of_one_block_in_flight_lose_nothing() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let place = Setup::new();
        let store = place.store(4096);
        let mut queue = store.queue(0);
        for position in 0..3 {
            place.gate.tell(Point::Submit, position, Verdict::Hold);
        }
        queue.submit(write(0, 4096, vec![1; 4096]));
        queue.submit(write(1, 4608, vec![2; 512]));
        queue.submit(zeroes(2, 5120, 1024, true));
        for position in order {
            place.gate.tell(Point::Submit, position, Verdict::Go);
            place.gate.waker.lock().unwrap().as_ref().unwrap().wake();
            assert_eq!(reap(&mut *queue).len(), 1);
        }
        let mut expected = place.bytes.clone();
        expected[4096..8192].fill(1);
        expected[4608..5120].fill(2);
        expected[5120..6144].fill(0);
        assert!(content(&store) == expected, "{order:?}");
        assert_eq!(store.sub_block(), 2);
        assert!(place.by_the_model(DiscardReads::Zeroes, &[]) == expected);
    }
}

#[test]
fn many_threads_write_parts_of_the_same_blocks() {
    let place = Setup::new();
    let store = place.store(4096);
    // Each thread has a sector of every block.
    std::thread::scope(|s| {
        for sector in 0..8u64 {
            let mut queue = store.queue(sector as u16);
            s.spawn(move || {
                for round in 0..40u64 {
                    for block in 0..SIZE / 4096 {
                        let at = block * 4096 + sector * 512;
                        let byte = (round * 8 + sector) as u8;
                        ask(&mut *queue, write(round as u16, at, vec![byte; 512])).unwrap();
                    }
                }
            });
        }
    });
    let expected: Vec<u8> = (0..SIZE).map(|i| (39 * 8 + i / 512 % 8) as u8).collect();
    assert!(content(&store) == expected);
    assert!(place.by_the_model(DiscardReads::Zeroes, &[]) == expected);
}

#[test]
fn a_read_sees_all_of_a_write_or_nothing() {
    let place = Setup::new();
    let store = place.store(512);
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (store, over) = (&store, &over);
        let writers: Vec<_> = (0..2u16)
            .map(|n| {
                s.spawn(move || {
                    let mut queue = store.queue(n);
                    for round in 0..300u16 {
                        let byte = (round * 2 + n) as u8;
                        ask(&mut *queue, write(round, 30 << 10, vec![byte; 16 << 10])).unwrap();
                    }
                })
            })
            .collect();
        s.spawn(move || {
            let mut queue = store.queue(7);
            ask(&mut *queue, write(0, 30 << 10, vec![0; 16 << 10])).unwrap();
            while !over.load(Ordering::Relaxed) {
                let data = ask(&mut *queue, read(0, 30 << 10, 16 << 10)).unwrap();
                let one_write = data.iter().all(|b| *b == data[0]);
                let base = data == place_bytes(30 << 10, 16 << 10);
                assert!(one_write || base, "a torn read");
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
}

/// What [`image`] puts there.
fn place_bytes(at: u64, len: u64) -> Vec<u8> {
    (at..at + len).map(|i| (i / 512 + 1) as u8).collect()
}

#[test]
fn a_stale_read_shows_the_version_before() {
    let place = Setup::new();
    let store = place.store(512);
    let mut queue = store.queue(0);
    place.gate.tell(Point::Submit, 99, Verdict::Stale);
    let stale = |queue: &mut dyn StoreQueue| ask(queue, read(99, 1024, 1024)).unwrap();
    assert_eq!(stale(&mut *queue), place.bytes[1024..2048], "never written: the base");
    ask(&mut *queue, write(0, 1024, vec![1; 512])).unwrap();
    assert_eq!(stale(&mut *queue), place.bytes[1024..2048]);
    ask(&mut *queue, write(0, 1024, vec![2; 1024])).unwrap();
    assert_eq!(stale(&mut *queue)[..512], [1; 512]);
    assert_eq!(stale(&mut *queue)[512..], place.bytes[1536..2048]);
    ask(&mut *queue, zeroes(0, 1024, 512, false)).unwrap();
    assert_eq!(stale(&mut *queue)[..512], [2; 512]);
    assert_eq!(ask(&mut *queue, read(1, 1024, 512)).unwrap(), [0; 512]);
}

#[test]
fn what_a_discard_leaves_is_the_profiles_and_stays_so() {
    for (rule, zero) in [
        (DiscardReads::Zeroes, Some(true)),
        (DiscardReads::Old, Some(false)),
        (DiscardReads::Either, None),
    ] {
        let place = Setup::new();
        let store = place.create(512, rule);
        let mut queue = store.queue(0);
        ask(&mut *queue, write(0, 0, vec![9; 32 << 10])).unwrap();
        ask(&mut *queue, discard(1, 0, 32 << 10)).unwrap();
        ask(&mut *queue, flush(2)).unwrap();
        let after = content(&store);
        let zeroed = after[..32 << 10].chunks(512).filter(|b| **b == [0; 512]).count();
        let old = after[..32 << 10].chunks(512).filter(|b| **b == [9; 512]).count();
        assert_eq!(zeroed + old, 64);
        match zero {
            Some(true) => assert_eq!(old, 0),
            Some(false) => assert_eq!(zeroed, 0),
            None => assert!(zeroed > 8 && old > 8, "{zeroed} zeroed, {old} old"),
        }
        // The same after a crash: all is stable, so that every random state is this.
        let reader = place.reader();
        let history = History::new(reader.header().disk.clone(), place.events()).unwrap();
        let profile = Profile { discard: rule, ..plain_profile() }.on(&reader.header().disk);
        let cut = history.cut(history.last().unwrap(), &profile).unwrap();
        let content_after = history.build(&cut.random(5, 0)).unwrap();
        assert!(place.bytes_of(content_after) == after, "{rule:?}");
        drop((queue, store));
        assert!(content(&place.reopen(512, rule)) == after);
    }
}

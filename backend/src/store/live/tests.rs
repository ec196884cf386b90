#![allow(clippy::unwrap_used)]
use super::*;
use crate::store::testing::{ask, flush, image, read, reap, write};
use crate::store::{Cache, Failure, Image, Op, RawStore, Store, StoreQueue};
use tornblk_model::crash::FaultKind;
use tornblk_model::named::Named;
use tornblk_proto::{OpKind, Range};

const SIZE: u64 = 64 << 10;

struct Rig {
    gate: Arc<LiveGate>,
    store: RawStore,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn rig(seed: u64, hold: HoldCompletions) -> Rig {
    let (dir, path, _) = image(SIZE);
    let image = Image::open(&path, 512, false).unwrap();
    let disk = Disk { capacity: SIZE, lb_size: 512 };
    let gate = Arc::new(LiveGate::new(seed, hold, Profile::PLAIN, disk));
    let (cache, own) = (Cache::Writeback, Arc::clone(&gate) as _);
    let store = RawStore::new(image, 512, false, cache, own, Profile::PLAIN);
    Rig { gate, store, path, _dir: dir }
}

impl Rig {
    fn on_disk(&self, offset: usize, len: usize) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()[offset..offset + len].to_vec()
    }
}

fn positions(queue: &mut dyn StoreQueue) -> Vec<u16> {
    reap(queue).iter().map(|d| d.request.origin.position).collect()
}

fn writes() -> Match {
    Match { op: Some(OpKind::Write), ..Match::default() }
}

#[test]
fn a_stall_before_io_keeps_the_bytes_off_the_disk() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    queue.submit(write(0, 0, vec![9; 512]));
    queue.submit(read(1, 512, 512));
    assert_eq!(positions(&mut *queue), [1], "what does not match goes on");
    assert_eq!(rig.on_disk(0, 512), vec![1; 512]);
    assert_eq!(rig.gate.stalls(), [StallStatus { token, held: 1 }]);
    assert_eq!(queue.in_flight(), 1);
    assert_eq!(rig.gate.release(token), Some(1));
    assert_eq!(positions(&mut *queue), [0]);
    assert_eq!(rig.on_disk(0, 512), vec![9; 512]);
    assert_eq!(rig.gate.release(token), None, "a stall ends once");
    ask(&mut *queue, write(2, 0, vec![8; 512])).unwrap();
}

#[test]
fn a_stall_before_completion_only_keeps_the_answer() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeCompletion);
    queue.submit(write(0, 0, vec![9; 512]));
    assert!(positions(&mut *queue).is_empty());
    assert_eq!(rig.on_disk(0, 512), vec![9; 512]);
    assert_eq!(rig.gate.release(token), Some(1));
    assert_eq!(positions(&mut *queue), [0]);
}

#[test]
fn a_stall_can_mean_the_nth_request_of_a_range() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let range = Some(Range { offset: 1024, len: 512 });
    let which = Match { range, nth: Some(2), ..writes() };
    let token = rig.gate.stall(1, which, StallWhen::BeforeIo);
    for (position, offset) in [(0, 0), (1, 512), (2, 1024), (3, 0), (4, 1536), (5, 1024), (6, 1024)]
    {
        queue.submit(write(position, offset, vec![9; 512]));
    }
    queue.submit(flush(7));
    queue.submit(read(8, 1024, 512));
    assert_eq!(positions(&mut *queue), [0, 1, 2, 3, 4, 6, 7, 8]);
    assert_eq!(rig.gate.release(token), Some(1));
    assert_eq!(positions(&mut *queue), [5]);
}

#[test]
fn two_stalls_both_have_to_let_go() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let one = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    let two = rig.gate.stall(2, Match::default(), StallWhen::BeforeIo);
    queue.submit(write(0, 0, vec![9; 512]));
    assert_eq!(rig.gate.release(one), Some(1));
    assert!(positions(&mut *queue).is_empty());
    assert_eq!(rig.gate.release_all_of(1), 0, "not this client's");
    assert_eq!(rig.gate.release_all_of(2), 1);
    assert_eq!(positions(&mut *queue), [0]);
    assert_eq!(rig.gate.release(two), None);
}

#[test]
fn a_queue_that_stops_lets_its_requests_go() {
    let rig = rig(0, HoldCompletions::None);
    let (mut first, mut second) = (rig.store.queue(0), rig.store.queue(1));
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    first.submit(write(0, 0, vec![9; 512]));
    let mut other = write(0, 512, vec![9; 512]);
    other.origin.queue = 1;
    second.submit(other);
    assert_eq!(rig.gate.stalls()[0].held, 2);
    first.drain();
    assert_eq!(positions(&mut *first), [0]);
    assert_eq!(rig.gate.stalls()[0].held, 1);
    assert_eq!(rig.gate.release(token), Some(1));
    assert_eq!(positions(&mut *second), [0]);
}

#[test]
fn the_wake_descriptor_says_that_a_stall_ended() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    queue.submit(write(0, 0, vec![9; 512]));
    let mut count = [0; 8];
    let fd = queue.wake_fd().unwrap();
    assert_eq!(rustix::io::read(fd, &mut count), Err(rustix::io::Errno::AGAIN));
    rig.gate.release(token);
    assert_eq!(rustix::io::read(queue.wake_fd().unwrap(), &mut count), Ok(8));
    assert_eq!(positions(&mut *queue), [0]);
}

fn eio(range: Option<(u64, u64)>, nth: Option<u64>, probability: Option<f64>) -> Fault {
    Fault { kind: FaultKind::Eio, range, nth, probability }
}

fn injected(result: Result<Vec<u8>, Failure>) -> bool {
    match result {
        Ok(_) => false,
        Err(Failure::Injected) => true,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn eio_strikes_where_it_was_told_to() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let token = rig.gate.arm(eio(Some((1024, 1024)), Some(2), None), None);
    assert!(!injected(ask(&mut *queue, write(0, 0, vec![9; 1024]))));
    assert!(!injected(ask(&mut *queue, read(1, 512, 1024))), "the first that touches it");
    assert!(injected(ask(&mut *queue, write(2, 1536, vec![9; 512]))), "the second");
    assert_eq!(rig.on_disk(1536, 512), vec![4; 512], "a request that failed did nothing");
    assert!(!injected(ask(&mut *queue, write(3, 1536, vec![9; 512]))), "the third");
    assert!(!injected(ask(&mut *queue, flush(4))));
    assert_eq!(rig.gate.release(token), Some(0));
    rig.gate.arm(eio(None, None, None), None);
    assert!(injected(ask(&mut *queue, flush(5))), "everywhere is everywhere");
}

#[test]
fn a_stalled_request_fails_when_it_is_let_go() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    rig.gate.arm(eio(None, Some(1), None), None);
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    queue.submit(write(0, 0, vec![9; 512]));
    rig.gate.release(token);
    let done = reap(&mut *queue);
    assert!(matches!(done[0].result, Err(Failure::Injected)));
    assert_eq!(rig.on_disk(0, 512), vec![1; 512]);
}

/// Which of these requests fail, when asked in this order.
fn struck(seed: u64, order: &[(u16, u64)]) -> Vec<(u16, u64)> {
    let rig = rig(seed, HoldCompletions::None);
    rig.gate.arm(eio(None, None, Some(0.5)), None);
    let mut queues = [rig.store.queue(0), rig.store.queue(1)];
    let mut struck = Vec::new();
    for (queue, offset) in order {
        let result = ask(&mut *queues[*queue as usize], read(0, *offset, 512));
        if injected(result) {
            struck.push((*queue, *offset));
        }
    }
    struck.sort_unstable();
    struck
}

#[test]
fn the_same_seed_strikes_the_same_requests_in_any_order() {
    let mut order: Vec<(u16, u64)> = (0..100).map(|i| (i % 2, u64::from(i) % 50 * 512)).collect();
    let first = struck(7, &order);
    assert!((20..=80).contains(&first.len()), "about half: {}", first.len());
    assert_eq!(struck(7, &order), first);
    assert_ne!(struck(8, &order), first);
    // The queues take turns differently: the same requests of each, in the same order.
    order.sort_by_key(|(queue, _)| *queue);
    assert_eq!(struck(7, &order), first);
}

#[test]
fn completions_are_held_above_a_number_and_go_when_nothing_comes() {
    let rig = rig(0, HoldCompletions::Above(3));
    let mut queue = rig.store.queue(0);
    for position in 0..5 {
        queue.submit(write(position, u64::from(position) * 512, vec![9; 512]));
    }
    assert_eq!(positions(&mut *queue), [0, 1], "three stay in flight, the oldest go");
    queue.submit(flush(5));
    assert_eq!(positions(&mut *queue), [2]);
    let _idler = Idler::start(&rig.gate).unwrap().unwrap();
    let mut rest = Vec::new();
    while rest.len() < 3 {
        rest.extend(positions(&mut *queue));
        std::thread::yield_now();
    }
    assert_eq!(rest, [3, 4, 5]);
}

#[test]
fn idle_completes_nothing_until_nothing_comes() {
    let rig = rig(0, HoldCompletions::Idle);
    let mut queue = rig.store.queue(0);
    for position in 0..20 {
        queue.submit(write(position, 0, vec![position as u8; 512]));
        assert!(positions(&mut *queue).is_empty());
    }
    assert_eq!(rig.on_disk(0, 512), vec![19; 512], "executed, not answered");
    let _idler = Idler::start(&rig.gate).unwrap().unwrap();
    let mut all = Vec::new();
    while all.len() < 20 {
        all.extend(positions(&mut *queue));
        std::thread::yield_now();
    }
    assert_eq!(all, (0..20).collect::<Vec<_>>());
}

#[test]
fn random_completes_all_in_another_order() {
    let rig = rig(3, HoldCompletions::Random);
    let mut queue = rig.store.queue(0);
    let mut all = Vec::new();
    for position in 0..200 {
        queue.submit(write(position, 0, vec![9; 512]));
        all.extend(positions(&mut *queue));
        assert!(queue.in_flight() <= 9, "none waits for more than 8 others");
    }
    let _idler = Idler::start(&rig.gate).unwrap().unwrap();
    while all.len() < 200 {
        all.extend(positions(&mut *queue));
        std::thread::yield_now();
    }
    let in_order: Vec<u16> = (0..200).collect();
    assert_ne!(all, in_order);
    all.sort_unstable();
    assert_eq!(all, in_order);
}

#[test]
fn nobody_is_kept_for_a_front_end_that_went_away() {
    let rig = rig(0, HoldCompletions::Above(2));
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    {
        let mut queue = rig.store.queue(0);
        for position in 0..4 {
            queue.submit(write(position, 0, vec![9; 512]));
        }
    }
    rig.gate.forget_requests();
    assert_eq!(rig.gate.release(token), Some(0));
    let mut queue = rig.store.queue(0);
    for position in 0..2 {
        queue.submit(read(position, 0, 512));
    }
    assert!(positions(&mut *queue).is_empty(), "two may be in flight");
    queue.submit(read(2, 0, 512));
    assert_eq!(positions(&mut *queue), [0]);
    assert_eq!(rig.on_disk(0, 512), vec![1; 512], "what was never executed never is");
}

#[test]
fn fields_of_a_match_are_all_needed() {
    let op = Op::Write { offset: 4096, fua: false, atomic: false };
    let ctx = GateContext {
        id: 1,
        origin: crate::store::testing::origin(0),
        op: &op,
        len: 4096,
        seq: None,
        eligible: false,
        pieces: false,
        again: false,
    };
    let range = |offset, len| Match { range: Some(Range { offset, len }), ..Match::default() };
    assert!(matches(&Match::default(), &ctx, false));
    assert!(matches(&writes(), &ctx, false));
    assert!(!matches(&Match { op: Some(OpKind::Read), ..Match::default() }, &ctx, true));
    assert!(matches(&range(8191, 1), &ctx, false));
    assert!(!matches(&range(8192, 512), &ctx, false));
    assert!(!matches(&range(0, 4096), &ctx, false));
    assert!(!matches(&Match { eligible: true, ..writes() }, &ctx, false));
    assert!(matches(&Match { eligible: true, ..writes() }, &ctx, true));

    let disk = Disk { capacity: SIZE, lb_size: 512 };
    let whole = |profile: &str| kept_whole(&profile.parse().unwrap(), &disk, &ctx);
    assert!(whole("req4k"));
    assert!(!whole("req2k"), "longer than the limit");
    assert!(!whole("req4k+tear4k"), "nothing could cut it");
    assert!(!whole("lb512"));
}

#[test]
fn a_named_write_is_seen_once_whatever_becomes_of_it() {
    let rig = rig(0, HoldCompletions::None);
    let mut queue = rig.store.queue(0);
    let token = rig.gate.stall(1, writes(), StallWhen::BeforeIo);
    let mut named = write(0, 512, vec![9; 512]);
    named.origin.ioprio = Named::new(1024, 1).unwrap().to_ioprio();
    queue.submit(named);
    queue.submit(write(1, 0, vec![9; 512]));
    assert_eq!(rig.gate.named().split, 1, "seen as it comes, not when it is let go");
    assert_eq!(rig.gate.release(token), Some(2));
    assert_eq!(positions(&mut *queue), [0, 1]);
    assert_eq!(rig.on_disk(512, 512), vec![9; 512], "a name changes nothing about a write");
    let seen = rig.gate.named();
    assert_eq!((seen.writes, seen.split, seen.first.len()), (1, 1, 1));
}

#[test]
fn a_fault_strikes_a_stalled_request_that_its_queue_lets_go() {
    for (offset, fails) in [(0, true), (512, false)] {
        let rig = rig(0, HoldCompletions::None);
        let mut queue = rig.store.queue(0);
        rig.gate.stall(1, writes(), StallWhen::BeforeIo);
        rig.gate.arm(eio(Some((offset, 512)), None, None), None);
        queue.submit(write(0, 0, vec![9; 512]));
        assert!(reap(&mut *queue).is_empty());
        queue.drain();
        let done = reap(&mut *queue);
        assert_eq!(done.len(), 1);
        assert_eq!(matches!(done[0].result, Err(Failure::Injected)), fails, "{offset}");
        assert_eq!(rig.on_disk(0, 512), vec![if fails { 1 } else { 9 }; 512]);
    }
}

#[test]
fn a_write_of_pieces_is_never_kept_whole() {
    let profile: Profile = "req16k".parse().unwrap();
    let disk = Disk { capacity: SIZE, lb_size: 512 };
    for pieces in [false, true] {
        let ctx = GateContext {
            id: 1,
            origin: crate::store::testing::origin(0),
            op: &Op::Write { offset: 0, fua: false, atomic: false },
            len: 4096,
            seq: None,
            eligible: false,
            pieces,
            again: false,
        };
        assert_eq!(kept_whole(&profile, &disk, &ctx), !pieces);
    }
}

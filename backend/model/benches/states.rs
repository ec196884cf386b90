//! How fast the crash model is: `cargo bench -p tornblk-model --bench states [NAME]`.
//!
//! The recording is made up: 2,000 requests of all kinds, up to 16 in flight, which complete out of
//! order; a flush that waits for what is before it after every 200. No two that are in flight
//! together are about the same blocks, since file systems do not do that. It ends before a flush, so
//! that its last crash point has as much that is volatile as any.
//!
//! - `history/new`: events a second, read into a `History`; of 100,000 requests.
//! - `cut`: random states a second at the last crash point, named and built by one `Cut`. It builds a
//!   state out of all that was ever written: the longer the recording, the fewer a second.
//! - `build`: the same from their names alone, as a state that somebody reports is built.
//! - `walk-random`, `walk-others`: states a second of a `Cursor` over the last crash points, from the
//!   last to the first and back; random ones, and those of the other strategies.
//!
//! Nothing is judged and nothing is read from files: `explore_in_place` measures that.

#![allow(clippy::unwrap_used)]

use criterion::{
    BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use std::hint::black_box;
use std::time::Duration;
use tornblk_model::crash::walk::{Cursor, Walk};
use tornblk_model::crash::{History, Profile, Source, StateName, Strategy};
use tornblk_model::event::{Disk, Event, Negotiation, Op, Payload, Segment, Seq, Status, Submit};

const DISK: Disk = Disk { capacity: 256 << 20, lb_size: 512 };
/// What a request is about lies within one of these.
const PAGE: u64 = 64 << 10;
const REQUESTS: u64 = 2_000;
const READ: u64 = 100_000;
/// Requests between two flushes, and those after the last one.
const EPOCH: u64 = 200;
const LEFT: u64 = 150;
const DEPTH: usize = 16;
/// Random states that are built in one round.
const BUILT: u64 = 10;
/// Crash points that are walked over.
const POINTS: usize = 8;

/// Name here, profile, and how many random states are walked over at a crash point. With
/// `discard-either` every block that was ever discarded may show through, and a `Cursor` asks a
/// `Cut` for each random state: fewer do.
const PROFILES: [(&str, &str, u64); 4] = [
    ("lb512", "lb512", 100),
    ("req16k", "req16k", 100),
    ("piece16k", "piece16k", 100),
    ("either", "lb512+discard-either", 5),
];

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }

    /// Of 100: 80 writes of 512 bytes to 64 KiB, 10 reads, 7 discards and 3 writes of zeroes.
    fn op(&mut self, page: u64) -> Op {
        let offset = page * PAGE;
        let segments = vec![Segment { offset, len: PAGE, unmap: false }];
        match self.below(100) {
            0..80 => {
                let len = [512, 4096, 4096, 16 << 10, 20 << 10, PAGE][self.below(6) as usize];
                // Anywhere in its page, so that not all are cut at the same places.
                let offset = offset + self.below((PAGE - len) / 512 + 1) * 512;
                Op::Write { offset, len, fua: false, atomic: false, payload: Payload::default() }
            }
            80..90 => Op::Read { offset, len: PAGE },
            90..97 => Op::Discard { segments },
            _ => Op::WriteZeroes { segments },
        }
    }
}

/// What is recorded, in order.
#[derive(Default)]
struct Recorded {
    events: Vec<(Seq, Event)>,
    positions: [u16; 4],
}

impl Recorded {
    fn put(&mut self, event: Event) -> Seq {
        let seq = Seq(self.events.len() as u64 + 1);
        self.events.push((seq, event));
        seq
    }

    fn submit(&mut self, queue: u16, op: Op) -> Seq {
        let position = self.positions[usize::from(queue)];
        self.positions[usize::from(queue)] = position.wrapping_add(1);
        self.put(Event::Submit(Submit { queue, position, head: position % 256, ioprio: 0, op }))
    }

    fn complete(&mut self, queue: u16, request: Seq) {
        // As a device does it: what is submitted was visible before.
        let index = self.positions[usize::from(queue)];
        self.put(Event::Visible { queue, index });
        self.put(Event::Complete { request, status: Status::Ok });
    }
}

fn events(requests: u64) -> Vec<(Seq, Event)> {
    let mut random = Random(0x5eed);
    let mut recorded = Recorded::default();
    let (flush, config_wce) = (true, false);
    let negotiated = Negotiation { flush_offered: true, flush, config_wce, writeback: true };
    recorded.put(Event::Negotiate(negotiated));
    // Of each request in flight: its page, its queue and its submit event.
    let mut flying: Vec<(u64, u16, Seq)> = Vec::new();
    for n in 0..requests {
        let page = loop {
            let page = random.below(DISK.capacity / PAGE / 4);
            if flying.iter().all(|(other, ..)| *other != page) {
                break page;
            }
        };
        let queue = (n % 4) as u16;
        let op = random.op(page);
        flying.push((page, queue, recorded.submit(queue, op)));
        let flush = (n + LEFT).is_multiple_of(EPOCH);
        while flying.len() >= if flush { 1 } else { DEPTH } {
            let (_, queue, request) =
                flying.swap_remove(random.below(flying.len() as u64) as usize);
            recorded.complete(queue, request);
        }
        if flush {
            let request = recorded.submit(queue, Op::FLUSH);
            recorded.complete(queue, request);
        }
    }
    for (_, queue, request) in flying {
        recorded.complete(queue, request);
    }
    recorded.events
}

fn histories(criterion: &mut Criterion, events: &[(Seq, Event)]) {
    let mut group = criterion.benchmark_group("history");
    group.throughput(Throughput::Elements(events.len() as u64)).sample_size(20);
    group.bench_function("new", |bencher| {
        bencher.iter_batched(
            || events.to_vec(),
            |events| History::new(DISK, events).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn cuts(criterion: &mut Criterion, history: &History) {
    let last = history.last().unwrap();
    let random = Strategy::Random { seed: 0, count: BUILT };
    let mut group = criterion.benchmark_group("cut");
    group.throughput(Throughput::Elements(BUILT)).sample_size(10).sampling_mode(SamplingMode::Flat);
    for (label, profile, _) in PROFILES {
        let profile: Profile = profile.parse().unwrap();
        let cut = history.cut(last, &profile).unwrap();
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            bencher.iter(|| {
                for name in cut.states(random) {
                    black_box(cut.build(&name).unwrap());
                }
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("build");
    group.throughput(Throughput::Elements(BUILT)).sample_size(10).sampling_mode(SamplingMode::Flat);
    for (label, profile, _) in PROFILES {
        let profile: Profile = profile.parse().unwrap();
        let cut = history.cut(last, &profile).unwrap();
        let names: Vec<StateName> = cut.states(random).collect();
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            bencher.iter(|| {
                for name in &names {
                    black_box(history.build(name).unwrap());
                }
            });
        });
    }
    group.finish();
}

/// Shows all states of all strategies at all of these points: how many there were.
fn walk(cursor: &mut Cursor<'_, '_>, points: &[Seq], strategies: &[Strategy]) -> u64 {
    let mut states = 0;
    for after in points {
        cursor.go(*after).unwrap();
        for strategy in strategies {
            cursor.start(*strategy).unwrap();
            while cursor.step().unwrap() {
                black_box(cursor.fingerprint());
                states += 1;
            }
        }
    }
    states
}

fn walks(criterion: &mut Criterion, history: &History) {
    // Every block of every write is different.
    let ids = |_: u64, source| match source {
        Source::Written { request: Seq(n), block } => (n << 8) + u64::from(block) + 1,
        _ => 0,
    };
    let opened = Walk::new(history, None, &ids);
    let points = history.points(false);
    let mut points: Vec<Seq> = points.iter().rev().take(POINTS).copied().collect();
    // And back: the next time begins where this one ended.
    points.extend_from_within(..);
    points[POINTS..].reverse();
    let others = [Strategy::Prefix, Strategy::OneLost, Strategy::OneKept, Strategy::Tear];
    for (name, is_random) in [("walk-random", true), ("walk-others", false)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        for (label, profile, count) in PROFILES {
            let profile: Profile = profile.parse().unwrap();
            let random = [Strategy::Random { seed: 0, count }];
            let strategies: &[Strategy] = if is_random { &random } else { &others };
            let mut cursor = Cursor::new(&opened, &profile).unwrap();
            let states = walk(&mut cursor, &points, strategies);
            group.throughput(Throughput::Elements(states));
            group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
                bencher.iter(|| walk(&mut cursor, &points, strategies));
            });
        }
        group.finish();
    }
}

fn benches(criterion: &mut Criterion) {
    histories(criterion, &events(READ));
    let history = History::new(DISK, events(REQUESTS)).unwrap();
    cuts(criterion, &history);
    walks(criterion, &history);
}

criterion_group! {
    name = states;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500));
    targets = benches
}
criterion_main!(states);

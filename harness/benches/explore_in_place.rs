//! How fast states are explored in place: `cargo bench -p tornblk --bench explore_in_place [NAME]`.
//!
//! The recordings are made up: 16 KiB writes to random pages, a flush and a mark after at most 256
//! of them. The oracle looks at pages. Nothing is read from files, so what is measured is the walk,
//! the judging of units and keeping count of contents. Throughput is in contents, each judged once,
//! by two threads. The line before each says what criterion cannot: how much time of a processor
//! one content takes, and `opening`, the time until there is a walk.

#![allow(clippy::unwrap_used)]

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tornblk::explore::{
    ContentIds, Ended, ExploreError, Failure, InPlace, Job, Promises, Settings, Sink, Summary,
    UnitBlocks, UnitOracle, explore,
};
use tornblk::oracle::{Clause, Finding};
use tornblk_model::crash::walk::{Cursor, Walk};
use tornblk_model::crash::{History, ModelError, Source, StateName, Strategy};
use tornblk_model::event::{Disk, Event, Mark, Negotiation, Op, Payload, Seq, Status, Submit};

const LB: u64 = 4096;
const PAGE: u64 = 16384;
/// Writes between two flushes.
const EPOCH: u64 = 256;
const GIB: u64 = 1 << 30;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

struct Recorded {
    history: History,
    promises: Promises,
    pages: Vec<u64>,
}

/// `writes` to pages all over the disk, of which one in four is written again and again; so many
/// at most between two flushes.
fn recorded(size: u64, writes: u64, epoch: u64) -> Recorded {
    let mut random = Random(0x5eed);
    let mut seq = 0;
    let mut put = |events: &mut Vec<(Seq, Event)>, event| {
        seq += 1;
        events.push((Seq(seq), event));
        Seq(seq)
    };
    let mut events = Vec::new();
    let (flush, config_wce) = (true, false);
    let negotiated = Negotiation { flush_offered: true, flush, config_wce, writeback: true };
    put(&mut events, Event::Negotiate(negotiated));
    let mut acknowledged = Vec::new();
    let mut pages = Vec::new();
    let mut position = 0u16;
    let mut submit = |op| {
        position = position.wrapping_add(1);
        Event::Submit(Submit { queue: 0, position, head: 0, ioprio: 0, op })
    };
    for n in 0..writes {
        let page = match random.below(4) {
            0 if !pages.is_empty() => pages[random.below(pages.len().min(64) as u64) as usize],
            _ => random.below(size / PAGE),
        };
        pages.push(page);
        let payload = Payload::default();
        let op = Op::Write { offset: page * PAGE, len: PAGE, fua: false, atomic: false, payload };
        let request = put(&mut events, submit(op));
        put(&mut events, Event::Complete { request, status: Status::Ok });
        if (n + 1) % epoch == 0 || n + 1 == writes {
            let request = put(&mut events, submit(Op::FLUSH));
            put(&mut events, Event::Complete { request, status: Status::Ok });
            acknowledged.push(put(&mut events, Event::Mark(Mark { name: "synced".into() })));
        }
    }
    let disk = Disk { capacity: size, lb_size: LB as u32 };
    let history = History::new(disk, events).unwrap();
    pages.sort_unstable();
    pages.dedup();
    Recorded { history, promises: Promises::new(acknowledged), pages }
}

/// Every block of every write is different.
struct BySource;

impl ContentIds for BySource {
    fn id(&self, _: u64, source: Source) -> u64 {
        match source {
            Source::Written { request, block } => (request.0 << 8) + u64::from(block) + 1,
            _ => 0,
        }
    }
}

/// Each page holds only what was written to it, block by block.
struct Pages {
    units: Vec<UnitBlocks>,
}

impl Pages {
    fn new(recorded: &Recorded) -> Pages {
        let blocks = PAGE / LB;
        let unit = |page: &u64| UnitBlocks {
            ranges: std::iter::once(page * blocks..(page + 1) * blocks).collect(),
        };
        let units = recorded.pages.iter().map(unit).collect();
        Pages { units }
    }
}

impl UnitOracle for Pages {
    fn units(&self) -> &[UnitBlocks] {
        &self.units
    }

    fn promise(&self, _: usize, _: Seq) -> u64 {
        0
    }

    fn promised_between(&self, _: Seq, _: Seq) -> Option<Vec<usize>> {
        Some(Vec::new())
    }

    fn judge(&self, unit: usize, _: Seq, of: &dyn Fn(u64) -> Source) -> Vec<Finding> {
        let range = self.units[unit].ranges[0].clone();
        let wrong = range.clone().any(|block| match of(block) {
            Source::Written { block: n, .. } => u64::from(n) != block - range.start,
            _ => false,
        });
        if !wrong {
            return Vec::new();
        }
        vec![Finding {
            file: 0,
            path: "/dev/vda".into(),
            unit: unit as u64,
            offset: range.start * LB,
            len: PAGE as u32,
            ..Finding::new(Clause::Torn, "it is not as it should be".into())
        }]
    }
}

/// Nothing fails.
struct Quiet;

impl Sink for Quiet {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        panic!("{} fails", failure.state)
    }
}

fn settings(profile: &str, strategies: &[&str]) -> Settings {
    Settings {
        profiles: vec![profile.parse().unwrap()],
        strategies: strategies.iter().map(|s| s.parse::<Strategy>().unwrap()).collect(),
        threads: 2,
        ..Settings::default()
    }
}

fn run(recorded: &Recorded, settings: &Settings, oracle: &Pages) -> Summary {
    let job = Job {
        history: &recorded.history,
        ids: &BySource,
        promises: &recorded.promises,
        explain: &(),
        settings,
        before: None,
    };
    let stop = AtomicBool::new(false);
    explore(&job, &|_| Ok(Box::new(InPlace::new(oracle))), &mut Quiet, &stop).unwrap()
}

const ALL: [&str; 5] = ["prefix", "one-lost", "one-kept", "tear", "random=100"];

/// Seconds that this process used the CPU, of all threads, to 10 ms.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|t| t.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// Was this one asked for on the command line?
fn is_wanted(name: &str) -> bool {
    std::env::args().skip(1).find(|arg| !arg.starts_with('-')).is_none_or(|f| name.contains(&f))
}

/// Explores all of it, or so many contents.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    (size, writes, epoch): (u64, u64, u64),
    (profile, strategies): (&str, &[&str]),
    states: Option<u64>,
) {
    if !is_wanted(name) {
        return;
    }
    let recorded = recorded(size, writes, epoch);
    let began = Instant::now();
    let ids = |block, source| BySource.id(block, source);
    drop(Walk::new(&recorded.history, None, &ids));
    let opening = began.elapsed();
    let oracle = Pages::new(&recorded);
    let settings = Settings { states, ..settings(profile, strategies) };
    let before = cpu();
    let summary = run(&recorded, &settings, &oracle);
    let (cpu, unique) = (cpu() - before, summary.counts.unique);
    assert!(states.is_some() || summary.ended == Ended::Complete);
    println!(
        "{name}: {} states, {unique} contents, {:.0}/s, {:.2} s of CPU, {:.1} us each, opening {:.2} s",
        summary.counts.states,
        unique as f64 / summary.elapsed.as_secs_f64(),
        cpu,
        cpu * 1e6 / unique.max(1) as f64,
        opening.as_secs_f64(),
    );
    // Ten times that, and nobody would run it.
    if summary.elapsed > Duration::from_secs(10) {
        return;
    }
    let (group, parameter) = name.split_once('/').unwrap_or((name, ""));
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(1));
    group.throughput(Throughput::Elements(unique));
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter_custom(|times| {
            (0..times).map(|_| run(&recorded, &settings, &oracle).elapsed).sum()
        });
    });
    group.finish();
}

/// A state in which 200 fragments are lost and which fails, shrunk; of these `needed` matter.
fn shrinking(criterion: &mut Criterion, name: &str, needed: usize) {
    if !is_wanted(name) {
        return;
    }
    let recorded = recorded(GIB, 10_000, EPOCH);
    // What follows the last flush is volatile; but those are few. So the epoch before, at a point
    // before its flush completed.
    let requests = recorded.history.requests();
    let writes: Vec<Seq> = requests.iter().filter(|r| r.changes()).map(|r| r.id()).collect();
    let epoch = &writes[writes.len() / 256 * 256 - 256..writes.len() / 256 * 256];
    let after = Seq(epoch[255].0 + 2);
    let profile = "lb4k".parse().unwrap();
    let ids = |block, source| BySource.id(block, source);
    let walk = Walk::new(&recorded.history, None, &ids);
    // Of each of the first 55 writes that may show all four fragments are lost.
    let cut = recorded.history.cut(after, &profile).unwrap();
    let lost: Vec<Seq> = cut
        .states(Strategy::OneLost)
        .filter_map(|name| name.0.rsplit_once("-w").and_then(|(_, id)| id.parse().ok()))
        .map(Seq)
        .take(55)
        .collect();
    let changes: Vec<String> = lost.iter().map(|id| format!(",-w{id}")).collect();
    let state = StateName(format!("lb4k/p{after}:all{}", changes.concat()));
    let shrink = || {
        let mut cursor = Cursor::new(&walk, &profile).unwrap();
        cursor.go(after).unwrap();
        cursor.go_to(&state).unwrap();
        // It fails as long as so many of these fragments are missing, evenly chosen.
        let delta = cursor.delta();
        let all = delta.len();
        let step = (all / needed.min(all)).max(1);
        let missing: Vec<(u64, Source)> = delta.into_iter().step_by(step).collect();
        let began = Instant::now();
        let shrunk = cursor.shrink(
            || false,
            |cursor| {
                let fails = missing.iter().all(|(block, source)| cursor.of(*block) == *source);
                Ok::<bool, ModelError>(fails)
            },
        );
        let shrunk = shrunk.unwrap().unwrap();
        (all, shrunk, began.elapsed())
    };
    let (all, shrunk, _) = shrink();
    println!("{name}: {all} fragments to {}, {} states tried", shrunk.changes, shrunk.tried);
    let (group, parameter) = name.split_once('/').unwrap_or((name, ""));
    let mut group = criterion.benchmark_group(group);
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| shrink().2).sum());
    });
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    for gib in [1, 10, 100] {
        let name = format!("disk/{gib} GiB");
        bench(criterion, &name, (gib * GIB, 10_000, EPOCH), ("lb4k", &ALL), None);
    }
    // The same kind of state everywhere, about one for each write.
    for writes in [1_000, 10_000, 100_000, 1_000_000] {
        let name = format!("writes/{writes}");
        bench(
            criterion,
            &name,
            (100 * GIB, writes, EPOCH),
            ("lb4k", &["prefix", "one-lost"]),
            None,
        );
    }
    // A tenth of what there is.
    bench(criterion, "sample/100000", (100 * GIB, 100_000, EPOCH), ("lb4k", &ALL), Some(100_000));
    bench(criterion, "profile/req16k", (GIB, 10_000, EPOCH), ("req16k", &ALL), None);
    for strategy in ["one-lost", "one-kept", "tear", "random=1000"] {
        let name = format!("strategy/{strategy}");
        bench(criterion, &name, (GIB, 10_000, EPOCH), ("lb4k", &[strategy]), Some(50_000));
    }
    // Three pages of four blocks: 4096 states each time.
    let few = (GIB, 300, 3);
    bench(criterion, "strategy/exhaustive", few, ("lb4k", &["exhaustive=12"]), None);
    shrinking(criterion, "shrink/1 of 200 matters", 1);
    shrinking(criterion, "shrink/10 of 200 matter", 10);
    shrinking(criterion, "shrink/all of 200 matter", usize::MAX);
}

criterion_group!(in_place, benches);
criterion_main!(in_place);

//! How fast states are explored in place, as a table. Run with
//! `cargo run --release -p tornblk --example explore_speed [quick|shrink]`.
//!
//! The recordings are made up: 16 KiB writes to random pages, a flush and a mark after at most 256
//! of them. The oracle looks at pages. Nothing is read from files, so what is measured is the walk,
//! the judging of units and keeping count of contents; `opening` is the time to make the tables.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tornblk::explore::{
    ContentIds, Ended, ExploreError, Failure, InPlace, Job, Promises, Settings, Sink, Summary,
    UnitBlocks, UnitOracle, explore,
};
use tornblk::oracle::{Clause, Finding};
use tornblk_model::crash::{History, Source, Strategy};
use tornblk_model::event::{Disk, Event, Mark, Negotiation, Op, Payload, Seq, Status, Submit};

const LB: u64 = 4096;
const PAGE: u64 = 16384;
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

/// `writes` to pages all over the disk, of which one in four is written again and again.
fn recorded(size: u64, writes: u64) -> Recorded {
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
        if (n + 1) % EPOCH == 0 || n + 1 == writes {
            let request = put(&mut events, submit(Op::Flush));
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

#[derive(Default)]
struct Heard(Vec<Failure>);

impl Sink for Heard {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        self.0.push(failure.clone());
        Ok(())
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

fn run(recorded: &Recorded, settings: &Settings, oracle: &Pages) -> (Summary, Heard) {
    let job = Job {
        history: &recorded.history,
        ids: &BySource,
        promises: &recorded.promises,
        explain: &(),
        settings,
        before: None,
    };
    let mut heard = Heard::default();
    let stop = AtomicBool::new(false);
    let summary =
        explore(&job, &|_| Ok(Box::new(InPlace::new(oracle))), &mut heard, &stop).unwrap();
    (summary, heard)
}

/// How long it takes before the first state.
fn opening(recorded: &Recorded) -> Duration {
    let began = Instant::now();
    let ids = |block, source| BySource.id(block, source);
    let walk = tornblk_model::crash::walk::Walk::new(&recorded.history, None, &ids);
    drop(walk);
    began.elapsed()
}

const ALL: [&str; 5] = ["prefix", "one-lost", "one-kept", "tear", "random=100"];

/// Seconds that this process used the CPU, of all threads, to 10 ms.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|t| t.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

fn row(what: &str, recorded: &Recorded, profile: &str, strategies: &[&str], states: Option<u64>) {
    let opening = opening(recorded);
    let oracle = Pages::new(recorded);
    let settings = Settings { states, ..settings(profile, strategies) };
    let before = cpu();
    let (summary, _) = run(recorded, &settings, &oracle);
    let used = cpu() - before;
    assert_eq!(summary.counts.failed, 0);
    assert!(states.is_some() || summary.ended == Ended::Complete);
    let elapsed = summary.elapsed.as_secs_f64();
    println!(
        "{what:34} {profile:7} {:>9} {:>9} {:>8.2} {:>9.0} {:>8.2} {:>8.2} {:>8.2}",
        summary.counts.states,
        summary.counts.unique,
        elapsed,
        summary.counts.unique as f64 / elapsed,
        used,
        used * 1e6 / summary.counts.unique.max(1) as f64,
        opening.as_secs_f64(),
    );
}

fn head() {
    println!(
        "{:34} {:7} {:>9} {:>9} {:>8} {:>9} {:>8} {:>8} {:>8}",
        "2 threads",
        "profile",
        "states",
        "unique",
        "seconds",
        "unique/s",
        "CPU s",
        "us each",
        "opening"
    );
}

/// A state in which 200 fragments are lost and which fails, shrunk.
fn shrinking(what: &str, needed: usize) {
    let recorded = recorded(GIB, 10_000);
    // The last epoch is volatile before its flush: writes 9,984 to 10,000 of it only; so the epoch
    // before that, whose point lies before its flush completed.
    let requests = recorded.history.requests();
    let writes: Vec<Seq> = requests.iter().filter(|r| r.changes()).map(|r| r.id()).collect();
    let epoch = &writes[writes.len() / 256 * 256 - 256..writes.len() / 256 * 256];
    let after = Seq(epoch[255].0 + 2);
    let profile = "lb4k".parse().unwrap();
    let ids = |block, source| BySource.id(block, source);
    let walk = tornblk_model::crash::walk::Walk::new(&recorded.history, None, &ids);
    let mut cursor = tornblk_model::crash::walk::Cursor::new(&walk, &profile).unwrap();
    cursor.go(after).unwrap();
    // Of each of the first 55 writes that may show all four fragments are lost.
    let cut = recorded.history.cut(after, &profile).unwrap();
    let lost: Vec<Seq> = cut
        .states(Strategy::OneLost)
        .filter_map(|name| name.0.rsplit_once("-w").and_then(|(_, id)| id.parse().ok()))
        .map(Seq)
        .take(55)
        .collect();
    let names: Vec<String> = lost.iter().map(|id| format!(",-w{id}")).collect();
    let name = format!("lb4k/p{after}:all{}", names.concat());
    cursor.go_to(&tornblk_model::crash::StateName(name)).unwrap();
    // It fails as long as so many of these fragments are missing, evenly chosen.
    let delta = cursor.delta();
    let all = delta.len();
    let missing: Vec<(u64, Source)> =
        delta.into_iter().step_by((all / needed.min(all)).max(1)).collect();
    let began = Instant::now();
    let shrunk = cursor
        .shrink(
            || false,
            |cursor| {
                let fails = missing.iter().all(|(block, source)| cursor.of(*block) == *source);
                Ok::<bool, tornblk_model::crash::ModelError>(fails)
            },
        )
        .unwrap()
        .unwrap();
    println!(
        "{what:34} {all} fragments to {} in {:.3} s, {} states tried",
        shrunk.changes,
        began.elapsed().as_secs_f64(),
        shrunk.tried
    );
}

fn main() {
    let what = std::env::args().nth(1).unwrap_or_default();
    let quick = what == "quick";
    if what == "shrink" {
        return shrink();
    }
    let some = Some(if quick { 100_000 } else { 1_000_000 });
    head();
    let small = recorded(GIB, 10_000);
    row("1 GiB, 10,000 writes, all", &small, "lb4k", &ALL, None);
    row("1 GiB, 10,000 writes, all", &small, "req16k", &ALL, None);
    for strategy in ["one-lost", "one-kept", "tear", "exhaustive", "random=1000"] {
        row(&format!("1 GiB, 10,000 writes, {strategy}"), &small, "lb4k", &[strategy], some);
    }
    for (what, size) in [("10 GiB", 10 * GIB), ("100 GiB", 100 * GIB)] {
        row(&format!("{what}, 10,000 writes, all"), &recorded(size, 10_000), "lb4k", &ALL, some);
    }
    for (what, writes) in [("1,000", 1_000), ("100,000", 100_000), ("1,000,000", 1_000_000)] {
        row(
            &format!("100 GiB, {what} writes, all"),
            &recorded(100 * GIB, writes),
            "lb4k",
            &ALL,
            some,
        );
    }
    println!();
    shrink();
}

fn shrink() {
    shrinking("shrinking, 1 fragment matters", 1);
    shrinking("shrinking, 10 fragments matter", 10);
    shrinking("shrinking, all of them matter", usize::MAX);
}

//! The engine on small recordings that are only events.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::Clause;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tornblk_model::event::{Disk, Event, Mark, Negotiation, Op, Payload, Status, Submit};

const LB: u64 = 4096;

/// A driver that waits for each write before it does anything else.
struct Driver {
    events: Vec<(Seq, Event)>,
    acknowledged: Vec<Seq>,
}

impl Driver {
    fn new() -> Driver {
        let negotiated =
            Negotiation { flush_offered: true, flush: true, config_wce: false, writeback: true };
        Driver { events: vec![(Seq(1), Event::Negotiate(negotiated))], acknowledged: Vec::new() }
    }

    fn put(&mut self, event: Event) -> Seq {
        let seq = Seq(self.events.last().unwrap().0.0 + 1);
        self.events.push((seq, event));
        seq
    }

    fn request(&mut self, op: Op) -> Seq {
        let position = self.events.len() as u16;
        let submit = Submit { queue: 0, position, head: 0, ioprio: 0, op };
        let request = self.put(Event::Submit(submit));
        self.put(Event::Complete { request, status: Status::Ok });
        request
    }

    fn write(&mut self, block: u64, blocks: u64) -> Seq {
        let (offset, len) = (block * LB, blocks * LB);
        let payload = Payload::default();
        self.request(Op::Write { offset, len, fua: false, atomic: false, payload })
    }

    fn flush(&mut self) {
        self.request(Op::Flush);
    }

    /// Something is promised from here on.
    fn acknowledge(&mut self) -> Seq {
        let at = self.put(Event::Mark(Mark { name: "done".into() }));
        self.acknowledged.push(at);
        at
    }

    fn history(&self) -> History {
        let disk = Disk { capacity: 64 * LB, lb_size: LB as u32 };
        History::new(disk, self.events.iter().cloned()).unwrap()
    }

    fn promises(&self) -> Promises {
        Promises::new(self.acknowledged.iter().copied())
    }
}

/// By where the bytes come from.
struct BySource;

impl ContentIds for BySource {
    fn id(&self, _: u64, source: Source) -> u64 {
        match source {
            Source::Base => 0,
            Source::Written { request, block } => request.0 * 1000 + u64::from(block) + 1,
            other => panic!("{other:?}"),
        }
    }
}

fn finding(unit: u64, text: String) -> Finding {
    Finding {
        file: 0,
        path: "/dev/vda".into(),
        unit,
        offset: unit * LB,
        len: LB as u32,
        ..Finding::new(Clause::Lost, text)
    }
}

/// From some event on a block must hold that write, or a later one.
struct Durable {
    units: Vec<UnitBlocks>,
    /// (block, since, write)
    must: Vec<(u64, Seq, Seq)>,
}

impl Durable {
    fn new(must: Vec<(u64, Seq, Seq)>) -> Durable {
        let unit = |block: u64| UnitBlocks { ranges: std::iter::once(block..block + 1).collect() };
        let units = must.iter().map(|(block, ..)| unit(*block)).collect();
        Durable { units, must }
    }
}

impl UnitOracle for Durable {
    fn units(&self) -> &[UnitBlocks] {
        &self.units
    }

    fn promise(&self, unit: usize, after: Seq) -> u64 {
        u64::from(self.must[unit].1 <= after)
    }

    fn judge(&self, unit: usize, after: Seq, blocks: &dyn Fn(u64) -> Source) -> Vec<Finding> {
        let (block, since, write) = self.must[unit];
        let there = matches!(blocks(block), Source::Written { request, .. } if write <= request);
        if there || after < since {
            return Vec::new();
        }
        vec![finding(unit as u64, format!("write {write} is not in block {block}"))]
    }
}

#[derive(Default)]
struct Heard {
    failures: Vec<Failure>,
    again: u64,
    unsure: Vec<String>,
    positions: u64,
}

impl Sink for Heard {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        self.failures.push(failure.clone());
        Ok(())
    }

    fn again(&mut self, _: u64, _: &StateText) {
        self.again += 1;
    }

    fn unsure(&mut self, _: &StateText, why: &str) {
        self.unsure.push(why.to_owned());
    }

    fn position(&mut self, _: &Position) -> Result<(), ExploreError> {
        self.positions += 1;
        Ok(())
    }
}

fn settings(profile: &str) -> Settings {
    Settings {
        profiles: vec![profile.parse().unwrap()],
        strategies: ["prefix", "one-lost", "one-kept", "tear", "exhaustive=8", "random=20"]
            .iter()
            .map(|strategy| strategy.parse().unwrap())
            .collect(),
        threads: 2,
        ..Settings::default()
    }
}

fn run(
    driver: &Driver,
    settings: &Settings,
    before: Option<&Position>,
    make: &MakeVerifier<'_>,
) -> (Summary, Heard) {
    let mut heard = Heard::default();
    let (history, promises) = (driver.history(), driver.promises());
    let job = Job {
        history: &history,
        ids: &BySource,
        promises: &promises,
        explain: &(),
        settings,
        before,
    };
    let summary = explore(&job, make, &mut heard, &AtomicBool::new(false)).unwrap();
    (summary, heard)
}

/// Two blocks, each written twice; the second write of block 9 is acknowledged before a flush.
fn forgotten_flush() -> (Driver, Durable, Seq) {
    let mut driver = Driver::new();
    driver.write(8, 1);
    driver.write(9, 1);
    driver.flush();
    let kept = driver.write(8, 1);
    driver.flush();
    let first = driver.acknowledge();
    let lost = driver.write(9, 1);
    let second = driver.acknowledge();
    driver.write(20, 4);
    driver.flush();
    let oracle = Durable::new(vec![(8, first, kept), (9, second, lost)]);
    (driver, oracle, lost)
}

#[test]
fn a_forgotten_flush_is_found_and_shrunk_to_the_write() {
    let (driver, oracle, lost) = forgotten_flush();
    // Of two threads either may be the first that finds it, and one content has several names.
    let alone = Settings { threads: 1, ..settings("lb4k") };
    let (summary, heard) = run(&driver, &alone, None, &|_| Ok(Box::new(InPlace::new(&oracle))));
    assert_eq!(summary.ended, Ended::Complete);
    assert_eq!(heard.failures.len(), 1, "{:#?}", heard.failures);
    assert!(summary.counts.failed > 1, "{summary:?}");
    assert_eq!(heard.again, summary.counts.failed - 1);
    let failure = &heard.failures[0];
    assert_eq!(failure.state.0, format!("lb4k/p{}:all,-w{lost}", failure.after));
    let explanation = &failure.explanation;
    assert!(explanation.minimal && explanation.violations.is_empty(), "{explanation:?}");
    let passing = explanation.passing.as_ref().unwrap();
    assert_eq!(passing.0, format!("lb4k/p{}:all", failure.after));
    let [piece] = &explanation.pieces[..] else { panic!("{explanation:?}") };
    assert_eq!((piece.write, piece.offset, piece.len), (lost, 9 * LB, LB));
    assert_eq!((piece.fragments, &piece.kept[..]), (1, &[][..]));
    let text = format!("write {lost} (4096 bytes at 36864) was lost: as a whole, block 9");
    assert_eq!(piece.text, text);
    assert_eq!(failure.findings.len(), 1);
    // Every write of several fragments was cut everywhere.
    let [(profile, covered)] = &summary.coverage[..] else { panic!("{:?}", summary.coverage) };
    assert_eq!((profile.as_str(), covered.writes, covered.missing()), ("lb4k", 1, 0));
    assert_eq!(heard.positions, 1);
    // With the flush nothing is wrong.
    let mut driver = Driver::new();
    let kept = driver.write(9, 1);
    driver.flush();
    let since = driver.acknowledge();
    driver.write(9, 1);
    let oracle = Durable::new(vec![(9, since, kept)]);
    let (summary, heard) =
        run(&driver, &settings("lb4k"), None, &|_| Ok(Box::new(InPlace::new(&oracle))));
    assert_eq!((summary.counts.failed, heard.failures.len()), (0, 0));
    assert!(summary.counts.judged >= 2);
}

/// What is there where the flush is ignored is what was there, legally, before the write.
#[test]
fn an_ignored_flush_is_found_though_its_content_was_legal_earlier() {
    let mut driver = Driver::new();
    let old = driver.write(3, 1);
    driver.flush();
    let early = driver.acknowledge();
    let new = driver.write(3, 1);
    driver.flush();
    let late = driver.acknowledge();
    let oracle = Durable::new(vec![(3, early, old), (3, late, new)]);
    for threads in [1, 2] {
        let mut settings = Settings { threads, ..settings("lb4k") };
        let (summary, _) = run(&driver, &settings, None, &|_| Ok(Box::new(InPlace::new(&oracle))));
        assert_eq!(summary.counts.failed, 0);
        settings.faults = vec!["ignore-flush,nth=2".parse().unwrap()];
        let (summary, heard) =
            run(&driver, &settings, None, &|_| Ok(Box::new(InPlace::new(&oracle))));
        assert_eq!(heard.failures.len(), 1, "{:?}", heard.failures);
        assert!(summary.counts.failed > 0);
        let failure = &heard.failures[0];
        assert!(failure.state.0.contains(&format!("-w{new}")), "{failure:?}");
        assert!(failure.explanation.violations[0].contains("clause 1"), "{failure:?}");
        assert!(failure.explanation.faults[0].contains("ignore-flush"), "{failure:?}");
    }
}

/// Writes anywhere, now and then a flush, an acknowledgement.
fn some(seed: u64, steps: u64) -> (Driver, Durable) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) % n
    };
    let mut driver = Driver::new();
    let mut must = Vec::new();
    let mut flushed: HashMap<u64, Seq> = HashMap::new();
    let mut written: HashMap<u64, Seq> = HashMap::new();
    for _ in 0..steps {
        match below(10) {
            0..=6 => {
                let (block, n) = (below(12), 1 + below(3));
                let write = driver.write(block, n);
                written.extend((block..block + n).map(|block| (block, write)));
            }
            7 => {
                driver.flush();
                flushed.clone_from(&written);
            }
            _ => {
                // One time in four too early.
                let early = below(4) == 0;
                let promised = if early { &written } else { &flushed };
                let mut blocks: Vec<_> = promised.iter().map(|(b, w)| (*b, *w)).collect();
                blocks.sort_unstable();
                let since = driver.acknowledge();
                if !blocks.is_empty() {
                    let (block, write) = blocks[below(blocks.len() as u64) as usize];
                    must.push((block, since, write));
                }
            }
        }
    }
    (driver, Durable::new(must))
}

/// Judges every unit of every state anew, by its whole content; remembers what it was asked.
struct Naive<'a> {
    oracle: &'a Durable,
    asked: &'a Mutex<Vec<(u64, u128, bool)>>,
}

impl Verifier for Naive<'_> {
    fn point(&mut self, _: &Point<'_>) -> Result<(), ExploreError> {
        Ok(())
    }

    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        let content = state.content()?;
        let of = |block| content.of(block);
        let units = 0..self.oracle.units().len();
        let findings: Vec<Finding> =
            units.flat_map(|unit| self.oracle.judge(unit, state.after, &of)).collect();
        let asked = (state.promises, state.fingerprint(), findings.is_empty());
        self.asked.lock().unwrap().push(asked);
        Ok(if findings.is_empty() { Verdict::Passed } else { Verdict::Failed(findings) })
    }
}

/// All contents that the strategies yield, by the slow way, with the most promises of each.
fn all_contents(driver: &Driver, settings: &Settings) -> (u64, HashMap<Content2, u64>) {
    let (history, promises) = (driver.history(), driver.promises());
    let mut states = 0;
    let mut contents: HashMap<Content2, u64> = HashMap::new();
    for after in history.points(settings.every_event) {
        let cut = history.cut(after, &settings.profiles[0]).unwrap();
        for strategy in &settings.strategies {
            for name in cut.states(*strategy) {
                states += 1;
                let content = cut.build(&name).unwrap().blocks.into_iter().collect();
                let most = contents.entry(content).or_default();
                *most = (*most).max(promises.at(after));
            }
        }
    }
    (states, contents)
}

type Content2 = Vec<(u64, Source)>;

#[test]
fn every_content_is_judged_under_its_strongest_promises() {
    let mut failed = 0;
    for seed in 0..30 {
        let (driver, oracle) = some(seed, 40);
        for (threads, every_event) in [(1, false), (2, true)] {
            let settings = Settings { threads, every_event, ..settings("req8k") };
            let (states, contents) = all_contents(&driver, &settings);
            let asked = Mutex::new(Vec::new());
            // Nothing is shrunk, so that the verifier is asked by the engine alone.
            let settings = Settings { failures: 0, ..settings };
            let (summary, heard) = run(&driver, &settings, None, &|_| {
                Ok(Box::new(Naive { oracle: &oracle, asked: &asked }))
            });
            assert_eq!(summary.counts.states, states);
            assert_eq!(summary.counts.unique, contents.len() as u64);
            assert_eq!(heard.failures.len(), 0);
            assert_eq!(summary.not_shrunk, summary.counts.failed);
            let asked = asked.into_inner().unwrap();
            let mut strongest: HashMap<u128, u64> = HashMap::new();
            for (promises, fingerprint, _) in &asked {
                let most = strongest.entry(*fingerprint).or_default();
                *most = (*most).max(*promises);
            }
            let mut found: Vec<u64> = strongest.values().copied().collect();
            let mut wanted: Vec<u64> = contents.values().copied().collect();
            found.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(found, wanted);
            // One thread sees each once; and a second time when it failed.
            let failures = asked.iter().filter(|(.., passed)| !passed).count();
            if threads == 1 {
                assert_eq!(asked.len() - failures / 2, contents.len());
            }
            // In place the same is found.
            let (place, _) =
                run(&driver, &settings, None, &|_| Ok(Box::new(InPlace::new(&oracle))));
            if threads == 1 {
                assert_eq!(place.counts, summary.counts);
            }
            assert_eq!(place.counts.failed > 0, summary.counts.failed > 0);
            failed += summary.counts.failed;
        }
    }
    assert!(failed > 100, "{failed}");
}

#[test]
fn an_exploration_goes_on_where_it_ended() {
    let (driver, oracle) = some(7, 60);
    let make = |_: usize| -> Result<Box<dyn Verifier + '_>, ExploreError> {
        Ok(Box::new(InPlace::new(&oracle)))
    };
    let whole = Settings { threads: 1, failures: 1000, ..settings("lb4k") };
    let (all, heard) = run(&driver, &whole, None, &make);
    assert!(all.counts.unique > 300, "{:?}", all.counts);
    let mut position: Option<Position> = None;
    let mut parts = 0;
    let mut found: Vec<StateText> = Vec::new();
    let last = loop {
        let unique = position.as_ref().map_or(0, |position| position.counts.unique);
        let settings = Settings { states: Some(unique + 100), ..whole.clone() };
        // It is kept as text.
        let text = serde_json::to_string(&position).unwrap();
        let before: Option<Position> = serde_json::from_str(&text).unwrap();
        let (summary, heard) = run(&driver, &settings, before.as_ref(), &make);
        found.extend(heard.failures.into_iter().map(|failure| failure.found));
        parts += 1;
        position = Some(summary.position.clone());
        if summary.ended == Ended::Complete {
            break summary;
        }
        assert_eq!(summary.ended, Ended::States);
        assert_eq!(summary.counts.unique, unique + 100);
    };
    assert!(parts > 3, "{parts}");
    assert_eq!(last.counts.unique, all.counts.unique);
    // A sample of an early point may show a content before its strongest promises are known.
    assert!(last.counts.judged >= all.counts.judged);
    assert!(last.counts.failed >= all.counts.failed);
    let sorted = |position: &Position| {
        let mut judged = position.judged.clone();
        judged.sort_unstable();
        judged
    };
    assert_eq!(sorted(&last.position), sorted(&all.position));
    assert_eq!(last.coverage[0].1.missing(), all.coverage[0].1.missing());
    assert!(found.len() >= heard.failures.len());
}

#[test]
fn what_is_limited_is_shared_out_among_the_points() {
    let (driver, oracle) = some(7, 60);
    let points = driver.promises().at(Seq(u64::MAX));
    let reached = |settings: &Settings| {
        let asked = Mutex::new(Vec::new());
        let (summary, _) = run(&driver, settings, None, &|_| {
            Ok(Box::new(Naive { oracle: &oracle, asked: &asked }))
        });
        let asked = asked.into_inner().unwrap();
        let promises: BTreeSet<u64> = asked.iter().map(|(promises, ..)| *promises).collect();
        (summary, promises.len() as u64, asked)
    };
    for (limit, seed) in [(5, 0), (20, 1), (150, 2)] {
        let limited =
            Settings { states: Some(limit), seed, threads: 1, failures: 0, ..settings("lb4k") };
        let (summary, some, asked) = reached(&limited);
        assert_eq!((summary.ended, summary.counts.unique), (Ended::States, limit));
        assert!(some >= (limit / 3).min(points / 2), "{some} of {points}");
        // The same seed, the same sample.
        assert_eq!(reached(&limited).2, asked);
        let other = Settings { seed: seed + 9, ..limited };
        assert_ne!(reached(&other).2, asked);
    }
    // What is shared out is all there is, in the end.
    let limited = Settings { states: Some(1 << 40), threads: 2, ..settings("lb4k") };
    let (all, ..) = reached(&Settings { states: None, ..limited.clone() });
    let (summary, ..) = reached(&limited);
    assert_eq!(summary.ended, Ended::Complete);
    assert_eq!(summary.counts.unique, all.counts.unique);
    assert_eq!(summary.counts.states, all.counts.states);
    let limited = Settings { states: None, time: Some(Duration::from_secs(3600)), ..limited };
    let (summary, ..) = reached(&limited);
    assert_eq!(summary.counts.states, all.counts.states);
    let limited = Settings { time: Some(Duration::ZERO), ..limited };
    let (summary, ..) = reached(&limited);
    assert_eq!((summary.ended, summary.counts.judged), (Ended::Time, 0));
}

fn judged_keys(summary: &Summary) -> Vec<Judged> {
    let mut judged = summary.position.judged.clone();
    judged.sort_unstable();
    judged
}

#[test]
fn what_a_limit_is_spent_on_depends_on_no_thread() {
    for seed in 0..6 {
        let (driver, oracle) = some(seed, 120);
        let make = |_: usize| -> Result<Box<dyn Verifier + '_>, ExploreError> {
            Ok(Box::new(InPlace::new(&oracle)))
        };
        for limit in [1, 7, 40, 333] {
            let settings = Settings {
                profiles: vec!["lb4k".parse().unwrap(), "req8k".parse().unwrap()],
                states: Some(limit),
                threads: 1,
                failures: 0,
                seed,
                ..settings("lb4k")
            };
            let (one, _) = run(&driver, &settings, None, &make);
            assert!(one.counts.unique <= limit);
            for threads in [2, 3, 5] {
                let (many, _) =
                    run(&driver, &Settings { threads, ..settings.clone() }, None, &make);
                assert_eq!(many.ended, one.ended);
                assert_eq!(many.counts.unique, one.counts.unique);
                assert_eq!(judged_keys(&many), judged_keys(&one), "{limit} by {threads} threads");
                // Which of two equal states was built is another matter.
                let missing = |all: &Summary| -> Vec<usize> {
                    all.coverage.iter().map(|(_, covered)| covered.missing()).collect()
                };
                assert_eq!(missing(&many), missing(&one));
            }
        }
    }
}

/// Keeps the names of what it is asked.
struct Names<'a>(&'a Mutex<Vec<String>>);

impl Verifier for Names<'_> {
    fn point(&mut self, _: &Point<'_>) -> Result<(), ExploreError> {
        Ok(())
    }

    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.0.lock().unwrap().push(state.name()?.0);
        Ok(Verdict::Passed)
    }
}

#[test]
fn what_is_limited_is_spread_over_profiles_points_and_strategies() {
    let mut driver = Driver::new();
    for _ in 0..40 {
        for n in 0..30 {
            driver.write(n % 16 * 4, 4);
        }
        driver.flush();
        driver.acknowledge();
    }
    let last = driver.history().last().unwrap().0;
    for (states, time) in [(Some(400), None), (Some(400), Some(3600)), (Some(64), Some(3600))] {
        let settings = Settings {
            profiles: vec!["lb4k".parse().unwrap(), "req8k".parse().unwrap()],
            strategies: ["prefix", "one-lost", "tear", "random=50"]
                .map(|s| s.parse().unwrap())
                .into(),
            states,
            time: time.map(Duration::from_secs),
            threads: 2,
            ..settings("lb4k")
        };
        let names = Mutex::new(Vec::new());
        let (summary, _) = run(&driver, &settings, None, &|_| Ok(Box::new(Names(&names))));
        assert_eq!((summary.ended, summary.counts.unique), (Ended::States, states.unwrap()));
        let names = names.into_inner().unwrap();
        let has = |part: &str| names.iter().filter(|name| name.contains(part)).count();
        for profile in ["lb4k/", "req8k/"] {
            assert!(has(profile) > names.len() / 4, "{names:?}");
        }
        assert!(has(":r1.") > names.len() / 20, "random: {names:?}");
        let torn = names.iter().filter(|n| n.contains("all,-w") && n.contains('.')).count();
        assert!(torn > names.len() / 20, "tear: {names:?}");
        // Of ten parts of the recording each has its share, and none more than twice of it.
        let mut parts = [0; 10];
        for name in &names {
            let parsed: tornblk_model::crash::Parsed = name.parse().unwrap();
            parts[(parsed.after.0 * 10 / (last + 1)) as usize] += 1;
        }
        assert!(parts.iter().all(|n| (1..=names.len() / 5).contains(n)), "{parts:?}");
    }
}

#[test]
fn shards_are_the_whole() {
    let (driver, oracle) = some(3, 50);
    let make = |_: usize| -> Result<Box<dyn Verifier + '_>, ExploreError> {
        Ok(Box::new(InPlace::new(&oracle)))
    };
    let (all, _) = run(&driver, &settings("lb4k"), None, &make);
    let mut states = 0;
    let mut keys = HashSet::new();
    for index in 0..3 {
        let settings = Settings { shard: Some(Shard { index, of: 3 }), ..settings("lb4k") };
        let (part, _) = run(&driver, &settings, None, &make);
        assert!(part.counts.states > 0);
        states += part.counts.states;
        keys.extend(part.position.judged.iter().map(|judged| judged.key));
        let mut listed = BTreeSet::new();
        let history = driver.history();
        let mut n = 0;
        list(&history, &settings, |name| {
            n += 1;
            listed.insert(name.0.clone());
            Ok(true)
        })
        .unwrap();
        assert_eq!(n, part.counts.states);
    }
    assert_eq!(states, all.counts.states);
    assert_eq!(keys.len() as u64, all.counts.unique);
}

/// Fails where it is asked the nth time.
struct Moody<'a> {
    asked: &'a AtomicU64,
    fails: fn(u64) -> bool,
    stop: &'a AtomicBool,
}

impl Verifier for Moody<'_> {
    fn point(&mut self, _: &Point<'_>) -> Result<(), ExploreError> {
        Ok(())
    }

    fn verify(&mut self, _: &State<'_>) -> Result<Verdict, ExploreError> {
        let n = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if n == 10 {
            self.stop.store(true, Ordering::Relaxed);
        }
        let finding = || finding(0, "moody".into());
        Ok(if (self.fails)(n) { Verdict::Failed(vec![finding()]) } else { Verdict::Passed })
    }
}

#[test]
fn what_fails_only_once_is_unsure() {
    let (driver, _) = some(1, 30);
    let (asked, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let settings = Settings { threads: 1, ..settings("lb4k") };
    let (summary, heard) = run(&driver, &settings, None, &|_| {
        Ok(Box::new(Moody { asked: &asked, fails: |n| n == 5, stop: &stop }))
    });
    assert_eq!((summary.counts.failed, summary.counts.unsure), (0, 1));
    assert_eq!(heard.unsure, ["it failed once, and then passed"]);
    assert_eq!(summary.counts.judged + 1, asked.into_inner());
}

#[test]
fn an_exploration_can_be_stopped_and_its_errors_end_it() {
    let (driver, _) = some(2, 60);
    let (asked, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (history, promises) = (driver.history(), driver.promises());
    let settings = settings("lb4k");
    let job = Job {
        history: &history,
        ids: &BySource,
        promises: &promises,
        explain: &(),
        settings: &settings,
        before: None,
    };
    let mut heard = Heard::default();
    let summary = explore(
        &job,
        &|_| Ok(Box::new(Moody { asked: &asked, fails: |_| false, stop: &stop })),
        &mut heard,
        &stop,
    )
    .unwrap();
    assert_eq!(summary.ended, Ended::Stopped);
    assert!(summary.counts.judged < 20, "{summary:?}");
    assert_eq!(summary.position.judged.len() as u64, summary.counts.judged);
    let error = explore(
        &job,
        &|_| Err(ExploreError::Bad("no guest".into())),
        &mut heard,
        &AtomicBool::new(false),
    );
    assert_eq!(error.unwrap_err().to_string(), "no guest");
    let wrong = Settings { profiles: vec!["lb512".parse().unwrap()], ..settings.clone() };
    let job = Job { settings: &wrong, ..job };
    let error = explore(
        &job,
        &|_| Err(ExploreError::Bad("no guest".into())),
        &mut heard,
        &AtomicBool::new(false),
    );
    assert!(error.unwrap_err().to_string().contains("lb512"));
}

#[test]
fn a_state_is_judged_by_its_name() {
    let (driver, oracle, lost) = forgotten_flush();
    let (history, promises) = (driver.history(), driver.promises());
    let judge = |name: &str| {
        let mut verifier = InPlace::new(&oracle);
        let name = StateName(name.into());
        let wanted = ByName { name: &name, recovery: None };
        slow::named(&history, &BySource, &promises, &wanted, &mut verifier)
    };
    let last = history.last().unwrap();
    assert_eq!(judge(&format!("lb4k/p{last}:all")).unwrap(), Verdict::Passed);
    let failing = judge(&format!("lb4k/p{last}:none,-w{lost}")).unwrap();
    assert!(matches!(failing, Verdict::Failed(_)), "{failing:?}");
    assert!(judge("lb4k/p9999:all").is_err());
}

#[test]
fn shards_are_read_and_written() {
    assert_eq!("2/8".parse(), Ok(Shard { index: 1, of: 8 }));
    assert_eq!(Shard { index: 1, of: 8 }.to_string(), "2/8");
    for bad in ["", "0/8", "9/8", "1", "a/b", "1/0"] {
        assert!(bad.parse::<Shard>().is_err(), "{bad}");
    }
    let text = serde_json::to_string(&Fingerprint(5)).unwrap();
    assert_eq!(text, "\"00000000000000000000000000000005\"");
    assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), Fingerprint(5));
    assert!(serde_json::from_str::<Fingerprint>("\"5\"").is_err());
}

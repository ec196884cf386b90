//! Planted bugs are found by exploring in place, and shrunk to the write that is to blame; their
//! correct twins give no finding.

#![allow(clippy::unwrap_used)]

use super::simulated::{Found, Kind, NONCE, Recorded, Sent, Simulated, stamp, target};
use super::{Failure, InPlace, Job, Promises, Settings, UnitBlocks, UnitOracle, explore};
use crate::oracle::{Clause, Finding, judge};
use crate::run::{WireQuery, read_raw, read_wire};
use crate::suite::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_agent::channel::{MarkText, WriteFlags};
use tornblk_agent::payload;
use tornblk_agent::planted::{Planted, Protocol};
use tornblk_model::crash::{Fault, Parsed, Profile, Source, StateName, Strategy};
use tornblk_model::event::{Event, Mark, Op, Segment, Seq};
use tornblk_model::recording::{StateReader, Trust};

/// The disk that a protocol is made for.
fn profile(protocol: Protocol) -> &'static str {
    if protocol.needs_whole_requests() { "req16k" } else { "lb512" }
}

fn record(protocol: Protocol, bug: bool, commits: u32, threads: u32, seed: u64) -> Recorded {
    let target = target(16384, 2 * threads, threads, Some(Planted { protocol, bug }));
    let mut disk = Simulated::new(target, 512, profile(protocol), seed);
    disk.commit(commits);
    disk.end()
}

fn strategies(random: u64) -> Settings {
    let mut strategies =
        vec![Strategy::Prefix, Strategy::OneLost, Strategy::OneKept, Strategy::Tear];
    if random > 0 {
        strategies.push(Strategy::Random { seed: 0, count: random });
    }
    Settings { strategies, threads: 1, ..Settings::default() }
}

/// The writes in which a shrunk state differs from the passing one beside it: what of them is lost
/// there, where everything persisted passes; else what is there.
fn blamed(recorded: &Recorded, failure: &Failure) -> Vec<Sent> {
    let passing = failure.explanation.passing.clone().unwrap();
    let of = |name: &str| {
        let parsed: Parsed = name.parse().unwrap();
        let content = recorded.history.build(&StateName(name.to_owned())).unwrap();
        (parsed, content)
    };
    let ((parsed, failing), (_, passing)) = (of(&failure.state.0), of(&passing.0));
    let cut = recorded.history.cut(parsed.after, &parsed.profile).unwrap();
    let all = cut.states(Strategy::Prefix).next().unwrap();
    let all = recorded.history.build(&all).unwrap();
    let from_all = passing == all;
    let mut requests = BTreeSet::new();
    for (block, source) in &all.blocks {
        let Source::Written { request, .. } = source else { continue };
        if (failing.of(*block) == *source) != from_all && cut.volatile().contains(request) {
            requests.insert(*request);
        }
    }
    let sent = |request: Seq| *recorded.sent.iter().find(|s| s.request == request).unwrap();
    requests.into_iter().map(sent).collect()
}

fn explored(protocol: Protocol) -> (Recorded, Vec<Failure>) {
    let recorded = record(protocol, true, 6, 2, 5);
    // Of a double-write buffer the shortest story: the page is lost, whole as it is.
    let (profile, random) = match protocol {
        Protocol::Journal => ("lb512", 5),
        _ => ("req16k", 0),
    };
    let mut settings = Settings { failures: 8, states: Some(300), ..strategies(random) };
    if protocol == Protocol::DoubleWrite {
        settings.strategies = vec![Strategy::Prefix, Strategy::OneLost, Strategy::OneKept];
    }
    let found = recorded.explore(profile, settings);
    assert!(!found.failures.is_empty(), "{protocol:?} in {} states", found.counts.unique);
    for failure in &found.failures {
        println!("{}: {} ({})", failure.state, failure.findings[0].text, failure.findings[0].call);
        for sent in blamed(&recorded, failure) {
            println!("    {sent:?}");
        }
    }
    (recorded, found.failures)
}

fn finding(failure: &Failure) -> &Finding {
    &failure.findings[0]
}

/// The page is torn, and its record not there as a whole: the two writes that the missing flush
/// should have kept apart, and no other.
#[test]
fn a_journal_without_a_flush_is_shrunk_to_the_page_and_its_record() {
    let (recorded, failures) = explored(Protocol::Journal);
    for failure in &failures {
        let finding = finding(failure);
        let blamed = blamed(&recorded, failure);
        let kinds: Vec<Kind> = blamed.iter().map(|sent| sent.kind).collect();
        assert_eq!(kinds, [Kind::Slot, Kind::Page], "{}", failure.state);
        assert_eq!(finding.clause, Clause::Torn, "{}", failure.state);
        for sent in blamed {
            assert_eq!((sent.unit, Some(sent.r#gen)), (finding.unit, finding.generation));
        }
    }
}

/// One of the four requests is there and another is not.
#[test]
fn a_page_in_four_requests_is_shrunk_to_one_of_them() {
    let (recorded, failures) = explored(Protocol::Page);
    let mut pieces = BTreeSet::new();
    for failure in &failures {
        let finding = finding(failure);
        let blamed = blamed(&recorded, failure);
        assert_eq!((finding.clause, blamed.len()), (Clause::Torn, 1), "{}", failure.state);
        let sent = blamed[0];
        assert_eq!((sent.unit, Some(sent.r#gen)), (finding.unit, finding.generation));
        pieces.insert(sent.from);
    }
    assert_eq!(pieces, [0, 4096, 8192, 12288].into());
}

/// The page that the slot guarded is lost or torn, after the slot was used again.
#[test]
fn a_double_write_slot_used_again_too_early_is_shrunk_to_the_page_it_guarded() {
    let (recorded, failures) = explored(Protocol::DoubleWrite);
    for failure in &failures {
        let finding = finding(failure);
        let blamed = blamed(&recorded, failure);
        let page: Vec<&Sent> = blamed.iter().filter(|sent| sent.kind == Kind::Page).collect();
        let [page] = page[..] else { panic!("{blamed:?}") };
        assert_eq!(page.unit, finding.unit, "{}", failure.state);
        assert!(matches!(finding.clause, Clause::Lost | Clause::Torn), "{}", failure.state);
        if finding.clause == Clause::Lost {
            assert_eq!(finding.durable, Some(page.r#gen), "{}", failure.state);
        }
        let again = recorded.sent.iter().find(|sent| {
            sent.kind == Kind::Slot
                && sent.request > page.request
                && sent.unit % 2 == page.unit % 2
                && sent.request <= failure.after
        });
        assert!(again.is_some(), "{}: the slot was not used again", failure.state);
        // Where the slot's new record is still volatile, it is the one that hides the old.
        assert!(blamed.iter().all(|sent| sent.unit % 2 == page.unit % 2));
    }
}

/// The write that the flush did not wait for is lost, although it was acknowledged.
#[test]
fn a_flush_that_did_not_wait_is_shrunk_to_the_write_it_missed() {
    let (recorded, failures) = explored(Protocol::Flush);
    for failure in &failures {
        let finding = finding(failure);
        let blamed = blamed(&recorded, failure);
        assert_eq!((finding.clause, blamed.len()), (Clause::Lost, 1), "{}", failure.state);
        let sent = blamed[0];
        assert_eq!((sent.unit, Some(sent.r#gen)), (finding.unit, finding.durable));
        assert_eq!(sent.kind, Kind::Page);
    }
}

/// Explores recordings of a correct twin until there were so many unique states.
fn twin(protocol: Protocol, (commits, threads): (u32, u32), settings: &Settings, states: u64) {
    let mut unique = 0;
    for seed in 0.. {
        let recorded = record(protocol, false, commits, threads, seed);
        let found = recorded.explore(profile(protocol), settings.clone());
        let said: Vec<_> = found.failures.iter().map(|f| (&f.state, &f.findings)).collect();
        assert!(said.is_empty(), "{protocol:?}, seed {seed}: {said:?}");
        unique += found.counts.unique;
        if unique >= states {
            println!("{protocol:?}: {unique} unique states of {} recordings", seed + 1);
            return;
        }
        assert!(found.counts.unique >= 10, "{} states a recording are too few", unique);
    }
}

#[test]
fn the_correct_twins_give_no_finding() {
    for protocol in Protocol::ALL {
        let random = Strategy::Random { seed: 0, count: 3 };
        let settings = Settings { strategies: vec![Strategy::Prefix, random], ..strategies(0) };
        twin(protocol, (12, 3), &settings, 120);
    }
}

#[test]
#[ignore = "100,000 states a protocol, a minute in release: run by hand"]
fn the_correct_twins_give_no_finding_in_100_000_states() {
    for protocol in Protocol::ALL {
        twin(protocol, (300, 6), &strategies(60), 100_000);
    }
}

/// A disk that promises less than the twin needs is no place for it, and that is found too.
#[test]
fn a_correct_protocol_on_the_wrong_disk_is_found() {
    let recorded = record(Protocol::Page, false, 6, 2, 1);
    let settings = Settings { states: Some(40), failures: 2, ..strategies(0) };
    let found = recorded.explore("lb512", settings);
    assert!(found.failures.iter().all(|f| finding(f).clause == Clause::Torn));
    assert!(!found.failures.is_empty());
    assert!(recorded.explore("req16k", strategies(0)).failures.is_empty());
}

/// A page that may hold the same bytes again later.
struct Again {
    units: Vec<UnitBlocks>,
    /// (write, event of its acknowledgement, what it wrote)
    writes: Vec<(Seq, Seq, u8)>,
    monotone: bool,
}

impl UnitOracle for Again {
    fn units(&self) -> &[UnitBlocks] {
        &self.units
    }

    fn promise(&self, _: usize, after: Seq) -> u64 {
        let events = self.writes.iter().flat_map(|(write, acknowledged, _)| [write, acknowledged]);
        events.filter(|event| **event <= after).count() as u64
    }

    fn is_monotone(&self) -> bool {
        self.monotone
    }

    /// By bytes alone: what was acknowledged last, or what was asked for after that.
    fn judge(&self, _: usize, after: Seq, blocks: &dyn Fn(u64) -> Source) -> Vec<Finding> {
        let shows = match blocks(self.units[0].ranges[0].start) {
            Source::Written { request, .. } => {
                self.writes.iter().find(|(write, ..)| *write == request).map(|(.., value)| *value)
            }
            _ => None,
        };
        let last = self.writes.iter().rposition(|(_, acknowledged, _)| *acknowledged <= after);
        let Some(last) = last else { return Vec::new() };
        let legal = self.writes[last..].iter().filter(|(write, ..)| *write <= after);
        if legal.into_iter().any(|(.., value)| Some(*value) == shows) {
            return Vec::new();
        }
        vec![Finding {
            file: 1,
            path: String::new(),
            unit: 0,
            offset: 0,
            len: 4096,
            ..Finding::new(Clause::Lost, format!("{shows:?} is there"))
        }]
    }
}

/// A, B and A again are written, flushed and acknowledged. Where the second flush is ignored A shows
/// after B was acknowledged: what was legal before, and is again in the end.
#[test]
fn an_ignored_flush_is_found_where_the_same_bytes_are_legal_before_and_after() {
    let mut disk = Simulated::new(target(4096, 1, 1, None), 4096, "lb4k", 1);
    let offset = disk.target().offset;
    let mut writes = Vec::new();
    for value in [1, 2, 1] {
        let write = disk.write(offset, &[value; 4096], false);
        disk.complete(write);
        let flush = disk.submit(Op::FLUSH);
        disk.complete(flush);
        let mark = Mark { name: "acknowledged".into() };
        writes.push((write, disk.append(&Event::Mark(mark)), value));
    }
    let (second, acknowledged) = (writes[1].0, writes[1].1);
    let recorded = disk.end();
    let block = offset / 4096;
    let unit = UnitBlocks { ranges: std::iter::once(block..block + 1).collect() };
    let promises = Promises::new(writes.iter().map(|(_, acknowledged, _)| *acknowledged));
    let settings = Settings {
        profiles: vec!["lb4k".parse().unwrap()],
        faults: vec!["ignore-flush,nth=2".parse().unwrap()],
        ..strategies(0)
    };
    let ids = recorded.ids();
    let job = Job {
        history: &recorded.history,
        ids: &ids,
        promises: &promises,
        explain: &(),
        settings: &settings,
        before: None,
    };
    let failures = |monotone| {
        let oracle = Again { units: vec![unit.clone()], writes: writes.clone(), monotone };
        let mut found = Found::default();
        let stop = AtomicBool::new(false);
        explore(&job, &|_| Ok(Box::new(InPlace::new(&oracle))), &mut found, &stop).unwrap();
        found.failures
    };
    assert_eq!(failures(true), [], "the content was judged, and passed, at the end");
    let found = failures(false);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].after, acknowledged);
    assert!(found[0].state.0.contains(&format!("-w{second}")), "{}", found[0].state);
}

/// A workload without a protocol: writes in flight, split, joined, of part of a unit, of other
/// runs, corrupt, flushed and told.
fn random_workload(seed: u64) -> Recorded {
    let lb = if seed.is_multiple_of(3) { 4096 } else { 512 };
    let mut disk = Simulated::new(target(8192, 5, 1, None), lb, "lb", seed);
    let mut generations = [0u32; 5];
    let mut in_flight: Vec<(Seq, Option<(u64, u32)>)> = Vec::new();
    // Of each write: requests that are left.
    let mut left: BTreeMap<(u64, u32), usize> = BTreeMap::new();
    let target = disk.target().clone();
    for _ in 0..30 {
        match disk.rng.below(10) {
            0..=4 => {
                let unit = disk.rng.below(5);
                generations[unit as usize] += 1;
                let r#gen = generations[unit as usize];
                let flags = WriteFlags {
                    direct: disk.rng.below(3) > 0,
                    dsync: disk.rng.below(4) == 0,
                    atomic: disk.rng.below(8) == 0,
                    ..WriteFlags::default()
                };
                let offset = target.offset_of(unit);
                disk.mark(&[MarkText::Intent {
                    file: 1,
                    unit,
                    r#gen,
                    offset,
                    len: 8192,
                    flags,
                    at: None,
                }]);
                let mut bytes = vec![0; 8192];
                payload::fill(&mut bytes, stamp(&target, unit, r#gen));
                match disk.rng.below(12) {
                    0 => bytes[4096..].fill(0),
                    1 => bytes[5000] ^= 8,
                    2 => payload::fill(&mut bytes[4096..], stamp(&target, (unit + 1) % 5, r#gen)),
                    3 => {
                        let other = payload::Stamp { nonce: 9, ..stamp(&target, unit, r#gen) };
                        payload::fill(&mut bytes[..4096], other);
                    }
                    4 => bytes[..512].fill(7),
                    5 => payload::fill(&mut bytes[4096..], stamp(&target, unit, r#gen - 1)),
                    _ => {}
                }
                let atomic = disk.rng.below(2) == 0;
                let pieces = if disk.rng.below(3) == 0 { 2 } else { 1 };
                for piece in 0..pieces {
                    let len = 8192 / pieces;
                    let (from, to) = (piece * len, (piece + 1) * len);
                    let at = offset + from as u64;
                    let request = disk.write(at, &bytes[from..to], atomic);
                    in_flight.push((request, Some((unit, r#gen))));
                }
                left.insert((unit, r#gen), pieces);
            }
            5..=7 if !in_flight.is_empty() => {
                let at = disk.rng.below(in_flight.len() as u64) as usize;
                let (request, write) = in_flight.swap_remove(at);
                disk.complete(request);
                let Some((unit, r#gen)) = write else {
                    let since = disk.rng.below(30);
                    disk.mark(&[MarkText::Synced { file: 1, since, result: 0 }]);
                    continue;
                };
                let rest = left.get_mut(&(unit, r#gen)).unwrap();
                *rest -= 1;
                if *rest == 0 {
                    let result = if disk.rng.below(10) == 0 { -5 } else { 8192 };
                    disk.mark(&[MarkText::Done { file: 1, unit, r#gen, result }]);
                }
            }
            8 => {
                let flush = disk.submit(Op::FLUSH);
                in_flight.push((flush, None));
            }
            _ => {
                let offset = target.offset_of(disk.rng.below(5));
                let segments = vec![Segment { offset, len: 4096, unmap: false }];
                let request = disk.submit(Op::Discard { segments });
                disk.complete(request);
            }
        }
    }
    disk.end()
}

/// What the oracle says about a state that was built as an image, against what is said in place.
pub(super) fn compare(
    recorded: &Recorded,
    units: &super::WorkloadUnits,
    name: &StateName,
    misdirected: bool,
) -> Vec<Finding> {
    let parsed: Parsed = name.0.parse().unwrap();
    let content = recorded.history.build(name).unwrap();
    let reader = Arc::clone(&recorded.reader);
    let state = StateReader::new(reader, None, Trust::Unchanged, content.clone()).unwrap();
    let workload = &recorded.subject.workload;
    let readback = read_raw(&state, workload).unwrap();
    let query = WireQuery {
        nonce: NONCE,
        profile: units.profile().to_string(),
        event: parsed.after.0,
        raw: Some(workload.files.clone()),
        state: Some(name.0.clone()),
    };
    let wire = read_wire(&recorded.path, &query).unwrap();
    let ledger = units.ledgers().ledger(parsed.after);
    let lb_size = recorded.history.disk().lb_size;
    let mut expected = judge(workload, lb_size, &ledger, &wire, &readback);
    let (mut findings, mut tears) = (Vec::new(), Vec::new());
    for unit in 0..units.units().len() {
        let judgement = units.judge_unit(unit, parsed.after, &|block| content.of(block)).unwrap();
        findings.extend(judgement.findings);
        tears.extend(judgement.tears);
    }
    if misdirected {
        // Where it lies elsewhere on the disk, a unit alone cannot know.
        for finding in expected.findings.iter_mut().chain(&mut findings) {
            if finding.clause == Clause::Stale {
                finding.clause = Clause::Lost;
            }
            finding.text.clear();
        }
    }
    assert_eq!(findings, expected.findings, "{name}");
    assert_eq!(tears, expected.tears, "{name}");
    let counts = units.counts(parsed.after);
    assert_eq!(
        (counts.units, counts.writes, counts.eligible, counts.not_eligible, counts.durable),
        (
            expected.counts.units,
            expected.counts.writes,
            expected.counts.eligible,
            expected.counts.not_eligible,
            expected.counts.durable
        ),
        "{name}"
    );
    findings
}

/// The number of states that were compared, and how often each clause was found.
fn compare_all(recorded: &Recorded, seed: u64, clauses: &mut BTreeMap<Clause, u64>) -> u64 {
    let mut rng = Rng::new(seed, &["compare"], 0);
    let lb = format!("lb{}", if recorded.history.disk().lb_size == 512 { "512" } else { "4k" });
    let mut compared = 0;
    let all = recorded.units(&lb);
    for name in
        [lb.as_str(), "req8k", "req4k", "explicit16k", "piece8k", "garbage", "req4k+garbage"]
    {
        let profile: Profile = name.parse().unwrap();
        let units = all.on(profile.clone());
        let points = recorded.history.points(true);
        {
            let after = points[rng.below(points.len() as u64) as usize];
            let cut = recorded.history.cut(after, &profile).unwrap();
            let mut names: Vec<(StateName, bool)> = Vec::new();
            for strategy in
                [Strategy::Prefix, Strategy::OneLost, Strategy::Random { seed, count: 2 }]
            {
                names.extend(cut.states(strategy).take(3).map(|name| (name, false)));
            }
            let first = names[0].0.clone();
            for fault in ["ignore-flush", "corrupt", "misdirect", "lose-write", "tear-atomic"] {
                let faults: Vec<Fault> = vec![fault.parse().unwrap()];
                let (broken, _) = cut.break_with(&first, &faults, seed).unwrap();
                names.push((broken, fault == "misdirect"));
                // Made up, whether the disk may or not.
                let target = &recorded.subject.workload.files[0];
                let bytes = target.end() - target.offset;
                let at = target.offset + rng.below(bytes);
                let block = at / u64::from(recorded.history.disk().lb_size);
                let name = cut.spell_out(&first).unwrap();
                names.push((StateName(format!("{name};g{block}=1f")), false));
            }
            for (name, misdirected) in names {
                for finding in compare(recorded, &units, &name, misdirected) {
                    *clauses.entry(finding.clause).or_default() += 1;
                }
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn in_place_is_said_what_is_said_about_the_built_image() {
    let mut clauses = BTreeMap::new();
    let mut compared = 0;
    for seed in 0..8 {
        compared += compare_all(&random_workload(seed), seed, &mut clauses);
    }
    for (n, protocol) in Protocol::ALL.into_iter().enumerate() {
        let recorded = record(protocol, true, 6, 2, n as u64);
        compared += compare_all(&recorded, n as u64, &mut clauses);
    }
    println!("{compared} states: {clauses:?}");
    for clause in [
        Clause::Torn,
        Clause::Lost,
        Clause::Misdirected,
        Clause::Foreign,
        Clause::Corrupt,
        Clause::Failed,
    ] {
        assert!(clauses.contains_key(&clause), "{clause} never came up: {clauses:?}");
    }
}

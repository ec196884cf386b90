//! A disk that may make up what volatile sectors hold (profile `garbage`): that is no finding, and
//! everything beyond it is.

#![allow(clippy::unwrap_used)]

use super::planted::compare;
use super::simulated::{Recorded, Simulated, stamp, target};
use super::{Settings, WorkloadUnits};
use crate::oracle::{Clause, Finding};
use tornblk_agent::channel::{MarkText, WriteFlags};
use tornblk_agent::payload;
use tornblk_agent::planted::{Planted, Protocol};
use tornblk_model::crash::{Parsed, StateName, Strategy};
use tornblk_model::event::Op;

/// The bytes of a unit.
const UNIT: u32 = 8192;

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Volatile,
    Durable,
}

/// Writes of one unit each: (unit, generation, atomic, then).
fn recorded(lb_size: u32, writes: &[(u64, u32, bool, Then)]) -> Recorded {
    let mut disk = Simulated::new(target(UNIT, 5, 1, None), lb_size, "lb", 1);
    let target = disk.target().clone();
    for (unit, r#gen, atomic, then) in writes.iter().copied() {
        let flags = WriteFlags { direct: true, atomic, ..WriteFlags::default() };
        let offset = target.offset_of(unit);
        disk.mark(&[MarkText::Intent { file: 1, unit, r#gen, offset, len: UNIT, flags, at: None }]);
        let mut bytes = vec![0; UNIT as usize];
        payload::fill(&mut bytes, stamp(&target, unit, r#gen));
        let write = disk.write(offset, &bytes, atomic);
        disk.complete(write);
        let since = disk.mark(&[MarkText::Done { file: 1, unit, r#gen, result: UNIT.into() }]);
        if then == Then::Durable {
            let flush = disk.submit(Op::FLUSH);
            disk.complete(flush);
            disk.mark(&[MarkText::Synced { file: 1, since, result: 0 }]);
        }
    }
    disk.end()
}

/// A workload as any: durable and volatile generations, one over the other.
fn usual(lb_size: u32) -> Recorded {
    use Then::{Durable, Volatile};
    let writes = [
        (0, 1, false, Durable),
        (2, 1, false, Durable),
        (1, 1, false, Volatile),
        (0, 2, false, Volatile),
        (3, 1, false, Volatile),
        (2, 2, false, Volatile),
    ];
    recorded(lb_size, &writes)
}

/// Under this profile everything that was volatile is there, at the end, but for one block.
fn with_garbage(recorded: &Recorded, profile: &str, block: u64) -> StateName {
    let after = recorded.events.last().unwrap().0;
    let all: Parsed = format!("{profile}/p{after}:all;g{block}=1f").parse().unwrap();
    StateName::from(&all)
}

/// The block in which a sector of a unit lies.
fn block(recorded: &Recorded, unit: u64, sector: u64) -> u64 {
    let target = &recorded.subject.workload.files[0];
    (target.offset_of(unit) + sector * 512) / u64::from(recorded.history.disk().lb_size)
}

/// What both judges say of it, each of a state of that name.
fn said(recorded: &Recorded, units: &WorkloadUnits, name: &StateName) -> Vec<(Clause, u64)> {
    let findings: Vec<Finding> = compare(recorded, units, name, false);
    findings.iter().map(|f| (f.clause, f.unit)).collect()
}

fn settings(count: u64) -> Settings {
    let strategies = vec![
        Strategy::Prefix,
        Strategy::OneLost,
        Strategy::Exhaustive { at_most: 12 },
        Strategy::Random { seed: 0, count },
    ];
    Settings { strategies, threads: 1, ..Settings::default() }
}

#[test]
fn what_the_disk_made_up_in_volatile_sectors_is_no_finding() {
    for lb_size in [512, 4096] {
        for profile in ["garbage", "req4k+garbage"] {
            let recorded = usual(lb_size);
            let units = recorded.units(profile);
            let found = recorded.explore(profile, settings(40));
            assert_eq!(found.failures, []);
            assert!(found.counts.unique > 100, "{}", found.counts.unique);
            for sector in [0, 9, 15] {
                for unit in [0, 1, 2, 3] {
                    let name = with_garbage(&recorded, profile, block(&recorded, unit, sector));
                    assert!(recorded.history.violations(&name).unwrap().is_empty(), "{name}");
                    assert_eq!(said(&recorded, &units, &name), [], "{name}");
                }
            }
        }
    }
}

/// The protocols whose recovery makes good what is not whole do so here, too.
#[test]
fn a_journal_and_a_double_write_buffer_stand_garbage() {
    for protocol in [Protocol::Journal, Protocol::DoubleWrite] {
        let planted = Some(Planted { protocol, bug: false });
        let mut disk = Simulated::new(target(16384, 6, 3, planted), 512, "garbage", 3);
        disk.commit(12);
        let recorded = disk.end();
        let settings = Settings { states: Some(400), ..settings(8) };
        let found = recorded.explore("garbage", settings);
        let said: Vec<_> = found.failures.iter().map(|f| (&f.state, &f.findings)).collect();
        assert!(said.is_empty(), "{protocol:?}: {said:?}");
        assert!(found.counts.unique > 200, "{protocol:?}: {}", found.counts.unique);
    }
}

#[test]
fn a_journal_without_a_flush_is_found_under_garbage_too() {
    let planted = Some(Planted { protocol: Protocol::Journal, bug: true });
    let mut disk = Simulated::new(target(16384, 4, 2, planted), 512, "garbage", 5);
    disk.commit(6);
    let recorded = disk.end();
    let settings = Settings { failures: 2, states: Some(100), ..settings(5) };
    assert!(!recorded.explore("garbage", settings).failures.is_empty());
}

/// A sector that was flushed, one that was never written, and any under a profile that has none.
#[test]
fn what_the_disk_was_not_allowed_to_make_up_is_found() {
    for lb_size in [512, 4096] {
        let recorded =
            recorded(lb_size, &[(0, 1, false, Then::Durable), (1, 1, false, Then::Volatile)]);
        for (profile, unit) in [("garbage", 0), ("garbage", 4), ("lb", 1)] {
            for sector in [0, 15] {
                let name = with_garbage(&recorded, profile, block(&recorded, unit, sector));
                assert!(!recorded.history.violations(&name).unwrap().is_empty(), "{name}");
                let said = said(&recorded, &recorded.units(profile), &name);
                assert_eq!(said, [(Clause::Foreign, unit)], "{name}");
            }
        }
    }
}

/// Sent in one request that the profile keeps whole: there or not, and nothing else.
#[test]
fn what_the_profile_keeps_whole_is_not_made_up() {
    let recorded = usual(512);
    let found = recorded.explore("req8k+garbage", settings(40));
    assert_eq!(found.failures, []);
    for unit in [0, 1, 2, 3] {
        let name = with_garbage(&recorded, "req8k+garbage", block(&recorded, unit, 3));
        assert!(!recorded.history.violations(&name).unwrap().is_empty(), "{name}");
        let units = recorded.units("req8k+garbage");
        assert_eq!(said(&recorded, &units, &name), [(Clause::Foreign, unit)], "{name}");
    }
}

/// The kernel took it as atomic, whatever the disk promises: a unit that is in part made up is torn.
#[test]
fn a_write_that_was_taken_as_atomic_must_be_whole_under_garbage() {
    let recorded = recorded(512, &[(0, 1, false, Then::Durable), (0, 2, true, Then::Volatile)]);
    let name = with_garbage(&recorded, "garbage", block(&recorded, 0, 3));
    assert!(recorded.history.violations(&name).unwrap().is_empty(), "the disk may");
    let said = said(&recorded, &recorded.units("garbage"), &name);
    assert_eq!(said, [(Clause::Foreign, 0)]);
    let failures = recorded.explore("garbage", settings(10)).failures;
    assert!(!failures.is_empty() && failures.iter().all(|f| f.findings[0].unit == 0));
    // With one over it that need not be whole, it cannot be told whose sector it is.
    let over = [(0, 2, true, Then::Volatile), (0, 3, false, Then::Volatile)];
    let over = self::recorded(512, &over);
    let name = with_garbage(&over, "garbage", block(&over, 0, 3));
    assert_eq!(self::said(&over, &over.units("garbage"), &name), []);
}

/// Every legal and illegal place, judged by both: they never differ.
#[test]
fn both_judges_say_the_same_of_garbage_anywhere() {
    let recorded = usual(512);
    let mut found = 0;
    for profile in ["garbage", "req4k+garbage", "req8k+garbage", "lb512"] {
        let units = recorded.units(profile);
        for after in recorded.history.points(false).into_iter().step_by(3) {
            for sector in (0..5 * 16).step_by(13) {
                let block = block(&recorded, 0, sector);
                let name: Parsed = format!("{profile}/p{after}:none;g{block}=5").parse().unwrap();
                let name = StateName::from(&name);
                let legal = recorded.history.violations(&name).unwrap().is_empty();
                let said = said(&recorded, &units, &name);
                assert_eq!(said.iter().any(|(c, _)| *c == Clause::Foreign), !legal, "{name}");
                found += usize::from(!legal);
            }
        }
    }
    assert!(found > 0);
}

//! Workloads and what they leave, on files of this machine.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::{Host, target, workload};
use tornblk_agent::channel::{Command, Found, MarkText, Outcome, Workload, Written};

fn written(outcome: Outcome) -> Written {
    match outcome {
        Outcome::Ok { value } => serde_json::from_value(value).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The generation each unit must hold when nothing is lost.
fn last_generations(marks: &[(u64, MarkText)]) -> HashMap<(u32, u64), u32> {
    let mut last = HashMap::new();
    for (_, mark) in marks {
        if let MarkText::Done { file, unit, r#gen, result } = mark {
            assert_eq!(*result, 4096);
            last.insert((*file, *unit), *r#gen);
        }
    }
    last
}

fn assert_whole(host: &mut Host, workload: &Workload, last: &HashMap<(u32, u64), u32>) {
    let found = host.readback(workload);
    let units: u32 = workload.files.iter().map(|t| t.units).sum();
    assert_eq!(found.units.len(), units as usize);
    for unit in found.units {
        let r#gen = last.get(&(unit.file, unit.unit)).copied().unwrap_or(0);
        assert_eq!(unit.runs, [(8, Found::Own { r#gen })], "file {} unit {}", unit.file, unit.unit);
    }
}

#[test]
fn what_was_written_one_by_one_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new();
    let files =
        vec![target(1, &dir.path().join("a"), 20, 3, 1), target(2, &dir.path().join("b"), 5, 1, 1)];
    let workload = workload(files, 200);
    let w = written(host.run(Command::Workload { workload: workload.clone() }));
    assert_eq!((w.whole, w.short, w.failed, w.synced), (200, 0, 0, 20));
    let last = last_generations(&host.marks);
    assert_whole(&mut host, &workload, &last);
}

#[test]
fn what_was_written_through_a_ring_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new();
    let files = vec![target(1, &dir.path().join("a"), 100, 2, 32)];
    let workload = workload(files, 500);
    let outcome = host.run(Command::Workload { workload: workload.clone() });
    if let Outcome::Unsupported { message } = outcome {
        println!("skipped: {message}");
        return;
    }
    assert_eq!(written(outcome).whole, 500);
    let last = last_generations(&host.marks);
    assert_whole(&mut host, &workload, &last);
}

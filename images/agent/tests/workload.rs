//! Workloads and what they leave, on files of this machine.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{BUFFERED, Host, target, workload};
use tornblk_agent::channel::{
    Command, Found, MarkText, Outcome, Prepare, Target, Workload, WriteFlags, Written,
};
use tornblk_agent::payload::{self, Read, Stamp};
use tornblk_agent::planted::{FLAGS, Planted, Protocol, fill_slot, slot_of};

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
            assert!([4096, 16384].contains(result), "{result}");
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

#[test]
fn an_intent_is_recorded_before_any_byte_of_its_write_is_in_the_file() {
    for depth in [1, 8] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut host = Host::new();
        let workload = workload(vec![target(1, &path, 24, 2, depth)], 120);
        let mut checked = 0;
        let outcome =
            host.run_watching(Command::Workload { workload: workload.clone() }, &mut |marks| {
                // Were it not waited for, the write would be there long since.
                std::thread::sleep(std::time::Duration::from_millis(3));
                for mark in marks {
                    let MarkText::Intent { unit, r#gen, offset, len, .. } = mark else { continue };
                    let mut bytes = vec![0; *len as usize];
                    let file = std::fs::File::open(&path).unwrap();
                    file.read_exact_at(&mut bytes, *offset).unwrap();
                    for (i, sector) in bytes.chunks_exact(512).enumerate() {
                        let Read::Stamped(stamp) = payload::read(sector) else {
                            panic!("sector {i} of unit {unit} is not stamped")
                        };
                        assert!(stamp.generation < *r#gen, "unit {unit} has {stamp:?} already");
                    }
                    checked += 1;
                }
            });
        if let Outcome::Unsupported { message } = outcome {
            println!("skipped depth {depth}: {message}");
            continue;
        }
        assert_eq!((checked, written(outcome).whole), (120, 120));
    }
}

#[test]
fn marks_come_in_the_order_of_what_they_tell() {
    for depth in [1, 16] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::new();
        let workload = workload(vec![target(1, &dir.path().join("a"), 64, 2, depth)], 400);
        let outcome = host.run(Command::Workload { workload });
        if let Outcome::Unsupported { message } = outcome {
            println!("skipped depth {depth}: {message}");
            continue;
        }
        let synced = written(outcome).synced;
        // With several in flight one sync may follow two of them.
        assert!(if depth == 1 { synced == 40 } else { (1..=40).contains(&synced) }, "{synced}");
        let phase = |i: usize| match &host.marks[i].1 {
            MarkText::Phase { name } => name.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (phase(0), phase(host.marks.len() - 1)),
            ("load-done".into(), "writes-done".into())
        );
        // Batches count up from 1.
        let numbers: Vec<u64> = host.marks.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers[0], 1);
        assert!(numbers.is_sorted() && numbers.windows(2).all(|w| w[1] - w[0] <= 1));

        let mut in_flight: HashMap<u64, u32> = HashMap::new();
        let mut last: HashMap<u64, u32> = HashMap::new();
        let mut most = [0; 2];
        for (number, mark) in &host.marks {
            match mark {
                MarkText::Intent { unit, r#gen, offset, len, .. } => {
                    assert_eq!(
                        in_flight.insert(*unit, *r#gen),
                        None,
                        "unit {unit} twice at a time"
                    );
                    assert_eq!(*r#gen, last.insert(*unit, *r#gen).unwrap_or(0) + 1);
                    assert_eq!((*offset, *len), (unit * 4096, 4096));
                    let thread = (unit % 2) as usize;
                    let now = in_flight.keys().filter(|u| **u % 2 == unit % 2).count();
                    most[thread] = most[thread].max(now);
                }
                MarkText::Done { unit, r#gen, .. } => {
                    assert_eq!(in_flight.remove(unit), Some(*r#gen), "done before its intent");
                }
                MarkText::Synced { since, result, .. } => {
                    assert_eq!(*result, 0);
                    // What was acknowledged when it began came in an earlier message.
                    assert!((1..*number).contains(since), "{since} in {number}");
                }
                MarkText::Phase { .. } | MarkText::Said { .. } => {}
            }
        }
        assert!(in_flight.is_empty());
        assert_eq!(most, [depth as usize; 2], "each thread has as many in flight as it may");
    }
}

#[test]
fn a_sync_covers_the_write_that_it_follows() {
    for depth in [1, 16] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::new();
        let mut workload = workload(vec![target(1, &dir.path().join("a"), 64, 1, depth)], 100);
        workload.sync_every = 7;
        if let Outcome::Unsupported { message } = host.run(Command::Workload { workload }) {
            println!("skipped depth {depth}: {message}");
            continue;
        }
        let intents: Vec<(u64, u32)> = host
            .marks
            .iter()
            .filter_map(|(_, m)| match m {
                MarkText::Intent { unit, r#gen, .. } => Some((*unit, *r#gen)),
                _ => None,
            })
            .collect();
        let done_in = |of: (u64, u32)| {
            let is = |m: &MarkText| matches!(m, MarkText::Done { unit, r#gen, .. } if (*unit, *r#gen) == of);
            host.marks.iter().find(|(_, m)| is(m)).unwrap().0
        };
        let mut sinces: Vec<u64> = host
            .marks
            .iter()
            .filter_map(|(_, m)| match m {
                MarkText::Synced { since, .. } => Some(*since),
                _ => None,
            })
            .collect();
        sinces.sort_unstable();
        // With several in flight one sync may follow two of them, but each is followed by one.
        assert!(!sinces.is_empty() && sinces.len() <= 14);
        for nth in (7..=100).step_by(7) {
            let done = done_in(intents[nth - 1]);
            assert!(sinces.iter().any(|since| *since >= done), "write {nth}, done in {done}");
        }
        if depth == 1 {
            assert_eq!(sinces.len(), 14);
        }
    }
}

#[test]
fn two_runs_with_one_seed_ask_for_the_same_writes() {
    let run = |seed, depth| {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::new();
        let mut workload = workload(vec![target(1, &dir.path().join("a"), 60, 3, depth)], 300);
        workload.seed = seed;
        let outcome = host.run(Command::Workload { workload });
        if let Outcome::Unsupported { message } = outcome {
            println!("skipped depth {depth}: {message}");
            return None;
        }
        // In order a thread, which owns every third unit.
        let mut asked: Vec<Vec<_>> = vec![vec![]; 3];
        for (_, mark) in &host.marks {
            if let MarkText::Intent { unit, r#gen, flags, .. } = mark {
                asked[(unit % 3) as usize].push((*unit, *r#gen, *flags));
            }
        }
        Some(asked)
    };
    for depth in [1, 8] {
        assert_eq!(run(1, depth), run(1, depth));
    }
    assert_ne!(run(1, 1), run(2, 1));
}

#[test]
fn a_torn_a_stale_a_misplaced_and_a_foreign_unit_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut host = Host::new();
    let workload = workload(vec![target(3, &path, 8, 1, 1)], 0);
    written(host.run(Command::Workload { workload: workload.clone() }));
    let put = |unit: u64, from: usize, to: usize, stamp: Stamp| {
        let mut bytes = vec![0; 4096];
        payload::fill(&mut bytes, stamp);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&bytes[from..to], unit * 4096 + from as u64).unwrap();
    };
    let stamp =
        |unit, generation| Stamp { nonce: 77, unit, file: 3, generation, sector: 0, sectors: 0 };
    put(0, 0, 4096, stamp(0, 1));
    put(1, 0, 1536, stamp(1, 1));
    put(2, 1024, 2048, stamp(5, 2));
    put(3, 0, 4096, Stamp { nonce: 78, ..stamp(3, 1) });
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 4 * 4096 + 100).unwrap();
    file.write_all_at(&[0; 512], 4 * 4096 + 512).unwrap();
    file.write_all_at(&[9; 512], 4 * 4096 + 1024).unwrap();
    file.set_len(6 * 4096 + 512).unwrap();

    let own = |r#gen| Found::Own { r#gen };
    let expected = [
        vec![(8, own(1))],
        vec![(3, own(1)), (5, own(0))],
        vec![
            (2, own(0)),
            (1, Found::Misplaced { file: 3, unit: 5, sector: 2, r#gen: 2 }),
            (1, Found::Misplaced { file: 3, unit: 5, sector: 3, r#gen: 2 }),
            (4, own(0)),
        ],
        vec![(8, Found::Foreign { nonce: 78 })],
        vec![(1, Found::Corrupt {}), (1, Found::Zero {}), (1, Found::Unknown {}), (5, own(0))],
        vec![(8, own(0))],
        vec![(1, own(0)), (7, Found::Missing {})],
        vec![(8, Found::Missing {})],
    ];
    for (unit, expected) in host.readback(&workload).units.iter().zip(expected) {
        assert_eq!(unit.runs, expected, "unit {}", unit.unit);
    }
    std::fs::remove_file(&path).unwrap();
    for unit in host.readback(&workload).units {
        assert_eq!(unit.runs, [(8, Found::Missing {})]);
    }
    std::fs::create_dir(&path).unwrap();
    for unit in host.readback(&workload).units {
        assert_eq!(unit.runs, [(8, Found::Error { errno: libc::EISDIR })]);
    }
}

#[test]
fn ranges_are_prepared_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut host = Host::new();
    // Three ranges of one file, and what was there before is gone.
    std::fs::write(&path, vec![1; 20 * 4096]).unwrap();
    let part = |file, prepare| Target {
        prepare,
        offset: u64::from(file - 1) * 4 * 4096,
        ..target(file, &path, 4, 1, 1)
    };
    let files =
        vec![part(1, Prepare::Written), part(2, Prepare::Unwritten), part(3, Prepare::Hole)];
    let mut workload = workload(files, 0);
    for load in [true, false] {
        workload.load = load;
        written(host.run(Command::Workload { workload: workload.clone() }));
        for unit in host.readback(&workload).units {
            let loaded = load && unit.file == 1;
            let expected = if loaded { Found::Own { r#gen: 0 } } else { Found::Zero {} };
            assert_eq!(unit.runs, [(8, expected)], "file {} unit {}", unit.file, unit.unit);
        }
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 20 * 4096, "the rest of it stays");
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks <= 16 * 4096, "the hole has {blocks} bytes allocated");
    workload.writes = 60;
    written(host.run(Command::Workload { workload: workload.clone() }));
    let last = last_generations(&host.marks);
    for unit in host.readback(&workload).units {
        assert_eq!(unit.runs, [(8, Found::Own { r#gen: last[&(unit.file, unit.unit)] })]);
    }
}

#[test]
fn a_reflinked_file_keeps_its_clone_or_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut host = Host::new();
    let shared = Target { prepare: Prepare::Reflinked, ..target(1, &path, 4, 1, 1) };
    let mut workload = workload(vec![shared], 40);
    match host.run(Command::Workload { workload: workload.clone() }) {
        Outcome::Unsupported { message } => assert!(message.contains("FICLONERANGE"), "{message}"),
        Outcome::Failed { message, .. } => panic!("{message}"),
        Outcome::Ok { .. } => {
            workload.files[0].path.push_str(".clone");
            for unit in host.readback(&workload).units {
                assert_eq!(unit.runs, [(8, Found::Own { r#gen: 0 })], "the clone changed");
            }
        }
    }
}

/// A "disk" that takes writes and refuses to sync them: a character device.
fn null(file: u32, depth: u32) -> Target {
    Target { prepare: Prepare::AsIs, ..target(file, Path::new("/dev/null"), 16, 1, depth) }
}

#[test]
fn a_forgotten_sync_is_told_as_one_that_was_done() {
    let mut host = Host::new();
    let mut workload = workload(vec![null(1, 1)], 50);
    workload.load = false;
    let w = written(host.run(Command::Workload { workload: workload.clone() }));
    assert_eq!((w.synced, w.sync_failed), (0, 5), "/dev/null cannot be synced");
    assert!(w.first_error.unwrap().contains("fdatasync of /dev/null: EINVAL"));
    workload.skip_sync = true;
    let w = written(host.run(Command::Workload { workload }));
    assert_eq!((w.synced, w.sync_failed), (5, 0), "nobody asked it");
}

#[test]
fn a_workload_whose_disk_is_gone_ends_and_says_so() {
    for depth in [1, 4] {
        let mut host = Host::new();
        let mut full = null(1, depth);
        full.path = "/dev/full".into();
        full.flags = vec![BUFFERED];
        let mut workload = workload(vec![full], 1000);
        workload.load = false;
        match host.run(Command::Workload { workload }) {
            Outcome::Failed { message, errno } => {
                assert_eq!(errno, Some(libc::ENOSPC));
                assert!(message.contains("/dev/full") && message.contains("ENOSPC"), "{message}");
            }
            Outcome::Unsupported { message } => println!("skipped depth {depth}: {message}"),
            Outcome::Ok { value } => panic!("{value}"),
        }
        let done = host.marks.iter().filter(|(_, m)| matches!(m, MarkText::Done { .. })).count();
        let asked = host.marks.iter().filter(|(_, m)| matches!(m, MarkText::Intent { .. })).count();
        assert_eq!(done, asked, "every write that was asked for has its result");
        // Nothing is stuck: the next command runs.
        host.ok(Command::Sync {});
    }
}

#[test]
fn what_the_file_system_refuses_is_unsupported_with_its_own_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut host = Host::new();
    let mut workload = workload(vec![target(1, &path, 8, 1, 1)], 10);
    workload.files[0].flags = vec![WriteFlags { atomic: true, ..BUFFERED }];
    match host.run(Command::Workload { workload }) {
        Outcome::Unsupported { message } => {
            assert!(message.contains("RWF_ATOMIC | buffered"), "{message}");
            assert!(message.contains("EOPNOTSUPP") || message.contains("EINVAL"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(host.marks, []);
}

#[test]
fn workloads_that_cannot_be_meant_are_refused() {
    let ok = || workload(vec![target(1, Path::new("/x"), 8, 2, 1)], 10);
    type Change = fn(&mut Workload);
    let cases: [(&str, Change); 9] = [
        ("no targets", |w| w.files.clear()),
        ("power of two", |w| w.files[0].unit = 5000),
        ("power of two", |w| w.files[0].unit = 256),
        ("multiple", |w| w.files[0].offset = 512),
        ("threads", |w| w.files[0].threads = 9),
        ("threads", |w| w.files[0].threads = 0),
        ("depth", |w| w.files[0].depth = 0),
        ("flags", |w| w.files[0].flags.clear()),
        ("too large", |w| w.files[0].offset = 1 << 63),
    ];
    let mut host = Host::new();
    for (text, change) in cases {
        let mut workload = ok();
        change(&mut workload);
        match host.run(Command::Workload { workload }) {
            Outcome::Failed { message, .. } => assert!(message.contains(text), "{message}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let mut twice = ok();
    twice.files.push(Target { file: 2, offset: 4096, ..twice.files[0].clone() });
    let Outcome::Failed { message, .. } = host.run(Command::Workload { workload: twice.clone() })
    else {
        panic!("overlapping targets were taken")
    };
    assert!(message.contains("overlap"), "{message}");
    twice.files[1] = Target { path: "/y".into(), ..twice.files[0].clone() };
    let Outcome::Failed { message, .. } = host.run(Command::Readback { workload: twice }) else {
        panic!("two targets with one number were taken")
    };
    assert!(message.contains("the number 1"), "{message}");
}

/// Commits by every protocol, right and wrong: without a crash all of them last.
#[test]
fn planted_protocols_commit_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for (n, protocol) in Protocol::ALL.into_iter().enumerate() {
        for bug in [false, true] {
            let path = dir.path().join(format!("{n}-{bug}"));
            let planted = Target {
                unit: 16384,
                flags: vec![FLAGS],
                planted: Some(Planted { protocol, bug }),
                ..target(1, &path, 6, 2, 1)
            };
            let workload = workload(vec![planted.clone()], 30);
            let mut host = Host::new();
            match host.run(Command::Workload { workload: workload.clone() }) {
                Outcome::Unsupported { message } => println!("skipped: {message}"),
                outcome => {
                    assert_eq!(written(outcome).whole, 30);
                    let last = last_generations(&host.marks);
                    let done = |m: &&(u64, MarkText)| matches!(m.1, MarkText::Done { .. });
                    assert_eq!(host.marks.iter().filter(done).count(), 30);
                    assert_eq!(std::fs::metadata(&path).unwrap().len(), planted.end());
                    for unit in host.readback(&workload).units {
                        let r#gen = last.get(&(1, unit.unit)).copied().unwrap_or(0);
                        assert_eq!(unit.runs, [(32, Found::Own { r#gen })], "{protocol:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_torn_page_is_read_back_as_its_protocol_recovers_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let journal = Planted { protocol: Protocol::Journal, bug: false };
    let target = Target {
        unit: 16384,
        flags: vec![FLAGS],
        planted: Some(journal),
        ..target(1, &path, 3, 1, 1)
    };
    let mut workload = workload(vec![target.clone()], 0);
    let stamp =
        |generation| Stamp { nonce: 77, unit: 1, file: 1, generation, sector: 0, sectors: 0 };
    let mut bytes = vec![0; target.end() as usize];
    let slot = slot_of(&target, 1).unwrap();
    fill_slot(&mut bytes[slot.start as usize..slot.end as usize], stamp(4));
    payload::fill(&mut bytes[16384..32768], stamp(3));
    payload::fill(&mut bytes[16384..16384 + 4096], stamp(4));
    std::fs::write(&path, &bytes).unwrap();
    workload.files[0].prepare = Prepare::AsIs;
    let mut host = Host::new();
    let runs = |host: &mut Host| host.readback(&workload).units[1].runs.clone();
    assert_eq!(runs(&mut host), [(32, Found::Own { r#gen: 4 })]);
    bytes[slot.start as usize + 5000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let torn = [(8, Found::Own { r#gen: 4 }), (24, Found::Own { r#gen: 3 })];
    assert_eq!(runs(&mut host), torn, "its record is torn too");
}

#[test]
fn what_cannot_be_committed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let planted = Some(Planted { protocol: Protocol::Page, bug: true });
    let good = Target { planted, flags: vec![FLAGS], ..target(1, &dir.path().join("a"), 4, 1, 1) };
    let mut host = Host::new();
    for (target, says) in [
        (Target { planted: None, ..good.clone() }, "go with one"),
        (Target { flags: vec![BUFFERED], ..good.clone() }, "go with one"),
        (Target { depth: 2, ..good.clone() }, "one by one"),
        (Target { prepare: Prepare::Hole, ..good.clone() }, "as-is or written"),
    ] {
        let outcome = host.run(Command::Workload { workload: workload(vec![target], 5) });
        let Outcome::Failed { message, .. } = outcome else { panic!("{outcome:?}") };
        assert!(message.contains(says), "{message}");
    }
}

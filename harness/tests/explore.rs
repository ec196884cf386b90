//! `tornblk explore` as a user meets it, on recordings that are made here: no guest, no device.

#![allow(clippy::unwrap_used)]

#[path = "../src/explore/testing.rs"]
mod testing;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use testing::{Recorded, TABLE, TABLE_PAGES, list};
use tornblk::explore::session::Session;
use tornblk::explore::{Checker, Snapshot, Subject};
use tornblk::run::{GuestArgs, Volume};
use tornblk_agent::channel::{FileMap, Workload};

/// The unit that is acknowledged without a flush.
const FORGOTTEN: u64 = 3;

fn recorded(n: u64, forgotten: &[u64]) -> Recorded {
    Recorded::units(n, forgotten, |workload| subject(workload).marks())
}

fn subject(workload: &Workload) -> Subject {
    Subject {
        suite: "made-here".into(),
        lane: "raw".into(),
        cut: 1,
        seed: 1,
        workload: workload.clone(),
        volume: Volume {
            fstype: String::new(),
            mount_options: String::new(),
            queues: 1,
            logical_block_size: 512,
            profile: "req16k".into(),
            front_end: Default::default(),
            shows_limits: false,
            on_wire: Default::default(),
        },
        guest: GuestArgs::default(),
        image: None,
        checker: None,
        environment: None,
        disks: Vec::new(),
        pages: None,
    }
}

fn command(recorded: &Recorded, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tornblk"));
    command
        .args(arguments)
        .current_dir(recorded.dir.path())
        .env_remove("RUST_LOG")
        .env("LANG", "C")
        .env_remove("LC_ALL");
    command
}

fn run(recorded: &Recorded, arguments: &[&str], status: i32) -> String {
    let output = command(recorded, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{text}\n{log}");
    text
}

/// One sentence, exit code 2, and nothing new in the folder.
fn refused(recorded: &Recorded, arguments: &[&str], says: &str) {
    let before = list(recorded.dir.path());
    let output: Output = command(recorded, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    let last = text.lines().rfind(|line| !line.starts_with("next: ")).unwrap_or_default();
    assert!(last.starts_with("tornblk: ") && last.contains(says), "{arguments:?}: {text}");
    assert_eq!(list(recorded.dir.path()), before, "{arguments:?}");
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_forgotten_flush_is_found_explained_and_shown_again_from_one_file() {
    let recorded = recorded(6, &[FORGOTTEN]);
    let explore = ["explore", "disk.recording", "--out", "out", "--json", "r.json"];
    let text = run(&recorded, &[&explore[..], &["--junit", "r.xml"]].concat(), 1);
    for part in [
        "VIOLATED",
        "lost: /dev/vda unit 3 (bytes 114688..131072), generation 1",
        "call    pwritev2(len 16384, offset 114688, RWF_DSYNC, O_DIRECT)",
        "again:  tornblk repro ",
        "state   req16k/p",
        "passes  req16k/p",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let report = json(&recorded.dir.path().join("r.json"));
    assert_eq!(report["exit"], 1);
    assert_eq!(report["profiles"][0]["verdict"], "violated");
    assert_eq!(report["failures"][0]["failure"]["findings"][0]["unit"], FORGOTTEN);
    let junit = std::fs::read_to_string(recorded.dir.path().join("r.xml")).unwrap();
    assert!(junit.contains(r#"failures="1""#) && junit.contains("lost: /dev/vda"), "{junit}");
    let bundle = report["failures"][0]["bundle"].as_str().unwrap().to_owned();
    assert_eq!(bundle, "failure-001.tornblk");

    // Elsewhere there is nothing but this file.
    let elsewhere = Recorded::some(512).end();
    for file in ["base.img", "disk.recording"] {
        std::fs::remove_file(elsewhere.dir.path().join(file)).unwrap();
    }
    let from = recorded.dir.path().join("out").join(bundle);
    std::fs::copy(from, elsewhere.dir.path().join("f.tornblk")).unwrap();
    let text = run(&elsewhere, &["repro", "f.tornblk"], 1);
    assert!(text.contains("lost: /dev/vda unit 3") && text.contains("1 now, 1 then"), "{text}");
    assert_eq!(list(elsewhere.dir.path()), ["f.tornblk"]);

    let whole = std::fs::read(elsewhere.dir.path().join("f.tornblk")).unwrap();
    std::fs::write(elsewhere.dir.path().join("cut.tornblk"), &whole[..whole.len() - 9]).unwrap();
    refused(&elsewhere, &["repro", "cut.tornblk"], "was cut short");
    let mut other = whole;
    other[8] = 99;
    std::fs::write(elsewhere.dir.path().join("new.tornblk"), &other).unwrap();
    refused(&elsewhere, &["repro", "new.tornblk"], "is a bundle of format 99");
    refused(&elsewhere, &["repro", "none.tornblk"], "cannot open the bundle");
}

/// A file of a database lies there, and a program's checker would judge it in a guest.
fn table(file: &str) -> Recorded {
    let places = vec![(0, TABLE, TABLE_PAGES * 16384)];
    let map = FileMap { files: vec![(file.to_owned(), places)], more: false };
    let checker = Checker {
        name: "./check".into(),
        argv: vec!["/x/check".into()],
        env: Vec::new(),
        timeout_ms: 1000,
        corrupt_status: None,
    };
    let mut of = subject(&testing::workload(1));
    of.volume.fstype = "ext4".into();
    of.checker = Some(checker);
    Recorded::table(3, &[of.marks(), Snapshot { map }.marks()].concat())
}

#[test]
fn pages_of_a_database_are_judged_without_a_guest_and_shown_again_from_one_file() {
    let recorded = table("data/t.ibd");
    let explore = ["explore", "disk.recording", "--pages", "innodb"];
    let text = run(&recorded, &explore, 0);
    assert!(text.contains("req16k: no finding in ") && text.contains("pages: 3 pages of 1 file"));
    let lb512 = [&explore[..], &["--profile", "lb512", "--json", "r.json"]].concat();
    let text = run(&recorded, &[&lb512[..], &["--html", "r.html", "--out", "out"]].concat(), 1);
    for part in [
        "lb512: 3 different failures in ",
        "torn: data/t.ibd unit 0 (bytes 0..16384)",
        "its checksum is ",
        "again:  tornblk repro ",
        "pages: 3 pages of 1 file judged (innodb, 16k)",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let report = json(&recorded.dir.path().join("r.json"));
    assert_eq!((&report["judge"], &report["pages"]["judged"]), (&"in-place".into(), &3.into()));

    // What it goes on with are pages, too, said or not.
    let resume = ["explore", "disk.recording", "--out", "out", "--resume"];
    run(&recorded, &resume, 1);
    run(&recorded, &[&resume[..], &["--pages", "innodb"]].concat(), 1);
    let other = [&resume[..], &["--pages", "innodb", "--page-size", "8k"]].concat();
    refused(&recorded, &other, "was explored with --pages innodb (pages of 16k, files *.ibd)");
    let guests = [&explore[..], &["--nested", "1"]].concat();
    refused(&recorded, &guests, "--nested: pages are judged as they are");
    let postgres = ["explore", "disk.recording", "--pages", "postgres"];
    refused(&recorded, &postgres, "there are, for example: data/t.ibd (say which with --files)");
    let any = [&postgres[..], &["--files", "*"]].concat();
    refused(&recorded, &any, "of 6 pages that were written in");

    let elsewhere = Recorded::some(512).end();
    for file in ["base.img", "disk.recording"] {
        std::fs::remove_file(elsewhere.dir.path().join(file)).unwrap();
    }
    for number in 1..=3 {
        let from = recorded.dir.path().join(format!("out/failure-00{number}.tornblk"));
        std::fs::copy(from, elsewhere.dir.path().join("f.tornblk")).unwrap();
        let text = run(&elsewhere, &["repro", "f.tornblk"], 1);
        assert!(
            text.contains("torn: data/t.ibd unit ") && text.contains("1 now, 1 then"),
            "{text}"
        );
    }
    let picture = run(&elsewhere, &["report", "picture", "f.tornblk"], 0);
    assert!(picture.contains("data/t.ibd"), "{picture}");
}

/// Not so many states that fail, whatever is to blame.
#[test]
fn as_many_different_failures_are_reported_as_are_asked_for() {
    let recorded = recorded(8, &[1, FORGOTTEN, 5, 6]);
    let explore = ["explore", "disk.recording", "--strategy", "prefix,one-lost,tear,random=200"];
    for (limit, is_all) in [("4", true), ("2", false)] {
        let out = ["--out", limit, "--json", "r.json", "--failures", limit];
        let text = run(&recorded, &[&explore[..], &out].concat(), 1);
        let report = json(&recorded.dir.path().join("r.json"));
        let failures = report["failures"].as_array().unwrap();
        let units = failures.iter().map(|f| f["failure"]["findings"][0]["unit"].as_u64().unwrap());
        let units: std::collections::BTreeSet<u64> = units.collect();
        assert_eq!((failures.len().to_string().as_str(), units.len()), (limit, failures.len()));
        assert_eq!(text.contains(&format!(": {limit} different failures")), is_all, "{text}");
        assert_eq!(text.contains("at least 2 different failures"), !is_all, "{text}");
    }
}

#[test]
fn data_that_does_not_fit_its_checksum_is_damage_and_no_finding() {
    let recorded = recorded(6, &[]);
    let path = recorded.path();
    let mut bytes = std::fs::read(&path).unwrap();
    // In the last unit that was written.
    let at = bytes.windows(8).rposition(|w| w == tornblk_agent::payload::MAGIC).unwrap();
    bytes[at + 100] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    refused(&recorded, &["explore", "disk.recording", "--out", "out"], "fails its checksum");
}

#[test]
fn the_correct_twin_has_no_finding_and_leaves_nothing() {
    let recorded = recorded(6, &[]);
    let text = run(&recorded, &["explore", "disk.recording", "--profile", "lb512,req16k"], 0);
    assert!(text.contains("req16k: no finding in ") && text.contains("| lb512"), "{text}");
    assert!(!text.contains("safe") && !text.contains("passed"), "{text}");
    assert!(text.contains("each of the "), "coverage is said: {text}");
    assert_eq!(list(recorded.dir.path()), ["base.img", "disk.recording"]);
    // A disk that lies is noticed in the same recording.
    let lies = ["explore", "disk.recording", "--fault", "lose-write", "--strategy", "prefix"];
    let text = run(&recorded, &[&lies[..], &["--out", "out"]].concat(), 1);
    assert!(text.contains("lost: /dev/vda unit "), "{text}");
}

/// Where a flush was ignored, the disk holds what was legal a moment earlier: before that write was
/// acknowledged. It is judged at both points, whichever comes first.
#[test]
fn an_ignored_flush_is_found_although_its_content_was_legal_before() {
    let recorded = recorded(4, &[]);
    let explore = ["explore", "disk.recording", "--strategy", "prefix"];
    run(&recorded, &explore, 0);
    let fault = ["--fault", "ignore-flush,nth=4", "--out", "out", "--json", "r.json"];
    let text = run(&recorded, &[&explore[..], &fault].concat(), 1);
    assert!(text.contains("lost: /dev/vda unit 3"), "{text}");
    let report = json(&recorded.dir.path().join("r.json"));
    let failure = &report["failures"][0]["failure"];
    let state = failure["state"].as_str().unwrap().to_owned();
    assert!(failure["explanation"]["faults"][0].as_str().unwrap().contains("ignore-flush"));

    // The same bytes, among those that the disk may leave behind at an earlier point.
    let names = run(&recorded, &[&explore[..], &["--list"]].concat(), 0);
    std::fs::write(recorded.dir.path().join("names"), format!("{names}{state}\n")).unwrap();
    let export = ["recording", "export", "disk.recording", "--states-from", "names", "--hash"];
    let hashes = run(&recorded, &export, 0);
    let hashes: Vec<(&str, &str)> =
        hashes.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let point = |name: &str| -> u64 {
        let (_, rest) = name.split_once("/p").unwrap();
        rest.split_once(':').unwrap().0.parse().unwrap()
    };
    let (bad, of) = hashes.last().unwrap();
    assert_eq!(*bad, state);
    let earlier = |(name, hash): &&(&str, &str)| hash == of && point(name) < point(bad);
    let legal: Vec<_> = hashes.iter().filter(earlier).collect();
    assert!(!legal.is_empty(), "{state}\n{hashes:?}");
    run(&recorded, &["repro", "out/failure-001.tornblk"], 1);
}

#[test]
fn names_are_listed_whatever_reads_them() {
    let recorded = recorded(4, &[]);
    let names = run(&recorded, &["explore", "disk.recording", "--list"], 0);
    let all: Vec<&str> = names.lines().collect();
    assert!(all.len() > 20 && all.iter().all(|n| n.starts_with("req16k/p")), "{names}");
    let mut unique = all.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), all.len());
    // Each name in one shard.
    let mut shards = Vec::new();
    for k in 1..=3 {
        let shard = format!("{k}/3");
        let part = run(&recorded, &["explore", "disk.recording", "--list", "--shard", &shard], 0);
        shards.extend(part.lines().map(str::to_owned));
    }
    shards.sort_unstable();
    assert_eq!(shards, unique);
    // A recording that nobody can judge, and whose base image is gone.
    let other = Recorded::some(512).end();
    std::fs::remove_file(other.base()).unwrap();
    assert!(run(&other, &["explore", "disk.recording", "--list"], 0).lines().count() > 3);
    // A reader that goes away is no error.
    let mut child = command(&recorded, &["explore", "disk.recording", "--list", "--strategy"])
        .args(["random=99999", "--every-event"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}

#[test]
fn shards_put_together_are_the_whole() {
    let recorded = recorded(6, &[FORGOTTEN]);
    let explore = ["explore", "disk.recording", "--profile", "lb512,req16k", "--strategy"];
    let explore = [&explore[..], &["prefix,one-lost,tear,random=20", "--out"]].concat();
    run(&recorded, &[&explore[..], &["whole", "--json", "whole.json"]].concat(), 1);
    let dirs = ["s1", "s2", "s3"];
    for (k, dir) in dirs.iter().enumerate() {
        let shard = format!("{}/3", k + 1);
        let arguments = [&explore[..], &[dir, "--shard", &shard]].concat();
        let status = command(&recorded, &arguments).output().unwrap().status.code();
        assert!(matches!(status, Some(0 | 1)), "{status:?}");
    }
    let merge = ["report", "merge", "s1", "s2", "s3", "--out", "all", "--json", "all.json"];
    let text = run(&recorded, &merge, 1);
    assert!(text.contains("lost: /dev/vda unit 3"), "{text}");
    let dir = recorded.dir.path();
    let (whole, all) = (json(&dir.join("whole.json")), json(&dir.join("all.json")));
    for n in 0..2 {
        for key in ["states", "unique", "points"] {
            let count = |r: &Value| r["profiles"][n]["counts"][key].clone();
            assert_eq!(count(&whole), count(&all), "profile {n}, {key}");
        }
        assert_eq!(whole["profiles"][n]["complete"], all["profiles"][n]["complete"]);
        let cuts = |r: &Value| {
            let c = &r["profiles"][n]["coverage"];
            (c["cuts"].clone(), c["built"].as_u64().unwrap() + c["equal"].as_u64().unwrap())
        };
        assert_eq!(cuts(&whole), cuts(&all));
    }
    // The very contents, not only their number.
    let keys = |dirs: &[&str]| {
        let mut keys = Vec::new();
        for name in dirs {
            keys.extend(
                Session::load_judged(&dir.join(name)).unwrap().into_iter().map(|c| c.judged.key),
            );
        }
        keys.sort();
        keys.dedup();
        keys
    };
    assert_eq!(keys(&["whole"]), keys(&dirs));
    assert_eq!(
        whole["failures"].as_array().unwrap().len(),
        all["failures"].as_array().unwrap().len()
    );
    // What was copied shows it again.
    run(&recorded, &["repro", "all/failure-001.tornblk"], 1);

    // Without a shard nothing is complete; a failure stays one.
    let text = run(&recorded, &["report", "merge", "s1", "s3", "--json", "some.json"], 1);
    let some = json(&dir.join("some.json"));
    assert_eq!(some["missing"], serde_json::json!(["2/3"]), "{text}");
    assert!(text.contains("shard 2/3 is missing: this is not all"), "{text}");
    refused(&recorded, &["report", "merge", "all"], "name the folders of its shards");
    refused(&recorded, &["repro", "all"], "give one, such as all/failure-001.tornblk");
    refused(&recorded, &["report", "merge", "s1", "nosuch"], "there is no folder nosuch");
}

#[test]
fn a_missing_shard_is_inconclusive_and_strangers_are_not_merged() {
    let recorded = recorded(4, &[]);
    let explore = ["explore", "disk.recording", "--strategy", "prefix,tear", "--out"];
    run(&recorded, &[&explore[..], &["a", "--shard", "1/2"]].concat(), 0);
    let text = run(&recorded, &["report", "merge", "a"], 3);
    assert!(text.contains("shard 2/2 is missing"), "{text}");
    run(&recorded, &[&explore[..], &["b", "--shard", "2/2"]].concat(), 0);
    let text = run(&recorded, &["report", "merge", "a", "b"], 0);
    assert!(text.contains("no finding in "), "{text}");
    run(&recorded, &[&explore[..], &["c", "--shard", "2/2", "--seed", "9"]].concat(), 0);
    refused(&recorded, &["report", "merge", "a", "c"], "--seed: 1, and 9");
    run(&recorded, &[&explore[..], &["d", "--shard", "2/3"]].concat(), 0);
    refused(&recorded, &["report", "merge", "a", "d"], "merge shards of the same number");
    // Nothing is counted twice.
    refused(&recorded, &["report", "merge", "a", "b", "./a"], "a and ./a are one folder");
    run(&recorded, &[&explore[..], &["b2", "--shard", "2/2"]].concat(), 0);
    refused(&recorded, &["report", "merge", "a", "b", "b2"], "b and b2 are both shard 2/2");
    run(&recorded, &[&explore[..], &["whole"]].concat(), 0);
    refused(
        &recorded,
        &["report", "merge", "a", "whole"],
        "whole is the whole, and a a part of it",
    );
    let other = Recorded::some(512).end();
    std::fs::create_dir(other.dir.path().join("x")).unwrap();
    refused(&other, &["report", "merge", "x"], "x holds no exploration");
}

#[test]
fn what_was_broken_off_goes_on_where_it_was() {
    let recorded = recorded(6, &[FORGOTTEN]);
    let explore = ["explore", "disk.recording", "--strategy", "prefix,one-lost,tear", "--out"];
    run(&recorded, &[&explore[..], &["whole"]].concat(), 1);
    let some = [&explore[..], &["part", "--states", "5", "--jobs", "1"]].concat();
    let output = command(&recorded, &some).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("as many states as --states allows"), "{text}");
    assert!(text.contains("go on: tornblk explore disk.recording --out "), "{text}");
    let resume = ["explore", "disk.recording", "--out", "part"];
    refused(&recorded, &resume, "go on with --resume");
    let other = [&resume[..], &["--resume", "--seed", "5"]].concat();
    refused(&recorded, &other, "with --seed 1, and cannot go on with 5");
    let other = [&resume[..], &["--resume", "--shard", "1/2"]].concat();
    refused(&recorded, &other, "holds all of it, not shard 1/2");
    let text = run(&recorded, &[&resume[..], &["--resume"]].concat(), 1);
    assert!(text.contains("lost: /dev/vda unit 3"), "{text}");
    let dir = recorded.dir.path();
    assert_eq!(
        Session::load_judged(&dir.join("whole")).unwrap(),
        Session::load_judged(&dir.join("part")).unwrap()
    );
    let (whole, part) =
        (Session::load(&dir.join("whole")).unwrap(), Session::load(&dir.join("part")).unwrap());
    let counts = |session: &Session| {
        let counts = session.profiles[0].counts;
        (counts.states, counts.unique, counts.points)
    };
    assert_eq!(counts(&whole), counts(&part));
    assert_eq!(whole.failures.len(), part.failures.len());
    // Once more: there is nothing left, and it says the same.
    run(&recorded, &[&resume[..], &["--resume"]].concat(), 1);

    let stranger = Recorded::some(512).end();
    let out = dir.join("part");
    let arguments = ["explore", "disk.recording", "--resume", "--out", out.to_str().unwrap()];
    refused(&stranger, &arguments, "of another recording");
}

#[test]
fn what_cannot_be_explored_is_one_sentence_and_writes_nothing() {
    let plain = Recorded::some(512).end();
    refused(&plain, &["explore", "disk.recording"], "--list");
    refused(&plain, &["explore", "disk.recording"], "tornblk recording export");
    refused(&plain, &["explore", "nosuch"], "cannot open the recording nosuch");
    refused(&plain, &["explore", "."], "--list");
    let recorded = recorded(2, &[]);
    let explore = ["explore", "disk.recording", "--out", "out"];
    for (more, says) in [
        (["--fault", "eio"], "no crash state"),
        (["--fault", "stale-read,nth=2"], "no crash state"),
        (["--modules", "/nonexistent"], "add --kernel"),
        (["--json", "/nonexistent/x.json"], "cannot write /nonexistent/x.json"),
        (["--junit", "."], "cannot write ."),
    ] {
        refused(&recorded, &[&explore[..], &more].concat(), says);
    }
    refused(
        &recorded,
        &["explore", "disk.recording", "--list", "--fault", "eio"],
        "no crash state",
    );
}

/// Starts it, and reads nothing of what it prints.
fn unread(recorded: &Recorded, arguments: &[&str]) -> Output {
    let mut command = command(recorded, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.wait_with_output().unwrap()
}

#[test]
fn what_an_import_was_told_goes_before_what_the_log_carries() {
    let recorded = recorded(2, &[]);
    let log = ["--format", "dm-log-writes", "-o", "log", "--base-out", "start"];
    let export = ["recording", "export", "disk.recording"];
    run(&recorded, &[&export[..], &log].concat(), 0);
    let import = ["recording", "import", "--base", "start", "--atomic-unit-max", "4k", "log"];
    run(&recorded, &[&import[..], &["-o", "again"]].concat(), 0);
    let names = run(&recorded, &["explore", "again", "--list", "--strategy", "prefix"], 0);
    assert!(names.lines().count() > 3 && names.lines().all(|n| n.starts_with("req4k/")), "{names}");
    assert!(run(&recorded, &["explore", "again"], 0).contains("req4k: no finding"));
}

/// Interrupts it as soon as it explores.
fn interrupted(recorded: &Recorded, arguments: &[&str]) -> Output {
    let mut child =
        command(recorded, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("exploring") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended before it began");
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    drop(said);
    output
}

#[test]
fn what_was_interrupted_has_not_passed() {
    let recorded = recorded(6, &[]);
    let explore = ["explore", "disk.recording", "--profile", "req16k,lb512", "--every-event"];
    let more = ["--strategy", "random=1000000000", "--out", "out", "--json", "r.json"];
    let junit = ["--junit", "r.xml"];
    let output = interrupted(&recorded, &[&explore[..], &more, &junit].concat());
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = json(&recorded.dir.path().join("r.json"));
    assert_eq!((&report["exit"], &report["verdict"]), (&130.into(), &"inconclusive".into()));
    for profile in report["profiles"].as_array().unwrap() {
        assert_eq!(profile["verdict"], "inconclusive", "{profile}");
        assert!(profile["why"].is_string(), "{profile}");
    }
    let junit = std::fs::read_to_string(recorded.dir.path().join("r.xml")).unwrap();
    assert!(junit.contains(r#"errors="2""#), "{junit}");
    // Put together later, nobody interrupts anything.
    run(&recorded, &["report", "merge", "out"], 3);
}

#[test]
fn a_reader_that_goes_away_costs_nothing() {
    let recorded = recorded(6, &[FORGOTTEN]);
    let explore = ["explore", "disk.recording", "--strategy", "prefix", "--out", "out"];
    let files = ["--json", "r.json", "--junit", "r.xml"];
    assert_eq!(unread(&recorded, &[&explore[..], &files].concat()).status.code(), Some(1));
    let dir = recorded.dir.path();
    assert_eq!(json(&dir.join("r.json")), json(&dir.join("out/report.json")));
    assert!(std::fs::read_to_string(dir.join("r.xml")).unwrap().contains("lost: /dev/vda"));
    let merge = ["report", "merge", "out", "--out", "all", "--json", "all.json"];
    assert_eq!(unread(&recorded, &merge).status.code(), Some(1));
    assert_eq!(json(&dir.join("all.json")), json(&dir.join("all/report.json")));
    for (arguments, status) in [
        (vec!["recording", "info", "disk.recording", "--marks"], 0),
        (vec!["recording", "verify", "disk.recording"], 0),
        (vec!["recording", "export", "disk.recording", "--hash"], 0),
        (vec!["repro", "out/failure-001.tornblk"], 1),
        (vec!["recording", "info", "nosuch"], 2),
    ] {
        assert_eq!(unread(&recorded, &arguments).status.code(), Some(status), "{arguments:?}");
    }
    // A disk that is full is another thing.
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut info = command(&recorded, &["recording", "info", "disk.recording"]);
    let output = info.stdout(full()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cannot write to the standard output"), "{text}");
    let again = ["explore", "disk.recording", "--strategy", "prefix", "--json", "/dev/full"];
    let output = command(&recorded, &[&again[..], &["--out", "o"]].concat()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "the verdict is the news: {text}");
    assert!(text.contains("cannot write /dev/full"), "{text}");
}

#[test]
fn a_base_image_that_changed_or_moved_is_noticed() {
    let recorded = recorded(2, &[]);
    refused(&recorded, &["explore", "disk.recording", "--profile", "lb4k"], "lb4k");
    std::fs::rename(recorded.base(), recorded.dir.path().join("moved")).unwrap();
    // Beside a recording it would be found.
    refused(&recorded, &["explore", "disk.recording"], "say with --base where it is now");
    for command in [vec!["verify"], vec!["export", "--hash"]] {
        let arguments = [&["recording"][..], &command, &["disk.recording"]].concat();
        refused(&recorded, &arguments, "say with --base where it is now");
    }
    run(&recorded, &["explore", "disk.recording", "--base", "moved"], 0);
    let mut bytes = std::fs::read(recorded.dir.path().join("moved")).unwrap();
    bytes[5] ^= 1;
    std::fs::write(recorded.dir.path().join("moved"), bytes).unwrap();
    let arguments = ["explore", "disk.recording", "--base", "moved", "--out", "out"];
    refused(&recorded, &arguments, "is not the one that was recorded on");
    let file = recorded.path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&recorded, &["explore", "disk.recording", "--base", "moved"], "cut short");
}

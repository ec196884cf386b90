//! Atomic writes that go down to the disk, as a user tries them: on both front-ends, on a disk that lies, and
//! on more than one kernel.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn tornblk(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tornblk")).args(arguments).current_dir(dir).output().unwrap()
}

fn expect(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}\n{log}");
    text
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// By lane.
fn lanes(report: &Value) -> BTreeMap<String, Value> {
    let lanes = report["lanes"].as_array().unwrap().iter();
    lanes.map(|lane| (lane["name"].as_str().unwrap().to_owned(), lane.clone())).collect()
}

/// Does this QEMU let all of a disk's limits through? From 10.2 on.
fn full_fields(report: &Value) -> bool {
    let version = report["qemu"].as_str().unwrap();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap());
    (numbers.next(), numbers.next()) >= (Some(10), Some(2))
}

const HARDWARE: [&str; 4] = ["raw", "partition", "ext4", "xfs"];

#[test]
fn atomic_writes_reach_the_disk_whole_on_both_front_ends() {
    let dir = tempfile::tempdir().unwrap();
    let chosen = ["--lane", "hw", "--lane", "boundary", "--lane", "xfs-cow-above"];
    let run = [&["run", "--crashes", "2", "--json", "run.json"][..], &chosen].concat();
    expect(&tornblk(&run, dir.path()), 0);
    let report = report(&dir.path().join("run.json"));
    let mut lanes = lanes(&report);
    assert_eq!(lanes.len(), 13);
    let full = lanes.remove("hw-blk-full").unwrap();
    assert_eq!(full["verdict"], if full_fields(&report) { "passed" } else { "unsupported" });
    for (name, lane) in &lanes {
        let expected = if name == "boundary-merged" { "known-red" } else { "passed" };
        assert_eq!(lane["verdict"], expected, "{lane:#}");
        assert_eq!(lane["control"]["caught"], true, "{lane:#}");
    }
    for (front_end, place) in ["blk", "scsi"].iter().flat_map(|f| HARDWARE.map(|p| (f, p))) {
        let lane = &lanes[&format!("hw-{front_end}-{place}")];
        assert!(lane["counts"]["atomic"].as_u64().unwrap() > 50, "{lane:#}");
        assert!(lane["named"]["writes"].as_u64().unwrap() > 50, "{lane:#}");
        assert_eq!(lane["named"]["split"], 0, "{lane:#}");
    }
    // Neighbours were merged, and that within the limit.
    for name in ["boundary-blk", "boundary-scsi"] {
        assert!(lanes[name]["counts"]["atomic"].as_u64().unwrap() > 100);
    }
    assert!(lanes["boundary-blk"]["named"]["merged"].as_u64().unwrap() > 0);
    assert_eq!(lanes["boundary-blk"]["named"]["across_boundary"], 0);
}

#[test]
fn on_a_disk_that_lies_the_hardware_path_fails_and_copy_on_write_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["run", "--fault", "tear-atomic", "--crashes", "1", "--json", "run.json"];
    let chosen = ["--lane", "hw", "--lane", "xfs-cow-above", "--out", "run"];
    expect(&tornblk(&[&run[..], &chosen].concat(), dir.path()), 1);
    let report = report(&dir.path().join("run.json"));
    let mut lanes = lanes(&report);
    assert_eq!(lanes.len(), 10);
    if !full_fields(&report) {
        lanes.remove("hw-blk-full");
    }
    for (name, lane) in lanes.iter().filter(|(name, _)| name.starts_with("hw-")) {
        assert_eq!(lane["verdict"], "violated", "{lane:#}");
        let finding = &lane["reports"][0]["judgement"]["findings"][0];
        assert_eq!(finding["clause"], "torn", "{name}: {finding}");
    }
    assert_eq!(lanes["xfs-cow-above"]["verdict"], "passed", "{:#}", lanes["xfs-cow-above"]);
    assert_eq!(lanes["xfs-cow-above"]["why"], "survived, as it should");
    // What was kept shows it again: read in place, on a partition, and by a guest on SCSI.
    for lane in ["hw-scsi-raw", "hw-blk-partition", "hw-scsi-ext4"] {
        let again = expect(&tornblk(&["repro", &format!("run/{lane}/cut-001")], dir.path()), 1);
        assert!(again.contains("torn: "), "{again}");
    }
}

#[test]
fn states_of_a_scsi_disk_are_explored_in_place_and_in_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["run", "--crashes", "1", "--keep", "--out", "run"];
    let chosen = ["--lane", "hw-scsi-partition", "--lane", "hw-scsi-ext4"];
    expect(&tornblk(&[&run[..], &chosen].concat(), dir.path()), 0);
    for (lane, states) in [("hw-scsi-partition", "500"), ("hw-scsi-ext4", "12")] {
        let explore = ["explore", &format!("run/{lane}"), "--states", states, "--json", "e.json"];
        expect(&tornblk(&explore, dir.path()), 0);
        let report = report(&dir.path().join("e.json"));
        let unique = report["profiles"][0]["counts"]["unique"].as_u64().unwrap();
        assert!(unique >= 10, "{lane}: {report:#}");
    }
}

#[test]
fn several_kernels_make_a_table_and_one_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["run", "--kernel", "7.2,9.9", "--lane", "hw-blk-raw", "--crashes", "2"];
    let text = expect(&tornblk(&[&run[..], &["--junit", "run.xml"]].concat(), dir.path()), 2);
    let row = text.lines().find(|line| line.contains("hw-blk-raw") && line.contains("passed"));
    assert!(row.is_some_and(|row| row.contains('-')), "{text}");
    assert!(text.contains("kernel 9.9: could not be run - "), "{text}");
    let junit = std::fs::read_to_string(dir.path().join("run.xml")).unwrap();
    assert!(junit.contains("9.9") && junit.contains("tornblk.direct-atomic.7_2"), "{junit}");
}

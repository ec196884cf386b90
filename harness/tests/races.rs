//! Races, as a user runs them: a lane of each suite on a stock kernel.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// The quickest lane of each.
const LANES: [(&str, &str); 5] = [
    ("buffered-atomic", "short-xfs-16k"),
    ("delalloc-punch", "xfs-1k"),
    ("freeze", "overlay-ext4"),
    ("fuse-passthrough", "parallel-mmap"),
    ("hole-punch", "ext4-1k"),
];

fn tornblk(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tornblk")).args(arguments).current_dir(dir).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_lane_of_each_suite_meets_its_moments_and_catches_its_control() {
    let dir = tempfile::tempdir().unwrap();
    let suites = LANES.map(|(suite, _)| suite);
    let lanes: Vec<&str> = LANES.iter().flat_map(|(_, lane)| ["--lane", lane]).collect();
    let rest = ["--time", "20m", "--out", "run", "--json", "races.json", "--junit", "races.xml"];
    let output = tornblk(&[&["run"], &suites[..], &lanes, &rest].concat(), dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let report = report(&dir.path().join("races.json"));
    let lanes = report["lanes"].as_array().unwrap();
    assert_eq!(lanes.len(), LANES.len());
    for ((suite, name), lane) in LANES.iter().zip(lanes) {
        assert_eq!((lane["suite"].as_str(), lane["name"].as_str()), (Some(*suite), Some(*name)));
        assert_eq!(lane["verdict"], "passed", "{lane:#}");
        assert_eq!(lane["control"]["caught"], true, "{lane:#}");
        assert!(!lane["raced"]["reached"].as_object().unwrap().is_empty(), "{lane:#}");
        let states = &lane["explored"]["profiles"][0]["counts"]["unique"];
        assert!(states.as_u64().unwrap() > 10, "{lane:#}");
    }
    assert!(std::fs::read_to_string(dir.path().join("races.xml")).unwrap().contains("ext4-1k"));
}

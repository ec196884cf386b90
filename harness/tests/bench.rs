//! `tornblk bench`, as users run it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    bench_in(&std::env::temp_dir(), arguments)
}

fn bench_in(place: &Path, arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir_in(place).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tornblk"))
        .arg("bench")
        .args(["--rounds", "1"])
        .arg("--dir")
        .arg(dir.path())
        .args(arguments)
        .args(if arguments.contains(&"--time") { &[][..] } else { &["--time", "100ms"] })
        .args(if arguments.contains(&"--size") { &[][..] } else { &["--size", "16m"] })
        .output()
        .unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
    output
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_load_is_measured_on_every_device_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("bench.json");
    let output = bench(&["--json", json.to_str().unwrap(), "--load", "read"]);
    // A debug build may miss what it should reach.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["4k random read QD 1 ", "128k sequential read QD 8 ", "raw --direct", "recording"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let cells = report["cells"].as_array().unwrap();
    // Three loads, one queue and four, five ways to serve them.
    assert_eq!(cells.len(), 3 * 2 * 5);
    for cell in cells {
        let sample = &cell["samples"][0];
        assert!(sample["requests_per_second"].as_f64().unwrap() > 0.0, "{cell}");
        assert!(sample["cpu_ns_per_request"].as_f64().unwrap() > 0.0, "{cell}");
    }
    let below = text.lines().filter(|line| line.starts_with(" below")).count();
    assert_eq!(output.status.code() == Some(1), below > 0, "{text}");
    // Nothing to compare with but itself.
    assert!(report["goals"].as_array().unwrap().iter().all(|goal| goal["ratio"].is_number()));
}

#[test]
fn in_memory_direct_io_has_larger_blocks_or_is_left_out() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return println!("there is no {}", shm.display());
    }
    let output = bench_in(shm, &["--load", "random read QD 1"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", told(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let left_out = told(&output).contains("no direct I/O in /dev/shm");
    assert_ne!(text.contains("raw --direct"), left_out, "{text}");
}

#[test]
fn another_device_takes_its_turns() {
    let output = bench(&["--against", "qemu-storage-daemon", "--load", "random read QD 32"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("other, direct") && text.contains("CPU time a request: "), "{text}");
}

#[test]
fn what_cannot_be_measured_is_a_sentence() {
    for (arguments, says) in [
        (&["--load", "sideways"][..], "no load has `sideways` in its name"),
        (&["--against", "no-such-daemon"], "`no-such-daemon` cannot be run"),
        (&["--against", "false"], "ended before it was ready"),
        (&["--time", "0ms"], "no time"),
        (&["--size", "5k"], "whole MiB"),
        (&["--json", "/no/such/folder/x"], "cannot write /no/such/folder/x"),
    ] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(says), "{arguments:?}: {}", told(&output));
    }
}

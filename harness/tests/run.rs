//! The whole loop, as a user runs it: a guest writes, the power is cut, what is left is judged. A
//! disk that lies is found out, the same each time, and what was kept shows it again.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
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

#[test]
fn an_honest_disk_passes_and_a_liar_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["run", "--lane", "raw", "--crashes", "3", "--time", "10m"];
    let honest = [&run[..], &["--json", "honest.json", "--junit", "honest.xml"]].concat();
    expect(&tornblk(&honest, dir.path()), 0);
    let honest = report(&dir.path().join("honest.json"));
    assert_eq!(honest["lanes"][0]["verdict"], "passed");
    assert_eq!(honest["lanes"][0]["control"]["caught"], true);
    assert!(honest["lanes"][0]["counts"]["eligible"].as_u64().unwrap() > 0);
    let junit = std::fs::read_to_string(dir.path().join("honest.xml")).unwrap();
    assert!(junit.contains("testsuite") && junit.contains("raw"), "{junit}");
    assert!(!dir.path().join("tornblk-out").exists(), "what passed is not kept");

    let mut named = Vec::new();
    for name in ["first", "second"] {
        let (json, out) = (format!("{name}.json"), format!("{name} run"));
        let liar = [&run[..], &["--fault", "tear-atomic", "--json", &json, "--out", &out]].concat();
        let text = expect(&tornblk(&liar, dir.path()), 1);
        assert!(text.contains("torn: /dev/vda unit "), "{text}");
        let report = report(&dir.path().join(json));
        let finding = &report["lanes"][0]["reports"][0]["judgement"]["findings"][0];
        assert_eq!(finding["clause"], "torn");
        named
            .push(["clause", "file", "path", "unit", "generation"].map(|key| finding[key].clone()));
    }
    assert_eq!(named[0], named[1], "one seed, one finding");

    // What its profile lets a disk make up is no finding, at the cut and in any state explored.
    let garbage = ["run", "planted", "--lane", "journal-raw", "--profile", "garbage"];
    let explored = ["--explore", "prefix,tear,random=10", "--json", "garbage.json"];
    expect(&tornblk(&[&garbage[..], &explored].concat(), dir.path()), 0);
    let explored = &report(&dir.path().join("garbage.json"))["lanes"][0]["explored"];
    assert!(explored["profiles"][0]["counts"]["unique"].as_u64().unwrap() > 100, "{explored}");

    // Byte for byte the same from the recording, and judged the same.
    let cut = dir.path().join("first run/raw/cut-001");
    let cut = cut.to_str().unwrap();
    let again = expect(&tornblk(&["repro", cut], dir.path()), 1);
    assert!(again.contains("torn: /dev/vda unit "), "{again}");
    let first = report(&dir.path().join("first.json"));
    let state = first["lanes"][0]["reports"][0]["state"].as_str().unwrap();
    let recording = format!("{cut}/disk.recording");
    let export = ["recording", "export", &recording, "--state", state, "--hash"];
    let hash = expect(&tornblk(&export, dir.path()), 0);
    assert_eq!(hash, expect(&tornblk(&export, dir.path()), 0));
    let sum = hash.split_whitespace().nth(1).unwrap();
    assert!(hash.starts_with(state) && again.contains(sum), "{hash}{again}");
}

//! A user's own program and its checker, as a user runs them.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tornblk(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tornblk")).args(arguments).current_dir(dir).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/examples").join(name);
    std::fs::canonicalize(path).unwrap().display().to_string()
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_file_that_is_overwritten_in_place_is_caught_and_its_twin_passes() {
    let dir = tempfile::tempdir().unwrap();
    let check = example("settings-check.sh");
    let on = |program: &str, more: &[&str]| {
        let program = example(program);
        let run = ["run", "--exec", &program, "--check", &check, "--size", "32m"];
        tornblk(&[&run[..], more].concat(), dir.path())
    };
    let some = ["--explore", "prefix,tear", "--states", "40"];
    let caught = on(
        "in-place.sh",
        &[&some[..], &["--format", "github", "--summary", "found.md", "--out", "run"]].concat(),
    );
    let text = told(&caught);
    assert_eq!(caught.status.code(), Some(1), "{text}");
    assert!(text.contains("settings-check.sh ended with status 1: settings: "), "{text}");
    assert!(text.contains("in the end are on settings, its bytes "), "{text}");
    assert!(text.contains("::error title=exec "), "{text}");
    let summary = std::fs::read_to_string(dir.path().join("found.md")).unwrap();
    assert!(summary.contains("| **VIOLATED** |\n"), "{summary}");
    assert!(
        summary.contains("```sh\ntornblk repro run/explored/failure-001.tornblk\n```\n"),
        "{summary}"
    );
    let bundle = std::fs::read_dir(dir.path().join("run/explored")).unwrap().flatten();
    let bundle = bundle.map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "tornblk"));
    let bundle = bundle.unwrap().display().to_string();
    // One file shows it again.
    let again = tornblk(&["repro", &bundle], dir.path());
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));
    assert!(told(&again).contains("settings: "), "{}", told(&again));

    // ext4 of this size has blocks of 1 KiB: pages of that size lie well, and came many in a request.
    let pages = ["audit", "run", "--page-size", "1k", "--files", "set*", "--json", "pages.json"];
    let audit = |profile| tornblk(&[&pages[..], &["--profile", profile]].concat(), dir.path());
    let whole = audit("piece1k");
    assert_eq!(whole.status.code(), Some(0), "{}", told(&whole));
    let written = report(&dir.path().join("pages.json"));
    assert_eq!(written["profiles"][0]["page_writes"], 128, "{written:#}");
    assert_eq!(written["profiles"][0]["overwrites"], 64, "{written:#}");
    assert_eq!(written["files"], serde_json::json!(["settings"]), "{written:#}");
    let torn = audit("lb512,req4k");
    assert_eq!(torn.status.code(), Some(1), "{}", told(&torn));
    assert!(told(&torn).contains("settings page 0: merged beyond: request "), "{}", told(&torn));
    let none = tornblk(&["audit", "run", "--page-size", "4k", "--files", "*.ibd"], dir.path());
    assert_eq!(none.status.code(), Some(3), "{}", told(&none));
    assert!(told(&none).contains("there are, for example: settings"), "{}", told(&none));

    let setup = ["--setup", "echo >before", "--json", "sound.json"];
    let sound = on("replace.sh", &[&["--explore", "prefix"], &setup[..]].concat());
    assert_eq!(sound.status.code(), Some(0), "{}", told(&sound));
    let report = report(&dir.path().join("sound.json"));
    let unique = &report["profiles"][0]["counts"]["unique"];
    assert!(unique.as_u64().unwrap() > 10, "{report:#}");
    assert!(!dir.path().join("tornblk-out").exists(), "what passed is not kept");
}

/// The law of several disks: were a flush of one a flush of all, the wrong twin would pass.
#[test]
fn a_log_on_a_disk_of_its_own_is_safe_only_once_that_disk_is_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let (exec, check) = (example("two-disks.sh"), example("two-disks-check.sh"));
    let run = ["run", "--exec", &exec, "--check", &check, "--size", "16m", "--disk", "log=8m"];
    let on =
        |more: &[&str]| tornblk(&[&run[..], &["--explore", "prefix"], more].concat(), dir.path());
    // On a slow machine ext4 would commit by itself meanwhile, and so flush the log after all.
    let wrong =
        ["--env", "FLUSH=main", "--states", "60", "--mount-opts", "commit=300", "--out", "run"];
    let wrong = on(&wrong);
    let text = told(&wrong);
    assert_eq!(wrong.status.code(), Some(1), "{text}");
    assert!(text.contains("log on ext4, 8 MiB; SCSI disks that share a power cut"), "{text}");
    assert!(text.contains("data is new, and the log says: nothing"), "{text}");
    assert!(text.contains("in the end are on log:log, its bytes 0"), "{text}");

    let right = on(&["--states", "24", "--json", "sound.json"]);
    assert_eq!(right.status.code(), Some(0), "{}", told(&right));
    let report = report(&dir.path().join("sound.json"));
    let unique = &report["profiles"][0]["counts"]["unique"];
    assert!(unique.as_u64().unwrap() > 10, "{report:#}");
}

#[test]
fn what_is_no_finding_is_told_before_anything_is_explored() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |exec: &str, check: &str, words: &[&str]| {
        let run = ["run", "--exec", exec, "--check", check];
        let output = tornblk(&[&run[..], words].concat(), dir.path());
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
        told(&output)
    };
    // Before any guest is started.
    let text = fails("true", "true", &["--disk", "log=8m", "--front-end", "blk"]);
    assert!(text.contains("--front-end blk has none"), "{text}");
    let text = fails("true", "true", &["--disk", "a-b=8m", "--disk", "a_b=8m"]);
    assert!(text.contains("called so, or nearly so"), "{text}");
    let text = fails("true", "true", &["--disk", "main=8m"]);
    assert!(text.contains("main is the disk that there is anyway"), "{text}");
    let reports = ["--size", "32m", "--json", "r.json", "--junit", "r.xml", "--summary", "r.md"];
    let text = fails("echo oh; exit 3", "true", &reports);
    let says = "echo oh; exit 3 ended with status 3: oh";
    assert!(text.contains(says), "{text}");
    // Who reads the reports is told, too.
    let failed = report(&dir.path().join("r.json"));
    assert_eq!((&failed["verdict"], &failed["exit"]), (&"error".into(), &2.into()), "{failed:#}");
    for file in ["r.json", "r.xml", "r.md"] {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains(says), "{file}: {text}");
    }
    let junit = std::fs::read_to_string(dir.path().join("r.xml")).unwrap();
    assert!(junit.contains(r#"errors="1""#) && junit.contains("</error>"), "{junit}");
    // The guest sees the host's files, and what is written to them stays in the guest.
    let check =
        script(dir.path(), "check.sh", "test -e copy || exit 0; echo never content; exit 1");
    let here = dir.path().display().to_string();
    let exec = format!("cat {here}/check.sh >copy && touch {here}/from-the-guest && sync copy");
    let text = fails(&exec, &check.display().to_string(), &["--fs", "xfs", "--size", "300m"]);
    assert!(text.contains("check.sh ended with status 1: never content"), "{text}");
    assert!(!dir.path().join("from-the-guest").exists());
    // It has to be content with the empty disk, too.
    let text = fails("echo a >a && sync a", "test -s a", &["--size", "32m"]);
    assert!(text.contains("before anything was written to it"), "{text}");
    assert!(text.contains("test -s a ended with status 1 and said nothing"), "{text}");
    // What the program left beside the disk is not there for the checker.
    let text = fails(
        "echo a >a && sync a && touch /tmp/acked",
        "! test -s a || test -e /tmp/acked",
        &["--size", "32m"],
    );
    assert!(text.contains("as the program left it"), "{text}");
}

#[test]
fn a_checker_that_does_not_come_to_an_end_finds_the_disk_unsound() {
    let dir = tempfile::tempdir().unwrap();
    let exec = "tornblk-mark half && echo late >late && sync late .";
    let check = "if grep -qx half \"$TORNBLK_MARKS\" && ! test -s late; then sleep 600 & wait; fi";
    let run = ["run", "--exec", exec, "--check", check, "--size", "32m", "--check-timeout", "4s"];
    let output =
        tornblk(&[&run[..], &["--explore", "prefix", "--states", "8"]].concat(), dir.path());
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("did not end in 4 s"), "{}", told(&output));
}

//! The program as a user meets it: exit codes, and one sentence for everything that cannot work.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn tornblk(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tornblk"));
    command.args(arguments).env_remove("RUST_LOG").env("TORNBLKD", "/bin/true");
    command
}

/// Exit code 2 and one line that begins with the program's name.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].starts_with("tornblk: "), "{text}");
    text
}

#[test]
fn what_cannot_be_run_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (vec!["run", "nosuch"], "there is no suite \"nosuch\""),
        (vec!["run", "./nosuch.toml"], "cannot read the suite ./nosuch.toml"),
        (vec!["run", "--lane", "nosuch"], "there is no lane \"nosuch\"; there are raw"),
        (vec!["run", "--profile", "lb4k"], "--profile on lane raw"),
        (vec!["run", "--qemu", "/nonexistent/qemu"], "QEMU is missing"),
        (vec!["status", "--control", "nosuch"], "is tornblkd running"),
        (vec!["recording", "info", "nosuch"], "cannot open the recording nosuch"),
        (vec!["repro", "nosuch"], "there is no nosuch: give a failure that"),
    ] {
        let output = tornblk(&arguments).current_dir(dir.path()).output().unwrap();
        let text = refused(&output);
        assert!(text.contains(says), "{arguments:?}: {text}");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "{arguments:?} left something behind");
    }
}

#[test]
fn a_file_that_is_no_recording_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "not a recording").unwrap();
    for command in [vec!["info"], vec!["verify"], vec!["export", "--hash"]] {
        let mut arguments = vec!["recording"];
        arguments.extend(&command);
        arguments.push(file.to_str().unwrap());
        let text = refused(&tornblk(&arguments).output().unwrap());
        assert!(text.contains("recording"), "{text}");
    }
}

#[test]
fn a_suite_that_contradicts_itself_is_refused_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(&file, "name = \"s\"\n[quick]\ncuts = 1\ntime = \"1s\"\n").unwrap();
    let output = tornblk(&["run", file.to_str().unwrap()]).output().unwrap();
    let text = refused(&output);
    assert!(text.contains("missing field `soak`") && text.contains("s.toml"), "{text}");
}

#[test]
fn a_wrong_option_is_a_usage_error() {
    for arguments in [vec!["run", "--bogus"], vec!["run", "--fault", "tear"], vec!["nosuch"]] {
        let output = tornblk(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
    let output = tornblk(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["run", "repro", "image", "recording", "crash", "use-state", "Exit codes"] {
        assert!(text.contains(word), "{word}");
    }
}

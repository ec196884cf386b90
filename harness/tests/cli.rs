//! The program as a user meets it: exit codes, and one sentence for everything that cannot work.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tornblk(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tornblk"));
    command.args(arguments).env_remove("RUST_LOG").env("TORNBLKD", "/bin/true");
    command
}

/// Exit code 2 and one line that begins with the program's name, before the one that says what is next.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("tornblk: "), "{text}");
    assert!(lines[1].starts_with("next: `tornblk doctor` "), "{text}");
    lines[0].to_owned()
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
    let neither = "s.toml has neither a [[program]] nor a [[lane]]";
    assert!(text.contains(neither), "{text}");
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

#[test]
fn a_machine_is_looked_over() {
    let tornblkd = tornblk::device::find_tornblkd().unwrap();
    let look = |qemu: Option<&str>| {
        let mut command = tornblk(&["doctor"]);
        command.env("TORNBLKD", &tornblkd);
        if let Some(qemu) = qemu {
            command.env("TORNBLK_QEMU", qemu);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = look(None);
    assert_eq!(code, Some(0), "{text}");
    for row in [
        "tornblkd ",
        "agent ",
        "QEMU ",
        "its devices ",
        "KVM ",
        "virtiofsd ",
        "memory ",
        "apt ",
        "cache ",
    ] {
        assert_eq!(
            text.lines()
                .filter(|line| line.get(9..).is_some_and(|rest| rest.starts_with(row)))
                .count(),
            1,
            "{row}: {text}"
        );
    }
    let (code, text) = look(Some("/nonexistent/qemu"));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("missing  QEMU") && text.contains("install it"), "{text}");
}

#[test]
fn a_disk_for_ones_own_machine_is_served_until_it_is_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let image = image.display().to_string();
    let mut attached = tornblk(&["attach", "--image", &image]);
    attached.env("TORNBLKD", tornblk::device::find_tornblkd().unwrap());
    attached.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attached = attached.spawn().unwrap();
    let mut told = String::new();
    let mut lines = BufReader::new(attached.stdout.take().unwrap()).lines();
    while !told.contains("Ctrl-C ends it") {
        told += &lines.next().unwrap().unwrap();
        told += "\n";
    }
    let words =
        |name: &str| told.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (disk, control) = (words("id=tornblk,path="), words("tornblk status --control "));
    assert!(Path::new(&disk).exists(), "{told}");
    // What it prints can be used.
    let status = tornblk(&["status", "--control", &control]).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    let pid = rustix::process::Pid::from_raw(attached.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(attached.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&disk).parent().unwrap().exists(), "nothing is left");
    let none = tornblk(&["attach", "--image", "/nonexistent/disk.img"])
        .env("TORNBLKD", tornblk::device::find_tornblkd().unwrap())
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("/nonexistent/disk.img"), "{none:?}");
}

#[test]
fn each_command_has_a_page_and_each_shell_its_completions() {
    let dir = tempfile::tempdir().unwrap();
    let made = tornblk(&["manual", &dir.path().display().to_string()]).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(read("man1/tornblk-run.1").contains("crash states of what it wrote"));
    assert!(read("man1/tornblk-recording-export.1").contains("state"));
    assert!(read("man1/tornblk-stall.1").contains(".SH EXAMPLES\n.nf\n"));
    for file in ["tornblk.bash", "_tornblk", "tornblk.fish"] {
        assert!(read(&format!("completions/{file}")).contains("doctor"), "{file}");
    }
}

//! `tornblk recording`, as a user meets it, and what QEMU says of its files.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tornblk(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tornblk"));
    command.arg("recording").args(arguments).current_dir(dir).env_remove("RUST_LOG");
    command.output().unwrap()
}

fn says(dir: &Path, arguments: &[&str]) -> String {
    let output = tornblk(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code 2, one line before that which says what is next, and nothing new in the folder.
fn refused(dir: &Path, arguments: &[&str]) -> String {
    let before = std::fs::read_dir(dir).unwrap().count();
    let output = tornblk(dir, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let (text, next) = text.split_once('\n').unwrap();
    assert!(next.starts_with("next: `tornblk doctor` ") && next.lines().count() == 1, "{next}");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), before, "{arguments:?} left something");
    text.to_owned()
}

/// A program of the package qemu-utils, which `ci/test` installs.
fn qemu(dir: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("{program} (package qemu-utils): {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

const SIZE: usize = 4 << 20;

/// What QEMU's own filter logs of what its own tool writes; `disk` is what they leave.
fn logged(dir: &Path) {
    let base: Vec<u8> = (0..SIZE).map(|i| if i < 1 << 20 { (i / 512) as u8 } else { 0 }).collect();
    std::fs::write(dir.join("base"), &base).unwrap();
    std::fs::write(dir.join("disk"), &base).unwrap();
    std::fs::write(dir.join("log"), "").unwrap();
    let image = "driver=blklogwrites,file.driver=raw,file.file.driver=file,\
                 file.file.filename=disk,log.driver=raw,log.file.driver=file,\
                 log.file.filename=log,log-sector-size=4096";
    let mut arguments = vec!["--image-opts", image];
    for command in [
        "write -P 1 0 4k",
        "write -P 2 8k 16k",
        "flush",
        "write -z 32k 64k",
        "write -f -P 3 4k 4k",
        "discard 16k 4k",
        "write -z 1m 2m",
        "flush",
        "write -P 4 3m 128k",
        "write -P 5 12k 4k",
        "flush",
        "write -P 6 12k 4k",
        "flush",
    ] {
        arguments.extend(["-c", command]);
    }
    qemu(dir, "qemu-io", &arguments);
}

#[test]
fn what_qemu_logged_becomes_a_recording_and_images_that_qemu_reads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    logged(dir);
    let import = ["import", "--base", "base", "--atomic-unit-max", "16k", "log", "-o", "rec"];
    let said = says(dir, &import);
    assert!(said.contains("1 write zeroes") && said.contains("1 discards"), "{said}");
    let said = says(dir, &["verify", "rec"]);
    assert!(said.contains("rec is whole") && said.contains("base is its base image"), "{said}");
    let said = says(dir, &["info", "rec"]);
    for part in ["req16k", "logical blocks of 4096", "imported   from", "1 of 16k", "0 failed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&says(dir, &["info", "--json", "rec"])).unwrap();
    assert_eq!(json["counts"]["discards"], 1);
    assert_eq!(json["header"]["options"]["profile"], "req16k");
    assert!(json["bytes_beside_data"].as_f64().unwrap() < 96.0);

    // The last state is the disk as QEMU left it.
    says(dir, &["export", "rec", "-o", "raw"]);
    assert!(std::fs::read(dir.join("raw")).unwrap() == std::fs::read(dir.join("disk")).unwrap());
    says(dir, &["export", "rec", "--format", "qcow2", "-o", "qcow2"]);
    qemu(dir, "qemu-img", &["check", "-f", "qcow2", "qcow2"]);
    qemu(dir, "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", "qcow2", "raw"]);
    let long = std::fs::metadata(dir.join("qcow2")).unwrap().len();
    assert!(long < 2 << 20, "zeroes are not stored: {long}");

    // Out again: the same entries, but where one of QEMU's has two parts.
    let export = ["export", "rec", "--format", "dm-log-writes", "-o", "out", "--base-out", "start"];
    says(dir, &export);
    assert!(std::fs::read(dir.join("start")).unwrap() == std::fs::read(dir.join("base")).unwrap());
    says(dir, &["import", "--base", "start", "out", "-o", "again"]);
    says(dir, &["export", "again", "-o", "raw2"]);
    assert!(std::fs::read(dir.join("raw2")).unwrap() == std::fs::read(dir.join("disk")).unwrap());
}

#[test]
fn hashes_are_those_of_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    logged(dir);
    says(dir, &["import", "--base", "base", "log", "-o", "rec"]);
    let last = says(dir, &["export", "rec", "--hash"]);
    let (name, _) = last.split_once(' ').unwrap();
    // Under its own disk's name, as `info` says it, and as it is explored.
    says(dir, &["import", "--base", "base", "--atomic-unit-max", "16k", "log", "-o", "rec16"]);
    let own = says(dir, &["export", "rec16", "--hash"]);
    assert!(own.starts_with("req16k/p"), "{own}");
    assert!(says(dir, &["info", "rec16"]).contains("profile    req16k\n"));
    let point = name.split_once("/p").unwrap().1.split_once(':').unwrap().0.parse::<u64>().unwrap();
    let mut names: Vec<String> =
        (0..=point).flat_map(|p| [format!("lb4k/p{p}:all"), format!("lb4k/p{p}:none")]).collect();
    names.push(format!("lb512/p{point}:all").replace("lb512", "lb"));
    let text = names.iter().map(|name| format!("{name} and what follows\n")).collect::<String>();
    std::fs::write(dir.join("names"), text + "\n").unwrap();
    let hashes = says(dir, &["export", "rec", "--states-from", "names", "--hash"]);
    let lines: Vec<(&str, &str)> =
        hashes.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!(lines.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    for (name, hash) in lines.iter().step_by(5) {
        let one = says(dir, &["export", "rec", "--state", name, "--hash", "-o", "image"]);
        assert_eq!(one, format!("{name} {hash}\n"));
        let sum = Command::new("sha256sum").arg(dir.join("image")).output().unwrap();
        assert!(String::from_utf8(sum.stdout).unwrap().starts_with(hash));
        std::fs::remove_file(dir.join("image")).unwrap();
    }
    assert!(last.ends_with(&format!(" {}\n", lines[lines.len() - 3].1)));

    // From the standard input, and one that is no state: nothing is printed then.
    let mut child = Command::new(env!("CARGO_BIN_EXE_tornblk"))
        .args(["recording", "export", "rec", "--states-from", "-", "--hash"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{name}").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), last);
    std::fs::write(dir.join("names"), format!("{name}\nlb4k/p999:all\n")).unwrap();
    let said = refused(dir, &["export", "rec", "--states-from", "names", "--hash"]);
    assert!(said.contains("lb4k/p999:all") && said.contains("no crash point 999"), "{said}");
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    logged(dir);
    std::fs::write(dir.join("short"), &std::fs::read(dir.join("log")).unwrap()[..20_000]).unwrap();
    std::fs::write(dir.join("small"), vec![0; 4096]).unwrap();
    for (arguments, part) in [
        (vec!["import", "--base", "base", "nosuch", "-o", "r"], "nosuch"),
        (vec!["import", "--base", "base", "base", "-o", "r"], "no sound dm-log-writes log"),
        (vec!["import", "--base", "base", "short", "-o", "r"], "cut short"),
        (vec!["import", "--base", "small", "log", "-o", "r"], "past the end of the base image"),
        (vec!["import", "--base", "nosuch", "log", "-o", "r"], "nosuch"),
        (vec!["import", "--base", "base", "log", "-o", "base"], "exists already"),
        (vec!["import", "--format", "raw", "--base", "base", "log", "-o", "r"], "no order"),
        (vec!["verify", "base"], "not a recording"),
    ] {
        let said = refused(dir, &arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    says(dir, &["import", "--base", "base", "log", "-o", "rec"]);
    for (arguments, part) in [
        (vec!["export", "rec", "-o", "base"], "exists already"),
        (vec!["export", "rec", "--format", "qcow2", "-o", "base"], "exists already"),
        (vec!["export", "rec", "--state", "nonsense", "-o", "r"], "no such state"),
        (vec!["export", "rec", "--state", "lb512/p3:all", "-o", "r"], "logical block"),
        (vec!["export", "rec", "--base-out", "r", "-o", "s"], "--base-out"),
        (vec!["export", "rec", "--format", "dm-log-writes", "--hash"], "no state"),
        (
            vec!["export", "rec", "--format", "dm-log-writes", "-o", "r", "--base-out", "base"],
            "exists already",
        ),
    ] {
        let said = refused(dir, &arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    // Damage has a name, and a base that changed is told.
    let rec = std::fs::read(dir.join("rec")).unwrap();
    let at = rec.windows(4096).position(|w| w.iter().all(|b| *b == 4)).unwrap();
    let mut bad = rec.clone();
    bad[at] ^= 1;
    std::fs::write(dir.join("bad"), &bad).unwrap();
    let said = refused(dir, &["verify", "bad"]);
    assert!(
        said.contains("bad is damaged: event 12: the data at byte")
            && said.contains("fails its checksum"),
        "{said}"
    );
    for arguments in [
        vec!["export", "bad", "-o", "r"],
        vec!["export", "bad", "--format", "qcow2", "-o", "r"],
        vec!["export", "bad", "--format", "dm-log-writes", "-o", "r"],
        vec!["export", "bad", "--hash"],
    ] {
        let said = refused(dir, &arguments);
        assert!(
            said.contains("bad is damaged: the data of") || said.contains("damaged: the data at"),
            "{arguments:?}: {said}"
        );
    }
    std::fs::write(dir.join("cut"), &rec[..rec.len() / 2]).unwrap();
    assert!(refused(dir, &["verify", "cut"]).contains("cut short"));
    std::fs::write(dir.join("base"), vec![7; SIZE]).unwrap();
    let said = refused(dir, &["export", "rec", "-o", "r"]);
    assert!(said.contains("is not the one that was recorded on"), "{said}");
    let verified = tornblk(dir, &["verify", "rec"]);
    assert_eq!(verified.status.code(), Some(2));
    assert!(String::from_utf8(verified.stdout).unwrap().contains("rec is whole"));
}

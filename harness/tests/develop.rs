//! What kernel developers ask of a run: complaints of real guests' kernels are findings, `git
//! bisect run` gets its exit codes, what cannot be done is said.

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
    text + &log
}

/// The kernel's own words need a bug: these are written to its log by hand, where a guest formats
/// the disk, and where one is about to write.
const SUITE: &str = r#"
    name = "complaints"
    [quick]
    cuts = 1
    time = "10m"
    [soak]
    cuts = 1
    time = "10m"
    [[lane]]
    name = "mkfs"
    profile = "lb512"
    capacity = "64m"
    mkfs = ["sh", "-c", """
        for line in '------------[ cut here ]------------' \
            'WARNING: CPU: 0 PID: 77 at fs/ext4/inode.c:12 ext4_a+0x12/0x34' ' vfs_write+0x1c4/0x5a0' \
            '---[ end trace 0000000000000000 ]---'
        do echo "$line" > /dev/kmsg; done
        exec mkfs.ext4 -q {device}"""]
    fstype = "ext4"
    writes = 60
    exercise = ["durable"]
    [[lane.target]]
    path = "{mount}/a"
    unit = "16k"
    units = 8
    flags = ["direct dsync"]
    [lane.control]
    fault = "ignore-flush"
    place = "acknowledged"
    caught-as = ["lost"]
    [[lane]]
    name = "before"
    profile = "req64k"
    capacity = "1m"
    tune = [["/dev/kmsg", "BUG: sleeping function called from invalid context at mm/a.c:7\n"]]
    writes = 60
    sync-every = 8
    exercise = ["whole", "durable"]
    [[lane.target]]
    path = "{device}"
    unit = "16k"
    units = 8
    flags = ["direct", "direct dsync"]
    [lane.control]
    fault = "tear-atomic"
    place = "in-flight"
    caught-as = ["torn"]
    [[lane]]
    name = "panic"
    profile = "req64k"
    capacity = "1m"
    tune = [["/proc/sysrq-trigger", "c"]]
    writes = 60
    exercise = ["whole"]
    [[lane.target]]
    path = "{device}"
    unit = "16k"
    units = 8
    flags = ["direct"]
    [lane.control]
    fault = "tear-atomic"
    place = "in-flight"
    caught-as = ["torn"]
"#;

#[test]
fn what_a_guests_kernel_complains_about_is_a_finding_with_all_of_it_kept() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.toml"), SUITE).unwrap();
    let run = ["run", "s.toml", "--json", "s.json", "--junit", "s.xml", "--out", "out"];
    let text =
        expect(&tornblk(&[&run[..], &["--append", "tornblk.test=1"]].concat(), dir.path()), 1);
    assert!(
        text.contains("kernel-warning: WARNING: CPU: 0 PID: 77 at fs/ext4/inode.c:12"),
        "{text}"
    );
    assert!(text.contains("--append 'tornblk.test=1'"), "{text}");
    let bytes = std::fs::read(dir.path().join("s.json")).unwrap();
    let report: Value = serde_json::from_slice(&bytes).unwrap();
    for (lane, first, which) in [
        (0, "WARNING: CPU: 0 PID: 77 at fs/ext4/inode.c:12", "that made the file system"),
        (1, "BUG: sleeping function called from invalid context", "that wrote until the cut"),
    ] {
        let lane = &report["lanes"][lane];
        assert_eq!((&lane["verdict"], &lane["violations"]), (&"violated".into(), &1.into()));
        assert_eq!(lane["control"]["caught"], true, "by what it breaks: {}", lane["control"]);
        let finding = &lane["reports"][0]["judgement"]["findings"][0];
        assert_eq!(finding["clause"], "kernel-warning");
        let text = finding["text"].as_str().unwrap();
        assert!(text.starts_with(first) && text.contains(which), "{text}");
        let kept = text.rsplit_once(' ').unwrap().1;
        assert!(std::fs::read_to_string(kept).unwrap().contains(first), "{text}");
    }
    let why = report["lanes"][2]["why"].as_str().unwrap();
    assert!(why.contains("Kernel panic - not syncing: sysrq triggered crash"), "{why}");
    assert_eq!(report["lanes"][2]["verdict"], "violated");
    assert!(std::fs::read_to_string(dir.path().join("s.xml")).unwrap().contains("ext4_a+0x12"));
    let evidence = std::fs::read(dir.path().join("out/before/cut-001/evidence.json")).unwrap();
    let evidence: Value = serde_json::from_slice(&evidence).unwrap();
    assert_eq!(evidence["guest"]["append"], "tornblk.test=1");
}

#[test]
fn git_bisect_is_told_to_skip_what_cannot_be_judged() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bzImage"), "no kernel").unwrap();
    for (arguments, says) in [
        (&["run", "--bisect", "--bogus"][..], "--bogus"),
        (&["run", "--bisect"], "--bisect is for a kernel that was built"),
        (&["run", "--bisect", "--kernel", "bzImage"], "bzImage"),
    ] {
        let text = expect(&tornblk(arguments, dir.path()), 125);
        assert!(
            text.contains(says) && text.contains("git bisect: this kernel cannot be"),
            "{text}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (&["run", "--append", "x=1 rdinit=/bin/sh"][..], "`rdinit=/bin/sh` cannot be changed"),
        (&["run", "--gdb"], "one cut of one lane"),
        (&["run", "--gdb", "raw"], "is no port"),
        (&["run", "--shell"], "name it with --lane"),
    ] {
        let text = expect(&tornblk(arguments, dir.path()), 2);
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_kernel_that_does_not_boot_is_skipped_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let image = tornblk_image::build(
        &tornblk_image::Request::new(tornblk_image::DEFAULT_KERNEL.parse().unwrap()),
        &mut |_| {},
    );
    let kernel = image.unwrap().kernel;
    // Without its initramfs it finds nothing to run.
    let never = ["run", "--lane", "raw", "--append", "initcall_blacklist=populate_rootfs"];
    let kernel = ["--bisect", "--kernel", kernel.to_str().unwrap()];
    let text = expect(&tornblk(&[&never[..], &kernel].concat(), dir.path()), 125);
    assert!(
        text.contains("the guest's kernel does not boot: the guest's kernel panicked"),
        "{text}"
    );
    assert!(text.contains("VFS: Unable to mount root fs"), "{text}");
    assert!(!dir.path().join("tornblk-out").exists(), "nothing is left");
}

#[test]
fn a_shell_has_the_lanes_disk_and_its_session_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("typed"), "echo kept > /mnt/a && sync; df /mnt | tail -1\n")
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tornblk"))
        .args(["run", "--lane", "buffered-ext4", "--shell", "--out", "out"])
        .stdin(std::fs::File::open(dir.path().join("typed")).unwrap())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = expect(&output, 0);
    assert!(text.contains("/dev/vda") && text.contains("mounted on /mnt"), "{text}");
    // What it says can be done with it can be done.
    let command = text.lines().find(|l| l.contains("recording export")).unwrap().trim();
    let (_, arguments) = command.split_once(" recording export ").unwrap();
    let arguments: Vec<&str> = arguments.split(' ').map(|a| a.trim_matches('\'')).collect();
    expect(&tornblk(&[&["recording", "export"][..], &arguments].concat(), dir.path()), 0);
    let image = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert!(image.chunks(512).any(|sector| sector.starts_with(b"kept\n")), "it was written");
}

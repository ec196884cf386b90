//! `tornblkd` as a program: what it says, how it ends, and what it leaves behind.

use crate::guest::{Guest, until};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;

pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.img"), vec![7; 1 << 20]).unwrap();
        Place { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tornblkd"));
        command
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// With a socket and an image, and `arguments`: runs to its end.
    fn refused(&self, arguments: &str) -> String {
        let output =
            self.command(&format!("--socket s --image disk.img {arguments}")).output().unwrap();
        one_line(&output)
    }

    pub(crate) fn start(&self, arguments: &str) -> Running {
        let line = format!("--socket s --image disk.img {arguments}");
        let child = self.command(&line).spawn().unwrap();
        let running = Running(Some(child));
        until(|| self.path("s").exists());
        running
    }
}

/// Exit code 2, one line that begins with the program's name; gives the line.
fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("tornblkd: "), "{text}");
    assert!(output.stdout.is_empty());
    text
}

pub(crate) struct Running(pub(crate) Option<Child>);

impl Running {
    pub(crate) fn signal(mut self, signal: rustix::process::Signal) -> Output {
        let child = self.0.take().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn nothing_left(place: &Place) {
    let mut names: Vec<_> = std::fs::read_dir(place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["disk.img"]);
}

#[test]
fn a_file_that_is_where_its_own_would_be_is_nobody_s_to_take() {
    let place = Place::new();
    let all = vec![7; 1 << 20];
    std::fs::copy(place.path("disk.img"), place.path("s.state")).unwrap();
    for arguments in ["", "--read-only", "--control c"] {
        let told = place.refused(arguments);
        assert!(told.contains("s.state cannot be kept") && told.contains("move it"), "{told}");
        assert!(std::fs::read(place.path("s.state")).unwrap() == all);
    }
    // The disk itself.
    std::fs::rename(place.path("s.state"), place.path("t.state")).unwrap();
    let told = one_line(&place.command("--socket t --image t.state").output().unwrap());
    assert!(told.contains("t.state cannot be kept"), "{told}");
    assert!(std::fs::read(place.path("t.state")).unwrap() == all);
    std::fs::remove_file(place.path("t.state")).unwrap();
    // A recording that is made for it goes again.
    let told = place.refused("--recording s.state");
    assert!(told.contains("s.state cannot be kept"), "{told}");
    std::fs::create_dir(place.path("s.state")).unwrap();
    let told = place.refused("");
    assert!(told.contains("and no file"), "{told}");
    std::fs::remove_dir(place.path("s.state")).unwrap();
    let told = place.refused("--control s");
    assert!(told.contains("name two paths"), "{told}");
    nothing_left(&place);
}

#[test]
fn another_disk_where_a_guest_may_still_be_is_told() {
    let place = Place::new();
    std::fs::copy(place.path("disk.img"), place.path("other.img")).unwrap();
    for (arguments, says) in [
        ("--socket s --image disk.img", None),
        ("--socket s --image disk.img", None),
        ("--socket s --image other.img", Some("disk.img")),
        ("--socket s --image other.img --recording r", Some("other.img")),
        ("--socket s --image other.img --recording r --read-only", Some("recorded to")),
    ] {
        let running = Running(Some(place.command(arguments).spawn().unwrap()));
        // It is told before anybody is served.
        let _ = Guest::ready(&place.path("s"), 1);
        let output = running.signal(rustix::process::Signal::KILL);
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| line.contains("goes on with another disk"));
        assert_eq!(line.is_some(), says.is_some(), "{said}");
        assert!(line.unwrap_or_default().contains(says.unwrap_or_default()), "{said}");
        std::fs::remove_file(place.path("s")).unwrap();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let place = Place::new();
    // Into a pipe that is read only at its end.
    let running = place.start("--control c");
    let control = tornblk_proto::Client::connect(place.path("c")).unwrap();
    // A mark in the log for each: far more than the 64 KiB that a pipe holds.
    let line = "x".repeat(400);
    for _ in 0..1500 {
        assert!(control.mark(&line).is_err(), "there is no recording");
        let mut front_end = std::os::unix::net::UnixStream::connect(place.path("s")).unwrap();
        std::io::Write::write_all(&mut front_end, &[0xff; 12]).unwrap();
    }
    until(|| !control.status().unwrap().connected);
    let mut guest = Guest::ready(&place.path("s"), 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(status, OK);
    drop((guest, control));
    let child = running.0.as_ref().unwrap();
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until(|| !place.path("s").exists());
    let output = running.signal(rustix::process::Signal::TERM);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.len() >= 60_000, "too little for a pipe: {}", said.len());
}

#[test]
fn it_serves_until_a_signal_and_says_what_it_offers() {
    use rustix::process::Signal;
    let mut signals = vec![Signal::TERM, Signal::INT];
    // A parent under nohup(1) leaves it ignored, and then it is to be ignored: see below.
    if !hup_is_ignored() {
        signals.push(Signal::HUP);
    }
    for signal in signals {
        let place = Place::new();
        let running =
            place.start("--logical-block-size 4k --num-queues 3 --queue-size 128 --control c");
        let mut guest = Guest::ready(&place.path("s"), 3);
        let data = [9; 4096];
        let (_, status) = guest.ask(2, |driver| driver.gives(VIRTIO_BLK_T_OUT, 8, &data));
        assert_eq!(status, OK);
        let (sent, _) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_GET_ID, 0, 20));
        let id = guest.queues[0].driver.bytes(sent.data, 20);
        assert!(id.starts_with(b"tornblk\0"));

        let output = running.signal(signal);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{log}");
        for part in ["1m from disk.img", "blocks 4k logical", "3 queues of 128", "raw"] {
            assert!(log.contains(part), "no `{part}` in {log}");
        }
        nothing_left(&place);
        let image = std::fs::read(place.path("disk.img")).unwrap();
        assert_eq!(image[4096..8192], data);
        assert_eq!(image[8192..], [7; (1 << 20) - 8192]);
    }
}

fn hup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

#[test]
fn with_nohup_it_outlives_its_terminal() {
    use rustix::process::{Pid, Signal, kill_process};
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_tornblkd");
    let child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" --socket s --image disk.img", program])
        .current_dir(place.dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let running = Running(Some(child));
    until(|| place.path("s").exists());
    kill_process(Pid::from_child(running.0.as_ref().unwrap()), Signal::HUP).unwrap();
    let mut guest = Guest::ready(&place.path("s"), 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(status, OK);
    assert_eq!(running.signal(Signal::TERM).status.code(), Some(0));
    nothing_left(&place);
}

#[test]
fn limits_are_said_with_what_they_are_worth() {
    let place = Place::new();
    let running = place.start("--atomic-unit-max 64k --atomic-boundary 128k");
    let output = running.signal(rustix::process::Signal::TERM);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("atomic writes 512 to 64k"), "{log}");
    assert!(log.contains("boundary 128k"), "{log}");
    assert!(log.contains("only as good as the host's own disk"), "{log}");
    assert!(log.contains("from byte 33 of the configuration space alone cannot know"), "{log}");
    let running = place.start("--atomic-unit-max 64k");
    let output = running.signal(rustix::process::Signal::TERM);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.contains("byte 33"), "{log}");
}

#[test]
fn a_scsi_disk_is_said_to_be_one() {
    let place = Place::new();
    let running =
        place.start("--front-end scsi --profile explicit64k --recording r --fault tear-atomic");
    // Sixteen request queues, and two.
    let guest = Guest::ready(&place.path("s"), 4);
    drop(guest);
    let output = running.signal(rustix::process::Signal::TERM);
    let log = String::from_utf8(output.stderr).unwrap();
    for part in ["SCSI, 1m from", "18 queues of 256", "atomic writes 512 to 64k", "(explicit)"] {
        assert!(log.contains(part), "no `{part}` in {log}");
    }
    assert!(!log.contains("eligible") && !log.contains("nothing to tear"), "{log}");
}

#[test]
fn what_cannot_run_is_one_line_that_says_what_to_do() {
    let place = Place::new();
    for (arguments, says) in [
        ("--atomic-unit-max 24k", "use 16k or 32k"),
        ("--atomic-unit-min 32k --atomic-unit-max 16k", "use 16k or less"),
        ("--atomic-unit-min 512 --atomic-unit-max 16k --logical-block-size 4k", "use 4k"),
        ("--atomic-unit-max 1m", "use 512k or less"),
        ("--atomic-unit-max 16k --atomic-mode none", "leave"),
        ("--profile req16k --tear-unit 4k", "leave one of them out"),
        ("--profile lb4k --logical-block-size 512", "leave one out"),
        ("--logical-block-size 1000", "use 512 or 1k"),
        ("--physical-block-size 512 --logical-block-size 4k", "use 4k or more"),
        ("--image none.img", "--image"),
        ("--num-queues 0", "1..=64"),
        ("--front-end scsi --num-queues 63", "use 62 or fewer"),
        ("--front-end scsi --atomic-unit-max 512k", "use 256k or less"),
        ("--front-end scsi --profile lba16k", "use 4k or less, or --front-end blk"),
        ("--front-end nvme", "scsi"),
        ("--queue-size 100", "power of two"),
        ("--hold-completions sometimes", "idle"),
        ("--fault no-such-fault", "no-such-fault"),
        ("--profile no-such-profile", "no-such-profile"),
        ("--no-such-option", "--help"),
        ("--socket /no/such/folder/s", "--socket"),
    ] {
        let line = place.refused(arguments);
        assert!(line.contains(says), "{arguments}: no `{says}` in {line}");
    }
    nothing_left(&place);
}

#[test]
fn images_that_are_no_disks_are_refused() {
    let place = Place::new();
    let image = |name: &str, len: usize| std::fs::write(place.path(name), vec![0; len]).unwrap();
    image("odd.img", 1000);
    image("empty.img", 0);
    for name in ["missing.img", "odd.img", "empty.img", "."] {
        let output = place.command(&format!("--socket s --image {name}")).output().unwrap();
        one_line(&output);
    }
    assert!(!place.path("s").exists());
    let output = place.command("--image disk.img").output().unwrap();
    assert!(one_line(&output).contains("--socket"));
}

#[test]
fn a_busy_socket_is_not_stolen() {
    let place = Place::new();
    let other = Place::new();
    let running = place.start("");
    let busy = place.path("s");
    let line = format!("--image disk.img --socket {}", busy.display());
    let output = other.command(&line).output().unwrap();
    assert!(one_line(&output).contains("in use"));
    // The first is none the worse for it.
    let mut guest = Guest::ready(&busy, 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(status, OK);
    drop(guest);
    assert_eq!(running.signal(rustix::process::Signal::TERM).status.code(), Some(0));
}

#[test]
fn a_second_front_end_is_told_off_with_who_is_there() {
    let place = Place::new();
    let running = place.start("");
    let guest = Guest::ready(&place.path("s"), 1);
    let mut second = std::os::unix::net::UnixStream::connect(place.path("s")).unwrap();
    assert_eq!(std::io::Read::read(&mut second, &mut [0]).unwrap(), 0);
    drop(guest);
    let output = running.signal(rustix::process::Signal::TERM);
    let log = String::from_utf8(output.stderr).unwrap();
    let me = format!("pid {}", std::process::id());
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("turned away")).collect();
    let [line] = lines[..] else { panic!("not one line: {log}") };
    assert_eq!(line.matches(&me).count(), 2, "{line}");
}

#[test]
fn the_control_socket_comes_with_the_disk_and_goes_with_it() {
    let place = Place::new();
    let running = place.start("--control c --atomic-unit-max 16k");
    let client = tornblk_proto::Client::connect(place.path("c")).unwrap();
    let guest = Guest::ready(&place.path("s"), 1);
    until(|| client.status().unwrap().connected);
    assert_eq!(client.limits().unwrap().unit_max, 16384);
    drop(guest);
    until(|| !client.status().unwrap().connected);
    // A path that is taken.
    let other = Place::new();
    let line = format!("--socket s --image disk.img --control {}", place.path("c").display());
    one_line(&other.command(&line).output().unwrap());
    nothing_left(&other);
    assert_eq!(running.signal(rustix::process::Signal::TERM).status.code(), Some(0));
    nothing_left(&place);
}

#[test]
fn a_socket_left_by_a_kill_is_replaced() {
    let place = Place::new();
    place.start("").signal(rustix::process::Signal::KILL);
    assert!(place.path("s").exists());
    let output = {
        let running = place.start("");
        served(&place.path("s"));
        running.signal(rustix::process::Signal::TERM)
    };
    assert_eq!(output.status.code(), Some(0));
    nothing_left(&place);
}

/// Waits until somebody serves there: after a kill the path may still be the dead one's.
fn served(path: &Path) {
    until(|| std::os::unix::net::UnixStream::connect(path).is_ok());
    let mut guest = Guest::ready(path, 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(status, OK);
}

#[test]
fn help_explains_every_option_in_groups() {
    let place = Place::new();
    let output = place.command("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for part in
        ["Disk:", "Atomic writes:", "Faults and control:", "Examples:", "vhost-user-blk-pci"]
    {
        assert!(help.contains(part), "no `{part}` in {help}");
    }
}

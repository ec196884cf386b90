//! One disk, one user: other devices, and QEMU's programs, both ways.

use crate::guest::until;
use crate::rig::{Daemon, OK, Place, skipped};
use rustix::process::Signal;
use std::fs::File;
use std::io::{BufRead, Write};
use std::process::{Child, Command, Output, Stdio};
use tornblk_model::lock::{Access, lock};

/// Runs one of QEMU's programs; `None` where it is not installed.
fn qemu(place: &Place, program: &str, arguments: &[&str]) -> Option<Output> {
    let output = Command::new(program).args(arguments).current_dir(place.path("")).output();
    if output.is_err() {
        skipped(&format!("{program} is not installed"));
    }
    output.ok()
}

fn says(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Writes, or with `-r` reads.
fn qemu_io(place: &Place, arguments: &[&str]) -> Option<Output> {
    let file = *arguments.last()?;
    let reads = arguments.contains(&"-r");
    let command = if reads { "read 0 512" } else { "write -P 9 0 512" };
    let mut all = vec!["-f", "raw", "-c", command];
    all.extend(arguments.iter().filter(|a| **a == "-r"));
    all.push(file);
    qemu(place, "qemu-io", &all)
}

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `qemu-nbd`, once it has the image.
fn qemu_nbd(place: &Place, arguments: &[&str]) -> Option<Other> {
    let socket = place.path("nbd");
    let child = Command::new("qemu-nbd")
        .args(["-f", "raw", "-t", "-k"])
        .arg(&socket)
        .args(arguments)
        .arg("disk.img")
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        skipped("qemu-nbd is not installed");
        return None;
    };
    let other = Other(child);
    // The socket is there before the image is open. Bytes 100 and 101: it reads, and writes.
    let bytes = if arguments.contains(&"-r") { " 100 100" } else { " 100 101" };
    let files = format!("/proc/{}/fdinfo", other.0.id());
    let locks = |file: std::io::Result<std::fs::DirEntry>| {
        let info = std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
        info.lines().any(|line| line.starts_with("lock:") && line.ends_with(bytes))
    };
    until(|| std::fs::read_dir(&files).unwrap().any(locks) && socket.exists());
    Some(other)
}

fn refused(place: &Place, arguments: &str) -> String {
    place.refused(":", &format!("--socket t --image disk.img {arguments}"))
}

fn pid(daemon: &Daemon) -> String {
    format!("pid {} (tornblkd)", daemon.pid().as_raw_nonzero())
}

#[test]
fn a_second_device_is_told_who_has_the_image() {
    let place = Place::new();
    let first = place.start("");
    for other in ["", "--read-only", "--recording r"] {
        let line = refused(&place, other);
        assert!(line.contains("disk.img is in use by"), "{line}");
        assert!(line.contains(&pid(&first)), "{line}");
        assert!(!place.path("r").exists());
    }
    assert_eq!(place.guest(1).write(0, &[9; 512]), OK);
    first.end();
    place.start("").end();
}

#[test]
fn who_only_reads_shares_with_readers_only() {
    let place = Place::new();
    let first = place.start("--recording a");
    let arguments = "--socket t --image disk.img --recording b";
    let mut second = place.start_after(":", arguments);
    second.until_ready(&place.path("t"));
    let third = "--socket u --image disk.img --read-only";
    let mut third = place.start_after(":", third);
    third.until_ready(&place.path("u"));
    assert!(refused(&place, "").contains("in use by pid"));
    // The recording itself has one writer, and any number that look.
    let line = place.refused(":", "--socket v --image disk.img --recording a");
    assert!(line.contains("recording a is being written by"), "{line}");
    assert!(line.contains(&pid(&first)), "{line}");
    assert_eq!(place.guest(1).write(0, &[9; 512]), OK);
    let events = place.recorded("a").len();
    assert!(events > 2, "{events}");
    for daemon in [first, second, third] {
        daemon.end();
    }
    place.start("").end();
}

#[test]
fn a_killed_device_has_nothing_any_more() {
    let place = Place::new();
    // The image is locked for writing, and with a recording for reading.
    for round in 0..6 {
        let mut first = place.start(["--recording a", ""][round as usize / 3]);
        let mut guest = place.guest(1);
        assert_eq!(guest.write(round, &[9; 512]), OK);
        drop(guest);
        first.signal(Signal::KILL);
        assert_eq!(first.code(), None);
        std::fs::remove_file(place.path("s")).unwrap();
    }
    place.start("").end();
}

#[test]
fn the_base_of_shown_states_is_not_written_meanwhile() {
    let place = Place::new();
    place.start("--recording a").end();
    let mut shows = place.start_after(":", "--socket t --states a");
    shows.until_ready(&place.path("t"));
    let line = place.refused(":", "--socket u --image disk.img");
    assert!(line.contains(&pid(&shows)), "{line}");
    let mut another = place.start_after(":", "--socket u --states a");
    another.until_ready(&place.path("u"));
    drop((shows, another));
    let writer = place.start("");
    let line = place.refused(":", "--socket t --states a");
    assert!(line.contains("disk.img") && line.contains(&pid(&writer)), "{line}");
}

#[test]
fn nobody_is_told_of_himself() {
    let place = Place::new();
    let daemon = place.start("--read-only");
    // An older process than the one that has it: it is found first.
    let file = File::options().read(true).write(true).open(place.path("disk.img")).unwrap();
    let Err(error) = lock(&file, Access::Write) else { panic!("both have it") };
    assert!(error.to_string().contains(&pid(&daemon)), "{error}");
}

#[test]
fn qemu_s_programs_keep_off_our_image() {
    let place = Place::new();
    for recording in ["", "--recording a"] {
        let daemon = place.start(recording);
        let Some(output) = qemu_io(&place, &["disk.img"]) else { return };
        assert!(!output.status.success(), "{}", says(&output));
        assert!(says(&output).contains("\"write\" lock"), "{}", says(&output));
        let nbd = ["-f", "raw", "-k", "x", "disk.img"];
        let Some(output) = qemu(&place, "qemu-nbd", &nbd) else { return };
        assert!(!output.status.success(), "{}", says(&output));
        // What we only read, others may read.
        if !recording.is_empty() {
            let output = qemu_io(&place, &["-r", "disk.img"]).unwrap();
            assert!(output.status.success(), "{}", says(&output));
            let Some(output) = qemu(&place, "qemu-img", &["info", "disk.img"]) else { return };
            assert!(output.status.success(), "{}", says(&output));
            // But not the recording be written.
            let output = qemu_io(&place, &["a"]).unwrap();
            assert!(says(&output).contains("\"write\" lock"), "{}", says(&output));
        }
        daemon.end();
        let output = qemu_io(&place, &["disk.img"]).unwrap();
        assert!(output.status.success(), "{}", says(&output));
        std::fs::write(place.path("disk.img"), vec![7; 1 << 20]).unwrap();
    }
}

#[test]
fn we_keep_off_what_qemu_s_programs_write() {
    let place = Place::new();
    let Some(nbd) = qemu_nbd(&place, &[]) else { return };
    for arguments in ["", "--read-only", "--recording a"] {
        let line = refused(&place, arguments);
        let who = format!("in use by pid {} (qemu-nbd)", nbd.0.id());
        assert!(line.contains(&who), "{line}");
    }
    drop(nbd);
    let _ = std::fs::remove_file(place.path("nbd"));
    // What it only reads we may read, too.
    let Some(nbd) = qemu_nbd(&place, &["-r"]) else { return };
    let daemon = place.start("--recording a");
    drop(nbd);
    daemon.end();
}

#[test]
fn we_keep_off_the_disk_of_a_virtual_machine() {
    let place = Place::new();
    let machine = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-S"])
        .args(["-blockdev", "file,filename=disk.img,node-name=f", "-qmp", "unix:q,server,nowait"])
        .args(["-machine", "q35", "-device", "virtio-blk-pci,drive=f"])
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(machine) = machine else { return skipped("qemu-system-x86_64 is not installed") };
    let machine = Other(machine);
    until(|| place.path("q").exists());
    // It carries out a command once its disks are open.
    let mut monitor = std::os::unix::net::UnixStream::connect(place.path("q")).unwrap();
    monitor.write_all(b"{\"execute\": \"qmp_capabilities\"}").unwrap();
    let mut answers = std::io::BufReader::new(monitor).lines();
    assert!(answers.any(|line| line.unwrap().contains("return")), "QEMU did not start");
    for arguments in ["", "--read-only", "--recording a"] {
        let line = refused(&place, arguments);
        let who = format!("in use by pid {} (qemu-system-x86)", machine.0.id());
        assert!(line.contains(&who), "{line}");
    }
}

/// A loop device over `backing`; `None` where that is not allowed.
struct Loop(String);

impl Loop {
    fn over(place: &Place, backing: &str) -> Option<Loop> {
        let output =
            Command::new("losetup").args(["-f", "--show"]).arg(place.path(backing)).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
            }
            _ => {
                skipped("no loop device can be made here: that takes root");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Unmounted in the end, whatever came of the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_has_one_user_and_is_not_mounted() {
    let place = Place::new();
    let Some(device) = Loop::over(&place, "disk.img") else { return };
    let name = &device.0;
    let image = |more: &str| format!("--socket t --image {name} {more}");
    let mut first = place.start_after(":", &format!("--socket s --image {name}"));
    first.until_ready(&place.path("s"));
    for more in ["", "--read-only", "--recording a"] {
        let line = place.refused(":", &image(more));
        assert!(line.contains(&format!("{name} is in use by {}", pid(&first))), "{line}");
    }
    let Some(output) = qemu_io(&place, &[name]) else { return };
    assert!(says(&output).contains("\"write\" lock"), "{}", says(&output));
    first.end();
    // Mounted: nobody has locked it, and it is in use.
    let there = place.path("mounted");
    std::fs::create_dir(&there).unwrap();
    let script = "mkfs.ext4 -q \"$1\" && mount \"$1\" \"$2\"";
    let mounted = Command::new("sh").args(["-c", script, "sh", name]).arg(&there).status().unwrap();
    if !mounted.success() {
        return skipped("nothing can be mounted here");
    }
    let mounted = Mounted(there);
    let line = place.refused(":", &image(""));
    drop(mounted);
    assert!(line.contains("is it mounted, or in use?"), "{line}");
    let mut last = place.start_after(":", &image(""));
    last.until_ready(&place.path("t"));
    last.end();
}

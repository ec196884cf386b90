//! The tools of the guest's distribution on the disk, as on any other: sg3-utils, lsblk, blkid,
//! xfs_io and fio. What they print and how they end is compared, and what reached the disk is
//! looked up in its recording: an atomic write of a tool is one there, and what was refused is not
//! there at all.
//!
//! Needs QEMU (`$TORNBLK_QEMU` to choose one), and a guest image, which is built where missing.

#![allow(clippy::unwrap_used)]

mod blocks;
mod refused;
mod scsi;

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use tornblk::vm::{Accel, FrontEnd, NoHost, Qemu, Vm, VmConfig};
use tornblk_agent::channel::{Command, Outcome};
use tornblk_model::event::{Event, Op, Seq, Status};
use tornblk_model::recording::Reader;

const SIZE: u64 = 512 << 20;

/// A running tornblkd, its disk in the guest, and what of its recording was looked at.
struct Disk {
    child: Child,
    recording: PathBuf,
    seen: Option<Seq>,
}

impl Disk {
    fn attach(
        guest: &mut Guest,
        serial: &str,
        front_end: FrontEnd,
        options: &str,
        device: &str,
    ) -> Disk {
        let path = |suffix: &str| guest.dir.join(format!("{serial}.{suffix}"));
        let (image, socket, recording) = (path("img"), path("sock"), path("rec"));
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let child = Process::new(tornblk::device::find_tornblkd().unwrap())
            .arg("--socket")
            .arg(&socket)
            .arg("--image")
            .arg(image)
            .arg("--recording")
            .arg(&recording)
            .args(["--serial", serial, "--front-end", front_end.of_device()])
            .args(options.split_whitespace())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let disk = Disk { child, recording, seen: None };
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "tornblkd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let attached = guest.vm.attach_disk(&socket, serial, 1, front_end).unwrap();
        assert_eq!(attached.device, device);
        disk
    }

    /// What reached the disk since the last time, in order, but for reads. None of it failed.
    fn came(&mut self) -> Vec<String> {
        let reader = Reader::open(&self.recording).unwrap();
        let since = self.seen;
        let mut came = Vec::new();
        for event in reader.events() {
            let (seq, event) = event.unwrap();
            if since.is_some_and(|since| seq <= since) {
                continue;
            }
            self.seen = Some(seq);
            match event {
                Event::Submit(submit) => came.extend(told(&submit.op)),
                Event::Complete { status, .. } => assert_eq!(status, Status::Ok, "event {seq}"),
                Event::SetWriteback { on } => came.push(format!("writeback {on}")),
                _ => {}
            }
        }
        came
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request in a line: what, offset and length in bytes, and how.
fn told(op: &Op) -> Vec<String> {
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    match op {
        Op::Read { .. } => Vec::new(),
        Op::Write { offset, len, fua, atomic, .. } => {
            let how = (flag(*atomic, " atomic"), flag(*fua, " fua"));
            vec![format!("write {offset}+{len}{}{}", how.0, how.1)]
        }
        Op::Flush { .. } => vec!["flush".to_owned()],
        Op::Discard { segments } => {
            segments.iter().map(|s| format!("discard {}+{}", s.offset, s.len)).collect()
        }
        Op::WriteZeroes { segments } => segments
            .iter()
            .map(|s| format!("zeroes {}+{}{}", s.offset, s.len, flag(s.unmap, " unmap")))
            .collect(),
    }
}

struct Guest {
    vm: Vm,
    dir: PathBuf,
}

impl Guest {
    /// Status and all that it wrote.
    fn sh(&mut self, line: &str) -> (i64, String) {
        let argv = ["sh", "-c", line].map(String::from).to_vec();
        let command = Command::Exec { argv, timeout_ms: 100_000 };
        let deadline = Instant::now() + Duration::from_secs(120);
        match self.vm.call(command, &mut NoHost, deadline).unwrap() {
            Outcome::Ok { value } => {
                let text = |name: &str| value[name].as_str().unwrap().to_owned();
                (value["status"].as_i64().unwrap(), text("stdout") + &text("stderr"))
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    /// What a command that succeeds wrote.
    fn ok(&mut self, line: &str) -> String {
        let (status, text) = self.sh(line);
        assert_eq!(status, 0, "{line}: {text}");
        text
    }

    /// A command that fails with this status, and says all of this.
    fn fails(&mut self, line: &str, with: i64, says: &[&str]) {
        let (status, text) = self.sh(line);
        assert_eq!(status, with, "{line}: {text}");
        for part in says {
            assert!(text.contains(part), "{line}: no `{part}` in: {text}");
        }
    }

    /// A command that succeeds, and of whose output these are whole lines.
    fn says(&mut self, line: &str, lines: &str) {
        let text = self.ok(line);
        for wanted in lines.lines().map(str::trim).filter(|wanted| !wanted.is_empty()) {
            let found = text.lines().any(|said| said.trim() == wanted);
            assert!(found, "{line}: no line `{wanted}` in: {text}");
        }
    }

    /// The kernel has nothing to complain about but what was asked for.
    fn is_content(&mut self) {
        const ASKED_FOR: [&str; 4] = [
            // Whoever opens a node before its disk is there has the kernel look for a driver.
            "block device autoloading is deprecated",
            "Power-on or device reset occurred",
            "tornblk_atomic: loading out-of-tree module taints kernel",
            "tornblk_atomic: module verification failed",
        ];
        /// Said with less than a warning's level.
        const COMPLAINTS: [&str; 9] = [
            "Unexpected response",
            "Asking for cache data failed",
            "Assuming drive cache",
            "No Caching mode page",
            "VPD",
            "abort",
            "timed out",
            "timing out",
            "offline",
        ];
        let log = self.ok("dmesg -r -c");
        for line in log.lines().filter(|line| !ASKED_FOR.iter().any(|part| line.contains(part))) {
            let level: u8 =
                line.trim_start_matches('<').split('>').next().unwrap().parse().unwrap();
            let complains = COMPLAINTS.iter().any(|part| line.contains(part));
            assert!(level & 7 > 4 && !complains, "the kernel says: {line}");
        }
    }
}

fn start(dir: &Path) -> Guest {
    let request = tornblk_image::Request::new(tornblk_image::DEFAULT_KERNEL.parse().unwrap());
    let image = tornblk_image::build(&request, &mut |doing| eprintln!("{doing}")).unwrap();
    let qemu = Qemu::find().unwrap();
    let accel = Accel::probe(&qemu, &image, tornblk_image::cache::default_dir().ok().as_deref());
    let vm = Vm::start(&VmConfig {
        image: &image,
        qemu,
        accel,
        memory_mib: 512,
        cpus: 1,
        dir,
        append: None,
        gdb: None,
        use_saved: false,
        stop: None,
    })
    .unwrap();
    let mut guest = Guest { vm, dir: dir.to_owned() };
    // What it says of its processors is no matter of the disk.
    guest.ok("dmesg -c");
    guest
}

#[test]
fn tools_find_what_they_find_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = start(dir.path());
    tools(&mut guest);
    guest.vm.quit();
}

fn tools(guest: &mut Guest) {
    let mut whole =
        Disk::attach(guest, "whole", FrontEnd::Scsi, "--profile explicit64k", "/dev/sda");
    let options = "--physical-block-size 4k --atomic-mode explicit --atomic-unit-min 4k \
                   --atomic-unit-max 16k --atomic-boundary 64k";
    let mut bounded = Disk::attach(guest, "bounded", FrontEnd::Scsi, options, "/dev/sdb");
    let options = "--logical-block-size 4k";
    let mut plain = Disk::attach(guest, "plain", FrontEnd::Scsi, options, "/dev/sdc");
    let mut virtio = Disk::attach(guest, "virtio", FrontEnd::Blk, "--profile req64k", "/dev/vda");
    guest.is_content();

    scsi::identity(guest);
    scsi::limits(guest);
    scsi::opcodes(guest);
    scsi::mode_and_size(guest);
    scsi::syncs_discards_and_zeroes(guest, &mut whole);
    scsi::atomic_writes(guest, &mut whole, &mut bounded);
    refused::by_a_disk_with_limits(guest, &mut whole);
    refused::by_a_disk_with_a_boundary(guest, &mut bounded);
    refused::by_a_disk_without_limits(guest, &mut plain);
    refused::by_virtio_blk(guest, &mut virtio);
    scsi::reset(guest, &mut whole);
    guest.is_content();

    blocks::lsblk_and_blkid(guest, &mut plain);
    blocks::cache_and_rescan(guest, &mut whole);
    blocks::the_module_is_loaded(guest);
    blocks::xfs_io_on_disks(guest, &mut whole, &mut bounded, &mut virtio);
    blocks::xfs_io_on_a_file(guest, &mut whole);
    blocks::fio(guest, &mut whole, &mut bounded, &mut virtio);
    guest.is_content();
}

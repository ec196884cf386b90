//! The disk, used as a disk: a stock guest partitions nothing and trusts nothing. File systems are
//! made and verified on it, it is discarded, unplugged and plugged in again; then the image that
//! the recording holds is compared with what the guest last read.
//!
//! Needs QEMU (`$TORNBLK_QEMU` to choose one), and a guest image, which is built where missing.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};
use tornblk::vm::{Accel, FrontEnd, NoHost, Qemu, Vm, VmConfig};
use tornblk_agent::channel::{Command, Outcome};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1024 * MIB;
const QUEUES: u16 = 4;

struct Device(Child);

impl Device {
    fn start(dir: &Path, more: &[&str]) -> Device {
        let socket = dir.join("disk.sock");
        let child = Process::new(tornblk::device::find_tornblkd().unwrap())
            .arg("--socket")
            .arg(&socket)
            .arg("--image")
            .arg(dir.join("disk.img"))
            .args(["--serial", "attached"])
            .args(more)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "tornblkd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Device(child)
    }

    /// As a user ends it.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(vm: &mut Vm, command: Command) -> Value {
    let deadline = Instant::now() + Duration::from_secs(300);
    match vm.call(command.clone(), &mut NoHost, deadline).unwrap() {
        Outcome::Ok { value } => value,
        other => panic!("{command:?}: {other:?}"),
    }
}

fn sh(vm: &mut Vm, line: &str) -> String {
    let argv = ["sh", "-ec", line].map(String::from).to_vec();
    let value = ask(vm, Command::Exec { argv, timeout_ms: 240_000 });
    assert_eq!(value["status"], 0, "{line}: {value}");
    value["stdout"].as_str().unwrap().to_owned()
}

fn checksum(vm: &mut Vm, path: &str) -> String {
    let value = ask(vm, Command::Checksum { path: path.into(), offset: 0, len: None });
    assert_eq!(value["bytes"], SIZE);
    value["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn a_guest_uses_the_disk() {
    let image = tornblk_image::build(
        &tornblk_image::Request::new(tornblk_image::DEFAULT_KERNEL.parse().unwrap()),
        &mut |doing| eprintln!("{doing}"),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("disk.img");
    std::fs::File::create(&base).unwrap().set_len(SIZE).unwrap();
    let recording = dir.path().join("disk.rec");
    let recording = recording.to_str().unwrap();
    let device = Device::start(dir.path(), &["--recording", recording, "--profile", "req64k"]);

    let qemu = Qemu::find().unwrap();
    let accel = Accel::probe(&qemu, &image, tornblk_image::cache::default_dir().ok().as_deref());
    let mut vm = Vm::start(&VmConfig {
        image: &image,
        qemu,
        accel,
        memory_mib: 512,
        cpus: QUEUES,
        dir: dir.path(),
        use_saved: false,
        append: None,
        gdb: None,
        stop: None,
    })
    .unwrap();
    let socket = dir.path().join("disk.sock");
    let disk = vm.attach_disk(&socket, "attached", QUEUES, FrontEnd::Blk).unwrap();
    let queues = format!("ls /sys/block/{}/mq | wc -l", disk.device.trim_start_matches("/dev/"));
    assert_eq!(sh(&mut vm, &queues).trim(), QUEUES.to_string());

    for (fs, mkfs) in [("xfs", "mkfs.xfs -q -f"), ("ext4", "mkfs.ext4 -q -F")] {
        sh(&mut vm, &format!("mkdir -p /mnt; {mkfs} {0}; mount -t {fs} {0} /mnt", disk.device));
        sh(
            &mut vm,
            "fio --name=verify --directory=/mnt --size=4m --numjobs=4 --rw=randwrite --bs=4k \
             --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 \
             --verify_fatal=1 --end_fsync=1 --group_reporting >/tmp/fio.log 2>&1 || \
             { cat /tmp/fio.log; exit 1; }; umount /mnt",
        );
        let check = if fs == "xfs" { "xfs_repair -n" } else { "e2fsck -fn" };
        sh(&mut vm, &format!("{check} {} >/dev/null 2>&1", disk.device));
        if fs == "xfs" {
            // What is discarded reads as zeroes, and nothing else is touched.
            sh(&mut vm, &format!("blkdiscard -o 512M -l 64M {}", disk.device));
            sh(
                &mut vm,
                &format!(
                    "dd if={} bs=1M skip=512 count=64 2>/dev/null | cmp -n 67108864 - /dev/zero",
                    disk.device
                ),
            );
        }
    }
    // Another file system on top, left there, so that there is something to compare.
    sh(&mut vm, &format!("blkdiscard -o 900M -l 16M {}", disk.device));

    vm.detach_disk(disk).unwrap();
    let disk = vm.attach_disk(&socket, "attached", QUEUES, FrontEnd::Blk).unwrap();
    sh(&mut vm, &format!("mount -t ext4 {} /mnt; ls /mnt/verify.0.0; umount /mnt", disk.device));
    let read = checksum(&mut vm, &disk.device);
    vm.quit();
    device.stop();

    // The base is as it was; the recording knows the rest.
    let rebuilt = dir.path().join("rebuilt.img");
    let status = Process::new(env!("CARGO_BIN_EXE_tornblk"))
        .args(["recording", "export", recording, "-o"])
        .arg(&rebuilt)
        .status()
        .unwrap();
    assert!(status.success());
    let sum = Process::new("sha256sum").arg(&rebuilt).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(sum.split_whitespace().next().unwrap(), read);
    let untouched = Process::new("cmp")
        .args(["-n", &SIZE.to_string()])
        .arg(&base)
        .arg("/dev/zero")
        .status()
        .unwrap();
    assert!(untouched.success(), "the base image was written");
}

//! A disk under load whose device, and whose QEMU, may die: what the soak and the tests of
//! reconnecting share.
//!
//! - this file: the bench, a disk with the device that serves it and the guest that uses it.
//! - [`device`]: `tornblkd` as a process that is killed and started again as it was.
//! - [`load`]: fio in the guest, writing and verifying until it is told to stop.
//! - [`history`]: what a recording must say of requests that a dead device left behind.

#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod device;
pub(crate) mod history;
pub(crate) mod load;

use serde_json::Value;
use sha2::Digest as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tornblk::splat::{self, Around};
use tornblk::vm::{Accel, Disk, FrontEnd, NoHost, Qemu, Vm, VmConfig};
use tornblk_agent::channel::{Command, Outcome};
use tornblk_image::Image;

pub(crate) use device::{Device, Store};
pub(crate) use load::Load;

/// As many as the guest has processors, and so as many queues as its driver takes.
pub(crate) const CPUS: u16 = 4;

pub(crate) const SERIAL: &str = "soak";

/// For what takes no longer than the guest itself: on a machine where everybody builds, too.
const PATIENCE: Duration = Duration::from_secs(240);

/// Whatever is not as it must be, as a sentence.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// What guests are started from: the same for all of them.
#[derive(Debug)]
pub(crate) struct Ground {
    image: Image,
    qemu: Qemu,
    accel: Accel,
}

impl Ground {
    pub(crate) fn new() -> Ground {
        let kernel = tornblk_image::DEFAULT_KERNEL.parse().unwrap();
        let request = tornblk_image::Request::new(kernel);
        let image = tornblk_image::build(&request, &mut |doing| eprintln!("{doing}")).unwrap();
        let qemu = Qemu::find().unwrap();
        let cache = tornblk_image::cache::default_dir().ok();
        let accel = Accel::probe(&qemu, &image, cache.as_deref());
        Ground { image, qemu, accel }
    }

    pub(crate) fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// Whether QEMU may end by SIGSEGV where a device comes or goes, whatever the device is: before
    /// 8.2 an emulated processor may see the machine's new map of memory while it still uses what it
    /// remembers of the old one, and finds no region there ("softmmu: Use async_run_on_cpu in
    /// tcg_commit", August 2023; QEMU's issues 1826, 1834, 1846). Seen on 7.2.22 once in 200 times,
    /// in `memory_region_dispatch_write` of a null pointer, on a processor's thread.
    pub(crate) fn may_crash(&self) -> bool {
        self.accel == Accel::Tcg && self.qemu.version() < (8, 2, 0)
    }

    fn config<'a>(&'a self, dir: &'a Path) -> VmConfig<'a> {
        VmConfig {
            image: &self.image,
            qemu: self.qemu.clone(),
            accel: self.accel,
            memory_mib: 512,
            cpus: CPUS,
            dir,
            use_saved: true,
            append: None,
            gdb: None,
            stop: None,
        }
    }
}

/// A guest, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    dir: PathBuf,
    disk: Option<Disk>,
}

impl Guest {
    /// Starts one without a disk: a second, once there is a saved state of such a guest.
    pub(crate) fn start(ground: &Ground, dir: &Path) -> Result<Guest> {
        std::fs::create_dir_all(dir).map_err(told("cannot make the guest's folder"))?;
        let vm = Vm::start(&ground.config(dir)).map_err(told("no guest"))?;
        Ok(Guest { vm, dir: dir.to_owned(), disk: None })
    }

    /// Plugs the device's disk in; QEMU connects again when the device was killed.
    pub(crate) fn plug(&mut self, device: &Device) -> Result<()> {
        let front_end = device.front_end();
        let queues = CPUS;
        let disk = self.vm.attach_disk_for_good(&device.socket(), SERIAL, queues, front_end);
        let disk = disk.map_err(|error| {
            format!("the disk cannot be plugged in: {error}; {:?}", device.status())
        })?;
        let seen = &disk.info["queues"];
        if seen.as_u64() != Some(queues.into()) {
            return Err(format!("the guest uses {seen} queues of the disk, not {queues}"));
        }
        self.disk = Some(disk);
        Ok(())
    }

    /// Unplugs the disk: QEMU is asked, and the guest lets it go.
    pub(crate) fn unplug(&mut self) -> Result<Duration> {
        let start = Instant::now();
        if let Some(disk) = self.disk.take() {
            self.vm.detach_disk(disk).map_err(told("the disk cannot be unplugged"))?;
        }
        Ok(start.elapsed())
    }

    /// `/dev/vda`.
    pub(crate) fn path(&self) -> &str {
        self.disk.as_ref().map_or("/dev/null", |disk| &disk.device)
    }

    /// `vda`.
    pub(crate) fn name(&self) -> &str {
        self.path().trim_start_matches("/dev/")
    }

    /// Writes the guest, which has no disk, to a file, ends QEMU, and goes on in a new one.
    pub(crate) fn save_and_restore(self, ground: &Ground, dir: &Path) -> Result<Guest> {
        if self.disk.is_some() {
            return Err("a guest with a disk cannot be saved".into());
        }
        std::fs::create_dir_all(dir).map_err(told("cannot make the guest's folder"))?;
        let state = dir.join("snapshot.state");
        self.vm
            .save(&ground.config(&self.dir), &state)
            .map_err(told("the guest cannot be saved"))?;
        let vm = Vm::restore(&ground.config(dir), &state).map_err(told("no restored guest"))?;
        // Some hundred megabytes.
        std::fs::remove_file(&state).map_err(told("cannot remove the guest's state"))?;
        Ok(Guest { vm, dir: dir.to_owned(), disk: None })
    }

    /// Runs a line of the shell in the guest, whose status must be 0; gives what it said.
    pub(crate) fn sh(&mut self, line: &str) -> Result<String> {
        let argv = ["sh", "-ec", line].map(String::from).to_vec();
        let timeout_ms = PATIENCE.as_millis() as u64;
        let value = self.ask(Command::Exec { argv, timeout_ms })?;
        match (&value["status"], &value["stdout"]) {
            (Value::Number(status), Value::String(said)) if status.as_u64() == Some(0) => {
                Ok(said.clone())
            }
            _ => Err(format!("`{line}` in the guest: {value}")),
        }
    }

    pub(crate) fn ask(&mut self, command: Command) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(30);
        match self.vm.call(command.clone(), &mut NoHost, deadline) {
            Ok(Outcome::Ok { value }) => Ok(value),
            Ok(other) => Err(format!("{command:?}: {other:?}")),
            Err(error) => Err(format!("{command:?}: {error}")),
        }
    }

    /// SHA-256 of a part of the disk, as the guest reads it.
    pub(crate) fn sha256(&mut self, part: Part) -> Result<String> {
        let (path, Part { offset, len }) = (self.path().to_owned(), part);
        let value = self.ask(Command::Checksum { path, offset, len: Some(len) })?;
        match (&value["sha256"], &value["bytes"]) {
            (Value::String(sum), Value::Number(bytes)) if bytes.as_u64() == Some(len) => {
                Ok(sum.clone())
            }
            _ => Err(format!("the guest read the disk only in part: {value}")),
        }
    }

    /// What the guest's kernel said of I/O errors, file systems, tasks that hang, and bugs: nothing,
    /// where all is well.
    pub(crate) fn complaints(&mut self) -> Result<Vec<String>> {
        let value = self.ask(Command::Dmesg {})?;
        match &value["text"] {
            Value::String(text) if !text.is_empty() => Ok(complaints(text)),
            // A kernel says what it is when it starts.
            other => Err(format!("the guest's kernel said nothing at all: {other}")),
        }
    }

    pub(crate) fn no_complaints(&mut self) -> Result<()> {
        none(&self.complaints()?)
    }

    /// As far as a guest that cannot be asked said it on its console.
    pub(crate) fn console_has_no_complaints(&self) -> Result<()> {
        let path = self.dir.join("console.log");
        let text = std::fs::read(path).map_err(told("the guest's console cannot be read"))?;
        none(&complaints(&String::from_utf8_lossy(&text)))
    }
}

fn none(complaints: &[String]) -> Result<()> {
    match complaints {
        [] => Ok(()),
        some => Err(format!("the guest's kernel complains: {}", some.join(" | "))),
    }
}

/// In a kernel's log: what a run of the harness would call findings, and what virtio's drivers say
/// of a device that breaks the rules.
fn complaints(log: &str) -> Vec<String> {
    let found = splat::find(log).into_iter();
    let found = found.filter(|it| splat::harmless(it, Around::default()).is_none());
    let rings = ["is not a head!", "out of range"];
    let is_ring = |line: &&str| line.contains("virtio") && rings.iter().any(|r| line.contains(r));
    let of_rings = log.lines().filter(is_ring).map(str::to_owned);
    found.map(|it| it.lines.join(" / ")).chain(of_rings).collect()
}

#[test]
fn what_a_kernel_complains_about_is_found() {
    for line in [
        "INFO: task fio:77 blocked for more than 120 seconds.",
        "I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 2",
        "Buffer I/O error on dev vda, logical block 8, lost async page write",
        "JBD2: I/O error when updating journal superblock for vda.",
        "Aborting journal on device vda-8.",
        "EXT4-fs error (device vda): ext4_lookup:1787: inode #12: comm ls: iget: checksum invalid",
        "XFS (vda): Corruption detected. Unmount and run xfs_repair",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2",
        "virtio_blk virtio1: req.0:id 5 is not a head!",
    ] {
        let log = format!("[    1.000000] fine\n[   42.000001] {line}\n[   43.000000] fine\n");
        let found = complaints(&log);
        assert!(found.len() == 1 && found[0].contains(line), "{line}: {found:?}");
    }
    // Its own processors may be late: the machine is busy.
    let late = "[   42.000001] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [fio:80]\n";
    assert_eq!(complaints(late), Vec::<String>::new());
    assert_eq!(complaints("[    1.0] XFS (vda): Ending clean mount\n"), Vec::<String>::new());
}

/// Of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// SHA-256 of a part of a file.
pub(crate) fn sha256_of(path: &Path, part: Part) -> Result<String> {
    let cannot = || told(&format!("cannot read {}", path.display()));
    let mut file = std::fs::File::open(path).map_err(cannot())?;
    file.seek(SeekFrom::Start(part.offset)).map_err(cannot())?;
    let mut file = file.take(part.len);
    let mut sum = sha2::Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(cannot())? {
            0 => break,
            n => sum.update(&piece[..n]),
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn told<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String + use<E> {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same choices from the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            return Err(format!("{what}: not within {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How QEMU's front-ends are told apart here.
pub(crate) fn reconnects(qemu: &Qemu, front_end: FrontEnd) -> bool {
    // vhost-user-scsi does since 9.0.
    front_end == FrontEnd::Blk || qemu.version() >= (9, 0, 0)
}

//! The user's own program on a fresh disk, recorded.
//!
//! One guest: the disk is mounted, the program runs to its end (mark `exec-done`), everything is synced
//! (mark `synced`). What comes after that is no part of what is explored. Where the files lie is looked
//! for before the program begins and when all is synced.
//!
//! What is to be on the disk before is the work of another program, in a guest of its own, of which
//! nothing is recorded.

use super::cut::SERIAL;
use super::disks::{self, FurtherDisk};
use super::session::{ask, guest, nobodys};
use super::volume::{LONG, MakeFs, SHORT, make};
use super::{Environment, GuestArgs, Lab as _, RealLab, RunError, RunFolder, Volume, check};
use crate::device::{Device, DeviceError, DiskSpec};
use crate::explore::{
    ByName, Checker, ExploreError, GuestNeeds, Opened, Snapshot, Subject, Verdict, judge, said,
};
use crate::vm::{self, Virtiofsd, Vm};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Command, Folder, MarkText, Outcome, Program, Ran, USER_MOUNT};
use tornblk_model::crash::{Profile, StateName};
use tornblk_proto::Client;

/// All that the program wrote was synced.
pub const SYNCED: &str = "synced";
/// It ended.
const DONE: &str = "exec-done";

/// A program, its checker, and the disk for them.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// For reports: the program's name.
    pub name: String,
    /// What puts on the disk what the program finds there, with its name.
    pub setup: Option<(String, Program)>,
    pub program: Program,
    pub checker: Checker,
    /// Makes the file system, with `{device}` for the disk; empty: it stays raw.
    pub mkfs: Vec<String>,
    pub volume: Volume,
    /// Bytes.
    pub size: u64,
    /// Disks beside that one, each with its `mkfs`: all on a SCSI device.
    pub disks: Vec<(FurtherDisk, Vec<String>)>,
    pub seed: u64,
    pub guest: GuestArgs,
    pub virtiofsd: Virtiofsd,
}

impl Wanted {
    /// "./write.sh on ext4, 256 MiB"
    pub fn told(&self) -> String {
        let fs = if self.volume.is_raw() { "a raw disk" } else { &self.volume.fstype };
        let each = self.disks.iter().map(|(disk, _)| {
            let fs = if disk.is_raw() { "raw" } else { &disk.fstype };
            format!(", {} on {fs}, {} MiB", disk.name, disk.size >> 20)
        });
        let mut told = format!("{} on {fs}, {} MiB", self.name, self.size >> 20);
        told.extend(each);
        if !self.disks.is_empty() {
            told += "; SCSI disks that share a power cut";
        }
        told
    }

    fn further(&self) -> Vec<FurtherDisk> {
        self.disks.iter().map(|(disk, _)| disk.clone()).collect()
    }

    /// What makes each file system, by the disk's serial number.
    fn mkfs(&self) -> impl Iterator<Item = (String, impl Fn(&str) -> Vec<String>)> {
        let each = std::iter::once(&self.mkfs).chain(self.disks.iter().map(|(_, mkfs)| mkfs));
        let named = disks::serials(SERIAL, &self.further()).into_iter().zip(each);
        named.filter(|(_, mkfs)| !mkfs.is_empty()).map(|(serial, mkfs)| {
            let on = move |device: &str| -> Vec<String> {
                mkfs.iter().map(|word| word.replace("{device}", device)).collect()
            };
            (serial, on)
        })
    }
}

/// What is left of it.
#[derive(Debug)]
pub struct Programmed {
    pub recording: PathBuf,
    /// That the program made.
    pub marks: u64,
    pub took: Duration,
}

/// Runs it in a guest.
///
/// # Errors
/// No guest or disk can be had, or the program fails.
pub fn program(
    lab: &mut RealLab,
    wanted: &Wanted,
    folder: &RunFolder,
    interrupted: &AtomicBool,
    phase: &mut dyn FnMut(&str),
) -> Result<Programmed, RunError> {
    let dir = folder.path().to_owned();
    let (base, recording) = (dir.join("base.img"), dir.join(super::RECORDING));
    let image = std::fs::File::create(&base).map_err(RunError::io("make", &base))?;
    let further = wanted.further();
    let capacity = wanted.size + further.iter().map(|disk| disk.size).sum::<u64>();
    image.set_len(capacity).map_err(RunError::io("make", &base))?;
    let mut spec = DiskSpec {
        image: base,
        recording: None,
        profile: wanted.volume.profile.clone(),
        logical_block_size: wanted.volume.logical_block_size,
        front_end: wanted.volume.front_end,
        luns: disks::luns(capacity, &further),
        serial: SERIAL.to_owned(),
        seed: wanted.seed,
        faults: Vec::new(),
        hold_completions: None,
        log: dir.join("device.log"),
    };
    let mkfs: Vec<_> = wanted.mkfs().collect();
    let all: Vec<(String, &MakeFs)> =
        mkfs.iter().map(|(serial, mkfs)| (serial.clone(), mkfs as &MakeFs)).collect();
    if !all.is_empty() {
        phase(if all.len() > 1 { "formatting the disks" } else { "formatting the disk" });
        let disk = lab.disk(&spec)?;
        wanted.volume.format(lab, disk.as_ref(), &dir, &all, interrupted)?;
        disk.stop()?;
    }
    if let Some((name, setup)) = &wanted.setup {
        phase("starting a guest");
        check(interrupted)?;
        let device = Device::start(&lab.tornblkd, &spec)?;
        let mut room = Room::new(lab, wanted, &device, &make(&dir, "setup")?, interrupted)?;
        room.mount()?;
        phase(&format!("running {name}"));
        let ran = room.run(setup, name)?;
        keep(&dir.join("setup.log"), &ran)?;
        must_have_ended(&ran, name, setup)?;
        room.umount()?;
        room.vm.kill();
        device.stop()?;
    }
    spec.recording = Some(recording.clone());
    phase("starting a guest");
    check(interrupted)?;
    let device = Device::start(&lab.tornblkd, &spec)?;
    let mut room = Room::new(lab, wanted, &device, &make(&dir, "exec")?, interrupted)?;
    room.introduce(lab, wanted)?;
    room.mount()?;
    room.snapshot()?;
    phase(&format!("running {}", wanted.name));
    let start = Instant::now();
    let ran = room.run(&wanted.program, &wanted.name)?;
    let took = start.elapsed();
    keep(&dir.join("exec.log"), &ran)?;
    must_have_ended(&ran, &wanted.name, &wanted.program)?;
    room.phase(DONE)?;
    room.ask("syncing", Command::Sync {})?;
    room.phase(SYNCED)?;
    room.snapshot()?;
    let marks = std::mem::take(&mut room.host.said);
    room.vm.kill();
    device.stop()?;
    Ok(Programmed { recording, marks: marks.len() as u64, took })
}

/// The checker must be content with a disk that lost no power, where it will look at all others: in a
/// guest that knows nothing of the program. What it would say of any disk proves nothing.
///
/// # Errors
/// It is not, or cannot be asked.
pub fn first_looks(
    lab: &RealLab,
    recording: &Path,
    folder: &RunFolder,
    seed: u64,
    interrupted: &Arc<AtomicBool>,
) -> Result<(), ExploreError> {
    let opened = Opened::open(recording, None)?;
    let Some(subject) = &opened.subject else {
        return Err(ExploreError::Bad("the recording does not say what it is of".to_owned()));
    };
    let needs = GuestNeeds {
        dir: folder.path().to_owned(),
        fsck_every: 0,
        nested: 0,
        seed,
        stop: Arc::clone(interrupted),
    };
    let means = lab.means(&opened, subject, &needs)?;
    let profile: Profile = subject.volume.profile.parse()?;
    let looks = [
        ("none", "before anything was written to it (there are no marks then, either)"),
        ("all", "as the program left it"),
    ];
    let events = [opened.events.first(), opened.events.last()].into_iter().flatten();
    let names: Vec<StateName> = events
        .zip(looks)
        .map(|(event, (which, _))| StateName(format!("{profile}/p{}:{which}", event.0)))
        .collect();
    let wanted: Vec<ByName<'_>> =
        names.iter().map(|name| ByName { name, recovery: None }).collect();
    let verdicts = judge(&opened, &*means, None, &profile, &wanted)?;
    for (verdict, (_, how)) in verdicts.into_iter().zip(looks) {
        let why = match verdict {
            Verdict::Passed => continue,
            Verdict::Failed(findings) => {
                findings.into_iter().map(|f| f.text).collect::<Vec<_>>().join("; ")
            }
            Verdict::Unsure(why) => why,
        };
        return Err(ExploreError::Bad(format!(
            "the checker must be content with a disk that lost no power, and is not with this one, {how}: \
             {why}"
        )));
    }
    Ok(())
}

/// Did it end, and well?
fn must_have_ended(ran: &Ran, name: &str, program: &Program) -> Result<(), RunError> {
    let why = match ran.status {
        Some(0) => return Ok(()),
        Some(status) => format!("ended with status {status}"),
        None => format!("did not end in {} s (--exec-timeout)", program.timeout_ms / 1000),
    };
    Err(RunError::Bad(format!("{name} {why}{}", said(ran))))
}

/// What it said, for whoever looks.
fn keep(path: &Path, ran: &Ran) -> Result<(), RunError> {
    std::fs::write(path, format!("{}{}", ran.stdout, ran.stderr))
        .map_err(RunError::io("write", path))
}

/// The guest with the disk.
struct Room<'a> {
    vm: Vm,
    /// The main one first.
    devices: Vec<String>,
    /// What the guest says of it.
    shown: Value,
    volume: Volume,
    further: Vec<FurtherDisk>,
    /// Where files are looked for.
    folders: Vec<Folder>,
    host: Marks<'a>,
}

impl<'a> Room<'a> {
    fn new(
        lab: &RealLab,
        wanted: &Wanted,
        device: &'a Device,
        dir: &Path,
        interrupted: &'a AtomicBool,
    ) -> Result<Room<'a>, RunError> {
        let mut vm = lab.vm(dir)?;
        vm.show_host_root(&wanted.virtiofsd, dir).map_err(guest)?;
        let Volume { queues, front_end, .. } = wanted.volume;
        let further = wanted.further();
        let serials = disks::serials(SERIAL, &further);
        let main = vm.attach_disk(&device.socket(), &serials[0], queues, front_end);
        let shown = main.map_err(guest)?.info;
        let devices = serials.iter().map(|serial| vm.find_disk(serial));
        let devices = devices.collect::<Result<Vec<_>, _>>().map_err(guest)?;
        let volume = wanted.volume.clone();
        let folders = disks::folders(wanted.size, &volume.fstype, &further);
        let host = Marks { client: device.client(), batch: 0, said: Vec::new(), interrupted };
        Ok(Room { vm, devices, shown, volume, further, folders, host })
    }

    /// Says in the recording what it is of.
    fn introduce(&mut self, lab: &RealLab, wanted: &Wanted) -> Result<(), RunError> {
        let mut environment = Environment { mkfs: wanted.mkfs.join(" "), ..lab.environment() };
        environment.shown(&self.shown);
        let subject = Subject {
            suite: "exec".to_owned(),
            lane: wanted.name.clone(),
            cut: 1,
            seed: wanted.seed,
            workload: nobodys(wanted.seed),
            volume: self.volume.clone(),
            guest: wanted.guest.clone(),
            image: lab.image(),
            checker: Some(wanted.checker.clone()),
            environment: Some(environment),
            disks: self.further.clone(),
            pages: None,
        };
        self.record(subject.marks())
    }

    /// Says in the recording where the files lie now.
    fn snapshot(&mut self) -> Result<(), RunError> {
        if self.folders.is_empty() {
            return Ok(());
        }
        let command = Command::FileMap { folders: self.folders.clone() };
        let map = self.ask("looking where the files lie", command)?;
        let map = serde_json::from_value(map).map_err(|e| {
            RunError::Guest(format!("what the guest says of files is not understood: {e}"))
        })?;
        self.record(Snapshot { map }.marks())
    }

    fn record(&mut self, lines: Vec<String>) -> Result<(), RunError> {
        for line in lines {
            self.host.client.mark(&line).map_err(DeviceError::from)?;
        }
        Ok(())
    }

    fn mount(&mut self) -> Result<(), RunError> {
        if !self.volume.is_raw() {
            let mount = self.volume.mount_on(&self.devices[0], USER_MOUNT);
            self.ask("the mount", mount)?;
        }
        for (disk, device) in self.further.clone().iter().zip(self.devices[1..].to_vec()) {
            if let Some(mount) = disk.mount_on(&device) {
                self.ask(&format!("the mount of {}", disk.name), mount)?;
            }
        }
        Ok(())
    }

    fn umount(&mut self) -> Result<(), RunError> {
        let main = (!self.volume.is_raw()).then(|| USER_MOUNT.to_owned());
        let further = self.further.iter().filter_map(FurtherDisk::mount).map(|mount| mount.target);
        for target in main.into_iter().chain(further).collect::<Vec<_>>() {
            self.ask(&format!("unmounting {target}"), Command::Umount { target })?;
        }
        self.ask("syncing", Command::Sync {}).map(|_| ())
    }

    fn ask(&mut self, what: &str, command: Command) -> Result<Value, RunError> {
        ask(&mut self.vm, what, command, LONG)
    }

    fn run(&mut self, program: &Program, name: &str) -> Result<Ran, RunError> {
        let mut program = program.clone();
        program.env.extend(disks::variables(&self.devices, &self.further));
        program.disks = disks::mounted(&self.further);
        let time = Duration::from_millis(program.timeout_ms) + SHORT;
        let outcome =
            self.vm.call(Command::Program { program }, &mut self.host, Instant::now() + time);
        match outcome.map_err(guest)? {
            Outcome::Ok { value } => serde_json::from_value(value).map_err(|e| {
                RunError::Guest(format!("what the guest says of {name} is not understood: {e}"))
            }),
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                Err(RunError::Bad(format!("{name} cannot be run in the guest: {message}")))
            }
        }
    }

    fn phase(&mut self, name: &str) -> Result<(), RunError> {
        let mark = MarkText::Phase { name: name.to_owned() };
        vm::Host::marks(&mut self.host, &[mark]).map_err(RunError::Bad)
    }
}

/// Records what the program marks.
struct Marks<'a> {
    client: &'a Client,
    batch: u64,
    said: Vec<String>,
    interrupted: &'a AtomicBool,
}

impl vm::Host for Marks<'_> {
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String> {
        self.batch += 1;
        for mark in marks {
            self.client.mark(mark.to_record(self.batch)).map_err(|e| e.to_string())?;
            if let MarkText::Said { name } = mark {
                self.said.push(name.clone());
            }
        }
        Ok(())
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn stop(&mut self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

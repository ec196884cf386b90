//! The user's own program on a fresh disk, recorded.
//!
//! One guest: the disk is mounted, the program runs to its end (mark `exec-done`), everything is synced
//! (mark `synced`). What comes after that is no part of what is explored.

use super::cut::SERIAL;
use super::disks::{self, FurtherDisk};
use super::session::{ask, guest, nobodys};
use super::volume::{LONG, MakeFs, SHORT, make};
use super::{Environment, GuestArgs, Lab as _, RealLab, RunError, RunFolder, Volume, check};
use crate::device::{Device, DeviceError, DiskSpec};
use crate::explore::{Checker, FILES, Subject, said};
use crate::vm::{self, Virtiofsd, Vm};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Command, MarkText, Outcome, Program, Ran, USER_MOUNT};
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
    spec.recording = Some(recording.clone());
    phase("starting a guest");
    check(interrupted)?;
    let device = Device::start(&lab.tornblkd, &spec)?;
    let mut room = Room::new(lab, wanted, &device, &dir, interrupted)?;
    if !wanted.volume.is_raw() {
        let mount = wanted.volume.mount_on(&room.devices[0], USER_MOUNT);
        room.ask("the mount", mount)?;
    }
    for (disk, device) in further.iter().zip(room.devices[1..].to_vec()) {
        if let Some(mount) = disk.mount_on(&device) {
            room.ask(&format!("the mount of {}", disk.name), mount)?;
        }
    }
    phase(&format!("running {}", wanted.name));
    let start = Instant::now();
    let ran = room.run(&wanted.program, &wanted.name)?;
    let took = start.elapsed();
    keep(&dir.join("exec.log"), &ran)?;
    match ran.status {
        Some(0) => {}
        Some(status) => {
            return Err(RunError::Bad(format!(
                "{} ended with status {status}{}",
                wanted.name,
                said(&ran)
            )));
        }
        None => {
            return Err(RunError::Bad(format!(
                "{} did not end in {} s (--exec-timeout){}",
                wanted.name,
                wanted.program.timeout_ms / 1000,
                said(&ran)
            )));
        }
    }
    room.phase(DONE)?;
    room.ask("syncing", Command::Sync {})?;
    room.phase(SYNCED)?;
    let marks = std::mem::take(&mut room.host.said);
    let folders = disks::folders(wanted.size, wanted.volume.is_raw(), &further);
    if !folders.is_empty() {
        let map = room.ask("looking where the files lie", Command::FileMap { folders })?;
        let place = dir.join(FILES);
        std::fs::write(&place, map.to_string()).map_err(RunError::io("write", &place))?;
    }
    room.vm.kill();
    device.stop()?;
    Ok(Programmed { recording, marks: marks.len() as u64, took })
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
    further: Vec<FurtherDisk>,
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
        let mut environment = Environment { mkfs: wanted.mkfs.join(" "), ..lab.environment() };
        let dir = make(dir, "exec")?;
        let mut vm = lab.vm(&dir)?;
        vm.show_host_root(&wanted.virtiofsd, &dir).map_err(guest)?;
        let Volume { queues, front_end, .. } = wanted.volume;
        let further = wanted.further();
        let serials = disks::serials(SERIAL, &further);
        let main = vm.attach_disk(&device.socket(), &serials[0], queues, front_end);
        environment.shown(&main.map_err(guest)?.info);
        let devices = serials.iter().map(|serial| vm.find_disk(serial));
        let devices = devices.collect::<Result<Vec<_>, _>>().map_err(guest)?;
        let subject = Subject {
            suite: "exec".to_owned(),
            lane: wanted.name.clone(),
            cut: 1,
            seed: wanted.seed,
            workload: nobodys(wanted.seed),
            volume: wanted.volume.clone(),
            guest: wanted.guest.clone(),
            image: lab.image(),
            checker: Some(wanted.checker.clone()),
            environment: Some(environment),
            disks: further.clone(),
        };
        let client = device.client();
        for line in subject.marks() {
            client.mark(&line).map_err(DeviceError::from)?;
        }
        let host = Marks { client, batch: 0, said: Vec::new(), interrupted };
        Ok(Room { vm, devices, further, host })
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

//! The user's own program on a fresh disk, recorded.
//!
//! One guest: the disk is mounted, the program runs to its end (mark `exec-done`), everything is synced
//! (mark `synced`). What comes after that is no part of what is explored.

use super::cut::SERIAL;
use super::session::{ask, guest, nobodys};
use super::volume::{LONG, SHORT, make};
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
    pub seed: u64,
    pub guest: GuestArgs,
    pub virtiofsd: Virtiofsd,
}

impl Wanted {
    /// "./write.sh on ext4, 256 MiB"
    pub fn told(&self) -> String {
        let fs = if self.volume.is_raw() { "a raw disk" } else { &self.volume.fstype };
        format!("{} on {fs}, {} MiB", self.name, self.size >> 20)
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
    image.set_len(wanted.size).map_err(RunError::io("make", &base))?;
    let mut spec = DiskSpec {
        image: base,
        recording: None,
        profile: wanted.volume.profile.clone(),
        logical_block_size: wanted.volume.logical_block_size,
        front_end: wanted.volume.front_end,
        serial: SERIAL.to_owned(),
        seed: wanted.seed,
        faults: Vec::new(),
        hold_completions: None,
        log: dir.join("device.log"),
    };
    if !wanted.mkfs.is_empty() {
        phase("formatting the disk");
        let disk = lab.disk(&spec)?;
        let mkfs = |device: &str| {
            let at = |word: &String| word.replace("{device}", device);
            wanted.mkfs.iter().map(at).collect()
        };
        wanted.volume.format(lab, disk.as_ref(), &dir, &mkfs, interrupted)?;
        disk.stop()?;
    }
    spec.recording = Some(recording.clone());
    phase("starting a guest");
    check(interrupted)?;
    let device = Device::start(&lab.tornblkd, &spec)?;
    let mut room = Room::new(lab, wanted, &device, &dir, interrupted)?;
    if !wanted.volume.is_raw() {
        let mount = wanted.volume.mount_on(&room.disk, USER_MOUNT);
        room.ask("the mount", mount)?;
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
    if !wanted.volume.is_raw() {
        let map = room.ask("looking where the files lie", Command::FileMap {})?;
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
    disk: String,
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
        let disk = vm.attach_disk(&device.socket(), SERIAL, queues, front_end).map_err(guest)?;
        environment.shown(&disk.info);
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
        };
        let client = device.client();
        for line in subject.marks() {
            client.mark(&line).map_err(DeviceError::from)?;
        }
        let host = Marks { client, batch: 0, said: Vec::new(), interrupted };
        Ok(Room { vm, disk: disk.device, host })
    }

    fn ask(&mut self, what: &str, command: Command) -> Result<Value, RunError> {
        ask(&mut self.vm, what, command, LONG)
    }

    fn run(&mut self, program: &Program, name: &str) -> Result<Ran, RunError> {
        let mut program = program.clone();
        program.env.push(("TORNBLK_DEVICE".to_owned(), self.disk.clone()));
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

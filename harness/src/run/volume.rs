//! The guest's view of the disk under test: attached, mounted, read back.

use super::cut::SERIAL;
use super::relay::Quiet;
use super::{CallError, Disk, Host, Lab, Machine, RunError, check, limits};
use crate::oracle::{Clause, Finding, OnWire};
use crate::splat::Watch;
use crate::suite::{Lane, MOUNT};
use crate::vm::FrontEnd;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tornblk_agent::channel::{Command, Outcome, Readback, Workload};

pub(super) const SHORT: Duration = Duration::from_secs(60);
pub(super) const LONG: Duration = Duration::from_secs(300);

/// What a kernel says when a file system is broken.
const BROKEN: [&str; 6] = [
    "Corruption",
    "Metadata corruption",
    "EXT4-fs error",
    "JBD2: recovery failed",
    "BTRFS error",
    "BTRFS critical",
];

/// Does the kernel say here that a file system is broken?
pub(crate) fn is_broken(line: &str) -> bool {
    BROKEN.iter().any(|words| line.contains(words))
}

/// What a guest has to know to use the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Empty: the raw disk.
    pub fstype: String,
    pub mount_options: String,
    pub queues: u16,
    pub logical_block_size: u32,
    pub profile: String,
    #[serde(default)]
    pub front_end: FrontEnd,
    /// The guest's kernel is told the disk's atomic limits.
    #[serde(default)]
    pub shows_limits: bool,
    /// How a write with RWF_ATOMIC must reach the disk.
    #[serde(default)]
    pub on_wire: OnWire,
}

impl Volume {
    pub(super) fn new(lane: &Lane, profile: &str) -> Volume {
        Volume {
            fstype: lane.fstype.clone(),
            mount_options: lane.mount_options.clone(),
            queues: lane.queues,
            logical_block_size: lane.logical_block_size,
            profile: profile.to_owned(),
            front_end: lane.front_end,
            shows_limits: lane.atomic.is_some(),
            on_wire: lane.atomic.as_ref().map(|atomic| atomic.on_wire).unwrap_or_default(),
        }
    }

    pub fn is_raw(&self) -> bool {
        self.fstype.is_empty()
    }

    /// A guest that has the disk.
    pub(super) fn guest<'a>(
        &self,
        lab: &mut dyn Lab,
        disk: &dyn Disk,
        dir: &Path,
        name: &str,
        interrupted: &'a AtomicBool,
    ) -> Result<Guest<'a>, RunError> {
        check(interrupted)?;
        let dir = make(dir, name)?;
        let mut machine = lab.machine(&dir)?;
        check(interrupted)?;
        machine.attach(&disk.socket(), SERIAL, self.queues, self.front_end)?;
        let mut guest = Guest { machine, device: String::new(), dir, interrupted };
        let value = guest.describe()?;
        guest.device = value["device"].as_str().unwrap_or_default().to_owned();
        if guest.device.is_empty() {
            return Err(RunError::Guest("the guest did not say which disk it found".into()));
        }
        Ok(guest)
    }

    /// Has a guest make the file system: `mkfs` gives the command for the disk by its name there.
    pub(super) fn format(
        &self,
        lab: &mut dyn Lab,
        disk: &dyn Disk,
        dir: &Path,
        mkfs: &dyn Fn(&str) -> Vec<String>,
        interrupted: &AtomicBool,
    ) -> Result<(), RunError> {
        let mut guest = self.guest(lab, disk, dir, "mkfs", interrupted)?;
        let argv = mkfs(&guest.device);
        let name = argv.join(" ");
        let value =
            guest.ask(&name, Command::Exec { argv, timeout_ms: LONG.as_millis() as u64 }, LONG)?;
        if value["status"] != 0 {
            let said = value["stderr"].as_str().unwrap_or_default().trim().to_owned();
            return Err(RunError::Guest(format!("`{name}` failed in the guest: {said}")));
        }
        guest.ask("sync", Command::Sync {}, LONG)?;
        guest.machine.kill();
        Ok(())
    }

    pub(super) fn mount(&self, device: &str) -> Command {
        self.mount_on(device, MOUNT)
    }

    pub(super) fn mount_on(&self, device: &str, target: &str) -> Command {
        Command::Mount {
            device: device.to_owned(),
            target: target.to_owned(),
            fstype: self.fstype.clone(),
            options: self.mount_options.clone(),
        }
    }

    /// A new guest on what is left: what it reads, and what it could not recover.
    pub(super) fn recover(
        &self,
        lab: &mut dyn Lab,
        disk: &mut dyn Disk,
        workload: &Workload,
        way: &mut Way<'_>,
    ) -> Result<(Option<Readback>, Vec<Finding>), RunError> {
        let mut guest = self.guest(lab, disk, way.dir, "after", way.interrupted)?;
        if self.shows_limits {
            limits::show(&mut guest, lab, self)?;
        }
        if let Some(next) = way.next {
            lab.expect(&make(next, "before")?);
        }
        let file = workload.files.first().map_or(0, |t| t.file);
        let mut broken = Vec::new();
        let mut readable = true;
        if !self.is_raw() {
            let mount = self.mount(&guest.device);
            match guest.call(mount, LONG) {
                Ok(Outcome::Ok { .. }) => {}
                Ok(Outcome::Failed { message, .. } | Outcome::Unsupported { message }) => {
                    let text =
                        format!("the file system cannot be mounted after the cut: {message}");
                    broken.push(whole_file(workload, file, Clause::Unrecoverable, text));
                    readable = false;
                }
                Err(e) => {
                    let text = format!("mounting after the cut {}", e.death(way.interrupted)?);
                    broken.push(whole_file(workload, file, Clause::Unrecoverable, text));
                    return Ok((None, broken));
                }
            }
        }
        let mut readback = None;
        if readable {
            (way.phase)("reading back");
            let command = Command::Readback { workload: workload.clone() };
            match guest.call(command, LONG) {
                Ok(Outcome::Ok { value }) => {
                    readback = Some(serde_json::from_value(value).map_err(|e| {
                        RunError::Guest(format!("what the guest read back is not understood: {e}"))
                    })?);
                }
                Ok(Outcome::Failed { message, .. }) => {
                    let text = format!("reading back after the cut failed: {message}");
                    broken.push(whole_file(workload, file, Clause::Unrecoverable, text));
                }
                Ok(Outcome::Unsupported { message }) => {
                    return Err(RunError::Guest(format!("the guest cannot read back: {message}")));
                }
                Err(e) => {
                    let text = format!("reading back after the cut {}", e.death(way.interrupted)?);
                    broken.push(whole_file(workload, file, Clause::Unrecoverable, text));
                    return Ok((None, broken));
                }
            }
        }
        let dmesg = match guest.ask("reading the kernel's messages", Command::Dmesg {}, SHORT) {
            Ok(dmesg) => dmesg,
            // What is wrong is known without them.
            Err(error) if !broken.is_empty() && !matches!(error, RunError::Interrupted) => {
                log::warn!("{error}");
                return Ok((readback, broken));
            }
            Err(error) => return Err(error),
        };
        let text = dmesg["text"].as_str().unwrap_or_default();
        let log = way.dir.join("after").join("dmesg.txt");
        std::fs::write(&log, text).map_err(RunError::io("write", &log))?;
        if !self.is_raw()
            && readable
            && let Some(line) = text.lines().find(|line| is_broken(line))
        {
            let text = format!("the kernel found the file system broken: {}", line.trim());
            broken.push(whole_file(workload, file, Clause::Unrecoverable, text));
        }
        guest.machine.kill();
        Ok((readback, broken))
    }
}

/// A finding about a file as a whole.
pub(crate) fn whole_file(workload: &Workload, file: u32, clause: Clause, text: String) -> Finding {
    let path = workload.files.iter().find(|t| t.file == file).map(|t| t.path.clone());
    Finding { file, path: path.unwrap_or_default(), ..Finding::new(clause, text) }
}

/// How a recovery is gone about.
pub(super) struct Way<'a> {
    pub(super) dir: &'a Path,
    /// The folder of the cut after this.
    pub(super) next: Option<&'a Path>,
    pub(super) interrupted: &'a AtomicBool,
    pub(super) phase: &'a mut dyn FnMut(&str),
}

/// The folder of one guest.
pub(super) fn make(dir: &Path, name: &str) -> Result<PathBuf, RunError> {
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir).map_err(RunError::io("make the folder", &dir))?;
    Ok(dir)
}

pub(super) struct Guest<'a> {
    pub(super) machine: Box<dyn Machine>,
    /// `/dev/vda`
    pub(super) device: String,
    /// Where its console is.
    dir: PathBuf,
    interrupted: &'a AtomicBool,
}

impl Guest<'_> {
    /// What the guest's kernel says of the disk, the limits in `queue` among it.
    pub(super) fn describe(&mut self) -> Result<serde_json::Value, RunError> {
        let wait = Command::WaitDisk { serial: SERIAL.to_owned(), timeout_ms: 30_000 };
        self.ask("the wait for the disk", wait, SHORT)
    }

    pub(super) fn call(&mut self, command: Command, time: Duration) -> Result<Outcome, CallError> {
        let watch = Watch::of_recovery(&self.dir);
        let mut host = Quiet { interrupted: self.interrupted, watch };
        match self.machine.call(command, &mut host as &mut dyn Host, time) {
            Err(CallError::Stopped) => Err(match host.watch.complained() {
                Some(title) => CallError::Failed(RunError::Hung(format!(
                    "the kernel complained, and nothing came after it: {title}"
                ))),
                None => CallError::Stopped,
            }),
            other => other,
        }
    }

    /// The first mount of what was just made. → the kernel's last word, where it refuses what it does
    /// not know; every other failure is an error.
    pub(super) fn ask_to_mount(
        &mut self,
        mount: Command,
        time: Duration,
    ) -> Result<Option<String>, RunError> {
        /// `EINVAL` and `ENOSYS`: how file systems refuse a format.
        const UNKNOWN: [i32; 2] = [22, 38];
        let message = match self.call(mount, time) {
            Ok(Outcome::Ok { .. }) => return Ok(None),
            Ok(Outcome::Failed { message, errno: Some(e) }) if UNKNOWN.contains(&e) => message,
            Ok(Outcome::Failed { message, .. } | Outcome::Unsupported { message }) => {
                return Err(RunError::Guest(format!(
                    "the first mount failed in the guest: {message}"
                )));
            }
            Err(e) => return Err(e.into_error(self.interrupted)),
        };
        let said = self.ask("the kernel's messages", Command::Dmesg {}, time)?;
        let text = said["text"].as_str().unwrap_or_default().trim_end();
        let last = text.lines().next_back().unwrap_or_default();
        Ok(Some(format!("{message}: {last}")))
    }

    /// A command that must succeed.
    pub(super) fn ask(
        &mut self,
        what: &str,
        command: Command,
        time: Duration,
    ) -> Result<serde_json::Value, RunError> {
        match self.call(command, time) {
            Ok(Outcome::Ok { value }) => Ok(value),
            Ok(Outcome::Failed { message, .. } | Outcome::Unsupported { message }) => {
                Err(RunError::Guest(format!("{what} failed in the guest: {message}")))
            }
            Err(e) => Err(e.into_error(self.interrupted)),
        }
    }
}

impl CallError {
    /// How the kernel died of it: what could not be recovered. Every other end is an error.
    fn death(self, interrupted: &AtomicBool) -> Result<String, RunError> {
        match self {
            CallError::Failed(RunError::Panic(text)) => Ok(format!("crashed the kernel: {text}")),
            CallError::Failed(RunError::Hung(text)) => {
                Ok(format!("did not come to an end: {text}"))
            }
            other => Err(other.into_error(interrupted)),
        }
    }

    fn into_error(self, interrupted: &AtomicBool) -> RunError {
        match self {
            CallError::Failed(error) => error,
            CallError::Stopped => match check(interrupted) {
                Err(error) => error,
                Ok(()) => RunError::Guest("the guest was stopped in the middle".into()),
            },
        }
    }
}

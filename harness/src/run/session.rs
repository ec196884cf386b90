//! A person at a lane's disk: formatted, tuned and mounted as its workloads find it, and recorded.

use super::cut::{SERIAL, Setting};
use super::limits::{TELLING, telling};
use super::volume::{LONG, SHORT, Volume, make};
use super::{Lab as _, RealLab, RunError, RunFolder, Settings};
use crate::device::Device;
use crate::explore::Subject;
use crate::oracle::Finding;
use crate::splat::{Around, Guest};
use crate::suite::{Lane, MOUNT};
use crate::vm::{self, FrontEnd, Vm, VmError};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Command, MarkText, Outcome, Workload};
use tornblk_model::event::Seq;
use tornblk_model::recording::Reader;

/// In the lane's folder.
pub const RECORDING: &str = "disk.recording";

/// The mark at which the person's own writes begin.
const BEGIN: &str = "shell";

/// What is left of it.
#[derive(Debug)]
pub struct Recorded {
    pub recording: PathBuf,
    pub profile: String,
    /// The first event after everything was made ready, and the last one.
    pub from: u64,
    pub to: u64,
    /// What the guest's kernel complained about.
    pub complaints: Vec<Finding>,
    /// Its crash states can be judged: by their recovery.
    pub explorable: bool,
}

/// Leaves a guest with the lane's disk to the person at the terminal, and cuts its power when the
/// shell ends. `ready` is called before it begins.
///
/// # Errors
/// As a cut's.
pub fn session(
    lab: &mut RealLab,
    (suite, lane): (&str, &Lane),
    settings: &Settings,
    folder: &RunFolder,
    interrupted: &AtomicBool,
    phase: &mut dyn FnMut(&str),
) -> Result<Recorded, RunError> {
    let dir = folder.lane(&lane.name)?;
    let base = dir.join("base.img");
    let profile = settings.profile.clone().unwrap_or_else(|| lane.profile.clone());
    let setting = Setting {
        suite,
        lane,
        seed: settings.seed,
        volume: Volume::new(lane, &profile),
        base: &base,
        guest: &settings.guest,
        interrupted,
    };
    if !lane.is_raw() {
        phase("formatting the disk");
    }
    setting.make_base(lab, &dir)?;
    let recording = dir.join(RECORDING);
    let device =
        Device::start(&lab.tornblkd, &setting.spec(&dir, settings.seed, Some(recording.clone())))?;
    let mark = |name: &str| device.client().mark(name).map_err(crate::device::DeviceError::from);
    // What is judged of a state is its recovery: a raw disk has none.
    let subject = (!lane.is_raw()).then(|| Subject {
        suite: suite.to_owned(),
        lane: lane.name.clone(),
        cut: 0,
        seed: settings.seed,
        workload: nobodys(settings.seed),
        volume: setting.volume.clone(),
        guest: settings.guest.clone(),
        image: Some(lab.image.key.clone()),
        checker: None,
        environment: Some(lab.environment()),
        disks: Vec::new(),
        pages: None,
    });
    for line in subject.iter().flat_map(Subject::marks) {
        mark(&line)?;
    }
    phase("booting a guest");
    let guest_dir = make(&dir, "shell")?;
    let (mut vm, console) = lab.boot_with_console(&guest_dir)?;
    let disk = vm.attach_disk(&device.socket(), SERIAL, lane.queues, setting.volume.front_end);
    let disk = disk.map_err(guest)?.device;
    if setting.volume.shows_limits && setting.volume.front_end != FrontEnd::Scsi {
        let module = lab.guest_module().map_err(RunError::Guest)?;
        ask(&mut vm, TELLING, telling(&setting.volume, &disk, module)?, SHORT)?;
    }
    let set = lane.tuning(&disk);
    if !set.is_empty() {
        ask(&mut vm, "tuning the disk", Command::Tune { set }, SHORT)?;
    }
    if !lane.is_raw() {
        ask(&mut vm, "the mount", setting.volume.mount(&disk), LONG)?;
    }
    let from = mark(BEGIN)?.event;
    phase("");
    let place = match lane.is_raw() {
        true => "is raw, and nothing is on it".to_owned(),
        false => format!("has the lane's file system ({}), mounted on {MOUNT}", lane.fstype),
    };
    let greeting = format!(
        "{disk} is the disk of lane {} ({profile}): it {place}.\n\
         All that is done to it is recorded. Leaving the shell cuts the power: `sync` before, or not.",
        lane.name
    );
    let ended = vm.shell(&console, &greeting, &mut Patient(interrupted));
    vm.kill();
    device.stop()?;
    match ended {
        // A kernel that died ends the session, and what it said is told.
        Ok(()) | Err(VmError::Panic { .. }) => {}
        Err(error) => return Err(guest(error)),
    }
    let mut desk = super::complaints::desk(&settings.guest);
    for (name, which) in [("mkfs", "that made the file system"), ("shell", "with the shell")] {
        desk.hear(&Guest { dir: &dir.join(name), which, around: Around::default() })?;
    }
    let complaints = desk.findings(Some(&dir))?;
    let to = last_event(&recording)?;
    Ok(Recorded { recording, profile, from, to, complaints, explorable: !lane.is_raw() })
}

/// Nothing that could be read back: a state's recovery is all that there is to judge.
pub(super) fn nobodys(seed: u64) -> Workload {
    Workload {
        nonce: 0,
        seed,
        files: Vec::new(),
        load: false,
        writes: 0,
        sync_every: 0,
        skip_sync: false,
    }
}

fn last_event(recording: &std::path::Path) -> Result<u64, RunError> {
    let bad = |e: &dyn std::fmt::Display| RunError::Recording {
        path: recording.to_owned(),
        message: e.to_string(),
    };
    let reader = Reader::open(recording).map_err(|e| bad(&e))?;
    let mut last = Seq(0);
    for event in reader.events() {
        last = event.map_err(|e| bad(&e))?.0;
    }
    Ok(last.0)
}

pub(super) fn ask(
    vm: &mut Vm,
    what: &str,
    command: Command,
    time: Duration,
) -> Result<Value, RunError> {
    match vm.call(command, &mut vm::NoHost, Instant::now() + time).map_err(guest)? {
        Outcome::Ok { value } => Ok(value),
        Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
            Err(RunError::Guest(format!("{what} failed in the guest: {message}")))
        }
    }
}

pub(super) fn guest(error: VmError) -> RunError {
    match error {
        VmError::Stopped => RunError::Interrupted,
        other => RunError::Guest(other.to_string()),
    }
}

/// Waits as long as the person likes.
struct Patient<'a>(&'a AtomicBool);

impl vm::Host for Patient<'_> {
    fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
        Err("nobody records marks now".into())
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn stop(&mut self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

//! Runs suites: base disk, negative control, cuts, verdicts.
//!
//! [`Lab`] is all that a run needs from the outside world: disks, machines and recordings. The real
//! one is [`RealLab`]; the tests bring a simulated one.
//!
//! One cut:
//! 1. a fresh device with a recording on the lane's base image, which is never written;
//! 2. a guest from the saved state, the disk attached, the file system mounted;
//! 3. the workload, whose marks are recorded on the device ([`Relay`](relay)); the cut is armed from
//!    there;
//! 4. the power is cut: the device goes silent, QEMU is killed;
//! 5. a new guest on the state that the device chose: mount, read back;
//! 6. the oracle.

mod complaints;
mod cut;
mod debugger;
pub mod disks;
mod environment;
mod explored;
mod folder;
mod frozen;
mod lane;
mod limits;
mod program;
mod race;
#[cfg(test)]
mod race_tests;
mod real;
mod relay;
mod repro;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verdict;
mod volume;
mod wire;

pub use cut::{CutReport, Judged};
pub use debugger::Debugger;
pub use disks::FurtherDisk;
pub use environment::Environment;
pub use folder::RunFolder;
pub use lane::run_lanes;
pub(crate) use lane::word;
pub use program::{Programmed, SYNCED, Wanted, first_looks, program};
pub use real::RealLab;
#[cfg(test)]
pub(crate) use repro::read as read_raw;
pub use repro::{KeptState, MakeLab, Reproduced, kept_state, repro};
pub use session::{RECORDING, Recorded, session};
pub use verdict::{CAUGHT, ControlReport, LaneReport, Verdict};
pub use volume::Volume;
pub(crate) use volume::{is_broken, whole_file};
pub use wire::{WireQuery, read_wire};

use crate::device::{DeviceError, DiskSpec};
use crate::explore::{ExploreError, GuestNeeds, Means, Opened, Subject, Units};
use crate::oracle::{Finding, Wire};
use crate::splat::SplatError;
use crate::suite::Known;
use crate::vm::FrontEnd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tornblk_agent::channel::{Command, MarkText, Outcome};
use tornblk_agent::race::{DeviceAnswer, DeviceAsk, RaceFinding};
use tornblk_image::Lock;
use tornblk_model::crash::{Fault, Strategy};
use tornblk_proto::{Crashed, NamedWrites, Trigger};

/// Why something could not be run. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Splat(#[from] SplatError),
    #[error("{0}")]
    Guest(String),
    /// It never came to the agent.
    #[error("the guest's kernel does not boot: {0}")]
    Boot(String),
    /// The guest's kernel died; what it said.
    #[error("the guest's kernel crashed: {0}")]
    Panic(String),
    /// The guest did not answer in time.
    #[error("{0}")]
    Hung(String),
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the recording {}: {message}", path.display())]
    Recording { path: PathBuf, message: String },
    #[error("{0}")]
    Bad(String),
    /// By Ctrl-C or a signal.
    #[error("interrupted")]
    Interrupted,
}

impl RunError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
        let path = path.to_owned();
        move |source| RunError::Io { what, path, source }
    }
}

/// What a machine's command did beside its answer. Called in order, from one thread.
pub trait Host {
    /// A batch of marks, to be recorded before the guest goes on. `Ok`: all of them are on record.
    /// The error is a sentence, and ends the command as [`Host::stop`] does.
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String>;
    fn progress(&mut self, text: &str);
    /// Something that a race wants of the disk under test.
    fn ask(&mut self, _what: DeviceAsk) -> DeviceAnswer {
        DeviceAnswer::Refused { message: "nobody serves the disk now".into() }
    }
    /// A promise that a race saw broken.
    fn found(&mut self, _finding: RaceFinding) {}
    /// Give up on the command?
    fn stop(&mut self) -> bool;
}

/// How a command on a machine ended that has no outcome.
#[derive(Debug)]
pub enum CallError {
    /// [`Host::stop`] said so.
    Stopped,
    Failed(RunError),
}

/// A guest that runs. Killed when dropped.
pub trait Machine {
    fn attach(
        &mut self,
        socket: &Path,
        serial: &str,
        queues: u16,
        front_end: FrontEnd,
    ) -> Result<(), RunError>;
    fn call(
        &mut self,
        command: Command,
        host: &mut dyn Host,
        deadline: Duration,
    ) -> Result<Outcome, CallError>;
    /// The power cut's half of the guest: SIGKILL.
    fn kill(self: Box<Self>);
}

/// A device that runs. Killed when dropped.
pub trait Disk {
    fn socket(&self) -> PathBuf;
    /// → the event that recorded it; `None`: the power is off.
    fn mark(&mut self, line: &str) -> Result<Option<u64>, RunError>;
    fn fault(&mut self, spec: &str) -> Result<(), RunError>;
    /// Tells it to cut the power; armed when this returns.
    fn arm(&mut self, cut: &Arm) -> Result<(), RunError>;
    /// Was the power cut? Waits that long for it.
    fn crashed(&mut self, wait: Duration) -> Result<Option<Crashed>, RunError>;
    /// What it said since it was asked last of writes that arrived otherwise than they should. Costs
    /// next to nothing.
    fn seen(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// How the writes arrived that say how long they are.
    fn named(&mut self) -> Result<NamedWrites, RunError> {
        Ok(NamedWrites::default())
    }
    /// What a race of the guest wants of it.
    fn ask(&mut self, _what: DeviceAsk) -> DeviceAnswer {
        DeviceAnswer::Refused { message: "it cannot be asked".into() }
    }
    /// Whatever was armed is off, unless the power was cut before that: then how.
    fn disarm(&mut self) -> Result<Option<Crashed>, RunError>;
    fn stop(self: Box<Self>) -> Result<(), RunError>;
}

/// When to cut, and what shall survive.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    pub at: Trigger,
    pub seed: u64,
    pub profile: String,
    /// What is kept of what the disk may lose; `None`: drawn with the seed.
    pub state: Option<String>,
}

pub trait Lab {
    fn disk(&mut self, spec: &DiskSpec) -> Result<Box<dyn Disk>, RunError>;
    /// A booted guest that answers. `dir` gets its console.
    fn machine(&mut self, dir: &Path) -> Result<Box<dyn Machine>, RunError>;
    /// A machine for `dir`, an existing folder, will be asked for next: it may be started already.
    fn expect(&mut self, _dir: &Path) {}
    /// No machine for the folder of [`Lab::expect`] is wanted: what was started is ended, so that
    /// the folder can be removed.
    fn forget(&mut self) {}
    /// Who judges the crash states of a recording. `dir`, an existing folder, is for guests.
    ///
    /// # Errors
    /// It cannot be judged here.
    fn means<'a>(
        &self,
        opened: &'a Opened,
        subject: &Subject,
        _guests: &GuestNeeds,
    ) -> Result<Box<dyn Means + 'a>, ExploreError> {
        Ok(Box::new(Units::of(opened, subject)?))
    }

    /// What was wrong while the file system was frozen, of the cut in `dir`: what changed the disk, and
    /// what a snapshot of it would have had. `guests`: a folder for their consoles. `only_one`: one
    /// snapshot is enough.
    ///
    /// # Errors
    /// The recording cannot be read, or no guest can be started.
    fn frozen(
        &mut self,
        _dir: &Path,
        _guests: &Path,
        _only_one: bool,
    ) -> Result<Vec<Finding>, RunError> {
        Ok(Vec::new())
    }

    /// Why no guest here can be given a disk like that; `None`: it can.
    fn cannot_attach(&self, _front_end: FrontEnd) -> Option<String> {
        None
    }

    /// Where in the guest the module is that tells its kernel a virtio-blk disk's atomic limits.
    ///
    /// # Errors
    /// The image has none; the sentence says why.
    fn guest_module(&self) -> Result<String, String> {
        Err("the guest has no module for atomic limits".into())
    }

    /// Release of the guest's kernel.
    fn release(&self) -> String {
        String::new()
    }

    /// Where guests run, as far as that is known before one does.
    fn environment(&self) -> Environment {
        Environment::default()
    }

    /// What the guest's image was made of.
    fn image_lock(&self) -> Option<Lock> {
        None
    }

    /// Key of the guest's image; `None`: it is not one of ours.
    fn image(&self) -> Option<String> {
        None
    }
    /// What a recording says about a workload's blocks.
    fn wire(&mut self, recording: &Path, query: &WireQuery) -> Result<Wire, RunError>;
}

/// What a run is told on the command line.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub seed: u64,
    /// Of each lane.
    pub cuts: u32,
    /// Of everything; no cut begins after that. `None`: as long as it takes.
    pub time: Option<Duration>,
    /// Only this cut of each lane.
    pub only: Option<u32>,
    /// Broken on purpose: every cut is placed on a write, and no control is run.
    pub faults: Vec<Fault>,
    /// Instead of the lanes' own; the lanes have it already.
    pub front_end: Option<FrontEnd>,
    /// Instead of the lanes' own.
    pub profile: Option<String>,
    /// There are hours: of a race's recording as many states as there is time for.
    pub soak: bool,
    /// Keep recordings and consoles of cuts that passed.
    pub keep: bool,
    /// Explore the recording of each lane's last cut with these; empty: do not.
    pub explore: Vec<Strategy>,
    /// What kernels are known to get wrong: no news.
    pub known: Known,
    /// Suites as they were given, by their names: for the commands that are shown.
    pub given: BTreeMap<String, String>,
    pub guest: GuestArgs,
}

/// What was given on the command line for the guest; `None`: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestArgs {
    pub kernel: Option<String>,
    pub modules: Option<PathBuf>,
    pub qemu: Option<PathBuf>,
    /// Parameters for the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
}

impl GuestArgs {
    /// Where something is given here it goes before the other's. A kernel brings its own modules.
    pub fn or(self, other: GuestArgs) -> GuestArgs {
        let (kernel, modules) = match self.kernel {
            Some(kernel) => (Some(kernel), self.modules),
            None => (other.kernel, self.modules.or(other.modules)),
        };
        let (qemu, append) = (self.qemu.or(other.qemu), self.append.or(other.append));
        GuestArgs { kernel, modules, qemu, append }
    }
}

/// Told while it works.
pub trait Progress {
    fn lane(&mut self, _name: &str, _cuts: u32) {}
    fn phase(&mut self, _at: &Phase<'_>) {}
    /// A write arrived at the device otherwise than it should.
    fn seen(&mut self, _lane: &str, _cut: u32, _text: &str) {}
    fn cut(&mut self, _lane: &str, _report: &CutReport) {}
    fn lane_done(&mut self, _report: &LaneReport) {}
}

/// Where a run is.
#[derive(Clone, Debug)]
pub struct Phase<'a> {
    pub lane: &'a str,
    pub what: &'a str,
    /// The cut that is being made, of how many; 0 is the control.
    pub cut: u32,
    pub of: u32,
    /// Of the whole run; `None` where nothing is known yet.
    pub left: Option<Duration>,
}

/// Was it stopped from outside?
pub fn check(interrupted: &AtomicBool) -> Result<(), RunError> {
    if interrupted.load(Ordering::Relaxed) { Err(RunError::Interrupted) } else { Ok(()) }
}

/// One kernel of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRun {
    /// As it was named, where there are several.
    pub given: String,
    /// As `uname -r` tells it; empty where there is none.
    pub release: String,
    /// Why nothing could be run on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The whole run, as `--json` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    pub version: String,
    pub suites: Vec<String>,
    /// The suites, kernel and so on as they were given, for the commands that are shown: words with
    /// a space before each.
    #[serde(default)]
    pub options: String,
    /// The lanes that were chosen, likewise.
    #[serde(default)]
    pub chosen: String,
    pub seed: u64,
    pub accelerator: String,
    pub qemu: String,
    /// The kernels' releases; each lane has its own.
    pub kernel: String,
    #[serde(default)]
    pub kernels: Vec<KernelRun>,
    pub seconds: f64,
    /// 0 as expected, 1 a violation, 2 could not run, 3 inconclusive.
    pub exit: u8,
    /// `None` where it was removed, because everything passed.
    pub folder: Option<PathBuf>,
    pub lanes: Vec<LaneReport>,
}

impl RunReport {
    /// What its guests ran on.
    pub fn about_machine(&mut self, lab: &RealLab) {
        let (major, minor, micro) = lab.qemu.version();
        self.accelerator = lab.accel.to_string();
        self.qemu = format!("{major}.{minor}.{micro}");
    }

    /// How a kernel is told from those before it: by its release, and where that was there already
    /// by what it was given as, too.
    pub fn label(&self, release: &str, given: Option<&str>) -> String {
        match given.filter(|_| self.kernels.iter().any(|kernel| kernel.release == release)) {
            Some(given) => format!("{release} ({given})"),
            None => release.to_owned(),
        }
    }

    /// 1 before 2 before 3 before 0.
    pub fn exit_code(lanes: &[LaneReport], kernels: &[KernelRun]) -> u8 {
        let any = |v: Verdict| lanes.iter().any(|l| l.verdict == v);
        let all_unsupported =
            !lanes.is_empty() && lanes.iter().all(|l| l.verdict == Verdict::Unsupported);
        if any(Verdict::Violated) {
            1
        } else if any(Verdict::Error) || kernels.iter().any(|kernel| kernel.error.is_some()) {
            2
        } else if any(Verdict::Inconclusive) || all_unsupported || lanes.is_empty() {
            3
        } else {
            0
        }
    }
}

//! Suites: what is tried, as TOML.
//!
//! A suite has lanes. A lane says which disk (profile, logical block, capacity), what is on it
//! (`mkfs`, `fstype`; a raw disk without), which writes a guest makes (targets), and its negative
//! control: a fault that must be caught right there, or the lane's green means nothing.
//!
//! A lane with `[lane.race]` has a guest race system calls against each other over its targets
//! ([`race`]), and its control may be a race that is wrong on purpose.
//!
//! `{device}`, `{disk}` and `{mount}` stand for `/dev/vda`, `vda` and where the file system is
//! mounted; `{device}1` is the partition, where the lane makes one.

mod known;
mod load;
mod plan;
mod race;

pub use known::{Entry, Known};
pub use load::{SuiteError, builtin, fits, load, parse, parse_time, tried_at_the_end};
pub use plan::{Cut, CutKind, PlacedFault, Plan, Rng, plan_control, plan_cut, plan_race};
pub use race::{RaceLane, Wrong};

use crate::oracle::{Clause, Finding, OnWire};
use crate::splat::Kind;
use crate::vm::FrontEnd;
use serde::Deserialize;
use std::time::Duration;
use tornblk_agent::channel::{MountPoint, Target, Workload, WriteFlags};
use tornblk_agent::race::Race;
use tornblk_model::crash::FaultKind;

/// Where a lane's file system is mounted in the guest.
pub const MOUNT: &str = "/mnt";

#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    pub name: String,
    pub about: String,
    pub quick: Budget,
    pub soak: Budget,
    pub lanes: Vec<Lane>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of each lane.
    pub cuts: u32,
    /// Of all lanes together: no cut begins after that.
    pub time: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    pub name: String,
    pub about: String,
    /// Which disk this is, as the crash model names it.
    pub profile: String,
    /// Bytes.
    pub capacity: u64,
    pub logical_block_size: u32,
    pub front_end: FrontEnd,
    pub queues: u16,
    /// Where its one partition begins (bytes); 0: it has none. The targets know it, too.
    pub partition: u64,
    /// `None`: what the guest knows of the disk's atomic limits is not looked at.
    pub atomic: Option<Atomic>,
    /// The device's `--hold-completions`: `idle`, `random`, or a number of requests; `None`: off.
    pub hold_completions: Option<String>,
    /// Makes the file system; empty: the raw disk.
    pub mkfs: Vec<String>,
    pub fstype: String,
    pub mount_options: String,
    /// Files under /sys and what is written into them before the workload.
    pub tune: Vec<(String, String)>,
    /// `None`: the guest writes.
    pub race: Option<RaceLane>,
    /// Before the file system is made the disk is full of what no file may ever show.
    pub poison: bool,
    pub writes: u32,
    pub sync_every: u32,
    pub targets: Vec<Target>,
    pub control: Control,
    /// Faults that break nothing here: that they are survived is what the lane is for.
    pub survives: Vec<FaultKind>,
    /// What must have been put to the test, or the lane is inconclusive.
    pub exercise: Vec<Exercise>,
    pub expect: Expect,
    /// A violation that is expected shows as these, and as nothing else; empty: as anything but a
    /// complaint of the guest's kernel. Of such complaints only that requests failed is ever expected.
    pub expect_as: Vec<Clause>,
}

/// The guest's kernel is told the disk's atomic limits, and must show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// How a write with RWF_ATOMIC must reach the disk.
    pub on_wire: OnWire,
    /// What statx(2) must say of a file; `None`: what the disk itself does.
    pub statx: Option<Statx>,
}

/// By the names of statx(2), without `stx_atomic_write_`; bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statx {
    pub unit_min: u32,
    pub unit_max: Bound,
    /// `None`: not looked at.
    pub unit_max_opt: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Bytes(u32),
    /// The disk's own `unit_max`.
    Disk,
}

impl Bound {
    pub fn of(self, disk: u32) -> u32 {
        match self {
            Bound::Bytes(bytes) => bytes,
            Bound::Disk => disk,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exercise {
    /// A write that had to be whole was at risk at a cut.
    Whole,
    /// A unit had something durable to lose.
    Durable,
    /// A write with RWF_ATOMIC reached the disk as one atomic request.
    Atomic,
    /// One request held more than one of them.
    Merged,
}

/// What the lane's authors say it does today.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expect {
    #[default]
    Passed,
    /// Red, for a reason that is known: told, but no failure; green is inconclusive.
    Violated(String),
}

/// The negative control.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    pub wrong: Wrong,
    pub place: Place,
    /// It is caught by a finding of one of these.
    pub caught_as: Vec<Clause>,
}

/// Where a fault and its cut are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Right after the write's request was executed, before anything makes it stable.
    InFlight,
    /// Right after the guest was told that the write is durable.
    Acknowledged,
}

impl Lane {
    /// Does the suite expect a violation to show like that?
    pub fn expects(&self, finding: &Finding) -> bool {
        match (&self.expect, self.expect_as.as_slice(), finding.clause) {
            (Expect::Passed, ..) => false,
            (_, _, Clause::KernelWarning) => {
                finding.complaint.is_some_and(|kind| self.expects_complaint(kind))
            }
            (_, [], _) => true,
            (_, only, clause) => only.contains(&clause),
        }
    }

    /// No red excuses more of a kernel's complaints than that requests failed.
    pub fn expects_complaint(&self, kind: Kind) -> bool {
        kind == Kind::Io
            && matches!(self.expect, Expect::Violated(_))
            && self.expect_as.contains(&Clause::KernelWarning)
    }

    pub fn is_raw(&self) -> bool {
        self.mkfs.is_empty()
    }

    /// The workload of one cut on the disk `device`.
    pub fn workload(&self, nonce: u64, seed: u64, device: &str) -> Workload {
        let disk = device.rsplit('/').next().unwrap_or(device);
        let files = self
            .targets
            .iter()
            .map(|t| Target { path: substitute(&t.path, device, disk), ..t.clone() })
            .collect();
        Workload {
            nonce,
            seed,
            files,
            load: true,
            writes: self.writes,
            sync_every: self.sync_every,
            skip_sync: false,
        }
    }

    /// The workload of a placed fault: the first target alone, one thread, one write at a time, so
    /// that the same seed makes the same requests in the same order. Each is durable before the
    /// next, so that only the one that is meant can be in between.
    pub fn placed_workload(&self, nonce: u64, seed: u64, device: &str, writes: u32) -> Workload {
        let mut workload = self.workload(nonce, seed, device);
        workload.files.truncate(1);
        for target in &mut workload.files {
            target.threads = 1;
            target.depth = 1;
        }
        workload.writes = writes;
        workload.sync_every = 1;
        workload
    }

    /// The race of one cut on the disk `device`; `None`: the lane has none.
    pub fn race(&self, nonce: u64, seed: u64, device: &str, wrong: Option<&str>) -> Option<Race> {
        let race = self.race.as_ref()?;
        let mount = (!self.is_raw()).then(|| MountPoint {
            target: MOUNT.to_owned(),
            fstype: self.fstype.clone(),
            options: self.mount_options.clone(),
        });
        Some(Race {
            name: race.name.clone(),
            device: device.to_owned(),
            mount,
            workload: self.workload(nonce, seed, device),
            rounds: race.rounds,
            set: race.set.clone(),
            wrong: wrong.map(str::to_owned),
        })
    }

    /// Makes the partition table; `None`: the disk has none.
    pub fn partition_command(&self, device: &str) -> Option<Vec<String>> {
        // A DOS table counts logical blocks.
        let start = self.partition / u64::from(self.logical_block_size);
        let script = format!("echo 'start={start}, type=83' | sfdisk --quiet --label dos {device}");
        (start > 0).then(|| ["sh".to_owned(), "-c".to_owned(), script].to_vec())
    }

    pub fn mkfs_command(&self, device: &str) -> Vec<String> {
        let disk = device.rsplit('/').next().unwrap_or(device);
        self.mkfs.iter().map(|arg| substitute(arg, device, disk)).collect()
    }

    pub fn tuning(&self, device: &str) -> Vec<(String, String)> {
        let disk = device.rsplit('/').next().unwrap_or(device);
        self.tune.iter().map(|(path, v)| (substitute(path, device, disk), v.clone())).collect()
    }
}

fn substitute(text: &str, device: &str, disk: &str) -> String {
    text.replace("{device}", device).replace("{disk}", disk).replace("{mount}", MOUNT)
}

/// `"direct atomic dsync"`, in any order; empty: a plain buffered write.
pub(crate) fn parse_flags(text: &str) -> Result<WriteFlags, String> {
    let mut flags = WriteFlags::default();
    for word in text.split_whitespace() {
        match word {
            "direct" => flags.direct = true,
            "atomic" => flags.atomic = true,
            "dsync" => flags.dsync = true,
            other => return Err(format!("\"{other}\" is no flag: direct, atomic, dsync")),
        }
    }
    Ok(flags)
}

//! One cut of the power, from a fresh disk to a judgement.

use super::limits::{self, Shown};
use super::relay::{Batches, Relay};
use super::volume::{Guest, LONG, MakeFs, SHORT, Volume, Way, make, whole_file};
use super::{
    CallError, Disk, Environment, GuestArgs, Lab, RunError, WireQuery, check, complaints, race,
};
use crate::device::DiskSpec;
use crate::explore::Subject;
use crate::oracle::{
    Clause, Finding, Judgement, Key, Ledger, LedgerBuilder, is_frozen, judge, on_wire,
};
use crate::splat::{IN_FULL, Watch};
use crate::suite::{Cut, Lane, Plan, Wrong};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tornblk_agent::channel::{Command, Outcome, Readback, Workload};
use tornblk_agent::race::Raced;
use tornblk_model::crash::Profile;
use tornblk_proto::NamedWrites;

/// As the guest finds it: 20 bytes, of which the device may need the last 8.
pub(super) const SERIAL: &str = "tornblk";

/// What came of one cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutReport {
    /// From 1; 0 is the negative control.
    pub number: u32,
    /// Where the power was cut, in words.
    pub plan: String,
    /// It was cut there; else at rest, after the workload's end.
    #[serde(default = "yes")]
    pub fired: bool,
    pub seed: u64,
    pub nonce: u64,
    /// The cut lies after this event of the recording.
    pub event: u64,
    /// Name of the state that the disk was left in.
    pub state: String,
    pub volatile_writes: u64,
    /// What the faults did.
    pub faults: Vec<String>,
    /// The write that the plan began at: (file, unit, generation).
    pub write: Option<(u32, u64, u32)>,
    /// How the writes arrived that say how long they are.
    #[serde(default)]
    pub named: NamedWrites,
    /// What came of the race; `None`: it was none, or it did not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raced: Option<Raced>,
    /// Where it was made; the lane's report has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    pub judgement: Judgement,
    /// `None` where it was not kept.
    pub folder: Option<PathBuf>,
    /// Commands that show it again.
    pub again: Vec<String>,
}

fn yes() -> bool {
    true
}

impl CutReport {
    /// What was found before any cut.
    pub(super) fn before_any(seed: u64, findings: Vec<Finding>) -> CutReport {
        CutReport {
            number: 1,
            plan: "before any: what the guest's kernel shows and refuses".to_owned(),
            fired: true,
            seed,
            nonce: 0,
            event: 0,
            state: String::new(),
            volatile_writes: 0,
            faults: Vec::new(),
            write: None,
            named: NamedWrites::default(),
            raced: None,
            environment: None,
            judgement: Judgement { findings, ..Judgement::default() },
            folder: None,
            again: Vec::new(),
        }
    }
}

/// How a cut ended.
#[derive(Clone, Debug)]
pub enum Judged {
    Done(Box<CutReport>),
    /// The kernel or the file system cannot do it, in its own words.
    Unsupported(String),
}

/// What is told while a cut is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told<'a> {
    Phase(&'a str),
    /// What the device says of writes that arrived otherwise than they should.
    Seen(&'a str),
}

/// All that is the same for the cuts of a lane.
pub(super) struct Setting<'a> {
    /// Its name.
    pub(super) suite: &'a str,
    pub(super) lane: &'a Lane,
    /// Of the run.
    pub(super) seed: u64,
    pub(super) volume: Volume,
    pub(super) base: &'a Path,
    pub(super) guest: &'a GuestArgs,
    pub(super) interrupted: &'a AtomicBool,
}

impl Setting<'_> {
    pub(super) fn spec(&self, dir: &Path, seed: u64, recording: Option<PathBuf>) -> DiskSpec {
        DiskSpec {
            image: self.base.to_owned(),
            recording: recording.clone(),
            profile: self.volume.profile.clone(),
            logical_block_size: self.lane.logical_block_size,
            front_end: self.volume.front_end,
            luns: Vec::new(),
            serial: SERIAL.to_owned(),
            seed,
            faults: Vec::new(),
            // Concurrent requests are for the workload: formatting is the same without.
            hold_completions: recording.as_ref().and(self.lane.hold_completions.clone()),
            log: dir.join("device.log"),
        }
    }

    /// Makes the base image: sparse, formatted by a guest where the lane has a file system.
    pub(super) fn make_base(&self, lab: &mut dyn Lab, dir: &Path) -> Result<(), RunError> {
        race::make_image(self.base, self.lane)?;
        if self.lane.is_raw() && self.lane.partition == 0 {
            return Ok(());
        }
        let disk = lab.disk(&self.spec(dir, 0, None))?;
        let mkfs = |device: &str| {
            let partition = self.lane.partition_command(device);
            partition.unwrap_or_else(|| self.lane.mkfs_command(device))
        };
        let all: [(_, &MakeFs); 1] = [(SERIAL.to_owned(), &mkfs)];
        self.volume.format(lab, disk.as_ref(), dir, &all, self.interrupted)?;
        disk.stop()?;
        race::check_poison(self.base, self.lane)
    }

    /// One cut. `dir` is its folder, `next` that of the one after it.
    pub(super) fn run(
        &self,
        lab: &mut dyn Lab,
        cut: &Cut,
        dir: &Path,
        next: Option<&Path>,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Judged, RunError> {
        tell(Told::Phase("starting a guest"));
        let recording = dir.join("disk.recording");
        let mut disk = lab.disk(&self.spec(dir, cut.seed, Some(recording.clone())))?;
        let mut guest = self.volume.guest(lab, disk.as_ref(), dir, "before", self.interrupted)?;
        let workload = match &cut.plan {
            Plan::Spread { .. } | Plan::Race { .. } => {
                self.lane.workload(cut.nonce, cut.seed, &guest.device)
            }
            Plan::Placed { .. } => self.lane.placed_workload(
                cut.nonce,
                cut.seed,
                &guest.device,
                cut.plan.placed_writes(),
            ),
        };
        if let Some(why) = self.ready(lab, &mut guest)? {
            return Ok(Judged::Unsupported(why));
        }
        let mut environment = self.environment(lab);
        environment.shown(&guest.describe()?);
        self.say_subject(disk.as_mut(), &workload, cut, lab.image(), &environment)?;
        lab.expect(&make(dir, "after")?);

        if let Plan::Race { wrong: Some(Wrong::Fault(fault)) } = &cut.plan {
            disk.fault(&fault.to_string())?;
        }
        tell(Told::Phase(if self.lane.race.is_some() { "racing" } else { "writing" }));
        let mut seen = |text: &str| tell(Told::Seen(text));
        let mut relay = Relay::new(
            disk.as_mut(),
            &workload,
            self.lane.is_raw(),
            &self.volume.profile,
            cut,
            self.interrupted,
            &mut seen,
        );
        // Where a fault makes it complain, it is waited for.
        relay.watch = cut.plan.fault().is_none().then(|| Watch::new(&dir.join("before"), IN_FULL));
        let said = complaints::said(&dir.join("before"));
        let command = self.command(&guest.device, cut, &workload);
        let ended = guest.machine.call(command, &mut relay, LONG);
        let (mut failed, mut died, mut raced) = (None, None, None);
        match ended {
            Err(CallError::Stopped) => check(self.interrupted)?,
            // To the disk it is one more cut of the power; what the kernel said is told by it.
            Err(CallError::Failed(e)) => {
                died = complaints::ended(&e, &dir.join("before"), said);
                // What a race saw broken is not lost by what came of it later.
                if died.is_none() && relay.found.is_empty() {
                    return Err(e);
                }
            }
            Ok(Outcome::Unsupported { message }) if relay.found.is_empty() => {
                return Ok(Judged::Unsupported(message));
            }
            Ok(Outcome::Unsupported { message }) => failed = Some(message),
            Ok(Outcome::Failed { message, .. }) => failed = Some(message),
            Ok(Outcome::Ok { value }) => {
                if self.lane.race.is_some() {
                    raced = Some(serde_json::from_value(value).map_err(|e| {
                        RunError::Guest(format!(
                            "what the guest says of its race is not understood: {e}"
                        ))
                    })?);
                }
            }
        }
        if let Some(error) = relay.error.take() {
            return Err(error);
        }
        if relay.crashed.is_none() {
            relay.cut_now()?;
        }
        relay.let_go();
        relay.look_at_the_wire();
        let named = relay.named()?;
        let (write, fired) = (relay.write(), relay.fired);
        let complained = relay.watch.as_mut().is_some_and(|watch| watch.complained().is_some());
        let live = std::mem::take(&mut relay.found);
        let (batches, crashed) = (std::mem::take(&mut relay.batches), relay.crashed.take());
        let Some(crashed) = crashed else {
            return Err(RunError::Bad("the device did not say that the power was cut".into()));
        };
        tell(Told::Phase("cutting the power"));
        guest.machine.kill();

        tell(Told::Phase("recovering"));
        let mut phase = |text: &str| tell(Told::Phase(text));
        let mut way = Way { dir, next, interrupted: self.interrupted, phase: &mut phase };
        let (readback, broken) = self.volume.recover(lab, disk.as_mut(), &workload, &mut way)?;
        disk.stop()?;

        tell(Told::Phase("judging"));
        let evidence = Evidence {
            guest: self.guest.clone(),
            volume: self.volume.clone(),
            workload,
            batches,
            readback,
            broken,
        };
        save(&dir.join("evidence.json"), &evidence)?;
        let mut judgement = evidence.judge(lab, &recording, &crashed.state, crashed.event)?;
        judgement
            .findings
            .extend(live.into_iter().map(race::finding).collect::<Result<Vec<_>, _>>()?);
        if evidence.is_frozen() {
            judgement.findings.extend(lab.frozen(dir, &make(dir, "frozen")?, cut.number == 0)?);
        }
        if let Some(message) = failed
            && judgement.findings.is_empty()
        {
            let what = if self.lane.race.is_some() { "race" } else { "workload" };
            return Err(RunError::Guest(format!("the {what} failed in the guest: {message}")));
        }
        let never = match (died.is_some(), complained) {
            (true, _) => "; that never came, because the guest's kernel died or hung before",
            (_, true) => "; that never came, because the guest's kernel complained before",
            _ => "; that never came, so it was cut at rest, after the workload's end",
        };
        judgement.findings.extend(died);
        Ok(Judged::Done(Box::new(CutReport {
            number: cut.number,
            plan: format!("{}{}", cut.plan, if fired { "" } else { never }),
            fired,
            seed: cut.seed,
            nonce: cut.nonce,
            event: crashed.event,
            state: crashed.state,
            volatile_writes: crashed.volatile_writes,
            faults: crashed.faults,
            write: write.map(|k: Key| (k.file, k.unit, k.r#gen)),
            named,
            raced,
            environment: Some(environment),
            judgement,
            folder: Some(dir.to_owned()),
            again: Vec::new(),
        })))
    }

    /// What the guest does until the cut.
    fn command(&self, device: &str, cut: &Cut, workload: &Workload) -> Command {
        let wrong = match &cut.plan {
            Plan::Race { wrong: Some(Wrong::Work(name)) } => Some(name.as_str()),
            _ => None,
        };
        match self.lane.race(cut.nonce, cut.seed, device, wrong) {
            Some(race) => Command::Race { race },
            None => Command::Workload { workload: workload.clone() },
        }
    }

    /// Where this lane runs.
    fn environment(&self, lab: &dyn Lab) -> Environment {
        let device = "{device}";
        let mkfs = match self.lane.is_raw() {
            true => self.lane.partition_command(device).unwrap_or_default(),
            false => self.lane.mkfs_command(device),
        };
        Environment { mkfs: mkfs.join(" "), ..lab.environment() }
    }

    /// Puts what is recorded here into the recording.
    fn say_subject(
        &self,
        disk: &mut dyn Disk,
        workload: &Workload,
        cut: &Cut,
        image: Option<String>,
        environment: &Environment,
    ) -> Result<(), RunError> {
        let subject = Subject {
            suite: self.suite.to_owned(),
            lane: self.lane.name.clone(),
            cut: cut.number,
            seed: self.seed,
            workload: workload.clone(),
            volume: self.volume.clone(),
            guest: self.guest.clone(),
            image,
            checker: None,
            environment: Some(environment.clone()),
            disks: Vec::new(),
            pages: None,
        };
        for mark in subject.marks() {
            if disk.mark(&mark)?.is_none() {
                return Err(RunError::Bad("the power is off before the workload began".into()));
            }
        }
        Ok(())
    }

    /// What the guest's kernel shows of the disk's atomic limits, and keeps to: before any cut, on a
    /// disk that goes no further. `None`: the lane does not ask.
    pub(super) fn look_at_limits(
        &self,
        lab: &mut dyn Lab,
        dir: &Path,
    ) -> Result<Option<Shown>, RunError> {
        let Some(atomic) = &self.lane.atomic else { return Ok(None) };
        let dir = make(dir, "limits")?;
        let recording = dir.join("disk.recording");
        let disk = lab.disk(&self.spec(&dir, 0, Some(recording)))?;
        let mut guest = self.volume.guest(lab, disk.as_ref(), &dir, "guest", self.interrupted)?;
        if let Err(error) = limits::show(&mut guest, lab, &self.volume) {
            return error.unsupported().map(Some);
        }
        if !self.lane.is_raw() {
            let mount = self.volume.mount(&guest.device);
            guest.ask("the first mount", mount, SHORT)?;
        }
        let shown = limits::look(&mut guest, self.lane, &self.volume, atomic)?;
        guest.machine.kill();
        drop(disk);
        Ok(Some(shown))
    }

    /// The disk as the workload wants it. → why it cannot be, in the kernel's own words: it does not
    /// mount what `mkfs` has just made (blocks larger than its pages, say).
    fn ready(&self, lab: &mut dyn Lab, guest: &mut Guest<'_>) -> Result<Option<String>, RunError> {
        if self.volume.shows_limits {
            // Before anything is opened or mounted: what they are is asked then.
            limits::show(guest, lab, &self.volume)?;
        }
        let set = self.lane.tuning(&guest.device);
        if !set.is_empty() {
            guest.ask("tuning the disk", Command::Tune { set }, SHORT)?;
        }
        if !self.lane.is_raw() {
            let mount = self.volume.mount(&guest.device);
            return guest.ask_to_mount(mount, SHORT);
        }
        Ok(None)
    }
}

/// What a judgement is made from, beside the recording; `evidence.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Evidence {
    /// Which guest it was.
    #[serde(default)]
    pub(super) guest: GuestArgs,
    pub(super) volume: Volume,
    pub(super) workload: Workload,
    pub(super) batches: Batches,
    pub(super) readback: Option<Readback>,
    /// What could not be recovered.
    pub(super) broken: Vec<Finding>,
}

impl Evidence {
    /// Was a file system frozen?
    pub(super) fn is_frozen(&self) -> bool {
        self.batches.iter().flatten().any(|(_, mark)| is_frozen(mark))
    }

    /// Judges it, with the disk in this state after this event of the recording.
    pub(super) fn judge(
        &self,
        lab: &mut dyn Lab,
        recording: &Path,
        state: &str,
        event: u64,
    ) -> Result<Judgement, RunError> {
        let ledger = ledger(&self.workload, &self.batches, event);
        let query = WireQuery {
            nonce: self.workload.nonce,
            profile: self.volume.profile.clone(),
            event,
            raw: self.volume.is_raw().then(|| self.workload.files.clone()),
            state: Some(state.to_owned()),
        };
        let wire = lab.wire(recording, &query)?;
        let lb_size = self.volume.logical_block_size;
        let mut judgement = match &self.readback {
            Some(found) => judge(&self.workload, lb_size, &ledger, &wire, found),
            None => Judgement::default(),
        };
        judgement.findings.extend(self.broken.iter().cloned());
        let profile: Profile =
            self.volume.profile.parse().map_err(|e| RunError::Bad(format!("{e}")))?;
        let reached = on_wire(&self.workload, &ledger, &wire, &profile, self.volume.on_wire);
        (judgement.counts.atomic, judgement.counts.merged) = (reached.atomic, reached.merged);
        judgement.findings.extend(reached.findings);
        for (file, result) in &ledger.failed_syncs {
            let error = std::io::Error::from_raw_os_error(-*result as i32);
            let text = format!("fdatasync failed: {error}");
            judgement.findings.push(whole_file(&self.workload, *file, Clause::Failed, text));
        }
        Ok(judgement)
    }
}

pub(super) fn save<T: Serialize>(path: &Path, what: &T) -> Result<(), RunError> {
    let mut bytes = serde_json::to_vec(what)
        .map_err(|e| RunError::Bad(format!("cannot write {}: {e}", path.display())))?;
    bytes.push(b'\n');
    std::fs::write(path, bytes).map_err(RunError::io("write", path))
}

/// The promises that count: those whose marks lie before the cut.
fn ledger(workload: &Workload, batches: &Batches, cut: u64) -> Ledger {
    let mut builder = LedgerBuilder::new(workload);
    for batch in batches {
        builder.batch(batch.iter().filter(|(event, _)| *event <= cut).cloned());
    }
    builder.finish()
}

//! A simulated disk, guest and recording, for tests of the runner.
//!
//! The guest writes each unit in turn, with marks as the agent sends them. The disk keeps every
//! write since the last flush volatile, and its power cut resolves them as a test says.

use super::{Arm, CallError, Disk, Host, Lab, Machine, RunError, WireQuery};
use crate::device::DiskSpec;
use crate::oracle::{Wire, WireBuilder};
use crate::vm::FrontEnd;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tornblk_agent::channel::{
    AtomicLimits, Command, Found, MarkText, Outcome, Readback, Refusal, RefusalCase, Target,
    UnitFound, Workload, WriteFlags,
};
use tornblk_agent::payload::{self, Stamp};
use tornblk_agent::race::{Race, RaceFinding, Raced};
use tornblk_model::crash::{AtomicMode, Profile};
use tornblk_model::event::Seq;
use tornblk_proto::{Crashed, Match, OpKind, Trigger};

/// What goes wrong in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// A cut leaves half of the newest write, fault or not.
    Tears,
    /// Armed faults do nothing.
    DeafToFaults,
    /// They do what they should, and no harm comes of it.
    FaultsHarmNobody,
    /// The workload is refused.
    Unsupported,
    /// The guest never answers to the workload.
    Hangs,
    /// The file system cannot be mounted after a cut.
    Unmountable,
    /// The kernel dies when it mounts after a cut.
    PanicsOnMount,
    /// `mkfs` ends with an error.
    MkfsFails,
    /// It neither answers nor ends when it mounts after a cut.
    HangsOnMount,
    /// The kernel dies, or never answers, or fails, when it reads back.
    PanicsOnReadback,
    HangsOnReadback,
    FailsReadback,
    /// The kernel dies, or hangs, as soon as there is work.
    PanicsAtWork,
    HangsAtWork,
    /// The recording cannot be read.
    NoRecording,
    /// Nothing that is armed for a request comes.
    NeverFires,
    /// It comes just when it is disarmed.
    FiresAtDisarm,
    /// Requests are split, so that nothing is eligible.
    Splits,
    /// The kernel shows half of the largest atomic write.
    ShowsOtherLimits,
    /// The kernel dies when it is told the limits after a cut.
    PanicsOnLimitsAfter,
    /// The image has no module for the limits.
    NoGuestModule,
    /// The file system knows no atomic writes.
    NoAtomicFiles,
    /// Writes beyond the limits are taken.
    TakesAnything,
    /// A race finds that a call hangs.
    RaceFinds,
    /// It never comes to its moment.
    RaceMisses,
    /// What is done wrong on purpose is not noticed.
    RaceBlind,
    /// The kernel complains, and the race goes on for ever.
    RaceComplains,
}

#[derive(Debug)]
struct State {
    bug: Bug,
    events: u64,
    armed: Option<Arm>,
    matched: u64,
    faults: Vec<String>,
    profile: Profile,
    /// The kernel was told the disk's limits; a SCSI driver asks by itself.
    knows_limits: bool,
    crashed: Option<Crashed>,
    /// What each unit shows: halves of it.
    stable: BTreeMap<(u32, u64), [Option<u32>; 2]>,
    volatile: Vec<(u32, u64, u32)>,
    /// Every write: (event, file, unit, generation, bytes).
    writes: Vec<(u64, u32, u64, u32, u32)>,
    /// Called for each guest and disk that was started and not ended.
    alive: i64,
}

#[derive(Clone, Debug)]
pub(super) struct FakeLab {
    state: Rc<RefCell<State>>,
    /// Commands that guests were asked for.
    pub(super) asked: Rc<RefCell<Vec<String>>>,
    /// What the kernels of guests say on their consoles: the end of the console's folder, and text.
    pub(super) says: Vec<(&'static str, &'static str)>,
    /// What they say as soon as there is work.
    pub(super) says_at_work: &'static str,
    /// The folder of the guest that is started ahead.
    pub(super) expected: Rc<RefCell<Option<PathBuf>>>,
}

impl FakeLab {
    pub(super) fn new(bug: Bug) -> FakeLab {
        let state = State {
            bug,
            events: 0,
            armed: None,
            matched: 0,
            faults: Vec::new(),
            profile: Profile::PLAIN,
            knows_limits: false,
            crashed: None,
            stable: BTreeMap::new(),
            volatile: Vec::new(),
            writes: Vec::new(),
            alive: 0,
        };
        FakeLab {
            state: Rc::new(RefCell::new(state)),
            asked: Rc::default(),
            says: Vec::new(),
            says_at_work: "",
            expected: Rc::default(),
        }
    }

    /// Machines and disks that nobody ended.
    pub(super) fn alive(&self) -> i64 {
        self.state.borrow().alive
    }
}

struct Alive(Rc<RefCell<State>>);

impl Alive {
    fn new(state: &Rc<RefCell<State>>) -> Alive {
        state.borrow_mut().alive += 1;
        Alive(Rc::clone(state))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.borrow_mut().alive -= 1;
    }
}

impl Lab for FakeLab {
    fn disk(&mut self, spec: &DiskSpec) -> Result<Box<dyn Disk>, RunError> {
        let mut state = self.state.borrow_mut();
        if spec.recording.is_some() {
            state.events = 0;
            state.armed = None;
            state.matched = 0;
            state.faults.clear();
            state.profile = spec.profile.parse().map_err(bad)?;
            state.knows_limits = spec.front_end == FrontEnd::Scsi;
            state.crashed = None;
            state.stable.clear();
            state.volatile.clear();
            state.writes.clear();
        }
        drop(state);
        Ok(Box::new(FakeDisk(Alive::new(&self.state))))
    }

    fn machine(&mut self, dir: &Path) -> Result<Box<dyn Machine>, RunError> {
        assert!(dir.is_dir(), "its console goes there");
        for (_, text) in self.says.iter().filter(|(end, _)| dir.ends_with(end)) {
            std::fs::write(dir.join(crate::vm::CONSOLE), text)
                .map_err(RunError::io("write", dir))?;
        }
        self.forget();
        let asked = Rc::clone(&self.asked);
        let alive = Alive::new(&self.state);
        let at_work = (dir.join(crate::vm::CONSOLE), self.says_at_work);
        Ok(Box::new(FakeMachine { alive, asked, attached: None, fstype: String::new(), at_work }))
    }

    fn guest_module(&self) -> Result<String, String> {
        match self.state.borrow().bug {
            Bug::NoGuestModule => Err("the image has no module".into()),
            _ => Ok("/fake.ko".into()),
        }
    }

    fn expect(&mut self, dir: &Path) {
        self.forget();
        *self.expected.borrow_mut() = Some(dir.to_owned());
    }

    fn forget(&mut self) {
        let ahead = self.expected.borrow_mut().take();
        assert!(ahead.is_none_or(|dir| dir.is_dir()), "a guest lost its folder");
    }

    fn wire(&mut self, _: &Path, query: &WireQuery) -> Result<Wire, RunError> {
        let state = self.state.borrow();
        if state.bug == Bug::NoRecording {
            return Err(RunError::Bad("the recording cannot be read".into()));
        }
        let mut builder = WireBuilder::new(query.nonce, 512);
        for &(event, file, unit, r#gen, len) in &state.writes {
            if event > query.event {
                break;
            }
            let mut bytes = vec![0; len as usize];
            let stamp =
                Stamp { nonce: query.nonce, unit, file, generation: r#gen, sector: 0, sectors: 0 };
            payload::fill(&mut bytes, stamp);
            let whole = if state.bug == Bug::Splits { bytes.len() / 2 } else { bytes.len() };
            let profile: Profile = query.profile.parse().map_err(bad)?;
            let eligible = profile.eligible(0, whole as u64, true);
            builder.sent_as_atomic(Seq(event));
            builder.write(Seq(event), 0, whole as u64, &bytes[..whole], eligible, true);
        }
        Ok(builder.finish())
    }
}

fn bad(error: impl std::fmt::Display) -> RunError {
    RunError::Bad(error.to_string())
}

impl State {
    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Carries out what is armed, where a request matches.
    fn request(&mut self, op: OpKind, complete: bool) {
        let Some(arm) = &self.armed else { return };
        if matches!(self.bug, Bug::NeverFires | Bug::FiresAtDisarm) {
            return;
        }
        let which: &Match = match &arm.at {
            Trigger::Submit(which) if !complete => which,
            Trigger::Complete(which) if complete => which,
            _ => return,
        };
        if which.op.is_some_and(|o| o != op) {
            return;
        }
        self.matched += 1;
        if which.nth.is_none_or(|n| n == self.matched) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let mut done = Vec::new();
        if self.bug != Bug::DeafToFaults {
            for fault in self.faults.clone() {
                if self.bug == Bug::FaultsHarmNobody {
                    done.push(format!("{fault}: nobody minds"));
                } else if fault.starts_with("ignore-flush") {
                    self.stable.clear();
                    self.volatile.clear();
                    done.push(format!("{fault}: everything is lost"));
                } else if fault.starts_with("tear-atomic")
                    && self.profile.mode != AtomicMode::None
                    && self.tear()
                {
                    done.push(format!("{fault}: the newest write is torn"));
                }
            }
        }
        if self.bug == Bug::Tears {
            self.tear();
        }
        let volatile_writes = self.volatile.len() as u64;
        self.crashed = Some(Crashed {
            event: self.events,
            state: format!("fake/p{}:none", self.events),
            faults: done,
            volatile_writes,
        });
    }

    /// Half of the newest volatile write is there.
    fn tear(&mut self) -> bool {
        let Some(&(file, unit, r#gen)) = self.volatile.last() else { return false };
        self.stable.entry((file, unit)).or_default()[0] = Some(r#gen);
        true
    }

    fn flush(&mut self) {
        self.request(OpKind::Flush, false);
        if self.crashed.is_some() {
            return;
        }
        self.event();
        for (file, unit, r#gen) in std::mem::take(&mut self.volatile) {
            self.stable.insert((file, unit), [Some(r#gen); 2]);
        }
        self.request(OpKind::Flush, true);
    }

    fn write(&mut self, file: u32, unit: u64, r#gen: u32, len: u32) {
        let event = self.event();
        self.writes.push((event, file, unit, r#gen, len));
        self.request(OpKind::Write, false);
        if self.crashed.is_some() {
            return;
        }
        self.event();
        self.volatile.push((file, unit, r#gen));
        self.request(OpKind::Write, true);
    }
}

struct FakeDisk(Alive);

impl Disk for FakeDisk {
    fn socket(&self) -> PathBuf {
        PathBuf::from("/fake/socket")
    }

    fn mark(&mut self, _: &str) -> Result<Option<u64>, RunError> {
        let mut state = self.0.0.borrow_mut();
        Ok(if state.crashed.is_some() { None } else { Some(state.event()) })
    }

    fn fault(&mut self, spec: &str) -> Result<(), RunError> {
        self.0.0.borrow_mut().faults.push(spec.to_owned());
        Ok(())
    }

    fn arm(&mut self, cut: &Arm) -> Result<(), RunError> {
        let mut state = self.0.0.borrow_mut();
        assert!(state.armed.is_none(), "armed twice");
        if state.crashed.is_some() {
            return Err(RunError::Bad("the power is cut already".into()));
        }
        state.matched = 0;
        state.armed = Some(cut.clone());
        if cut.at == Trigger::Now {
            state.cut();
        }
        Ok(())
    }

    fn crashed(&mut self, _: Duration) -> Result<Option<Crashed>, RunError> {
        Ok(self.0.0.borrow().crashed.clone())
    }

    fn disarm(&mut self) -> Result<Option<Crashed>, RunError> {
        let mut state = self.0.0.borrow_mut();
        if state.armed.is_some() && state.bug == Bug::FiresAtDisarm {
            state.cut();
        }
        state.armed = None;
        Ok(state.crashed.clone())
    }

    fn stop(self: Box<Self>) -> Result<(), RunError> {
        Ok(())
    }
}

struct FakeMachine {
    alive: Alive,
    asked: Rc<RefCell<Vec<String>>>,
    attached: Option<FrontEnd>,
    /// Of what was mounted.
    fstype: String,
    /// Its console, and what it says there.
    at_work: (PathBuf, &'static str),
}

impl FakeMachine {
    /// sysfs' `queue/`, as a kernel shows it.
    fn queue(&self) -> serde_json::Value {
        let state = self.state();
        let p = &state.profile;
        let known = u64::from(state.knows_limits);
        let half = if state.bug == Bug::ShowsOtherLimits { 2 } else { 1 };
        let scsi = self.attached == Some(FrontEnd::Scsi);
        let byte = self.attached == Some(FrontEnd::Blk);
        serde_json::json!({
            "atomic_write_unit_min_bytes": known * 512,
            "atomic_write_unit_max_bytes": known * p.unit_max / half,
            "atomic_write_max_bytes": known * if byte { p.unit_max } else { p.max_bytes },
            "atomic_write_boundary_bytes": known * if scsi { 0 } else { p.boundary },
        })
    }

    fn statx(&self) -> AtomicLimits {
        let state = self.state();
        let half = if state.bug == Bug::ShowsOtherLimits { 2 } else { 1 };
        let disk = state.profile.unit_max as u32 / half;
        let none = state.bug == Bug::NoAtomicFiles;
        let of = |unit_min, unit_max, unit_max_opt| AtomicLimits {
            unit_min,
            unit_max,
            unit_max_opt,
            segments_max: 1,
        };
        match self.fstype.as_str() {
            "" => of(512, disk, 0),
            _ if none => AtomicLimits::default(),
            "xfs" => of(4096, 2 << 20, disk),
            _ => of(4096, disk, 0),
        }
    }

    fn state(&self) -> std::cell::RefMut<'_, State> {
        self.alive.0.borrow_mut()
    }

    fn workload(&self, workload: &Workload, host: &mut dyn Host) -> Result<Outcome, CallError> {
        for target in workload.files.iter().filter(|t| t.is_loaded(workload.load)) {
            for unit in 0..u64::from(target.units) {
                self.state().stable.insert((target.file, unit), [Some(0); 2]);
            }
        }
        host.marks(&[MarkText::Phase { name: "load-done".into() }])
            .map_err(|_| CallError::Stopped)?;
        let mut generations = BTreeMap::new();
        for n in 0..workload.writes as usize {
            let target = &workload.files[n % workload.files.len()];
            let nth = n / workload.files.len();
            let unit = (nth % target.units as usize) as u64;
            let flags: WriteFlags = target.flags[nth % target.flags.len()];
            let r#gen: &mut u32 = generations.entry((target.file, unit)).or_default();
            *r#gen += 1;
            let (file, len, offset) = (target.file, target.unit, target.offset_of(unit));
            let r#gen = *r#gen;
            host.marks(&[MarkText::Intent { file, unit, r#gen, offset, len, flags, at: None }])
                .map_err(|_| CallError::Stopped)?;
            self.state().write(file, unit, r#gen, len);
            if flags.dsync {
                self.state().flush();
            }
            if host.stop() {
                return Err(CallError::Stopped);
            }
            host.marks(&[MarkText::Done { file, unit, r#gen, result: i64::from(len) }])
                .map_err(|_| CallError::Stopped)?;
            if host.stop() {
                return Err(CallError::Stopped);
            }
            // Two batches a write, one before the first, and one of syncs each time.
            let (done, every) = (n as u64 + 1, u64::from(workload.sync_every));
            if every > 0 && done.is_multiple_of(every) {
                let since = 1 + 2 * done + done / every - 1;
                self.state().flush();
                if host.stop() {
                    return Err(CallError::Stopped);
                }
                let synced = |t: &Target| MarkText::Synced { file: t.file, since, result: 0 };
                host.marks(&workload.files.iter().map(synced).collect::<Vec<_>>())
                    .map_err(|_| CallError::Stopped)?;
                if host.stop() {
                    return Err(CallError::Stopped);
                }
            }
        }
        Ok(Outcome::Ok { value: serde_json::json!({}) })
    }

    fn race(&self, race: &Race, host: &mut dyn Host) -> Result<Outcome, CallError> {
        let bug = self.state().bug;
        for target in &race.workload.files {
            for unit in 0..u64::from(target.units) {
                self.state().stable.insert((target.file, unit), [Some(0); 2]);
            }
        }
        host.marks(&[MarkText::Phase { name: "load-done".into() }])
            .map_err(|_| CallError::Stopped)?;
        let clause = match race.wrong.as_deref() {
            Some("stamp") if bug != Bug::RaceBlind => Some("foreign"),
            None if bug == Bug::RaceFinds => Some("hung"),
            _ => None,
        };
        if let Some(clause) = clause {
            host.found(RaceFinding {
                clause: clause.into(),
                text: "as it was told to".into(),
                timeline: vec!["first".into(), "second".into()],
                ..RaceFinding::default()
            });
        }
        if bug == Bug::RaceComplains && race.wrong.is_none() {
            let (console, _) = &self.at_work;
            std::fs::write(console, self.at_work.1)
                .map_err(|e| CallError::Failed(RunError::io("write", console)(e)))?;
            let end = std::time::Instant::now() + Duration::from_secs(60);
            while !host.stop() {
                assert!(std::time::Instant::now() < end, "nobody listens");
                std::thread::sleep(Duration::from_millis(10));
            }
            return Err(CallError::Stopped);
        }
        let mut raced = Raced { rounds: race.rounds, ..Raced::default() };
        if bug != Bug::RaceMisses {
            raced.reached.insert("met".into(), 2);
        }
        Ok(Outcome::Ok { value: serde_json::to_value(raced).unwrap_or_default() })
    }

    fn readback(&self, workload: &Workload) -> Readback {
        let state = self.state();
        let mut readback = Readback::default();
        for target in &workload.files {
            for unit in 0..u64::from(target.units) {
                let halves = state.stable.get(&(target.file, unit)).copied().unwrap_or_default();
                let sectors = target.unit / 512;
                let found =
                    |half: Option<u32>| half.map_or(Found::Zero {}, |r#gen| Found::Own { r#gen });
                let runs = vec![
                    (sectors / 2, found(halves[0])),
                    (sectors - sectors / 2, found(halves[1])),
                ];
                readback.units.push(UnitFound { file: target.file, unit, runs });
            }
        }
        readback
    }
}

impl Machine for FakeMachine {
    fn attach(
        &mut self,
        socket: &Path,
        serial: &str,
        _: u16,
        front_end: FrontEnd,
    ) -> Result<(), RunError> {
        assert_eq!(socket, Path::new("/fake/socket"));
        assert!(!serial.is_empty() && self.attached.is_none());
        self.attached = Some(front_end);
        Ok(())
    }

    fn call(
        &mut self,
        command: Command,
        host: &mut dyn Host,
        deadline: Duration,
    ) -> Result<Outcome, CallError> {
        assert!(self.attached.is_some() && !deadline.is_zero());
        if host.stop() {
            return Err(CallError::Stopped);
        }
        let word = format!("{command:?}");
        let word = word.split([' ', '{']).next().unwrap_or_default().to_owned();
        self.asked.borrow_mut().push(word);
        let bug = self.state().bug;
        let after_cut = self.state().crashed.is_some();
        let ok = |value| Ok(Outcome::Ok { value });
        match command {
            Command::WaitDisk { .. } => {
                ok(serde_json::json!({"device": "/dev/vda", "queue": self.queue()}))
            }
            Command::LoadModule { .. } if after_cut && bug == Bug::PanicsOnLimitsAfter => {
                Err(CallError::Failed(RunError::Panic("Fatal exception".into())))
            }
            Command::LoadModule { path, params } => {
                assert!(path == "/fake.ko" && params.ends_with(" disk=vda"), "{params}");
                self.state().knows_limits = true;
                ok(serde_json::json!({}))
            }
            Command::StatAtomic { .. } => {
                ok(serde_json::to_value(self.statx()).unwrap_or_default())
            }
            Command::AtomicRefusals { limits, .. } => {
                assert!(limits.unit_max > 0);
                let result = if bug == Bug::TakesAnything { 4096 } else { -22 };
                let call = "pwritev2(...)".to_owned();
                let refusal =
                    Refusal { case: RefusalCase::TooLong, call, result, changed: result > 0 };
                ok(serde_json::json!([refusal]))
            }
            Command::Exec { .. } if bug == Bug::MkfsFails => {
                ok(serde_json::json!({"status": 1, "stdout": "", "stderr": "too small\n"}))
            }
            Command::Exec { .. } => {
                ok(serde_json::json!({"status": 0, "stdout": "", "stderr": ""}))
            }
            Command::Mount { .. } if after_cut && bug == Bug::Unmountable => {
                Ok(Outcome::Failed { message: "Structure needs cleaning".into(), errno: Some(117) })
            }
            Command::Mount { .. } if after_cut && bug == Bug::PanicsOnMount => {
                Err(CallError::Failed(RunError::Panic("kernel BUG at fs/xfs".into())))
            }
            Command::Mount { .. } if after_cut && bug == Bug::HangsOnMount => {
                Err(CallError::Failed(RunError::Hung("no answer within 300 s".into())))
            }
            Command::Readback { .. } if bug == Bug::PanicsOnReadback => {
                Err(CallError::Failed(RunError::Panic("kernel BUG at fs/iomap".into())))
            }
            Command::Readback { .. } if bug == Bug::HangsOnReadback => {
                Err(CallError::Failed(RunError::Hung("no answer within 300 s".into())))
            }
            Command::Readback { .. } if bug == Bug::FailsReadback => {
                Ok(Outcome::Failed { message: "Is a directory".into(), errno: Some(21) })
            }
            Command::Workload { .. } if bug == Bug::Unsupported => {
                Ok(Outcome::Unsupported { message: "RWF_ATOMIC: not supported".into() })
            }
            Command::Workload { .. } if bug == Bug::Hangs => {
                Err(CallError::Failed(RunError::Guest("the guest did not answer".into())))
            }
            Command::Mount { fstype, .. } => {
                self.fstype = fstype;
                ok(serde_json::json!({}))
            }
            Command::Workload { .. } if bug == Bug::PanicsAtWork => {
                Err(CallError::Failed(RunError::Panic("Fatal exception".into())))
            }
            Command::Workload { .. } if bug == Bug::HangsAtWork => {
                let (console, says) = &self.at_work;
                let mut text = std::fs::read_to_string(console).unwrap_or_default();
                text += says;
                std::fs::write(console, text)
                    .map_err(|e| CallError::Failed(RunError::io("write", console)(e)))?;
                Err(CallError::Failed(RunError::Hung("no answer within 300 s".into())))
            }
            Command::Workload { workload }
                if self.state().knows_limits
                    && workload.files.iter().any(|t| t.unit > self.statx().unit_max) =>
            {
                Ok(Outcome::Unsupported { message: "RWF_ATOMIC: EINVAL".into() })
            }
            Command::Workload { workload } => self.workload(&workload, host),
            Command::Race { race } => self.race(&race, host),
            Command::Readback { workload } => {
                ok(serde_json::to_value(self.readback(&workload)).unwrap_or_default())
            }
            Command::Dmesg {} => ok(serde_json::json!({"text": "quiet\n"})),
            _ => ok(serde_json::json!({})),
        }
    }

    fn kill(self: Box<Self>) {}
}

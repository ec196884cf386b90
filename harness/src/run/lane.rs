//! A lane: its base disk, its negative control, its cuts, its verdict.

use super::cut::{CutReport, Judged, Setting, Told, save};
use super::explored::{Asked, explored};
use super::limits::Shown;
use super::verdict::{ControlReport, LaneReport, Verdict};
use super::volume::Volume;
use super::{GuestArgs, Lab, Phase, Progress, RunError, RunFolder, Settings};
use crate::oracle::{Clause, Finding};
use crate::splat::Desk;
use crate::suite::{
    Exercise, Expect, Lane, Place, PlacedFault, Wrong, plan_control, plan_cut, plan_race,
};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tornblk_agent::channel::{AtomicLimits, Target};
use tornblk_model::crash::{Fault, FaultKind, Strategy};
use tornblk_proto::NamedWrites;

/// A race's recording is explored that long, however late it is.
const EXPLORED: Duration = Duration::from_secs(20);

/// Runs the lanes one after another.
///
/// # Errors
/// It was interrupted, or nothing at all could be run; `reports` has what was done by then. What goes
/// wrong later is the lane's verdict.
pub fn run_lanes(
    lab: &mut dyn Lab,
    lanes: &[(String, Lane)],
    settings: &Settings,
    folder: &RunFolder,
    interrupted: &AtomicBool,
    progress: &mut dyn Progress,
    reports: &mut Vec<LaneReport>,
) -> Result<(), RunError> {
    let mut desk = super::complaints::desk(&settings.guest);
    let mut clock = Clock::new(settings, lanes.len());
    for (i, (suite, lane)) in lanes.iter().enumerate() {
        clock.lane(i, !strategies(lane, settings).is_empty());
        desk.lane(|kind| lane.expects_complaint(kind));
        let mut run = LaneRun {
            lane,
            suite,
            settings,
            folder,
            interrupted,
            progress: &mut *progress,
            clock: &mut clock,
            desk: &mut desk,
            report: LaneReport::new(suite, lane, settings),
            supported: None,
            statx: None,
            last: None,
            at: None,
        };
        let started = Instant::now();
        match run.all(lab) {
            Ok(()) => {}
            Err(error @ RunError::Interrupted) => {
                if run.report.violations > 0 {
                    run.report.verdict = Verdict::Violated;
                    run.report.why = Some("it was interrupted".to_owned());
                    reports.push(run.report);
                }
                return Err(error);
            }
            Err(error @ RunError::Panic(_)) => run.died(&error)?,
            Err(error) if reports.is_empty() && run.report.cuts == 0 => return Err(error),
            Err(error) => {
                run.report.verdict = Verdict::Error;
                run.report.why = Some(error.to_string());
            }
        }
        run.complained_elsewhere()?;
        let mut report = run.report;
        report.seconds = started.elapsed().as_secs_f64();
        report.tell_known(&settings.known, &lab.release());
        progress.lane_done(&report);
        let bundles = report.explored.as_ref().is_some_and(|e| !e.failures.is_empty());
        if report.reports.is_empty()
            && !bundles
            && report.verdict != Verdict::Error
            && report.verdict != Verdict::Violated
            && !settings.keep
        {
            // Nothing in there shows anything again.
            lab.forget();
            folder.remove(&folder.lane(&lane.name)?);
        }
        let saved =
            folder.lane(&lane.name).and_then(|dir| save(&dir.join("verdict.json"), &report));
        reports.push(report);
        saved?;
    }
    Ok(())
}

/// Shares the time out over the lanes, and says what is left.
struct Clock {
    start: Instant,
    time: Option<Duration>,
    lanes: usize,
    lane: usize,
    /// Of a lane's time, what its cuts may take.
    share: f64,
    /// Of a lane, the control among them.
    cuts: u32,
    done: u32,
    done_before: u32,
}

impl Clock {
    fn new(settings: &Settings, lanes: usize) -> Clock {
        let control = u32::from(settings.faults.is_empty());
        let cuts = if settings.only.is_some() { 1 } else { settings.cuts + control };
        Clock {
            start: Instant::now(),
            time: settings.time,
            lanes,
            lane: 0,
            share: 1.0,
            cuts,
            done: 0,
            done_before: 0,
        }
    }

    /// `explores`: the rest of its time is for what comes after its cuts.
    fn lane(&mut self, lane: usize, explores: bool) {
        self.lane = lane;
        self.share = if explores { 0.5 } else { 1.0 };
        self.done_before = self.cuts * lane as u32;
        self.done = self.done_before;
    }

    fn cut_done(&mut self) {
        self.done += 1;
    }

    /// Has this lane's share ended? What one lane leaves goes to those after it.
    fn is_over(&self) -> bool {
        let part = (self.lane as f64 + self.share) / self.lanes.max(1) as f64;
        self.time.is_some_and(|time| self.start.elapsed() > time.mul_f64(part))
    }

    /// What is left of this lane's share, for what comes after its cuts.
    fn lane_left(&self) -> Option<Duration> {
        let part = (self.lane + 1) as f64 / self.lanes.max(1) as f64;
        self.time.map(|time| time.mul_f64(part).saturating_sub(self.start.elapsed()))
    }

    /// An estimate from the mean so far, never more than the budget.
    fn left(&self) -> Option<Duration> {
        let all = self.cuts * self.lanes as u32;
        (self.done > 0).then(|| {
            let mean = self.start.elapsed().div_f64(f64::from(self.done));
            let left = mean * all.saturating_sub(self.done);
            match self.time {
                Some(time) => left.min(time.saturating_sub(self.start.elapsed())),
                None => left,
            }
        })
    }
}

pub(super) struct LaneRun<'a> {
    pub(super) lane: &'a Lane,
    suite: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) folder: &'a RunFolder,
    interrupted: &'a AtomicBool,
    progress: &'a mut dyn Progress,
    clock: &'a mut Clock,
    pub(super) desk: &'a mut Desk,
    pub(super) report: LaneReport,
    /// What the guest said it cannot do.
    supported: Option<String>,
    /// What the guest's kernel says that it takes; `None`: it was not asked.
    statx: Option<AtomicLimits>,
    /// The cut that is being made, and its folder.
    pub(super) at: Option<(u32, PathBuf)>,
    /// The folder of the last cut, and whether it goes once it was explored.
    last: Option<(PathBuf, bool)>,
}

impl LaneRun<'_> {
    fn all(&mut self, lab: &mut dyn Lab) -> Result<(), RunError> {
        let planned = self.report.planned;
        self.progress.lane(&self.lane.name, planned);
        if let Some(why) = lab.cannot_attach(self.lane.front_end) {
            self.report.verdict = Verdict::Unsupported;
            self.report.why = Some(why);
            return Ok(());
        }
        let dir = self.folder.lane(&self.lane.name)?;
        let base = dir.join("base.img");
        let profile = self.report.profile.clone();
        let setting = Setting {
            suite: self.suite,
            lane: self.lane,
            seed: self.settings.seed,
            volume: Volume::new(self.lane, &profile),
            base: &base,
            guest: &self.settings.guest,
            interrupted: self.interrupted,
        };
        let what = if self.lane.is_raw() { "making the disk" } else { "formatting the disk" };
        self.phase(what, 0);
        setting.make_base(lab, &dir)?;
        self.hear_mkfs(&dir)?;
        if self.lane.atomic.is_some() {
            self.phase("looking at the limits", 0);
        }
        let shown = setting.look_at_limits(lab, &dir)?;
        self.hear_limits(&dir)?;
        // What it says is in the findings.
        let _ = std::fs::remove_dir_all(dir.join("limits"));
        match shown {
            None => {}
            Some(Shown::Unsupported(why)) => {
                self.unsupported(why);
                return Ok(());
            }
            Some(Shown::Looked { findings, statx }) => {
                self.statx = Some(statx);
                self.found_before(findings);
            }
        }
        let mut applied = false;
        let numbers: Vec<u32> = match self.settings.only {
            Some(number) => vec![number],
            None if self.settings.faults.is_empty() => (0..=planned).collect(),
            None => (1..=planned).collect(),
        };
        for (i, &number) in numbers.iter().enumerate() {
            // The control and one cut are made whatever it takes, and more while they prove nothing.
            let enough = || missing(self.lane, &self.report).is_none();
            if number > 1 && self.settings.only.is_none() && self.clock.is_over() && enough() {
                // Its folder was made for a guest that may have been started.
                lab.forget();
                self.folder.remove(&self.folder.cut(&self.lane.name, number)?);
                break;
            }
            let next = numbers.get(i + 1).copied();
            let Some(mut report) = self.cut(lab, &setting, number, next)? else {
                let why = self.supported.clone().unwrap_or_default();
                self.refused(&why);
                self.unsupported(why);
                return Ok(());
            };
            if let Some(mut environment) = report.environment.take() {
                environment.statx.clone_from(&self.statx);
                self.report.environment = Some(environment);
            }
            applied |= !report.faults.is_empty();
            if number == 0 {
                self.control(&report);
            } else {
                self.report.cuts += 1;
                self.report.at_rest += u32::from(!report.fired);
                self.report.counts += report.judgement.counts;
                add(&mut self.report.named, &report.named);
                self.report.raced(report.raced.as_ref());
                self.report.violations += report.judgement.findings.len() as u64;
            }
            self.keep(lab, report)?;
            self.clock.cut_done();
        }
        self.explore(lab)?;
        self.judge(applied);
        Ok(())
    }

    /// What the kernel or file system cannot do ends the lane; what was found before that stands.
    fn unsupported(&mut self, why: String) {
        let red = self.report.violations > 0;
        self.report.verdict = if red { Verdict::Violated } else { Verdict::Unsupported };
        self.report.why = Some(why);
    }

    /// What was found before any cut.
    fn found_before(&mut self, findings: Vec<Finding>) {
        if findings.is_empty() {
            return;
        }
        self.report.violations += findings.len() as u64;
        let mut report = CutReport::before_any(self.settings.seed, findings);
        report.again = self.again(&report);
        self.progress.cut(&self.lane.name, &report);
        self.report.reports.push(report);
    }

    /// A write was refused that the kernel says it takes: that is no lack.
    fn refused(&mut self, why: &str) {
        let Some(statx) = &self.statx else { return };
        let taken = |t: &Target| {
            let atomic = t.flags.iter().any(|flags| flags.atomic);
            atomic && (statx.unit_min..=statx.unit_max).contains(&t.unit)
        };
        let asked = || self.lane.targets.iter().filter(|t| t.flags.iter().any(|f| f.atomic));
        if asked().count() > 0 && asked().all(taken) {
            let text = format!("statx says that such a write is taken, and {why}");
            self.found_before(vec![Finding::new(Clause::Limits, text)]);
        }
    }

    /// Explores the last cut's recording, where that was asked for.
    fn explore(&mut self, lab: &mut dyn Lab) -> Result<(), RunError> {
        let Some((cut, goes)) = self.last.take() else { return Ok(()) };
        let strategies = self.strategies();
        if !strategies.is_empty() {
            let of = self.report.planned;
            let (lane, progress) = (self.lane.name.as_str(), &mut *self.progress);
            let mut phase = |what: &str| {
                progress.phase(&Phase { lane, what, cut: of, of, left: None });
            };
            let asked = Asked {
                profile: &self.report.profile,
                strategies: &strategies,
                states: self.lane.race.as_ref().filter(|_| !self.settings.soak).map(|r| r.states),
                seed: self.settings.seed,
                time: self.clock.lane_left().map(|left| match self.lane.race {
                    // It is a part of the lane, and not an extra.
                    Some(_) => left.max(EXPLORED),
                    None => left,
                }),
                dir: &self.folder.lane(lane)?.join("explored"),
                interrupted: self.interrupted,
            };
            self.report.explored = Some(explored(lab, &cut, &asked, &mut phase)?);
        }
        // What failed can be looked at further.
        let failed = self.report.explored.as_ref().is_some_and(|e| !e.failures.is_empty());
        if goes && !failed {
            self.folder.remove(&cut);
        }
        Ok(())
    }

    fn strategies(&self) -> Vec<Strategy> {
        strategies(self.lane, self.settings)
    }

    fn phase(&mut self, what: &str, cut: u32) {
        let of = self.report.planned;
        let left = self.clock.left();
        self.progress.phase(&Phase { lane: &self.lane.name, what, cut, of, left });
    }

    /// `None`: not supported.
    fn cut(
        &mut self,
        lab: &mut dyn Lab,
        setting: &Setting<'_>,
        number: u32,
        next: Option<u32>,
    ) -> Result<Option<CutReport>, RunError> {
        let seed = self.settings.seed;
        let fault = match &self.lane.control.wrong {
            Wrong::Fault(fault) => Some(fault.clone()),
            Wrong::Work(_) => None,
        };
        let cut = if self.lane.race.is_some() {
            let wrong = match number {
                0 => Some(self.lane.control.wrong.clone()),
                number => self.fault_for(number).map(Wrong::Fault),
            };
            plan_race(self.lane, seed, number, wrong)
        } else if let (0, Some(fault)) = (number, fault) {
            let fault = PlacedFault { fault, place: self.lane.control.place };
            plan_control(self.lane, seed, 0, fault)
        } else if let Some(fault) = self.fault_for(number) {
            let place = place_of(&fault);
            plan_control(self.lane, seed, number, PlacedFault { fault, place })
        } else {
            plan_cut(self.lane, seed, number, self.settings.cuts)
        };
        let dir = self.folder.cut(&self.lane.name, number)?;
        self.at = Some((number, dir.clone()));
        let next = next.map(|next| self.folder.cut(&self.lane.name, next)).transpose()?;
        let (of, left) = (self.report.planned, self.clock.left());
        let (lane, progress) = (self.lane, &mut self.progress);
        let mut tell = |told: Told<'_>| match told {
            Told::Phase(what) => {
                log::debug!("{}, cut {number}: {what}", lane.name);
                progress.phase(&Phase { lane: &lane.name, what, cut: number, of, left });
            }
            Told::Seen(text) => progress.seen(&lane.name, number, text),
        };
        match setting.run(lab, &cut, &dir, next.as_deref(), &mut tell)? {
            Judged::Done(mut report) => {
                self.hear(&dir, &mut report)?;
                report.again = self.again(&report);
                Ok(Some(*report))
            }
            Judged::Unsupported(message) => {
                self.hear_before(&dir)?;
                self.supported = Some(message);
                Ok(None)
            }
        }
    }

    /// The user's faults in turn.
    pub(super) fn fault_for(&self, number: u32) -> Option<Fault> {
        let faults = &self.settings.faults;
        let n = faults.len().max(1);
        faults.get((number.max(1) - 1) as usize % n).cloned()
    }

    /// Commands that show a cut again.
    fn again(&self, report: &CutReport) -> Vec<String> {
        let mut run = format!(
            "tornblk run {} --lane {} --seed {} --crashes {} --cut {}",
            self.settings.given.get(self.suite).map_or(self.suite.to_owned(), |s| word(s)),
            self.lane.name,
            self.settings.seed,
            self.settings.cuts,
            report.number
        );
        if let Some(front_end) = self.settings.front_end {
            run += &format!(" --front-end {front_end}");
        }
        if let Some(profile) = &self.settings.profile {
            run += &format!(" --profile {profile}");
        }
        for fault in &self.settings.faults {
            run += &format!(" --fault {}", quote(&fault.to_string()));
        }
        let GuestArgs { kernel, modules, qemu, append } = &self.settings.guest;
        let modules = modules.as_ref().map(|path| path.display().to_string());
        let qemu = qemu.as_ref().map(|path| path.display().to_string());
        let given =
            [("kernel", kernel), ("modules", &modules), ("qemu", &qemu), ("append", append)];
        for (option, value) in given {
            if let Some(value) = value {
                run += &format!(" --{option} {}", word(value));
            }
        }
        let mut again = Vec::new();
        if let Some(folder) = &report.folder {
            again.push(format!("tornblk repro {}", quote(&folder.display().to_string())));
            let recording = folder.join("disk.recording");
            again.push(format!(
                "tornblk recording export {} --state {} --hash",
                quote(&recording.display().to_string()),
                quote(&report.state)
            ));
        }
        again.push(run);
        again
    }

    fn control(&mut self, report: &CutReport) {
        let findings = &report.judgement.findings;
        let caught_as = &self.lane.control.caught_as;
        let race = self.lane.race.is_some();
        let found = match race {
            // All of it is wrong.
            true => findings.iter().map(|f| f.clause).find(|c| caught_as.contains(c)),
            false => caught(caught_as, report.write, findings),
        };
        let text = match found {
            Some(clause) => clause.to_string(),
            None if report.faults.is_empty() && !race => {
                "the fault found nothing to break".to_owned()
            }
            None if findings.is_empty() => "nothing was noticed".to_owned(),
            None => {
                let mut clauses: Vec<Clause> = findings.iter().map(|f| f.clause).collect();
                clauses.sort();
                clauses.dedup();
                let clauses: Vec<&str> = clauses.iter().map(|c| c.name()).collect();
                format!("only {} was noticed, or elsewhere", clauses.join(", "))
            }
        };
        let fault = self.lane.control.wrong.to_string();
        self.report.control = Some(ControlReport { fault, caught: found.is_some(), text });
    }

    /// One file to show it again: where it cannot be made, there is the folder.
    fn bundle(&self, lab: &dyn Lab, report: &mut CutReport) {
        let lane = (self.suite, self.lane);
        match super::race::bundle(lab, lane, self.settings, report, &self.report.profile) {
            Ok(None) => {}
            Ok(Some(path)) => {
                let command = format!("tornblk repro {}", word(&path.display().to_string()));
                report.again.insert(0, command);
            }
            Err(error) => log::warn!("{error}"),
        }
    }

    /// Writes the verdict beside the evidence, and drops the evidence where nothing is wrong.
    fn keep(&mut self, lab: &dyn Lab, mut report: CutReport) -> Result<(), RunError> {
        let bad = if report.number == 0 {
            self.report.control.as_ref().is_some_and(|c| !c.caught)
        } else {
            !report.judgement.findings.is_empty()
        };
        self.progress.cut(&self.lane.name, &report);
        if bad && report.number > 0 {
            self.bundle(lab, &mut report);
        }
        if let Some(folder) = &report.folder {
            save(&folder.join("verdict.json"), &report)?;
            let goes = !bad && !self.settings.keep;
            // The last one is still wanted.
            let wanted = !self.strategies().is_empty() && report.number > 0;
            if wanted && let Some((before, true)) = self.last.replace((folder.clone(), goes)) {
                self.folder.remove(&before);
            }
            if goes && !wanted {
                self.folder.remove(folder);
            }
            if goes {
                report.folder = None;
                report.again.retain(|command| command.starts_with("tornblk run"));
            }
        }
        if bad || self.settings.keep || self.settings.only.is_some() {
            self.report.reports.push(report);
        }
        Ok(())
    }

    /// Are all of the user's faults ones that this lane is there to survive?
    fn survives(&self) -> bool {
        let faults = &self.settings.faults;
        !faults.is_empty() && faults.iter().all(|f| self.lane.survives.contains(&f.kind))
    }

    fn judge(&mut self, applied: bool) {
        let survived = applied && self.survives();
        let report = &mut self.report;
        let mut why = None;
        let explored = report.explored.as_ref();
        let failures = explored.map_or(0, |e| e.profiles.iter().map(|p| p.failures).sum());
        report.violations += failures;
        let unexpected = crate::report::findings(report).any(|(_, f)| !self.lane.expects(f));
        report.verdict = if report.violations > 0 {
            match &self.lane.expect {
                Expect::Violated(reason) if self.settings.faults.is_empty() && !unexpected => {
                    why = Some(format!("known: {reason}"));
                    Verdict::KnownRed
                }
                _ => Verdict::Violated,
            }
        } else if let Some(control) = report.control.as_ref().filter(|c| !c.caught) {
            why = Some(format!(
                "its control ({}) was not caught: {}; so nothing is proved",
                control.fault, control.text
            ));
            Verdict::Inconclusive
        } else if survived {
            why = Some("survived, as it should".to_owned());
            Verdict::Passed
        } else if !self.settings.faults.is_empty() {
            why = Some(if applied {
                "the fault was not noticed".to_owned()
            } else {
                "the fault found nothing to break here".to_owned()
            });
            Verdict::Inconclusive
        } else if self.settings.only.is_some() && (self.lane.race.is_none() || report.cuts == 0) {
            // One cut need not put everything to the test; a race has to come to its moment.
            Verdict::Passed
        } else if let Some(missing) = missing(self.lane, report) {
            why = Some(missing);
            Verdict::Inconclusive
        } else if let Some(e) = explored.filter(|e| e.verdict == Verdict::Inconclusive) {
            let mut reason = e.why.clone().unwrap_or_default();
            if let Some((_, first)) = e.unsure.first() {
                reason += &format!(" (the first: {first})");
            }
            why = Some(format!("exploring its last cut was inconclusive: {reason}"));
            Verdict::Inconclusive
        } else if matches!(self.lane.expect, Expect::Violated(_)) {
            let mut text = "it passed, but the suite expects it to be violated".to_owned();
            if self.lane.targets.iter().any(|target| target.planted.is_some()) {
                text += "; a cut seldom meets the state in which this shows: --explore finds it";
            }
            why = Some(text);
            Verdict::Inconclusive
        } else {
            Verdict::Passed
        };
        report.why = why;
    }
}

/// How the last cut's recording is explored: as it was asked for, else as the lane says.
fn strategies(lane: &Lane, settings: &Settings) -> Vec<Strategy> {
    let of_lane = || lane.race.as_ref().map(|race| race.explore.clone());
    match settings.explore.as_slice() {
        [] if settings.faults.is_empty() => of_lane().unwrap_or_default(),
        asked => asked.to_vec(),
    }
}

fn add(all: &mut NamedWrites, more: &NamedWrites) {
    let NamedWrites { writes, whole, split, merged, .. } = more;
    let NamedWrites { merged_beyond_limit, misaligned, across_boundary, first, .. } = more;
    all.writes += writes;
    all.whole += whole;
    all.split += split;
    all.merged += merged;
    all.merged_beyond_limit += merged_beyond_limit;
    all.misaligned += misaligned;
    all.across_boundary += across_boundary;
    let room = NamedWrites::FIRST.saturating_sub(all.first.len());
    all.first.extend(first.iter().take(room).cloned());
}

/// For a shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The same, where it needs quotes.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { quote(text) }
}

/// As what a control on this write (file, unit, generation) was caught. Only what is said of that
/// write, or of a later one that took its place, counts: what the load wrote there lost nothing
/// that the control broke.
fn caught(
    caught_as: &[Clause],
    write: Option<(u32, u64, u32)>,
    findings: &[Finding],
) -> Option<Clause> {
    let (file, unit, placed) = write?;
    findings
        .iter()
        .filter(|f| caught_as.contains(&f.clause) && (f.file, f.unit) == (file, unit))
        .find(|f| f.generation >= Some(placed))
        .map(|f| f.clause)
}

/// What was not put to the test.
fn missing(lane: &Lane, report: &LaneReport) -> Option<String> {
    let counts = &report.counts;
    let met = |what: &String| {
        report.raced.as_ref().and_then(|raced| raced.reached.get(what)).is_some_and(|n| *n > 0)
    };
    let mut moments = lane.race.iter().flat_map(|race| &race.must_reach);
    if let Some(moment) = moments.find(|moment| !met(moment)) {
        return Some(format!("the race never came to \"{moment}\": nothing is proved"));
    }
    let missing = lane.exercise.iter().find_map(|what| match what {
        Exercise::Whole if counts.eligible == 0 => {
            Some("no write had to be whole: nothing is proved")
        }
        Exercise::Whole if counts.at_risk == 0 => {
            Some("no cut caught a write that had to be whole: try more cuts (--crashes)")
        }
        Exercise::Atomic if counts.atomic == 0 => Some(
            "no write with RWF_ATOMIC reached the disk as one atomic request: nothing is proved of \
             the hardware's part",
        ),
        Exercise::Merged if counts.merged == 0 => {
            Some("no request held more than one write with RWF_ATOMIC: nothing was merged")
        }
        Exercise::Durable if counts.durable == 0 => {
            Some("nothing had to survive: nothing is proved")
        }
        _ => None,
    });
    missing.map(str::to_owned)
}

/// Where a fault of the user's shows.
fn place_of(fault: &Fault) -> Place {
    match fault.kind {
        FaultKind::TearAtomic => Place::InFlight,
        FaultKind::IgnoreFlush
        | FaultKind::LoseWrite
        | FaultKind::ReorderFlush
        | FaultKind::Misdirect
        | FaultKind::Corrupt
        | FaultKind::StaleRead
        | FaultKind::Eio => Place::Acknowledged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::finding;

    #[test]
    fn a_control_is_caught_only_by_its_own_write_or_a_later_one() {
        let lost =
            |unit, generation| Finding { clause: Clause::Lost, unit, generation, ..finding() };
        let caught = |f: Finding| caught(&[Clause::Lost], Some((1, 3, 7)), &[f]);
        assert_eq!(caught(lost(3, Some(7))), Some(Clause::Lost));
        assert_eq!(caught(lost(3, Some(8))), Some(Clause::Lost));
        assert_eq!(caught(lost(3, Some(0))), None, "the load's");
        assert_eq!(caught(lost(3, Some(6))), None);
        assert_eq!(caught(lost(3, None)), None);
        assert_eq!(caught(lost(4, Some(7))), None, "elsewhere");
        assert_eq!(caught(Finding { clause: Clause::Torn, ..lost(3, Some(7)) }), None);
    }
}

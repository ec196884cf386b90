//! One cell, tried: recorded, audited, its pages torn in place, its server started from crash states.

use super::choose::{candidates, moments, state_at};
use super::{
    Cell, CellReport, ENTER, IN_PLACE, InPlace, NotApplicable, OnDisk, Recovered, Recovery,
    TRANSACTIONS, WRONG,
};
use crate::audit::{Audit, PageWrites, Used, advice, audit, page_writes};
use crate::explore::bundle::EXTENSION;
use crate::explore::guest::GuestSettings;
use crate::explore::session::{Choices, Session};
use crate::explore::{
    ByName, Checker, Drive, Ended, ExploreError, Guests, Means, Named, Opened, Pages, RecordingIds,
    Settings, Units, Verdict, Verifier, View, fits_any, judge, keep, named, report,
};
use crate::oracle::{Clause, Finding};
use crate::run::{GuestArgs, RealLab, RunError, RunFolder, Volume, Wanted, first_looks, program};
use crate::vm::{FrontEnd, Virtiofsd};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tornblk_agent::channel::{Program, USER_DISK};
use tornblk_image::Root;
use tornblk_model::crash::{Fault, Parsed, Profile, StateName, Strategy};
use tornblk_model::event::{SECTOR, Seq};

/// For a load, for all transactions, and for one recovery: emulated guests are slow.
const LONG: Duration = Duration::from_secs(900);
const ONE: Duration = Duration::from_secs(240);
/// Torn states from which the server recovers, at most, for each disk.
const TORN: usize = 2;
/// What a recording is made on that shall serve every disk.
const LB: u32 = SECTOR as u32;

/// Where and with what cells are tried.
pub struct Place<'a> {
    pub lab: &'a mut RealLab,
    pub guest: &'a GuestArgs,
    pub front_end: FrontEnd,
    pub virtiofsd: &'a Virtiofsd,
    pub seed: u64,
    pub interrupted: &'a Arc<AtomicBool>,
    /// Told what is being done.
    pub note: &'a (dyn Fn(&str) + Sync),
}

/// One cell at work. What is known so far is in its report: should something fail later, it is told all the
/// same.
pub struct Trial<'a> {
    place: Place<'a>,
    root: &'a Root,
    folder: &'a RunFolder,
    report: CellReport,
}

/// A recording of the cell, on a disk with logical blocks of one size.
struct Recorded {
    opened: Opened,
    pages: PageWrites,
    folder: PathBuf,
    profiles: Vec<Profile>,
    /// Of [`CellReport::disks`], the one of the first profile.
    first: usize,
}

/// Which of the disks wants which state, as it is called there.
struct Want {
    disk: usize,
    state: StateName,
    torn_before: bool,
    /// Of the states that are tried.
    tried: usize,
}

/// What came of a state, with what was found.
type Came = (Recovered, Vec<Finding>);

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("cell", &self.report.cell.name).finish_non_exhaustive()
    }
}

impl<'a> Trial<'a> {
    /// `folder`: its own.
    pub fn new(place: Place<'a>, cell: Cell, root: &'a Root, folder: &'a RunFolder) -> Trial<'a> {
        let package = cell.database.package();
        let version = format!("{package} {}", root.version(package).unwrap_or_default());
        Trial { place, root, folder, report: CellReport::new(cell, version) }
    }

    pub fn into_report(self) -> CellReport {
        self.report
    }

    /// Records it once for all profiles with the same logical blocks, and tries each.
    ///
    /// # Errors
    /// It cannot be tried, or not to its end.
    pub fn run(&mut self, profiles: &[Profile]) -> Result<(), ExploreError> {
        let mut by_block: BTreeMap<u32, Vec<Profile>> = BTreeMap::new();
        for profile in profiles {
            by_block.entry(profile.lb_size.unwrap_or(LB)).or_default().push(profile.clone());
        }
        for (lb_size, profiles) in by_block {
            if let Some(why) = self.report.cell.cannot_lie_on(lb_size) {
                let none = |profile: &Profile| NotApplicable {
                    profile: profile.to_string(),
                    why: why.clone(),
                };
                self.report.not_applicable.extend(profiles.iter().map(none));
                continue;
            }
            let own;
            let folder = if lb_size == LB {
                self.folder
            } else {
                own = self.folder.below(&format!("lb{lb_size}"))?;
                &own
            };
            self.on(lb_size, profiles, folder)?;
        }
        Ok(())
    }

    fn on(
        &mut self,
        lb_size: u32,
        profiles: Vec<Profile>,
        folder: &RunFolder,
    ) -> Result<(), ExploreError> {
        let wanted = self.wanted(lb_size, &profiles, folder)?;
        let name = self.report.cell.name.clone();
        let Place { interrupted, note, seed, .. } = self.place;
        let ran = program(self.place.lab, &wanted, folder, interrupted, &mut |text| {
            note(&format!("{name}: {text}"));
        });
        // What the server said of itself is told even where it came to nothing.
        if self.report.settings.is_empty() {
            let said = std::fs::read_to_string(folder.path().join("exec.log"));
            self.report.settings = said.unwrap_or_default();
        }
        let ran = ran?;
        if ran.marks != TRANSACTIONS {
            return Err(ExploreError::Bad(format!(
                "{} of {TRANSACTIONS} transactions were acknowledged on record",
                ran.marks
            )));
        }
        self.note("looking at a disk that lost no power");
        first_looks(self.place.lab, &ran.recording, folder, seed, interrupted)?;
        let opened = Opened::open(&ran.recording, None)?;
        let database = self.report.cell.database;
        let (page_size, files) = database.pages();
        let wanted = |path: &str| fits_any(&files, path);
        let (files, blank) = (&opened.files, opened.blank());
        let mut pages = page_writes(&opened.events, files, lb_size, page_size, wanted, blank);
        if let Some(Pages { format, .. }) = database.judged() {
            let PageWrites { files, writes, .. } = &mut pages;
            writes.retain(|write| format.is_data(&files[write.file], write.page, page_size));
        }
        // The same for every disk.
        let judged = database.judged().filter(|judged| judged.page_size >= u64::from(lb_size));
        let units = match judged {
            Some(judged) => Some((Units::pages(&opened, &judged)?, judged)),
            None => None,
        };
        let folder = folder.path().to_owned();
        let recorded = Recorded { opened, pages, folder, profiles, first: self.report.disks.len() };
        for profile in &recorded.profiles {
            self.note(&format!("{profile}, pages in place"));
            let disk = self.in_place(&recorded, units.as_ref(), profile)?;
            self.report.disks.push(disk);
        }
        self.recover(&recorded)
    }

    fn note(&self, text: &str) {
        (self.place.note)(&format!("{}: {text}", self.report.cell.name));
    }

    /// The program, where the guest sees it.
    fn script(&self, folder: &RunFolder) -> Result<String, RunError> {
        let path = folder.path().join("database.sh");
        let text = format!("#!/bin/sh\n{ENTER}{}", self.report.cell.database.program());
        std::fs::write(&path, text).map_err(RunError::io("write", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .map_err(RunError::io("write", &path))?;
        path.into_os_string()
            .into_string()
            .map_err(|path| RunError::Bad(format!("{} is no UTF-8", Path::new(&path).display())))
    }

    fn wanted(
        &self,
        lb_size: u32,
        profiles: &[Profile],
        folder: &RunFolder,
    ) -> Result<Wanted, RunError> {
        let script = self.script(folder)?;
        let (cell, place) = (&self.report.cell, &self.place);
        let mut env: Vec<(String, String)> = [
            ("PATH", "/run/tornblk/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("TORNBLK_MOUNT", USER_DISK.to_owned()),
            ("TORNBLK_DB_ROOT", self.root.dir.display().to_string()),
            ("TORNBLK_SEED", place.seed.to_string()),
            ("TORNBLK_TRANSACTIONS", TRANSACTIONS.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        env.extend(cell.env.iter().cloned());
        let argv = |what: &str| vec![script.clone(), what.to_owned()];
        let millis = |time: Duration| time.as_millis() as u64;
        let step = |what: &str| Program {
            argv: argv(what),
            env: env.clone(),
            marks: Vec::new(),
            timeout_ms: millis(LONG),
            disks: Vec::new(),
        };
        Ok(Wanted {
            name: cell.name.clone(),
            setup: Some(("the load".to_owned(), step("setup"))),
            program: step("run"),
            checker: Checker {
                name: cell.database.name().to_owned(),
                argv: argv("check"),
                env: env.clone(),
                timeout_ms: millis(ONE),
                corrupt_status: Some(WRONG),
            },
            mkfs: cell.ground.mkfs(place.seed),
            volume: Volume {
                fstype: cell.ground.fstype().to_owned(),
                mount_options: String::new(),
                queues: 1,
                logical_block_size: lb_size,
                profile: profiles[0].to_string(),
                front_end: place.front_end,
                shows_limits: false,
                on_wire: Default::default(),
            },
            size: cell.ground.size(),
            disks: Vec::new(),
            seed: place.seed,
            guest: place.guest.clone(),
            virtiofsd: place.virtiofsd.clone(),
        })
    }

    /// What is promised, and what is torn before any recovery.
    fn in_place(
        &self,
        recorded: &Recorded,
        units: Option<&(Units, Pages)>,
        profile: &Profile,
    ) -> Result<OnDisk, ExploreError> {
        let Recorded { opened, pages, folder, .. } = recorded;
        let mut audit: Audit = audit(pages, profile);
        audit.advice = advice(&audit, pages, profile, &Used::of(opened));
        let mut disk = OnDisk {
            profile: profile.to_string(),
            audit,
            in_place: None,
            recoveries: Vec::new(),
            bundle: None,
        };
        let Some((units, judged)) = units else { return Ok(disk) };
        let out = folder.join(format!("pages-{profile}"));
        std::fs::create_dir(&out).map_err(RunError::io("make the folder", &out))?;
        let settings = Settings {
            // Tears first; on a disk that tears nothing, what may be lost.
            strategies: vec![Strategy::Tear, Strategy::OneLost, Strategy::Prefix],
            seed: self.place.seed,
            every_event: true,
            states: Some(IN_PLACE),
            failures: TORN as u64,
            ..Settings::default()
        };
        let choices = Choices {
            profiles: vec![profile.to_string()],
            strategies: settings.strategies.iter().map(Strategy::to_string).collect(),
            faults: Vec::new(),
            seed: self.place.seed,
            every_event: true,
            nested: 0,
            fsck_every: 0,
            pages: Some(judged.clone()),
        };
        let mut session = Session::new(opened.identity.clone(), choices, None);
        session.judge = units.judge();
        let drive = Drive {
            opened,
            means: units,
            profiles: std::slice::from_ref(profile),
            settings: &settings,
            dir: &out,
            stop: self.place.interrupted,
        };
        drive.run(&mut session, Vec::new(), &mut ())?;
        if session.ended == Some(Ended::Stopped) {
            return Err(ExploreError::Interrupted);
        }
        let report = report(&session, session.judge, Vec::new())?;
        disk.in_place = Some(InPlace {
            pages: report.pages.as_ref().map_or(0, |p| p.judged),
            left_out: report.pages.as_ref().map_or(0, |p| p.unsound),
            states: report.profiles.iter().map(|p| p.counts.unique).sum(),
            torn: report.profiles.iter().map(|p| p.counts.failed).sum(),
        });
        for kept in report.failures.iter().take(TORN) {
            disk.recoveries.push(Recovery {
                state: kept.failure.state.0.clone(),
                torn_before: true,
                recovered: not_tried(),
                bundle: None,
            });
            let bundle = kept.bundle.as_ref().map(|file| out.join(file).display().to_string());
            disk.bundle = disk.bundle.take().or(bundle);
        }
        Ok(disk)
    }

    /// Has the server recover from states of each disk, and the controls tried.
    fn recover(&mut self, recorded: &Recorded) -> Result<(), ExploreError> {
        let Recorded { opened, pages, folder, profiles, first } = recorded;
        let mut settings =
            GuestSettings::new(self.place.lab, folder.clone(), Arc::clone(self.place.interrupted));
        settings.fsck_every = 0;
        let subject = opened.subject.as_ref().ok_or_else(no_subject)?;
        let means = Guests::of(opened, subject, settings)?;
        let ids = RecordingIds::new(opened.reader.clone(), opened.base.as_deref(), opened.trust())?;
        let cell = &self.report.cell;
        let moments = moments(&candidates(cell, opened, pages), cell.recoveries());
        let mut tries = Tries::new(opened, &ids);
        let wants = self.wants(recorded, &moments, &mut tries)?;
        // The controls are the cell's, and tried once.
        let last = moments.first().filter(|_| *first == 0);
        if let Some(at) = last {
            tries.add_lying(&profiles[0], *at, self.place.seed)?;
        }
        let came = self.each(recorded, &means, &tries)?;
        if let Some(at) = last {
            self.report.ledger_control = tries.lying.map(|at| came[at].0.clone());
            if self.report.cell.database.judged().is_none() {
                self.report.damage_control = Some(self.damaged(recorded, *at)?);
            }
        }
        for disk in &mut self.report.disks[*first..] {
            disk.recoveries.clear();
        }
        for want in wants {
            let (recovered, findings) = &came[want.tried];
            self.take(recorded, &means, want, recovered.clone(), findings);
        }
        Ok(())
    }

    /// The states that each disk wants tried: those with torn pages, others at moments spread over all
    /// [`candidates`], and one in which all is lost that may be.
    fn wants(
        &self,
        recorded: &Recorded,
        moments: &[Seq],
        tries: &mut Tries<'_>,
    ) -> Result<Vec<Want>, ExploreError> {
        let (cell, seed) = (&self.report.cell, self.place.seed);
        let mut wants = Vec::new();
        for (disk, profile) in (recorded.first..).zip(&recorded.profiles) {
            let known = &self.report.disks[disk].recoveries;
            let mut states: Vec<(StateName, bool)> =
                known.iter().map(|r| (StateName(r.state.clone()), true)).collect();
            for (i, at) in moments.iter().enumerate().skip(1) {
                if states.len() + 1 >= cell.recoveries() {
                    break;
                }
                // Pages say themselves what is torn; where they do not, any subset is worth a look, too.
                let torn = [Strategy::Tear, Strategy::OneLost];
                let any = [Strategy::Random { seed, count: 1 }, Strategy::OneLost];
                let strategies =
                    if cell.database.judged().is_none() && i % 2 == 0 { any } else { torn };
                let state = state_at(&recorded.opened, profile, *at, &strategies, seed)?;
                states.extend(state.map(|state| (state, false)));
            }
            let lost = moments.first().map(|at| StateName(format!("{profile}/p{at}:none")));
            states.extend(lost.map(|state| (state, false)));
            for (state, torn_before) in states {
                let tried = tries.add(&state)?;
                wants.push(Want { disk, state, torn_before, tried });
            }
        }
        Ok(wants)
    }

    /// What came of a state, for one disk; with a bundle, where it is the first that is not right.
    fn take(
        &mut self,
        recorded: &Recorded,
        means: &Guests<'_>,
        want: Want,
        recovered: Recovered,
        findings: &[Finding],
    ) {
        let cell = &self.report.cell;
        let is_lost = matches!(recovered, Recovered::Lost(_)) && !cell.may_lose;
        let disk = &mut self.report.disks[want.disk];
        let state = want.state.0.clone();
        // None, too, where a torn page says the same and is all that there is to say.
        let told = disk.recoveries.iter().any(|r| r.bundle.is_some())
            || disk.bundle.is_some() && !cell.is_protected() && !is_lost;
        let mut bundle = None;
        if (recovered.is_torn() || is_lost) && !told {
            let profile = disk.profile.clone();
            let path = recorded.folder.join(format!("recovery-{profile}.{EXTENSION}"));
            let named = (want.state, profile.as_str());
            match keep(&recorded.opened, means, &path, named, findings, &[]) {
                Ok(()) => bundle = Some(path.display().to_string()),
                Err(error) => {
                    let why = format!("no bundle can be made of {state}: {error}");
                    self.report.not_packed.push(why);
                }
            }
        }
        let torn_before = want.torn_before;
        disk.recoveries.push(Recovery { state, torn_before, recovered, bundle });
    }

    /// What the program says of a state in which it lost nothing itself, of which it zeroes half a page first.
    fn damaged(&self, recorded: &Recorded, at: Seq) -> Result<Recovered, ExploreError> {
        let Recorded { opened, folder, profiles, .. } = recorded;
        self.note("the control: a page of which half is zeroed");
        let mut subject = opened.subject.clone().ok_or_else(no_subject)?;
        if let Some(checker) = &mut subject.checker {
            checker.env.push(("TORNBLK_DAMAGE".to_owned(), "1".to_owned()));
        }
        let dir = folder.join("control");
        std::fs::create_dir(&dir).map_err(RunError::io("make the folder", &dir))?;
        let mut settings =
            GuestSettings::new(self.place.lab, dir, Arc::clone(self.place.interrupted));
        settings.fsck_every = 0;
        let means = Guests::of(opened, &subject, settings)?;
        let name = StateName(format!("{}/p{at}:all", profiles[0]));
        let state = ByName { name: &name, recovery: None };
        let mut came = not_tried();
        // Emulated guests are slow: what is not as wanted is tried again.
        for _ in 0..2 {
            let verdicts = judge(opened, &means, None, &profiles[0], &[state])?;
            came = verdicts.into_iter().next().map_or(came, |verdict| told_by(verdict).0);
            if came.is_torn() {
                break;
            }
        }
        Ok(came)
    }

    /// Each state, one guest a processor.
    fn each(
        &self,
        recorded: &Recorded,
        means: &Guests<'_>,
        tries: &Tries<'_>,
    ) -> Result<Vec<Came>, ExploreError> {
        let opened = &recorded.opened;
        let of = tries.states.len();
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(of);
        let work = |thread: usize| -> Result<Vec<(usize, Came)>, ExploreError> {
            let judging = means.on(&recorded.profiles[0])?;
            let mut verifier = judging.verifier(thread)?;
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = tries.states.get(i) else { return Ok(done) };
                self.note(&format!("recovery {} of {of}", i + 1));
                let state = ByName { name, recovery: None };
                let look = |verifier: &mut dyn Verifier| {
                    named(&opened.history, tries.ids, means.promises(), &state, verifier)
                };
                let mut came = told_by(look(&mut *verifier)?);
                // That the control fails is what it is for.
                let is_as_wanted = match came.0 {
                    Recovered::Sound => true,
                    Recovered::Lost(_) => tries.lying == Some(i),
                    _ => false,
                };
                if !is_as_wanted {
                    // What fails counts once it failed in a new guest, too.
                    drop(verifier);
                    verifier = judging.verifier(thread)?;
                    let again = told_by(look(&mut *verifier)?);
                    let both_torn = came.0.is_torn() && again.0.is_torn();
                    let same = std::mem::discriminant(&again.0) == std::mem::discriminant(&came.0);
                    if !both_torn && !same {
                        came.0 = Recovered::Unsure(format!("once {}; then {}", came.0, again.0));
                    }
                }
                done.push((i, came));
            }
        };
        let mut all = vec![(not_tried(), Vec::new()); of];
        let done: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
            workers.into_iter().map(|worker| worker.join()).collect()
        });
        for one in done {
            let one = one.map_err(|_| {
                ExploreError::Bad("a thread that waits for guests ended unexpectedly".to_owned())
            })?;
            for (i, came) in one? {
                all[i] = came;
            }
        }
        Ok(all)
    }
}

/// The states from which a server is started: each content at a crash point once, whichever disks have it.
struct Tries<'a> {
    opened: &'a Opened,
    ids: &'a RecordingIds,
    states: Vec<StateName>,
    /// (crash point, content): where in `states`.
    known: HashMap<(Seq, u128), usize>,
    /// The one of a disk that ignored every flush.
    lying: Option<usize>,
}

impl<'a> Tries<'a> {
    fn new(opened: &'a Opened, ids: &'a RecordingIds) -> Tries<'a> {
        Tries { opened, ids, states: Vec::new(), known: HashMap::new(), lying: None }
    }

    /// Where it is among them.
    fn add(&mut self, state: &StateName) -> Result<usize, ExploreError> {
        let parsed: Parsed = state.0.parse()?;
        let cut = self.opened.history.cut(parsed.after, &parsed.profile)?;
        let (_, reference) = Named::reference(&cut)?;
        let content = Named::new(&cut, state, &reference, self.ids)?.fingerprint();
        let states = &mut self.states;
        Ok(*self.known.entry((parsed.after, content)).or_insert_with(|| {
            states.push(state.clone());
            states.len() - 1
        }))
    }

    /// What is left at this moment of a disk that ignored every flush: nothing, but what was written with FUA
    /// (no driver of virtio-blk does). Without a flush there is no such state.
    fn add_lying(&mut self, profile: &Profile, at: Seq, seed: u64) -> Result<(), ExploreError> {
        let cut = self.opened.history.cut(at, profile)?;
        let none = StateName(format!("{profile}/p{at}:none"));
        let lie: Fault = "ignore-flush".parse()?;
        let (state, words) = cut.break_with(&none, &[lie], seed)?;
        if !words.is_empty() {
            self.lying = Some(self.add(&state)?);
        }
        Ok(())
    }
}

fn no_subject() -> ExploreError {
    ExploreError::Bad("the recording does not say what it is of".to_owned())
}

fn not_tried() -> Recovered {
    Recovered::Unsure("not tried".to_owned())
}

fn told_by(verdict: Verdict) -> Came {
    match verdict {
        Verdict::Passed => (Recovered::Sound, Vec::new()),
        Verdict::Failed(findings) => {
            // Of a database on a file system that is damaged itself nothing can be said.
            let damage = findings.iter().find(|f| f.clause == Clause::Unrecoverable);
            if let Some(damage) = damage {
                return (Recovered::FileSystem(damage.text.clone()), findings);
            }
            let texts: Vec<String> = findings.iter().map(|f| f.text.clone()).collect();
            (Recovered::of_failure(&texts.join("; ")), findings)
        }
        Verdict::Unsure(why) => (Recovered::Unsure(why), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_on_a_damaged_file_system_says_nothing() {
        let corrupt = Finding::new(Clause::Inconsistent, "status 10: corrupt: 3 rows".into());
        let damaged = Finding::new(Clause::Unrecoverable, "the file system is damaged".into());
        let of = |findings: &[&Finding]| {
            told_by(Verdict::Failed(findings.iter().map(|f| (*f).clone()).collect())).0
        };
        assert_eq!(of(&[&corrupt]), Recovered::Corrupt("3 rows".into()));
        assert!(matches!(of(&[&corrupt, &damaged]), Recovered::FileSystem(_)));
        assert_eq!(told_by(Verdict::Passed).0, Recovered::Sound);
    }
}

//! `tornblk run`

use super::ci::{CiOptions, NotExplored};
use super::databases;
use super::develop::{self, DevelopOptions};
use super::examples;
use super::exec::{Around, ExecOptions};
use super::programs::Programs;
use super::select::{check_profile, fitting, select};
use super::{check_writable, say_where, session, signals, told, write_pages};
use crate::device::find_tornblkd;
use crate::out::{Stdout, note, say};
use crate::report::terminal::{Live, Look};
use crate::report::{html, json, junit, terminal};
use crate::run::{
    Debugger, GuestArgs, KernelRun, Lab as _, LaneReport, RealLab, RunFolder, RunReport, Settings,
    Verdict, run_lanes, word,
};
use crate::suite::{self, Known, Lane, Suite, parse_time};
use crate::vm::{Accel, FrontEnd, Qemu};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tornblk_image::{KernelSource, Request};
use tornblk_model::crash::{Fault, Profile, Strategy};

/// So that two people see the same.
const DEFAULT_SEED: u64 = 1;

/// Something of it could not be run.
const CANNOT_RUN: u8 = 2;

#[derive(Debug, Args)]
#[command(after_help = format!("{}{}", examples::RUN, develop::EXAMPLES))]
pub(super) struct RunArgs {
    /// Suites by name, or paths of .toml files [default: direct-atomic]
    #[arg(value_name = "SUITE")]
    pub(super) suites: Vec<String>,

    /// Only this lane; or all that begin so (`--lane xfs-cow`); can be given several times
    #[arg(long, value_name = "NAME")]
    pub(super) lane: Vec<String>,

    #[arg(long, value_name = "KERNEL", help = format!(
        "The guest's kernel: a series (7.2), a version (7.2.12), a bzImage or vmlinux, or a folder \
         in which a kernel was built; or several of them (6.12,7.2,7.3), for a table of all lanes on \
         each [default: {}]", tornblk_image::DEFAULT_KERNEL
    ), value_delimiter = ',')]
    kernel: Vec<String>,

    /// Modules of a kernel given as a file: its lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,

    /// QEMU [default: $TORNBLK_QEMU, else qemu-system-x86_64]
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,

    /// How the guest sees the disk, instead of the lanes' own way: blk, scsi, or blk-full (virtio-blk
    /// with all that it says of its limits; from QEMU 10.2 on)
    #[arg(long, value_name = "NAME")]
    front_end: Option<FrontEndName>,

    /// Which disk this is, instead of the lanes' own: lb512, req16k, req16k+b16k, piece16k, ...; with
    /// --exec it may be a list
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Break a promise on purpose, to see that it is noticed: tear-atomic, ignore-flush,
    /// lose-write, ...; can be given several times
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,

    /// Of workloads, cuts and states: the same seed tries the same
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    pub(super) seed: u64,

    /// Try for hours instead of minutes
    #[arg(long)]
    pub(super) soak: bool,

    /// Cuts of each lane, instead of the suite's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    crashes: Option<u32>,

    /// Time for everything (90s, 3m, 2h), instead of the suite's own for each kernel
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,

    /// Only this cut of each lane; 0 is the negative control
    #[arg(long, value_name = "N")]
    cut: Option<u32>,

    /// Explore the crash states of each lane's last recording, too: prefix, one-lost, one-kept, tear,
    /// exhaustive[=N], random[=N]; takes half of the lane's time
    #[arg(long, value_name = "STRATEGIES", value_delimiter = ',')]
    explore: Vec<Strategy>,

    /// The run's folder, new or empty; it is kept [default: a new one below ./tornblk-out, removed
    /// where all was as expected and nothing is left to try]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Keep everything, recordings of cuts that passed too
    #[arg(long)]
    keep: bool,

    /// Findings that this list explains are shown and are no failure: a file, or `builtin` (also
    /// without a value, behind the suites) for the list that comes with the program
    /// (harness/suites/known.toml). What is listed and not seen is told
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "builtin")]
    known: Option<String>,

    /// What is in it.
    #[arg(skip)]
    known_list: Known,

    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(super) junit: Option<PathBuf>,

    /// Write the report as one HTML file, with a picture of each finding
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,

    #[command(flatten)]
    pub(super) ci: CiOptions,

    #[command(flatten)]
    pub(super) exec: ExecOptions,

    #[command(flatten)]
    pub(super) develop: DevelopOptions,
}

/// [`FrontEnd`], as the command line takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FrontEndName {
    Blk,
    BlkFull,
    Scsi,
}

impl From<FrontEndName> for FrontEnd {
    fn from(name: FrontEndName) -> FrontEnd {
        match name {
            FrontEndName::Blk => FrontEnd::Blk,
            FrontEndName::BlkFull => FrontEnd::BlkFull,
            FrontEndName::Scsi => FrontEnd::Scsi,
        }
    }
}

impl RunArgs {
    pub(super) fn run(mut self) -> anyhow::Result<u8> {
        // `7.2, 7.3` is one word for a shell that was given quotes.
        self.kernel.iter_mut().for_each(|kernel| *kernel = kernel.trim().to_owned());
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = self.kernel.iter().find(|kernel| !seen.insert(kernel.as_str())) {
            bail!("--kernel names {twice} twice");
        }
        let interrupted = signals::watch()?;
        let reports = [&self.json, &self.junit, &self.html, &self.ci.summary];
        check_writable(reports.into_iter().flatten())?;
        if self.exec.exec.is_some() {
            let around = self.around()?;
            let explored = self.exec.run(&around, &interrupted);
            let explored = explored.map_err(|error| self.not_explored(error))?;
            let (json, junit) = (self.json.as_deref(), self.junit.as_deref());
            return explored.tell(json, junit, self.html.as_deref(), &self.ci);
        }
        if let Some(option) = self.exec.in_vain().filter(|_| !self.suites.is_empty()) {
            let suites = self.suites.join(" ");
            bail!("{option} is for a program of your own (--exec), and says nothing to {suites}");
        }
        if self.suites.iter().any(|suite| suite == databases::NAME) && self.suites.len() > 1 {
            bail!("databases are run alone: name no other suite beside them");
        }
        if self.suites == [databases::NAME] {
            return databases::run_all(&self, &interrupted);
        }
        if let Some(programs) = Programs::load(&self)? {
            let (start, mut folder) = (Instant::now(), None);
            let mut report = self.report(vec![programs.name.clone()]);
            let ran = programs.run(&self, &mut report, &mut folder, &interrupted);
            return self.end(ran, folder, report, start);
        }
        if self.exec.states.is_some() {
            bail!("--states is for --exec, and for suites of programs of your own");
        }
        if let Some(known) = &self.known {
            self.known_list = Known::load(known)?;
        }
        let suites = self.load()?;
        let mut lanes = select(&suites, &self.lane)?;
        if self.modules.is_some() && self.kernel.len() != 1 {
            bail!("--modules belongs to one kernel that is given as a file: add --kernel FILE");
        }
        if let Some(front_end) = self.front_end {
            lanes.iter_mut().for_each(|(_, lane)| lane.front_end = front_end.into());
        }
        if let Some(profile) = &self.profile {
            check_profile(profile, &lanes)?;
        }
        let profile = self.profile.as_deref();
        let whole_suites = self.lane.is_empty();
        lanes = fitting(lanes, profile, whole_suites, &mut |text| note!("{text}"))?;
        self.develop.check(lanes.len(), self.cut.is_some(), &self.kernel)?;
        // Before hours of work: a kernel that is none.
        for kernel in &self.kernel {
            kernel.parse::<KernelSource>()?;
        }
        let settings = self.settings(&suites, self.kernel.first().cloned());
        if let Some(cut) = settings.only.filter(|cut| *cut > settings.cuts) {
            bail!(
                "--cut {cut}: there are the cuts 0 (the control) to {}; a cut is placed by how many \
                 there are (--crashes)",
                settings.cuts
            );
        }
        let look = Look::detect();
        let debugger = self.develop.debugger(&settings.guest);
        let live = if debugger.is_some() { Live::lines(look) } else { Live::new(look) };
        if self.develop.shell {
            let mut lab = lab(&settings.guest, &mut |text| live.note(text), &interrupted)?;
            lab.debugger = debugger;
            let folder = RunFolder::create(self.out.as_deref(), self.seed)?;
            return session::run(&mut lab, &lanes[0], &settings, folder, &interrupted, &live);
        }
        let mut matrix = Matrix { lanes: &lanes, debugger, interrupted, live, folder: None };
        let start = Instant::now();
        let mut report = self.report(suites.iter().map(|s| s.name.clone()).collect());
        let ran = self.on_each(&mut matrix, &suites, &mut report);
        matrix.live.finish();
        self.end(ran, matrix.folder, report, start)
    }

    /// Nothing is in it yet.
    fn report(&self, suites: Vec<String>) -> RunReport {
        RunReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            suites,
            options: self.options(),
            chosen: self.chosen(),
            seed: self.seed,
            ..RunReport::default()
        }
    }

    /// Tells what came of it: → the exit code.
    fn end(
        &self,
        ran: anyhow::Result<()>,
        folder: Option<RunFolder>,
        mut report: RunReport,
        start: Instant,
    ) -> anyhow::Result<u8> {
        let look = Look::detect();
        report.seconds = start.elapsed().as_secs_f64();
        report.exit = RunReport::exit_code(&report.lanes, &report.kernels);
        let ended = match ran {
            Ok(()) => None,
            // What was found before that is not lost.
            Err(error) if !report.lanes.is_empty() => Some(error),
            Err(error) => {
                let stopped = super::interrupted(&error);
                report.exit = if stopped { signals::INTERRUPTED } else { CANNOT_RUN };
                report.kernels = vec![KernelRun {
                    given: self.kernel.join(","),
                    release: String::new(),
                    error: Some(super::sentence(&error)),
                }];
                // Who reads these has not seen the terminal.
                self.write_reports(&report)?;
                write_pages(self.html.as_deref().as_slice(), || html::of_run(&report))?;
                let logs = folder.and_then(|folder| self.leave(folder, &error));
                return Err(match logs {
                    Some(path) => {
                        error.context(format!("nothing could be run (logs in {})", path.display()))
                    }
                    None => error,
                });
            }
        };
        if let Some(error) = &ended
            && report.exit != 1
        {
            report.exit = if super::interrupted(error) { signals::INTERRUPTED } else { CANNOT_RUN };
        }
        let interrupted = ended.as_ref().is_some_and(super::interrupted);
        let keep = self.keep
            || self.out.is_some()
            || if interrupted { report.exit == 1 } else { worth_keeping(&report) };
        let folder = match folder {
            Some(folder) if !keep => {
                folder.remove_all();
                // What a control left is gone with it.
                for explored in report.lanes.iter_mut().filter_map(|l| l.explored.as_mut()) {
                    (explored.folder, explored.resume) = (None, None);
                }
                None
            }
            kept => kept,
        };
        report.folder = folder.map(|folder| folder.path().to_owned());
        let kept = match &report.folder {
            Some(folder) => write(&report, &folder.join("report.json"), json::write),
            None => Ok(()),
        };
        let own = report.folder.as_ref().map(|folder| folder.join(html::NAME));
        let pages: Vec<&Path> = own.as_deref().into_iter().chain(self.html.as_deref()).collect();
        let wrote = write_pages(&pages, || html::of_run(&report));
        let said = self.tell(&report, look);
        say_where(&pages, &wrote);
        let done = told(kept.and(said).and(wrote), self.develop.exit(&report));
        match ended {
            Some(error) if report.exit != 1 => Err(error),
            Some(error) => {
                note!("tornblk: {}", super::sentence(&error));
                done
            }
            None => done,
        }
    }

    /// As a program of a suite: what was given to the run goes before its own.
    pub(super) fn under(&mut self, given: &RunArgs) {
        self.kernel.clone_from(&given.kernel);
        self.modules.clone_from(&given.modules);
        self.qemu.clone_from(&given.qemu);
        self.develop.append.clone_from(&given.develop.append);
        self.seed = given.seed;
        self.front_end = given.front_end.or(self.front_end);
        self.exec.states = given.exec.states.or(self.exec.states);
        if given.profile.is_some() {
            self.profile.clone_from(&given.profile);
        }
        if !given.explore.is_empty() {
            self.explore.clone_from(&given.explore);
        }
    }

    /// What a suite of programs has no use for.
    pub(super) fn refuse_for_programs(&self, path: &str) -> anyhow::Result<()> {
        let soak = self.soak.then_some("--soak");
        if let Some(option) = soak.or(self.of_lanes()) {
            bail!("{option} is for suites with lanes, and {path} has programs of your own");
        }
        Ok(())
    }

    /// What says nothing to databases.
    pub(super) fn refuse_for_databases(&self) -> anyhow::Result<()> {
        let states = self.exec.states.map(|_| "--states");
        let explore = (!self.explore.is_empty()).then_some("--explore");
        if let Some(option) = self.of_lanes().or(states).or(explore) {
            bail!("{option} is not for databases: each cell has its own cuts and states");
        }
        if self.kernel.len() > 1 {
            bail!("databases are for one --kernel at a time");
        }
        Ok(())
    }

    /// An option that only lanes have, if one was given.
    fn of_lanes(&self) -> Option<&'static str> {
        let given = [
            ("--crashes", self.crashes.is_some()),
            ("--cut", self.cut.is_some()),
            ("--known", self.known.is_some()),
            ("--fault", !self.fault.is_empty()),
            ("--shell", self.develop.shell),
            ("--gdb", self.develop.gdb.is_some()),
            ("--bisect", self.develop.bisect),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }

    /// A program that could not be explored: the reports say so, too.
    fn not_explored(&self, error: anyhow::Error) -> anyhow::Error {
        NotExplored {
            recording: Path::new(""),
            suite: "exec",
            lane: self.exec.exec.as_deref().unwrap_or_default(),
            seed: self.seed,
            json: self.json.as_deref(),
            junit: self.junit.as_deref(),
            ci: &self.ci,
        }
        .tell(error)
    }

    /// The lanes that were chosen, for a command.
    pub(super) fn chosen(&self) -> String {
        self.lane.iter().map(|lane| format!(" --lane {}", word(lane))).collect()
    }

    /// What --exec goes by.
    pub(super) fn around(&self) -> anyhow::Result<Around<'_>> {
        if self.kernel.len() > 1 {
            bail!("--exec is for one --kernel");
        }
        if self.modules.is_some() && self.kernel.is_empty() {
            bail!("--modules belongs to one kernel that is given as a file: add --kernel FILE");
        }
        let profiles = self.profile.iter().flat_map(|list| list.split(','));
        let profiles =
            profiles.map(|name| name.trim().parse()).collect::<Result<Vec<Profile>, _>>();
        Ok(Around {
            guest: GuestArgs {
                kernel: self.kernel.first().cloned(),
                modules: self.modules.clone(),
                qemu: self.qemu.clone(),
                append: self.develop.append.clone(),
            },
            front_end: self.front_end.map(FrontEnd::from),
            profiles: profiles?,
            strategies: self.explore.clone(),
            seed: self.seed,
            time: self.time,
            out: self.out.as_deref(),
            keep: self.keep,
            html: self.html.as_deref(),
        })
    }

    /// Runs the lanes on each kernel. One that cannot be had or booted is told and passed over, where
    /// there are others.
    fn on_each(
        &self,
        matrix: &mut Matrix<'_>,
        suites: &[Suite],
        report: &mut RunReport,
    ) -> anyhow::Result<()> {
        let kernels: Vec<Option<String>> = match self.kernel.as_slice() {
            [] => vec![None],
            given => given.iter().cloned().map(Some).collect(),
        };
        let many = kernels.len() > 1;
        for kernel in kernels {
            let settings = self.settings(suites, kernel.clone());
            let given = kernel.unwrap_or_else(|| tornblk_image::DEFAULT_KERNEL.to_owned());
            match self.on_kernel(matrix, &settings, many.then_some(given.as_str()), report) {
                Ok(()) => {}
                Err(error) if !many || super::interrupted(&error) => return Err(error),
                Err(error) => {
                    let error = super::sentence(&error);
                    note!("kernel {given}: {error}");
                    match report.kernels.iter_mut().find(|kernel| kernel.given == given) {
                        Some(kernel) => kernel.error = Some(error),
                        None => report.kernels.push(KernelRun {
                            given,
                            release: String::new(),
                            error: Some(error),
                        }),
                    }
                }
            }
        }
        Ok(())
    }

    /// `given`: the kernel's name, where it is one of several.
    fn on_kernel(
        &self,
        matrix: &mut Matrix<'_>,
        settings: &Settings,
        given: Option<&str>,
        report: &mut RunReport,
    ) -> anyhow::Result<()> {
        let Matrix { lanes, debugger, interrupted, live, folder } = matrix;
        let mut lab = lab(&settings.guest, &mut |text| live.note(text), interrupted)?;
        let asked = self.front_end.map(FrontEnd::from);
        if let Some(why) = asked.and_then(|front_end| lab.cannot_attach(front_end)) {
            bail!("--front-end: {why}");
        }
        lab.debugger.clone_from(debugger);
        if lab.debugger.is_none() {
            lab.prepare(&mut |text| live.note(text))?;
        }
        let all = match folder {
            Some(folder) => folder,
            None => folder.insert(RunFolder::create(self.out.as_deref(), self.seed)?),
        };
        let release = report.label(&lab.image.release, given);
        let own = given.map(|_| all.below(&release)).transpose()?;
        report.about_machine(&lab);
        let cuts = if settings.only.is_some() { 1 } else { settings.cuts.into() };
        say!(
            "{}, QEMU {}, kernel {release}, seed {}: {}, {} each",
            report.accelerator,
            report.qemu,
            report.seed,
            counted(lanes.len() as u64, "lane"),
            counted(cuts, "cut"),
        );
        let mut done = Vec::new();
        let own = own.as_ref().unwrap_or(all);
        let ran = run_lanes(&mut lab, lanes, settings, own, interrupted, live, &mut done);
        // A guest that was started ahead has its console in the run's folder.
        drop(lab);
        done.iter_mut().for_each(|lane| lane.kernel.clone_from(&release));
        let some = !done.is_empty();
        report.lanes.extend(done);
        if ran.is_ok() || some {
            report.kernel += if report.kernel.is_empty() { "" } else { ", " };
            report.kernel += &release;
            let given = given.unwrap_or_default().to_owned();
            report.kernels.push(KernelRun { given, release, error: None });
        }
        ran?;
        Ok(())
    }

    /// What was given, but for what a command that is shown says by itself.
    pub(super) fn options(&self) -> String {
        let mut options = String::new();
        let paths = [("--modules", &self.modules), ("--qemu", &self.qemu)];
        let paths =
            paths.map(|(name, path)| (name, path.as_ref().map(|p| p.display().to_string())));
        let texts = [
            ("--kernel", (!self.kernel.is_empty()).then(|| self.kernel.join(","))),
            ("--front-end", self.front_end.map(|name| FrontEnd::from(name).to_string())),
            ("--profile", self.profile.clone()),
            ("--known", self.known.clone()),
            ("--append", self.develop.append.clone()),
        ];
        let faults = self.fault.iter().map(|f| ("--fault", Some(f.to_string())));
        let suites = self.suites.iter().map(|suite| ("", Some(suite.clone())));
        for (name, value) in suites.chain(texts).chain(paths).chain(faults) {
            let Some(value) = value else { continue };
            options += " ";
            if !name.is_empty() {
                options += name;
                options += " ";
            }
            options += &word(&value);
        }
        options
    }

    fn load(&self) -> anyhow::Result<Vec<Suite>> {
        if self.suites.is_empty() {
            return Ok(vec![suite::load("direct-atomic")?]);
        }
        self.suites.iter().map(|name| Ok(suite::load(name)?)).collect()
    }

    /// On one of the kernels.
    fn settings(&self, suites: &[Suite], kernel: Option<String>) -> Settings {
        let budget = |s: &Suite| if self.soak { s.soak } else { s.quick };
        let cuts = suites.iter().map(|s| budget(s).cuts).max().unwrap_or(1);
        let time = suites.iter().map(|s| budget(s).time).sum();
        Settings {
            known: self.known_list.clone(),
            seed: self.seed,
            cuts: self.crashes.unwrap_or(cuts),
            // Who asks for a number of cuts wants them all.
            time: match self.time {
                Some(all) => Some(all / self.kernel.len().max(1) as u32),
                None => self.crashes.is_none().then_some(time),
            },
            front_end: self.front_end.map(FrontEnd::from),
            only: self.cut,
            faults: self.fault.clone(),
            profile: self.profile.clone(),
            soak: self.soak,
            keep: self.keep,
            explore: self.explore.clone(),
            given: self
                .suites
                .iter()
                .zip(suites)
                .map(|(given, suite)| (suite.name.clone(), given.clone()))
                .collect(),
            guest: GuestArgs {
                kernel,
                modules: self.modules.clone(),
                qemu: self.qemu.clone(),
                append: self.develop.append.clone(),
            },
        }
    }

    /// After an error: the folder goes, unless there is something in it to look at.
    fn leave(&self, folder: RunFolder, error: &anyhow::Error) -> Option<PathBuf> {
        if self.keep || self.out.is_some() {
            return Some(folder.path().to_owned());
        }
        if super::interrupted(error) {
            folder.remove_all();
            return None;
        }
        Some(folder.path().to_owned())
    }

    fn tell(&self, report: &RunReport, look: Look) -> anyhow::Result<()> {
        let written = self.write_reports(report);
        terminal::write(report, look, &mut Stdout).context("cannot write to the terminal")?;
        written
    }

    /// Those that were asked for beside the terminal's.
    fn write_reports(&self, report: &RunReport) -> anyhow::Result<()> {
        let json = self.json.as_deref().map(|path| write(report, path, json::write));
        let junit = self.junit.as_deref().map(|path| write(report, path, junit::write));
        json.unwrap_or(Ok(())).and(junit.unwrap_or(Ok(()))).and(self.ci.run(report))
    }
}

/// What is the same on every kernel, and what outlives each.
struct Matrix<'a> {
    lanes: &'a [(String, Lane)],
    debugger: Option<Debugger>,
    interrupted: Arc<AtomicBool>,
    live: Live,
    /// Made when there is something to put in.
    folder: Option<RunFolder>,
}

fn write(
    report: &RunReport,
    path: &Path,
    how: fn(&RunReport, &Path) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    how(report, path).with_context(|| format!("cannot write {}", path.display()))
}

/// `1 lane`, `2 lanes`.
fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Everything that is not a plain success leaves something to look at.
fn worth_keeping(report: &RunReport) -> bool {
    let bad = |l: &LaneReport| !matches!(l.verdict, Verdict::Passed | Verdict::Unsupported);
    report.lanes.iter().any(bad) || report.kernels.iter().any(|kernel| kernel.error.is_some())
}

/// Finds all programs and builds the image, before anything is made.
pub(super) fn lab(
    guest: &GuestArgs,
    note: &mut dyn FnMut(&str),
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<RealLab> {
    let tornblkd = find_tornblkd()?;
    let qemu = match &guest.qemu {
        Some(path) => Qemu::at(path)?,
        None => Qemu::find()?,
    };
    let kernel = guest.kernel.as_deref().unwrap_or(tornblk_image::DEFAULT_KERNEL);
    let kernel: KernelSource = kernel.parse()?;
    if let KernelSource::BuildTree(tree) = &kernel {
        // Before a boot that fails for it.
        super::image::tell_missing(tree);
    }
    let (modules, until) = (guest.modules.clone(), Some(Arc::clone(stop)));
    let request = Request { modules, stop: until, ..Request::new(kernel) };
    let image =
        tornblk_image::build(&request, note).context("the guest's image cannot be built")?;
    note("trying the accelerator");
    let accel = Accel::probe(&qemu, &image, Some(&image.dir));
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(2)) as u16;
    let mut lab = RealLab::new(tornblkd, image, qemu, accel, cpus).until(Arc::clone(stop));
    lab.append = guest.append.clone().filter(|append| !append.is_empty());
    Ok(lab)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(line: &str) -> Result<RunArgs, clap::Error> {
        let words = ["tornblk", "run"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Run(args) => *args,
            _ => panic!("not a run"),
        })
    }

    #[test]
    fn nothing_given_is_the_quick_run_of_the_first_suite() {
        let args = parse("").unwrap();
        let suites = args.load().unwrap();
        assert_eq!(suites[0].name, "direct-atomic");
        let settings = args.settings(&suites, None);
        assert_eq!((settings.seed, settings.cuts), (DEFAULT_SEED, suites[0].quick.cuts));
        assert_eq!(settings.time, Some(suites[0].quick.time));
        assert!(settings.faults.is_empty() && settings.only.is_none());
    }

    #[test]
    fn several_kernels_share_the_time_that_was_given_and_each_has_the_suites_own() {
        let suites = [suite::load("direct-atomic").unwrap()];
        let args = parse("--kernel 6.12,7.2,7.3 --time 3m").unwrap();
        assert_eq!(args.kernel, ["6.12", "7.2", "7.3"]);
        let settings = args.settings(&suites, Some("7.2".into()));
        assert_eq!(settings.time, Some(Duration::from_secs(60)));
        assert_eq!(settings.guest.kernel.as_deref(), Some("7.2"));
        assert_eq!(args.options(), " --kernel '6.12,7.2,7.3'");
        let args = parse("--kernel 6.12 --kernel 7.3").unwrap();
        assert_eq!(args.settings(&suites, None).time, Some(suites[0].quick.time));
    }

    #[test]
    fn options_change_the_budget() {
        let suites = [suite::load("direct-atomic").unwrap()];
        let soak = parse("--soak").unwrap().settings(&suites, None);
        assert_eq!((soak.cuts, soak.time), (suites[0].soak.cuts, Some(suites[0].soak.time)));
        let some = parse("--crashes 9 --cut 0 --seed 3").unwrap().settings(&suites, None);
        assert_eq!((some.cuts, some.only, some.seed), (9, Some(0), 3));
        assert_eq!(some.time, None);
        let timed = parse("--crashes 9 --time 2m").unwrap().settings(&suites, None);
        assert_eq!(timed.time, Some(Duration::from_secs(120)));
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for line in ["--crashes 0", "--time soon", "--fault tear", "--format xml", "--bogus"] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn folders_are_kept_unless_all_is_well() {
        let mut lanes = crate::report::testing::report().lanes;
        assert!(worth_keeping(&RunReport { lanes: lanes.clone(), ..RunReport::default() }));
        lanes.retain(|l| matches!(l.verdict, Verdict::Passed | Verdict::Unsupported));
        assert!(!worth_keeping(&RunReport { lanes: lanes.clone(), ..RunReport::default() }));
    }
}

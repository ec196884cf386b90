//! `tornblk explore`

use super::ci::{CiOptions, NotExplored};
use super::pages::PageOptions;
use super::{absolute, check_writable, run, say_where, signals, told, write_pages};
use crate::explore::session::{Choices, Session};
use crate::explore::{
    Drive, Ended, ExploreError, ExploreReport, GuestNeeds, Means, Opened, Settings, Shard, Units,
    list, report,
};
use crate::out::Stdout;
use crate::report::explore::{self as shown, Live};
use crate::report::html;
use crate::report::picture::{self, NoPicture, Picture};
use crate::report::terminal::Look;
use crate::run::{GuestArgs, Lab as _, RealLab, RunFolder, disks, word};
use crate::suite::parse_time;
use crate::vm::debug::check_append;
use anyhow::{Context, bail};
use clap::Args;
use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tornblk_model::crash::{Fault, Parsed, Profile, StateName, Strategy};
use tornblk_model::recording::RecordingError;

/// So that two people see the same.
const DEFAULT_SEED: u64 = 1;
const DEFAULT_FSCK: u64 = 50;
const DEFAULT_STRATEGIES: &str = "prefix,one-lost,one-kept,tear,exhaustive,random=100";
const DEFAULT_FAILURES: u64 = 100;

#[derive(Debug, Args)]
#[command(after_help = super::examples::EXPLORE)]
pub(super) struct ExploreArgs {
    /// A recording, or the folder of a cut or lane that a run kept
    #[arg(value_name = "RECORDING")]
    pub(super) recording: PathBuf,

    #[arg(long, value_name = "LIST", value_delimiter = ',', help = format!(
        "Which states: prefix, one-lost, one-kept, tear, exhaustive[=N], random[=N] [default: \
         {DEFAULT_STRATEGIES}]"
    ))]
    pub(super) strategy: Vec<Strategy>,

    /// Which disks: lb512, req16k, req16k+b16k, piece16k, ... [default: that of the recording]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) profile: Vec<Profile>,

    /// Judge at most this many different states, spread over crash points, profiles and strategies
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) states: Option<u64>,

    /// Take at most this long (90s, 3m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(super) time: Option<Duration>,

    /// Of random states and faults [default: 1]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    /// Print the names of the states, each once, and judge none. (The report counts a state once
    /// for each strategy that chose it, so its number is higher)
    #[arg(long, conflicts_with_all = ["resume", "json", "junit", "html", "summary", "out"])]
    list: bool,

    /// Only part K of N: the same N everywhere, K from 1; put together by `tornblk report merge`
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,

    /// Go on with what --out holds
    #[arg(long, requires = "out")]
    resume: bool,

    /// In a guest: judge so many states of the recovery on each state, too [default: 0]
    #[arg(long, value_name = "N")]
    nested: Option<u32>,

    /// Cut the power after each event, not only where something was promised
    #[arg(long)]
    every_event: bool,

    /// Break a promise on purpose in each state, to see that it is noticed: tear-atomic,
    /// ignore-flush, lose-write, ...; can be given several times
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,

    /// Where failures and what --resume needs are kept, new or empty [default: a new folder below
    /// ./tornblk-out, removed where there was no finding]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(super) junit: Option<PathBuf>,

    /// Write the report as one HTML file, with a picture of each failure
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,

    #[command(flatten)]
    pub(super) ci: CiOptions,

    /// States judged at once, each by a guest of its own where guests are needed [default: one a
    /// processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,

    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help = format!(
        "In a guest: fsck on one state in N, beside all that fail [default: {DEFAULT_FSCK}]"
    ))]
    fsck_every: Option<u64>,

    /// Shrink and explain at most so many different failures, and count the rest
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FAILURES)]
    pub(super) failures: u64,

    /// The base image, where it is no longer where it was
    #[arg(long, value_name = "IMG")]
    base: Option<PathBuf>,

    #[command(flatten)]
    pages: PageOptions,

    #[command(flatten)]
    pub(super) guest: GuestOptions,

    /// The folder goes with another one, where nothing was found and everything was tried.
    #[arg(skip)]
    pub(super) goes: bool,
}

/// Where a guest is needed.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct GuestOptions {
    /// The guest's kernel, where a guest is needed to mount the disk [default: that of the run]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,

    /// Modules of a kernel given as a file: its lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,

    /// QEMU [default: that of the run, else $TORNBLK_QEMU, else qemu-system-x86_64]
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,

    /// Parameters for the guest's kernel, beside those that every guest gets [default: those of the
    /// run]
    #[arg(long, value_name = "PARAMS", value_parser = append, allow_hyphen_values = true)]
    append: Option<String>,
}

/// The words of `--append`.
pub(super) fn append(given: &str) -> Result<String, String> {
    Ok(check_append(given)?.unwrap_or_default())
}

impl GuestOptions {
    /// Whether or not it comes to a guest.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match &self.modules {
            Some(_) if self.kernel.is_none() => {
                bail!("--modules belongs to a kernel that is given as a file: add --kernel FILE")
            }
            Some(modules) if !modules.is_dir() => {
                bail!("--modules: there is no folder {}", modules.display())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn given(&self) -> GuestArgs {
        GuestArgs {
            kernel: self.kernel.clone(),
            modules: self.modules.clone(),
            qemu: self.qemu.clone(),
            append: self.append.clone(),
        }
    }
}

/// What came of an exploration.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) report: ExploreReport,
    /// Where it is kept; `None`: it is not.
    pub(super) folder: Option<PathBuf>,
    /// Of the failures that a page tells of, where one is wanted.
    pictures: Vec<Result<Picture, NoPicture>>,
}

impl Explored {
    /// On the terminal and in files: → the exit code.
    pub(super) fn tell(
        self,
        json: Option<&Path>,
        junit: Option<&Path>,
        html: Option<&Path>,
        ci: &CiOptions,
    ) -> anyhow::Result<u8> {
        let wanted = Reports { own: self.folder.as_deref(), json, junit, html, ci };
        tell(&self.report, Look::detect(), &wanted, || self.pictures)
    }

    /// Everything that was asked for was gone through, and there was no finding.
    pub(super) fn is_clean(&self) -> bool {
        self.report.exit == 0 && self.report.ended == Some(Ended::Complete)
    }
}

impl ExploreArgs {
    /// All as if nothing but the recording were given.
    pub(super) fn of(recording: PathBuf) -> ExploreArgs {
        ExploreArgs {
            recording,
            strategy: Vec::new(),
            profile: Vec::new(),
            states: None,
            time: None,
            seed: None,
            list: false,
            shard: None,
            resume: false,
            nested: None,
            every_event: false,
            fault: Vec::new(),
            out: None,
            json: None,
            junit: None,
            ci: CiOptions::default(),
            html: None,
            jobs: None,
            fsck_every: None,
            failures: DEFAULT_FAILURES,
            base: None,
            pages: PageOptions::default(),
            guest: GuestOptions::default(),
            goes: false,
        }
    }

    pub(super) fn run(self) -> anyhow::Result<u8> {
        if let Some(fault) = self.fault.iter().find(|fault| fault.kind.is_live()) {
            bail!(
                "--fault {fault} breaks requests of a running guest, and no crash state: use it with \
                 `tornblk run`, or choose a fault that acts at the cut (tear-atomic, ignore-flush, \
                 lose-write, ...)"
            );
        }
        if self.list {
            return self.list();
        }
        let (json, junit, ci) = (self.json.clone(), self.junit.clone(), self.ci.clone());
        let (json, junit, html) = (json.as_deref(), junit.as_deref(), self.html.clone());
        let (recording, seed) = (self.recording.clone(), self.seed.unwrap_or(DEFAULT_SEED));
        let explored = self.explore(None).map_err(|error| {
            let recording = &recording;
            NotExplored { recording, suite: "", lane: "", seed, json, junit, ci: &ci }.tell(error)
        })?;
        explored.tell(json, junit, html.as_deref(), &ci)
    }

    /// `lab`: that of the run whose recording it is, where it is there still.
    pub(super) fn explore(self, lab: Option<&RealLab>) -> anyhow::Result<Explored> {
        self.guest.check()?;
        let reports = [&self.json, &self.junit, &self.html, &self.ci.summary];
        check_writable(reports.into_iter().flatten())?;
        let interrupted = signals::watch()?;
        let live = Live::new(Look::detect());
        live.note("reading the recording");
        let opened = Opened::open(&self.recording, self.base.as_deref())?;
        if opened.subject.is_some() || self.pages.are_asked_for() {
            opened.check_base()?;
        }
        // An old session is looked at before anything is made.
        let old = if self.resume { Some(self.old(&opened)?) } else { None };
        let choices = match &old {
            Some(old) => old.choices.clone(),
            None => self.choices(&opened)?,
        };
        let profiles = parse_all::<Profile>(&choices.profiles)?;
        let disk = &opened.reader.header().disk;
        let further = opened.subject.as_ref().map(|s| s.disks.as_slice()).unwrap_or_default();
        let main = disk.capacity - further.iter().map(|d| d.size).sum::<u64>().min(disk.capacity);
        for profile in &profiles {
            profile.check(disk)?;
            disks::check_grid(profile, main, further).map_err(anyhow::Error::msg)?;
        }
        let settings = self.settings(&choices)?;
        let logs = tempfile::Builder::new()
            .prefix("tornblk-explore-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let needs = GuestNeeds {
            dir: logs.path().to_owned(),
            fsck_every: choices.fsck_every,
            nested: u64::from(choices.nested),
            seed: choices.seed,
            stop: Arc::clone(&interrupted),
        };
        let given = self.guest.given();
        let means: Box<dyn Means + '_> = match &choices.pages {
            Some(_) if needs.nested > 0 => {
                bail!("--nested: pages are judged as they are, before any recovery; leave it out")
            }
            Some(pages) => Box::new(Units::pages(&opened, pages)?),
            None => means(&opened, &given, &needs, lab, &mut |text| live.note(text))?,
        };
        let (folder, mut session, judged) = match old {
            Some(old) => {
                let out = self.out.clone().unwrap_or_default();
                let judged = Session::load_judged(&out)?;
                (Folder::Given(absolute(&out)?), old, judged)
            }
            None => (self.folder(choices.seed)?, self.session(&opened, choices), Vec::new()),
        };
        session.judge = means.judge();
        let ran = drive(
            &Drive {
                opened: &opened,
                means: &*means,
                profiles: &profiles,
                settings: &settings,
                dir: folder.path(),
                stop: &interrupted,
            },
            &mut session,
            judged,
            live,
        );
        drop(means);
        if let Err(error) = ran {
            let resume = self.resume_command(folder.path());
            let error = anyhow::Error::from(error);
            if !super::interrupted(&error) && has_something(logs.path()) {
                // The error names them.
                let _ = logs.keep();
            }
            return Err(error.context(format!(
                "the exploration broke off (what it had is in {}; go on: {resume})",
                folder.path().display()
            )));
        }
        let mut report = report(&session, session.judge, Vec::new())?;
        let keep = self.out.is_some() && !self.goes
            || report.exit != 0
            || session.ended != Some(Ended::Complete);
        if keep {
            report.folder = Some(folder.path().to_owned());
            if session.ended != Some(Ended::Complete) {
                report.resume = Some(self.resume_command(folder.path()));
            }
        }
        let own = keep.then(|| folder.path().to_owned());
        if !keep {
            folder.remove();
        }
        let shown = own.is_some() || self.html.is_some();
        let failures = html::told(&report.failures);
        let pictures = if shown { picture::of_failures(&opened, failures) } else { Vec::new() };
        Ok(Explored { report, folder: own, pictures })
    }

    /// The session in --out, if it is of this recording and what is asked for.
    fn old(&self, opened: &Opened) -> anyhow::Result<Session> {
        let out = self.out.clone().unwrap_or_default();
        let old = Session::load(&out)?;
        let place = out.display();
        if !old.identity.same(&opened.identity) {
            bail!(
                "{place} holds an exploration of another recording ({}): name its folder, or explore \
                 anew into another",
                old.identity.recording.display()
            );
        }
        // What is not said goes on as it was.
        let mut wanted = old.choices.clone();
        self.say(&mut wanted, opened);
        if let Some((option, there, here)) = old.choices.differs(&wanted) {
            bail!(
                "{place} was explored with {option} {there}, and cannot go on with {here}: leave the \
                 option out, or explore anew into another folder"
            );
        }
        if let Some(shard) = self.shard
            && old.shard != Some(shard)
        {
            let there = old.shard.map_or("all of it".to_owned(), |s| format!("shard {s}"));
            bail!("{place} holds {there}, not shard {shard}: leave the option out");
        }
        Ok(old)
    }

    /// What was said on the command line.
    fn say(&self, choices: &mut Choices, opened: &Opened) {
        let disk = &opened.reader.header().disk;
        if !self.profile.is_empty() {
            choices.profiles = names(self.profile.iter().map(|p| p.on(disk).to_string()));
        }
        if !self.strategy.is_empty() {
            choices.strategies = names(self.strategy.iter().map(ToString::to_string));
        }
        if !self.fault.is_empty() {
            choices.faults = self.fault.iter().map(ToString::to_string).collect();
        }
        if let Some(seed) = self.seed {
            choices.seed = seed;
        }
        choices.every_event |= self.every_event;
        if let Some(nested) = self.nested {
            choices.nested = nested;
        }
        if let Some(every) = self.fsck_every {
            choices.fsck_every = every;
        }
        if let Some(pages) = self.pages.of(opened.subject.as_ref()) {
            choices.pages = Some(pages);
        }
    }

    fn choices(&self, opened: &Opened) -> anyhow::Result<Choices> {
        let mut choices = Choices {
            profiles: opened.profiles()?.iter().map(ToString::to_string).collect(),
            strategies: DEFAULT_STRATEGIES.split(',').map(str::to_owned).collect(),
            faults: Vec::new(),
            seed: DEFAULT_SEED,
            // What a program promises is in no mark, but where it makes some; and nobody promises anything
            // of a page.
            every_event: self.pages.are_asked_for()
                || opened.subject.as_ref().is_some_and(|s| s.checker.is_some()),
            nested: 0,
            fsck_every: DEFAULT_FSCK,
            pages: None,
        };
        self.say(&mut choices, opened);
        Ok(choices)
    }

    fn settings(&self, choices: &Choices) -> anyhow::Result<Settings> {
        let jobs = self.jobs.map(usize::from);
        Ok(Settings {
            strategies: parse_all(&choices.strategies)?,
            faults: parse_all(&choices.faults)?,
            seed: choices.seed,
            states: self.states,
            time: self.time,
            shard: self.shard,
            every_event: choices.every_event,
            failures: self.failures,
            threads: jobs.unwrap_or(Settings::default().threads),
            ..Settings::default()
        })
    }

    fn session(&self, opened: &Opened, choices: Choices) -> Session {
        let mut session = Session::new(opened.identity.clone(), choices, self.shard);
        if let Some(subject) = &opened.subject {
            session.is_of(subject);
        }
        session
    }

    fn folder(&self, seed: u64) -> anyhow::Result<Folder> {
        if let Some(out) = &self.out
            && Session::is_in(out)
        {
            bail!(
                "{} holds an exploration: go on with --resume, or name a new folder",
                out.display()
            );
        }
        Ok(Folder::Own(RunFolder::create(self.out.as_deref(), seed)?))
    }

    fn resume_command(&self, dir: &Path) -> String {
        let path = |path: &Path| word(&path.display().to_string());
        let base = self.base.as_ref().map(|b| format!(" --base {}", path(b))).unwrap_or_default();
        format!("tornblk explore {}{base} --out {} --resume", path(&self.recording), path(dir))
    }

    /// Names only; of any recording, and needing no base image.
    fn list(&self) -> anyhow::Result<u8> {
        let opened = Opened::open(&self.recording, self.base.as_deref())?;
        let choices = self.choices(&opened)?;
        let (profiles, settings) = (parse_all(&choices.profiles)?, self.settings(&choices)?);
        let mut out = BufWriter::new(io::stdout().lock());
        match write_names(&opened, &profiles, &settings, &mut out) {
            Ok(()) => Ok(0),
            // Who reads has seen enough.
            Err(Listing::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                // Its buffer must not be written when it goes.
                let _ = out.into_parts();
                Ok(0)
            }
            Err(Listing::Write(e)) => Err(anyhow::Error::from(e).context("cannot write the names")),
            Err(Listing::Explore(e)) => Err(e.into()),
        }
    }
}

enum Listing {
    Write(io::Error),
    Explore(ExploreError),
}

impl<E: Into<ExploreError>> From<E> for Listing {
    fn from(error: E) -> Listing {
        Listing::Explore(error.into())
    }
}

/// In the order in which they are explored, each once.
fn write_names(
    opened: &Opened,
    profiles: &[Profile],
    settings: &Settings,
    out: &mut dyn Write,
) -> Result<(), Listing> {
    let settings = Settings { profiles: profiles.to_vec(), ..settings.clone() };
    let mut left = settings.states.unwrap_or(u64::MAX);
    // A name says its profile and crash point: it can only come again there.
    let mut place = String::new();
    let mut seen: HashSet<StateName> = HashSet::new();
    let mut failed = None;
    list(&opened.history, &settings, |name| {
        let here = name.0.split_once(':').map_or("", |(here, _)| here);
        if here != place {
            place = here.to_owned();
            seen.clear();
        }
        let name = match settings.faults.as_slice() {
            [] => name.clone(),
            faults => {
                let parsed: Parsed = name.0.parse()?;
                let cut = opened.history.cut(parsed.after, &parsed.profile)?;
                cut.break_with(name, faults, settings.seed)?.0
            }
        };
        if !seen.insert(name.clone()) {
            return Ok(true);
        }
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        failed = writeln!(out, "{name}").err();
        Ok(failed.is_none())
    })?;
    match failed {
        Some(error) => Err(Listing::Write(error)),
        None => out.flush().map_err(Listing::Write),
    }
}

/// Where it is kept.
enum Folder {
    /// Made for this exploration.
    Own(RunFolder),
    /// There before.
    Given(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Own(folder) => folder.path(),
            Folder::Given(path) => path,
        }
    }

    fn remove(self) {
        if let Folder::Own(folder) = self {
            folder.remove_all();
        }
    }
}

fn has_something(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Each once, in the order given.
fn names(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in names {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

fn parse_all<T: std::str::FromStr>(names: &[String]) -> anyhow::Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    names.iter().map(|name| Ok(name.parse()?)).collect()
}

/// Goes through it; Ctrl-C ends it as any other limit.
fn drive(
    drive: &Drive<'_>,
    session: &mut Session,
    judged: Vec<crate::explore::session::Content>,
    mut live: Live,
) -> Result<(), ExploreError> {
    live.note("exploring");
    let result = drive.run(session, judged, &mut live);
    live.finish();
    result
}

/// Who judges the states of this recording: its units in place where it is of the disk itself, else
/// guests. `lab`: of these guests, if they are built already.
pub(super) fn means<'a>(
    opened: &'a Opened,
    guest: &GuestArgs,
    needs: &GuestNeeds,
    lab: Option<&RealLab>,
    note: &mut dyn FnMut(&str),
) -> anyhow::Result<Box<dyn Means + 'a>> {
    if !opened.reader.header().data {
        let path = opened.reader.path().to_owned();
        return Err(RecordingError::NoPayload { path }.into());
    }
    let Some(subject) = &opened.subject else {
        bail!(
            "{} does not say what was written to it (no `tornblk run` made it), so its states cannot \
             be judged: list them with `tornblk explore --list`, and take one out with `tornblk \
             recording export --state`",
            opened.reader.path().display()
        );
    };
    if subject.is_judged_in_place() {
        if needs.nested > 0 {
            bail!("--nested: a raw disk has no recovery of its own to explore; leave it out");
        }
        return Ok(Box::new(Units::of(opened, subject)?));
    }
    if let Some(lab) = lab {
        return Ok(lab.means(opened, subject, needs)?);
    }
    note("building the guest");
    let lab = run::lab(&guest.clone().or(subject.guest.clone()), note, &needs.stop)?;
    lab.prepare(note)?;
    Ok(lab.means(opened, subject, needs)?)
}

/// Where a report goes, beside the terminal.
pub(super) struct Reports<'a> {
    /// Its own folder.
    pub(super) own: Option<&'a Path>,
    pub(super) json: Option<&'a Path>,
    pub(super) junit: Option<&'a Path>,
    pub(super) html: Option<&'a Path>,
    pub(super) ci: &'a CiOptions,
}

/// Into its own folder and the files that were asked for, and on the terminal: → the exit code.
/// `pictures` draws the failures, where there is a page for them.
pub(super) fn tell(
    report: &ExploreReport,
    look: Look,
    wanted: &Reports<'_>,
    pictures: impl FnOnce() -> Vec<Result<Picture, NoPicture>>,
) -> anyhow::Result<u8> {
    type How = fn(&ExploreReport, &Path) -> io::Result<()>;
    let own = wanted.own.map(|folder| folder.join("report.json"));
    let files: [(Option<&Path>, How); 3] =
        [(own.as_deref(), shown::json), (wanted.json, shown::json), (wanted.junit, shown::junit)];
    let mut written = Ok(());
    for (path, how) in files {
        let Some(path) = path else { continue };
        let one = how(report, path).with_context(|| format!("cannot write {}", path.display()));
        // The others are tried all the same.
        written = written.and(one);
    }
    let own = wanted.own.map(|folder| folder.join(html::NAME));
    let pages: Vec<&Path> = own.as_deref().into_iter().chain(wanted.html).collect();
    let wrote = write_pages(&pages, || html::of_exploration(report, pictures()));
    shown::write(report, look, &mut Stdout).context("cannot write to the terminal")?;
    say_where(&pages, &wrote);
    written = written.and(wrote).and(wanted.ci.explored(report));
    told(written, report.exit)
}

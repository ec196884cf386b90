//! `tornblk run databases`: see [`crate::databases`].

use super::exec::{first_looks, machine};
use super::run::{self, RunArgs};
use super::{check_writable, told, write_pages};
use crate::audit::{Audit, PageWrite, PageWrites, Used, advice, audit, page_writes};
use crate::databases::{
    CONTROL, Cell, CellReport, ENTER, IN_PLACE, InPlace, OnDisk, PROFILES, RECOVERIES, Recovered,
    Recovery, TRANSACTIONS, WRONG, cells, exit_code,
};
use crate::explore::guest::GuestSettings;
use crate::explore::session::{Choices, Session};
use crate::explore::{
    ByName, Checker, Drive, Ended, Guests, Means, Opened, Pages, RecordingIds, Settings, Units,
    Verdict, Verifier, fits_any, named, report,
};
use crate::out::{Stdout, say};
use crate::report::databases as shown;
use crate::report::terminal::{Live, Look};
use crate::report::{html, junit};
use crate::run::{RealLab, RunError, RunFolder, Volume, Wanted, program, word};
use crate::vm::Virtiofsd;
use anyhow::{Context, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Program, USER_DISK};
use tornblk_image::{Root, RootRequest, root};
use tornblk_model::crash::{Profile, StateName, Strategy};
use tornblk_model::event::Seq;

pub(super) const NAME: &str = "databases";
/// For a load, for all transactions, and for one recovery: emulated guests are slow.
const LONG: Duration = Duration::from_secs(900);
const ONE: Duration = Duration::from_secs(240);
/// Torn states from which the server recovers, at most, for each disk.
const TORN: usize = 2;

pub(super) fn run_all(args: &RunArgs, interrupted: &Arc<AtomicBool>) -> anyhow::Result<u8> {
    args.refuse_for_databases()?;
    let around = args.around()?;
    let chosen = chosen(args)?;
    let mut profiles = match around.profiles.as_slice() {
        [] => PROFILES.iter().map(|name| name.parse()).collect::<Result<Vec<Profile>, _>>()?,
        some => some.to_vec(),
    };
    // The control is a part of each cell, whatever else is asked for.
    let control: Profile = CONTROL.parse()?;
    if !profiles.contains(&control) {
        profiles.insert(0, control);
    }
    let mut known = std::collections::HashSet::new();
    profiles.retain(|profile| known.insert(profile.to_string()));
    if let Some(profile) =
        profiles.iter().find(|profile| profile.lb_size.is_some_and(|lb| lb != 512))
    {
        bail!(
            "--profile {profile}: databases are recorded on a disk with logical blocks of 512 bytes; piece4k is \
             what a disk with blocks of 4 KiB does"
        );
    }
    check_writable([&args.json, &args.junit, &args.html].into_iter().flatten())?;
    let virtiofsd = Virtiofsd::find()?;
    let live = Live::new(Look::detect());
    let mut roots = BTreeMap::new();
    for cell in &chosen {
        if let std::collections::btree_map::Entry::Vacant(entry) = roots.entry(cell.database) {
            let (packages, without) = cell.database.packages();
            let request = RootRequest {
                packages: &packages,
                without,
                cache: None,
                stop: Some(Arc::clone(interrupted)),
            };
            entry.insert(root(&request, &mut |text| live.note(text))?);
        }
    }
    let mut lab = run::lab(&around.guest, &mut |text| live.note(text), interrupted)?;
    lab.prepare(&mut |text| live.note(text))?;
    let all = RunFolder::create(around.out, around.seed)?;
    live.finish();
    let machine = machine(&lab);
    let s = if chosen.len() == 1 { "" } else { "s" };
    say!("{machine}, seed {}: {} cell{s}", around.seed, chosen.len());
    let mut reports = Vec::new();
    let mut ended = Ok(());
    let began = Instant::now();
    for cell in chosen {
        if around.time.is_some_and(|time| began.elapsed() >= time) {
            say!("{} and those after it: not tried, the time was over (--time)", cell.name);
            break;
        }
        let folder = all.below(&cell.name)?;
        let mut one = One {
            root: &roots[&cell.database],
            cell,
            lab: &mut lab,
            folder: &folder,
            live: &live,
            seed: around.seed,
            virtiofsd: &virtiofsd,
            profiles: &profiles,
            interrupted,
            disks: Vec::new(),
        };
        let start = Instant::now();
        let tried = one.run(&around);
        live.finish();
        let error = match tried {
            Ok(()) => None,
            Err(error) if super::interrupted(&error) => {
                ended = Err(error);
                break;
            }
            Err(error) => Some(format!("{error:#}")),
        };
        let mut report = one.report(error);
        report.seconds = start.elapsed().as_secs_f64();
        shown::cell(&report, Look::detect(), &mut Stdout)?;
        reports.push(report);
    }
    if reports.is_empty() {
        if around.out.is_none() {
            all.remove_all();
        }
        ended?;
        return Ok(3);
    }
    shown::all(&reports, Look::detect(), &mut Stdout)?;
    let exit = exit_code(&reports);
    let exit = if ended.is_err() && exit != 1 { super::signals::INTERRUPTED } else { exit };
    let written = write(args, &reports, &all, &machine, exit);
    say!("kept in {}", all.path().display());
    if let Some(bundle) = reports.iter().flat_map(|r| &r.disks).find_map(|d| d.bundle.as_ref()) {
        say!("next: tornblk repro {}", word(bundle));
    }
    told(written, exit)
}

fn write(
    args: &RunArgs,
    reports: &[CellReport],
    folder: &RunFolder,
    machine: &str,
    exit: u8,
) -> anyhow::Result<()> {
    let soak = if args.soak { " --soak" } else { "" };
    let again =
        format!("tornblk run{}{soak}{} --seed {}", args.options(), args.chosen(), args.seed);
    let own = folder.path().join(html::NAME);
    let pages: Vec<&Path> = std::iter::once(own.as_path()).chain(args.html.as_deref()).collect();
    write_pages(&pages, || html::of_databases(reports, machine, again.clone()))?;
    say!("report: {}", own.display());
    if let Some(path) = &args.junit {
        junit::databases(reports, path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let words = |r: &CellReport| -> Vec<_> {
            r.disks
                .iter()
                .map(|d| json!({ "profile": d.profile, "word": d.word(&r.cell) }))
                .collect()
        };
        let told = |r: &CellReport| json!({ "cell": r.cell.name, "words": words(r), "odd": r.odd(), "report": r });
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command": again,
            "machine": machine,
            "exit": exit,
            "cells": reports.iter().map(told).collect::<Vec<_>>(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    args.ci.write_summary(|| shown::markdown(reports))
}

/// The quick ones, all, or those that are named.
fn chosen(args: &RunArgs) -> anyhow::Result<Vec<Cell>> {
    let all = cells();
    if let Some(lane) = args.lane.iter().find(|l| !all.iter().any(|c| c.name.starts_with(*l))) {
        let names: Vec<&str> = all.iter().filter(|c| c.quick).map(|c| c.name.as_str()).collect();
        bail!(
            "--lane {lane}: no cell begins so; those of a quick run are {} (DATABASE-SETTING-FILE SYSTEM)",
            names.join(", ")
        );
    }
    let wanted = |cell: &Cell| match args.lane.as_slice() {
        [] => cell.quick || args.soak,
        lanes => lanes.iter().any(|lane| cell.name.starts_with(lane)),
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// One cell at work.
struct One<'a> {
    cell: Cell,
    root: &'a Root,
    lab: &'a mut RealLab,
    folder: &'a RunFolder,
    live: &'a Live,
    seed: u64,
    virtiofsd: &'a Virtiofsd,
    profiles: &'a [Profile],
    interrupted: &'a Arc<AtomicBool>,
    /// What is known so far: should something fail later, it is told all the same.
    disks: Vec<OnDisk>,
}

impl One<'_> {
    fn run(&mut self, around: &super::exec::Around<'_>) -> anyhow::Result<()> {
        let script = self.script()?;
        let wanted = self.wanted(&script, around)?;
        let (live, name) = (self.live, self.cell.name.clone());
        let ran = program(self.lab, &wanted, self.folder, self.interrupted, &mut |text| {
            live.note(&format!("{name}: {text}"));
        })?;
        if ran.marks != TRANSACTIONS {
            bail!("{} of {TRANSACTIONS} transactions were acknowledged on record", ran.marks);
        }
        live.note(&format!("{name}: looking at a disk that lost no power"));
        first_looks(self.lab, &ran.recording, self.folder, self.seed, self.interrupted)?;
        let opened = Opened::open(&ran.recording, None)?;
        let (page_size, files) = self.cell.database.pages();
        let lb_size = opened.history.disk().lb_size;
        let wanted = |path: &str| fits_any(&files, path);
        let pages = page_writes(&opened.events, &opened.files, lb_size, page_size, wanted);
        let pages = without_double_writes(pages);
        // The same for every disk.
        let judged = self.cell.database.judged();
        let units = judged.map(|judged| anyhow::Ok((Units::pages(&opened, &judged)?, judged)));
        let units = units.transpose()?;
        for profile in self.profiles {
            live.note(&format!("{name}: {profile}, pages in place"));
            let disk = self.in_place(&opened, &pages, units.as_ref(), profile)?;
            self.disks.push(disk);
        }
        self.recover(&opened, &pages)
    }

    fn report(&mut self, error: Option<String>) -> CellReport {
        let disks = std::mem::take(&mut self.disks);
        let settings = std::fs::read_to_string(self.folder.path().join("exec.log"));
        CellReport {
            version: format!(
                "{} {}",
                self.cell.database.package(),
                self.root.version(self.cell.database.package()).unwrap_or_default()
            ),
            cell: self.cell.clone(),
            settings: settings.unwrap_or_default(),
            disks,
            seconds: 0.0,
            error,
        }
    }

    /// The program, where the guest sees it.
    fn script(&self) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join("database.sh");
        let text = format!("#!/bin/sh\n{ENTER}{}", self.cell.database.program());
        let cannot = || format!("cannot write {}", path.display());
        std::fs::write(&path, text).with_context(cannot)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(cannot)?;
        Ok(path)
    }

    fn wanted(&self, script: &Path, around: &super::exec::Around<'_>) -> anyhow::Result<Wanted> {
        let script = super::absolute(script)?;
        let script = script.to_str().context("the run's folder is no UTF-8")?.to_owned();
        let mut env: Vec<(String, String)> = [
            ("PATH", "/run/tornblk/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("TORNBLK_MOUNT", USER_DISK.to_owned()),
            ("TORNBLK_DB_ROOT", self.root.dir.display().to_string()),
            ("TORNBLK_SEED", self.seed.to_string()),
            ("TORNBLK_TRANSACTIONS", TRANSACTIONS.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        env.extend(self.cell.env.iter().cloned());
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
            name: self.cell.name.clone(),
            setup: Some(("the load".to_owned(), step("setup"))),
            program: step("run"),
            checker: Checker {
                name: self.cell.database.name().to_owned(),
                argv: argv("check"),
                env: env.clone(),
                timeout_ms: millis(ONE),
                corrupt_status: Some(WRONG),
            },
            mkfs: self.cell.ground.mkfs(),
            volume: Volume {
                fstype: self.cell.ground.fstype().to_owned(),
                mount_options: String::new(),
                queues: 1,
                logical_block_size: 512,
                profile: PROFILES[0].to_owned(),
                front_end: around.front_end.unwrap_or_default(),
                shows_limits: false,
                on_wire: Default::default(),
            },
            size: self.cell.ground.size(),
            disks: Vec::new(),
            seed: self.seed,
            guest: around.guest.clone(),
            virtiofsd: self.virtiofsd.clone(),
        })
    }

    /// What is promised, and what is torn before any recovery.
    fn in_place(
        &self,
        opened: &Opened,
        pages: &PageWrites,
        units: Option<&(Units, Pages)>,
        profile: &Profile,
    ) -> anyhow::Result<OnDisk> {
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
        let out = self.folder.path().join(format!("pages-{profile}"));
        std::fs::create_dir(&out).with_context(|| format!("cannot make {}", out.display()))?;
        let settings = Settings {
            // Tears first; on a disk that tears nothing, what may be lost.
            strategies: vec![Strategy::Tear, Strategy::OneLost, Strategy::Prefix],
            seed: self.seed,
            every_event: true,
            states: Some(IN_PLACE),
            failures: TORN as u64,
            ..Settings::default()
        };
        let choices = Choices {
            profiles: vec![profile.to_string()],
            strategies: settings.strategies.iter().map(Strategy::to_string).collect(),
            faults: Vec::new(),
            seed: self.seed,
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
            stop: self.interrupted,
        };
        drive.run(&mut session, Vec::new(), &mut ())?;
        if session.ended == Some(Ended::Stopped) {
            return Err(RunError::Interrupted.into());
        }
        let report = report(&session, session.judge, Vec::new())?;
        disk.in_place = Some(InPlace {
            pages: report.pages.as_ref().map_or(0, |p| p.judged),
            left_out: report.pages.as_ref().map_or(0, |p| p.unsound),
            states: report.profiles.iter().map(|p| p.counts.unique).sum(),
            torn: report.profiles.iter().map(|p| p.counts.failed).sum(),
        });
        for kept in report.failures.iter().take(TORN) {
            let recovered = not_tried();
            let state = kept.failure.state.0.clone();
            disk.recoveries.push(Recovery { state, torn_before: true, recovered });
            let bundle = kept.bundle.as_ref().map(|file| out.join(file).display().to_string());
            disk.bundle = disk.bundle.take().or(bundle);
        }
        Ok(disk)
    }

    /// Has the server recover from states of each disk: those with torn pages, one in which a write is torn or,
    /// where none can be, lost, and one in which all is lost that may be.
    fn recover(&mut self, opened: &Opened, pages: &PageWrites) -> anyhow::Result<()> {
        let Some(subject) = &opened.subject else {
            bail!("the recording does not say what it is of")
        };
        let dir = self.folder.path().to_owned();
        let mut settings = GuestSettings::new(self.lab, dir, Arc::clone(self.interrupted));
        settings.fsck_every = 0;
        let means = Guests::of(opened, subject, settings)?;
        let moments = moments(pages, RECOVERIES);
        let control = &self.profiles[0];
        let lost = moments.first().map(|at| format!("{control}/p{at}:none"));
        let mut wanted: Vec<String> = lost.iter().cloned().collect();
        for (disk, profile) in self.disks.iter_mut().zip(self.profiles) {
            for at in moments.iter().skip(1) {
                if disk.recoveries.len() + 1 >= RECOVERIES {
                    break;
                }
                if let Some(state) = state_at(opened, profile, *at)? {
                    let recovered = not_tried();
                    disk.recoveries.push(Recovery { state, torn_before: false, recovered });
                }
            }
            wanted.extend(disk.recoveries.iter().map(|r| r.state.clone()));
        }
        let mut came = self.each(opened, &means, &wanted)?.into_iter();
        // The same bytes on every disk.
        let of_all = lost.and_then(|_| came.next());
        for disk in &mut self.disks {
            for recovery in &mut disk.recoveries {
                recovery.recovered = came.next().unwrap_or_else(not_tried);
            }
            if let (Some(at), Some(recovered)) = (moments.first(), &of_all) {
                disk.recoveries.push(Recovery {
                    state: format!("{}/p{at}:none", disk.profile),
                    torn_before: false,
                    recovered: recovered.clone(),
                });
            }
        }
        Ok(())
    }

    /// Each state, one guest a processor.
    fn each(
        &self,
        opened: &Opened,
        means: &Guests<'_>,
        wanted: &[String],
    ) -> anyhow::Result<Vec<Recovered>> {
        let ids = RecordingIds::new(opened.reader.clone(), opened.base.as_deref(), opened.trust())?;
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
        let work = |thread: usize| -> anyhow::Result<Vec<(usize, Recovered)>> {
            let profile: Profile = PROFILES[0].parse()?;
            let judging = means.on(&profile)?;
            let mut verifier = judging.verifier(thread)?;
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(state) = wanted.get(i) else { return Ok(done) };
                self.live.note(&format!(
                    "{}: recovery {} of {}",
                    self.cell.name,
                    i + 1,
                    wanted.len()
                ));
                let name = StateName(state.clone());
                let state = ByName { name: &name, recovery: None };
                let look = |verifier: &mut dyn Verifier| {
                    named(&opened.history, &ids, means.promises(), &state, verifier)
                };
                let mut recovered = told_by(look(&mut *verifier)?);
                if recovered != Recovered::Sound {
                    // What fails counts once it failed in a new guest, too.
                    drop(verifier);
                    verifier = judging.verifier(thread)?;
                    let again = told_by(look(&mut *verifier)?);
                    if std::mem::discriminant(&again) != std::mem::discriminant(&recovered) {
                        recovered = Recovered::Unsure(format!("once {recovered}; then {again}"));
                    }
                }
                done.push((i, recovered));
            }
        };
        let mut all = vec![not_tried(); wanted.len()];
        let done = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
            let ended = workers.into_iter().map(|worker| worker.join());
            ended.collect::<Vec<_>>()
        });
        for one in done {
            let Ok(one) = one else { bail!("a thread that waits for guests ended unexpectedly") };
            for (i, recovered) in one? {
                all[i] = recovered;
            }
        }
        Ok(all)
    }
}

fn not_tried() -> Recovered {
    Recovered::Unsure("not tried".to_owned())
}

fn told_by(verdict: Verdict) -> Recovered {
    match verdict {
        Verdict::Passed => Recovered::Sound,
        Verdict::Failed(findings) => {
            let texts: Vec<String> = findings.into_iter().map(|f| f.text).collect();
            Recovered::of_failure(&texts.join("; "))
        }
        Verdict::Unsure(why) => Recovered::Unsure(why),
    }
}

/// Pages 64 to 191 of `ibdata1` are no data, but InnoDB's double writes.
fn without_double_writes(mut pages: PageWrites) -> PageWrites {
    let files = &pages.files;
    let is_copy = |write: &PageWrite| {
        (64..192).contains(&write.page) && files[write.file].ends_with("ibdata1")
    };
    pages.writes.retain(|write| !is_copy(write));
    pages
}

/// A state at this moment in which a write is torn, about in its middle; on a disk that tears none of those
/// that are out, one in which one is lost.
fn state_at(opened: &Opened, profile: &Profile, at: Seq) -> anyhow::Result<Option<String>> {
    let cut = opened.history.cut(at, profile)?;
    for strategy in [Strategy::Tear, Strategy::OneLost] {
        let mut names: Vec<StateName> = cut.states(strategy).take(1000).collect();
        if !names.is_empty() {
            return Ok(Some(names.swap_remove(names.len() / 2).0));
        }
    }
    Ok(None)
}

/// Right after some of the requests that overwrite a page, spread over all of them.
fn moments(pages: &PageWrites, n: usize) -> Vec<Seq> {
    let all: Vec<u64> = pages
        .writes
        .iter()
        .filter(|write| write.overwrites)
        .filter_map(|write| write.carriers.last().map(|carrier| carrier.request))
        .collect();
    if all.is_empty() {
        return Vec::new();
    }
    // The last one is most of the way: more was acknowledged by then.
    let at = |i: usize| all[((i + 1) * all.len() / n).saturating_sub(1)];
    let mut some: Vec<Seq> = (0..n).map(at).map(Seq).collect();
    some.dedup();
    some.reverse();
    some
}

//! `tornblk run databases`: see [`crate::databases`].

use super::exec::{Around, machine};
use super::run::{self, RunArgs};
use super::{check_writable, told, write_pages};
use crate::databases::{CONTROL, Cell, CellReport, OWN, PROFILES, Place, Trial, cells, exit_code};
use crate::out::{Stdout, say};
use crate::report::databases as shown;
use crate::report::terminal::{Live, Look, typed};
use crate::report::{html, junit};
use crate::run::{RunFolder, word};
use crate::vm::Virtiofsd;
use anyhow::{Context, bail};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tornblk_image::{Root, RootRequest, root};
use tornblk_model::crash::Profile;

pub(super) const NAME: &str = "databases";
pub(super) fn run_all(args: &RunArgs, interrupted: &Arc<AtomicBool>) -> anyhow::Result<u8> {
    args.refuse_for_databases()?;
    let around = args.around()?;
    let chosen = chosen(args)?;
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
        let profiles = profiles(&around, &cell, args.soak || !args.lane.is_empty())?;
        let place = Place {
            lab: &mut lab,
            guest: &around.guest,
            front_end: around.front_end.unwrap_or_default(),
            virtiofsd: &virtiofsd,
            seed: around.seed,
            interrupted,
            note: &|text| live.note(text),
        };
        let root: &Root = &roots[&cell.database];
        let mut trial = Trial::new(place, cell, root, &folder);
        let start = Instant::now();
        let tried = trial.run(&profiles).map_err(anyhow::Error::from);
        live.finish();
        let error = match tried {
            Ok(()) => None,
            Err(error) if super::interrupted(&error) => {
                ended = Err(error);
                break;
            }
            Err(error) => Some(super::sentence(&error)),
        };
        let mut report = trial.into_report();
        report.seconds = start.elapsed().as_secs_f64();
        report.error = error;
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
    if let Some(bundle) = reports.iter().flat_map(|r| &r.disks).find_map(|d| d.any_bundle()) {
        say!("next: {}", typed(&format!("tornblk repro {}", word(bundle))));
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
    let again = typed(&format!(
        "tornblk run{}{soak}{} --seed {}",
        args.options(),
        args.chosen(),
        args.seed
    ));
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

/// The disks of a cell. The control is a part of each, whatever else is asked for.
fn profiles(around: &Around<'_>, cell: &Cell, whole: bool) -> anyhow::Result<Vec<Profile>> {
    let mut profiles = vec![CONTROL.parse::<Profile>()?];
    if around.profiles.is_empty() {
        let own: &[&str] = if whole { &OWN } else { &cell.quick_own };
        for name in PROFILES.iter().chain(own) {
            profiles.push(name.parse()?);
        }
    }
    profiles.extend(around.profiles.iter().cloned());
    let mut known = HashSet::new();
    profiles.retain(|profile| known.insert(profile.to_string()));
    Ok(profiles)
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

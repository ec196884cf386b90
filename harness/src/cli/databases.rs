//! `tornblk run databases`: see [`crate::databases`].

use super::exec::{Around, machine};
use super::run::{self, RunArgs};
use super::{check_writable, told, write_pages};
use crate::databases::{
    CONTROL, Cell, CellReport, OWN, PROFILES, Place, Trial, answers, cells, exit_code,
};
use crate::out::{Stdout, say};
use crate::report::databases as shown;
use crate::report::terminal::{Live, Look, typed};
use crate::report::{html, junit};
use crate::run::{RunFolder, word};
use crate::vm::Virtiofsd;
use anyhow::{Context, bail};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
    let mut ended = None;
    let began = Instant::now();
    for cell in chosen {
        let over = around.time.is_some_and(|time| began.elapsed() >= time);
        let why = over.then_some("the time was over (--time)");
        if let Some(why) = why.or(ended.is_some().then_some("interrupted")) {
            reports
                .push(CellReport { not_tried: Some(why), ..CellReport::new(cell, String::new()) });
            continue;
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
                ended = Some(error);
                Some("interrupted".to_owned())
            }
            Err(error) => Some(super::sentence(&error)),
        };
        let mut report = trial.into_report();
        report.seconds = start.elapsed().as_secs_f64();
        report.error = error;
        shown::cell(&report, Look::detect(), &mut Stdout)?;
        reports.push(report);
    }
    let stopped = ended.is_some();
    if let Some(error) = ended
        && reports.iter().all(|report| report.disks.is_empty())
    {
        if around.out.is_none() {
            all.remove_all();
        }
        return Err(error);
    }
    shown::all(&reports, Look::detect(), &mut Stdout)?;
    let exit = exit_code(&reports);
    let exit = if stopped && exit != 1 { super::signals::INTERRUPTED } else { exit };
    let written = write(args, &reports, &all, &machine, exit);
    say!("kept in {}", all.path().display());
    // What is wrong first, and what was found before what the database put right.
    let mut found: Vec<_> =
        reports.iter().flat_map(|r| r.disks.iter().map(move |d| (r, d))).collect();
    found.sort_by_key(|(r, d)| (r.of_disk(&r.odd().violations, d).is_empty(), !r.word(d).is_red()));
    if let Some(bundle) = found.into_iter().find_map(|(_, d)| d.any_bundle()) {
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
            r.disks.iter().map(|d| json!({ "profile": d.profile, "word": r.word(d) })).collect()
        };
        let answers: HashMap<&str, String> =
            answers(reports).into_iter().map(|(r, text)| (r.cell.name.as_str(), text)).collect();
        let told = |r: &CellReport| {
            json!({
                "cell": r.cell.name,
                "answer": answers.get(r.cell.name.as_str()),
                "words": words(r),
                "odd": r.odd(),
                "report": r,
            })
        };
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

/// The quick ones, all, or those that are named: a cell's whole name is that cell alone.
fn chosen(args: &RunArgs) -> anyhow::Result<Vec<Cell>> {
    let all = cells();
    let fits = |lane: &String, cell: &Cell| match all.iter().any(|cell| cell.name == *lane) {
        true => cell.name == *lane,
        false => cell.name.starts_with(lane),
    };
    if let Some(lane) = args.lane.iter().find(|lane| !all.iter().any(|cell| fits(lane, cell))) {
        bail!("--lane {lane}: no cell begins so. {}", named(&all));
    }
    let wanted = |cell: &Cell| match args.lane.as_slice() {
        [] => cell.quick || args.soak,
        lanes => lanes.iter().any(|lane| fits(lane, cell)),
    };
    Ok(all.iter().filter(|cell| wanted(cell)).cloned().collect())
}

/// How cells are called, part by part.
fn named(all: &[Cell]) -> String {
    let mut told = "Their names are ".to_owned();
    let mut seen: Vec<(&str, Vec<BTreeSet<&str>>)> = Vec::new();
    for cell in all {
        let mut parts = cell.name.split('-');
        let database = parts.next().unwrap_or_default();
        if seen.last().is_none_or(|(last, _)| *last != database) {
            seen.push((database, Vec::new()));
        }
        let Some((_, known)) = seen.last_mut() else { continue };
        for (i, part) in parts.enumerate() {
            known.resize_with(known.len().max(i + 1), BTreeSet::new);
            known[i].insert(part);
        }
    }
    let one = |(database, parts): &(&str, Vec<BTreeSet<&str>>)| {
        let parts = parts.iter().map(|part| Vec::from_iter(part.iter().copied()).join("|"));
        format!("{database}-{}", parts.collect::<Vec<_>>().join("-"))
    };
    told += &seen.iter().map(one).collect::<Vec<_>>().join(", ");
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_cells_are_told_part_by_part() {
        let told = named(&cells());
        let filesystems = "bigalloc16k|ext4|xfs|xfs16k";
        for part in [
            format!("mariadb-fast|off|on-buffered|direct-{filesystems}, "),
            format!("postgres-off|on-buffered|direct-{filesystems}, "),
            format!("sqlite-delete|persist|truncate|wal-extra|full|normal|off-{filesystems}"),
        ] {
            assert!(told.contains(&part), "{told}");
        }
    }
}

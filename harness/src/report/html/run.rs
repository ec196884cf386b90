//! The page of a run.

use super::explore::{shown as explored, table as explored_table, tone};
use super::{Fact, Page, Shown, TOLD, Table, answer, environment, promise};
use crate::explore::{ExploreReport, Opened};
use crate::oracle::Finding;
use crate::report::picture::{self, NoPicture, Picture};
use crate::report::terminal::typed;
use crate::report::{findings, headline, raced_in_words, text};
use crate::run::{CAUGHT, CutReport, LaneReport, RunReport, Verdict};
use std::collections::BTreeMap;

/// Findings of one cut that have a picture of their own.
const OF_A_CUT: usize = 5;

/// Looks into the folders that were kept, for the pictures.
pub fn of_run(report: &RunReport) -> Page {
    let mut shown = Vec::new();
    let mut all = 0;
    // What is known is told, but not as news.
    let is_known = |lane: &&LaneReport| lane.verdict == Verdict::KnownRed;
    // Nor is what a control shows.
    let news = report.lanes.iter().filter(|lane| !is_known(lane) && !lane.is_caught());
    for lane in news.chain(report.lanes.iter().filter(is_known)) {
        let name = name(report, lane);
        all += lane.violations;
        shown.extend(of_lane(lane, &name, TOLD.saturating_sub(shown.len())));
    }
    let mut tables = vec![table(report)];
    for lane in &report.lanes {
        if let Some(explored) = &lane.explored {
            let caption = format!("Crash states of the last recording of {}", name(report, lane));
            tables.push(Table { caption, ..explored_table(explored) });
        }
    }
    let lanes = report.lanes.iter();
    Page {
        title: format!("tornblk: {}", report.suites.join(", ")),
        answer: answer::of_run(report),
        tables,
        notes: lanes.flat_map(|lane| notes(report, lane)).collect(),
        more: all.saturating_sub(shown.len() as u64),
        shown,
        environment: facts(report),
        commands: vec![(
            "The same lanes again".to_owned(),
            typed(&format!(
                "tornblk run{}{} --seed {}",
                report.options, report.chosen, report.seed
            )),
        )],
    }
}

/// Where there are several kernels, a lane is told with its own.
fn name(report: &RunReport, lane: &LaneReport) -> String {
    match report.kernels.len() > 1 {
        true => format!("{} on {}", lane.name, lane.kernel),
        false => lane.name.clone(),
    }
}

fn table(report: &RunReport) -> Table {
    let row = |lane: &LaneReport| {
        let counts = &lane.counts;
        let states = lane.explored.as_ref().map_or(0, ExploreReport::unique);
        let eligible = match counts.not_eligible {
            0 => counts.eligible.to_string(),
            n => format!("{} of {}", counts.eligible, counts.eligible + n),
        };
        let control = match &lane.control {
            None => "not made".to_owned(),
            Some(c) if c.caught => format!("caught: {}", c.text),
            Some(c) => format!("not caught: {}", c.text),
        };
        let cells = [
            name(report, lane),
            lane.about.clone(),
            lane.profile.clone(),
            match lane.is_explored_only() {
                true => "-".to_owned(),
                false => format!("{} of {}", lane.cuts, lane.planned),
            },
            eligible,
            states.to_string(),
            lane.violations.to_string(),
            control,
            match lane.verdict {
                Verdict::Passed if lane.is_caught() => CAUGHT.to_owned(),
                Verdict::Passed => "no finding".to_owned(),
                other => other.to_string(),
            },
        ];
        (tone(lane.verdict), cells.to_vec())
    };
    Table {
        caption: "Each lane, and what came of it".to_owned(),
        head: vec![
            "lane",
            "what must hold",
            "disk",
            "cuts of the power",
            "writes that had to be whole",
            "states explored",
            "findings",
            "its control",
            "verdict",
        ],
        rows: report.lanes.iter().map(row).collect(),
    }
}

fn notes(report: &RunReport, lane: &LaneReport) -> Vec<String> {
    let name = name(report, lane);
    let mut notes = Vec::new();
    if lane.cuts < lane.planned && lane.verdict != Verdict::Unsupported {
        notes.push(format!("{name}: it ended after {} of {} cuts.", lane.cuts, lane.planned));
    }
    if lane.at_rest > 0 {
        notes.push(format!(
            "{name}: {} of {} cuts were made at rest: their moment never came.",
            lane.at_rest, lane.cuts
        ));
    }
    notes.extend(
        lane.not_seen
            .iter()
            .map(|entry| format!("{name}: passed, though it is known to fail: {entry}.")),
    );
    if lane.complaints_again > 0 {
        notes.push(format!(
            "{name}: complaints of its guests' kernels that were told before in this run: {}.",
            lane.complaints_again
        ));
    }
    notes.extend(lane.raced.iter().flat_map(raced_in_words).map(|text| format!("{name}: {text}.")));
    notes
}

/// At most so many of them.
fn of_lane(lane: &LaneReport, name: &str, most: usize) -> Vec<Shown> {
    let mut shown = Vec::new();
    let mut by_cut: BTreeMap<u32, Vec<(&CutReport, &Finding)>> = BTreeMap::new();
    for (cut, finding) in findings(lane) {
        by_cut.entry(cut.number).or_default().push((cut, finding));
    }
    for found in by_cut.values() {
        if shown.len() >= most {
            break;
        }
        let cut = found[0].0;
        let drawn: Vec<&Finding> = found.iter().take(OF_A_CUT).map(|(_, f)| *f).collect();
        let pictures = pictures(cut, &drawn);
        for (finding, picture) in drawn.iter().zip(pictures) {
            shown.push(one(lane, name, cut, finding, picture));
        }
        if let Some(last) = shown.last_mut() {
            last.others = found.iter().skip(OF_A_CUT).take(20).map(|(_, f)| headline(f)).collect();
        }
    }
    if let Some(report) = lane.explored.as_ref().filter(|e| !e.failures.is_empty()) {
        let pictures = match Opened::open(&report.recording, None) {
            Ok(opened) => picture::of_failures(&opened, &report.failures),
            Err(error) => vec![Err(NoPicture(error.to_string())); report.failures.len()],
        };
        let of_states = explored(report, pictures).into_iter();
        shown.extend(of_states.map(|s| Shown { place: format!("{name}, {}", s.place), ..s }));
    }
    shown.truncate(most);
    shown
}

fn pictures(cut: &CutReport, findings: &[&Finding]) -> Vec<Result<Picture, NoPicture>> {
    let none = |why: NoPicture| vec![Err(why); findings.len()];
    let Some(folder) = &cut.folder else {
        return none(NoPicture("the recording of this cut was not kept".to_owned()));
    };
    picture::of_cut(folder, &cut.state, findings).unwrap_or_else(none)
}

fn one(
    lane: &LaneReport,
    name: &str,
    cut: &CutReport,
    finding: &Finding,
    picture: Result<Picture, NoPicture>,
) -> Shown {
    let mut facts = vec![
        Fact::new("lane", format!("{name}: {}", lane.about)),
        Fact::new("disk", format!("{}: {}", lane.profile, promise::words(&lane.profile))),
        Fact::new("power cut", format!("{}; right after event {}", cut.plan, cut.event)),
        Fact::new("in flight or not flushed then", counted(cut.volatile_writes, "write")),
    ];
    facts.extend(cut.faults.iter().map(|fault| Fact::new("on purpose", fault.as_str())));
    Shown {
        place: format!("{name} cut {}", cut.number),
        headline: headline(finding),
        text: text(finding).to_owned(),
        call: finding.call.clone(),
        strip: finding.strip.clone(),
        picture,
        facts,
        blame: Vec::new(),
        timeline: finding.timeline.clone(),
        found: None,
        state: cut.state.clone(),
        passing: None,
        others: Vec::new(),
        commands: cut.again.iter().map(|command| typed(command)).collect(),
    }
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn facts(report: &RunReport) -> Vec<(String, Vec<Fact>)> {
    let mut tool = vec![
        Fact::new("tornblk", report.version.as_str()),
        Fact::new("suites", report.suites.join(", ")),
        Fact::new("options", format!("{}{}", report.options, report.chosen).trim()),
        Fact::new("seed", report.seed.to_string()),
        Fact::new("took", format!("{:.1} s", report.seconds)),
        Fact::new("QEMU", report.qemu.as_str()),
        Fact::new("accelerator", report.accelerator.as_str()),
        Fact::new("guest's kernel", report.kernel.as_str()),
    ];
    let host = report.lanes.iter().find_map(|lane| lane.environment.as_ref());
    tool.push(Fact::new("host's kernel", host.map_or("", |e| e.host_kernel.as_str())));
    let mut groups = vec![("This report".to_owned(), tool)];
    for lane in &report.lanes {
        let facts = environment::disk(lane.volume.as_ref(), lane.environment.as_ref());
        groups.push((format!("The disk of lane {}", name(report, lane)), facts));
    }
    groups
}

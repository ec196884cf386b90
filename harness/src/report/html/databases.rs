//! The page of `tornblk run databases`.

use super::{Answer, Fact, Page, Shown, Table, Tone};
use crate::databases::{CellReport, OnDisk, Word, answers};
use crate::report::audit::told;
use crate::report::databases::{HEAD, columns};
use crate::report::picture::{NoPicture, of_bundle};
use crate::report::terminal::typed;
use std::path::Path;

/// `machine`: what the guests ran on; `again`: the command that does all of it once more.
pub fn of_databases(cells: &[CellReport], machine: &str, again: String) -> Page {
    let odd: Vec<_> = cells.iter().map(CellReport::odd).collect();
    let violated = odd.iter().flat_map(|odd| &odd.violations);
    let mut answer: Vec<Answer> =
        violated.map(|text| Answer { tone: Tone::Bad, text: text.clone() }).collect();
    for (cell, text) in answers(cells) {
        answer.push(Answer { tone: tone_of(cell), text });
    }
    let row = |report: &CellReport, disk: &OnDisk| {
        let head = [report.cell.name.clone(), disk.profile.clone()];
        let cells = head.into_iter().chain(columns(report, disk)).collect();
        (tone(disk.word(&report.cell)), cells)
    };
    let rows = cells.iter().flat_map(|r| r.disks.iter().map(move |disk| row(r, disk))).collect();
    Page {
        title: "tornblk: databases".to_owned(),
        answer,
        tables: vec![Table {
            caption: "Each cell on each disk: what is promised, what was seen, what was lost"
                .to_owned(),
            head: HEAD.to_vec(),
            rows,
        }],
        notes: odd.into_iter().flat_map(|odd| odd.inconclusive).collect(),
        shown: cells.iter().flat_map(|r| r.disks.iter().filter_map(|d| shown(r, d))).collect(),
        more: 0,
        environment: std::iter::once(("machine".to_owned(), vec![Fact::new("guests", machine)]))
            .chain(cells.iter().map(environment))
            .collect(),
        commands: vec![("The same again".to_owned(), again)],
    }
}

fn tone(word: Word) -> Tone {
    match word {
        Word::Torn | Word::TornBefore | Word::Lost => Tone::Bad,
        Word::Promised | Word::Protected | Word::NotPromised => Tone::Nothing,
        Word::Inconclusive => Tone::Unclear,
    }
}

fn tone_of(report: &CellReport) -> Tone {
    let words = report.disks.iter().map(|disk| tone(disk.word(&report.cell)));
    let all: Vec<Tone> = words.collect();
    if all.contains(&Tone::Bad) {
        Tone::Bad
    } else if all.contains(&Tone::Nothing) {
        Tone::Nothing
    } else {
        Tone::Unclear
    }
}

/// The first torn page of a cell on a disk.
fn shown(report: &CellReport, disk: &OnDisk) -> Option<Shown> {
    let bundle = disk.any_bundle()?;
    let in_place = disk.bundle.is_some();
    let torn = disk
        .recoveries
        .iter()
        .find(|r| if in_place { r.torn_before } else { r.bundle.is_some() })?;
    let picture = of_bundle(Path::new(bundle)).map_err(|e| NoPicture(e.to_string()));
    let word = disk.word(&report.cell);
    let headline = match disk.in_place {
        Some(seen) if in_place => {
            format!("{word}: a page in {} of {} states", seen.torn, seen.states)
        }
        _ => format!("{word}: after recovery"),
    };
    Some(Shown {
        place: format!("{} on {}", report.cell.name, disk.profile),
        headline,
        text: format!("The server, from this state: {}", torn.recovered),
        call: String::new(),
        strip: Vec::new(),
        picture,
        facts: vec![
            Fact::new("promised", disk.promised()),
            Fact::new(
                "page writes that may be torn",
                disk.audit.named.first().map_or(String::new(), told),
            ),
        ],
        blame: disk.audit.advice.iter().map(|advice| format!("try: {advice}")).collect(),
        timeline: Vec::new(),
        found: None,
        state: torn.state.clone(),
        passing: None,
        others: Vec::new(),
        commands: vec![typed(&format!("tornblk repro {}", crate::run::word(bundle)))],
    })
}

fn environment(report: &CellReport) -> (String, Vec<Fact>) {
    let mut facts = vec![
        Fact::new("could not be tried", report.error.as_deref().unwrap_or_default()),
        Fact::new("database", report.version.as_str()),
        Fact::new("setting", report.cell.setting.as_str()),
        Fact::new("file system", report.cell.ground.told()),
    ];
    if let Some(recovered) = &report.ledger_control {
        let told = recovered.to_string();
        facts.push(Fact::new("ledger's control: a disk that ignores every flush", told));
    }
    for none in &report.not_applicable {
        facts.push(Fact::new("not applicable", format!("{}: {}", none.profile, none.why)));
    }
    facts.extend(report.settings.lines().filter_map(|line| {
        let (name, value) = line.split_once(['\t', '|', ' '])?;
        Some(Fact::new(name, value))
    }));
    (report.cell.name.clone(), facts)
}

//! The page of `tornblk run databases`.

use super::{Answer, Fact, Page, Shown, Table, Tone};
use crate::audit::Audit;
use crate::databases::{CellReport, OnDisk, Word, answers};
use crate::report::audit::told;
use crate::report::databases::{HEAD, NONE, controls, rows};
use crate::report::picture::{NoPicture, of_bundle};
use crate::report::terminal::typed;
use std::path::Path;

const AUDIT: [&str; 5] = ["cell", "disk", "page writes", "written before", "by fate"];

/// `machine`: what the guests ran on; `again`: the command that does all of it once more.
pub fn of_databases(cells: &[CellReport], machine: &str, again: String) -> Page {
    let odd: Vec<_> = cells.iter().map(CellReport::odd).collect();
    let violated = odd.iter().flat_map(|odd| &odd.violations);
    let mut answer: Vec<Answer> =
        violated.map(|text| Answer { tone: Tone::Bad, text: text.clone() }).collect();
    for (cell, text) in answers(cells) {
        answer.push(Answer { tone: tone_of(cell), text });
    }
    for (cell, error) in cells.iter().filter_map(|cell| Some((cell, cell.error.as_ref()?))) {
        let text = format!("{}: could not be tried to its end: {error}", cell.cell.name);
        answer.push(Answer { tone: Tone::Unclear, text });
    }
    let rows = rows(cells).into_iter().map(|(report, disk, row)| {
        let tone = match disk {
            Some(disk) => tone(report.word(disk)),
            None if row.last().is_some_and(|word| word == NONE) => Tone::Nothing,
            None => Tone::Unclear,
        };
        (tone, row)
    });
    let audits = cells.iter().flat_map(|r| r.disks.iter().map(move |disk| audit_row(r, disk)));
    Page {
        title: "tornblk: databases".to_owned(),
        answer,
        tables: vec![
            Table {
                caption: "Each cell on each disk: what is promised, what was seen, what was lost"
                    .to_owned(),
                head: HEAD.to_vec(),
                rows: rows.collect(),
            },
            Table {
                caption: "The page audit: what became of each page write on its way to the disk"
                    .to_owned(),
                head: AUDIT.to_vec(),
                rows: audits.collect(),
            },
        ],
        notes: odd
            .into_iter()
            .flat_map(|odd| odd.inconclusive.into_iter().chain(odd.notes))
            .collect(),
        shown: cells.iter().flat_map(|r| r.disks.iter().filter_map(|d| shown(r, d))).collect(),
        more: 0,
        environment: std::iter::once(("machine".to_owned(), vec![Fact::new("guests", machine)]))
            .chain(cells.iter().map(environment))
            .collect(),
        commands: vec![("The same again".to_owned(), again)],
    }
}

/// Of green cells, too: what is called safe says why.
fn audit_row(report: &CellReport, disk: &OnDisk) -> (Tone, Vec<String>) {
    let Audit { page_writes, overwrites, fates, wiped, more, .. } = &disk.audit;
    let mut told: Vec<String> = fates.iter().map(|(fate, n)| format!("{n} {fate}")).collect();
    if *wiped > 0 {
        told.push(format!("{wiped} wiped afterwards"));
    }
    if *more {
        told.push("of some files it is not known where they lie".to_owned());
    }
    let cells = vec![
        report.cell.name.clone(),
        disk.profile.clone(),
        page_writes.to_string(),
        overwrites.to_string(),
        told.join(", "),
    ];
    (Tone::Nothing, cells)
}

fn tone(word: Word) -> Tone {
    match word {
        Word::Torn | Word::TornBefore | Word::Lost => Tone::Bad,
        Word::Promised | Word::Protected | Word::NotPromised => Tone::Nothing,
        Word::Inconclusive => Tone::Unclear,
    }
}

fn tone_of(report: &CellReport) -> Tone {
    let words = report.disks.iter().map(|disk| tone(report.word(disk)));
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
    let word = report.word(disk);
    // Tears that the database puts right are no finding.
    let bundle = disk.any_bundle().filter(|_| word.is_red())?;
    let after = disk.recoveries.iter().find(|r| r.bundle.is_some());
    let torn = after.or(disk.recoveries.iter().find(|r| r.torn_before))?;
    let picture = of_bundle(Path::new(bundle)).map_err(|e| NoPicture(e.to_string()));
    let advice = disk.audit.advice.iter().map(|advice| format!("try: {advice}"));
    let headline = match disk.in_place {
        Some(seen) if after.is_none() => {
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
        // Of what recovery made of it the page audit knows nothing.
        blame: if after.is_none() { advice.collect() } else { Vec::new() },
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
        Fact::new("database", report.version.as_str()),
        Fact::new("setting", report.cell.setting.as_str()),
        Fact::new("file system", report.cell.ground.told()),
    ];
    facts.extend(report.error.iter().map(|error| Fact::new("could not be tried", error.as_str())));
    for (what, recovered) in controls(report) {
        facts.push(Fact::new("control", format!("{what}: {recovered}")));
    }
    for none in &report.not_applicable {
        facts.push(Fact::new("not applicable", format!("{}: {}", none.profile, none.why)));
    }
    facts.extend(report.settings.lines().filter_map(|line| {
        let (name, value) = line.split_once(['\t', '|', ' '])?;
        Some(Fact::new(name, if value.is_empty() { "(empty)" } else { value }))
    }));
    (report.cell.name.clone(), facts)
}

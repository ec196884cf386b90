//! What came of `tornblk run databases`: on the terminal, and as Markdown.

use super::terminal::Look;
use crate::databases::{CellReport, OnDisk, Recovered, answers};
use comfy_table::presets::{ASCII_BORDERS_ONLY_CONDENSED, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use std::fmt::Write as _;
use std::io::{self, Write};

pub(super) const HEAD: [&str; 7] =
    ["cell", "disk", "promised", "torn in place", "torn after recovery", "ledger", "word"];

/// The word where a cell cannot lie on a disk.
pub(super) const NONE: &str = "n/a";

/// One cell, as soon as it is done.
///
/// # Errors
/// It cannot be written.
pub fn cell(report: &CellReport, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let name = look.paint(&report.cell.name, "1");
    writeln!(out, "{name}: {}, {} ({:.0} s)", report.cell.told(), report.version, report.seconds)?;
    if !report.settings.is_empty() {
        let settings = report.settings.lines().map(|line| line.replace(['\t', '|'], "="));
        writeln!(out, "  {}", settings.collect::<Vec<_>>().join(", "))?;
    }
    if let Some(error) = &report.error {
        writeln!(out, "  could not be tried to its end: {error}")?;
    }
    for disk in &report.disks {
        let [promised, in_place, after, ledger, text] = columns(report, disk);
        let word = match report.word(disk) {
            word if word.is_red() => look.paint(&text, "31"),
            _ => text,
        };
        writeln!(
            out,
            "  {:12} {word}: promised {promised}; torn in place {in_place}, after recovery {after}; \
             ledger {ledger}",
            disk.profile
        )?;
    }
    for none in &report.not_applicable {
        writeln!(out, "  {:12} {NONE}: {}", none.profile, none.why)?;
    }
    for (what, recovered) in controls(report) {
        writeln!(out, "  control, {what}: {recovered}")?;
    }
    Ok(())
}

/// What was done to each of the cell's controls, and what was said of it.
pub(super) fn controls(report: &CellReport) -> impl Iterator<Item = (&'static str, &Recovered)> {
    let ledger = report.ledger_control.iter().map(|r| ("a disk that ignores every flush", r));
    let damage = report.damage_control.iter().map(|r| ("a page of which half is zeroed", r));
    ledger.chain(damage)
}

/// Everything, at the end.
///
/// # Errors
/// It cannot be written.
pub fn all(cells: &[CellReport], look: Look, out: &mut dyn Write) -> io::Result<()> {
    for (_, answer) in answers(cells) {
        writeln!(out, "{answer}")?;
    }
    let mut table = Table::new();
    table.load_style(if look.utf8 { UTF8_FULL_CONDENSED } else { ASCII_BORDERS_ONLY_CONDENSED });
    table.set_header(HEAD);
    for (_, _, row) in rows(cells) {
        table.add_row(row);
    }
    for column in 2..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{table}")?;
    for report in cells {
        let odd = report.odd();
        if let Some(error) = &report.error {
            writeln!(out, "{}: could not be tried to its end: {error}", report.cell.name)?;
        }
        for text in &odd.violations {
            writeln!(out, "{}: {text}", look.paint("VIOLATED", "1;31"))?;
        }
        for text in &odd.inconclusive {
            writeln!(out, "inconclusive: {text}")?;
        }
        for text in &odd.notes {
            writeln!(out, "note: {text}")?;
        }
    }
    Ok(())
}

/// As the README has it.
pub fn markdown(cells: &[CellReport]) -> String {
    let mut text = String::new();
    for (_, answer) in answers(cells) {
        let _ = writeln!(text, "- {answer}");
    }
    for report in cells {
        let odd = report.odd();
        let error = report
            .error
            .iter()
            .map(|error| format!("{}: could not be tried to its end: {error}", report.cell.name));
        let violated = odd.violations.iter().map(|text| format!("**violated**: {text}"));
        let inconclusive = odd.inconclusive.iter().map(|text| format!("inconclusive: {text}"));
        let notes = odd.notes.iter().map(|text| format!("note: {text}"));
        for line in error.chain(violated).chain(inconclusive).chain(notes) {
            let _ = writeln!(text, "- {}", line.replace('\n', " "));
        }
    }
    let (head, rows_of_words) = words(cells);
    let _ = writeln!(text, "\n| {} |", head.join(" | "));
    let _ = writeln!(text, "| --- {}|", "| --- ".repeat(head.len() - 1));
    for row in rows_of_words {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    let _ = writeln!(text, "\n| {} |", HEAD.join(" | "));
    text += "| --- | --- | ---: | ---: | ---: | ---: | --- |\n";
    for (_, _, row) in rows(cells) {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// A cell a row, a disk a column, and the word for each: what a reader looks for first.
fn words(cells: &[CellReport]) -> (Vec<String>, Vec<Vec<String>>) {
    let mut disks: Vec<&str> = Vec::new();
    for profile in cells.iter().flat_map(CellReport::profiles) {
        if !disks.contains(&profile) {
            disks.push(profile);
        }
    }
    let word = |report: &CellReport, profile: &&str| {
        let disk = report.disks.iter().find(|disk| disk.profile == **profile);
        let none = report.not_applicable.iter().any(|none| none.profile == **profile);
        match disk {
            Some(disk) => word_of(report, disk),
            None if none => NONE.to_owned(),
            None => "not tried".to_owned(),
        }
    };
    let row = |report: &CellReport| {
        let cells = disks.iter().map(|profile| word(report, profile));
        std::iter::once(report.cell.name.clone()).chain(cells).collect()
    };
    let head = std::iter::once("cell").chain(disks.iter().copied()).map(str::to_owned).collect();
    (head, cells.iter().map(row).collect())
}

/// Of each cell on each disk, with the disk where there is something of it.
pub(super) fn rows(cells: &[CellReport]) -> Vec<(&CellReport, Option<&OnDisk>, Vec<String>)> {
    fn of(report: &CellReport) -> Vec<(&CellReport, Option<&OnDisk>, Vec<String>)> {
        let empty = |profile: &str, word: &str| {
            let mut row = vec![report.cell.name.clone(), profile.to_owned()];
            row.resize(HEAD.len() - 1, "-".to_owned());
            row.push(word.to_owned());
            (report, None, row)
        };
        let mut rows = Vec::new();
        for disk in &report.disks {
            let head = [report.cell.name.clone(), disk.profile.clone()];
            rows.push((
                report,
                Some(disk),
                head.into_iter().chain(columns(report, disk)).collect(),
            ));
        }
        if rows.is_empty() {
            rows.push(empty("-", "not tried"));
        }
        rows.extend(report.not_applicable.iter().map(|none| empty(&none.profile, NONE)));
        rows
    }
    cells.iter().flat_map(of).collect()
}

/// Promised, torn in place, torn after recovery, ledger, word.
pub(super) fn columns(report: &CellReport, disk: &OnDisk) -> [String; 5] {
    let in_place = disk.in_place.map_or("-".to_owned(), |s| format!("{} of {}", s.torn, s.states));
    let judged = disk.judged();
    let repaired = disk
        .recoveries
        .iter()
        .filter(|r| r.torn_before && matches!(r.recovered, Recovered::Sound | Recovered::Lost(_)))
        .count();
    let repaired = if repaired > 0 { format!(" ({repaired} repaired)") } else { String::new() };
    let ledger = match disk.lost() {
        0 => format!("0 lost of {judged}"),
        n if report.cell.may_lose => format!("{n} lost of {judged}, allowed"),
        n => format!("{n} LOST of {judged}"),
    };
    [
        disk.promised(),
        in_place,
        format!("{} of {judged}{repaired}", disk.torn_after()),
        ledger,
        word_of(report, disk),
    ]
}

/// With what a reader of the word alone would miss.
fn word_of(report: &CellReport, disk: &OnDisk) -> String {
    let mut text = report.word(disk).to_string();
    if disk.lost() > 0 && report.cell.may_lose {
        text += " (lost, allowed)";
    }
    if disk.is_few(&report.cell) {
        text += " (few states)";
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::databases::testing::{disk, report};

    #[test]
    fn a_reader_finds_the_word_the_numbers_and_what_was_not_tried() {
        let torn = Recovered::Refused("page 3".into());
        let cells = [
            report("mariadb-off-direct-ext4", vec![disk("lb512", 0, 40, torn)]),
            report("mariadb-on-direct-ext4", vec![disk("lb512", 0, 40, Recovered::Sound)]),
            report("sqlite-wal-normal-ext4", Vec::new()),
        ];
        let text = markdown(&cells);
        for line in [
            "| cell | lb512 |",
            "| --- | --- |",
            "| mariadb-off-direct-ext4 | torn |",
            "| sqlite-wal-normal-ext4 | not tried |",
            "| mariadb-off-direct-ext4 | lb512 | 0 of 10 | 40 of 300 | 3 of 3 | 0 lost of 3 | torn |",
            "| mariadb-on-direct-ext4 | lb512 | 0 of 10 | 40 of 300 | 0 of 3 (3 repaired) | 0 lost of 3 | none \
             found, protected |",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let plain = Look { utf8: false, colour: false };
        let mut out = Vec::new();
        all(&cells, plain, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("the nearest that is protected: MariaDB with innodb_doublewrite=ON"),
            "{text}"
        );
    }
}

//! The question, answered: which setting is safe on which disk, and where the next safe one is.

use super::{Cell, CellReport, OnDisk, Protection, Word};
use std::collections::BTreeMap;

/// A sentence for each cell: what it is on which disks, and the nearest neighbours that are better off. Those
/// without protection first, since they are what is asked about.
pub fn answers(cells: &[CellReport]) -> Vec<(&CellReport, String)> {
    let mut order: Vec<&CellReport> = cells.iter().filter(|r| r.not_tried.is_none()).collect();
    order.sort_by_key(|report| match report.cell.protection {
        Protection::Off => 0,
        Protection::NotWaited => 1,
        Protection::On | Protection::Journal => 2,
    });
    order.into_iter().map(|report| (report, answer(report, cells))).collect()
}

fn answer(report: &CellReport, cells: &[CellReport]) -> String {
    let told = report.cell.told();
    if report.disks.is_empty() {
        return format!("{told}: it could not be tried, see below");
    }
    let words = [
        (Word::Torn, "torn on"),
        (Word::TornBefore, "pages torn, though no recovery that was tried came out wrong, on"),
        (Word::Lost, "acknowledged transactions lost on"),
        (Word::Promised, "safe by promise on"),
        (Word::Protected, "protected, and nothing found, on"),
        (Word::Inconclusive, "inconclusive on"),
    ];
    let mut parts = Vec::new();
    for (word, text) in words {
        let on: Vec<&OnDisk> = report.disks.iter().filter(|d| report.word(d) == word).collect();
        if on.is_empty() {
            continue;
        }
        let on = if word == Word::Promised { promised(&on) } else { names(&on) };
        parts.push(format!("{text} {on}"));
    }
    let mut reasons: BTreeMap<&str, Vec<&OnDisk>> = BTreeMap::new();
    for disk in report.disks.iter().filter(|disk| report.word(disk) == Word::NotPromised) {
        reasons.entry(disk.why_not_promised(&report.cell)).or_default().push(disk);
    }
    for (why, on) in reasons {
        parts.push(format!("nothing found on {}, and nothing promised: {why}", names(&on)));
    }
    let mut text = format!("{told}: {}", parts.join("; "));
    let is_good = |word| matches!(word, Word::Promised | Word::Protected);
    if !report.disks.iter().all(|disk| is_good(report.word(disk))) {
        text += &neighbours(report, cells);
    }
    text
}

fn names(disks: &[&OnDisk]) -> String {
    let names: Vec<&str> = disks.iter().map(|disk| disk.profile.as_str()).collect();
    names.join(", ")
}

/// What is promised of requests is so as long as they are.
fn promised(disks: &[&OnDisk]) -> String {
    let (requests, pieces): (Vec<&OnDisk>, Vec<&OnDisk>) =
        disks.iter().partition(|disk| disk.is_of_requests());
    let requests = (!requests.is_empty()).then(|| {
        format!("{} as long as the kernel merges no requests (queue/nomerges 2)", names(&requests))
    });
    let pieces = (!pieces.is_empty()).then(|| names(&pieces));
    pieces.into_iter().chain(requests).collect::<Vec<_>>().join(", and on ")
}

/// The nearest cell that is safe by promise on some disk, and the nearest that is protected on all.
fn neighbours(of: &CellReport, cells: &[CellReport]) -> String {
    let mut others: Vec<&CellReport> = cells
        .iter()
        .filter(|r| r.cell.database == of.cell.database && r.cell != of.cell && !r.disks.is_empty())
        .collect();
    others.sort_by_key(|r| distance(&r.cell, &of.cell));
    let mut text = String::new();
    let promised = others.iter().find_map(|r| {
        let on: Vec<&OnDisk> =
            r.disks.iter().filter(|disk| r.word(disk) == Word::Promised).collect();
        (!on.is_empty()).then(|| format!("{} on {}", r.cell.told(), promised(&on)))
    });
    if let Some(cell) = promised {
        text += &format!("; the nearest that is safe by promise: {cell}");
    }
    let all_protected = |r: &&&CellReport| r.disks.iter().all(|d| r.word(d) == Word::Protected);
    if let Some(protected) = others.iter().find(all_protected) {
        text += &format!("; the nearest that is protected: {}", protected.cell.told());
    }
    text
}

/// In how much two cells of a database differ.
fn distance(a: &Cell, b: &Cell) -> usize {
    let differs = [a.ground != b.ground, a.buffered != b.buffered, a.protection != b.protection];
    let settings = a.env.iter().zip(&b.env).filter(|(a, b)| a != b).count();
    settings + differs.into_iter().filter(|differs| *differs).count()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{disk, report};
    use super::*;
    use crate::databases::Recovered;

    fn told(cells: &[CellReport]) -> Vec<String> {
        answers(cells).into_iter().map(|(_, text)| text).collect()
    }

    fn refused(profile: &str) -> OnDisk {
        disk(profile, 0, 4, Recovered::Refused("x".into()))
    }

    #[test]
    fn the_answer_names_the_nearest_that_is_safe() {
        let torn = report("mariadb-off-direct-ext4", vec![refused("lb512")]);
        let near = report(
            "mariadb-off-direct-bigalloc16k",
            vec![refused("lb512"), disk("piece16k", 10, 0, Recovered::Sound)],
        );
        let on = report("mariadb-on-direct-ext4", vec![disk("lb512", 0, 4, Recovered::Sound)]);
        // It differs in more.
        let far = report("mariadb-on-buffered-xfs", vec![disk("lb512", 0, 4, Recovered::Sound)]);
        let other = report("postgres-on-direct-ext4", vec![disk("lb512", 0, 4, Recovered::Sound)]);
        let told = told(&[far, other, on, torn, near]);
        assert!(told[0].starts_with("MariaDB with innodb_doublewrite=OFF"), "{told:?}");
        assert!(
            told[0].contains("torn on lb512; the nearest that is safe by promise: MariaDB with")
                && told[0].contains("clusters of 16 KiB on piece16k")
                && told[0].contains("the nearest that is protected: MariaDB with innodb_doublewrite=ON, innodb_flush_method=O_DIRECT"),
            "{told:?}"
        );
        // Its own safe disk does not spare a neighbour: lb512 may be what the reader has.
        assert!(
            told[1].contains("torn on lb512; safe by promise on piece16k; the nearest"),
            "{told:?}"
        );
        assert!(told[2].ends_with("protected, and nothing found, on lb512"), "{told:?}");
        assert_eq!(told.len(), 5);
    }

    #[test]
    fn each_word_is_told_as_what_it_is() {
        let lost = disk("lb4k", 0, 4, Recovered::Lost("t".into()));
        let unsure = disk("req8k", 0, 4, Recovered::Unsure("t".into()));
        let before = disk("piece4k", 0, 4, Recovered::Sound);
        let all = vec![refused("lb512"), lost, unsure, before];
        let told = told(&[report("mariadb-off-direct-ext4", all)]);
        assert!(
            told[0].ends_with(
                "torn on lb512; pages torn, though no recovery that was tried came out wrong, on piece4k; \
                 acknowledged transactions lost on lb4k; inconclusive on req8k"
            ),
            "{told:?}"
        );
        // What is promised of requests is so while these stay as they are.
        let safe = ["req16k", "piece16k"].map(|profile| disk(profile, 10, 0, Recovered::Sound));
        let told = self::told(&[report("mariadb-off-direct-xfs16k", safe.into())]);
        assert!(
            told[0].contains(
                "safe by promise on piece16k, and on req16k as long as the kernel merges no requests"
            ),
            "{told:?}"
        );
        let lucky =
            vec![disk("req16k", 10, 0, Recovered::Sound), disk("req8k", 9, 0, Recovered::Sound)];
        let told = self::told(&[report("mariadb-off-direct-ext4", lucky)]);
        assert!(
            told[0].contains("nothing found on req16k, and nothing promised: blocks of"),
            "{told:?}"
        );
        assert!(
            told[0].contains("nothing found on req8k, and nothing promised: not every"),
            "{told:?}"
        );
        // A cell whose control is blind recommends nothing.
        let torn = report("mariadb-off-direct-ext4", vec![refused("lb512")]);
        let safe = vec![disk("piece16k", 10, 0, Recovered::Sound)];
        let mut blind = report("mariadb-off-direct-bigalloc16k", safe);
        blind.ledger_control = Some(Recovered::Sound);
        let told = self::told(&[torn, blind]);
        assert!(!told.iter().any(|text| text.contains("safe by promise")), "{told:?}");
    }
}

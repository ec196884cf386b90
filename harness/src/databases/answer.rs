//! The question, answered: which setting is safe on which disk, and where the next safe one is.

use super::{CellReport, OnDisk, Protection, Word};

/// The answer, a sentence for each setting that was tried without protection, and its neighbour that is safe.
pub fn answers(cells: &[CellReport]) -> Vec<(&CellReport, String)> {
    let mut told = Vec::new();
    for report in cells.iter().filter(|r| r.cell.protection == Protection::Off) {
        let of = |wanted: &dyn Fn(&OnDisk) -> bool| -> Vec<&str> {
            let fits = report.disks.iter().filter(|disk| wanted(disk));
            fits.map(|disk| disk.profile.as_str()).collect()
        };
        let bad = of(&|d| d.word(&report.cell).is_red());
        let good = of(&|d| d.word(&report.cell) == Word::Promised);
        let mut text = report.cell.told();
        let unclear = of(&|d| d.word(&report.cell) == Word::Inconclusive);
        if report.disks.is_empty() || unclear.len() == report.disks.len() {
            told.push((report, text + ": it could not be tried, see below"));
            continue;
        }
        text += &match (bad.as_slice(), good.as_slice()) {
            ([], []) => ": nothing was found, and nothing is promised".to_owned(),
            (bad, []) => format!(": pages are torn on {}", bad.join(", ")),
            ([], good) => format!(": safe by promise on {}", good.join(", ")),
            (bad, good) => {
                format!(
                    ": pages are torn on {}; safe by promise on {}",
                    bad.join(", "),
                    good.join(", ")
                )
            }
        };
        if good.is_empty()
            && let Some(neighbour) = neighbour(report, cells)
        {
            text += &format!("; its neighbour that is: {neighbour}");
        }
        told.push((report, text));
    }
    told
}

/// The nearest cell that needs no protection on some disk; else one that has it.
fn neighbour(of: &CellReport, cells: &[CellReport]) -> Option<String> {
    let same = |r: &&CellReport| r.cell.database == of.cell.database && r.cell != of.cell;
    let promised = cells.iter().filter(same).find_map(|r| {
        let disk = r.disks.iter().find(|disk| disk.word(&r.cell) == Word::Promised)?;
        Some(format!("{} on {}", r.cell.told(), disk.profile))
    });
    promised.or_else(|| {
        let protected = cells.iter().filter(same).find(|r| {
            r.cell.is_protected()
                && !r.disks.is_empty()
                && r.disks.iter().all(|d| d.word(&r.cell) == Word::Protected)
        })?;
        Some(format!("{} (protected, on every disk that was tried)", protected.cell.told()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{disk, report};
    use super::*;
    use crate::databases::Recovered;

    #[test]
    fn the_answer_names_the_neighbour_that_is_safe() {
        let torn = report(
            "mariadb-off-direct-ext4",
            vec![disk("lb512", 0, 4, Recovered::Refused("x".into()))],
        );
        let safe = report(
            "mariadb-off-direct-bigalloc16k",
            vec![disk("piece16k", 10, 0, Recovered::Sound)],
        );
        let cells = [torn, safe];
        let told: Vec<String> = answers(&cells).into_iter().map(|(_, text)| text).collect();
        assert!(
            told[0].contains("pages are torn on lb512; its neighbour that is: MariaDB with")
                && told[0].ends_with("clusters of 16 KiB on piece16k"),
            "{told:?}"
        );
        assert!(told[1].ends_with("safe by promise on piece16k"), "{told:?}");
    }
}

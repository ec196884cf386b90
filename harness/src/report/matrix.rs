//! The table of several kernels: a lane a row, a kernel a column.

use super::terminal::{Look, paint_last};
use crate::run::{LaneReport, RunReport, Verdict};
use comfy_table::Table;
use comfy_table::presets::{ASCII_BORDERS_ONLY_CONDENSED, UTF8_FULL_CONDENSED};

/// Nothing was run there: the kernel could not be had, or its run ended before.
const NOT_RUN: &str = "-";

pub(super) fn table(report: &RunReport, look: Look) -> String {
    let mut table = Table::new();
    table.load_style(if look.utf8 { UTF8_FULL_CONDENSED } else { ASCII_BORDERS_ONLY_CONDENSED });
    // As they were asked for: releases are long. What they are stands in the lines below.
    let head = |kernel: &crate::run::KernelRun| kernel.given.clone();
    // Two suites may have lanes of one name.
    let mut names: Vec<(&str, &str)> = Vec::new();
    for lane in &report.lanes {
        let name = (lane.suite.as_str(), lane.name.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let many = names.iter().any(|(suite, _)| *suite != names[0].0);
    let mut header = if many { vec!["suite".to_owned()] } else { Vec::new() };
    header.push("lane".to_owned());
    header.extend(report.kernels.iter().map(head));
    table.set_header(header);
    let rows: Vec<Vec<Option<Verdict>>> = names.iter().map(|name| row(report, *name)).collect();
    for ((suite, name), row) in names.iter().zip(&rows) {
        let cells = row.iter().map(|v| v.map_or(NOT_RUN.to_owned(), |v| v.to_string()));
        let labels = many.then(|| (*suite).to_owned()).into_iter().chain([(*name).to_owned()]);
        table.add_row(labels.chain(cells));
    }
    // Painted afterwards, from the last column to the first: the widths are those of the plain text.
    let header = 3;
    let lines = table.to_string();
    let painted = lines.lines().enumerate().map(|(i, line)| {
        let row = i.checked_sub(header).and_then(|i| rows.get(i));
        row.map_or(line.to_owned(), |row| paint(line, row, look))
    });
    painted.collect::<Vec<_>>().join("\n")
}

/// By kernel.
fn row(report: &RunReport, (suite, name): (&str, &str)) -> Vec<Option<Verdict>> {
    let on = |release: &str| {
        let is = |l: &&LaneReport| l.suite == suite && l.name == name && l.kernel == release;
        let lane = report.lanes.iter().find(is);
        lane.map(|lane| lane.verdict)
    };
    report.kernels.iter().map(|k| on(&k.release)).collect()
}

fn paint(line: &str, row: &[Option<Verdict>], look: Look) -> String {
    let (mut rest, mut done) = (line.to_owned(), String::new());
    for verdict in row.iter().rev().flatten() {
        let plain = verdict.to_string();
        let Some(at) = rest.rfind(&plain) else { continue };
        done = paint_last(&rest[at..], &plain, &look.verdict(*verdict)) + &done;
        rest.truncate(at);
    }
    rest + &done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::report;
    use crate::run::KernelRun;

    fn matrix() -> RunReport {
        let mut report = report();
        let kernel = |given: &str, release: &str, error: Option<&str>| KernelRun {
            given: given.into(),
            release: release.into(),
            error: error.map(str::to_owned),
        };
        report.kernels = vec![
            kernel("6.12", "6.12.9", None),
            kernel("7.2", "7.2.1", None),
            kernel("9.9", "", Some("there is no Debian cloud kernel 9.9")),
        ];
        let mut newer = report.lanes.clone();
        newer.truncate(2);
        report.lanes.truncate(3);
        report.lanes.iter_mut().for_each(|lane| lane.kernel = "6.12.9".into());
        newer.iter_mut().for_each(|lane| lane.kernel = "7.2.1".into());
        newer[0].verdict = Verdict::Passed;
        report.lanes.extend(newer);
        report
    }

    #[test]
    fn the_table_is_as_drawn_here() {
        let expected = "\
+--------------------------------------+
| lane      6.12          7.2      9.9 |
+======================================+
| raw       VIOLATED      passed   -   |
| xfs-cow   passed        passed   -   |
| old       unsupported   -        -   |
+--------------------------------------+";
        let plain = Look { colour: false, utf8: false };
        assert_eq!(table(&matrix(), plain), expected);
    }

    #[test]
    fn each_verdict_has_its_own_colour() {
        let text = table(&matrix(), Look { colour: true, utf8: false });
        assert_eq!(text.matches("\x1b[32mpassed\x1b[0m").count(), 3, "{text}");
        assert_eq!(text.matches("\x1b[1;31mVIOLATED\x1b[0m").count(), 1, "{text}");
    }

    #[test]
    fn lanes_are_told_with_their_kernel_and_a_missing_one_is_told() {
        let mut out = Vec::new();
        let plain = Look { colour: false, utf8: false };
        super::super::terminal::write(&matrix(), plain, &mut out).unwrap_or_default();
        let text = String::from_utf8_lossy(&out);
        for part in [
            "raw on 6.12.9 cut 2: torn: /dev/vda unit 3",
            "old on 6.12.9: unsupported - RWF_ATOMIC",
            "kernel 9.9: could not be run - there is no Debian cloud kernel 9.9",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}

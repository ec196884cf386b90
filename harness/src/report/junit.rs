//! The report as JUnit XML: a test suite a suite, a test case a lane.
//!
//! Unsupported and known lanes are skipped with their text, inconclusive ones and those that could
//! not run are errors, violations are failures.

use super::databases::NONE;
use super::strip::strip;
use super::{findings, headline, text};
use crate::databases::CellReport;
use crate::run::{LaneReport, RunReport, Verdict};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::io;
use std::path::Path;
use std::time::Duration;

pub fn write(report: &RunReport, path: &Path) -> io::Result<()> {
    super::save(path, render(report)?.as_bytes())
}

fn render(report: &RunReport) -> io::Result<String> {
    let mut out = Report::new("tornblk");
    out.set_time(Duration::from_secs_f64(report.seconds));
    for name in &report.suites {
        let mut suite = TestSuite::new(name.as_str());
        for lane in report.lanes.iter().filter(|lane| lane.suite == *name) {
            suite.add_test_case(case(report, lane));
        }
        out.add_test_suite(suite);
    }
    let missing = report.kernels.iter().filter_map(|k| Some((&k.given, k.error.as_ref()?)));
    let mut suite = TestSuite::new("kernels");
    for (given, error) in missing {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(error.as_str()).set_description(error.as_str());
        suite.add_test_case(TestCase::new(given.as_str(), status));
    }
    if suite.tests > 0 {
        out.add_test_suite(suite);
    }
    out.to_string().map_err(io::Error::other)
}

/// Of databases: a test case a cell and disk, and one for the cell itself with its controls.
///
/// # Errors
/// The file cannot be written.
pub fn databases(cells: &[CellReport], path: &Path) -> io::Result<()> {
    let mut suite = TestSuite::new("databases");
    for report in cells {
        let odd = report.odd();
        let mut add = |name: &str, status: TestCaseStatus, said: String| {
            let mut case = TestCase::new(name, status);
            case.set_classname(format!("tornblk.databases.{}", report.cell.name));
            case.set_system_out(said);
            suite.add_test_case(case);
        };
        for disk in &report.disks {
            let violated = report.of_disk(&odd.violations, disk).join("; ");
            let inconclusive = report.of_disk(&odd.inconclusive, disk).join("; ");
            let status = if !violated.is_empty() {
                because(NonSuccessKind::Failure, violated)
            } else if !inconclusive.is_empty() {
                because(NonSuccessKind::Error, inconclusive)
            } else {
                TestCaseStatus::success()
            };
            add(&disk.profile, status, report.word(disk).to_string());
        }
        for none in &report.not_applicable {
            let mut status = TestCaseStatus::skipped();
            status.set_message(none.why.as_str());
            add(&none.profile, status, NONE.to_owned());
        }
        let start = format!("{}: ", report.cell.name);
        let whole = odd.inconclusive.iter().filter(|text| text.starts_with(&start)).cloned();
        let whole: Vec<String> = report.error.iter().cloned().chain(whole).collect();
        let status = match whole.as_slice() {
            [] => TestCaseStatus::success(),
            why => because(NonSuccessKind::Error, why.join("; ")),
        };
        add("the cell and its controls", status, String::new());
    }
    let mut out = Report::new("tornblk");
    out.add_test_suite(suite);
    super::save(path, out.to_string().map_err(io::Error::other)?.as_bytes())
}

fn because(kind: NonSuccessKind, why: String) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(why.as_str()).set_description(why);
    status
}

fn case(report: &RunReport, lane: &LaneReport) -> TestCase {
    let why = lane.why.clone().unwrap_or_default();
    let status = match lane.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Unsupported | Verdict::KnownRed => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(why);
            status
        }
        Verdict::Violated => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let mut told = String::new();
            for (cut, finding) in findings(lane) {
                told += &format!("cut {}: {}\n{}\n", cut.number, headline(finding), text(finding));
                told += &format!("{}\n", finding.call);
                if !finding.strip.is_empty() {
                    told += &format!("blocks {}  (■ new, □ old)\n", strip(&finding.strip, true));
                }
                told += &format!("state {}\n", cut.state);
                for command in &cut.again {
                    told += &format!("again: {command}\n");
                }
            }
            if let Some(explored) = &lane.explored {
                told += &super::explore::failures(explored);
            }
            // Without a finding it is the lane as a whole.
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            status
                .set_message(format!("{} violations{why}", lane.violations))
                .set_description(told);
            status
        }
        Verdict::Inconclusive | Verdict::Error => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            // Some servers show the message, some the text.
            status.set_type(lane.verdict.to_string()).set_message(&*why).set_description(why);
            status
        }
    };
    let mut case = TestCase::new(lane.name.as_str(), status);
    let kernel =
        if report.kernels.len() > 1 { lane.kernel.replace('.', "_") } else { String::new() };
    let kernel = if kernel.is_empty() { kernel } else { format!(".{kernel}") };
    case.set_classname(format!("tornblk.{}{kernel}", lane.suite));
    case.set_time(Duration::from_secs_f64(lane.seconds));
    let kernel = if lane.kernel.is_empty() { &report.kernel } else { &lane.kernel };
    let tried = match &lane.explored {
        Some(explored) if lane.is_explored_only() => format!("{} states", explored.unique()),
        _ => format!(
            "{} of {} cuts, {} eligible, {} not eligible",
            lane.cuts, lane.planned, lane.counts.eligible, lane.counts.not_eligible
        ),
    };
    let why = lane.why.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    let (profile, seed) = (&lane.profile, report.seed);
    case.set_system_out(format!("kernel {kernel}, profile {profile}, seed {seed}: {tried}{why}"));
    case
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_verdict_has_its_place() {
        let text = render(&crate::report::testing::report()).unwrap();
        assert!(text.contains(r#"tests="6""#), "{text}");
        assert!(text.contains(r#"failures="1""#) && text.contains(r#"errors="2""#), "{text}");
        assert_eq!(text.matches("<skipped").count(), 2, "{text}");
        assert!(text.contains("RWF_ATOMIC: Operation not supported"));
        assert!(text.contains("torn: /dev/vda unit 3 (bytes 49152..65536), generation 7"));
        assert!(text.contains("its control was not caught"));
        assert!(text.contains("blocks ■■■□□□□□  (■ new, □ old)"), "{text}");
        crate::report::testing::check_junit(&text);
    }
}

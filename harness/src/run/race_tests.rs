//! Lanes with a race, on a simulated disk and guest.

#![allow(clippy::unwrap_used)]

use super::testing::{Bug, FakeLab};
use super::tests::{Ran, run_in, settings, verdicts};
use super::*;
use crate::oracle::Clause;
use crate::suite::{Lane, parse};

const SUITE: &str = r#"
    name = "s"
    [quick]
    cuts = 1
    time = "1h"
    [soak]
    cuts = 2
    time = "1h"
    [[lane]]
    name = "race"
    profile = "lb512"
    capacity = "1m"
    [lane.race]
    name = "holes"
    rounds = 3
    set = { op = "punch", deep = true, n = 7 }
    must-reach = ["met"]
    explore = []
    [[lane.target]]
    path = "{device}"
    unit = "1k"
    units = 8
    [lane.control]
    wrong = "stamp"
    caught-as = ["foreign"]
"#;

const KNOWN: &str = r#"
    [[known]]
    suite = "s"
    lane = "race"
    clauses = ["hung"]
    where = "a thread"
    about = "it hangs"
"#;

fn lanes() -> Vec<(String, Lane)> {
    parse(SUITE, "s").unwrap().lanes.into_iter().map(|lane| ("s".to_owned(), lane)).collect()
}

fn ran(bug: Bug, settings: &Settings) -> Ran {
    let mut lab = FakeLab::new(bug);
    lab.says_at_work = "WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2\n---[ end trace 0 ]---\n";
    run_in(lab, &lanes(), &Settings { cuts: 1, ..settings.clone() }, false)
}

fn one(bug: Bug) -> LaneReport {
    ran(bug, &settings()).result.unwrap().remove(0)
}

#[test]
fn a_race_that_meets_its_moment_and_finds_nothing_passes() {
    let report = one(Bug::None);
    assert_eq!(report.verdict, Verdict::Passed, "{report:#?}");
    let control = report.control.as_ref().unwrap();
    assert_eq!((control.caught, &*control.fault, &*control.text), (true, "stamp", "foreign"));
    let raced = report.raced.unwrap();
    assert_eq!((raced.rounds, raced.reached["met"]), (3, 2), "the control's do not count");
}

#[test]
fn nothing_is_proved_where_the_moment_never_came_or_the_control_was_not_caught() {
    for (bug, why) in [(Bug::RaceMisses, "never came to \"met\""), (Bug::RaceBlind, "not caught")] {
        let report = one(bug);
        assert_eq!(report.verdict, Verdict::Inconclusive);
        assert!(report.why.as_ref().unwrap().contains(why), "{report:#?}");
    }
}

#[test]
fn what_a_race_finds_is_red_unless_it_is_known() {
    let report = one(Bug::RaceFinds);
    assert_eq!(report.verdict, Verdict::Violated, "{report:#?}");
    let finding = &report.reports[0].judgement.findings[0];
    assert_eq!((finding.clause, finding.timeline.len()), (Clause::Hung, 2));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("known.toml");
    std::fs::write(&list, KNOWN).unwrap();
    let known = Known::load(&list.display().to_string()).unwrap();
    let settings = Settings { known, ..settings() };
    let reports = ran(Bug::RaceFinds, &settings).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::KnownRed]);
    assert_eq!(reports[0].why.as_deref(), Some("known: it hangs (a thread)"));
    assert!(!reports[0].reports.is_empty(), "it is shown all the same");
    let reports = ran(Bug::None, &settings).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Passed]);
    assert_eq!(reports[0].not_seen, ["it hangs (a thread)"]);
}

#[test]
fn a_kernel_that_complains_ends_the_race() {
    let report = one(Bug::RaceComplains);
    assert_eq!(report.verdict, Verdict::Violated, "{report:#?}");
    let finding = &report.reports[0].judgement.findings[0];
    assert_eq!(finding.clause, Clause::KernelWarning);
    assert!(finding.text.starts_with("WARNING: CPU: 0 PID: 9"), "{}", finding.text);
}

#[test]
fn a_race_is_written_as_it_should_be() {
    let error =
        |from: &str, to: &str| parse(&SUITE.replacen(from, to, 1), "s").unwrap_err().to_string();
    assert!(error("rounds = 3", "rounds = 0").contains("at least 1"));
    assert!(error("explore = []", "explore = [\"all\"]").contains("`explore`"));
    assert!(error("wrong = \"stamp\"", "").contains("a `fault` or a `wrong`"));
    assert!(error("unit = \"1k\"", "unit = \"256\"").contains("512"));
    assert!(error("name = \"holes\"", "poison = true").contains("poison"));
    let lane = lanes().remove(0).1;
    let race = lane.race(7, 9, "/dev/vdb", Some("stamp")).unwrap();
    assert_eq!((race.name.as_str(), race.rounds, race.mount), ("holes", 3, None));
    assert_eq!(race.workload.files[0].path, "/dev/vdb");
    assert_eq!(race.set.len(), 3);
}

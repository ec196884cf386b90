//! Guests whose kernels complain, in the simulation.

#![allow(clippy::unwrap_used)]

use crate::oracle::{Clause, OnWire};
use crate::report::findings;
use crate::run::testing::{Bug, FakeLab};
use crate::run::tests::{Ran, lanes, run_in, settings, verdicts};
use crate::run::{LaneReport, RunReport, Settings, Verdict};
use crate::suite::{Atomic, Expect};

const WARN: &str = "[    1.0] ------------[ cut here ]------------\n\
                    [    1.0] WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2\n\
                    [    1.0] ---[ end trace 0000000000000000 ]---\n";
const IO: &str = "[    1.0] I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1\n";
const PANIC: &str = "[    2.0] Kernel panic - not syncing: Fatal exception\n";
const STALL: &str = "[  130.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [agent:1]\n";
const HUNG: &str = "[  130.0] INFO: task agent:1 blocked for more than 120 seconds.\n";

fn ran(bug: Bug, says: &[(&'static str, &'static str)], settings: &Settings) -> Ran {
    let mut lab = FakeLab::new(bug);
    lab.says = says.to_vec();
    run_in(lab, &lanes(), settings, false)
}

/// (number of the cut, first line) of each.
fn complaints(lane: &LaneReport) -> Vec<(u32, String)> {
    findings(lane)
        .filter(|(_, f)| f.clause == Clause::KernelWarning)
        .map(|(cut, f)| (cut.number, f.text.lines().next().unwrap_or_default().to_owned()))
        .collect()
}

#[test]
fn a_warning_before_the_cut_is_a_finding_once_and_catches_no_control() {
    let ran = ran(Bug::DeafToFaults, &[("before", WARN)], &settings());
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    assert_eq!(RunReport::exit_code(&reports, &[]), 1);
    // The control's guest said it first; it is told by the first cut.
    let title = "WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2".to_owned();
    assert_eq!(complaints(&reports[0]), [(1, title)]);
    assert_eq!(complaints(&reports[1]), []);
    let why = reports[1].why.as_ref().unwrap();
    assert!(why.ends_with("complained as before: WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2"));
    assert!(reports.iter().all(|r| !r.control.as_ref().unwrap().caught));
    // Of four guests each, all but the first.
    assert_eq!((reports[0].complaints_again, reports[1].complaints_again), (3, 4));
    let kept = ran.dir.path().join("run/raw/cut-001/splat-1.txt");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), WARN);
}

#[test]
fn the_guest_that_formats_and_the_one_that_recovers_are_heard() {
    let other: &'static str = "BUG: sleeping function called from invalid context at mm/a.c:7\n";
    let reports =
        ran(Bug::None, &[("mkfs", WARN), ("cut-002/after", other)], &settings()).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    // The first lane is of a raw disk: nobody formats it.
    assert_eq!(complaints(&reports[0]).iter().map(|c| c.0).collect::<Vec<_>>(), [2]);
    assert_eq!(complaints(&reports[1]).iter().map(|c| c.0).collect::<Vec<_>>(), [1]);
    // After a control's cut the disk had lied, which excuses what is said of it, and no more.
    for (says, verdict) in [(IO, Verdict::Passed), (WARN, Verdict::Violated)] {
        let reports = ran(Bug::None, &[("control/after", says)], &settings()).result.unwrap();
        assert_eq!(verdicts(&reports), [verdict; 2], "{says}");
    }
    // Where the fault found nothing to break it had not.
    let reports = ran(Bug::DeafToFaults, &[("control/after", IO)], &settings()).result.unwrap();
    assert_eq!(complaints(&reports[0]).len(), 1);
}

#[test]
fn what_a_fault_does_on_purpose_is_no_finding_and_all_else_is() {
    let eio = Settings { faults: vec!["eio,p=0.1".parse().unwrap()], ..settings() };
    for (says, settings, verdict) in [
        (IO, &eio, Verdict::Inconclusive),
        (WARN, &eio, Verdict::Violated),
        (IO, &settings(), Verdict::Violated),
    ] {
        let reports = ran(Bug::None, &[("before", says)], settings).result.unwrap();
        assert_eq!(reports[0].verdict, verdict, "{says}");
    }
}

#[test]
fn an_expected_red_excuses_no_complaint() {
    let mut lanes = lanes();
    lanes[0].1.expect = Expect::Violated("bug 7".into());
    for (says, verdict) in [("fine\n", Verdict::KnownRed), (WARN, Verdict::Violated)] {
        let mut lab = FakeLab::new(Bug::Tears);
        lab.says = vec![("cut-001/before", says)];
        let reports = run_in(lab, &lanes[..1], &settings(), false).result.unwrap();
        assert_eq!(verdicts(&reports), [verdict]);
    }
}

#[test]
fn an_expected_complaint_is_of_a_request_and_no_news_is_lost_by_it() {
    let mut lanes = lanes();
    lanes[1] = lanes[0].clone();
    lanes[1].1.name = "raw-2".into();
    lanes[0].1.expect = Expect::Violated("bug 7".into());
    lanes[0].1.expect_as = vec![Clause::Torn, Clause::KernelWarning];
    for (says, first) in [(IO, Verdict::KnownRed), (WARN, Verdict::Violated)] {
        let mut lab = FakeLab::new(Bug::Tears);
        lab.says = vec![("cut-001/before", says)];
        let reports = run_in(lab, &lanes, &settings(), false).result.unwrap();
        assert_eq!(verdicts(&reports), [first, Verdict::Violated], "{says}");
        assert_eq!(complaints(&reports[0]).len(), 1, "{says}");
        // What the suite expects there is a finding here.
        assert_eq!(complaints(&reports[1]).len(), usize::from(says == IO), "{says}");
    }
}

#[test]
fn a_kernel_that_dies_at_work_is_one_more_cut_with_its_last_words() {
    let reports = ran(Bug::PanicsAtWork, &[("before", PANIC)], &settings()).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    // The other lane's died of the same, and each death of a cut is told.
    assert_eq!(complaints(&reports[0]).iter().map(|c| c.0).collect::<Vec<_>>(), [1, 1, 2, 3]);
    assert_eq!(complaints(&reports[1]).len(), 4);
    assert!(reports[1].why.as_ref().unwrap().contains("as before: Kernel panic"));
    let (cut, finding) = findings(&reports[0]).next().unwrap();
    assert_eq!((cut.number, finding.clause), (1, Clause::KernelWarning));
    assert!(finding.text.starts_with("Kernel panic - not syncing"), "{}", finding.text);
    assert!(cut.plan.contains("died or hung before") && !cut.fired, "{}", cut.plan);
    assert_eq!(reports[0].cuts, 3, "the disk is judged all the same");
}

#[test]
fn a_guest_that_hangs_is_a_finding_where_its_kernel_says_so() {
    let hangs = |says| {
        let mut lab = FakeLab::new(Bug::HangsAtWork);
        lab.says_at_work = says;
        run_in(lab, &lanes(), &settings(), false).result
    };
    let reports = hangs(HUNG).unwrap();
    assert_eq!(complaints(&reports[0])[0].1, HUNG.trim_end().split_once("] ").unwrap().1);
    // One that is held up is the host's fault, but not where it never goes on.
    let reports = hangs(STALL).unwrap();
    assert!(complaints(&reports[0])[0].1.contains("soft lockup"));
    let reports = ran(Bug::None, &[("before", STALL)], &settings()).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Passed; 2]);
    let error = hangs("").unwrap_err();
    assert!(error.to_string().contains("no answer within 300 s"), "{error}");
}

#[test]
fn a_death_without_new_words_is_a_finding() {
    // Nothing reached the console.
    let reports = ran(Bug::PanicsAtWork, &[], &settings()).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    let (cut, first) = &complaints(&reports[0])[0];
    assert_eq!((*cut, first.as_str()), (1, "the guest's kernel crashed: Fatal exception"));
    // What was said before there was work is not why it hangs.
    let error = ran(Bug::HangsAtWork, &[("before", HUNG)], &settings()).result.unwrap_err();
    assert!(error.to_string().contains("no answer within 300 s"), "{error}");
}

#[test]
fn a_panic_of_the_recovering_guest_is_heard_where_its_limits_are_told() {
    let mut lanes = lanes();
    lanes.truncate(1);
    lanes[0].1.atomic = Some(Atomic { on_wire: OnWire::default(), statx: None });
    let mut lab = FakeLab::new(Bug::PanicsOnLimitsAfter);
    lab.says = vec![("cut-001/after", PANIC)];
    let only = Settings { only: Some(1), ..settings() };
    let reports = run_in(lab, &lanes, &only, false).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated]);
    let why = reports[0].why.as_ref().unwrap();
    assert!(why.contains("Kernel panic") && why.contains("that recovered after the cut"), "{why}");
    // The one that shows them before any cut is heard, too.
    let mut lab = FakeLab::new(Bug::None);
    lab.says = vec![("limits/guest", WARN)];
    let ran = run_in(lab, &lanes, &only, false);
    assert_eq!(verdicts(&ran.result.unwrap()), [Verdict::Violated]);
    assert!(!ran.dir.path().join("run/raw/limits").exists());
}

#[test]
fn a_lane_that_is_not_supported_is_red_where_the_kernel_complains() {
    let reports = ran(Bug::Unsupported, &[("before", WARN)], &settings()).result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    assert!(reports[1].why.as_ref().unwrap().contains("as before"), "{:?}", reports[1].why);
    assert!(reports[0].why.as_ref().unwrap().contains("fs/a.c:1"), "{:?}", reports[0].why);
}

//! The runner on a simulated disk and guest.

#![allow(clippy::unwrap_used)]

use super::testing::{Bug, FakeLab};
use super::*;
use crate::oracle::Clause;
use crate::oracle::OnWire;
use crate::suite::{Atomic, Bound, Exercise, Expect, Lane, Statx, load, parse};

const SUITE: &str = r#"
    name = "s"
    [quick]
    cuts = 3
    time = "1h"
    [soak]
    cuts = 5
    time = "1h"
    [[lane]]
    name = "raw"
    profile = "req64k"
    capacity = "1m"
    writes = 60
    sync-every = 8
    exercise = ["whole", "durable"]
    [[lane.target]]
    path = "{device}"
    unit = "16k"
    units = 8
    flags = ["direct", "direct dsync"]
    [lane.control]
    fault = "tear-atomic"
    place = "in-flight"
    caught-as = ["torn"]
    [[lane]]
    name = "fs"
    profile = "lb512"
    capacity = "1m"
    mkfs = ["mkfs.fake", "{device}"]
    fstype = "fake"
    writes = 60
    exercise = ["durable"]
    [[lane.target]]
    path = "{mount}/a"
    unit = "16k"
    units = 8
    flags = ["direct atomic dsync"]
    [lane.control]
    fault = "ignore-flush"
    place = "acknowledged"
    caught-as = ["lost"]
"#;

pub(super) struct Ran {
    pub(super) result: Result<Vec<LaneReport>, RunError>,
    pub(super) lab: FakeLab,
    pub(super) dir: tempfile::TempDir,
}

pub(super) fn lanes() -> Vec<(String, Lane)> {
    parse(SUITE, "s").unwrap().lanes.into_iter().map(|lane| ("s".to_owned(), lane)).collect()
}

pub(super) fn settings() -> Settings {
    Settings {
        known: Default::default(),
        seed: 1,
        cuts: 3,
        time: None,
        only: None,
        faults: Vec::new(),
        front_end: None,
        profile: None,
        soak: false,
        keep: false,
        explore: Vec::new(),
        given: BTreeMap::new(),
        guest: GuestArgs::default(),
    }
}

fn run_with(bug: Bug, lanes: &[(String, Lane)], settings: &Settings, stop: bool) -> Ran {
    run_in(FakeLab::new(bug), lanes, settings, stop)
}

pub(super) fn run_in(
    mut lab: FakeLab,
    lanes: &[(String, Lane)],
    settings: &Settings,
    stop: bool,
) -> Ran {
    struct Silent;
    impl Progress for Silent {}
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(Some(&dir.path().join("run")), settings.seed).unwrap();
    let interrupted = AtomicBool::new(stop);
    let mut done = Vec::new();
    let ran = run_lanes(&mut lab, lanes, settings, &folder, &interrupted, &mut Silent, &mut done);
    let result = ran.map(|()| done);
    let ahead = lab.expected.borrow_mut().take();
    assert!(ahead.is_none_or(|dir| dir.is_dir()), "a guest lost its folder");
    assert_eq!(lab.alive(), 0, "everything that was started has ended");
    Ran { result, lab, dir }
}

fn run(bug: Bug) -> Vec<LaneReport> {
    run_with(bug, &lanes(), &settings(), false).result.unwrap()
}

pub(super) fn verdicts(reports: &[LaneReport]) -> Vec<Verdict> {
    reports.iter().map(|r| r.verdict).collect()
}

#[test]
fn a_good_disk_passes_and_its_controls_are_caught() {
    let ran = run_with(Bug::None, &lanes(), &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Passed; 2], "{reports:#?}");
    for report in &reports {
        assert_eq!(report.cuts, 3);
        assert!(report.control.as_ref().unwrap().caught);
        assert!(report.counts.durable > 0 && report.reports.is_empty());
    }
    assert!(reports[0].counts.eligible > 0 && reports[0].counts.at_risk > 0);
    assert_eq!(RunReport::exit_code(&reports, &[]), 0);
    assert!(!ran.dir.path().join("run/raw/cut-001").exists(), "what passed is not kept");
    assert!(ran.lab.asked.borrow().iter().any(|c| c == "Exec"), "the file system was made");
}

#[test]
fn a_disk_that_tears_is_named_with_the_write() {
    let ran = run_with(Bug::Tears, &lanes()[..1], &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Violated]);
    assert_eq!(RunReport::exit_code(&reports, &[]), 1);
    let cut = &reports[0].reports[0];
    let finding = &cut.judgement.findings[0];
    assert_eq!(finding.clause, Clause::Torn);
    assert_eq!((finding.path.as_str(), finding.file), ("/dev/vda", 1));
    assert!(cut.again.iter().any(|c| c.contains("tornblk repro ")), "{:?}", cut.again);
    let again = cut.again.last().unwrap();
    assert!(again.contains(&format!("--lane raw --seed 1 --crashes 3 --cut {}", cut.number)));
    let folder = cut.folder.as_ref().unwrap();
    assert!(folder.join("verdict.json").is_file() && folder.join("evidence.json").is_file());
}

#[test]
fn a_control_that_is_not_caught_proves_nothing() {
    let reports = run(Bug::DeafToFaults);
    assert_eq!(verdicts(&reports), [Verdict::Inconclusive; 2]);
    assert!(reports[0].why.as_ref().unwrap().contains("found nothing to break"));
    assert_eq!(RunReport::exit_code(&reports, &[]), 3);
}

#[test]
fn a_lane_that_puts_nothing_to_the_test_is_inconclusive() {
    let mut lanes = lanes();
    // A control that needs no eligible write, so that only the count is missing.
    lanes[0].1.control = lanes[1].1.control.clone();
    let ran = run_with(Bug::Splits, &lanes[..1], &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Inconclusive], "{reports:#?}");
    assert!(reports[0].why.as_ref().unwrap().contains("no write had to be whole"));
    assert!(reports[0].counts.not_eligible > 0 && reports[0].counts.eligible == 0);
}

#[test]
fn what_the_kernel_cannot_do_is_unsupported_in_its_own_words() {
    let reports = run(Bug::Unsupported);
    assert_eq!(verdicts(&reports), [Verdict::Unsupported; 2]);
    assert_eq!(reports[0].why.as_deref(), Some("RWF_ATOMIC: not supported"));
    assert_eq!(RunReport::exit_code(&reports, &[]), 3, "all of them: nothing was tried");
}

#[test]
fn a_file_system_that_does_not_come_back_is_a_violation() {
    for (bug, says) in [
        (Bug::Unmountable, "Structure needs cleaning"),
        (Bug::PanicsOnMount, "kernel BUG at fs/xfs"),
        (Bug::HangsOnMount, "no answer within 300 s"),
        (Bug::PanicsOnReadback, "kernel BUG at fs/iomap"),
        (Bug::HangsOnReadback, "no answer within 300 s"),
        (Bug::FailsReadback, "Is a directory"),
    ] {
        let ran = run_with(bug, &lanes()[1..], &settings(), false);
        let reports = ran.result.unwrap();
        assert_eq!(verdicts(&reports), [Verdict::Violated]);
        let finding = &reports[0].reports.last().unwrap().judgement.findings[0];
        assert_eq!(finding.clause, Clause::Unrecoverable);
        assert!(finding.text.contains(says), "{}", finding.text);
    }
}

#[test]
fn a_guest_that_hangs_at_once_stops_the_run_and_later_only_its_lane() {
    let ran = run_with(Bug::Hangs, &lanes(), &settings(), false);
    assert!(ran.result.unwrap_err().to_string().contains("did not answer"));
    let ran = run_with(Bug::MkfsFails, &lanes(), &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Passed, Verdict::Error]);
    assert!(reports[1].why.as_ref().unwrap().contains("too small"), "{:?}", reports[1].why);
    assert_eq!(RunReport::exit_code(&reports, &[]), 2);
}

#[test]
fn what_was_read_is_kept_even_where_it_cannot_be_judged() {
    let ran = run_with(Bug::NoRecording, &lanes()[..1], &settings(), false);
    assert!(ran.result.unwrap_err().to_string().contains("cannot be read"));
    assert!(ran.dir.path().join("run/raw/control/evidence.json").is_file());
}

#[test]
fn a_cut_whose_moment_never_came_is_told_as_one_at_rest() {
    let settings = Settings { keep: true, cuts: 8, ..settings() };
    let ran = run_with(Bug::NeverFires, &lanes()[..1], &settings, false);
    let report = ran.result.unwrap().swap_remove(0);
    let cuts: Vec<_> = report.reports.iter().filter(|c| c.number > 0).collect();
    assert_eq!(report.at_rest as usize, cuts.iter().filter(|c| !c.fired).count());
    assert!(report.at_rest > 0 && report.cuts == 8);
    assert!(cuts.iter().all(|c| c.fired != c.plan.contains("at rest")), "{cuts:#?}");
}

#[test]
fn a_cut_that_comes_while_it_is_disarmed_is_the_cut() {
    let ran = run_with(Bug::FiresAtDisarm, &lanes()[..1], &settings(), false);
    let report = ran.result.unwrap().swap_remove(0);
    assert_eq!((report.cuts, report.at_rest), (3, 0), "{report:#?}");
}

#[test]
fn the_commands_that_show_it_again_name_the_same_guest_and_suite() {
    let guest = GuestArgs {
        kernel: Some("6.12".into()),
        modules: Some("/lib/my modules".into()),
        qemu: Some("/opt/qemu".into()),
        append: Some("slub_debug=FZP debug".into()),
    };
    let given = [("s".to_owned(), "suites/s.toml".to_owned())].into();
    let settings = Settings { given, guest: guest.clone(), ..settings() };
    let ran = run_with(Bug::Tears, &lanes()[..1], &settings, false);
    let report = ran.result.unwrap().swap_remove(0);
    let cut = &report.reports[0];
    let run = cut.again.last().unwrap();
    assert!(run.starts_with("tornblk run suites/s.toml --lane raw "), "{run}");
    let options = " --kernel 6.12 --modules '/lib/my modules' --qemu /opt/qemu \
                   --append 'slub_debug=FZP debug'";
    assert!(run.ends_with(options), "{run}");
    let evidence = std::fs::read(cut.folder.as_ref().unwrap().join("evidence.json")).unwrap();
    let evidence: serde_json::Value = serde_json::from_slice(&evidence).unwrap();
    assert_eq!(serde_json::from_value::<GuestArgs>(evidence["guest"].clone()).unwrap(), guest);
    // repro takes them from there, unless it is told others.
    assert_eq!(GuestArgs::default().or(guest.clone()), guest);
    let other = GuestArgs { kernel: Some("7.2".into()), ..GuestArgs::default() };
    let both = GuestArgs { modules: None, kernel: Some("7.2".into()), ..guest.clone() };
    assert_eq!(other.or(guest), both);
}

#[test]
fn an_interrupt_ends_everything() {
    let ran = run_with(Bug::None, &lanes(), &settings(), true);
    assert!(matches!(ran.result, Err(RunError::Interrupted)));
}

#[test]
fn a_fault_of_the_users_is_found_on_the_same_write_each_time() {
    let settings = Settings { faults: vec!["tear-atomic".parse().unwrap()], cuts: 2, ..settings() };
    let findings = || {
        let ran = run_with(Bug::None, &lanes(), &settings, false);
        let reports = ran.result.unwrap();
        assert_eq!(verdicts(&reports), [Verdict::Violated, Verdict::Inconclusive]);
        assert!(reports[1].why.as_ref().unwrap().contains("nothing to break"));
        assert!(reports[0].control.is_none());
        assert_eq!(RunReport::exit_code(&reports, &[]), 1, "1 before 3");
        let cuts = &reports[0].reports;
        let findings = cuts.iter().flat_map(|c| &c.judgement.findings);
        findings.map(|f| (f.clause, f.file, f.unit, f.generation)).collect::<Vec<_>>()
    };
    let first = findings();
    assert_eq!(first.len(), 2);
    assert!(first.iter().all(|f| f.0 == Clause::Torn));
    assert_eq!(first, findings());
}

#[test]
fn an_expected_red_is_known_and_an_unexpected_green_is_told() {
    let mut lanes = lanes();
    lanes.truncate(1);
    lanes[0].1.expect = crate::suite::Expect::Violated("bug 7".into());
    let ran = run_with(Bug::Tears, &lanes, &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::KnownRed]);
    assert_eq!(RunReport::exit_code(&reports, &[]), 0);
    let ran = run_with(Bug::None, &lanes, &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), [Verdict::Inconclusive]);
    assert!(reports[0].why.as_ref().unwrap().contains("expects it to be violated"));
}

#[test]
fn one_cut_alone_can_be_run_again() {
    let settings = Settings { only: Some(2), ..settings() };
    let ran = run_with(Bug::None, &lanes()[..1], &settings, false);
    let report = ran.result.unwrap().swap_remove(0);
    assert_eq!((report.verdict, report.cuts, report.planned), (Verdict::Passed, 1, 1));
    assert_eq!(report.reports[0].number, 2);
    assert!(report.control.is_none());
}

#[test]
fn no_cut_begins_after_the_time_is_over() {
    let settings = Settings { time: Some(Duration::ZERO), ..settings() };
    let cuts = |exercise: &[Exercise]| {
        let mut lanes = lanes();
        lanes[0].1.exercise = exercise.to_vec();
        let ran = run_with(Bug::None, &lanes[..1], &settings, false);
        let report = ran.result.unwrap().swap_remove(0);
        (report.cuts, report.planned)
    };
    assert_eq!(cuts(&[Exercise::Whole]), (1, 3), "the control and one cut are always made");
    assert_eq!(cuts(&[Exercise::Whole, Exercise::Durable]), (2, 3), "and more, to prove something");
    assert_eq!(cuts(&[Exercise::Merged]), (3, 3), "but never more than planned");
}

#[test]
fn the_built_in_suites_run_in_the_simulation() {
    let lanes: Vec<_> = load("direct-atomic").unwrap().lanes;
    // The simulated kernel has no bug that a lane is red for, and merges nothing.
    let green = lanes
        .into_iter()
        .filter(|lane| lane.expect == Expect::Passed && !lane.exercise.contains(&Exercise::Merged));
    let lanes: Vec<_> = green.map(|lane| ("direct-atomic".to_owned(), lane)).collect();
    let ran = run_with(Bug::None, &lanes, &settings(), false);
    let reports = ran.result.unwrap();
    assert_eq!(verdicts(&reports), vec![Verdict::Passed; lanes.len()], "{reports:#?}");
}

/// Lanes on a disk whose limits the guest's kernel must show: raw, and a file system.
fn atomic_lanes() -> Vec<(String, Lane)> {
    let mut lanes = lanes();
    for (_, lane) in &mut lanes {
        lane.profile = "req64k".into();
        lane.atomic = Some(Atomic { on_wire: OnWire::Atomic, statx: None });
        lane.targets[0].flags.iter_mut().for_each(|flags| flags.atomic = true);
        lane.exercise.push(Exercise::Atomic);
    }
    let statx = Statx { unit_min: 4096, unit_max: Bound::Disk, unit_max_opt: None };
    lanes[1].1.atomic.as_mut().unwrap().statx = Some(statx);
    lanes
}

fn run_atomic(bug: Bug) -> Vec<LaneReport> {
    run_with(bug, &atomic_lanes(), &settings(), false).result.unwrap()
}

fn clauses(report: &LaneReport) -> Vec<Clause> {
    let mut clauses: Vec<Clause> =
        report.reports.iter().flat_map(|c| &c.judgement.findings).map(|f| f.clause).collect();
    clauses.sort();
    clauses.dedup();
    clauses
}

#[test]
fn a_kernel_that_knows_the_limits_and_keeps_to_them_passes() {
    let reports = run_atomic(Bug::None);
    assert_eq!(verdicts(&reports), [Verdict::Passed; 2], "{reports:#?}");
    assert!(reports.iter().all(|r| r.counts.atomic > 0));
}

#[test]
fn a_kernel_that_shows_other_limits_is_violated_once() {
    let reports = run_atomic(Bug::ShowsOtherLimits);
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    assert!(reports.iter().all(|r| clauses(r) == [Clause::Limits]), "{reports:#?}");
    assert_eq!(reports[1].violations, 1, "it is looked at once");
    let again = reports[1].reports[0].again.last().unwrap();
    assert!(again.ends_with("--cut 1"), "{again}");
}

#[test]
fn what_goes_beyond_the_limits_must_be_refused() {
    let reports = run_atomic(Bug::TakesAnything);
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    assert!(reports.iter().all(|r| clauses(r) == [Clause::Accepted]), "{reports:#?}");
}

#[test]
fn an_atomic_write_in_more_or_less_than_one_request_is_named() {
    let reports = run_atomic(Bug::Splits);
    assert!(reports.iter().all(|r| r.verdict == Verdict::Violated), "{reports:#?}");
    assert!(reports.iter().all(|r| clauses(r).contains(&Clause::NotAtomic)), "{reports:#?}");
}

#[test]
fn what_kernel_or_image_cannot_do_is_unsupported_in_their_words() {
    // A fault of the image is none of the kernel's.
    let ran = run_with(Bug::NoGuestModule, &atomic_lanes(), &settings(), false);
    assert!(ran.result.unwrap_err().to_string().contains("the image has no module"));
    let reports = run_atomic(Bug::NoAtomicFiles);
    assert_eq!(verdicts(&reports), [Verdict::Passed, Verdict::Unsupported]);
    assert!(reports[1].why.as_ref().unwrap().contains("unit_max 0"), "{:?}", reports[1].why);
}

#[test]
fn a_write_that_statx_says_is_taken_must_be_taken() {
    let reports = run_atomic(Bug::Unsupported);
    assert_eq!(verdicts(&reports), [Verdict::Violated; 2]);
    assert!(reports.iter().all(|r| clauses(r) == [Clause::Limits]), "{reports:#?}");
    // Where nobody asked what it says, it is what it says itself.
    assert_eq!(verdicts(&run(Bug::Unsupported)), [Verdict::Unsupported; 2]);
}

#[test]
fn wrong_limits_count_even_where_the_lane_cannot_go_on() {
    // 32 KiB are shown of 64, and the lane writes 64.
    let mut lanes = atomic_lanes();
    lanes.truncate(1);
    (lanes[0].1.targets[0].unit, lanes[0].1.capacity) = (65536, 2 << 20);
    let ran = run_with(Bug::ShowsOtherLimits, &lanes, &settings(), false);
    let report = ran.result.unwrap().swap_remove(0);
    assert_eq!((report.verdict, report.cuts), (Verdict::Violated, 0), "{report:#?}");
    assert_eq!(clauses(&report), [Clause::Limits]);
}

#[test]
fn a_lane_that_is_to_be_merged_must_have_been() {
    let mut lanes = atomic_lanes();
    lanes[0].1.exercise = vec![Exercise::Merged];
    let ran = run_with(Bug::None, &lanes[..1], &settings(), false);
    let report = ran.result.unwrap().swap_remove(0);
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert!(report.why.unwrap().contains("nothing was merged"));
}

#[test]
fn a_lane_that_is_there_to_survive_a_fault_passes_with_it_where_it_was_there() {
    let faults: Vec<Fault> = vec!["ignore-flush".parse().unwrap()];
    let settings = Settings { faults: faults.clone(), ..settings() };
    let mut lane = lanes().swap_remove(0);
    lane.1.survives = vec![faults[0].kind];
    let verdict = |bug| {
        let ran = run_with(bug, std::slice::from_ref(&lane), &settings, false);
        ran.result.unwrap().swap_remove(0).verdict
    };
    assert_eq!(verdict(Bug::None), Verdict::Violated);
    assert_eq!(verdict(Bug::FaultsHarmNobody), Verdict::Passed);
    assert_eq!(verdict(Bug::DeafToFaults), Verdict::Inconclusive);
}

#[test]
fn exit_codes_rank() {
    let lane =
        |verdict| LaneReport { verdict, ..crate::report::testing::report().lanes[0].clone() };
    let code = |verdicts: &[Verdict]| {
        RunReport::exit_code(&verdicts.iter().map(|v| lane(*v)).collect::<Vec<_>>(), &[])
    };
    use Verdict::*;
    assert_eq!(code(&[Passed, KnownRed, Unsupported]), 0);
    assert_eq!(code(&[Passed, Inconclusive, Error, Violated]), 1);
    assert_eq!(code(&[Passed, Inconclusive, Error]), 2);
    assert_eq!(code(&[Passed, Inconclusive]), 3);
    assert_eq!(code(&[Unsupported]), 3);
    assert_eq!(code(&[]), 3);
    let error = Some("no such kernel".to_owned());
    let missing = [KernelRun { given: "9.9".into(), release: String::new(), error }];
    assert_eq!(RunReport::exit_code(&[lane(Passed)], &missing), 2);
    assert_eq!(RunReport::exit_code(&[lane(Violated)], &missing), 1);
}

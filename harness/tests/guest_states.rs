//! States of recorded file systems, judged in a guest that stays booted: honest ones pass, a disk
//! that lies is found out, a guest that dies is replaced, and nothing is left when it is stopped.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tornblk::device::find_tornblkd;
use tornblk::explore::bundle::{Judge, Meta, Needed, pack};
use tornblk::explore::guest::{Case, GuestSettings, GuestVerifier, NESTED};
use tornblk::explore::{
    ByName, ExploreError, Failure, Job, RecordingIds, Settings, Sink, StateText, Subject, Summary,
    Verdict, Verifier, explore, named,
};
use tornblk::oracle::{Clause, Finding, Recovery};
use tornblk::run::RealLab;
use tornblk::vm::{Accel, Qemu};
use tornblk_agent::payload::{self, Read};
use tornblk_model::crash::{History, Profile, StateName, Strategy};
use tornblk_model::event::{Event, Negotiation, Op, Seq, Submit};
use tornblk_model::recording::{Completion, NewRecording, OuterState, Reader, Trust, Writer};

/// A recorded lane.
struct Recorded {
    reader: Arc<Reader>,
    events: Vec<(Seq, Event)>,
    history: History,
    /// The state that a cut with `ignore-flush` left.
    lied: StateName,
}

fn record(lane: &str, dir: &Path) -> Recorded {
    let out = dir.join(lane);
    let json = dir.join(format!("{lane}.json"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_tornblk"));
    run.args(["run", "--lane", lane, "--crashes", "1", "--seed", "1", "--time", "10m"]);
    run.args(["--fault", "ignore-flush", "--out"]).arg(&out).arg("--json").arg(&json);
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let lied = report["lanes"][0]["reports"][0]["state"].as_str().unwrap().to_owned();
    let recording = out.join(lane).join("cut-001/disk.recording");
    let reader = Arc::new(Reader::open(&recording).unwrap());
    let events: Vec<_> = reader.events().map(Result::unwrap).collect();
    let history = History::new(reader.header().disk.clone(), events.iter().cloned()).unwrap();
    Recorded { reader, events, history, lied: StateName(lied) }
}

impl Recorded {
    /// The blocks that writes of the workload's units carried, and the writes, the last first.
    fn unit_blocks(&self, case: &Case<'_>) -> Vec<(u64, Seq)> {
        let disk = self.history.disk();
        let mut found = Vec::new();
        for (seq, event) in self.events.iter().rev() {
            let Event::Submit(submit) = event else { continue };
            let Op::Write { offset, len, payload, .. } = &submit.op else { continue };
            let len = self.reader.payload_len(*offset, *len) as usize;
            let bytes = self.reader.payload(payload, len).unwrap();
            for (block, bytes) in
                (offset / u64::from(disk.lb_size)..).zip(bytes.chunks(disk.lb_size as usize))
            {
                let of = payload::read(&bytes[..payload::SECTOR]);
                if matches!(of, Read::Stamped(s) if s.nonce == case.subject.workload.nonce) {
                    found.push((block, *seq));
                }
            }
        }
        found
    }

    fn case(&self) -> Case<'_> {
        let subject = Subject::read(&self.reader).unwrap().unwrap();
        Case::new(&self.reader, None, subject, &self.events, &self.history).unwrap()
    }

    fn explore(&self, case: &Case<'_>, guests: &GuestSettings, states: u64) -> (Summary, Told) {
        let ids = RecordingIds::new(Arc::clone(&self.reader), None, Trust::Unchanged).unwrap();
        let promises = case.ledgers().promises();
        let settings = Settings {
            profiles: vec![case.subject.volume.profile.parse().unwrap()],
            strategies: vec![Strategy::Prefix, Strategy::Random { seed: 1, count: 4 }],
            states: Some(states),
            threads: 2,
            ..Settings::default()
        };
        let job = Job {
            history: &self.history,
            ids: &ids,
            promises: &promises,
            explain: &(),
            settings: &settings,
            before: None,
        };
        let make = |n: usize| {
            let verifier = GuestVerifier::new(case, guests, n)?;
            Ok(Box::new(verifier) as Box<dyn Verifier + '_>)
        };
        let mut told = Told::default();
        let summary = explore(&job, &make, &mut told, &guests.stop).unwrap();
        (summary, told)
    }
}

#[derive(Debug, Default)]
struct Told {
    failed: Vec<Failure>,
    unsure: Vec<String>,
}

impl Sink for Told {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        self.failed.push(failure.clone());
        Ok(())
    }

    fn unsure(&mut self, state: &StateText, why: &str) {
        self.unsure.push(format!("{state}: {why}"));
    }
}

fn lab(stop: &Arc<AtomicBool>) -> RealLab {
    if tornblk_image::agent::find(None).is_err() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let built = Command::new(root.join("images/build-agent")).arg("--quiet").status().unwrap();
        assert!(built.success());
    }
    let request = tornblk_image::Request::new(tornblk_image::DEFAULT_KERNEL.parse().unwrap());
    let image = tornblk_image::build(&request, &mut |_| {}).unwrap();
    let qemu = Qemu::find().unwrap();
    let accel = Accel::probe(&qemu, &image, Some(&image.dir));
    RealLab::new(find_tornblkd().unwrap(), image, qemu, accel, 1).until(Arc::clone(stop))
}

fn guests(lab: &RealLab, dir: PathBuf) -> GuestSettings {
    std::fs::create_dir_all(&dir).unwrap();
    GuestSettings::new(lab, dir, Arc::new(AtomicBool::new(false)))
}

#[test]
fn states_of_file_systems_are_judged_in_a_guest() {
    let stop = Arc::new(AtomicBool::new(false));
    let lab = lab(&stop);
    let dir = tempfile::tempdir().unwrap();
    let xfs = record("xfs-cow-lb512", dir.path());
    let case = xfs.case();
    let settings = GuestSettings { fsck_every: 10, ..guests(&lab, dir.path().join("xfs")) };
    honest_states_pass(&xfs, &case, &settings);
    a_lie_is_found(&xfs, &case, &settings);
    a_guest_that_dies_is_replaced(&xfs, &case, &settings);
    a_device_that_dies_is_replaced(&xfs, &case, &settings);
    let ext4 = record("buffered-ext4", dir.path());
    let case = ext4.case();
    let settings = GuestSettings { fsck_every: 10, ..guests(&lab, dir.path().join("ext4")) };
    honest_states_pass(&ext4, &case, &settings);
    a_lie_is_found(&ext4, &case, &settings);
    recoveries_are_explored(&ext4, &case, &settings);
    a_recovery_that_fails_is_in_its_bundle(&ext4, &case, &settings);
    garbage_is_judged_by_where_it_lies(&ext4, &case, &settings);
    nothing_is_left_when_it_is_stopped(&ext4, &case, &guests(&lab, dir.path().join("stopped")));
    let xfs = record("buffered-xfs-4k", dir.path());
    let case = xfs.case();
    let settings = guests(&lab, dir.path().join("buffered-xfs"));
    garbage_is_judged_by_where_it_lies(&xfs, &case, &settings);
}

fn honest_states_pass(recorded: &Recorded, case: &Case<'_>, settings: &GuestSettings) {
    let (summary, told) = recorded.explore(case, settings, 24);
    // Some of them more than once, where they were met under more promises later.
    assert_eq!(summary.counts.unique, 24, "{summary:?}");
    assert!(told.failed.is_empty() && told.unsure.is_empty(), "{told:?}");
}

/// What the device resolved with a fault is found here, and its honest twin is not.
fn a_lie_is_found(recorded: &Recorded, case: &Case<'_>, settings: &GuestSettings) {
    let mut verifier = GuestVerifier::new(case, settings, 0).unwrap();
    let verdict = judge(recorded, case, &recorded.lied, &mut verifier).unwrap();
    let Verdict::Failed(findings) = verdict else { panic!("{}: {verdict:?}", recorded.lied) };
    let lost = [Clause::Lost, Clause::Stale, Clause::Unrecoverable];
    assert!(findings.iter().any(|f| lost.contains(&f.clause)), "{findings:?}");
    let honest = honest(recorded, "none");
    let verdict = judge(recorded, case, &honest, &mut verifier).unwrap();
    assert_eq!(verdict, Verdict::Passed, "{honest}");
}

/// In a block of a file, where a volatile write was and its profile lets the disk: no finding. The
/// same under a profile that has none, and where the write was flushed long ago: bytes that nobody
/// wrote.
fn garbage_is_judged_by_where_it_lies(
    recorded: &Recorded,
    case: &Case<'_>,
    settings: &GuestSettings,
) {
    let mut verifier = GuestVerifier::new(case, settings, 0).unwrap();
    let mut judged = |name: &str| {
        let name = StateName(name.to_owned());
        let legal = recorded.history.violations(&name).unwrap().is_empty();
        let verdict = judge(recorded, case, &name, &mut verifier).unwrap();
        let foreign = match &verdict {
            Verdict::Failed(findings) => findings.iter().any(|f| f.clause == Clause::Foreign),
            _ => false,
        };
        (legal, verdict, foreign)
    };
    let garbage: Profile = "garbage".parse().unwrap();
    let writes = recorded.unit_blocks(case);
    let mut seen = false;
    for after in recorded.history.points(false).into_iter().rev() {
        let may = recorded.history.cut(after, &garbage).unwrap().may_be_anything();
        let Some((block, _)) =
            writes.iter().find(|(b, w)| may.get(b).is_some_and(|of| of == &[*w]))
        else {
            continue;
        };
        let (legal, _, foreign) = judged(&format!("lb512/p{after}:all;g{block}=1f"));
        assert!(!legal);
        if !foreign {
            // No file has this block at this point.
            continue;
        }
        let name = format!("garbage/p{after}:all;g{block}=1f");
        let (legal, verdict, _) = judged(&name);
        assert!(legal && verdict == Verdict::Passed, "{name}: {verdict:?}");
        // Flushed by the last crash point, if nothing was written there since.
        let last = *recorded.history.points(false).last().unwrap();
        let may = recorded.history.cut(last, &garbage).unwrap().may_be_anything();
        let stable = writes.iter().rev().map(|(b, _)| *b).filter(|b| !may.contains_key(b));
        let found = stable.take(40).any(|b| {
            let (legal, _, foreign) = judged(&format!("garbage/p{last}:all;g{b}=1f"));
            !legal && foreign
        });
        assert!(found, "garbage in no flushed block of a file was found");
        seen = true;
        break;
    }
    assert!(seen, "no volatile write of a file was seen at any crash point");
}

/// Judges a state as `tornblk repro` does.
fn judge(
    recorded: &Recorded,
    case: &Case<'_>,
    name: &StateName,
    verifier: &mut GuestVerifier<'_>,
) -> Result<Verdict, ExploreError> {
    let ids = RecordingIds::new(Arc::clone(&recorded.reader), None, Trust::Unchanged).unwrap();
    let promises = case.ledgers().promises();
    let wanted = ByName { name, recovery: None };
    named(&recorded.history, &ids, &promises, &wanted, verifier)
}

/// The state at the same crash point as the lie, with everything kept that may be, or nothing.
fn honest(recorded: &Recorded, choice: &str) -> StateName {
    let (point, _) = recorded.lied.0.split_once(':').unwrap();
    StateName(format!("{point}:{choice}"))
}

fn a_guest_that_dies_is_replaced(recorded: &Recorded, case: &Case<'_>, settings: &GuestSettings) {
    let name = honest(recorded, "all");
    let mut verifier = GuestVerifier::new(case, settings, 0).unwrap();
    assert_eq!(judge(recorded, case, &name, &mut verifier).unwrap(), Verdict::Passed);
    let first = verifier.seat().pid().unwrap();
    // In a moment, while the next states are judged.
    let panic = "(sleep 0.02; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &";
    verifier.seat().exec(&["/bin/sh", "-c", panic]).unwrap();
    for _ in 0..100 {
        assert_eq!(judge(recorded, case, &name, &mut verifier).unwrap(), Verdict::Passed);
        if verifier.guests() == 2 {
            break;
        }
    }
    assert_eq!(verifier.guests(), 2, "the guest died and was replaced");
    assert!(!PathBuf::from(format!("/proc/{first}")).exists());
}

/// Some times; then it is said.
fn a_device_that_dies_is_replaced(recorded: &Recorded, case: &Case<'_>, settings: &GuestSettings) {
    let name = honest(recorded, "all");
    let mut verifier = GuestVerifier::new(case, settings, 0).unwrap();
    assert_eq!(judge(recorded, case, &name, &mut verifier).unwrap(), Verdict::Passed);
    for nth in 1..=4 {
        let pid = verifier.seat().device().pid();
        let kill = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(kill.success());
        let verdict = judge(recorded, case, &name, &mut verifier);
        if nth == 4 {
            let error = verdict.unwrap_err().to_string();
            assert!(error.contains("tornblkd ended (signal: 9"), "{error}");
            return;
        }
        assert_eq!(verdict.unwrap(), Verdict::Passed, "{nth}");
        assert_ne!(verifier.seat().device().pid(), pid);
    }
}

fn recoveries_are_explored(recorded: &Recorded, case: &Case<'_>, settings: &GuestSettings) {
    let settings = GuestSettings { nested: 3, seed: 7, ..settings.clone() };
    let name = honest(recorded, "none");
    let mut verifier = GuestVerifier::new(case, &settings, 0).unwrap();
    assert_eq!(judge(recorded, case, &name, &mut verifier).unwrap(), Verdict::Passed);
    assert_eq!(verifier.watch().states, 4, "the state, and three of its recovery");
    let shown = verifier.seat().device().client().status().unwrap().state;
    let (outer, inner) = shown.split_once(NESTED).unwrap();
    assert_eq!(outer, name.0);
    assert!(inner.contains("/p"), "{inner}");
    assert_eq!(verifier.guests(), 1);
}

/// A "recovery" that wipes the superblock, in a bundle of its own, is judged again from that alone;
/// the same one before it wrote anything is not to blame.
fn a_recovery_that_fails_is_in_its_bundle(
    recorded: &Recorded,
    case: &Case<'_>,
    settings: &GuestSettings,
) {
    let header = recorded.reader.header();
    let outer = honest(recorded, "none");
    let file = settings.dir.join("wipes.recording");
    let on = OuterState { recording: recorded.reader.path().to_owned(), state: outer.0.clone() };
    let new = NewRecording {
        on: Some(on),
        ..NewRecording::new(header.disk.clone(), header.base.clone(), serde_json::Value::Null)
    };
    let writer = Writer::create(&file, new).unwrap();
    let negotiation =
        Negotiation { flush_offered: true, flush: true, config_wce: false, writeback: true };
    let before = writer.append(&Event::Negotiate(negotiation)).unwrap();
    let payload = writer.payload(&[0; 8192]).unwrap();
    let op = Op::Write { offset: 0, len: 8192, fua: false, atomic: false, payload };
    let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op };
    let write = writer.append(&Event::Submit(submit)).unwrap();
    let after = writer.complete(&[(0, 1)], Completion::ok(write)).unwrap();
    drop(writer);
    let profile = &case.subject.volume.profile;
    for (at, code, says) in
        [(after, 1, "cannot be mounted"), (before, 0, "findings: 0 now, 1 then")]
    {
        let inner = format!("{profile}/p{at}:all");
        let recovery = Some(Recovery { state: inner.clone(), recording: file.clone() });
        let mut meta = Meta::new(outer.clone(), profile.clone(), Judge::Guest);
        meta.image = Some(settings.image.lock.clone());
        meta.findings =
            vec![Finding { recovery, ..Finding::new(Clause::Unrecoverable, "planted".into()) }];
        let bundle = settings.dir.join(format!("recovery-{at}.tornblk"));
        pack(&bundle, &recorded.reader, None, &Needed::All, &meta).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_tornblk")).arg("repro").arg(&bundle).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{text}{output:?}");
        assert!(text.contains(&format!("state  {outer}{NESTED}{inner}")), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

fn nothing_is_left_when_it_is_stopped(
    recorded: &Recorded,
    case: &Case<'_>,
    settings: &GuestSettings,
) {
    let name = honest(recorded, "all");
    let mut verifier = GuestVerifier::new(case, settings, 0).unwrap();
    assert_eq!(judge(recorded, case, &name, &mut verifier).unwrap(), Verdict::Passed);
    let guest = PathBuf::from(format!("/proc/{}", verifier.seat().pid().unwrap()));
    let control = verifier.seat().device().control();
    assert!(guest.exists() && control.exists());
    let stop = Arc::clone(&settings.stop);
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
    });
    let error = loop {
        match judge(recorded, case, &name, &mut verifier) {
            Ok(verdict) => assert_eq!(verdict, Verdict::Passed),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ExploreError::Interrupted), "{error}");
    stopper.join().unwrap();
    drop(verifier);
    assert!(!guest.exists() && !control.exists(), "something is left");
}

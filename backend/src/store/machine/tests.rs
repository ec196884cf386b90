#![allow(clippy::unwrap_used)]
use super::*;
use crate::store::Failure;
use crate::store::IoEngine;
use crate::store::testing::{ask, discard, flush, image, read, reap, write, zeroes};
use proptest::prelude::*;
use std::path::Path;
use tornblk_model::crash::{History, Source, StateName};
use tornblk_model::event::Seq;
use tornblk_model::recording::{Reader, StateReader, Trust};
use tornblk_proto::{
    Counters, Crashed, Match, OpKind, Range, RefusalKind, StallWhen, Trigger, nonce_of,
};

pub(super) const SIZE: u64 = 1 << 20;
const LB: u32 = 512;

pub(super) struct Rig {
    pub(super) machine: Arc<Machine>,
    pub(super) dir: tempfile::TempDir,
    pub(super) base: Vec<u8>,
}

/// A guest that has made nothing visible which the device does not know.
struct NoRings;

impl Rings for NoRings {
    fn available(&self, _: &mut dyn FnMut(u16, u16)) {}
}

pub(super) fn options(dir: &Path, profile: &str) -> Options {
    Options {
        image: dir.join("disk.img"),
        recording: Some(dir.join("disk.rec")),
        states: None,
        profile: profile.parse().unwrap(),
        logical_block_size: LB,
        physical_block_size: 4096,
        read_only: false,
        cache: Cache::Writeback,
        seed: 1,
        faults: Vec::new(),
        direct: false,
        io_engine: IoEngine::Auto,
        record_payload: true,
        queues: 4,
        hold_completions: HoldCompletions::None,
        divided: false,
        serial: "tornblk".to_owned(),
    }
}

pub(super) fn rig(profile: &str, change: impl FnOnce(&mut Options)) -> Rig {
    let (dir, _, base) = image(SIZE);
    let mut options = options(dir.path(), profile);
    change(&mut options);
    let machine = Machine::open(options).unwrap();
    let rig = Rig { machine, dir, base };
    rig.connect();
    rig
}

impl Rig {
    /// As the device does when a front-end comes.
    pub(super) fn connect(&self) {
        self.machine.connected(Arc::new(NoRings));
        let flush =
            Negotiation { flush_offered: true, flush: true, config_wce: false, writeback: true };
        self.machine.negotiated(flush);
    }

    fn disconnect(&self) {
        self.machine.reset(ResetCause::Reconnect, None);
    }

    pub(super) fn history(&self) -> History {
        let reader = Reader::open(&self.dir.path().join("disk.rec")).unwrap();
        let events = reader.events().map(Result::unwrap);
        History::new(self.machine.disk(), events).unwrap()
    }

    /// The whole disk, as a guest reads it.
    pub(super) fn content(&self) -> Vec<u8> {
        let mut queue = self.machine.queue(0);
        let mut all = Vec::new();
        for at in (0..SIZE).step_by(64 << 10) {
            all.extend(ask(&mut *queue, read(0, at, 64 << 10)).unwrap());
        }
        all
    }

    fn crash(&self, at: Trigger, seed: u64) -> Crashed {
        let token = self.machine.arm_crash(at, None, Some(seed), None).unwrap();
        self.machine.wait_for_crash(token).unwrap()
    }

    /// A new guest on what the crash left.
    fn restart(&self) -> Vec<u8> {
        self.disconnect();
        self.connect();
        self.content()
    }

    pub(super) fn kind<T: fmt::Debug>(result: Result<T, MachineError>) -> RefusalKind {
        result.unwrap_err().kind()
    }
}

pub(super) fn bytes(n: u8) -> Vec<u8> {
    vec![n; 4096]
}

fn eligible(nth: Option<u64>) -> Match {
    Match { nth, eligible: true, ..Match::default() }
}

#[test]
fn a_crash_leaves_what_the_model_allows_and_the_same_with_the_same_seed() {
    let left = |seed| {
        let rig = rig("lb512", |_| {});
        let mut queue = rig.machine.queue(0);
        ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
        ask(&mut *queue, flush(1)).unwrap();
        ask(&mut *queue, write(2, 4096, bytes(0xb2))).unwrap();
        ask(&mut *queue, write(3, 0, bytes(0xc3))).unwrap();
        let crashed = rig.crash(Trigger::Now, seed);
        assert_eq!(crashed.volatile_writes, 2);
        assert!(crashed.faults.is_empty());
        // Nothing is executed or answered any more.
        queue.submit(read(4, 0, 512));
        assert!(reap(&mut *queue).is_empty());
        drop(queue);
        let status = rig.machine.status();
        assert!(status.power_cut);
        assert_eq!(status.state, crashed.state);
        let content = rig.restart();
        let status = rig.machine.status();
        assert!(!status.power_cut);
        assert_eq!(status.state, crashed.state);
        let history = rig.history();
        let name = StateName(crashed.state.clone());
        assert_eq!(history.violations(&name).unwrap(), [], "{name}");
        // Each sector old or new, and the flushed ones never the base.
        for (i, sector) in content.chunks(512).take(16).enumerate() {
            let base = &rig.base[i * 512..][..512];
            let may: &[u8] = if i < 8 { &[0xa1, 0xc3] } else { &[0xb2] };
            let new = may.iter().any(|n| sector.iter().all(|b| b == n));
            assert!(new || i >= 8 && sector == base, "sector {i}");
        }
        assert_eq!(content[8192..], rig.base[8192..]);
        (crashed, content)
    };
    let (crashed, content) = left(7);
    let (again, same) = left(7);
    assert_eq!(crashed, again);
    assert!(content == same);
    let others: Vec<_> = (8..16).map(left).collect();
    assert!(others.iter().any(|(_, c)| *c != content), "another seed, another state");
}

#[test]
fn tear_atomic_tears_exactly_the_named_write() {
    for seed in 0..20 {
        let rig = rig("req64k", |o| o.faults = vec!["tear-atomic,nth=3".parse().unwrap()]);
        let mut queue = rig.machine.queue(0);
        // Too small to be torn, too large to be whole: neither is counted.
        ask(&mut *queue, write(0, 0, vec![1; 512])).unwrap();
        ask(&mut *queue, write(1, 0, vec![2; 128 << 10])).unwrap();
        ask(&mut *queue, flush(2)).unwrap();
        let token = rig
            .machine
            .arm_crash(Trigger::Submit(eligible(Some(3))), None, Some(seed), None)
            .unwrap();
        for (position, n) in [(3, 0xa1), (4, 0xb2)] {
            ask(&mut *queue, write(position, 256 << 10, bytes(n))).unwrap();
        }
        ask(&mut *queue, write(5, 512 << 10, vec![9; 512])).unwrap();
        queue.submit(write(6, 256 << 10, bytes(0xc3)));
        assert!(reap(&mut *queue).is_empty(), "the third is in flight at the cut");
        let crashed = rig.machine.wait_for_crash(token).unwrap();
        assert_eq!(crashed.faults.len(), 1, "{crashed:?}");
        assert!(
            crashed.faults[0].starts_with(&format!("tear-atomic,nth=3: write {}", crashed.event)),
            "{crashed:?}"
        );
        let history = rig.history();
        assert!(!history.violations(&StateName(crashed.state.clone())).unwrap().is_empty());
        drop(queue);
        let content = rig.restart();
        let torn = &content[256 << 10..][..4096];
        let new = torn.iter().filter(|b| **b == 0xc3).count();
        assert!(new > 0 && new < 4096 && new % 512 == 0, "seed {seed}: {new} bytes are new");
    }
}

#[test]
fn a_fault_that_is_armed_later_counts_from_then_on() {
    let rig = rig("req64k", |_| {});
    let mut queue = rig.machine.queue(0);
    for position in 0..5 {
        ask(&mut *queue, write(position, 0, bytes(0xa1))).unwrap();
    }
    rig.machine.fault("tear-atomic,nth=2").unwrap();
    let at = Trigger::Submit(eligible(Some(2)));
    let token = rig.machine.arm_crash(at, None, None, None).unwrap();
    ask(&mut *queue, write(5, 8192, bytes(0xb2))).unwrap();
    queue.submit(write(6, 16384, bytes(0xc3)));
    let crashed = rig.machine.wait_for_crash(token).unwrap();
    let start = format!("tear-atomic,nth=2: write {}", crashed.event);
    assert!(crashed.faults[0].starts_with(&start), "{crashed:?}");
}

#[test]
fn the_nth_write_is_the_nth_on_record_however_many_queues_write() {
    for round in 0..20 {
        let rig = rig("req64k", |o| o.faults = vec!["tear-atomic,nth=40".parse().unwrap()]);
        let at = Trigger::Submit(eligible(Some(40)));
        let token = rig.machine.arm_crash(at, None, Some(round), None).unwrap();
        std::thread::scope(|scope| {
            for n in 0..4u16 {
                let machine = &rig.machine;
                scope.spawn(move || {
                    let mut queue = machine.queue(n);
                    for position in 0..30 {
                        let at = (u64::from(n) * 30 + u64::from(position)) * 4096;
                        let mut request = write(position, at, bytes(0xa1));
                        request.origin.queue = n;
                        queue.submit(request);
                        reap(&mut *queue);
                    }
                });
            }
        });
        let crashed = rig.machine.wait_for_crash(token).unwrap();
        let start = format!("tear-atomic,nth=40: write {}", crashed.event);
        assert!(crashed.faults.first().is_some_and(|f| f.starts_with(&start)), "{crashed:?}");
        let history = rig.history();
        assert_eq!(history.requests().len(), 40);
        assert_eq!(history.requests()[39].id().0, crashed.event);
        assert!(history.requests()[39].end().is_none());
    }
}

#[test]
fn ignore_flush_loses_what_was_flushed() {
    let rig = rig("lb512", |o| o.faults = vec!["ignore-flush".parse().unwrap()]);
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    ask(&mut *queue, flush(1)).unwrap();
    let crashed = rig.crash(Trigger::Now, 3);
    assert_eq!(crashed.volatile_writes, 0);
    assert_eq!(crashed.faults.len(), 1);
    drop(queue);
    assert!(rig.restart() == rig.base, "the write is gone");
}

#[test]
fn a_fault_with_nothing_to_break_is_not_told() {
    let rig = rig("req64k", |o| o.faults = vec!["tear-atomic".parse().unwrap()]);
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    ask(&mut *queue, flush(1)).unwrap();
    assert!(rig.crash(Trigger::Now, 3).faults.is_empty(), "a stable write is not torn");
}

#[test]
fn each_trigger_cuts_right_after_its_event() {
    let write_to = |at| {
        let range = Some(Range { offset: at, len: 512 });
        Match { op: Some(OpKind::Write), range, ..Match::default() }
    };
    let cases: [(Trigger, usize, bool); 3] = [
        (Trigger::Submit(write_to(8192)), 1, false),
        (Trigger::Complete(write_to(8192)), 1, true),
        (Trigger::Mark("here".to_owned()), 2, true),
    ];
    for (at, answered, done) in cases {
        let rig = rig("lb512", |_| {});
        let told = at.clone();
        let token = rig.machine.arm_crash(at, Some("all".to_owned()), None, None).unwrap();
        let mut queue = rig.machine.queue(0);
        queue.submit(write(0, 0, bytes(0xa1)));
        queue.submit(write(1, 8192, bytes(0xb2)));
        assert_eq!(reap(&mut *queue).len(), answered, "{told:?}");
        if matches!(told, Trigger::Mark(_)) {
            rig.machine.mark("not here").unwrap();
            rig.machine.mark("here").unwrap();
        }
        let crashed = rig.machine.wait_for_crash(token).unwrap();
        let history = rig.history();
        // After it there is only the cut itself.
        assert_eq!(history.last().unwrap().0, crashed.event + 1, "{told:?}");
        assert_eq!(history.base_of(Seq(crashed.event + 2)), history.last());
        assert_eq!(history.requests()[1].end().is_some(), done, "{told:?}");
        assert!(crashed.state.ends_with(":all"), "{}", crashed.state);
        drop(queue);
        let content = rig.restart();
        assert_eq!(content[8192..12288], bytes(0xb2));
    }
}

#[test]
fn the_overlay_takes_writes_and_the_recording_does_not() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    rig.crash(Trigger::Now, 1);
    drop(queue);
    let before = rig.restart();
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 8192, bytes(0xdd))).unwrap();
    ask(&mut *queue, flush(1)).unwrap();
    drop(queue);
    // Another guest on the same disk.
    let after = rig.restart();
    assert_eq!(after[8192..12288], bytes(0xdd));
    assert_eq!(after[..8192], before[..8192]);
    assert_eq!(rig.history().requests().len(), 1);
    assert_eq!(std::fs::read(rig.dir.path().join("disk.img")).unwrap(), rig.base);
    // The disk that was cut is no more.
    assert_eq!(Rig::kind(rig.machine.mark("late")), RefusalKind::Busy);
    assert_eq!(Rig::kind(rig.machine.use_state("live")), RefusalKind::Busy);
    let again = rig.machine.arm_crash(Trigger::Now, None, None, None);
    assert_eq!(Rig::kind(again), RefusalKind::Busy);
    // But its states are there.
    let none = format!("lb512/p{}:none", rig.history().requests()[0].id());
    rig.machine.use_state(&none).unwrap();
    assert!(rig.content() == rig.base);
}

#[test]
fn a_state_is_shown_and_the_live_disk_comes_back() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    let mark = rig.machine.mark("first").unwrap();
    ask(&mut *queue, write(1, 0, bytes(0xb2))).unwrap();
    let id = |rig: &Rig| String::from_utf8(rig.machine.id_string().to_vec()).unwrap();
    assert_eq!(nonce_of(&id(&rig)), None);

    let state = format!("lb512/p{mark}:all");
    let shown = rig.machine.use_state(&state).unwrap();
    assert_eq!(nonce_of(&id(&rig)), Some(shown.nonce));
    assert_eq!(rig.machine.status().state, state);
    // The same queue of the guest, on another disk.
    assert_eq!(ask(&mut *queue, read(2, 0, 4096)).unwrap(), bytes(0xa1));
    ask(&mut *queue, write(3, 0, bytes(0xee))).unwrap();
    assert_eq!(ask(&mut *queue, read(4, 0, 4096)).unwrap(), bytes(0xee));
    assert_eq!(Rig::kind(rig.machine.mark("elsewhere")), RefusalKind::Busy);
    let crash = rig.machine.arm_crash(Trigger::Now, None, None, None);
    assert_eq!(Rig::kind(crash), RefusalKind::Busy);

    let again = rig.machine.use_state(&state).unwrap();
    assert_ne!(again.nonce, shown.nonce);
    assert_eq!(ask(&mut *queue, read(5, 0, 4096)).unwrap(), bytes(0xa1), "a fresh overlay");

    assert_eq!(rig.machine.use_state("live").unwrap().name, "live");
    assert_eq!(nonce_of(&id(&rig)), None);
    assert_eq!(ask(&mut *queue, read(6, 0, 4096)).unwrap(), bytes(0xb2));
    ask(&mut *queue, write(7, 4096, bytes(0xc3))).unwrap();
    ask(&mut *queue, flush(8)).unwrap();
    rig.machine.mark("second").unwrap();
    let history = rig.history();
    let writes: Vec<_> = history.requests().iter().filter(|r| r.changes()).collect();
    assert_eq!(writes.len(), 3, "what happened on the state is not on record");
    assert!(writes[2].stable().is_some());
}

#[test]
fn states_are_refused_while_requests_are_in_flight_and_where_there_are_none() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    let token = rig.machine.stall(1, Match::default(), StallWhen::BeforeCompletion).unwrap();
    queue.submit(write(0, 0, bytes(0xa1)));
    let refused = rig.machine.use_state("lb512/p0:none").unwrap_err();
    assert!(matches!(refused, MachineError::InFlight(1)), "{refused}");
    assert_eq!(rig.machine.status().in_flight, 1);
    rig.machine.client_gone(1);
    assert_eq!(Rig::kind(rig.machine.release(token)), RefusalKind::NotFound);
    assert_eq!(reap(&mut *queue).len(), 1);
    for name in ["", "nonsense", "lb512/p9999:all", "lb4k/p0:all"] {
        assert_eq!(Rig::kind(rig.machine.use_state(name)), RefusalKind::NotFound, "{name}");
    }
    rig.machine.use_state("lb512/p0:none").unwrap();
}

#[test]
fn a_state_that_cannot_be_is_told_and_another_is_there() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    let arm = |state: &str| rig.machine.arm_crash(Trigger::Now, Some(state.to_owned()), None, None);
    assert_eq!(Rig::kind(arm("everything")), RefusalKind::Malformed);
    let token = arm("all,-w77777").unwrap();
    let error = rig.machine.wait_for_crash(token).unwrap_err();
    assert_eq!(error.kind(), RefusalKind::Failed);
    let state = rig.machine.status().state;
    assert!(error.to_string().contains(&state), "{error}; {state}");
    drop(queue);
    rig.restart();
}

#[test]
fn a_crash_is_armed_once_and_can_be_disarmed() {
    let rig = rig("lb512", |_| {});
    let at = || Trigger::Mark("never".to_owned());
    let token = rig.machine.arm_crash(at(), None, None, None).unwrap();
    let second = rig.machine.arm_crash(at(), None, None, None).unwrap_err();
    assert!(matches!(second, MachineError::Armed));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.machine.wait_for_crash(token));
        rig.machine.disarm(token);
        assert!(matches!(waiting.join().unwrap(), Err(MachineError::Disarmed)));
    });
    rig.machine.mark("never").unwrap();
    assert!(!rig.machine.status().power_cut);
    let profile = |p: &str| rig.machine.arm_crash(at(), None, None, Some(p.to_owned()));
    assert_eq!(Rig::kind(profile("lb4k")), RefusalKind::Malformed);
    assert_eq!(Rig::kind(profile("cheese")), RefusalKind::Malformed);
    profile("req16k").unwrap();
}

#[test]
fn another_profile_can_be_asked_for_at_the_crash() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    let at = Trigger::Submit(eligible(None));
    let token =
        rig.machine.arm_crash(at, Some("all".to_owned()), None, Some("req16k".to_owned())).unwrap();
    ask(&mut *queue, write(0, 0, vec![1; 512])).unwrap();
    queue.submit(write(1, 0, bytes(0xa1)));
    assert!(reap(&mut *queue).is_empty(), "eligible under the profile of the crash");
    let crashed = rig.machine.wait_for_crash(token).unwrap();
    assert!(crashed.state.starts_with("req16k/"), "{}", crashed.state);
}

#[test]
fn a_cut_leaves_requests_that_were_held_in_flight() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    rig.machine.stall(1, Match::default(), StallWhen::BeforeIo).unwrap();
    queue.submit(write(0, 0, bytes(0xa1)));
    let crashed = rig.crash(Trigger::Now, 0);
    assert_eq!(crashed.volatile_writes, 1);
    rig.machine.client_gone(1);
    assert!(reap(&mut *queue).is_empty());
    queue.drain();
    assert!(reap(&mut *queue).is_empty(), "not even when the queue stops");
    drop(queue);
    rig.restart();
    assert_eq!(rig.machine.status().in_flight, 0);
}

#[test]
fn a_recording_goes_on_after_a_restart_but_not_after_a_power_cut() {
    let rig = rig("lb512", |_| {});
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    drop(queue);
    let Rig { machine, dir, base } = rig;
    drop(machine);
    let rig = Rig { machine: Machine::open(options(dir.path(), "lb512")).unwrap(), dir, base };
    rig.connect();
    assert_eq!(rig.content()[..4096], bytes(0xa1));
    rig.crash(Trigger::Now, 0);
    rig.restart();
    let Rig { machine, dir, .. } = rig;
    drop(machine);
    let error = Machine::open(options(dir.path(), "lb512")).unwrap_err();
    assert!(error.to_string().contains("power was cut"), "{error}");
}

#[test]
fn a_power_cut_stays_on_record_when_the_device_just_ends() {
    let rig = rig("lb512", |_| {});
    ask(&mut *rig.machine.queue(0), write(0, 0, bytes(0xa1))).unwrap();
    let event = rig.crash(Trigger::Now, 0).event;
    let Rig { machine, dir, .. } = rig;
    drop(machine);
    let error = Machine::open(options(dir.path(), "lb512")).unwrap_err();
    assert!(error.to_string().contains("power was cut"), "{error}");
    let reader = Reader::open(&dir.path().join("disk.rec")).unwrap();
    let events = reader.events().map(Result::unwrap);
    let disk = Disk { capacity: SIZE, lb_size: LB };
    let history = History::new(disk, events).unwrap();
    let point = format!("lb512/p{event}:none");
    assert!(history.build(&StateName(point)).unwrap().blocks.is_empty());
}

#[test]
fn a_power_cut_is_on_record_as_soon_as_it_is_told() {
    let rig = rig("lb512", |_| {});
    ask(&mut *rig.machine.queue(0), write(0, 0, bytes(0xa1))).unwrap();
    let event = rig.crash(Trigger::Now, 0).event;
    // What is in the file now is what a device that is killed leaves.
    let left = tempfile::tempdir().unwrap();
    std::fs::copy(rig.dir.path().join("disk.rec"), left.path().join("disk.rec")).unwrap();
    let found = Options {
        recording: Some(left.path().join("disk.rec")),
        ..options(rig.dir.path(), "lb512")
    };
    let error = Machine::open(found).unwrap_err();
    assert!(error.to_string().contains("power was cut"), "{error}");
    let cuts = |rig: &Rig| {
        let reader = Reader::open(&rig.dir.path().join("disk.rec")).unwrap();
        let info = reader.info().unwrap();
        (info.counts.power_cuts, reader.events().last().unwrap().unwrap().0.0)
    };
    assert_eq!(cuts(&rig), (1, event + 1));
    rig.restart();
    assert_eq!(cuts(&rig), (1, event + 1), "once");
}

#[test]
fn a_raw_disk_says_what_needs_a_recording() {
    let rig = rig("req64k", |o| o.recording = None);
    let machine = &rig.machine;
    let refused = [
        machine.mark("m").unwrap_err(),
        machine.arm_crash(Trigger::Now, None, None, None).unwrap_err(),
        machine.use_state("live").unwrap_err(),
        machine.fault("tear-atomic").unwrap_err(),
        machine.fault("stale-read").unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), RefusalKind::Unsupported);
        assert!(error.to_string().contains("--recording"), "{error}");
    }
    assert_eq!(Rig::kind(machine.fault("tea-atomic")), RefusalKind::Malformed);
    assert_eq!(Rig::kind(machine.fault("eio,range=1m+4k")), RefusalKind::Malformed);
    machine.fault("eio,nth=1").unwrap();
    let mut queue = machine.queue(0);
    let failed = ask(&mut *queue, read(0, 0, 512));
    assert!(matches!(failed, Err(Failure::Injected)));
    ask(&mut *queue, write(1, 256, bytes(1))).unwrap();
    let status = machine.status();
    assert_eq!((status.store.as_str(), status.state.as_str()), ("raw", "live"));
    assert_eq!((status.capacity, status.recording), (SIZE, None));
    assert_eq!(status.faults, ["eio,nth=1"]);
    let counters = Counters {
        reads: 1,
        writes: 1,
        failed: 1,
        eligible: 1,
        sub_block: 1,
        ..Counters::default()
    };
    assert_eq!(status.counters, counters);
}

#[test]
fn without_data_the_image_is_written_and_the_requests_are_on_record() {
    for engine in [IoEngine::Auto, IoEngine::Sync] {
        let rig = rig("lb512", |o| (o.record_payload, o.io_engine) = (false, engine));
        let mut queue = rig.machine.queue(0);
        ask(&mut *queue, write(0, 4096, bytes(7))).unwrap();
        assert_eq!(ask(&mut *queue, read(1, 4096, 4096)).unwrap(), bytes(7));
        let marked = rig.machine.mark("half").unwrap();
        ask(&mut *queue, zeroes(2, 0, 4096, false)).unwrap();
        ask(&mut *queue, flush(3)).unwrap();
        let status = rig.machine.status();
        assert_eq!((status.store.as_str(), status.recording.is_some()), ("raw", true));
        // What needs the data says so; so does who reads the recording.
        for refused in [
            Rig::kind(rig.machine.arm_crash(Trigger::Now, None, None, None)),
            Rig::kind(rig.machine.use_state("live")),
            Rig::kind(rig.machine.fault("stale-read")),
        ] {
            assert_eq!(refused, RefusalKind::Unsupported);
        }
        let mut disk = rig.base.clone();
        disk[..4096].fill(0);
        disk[4096..8192].fill(7);
        drop(queue);
        let Rig { machine, dir, .. } = rig;
        let options = machine.options().clone();
        drop(machine);
        assert!(std::fs::read(dir.path().join("disk.img")).unwrap() == disk);
        let reader = Reader::open(&dir.path().join("disk.rec")).unwrap();
        reader.verify().unwrap();
        let info = reader.info().unwrap();
        let counts = &info.counts;
        assert_eq!(
            (counts.writes, counts.reads, counts.flushes, counts.write_zeroes),
            (1, 1, 1, 1)
        );
        assert_eq!((info.payload_bytes, counts.unanswered, counts.failed), (0, 0, 0));
        assert_eq!(info.marks[0].0, Seq(marked));
        let events: Vec<_> = reader.events().map(Result::unwrap).collect();
        let history = History::new(reader.header().disk.clone(), events).unwrap();
        let content = history.build(&StateName(format!("lb512/p{marked}:all"))).unwrap();
        let shown = StateReader::new(Arc::new(reader), None, Trust::SameContent, content);
        let told = shown.map(drop).unwrap_err().to_string();
        assert!(told.contains("without data"), "{told}");
        // It goes on, with the image as it is now; as a recording with data it does not.
        let with_data = Options { record_payload: true, ..options.clone() };
        let told = Machine::open(with_data).map(drop).unwrap_err().to_string();
        assert!(told.contains("--record-payload no"), "{told}");
        let machine = Machine::open(options.clone()).unwrap();
        ask(&mut *machine.queue(0), write(4, 0, bytes(9))).unwrap();
        drop(machine);
        let info = Reader::open(&dir.path().join("disk.rec")).unwrap().info().unwrap();
        assert_eq!((info.counts.writes, info.counts.restarts), (2, 1));
        // Nor does a recording with data go on without.
        let other = Options { recording: Some(dir.path().join("other.rec")), ..options };
        drop(Machine::open(Options { record_payload: true, ..other.clone() }).unwrap());
        let told = Machine::open(other).map(drop).unwrap_err().to_string();
        assert!(told.contains("leave out --record-payload no"), "{told}");
    }
}

#[test]
fn a_recording_is_no_image() {
    let rig = rig("lb512", |_| {});
    let options = rig.machine.options().clone();
    let recording = options.recording.clone().unwrap();
    drop(rig.machine);
    let options = Options { image: recording, recording: None, ..options };
    let told = Machine::open(options).map(drop).unwrap_err().to_string();
    assert!(told.contains("is a recording, not an image"), "{told}");
}

#[test]
fn what_fails_without_data_is_on_record_as_failed() {
    let rig = rig("lb512", |o| o.record_payload = false);
    let mut queue = rig.machine.queue(0);
    std::fs::File::options()
        .write(true)
        .open(rig.dir.path().join("disk.img"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert!(ask(&mut *queue, write(0, 8192, bytes(7))).is_err());
    ask(&mut *queue, write(1, 0, bytes(8))).unwrap();
    drop(queue);
    let reader = Reader::open(&rig.dir.path().join("disk.rec")).unwrap();
    let counts = reader.info().unwrap().counts;
    assert_eq!((counts.writes, counts.failed, counts.unanswered), (2, 1, 0));
}

#[test]
fn a_stale_read_answers_with_the_version_before() {
    let rig = rig("lb512", |o| o.faults = vec!["stale-read,range=0+4k,nth=2".parse().unwrap()]);
    let mut queue = rig.machine.queue(0);
    ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
    ask(&mut *queue, write(1, 0, bytes(0xb2))).unwrap();
    assert_eq!(ask(&mut *queue, read(2, 0, 4096)).unwrap(), bytes(0xb2));
    assert_eq!(ask(&mut *queue, read(3, 8192, 512)).unwrap(), rig.base[8192..8704]);
    assert_eq!(ask(&mut *queue, read(4, 0, 4096)).unwrap(), bytes(0xa1));
    assert_eq!(ask(&mut *queue, read(5, 0, 4096)).unwrap(), bytes(0xb2));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let (dir, ..) = image(SIZE);
    let error = |change: &dyn Fn(&mut Options)| {
        let mut options = options(dir.path(), "lb");
        change(&mut options);
        Machine::open(options).unwrap_err().to_string()
    };
    assert!(error(&|o| o.logical_block_size = 1000).contains("power of two"));
    assert!(error(&|o| o.logical_block_size = 256).contains("512"));
    assert!(error(&|o| o.logical_block_size = 128 << 10).contains("65536"));
    assert!(error(&|o| o.physical_block_size = 256).contains("logical block size 512"));
    assert!(error(&|o| o.profile = "lb4k".parse().unwrap()).contains("512"));
    assert!(error(&|o| o.image = dir.path().join("none")).contains("truncate"));
    assert!(error(&|o| o.faults = vec!["eio,range=1g+4k".parse().unwrap()]).contains("end"));
    assert!(error(&|o| o.recording = Some(dir.path().join("disk.img"))).contains("recording"));
}

/// What a guest might do: (queue, what, first sector, sectors, is it held?).
type Step = (u16, u8, u64, u64, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..2u16, 0..6u8, 0..64u64, 1..=16u64, any::<bool>());
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    /// Whatever was asked and held, and wherever it is cut: what is left is legal, and each block
    /// reads as the model says that it does.
    #[test]
    fn what_is_left_is_legal_and_reads_as_the_model_says(
        steps in steps(),
        seed in any::<u64>(),
        profile in prop::sample::select(vec!["lb512", "req4k", "piece4k", "req8k+b8k"]),
    ) {
        let rig = rig(profile, |_| {});
        let mut queues = [rig.machine.queue(0), rig.machine.queue(1)];
        let mut data = Vec::new();
        for (position, (queue, what, at, n, held)) in steps.into_iter().enumerate() {
            let (position, offset, len) = (position as u16, at * 512, n * 512);
            let bytes: Vec<u8> =
                (0..len).map(|i| (position as u8).wrapping_mul(7) ^ (i / 512) as u8).collect();
            let mut request = match what {
                0 => flush(position),
                1 => discard(position, offset, len),
                2 => zeroes(position, offset, len, held),
                _ => write(position, offset, bytes.clone()),
            };
            request.origin.queue = queue;
            data.push(bytes);
            let when = if n % 2 == 0 { StallWhen::BeforeIo } else { StallWhen::BeforeCompletion };
            let which = Match { nth: Some(1), ..Match::default() };
            let stall = held.then(|| rig.machine.stall(1, which, when).unwrap());
            queues[usize::from(queue)].submit(request);
            reap(&mut *queues[usize::from(queue)]);
            // Each second one that is held comes back before the next.
            if let Some(token) = stall && at % 2 == 0 {
                rig.machine.release(token).unwrap();
                reap(&mut *queues[usize::from(queue)]);
            }
        }
        let crashed = rig.crash(Trigger::Now, seed);
        rig.machine.client_gone(1);
        drop(queues);
        let found = rig.restart();
        let history = rig.history();
        let name = StateName(crashed.state);
        prop_assert_eq!(history.violations(&name).unwrap(), [], "{}", name);
        let content = history.build(&name).unwrap();
        for (block, sector) in found.chunks(512).enumerate() {
            let expected = match content.of(block as u64) {
                Source::Base => rig.base[block * 512..][..512].to_vec(),
                Source::Zeroes => vec![0; 512],
                Source::Written { request, block } => {
                    // Each step is one request.
                    let step = history.requests().iter().position(|r| r.id() == request);
                    let at = block as usize * 512;
                    data[step.unwrap()][at..at + 512].to_vec()
                }
                other => panic!("{other:?} without a fault"),
            };
            prop_assert_eq!(sector, &expected[..], "block {}", block);
        }
    }
}

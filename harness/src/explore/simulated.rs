//! A driver and a disk without a guest: workloads and planted protocols drive a recording, with
//! several requests in flight that complete in any order.

#![allow(clippy::unwrap_used)]

use super::{
    Counts, ExploreError, Failure, InPlace, Job, RecordingIds, Settings, Sink, StateText, Subject,
    WorkloadUnits, explore,
};
use crate::run::{GuestArgs, Volume};
use crate::suite::Rng;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_agent::channel::{MarkText, Prepare, Target, Workload, WriteFlags};
use tornblk_agent::payload::{self, Stamp};
use tornblk_agent::planted::{Committer, FLAGS, Planted, Step, fill_slot, slot_len, slot_of};
use tornblk_model::crash::{History, Profile};
use tornblk_model::event::{Disk, Event, Mark, Negotiation, Op, Seq, Submit};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Reader, Trust, Writer};

/// What a request of a simulated driver was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Page,
    Slot,
}

/// One write: its event, and what it was for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) request: Seq,
    pub(super) kind: Kind,
    pub(super) unit: u64,
    pub(super) r#gen: u32,
    /// The write's place in the page (bytes).
    pub(super) from: u32,
}

/// A disk under construction.
pub(super) struct Simulated {
    dir: tempfile::TempDir,
    writer: Option<Writer>,
    pub(super) subject: Subject,
    pub(super) rng: Rng,
    position: u16,
    batch: u64,
    pub(super) sent: Vec<Sent>,
}

pub(super) const NONCE: u64 = 0x7042_0001;

pub(super) fn target(unit: u32, units: u32, threads: u32, planted: Option<Planted>) -> Target {
    let direct = WriteFlags { direct: true, ..WriteFlags::default() };
    Target {
        file: 1,
        path: "/dev/vda".into(),
        offset: 65536,
        unit,
        units,
        threads,
        depth: 1,
        flags: vec![if planted.is_some() { FLAGS } else { direct }],
        prepare: Prepare::AsIs,
        planted,
        ..Target::default()
    }
}

impl Simulated {
    /// A disk whose base image is loaded: generation 0 in every unit.
    pub(super) fn new(target: Target, lb_size: u32, profile: &str, seed: u64) -> Simulated {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.img");
        let file = std::fs::File::create(&base).unwrap();
        let capacity = target.end().next_multiple_of(1 << 20);
        file.set_len(capacity).unwrap();
        for unit in 0..u64::from(target.units) {
            let mut bytes = vec![0; target.unit as usize];
            payload::fill(&mut bytes, stamp(&target, unit, 0));
            file.write_all_at(&bytes, target.offset_of(unit)).unwrap();
        }
        let disk = Disk { capacity, lb_size };
        let new = NewRecording {
            segment_size: 1 << 20,
            ..NewRecording::new(disk, BaseImage::identify(&base).unwrap(), serde_json::json!({}))
        };
        let writer = Writer::create(&dir.path().join("disk.recording"), new).unwrap();
        let negotiation =
            Negotiation { flush_offered: true, flush: true, config_wce: false, writeback: true };
        writer.append(&Event::Negotiate(negotiation)).unwrap();
        let subject = Subject {
            suite: "planted".into(),
            lane: "simulated".into(),
            cut: 1,
            seed,
            workload: Workload {
                nonce: NONCE,
                seed,
                files: vec![target],
                load: true,
                writes: 0,
                sync_every: 0,
                skip_sync: false,
            },
            volume: Volume {
                fstype: String::new(),
                mount_options: String::new(),
                queues: 1,
                logical_block_size: lb_size,
                profile: profile.into(),
                front_end: Default::default(),
                shows_limits: false,
                on_wire: Default::default(),
            },
            guest: GuestArgs::default(),
            image: None,
            checker: None,
            environment: None,
            disks: Vec::new(),
            pages: None,
        };
        let mut simulated = Simulated {
            dir,
            writer: Some(writer),
            rng: Rng::new(seed, &["simulated"], 0),
            subject,
            position: 0,
            batch: 0,
            sent: Vec::new(),
        };
        for mark in simulated.subject.marks() {
            simulated.append(&Event::Mark(Mark { name: mark }));
        }
        simulated.mark(&[MarkText::Phase { name: "load-done".into() }]);
        simulated
    }

    pub(super) fn target(&self) -> &Target {
        &self.subject.workload.files[0]
    }

    pub(super) fn append(&self, event: &Event) -> Seq {
        self.writer.as_ref().unwrap().append(event).unwrap()
    }

    /// A batch of marks.
    pub(super) fn mark(&mut self, marks: &[MarkText]) -> u64 {
        self.batch += 1;
        for mark in marks {
            self.append(&Event::Mark(Mark { name: mark.to_record(self.batch) }));
        }
        self.batch
    }

    pub(super) fn submit(&mut self, op: Op) -> Seq {
        let position = self.position;
        self.position = self.position.wrapping_add(1);
        let submit = Submit { queue: 0, position, head: position, ioprio: 0, op };
        self.append(&Event::Submit(submit))
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], atomic: bool) -> Seq {
        let payload = self.writer.as_ref().unwrap().payload(data).unwrap();
        let len = data.len() as u64;
        self.submit(Op::Write { offset, len, fua: false, atomic, payload })
    }

    pub(super) fn complete(&mut self, request: Seq) {
        let visible = [(0, self.position)];
        self.writer.as_ref().unwrap().complete(&visible, Completion::ok(request)).unwrap();
    }

    /// So many commits by the target's protocol, its threads side by side.
    pub(super) fn commit(&mut self, commits: u32) {
        let target = self.target().clone();
        let planted = target.planted.unwrap();
        let mut threads: Vec<Thread> = (0..target.threads)
            .map(|n| Thread {
                n,
                committer: Committer::new(&target, planted),
                steps: Vec::new(),
                unit: 0,
                r#gen: 0,
                in_flight: Vec::new(),
            })
            .collect();
        let mut generations = vec![0; target.units as usize];
        let mut left = commits;
        loop {
            let ready: Vec<usize> = (0..threads.len())
                .filter(|i| !threads[*i].is_waiting() && (left > 0 || threads[*i].is_busy()))
                .collect();
            let busy: Vec<usize> =
                (0..threads.len()).filter(|i| !threads[*i].in_flight.is_empty()).collect();
            // Waiting is not worth a step of its own.
            if !busy.is_empty() && (ready.is_empty() || self.rng.below(3) == 0) {
                let thread = busy[self.rng.below(busy.len() as u64) as usize];
                let n = threads[thread].in_flight.len() as u64;
                let request = threads[thread].in_flight.swap_remove(self.rng.below(n) as usize);
                self.complete(request);
            } else if !ready.is_empty() {
                let thread = &mut threads[ready[self.rng.below(ready.len() as u64) as usize]];
                if !thread.is_busy() {
                    left -= 1;
                    self.begin(thread, &target, &mut generations);
                }
                self.step(thread, &target);
            } else {
                break;
            }
        }
    }

    fn begin(&mut self, thread: &mut Thread, target: &Target, generations: &mut [u32]) {
        let own = (target.units - thread.n).div_ceil(target.threads);
        let unit = thread.n + target.threads * self.rng.below(own.into()) as u32;
        generations[unit as usize] += 1;
        let (unit, r#gen) = (u64::from(unit), generations[unit as usize]);
        thread.steps = thread.committer.commit();
        thread.steps.reverse();
        (thread.unit, thread.r#gen) = (unit, r#gen);
        let (offset, len) = (target.offset_of(unit), target.unit);
        self.mark(&[MarkText::Intent {
            file: 1,
            unit,
            r#gen,
            offset,
            len,
            flags: FLAGS,
            at: None,
        }]);
    }

    fn step(&mut self, thread: &mut Thread, target: &Target) {
        let (unit, r#gen) = (thread.unit, thread.r#gen);
        let stamp = stamp(target, unit, r#gen);
        match thread.steps.pop() {
            Some(Step::Page { from, len }) => {
                let mut page = vec![0; target.unit as usize];
                payload::fill(&mut page, stamp);
                let offset = target.offset_of(unit) + u64::from(from);
                let request =
                    self.write(offset, &page[from as usize..(from + len) as usize], false);
                self.sent.push(Sent { request, kind: Kind::Page, unit, r#gen, from });
                thread.in_flight.push(request);
            }
            Some(Step::Slot) => {
                let mut slot = vec![0; slot_len(target) as usize];
                fill_slot(&mut slot, stamp);
                let request = self.write(slot_of(target, unit).unwrap().start, &slot, false);
                self.sent.push(Sent { request, kind: Kind::Slot, unit, r#gen, from: 0 });
                thread.in_flight.push(request);
            }
            Some(Step::Flush) => {
                let flush = self.submit(Op::FLUSH);
                thread.in_flight.push(flush);
            }
            Some(Step::Wait) | None => {}
            Some(Step::Acknowledge) => {
                let result = target.unit.into();
                self.mark(&[MarkText::Done { file: 1, unit, r#gen, result }]);
            }
        }
    }

    /// The recording is whole: no event follows.
    pub(super) fn end(mut self) -> Recorded {
        self.writer = None;
        let path = self.dir.path().join("disk.recording");
        let reader = Arc::new(Reader::open(&path).unwrap());
        let events: Vec<(Seq, Event)> = reader.events().map(Result::unwrap).collect();
        let disk = reader.header().disk.clone();
        let history = Arc::new(History::new(disk, events.iter().cloned()).unwrap());
        let subject = Subject::find(&path, &events).unwrap().unwrap();
        assert_eq!(subject, self.subject);
        Recorded { sent: self.sent, dir: self.dir, path, reader, events, history, subject }
    }
}

struct Thread {
    n: u32,
    committer: Committer,
    /// The next one last.
    steps: Vec<Step>,
    unit: u64,
    r#gen: u32,
    in_flight: Vec<Seq>,
}

impl Thread {
    fn is_waiting(&self) -> bool {
        self.steps.last() == Some(&Step::Wait) && !self.in_flight.is_empty()
    }

    fn is_busy(&self) -> bool {
        !self.steps.is_empty()
    }
}

pub(super) fn stamp(target: &Target, unit: u64, generation: u32) -> Stamp {
    Stamp { nonce: NONCE, unit, file: target.file, generation, sector: 0, sectors: 0 }
}

/// A recording, read.
pub(super) struct Recorded {
    pub(super) sent: Vec<Sent>,
    #[allow(dead_code)]
    dir: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(super) reader: Arc<Reader>,
    pub(super) events: Vec<(Seq, Event)>,
    pub(super) history: Arc<History>,
    pub(super) subject: Subject,
}

impl Recorded {
    pub(super) fn units(&self, profile: &str) -> WorkloadUnits {
        let profile: Profile = profile.parse().unwrap();
        let reader = Arc::clone(&self.reader);
        WorkloadUnits::of_recording(
            reader,
            None,
            Trust::Unchanged,
            &self.events,
            Arc::clone(&self.history),
            &self.subject,
            profile,
        )
        .unwrap()
    }

    pub(super) fn ids(&self) -> RecordingIds {
        RecordingIds::new(Arc::clone(&self.reader), None, Trust::Unchanged).unwrap()
    }

    /// Explores it in place, with one profile.
    pub(super) fn explore(&self, profile: &str, settings: Settings) -> Found {
        let units = self.units(profile);
        let promises = units.ledgers().promises();
        let ids = self.ids();
        let settings = Settings { profiles: vec![profile.parse().unwrap()], ..settings };
        let job = Job {
            history: &self.history,
            ids: &ids,
            promises: &promises,
            explain: units.carried(),
            settings: &settings,
            before: None,
        };
        let mut found = Found::default();
        let summary = explore(
            &job,
            &|_| Ok(Box::new(InPlace::new(&units))),
            &mut found,
            &AtomicBool::new(false),
        )
        .unwrap();
        found.counts = summary.counts;
        found
    }
}

/// What an exploration found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) failures: Vec<Failure>,
    pub(super) counts: Counts,
}

impl Sink for Found {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        self.failures.push(failure.clone());
        Ok(())
    }

    fn unsure(&mut self, state: &StateText, why: &str) {
        panic!("{state}: {why}");
    }
}

//! Between the guest's marks and the device: records each mark, and cuts the power where the plan
//! says so.

use super::{Arm, Disk, Host, RunError};
use crate::oracle::{Key, LedgerBuilder};
use crate::splat::Watch;
use crate::suite::{Cut, CutKind, Place, Plan};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{MarkText, Target, Workload};
use tornblk_agent::race::{DeviceAnswer, DeviceAsk, RaceFinding};
use tornblk_model::crash::{Fault, FaultKind};
use tornblk_proto::{Crashed, Match, NamedWrites, OpKind, Range, Trigger};

/// Marks with the events that recorded them, batch by batch.
pub(crate) type Batches = Vec<Vec<(u64, MarkText)>>;

pub(super) struct Relay<'a> {
    disk: &'a mut dyn Disk,
    workload: &'a Workload,
    /// The target is the disk itself, so a unit's bytes are known.
    raw: bool,
    profile: &'a str,
    cut: &'a Cut,
    interrupted: &'a AtomicBool,
    live: LedgerBuilder<'a>,
    intents: u32,
    stage: Stage,
    write: Option<Key>,
    pub(super) batches: Batches,
    pub(super) crashed: Option<Crashed>,
    /// The power was cut where the plan says, not at rest after the workload.
    pub(super) fired: bool,
    pub(super) error: Option<RunError>,
    seen: &'a mut dyn FnMut(&str),
    looked: Instant,
    /// What a race saw broken.
    pub(super) found: Vec<RaceFinding>,
    /// The guest's console.
    pub(super) watch: Option<Watch>,
    /// What a race had the disk hold back.
    stalls: Vec<u64>,
}

/// How often the device's log is looked at.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The write that it begins at was not asked for yet.
    Before,
    /// The device cuts by itself.
    Armed,
    /// Cut when this write has returned.
    UntilTold {
        file: u32,
        unit: u64,
        r#gen: u32,
    },
    /// Cut when this write is durable.
    UntilDurable {
        file: u32,
        unit: u64,
        r#gen: u32,
    },
    Over,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        disk: &'a mut dyn Disk,
        workload: &'a Workload,
        raw: bool,
        profile: &'a str,
        cut: &'a Cut,
        interrupted: &'a AtomicBool,
        seen: &'a mut dyn FnMut(&str),
    ) -> Relay<'a> {
        Relay {
            disk,
            workload,
            raw,
            profile,
            cut,
            interrupted,
            live: LedgerBuilder::new(workload),
            intents: 0,
            stage: Stage::Before,
            write: None,
            batches: Vec::new(),
            crashed: None,
            fired: true,
            error: None,
            seen,
            looked: Instant::now(),
            found: Vec::new(),
            watch: None,
            stalls: Vec::new(),
        }
    }

    /// Tells what the device says of writes that arrived otherwise than they should.
    pub(super) fn look_at_the_wire(&mut self) {
        for text in self.disk.seen() {
            (self.seen)(&text);
        }
        self.looked = Instant::now();
    }

    /// How the writes arrived that say how long they are.
    pub(super) fn named(&mut self) -> Result<NamedWrites, RunError> {
        self.disk.named()
    }

    /// The write that the plan began at.
    pub(super) fn write(&self) -> Option<Key> {
        self.write
    }

    /// The workload ended and nobody said that the power is off: it is cut now, unless what was
    /// armed came at the last moment.
    pub(super) fn cut_now(&mut self) -> Result<(), RunError> {
        self.crashed = self.disk.disarm()?;
        if self.crashed.is_none() {
            self.fired = matches!(self.cut.plan, Plan::Race { .. });
            self.arm(Trigger::Now)?;
            self.crashed = self.disk.crashed(Duration::from_secs(60))?;
        }
        self.stage = Stage::Over;
        Ok(())
    }

    /// The disk holds nothing back any more for a race that was stopped in its middle: the guest that
    /// recovers must not wait for it.
    pub(super) fn let_go(&mut self) {
        for token in std::mem::take(&mut self.stalls) {
            self.disk.ask(DeviceAsk::Release { token });
        }
    }

    /// Is all of it on record? If not, the power is off.
    fn record(&mut self, marks: &[MarkText]) -> Result<bool, RunError> {
        let mut batch = Vec::with_capacity(marks.len());
        let number = self.batches.len() as u64 + 1;
        for mark in marks {
            // `None`: the power is off, and what comes now never happened.
            let Some(event) = self.disk.mark(&mark.to_record(number))? else { break };
            batch.push((event, mark.clone()));
        }
        let complete = batch.len() == marks.len();
        self.live.batch(batch.iter().cloned());
        self.batches.push(batch);
        if !complete {
            return Ok(false);
        }
        // The whole batch is on record before anything is armed: its writes begin together, when
        // it is acknowledged.
        for mark in marks {
            self.look(mark)?;
        }
        Ok(true)
    }

    fn look(&mut self, mark: &MarkText) -> Result<(), RunError> {
        match (self.stage, mark) {
            (Stage::Before, MarkText::Intent { file, unit, r#gen, at, .. })
                if self.live.ledger().load_done.is_some() =>
            {
                self.intents += 1;
                if self.intents >= self.cut.plan.write() {
                    self.begin(Key { file: *file, unit: *unit, r#gen: *r#gen }, *at)?;
                }
            }
            (
                Stage::UntilTold { file, unit, r#gen },
                MarkText::Done { file: f, unit: u, r#gen: g, .. },
            ) if (*f, *u, *g) == (file, unit, r#gen) => {
                self.arm(Trigger::Now)?;
                self.stage = Stage::Armed;
            }
            (Stage::UntilDurable { file, unit, r#gen }, _) => {
                let durable = self.live.ledger().unit(file, unit).and_then(|u| u.durable);
                if durable >= Some(r#gen) {
                    self.arm(Trigger::Now)?;
                    self.stage = Stage::Armed;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The write that the plan begins at is about to be asked for.
    /// `at`: where its file system says that it lies on the disk.
    fn begin(&mut self, write: Key, at: Option<u64>) -> Result<(), RunError> {
        self.write = Some(write);
        let Key { file, unit, r#gen } = write;
        let op = |op, nth| Match { op: Some(op), nth: Some(nth), ..Match::default() };
        let trigger = match &self.cut.plan {
            Plan::Spread { kind, .. } => match kind {
                CutKind::Submitted(n) => Trigger::Submit(op(OpKind::Write, u64::from(*n))),
                CutKind::Executed(n) => Trigger::Complete(op(OpKind::Write, u64::from(*n))),
                CutKind::FlushSubmitted => Trigger::Submit(op(OpKind::Flush, 1)),
                CutKind::FlushExecuted => Trigger::Complete(op(OpKind::Flush, 1)),
                CutKind::Told => {
                    self.stage = Stage::UntilTold { file, unit, r#gen };
                    return Ok(());
                }
            },
            // It is cut when it is over.
            Plan::Race { .. } => return Ok(()),
            Plan::Placed { fault, .. } => {
                let range = self.range(file, unit, at);
                let spec = placed(&fault.fault, range);
                self.disk.fault(&spec.to_string())?;
                if fault.place == Place::Acknowledged {
                    self.stage = Stage::UntilDurable { file, unit, r#gen };
                    return Ok(());
                }
                let eligible = spec.kind == FaultKind::TearAtomic;
                let range = range.map(|(offset, len)| Range { offset, len });
                Trigger::Complete(Match { range, eligible, ..op(OpKind::Write, 1) })
            }
        };
        self.arm(trigger)?;
        self.stage = Stage::Armed;
        Ok(())
    }

    /// Where a unit lies on the disk, if that is known.
    fn range(&self, file: u32, unit: u64, at: Option<u64>) -> Option<(u64, u64)> {
        let target: &Target = self.workload.files.iter().find(|t| t.file == file)?;
        let begin = if self.raw { Some(target.disk_offset_of(unit)) } else { at };
        begin.map(|begin| (begin, u64::from(target.unit)))
    }

    fn arm(&mut self, at: Trigger) -> Result<(), RunError> {
        // A placed loss of what was acknowledged keeps nothing that may be lost, so that it shows
        // for certain.
        let nothing = match &self.cut.plan {
            Plan::Spread { .. } => false,
            Plan::Placed { fault, .. } => {
                fault.place == Place::Acknowledged && fault.fault.kind == FaultKind::IgnoreFlush
            }
            Plan::Race { wrong } => wrong.is_some(),
        };
        self.disk.arm(&Arm {
            at,
            seed: self.cut.seed,
            profile: self.profile.to_owned(),
            state: nothing.then(|| "none".to_owned()),
        })
    }
}

/// The fault on the one write that is meant: the first request from now on that carries it. A
/// range or count that the user gave is left as it is.
fn placed(fault: &Fault, range: Option<(u64, u64)>) -> Fault {
    let mut fault = fault.clone();
    let given = fault.range.is_some() || fault.nth.is_some() || fault.probability.is_some();
    match fault.kind {
        _ if given => {}
        // Of flushes there are several for one write, and a later one makes good for all.
        FaultKind::IgnoreFlush | FaultKind::ReorderFlush => {}
        FaultKind::StaleRead => fault.range = range,
        FaultKind::TearAtomic
        | FaultKind::LoseWrite
        | FaultKind::Misdirect
        | FaultKind::Corrupt
        | FaultKind::Eio => (fault.range, fault.nth) = (range, Some(1)),
    }
    fault
}

impl Host for Relay<'_> {
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String> {
        if let Some(error) = &self.error {
            return Err(error.to_string());
        }
        let recorded = if self.crashed.is_some() { Ok(false) } else { self.record(marks) };
        match recorded {
            Ok(true) => Ok(()),
            Ok(false) => Err("the power is off".into()),
            Err(error) => {
                let text = error.to_string();
                self.error = Some(error);
                Err(text)
            }
        }
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn ask(&mut self, what: DeviceAsk) -> DeviceAnswer {
        let stalls = matches!(what, DeviceAsk::Stall { .. });
        if let DeviceAsk::Release { token } = &what {
            self.stalls.retain(|held| held != token);
        }
        let answer = self.disk.ask(what);
        if let DeviceAnswer::Token { token } = answer
            && stalls
        {
            self.stalls.push(token);
        }
        answer
    }

    fn found(&mut self, finding: RaceFinding) {
        // What a control finds is what it is for.
        if self.cut.number > 0 {
            (self.seen)(&format!("{}: {}", finding.clause, finding.text));
        }
        self.found.push(finding);
    }

    fn stop(&mut self) -> bool {
        if self.looked.elapsed() > LOOK {
            self.look_at_the_wire();
        }
        if self.watch.as_mut().is_some_and(|watch| watch.complained().is_some()) {
            return true;
        }
        if self.crashed.is_none() && self.error.is_none() && self.stage == Stage::Armed {
            match self.disk.crashed(Duration::ZERO) {
                Ok(crashed) => self.crashed = crashed,
                Err(error) => self.error = Some(error),
            }
        }
        self.crashed.is_some() || self.error.is_some() || self.interrupted.load(Ordering::Relaxed)
    }
}

/// For commands that make no marks.
pub(super) struct Quiet<'a> {
    pub(super) interrupted: &'a AtomicBool,
    pub(super) watch: Watch,
}

impl Host for Quiet<'_> {
    fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
        Err("nobody records marks now".into())
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn stop(&mut self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.watch.complained().is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fault_is_placed_on_one_write_unless_the_user_placed_it() {
        let place = |text: &str, range| placed(&text.parse().unwrap(), range).to_string();
        let unit = Some((425_984, 16384));
        assert_eq!(place("tear-atomic", unit), "tear-atomic,range=416k+16k,nth=1");
        assert_eq!(place("tear-atomic", None), "tear-atomic,nth=1");
        assert_eq!(place("corrupt,p=0.5", unit), "corrupt,p=0.5");
        assert_eq!(place("lose-write,nth=3", unit), "lose-write,nth=3");
        assert_eq!(place("lose-write,range=0+4k", unit), "lose-write,range=0+4k");
        assert_eq!(place("ignore-flush", unit), "ignore-flush");
    }
}

//! What was promised by each crash point, from the recording's marks alone.
//!
//! The ledger of the whole recording is made once; every change of a unit's promises is kept with
//! the event that made it. So a unit at a crash point costs its own changes, whatever the number of
//! points, and the number of promises at a point is one search.

use super::Promises;
use crate::oracle::{Asked, Ledger, LedgerBuilder, UnitLedger};
use std::collections::{BTreeMap, HashMap};
use tornblk_agent::channel::{MarkText, Workload};
use tornblk_model::event::{Event, Seq};

/// (file, unit)
pub type UnitKey = (u32, u64);

/// The ledger of a recording at every crash point.
#[derive(Clone, Debug, Default)]
pub struct Ledgers {
    units: BTreeMap<UnitKey, Vec<Change>>,
    /// Events at which more was promised than before, or a call was told to have failed; rising.
    acknowledged: Vec<u64>,
    load_done: Option<u64>,
    /// (event, file, negative errno)
    failed_syncs: Vec<(u64, u32, i64)>,
}

/// What was said last, while the marks are read.
#[derive(Default)]
struct Known {
    asked: HashMap<(UnitKey, u32), Asked>,
    durable: HashMap<UnitKey, u32>,
}

/// One thing that a mark changed about a unit.
#[derive(Clone, Copy, Debug)]
struct Change {
    event: u64,
    r#gen: u32,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Asked(Asked),
    Durable,
}

impl Ledgers {
    /// Reads the marks of `workload` among the recording's events, in their order.
    pub fn new<'a>(
        workload: &Workload,
        events: impl IntoIterator<Item = &'a (Seq, Event)>,
    ) -> Ledgers {
        let marks = events.into_iter().filter_map(|(seq, event)| match event {
            Event::Mark(mark) => {
                MarkText::from_record(&mark.name).map(|(batch, mark)| (batch, seq.0, mark))
            }
            _ => None,
        });
        Ledgers::of_marks(workload, marks)
    }

    /// As [`Ledgers::new`], of (number of the batch, event, mark).
    pub fn of_marks(
        workload: &Workload,
        marks: impl IntoIterator<Item = (u64, u64, MarkText)>,
    ) -> Ledgers {
        let mut builder = LedgerBuilder::new(workload);
        let mut ledgers = Ledgers::default();
        let mut known = Known::default();
        for (batch, event, mark) in marks {
            builder.record(batch, event, mark);
            ledgers.note(event, &mut builder, &mut known);
        }
        ledgers
    }

    /// Takes over what the last mark changed.
    fn note(&mut self, event: u64, builder: &mut LedgerBuilder<'_>, known: &mut Known) {
        let touched = builder.take_touched();
        let ledger = builder.ledger();
        let mut acknowledged = false;
        for (file, unit, r#gen) in touched {
            let key = (file, unit);
            let Some(now) = ledger.unit(file, unit) else { continue };
            let changes = self.units.entry(key).or_default();
            if let Some(asked) = now.writes.get(&r#gen)
                && known.asked.insert((key, r#gen), *asked) != Some(*asked)
            {
                changes.push(Change { event, r#gen, what: What::Asked(*asked) });
                acknowledged |= asked.result.is_some() && !asked.complete();
            }
            if let Some(r#gen) = now.durable
                && known.durable.insert(key, r#gen) != Some(r#gen)
            {
                changes.push(Change { event, r#gen, what: What::Durable });
                acknowledged = true;
            }
        }
        self.load_done = ledger.load_done;
        for (file, result) in &ledger.failed_syncs[self.failed_syncs.len()..] {
            self.failed_syncs.push((event, *file, *result));
            acknowledged = true;
        }
        if acknowledged {
            self.acknowledged.push(event);
        }
    }

    /// The acknowledgements, for the engine.
    pub fn promises(&self) -> Promises {
        Promises::new(self.acknowledged.iter().copied().map(Seq))
    }

    /// How many acknowledgements lie at or before this crash point. Rises with the point.
    pub fn count(&self, after: Seq) -> u64 {
        self.acknowledged.partition_point(|event| *event <= after.0) as u64
    }

    /// Was anything ever promised or asked for?
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What a unit was asked for and promised at this crash point.
    pub fn unit(&self, key: UnitKey, after: Seq) -> UnitLedger {
        self.units.get(&key).map(|changes| replay(changes, after.0)).unwrap_or_default()
    }

    /// A number that is different at two crash points only where [`Ledgers::unit`] is.
    pub fn version(&self, key: UnitKey, after: Seq) -> u64 {
        let changes = self.units.get(&key).map_or(&[][..], Vec::as_slice);
        changes.partition_point(|change| change.event <= after.0) as u64
    }

    /// Event of the mark that ended the load.
    pub fn load_done(&self) -> Option<Seq> {
        self.load_done.map(Seq)
    }

    /// Syncs that failed before this crash point: (file, negative errno).
    pub fn failed_syncs(&self, after: Seq) -> Vec<(u32, i64)> {
        let before = self.failed_syncs.iter().filter(|(event, ..)| *event <= after.0);
        before.map(|(_, file, result)| (*file, *result)).collect()
    }

    /// All of it at one crash point.
    pub fn ledger(&self, after: Seq) -> Ledger {
        let units: BTreeMap<UnitKey, UnitLedger> = self
            .units
            .keys()
            .map(|key| (*key, self.unit(*key, after)))
            .filter(|(_, unit)| *unit != UnitLedger::default())
            .collect();
        let writes = units.values().flat_map(|u| u.writes.values()).filter(|a| !a.load).count();
        Ledger {
            writes: writes as u64,
            units,
            load_done: self.load_done.filter(|event| *event <= after.0),
            failed_syncs: self.failed_syncs(after),
        }
    }
}

fn replay(changes: &[Change], upto: u64) -> UnitLedger {
    let mut unit = UnitLedger::default();
    for change in changes.iter().take_while(|change| change.event <= upto) {
        match change.what {
            What::Asked(asked) => {
                unit.writes.insert(change.r#gen, asked);
            }
            What::Durable => unit.durable = unit.durable.max(Some(change.r#gen)),
        }
    }
    unit
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::suite::Rng;
    use tornblk_agent::channel::{Prepare, Target, WriteFlags};
    use tornblk_model::event::Mark;

    fn workload() -> Workload {
        let target = |file, prepare| Target {
            file,
            path: format!("/f{file}"),
            offset: 0,
            unit: 4096,
            units: 5,
            threads: 1,
            depth: 4,
            flags: vec![WriteFlags::default()],
            prepare,
            planted: None,
        };
        Workload {
            nonce: 7,
            seed: 1,
            files: vec![target(1, Prepare::Written), target(2, Prepare::Hole)],
            load: true,
            writes: 10,
            sync_every: 0,
            skip_sync: false,
        }
    }

    /// Marks in batches, drawn at random, with events between them.
    fn batches(rng: &mut Rng) -> Vec<Vec<(u64, MarkText)>> {
        let mut event = 0;
        let mut next = |n: u64| {
            event += 1 + n;
            event
        };
        let mut out = Vec::new();
        let mut generations = BTreeMap::new();
        let mut out_there: Vec<(u32, u64, u32)> = Vec::new();
        out.push(vec![(next(3), MarkText::Phase { name: "load-done".into() })]);
        for _ in 0..rng.below(40) {
            let mut batch = Vec::new();
            for _ in 0..rng.below(4) {
                let (file, unit) = (1 + rng.below(2) as u32, rng.below(5));
                let mark = match rng.below(4) {
                    0 | 1 => {
                        let r#gen: &mut u32 = generations.entry((file, unit)).or_default();
                        *r#gen += 1;
                        out_there.push((file, unit, *r#gen));
                        let flags =
                            WriteFlags { dsync: rng.below(3) == 0, ..WriteFlags::default() };
                        let (offset, len) = (unit * 4096, 4096);
                        MarkText::Intent { file, unit, r#gen: *r#gen, offset, len, flags }
                    }
                    2 if !out_there.is_empty() => {
                        let at = rng.below(out_there.len() as u64) as usize;
                        let (file, unit, r#gen) = out_there.swap_remove(at);
                        let result = [4096, 4096, 4096, 512, -5][rng.below(5) as usize];
                        MarkText::Done { file, unit, r#gen, result }
                    }
                    _ => {
                        let since = rng.below(out.len() as u64 + 2);
                        let result = if rng.below(5) == 0 { -5 } else { 0 };
                        MarkText::Synced { file, since, result }
                    }
                };
                batch.push((next(rng.below(3)), mark));
            }
            out.push(batch);
        }
        out
    }

    #[test]
    fn at_every_point_the_ledger_is_the_one_that_is_built_from_the_marks_before_it() {
        let workload = workload();
        let (mut durable, mut failed) = (0, 0);
        for seed in 0..100 {
            let batches = batches(&mut Rng::new(seed, &["promises"], 0));
            let events: Vec<(Seq, Event)> = batches
                .iter()
                .enumerate()
                .flat_map(|(i, batch)| batch.iter().map(move |mark| (i as u64 + 1, mark)))
                .map(|(batch, (event, mark))| {
                    (Seq(*event), Event::Mark(Mark { name: mark.to_record(batch) }))
                })
                .collect();
            let ledgers = Ledgers::new(&workload, &events);
            let last = events.last().unwrap().0.0;
            let mut before: Option<(Ledger, u64)> = None;
            for after in 0..=last + 1 {
                let mut builder = LedgerBuilder::new(&workload);
                for batch in &batches {
                    builder.batch(batch.iter().filter(|(event, _)| *event <= after).cloned());
                }
                let expected = builder.finish();
                let found = ledgers.ledger(Seq(after));
                assert_eq!(found, expected, "seed {seed}, after {after}");
                durable += expected.units.values().filter(|u| u.acknowledged()).count();
                failed += expected.failed_syncs.len();
                let count = ledgers.count(Seq(after));
                if let Some((old, old_count)) = before {
                    let promised = |l: &Ledger| {
                        let units = l.units.iter().map(|(k, u)| (*k, u.durable));
                        (units.collect::<Vec<_>>(), l.failed_syncs.len())
                    };
                    assert!(count >= old_count);
                    let durable =
                        |l: &Ledger| promised(l).0.into_iter().filter(|u| u.1.is_some()).collect();
                    let (then, now): (Vec<_>, Vec<_>) = (durable(&old), durable(&found));
                    if then != now || promised(&old).1 != promised(&found).1 {
                        assert!(count > old_count, "seed {seed}, after {after}");
                    }
                    for (key, unit) in &found.units {
                        if old.units.get(key) != Some(unit) {
                            let version = |at| ledgers.version(*key, Seq(at));
                            assert_ne!(version(after), version(after - 1), "{key:?} at {after}");
                        }
                    }
                }
                before = Some((found, count));
            }
        }
        assert!(durable > 1000 && failed > 100, "{durable} {failed}");
    }

    #[test]
    fn marks_of_others_promise_nothing() {
        let name = r#"{"m":"done","file":1,"unit":0,"gen":1,"result":4096}"#.to_owned();
        let events = [(Seq(1), Event::Mark(Mark { name }))];
        let ledgers = Ledgers::new(&workload(), &events);
        assert!(ledgers.is_empty() && ledgers.count(Seq(9)) == 0);
    }
}

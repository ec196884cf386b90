//! What was promised by each crash point, from the recording's marks alone.
//!
//! The ledger of the whole recording is made once; every change of a unit's promises is kept with
//! the event that made it. So what is asked about a unit at a crash point is a search among its own
//! changes, whatever the number of points, and the number of promises at a point is one search.

use super::Promises;
use crate::oracle::{Asked, Asking, Ledger, LedgerBuilder, UnitLedger};
use std::collections::{BTreeMap, BTreeSet};
use tornblk_agent::channel::{MarkText, Workload};
use tornblk_model::event::{Event, Seq};

/// (file, unit)
pub type UnitKey = (u32, u64);

/// The ledger of a recording at every crash point.
#[derive(Clone, Debug, Default)]
pub struct Ledgers {
    units: BTreeMap<UnitKey, UnitHistory>,
    /// Events at which more was promised than before, or a call was told to have failed; rising.
    acknowledged: Vec<u64>,
    load_done: Option<u64>,
    /// (event, file, negative errno)
    failed_syncs: Vec<(u64, u32, i64)>,
}

/// What marks said about one unit. All lists rise by event.
#[derive(Clone, Debug, Default)]
struct UnitHistory {
    /// Events that changed anything here.
    events: Vec<u64>,
    /// By generation: what was known of its write, and since when.
    asked: BTreeMap<u32, Vec<(u64, Asked)>>,
    /// (since, the newest generation that had to survive)
    durable: Vec<(u64, u32)>,
    /// (since, the newest generation that was asked for)
    newest: Vec<(u64, u32)>,
    /// (since, a generation whose write did not return all of its bytes)
    failed: Vec<(u64, u32)>,
    /// Since when there is a write through the page cache, but for the load.
    buffered: Option<u64>,
}

/// A unit at a crash point.
#[derive(Clone, Copy, Debug)]
pub struct UnitAt<'a> {
    unit: Option<&'a UnitHistory>,
    after: u64,
}

/// The last of these at or before an event.
fn at<T: Copy>(list: &[(u64, T)], after: u64) -> Option<T> {
    let next = list.partition_point(|(event, _)| *event <= after);
    next.checked_sub(1).map(|i| list[i].1)
}

impl Asking for UnitAt<'_> {
    fn durable(&self) -> Option<u32> {
        self.unit.and_then(|unit| at(&unit.durable, self.after))
    }

    fn asked(&self, r#gen: u32) -> Option<Asked> {
        self.unit.and_then(|unit| at(unit.asked.get(&r#gen)?, self.after))
    }

    fn newest(&self) -> Option<u32> {
        self.unit.and_then(|unit| at(&unit.newest, self.after))
    }

    fn buffered(&self) -> bool {
        self.unit.and_then(|unit| unit.buffered).is_some_and(|since| since <= self.after)
    }

    fn failed(&self) -> Vec<(u32, Asked)> {
        let failed = self.unit.map_or(&[][..], |unit| &unit.failed);
        let before = failed.iter().take_while(|(event, _)| *event <= self.after);
        let generations: BTreeSet<u32> = before.map(|(_, r#gen)| *r#gen).collect();
        generations.into_iter().filter_map(|g| Some((g, self.asked(g)?))).collect()
    }
}

impl UnitHistory {
    fn touch(&mut self, event: u64) {
        if self.events.last() != Some(&event) {
            self.events.push(event);
        }
    }
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
        ledgers.note(0, &mut builder);
        for (batch, event, mark) in marks {
            builder.record(batch, event, mark);
            ledgers.note(event, &mut builder);
        }
        ledgers
    }

    /// Takes over what the last mark changed.
    fn note(&mut self, event: u64, builder: &mut LedgerBuilder<'_>) {
        let touched = builder.take_touched();
        let ledger = builder.ledger();
        let mut acknowledged = false;
        for (file, unit, r#gen) in touched {
            let Some(now) = ledger.unit(file, unit) else { continue };
            let history = self.units.entry((file, unit)).or_default();
            if let Some(asked) = now.writes.get(&r#gen) {
                let known = history.asked.entry(r#gen).or_default();
                if known.last().map(|(_, asked)| asked) != Some(asked) {
                    known.push((event, *asked));
                    history.touch(event);
                    if asked.result.is_some() && !asked.complete() {
                        history.failed.push((event, r#gen));
                        acknowledged = true;
                    }
                    if history.newest.last().is_none_or(|(_, newest)| *newest < r#gen) {
                        history.newest.push((event, r#gen));
                    }
                    if !asked.load && !asked.flags.direct {
                        history.buffered.get_or_insert(event);
                    }
                }
            }
            if let Some(r#gen) = now.durable
                && history.durable.last().is_none_or(|(_, durable)| *durable != r#gen)
            {
                history.durable.push((event, r#gen));
                history.touch(event);
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

    /// Was nothing ever promised?
    pub fn is_empty(&self) -> bool {
        self.acknowledged.is_empty()
    }

    /// What a unit was asked for and promised at this crash point. Costs nothing until it is asked.
    pub fn unit(&self, key: UnitKey, after: Seq) -> UnitAt<'_> {
        UnitAt { unit: self.units.get(&key), after: after.0 }
    }

    /// A number that is the same at two crash points only where nothing was said about the unit in
    /// between.
    pub fn version(&self, key: UnitKey, after: Seq) -> u64 {
        let events = self.units.get(&key).map_or(&[][..], |unit| &unit.events);
        events.partition_point(|event| *event <= after.0) as u64
    }

    /// The events that said something about a unit, rising.
    pub fn events_of(&self, key: UnitKey) -> &[u64] {
        self.units.get(&key).map_or(&[], |unit| &unit.events)
    }

    /// Event of the mark that ended the load.
    pub fn load_done(&self) -> Option<Seq> {
        self.load_done.map(Seq)
    }

    /// Syncs that failed before this crash point: (file, negative errno).
    pub fn failed_syncs(&self, after: Seq) -> Vec<(u32, i64)> {
        let before = self.failed_syncs.iter().take_while(|(event, ..)| *event <= after.0);
        before.map(|(_, file, result)| (*file, *result)).collect()
    }

    /// All of it at one crash point, as [`oracle::judge`](crate::oracle::judge) takes it.
    pub fn ledger(&self, after: Seq) -> Ledger {
        let units: BTreeMap<UnitKey, UnitLedger> = self
            .units
            .iter()
            .filter(|(_, history)| history.events.first().is_some_and(|event| *event <= after.0))
            .map(|(key, history)| {
                let writes = history.asked.iter();
                let writes = writes.filter_map(|(g, known)| Some((*g, at(known, after.0)?)));
                let durable = at(&history.durable, after.0);
                (*key, UnitLedger { writes: writes.collect(), durable })
            })
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
            ..Target::default()
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
                        MarkText::Intent { file, unit, r#gen: *r#gen, offset, len, flags, at: None }
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
                for (key, unit) in &expected.units {
                    let lazy = ledgers.unit(*key, Seq(after));
                    let generations: Vec<u32> = unit.writes.keys().copied().collect();
                    for r#gen in generations.into_iter().chain([99]) {
                        assert_eq!(lazy.asked(r#gen), Asking::asked(unit, r#gen));
                    }
                    assert_eq!(lazy.durable(), Asking::durable(unit));
                    assert_eq!(lazy.newest(), unit.newest());
                    assert_eq!(lazy.buffered(), unit.buffered());
                    assert_eq!(lazy.failed(), unit.failed());
                }
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

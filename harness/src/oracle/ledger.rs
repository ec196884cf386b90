//! What the guest asked for and was told before the cut, from its marks.

use std::collections::BTreeMap;
use tornblk_agent::channel::{MarkText, Workload, WriteFlags};

/// The mark that ends the load.
const LOAD_DONE: &str = "load-done";

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub offset: u64,
    pub len: u32,
    pub flags: WriteFlags,
    /// Event of the intent's mark.
    pub event: u64,
    /// Result of the call, once it returned: bytes or a negative errno.
    pub result: Option<i64>,
    /// It belongs to the load, before the workload proper.
    pub load: bool,
    /// Where on the disk its bytes lay before (bytes), where that was said.
    pub at: Option<u64>,
}

impl Asked {
    /// Whole whatever the disk promises: the kernel said so, or the protocol that committed it does.
    pub fn must_be_whole(&self) -> bool {
        self.flags.atomic || self.flags.protocol
    }

    pub fn complete(&self) -> bool {
        self.result == Some(i64::from(self.len))
    }
}

/// Everything about one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitLedger {
    /// By generation.
    pub writes: BTreeMap<u32, Asked>,
    /// The newest generation that had to survive.
    pub durable: Option<u32>,
}

impl UnitLedger {
    /// Did the workload proper write what had to survive? What the load wrote was stable long
    /// before any cut, so it shows nothing.
    pub fn acknowledged(&self) -> bool {
        self.durable.and_then(|g| self.writes.get(&g)).is_some_and(|asked| !asked.load)
    }
}

/// The state of all promises at the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub units: BTreeMap<(u32, u64), UnitLedger>,
    /// Event of the mark that ended the load.
    pub load_done: Option<u64>,
    /// Writes asked for after the load.
    pub writes: u64,
    /// Calls of fsync or fdatasync that failed: (file, negative errno).
    pub failed_syncs: Vec<(u32, i64)>,
}

impl Ledger {
    pub fn unit(&self, file: u32, unit: u64) -> Option<&UnitLedger> {
        self.units.get(&(file, unit))
    }
}

/// Builds a [`Ledger`] from the batches of marks in the order in which the device recorded them.
#[derive(Clone, Debug)]
pub struct LedgerBuilder<'a> {
    workload: &'a Workload,
    ledger: Ledger,
    /// Number of the batch, counted from 1 as the agent does.
    batch: u64,
    /// Writes that returned but are not known to be durable: (file, unit, gen) → batch.
    returned: BTreeMap<(u32, u64, u32), u64>,
    /// Generations that something was said about since this was last asked for.
    touched: Vec<(u32, u64, u32)>,
}

impl<'a> LedgerBuilder<'a> {
    pub fn new(workload: &'a Workload) -> Self {
        let mut builder = LedgerBuilder {
            workload,
            ledger: Ledger::default(),
            batch: 0,
            returned: BTreeMap::new(),
            touched: Vec::new(),
        };
        // The load makes no marks until it is done, but it is under way.
        builder.load(0, false);
        builder
    }

    /// The next batch that the agent sent: each mark with the event that recorded it. Leave out
    /// marks that were recorded after the cut, and go on no further than the batch they were in.
    pub fn batch(&mut self, marks: impl IntoIterator<Item = (u64, MarkText)>) {
        self.batch += 1;
        for (event, mark) in marks {
            self.mark(event, mark);
        }
    }

    /// The next mark, as it was recorded: `batch` is the number of the batch that it was in. Not to
    /// be mixed with [`LedgerBuilder::batch`].
    pub fn record(&mut self, batch: u64, event: u64, mark: MarkText) {
        self.batch = batch;
        self.mark(event, mark);
    }

    fn mark(&mut self, event: u64, mark: MarkText) {
        match mark {
            MarkText::Intent { file, unit, r#gen, offset, len, flags, at } => {
                let load = self.workload.load && self.ledger.load_done.is_none();
                self.ledger.writes += u64::from(!load);
                let asked = Asked { offset, len, flags, event, result: None, load, at };
                self.unit(file, unit, r#gen).writes.insert(r#gen, asked);
            }
            MarkText::Done { file, unit, r#gen, result } => {
                let Some(asked) = self.unit(file, unit, r#gen).writes.get_mut(&r#gen) else {
                    return;
                };
                asked.result = Some(result);
                if !asked.complete() {
                    return;
                }
                if asked.flags.dsync || asked.flags.protocol {
                    self.durable(file, unit, r#gen);
                } else {
                    self.returned.insert((file, unit, r#gen), self.batch);
                }
            }
            MarkText::Synced { file, since, result } => {
                if result < 0 {
                    self.ledger.failed_syncs.push((file, result));
                    return;
                }
                let covered: Vec<_> = self
                    .returned
                    .iter()
                    .filter(|((f, ..), batch)| *f == file && **batch <= since)
                    .map(|(key, _)| *key)
                    .collect();
                for (file, unit, r#gen) in covered {
                    self.returned.remove(&(file, unit, r#gen));
                    self.durable(file, unit, r#gen);
                }
            }
            MarkText::Phase { name } if name == LOAD_DONE => self.load_done(event),
            MarkText::Phase { .. } | MarkText::Said { .. } => {}
        }
    }

    /// The load is durable as a whole, with marks of its own or without.
    fn load_done(&mut self, event: u64) {
        self.ledger.load_done = Some(event);
        for ((file, unit, r#gen), _) in std::mem::take(&mut self.returned) {
            self.durable(file, unit, r#gen);
        }
        self.load(event, true);
    }

    /// Generation 0 of every unit that is loaded: asked for, and where it is `done` durable.
    fn load(&mut self, event: u64, done: bool) {
        for target in &self.workload.files {
            if !target.is_loaded(self.workload.load) {
                continue;
            }
            for unit in 0..u64::from(target.units) {
                let asked = Asked {
                    offset: target.offset_of(unit),
                    len: target.unit,
                    flags: WriteFlags::default(),
                    event,
                    result: done.then_some(i64::from(target.unit)),
                    load: true,
                    at: None,
                };
                let known = self.unit(target.file, unit, 0).writes.entry(0).or_insert(asked);
                if known.result.is_none() {
                    *known = asked;
                }
                if done {
                    self.durable(target.file, unit, 0);
                }
            }
        }
    }

    fn unit(&mut self, file: u32, unit: u64, r#gen: u32) -> &mut UnitLedger {
        self.touched.push((file, unit, r#gen));
        self.ledger.units.entry((file, unit)).or_default()
    }

    fn durable(&mut self, file: u32, unit: u64, r#gen: u32) {
        let unit = self.unit(file, unit, r#gen);
        unit.durable = unit.durable.max(Some(r#gen));
    }

    /// The generations that may have changed since this was last called: (file, unit, generation).
    pub fn take_touched(&mut self) -> Vec<(u32, u64, u32)> {
        std::mem::take(&mut self.touched)
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn finish(self) -> Ledger {
        self.ledger
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::oracle::judge::tests::{dsync, intent, workload};
    use tornblk_agent::channel::Prepare;

    fn done(unit: u64, r#gen: u32, result: i64) -> MarkText {
        MarkText::Done { file: 1, unit, r#gen, result }
    }

    fn synced(since: u64, result: i64) -> MarkText {
        MarkText::Synced { file: 1, since, result }
    }

    #[test]
    fn dsync_is_durable_when_it_returned_its_full_length() {
        let w = workload();
        let mut b = LedgerBuilder::new(&w);
        b.batch([(1, intent(0, 1, dsync()))]);
        assert_eq!(b.ledger().unit(1, 0).unwrap().durable, None);
        b.batch([(2, done(0, 1, 16384)), (3, intent(1, 1, dsync()))]);
        b.batch([(4, done(1, 1, 4096))]);
        let ledger = b.finish();
        assert_eq!(ledger.unit(1, 0).unwrap().durable, Some(1));
        assert_eq!(ledger.unit(1, 1).unwrap().durable, None, "a short write promises nothing");
        assert_eq!(ledger.writes, 2);
    }

    #[test]
    fn a_sync_covers_only_what_was_done_before_it_began() {
        let w = workload();
        let mut b = LedgerBuilder::new(&w);
        let plain = WriteFlags::default();
        b.batch([(1, intent(0, 1, plain)), (2, intent(1, 1, plain))]);
        b.batch([(3, done(0, 1, 16384))]);
        b.batch([(4, done(1, 1, 16384))]);
        b.batch([(5, synced(2, 0))]);
        assert_eq!(b.ledger().unit(1, 0).unwrap().durable, Some(1));
        assert_eq!(b.ledger().unit(1, 1).unwrap().durable, None, "it returned in batch 3");
        b.batch([(6, synced(4, -5))]);
        assert_eq!(b.ledger().unit(1, 1).unwrap().durable, None, "a failed sync covers nothing");
        assert_eq!(b.ledger().failed_syncs, [(1, -5)]);
        b.batch([(7, synced(4, 0))]);
        assert_eq!(b.ledger().unit(1, 1).unwrap().durable, Some(1));
    }

    #[test]
    fn a_sync_of_another_file_covers_nothing() {
        let w = workload();
        let mut b = LedgerBuilder::new(&w);
        b.batch([(1, intent(0, 1, WriteFlags::default()))]);
        b.batch([(2, done(0, 1, 16384))]);
        b.batch([(3, MarkText::Synced { file: 2, since: 2, result: 0 })]);
        assert_eq!(b.ledger().unit(1, 0).unwrap().durable, None);
    }

    #[test]
    fn the_load_is_durable_with_marks_of_its_own_or_without() {
        let mut w = workload();
        w.load = true;
        let mut b = LedgerBuilder::new(&w);
        let unit = b.ledger().unit(1, 0).unwrap();
        assert!(unit.writes.contains_key(&0) && unit.durable.is_none(), "it is under way");
        b.batch([(1, intent(0, 0, WriteFlags::default())), (2, done(0, 0, 16384))]);
        b.batch([(3, MarkText::Phase { name: "load-done".into() })]);
        assert_eq!(b.ledger().unit(1, 0).unwrap().durable, Some(0));
        assert_eq!(b.ledger().unit(1, 3).unwrap().durable, Some(0));
        assert_eq!(b.ledger().writes, 0, "the load is not counted");

        w.files[0].prepare = Prepare::Hole;
        let mut b = LedgerBuilder::new(&w);
        b.batch([(3, MarkText::Phase { name: "load-done".into() })]);
        assert!(b.ledger().unit(1, 0).is_none());
    }
}

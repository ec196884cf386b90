//! Judges units by the contents of their blocks: no image, no guest.
//!
//! What a unit's verdict is depends on what its blocks hold and on what is promised of it, so each
//! such pair is judged once, as long as that is remembered. From one view to the next only the units
//! are looked at that the change touches; how many are bad is kept.

use super::seen::{AsIs, words};
use super::{ExploreError, Point, State, UnitBlocks, UnitOracle, Verdict, Verifier};
use crate::oracle::Finding;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use tornblk_model::crash::{Source, content_hash};
use tornblk_model::event::Seq;

/// So many verdicts are kept: points far apart have few units in common that hold the same.
const KNOWN: usize = 1 << 18;

/// A [`Verifier`] of a [`UnitOracle`].
pub struct InPlace<'a> {
    oracle: &'a dyn UnitOracle,
    index: Index,
    /// (unit, contents, promise) → findings; `None`: nothing wrong.
    known: HashMap<[u64; 2], Option<Arc<[Finding]>>, BuildHasherDefault<AsIs>>,
    /// Of each unit, at the point that began last.
    promises: Vec<u64>,
    /// What is wrong in the view that was shown last, by unit.
    bad: BTreeMap<usize, Arc<[Finding]>>,
    last_point: Option<Seq>,
    /// Units to look at, each once.
    queue: Vec<u32>,
    queued: Vec<bool>,
    judged: u64,
}

impl<'a> InPlace<'a> {
    pub fn new(oracle: &'a dyn UnitOracle) -> InPlace<'a> {
        let units = oracle.units();
        InPlace {
            oracle,
            index: Index::new(units),
            known: HashMap::default(),
            promises: vec![0; units.len()],
            bad: BTreeMap::new(),
            last_point: None,
            queue: Vec::new(),
            queued: vec![false; units.len()],
            judged: 0,
        }
    }

    /// How often the oracle was asked: mostly once for each content and promise of a unit.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    fn queue(&mut self, unit: u32) {
        if !std::mem::replace(&mut self.queued[unit as usize], true) {
            self.queue.push(unit);
        }
    }

    fn queue_all(&mut self) {
        (0..self.queued.len() as u32).for_each(|unit| self.queue(unit));
    }

    fn queue_changed(&mut self, changed: Option<&[u64]>) {
        let Some(changed) = changed else { return self.queue_all() };
        let index = std::mem::take(&mut self.index);
        let mut last = 0;
        for block in changed {
            last = index.near(*block, last);
            index.units(last).iter().for_each(|unit| self.queue(*unit));
        }
        self.index = index;
    }

    fn look(&mut self, after: Seq, id: impl Fn(u64) -> u64, of: &dyn Fn(u64) -> Source) {
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        let queue = std::mem::take(&mut self.queue);
        for unit in &queue {
            let unit = *unit as usize;
            self.queued[unit] = false;
            let promise = self.promises[unit];
            let blocks = self.oracle.units()[unit].ranges.iter().cloned().flatten();
            // No block has such a number.
            let key = blocks.fold(content_hash(u64::MAX - unit as u64, promise), |sum, block| {
                sum.wrapping_add(content_hash(block, id(block)))
            });
            let oracle = self.oracle;
            let judged = &mut self.judged;
            let verdict = self.known.entry(words(key)).or_insert_with(|| {
                *judged += 1;
                let findings = oracle.judge(unit, after, of);
                (!findings.is_empty()).then(|| findings.into())
            });
            match verdict {
                Some(findings) => drop(self.bad.insert(unit, findings.clone())),
                None if self.bad.is_empty() => {}
                None => drop(self.bad.remove(&unit)),
            }
        }
        self.queue = queue;
        self.queue.clear();
    }
}

impl std::fmt::Debug for InPlace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InPlace")
            .field("units", &self.promises.len())
            .field("bad", &self.bad.len())
            .finish_non_exhaustive()
    }
}

impl Verifier for InPlace<'_> {
    fn is_monotone(&self) -> bool {
        self.oracle.is_monotone()
    }

    fn point(&mut self, point: &Point<'_>) -> Result<(), ExploreError> {
        let between = match self.last_point {
            Some(last) if last == point.after => Some(Vec::new()),
            Some(last) => {
                self.oracle.promised_between(last.min(point.after), last.max(point.after))
            }
            None => None,
        };
        let asked: Vec<usize> = between.unwrap_or_else(|| (0..self.promises.len()).collect());
        for unit in asked {
            let promise = self.oracle.promise(unit, point.after);
            if std::mem::replace(&mut self.promises[unit], promise) != promise
                || self.last_point.is_none()
            {
                self.queue(unit as u32);
            }
        }
        match self.last_point {
            Some(_) => self.queue_changed(point.changed()),
            None => self.queue_all(),
        }
        self.last_point = Some(point.after);
        self.look(point.after, |block| point.id(block), &|block| point.of(block));
        Ok(())
    }

    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.queue_changed(state.changed());
        self.look(state.after, |block| state.id(block), &|block| state.of(block));
        if self.bad.is_empty() {
            return Ok(Verdict::Passed);
        }
        Ok(Verdict::Failed(self.bad.values().flat_map(|f| f.iter().cloned()).collect()))
    }
}

/// Which units a block belongs to.
#[derive(Debug, Default)]
struct Index {
    /// Where each piece begins; it ends where the next begins.
    starts: Vec<u64>,
    units: Vec<Vec<u32>>,
}

impl Index {
    fn new(units: &[UnitBlocks]) -> Index {
        // The units that begin and end at each place.
        let mut edges: BTreeMap<u64, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
        for (unit, blocks) in (0u32..).zip(units) {
            for range in blocks.ranges.iter().filter(|range| !range.is_empty()) {
                edges.entry(range.start).or_default().0.push(unit);
                edges.entry(range.end).or_default().1.push(unit);
            }
        }
        let mut index = Index { starts: vec![0], units: vec![Vec::new()] };
        // A unit whose ranges overlap is open more than once.
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        for (at, (begin, end)) in edges {
            for unit in end {
                if let Some(times) = open.get_mut(&unit) {
                    *times -= 1;
                    if *times == 0 {
                        open.remove(&unit);
                    }
                }
            }
            for unit in begin {
                *open.entry(unit).or_default() += 1;
            }
            index.starts.push(at);
            index.units.push(open.keys().copied().collect());
        }
        index
    }

    /// The piece of this block; quick where it is `last` or the one after it.
    fn near(&self, block: u64, last: usize) -> usize {
        let has = |i: usize| {
            self.starts.get(i).is_some_and(|start| *start <= block)
                && self.starts.get(i + 1).is_none_or(|next| block < *next)
        };
        if has(last) {
            last
        } else if has(last + 1) {
            last + 1
        } else {
            self.starts.partition_point(|start| *start <= block).saturating_sub(1)
        }
    }

    fn units(&self, piece: usize) -> &[u32] {
        self.units.get(piece).map_or(&[], Vec::as_slice)
    }
}

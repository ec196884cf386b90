//! "Each of its cuts was built, or proved equal to one that was": the count of it.

use super::{Cut, ModelError, StateName};
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What became of a state that a strategy chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Its content equals one that was built and judged.
    Equal,
    /// Built and judged.
    Built,
}

/// Which cuts of which writes were looked at. A write of `n` fragments has 2 (n - 1) cuts: after
/// each of its fragments but the last, the first or the second part being there.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    writes: BTreeMap<Seq, BTreeMap<(usize, bool), Outcome>>,
    cuts: BTreeMap<Seq, usize>,
    points: BTreeSet<Seq>,
}

/// The count, to be printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// Writes that can be torn, at the crash points that were looked at.
    pub writes: usize,
    pub cuts: usize,
    pub built: usize,
    pub equal: usize,
}

impl Covered {
    /// Cuts that were neither built nor proved equal.
    pub fn missing(&self) -> usize {
        self.cuts - self.built - self.equal
    }
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Covered { writes, cuts, built, equal } = self;
        write!(f, "{writes} writes that can be torn, {cuts} cuts: {built} built, ")?;
        write!(f, "{equal} equal to one that was built, ")?;
        match self.missing() {
            0 => f.write_str("none missing"),
            missing => write!(f, "{missing} missing"),
        }
    }
}

impl Coverage {
    pub fn new() -> Coverage {
        Coverage::default()
    }

    /// Counts the writes that can be torn at this crash point.
    pub fn visit(&mut self, cut: &Cut<'_>) {
        if !self.points.insert(cut.after) {
            return;
        }
        for i in cut.open_writes().into_keys() {
            let write = &cut.writes[i as usize];
            let n = write.fragments();
            if n > 1 {
                self.cuts.insert(write.id(), 2 * (n - 1));
            }
        }
    }

    /// Notes what became of a state of this crash point.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn note(
        &mut self,
        cut: &Cut<'_>,
        name: &StateName,
        outcome: Outcome,
    ) -> Result<(), ModelError> {
        self.visit(cut);
        let state = cut.state(name)?;
        for (i, open) in cut.open_writes() {
            let write = &cut.writes[i as usize];
            let kept = cut.kept(&state, i);
            // Fragments that cannot show are on either side of every cut.
            let ends = |there: bool| {
                let same = || open.iter().copied().filter(|f| kept.get(*f) == there);
                (same().min(), same().max())
            };
            let ((kept_first, kept_last), (lost_first, lost_last)) = (ends(true), ends(false));
            for (first, before, after) in
                [(true, kept_last, lost_first), (false, lost_last, kept_first)]
            {
                let from = before.map_or(1, |before| before + 1);
                let to = after.unwrap_or(write.fragments() - 1);
                for at in from.max(1)..=to.min(write.fragments() - 1) {
                    let seen = self.writes.entry(write.id()).or_default();
                    let best = seen.entry((at, first)).or_insert(outcome);
                    *best = (*best).max(outcome);
                }
            }
        }
        Ok(())
    }

    pub fn covered(&self) -> Covered {
        let outcomes = || self.writes.values().flat_map(BTreeMap::values);
        Covered {
            writes: self.cuts.len(),
            cuts: self.cuts.values().sum(),
            built: outcomes().filter(|outcome| **outcome == Outcome::Built).count(),
            equal: outcomes().filter(|outcome| **outcome == Outcome::Equal).count(),
        }
    }
}

//! "Each of its cuts was built, or proved equal to one that was": the count of it.

use super::{Cut, Mask, ModelError, StateName};
use crate::event::Seq;
use serde::{Deserialize, Serialize};
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

/// What is known of the cuts of one write: for keeping, and for putting together what was looked at
/// by several. Cut `at` (after fragment `at`, counted from 1) is bit `2 (at - 1)` where the second
/// part is there, and the bit after that where the first is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteCuts {
    pub write: Seq,
    pub cuts: u64,
    /// Masks in hexadecimal, as in states' names.
    pub built: String,
    pub equal: String,
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

    /// All that is known, write by write.
    pub fn writes(&self) -> Vec<WriteCuts> {
        let mask = |write: &Seq, outcome: Outcome| {
            let seen = self.writes.get(write).into_iter().flatten();
            let these = seen.filter(|(_, known)| **known == outcome);
            let mask: Mask =
                these.map(|((at, first), _)| 2 * (at - 1) + usize::from(*first)).collect();
            mask.to_string()
        };
        self.cuts
            .iter()
            .map(|(write, cuts)| WriteCuts {
                write: *write,
                cuts: *cuts as u64,
                built: mask(write, Outcome::Built),
                equal: mask(write, Outcome::Equal),
            })
            .collect()
    }

    /// Adds what was looked at elsewhere, with the same profile. What built it wins.
    ///
    /// # Errors
    /// A mask cannot be read, or names a cut that the write does not have.
    pub fn add(&mut self, cuts: &WriteCuts) -> Result<(), ModelError> {
        let bad = || ModelError::State(format!("the cuts of write {} make no sense", cuts.write));
        let n = usize::try_from(cuts.cuts).map_err(|_| bad())?;
        if *self.cuts.entry(cuts.write).or_insert(n) != n {
            return Err(bad());
        }
        for (mask, outcome) in [(&cuts.built, Outcome::Built), (&cuts.equal, Outcome::Equal)] {
            let mask = Mask::parse(mask).ok_or_else(bad)?;
            if mask.end() > n {
                return Err(bad());
            }
            for bit in mask.iter() {
                let seen = self.writes.entry(cuts.write).or_default();
                let best = seen.entry((bit / 2 + 1, bit % 2 == 1)).or_insert(outcome);
                *best = (*best).max(outcome);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cuts(built: &str, equal: &str) -> WriteCuts {
        WriteCuts { write: Seq(7), cuts: 6, built: built.into(), equal: equal.into() }
    }

    #[test]
    fn what_several_looked_at_is_put_together() {
        let mut coverage = Coverage::new();
        coverage.add(&cuts("3", "4")).unwrap();
        coverage.add(&cuts("4", "9")).unwrap();
        assert_eq!(coverage.writes(), [cuts("7", "8")]);
        let covered = coverage.covered();
        assert_eq!((covered.writes, covered.cuts, covered.built, covered.equal), (1, 6, 3, 1));
        assert_eq!(covered.missing(), 2);
        let mut again = Coverage::new();
        for cuts in coverage.writes() {
            again.add(&cuts).unwrap();
        }
        assert_eq!(again.writes(), coverage.writes());
    }

    #[test]
    fn cuts_that_a_write_does_not_have_are_refused() {
        let mut coverage = Coverage::new();
        coverage.add(&cuts("0", "0")).unwrap();
        assert!(coverage.add(&cuts("40", "0")).is_err());
        assert!(coverage.add(&cuts("x", "0")).is_err());
        assert!(coverage.add(&WriteCuts { cuts: 4, ..cuts("0", "0") }).is_err());
    }
}

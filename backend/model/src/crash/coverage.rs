//! "Each of its cuts was built, or proved equal to one that was": the count of it.

use super::state::State;
use super::{Cut, Mask, ModelError, StateName};
use crate::event::Seq;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What became of a state that a strategy chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its content equals one that was built and judged.
    Equal,
    /// Built and judged.
    Built,
}

/// Which cuts of which writes were looked at. A write of `n` fragments has 2 (n - 1) cuts: after
/// each of its fragments but the last, the first or the second part being there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    writes: BTreeMap<Seq, Cuts>,
}

/// Of one write, by where it is cut (0: after its first fragment): the first part is there, the
/// second is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cuts(Vec<[Option<Outcome>; 2]>);

impl Cuts {
    pub(super) fn new(fragments: usize) -> Cuts {
        Cuts(vec![[None; 2]; fragments - 1])
    }

    /// Notes a state of the write, of which these fragments may show, and are there or not.
    /// Fragments that cannot show are on either side of every cut.
    pub(super) fn note(&mut self, open: impl Iterator<Item = (usize, bool)>, outcome: Outcome) {
        let n = self.0.len() + 1;
        let (mut first, mut last) = ([None; 2], [None; 2]);
        for (fragment, there) in open {
            let side = usize::from(!there);
            first[side].get_or_insert(fragment);
            last[side] = Some(fragment);
        }
        for side in [0, 1] {
            let from = last[side].map_or(1, |before| before + 1).max(1);
            let to = first[1 - side].unwrap_or(n - 1).min(n - 1);
            for at in from..=to {
                let best = &mut self.0[at - 1][side];
                *best = (*best).max(Some(outcome));
            }
        }
    }

    /// [`WriteCuts`]' bits of an outcome.
    fn mask(&self, outcome: Outcome) -> Mask {
        let bits = self.0.iter().flat_map(|[first, second]| [second, first]).enumerate();
        bits.filter(|(_, known)| **known == Some(outcome)).map(|(bit, _)| bit).collect()
    }

    fn add(&mut self, other: &Cuts) {
        // One write has as many fragments in every part of an exploration.
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            for side in [0, 1] {
                own[side] = own[side].max(other[side]);
            }
        }
    }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The cuts of a write of so many fragments, more than one.
    pub(super) fn cuts(&mut self, write: Seq, fragments: usize) -> &mut Cuts {
        self.writes.entry(write).or_insert_with(|| Cuts::new(fragments))
    }

    pub(super) fn add_cuts(&mut self, write: Seq, cuts: &Cuts) {
        let own = self.writes.entry(write);
        own.and_modify(|own| own.add(cuts)).or_insert_with(|| cuts.clone());
    }

    /// What another one noted, of the same recording and profile.
    pub fn merge(&mut self, other: &Coverage) {
        for (write, cuts) in &other.writes {
            self.add_cuts(*write, cuts);
        }
    }

    /// Counts the writes that can be torn at this crash point.
    pub fn visit(&mut self, cut: &Cut<'_>) {
        for i in cut.open_writes().into_keys() {
            let write = &cut.writes[i as usize];
            if write.fragments() > 1 {
                self.cuts(write.id(), write.fragments());
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
        self.note_state(cut, &cut.state(name)?, outcome);
        Ok(())
    }

    pub(super) fn note_state(&mut self, cut: &Cut<'_>, state: &State, outcome: Outcome) {
        for (i, open) in cut.open_writes() {
            let write = &cut.writes[i as usize];
            if write.fragments() > 1 {
                let kept = cut.kept(state, i);
                let open = open.into_iter().map(|f| (f, kept.get(f)));
                self.cuts(write.id(), write.fragments()).note(open, outcome);
            }
        }
    }

    /// All that is known, write by write.
    pub fn writes(&self) -> Vec<WriteCuts> {
        let each = self.writes.iter().map(|(write, cuts)| WriteCuts {
            write: *write,
            cuts: 2 * cuts.0.len() as u64,
            built: cuts.mask(Outcome::Built).to_string(),
            equal: cuts.mask(Outcome::Equal).to_string(),
        });
        each.collect()
    }

    /// Adds what was looked at elsewhere, with the same profile. What built it wins.
    ///
    /// # Errors
    /// A mask cannot be read, or names a cut that the write does not have.
    pub fn add(&mut self, cuts: &WriteCuts) -> Result<(), ModelError> {
        let bad = || ModelError::State(format!("the cuts of write {} make no sense", cuts.write));
        let n = usize::try_from(cuts.cuts).map_err(|_| bad())?;
        let own = self.writes.entry(cuts.write).or_insert_with(|| Cuts::new(n / 2 + 1));
        if !n.is_multiple_of(2) || 2 * own.0.len() != n {
            return Err(bad());
        }
        for (mask, outcome) in [(&cuts.built, Outcome::Built), (&cuts.equal, Outcome::Equal)] {
            let mask = Mask::parse(mask).filter(|mask| mask.end() <= n).ok_or_else(bad)?;
            for bit in mask.iter() {
                let best = &mut own.0[bit / 2][1 - bit % 2];
                *best = (*best).max(Some(outcome));
            }
        }
        Ok(())
    }

    pub fn covered(&self) -> Covered {
        let sides = || self.writes.values().flat_map(|cuts| cuts.0.iter().flatten());
        let count = |outcome| sides().filter(|side| **side == Some(outcome)).count();
        Covered {
            writes: self.writes.len(),
            cuts: sides().count(),
            built: count(Outcome::Built),
            equal: count(Outcome::Equal),
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

//! Every legal state at a crash point, each content once (but for zeroes that more than one
//! request may have written).
//!
//! For every choice of volatile fragments, every choice of what shows in each unsettled block:
//! any persisted write there that no other persisted one is after. An atomic write that shows over
//! others is newer than they are, everywhere, and those choices must not run in a circle. A
//! fragment that is persisted but shows nowhere adds nothing, so such choices are passed over.

use super::cut::Fragment;
use super::state::State;
use super::{Cut, Mask, StateName};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks that show the same in every state.
#[derive(Debug)]
struct Unit {
    blocks: Vec<u64>,
    /// What may show there, in submission order: but for discards that may show through.
    firm: Vec<Fragment>,
    /// What cannot show, but takes part in the order.
    hidden: Vec<Fragment>,
    /// Discards that may or may not show.
    sheer: Vec<Fragment>,
    garbage: bool,
}

/// What makes blocks one unit: what may show, what is hidden there; the block where it stands alone.
type Key = (Vec<Fragment>, Vec<Fragment>, Option<u64>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Base,
    Write(Fragment),
    Garbage,
}

/// All that `exhaustive` chooses from.
#[derive(Debug)]
pub(super) struct Choices {
    /// Volatile fragments, each persisted or lost.
    fragments: Vec<Fragment>,
    units: Vec<Unit>,
}

impl Choices {
    /// How many things there are to choose: fragments, blocks that a discard may have left as they
    /// were, and blocks that may be garbage.
    fn number(&self) -> usize {
        let blocks = |unit: &Unit| unit.sheer.len() + usize::from(unit.garbage);
        self.fragments.len() + self.units.iter().map(blocks).sum::<usize>()
    }

    /// How many choices of fragments there are to try; 0 where there are too many.
    pub(super) fn subsets(&self, at_most: u32) -> u64 {
        subsets(self.number(), self.fragments.len(), at_most)
    }
}

/// How many subsets of `fragments` are tried where there are `choices` in all.
pub(super) fn subsets(choices: usize, fragments: usize, at_most: u32) -> u64 {
    // More than 62 could not be counted, let alone tried.
    if choices <= (at_most as usize).min(62) { 1 << fragments } else { 0 }
}

impl Cut<'_> {
    /// How many independent choices [`super::Strategy::Exhaustive`] has here: volatile fragments
    /// that may show, blocks that discards may have left, blocks that may be garbage. There are at
    /// most two to the power of it states, times the orders of concurrent writes.
    pub fn choices(&self) -> usize {
        self.all_choices().number()
    }

    pub(super) fn all_choices(&self) -> Choices {
        let mut fragments = BTreeSet::new();
        let mut units: BTreeMap<Key, Unit> = BTreeMap::new();
        for (block, open) in &self.open {
            let (mut firm, mut sheer, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
            for i in &open.hidden {
                let write = &self.writes[*i as usize];
                // A discard that may show through forces no order.
                if !self.may_show_through(write) {
                    hidden.extend(write.fragments_over(*block).map(|f| (*i, f)));
                }
            }
            for i in &open.shows {
                let write = &self.writes[*i as usize];
                for fragment in write.fragments_over(*block).map(|f| (*i, f)) {
                    if self.may_show_through(write) {
                        sheer.push(fragment);
                        continue;
                    }
                    firm.push(fragment);
                    if write.stable.is_none() {
                        fragments.insert(fragment);
                    }
                }
            }
            let garbage = self.may_be_garbage(*block);
            // Where all are atomic, their one order decides all blocks alike.
            let alike = sheer.is_empty()
                && !garbage
                && firm.iter().all(|(i, f)| self.writes[*i as usize].is_atomic(*f));
            let key = (firm.clone(), hidden.clone(), (!alike).then_some(*block));
            units
                .entry(key)
                .or_insert_with(|| Unit { blocks: Vec::new(), firm, hidden, sheer, garbage })
                .blocks
                .push(*block);
        }
        Choices { fragments: fragments.into_iter().collect(), units: units.into_values().collect() }
    }

    /// Every legal state, or none where there are more than `at_most` choices; one fragment
    /// changes at a time.
    pub(super) fn exhaustive(&self, at_most: u32) -> impl Iterator<Item = StateName> + '_ {
        let choices = self.all_choices();
        (0..choices.subsets(at_most)).flat_map(move |n| {
            let found = self.states_of_subset(&choices, n);
            found.into_iter().map(|state| self.name_of(&state))
        })
    }

    /// The states of the nth choice of fragments; the first is none of them.
    pub(super) fn states_of_subset(&self, choices: &Choices, n: u64) -> Vec<State> {
        let gray = n ^ (n >> 1);
        let chosen = choices.fragments.iter().enumerate();
        let persisted: BTreeSet<Fragment> =
            chosen.filter(|(bit, _)| gray >> bit & 1 == 1).map(|(_, f)| *f).collect();
        let mut search = Search {
            cut: self,
            units: &choices.units,
            persisted: &persisted,
            shown: Vec::new(),
            lies_over: BTreeSet::new(),
            found: Vec::new(),
        };
        search.descend();
        search.found
    }
}

/// Chooses what shows in one unit after another.
struct Search<'a> {
    cut: &'a Cut<'a>,
    units: &'a [Unit],
    persisted: &'a BTreeSet<Fragment>,
    shown: Vec<Shown>,
    lies_over: BTreeSet<(Fragment, Fragment)>,
    found: Vec<State>,
}

impl Search<'_> {
    /// What is there for sure, or was chosen to be.
    fn there(&self, fragments: &[Fragment]) -> Vec<Fragment> {
        let there = |f: &&Fragment| {
            self.cut.writes[f.0 as usize].stable.is_some() || self.persisted.contains(f)
        };
        fragments.iter().filter(there).copied().collect()
    }

    fn descend(&mut self) {
        let Some(unit) = self.units.get(self.shown.len()) else {
            let shown: BTreeSet<Fragment> = self
                .shown
                .iter()
                .filter_map(|shown| if let Shown::Write(f) = shown { Some(*f) } else { None })
                .collect();
            if self.persisted.is_subset(&shown) {
                self.found.push(self.state(&shown));
            }
            return;
        };
        let there = self.there(&unit.firm);
        let hidden = self.there(&unit.hidden);
        if there.is_empty() {
            self.choose(Shown::Base);
        }
        if unit.garbage {
            self.choose(Shown::Garbage);
        }
        for winner in there.iter().chain(&unit.sheer).copied() {
            if there.iter().any(|other| self.cut.is_before(winner.0, other.0)) {
                continue;
            }
            let atomic = |f: &Fragment| self.cut.writes[f.0 as usize].is_atomic(f.1);
            let sheer = unit.sheer.contains(&winner);
            let above: Vec<_> = there
                .iter()
                .chain(&hidden)
                .filter(|other| **other != winner && !sheer && atomic(&winner) && atomic(other))
                .map(|other| (winner, *other))
                .filter(|pair| !self.lies_over.contains(pair))
                .collect();
            self.lies_over.extend(&above);
            if above.is_empty() || self.cut.cycle(&self.lies_over).is_none() {
                self.choose(Shown::Write(winner));
            }
            above.iter().for_each(|pair| {
                self.lies_over.remove(pair);
            });
        }
    }

    fn choose(&mut self, shown: Shown) {
        self.shown.push(shown);
        self.descend();
        self.shown.pop();
    }

    fn state(&self, shown: &BTreeSet<Fragment>) -> State {
        let mut state = State::default();
        let sheer = self.units.iter().flat_map(|unit| &unit.sheer).filter(|f| shown.contains(f));
        for (i, f) in self.persisted.iter().chain(sheer) {
            if self.cut.writes[*i as usize].stable.is_none() {
                state.kept.entry(*i).or_default().set(*f, true);
            }
        }
        let mut winners = Vec::new();
        for (unit, what) in self.units.iter().zip(&self.shown) {
            match what {
                Shown::Write(winner) => {
                    let mut layers = self.there(&unit.firm);
                    layers.extend(self.there(&unit.hidden));
                    winners.push((*winner, layers));
                }
                Shown::Base => {}
                Shown::Garbage => {
                    state.garbage.extend(unit.blocks.iter().map(|block| (*block, *block)));
                }
            }
        }
        self.cut.order_by_winners(&mut state, winners);
        for (unit, what) in self.units.iter().zip(&self.shown) {
            self.see_through(&mut state, unit, *what, shown);
        }
        state
    }

    /// Lets a unit show what it shall, where discards would hide it.
    fn see_through(&self, state: &mut State, unit: &Unit, what: Shown, shown: &BTreeSet<Fragment>) {
        for discard in &unit.sheer {
            let write = &self.cut.writes[discard.0 as usize];
            let there = write.stable.is_some() || shown.contains(discard);
            let hides = match what {
                Shown::Base => true,
                Shown::Garbage => false,
                Shown::Write(winner) if winner.0 == discard.0 => false,
                Shown::Write(winner) => discard.0 > winner.0 || state.says_over(*discard, winner),
            };
            if !there || !hides {
                continue;
            }
            let mask =
                state.discards.entry(discard.0).or_insert_with(|| Mask::first(write.length()));
            for block in &unit.blocks {
                for extent in write.extents.iter().filter(|e| e.blocks.contains(block)) {
                    mask.set(write.bit_of(extent, *block), false);
                }
            }
        }
    }
}

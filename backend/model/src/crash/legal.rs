//! Is a state one that the disk was allowed to leave behind?
//!
//! Judged by what shows: an order that changes nothing breaks nothing. What a name takes away
//! though it is stable, or cuts though it is whole, is a broken promise even where newer data
//! covers it.

use super::cut::{Fragment, Write};
use super::state::State;
use super::{Cut, DiscardReads, History, Mask, ModelError, Parsed, Profile, Stable, StateName};
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The clauses of the crash model, as its page numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clause {
    /// 1: a stable write is there.
    Stable,
    /// 2: what completed before another was submitted does not show over it.
    Order,
    /// 3: overlapping atomic writes are in one order, without cycles.
    OneOrder,
    /// 4: an atomic fragment is whole or absent.
    Atomic,
    /// 5: discarded blocks read as the profile says.
    Discard,
    /// 9: no block holds what nobody wrote to it.
    Foreign,
}

impl Clause {
    /// As the crash model numbers them.
    pub fn number(self) -> u32 {
        match self {
            Clause::Stable => 1,
            Clause::Order => 2,
            Clause::OneOrder => 3,
            Clause::Atomic => 4,
            Clause::Discard => 5,
            Clause::Foreign => 9,
        }
    }
}

/// How a state breaks a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub clause: Clause,
    /// A sentence.
    pub words: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clause {}: {}", self.clause.number(), self.words)
    }
}

impl History {
    /// Every clause that the state of that name breaks; empty: it is legal.
    ///
    /// # Errors
    /// As [`History::build`].
    pub fn violations(&self, name: &StateName) -> Result<Vec<Violation>, ModelError> {
        let parsed: Parsed = name.0.parse()?;
        let cut = self.cut(parsed.after, &parsed.profile)?;
        Ok(cut.judge(&cut.resolve_choice(&parsed.choice)?))
    }
}

impl Cut<'_> {
    /// As [`History::violations`], for a name of this very crash point and profile.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn violations(&self, name: &StateName) -> Result<Vec<Violation>, ModelError> {
        Ok(self.judge(&self.state(name)?))
    }

    /// Does the state of that name break no clause?
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn is_legal(&self, name: &StateName) -> Result<bool, ModelError> {
        Ok(self.violations(name)?.is_empty())
    }

    pub(super) fn judge(&self, state: &State) -> Vec<Violation> {
        let mut found = Vec::new();
        self.judge_promises(state, &mut found);
        self.judge_discards(state, &mut found);
        self.judge_foreign(state, &mut found);
        self.judge_order(state, &mut found);
        found.sort_by_key(|violation| violation.clause);
        found
    }

    fn judge_promises(&self, state: &State, found: &mut Vec<Violation>) {
        let lost = |write: &Write<'_>, what: String, found: &mut Vec<Violation>| {
            let why = match write.stable {
                Some(Stable::Flushed { flush }) => {
                    let of = match self.history.request(flush).map(|f| f.ranges()[..].to_vec()) {
                        Some(ranges) if !ranges.is_empty() => ", of its disk",
                        _ => "",
                    };
                    format!(
                        "FLUSH {flush}{of}, submitted after it completed, completed (stability 1)"
                    )
                }
                Some(Stable::WriteThrough) => "there was no write cache (stability 2, 3)".into(),
                Some(Stable::Fua) => "it carried FUA and completed (stability 4)".into(),
                None => return,
            };
            let id = write.id();
            found.push(Violation {
                clause: Clause::Stable,
                words: format!("{what} write {id} missing, which is stable: {why}"),
            });
        };
        for (i, mask) in state.kept.iter().filter(|(i, _)| !state.torn.contains_key(i)) {
            let write = &self.writes[*i as usize];
            let n = write.fragments();
            if mask.count() < n && !state.misdirected.contains_key(i) {
                let what = if mask.is_empty() { "all of" } else { "a part of" };
                lost(write, what.into(), found);
            }
        }
        for (i, mask) in &state.torn {
            let write = &self.writes[*i as usize];
            if mask.count() < write.units {
                lost(
                    write,
                    format!("{} of {} tear units of", write.units - mask.count(), write.units),
                    found,
                );
                if write.whole && !mask.is_empty() {
                    found.push(Violation {
                        clause: Clause::Atomic,
                        words: format!(
                            "write {} is all-or-nothing under profile {}, but {} of its {} tear \
                             units are there",
                            write.id(),
                            self.profile,
                            mask.count(),
                            write.units
                        ),
                    });
                }
            }
        }
    }

    fn judge_discards(&self, state: &State, found: &mut Vec<Violation>) {
        for (i, mask) in &state.discards {
            let write = &self.writes[*i as usize];
            let promised = match self.profile.discard {
                DiscardReads::Either => continue,
                DiscardReads::Zeroes => Mask::first(write.length()),
                DiscardReads::Old => Mask::new(),
            };
            if *mask != promised {
                found.push(Violation {
                    clause: Clause::Discard,
                    words: format!(
                        "discarded blocks of request {} read as profile {} does not let them",
                        write.id(),
                        self.profile
                    ),
                });
            }
        }
    }

    fn judge_foreign(&self, state: &State, found: &mut Vec<Violation>) {
        let mut foreign = |words: String| found.push(Violation { clause: Clause::Foreign, words });
        for block in state.garbage.keys() {
            if !self.may_be_garbage(*block) {
                foreign(format!("block {block} holds garbage under profile {}", self.profile));
            }
        }
        for (i, block) in &state.misdirected {
            let write = &self.writes[*i as usize];
            foreign(format!("write {} landed at block {block}, not at its own", write.id()));
        }
        for (block, bit) in &state.flipped {
            foreign(format!("bit {bit} of block {block} is inverted"));
        }
    }

    pub(super) fn may_be_garbage(&self, block: u64) -> bool {
        self.garbage_of(block).next().is_some()
    }

    /// The writes that let the disk put anything into this block: only under a profile with garbage
    /// are there any, and of the volatile ones that may show there those that it does not make
    /// atomic.
    fn garbage_of(&self, block: u64) -> impl Iterator<Item = Seq> + '_ {
        let open = self.open.get(&block).filter(|_| self.profile.garbage);
        let shows = open.into_iter().flat_map(|open| &open.shows);
        let writes = shows.map(|i| &self.writes[*i as usize]);
        writes.filter(|write| write.stable.is_none() && !write.whole).map(Write::id)
    }

    /// The blocks that may hold what nobody wrote (profile `garbage`), with the submit events of the
    /// writes that let them; every other block of a legal state holds what was written there.
    pub fn may_be_anything(&self) -> BTreeMap<u64, Vec<Seq>> {
        if !self.profile.garbage {
            return BTreeMap::new();
        }
        let blocks = self.open.keys().map(|block| (*block, self.garbage_of(*block).collect()));
        blocks.filter(|(_, writes): &(u64, Vec<Seq>)| !writes.is_empty()).collect()
    }

    fn judge_order(&self, state: &State, found: &mut Vec<Violation>) {
        // Where the last write does not show by itself: the open blocks, and those that the state
        // reorders.
        let mut layers: BTreeMap<u64, Vec<Fragment>> =
            self.open.keys().map(|block| (*block, Vec::new())).collect();
        for i in state.over.keys().flat_map(|(a, b)| [a, b]) {
            layers.extend(self.writes[*i as usize].blocks().map(|block| (block, Vec::new())));
        }
        for (i, write) in self.writes.iter().enumerate() {
            for extent in &write.extents {
                for (block, list) in layers.range_mut(extent.blocks.clone()) {
                    let i = i as u32;
                    list.extend(self.persisted(state, i, extent, *block).map(|f| (i, f)));
                }
            }
        }
        let mut lies_over: BTreeSet<(Fragment, Fragment)> = BTreeSet::new();
        let mut said = BTreeSet::new();
        for (block, list) in &layers {
            let Some(winner) = list
                .iter()
                .rev()
                .copied()
                .reduce(|top, next| if state.says_over(next, top) { next } else { top })
            else {
                continue;
            };
            let shown = &self.writes[winner.0 as usize];
            for other in list.iter().filter(|other| **other != winner) {
                let hidden = &self.writes[other.0 as usize];
                if shown.request.is_before(hidden.request) && said.insert((winner.0, other.0)) {
                    found.push(Violation {
                        clause: Clause::Order,
                        words: format!(
                            "block {block} shows write {}, which completed before write {}, \
                             persisted there too, was submitted",
                            shown.id(),
                            hidden.id()
                        ),
                    });
                }
                if self.is_atomic_in(state, winner) && self.is_atomic_in(state, *other) {
                    lies_over.insert((winner, *other));
                }
            }
        }
        if let Some(cycle) = self.cycle(&lies_over) {
            let names: Vec<_> = cycle.iter().map(|id| format!("write {id}")).collect();
            found.push(Violation {
                clause: Clause::OneOrder,
                words: format!("no one order has {} over one another", names.join(", ")),
            });
        }
    }

    /// Are these orders of atomic fragments at odds, with one another or with the order in which
    /// the writes were submitted? The writes that are left when all that have nothing beneath
    /// them are taken away again and again.
    pub(super) fn cycle(&self, lies_over: &BTreeSet<(Fragment, Fragment)>) -> Option<Vec<Seq>> {
        let mut left: BTreeSet<Fragment> = lies_over.iter().flat_map(|(a, b)| [*a, *b]).collect();
        loop {
            let request = |f: &Fragment| self.writes[f.0 as usize].request;
            let bottom: Vec<Fragment> = left
                .iter()
                .filter(|f| {
                    left.iter().all(|g| {
                        !lies_over.contains(&(**f, *g)) && !request(g).is_before(request(f))
                    })
                })
                .copied()
                .collect();
            if left.is_empty() {
                return None;
            }
            if bottom.is_empty() {
                let ids: BTreeSet<Seq> = left.iter().map(|f| request(f).id()).collect();
                return Some(ids.into_iter().collect());
            }
            for fragment in bottom {
                left.remove(&fragment);
            }
        }
    }
}

impl Profile {
    /// What it promises above the logical block, in words.
    pub fn promise(&self) -> String {
        use super::{AtomicMode, size};
        let limits = |max: u64, boundary: u64| match boundary {
            0 => format!("of at most {}", size::print(max)),
            b => format!(
                "of at most {} that crosses no multiple of {}",
                size::print(max),
                size::print(b)
            ),
        };
        let mut words = match self.mode {
            AtomicMode::Implicit => {
                format!("every write {} is whole", limits(self.max_bytes, self.boundary))
            }
            AtomicMode::Explicit => format!(
                "every write {} that was sent as atomic is whole",
                limits(self.max_bytes, 0)
            ),
            AtomicMode::None => "no write is whole".into(),
        };
        match self.tear_unit {
            0 => words.push_str("; others are cut into logical blocks"),
            unit => {
                words.push_str(&format!("; others are cut at multiples of {}", size::print(unit)));
            }
        }
        if self.garbage {
            words.push_str(", and may hold anything while they are volatile");
        }
        words
    }
}

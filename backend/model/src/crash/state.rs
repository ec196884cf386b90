//! One state at a crash point: what a name means there, and the name of what was chosen.

use super::cut::{Extent, Fragment, Write};
use super::name::Part;
use super::{Choice, Cut, DiscardReads, Mask, ModelError, Parsed, Selection, StateName};
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};

/// Fragments that lie above, and fragments that lie below; `None` = all of the write.
type Over = (Option<Mask>, Option<Mask>);

/// What is chosen about each write, by its index in [`Cut::writes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Volatile writes that are not in `kept` are persisted.
    pub(super) all: bool,
    /// The fragments that are persisted. Stable writes that are not in here are whole.
    pub(super) kept: BTreeMap<u32, Mask>,
    /// (above, below).
    pub(super) over: BTreeMap<(u32, u32), Vec<Over>>,
    pub(super) discards: BTreeMap<u32, Mask>,
    pub(super) garbage: BTreeMap<u64, u64>,
    pub(super) torn: BTreeMap<u32, Mask>,
    pub(super) misdirected: BTreeMap<u32, u64>,
    pub(super) flipped: BTreeMap<u64, u32>,
}

impl State {
    /// Does an item say that `a` lies over `b`?
    pub(super) fn says_over(&self, a: Fragment, b: Fragment) -> bool {
        let has = |mask: &Option<Mask>, i: usize| mask.as_ref().is_none_or(|mask| mask.get(i));
        self.over.get(&(a.0, b.0)).is_some_and(|items| {
            items.iter().any(|(over, under)| has(over, a.1) && has(under, b.1))
        })
    }
}

impl<'a> Cut<'a> {
    /// The fragments that are persisted of a write.
    pub(super) fn kept(&self, state: &State, i: u32) -> Mask {
        let write = &self.writes[i as usize];
        match state.kept.get(&i) {
            Some(mask) => mask.clone(),
            None if state.all || write.stable.is_some() => Mask::first(write.fragments()),
            None => Mask::new(),
        }
    }

    /// The fragment of write `i` that is persisted over a block, if one is: where the write is
    /// torn, its tear unit.
    pub(super) fn persisted(
        &self,
        state: &State,
        i: u32,
        extent: &Extent,
        block: u64,
    ) -> Option<usize> {
        let write = &self.writes[i as usize];
        if state.misdirected.contains_key(&i) {
            return None;
        }
        if write.is_discard() {
            let reads_zeroes = match state.discards.get(&i) {
                Some(mask) => mask.get(write.bit_of(extent, block)),
                None => self.profile.discard != DiscardReads::Old,
            };
            if !reads_zeroes {
                return None;
            }
        }
        if let Some(mask) = state.torn.get(&i) {
            let unit = write.unit_of(extent, block);
            return mask.get(unit).then_some(unit);
        }
        let fragment = write.fragment_of(extent, block);
        let there = match state.kept.get(&i) {
            Some(mask) => mask.get(fragment),
            None => state.all || write.stable.is_some(),
        };
        there.then_some(fragment)
    }

    /// What is persisted over a block, in submission order.
    pub(super) fn layers(&self, state: &State, writes: &[u32], block: u64) -> Vec<Fragment> {
        let mut layers = Vec::new();
        for i in writes {
            for extent in &self.writes[*i as usize].extents {
                if extent.blocks.contains(&block)
                    && let Some(fragment) = self.persisted(state, *i, extent, block)
                {
                    layers.push((*i, fragment));
                }
            }
        }
        layers
    }

    /// The blocks of a fragment in this state, where torn writes have a fragment each tear unit.
    pub(super) fn is_atomic_in(&self, state: &State, fragment: Fragment) -> bool {
        !state.torn.contains_key(&fragment.0)
            && self.writes[fragment.0 as usize].is_atomic(fragment.1)
    }

    /// Says which writes show, as orders: each winner lies over the later fragments beneath it.
    pub(super) fn order_by_winners(
        &self,
        state: &mut State,
        winners: impl IntoIterator<Item = (Fragment, Vec<Fragment>)>,
    ) {
        let mut pairs: BTreeMap<(u32, u32), BTreeSet<(usize, usize)>> = BTreeMap::new();
        for (winner, losers) in winners {
            for loser in losers.iter().filter(|loser| **loser > winner) {
                pairs.entry((winner.0, loser.0)).or_default().insert((winner.1, loser.1));
            }
        }
        for ((a, b), pairs) in pairs {
            let items = self.merged(&self.writes[a as usize], &self.writes[b as usize], &pairs);
            state.over.insert((a, b), items);
        }
    }

    /// The same pairs of fragments in as few items as it takes.
    fn merged(&self, a: &Write<'_>, b: &Write<'_>, pairs: &BTreeSet<(usize, usize)>) -> Vec<Over> {
        let meet = |f: usize, g: usize| {
            let (f, g) = (a.blocks_of(f), b.blocks_of(g));
            f.start < g.end && g.start < f.end
        };
        // Only pairs that meet on the disk mean anything.
        let exact = |over: &Mask, under: &Mask| {
            over.iter().all(|f| under.iter().all(|g| pairs.contains(&(f, g)) || !meet(f, g)))
        };
        let short = |mask: Mask, n: usize| Some(mask).filter(|mask| *mask != Mask::first(n));
        let (n, m) = (a.fragments(), b.fragments());
        let over: Mask = pairs.iter().map(|(f, _)| *f).collect();
        let under: Mask = pairs.iter().map(|(_, g)| *g).collect();
        let (all_over, all_under) = (Mask::first(n), Mask::first(m));
        if exact(&all_over, &all_under) {
            vec![(None, None)]
        } else if exact(&over, &all_under) {
            vec![(short(over, n), None)]
        } else if exact(&all_over, &under) {
            vec![(None, short(under, m))]
        } else if exact(&over, &under) {
            vec![(short(over, n), short(under, m))]
        } else {
            let one = |i: usize| std::iter::once(i).collect::<Mask>();
            pairs.iter().map(|(f, g)| (short(one(*f), n), short(one(*g), m))).collect()
        }
    }

    /// What a selection means here.
    pub(super) fn resolve(&self, selection: &Selection) -> Result<State, ModelError> {
        let bad = |why: String| ModelError::State(why);
        let fit = |id: Seq, mask: &Mask, n: usize| {
            if mask.end() <= n {
                return Ok(());
            }
            Err(bad(format!("mask {mask} of request {id} names more than the {n} parts it has")))
        };
        let mut state = State { all: selection.all, ..State::default() };
        for (keep, id, fragments) in &selection.changes {
            let i = self.find(*id)?;
            let n = self.writes[i as usize].fragments();
            let mut mask = self.kept(&state, i);
            match fragments {
                Some(fragments) => {
                    fit(*id, fragments, n)?;
                    fragments.iter().for_each(|f| mask.set(f, *keep));
                }
                None => mask = if *keep { Mask::first(n) } else { Mask::new() },
            }
            state.kept.insert(i, mask);
        }
        for (id, mask) in &selection.torn {
            let i = self.find(*id)?;
            let write = &self.writes[i as usize];
            fit(*id, mask, write.units)?;
            state.torn.insert(i, mask.clone());
        }
        let parts = |part: &Part| {
            let i = self.find(part.write)?;
            let write = &self.writes[i as usize];
            let torn = state.torn.contains_key(&i);
            if let Some(mask) = &part.fragments {
                fit(part.write, mask, if torn { write.units } else { write.fragments() })?;
            }
            Ok((i, part.fragments.clone()))
        };
        let mut over: BTreeMap<(u32, u32), Vec<Over>> = BTreeMap::new();
        for (above, below) in &selection.order {
            let ((a, above), (b, below)) = (parts(above)?, parts(below)?);
            over.entry((a, b)).or_default().push((above, below));
        }
        state.over = over;
        for (id, mask) in &selection.discards {
            let i = self.find(*id)?;
            let write = &self.writes[i as usize];
            if !write.is_discard() {
                return Err(bad(format!("request {id} is no discard")));
            }
            fit(*id, mask, write.length())?;
            state.discards.insert(i, mask.clone());
        }
        let blocks = self.history.disk().blocks();
        let inside = |block: u64| {
            if block < blocks {
                return Ok(());
            }
            Err(bad(format!("there is no block {block}: the disk has {blocks} blocks")))
        };
        for (block, seed) in &selection.garbage {
            inside(*block)?;
            state.garbage.insert(*block, *seed);
        }
        for (id, block) in &selection.misdirected {
            let i = self.find(*id)?;
            let length = self.writes[i as usize].length() as u64;
            inside(block.saturating_add(length.max(1) - 1))?;
            state.misdirected.insert(i, *block);
        }
        for (block, bit) in &selection.flipped {
            inside(*block)?;
            let bits = self.history.disk().lb_size.saturating_mul(8);
            if *bit >= bits {
                return Err(bad(format!("there is no bit {bit}: a block has {bits} bits")));
            }
            if state.flipped.insert(*block, *bit).is_some() {
                return Err(bad(format!("block {block} has two inverted bits; one can be named")));
            }
        }
        Ok(state)
    }

    /// What a parsed name means here.
    pub(super) fn resolve_choice(&self, choice: &Choice) -> Result<State, ModelError> {
        match choice {
            Choice::These(selection) => self.resolve(selection),
            Choice::Random { version: super::random::VERSION, seed, n } => {
                Ok(self.sample(*seed, *n))
            }
            Choice::Random { version, .. } => Err(ModelError::State(format!(
                "random states of version {version} are not known; this build draws version {}",
                super::random::VERSION
            ))),
        }
    }

    /// The state that a name of this very crash point and profile means.
    pub(super) fn state(&self, name: &StateName) -> Result<State, ModelError> {
        let parsed: Parsed = name.0.parse()?;
        let disk = self.history.disk();
        if parsed.after != self.after || parsed.profile.on(disk) != self.profile.on(disk) {
            return Err(ModelError::State(format!(
                "'{name}' is no state of crash point {} with profile {}",
                self.after, self.profile
            )));
        }
        self.resolve_choice(&parsed.choice)
    }

    /// The one way to write a state down: what cannot show is not mentioned, and the base is
    /// whichever of `all` and `none` is nearer (`all` where both are).
    pub(super) fn select(&self, state: &State) -> Selection {
        // Where a promise is broken, what it had settled may show again.
        let broken = !state.torn.is_empty()
            || !state.misdirected.is_empty()
            || state.kept.iter().any(|(i, mask)| {
                let write = &self.writes[*i as usize];
                write.stable.is_some() && mask.count() < write.fragments()
            });
        let mut matter: BTreeMap<u32, Mask> = BTreeMap::new();
        if broken {
            for (i, write) in self.writes.iter().enumerate().filter(|(_, w)| !self.is_void(w)) {
                if write.stable.is_none() {
                    matter.insert(i as u32, Mask::first(write.fragments()));
                }
            }
        } else {
            for (i, fragment) in self.open_fragments() {
                matter.entry(i).or_default().set(fragment, true);
            }
        }
        matter.retain(|i, _| !state.torn.contains_key(i) && !state.misdirected.contains_key(i));
        let kept: BTreeMap<u32, Mask> = matter
            .iter()
            .map(|(i, mask)| {
                let kept = self.kept(state, *i);
                (*i, mask.iter().filter(|f| kept.get(*f)).collect())
            })
            .collect();
        let count = |masks: &BTreeMap<u32, Mask>| masks.values().map(Mask::count).sum::<usize>();
        let all = 2 * count(&kept) >= count(&matter);
        let mut changes = Vec::new();
        for (i, write) in self.writes.iter().enumerate() {
            let i = i as u32;
            if let Some(matter) = matter.get(&i) {
                let change: Mask = matter.iter().filter(|f| kept[&i].get(*f) != all).collect();
                if !change.is_empty() {
                    changes.push((!all, write.id(), Some(change).filter(|mask| mask != matter)));
                }
            } else if write.stable.is_some()
                && !state.torn.contains_key(&i)
                && let Some(mask) = state.kept.get(&i)
            {
                let n = write.fragments();
                let lost: Mask = (0..n).filter(|f| !mask.get(*f)).collect();
                if !lost.is_empty() {
                    changes.push((false, write.id(), Some(lost).filter(|lost| lost.count() < n)));
                }
            }
        }
        let id = |i: &u32| self.writes[*i as usize].id();
        let part = |i: &u32, mask: &Option<Mask>| Part { write: id(i), fragments: mask.clone() };
        Selection {
            all,
            changes,
            order: state
                .over
                .iter()
                .flat_map(|((a, b), items)| {
                    items.iter().map(move |(over, under)| (part(a, over), part(b, under)))
                })
                .collect(),
            discards: state.discards.iter().map(|(i, mask)| (id(i), mask.clone())).collect(),
            garbage: state.garbage.iter().map(|(block, seed)| (*block, *seed)).collect(),
            torn: state.torn.iter().map(|(i, mask)| (id(i), mask.clone())).collect(),
            misdirected: state.misdirected.iter().map(|(i, block)| (id(i), *block)).collect(),
            flipped: state.flipped.iter().map(|(block, bit)| (*block, *bit)).collect(),
        }
    }

    pub(super) fn name_of(&self, state: &State) -> StateName {
        self.name(Choice::These(self.select(state)))
    }

    /// The same state with everything said that a random name leaves to its seed.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn spell_out(&self, name: &StateName) -> Result<StateName, ModelError> {
        Ok(self.name_of(&self.state(name)?))
    }
}

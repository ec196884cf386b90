//! States that say more than which fragments are there: orders, discards, garbage, damages; and
//! shrinking, which comes to any state.

use super::super::cut::Cut;
use super::super::shrink::Ask;
use super::super::state::State;
use super::super::{Difference, Fault, Mask, ModelError, Parsed, Shrunk, Source, StateName};
use super::cursor::Cursor;
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A state, as what is different from what the cursor's fragments show.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) state: State,
    /// What these blocks hold, and its id.
    pub(super) blocks: BTreeMap<u64, (Source, u64)>,
    pub(super) sum: u128,
}

impl State {
    /// Does it only say which volatile fragments are there?
    pub(in super::super) fn is_plain(&self, cut: &Cut<'_>) -> bool {
        self.over.is_empty()
            && self.discards.is_empty()
            && self.garbage.is_empty()
            && self.torn.is_empty()
            && self.misdirected.is_empty()
            && self.flipped.is_empty()
            && self.kept.keys().all(|i| cut.writes[*i as usize].stable.is_none())
    }
}

impl Cut<'_> {
    /// The blocks in which a state may differ from any other.
    fn affected(&self, state: &State) -> BTreeSet<u64> {
        let mut blocks: BTreeSet<u64> = self.open.keys().copied().collect();
        let pairs = state.over.keys().flat_map(|(a, b)| [a, b]);
        let writes = state.kept.keys().chain(state.torn.keys()).chain(state.discards.keys());
        for i in writes.chain(state.misdirected.keys()).chain(pairs) {
            blocks.extend(self.writes[*i as usize].blocks());
        }
        for (i, target) in &state.misdirected {
            blocks.extend(*target..*target + self.writes[*i as usize].length() as u64);
        }
        blocks.extend(state.garbage.keys().chain(state.flipped.keys()));
        blocks
    }
}

impl<'w> Cursor<'w, '_> {
    /// The slow way's view of this crash point; to be given back.
    pub(super) fn take_cut(&mut self) -> Result<Box<Cut<'w>>, ModelError> {
        match (self.cut.take(), self.after) {
            (Some(cut), _) => Ok(cut),
            (None, Some(after)) => Ok(Box::new(self.walk.history.cut(after, self.profile)?)),
            (None, None) => Err(ModelError::State("no crash point was gone to".into())),
        }
    }

    /// What a block holds in a state, damages apart.
    fn painted(&self, cut: &Cut<'_>, state: &State, block: u64) -> Source {
        let Some(number) = self.walk.number(block) else { return Source::Base };
        let mut top = None;
        for code in self.walk.codes(number).rev() {
            let version = self.walk.version(code);
            // Not submitted yet, or fetched again.
            let Ok(i) = cut.find(self.walk.request(version.write).id()) else { continue };
            let extent = &cut.writes[i as usize].extents[version.extent as usize];
            let Some(fragment) = cut.persisted(state, i, extent, block) else { continue };
            if top.is_none_or(|top| state.says_over((i, fragment), top)) {
                top = Some((i, fragment));
            }
            if state.over.is_empty() {
                break;
            }
        }
        top.map_or(Source::Base, |(i, _)| cut.writes[i as usize].source(block))
    }

    /// As [`Cut::content`], of some blocks.
    fn holds(
        &self,
        cut: &Cut<'_>,
        state: &State,
        affected: BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, Source>, ModelError> {
        let mut blocks: BTreeMap<u64, Source> = affected
            .into_iter()
            .map(|block| match state.garbage.get(&block) {
                Some(seed) => (block, Source::Garbage { seed: *seed }),
                None => (block, self.painted(cut, state, block)),
            })
            .collect();
        cut.damage_blocks(state, &mut blocks)?;
        Ok(blocks)
    }

    /// Shows any state of this point.
    pub(super) fn show_state(&mut self, cut: &Cut<'_>, state: &State) -> Result<(), ModelError> {
        self.sample = None;
        if state.is_plain(cut) {
            self.uncover();
            for live in 0..self.live.len() {
                let (id, first, count) = {
                    let live = &self.live[live];
                    (live.id, live.first, live.count)
                };
                let kept = cut.kept(state, cut.find(id)?);
                for f in 0..count {
                    if self.fragments[(first + f) as usize].open {
                        self.set(first + f, kept.get(f as usize));
                    }
                }
            }
            return Ok(());
        }
        let held = self.holds(cut, state, cut.affected(state))?;
        self.uncover();
        let mut overlay = Overlay { state: state.clone(), blocks: BTreeMap::new(), sum: self.sum };
        for (block, source) in held {
            if source == self.of(block) {
                continue;
            }
            let id = self.walk.id(block, source);
            let number = self.walk.number(block);
            let before = self.walk.hash(block, number, self.id(block));
            let now = self.walk.hash(block, number, id);
            overlay.sum = overlay.sum.wrapping_sub(before).wrapping_add(now);
            overlay.blocks.insert(block, (source, id));
        }
        for block in overlay.blocks.keys() {
            self.note_block(*block);
        }
        self.overlay = Some(overlay);
        Ok(())
    }

    /// Goes to the crash point of a name of this profile, and shows that state.
    ///
    /// # Errors
    /// The recording has no such state, or it is one of another profile.
    pub fn go_to(&mut self, name: &StateName) -> Result<(), ModelError> {
        let parsed: Parsed = name.0.parse()?;
        self.go(parsed.after)?;
        let cut = self.take_cut()?;
        let shown = cut.state(name).and_then(|state| self.show_state(&cut, &state));
        self.cut = Some(cut);
        shown
    }

    /// Breaks the state that is shown, as [`Cut::break_with`] does, until the next one is. What was
    /// done in words; empty: there was nothing to break.
    ///
    /// # Errors
    /// As [`Cut::break_with`].
    pub fn damage(&mut self, faults: &[Fault], seed: u64) -> Result<Vec<String>, ModelError> {
        let cut = self.take_cut()?;
        let broken = self.state(&cut).and_then(|state| cut.break_state(state, faults, seed));
        let done = broken.and_then(|(state, words)| {
            if !words.is_empty() {
                self.show_state(&cut, &state)?;
            }
            Ok(words)
        });
        self.cut = Some(cut);
        done
    }

    /// Clauses of the crash model that a state of this point breaks, in words.
    ///
    /// # Errors
    /// It is no state of this crash point and profile.
    pub fn violations(&mut self, name: &StateName) -> Result<Vec<String>, ModelError> {
        let cut = self.take_cut()?;
        let violations = cut.violations(name);
        self.cut = Some(cut);
        Ok(violations?.iter().map(ToString::to_string).collect())
    }

    /// Shrinks the state that is shown, as [`Cut::shrink`] does, but asks about each state by
    /// showing it. Whenever `enough` says so what was reached is taken. Afterwards the cursor shows
    /// what it did before.
    ///
    /// # Errors
    /// What `fails` failed with.
    pub fn shrink<E: From<ModelError>>(
        &mut self,
        enough: impl FnMut() -> bool,
        fails: impl FnMut(&Self) -> Result<bool, E>,
    ) -> Result<Option<Shrunk>, E> {
        let cut = self.take_cut()?;
        let kept = self.keep();
        let shrunk = match self.state(&cut) {
            Ok(state) => cut.shrink_by(&state, Shown { cursor: self, enough, fails }),
            Err(error) => Err(error.into()),
        };
        self.restore(kept);
        self.cut = Some(cut);
        shrunk
    }

    /// Shows the state of a name of this crash point to `f`. Afterwards the cursor shows what it
    /// did before.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn look<T>(
        &mut self,
        name: &StateName,
        f: impl FnOnce(&Self) -> T,
    ) -> Result<T, ModelError> {
        let cut = self.take_cut()?;
        let kept = self.keep();
        let shown = cut.state(name).and_then(|state| self.show_state(&cut, &state));
        let seen = shown.map(|()| f(self));
        if seen.is_ok() {
            self.shown();
        }
        self.restore(kept);
        self.cut = Some(cut);
        seen
    }

    fn keep(&self) -> Kept {
        Kept {
            fragments: self.fragments.iter().map(|fragment| fragment.kept).collect(),
            overlay: self.overlay.clone(),
            sample: self.sample,
        }
    }

    fn restore(&mut self, kept: Kept) {
        self.uncover();
        for (fragment, kept) in (0u32..).zip(kept.fragments) {
            self.set(fragment, kept);
        }
        if let Some(overlay) = &kept.overlay {
            overlay.blocks.keys().for_each(|block| self.note_block(*block));
        }
        (self.overlay, self.sample) = (kept.overlay, kept.sample);
    }

    /// Is all of this so in the state that is shown? Of states that say only which fragments are
    /// there, and of differences in those; else no.
    pub fn has(&self, differences: &[Difference]) -> bool {
        self.overlay.is_none()
            && differences.iter().all(|difference| match difference {
                Difference::Fragments { write, there, mask, of } => {
                    self.live.binary_search_by_key(write, |live| live.id).is_ok_and(|live| {
                        let live = &self.live[live];
                        live.count as usize == *of
                            && mask
                                .iter()
                                .all(|f| self.fragments[live.first as usize + f].kept == *there)
                    })
                }
                _ => false,
            })
    }

    /// The blocks of some fragments of a write that is volatile here, those that follow one another
    /// together; none: it is not.
    pub fn fragment_blocks(&self, write: Seq, mask: &Mask) -> Vec<Range<u64>> {
        let Ok(live) = self.live.binary_search_by_key(&write, |live| live.id) else {
            return Vec::new();
        };
        let live = &self.live[live];
        let mut blocks: Vec<Range<u64>> = Vec::new();
        for f in mask.iter().filter(|f| *f < live.count as usize) {
            let (from, to) = self.fragments[live.first as usize + f].blocks;
            let start = self.walk.blocks()[from as usize];
            let end = start + u64::from(to - from);
            match blocks.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => blocks.push(start..end),
            }
        }
        blocks
    }
}

/// What a cursor shows, to be shown again.
struct Kept {
    fragments: Vec<bool>,
    overlay: Option<Overlay>,
    sample: Option<(u64, u64)>,
}

/// Is asked by being shown the state.
struct Shown<'c, 'w, 'a, F, G> {
    cursor: &'c mut Cursor<'w, 'a>,
    enough: G,
    fails: F,
}

impl<'w, 'a, E, F, G> Ask<E> for Shown<'_, 'w, 'a, F, G>
where
    F: FnMut(&Cursor<'w, 'a>) -> Result<bool, E>,
    G: FnMut() -> bool,
{
    fn fingerprint(&mut self, cut: &Cut<'_>, state: &State) -> Option<u128> {
        self.cursor.show_state(cut, state).ok()?;
        Some(self.cursor.fingerprint())
    }

    fn fails(&mut self, _: &Cut<'_>, _: &State) -> Result<bool, E> {
        let fails = (self.fails)(self.cursor)?;
        self.cursor.shown();
        Ok(fails)
    }

    fn enough(&mut self) -> bool {
        (self.enough)()
    }
}

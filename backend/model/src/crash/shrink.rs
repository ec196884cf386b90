//! From a failing state to one in which every change matters.
//!
//! Delta debugging (ddmin): the failing state is a set of changes to a passing one; smaller and
//! smaller parts of the set are tried until no single change can be left out.

use super::legal::Clause;
use super::state::State;
use super::{Cut, Mask, ModelError, StateName};
use std::collections::{BTreeMap, BTreeSet};

/// What is left of a failing state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// It fails, and with any single change taken back it does not (or is not allowed).
    pub failing: StateName,
    /// The passing state it differs from in `changes` ways; `None` where everything and nothing
    /// persisted both fail.
    pub passing: Option<StateName>,
    /// Fragments persisted or lost, orders, discarded blocks, damages.
    pub changes: usize,
    /// How many states were judged.
    pub tried: usize,
}

/// One difference to a state in which everything, or nothing, volatile is persisted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Fragment(u32, usize),
    Order((u32, u32), usize),
    DiscardedBlock(u32, usize),
    Garbage(u64),
    Torn(u32),
    Misdirected(u32),
    Flipped(u64),
}

impl Cut<'_> {
    /// Shrinks a failing state towards the nearest passing one, as long as `fails` says that what
    /// is left fails. A legal state is only shrunk to legal states, an illegal one to states that
    /// break no other clause. Equal contents are judged once. `None`: the state does not fail.
    ///
    /// Always ends, and does the same for the same answers.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile, or `fails` failed.
    pub fn shrink<E: From<ModelError>>(
        &self,
        name: &StateName,
        fails: impl FnMut(&StateName) -> Result<bool, E>,
    ) -> Result<Option<Shrunk>, E> {
        let from = self.state(name)?;
        let allowed = self.judge(&from).into_iter().map(|violation| violation.clause).collect();
        let mut judge = Judge { cut: self, allowed, known: BTreeMap::new(), tried: 0, fails };
        if !judge.fails(&from)? {
            return Ok(None);
        }
        let mut targets: Vec<(State, Vec<Change>)> = [true, false]
            .into_iter()
            .map(|all| {
                let target = State { all, ..State::default() };
                let changes = self.changes(&from, &target);
                (target, changes)
            })
            .collect();
        targets.sort_by_key(|(_, changes)| changes.len());
        for (target, changes) in targets {
            if judge.fails(&target)? {
                continue;
            }
            let left = minimal(changes, |part| judge.fails(&self.with(&from, &target, part)))?;
            return Ok(Some(Shrunk {
                failing: self.name_of(&self.with(&from, &target, &left)),
                passing: Some(self.name_of(&target)),
                changes: left.len(),
                tried: judge.tried,
            }));
        }
        // It fails with everything persisted: nothing needs to be lost.
        let all = State { all: true, ..State::default() };
        Ok(Some(Shrunk {
            failing: self.name_of(&all),
            passing: None,
            changes: 0,
            tried: judge.tried,
        }))
    }

    /// Everything in which `from` differs from `target`.
    fn changes(&self, from: &State, target: &State) -> Vec<Change> {
        let mut changes = Vec::new();
        for (i, write) in self.writes.iter().enumerate() {
            let i = i as u32;
            let damaged = from.torn.contains_key(&i) || from.misdirected.contains_key(&i);
            if damaged || (write.stable.is_some() && !from.kept.contains_key(&i)) {
                continue;
            }
            let (a, b) = (self.kept(from, i), self.kept(target, i));
            let differ = (0..write.fragments()).filter(|f| a.get(*f) != b.get(*f));
            changes.extend(differ.map(|f| Change::Fragment(i, f)));
        }
        for (key, items) in &from.over {
            changes.extend((0..items.len()).map(|n| Change::Order(*key, n)));
        }
        for (i, mask) in &from.discards {
            let plain = self.plain_discard(*i);
            let n = self.writes[*i as usize].length();
            let differ = (0..n).filter(|bit| mask.get(*bit) != plain.get(*bit));
            changes.extend(differ.map(|bit| Change::DiscardedBlock(*i, bit)));
        }
        changes.extend(from.garbage.keys().map(|block| Change::Garbage(*block)));
        changes.extend(from.torn.keys().map(|i| Change::Torn(*i)));
        changes.extend(from.misdirected.keys().map(|i| Change::Misdirected(*i)));
        changes.extend(from.flipped.keys().map(|block| Change::Flipped(*block)));
        changes
    }

    fn plain_discard(&self, i: u32) -> Mask {
        match self.profile.discard {
            super::DiscardReads::Old => Mask::new(),
            _ => Mask::first(self.writes[i as usize].length()),
        }
    }

    /// `target` with some of the changes that make it `from`.
    fn with(&self, from: &State, target: &State, changes: &[Change]) -> State {
        let mut state = target.clone();
        for change in changes {
            match change {
                Change::Fragment(i, f) => {
                    let there = self.kept(from, *i).get(*f);
                    let mut mask = self.kept(&state, *i);
                    mask.set(*f, there);
                    state.kept.insert(*i, mask);
                }
                Change::Order(key, n) => {
                    let item = from.over[key][*n].clone();
                    state.over.entry(*key).or_default().push(item);
                }
                Change::DiscardedBlock(i, bit) => {
                    let there = from.discards[i].get(*bit);
                    let plain = self.plain_discard(*i);
                    state.discards.entry(*i).or_insert(plain).set(*bit, there);
                }
                Change::Garbage(block) => {
                    state.garbage.insert(*block, from.garbage[block]);
                }
                Change::Torn(i) => {
                    state.torn.insert(*i, from.torn[i].clone());
                }
                Change::Misdirected(i) => {
                    state.misdirected.insert(*i, from.misdirected[i]);
                }
                Change::Flipped(block) => {
                    state.flipped.insert(*block, from.flipped[block]);
                }
            }
        }
        state
    }
}

/// Asks whether states fail, each content once.
struct Judge<'a, F> {
    cut: &'a Cut<'a>,
    allowed: BTreeSet<Clause>,
    known: BTreeMap<u128, bool>,
    tried: usize,
    fails: F,
}

impl<F> Judge<'_, F> {
    fn fails<E>(&mut self, state: &State) -> Result<bool, E>
    where
        E: From<ModelError>,
        F: FnMut(&StateName) -> Result<bool, E>,
    {
        // A bit that was inverted in data that is no longer there: no state at all.
        let Ok(content) = self.cut.content(state) else { return Ok(false) };
        let broken = self.cut.judge(state);
        if broken.iter().any(|violation| !self.allowed.contains(&violation.clause)) {
            return Ok(false);
        }
        let fingerprint = content.fingerprint();
        if let Some(known) = self.known.get(&fingerprint) {
            return Ok(*known);
        }
        self.tried += 1;
        let fails = (self.fails)(&self.cut.name_of(state))?;
        self.known.insert(fingerprint, fails);
        Ok(fails)
    }
}

/// ddmin: a part of `changes` that still fails, though not without any single one of them.
fn minimal<E>(
    mut changes: Vec<Change>,
    mut fails: impl FnMut(&[Change]) -> Result<bool, E>,
) -> Result<Vec<Change>, E> {
    let mut pieces = 2;
    while !changes.is_empty() {
        let size = changes.len().div_ceil(pieces);
        let mut smaller = None;
        for (n, piece) in changes.chunks(size).enumerate() {
            if piece.len() < changes.len() && fails(piece)? {
                smaller = Some((piece.to_vec(), 2));
                break;
            }
            let rest: Vec<Change> =
                [&changes[..n * size], &changes[n * size + piece.len()..]].concat();
            if rest.len() < changes.len() && fails(&rest)? {
                smaller = Some((rest, (pieces - 1).max(2)));
                break;
            }
        }
        match smaller {
            // The set shrinks, or its pieces do: so this ends.
            Some((less, in_pieces)) => (changes, pieces) = (less, in_pieces),
            None if size == 1 => break,
            None => pieces = (pieces * 2).min(changes.len()),
        }
    }
    Ok(changes)
}

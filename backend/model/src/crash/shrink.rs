//! From a failing state to one in which every change matters.
//!
//! Delta debugging (ddmin): the failing state is a set of changes to a passing one; smaller and
//! smaller parts of the set are tried until no single change can be left out.

use super::legal::Clause;
use super::state::State;
use super::{Cut, Mask, ModelError, Part, StateName};
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

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
    /// It was shrunk to the end: no single change can be spared.
    pub minimal: bool,
    /// What is changed, write by write.
    pub left: Vec<Difference>,
    /// Of `failing`: that of its content, in the way of whoever asked.
    pub fingerprint: u128,
}

/// One difference of a failing state to a passing one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// These fragments of a write are there and would not be, or the other way round.
    Fragments { write: Seq, there: bool, mask: Mask, of: usize },
    /// The first lies over the second.
    Order { over: Part, under: Part },
    /// These blocks of a discard read as zeroes, the others as they were.
    Discarded { discard: Seq, zeroes: Mask },
    /// The block holds what nobody wrote.
    Garbage { block: u64 },
    /// An atomic write is cut: these of its tear units are there.
    Torn { write: Seq, there: Mask, of: usize },
    /// The write landed elsewhere.
    Misdirected { write: Seq, block: u64 },
    /// One bit is inverted.
    Flipped { block: u64, bit: u32 },
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
        self.shrink_by(&self.state(name)?, Names { fails, error: PhantomData })
    }

    /// As [`Cut::shrink`], of a state that is asked about in some other way than by its name.
    pub(super) fn shrink_by<E>(&self, from: &State, ask: impl Ask<E>) -> Result<Option<Shrunk>, E> {
        let allowed = self.judge(from).into_iter().map(|violation| violation.clause).collect();
        let mut judge = Judge {
            cut: self,
            allowed,
            known: BTreeMap::new(),
            tried: 0,
            hurried: false,
            stopped: false,
            ask,
        };
        if !judge.fails(from)? {
            return Ok(None);
        }
        let mut targets: Vec<(State, Vec<Change>)> = [true, false]
            .into_iter()
            .map(|all| {
                let target = State { all, ..State::default() };
                let changes = self.changes(from, &target);
                (target, changes)
            })
            .collect();
        targets.sort_by_key(|(_, changes)| changes.len());
        for (target, changes) in targets {
            if judge.fails(&target)? {
                continue;
            }
            judge.hurried = true;
            let left = minimal(changes, |part| judge.fails(&self.with(from, &target, part)))?;
            let failing = self.with(from, &target, &left);
            return Ok(Some(Shrunk {
                fingerprint: judge.ask.fingerprint(self, &failing).unwrap_or_default(),
                failing: self.name_of(&failing),
                passing: Some(self.name_of(&target)),
                changes: left.len(),
                tried: judge.tried,
                minimal: !judge.stopped,
                left: self.differences(from, &left),
            }));
        }
        // It fails with everything persisted: nothing needs to be lost.
        let all = State { all: true, ..State::default() };
        Ok(Some(Shrunk {
            fingerprint: judge.ask.fingerprint(self, &all).unwrap_or_default(),
            failing: self.name_of(&all),
            passing: None,
            changes: 0,
            tried: judge.tried,
            minimal: !judge.stopped,
            left: Vec::new(),
        }))
    }

    /// Changes in words that mean something outside of this crash point.
    fn differences(&self, from: &State, changes: &[Change]) -> Vec<Difference> {
        let write = |i: &u32| &self.writes[*i as usize];
        let mut fragments: BTreeMap<(u32, bool), Mask> = BTreeMap::new();
        let mut discards: BTreeMap<u32, Mask> = BTreeMap::new();
        let mut others = Vec::new();
        for change in changes {
            match change {
                Change::Fragment(i, f) => {
                    let there = self.kept(from, *i).get(*f);
                    fragments.entry((*i, there)).or_default().set(*f, true);
                }
                Change::DiscardedBlock(i, bit) => {
                    let plain = self.plain_discard(*i);
                    let there = from.discards[i].get(*bit);
                    discards.entry(*i).or_insert(plain).set(*bit, there);
                }
                Change::Order((a, b), n) => {
                    let (over, under) = from.over[&(*a, *b)][*n].clone();
                    others.push(Difference::Order {
                        over: Part { write: write(a).id(), fragments: over },
                        under: Part { write: write(b).id(), fragments: under },
                    });
                }
                Change::Garbage(block) => others.push(Difference::Garbage { block: *block }),
                Change::Torn(i) => others.push(Difference::Torn {
                    write: write(i).id(),
                    there: from.torn[i].clone(),
                    of: write(i).units,
                }),
                Change::Misdirected(i) => others.push(Difference::Misdirected {
                    write: write(i).id(),
                    block: from.misdirected[i],
                }),
                Change::Flipped(block) => {
                    others.push(Difference::Flipped { block: *block, bit: from.flipped[block] });
                }
            }
        }
        let fragments = fragments.into_iter().map(|((i, there), mask)| {
            let write = write(&i);
            Difference::Fragments { write: write.id(), there, mask, of: write.fragments() }
        });
        let discards = discards
            .into_iter()
            .map(|(i, zeroes)| Difference::Discarded { discard: write(&i).id(), zeroes });
        fragments.chain(discards).chain(others).collect()
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

/// Who says whether a state fails.
pub(super) trait Ask<E> {
    /// The same for states of equal content; `None`: it is no state at all.
    fn fingerprint(&mut self, cut: &Cut<'_>, state: &State) -> Option<u128>;
    /// Of the state that [`Ask::fingerprint`] was called with last.
    fn fails(&mut self, cut: &Cut<'_>, state: &State) -> Result<bool, E>;
    /// Is what was reached good enough?
    fn enough(&mut self) -> bool {
        false
    }
}

/// Is asked by name.
struct Names<F, E> {
    fails: F,
    error: PhantomData<fn() -> E>,
}

impl<E: From<ModelError>, F: FnMut(&StateName) -> Result<bool, E>> Ask<E> for Names<F, E> {
    fn fingerprint(&mut self, cut: &Cut<'_>, state: &State) -> Option<u128> {
        // A bit that was inverted in data that is no longer there: no state at all.
        cut.content(state).ok().map(|content| content.fingerprint())
    }

    fn fails(&mut self, cut: &Cut<'_>, state: &State) -> Result<bool, E> {
        (self.fails)(&cut.name_of(state))
    }
}

/// Asks whether states fail, each content once.
struct Judge<'a, A> {
    cut: &'a Cut<'a>,
    allowed: BTreeSet<Clause>,
    known: BTreeMap<u128, bool>,
    tried: usize,
    /// [`Ask::enough`] is asked.
    hurried: bool,
    /// [`Ask::enough`] said so: nothing else fails any more.
    stopped: bool,
    ask: A,
}

impl<A> Judge<'_, A> {
    fn fails<E>(&mut self, state: &State) -> Result<bool, E>
    where
        A: Ask<E>,
    {
        if self.stopped {
            return Ok(false);
        }
        let Some(fingerprint) = self.ask.fingerprint(self.cut, state) else { return Ok(false) };
        // Before what is known: another state of the same bytes may be legal where this one is not.
        // Volatile fragments alone, lost or kept, are always legal.
        let plain = state.is_plain(self.cut);
        let broken = if plain { Vec::new() } else { self.cut.judge(state) };
        if broken.iter().any(|violation| !self.allowed.contains(&violation.clause)) {
            return Ok(false);
        }
        if let Some(known) = self.known.get(&fingerprint) {
            return Ok(*known);
        }
        if self.hurried && self.ask.enough() {
            self.stopped = true;
            return Ok(false);
        }
        self.tried += 1;
        let fails = self.ask.fails(self.cut, state)?;
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

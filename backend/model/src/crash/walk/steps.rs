//! From one state of a strategy to the next.

use super::super::coverage::{Coverage, Outcome};
use super::super::exhaustive::{Choices, subsets};
use super::super::random::{Rng, VERSION, draw_keep, draw_lost};
use super::super::state::State;
use super::super::{
    Choice, DiscardReads, Mask, ModelError, Parsed, Selection, StateName, Strategy,
};
use super::cursor::Cursor;
use crate::event::Seq;
use std::collections::VecDeque;
use std::fmt::Write as _;
use xxhash_rust::xxh3::xxh3_64;

/// Where in a strategy's states a cursor is.
#[derive(Debug)]
pub(super) enum Steps {
    Done,
    Prefix {
        next: u8,
    },
    /// The nth open write alone is lost, or kept.
    One {
        all: bool,
        next: usize,
    },
    /// The nth open write, in the mth way; so many states were shown or passed over.
    Tear {
        next: usize,
        way: usize,
        gone: u64,
    },
    /// The nth subset of these fragments, one change at a time.
    Gray {
        fragments: Vec<u32>,
        next: u64,
        of: u64,
    },
    Random {
        names: Names,
        next: u64,
        of: u64,
    },
    /// The nth subset, as the slow way has it; its states that are still to be shown.
    Subsets {
        choices: Choices,
        next: u64,
        of: u64,
        states: VecDeque<State>,
    },
    Samples {
        seed: u64,
        next: u64,
        of: u64,
    },
}

/// The names of random states, which differ in their last number only.
#[derive(Debug)]
pub(super) struct Names {
    seed: u64,
    name: String,
    stem: usize,
}

impl Names {
    fn nth(&mut self, n: u64) -> &str {
        self.name.truncate(self.stem);
        // Writing to a string cannot fail.
        let _ = write!(self.name, "{n}");
        &self.name
    }
}

impl<'w, 'a> Cursor<'w, 'a> {
    /// Begins with the states that [`Cut::states`](super::super::Cut::states) has for this
    /// strategy, in the same order. The first is shown by [`Cursor::step`].
    ///
    /// # Errors
    /// No crash point was gone to.
    pub fn start(&mut self, strategy: Strategy) -> Result<(), ModelError> {
        let Some(after) = self.after else {
            return Err(ModelError::State("no crash point was gone to".into()));
        };
        self.uncover();
        self.sample = None;
        self.set_all(true);
        let discards =
            self.profile.discard == DiscardReads::Either && self.walk.has_discards(after);
        let slow = self.profile.garbage || discards || self.walk.is_tangled(after);
        self.steps = match strategy {
            Strategy::Prefix => Steps::Prefix { next: 0 },
            Strategy::OneLost => Steps::One { all: true, next: 0 },
            Strategy::OneKept => {
                self.set_all(false);
                Steps::One { all: false, next: 0 }
            }
            Strategy::Tear => Steps::Tear { next: 0, way: 0, gone: 0 },
            Strategy::Exhaustive { at_most } if slow => {
                let cut = self.take_cut()?;
                let choices = cut.all_choices();
                self.cut = Some(cut);
                let of = choices.subsets(at_most);
                Steps::Subsets { choices, next: 0, of, states: VecDeque::new() }
            }
            Strategy::Exhaustive { at_most } => {
                let fragments: Vec<u32> = (0..self.fragments.len() as u32)
                    .filter(|f| self.fragments[*f as usize].open)
                    .collect();
                let of = subsets(fragments.len(), fragments.len(), at_most);
                if of > 0 {
                    self.set_all(false);
                }
                Steps::Gray { fragments, next: 0, of }
            }
            Strategy::Random { seed, count } if slow => Steps::Samples { seed, next: 0, of: count },
            Strategy::Random { seed, count } => {
                let mut name = self.sample_name(after, seed, 0).0;
                name.pop();
                let stem = name.len();
                Steps::Random { names: Names { seed, name, stem }, next: 0, of: count }
            }
        };
        Ok(())
    }

    /// Shows the next state; `false`: there is none, and the reference is shown.
    ///
    /// # Errors
    /// None, in fact: what a strategy chooses is a state.
    pub fn step(&mut self) -> Result<bool, ModelError> {
        self.uncover();
        self.sample = None;
        let mut steps = std::mem::replace(&mut self.steps, Steps::Done);
        let more = self.advance(&mut steps)?;
        if more {
            self.steps = steps;
        } else {
            self.set_all(true);
        }
        Ok(more)
    }

    fn advance(&mut self, steps: &mut Steps) -> Result<bool, ModelError> {
        match steps {
            Steps::Done => return Ok(false),
            Steps::Prefix { next } => {
                *next += 1;
                match next {
                    1 => {}
                    2 if !self.open.is_empty() => self.set_all(false),
                    _ => return Ok(false),
                }
            }
            Steps::One { all, next } => {
                if let Some(last) = next.checked_sub(1) {
                    self.set_write(self.open[last], |_| *all);
                }
                let Some(write) = self.open.get(*next).copied() else { return Ok(false) };
                self.set_write(write, |_| !*all);
                *next += 1;
            }
            Steps::Tear { next, way, gone } => {
                let more = self.tear(next, way);
                *gone += u64::from(more);
                return Ok(more);
            }
            Steps::Gray { fragments, next, of } => return Ok(self.gray(fragments, next, *of)),
            Steps::Random { names, next, of } => {
                if next == of {
                    return Ok(false);
                }
                self.draw(xxh3_64(names.nth(*next).as_bytes()));
                self.sample = Some((names.seed, *next));
                *next += 1;
            }
            Steps::Subsets { choices, next, of, states } => {
                let cut = self.take_cut()?;
                while states.is_empty() && next != of {
                    states.extend(cut.states_of_subset(choices, *next));
                    *next += 1;
                }
                let state = states.pop_front();
                let shown = state.as_ref().map(|state| self.show_state(&cut, state));
                self.cut = Some(cut);
                shown.transpose()?;
                return Ok(state.is_some());
            }
            Steps::Samples { seed, next, of } => {
                if next == of {
                    return Ok(false);
                }
                let cut = self.take_cut()?;
                let shown = self.show_state(&cut, &cut.sample(*seed, *next));
                self.cut = Some(cut);
                shown?;
                self.sample = Some((*seed, *next));
                *next += 1;
            }
        }
        Ok(true)
    }

    /// How many positions the states of the strategy that was [started](Cursor::start) have. Mostly
    /// each is one state; a choice of `exhaustive` may be none, or several.
    pub fn positions(&self) -> u64 {
        match &self.steps {
            Steps::Done => 0,
            Steps::Prefix { .. } => 1 + u64::from(!self.open.is_empty()),
            Steps::One { .. } => self.open.len() as u64,
            Steps::Tear { .. } => self.open.iter().map(|live| self.ways(*live)).sum(),
            Steps::Gray { of, .. }
            | Steps::Random { of, .. }
            | Steps::Subsets { of, .. }
            | Steps::Samples { of, .. } => *of,
        }
    }

    /// The position that the state which is shown is of.
    pub fn position(&self) -> u64 {
        self.next_position().saturating_sub(1)
    }

    /// Are there more states of this position?
    pub fn has_more_here(&self) -> bool {
        matches!(&self.steps, Steps::Subsets { states, .. } if !states.is_empty())
    }

    fn next_position(&self) -> u64 {
        match &self.steps {
            Steps::Done => 0,
            Steps::Prefix { next } => (*next).into(),
            Steps::One { next, .. } => *next as u64,
            Steps::Tear { gone, .. } => *gone,
            Steps::Gray { next, .. }
            | Steps::Random { next, .. }
            | Steps::Samples { next, .. }
            | Steps::Subsets { next, .. } => *next,
        }
    }

    /// Right after [`Cursor::start`]: the next state that [`Cursor::step`] shows is the first of
    /// this position, or of one after it, without going through those before.
    pub fn seek(&mut self, position: u64) {
        let position = position.min(self.positions());
        let mut steps = std::mem::replace(&mut self.steps, Steps::Done);
        match &mut steps {
            Steps::Done => {}
            // There are two.
            Steps::Prefix { next } => *next = position as u8,
            Steps::One { next, .. } => *next = position as usize,
            Steps::Tear { next, way, gone } => {
                *gone = position;
                let mut left = position;
                while let Some(live) = self.open.get(*next).filter(|l| self.ways(**l) <= left) {
                    left -= self.ways(*live);
                    *next += 1;
                }
                *way = left as usize;
            }
            Steps::Gray { fragments, next, .. } => {
                *next = position;
                if let Some(before) = position.checked_sub(1) {
                    let gray = before ^ (before >> 1);
                    for (bit, fragment) in fragments.iter().enumerate() {
                        self.set(*fragment, gray >> bit & 1 == 1);
                    }
                }
            }
            Steps::Subsets { next, .. }
            | Steps::Random { next, .. }
            | Steps::Samples { next, .. } => *next = position,
        }
        self.steps = steps;
    }

    /// How many states [`Cursor::tear`] has for a write.
    fn ways(&self, live: u32) -> u64 {
        match self.live[live as usize].count {
            0 | 1 => 0,
            2 => 2,
            n => 2 * (u64::from(n) - 1) + 1,
        }
    }

    /// Keeps those fragments of a write that `keep` says, of those that may show.
    fn set_write(&mut self, live: u32, keep: impl Fn(usize) -> bool) {
        let (first, count) = {
            let live = &self.live[live as usize];
            (live.first, live.count)
        };
        for f in 0..count {
            if self.fragments[(first + f) as usize].open {
                self.set(first + f, keep(f as usize));
            }
        }
    }

    /// The first and the second half of every cut, and the middle missing.
    fn tear(&mut self, next: &mut usize, way: &mut usize) -> bool {
        while let Some(live) = self.open.get(*next).copied() {
            let n = self.live[live as usize].count as usize;
            let at = *way / 2 + 1;
            if at < n {
                let first = way.is_multiple_of(2);
                self.set_write(live, |f| (f < at) == first);
            } else if at == n && n > 2 && way.is_multiple_of(2) {
                self.set_write(live, |f| f == 0 || f == n - 1);
            } else {
                self.set_write(live, |_| true);
                (*next, *way) = (*next + 1, 0);
                continue;
            }
            *way += 1;
            return true;
        }
        false
    }

    /// Passes over those in which a fragment is kept that shows nowhere.
    fn gray(&mut self, fragments: &[u32], next: &mut u64, of: u64) -> bool {
        while *next != of {
            if *next > 0 {
                let fragment = fragments[next.trailing_zeros() as usize];
                self.set(fragment, !self.fragments[fragment as usize].kept);
            }
            *next += 1;
            let all_show = fragments.iter().all(|f| {
                let fragment = &self.fragments[*f as usize];
                !fragment.kept || fragment.shows > 0
            });
            if all_show {
                return true;
            }
        }
        false
    }

    /// As [`Cut::sample`](super::super::Cut::sample), where one order is possible only.
    fn draw(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        let keep = draw_keep(&mut rng);
        let mut lost = Vec::new();
        for i in 0..self.open.len() {
            let (first, count) = {
                let live = &self.live[self.open[i] as usize];
                (live.first, live.count)
            };
            let fragments = first as usize..(first + count) as usize;
            lost.clear();
            lost.extend(self.fragments[fragments].iter().filter(|f| f.open).map(|_| false));
            draw_lost(&mut rng, keep, &mut lost);
            let mut drawn = lost.iter();
            for f in first..first + count {
                if self.fragments[f as usize].open {
                    let lost = drawn.next().is_some_and(|lost| *lost);
                    self.set(f, !lost);
                }
            }
        }
    }

    fn sample_name(&self, after: Seq, seed: u64, n: u64) -> StateName {
        self.name_it(after, Choice::Random { version: VERSION, seed, n })
    }

    fn name_it(&self, after: Seq, choice: Choice) -> StateName {
        let profile = self.profile.on(self.walk.history.disk());
        StateName::from(&Parsed { profile, after, choice })
    }

    /// The name of the state that is shown.
    ///
    /// # Errors
    /// No crash point was gone to.
    pub fn name(&self) -> Result<StateName, ModelError> {
        let Some(after) = self.after else {
            return Err(ModelError::State("no crash point was gone to".into()));
        };
        if let Some((seed, n)) = self.sample {
            return Ok(self.sample_name(after, seed, n));
        }
        if let Some(overlay) = &self.overlay {
            return match &self.cut {
                Some(cut) => Ok(cut.name_of(&overlay.state)),
                None => Ok(self.walk.history.cut(after, self.profile)?.name_of(&overlay.state)),
            };
        }
        Ok(self.name_it(after, Choice::These(self.selection())))
    }

    /// Which fragments are kept, in the words of [`Cut::select`](super::super::Cut::select).
    pub(super) fn selection(&self) -> Selection {
        let open = || self.fragments.iter().filter(|fragment| fragment.open);
        let all = 2 * open().filter(|fragment| fragment.kept).count() >= open().count();
        let mut selection = Selection { all, ..Selection::default() };
        for live in self.open.iter().map(|live| &self.live[*live as usize]) {
            let fragments = || {
                let own = live.first as usize..(live.first + live.count) as usize;
                self.fragments[own].iter().enumerate().filter(|(_, f)| f.open)
            };
            if fragments().all(|(_, f)| f.kept == all) {
                continue;
            }
            let whole = fragments().all(|(_, f)| f.kept != all);
            let mask: Mask = fragments().filter(|(_, f)| f.kept != all).map(|(i, _)| i).collect();
            selection.changes.push((!all, live.id, Some(mask).filter(|_| !whole)));
        }
        selection
    }

    /// Notes what became of the state that is shown, for [`Cursor::coverage`]. Not of damaged ones.
    pub fn note(&mut self, outcome: Outcome) {
        if let Some(overlay) = &self.overlay {
            if let Some(cut) = &self.cut {
                self.slow_coverage.note_state(cut, &overlay.state, outcome);
            }
            return;
        }
        for live in std::mem::take(&mut self.touched) {
            let live = &mut self.live[live as usize];
            live.touched = false;
            if live.count < 2 {
                continue;
            }
            let own = live.first as usize..(live.first + live.count) as usize;
            let open = self.fragments[own].iter().enumerate().filter(|(_, f)| f.open);
            if let Some(cuts) = &mut self.cuts[live.write as usize] {
                cuts.note(open.map(|(i, f)| (i, f.kept)), outcome);
            }
        }
    }

    /// What was [noted](Cursor::note), at all points.
    pub fn coverage(&self) -> Coverage {
        let mut coverage = self.slow_coverage.clone();
        for (write, cuts) in (0u32..).zip(&self.cuts) {
            if let Some(cuts) = cuts {
                coverage.add_cuts(self.walk.request(write).id(), cuts);
            }
        }
        coverage
    }
}

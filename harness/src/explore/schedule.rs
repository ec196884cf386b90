//! Which crash points are visited when, and how many contents may be tried there.
//!
//! Without a limit each point is visited once, latest first, and gone through to the end.
//!
//! With one there are *rounds*. A round has a budget that is shared out among all points that have
//! more to show, of all profiles; where it is smaller than they are many, the seed says which of
//! them get one. What a point leaves of its share goes to its neighbours: those of one [`Item`],
//! which one thread goes through. Items depend on nothing but how many points there are, and what
//! is counted in one on nothing but what is in it; the next round begins when all of this one is
//! done. So what a limited number of states is spent on does not depend on threads or clocks. What
//! is left in the end, because contents came more than once, goes to one thread.
//!
//! With a limit of time the rounds grow: whenever it is up, what was tried is spread over all.

use super::Settings;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Contents in the first round where only time is limited, and how much more in each after that.
const FIRST: u64 = 64;
const GROWTH: u64 = 16;
/// After so many rounds, or where no more than this part of the limit is left, one thread goes on.
const ROUNDS: u32 = 4;
const REST: u64 = 32;
/// So many items a round; its points are at least this number of items.
const ITEMS: usize = 64;
/// The most points that a thread takes at once where nothing is limited.
const MOST: usize = 8;

/// A crash point of a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Visit {
    /// Index in [`Settings::profiles`].
    pub(super) profile: u32,
    /// Index in `Shared::points`.
    pub(super) point: u32,
    /// How many positions of each strategy were gone through; empty: of none.
    pub(super) walked: Box<[u64]>,
    /// States that were counted here so far.
    pub(super) states: u64,
}

/// What a thread takes at once: neighbouring points of one profile, latest first.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) profile: usize,
    pub(super) visits: Vec<Visit>,
    /// `None`: all there is.
    pub(super) budget: Option<Budget>,
}

/// How many contents may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) left: u64,
    pub(super) round: u32,
    /// No other thread is at work: what anybody tried before costs nothing. Else what others may be
    /// trying at this moment cannot be known, and only what came before in this item is free.
    pub(super) alone: bool,
    /// Is each point to have as much as it wants?
    pub(super) greedy: bool,
}

impl Budget {
    /// The share of the next of so many visits. Those of all add up to what is left.
    pub(super) fn share(&self, visits: usize, visit: &Visit, seed: u64) -> u64 {
        if self.greedy {
            return self.left;
        }
        let visits = visits.max(1) as u64;
        let dice = hash(seed, visit, u64::from(self.round)) % visits;
        self.left / visits + u64::from(dice < self.left % visits)
    }
}

/// The same number on every machine.
pub(super) fn hash(seed: u64, visit: &Visit, salt: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&visit.profile.to_le_bytes());
    bytes[4..8].copy_from_slice(&visit.point.to_le_bytes());
    bytes[8..].copy_from_slice(&salt.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed)
}

#[derive(Debug)]
pub(super) struct Schedule {
    state: Mutex<State>,
    changed: Condvar,
    /// Is there a limit that all points share?
    limited: bool,
    states: Option<u64>,
    timed: bool,
}

#[derive(Debug, Default)]
struct State {
    /// What each thread goes on with; where nothing is limited there is one for all.
    runs: Vec<VecDeque<Item>>,
    /// Items that were taken and not given back.
    out: usize,
    /// One item after the other, and what is left is shared out when one is taken.
    alone: bool,
    greedy: bool,
    /// Of this round, of one that is not taken yet.
    visits: usize,
    /// Points that have more to show.
    cut: Vec<Visit>,
    done: usize,
    round: u32,
}

impl Schedule {
    pub(super) fn new(settings: &Settings, points: usize) -> Schedule {
        let profiles = 0..settings.profiles.len() as u32;
        let all: Vec<Visit> = profiles
            .flat_map(|profile| {
                (0..points as u32).map(move |point| Visit {
                    profile,
                    point,
                    walked: Box::default(),
                    states: 0,
                })
            })
            .collect();
        let limited = settings.states.is_some() || settings.time.is_some();
        let threads = settings.threads.max(1);
        let mut state = State::default();
        if limited {
            state.runs = vec![VecDeque::new(); threads];
            state.cut = all;
        } else {
            // Neighbours have much in common; and the latest shall be done first.
            let most = (all.len() / (64 * threads)).clamp(1, MOST);
            state.runs.push(items(all, most));
        }
        Schedule {
            state: Mutex::new(state),
            changed: Condvar::new(),
            limited,
            states: settings.states,
            timed: settings.time.is_some(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Points that were gone through.
    pub(super) fn done(&self) -> usize {
        self.state().done
    }

    /// What a thread does next; `None`: nothing. `left` is how many contents may still be tried,
    /// asked only while nobody tries any; whether it is `over` is asked while this waits for others.
    pub(super) fn take(
        &self,
        thread: usize,
        left: impl Fn() -> u64,
        over: impl Fn() -> bool,
    ) -> Option<Item> {
        let mut state = self.state();
        loop {
            if over() {
                return None;
            }
            if let Some(item) = state.next(thread, &left) {
                state.out += 1;
                return Some(item);
            }
            if state.out == 0 {
                if state.cut.is_empty() || left() == 0 {
                    return None;
                }
                self.plan(&mut state, left());
                self.changed.notify_all();
            } else if !self.limited {
                return None;
            } else {
                let wait = Duration::from_millis(50);
                let waited = self.changed.wait_timeout(state, wait);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// An item is done with; these of its points have more to show.
    pub(super) fn give_back(&self, done: usize, cut: Vec<Visit>) {
        let mut state = self.state();
        state.out -= 1;
        state.done += done;
        state.cut.extend(cut);
        self.changed.notify_all();
    }

    fn plan(&self, state: &mut State, left: u64) {
        let mut visits = std::mem::take(&mut state.cut);
        visits.sort_unstable();
        let few = self.states.is_some_and(|all| left <= all / REST);
        state.alone = self.states.is_some() && (few || !self.timed && state.round >= ROUNDS);
        state.greedy = state.alone && few;
        state.visits = visits.len();
        let budget = match self.timed {
            true => left.min(FIRST.saturating_mul(GROWTH.saturating_pow(state.round))),
            false => left,
        };
        let all = visits.len();
        let mut items = items(visits, all.div_ceil(ITEMS));
        if !state.alone {
            // As many hundredths of the budget as of the visits, to the last one.
            let part =
                |visits: usize| (u128::from(budget) * visits as u128 / all.max(1) as u128) as u64;
            let mut before = 0;
            for item in &mut items {
                let to = before + item.visits.len();
                item.budget = Some(Budget {
                    left: part(to) - part(before),
                    round: state.round,
                    alone: false,
                    greedy: false,
                });
                before = to;
            }
        }
        // Each thread goes on where it is.
        let threads = state.runs.len();
        let each = items.len().div_ceil(threads).max(1);
        for run in &mut state.runs {
            let rest = items.split_off(each.min(items.len()));
            *run = std::mem::replace(&mut items, rest);
        }
        state.round += 1;
    }
}

impl State {
    fn next(&mut self, thread: usize, left: impl Fn() -> u64) -> Option<Item> {
        if self.alone {
            if self.out > 0 {
                return None;
            }
            let run = self.runs.iter_mut().find(|run| !run.is_empty())?;
            let mut item = run.pop_front()?;
            let (own, all) = (item.visits.len(), self.visits.max(1));
            self.visits -= own;
            let left = left();
            let share = (u128::from(left) * own as u128).div_ceil(all as u128) as u64;
            item.budget = Some(Budget {
                left: if self.greedy { left } else { share },
                round: self.round,
                alone: true,
                greedy: self.greedy,
            });
            return Some(item);
        }
        let thread = thread % self.runs.len();
        if self.runs[thread].is_empty() {
            // The later half of what another has left: its own way goes on undisturbed.
            let most = self.runs.iter_mut().max_by_key(|run| run.len())?;
            let half = most.split_off(most.len() / 2);
            self.runs[thread] = half;
        }
        self.runs[thread].pop_front()
    }
}

/// Puts neighbours of one profile together.
fn items(visits: Vec<Visit>, most: usize) -> VecDeque<Item> {
    let mut items: VecDeque<Item> = VecDeque::new();
    for visit in visits {
        match items.back_mut() {
            Some(item) if item.profile == visit.profile as usize && item.visits.len() < most => {
                item.visits.push(visit);
            }
            _ => items.push_back(Item {
                profile: visit.profile as usize,
                visits: vec![visit],
                budget: None,
            }),
        }
    }
    items
}

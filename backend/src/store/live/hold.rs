//! Completions held back, so that requests stay concurrent on purpose.

use crate::store::gate::GateContext;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// No request came for so long: whatever is held is let go, so that nothing waits for ever.
pub(super) const IDLE: Duration = Duration::from_millis(3);

/// The most requests that [`HoldCompletions::Random`] lets pass first.
const FARTHEST: u64 = 8;

/// Keeps requests concurrent on purpose, by holding back completions (`--hold-completions`). When
/// no request came for 3 ms all that is held completes, whatever the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoldCompletions {
    #[default]
    None,
    /// Completes, oldest first, only while more than so many requests are in flight.
    Above(u32),
    /// Completes only then.
    Idle,
    /// Completes each after 0 to 8 later requests, drawn from the seed: in another order.
    Random,
}

#[derive(Debug)]
struct Held {
    queue: u16,
    /// Goes when so many requests have come.
    due: u64,
}

#[derive(Debug)]
pub(super) struct Hold {
    mode: HoldCompletions,
    seed: u64,
    /// Requests that came.
    arrived: u64,
    last: Instant,
    /// Not executed yet, or held: neither let go nor over.
    outstanding: BTreeSet<u64>,
    /// Oldest first.
    held: BTreeMap<u64, Held>,
}

impl Hold {
    pub(super) fn new(mode: HoldCompletions, seed: u64) -> Hold {
        Hold {
            mode,
            seed,
            arrived: 0,
            last: Instant::now(),
            outstanding: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    pub(super) fn active(&self) -> bool {
        self.mode != HoldCompletions::None
    }

    /// A request came: the queues in which others may go now.
    pub(super) fn arrive(&mut self, ctx: &GateContext<'_>) -> HashSet<u16> {
        self.arrived += 1;
        self.last = Instant::now();
        self.outstanding.insert(ctx.id);
        self.let_go()
    }

    /// A request was executed. The queues in which others may go; the caller looks at
    /// [`Hold::holds`] for this one.
    pub(super) fn execute(&mut self, ctx: &GateContext<'_>) -> HashSet<u16> {
        self.last = Instant::now();
        let draw = || xxh3_64_with_seed(&self.arrived.to_le_bytes(), self.seed) % (FARTHEST + 1);
        let due = if self.mode == HoldCompletions::Random { self.arrived + draw() } else { 0 };
        self.held.insert(ctx.id, Held { queue: ctx.origin.queue, due });
        self.let_go()
    }

    pub(super) fn holds(&self, id: u64) -> bool {
        self.held.contains_key(&id)
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.outstanding.remove(&id);
        self.held.remove(&id);
    }

    /// When all that is held shall go; `None`: nothing is held.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        (!self.held.is_empty()).then(|| self.last + IDLE)
    }

    pub(super) fn let_all_go(&mut self) -> HashSet<u16> {
        for id in self.held.keys() {
            self.outstanding.remove(id);
        }
        std::mem::take(&mut self.held).into_values().map(|h| h.queue).collect()
    }

    pub(super) fn forget_all(&mut self) {
        self.outstanding.clear();
        self.held.clear();
    }

    fn let_go(&mut self) -> HashSet<u16> {
        let mut queues = HashSet::new();
        match self.mode {
            HoldCompletions::None | HoldCompletions::Idle => {}
            HoldCompletions::Above(n) => {
                while self.outstanding.len() > n as usize {
                    let Some((id, held)) = self.held.pop_first() else { break };
                    self.outstanding.remove(&id);
                    queues.insert(held.queue);
                }
            }
            HoldCompletions::Random => {
                let due: Vec<u64> = self
                    .held
                    .iter()
                    .filter(|(_, h)| h.due <= self.arrived)
                    .map(|(id, _)| *id)
                    .collect();
                for id in due {
                    self.outstanding.remove(&id);
                    queues.extend(self.held.remove(&id).map(|h| h.queue));
                }
            }
        }
        queues
    }
}

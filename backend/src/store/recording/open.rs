//! Requests of a device or a connection before that may come again: on record, and not returned to
//! the driver as far as anybody knows. Those that have not ended go on; those that have are only
//! answered.

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tornblk_model::event::{Op, ResetCause, Seq, Status, Submit};

/// (queue, position, head).
type Key = (u16, u16, u16);

/// Ended requests that are remembered of each queue: no more can be on their way to the driver.
const ENDED: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Open {
    state: Mutex<State>,
    /// So that nobody waits for a lock where there is nothing.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<Key, Known>,
    of: HashMap<Seq, Key>,
    /// Requests of each queue all of whose parts ended, oldest first, by their first event.
    ended: HashMap<u16, VecDeque<Seq>>,
    /// Queues that have begun since the last reconnect or restart.
    begun: HashSet<u16>,
    /// Counts reconnects and restarts: what was begun before one is not continued by what is begun
    /// after it.
    since: u64,
}

#[derive(Debug)]
struct Known {
    since: u64,
    /// More than one, where it was recorded in parts.
    parts: SmallVec<[Part; 1]>,
}

#[derive(Debug)]
struct Part {
    seq: Seq,
    op: Op,
    ended: Option<Status>,
}

/// What is known of a request that comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Its one event; it has not ended.
    Goes(Seq),
    Ended(Status),
}

impl Open {
    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut state);
        self.any.store(!state.requests.is_empty(), Ordering::Release);
        result
    }

    /// It is on record at `seq`.
    pub(super) fn begin(&self, seq: Seq, submit: &Submit) {
        let key = (submit.queue, submit.position, submit.head);
        self.change(|state| {
            let since = state.since;
            let goes_on = |known: &Known| {
                known.since == since && known.parts.iter().all(|part| part.ended.is_none())
            };
            if state.requests.get(&key).is_some_and(|known| !goes_on(known)) {
                state.remove(key);
            }
            let fresh = || Known { since, parts: SmallVec::new() };
            let known = state.requests.entry(key).or_insert_with(fresh);
            known.parts.push(Part { seq, op: submit.op.clone(), ended: None });
            state.of.insert(seq, key);
        });
    }

    /// A part of one ended.
    pub(super) fn end(&self, request: Seq, status: Status) {
        self.change(|state| {
            let Some(key) = state.of.get(&request).copied() else { return };
            let Some(known) = state.requests.get_mut(&key) else { return };
            let parts = known.parts.iter_mut().filter(|part| part.seq == request);
            parts.for_each(|part| part.ended = Some(status));
            if known.parts.iter().any(|part| part.ended.is_none()) {
                return;
            }
            let ended = state.ended.entry(key.0).or_default();
            ended.extend(known.parts.first().map(|part| part.seq));
            if ended.len() > ENDED
                && let Some(oldest) = ended.pop_front()
                && let Some(key) = state.of.get(&oldest).copied()
            {
                state.remove(key);
            }
        });
    }

    /// Forgets what cannot come again after this.
    pub(super) fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        self.change(|state| {
            if matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
                state.since += 1;
                state.begun.clear();
            } else {
                let gone: Vec<Key> = state.requests.keys().copied().collect();
                for key in gone.into_iter().filter(|key| queue.is_none_or(|q| q == key.0)) {
                    state.remove(key);
                }
            }
        });
    }

    /// A queue has begun, and whatever came again has come. Was that the first time since a reconnect
    /// or restart?
    pub(super) fn begun(&self, queue: u16) -> bool {
        self.change(|state| {
            let gone: Vec<Key> = state.requests.keys().copied().collect();
            for key in gone.into_iter().filter(|key| key.0 == queue) {
                state.remove(key);
            }
            state.ended.remove(&queue);
            state.since > 0 && state.begun.insert(queue)
        })
    }

    /// What is known of the request that comes again; where it is one event, `same` says whether
    /// that is about the same. Then it is forgotten.
    pub(super) fn take(&self, key: Key, same: impl FnOnce(&Op) -> bool) -> Option<Before> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let known = self.change(|state| state.remove(key))?;
        match &known.parts[..] {
            [one] if !same(&one.op) => None,
            [Part { seq, ended: None, .. }] => Some(Before::Goes(*seq)),
            parts => {
                let ended: Option<Vec<Status>> = parts.iter().map(|part| part.ended).collect();
                let worst = ended?.into_iter().find(|status| *status != Status::Ok);
                Some(Before::Ended(worst.unwrap_or(Status::Ok)))
            }
        }
    }
}

impl State {
    fn remove(&mut self, key: Key) -> Option<Known> {
        let known = self.requests.remove(&key)?;
        for part in &known.parts {
            self.of.remove(&part.seq);
        }
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(offset: u64) -> Op {
        Op::Write { offset, len: 512, fua: false, atomic: false, payload: Default::default() }
    }

    fn submit(position: u16, op: Op) -> Submit {
        Submit { queue: 3, position, head: position % 8, ioprio: 0, op }
    }

    fn take(open: &Open, position: u16) -> Option<Before> {
        open.take((3, position, position % 8), |_| true)
    }

    #[test]
    fn what_comes_again_is_found_once() {
        let open = Open::default();
        open.begin(Seq(1), &submit(0, Op::FLUSH));
        open.begin(Seq(2), &submit(1, write(0)));
        open.begin(Seq(3), &submit(2, write(0)));
        open.begin(Seq(4), &submit(2, write(512)));
        open.begin(Seq(5), &submit(4, write(0)));
        open.end(Seq(2), Status::IoErr);
        open.reset(ResetCause::Restart, None);
        assert_eq!(open.take((3, 0, 0), |op| *op != Op::FLUSH), None, "another request");
        assert_eq!(take(&open, 1), Some(Before::Ended(Status::IoErr)));
        assert_eq!(take(&open, 2), None, "in parts");
        assert_eq!(take(&open, 4), Some(Before::Goes(Seq(5))));
        assert_eq!(take(&open, 4), None);
        assert!(!open.any.load(Ordering::Relaxed));
    }

    #[test]
    fn parts_that_have_all_ended_are_answered() {
        let open = Open::default();
        open.begin(Seq(3), &submit(2, write(0)));
        open.begin(Seq(4), &submit(2, write(512)));
        open.end(Seq(3), Status::Ok);
        open.end(Seq(4), Status::Ok);
        assert_eq!(take(&open, 2), Some(Before::Ended(Status::Ok)));
    }

    #[test]
    fn a_place_in_the_ring_that_comes_round_is_another_request() {
        let open = Open::default();
        open.begin(Seq(1), &submit(0, write(0)));
        open.reset(ResetCause::Restart, None);
        open.begin(Seq(2), &submit(0, write(0)));
        assert_eq!(take(&open, 0), Some(Before::Goes(Seq(2))));
        open.begin(Seq(3), &submit(0, write(0)));
        open.end(Seq(3), Status::Ok);
        open.begin(Seq(4), &submit(0, write(0)));
        assert_eq!(take(&open, 0), Some(Before::Goes(Seq(4))));
    }

    #[test]
    fn resets_and_time_forget() {
        let open = Open::default();
        for (cause, left) in [(ResetCause::QueueStop, false), (ResetCause::Reconnect, true)] {
            open.begin(Seq(1), &submit(0, write(0)));
            open.reset(cause, Some(3));
            assert_eq!(take(&open, 0).is_some(), left, "{cause:?}");
        }
        open.begin(Seq(1), &submit(0, write(0)));
        open.reset(ResetCause::QueueStop, Some(2));
        assert!(take(&open, 0).is_some(), "another queue");
        for n in 0..3000 {
            open.begin(Seq(10 + n), &submit(n as u16, write(0)));
            open.end(Seq(10 + n), Status::Ok);
        }
        let state = open.state.lock().unwrap();
        assert_eq!((state.requests.len(), state.of.len()), (ENDED, ENDED));
    }
}

//! What happens to requests on purpose while the device runs: stalls, held completions and live
//! faults. One [`Gate`] for every store.
//!
//! A request that reaches the gate is asked about twice, before its I/O and before its completion.
//! At each point first what was armed against it is found (once, in the order in which requests
//! come), then it is held for as long as anything holds it, then it goes or fails.

use super::gate::{Gate, GateContext, Verdict, Waker};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps requests concurrent on purpose, by holding back completions (`--hold-completions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoldCompletions {
    #[default]
    None,
    /// Completes, oldest first, only while more than so many requests are in flight.
    Above(u32),
    /// Completes when no request came for a while.
    Idle,
    /// Completes each after a number of later requests, drawn from the seed: in another order.
    Random,
}

#[derive(Debug, Default)]
pub(super) struct LiveGate {
    queues: Mutex<HashMap<u16, Wake>>,
}

/// How a queue is woken: it shall ask again, and whoever waits for it shall notice.
#[derive(Debug, Default)]
struct Wake {
    waker: Option<Waker>,
    bell: Option<Arc<OwnedFd>>,
}

impl LiveGate {
    /// `bell` is rung (an eventfd) whenever queue `n` has to be reaped.
    pub(super) fn hang_bell(&self, n: u16, bell: Arc<OwnedFd>) {
        lock(&self.queues).entry(n).or_default().bell = Some(bell);
    }

    #[allow(dead_code)]
    fn wake(&self, queues: impl IntoIterator<Item = u16>) {
        let known = lock(&self.queues);
        for wake in queues.into_iter().filter_map(|n| known.get(&n)) {
            if let Some(waker) = &wake.waker {
                waker.wake();
            }
            if let Some(bell) = &wake.bell {
                // Fails only where the counter is full: then it is readable anyway.
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        }
    }
}

impl Gate for LiveGate {
    fn attach(&self, n: u16, waker: Waker) {
        lock(&self.queues).entry(n).or_default().waker = Some(waker);
    }

    fn before_io(&self, _: &GateContext<'_>) -> Verdict {
        Verdict::Go
    }

    fn before_completion(&self, _: &GateContext<'_>) -> Verdict {
        Verdict::Go
    }
}

/// What these locks guard is whole between two statements: a thread that died left it usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! How far inputs got.

use std::sync::atomic::{AtomicU64, Ordering};

/// A thing that inputs did, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub what: &'static str,
    pub times: u64,
}

/// Counts one thing, from any thread.
#[derive(Debug)]
pub(crate) struct Count(&'static str, AtomicU64);

impl Count {
    pub(crate) const fn new(what: &'static str) -> Count {
        Count(what, AtomicU64::new(0))
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.1.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Reached {
        Reached { what: self.0, times: self.1.load(Ordering::Relaxed) }
    }
}

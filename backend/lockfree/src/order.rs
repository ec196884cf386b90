//! Numbers, and the power cut.

use crate::sync::again;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Set in `next` from the power cut on: whoever takes a number then has none.
const FROZEN: u64 = 1 << 63;

/// The order of what is recorded: each event takes the next number, commits what it is under that
/// number, and is finished. Nothing waits but who cuts the power: for those that have a number.
///
/// Whatever changes one of these reads it too (no mere stores), so that each has one order of
/// changes, and who sees one of them has seen what came before.
#[derive(Debug)]
pub struct Order {
    /// The next number, and [`FROZEN`]; with that, the rest means nothing.
    next: AtomicU64,
    /// Numbers that were taken and are committed or given up.
    finished: AtomicU64,
    /// Numbers before the power cut, and 1; 0: no cut, or it is being made.
    cut: AtomicU64,
    /// How often the power came back.
    thaws: AtomicU64,
}

impl Order {
    /// Goes on with this number.
    pub fn new(next: u64) -> Order {
        Order {
            next: AtomicU64::new(next),
            finished: AtomicU64::new(next),
            cut: AtomicU64::new(0),
            thaws: AtomicU64::new(0),
        }
    }

    /// Takes the next number, and has `commit` put under it what is recorded (or give it up: a
    /// hole). `last`: cuts the power right after. `None`: the power is cut already.
    pub fn record<T>(&self, last: bool, commit: impl FnOnce(u64) -> T) -> Option<T> {
        let number = if last { self.take_last()? } else { self.take()? };
        let committed = commit(number);
        self.finished.fetch_add(1, Ordering::AcqRel);
        if last {
            self.settle(number + 1);
        }
        Some(committed)
    }

    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::AcqRel);
        (number & FROZEN == 0).then_some(number)
    }

    fn take_last(&self) -> Option<u64> {
        self.next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n & FROZEN == 0).then_some((n + 1) | FROZEN)
            })
            .ok()
    }

    /// Waits until every number below `taken` is committed or given up, and makes that the cut:
    /// moments, since nothing blocks between taking a number and that.
    fn settle(&self, taken: u64) {
        let mut finished = self.finished.load(Ordering::Acquire);
        while finished < taken {
            finished = again(&self.finished);
        }
        self.cut.swap(taken + 1, Ordering::AcqRel);
    }

    /// Cuts the power, if it is not: → how many numbers are before the cut. All of them are
    /// committed, and none comes after them.
    pub fn freeze(&self) -> u64 {
        loop {
            let taken = self.next.fetch_or(FROZEN, Ordering::AcqRel);
            if taken & FROZEN == 0 {
                self.settle(taken);
                return taken;
            }
            // Else the power came back in between, and is to be cut again.
            if let Some(cut) = self.frozen() {
                return cut;
            }
        }
    }

    /// `None`: there is power. Otherwise how many numbers are before the cut.
    pub fn frozen(&self) -> Option<u64> {
        let mut next = self.next.load(Ordering::Acquire);
        let mut cut = self.cut.load(Ordering::Acquire);
        while next & FROZEN != 0 {
            if cut != 0 {
                return Some(cut - 1);
            }
            // Another thread makes the cut right now, or the power comes back.
            next = again(&self.next);
            cut = again(&self.cut);
        }
        None
    }

    /// Is the power cut? A load, and never waits.
    pub fn is_frozen(&self) -> bool {
        self.next.load(Ordering::Acquire) & FROZEN != 0
    }

    /// The power is back, and the order goes on after the cut; `noted`: after one number more,
    /// which was committed meanwhile. By one thread at a time; `false`: there was power.
    pub fn thaw(&self, noted: bool) -> bool {
        if self.frozen().is_none() {
            return false;
        }
        let cut = self.cut.swap(0, Ordering::AcqRel) - 1;
        self.thaws.fetch_add(1, Ordering::AcqRel);
        self.finished.fetch_add(noted.into(), Ordering::AcqRel);
        self.next.swap(cut + u64::from(noted), Ordering::AcqRel);
        true
    }

    /// How often [`Order::thaw`] brought the power back. Changes before [`Order::is_frozen`] does.
    pub fn thaws(&self) -> u64 {
        self.thaws.load(Ordering::Acquire)
    }

    /// Numbers that are taken now; `None`: the power is cut.
    pub fn taken(&self) -> Option<u64> {
        let next = self.next.load(Ordering::Acquire);
        (next & FROZEN == 0).then_some(next)
    }

    /// Numbers taken so far: with the power cut, those before the cut.
    pub fn events(&self) -> u64 {
        loop {
            if let Some(known) = self.taken().or_else(|| self.frozen()) {
                return known;
            }
        }
    }
}

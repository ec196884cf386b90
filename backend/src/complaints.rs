//! What a guest causes, to the log: it must not be able to fill it, whatever it resets.

use log::Level;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tornblk_lockfree::Window;

/// All guests of this process, and all their queues: what is made anew at a reset cannot count.
static GUESTS: LazyLock<Complaints> = LazyLock::new(Complaints::default);

/// Something is wrong with what a guest asked for.
pub(crate) fn guest(what: fmt::Arguments<'_>) {
    GUESTS.say(Level::Warn, what);
}

/// A guest did something that is as it should be.
pub(crate) fn guest_did(what: fmt::Arguments<'_>) {
    GUESTS.say(Level::Info, what);
}

/// How many of a guest's were kept back: when it goes.
pub(crate) fn rest_of_guests() {
    GUESTS.rest();
}

/// Says at most a few things in a while, and how many it kept back. No thread waits for another,
/// and what is kept back is not even formatted.
#[derive(Debug)]
pub(crate) struct Complaints {
    start: Instant,
    said: Window,
}

impl Default for Complaints {
    fn default() -> Complaints {
        Complaints { start: Instant::now(), said: Window::new() }
    }
}

impl Complaints {
    const EACH: Duration = Duration::from_secs(5);
    const MOST: u32 = 10;

    pub(crate) fn say(&self, level: Level, what: fmt::Arguments<'_>) {
        let window = self.start.elapsed().as_secs() / Self::EACH.as_secs();
        let Some(before) = self.admit(window) else { return };
        Self::kept_back(before);
        log::log!(level, "{what}");
    }

    /// How many were kept back that nobody was told of.
    fn rest(&self) {
        Self::kept_back(self.said.take_kept_back());
    }

    fn kept_back(n: u64) {
        if n > 0 {
            log::warn!("... and {n} more of these");
        }
    }

    /// May one more be said? Then how many were kept back before that nobody was told of.
    fn admit(&self, window: u64) -> Option<u64> {
        self.said.admit(window, Self::MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_what_may_be_said_in_a_while() {
        let complaints = Complaints::default();
        let most = Complaints::MOST as usize;
        // What nobody was told of yet.
        let mut left = 0;
        for window in [0, 1, 7] {
            let admitted: Vec<u64> = std::thread::scope(|scope| {
                let many = || (0..100).filter_map(|_| complaints.admit(window)).collect::<Vec<_>>();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(many)).collect();
                threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
            });
            assert_eq!(admitted.len(), most, "{window}");
            // What was kept back in the while before is told once; more may come in between.
            let told: u64 = admitted.iter().sum();
            let kept = told + complaints.said.kept_back();
            assert_eq!(kept, left + 400 - most as u64, "{window}");
            assert!(told >= left, "{window}: {told}");
            left = complaints.said.kept_back();
        }
        // A thread that looked at the clock before the others.
        assert_eq!(complaints.admit(1), None);
        // What comes last is told, too, and once.
        assert_eq!((complaints.said.take_kept_back(), complaints.said.kept_back()), (left + 1, 0));
    }
}

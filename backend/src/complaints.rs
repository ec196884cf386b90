//! What goes wrong because of the guest, to the log: a guest must not be able to fill it.

use std::fmt;
use std::time::{Duration, Instant};
use tornblk_lockfree::Window;

/// Says at most a few things in a while, and how many it kept back.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    since: Option<Instant>,
    said: u32,
    kept_back: u64,
}

impl Complaints {
    const EACH: Duration = Duration::from_secs(5);
    const MOST: u32 = 10;

    pub(crate) fn say(&mut self, what: fmt::Arguments<'_>) {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since > Self::EACH) {
            if self.kept_back > 0 {
                log::warn!("... and {} more of these", self.kept_back);
            }
            *self = Complaints { since: Some(now), said: 0, kept_back: 0 };
        }
        if self.said < Self::MOST {
            self.said += 1;
            log::warn!("{what}");
        } else {
            self.kept_back += 1;
        }
    }
}

/// The same for many threads: none waits for another, and what is kept back is not even formatted.
#[derive(Debug)]
pub(crate) struct SharedComplaints {
    start: Instant,
    said: Window,
}

impl Default for SharedComplaints {
    fn default() -> SharedComplaints {
        SharedComplaints { start: Instant::now(), said: Window::new() }
    }
}

impl SharedComplaints {
    pub(crate) fn say(&self, what: fmt::Arguments<'_>) {
        let window = self.start.elapsed().as_secs() / Complaints::EACH.as_secs();
        let Some(before) = self.admit(window) else { return };
        if before > 0 {
            log::warn!("... and {before} more of these");
        }
        log::warn!("{what}");
    }

    /// May one more be said? Then how many were kept back before that nobody was told of.
    fn admit(&self, window: u64) -> Option<u64> {
        self.said.admit(window, Complaints::MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_what_may_be_said_in_a_while() {
        let complaints = SharedComplaints::default();
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
    }
}

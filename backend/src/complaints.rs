//! What goes wrong because of the guest, to the log: a guest must not be able to fill it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
    /// Upper half: which while it is, counted from `start`; lower half: how many were said in it.
    said: AtomicU64,
    kept_back: AtomicU64,
}

impl Default for SharedComplaints {
    fn default() -> SharedComplaints {
        let (said, kept_back) = (AtomicU64::new(0), AtomicU64::new(0));
        SharedComplaints { start: Instant::now(), said, kept_back }
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
        // 5 s times 4 billion; a window that another thread already began is not begun again.
        let window = window & u64::from(u32::MAX);
        let most = u64::from(Complaints::MOST);
        let said = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| {
            if said >> 32 < window {
                Some(window << 32 | 1)
            } else {
                (said & u64::from(u32::MAX) < most).then_some(said + 1)
            }
        });
        match said {
            Ok(said) if said >> 32 < window => Some(self.kept_back.swap(0, Ordering::Relaxed)),
            Ok(_) => Some(0),
            Err(_) => {
                self.kept_back.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_what_may_be_said_in_a_while() {
        let complaints = SharedComplaints::default();
        let most = Complaints::MOST as usize;
        for window in [0, 1, 7] {
            let before = if window == 0 { 0 } else { 400 - most as u64 };
            let admitted: Vec<u64> = std::thread::scope(|scope| {
                let many = || (0..100).filter_map(|_| complaints.admit(window)).collect::<Vec<_>>();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(many)).collect();
                threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
            });
            assert_eq!(admitted.len(), most, "{window}");
            // What was kept back in the while before is told once; more may come in between.
            let told: u64 = admitted.iter().sum();
            let kept = told + complaints.kept_back.load(Ordering::Relaxed);
            assert_eq!(kept, before + 400 - most as u64, "{window}");
            assert!(told >= before, "{window}: {told}");
            complaints.kept_back.store(400 - most as u64, Ordering::Relaxed);
        }
        // A thread that looked at the clock before the others.
        assert_eq!(complaints.admit(1), None);
    }
}

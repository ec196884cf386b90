//! So much in a while.

use crate::sync::atomic::{AtomicU64, Ordering};

/// At most so many in each while, whoever comes; the others are counted.
#[derive(Debug, Default)]
pub struct Window {
    /// Upper half: which while it is; lower half: how many were admitted in it.
    admitted: AtomicU64,
    kept_back: AtomicU64,
}

const COUNT: u64 = u32::MAX as u64;

impl Window {
    pub fn new() -> Window {
        Window { admitted: AtomicU64::new(0), kept_back: AtomicU64::new(0) }
    }

    /// May one more, of `most`, in the while with this number? Then how many were kept back before
    /// that nobody was told of.
    pub fn admit(&self, number: u64, most: u32) -> Option<u64> {
        // A while that another thread already began is not begun again.
        let number = number & COUNT;
        let before = self.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            if word >> 32 < number {
                Some(number << 32 | 1)
            } else {
                (word & COUNT < u64::from(most)).then_some(word + 1)
            }
        });
        match before {
            Ok(word) if word >> 32 < number => Some(self.kept_back.swap(0, Ordering::Relaxed)),
            Ok(_) => Some(0),
            Err(_) => {
                self.kept_back.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// How many were kept back; from now on that is told.
    pub fn take_kept_back(&self) -> u64 {
        self.kept_back.swap(0, Ordering::Relaxed)
    }

    /// How many were kept back that nobody was told of.
    pub fn kept_back(&self) -> u64 {
        self.kept_back.load(Ordering::Relaxed)
    }
}

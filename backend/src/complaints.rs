//! What goes wrong because of the guest, to the log: a guest must not be able to fill it.

use std::fmt;
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

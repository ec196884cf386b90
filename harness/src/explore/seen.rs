//! Each content is judged once, under its strongest promises.

use super::{Fingerprint, Judged};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Threads that meet at one of these wait for each other.
const PARTS: usize = 64;
/// Somebody is judging it right now.
const PENDING: u64 = 1 << 63;

/// Keys are sums of hashes: they need no more hashing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }
}

/// 24 bytes a content: the key, as two words so that it needs no more room, and its promises.
type Part = HashMap<[u64; 2], u64, BuildHasherDefault<AsIs>>;

/// Which contents were judged, and under how many promises.
#[derive(Debug)]
pub(super) struct Seen {
    parts: Vec<Mutex<Part>>,
}

/// What is known of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was judged, or is being judged, under at least as many promises.
    Judged,
    /// Nobody saw it before.
    New,
    /// It was judged under fewer promises: it is to be judged again.
    Weaker(u64),
}

pub(super) fn words(key: u128) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}

impl Seen {
    pub(super) fn new(judged: &[Judged]) -> Seen {
        let seen = Seen { parts: (0..PARTS).map(|_| Mutex::default()).collect() };
        for Judged { key, promises } in judged {
            let mut part = seen.part(key.0);
            let known = part.entry(words(key.0)).or_default();
            *known = (*known).max(*promises & !PENDING);
        }
        seen
    }

    fn part(&self, key: u128) -> MutexGuard<'_, Part> {
        // Other bits than the map goes by.
        let part = &self.parts[(key >> 100) as usize % PARTS];
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever is told anything but [`Known::Judged`] judges it, and then calls [`Seen::judged`] or
    /// [`Seen::gave_up`].
    pub(super) fn ask(&self, key: u128, promises: u64) -> Known {
        let mut part = self.part(key);
        match part.get_mut(&words(key)) {
            Some(known) if *known & !PENDING >= promises => Known::Judged,
            Some(known) => {
                let before = std::mem::replace(known, promises | PENDING);
                Known::Weaker(before)
            }
            None => {
                part.insert(words(key), promises | PENDING);
                Known::New
            }
        }
    }

    pub(super) fn judged(&self, key: u128, promises: u64) {
        if let Some(known) = self.part(key).get_mut(&words(key)) {
            // Meanwhile another thread may have begun to judge it under more.
            if *known == promises | PENDING {
                *known = promises;
            }
        }
    }

    /// It was not judged after all.
    pub(super) fn gave_up(&self, key: u128, before: Known) {
        let mut part = self.part(key);
        match before {
            Known::Weaker(promises) => drop(part.insert(words(key), promises)),
            Known::New => drop(part.remove(&words(key))),
            Known::Judged => {}
        }
    }

    /// All that were judged to the end.
    pub(super) fn all(&self) -> Vec<Judged> {
        let mut all = Vec::new();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let done = part.iter().filter(|(_, promises)| **promises & PENDING == 0);
            all.extend(done.map(|([low, high], promises)| Judged {
                key: Fingerprint(u128::from(*high) << 64 | u128::from(*low)),
                promises: *promises,
            }));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_judged_again_only_under_more_promises() {
        let seen = Seen::new(&[Judged { key: Fingerprint(7), promises: 3 }]);
        assert_eq!(seen.ask(7, 3), Known::Judged);
        assert_eq!(seen.ask(7, 2), Known::Judged);
        assert_eq!(seen.ask(7, 4), Known::Weaker(3));
        assert_eq!(seen.ask(7, 4), Known::Judged, "somebody is at it");
        assert_eq!(seen.all(), [], "not yet");
        seen.judged(7, 4);
        assert_eq!(seen.all(), [Judged { key: Fingerprint(7), promises: 4 }]);
        let big = u128::MAX - 5;
        assert_eq!(seen.ask(big, 0), Known::New);
        seen.gave_up(big, Known::New);
        assert_eq!(seen.ask(big, 0), Known::New);
        seen.judged(big, 0);
        assert_eq!(seen.all().len(), 2);
        assert_eq!(seen.ask(7, 9), Known::Weaker(4));
        seen.gave_up(7, Known::Weaker(4));
        assert_eq!(seen.ask(7, 5), Known::Weaker(4));
    }
}

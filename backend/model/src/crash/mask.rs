//! Sets of small numbers (fragments of a write, blocks of a discard), written in hexadecimal.

use smallvec::SmallVec;
use std::fmt;

/// A set of numbers from 0; number 0 is the lowest bit of the hexadecimal text.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mask {
    /// No zero word at the end, so that equal sets are equal values.
    words: SmallVec<[u64; 1]>,
}

impl Mask {
    pub fn new() -> Mask {
        Mask::default()
    }

    /// `0..n`.
    pub fn first(n: usize) -> Mask {
        let mut mask = Mask::new();
        mask.words.resize(n / 64, u64::MAX);
        if !n.is_multiple_of(64) {
            mask.words.push((1 << (n % 64)) - 1);
        }
        mask
    }

    pub fn get(&self, i: usize) -> bool {
        self.words.get(i / 64).is_some_and(|word| word >> (i % 64) & 1 == 1)
    }

    pub fn set(&mut self, i: usize, on: bool) {
        if on {
            if self.words.len() <= i / 64 {
                self.words.resize(i / 64 + 1, 0);
            }
            self.words[i / 64] |= 1 << (i % 64);
        } else if let Some(word) = self.words.get_mut(i / 64) {
            *word &= !(1 << (i % 64));
            while self.words.last() == Some(&0) {
                self.words.pop();
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many numbers are in it.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// One above the greatest number in it.
    pub fn end(&self) -> usize {
        self.words.last().map_or(0, |word| self.words.len() * 64 - word.leading_zeros() as usize)
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.end()).filter(|i| self.get(*i))
    }

    /// Reads hexadecimal, lower case, without leading zeros.
    pub fn parse(text: &str) -> Option<Mask> {
        if text == "0" {
            return Some(Mask::new());
        }
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.is_empty() || text.starts_with('0') || !text.bytes().all(digit) {
            return None;
        }
        let words = text.as_bytes().rchunks(16).map(|chunk| {
            // The digits were checked above.
            std::str::from_utf8(chunk).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok())
        });
        Some(Mask { words: words.collect::<Option<_>>()? })
    }
}

impl FromIterator<usize> for Mask {
    fn from_iter<T: IntoIterator<Item = usize>>(numbers: T) -> Mask {
        let mut mask = Mask::new();
        for i in numbers {
            mask.set(i, true);
        }
        mask
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, rest)) = self.words.split_last() else { return f.write_str("0") };
        write!(f, "{last:x}")?;
        rest.iter().rev().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn masks_are_sets(numbers in prop::collection::btree_set(0usize..200, 0..20)) {
            let mask: Mask = numbers.iter().copied().collect();
            prop_assert_eq!(mask.iter().collect::<Vec<_>>(),
                numbers.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(mask.count(), numbers.len());
            prop_assert_eq!(mask.end(), numbers.last().map_or(0, |n| n + 1));
            prop_assert_eq!(Mask::parse(&mask.to_string()), Some(mask.clone()));
            let mut less = mask.clone();
            for n in &numbers {
                less.set(*n, false);
            }
            prop_assert_eq!(less, Mask::new());
        }
    }

    #[test]
    fn hexadecimal_is_canonical() {
        assert_eq!(Mask::first(0).to_string(), "0");
        assert_eq!(Mask::first(5).to_string(), "1f");
        assert_eq!(Mask::first(64).to_string(), "ffffffffffffffff");
        assert_eq!(Mask::first(65).to_string(), "1ffffffffffffffff");
        for bad in ["", "00", "01", "F", "g", "-1", " 1"] {
            assert_eq!(Mask::parse(bad), None, "{bad}");
        }
    }
}

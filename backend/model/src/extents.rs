//! What holds for ranges of blocks: a few long ranges cost as little as a few blocks.

use std::collections::BTreeMap;
use std::ops::Range;

/// What holds for a run of blocks.
pub trait Run: Copy + PartialEq {
    /// What holds from the block `n` later on.
    #[must_use]
    fn skip(self, n: u64) -> Self;
}

/// Ranges of blocks that do not overlap, each with its value; neighbours that go on are one.
#[derive(Clone, Debug)]
pub struct Extents<V> {
    /// By their first block: the end, and what holds from the first on.
    map: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for Extents<V> {
    fn default() -> Self {
        Extents { map: BTreeMap::new() }
    }
}

impl<V: Run> Extents<V> {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// What holds for this block.
    pub fn get(&self, block: u64) -> Option<V> {
        let (start, (end, value)) = self.map.range(..=block).next_back()?;
        (block < *end).then(|| value.skip(block - start))
    }

    /// All of these blocks, in runs; `None`: nothing holds there.
    pub fn runs(&self, blocks: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<V>)> + '_ {
        let first = self.map.range(..blocks.start).next_back().map_or(blocks.start, |(at, _)| *at);
        let mut within = self.map.range(first..blocks.end).peekable();
        let mut at = blocks.start;
        std::iter::from_fn(move || {
            while within.peek().is_some_and(|(_, (end, _))| *end <= at) {
                within.next();
            }
            if at >= blocks.end {
                return None;
            }
            let from = at;
            let value = match within.peek() {
                Some((start, (end, value))) if **start <= at => {
                    at = (*end).min(blocks.end);
                    Some(value.skip(from - **start))
                }
                Some((start, _)) => {
                    at = **start;
                    None
                }
                None => {
                    at = blocks.end;
                    None
                }
            };
            Some((from..at, value))
        })
    }

    /// From now on nothing holds for these blocks.
    pub fn clear(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        if let Some((start, (end, value))) = self.map.range_mut(..blocks.start).next_back()
            && *end > blocks.start
        {
            let (old_end, rest) = (*end, value.skip(blocks.end.saturating_sub(*start)));
            *end = blocks.start;
            if old_end > blocks.end {
                self.map.insert(blocks.end, (old_end, rest));
                return;
            }
        }
        while let Some((start, (end, value))) =
            self.map.range(blocks.clone()).next().map(|(start, kept)| (*start, *kept))
        {
            self.map.remove(&start);
            if end > blocks.end {
                self.map.insert(blocks.end, (end, value.skip(blocks.end - start)));
            }
        }
    }

    /// From now on this holds for these blocks.
    pub fn set(&mut self, blocks: Range<u64>, value: V) {
        if blocks.is_empty() {
            return;
        }
        self.clear(blocks.clone());
        let Range { mut start, mut end } = blocks;
        let mut value = value;
        if let Some((before, (upto, earlier))) = self.map.range(..start).next_back()
            && *upto == start
            && earlier.skip(start - before) == value
        {
            (start, value) = (*before, *earlier);
        }
        if let Some((upto, later)) = self.map.get(&end).copied()
            && value.skip(end - start) == later
        {
            self.map.remove(&end);
            end = upto;
        }
        self.map.insert(start, (end, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 0 holds for every block alike; any other counts up.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Value(u64);

    impl Run for Value {
        fn skip(self, n: u64) -> Value {
            if self.0 == 0 { self } else { Value(self.0 + n) }
        }
    }

    const BLOCKS: u64 = 40;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn they_are_what_a_list_of_blocks_is(
            steps in prop::collection::vec((0..BLOCKS, 0..12u64, 0..6u64), 1..60),
            seen in (0..BLOCKS, 0..BLOCKS),
        ) {
            let mut extents = Extents::default();
            let mut blocks = vec![None; BLOCKS as usize];
            for (start, n, what) in steps {
                let range = start..(start + n).min(BLOCKS);
                let value = match what {
                    0 => None,
                    1 | 2 => Some(Value(0)),
                    // So that neighbours fit together, often.
                    _ => Some(Value(100 + range.start)),
                };
                match value {
                    Some(value) => extents.set(range.clone(), value),
                    None => extents.clear(range.clone()),
                }
                for (i, block) in range.enumerate() {
                    blocks[block as usize] = value.map(|v| v.skip(i as u64));
                }
            }
            for (block, expected) in (0..).zip(&blocks) {
                prop_assert_eq!(extents.get(block), *expected);
            }
            let range = seen.0.min(seen.1)..seen.0.max(seen.1);
            let mut at = range.start;
            for (run, value) in extents.runs(range.clone()) {
                prop_assert_eq!(run.start, at);
                prop_assert!(!run.is_empty());
                for block in run.clone() {
                    let held = value.map(|v| v.skip(block - run.start));
                    prop_assert_eq!(held, blocks[block as usize]);
                }
                at = run.end;
            }
            prop_assert_eq!(at, range.end);
            // No two neighbours could be one.
            let runs: Vec<_> = extents.runs(0..BLOCKS).filter(|(_, v)| v.is_some()).collect();
            for pair in runs.windows(2) {
                let ((a, x), (b, y)) = (&pair[0], &pair[1]);
                let goes_on = x.map(|x| x.skip(a.end - a.start)) == *y;
                prop_assert!(a.end != b.start || !goes_on);
            }
        }
    }
}

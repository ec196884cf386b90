//! Where slots are.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Which segment of a file has the slot of a number. It only grows, by a segment at a time.
#[derive(Debug)]
pub struct Places {
    /// Slots in a segment.
    each: u64,
    /// Slots there is room for.
    capacity: AtomicU64,
    segments: Box<[AtomicU32]>,
}

impl Places {
    /// Room for nothing yet, and for `most` segments in the end.
    pub fn new(each: u64, most: usize) -> Places {
        let segments = (0..most).map(|_| AtomicU32::new(0)).collect();
        Places { each, capacity: AtomicU64::new(0), segments }
    }

    /// The segment of a number, and which of its slots it is.
    pub fn find(&self, number: u64) -> Option<(u32, u64)> {
        if number >= self.capacity() {
            return None;
        }
        let segment = self.segments.get((number / self.each) as usize)?;
        Some((segment.load(Ordering::Acquire), number % self.each))
    }

    /// Numbers that have a place.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Which segment of slots would be added next; `None`: there cannot be more.
    pub fn next(&self) -> Option<u32> {
        let ordinal = self.capacity() / self.each;
        u32::try_from(ordinal).ok().filter(|n| (*n as usize) < self.segments.len())
    }

    /// Adds a segment. By one thread at a time; `false`: there cannot be more.
    pub fn add(&self, segment: u32) -> bool {
        let capacity = self.capacity();
        let Some(entry) = self.segments.get((capacity / self.each) as usize) else { return false };
        entry.store(segment, Ordering::Release);
        // Only now may it be looked for.
        self.capacity.store(capacity + self.each, Ordering::Release);
        true
    }
}

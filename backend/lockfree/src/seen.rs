//! What was seen.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The available index of each queue that was recorded last: who finds his own there need not
/// record it, and may rely on its event being before his.
#[derive(Debug)]
pub struct Seen {
    /// By queue: the index, and above its 16 bits the epoch.
    indexes: Box<[AtomicU64]>,
    /// Counts resets, from 1: an index that was seen before one is news after it.
    epoch: AtomicU64,
}

/// What is seen now counts for this epoch, whatever comes in between.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(u64);

impl Seen {
    /// Queues above `queues` are not remembered: each index of theirs is news.
    pub fn new(queues: usize) -> Seen {
        let indexes = (0..queues).map(|_| AtomicU64::new(0)).collect();
        Seen { indexes, epoch: AtomicU64::new(1) }
    }

    /// To be asked before the indexes are read: those of an earlier epoch are not taken for a
    /// later one's.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    pub fn is_news(&self, epoch: Epoch, queue: u16, index: u16) -> bool {
        let known = self.indexes.get(usize::from(queue));
        known.is_none_or(|known| known.load(Ordering::Acquire) != Self::word(epoch, index))
    }

    /// It is recorded: only then.
    pub fn recorded(&self, epoch: Epoch, queue: u16, index: u16) {
        if let Some(known) = self.indexes.get(usize::from(queue)) {
            known.store(Self::word(epoch, index), Ordering::Release);
        }
    }

    /// All is news again.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn word(epoch: Epoch, index: u16) -> u64 {
        epoch.0 << 16 | u64::from(index)
    }
}

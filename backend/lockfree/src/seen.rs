//! What was seen.

use crate::sync::atomic::{AtomicU64, Ordering};
use smallvec::SmallVec;

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
struct Epoch(u64);

/// Queues and their indexes.
type News = SmallVec<[(u16, u16); 4]>;

impl Seen {
    /// Queues above `queues` are not remembered: each index of theirs is news.
    pub fn new(queues: usize) -> Seen {
        let indexes = (0..queues).map(|_| AtomicU64::new(0)).collect();
        Seen { indexes, epoch: AtomicU64::new(1) }
    }

    /// Has `commit` record the indexes that `look` finds and that are news, before (or with) an event
    /// of its own.
    ///
    /// # Errors
    /// Those of `commit`: then nothing counts as recorded.
    pub fn record<T, E>(
        &self,
        look: impl FnOnce(&mut dyn FnMut(u16, u16)),
        commit: impl FnOnce(&[(u16, u16)]) -> Result<T, E>,
    ) -> Result<T, E> {
        // Before the indexes are read: those of an earlier epoch are not taken for this one's.
        let epoch = self.epoch();
        let mut news = News::new();
        look(&mut |queue, index| {
            if self.is_news(epoch, queue, index) {
                news.push((queue, index));
            }
        });
        let committed = commit(&news)?;
        // Only now: whoever leaves an index out because it was seen may rely on its event being
        // before his own.
        for (queue, index) in news {
            self.recorded(epoch, queue, index);
        }
        Ok(committed)
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    fn is_news(&self, epoch: Epoch, queue: u16, index: u16) -> bool {
        let known = self.indexes.get(usize::from(queue));
        known.is_none_or(|known| known.load(Ordering::Acquire) != Self::word(epoch, index))
    }

    fn recorded(&self, epoch: Epoch, queue: u16, index: u16) {
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

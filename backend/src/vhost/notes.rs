//! A queue's notes, with what has to be known before an answer goes out.

use super::guard::Guarded;
use super::in_flight::Beside;
use super::in_flight::region::Slot;
use crate::device::Device;
use crate::device::ledger::{Ledger, Left};
use crate::store::Moves;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tornblk_model::guard::poisonings;

/// What the queues of a connection share.
pub(super) struct Watch {
    device: Arc<dyn Device>,
    beside: Arc<Beside>,
    /// Is there a write cache where the driver chooses nothing?
    default_writeback: bool,
    guarded: Mutex<Guarded>,
    /// How many poisonings there were in this process when it was looked last.
    seen: AtomicU64,
    cut_short: AtomicBool,
}

impl Watch {
    pub(super) fn new(
        device: Arc<dyn Device>,
        beside: Arc<Beside>,
        default_writeback: bool,
    ) -> Arc<Watch> {
        Arc::new(Watch {
            device,
            beside,
            default_writeback,
            guarded: Mutex::default(),
            seen: AtomicU64::new(poisonings()),
            cut_short: AtomicBool::new(false),
        })
    }

    /// The guest's memories.
    pub(super) fn guarded<T>(&self, f: impl FnOnce(&mut Guarded) -> T) -> T {
        f(&mut self.guarded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Was the guest's memory cut short?
    pub(super) fn is_cut_short(&self) -> bool {
        let now = poisonings();
        // Seldom: then it may be a recording, or other memory.
        if self.seen.load(Ordering::Acquire) != now {
            if self.guarded(|guarded| guarded.poisoned()) {
                self.cut_short.store(true, Ordering::Release);
            }
            self.seen.store(now, Ordering::Release);
        }
        self.cut_short.load(Ordering::Acquire)
    }

    /// Before the driver learns that its choice was taken.
    pub(super) fn keep_writeback(&self) {
        self.beside.keep_writeback(self.device.writeback(), self.default_writeback);
    }
}

pub(super) struct Notes {
    pub(super) slot: Slot,
    pub(super) watch: Arc<Watch>,
}

impl Ledger for Notes {
    fn left(&mut self, used: u16) -> Vec<Left> {
        self.slot.left(used)
    }

    fn take(&mut self, head: u16, position: u16) -> bool {
        self.slot.take(head, position)
    }

    fn answered(&mut self, head: u16, len: u32) {
        self.slot.answered(head, len);
    }

    fn returning(&mut self, head: Option<u16>) {
        self.watch.keep_writeback();
        self.slot.returning(head);
    }

    fn returned(&mut self, head: Option<u16>, used: u16) {
        self.slot.returned(head, used);
    }

    fn forget(&mut self) {
        self.slot.forget();
    }

    fn sound(&self) -> bool {
        !self.watch.is_cut_short() && self.slot.sound()
    }

    fn moves(&self) -> Arc<dyn Moves> {
        self.slot.moves()
    }
}

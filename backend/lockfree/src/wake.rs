//! Waking.

use crate::sync::atomic::{AtomicBool, Ordering};

/// One side changes something and wakes the other, which sleeps on a bell (an eventfd): whatever
/// was changed before is looked at after.
///
/// The sleeper silences the bell first, takes the flag then, and looks last. So one who comes in
/// between rings again.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn new() -> Flag {
        Flag(AtomicBool::new(false))
    }

    /// Says that there is something to look at, and rings.
    pub fn wake(&self, ring: impl FnOnce()) {
        // No mere store: of two who wake, the one who takes the flag must see both's changes.
        self.0.swap(true, Ordering::AcqRel);
        ring();
    }

    /// Was there something since the last call?
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// Without taking it.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

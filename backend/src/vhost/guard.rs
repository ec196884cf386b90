//! The guest's memory is files of the front-end's, which may cut them short at any time.

use crate::device::Memory;
use std::sync::Arc;
use tornblk_model::guard::Guard;
use vm_memory::GuestMemoryBackend;

/// Memory that was replaced and is still in use; more than so many are given up.
const GENERATIONS: usize = 4;

/// The memories of a connection, guarded as long as somebody uses them.
#[derive(Debug, Default)]
pub(super) struct Guarded(Vec<Held>);

/// The guards end before the memory may.
#[derive(Debug)]
struct Held {
    guards: Vec<Guard>,
    mem: Arc<Memory>,
}

impl Guarded {
    /// Guards `mem`. Says whether that could be done.
    pub(super) fn add(&mut self, mem: Arc<Memory>) -> bool {
        // Who holds nothing but us goes: its addresses may be somebody else's soon.
        self.0.retain(|held| Arc::strong_count(&held.mem) > 1);
        if self.0.len() >= GENERATIONS {
            self.0.remove(0);
        }
        let guards: Option<Vec<Guard>> =
            mem.iter().map(|region| Guard::new(region.as_ptr() as usize, region.size())).collect();
        let guarded = guards.is_some();
        self.0.push(Held { guards: guards.unwrap_or_default(), mem });
        guarded
    }

    /// Was any of it cut short?
    pub(super) fn poisoned(&self) -> bool {
        self.0.iter().flat_map(|held| &held.guards).any(Guard::poisoned)
    }
}

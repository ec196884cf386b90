//! The guest's memory is files of the front-end's, which may cut them short at any time.

use crate::device::Memory;
use std::sync::Arc;
use tornblk_model::guard::Guard;
use vm_memory::GuestMemoryBackend;

/// Memories that may be in use at a time: each new table of regions is another one, while requests
/// keep those of before.
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

/// Guards of a memory that nobody uses yet; `None`: there are too many.
pub(super) fn guard(mem: &Memory) -> Option<Vec<Guard>> {
    let each = mem.iter().map(|region| {
        // SAFETY: a region stays mapped as long as its memory lives, and whoever gets these guards
        // keeps that behind them: see `Held`.
        unsafe { Guard::new(region.as_ptr() as usize, region.size()) }
    });
    each.collect()
}

impl Guarded {
    /// `mem` is in use from now on.
    pub(super) fn hold(&mut self, guards: Vec<Guard>, mem: Arc<Memory>) {
        self.prune();
        self.0.push(Held { guards, mem });
    }

    /// Are more of them in use than there may be?
    pub(super) fn too_many(&mut self) -> bool {
        self.prune();
        self.0.len() > GENERATIONS
    }

    /// Who holds nothing but us goes: the host wants that memory, and its addresses.
    fn prune(&mut self) {
        self.0.retain(|held| Arc::strong_count(&held.mem) > 1);
    }

    /// Was any of it cut short?
    pub(super) fn poisoned(&self) -> bool {
        self.0.iter().flat_map(|held| &held.guards).any(Guard::poisoned)
    }
}

//! The device on real rings in a guest's memory, without a guest.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod malformed;
mod random;
mod requests;
mod resume;

use common::driver::{Driver, Sent};
use common::store::MemStore;
use std::sync::Arc;
use tornblk_backend::device::blk::Blk;
use tornblk_backend::device::{Device, DeviceQueue, Memory};
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Two regions that touch each other, so that a buffer can lie in both.
pub(crate) const SEAM: u64 = 0x8_0000;
pub(crate) const END: u64 = 0x10_0000;

/// A device, a driver, and what is between them.
pub(crate) struct Bench {
    pub(crate) store: Arc<MemStore>,
    pub(crate) device: Arc<Blk>,
    pub(crate) driver: Driver,
    pub(crate) queue: Box<dyn DeviceQueue>,
    pub(crate) ring: Queue,
}

impl Bench {
    pub(crate) fn new(store: Arc<MemStore>) -> Bench {
        let device = common::device(&store);
        Bench::with(store, device, false)
    }

    pub(crate) fn with(store: Arc<MemStore>, device: Arc<Blk>, event_idx: bool) -> Bench {
        let regions =
            [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (END - SEAM) as usize)];
        let mem: Arc<Memory> = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let driver = Driver::new(mem, 0x1000, 256, 0x1_0000);
        let queue = device.clone().queue(0);
        let ring = driver.ring(event_idx);
        Bench { store, device, driver, queue, ring }
    }

    /// The device works; says whether it wants to tell the driver.
    pub(crate) fn pump(&mut self) -> bool {
        let mem = self.driver.mem.clone();
        self.queue.pump(&mut self.ring, &mem, true)
    }

    /// The device works off one request. Its status, and what the used ring says of its length.
    pub(crate) fn answer(&mut self, sent: Sent) -> (u8, u32) {
        let _ = self.pump();
        let used = self.driver.take_used();
        assert_eq!(used.len(), 1, "one request, one answer: {used:?}");
        assert_eq!(used[0].0, sent.head);
        (self.driver.byte(sent.status), used[0].1)
    }
}

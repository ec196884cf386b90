//! What the guest sees of the disk. Knows [`Store`], never files or sockets.
//!
//! - [`blk`]: the virtio-blk device.
//! - [`scsi`]: the virtio-scsi device.
//! - [`limits`]: block sizes and atomic-write limits, checked once, before anything is offered.
//! - [`size`]: sizes as users write them.
//! - [`chain`], [`spans`], [`ledger`], `queue`: what devices have in common.
//!
//! A transport knows a [`Device`] and its [`DeviceQueue`]s, and no more.

pub mod blk;
pub mod chain;
pub mod ledger;
pub mod limits;
mod queue;
pub mod scsi;
pub mod size;
pub mod spans;

use crate::store::Store;
use ledger::Ledger;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tornblk_model::event::ResetCause;
use virtio_queue::Queue;

/// The guest's memory, as the front-end shares it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// Entries that any ring may have. A front-end may make them longer than the device asked for.
pub const RING_SIZE_MAX: u16 = 1024;

/// What a disk is to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrontEnd {
    /// virtio-blk.
    #[default]
    Blk,
    /// virtio-scsi, with one logical unit.
    Scsi,
}

/// A device, apart from its queues: what a transport has to know of it.
pub trait Device: Send + Sync {
    fn store(&self) -> &Arc<dyn Store>;

    /// All of them; at most 64.
    fn queues(&self) -> u16;

    /// Entries that a queue may have.
    fn queue_size(&self) -> u16;

    /// Feature bits to offer.
    fn features(&self) -> u64;

    /// The driver accepted these features. May come again with the same ones.
    fn negotiated(&self, accepted: u64);

    /// Does the transport show the configuration space to the driver? Otherwise the front-end has
    /// one of its own.
    fn shows_config(&self) -> bool;

    /// The bytes `offset..offset + size` of the configuration space; 0 beyond its end.
    fn config(&self, offset: u32, size: u32) -> Vec<u8>;

    /// The driver wrote to the configuration space. What it may not write is ignored.
    fn set_config(&self, offset: u32, bytes: &[u8]);

    /// The store's disk may have another capacity: takes it over.
    fn resized(&self);

    /// Is there a write cache now, as the driver wants it?
    fn writeback(&self) -> bool;

    /// What [`Device::writeback`] was before the device was started again. Before anything else.
    fn restore_writeback(&self, on: bool);

    /// The device's side of queue `n`, from its start to its stop.
    fn queue(self: Arc<Self>, n: u16) -> Box<dyn DeviceQueue>;

    /// Does queue `n` reach what is on all the others? They are then made, as if they had been
    /// kicked, before anything is taken from it.
    fn reaches_all(&self, _n: u16) -> bool {
        false
    }

    /// What was in flight has ended without an answer: after the queues are gone.
    fn reset(&self, cause: ResetCause, queue: Option<u16>);
}

/// What came of [`DeviceQueue::poll`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Polled {
    /// The guest wants to be told.
    pub tell: bool,
    /// Something was taken or returned.
    pub moved: bool,
}

/// A queue at work. Belongs to one thread at a time.
pub trait DeviceQueue: Send {
    /// Takes again what `ledger` says was left by a device before this one, and notes in it from now
    /// on. Before anything else. How many there were.
    fn resume(&mut self, ledger: Box<dyn Ledger>, ring: &mut Queue, mem: &Arc<Memory>) -> usize;

    /// Takes all there is (nothing, unless `take`), and returns what is done. Says whether the
    /// guest wants to be told.
    #[must_use]
    fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool;

    /// As [`DeviceQueue::pump`] of a part of what there is, by who will look again at once: the driver is
    /// not asked to kick. Before it is not looked any more, `pump` has to.
    fn poll(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> Polled;

    /// Ends everything that is in flight, and returns it. Says whether the guest wants to be told.
    #[must_use]
    fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool;

    /// The front-end is gone, and its used ring must not be touched any more: ends everything that is
    /// in flight, and notes its answers. Nothing, where there is no ledger.
    fn abandon(&mut self);

    /// Readable when [`DeviceQueue::pump`] has something to do without a kick; cleared by reading
    /// 8 bytes. The same for the life of the queue.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests taken from the guest and not returned to it.
    fn in_flight(&self) -> usize;
}

/// The bytes `offset..offset + size` of a configuration space; 0 beyond its end.
fn window(space: &[u8], offset: u32, size: u32) -> Vec<u8> {
    let mut window = vec![0; size as usize];
    if let Some(from) = space.get(offset as usize..) {
        let n = from.len().min(window.len());
        window[..n].copy_from_slice(&from[..n]);
    }
    window
}

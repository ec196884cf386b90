//! What the guest sees of the disk. Knows [`Store`](crate::store::Store), never files or sockets.
//!
//! - [`blk`]: the virtio-blk device.
//! - [`limits`]: block sizes and atomic-write limits, checked once, before anything is offered.
//! - [`size`]: sizes as users write them.

pub mod blk;
pub mod limits;
pub mod size;

/// The guest's memory, as the front-end shares it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

//! The virtio-blk device (VIRTIO 1.2, 5.2).
//!
//! A request goes through these forms, each made from the one before, so that none can be
//! answered twice or forgotten:
//!
//! | form | what it is | where |
//! | --- | --- | --- |
//! | head | an index from the available ring | `queue` |
//! | [`Chain`](super::chain::Chain) | well-formed descriptors inside the guest's memory | [`chain`](super::chain) |
//! | `Parsed` | a request that makes sense on this disk | `request` |
//! | [`Request`](crate::store::Request) | the store's; `Submitted` stays behind with the status address | `queue` |
//! | [`Done`](crate::store::Done) | what the store made of it | `queue` |
//! | `Answer` | a head and a length for the used ring | `queue` |
//!
//! A chain that is malformed skips to its answer: IOERR, or UNSUPP for what was not offered, where
//! it has a status byte; returned without one where it has none. Nothing that a guest sends makes
//! the device panic, or touch a byte outside the buffers that the chain names.

mod config;
mod features;
mod queue;
mod request;

pub use config::{ATOMIC_CONFIG_BYTES, CONFIG_BYTES};
pub use features::VIRTIO_BLK_F_ATOMIC;
pub use queue::{BlkQueue, BlkRequests};

use super::limits::Limits;
use super::{Device, DeviceQueue, RING_SIZE_MAX};
use crate::complaints;
use crate::store::Store;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tornblk_model::event::{Negotiation, ResetCause};
use tornblk_proto::DEVICE_ID_BYTES;

/// Sectors that a segment of a DISCARD or WRITE_ZEROES may cover: 64 MiB.
pub const DISCARD_MAX_SECTORS: u32 = 131_072;
/// Segments that a DISCARD or WRITE_ZEROES may have.
pub const DISCARD_MAX_SEGMENTS: u32 = 32;
/// Entries that a queue is offered with. The most is what `preadv` takes of pieces (IOV_MAX).
pub const QUEUE_SIZE: std::ops::RangeInclusive<u16> = 8..=RING_SIZE_MAX;
/// Queues that a device may have (a mask of 64 bits in vhost-user-backend).
pub const QUEUES: std::ops::RangeInclusive<u16> = 1..=64;

/// VIRTIO_BLK_F_SEG_MAX for queues of that size: all but the header and the status.
pub fn seg_max(queue_size: u16) -> u32 {
    u32::from(queue_size) - 2
}

/// What a device is made of.
pub struct BlkOptions {
    pub store: Arc<dyn Store>,
    /// Made for [`seg_max`] of `queue_size`.
    pub limits: Limits,
    /// In [`QUEUES`].
    pub queues: u16,
    /// A power of two in [`QUEUE_SIZE`].
    pub queue_size: u16,
    /// `writeback` at the start.
    pub writeback: bool,
    /// What GET_ID answers, asked each time.
    pub id: Box<dyn Fn() -> [u8; DEVICE_ID_BYTES] + Send + Sync>,
}

/// The device, apart from its queues.
pub struct Blk {
    store: Arc<dyn Store>,
    /// Bytes.
    capacity: AtomicU64,
    read_only: bool,
    limits: Limits,
    queues: u16,
    queue_size: u16,
    id: Box<dyn Fn() -> [u8; DEVICE_ID_BYTES] + Send + Sync>,
    /// Kept over resets and new connections, as a real disk keeps it (VIRTIO leaves that open): a
    /// front-end that reconnects still shows its guest the value from before.
    writeback: AtomicBool,
    negotiated: Mutex<Option<Negotiation>>,
}

impl Blk {
    pub fn new(options: BlkOptions) -> Arc<Blk> {
        let BlkOptions { store, limits, queues, queue_size, writeback, id } = options;
        if let Some(unsaid) = limits.beyond_config_byte() {
            log::info!("{unsaid}");
        }
        Arc::new(Blk {
            capacity: AtomicU64::new(store.disk().capacity),
            read_only: store.read_only(),
            store,
            limits,
            queues,
            queue_size,
            id,
            writeback: AtomicBool::new(writeback),
            negotiated: Mutex::new(None),
        })
    }

    /// Bytes that the driver knows of.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn seg_max(&self) -> u32 {
        seg_max(self.queue_size)
    }

    /// What GET_ID answers now.
    pub fn id(&self) -> [u8; DEVICE_ID_BYTES] {
        (self.id)()
    }

    fn last_negotiation(&self) -> std::sync::MutexGuard<'_, Option<Negotiation>> {
        // An option is whole whatever happened to the thread that held the lock.
        self.negotiated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Blk {
    fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn features(&self) -> u64 {
        features::offered(self.read_only, self.queues, self.limits.atomic())
    }

    fn negotiated(&self, accepted: u64) {
        let what = features::negotiation(accepted, self.writeback.load(Ordering::Acquire));
        self.writeback.store(what.writeback, Ordering::Release);
        let before = self.last_negotiation().replace(what);
        // Front-ends repeat themselves when they stop and start the device.
        if before != Some(what) {
            complaints::guest_did(format_args!(
                "negotiated: FLUSH {}, CONFIG_WCE {}, writeback {}, limits of atomic writes {}",
                yes(what.flush),
                yes(what.config_wce),
                u8::from(what.writeback),
                yes(features::knows_atomic(accepted)),
            ));
            self.store.negotiated(what);
        }
    }

    fn shows_config(&self) -> bool {
        true
    }

    fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = config::space(&config::Told {
            capacity: self.capacity(),
            limits: &self.limits,
            seg_max: self.seg_max(),
            queues: self.queues,
            writeback: self.writeback.load(Ordering::Acquire),
        });
        super::window(&space, offset, size)
    }

    /// Only `writeback` may be written.
    fn set_config(&self, offset: u32, bytes: &[u8]) {
        match config::written_writeback(offset, bytes) {
            Ok(Some(on)) => {
                if self.writeback.swap(on, Ordering::AcqRel) != on {
                    complaints::guest_did(format_args!(
                        "the driver set writeback to {}",
                        u8::from(on)
                    ));
                    self.store.set_writeback(on);
                }
            }
            Ok(None) => complaints::guest(format_args!(
                "the driver wrote {} bytes at {offset} of the configuration space, where nothing \
                 can be written: ignored",
                bytes.len()
            )),
            Err(value) => {
                complaints::guest(format_args!("the driver set writeback to {value}: ignored"))
            }
        }
    }

    fn resized(&self) {
        self.capacity.store(self.store.disk().capacity, Ordering::Release);
    }

    fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    /// The store hears of it when the driver is there.
    fn restore_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Release);
    }

    fn queue(self: Arc<Self>, n: u16) -> Box<dyn DeviceQueue> {
        Box::new(BlkQueue::new(n, BlkRequests::new(self, n)))
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        if cause != ResetCause::QueueStop {
            *self.last_negotiation() = None;
        }
        self.store.reset(cause, queue);
    }
}

fn yes(bit: bool) -> &'static str {
    if bit { "yes" } else { "no" }
}

impl fmt::Debug for Blk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blk")
            .field("capacity", &self.capacity)
            .field("read_only", &self.read_only)
            .field("limits", &self.limits)
            .field("queues", &self.queues)
            .field("queue_size", &self.queue_size)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BlkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkOptions")
            .field("limits", &self.limits)
            .field("queues", &self.queues)
            .field("queue_size", &self.queue_size)
            .finish_non_exhaustive()
    }
}

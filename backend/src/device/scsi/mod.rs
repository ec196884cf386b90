//! The virtio-scsi device (VIRTIO 1.2, 5.6): one target with one logical unit or several, direct access
//! block devices (SBC-4, SPC-5, SAM-5).
//!
//! It is thin: a command becomes a request of the [`Store`], as those of virtio-blk do, and all that
//! happens to them happens there. What SCSI has that virtio-blk lacks reaches the store with them:
//! `fua`, and `atomic` (WRITE ATOMIC(16)). Limits of atomic writes are in the Block Limits VPD page,
//! where a stock driver finds them.
//!
//! A command goes through these forms, each made from the one before, so that none can be answered
//! twice or forgotten:
//!
//! | form | what it is | where |
//! | --- | --- | --- |
//! | head | an index from the available ring | [`queue`](super::queue) |
//! | [`Chain`](super::chain::Chain) | well-formed descriptors inside the guest's memory | [`chain`](super::chain) |
//! | `Opened` | a command, the place of its response, its data buffers | `queue` |
//! | `Work` | a command that makes sense on this disk | `command`, `block`, `inquiry`, `mode` |
//! | [`Request`](crate::store::Request) | the store's; `Submitted` stays behind | `queue` |
//! | [`Done`](crate::store::Done) | what the store made of it | `queue` |
//! | `Answer` | a head and a length for the used ring | `queue` |
//!
//! What is refused skips to its answer:
//!
//! | what | answer |
//! | --- | --- |
//! | no room for a response (108 bytes) | returned with a length of 0 |
//! | a malformed chain, a short header, data in both directions | VIRTIO_SCSI_S_FAILURE |
//! | a target but 0 | VIRTIO_SCSI_S_BAD_TARGET |
//! | a LUN that is not there | CHECK CONDITION, LOGICAL UNIT NOT SUPPORTED; INQUIRY, REPORT LUNS and REQUEST SENSE answer |
//! | less buffer than the CDB is about | VIRTIO_SCSI_S_OVERRUN, and nothing is moved |
//! | anything in the CDB or a parameter list | CHECK CONDITION with the sense that SPC and SBC name, with a field pointer |
//! | the store failed | CHECK CONDITION, MEDIUM ERROR: 11h/00h for a read, 0Ch/00h otherwise |
//!
//! Queue 0 is the control queue, queue 1 the event queue, whose buffers stay in its available ring:
//! there is never an event. Those after are request queues, and have their number in a recording.
//!
//! A front-end that has a configuration space of its own (QEMU's vhost-user-scsi) decides what the
//! driver sees of it; [`FRONT_END_SEG_MAX`] is what that leaves.

mod block;
mod command;
mod control;
mod inquiry;
mod mode;
mod opcodes;
mod queue;
mod sense;
mod tasks;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod unit;
mod wire;

pub use block::{
    ATOMIC_MAX_BLOCKS, ATOMIC_MAX_PIECES, PATTERN_MAX_BYTES, TRANSFER_MAX_BYTES, UNMAP_MAX_BYTES,
    UNMAP_MAX_DESCRIPTORS, WRITE_SAME_MAX_BYTES,
};
pub use control::{ControlQueue, ControlRequests};
pub use queue::{ScsiQueue, ScsiRequests};
pub use unit::{Lun, UNIT_BYTES, UNITS_MAX};

use super::ledger::Ledger;
use super::limits::Limits;
use super::queue::Worker;
use super::{Device, DeviceQueue, FrontEnd, Memory, Polled};
use crate::complaints;
use crate::store::Store;
use sense::Sense;
use std::fmt;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tasks::Tasks;
use tornblk_model::event::{Disk, Negotiation, ResetCause};
use tornblk_proto::DEVICE_ID_BYTES;
use unit::Unit;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_scsi::{
    VIRTIO_SCSI_F_CHANGE, VIRTIO_SCSI_F_HOTPLUG, virtio_scsi_config, virtio_scsi_event,
};
use virtio_queue::Queue;

/// Queues before the request queues: control and event.
pub const FIXED_QUEUES: u16 = 2;
/// Request queues that a device may have: 64 queues are all that the transport has.
pub const REQUEST_QUEUES: std::ops::RangeInclusive<u16> = 1..=64 - FIXED_QUEUES;
/// `seg_max` that QEMU's vhost-user-scsi shows to the driver, whatever the device says: its queues
/// have 128 entries, and two are for the header and the response.
pub const FRONT_END_SEG_MAX: u32 = 126;

const CONTROL: u16 = 0;
const EVENT: u16 = 1;

/// What a device is made of.
pub struct ScsiOptions {
    pub store: Arc<dyn Store>,
    /// Empty: one logical unit, which is the whole disk.
    pub luns: Vec<Lun>,
    /// Made for virtio-scsi.
    pub limits: Limits,
    /// In [`REQUEST_QUEUES`].
    pub request_queues: u16,
    /// A power of two in [`QUEUE_SIZE`](super::blk::QUEUE_SIZE).
    pub queue_size: u16,
    /// WCE at the start.
    pub writeback: bool,
    /// The serial number, asked each time: up to 20 bytes, zeroes after its end.
    pub id: Box<dyn Fn() -> [u8; DEVICE_ID_BYTES] + Send + Sync>,
}

/// The device, apart from its queues.
pub struct Scsi {
    store: Arc<dyn Store>,
    units: Vec<Unit>,
    /// Bytes.
    capacity: AtomicU64,
    lb_size: u32,
    read_only: bool,
    limits: Limits,
    request_queues: u16,
    queue_size: u16,
    id: Box<dyn Fn() -> [u8; DEVICE_ID_BYTES] + Send + Sync>,
    default_wce: bool,
    /// The write cache is on (caching mode page). Kept over resets and new connections, not over a
    /// power cut.
    wce: AtomicBool,
    /// Locked by who switches it.
    switching: Mutex<()>,
    negotiated: Mutex<bool>,
    tasks: Tasks,
}

impl Scsi {
    /// # Panics
    /// The limits were made for another front-end: nobody has checked that SCSI can say them. Or the
    /// logical units are not the whole disk.
    pub fn new(options: ScsiOptions) -> Arc<Scsi> {
        let ScsiOptions { store, luns, limits, request_queues, queue_size, writeback, id } =
            options;
        assert_eq!(limits.front_end, FrontEnd::Scsi, "limits of a SCSI disk");
        assert_eq!(Lun::check(&luns, store.disk().capacity), Ok(()), "units of this disk");
        Arc::new(Scsi {
            capacity: AtomicU64::new(store.disk().capacity),
            lb_size: store.disk().lb_size,
            units: Unit::all(luns),
            read_only: store.read_only(),
            store,
            limits,
            request_queues,
            queue_size,
            id,
            default_wce: writeback,
            wce: AtomicBool::new(writeback),
            switching: Mutex::default(),
            negotiated: Mutex::new(false),
            tasks: Tasks::default(),
        })
    }

    /// All of it, whatever logical units it is divided into.
    pub fn disk(&self) -> Disk {
        Disk { capacity: self.capacity.load(Ordering::Acquire), lb_size: self.lb_size }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Segments that a command may have in its data buffers.
    pub fn seg_max(&self) -> u32 {
        super::blk::seg_max(self.queue_size)
    }

    /// Is the volatile write cache on?
    pub fn wce(&self) -> bool {
        self.wce.load(Ordering::Acquire)
    }

    /// The device's side of request queue `n` (from 2 on), from its start to its stop.
    pub fn request_queue(self: &Arc<Self>, n: u16) -> ScsiQueue {
        Worker::new(n, ScsiRequests::new(self.clone(), n))
    }

    /// The device's side of the control queue.
    pub fn control_queue(self: &Arc<Self>) -> ControlQueue {
        Worker::new(CONTROL, ControlRequests::new(self.clone(), CONTROL))
    }

    fn default_wce(&self) -> bool {
        self.default_wce
    }

    /// Says whether that is news.
    fn set_wce(&self, on: bool) -> bool {
        let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let news = self.wce() != on;
        if news {
            complaints::guest_did(format_args!("WCE is {} from now on", u8::from(on)));
            // Nobody reads that it is so before the store knows.
            self.store.set_writeback(on);
            self.wce.store(on, Ordering::Release);
        }
        news
    }

    fn id(&self) -> [u8; DEVICE_ID_BYTES] {
        (self.id)()
    }

    /// Bytes of a logical block.
    fn block(&self) -> u64 {
        self.lb_size.into()
    }

    fn blocks_a_physical(&self) -> u32 {
        self.limits.physical_block_size / self.limits.logical_block_size
    }

    /// From now on the next command to a logical unit, or to each, is told this.
    fn attend(&self, unit: Option<usize>, attention: Sense) {
        let units = self.units.iter().enumerate();
        let meant = units.filter(|(n, _)| unit.is_none_or(|unit| unit == *n));
        meant.for_each(|(_, unit)| unit.attend(attention));
    }
}

impl Device for Scsi {
    fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn queues(&self) -> u16 {
        FIXED_QUEUES + self.request_queues
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// QEMU's front-end answers with HOTPLUG and CHANGE by itself, and takes it for an error where
    /// they were not offered. There is never such an event.
    fn features(&self) -> u64 {
        [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_SCSI_F_HOTPLUG,
            VIRTIO_SCSI_F_CHANGE,
        ]
        .iter()
        .fold(0, |bits, bit| bits | 1u64 << bit)
    }

    /// SCSI negotiates nothing about caching: flushing is always there, and WCE can be switched.
    /// That is what virtio-blk has with FLUSH and CONFIG_WCE, and is recorded as such.
    fn negotiated(&self, _accepted: u64) {
        let mut negotiated = self.negotiated.lock().unwrap_or_else(PoisonError::into_inner);
        // Front-ends repeat themselves when they stop and start the device.
        if !std::mem::replace(&mut *negotiated, true) {
            let writeback = self.wce();
            complaints::guest_did(format_args!(
                "a SCSI driver is there: WCE {}",
                u8::from(writeback)
            ));
            let (flush_offered, flush, config_wce) = (true, true, true);
            self.store.negotiated(Negotiation { flush_offered, flush, config_wce, writeback });
        }
    }

    /// QEMU has its own, and warns where the device has one, too.
    fn shows_config(&self) -> bool {
        false
    }

    /// VIRTIO 1.2, 5.6.4: one channel, one target.
    fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = [0; size_of::<virtio_scsi_config>()];
        macro_rules! put {
            ($field:ident, $value:expr) => {{
                let bytes = u32::to_le_bytes($value);
                let at = offset_of!(virtio_scsi_config, $field);
                space[at..at + bytes.len()].copy_from_slice(&bytes);
            }};
        }
        put!(num_queues, self.request_queues.into());
        put!(seg_max, self.seg_max());
        // In units of 512 bytes.
        put!(max_sectors, (TRANSFER_MAX_BYTES / 512) as u32);
        put!(cmd_per_lun, self.queue_size.into());
        put!(event_info_size, size_of::<virtio_scsi_event>() as u32);
        put!(sense_size, wire::SENSE_ROOM as u32);
        put!(cdb_size, wire::CDB_BYTES as u32);
        put!(max_lun, self.units.len() as u32 - 1);
        super::window(&space, offset, size)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) {
        complaints::guest(format_args!(
            "the driver wrote {} bytes at {offset} of the configuration space: sense_size and \
             cdb_size stay as they are",
            bytes.len()
        ));
    }

    fn resized(&self) {
        let now = self.store.disk().capacity;
        if self.capacity.swap(now, Ordering::AcqRel) != now {
            self.attend(None, Sense::CAPACITY_CHANGED);
        }
    }

    fn writeback(&self) -> bool {
        self.wce()
    }

    /// The store hears of it when the driver is there.
    fn restore_writeback(&self, on: bool) {
        self.wce.store(on, Ordering::Release);
    }

    fn queue(self: Arc<Self>, n: u16) -> Box<dyn DeviceQueue> {
        match n {
            CONTROL => Box::new(self.control_queue()),
            EVENT => Box::new(EventQueue),
            n => Box::new(self.request_queue(n)),
        }
    }

    fn reaches_all(&self, n: u16) -> bool {
        n == CONTROL
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        if cause != ResetCause::QueueStop {
            // Whoever comes next is another initiator: it did nothing that it had to be told of.
            self.units.iter().for_each(Unit::forget);
            if self.store.is_off() {
                // Not saved (SPC-5, 6.13). The next negotiation tells the store.
                self.wce.store(self.default_wce, Ordering::Release);
            }
            *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner) = false;
        }
        self.store.reset(cause, queue);
    }
}

/// Buffers for events stay where they are.
#[derive(Debug)]
struct EventQueue;

impl DeviceQueue for EventQueue {
    /// It takes nothing, so nothing is left of it.
    fn resume(&mut self, _: Box<dyn Ledger>, _: &mut Queue, _: &Arc<Memory>) -> usize {
        0
    }

    fn pump(&mut self, _ring: &mut Queue, _mem: &Arc<Memory>, _take: bool) -> bool {
        false
    }

    fn poll(&mut self, _ring: &mut Queue, _mem: &Arc<Memory>) -> Polled {
        Polled::default()
    }

    fn drain(&mut self, _ring: &mut Queue, _mem: &Arc<Memory>) -> bool {
        false
    }

    fn abandon(&mut self) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        0
    }
}

impl fmt::Debug for Scsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scsi")
            .field("disk", &self.disk())
            .field("units", &self.units)
            .field("read_only", &self.read_only)
            .field("limits", &self.limits)
            .field("request_queues", &self.request_queues)
            .field("queue_size", &self.queue_size)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ScsiOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScsiOptions")
            .field("luns", &self.luns)
            .field("limits", &self.limits)
            .field("request_queues", &self.request_queues)
            .field("queue_size", &self.queue_size)
            .finish_non_exhaustive()
    }
}

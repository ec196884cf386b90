//! Which feature bits are offered, and what was agreed on.

use tornblk_model::event::Negotiation;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The limits of atomic writes follow `struct virtio_blk_config`: `VIRTIO-ATOMIC.md`. A bit of our
/// own: 0 to 23 and 50 to 127 are a device type's (VIRTIO 1.2, 2.2), and those of virtio-blk end at
/// 17 there.
pub const VIRTIO_BLK_F_ATOMIC: u32 = 56;

const ALWAYS: [u32; 10] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    // Never SIZE_MAX: it would make the driver split atomic writes.
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
];

/// Device and ring features (VIRTIO 1.2, 5.2.3 and 6), as a bit mask.
pub(super) fn offered(read_only: bool, queues: u16, atomic: bool) -> u64 {
    let mut bits = ALWAYS.iter().fold(0, |bits, bit| bits | 1u64 << bit);
    if read_only {
        bits |= 1 << VIRTIO_BLK_F_RO;
    }
    if queues > 1 {
        bits |= 1 << VIRTIO_BLK_F_MQ;
    }
    if atomic {
        bits |= 1 << VIRTIO_BLK_F_ATOMIC;
    }
    bits
}

/// Will the driver know the limits of atomic writes by their fields?
pub(super) fn knows_atomic(accepted: u64) -> bool {
    accepted & (1 << VIRTIO_BLK_F_ATOMIC) != 0
}

/// What `accepted` says about caching. `writeback` is the device's state before.
pub(super) fn negotiation(accepted: u64, writeback: bool) -> Negotiation {
    let flush = accepted & (1 << VIRTIO_BLK_F_FLUSH) != 0;
    let config_wce = accepted & (1 << VIRTIO_BLK_F_CONFIG_WCE) != 0;
    Negotiation {
        flush_offered: true,
        flush,
        config_wce,
        // VIRTIO 1.2, 5.2.5.2: CONFIG_WCE without FLUSH begins with writeback 0.
        writeback: writeback && (flush || !config_wce),
    }
}

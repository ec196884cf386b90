//! The configuration space, little-endian: `struct virtio_blk_config` (VIRTIO 1.2, 5.2.4), and
//! behind it, where [`VIRTIO_BLK_F_ATOMIC`](super::VIRTIO_BLK_F_ATOMIC) is offered, the limits of
//! atomic writes: see `VIRTIO-ATOMIC.md`.

use super::{DISCARD_MAX_SECTORS, DISCARD_MAX_SEGMENTS};
use crate::device::limits::Limits;
use std::mem::offset_of;
use tornblk_model::event::SECTOR;
use virtio_bindings::virtio_blk::virtio_blk_config;

/// Bytes of the configuration space, as VIRTIO has it.
pub const CONFIG_BYTES: usize = size_of::<virtio_blk_config>();
/// Bytes of the configuration space with the limits of atomic writes.
pub const ATOMIC_CONFIG_BYTES: usize = CONFIG_BYTES + size_of::<AtomicLimits>();

/// What follows `struct virtio_blk_config`; in bytes.
#[repr(C)]
#[allow(dead_code, reason = "only its layout is used")]
struct AtomicLimits {
    atomic_write_unit_min: u32,
    atomic_write_unit_max: u32,
    atomic_write_max_bytes: u32,
    /// 0: none.
    atomic_write_boundary: u32,
}

/// What the configuration space tells.
#[derive(Clone, Debug)]
pub(super) struct Told<'a> {
    /// In bytes.
    pub(super) capacity: u64,
    pub(super) limits: &'a Limits,
    pub(super) seg_max: u32,
    pub(super) queues: u16,
    pub(super) writeback: bool,
}

pub(super) fn space(told: &Told<'_>) -> [u8; ATOMIC_CONFIG_BYTES] {
    let mut space = [0; ATOMIC_CONFIG_BYTES];
    macro_rules! put_at {
        ($at:expr, $value:expr) => {{
            let (at, bytes) = ($at, $value.to_le_bytes());
            space[at..at + bytes.len()].copy_from_slice(&bytes);
        }};
    }
    macro_rules! put {
        ($field:ident, $value:expr) => {
            put_at!(offset_of!(virtio_blk_config, $field), $value)
        };
    }
    macro_rules! put_limit {
        ($field:ident, $value:expr) => {
            // No limit is above `limits::LIMIT_MAX`.
            put_at!(CONFIG_BYTES + offset_of!(AtomicLimits, $field), ($value as u32))
        };
    }
    let limits = told.limits;
    let sectors_a_block = limits.logical_block_size / SECTOR as u32;
    let blocks_a_physical = limits.physical_block_size / limits.logical_block_size;
    put!(capacity, (told.capacity / SECTOR));
    put!(seg_max, told.seg_max);
    put!(blk_size, limits.logical_block_size);
    put!(physical_block_exp, (blocks_a_physical.ilog2() as u8));
    // In logical blocks; at most 2,048 (see `limits::PHYSICAL_BLOCK_MAX`).
    put!(min_io_size, (blocks_a_physical as u16));
    put!(wce, u8::from(told.writeback));
    // A deliberate deviation: see `Limits::config_byte`.
    put!(unused, limits.config_byte());
    put!(num_queues, told.queues);
    put!(max_discard_sectors, DISCARD_MAX_SECTORS);
    put!(max_discard_seg, DISCARD_MAX_SEGMENTS);
    put!(discard_sector_alignment, sectors_a_block);
    put!(max_write_zeroes_sectors, DISCARD_MAX_SECTORS);
    put!(max_write_zeroes_seg, DISCARD_MAX_SEGMENTS);
    put!(write_zeroes_may_unmap, 1u8);
    if limits.atomic() {
        put_limit!(atomic_write_unit_min, limits.profile.unit_min);
        put_limit!(atomic_write_unit_max, limits.profile.unit_max);
        put_limit!(atomic_write_max_bytes, limits.profile.max_bytes);
        put_limit!(atomic_write_boundary, limits.profile.boundary);
    }
    space
}

/// What a driver's write of `bytes` at `offset` says about `writeback`, the one field that it may
/// write: `Ok(None)` where it does not touch it, `Err` where it is neither 0 nor 1.
pub(super) fn written_writeback(offset: u32, bytes: &[u8]) -> Result<Option<bool>, u8> {
    let at = offset_of!(virtio_blk_config, wce).checked_sub(offset as usize);
    match at.and_then(|at| bytes.get(at)) {
        None => Ok(None),
        Some(0) => Ok(Some(false)),
        Some(1) => Ok(Some(true)),
        Some(&other) => Err(other),
    }
}

//! The configuration space: `struct virtio_blk_config` (VIRTIO 1.2, 5.2.4), little-endian.

use super::{DISCARD_MAX_SECTORS, DISCARD_MAX_SEGMENTS};
use crate::device::limits::Limits;
use std::mem::offset_of;
use tornblk_model::event::SECTOR;
use virtio_bindings::virtio_blk::virtio_blk_config;

/// Bytes of the configuration space.
pub const CONFIG_BYTES: usize = size_of::<virtio_blk_config>();

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

pub(super) fn space(told: &Told<'_>) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    macro_rules! put {
        ($field:ident, $value:expr) => {{
            let bytes = $value.to_le_bytes();
            let at = offset_of!(virtio_blk_config, $field);
            space[at..at + bytes.len()].copy_from_slice(&bytes);
        }};
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

//! What the tests share: a store in memory, and a driver that lays out rings by hand.

#![allow(dead_code)]

pub(crate) mod anybody;
pub(crate) mod driver;
pub(crate) mod random;
pub(crate) mod scsi;
pub(crate) mod store;
pub(crate) mod touched;

use std::sync::Arc;
use store::{MemStore, Shared};
use tornblk_backend::device::FrontEnd;
use tornblk_backend::device::blk::{Blk, BlkOptions, seg_max};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{FRONT_END_SEG_MAX, Lun, Scsi, ScsiOptions};

pub(crate) const ID: [u8; 20] = *b"serial-of-20-letters";

/// A device over `store`, with everything else as it comes.
pub(crate) fn device(store: &Arc<MemStore>) -> Arc<Blk> {
    device_with(store, 2, LimitOptions::default())
}

pub(crate) fn device_with(store: &Arc<MemStore>, queues: u16, limits: LimitOptions) -> Arc<Blk> {
    let limits = LimitOptions { seg_max: seg_max(256), ..limits };
    Blk::new(BlkOptions {
        store: Arc::new(Shared(store.clone())),
        limits: Limits::new(&limits).unwrap(),
        queues,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| ID),
    })
}

/// A SCSI disk over `store`.
pub(crate) fn scsi_with(
    store: &Arc<MemStore>,
    request_queues: u16,
    limits: LimitOptions,
) -> Arc<Scsi> {
    scsi_of(store, request_queues, limits, Vec::new())
}

/// Several, of these names and sizes.
pub(crate) fn scsi_of(
    store: &Arc<MemStore>,
    request_queues: u16,
    limits: LimitOptions,
    luns: Vec<Lun>,
) -> Arc<Scsi> {
    let (front_end, seg_max) = (FrontEnd::Scsi, FRONT_END_SEG_MAX);
    let limits = LimitOptions { seg_max, front_end, ..limits };
    Scsi::new(ScsiOptions {
        store: Arc::new(Shared(store.clone())),
        luns,
        limits: Limits::new(&limits).unwrap(),
        request_queues,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| ID),
    })
}

//! The SCSI disk on real rings in a guest's memory, without a guest.

#![allow(clippy::unwrap_used)]

mod atomic;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod inquiry;
mod mode;
mod random;
mod recorded;
mod refused;
mod units;

use common::driver::Driver;
use common::scsi::{DISK, Reply, SentCommand};
use common::store::MemStore;
use std::sync::Arc;
use tornblk_backend::device::Memory;
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::device::scsi::{Scsi, ScsiQueue};
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Two regions that touch each other, so that a buffer can lie in both.
pub(crate) const SEAM: u64 = 0x8_0000;
pub(crate) const END: u64 = 0x10_0000;
pub(crate) const SECTORS: u64 = 2048;

/// Number of the first request queue.
pub(crate) const FIRST: u16 = 2;

pub(crate) fn memory() -> Arc<Memory> {
    let regions = [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (END - SEAM) as usize)];
    Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap())
}

/// A device with one request queue, a driver, and what is between them.
pub(crate) struct Bench {
    pub(crate) store: Arc<MemStore>,
    pub(crate) device: Arc<Scsi>,
    pub(crate) driver: Driver,
    pub(crate) queue: ScsiQueue,
    pub(crate) ring: Queue,
}

impl Bench {
    pub(crate) fn new(store: Arc<MemStore>, limits: LimitOptions) -> Bench {
        let device = common::scsi_with(&store, 2, limits);
        Bench::with(store, device, memory(), 0x1000, FIRST, false)
    }

    pub(crate) fn with(
        store: Arc<MemStore>,
        device: Arc<Scsi>,
        mem: Arc<Memory>,
        base: u64,
        index: u16,
        event_idx: bool,
    ) -> Bench {
        let driver = Driver::new(mem, base, 256, base + 0xf000);
        let queue = device.request_queue(index);
        let ring = driver.ring(event_idx);
        Bench { store, device, driver, queue, ring }
    }

    pub(crate) fn plain() -> Bench {
        Bench::new(MemStore::new(SECTORS), LimitOptions::default())
    }

    pub(crate) fn profile(name: &str) -> Bench {
        let profile = Some(name.parse().unwrap());
        Bench::new(MemStore::new(SECTORS), LimitOptions { profile, ..LimitOptions::default() })
    }

    /// The device works; says whether it wants to tell the driver.
    pub(crate) fn pump(&mut self) -> bool {
        let mem = self.driver.mem.clone();
        self.queue.pump(&mut self.ring, &mem, true)
    }

    /// The device works off one command.
    pub(crate) fn answer(&mut self, sent: &SentCommand) -> Reply {
        let _ = self.pump();
        let used = self.driver.take_used();
        assert_eq!(used.len(), 1, "one command, one answer: {used:?}");
        assert_eq!(used[0].0, sent.head);
        let reply = self.driver.reply(sent);
        let given = if reply.good() { sent.room - reply.residual.min(sent.room) } else { 0 };
        assert_eq!(used[0].1, common::scsi::RESPONSE + given);
        reply
    }

    pub(crate) fn ask_at(&mut self, lun: [u8; 8], cdb: &[u8], out: &[u8], room: u32) -> Reply {
        self.driver.recycle();
        let sent = self.driver.command(lun, 7, cdb, out, room);
        self.answer(&sent)
    }

    /// A command that gives `out`, or has `room` for an answer.
    pub(crate) fn ask(&mut self, cdb: &[u8], out: &[u8], room: u32) -> Reply {
        self.ask_at(DISK, cdb, out, room)
    }

    /// Parameter data of a command that succeeds, without what it left alone.
    pub(crate) fn told(&mut self, cdb: &[u8], room: u32) -> Vec<u8> {
        let reply = self.ask(cdb, &[], room);
        assert!(reply.good(), "{cdb:02x?}: {reply:?}");
        let data = reply.data[..(room - reply.residual) as usize].to_vec();
        let rest = &reply.data[data.len()..];
        assert!(rest.iter().all(|byte| *byte == common::scsi::CANARY), "beyond what was given");
        data
    }
}

/// A CDB of 10 bytes: operation code, flags, LBA, blocks.
pub(crate) fn cdb10(code: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// A CDB of 16 bytes.
pub(crate) fn cdb16(code: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// WRITE ATOMIC(16).
pub(crate) fn atomic(flags: u8, lba: u64, boundary: u16, blocks: u16) -> [u8; 16] {
    cdb16(0x9c, flags, lba, u32::from(boundary) << 16 | u32::from(blocks))
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub(crate) const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);
pub(crate) const INVALID_OPCODE: (u8, u8, u8) = (5, 0x20, 0);
pub(crate) const IN_CDB: (u8, u8, u8) = (5, 0x24, 0);
pub(crate) const IN_LIST: (u8, u8, u8) = (5, 0x26, 0);
pub(crate) const LIST_LENGTH: (u8, u8, u8) = (5, 0x1a, 0);
pub(crate) const PROTECTED: (u8, u8, u8) = (7, 0x27, 0);

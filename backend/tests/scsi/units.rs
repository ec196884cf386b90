//! Several logical units: each has its own addresses, flushes, name and unit attention, and none
//! reaches another.

use crate::common::driver::Driver;
use crate::common::scsi::DISK as MAIN;
use crate::common::scsi_of;
use crate::common::store::{MemStore, pattern};
use crate::{
    Bench, FIRST, IN_LIST, LimitOptions, OUT_OF_RANGE, SECTORS, atomic, cdb10, cdb16, memory,
};
use tornblk_backend::device::Device;
use tornblk_backend::device::scsi::{ControlQueue, Lun};
use tornblk_backend::store::Op;
use tornblk_model::event::Segment;
use virtio_bindings::virtio_scsi::*;
use virtio_queue::Queue;

const LOG: [u8; 8] = [1, 0, 0, 1, 0, 0, 0, 0];
/// Flat space addressing of the same.
const LOG_FLAT: [u8; 8] = [1, 0, 0x40, 1, 0, 0, 0, 0];
const NOBODY: [u8; 8] = [1, 0, 0x40, 2, 0, 0, 0, 0];
const MIB: u64 = 1 << 20;

fn luns() -> Vec<Lun> {
    [("main", MIB), ("log", 2 * MIB)].map(|(name, bytes)| Lun { name: name.into(), bytes }).into()
}

/// 1 MiB and 2 MiB.
fn two() -> Bench {
    with(LimitOptions::default())
}

fn with(limits: LimitOptions) -> Bench {
    let store = MemStore::new(3 * SECTORS);
    let device = scsi_of(&store, 2, limits, luns());
    Bench::with(store, device, memory(), 0x1000, FIRST, false)
}

#[test]
fn addresses_are_of_the_unit_and_end_with_it() {
    let mut b = two();
    let last = |b: &mut Bench, lun| b.ask_at(lun, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8).data;
    assert_eq!(last(&mut b, MAIN)[..4], 2047u32.to_be_bytes());
    assert_eq!(last(&mut b, LOG)[..4], 4095u32.to_be_bytes());
    let mut long = [0; 16];
    (long[0], long[1], long[13]) = (0x9e, 0x10, 12);
    assert_eq!(b.ask_at(LOG_FLAT, &long, &[], 12).data[..8], 4095u64.to_be_bytes());
    let described = b.ask_at(LOG, &[0x1a, 0, 8, 0, 255, 0], &[], 255).data;
    assert_eq!(described[4..8], 4096u32.to_be_bytes());
    b.store.take_ops();

    assert!(b.ask_at(LOG, &cdb10(0x2a, 0, 0, 1), &[9; 512], 0).good());
    assert_eq!(b.store.sector(SECTORS), [9; 512]);
    assert_eq!(b.store.sector(0), [pattern(0); 512]);
    assert_eq!(b.ask_at(LOG, &cdb10(0x28, 0, 5, 1), &[], 512).data, [pattern(SECTORS + 5); 512]);
    let write = Op::Write { offset: MIB, fua: false, atomic: false };
    assert_eq!(b.store.take_ops(), [write, Op::Read { offset: MIB + 5 * 512 }]);

    // The last block of each, and what reaches beyond it: LUN 0 ends where LUN 1 begins.
    for (lun, blocks) in [(MAIN, 2048), (LOG, 4096)] {
        assert!(b.ask_at(lun, &cdb10(0x2a, 0, blocks - 1, 1), &[3; 512], 0).good());
        for (lba, n) in [(blocks - 1, 2u16), (blocks, 1)] {
            let data = vec![4; usize::from(n) * 512];
            for cdb in [&cdb10(0x2a, 0, lba, n)[..], &cdb16(0x8a, 0, lba.into(), n.into())] {
                assert_eq!(b.ask_at(lun, cdb, &data, 0).code(), OUT_OF_RANGE, "{lun:?} {lba}");
            }
            assert_eq!(b.ask_at(lun, &cdb10(0x28, 0, lba, n), &[], 1024).code(), OUT_OF_RANGE);
            let same = cdb16(0x93, 0, lba.into(), n.into());
            assert_eq!(b.ask_at(lun, &same, &[0; 512], 0).code(), OUT_OF_RANGE);
            let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
            list.extend(u64::from(lba).to_be_bytes());
            list.extend([0, 0, 0, n as u8, 0, 0, 0, 0]);
            let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
            assert_eq!(b.ask_at(lun, &unmap, &list, 0).code(), OUT_OF_RANGE);
            assert_eq!(b.ask_at(lun, &cdb10(0x35, 0, lba, n), &[], 0).code(), OUT_OF_RANGE);
        }
    }
    assert_eq!(b.store.take_ops().len(), 2, "the last blocks, and nothing else");
    assert_eq!(b.store.sector(SECTORS), [9; 512], "the first block of LUN 1 is as it was");
}

#[test]
fn discards_zeroes_and_atomic_writes_go_where_the_unit_is() {
    let profile = Some("explicit16k".parse().unwrap());
    let mut b = with(LimitOptions { profile, ..LimitOptions::default() });
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(7u64.to_be_bytes());
    list.extend([0, 0, 0, 2, 0, 0, 0, 0]);
    assert!(b.ask_at(LOG, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0).good());
    assert!(b.ask_at(LOG, &cdb16(0x93, 1, 8, 4), &[], 0).good());
    assert!(b.ask_at(LOG, &atomic(0, 32, 0, 32), &[1; 16384], 0).good());
    let one = |lba: u64, blocks: u64| {
        vec![Segment { offset: MIB + lba * 512, len: blocks * 512, unmap: false }]
    };
    assert_eq!(
        b.store.take_ops(),
        [
            Op::Discard { segments: one(7, 2) },
            Op::WriteZeroes { segments: one(8, 4) },
            Op::Write { offset: MIB + 32 * 512, fua: false, atomic: true },
        ]
    );
}

#[test]
fn a_flush_is_of_its_unit() {
    let mut b = two();
    for (lun, offset, len) in [(MAIN, 0, MIB), (LOG, MIB, 2 * MIB), (LOG_FLAT, MIB, 2 * MIB)] {
        for cdb in [
            cdb10(0x35, 0, 0, 0).to_vec(),
            // Of a few blocks, it is still of the whole unit.
            cdb10(0x35, 0, 9, 1).to_vec(),
            cdb16(0x91, 2, 0, 0).to_vec(),
            vec![0x1b, 0, 0, 0, 0, 0],
        ] {
            assert!(b.ask_at(lun, &cdb, &[], 0).good());
            assert_eq!(b.store.take_ops(), [Op::Flush { offset, len }], "{lun:?} {cdb:02x?}");
        }
    }
}

#[test]
fn units_are_reported_and_have_names() {
    let mut b = two();
    let mut report = [0; 12];
    (report[0], report[9]) = (0xa0, 64);
    for lun in [MAIN, LOG, NOBODY] {
        let reply = b.ask_at(lun, &report, &[], 64);
        assert!(reply.good());
        let (none, one) = ([0; 8], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply.data[..24], [[0, 0, 0, 16, 0, 0, 0, 0], none, one].concat());
    }
    assert_eq!(b.device.config(32, 4), 1u32.to_le_bytes(), "max_lun");
    let mut page = |lun, code| {
        let reply = b.ask_at(lun, &[0x12, 1, code, 0, 255, 0], &[], 255);
        assert!(reply.good());
        reply.data[4..(255 - reply.residual) as usize].to_vec()
    };
    assert_eq!(page(MAIN, 0x80), b"serial-of-20-letters-main");
    assert_eq!(page(LOG, 0x80), b"serial-of-20-letters-log");
    assert_eq!(&page(MAIN, 0x83)[28..], b"serial-of-20-letters-main");
    assert_eq!(page(LOG, 0x83), page(LOG_FLAT, 0x83));
    assert_ne!(page(LOG, 0x83), page(MAIN, 0x83));
    // Nobody is there.
    let reply = b.ask_at(NOBODY, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert!(reply.good() && reply.data[0] == 0x7f);
    assert_eq!(b.ask_at(NOBODY, &cdb10(0x2a, 0, 0, 1), &[1; 512], 0).code(), (5, 0x25, 0));
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_unit_keeps_its_name_while_a_state_is_shown() {
    use std::sync::Arc;
    use tornblk_backend::device::FrontEnd;
    use tornblk_backend::device::limits::Limits;
    use tornblk_backend::device::scsi::{Scsi, ScsiOptions};
    let store = MemStore::new(3 * SECTORS);
    let limits = LimitOptions { seg_max: 126, front_end: FrontEnd::Scsi, ..Default::default() };
    let device = Scsi::new(ScsiOptions {
        store: Arc::new(crate::common::store::Shared(store.clone())),
        luns: luns(),
        limits: Limits::new(&limits).unwrap(),
        request_queues: 1,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| tornblk_proto::device_id("disk", Some(0xabcd))),
    });
    let mut b = Bench::with(store, device, memory(), 0x1000, FIRST, false);
    let mut text = |code: u8| {
        let reply = b.ask_at(LOG, &[0x12, 1, code, 0, 255, 0], &[], 255);
        String::from_utf8_lossy(&reply.data[4..(255 - reply.residual) as usize]).into_owned()
    };
    assert_eq!(text(0x80), "disk-log@0000abcd");
    assert!(text(0x83).ends_with("disk   disk-log"), "the nonce is none of its identity");
}

#[test]
fn the_write_cache_of_several_units_cannot_be_switched() {
    let mut b = two();
    let changeable = b.ask_at(LOG, &[0x1a, 8, 0x48, 0, 255, 0], &[], 255).data;
    assert_eq!((changeable[4], changeable[6]), (8, 0));
    let now = b.ask_at(LOG, &[0x1a, 8, 8, 0, 255, 0], &[], 255).data;
    assert_eq!(now[6], 4, "there is one");
    let mut list = vec![0, 0, 0, 0, 8, 18];
    list.resize(24, 0);
    let off = b.ask_at(LOG, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
    assert_eq!(off.code(), IN_LIST);
    assert!(b.device.wce() && b.store.take_ops().is_empty());
    list[6] = 4;
    assert!(b.ask_at(LOG, &[0x15, 0x10, 0, 0, 24, 0], &list, 0).good());
}

/// A device with two units, and its control queue.
struct Both {
    first: Bench,
    driver: Driver,
    queue: ControlQueue,
    ring: Queue,
}

impl Both {
    fn new() -> Both {
        let store = MemStore::new(3 * SECTORS);
        let device = scsi_of(&store, 1, LimitOptions::default(), luns());
        let mem = memory();
        let driver = Driver::new(mem.clone(), 0x1000, 256, 0x1_0000);
        let (queue, ring) = (device.control_queue(), driver.ring(false));
        Both { first: Bench::with(store, device, mem, 0x4_0000, FIRST, false), driver, queue, ring }
    }

    fn turn(&mut self) {
        let mem = self.driver.mem.clone();
        let _ = self.queue.pump(&mut self.ring, &mem, true);
        let _ = self.first.pump();
        let _ = self.queue.pump(&mut self.ring, &mem, true);
    }

    /// A function that ends at once: its response.
    fn managed(&mut self, subtype: u32, lun: [u8; 8], tag: u64) -> u32 {
        let (head, at) = self.driver.manage(subtype, lun, tag);
        self.turn();
        assert_eq!(self.driver.take_used(), [(head, 1)], "function {subtype}");
        self.driver.byte(at).into()
    }
}

#[test]
fn a_function_is_about_the_commands_of_its_unit() {
    const COMPLETE: u32 = 0;
    let ready = |b: &mut Both, lun| b.first.ask_at(lun, &[0; 6], &[], 0);
    let mut b = Both::new();
    b.first.store.stall();
    let held = b.first.driver.command(MAIN, 7, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
    let _ = b.first.pump();
    for (lun, found) in [
        (MAIN, VIRTIO_SCSI_S_FUNCTION_SUCCEEDED),
        (LOG, COMPLETE),
        (NOBODY, VIRTIO_SCSI_S_INCORRECT_LUN),
    ] {
        assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK, lun, 7), found, "{lun:?}");
        assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, lun, 7), found, "{lun:?}");
    }
    // The other unit's reset neither waits for it nor lets it go.
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, LOG, 0), COMPLETE);
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, LOG, 0), COMPLETE);
    assert_eq!(b.first.driver.take_used(), []);
    let (head, _) = b.driver.manage(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, MAIN, 0);
    b.turn();
    b.turn();
    assert_eq!(b.first.driver.take_used(), [(held.head, 108)]);
    assert!(b.first.driver.reply(&held).good());
    assert_eq!(b.driver.take_used(), [(head, 1)]);
    b.first.store.release();
    // Each unit has its own attention.
    assert_eq!(ready(&mut b, MAIN).code(), (6, 0x29, 3));
    assert!(ready(&mut b, MAIN).good());
    assert_eq!(ready(&mut b, LOG).code(), (6, 0x29, 3));
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, LOG, 0), COMPLETE);
    assert!(ready(&mut b, MAIN).good());
    assert_eq!(ready(&mut b, LOG).code(), (6, 0x29, 3));
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, LOG, 0), COMPLETE);
    assert_eq!(ready(&mut b, MAIN).code(), (6, 0x29, 7));
    assert_eq!(ready(&mut b, LOG).code(), (6, 0x29, 7));
}

#[test]
#[should_panic(expected = "units of this disk")]
fn units_that_are_not_the_whole_disk_are_none() {
    scsi_of(&MemStore::new(SECTORS), 1, LimitOptions::default(), luns());
}

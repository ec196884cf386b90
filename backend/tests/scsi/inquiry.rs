//! What the disk says of itself.

use crate::common::scsi::DISK;
use crate::common::{ID, scsi_with};
use crate::{Bench, FIRST, IN_CDB, LimitOptions, MemStore, SECTORS, memory};
use std::sync::Arc;
use tornblk_backend::device::scsi::{Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd, limits::Limits};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_scsi::*;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn page(b: &mut Bench, code: u8) -> Vec<u8> {
    let page = b.told(&[0x12, 1, code, 0, 255, 0], 255);
    assert_eq!((page[0], page[1]), (0, code));
    assert_eq!(usize::from(page[2]) << 8 | usize::from(page[3]), page.len() - 4);
    page
}

#[test]
fn standard_inquiry_data_are_those_of_a_disk_with_vpd_pages() {
    let mut b = Bench::plain();
    let data = b.told(&[0x12, 0, 0, 0, 255, 0], 255);
    assert_eq!(data.len(), 96);
    assert_eq!((data[0], data[1], data[2], data[3], data[4]), (0, 0, 7, 0x12, 91));
    assert_eq!(&data[8..32], b"TORNBLK tearable disk   ");
    // As much as was allocated, which may be nothing.
    assert_eq!(b.told(&[0x12, 0, 0, 0, 36, 0], 255), data[..36]);
    assert!(b.told(&[0x12, 0, 0, 0, 0, 0], 0).is_empty());
    assert_eq!(b.told(&[0x12, 0, 0, 4, 0, 0], 1024), data);
    // A page without EVPD, and what is obsolete.
    assert_eq!(b.ask(&[0x12, 0, 0x80, 0, 255, 0], &[], 255).code(), IN_CDB);
    assert_eq!(b.ask(&[0x12, 2, 0, 0, 255, 0], &[], 255).code(), IN_CDB);
}

#[test]
fn vital_product_data_pages() {
    let mut b = Bench::plain();
    let all = page(&mut b, 0);
    assert_eq!(all[4..], [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for code in all[4..].iter().copied() {
        page(&mut b, code);
    }
    assert_eq!(page(&mut b, 0x80)[4..], ID);
    let identity = page(&mut b, 0x83);
    assert_eq!(identity[4..8], [2, 1, 0, 44]);
    assert_eq!(&identity[8..32], b"TORNBLK tearable disk   ");
    assert_eq!(identity[32..], ID);

    let limits = page(&mut b, 0xb0);
    // Linux wants the length of this one.
    assert_eq!((limits.len(), limits[4] & 1), (64, 1));
    assert_eq!(u32_at(&limits, 8), 131_072);
    assert_eq!((u32_at(&limits, 20), u32_at(&limits, 24)), (131_072, 32));
    assert_eq!((u32_at(&limits, 36), u32_at(&limits, 40)), (0, 32_768));
    let characteristics = page(&mut b, 0xb1);
    assert_eq!((characteristics.len(), characteristics[5]), (64, 1));
    assert_eq!(page(&mut b, 0xb2)[4..], [0, 0xe0, 2, 0]);
    for code in [0x01, 0x81, 0x86, 0xb3, 0xff] {
        let reply = b.ask(&[0x12, 1, code, 0, 255, 0], &[], 255);
        assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xc0, 0, 2][..]));
    }
}

#[test]
fn the_serial_number_is_asked_each_time_and_the_identity_stays() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static SHOWN: AtomicBool = AtomicBool::new(false);
    let store = MemStore::new(SECTORS);
    let limits = LimitOptions { seg_max: 126, front_end: FrontEnd::Scsi, ..Default::default() };
    let device = Scsi::new(ScsiOptions {
        store: Arc::new(crate::common::store::Shared(store.clone())),
        luns: Vec::new(),
        limits: Limits::new(&limits).unwrap(),
        request_queues: 1,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| {
            let nonce = SHOWN.load(Ordering::SeqCst).then_some(0xabcd);
            tornblk_proto::device_id("a@b", nonce)
        }),
    });
    let mut b = Bench::with(store, device, memory(), 0x1000, FIRST, false);
    assert_eq!(&page(&mut b, 0x80)[4..], b"a@b");
    let identity = page(&mut b, 0x83);
    SHOWN.store(true, Ordering::SeqCst);
    assert_eq!(&page(&mut b, 0x80)[4..], b"a@b@0000abcd");
    assert_eq!(page(&mut b, 0x83), identity);
}

#[test]
fn capacity_and_block_sizes() {
    let limits = LimitOptions {
        logical_block_size: Some(4096),
        physical_block_size: Some(16384),
        ..LimitOptions::default()
    };
    let mut b = Bench::new(MemStore::with_blocks_of(4096, SECTORS), limits);
    let last = [0, 0, 0, 255];
    assert_eq!(b.told(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), [&last[..], &[0, 0, 16, 0]].concat());
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
    let data = b.told(&cdb, 32);
    assert_eq!(data[..12], [0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 16, 0]);
    // Four logical blocks a physical one; thin provisioned, and zeroes are not promised.
    assert_eq!((data[12], data[13], data[14], data[15]), (0, 2, 0x80, 0));
    cdb[13] = 12;
    assert_eq!(b.told(&cdb, 32).len(), 12);
    let limits = page(&mut b, 0xb0);
    assert_eq!((limits[6], limits[7], u32_at(&limits, 28)), (0, 4, 4));
    // Of a disk that READ CAPACITY(10) has no number for there is no test without such a disk.
}

#[test]
fn luns_are_reported_and_what_is_not_there_says_so() {
    let mut b = Bench::plain();
    let report = |select: u8, allocated: u8| {
        let mut cdb = [0; 12];
        (cdb[0], cdb[2], cdb[9]) = (0xa0, select, allocated);
        cdb
    };
    let well_known = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    let nobody = [1, 0, 0x40, 3, 0, 0, 0, 0];
    for lun in [DISK, well_known, nobody, [1, 0, 0, 1, 0, 0, 0, 0]] {
        let reply = b.ask_at(lun, &report(0, 64), &[], 64);
        assert!(reply.good(), "{lun:?}: {reply:?}");
        assert_eq!(reply.data[..16], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply.residual, 48);
    }
    assert_eq!(b.told(&report(1, 16), 16)[8..], well_known);
    assert_eq!(b.told(&report(2, 255), 255).len(), 24);
    for (select, allocated) in [(3, 64), (0, 15)] {
        assert_eq!(b.ask(&report(select, allocated), &[], 64).code(), IN_CDB);
    }

    // Qualifier 011b.
    let reply = b.ask_at(nobody, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert!(reply.good() && reply.data[0] == 0x7f);
    let reply = b.ask_at(nobody, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    assert!(reply.good());
    assert_eq!((reply.data[2], reply.data[12]), (5, 0x25));
    for cdb in [&[0; 6][..], &crate::cdb10(0x2a, 0, 0, 1), &[0xff; 16]] {
        assert_eq!(b.ask_at(nobody, cdb, &[1; 512], 0).code(), (5, 0x25, 0));
    }
    let reply = b.ask_at(well_known, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert!(reply.good() && reply.data[0] == 0x1e);
    let reply = b.ask_at(well_known, &crate::cdb10(0x28, 0, 0, 1), &[], 512);
    assert_eq!(reply.code(), crate::INVALID_OPCODE);

    // Other targets, and what is no address.
    for lun in
        [[1, 1, 0, 0, 0, 0, 0, 0], [1, 255, 0x40, 0, 0, 0, 0, 0], [0; 8], [2, 0, 0, 0, 0, 0, 0, 0]]
    {
        for cdb in [&report(0, 64)[..], &[0x12, 0, 0, 0, 96, 0]] {
            let reply = b.ask_at(lun, cdb, &[], 96);
            assert_eq!((reply.response, reply.status), (3, 0), "{lun:?}");
        }
    }
    // Flat space addressing of LUN 0.
    assert!(b.ask_at([1, 0, 0x40, 0, 0, 0, 0, 0], &[0; 6], &[], 0).good());
    assert!(b.store.take_ops().is_empty());
}

/// REPORT SUPPORTED OPERATION CODES.
fn opcodes(options: u8, code: u8, action: u16, allocated: u32) -> [u8; 12] {
    let mut cdb = [0; 12];
    (cdb[0], cdb[1], cdb[2], cdb[3]) = (0xa3, 0x0c, options, code);
    cdb[4..6].copy_from_slice(&action.to_be_bytes());
    cdb[6..10].copy_from_slice(&allocated.to_be_bytes());
    cdb
}

#[test]
fn supported_operation_codes_are_those_that_work() {
    let mut b = Bench::profile("req16k");
    let all = b.told(&opcodes(0, 0, 0, 4096), 4096);
    assert_eq!(u32_at(&all, 0) as usize, all.len() - 4);
    let codes: Vec<&[u8]> = all[4..].chunks_exact(8).collect();
    for code in [0x28, 0x8a, 0x9c, 0x93, 0x42, 0x12, 0x9e, 0xa3] {
        assert!(codes.iter().any(|c| c[0] == code), "{code:#x}");
    }
    let with_timeouts = b.told(&opcodes(0x80, 0, 0, 4096), 4096);
    assert_eq!(with_timeouts.len(), 4 + codes.len() * 20);
    assert_eq!(with_timeouts[4 + 5] & 2, 2);

    // Each is told by itself as well, and its usage data have the right length.
    for c in &codes {
        let action = c[5] & 1 != 0;
        let one = b.told(&opcodes(1 + u8::from(action), c[0], c[3].into(), 64), 64);
        assert_eq!((one[1], one[2], one[3], one[4]), (3, c[6], c[7], c[0]));
        assert_eq!(one.len(), 4 + usize::from(c[7]));
        let either = b.told(&opcodes(3, c[0], c[3].into(), 64), 64);
        assert_eq!(either, one);
        let timed = b.told(&opcodes(0x83, c[0], c[3].into(), 64), 64);
        assert_eq!((timed.len(), timed[1]), (one.len() + 12, 0x83));
    }
    assert_eq!(b.told(&opcodes(2, 0x9e, 0x10, 64), 64)[4..6], [0x9e, 0x10]);
    // Not supported: COMPARE AND WRITE, another service action.
    for cdb in [opcodes(1, 0x89, 0, 64), opcodes(2, 0x9e, 0x12, 64), opcodes(3, 0x28, 1, 64)] {
        assert_eq!(b.told(&cdb, 64), [0, 1, 0, 0]);
    }
    for cdb in [opcodes(1, 0x9e, 0, 64), opcodes(2, 0x28, 0, 64), opcodes(4, 0, 0, 64)] {
        assert_eq!(b.ask(&cdb, &[], 64).code(), IN_CDB);
    }
    // Without limits there is no WRITE ATOMIC.
    let mut plain = Bench::plain();
    assert_eq!(plain.told(&opcodes(1, 0x9c, 0, 64), 64), [0, 1, 0, 0]);
    assert_eq!(plain.told(&opcodes(0, 0, 0, 4096), 4096).len(), all.len() - 8);

    let mut functions = [0; 12];
    (functions[0], functions[1], functions[9]) = (0xa3, 0x0d, 16);
    assert_eq!(b.told(&functions, 16), [0xdc, 3, 0, 0]);
    functions[2] = 0x80;
    assert_eq!(b.told(&functions, 16).len(), 16);
    functions[9] = 3;
    assert_eq!(b.ask(&functions, &[], 16).code(), IN_CDB);
}

#[test]
fn features_and_configuration_are_what_a_front_end_needs() {
    let device = scsi_with(&MemStore::new(SECTORS), 16, LimitOptions::default());
    // QEMU wants a queue a CPU and two.
    assert_eq!(device.queues(), 18);
    for bit in [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_SCSI_F_HOTPLUG,
        VIRTIO_SCSI_F_CHANGE,
    ] {
        assert_ne!(device.features() & (1 << bit), 0, "bit {bit}");
    }
    assert_eq!(device.features() & (1 << VIRTIO_SCSI_F_INOUT | 1 << VIRTIO_SCSI_F_T10_PI), 0);
    assert!(!device.shows_config());
    let config = device.config(0, size_of::<virtio_scsi_config>() as u32);
    let field = |i: usize| u32::from_le_bytes(config[4 * i..4 * i + 4].try_into().unwrap());
    let fields: Vec<u32> = (0..9).map(field).collect();
    assert_eq!(fields, [16, 254, 131_072, 256, 16, 96, 32, 0, 0]);
    device.set_config(20, &[0; 8]);
    assert_eq!(device.config(20, 4), 96u32.to_le_bytes());
}

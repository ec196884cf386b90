//! What makes no sense, on the wire and in a CDB. The store never hears of it, and the next good
//! command works.

use crate::common::driver::{NEXT, WRITE, descriptor};
use crate::common::scsi::{CANARY, DISK, REQUEST, RESPONSE, header};
use crate::common::store::Shared;
use crate::{
    Bench, END, FIRST, IN_CDB, INVALID_OPCODE, LimitOptions, MemStore, OUT_OF_RANGE, PROTECTED,
    SEAM, SECTORS, atomic, cdb10, cdb16, memory,
};
use std::sync::Arc;
use tornblk_backend::device::FrontEnd;
use tornblk_backend::device::limits::Limits;
use tornblk_backend::device::scsi::{Scsi, ScsiOptions};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn commands_that_are_not_there_are_refused_cleanly() {
    let mut b = Bench::plain();
    // COMPARE AND WRITE, PERSISTENT RESERVE IN, LOG SENSE, a variable length CDB, FORMAT UNIT.
    for code in [0x89, 0x5e, 0x4d, 0x7f, 0x04, 0xff, 0xc0] {
        let mut cdb = [0; 32];
        (cdb[0], cdb[13]) = (code, 1);
        let reply = b.ask(&cdb, &[1; 1024], 0);
        assert_eq!((reply.response, reply.status), (0, 2));
        assert_eq!((reply.code(), reply.residual), (INVALID_OPCODE, 1024), "{code:#x}");
        assert_eq!(reply.sense[15..], [0xc0, 0, 0]);
    }
    // A service action that is not there: its field is what is wrong.
    for (code, action) in [(0x9e, 0x12), (0xa3, 0x05)] {
        let reply = b.ask(&cdb16(code, action, 0, 0), &[], 8);
        assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xcc, 0, 1][..]));
    }
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_bit_that_means_nothing_is_refused_where_it_is() {
    let mut b = Bench::plain();
    for (cdb, bit, byte) in [
        // NACA, a reserved byte, WRPROTECT, FUA_NV, a group number.
        (vec![0, 0, 0, 0, 0, 4], 2, 5),
        (vec![0, 0, 0, 1, 0, 0], 0, 3),
        (cdb10(0x28, 0x20, 0, 1).to_vec(), 5, 1),
        (cdb10(0x2a, 0x02, 0, 1).to_vec(), 1, 1),
        (vec![0x2a, 0, 0, 0, 0, 0, 0x1f, 0, 1, 0], 4, 6),
        // Descriptor format sense, a power condition, LOEJ, PMI.
        (vec![3, 1, 0, 0, 18, 0], 0, 1),
        (vec![0x1b, 0, 0, 0, 0x10, 0], 4, 4),
        (vec![0x1b, 0, 0, 0, 0x03, 0], 1, 4),
        (vec![0x25, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0, 8),
    ] {
        let reply = b.ask(&cdb, &[], 0);
        assert_eq!(reply.code(), IN_CDB, "{cdb:02x?}");
        assert_eq!(reply.sense[15..], [0xc8 | bit, 0, byte], "{cdb:02x?}");
    }
    // Beyond the CDB's own end nothing counts.
    let mut cdb = [0xff; 32];
    cdb[..6].fill(0);
    assert!(b.ask(&cdb, &[], 0).good());
}

#[test]
fn what_lies_beyond_the_disk_is_out_of_range_and_touches_nothing() {
    let mut b = Bench::profile("req16k");
    let data = [1; 1024];
    for lba in [SECTORS - 1, SECTORS, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        for cdb in [
            cdb16(0x88, 0, lba, 2),
            cdb16(0x8a, 0, lba, 2),
            cdb16(0x93, 0, lba, 2),
            cdb16(0x91, 0, lba, 2),
            atomic(0, lba, 0, 2),
        ] {
            let out: &[u8] = if cdb[0] == 0x88 { &[] } else { &data };
            let room = if cdb[0] == 0x88 { 1024 } else { 0 };
            let reply = b.ask(&cdb, out, room);
            assert_eq!(reply.code(), OUT_OF_RANGE, "{cdb:02x?}");
            assert!(reply.data.iter().all(|byte| *byte == CANARY));
        }
    }
    for code in [0x28, 0x2a, 0x41, 0x35] {
        assert_eq!(b.ask(&cdb10(code, 0, u32::MAX, 1), &[], 0).code(), OUT_OF_RANGE);
    }
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_transfer_that_no_chain_could_carry_is_refused() {
    let store = MemStore::with_blocks_of(512, 140_000);
    let mut b = Bench::new(store, LimitOptions::default());
    for code in [0x88, 0x8a] {
        assert_eq!(b.ask(&cdb16(code, 0, 0, 131_073), &[], 0).code(), IN_CDB);
        // As long as is allowed, without buffers.
        assert_eq!(b.ask(&cdb16(code, 0, 0, 131_072), &[], 0).response, 1);
    }
}

#[test]
fn a_read_only_disk_reads_and_nothing_else() {
    let limits = LimitOptions { unit_max: Some(16384), ..LimitOptions::default() };
    let mut b = Bench::new(MemStore::read_only(SECTORS), limits);
    assert!(b.ask(&cdb10(0x28, 0, 0, 1), &[], 512).good());
    assert!(b.ask(&cdb10(0x35, 0, 0, 0), &[], 0).good());
    b.store.take_ops();
    for cdb in [
        cdb10(0x2a, 0, 0, 1).to_vec(),
        cdb16(0x8a, 0, 0, 1).to_vec(),
        atomic(0, 0, 0, 1).to_vec(),
        cdb16(0x93, 0, 0, 1).to_vec(),
        cdb10(0x41, 0, 0, 1).to_vec(),
        cdb10(0x42, 0, 0, 24).to_vec(),
    ] {
        assert_eq!(b.ask(&cdb, &[0; 512], 0).code(), PROTECTED, "{cdb:02x?}");
    }
    assert!(b.store.take_ops().is_empty());
}

/// Chains that no driver should make; the good command after them works.
#[test]
fn malformed_chains_are_returned_and_answered_where_there_is_room() {
    let good = header(DISK, 1, &cdb10(0x2a, 0, 0, 1));
    let (request, response) = (REQUEST, RESPONSE);
    /// Parts (of a header, a response, data), and VIRTIO_SCSI_S_* where it is answered.
    type Case<'a> = (&'a str, &'a dyn Fn(u64, u64, u64) -> Vec<(u64, u32, u16)>, Option<u8>);
    let cases: &[Case<'_>] = &[
        ("no room for a response", &|h, r, _| vec![(h, request, 0), (r, 107, WRITE)], None),
        ("nothing writable", &|h, _, d| vec![(h, request, 0), (d, 512, 0)], None),
        ("a short header", &|h, r, _| vec![(h, 50, 0), (r, response, WRITE)], Some(9)),
        ("no header", &|_, r, _| vec![(r, response, WRITE)], Some(9)),
        (
            "both directions",
            &|h, r, d| vec![(h, request, 0), (d, 512, 0), (r, response, WRITE), (d, 512, WRITE)],
            Some(9),
        ),
        (
            "readable behind writable",
            &|h, r, d| vec![(h, request, 0), (r, response, WRITE), (d, 512, 0)],
            Some(9),
        ),
        (
            "data outside of memory",
            &|h, r, _| vec![(h, request, 0), (r, response, WRITE), (END - 8, 512, WRITE)],
            Some(9),
        ),
        (
            "an empty descriptor",
            &|h, r, d| vec![(h, request, 0), (d, 0, 0), (r, response, WRITE)],
            None,
        ),
    ];
    for (what, parts, expected) in cases {
        let mut b = Bench::plain();
        let header = b.driver.place(&good);
        let response = b.driver.place(&[CANARY; RESPONSE as usize]);
        let data = b.driver.place(&[CANARY; 512]);
        let head = b.driver.chain(&parts(header, response, data));
        b.driver.offer(head);
        let _ = b.pump();
        let len = if expected.is_some() { RESPONSE } else { 0 };
        assert_eq!(b.driver.take_used(), [(head, len)], "{what}");
        let byte = b.driver.byte(response + 11);
        assert_eq!(byte, expected.unwrap_or(CANARY), "{what}");
        assert_eq!(b.driver.bytes(data, 512), [CANARY; 512], "{what}");
        assert!(b.store.take_ops().is_empty(), "{what}");
        assert!(b.ask(&[0; 6], &[], 0).good(), "{what}");
    }
    // No end: nothing can be answered.
    let mut b = Bench::plain();
    b.driver.put(200, descriptor(0x9000, 51, NEXT, 201));
    b.driver.put(201, descriptor(0x9100, 108, WRITE | NEXT, 200));
    b.driver.offer(200);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(200, 0)]);
}

#[test]
fn as_many_segments_as_a_front_end_may_show_and_no_more() {
    for (segments, answered) in [(254, 0), (255, 9)] {
        let mut b = Bench::plain();
        let at = b.driver.place(&header(DISK, 1, &cdb10(0x28, 0, 0, 254)));
        let response = b.driver.place(&[CANARY; RESPONSE as usize]);
        let data = b.driver.alloc(512 * segments);
        let mut parts = vec![(at, REQUEST, 0), (response, RESPONSE, WRITE)];
        parts.extend((0..segments as u64).map(|i| (data + 512 * i, 512, WRITE)));
        let head = b.driver.indirect(&parts);
        b.driver.offer(head);
        let _ = b.pump();
        assert_eq!(b.driver.take_used().len(), 1);
        assert_eq!(b.driver.byte(response + 11), answered, "{segments} segments");
    }
    // A short queue is no limit: QEMU's driver has 126 whatever the queue.
    let store = MemStore::new(SECTORS);
    let limits = LimitOptions { seg_max: 6, front_end: FrontEnd::Scsi, ..LimitOptions::default() };
    let device = Scsi::new(ScsiOptions {
        store: Arc::new(Shared(store.clone())),
        luns: Vec::new(),
        limits: Limits::new(&limits).unwrap(),
        request_queues: 1,
        queue_size: 8,
        writeback: true,
        id: Box::new(|| [0; 20]),
    });
    let mut b = Bench::with(store, device, memory(), 0x1000, FIRST, false);
    let at = b.driver.place(&header(DISK, 1, &cdb10(0x28, 0, 0, 126)));
    let response = b.driver.alloc(RESPONSE as usize);
    let data = b.driver.alloc(512 * 126);
    let mut parts = vec![(at, REQUEST, 0), (response, RESPONSE, WRITE)];
    parts.extend((0..126).map(|i| (data + 512 * i, 512, WRITE)));
    let head = b.driver.indirect(&parts);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.byte(response + 11), 0);
}

#[test]
fn a_request_may_lie_over_its_descriptors_as_the_driver_likes() {
    let mut b = Bench::plain();
    // The header in three pieces, the last with the first data; the response across the seam of
    // two regions, its end in one descriptor with the data of a read.
    let mut bytes = header(DISK, 1, &cdb10(0x2a, 0, 3, 1));
    bytes.extend([4; 512]);
    let at = b.driver.place(&bytes);
    let response = SEAM - 50;
    let parts = [
        (at, 1, 0),
        (at + 1, 40, 0),
        (at + 41, 20, 0),
        (at + 61, 502, 0),
        (response, 60, WRITE),
        (response + 60, 48, WRITE),
    ];
    let head = b.driver.indirect(&parts);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, RESPONSE)]);
    assert_eq!(b.store.sector(3), [4; 512]);
    assert_eq!(b.driver.bytes(response, 108), [0; 108]);

    let at = b.driver.place(&header(DISK, 1, &cdb10(0x28, 0, 3, 1)));
    let head = b.driver.chain(&[(at, REQUEST, 0), (SEAM - 300, RESPONSE + 512, WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, RESPONSE + 512)]);
    let mut read = [0; 512];
    b.driver.mem.read_slice(&mut read, GuestAddress(SEAM - 300 + 108)).unwrap();
    assert_eq!(read, [4; 512]);
}

#[test]
fn a_field_that_is_wrong_is_pointed_at_wherever_the_command_goes() {
    let mut b = Bench::plain();
    let well_known = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    let reply = b.ask_at(well_known, &[0, 0x04, 0, 0, 0, 0], &[], 0);
    assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xca, 0, 1][..]));
    assert_eq!(b.ask_at(well_known, &[0xff; 6], &[], 0).code(), INVALID_OPCODE);
    // Known on the disk, not there.
    assert_eq!(b.ask_at(well_known, &[0x28; 1], &[], 0).code(), INVALID_OPCODE);
}

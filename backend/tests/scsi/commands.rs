//! What reaches the store, and how.

use crate::common::scsi::{CANARY, DISK};
use crate::common::store::{MemStore, Told, pattern};
use crate::{Bench, LimitOptions, SECTORS, cdb10, cdb16};
use tornblk_backend::device::Device;
use tornblk_backend::device::scsi::{PATTERN_MAX_BYTES, UNMAP_MAX_BYTES, WRITE_SAME_MAX_BYTES};
use tornblk_backend::store::Op;
use tornblk_model::event::{Negotiation, Segment};

fn write(sector: u64, fua: bool) -> Op {
    Op::Write { offset: sector * 512, fua, atomic: false }
}

/// The same read or write in each of its lengths.
fn forms(read: bool, lba: u32, blocks: u16) -> Vec<Vec<u8>> {
    let code = |code: u8| if read { code } else { code + 2 };
    let mut six = vec![code(8), 0, 0, 0, blocks as u8, 0];
    six[1..4].copy_from_slice(&lba.to_be_bytes()[1..]);
    let mut twelve = vec![0; 12];
    twelve[0] = code(0xa8);
    twelve[2..6].copy_from_slice(&lba.to_be_bytes());
    twelve[6..10].copy_from_slice(&u32::from(blocks).to_be_bytes());
    vec![
        six,
        cdb10(code(0x28), 0, lba, blocks).to_vec(),
        twelve,
        cdb16(code(0x88), 0, lba.into(), blocks.into()).to_vec(),
    ]
}

#[test]
fn reads_and_writes_have_four_lengths() {
    let mut b = Bench::plain();
    for cdb in forms(true, 7, 2) {
        let data = b.told(&cdb, 1024);
        assert_eq!(data[..512], [pattern(7); 512]);
        assert_eq!(data[512..], [pattern(8); 512]);
        assert_eq!(b.store.take_ops(), [Op::Read { offset: 7 * 512 }]);
    }
    for (i, cdb) in (1..).zip(forms(false, 2046, 2)) {
        assert!(b.ask(&cdb, &[i; 1024], 0).good());
        assert_eq!(b.store.take_ops(), [write(2046, false)]);
        assert_eq!(b.store.sector(2047), [i; 512]);
    }
    // READ(6) of 0 blocks is of 256.
    assert_eq!(b.told(&[8, 0, 0, 0, 0, 0], 256 * 512).len(), 256 * 512);
}

#[test]
fn fua_reaches_the_store_and_dpo_changes_nothing() {
    let mut b = Bench::plain();
    for (flags, fua) in [(0x08, true), (0x10, false), (0x18, true), (0, false)] {
        assert!(b.ask(&cdb10(0x2a, flags, 3, 1), &[1; 512], 0).good());
        assert!(b.ask(&cdb16(0x8a, flags, 3, 1), &[1; 512], 0).good());
        assert_eq!(b.store.take_ops(), [write(3, fua), write(3, fua)]);
        assert!(b.ask(&cdb10(0x28, flags, 3, 1), &[], 512).good());
        b.store.take_ops();
    }
    // In WRITE(6) that bit belongs to the address.
    assert!(!b.ask(&[0x0a, 8, 0, 0, 1, 0], &[1; 512], 0).good());
}

#[test]
fn a_transfer_of_nothing_is_no_error_but_its_address_is_looked_at() {
    let mut b = Bench::plain();
    for code in [0x28, 0x2a] {
        let at_end = b.ask(&cdb10(code, 0, SECTORS as u32, 0), &[], 0);
        assert!(at_end.good(), "{at_end:?}");
        let beyond = b.ask(&cdb10(code, 0, SECTORS as u32 + 1, 0), &[], 0);
        assert_eq!(beyond.code(), crate::OUT_OF_RANGE);
    }
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_buffer_that_is_longer_leaves_a_residual_and_a_shorter_one_is_an_overrun() {
    let mut b = Bench::plain();
    let reply = b.ask(&cdb10(0x28, 0, 0, 1), &[], 700);
    assert!(reply.good());
    assert_eq!(reply.residual, 188);
    assert_eq!(reply.data[512..], [CANARY; 188]);
    let reply = b.ask(&cdb10(0x2a, 0, 0, 1), &[1; 1024], 0);
    assert!(reply.good());
    assert_eq!(reply.residual, 512);
    assert_eq!(b.store.sector(1), [pattern(1); 512]);
    b.store.take_ops();
    let overrun = |reply: crate::Reply| {
        assert_eq!((reply.response, reply.status), (1, 0), "{reply:?}");
        assert!(reply.sense.is_empty());
        assert!(reply.data.iter().all(|byte| *byte == CANARY));
    };
    overrun(b.ask(&cdb10(0x28, 0, 0, 2), &[], 1023));
    overrun(b.ask(&cdb10(0x28, 0, 0, 1), &[0; 512], 0));
    overrun(b.ask(&cdb10(0x2a, 0, 0, 2), &[0; 1023], 0));
    overrun(b.ask(&cdb10(0x2a, 0, 0, 1), &[], 512));
    overrun(b.ask(&[0x12, 0, 0, 0, 96, 0], &[], 95));
    overrun(b.ask(&[0x15, 0x10, 0, 0, 24, 0], &[0; 23], 0));
    overrun(b.ask(&cdb16(0x93, 0, 0, 8), &[0; 511], 0));
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn what_is_synchronised_is_the_whole_cache() {
    let mut b = Bench::plain();
    for cdb in [
        cdb10(0x35, 0, 0, 0).to_vec(),
        cdb10(0x35, 2, 9, 100).to_vec(),
        cdb16(0x91, 0, 0, 0).to_vec(),
        cdb16(0x91, 2, SECTORS, 0).to_vec(),
        // Stopping flushes.
        vec![0x1b, 0, 0, 0, 0, 0],
    ] {
        assert!(b.ask(&cdb, &[], 0).good(), "{cdb:02x?}");
        assert_eq!(b.store.take_ops(), [Op::FLUSH], "{cdb:02x?}");
    }
    // Starting, or stopping with NO_FLUSH; PREVENT ALLOW; TEST UNIT READY.
    for cdb in [[0x1b, 0, 0, 0, 1, 0], [0x1b, 1, 0, 0, 4, 0], [0x1e, 0, 0, 0, 1, 0], [0; 6]] {
        assert!(b.ask(&cdb, &[], 0).good(), "{cdb:02x?}");
    }
    assert!(b.store.take_ops().is_empty());
}

/// A parameter list of UNMAP: (LBA, blocks).
fn unmap(descriptors: &[(u64, u32)]) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0; 8];
    for (lba, blocks) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16;
    list[..2].copy_from_slice(&(len - 2).to_be_bytes());
    list[2..4].copy_from_slice(&(len - 8).to_be_bytes());
    (cdb10(0x42, 0, 0, len).to_vec(), list)
}

#[test]
fn unmap_is_a_discard_of_several_segments() {
    let mut b = Bench::plain();
    let (cdb, list) = unmap(&[(8, 8), (50, 0), (100, 1)]);
    let reply = b.ask(&cdb, &list, 0);
    assert!(reply.good() && reply.residual == 0, "{reply:?}");
    let segment =
        |lba: u64, blocks: u64| Segment { offset: lba * 512, len: blocks * 512, unmap: false };
    assert_eq!(
        b.store.take_ops(),
        [Op::Discard { segments: vec![segment(8, 8), segment(100, 1)] }]
    );
    // Nothing to unmap.
    for (cdb, list) in [unmap(&[]), unmap(&[(SECTORS, 0)]), (cdb10(0x42, 0, 0, 0).to_vec(), vec![])]
    {
        assert!(b.ask(&cdb, &list, 0).good());
    }
    assert!(b.store.take_ops().is_empty());

    for (descriptors, code) in [
        (vec![(SECTORS, 1)], crate::OUT_OF_RANGE),
        (vec![(0, 1), (u64::MAX, 2)], crate::OUT_OF_RANGE),
        (vec![(0, u32::MAX)], crate::OUT_OF_RANGE),
        (vec![(0, 1); 33], crate::IN_LIST),
    ] {
        let (cdb, list) = unmap(&descriptors);
        assert_eq!(b.ask(&cdb, &list, 0).code(), code, "{descriptors:?}");
    }
    assert_eq!(b.ask(&cdb10(0x42, 0, 0, 7), &[0; 7], 0).code(), crate::LIST_LENGTH);
    assert_eq!(b.ask(&cdb10(0x42, 1, 0, 8), &[0; 8], 0).code(), crate::IN_CDB);
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn one_unmap_is_bounded() {
    let blocks = (UNMAP_MAX_BYTES / 4096) as u32;
    let limits = LimitOptions { logical_block_size: Some(4096), ..LimitOptions::default() };
    let store = MemStore::with_blocks_of(4096, UNMAP_MAX_BYTES / 512 + 8);
    let mut b = Bench::new(store, limits);
    let (cdb, list) = unmap(&[(1, blocks)]);
    assert!(b.ask(&cdb, &list, 0).good());
    let (cdb, list) = unmap(&[(0, blocks), (0, 1)]);
    assert_eq!(b.ask(&cdb, &list, 0).code(), crate::IN_LIST);
    let (cdb, list) = unmap(&[(0, blocks + 1)]);
    assert_eq!(b.ask(&cdb, &list, 0).code(), crate::IN_LIST);
}

#[test]
fn write_same_of_zeroes_is_a_write_of_zeroes() {
    let mut b = Bench::plain();
    for (cdb, out, unmap) in [
        (cdb16(0x93, 0, 20, 4).to_vec(), &[0; 512][..], false),
        (cdb16(0x93, 0x01, 20, 4).to_vec(), &[][..], false),
        (cdb16(0x93, 0x08, 20, 4).to_vec(), &[0; 512][..], true),
        (cdb16(0x93, 0x09, 20, 4).to_vec(), &[][..], true),
        (cdb10(0x41, 0, 20, 4).to_vec(), &[0; 512][..], false),
        (cdb10(0x41, 0x08, 20, 4).to_vec(), &[0; 512][..], true),
    ] {
        assert!(b.ask(&cdb, out, 0).good(), "{cdb:02x?}");
        let segments = vec![Segment { offset: 20 * 512, len: 4 * 512, unmap }];
        assert_eq!(b.store.take_ops(), [Op::WriteZeroes { segments }]);
    }
    assert_eq!(b.store.sector(23), [0; 512]);
    assert_eq!(b.store.sector(24), [pattern(24); 512]);
}

#[test]
fn write_same_of_a_pattern_is_that_pattern_in_every_block() {
    let block: Vec<u8> = (0..512).map(|i| (i % 255) as u8).collect();
    let mut b = Bench::plain();
    // Even where unmapping is allowed: the pattern counts.
    for (cdb, lba, blocks) in [
        (cdb16(0x93, 0, 5, 3).to_vec(), 5, 3),
        (cdb10(0x41, 0x08, 30, 300).to_vec(), 30, 300),
        (cdb16(0x93, 0x08, 600, 1).to_vec(), 600, 1),
    ] {
        assert!(b.ask(&cdb, &block, 0).good());
        assert_eq!(b.store.take_ops(), [write(lba, false)]);
        let pieces = vec![512; blocks as usize];
        assert_eq!(b.store.take_pieces(), [pieces], "no profile keeps more of them whole");
        for sector in lba..lba + blocks {
            assert_eq!(b.store.sector(sector), block);
        }
        assert_eq!(b.store.sector(lba + blocks), [pattern(lba + blocks); 512]);
    }
}

#[test]
fn write_same_is_never_atomic_whatever_a_profile_says_of_its_length() {
    // A piece for each tear unit, also where this disk would keep no write of that length: the recording
    // may be explored as one that does.
    for (profile, blocks) in [("req16k", 32), ("req16k", 33), ("explicit16k", 32), ("lb512", 8)] {
        let mut b = Bench::profile(profile);
        assert!(b.ask(&cdb16(0x93, 0, 7, blocks), &[9; 512], 0).good());
        let end = 7 + u64::from(blocks);
        assert_eq!(b.store.take_ops(), [write(7, false)], "{profile}");
        assert_eq!(b.store.take_pieces(), [vec![512; blocks as usize]], "{profile}");
        assert_eq!(b.store.sector(end - 1), [9; 512]);
        assert_eq!(b.store.sector(end), [pattern(end); 512]);
    }
    // On the disk's own grid.
    let mut b = Bench::profile("req16k+tear4k");
    assert!(b.ask(&cdb16(0x93, 0, 7, 10), &[9; 512], 0).good());
    assert_eq!(b.store.take_ops(), [write(7, false)]);
    assert_eq!(b.store.take_pieces(), [[512, 4096, 512]]);
    // A unit's own borders.
    assert!(b.ask(&cdb16(0x93, 0, 8, 16), &[9; 512], 0).good());
    assert!(b.ask(&cdb16(0x93, 0, 9, 2), &[9; 512], 0).good());
    assert_eq!(b.store.take_pieces(), [vec![4096; 2], vec![1024]]);
}

#[test]
fn one_write_same_is_bounded_and_never_of_nothing() {
    let most = WRITE_SAME_MAX_BYTES / 512;
    let mut b = Bench::new(MemStore::new(most + 8), LimitOptions::default());
    assert!(b.ask(&cdb16(0x93, 1, 1, most as u32), &[], 0).good());
    // Anything but zeroes has less.
    let pattern = PATTERN_MAX_BYTES / 512;
    assert!(b.ask(&cdb16(0x93, 0, 1, pattern as u32), &[3; 512], 0).good());
    assert_eq!(b.store.sector(pattern), [3; 512]);
    b.store.take_ops();
    let more = b.ask(&cdb16(0x93, 0, 1, pattern as u32 + 1), &[3; 512], 0);
    assert_eq!((more.code(), &more.sense[15..]), (crate::IN_CDB, &[0xc0, 0, 10][..]));
    for blocks in [0, most as u32 + 1] {
        assert_eq!(b.ask(&cdb16(0x93, 1, 0, blocks), &[], 0).code(), crate::IN_CDB);
    }
    assert_eq!(b.ask(&cdb10(0x41, 0, 0, 0), &[0; 512], 0).code(), crate::IN_CDB);
    // ANCHOR, WRPROTECT.
    for flags in [0x10, 0x20] {
        assert_eq!(b.ask(&cdb16(0x93, flags, 0, 1), &[0; 512], 0).code(), crate::IN_CDB);
    }
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_failure_of_the_store_is_a_medium_error_of_one_command() {
    let mut b = Bench::plain();
    b.store.fail_next(3);
    let read = b.ask(&cdb10(0x28, 0, 0, 1), &[], 512);
    assert_eq!((read.status, read.code(), read.residual), (2, (3, 0x11, 0), 512));
    let write = b.ask(&cdb10(0x2a, 0, 0, 1), &[1; 512], 0);
    assert_eq!((write.status, write.code(), write.residual), (2, (3, 0x0c, 0), 512));
    let flush = b.ask(&cdb10(0x35, 0, 0, 0), &[], 0);
    assert_eq!(flush.code(), (3, 0x0c, 0));
    assert!(b.ask(&cdb10(0x2a, 0, 0, 1), &[1; 512], 0).good());
    // One of pieces fails: one answer, and an error.
    let mut b = Bench::profile("req16k");
    b.store.fail_next(1);
    assert_eq!(b.ask(&cdb16(0x93, 0, 0, 8), &[1; 512], 0).code(), (3, 0x0c, 0));
    assert_eq!(b.store.take_ops().len(), 1);
}

#[test]
fn what_is_held_is_answered_once_and_only_when_all_of_it_is_done() {
    let mut b = Bench::profile("req16k");
    b.store.stall();
    let held = b.driver.command(DISK, 1, &cdb16(0x93, 0, 0, 8), &[1; 512], 0);
    assert!(!b.pump());
    assert_eq!((b.queue.in_flight(), b.driver.take_used()), (1, vec![]));
    // The disk answers for itself meanwhile; the head is in use.
    let ready = b.driver.command(DISK, 2, &[0; 6], &[], 0);
    b.driver.offer(held.head);
    let _ = b.pump();
    let used: Vec<u16> = b.driver.take_used().into_iter().map(|used| used.0).collect();
    assert_eq!(used, [ready.head, held.head]);
    assert_eq!(b.driver.reply(&held).response, 9);
    b.store.release();
    assert!(b.pump());
    assert_eq!(b.driver.take_used(), [(held.head, 108)]);
    assert!(b.driver.reply(&held).good());
    assert_eq!(b.queue.in_flight(), 0);
    assert!(b.store.origins().iter().all(|origin| (origin.queue, origin.position) == (2, 0)));
}

#[test]
fn after_a_power_cut_nothing_is_answered() {
    let mut b = Bench::plain();
    b.store.stall();
    b.driver.command(DISK, 1, &cdb10(0x28, 0, 0, 1), &[], 512);
    let _ = b.pump();
    b.store.cut_power();
    b.driver.command(DISK, 1, &cdb10(0x2a, 0, 0, 1), &[0; 512], 0);
    assert!(!b.pump());
    let mem = b.driver.mem.clone();
    assert!(!b.queue.drain(&mut b.ring, &mem));
    assert_eq!(b.driver.take_used(), []);
}

#[test]
fn negotiation_is_recorded_as_what_scsi_has() {
    let b = Bench::plain();
    let said = |writeback| {
        let (flush_offered, flush, config_wce) = (true, true, true);
        Told::Negotiated(Negotiation { flush_offered, flush, config_wce, writeback })
    };
    b.device.negotiated(b.device.features());
    assert_eq!(b.store.take_told(), [said(true)]);
    b.device.negotiated(b.device.features());
    assert_eq!(b.store.take_told(), []);
}

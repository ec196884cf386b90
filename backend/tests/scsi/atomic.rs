//! WRITE ATOMIC(16), and what the disk says about it.

use crate::{Bench, IN_CDB, INVALID_OPCODE, LimitOptions, MemStore, OUT_OF_RANGE, SECTORS, atomic};
use tornblk_backend::store::Op;

fn write(sector: u64, fua: bool) -> Op {
    Op::Write { offset: sector * 512, fua, atomic: true }
}

/// The Block Limits page's five fields about atomic writes.
fn fields(b: &mut Bench) -> [u32; 5] {
    let page = b.told(&[0x12, 1, 0xb0, 0, 255, 0], 255);
    assert_eq!(page.len(), 64);
    [44, 48, 52, 56, 60].map(|at| u32::from_be_bytes(page[at..at + 4].try_into().unwrap()))
}

#[test]
fn limits_are_in_the_block_limits_page_in_blocks() {
    assert_eq!(fields(&mut Bench::plain()), [0; 5]);
    for name in ["lb512", "piece16k"] {
        assert_eq!(fields(&mut Bench::profile(name)), [0; 5], "{name}");
    }
    for name in ["req64k", "explicit64k"] {
        assert_eq!(fields(&mut Bench::profile(name)), [128, 0, 1, 0, 0], "{name}");
    }
    // A boundary: without a maximum of its own, so that Linux sends one.
    assert_eq!(fields(&mut Bench::profile("explicit16k+b16k")), [0, 0, 1, 32, 32]);
    assert_eq!(fields(&mut Bench::profile("explicit16k+b64k")), [0, 0, 1, 32, 32]);
    let limits = LimitOptions {
        logical_block_size: Some(4096),
        unit_min: Some(8192),
        unit_max: Some(65536),
        ..LimitOptions::default()
    };
    let mut b = Bench::new(MemStore::with_blocks_of(4096, 1024), limits);
    assert_eq!(fields(&mut b), [16, 0, 2, 0, 0]);
}

#[test]
fn an_atomic_write_reaches_the_store_as_one() {
    for name in ["req64k", "explicit64k"] {
        let mut b = Bench::profile(name);
        // No alignment is asked for: eligible is what is short enough.
        for (lba, blocks) in [(0, 128), (3, 1), (1001, 127)] {
            for (flags, fua) in [(0, false), (0x08, true), (0x18, true)] {
                let data = vec![blocks as u8; 512 * usize::from(blocks)];
                let reply = b.ask(&atomic(flags, lba, 0, blocks), &data, 0);
                assert!(reply.good(), "{name} {lba} {blocks}: {reply:?}");
                assert_eq!(b.store.take_ops(), [write(lba, fua)]);
                assert_eq!(b.store.sector(lba), [blocks as u8; 512]);
            }
        }
    }
}

#[test]
fn what_cannot_be_kept_whole_is_refused() {
    let mut b = Bench::profile("req16k");
    let data = vec![1; 64 << 10];
    let mut refused = |cdb: [u8; 16], code, field: u8| {
        let reply = b.ask(&cdb, &data, 0);
        assert_eq!(reply.code(), code, "{cdb:02x?}");
        if code == IN_CDB {
            assert_eq!(reply.sense[15..], [0xc0, 0, field], "{cdb:02x?}");
        }
        assert!(b.store.take_ops().is_empty());
    };
    refused(atomic(0, 0, 0, 33), IN_CDB, 12);
    refused(atomic(0, 0, 0, SECTORS as u16), IN_CDB, 12);
    // No boundary is offered.
    refused(atomic(0, 0, 8, 32), IN_CDB, 10);
    refused(atomic(0, SECTORS - 1, 0, 2), OUT_OF_RANGE, 0);
    refused(atomic(0, u64::MAX, 0, 1), OUT_OF_RANGE, 0);
    // WRPROTECT and reserved bits: the field's most significant bit is said.
    let reply = b.ask(&atomic(0x20, 0, 0, 1), &data, 0);
    assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xcd, 0, 1][..]));
    assert!(b.ask(&atomic(0, 0, 0, 0), &[], 0).good(), "nothing is whole");
}

#[test]
fn a_disk_without_limits_does_not_know_the_command() {
    for name in ["lb512", "piece16k", "garbage"] {
        let mut b = Bench::profile(name);
        assert_eq!(b.ask(&atomic(0, 0, 0, 1), &[0; 512], 0).code(), INVALID_OPCODE, "{name}");
    }
}

#[test]
fn the_granularity_is_the_shortest_unit() {
    let limits =
        LimitOptions { unit_min: Some(4096), unit_max: Some(16384), ..LimitOptions::default() };
    let mut b = Bench::new(MemStore::new(SECTORS), limits);
    let data = vec![1; 64 << 10];
    for (blocks, good) in [(8, true), (24, true), (4, false), (9, false)] {
        let reply = b.ask(&atomic(0, 1, 0, blocks), &data, 0);
        assert_eq!(reply.good(), good, "{blocks} blocks: {reply:?}");
    }
}

#[test]
fn with_a_boundary_a_command_may_still_begin_anywhere() {
    let mut b = Bench::profile("explicit16k+b16k");
    let data = vec![1; 64 << 10];
    // As Linux sends it: the boundary is the length. Or without one.
    for boundary in [0, 32] {
        assert!(b.ask(&atomic(0, 32, boundary, 32), &data, 0).good());
        assert_eq!(b.store.take_ops(), [write(32, false)]);
        assert!(b.ask(&atomic(0, 31, boundary, 32), &data, 0).good());
        assert_eq!(b.store.take_ops(), [write(31, false)]);
    }
    // Longer than the largest boundary.
    let reply = b.ask(&atomic(0, 0, 64, 32), &data, 0);
    assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xc0, 0, 10][..]));
    assert_eq!(b.ask(&atomic(0, 0, 33, 33), &data, 0).code(), IN_CDB);
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_boundary_shorter_than_the_transfer_makes_an_atomic_write_of_pieces() {
    let mut b = Bench::profile("explicit16k+b16k");
    let data: Vec<u8> = (0..16384).map(|i| (i / 512) as u8).collect();
    assert!(b.ask(&atomic(0x08, 0, 12, 32), &data, 0).good());
    let pieces = || vec![vec![12 * 512, 12 * 512, 8 * 512]];
    assert_eq!((b.store.take_ops(), b.store.take_pieces()), (vec![write(0, true)], pieces()));
    for sector in 0..32u8 {
        assert_eq!(b.store.sector(sector.into()), [sector; 512]);
    }
    // Pieces begin where the command does, not on a grid of the disk's.
    assert!(b.ask(&atomic(0, 24, 12, 32), &data, 0).good());
    assert_eq!((b.store.take_ops(), b.store.take_pieces()), (vec![write(24, false)], pieces()));
    assert!(b.ask(&atomic(0, 24, 16, 32), &data, 0).good());
    assert_eq!(b.store.take_pieces(), [[16 * 512; 2]]);
    assert!(b.ask(&atomic(0, 24, 32, 32), &data, 0).good());
    assert_eq!(b.store.take_pieces(), [Vec::<u64>::new()], "it is one");
    b.store.take_ops();
}

#[test]
fn a_command_makes_no_more_pieces_than_64() {
    let mut b = Bench::profile("explicit64k+b64k");
    let data = vec![1; 64 << 10];
    assert!(b.ask(&atomic(0, 0, 1, 64), &data, 0).good());
    assert_eq!((b.store.take_ops().len(), b.store.take_pieces()), (1, vec![vec![512; 64]]));
    for (boundary, blocks) in [(1, 65), (1, 128)] {
        let reply = b.ask(&atomic(0, 0, boundary, blocks), &data, 0);
        assert_eq!((reply.code(), &reply.sense[15..]), (IN_CDB, &[0xc0, 0, 10][..]));
    }
    assert!(b.store.take_ops().is_empty());
    assert!(b.ask(&atomic(0, 0, 2, 128), &data, 0).good());
}

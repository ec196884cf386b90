//! Chains that no driver should make, one kind each. Each is returned, with IOERR where there is a
//! byte to put it; the store never hears of it; and the next good request works.

use crate::common::driver::{INDIRECT, NEXT, UNTOUCHED, WRITE, descriptor};
use crate::common::store::MemStore;
use crate::{Bench, END};
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// Header, data and status of a read of sector 0, to be put together wrongly.
struct Parts {
    header: u64,
    data: u64,
    status: u64,
}

fn bench() -> (Bench, Parts) {
    let mut b = Bench::new(MemStore::new(64));
    let header = b.driver.header(VIRTIO_BLK_T_IN, 0);
    let data = b.driver.place(&[0xee; 512]);
    let status = b.driver.status_byte();
    (b, Parts { header, data, status })
}

/// The chain at `head` comes back with that status (`None`: untouched), and the device lives.
fn check(mut b: Bench, p: &Parts, head: u16, status: Option<u8>) {
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, status.is_some().into())]);
    assert_eq!(b.driver.byte(p.status), status.unwrap_or(UNTOUCHED));
    assert_eq!(b.driver.bytes(p.data, 512), [0xee; 512]);
    assert!(b.store.take_ops().is_empty(), "the store was asked");
    let good = b.driver.wants(VIRTIO_BLK_T_IN, 0, 512);
    assert_eq!(b.answer(good), (OK, 513));
}

#[test]
fn the_parts_make_a_good_chain() {
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.header, 16, 0), (p.data, 512, WRITE), (p.status, 1, WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, 513)]);
    assert_eq!(b.driver.byte(p.status), OK);
}

#[test]
fn the_last_descriptor_has_a_next_one_that_is_out_of_range() {
    let (b, p) = bench();
    b.driver.put(200, descriptor(p.header, 16, NEXT, 201));
    b.driver.put(201, descriptor(p.data, 512, WRITE | NEXT, 202));
    b.driver.put(202, descriptor(p.status, 1, WRITE | NEXT, 256));
    check(b, &p, 200, None);
    let (b, p) = bench();
    b.driver.put(200, descriptor(p.header, 16, NEXT, u16::MAX));
    check(b, &p, 200, None);
}

#[test]
fn loops() {
    for back_to in [200, 201, 202] {
        let (b, p) = bench();
        b.driver.put(200, descriptor(p.header, 16, NEXT, 201));
        b.driver.put(201, descriptor(p.data, 512, WRITE | NEXT, 202));
        b.driver.put(202, descriptor(p.status, 1, WRITE | NEXT, back_to));
        check(b, &p, 200, None);
    }
}

#[test]
fn a_loop_in_an_indirect_table() {
    let (mut b, p) = bench();
    let table = b.driver.alloc(32);
    b.driver.mem.write_obj(descriptor(p.header, 16, NEXT, 1), GuestAddress(table)).unwrap();
    let back = descriptor(p.status, 1, WRITE | NEXT, 0);
    b.driver.mem.write_obj(back, GuestAddress(table + 16)).unwrap();
    let head = b.driver.chain(&[(table, 32, INDIRECT)]);
    check(b, &p, head, None);
}

#[test]
fn nothing_is_writable() {
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.header, 16, 0), (p.status, 1, 0)]);
    check(b, &p, head, None);
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.header, 16, 0)]);
    check(b, &p, head, None);
}

#[test]
fn something_writable_comes_before_something_readable() {
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.data, 512, WRITE), (p.header, 16, 0), (p.status, 1, WRITE)]);
    check(b, &p, head, Some(IOERR));
    // The last one is readable: no byte for the status.
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.status, 1, WRITE), (p.header, 16, 0)]);
    check(b, &p, head, None);
}

#[test]
fn empty_descriptors() {
    for at in 0..3 {
        let (mut b, p) = bench();
        let mut parts = vec![(p.header, 16, 0), (p.data, 512, WRITE), (p.status, 1, WRITE)];
        let flags = parts[at].2;
        parts.insert(at, (p.data, 0, flags));
        let head = b.driver.chain(&parts);
        check(b, &p, head, Some(IOERR));
    }
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.header, 16, 0), (p.status, 0, WRITE)]);
    check(b, &p, head, None);
}

#[test]
fn a_header_that_is_too_short() {
    for len in [1, 8, 15] {
        let (mut b, p) = bench();
        let head = b.driver.chain(&[(p.header, len, 0), (p.status, 1, WRITE)]);
        check(b, &p, head, Some(IOERR));
    }
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.status, 1, WRITE)]);
    check(b, &p, head, Some(IOERR));
}

#[test]
fn buffers_outside_the_guest_s_memory() {
    for (addr, len) in [
        (END, 512),
        (END - 511, 512),
        (u64::MAX - 511, 512),
        (u64::MAX, 1),
        (u64::MAX - 511, 1024),
        (0, u32::MAX),
        (1 << 40, 512),
    ] {
        for flags in [0, WRITE] {
            let (mut b, p) = bench();
            let head =
                b.driver.chain(&[(p.header, 16, 0), (addr, len, flags), (p.status, 1, WRITE)]);
            check(b, &p, head, Some(IOERR));
        }
    }
    // The header, and the status.
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(END - 8, 16, 0), (p.status, 1, WRITE)]);
    check(b, &p, head, Some(IOERR));
    let (mut b, p) = bench();
    let head = b.driver.chain(&[(p.header, 16, 0), (p.data, 512, WRITE), (END, 1, WRITE)]);
    check(b, &p, head, None);
}

#[test]
fn a_chain_longer_than_anything_that_was_offered() {
    // 64 MiB and more, all of it in memory: the same megabyte over and over.
    let (mut b, p) = bench();
    let mut parts = vec![(p.header, 16, 0)];
    parts.extend([(0, 1 << 20, 0); 66]);
    parts.push((p.status, 1, WRITE));
    let head = b.driver.indirect(&parts);
    check(b, &p, head, Some(IOERR));
}

#[test]
fn more_descriptors_than_were_offered() {
    let (mut b, p) = bench();
    let mut parts = vec![(p.header, 16, 0)];
    parts.extend([(p.data, 512, WRITE); 1000]);
    parts.push((p.status, 1, WRITE));
    let head = b.driver.indirect(&parts);
    check(b, &p, head, Some(IOERR));
}

#[test]
fn indirect_tables_of_impossible_sizes() {
    for len in [0, 1, 15, 17, 40, 16 * 65536, u32::MAX] {
        let (mut b, p) = bench();
        let parts = [(p.header, 16, 0), (p.status, 1, WRITE)];
        b.driver.indirect(&parts);
        let table = b.driver.alloc(0) - 32;
        let head = b.driver.chain(&[(table, len, INDIRECT)]);
        check(b, &p, head, None);
    }
}

#[test]
fn an_indirect_table_that_is_shorter_than_its_chain() {
    let (mut b, p) = bench();
    b.driver.indirect(&[(p.header, 16, 0), (p.data, 512, WRITE), (p.status, 1, WRITE)]);
    let table = b.driver.alloc(0) - 48;
    let head = b.driver.chain(&[(table, 32, INDIRECT)]);
    check(b, &p, head, None);
}

#[test]
fn an_indirect_table_outside_the_guest_s_memory() {
    for table in [END, END - 16, u64::MAX - 15, 1 << 50] {
        let (mut b, p) = bench();
        let head = b.driver.chain(&[(table, 32, INDIRECT)]);
        check(b, &p, head, None);
    }
}

#[test]
fn nested_indirect_tables() {
    let (mut b, p) = bench();
    b.driver.indirect(&[(p.header, 16, 0), (p.status, 1, WRITE)]);
    let inner = b.driver.alloc(0) - 32;
    let head = b.driver.indirect(&[(inner, 32, INDIRECT)]);
    check(b, &p, head, None);
}

#[test]
fn an_indirect_descriptor_with_a_next_one() {
    let (mut b, p) = bench();
    b.driver.indirect(&[(p.header, 16, 0), (p.status, 1, WRITE)]);
    let table = b.driver.alloc(0) - 32;
    let head = b.driver.chain(&[(table, 32, INDIRECT), (p.status, 1, WRITE)]);
    check(b, &p, head, None);
}

#[test]
fn a_table_behind_direct_descriptors_is_good() {
    let (mut b, p) = bench();
    b.driver.indirect(&[(p.data, 512, WRITE), (p.status, 1, WRITE)]);
    let table = b.driver.alloc(0) - 32;
    // VIRTIO 1.2, 2.7.5.3.2; the write flag of an indirect descriptor means nothing.
    let head = b.driver.chain(&[(p.header, 16, 0), (table, 32, INDIRECT | WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, 513)]);
    assert_eq!(b.driver.byte(p.status), OK);
}

#[test]
fn a_head_beyond_the_table_cannot_be_returned() {
    for head in [256, 300, u16::MAX] {
        let (mut b, p) = bench();
        b.driver.offer(head);
        assert!(!b.pump());
        assert_eq!(b.driver.take_used(), []);
        let good = b.driver.wants(VIRTIO_BLK_T_IN, 0, 512);
        assert_eq!(b.answer(good), (OK, 513));
        assert_eq!(b.driver.byte(p.status), UNTOUCHED);
    }
}

#[test]
fn an_available_index_that_jumps_stops_the_queue_and_no_more() {
    let (mut b, _) = bench();
    b.driver.jump(300);
    assert!(!b.pump());
    assert_eq!(b.driver.take_used(), []);
    assert!(b.store.take_ops().is_empty());
}

//! Whatever a driver puts into its rings and its memory: the device does not panic, writes only
//! into writable buffers and the used ring, and returns each head once.

use crate::common::driver::descriptor;
use crate::common::random::{EACH, Piece, config, piece};
use crate::common::store::MemStore;
use crate::common::touched::{everything, outside, writable};
use crate::{Bench, SEAM};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

const TABLE: u16 = 256;
/// Where buffers and headers lie: across the seam of two regions.
const AREA: Range<u64> = SEAM - 0x1000..SEAM + 0x1000;
/// Where indirect tables lie: no other descriptor points there, so they stay as they are.
const TABLES: Range<u64> = 0xe_0000..0xe_0400;
/// Where the buffers of the good chains lie.
const GOOD: u64 = 0xc_0000;
const SECTORS: u64 = 16;

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => AREA,
        1 => crate::END - 600..crate::END + 8,
        1 => GOOD..GOOD + 0x1000,
        1 => any::<u64>(),
        1 => u64::MAX - 600..=u64::MAX,
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => Just(16u32),
        3 => Just(512),
        2 => Just(1),
        1 => (0u32..64).prop_map(|n| n * 16),
        1 => 0u32..2000,
        1 => any::<u32>(),
    ]
}

/// Sixteen bytes that look like a request's header: often a good one.
fn header() -> impl Strategy<Value = [u8; 16]> {
    let kind = prop_oneof![
        2 => Just(VIRTIO_BLK_T_IN),
        2 => Just(VIRTIO_BLK_T_OUT),
        1 => Just(VIRTIO_BLK_T_FLUSH),
        1 => Just(VIRTIO_BLK_T_GET_ID),
        1 => Just(VIRTIO_BLK_T_DISCARD),
        1 => Just(VIRTIO_BLK_T_WRITE_ZEROES),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![4 => 0..SECTORS + 2, 1 => any::<u64>()];
    (kind, any::<u32>(), sector).prop_map(|(kind, ioprio, sector)| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&ioprio.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    })
}

/// A well-formed chain with a header that makes sense, so that the good paths run as well:
/// (header, data out, data in).
type Good = ([u8; 16], Option<u32>, Option<u32>);

#[derive(Clone, Debug)]
struct Case {
    pieces: Vec<Piece>,
    /// What fills the indirect tables.
    entries: Vec<Piece>,
    /// What fills the area, at every 16 bytes.
    headers: Vec<[u8; 16]>,
    good: Vec<Good>,
    heads: Vec<u16>,
    event_idx: bool,
    stalled: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = || proptest::option::of(prop_oneof![Just(512u32), Just(1024), Just(16), 1u32..600]);
    (
        vec(piece(addr(), len(), TABLES), 32),
        vec(piece(addr(), len(), TABLES), 64),
        vec(header(), 16),
        vec((header(), sizes(), sizes()), 0..6),
        vec(prop_oneof![12 => 0u16..32, 1 => any::<u16>()], EACH as usize..24),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(pieces, entries, headers, good, heads, event_idx, stalled)| Case {
            pieces,
            entries,
            headers,
            good,
            heads,
            event_idx,
            stalled,
        })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_a_driver_does_breaks_the_device(case in case()) {
        let store = MemStore::new(SECTORS);
        let device = crate::common::device(&store);
        let mut b = Bench::with(store, device, case.event_idx);
        for (i, at) in AREA.step_by(16).enumerate() {
            let bytes = case.headers[i % case.headers.len()];
            b.driver.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        for (p, at) in case.entries.iter().zip(TABLES.step_by(16)) {
            let entry = descriptor(p.addr, p.len, p.flags, p.next % 8);
            b.driver.mem.write_obj(entry, GuestAddress(at)).unwrap();
        }
        for (i, p) in (0..).zip(&case.pieces) {
            b.driver.put(i, descriptor(p.addr, p.len, p.flags, p.next));
        }
        let mut heads = case.heads.clone();
        // Good chains from descriptor 32 on, their buffers in an area of their own.
        let (mut index, mut at) = (32, GOOD);
        for (header, out, wanted) in &case.good {
            heads.push(index);
            b.driver.mem.write_slice(header, GuestAddress(at)).unwrap();
            let mut parts = vec![(16, 0)];
            parts.extend(out.map(|len| (len, 0)));
            parts.extend(wanted.map(|len| (len, 2)));
            parts.push((1, 2));
            for (i, (len, flags)) in parts.iter().enumerate() {
                let next = u16::from(i + 1 < parts.len());
                b.driver.put(index, descriptor(at, *len, flags | next, index + 1));
                at += u64::from(len.next_multiple_of(16));
                index += 1;
            }
        }
        if case.stalled {
            b.store.stall();
        }
        for &head in &heads {
            b.driver.offer(head);
        }
        let before = everything(&b.driver.mem, crate::END);
        let may_change = writable(&b.driver, &before, TABLES);
        let _ = b.pump();
        b.store.release();
        let _ = b.pump();

        prop_assert_eq!(b.queue.in_flight(), 0);
        let mut returned: HashMap<u16, usize> = HashMap::new();
        for (head, _) in b.driver.take_used() {
            *returned.entry(head).or_default() += 1;
        }
        let mut offered: HashMap<u16, usize> = HashMap::new();
        for &head in heads.iter().filter(|&&head| head < TABLE) {
            *offered.entry(head).or_default() += 1;
        }
        prop_assert_eq!(returned, offered);

        let after = everything(&b.driver.mem, crate::END);
        prop_assert_eq!(outside(&before, &after, &may_change), None);
    }
}

//! Each type of request, as a driver that knows its trade sends it; and what is refused because it
//! makes no sense on this disk.

use crate::common::driver::{UNTOUCHED, WRITE};
use crate::common::store::{MemStore, Told, pattern};
use crate::common::{ID, device_with};
use crate::{Bench, SEAM};
use std::mem::offset_of;
use tornblk_backend::device::Device;
use tornblk_backend::device::blk::{
    ATOMIC_CONFIG_BYTES, CONFIG_BYTES, DISCARD_MAX_SECTORS, DISCARD_MAX_SEGMENTS,
    VIRTIO_BLK_F_ATOMIC,
};
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::store::Op;
use tornblk_model::crash::AtomicMode;
use tornblk_model::event::{Negotiation, Segment};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const SECTORS: u64 = 2048;

fn bench() -> Bench {
    Bench::new(MemStore::new(SECTORS))
}

#[test]
fn a_read_fills_its_buffer_and_says_how_much() {
    let mut b = bench();
    let sent = b.driver.wants(VIRTIO_BLK_T_IN, 7, 1024);
    assert_eq!(b.answer(sent), (OK, 1025));
    assert_eq!(b.driver.bytes(sent.data, 512), vec![pattern(7); 512]);
    assert_eq!(b.driver.bytes(sent.data + 512, 512), vec![pattern(8); 512]);
    assert_eq!(b.store.take_ops(), [Op::Read { offset: 7 * 512 }]);
}

#[test]
fn a_write_reaches_the_store_and_the_buffer_stays() {
    let mut b = bench();
    let sent = b.driver.gives(VIRTIO_BLK_T_OUT, SECTORS - 1, &[9; 512]);
    assert_eq!(b.answer(sent), (OK, 1));
    assert_eq!(b.store.sector(SECTORS - 1), [9; 512]);
    let op = Op::Write { offset: (SECTORS - 1) * 512, fua: false, atomic: false };
    assert_eq!(b.store.take_ops(), [op]);
}

#[test]
fn the_driver_may_lay_a_request_over_its_descriptors_as_it_likes() {
    // Header in three pieces, the last one shared with the data; the status shares a descriptor
    // with the data of a read; everything in an indirect table behind a direct descriptor.
    let mut b = bench();
    let header = b.driver.header(VIRTIO_BLK_T_OUT, 3);
    let data = b.driver.place(&[4; 500]);
    let tail: Vec<u8> = b.driver.bytes(header + 10, 6).into_iter().chain([4; 12]).collect();
    let tail = b.driver.place(&tail);
    let status = b.driver.status_byte();
    let parts =
        [(header, 1, 0), (header + 1, 9, 0), (tail, 18, 0), (data, 500, 0), (status, 1, WRITE)];
    let head = b.driver.chain(&parts);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, 1)]);
    assert_eq!(b.driver.byte(status), OK);
    assert_eq!(b.store.sector(3), [4; 512]);

    let header = b.driver.header(VIRTIO_BLK_T_IN, 3);
    let data = b.driver.place(&[UNTOUCHED; 513]);
    let head = b.driver.indirect(&[(header, 16, 0), (data, 513, WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, 513)]);
    assert_eq!(b.driver.bytes(data, 512), [4; 512]);
    assert_eq!(b.driver.byte(data + 512), OK);
}

#[test]
fn a_buffer_may_lie_in_two_regions_of_memory() {
    let mut b = bench();
    let header = b.driver.header(VIRTIO_BLK_T_IN, 1);
    let status = b.driver.status_byte();
    let head = b.driver.chain(&[(header, 16, 0), (SEAM - 256, 512, WRITE), (status, 1, WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(head, 513)]);
    assert_eq!(b.driver.bytes(SEAM - 256, 512), vec![pattern(1); 512]);
}

#[test]
fn as_many_segments_as_were_offered_and_no_more() {
    let seg_max = 254;
    for (segments, status) in [(seg_max, OK), (seg_max + 1, IOERR)] {
        let mut b = bench();
        let header = b.driver.header(VIRTIO_BLK_T_IN, 0);
        let data = b.driver.alloc(512 * segments);
        let at = b.driver.status_byte();
        let mut parts = vec![(header, 16, 0)];
        parts.extend((0..segments as u64).map(|i| (data + 512 * i, 512, WRITE)));
        parts.push((at, 1, WRITE));
        let head = b.driver.indirect(&parts);
        b.driver.offer(head);
        let _ = b.pump();
        assert_eq!(b.driver.take_used().len(), 1);
        assert_eq!(b.driver.byte(at), status, "{segments} segments");
    }
}

#[test]
fn flush_and_id_have_their_own_shapes() {
    let mut b = bench();
    let sent = b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert_eq!(b.answer(sent), (OK, 1));
    assert_eq!(b.store.take_ops(), [Op::FLUSH]);

    let sent = b.driver.wants(VIRTIO_BLK_T_GET_ID, 0, 20);
    assert_eq!(b.answer(sent), (OK, 21));
    assert_eq!(b.driver.bytes(sent.data, 20), ID);

    // More room than 20 bytes: the rest stays as it is.
    let sent = b.driver.wants(VIRTIO_BLK_T_GET_ID, 0, 64);
    assert_eq!(b.answer(sent), (OK, 21));
    assert_eq!(b.driver.bytes(sent.data + 20, 44), [0xee; 44]);
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn discard_and_write_zeroes_take_several_segments() {
    let mut b = bench();
    let sent = b.driver.segments(VIRTIO_BLK_T_DISCARD, &[(8, 8, 0), (100, 1, 0)]);
    assert_eq!(b.answer(sent), (OK, 1));
    let segment = |sector: u64, sectors: u64, unmap| Segment {
        offset: sector * 512,
        len: sectors * 512,
        unmap,
    };
    let segments = vec![segment(8, 8, false), segment(100, 1, false)];
    assert_eq!(b.store.take_ops(), [Op::Discard { segments }]);
    assert_eq!(b.store.sector(15), [0; 512]);
    assert_eq!(b.store.sector(16), [pattern(16); 512]);

    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let sent = b.driver.segments(VIRTIO_BLK_T_WRITE_ZEROES, &[(20, 1, unmap), (30, 2, 0)]);
    assert_eq!(b.answer(sent), (OK, 1));
    let segments = vec![segment(20, 1, true), segment(30, 2, false)];
    assert_eq!(b.store.take_ops(), [Op::WriteZeroes { segments }]);
}

#[test]
fn discards_that_break_the_rules_are_told_apart() {
    let many = vec![(0, 1, 0); DISCARD_MAX_SEGMENTS as usize + 1];
    let just = vec![(0, 1, 0); DISCARD_MAX_SEGMENTS as usize];
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    /// Sector, sectors, flags.
    type Segments<'a> = &'a [(u64, u32, u32)];
    let cases: &[(u32, Segments<'_>, u8)] = &[
        (discard, &just, OK),
        (discard, &many, IOERR),
        (discard, &[(0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)], UNSUPP),
        (discard, &[(0, 8, 0), (8, 8, 2)], UNSUPP),
        (zeroes, &[(0, 8, 2)], UNSUPP),
        (zeroes, &[(0, 8, 0x8000_0001)], UNSUPP),
        // Both wrong: the flag counts.
        (discard, &[(u64::MAX, 8, 4)], UNSUPP),
        (discard, &[(0, 0, 0)], IOERR),
        (zeroes, &[(0, DISCARD_MAX_SECTORS + 1, 0)], IOERR),
        (discard, &[(SECTORS, 1, 0)], IOERR),
        (discard, &[(SECTORS - 1, 2, 0)], IOERR),
        (discard, &[(0, 1, 0), (u64::MAX / 512 + 1, 1, 0)], IOERR),
        (zeroes, &[(u64::MAX, u32::MAX, 0)], IOERR),
        (discard, &[], IOERR),
    ];
    for (kind, segments, status) in cases {
        let mut b = bench();
        let sent = b.driver.segments(*kind, segments);
        assert_eq!(b.answer(sent), (*status, 1), "type {kind}, {} segments", segments.len());
        assert_eq!(b.store.take_ops().len(), usize::from(*status == OK));
    }
    // Not a whole number of segments.
    for len in [1, 15, 17] {
        let mut b = bench();
        let sent = b.driver.gives(discard, 0, &vec![0; len]);
        assert_eq!(b.answer(sent), (IOERR, 1), "{len} bytes");
    }
}

#[test]
fn what_lies_beyond_the_disk_is_an_error_and_touches_nothing() {
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        let mut b = bench();
        let sent = b.driver.wants(VIRTIO_BLK_T_IN, sector, 1024);
        assert_eq!(b.answer(sent), (IOERR, 1), "read at {sector}");
        assert_eq!(b.driver.bytes(sent.data, 1024), [0xee; 1024]);
        let sent = b.driver.gives(VIRTIO_BLK_T_OUT, sector, &[1; 1024]);
        assert_eq!(b.answer(sent), (IOERR, 1), "write at {sector}");
        assert!(b.store.take_ops().is_empty());
    }
}

#[test]
fn data_in_the_wrong_direction_or_of_the_wrong_length_is_an_error() {
    let mut b = bench();
    for len in [0, 1, 511, 513, 1000] {
        let sent = b.driver.wants(VIRTIO_BLK_T_IN, 0, len);
        assert_eq!(b.answer(sent).0, IOERR, "read of {len}");
        let sent = b.driver.gives(VIRTIO_BLK_T_OUT, 0, &vec![0; len as usize]);
        assert_eq!(b.answer(sent).0, IOERR, "write of {len}");
    }
    let sent = b.driver.gives(VIRTIO_BLK_T_IN, 0, &[0; 512]);
    assert_eq!(b.answer(sent).0, IOERR, "a read that carries data");
    let sent = b.driver.wants(VIRTIO_BLK_T_OUT, 0, 512);
    assert_eq!(b.answer(sent).0, IOERR, "a write that wants data");
    let sent = b.driver.wants(VIRTIO_BLK_T_FLUSH, 0, 512);
    assert_eq!(b.answer(sent).0, IOERR, "a flush that wants data");
    let sent = b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[0; 512]);
    assert_eq!(b.answer(sent).0, IOERR, "a flush that carries data");
    let sent = b.driver.wants(VIRTIO_BLK_T_DISCARD, 0, 16);
    assert_eq!(b.answer(sent).0, IOERR, "a discard that wants data");
    let sent = b.driver.gives(VIRTIO_BLK_T_GET_ID, 0, &[0; 20]);
    assert_eq!(b.answer(sent).0, IOERR, "an identity that is given");
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn what_was_not_offered_is_unsupported() {
    let mut b = bench();
    for kind in [
        VIRTIO_BLK_T_SCSI_CMD,
        VIRTIO_BLK_T_SECURE_ERASE,
        VIRTIO_BLK_T_ZONE_REPORT,
        VIRTIO_BLK_T_BARRIER,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_BARRIER,
        3,
        u32::MAX,
    ] {
        let sent = b.driver.gives(kind, 0, &[0; 512]);
        assert_eq!(b.answer(sent), (UNSUPP, 1), "type {kind}");
    }
    assert!(b.store.take_ops().is_empty());
}

#[test]
fn a_read_only_disk_reads_and_nothing_else() {
    let mut b = Bench::new(MemStore::read_only(SECTORS));
    assert_ne!(b.device.features() & (1 << VIRTIO_BLK_F_RO), 0);
    let sent = b.driver.wants(VIRTIO_BLK_T_IN, 0, 512);
    assert_eq!(b.answer(sent), (OK, 513));
    let sent = b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert_eq!(b.answer(sent), (OK, 1));
    b.store.take_ops();
    let sent = b.driver.gives(VIRTIO_BLK_T_OUT, 0, &[1; 512]);
    assert_eq!(b.answer(sent), (IOERR, 1));
    let sent = b.driver.segments(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0)]);
    assert_eq!(b.answer(sent), (IOERR, 1));
    let sent = b.driver.segments(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0)]);
    assert_eq!(b.answer(sent), (IOERR, 1));
    assert!(b.store.take_ops().is_empty());
    assert_eq!(b.store.sector(0), [pattern(0); 512]);
}

#[test]
fn a_failure_of_the_store_is_an_error_of_one_request() {
    let mut b = bench();
    b.store.fail_next(2);
    let read = b.driver.wants(VIRTIO_BLK_T_IN, 0, 512);
    assert_eq!(b.answer(read), (IOERR, 1));
    let write = b.driver.gives(VIRTIO_BLK_T_OUT, 0, &[1; 512]);
    assert_eq!(b.answer(write), (IOERR, 1));
    let again = b.driver.gives(VIRTIO_BLK_T_OUT, 0, &[1; 512]);
    assert_eq!(b.answer(again), (OK, 1));
}

#[test]
fn the_io_priority_reaches_the_store_as_it_was_sent() {
    let mut b = bench();
    b.store.stall();
    let header = b.driver.header_with(VIRTIO_BLK_T_FLUSH, 0x4008 | 0xdead_0000, 0);
    let status = b.driver.status_byte();
    let head = b.driver.chain(&[(header, 16, 0), (status, 1, WRITE)]);
    b.driver.offer(head);
    let _ = b.pump();
    let origin = b.store.origins()[0];
    assert_eq!((origin.queue, origin.position, origin.head), (0, 0, head));
    assert_eq!(origin.ioprio, 0x4008);
}

#[test]
fn what_is_held_is_answered_when_it_is_let_go_and_costs_nobody_else_anything() {
    let mut b = bench();
    b.store.stall();
    let held = b.driver.wants(VIRTIO_BLK_T_IN, 5, 512);
    assert!(!b.pump());
    assert_eq!(b.driver.take_used(), []);
    assert_eq!(b.queue.in_flight(), 1);
    // The device answers for itself meanwhile.
    let id = b.driver.wants(VIRTIO_BLK_T_GET_ID, 0, 20);
    assert!(b.pump());
    assert_eq!(b.driver.take_used(), [(id.head, 21)]);
    b.store.release();
    assert!(b.pump());
    assert_eq!(b.driver.take_used(), [(held.head, 513)]);
    assert_eq!(b.driver.byte(held.status), OK);
    assert_eq!(b.queue.in_flight(), 0);
}

#[test]
fn draining_answers_what_is_held() {
    let mut b = bench();
    b.store.stall();
    let held = b.driver.wants(VIRTIO_BLK_T_IN, 5, 512);
    let _ = b.pump();
    let mem = b.driver.mem.clone();
    assert!(b.queue.drain(&mut b.ring, &mem));
    assert_eq!(b.driver.take_used(), [(held.head, 513)]);
}

#[test]
fn after_a_power_cut_nothing_is_answered() {
    let mut b = bench();
    b.store.stall();
    b.driver.wants(VIRTIO_BLK_T_IN, 5, 512);
    let _ = b.pump();
    b.store.cut_power();
    b.driver.wants(VIRTIO_BLK_T_IN, 6, 512);
    assert!(!b.pump());
    let mem = b.driver.mem.clone();
    assert!(!b.queue.drain(&mut b.ring, &mem));
    assert_eq!(b.driver.take_used(), []);
}

#[test]
fn a_head_that_is_still_out_is_refused() {
    let mut b = bench();
    b.store.stall();
    let sent = b.driver.wants(VIRTIO_BLK_T_IN, 5, 512);
    b.driver.offer(sent.head);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(sent.head, 1)]);
    assert_eq!(b.queue.in_flight(), 1);
    b.store.release();
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [(sent.head, 513)]);
}

#[test]
fn notifications_follow_the_used_event() {
    let store = MemStore::new(SECTORS);
    let device = crate::common::device(&store);
    let mut b = Bench::with(store, device, true);
    b.driver.set_used_event(2);
    for expected in [false, false, true, false] {
        let sent = b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(b.pump(), expected);
        assert_eq!(b.driver.take_used(), [(sent.head, 1)]);
    }
    // A batch that steps over it counts once.
    b.driver.set_used_event(5);
    for _ in 0..4 {
        b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]);
    }
    assert!(b.pump());
    assert_eq!(b.driver.take_used().len(), 4);
}

#[test]
fn positions_and_rings_wrap_around() {
    let mut b = bench();
    // Free-running indices begin just before they wrap.
    b.driver.jump(u16::MAX - 1);
    use virtio_queue::QueueT;
    b.ring.set_next_avail(u16::MAX - 1);
    b.ring.set_next_used(0);
    for _ in 0..4 {
        let sent = b.driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(b.answer(sent), (OK, 1));
    }
}

#[test]
fn features_and_configuration_tell_what_the_disk_is() {
    let limits = LimitOptions {
        logical_block_size: Some(4096),
        physical_block_size: Some(16384),
        unit_max: Some(65536),
        ..LimitOptions::default()
    };
    let device = device_with(&MemStore::new(SECTORS), 4, limits);
    let bits = device.features();
    for bit in [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
    ] {
        assert_ne!(bits & (1 << bit), 0, "bit {bit}");
    }
    for bit in [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SECURE_ERASE] {
        assert_eq!(bits & (1 << bit), 0, "bit {bit}");
    }

    let config = device.config(0, CONFIG_BYTES as u32);
    macro_rules! get {
        ($field:ident, $type:ty) => {{
            let at = offset_of!(virtio_blk_config, $field);
            <$type>::from_le_bytes(config[at..at + size_of::<$type>()].try_into().unwrap())
        }};
    }
    assert_eq!(get!(capacity, u64), SECTORS);
    assert_eq!(get!(size_max, u32), 0);
    assert_eq!(get!(seg_max, u32), 254);
    assert_eq!(get!(blk_size, u32), 4096);
    assert_eq!(get!(physical_block_exp, u8), 2);
    assert_eq!(get!(min_io_size, u16), 4);
    assert_eq!(get!(wce, u8), 1);
    assert_eq!(get!(num_queues, u16), 4);
    assert_eq!(get!(max_discard_seg, u32), DISCARD_MAX_SEGMENTS);
    assert_eq!(get!(discard_sector_alignment, u32), 8);
    assert_eq!(get!(write_zeroes_may_unmap, u8), 1);
    // unit_max 64k = 512 << 7, unit_min 4k = 512 << 3; at the byte that QEMU lets through.
    assert_eq!(offset_of!(virtio_blk_config, unused), 33);
    assert_eq!(config[33], (8 << 4) | 3);
    let plain = device_with(&MemStore::new(SECTORS), 1, LimitOptions::default());
    assert_eq!(plain.config(33, 1), [0]);
    assert_eq!(plain.features() & (1 << VIRTIO_BLK_F_ATOMIC), 0);

    // The limits once more, with room for all of them, behind all that VIRTIO has.
    assert_ne!(bits & (1 << VIRTIO_BLK_F_ATOMIC), 0);
    assert_eq!((VIRTIO_BLK_F_ATOMIC, CONFIG_BYTES, ATOMIC_CONFIG_BYTES), (56, 96, 112));

    // Exactly as many bytes as were asked for.
    assert_eq!(device.config(0, 8), config[..8]);
    assert_eq!(device.config(20, 4), config[20..24]);
    let beyond = plain.config(CONFIG_BYTES as u32 - 2, 10);
    assert_eq!(beyond[..2], plain.config(CONFIG_BYTES as u32 - 2, 2));
    assert_eq!(beyond[2..], [0; 8]);
    assert_eq!(device.config(u32::MAX, 4), [0; 4]);
}

#[test]
fn the_limits_of_atomic_writes_follow_the_configuration() {
    let sized = |unit_min, unit_max, max_bytes, boundary| LimitOptions {
        unit_min: Some(unit_min),
        unit_max: Some(unit_max),
        max_bytes: Some(max_bytes),
        boundary: Some(boundary),
        ..LimitOptions::default()
    };
    let device = device_with(&MemStore::new(SECTORS), 1, sized(4096, 32768, 49152, 1 << 31));
    let config = device.config(0, ATOMIC_CONFIG_BYTES as u32);
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!([96, 100, 104, 108].map(field), [4096, 32768, 49152, 1 << 31]);
    assert_eq!(device.config(100, 8), config[100..108], "as many as were asked for");
    assert_eq!(device.config(110, 8)[2..], [0; 6], "0 beyond the end");
    // The driver may say that it read them; and need not.
    device.negotiated(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_ATOMIC);
    device.negotiated(1 << VIRTIO_F_VERSION_1);
    // They cannot be written.
    device.set_config(96, &[0xff; 16]);
    assert_eq!(device.config(0, ATOMIC_CONFIG_BYTES as u32), config);

    // What virtio-blk cannot keep is not told: no request says that it is atomic.
    let explicit =
        LimitOptions { mode: Some(AtomicMode::Explicit), ..sized(512, 4096, 4096, 4096) };
    let piece =
        LimitOptions { profile: Some("piece16k".parse().unwrap()), ..LimitOptions::default() };
    for limits in [LimitOptions::default(), explicit, piece] {
        let device = device_with(&MemStore::new(SECTORS), 1, limits.clone());
        assert_eq!(device.features() & (1 << VIRTIO_BLK_F_ATOMIC), 0, "{limits:?}");
        assert_eq!(device.config(96, 16), [0; 16], "{limits:?}");
        assert_eq!(device.config(33, 1), [0], "{limits:?}");
    }
}

#[test]
fn the_cache_mode_is_negotiated_and_switched() {
    let store = MemStore::new(SECTORS);
    let device = crate::common::device(&store);
    let (flush, wce) = (1u64 << VIRTIO_BLK_F_FLUSH, 1u64 << VIRTIO_BLK_F_CONFIG_WCE);
    let said = |flush, config_wce, writeback| {
        Told::Negotiated(Negotiation { flush_offered: true, flush, config_wce, writeback })
    };
    let at = offset_of!(virtio_blk_config, wce) as u32;

    device.negotiated(flush | wce);
    assert_eq!(store.take_told(), [said(true, true, true)]);
    // Said again, as front-ends do: nothing new.
    device.negotiated(flush | wce);
    device.set_config(at, &[1]);
    assert_eq!(store.take_told(), []);

    device.set_config(at, &[0]);
    assert_eq!(store.take_told(), [Told::Writeback(false)]);
    assert_eq!(device.config(at, 1), [0]);
    // In the middle of a longer write; then things that are not understood.
    device.set_config(at - 2, &[7, 7, 1, 7]);
    assert_eq!(store.take_told(), [Told::Writeback(true)]);
    device.set_config(at, &[2]);
    device.set_config(at + 1, &[0]);
    device.set_config(0, &[0; 8]);
    device.set_config(u32::MAX, &[0]);
    device.set_config(at, &[]);
    assert_eq!(store.take_told(), []);
    assert_eq!(device.config(at, 1), [1]);

    device.negotiated(0);
    assert_eq!(store.take_told(), [said(false, false, true)]);
    device.negotiated(flush);
    assert_eq!(store.take_told(), [said(true, false, true)]);
    // CONFIG_WCE without FLUSH begins with writeback 0.
    device.negotiated(wce);
    assert_eq!(store.take_told(), [said(false, true, false)]);
    assert_eq!(device.config(at, 1), [0]);
}

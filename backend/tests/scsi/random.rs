//! Whatever a driver puts into its rings, its memory and its CDBs: the disk does not panic, writes
//! only into writable buffers and the used ring, and answers each chain once.

use crate::common::driver::{WRITE, descriptor};
use crate::common::random::{EACH, Piece, config, piece};
use crate::common::scsi::{DISK, REQUEST, RESPONSE, header};
use crate::common::scsi_of;
use crate::common::store::MemStore;
use crate::common::touched::{everything, outside, writable};
use crate::{Bench, END, FIRST, LimitOptions, SEAM, memory};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tornblk_backend::device::scsi::Lun;
use tornblk_backend::store::Op;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 64;
const TABLE: u16 = 256;
/// Where buffers and headers lie: across the seam of two regions.
const AREA: Range<u64> = SEAM - 0x1000..SEAM + 0x1000;
/// Where indirect tables lie: no other descriptor points there, so they stay as they are.
const TABLES: Range<u64> = 0xe_0000..0xe_0400;

/// Every operation code that is known, and some that are not.
const CODES: [u8; 34] = [
    0x28, 0x2a, 0x9c, 0x35, 0x88, 0x8a, 0x91, 0xa8, 0xaa, 0x42, 0x41, 0x93, 0x00, 0x03, 0x12, 0x15,
    0x1a, 0x1b, 0x1e, 0x25, 0x55, 0x5a, 0x9e, 0xa0, 0xa3, 0x08, 0x0a, 0x89, 0x5e, 0x7f, 0x93, 0x9c,
    0x42, 0x15,
];

/// Which way a command's data go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    In,
    Out,
    None,
}

fn data_of(code: u8) -> Data {
    match code {
        0x28 | 0x88 | 0xa8 | 0x08 | 0x12 | 0x1a | 0x5a | 0x25 | 0x9e | 0xa0 | 0xa3 | 0x03 => {
            Data::In
        }
        0x2a | 0x8a | 0xaa | 0x0a | 0x9c | 0x41 | 0x93 | 0x15 | 0x55 | 0x42 => Data::Out,
        _ => Data::None,
    }
}

/// A CDB that often makes sense: small numbers where numbers are, few flags.
fn cdb() -> impl Strategy<Value = [u8; 32]> {
    let code = prop_oneof![30 => proptest::sample::select(&CODES[..]), 1 => any::<u8>()];
    let flags = prop_oneof![
        16 => Just(0u8),
        4 => proptest::sample::select(&[0x01u8, 0x08, 0x09, 0x10, 0x0c, 0x0d, 0x11, 0x18][..]),
        1 => any::<u8>(),
    ];
    let number = || prop_oneof![6 => 0u32..12, 2 => 0..SECTORS as u32 + 2, 1 => any::<u32>()];
    let noise = prop_oneof![3 => Just(None), 1 => (0usize..16, any::<u8>()).prop_map(Some)];
    (code, flags, number(), number(), any::<u8>(), noise).prop_map(
        |(code, flags, lba, blocks, byte, noise)| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[1]) = (code, flags);
            match code >> 5 {
                0 => (cdb[2], cdb[3], cdb[4]) = (lba as u8, 0, blocks as u8),
                1 | 2 => {
                    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
                    cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
                }
                4 => {
                    cdb[6..10].copy_from_slice(&lba.to_be_bytes());
                    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
                }
                _ => {
                    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
                    cdb[6..10].copy_from_slice(&blocks.to_be_bytes());
                }
            }
            match code {
                _ if byte < 32 => {}
                0x00 | 0x03 | 0x1b | 0x1e | 0x25 => {
                    cdb[1..].fill(0);
                    cdb[4] = match code {
                        0x03 => 18,
                        0x1b => byte & 5,
                        0x1e => byte & 3,
                        _ => 0,
                    };
                }
                0x9e => {
                    cdb[1..].fill(0);
                    (cdb[1], cdb[13]) = (0x10, byte);
                }
                0xa3 => {
                    cdb[1] = 0x0c + (byte & 1);
                    cdb[2] = [0, 1, 2, 3, 0x80, 0x83][usize::from(byte / 2) % 6];
                    (cdb[3], cdb[4], cdb[5]) = (CODES[usize::from(byte) % CODES.len()], 0, 0);
                    cdb[6..].fill(0);
                    cdb[8] = 2;
                }
                0xa0 => {
                    cdb[1..].fill(0);
                    (cdb[2], cdb[9]) = (byte % 3, byte);
                }
                0x08 | 0x0a => (cdb[1], cdb[2], cdb[3]) = (0, 0, lba as u8),
                // Without a boundary, mostly.
                0x9c if byte & 3 != 0 => {
                    cdb[10..12].fill(0);
                    (cdb[12], cdb[13]) = (0, blocks as u8 & 15);
                }
                0x12 | 0x1a | 0x5a if byte & 1 == 0 => {
                    let pages = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2, 0x08, 0x0a, 0x3f, 0x48];
                    cdb[2] = pages[usize::from(byte) / 2 % pages.len()];
                    cdb[1] = if code == 0x12 { 1 } else { flags & 8 };
                    cdb[4..].fill(0);
                    cdb[3] = 0;
                    cdb[if code == 0x5a { 8 } else { 4 }] = 255;
                }
                // Parameter lists.
                0x15 | 0x55 | 0x42 if byte & 1 == 0 => {
                    cdb[2..].fill(0);
                    cdb[1] = if code == 0x42 { 0 } else { 0x10 };
                    cdb[if code == 0x15 { 4 } else { 8 }] = byte;
                }
                _ => {}
            }
            if let Some((at, value)) = noise {
                cdb[at] = value;
            }
            cdb
        },
    )
}

/// What a command gives: anything, zeroes, or something like a parameter list.
fn given() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(Vec::new()),
        2 => vec(any::<u8>(), 1..700),
        2 => (1usize..9000).prop_map(|len| vec![0; len]),
        1 => (0u8..3, any::<bool>(), 0usize..64).prop_map(|(head, wce, cut)| {
            let mut list = vec![0; [4, 8, 12][usize::from(head)]];
            if head == 2 {
                list[3] = 8;
                list[7] = SECTORS as u8;
                list[10] = 2;
            }
            list.extend([8, 18, u8::from(wce) << 2]);
            list.extend([0; 17]);
            list.truncate(list.len().saturating_sub(cut.saturating_sub(50)));
            list
        }),
        1 => vec((0u64..70, 0u32..8), 0..36).prop_map(|all| {
            let mut list = vec![0; 8];
            for (lba, blocks) in all {
                list.extend(lba.to_be_bytes());
                list.extend(blocks.to_be_bytes());
                list.extend([0; 4]);
            }
            let len = list.len() as u16 - 8;
            list[2..4].copy_from_slice(&len.to_be_bytes());
            list
        }),
    ]
}

fn lun() -> impl Strategy<Value = [u8; 8]> {
    let others: [[u8; 8]; 5] = [
        [1, 0, 0x40, 0, 0, 0, 0, 0],
        [1, 0, 0, 2, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0xc1, 1, 0, 0, 0, 0, 0, 0],
        [0; 8],
    ];
    let second = [1, 0, 0, 1, 0, 0, 0, 0];
    prop_oneof![20 => Just(DISK), 2 => Just(second), 2 => proptest::sample::select(others.to_vec()), 1 => any::<[u8; 8]>()]
}

#[derive(Clone, Debug)]
struct Asked {
    lun: [u8; 8],
    cdb: [u8; 32],
    out: Vec<u8>,
    room: u32,
}

fn asked() -> impl Strategy<Value = Asked> {
    let room = prop_oneof![4 => Just(0u32), 2 => 1u32..300, 2 => 0u32..9000];
    (lun(), cdb(), given(), room, 0u8..8).prop_map(|(lun, mut cdb, mut out, mut room, wild)| {
        // Mostly as a driver does it: data in the right direction, and enough of them.
        if wild > 0 {
            let data = data_of(cdb[0]);
            if data != Data::Out {
                out.clear();
            } else if matches!(cdb[0], 0x15 | 0x42 | 0x55) {
                out.resize(out.len().max(cdb[4].max(cdb[8]).into()), 0);
            } else {
                out.resize(8192, wild & 1);
            }
            room = if data == Data::In { room.max(8192) } else { 0 };
            if wild > 3 && matches!(cdb[0], 0x15 | 0x55) {
                // The write cache on or off.
                let head = if cdb[0] == 0x15 { 4 } else { 8 };
                out = vec![0; head];
                out.extend([8, 18, (wild & 1) << 2]);
                out.resize(head + 20, 0);
                cdb[1..].fill(0);
                (cdb[1], cdb[head]) = (0x10, out.len() as u8);
            }
        }
        Asked { lun, cdb, out, room }
    })
}

/// Disks: a profile, whether it can be written, and whether there are two.
fn disk() -> impl Strategy<Value = (Option<&'static str>, bool, bool)> {
    let profiles = [None, Some("req4k"), Some("explicit4k"), Some("explicit4k+b4k"), Some("lb512")];
    let read_only = prop_oneof![7 => Just(false), 1 => Just(true)];
    (proptest::sample::select(profiles.to_vec()), read_only, any::<bool>())
}

/// Where the second of two begins.
const MIDDLE: u64 = 24 * 512;

fn bench((profile, read_only, two): (Option<&str>, bool, bool), event_idx: bool) -> Bench {
    let store = if read_only { MemStore::read_only(SECTORS) } else { MemStore::new(SECTORS) };
    let profile = profile.map(|name| name.parse().unwrap());
    let lun = |name: &str, bytes| Lun { name: name.to_owned(), bytes };
    let luns = [lun("a", MIDDLE), lun("b", SECTORS * 512 - MIDDLE)];
    let luns = if two { luns.to_vec() } else { Vec::new() };
    let limits = LimitOptions { profile, ..LimitOptions::default() };
    let device = scsi_of(&store, 1, limits, luns);
    Bench::with(store, device, memory(), 0x1000, FIRST, event_idx)
}

/// Everything that reached the store lies on the disk.
fn on_the_disk(ops: &[Op]) -> bool {
    ops.iter().all(|op| match op {
        Op::Read { offset } | Op::Write { offset, .. } => *offset < SECTORS * 512,
        Op::Flush { offset, len } => {
            [(0, 0), (0, MIDDLE), (MIDDLE, SECTORS * 512 - MIDDLE)].contains(&(*offset, *len))
        }
        Op::Discard { segments } | Op::WriteZeroes { segments } => segments
            .iter()
            .all(|s| s.len > 0 && s.offset.checked_add(s.len).is_some_and(|e| e <= SECTORS * 512)),
    })
}

/// Bytes on either side of a buffer, which nobody may touch.
const GUARD: usize = 64;
const GUARDED: u8 = 0x5c;

static ASKED: AtomicU64 = AtomicU64::new(0);
static GOOD: AtomicU64 = AtomicU64::new(0);

#[test]
fn no_command_breaks_the_disk_or_touches_a_byte_outside_its_buffers() {
    random_commands();
    // What is mostly refused at once would try nothing.
    let (asked, good) = (ASKED.load(Ordering::Relaxed), GOOD.load(Ordering::Relaxed));
    assert!(4 * good > asked, "{good} of {asked} commands were carried out");
}

proptest! {
    #![proptest_config(config())]

    fn random_commands(
        disk in disk(),
        all in vec(asked(), EACH as usize..12),
        stalled in any::<bool>(),
        cut in proptest::option::of(1u32..300),
    ) {
        let mut b = bench(disk, false);
        if stalled {
            b.store.stall();
        }
        let mut sent = HashMap::new();
        let mut guards = Vec::new();
        for (tag, asked) in (0..).zip(&all) {
            let mut fenced = |bytes: &[u8]| {
                let fence = [GUARDED; GUARD];
                let at = b.driver.place(&[&fence[..], bytes, &fence].concat());
                guards.push(at);
                guards.push(at + (GUARD + bytes.len()) as u64);
                at + GUARD as u64
            };
            let head = fenced(&header(asked.lun, tag, &asked.cdb));
            let out = fenced(&asked.out);
            let response = fenced(&[0xee; RESPONSE as usize]);
            let data = fenced(&vec![0xee; asked.room as usize]);
            // Sometimes the data are in two pieces.
            let pieces = |at: u64, len: u32, flags: u16| {
                let cut = cut.filter(|cut| *cut < len).unwrap_or(len);
                let all = [(at, cut, flags), (at + u64::from(cut), len - cut, flags)];
                all.into_iter().filter(|piece| piece.1 > 0)
            };
            let mut parts = vec![(head, REQUEST, 0)];
            parts.extend(pieces(out, asked.out.len() as u32, 0));
            parts.push((response, RESPONSE, WRITE));
            parts.extend(pieces(data, asked.room, WRITE));
            let head = b.driver.chain(&parts);
            b.driver.offer(head);
            sent.insert(head, (asked, out, response, data));
        }
        let _ = b.pump();
        b.store.release();
        let _ = b.pump();
        prop_assert_eq!(b.queue.in_flight(), 0);
        ASKED.fetch_add(all.len() as u64, Ordering::Relaxed);

        for (head, len) in b.driver.take_used() {
            let (asked, out, response, data) = sent.remove(&head).expect("answered twice");
            let bytes = b.driver.bytes(response, RESPONSE as usize);
            let sense_len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let residual = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            prop_assert!(bytes[11] <= 9 && matches!(bytes[10], 0 | 2), "{:?}", asked);
            prop_assert_eq!(sense_len, if bytes[10] == 2 { 18 } else { 0 });
            let both = !asked.out.is_empty() && asked.room > 0;
            GOOD.fetch_add(u64::from(bytes[10] == 0 && bytes[11] == 0), Ordering::Relaxed);
            let room = asked.room + asked.out.len() as u32;
            prop_assert!(residual == 0 || !both && residual <= room);
            let given = len - RESPONSE;
            prop_assert!(given <= asked.room);
            // Beyond what it says to have written, it wrote nothing; what was given stays.
            let rest = b.driver.bytes(data + u64::from(given), (asked.room - given) as usize);
            prop_assert!(rest.iter().all(|byte| *byte == 0xee), "{:?}", asked);
            prop_assert_eq!(&b.driver.bytes(out, asked.out.len()), &asked.out);
        }
        prop_assert!(sent.is_empty(), "never answered: {:?}", sent.keys());
        for at in guards {
            prop_assert_eq!(b.driver.bytes(at, GUARD), [GUARDED; GUARD]);
        }
        prop_assert!(on_the_disk(&b.store.take_ops()));
    }
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => AREA,
        2 => (0u64..128).prop_map(|i| AREA.start + 64 * i),
        1 => END - 600..END + 8,
        1 => any::<u64>(),
        1 => u64::MAX - 600..=u64::MAX,
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(REQUEST),
        4 => Just(RESPONSE),
        3 => Just(512),
        1 => Just(620),
        1 => 0u32..200,
        1 => any::<u32>(),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    pieces: Vec<Piece>,
    /// What fills the indirect tables.
    entries: Vec<Piece>,
    /// What fills the area, at every 64 bytes.
    headers: Vec<([u8; 8], [u8; 32])>,
    heads: Vec<u16>,
    event_idx: bool,
    stalled: bool,
}

fn case() -> impl Strategy<Value = Case> {
    (
        vec(piece(addr(), len(), TABLES), 32),
        vec(piece(addr(), len(), TABLES), 64),
        vec((lun(), cdb()), 16),
        vec(prop_oneof![12 => 0u16..32, 1 => any::<u16>()], EACH as usize..24),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(pieces, entries, headers, heads, event_idx, stalled)| Case {
            pieces,
            entries,
            headers,
            heads,
            event_idx,
            stalled,
        })
}

/// Runs a case on `b`'s rings with `pump`, and gives the heads that came back.
fn run(
    b: &mut Bench,
    case: &Case,
    request: impl Fn([u8; 8], u64, &[u8; 32]) -> Vec<u8>,
    mut pump: impl FnMut(&mut Bench),
) -> Result<(), TestCaseError> {
    for (i, at) in AREA.step_by(64).enumerate() {
        let (lun, cdb) = case.headers[i % case.headers.len()];
        b.driver.mem.write_slice(&request(lun, i as u64, &cdb), GuestAddress(at)).unwrap();
    }
    for (p, at) in case.entries.iter().zip(TABLES.step_by(16)) {
        let entry = descriptor(p.addr, p.len, p.flags, p.next % 8);
        b.driver.mem.write_obj(entry, GuestAddress(at)).unwrap();
    }
    for (i, p) in (0..).zip(&case.pieces) {
        b.driver.put(i, descriptor(p.addr, p.len, p.flags, p.next));
    }
    if case.stalled {
        b.store.stall();
    }
    for &head in &case.heads {
        b.driver.offer(head);
    }
    let before = everything(&b.driver.mem, END);
    let may_change = writable(&b.driver, &before, TABLES);
    pump(b);
    b.store.release();
    pump(b);

    let mut returned: HashMap<u16, usize> = HashMap::new();
    for (head, _) in b.driver.take_used() {
        *returned.entry(head).or_default() += 1;
    }
    let mut offered: HashMap<u16, usize> = HashMap::new();
    for &head in case.heads.iter().filter(|&&head| head < TABLE) {
        *offered.entry(head).or_default() += 1;
    }
    prop_assert_eq!(returned, offered);
    let after = everything(&b.driver.mem, END);
    prop_assert_eq!(outside(&before, &after, &may_change), None);
    Ok(())
}

/// A task management function or a notification request, mostly.
fn function(lun: [u8; 8], tag: u64, cdb: &[u8; 32]) -> Vec<u8> {
    let kind = [0, 0, 0, 0, 0, 1, 2, u32::from(cdb[6])][usize::from(cdb[0] % 8)];
    let mut bytes = kind.to_le_bytes().to_vec();
    if kind == 0 {
        bytes.extend(u32::from(cdb[9] % 9).to_le_bytes());
    }
    bytes.extend(lun);
    bytes.extend(tag.to_le_bytes());
    bytes.resize(REQUEST as usize, 0);
    bytes
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_a_driver_does_breaks_a_request_queue(case in case(), disk in disk()) {
        let mut b = bench(disk, case.event_idx);
        run(&mut b, &case, |lun, tag, cdb| header(lun, tag, cdb), |b| { let _ = b.pump(); })?;
        prop_assert_eq!(b.queue.in_flight(), 0);
        prop_assert!(on_the_disk(&b.store.take_ops()));
    }

    #[test]
    fn nothing_that_a_driver_does_breaks_the_control_queue(case in case(), disk in disk()) {
        let mut b = bench(disk, case.event_idx);
        let mut control = b.device.control_queue();
        run(&mut b, &case, function, |b| {
            let mem: Arc<_> = b.driver.mem.clone();
            for _ in 0..2 {
                let _ = control.pump(&mut b.ring, &mem, true);
                // The request queue does what was ordered; its own ring is another one.
                let mut elsewhere = virtio_queue::QueueT::new(256).unwrap();
                let _ = b.queue.pump(&mut elsewhere, &mem, false);
            }
        })?;
        prop_assert_eq!(control.in_flight(), 0);
        prop_assert!(b.store.take_ops().is_empty());
    }
}

//! Command blocks and task management functions of virtio-scsi, in chains on real rings, over real
//! stores.
//!
//! Promised is what [`crate::chains`] tells, and: a response says no more than it may (a status, a
//! service response, as many sense bytes as there are, a residual count that fits), and beyond what
//! a command says to have given it wrote nothing.

use crate::bench::Bench;
use crate::common::driver::WRITE;
use crate::common::scsi::{CANARY, DISK, REQUEST, RESPONSE, header};
use crate::dish::Dish;
use crate::guest::AREA;
use crate::reach::{Count, Reached};
use crate::store::{self, Disks, Kind};
use std::collections::HashMap;
use std::sync::Arc;
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{FRONT_END_SEG_MAX, Lun, Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd};
use tornblk_backend::store::Store;
use vm_memory::{Bytes, GuestAddress};

static ASKED: Count = Count::new("commands answered");
static GOOD: Count = Count::new("commands that ended with GOOD");
static CHECKED: Count = Count::new("commands that ended with CHECK CONDITION");
static ATOMIC: Count = Count::new("atomic writes that ended with GOOD");
static TOLD: Count = Count::new("commands that gave data other than the disk's");
static MANAGED: Count = Count::new("functions answered");

pub(crate) fn reached() -> Vec<Reached> {
    let store = [&store::READS, &store::WRITES, &store::FLUSHES, &store::CUTS];
    let own = [&ASKED, &GOOD, &CHECKED, &ATOMIC, &TOLD, &MANAGED];
    own.into_iter().chain(store).map(Count::get).collect()
}

/// Steps in a case.
const STEPS: usize = 64;

/// Every operation code that is known, and some that are not.
const CODES: [u8; 30] = [
    0x28, 0x2a, 0x9c, 0x35, 0x88, 0x8a, 0x91, 0xa8, 0xaa, 0x42, 0x41, 0x93, 0x00, 0x03, 0x12, 0x15,
    0x1a, 0x1b, 0x1e, 0x25, 0x55, 0x5a, 0x9e, 0xa0, 0xa3, 0x08, 0x0a, 0x89, 0x5e, 0x7f,
];

const PROFILES: [Option<&str>; 4] =
    [None, Some("req4k"), Some("explicit4k"), Some("explicit4k+b4k")];

/// A command that is out.
struct Sent {
    code: u8,
    response: u64,
    data: u64,
    room: u32,
    out: Vec<u8>,
    out_at: u64,
}

pub(crate) fn run(data: &[u8]) {
    let mut dish = Dish::new(data);
    let setup = dish.byte();
    let kind = Kind::of(setup);
    let limits = Limits::new(&LimitOptions {
        logical_block_size: Some(kind.lb_size.into()),
        profile: PROFILES[usize::from(setup >> 4 & 3)].map(|name| name.parse().unwrap()),
        seg_max: FRONT_END_SEG_MAX,
        front_end: FrontEnd::Scsi,
        ..LimitOptions::default()
    })
    .unwrap();
    let disks = Disks::new(kind, &limits.profile);
    let half = |name: &str| Lun { name: name.to_owned(), bytes: disks.store.disk().capacity / 2 };
    let luns = if setup & 6 == 4 { vec![half("a"), half("b")] } else { Vec::new() };
    let device = Scsi::new(ScsiOptions {
        store: disks.store.clone(),
        luns,
        limits,
        request_queues: 1,
        queue_size: 256,
        writeback: setup & 64 == 0,
        id: Box::new(|| *b"serial-of-20-letters"),
    });
    let device: Arc<dyn Device> = device;
    let mut control = Bench::new(&device, 0, 64, false);
    let mut bench = Bench::new(&device, 2, 256, setup & 128 != 0);
    let mut sent = HashMap::new();
    for _ in 0..STEPS {
        if dish.is_empty() {
            break;
        }
        match dish.below(16) {
            0..=8 => command(&mut bench, &mut sent, &mut dish),
            9 => function(&mut control, &mut dish),
            10 => {
                control.pump(true);
                bench.pump(false);
                control.pump(false);
            }
            11 => bench.pump(true),
            12 => bench.put_anything(&mut dish),
            13 => {
                let at = AREA.start + u64::from(dish.u16() & 0x1ff0);
                let bytes = header(lun(&mut dish), dish.u64(), &cdb(&mut dish));
                bench.guest.mem().write_slice(&bytes, GuestAddress(at)).unwrap();
                bench.offer_anything(dish.byte().into());
            }
            14 => match dish.below(4) {
                0 => disks.gate.stall(false),
                1 => disks.gate.stall(true),
                2 => disks.gate.release(),
                _ => bench.drain(),
            },
            _ => match dish.below(4) {
                0 => device.negotiated(device.features() & dish.u64()),
                1 => control.put_anything(&mut dish),
                2 => control.offer_anything(dish.byte().into()),
                _ => bench.misbehave(&mut dish),
            },
        }
        answered(&mut bench, &mut sent);
    }
    disks.gate.release();
    bench.end();
    answered(&mut bench, &mut sent);
    control.end();
    MANAGED.add(control.back().len() as u64);
    drop((bench, control));
    drop(device);
    disks.end();
}

/// A CDB that often makes sense: small numbers where numbers are, few flags.
fn cdb(dish: &mut Dish<'_>) -> [u8; 32] {
    let mut cdb = [0; 32];
    let code = match dish.byte() {
        n @ 0..=239 => CODES[usize::from(n) % CODES.len()],
        _ => dish.byte(),
    };
    cdb[0] = code;
    let (lba, blocks) = match dish.below(8) {
        7 => (dish.number(), dish.number() as u32),
        n => (u64::from(dish.byte()) % 130, u32::from(n)),
    };
    match code {
        0x88 | 0x8a | 0x91 | 0x89 | 0x93 | 0x9c | 0x9e => {
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        }
        0x28 | 0x2a | 0x35 | 0x41 => {
            cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
        }
        0xa8 | 0xaa => {
            cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            cdb[6..10].copy_from_slice(&blocks.to_be_bytes());
        }
        0x08 | 0x0a => (cdb[3], cdb[4]) = (lba as u8, blocks as u8),
        0x12 | 0x1a | 0x5a | 0x03 => {
            let pages = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2, 0x08, 0x0a, 0x3f, 0x48];
            (cdb[1], cdb[2]) = (dish.byte() & 9, dish.pick(&pages));
            cdb[if code == 0x5a { 8 } else { 4 }] = dish.byte();
        }
        0xa3 => {
            (cdb[1], cdb[2], cdb[3], cdb[8]) =
                (12 + dish.below(2), dish.byte() & 0x83, dish.pick(&CODES), 2)
        }
        0xa0 => (cdb[2], cdb[8], cdb[9]) = (dish.below(3), dish.below(2), dish.byte()),
        // Parameter lists.
        0x15 | 0x55 | 0x42 => {
            cdb[1] = if code == 0x42 { 0 } else { dish.byte() & 0x11 };
            cdb[if code == 0x15 { 4 } else { 8 }] = dish.byte();
        }
        _ => {}
    }
    if code == 0x9e {
        (cdb[1], cdb[13]) = (0x10, 32);
    }
    // Sometimes something is wrong with it.
    for _ in 0..dish.byte().saturating_sub(200) % 4 {
        let at = usize::from(dish.byte() % 32);
        cdb[at] = dish.byte();
    }
    cdb
}

fn lun(dish: &mut Dish<'_>) -> [u8; 8] {
    match dish.byte() {
        0..=210 => DISK,
        211..=220 => [1, 0, 0, 1, 0, 0, 0, 0],
        221..=230 => [1, 0, 0x40, 0, 0, 0, 0, 0],
        231..=240 => [0xc1, 1, 0, 0, 0, 0, 0, 0],
        _ => dish.u64().to_le_bytes(),
    }
}

/// A command in a chain that makes sense.
fn command(bench: &mut Bench, sent: &mut HashMap<u16, Sent>, dish: &mut Dish<'_>) {
    let (lun, cdb, tag, shape) = (lun(dish), cdb(dish), dish.byte().into(), dish.byte());
    let mut room = 0;
    let mut out = Vec::new();
    match cdb[0] {
        0x28 | 0x88 | 0xa8 | 0x08 => room = 4096 * u32::from(dish.below(8)),
        0x12 | 0x1a | 0x5a | 0x25 | 0x9e | 0xa0 | 0xa3 | 0x03 => room = dish.byte().into(),
        0x2a | 0x8a | 0xaa | 0x0a | 0x9c | 0x41 | 0x93 => {
            out = vec![dish.byte(); 4096 * usize::from(dish.below(8))];
        }
        0x15 | 0x55 => out = mode(dish, cdb[0] == 0x55),
        0x42 => out = unmap(dish),
        _ => {}
    }
    match shape & 15 {
        0 => room = dish.byte().into(),
        1 => out = dish.bytes(usize::from(dish_len(shape))).to_vec(),
        2 => (room, out) = (100, vec![1; 100]),
        _ => {}
    }
    if !bench.room(12, (REQUEST + RESPONSE + room) as usize + out.len()) {
        return;
    }
    let head_at = bench.place(&header(lun, tag, &cdb));
    let out_at = bench.place(&out);
    let response = bench.place(&[CANARY; RESPONSE as usize]);
    let data = bench.place(&vec![CANARY; room as usize]);
    let cut = u32::from(shape >> 6) * 100;
    let mut parts = vec![(head_at, REQUEST, 0)];
    let mut piece = |at: u64, len: u32, flags: u16| {
        let cut = cut.min(len);
        let all = [(at, cut, flags), (at + u64::from(cut), len - cut, flags)];
        parts.extend(all.into_iter().filter(|piece| piece.1 > 0));
    };
    piece(out_at, out.len() as u32, 0);
    piece(response, RESPONSE, WRITE);
    piece(data, room, WRITE);
    let head = bench.chain(&parts, shape & 16 != 0);
    if bench.offer(head) {
        sent.insert(head, Sent { code: cdb[0], response, data, room, out, out_at });
    }
    if shape & 32 != 0 {
        bench.pump(true);
    }
}

fn dish_len(shape: u8) -> u8 {
    shape >> 4
}

/// The parameter list of a MODE SELECT.
fn mode(dish: &mut Dish<'_>, long: bool) -> Vec<u8> {
    let mut list = vec![0; if long { 8 } else { 4 }];
    list.extend([dish.pick(&[8, 10, 63]), dish.pick(&[18, 10]), dish.byte() & 4]);
    list.resize(list.len() + usize::from(dish.pick(&[17u8, 9, 0, 3])), 0);
    if dish.flag() {
        let (at, value) = (usize::from(dish.byte()) % list.len(), dish.byte());
        list[at] = value;
    }
    list
}

/// That of an UNMAP.
fn unmap(dish: &mut Dish<'_>) -> Vec<u8> {
    let mut list = vec![0; 8];
    for _ in 0..dish.below(5) {
        list.extend(dish.number().to_be_bytes());
        list.extend((dish.number() as u32).to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16;
    let said = if dish.flag() { dish.u16() } else { len - 8 };
    list[..2].copy_from_slice(&(len - 2).to_be_bytes());
    list[2..4].copy_from_slice(&said.to_be_bytes());
    list
}

/// A task management function or a notification request, mostly.
fn function(bench: &mut Bench, dish: &mut Dish<'_>) {
    let kind = match dish.below(8) {
        0..=5 => 0,
        6 => u32::from(1 + dish.below(2)),
        _ => dish.u32(),
    };
    let mut bytes = kind.to_le_bytes().to_vec();
    if kind == 0 {
        bytes.extend(u32::from(dish.below(9)).to_le_bytes());
    }
    bytes.extend(lun(dish));
    bytes.extend(u64::from(dish.byte()).to_le_bytes());
    let room = u32::from(dish.pick(&[1u8, 1, 5, 9, 0]));
    if dish.byte() > 220 {
        bytes.truncate(usize::from(dish.byte()));
    }
    if bytes.is_empty() || !bench.room(2, bytes.len() + room as usize) {
        return;
    }
    let at = bench.place(&bytes);
    let response = bench.place(&vec![CANARY; room as usize]);
    let mut parts = vec![(at, bytes.len() as u32, 0)];
    if room > 0 {
        parts.push((response, room, WRITE));
    }
    let head = bench.chain(&parts, false);
    bench.offer(head);
}

/// Looks at the responses that came.
fn answered(bench: &mut Bench, sent: &mut HashMap<u16, Sent>) {
    for (head, len) in bench.back() {
        let Some(Sent { code, response, data, room, out, out_at }) = sent.remove(&head) else {
            continue;
        };
        // Descriptors may have been changed meanwhile, by whoever puts anything there.
        if bench.changed() {
            continue;
        }
        ASKED.one();
        let bytes = bench.driver.bytes(response, RESPONSE as usize);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (sense, residual, status, service) = (word(0), word(4), bytes[10], bytes[11]);
        assert!(service <= 9 && matches!(status, 0 | 2), "service {service}, status {status}");
        assert_eq!(sense, if status == 2 { 18 } else { 0 }, "bytes of sense");
        assert!(residual <= room + out.len() as u32, "{residual} bytes left of {room}");
        let given = len.checked_sub(RESPONSE).unwrap();
        assert!(given <= room, "{given} bytes given of {room}");
        let rest = bench.driver.bytes(data + u64::from(given), (room - given) as usize);
        assert!(rest.iter().all(|byte| *byte == CANARY), "more than it says was given");
        assert_eq!(bench.driver.bytes(out_at, out.len()), out, "what was given has changed");
        match (service, status) {
            (0, 0) => {
                GOOD.one();
                ATOMIC.add(u64::from(code == 0x9c));
                TOLD.add(u64::from(given > 0 && !matches!(code, 0x28 | 0x88 | 0xa8 | 0x08)));
            }
            (0, _) => CHECKED.one(),
            _ => {}
        }
    }
}

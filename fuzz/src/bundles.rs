//! `.tornblk` bundles: opened and unpacked.
//!
//! Promised: an error, or a disk that can be read; files only where they belong, and not much larger
//! than the bundle and the disk in it can be.

use crate::dish::Dish;
use crate::reach::{Count, Reached};
use crate::recorded::{CAPACITY, record, set};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tornblk::explore::bundle::{Bundle, BundleError, Judge, Meta, Needed, pack};
use tornblk_model::crash::StateName;
use tornblk_model::recording::Reader;

static OPENED: Count = Count::new("bundles opened");
static UNPACKED: Count = Count::new("bundles unpacked");
static OTHER: Count = Count::new("bundles of another content than they say");
static DAMAGED: Count = Count::new("bundles found damaged inside");
static REFUSED: Count = Count::new("bundles refused at once");

pub(crate) fn reached() -> Vec<Reached> {
    [&OPENED, &UNPACKED, &OTHER, &DAMAGED, &REFUSED].map(Count::get).into()
}

/// Bytes that what is unpacked may take on the host's disk: two recordings begin with two segments
/// of 4 MiB each.
const ALLOCATED: u64 = 40 << 20;
/// Changes to a bundle.
const CHANGES: u8 = 12;

/// What is in a bundle.
#[derive(Clone)]
struct Inside {
    meta: Value,
    base: Vec<u8>,
    events: Vec<u8>,
}

pub(crate) fn run(data: &[u8]) {
    let mut dish = Dish::new(data);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tornblk");
    let setup = dish.byte();
    let bytes = match setup {
        255 => dish.rest().to_vec(),
        _ => made(setup, &mut dish),
    };
    std::fs::write(&path, bytes).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    match Bundle::open(&path) {
        Ok(bundle) => {
            OPENED.one();
            unpack(bundle, &out);
        }
        Err(error) => {
            REFUSED.one();
            assert!(!error.to_string().is_empty());
        }
    }
    let mut allocated = 0;
    for entry in std::fs::read_dir(&out).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let known = ["base.img", "disk.recording", "recovery.recording"];
        assert!(known.iter().any(|known| name == *known), "a file {name:?}");
        allocated += entry.metadata().unwrap().blocks() * 512;
    }
    assert!(allocated <= ALLOCATED, "{allocated} bytes on the host's disk");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "a file where none belongs");
}

fn unpack(bundle: Bundle, out: &Path) {
    match bundle.unpack(out) {
        Ok(unpacked) => {
            UNPACKED.one();
            let mut bytes = vec![0; 4096];
            let mut at = 0;
            while at + 4096 <= unpacked.state.disk().capacity.min(1 << 20) {
                unpacked.state.read_at(at, &mut bytes).unwrap();
                at += 4096;
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            match error {
                BundleError::OtherContent { .. } => OTHER.one(),
                BundleError::Damaged { .. } => DAMAGED.one(),
                _ => {}
            }
        }
    }
}

/// A bundle that is sound, but for what is changed.
fn made(setup: u8, dish: &mut Dish<'_>) -> Vec<u8> {
    let mut inside = sound(setup & 3);
    for _ in 0..dish.below(CHANGES) {
        change(&mut inside, dish);
    }
    let mut bytes = inside.pack();
    // What no checksum is repaired for.
    match setup >> 2 {
        0 => bytes.truncate(dish.u16() as usize % bytes.len()),
        1 => {
            let at = dish.u16() as usize % bytes.len();
            bytes[at] ^= dish.byte() | 1;
        }
        2 => {
            let at = dish.u16() as usize % bytes.len();
            bytes[at] ^= dish.byte() | 1;
            seal(&mut bytes);
        }
        3 => {
            let len = dish.number();
            bytes[12..20].copy_from_slice(&len.to_le_bytes());
            seal_head(&mut bytes);
        }
        _ => {}
    }
    bytes
}

fn sound(kind: u8) -> Inside {
    static MADE: [OnceLock<Inside>; 4] = [const { OnceLock::new() }; 4];
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let (image, recording) = (dir.path().join("base.img"), dir.path().join("disk.rec"));
        // Mostly holes.
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(CAPACITY).unwrap();
        file.write_all_at(&[0xb5; 4096], 0).unwrap();
        file.write_all_at(&[0xb6; 8192], 64 << 10).unwrap();
        record(kind & 1, &recording, &image);
        let reader = Arc::new(Reader::open(&recording).unwrap());
        let state = if kind & 2 == 0 { "lb/p24:all" } else { "lb/p6:none,+w4" };
        let meta = Meta::new(StateName(state.to_owned()), "lb512".to_owned(), Judge::InPlace);
        let path = dir.path().join("a.tornblk");
        pack(&path, &reader, None, &Needed::All, &meta).unwrap();
        Inside::of(&std::fs::read(&path).unwrap())
    };
    MADE[usize::from(kind)].get_or_init(make).clone()
}

impl Inside {
    fn of(bundle: &[u8]) -> Inside {
        let mut all = Vec::new();
        ZlibDecoder::new(&bundle[52..]).read_to_end(&mut all).unwrap();
        let mut rest = &all[..];
        let len = take(&mut rest) as usize;
        let (meta, after) = rest.split_at(len);
        let meta: Value = serde_json::from_slice(meta).unwrap();
        let lb = meta["disk"]["lb_size"].as_u64().unwrap() as usize;
        let mut rest = after;
        loop {
            let (_, count) = (take(&mut rest), take(&mut rest) as usize);
            if count == 0 {
                break;
            }
            rest = &rest[count * lb..];
        }
        let base = after[..after.len() - rest.len()].to_vec();
        Inside { meta, base, events: rest.to_vec() }
    }

    fn pack(&self) -> Vec<u8> {
        let mut out = ZlibEncoder::new(vec![0; 52], Compression::fast());
        let meta = match &self.meta {
            Value::String(raw) => raw.clone().into_bytes(),
            meta => serde_json::to_vec(meta).unwrap(),
        };
        let mut head = Vec::new();
        number(meta.len() as u64, &mut head);
        for part in [&head, &meta, &self.base, &self.events] {
            out.write_all(part).unwrap();
        }
        let mut bytes = out.finish().unwrap();
        bytes[..8].copy_from_slice(b"TORNBNDL");
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        seal(&mut bytes);
        bytes
    }
}

fn seal(bytes: &mut [u8]) {
    let len = bytes.len().saturating_sub(52) as u64;
    if bytes.len() >= 52 {
        bytes[12..20].copy_from_slice(&len.to_le_bytes());
        seal_head(bytes);
    }
}

fn seal_head(bytes: &mut [u8]) {
    let mut hash = Sha256::new();
    hash.update(&bytes[..20]);
    hash.update(&bytes[52..]);
    let hash = hash.finalize();
    bytes[20..52].copy_from_slice(&hash);
}

/// LEB128.
fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(from: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = from.split_first().unwrap();
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            break;
        }
    }
    value
}

const STATES: [&str; 8] = [
    "lb/p24:all",
    "lb512/p3:none",
    "lb/p6:all,-w4",
    "lb512/p9:r1.7.0",
    "garbage/p24:none",
    "lb/p18446744073709551615:all",
    "nonsense",
    "lb/p24:all;x3.9",
];

fn change(inside: &mut Inside, dish: &mut Dish<'_>) {
    match dish.below(16) {
        0..=2 => {
            let value = dish.number();
            let (at, value): (_, Value) = match dish.below(10) {
                0 | 1 => ("/disk/capacity", value.into()),
                2 => ("/disk/lb_size", value.into()),
                3 => ("/disk/lb_size", (512u64 << (value % 24)).into()),
                4 | 5 => ("/base_size", value.into()),
                6 => ("/state", dish.pick(&STATES).into()),
                7 => ("/recovery", dish.pick(&STATES).into()),
                8 => ("/checker", value.into()),
                _ => ("/findings", json!([value])),
            };
            set(&mut inside.meta, at, value);
        }
        3 => {
            let len = usize::from(dish.byte());
            inside.meta = Value::String(String::from_utf8_lossy(dish.bytes(len)).into_owned());
        }
        // Runs of the base, from their beginning on.
        4 | 5 => {
            let mut run = Vec::new();
            number(dish.number(), &mut run);
            number(dish.number(), &mut run);
            run.extend(dish.bytes(16));
            if dish.flag() {
                run.extend([7; 512]);
            }
            inside.base.splice(0..0, run);
        }
        6 => {
            let (at, byte) = (dish.u16() as usize, dish.byte());
            let len = inside.base.len().max(1);
            if let Some(to) = inside.base.get_mut(at % len) {
                *to = byte;
            }
        }
        7 => {
            let at = dish.u16() as usize % (inside.events.len() + 1);
            inside.events.truncate(at);
        }
        8..=10 => {
            let at = dish.u16() as usize % (inside.events.len() + 1);
            let byte = dish.byte();
            if let Some(to) = inside.events.get_mut(at) {
                *to = byte;
            }
        }
        // The recovery's events, perhaps.
        11 if inside.events.len() < 1 << 20 => inside.events.extend_from_within(..),
        _ => {
            let mut event = Vec::new();
            self::event(dish, &mut event);
            let at = if dish.flag() { 0 } else { inside.events.len().saturating_sub(1) };
            inside.events.splice(at..at, event);
        }
    }
}

/// An event, or what looks like one.
fn event(dish: &mut Dish<'_>, out: &mut Vec<u8>) {
    let tag = dish.byte() % 9;
    out.push(tag);
    // After the one before.
    number(if dish.byte() > 200 { dish.number() } else { dish.below(3).into() }, out);
    match tag {
        1 => {
            number(dish.byte().into(), out);
            number(dish.u16().into(), out);
        }
        2 => {
            for _ in 0..4 {
                number(dish.byte().into(), out);
            }
            let op = dish.below(6);
            out.push(op);
            match op {
                0 | 1 => {
                    number(dish.number(), out);
                    number(dish.number(), out);
                    if op == 1 {
                        out.push(dish.below(8));
                        out.extend(vec![dish.byte(); 512 * usize::from(dish.below(9))]);
                    }
                }
                3 | 4 => {
                    let count = dish.number();
                    number(count, out);
                    for _ in 0..count.min(4) {
                        number(dish.number(), out);
                        number(dish.number(), out);
                        out.push(dish.byte());
                    }
                }
                _ => {}
            }
        }
        3 => {
            number(dish.number(), out);
            out.push(dish.byte());
        }
        4 => {
            let len = dish.number();
            number(len, out);
            out.extend(vec![b'm'; len.min(5000) as usize]);
        }
        5 | 6 => out.push(dish.byte()),
        _ => {
            out.push(dish.byte() % 6);
            number(dish.number(), out);
        }
    }
}

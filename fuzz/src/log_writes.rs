//! Logs of `dm-log-writes` that are imported.
//!
//! Promised: an error, and nothing left where the recording was to be; or a recording that is sound,
//! of which the last state is what the log replays to.

use crate::dish::Dish;
use crate::reach::{Count, Reached};
use crate::recorded::{CAPACITY, Place, base};
use std::sync::Arc;
use tornblk_model::crash::{History, StateName};
use tornblk_model::recording::log_writes::{ImportOptions, Imported, import};
use tornblk_model::recording::{Reader, StateReader, Trust};

static IMPORTED: Count = Count::new("logs imported");
static WRITES: Count = Count::new("writes imported");
static CUTS: Count = Count::new("discards and zeroes imported");
static FLUSHES: Count = Count::new("flushes imported");
static MARKS: Count = Count::new("marks imported");
static REFUSED: Count = Count::new("logs refused");
static REPLAYED: Count = Count::new("logs compared with what they replay to");

pub(crate) fn reached() -> Vec<Reached> {
    [&IMPORTED, &WRITES, &CUTS, &FLUSHES, &MARKS, &REFUSED, &REPLAYED].map(Count::get).into()
}

const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// Entries of a log.
const ENTRIES: usize = 40;
/// Bytes of a log.
const LONGEST: usize = 2 << 20;

pub(crate) fn run(data: &[u8]) {
    let mut dish = Dish::new(data);
    let place = Place::new();
    let setup = dish.byte();
    let log = if setup == 255 { dish.rest().to_vec() } else { made(setup, &mut dish) };
    let path = place.file("disk.log");
    std::fs::write(&path, &log).unwrap();
    let lb_sizes =
        [None, None, Some(512), Some(1024), Some(4096), Some(8192), Some(3), Some(1 << 30)];
    let options = ImportOptions {
        base: place.base(),
        lb_size: lb_sizes[usize::from(setup >> 2 & 7)],
        atomic_unit_max: [0, 0, 4096, 16384, 3, 1 << 40][usize::from(setup >> 5) % 6],
        segment_size: 64 << 10,
    };
    let to = place.file("disk.rec");
    match import(&path, &to, &options) {
        Ok(found) => sound(&place, &log, found),
        Err(error) => {
            REFUSED.one();
            assert!(!error.to_string().is_empty());
            assert!(!to.exists(), "something is left of a log that was refused: {error}");
        }
    }
}

/// A log that makes sense, but for what is changed.
fn made(setup: u8, dish: &mut Dish<'_>) -> Vec<u8> {
    let sector = [512usize, 512, 1024, 4096][usize::from(setup & 3)];
    let mut log = vec![0; sector];
    let mut entries = 0u64;
    for _ in 0..ENTRIES {
        if dish.is_empty() || log.len() > LONGEST {
            break;
        }
        entry(&mut log, sector, dish);
        entries += 1;
    }
    log[..8].copy_from_slice(&0x006a_7366_7773_6872u64.to_le_bytes());
    log[8..16].copy_from_slice(&1u64.to_le_bytes());
    log[16..24].copy_from_slice(&entries.to_le_bytes());
    log[24..28].copy_from_slice(&(sector as u32).to_le_bytes());
    for _ in 0..dish.byte().saturating_sub(250) {
        let at = dish.u16() as usize % log.len();
        log[at] = dish.byte();
    }
    if dish.byte() > 250 {
        log.truncate(dish.u32() as usize % log.len());
    }
    log
}

fn entry(log: &mut Vec<u8>, sector: usize, dish: &mut Dish<'_>) {
    let blocks = CAPACITY / sector as u64;
    let (kind, shape) = (dish.below(8), dish.byte());
    let mut first = u64::from(dish.byte()) % blocks;
    let mut sectors = u64::from(shape & 15);
    let mut text = 0;
    let mut flags = match kind {
        0..=2 => u64::from(shape >> 4 & 3),
        3 => 1 << 32 | u64::from(shape >> 4 & 2),
        4 => DISCARD | u64::from(shape >> 4 & 2),
        5 => 1 << 33,
        6 => MARK,
        _ => FLUSH,
    };
    let mut data = vec![if kind == 5 { 0 } else { dish.byte() }; sectors as usize * sector];
    let mut inside = Vec::new();
    match kind {
        4 => data.clear(),
        6 => {
            sectors = 0;
            data.clear();
            inside = dish.bytes(usize::from(shape)).to_vec();
            text = inside.len() as u64;
            first = u64::from(dish.byte().saturating_sub(240));
        }
        7 => {
            (first, sectors) = (0, 0);
            data.clear();
        }
        // Many zeroes, as a hole has them.
        _ if shape == 0xf0 => {
            sectors = (CAPACITY / 2).min(1 << 20) / sector as u64;
            data = vec![0; sectors as usize * sector];
        }
        _ => {}
    }
    match dish.byte() {
        246 => first = dish.number(),
        247 => sectors = dish.number(),
        248 => flags = dish.number(),
        249 => text = dish.number(),
        _ => {}
    }
    let start = log.len();
    for word in [first, sectors, flags, text] {
        log.extend(word.to_le_bytes());
    }
    log.extend(inside);
    log.resize(start + sector, 0);
    log.extend(data);
}

/// The recording of a log that was taken.
fn sound(place: &Place, log: &[u8], found: Imported) {
    IMPORTED.one();
    WRITES.add(found.writes);
    CUTS.add(found.discards + found.write_zeroes);
    FLUSHES.add(found.flushes);
    MARKS.add(found.marks);
    let reader = Arc::new(Reader::open(&place.file("disk.rec")).unwrap());
    reader.verify().unwrap();
    let events: Result<Vec<_>, _> = reader.events().collect();
    let history = History::new(reader.header().disk.clone(), events.unwrap()).unwrap();
    let last = history.last().unwrap();
    let content = history.build(&StateName(format!("lb/p{last}:all"))).unwrap();
    let state = StateReader::new(reader, Some(&place.base()), Trust::SameContent, content).unwrap();
    let mut shown = vec![0; CAPACITY as usize];
    state.read_at(0, &mut shown).unwrap();
    let lb = state.disk().lb_size as usize;
    let mut disk = base().to_vec();
    replay(log, &mut disk, lb);
    assert!(shown == disk, "the last state is not what the log replays to");
    REPLAYED.one();
}

/// What the log leaves on a disk that forgets whole blocks of `lb` bytes.
fn replay(log: &[u8], disk: &mut [u8], lb: usize) {
    let number = |at: usize, n: usize| {
        log[at..at + n].iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte)) as usize
    };
    let (entries, sector) = (number(16, 8), number(24, 4));
    let mut at = sector;
    for _ in 0..entries {
        let (first, sectors, flags) = (number(at, 8), number(at + 8, 8), number(at + 16, 8) as u64);
        at += sector;
        let data = if flags & DISCARD == 0 { sectors * sector } else { 0 };
        if flags & MARK == 0 && sectors > 0 {
            let (from, to) = (first * sector, (first + sectors) * sector);
            if flags & DISCARD == 0 {
                disk[from..to].copy_from_slice(&log[at..at + data]);
            } else {
                let (from, to) = (from.next_multiple_of(lb), to / lb * lb);
                if from < to {
                    disk[from..to].fill(0);
                }
            }
        }
        at += data;
    }
}

//! Descriptor chains of virtio-blk, on real rings in a guest's memory, over real stores.
//!
//! Promised: only buffers that a chain names, the used ring and its event index are written; a head
//! comes back as often as it was offered; the store gets what lies on the disk and no more; the
//! image keeps its length, and a recording is sound. See [`crate::bench`] and [`crate::store`].

use crate::bench::Bench;
use crate::common::driver::{UNTOUCHED, WRITE};
use crate::dish::Dish;
use crate::guest::AREA;
use crate::reach::{Count, Reached};
use crate::store::{self, DISK, Disks, Kind};
use std::sync::Arc;
use tornblk_backend::device::Device;
use tornblk_backend::device::blk::{Blk, BlkOptions, seg_max};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_model::event::ResetCause;
use vm_memory::{Bytes, GuestAddress};

static BACK: Count = Count::new("chains returned");
static GOOD: Count = Count::new("chains answered with OK");
static REFUSED: Count = Count::new("chains answered with an error");

pub(crate) fn reached() -> Vec<Reached> {
    let counts =
        [&BACK, &GOOD, &REFUSED, &store::READS, &store::WRITES, &store::FLUSHES, &store::CUTS];
    counts.map(Count::get).into()
}

/// Steps in a case.
const STEPS: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let mut dish = Dish::new(data);
    let setup = dish.byte();
    let kind = Kind::of(setup);
    let limits = Limits::new(&LimitOptions {
        logical_block_size: Some(kind.lb_size.into()),
        unit_max: (setup & 16 != 0).then_some(16 << 10),
        seg_max: seg_max(256),
        ..LimitOptions::default()
    })
    .unwrap();
    let disks = Disks::new(kind, &limits.profile);
    let device = Blk::new(BlkOptions {
        store: disks.store.clone(),
        limits,
        queues: 2,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| *b"serial-of-20-letters"),
    });
    let device: Arc<dyn Device> = device;
    let size = if setup & 32 != 0 { 8 } else { 256 };
    let mut bench = Bench::new(&device, 0, size, setup & 64 != 0);
    for _ in 0..STEPS {
        if dish.is_empty() {
            break;
        }
        step(&mut bench, &mut dish, &device, &disks);
        BACK.add(bench.back().len() as u64);
    }
    disks.gate.release();
    bench.end();
    BACK.add(bench.back().len() as u64);
    drop(bench);
    drop(device);
    disks.end();
}

fn step(bench: &mut Bench, dish: &mut Dish<'_>, device: &Arc<dyn Device>, disks: &Disks) {
    match dish.below(16) {
        0..=5 => good(bench, dish),
        6..=7 => bench.put_anything(dish),
        8 => {
            // What lies where any descriptor may point.
            let at = AREA.start + u64::from(dish.u16() & 0x1ff0);
            let bytes = header(dish);
            bench.guest.mem().write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        9 => {
            let head = match dish.byte() {
                255 => dish.u16(),
                n => n.into(),
            };
            bench.offer_anything(head);
        }
        10 => bench.pump(true),
        11 => bench.pump(dish.flag()),
        12 => match dish.below(4) {
            0 => disks.gate.stall(false),
            1 => disks.gate.stall(true),
            2 => disks.gate.release(),
            _ => bench.drain(),
        },
        13 => bench.misbehave(dish),
        14 => match dish.below(3) {
            0 => device.negotiated(device.features() & dish.u64()),
            1 => device.set_config(dish.u16().into(), dish.bytes(4)),
            _ => {
                let (at, size) = (dish.number() as u32, dish.u16());
                let told = device.config(at, size.into());
                assert_eq!(told.len(), usize::from(size));
            }
        },
        _ => {
            bench.drain();
            device
                .reset(if dish.flag() { ResetCause::Device } else { ResetCause::QueueStop }, None);
        }
    }
}

/// Sixteen bytes that look like a request's header.
fn header(dish: &mut Dish<'_>) -> [u8; 16] {
    let kind = match dish.below(16) {
        n @ 0..=13 => [0u32, 1, 0, 1, 1, 0, 1, 4, 4, 8, 11, 13, 11, 13][usize::from(n)],
        14 => dish.byte().into(),
        _ => dish.u32(),
    };
    let sector = match dish.below(8) {
        0..=5 => u64::from(dish.byte()) % (DISK / 512 + 2),
        _ => dish.number(),
    };
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&u32::from(dish.u16()).to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A well-formed chain, mostly of a request that makes sense.
fn good(bench: &mut Bench, dish: &mut Dish<'_>) {
    let header = header(dish);
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let shape = dish.byte();
    let mut out = Vec::new();
    let mut room = 0;
    // Some have what their type does not take.
    match if shape & 0x1f == 0x1f { dish.byte().into() } else { kind } {
        1 => out = vec![dish.byte(); 512 * usize::from(1 + dish.below(20))],
        11 | 13 => {
            for _ in 0..=dish.below(4) {
                let sector = match dish.below(4) {
                    3 => dish.number(),
                    _ => u64::from(dish.byte()) % (DISK / 512),
                };
                out.extend(sector.to_le_bytes());
                out.extend((dish.number() as u32).to_le_bytes());
                out.extend(u32::from(dish.byte() / 128).to_le_bytes());
            }
        }
        0 => room = 512 * usize::from(1 + dish.below(20)),
        8 => room = usize::from(dish.below(40)),
        // Neither whole sectors nor nothing.
        n if n > 200 => {
            out = dish.bytes(usize::from(n as u8)).to_vec();
            room = usize::from(dish.byte());
        }
        _ => {}
    }
    if !bench.room(12, 16 + out.len() + room + 1) {
        return;
    }
    let header = bench.place(&header);
    let out_at = bench.place(&out);
    let room_at = bench.place(&vec![0xee; room]);
    let status = bench.place(&[UNTOUCHED]);
    let mut parts = Vec::new();
    // The driver may cut wherever it likes.
    let cut = usize::from(dish.byte());
    for (at, len, flags) in [(header, 16, 0), (out_at, out.len(), 0), (room_at, room, WRITE)] {
        let cut = if shape & 0x20 != 0 { cut * 16 % (len + 1) } else { 0 };
        for (at, len) in [(at, cut), (at + cut as u64, len - cut)] {
            if len > 0 {
                parts.push((at, len as u32, flags));
            }
        }
    }
    parts.push((status, 1, WRITE));
    let head = bench.chain(&parts, shape & 0x40 != 0);
    if !bench.offer(head) || shape & 0x80 == 0 {
        return;
    }
    BACK.add(bench.back().len() as u64);
    bench.pump(true);
    let back = bench.back();
    BACK.add(back.len() as u64);
    for (_, len) in back.iter().filter(|(back, _)| *back == head && !bench.changed()) {
        match bench.driver.byte(status) {
            0 => {
                GOOD.one();
                assert!(*len as usize <= room + 1, "{len} bytes returned of {room}");
                // What the guest gives, it keeps.
                assert_eq!(bench.driver.bytes(out_at, out.len()), out);
            }
            1 | 2 => REFUSED.one(),
            // Some other chain names it, too.
            _ => {}
        }
    }
}

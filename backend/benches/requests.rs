//! What a request costs inside of the device: `cargo bench -p tornblk-backend --bench requests [NAME]`.
//!
//! - `walk`: chains a second that are walked and found to be well formed, and no more.
//! - `blk`, `scsi`: requests a second from the available ring to the used ring, 64 at a time: taken,
//!   walked, parsed, handed to the store and given back by it, answered. The store moves no bytes and
//!   answers at once. Sockets, threads, eventfds and the notes on what is in flight are not in it;
//!   `front_ends` has all of these, and a file. What the driver does is not measured.
//!
//! The driver lays its rings out in ordinary memory. A request has a descriptor for its header, one for
//! its answer, and one for each 4 KiB page: three in all where a name has no number.

#![allow(clippy::unwrap_used)]
// Of what the tests share, a bench needs a part.
#![allow(dead_code, unused_imports)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::driver::{Driver, WRITE};
use common::scsi::{DISK, REQUEST, RESPONSE, header};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tornblk_backend::device::blk::{Blk, BlkOptions, seg_max};
use tornblk_backend::device::chain;
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{FRONT_END_SEG_MAX, Scsi, ScsiOptions};
use tornblk_backend::device::{Device, DeviceQueue, FrontEnd, Memory};
use tornblk_backend::store::{Done, Request, Rings, Store, StoreQueue};
use tornblk_model::event::{Disk, Negotiation, ResetCause};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RING: u16 = 256;
const PAGE: u32 = 4096;
/// Requests that the driver makes visible at once: as many of three descriptors as a ring has room
/// for, nearly.
const BATCH: u16 = 64;

/// A disk that has nothing, and is done at once.
struct Nothing;

impl Store for Nothing {
    fn disk(&self) -> Disk {
        Disk { capacity: 1 << 30, lb_size: 512 }
    }

    fn read_only(&self) -> bool {
        false
    }

    fn queue(&self, _: u16) -> Box<dyn StoreQueue> {
        Box::new(AtOnce { waiting: Vec::new() })
    }

    fn connected(&self, _: Arc<dyn Rings>) {}

    fn negotiated(&self, _: Negotiation) {}

    fn set_writeback(&self, _: bool) {}

    fn reset(&self, _: ResetCause, _: Option<u16>) {}
}

struct AtOnce {
    waiting: Vec<Request>,
}

impl StoreQueue for AtOnce {
    fn submit(&mut self, request: Request) {
        self.waiting.push(request);
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        self.waiting.drain(..).for_each(|request| f(Done { request, result: Ok(()) }));
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn drain(&mut self) {}
}

/// What a driver asks for.
#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Read,
    Write,
    /// As atomic: SCSI only.
    Atomic,
}

/// How it lays that out.
#[derive(Clone, Copy)]
struct Layout {
    descriptors: u32,
    indirect: bool,
}

const THREE: Layout = Layout { descriptors: 3, indirect: false };

const fn indirect(descriptors: u32) -> Layout {
    Layout { descriptors, indirect: true }
}

fn driver() -> Driver {
    let regions = [(GuestAddress(0), 256 << 20)];
    let mem: Arc<Memory> = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
    Driver::new(mem, 0x1000, RING, 0x1_0000)
}

/// The nth request: its head, and where the bytes are that say how it went.
fn lay_out(
    driver: &mut Driver,
    (front_end, ask, layout): (FrontEnd, Ask, Layout),
    n: u16,
) -> (u16, GuestAddress) {
    let pages = layout.descriptors - 2;
    let blocks = pages * (PAGE / 512);
    let sector = u64::from(n) * u64::from(blocks);
    let flags = if ask == Ask::Read { WRITE } else { 0 };
    let (first, answer, told) = match front_end {
        FrontEnd::Blk => {
            let kind = if ask == Ask::Read { VIRTIO_BLK_T_IN } else { VIRTIO_BLK_T_OUT };
            let status = driver.status_byte();
            ((driver.header(kind, sector), 16, 0), (status, 1, WRITE), status)
        }
        FrontEnd::Scsi => {
            let mut cdb = [0; 16];
            cdb[0] = match ask {
                Ask::Read => 0x88,
                Ask::Write => 0x8a,
                Ask::Atomic => 0x9c,
            };
            cdb[2..10].copy_from_slice(&sector.to_be_bytes());
            // WRITE ATOMIC(16) has an atomic boundary in the upper half: none.
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
            let request = driver.place(&header(DISK, n.into(), &cdb));
            let response = driver.alloc(RESPONSE as usize);
            ((request, REQUEST, 0), (response, RESPONSE, WRITE), response + 10)
        }
    };
    let mut parts = vec![first];
    for _ in 0..pages {
        // Pages that do not touch each other, as those of a guest.
        parts.push((driver.alloc(2 * PAGE as usize), PAGE, flags));
    }
    // SCSI's data come last where the device writes them.
    let at = if front_end == FrontEnd::Scsi && ask == Ask::Read { 1 } else { parts.len() };
    parts.insert(at, answer);
    let head = if layout.indirect { driver.indirect(&parts) } else { driver.chain(&parts) };
    (head, GuestAddress(told))
}

/// A device and a driver with requests laid out.
struct Bench {
    driver: Driver,
    queue: Box<dyn DeviceQueue>,
    ring: Queue,
    requests: Vec<(u16, GuestAddress)>,
    /// 0 where it went well: virtio-blk's status, or status and response of SCSI.
    told: usize,
}

impl Bench {
    fn new(front_end: FrontEnd, ask: Ask, layout: Layout) -> Bench {
        let mut driver = driver();
        let seg_max = match front_end {
            FrontEnd::Blk => seg_max(RING),
            FrontEnd::Scsi => FRONT_END_SEG_MAX,
        };
        let profile = Some("req64k".parse().unwrap());
        let limits = LimitOptions { seg_max, front_end, profile, ..LimitOptions::default() };
        let limits = Limits::new(&limits).unwrap();
        let store: Arc<dyn Store> = Arc::new(Nothing);
        let id = Box::new(|| common::ID);
        let (queue_size, writeback) = (RING, true);
        // The last queue: SCSI has two before its requests.
        let queue = match front_end {
            FrontEnd::Blk => {
                let queues = 1;
                Blk::new(BlkOptions { store, limits, queues, queue_size, writeback, id }).queue(0)
            }
            FrontEnd::Scsi => {
                let (request_queues, luns) = (1, Vec::new());
                let options =
                    ScsiOptions { store, luns, limits, request_queues, queue_size, writeback, id };
                Scsi::new(options).queue(2)
            }
        };
        let requests =
            (0..BATCH).map(|n| lay_out(&mut driver, (front_end, ask, layout), n)).collect();
        let ring = driver.ring(true);
        let told = if front_end == FrontEnd::Blk { 1 } else { 2 };
        Bench { driver, queue, ring, requests, told }
    }

    /// How long the device takes for all of them.
    fn turn(&mut self) -> Duration {
        let mem = self.driver.mem.clone();
        for (head, told) in &self.requests {
            mem.write_slice(&[0xff; 2][..self.told], *told).unwrap();
            self.driver.offer(*head);
        }
        self.driver.ask_to_be_told();
        let begun = Instant::now();
        let tell = self.queue.pump(&mut self.ring, &mem, true);
        let took = begun.elapsed();
        assert!(tell, "there are answers");
        assert_eq!(self.driver.take_used().len(), self.requests.len());
        for (_, told) in &self.requests {
            let mut bytes = [0; 2];
            mem.read_slice(&mut bytes[..self.told], *told).unwrap();
            assert_eq!(bytes, [0; 2], "the request failed");
        }
        took
    }
}

fn walks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("walk");
    for (name, descriptors, is_indirect) in
        [("3", 3, false), ("3 indirect", 3, true), ("130", 130, false), ("130 indirect", 130, true)]
    {
        let layout = Layout { descriptors, indirect: is_indirect };
        let mut driver = driver();
        // Of 130 descriptors, a table has room for one.
        let chains = if is_indirect { BATCH } else { BATCH.min(RING / descriptors as u16) };
        let what = (FrontEnd::Blk, Ask::Read, layout);
        let heads: Vec<u16> = (0..chains).map(|n| lay_out(&mut driver, what, n).0).collect();
        let table = GuestAddress(driver.desc_table());
        group.throughput(Throughput::Elements(chains.into()));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for head in &heads {
                    let limit = usize::from(RING);
                    black_box(chain::walk(&driver.mem, table, RING, *head, limit).unwrap());
                }
            });
        });
    }
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let blk: &[(&str, Ask, Layout)] = &[
        ("read", Ask::Read, THREE),
        ("write", Ask::Write, THREE),
        ("read indirect", Ask::Read, indirect(3)),
        ("read 130 indirect", Ask::Read, indirect(130)),
    ];
    // The front-end takes no more than 128 descriptors.
    let scsi: &[(&str, Ask, Layout)] = &[
        ("read", Ask::Read, THREE),
        ("write", Ask::Write, THREE),
        ("write atomic", Ask::Atomic, THREE),
        ("read indirect", Ask::Read, indirect(3)),
        ("read 128 indirect", Ask::Read, indirect(128)),
    ];
    for (name, front_end, all) in [("blk", FrontEnd::Blk, blk), ("scsi", FrontEnd::Scsi, scsi)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(BATCH.into()));
        for (name, ask, layout) in all {
            let mut bench = Bench::new(front_end, *ask, *layout);
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_custom(|times| (0..times).map(|_| bench.turn()).sum());
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = walks, requests
}
criterion_main!(benches);

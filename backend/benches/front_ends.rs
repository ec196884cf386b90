//! What SCSI costs beside virtio-blk: `cargo bench -p tornblk-backend --bench front_ends [NAME]`.
//!
//! A driver on this host, with its rings in shared memory behind the vhost-user socket, keeps 32
//! random requests of 4 KiB in flight on one queue, against the same raw image in the page cache.
//! Both front-ends take turns, so that what else the machine does meets both alike; the line before
//! criterion's own says the ratio of their medians, and how far the single pairs are from it.

#![allow(clippy::unwrap_used)]
// Of what the tests share, a bench needs a part.
#![allow(dead_code, unused_imports)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/vhost/guest.rs"]
mod guest;

use common::driver::WRITE;
use common::scsi::{DISK, REQUEST, RESPONSE, header};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest::Guest;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tornblk_backend::device::blk::{Blk, BlkOptions, seg_max};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{FRONT_END_SEG_MAX, Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd};
use tornblk_backend::store::{Cache, HoldCompletions, IoEngine, Machine, Options, Store};
use tornblk_backend::vhost::{Socket, serve};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress};

const DEPTH: usize = 32;
const LEN: u32 = 4096;
const CAPACITY: u64 = 64 << 20;
/// Requests of one turn.
const TURN: u64 = 5_000;
const PAIRS: usize = 61;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// A disk that is served, and a driver with its requests laid out.
struct Bench {
    front_end: FrontEnd,
    queue: usize,
    guest: Option<Guest>,
    /// Of each request: head, where its header is, where the byte is that says how it went.
    slots: Vec<(u16, u64, u64)>,
    write: bool,
    random: Random,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

fn device(front_end: FrontEnd, machine: &Arc<Machine>) -> Arc<dyn Device> {
    let seg_max = match front_end {
        FrontEnd::Blk => seg_max(256),
        FrontEnd::Scsi => FRONT_END_SEG_MAX,
    };
    let limits = LimitOptions { seg_max, front_end, ..LimitOptions::default() };
    let limits = Limits::new(&limits).unwrap();
    let store = machine.clone() as Arc<dyn Store>;
    let id = Box::new(|| common::ID);
    let (queue_size, writeback) = (256, true);
    match front_end {
        FrontEnd::Blk => {
            Blk::new(BlkOptions { store, limits, queues: 1, queue_size, writeback, id })
        }
        FrontEnd::Scsi => {
            let (request_queues, luns) = (1, Vec::new());
            Scsi::new(ScsiOptions {
                store,
                luns,
                limits,
                request_queues,
                queue_size,
                writeback,
                id,
            })
        }
    }
}

impl Bench {
    fn new(front_end: FrontEnd, write: bool) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, vec![7; CAPACITY as usize]).unwrap();
        let machine = Machine::open(Options {
            image,
            states: None,
            recording: None,
            profile: tornblk_model::crash::Profile::PLAIN,
            logical_block_size: 512,
            physical_block_size: 512,
            read_only: false,
            cache: Cache::Writeback,
            seed: 0,
            faults: Vec::new(),
            direct: false,
            io_engine: IoEngine::Auto,
            record_payload: true,
            queues: 4,
            hold_completions: HoldCompletions::None,
            divided: false,
            serial: "bench".to_owned(),
        });
        let device = device(front_end, &machine.unwrap());
        let queues = device.queues();
        let path = dir.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            serve(&device, &socket, stopped.as_fd(), Duration::ZERO).unwrap()
        });
        let mut bench = Bench {
            front_end,
            // The last one: SCSI has two before its requests.
            queue: usize::from(queues) - 1,
            guest: Some(Guest::ready(&path, queues)),
            slots: Vec::new(),
            write,
            random: Random(0x9e37_79b9_7f4a_7c15),
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        };
        bench.lay_out();
        bench
    }

    fn lay_out(&mut self) {
        let driver = &mut self.guest.as_mut().unwrap().queues[self.queue].driver;
        for _ in 0..DEPTH {
            let data = driver.place(&[9; LEN as usize]);
            let flags = if self.write { 0 } else { WRITE };
            let (parts, header, status) = match self.front_end {
                FrontEnd::Blk => {
                    let kind = if self.write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
                    let header = driver.header(kind, 0);
                    let status = driver.status_byte();
                    ([(header, 16, 0), (data, LEN, flags), (status, 1, WRITE)], header, status)
                }
                FrontEnd::Scsi => {
                    let code = if self.write { 0x2a } else { 0x28 };
                    let cdb = [code, 0, 0, 0, 0, 0, 0, 0, (LEN / 512) as u8, 0];
                    let header = driver.place(&header(DISK, 1, &cdb));
                    let response = driver.alloc(RESPONSE as usize);
                    let answer = (response, RESPONSE, WRITE);
                    let data = (data, LEN, flags);
                    let parts = if self.write { [data, answer] } else { [answer, data] };
                    ([(header, REQUEST, 0), parts[0], parts[1]], header, response + 10)
                }
            };
            let head = driver.chain(&parts);
            self.slots.push((head, header, status));
        }
    }

    /// Makes a request visible, somewhere else on the disk.
    fn offer(&mut self, slot: usize) {
        let (head, header, status) = self.slots[slot];
        let sector = self.random.below(CAPACITY / u64::from(LEN)) * u64::from(LEN / 512);
        let driver = &mut self.guest.as_mut().unwrap().queues[self.queue].driver;
        match self.front_end {
            FrontEnd::Blk => driver.mem.write_obj(sector, GuestAddress(header + 8)).unwrap(),
            FrontEnd::Scsi => {
                let lba = (sector as u32).to_be();
                driver.mem.write_obj(lba, GuestAddress(header + 19 + 2)).unwrap();
            }
        }
        driver.mem.write_obj(0xffu8, GuestAddress(status)).unwrap();
        driver.offer(head);
    }

    /// How long `n` requests take.
    fn turn(&mut self, n: u64) -> Duration {
        let begin = Instant::now();
        let (mut sent, mut done) = (0, 0);
        for slot in 0..DEPTH.min(n as usize) {
            self.offer(slot);
            sent += 1;
        }
        self.guest.as_ref().unwrap().kick(self.queue);
        while done < n {
            let used = self.guest.as_mut().unwrap().wait(self.queue);
            let before = sent;
            for (head, _) in used {
                let slot = usize::from(head) / 3;
                let driver = &self.guest.as_ref().unwrap().queues[self.queue].driver;
                assert_eq!(driver.byte(self.slots[slot].2), 0, "the request failed");
                done += 1;
                if sent < n {
                    self.offer(slot);
                    sent += 1;
                }
            }
            if sent > before {
                self.guest.as_ref().unwrap().kick(self.queue);
            }
        }
        begin.elapsed()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.guest.take());
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn front_ends(c: &mut Criterion) {
    for (name, write) in [("read-4k-qd32", false), ("write-4k-qd32", true)] {
        let mut blk = Bench::new(FrontEnd::Blk, write);
        let mut scsi = Bench::new(FrontEnd::Scsi, write);
        // Everything made and mapped.
        blk.turn(TURN);
        scsi.turn(TURN);
        let rate = |took: Duration| TURN as f64 / took.as_secs_f64();
        let pairs: Vec<(f64, f64)> =
            (0..PAIRS).map(|_| (rate(blk.turn(TURN)), rate(scsi.turn(TURN)))).collect();
        let blk_rate = median(pairs.iter().map(|pair| pair.0).collect());
        let scsi_rate = median(pairs.iter().map(|pair| pair.1).collect());
        let mut ratios: Vec<f64> = pairs.iter().map(|(blk, scsi)| scsi / blk).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "{name}: blk {blk_rate:.0} IOPS, scsi {scsi_rate:.0} IOPS: {:.1} % of it \
             (single pairs: median {:.1} %, {:.1} to {:.1} %)",
            100.0 * scsi_rate / blk_rate,
            100.0 * ratios[ratios.len() / 2],
            100.0 * ratios[0],
            100.0 * ratios[ratios.len() - 1],
        );
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(1)).sample_size(20);
        for (what, bench) in [("blk", &mut blk), ("scsi", &mut scsi)] {
            group.bench_function(BenchmarkId::from_parameter(what), |b| {
                b.iter_custom(|n| bench.turn(n));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, front_ends);
criterion_main!(benches);

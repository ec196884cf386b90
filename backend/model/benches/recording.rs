//! How fast a recording is written and read: `cargo bench -p tornblk-model --bench recording [NAME]`.
//!
//! - `append`: requests a second whose submission and completion are recorded, the latter with one
//!   queue's available index: two slots each. By one thread, and by four with a queue each.
//! - `write`: the same of writes, with their data.
//! - `read/events`: events a second, read back into memory.
//! - `bytes`: data that a device reads back from the recording that it writes.
//!
//! A recording only grows, so each round has a new one, which is removed again. Making it is not
//! measured, but what its growth costs is: pages of the file that are touched for the first time,
//! and segments that are allocated. Files are in the folder for temporary ones (`TMPDIR`), below 200
//! MiB, and in the page cache.

#![allow(clippy::unwrap_used)]

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tornblk_model::event::{Disk, Event, Op, Payload, Submit};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Reader, Writer};

const CAPACITY: u64 = 1 << 30;
/// Requests of one round, where they have no data.
const REQUESTS: u64 = 200_000;
/// Bytes of data of one round.
const DATA: u64 = 64 << 20;

/// A folder, a base image, and one recording after another.
struct Rig {
    dir: TempDir,
    base: PathBuf,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::File::create(&base).unwrap().set_len(CAPACITY).unwrap();
        Rig { dir, base }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("recording")
    }

    fn writer(&self) -> Writer {
        let disk = Disk { capacity: CAPACITY, lb_size: 4096 };
        let base = BaseImage::identify(&self.base).unwrap();
        Writer::create(&self.path(), NewRecording::new(disk, base, serde_json::Value::Null))
            .unwrap()
    }

    /// How long `f` takes for a new recording, so many times.
    fn rounds(&self, times: u64, f: impl Fn(&Writer) -> Duration) -> Duration {
        let round = |_| {
            let writer = self.writer();
            let took = f(&writer);
            drop(writer);
            std::fs::remove_file(self.path()).unwrap();
            took
        };
        (0..times).map(round).sum()
    }
}

/// Records the nth request of a queue from its beginning to its end.
fn record(writer: &Writer, queue: u16, n: u64, op: Op) {
    let position = n as u16;
    let submit = Submit { queue, position, head: position % 256, ioprio: 0, op };
    let request = writer.append(&Event::Submit(submit)).unwrap();
    let visible = [(queue, position.wrapping_add(1))];
    writer.complete(&visible, Completion::ok(request)).unwrap();
}

fn reads(writer: &Writer, queue: u16, requests: u64) {
    for n in 0..requests {
        record(writer, queue, n, Op::Read { offset: n % (CAPACITY / 4096) * 4096, len: 4096 });
    }
}

/// From the moment at which the first thread begins until the last is done: they all wait until
/// everybody is there.
fn by_threads(writer: &Writer, threads: u16) -> Duration {
    let ready = Barrier::new(usize::from(threads));
    let work = |queue| {
        ready.wait();
        let begun = Instant::now();
        reads(writer, queue, REQUESTS / u64::from(threads));
        (begun, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|queue| scope.spawn(move || work(queue))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let begun = times.iter().map(|(begun, _)| *begun).min().unwrap();
    let ended = times.iter().map(|(_, ended)| *ended).max().unwrap();
    ended - begun
}

/// Fills the recording with data in writes of that length. Where it lies, in order.
fn writes(writer: &Writer, data: &[u8]) -> Vec<Payload> {
    let len = data.len() as u64;
    let write = |n| {
        let payload = writer.payload(data).unwrap();
        let offset = n * len % CAPACITY;
        record(writer, 0, n, Op::Write { offset, len, fua: false, atomic: false, payload });
        payload
    };
    (0..DATA / len).map(write).collect()
}

/// For `Throughput`, of a round that is about data in pieces of that length.
fn of_data(len: u64) -> Throughput {
    Throughput::ElementsAndBytes { elements: DATA / len, bytes: DATA }
}

const LENGTHS: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("128 KiB", 128 << 10)];

fn benches(criterion: &mut Criterion) {
    let rig = Rig::new();
    let mut group = criterion.benchmark_group("append");
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    group.throughput(Throughput::Elements(REQUESTS));
    for (name, threads) in [("1 thread", 1), ("4 threads", 4)] {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|times| rig.rounds(times, |writer| by_threads(writer, threads)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("write");
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    for (name, len) in LENGTHS {
        let data = vec![7; len];
        group.throughput(of_data(len as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|times| {
                rig.rounds(times, |writer| {
                    let begun = Instant::now();
                    writes(writer, &data);
                    begun.elapsed()
                })
            });
        });
    }
    group.finish();

    let writer = rig.writer();
    reads(&writer, 0, REQUESTS);
    let reader = Reader::open(&rig.path()).unwrap();
    let events = reader.events().count() as u64;
    let mut group = criterion.benchmark_group("read");
    group.sample_size(20).throughput(Throughput::Elements(events));
    group.bench_function("events", |bencher| {
        bencher.iter(|| {
            for event in reader.events() {
                black_box(event.unwrap());
            }
        });
    });
    group.finish();
    drop((reader, writer));
    std::fs::remove_file(rig.path()).unwrap();

    let mut group = criterion.benchmark_group("bytes");
    group.sample_size(20);
    for (name, len) in LENGTHS {
        let writer = rig.writer();
        let payloads = writes(&writer, &vec![7; len]);
        // As a device does it: into the guest's memory.
        let mut guest = vec![0; len];
        group.throughput(of_data(len as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for payload in &payloads {
                    let copy = |bytes: &[u8]| guest.copy_from_slice(bytes);
                    // SAFETY: it is finished.
                    unsafe { writer.with_bytes(payload.position, len, copy) }.unwrap();
                    black_box(&mut guest);
                }
            });
        });
        drop(writer);
        std::fs::remove_file(rig.path()).unwrap();
    }
    group.finish();
}

criterion_group! {
    name = recording;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = benches
}
criterion_main!(recording);

//! What a recording costs: bytes of file a request and heap a write, printed; and how long it takes
//! to open one of a million events, measured: `cargo bench -p tornblk-model --bench recording_size`.

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use tornblk_model::crash::History;
use tornblk_model::event::{Disk, Event, Op, Segment, Seq, Submit};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Reader, Writer};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Seconds that this thread was on a processor.
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

/// What was needed for something.
struct Cost {
    /// Bytes that it leaves allocated, and the most that it took.
    kept: usize,
    most: usize,
    /// Seconds on the clock, and on a processor.
    clock: f64,
    processor: f64,
}

fn measured<T>(f: impl FnOnce() -> T) -> (Cost, T) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let (start, started) = (Instant::now(), processor());
    let out = f();
    let cost = Cost {
        kept: NOW.load(Relaxed).saturating_sub(before),
        most: MOST.load(Relaxed) - before,
        clock: start.elapsed().as_secs_f64(),
        processor: processor() - started,
    };
    (cost, out)
}

type Failure = Box<dyn std::error::Error>;

/// Writes of 4 KiB on four queues, 16 in flight, a flush after every 200; what became visible is
/// recorded at every completion.
fn record(path: &std::path::Path, base: &std::path::Path, writes: u64) -> Result<u64, Failure> {
    let disk = Disk { capacity: 10 << 30, lb_size: 4096 };
    let new = NewRecording::new(disk, BaseImage::identify(base)?, serde_json::Value::Null);
    let writer = Writer::create(path, new)?;
    let mut positions = [0u16; 4];
    let mut flying = std::collections::VecDeque::new();
    let (mut random, mut requests) = (1u64, 0);
    let mut ask = |queue: u16, op| -> Result<(u16, u16, Seq), Failure> {
        let position = positions[usize::from(queue)];
        positions[usize::from(queue)] = position.wrapping_add(1);
        let submit = Submit { queue, position, head: position % 256, ioprio: 0, op };
        requests += 1;
        Ok((queue, position.wrapping_add(1), writer.append(&Event::Submit(submit))?))
    };
    let end = |(queue, index, request)| -> Result<(), Failure> {
        writer.complete(&[(queue, index)], Completion::ok(request))?;
        Ok(())
    };
    for n in 0..writes {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (random >> 33) % (10 << 18) * 4096;
        let payload = writer.payload(&[n as u8; 4096])?;
        let op = Op::Write { offset, len: 4096, fua: false, atomic: false, payload };
        flying.push_back(ask((n % 4) as u16, op)?);
        if flying.len() == 16 || n % 200 == 199 {
            while flying.len() > if n % 200 == 199 { 0 } else { 15 } {
                flying.pop_front().map(end).transpose()?;
            }
        }
        if n % 200 == 199 {
            end(ask(0, Op::FLUSH)?)?;
        }
    }
    for one in flying {
        end(one)?;
    }
    Ok(requests)
}

fn history(reader: &Reader) -> Result<History, Failure> {
    let mut failed = None;
    let events = reader.events().map_while(|found| found.map_err(|e| failed = Some(e)).ok());
    let history = History::new(reader.header().disk.clone(), events)?;
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(history),
    }
}

/// With their completions, and what became visible, about a million events.
const WRITES: u64 = 500_000;

fn benches(criterion: &mut Criterion) {
    if let Err(error) = costs(criterion) {
        panic!("{error}");
    }
}

fn costs(criterion: &mut Criterion) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (base, path) = (dir.path().join("base"), dir.path().join("rec"));
    std::fs::File::create(&base)?.set_len(10 << 30)?;
    let requests = record(&path, &base, WRITES)?;
    let (open, reader) = measured(|| Reader::open(&path));
    let reader = reader?;
    let info = reader.info()?;
    let beside = (info.allocated_bytes - info.payload_bytes) as f64 / requests as f64;
    println!(
        "{WRITES} writes of 4 KiB, {requests} requests, {} slots\n\
         file beside the data   {beside:.1} bytes a request ({:.2} % of 4 KiB)\n\
         Reader                 {} bytes, open in {:.1} ms",
        info.events,
        beside / 40.96,
        open.kept,
        open.clock * 1e3,
    );
    let (read, read_history) = measured(|| history(&reader));
    read_history?;
    let million = 1e6 / info.events as f64;
    println!(
        "History                {:.1} bytes a write, {:.1} at most while it is read\n\
         read into a History    {:.2} s a million events, {:.2} s of them on a processor",
        read.kept as f64 / WRITES as f64,
        read.most as f64 / WRITES as f64,
        read.clock * million,
        read.processor * million,
    );

    // One discard of a whole disk of 1 TiB.
    let disk = Disk { capacity: 1 << 40, lb_size: 4096 };
    let segments = vec![Segment { offset: 0, len: 1 << 40, unmap: false }];
    let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op: Op::Discard { segments } };
    let (cost, discarded) = measured(|| History::new(disk, [(Seq(0), Event::Submit(submit))]));
    discarded?;
    println!("discard of 1 TiB       {} bytes in a History", cost.kept);

    // The recording stands for those of a million events: throughput says how many a second.
    let mut group = criterion.benchmark_group("open");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(info.events));
    group.bench_function("events", |bencher| {
        bencher.iter(|| Reader::open(&path).map_err(Failure::from).and_then(|r| history(&r)));
    });
    group.finish();
    Ok(())
}

criterion_group!(size, benches);
criterion_main!(size);

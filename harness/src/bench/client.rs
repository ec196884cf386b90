//! The driver: libblkio's vhost-user-blk driver, one thread a queue. The same for every server.

#![allow(unsafe_code)]

use super::Load;
use blkio::{Blkio, Blkioq, Completion, Errno, ReqFlags};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// As virtio-blk's drivers have it.
const QUEUE_SIZE: i32 = 256;
/// Requests at the beginning of a run that are not counted: threads start, caches fill.
const WARM: Duration = Duration::from_millis(50);
/// How long the first request may fail.
const SETTLE: Duration = Duration::from_secs(5);
/// For the next answer, whatever the load.
const PATIENCE: Duration = Duration::from_secs(30);
/// Completions taken at once.
const BATCH: usize = 64;

/// A driver that is connected, with memory for its requests.
pub struct Driver {
    // Before the memory it uses: `Blkio` has that.
    queues: Vec<Blkioq>,
    capacity: u64,
    memory: usize,
    _blkio: Blkio,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    After(Duration),
    /// So many requests on each queue, none of them for warming up.
    Requests(u64),
}

/// What a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Answered within `time`.
    pub requests: u64,
    pub time: Duration,
    /// Answered at all: what came before and after that included.
    pub answered: u64,
    /// The first error of a request.
    pub error: Option<i32>,
}

/// Bytes of memory for the requests of one queue.
const SHARE: usize = 8 << 20;

impl Driver {
    /// Connects, and starts `queues` queues.
    ///
    /// # Errors
    /// libblkio's words.
    pub fn connect(socket: &Path, queues: u16) -> Result<Driver, String> {
        let text = |e: blkio::Error| e.message().to_owned();
        let mut blkio = Blkio::new("virtio-blk-vhost-user").map_err(text)?;
        let path = socket.to_str().ok_or("the socket's path is no text")?;
        blkio.set_str("path", path).map_err(text)?;
        blkio.connect().map_err(text)?;
        blkio.set_i32("num-queues", queues.into()).map_err(text)?;
        blkio.set_i32("queue-size", QUEUE_SIZE).map_err(text)?;
        let started = blkio.start().map_err(text)?;
        let region = blkio.alloc_mem_region(SHARE * usize::from(queues)).map_err(text)?;
        blkio.map_mem_region(&region).map_err(text)?;
        let capacity = blkio.get_u64("capacity").map_err(text)?;
        let mut queues = started.queues;
        for queue in &mut queues {
            queue.set_completion_fd_enabled(true);
        }
        let mut driver = Driver { queues, capacity, memory: region.addr, _blkio: blkio };
        driver.settle()?;
        Ok(driver)
    }

    /// libblkio does not wait until the device has taken the memory (VHOST_USER_ADD_MEM_REG without
    /// an answer), so the first requests may come before it: one is asked until it is answered well.
    fn settle(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let ran = self.run(Load::RandRead1, End::Requests(1), 1)?;
            match ran.error {
                None => return Ok(()),
                Some(error) if start.elapsed() > SETTLE => {
                    return Err(format!("the first request fails with error {error}"));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Keeps every queue busy until `end`. `seed` decides where random requests go.
    ///
    /// # Errors
    /// libblkio's words.
    pub fn run(&mut self, load: Load, end: End, seed: u64) -> Result<Ran, String> {
        let n = self.queues.len() as u64;
        let blocks = self.capacity / load.block() as u64;
        let begin = Barrier::new(self.queues.len());
        let memory = self.memory;
        let results: Vec<Result<Ran, String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..n)
                .zip(&mut self.queues)
                .map(|(i, queue)| {
                    let begin = &begin;
                    scope.spawn(move || {
                        let mut places =
                            Places { load, first: blocks * i / n, blocks, state: seed ^ (i + 1) };
                        let buffers = memory + i as usize * SHARE;
                        begin.wait();
                        busy(queue, buffers, load, end, &mut places)
                    })
                })
                .collect();
            let ended = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|_| Err("a thread of the driver ended".to_owned()))
            };
            threads.into_iter().map(ended).collect()
        });
        let mut all = Ran::default();
        for ran in results {
            let ran = ran?;
            all.requests += ran.requests;
            all.answered += ran.answered;
            all.time = all.time.max(ran.time);
            all.error = all.error.or(ran.error);
        }
        Ok(all)
    }
}

/// Where requests go.
struct Places {
    load: Load,
    first: u64,
    blocks: u64,
    state: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        let block = if self.load.random() {
            // xorshift64: any that is cheap.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            (self.state >> 11) % self.blocks
        } else {
            self.first += 1;
            (self.first - 1) % self.blocks
        };
        block * self.load.block() as u64
    }
}

/// Keeps one queue busy: a request that is answered is replaced at once.
fn busy(
    queue: &mut Blkioq,
    buffers: usize,
    load: Load,
    end: End,
    places: &mut Places,
) -> Result<Ran, String> {
    let len = load.block();
    let mut asked = 0;
    let mut ask = |queue: &mut Blkioq, slot: usize| {
        let buffer = (buffers + slot * len) as *mut u8;
        if load.writes() {
            queue.write(places.next(), buffer, len, slot, ReqFlags::empty());
        } else {
            queue.read(places.next(), buffer, len, slot, ReqFlags::empty());
        }
        asked += 1;
        asked
    };
    let mut in_flight = 0;
    for slot in 0..load.depth() {
        ask(queue, slot);
        in_flight += 1;
    }
    let mut taken = [const { MaybeUninit::<Completion>::uninit() }; BATCH];
    let start = Instant::now();
    let (warm, time) = match end {
        End::After(time) => (WARM, time),
        End::Requests(_) => (Duration::ZERO, Duration::MAX),
    };
    let mut counted_from = None;
    let mut ran = Ran::default();
    let mut over = false;
    while in_flight > 0 {
        let n =
            queue.do_io(&mut taken, 1, Some(&mut PATIENCE.clone()), None).map_err(|e| {
                match e.errno() {
                    Errno::TIME => format!("nothing was answered for {} s", PATIENCE.as_secs()),
                    _ => e.message().to_owned(),
                }
            })?;
        ran.answered += n as u64;
        let passed = start.elapsed();
        over |= passed.saturating_sub(warm) >= time;
        for one in &taken[..n] {
            // SAFETY: `do_io` has written the first `n`.
            let one = unsafe { one.assume_init_ref() };
            if one.ret != 0 {
                ran.error.get_or_insert(one.ret);
            }
            if over {
                in_flight -= 1;
            } else {
                let asked = ask(queue, one.user_data);
                over = matches!(end, End::Requests(most) if asked >= most);
            }
        }
        match counted_from {
            None if passed >= warm => counted_from = Some(passed),
            Some(from) if !over => {
                ran.requests += n as u64;
                ran.time = passed - from;
            }
            _ => {}
        }
    }
    Ok(ran)
}

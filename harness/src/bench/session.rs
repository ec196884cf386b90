//! Rounds through all cells.

use super::client::{Driver, End};
use super::server::{self, Places, Running};
use super::{BenchError, Cell, Load, Sample, Server};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to do, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    pub places: Places,
    pub loads: Vec<Load>,
    pub queues: Vec<u16>,
    pub servers: Vec<Server>,
    pub rounds: u32,
    /// Of one cell in one round.
    pub time: Duration,
    /// Bytes of the disk.
    pub size: u64,
}

/// By cell, a sample a round.
pub type Samples = HashMap<Cell, Vec<Sample>>;

impl Options {
    /// In the order of a round, which is turned about in every other one.
    fn cells(&self, round: u32) -> Vec<Cell> {
        let mut cells = Vec::new();
        for load in &self.loads {
            for queues in &self.queues {
                let mut servers = self.servers.clone();
                if round % 2 == 1 {
                    servers.reverse();
                }
                let cell = |server| Cell { load: *load, queues: *queues, server };
                cells.extend(servers.into_iter().map(cell));
            }
        }
        cells
    }

    fn image(&self, server: Server) -> PathBuf {
        // Apart: direct writes throw the other's pages out of the cache.
        self.places.folder.join(if server.direct() { "direct.img" } else { "cached.img" })
    }
}

/// Writes both images: nothing is allocated later, and no read finds a hole. Where nothing goes past
/// the page cache, the servers that would are left out.
pub fn prepare(options: &mut Options) -> Result<(), BenchError> {
    for server in [Server::RawCached, Server::RawDirect] {
        if options.servers.iter().any(|s| s.direct() == server.direct()) {
            fill(&options.image(server), options.size)?;
        }
    }
    // Where it is not used, it is in nobody's way.
    let direct = options.image(Server::RawDirect);
    if let Ok(file) = std::fs::File::open(&direct) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    match server::smallest_block(&options.image(Server::RawDirect)) {
        Some(block) => options.places.block = block,
        None => options.servers.retain(|server| !server.direct()),
    }
    Ok(())
}

fn fill(path: &Path, size: u64) -> Result<(), BenchError> {
    let failed = |source| BenchError::Io { what: "write", path: path.to_owned(), source };
    let mut file = std::fs::File::create(path).map_err(failed)?;
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 512) as u8 | 1).collect();
    let mut left = size;
    while left > 0 {
        let n = left.min(block.len() as u64);
        file.write_all(&block[..n as usize]).map_err(failed)?;
        left -= n;
    }
    file.sync_all().map_err(failed)
}

/// Has all that was written before reach the disk: who comes next does not pay for it.
fn settle(folder: &Path) -> Result<(), BenchError> {
    let failed = |source| BenchError::Io { what: "write back", path: folder.to_owned(), source };
    let file = std::fs::File::open(folder).map_err(failed)?;
    rustix::fs::syncfs(&file).map_err(|e| failed(e.into()))
}

/// All into the page cache.
fn warm(path: &Path) -> Result<(), BenchError> {
    let failed = |source| BenchError::Io { what: "read", path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut block = vec![0; 1 << 20];
    while file.read(&mut block).map_err(failed)? > 0 {}
    Ok(())
}

/// Goes through all rounds. `tell` is asked before each cell, and may end it.
pub fn run(
    options: &Options,
    tell: &mut dyn FnMut(u32, Cell) -> Result<(), BenchError>,
) -> Result<Samples, BenchError> {
    let mut samples = Samples::new();
    for round in 0..options.rounds {
        for cell in options.cells(round) {
            tell(round, cell)?;
            samples.entry(cell).or_default().push(sample(options, cell, round)?);
        }
    }
    Ok(samples)
}

fn sample(options: &Options, cell: Cell, round: u32) -> Result<Sample, BenchError> {
    let Cell { load, queues, server } = cell;
    let image = options.image(server);
    settle(&options.places.folder)?;
    if !server.direct() {
        warm(&image)?;
    }
    let running = Running::start(&options.places, server, &image)?;
    let client = |what| move |why| BenchError::Client { what, server: server.to_string(), why };
    let mut driver = Driver::connect(&running.socket(), queues).map_err(client("connect to"))?;
    let before = running.cpu();
    let ran = driver.run(load, End::After(options.time), u64::from(round) << 32 | 0x5bd1_e995);
    let ran = ran.map_err(client("ask"))?;
    let cpu = running.cpu().saturating_sub(before);
    let anonymous_kib = running.anonymous_kib();
    drop(driver);
    running.stop()?;
    if server == Server::Recording {
        server::remove(&options.places.folder.join("recording"))?;
    }
    if let Some(code) = ran.error {
        let log = server::log(&options.places, server);
        // What it said last: the log goes with the folder.
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let said = said.lines().rev().take(5).collect::<Vec<_>>().join("; ");
        return Err(BenchError::Failed { server: server.to_string(), load, code, said });
    }
    if ran.requests == 0 {
        return Err(BenchError::Nothing { server: server.to_string(), load });
    }
    Ok(Sample {
        requests_per_second: ran.requests as f64 / ran.time.as_secs_f64(),
        // All that was answered, warming up included: so is the processor time.
        cpu_ns_per_request: cpu.as_nanos() as f64 / ran.answered as f64,
        anonymous_kib,
    })
}

//! How fast the disk is: a driver on this host, without a guest, against `tornblkd` and against
//! another vhost-user-blk device, in turns.
//!
//! A [`Load`] is what the driver asks for; a [`Server`] is who answers, and how it keeps the bytes;
//! a [`Cell`] is one load on one server over some queues. A round goes through all cells, all servers
//! of a load one after another, and every other round backwards, so that what else the machine does
//! meets all alike; what one leaves to be written is written before the next. Figures are medians of
//! rounds; what is judged are their ratios ([`goals`]), never one figure by itself.
//!
//! - [`client`]: the driver.
//! - [`server`]: the devices, as processes.
//! - [`session`]: goes through the rounds.
//! - [`startup`]: from the start of the process to its first answer.
//! - [`goals`]: what the ratios are to be.
//! - [`report`]: the tables, as text and as JSON.

pub mod client;
pub mod goals;
pub mod report;
pub mod server;
pub mod session;
pub mod startup;

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What the driver asks for. Each queue has so many requests in flight all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    RandRead1,
    RandWrite1,
    RandRead32,
    RandWrite32,
    SeqRead8,
    SeqWrite8,
}

impl Load {
    pub const ALL: [Load; 6] = [
        Load::RandRead1,
        Load::RandWrite1,
        Load::RandRead32,
        Load::RandWrite32,
        Load::SeqRead8,
        Load::SeqWrite8,
    ];

    /// Bytes of a request.
    pub fn block(self) -> usize {
        match self {
            Load::SeqRead8 | Load::SeqWrite8 => 128 << 10,
            _ => 4 << 10,
        }
    }

    /// Requests in flight, on each queue.
    pub fn depth(self) -> usize {
        match self {
            Load::RandRead1 | Load::RandWrite1 => 1,
            Load::RandRead32 | Load::RandWrite32 => 32,
            Load::SeqRead8 | Load::SeqWrite8 => 8,
        }
    }

    pub fn writes(self) -> bool {
        matches!(self, Load::RandWrite1 | Load::RandWrite32 | Load::SeqWrite8)
    }

    pub fn random(self) -> bool {
        !matches!(self, Load::SeqRead8 | Load::SeqWrite8)
    }
}

/// `4k random read QD 32`
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.random() { "random" } else { "sequential" };
        let way = if self.writes() { "write" } else { "read" };
        write!(f, "{}k {order} {way} QD {}", self.block() >> 10, self.depth())
    }
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// `tornblkd`, the image through the page cache.
    RawCached,
    /// `tornblkd --direct`.
    RawDirect,
    /// `tornblkd --recording`.
    Recording,
    /// As `RawCached`, with a fault armed that never strikes.
    RawFault,
    /// As `RawCached`, with queues that look for more before they sleep.
    RawPoll,
    /// The device of the comparison, through the page cache.
    AgainstCached,
    /// The same with O_DIRECT.
    AgainstDirect,
}

impl Server {
    /// Does it need the other device?
    pub fn against(self) -> bool {
        matches!(self, Server::AgainstCached | Server::AgainstDirect)
    }

    pub fn direct(self) -> bool {
        matches!(self, Server::RawDirect | Server::AgainstDirect)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::RawCached => "raw",
            Server::RawDirect => "raw --direct",
            Server::Recording => "recording",
            Server::RawFault => "raw, fault armed",
            Server::RawPoll => "raw --poll-us 50",
            Server::AgainstCached => "other",
            Server::AgainstDirect => "other, direct",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Cell {
    pub load: Load,
    pub queues: u16,
    pub server: Server,
}

/// What one round showed of one cell.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    pub requests_per_second: f64,
    /// Processor time of the device for a request, all of its threads.
    pub cpu_ns_per_request: f64,
    /// Private memory of the device right after the load.
    pub anonymous_kib: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "`{program}` cannot be run: {source}; install it (Debian: apt-get install \
         qemu-system-common), name another with --against, or leave --against out"
    )]
    NoProgram { program: String, source: std::io::Error },
    #[error("{program} ended before it was ready: {said}")]
    Ended { program: String, said: String },
    #[error("{program} made no socket within {seconds} s: {said}")]
    Slow { program: String, seconds: u64, said: String },
    #[error("the driver cannot {what} {server}: {why}")]
    Client { what: &'static str, server: String, why: String },
    #[error("{server} answered a request with error {code} during {load}; it said last: {said}")]
    Failed { server: String, load: Load, code: i32, said: String },
    #[error("{server} answered nothing of {load} in that time: give it more with --time")]
    Nothing { server: String, load: Load },
    #[error("interrupted")]
    Interrupted,
}

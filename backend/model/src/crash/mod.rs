//! What the disk may legally contain after power is lost.
//!
//! The one place that decides it. Pure: no I/O, no threads, no clocks; readable in one sitting.
//!
//! A [`History`] is what the events say about the requests. [`History::cut`] looks at it from one
//! crash point with one [`Profile`] (which disk is this?), and yields states; a state is a
//! [`StateName`], which is enough to build its [`Content`] again: for every logical block, where
//! its bytes come from.
//!
//! The rules are in the crate's README. Where they are, in the order to read them: `history` (when
//! things happen, what is stable), `profile` (what is promised), `cut` (fragments, and what may
//! show), `state`, `name` and `build` (what a state's name says, and its content), `legal` (what is
//! allowed), `strategy`, `exhaustive` and `random` (which states to try), `damage` (faults),
//! `shrink` and `coverage` (what to say in the end), `walk` (the same states, fast).

mod build;
mod coverage;
mod cut;
mod damage;
mod exhaustive;
mod fault;
mod history;
mod legal;
mod mask;
mod moments;
mod name;
mod profile;
mod random;
mod request;
mod shrink;
pub mod size;
mod state;
mod strategy;
pub mod walk;

pub use build::content_hash;
pub use coverage::{Coverage, Covered, Outcome, WriteCuts};
pub use cut::Cut;
pub use history::{End, Stable};
pub use legal::{Clause, Violation};
pub use mask::Mask;
pub use name::{Choice, Parsed, Part, Selection};
pub use random::discard_reads_zeroes;
pub use request::{Ranges, Request, RequestKind};
pub use shrink::{Difference, Shrunk};
pub use strategy::Strategy;

use crate::event::{Disk, Seq};

/// Where the bytes of one logical block come from in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The base image.
    Base,
    /// Block number `block` of the payload of the write submitted at `request`.
    Written {
        request: Seq,
        block: u32,
    },
    Zeroes,
    /// Bytes nobody wrote, drawn from `seed` (profile `garbage`).
    Garbage {
        seed: u64,
    },
    /// As `Written`, with one bit inverted (fault `corrupt`): `bit % 8` of byte `bit / 8`, 0 the
    /// lowest. `request: None` is the base image, of which it is this same block (`block` is 0).
    Flipped {
        request: Option<Seq>,
        block: u32,
        bit: u32,
    },
}

/// A state, as content: every block that is not [`Source::Base`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub blocks: std::collections::BTreeMap<u64, Source>,
}

impl Content {
    pub fn of(&self, block: u64) -> Source {
        self.blocks.get(&block).copied().unwrap_or(Source::Base)
    }
}

/// How a disk says which writes are atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtomicMode {
    /// NVMe: every write within `max_bytes` that crosses no `boundary`.
    Implicit,
    /// SCSI: those sent as atomic, within `max_bytes`; SBC-4 has no boundary on the disk.
    Explicit,
    /// None.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscardReads {
    Zeroes,
    Old,
    Either,
}

/// Which disk this is: what it promises. `FromStr` and `Display` are the profile's name
/// (`lb512`, `req64k`, `req16k+b16k`, `piece16k`, `explicit16k`, `garbage`, ...).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    pub mode: AtomicMode,
    /// Bytes, as in Linux `queue/atomic_write_*`; 0 = one logical block, or with a `unit_max` of 0
    /// nothing is atomic. `unit_min` and `unit_max` say which writes a driver may mark atomic; what
    /// is kept whole is what `max_bytes` and `boundary` say.
    pub unit_min: u64,
    pub unit_max: u64,
    pub max_bytes: u64,
    /// Of the disk's address space, where the mode is implicit; 0 = none.
    pub boundary: u64,
    /// Smallest piece that a non-atomic write can be cut into; 0 = one logical block.
    pub tear_unit: u64,
    /// The logical block size that the profile's name demands (`lb4k`, `lba16k`).
    pub lb_size: Option<u32>,
    pub discard: DiscardReads,
    /// Volatile sectors may hold anything.
    pub garbage: bool,
}

/// A state's name: enough to build it again. Its grammar is in [`Parsed`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateName(pub String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("{0}")]
    Profile(String),
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    History(String),
    #[error("{0}")]
    Fault(String),
}

/// A fault of the model, as on the command line: `tear-atomic,nth=3`, `ignore-flush`,
/// `corrupt,range=0+1m,p=0.01`. `FromStr` and `Display`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    /// Only requests that touch these bytes: (offset, length).
    pub range: Option<(u64, u64)>,
    /// Only the nth request that could be affected, from 1.
    pub nth: Option<u64>,
    /// Otherwise each with this probability; `None` = 1.
    pub probability: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    TearAtomic,
    IgnoreFlush,
    LoseWrite,
    ReorderFlush,
    Misdirect,
    Corrupt,
    /// Live: a read returns an earlier version.
    StaleRead,
    /// Live: a request fails.
    Eio,
}

/// What the events say about the requests.
#[derive(Debug)]
pub struct History {
    disk: Disk,
    requests: Vec<Request>,
    moments: moments::Moments,
    power_cuts: Vec<Seq>,
}

//! Where the bytes of the disk live.
//!
//! A [`Store`] is asked through queues, one for each queue of the guest, each used by one thread:
//! [`StoreQueue::submit`] takes a [`Request`] and [`StoreQueue::reap`] gives it back as a [`Done`].
//! A request is consumed when it completes, so it cannot complete twice. A synchronous store
//! answers in `reap` right after `submit`; one on io_uring answers later and says so through
//! [`StoreQueue::wake_fd`].
//!
//! A store knows nothing of descriptors, features or sockets. It may rely on this: every request
//! lies inside the disk, its length is a multiple of 512 and equals its buffers' length.
//!
//! What a store promises:
//! - `Done` comes once for each request, in any order, unless the power was cut: then never again.
//! - An error ends one request, never the store.
//! - `Flush` is answered after every write to the bytes that it is of, which was *done* before its
//!   submission, is as durable as the store's medium makes it.

mod broken;
mod buffers;
mod direct;
pub mod gate;
mod image;
mod live;
mod machine;
mod power;
mod raw;
mod recording;
mod ring;
mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;

pub use buffers::Buffers;
pub use image::{Image, ImageError};
pub use live::HoldCompletions;
pub use machine::{Files, Machine, MachineError, OpenError, Options};
pub use raw::{Cache, IoEngine, RawStore};
pub use recording::{RecordingOptions, RecordingStore};
pub use ring::restricted as restricted_ring;
pub use state::StateStore;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use tornblk_model::event::{Disk, Negotiation, ResetCause, Segment};

/// Which chain of which queue: how the device finds the chain again when the request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub queue: u16,
    /// Free-running 16 bit position in the available ring.
    pub position: u16,
    /// Head descriptor.
    pub head: u16,
    /// I/O priority as the driver sent it.
    pub ioprio: u16,
}

/// One request, with the guest's memory it is about.
#[derive(Debug)]
pub struct Request {
    pub origin: Origin,
    pub op: Op,
    /// Empty for all but `Read` (to be filled) and `Write` (to be taken).
    pub buffers: Buffers,
    pub past: Past,
    pub note: Note,
    /// Of a `Write` that is never whole: the lengths of its pieces in their order, which together
    /// are the buffers'. Each is as a write of its own, and all complete together. Empty: it is one.
    pub pieces: Vec<u64>,
}

impl Request {
    /// A new one, whole, that nobody notes.
    pub fn new(origin: Origin, op: Op, buffers: Buffers) -> Request {
        let (past, note) = (Past::New, Note::default());
        Request { origin, op, buffers, past, note, pieces: Vec::new() }
    }
}

/// What is known of a request from before: the device was started again, or lost its front-end,
/// while it was in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Past {
    /// Nothing: the driver has just asked for it.
    #[default]
    New,
    /// It was taken before. A store that records knows what became of it.
    Taken,
    /// Its bytes moved before, or failed to: it must not change the disk again.
    Moved { ok: bool },
}

/// Where a store that does not record notes that a request's bytes have moved; the device finds it
/// as [`Past::Moved`] when it is started again.
#[derive(Clone, Default)]
pub struct Note(Option<(Arc<dyn Moves>, u16)>);

/// Notes of one queue.
pub trait Moves: Send + Sync {
    fn moved(&self, head: u16, ok: bool);
}

impl Note {
    pub fn new(moves: Arc<dyn Moves>, head: u16) -> Note {
        Note(Some((moves, head)))
    }

    pub(crate) fn moved(&self, ok: bool) {
        if let Some((moves, head)) = &self.0 {
            moves.moved(*head, ok);
        }
    }
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Note").field(&self.0.as_ref().map(|(_, head)| head)).finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
        fua: bool,
        atomic: bool,
    },
    /// Of these bytes; `len` 0: of everything.
    Flush {
        offset: u64,
        len: u64,
    },
    Discard {
        segments: Vec<Segment>,
    },
    WriteZeroes {
        segments: Vec<Segment>,
    },
}

impl Op {
    /// A flush of everything.
    pub const FLUSH: Op = Op::Flush { offset: 0, len: 0 };

    /// For sentences.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Read { .. } => "a read",
            Op::Write { .. } => "a write",
            Op::Flush { .. } => "a flush",
            Op::Discard { .. } => "a discard",
            Op::WriteZeroes { .. } => "a write of zeroes",
        }
    }
}

/// A request that ended.
#[derive(Debug)]
pub struct Done {
    pub request: Request,
    pub result: Result<(), Failure>,
}

/// Why one request failed. The guest only sees an I/O error; the log says more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// {0}
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A fault asked for it.
    #[error("a fault was injected")]
    Injected,
}

/// Why a disk does not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    #[error(
        "only a raw disk can grow: the crash states of a recording are those of one disk; start \
         tornblkd with a larger image, and another recording"
    )]
    Fixed,
    #[error(
        "a disk that is recorded keeps its size, which the recording says once: start tornblkd with a \
         larger image, and another recording"
    )]
    Traced,
    #[error(
        "a disk that is divided into logical units (--lun) keeps its size: start tornblkd with a larger \
         image, and the sizes that its units are to have"
    )]
    Divided,
    #[error("the image has {now} bytes and had {before}: make it larger, and try again")]
    NotLarger { before: u64, now: u64 },
    #[error(
        "the image has {now} bytes, which is no whole number of logical blocks of {block}: make \
         it {larger}"
    )]
    Odd { now: u64, block: u32, larger: u64 },
    #[error("the image's size cannot be found out: {0}")]
    Io(#[from] std::io::Error),
}

/// Tells the store which requests the guest has already made visible. Asked before each
/// completion is recorded; must cost a load a queue.
pub trait Rings: Send + Sync {
    /// Calls `f(queue, available index)` for every queue that runs.
    fn available(&self, f: &mut dyn FnMut(u16, u16));
}

pub trait Store: Send + Sync {
    fn disk(&self) -> Disk;
    fn read_only(&self) -> bool;

    /// The store's side of queue `n`. May be asked for again after a reset; what the earlier one
    /// still held is then over.
    fn queue(&self, n: u16) -> Box<dyn StoreQueue>;

    /// An eventfd that is rung where queue `n` has to be reaped, of whoever makes the queue: it may be
    /// known outside of this process's memory, and stays the same. `None`: any will do.
    fn bell(&self, _n: u16) -> Option<Arc<OwnedFd>> {
        None
    }

    /// A front-end is there. `rings` is asked from then on, until the next `connected`.
    fn connected(&self, rings: Arc<dyn Rings>);
    /// Features were agreed on.
    fn negotiated(&self, what: Negotiation);
    /// The driver switched between write-back and write-through.
    fn set_writeback(&self, on: bool);
    /// The power was cut, and no front-end has come since.
    fn is_off(&self) -> bool {
        false
    }
    /// Queue `n` has begun, before anything new is taken from it. `again`: with what an earlier device
    /// or connection left; otherwise none of that will come.
    fn begun(&self, _n: u16, _again: bool) {}
    /// Looks at the size of the medium again, which may have grown. → the capacity in bytes.
    ///
    /// # Errors
    /// It did not, or the disk keeps its size.
    fn resize(&self) -> Result<u64, ResizeError> {
        Err(ResizeError::Fixed)
    }
    /// Readable when [`Store::disk`] has another capacity than before; cleared by reading 8 bytes.
    /// The same descriptor for the life of the store; `None`: that never happens.
    fn resized(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// What was in flight on `queue` (on all where `None`) has ended without an answer. After
    /// [`ResetCause::Reconnect`] some of it may come again ([`Past::Taken`]).
    fn reset(&self, cause: ResetCause, queue: Option<u16>);
}

pub trait StoreQueue: Send {
    fn submit(&mut self, request: Request);

    /// Hands every request that ended to `f`.
    fn reap(&mut self, f: &mut dyn FnMut(Done));

    /// Readable when `reap` has something that came without `submit`. The caller clears it by
    /// reading 8 bytes (an eventfd). The same descriptor for the life of the queue.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Lets held requests go and ends the others, so that `reap` returns all there is: before a
    /// queue stops, or guest memory goes.
    fn drain(&mut self);
}

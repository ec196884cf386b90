//! The file that holds what a disk was asked to do, and the data it was given.
//!
//! A recording is one file: a header of 64 KiB, and segments of 64 MiB, each allocated
//! (`fallocate`) before anything is put into it, so that a full disk is met there and nowhere
//! else. A segment holds either *slots*, 48 bytes each, or *payload*.
//!
//! - **Order.** A slot number is taken by one fetch-add and is the event's [`Seq`]: the device's
//!   one total order. There is no lock between two threads that append.
//! - **Commit.** A slot counts from the moment its first word is stored (release), after its other
//!   words: a process that dies in between leaves a *hole*, which is skipped. That word carries a
//!   crc32c over slot number and fields, so a slot with a wrong one is corruption, wherever it is:
//!   there is no torn tail that would have to be guessed at.
//! - **Several events, one slot.** A completion and up to four [`Event::Visible`] that go with it
//!   share a slot, and so their `Seq`. A reader gives the `Visible` first. Seqs therefore never
//!   fall, but are unique only among the other kinds of event.
//! - **Payload** is aligned to the logical block (to 4 KiB at most, to 512 bytes at least), and
//!   its crc32c is taken over the recording's own copy: the guest may change its memory while a
//!   request is out.
//!
//! The writer works on a shared mapping; data of a page and more it writes, into the same page cache.
//! What it appended survives the death of its process
//! (`kill -9` too), because it is in the kernel's page cache by then; it does **not** survive a
//! power loss of the host: nothing is synced on the data path. A file that is cut short, or whose
//! disk fails, beneath the mapping raises SIGBUS; a handler puts zeroes there and poisons the
//! writer, and every later request is refused ([`RecordingError::Poisoned`]). What the kernel could
//! not write back is told nobody by itself: [`Writer::look`] asks. Readers use `pread`, and may look
//! while a writer is at work.

mod fresh;
mod header;
pub mod log_writes;
mod mapping;
mod opening;
mod reader;
mod slot;
mod space;
mod state;
mod writer;

pub use fresh::Fresh;
pub use header::{BaseImage, Header, OuterState, Trust};
pub use opening::{Opening, Survey};
pub use reader::{Counts, Events, Info, Reader, Verified};
pub use space::Space;
pub use state::{Exported, StateReader};
pub use writer::{Completion, NewRecording, Writer};

#[cfg(doc)]
use crate::event::{Event, Seq};
use crate::lock::Holder;
use std::io;
use std::path::{Path, PathBuf};

/// What [`NewRecording::segment_size`] is unless told otherwise.
pub const SEGMENT_SIZE: u64 = 64 << 20;

/// The largest logical block in bytes: far above what any kernel takes, and blocks are held in memory.
pub const LB_MAX: u32 = 16 << 20;

/// The longest [`Mark`](crate::event::Mark) in bytes.
pub const MARK_MAX: usize = 4000;

#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },

    #[error("{} exists already: choose another name, or remove it", path.display())]
    Exists { path: PathBuf },

    #[error(
        "{} is not a recording (its first bytes are not TORNBLK): give a file made by `tornblkd --recording`",
        path.display()
    )]
    Foreign { path: PathBuf },

    #[error(
        "{} is a recording of format {found}, and this program knows format {known}: use the tornblk that made it",
        path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },

    #[error(
        "{} was cut short: it has {has} bytes and needs {needs}; get a complete copy",
        path.display()
    )]
    Truncated { path: PathBuf, has: u64, needs: u64 },

    #[error("{} is damaged: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },

    #[error(
        "the recording {} is being written by {by}: end that one, or record to another file",
        path.display()
    )]
    Busy { path: PathBuf, by: Holder },

    #[error(
        "no space for the recording {}: {why}; the request fails, what is recorded stays valid",
        path.display()
    )]
    NoSpace { path: PathBuf, why: String },

    #[error(
        "the recording {} was cut short or its disk failed while it was written: nothing more is recorded",
        path.display()
    )]
    Poisoned { path: PathBuf },

    #[error("the power was cut: nothing more is recorded")]
    Frozen,

    #[error(
        "the base image {} is not the one that was recorded on: {how}; give back the original, or record anew",
        path.display()
    )]
    BaseChanged { path: PathBuf, how: String },

    #[error("{} has no event {seq}", path.display())]
    NoSuchEvent { path: PathBuf, seq: u64 },

    #[error(
        "{} was recorded without data (--record-payload no): its states cannot be shown; record with them",
        path.display()
    )]
    NoPayload { path: PathBuf },

    #[error("{} is no sound dm-log-writes log: {what}", path.display())]
    Log { path: PathBuf, what: String },

    #[error("{0}")]
    Invalid(String),
}

/// What is no file may be waited for without end (a pipe, say).
fn is_file(path: &Path) -> Result<(), RecordingError> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(RecordingError::Invalid(format!(
            "{} is no file, and so no recording: name one that is, or one that is not there yet",
            path.display()
        ))),
        // Who opens it says what is wrong.
        _ => Ok(()),
    }
}

impl RecordingError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordingError {
        let path = path.to_owned();
        move |source| RecordingError::Io { what, path, source }
    }

    /// As [`RecordingError::io`], of bytes that have to be there.
    fn short(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordingError {
        let path = path.to_owned();
        move |source| {
            let source = match source.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(source.kind(), "it was cut short"),
                _ => source,
            };
            RecordingError::Io { what, path, source }
        }
    }

    fn corrupt(path: &Path, what: impl Into<String>) -> RecordingError {
        RecordingError::Corrupt { path: path.to_owned(), what: what.into() }
    }
}

//! Logs of the kernel's `dm-log-writes` target: written by QEMU's `blklogwrites` too, and read by
//! the `replay-log` of xfstests.
//!
//! # The format
//!
//! All numbers are little-endian. The log is made of sectors, whose size the super block says: the
//! logical block of the disk. Sector 0 is the super block, the entries follow one another.
//!
//! | super block | |
//! | --- | --- |
//! | 0, 8 bytes | magic number `0x006a736677736872` |
//! | 8, 8 bytes | version, 1 |
//! | 16, 8 bytes | number of entries |
//! | 24, 4 bytes | bytes in a sector |
//!
//! | entry | |
//! | --- | --- |
//! | 0, 8 bytes | first sector on the disk |
//! | 8, 8 bytes | number of sectors |
//! | 16, 8 bytes | flags: FLUSH 1, FUA 2, DISCARD 4, MARK 8, METADATA 16 |
//! | 24, 8 bytes | of a mark: bytes of its text, which follows at 32 in the same sector |
//!
//! The sectors that were written follow their entry; a discard has none. FLUSH on an entry with
//! data precedes the data.
//!
//! # What tornblk adds
//!
//! What others ignore: bit 32 of the flags ([`ATOMIC`]), a write that was sent as atomic; bit 33
//! ([`ZEROES`]), a WRITE ZEROES, whose data is there and zero; and in the first-sector field of a
//! mark (otherwise 0), how many further entries its text goes on in, where it is longer than a
//! sector. FUA says that the entry was stable when it completed, whatever it was.
//!
//! # What is lost
//!
//! The format says in which order requests completed, not when they were submitted. So an
//! imported entry is submitted and completed at one moment ([`Writer::append_at_once`]).
//!
//! Exported is what happened up to the first power cut, in order of completion. An entry stands
//! before the entry of a flush exactly where that flush made it stable: what completed while a
//! flush was out comes after it. Among entries that were in flight together and overlap, the one
//! submitted first comes first where no flush forbids it, so that the log replays to what the disk
//! showed. A recording of several disks, in which a flush is of one of them, is not exported: the
//! format has none but flushes of everything. Reads are left out, and requests that changed nothing; a write that failed and that the
//! device had executed is in it; requests that were never answered come last.

mod export;
mod import;

pub use export::{LogExported, export};
pub use import::{ImportOptions, Imported, import};

use super::RecordingError;
#[cfg(doc)]
use super::Writer;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of the super block that mean something.
const SUPER: usize = 28;
/// Bytes of an entry before a mark's text.
const ENTRY: usize = 32;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;
/// A write that was sent as atomic.
pub const ATOMIC: u64 = 1 << 32;
/// A WRITE ZEROES.
pub const ZEROES: u64 = 1 << 33;

/// An entry, without what follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    data_len: u64,
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY] {
        let mut out = [0; ENTRY];
        let words = [self.sector, self.sectors, self.flags, self.data_len];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8; ENTRY]) -> Entry {
        let word = |i: usize| le64(&bytes[8 * i..]);
        Entry { sector: word(0), sectors: word(1), flags: word(2), data_len: word(3) }
    }
}

fn le64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

fn bad(log: &Path, what: impl Into<String>) -> RecordingError {
    RecordingError::Log { path: log.to_owned(), what: what.into() }
}

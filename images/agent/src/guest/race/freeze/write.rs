//! Bursts of direct writes, by every way that a kernel has to take them.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use super::aio;
use crate::channel::{MarkText, Target, WriteFlags};
use crate::guest::race::memory::pwrite_from;
use crate::guest::race::{Ctx, files};
use crate::guest::workload::buffer::Buffer;
use crate::guest::workload::plan::Rng;
use crate::guest::{Error, Result};

const DIRECT: WriteFlags = WriteFlags { direct: true, ..WriteFlags::PLAIN };

/// How a write is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Uring,
    Aio,
    /// pwritev2(2), one after another.
    Plain,
}

impl Way {
    pub(super) const ALL: [Way; 3] = [Way::Uring, Way::Aio, Way::Plain];

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Uring => "io_uring",
            Way::Aio => "libaio",
            Way::Plain => "pwritev2",
        }
    }
}

/// One write. The kernel only reads what is at the address, and checks that it may: nothing else
/// minds what is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) address: usize,
    pub(super) len: usize,
    pub(super) offset: u64,
}

/// Submits all at once (but for [`Way::Plain`]), and waits for all: bytes or negative errnos.
///
/// # Errors
/// There is no io_uring, or no context for libaio.
pub(super) fn write_all(way: Way, file: &File, pieces: &[Piece], rwf: u32) -> io::Result<Vec<i64>> {
    match way {
        Way::Uring => by_uring(file, pieces, rwf),
        Way::Aio => aio::write_all(file.as_raw_fd(), pieces, rwf),
        Way::Plain => Ok(pieces.iter().map(|piece| by_call(file, *piece, rwf)).collect()),
    }
}

fn by_call(file: &File, piece: Piece, rwf: u32) -> i64 {
    pwrite_from(piece.address as *const u8, piece.len, file, piece.offset, rwf as i32)
}

thread_local! {
    /// Kept for as long as its thread lives. Since Linux 7.0 the workers of a thread that has closed its
    /// last ring leave, and on 7.2.12 what is queued from its next ring while they do is never begun
    /// (nor does it return): nothing that has to do with FIFREEZE.
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

fn by_uring(file: &File, pieces: &[Piece], rwf: u32) -> io::Result<Vec<i64>> {
    let wanted = pieces.len().max(1) as u32;
    RING.with_borrow_mut(|kept| {
        let ring = match kept {
            Some(ring) if ring.params().sq_entries() >= wanted => ring,
            // The larger one is there before the smaller one goes.
            kept => kept.insert(IoUring::new(wanted)?),
        };
        by_ring(ring, file, pieces, rwf)
    })
}

fn by_ring(ring: &mut IoUring, file: &File, pieces: &[Piece], rwf: u32) -> io::Result<Vec<i64>> {
    for (i, piece) in pieces.iter().enumerate() {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Write::new(fd, piece.address as *const u8, piece.len as u32)
            .offset(piece.offset)
            .rw_flags(rwf as i32)
            .build()
            .user_data(i as u64);
        // SAFETY: the kernel reads the memory, and checks that it may; the file is borrowed until all
        // are back.
        unsafe { ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the io_uring has no room"))?;
    }
    let mut results = vec![0; pieces.len()];
    let mut left = pieces.len();
    while left > 0 {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            // Whatever it is: the memory is the kernel's until all are back.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        for done in ring.completion() {
            results[done.user_data() as usize] = i64::from(done.result());
            left -= 1;
        }
    }
    Ok(results)
}

/// Who writes the units of a target, each in rising generations.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) way: Way,
    pub(super) target: Target,
    file: Arc<File>,
    /// The last generation of each unit.
    written: Vec<u32>,
    /// Bursts of all writers that were asked for.
    asked: Arc<AtomicU64>,
}

impl Writer {
    /// `path`: where its target is written, which may be above where it lies.
    ///
    /// # Errors
    /// It cannot be opened for direct writes.
    pub(super) fn new(
        way: Way,
        target: &Target,
        path: &str,
        asked: &Arc<AtomicU64>,
    ) -> Result<Writer> {
        Ok(Writer {
            way,
            target: target.clone(),
            file: Arc::new(files::open(path, true)?),
            written: vec![0; target.units as usize],
            asked: Arc::clone(asked),
        })
    }

    /// So many units, each once.
    pub(super) fn some(&self, count: usize, rng: &mut Rng) -> Vec<u64> {
        let mut units: Vec<u64> = (0..self.target.units.into()).collect();
        rng.shuffle(&mut units);
        units.truncate(count);
        units
    }

    /// Writes a new generation of each of these units, all in flight together.
    ///
    /// # Errors
    /// The kernel refuses to set it up, or the host is gone.
    pub(super) fn burst(&mut self, ctx: &Ctx, units: &[u64]) -> Result<Vec<i64>> {
        let target = &self.target;
        let mut buffers: Vec<(u64, u32, Buffer)> = Vec::new();
        for unit in units {
            let written = &mut self.written[*unit as usize];
            *written += 1;
            buffers.push((*unit, *written, files::unit_bytes(ctx, target, *unit, *written)));
        }
        let intents = buffers.iter().map(|(u, g, _)| files::intent(target, *u, *g, DIRECT));
        ctx.mark(intents.collect())?;
        let pieces: Vec<Piece> = buffers
            .iter()
            .map(|(unit, _, buffer)| Piece {
                address: buffer.bytes().as_ptr() as usize,
                len: buffer.bytes().len(),
                offset: target.offset_of(*unit),
            })
            .collect();
        ctx.did(format!("{} writes by {}", units.len(), self.way.name()));
        self.asked.fetch_add(1, Ordering::Relaxed);
        let results = write_all(self.way, &self.file, &pieces, 0)
            .map_err(Error::system(format!("cannot write by {}", self.way.name())))?;
        ctx.did(format!("{} writes by {} returned", units.len(), self.way.name()));
        let done = buffers.iter().zip(&results);
        let done = done.map(|((u, g, _), r)| files::done(target, *u, *g, *r));
        ctx.mark(done.collect::<Vec<MarkText>>())?;
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_way_writes_all_and_tells_what_failed() {
        let file = tempfile::tempfile().unwrap();
        let read_only = File::open("/proc/self/exe").unwrap();
        let bytes = [7u8; 1024];
        let piece =
            |n: u64| Piece { address: bytes.as_ptr() as usize, len: bytes.len(), offset: n * 1024 };
        for (i, way) in Way::ALL.into_iter().enumerate() {
            let at = i as u64 * 4;
            match write_all(way, &file, &[piece(at), piece(at + 1)], 0) {
                Ok(results) => assert_eq!(results, [1024, 1024], "{}", way.name()),
                Err(e) => {
                    println!("skipped {}: {e}", way.name());
                    continue;
                }
            }
            let mut back = [0; 2048];
            file.read_exact_at(&mut back, at * 1024).unwrap();
            assert_eq!(back, [7; 2048]);
            let failed = write_all(way, &read_only, &[piece(0)], 0).unwrap();
            assert_eq!(failed, [-i64::from(libc::EBADF)], "{}", way.name());
            let nowhere = Piece { address: 4096, len: 1024, offset: 0 };
            let failed = write_all(way, &file, &[nowhere, piece(at)], 0).unwrap();
            assert_eq!(failed, [-i64::from(libc::EFAULT), 1024], "{}", way.name());
        }
    }
}

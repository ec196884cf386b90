//! What is there after a workload, sector by sector.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{Advice, fadvise};

use super::buffer::Buffer;
use super::check;
use crate::channel::{Found, Readback, Target, UnitFound, Workload};
use crate::guest::Result;
use crate::payload::{SECTOR, classify};
use crate::planted::{PageId, recover, slot_of};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Reads every unit of every target.
pub fn readback(workload: &Workload) -> Result<Readback> {
    check(workload)?;
    let mut units = Vec::new();
    for target in &workload.files {
        read_target(target, workload.nonce, &mut units);
    }
    Ok(Readback { units })
}

fn read_target(target: &Target, nonce: u64, out: &mut Vec<UnitFound>) {
    let sectors = target.unit / SECTOR as u32;
    let source = match Source::open(&target.path) {
        Ok(source) => source,
        Err(e) => {
            let found = match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => Found::Missing {},
                errno => Found::Error { errno: errno.unwrap_or(libc::EIO) },
            };
            out.extend((0..target.units.into()).map(|unit| UnitFound {
                file: target.file,
                unit,
                runs: vec![(sectors, found.clone())],
            }));
            return;
        }
    };
    let unit_len = target.unit as usize;
    let mut buffer = Buffer::new(CHUNK);
    let mut next = 0;
    while next < u64::from(target.units) {
        let count = (u64::from(target.units) - next).min((CHUNK / unit_len) as u64);
        let bytes = &mut buffer.bytes_mut()[..count as usize * unit_len];
        let read = source.read(bytes, target.offset_of(next));
        for (i, piece) in bytes.chunks_exact_mut(unit_len).enumerate() {
            let unit = next + i as u64;
            let mut runs = Runs::default();
            match read {
                Ok(n) => {
                    let there = n.saturating_sub(i * unit_len).min(unit_len);
                    if there == unit_len
                        && recover_unit(&source, target, nonce, unit, piece).is_err()
                    {
                        read_apart(&source, piece, target, nonce, unit, &mut runs);
                        out.push(UnitFound { file: target.file, unit, runs: runs.0 });
                        continue;
                    }
                    classify_unit(&piece[..there], sectors, nonce, target.file, unit, &mut runs);
                }
                Err(_) => read_apart(&source, piece, target, nonce, unit, &mut runs),
            }
            out.push(UnitFound { file: target.file, unit, runs: runs.0 });
        }
        next += count;
    }
}

/// Makes of a unit what the recovery of its protocol makes of it. An error where its slot cannot be
/// read.
fn recover_unit(
    source: &Source,
    target: &Target,
    nonce: u64,
    unit: u64,
    page: &mut [u8],
) -> io::Result<()> {
    let Some(range) = slot_of(target, unit) else { return Ok(()) };
    let mut slot = Buffer::new((range.end - range.start) as usize);
    let n = source.read(slot.bytes_mut(), range.start)?;
    recover(page, &slot.bytes()[..n], PageId { nonce, file: target.file, unit });
    Ok(())
}

/// `bytes` is what is there of the unit; the rest is beyond the end.
fn classify_unit(bytes: &[u8], sectors: u32, nonce: u64, file: u32, unit: u64, runs: &mut Runs) {
    for sector in 0..sectors {
        let from = sector as usize * SECTOR;
        runs.push(match bytes.get(from..from + SECTOR) {
            Some(block) => classify(block, nonce, file, unit, sector),
            None => Found::Missing {},
        });
    }
}

/// A larger read failed somewhere: ask for the smallest pieces, to say which.
fn read_apart(
    source: &Source,
    bytes: &mut [u8],
    target: &Target,
    nonce: u64,
    unit: u64,
    runs: &mut Runs,
) {
    let base = target.offset_of(unit);
    let step = source.smallest.min(bytes.len());
    for (i, piece) in bytes.chunks_exact_mut(step).enumerate() {
        let from = i * step;
        match source.read(piece, base + from as u64) {
            Ok(n) => {
                for at in (0..step).step_by(SECTOR) {
                    runs.push(if at + SECTOR <= n {
                        let sector = ((from + at) / SECTOR) as u32;
                        classify(&piece[at..at + SECTOR], nonce, target.file, unit, sector)
                    } else {
                        Found::Missing {}
                    });
                }
            }
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                (0..step / SECTOR).for_each(|_| runs.push(Found::Error { errno }));
            }
        }
    }
}

/// Equal neighbours together.
#[derive(Default)]
struct Runs(Vec<(u32, Found)>);

impl Runs {
    fn push(&mut self, found: Found) {
        match self.0.last_mut() {
            Some((n, last)) if *last == found => *n += 1,
            _ => self.0.push((1, found)),
        }
    }
}

/// A target to read: from the disk, not from the page cache, where that can be had.
struct Source {
    file: File,
    /// Bytes that can be read apart from others.
    smallest: usize,
}

impl Source {
    fn open(path: &str) -> io::Result<Source> {
        let mut options = OpenOptions::new();
        options.read(true);
        if let Ok(file) = options.clone().custom_flags(libc::O_DIRECT).open(path) {
            let mut probe = Buffer::new(1 << 16);
            // The smallest read it takes; some take the flag and then no read at all.
            let smallest = [SECTOR, 4096, 8192, 16384, 32768, 65536].into_iter().find(|len| {
                let read = file.read_at(&mut probe.bytes_mut()[..*len], 0);
                !read.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
            });
            if let Some(smallest) = smallest {
                return Ok(Source { file, smallest });
            }
        }
        let file = options.open(path)?;
        // Clean pages go; what is dirty is the truth anyway.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(Source { file, smallest: SECTOR })
    }

    /// As much as there is, up to the end of the file.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // After a short direct read at the end of the file.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

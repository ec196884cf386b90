//! Files and ranges as they shall be before the first write, durably.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::buffer::Buffer;
use super::is_block_device;
use crate::channel::{Prepare, Target, Workload};
use crate::guest::{Error, Result, sys};
use crate::payload::{Stamp, fill};
use crate::planted::slot_len;

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

/// Makes the target's range what `prepare` and `load` say.
pub fn prepare(target: &Target, workload: &Workload) -> Result<()> {
    let path = &target.path;
    let file = super::open(target, false)?;
    let device = is_block_device(&file)?;
    let (start, end) = (target.offset, target.end());
    let failed = |what: &str| Error::system(format!("cannot {what} {path}"));
    if device {
        if target.prepare != Prepare::AsIs {
            return Err(Error::Refused(format!("{path} is a block device: prepare it as-is")));
        }
        let size = (&file).seek(SeekFrom::End(0)).map_err(failed("find the size of"))?;
        if end > size {
            return Err(Error::Refused(format!(
                "{path} has {size} bytes, too small for {} units of {} from {start}",
                target.units, target.unit
            )));
        }
    }
    if target.prepare != Prepare::AsIs {
        empty(&file, start, end).map_err(failed("empty"))?;
    }
    match target.prepare {
        Prepare::AsIs if !workload.load => return Ok(()),
        Prepare::AsIs | Prepare::Written => write_all(target, workload)?,
        Prepare::Unwritten => {
            fallocate(&file, FallocateFlags::empty(), start, end - start)
                .map_err(unsupported(path, "fallocate"))?;
        }
        Prepare::Hole => {}
        Prepare::Reflinked => {
            write_all(target, workload)?;
            file.sync_all().map_err(failed("sync"))?;
            let clone = format!("{path}.clone");
            let other = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&clone)
                .map_err(Error::system(format!("cannot make {clone}")))?;
            sys::clone_range(&file, &other, start, end - start)
                .map_err(unsupported(path, "FICLONERANGE"))?;
            other.sync_all().map_err(Error::system(format!("cannot sync {clone}")))?;
        }
    }
    file.sync_all().map_err(failed("sync"))?;
    if !device {
        sync_parent(path)?;
    }
    Ok(())
}

/// A hole, whatever was there, in a file that reaches its end.
fn empty(file: &File, start: u64, end: u64) -> std::io::Result<()> {
    let size = file.metadata()?.len();
    if size > start {
        if start == 0 && size <= end {
            file.set_len(0)?;
        } else {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, mode, start, end - start)?;
        }
    }
    file.set_len(size.max(end))
}

/// Writes every unit: generation 0, or zeroes where nothing is to be loaded.
fn write_all(target: &Target, workload: &Workload) -> Result<()> {
    let path = &target.path;
    let loaded = target.is_loaded(workload.load);
    // Past the page cache where that works: what is loaded should not linger there.
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok();
    let plain = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::system(format!("cannot open {path} for writing")))?;
    let unit = target.unit as usize;
    let mut buffer = Buffer::new(CHUNK);
    let mut next = 0;
    while next < u64::from(target.units) {
        let units = (u64::from(target.units) - next).min((CHUNK / unit) as u64);
        let bytes = &mut buffer.bytes_mut()[..units as usize * unit];
        if loaded {
            for (i, block) in bytes.chunks_exact_mut(unit).enumerate() {
                fill(block, stamp(target, workload, next + i as u64, 0));
            }
        }
        let offset = target.offset_of(next);
        let by_direct = direct.as_ref().is_some_and(|f| f.write_all_at(bytes, offset).is_ok());
        if !by_direct {
            plain.write_all_at(bytes, offset).map_err(Error::system(format!(
                "cannot write {} bytes at {offset} of {path} to load it",
                bytes.len()
            )))?;
        }
        next += units;
    }
    clear_slots(target, &plain)
}

/// Zeroes in the slots of the target's protocol: what an earlier run left there is none of ours,
/// and the file's blocks are written before they are written over.
fn clear_slots(target: &Target, file: &File) -> Result<()> {
    let zeroes = vec![0; slot_len(target) as usize];
    let end = target.end();
    let mut at = target.offset_of(target.units.into());
    while at < end {
        file.write_all_at(&zeroes, at)
            .map_err(Error::system(format!("cannot clear the slots of {}", target.path)))?;
        at += zeroes.len() as u64;
    }
    Ok(())
}

/// What a unit says of itself.
pub fn stamp(target: &Target, workload: &Workload, unit: u64, generation: u32) -> Stamp {
    Stamp { nonce: workload.nonce, unit, file: target.file, generation, sector: 0, sectors: 0 }
}

/// The name of a new file is in its directory.
fn sync_parent(path: &str) -> Result<()> {
    let parent = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::system(format!("cannot sync {}", parent.display())))
}

fn unsupported<E: Into<std::io::Error>>(path: &str, what: &str) -> impl FnOnce(E) -> Error {
    let what = format!("{what} of {path}");
    move |e| {
        let e = e.into();
        match e.raw_os_error() {
            Some(errno @ (libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS)) => {
                Error::Unsupported(format!("{what}: {}", crate::guest::explain(errno)))
            }
            _ => Error::system(what)(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn emptying_a_range_leaves_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 16384]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        empty(&file, 4096, 8192).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 16384);
        for (i, piece) in bytes.chunks(4096).enumerate() {
            let expected = if i == 1 { 0 } else { 7 };
            assert!(piece.iter().all(|b| *b == expected), "piece {i}");
        }
        empty(&file, 0, 32768).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 32768]);
        empty(&file, 65536, 69632).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 69632);
    }
}

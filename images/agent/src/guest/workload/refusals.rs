//! Atomic writes that no kernel may take: that they are refused, and change nothing.
//!
//! What is promised is worth something only where everything beyond it is refused: a write that is
//! taken although it cannot be kept whole is a torn one in waiting.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::io::{ReadWriteFlags, pwritev2};

use super::buffer::Buffer;
use super::{RWF_ATOMIC, is_block_device};
use crate::channel::{AtomicLimits, Refusal, RefusalCase};
use crate::guest::{Error, Result};

/// What is written where it should not be, and what was there.
const NEW: u8 = 0xa5;
const OLD: u8 = 0x5a;

/// One write to be refused: bytes from the range's start, length, buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    case: RefusalCase,
    at: u32,
    len: u32,
    buffers: usize,
    direct: bool,
}

/// Asks for them, one after the other, somewhere in the [`AtomicLimits::refusal_bytes`] from `offset`.
pub fn ask(path: &str, offset: u64, limits: &AtomicLimits, block: u32) -> Result<Vec<Refusal>> {
    if limits.unit_max == 0 || limits.unit_min == 0 {
        return Err(Error::Refused(format!(
            "{path}: without limits there is nothing to go beyond"
        )));
    }
    let existed = std::fs::exists(path).unwrap_or(false);
    let refusals = ask_in(path, offset, limits, block);
    if !existed {
        // It was only made for this.
        let _ = std::fs::remove_file(path);
    }
    refusals
}

fn ask_in(path: &str, offset: u64, limits: &AtomicLimits, block: u32) -> Result<Vec<Refusal>> {
    let open = |direct: bool| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(!path.starts_with("/dev/"))
            .custom_flags(if direct { libc::O_DIRECT } else { 0 })
            .open(path)
            .map_err(Error::system(format!("cannot open {path} for writing")))
    };
    let (buffered, direct) = (open(false)?, open(true)?);
    let offset = start(offset, limits);
    let mut before = Buffer::new(longest(limits) as usize);
    if is_block_device(&direct)? {
        read(&direct, path, offset, before.bytes_mut())?;
    } else {
        before.bytes_mut().fill(OLD);
        restore(&direct, path, offset, before.bytes())?;
    }
    let mut refusals = Vec::new();
    for case in cases(limits, block) {
        let file = if case.direct { &direct } else { &buffered };
        let result = write(file, offset, case);
        if !case.direct && result >= 0 {
            // What the page cache took shall be seen below.
            buffered.sync_data().map_err(Error::system(format!("cannot sync {path}")))?;
        }
        let mut after = Buffer::new(before.bytes().len());
        read(&direct, path, offset, after.bytes_mut())?;
        let changed = after.bytes() != before.bytes();
        if changed {
            restore(&direct, path, offset, before.bytes())?;
        }
        refusals.push(Refusal { case: case.case, call: call(offset, case), result, changed });
    }
    Ok(refusals)
}

fn longest(limits: &AtomicLimits) -> u32 {
    2 * limits.unit_max
}

/// Where the longest is aligned to its own length, and so each of them: or it might be refused for
/// that.
fn start(offset: u64, limits: &AtomicLimits) -> u64 {
    offset.next_multiple_of(u64::from(longest(limits)))
}

/// What can be asked for with these limits: where the smallest unit is a logical block, nothing is
/// shorter, and so on.
fn cases(limits: &AtomicLimits, block: u32) -> Vec<Case> {
    let AtomicLimits { unit_min: min, unit_max: max, .. } = *limits;
    let plain = |case| Case { case, at: 0, len: max, buffers: 1, direct: true };
    let mut cases = vec![
        Case { len: min, direct: false, ..plain(RefusalCase::Buffered) },
        Case { len: longest(limits), ..plain(RefusalCase::TooLong) },
    ];
    if max > block {
        cases.push(Case { at: block, ..plain(RefusalCase::Misaligned) });
        cases.push(Case { buffers: 2, ..plain(RefusalCase::TwoBuffers) });
    }
    if min > block {
        cases.push(Case { len: min / 2, ..plain(RefusalCase::TooShort) });
    }
    if max / min >= 4 {
        cases.push(Case { len: 3 * min, ..plain(RefusalCase::OddLength) });
    }
    cases
}

fn write(file: &File, offset: u64, case: Case) -> i64 {
    let mut buffer = Buffer::new(case.len as usize);
    buffer.bytes_mut().fill(NEW);
    let pieces: Vec<IoSlice<'_>> = buffer
        .bytes()
        .chunks((case.len as usize).div_ceil(case.buffers))
        .map(IoSlice::new)
        .collect();
    let how = ReadWriteFlags::from_bits_retain(RWF_ATOMIC);
    match pwritev2(file, &pieces, offset + u64::from(case.at), how) {
        Ok(n) => n as i64,
        Err(e) => -i64::from(e.raw_os_error()),
    }
}

fn call(offset: u64, case: Case) -> String {
    let open = if case.direct { ", O_DIRECT" } else { "" };
    let buffers = if case.buffers > 1 { ", in two buffers" } else { "" };
    let Case { len, at, .. } = case;
    format!("pwritev2(len {len}, offset {}, RWF_ATOMIC{open}{buffers})", offset + u64::from(at))
}

fn read(file: &File, path: &str, offset: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, offset)
        .map_err(Error::system(format!("cannot read {} bytes at {offset} of {path}", bytes.len())))
}

fn restore(file: &File, path: &str, offset: u64, bytes: &[u8]) -> Result<()> {
    file.write_all_at(bytes, offset)
        .and_then(|()| file.sync_data())
        .map_err(Error::system(format!("cannot write {} bytes at {offset} of {path}", bytes.len())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limits(unit_min: u32, unit_max: u32) -> AtomicLimits {
        AtomicLimits { unit_min, unit_max, ..AtomicLimits::default() }
    }

    /// tmpfs takes no O_DIRECT on older kernels; where the tests are built is seldom one.
    fn folder_with_direct_io() -> tempfile::TempDir {
        let built = std::env::current_exe().unwrap();
        let parents = [std::env::temp_dir(), built.parent().unwrap().to_owned()];
        let takes_it = |dir: &tempfile::TempDir| {
            let mut file = OpenOptions::new();
            file.write(true).create(true).custom_flags(libc::O_DIRECT);
            let path = dir.path().join("probe");
            file.open(&path).and_then(|_| std::fs::remove_file(&path)).is_ok()
        };
        let mut folders = parents.iter().filter_map(|parent| tempfile::tempdir_in(parent).ok());
        folders.find(takes_it).unwrap_or_else(|| {
            panic!("no O_DIRECT in any of {parents:?}: set TMPDIR to a folder on a disk")
        })
    }

    #[test]
    fn every_case_goes_beyond_the_limits_in_one_way() {
        let limits_of = limits(4096, 65536);
        let all = cases(&limits_of, 512);
        assert_eq!(all.len(), 6);
        // The range that a caller gives starts where it likes: at a multiple of `unit_max` or not.
        for offset in [0, 512, 4096, 65536, 3 * 65536, (1 << 30) - 65536, (1 << 30) + 512] {
            for case in &all {
                let len = u64::from(case.len);
                let at = start(offset, &limits_of) + u64::from(case.at);
                let wrong = [
                    !case.direct,
                    !at.is_multiple_of(len) && len.is_power_of_two(),
                    len > 65536,
                    len < 4096,
                    !len.is_power_of_two(),
                    case.buffers != 1,
                ];
                assert_eq!(wrong.iter().filter(|w| **w).count(), 1, "{case:?} at {at}");
                assert!(at >= offset, "{case:?} at {at}");
                assert!(at + len <= offset + limits_of.refusal_bytes(), "{case:?} at {at}");
            }
        }
        // Nothing is shorter than a logical block, or between it and its double.
        let few: Vec<RefusalCase> = cases(&limits(512, 512), 512).iter().map(|c| c.case).collect();
        assert_eq!(few, [RefusalCase::Buffered, RefusalCase::TooLong]);
    }

    #[test]
    fn a_file_without_atomic_writes_refuses_them_all_and_is_gone_afterwards() {
        let dir = folder_with_direct_io();
        let path = dir.path().join("f").to_string_lossy().into_owned();
        let refusals = ask(&path, 0, &limits(4096, 16384), 512).unwrap();
        assert_eq!(refusals.len(), 6);
        assert!(refusals.iter().all(|r| r.result < 0 && !r.changed), "{refusals:?}");
        assert!(!std::fs::exists(&path).unwrap());
    }

    #[test]
    fn nothing_lies_beyond_no_limits() {
        assert!(ask("/nonexistent", 0, &AtomicLimits::default(), 512).is_err());
    }
}

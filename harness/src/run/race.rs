//! What a lane with a race has, and another has not: a poisoned disk, findings of the guest's own, and
//! what may not reach the disk while its file system is frozen.

use super::{Lab, RunError};
use crate::oracle::{Clause, Finding};
use crate::suite::Lane;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use tornblk_agent::payload::POISON;
use tornblk_agent::race::RaceFinding;

/// Bytes written or read at once.
const CHUNK: usize = 1 << 20;

/// Makes a lane's image: full of poison where the lane says so, else sparse.
pub(super) fn make_image(path: &Path, lane: &Lane) -> Result<(), RunError> {
    let mut image = File::create(path).map_err(RunError::io("make", path))?;
    if lane.poison {
        let chunk = POISON.repeat(CHUNK / POISON.len());
        let mut left = lane.capacity;
        while left > 0 {
            let n = left.min(CHUNK as u64);
            image.write_all(&chunk[..n as usize]).map_err(RunError::io("write", path))?;
            left -= n;
        }
    }
    image.set_len(lane.capacity).map_err(RunError::io("make", path))
}

/// Is the poison still there after the file system was made? Else stale bytes could not be told from
/// zeroes.
pub(super) fn check_poison(path: &Path, lane: &Lane) -> Result<(), RunError> {
    if !lane.poison {
        return Ok(());
    }
    let mut image = File::open(path).map_err(RunError::io("open", path))?;
    let mut chunk = vec![0; CHUNK];
    let (mut poisoned, mut all) = (0u64, 0u64);
    loop {
        let n = image.read(&mut chunk).map_err(RunError::io("read", path))?;
        if n == 0 {
            break;
        }
        // A word a page is enough.
        let words = chunk[..n].chunks(4096).filter_map(|page| page.get(..POISON.len()));
        words.for_each(|word| {
            all += 1;
            poisoned += u64::from(word == POISON);
        });
    }
    if poisoned * 2 < all {
        return Err(RunError::Bad(format!(
            "of the poison under the file system {poisoned} of {all} pages are left: `mkfs` must not \
             discard the disk (mkfs.xfs -K, mkfs.ext4 -E nodiscard)"
        )));
    }
    Ok(())
}

/// As the harness tells it.
pub(super) fn finding(found: RaceFinding) -> Result<Finding, RunError> {
    let RaceFinding { clause, file, path, offset, len, text, timeline } = found;
    let clause = Clause::named(&clause).ok_or_else(|| {
        RunError::Bad(format!(
            "the guest found \"{clause}\", which this program does not know: {text}"
        ))
    })?;
    Ok(Finding { file, path, offset, len, timeline, ..Finding::new(clause, text) })
}

/// What reached the disk while its file system was frozen.
pub(super) fn frozen(
    _lab: &mut dyn Lab,
    _recording: &Path,
    _lane: &Lane,
) -> Result<Vec<Finding>, RunError> {
    Ok(Vec::new())
}

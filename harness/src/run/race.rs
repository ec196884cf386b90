//! What a lane with a race has, and another has not: a poisoned disk, findings of the guest's own, and a
//! bundle that runs it again.

use super::cut::CutReport;
use super::session::RECORDING;
use super::{Lab, RunError, Settings};
use crate::explore::bundle::{EXTENSION, Judge, Meta, Needed, RaceAgain, pack};
use crate::oracle::{Clause, Finding};
use crate::suite::Lane;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_agent::payload::POISON;
use tornblk_agent::race::RaceFinding;
use tornblk_model::crash::StateName;
use tornblk_model::recording::Reader;

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

/// Makes one file of a red cut: its disk, and where that does not show it, the race itself. → its path.
///
/// # Errors
/// There is no recording, or the file cannot be written.
pub(super) fn bundle(
    lab: &dyn Lab,
    lane: (&str, &Lane),
    settings: &Settings,
    cut: &CutReport,
    profile: &str,
) -> Result<Option<PathBuf>, RunError> {
    let (suite, lane) = lane;
    let (Some(race), Some(folder)) = (&lane.race, &cut.folder) else { return Ok(None) };
    let recording = folder.join(RECORDING);
    let bad = |e: &dyn std::fmt::Display| RunError::Bad(format!("no bundle can be made: {e}"));
    let reader = Arc::new(Reader::open(&recording).map_err(|e| bad(&e))?);
    let state = StateName(cut.state.clone());
    let mut meta = Meta::new(state, profile.to_owned(), Judge::Guest);
    meta.findings.clone_from(&cut.judgement.findings);
    meta.image = lab.image_lock();
    let of_the_disk = |finding: &Finding| finding.clause.is_of_the_disk();
    let live = !cut.judgement.findings.iter().all(of_the_disk);
    meta.race = live.then(|| RaceAgain {
        suite: suite.to_owned(),
        text: race.text.clone(),
        lane: lane.name.clone(),
        seed: settings.seed,
        cut: cut.number,
        cuts: settings.cuts,
        faults: settings.faults.iter().map(ToString::to_string).collect(),
    });
    let path = folder.with_extension(EXTENSION);
    pack(&path, &reader, None, &Needed::All, &meta).map_err(|e| bad(&e))?;
    Ok(Some(path))
}

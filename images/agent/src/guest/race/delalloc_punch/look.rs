//! Looks at the file from every side while nobody changes it.

use std::fs::File;

use rustix::fs::SeekFrom;

use super::ground::{Ground, Region};
use super::model::clause;
use crate::channel::Found;
use crate::guest::race::files;
use crate::guest::{Error, Result, sys};
use crate::payload::SECTOR;

/// After an fsync: what was stored is there, mapped, read and on the disk; what failed left nothing;
/// each piece of data has blocks; nothing is reserved that nobody writes.
pub(super) fn look(ground: &Ground, region: Region) -> Result<()> {
    ground.ctx.did("everybody is done: looking");
    let Region { first, units } = region;
    let mut mapped = vec![0; units as usize * SECTOR];
    ground
        .map
        .load(ground.byte(first) as usize, &mut mapped)
        .map_err(Error::system("cannot read the mapping"))?;
    show(ground, region, "mapped", &mapped);
    show(ground, region, "read", read(ground, &ground.file, region)?.as_slice());
    ground.drop_cache(first, units);
    show(
        ground,
        region,
        "read again after its pages were dropped",
        &read(ground, &ground.file, region)?,
    );
    show(ground, region, "on the disk", &read(ground, &ground.direct, region)?);
    if let Some(sharer) = &ground.sharer {
        shared(ground, region, &read(ground, sharer, region)?);
    }
    blocks(ground, region)
}

/// The file that shares the blocks has what both had at first: what is stored beneath a reservation
/// that was wrongly given back is written there.
fn shared(ground: &Ground, region: Region, bytes: &[u8]) {
    for (unit, bytes) in (region.first..).zip(bytes.chunks_exact(SECTOR)) {
        let found = files::sectors(&ground.ctx, &ground.target, unit, bytes);
        let Some(found) = found.first().filter(|found| **found != Found::Own { r#gen: 0 }) else {
            continue;
        };
        let words = files::in_words(std::slice::from_ref(found));
        let text = format!(
            "unit {unit} of the file that shares blocks with {}, and that nobody wrote to, shows {words}",
            ground.target.path
        );
        return ground.ctx.found("misdirected", None, text);
    }
}

fn read(ground: &Ground, file: &File, region: Region) -> Result<Vec<u8>> {
    let bytes = ground.read(file, region.first, region.units);
    Ok(bytes.map_err(Error::system("cannot read the file"))?.bytes().to_vec())
}

/// One view, judged by the model: the first unit that is wrong of each kind.
fn show(ground: &Ground, region: Region, view: &str, bytes: &[u8]) {
    let mut wrong: Vec<(&str, u64, u64, String)> = Vec::new();
    for (unit, bytes) in (region.first..).zip(bytes.chunks_exact(SECTOR)) {
        let Some(expected) = ground.model().expected(unit) else { continue };
        let found = files::sectors(&ground.ctx, &ground.target, unit, bytes);
        let Some(found) = found.first().filter(|found| **found != expected) else { continue };
        let clause = clause(&expected, found);
        match wrong.iter_mut().find(|(known, ..)| *known == clause) {
            Some((_, _, n, _)) => *n += 1,
            None => {
                let words = |one: &Found| files::in_words(std::slice::from_ref(one));
                let text = format!(
                    "unit {unit} shows {} where it has to show {} ({view})",
                    words(found),
                    words(&expected)
                );
                wrong.push((clause, unit, 1, text));
            }
        }
    }
    for (clause, unit, n, text) in wrong {
        let more = if n > 1 { format!(", and so do {} units more", n - 1) } else { String::new() };
        let at = (&ground.target, ground.byte(unit), SECTOR as u32);
        ground.ctx.found(clause, Some(at), format!("{text}{more}"));
    }
}

/// What FIEMAP and SEEK_DATA say.
fn blocks(ground: &Ground, region: Region) -> Result<()> {
    let (start, len) = (ground.byte(region.first), region.units * SECTOR as u64);
    let extents = sys::extents(&ground.file, start, len)
        .map_err(Error::system("cannot ask for the file's extents"))?;
    for extent in extents.iter().filter(|extent| extent.delayed) {
        let text = format!(
            "after fsync {} bytes at {} are still reserved and have no blocks: nobody will write \
             them, nobody gives them back",
            extent.len, extent.offset
        );
        let at = (&ground.target, extent.offset, u32::try_from(extent.len).unwrap_or(u32::MAX));
        ground.ctx.found("leaked", Some(at), text);
    }
    for unit in region.first..region.first + region.units {
        if !ground.model().has_data(unit) {
            continue;
        }
        let at = ground.byte(unit);
        let lies = extents.iter().find(|e| e.offset <= at && at < e.offset + e.len);
        let fiemap = match lies {
            None => Some("a hole"),
            Some(extent) if extent.unwritten => Some("blocks that were never written"),
            Some(_) => None,
        };
        let place = Some((&ground.target, at, SECTOR as u32));
        if let Some(what) = fiemap {
            let text = format!("after fsync FIEMAP shows {what} under the data of unit {unit}");
            ground.ctx.found("incoherent", place, text);
            break;
        }
        let data = rustix::fs::seek(&ground.file, SeekFrom::Data(at));
        let hole = rustix::fs::seek(&ground.file, SeekFrom::Hole(at));
        if data != Ok(at) || !hole.is_ok_and(|hole| hole >= at + SECTOR as u64) {
            let text = format!(
                "after fsync SEEK_DATA at {at}, in the data of unit {unit}, says {data:?}, and \
                 SEEK_HOLE {hole:?}"
            );
            ground.ctx.found("incoherent", place, text);
            break;
        }
    }
    Ok(())
}

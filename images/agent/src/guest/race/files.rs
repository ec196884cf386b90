//! Files of units: written with their marks, and looked at from every side.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{Advice, fadvise};

use super::Ctx;
use crate::channel::{Found, MarkText, Target, WriteFlags};
use crate::guest::workload::buffer::Buffer;
use crate::guest::workload::prepare::{self, stamp};
use crate::guest::{Error, Result, sys};
use crate::payload::{SECTOR, classify, fill};

/// Opens a target's file, made where it is missing.
///
/// # Errors
/// It cannot be opened.
pub fn open(path: &str, direct: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map_err(Error::system(format!("cannot open {path}")))
}

/// Makes the lane's targets as they shall be, durably, and says so.
///
/// # Errors
/// One cannot be made, or the host is gone.
pub fn load(ctx: &Ctx) -> Result<()> {
    let workload = &ctx.race.workload;
    for target in &workload.files {
        prepare::prepare(target, workload)?;
    }
    ctx.phase("load-done")
}

/// A unit's bytes in a generation.
pub fn unit_bytes(ctx: &Ctx, target: &Target, unit: u64, generation: u32) -> Buffer {
    let mut buffer = Buffer::new(target.unit as usize);
    fill(buffer.bytes_mut(), stamp(target, &ctx.race.workload, unit, generation));
    buffer
}

pub fn intent(target: &Target, unit: u64, generation: u32, flags: WriteFlags) -> MarkText {
    MarkText::Intent {
        file: target.file,
        unit,
        r#gen: generation,
        offset: target.offset_of(unit),
        len: target.unit,
        flags,
        at: None,
    }
}

pub fn done(target: &Target, unit: u64, generation: u32, result: i64) -> MarkText {
    MarkText::Done { file: target.file, unit, r#gen: generation, result }
}

/// Writes a unit in a generation, with its marks: bytes, or a negative errno.
///
/// # Errors
/// The host is gone.
pub fn write_unit(
    ctx: &Ctx,
    file: &File,
    target: &Target,
    unit: u64,
    generation: u32,
    flags: WriteFlags,
) -> Result<i64> {
    let buffer = unit_bytes(ctx, target, unit, generation);
    ctx.mark(vec![intent(target, unit, generation, flags)])?;
    let result = pwrite(file, buffer.bytes(), target.offset_of(unit), flags);
    ctx.did(format!("pwrite of unit {unit}, generation {generation}: {result}"));
    ctx.mark(vec![done(target, unit, generation, result)])?;
    Ok(result)
}

/// pwritev2(2), once: bytes, or a negative errno.
pub fn pwrite(file: &File, bytes: &[u8], offset: u64, flags: WriteFlags) -> i64 {
    pwritev2_once(file, bytes, offset, crate::guest::workload::rwf(flags, false))
}

/// The same with the flags of the system call.
pub fn pwritev2_once(file: &File, bytes: &[u8], offset: u64, rwf: u32) -> i64 {
    use rustix::io::{ReadWriteFlags, pwritev2};
    let how = ReadWriteFlags::from_bits_retain(rwf);
    match pwritev2(file, &[io::IoSlice::new(bytes)], offset, how) {
        Ok(n) => n as i64,
        Err(e) => -i64::from(e.raw_os_error()),
    }
}

/// fsync(2) of a target, with its mark: what was done before is durable. `forget`: say so only.
///
/// # Errors
/// The host is gone.
pub fn sync(ctx: &Ctx, file: &File, target: &Target, forget: bool) -> Result<i64> {
    // Everything that is recorded by now.
    let since = ctx.mark(Vec::new())?;
    let result = match (!forget).then(|| rustix::fs::fsync(file)) {
        None | Some(Ok(())) => 0,
        Some(Err(e)) => -i64::from(e.raw_os_error()),
    };
    ctx.did(format!("fsync of {}: {result}", target.path));
    ctx.mark(vec![MarkText::Synced { file: target.file, since, result }])?;
    Ok(result)
}

/// Drops what the page cache has of a range, if it is clean: whole pages. `len` 0: up to the end.
///
/// # Errors
/// The kernel's.
pub fn drop_cache(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(fadvise(file, offset, std::num::NonZeroU64::new(len), Advice::DontNeed)?)
}

/// Where on the disk a unit lies (bytes), where that is one place.
///
/// # Errors
/// It is nowhere, or in several.
pub fn place(file: &File, target: &Target, unit: u64) -> Result<(u64, u64)> {
    let len = u64::from(target.unit);
    let at = sys::place_of(file, target.offset_of(unit), len);
    let at = at.ok_or_else(|| {
        Error::Refused(format!("unit {unit} of {} is not in one place of the disk", target.path))
    })?;
    Ok((at, len))
}

/// What the sectors of a unit are, told from its bytes; beyond them it is missing.
pub fn sectors(ctx: &Ctx, target: &Target, unit: u64, bytes: &[u8]) -> Vec<Found> {
    let nonce = ctx.race.workload.nonce;
    (0..target.unit / SECTOR as u32)
        .map(|sector| {
            let from = sector as usize * SECTOR;
            match bytes.get(from..from + SECTOR) {
                Some(block) => classify(block, nonce, target.file, unit, sector),
                None => Found::Missing {},
            }
        })
        .collect()
}

/// Reads a unit by read(2): its bytes, fewer at the end of the file.
///
/// # Errors
/// The kernel's.
pub fn read_unit(file: &File, target: &Target, unit: u64) -> io::Result<Vec<u8>> {
    let mut buffer = Buffer::new(target.unit as usize);
    let mut done = 0;
    while done < buffer.bytes().len() {
        match file.read_at(&mut buffer.bytes_mut()[done..], target.offset_of(unit) + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A direct read behind the end.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(buffer.bytes()[..done].to_vec())
}

/// Sectors in words: `3 x generation 7, 5 x zeroes`.
pub fn in_words(sectors: &[Found]) -> String {
    // Runs: how many, and the first.
    let mut runs: Vec<(u32, &Found)> = Vec::new();
    for sector in sectors {
        match runs.last_mut() {
            Some((n, first)) if follows(first, *n, sector) => *n += 1,
            _ => runs.push((1, sector)),
        }
    }
    let word = |(n, found): &(u32, &Found)| match found {
        Found::Own { r#gen } => format!("{n} x generation {gen}"),
        Found::Misplaced { file, unit, sector, r#gen } => {
            let which = match n {
                1 => format!("sector {sector}"),
                n => format!("sectors {sector} to {}", sector + n - 1),
            };
            format!("{n} x {which} of unit {unit} of file {file}, generation {gen}")
        }
        Found::Foreign { nonce } => format!("{n} x a block of another run ({nonce:#x})"),
        Found::Corrupt {} => format!("{n} x a wrong checksum"),
        Found::Zero {} => format!("{n} x zeroes"),
        Found::Poison {} => format!("{n} x what lay on the disk before the file system was made"),
        Found::Unknown {} => format!("{n} x unknown bytes"),
        Found::Missing {} => format!("{n} x beyond the end"),
        Found::Error { errno } => format!("{n} x {}", crate::guest::explain(*errno)),
    };
    runs.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// Is this what comes `n` sectors behind `first`, if it goes on like that?
fn follows(first: &Found, n: u32, found: &Found) -> bool {
    match (first, found) {
        (
            Found::Misplaced { file, unit, sector, r#gen },
            Found::Misplaced { file: f, unit: u, sector: s, r#gen: g },
        ) => (file, unit, sector + n, r#gen) == (f, u, *s, g),
        _ => first == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_another_file_is_told_in_one_word() {
        let other = |sector| Found::Misplaced { file: 2, unit: 7, sector, r#gen: 3 };
        let own = Found::Own { r#gen: 1 };
        let words = in_words(&[own.clone(), own, other(4), other(5), other(7), Found::Zero {}]);
        assert_eq!(
            words,
            "2 x generation 1, 2 x sectors 4 to 5 of unit 7 of file 2, generation 3, \
             1 x sector 7 of unit 7 of file 2, generation 3, 1 x zeroes"
        );
    }
}

//! Files whose every byte is known: what they must hold, and what they are seen to hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use super::ask::{Op, Way};
use super::{step, sys};
use crate::channel::{Found, Target, WriteFlags};
use crate::guest::race::memory::{Map, PAGE};
use crate::guest::race::{Ctx, files};
use crate::guest::workload::buffer::Buffer;
use crate::guest::{Error, Result};
use crate::payload::SECTOR;

/// A target, and what it holds.
#[derive(Debug)]
pub struct Bed {
    pub target: Target,
    pub file: Arc<File>,
    pub direct: Arc<File>,
    /// The bytes of the file.
    pub image: Vec<u8>,
    generations: Vec<u32>,
}

impl Bed {
    /// Of the lane's target `n`, as it was loaded.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(ctx: &Ctx, n: usize) -> Result<Bed> {
        let target = ctx.target(n)?.clone();
        let file = Arc::new(files::open(&target.path, false)?);
        let direct = Arc::new(files::open(&target.path, true)?);
        let mut image = Vec::new();
        for unit in 0..u64::from(target.units) {
            if target.is_loaded(ctx.race.workload.load) {
                image.extend_from_slice(files::unit_bytes(ctx, &target, unit, 0).bytes());
            } else {
                image.resize(image.len() + target.unit as usize, 0);
            }
        }
        let generations = vec![0; target.units as usize];
        Ok(Bed { target, file, direct, image, generations })
    }

    pub fn units(&self) -> u64 {
        self.target.units.into()
    }

    pub fn unit(&self) -> usize {
        self.target.unit as usize
    }

    /// Where a unit begins, also in `image`.
    pub fn offset(&self, unit: u64) -> u64 {
        unit * u64::from(self.target.unit)
    }

    /// The next generation of a unit.
    pub fn next(&mut self, unit: u64) -> u32 {
        let generation = &mut self.generations[unit as usize];
        *generation += 1;
        *generation
    }

    /// What a range of the image is.
    pub fn bytes(&self, unit: u64) -> &[u8] {
        let from = self.offset(unit) as usize;
        &self.image[from..from + self.unit()]
    }

    /// The file has these bytes in a unit.
    pub fn set(&mut self, unit: u64, bytes: &[u8]) {
        let from = self.offset(unit) as usize;
        self.image[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// All ways to a unit, through a mapping of its own, which has nothing mapped yet.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn way(&self, unit: u64) -> Result<Way> {
        let what = format!("cannot map {}", self.target.path);
        let len = (self.units() as usize * self.unit()).next_multiple_of(PAGE);
        let map = Map::shared(&self.file, 0, len);
        Ok(Way {
            file: Arc::clone(&self.file),
            direct: Arc::clone(&self.direct),
            map: Arc::new(map.map_err(Error::system(what))?),
            offset: self.offset(unit),
            len: self.unit(),
        })
    }

    /// Writes the next generation of a unit past the page cache: → was there space for all of it?
    ///
    /// # Errors
    /// The host is gone.
    pub fn write(&mut self, ctx: &Ctx, unit: u64) -> Result<bool> {
        step();
        let generation = self.next(unit);
        let flags = WriteFlags { direct: true, may_fail: true, ..WriteFlags::PLAIN };
        let result = files::write_unit(ctx, &self.direct, &self.target, unit, generation, flags)?;
        // A file system that is full takes less.
        let bytes = files::unit_bytes(ctx, &self.target, unit, generation);
        self.set(unit, &bytes.bytes()[..result.max(0) as usize]);
        Ok(result == i64::from(self.target.unit))
    }

    /// Writes every second unit that is a hole.
    ///
    /// # Errors
    /// The host is gone.
    pub fn fill_even(&mut self, ctx: &Ctx) -> Result<()> {
        for unit in (0..self.units()).step_by(2) {
            if self.bytes(unit).iter().all(|byte| *byte == 0) {
                self.write(ctx, unit)?;
            }
        }
        Ok(())
    }

    /// What was done to it is durable, or so it is said.
    ///
    /// # Errors
    /// The host is gone.
    pub fn sync(&self, ctx: &Ctx) -> Result<()> {
        step();
        files::sync(ctx, &self.file, &self.target, ctx.wrong("forget-fsync")).map(|_| ())
    }

    /// Stores the next generation of a unit to a mapping, and makes it durable: → was there space?
    ///
    /// # Errors
    /// The host is gone.
    pub fn store(&mut self, ctx: &Ctx, unit: u64, map: &Map) -> Result<bool> {
        step();
        let generation = self.next(unit);
        let bytes = files::unit_bytes(ctx, &self.target, unit, generation);
        let flags = WriteFlags { may_fail: true, ..WriteFlags::PLAIN };
        ctx.mark(vec![files::intent(&self.target, unit, generation, flags)])?;
        let stored = sys::store(map, self.offset(unit) as usize, bytes.bytes());
        ctx.did(format!("stores unit {unit}, generation {generation}, to the mapping: {stored:?}"));
        let result = stored.as_ref().map_or_else(errno, |()| bytes.bytes().len() as i64);
        ctx.mark(vec![files::done(&self.target, unit, generation, result)])?;
        if let Err(e) = &stored {
            if !is_no_space(ctx, e)? {
                let at = Some((&self.target, self.offset(unit), self.target.unit));
                ctx.found("wrong-result", at, format!("a store to the mapping failed: {e}"));
            }
            return Ok(false);
        }
        self.set(unit, bytes.bytes());
        self.sync(ctx)?;
        Ok(true)
    }

    /// Makes holes of units, durably, with their marks.
    ///
    /// # Errors
    /// The host is gone.
    pub fn empty(&mut self, ctx: &Ctx, units: &[u64]) -> Result<()> {
        let marks = self.gone(units);
        ctx.mark(marks.iter().map(|(intent, _)| intent.clone()).collect())?;
        for unit in units {
            step();
            Op::Punch.ask(&self.file, self.offset(*unit), self.unit() as u64).map_err(
                Error::system(format!("cannot punch unit {unit} of {}", self.target.path)),
            )?;
            self.set(*unit, &vec![0; self.unit()]);
        }
        ctx.mark(marks.into_iter().map(|(_, done)| done).collect())?;
        self.sync(ctx)
    }

    /// The marks of taking units away: intent and done.
    pub fn gone(
        &mut self,
        units: &[u64],
    ) -> Vec<(crate::channel::MarkText, crate::channel::MarkText)> {
        // A punch of some blocks need not be whole.
        let flags = WriteFlags { zero: true, may_fail: true, ..WriteFlags::PLAIN };
        let mark = |unit: &u64| {
            let generation = self.next(*unit);
            (
                files::intent(&self.target, *unit, generation, flags),
                files::done(&self.target, *unit, generation, self.target.unit.into()),
            )
        };
        units.iter().map(mark).collect()
    }

    /// Makes the file as long as it was, if it is not.
    ///
    /// # Errors
    /// It cannot be.
    pub fn resize(&mut self, ctx: &Ctx) -> Result<()> {
        let len = self.units() as usize * self.unit();
        if self.image.len() == len {
            return Ok(());
        }
        self.image.resize(len, 0);
        ctx.did(format!("ftruncate of {} to {len}", self.target.path));
        self.file.set_len(len as u64).map_err(Error::system("ftruncate"))
    }

    /// Looks at the whole file from every side: read, mapped, and past the page cache. `after`: what was
    /// done before. → Is all as it must be?
    ///
    /// # Errors
    /// It cannot be read.
    pub fn look(&self, ctx: &Ctx, after: &str) -> Result<bool> {
        let failed = |how: &str| Error::system(format!("cannot read {} ({how})", self.target.path));
        step();
        let read = whole(&self.file).map_err(failed("read"))?;
        step();
        let len = read.len().min(self.image.len());
        let map = Map::shared_to_read(&self.file, 0, len.max(1)).map_err(failed("mmap"))?;
        let mapped = sys::load(&map, 0, len).map_err(failed("mmap"))?;
        step();
        let direct = whole(&self.direct).map_err(failed("O_DIRECT"))?;
        step();
        let views = [("read(2)", &read), ("mmap", &mapped), ("O_DIRECT", &direct)];
        if views.iter().all(|(_, bytes)| **bytes == self.image) {
            return Ok(true);
        }
        let agree = read == mapped && read == direct;
        for (how, bytes) in views {
            self.compare(ctx, &format!("{after}, {how} shows"), bytes, agree);
        }
        Ok(false)
    }

    /// Tells the first unit of a view that is not as it must be.
    fn compare(&self, ctx: &Ctx, what: &str, bytes: &[u8], agree: bool) {
        let size = self.unit();
        if bytes.len() != self.image.len() {
            let text = format!("{what} {} bytes of {}", bytes.len(), self.image.len());
            return ctx.found("wrong-result", Some((&self.target, 0, 0)), text);
        }
        let wrong = bytes.chunks(size).zip(self.image.chunks(size)).position(|(a, b)| a != b);
        let Some(wrong) = wrong else { return };
        let unit = wrong as u64;
        let seen =
            files::sectors(ctx, &self.target, unit, &bytes[wrong * size..(wrong + 1) * size]);
        let due = files::sectors(ctx, &self.target, unit, self.bytes(unit));
        let clause = clause(self.target.file, &seen, &due, agree);
        let text = format!(
            "{what} in unit {unit}: {}; due: {}",
            files::in_words(&seen),
            files::in_words(&due)
        );
        ctx.found(clause, Some((&self.target, self.offset(unit), self.target.unit)), text);
    }

    /// Tells bytes that were read while they changed, and that are neither old nor new.
    pub fn alien(&self, ctx: &Ctx, unit: u64, bytes: &[u8], what: &str) {
        let seen = files::sectors(ctx, &self.target, unit, bytes);
        let clause = match clause(self.target.file, &seen, &[], true) {
            // No sector is alien as a whole: a short read, or bytes of both in one.
            "stale" | "lost" => "wrong-result",
            other => other,
        };
        let text = format!("{what} gives {}, neither old nor new", files::in_words(&seen));
        ctx.found(clause, Some((&self.target, self.offset(unit), self.target.unit)), text);
    }
}

/// Which promise sectors break that are not those that are `due`. `agree`: every view shows the same.
fn clause(file: u32, seen: &[Found], due: &[Found], agree: bool) -> &'static str {
    let any = |what: fn(&Found) -> bool| seen.iter().any(what);
    let others =
        |found: &Found| matches!(found, Found::Misplaced { file: other, .. } if *other != file);
    if seen.iter().any(others) {
        "misdirected"
    } else if any(|f| matches!(f, Found::Foreign { .. } | Found::Poison {})) {
        "foreign"
    } else if any(|f| matches!(f, Found::Corrupt {} | Found::Unknown {})) {
        "corrupt"
    } else if !agree {
        "incoherent"
    } else if due.iter().all(|f| *f == Found::Zero {}) {
        "stale"
    } else {
        "lost"
    }
}

/// A file from its begin to its end.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len() as usize;
    let mut buffer = Buffer::new(len.next_multiple_of(SECTOR));
    let mut done = 0;
    while done < len {
        match file.read_at(&mut buffer.bytes_mut()[done..], done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(buffer.bytes()[..done].to_vec())
}

pub fn errno(e: &io::Error) -> i64 {
    -i64::from(e.raw_os_error().unwrap_or(libc::EIO))
}

/// The space of a file system that is nearly full: what is freed is what is taken next.
#[derive(Debug)]
pub struct Space {
    /// Takes what is free.
    pub other: Bed,
    taken: Vec<u64>,
}

impl Space {
    /// Fills the file system but for some blocks, none beside another: a unit of several blocks has room
    /// only where one was freed.
    ///
    /// # Errors
    /// It cannot be filled.
    pub fn fill(ctx: &Ctx, other: Bed) -> Result<Space> {
        let Some(mount) = &ctx.race.mount else {
            return Err(Error::Refused("the race is of files".into()));
        };
        let root = &mount.target;
        keep_nothing_back(ctx, &File::open(root).map_err(Error::system("cannot open the root"))?);
        let block = rustix::fs::statvfs(root).map_err(Error::system("statvfs"))?.f_frsize;
        // What the file system allocates at once.
        let grain = grain(ctx, block);
        let (ballast, cushion) = (
            files::open(&format!("{root}/ballast"), false)?,
            files::open(&format!("{root}/cushion"), false)?,
        );
        let slack = slack(ctx);
        // To punch may need blocks for a moment.
        take(&cushion, slack * grain)?;
        let size = take_all(&ballast, root)?;
        step();
        rustix::fs::ftruncate(&cushion, 0).map_err(Error::system("cannot empty the cushion"))?;
        cushion.sync_all().map_err(Error::system("cannot sync the cushion"))?;
        for at in (0..slack).map(|n| (2 * n + 1) * grain).take_while(|at| at + grain <= size) {
            step();
            Op::Punch
                .ask(&ballast, at, grain)
                .map_err(Error::system("cannot punch the ballast"))?;
        }
        step();
        ballast.sync_all().map_err(Error::system("cannot sync the ballast"))?;
        step();
        take(&cushion, slack * grain)?;
        cushion.sync_all().map_err(Error::system("cannot sync the cushion"))?;
        Ok(Space { other, taken: Vec::new() })
    }

    /// Writes blocks of another file until they are those that were freed: → are they?
    ///
    /// # Errors
    /// The host is gone.
    pub fn reuse(&mut self, ctx: &Ctx, freed: &[(u64, u64)]) -> Result<bool> {
        let mut left: u64 = freed.iter().map(|(_, len)| len).sum();
        let all = left;
        for unit in 0..self.other.units() {
            if left == 0 || self.taken.contains(&unit) {
                continue;
            }
            let written = self.other.write(ctx, unit)?;
            self.taken.push(unit);
            if !written {
                break;
            }
            let at = self.other.offset(unit);
            let places = sys::places(&self.other.file, at, self.other.unit() as u64)
                .map_err(Error::system(format!("FIEMAP of {}", self.other.target.path)))?;
            let common: u64 =
                places.iter().flat_map(|a| freed.iter().map(|b| overlap(*a, *b))).sum();
            left = left.saturating_sub(common);
        }
        ctx.did(format!("another file has {} of {all} bytes that were freed", all - left));
        Ok(left < all)
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// It cannot be freed, or the host is gone.
    pub fn give_back(&mut self, ctx: &Ctx) -> Result<()> {
        let taken = std::mem::take(&mut self.taken);
        if taken.is_empty() { Ok(()) } else { self.other.empty(ctx, &taken) }
    }
}

/// How many grains are left free, and what a grain is.
fn slack(ctx: &Ctx) -> u64 {
    ctx.number("slack", 64)
}

fn grain(ctx: &Ctx, block: u64) -> u64 {
    ctx.number("grain", block)
}

/// Did a store fail because the file system is nearly full? A fault that finds no space tells no more than
/// that it failed.
///
/// # Errors
/// The file system does not tell what is free.
pub fn is_no_space(ctx: &Ctx, e: &io::Error) -> Result<bool> {
    if !matches!(e.raw_os_error(), Some(libc::EFAULT | libc::ENOSPC)) {
        return Ok(false);
    }
    let root = ctx.race.mount.as_ref().map_or("/", |mount| &mount.target);
    let stat = rustix::fs::statvfs(root).map_err(Error::system("statvfs"))?;
    // What was punched since then is free as well.
    Ok(stat.f_bavail * stat.f_frsize <= 2 * slack(ctx) * grain(ctx, stat.f_frsize))
}

/// Blocks that XFS may keep back: what has been written must find room in its maps.
const XFS_RESERVE: u64 = 64;

/// A file system keeps some of its blocks for itself; that they are free is no good here.
fn keep_nothing_back(ctx: &Ctx, root: &File) {
    let disk = ctx.race.device.rsplit('/').next().unwrap_or_default();
    if std::fs::write(format!("/sys/fs/ext4/{disk}/reserved_clusters"), "0").is_err()
        && let Err(e) = sys::set_xfs_reserve(root, XFS_RESERVE)
    {
        ctx.note(format!("what the file system keeps back stays: {e}"));
    }
}

/// Gives a file blocks, also where there is no fallocate.
fn take(file: &File, len: u64) -> Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.write_all_at(&vec![0; len as usize], 0),
        other => other.map_err(io::Error::from),
    }
    .map_err(Error::system("cannot allocate the cushion"))
}

/// Gives a file all blocks that there are: → how many bytes.
fn take_all(file: &File, root: &str) -> Result<u64> {
    let stat = rustix::fs::statvfs(root).map_err(Error::system("statvfs"))?;
    let (mut size, mut part) = (0, stat.f_bavail * stat.f_frsize);
    while part >= stat.f_frsize {
        step();
        match fallocate(file, FallocateFlags::empty(), size, part) {
            Ok(()) => size += part,
            Err(rustix::io::Errno::NOSPC) => part = part / 2 / stat.f_frsize * stat.f_frsize,
            Err(rustix::io::Errno::OPNOTSUPP) => return write_all(file),
            Err(e) => return Err(Error::system("cannot allocate the ballast")(e)),
        }
    }
    Ok(size)
}

/// The same without fallocate.
fn write_all(file: &File) -> Result<u64> {
    let (mut size, mut chunk) = (0, 1 << 20);
    let zeroes = vec![0; chunk];
    while chunk >= SECTOR {
        step();
        match file.write_at(&zeroes[..chunk], size) {
            Ok(n) => size += n as u64,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => chunk /= 2,
            Err(e) => return Err(Error::system("cannot write the ballast")(e)),
        }
    }
    file.sync_all().map_err(Error::system("cannot sync the ballast"))?;
    Ok(size)
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> u64 {
    let (from, to) = (a.0.max(b.0), (a.0 + a.1).min(b.0 + b.1));
    to.saturating_sub(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap() {
        assert_eq!(overlap((0, 10), (5, 10)), 5);
        assert_eq!(overlap((0, 10), (10, 10)), 0);
        assert_eq!(overlap((20, 1), (0, 100)), 1);
    }

    #[test]
    fn what_belongs_to_others_comes_first() {
        let theirs = Found::Misplaced { file: 2, unit: 0, sector: 0, r#gen: 1 };
        let own = Found::Own { r#gen: 1 };
        let zero = [Found::Zero {}, Found::Zero {}];
        assert_eq!(clause(1, &[own.clone(), theirs.clone()], &zero, false), "misdirected");
        assert_eq!(clause(2, &[own.clone(), theirs], &zero, true), "stale", "its own, elsewhere");
        assert_eq!(clause(1, &[own.clone(), Found::Poison {}], &zero, true), "foreign");
        assert_eq!(clause(1, std::slice::from_ref(&own), &zero, true), "stale");
        assert_eq!(clause(1, std::slice::from_ref(&own), &zero, false), "incoherent");
        assert_eq!(clause(1, &zero, &[own], true), "lost");
    }
}

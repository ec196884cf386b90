//! The races of suite `buffered-atomic`: blocks of several pages that are written through the page
//! cache, and what could come between their parts.
//!
//! - [`probe`]: RWF_ATOMIC through the page cache: refused and nothing changed, or taken and then whole.
//! - [`sync`]: what RWF_DSYNC, RWF_SYNC and fsync promise while the disk holds their requests, and
//!   writes over the same folio before and during its writeback.
//! - [`short`]: a copy that ends in the middle of a block while the kernel writes it back, made on
//!   purpose; sources that are not all there.
//! - [`pressure`]: writeback that nobody asked for by fsync; stores to a mapping during writeback.
//!
//! A lane says which by `part`. What every sector must show is known at each time ([`Unit::sectors`]),
//! in the page cache and on the disk, beside what the marks promise after a cut.

mod pressure;
mod probe;
mod short;
mod sync;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Duration;

use super::task::Seen;
use super::{Ctx, PATIENCE, Stall, Task, Which, files};
use crate::channel::{Found, Target, WriteFlags};
use crate::guest::workload::buffer::Buffer;
use crate::guest::{Error, Result, explain, sys};
use crate::payload::SECTOR;
use crate::race::DeviceOp;

/// Runs the lane's race.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    files::load(ctx)?;
    let mut work = Work::new(ctx)?;
    match ctx.text("part", "") {
        "probe" => probe::run(&mut work),
        "sync" => sync::run(&mut work),
        "overwrite" => sync::overwrite(&mut work),
        "short-copy" => short::run(&mut work),
        "sources" => short::sources(&mut work),
        "pressure" => pressure::run(&mut work),
        "mapped" => pressure::mapped(&mut work),
        other => Err(Error::Refused(format!("there is no part \"{other}\" of this race"))),
    }
}

/// What a unit must show now.
#[derive(Clone, Debug)]
struct Unit {
    /// The generation that was last asked for.
    last: u32,
    /// Of each sector; `None`: zeroes.
    sectors: Vec<Option<u32>>,
}

/// A target, and what must be in it.
#[derive(Debug)]
struct Area {
    target: Target,
    file: Arc<File>,
    units: Vec<Unit>,
}

/// Everything that a part works with.
#[derive(Debug)]
struct Work {
    ctx: Arc<Ctx>,
    areas: Vec<Area>,
    /// The disk beneath the file system, past every page cache.
    disk: File,
    /// The kernel takes a unit with RWF_ATOMIC through the page cache.
    atomic: bool,
}

/// How a unit is written.
#[derive(Clone, Copy, Debug)]
struct How {
    name: &'static str,
    /// RWF_SYNC or RWF_DSYNC, or neither.
    rwf: i32,
    /// With RWF_ATOMIC, where that is taken.
    atomic: bool,
}

const PLAIN: How = How { name: "no flags", rwf: 0, atomic: false };
const ATOMIC: How = How { name: "RWF_ATOMIC where it is taken", rwf: 0, atomic: true };
const DSYNC: How = How { name: "RWF_DSYNC", rwf: libc::RWF_DSYNC, atomic: true };
const SYNC: How = How { name: "RWF_SYNC", rwf: libc::RWF_SYNC, atomic: true };

impl How {
    /// Durable when it has returned.
    fn is_durable(self) -> bool {
        self.rwf != 0
    }
}

/// A unit, by its area and its number.
type At = (usize, u64);
type Sectors = std::ops::Range<usize>;

/// Who has to wait for nothing has returned by then, and who waits for the disk is asleep. Who is late
/// misses a moment, which makes a lane inconclusive and never red. A request is held for [`SETTLES`] and
/// [`NOT_WAITING`] at most, which is far from where the kernel complains by itself (30 s).
const NOT_WAITING: Duration = Duration::from_secs(8);
const SETTLES: Duration = Duration::from_secs(4);
/// Who sleeps that long at one place, where it waits for a writeback that is held, waits for that.
const STAYS: Duration = Duration::from_secs(1);

/// Does a thread with this stack wait until a folio was written back (stable pages, writing through)?
fn waits_for_writeback(stack: &str) -> bool {
    stack.contains("writeback") || stack.contains("stable")
}

/// A write over what is in writeback, begun.
struct Over {
    sectors: Option<Sectors>,
    generation: u32,
    task: Task<i64>,
    /// It did not wait for that.
    result: Option<i64>,
}

impl Work {
    fn new(ctx: &Arc<Ctx>) -> Result<Work> {
        let open = |target: &Target| {
            let loaded = target.is_loaded(ctx.race.workload.load);
            let sectors = vec![loaded.then_some(0); target.unit as usize / SECTOR];
            let unit = Unit { last: 0, sectors };
            Ok(Area {
                file: Arc::new(files::open(&target.path, false)?),
                units: vec![unit; target.units as usize],
                target: target.clone(),
            })
        };
        let areas = ctx.race.workload.files.iter().map(open).collect::<Result<Vec<_>>>()?;
        let device = &ctx.race.device;
        let disk = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(device)
            .map_err(Error::system(format!("cannot open {device}")))?;
        let mut work = Work { ctx: Arc::clone(ctx), areas, disk, atomic: false };
        work.atomic = work.takes_atomic()?;
        Ok(work)
    }

    /// A buffered write of so many bytes with RWF_ATOMIC to a file beside the target, where it is
    /// nobody's: bytes, or a negative errno.
    fn ask_beside(&self, len: u32) -> Result<i64> {
        let path = format!("{}.probe", self.areas[0].target.path);
        let file = files::open(&path, false)?;
        let bytes = vec![0x5a; len as usize];
        file.write_all_at(&bytes, 0).map_err(Error::system(format!("cannot write {path}")))?;
        let asker = Task::start("asker", move || pwrite(&file, &bytes, 0, libc::RWF_ATOMIC))?;
        let result = self.ctx.answer(&asker, "a buffered write with RWF_ATOMIC")?;
        let _ = std::fs::remove_file(&path);
        Ok(result)
    }

    fn takes_atomic(&self) -> Result<bool> {
        let len = self.areas[0].target.unit;
        let result = self.ask_beside(len)?;
        let taken = result == i64::from(len);
        self.ctx.note(match taken {
            true => format!(
                "RWF_ATOMIC is taken through the page cache ({len} bytes): all or nothing is demanded \
                 of such writes"
            ),
            false => format!(
                "RWF_ATOMIC through the page cache ({len} bytes): {}; plain writes stand in for it",
                outcome(result)
            ),
        });
        Ok(taken)
    }

    /// Does a control want this to be done wrong?
    fn wrong(&self, what: &str) -> bool {
        self.ctx.wrong(what)
    }

    fn target(&self, (area, _): At) -> &Target {
        &self.areas[area].target
    }

    fn file(&self, (area, _): At) -> &Arc<File> {
        &self.areas[area].file
    }

    fn unit_mut(&mut self, (area, unit): At) -> &mut Unit {
        &mut self.areas[area].units[unit as usize]
    }

    /// A new generation of a unit.
    fn next(&mut self, at: At) -> u32 {
        let unit = self.unit_mut(at);
        unit.last += 1;
        unit.last
    }

    /// From now on these sectors of a unit show a generation.
    fn shows(&mut self, at: At, sectors: Sectors, generation: u32) {
        self.unit_mut(at).sectors[sectors].fill(Some(generation));
    }

    /// What the marks say of a write of the whole unit that is meant to be whole.
    fn flags(&self, how: How) -> WriteFlags {
        let atomic = how.atomic && (self.atomic || self.wrong("claims-atomic"));
        WriteFlags { atomic, dsync: how.is_durable(), ..WriteFlags::PLAIN }
    }

    /// What the kernel is asked for then.
    fn rwf(&self, how: How) -> i32 {
        let rwf = if self.wrong("forget-fsync") { 0 } else { how.rwf };
        rwf | if how.atomic && self.atomic { libc::RWF_ATOMIC } else { 0 }
    }

    fn intent(&self, at: At, generation: u32, flags: WriteFlags) -> Result<()> {
        let mark = files::intent(self.target(at), at.1, generation, flags);
        self.ctx.mark(vec![mark]).map(|_| ())
    }

    fn done(&self, at: At, generation: u32, result: i64) -> Result<()> {
        self.ctx.mark(vec![files::done(self.target(at), at.1, generation, result)]).map(|_| ())
    }

    /// A thread that writes the whole of a unit; its intent is recorded.
    fn start(&mut self, at: At, how: How) -> Result<(u32, Task<i64>)> {
        let generation = self.next(at);
        let bytes = files::unit_bytes(&self.ctx, self.target(at), at.1, generation);
        self.intent(at, generation, self.flags(how))?;
        let (file, offset) = (Arc::clone(self.file(at)), self.target(at).offset_of(at.1));
        let rwf = self.rwf(how);
        self.ctx.did(format!("unit {}: a writer of generation {generation}, {}", at.1, how.name));
        let task = Task::start("writer", move || pwrite(&file, bytes.bytes(), offset, rwf))?;
        Ok((generation, task))
    }

    /// That thread's answer, with its mark: all of the unit, or it is a finding.
    fn finish(&mut self, at: At, (generation, task): (u32, Task<i64>)) -> Result<()> {
        let result = self.ctx.answer(&task, "a write of a unit")?;
        self.returned(at, generation, result)
    }

    /// A write of a unit, from memory that is there, has returned.
    fn returned(&mut self, at: At, generation: u32, result: i64) -> Result<()> {
        self.ctx.did(format!("generation {generation} of unit {}: {}", at.1, outcome(result)));
        self.done(at, generation, result)?;
        let all = self.target(at).unit as usize;
        match result == all as i64 {
            true => self.shows(at, 0..all / SECTOR, generation),
            false => self.found(
                "wrong-result",
                at,
                format!("a write of {all} bytes from memory that is there: {}", outcome(result)),
            ),
        }
        Ok(())
    }

    /// Writes the whole of a unit.
    fn write(&mut self, at: At, how: How) -> Result<()> {
        let writer = self.start(at, how)?;
        self.finish(at, writer)
    }

    /// A thread that writes some sectors of a unit, plain: nothing is promised of them but what can be
    /// read back.
    fn start_part(&mut self, at: At, sectors: Sectors) -> Result<(u32, Task<i64>)> {
        let generation = self.next(at);
        let bytes = files::unit_bytes(&self.ctx, self.target(at), at.1, generation);
        let part = sectors.start * SECTOR..sectors.end * SECTOR;
        let offset = self.target(at).offset_of(at.1) + part.start as u64;
        self.intent(at, generation, WriteFlags { may_fail: true, ..WriteFlags::PLAIN })?;
        self.ctx.did(format!("unit {}: a writer of sectors {sectors:?}, {generation}", at.1));
        let file = Arc::clone(self.file(at));
        let task = Task::start("part", move || pwrite(&file, &bytes.bytes()[part], offset, 0))?;
        Ok((generation, task))
    }

    /// It has returned.
    fn part_returned(
        &mut self,
        at: At,
        sectors: Sectors,
        generation: u32,
        result: i64,
    ) -> Result<()> {
        self.ctx.did(format!("unit {}, sectors {sectors:?}: {}", at.1, outcome(result)));
        self.done(at, generation, result)?;
        let len = sectors.len() * SECTOR;
        if result == len as i64 {
            self.shows(at, sectors, generation);
        } else {
            let text = format!("a write of {len} bytes from memory that is there: {result}");
            self.found("wrong-result", at, text);
        }
        Ok(())
    }

    /// Writes over a unit, or a part of it, while the disk holds a request for it. Without stable pages
    /// nobody has to wait for that; with them the writer does. Which it was is told.
    fn overwrite_held(&mut self, at: At, sectors: Option<Sectors>) -> Result<Over> {
        let (generation, task) = match &sectors {
            Some(sectors) => self.start_part(at, sectors.clone())?,
            None => self.start(at, PLAIN)?,
        };
        let seen = task.settle(NOT_WAITING, STAYS, waits_for_writeback);
        let result = self.tried(seen, "overwrite", "overwritten-in-writeback");
        Ok(Over { sectors, generation, task, result })
    }

    /// What came of a write, or a store, over what is in writeback: it has returned, or waits for that.
    fn tried<T>(&self, seen: Seen<T>, what: &str, moment: &str) -> Option<T> {
        match seen {
            Seen::Returned(result) => {
                self.ctx.reached(moment);
                self.ctx.reached(&format!("{what}-tried"));
                return Some(result);
            }
            Seen::Asleep(stack) => {
                self.ctx.reached(&format!("{what}-waited"));
                self.ctx.reached(&format!("{what}-tried"));
                self.ctx.note(format!("over a folio in writeback a {what} waits for it: {stack}"));
            }
            Seen::Neither(stack) => self.ctx.note(format!(
                "over a folio in writeback a {what} neither returned in {} s nor waited for it: {stack}",
                NOT_WAITING.as_secs()
            )),
        }
        None
    }

    /// It was let go.
    fn overwritten(&mut self, at: At, over: Over) -> Result<()> {
        let Over { sectors, generation, task, result } = over;
        let result = match result {
            Some(result) => result,
            None => self.ctx.answer(&task, "a write over a folio in writeback")?,
        };
        match sectors {
            Some(sectors) => self.part_returned(at, sectors, generation, result),
            None => self.returned(at, generation, result),
        }
    }

    /// Writes the whole of a unit whose writes are held back, so that it is to be written back. A kernel
    /// may write through what it takes with RWF_ATOMIC: then that is let go, and a plain one follows.
    /// → the stall that holds now.
    fn dirty(&mut self, at: At, stall: Stall) -> Result<Stall> {
        if !self.atomic {
            self.write(at, ATOMIC)?;
            return Ok(stall);
        }
        let (generation, task) = self.start(at, ATOMIC)?;
        let result = match task.settle(NOT_WAITING, STAYS, waits_for_writeback) {
            Seen::Returned(result) => {
                self.returned(at, generation, result)?;
                return Ok(stall);
            }
            Seen::Asleep(stack) | Seen::Neither(stack) => {
                self.ctx.note(format!("an atomic write waits for the disk: {stack}"));
                stall.release()?;
                self.ctx.answer(&task, "an atomic write that the disk has let go")?
            }
        };
        self.returned(at, generation, result)?;
        let stall = self.hold_writes(at)?;
        self.write(at, PLAIN)?;
        Ok(stall)
    }

    /// fsync of the file that a unit is in, by a thread of its own.
    fn start_sync(&self, at: At) -> Result<Task<Result<i64>>> {
        let (ctx, file, target) =
            (Arc::clone(&self.ctx), Arc::clone(self.file(at)), self.target(at).clone());
        let forget = self.wrong("forget-fsync");
        Task::start("syncer", move || files::sync(&ctx, &file, &target, forget))
    }

    fn synced(&self, task: &Task<Result<i64>>) -> Result<()> {
        match self.ctx.answer(task, "fsync")?? {
            0 => Ok(()),
            e => {
                self.ctx.found("failed", None, format!("fsync: {}", outcome(e)));
                Ok(())
            }
        }
    }

    fn sync(&self, at: At) -> Result<()> {
        self.synced(&self.start_sync(at)?)
    }

    /// Holds the writes of a unit back, before the disk has them.
    fn hold_writes(&self, at: At) -> Result<Stall> {
        self.ctx.stall(Which::of(DeviceOp::Write, self.place(at)?))
    }

    /// Waits until a stall has its request. → has it?
    fn is_held(&self, stall: &Stall, what: &str) -> Result<bool> {
        let held = stall.holds(1, PATIENCE)?;
        if !held {
            self.ctx.note(format!("{what} did not come to the disk in {} s", PATIENCE.as_secs()));
        }
        Ok(held)
    }

    fn found(&self, clause: &str, at: At, text: impl Into<String>) {
        let target = self.target(at);
        let place = (target, target.offset_of(at.1), target.unit);
        let text = format!("unit {}: {}", at.1, text.into());
        self.ctx.found(clause, Some(place), text);
    }

    /// Where a unit lies. Not to be asked while somebody holds the file's lock: FIEMAP takes it, too.
    fn place(&self, at: At) -> Result<(u64, u64)> {
        files::place(self.file(at), self.target(at), at.1)
    }

    /// What is on the disk where a unit lies, without any page cache.
    fn on_disk(&self, at: At, (from, len): (u64, u64)) -> Result<Vec<Found>> {
        let target = self.target(at);
        let mut buffer = Buffer::new(len as usize);
        self.disk
            .read_exact_at(buffer.bytes_mut(), from)
            .map_err(Error::system(format!("cannot read {}", self.ctx.race.device)))?;
        Ok(files::sectors(&self.ctx, target, at.1, buffer.bytes()))
    }

    /// The same, extent by extent, wherever it lies: zeroes where there is nothing. `None`: after all the
    /// kernel does not say where.
    fn wherever_on_disk(&self, at: At) -> Result<Option<Vec<Found>>> {
        let target = self.target(at);
        let (start, len) = (target.offset_of(at.1), u64::from(target.unit));
        let extents = match sys::extents(self.file(at), start, len) {
            Ok(extents) if extents.iter().all(|extent| !extent.delayed) => extents,
            Ok(_) => {
                self.ctx.note("after fsync FIEMAP tells of blocks that are not chosen yet");
                return Ok(None);
            }
            Err(e) => {
                self.ctx.note(format!("FIEMAP: {e}"));
                return Ok(None);
            }
        };
        let mut bytes = vec![0; len as usize];
        for extent in extents {
            let from = extent.offset.max(start);
            let to = (extent.offset + extent.len).min(start + len);
            let mut piece = Buffer::new(to.saturating_sub(from) as usize);
            self.disk
                .read_exact_at(piece.bytes_mut(), extent.at + (from - extent.offset))
                .map_err(Error::system(format!("cannot read {}", self.ctx.race.device)))?;
            let into = (from - start) as usize;
            bytes[into..into + piece.bytes().len()].copy_from_slice(piece.bytes());
        }
        Ok(Some(files::sectors(&self.ctx, target, at.1, &bytes)))
    }

    /// What each sector of a unit must show now.
    fn expected(&self, at: At) -> Vec<Found> {
        let sectors = &self.areas[at.0].units[at.1 as usize].sectors;
        sectors.iter().map(|g| g.map_or(Found::Zero {}, |g| Found::Own { r#gen: g })).collect()
    }

    /// Do read(2), and after an fsync the disk, show what they must?
    fn check(&self, at: At, synced: bool) -> Result<()> {
        let expected = self.expected(at);
        let (ctx, file, target) =
            (Arc::clone(&self.ctx), Arc::clone(self.file(at)), self.target(at).clone());
        let reader = Task::start("reader", move || {
            files::read_unit(&file, &target, at.1)
                .map(|bytes| files::sectors(&ctx, &target, at.1, &bytes))
        })?;
        let read = self
            .ctx
            .answer(&reader, "read(2) of a unit")?
            .map_err(Error::system("cannot read a unit"))?;
        let tell = |clause: &str, what: &str, shown: &[Found]| {
            let (shown, must) = (files::in_words(shown), files::in_words(&expected));
            self.found(clause, at, format!("{what} shows {shown}; it must show {must}"));
        };
        if read != expected {
            tell("incoherent", "read(2)", &read);
        }
        // A block that is nowhere yet reads as zeroes.
        if synced && !self.wrong("forget-fsync") && expected.iter().any(|f| *f != Found::Zero {}) {
            match self.wherever_on_disk(at)? {
                // What was never written need not be zeroes on the disk: it may be unwritten.
                Some(disk) if same_but_zeroes(&disk, &expected) => {}
                Some(disk) => tell("lost", "after fsync the disk", &disk),
                None => self.ctx.reached("not-looked-at-on-the-disk"),
            }
        }
        Ok(())
    }
}

fn same_but_zeroes(shown: &[Found], expected: &[Found]) -> bool {
    shown.iter().zip(expected).all(|(s, e)| s == e || *e == Found::Zero {})
}

/// pwritev2(2) of one buffer: bytes, or a negative errno.
fn pwrite(file: &File, bytes: &[u8], offset: u64, rwf: i32) -> i64 {
    files::pwritev2_once(file, bytes, offset, rwf as u32)
}

/// A result in words.
fn outcome(result: i64) -> String {
    match i32::try_from(-result) {
        Ok(errno) if errno > 0 => explain(errno),
        _ => format!("{result} bytes"),
    }
}

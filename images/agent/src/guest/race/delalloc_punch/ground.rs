//! What the scenes are made of: the file, its mapping, sources that end too early, and the calls that
//! are raced, each with its marks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{Advice, MprotectFlags};

use super::super::memory::{Map, PAGE};
use super::super::{Ctx, PATIENCE, Stall, Task, Which, files};
use super::model::{Content, Model, NEVER};
use crate::channel::{Prepare, Target, WriteFlags};
use crate::guest::workload::buffer::Buffer;
use crate::guest::workload::prepare::stamp;
use crate::guest::{Error, Result, explain, sys};
use crate::payload::{POISON, SECTOR, fill};
use crate::race::DeviceOp;

/// Units of a page.
pub(super) const PER_PAGE: u64 = (PAGE / SECTOR) as u64;

/// The file that is raced, with all ways to it. Shared by the threads.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) ctx: Arc<Ctx>,
    pub(super) target: Target,
    pub(super) file: File,
    pub(super) direct: File,
    pub(super) map: Map,
    /// The file that shares its blocks, where there is one: nobody changes it.
    pub(super) sharer: Option<File>,
    model: Mutex<Model>,
    /// Of the file system (bytes).
    pub(super) block: u64,
    /// The file beside it that writes copy from.
    source: PathBuf,
}

/// The part of the file that is one round's own. In units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) first: u64,
    pub(super) units: u64,
}

/// A write that will be cut short: units `from..to`, of which the source has those before `cut`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short {
    pub(super) from: u64,
    pub(super) cut: u64,
    pub(super) to: u64,
}

/// Where a write copies from. The write's first byte is at `start`; the page at `end` is taken away.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) map: Arc<Map>,
    start: usize,
    end: usize,
    /// Where on the disk the page at `end` lies, where it is a file's.
    pub(super) at: Option<(u64, u64)>,
}

impl Source {
    /// Takes away what is behind `cut`: whoever copies from it gets no further.
    pub(super) fn take_away(&self) -> Result<()> {
        self.map
            .protect(self.end, self.map.len() - self.end, MprotectFlags::empty())
            .map_err(Error::system("cannot protect the source of a write"))
    }
}

/// A write that runs.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) task: Task<i64>,
    generations: Vec<u32>,
    short: Short,
}

impl Ground {
    pub(super) fn new(ctx: &Arc<Ctx>) -> Result<Arc<Ground>> {
        let target = ctx.target(0)?;
        let model = Model::new(target.units, target.is_loaded(ctx.race.workload.load));
        Ground::again(ctx, model)
    }

    /// With what is known of the file.
    pub(super) fn again(ctx: &Arc<Ctx>, model: Model) -> Result<Arc<Ground>> {
        let target = ctx.target(0)?.clone();
        if target.unit as usize != SECTOR {
            return Err(Error::Refused("the units of this race's file have 512 bytes".into()));
        }
        let file = files::open(&target.path, false)?;
        let direct = files::open(&target.path, true)?;
        let sharer = match target.prepare {
            Prepare::Reflinked => Some(files::open(&format!("{}.clone", target.path), true)?),
            _ => None,
        };
        let map = Map::shared(&file, 0, target.end() as usize)
            .map_err(Error::system(format!("cannot map {}", target.path)))?;
        // Nothing but the page that is asked for: what is read, and locked for it, is planned here.
        map.advise(0, map.len(), Advice::Random)
            .map_err(Error::system("cannot advise on a mapping"))?;
        let stat =
            rustix::fs::fstatvfs(&file).map_err(Error::system("cannot ask for the block size"))?;
        let source = PathBuf::from(&target.path).with_file_name("source");
        let (ctx, model) = (Arc::clone(ctx), Mutex::new(model));
        Ok(Arc::new(Ground {
            ctx,
            target,
            file,
            direct,
            map,
            sharer,
            model,
            block: stat.f_bsize,
            source,
        }))
    }

    /// Lets go of the file, and keeps what is known of it.
    pub(super) fn give_up(self: Arc<Ground>) -> Result<Model> {
        let Some(ground) = Arc::into_inner(self) else {
            return Err(Error::Refused("a thread of the race has not let go of the file".into()));
        };
        Ok(ground.model.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn byte(&self, unit: u64) -> u64 {
        self.target.offset_of(unit)
    }

    /// Blocks of the file, those that are only promised with them; in 512 bytes. Asks for no lock that
    /// a write holds.
    pub(super) fn blocks(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.file).map_err(Error::system("cannot stat the file"))?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0))
    }

    /// Does copying to a page of the file have to read it first? Not where it is a hole.
    pub(super) fn is_shared(&self) -> bool {
        self.sharer.is_some()
    }

    /// A thread that has this ground.
    pub(super) fn task<T: Send + 'static>(
        self: &Arc<Ground>,
        name: &str,
        work: impl FnOnce(&Ground) -> T + Send + 'static,
    ) -> Result<Task<T>> {
        let ground = Arc::clone(self);
        Task::start(name, move || work(&ground))
    }

    // ---- stores

    /// Stores the next generation of each unit through the mapping, with its marks.
    pub(super) fn store(&self, units: &[u64]) -> Result<()> {
        let ctx = &self.ctx;
        let plain = WriteFlags::PLAIN;
        let asked: Vec<(u64, u32)> =
            units.iter().map(|unit| (*unit, self.model().ask(*unit))).collect();
        let intents = asked.iter().map(|(u, g)| files::intent(&self.target, *u, *g, plain));
        ctx.mark(intents.collect())?;
        for (i, (unit, generation)) in asked.iter().enumerate() {
            // The control's: said, and not done.
            if i + 1 < asked.len() || !ctx.wrong("forget-store") {
                let bytes = files::unit_bytes(ctx, &self.target, *unit, *generation);
                self.map.store(self.byte(*unit) as usize, bytes.bytes());
            }
            ctx.did(format!("store to unit {unit}, generation {generation}"));
            self.model().set(*unit, Content::Own(*generation));
        }
        let len = i64::from(self.target.unit);
        ctx.mark(asked.iter().map(|(u, g)| files::done(&self.target, *u, *g, len)).collect())?;
        Ok(())
    }

    /// The control's: bytes that no file may show.
    pub(super) fn store_poison(&self, unit: u64) {
        self.map.store(self.byte(unit) as usize, &POISON.repeat(SECTOR / POISON.len()));
        self.ctx.did(format!("poison is stored to unit {unit}"));
    }

    /// Reads a unit through the mapping, so that its page is there, and clean.
    pub(super) fn touch(&self, unit: u64) {
        let mut word = [0; 8];
        let result = self.map.load(self.byte(unit) as usize, &mut word);
        self.ctx.did(format!("unit {unit} is read through the mapping: {result:?}"));
    }

    /// Writes units whole, durably: data before the race.
    pub(super) fn write_through(&self, units: impl Iterator<Item = u64>) -> Result<()> {
        let dsync = WriteFlags { dsync: true, ..WriteFlags::PLAIN };
        for unit in units {
            let generation = self.model().ask(unit);
            files::write_unit(&self.ctx, &self.file, &self.target, unit, generation, dsync)?;
            self.model().set(unit, Content::Own(generation));
        }
        Ok(())
    }

    // ---- writes that are cut short

    /// What a write has to copy from, with its generations: the bytes, and where they begin in them.
    fn payload(&self, short: Short, generations: &[u32]) -> (Vec<u8>, usize, usize) {
        let (from, cut, to) = (self.byte(short.from), self.byte(short.cut), self.byte(short.to));
        let good = (cut - from) as usize;
        // So that the source ends at a page.
        let start = (PAGE - good % PAGE) % PAGE;
        let len = (start + (to - from) as usize).next_multiple_of(PAGE.max(self.block as usize));
        let mut bytes = vec![0; len];
        for (i, unit) in (short.from..short.to).enumerate() {
            let generation = generations.get(i).copied().unwrap_or(NEVER);
            let at = start + i * SECTOR;
            let stamp = stamp(&self.target, &self.ctx.race.workload, unit, generation);
            fill(&mut bytes[at..at + SECTOR], stamp);
        }
        (bytes, start, start + good)
    }

    fn ask_for(&self, short: Short) -> Vec<u32> {
        (short.from..short.cut).map(|unit| self.model().ask(unit)).collect()
    }

    /// A source in memory of its own, whole yet.
    pub(super) fn private_source(&self, short: Short) -> Result<(Source, Vec<u32>)> {
        let generations = self.ask_for(short);
        let (bytes, start, end) = self.payload(short, &generations);
        let map = Map::private(bytes.len()).map_err(Error::system("cannot map memory"))?;
        map.store(0, &bytes);
        Ok((Source { map: Arc::new(map), start, end, at: None }, generations))
    }

    /// A source in a file, of which the page behind `cut` is on the disk alone, and all before it in
    /// memory.
    pub(super) fn source_on_disk(&self, short: Short) -> Result<(Source, Vec<u32>)> {
        let path = self.source.display().to_string();
        let failed = |what: &str| Error::system(format!("cannot {what} {path}"));
        let generations = self.ask_for(short);
        let (bytes, start, end) = self.payload(short, &generations);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.source)
            .map_err(failed("make"))?;
        file.write_all_at(&bytes, 0).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        files::drop_cache(&file, 0, 0).map_err(failed("drop what is cached of"))?;
        // A page and its block are read together.
        let step = self.block.max(PAGE as u64);
        let held = end as u64 / step * step;
        let at = sys::place_of(&file, held, step).map(|at| (at, step));
        let map = Map::shared_to_read(&file, 0, bytes.len()).map_err(failed("map"))?;
        map.advise(0, map.len(), Advice::Random).map_err(failed("advise on a mapping of"))?;
        for page in (0..held as usize).step_by(PAGE) {
            map.load(page, &mut [0; 8]).map_err(failed("read"))?;
        }
        Ok((Source { map: Arc::new(map), start, end, at }, generations))
    }

    /// Starts a write, its intents on record.
    pub(super) fn start_write(
        self: &Arc<Ground>,
        short: Short,
        source: &Source,
        generations: Vec<u32>,
    ) -> Result<Writing> {
        let flags = WriteFlags { may_fail: true, ..WriteFlags::PLAIN };
        let asked = (short.from..short.cut).zip(&generations);
        let intents = asked.map(|(u, g)| files::intent(&self.target, u, *g, flags));
        self.ctx.mark(intents.collect())?;
        let (map, start) = (Arc::clone(&source.map), source.start);
        let len = (self.byte(short.to) - self.byte(short.from)) as usize;
        let task = self.task("writer", move |ground| {
            let to = ground.byte(short.from);
            ground.ctx.did(format!(
                "pwrite of units {} to {} begins; its source ends at unit {}",
                short.from, short.to, short.cut
            ));
            let n = map.pwrite(start, len, &ground.file, to, 0);
            ground.ctx.did(format!("the pwrite returns {n}"));
            n
        })?;
        Ok(Writing { task, generations, short })
    }

    /// What came of it: bytes, or a negative errno; with its marks.
    pub(super) fn end_write(&self, writing: Writing) -> Result<i64> {
        let Writing { task, generations, short } = writing;
        let n = self.ctx.answer(&task, "the write whose source ends too early")?;
        let good = i64::from(self.target.unit) * (short.cut - short.from) as i64;
        let told = |what: &str| {
            let at = (&self.target, self.byte(short.from), (short.to - short.from) as u32 * 512);
            let text = format!(
                "a write of {} bytes, of whose source {good} can be read, {what}",
                i64::from(self.target.unit) * (short.to - short.from) as i64
            );
            self.ctx.found("wrong-result", Some(at), text);
        };
        match n {
            n if n > good => told(&format!("says that it wrote {n}")),
            n if n < 0 && n != -i64::from(libc::EFAULT) => {
                told(&format!("fails with {}", explain((-n) as i32)));
            }
            n if n < good.min(1) && good > 0 => {
                self.ctx.note(format!("a write that could copy {good} bytes returned {n}"));
            }
            _ => {}
        }
        let whole = n.max(0) as u64 / SECTOR as u64;
        let mut marks = Vec::new();
        for (i, (unit, generation)) in (short.from..short.cut).zip(&generations).enumerate() {
            let i = i as u64;
            let result = if i < whole { SECTOR as i64 } else { -i64::from(libc::EFAULT) };
            marks.push(files::done(&self.target, unit, *generation, result));
            if i < whole {
                self.model().set(unit, Content::Own(*generation));
            } else if i == whole && n % SECTOR as i64 > 0 {
                self.model().set(unit, Content::Any);
            }
        }
        self.ctx.mark(marks)?;
        Ok(n)
    }

    // ---- punch, zero range, sync, reads

    /// fallocate(2) of units: zeroes, with their marks. → 0, or a negative errno.
    pub(super) fn zero(&self, units: std::ops::Range<u64>, punch: bool) -> Result<i64> {
        let flags = WriteFlags { zero: true, ..WriteFlags::PLAIN };
        let asked: Vec<(u64, u32)> = units.clone().map(|u| (u, self.model().ask(u))).collect();
        let intents = asked.iter().map(|(u, g)| files::intent(&self.target, *u, *g, flags));
        self.ctx.mark(intents.collect())?;
        let (name, mode) = if punch {
            ("a punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
        } else {
            ("a zero range", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
        };
        self.ctx.did(format!("{name} of units {} to {} begins", units.start, units.end));
        let at = self.byte(units.start);
        let result = match fallocate(&self.file, mode, at, self.byte(units.end) - at) {
            Ok(()) => 0,
            Err(e) => -i64::from(e.raw_os_error()),
        };
        self.ctx.did(format!("{name} returns {result}"));
        let len = if result == 0 { i64::from(self.target.unit) } else { result };
        let now = if result == 0 { Content::Zeroes } else { Content::Any };
        units.for_each(|unit| self.model().set(unit, now));
        self.ctx
            .mark(asked.iter().map(|(u, g)| files::done(&self.target, *u, *g, len)).collect())?;
        Ok(result)
    }

    /// fsync(2) with its mark.
    pub(super) fn sync(&self, forget: bool) -> Result<i64> {
        files::sync(&self.ctx, &self.file, &self.target, forget)
    }

    pub(super) fn drop_cache(&self, first: u64, units: u64) {
        let result = files::drop_cache(&self.file, self.byte(first), units * SECTOR as u64);
        self.ctx.did(format!("DONTNEED of units {first} to {}: {result:?}", first + units));
    }

    /// Units read by one pread(2).
    pub(super) fn read(&self, file: &File, first: u64, units: u64) -> std::io::Result<Buffer> {
        let mut buffer = Buffer::new(units as usize * SECTOR);
        file.read_exact_at(buffer.bytes_mut(), self.byte(first))?;
        Ok(buffer)
    }

    // ---- who waits for what

    /// Holds the READs of a place of the disk.
    pub(super) fn hold_reads(&self, at: (u64, u64)) -> Result<Stall> {
        self.ctx.stall(Which::of(DeviceOp::Read, at))
    }

    /// Waits until a thread keeps waiting in one of these functions of the kernel: → does it? What waits
    /// for locks is not shown: the function is the one that asked for it. `beneath`: called by this one,
    /// too.
    pub(super) fn waits_in<T: Send + 'static>(
        &self,
        task: &Task<T>,
        functions: &[&str],
        beneath: &str,
    ) -> bool {
        let end = Instant::now() + PATIENCE;
        let mut seen = 0;
        while Instant::now() < end && !self.ctx.is_over() {
            let stack = task.stack();
            let top = stack.split(" < ").next().unwrap_or_default();
            let waits =
                functions.iter().any(|name| top.starts_with(name)) && stack.contains(beneath);
            seen = if waits { seen + 1 } else { 0 };
            if seen == 3 {
                self.ctx.did(format!("{} waits in {stack}", task.name()));
                return true;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        let stack = task.stack();
        self.ctx.note(format!("{} waited in {stack}, not where it was meant to", task.name()));
        false
    }
}

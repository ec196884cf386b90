//! The races of suite `fuse-passthrough`: a FUSE server shows files of the disk under test again, in
//! the modes that FUSE has, and everybody writes, maps, opens and grows them at once.
//!
//! - [`parallel`]: direct writes in place go beside each other where that was promised.
//! - [`mapped`]: two processes map what others write.
//! - [`grown`]: a file that is extended while its attributes are asked for.
//! - [`modes`]: opens that exclude each other (`fs/fuse/iomode.c`), and those that must wait.
//! - [`last`]: everything is closed: the disk's file system can be unmounted.
//!
//! The targets are the backing files: `written`, `mapped`, `grown`, in this order. After the cut
//! there is no server, and what is read back is the disk's own file.

mod grown;
mod last;
mod mapped;
mod modes;
mod parallel;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::aio::Writes;
use super::fuse_server::{Mode, Server, Spec};
use super::{Ctx, Task, files};
use crate::channel::{Found, MountPoint, Target, WriteFlags};
use crate::guest::{Error, Result, child};

/// Where the server shows the files.
const SHOWN: &str = "/run/fuse";
/// How long one thing is held, at most, whatever is waited for meanwhile: of who waits for half a
/// minute the kernel itself tells, and that is to be none of our doing.
const HELD: Duration = Duration::from_secs(15);
/// How long is waited for one moment, while something is held for it.
const ANY: Duration = Duration::from_secs(10);
/// Times that a write is done again which found somebody at its page.
const BUSY: u32 = 1000;

/// Runs the lane's race.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    let own = Arc::clone(ctx);
    // Any open, fsync or mmap of a FUSE file may wait for ever, and so may a question to a process that
    // is at one of them: all of it is watched as one.
    let race = Task::start("main", move || play(&own))?;
    ctx.watch(&race, child::all_stacks)?
}

fn play(ctx: &Arc<Ctx>) -> Result<()> {
    let mount = ctx.race.mount.clone();
    let mount = mount.ok_or_else(|| Error::Refused("it needs a file system".into()))?;
    files::load(ctx)?;
    if ctx.wrong("forget-fsync") {
        // What nobody syncs is not written, either, before the power goes off.
        std::fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")
            .map_err(Error::system("cannot stop the periodic writeback"))?;
    }
    let grown = ctx.target(2)?;
    let file = files::open(&grown.path, false)?;
    file.set_len(0).and_then(|()| file.sync_all()).map_err(Error::system("cannot empty grown"))?;
    drop(file);
    let book = Arc::new(Book::default());
    for round in 0..ctx.race.rounds {
        // What is wrong on purpose is found once.
        if !ctx.round(round) || (ctx.race.wrong.is_some() && ctx.findings() > 0) {
            break;
        }
        ctx.phase(&format!("round-{round}"))?;
        let stage = Stage::start(ctx, &mount, &book, round)?;
        match ctx.text("part", "all") {
            "modes" => modes::run(&stage)?,
            // What is to be durable comes first: a kernel that fails here ends the race.
            "waits" => last::words(&stage).and_then(|()| modes::waits(&stage))?,
            "asynchronous" => mapped::asynchronous(&stage)?,
            "outlived" => last::words(&stage).and_then(|()| modes::outlived(&stage))?,
            _ => one_mode(&stage)?,
        }
        atomic(&stage)?;
        stage.quiet()?;
        if round + 1 < ctx.race.rounds {
            last::close(&stage)?;
        } else {
            // The power goes off while the server runs.
            last::words(&stage)?;
        }
    }
    Ok(())
}

/// Everything that one mode is good for.
fn one_mode(stage: &Arc<Stage>) -> Result<()> {
    parallel::run(stage)?;
    mapped::run(stage)?;
    grown::run(stage)?;
    modes::churn(stage, &[stage.mode])?;
    if stage.mode == Mode::Passthrough {
        parallel::closed_in_flight(stage)?;
    }
    Ok(())
}

/// The generations of every unit.
#[derive(Debug, Default)]
struct Book {
    last: Mutex<BTreeMap<(u32, u64), u32>>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, u64), u32>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that is written next.
    fn next(&self, target: &Target, unit: u64) -> u32 {
        let mut last = self.lock();
        let r#gen = last.entry((target.file, unit)).or_default();
        *r#gen += 1;
        *r#gen
    }

    /// The newest.
    fn last(&self, target: &Target, unit: u64) -> u32 {
        self.lock().get(&(target.file, unit)).copied().unwrap_or_default()
    }
}

/// Something is held, since then.
struct Holding(Instant);

impl Holding {
    fn begin() -> Holding {
        Holding(Instant::now())
    }

    /// So long, or for what is left of the time that it may be held.
    fn left(&self, time: Duration) -> Duration {
        time.min(HELD.saturating_sub(self.0.elapsed()))
    }
}

/// A round: a server, and what it shows.
struct Stage {
    ctx: Arc<Ctx>,
    mount: MountPoint,
    book: Arc<Book>,
    round: u32,
    /// Of the lane's opens, where it has one.
    mode: Mode,
    /// May a file in [`Mode::Direct`] be mapped?
    mmap: bool,
    server: Server,
}

impl Stage {
    fn start(
        ctx: &Arc<Ctx>,
        mount: &MountPoint,
        book: &Arc<Book>,
        round: u32,
    ) -> Result<Arc<Stage>> {
        let name = ctx.text("mode", "passthrough");
        let mode = serde_json::from_value(name.into())
            .map_err(|_| Error::Refused(format!("there is no mode {name:?}")))?;
        // It changes nothing but for direct mode, whose lanes say which.
        let said = ctx.race.set.contains_key("mmap");
        let mmap = if said { ctx.flag("mmap") } else { round % 2 == 1 };
        let mut spec = Spec::new(&mount.target, SHOWN, None);
        (spec.mmap, spec.wrong) = (mmap, ctx.race.wrong.clone());
        let server = Server::start(spec)?;
        let (ctx, mount, book) = (Arc::clone(ctx), mount.clone(), Arc::clone(book));
        Ok(Arc::new(Stage { ctx, mount, book, round, mode, mmap, server }))
    }

    fn written(&self) -> Result<&Target> {
        self.ctx.target(0)
    }

    fn mapped(&self) -> Result<&Target> {
        self.ctx.target(1)
    }

    fn grown(&self) -> Result<&Target> {
        self.ctx.target(2)
    }

    /// Opens a target by way of the server.
    fn open(&self, target: &Target, mode: Mode, flags: i32) -> Result<File> {
        self.server.open(name(target), mode, flags)
    }

    /// How a mode's writes reach the disk: all but passthrough's by the server's buffered ones.
    fn flags(&self, mode: Mode, direct: bool) -> WriteFlags {
        WriteFlags { direct: direct && mode == Mode::Passthrough, ..WriteFlags::PLAIN }
    }

    /// Writes a unit in its next generation, with its marks.
    ///
    /// A direct write throws pages out before it begins. Where somebody just looks at one of them FUSE
    /// fails it with EBUSY, and nothing was written (`fuse_direct_io`, as
    /// `invalidate_inode_pages2_range` has it): it is done again.
    fn write(&self, file: &File, target: &Target, unit: u64, flags: WriteFlags) -> Result<i64> {
        self.write_told(file, target, unit, (flags, flags))
    }

    /// The same, of which something else is told than what is asked of the kernel.
    fn write_told(
        &self,
        file: &File,
        target: &Target,
        unit: u64,
        (told, flags): (WriteFlags, WriteFlags),
    ) -> Result<i64> {
        let r#gen = self.book.next(target, unit);
        let bytes = files::unit_bytes(&self.ctx, target, unit, r#gen);
        self.ctx.mark(vec![files::intent(target, unit, r#gen, told)])?;
        let write = || files::pwrite(file, bytes.bytes(), target.offset_of(unit), flags);
        let mut result = write();
        for _ in 0..BUSY {
            if result != -i64::from(libc::EBUSY) {
                break;
            }
            self.ctx.note("a direct write fails with EBUSY while somebody looks at its page");
            std::thread::sleep(Duration::from_millis(2));
            result = write();
        }
        self.ctx.did(format!("pwrite of unit {unit}, generation {gen}: {result}"));
        self.ctx.mark(vec![files::done(target, unit, r#gen, result)])?;
        Ok(result)
    }

    /// The same, submitted and waited for apart.
    fn write_async(
        &self,
        file: &File,
        target: &Target,
        unit: u64,
        flags: WriteFlags,
    ) -> Result<i64> {
        let r#gen = self.book.next(target, unit);
        let bytes = files::unit_bytes(&self.ctx, target, unit, r#gen);
        self.ctx.mark(vec![files::intent(target, unit, r#gen, flags)])?;
        let mut writes = Writes::new(1)?;
        writes.submit(unit, file, bytes, target.offset_of(unit))?;
        let result = writes.reap()?.first().map_or(0, |(_, result)| *result);
        self.ctx.did(format!("io_uring wrote unit {unit}, generation {gen}: {result}"));
        self.ctx.mark(vec![files::done(target, unit, r#gen, result)])?;
        Ok(result)
    }

    /// What a unit should be now.
    fn expected(&self, target: &Target, unit: u64) -> Found {
        Found::Own { r#gen: self.book.last(target, unit) }
    }

    /// Is it? Else a finding that says how it was looked at.
    fn shows(&self, target: &Target, unit: u64, found: &[Found], how: &str) {
        let expected = self.expected(target, unit);
        let sectors = target.unit as usize / crate::payload::SECTOR;
        if found.len() == sectors && found.iter().all(|sector| *sector == expected) {
            return;
        }
        let at = Some((target, target.offset_of(unit), target.unit));
        let text = format!(
            "{how} shows of unit {unit}: {}; nobody writes, and the last write was that of \
             generation {}",
            files::in_words(found),
            self.book.last(target, unit)
        );
        self.ctx.found("incoherent", at, text);
    }

    /// What read(2) gives of a unit.
    fn read(&self, file: &File, target: &Target, unit: u64) -> Result<Vec<Found>> {
        let bytes = files::read_unit(file, target, unit)
            .map_err(Error::system(format!("cannot read unit {unit} of {}", target.path)))?;
        Ok(files::sectors(&self.ctx, target, unit, &bytes))
    }

    /// The units of a target that were ever written.
    fn units(&self, target: &Target) -> Result<u64> {
        if target.file != self.grown()?.file {
            return Ok(target.units.into());
        }
        let last = self.book.lock();
        Ok(last.keys().filter(|(file, _)| *file == target.file).count() as u64)
    }

    /// Nobody writes any more: fsync, then read(2) through the server, before and after the page
    /// cache was dropped, and the backing file all show the last generation.
    fn quiet(&self) -> Result<()> {
        self.ctx.phase("quiet")?;
        for target in [self.written()?, self.mapped()?, self.grown()?] {
            let file = self.open(target, self.mode, 0)?;
            self.sync(&file, target)?;
            let backing = files::open(&target.path, false)?;
            let units = self.units(target)?;
            for unit in 0..units {
                self.shows(target, unit, &self.read(&file, target, unit)?, "read(2) through FUSE");
                self.shows(target, unit, &self.read(&backing, target, unit)?, "the backing file");
            }
            files::drop_cache(&file, 0, 0).map_err(Error::system("cannot drop the cache"))?;
            for unit in 0..units {
                let found = self.read(&file, target, unit)?;
                self.shows(
                    target,
                    unit,
                    &found,
                    "read(2) through FUSE, after its cache was dropped,",
                );
            }
        }
        self.ctx.reached("quiet");
        Ok(())
    }

    /// fsync(2) through FUSE, with its mark. The server may be told to forget it.
    fn sync(&self, file: &File, target: &Target) -> Result<()> {
        let result = files::sync(&self.ctx, file, target, false)?;
        if result < 0 {
            return Err(Error::System {
                what: format!("fsync of {} through FUSE", target.path),
                errno: -result as i32,
            });
        }
        Ok(())
    }
}

/// A target's name in its directory.
fn name(target: &Target) -> &str {
    Path::new(&target.path).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// FUSE knows nothing of RWF_ATOMIC up to 7.3, whatever the backing file can do. A kernel that takes it
/// has to write all of it.
fn atomic(stage: &Stage) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    let unit = u64::from(target.units) - 1;
    let file = stage.open(target, stage.mode, libc::O_DIRECT)?;
    // The bytes that are there: nothing changes, and nothing has to be told.
    let r#gen = stage.book.last(target, unit);
    let bytes = files::unit_bytes(ctx, target, unit, r#gen);
    let flags = WriteFlags { atomic: true, ..WriteFlags::PLAIN };
    let result = files::pwrite(&file, bytes.bytes(), target.offset_of(unit), flags);
    ctx.did(format!("pwritev2 with RWF_ATOMIC through FUSE: {result}"));
    let at = Some((target, target.offset_of(unit), target.unit));
    if result < 0 {
        let errno = -result as i32;
        if errno != libc::EOPNOTSUPP && errno != libc::EINVAL {
            let said = crate::guest::explain(errno);
            let text = format!(
                "a write with RWF_ATOMIC on a FUSE file fails with {said}, not EOPNOTSUPP or EINVAL"
            );
            ctx.found("wrong-result", at, text);
        }
        return Ok(());
    }
    ctx.note("a FUSE file takes a write with RWF_ATOMIC");
    // In passthrough mode it is the kernel's own promise; else the server would have to keep it.
    let promised = stage.mode == Mode::Passthrough;
    let told = WriteFlags { atomic: promised, ..stage.flags(stage.mode, true) };
    let result = stage.write_told(&file, target, unit, (told, flags))?;
    if result != i64::from(target.unit) {
        let text =
            format!("a write with RWF_ATOMIC on a FUSE file, of {} bytes: {result}", target.unit);
        ctx.found("wrong-result", at, text);
        return Ok(());
    }
    let backing = files::open(&target.path, false)?;
    for (file, how) in [(&file, "read(2) through FUSE"), (&backing, "the backing file")] {
        let how = format!("after a write with RWF_ATOMIC, {how}");
        stage.shows(target, unit, &stage.read(file, target, unit)?, &how);
    }
    Ok(())
}

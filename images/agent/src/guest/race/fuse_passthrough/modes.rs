//! Opens that exclude each other, and those that must wait.
//!
//! What excludes what stands in `fs/fuse/iomode.c` and its comments, the same from 6.12 to 7.3: a
//! cached open (or a mapping of a direct one) keeps passthrough opens of the inode out, and a
//! passthrough open every open in another mode. The user sees EIO from open(2), and ENODEV or ETXTBSY
//! from mmap(2); nothing else.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::fuse_server::{Mode, Op};
use super::super::mapper::{Called, Mapper};
use super::super::memory::{Map, PAGE};
use super::super::task::NoAnswer;
use super::super::{PATIENCE, Task, files};
use super::parallel::{in_iomode, soon};
use super::{ANY, Holding, Stage, name};
use crate::channel::{Found, Target, WriteFlags};
use crate::guest::{Error, Result, explain};

/// Opens of each thread.
const OPENS: u32 = 12;
const THREADS: u64 = 3;
/// How long a call may take that nothing keeps waiting.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

pub(super) fn run(stage: &Arc<Stage>) -> Result<()> {
    exclude(stage)?;
    waiting_open(stage)?;
    hand_over(stage)?;
    churn(stage, &Mode::ALL)
}

/// How a file is held open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Open(Mode),
    /// In direct mode, and mapped: FUSE's page cache is in use.
    Mapped,
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Held::Open(mode) => mode.name(),
            Held::Mapped => "direct mode, and mapped",
        }
    }
}

/// May a file be opened in this mode while it is held so?
fn may_open(held: Held, mode: Mode) -> bool {
    match held {
        Held::Open(Mode::Direct) => true,
        Held::Open(Mode::Cached) | Held::Mapped => !mode.is_backed(),
        Held::Open(Mode::Passthrough | Mode::Both) => mode.is_backed(),
    }
}

fn exclude(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase("exclude")?;
    let mut all = Mode::ALL.map(Held::Open).to_vec();
    if stage.mmap {
        all.push(Held::Mapped);
    }
    for held in all {
        let first =
            stage.open(target, if let Held::Open(m) = held { m } else { Mode::Direct }, 0)?;
        let map = (held == Held::Mapped)
            .then(|| Map::shared(&first, 0, PAGE))
            .transpose()
            .map_err(Error::system("cannot map a file in direct mode"))?;
        let was = held.name();
        for mode in Mode::ALL {
            let second = stage.open(target, mode, 0);
            let said = second.as_ref().err().map(|e| e.errno().unwrap_or(0));
            ctx.did(format!("is open in {was}; opened in {}: {said:?}", mode.name()));
            let text = match (said, may_open(held, mode)) {
                (None, true) => continue,
                (Some(libc::EIO), false) => {
                    ctx.reached("excluded");
                    continue;
                }
                (None, false) => {
                    let text = format!(
                        "a file that is open in {was} was opened in {}, which that excludes",
                        mode.name()
                    );
                    ctx.found("accepted", Some((target, 0, 0)), text);
                    continue;
                }
                (Some(errno), true) => format!("fails with {}", explain(errno)),
                (Some(errno), false) => format!("fails with {}, not EIO", explain(errno)),
            };
            let text = format!("opening a file in {} that is open in {was} {text}", mode.name());
            ctx.found("wrong-result", Some((target, 0, 0)), text);
        }
        drop(map);
    }
    mapping_excluded(stage, target)
}

/// A file that was opened in direct mode cannot be mapped while the inode is in passthrough mode; and
/// can again afterwards, where it ever can.
fn mapping_excluded(stage: &Stage, target: &Target) -> Result<()> {
    let ctx = &stage.ctx;
    let direct = stage.open(target, Mode::Direct, 0)?;
    let other = stage.open(target, Mode::Passthrough, 0)?;
    let mapped = Map::shared(&direct, 0, PAGE).map(drop);
    let said = mapped.as_ref().err().and_then(std::io::Error::raw_os_error);
    if said != Some(libc::ENODEV) {
        let clause = if said.is_none() { "accepted" } else { "wrong-result" };
        let text = format!(
            "mmap of a file in direct mode, whose inode is in passthrough mode: {mapped:?}, not \
             ENODEV"
        );
        ctx.found(clause, Some((target, 0, 0)), text);
    }
    drop(other);
    if stage.mmap
        && let Err(e) = Map::shared(&direct, 0, PAGE)
    {
        let text = format!("mmap of a file in direct mode fails with {e} after passthrough ended");
        ctx.found("wrong-result", Some((target, 0, 0)), text);
    }
    Ok(())
}

/// A direct write that the server holds, and the task of an open in cached mode that waits for it.
fn waiting_open(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase("open-waits")?;
    let holding = Holding::begin();
    let held = stage.server.hold(Op::Write)?;
    let writer = direct_write(stage, target)?;
    held.holds(1, holding.left(ANY))?;
    let opening = open_task(stage, target, Mode::Cached)?;
    if soon(holding.left(ANY), || in_iomode(&opening.stack())) {
        ctx.reached("open-waits");
    }
    drop(held);
    ctx.answer(&writer, "a direct write through FUSE")??;
    let opened = ctx.answer(&opening, "a cached open beside a direct write that has ended")?;
    if let Err(e) = opened {
        let text = format!("a cached open that waited for a direct write fails: {e}");
        ctx.found("wrong-result", Some((target, 0, 0)), text);
    }
    Ok(())
}

fn direct_write(stage: &Arc<Stage>, target: &Target) -> Result<Task<Result<i64>>> {
    let file = stage.open(target, Mode::Direct, libc::O_DIRECT)?;
    let (own, target) = (Arc::clone(stage), target.clone());
    let flags = stage.flags(Mode::Direct, true);
    Task::start("writer", move || own.write(&file, &target, 1, flags))
}

pub(super) fn open_task(
    stage: &Arc<Stage>,
    target: &Target,
    mode: Mode,
) -> Result<Task<Result<File>>> {
    let (own, target) = (Arc::clone(stage), target.clone());
    Task::start("opener", move || own.open(&target, mode, 0))
}

/// Somebody waits for a direct write, to use FUSE's page cache; meanwhile the inode enters passthrough
/// mode; the write ends. Then "the wait is aborted" and the call fails: so says the commit that made
/// both ("fuse: implement passthrough for mmap"), and a comment in `fuse_file_cached_io_open`. A kernel
/// may as well keep the inode from that mode as long as somebody waits.
///
/// The control leaves passthrough mode alone, and lets the write go when the wait was told as a hang.
fn passed_by<T: Send + Debug + 'static>(
    stage: &Arc<Stage>,
    what: &str,
    call: impl FnOnce() -> Result<Task<T>>,
    stack: impl Fn(&Task<T>) -> String,
    errno: impl Fn(&T) -> Option<i32>,
) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase(&format!("passed-by, {what}"))?;
    let holding = Holding::begin();
    let held = stage.server.hold(Op::Write)?;
    let writer = direct_write(stage, target)?;
    held.holds(1, holding.left(ANY))?;
    let task = call()?;
    let waiting = soon(holding.left(ANY), || in_iomode(&stack(&task)));
    ctx.did(format!("a direct write is held; {what} waits: {waiting}"));
    if ctx.wrong("keeps-waiting") {
        let told = match task.wait(holding.left(LONG_ENOUGH)) {
            Ok(answer) => format!("{what} beside a direct write that is held: {answer:?}"),
            Err(_) => {
                let text = format!("{what} waits for a direct write that never ends");
                ctx.found("hung", Some((target, 0, 0)), format!("{text} ({})", stack(&task)));
                text
            }
        };
        ctx.did(told);
        drop(held);
        return ctx.answer(&writer, "a direct write through FUSE")?.map(|_| ());
    }
    // By a thread of its own: a kernel may let it wait, too, and the write is let go by this one.
    let opening = open_task(stage, target, Mode::Passthrough)?;
    let opened = opening.wait(holding.left(ANY));
    let decided = |how: &str| {
        ctx.did(format!("another open, in passthrough mode: {how}"));
        if waiting {
            ctx.reached("decided");
        }
    };
    let let_go = || {
        ctx.did("lets the direct write go");
        drop(held);
        ctx.answer(&writer, "a direct write through FUSE")?.map(|_| ())
    };
    let passthrough = match opened {
        Ok(Ok(file)) => file,
        Ok(Err(e)) if e.errno() == Some(libc::EIO) => {
            decided("it is kept out");
            ctx.note(format!("passthrough mode is kept out while {what} waits"));
            let_go()?;
            let answer = ctx.answer(&task, what)?;
            if errno(&answer).is_some() {
                let text = format!("{what}, while passthrough mode was kept out: {answer:?}");
                ctx.found("wrong-result", Some((target, 0, 0)), text);
            }
            return Ok(());
        }
        Ok(Err(e)) => return Err(e),
        Err(NoAnswer::Gone) => return Err(Error::Refused("a waiting thread panicked".into())),
        Err(NoAnswer::Stuck(_)) => {
            decided("it waits as well");
            ctx.note(format!("an open in passthrough mode waits while {what} waits"));
            let_go()?;
            // One of them may be refused now; both return.
            ctx.answer(&task, what)?;
            return ctx.answer(&opening, "an open in passthrough mode").map(|_| ());
        }
    };
    decided("it has returned");
    let_go()?;
    match task.wait(LONG_ENOUGH) {
        Ok(answer) => {
            if !matches!(errno(&answer), Some(libc::EIO | libc::ENODEV | libc::ETXTBSY)) {
                let text = format!("{what} beside a file in passthrough mode: {answer:?}");
                ctx.found("wrong-result", Some((target, 0, 0)), text);
            }
            return Ok(());
        }
        Err(NoAnswer::Gone) => return Err(Error::Refused("a waiting thread panicked".into())),
        Err(NoAnswer::Stuck(_)) => {}
    }
    let stuck = stack(&task);
    drop(passthrough);
    let freed = match task.wait(PATIENCE) {
        Ok(answer) if errno(&answer).is_none() => "once that was closed it succeeded".into(),
        Ok(answer) => format!("once that was closed it failed: {answer:?}"),
        Err(_) => "it does not return after that was closed, either".to_owned(),
    };
    let text = format!(
        "{what} waited for a direct write; meanwhile the file was opened in passthrough mode; the write \
         ended {} s ago, and the call still waits, as long as the passthrough file is open ({stuck}); \
         {freed}",
        LONG_ENOUGH.as_secs()
    );
    ctx.found("hung", Some((target, 0, 0)), text);
    Ok(())
}

fn open_passed_by(stage: &Arc<Stage>) -> Result<()> {
    let target = stage.written()?;
    let errno = |opened: &Result<File>| opened.as_ref().err().map(|e| e.errno().unwrap_or(0));
    passed_by(
        stage,
        "open(2) in cached mode",
        || open_task(stage, target, Mode::Cached),
        Task::stack,
        errno,
    )
}

fn mmap_passed_by(stage: &Arc<Stage>) -> Result<()> {
    let target = stage.written()?;
    let mapper = Arc::new(Mapper::start(stage.ctx.race.workload.nonce)?);
    let path = stage.server.path(name(target));
    let call = || {
        if let Err(errno) = mapper.open(&path, stage.server.flags(Mode::Direct))? {
            return Err(Error::System { what: format!("cannot open {path}"), errno });
        }
        let (own, len) = (Arc::clone(&mapper), target.end());
        Task::start("mapper", move || own.map(len))
    };
    let stack = |_: &Task<Result<Called<()>>>| mapper.stacks().concat();
    let errno = |mapped: &Result<Called<()>>| match mapped {
        Ok(called) => called.err(),
        Err(e) => Some(e.errno().unwrap_or(0)),
    };
    passed_by(stage, "mmap(2) of a file in direct mode", call, stack, errno)
}

pub(super) fn waits(stage: &Arc<Stage>) -> Result<()> {
    waiting_open(stage)?;
    // A kernel that fails here takes its time, and so one of the two is enough for a cut.
    match stage.ctx.rng(&[4, stage.round.into()]).below(2) {
        0 => open_passed_by(stage),
        _ => mmap_passed_by(stage),
    }
}

/// What was written in one mode is there in the next, after the file was closed in between: by
/// pwrite(2), and by stores that nobody has synced.
fn hand_over(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.mapped()?);
    ctx.phase("hand-over")?;
    let mapper = Mapper::start(ctx.race.workload.nonce)?;
    let pairs = Mode::ALL.into_iter().flat_map(|a| Mode::ALL.map(|b| (a, b)));
    for ((from, to), n) in pairs.zip(0..) {
        let (written, stored) = (n % u64::from(target.units), (n + 5) % u64::from(target.units));
        let file = open_soon(stage, target, from)?;
        stage.write(&file, target, written, stage.flags(from, false))?;
        drop(file);
        let maps = from != Mode::Direct || stage.mmap;
        if maps {
            store(stage, &mapper, target, from, stored)?;
        }
        let file = open_soon(stage, target, to)?;
        for (unit, how) in [(written, "pwrite(2)"), (stored, "a store")] {
            let found = stage.read(&file, target, unit)?;
            let how = format!("read(2) in {} after {how} in {}", to.name(), from.name());
            stage.shows(target, unit, &found, &how);
            look_at_a_mapping(stage, target, &file, (to, false), unit)?;
        }
    }
    ctx.reached("handed-over");
    Ok(())
}

/// A store by a mapping that is gone, and its file closed, when this returns.
fn store(stage: &Stage, mapper: &Mapper, target: &Target, mode: Mode, unit: u64) -> Result<()> {
    let ctx = &stage.ctx;
    let end = Instant::now() + PATIENCE;
    let path = stage.server.path(name(target));
    let failed = |what: &str, errno| Error::System { what: format!("cannot {what} {path}"), errno };
    loop {
        match mapper.open(&path, stage.server.flags(mode))? {
            Ok(()) => break,
            Err(libc::EIO) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(errno) => return Err(failed("open", errno)),
        }
    }
    mapper.map(target.end())?.map_err(|errno| failed("map", errno))?;
    let r#gen = stage.book.next(target, unit);
    ctx.mark(vec![files::intent(target, unit, r#gen, WriteFlags::PLAIN)])?;
    mapper.store(target, unit, r#gen)?;
    ctx.did(format!("stored unit {unit}, generation {gen}, in {}", mode.name()));
    ctx.mark(vec![files::done(target, unit, r#gen, target.unit.into())])?;
    mapper.unmap()?;
    mapper.close()
}

/// Opens a file that nobody has open any more: what the kernel still reads ahead, or writes, keeps
/// the old mode for a moment.
pub(super) fn open_soon(stage: &Stage, target: &Target, mode: Mode) -> Result<File> {
    let end = Instant::now() + PATIENCE;
    loop {
        match stage.open(target, mode, 0) {
            Err(e) if e.errno() == Some(libc::EIO) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A mapping of the backing file is still there after its file in passthrough mode was closed. Either
/// that keeps FUSE's page cache out, or both show the same.
pub(super) fn outlived(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.mapped()?);
    ctx.phase("outlived")?;
    let unit = 0;
    let mapper = Mapper::start(ctx.race.workload.nonce)?;
    let path = stage.server.path(name(target));
    let failed = |what: &str, errno| Error::System { what: format!("cannot {what} {path}"), errno };
    mapper.open(&path, stage.server.flags(Mode::Passthrough))?.map_err(|e| failed("open", e))?;
    mapper.map(target.end())?.map_err(|e| failed("map", e))?;
    mapper.close()?;
    ctx.did("mapped in passthrough mode, and closed");
    match stage.open(target, Mode::Cached, 0) {
        Err(e) if e.errno() == Some(libc::EIO) => {
            ctx.did("a cached open is refused");
            mapper.unmap()?;
            let file = open_soon(stage, target, Mode::Cached)?;
            let how = "read(2) of a file in cached mode, after the mapping is gone,";
            stage.shows(target, unit, &stage.read(&file, target, unit)?, how);
        }
        Err(e) => return Err(e),
        Ok(file) => {
            stage.shows(target, unit, &stage.read(&file, target, unit)?, "read(2) through FUSE");
            let r#gen = stage.book.next(target, unit);
            ctx.mark(vec![files::intent(target, unit, r#gen, WriteFlags::PLAIN)])?;
            mapper.store(target, unit, r#gen)?;
            ctx.did(format!("stored unit {unit}, generation {gen}, by the mapping"));
            ctx.mark(vec![files::done(target, unit, r#gen, target.unit.into())])?;
            mapper.sync()?.map_err(|e| failed("msync", e))?;
            stage.sync(&file, target)?;
            let how = "after an msync and an fsync, read(2) of a file in cached mode, beside a mapping that was \
                       made in passthrough mode and outlived its file,";
            stage.shows(target, unit, &stage.read(&file, target, unit)?, how);
            mapper.unmap()?;
        }
    }
    ctx.reached("outlived");
    Ok(())
}

/// Threads open, read, map and close the file again and again, while another writes it.
pub(super) fn churn(stage: &Arc<Stage>, modes: &[Mode]) -> Result<()> {
    let ctx = &stage.ctx;
    ctx.phase("churn")?;
    let mut tasks = Vec::new();
    for thread in 0..THREADS {
        let (own, modes) = (Arc::clone(stage), modes.to_vec());
        let task = move || open_and_close(&own, &modes, thread);
        tasks.push(Task::start(&format!("churn-{thread}"), task)?);
    }
    for task in &tasks {
        ctx.answer(task, "open, read, write, mmap or close of a FUSE file")??;
    }
    ctx.reached("churn");
    Ok(())
}

fn open_and_close(stage: &Arc<Stage>, modes: &[Mode], thread: u64) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    let mut rng = ctx.rng(&[3, stage.round.into(), thread]);
    // Units of its own to write, so that no two ever write one.
    let own = |n: u64| n / THREADS * THREADS + thread;
    for _ in 0..OPENS {
        let mode = modes[rng.below(modes.len())];
        let direct = rng.below(2) == 0;
        let writes = rng.below(3) == 0;
        let mut open = OpenOptions::new();
        open.read(true).write(writes);
        let flags = stage.server.flags(mode) | if direct { libc::O_DIRECT } else { 0 };
        let file = match open.custom_flags(flags).open(stage.server.path(name(target))) {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EIO) && modes.len() > 1 => {
                ctx.reached("conflict");
                continue;
            }
            Err(e) => {
                let text = format!("opening a file in {} fails: {e}", mode.name());
                ctx.found("wrong-result", Some((target, 0, 0)), text);
                continue;
            }
        };
        ctx.did(format!("opened in {}", mode.name()));
        let unit = own(rng.below(target.units as usize - THREADS as usize) as u64);
        if writes {
            stage.write(&file, target, unit, stage.flags(mode, direct))?;
        }
        let found = stage.read(&file, target, unit)?;
        let how = format!("read(2) of a file just opened in {}", mode.name());
        stage.shows(target, unit, &found, &how);
        if rng.below(3) == 0 {
            look_at_a_mapping(stage, target, &file, (mode, modes.len() > 1), unit)?;
        }
    }
    Ok(())
}

/// Maps a file, to be read only, and looks at a unit of which nobody else writes.
fn look_at_a_mapping(
    stage: &Stage,
    target: &Target,
    file: &File,
    (mode, mixed): (Mode, bool),
    unit: u64,
) -> Result<()> {
    let refused = |errno| match errno {
        libc::ENODEV => mode == Mode::Direct && (mixed || !stage.mmap),
        libc::ETXTBSY => mode == Mode::Direct && mixed,
        _ => false,
    };
    match Map::shared_to_read(file, 0, target.end() as usize) {
        Ok(map) => {
            if mode == Mode::Direct && !stage.mmap {
                let text = "a file with FOPEN_DIRECT_IO was mapped and shared, though the server \
                            did not ask for FUSE_DIRECT_IO_ALLOW_MMAP";
                stage.ctx.found("accepted", Some((target, 0, 0)), text);
            }
            let mut bytes = vec![0; target.unit as usize];
            map.load(target.offset_of(unit) as usize, &mut bytes)
                .map_err(Error::system("cannot read a mapping of a FUSE file"))?;
            let found: Vec<Found> = files::sectors(&stage.ctx, target, unit, &bytes);
            let how = format!("a mapping of a file just opened in {}", mode.name());
            stage.shows(target, unit, &found, &how);
        }
        Err(e) if e.raw_os_error().is_some_and(refused) => {}
        Err(e) => {
            let text = format!("mapping a file that was opened in {} fails: {e}", mode.name());
            stage.ctx.found("wrong-result", Some((target, 0, 0)), text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_uses_the_backing_file_and_what_uses_the_page_cache_exclude_each_other() {
        let open = Held::Open;
        assert!(may_open(open(Mode::Cached), Mode::Direct));
        assert!(!may_open(open(Mode::Cached), Mode::Both));
        assert!(!may_open(Held::Mapped, Mode::Passthrough));
        assert!(may_open(open(Mode::Direct), Mode::Passthrough));
        assert!(!may_open(open(Mode::Passthrough), Mode::Direct));
        assert!(may_open(open(Mode::Both), Mode::Passthrough));
    }
}

//! Direct writes in place, beside each other.
//!
//! Where the server allows it (FOPEN_PARALLEL_DIRECT_WRITES), it gets them at once: it holds each
//! until all are there. In passthrough mode pwrite(2) has the FUSE inode to itself (seen from 6.12
//! to 7.3: `fuse_passthrough_write_iter`); asynchronous writes give it back once they are submitted,
//! so that the disk has several of them. No kernel has to: one that lets them queue up is not
//! tried (moment `parallel`). But a server that gets them at once must take them so.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::super::aio::Writes;
use super::super::fuse_server::{Held, Mode, Op};
use super::super::mapper::Mapper;
use super::super::task::NoAnswer;
use super::super::{PATIENCE, Task, Which, files};
use super::modes::open_task;
use super::{ANY, Holding, Stage};
use crate::channel::{Target, WriteFlags};
use crate::guest::{Error, Result};
use crate::race::DeviceOp;

/// Writes at once.
const WRITES: u64 = 8;
/// How long is waited for them where they will never come together, on purpose.
const NEVER: Duration = Duration::from_secs(2);

pub(super) fn run(stage: &Arc<Stage>) -> Result<()> {
    match stage.mode {
        Mode::Passthrough => by_disk(stage),
        Mode::Direct | Mode::Both => by_server(stage),
        Mode::Cached => Ok(()),
    }
}

/// Units of no neighbours, so that no two of them become one request.
fn units(stage: &Stage, target: &Target) -> Vec<u64> {
    let mut rng = stage.ctx.rng(&[1, stage.round.into()]);
    let first = rng.below(target.units as usize - 2 * WRITES as usize) as u64;
    (0..WRITES).map(|i| first + 2 * i).collect()
}

fn by_server(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase("parallel")?;
    // Before anything is held: a new process closes what it inherits, and where close(2) waits for the
    // inode's writes (`fuse_flush` of 6.12) that would wait for what is held here.
    let maps = stage.mode == Mode::Direct && stage.mmap;
    let mapper = if maps { Some(opened(stage, target)?) } else { None };
    let file = Arc::new(stage.open(target, stage.mode, libc::O_DIRECT)?);
    let flags = stage.flags(stage.mode, true);
    let holding = Holding::begin();
    let held = stage.server.hold(Op::Write)?;
    let mut writers = Vec::new();
    for unit in units(stage, target) {
        let (stage, file, target) = (Arc::clone(stage), Arc::clone(&file), target.clone());
        let write = move || stage.write(&file, &target, unit, flags);
        writers.push(Task::start(&format!("writer-{unit}"), write)?);
    }
    let limit = if ctx.wrong("serial") { NEVER } else { ANY };
    let many = held.holds(WRITES as u32, holding.left(limit))?;
    ctx.did(format!("the server has {many} WRITEs at once"));
    if many > 1 || one_at_a_time(stage, &held, &holding)? > 1 {
        ctx.reached("parallel");
    }
    let mapping = match mapper {
        Some(mapper) => {
            let (own, len) = (Arc::clone(&mapper), target.end());
            let task = Task::start("mapper", move || own.map(len))?;
            // They are still in flight: the mapping has to wait for their end.
            if soon(holding.left(ANY), || in_iomode(&mapper.stacks().concat())) {
                ctx.reached("mmap-waits");
            }
            Some((mapper, task))
        }
        None => None,
    };
    drop(held);
    for writer in &writers {
        ctx.answer(writer, "a direct write in place through FUSE")??;
    }
    if let Some((mapper, task)) = mapping {
        let mapped = ctx.answer(&task, "mmap of a file whose direct writes have ended")??;
        if let Err(errno) = mapped {
            let said = crate::guest::explain(errno);
            let text = format!("mmap beside direct writes fails with {said}, though it is allowed");
            ctx.found("wrong-result", None, text);
        }
        mapper.unmap()?;
        mapper.close()?;
    }
    stage.sync(&file, target)
}

/// The server has one WRITE in hand. Who makes the others wait: itself, or the kernel, which may? → how
/// many it has now.
fn one_at_a_time(stage: &Stage, held: &Held<'_>, holding: &Holding) -> Result<u32> {
    let ctx = &stage.ctx;
    let mut given = 0;
    soon(holding.left(ANY), || {
        given = stage.server.status().map_or(0, |status| status.most_writes);
        given > 1
    });
    if given < 2 {
        ctx.note("the kernel gives the server its direct writes one after the other");
        return Ok(given);
    }
    let many = held.holds(2, NEVER)?;
    if many < 2 {
        let text = format!(
            "of {WRITES} direct writes in place to different units of a file that is open with \
             FOPEN_PARALLEL_DIRECT_WRITES the kernel gives the server {given} at once, and it takes \
             {many} at a time"
        );
        ctx.found("wrong-result", None, text);
    }
    Ok(many)
}

/// A process with the file open in direct mode.
fn opened(stage: &Stage, target: &Target) -> Result<Arc<Mapper>> {
    let mapper = Mapper::start(stage.ctx.race.workload.nonce)?;
    let path = stage.server.path(super::name(target));
    match mapper.open(&path, stage.server.flags(Mode::Direct))? {
        Ok(()) => Ok(Arc::new(mapper)),
        Err(errno) => Err(Error::System { what: format!("cannot open {path}"), errno }),
    }
}

/// Does it come about, some time soon?
pub(super) fn soon(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Is this the stack of somebody who waits for a change of an inode's I/O mode?
pub(super) fn in_iomode(stack: &str) -> bool {
    let innermost = stack.split(" < ").next().unwrap_or_default();
    ["fuse_file_cached_io_open", "fuse_file_io_open", "fuse_file_mmap"].contains(&innermost)
}

fn by_disk(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase("parallel")?;
    let units = units(stage, target);
    let flags = stage.flags(Mode::Passthrough, true);
    let file = stage.open(target, Mode::Passthrough, libc::O_DIRECT)?;
    let range = range(target, &units)?;
    let holding = Holding::begin();
    let stall = ctx.stall(Which::of(DeviceOp::Write, range))?;
    let writes = submit(stage, target, &units, file)?;
    let all = stall.holds(WRITES, holding.left(ANY))?;
    if all || stall.holds(2, Duration::ZERO)? {
        ctx.did(if all { "the disk has all of them" } else { "the disk has some of them" });
        ctx.reached("parallel");
    } else {
        ctx.note("asynchronous writes in passthrough mode reach the disk one after the other");
    }
    stall.release()?;
    reap(stage, target, &writes)?;

    if stage.round == 0 {
        note_synchronous(stage, target, &units, flags)?;
    }
    let file = stage.open(target, Mode::Passthrough, 0)?;
    stage.sync(&file, target)
}

/// How many of pwrite(2)'s writes the disk gets at once: a fact, no promise.
fn note_synchronous(
    stage: &Arc<Stage>,
    target: &Target,
    units: &[u64],
    flags: WriteFlags,
) -> Result<()> {
    let ctx = &stage.ctx;
    let file = Arc::new(stage.open(target, Mode::Passthrough, libc::O_DIRECT)?);
    let range = range(target, units)?;
    let holding = Holding::begin();
    let stall = ctx.stall(Which::of(DeviceOp::Write, range))?;
    let mut writers = Vec::new();
    for unit in units.iter().copied().take(4) {
        let (stage, file, target) = (Arc::clone(stage), Arc::clone(&file), target.clone());
        let write = move || stage.write(&file, &target, unit, flags);
        writers.push(Task::start(&format!("writer-{unit}"), write)?);
    }
    stall.holds(1, holding.left(ANY))?;
    let several = stall.holds(2, Duration::from_millis(300))?;
    stall.release()?;
    for writer in &writers {
        ctx.answer(writer, "pwrite to a file in passthrough mode")??;
    }
    let how = if several { "several at once" } else { "one after the other" };
    ctx.note(format!(
        "pwrite(2) in passthrough mode: writes of several threads reach the disk {how}"
    ));
    Ok(())
}

/// From the first unit's place on the disk to the last one's end.
fn range(target: &Target, units: &[u64]) -> Result<(u64, u64)> {
    let backing = files::open(&target.path, false)?;
    let places = units.iter().map(|unit| files::place(&backing, target, *unit));
    let places = places.collect::<Result<Vec<_>>>()?;
    let from = places.iter().map(|(at, _)| *at).min().unwrap_or_default();
    let to = places.iter().map(|(at, len)| at + len).max().unwrap_or_default();
    Ok((from, to - from))
}

/// Asynchronous writes of units in their next generations.
struct Submitted {
    new: Vec<(u64, u32)>,
    /// Their answers.
    task: Task<Result<Vec<(u64, i64)>>>,
    /// Told when the file is closed.
    closed: Receiver<()>,
}

/// Submits them, and closes the file as soon as the kernel has taken them.
fn submit(
    stage: &Arc<Stage>,
    target: &Target,
    units: &[u64],
    file: std::fs::File,
) -> Result<Submitted> {
    let ctx = &stage.ctx;
    let flags = stage.flags(Mode::Passthrough, true);
    let new: Vec<_> = units.iter().map(|unit| (*unit, stage.book.next(target, *unit))).collect();
    ctx.mark(new.iter().map(|(unit, g)| files::intent(target, *unit, *g, flags)).collect())?;
    let (own, target, writes) = (Arc::clone(stage), target.clone(), new.clone());
    let (sender, closed) = channel();
    let task = Task::start("submitter", move || {
        let mut ring = Writes::new(writes.len())?;
        for (unit, r#gen) in writes {
            let bytes = files::unit_bytes(&own.ctx, &target, unit, r#gen);
            ring.submit(unit, &file, bytes, target.offset_of(unit))?;
        }
        own.ctx.did("submitted; closes the file");
        drop(file);
        own.ctx.did("has closed it");
        // Not everybody waits for that.
        let _ = sender.send(());
        ring.reap()
    })?;
    Ok(Submitted { new, task, closed })
}

/// Their answers, with their marks.
fn reap(stage: &Stage, target: &Target, writes: &Submitted) -> Result<()> {
    let (ctx, Submitted { new, task, .. }) = (&stage.ctx, writes);
    let answers = ctx.answer(task, "an asynchronous write in passthrough mode")??;
    ctx.did(format!("returned: {answers:?}"));
    let result = |unit: u64| answers.iter().find(|(id, _)| *id == unit).map_or(0, |(_, n)| *n);
    let done = new.iter().map(|(unit, g)| files::done(target, *unit, *g, result(*unit)));
    ctx.mark(done.collect()).map(|_| ())
}

/// A file in passthrough mode is closed while its writes are in flight: until they have ended the
/// inode is in passthrough mode, and afterwards it is in none.
pub(super) fn closed_in_flight(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    ctx.phase("closed-in-flight")?;
    let units = units(stage, target);
    let file = stage.open(target, Mode::Passthrough, libc::O_DIRECT)?;
    let range = range(target, &units)?;
    let holding = Holding::begin();
    let stall = ctx.stall(Which::of(DeviceOp::Write, range))?;
    let writes = submit(stage, target, &units, file)?;
    if !stall.holds(1, holding.left(ANY))? {
        return Err(Error::TimedOut("the disk gets none of the writes".into()));
    }
    // A kernel may let close(2) wait for what is in flight. Then there is nothing to see here.
    let closed = writes.closed.recv_timeout(holding.left(ANY)).is_ok();
    // By a thread of its own: it may have to wait as well.
    let opening = open_task(stage, target, Mode::Cached)?;
    let mut waits = false;
    let excluded = match opening.wait(holding.left(ANY)) {
        Ok(Err(e)) if e.errno() == Some(libc::EIO) => true,
        Ok(Err(e)) => return Err(e),
        Ok(Ok(_)) => {
            ctx.found(
                "accepted",
                Some((target, 0, 0)),
                "a file was opened in cached mode while a write in passthrough mode was in flight: \
                 close(2) alone ends no passthrough mode",
            );
            false
        }
        Err(NoAnswer::Gone) => return Err(Error::Refused("an opening thread panicked".into())),
        Err(NoAnswer::Stuck(stack)) => {
            ctx.did(format!("a cached open waits: {stack}"));
            waits = true;
            true
        }
    };
    if closed && excluded {
        ctx.reached("closed-in-flight");
    }
    stall.release()?;
    reap(stage, target, &writes)?;
    if waits {
        // It may be let in, or refused.
        let _ = ctx.answer(&opening, "a cached open beside writes that have ended")?;
    }
    // The last reference may be dropped by a worker, some time after the answers.
    let end = Instant::now() + PATIENCE;
    loop {
        match stage.open(target, Mode::Cached, 0) {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() > end => {
                let text = format!(
                    "{e}: the file is closed and its last write has ended, but it stays in \
                     passthrough mode"
                );
                ctx.found("leaked", Some((target, 0, 0)), text);
                return Ok(());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_iomode;

    #[test]
    fn who_waits_for_the_server_does_not_wait_for_a_mode() {
        assert!(in_iomode("fuse_file_cached_io_open < fuse_file_mmap < __mmap_region"));
        assert!(!in_iomode("request_wait_answer < __fuse_simple_request < fuse_file_open"));
        assert!(!in_iomode(""));
    }
}

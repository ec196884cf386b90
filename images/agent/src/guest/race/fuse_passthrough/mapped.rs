//! Two processes map what others write.

use std::sync::Arc;

use super::super::fuse_server::{Mode, Op};
use super::super::mapper::{Called, Mapper};
use super::super::{Task, Which, files};
use super::{ANY, Holding, Stage, modes, name};
use crate::channel::{MarkText, Target, WriteFlags};
use crate::guest::{Error, Result, explain};
use crate::race::DeviceOp;

/// Units of each process, and of whoever uses pwrite(2).
const EACH: u64 = 4;
/// Times that each of them is written.
const TIMES: u32 = 2;

pub(super) fn run(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.mapped()?);
    ctx.phase("mapped")?;
    let [a, b] = [mapper(stage, target, stage.mode)?, mapper(stage, target, stage.mode)?];
    let allowed = stage.mode != Mode::Direct || stage.mmap;
    for process in [&a, &b] {
        match (map(stage, process, target)?, allowed) {
            (Ok(()), true) => {}
            (Err(libc::ENODEV), false) => ctx.reached("mmap-refused"),
            (Ok(()), false) => {
                let text = "a file with FOPEN_DIRECT_IO was mapped and shared, though the server \
                            did not ask for FUSE_DIRECT_IO_ALLOW_MMAP";
                ctx.found("accepted", None, text);
            }
            (Err(errno), _) => {
                let text = format!("mmap in {} fails with {}", stage.mode.name(), explain(errno));
                ctx.found("wrong-result", None, text);
                return Ok(());
            }
        }
    }
    if allowed {
        fault_during_write(stage, target, [&a, &b], stage.mode, Way::Synchronous)?;
        together(stage, target, [&a, &b])?;
        look(stage, target, [&a, &b])?;
    }
    let_go([&a, &b])
}

/// Asynchronous direct writes beside mappings, in the modes that have a page cache of either kind.
pub(super) fn asynchronous(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.mapped()?);
    for mode in Mode::ALL {
        ctx.phase(&format!("asynchronous, {}", mode.name()))?;
        let [a, b] = [mapper(stage, target, mode)?, mapper(stage, target, mode)?];
        for process in [&a, &b] {
            if let Err(errno) = map(stage, process, target)? {
                return Err(Error::System {
                    what: format!("cannot map a file in {}", mode.name()),
                    errno,
                });
            }
        }
        fault_during_write(stage, target, [&a, &b], mode, Way::Asynchronous)?;
        let_go([&a, &b])?;
        modes::open_soon(stage, target, Mode::Passthrough)?;
    }
    Ok(())
}

fn let_go(processes: [&Arc<Mapper>; 2]) -> Result<()> {
    for process in processes {
        process.unmap()?;
        process.close()?;
    }
    Ok(())
}

/// A process with the file open.
fn mapper(stage: &Stage, target: &Target, mode: Mode) -> Result<Arc<Mapper>> {
    let mapper = Mapper::start(stage.ctx.race.workload.nonce)?;
    let path = stage.server.path(name(target));
    match mapper.open(&path, stage.server.flags(mode))? {
        Ok(()) => Ok(Arc::new(mapper)),
        Err(errno) => Err(Error::System { what: format!("cannot open {path}"), errno }),
    }
}

fn map(stage: &Stage, mapper: &Arc<Mapper>, target: &Target) -> Result<Called<()>> {
    let (own, len) = (Arc::clone(mapper), target.end());
    let task = Task::start("map", move || own.map(len))?;
    stage.ctx.answer(&task, "mmap of a FUSE file")?
}

/// What a mapping shows.
fn load(stage: &Stage, mapper: &Arc<Mapper>, target: &Target, unit: u64, how: &str) -> Result<()> {
    let task = load_task(mapper, target, unit)?;
    match stage.ctx.answer(&task, "a load from a mapped FUSE file")?? {
        Ok(found) => stage.shows(target, unit, &found, how),
        Err(errno) => {
            let text = format!("a mapping of unit {unit} cannot be read: {}", explain(errno));
            let at = Some((target, target.offset_of(unit), target.unit));
            stage.ctx.found("failed", at, text);
        }
    }
    Ok(())
}

type Loading = Task<Result<Called<Vec<crate::channel::Found>>>>;

fn load_task(mapper: &Arc<Mapper>, target: &Target, unit: u64) -> Result<Loading> {
    let (own, target) = (Arc::clone(mapper), target.clone());
    Task::start("load", move || own.load(&target, unit))
}

/// How a write is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Synchronous,
    Asynchronous,
}

impl Way {
    fn text(self) -> &'static str {
        match self {
            Way::Synchronous => "a",
            Way::Asynchronous => "an asynchronous",
        }
    }

    /// A page was faulted in while such a write was in flight.
    fn moment(self) -> &'static str {
        match self {
            Way::Synchronous => "fault-during-write",
            Way::Asynchronous => "fault-during-aio",
        }
    }
}

/// A direct write throws the page out, and is held before it changes anything; somebody faults the
/// page in again, with the old bytes; the write goes on. It must throw the page out once more before
/// it tells that it is done.
fn fault_during_write(
    stage: &Arc<Stage>,
    target: &Target,
    [a, b]: [&Arc<Mapper>; 2],
    mode: Mode,
    way: Way,
) -> Result<()> {
    let ctx = &stage.ctx;
    let mut rng = stage.ctx.rng(&[2, stage.round.into(), mode as u64]);
    let unit = rng.below(target.units as usize) as u64;
    load(stage, a, target, unit, "a mapping")?;
    let file = stage.open(target, mode, libc::O_DIRECT)?;
    let flags = stage.flags(mode, true);
    let old = stage.book.last(target, unit);
    let writer = || {
        let (stage, target) = (Arc::clone(stage), target.clone());
        Task::start("writer", move || match way {
            Way::Synchronous => stage.write(&file, &target, unit, flags),
            Way::Asynchronous => stage.write_async(&file, &target, unit, flags),
        })
    };
    let (task, held, (late, was_old));
    if mode == Mode::Passthrough {
        let place = files::place(&files::open(&target.path, false)?, target, unit)?;
        let holding = Holding::begin();
        let stall = ctx.stall(Which::of(DeviceOp::Write, place))?;
        task = writer()?;
        held = stall.holds(1, holding.left(ANY))?;
        (late, was_old) = load_meanwhile(stage, b, target, (unit, old), &holding)?;
        stall.release()?;
    } else {
        let holding = Holding::begin();
        let gate = stage.server.hold(Op::Write)?;
        task = writer()?;
        held = gate.holds(1, holding.left(ANY))? > 0;
        (late, was_old) = load_meanwhile(stage, b, target, (unit, old), &holding)?;
    }
    ctx.did(format!("the write was held: {held}; lets it go"));
    let result = ctx.answer(&task, "a direct write beside a mapping")??;
    ctx.did(format!("the write returns {result}"));
    if let Some(late) = late {
        // It waited for the write: whatever it shows is not of interest.
        let _ = ctx.answer(&late, "a load from a mapped FUSE file")??;
    } else if held && was_old {
        ctx.reached(way.moment());
    }
    let how =
        format!("after {} direct write in {} had returned, a mapping", way.text(), mode.name());
    load(stage, a, target, unit, &how)?;
    load(stage, b, target, unit, &how)
}

/// A load while the write is held: the task, where it waits; else did it show the old bytes?
fn load_meanwhile(
    stage: &Stage,
    mapper: &Arc<Mapper>,
    target: &Target,
    (unit, old): (u64, u32),
    holding: &Holding,
) -> Result<(Option<Loading>, bool)> {
    let task = load_task(mapper, target, unit)?;
    match task.wait(holding.left(ANY)) {
        Ok(found) => {
            let found = found?.unwrap_or_default();
            stage.ctx.did(format!("a load meanwhile shows {}", files::in_words(&found)));
            let is_old = |sector: &crate::channel::Found| {
                *sector == crate::channel::Found::Own { r#gen: old }
            };
            Ok((None, !found.is_empty() && found.iter().all(is_old)))
        }
        Err(_) => Ok((Some(task), false)),
    }
}

/// Both processes store to units of their own, and others use pwrite(2) on neighbours; readers look
/// at all of it meanwhile.
fn together(stage: &Arc<Stage>, target: &Target, maps: [&Arc<Mapper>; 2]) -> Result<()> {
    let ctx = &stage.ctx;
    let mut tasks = Vec::new();
    for (first, mapper) in maps.into_iter().enumerate() {
        let (stage, mapper, target) = (Arc::clone(stage), Arc::clone(mapper), target.clone());
        tasks.push(Task::start(&format!("store-{first}"), move || {
            for i in (0..TIMES).flat_map(|_| 0..EACH) {
                let unit = 3 * i + first as u64;
                let r#gen = stage.book.next(&target, unit);
                let plain = WriteFlags::PLAIN;
                stage.ctx.mark(vec![files::intent(&target, unit, r#gen, plain)])?;
                mapper.store(&target, unit, r#gen)?;
                stage.ctx.did(format!("stored unit {unit}, generation {gen}"));
                let stored = i64::from(target.unit);
                stage.ctx.mark(vec![files::done(&target, unit, r#gen, stored)])?;
            }
            Ok(())
        })?);
    }
    for direct in [false, true] {
        let file = stage.open(target, stage.mode, if direct { libc::O_DIRECT } else { 0 })?;
        let (stage, target) = (Arc::clone(stage), target.clone());
        let flags = stage.flags(stage.mode, direct);
        tasks.push(Task::start(if direct { "direct" } else { "buffered" }, move || {
            for i in (0..TIMES).flat_map(|_| 0..EACH / 2) {
                let unit = 3 * (2 * i + u64::from(direct)) + 2;
                stage.write(&file, &target, unit, flags)?;
            }
            Ok(())
        })?);
    }
    for task in &tasks {
        ctx.answer(task, "a write beside stores")??;
    }
    Ok(())
}

/// Nobody writes: both mappings show what read(2) and the backing file show.
fn look(stage: &Arc<Stage>, target: &Target, maps: [&Arc<Mapper>; 2]) -> Result<()> {
    let ctx = &stage.ctx;
    let since = ctx.mark(Vec::new())?;
    let own = Arc::clone(maps[(stage.round % 2) as usize]);
    let task = Task::start("msync", move || own.sync())?;
    let result = ctx.answer(&task, "msync of a mapped FUSE file")??;
    let result = result.map_or_else(|errno| -i64::from(errno), |()| 0);
    ctx.did(format!("msync: {result}"));
    ctx.mark(vec![MarkText::Synced { file: target.file, since, result }])?;
    let file = stage.open(target, stage.mode, 0)?;
    let backing = files::open(&target.path, false)?;
    for unit in 0..target.units.into() {
        for mapper in maps {
            load(stage, mapper, target, unit, "a mapping")?;
        }
        stage.shows(target, unit, &stage.read(&file, target, unit)?, "read(2) beside mappings");
        let found = stage.read(&backing, target, unit)?;
        stage.shows(target, unit, &found, "the backing file beside mappings");
    }
    ctx.reached("mapped");
    Ok(())
}

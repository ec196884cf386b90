//! Two processes map what others write.

use std::sync::Arc;
use std::time::Duration;

use super::super::fuse_server::{Mode, Op};
use super::super::mapper::{Called, Mapper};
use super::super::{PATIENCE, Task, Which, files};
use super::{Stage, name};
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
    let [a, b] = [mapper(stage, target)?, mapper(stage, target)?];
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
                let text = format!("mmap in mode {:?} fails with {}", stage.mode, explain(errno));
                ctx.found("wrong-result", None, text);
                return Ok(());
            }
        }
    }
    if allowed {
        fault_during_write(stage, target, &a, &b)?;
        together(stage, target, [&a, &b])?;
        look(stage, target, [&a, &b])?;
    }
    for process in [&a, &b] {
        process.unmap()?;
        process.close()?;
    }
    Ok(())
}

/// A process with the file open.
fn mapper(stage: &Stage, target: &Target) -> Result<Arc<Mapper>> {
    let mapper = Mapper::start(stage.ctx.race.workload.nonce)?;
    let path = stage.server.path(name(target));
    match mapper.open(&path, stage.server.flags(stage.mode))? {
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
fn load(stage: &Stage, mapper: &Arc<Mapper>, target: &Target, unit: u64) -> Result<()> {
    let task = load_task(mapper, target, unit)?;
    match stage.ctx.answer(&task, "a load from a mapped FUSE file")?? {
        Ok(found) => stage.shows(target, unit, &found, "a mapping"),
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

/// A direct write throws the page out, and is held before it changes anything; somebody faults the
/// page in again, with the old bytes; the write goes on. It must throw the page out once more.
fn fault_during_write(
    stage: &Arc<Stage>,
    target: &Target,
    a: &Arc<Mapper>,
    b: &Arc<Mapper>,
) -> Result<()> {
    let ctx = &stage.ctx;
    let mut rng = stage.ctx.rng(&[2, stage.round.into()]);
    let unit = rng.below(target.units as usize) as u64;
    load(stage, a, target, unit)?;
    let file = Arc::new(stage.open(target, stage.mode, libc::O_DIRECT)?);
    let flags = stage.flags(stage.mode, true);
    let writer = |file: &Arc<std::fs::File>| {
        let (stage, file, target) = (Arc::clone(stage), Arc::clone(file), target.clone());
        Task::start("writer", move || stage.write(&file, &target, unit, flags))
    };
    let old = stage.book.last(target, unit);
    let (task, loaded);
    if stage.mode == Mode::Passthrough {
        let place = files::place(&files::open(&target.path, false)?, target, unit)?;
        let stall = ctx.stall(Which::of(DeviceOp::Write, place))?;
        task = writer(&file)?;
        let held = stall.holds(1, PATIENCE)?;
        loaded = (held, load_meanwhile(stage, b, target, unit, old)?);
        stall.release()?;
    } else {
        let held = stage.server.hold(Op::Write)?;
        task = writer(&file)?;
        let many = held.holds(1, PATIENCE)?;
        loaded = (many > 0, load_meanwhile(stage, b, target, unit, old)?);
    }
    let result = ctx.answer(&task, "a direct write beside a mapping")??;
    ctx.did(format!("the write returns {result}"));
    match loaded.1 {
        (_, true) if loaded.0 => ctx.reached("fault-during-write"),
        (Some(late), _) => {
            // It waited for the write: whatever it shows is not of interest.
            let _ = ctx.answer(&late, "a load from a mapped FUSE file")??;
        }
        _ => {}
    }
    load(stage, a, target, unit)?;
    load(stage, b, target, unit)
}

/// A load while the write is held: the task, where it waits; else did it show the old bytes?
fn load_meanwhile(
    stage: &Stage,
    mapper: &Arc<Mapper>,
    target: &Target,
    unit: u64,
    old: u32,
) -> Result<(Option<Loading>, bool)> {
    let task = load_task(mapper, target, unit)?;
    match task.wait(Duration::from_secs(10)) {
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
            load(stage, mapper, target, unit)?;
        }
        stage.shows(target, unit, &stage.read(&file, target, unit)?, "read(2) beside mappings");
        let found = stage.read(&backing, target, unit)?;
        stage.shows(target, unit, &found, "the backing file beside mappings");
    }
    ctx.reached("mapped");
    Ok(())
}

//! A file that is extended while its attributes are asked for.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::super::fuse_server::Op;
use super::super::{Task, files};
use super::{ANY, Holding, Stage};
use crate::channel::Target;
use crate::guest::{Error, Result};

/// Units by which it grows while somebody looks, after the one whose moment is made.
const MORE: u64 = 4;

pub(super) fn run(stage: &Arc<Stage>) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.grown()?);
    ctx.phase("grown")?;
    let units = stage.units(target)?;
    if units + 1 + MORE > u64::from(target.units) {
        return Ok(());
    }
    // One round by its offset, the next by O_APPEND.
    let how = if stage.round % 2 == 1 { libc::O_APPEND } else { 0 };
    let file = Arc::new(stage.open(target, stage.mode, how)?);
    stat_over_extend(stage, target, &file, units)?;
    while_looked_at(stage, target, &file, units + 1)?;
    stage.sync(&file, target)
}

/// The server knows the old size already and has not answered; the file grows; the old answer comes.
fn stat_over_extend(
    stage: &Arc<Stage>,
    target: &Target,
    file: &Arc<File>,
    unit: u64,
) -> Result<()> {
    let ctx = &stage.ctx;
    let looker = Arc::new(stage.open(target, stage.mode, 0)?);
    let holding = Holding::begin();
    let held = stage.server.hold(Op::Getattr)?;
    let own = Arc::clone(&looker);
    let asking = Task::start("asking", move || size(&own, true))?;
    if held.holds(1, holding.left(ANY))? == 0 {
        return Err(Error::TimedOut("a forced statx(2) does not reach the server".into()));
    }
    ctx.did("the server holds a GETATTR, with the old size");
    let writer = extend(stage, target, file, unit)?;
    let meanwhile = writer.wait(holding.left(ANY)).ok();
    drop(held);
    let told = ctx.answer(&asking, "statx of a FUSE file")??;
    match meanwhile {
        Some(result) => {
            result?;
            ctx.reached("stat-over-extend");
        }
        None => {
            ctx.answer(&writer, "a write that extends a FUSE file")??;
            ctx.did("the write waited for the attributes");
        }
    }
    ctx.did(format!("the attributes that were asked for before it grew: {told} bytes"));
    let floor = target.offset_of(unit + 1);
    check(stage, target, floor, size(&looker, false)?, "fstat");
    check(stage, target, floor, size(&looker, true)?, "statx with AT_STATX_FORCE_SYNC");
    let end = (&*looker).seek(SeekFrom::End(0)).map_err(Error::system("cannot seek"))?;
    check(stage, target, floor, end, "lseek with SEEK_END");
    let backing = files::open(&target.path, false)?;
    let len = backing.metadata().map_err(Error::system("cannot stat the backing file"))?.len();
    check(stage, target, floor, len, "fstat of the backing file");
    stage.shows(target, unit, &stage.read(&looker, target, unit)?, "read(2) behind the old end");
    Ok(())
}

fn extend(
    stage: &Arc<Stage>,
    target: &Target,
    file: &Arc<File>,
    unit: u64,
) -> Result<Task<Result<i64>>> {
    let (stage, file, target) = (Arc::clone(stage), Arc::clone(file), target.clone());
    let flags = stage.flags(stage.mode, false);
    Task::start("extend", move || stage.write(&file, &target, unit, flags))
}

/// The file's size, by asking the server in any case, or by what the kernel may know.
fn size(file: &File, force: bool) -> Result<u64> {
    let flags = if force { AtFlags::STATX_FORCE_SYNC } else { AtFlags::empty() };
    let stat = statx(file, "", flags | AtFlags::EMPTY_PATH, StatxFlags::SIZE)
        .map_err(Error::system("statx of a FUSE file"))?;
    Ok(stat.stx_size)
}

fn check(stage: &Stage, target: &Target, floor: u64, found: u64, how: &str) {
    if found < floor {
        let text = format!(
            "{how} says {found} bytes, begun after the write had returned that made them {floor}"
        );
        stage.ctx.found("wrong-result", Some((target, found, (floor - found) as u32)), text);
    }
}

/// It grows while others look at its size, without anybody being held.
fn while_looked_at(
    stage: &Arc<Stage>,
    target: &Target,
    file: &Arc<File>,
    first: u64,
) -> Result<()> {
    let ctx = &stage.ctx;
    let floor = Arc::new(AtomicU64::new(target.offset_of(first)));
    let over = Arc::new(AtomicBool::new(false));
    let mut lookers = Vec::new();
    for force in [false, true] {
        let looker = stage.open(target, stage.mode, 0)?;
        let (stage, target) = (Arc::clone(stage), target.clone());
        let (floor, over) = (Arc::clone(&floor), Arc::clone(&over));
        lookers.push(Task::start("looker", move || {
            while !over.load(Ordering::SeqCst) && !stage.ctx.is_over() {
                let least = floor.load(Ordering::SeqCst);
                check(&stage, &target, least, size(&looker, force)?, "fstat");
            }
            Ok::<_, Error>(())
        })?);
    }
    for unit in first..first + MORE {
        let writer = extend(stage, target, file, unit)?;
        let written = ctx.answer(&writer, "a write that extends a FUSE file")??;
        if written == i64::from(target.unit) {
            floor.store(target.offset_of(unit + 1), Ordering::SeqCst);
        }
    }
    over.store(true, Ordering::SeqCst);
    for looker in &lookers {
        ctx.answer(looker, "fstat of a FUSE file")??;
    }
    Ok(())
}

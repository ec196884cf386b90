//! What RWF_DSYNC, RWF_SYNC and fsync promise, while the disk holds what they wait for; and writes
//! over a folio before and during its writeback.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::pressure::sync_file_range;
use super::{At, DSYNC, How, PLAIN, SETTLES, SYNC, Sectors, Work};
use crate::channel::{Found, Prepare};
use crate::guest::race::files::in_words;
use crate::guest::race::task::Seen;
use crate::guest::race::{Task, Which};
use crate::guest::workload::plan::Rng;
use crate::guest::{Error, Result};
use crate::payload::SECTOR;
use crate::race::DeviceOp;

/// Who sleeps that long at one place of the kernel waits there. It is asked again before it may go on.
const SLEEPS: Duration = Duration::from_millis(30);

/// The unit of a round: areas in turn, and their units.
pub(super) fn unit_of(work: &Work, round: u32) -> At {
    let areas = work.areas.len() as u32;
    let area = (round % areas) as usize;
    (area, u64::from(round / areas % work.areas[area].target.units))
}

/// Some sectors of a unit, but not all of them.
pub(super) fn some_sectors(rng: &mut Rng, all: usize) -> Sectors {
    let from = rng.below(all);
    let most = if from == 0 { all - 1 } else { all - from };
    from..from + 1 + rng.below(most)
}

pub(super) fn run(work: &mut Work) -> Result<()> {
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        let at = unit_of(work, round);
        let how = [DSYNC, SYNC, PLAIN][round as usize % 3];
        let mut rng = work.ctx.rng(&[u64::from(round)]);
        if work.wrong("forget-fsync") {
            work.write(at, how)?;
            if !how.is_durable() {
                work.sync(at)?;
            }
        } else {
            durable(work, at, how, &mut rng)?;
            work.sync(at)?;
        }
        work.check(at, true)?;
    }
    if work.wrong("forget-fsync") { Ok(()) } else { leave_unflushed(work) }
}

/// What the cut of the power finds: a write of each unit that the disk has and was not told to keep.
fn leave_unflushed(work: &mut Work) -> Result<()> {
    for area in 0..work.areas.len() {
        let (file, target) = (Arc::clone(&work.areas[area].file), work.areas[area].target.clone());
        for unit in 0..u64::from(target.units) {
            work.write((area, unit), PLAIN)?;
            if unit % 2 == 1 {
                // By itself, where its neighbour may be joined to the one behind it.
                let (file, offset) = (Arc::clone(&file), target.offset_of(unit));
                let len = u64::from(target.unit);
                writeback(work, file, offset, len)?;
            }
        }
        writeback(work, file, target.offset, target.end() - target.offset)?;
    }
    Ok(())
}

fn writeback(work: &Work, file: Arc<File>, offset: u64, len: u64) -> Result<()> {
    let task = Task::start("writeback", move || sync_file_range(&file, offset, len))?;
    let done = work.ctx.answer(&task, "sync_file_range")?;
    done.map_err(Error::system("cannot sync a range"))
}

/// One write that is to be durable, and its request held.
fn durable(work: &mut Work, at: At, how: How, rng: &mut Rng) -> Result<()> {
    // Elsewhere the place is known only afterwards.
    let in_place = work.target(at).prepare == Prepare::Written;
    let (stall, request) = match in_place {
        true => (work.hold_writes(at)?, "held-write"),
        false => (work.ctx.stall(Which::answers(DeviceOp::Flush))?, "held-flush"),
    };
    let (generation, writer) = work.start(at, how)?;
    let syncer = match how.is_durable() {
        true => None,
        false => {
            let result = work.ctx.answer(&writer, "a plain write")?;
            work.returned(at, generation, result)?;
            Some(work.start_sync(at)?)
        }
    };
    let held = work.is_held(&stall, "what it waits for")?;
    let (mut early, mut synced, mut asleep) = (None, None, None);
    if held {
        match &syncer {
            Some(syncer) => match syncer.settle(SETTLES, SLEEPS, |_| true) {
                Seen::Returned(result) => synced = Some(result?),
                Seen::Asleep(stack) => asleep = Some(stack),
                Seen::Neither(_) => {}
            },
            None => match writer.settle(SETTLES, SLEEPS, |_| true) {
                Seen::Returned(result) => early = Some(result),
                Seen::Asleep(stack) => asleep = Some(stack),
                Seen::Neither(_) => {}
            },
        }
    }
    let mut over = None;
    if in_place && held {
        let whole = rng.below(3) == 0;
        let all = work.target(at).unit as usize / SECTOR;
        let sectors = (!whole).then(|| some_sectors(rng, all));
        work.shows(at, 0..all, generation);
        over = Some(work.overwrite_held(at, sectors)?);
    }
    // The disk holds it still: has it returned meanwhile?
    match &syncer {
        Some(syncer) if synced.is_none() => {
            synced = syncer.wait(Duration::ZERO).ok().transpose()?;
        }
        None if early.is_none() => early = writer.wait(Duration::ZERO).ok(),
        _ => {}
    }
    match (early.or(synced), asleep) {
        (Some(result), _) if held && result >= 0 => work.found(
            "wrong-result",
            at,
            format!("{} has returned {result} while the disk holds its request", how.name),
        ),
        (None, Some(stack)) => {
            work.ctx.did(format!("it waits in {stack}"));
            work.ctx.reached(request);
        }
        (None, None) if held => {
            work.ctx.note(format!("{} is not seen to wait for the disk", how.name));
        }
        _ => {}
    }
    stall.release()?;
    if let Some(over) = over {
        work.overwritten(at, over)?;
    }
    match (syncer, synced) {
        (Some(syncer), None) => work.synced(&syncer)?,
        (Some(_), Some(_)) => {}
        (None, _) => {
            let result = match early {
                Some(result) => result,
                None => work.ctx.answer(&writer, "a durable write")?,
            };
            // What was written over it meanwhile stays on top, whoever returns first.
            let above = work.areas[at.0].units[at.1 as usize].sectors.clone();
            work.returned(at, generation, result)?;
            if in_place && held {
                work.areas[at.0].units[at.1 as usize].sectors = above;
            }
        }
    }
    if !in_place {
        return Ok(());
    }
    let disk = work.on_disk(at, work.place(at)?)?;
    let there = |f: &Found| matches!(f, Found::Own { r#gen } if *r#gen >= generation);
    if !disk.iter().all(there) {
        let text = format!(
            "generation {generation} is acknowledged as durable, and the disk was given {}",
            in_words(&disk)
        );
        work.found("lost", at, text);
    }
    Ok(())
}

/// A write that is whole where the kernel takes it as atomic, and a plain one over it: in part and
/// whole, before the folio is written back and meanwhile.
pub(super) fn overwrite(work: &mut Work) -> Result<()> {
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        let at = unit_of(work, round);
        let all = work.target(at).unit as usize / SECTOR;
        let mut rng = work.ctx.rng(&[u64::from(round)]);
        // Whatever is written back comes here, and is seen.
        let stall = work.hold_writes(at)?;
        let mut stall = work.dirty(at, stall)?;
        for _ in 0..1 + rng.below(2) {
            over(work, at, (round % 3 != 0).then(|| some_sectors(&mut rng, all)))?;
        }
        if round % 4 == 3 {
            stall = work.dirty(at, stall)?;
        }
        if !stall.holds(1, Duration::ZERO)? {
            work.ctx.reached("overwritten-before-writeback");
        }
        let syncer = work.start_sync(at)?;
        if work.wrong("forget-fsync") {
            work.synced(&syncer)?;
            continue;
        }
        if work.is_held(&stall, "the writeback")? {
            let sectors = round.is_multiple_of(2).then(|| some_sectors(&mut rng, all));
            let over = work.overwrite_held(at, sectors)?;
            stall.release()?;
            work.overwritten(at, over)?;
        } else {
            stall.release()?;
        }
        work.synced(&syncer)?;
        work.check(at, false)?;
        work.sync(at)?;
        work.check(at, true)?;
    }
    Ok(())
}

/// A plain write over a unit, or over some of its sectors.
fn over(work: &mut Work, at: At, sectors: Option<Sectors>) -> Result<()> {
    let Some(sectors) = sectors else { return work.write(at, PLAIN) };
    let (generation, task) = work.start_part(at, sectors.clone())?;
    let result = work.ctx.answer(&task, "a write of a part of a unit")?;
    work.part_returned(at, sectors, generation, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_unit_is_never_all_of_it_and_never_nothing() {
        let mut rng = Rng::new(7);
        for _ in 0..1000 {
            let sectors = some_sectors(&mut rng, 32);
            assert!(!sectors.is_empty() && sectors.len() < 32 && sectors.end <= 32, "{sectors:?}");
        }
    }
}

//! RWF_ATOMIC through the page cache. Refused (EOPNOTSUPP, or EINVAL where the length is looked at
//! first), it changes nothing: not the file, not its length, not the disk. Taken, the unit is whole, and
//! what the other parts of this race demand of such writes holds.

use std::sync::Arc;
use std::time::Instant;

use super::{ATOMIC, At, DSYNC, How, NOT_WAITING, PLAIN, SYNC, Work, outcome, pwrite};
use crate::channel::AtomicLimits;
use crate::guest::fs::stat_atomic;
use crate::guest::race::{Task, files};
use crate::guest::workload::buffer::Buffer;
use crate::guest::{Error, Result};

/// A generation that is never asked for by a mark: who shows it shows what was refused.
const REFUSED: u32 = u32::MAX;

/// What the file is like when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Clean,
    Dirty,
    /// The disk holds its writeback.
    InWriteback,
    NotCached,
}

const STATES: [State; 4] = [State::Clean, State::Dirty, State::InWriteback, State::NotCached];
const HOWS: [How; 3] = [ATOMIC, DSYNC, SYNC];

pub(super) fn run(work: &mut Work) -> Result<()> {
    let path = work.target((0, 0)).path.clone();
    let limits = stat_atomic(&path)?;
    let AtomicLimits { unit_min, unit_max, unit_max_opt, .. } = limits;
    work.ctx.note(format!(
        "statx says of atomic writes: unit_min {unit_min}, unit_max {unit_max}, unit_max_opt {unit_max_opt}"
    ));
    let refused = refused(work, &limits)?;
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        for area in 0..work.areas.len() {
            let at = (area, u64::from(round % work.areas[area].target.units));
            let state = STATES[(round as usize + area) % STATES.len()];
            match work.atomic {
                true => taken(work, at)?,
                false => asked(work, at, state, &refused)?,
            }
            if work.wrong("changes-the-file") {
                // Once is enough.
                return Ok(());
            }
        }
    }
    Ok(())
}

/// It is taken here: with each flag the unit is whole, and durable where that was asked for.
fn taken(work: &mut Work, at: At) -> Result<()> {
    for how in HOWS {
        work.write(at, how)?;
        work.check(at, how.is_durable())?;
        work.ctx.reached("refused-or-taken");
    }
    work.sync(at)?;
    work.check(at, true)
}

/// The lengths that are refused, asked on a file beside the target. One that is taken is within what
/// statx says, or a finding.
fn refused(work: &Work, limits: &AtomicLimits) -> Result<Vec<u32>> {
    let unit = work.target((0, 0)).unit;
    let mut refused = Vec::new();
    for len in lengths(unit, limits) {
        let result = work.ask_beside(len)?;
        let said = (limits.unit_min..=limits.unit_max).contains(&len) && len.is_power_of_two();
        if result < 0 {
            refused.push(len);
        } else if limits.unit_min == 0 || !said {
            let text = format!(
                "a buffered write of {len} bytes with RWF_ATOMIC returned {result}, which is not within \
                 what statx says"
            );
            work.found("accepted", (0, 0), text);
        } else if len != unit {
            work.ctx.note(format!("RWF_ATOMIC of {len} bytes is taken through the page cache"));
        }
    }
    Ok(refused)
}

/// It is refused here.
fn asked(work: &mut Work, at: At, state: State, refused: &[u32]) -> Result<()> {
    let ctx = Arc::clone(&work.ctx);
    let (offset, unit) = (work.target(at).offset_of(at.1), work.target(at).unit);
    ctx.did(format!("unit {} of area {}, {state:?}", at.1, at.0));
    let placed = work.place(at).is_ok();
    let mut stall = match state {
        State::InWriteback if placed => Some(work.hold_writes(at)?),
        _ => None,
    };
    if state != State::Clean {
        work.write(at, PLAIN)?;
    }
    let mut syncer = None;
    if let Some(stall) = &stall {
        syncer = Some(work.start_sync(at)?);
        if work.is_held(stall, "a writeback")? {
            ctx.reached("asked-in-writeback");
        }
    }
    if state == State::NotCached {
        work.sync(at)?;
        files::drop_cache(work.file(at), offset, u64::from(unit))
            .map_err(Error::system("cannot drop the page cache"))?;
    }
    let begun = Instant::now();
    for &len in refused {
        for how in HOWS {
            if begun.elapsed() > NOT_WAITING
                && let Some(stall) = stall.take()
            {
                stall.release()?;
            }
            one(work, at, offset, len, how)?;
        }
    }
    if let Some(stall) = stall {
        stall.release()?;
    }
    if let Some(syncer) = syncer {
        work.synced(&syncer)?;
    }
    work.check(at, false)?;
    work.sync(at)?;
    work.check(at, true)
}

/// Bytes, each a length that fits into the unit: the smallest, a page and the unit itself, and one
/// that is no power of two.
fn lengths(unit: u32, limits: &AtomicLimits) -> Vec<u32> {
    let mut lengths = vec![unit, limits.unit_min, 4096, 12288];
    lengths.retain(|len| (1..=unit).contains(len));
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// One call.
fn one(work: &mut Work, at: At, offset: u64, len: u32, how: How) -> Result<()> {
    let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, REFUSED);
    let (file, rwf) = (Arc::clone(work.file(at)), how.rwf | libc::RWF_ATOMIC);
    let before = size(work, at)?;
    let more = if how.is_durable() { format!("|{}", how.name) } else { String::new() };
    let call = format!("pwritev2(len {len}, offset {offset}, RWF_ATOMIC{more})");
    let all: Buffer = bytes;
    let task =
        Task::start("asker", move || pwrite(&file, &all.bytes()[..len as usize], offset, rwf))?;
    let result = work.ctx.answer(&task, "a write with RWF_ATOMIC")?;
    work.ctx.did(format!("{call}: {}", outcome(result)));
    if work.wrong("changes-the-file") {
        // As a kernel would that looks at the flag too late.
        let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, REFUSED);
        pwrite(work.file(at), &bytes.bytes()[..len as usize], offset, 0);
    }
    let refused = [libc::EOPNOTSUPP, libc::EINVAL].contains(&(-result as i32));
    if result >= 0 {
        let text = format!("{call}: {}; beside it the same was refused", outcome(result));
        work.found("accepted", at, text);
    } else if refused {
        work.ctx.reached("refused-or-taken");
    } else {
        work.found("wrong-result", at, format!("{call}: {}", outcome(result)));
    }
    let read = files::read_unit(work.file(at), work.target(at), at.1)
        .map_err(Error::system("cannot read a unit"))?;
    let shown = files::sectors(&work.ctx, work.target(at), at.1, &read);
    let changed = shown != work.expected(at);
    let after = size(work, at)?;
    if changed || after != before {
        let shown = files::in_words(&shown)
            .replace(&format!("generation {REFUSED}"), "what was to be written");
        let text = format!(
            "{call} was refused, and the file changed: {before} bytes before, {after} now, the unit shows \
             {shown}"
        );
        work.found("accepted", at, text);
    }
    Ok(())
}

fn size(work: &Work, at: At) -> Result<u64> {
    let meta = work.file(at).metadata().map_err(Error::system("cannot stat a target"))?;
    Ok(meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fit_into_the_unit_and_are_asked_once() {
        let limits = |unit_min| AtomicLimits { unit_min, unit_max: 65536, ..Default::default() };
        assert_eq!(lengths(16384, &limits(4096)), [4096, 12288, 16384]);
        assert_eq!(lengths(16384, &limits(512)), [512, 4096, 12288, 16384]);
        assert_eq!(lengths(16384, &AtomicLimits::default()), [4096, 12288, 16384], "none are said");
        assert_eq!(lengths(4096, &limits(8192)), [4096]);
    }
}

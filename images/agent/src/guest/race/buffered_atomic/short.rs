//! A copy that ends in the middle of a block, while the kernel writes that block back.
//!
//! A buffered write copies from user memory with page faults off. Where a page is missing the copy
//! is short; the folio is dirty, and unlocked, with a part of the new bytes, until the rest was faulted
//! in. Writeback that comes then writes a block that nobody ever wrote. It is made to happen:
//!
//! 1. The unit is on the disk and not in the page cache; its READ, by readahead, is held.
//! 2. The writer finds all of its source there, takes the folio, and waits for it.
//! 3. Pages of the source vanish.
//! 4. The READ goes on: the copy ends where the missing pages begin.
//! 5. The writer faults: userfaultfd keeps it there, for as long as we like.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::mm::{Advice as Memory, MprotectFlags};

use super::pressure::sync_file_range;
use super::sync::unit_of;
use super::{At, NOT_WAITING, PLAIN, SETTLES, Work, outcome};
use crate::channel::{Found, Prepare, WriteFlags};
use crate::guest::race::files::{self, in_words};
use crate::guest::race::memory::{Map, PAGE};
use crate::guest::race::task::Seen;
use crate::guest::race::userfault::Userfault;
use crate::guest::race::{PATIENCE, Task, Which};
use crate::guest::{Error, Result, sys};
use crate::payload::SECTOR;
use crate::race::DeviceOp;

/// Private memory with a unit's bytes.
fn memory(work: &Work, at: At, generation: u32) -> Result<Arc<Map>> {
    let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
    let map = Map::private(bytes.bytes().len()).map_err(Error::system("cannot map memory"))?;
    map.store(0, bytes.bytes());
    Ok(Arc::new(map))
}

/// Old content on the disk and in no page cache.
fn begin(work: &mut Work, at: At) -> Result<()> {
    work.write(at, PLAIN)?;
    work.sync(at)?;
    work.check(at, true)
}

/// A write whose source was pulled away meanwhile.
struct Caught {
    writer: Task<i64>,
    /// Until then it slept, waiting for the folio: it had copied nothing that goes into that.
    waited: bool,
    early: Option<i64>,
}

impl Caught {
    fn result(&self, work: &Work, what: &str) -> Result<i64> {
        self.early.map_or_else(|| work.ctx.answer(&self.writer, what), Ok)
    }
}

/// Steps 1 to 4. `None`: it did not come to that, and the write has not begun.
fn caught(
    work: &Work,
    at: At,
    source: &Arc<Map>,
    rwf: i32,
    intent: impl FnOnce() -> Result<()>,
    pull: impl FnOnce() -> std::io::Result<()>,
) -> Result<Option<Caught>> {
    let (ctx, file) = (&work.ctx, work.file(at));
    let (offset, len) = (work.target(at).offset_of(at.1), source.len());
    let cannot = |what: &str| Error::system(what.to_owned());
    files::drop_cache(file, offset, len as u64).map_err(cannot("cannot drop the page cache"))?;
    let stall = ctx.stall(Which::of(DeviceOp::Read, work.place(at)?))?;
    let of = Arc::clone(file);
    let reader = Task::start("readahead", move || {
        fadvise(&of, offset, std::num::NonZeroU64::new(len as u64), Advice::WillNeed)
    })?;
    if !work.is_held(&stall, "the READ of a readahead")? {
        return Ok(None);
    }
    // It need not wait for the disk, but may.
    let read = reader.wait(SETTLES).ok();
    intent()?;
    let (from, of) = (Arc::clone(source), Arc::clone(file));
    let writer = Task::start("writer", move || from.pwrite(0, len, &of, offset, rwf))?;
    // For the folio, and not for its writeback: one that writes through has copied by then.
    let waits = |stack: &str| {
        (stack.contains("folio_wait") || stack.contains("folio_lock"))
            && !super::waits_for_writeback(stack)
    };
    let (mut early, mut waited) = (None, false);
    match writer.settle(NOT_WAITING, Duration::ZERO, waits) {
        Seen::Returned(result) => early = Some(result),
        Seen::Asleep(stack) => {
            ctx.did(format!("the writer waits in {stack}"));
            waited = true;
        }
        Seen::Neither(stack) => {
            ctx.note(format!("a writer was not seen to wait for its folio: {stack}"));
        }
    }
    pull().map_err(cannot("cannot pull the source away"))?;
    ctx.did("the source is pulled away");
    // Is it still there? What it waits for is still held.
    waited = waited && writer.asleep().is_some_and(|stack| waits(&stack));
    stall.release()?;
    match read {
        Some(read) => read,
        None => ctx.answer(&reader, "fadvise(WILLNEED)")?,
    }
    .map_err(Error::system("cannot read ahead"))?;
    Ok(Some(Caught { writer, waited, early }))
}

pub(super) fn run(work: &mut Work) -> Result<()> {
    let rounds = work.ctx.race.rounds;
    for round in 0..rounds {
        if !work.ctx.round(round) {
            break;
        }
        let last = round + 1 == rounds && work.ctx.flag("cut-in-the-hole");
        one(work, round, last)?;
    }
    Ok(())
}

/// Who came first: the writer's fault, at this byte of its source, or its end?
enum Met {
    Asks(usize),
    Returned(i64),
}

fn met(fault: &Userfault, writer: &Task<i64>) -> Result<Option<Met>> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let asked = fault.asked(Duration::from_millis(20));
        if let Some(at) = asked.map_err(Error::system("cannot read of the userfaultfd"))? {
            return Ok(Some(Met::Asks(at)));
        }
        if let Ok(result) = writer.wait(Duration::ZERO) {
            return Ok(Some(Met::Returned(result)));
        }
    }
    Ok(None)
}

fn one(work: &mut Work, round: u32, last: bool) -> Result<()> {
    let at = unit_of(work, round);
    let len = work.target(at).unit as usize;
    let mut rng = work.ctx.rng(&[u64::from(round)]);
    let there = 1 + rng.below(len / PAGE - 1);
    let (gone, rest) = (there * PAGE, len - there * PAGE);
    // Where the kernel takes it as atomic: that in every second round, for the plain one has the hole.
    let atomic = work.atomic && round % 2 == 1;
    let answered = (round / 2).is_multiple_of(2) || last;
    let control = work.wrong("claims-atomic");
    begin(work, at)?;
    let place = work.place(at)?;
    let generation = work.next(at);
    let source = memory(work, at, generation)?;
    let fault = Userfault::of(&source)?;
    let flags = WriteFlags {
        atomic: atomic || control,
        // Of an atomic one no part may be there, whatever comes of it.
        may_fail: !answered && !atomic,
        ..WriteFlags::PLAIN
    };
    let rwf = if atomic { libc::RWF_ATOMIC } else { 0 };
    let vanish = || source.advise(gone, rest, Memory::LinuxDontNeed);
    let writer = caught(work, at, &source, rwf, || work.intent(at, generation, flags), vanish)?;
    let Some(mut caught) = writer else { return Ok(()) };
    let met = match caught.early {
        Some(result) => Some(Met::Returned(result)),
        None => met(&fault, &caught.writer)?,
    };
    caught.early = match met {
        Some(Met::Asks(byte)) => {
            work.ctx.did(format!("the writer asks for byte {byte} of its source"));
            let by_fsync = last || round.is_multiple_of(3);
            let hole = Hole { place, generation, there, by_fsync, atomic, waited: caught.waited };
            let torn = in_the_hole(work, at, &hole)?;
            if last && (torn || !control) {
                // The power goes now. Were this closed, the writer would go on with zeroes.
                std::mem::forget((fault, caught));
                return Ok(());
            }
            let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
            match answered {
                true => fault.answer(gone, &bytes.bytes()[gone..]),
                false => source
                    .protect(gone, rest, MprotectFlags::empty())
                    .and_then(|()| fault.wake(gone, rest)),
            }
            .map_err(Error::system("cannot answer a page fault"))?;
            None
        }
        Some(Met::Returned(result)) => Some(result),
        None => None,
    };
    let kept = caught.early == Some(len as i64);
    if kept && caught.waited {
        work.ctx.reached("source-kept");
        work.ctx.reached("hole-tried");
        work.ctx.note(
            "a write took all of its source, of which pages vanished before it had its folio: the kernel \
             keeps them, and leaves no hole",
        );
    }
    let result = caught.result(work, "a write whose source is there again, or never will be")?;
    // A kernel that keeps its source in place has all of it before anything vanishes.
    let whole = answered || kept;
    let most = if whole { len } else { gone };
    ended(work, at, generation, result, Expected { most, whole, atomic })?;
    if last && control { half(work, at) } else { Ok(()) }
}

/// The control of a kernel that leaves no hole: half of a unit, said to be all of it.
fn half(work: &mut Work, at: At) -> Result<()> {
    let generation = work.next(at);
    let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
    let bytes = &bytes.bytes()[..work.target(at).unit as usize / 2];
    work.intent(at, generation, WriteFlags { atomic: true, ..WriteFlags::PLAIN })?;
    let result = super::pwrite(work.file(at), bytes, work.target(at).offset_of(at.1), 0);
    work.ctx.did(format!("half of unit {}: {}", at.1, outcome(result)));
    work.sync(at)
}

/// A writer that waits for pages of its source.
struct Hole {
    place: (u64, u64),
    generation: u32,
    /// Pages that it has.
    there: usize,
    by_fsync: bool,
    atomic: bool,
    /// They vanished while it waited for its folio.
    waited: bool,
}

/// The writer waits in the middle of its block: it is written back. → has the disk a part of it?
fn in_the_hole(work: &Work, at: At, hole: &Hole) -> Result<bool> {
    let &Hole { place, generation, there, by_fsync, atomic, waited } = hole;
    let (ctx, target) = (Arc::clone(&work.ctx), work.target(at).clone());
    let (file, offset) = (Arc::clone(work.file(at)), target.offset_of(at.1));
    let len = u64::from(target.unit);
    // Through a mapping: read(2) may wait for the writer, who has the file's lock.
    let (of, all) = (Arc::clone(&file), len as usize);
    let looker = Task::start("looker", move || {
        let mut bytes = vec![0; all];
        Map::shared_to_read(&of, offset, all)?.load(0, &mut bytes).map(|()| bytes)
    })?;
    let bytes = ctx.answer(&looker, "a look through a mapping")?;
    let bytes = bytes.map_err(Error::system("cannot look through a mapping"))?;
    let cached = files::sectors(&ctx, &target, at.1, &bytes);
    let new =
        |shown: &[Found]| shown.iter().filter(|f| **f == Found::Own { r#gen: generation }).count();
    ctx.did(format!("the page cache has {}", in_words(&cached)));
    if new(&cached) == 0 && waited {
        // It had its folio, and has put nothing into it yet, or has taken it out again.
        ctx.reached("nothing-copied");
        ctx.reached("hole-tried");
        ctx.note(
            "a write whose source had lost pages asked for them before any of it was to be seen",
        );
    }
    if new(&cached) == 0 || new(&cached) == cached.len() {
        return Ok(false);
    }
    ctx.reached("short-copy");
    ctx.phase("short-copy")?;
    match by_fsync {
        true => work.sync(at)?,
        false => {
            let writeback = Task::start("writeback", move || sync_file_range(&file, offset, len))?;
            ctx.answer(&writeback, "sync_file_range")?
                .map_err(Error::system("cannot sync a range"))?;
        }
    }
    ctx.phase("short-copy-written-back")?;
    let disk = work.on_disk(at, place)?;
    ctx.did(format!("the disk has {}", in_words(&disk)));
    let told = (new(&disk), disk.len());
    ctx.reached("hole-tried");
    if told.0 == 0 || told.0 == told.1 {
        ctx.note(format!(
            "a short copy that was written back is not on the disk: {}",
            in_words(&disk)
        ));
        return Ok(false);
    }
    ctx.reached("torn-on-the-disk");
    if atomic {
        let text = format!("written with RWF_ATOMIC, and the disk was given {}", in_words(&disk));
        work.found("torn", at, text);
    } else {
        ctx.note(format!(
            "observed, expected: after a copy of {there} of {} pages, pwrite({len}) being under way, the \
             page cache has {} and the disk {} of the unit's {} sectors new, the others old",
            len as usize / PAGE,
            new(&cached),
            told.0,
            told.1
        ));
    }
    Ok(true)
}

/// What a write may return whose source was not all there all the time.
struct Expected {
    most: usize,
    /// All of it was there when it was asked for.
    whole: bool,
    atomic: bool,
}

/// Such a write has returned: its result, and what the file shows then.
fn ended(work: &mut Work, at: At, generation: u32, result: i64, expected: Expected) -> Result<()> {
    let len = work.target(at).unit as usize;
    let Expected { most, whole, atomic } = expected;
    work.ctx.did(format!("pwrite({len}) of generation {generation}: {}", outcome(result)));
    let fault = result == -i64::from(libc::EFAULT);
    let right = match (atomic, usize::try_from(result)) {
        (_, Ok(n)) if whole => n == len,
        // All or nothing.
        (true, Ok(_)) => false,
        (false, Ok(n)) => 0 < n && n <= most && n.is_multiple_of(SECTOR),
        (_, Err(_)) => fault && !whole,
    };
    if !right {
        let text = format!(
            "pwrite({len}) whose source has {most} bytes: {}{}",
            outcome(result),
            if atomic { ", with RWF_ATOMIC" } else { "" }
        );
        work.found("wrong-result", at, text);
    } else if !fault && result < most as i64 {
        work.ctx.note(format!("a write whose source has {most} bytes took {result}"));
    }
    let says_whole = work.wrong("says-whole");
    if result >= 0 || !atomic || says_whole {
        // An atomic one that failed is as one that never returned: all of it, or nothing.
        work.done(at, generation, if says_whole { len as i64 } else { result })?;
    }
    if let Ok(n) = usize::try_from(result) {
        work.shows(at, 0..n.min(len) / SECTOR, generation);
    }
    work.check(at, false)?;
    work.sync(at)?;
    work.check(at, true)
}

/// Sources that are not all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Pages that may not be read.
    NoAccess,
    /// A mapping that goes on behind the end of its file.
    BehindTheEnd,
    /// A mapping of what is written to.
    Itself,
    /// A file's mapping, and the disk holds its READ.
    Held,
    /// It may not be read any more, once the write is under way.
    Protected,
    /// A file's mapping, and the file is cut short once the write is under way.
    Truncated,
}

const SOURCES: [Source; 6] = [
    Source::NoAccess,
    Source::BehindTheEnd,
    Source::Itself,
    Source::Held,
    Source::Protected,
    Source::Truncated,
];

pub(super) fn sources(work: &mut Work) -> Result<()> {
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        let kind = SOURCES[round as usize % SOURCES.len()];
        // Each kind meets each area: there are more kinds than areas.
        let at = unit_of(work, round / SOURCES.len() as u32 + round);
        let in_place = work.target(at).prepare == Prepare::Written;
        work.ctx.did(format!("a source: {kind:?}, area {}", at.0));
        match kind {
            Source::Itself => itself(work, at)?,
            Source::Held => held(work, at)?,
            Source::Protected | Source::Truncated if in_place => pulled(work, at, round, kind)?,
            Source::Protected | Source::NoAccess => missing(work, at, round, Source::NoAccess)?,
            Source::Truncated | Source::BehindTheEnd => {
                missing(work, at, round, Source::BehindTheEnd)?;
            }
        }
    }
    Ok(())
}

/// A file in memory with these bytes, mapped; as long as `len` says.
fn file_source(bytes: &[u8], len: usize) -> Result<(File, Arc<Map>)> {
    let path = "/tmp/source";
    let failed = |what: &str| format!("cannot {what} {path}");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(Error::system(failed("make")))?;
    file.write_all_at(&bytes[..len], 0).map_err(Error::system(failed("write")))?;
    let map = Map::shared_to_read(&file, 0, bytes.len());
    Ok((file, Arc::new(map.map_err(Error::system(failed("map")))?)))
}

/// How many of a unit's pages are there.
fn there(work: &Work, at: At, round: u32) -> usize {
    let pages = work.target(at).unit as usize / PAGE;
    1 + work.ctx.rng(&[u64::from(round), 1]).below(pages - 1)
}

/// A source of which the last pages were never there.
fn missing(work: &mut Work, at: At, round: u32, kind: Source) -> Result<()> {
    let (len, most) = (work.target(at).unit as usize, there(work, at, round) * PAGE);
    let cold = round.is_multiple_of(2);
    if cold && work.target(at).prepare == Prepare::Written {
        begin(work, at)?;
        let offset = work.target(at).offset_of(at.1);
        files::drop_cache(work.file(at), offset, len as u64)
            .map_err(Error::system("cannot drop the page cache"))?;
    }
    let generation = work.next(at);
    let (_file, source) = match kind {
        Source::BehindTheEnd => {
            let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
            let (file, map) = file_source(bytes.bytes(), most)?;
            (Some(file), map)
        }
        _ => {
            let map = memory(work, at, generation)?;
            map.protect(most, len - most, MprotectFlags::empty())
                .map_err(Error::system("cannot protect memory"))?;
            (None, map)
        }
    };
    let may_fail = !work.atomic && !work.wrong("says-whole");
    let flags = WriteFlags { atomic: work.atomic, may_fail, ..WriteFlags::PLAIN };
    work.intent(at, generation, flags)?;
    let rwf = if work.atomic { libc::RWF_ATOMIC } else { 0 };
    let (of, offset) = (Arc::clone(work.file(at)), work.target(at).offset_of(at.1));
    let writer = Task::start("writer", move || source.pwrite(0, len, &of, offset, rwf))?;
    let result = work.ctx.answer(&writer, "a write from memory that is not all there")?;
    work.ctx.reached("source-not-there");
    ended(work, at, generation, result, Expected { most, whole: false, atomic: work.atomic })
}

/// A source that is pulled away while the writer waits for the folio.
fn pulled(work: &mut Work, at: At, round: u32, kind: Source) -> Result<()> {
    let (len, most) = (work.target(at).unit as usize, there(work, at, round) * PAGE);
    begin(work, at)?;
    let generation = work.next(at);
    let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
    let (file, source) = match kind {
        Source::Truncated => {
            let (file, map) = file_source(bytes.bytes(), len)?;
            (Some(file), map)
        }
        _ => (None, memory(work, at, generation)?),
    };
    let pull = || match &file {
        Some(file) => file.set_len(most as u64),
        None => source.protect(most, len - most, MprotectFlags::empty()),
    };
    let may_fail = !work.atomic && !work.wrong("says-whole");
    let flags = WriteFlags { atomic: work.atomic, may_fail, ..WriteFlags::PLAIN };
    let rwf = if work.atomic { libc::RWF_ATOMIC } else { 0 };
    let intent = || work.intent(at, generation, flags);
    let Some(caught) = caught(work, at, &source, rwf, intent, pull)? else { return Ok(()) };
    let result = caught.result(work, "a write whose source was pulled away")?;
    // A kernel that keeps its source in place has all of it.
    let whole = result == len as i64;
    if !whole || caught.waited {
        work.ctx.reached(if whole { "source-kept" } else { "source-pulled-away" });
        work.ctx.reached("pull-tried");
    }
    ended(work, at, generation, result, Expected { most, whole, atomic: work.atomic })
}

/// A unit is written from a mapping of itself: nothing changes, and nobody waits for himself.
fn itself(work: &mut Work, at: At) -> Result<()> {
    let (len, offset) = (work.target(at).unit as usize, work.target(at).offset_of(at.1));
    let file = Arc::clone(work.file(at));
    work.sync(at)?;
    files::drop_cache(&file, offset, len as u64)
        .map_err(Error::system("cannot drop the page cache"))?;
    let map = Map::shared_to_read(&file, offset, len);
    let map = map.map_err(Error::system("cannot map a unit"))?;
    let writer = Task::start("writer", move || map.pwrite(0, len, &file, offset, 0))?;
    let result = work.ctx.answer(&writer, "a write from a mapping of the same bytes")?;
    if result == len as i64 {
        work.ctx.reached("written-from-itself");
    } else {
        let text = format!("written from a mapping of itself: {}", outcome(result));
        work.found("wrong-result", at, text);
    }
    work.sync(at)?;
    work.check(at, true)
}

/// The source is a file's mapping, of which the disk holds the READ: the writer waits for it, and has
/// all of it afterwards.
fn held(work: &mut Work, at: At) -> Result<()> {
    let len = work.target(at).unit as usize;
    let generation = work.next(at);
    let bytes = files::unit_bytes(&work.ctx, work.target(at), at.1, generation);
    let path = format!("{}.source", work.target(at).path);
    let source = files::open(&path, false)?;
    let failed = |what: &str| Error::system(format!("cannot {what} {path}"));
    source.write_all_at(bytes.bytes(), 0).map_err(failed("write"))?;
    source.sync_all().map_err(failed("sync"))?;
    files::drop_cache(&source, 0, 0).map_err(failed("drop the page cache of"))?;
    let from = sys::place_of(&source, 0, len as u64)
        .ok_or_else(|| Error::Refused(format!("{path} is not in one place of the disk")))?;
    let map = Map::shared_to_read(&source, 0, len).map_err(failed("map"))?;
    let stall = work.ctx.stall(Which::of(DeviceOp::Read, (from, len as u64)))?;
    work.intent(at, generation, work.flags(super::ATOMIC))?;
    let (of, offset) = (Arc::clone(work.file(at)), work.target(at).offset_of(at.1));
    let rwf = work.rwf(super::ATOMIC);
    let writer = Task::start("writer", move || map.pwrite(0, len, &of, offset, rwf))?;
    let held = work.is_held(&stall, "the READ of a source")?;
    let (mut early, mut asleep) = (None, None);
    if held {
        match writer.settle(SETTLES, Duration::from_millis(30), |_| true) {
            Seen::Returned(result) => early = Some(result),
            Seen::Asleep(stack) => asleep = Some(stack),
            Seen::Neither(_) => {}
        }
        // It must not have what the disk holds still.
        early = early.or_else(|| writer.wait(Duration::ZERO).ok());
    }
    match (early, asleep) {
        (Some(n), _) => {
            let text = format!("a write whose source the disk has not read yet: {}", outcome(n));
            work.found("wrong-result", at, text);
        }
        (None, Some(stack)) => {
            work.ctx.did(format!("the writer waits in {stack}"));
            work.ctx.reached("source-held");
        }
        (None, None) if held => work.ctx.note("a writer is not seen to wait for its source"),
        (None, None) => {}
    }
    stall.release()?;
    let result = match early {
        Some(result) => result,
        None => work.ctx.answer(&writer, "a write whose source was read late")?,
    };
    work.returned(at, generation, result)?;
    work.sync(at)?;
    work.check(at, true)
}

//! Writeback that nobody asked for by fsync: of a range, in the background, for want of memory. And
//! stores to a mapping while its folio is written back.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use super::sync::{some_sectors, unit_of};
use super::{ATOMIC, At, NOT_WAITING, PLAIN, STAYS, Work, waits_for_writeback};
use crate::channel::Found;
use crate::guest::race::memory::Map;
use crate::guest::race::{PATIENCE, Task, files};
use crate::guest::{Error, Result, exec, fs};
use crate::payload::SECTOR;

/// Writes a range back and waits for it, without any flush.
pub(super) fn sync_file_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: it takes a descriptor that is open during the call, and numbers.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset as i64, len as i64, how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What makes the flusher write at once, whatever is dirty; and what it was.
const EAGER: [(&str, &str); 3] = [
    ("/proc/sys/vm/dirty_expire_centisecs", "1"),
    ("/proc/sys/vm/dirty_background_bytes", "4096"),
    ("/proc/sys/vm/dirty_writeback_centisecs", "10"),
];

/// The flusher is eager until this is dropped.
struct Eager(Vec<(&'static str, String)>);

impl Eager {
    fn new() -> Result<Eager> {
        let mut before = Eager(Vec::new());
        for (path, value) in EAGER {
            let failed = || Error::system(format!("cannot set {path}"));
            let old = std::fs::read_to_string(path).map_err(failed())?;
            before.0.push((path, old));
            std::fs::write(path, value).map_err(failed())?;
        }
        Ok(before)
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        for (path, old) in self.0.drain(..) {
            let old = old.trim();
            // Where the ratio was used and no number of bytes, the ratio has to be said again.
            let _ = match old {
                "0" if path.ends_with("background_bytes") => {
                    std::fs::write("/proc/sys/vm/dirty_background_ratio", "10")
                }
                old => std::fs::write(path, old),
            };
        }
    }
}

pub(super) fn run(work: &mut Work) -> Result<()> {
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        match round % 3 {
            0 => held(work, round, "range")?,
            1 => held(work, round, "background")?,
            _ => memory(work)?,
        }
        let at = (0, 0);
        work.sync(at)?;
        for unit in 0..u64::from(work.target(at).units) {
            work.check((0, unit), unit % 8 == u64::from(round) % 8)?;
        }
    }
    Ok(())
}

/// All units are dirty, and are written back; the request of one of them is held, and it is written over.
fn held(work: &mut Work, round: u32, by: &str) -> Result<()> {
    let mut rng = work.ctx.rng(&[u64::from(round)]);
    let units = u64::from(work.target((0, 0)).units);
    let at: At = (0, rng.below(units as usize) as u64);
    // Before it is dirty: the flusher may come at any time.
    let stall = work.hold_writes(at)?;
    let some = (units / 8).clamp(1, 8);
    let stall = work.dirty(at, stall)?;
    for unit in (1..some).map(|n| (at.1 + n) % units) {
        work.write((0, unit), ATOMIC)?;
    }
    let eager = match by {
        "background" => Some(Eager::new()?),
        _ => None,
    };
    let range = match by {
        "range" => {
            let (file, target) = (Arc::clone(work.file(at)), work.target(at).clone());
            let (from, len) = (target.offset, target.end() - target.offset);
            let write = move || sync_file_range(&file, from, len);
            Some(Task::start("writeback", write)?)
        }
        _ => None,
    };
    if work.wrong("forget-fsync") {
        // The disk keeps nothing that was not flushed: neither of the two does that.
        stall.release()?;
    } else if work.is_held(&stall, by)? {
        work.ctx.reached(by);
        let all = work.target(at).unit as usize / SECTOR;
        let sectors = round.is_multiple_of(2).then(|| some_sectors(&mut rng, all));
        let over = work.overwrite_held(at, sectors)?;
        stall.release()?;
        work.overwritten(at, over)?;
    } else {
        stall.release()?;
    }
    drop(eager);
    if let Some(range) = range {
        let done = work.ctx.answer(&range, "sync_file_range")?;
        done.map_err(Error::system("cannot sync a range"))?;
    }
    Ok(())
}

const GROUPS: &str = "/tmp/cgroup";
/// What the writer's group may have: less than it makes dirty.
const MEMORY: &str = "1M";

/// A control group with little memory. An error says why there is none.
fn small_group() -> std::result::Result<String, String> {
    let small = format!("{GROUPS}/small");
    if Path::new(&small).exists() {
        return Ok(small);
    }
    fs::mount("cgroup2", GROUPS, "cgroup2", "").map_err(|e| e.to_string())?;
    let write = |path: String, text: &str| {
        std::fs::write(&path, text).map_err(|e| format!("{path}, {text}: {e}"))
    };
    write(format!("{GROUPS}/cgroup.subtree_control"), "+memory")?;
    std::fs::create_dir(&small).map_err(|e| format!("{small}: {e}"))?;
    write(format!("{small}/memory.max"), MEMORY)?;
    Ok(small)
}

/// All units are written by a program that has little memory: the kernel writes back while it writes.
fn memory(work: &mut Work) -> Result<()> {
    let ctx = Arc::clone(&work.ctx);
    let group = match small_group() {
        Ok(group) => group,
        Err(why) => {
            ctx.cannot(format!("a control group with little memory: {why}"));
            return Ok(());
        }
    };
    let target = work.target((0, 0)).clone();
    // Whoever brings a page into memory pays for it: that shall be the group.
    work.sync((0, 0))?;
    files::drop_cache(work.file((0, 0)), 0, 0)
        .map_err(Error::system("cannot drop the page cache"))?;
    let source = "/tmp/units";
    let failed = |what: &str| Error::system(format!("cannot {what} {source}"));
    let mut bytes = File::create(source).map_err(failed("make"))?;
    let mut marks = Vec::new();
    for unit in 0..u64::from(target.units) {
        let generation = work.next((0, unit));
        bytes
            .write_all(files::unit_bytes(&ctx, &target, unit, generation).bytes())
            .map_err(failed("write"))?;
        marks.push(files::intent(&target, unit, generation, work.flags(PLAIN)));
    }
    ctx.mark(marks)?;
    let script = format!(
        "echo $$ > {group}/cgroup.procs && exec busybox dd if={source} of={} bs={} conv=notrunc",
        target.path, target.unit
    );
    ctx.did(format!("a program with {MEMORY} of memory writes all units"));
    let argv = ["busybox", "sh", "-c", &script].map(str::to_owned);
    let program = Task::start("program", move || exec::run(&argv, PATIENCE * 3))?;
    let said = loop {
        match program.wait(PATIENCE) {
            Ok(said) => break said?,
            Err(_) if ctx.is_over() => return Ok(()),
            // It has a limit of its own.
            Err(_) => {}
        }
    };
    let whole = said["status"] == 0;
    if !whole {
        let why = said["stderr"].as_str().unwrap_or_default().trim();
        ctx.note(format!("a program with little memory ended with {}: {why}", said["status"]));
    }
    let mut marks = Vec::new();
    for unit in 0..u64::from(target.units) {
        let generation = work.areas[0].units[unit as usize].last;
        if whole {
            marks.push(files::done(&target, unit, generation, i64::from(target.unit)));
            work.shows((0, unit), 0..target.unit as usize / SECTOR, generation);
        }
    }
    ctx.mark(marks)?;
    if !whole {
        // How far it came is not known: all of it anew, and known again.
        let again = |unit| work.write((0, unit), PLAIN);
        return (0..u64::from(target.units)).try_for_each(again);
    }
    let mut there = 0;
    for unit in 0..u64::from(target.units) {
        let disk = work.on_disk((0, unit), work.place((0, unit))?)?;
        let generation = work.areas[0].units[unit as usize].last;
        there += u32::from(disk.iter().all(|f| *f == Found::Own { r#gen: generation }));
    }
    ctx.did(format!("before any fsync {there} of {} units are on the disk", target.units));
    match there {
        0 => ctx.note("a program with little memory left all that it wrote in memory"),
        _ => ctx.reached("little-memory"),
    }
    let _ = std::fs::remove_file(source);
    Ok(())
}

/// Stores to a mapping while the disk holds the request that writes its folio back. Without stable pages
/// what the request carries is a mixture, and no kernel's fault; with them the store waits. Nothing of
/// it may be lost to the fsync that comes after.
pub(super) fn mapped(work: &mut Work) -> Result<()> {
    for round in 0..work.ctx.race.rounds {
        if !work.ctx.round(round) {
            break;
        }
        let at = unit_of(work, round);
        let mut rng = work.ctx.rng(&[u64::from(round)]);
        one(work, at, round, &mut rng)?;
    }
    Ok(())
}

fn one(
    work: &mut Work,
    at: At,
    round: u32,
    rng: &mut crate::guest::workload::plan::Rng,
) -> Result<()> {
    let ctx = Arc::clone(&work.ctx);
    let target = work.target(at).clone();
    let (len, offset) = (target.unit as usize, target.offset_of(at.1));
    let file = Arc::clone(work.file(at));
    let map = Map::shared(&file, offset, len).map_err(Error::system("cannot map a unit"))?;
    let map = Arc::new(map);
    let place = work.place(at)?;
    let generation = work.next(at);
    let bytes = Arc::new(files::unit_bytes(&ctx, &target, at.1, generation));
    // In every second round in the middle of a sector.
    let middle = rng.below(len / SECTOR - 1) * SECTOR + SECTOR / 2;
    let until = if round.is_multiple_of(2) { middle } else { middle.next_multiple_of(SECTOR) };
    work.intent(at, generation, work.flags(ATOMIC))?;
    let store = |name: &str, range: std::ops::Range<usize>| {
        let (map, bytes) = (Arc::clone(&map), Arc::clone(&bytes));
        Task::start(name, move || map.store(range.start, &bytes.bytes()[range]))
    };
    ctx.answer(&store("first", 0..until)?, "a store to a mapping")?;
    ctx.did(format!("the first {until} bytes of generation {generation} are stored"));
    let stall = work.hold_writes(at)?;
    let of = Arc::clone(&file);
    let syncing = Task::start("writeback", move || sync_file_range(&of, offset, len as u64))?;
    let held = work.is_held(&stall, "the writeback of a mapping")?;
    if held && work.wrong("claims-atomic") {
        // This is what the disk has when the power goes.
        stall.release()?;
        ctx.answer(&syncing, "sync_file_range")?.map_err(Error::system("cannot sync a range"))?;
        return work.sync(at);
    }
    let storing = store("second", until..len)?;
    let stored = match held {
        true => {
            let seen = storing.settle(NOT_WAITING, STAYS, waits_for_writeback);
            work.tried(seen, "store", "stored-in-writeback")
        }
        false => None,
    };
    stall.release()?;
    if stored.is_none() {
        ctx.answer(&storing, "a store to a mapping whose folio was written back")?;
    }
    ctx.answer(&syncing, "sync_file_range")?.map_err(Error::system("cannot sync a range"))?;
    ctx.did(format!("all of generation {generation} is stored"));
    work.done(at, generation, len as i64)?;
    work.shows(at, 0..len / SECTOR, generation);
    let disk = work.on_disk(at, place)?;
    let new = disk.iter().filter(|f| **f == Found::Own { r#gen: generation }).count();
    if (1..disk.len()).contains(&new) {
        ctx.note(
            "observed, expected: a store during writeback leaves a block on the disk of which some \
             sectors are new and some are old, until the next fsync",
        );
    }
    work.sync(at)?;
    work.check(at, true)
}

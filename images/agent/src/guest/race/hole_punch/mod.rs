//! A hole is punched while the page cache is filled: what suite `hole-punch` races.
//!
//! A call takes blocks away from a file ([`ask::Op`]) while another fills its page cache from them
//! ([`ask::Fill`]). The disk holds the READ of these blocks back until the first call is seen waiting for
//! it; the file system is so full that another file takes the freed blocks at once. Whoever looks then sees
//! zeroes, and nothing of the other file.
//!
//! - [`ask`]: both sides' calls. [`bed`]: files whose every byte is known, and a full file system.
//! - [`clone`]: ranges that are cloned and deduplicated instead.

pub mod ask;
pub mod bed;
pub mod clone;
pub mod sys;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::ask::{Fill, Op, Way, may_be_seen};
use self::bed::{Bed, Space};
use super::task::NoAnswer;
use super::{Ctx, Stall, Task, Which, files};
use crate::guest::sys::blkflsbuf;
use crate::guest::{Error, Result};
use crate::race::{DeviceOp, Setting, StallPoint};

/// A step of the race that takes as long as this, in one place of the kernel, is a hang.
const STEP: Duration = Duration::from_secs(60);
/// A READ is held so long at most: where it takes half a minute, the kernel warns of who waits for it.
const HELD: Duration = Duration::from_secs(12);
/// Rounds of a control.
const WRONG_ROUNDS: u32 = 3;

/// Runs the lane's race.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    // Every call of the race may hang: the main thread only watches.
    let own = Arc::clone(ctx);
    let task = Task::start("race", move || match own.text("race", "punch") {
        "clone" => clone::race(&own),
        _ => race(&own),
    })?;
    let mut watch = Watch::default();
    loop {
        match task.wait(Duration::from_secs(2)) {
            Ok(ended) => return ended,
            Err(NoAnswer::Gone) => return Err(Error::Refused("the race's thread panicked".into())),
            Err(NoAnswer::Stuck(stack)) => {
                if watch.is_hung(STEPS.load(Ordering::Relaxed), &stack, Instant::now()) {
                    let text =
                        format!("a call of the race itself does not return; it waits in: {stack}");
                    ctx.found("hung", None, text.clone());
                    return Err(Error::TimedOut(text));
                }
            }
        }
    }
}

/// Steps of the race so far. An agent runs one.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// The race goes on.
fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// Whether the race's thread gets on.
#[derive(Debug, Default)]
struct Watch {
    /// Its step, where in the kernel it is, and since when.
    last: Option<(u64, String, Instant)>,
}

impl Watch {
    /// Is it in the same place of the kernel, and in the same step, for too long? A step that is long, or
    /// that waits for another thread or the host, is not: those have limits of their own.
    fn is_hung(&mut self, step: u64, stack: &str, now: Instant) -> bool {
        let own = ["futex", "nanosleep"].iter().any(|wait| stack.contains(wait));
        if stack.is_empty() || own {
            self.last = None;
            return false;
        }
        match &self.last {
            Some((last, place, since)) if *last == step && place == stack => {
                now.duration_since(*since) > STEP
            }
            _ => {
                self.last = Some((step, stack.to_owned(), now));
                false
            }
        }
    }
}

/// Goes through all pairs of calls, again and again.
fn race(ctx: &Arc<Ctx>) -> Result<()> {
    files::load(ctx)?;
    step();
    let (mut still, mut moving, other) =
        (Bed::open(ctx, 0)?, Bed::open(ctx, 1)?, Bed::open(ctx, 2)?);
    let (ops, fills) = can(ctx, &still)?;
    if !ops.contains(&Op::Punch) || !fills.contains(&Fill::Read) {
        ctx.note("no punch against a read: nothing is told by the rest");
        return Ok(());
    }
    for bed in [&mut still, &mut moving] {
        // Many extents: more than an inode has room for.
        let odd: Vec<u64> = (0..bed.units()).filter(|unit| unit % 2 == 1).collect();
        bed.empty(ctx, &odd)?;
    }
    let space = Arc::new(Mutex::new(Space::fill(ctx, other)?));
    let mut round = Round { ctx, still, moving, space, held: Vec::new(), gone: Vec::new() };
    let mut pairs: Vec<(Op, Fill)> =
        ops.iter().flat_map(|op| fills.iter().map(|fill| (*op, *fill))).collect();
    let mut rounds = ctx.race.rounds;
    if ctx.race.wrong.is_some() {
        pairs.retain(|(op, fill)| *op == Op::Punch && !fill.is_of_extents());
        rounds = rounds.min(WRONG_ROUNDS);
    }
    let mut rng = ctx.rng(&[1]);
    rng.shuffle(&mut pairs);
    let mut waited = vec![false; pairs.len()];
    for n in 0..rounds {
        step();
        if !ctx.round(n) || ctx.findings() > 0 {
            break;
        }
        let place = n as usize % pairs.len();
        let (op, fill) = pairs[place];
        waited[place] |= round.run(n, op, fill)?;
    }
    let never: Vec<String> = (pairs.iter().zip(&waited))
        .filter(|((_, fill), waited)| !**waited && !round.gone.contains(fill))
        .map(|((op, fill), _)| format!("{} against {}", op.name(), fill.name()))
        .collect();
    match never.as_slice() {
        [] => ctx.reached("every-pair"),
        _ => ctx.note(format!("never seen waiting: {}", never.join(", "))),
    }
    round.last_words()?;
    if ctx.flag("settle") {
        // Without a journal only what is at rest is promised. The second one flushes what the first wrote last.
        let root = ctx.race.mount.as_ref().map_or("/", |mount| &mount.target);
        let root = File::open(root).map_err(Error::system("cannot open the root"))?;
        for _ in 0..2 {
            step();
            rustix::fs::syncfs(&root).map_err(Error::system("syncfs"))?;
        }
    }
    Ok(())
}

/// The calls that the kernel and the file system know, asked of a file of its own.
fn can(ctx: &Ctx, like: &Bed) -> Result<(Vec<Op>, Vec<Fill>)> {
    let path = format!("{}.probe", like.target.path);
    let failed = || Error::system(format!("cannot make {path}"));
    let len = like.unit();
    // What else they say is judged when they race. An advice that is not known has no errno of its own.
    let unknown = |e: &io::Error, advice: bool| {
        let unknown = [libc::EOPNOTSUPP, libc::ENOTTY, libc::ENOSYS];
        e.raw_os_error().filter(|e| unknown.contains(e) || (advice && *e == libc::EINVAL))
    };
    let mut ops = Vec::new();
    let file = Arc::new(files::open(&path, false)?);
    let direct = Arc::new(files::open(&path, true)?);
    for op in Op::ALL {
        step();
        file.set_len(0).and_then(|()| file.set_len(8 * len as u64)).map_err(failed())?;
        match op.ask(&file, 2 * len as u64, len as u64) {
            Err(e) if unknown(&e, false).is_some() => {
                let errno = crate::guest::explain(unknown(&e, false).unwrap_or_default());
                ctx.cannot(format!("{}: {errno}", op.name()));
            }
            _ => ops.push(op),
        }
    }
    file.set_len(8 * len as u64).map_err(failed())?;
    let map = super::memory::Map::shared(&file, 0, 8 * len).map_err(failed())?;
    let way = Way { file, direct, map: Arc::new(map), offset: 0, len };
    let wanted = |fill: &Fill| match ctx.race.set.get("fills") {
        Some(Setting::List(names)) => names.iter().any(|name| name == fill.name()),
        _ => true,
    };
    let mut fills = Vec::new();
    for fill in Fill::ALL.into_iter().filter(wanted) {
        step();
        match way.ask(fill) {
            Err(e) if unknown(&e, fill.is_advice()).is_some() => {
                let errno = unknown(&e, fill.is_advice()).unwrap_or_default();
                ctx.cannot(format!("{}: {}", fill.name(), crate::guest::explain(errno)));
            }
            _ => fills.push(fill),
        }
    }
    std::fs::remove_file(&path).map_err(Error::system(format!("cannot remove {path}")))?;
    Ok((ops, fills))
}

struct Round<'a> {
    ctx: &'a Arc<Ctx>,
    /// Whose blocks stay in their places, and whose move.
    still: Bed,
    moving: Bed,
    space: Arc<Mutex<Space>>,
    /// Of these READs were held; of these the disk hears nothing.
    held: Vec<Fill>,
    gone: Vec<Fill>,
}

impl Round<'_> {
    /// One against the other: → was `op` seen waiting for the READ of `fill`?
    fn run(&mut self, n: u32, op: Op, fill: Fill) -> Result<bool> {
        let ctx = self.ctx;
        if self.gone.contains(&fill) {
            return Ok(false);
        }
        let mut rng = ctx.rng(&[2, n.into()]);
        let bed = if op.moves() { &mut self.moving } else { &mut self.still };
        let unit = match op {
            Op::Truncate => bed.units() - 1,
            // An end of the file cannot be collapsed.
            _ => rng.below(bed.units() as usize / 2) as u64 * 2,
        };
        let (at, len) = (bed.offset(unit), bed.unit() as u64);
        ctx.did(format!("round {n}: {} of unit {unit} against {}", op.name(), fill.name()));
        if fill.is_of_extents() {
            // So few that they have room in the inode are not read at all.
            bed.fill_even(ctx)?;
        }
        if !bed.write(ctx, unit)? {
            return Err(Error::Refused(format!("there is no space for unit {unit}")));
        }
        bed.sync(ctx)?;
        files::drop_cache(&bed.file, 0, 0).map_err(Error::system("cannot drop the page cache"))?;
        step();
        let freed = sys::places(&bed.file, at, len).map_err(Error::system("FIEMAP"))?;
        let Some(first) = freed.first().copied() else {
            return Err(Error::Refused(format!("FIEMAP shows no place for unit {unit}")));
        };
        let range = if fill.is_of_extents() {
            forget_all(ctx, &bed.file)?;
            // Where the blocks of the extents' tree are, nobody tells.
            None
        } else {
            Some(first)
        };
        let way = bed.way(unit)?;
        let old = bed.bytes(unit).to_vec();
        step();
        let stall = ctx.stall(first_read(range))?;
        let reader = Arc::new(Waiter::default());
        let filler = {
            let (ctx, way, own) = (Arc::clone(ctx), way.clone(), Arc::clone(&reader));
            Task::start("filler", move || {
                ctx.did(format!("asks: {}", fill.name()));
                let got = own.call(|| way.ask(fill));
                ctx.did(format!("{} returned{}", fill.name(), error_text(&got)));
                got
            })?
        };
        if !reader.reads(ctx, &stall, fill.returns_early())? {
            let returned = reader.has_returned();
            stall.release()?;
            let _ = ctx.answer(&filler, fill.name())?;
            let text = format!("{}: asks the disk for nothing here", fill.name());
            if returned && fill.is_of_extents() && !self.held.contains(&fill) {
                self.gone.push(fill);
                ctx.cannot(text);
            } else {
                ctx.note(text);
            }
            return Ok(false);
        }
        let end = Instant::now() + HELD;
        step();
        self.held.push(fill);
        ctx.reached("read-held");

        let image = op.image(&bed.image, at as usize, len as usize);
        let taker = Taker::start(ctx, bed, unit, op, freed, &self.space, rng.below(2) == 0)?;
        let waits = taker.waiter.waits(ctx, &taker.task, end)?;
        match &waits {
            Some(text) => {
                ctx.did(format!("{} waits in {text}", op.name()));
                ctx.reached("waited");
            }
            None if taker.waiter.has_returned() => {
                ctx.note(format!("{} returns while a READ of {} is held", op.name(), fill.name()))
            }
            None => {}
        }
        step();
        let onlooker = onlook(bed)?;
        // Who does not wait takes the blocks, and gives them away, before they are read.
        let left = end.saturating_duration_since(Instant::now());
        let early = if waits.is_some() { None } else { taker.task.wait(left).ok() };
        stall.release()?;
        step();
        let got = ctx.answer(&filler, &format!("{} while its range is taken away", fill.name()))?;
        step();
        let taken = match early {
            Some(taken) => taken,
            None => ctx.answer(&taker.task, &format!("{} against {}", op.name(), fill.name()))?,
        }?;
        step();
        ctx.answer(&onlooker, "FIEMAP while a range is taken away")?;
        step();
        let pair = Pair { op, fill, unit, again: rng.below(2) == 0 };
        self.judge(&pair, &way, Seen { old, image, got, taken })?;
        Ok(waits.is_some())
    }

    /// What was seen meanwhile, and what is seen now.
    fn judge(&mut self, pair: &Pair, way: &Way, seen: Seen) -> Result<()> {
        let ctx = self.ctx;
        let Pair { op, fill, unit, again } = *pair;
        let space = Arc::clone(&self.space);
        let mut space = space.lock().unwrap_or_else(PoisonError::into_inner);
        let bed = if op.moves() { &mut self.moving } else { &mut self.still };
        let (at, len) = (bed.offset(unit) as usize, bed.unit());
        let after = format!("after {} of unit {unit} against {} returned", op.name(), fill.name());
        let new = seen.image.get(at..).unwrap_or_default();
        let new = &new[..new.len().min(len)];
        match &seen.got {
            Ok(Some(bytes)) if may_be_seen(bytes, &seen.old, new) => ctx.reached("overlapped"),
            Ok(Some(bytes)) => {
                bed.alien(
                    ctx,
                    unit,
                    bytes,
                    &format!("{} that overlaps {}", fill.name(), op.name()),
                );
            }
            Ok(None) => {}
            // Behind the end of the file there is nothing to be mapped.
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) && new.len() < len => {}
            Err(e) => failed(ctx, bed, unit, fill.name(), e),
        }
        if let Err(e) = &seen.taken.result {
            if e.raw_os_error() == Some(libc::ENOSPC) {
                ctx.note(format!("{}: the file system is too full", op.name()));
            } else {
                failed(ctx, bed, unit, op.name(), e);
            }
            bed.write(ctx, unit)?;
            return space.give_back(ctx);
        }
        if seen.taken.reused {
            ctx.reached("reused");
        }
        bed.image = seen.image;
        if op == Op::Truncate {
            bed.resize(ctx)?;
        }
        bed.look(ctx, &after)?;
        if op == Op::Punch && ctx.race.wrong.is_none() {
            let left = sys::places(&bed.file, at as u64, len as u64);
            let left = left.map_err(Error::system("FIEMAP"))?;
            if let Some((place, len)) = left.first() {
                let text = format!("{after}, FIEMAP still shows {len} bytes at {place}");
                ctx.found("wrong-result", Some((&bed.target, at as u64, bed.target.unit)), text);
            }
        }
        // A page that survived would be written to blocks that are others' by now.
        if !op.moves() && again && ctx.findings() == 0 {
            if bed.store(ctx, unit, &way.map)? {
                ctx.reached("stored-after");
            } else {
                bed.empty(ctx, &[unit])?;
            }
            bed.look(ctx, &format!("{after}, and a store through the old mapping"))?;
        }
        space.other.look(ctx, &format!("{after}, the other file"))?;
        bed.resize(ctx)?;
        space.give_back(ctx)
    }

    /// A punch and a write that are durable, with nothing after them.
    fn last_words(&mut self) -> Result<()> {
        if self.ctx.findings() > 0 || self.ctx.is_over() {
            return Ok(());
        }
        self.still.write(self.ctx, 0)?;
        self.still.write(self.ctx, 2)?;
        self.still.sync(self.ctx)?;
        self.still.write(self.ctx, 0)?;
        self.still.empty(self.ctx, &[2])
    }
}

/// What is raced in a round. `again`: the mapping is used once more.
struct Pair {
    op: Op,
    fill: Fill,
    unit: u64,
    again: bool,
}

/// What came of it.
struct Seen {
    /// The unit's bytes before, and those of the whole file after.
    old: Vec<u8>,
    image: Vec<u8>,
    got: io::Result<Option<Vec<u8>>>,
    taken: Taken,
}

fn failed(ctx: &Ctx, bed: &Bed, unit: u64, what: &str, e: &io::Error) {
    let at = Some((&bed.target, bed.offset(unit), bed.target.unit));
    ctx.found("wrong-result", at, format!("{what} failed: {e}"));
}

/// What came of taking blocks away.
struct Taken {
    result: io::Result<()>,
    reused: bool,
}

/// A thread that takes a unit's blocks away, and gives them to another file.
struct Taker {
    task: Task<Result<Taken>>,
    waiter: Arc<Waiter>,
}

impl Taker {
    fn start(
        ctx: &Arc<Ctx>,
        bed: &mut Bed,
        unit: u64,
        op: Op,
        freed: Vec<(u64, u64)>,
        space: &Arc<Mutex<Space>>,
        sync: bool,
    ) -> Result<Taker> {
        let waiter = Arc::new(Waiter::default());
        let (ctx, space, own) = (Arc::clone(ctx), Arc::clone(space), Arc::clone(&waiter));
        let (file, direct, target) =
            (Arc::clone(&bed.file), Arc::clone(&bed.direct), bed.target.clone());
        let (at, len) = (bed.offset(unit), bed.unit() as u64);
        // Of a file whose blocks move only whose they are is judged.
        let marks = if op.moves() { Vec::new() } else { bed.gone(&[unit]) };
        let task = Task::start("taker", move || {
            let mut space = space.lock().unwrap_or_else(PoisonError::into_inner);
            let (intents, dones): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
            ctx.mark(intents)?;
            ctx.did(format!("asks: {} of {len} bytes at {at}", op.name()));
            let result = own.call(|| {
                if ctx.wrong("no-punch") {
                    Ok(())
                } else if ctx.wrong("foreign-stamp") {
                    let theirs = files::unit_bytes(&ctx, &space.other.target, unit, 0);
                    direct.write_all_at(theirs.bytes(), at)
                } else {
                    op.ask(&file, at, len)
                }
            });
            ctx.did(format!("{} returned{}", op.name(), error_text(&result)));
            let mut reused = false;
            if result.is_ok() {
                ctx.mark(dones)?;
                if sync {
                    files::sync(&ctx, &file, &target, ctx.wrong("forget-fsync"))?;
                }
                reused = op.frees() && space.reuse(&ctx, &freed)?;
            }
            Ok(Taken { result, reused })
        })?;
        Ok(Taker { task, waiter })
    }
}

/// What is known of a thread that will wait.
#[derive(Debug, Default)]
struct Waiter {
    /// Thread id; 0 until it runs.
    tid: AtomicI32,
    returned: AtomicBool,
}

impl Waiter {
    /// Makes a call that may wait.
    fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        self.tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
        let answer = call();
        self.returned.store(true, Ordering::Release);
        answer
    }

    fn has_returned(&self) -> bool {
        self.returned.load(Ordering::Acquire)
    }

    /// Waits until the disk holds the READ that the call asks for: → does it? Not where it has returned
    /// without one. `early`: it returns before the READ does.
    fn reads(&self, ctx: &Ctx, stall: &Stall, early: bool) -> Result<bool> {
        let end = Instant::now() + super::PATIENCE;
        loop {
            // Before the disk is looked at: who has returned asks it for nothing any more.
            let over = self.has_returned() && !early;
            if stall.holds(1, Duration::ZERO)? {
                return Ok(true);
            }
            if over || Instant::now() > end || ctx.is_over() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the call of `task` is seen waiting for the one READ that the disk holds: → where; not
    /// if it has returned, nor behind `end`.
    fn waits<T: Send + 'static>(
        &self,
        ctx: &Ctx,
        task: &Task<T>,
        end: Instant,
    ) -> Result<Option<String>> {
        let mut before = None;
        loop {
            if self.has_returned() {
                return Ok(None);
            }
            // Asleep in the same place twice, while the disk has nothing to do but what it holds: it is not
            // for the sake of another request.
            let now = if self.is_asleep() { Some(task.stack()) } else { None };
            let disk = ctx.disk()?;
            let held: u64 = disk.held.iter().map(|(_, held)| held).sum();
            let idle = held == 1 && disk.in_flight <= held;
            if let Some(stack) = &now
                && idle
                && now == before
            {
                return Ok(Some(stack.clone()));
            }
            if Instant::now() > end {
                ctx.note(format!("a call neither returns nor is seen waiting: {}", task.stack()));
                return Ok(None);
            }
            before = now.filter(|_| idle);
            std::thread::sleep(Duration::from_millis(8));
        }
    }

    /// The kernel leaves the functions of its locks out of the stack, so that a stack alone does not tell
    /// who waits. Waiting for a mark is a sleep that can be interrupted.
    fn is_asleep(&self) -> bool {
        let tid = self.tid.load(Ordering::Acquire);
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
        tid > 0 && stat.is_ok_and(|s| s.rsplit(')').next().is_some_and(|s| s.starts_with(" D")))
    }
}

/// The next READ alone, of a range of the disk (bytes) or of all of it: of those who read afterwards none is
/// held, so that they wait for the first or not at all.
fn first_read(range: Option<(u64, u64)>) -> Which {
    Which { op: Some(DeviceOp::Read), range, nth: Some(1), when: StallPoint::BeforeIo }
}

/// Looks at the extents of a file meanwhile, and has them forgotten.
fn onlook(bed: &Bed) -> Result<Task<()>> {
    let (file, len) = (Arc::clone(&bed.file), bed.image.len() as u64);
    Task::start("onlooker", move || {
        // What it says is old or new; that it comes back is what counts.
        let _ = sys::places(&file, 0, len);
        let _ = sys::forget_extents(&file);
        let _ = sys::precache_extents(&file);
    })
}

/// Has the kernel forget where the blocks of a file are.
fn forget_all(ctx: &Ctx, file: &File) -> Result<()> {
    rustix::fs::syncfs(file).map_err(Error::system("syncfs"))?;
    // Without a journal there is nothing to be done.
    let _ = sys::checkpoint(file);
    let _ = sys::forget_extents(file);
    let what = format!("cannot drop the buffers of {}", ctx.race.device);
    let device = File::open(&ctx.race.device);
    device.and_then(|device| blkflsbuf(&device)).map_err(Error::system(what))
}

fn error_text<T>(result: &io::Result<T>) -> String {
    result.as_ref().err().map(|e| format!(": {e}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_in_one_place_of_the_kernel_hangs() {
        let begin = Instant::now();
        let late = begin + STEP + Duration::from_secs(1);
        let hung = |first: (u64, &str), then: (u64, &str)| {
            let mut watch = Watch::default();
            assert!(!watch.is_hung(first.0, first.1, begin));
            watch.is_hung(then.0, then.1, late)
        };
        assert!(hung((1, "down_write"), (1, "down_write")));
        assert!(!hung((1, "down_write"), (2, "down_write")), "the same call again");
        assert!(!hung((1, "down_write"), (1, "io_schedule")), "elsewhere");
        assert!(!hung((1, ""), (1, "")), "not in the kernel");
        assert!(!hung((1, "futex_wait"), (1, "futex_wait")), "for another thread");
    }
}

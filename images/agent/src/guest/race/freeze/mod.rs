//! Writes against FIFREEZE: suite `freeze`.
//!
//! A file system is frozen in three steps: new writes are kept out, those that began are waited for,
//! and what is dirty is written back. A direct write that is asynchronous begins in one thread and
//! ends in another, so its reference is taken and given back far apart: once too seldom, and FIFREEZE
//! waits for ever; once too often, and it returns while a write is on its way.
//!
//! - [`stage`]: what lies between the writers and the file system that is frozen.
//! - [`write`], [`aio`]: bursts of direct writes by io_uring, libaio and pwritev2.
//! - [`failing`]: writes that fail before and after they began.
//! - [`kernel`]: the system calls that no crate has.
//!
//! What is written while it is frozen, and what a snapshot of it has, the host judges, by the marks
//! `frozen N` and `thawing N`.

mod aio;
mod failing;
mod kernel;
mod stage;
mod write;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::stage::{Stage, Via};
use self::write::{Way, Writer};
use super::task::NoAnswer;
use super::{Ctx, PATIENCE, Task, Which, files};
use crate::channel::MarkText;
use crate::guest::{Error, Result, explain, sys};
use crate::race::{DeviceOp, StallPoint};

/// For what is sure to come, on a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Seen so often in a row, a call does not only pass by.
const LOOKS: u32 = 8;
/// The control of a FIFREEZE that does not return has no need to wait long: it cannot.
const NEVER: Duration = Duration::from_secs(3);

/// Runs the lane's race.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    let via = Via::named(ctx.text("via", "plain"))?;
    let Some(mount) = ctx.race.mount.as_ref().map(|at| at.target.clone()) else {
        return Err(Error::Refused("a disk without a file system cannot be frozen".into()));
    };
    stage::prepare(&mount)?;
    failing::prepare(&mount)?;
    files::load(ctx)?;
    // A raw look at where they lie, before anything is put above them.
    let places = ctx.race.workload.files.iter().map(place).collect::<Result<Vec<_>>>()?;
    let stage = Stage::build(ctx, via, &mount)?;
    let asked = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for (target, way) in ctx.race.workload.files.iter().zip(Way::ALL) {
        writers.push(Writer::new(way, target, &stage.path_of(target), &asked)?);
    }
    let mut race = Race {
        ctx: Arc::clone(ctx),
        root: stage::root(&mount)?,
        places,
        writers,
        asked,
        frozen: 0,
        number: 0,
    };
    let ended = (0..ctx.race.rounds)
        .take_while(|round| ctx.round(*round))
        .try_for_each(|round| race.round(round, &stage, &mount));
    if ended.is_err() || ctx.is_over() {
        // Even to close a file may wait for ever where something is wrong; and a server must not go
        // from under those that still wait.
        std::mem::forget((race, stage));
        return ended;
    }
    // Whatever has a file open goes before the file systems do.
    drop(race);
    stage.end(ctx)
}

/// Where on the disk a target's units are: from the first to the last.
fn place(target: &crate::channel::Target) -> Result<(u64, u64)> {
    let file = files::open(&target.path, false)?;
    let mut range: Option<(u64, u64)> = None;
    for unit in 0..u64::from(target.units) {
        let len = u64::from(target.unit);
        let Some(at) = sys::place_of(&file, target.offset_of(unit), len) else {
            return Err(Error::Refused(format!(
                "unit {unit} of {} is not in one place of the disk",
                target.path
            )));
        };
        let (from, to) = range.unwrap_or((at, at + len));
        range = Some((from.min(at), to.max(at + len)));
    }
    range
        .map(|(from, to)| (from, to - from))
        .ok_or_else(|| Error::Refused(format!("{} has no units", target.path)))
}

/// Does FIFREEZE wait for writes that began? Not in the grace period before it, nor in the writing back
/// after it. Functions that only sleep, as percpu_down_write, are in no stack.
fn waits_for_writes(stack: &str) -> bool {
    stack.starts_with("freeze_super") || stack.starts_with("percpu_down_write")
}

fn failed(what: &str, errno: i64) -> Error {
    Error::Refused(format!("{what}: {}", explain(-errno as i32)))
}

/// What FIFREEZE was seen to do.
enum Seen {
    /// It waits for writes that began.
    Waits,
    Returned(i64),
    /// Something else, for too long.
    Elsewhere(String),
}

struct Race {
    ctx: Arc<Ctx>,
    /// On the file system that is frozen.
    root: Arc<File>,
    /// Of each target, on the disk.
    places: Vec<(u64, u64)>,
    /// One a target, each by a way of its own; away while they write.
    writers: Vec<Writer>,
    /// Bursts of theirs that were asked for.
    asked: Arc<AtomicU64>,
    /// Times that it was frozen, for the marks.
    frozen: u32,
    /// Draws.
    number: u64,
}

type Burst = Task<Result<Writer>>;

impl Race {
    fn rng(&mut self, round: u32) -> crate::guest::workload::plan::Rng {
        self.number += 1;
        self.ctx.rng(&[u64::from(round), self.number])
    }

    fn round(&mut self, round: u32, stage: &Stage, mount: &str) -> Result<()> {
        self.with_nothing_on_its_way(round)?;
        self.waits_for_the_disk(round, stage.to_copy_up(&failing::lower(mount, round)))?;
        self.again_and_again(round)?;
        if self.ctx.flag("failing") {
            failing::run(self, stage, mount, round)?;
        }
        Ok(())
    }

    /// Everything that was written has returned: FIFREEZE has nothing to wait for.
    fn with_nothing_on_its_way(&mut self, round: u32) -> Result<()> {
        for burst in self.bursts(round)? {
            self.take_back(&burst, "a write that nothing keeps")?;
        }
        self.ctx.did("nothing is on its way");
        let freezing = self.freezing()?;
        self.must_freeze(&freezing, "FIFREEZE, asked for while no write is on its way,")?;
        self.mark_frozen()?;
        self.thaw()
    }

    /// The disk holds answers to writes; FIFREEZE waits for them, and whoever comes later for FITHAW.
    fn waits_for_the_disk(&mut self, round: u32, copy_up: Option<String>) -> Result<()> {
        let ctx = Arc::clone(&self.ctx);
        let mut rng = self.rng(round);
        let when = match rng.below(2) {
            0 => StallPoint::BeforeIo,
            _ => StallPoint::BeforeCompletion,
        };
        let late = self.writers.pop().ok_or_else(|| Error::Refused("no third target".into()))?;
        let mut stalls = Vec::new();
        for place in self.places.iter().take(self.writers.len()) {
            let range = Some(*place);
            let which = Which { op: Some(DeviceOp::Write), range, nth: None, when };
            stalls.push(ctx.stall(which)?);
        }
        let depths: Vec<u64> = self.writers.iter().map(|w| w.target.depth.into()).collect();
        let bursts = self.bursts(round)?;
        let mut held = true;
        for (stall, depth) in stalls.iter().zip(depths) {
            held &= stall.holds(depth, SOON)?;
        }
        if !held {
            // Nobody has to wait for what did not come.
            for stall in stalls {
                stall.release()?;
            }
            for burst in bursts {
                self.take_back(&burst, "a write that was let go")?;
            }
            self.give_back(late);
            return Ok(());
        }
        ctx.reached("held");
        let freezing = self.freezing()?;
        if !self.skips() && self.look(&freezing)? {
            ctx.reached("freeze-waited");
        }
        // Too late for this time: it has to wait until the thaw.
        let late = self.burst(late, "late", 2, round)?;
        if ctx.wrong("holds-reference") && !ctx.flag("failing") {
            ctx.answer_within(&freezing, "FIFREEZE", NEVER)?;
        }
        for stall in stalls {
            stall.release()?;
        }
        self.must_freeze(&freezing, "FIFREEZE, whose writes were let go,")?;
        for burst in bursts {
            self.take_back(&burst, "a write that was let go")?;
        }
        self.mark_frozen()?;

        let before = ctx.disk()?;
        let asked = self.asked.load(Ordering::Relaxed);
        let mut blocked = self.bursts(round)?;
        let all_asked = self.are_asked(asked + blocked.len() as u64);
        blocked.push(late);
        let copying = match copy_up {
            Some(path) => Some(Task::start("copy-up", move || files::open(&path, true).map(drop))?),
            None => None,
        };
        // Whoever was let in is back by then.
        std::thread::sleep(Duration::from_millis(ctx.number("frozen-ms", 300)));
        let after = ctx.disk()?;
        if (before.writes, before.discards, before.write_zeroes)
            == (after.writes, after.discards, after.write_zeroes)
        {
            ctx.reached("quiet");
        }
        let asleep = blocked.iter().all(|burst| burst.is_asleep(SOON));
        let waiting = self.who_waits(blocked)?;
        if all_asked && asleep && waiting.len() == 3 {
            ctx.reached("writes-blocked");
        }
        let copying = copying.into_iter().filter(|task| {
            let asleep = task.is_asleep(SOON);
            self.waits(task, "an open, to copy up,") && asleep
        });
        let copying: Vec<_> = copying.collect();
        if !copying.is_empty() {
            ctx.reached("copy-up-blocked");
        }
        self.thaw()?;
        for burst in waiting {
            self.take_back(&burst, "a write that waited for the thaw")?;
        }
        for task in copying {
            self.answer(&task, "an open that waited for the thaw, to copy up")??;
        }
        ctx.reached("went-on");
        Ok(())
    }

    /// FIFREEZE and FITHAW again and again, while writers write.
    fn again_and_again(&mut self, round: u32) -> Result<()> {
        let ctx = Arc::clone(&self.ctx);
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks: Vec<Burst> = Vec::new();
        for mut writer in std::mem::take(&mut self.writers) {
            let mut rng = self.rng(round);
            let (ctx, stop) = (Arc::clone(&ctx), Arc::clone(&stop));
            let name = writer.way.name();
            tasks.push(Task::start(name, move || {
                while !stop.load(Ordering::Relaxed) && !ctx.is_over() {
                    let units = writer.some(writer.target.depth as usize, &mut rng);
                    writer.burst(&ctx, &units)?;
                }
                Ok(writer)
            })?);
        }
        let mut rng = self.rng(round);
        for _ in 0..ctx.number("freezes", 3) {
            std::thread::sleep(Duration::from_millis(10 + rng.below(40) as u64));
            let freezing = self.freezing()?;
            self.must_freeze(&freezing, "FIFREEZE, while others write,")?;
            self.mark_frozen()?;
            std::thread::sleep(Duration::from_millis(10 + rng.below(60) as u64));
            self.thaw()?;
            ctx.reached("frozen-under-load");
        }
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            self.take_back(&task, "a write after the last thaw")?;
        }
        Ok(())
    }

    /// Each writer at its target's depth, in a thread of its own.
    fn bursts(&mut self, round: u32) -> Result<Vec<Burst>> {
        let writers = std::mem::take(&mut self.writers);
        writers
            .into_iter()
            .map(|writer| {
                let (name, depth) = (writer.way.name(), writer.target.depth as usize);
                self.burst(writer, name, depth, round)
            })
            .collect()
    }

    fn burst(&mut self, mut writer: Writer, name: &str, n: usize, round: u32) -> Result<Burst> {
        let ctx = Arc::clone(&self.ctx);
        let units = writer.some(n, &mut self.rng(round));
        Task::start(name, move || {
            writer.burst(&ctx, &units)?;
            Ok(writer)
        })
    }

    fn take_back(&mut self, burst: &Burst, what: &str) -> Result<()> {
        let writer = self.answer(burst, what)??;
        self.give_back(writer);
        Ok(())
    }

    fn give_back(&mut self, writer: Writer) {
        self.writers.push(writer);
        self.writers.sort_by_key(|writer| writer.target.file);
    }

    /// Those that wait while it is frozen. Nobody may have returned.
    fn who_waits(&mut self, bursts: Vec<Burst>) -> Result<Vec<Burst>> {
        let mut waiting = Vec::new();
        for burst in bursts {
            match burst.wait(Duration::ZERO) {
                Ok(writer) => {
                    self.returned(&format!("the writes of the thread {}", burst.name()));
                    self.give_back(writer?);
                }
                Err(_) => waiting.push(burst),
            }
        }
        Ok(waiting)
    }

    /// Does it wait while it is frozen?
    fn waits<T: Send + 'static>(&self, task: &Task<T>, what: &str) -> bool {
        let waits = matches!(task.wait(Duration::ZERO), Err(NoAnswer::Stuck(_)));
        if !waits {
            self.returned(what);
        }
        waits
    }

    fn returned(&self, what: &str) {
        if !self.skips() {
            let text = format!("{what} returned while the file system was frozen");
            self.ctx.found("wrong-result", None, text);
        }
    }

    /// Were so many bursts asked for? Waits until they are.
    fn are_asked(&self, bursts: u64) -> bool {
        let start = Instant::now();
        while self.asked.load(Ordering::Relaxed) < bursts && start.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.asked.load(Ordering::Relaxed) >= bursts
    }

    /// Is FIFREEZE only said to be there?
    fn skips(&self) -> bool {
        self.ctx.wrong("not-frozen")
    }

    /// Asks for FIFREEZE, in a thread of its own.
    fn freezing(&self) -> Result<Task<i64>> {
        let (ctx, root, skip) = (Arc::clone(&self.ctx), Arc::clone(&self.root), self.skips());
        let early = self.ctx.wrong("thaw-early");
        Task::start("freezer", move || {
            if skip {
                return 0;
            }
            ctx.did("FIFREEZE");
            let result = kernel::freeze(&root);
            ctx.did(format!("FIFREEZE returned {result}"));
            if early {
                kernel::thaw(&root);
            }
            result
        })
    }

    /// FIFREEZE has to be seen waiting for what the disk holds: → was it?
    fn look(&self, freezing: &Task<i64>) -> Result<bool> {
        match self.see(freezing)? {
            Seen::Waits => Ok(true),
            Seen::Returned(0) => {
                let text = "FIFREEZE returned while the disk held writes of that file system that it \
                            had not answered";
                self.ctx.found("wrong-result", None, text);
                Err(Error::Refused("FIFREEZE did not wait".into()))
            }
            Seen::Returned(errno) => Err(failed("FIFREEZE", errno)),
            Seen::Elsewhere(stack) => {
                self.ctx.note(format!("FIFREEZE waits elsewhere: {stack}"));
                Ok(false)
            }
        }
    }

    fn see(&self, freezing: &Task<i64>) -> Result<Seen> {
        let start = Instant::now();
        let mut times = 0;
        loop {
            let stack = match freezing.wait(Duration::from_millis(10)) {
                Ok(result) => return Ok(Seen::Returned(result)),
                Err(NoAnswer::Gone) => return Err(Error::Refused("the freezer panicked".into())),
                Err(NoAnswer::Stuck(stack)) => stack,
            };
            times = if waits_for_writes(&stack) { times + 1 } else { 0 };
            if times == LOOKS {
                return Ok(Seen::Waits);
            }
            if start.elapsed() > SOON {
                return Ok(Seen::Elsewhere(stack));
            }
        }
    }

    /// FIFREEZE waits for nothing any more.
    fn must_freeze(&self, freezing: &Task<i64>, what: &str) -> Result<()> {
        match self.answer(freezing, what)? {
            0 => Ok(()),
            errno => Err(failed("FIFREEZE", errno)),
        }
    }

    /// As [`Ctx::answer`], with the lane's own limit.
    fn answer<T: Send + 'static>(&self, task: &Task<T>, what: &str) -> Result<T> {
        let limit = Duration::from_secs(self.ctx.number("patience", PATIENCE.as_secs()));
        self.ctx.answer_within(task, what, limit)
    }

    /// It is frozen: what was written before is durable. All that has returned was before, for
    /// FIFREEZE writes back when it has waited for every write that began.
    fn mark_frozen(&mut self) -> Result<()> {
        self.frozen += 1;
        let since = self.ctx.mark(Vec::new())?;
        let synced = |file| MarkText::Synced { file, since, result: 0 };
        let mut marks: Vec<MarkText> =
            self.ctx.race.workload.files.iter().map(|target| synced(target.file)).collect();
        let name = format!("frozen {}", self.frozen);
        self.ctx.did(&name);
        marks.push(MarkText::Phase { name });
        self.ctx.mark(marks)?;
        self.ctx.reached("frozen");
        Ok(())
    }

    /// Ends what [`Race::mark_frozen`] began.
    fn thaw(&self) -> Result<()> {
        self.ctx.phase(&format!("thawing {}", self.frozen))?;
        self.let_go()
    }

    fn let_go(&self) -> Result<()> {
        if self.skips() || self.ctx.wrong("thaw-early") {
            return Ok(());
        }
        let root = Arc::clone(&self.root);
        let task = Task::start("thaw", move || kernel::thaw(&root))?;
        match self.answer(&task, "FITHAW")? {
            0 => Ok(()),
            errno => Err(failed("FITHAW", errno)),
        }
    }
}

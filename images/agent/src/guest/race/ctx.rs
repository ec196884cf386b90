//! What every race has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::task::{self, NoAnswer, Task};
use super::timeline::Timeline;
use crate::channel::{MarkText, Target, ToHost};
use crate::guest::log::log;
use crate::guest::outbox::Outbox;
use crate::guest::workload::plan::Rng;
use crate::guest::{Error, Result};
use crate::race::{
    DeviceAnswer, DeviceAsk, DeviceOp, DeviceStatus, Race, RaceFinding, Raced, Setting, StallPoint,
};

/// Findings of one clause that are told; what follows them is mostly the same again.
const FINDINGS: u32 = 6;

/// How long a race may do nothing at all ([`Ctx::watch`]): longer than any limit of its own.
const STILL: Duration = Duration::from_secs(60);
/// How long the disk may take to say how it is.
const ANSWER: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Which requests a stall holds.
#[derive(Clone, Debug)]
pub struct Which {
    pub op: Option<DeviceOp>,
    /// (offset, length) on the disk, in bytes.
    pub range: Option<(u64, u64)>,
    pub nth: Option<u64>,
    pub when: StallPoint,
}

impl Which {
    /// Those of a range of the disk, before they are executed.
    pub fn of(op: DeviceOp, range: (u64, u64)) -> Which {
        Which { op: Some(op), range: Some(range), nth: None, when: StallPoint::BeforeIo }
    }

    /// All of a kind, executed and not answered.
    pub fn answers(op: DeviceOp) -> Which {
        Which { op: Some(op), range: None, nth: None, when: StallPoint::BeforeCompletion }
    }
}

/// A race that runs. Shared by its threads.
#[derive(Debug)]
pub struct Ctx {
    pub race: Race,
    outbox: Arc<Outbox>,
    timeline: Timeline,
    raced: Mutex<Raced>,
    found: AtomicU32,
    /// By clause.
    told: Mutex<BTreeMap<String, u32>>,
    over: AtomicBool,
}

impl Ctx {
    pub fn new(race: Race, outbox: Arc<Outbox>) -> Arc<Ctx> {
        Arc::new(Ctx {
            race,
            outbox,
            timeline: Timeline::default(),
            raced: Mutex::default(),
            found: AtomicU32::new(0),
            told: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    fn raced(&self) -> MutexGuard<'_, Raced> {
        self.raced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of it.
    pub fn end(&self) -> Raced {
        self.raced().clone()
    }

    // ---- what was asked for

    /// Chance of its own for each (seed, words).
    pub fn rng(&self, words: &[u64]) -> Rng {
        let mix = |seed: u64, word: &u64| {
            (seed.rotate_left(25) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        Rng::new(words.iter().fold(self.race.workload.seed, mix))
    }

    /// Does the control want this to be done wrong?
    pub fn wrong(&self, what: &str) -> bool {
        self.race.wrong.as_deref() == Some(what)
    }

    pub fn number(&self, name: &str, default: u64) -> u64 {
        match self.race.set.get(name) {
            Some(Setting::Number(n)) => *n,
            _ => default,
        }
    }

    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        match self.race.set.get(name) {
            Some(Setting::Text(text)) => text,
            _ => default,
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        self.race.set.get(name) == Some(&Setting::Bool(true))
    }

    /// A target by its place in the lane, from 0.
    ///
    /// # Errors
    /// The lane has not so many.
    pub fn target(&self, n: usize) -> Result<&Target> {
        let targets = &self.race.workload.files;
        targets.get(n).ok_or_else(|| Error::Refused(format!("the lane has no target {}", n + 1)))
    }

    // ---- what is told

    /// This thread does, or did, something.
    pub fn did(&self, text: impl AsRef<str>) {
        self.timeline.push(text.as_ref());
    }

    /// A round begins: → is there to be one? Not where the host has stopped the race, or where it is
    /// over because of a hang.
    pub fn round(&self, n: u32) -> bool {
        if self.is_over() {
            return false;
        }
        self.timeline.begin();
        self.raced().rounds = n + 1;
        true
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.outbox.is_stopped()
    }

    /// A moment that matters was met.
    pub fn reached(&self, what: &str) {
        self.did(format!("reached: {what}"));
        *self.raced().reached.entry(what.to_owned()).or_default() += 1;
    }

    /// How often a moment was met.
    pub fn times(&self, what: &str) -> u64 {
        self.raced().reached.get(what).copied().unwrap_or(0)
    }

    /// Worth a line, and no finding. The same once.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        let mut raced = self.raced();
        if !raced.notes.contains(&text) {
            raced.notes.push(text);
        }
    }

    /// A part that cannot be done here: the probe's own answer.
    pub fn cannot(&self, text: impl Into<String>) {
        let text = text.into();
        let mut raced = self.raced();
        if !raced.unsupported.contains(&text) {
            raced.unsupported.push(text);
        }
    }

    /// A promise was broken. `target` and the range say where in which file, if anywhere.
    pub fn found(&self, clause: &str, at: Option<(&Target, u64, u32)>, text: impl Into<String>) {
        let text = text.into();
        self.did(format!("FOUND {clause}"));
        log(format_args!("found {clause}: {text}"));
        self.found.fetch_add(1, Ordering::Relaxed);
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let told = told.entry(clause.to_owned()).or_insert(0);
            *told += 1;
            if *told > FINDINGS {
                return;
            }
        }
        let (file, path, offset, len) = match at {
            Some((t, offset, len)) => (t.file, t.path.clone(), offset, len),
            None => (0, String::new(), 0, 0),
        };
        let timeline = self.timeline.tell();
        let clause = clause.to_owned();
        let finding = RaceFinding { clause, file, path, offset, len, text, timeline };
        self.outbox.say(ToHost::Found { finding });
    }

    /// How many promises were broken so far.
    pub fn findings(&self) -> u32 {
        self.found.load(Ordering::Relaxed)
    }

    /// The answer of a task that waits for nothing any more. One that does not come is a hang, told
    /// as `what`, and ends the race.
    ///
    /// # Errors
    /// It hangs, or it panicked.
    pub fn answer<T: Send + 'static>(&self, task: &Task<T>, what: &str) -> Result<T> {
        self.answer_within(task, what, PATIENCE)
    }

    /// As [`Ctx::answer`], with a limit of one's own.
    ///
    /// # Errors
    /// It hangs, or it panicked.
    pub fn answer_within<T: Send + 'static>(
        &self,
        task: &Task<T>,
        what: &str,
        time: Duration,
    ) -> Result<T> {
        match task.wait(time) {
            Ok(answer) => Ok(answer),
            Err(NoAnswer::Gone) => Err(panicked(task.name())),
            Err(NoAnswer::Stuck(stack)) => {
                let stack = if stack.is_empty() { String::new() } else { format!(": {stack}") };
                Err(self.hangs(format!(
                    "{what} does not return, {} s after everything that it may wait for was let \
                     go; it waits in{stack}",
                    time.as_secs()
                )))
            }
        }
    }

    /// The answer of a task that plays the whole race, with calls that have no limit of their own. It
    /// may take as long as it gets on: a hang is that nobody has told a step for a minute, and it
    /// waited at one place of the kernel. `others`: where else somebody may wait, for the finding.
    ///
    /// # Errors
    /// It hangs, or it panicked.
    pub fn watch<T: Send + 'static>(
        &self,
        task: &Task<T>,
        others: impl FnOnce() -> Vec<String>,
    ) -> Result<T> {
        let mut seen = (0, String::new());
        let mut since = Instant::now();
        loop {
            let stack = match task.wait(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::Gone) => return Err(panicked(task.name())),
                Err(NoAnswer::Stuck(stack)) => stack,
            };
            let now = (self.timeline.steps(), stack);
            if now != seen {
                seen = now;
                since = Instant::now();
            } else if since.elapsed() >= STILL {
                let others = others();
                let also = if others.is_empty() { "" } else { "; also: " };
                return Err(self.hangs(format!(
                    "a call on the race's own thread does not return: nobody has got on for {} s; it \
                     waits in: {}{also}{}",
                    STILL.as_secs(),
                    seen.1,
                    others.join("; ")
                )));
            }
        }
    }

    /// A hang is a finding, and ends the race. Told with what it may wait for: what the guest's kernel
    /// and the disk each have in flight, and where io_uring's own threads are.
    fn hangs(&self, mut text: String) -> Error {
        for disk in waited_for() {
            text = format!("{text}; {disk}");
        }
        // It may be the disk that hangs.
        let outbox = Arc::clone(&self.outbox);
        let asked = Task::start("asks", move || outbox.ask(DeviceAsk::Status {}));
        if let Ok(asked) = asked
            && let Ok(Ok(DeviceAnswer::Status(disk))) = asked.wait(ANSWER)
        {
            text = format!("{text}; the disk has {} requests in flight", disk.in_flight);
        }
        for worker in task::workers() {
            text = format!("{text}; {worker}");
        }
        self.found("hung", None, text.clone());
        self.over.store(true, Ordering::Relaxed);
        Error::TimedOut(text)
    }

    // ---- marks

    /// Records marks, and waits until they are. → for [`MarkText::Synced`]: everything recorded by
    /// now.
    ///
    /// # Errors
    /// The host is gone or has stopped the race.
    pub fn mark(&self, marks: Vec<MarkText>) -> Result<u64> {
        let batch = self.outbox.mark(marks);
        self.outbox.wait(batch)?;
        Ok(self.outbox.last_acked())
    }

    /// A part of the race begins, by the name that the recording has.
    ///
    /// # Errors
    /// As [`Ctx::mark`].
    pub fn phase(&self, name: &str) -> Result<()> {
        self.did(format!("phase {name}"));
        self.mark(vec![MarkText::Phase { name: name.into() }]).map(|_| ())
    }

    // ---- the disk

    fn ask(&self, what: DeviceAsk) -> Result<DeviceAnswer> {
        match self.outbox.ask(what)? {
            DeviceAnswer::Refused { message } => {
                Err(Error::Refused(format!("the disk refused: {message}")))
            }
            answer => Ok(answer),
        }
    }

    /// Holds requests back, until the stall is released or dropped.
    ///
    /// # Errors
    /// The disk refuses, or the host is gone.
    pub fn stall(self: &Arc<Ctx>, which: Which) -> Result<Stall> {
        let Which { op, range, nth, when } = which;
        match self.ask(DeviceAsk::Stall { op, range, nth, when })? {
            DeviceAnswer::Token { token } => {
                Ok(Stall { ctx: Arc::clone(self), token, released: false })
            }
            other => Err(Error::Refused(format!("the disk answered a stall with {other:?}"))),
        }
    }

    /// # Errors
    /// The host is gone.
    pub fn disk(&self) -> Result<DeviceStatus> {
        match self.ask(DeviceAsk::Status {})? {
            DeviceAnswer::Status(status) => Ok(status),
            other => Err(Error::Refused(format!("the disk answered with {other:?}"))),
        }
    }
}

/// The disks of which the guest's kernel waits for requests: `vdb waits for 0 reads and 1 writes`.
fn waited_for() -> Vec<String> {
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let told = disks.filter_map(|disk| {
        let in_flight = std::fs::read_to_string(disk.path().join("inflight")).ok()?;
        let mut counts = in_flight.split_whitespace().map(str::parse::<u64>);
        let (reads, writes) = (counts.next()?.ok()?, counts.next()?.ok()?);
        let name = disk.file_name();
        (reads + writes > 0).then(|| {
            format!("{} waits for {reads} reads and {writes} writes", name.to_string_lossy())
        })
    });
    told.collect()
}

fn panicked(thread: &str) -> Error {
    Error::Refused(format!("the thread {thread} panicked; the console has its words"))
}

/// Requests that are held back. Lets them go when dropped.
#[derive(Debug)]
pub struct Stall {
    ctx: Arc<Ctx>,
    token: u64,
    released: bool,
}

impl Stall {
    /// Waits until at least `n` requests are held: → are they? Not where nobody asked in time.
    ///
    /// # Errors
    /// The host is gone.
    pub fn holds(&self, n: u64, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            let held: BTreeMap<u64, u64> = self.ctx.disk()?.held.into_iter().collect();
            if held.get(&self.token).is_some_and(|held| *held >= n) {
                return Ok(true);
            }
            if Instant::now() > end || self.ctx.is_over() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets them go: → how many.
    ///
    /// # Errors
    /// The host is gone.
    pub fn release(mut self) -> Result<u64> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<u64> {
        if std::mem::replace(&mut self.released, true) {
            return Ok(0);
        }
        match self.ctx.ask(DeviceAsk::Release { token: self.token })? {
            DeviceAnswer::Released { requests } => {
                self.ctx.did(format!("the disk lets {requests} requests go"));
                Ok(requests)
            }
            other => Err(Error::Refused(format!("the disk answered a release with {other:?}"))),
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // The host lets everything go when it is gone itself.
        let _ = self.let_go();
    }
}

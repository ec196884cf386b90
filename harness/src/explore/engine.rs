//! The loop: walk, shard, verify once, confirm, shrink, tell.

use super::blame::Reported;
use super::schedule::{Item, Schedule};
use super::seen::Seen;
use super::worker::{Told, Worker, seeded};
use super::{
    Counts, Ended, ExploreError, Job, Position, Progress, Settings, Sink, Summary, Verifier,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tornblk_model::crash::walk::{Cursor, Walk};
use tornblk_model::crash::{Coverage, History, Source, StateName};
use tornblk_model::event::Seq;

/// Makes the verifier of worker thread `n`, on that thread.
pub type MakeVerifier<'a> =
    dyn Fn(usize) -> Result<Box<dyn Verifier + 'a>, ExploreError> + Sync + 'a;

/// How often a sink hears of progress, and gets the position.
const PROGRESS: Duration = Duration::from_secs(1);
const POSITION: Duration = Duration::from_secs(10);
/// Failures that are shrunk for each one that may be reported: others turn out to be one of those.
const SHRUNK_EACH: u64 = 10;

/// Goes through everything that the job asks for, until it is done, a limit is reached or `stop` is
/// set. Where there is a limit it is shared out among the crash points and strategies, and at each a
/// sample of its states is tried that the seed chooses; what points with few states leave goes to
/// the others.
/// Crash points after a power cut in the recording are not part of it: what they would start
/// from is a crash state, not the base image.
///
/// # Errors
/// The disk cannot have one of the profiles; or what verifier or sink failed with.
pub fn explore(
    job: &Job<'_>,
    make: &MakeVerifier<'_>,
    sink: &mut dyn Sink,
    stop: &AtomicBool,
) -> Result<Summary, ExploreError> {
    let began = Instant::now();
    for profile in &job.settings.profiles {
        profile.check(job.history.disk())?;
    }
    let ids = |block, source| job.ids.id(block, source);
    let shared = Shared::new(job, Walk::new(job.history, None, &ids), stop, began);
    job.ids.check()?;
    let mut outcome = Ok(());
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        let threads: Vec<_> = (0..job.settings.threads.max(1))
            .map(|n| {
                let (tell, shared) = (tell.clone(), &shared);
                scope.spawn(move || {
                    let _ends = EndsAll(shared);
                    let worked = Worker::new(shared, make, n, tell).and_then(Worker::work);
                    if worked.is_err() {
                        shared.failed.store(true, Ordering::Relaxed);
                    }
                    worked
                })
            })
            .collect();
        drop(tell);
        let mut teller = Teller::new(&shared);
        loop {
            let heard = match told.recv_timeout(Duration::from_millis(100)) {
                Ok(told) => teller.hear(sink, told),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = heard.and_then(|()| teller.tick(sink)) {
                shared.failed.store(true, Ordering::Relaxed);
                if outcome.is_ok() {
                    outcome = Err(error);
                }
            }
        }
        for thread in threads {
            // A panic goes on here.
            let worked = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if outcome.is_ok() {
                outcome = worked;
            }
        }
    });
    outcome?;
    let ended = shared.over().unwrap_or(Ended::Complete);
    let position = shared.position();
    sink.position(&position)?;
    let elapsed = shared.began.elapsed();
    let sums = shared.sums();
    Ok(Summary {
        // The last state may have been the last one allowed.
        ended: if shared.is_complete(&sums) { Ended::Complete } else { ended },
        counts: position.counts,
        failures: shared.reported().len() as u64,
        not_shrunk: sums.not_shrunk,
        coverage: sums.coverage.iter().map(|(p, cuts)| (p.clone(), cuts.covered())).collect(),
        elapsed,
        position,
    })
}

/// The names of all states that an exploration would try, without judging any; `f` says whether to
/// go on. Of faults, the names before they are broken.
///
/// # Errors
/// The disk cannot have one of the profiles; or what `f` failed with.
pub fn list(
    history: &History,
    settings: &Settings,
    mut f: impl FnMut(&StateName) -> Result<bool, ExploreError>,
) -> Result<(), ExploreError> {
    // Only names matter.
    let ids = |_: u64, _: Source| 0;
    let walk = Walk::new(history, None, &ids);
    for profile in &settings.profiles {
        let mut cursor = Cursor::new(&walk, profile)?;
        for after in points(&walk, settings) {
            cursor.go(after)?;
            for strategy in &settings.strategies {
                cursor.start(seeded(*strategy, settings.seed))?;
                while cursor.step()? {
                    let name = cursor.name()?;
                    if settings.shard.is_none_or(|shard| shard.has(&name)) && !f(&name)? {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Latest first.
fn points(walk: &Walk<'_>, settings: &Settings) -> Vec<Seq> {
    let mut points = walk.history().points(settings.every_event);
    points.retain(|after| walk.covers(*after));
    points.reverse();
    points
}

/// The others do not wait for a thread that panicked.
struct EndsAll<'s, 'j>(&'s Shared<'j>);

impl Drop for EndsAll<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// What the threads share.
pub(super) struct Shared<'j> {
    pub(super) job: &'j Job<'j>,
    pub(super) walk: Walk<'j>,
    /// Latest first.
    pub(super) points: Vec<Seq>,
    pub(super) schedule: Schedule,
    pub(super) seen: Seen,
    /// Told by the workers now and then.
    pub(super) sums: Mutex<Sums>,
    pub(super) failed: AtomicBool,
    began: Instant,
    stop: &'j AtomicBool,
    /// Contents that nobody had seen before, those before a `--resume` included.
    contents: AtomicU64,
    judged: AtomicU64,
    reported: Mutex<Vec<Reported>>,
    shrunk: AtomicU64,
    done_before: BTreeMap<String, BTreeMap<String, Vec<Seq>>>,
    out_of_states: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Sums {
    /// But for `judged`.
    pub(super) counts: Counts,
    pub(super) not_shrunk: u64,
    /// States of points that were gone through to the end, those before a `--resume` included.
    pub(super) whole: u64,
    pub(super) done: BTreeMap<String, BTreeMap<String, Vec<Seq>>>,
    pub(super) coverage: BTreeMap<String, Coverage>,
    pub(super) at: String,
}

impl<'j> Shared<'j> {
    fn new(job: &'j Job<'j>, walk: Walk<'j>, stop: &'j AtomicBool, began: Instant) -> Shared<'j> {
        let settings = job.settings;
        let points = points(&walk, settings);
        let schedule = Schedule::new(settings, points.len());
        let before = job.before.cloned().unwrap_or_default();
        let mut done_before = before.done.clone();
        for points in done_before.values_mut().flat_map(BTreeMap::values_mut) {
            points.sort_unstable();
        }
        let mut sums = Sums {
            counts: before.counts,
            whole: before.counts.states,
            done: before.done,
            ..Sums::default()
        };
        for (profile, writes) in &before.coverage {
            let coverage = sums.coverage.entry(profile.clone()).or_default();
            for cuts in writes {
                // Of another recording, or damaged: then the cuts count as missing.
                let _ = coverage.add(cuts);
            }
        }
        Shared {
            job,
            walk,
            points,
            schedule,
            seen: Seen::new(&before.judged),
            sums: Mutex::new(sums),
            failed: AtomicBool::new(false),
            began,
            stop,
            contents: AtomicU64::new(before.counts.unique),
            judged: AtomicU64::new(before.counts.judged),
            reported: Mutex::default(),
            shrunk: AtomicU64::new(0),
            done_before,
            out_of_states: AtomicBool::new(false),
        }
    }

    /// What this thread does next.
    pub(super) fn take(&self, thread: usize) -> Option<Item> {
        let left = || {
            let limit = self.job.settings.states.unwrap_or(u64::MAX);
            let left = limit.saturating_sub(self.contents.load(Ordering::Relaxed));
            if left == 0 {
                self.out_of_states.store(true, Ordering::Relaxed);
            }
            left
        };
        self.schedule.take(thread, left, || self.over().is_some())
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reported(&self) -> MutexGuard<'_, Vec<Reported>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn done_before(&self, profile: &str) -> Option<&BTreeMap<String, Vec<Seq>>> {
        self.done_before.get(profile)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// Why no more states are to be judged.
    pub(super) fn over(&self) -> Option<Ended> {
        if self.is_stopped() {
            Some(Ended::Stopped)
        } else if self.out_of_states.load(Ordering::Relaxed) {
            Some(Ended::States)
        } else if self.job.settings.time.is_some_and(|time| self.began.elapsed() >= time) {
            Some(Ended::Time)
        } else {
            None
        }
    }

    /// Takes one from the contents that may be judged; a `new` one is one of those that are limited.
    pub(super) fn may_judge(&self, new: bool) -> bool {
        if new {
            let before = self.contents.fetch_add(1, Ordering::Relaxed);
            if self.job.settings.states.is_some_and(|limit| before >= limit) {
                self.contents.fetch_sub(1, Ordering::Relaxed);
                self.out_of_states.store(true, Ordering::Relaxed);
                return false;
            }
        }
        self.judged.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes one from the failures that may be shrunk.
    pub(super) fn may_shrink(&self) -> bool {
        let limit = self.job.settings.failures;
        (self.reported().len() as u64) < limit
            && self.shrunk.fetch_add(1, Ordering::Relaxed) < limit.saturating_mul(SHRUNK_EACH)
    }

    fn is_complete(&self, sums: &Sums) -> bool {
        let settings = self.job.settings;
        settings.profiles.iter().all(|profile| {
            settings.strategies.iter().all(|strategy| {
                let done = sums.done.get(&profile.to_string());
                let done = done.and_then(|done| done.get(&strategy.to_string()));
                done.map_or(0, Vec::len) >= self.points.len()
            })
        })
    }

    fn counts(&self) -> Counts {
        Counts { judged: self.judged.load(Ordering::Relaxed), ..self.sums().counts }
    }

    fn position(&self) -> Position {
        // First what was done, then what was judged for it: never the other way round.
        let (counts, whole, done, coverage) = {
            let sums = self.sums();
            let coverage = sums.coverage.iter().map(|(p, cuts)| (p.clone(), cuts.writes()));
            (sums.counts, sums.whole, sums.done.clone(), coverage.collect())
        };
        let counts = Counts { judged: self.judged.load(Ordering::Relaxed), ..counts };
        let again = counts.states.saturating_sub(whole);
        Position { done, judged: self.seen.all(), counts, again, coverage }
    }
}

/// Tells the sink.
struct Teller<'s, 'j> {
    shared: &'s Shared<'j>,
    judged_before: u64,
    progress: Instant,
    position: Instant,
    /// How long keeping the position took.
    took: Duration,
}

impl<'s, 'j> Teller<'s, 'j> {
    fn new(shared: &'s Shared<'j>) -> Self {
        let now = Instant::now();
        let judged_before = shared.job.before.map_or(0, |before| before.counts.judged);
        Teller { shared, judged_before, progress: now, position: now, took: Duration::ZERO }
    }

    fn hear(&mut self, sink: &mut dyn Sink, told: Told) -> Result<(), ExploreError> {
        match told {
            Told::Failure(failure) => return sink.failure(&failure),
            Told::Again(number, found) => sink.again(number, &found),
            Told::Unsure(state, why) => sink.unsure(&state, &why),
        }
        Ok(())
    }

    fn tick(&mut self, sink: &mut dyn Sink) -> Result<(), ExploreError> {
        if self.progress.elapsed() >= PROGRESS {
            self.progress = Instant::now();
            sink.progress(&self.so_far());
        }
        // Millions of contents take a while to write down: most of the time goes into exploring.
        if self.position.elapsed() >= POSITION.max(10 * self.took) {
            let began = Instant::now();
            sink.position(&self.shared.position())?;
            self.position = Instant::now();
            self.took = began.elapsed();
        }
        Ok(())
    }

    fn so_far(&self) -> Progress {
        let shared = self.shared;
        let counts = shared.counts();
        let elapsed = shared.began.elapsed();
        let all = shared.points.len() * shared.job.settings.profiles.len();
        let share = (shared.schedule.done() as f64 / all.max(1) as f64).min(1.0);
        let settings = shared.job.settings;
        let judged = counts.judged - self.judged_before;
        let rate = judged as f64 / elapsed.as_secs_f64().max(1e-9);
        let of_all = (share > 0.0).then(|| elapsed.mul_f64((1.0 - share) / share));
        let of_time = settings.time.map(|time| time.saturating_sub(elapsed));
        // A limit that is far away says nothing of how many there are.
        let is_near = |limit: &u64| judged > 0 && counts.unique * 50 >= *limit;
        let of_states = settings.states.filter(is_near).and_then(|limit| {
            let seconds = limit.saturating_sub(counts.unique) as f64 / rate;
            Duration::try_from_secs_f64(seconds).ok()
        });
        let left = [of_all, of_time, of_states].into_iter().flatten().min();
        Progress { counts, rate, elapsed, left, share, at: shared.sums().at.clone() }
    }
}

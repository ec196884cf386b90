//! One thread of an exploration: walks over its share of the crash points, and judges.

use super::blame::{self, Place, Reported};
use super::engine::{Item, MakeVerifier, Share, Shared, Visit};
use super::seen::Known;
use super::{ExploreError, Failure, Point, StateText, Verdict, Verifier, View};
use crate::oracle::Finding;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tornblk_model::crash::walk::Cursor;
use tornblk_model::crash::{Content, ModelError, Outcome, Profile, Source, StateName, Strategy};
use tornblk_model::event::Seq;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// How often a worker tells the others how many states it went through, and where it is done.
const COUNTS: Duration = Duration::from_millis(500);
const FLUSH: Duration = Duration::from_secs(10);

/// What a cursor shows.
pub(super) struct Shown<'c, 'w, 'a>(pub(super) &'c Cursor<'w, 'a>);

impl View for Shown<'_, '_, '_> {
    fn of(&self, block: u64) -> Source {
        self.0.of(block)
    }

    fn id(&self, block: u64) -> u64 {
        self.0.id(block)
    }

    fn changed(&self) -> Option<&[u64]> {
        self.0.changed()
    }

    fn delta(&self) -> Vec<(u64, Source)> {
        self.0.delta()
    }

    fn fingerprint(&self) -> u128 {
        self.0.fingerprint()
    }

    fn name(&self) -> Result<StateName, ModelError> {
        self.0.name()
    }

    fn content(&self) -> Result<Content, ModelError> {
        Ok(self.0.content())
    }
}

/// What the thread that called hears of.
pub(super) enum Told {
    Failure(Box<Failure>),
    Again(u64, StateText),
    Unsure(StateText, String),
}

/// How a visit of a crash point ended.
enum Visited {
    Whole,
    /// It used up its share after so many states.
    UpTo(u64),
    /// No more states are to be judged.
    Over,
}

/// Counts that were not told yet.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    states: u64,
    unique: u64,
    failed: u64,
    unsure: u64,
    not_shrunk: u64,
}

pub(super) struct Worker<'s, 'j, 'v> {
    shared: &'s Shared<'j>,
    verifier: Box<dyn Verifier + 'v>,
    tell: Sender<Told>,
    own: Own,
    /// Strategies that are done with, by profile: not told yet.
    done: Vec<(String, String, Seq)>,
    points: u64,
    flushed: Instant,
    counted: Instant,
    /// States since the clock was looked at.
    unclocked: u32,
}

impl<'s, 'j, 'v> Worker<'s, 'j, 'v> {
    pub(super) fn new(
        shared: &'s Shared<'j>,
        make: &MakeVerifier<'v>,
        n: usize,
        tell: Sender<Told>,
    ) -> Result<Self, ExploreError> {
        Ok(Worker {
            shared,
            verifier: make(n)?,
            tell,
            own: Own::default(),
            done: Vec::new(),
            points: 0,
            flushed: Instant::now(),
            counted: Instant::now(),
            unclocked: 0,
        })
    }

    /// Until there is nothing left to do.
    pub(super) fn work(mut self) -> Result<(), ExploreError> {
        let shared = self.shared;
        let mut standing: Option<(usize, Cursor<'_, '_>)> = None;
        while shared.over().is_none() {
            let Some(Item { profile, visits }) = shared.take() else { break };
            let mut cursor = match standing.take() {
                Some((same, cursor)) if same == profile => cursor,
                other => {
                    if let Some((_, cursor)) = other {
                        self.flush(&cursor);
                    }
                    Cursor::new(&shared.walk, &shared.job.settings.profiles[profile])?
                }
            };
            for visit in visits {
                let ended = self.point(&mut cursor, visit);
                if self.flushed.elapsed() >= FLUSH {
                    self.flush(&cursor);
                } else if self.counted.elapsed() >= COUNTS {
                    self.tell_counts(&cursor);
                }
                match ended {
                    Ok(Visited::Whole) => shared.visited(profile, visit.point, None),
                    Ok(Visited::UpTo(walked)) => {
                        shared.visited(profile, visit.point, Some(walked));
                    }
                    Ok(Visited::Over) => {
                        self.flush(&cursor);
                        return Ok(());
                    }
                    Err(error) => {
                        self.flush(&cursor);
                        return Err(error);
                    }
                }
            }
            standing = Some((profile, cursor));
        }
        if let Some((_, cursor)) = standing {
            self.flush(&cursor);
        }
        Ok(())
    }

    fn tell_counts(&mut self, cursor: &Cursor<'_, '_>) {
        self.counted = Instant::now();
        let mut sums = self.shared.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let Own { states, unique, failed, unsure, not_shrunk } = std::mem::take(&mut self.own);
        sums.counts.states += states;
        sums.counts.unique += unique;
        sums.counts.failed += failed;
        sums.counts.unsure += unsure;
        sums.counts.points += std::mem::take(&mut self.points);
        sums.not_shrunk += not_shrunk;
        if let Some(after) = cursor.after() {
            sums.at = format!("{}/p{after}", cursor.profile());
        }
    }

    /// Tells the others how far it is.
    fn flush(&mut self, cursor: &Cursor<'_, '_>) {
        self.tell_counts(cursor);
        self.flushed = Instant::now();
        let mut sums = self.shared.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (profile, strategy, after) in self.done.drain(..) {
            sums.done.entry(profile).or_default().entry(strategy).or_default().push(after);
        }
        sums.coverage.entry(cursor.profile().to_string()).or_default().merge(&cursor.coverage());
    }

    fn point(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        visit: Visit,
    ) -> Result<Visited, ExploreError> {
        let shared = self.shared;
        let settings = shared.job.settings;
        let after = shared.points[visit.point];
        let name = cursor.profile().to_string();
        let before = shared.done_before(&name);
        let left: Vec<Strategy> = settings
            .strategies
            .iter()
            .filter(|strategy| !before.is_some_and(|done| is_done(done, **strategy, after)))
            .copied()
            .collect();
        if left.is_empty() {
            return Ok(Visited::Whole);
        }
        let share = if shared.is_limited() { Some(shared.share()) } else { None };
        if share.is_some_and(|share| share.states == 0) {
            return Ok(Visited::UpTo(visit.walked));
        }
        cursor.go(after)?;
        let place = Place { after, promises: shared.job.promises.at(after) };
        let profile = cursor.profile();
        self.verifier.point(&Point::new(profile, after, place.promises, &Shown(cursor)))?;
        cursor.shown();
        // A sample begins anywhere, so that it is not the same strategy everywhere that is tried.
        let first = match share {
            Some(_) => self.anywhere(cursor, &left, after)?,
            None => 0,
        };
        let (mut walked, mut judged) = (0, 0);
        for lap in [0, 1] {
            let mut number = 0;
            if lap == 1 && first == 0 {
                break;
            }
            for strategy in &left {
                cursor.start(seeded(*strategy, settings.seed))?;
                while cursor.step()? {
                    if !self.is_mine(cursor)? {
                        continue;
                    }
                    number += 1;
                    if (lap == 0) != (first < number) {
                        continue;
                    }
                    walked += 1;
                    if walked <= visit.walked {
                        continue;
                    }
                    if self.is_over() {
                        return Ok(Visited::Over);
                    }
                    let used_up = |share: Share| {
                        judged >= share.states
                            || judged > 0 && share.until.is_some_and(|t| t <= Instant::now())
                    };
                    if share.is_some_and(used_up) {
                        return Ok(Visited::UpTo(walked - 1));
                    }
                    let legal = settings.faults.is_empty();
                    let words = if legal {
                        Vec::new()
                    } else {
                        cursor.damage(&settings.faults, settings.seed)?
                    };
                    let Some(outcome) = self.state(cursor, place, words)? else {
                        return Ok(Visited::Over);
                    };
                    judged += u64::from(outcome == Outcome::Built);
                    if self.unclocked.is_multiple_of(8) && self.counted.elapsed() >= COUNTS {
                        self.tell_counts(cursor);
                    }
                    if legal {
                        cursor.note(outcome);
                    }
                }
            }
        }
        let done = left.iter().map(|strategy| (name.clone(), strategy.to_string(), after));
        self.done.extend(done);
        self.points += 1;
        Ok(Visited::Whole)
    }

    /// Is the state that is shown one of this shard?
    fn is_mine(&self, cursor: &Cursor<'_, '_>) -> Result<bool, ExploreError> {
        Ok(match self.shared.job.settings.shard {
            Some(shard) => shard.has(&cursor.name()?),
            None => true,
        })
    }

    /// The number of one of the states at this point, the same for the same seed.
    fn anywhere(
        &self,
        cursor: &mut Cursor<'_, '_>,
        strategies: &[Strategy],
        after: Seq,
    ) -> Result<u64, ExploreError> {
        let seed = self.shared.job.settings.seed;
        let mut states = 0;
        for strategy in strategies {
            cursor.start(seeded(*strategy, seed))?;
            while cursor.step()? {
                states += u64::from(self.is_mine(cursor)?);
            }
        }
        Ok(xxh3_64_with_seed(&after.0.to_le_bytes(), seed) % states.max(1))
    }

    /// Looks at the clock now and then.
    fn is_over(&mut self) -> bool {
        self.unclocked += 1;
        if self.unclocked < 32 {
            return self.shared.over_now();
        }
        self.unclocked = 0;
        self.shared.over().is_some()
    }

    /// `None`: no more states are to be judged.
    fn state(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        place: Place,
        words: Vec<String>,
    ) -> Result<Option<Outcome>, ExploreError> {
        let shared = self.shared;
        let mut key = cursor.fingerprint();
        if self.verifier.depends_on_profile() {
            key = key.wrapping_add(salt(cursor));
        }
        if !self.verifier.is_monotone() {
            // Nor is what was asked for since then: see `UnitOracle::is_monotone`.
            key = key.wrapping_add(xxh3_128(&cursor.after().unwrap_or_default().0.to_le_bytes()));
        }
        let known = shared.seen.ask(key, place.promises);
        if known == Known::Judged {
            self.own.states += 1;
            return Ok(Some(Outcome::Equal));
        }
        if !shared.may_judge() {
            shared.seen.gave_up(key, known);
            return Ok(None);
        }
        self.own.states += 1;
        self.own.unique += u64::from(known == Known::New);
        match self.judge(cursor, place, words) {
            Ok(()) => {
                shared.seen.judged(key, place.promises);
                Ok(Some(Outcome::Built))
            }
            Err(error) => {
                shared.seen.gave_up(key, known);
                Err(error)
            }
        }
    }

    fn judge(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        place: Place,
        words: Vec<String>,
    ) -> Result<(), ExploreError> {
        let profile = cursor.profile();
        let first = self.verifier.verify(&place.state(profile, &Shown(cursor)))?;
        cursor.shown();
        match first {
            Verdict::Passed => return Ok(()),
            Verdict::Unsure(why) => return self.unsure(cursor, why),
            Verdict::Failed(_) => {}
        }
        let second = self.verifier.confirm(&place.state(profile, &Shown(cursor)))?;
        cursor.shown();
        match second {
            Verdict::Failed(findings) => {
                self.own.failed += 1;
                self.failed(cursor, place, findings, words)
            }
            Verdict::Passed => self.unsure(cursor, "it failed once, and then passed".into()),
            Verdict::Unsure(why) => {
                self.unsure(cursor, format!("it failed, and could not be judged again: {why}"))
            }
        }
    }

    fn unsure(&mut self, cursor: &Cursor<'_, '_>, why: String) -> Result<(), ExploreError> {
        self.own.unsure += 1;
        self.tell(Told::Unsure(cursor.name()?.into(), why));
        Ok(())
    }

    fn tell(&self, told: Told) {
        // Nobody listens any more where the exploration ends with an error.
        let _ = self.tell.send(told);
    }

    fn failed(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        place: Place,
        findings: Vec<Finding>,
        words: Vec<String>,
    ) -> Result<(), ExploreError> {
        let shared = self.shared;
        let profile = cursor.profile().to_string();
        let found = cursor.name()?;
        let again = {
            let reported = shared.reported();
            let mut all = reported.iter();
            all.find(|one| one.is_in(&profile, cursor, &findings)).map(|one| one.number)
        };
        if let Some(number) = again {
            self.tell(Told::Again(number, found.into()));
            return Ok(());
        }
        if !shared.may_shrink() {
            self.own.not_shrunk += 1;
            return Ok(());
        }
        let stop = || shared.is_stopped();
        let job = shared.job;
        let Some(blame) = blame::shrink(job, cursor, place, findings, &mut *self.verifier, &stop)?
        else {
            return Ok(());
        };
        let number = {
            let mut reported = shared.reported();
            let known = reported.iter().find(|one| one.is(&profile, &blame)).map(|one| one.number);
            if let Some(number) = known {
                drop(reported);
                self.tell(Told::Again(number, found.into()));
                return Ok(());
            }
            let number = reported.len() as u64 + 1;
            reported.push(Reported::new(number, &profile, &blame));
            number
        };
        let failure = blame::report(job, cursor, place, number, found, blame, words)?;
        self.tell(Told::Failure(Box::new(failure)));
        Ok(())
    }
}

fn is_done(done: &BTreeMap<String, Vec<Seq>>, strategy: Strategy, after: Seq) -> bool {
    // Few: one for each strategy; sorted when the exploration began.
    done.get(&strategy.to_string()).is_some_and(|points| points.binary_search(&after).is_ok())
}

/// The settings' seed is that of every strategy.
pub(super) fn seeded(strategy: Strategy, seed: u64) -> Strategy {
    match strategy {
        Strategy::Random { count, .. } => Strategy::Random { seed, count },
        other => other,
    }
}

/// Keeps the contents of two profiles apart.
fn salt(cursor: &Cursor<'_, '_>) -> u128 {
    salt_of(cursor.profile(), cursor.walk().history())
}

fn salt_of(profile: &Profile, history: &tornblk_model::crash::History) -> u128 {
    xxh3_128(profile.on(history.disk()).to_string().as_bytes())
}

//! One thread of an exploration: walks over its share of the crash points, and judges.

use super::blame::{self, Place, Reported};
use super::engine::{MakeVerifier, Shared};
use super::schedule::{Budget, Item, Visit, hash};
use super::seen::{AsIs, Known, words};
use super::{ExploreError, Failure, Point, StateText, Verdict, Verifier, View};
use crate::oracle::Finding;
use std::collections::{BTreeMap, HashSet};
use std::hash::BuildHasherDefault;
use std::ops::ControlFlow;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tornblk_model::crash::walk::Cursor;
use tornblk_model::crash::{Content, ModelError, Outcome, Profile, Source, StateName, Strategy};
use tornblk_model::event::Seq;
use xxhash_rust::xxh3::xxh3_128;

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

/// The strategy has no more states here: a value of [`Visit::walked`].
const THROUGH: u64 = u64::MAX;

/// What may be tried of an item.
struct Purse {
    budget: Option<Budget>,
    /// What was tried for it, where that is what counts.
    tried: HashSet<[u64; 2], BuildHasherDefault<AsIs>>,
}

impl Purse {
    fn new(budget: Option<Budget>) -> Purse {
        Purse { budget, tried: HashSet::default() }
    }

    /// The share of the next of so many visits.
    fn share(&self, visits: usize, visit: &Visit, seed: u64) -> u64 {
        self.budget.map_or(u64::MAX, |budget| budget.share(visits, visit, seed))
    }

    /// Is there anything left?
    fn is_empty(&self) -> bool {
        self.budget.is_none_or(|budget| budget.left == 0)
    }

    /// What this content costs.
    fn pay(&mut self, key: u128, outcome: Outcome) -> u64 {
        let Some(budget) = &mut self.budget else { return 0 };
        let counts = match budget.alone {
            true => outcome == Outcome::Built,
            false => self.tried.insert(words(key)),
        };
        budget.left = budget.left.saturating_sub(u64::from(counts));
        u64::from(counts)
    }
}

/// No more states are to be judged.
struct Over;

type Flow<T> = Result<ControlFlow<Over, T>, ExploreError>;

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
    /// Which of the threads it is.
    number: usize,
    verifier: Box<dyn Verifier + 'v>,
    tell: Sender<Told>,
    own: Own,
    /// Strategies that are done with, by profile: not told yet.
    done: Vec<(String, String, Seq)>,
    /// States of the points that they make whole: told with them, so that a resume counts neither
    /// twice.
    whole: u64,
    points: u64,
    flushed: Instant,
    counted: Instant,
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
            number: n,
            verifier: make(n)?,
            tell,
            own: Own::default(),
            done: Vec::new(),
            whole: 0,
            points: 0,
            flushed: Instant::now(),
            counted: Instant::now(),
        })
    }

    /// Until there is nothing left to do.
    pub(super) fn work(mut self) -> Result<(), ExploreError> {
        let shared = self.shared;
        let mut standing: Option<(usize, Cursor<'_, '_>)> = None;
        while let Some(item) = shared.take(self.number) {
            let profile = item.profile;
            let mut cursor = match standing.take() {
                Some((same, cursor)) if same == profile => cursor,
                other => {
                    if let Some((_, cursor)) = other {
                        self.flush(&cursor);
                    }
                    Cursor::new(&shared.walk, &shared.job.settings.profiles[profile])?
                }
            };
            let gone = self.item(&mut cursor, item);
            if !matches!(gone, Ok(ControlFlow::Continue(()))) {
                self.flush(&cursor);
                return gone.map(|_| ());
            }
            standing = Some((profile, cursor));
        }
        if let Some((_, cursor)) = standing {
            self.flush(&cursor);
        }
        Ok(())
    }

    /// Goes there and back again through the points of an item, until its budget is spent.
    fn item(&mut self, cursor: &mut Cursor<'_, '_>, item: Item) -> Flow<()> {
        let seed = self.shared.job.settings.seed;
        let mut purse = Purse::new(item.budget);
        let (mut visits, mut done) = (item.visits, 0);
        loop {
            let mut cut = Vec::new();
            let count = visits.len();
            for (i, mut visit) in visits.into_iter().enumerate() {
                let share = purse.share(count - i, &visit, seed);
                if share == 0 {
                    cut.push(visit);
                    continue;
                }
                let gone = self.point(cursor, &mut visit, &mut purse, share)?;
                if self.flushed.elapsed() >= FLUSH {
                    self.flush(cursor);
                } else if self.counted.elapsed() >= COUNTS {
                    self.tell_counts(cursor);
                }
                match gone {
                    ControlFlow::Continue(true) => done += 1,
                    ControlFlow::Continue(false) => cut.push(visit),
                    ControlFlow::Break(over) => return Ok(ControlFlow::Break(over)),
                }
            }
            cut.reverse();
            visits = cut;
            if visits.is_empty() || purse.is_empty() {
                break;
            }
        }
        self.shared.schedule.give_back(done, visits);
        Ok(ControlFlow::Continue(()))
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
        sums.whole += std::mem::take(&mut self.whole);
        for (profile, strategy, after) in self.done.drain(..) {
            sums.done.entry(profile).or_default().entry(strategy).or_default().push(after);
        }
        sums.coverage.entry(cursor.profile().to_string()).or_default().merge(&cursor.coverage());
    }

    /// Tries so many contents of a point; says whether it was gone through.
    fn point(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        visit: &mut Visit,
        purse: &mut Purse,
        mut share: u64,
    ) -> Flow<bool> {
        let shared = self.shared;
        let settings = shared.job.settings;
        let after = shared.points[visit.point as usize];
        let name = cursor.profile().to_string();
        let before = shared.done_before(&name);
        let strategies = &settings.strategies;
        let left: Vec<usize> = (0..strategies.len())
            .filter(|i| !before.is_some_and(|done| is_done(done, strategies[*i], after)))
            .collect();
        if left.is_empty() {
            return Ok(ControlFlow::Continue(true));
        }
        cursor.go(after)?;
        let place = Place { after, promises: shared.job.promises.at(after) };
        let profile = cursor.profile();
        self.verifier.point(&Point::new(profile, after, place.promises, &Shown(cursor)))?;
        cursor.shown();
        if visit.walked.is_empty() {
            visit.walked = vec![0; strategies.len()].into();
        }
        let mut open = left.clone();
        // Not the same strategy first everywhere, where not all of them are to be had.
        if let Some(budget) = purse.budget {
            let first = hash(settings.seed, visit, !u64::from(budget.round)) as usize;
            open.rotate_left(first % left.len());
        }
        open.retain(|i| visit.walked[*i] != THROUGH);
        while share > 0 && !open.is_empty() {
            let count = open.len();
            for (n, i) in open.iter().enumerate() {
                let own =
                    if share == u64::MAX { share } else { share.div_ceil((count - n) as u64) };
                match self.strategy(cursor, visit, *i, place, purse, own)? {
                    // A choice of `exhaustive` that has several states is gone through to the end.
                    ControlFlow::Continue(spent) => share = share.saturating_sub(spent),
                    ControlFlow::Break(over) => return Ok(ControlFlow::Break(over)),
                }
            }
            open.retain(|i| visit.walked[*i] != THROUGH);
        }
        if !open.is_empty() {
            return Ok(ControlFlow::Continue(false));
        }
        let done = left.iter().map(|i| (name.clone(), strategies[*i].to_string(), after));
        self.done.extend(done);
        self.points += 1;
        self.whole += visit.states;
        Ok(ControlFlow::Continue(true))
    }

    /// Tries so many contents of a strategy at this point, and says how many. What is limited begins
    /// anywhere, and comes round.
    fn strategy(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        visit: &mut Visit,
        number: usize,
        place: Place,
        purse: &mut Purse,
        share: u64,
    ) -> Flow<u64> {
        let settings = self.shared.job.settings;
        let strategy = seeded(settings.strategies[number], settings.seed);
        let mut spent = 0;
        if share == 0 {
            return Ok(ControlFlow::Continue(0));
        }
        loop {
            cursor.start(strategy)?;
            let positions = cursor.positions();
            let walked = visit.walked[number];
            if walked >= positions {
                visit.walked[number] = THROUGH;
                return Ok(ControlFlow::Continue(spent));
            }
            let first = match purse.budget {
                Some(_) => hash(settings.seed, visit, number as u64) % positions,
                None => 0,
            };
            // First up to the end, then from the beginning.
            let (from, to) = match first + walked {
                from if from < positions => (from, positions),
                from => (from - positions, first),
            };
            cursor.seek(from);
            while cursor.step()? && cursor.position() < to {
                if self.is_mine(cursor)? {
                    match self.one(cursor, place, purse)? {
                        ControlFlow::Continue(cost) => {
                            spent += cost;
                            visit.states += 1;
                        }
                        ControlFlow::Break(over) => return Ok(ControlFlow::Break(over)),
                    }
                }
                if !cursor.has_more_here() {
                    visit.walked[number] = walked + (cursor.position() + 1 - from);
                    if spent >= share {
                        return Ok(ControlFlow::Continue(spent));
                    }
                }
            }
            visit.walked[number] = walked + (to - from);
        }
    }

    /// The state that is shown; what it cost.
    fn one(&mut self, cursor: &mut Cursor<'_, '_>, place: Place, purse: &mut Purse) -> Flow<u64> {
        if self.shared.over().is_some() {
            return Ok(ControlFlow::Break(Over));
        }
        let settings = self.shared.job.settings;
        let legal = settings.faults.is_empty();
        let words = match legal {
            true => Vec::new(),
            false => cursor.damage(&settings.faults, settings.seed)?,
        };
        let key = self.key(cursor);
        let Some(outcome) = self.state(cursor, key, place, words)? else {
            return Ok(ControlFlow::Break(Over));
        };
        if self.counted.elapsed() >= COUNTS {
            self.tell_counts(cursor);
        }
        if legal {
            cursor.note(outcome);
        }
        Ok(ControlFlow::Continue(purse.pay(key, outcome)))
    }

    /// Is the state that is shown one of this shard?
    fn is_mine(&self, cursor: &Cursor<'_, '_>) -> Result<bool, ExploreError> {
        Ok(match self.shared.job.settings.shard {
            Some(shard) => shard.has(&cursor.name()?),
            None => true,
        })
    }

    /// What a state is judged once by.
    fn key(&self, cursor: &Cursor<'_, '_>) -> u128 {
        let mut key = cursor.fingerprint();
        if self.verifier.depends_on_profile() {
            key = key.wrapping_add(salt(cursor));
        }
        if self.verifier.depends_on_promises() {
            let promises = self.shared.job.promises.at(cursor.after().unwrap_or_default());
            key = key.wrapping_add(xxh3_128(&promises.to_le_bytes()));
        }
        if !self.verifier.is_monotone() {
            // Nor is what was asked for since then: see `UnitOracle::is_monotone`.
            key = key.wrapping_add(xxh3_128(&cursor.after().unwrap_or_default().0.to_le_bytes()));
        }
        key
    }

    /// `None`: no more states are to be judged.
    fn state(
        &mut self,
        cursor: &mut Cursor<'_, '_>,
        key: u128,
        place: Place,
        words: Vec<String>,
    ) -> Result<Option<Outcome>, ExploreError> {
        let shared = self.shared;
        let known = shared.seen.ask(key, place.promises);
        if known == Known::Judged {
            self.own.states += 1;
            return Ok(Some(Outcome::Equal));
        }
        if !shared.may_judge(known == Known::New) {
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
        let (units, first) = blame::unexplained(&shared.reported(), &profile, cursor, &findings);
        if let Some(number) = first.filter(|_| units.is_empty()) {
            self.tell(Told::Again(number, found.into()));
            return Ok(());
        }
        if !shared.may_shrink() {
            self.own.not_shrunk += 1;
            return Ok(());
        }
        let stop = || shared.is_stopped();
        let job = shared.job;
        let verifier = &mut *self.verifier;
        let Some(blame) = blame::shrink(job, cursor, place, findings, &units, verifier, &stop)?
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

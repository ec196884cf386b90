//! One exploration: profile after profile through the engine, everything kept in its folder as it
//! is found, so that it can go on after any end.

use super::bundle::{self, BundleError, EXTENSION, Meta};
use super::means::Means;
use super::session::{Content, Kept, ProfileState, Session};
use super::{
    Counts, Ended, ExploreError, Failure, Job, Judged, Opened, PageUnits, Position, Progress,
    RecordingIds, Settings, Sink, StateText, explore,
};
use crate::oracle::Finding;
use crate::run::RunError;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tornblk_model::crash::{Fault, Profile, StateName};
use tornblk_model::event::Seq;

/// States that could not be judged, of which the reason is kept.
const UNSURE: usize = 20;

/// Told while it works.
pub trait Watch {
    /// Where it is; the profile is number `n` (from 1) of `of`.
    fn progress(&mut self, _profile: &str, _n: usize, _of: usize, _at: &Progress) {}
    fn failure(&mut self, _kept: &Kept) {}
}

/// Watches nothing.
impl Watch for () {}

/// What is explored, by whom, and where it is kept.
#[derive(Clone, Copy)]
pub struct Drive<'a> {
    pub opened: &'a Opened,
    pub means: &'a dyn Means,
    pub profiles: &'a [Profile],
    /// Without profiles; `states` and `time` are of all of them together.
    pub settings: &'a Settings,
    /// An existing folder.
    pub dir: &'a Path,
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Drive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Drive<'_> {
    /// Goes on with `session`, whose contents judged so far are `judged`.
    ///
    /// # Errors
    /// What the engine failed with; the session holds what there was until then.
    pub fn run(
        &self,
        session: &mut Session,
        judged: Vec<Content>,
        watch: &mut dyn Watch,
    ) -> Result<(), ExploreError> {
        let began = Instant::now();
        let seconds = session.seconds;
        session.ended = None;
        session.pages = self.means.pages().map(PageUnits::counts);
        session.save(self.dir, Some(&judged))?;
        let trust = self.opened.trust();
        let reader = self.opened.reader.clone();
        let ids = RecordingIds::new(reader, self.opened.base.as_deref(), trust)?;
        let mut judged = judged;
        judged.sort_unstable();
        let mut ended = Ended::Complete;
        for (i, profile) in self.profiles.iter().enumerate() {
            if session.profiles.get(i).is_some_and(|p| p.complete) {
                continue;
            }
            if self.stop.load(Ordering::Relaxed) {
                ended = Ended::Stopped;
                break;
            }
            if let Some(state) = session.profiles.get_mut(i) {
                let again = std::mem::take(&mut state.again);
                state.counts.states = state.counts.states.saturating_sub(again);
            }
            // The engine counts the points of one profile.
            let before = Counts { points: 0, ..all(session) };
            let left = self.profiles.len() - i;
            let settings = Settings {
                profiles: vec![profile.clone()],
                states: self.settings.states.map(|n| {
                    let share = n.saturating_sub(before.unique).div_ceil(left as u64);
                    before.unique + share
                }),
                time: self.settings.time.map(|time| {
                    time.saturating_sub(began.elapsed()) / u32::try_from(left).unwrap_or(u32::MAX)
                }),
                ..self.settings.clone()
            };
            let position = session.position(judged.iter().map(|c| c.judged).collect(), before);
            let job = Job {
                history: &self.opened.history,
                ids: &ids,
                promises: self.means.promises(),
                explain: self.means.explain(),
                settings: &settings,
                before: Some(&position),
            };
            let own = session.profiles.get(i).map(|p| p.counts).unwrap_or_default();
            let earlier = seconds + began.elapsed().as_secs_f64();
            let mut keeper = Keeper {
                drive: self,
                known: &judged,
                session: &mut *session,
                watch: &mut *watch,
                profile: i,
                before,
                own,
                began: Instant::now(),
                earlier,
                numbers: HashMap::new(),
            };
            let judging = self.means.on(profile)?;
            let make = |thread: usize| judging.verifier(thread);
            let summary = match explore(&job, &make, &mut keeper, self.stop) {
                Ok(summary) => summary,
                // A guest was waited for: what the last position said is kept.
                Err(error) if is_interrupted(&error) => {
                    session.ended = Some(Ended::Stopped);
                    return session.save(self.dir, None);
                }
                Err(error) => return Err(error),
            };
            keeper.take(&summary.position);
            let contents = keeper.contents(&summary.position);
            session.seconds = seconds + began.elapsed().as_secs_f64();
            if let Some(state) = session.profiles.get_mut(i) {
                state.complete = summary.ended == Ended::Complete;
                state.not_shrunk += summary.not_shrunk;
            }
            judged = contents;
            match summary.ended {
                Ended::Complete => {}
                // What one profile leaves goes to those after it.
                other => ended = other,
            }
            if ended == Ended::Stopped {
                break;
            }
        }
        session.ended = Some(ended);
        session.seconds = seconds + began.elapsed().as_secs_f64();
        session.save(self.dir, Some(&judged))
    }

    fn pack(&self, failure: &Failure, number: usize) -> Option<String> {
        let name = format!("failure-{number:03}.{EXTENSION}");
        let Failure { state, profile, findings, .. } = failure;
        let state = StateName::from(state);
        let packed = keep(
            self.opened,
            self.means,
            &self.dir.join(&name),
            (state, profile),
            findings,
            &self.settings.faults,
        );
        match packed {
            Ok(()) => Some(name),
            Err(error) => {
                log::error!("no bundle can be made of {}: {error}", failure.state);
                None
            }
        }
    }
}

/// Makes a bundle at `path` of a state (and its profile) in which these findings are, for `means` to judge again.
///
/// # Errors
/// As of [`bundle::pack`].
pub fn keep(
    opened: &Opened,
    means: &dyn Means,
    path: &Path,
    (state, profile): (StateName, &str),
    findings: &[Finding],
    faults: &[Fault],
) -> Result<(), BundleError> {
    let mut meta = Meta::new(state, profile.to_owned(), means.judge());
    meta.findings = findings.to_vec();
    meta.image = means.image();
    meta.pages = means.pages().map(PageUnits::judged);
    meta.fault = (!faults.is_empty()).then(|| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        faults.join(" ")
    });
    bundle::pack(path, &opened.reader, opened.base.as_deref(), &means.needed(), &meta)?;
    Ok(())
}

fn is_interrupted(error: &ExploreError) -> bool {
    matches!(error, ExploreError::Interrupted | ExploreError::Run(RunError::Interrupted))
}

/// Of all profiles.
fn all(session: &Session) -> Counts {
    session.profiles.iter().fold(Counts::default(), |sum, p| plus(sum, p.counts))
}

fn plus(a: Counts, b: Counts) -> Counts {
    Counts {
        states: a.states + b.states,
        unique: a.unique + b.unique,
        judged: a.judged + b.judged,
        failed: a.failed + b.failed,
        unsure: a.unsure + b.unsure,
        points: a.points + b.points,
    }
}

fn minus(a: Counts, b: Counts) -> Counts {
    Counts {
        states: a.states.saturating_sub(b.states),
        unique: a.unique.saturating_sub(b.unique),
        judged: a.judged.saturating_sub(b.judged),
        failed: a.failed.saturating_sub(b.failed),
        unsure: a.unsure.saturating_sub(b.unsure),
        points: a.points.saturating_sub(b.points),
    }
}

/// Takes down what the engine finds.
struct Keeper<'a> {
    drive: &'a Drive<'a>,
    /// Contents of the profiles before, and of before a resume; rising.
    known: &'a [Content],
    session: &'a mut Session,
    watch: &'a mut dyn Watch,
    profile: usize,
    /// Of all profiles, when this one began.
    before: Counts,
    /// Of this profile, then.
    own: Counts,
    began: Instant,
    earlier: f64,
    /// Of the engine's failures, where they are in the session.
    numbers: HashMap<u64, usize>,
}

impl Keeper<'_> {
    fn take(&mut self, position: &Position) {
        self.session.done.clone_from(&position.done);
        self.session.cuts.clone_from(&position.coverage);
        self.session.seconds = self.earlier + self.began.elapsed().as_secs_f64();
        if let Some(state) = self.session.profiles.get_mut(self.profile) {
            state.counts = plus(self.own, minus(position.counts, self.before));
            state.counts.points = points(&position.done, &state.profile);
            state.again = position.again;
        }
    }

    /// With the profile under which each was met first.
    fn contents(&self, position: &Position) -> Vec<Content> {
        let own = u16::try_from(self.profile).unwrap_or(u16::MAX);
        let first = |judged: &Judged| {
            let at = self.known.binary_search_by_key(&judged.key, |c| c.judged.key);
            at.map_or(own, |at| self.known[at].profile)
        };
        let judged = position.judged.iter();
        let mut contents: Vec<Content> =
            judged.map(|j| Content { judged: *j, profile: first(j) }).collect();
        contents.sort_unstable();
        contents
    }

    fn state(&self) -> Option<&ProfileState> {
        self.session.profiles.get(self.profile)
    }
}

/// Crash points that every strategy was through with.
fn points(done: &BTreeMap<String, BTreeMap<String, Vec<Seq>>>, profile: &str) -> u64 {
    let strategies = done.get(profile).into_iter().flat_map(|s| s.values());
    strategies.map(|points| points.len() as u64).min().unwrap_or(0)
}

impl Sink for Keeper<'_> {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        let known =
            self.session.failures.iter_mut().enumerate().find(|(_, kept)| kept.is_same(failure));
        if let Some((i, kept)) = known {
            kept.again += 1;
            self.numbers.insert(failure.number, i);
            return Ok(());
        }
        let number = self.session.failures.len() + 1;
        self.numbers.insert(failure.number, number - 1);
        let bundle = self.drive.pack(failure, number);
        let failure = Failure { number: number as u64, ..failure.clone() };
        let kept = Kept { failure, bundle, again: 0 };
        self.watch.failure(&kept);
        self.session.failures.push(kept);
        Ok(())
    }

    fn again(&mut self, number: u64, _: &StateText) {
        let at = self.numbers.get(&number);
        if let Some(kept) = at.and_then(|at| self.session.failures.get_mut(*at)) {
            kept.again += 1;
        }
    }

    fn unsure(&mut self, state: &StateText, why: &str) {
        if self.session.unsure.len() < UNSURE {
            self.session.unsure.push((state.0.clone(), why.to_owned()));
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let of = self.session.profiles.len();
        let name = self.state().map(|s| s.profile.clone()).unwrap_or_default();
        self.watch.progress(&name, self.profile + 1, of, progress);
    }

    fn position(&mut self, position: &Position) -> Result<(), ExploreError> {
        self.take(position);
        self.session.save(self.drive.dir, Some(&self.contents(position)))
    }
}

//! The loop: walk, shard, verify once, confirm, shrink, tell.

use super::slow::Named;
use super::{
    Counts, Ended, Explanation, ExploreError, Failure, Fingerprint, Job, Judged, Point, Position,
    Progress, Sink, State, Summary, Verdict, Verifier,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tornblk_model::crash::WriteCuts;
use tornblk_model::crash::{Coverage, Cut, ModelError, Outcome, Profile, StateName, Strategy};
use tornblk_model::event::Seq;
use xxhash_rust::xxh3::xxh3_128;

/// Makes the verifier of worker thread `n`, on that thread.
pub type MakeVerifier<'a> =
    dyn Fn(usize) -> Result<Box<dyn Verifier + 'a>, ExploreError> + Sync + 'a;

/// Goes through everything that the job asks for, until it is done, a limit is reached or `stop` is
/// set.
///
/// # Errors
/// The disk cannot have one of the profiles; or what verifier or sink failed with.
pub fn explore(
    job: &Job<'_>,
    make: &MakeVerifier<'_>,
    sink: &mut dyn Sink,
    stop: &AtomicBool,
) -> Result<Summary, ExploreError> {
    let mut verifier = make(0)?;
    let mut run = Run::new(job, stop);
    let settings = job.settings;
    let points = job.history.points(settings.every_event);
    let all = settings.profiles.len() * points.len();
    let mut ended = Ended::Complete;
    'all: for profile in &settings.profiles {
        let mut coverage = run.coverage_before(profile)?;
        for after in points.iter().rev() {
            let cut = job.history.cut(*after, profile)?;
            match run.point(&cut, &mut *verifier, sink, &mut coverage)? {
                Ended::Complete => {}
                other => {
                    ended = other;
                    run.covered(profile, &coverage);
                    break 'all;
                }
            }
            run.counts.points += 1;
            let share = run.counts.points as f64 / all.max(1) as f64;
            run.tell(sink, share, format!("{profile}/p{after}"));
        }
        run.covered(profile, &coverage);
    }
    let position = run.position();
    sink.position(&position)?;
    Ok(Summary {
        ended,
        counts: run.counts,
        failures: run.known.len() as u64,
        not_shrunk: run.not_shrunk,
        coverage: run.coverage,
        elapsed: run.began.elapsed(),
        position,
    })
}

struct Run<'a> {
    job: &'a Job<'a>,
    stop: &'a AtomicBool,
    began: Instant,
    told: Instant,
    counts: Counts,
    judged_before: u64,
    seen: HashMap<u128, u64>,
    done: BTreeMap<String, BTreeMap<String, Vec<Seq>>>,
    coverage: Vec<(String, tornblk_model::crash::Covered)>,
    /// Of the profiles that are done, and of those before a `--resume`.
    cuts: BTreeMap<String, Vec<WriteCuts>>,
    known: HashMap<String, u64>,
    not_shrunk: u64,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job<'a>, stop: &'a AtomicBool) -> Run<'a> {
        let before = job.before.cloned().unwrap_or_default();
        let now = Instant::now();
        Run {
            job,
            stop,
            began: now,
            told: now,
            counts: before.counts,
            judged_before: before.counts.judged,
            seen: before.judged.iter().map(|j| (j.key.0, j.promises)).collect(),
            done: before.done,
            coverage: Vec::new(),
            cuts: before.coverage,
            known: HashMap::new(),
            not_shrunk: 0,
        }
    }

    fn position(&self) -> Position {
        let judged = self.seen.iter();
        Position {
            done: self.done.clone(),
            judged: judged
                .map(|(key, promises)| Judged { key: Fingerprint(*key), promises: *promises })
                .collect(),
            counts: self.counts,
            coverage: self.cuts.clone(),
        }
    }

    fn coverage_before(&self, profile: &Profile) -> Result<Coverage, ExploreError> {
        let mut coverage = Coverage::new();
        for cuts in self.cuts.get(&profile.to_string()).into_iter().flatten() {
            coverage.add(cuts)?;
        }
        Ok(coverage)
    }

    fn covered(&mut self, profile: &Profile, coverage: &Coverage) {
        self.coverage.push((profile.to_string(), coverage.covered()));
        self.cuts.insert(profile.to_string(), coverage.writes());
    }

    fn tell(&mut self, sink: &mut dyn Sink, share: f64, at: String) {
        if self.told.elapsed().as_secs() == 0 {
            return;
        }
        self.told = Instant::now();
        let elapsed = self.began.elapsed();
        let left = (share > 0.0).then(|| elapsed.mul_f64((1.0 - share) / share));
        let judged = (self.counts.judged - self.judged_before) as f64;
        let rate = judged / elapsed.as_secs_f64().max(1e-9);
        sink.progress(&Progress { counts: self.counts, rate, elapsed, left, share, at });
    }

    /// Why no more states are to be judged.
    fn over(&self) -> Option<Ended> {
        let settings = self.job.settings;
        if self.stop.load(Ordering::Relaxed) {
            Some(Ended::Stopped)
        } else if settings.states.is_some_and(|n| self.counts.judged >= n) {
            Some(Ended::States)
        } else if settings.time.is_some_and(|t| self.began.elapsed() >= t) {
            Some(Ended::Time)
        } else {
            None
        }
    }

    fn point(
        &mut self,
        cut: &Cut<'_>,
        verifier: &mut dyn Verifier,
        sink: &mut dyn Sink,
        coverage: &mut Coverage,
    ) -> Result<Ended, ExploreError> {
        let settings = self.job.settings;
        let profile = cut.profile.to_string();
        let (_, content) = Named::reference(cut)?;
        let reference = self.named(cut, None, &content)?;
        let promises = self.job.promises.at(cut.after);
        let point = Point::new(cut.profile, cut.after, promises, &reference);
        verifier.point(&point)?;
        coverage.visit(cut);
        for strategy in &settings.strategies {
            let known = self.done.entry(profile.clone()).or_default();
            if known.entry(strategy.to_string()).or_default().contains(&cut.after) {
                continue;
            }
            let strategy_now = match *strategy {
                Strategy::Random { count, .. } => Strategy::Random { seed: settings.seed, count },
                other => other,
            };
            for name in cut.states(strategy_now) {
                if settings.shard.is_some_and(|shard| !shard.has(&name)) {
                    continue;
                }
                if let Some(ended) = self.over() {
                    return Ok(ended);
                }
                let broken = match settings.faults.as_slice() {
                    [] => name.clone(),
                    faults => cut.break_with(&name, faults, settings.seed)?.0,
                };
                let state = self.named(cut, Some(&broken), &content)?;
                let state = State::new(&point, &state);
                let outcome = self.state(cut, &point, &state, &content, verifier, sink)?;
                if settings.faults.is_empty() {
                    coverage.note(cut, &name, outcome)?;
                }
            }
            let known = self.done.entry(profile.clone()).or_default();
            known.entry(strategy.to_string()).or_default().push(cut.after);
        }
        Ok(Ended::Complete)
    }

    fn named<'b>(
        &self,
        cut: &Cut<'_>,
        name: Option<&StateName>,
        content: &'b tornblk_model::crash::Content,
    ) -> Result<Named<'b>, ModelError>
    where
        'a: 'b,
    {
        match name {
            Some(name) => Named::new(cut, name, content, self.job.ids),
            None => Named::new(cut, &Named::reference(cut)?.0, content, self.job.ids),
        }
    }

    fn state(
        &mut self,
        cut: &Cut<'_>,
        point: &Point<'_>,
        state: &State<'_>,
        reference: &tornblk_model::crash::Content,
        verifier: &mut dyn Verifier,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, ExploreError> {
        self.counts.states += 1;
        let mut key = state.fingerprint();
        if verifier.depends_on_profile() {
            key = key.wrapping_add(salt(cut.profile, cut));
        }
        match self.seen.insert(key, point.promises) {
            Some(before) if before >= point.promises => {
                self.seen.insert(key, before);
                return Ok(Outcome::Equal);
            }
            Some(_) => {}
            None => self.counts.unique += 1,
        }
        self.counts.judged += 1;
        let first = verifier.verify(state)?;
        let verdict = match &first {
            Verdict::Failed(_) => verifier.confirm(state)?,
            _ => first.clone(),
        };
        match (first, verdict) {
            (_, Verdict::Failed(findings)) => {
                self.counts.failed += 1;
                self.failed(cut, point, state, findings, reference, verifier, sink)?;
            }
            (Verdict::Failed(_), _) => {
                self.counts.unsure += 1;
                let why = "it failed once, and not again";
                sink.unsure(&state.name()?.into(), why);
            }
            (_, Verdict::Unsure(why)) => {
                self.counts.unsure += 1;
                sink.unsure(&state.name()?.into(), &why);
            }
            (_, Verdict::Passed) => {}
        }
        Ok(Outcome::Built)
    }

    #[allow(clippy::too_many_arguments)]
    fn failed(
        &mut self,
        cut: &Cut<'_>,
        point: &Point<'_>,
        state: &State<'_>,
        findings: Vec<crate::oracle::Finding>,
        reference: &tornblk_model::crash::Content,
        verifier: &mut dyn Verifier,
        sink: &mut dyn Sink,
    ) -> Result<(), ExploreError> {
        if self.known.len() as u64 >= self.job.settings.failures {
            self.not_shrunk += 1;
            return Ok(());
        }
        let found = state.name()?;
        let mut last: (Option<StateName>, Vec<crate::oracle::Finding>, u128) =
            (None, findings, state.fingerprint());
        let ids = self.job.ids;
        let shrunk = cut.shrink(&found, |name| -> Result<bool, ExploreError> {
            let built = Named::new(cut, name, reference, ids)?;
            let tried = State::new(point, &built);
            match verifier.verify(&tried)? {
                Verdict::Failed(findings) => {
                    last = (Some(name.clone()), findings, tried.fingerprint());
                    Ok(true)
                }
                _ => Ok(false),
            }
        })?;
        let Some(shrunk) = shrunk else { return Ok(()) };
        let name = shrunk.failing.clone();
        if let Some(number) = self.known.get(&name.0) {
            sink.again(*number, &found.into());
            return Ok(());
        }
        let number = self.known.len() as u64 + 1;
        self.known.insert(name.0.clone(), number);
        let violations = cut.violations(&name)?;
        sink.failure(&Failure {
            number,
            state: name.into(),
            found: found.into(),
            profile: cut.profile.to_string(),
            after: cut.after,
            promises: point.promises,
            fingerprint: Fingerprint(last.2),
            findings: last.1,
            explanation: Explanation {
                pieces: Vec::new(),
                passing: shrunk.passing.map(Into::into),
                changes: shrunk.changes as u64,
                minimal: true,
                tried: shrunk.tried as u64,
                faults: Vec::new(),
                violations: violations.iter().map(ToString::to_string).collect(),
            },
        })
    }
}

/// Keeps the contents of two profiles apart.
fn salt(profile: &Profile, cut: &Cut<'_>) -> u128 {
    xxh3_128(profile.on(cut.history.disk()).to_string().as_bytes())
}

//! What an exploration came to: made of its [`Session`], the same for one and for several merged.

use super::bundle::Judge;
use super::session::{Kept, Session};
use super::{Counts, Ended, ExploreError, PageCounts, Shard};
use crate::run::{Environment, Verdict, Volume};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tornblk_model::crash::Coverage;

/// An exploration, as `--json` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExploreReport {
    pub version: String,
    pub recording: PathBuf,
    pub suite: String,
    pub lane: String,
    pub judge: Judge,
    pub strategies: Vec<String>,
    pub faults: Vec<String>,
    pub seed: u64,
    /// `None`: all of them.
    pub shard: Option<Shard>,
    /// Shards that are not in here, where several were merged.
    pub missing: Vec<Shard>,
    /// `None`: it did not come to an end of its own.
    pub ended: Option<Ended>,
    pub seconds: f64,
    pub verdict: Verdict,
    /// Why, where the verdict alone does not say it.
    pub why: Option<String>,
    /// 0 no finding, 1 a violation, 3 inconclusive, 130 interrupted before there was a violation.
    pub exit: u8,
    pub profiles: Vec<ProfileReport>,
    pub failures: Vec<Kept>,
    /// States that could not be judged, and why: the first of them.
    pub unsure: Vec<(String, String)>,
    /// What the recording says of its disk, and of where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Where pages were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<PageCounts>,
    /// Where the bundles are; `None` where nothing was kept.
    pub folder: Option<PathBuf>,
    /// The command that goes on, where it did not come to its end.
    #[serde(default)]
    pub resume: Option<String>,
}

/// One profile: one disk that one might buy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProfileReport {
    pub profile: String,
    pub counts: Counts,
    pub coverage: Cuts,
    /// Different failures, when shrunk.
    pub failures: u64,
    /// Contents that failed beyond what was shrunk.
    pub not_shrunk: u64,
    /// Everything that was asked for was gone through.
    pub complete: bool,
    pub verdict: Verdict,
    pub why: Option<String>,
}

/// Which cuts of which writes were looked at, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuts {
    /// Writes that can be torn, and their cuts.
    pub writes: u64,
    pub cuts: u64,
    pub built: u64,
    pub equal: u64,
}

impl Cuts {
    /// Neither built nor proved equal to one that was.
    pub fn missing(&self) -> u64 {
        self.cuts.saturating_sub(self.built + self.equal)
    }
}

/// The report of a session.
///
/// # Errors
/// What the session says of the cuts contradicts itself.
pub fn report(
    session: &Session,
    judge: Judge,
    missing: Vec<Shard>,
) -> Result<ExploreReport, ExploreError> {
    // A limit that was asked for is an end; these are none.
    let broken_off = match session.ended {
        _ if !missing.is_empty() => Some(absent(&missing)),
        Some(Ended::Stopped) => Some("no finding until it was interrupted".to_owned()),
        None => Some("no finding until it broke off".to_owned()),
        Some(Ended::Complete | Ended::States | Ended::Time) => None,
    };
    let mut profiles = Vec::new();
    for state in &session.profiles {
        let mut coverage = Coverage::new();
        for cuts in session.cuts.get(&state.profile).into_iter().flatten() {
            coverage.add(cuts)?;
        }
        let covered = coverage.covered();
        let of = |kept: &&Kept| kept.failure.profile == state.profile;
        let failures = session.failures.iter().filter(of).count() as u64;
        let mut profile = ProfileReport {
            profile: state.profile.clone(),
            counts: state.counts,
            coverage: Cuts {
                writes: covered.writes as u64,
                cuts: covered.cuts as u64,
                built: covered.built as u64,
                equal: covered.equal as u64,
            },
            failures,
            not_shrunk: state.not_shrunk,
            complete: state.complete,
            verdict: Verdict::Passed,
            why: None,
        };
        let broken_off = broken_off.clone().filter(|_| !state.complete);
        let faults = !session.choices.faults.is_empty();
        (profile.verdict, profile.why) = judged(&profile, faults, broken_off);
        profiles.push(profile);
    }
    let (verdict, why) = whole(&profiles, &missing);
    Ok(ExploreReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recording: session.identity.recording.clone(),
        suite: session.suite.clone(),
        lane: session.lane.clone(),
        judge,
        strategies: session.choices.strategies.clone(),
        faults: session.choices.faults.clone(),
        seed: session.choices.seed,
        shard: session.shard,
        missing,
        ended: session.ended,
        seconds: session.seconds,
        verdict,
        why,
        exit: match verdict {
            Verdict::Violated => 1,
            _ if session.ended == Some(Ended::Stopped) => 130,
            Verdict::Passed => 0,
            _ => 3,
        },
        profiles,
        failures: session.failures.clone(),
        unsure: session.unsure.clone(),
        volume: session.volume.clone(),
        environment: session.environment.clone(),
        pages: session.pages.clone(),
        folder: None,
        resume: None,
    })
}

impl ExploreReport {
    /// Different contents that were looked at, of all profiles.
    pub fn unique(&self) -> u64 {
        self.profiles.iter().map(|profile| profile.counts.unique).sum()
    }

    /// "shard 2/3 is missing", where one is.
    pub fn absent(&self) -> Option<String> {
        (!self.missing.is_empty()).then(|| absent(&self.missing))
    }
}

fn absent(missing: &[Shard]) -> String {
    let names: Vec<String> = missing.iter().map(Shard::to_string).collect();
    match names.as_slice() {
        [one] => format!("shard {one} is missing"),
        some => format!("shards {} are missing", some.join(", ")),
    }
}

fn judged(
    profile: &ProfileReport,
    faults: bool,
    broken_off: Option<String>,
) -> (Verdict, Option<String>) {
    let counts = &profile.counts;
    if profile.failures > 0 || counts.failed > 0 || profile.not_shrunk > 0 {
        (Verdict::Violated, None)
    } else if counts.states == 0 {
        let why = match profile.complete {
            true => "the strategies chose no state here",
            false => "nothing was explored",
        };
        (Verdict::Inconclusive, Some(why.to_owned()))
    } else if counts.unsure > 0 {
        let (unsure, of) = (counts.unsure, counts.unique);
        (Verdict::Inconclusive, Some(format!("{unsure} of {of} states could not be judged")))
    } else if broken_off.is_some() {
        (Verdict::Inconclusive, broken_off)
    } else if faults {
        (Verdict::Inconclusive, Some("the fault was not noticed".to_owned()))
    } else {
        (Verdict::Passed, None)
    }
}

fn whole(profiles: &[ProfileReport], missing: &[Shard]) -> (Verdict, Option<String>) {
    let any = |verdict| profiles.iter().find(|p| p.verdict == verdict);
    if any(Verdict::Violated).is_some() {
        return (Verdict::Violated, None);
    }
    if !missing.is_empty() {
        return (Verdict::Inconclusive, Some(absent(missing)));
    }
    match any(Verdict::Inconclusive) {
        Some(p) => {
            let why = p.why.clone().unwrap_or_default();
            (Verdict::Inconclusive, Some(format!("{}: {why}", p.profile)))
        }
        None if profiles.is_empty() => {
            (Verdict::Inconclusive, Some("no profile was explored".to_owned()))
        }
        None => (Verdict::Passed, None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::session::{Choices, Identity};

    fn session(ended: Option<Ended>, complete: &[bool]) -> Session {
        let identity = Identity {
            recording: "r".into(),
            events: String::new(),
            base: String::new(),
            last: None,
        };
        let profiles = ["lb512", "req16k"].map(str::to_owned).to_vec();
        let choices = Choices {
            profiles,
            strategies: Vec::new(),
            faults: Vec::new(),
            seed: 1,
            every_event: false,
            nested: 0,
            fsck_every: 50,
            pages: None,
        };
        let mut session = Session::new(identity, choices, None);
        session.ended = ended;
        for (profile, complete) in session.profiles.iter_mut().zip(complete) {
            profile.complete = *complete;
            profile.counts = Counts { states: 9, unique: 7, judged: 7, ..Counts::default() };
        }
        session
    }

    fn of(session: &Session, missing: &[&str]) -> ExploreReport {
        let missing = missing.iter().map(|shard| shard.parse().unwrap()).collect();
        report(session, Judge::InPlace, missing).unwrap()
    }

    #[test]
    fn what_was_interrupted_has_not_passed_but_where_it_was_through() {
        for (ended, exit, says) in
            [(Some(Ended::Stopped), 130, "was interrupted"), (None, 3, "broke off")]
        {
            let report = of(&session(ended, &[true, false]), &[]);
            let verdicts: Vec<Verdict> = report.profiles.iter().map(|p| p.verdict).collect();
            assert_eq!(verdicts, [Verdict::Passed, Verdict::Inconclusive]);
            assert_eq!((report.verdict, report.exit), (Verdict::Inconclusive, exit));
            assert!(report.why.unwrap().contains(says));
        }
        // Interrupted so early that there is nothing: it is that all the same.
        let mut early = session(Some(Ended::Stopped), &[true, false]);
        early.profiles[1].counts = Counts::default();
        assert_eq!(of(&early, &[]).exit, 130);
        // A violation is the news.
        early.profiles[0].counts.failed = 1;
        assert_eq!((of(&early, &[]).verdict, of(&early, &[]).exit), (Verdict::Violated, 1));
    }

    #[test]
    fn a_limit_that_was_asked_for_is_an_end() {
        for ended in [Ended::Complete, Ended::States, Ended::Time] {
            let report = of(&session(Some(ended), &[true, false]), &[]);
            assert_eq!((report.verdict, report.exit), (Verdict::Passed, 0));
        }
    }

    #[test]
    fn what_a_missing_shard_may_hold_has_not_passed() {
        let report = of(&session(None, &[false, false]), &["2/3"]);
        assert_eq!((report.verdict, report.exit), (Verdict::Inconclusive, 3));
        for why in report.profiles.iter().map(|p| &p.why).chain([&report.why]) {
            assert_eq!(why.as_deref(), Some("shard 2/3 is missing"));
        }
    }
}

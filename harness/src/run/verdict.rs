//! What came of a lane.

use super::cut::CutReport;
use super::volume::Volume;
use super::{Environment, Settings};
use crate::explore::ExploreReport;
use crate::oracle::{Counts, Finding};
use crate::suite::{Entry, Known, Lane};
use crate::vm::FrontEnd;
use serde::{Deserialize, Serialize};
use std::fmt;
use tornblk_agent::race::Raced;
use tornblk_proto::NamedWrites;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As expected.
    Passed,
    /// Red, as the suite expects: told, but no failure.
    KnownRed,
    Violated,
    Inconclusive,
    Unsupported,
    /// Could not be run.
    Error,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Passed => "passed",
            Verdict::KnownRed => "known",
            Verdict::Violated => "VIOLATED",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Unsupported => "unsupported",
            Verdict::Error => "error",
        })
    }
}

/// Whether the lane can notice what it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlReport {
    pub fault: String,
    pub caught: bool,
    /// As what it was caught, or why it was not.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneReport {
    pub suite: String,
    pub name: String,
    pub about: String,
    pub profile: String,
    #[serde(default)]
    pub front_end: FrontEnd,
    /// Release of the guest's kernel.
    #[serde(default)]
    pub kernel: String,
    pub verdict: Verdict,
    /// Why, where the verdict alone does not say it.
    pub why: Option<String>,
    /// Cuts that were made, of how many.
    pub cuts: u32,
    pub planned: u32,
    /// Of the cuts, those whose moment never came: made at rest, after the workload's end.
    #[serde(default)]
    pub at_rest: u32,
    pub counts: Counts,
    /// How the writes of its cuts arrived that say how long they are.
    #[serde(default)]
    pub named: NamedWrites,
    /// What is known of this lane and kernel, and was not seen though the lane passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
    /// What came of its races; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raced: Option<Raced>,
    /// Findings of all cuts.
    pub violations: u64,
    /// Complaints of the guests' kernels that came before in this run, and are no findings again.
    #[serde(default)]
    pub complaints_again: u64,
    /// `None`: not asked for.
    pub control: Option<ControlReport>,
    pub seconds: f64,
    /// The disk, and what is on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Where it ran; `None`: no cut was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Cuts with findings, and all where they are kept.
    pub reports: Vec<CutReport>,
    /// The crash states of the last cut's recording; `None`: not asked for.
    #[serde(default)]
    pub explored: Option<ExploreReport>,
}

/// Why a program that has to be caught passed.
pub const CAUGHT: &str = "caught, as it has to be";

impl LaneReport {
    /// Was it to be caught, and was?
    pub fn is_caught(&self) -> bool {
        self.verdict == Verdict::Passed && self.violations > 0
    }

    /// Of which nothing is known yet, and that makes no cuts of its own: a program of the user's.
    pub fn empty(suite: &str, name: &str, about: &str) -> LaneReport {
        LaneReport {
            suite: suite.to_owned(),
            name: name.to_owned(),
            about: about.to_owned(),
            profile: String::new(),
            front_end: FrontEnd::default(),
            kernel: String::new(),
            verdict: Verdict::Inconclusive,
            why: None,
            cuts: 0,
            planned: 0,
            at_rest: 0,
            counts: Counts::default(),
            named: NamedWrites::default(),
            not_seen: Vec::new(),
            raced: None,
            violations: 0,
            complaints_again: 0,
            control: None,
            seconds: 0.0,
            reports: Vec::new(),
            volume: None,
            environment: None,
            explored: None,
        }
    }

    /// Is it all about the crash states of its recording?
    pub fn is_explored_only(&self) -> bool {
        self.planned == 0
    }

    pub(super) fn new(suite: &str, lane: &Lane, settings: &Settings) -> LaneReport {
        LaneReport {
            profile: settings.profile.clone().unwrap_or_else(|| lane.profile.clone()),
            front_end: lane.front_end,
            volume: Some(Volume::new(lane, settings.profile.as_ref().unwrap_or(&lane.profile))),
            planned: if settings.only.is_some() { 1 } else { settings.cuts },
            raced: lane.race.as_ref().map(|_| Raced::default()),
            ..LaneReport::empty(suite, &lane.name, &lane.about)
        }
    }

    /// Red that is known all through is no failure, and what is known and does not show is told.
    pub(super) fn tell_known(&mut self, known: &Known, release: &str) {
        let entries: Vec<&Entry> = known.of(&self.suite, &self.name, release).collect();
        match self.verdict {
            Verdict::Violated => {
                let explored = self.explored.iter().flat_map(|e| &e.failures);
                let explored = explored.flat_map(|kept| &kept.failure.findings);
                let findings = crate::report::findings(self).map(|(_, finding)| finding);
                let findings: Vec<&Finding> = findings.chain(explored).collect();
                let Some(all) = known.explain(&self.suite, &self.name, release, &findings) else {
                    return;
                };
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                self.verdict = Verdict::KnownRed;
                self.why = Some(format!("known: {}", all.join("; ")));
            }
            Verdict::Passed => self.not_seen = entries.iter().map(ToString::to_string).collect(),
            _ => {}
        }
    }

    /// Adds what came of one more race.
    pub(super) fn raced(&mut self, one: Option<&Raced>) {
        let Some(one) = one else { return };
        let all = self.raced.get_or_insert_default();
        all.rounds += one.rounds;
        for (what, times) in &one.reached {
            *all.reached.entry(what.clone()).or_default() += times;
        }
        for (all, one) in [(&mut all.notes, &one.notes), (&mut all.unsupported, &one.unsupported)] {
            for text in one {
                if !all.contains(text) {
                    all.push(text.clone());
                }
            }
        }
    }
}

//! Lanes in which the guest races system calls against each other: what the suite says of them.

use super::load::need;
use serde::Deserialize;
use std::collections::BTreeMap;
use tornblk_agent::race::Setting;
use tornblk_model::crash::Strategy;

/// What is raced, how often, and what must come of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RaceLane {
    /// Which race of the agent's.
    pub name: String,
    /// In each cut, which ends with it.
    pub rounds: u32,
    pub set: BTreeMap<String, Setting>,
    /// Moments that must be met, or the lane is inconclusive.
    pub must_reach: Vec<String>,
    /// How the crash states of the last cut's recording are explored; empty: they are not.
    pub explore: Vec<Strategy>,
    /// So many of them, at most.
    pub states: u64,
    /// The suite as it is written: a bundle takes it along.
    pub text: String,
}

/// What is done wrong on purpose.
#[derive(Clone, Debug, PartialEq)]
pub enum Wrong {
    /// By the disk.
    Fault(tornblk_model::crash::Fault),
    /// By the race itself, which knows what this is called.
    Work(String),
}

impl Wrong {
    pub fn fault(&self) -> Option<&tornblk_model::crash::Fault> {
        match self {
            Wrong::Fault(fault) => Some(fault),
            Wrong::Work(_) => None,
        }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wrong::Fault(fault) => fault.fmt(f),
            Wrong::Work(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RaceText {
    name: Option<String>,
    rounds: Option<u32>,
    #[serde(default)]
    set: BTreeMap<String, Setting>,
    #[serde(default)]
    must_reach: Vec<String>,
    explore: Option<Vec<String>>,
    states: Option<u64>,
}

/// States of a lane that does not say how many.
const STATES: u64 = 60;

impl RaceText {
    /// `suite`: its name is the race's, where the lane gives none.
    pub(super) fn build(self, suite: &str) -> Result<RaceLane, String> {
        let explore = match self.explore {
            Some(names) => names,
            None => ["prefix", "one-lost", "tear"].map(str::to_owned).to_vec(),
        };
        let strategy = |name: &String| {
            name.parse::<Strategy>().map_err(|e| format!("[lane.race] `explore`: {e}"))
        };
        let rounds = need(self.rounds, "[lane.race] `rounds`")?;
        if rounds == 0 || self.states == Some(0) {
            return Err("[lane.race] `rounds` and `states` are at least 1".into());
        }
        Ok(RaceLane {
            name: self.name.unwrap_or_else(|| suite.to_owned()),
            rounds,
            set: self.set,
            must_reach: self.must_reach,
            explore: explore.iter().map(strategy).collect::<Result<_, _>>()?,
            states: self.states.unwrap_or(STATES),
            text: String::new(),
        })
    }
}

//! What a CI server is told beside `--json` and `--junit`: annotations, and a summary of the job.

use crate::explore::bundle::Judge;
use crate::explore::{Ended, ExploreReport};
use crate::out::Stdout;
use crate::report::{explore, github, summary};
use crate::run::{RunReport, Verdict};
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where GitHub Actions takes a job's summary from.
const GITHUB: &str = "GITHUB_STEP_SUMMARY";

#[derive(Clone, Debug, Default, Args)]
pub(super) struct CiOptions {
    /// human, or github: with annotations for a workflow's page
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub(super) format: Format,

    /// Append what came of it to this file, as Markdown for a job's page [default:
    /// $GITHUB_STEP_SUMMARY, where that is set]
    #[arg(long, value_name = "FILE")]
    pub(super) summary: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Human,
    Github,
}

impl CiOptions {
    /// What a run came to.
    pub(super) fn run(&self, report: &RunReport) -> anyhow::Result<()> {
        if self.format == Format::Github {
            github::write(report, &mut Stdout).context("cannot write the annotations")?;
        }
        self.append(|| summary::run(report))
    }

    /// What an exploration came to.
    pub(super) fn explored(&self, report: &ExploreReport) -> anyhow::Result<()> {
        if self.format == Format::Github {
            github::explored(report, &mut Stdout).context("cannot write the annotations")?;
        }
        self.append(|| summary::explored(report))
    }

    /// What databases came to.
    pub(super) fn write_summary(&self, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        self.append(text)
    }

    fn append(&self, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let github = || std::env::var_os(GITHUB).filter(|v| !v.is_empty()).map(PathBuf::from);
        let Some(path) = self.summary.clone().or_else(github) else { return Ok(()) };
        File::options()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text().as_bytes()))
            .with_context(|| format!("cannot write the summary {}", path.display()))
    }
}

/// What was to be explored, and could not.
pub(super) struct NotExplored<'a> {
    pub(super) recording: &'a Path,
    pub(super) suite: &'a str,
    pub(super) lane: &'a str,
    pub(super) seed: u64,
    pub(super) json: Option<&'a Path>,
    pub(super) junit: Option<&'a Path>,
    pub(super) ci: &'a CiOptions,
}

impl NotExplored<'_> {
    /// Who reads the reports has not seen the terminal. Returns the error, which stays the news.
    pub(super) fn tell(&self, error: anyhow::Error) -> anyhow::Error {
        let stopped = super::interrupted(&error);
        let report = ExploreReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            recording: self.recording.to_owned(),
            suite: self.suite.to_owned(),
            lane: self.lane.to_owned(),
            judge: Judge::Guest,
            strategies: Vec::new(),
            faults: Vec::new(),
            seed: self.seed,
            shard: None,
            missing: Vec::new(),
            ended: stopped.then_some(Ended::Stopped),
            seconds: 0.0,
            verdict: Verdict::Error,
            why: Some(super::sentence(&error)),
            exit: if stopped { super::signals::INTERRUPTED } else { 2 },
            profiles: Vec::new(),
            failures: Vec::new(),
            unsure: Vec::new(),
            folder: None,
            resume: None,
            environment: None,
            volume: None,
            pages: None,
        };
        let json = self.json.map(|path| explore::json(&report, path));
        let junit = self.junit.map(|path| explore::junit(&report, path));
        for (path, written) in [(self.json, json), (self.junit, junit)] {
            if let (Some(path), Some(Err(e))) = (path, written) {
                crate::out::note!("tornblk: cannot write {}: {e}", path.display());
            }
        }
        if let Err(e) = self.ci.explored(&report) {
            crate::out::note!("tornblk: {}", super::sentence(&e));
        }
        error
    }
}

//! `tornblk report`

use super::check_writable;
use super::ci::CiOptions;
use super::explore::tell;
use super::signals::INTERRUPTED;
use crate::explore::merge::{Merged, merge};
use crate::explore::{ExploreReport, report};
use crate::report::terminal::Look;
use crate::run::RunFolder;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Put the shards of one exploration together
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
#[command(after_help = super::examples::REPORT)]
pub(super) struct MergeArgs {
    /// The folders of the shards: what --out was there
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,

    /// Copy the failures' bundles, each once, and the report here: a new or empty folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    #[command(flatten)]
    ci: CiOptions,
}

impl ReportCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            ReportCommand::Merge(args) => args.run(),
        }
    }
}

impl MergeArgs {
    fn run(self) -> anyhow::Result<u8> {
        check_writable(self.json.iter().chain(&self.junit).chain(&self.ci.summary))?;
        let mut merged = merge(&self.dirs)?;
        if let Some(out) = &self.out {
            let folder = RunFolder::create(Some(out), 0)?;
            let dir = folder.path().to_owned();
            for (i, (kept, from)) in
                merged.session.failures.iter_mut().zip(&mut merged.bundles).enumerate()
            {
                let Some(path) = from else { continue };
                let name = format!("failure-{:03}.tornblk", i + 1);
                std::fs::copy(&*path, dir.join(&name)).with_context(|| {
                    format!("cannot copy {} to {}", path.display(), dir.display())
                })?;
                kept.bundle = Some(name);
            }
            let mut report = self.report(&merged)?;
            report.folder = Some(dir.clone());
            return self.tell(&report, Some(&dir));
        }
        // The bundles stay where they are.
        for (kept, from) in merged.session.failures.iter_mut().zip(&merged.bundles) {
            kept.bundle = from.as_ref().map(|path| path.display().to_string());
        }
        let mut report = self.report(&merged)?;
        if !report.failures.is_empty() {
            report.folder = Some(PathBuf::new());
        }
        self.tell(&report, None)
    }

    fn report(&self, merged: &Merged) -> anyhow::Result<ExploreReport> {
        let mut report = report(&merged.session, merged.session.judge, merged.missing.clone())?;
        if report.exit == INTERRUPTED {
            // A part was, some time ago.
            report.exit = 3;
        }
        Ok(report)
    }

    fn tell(&self, report: &ExploreReport, own: Option<&Path>) -> anyhow::Result<u8> {
        let (json, junit) = (self.json.as_deref(), self.junit.as_deref());
        tell(report, Look::detect(), own, json, junit, &self.ci)
    }
}

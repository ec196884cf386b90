//! `tornblk report`

use super::explore::tell;
use crate::explore::merge::{Merged, merge};
use crate::explore::{ExploreReport, report};
use crate::report::explore as shown;
use crate::report::terminal::Look;
use crate::run::RunFolder;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Put the shards of one exploration together
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
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
            let path = dir.join("report.json");
            shown::json(&report, &path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            return self.tell(&report);
        }
        // The bundles stay where they are.
        for (kept, from) in merged.session.failures.iter_mut().zip(&merged.bundles) {
            kept.bundle = from.as_ref().map(|path| path.display().to_string());
        }
        let mut report = self.report(&merged)?;
        if !report.failures.is_empty() {
            report.folder = Some(PathBuf::new());
        }
        self.tell(&report)
    }

    fn report(&self, merged: &Merged) -> anyhow::Result<ExploreReport> {
        Ok(report(&merged.session, merged.session.judge, merged.missing.clone())?)
    }

    fn tell(&self, report: &ExploreReport) -> anyhow::Result<u8> {
        tell(report, Look::detect(), self.json.as_deref(), self.junit.as_deref())?;
        Ok(report.exit)
    }
}

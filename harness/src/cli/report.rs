//! `tornblk report`

use super::check_writable;
use super::ci::CiOptions;
use super::explore::{Reports, tell};
use super::signals::INTERRUPTED;
use crate::explore::merge::{Merged, merge};
use crate::explore::{ExploreReport, report};
use crate::out::say;
use crate::report::html;
use crate::report::picture::{self, NoPicture, Picture};
use crate::report::strip::utf8_locale;
use crate::report::terminal::Look;
use crate::run::RunFolder;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Put the shards of one exploration together
    Merge(MergeArgs),
    /// Draw what a failure's bundle shows: the writes, the cut, and what is on the disk then
    Picture(PictureArgs),
}

#[derive(Debug, Args)]
#[command(after_help = super::examples::REPORT_PICTURE)]
pub(super) struct PictureArgs {
    /// A failure that `tornblk explore` left (.tornblk)
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,

    /// Write the picture as SVG, too: one file for a bug report
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl PictureArgs {
    fn run(self) -> anyhow::Result<u8> {
        check_writable(&self.svg)?;
        let picture = picture::of_bundle(&self.bundle)
            .with_context(|| format!("there is no picture of {}", self.bundle.display()))?;
        say!("{}", picture::text::text(&picture, utf8_locale()).trim_end());
        if let Some(path) = &self.svg {
            std::fs::write(path, picture::svg_file(&picture))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(0)
    }
}

#[derive(Debug, Args)]
#[command(after_help = super::examples::REPORT_MERGE)]
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

    /// Write the report as one HTML file, with a picture of each failure
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    #[command(flatten)]
    ci: CiOptions,
}

impl ReportCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            ReportCommand::Merge(args) => args.run(),
            ReportCommand::Picture(args) => args.run(),
        }
    }
}

impl MergeArgs {
    fn run(self) -> anyhow::Result<u8> {
        let reports = [&self.json, &self.junit, &self.html, &self.ci.summary];
        check_writable(reports.into_iter().flatten())?;
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
            return self.tell(&report, Some(&dir), &merged.bundles);
        }
        // The bundles stay where they are.
        for (kept, from) in merged.session.failures.iter_mut().zip(&merged.bundles) {
            kept.bundle = from.as_ref().map(|path| path.display().to_string());
        }
        let mut report = self.report(&merged)?;
        if !report.failures.is_empty() {
            report.folder = Some(PathBuf::new());
        }
        self.tell(&report, None, &merged.bundles)
    }

    fn report(&self, merged: &Merged) -> anyhow::Result<ExploreReport> {
        let mut report = report(&merged.session, merged.session.judge, merged.missing.clone())?;
        if report.exit == INTERRUPTED {
            // A part was, some time ago.
            report.exit = 3;
        }
        Ok(report)
    }

    /// `bundles`: where that of each failure is.
    fn tell(
        &self,
        report: &ExploreReport,
        own: Option<&Path>,
        bundles: &[Option<PathBuf>],
    ) -> anyhow::Result<u8> {
        let wanted = Reports {
            own,
            json: self.json.as_deref(),
            junit: self.junit.as_deref(),
            html: self.html.as_deref(),
            ci: &self.ci,
        };
        tell(report, Look::detect(), &wanted, || html::told(bundles).iter().map(drawn).collect())
    }
}

fn drawn(bundle: &Option<PathBuf>) -> Result<Picture, NoPicture> {
    match bundle {
        Some(path) => picture::of_bundle(path),
        None => Err(NoPicture("no bundle could be made of it".to_owned())),
    }
}

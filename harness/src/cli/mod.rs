//! The command line of `tornblk`: a front for the library.
//!
//! Exits: 0 as expected, 1 a violation, 2 could not run, 3 inconclusive, 130 interrupted.

mod attach;
mod audit;
mod bench;
mod ci;
mod control;
mod databases;
mod develop;
mod doctor;
mod examples;
mod exec;
mod explore;
mod image;
mod manual;
mod pages;
mod programs;
mod recording;
mod report;
mod repro;
mod run;
mod select;
mod session;
mod signals;

use crate::out::{self, note, say};
use crate::report::html::Page;
use anyhow::Context;
use clap::builder::styling::Styles;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const AFTER: &str = "\
Exit codes: 0 as expected, 1 a violation, 2 could not run, 3 inconclusive, 130 interrupted.
Sizes are bytes, or take k, m, g. Suites: buffered-atomic, delalloc-punch, direct-atomic, freeze,
fuse-passthrough, hole-punch, planted, databases, or the path of a .toml file.";

/// What the help of all ends with.
fn after() -> String {
    format!("{}\n\n{AFTER}", examples::TORNBLK)
}

/// Boots guests on a disk that can tear, cuts the power, and verifies what is left.
#[derive(Debug, Parser)]
#[command(name = "tornblk", version, styles = Styles::plain(), after_help = after())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run suites: write, cut the power, verify (default: direct-atomic, about 3 minutes)
    Run(Box<run::RunArgs>),
    /// Show a kept cut again: its disk, byte for byte, read and judged anew
    Repro(repro::ReproArgs),
    /// Try the crash states of a recording: thousands, on every disk one might buy
    Explore(Box<explore::ExploreArgs>),
    /// Put reports together
    #[command(subcommand, after_help = examples::REPORT)]
    Report(report::ReportCommand),
    /// What guests boot: build it, list what is there, remove what is old
    #[command(subcommand, after_help = examples::IMAGE)]
    Image(image::ImageCommand),
    /// Look into recordings, and take disks out of them
    #[command(subcommand, after_help = examples::RECORDING)]
    Recording(recording::RecordingCommand),
    Audit(audit::AuditArgs),
    Attach(attach::AttachArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    Manual(manual::ManualArgs),
    #[command(flatten)]
    Control(control::ControlCommand),
}

/// An error is a sentence for the user, and exit code 2.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse();
    if !develop::is_bisecting(std::env::args_os(), cli.as_ref().err()) {
        return ExitCode::from(tornblk(cli));
    }
    // Any other way out would be taken for "bad".
    let tornblk = std::panic::AssertUnwindSafe(|| tornblk(cli));
    let exit = std::panic::catch_unwind(tornblk).unwrap_or(develop::SKIP);
    ExitCode::from(develop::for_bisect(exit))
}

/// → the exit code.
fn tornblk(cli: Result<Cli, clap::Error>) -> u8 {
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // There is nobody else to be told.
            let _ = error.print();
            return error.exit_code().try_into().unwrap_or(2);
        }
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp_millis()
        .init();
    let result = match cli.command {
        Command::Run(args) => args.run(),
        Command::Repro(args) => args.run(),
        Command::Explore(args) => args.run(),
        Command::Report(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Recording(command) => command.run(),
        Command::Audit(args) => args.run(),
        Command::Attach(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Manual(args) => args.run(),
        Command::Control(command) => command.run(),
    };
    match result {
        Ok(code) => printed(code),
        Err(error) => {
            if interrupted(&error) {
                note!("tornblk: interrupted; nothing is left running");
                return signals::INTERRUPTED;
            }
            note!("tornblk: {}", sentence(&error));
            note!("next: `tornblk doctor` says whether everything is here that a run needs");
            2
        }
    }
}

/// A verdict stays what it is; anything else is worth nothing where it could not be printed.
fn printed(code: u8) -> u8 {
    match out::failed() {
        Some(error) => {
            note!("tornblk: cannot write to the standard output: {error}");
            if code == 0 { 2 } else { code }
        }
        None => code,
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

/// A report that cannot be written is better known before all the work than after it.
fn check_writable<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    for path in paths {
        let there = path.exists();
        let cannot = || format!("cannot write {}", path.display());
        std::fs::File::options().append(true).create(true).open(path).with_context(cannot)?;
        if !there {
            std::fs::remove_file(path).with_context(cannot)?;
        }
    }
    Ok(())
}

/// The same page in several places; it is only made where there is one.
fn write_pages(to: &[&Path], page: impl FnOnce() -> Page) -> anyhow::Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let page = page();
    let mut written = Ok(());
    for path in to {
        let one = page.write(path).with_context(|| format!("cannot write {}", path.display()));
        // The others are tried all the same.
        written = written.and(one);
    }
    written
}

/// Where there is more to see than on the terminal.
fn say_where(pages: &[&Path], written: &anyhow::Result<()>) {
    if let (Some(page), Ok(())) = (pages.first(), written) {
        say!("report: {}", page.display());
    }
}

/// A violation is the news, whatever could not be written.
fn told(written: anyhow::Result<()>, exit: u8) -> anyhow::Result<u8> {
    match written {
        Err(error) if exit == 1 => {
            note!("tornblk: {}", sentence(&error));
            Ok(1)
        }
        written => written.map(|()| exit),
    }
}

fn interrupted(error: &anyhow::Error) -> bool {
    use crate::bench::BenchError;
    use {crate::explore::ExploreError, crate::run::RunError, tornblk_image::ImageError};
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(RunError::Interrupted))
            || matches!(
                cause.downcast_ref(),
                Some(ExploreError::Interrupted | ExploreError::Run(RunError::Interrupted))
            )
            || matches!(cause.downcast_ref(), Some(ImageError::Stopped))
            || matches!(cause.downcast_ref(), Some(BenchError::Interrupted))
    })
}

/// The error and its causes, each said once.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // As a part of it, not in the middle of a word or a path.
        if text.ends_with(&cause) || text.contains(&format!("{cause}: ")) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_suite_is_named() {
        assert!(crate::suite::builtin().iter().all(|(name, _)| AFTER.contains(name)));
    }

    #[test]
    fn errors_are_one_line_without_repetition() {
        let inner = std::io::Error::other("no space left");
        let error = anyhow::Error::from(inner).context("cannot write x: no space left");
        assert_eq!(sentence(&error), "cannot write x: no space left");
    }
}

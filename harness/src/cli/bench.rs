//! `tornblk bench`

use crate::bench::goals::{self, Goal, Wanted, median, spread};
use crate::bench::report::{self, Report};
use crate::bench::server::Places;
use crate::bench::session::{self, Options};
use crate::bench::{BenchError, Cell, Load, Server, startup};
use crate::device::find_tornblkd;
use crate::out::{note, say};
use crate::suite::parse_time;
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tornblk_model::crash::size;

/// From a process's start to its first answer.
const STARTUP: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  tornblk bench                                   the disk by itself
  tornblk bench --against qemu-storage-daemon     and against what QEMU brings
  tornblk bench --against qemu-storage-daemon --dir /mnt/nvme --json bench.json";

/// Measure the disk, by itself or against another vhost-user-blk device, without a guest
///
/// A driver on this host (libblkio) asks; all devices take turns on the same file. Figures are
/// medians of rounds; what is judged are ratios. Exits 1 where one is below its goal.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// Compare with this program: a qemu-storage-daemon
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,

    /// Write all figures there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Rounds through everything; every other one goes backwards
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Of one load on one device in one round, such as 1s or 200ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_moment)]
    time: Duration,

    /// Bytes of the disk
    #[arg(long, value_name = "SIZE", default_value = "512m", value_parser = parse_size)]
    size: u64,

    /// Where images and recordings are made, in a folder of their own that is removed at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Only loads whose names have this in them, such as `random read`
    #[arg(long, value_name = "TEXT")]
    load: Option<String>,
}

impl BenchArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        super::check_writable(&self.json)?;
        if cfg!(debug_assertions) {
            note!("tornblk: this is a debug build: its figures say little (cargo build --release)");
        }
        let parent = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("tornblk-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let mut options = self.options(folder.path().to_owned())?;
        let interrupted = super::signals::watch()?;
        let end = || {
            if interrupted.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
        };
        session::prepare(&mut options)?;
        end()?;
        if !options.servers.iter().any(|server| server.direct()) {
            note!("tornblk: no direct I/O in {}: left out", parent.display());
        }
        let cells = options.loads.len() * options.queues.len() * options.servers.len();
        let bar = ProgressBar::new(u64::from(options.rounds) * cells as u64);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {msg} ({eta} left)") {
            bar.set_style(style);
        }
        let samples = session::run(&options, &mut |round, cell: Cell| {
            let Cell { load, queues, server } = cell;
            bar.set_message(format!("round {}: {load}, {queues} queues, {server}", round + 1));
            bar.inc(1);
            end()
        })?;
        let started = if self.load.is_none() {
            startup::measure(&options.places, &mut |what| {
                bar.set_message(what.to_owned());
                end()
            })?
        } else {
            Vec::new()
        };
        bar.finish_and_clear();
        let mut goals = goals::judge(&samples, &options.queues);
        goals.extend(startup_goal(&started));
        say!("{}\n", report::cells(&options, &samples));
        if !goals.is_empty() {
            say!("{}\n", report::goals(&goals));
        }
        if let Some(path) = &self.json {
            let against = self.against.as_ref().map(|program| program.display().to_string());
            let report = Report::new(&options, against, &samples, &started, &goals);
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let below = goals.iter().filter(|goal| !goal.met()).count();
        match below {
            0 if goals.is_empty() => {
                say!("nothing to compare: more with --against, or without --load")
            }
            0 => say!("{} ratios, none below its goal", goals.len()),
            n => say!("{n} of {} ratios are below their goals", goals.len()),
        }
        Ok(u8::from(below > 0))
    }

    fn options(&self, folder: PathBuf) -> anyhow::Result<Options> {
        let text = self.load.as_deref().unwrap_or_default();
        let named = |load: &Load| load.to_string().contains(text);
        let loads: Vec<Load> = Load::ALL.into_iter().filter(named).collect();
        if loads.is_empty() {
            let all: Vec<String> = Load::ALL.iter().map(Load::to_string).collect();
            anyhow::bail!("no load has `{text}` in its name: there are {}", all.join(", "));
        }
        let mut servers = vec![Server::RawCached];
        servers.extend(self.against.is_some().then_some(Server::AgainstCached));
        servers.push(Server::RawDirect);
        servers.extend(self.against.is_some().then_some(Server::AgainstDirect));
        servers.extend([Server::Recording, Server::RawFault, Server::RawPoll]);
        Ok(Options {
            places: Places {
                tornblkd: find_tornblkd()?,
                against: self.against.clone(),
                folder,
                block: 512,
            },
            loads,
            queues: vec![1, 4],
            servers,
            rounds: self.rounds,
            time: self.time,
            size: self.size,
        })
    }
}

/// As elsewhere, or in milliseconds.
fn parse_moment(text: &str) -> Result<Duration, String> {
    match text.strip_suffix("ms").map(str::parse) {
        Some(Ok(n)) if n > 0 => Ok(Duration::from_millis(n)),
        Some(_) => Err(format!("\"{text}\" is no time: a number of milliseconds above 0")),
        None => parse_time(text),
    }
}

/// Room for the largest request, many times over.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let whole = |size: &u64| *size >= 1 << 20 && size.is_multiple_of(1 << 20);
    size::parse(text).filter(whole).ok_or_else(|| "whole MiB, such as 512m".to_owned())
}

fn startup_goal(started: &[Duration]) -> Option<Goal> {
    let ratios: Vec<f64> =
        started.iter().map(|took| took.as_secs_f64() / STARTUP.as_secs_f64()).collect();
    (!ratios.is_empty()).then(|| Goal {
        what: format!("start to first answer, 1 TiB, 1e6 events, over {} s", STARTUP.as_secs_f64()),
        ratio: median(&ratios),
        spread: spread(&ratios),
        wanted: Some(Wanted::AtMost(1.0)),
    })
}

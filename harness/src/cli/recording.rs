//! `tornblk recording`

use super::{examples, signals};
use crate::explore::recording_at;
use crate::export::{self, ExportError};
use crate::out::say;
use crate::run::RunError;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::crash::{Content, History, Profile, RequestKind, StateName, size};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::log_writes::{self, ImportOptions};
use tornblk_model::recording::{
    Header, Info, Reader, RecordingError, SEGMENT_SIZE, StateReader, Trust,
};

#[derive(Debug, Subcommand)]
pub(super) enum RecordingCommand {
    /// What is in it: disk, requests, marks, sizes
    #[command(after_help = examples::RECORDING_INFO)]
    Info {
        /// A recording, or the folder of a cut or lane that a run kept
        #[arg(value_name = "RECORDING")]
        recording: PathBuf,
        /// List the marks
        #[arg(long)]
        marks: bool,
        /// As JSON, marks included
        #[arg(long)]
        json: bool,
    },
    /// Read every event and all data, and check them; and that the base image is the one
    #[command(after_help = examples::RECORDING_VERIFY)]
    Verify {
        #[arg(value_name = "RECORDING")]
        recording: PathBuf,
        /// The base image, where it is no longer where it was
        #[arg(long, value_name = "FILE")]
        base: Option<PathBuf>,
    },
    /// Take the disk out, at the end or in a crash state; or all requests, as a dm-log-writes log
    Export(ExportArgs),
    /// Make a recording of a dm-log-writes log (the kernel's, QEMU's blklogwrites, ours)
    Import(ImportArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The bytes of the disk, sparse
    #[default]
    Raw,
    /// An image for QEMU
    Qcow2,
    /// Every write, for xfstests' replay-log
    DmLogWrites,
}

#[derive(Debug, Args)]
#[command(after_help = examples::RECORDING_EXPORT)]
pub(super) struct ExportArgs {
    #[arg(value_name = "RECORDING")]
    recording: PathBuf,

    /// A state's name, as a run or a crash tells it [default: everything that was answered]
    #[arg(long, value_name = "NAME", conflicts_with = "states_from")]
    state: Option<String>,

    /// A file of names, one at the beginning of each line; `-` is the standard input
    #[arg(long, value_name = "FILE", requires = "hash", conflicts_with = "output")]
    states_from: Option<PathBuf>,

    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// The file to write, which must not exist
    #[arg(short, long, value_name = "FILE", required_unless_present = "hash")]
    output: Option<PathBuf>,

    /// Print `NAME SHA256` of the whole disk
    #[arg(long)]
    hash: bool,

    /// With a log: write the disk as it was before it, for `replay-log --replay`
    #[arg(long, value_name = "FILE")]
    base_out: Option<PathBuf>,

    /// The base image, where it is no longer where it was
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::RECORDING_IMPORT)]
pub(super) struct ImportArgs {
    #[arg(value_name = "LOG")]
    log: PathBuf,

    /// The log's format
    #[arg(long, value_enum, default_value_t = Format::DmLogWrites)]
    format: Format,

    /// The disk as it was when the log began
    #[arg(long, value_name = "FILE")]
    base: PathBuf,

    /// Bytes in a logical block [default: in a sector of the log]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    logical_block_size: Option<u64>,

    /// The largest write that the disk keeps whole: its profile; exploring may choose others
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "0")]
    atomic_unit_max: u64,

    /// The recording to make, which must not exist
    #[arg(short, long, value_name = "RECORDING")]
    output: PathBuf,
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text).ok_or_else(|| format!("'{text}' is no size: write bytes, or 4k, 1m"))
}

impl RecordingCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            RecordingCommand::Info { recording, marks, json } => {
                info(&recording_at(&recording)?, marks, json)?;
            }
            RecordingCommand::Verify { recording, base } => {
                verify(&recording_at(&recording)?, base.as_deref())?;
            }
            RecordingCommand::Export(mut args) => {
                args.recording = recording_at(&args.recording)?;
                args.run()?;
            }
            RecordingCommand::Import(args) => args.run()?,
        }
        Ok(0)
    }
}

fn trust(base: Option<&Path>) -> Trust {
    if base.is_some() { Trust::SameContent } else { Trust::Unchanged }
}

/// The option is named where it would have helped.
fn missing_base(error: RecordingError, given: Option<&Path>, reader: &Reader) -> anyhow::Error {
    match &error {
        RecordingError::Io { source, .. }
            if given.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            let image = reader.header().base.path.display();
            anyhow!("the base image {image} is not there: say with --base where it is now")
        }
        _ => error.into(),
    }
}

fn verify(path: &Path, base: Option<&Path>) -> anyhow::Result<()> {
    let reader = Reader::open(path)?;
    let verified = reader.verify()?;
    history(&reader)?;
    say!(
        "{} is whole: {} events, {} writes, {} bytes of data",
        path.display(),
        verified.events,
        verified.writes,
        verified.payload_bytes
    );
    if !reader.header().data {
        say!("it is a trace: its image goes on without it, and is not compared");
        return Ok(());
    }
    let image = &reader.header().base;
    image.check(base, trust(base)).map_err(|e| missing_base(e, base, &reader))?;
    let base = base.unwrap_or(&reader.header().base.path);
    say!("{} is its base image (size and samples)", base.display());
    Ok(())
}

/// Writes between two completed flushes.
#[derive(Debug, Default, serde::Serialize)]
struct Epochs {
    epochs: usize,
    /// Of the writes, discards and write zeroes in each.
    median: usize,
    largest: usize,
}

fn epochs(history: &History) -> Epochs {
    let mut ends: Vec<(Seq, bool)> = history
        .requests()
        .iter()
        .filter(|r| r.changes() || r.kind() == RequestKind::Flush)
        .filter_map(|r| Some((r.succeeded()?, r.kind() == RequestKind::Flush)))
        .collect();
    ends.sort_unstable();
    let mut sizes: Vec<usize> =
        ends.split(|(_, flush)| *flush).map(<[_]>::len).filter(|n| *n > 0).collect();
    sizes.sort_unstable();
    Epochs {
        epochs: sizes.len(),
        median: sizes.get(sizes.len() / 2).copied().unwrap_or_default(),
        largest: sizes.last().copied().unwrap_or_default(),
    }
}

fn info(path: &Path, marks: bool, json: bool) -> anyhow::Result<()> {
    let reader = Reader::open(path)?;
    let info = reader.info()?;
    let epochs = epochs(&history(&reader)?);
    let requests = info.requests();
    // A slot is 48 bytes.
    let beside = (requests > 0).then(|| 48.0 * info.events as f64 / requests as f64);
    if json {
        let text = serde_json::json!({
            "header": info.header,
            "events": info.events,
            "last": info.last,
            "holes": info.holes,
            "counts": info.counts,
            "epochs": epochs,
            "write_sizes": info.write_sizes,
            "payload_bytes": info.payload_bytes,
            "file_bytes": info.file_bytes,
            "allocated_bytes": info.allocated_bytes,
            "bytes_beside_data": beside,
            "marks": info.marks.iter().map(|(at, m)| (at.0, &m.name)).collect::<Vec<_>>(),
        });
        say!("{text:#}");
        return Ok(());
    }
    let Info { header, counts, .. } = &info;
    say!(
        "disk       {} bytes ({}), logical blocks of {}",
        header.disk.capacity,
        size::print(header.disk.capacity),
        header.disk.lb_size
    );
    say!("profile    {}", profile(&reader).map_or("not said".into(), |p| p.to_string()));
    say!("base       {}", header.base.path.display());
    if !header.data {
        say!("trace      the data of writes are not kept: no state of it can be shown");
    }
    if let Some(on) = &header.on {
        say!("on         state {} of {}", on.state, on.recording.display());
    }
    if let Some(log) = header.options.pointer("/imported/log").and_then(|log| log.as_str()) {
        say!("imported   from {log}: no submit times, no crash point inside a request");
    }
    say!(
        "events     {}, the last is {} ({} numbers never committed)",
        info.events,
        info.last.map_or("none".into(), |last| last.to_string()),
        info.holes
    );
    say!(
        "requests   {} reads, {} writes, {} flushes, {} discards, {} write zeroes; {} failed, {} never answered",
        counts.reads,
        counts.writes,
        counts.flushes,
        counts.discards,
        counts.write_zeroes,
        counts.failed,
        counts.unanswered
    );
    let sizes = info.write_sizes.iter().map(|(len, n)| format!("{n} of {}", size::print(*len)));
    let sizes: Vec<String> = sizes.collect();
    let more = sizes.len().saturating_sub(12);
    let rest = if more > 0 { format!(", and {more} other sizes") } else { String::new() };
    match sizes.as_slice() {
        [] => say!("writes     none"),
        sizes => say!(
            "writes     {}{rest}; {} cover a part of a block",
            sizes[..sizes.len() - more].join(", "),
            counts.sub_block
        ),
    }
    say!(
        "epochs     {} between flushes; changes in one: {} in the middle, {} at most",
        epochs.epochs,
        epochs.median,
        epochs.largest
    );
    say!(
        "other      {} negotiations, {} changes of the write cache, {} resets, {} restarts, {} power cuts",
        counts.negotiations,
        counts.writeback_changes,
        counts.resets,
        counts.restarts,
        counts.power_cuts
    );
    say!(
        "data       {} bytes in {} of file, of which {} take space; {} beside it for each request",
        info.payload_bytes,
        info.file_bytes,
        info.allocated_bytes,
        beside.map_or("none".into(), |n| format!("{n:.0} bytes"))
    );
    say!("marks      {}", counts.marks);
    if marks {
        for (event, mark) in &info.marks {
            say!("{event:>10} {}", mark.name);
        }
    }
    Ok(())
}

impl ExportArgs {
    fn run(&self) -> anyhow::Result<()> {
        if self.format == Format::DmLogWrites {
            return self.log();
        }
        if self.base_out.is_some() {
            bail!("--base-out is for --format dm-log-writes: a raw or qcow2 image needs no base");
        }
        let reader = Arc::new(Reader::open(&self.recording)?);
        let history = history(&reader)?;
        if let Some(file) = &self.states_from {
            return self.hashes(&reader, &history, file);
        }
        let (name, content) = match &self.state {
            Some(name) => {
                let name = StateName(name.clone());
                let content = history
                    .build(&name)
                    .with_context(|| format!("{} has no such state", self.recording.display()))?;
                (name.0, content)
            }
            None => last(&reader, &history)?,
        };
        let base = self.base.as_deref();
        let state = StateReader::new(Arc::clone(&reader), base, trust(base), content)
            .map_err(|e| missing_base(e, base, &reader))?;
        if let Some(output) = &self.output {
            let written = match self.format {
                Format::Qcow2 => export::qcow2(&state, output)?,
                Format::Raw | Format::DmLogWrites => state.export(output)?,
            };
            if !self.hash {
                say!(
                    "{}: {} bytes, {} of them not zero, as {name}",
                    output.display(),
                    written.size,
                    written.data
                );
            }
        }
        if self.hash {
            say!("{name} {}", hex(&state.sha256()?));
        }
        Ok(())
    }

    fn hashes(&self, reader: &Arc<Reader>, history: &History, file: &Path) -> anyhow::Result<()> {
        let mut lines: Box<dyn BufRead> = if file == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            let file_ = std::fs::File::open(file);
            let file = file_.with_context(|| format!("cannot read {}", file.display()))?;
            Box::new(std::io::BufReader::new(file))
        };
        let mut names = Vec::new();
        let mut line = String::new();
        while lines.read_line(&mut line).context("cannot read the names of states")? > 0 {
            names.extend(line.split_whitespace().next().map(|name| StateName(name.to_owned())));
            line.clear();
        }
        let stop = signals::watch()?;
        let base = (self.base.as_deref(), trust(self.base.as_deref()));
        let mut out = std::io::stdout().lock();
        let mut closed = None;
        let done = export::hashes(reader, history, base, &names, &stop, |name, hash| {
            if closed.is_none()
                && let Err(e) = writeln!(out, "{} {}", name.0, hex(hash))
            {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                closed = Some(e);
            }
        });
        match closed {
            // Who reads has seen enough.
            Some(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Some(e) => return Err(e).context("cannot print"),
            None => {}
        }
        match done {
            Err(ExportError::Interrupted) => Err(RunError::Interrupted.into()),
            other => Ok(other?),
        }
    }

    fn log(&self) -> anyhow::Result<()> {
        if self.state.is_some() || self.hash {
            bail!(
                "a log has every write and is no state: leave out --state and --hash, or the log"
            );
        }
        let Some(output) = &self.output else { bail!("say where to write the log: -o LOG") };
        if self.base_out.as_deref().is_some_and(|base| base.symlink_metadata().is_ok()) {
            bail!("the file of --base-out exists already: choose another name, or remove it");
        }
        let reader = Arc::new(Reader::open(&self.recording)?);
        let history = history(&reader)?;
        let base = self.base.as_deref();
        let start = match &self.base_out {
            Some(_) => Some(
                StateReader::new(Arc::clone(&reader), base, trust(base), Content::default())
                    .map_err(|e| missing_base(e, base, &reader))?,
            ),
            None => None,
        };
        let done = log_writes::export(&reader, &history, output)?;
        say!(
            "{}: {} entries, {} of them with data, {} flushes, {} discards, {} marks",
            output.display(),
            done.entries,
            done.writes,
            done.flushes,
            done.discards,
            done.marks
        );
        if done.failed > 0 {
            say!("left out: {} requests that failed and changed nothing", done.failed);
        }
        if done.unanswered > 0 {
            say!("at its end: {} requests that were never answered", done.unanswered);
        }
        if let Some(cut) = done.cut {
            say!("it ends at event {cut}, where the power was cut; the recording goes on");
        }
        if let (Some(state), Some(to)) = (start, &self.base_out) {
            if let Err(e) = state.export(to) {
                // Neither without the other.
                let _ = std::fs::remove_file(output);
                return Err(e.into());
            }
            say!("{}: the disk before it", to.display());
        }
        Ok(())
    }
}

impl ImportArgs {
    fn run(&self) -> anyhow::Result<()> {
        if self.format != Format::DmLogWrites {
            bail!("only dm-log-writes logs can be imported: an image has no order of writes");
        }
        let lb_size = self.logical_block_size.map(u32::try_from).transpose();
        let options = ImportOptions {
            base: self.base.clone(),
            lb_size: lb_size.context("no disk has logical blocks of that size")?,
            atomic_unit_max: self.atomic_unit_max,
            segment_size: SEGMENT_SIZE,
        };
        let done = log_writes::import(&self.log, &self.output, &options)?;
        say!(
            "{}: {} entries: {} writes of {} bytes, {} write zeroes, {} flushes, {} discards, {} marks",
            self.output.display(),
            done.entries,
            done.writes,
            done.bytes,
            done.write_zeroes,
            done.flushes,
            done.discards,
            done.marks
        );
        Ok(())
    }
}

/// Of the disk that was recorded, as states' names have it.
fn profile(reader: &Reader) -> Option<Profile> {
    let Header { options, disk, .. } = reader.header();
    Some(options.get("profile")?.as_str()?.parse::<Profile>().ok()?.on(disk))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What a recording says about its requests.
pub(super) fn history(reader: &Reader) -> anyhow::Result<History> {
    let events: Result<Vec<(Seq, Event)>, _> = reader.events().collect();
    Ok(History::new(reader.header().disk.clone(), events?)?)
}

/// Everything that the recording holds, at its last event.
fn last(reader: &Reader, history: &History) -> anyhow::Result<(String, Content)> {
    let Some(last) = history.last() else {
        bail!("{} has no events: its disk is its base image", reader.path().display());
    };
    let name = match profile(reader) {
        Some(profile) => format!("{profile}/p{last}:all"),
        None => format!("lb{}/p{last}:all", reader.header().disk.lb_size),
    };
    let content = history.build(&StateName(name.clone()))?;
    Ok((name, content))
}

//! `tornblk recording`

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::crash::{Content, History, StateName};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::{Reader, StateReader, Trust};

#[derive(Debug, Subcommand)]
pub(super) enum RecordingCommand {
    /// What is in it: disk, events, marks
    Info {
        #[arg(value_name = "RECORDING")]
        recording: PathBuf,
        /// List the marks
        #[arg(long)]
        marks: bool,
    },
    /// Read every event and all data, and check them
    Verify {
        #[arg(value_name = "RECORDING")]
        recording: PathBuf,
    },
    /// Take the disk out, as it was at the end or in a crash state
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[arg(value_name = "RECORDING")]
    recording: PathBuf,

    /// A state's name, as a run or a crash tells it [default: everything that was answered]
    #[arg(long, value_name = "NAME")]
    state: Option<String>,

    /// The raw image to write, which must not exist
    #[arg(short, long, value_name = "FILE", required_unless_present = "hash")]
    output: Option<PathBuf>,

    /// Print `NAME SHA256` of the whole disk
    #[arg(long)]
    hash: bool,

    /// The base image, where it is no longer where it was
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
}

impl RecordingCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            RecordingCommand::Info { recording, marks } => info(&recording, marks)?,
            RecordingCommand::Verify { recording } => {
                let verified = Reader::open(&recording)?.verify()?;
                println!(
                    "{} is whole: {} events, {} writes, {} bytes of data",
                    recording.display(),
                    verified.events,
                    verified.writes,
                    verified.payload_bytes
                );
            }
            RecordingCommand::Export(args) => args.run()?,
        }
        Ok(0)
    }
}

fn info(path: &Path, marks: bool) -> anyhow::Result<()> {
    let info = Reader::open(path)?.info()?;
    let (disk, base, counts) = (&info.header.disk, &info.header.base, &info.counts);
    println!("disk       {} bytes, logical blocks of {}", disk.capacity, disk.lb_size);
    println!("base       {}", base.path.display());
    println!("events     {} ({} never committed)", info.events, info.holes);
    println!(
        "requests   {} reads, {} writes, {} flushes, {} discards, {} write zeroes; {} failed, {} never answered",
        counts.reads,
        counts.writes,
        counts.flushes,
        counts.discards,
        counts.write_zeroes,
        counts.failed,
        counts.unanswered
    );
    println!("data       {} bytes in {} bytes of file", info.payload_bytes, info.file_bytes);
    println!("marks      {}", counts.marks);
    if marks {
        for (event, mark) in &info.marks {
            println!("{event:>10} {}", mark.name);
        }
    }
    Ok(())
}

impl ExportArgs {
    fn run(&self) -> anyhow::Result<()> {
        let reader = Arc::new(Reader::open(&self.recording)?);
        let history = history(&reader)?;
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
        let trust = if self.base.is_some() { Trust::SameContent } else { Trust::Unchanged };
        let state = StateReader::new(reader, self.base.as_deref(), trust, content)?;
        if let Some(output) = &self.output {
            let written = state.export(output)?;
            if !self.hash {
                println!(
                    "{}: {} bytes, {} of them not zero, as {name}",
                    output.display(),
                    written.size,
                    written.data
                );
            }
        }
        if self.hash {
            let hex: String = state.sha256()?.iter().map(|b| format!("{b:02x}")).collect();
            println!("{name} {hex}");
        }
        Ok(())
    }
}

/// What a recording says about its requests.
pub(super) fn history(reader: &Reader) -> anyhow::Result<History> {
    let events: Result<Vec<(Seq, Event)>, _> = reader.events().collect();
    Ok(History::new(reader.header().disk.clone(), events?)?)
}

/// Everything that the recording holds, at its last event.
fn last(reader: &Reader, history: &History) -> anyhow::Result<(String, Content)> {
    let Some(last) = reader.info()?.last else {
        bail!("{} has no events: its disk is its base image", reader.path().display());
    };
    let name = format!("lb{}/p{last}:all", reader.header().disk.lb_size);
    let content = history.build(&StateName(name.clone()))?;
    Ok((name, content))
}

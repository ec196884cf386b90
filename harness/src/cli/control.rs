//! The device by hand: thin clients of its control socket.

use super::{examples, signals};
use crate::out::{note, say};
use crate::report::named_in_words;
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tornblk_proto::{Client, Match, OpKind, Range, StallWhen, Trigger};

#[derive(Debug, Subcommand)]
pub(super) enum ControlCommand {
    /// What a device is doing, as JSON; and in a line, how writes arrived that say what they are
    #[command(after_help = examples::STATUS)]
    Status {
        #[command(flatten)]
        socket: Socket,
    },
    /// A device's block sizes and atomic-write limits, as JSON
    #[command(after_help = examples::LIMITS)]
    Limits {
        #[command(flatten)]
        socket: Socket,
    },
    /// Take the size that a raw disk's image has now, after it was made larger; the guest is told
    #[command(after_help = examples::RESIZE)]
    Resize {
        #[command(flatten)]
        socket: Socket,
    },
    /// Name this moment in the recording
    #[command(after_help = examples::MARK)]
    Mark {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Hold requests until Ctrl-C, a release, or the given time
    Stall(StallArgs),
    /// Let go what a stall holds
    #[command(after_help = examples::RELEASE)]
    Release {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "TOKEN")]
        token: u64,
    },
    /// Break a promise: eio,nth=3, stale-read, tear-atomic, ignore-flush, ...
    #[command(after_help = examples::FAULT)]
    Fault {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "FAULT")]
        spec: String,
    },
    /// Cut the power
    Crash(CrashArgs),
    /// Show the disk in a state of its recording (`live`: as it is now)
    #[command(after_help = examples::USE_STATE)]
    UseState {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Socket {
    /// The device's control socket (`tornblkd --control`)
    #[arg(long = "control", value_name = "SOCKET")]
    path: PathBuf,
}

impl Socket {
    fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.path)?)
    }
}

/// Which requests.
#[derive(Debug, Args)]
struct Which {
    /// Only these
    #[arg(long, value_name = "OP")]
    op: Option<OpArg>,
    /// Only those that touch these bytes: OFFSET+LENGTH
    #[arg(long, value_name = "RANGE", value_parser = parse_range)]
    range: Option<Range>,
    /// Only the nth of them, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    nth: Option<u64>,
    /// Only writes that the limits make atomic
    #[arg(long)]
    eligible: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OpArg {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Which {
    fn to_match(&self) -> Match {
        let op = self.op.map(|op| match op {
            OpArg::Read => OpKind::Read,
            OpArg::Write => OpKind::Write,
            OpArg::Flush => OpKind::Flush,
            OpArg::Discard => OpKind::Discard,
            OpArg::WriteZeroes => OpKind::WriteZeroes,
        });
        Match { op, range: self.range, nth: self.nth, eligible: self.eligible }
    }

    fn is_any(&self) -> bool {
        self.to_match() == Match::default()
    }
}

#[derive(Debug, Args)]
#[command(after_help = examples::STALL)]
pub(super) struct StallArgs {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    which: Which,
    /// Before it is executed, or after, before it is answered
    #[arg(long, value_name = "WHEN", default_value = "before-io")]
    when: When,
    /// Let go after this time (10s, 2m)
    #[arg(long = "for", value_name = "TIME", value_parser = crate::suite::parse_time)]
    time: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    BeforeIo,
    BeforeCompletion,
}

#[derive(Debug, Args)]
#[command(after_help = examples::CRASH)]
pub(super) struct CrashArgs {
    #[command(flatten)]
    socket: Socket,
    /// Right after a request that matches was submitted, or completed, instead of now
    #[arg(long, value_name = "EVENT", conflicts_with = "mark")]
    at: Option<At>,
    #[command(flatten)]
    which: Which,
    /// Right after this mark
    #[arg(long, value_name = "NAME")]
    mark: Option<String>,
    /// What survives: a state's name, or only what it chooses (`none`, `all`)
    #[arg(long, value_name = "NAME")]
    state: Option<String>,
    /// Of the state that is drawn
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Which disk this is, instead of the device's own profile
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum At {
    Submit,
    Complete,
}

/// `64k+4k`
fn parse_range(text: &str) -> Result<Range, String> {
    let fault: tornblk_model::crash::Fault = format!("corrupt,range={text}")
        .parse()
        .map_err(|_| "a range is OFFSET+LENGTH in whole sectors, such as 64k+4k".to_owned())?;
    let (offset, len) = fault.range.unwrap_or_default();
    Ok(Range { offset, len })
}

impl CrashArgs {
    fn trigger(&self) -> anyhow::Result<Trigger> {
        match (self.at, &self.mark) {
            (None, Some(name)) => Ok(Trigger::Mark(name.clone())),
            (Some(At::Submit), _) => Ok(Trigger::Submit(self.which.to_match())),
            (Some(At::Complete), _) => Ok(Trigger::Complete(self.which.to_match())),
            (None, None) if self.which.is_any() => Ok(Trigger::Now),
            (None, None) => {
                anyhow::bail!(
                    "--op, --range, --nth and --eligible say which request: add --at submit or --at complete"
                )
            }
        }
    }
}

impl ControlCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            ControlCommand::Status { socket } => {
                let status = socket.connect()?.status()?;
                print(&status)?;
                // Beside the answer, which is for programs, too.
                if let Some(text) = named_in_words(&status.named) {
                    note!("{text}");
                }
            }
            ControlCommand::Limits { socket } => print(&socket.connect()?.limits()?)?,
            ControlCommand::Resize { socket } => {
                say!("{} bytes", socket.connect()?.resize()?);
            }
            ControlCommand::Mark { socket, name } => {
                say!("event {}", socket.connect()?.mark(name)?.event);
            }
            ControlCommand::Stall(args) => args.run()?,
            ControlCommand::Release { socket, token } => {
                say!("{} requests go on", socket.connect()?.release(token)?);
            }
            ControlCommand::Fault { socket, spec } => {
                say!("token {}", socket.connect()?.fault(spec)?);
            }
            ControlCommand::Crash(args) => {
                let trigger = args.trigger()?;
                let client = args.socket.connect()?;
                let (state, profile) = (args.state.as_deref(), args.profile.as_deref());
                print(&client.crash(trigger, state, args.seed, profile)?)?;
            }
            ControlCommand::UseState { socket, name } => {
                print(&socket.connect()?.use_state(name)?)?;
            }
        }
        Ok(0)
    }
}

impl StallArgs {
    fn run(&self) -> anyhow::Result<()> {
        let interrupted = signals::watch()?;
        let client = self.socket.connect()?;
        let when = match self.when {
            When::BeforeIo => StallWhen::BeforeIo,
            When::BeforeCompletion => StallWhen::BeforeCompletion,
        };
        let token = client.stall(self.which.to_match(), when)?;
        let until = match self.time {
            Some(time) => format!("for {} s, or until Ctrl-C", time.as_secs_f64()),
            None => "until Ctrl-C".to_owned(),
        };
        let socket = self.socket.path.display();
        say!("token {token}; held {until} or `tornblk release {token} --control {socket}`");
        let start = Instant::now();
        let over = |t: Duration| start.elapsed() >= t;
        // A stall ends with the connection that asked for it: stay until somebody ends it.
        while !interrupted.load(Ordering::Relaxed) && !self.time.is_some_and(over) {
            if !client.status()?.stalls.iter().any(|s| s.token == token) {
                say!("released");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        say!("{} requests go on", client.release(token)?);
        Ok(())
    }
}

fn print<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write the answer")?;
    say!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn trigger(line: &str) -> anyhow::Result<Trigger> {
        let words = ["tornblk", "crash", "--control", "s"].into_iter().chain(line.split(' '));
        let words = words.filter(|w| !w.is_empty());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Control(ControlCommand::Crash(args)) => args.trigger(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_crash_says_when() {
        assert_eq!(trigger("").unwrap(), Trigger::Now);
        assert_eq!(trigger("--mark here").unwrap(), Trigger::Mark("here".into()));
        let which = Match {
            op: Some(OpKind::Write),
            range: Some(Range { offset: 65536, len: 4096 }),
            nth: Some(3),
            eligible: true,
        };
        let line = "--at submit --op write --range 64k+4k --nth 3 --eligible";
        assert_eq!(trigger(line).unwrap(), Trigger::Submit(which));
        let error = trigger("--op write").unwrap_err().to_string();
        assert!(error.contains("--at submit"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let socket = Socket { path: dir.path().join("none") };
        let error = ControlCommand::Status { socket }.run().unwrap_err().to_string();
        assert!(error.contains("is tornblkd running"), "{error}");
    }
}

//! Processes of the agent's own: the same program again, with another part to play.
//!
//! A race needs them where a thread is not enough: a server that is to be killed, a second address
//! space, a store that may end in SIGBUS. Parent and child speak in lines of JSON, one question and
//! one answer at a time, over the child's standard input and output.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{self, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::log::{self, log};
use super::race::{fuse_server, mapper};
use super::{Error, Result};

/// The first argument of a program that is such a child; its part and what it works on follow.
pub const CHILD: &str = "--child";

/// How often one that may have ended is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Plays a part, to its end.
pub fn run(part: &str, args: &[String]) -> ExitCode {
    log::use_kernel_log();
    std::panic::set_hook(Box::new(|info| log(format_args!("{info}"))));
    let result = match part {
        fuse_server::PART => fuse_server::child(args),
        mapper::PART => mapper::child(args),
        other => Err(Error::Refused(format!("there is no part \"{other}\" to play"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log(format_args!("{part}: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Answers the parent's questions, until it asks no more. For the child.
///
/// # Errors
/// A question is not understood, or the parent is gone.
pub fn answer<Q: DeserializeOwned, A: Serialize>(mut answer: impl FnMut(Q) -> A) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(Error::system("cannot read what the parent asks"))?;
        let question = serde_json::from_str(&line)
            .map_err(|e| Error::Refused(format!("what the parent asks is not understood: {e}")))?;
        let text = serde_json::to_string(&answer(question)).unwrap_or_default();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(Error::system("cannot answer the parent"))?;
    }
    Ok(())
}

/// A child that runs. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    part: &'static str,
    pid: u32,
    process: Mutex<process::Child>,
    lines: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Child {
    /// Returns when the new program runs, and that closes what it inherits: not while a close(2) of
    /// ours might have to wait for something.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(part: &'static str, args: &[&str]) -> Result<Child> {
        let failed = || format!("cannot start a process as {part}");
        let mut process = Command::new("/proc/self/exe")
            .args([CHILD, part])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::system(failed()))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Refused(failed()));
        };
        let lines = Mutex::new((input, BufReader::new(output)));
        Ok(Child { part, pid: process.id(), process: Mutex::new(process), lines })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks, and waits for the answer: as long as it takes.
    ///
    /// # Errors
    /// It ended instead.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(&self, question: &Q) -> Result<A> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_string(question).unwrap_or_default();
        let told = writeln!(lines.0, "{text}").and_then(|()| lines.0.flush());
        let mut line = String::new();
        match told.and_then(|()| lines.1.read_line(&mut line)) {
            Ok(0) | Err(_) => Err(Error::Refused(format!(
                "the process as {} is gone{}, asked {text:.80}",
                self.part,
                self.ended(Duration::from_secs(2))
                    .map_or_else(String::new, |how| format!(" ({how})")),
            ))),
            Ok(_) => serde_json::from_str(&line).map_err(|e| {
                Error::Refused(format!("the process as {} answers {line:?}: {e}", self.part))
            }),
        }
    }

    /// How it ended, if it does in time.
    pub fn ended(&self, time: Duration) -> Option<process::ExitStatus> {
        let end = Instant::now() + time;
        loop {
            let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(Some(status)) = process.try_wait() {
                return Some(status);
            }
            drop(process);
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        let _ = self.process.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }

    /// Where in the kernel its threads are that are somewhere: `a < b < c`, one a thread.
    pub fn stacks(&self) -> Vec<String> {
        stacks(&format!("/proc/{}", self.pid))
    }
}

fn stacks(process: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("{process}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.map(|task| super::race::task::stack_of(&task.path())).collect()
}

/// Where all of them are in the kernel: `part: a < b < c`, the same once.
pub fn all_stacks() -> Vec<String> {
    let mut all = std::collections::BTreeSet::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = process.path();
        let said = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let mut words = said.split('\0').skip(1);
        if let (Some(CHILD), Some(part)) = (words.next(), words.next()) {
            let stacks = stacks(&path.to_string_lossy());
            all.extend(stacks.into_iter().map(|stack| format!("{part}: {stack}")));
        }
    }
    all.into_iter().collect()
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // One that the kernel keeps is left behind.
        let _ = self.ended(Duration::from_secs(1));
    }
}

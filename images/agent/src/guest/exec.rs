//! Running programs of the image: bounded in time and in output.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use serde_json::{Value, json};

use super::{Error, Result};
use crate::channel::Ran;

/// Of each of the two outputs this many bytes of its beginning are kept, and as many of its end.
const KEPT: usize = 256 << 10;
/// How long a killed program may take to be gone: one that waits for its disk never is.
const TO_DIE: Duration = Duration::from_secs(5);
/// For what a program left behind, once it has ended.
const TO_LEAVE: Duration = Duration::from_secs(1);

/// Runs a program to its end.
pub fn run(argv: &[String], timeout: Duration) -> Result<Value> {
    let [program, args @ ..] = argv else {
        return Err(Error::Refused("the command to run is empty".into()));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
        .env("LC_ALL", "C")
        .current_dir("/");
    let Ran { status, signal, stdout, stderr } = carry_out(command, program, timeout)?;
    match status {
        Some(status) => Ok(json!({
            "status": status,
            "signal": signal,
            "stdout": stdout,
            "stderr": stderr,
        })),
        None => Err(Error::TimedOut(format!(
            "{program} did not end within {} ms and was killed; it had said: {}",
            timeout.as_millis(),
            last_lines(&stdout, &stderr),
        ))),
    }
}

/// Runs a program, with nothing on its input, in a process group of its own.
///
/// # Errors
/// It cannot be started, or cannot be killed.
pub(super) fn carry_out(mut command: Command, program: &str, timeout: Duration) -> Result<Ran> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(Error::system(format!("cannot run {program}")))?;
    let group = Pid::from_child(&child);
    let outputs = [collect(child.stdout.take()), collect(child.stderr.take())];

    let end = Instant::now() + timeout;
    let in_time = wait_until(&mut child, end)?;
    if in_time.is_none() {
        let _ = kill_process_group(group, Signal::KILL);
        if wait_until(&mut child, Instant::now() + TO_DIE)?.is_none() {
            let pid = child.id();
            let stack = std::fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
            return Err(Error::TimedOut(format!(
                "{program} did not end within {} ms and cannot be killed: it waits in the kernel\
                 {}{}",
                timeout.as_millis(),
                if stack.is_empty() { "" } else { ": " },
                stack.lines().collect::<Vec<_>>().join(" < "),
            )));
        }
    }
    // What it left in the background may hold the outputs open: it goes, a moment later.
    let left = end.saturating_duration_since(Instant::now()).min(TO_LEAVE);
    let mut texts = outputs.each_ref().map(|output| output.recv_timeout(left).ok());
    if texts.iter().any(Option::is_none) {
        let _ = kill_process_group(group, Signal::KILL);
        for (text, output) in texts.iter_mut().zip(&outputs) {
            *text = text.take().or_else(|| output.recv_timeout(TO_DIE).ok());
        }
    }
    let [stdout, stderr] = texts.map(Option::unwrap_or_default);
    let signal = in_time.and_then(|status| status.signal());
    let code = |status: ExitStatus| status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
    Ok(Ran { status: in_time.map(code), signal, stdout, stderr })
}

fn wait_until(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>> {
    let mut pause = Duration::from_micros(200);
    loop {
        let status = child.try_wait().map_err(Error::system("cannot wait for a program"))?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Reads an output to its end in a thread of its own.
fn collect(output: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut kept = Kept::default();
        if let Some(mut output) = output {
            let mut piece = vec![0; 64 << 10];
            loop {
                match output.read(&mut piece) {
                    Ok(0) => break,
                    Ok(n) => kept.push(&piece[..n]),
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        // Nobody waits any more where the program could not be killed.
        let _ = sender.send(kept.text());
    });
    receiver
}

/// The beginning and the end of an output.
#[derive(Default)]
struct Kept {
    head: Vec<u8>,
    tail: Vec<u8>,
    left_out: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(KEPT - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        // Twice as much, so that not every push moves all of it.
        if self.tail.len() > 2 * KEPT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let over = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..over);
        self.left_out += over as u64;
    }

    fn text(mut self) -> String {
        self.cut();
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.left_out > 0 {
            text.push_str(&format!("\n[... {} bytes left out ...]\n", self.left_out));
        }
        text.push_str(&String::from_utf8_lossy(&self.tail));
        text
    }
}

fn last_lines(stdout: &str, stderr: &str) -> String {
    let lines: Vec<&str> = stdout.lines().chain(stderr.lines()).collect();
    let from = lines.len().saturating_sub(5);
    if lines.is_empty() { "nothing".into() } else { lines[from..].join(" | ") }
}

/// Takes the exit status of orphans, which PID 1 inherits. Only while no child is waited for.
pub fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sh(script: &str, timeout_ms: u64) -> Result<Value> {
        run(&["sh".into(), "-c".into(), script.into()], Duration::from_millis(timeout_ms))
    }

    #[test]
    fn a_program_says_how_it_ended() {
        let ended = sh("echo out; echo err >&2; exit 3", 60_000).unwrap();
        assert_eq!(ended["status"], 3);
        assert_eq!(ended["stdout"], "out\n");
        assert_eq!(ended["stderr"], "err\n");
        let killed = sh("kill -TERM $$", 60_000).unwrap();
        assert_eq!((&killed["status"], &killed["signal"]), (&json!(143), &json!(15)));
        let e = run(&["no-such-program".into()], TO_DIE).unwrap_err();
        assert_eq!(e.errno(), Some(libc::ENOENT));
        assert!(run(&[], TO_DIE).is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!(
            "echo begun; sleep 6000 & echo $! >{0}.new; mv {0}.new {0}; wait",
            pid.display()
        );
        let e = sh(&script, 2_000).unwrap_err();
        assert_eq!(e.errno(), Some(libc::ETIMEDOUT));
        assert!(e.to_string().contains("begun"), "{e}");
        let pid = std::fs::read_to_string(pid).unwrap();
        // Soon gone, or a zombie of whoever inherited it.
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..6000 {
            if std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z ")) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("still there: {:?}", std::fs::read_to_string(&stat));
    }

    #[test]
    fn a_daemon_that_holds_the_output_open_does_not_hold_the_answer() {
        let ended = sh("sleep 600 & echo parent", 1_000).unwrap();
        assert_eq!((&ended["status"], &ended["stdout"]), (&json!(0), &json!("parent\n")));
    }

    #[test]
    fn long_output_keeps_both_ends() {
        let ended = sh("echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo last", 60_000);
        let text = ended.unwrap()["stdout"].as_str().unwrap().to_owned();
        assert!(text.starts_with("first\n") && text.ends_with("last\n"));
        assert!(text.len() < 2 * KEPT + 100, "{}", text.len());
        let left_out = 3_000_000 + "first\nlast\n".len() - 2 * KEPT;
        assert!(text.contains(&format!("[... {left_out} bytes left out ...]")));
    }
}

//! Child processes that never outlive this one, however it ends.
//!
//! A child asks the kernel to kill it with its parent (`PR_SET_PDEATHSIG`). The kernel means the
//! parent *thread* by that, so all children are started by one thread that lives as long as the
//! process. Each is its own process group: Ctrl-C at the terminal reaches this program only, which
//! then ends them in its own order.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// A child. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
    /// Where in `log` its words begin.
    log_start: u64,
}

impl Process {
    /// Starts a program with nothing on its input and its words appended to the file `log`. It
    /// inherits `fds` under the same numbers.
    pub fn spawn(
        program: &Path,
        args: Vec<OsString>,
        fds: &[BorrowedFd<'_>],
        log: &Path,
    ) -> io::Result<Process> {
        let mut command = Command::new(program);
        command.args(args);
        Process::spawn_command(command, fds, log)
    }

    /// As [`Process::spawn`], of a command.
    pub fn spawn_command(
        mut command: Command,
        fds: &[BorrowedFd<'_>],
        log: &Path,
    ) -> io::Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        let log_start = file.metadata()?.len();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = spawn(command, fds)?;
        Ok(Process { child, ended: None, log: log.to_owned(), log_start })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.map(describe)
    }

    /// SIGKILL. When it returns, the process is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        if let Ok(status) = self.child.wait() {
            self.ended = Some(status);
        }
    }

    /// Waits for its end, and kills it when that takes longer.
    pub fn wait(&mut self, timeout: Duration) {
        let start = Instant::now();
        while self.ended().is_none() {
            if start.elapsed() > timeout {
                self.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The end of what it said.
    pub fn words(&self) -> String {
        let all = fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(usize::MAX).min(all.len());
        let start = start.max(all.len().saturating_sub(4096));
        String::from_utf8_lossy(&all[start..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}

struct Job {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// Starts `command` so that it dies with this process; it inherits `fds`.
pub fn spawn(mut command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let numbers: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let parent = rustix::process::getpid();
    command.process_group(0);
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        for fd in &numbers {
            // SAFETY: the caller keeps them open until the child runs: `spawn` waits for that.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: after fork it makes system calls only: no allocation, no locks.
    unsafe { command.pre_exec(before_exec) };
    let spawner = SPAWNER.get_or_init(|| {
        let (send, jobs) = channel::<Job>();
        let work = move || {
            for mut job in jobs {
                let _ = job.answer.send(job.command.spawn());
            }
        };
        // Without it, the send below fails.
        let _ = std::thread::Builder::new().name("spawner".into()).spawn(work);
        send
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, child) = channel();
    spawner.send(Job { command, answer }).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    fn sh(script: &str, fds: &[BorrowedFd<'_>], log: &Path) -> Process {
        Process::spawn(Path::new("/bin/sh"), vec!["-c".into(), script.into()], fds, log).unwrap()
    }

    #[test]
    fn the_words_are_those_of_this_process() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("log");
        fs::write(&log, "before\n").unwrap();
        let mut p = sh("echo out; echo err >&2; exit 3", &[], &log);
        p.wait(Duration::from_secs(20));
        assert_eq!(p.ended().unwrap(), "status 3");
        assert_eq!(p.words(), "out\nerr\n");
    }

    #[test]
    fn only_named_descriptors_are_inherited() {
        let tmp = tempfile::tempdir().unwrap();
        let (mut mine, its) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = its.as_raw_fd();
        let mut p = sh(&format!("echo hello >&{fd}"), &[its.as_fd()], &tmp.path().join("log"));
        drop(its);
        let mut got = String::new();
        mine.read_to_string(&mut got).unwrap();
        assert_eq!(got, "hello\n");
        p.wait(Duration::from_secs(20));
        let (_mine, its) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = its.as_raw_fd();
        let mut p = sh(&format!("exec 2>&-; : >&{fd}"), &[], &tmp.path().join("log"));
        p.wait(Duration::from_secs(20));
        assert_ne!(p.ended().unwrap(), "status 0");
    }

    #[test]
    fn dropping_kills_even_when_a_thread_that_asked_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("log");
        let mut p = std::thread::spawn(move || sh("sleep 1000", &[], &log)).join().unwrap();
        // The thread that asked for it has ended, and it must not have died of that.
        assert_eq!(p.ended(), None);
        let proc = PathBuf::from(format!("/proc/{}", p.pid()));
        assert!(proc.exists());
        drop(p);
        assert!(!proc.exists());
    }

    #[test]
    fn waiting_has_an_end() {
        let tmp = tempfile::tempdir().unwrap();
        let mut p = sh("sleep 1000", &[], &tmp.path().join("log"));
        p.wait(Duration::from_millis(1));
        assert_eq!(p.ended().unwrap(), "signal 9");
    }
}

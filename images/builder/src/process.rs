//! Runs the programs that work on an image, and ends them where the work is to stop.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
};

use crate::ImageError;
use crate::cache::Cache;

/// Runs it to its end; `stop` is the signal that ends it with all that it started, sent too where
/// this process ends, even by SIGKILL. The inner error is that it cannot be started.
pub(crate) fn run(
    command: &mut Command,
    stop: Signal,
    cache: &Cache,
) -> Result<std::io::Result<Output>, ImageError> {
    cache.check()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = getpid();
    let before_exec = move || {
        // The kernel means the parent's thread by that: the one that waits below.
        set_parent_process_death_signal(Some(stop))?;
        // It may have ended before the line above.
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: after fork it makes system calls only: no allocation, no locks.
    unsafe { command.pre_exec(before_exec) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Ok(Err(e)),
    };
    let pid = Pid::from_child(&child);
    let waiting = std::thread::spawn(move || child.wait_with_output());
    let mut stopped = Ok(());
    while !waiting.is_finished() {
        if stopped.is_ok() {
            stopped = cache.check();
            if stopped.is_err() {
                // It may have ended by itself just now.
                let _ = kill_process(pid, stop);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    stopped?;
    Ok(waiting.join().unwrap_or_else(|_| Err(std::io::Error::other("it cannot be waited for"))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_ends_when_the_work_is_to_stop() {
        let tmp = tempfile::tempdir().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let cache = Cache::open(tmp.path()).unwrap().until(Some(stop.clone()));
        let out = run(Command::new("sh").args(["-c", "echo a"]), Signal::TERM, &cache);
        assert_eq!(out.unwrap().unwrap().stdout, b"a\n");
        let none = run(&mut Command::new("/nowhere/program"), Signal::TERM, &cache).unwrap();
        assert!(none.is_err());
        let start = Instant::now();
        let setter = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
        });
        let out = run(Command::new("sleep").arg("100"), Signal::TERM, &cache);
        assert!(matches!(out, Err(ImageError::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(50));
        setter.join().unwrap();
        // Nothing is started any more.
        let out = run(&mut Command::new("/nowhere/program"), Signal::TERM, &cache);
        assert!(matches!(out, Err(ImageError::Stopped)));
    }
}

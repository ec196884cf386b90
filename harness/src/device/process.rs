//! A child process that does not outlive this one.

use super::DeviceError;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "tornblkd";
/// Between two looks at something that has no wake-up.
const POLL: Duration = Duration::from_millis(3);
/// For the end in order; a kill follows.
const STOP: Duration = Duration::from_secs(5);

/// Beside this program, else `$TORNBLKD`, else in `$PATH`.
pub fn find_tornblkd() -> Result<PathBuf, DeviceError> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let named = std::env::var_os("TORNBLKD").filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    find(beside.as_deref(), named.as_deref(), std::env::split_paths(&path))
}

fn find(
    beside: Option<&Path>,
    named: Option<&Path>,
    path: impl Iterator<Item = PathBuf>,
) -> Result<PathBuf, DeviceError> {
    let mut looked = Vec::new();
    // A test's own program lies one folder deeper than the others.
    for folder in beside.into_iter().flat_map(|b| b.ancestors().take(2)) {
        let program = folder.join(NAME);
        if program.is_file() {
            return Ok(program);
        }
        looked.push(program.display().to_string());
    }
    if let Some(program) = named {
        if program.is_file() {
            return Ok(program.to_owned());
        }
        looked.push(format!("$TORNBLKD = {}", program.display()));
    }
    looked.push("$PATH".to_owned());
    path.map(|folder| folder.join(NAME))
        .find(|program| program.is_file())
        .ok_or(DeviceError::NoProgram { looked })
}

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
    /// Bytes of the log that were read by [`Process::new_lines`].
    read: u64,
}

impl Process {
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        log: &Path,
    ) -> Result<Process, DeviceError> {
        let io = |source| DeviceError::Io { what: "write", path: log.to_owned(), source };
        let file = File::options().create(true).append(true).open(log).map_err(io)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(io)?)
            .stderr(file);
        // What others said there before is none of its own.
        let read = log.metadata().map_or(0, |meta| meta.len());
        let child = crate::vm::process::spawn(command, &[])
            .map_err(|source| DeviceError::Spawn { program: program.to_owned(), source })?;
        Ok(Process { child, log: log.to_owned(), read })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks `ready` until it has something, the process ends, or the time is over.
    pub(super) fn wait_for<T>(
        &mut self,
        time: Duration,
        mut ready: impl FnMut() -> Result<Option<T>, DeviceError>,
    ) -> Result<T, DeviceError> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            self.check()?;
            if start.elapsed() > time {
                return Err(DeviceError::Slow { log: self.log.clone() });
            }
            std::thread::sleep(POLL);
        }
    }

    /// An error if the process ended.
    pub(super) fn check(&mut self) -> Result<(), DeviceError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.ended(status)),
            _ => Ok(()),
        }
    }

    pub(super) fn stop(&mut self) -> Result<(), DeviceError> {
        self.check()?;
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // Fails only where it is gone, which the wait below finds out.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < STOP {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.ended(status)),
                _ => std::thread::sleep(POLL),
            }
        }
        log::warn!("tornblkd did not end within {} s and is killed", STOP.as_secs());
        self.kill();
        Ok(())
    }

    /// The whole lines that it said since this was asked last.
    pub(super) fn new_lines(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut text)
        });
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if read.is_err() {
            return Vec::new();
        }
        self.read += whole as u64;
        let text = String::from_utf8_lossy(&text[..whole]);
        text.lines().map(str::to_owned).collect()
    }

    fn kill(&mut self) {
        // Errors mean that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended(&self, status: ExitStatus) -> DeviceError {
        let said = last_line(&self.log).unwrap_or_else(|| "it said nothing".to_owned());
        DeviceError::Ended { status: status.to_string(), said, log: self.log.clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last line with text in it.
fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(4096))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sh(script: &str, log: &Path) -> Process {
        Process::spawn(Path::new("/bin/sh"), &["-c".into(), script.into()], log).unwrap()
    }

    #[test]
    fn a_process_that_ends_early_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = sh("echo one; echo 'the image is odd' >&2; echo; exit 2", &log);
        let error = process.wait_for::<()>(START_LIMIT, || Ok(None)).unwrap_err().to_string();
        assert!(error.contains("exit status: 2") && error.contains("the image is odd"), "{error}");
    }

    #[test]
    fn a_process_that_never_gets_ready_is_given_up_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = sh("sleep 1000", &log);
        let pid = process.child.id();
        let error = process.wait_for::<()>(Duration::ZERO, || Ok(None)).unwrap_err();
        assert!(matches!(error, DeviceError::Slow { .. }));
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn each_line_is_read_once_and_no_half_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "of another\n").unwrap();
        let mut process = sh("echo one; printf two; sleep 1000", &log);
        let line = |p: &mut Process| Ok(p.new_lines().into_iter().next());
        let start = Instant::now();
        let first = loop {
            match line(&mut process).unwrap_or_else(|e: DeviceError| panic!("{e}")) {
                None if start.elapsed() < START_LIMIT => std::thread::sleep(POLL),
                found => break found,
            }
        };
        assert_eq!(first.as_deref(), Some("one"));
        while !std::fs::read_to_string(&log).unwrap().ends_with("two") {
            std::thread::sleep(POLL);
        }
        assert!(process.new_lines().is_empty(), "half a line");
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut file, b"\n").unwrap();
        assert_eq!(process.new_lines(), ["two"]);
    }

    #[test]
    fn it_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process =
            sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done", &log);
        process.wait_for(START_LIMIT, || Ok(last_line(&log))).unwrap();
        process.stop().unwrap();
        assert_eq!(last_line(&log).unwrap(), "bye");
        assert!(matches!(process.check(), Err(DeviceError::Ended { .. })));
    }

    #[test]
    fn the_program_is_looked_for_in_three_places() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&a, &b] {
            std::fs::create_dir(folder).unwrap();
        }
        let none = || std::iter::empty();
        let error = find(Some(&a), Some(&b.join("x")), none()).unwrap_err().to_string();
        assert!(error.contains("$TORNBLKD = ") && error.contains("$PATH"), "{error}");
        std::fs::write(b.join(NAME), "").unwrap();
        assert_eq!(find(Some(&a), None, [b.clone()].into_iter()).unwrap(), b.join(NAME));
        assert_eq!(find(Some(&a), Some(&b.join(NAME)), none()).unwrap(), b.join(NAME));
        std::fs::write(a.join(NAME), "").unwrap();
        assert_eq!(find(Some(&a), Some(&b.join(NAME)), none()).unwrap(), a.join(NAME));
        assert_eq!(find(Some(&a.join("deps")), None, none()).unwrap(), a.join(NAME));
    }

    const START_LIMIT: Duration = Duration::from_secs(60);
}

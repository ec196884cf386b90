//! A folder with an image, `tornblkd` in it, and a guest.

use crate::guest::{Guest, until};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::Reader;
use virtio_bindings::virtio_blk::*;

pub(crate) const OK: u8 = VIRTIO_BLK_S_OK as u8;
pub(crate) const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
pub(crate) const SIZE: usize = 1 << 20;
/// To do what was asked: not what it should take, but what a busy machine may.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    /// With an image of 1 MiB.
    pub(crate) fn new() -> Place {
        Place::at(tempfile::tempdir().unwrap())
    }

    pub(crate) fn at(dir: TempDir) -> Place {
        let place = Place { dir };
        std::fs::write(place.path("disk.img"), vec![7; SIZE]).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `sh` runs this first, in its own process.
    pub(crate) fn start_after(&self, setup: &str, arguments: &str) -> Daemon {
        static LOGS: AtomicU32 = AtomicU32::new(0);
        let name = self.path(&format!("log{}", LOGS.fetch_add(1, Ordering::Relaxed)));
        let log = std::fs::File::create(&name).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("{setup}\nexec \"$0\" {arguments}"), program()])
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, log: name, ended: None }
    }

    /// A disk that is there: `arguments` besides sockets and image.
    pub(crate) fn start(&self, arguments: &str) -> Daemon {
        self.start_limited(":", arguments)
    }

    /// The same after `setup`.
    pub(crate) fn start_limited(&self, setup: &str, arguments: &str) -> Daemon {
        let line = format!("--socket s --control c --image disk.img {arguments}");
        let mut daemon = self.start_after(setup, &line);
        daemon.until_ready(&self.path("s"));
        daemon
    }

    /// Runs to its end, which must be exit code 2 with one line: gives that.
    pub(crate) fn refused(&self, setup: &str, arguments: &str) -> String {
        let mut daemon = self.start_after(setup, arguments);
        assert_eq!(daemon.code(), Some(2), "{}", daemon.log());
        one_line(&daemon.log())
    }

    pub(crate) fn guest(&self, queues: u16) -> Guest {
        Guest::ready(&self.path("s"), queues)
    }

    pub(crate) fn client(&self) -> tornblk_proto::Client {
        tornblk_proto::Client::connect(self.path("c")).unwrap()
    }

    /// The recording, which must be sound to its last event.
    pub(crate) fn recorded(&self, name: &str) -> Vec<(Seq, Event)> {
        let reader = Reader::open(&self.path(name)).unwrap();
        reader.verify().unwrap();
        reader.events().collect::<Result<_, _>>().unwrap()
    }

    /// Nothing but what a user made is left.
    pub(crate) fn no_sockets(&self) {
        assert!(!self.path("s").exists() && !self.path("c").exists());
    }
}

pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_tornblkd")
}

/// The last line of the log is the only one that is no more than a log's.
pub(crate) fn one_line(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("tornblkd: ")).collect();
    let [line] = lines[..] else { panic!("not one line: {log}") };
    assert!(log.trim_end().ends_with(line), "{log}");
    line.to_owned()
}

pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    ended: Option<std::process::ExitStatus>,
}

impl Daemon {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn until_ready(&mut self, socket: &Path) {
        until(|| {
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.log());
            // The socket comes before the device is through with its start.
            socket.exists() && self.log().contains("waiting at")
        });
    }

    /// Waits until the log has it.
    pub(crate) fn until_says(&self, what: &str) {
        let begin = Instant::now();
        while !self.log().contains(what) {
            assert!(begin.elapsed() < PATIENCE, "no `{what}` in {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end: the exit code, `None` where a signal ended it.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.ended = Some(status);
        assert_ne!(status.signal(), Some(6), "it aborted: {}", self.log());
        status.code()
    }

    /// Ends it, which must work, and gives its log.
    pub(crate) fn end(mut self) -> String {
        self.signal(Signal::TERM);
        assert_eq!(self.code(), Some(0), "{}", self.log());
        let log = self.log();
        assert!(log.contains("ended by a signal"), "{log}");
        log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A few requests that are made often.
impl Guest {
    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.ask(0, |driver| {
            driver.recycle();
            driver.gives(VIRTIO_BLK_T_OUT, sector, data)
        })
        .1
    }

    pub(crate) fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>, u8> {
        let (sent, status) = self.ask(0, |driver| {
            driver.recycle();
            driver.wants(VIRTIO_BLK_T_IN, sector, len)
        });
        if status == OK {
            Ok(self.queues[0].driver.bytes(sent.data, len as usize))
        } else {
            Err(status)
        }
    }

    pub(crate) fn flush(&mut self) -> u8 {
        self.ask(0, |driver| {
            driver.recycle();
            driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[])
        })
        .1
    }
}

/// Says why a test was not made: to whoever looks, though the test passes, and to the file
/// `$TORNBLK_SKIPPED`, which ci/test shows at its end.
pub(crate) fn skipped(why: &str) {
    let line = format!("skipped: {why}\n");
    // Not as `eprint!`, which is only shown where a test fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("TORNBLK_SKIPPED") {
        let list = std::fs::File::options().append(true).create(true).open(list);
        list.and_then(|mut list| list.write_all(line.as_bytes())).unwrap();
    }
}

/// Runs one of the tests that are ignored, in a mount namespace in which it may mount what it
/// likes, without being root.
pub(crate) fn in_a_namespace(test: &str) {
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--ignored", "--test-threads=1", test])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if !output.stdout.is_empty() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let all = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && text.contains("1 passed"), "{all}");
            // It has told the list by itself.
            for line in all.lines().filter(|line| line.starts_with("skipped")) {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
        _ => skipped("no namespace can be made here (unshare --map-root-user --mount)"),
    }
}

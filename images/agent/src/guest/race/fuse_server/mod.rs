//! A FUSE server of the agent's, in a process of its own: it shows the files of one directory again,
//! by the ways that FUSE has for their reads and writes.
//!
//! ```no_run
//! # use tornblk_agent::guest::race::fuse_server::{Mode, Server, Spec};
//! # fn main() -> tornblk_agent::guest::Result<()> {
//! let server = Server::start(Spec::new("/mnt", "/run/fuse", Some(Mode::Passthrough)))?;
//! let file = server.open("written", Mode::Passthrough, libc::O_DIRECT)?;
//! drop(file);
//! server.stop()
//! # }
//! ```
//!
//! Regular files alone, that are there already; it makes none. Their numbers are those of the
//! directory's file system.
//!
//! [`serve`] is the part that the process plays. What it is told there goes by [`Ask`]; a request of
//! a kind can be held ([`Server::hold`]): WRITE before it is done, READ and GETATTR when their answer
//! is known already and old.

mod serve;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use serve::child;

use super::{PATIENCE, Task};
use crate::guest::child::Child;
use crate::guest::{Error, Result, fs};

/// As [`crate::guest::child`] knows it.
pub const PART: &str = "fuse-server";

/// What an open file's reads, writes and mappings go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// `FOPEN_PASSTHROUGH`: the backing file, by the kernel alone.
    Passthrough,
    /// `FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES`: the server; mapped, if at all, FUSE's page
    /// cache.
    Direct,
    /// Both: reads and writes by the server, mappings of the backing file.
    Both,
    /// FUSE's page cache, kept from one open to the next.
    Cached,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Passthrough, Mode::Direct, Mode::Both, Mode::Cached];

    /// Which mode an open is to have is told by flags that mean nothing to a regular file: FUSE_OPEN
    /// carries no name, and all modes shall meet on one inode. Passthrough has none of them, since
    /// the backing file is opened with the same flags, and io_uring minds O_NONBLOCK.
    fn flags(self) -> i32 {
        match self {
            Mode::Passthrough => 0,
            Mode::Direct => libc::O_NONBLOCK,
            Mode::Both => libc::O_NOATIME,
            Mode::Cached => libc::O_NONBLOCK | libc::O_NOATIME,
        }
    }

    fn of_flags(flags: i32) -> Mode {
        let told = flags & (libc::O_NONBLOCK | libc::O_NOATIME);
        Mode::ALL.into_iter().find(|mode| mode.flags() == told).unwrap_or(Mode::Passthrough)
    }

    /// For the eyes: "opened in …".
    pub fn name(self) -> &'static str {
        match self {
            Mode::Passthrough => "passthrough mode",
            Mode::Direct => "direct mode",
            Mode::Both => "both modes",
            Mode::Cached => "cached mode",
        }
    }

    /// Does the kernel use the backing file for anything?
    pub fn is_backed(self) -> bool {
        matches!(self, Mode::Passthrough | Mode::Both)
    }
}

/// A server as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The directory that is shown.
    pub backing: String,
    /// Made where it is missing.
    pub mountpoint: String,
    /// Of every open; `None`: each says itself which ([`Server::open`]).
    pub mode: Option<Mode>,
    /// `FUSE_DIRECT_IO_ALLOW_MMAP`: a file in [`Mode::Direct`] may be mapped and shared.
    pub mmap: bool,
    /// What it does wrong on purpose: `forget-fsync`, `serial`, `stale-copy`, `other-mode`.
    pub wrong: Option<String>,
}

impl Spec {
    pub fn new(backing: &str, mountpoint: &str, mode: Option<Mode>) -> Spec {
        let (backing, mountpoint) = (backing.into(), mountpoint.into());
        Spec { backing, mountpoint, mode, mmap: false, wrong: None }
    }
}

/// Requests that can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    Read,
    Write,
    Getattr,
}

/// What the parent says to the server. Each is answered by a [`Status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    Status {},
    Hold { op: Op },
    Release { op: Op },
}

/// Of the server, now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Why it serves nothing.
    pub error: Option<String>,
    /// What the kernel offers: `FUSE_PASSTHROUGH`, `FUSE_DIRECT_IO_ALLOW_MMAP`.
    pub passthrough: bool,
    pub mmap: bool,
    /// Requests that are held.
    pub reads: u32,
    pub writes: u32,
    pub getattrs: u32,
    /// WRITEs that the kernel had given to the server at once, at most, since WRITE was held last.
    pub most_writes: u32,
    /// Files that are open.
    pub opens: u32,
}

/// A server that runs. Dropped, it is killed and its mount detached.
#[derive(Debug)]
pub struct Server {
    child: Child,
    spec: Spec,
    offers: Status,
    stopped: AtomicBool,
}

impl Server {
    /// Starts it, and mounts.
    ///
    /// # Errors
    /// It cannot be started or mounted. [`Error::Unsupported`]: the kernel has no FUSE, or not what
    /// the mode needs.
    pub fn start(spec: Spec) -> Result<Server> {
        let what = format!("a FUSE server of {}", spec.backing);
        std::fs::create_dir_all(&spec.mountpoint)
            .map_err(Error::system(format!("cannot make {}", spec.mountpoint)))?;
        if !Path::new("/dev/fuse").exists() {
            return Err(Error::Unsupported("this kernel has no FUSE: no /dev/fuse".into()));
        }
        let text = serde_json::to_string(&spec).unwrap_or_default();
        let child = Child::start(PART, &[&text])?;
        let offers: Status = child.ask(&Ask::Status {})?;
        if let Some(error) = offers.error {
            return Err(Error::Refused(format!("{what}: {error}")));
        }
        let server = Server { child, spec, offers, stopped: AtomicBool::new(false) };
        if server.spec.mode.is_none_or(Mode::is_backed) && !server.offers.passthrough {
            return Err(Error::Unsupported("FUSE_INIT does not offer FUSE_PASSTHROUGH".into()));
        }
        if server.spec.mmap && !server.offers.mmap {
            let text = "FUSE_INIT does not offer FUSE_DIRECT_IO_ALLOW_MMAP";
            return Err(Error::Unsupported(text.into()));
        }
        Ok(server)
    }

    /// Where a file of the directory is shown.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.spec.mountpoint)
    }

    /// Flags of open(2) for a mode, where each open says its own.
    pub fn flags(&self, mode: Mode) -> i32 {
        if self.spec.mode.is_none() { mode.flags() } else { 0 }
    }

    /// Opens a file of the directory to be read and written.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self, name: &str, mode: Mode, flags: i32) -> Result<File> {
        let path = self.path(name);
        open(&path, self.flags(mode) | flags)
            .map_err(Error::system(format!("cannot open {path} in {}", mode.name())))
    }

    /// # Errors
    /// It is gone.
    pub fn status(&self) -> Result<Status> {
        self.child.ask(&Ask::Status {})
    }

    /// Holds requests of a kind, until the answer is dropped.
    ///
    /// # Errors
    /// It is gone.
    pub fn hold(&self, op: Op) -> Result<Held<'_>> {
        self.child.ask::<_, Status>(&Ask::Hold { op })?;
        Ok(Held { server: self, op })
    }

    /// Where its threads are in the kernel.
    pub fn stacks(&self) -> Vec<String> {
        self.child.stacks()
    }

    /// SIGKILL: the kernel ends the connection, and whoever waits for an answer gets ENOTCONN or
    /// ECONNABORTED.
    pub fn kill(&self) {
        self.child.kill();
        let _ = self.child.ended(PATIENCE);
    }

    /// Unmounts, and waits for the server's end. Every file must be closed; what was closed just now
    /// is given some time, for the kernel lets go of it after close(2) has returned.
    ///
    /// # Errors
    /// It cannot be unmounted, or does not end.
    pub fn stop(&self) -> Result<()> {
        unmount(&self.spec.mountpoint, PATIENCE)?;
        self.must_end()
    }

    /// Waits for the server's end, where somebody else has unmounted it.
    ///
    /// # Errors
    /// It does not end.
    pub fn must_end(&self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        match self.child.ended(PATIENCE) {
            Some(_) => Ok(()),
            None => Err(Error::TimedOut(format!(
                "the FUSE server of {} does not end after it was unmounted: {:?}",
                self.spec.backing,
                self.stacks()
            ))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped.load(Ordering::Relaxed) {
            self.child.kill();
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(&self.spec.mountpoint, flags);
        }
    }
}

/// Requests that the server holds. Lets them go when dropped.
#[derive(Debug)]
pub struct Held<'a> {
    server: &'a Server,
    op: Op,
}

impl Held<'_> {
    /// Waits until so many are held: → how many are, at the end of that time at least.
    ///
    /// # Errors
    /// The server is gone.
    pub fn holds(&self, n: u32, time: Duration) -> Result<u32> {
        let end = Instant::now() + time;
        loop {
            let status = self.server.status()?;
            let held = match self.op {
                Op::Read => status.reads,
                Op::Write => status.writes,
                Op::Getattr => status.getattrs,
            };
            if held >= n || Instant::now() > end {
                return Ok(held);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It is gone: so is what it held.
        let _ = self.server.child.ask::<_, Status>(&Ask::Release { op: self.op });
    }
}

/// Opens a file to be read and written.
///
/// # Errors
/// The kernel's.
pub fn open(path: &str, flags: i32) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Unmounts as soon as nobody has anything open there any more.
///
/// # Errors
/// Somebody still has after that time (EBUSY), or umount(2) fails or does not return.
pub fn unmount(target: &str, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        let path = target.to_owned();
        let task = Task::start("umount", move || fs::umount(&path).map(|_| ()))?;
        let result = task.wait(PATIENCE).map_err(|e| {
            Error::TimedOut(format!("unmounting {target} does not return: it waits in {e:?}"))
        })?;
        match result {
            Err(e) if e.errno() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_told_by_its_flags() {
        for mode in Mode::ALL {
            let flags = libc::O_RDWR | libc::O_DIRECT | mode.flags();
            assert_eq!(Mode::of_flags(flags), mode);
        }
        assert_eq!(Mode::Passthrough.flags(), 0);
    }
}

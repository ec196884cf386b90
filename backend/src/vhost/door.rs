//! The way from the relay to the daemon: a socket that only this process can connect to.
//!
//! The daemon takes a path to connect to, or a listener to accept at, and no stream. A path could be
//! connected to by others first; so this one is made in a folder of its own, opened (O_PATH), and
//! removed again: what is left is reached through this process's own descriptor alone.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    place: OwnedFd,
}

impl Door {
    pub(super) fn new() -> io::Result<Door> {
        let folder = tempfile::Builder::new().prefix("tornblkd").tempdir()?;
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path)?;
        // Whoever connects is there before it is accepted.
        listener.set_nonblocking(true)?;
        let place = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Door { listener, place })
    }

    /// A path to connect to; a connection waits until it is accepted.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.place.as_raw_fd())
    }

    /// The other end of the connection that was made.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Forgets connections that nobody accepted.
    pub(super) fn clear(&self) {
        while self.listener.accept().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn it_leads_inside_and_has_no_name() {
        let door = Door::new().unwrap();
        let mut outer = UnixStream::connect(door.path()).unwrap();
        let mut inner = door.accept().unwrap();
        outer.write_all(b"x").unwrap();
        let mut byte = [0];
        inner.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        let left = UnixStream::connect(door.path()).unwrap();
        drop(left);
        door.clear();
        assert!(door.accept().is_err(), "the one that was left is gone");
        let name = door.listener.local_addr().unwrap();
        let name = name.as_pathname().unwrap();
        assert!(!name.exists() && !name.parent().unwrap().exists());
    }
}

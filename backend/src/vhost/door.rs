//! The way from the relay to the daemon: a socket that only this process can connect to.
//!
//! The daemon takes a path to connect to, or a listener to accept at, and no stream. A path could be
//! connected to by others first; so this one is made in a folder of its own, opened (O_PATH), and
//! removed again: what is left is reached through this process's own descriptor alone.

use rustix::fs::{AtFlags, Mode, OFlags, mkdir, open, openat, rmdir, unlinkat};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    place: OwnedFd,
}

impl Door {
    /// Made in `folder`, and gone from there when this returns.
    pub(super) fn new(folder: &Path) -> io::Result<Door> {
        let pid = std::process::id();
        // Those that are there are of processes that died just here.
        let own = (0..100).map(|n| folder.join(format!(".tornblkd-{pid}-{n}"))).find_map(|path| {
            match mkdir(&path, Mode::RWXU) {
                Err(rustix::io::Errno::EXIST) => None,
                made => Some(made.map(|()| path)),
            }
        });
        let own = own.unwrap_or(Err(rustix::io::Errno::EXIST))?;
        let door = Door::inside(&own);
        rmdir(&own)?;
        door
    }

    fn inside(own: &Path) -> io::Result<Door> {
        let folder = open(own, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // However long the folder's name is, a socket's has room for this.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", folder.as_raw_fd()))?;
        let place = openat(&folder, "s", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        unlinkat(&folder, "s", AtFlags::empty())?;
        // Whoever connects is there before it is accepted.
        listener.set_nonblocking(true)?;
        Ok(Door { listener, place: place? })
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
        let folder = tempfile::tempdir().unwrap();
        // Longer than any socket's name.
        let long = folder.path().join("l".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let door = Door::new(&long).unwrap();
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
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
        assert!(Door::new(&folder.path().join("none")).is_err());
    }
}

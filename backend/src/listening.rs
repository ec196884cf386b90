//! A UNIX socket with a name, at which is listened: for its owner alone, and in the place of one that
//! nobody listens at any more.

use crate::made::Made;
use crate::peer::{Peer, told};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Its name goes when this does.
#[derive(Debug)]
pub(crate) struct Listening {
    made: Made,
    listener: UnixListener,
}

/// Why nobody can listen at a path.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Somebody does: who, for sentences.
    Live(String),
    NoSocket,
    /// A socket's name has at most 107 bytes (unix(7)).
    TooLong,
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Taken {
    fn from(error: E) -> Taken {
        Taken::Io(error.into())
    }
}

impl Listening {
    pub(crate) fn at(path: &Path) -> Result<Listening, Taken> {
        let address = SocketAddrUnix::new(path).map_err(|_| Taken::TooLong)?;
        make_way(path, &address)?;
        let socket = socket(SocketFlags::CLOEXEC)?;
        // Linux gives the name the mode of the unbound socket, less the umask: there is no moment at
        // which others could connect, and no process-wide umask to change.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &address)?;
        let made = Made::new(path, &std::fs::symlink_metadata(path)?);
        // A umask that takes away from the owner, too.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let listening = Listening { made, listener: socket.into() };
        listen(&listening.listener, 16)?;
        // Who waited may be gone when it is accepted.
        listening.listener.set_nonblocking(true)?;
        Ok(listening)
    }

    pub(crate) fn path(&self) -> &Path {
        self.made.path()
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.made.take_back();
    }
}

fn socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes a socket that nobody listens at, and nothing else.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), Taken> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(meta) if !meta.file_type().is_socket() => return Err(Taken::NoSocket),
        Ok(_) => {}
    }
    // Never waits: where many do already, the one who listens may be stopped.
    let probe = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            log::info!("{} is left over from somebody who is gone: replaced", path.display());
            Ok(std::fs::remove_file(path)?)
        }
        Ok(()) => Err(Taken::Live(told(Peer::of(&probe).as_ref()))),
        Err(Errno::AGAIN) => Err(Taken::Live(told(None))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn it_is_its_owner_s_alone_and_takes_the_place_of_one_that_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let first = Listening::at(&path).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(matches!(Listening::at(&path), Err(Taken::Live(who)) if who.starts_with("pid ")));
        // As a process that is killed leaves it.
        let left = dir.path().join("left");
        std::fs::hard_link(&path, &left).unwrap();
        drop(first);
        assert!(!path.exists());
        let second = Listening::at(&left).unwrap();
        drop(second);
        assert!(!left.exists());
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Listening::at(&path), Err(Taken::NoSocket)));
        let long = dir.path().join("l".repeat(120));
        assert!(matches!(Listening::at(&long), Err(Taken::TooLong)));
    }

    #[test]
    fn who_listens_and_never_accepts_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _stopped = Listening::at(&path).unwrap();
        // Until its backlog is full.
        let connects = |_| {
            let client = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap();
            let address = SocketAddrUnix::new(&path).unwrap();
            connect(&client, &address).ok().map(|()| UnixStream::from(client))
        };
        let waiting: Vec<_> = (0..100).map_while(connects).collect();
        assert!(waiting.len() < 100);
        assert!(matches!(Listening::at(&path), Err(Taken::Live(_))));
    }
}

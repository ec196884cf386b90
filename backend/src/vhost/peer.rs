//! Who is at the other end of a socket.

use rustix::net::{SocketAddrUnix, getsockname, sockopt::socket_peercred};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::Path;

/// A process, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pid: i32,
    name: Option<String>,
}

impl Peer {
    /// `None` where the kernel does not say.
    pub(super) fn of(socket: impl AsFd) -> Option<Peer> {
        let pid = socket_peercred(socket).ok()?.pid.as_raw_nonzero().get();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        Some(Peer { pid, name: name.map(|name| name.trim_end().to_owned()) })
    }
}

/// Who is connected to the socket at `path` that this process listens at, if just one is.
///
/// The daemon accepts by itself and keeps the connection to itself, so it is looked for among this
/// process's open files.
pub(super) fn accepted_at(path: &Path) -> Option<Peer> {
    let address = SocketAddrUnix::new(path).ok()?;
    let files = std::fs::read_dir("/proc/self/fd").ok()?;
    let numbers = files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok());
    let mut peers = numbers.filter_map(|fd: RawFd| {
        // SAFETY: only asked about, never closed or kept. If another thread closes it meanwhile,
        // the questions fail, or are about another file, which then has another address.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        let ours = getsockname(socket).ok()? == address.clone().into();
        let listens = rustix::net::sockopt::socket_acceptconn(socket).ok()?;
        if ours && !listens { Peer::of(socket) } else { None }
    });
    let first = peers.next();
    first.filter(|first| peers.all(|other| other == *first))
}

/// `pid 4711 (qemu-system-x86)`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// For a log line: the peer, or that it is unknown.
pub(super) fn told(peer: Option<&Peer>) -> String {
    peer.map_or_else(|| "an unknown process".to_owned(), Peer::to_string)
}

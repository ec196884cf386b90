//! Who is at the other end of a socket.

use rustix::net::sockopt::socket_peercred;
use std::fmt;
use std::os::fd::AsFd;

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

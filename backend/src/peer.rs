//! Who is at the other end of a socket.

use rustix::net::sockopt::socket_peercred;
use std::fmt;
use std::os::fd::AsFd;
use tornblk_model::lock::Process;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer(Process);

impl Peer {
    /// `None` where the kernel does not say.
    pub(crate) fn of(socket: impl AsFd) -> Option<Peer> {
        let pid = socket_peercred(socket).ok()?.pid.as_raw_nonzero().get();
        Some(Peer(Process::new(pid)))
    }
}

/// `pid 4711 (qemu-system-x86)`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For a log line: the peer, or that it is unknown.
pub(crate) fn told(peer: Option<&Peer>) -> String {
    peer.map_or_else(|| "an unknown process".to_owned(), Peer::to_string)
}

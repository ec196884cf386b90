//! A process may open only so many files (RLIMIT_NOFILE). Where it has as many, a connection that
//! waits cannot even be refused: so one descriptor is kept for that.

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// Between two looks at a connection that can be neither accepted nor refused.
const PAUSE: Duration = Duration::from_millis(100);

/// A descriptor that is given up for a moment, to refuse somebody.
#[derive(Debug)]
pub(crate) struct Spare(Option<OwnedFd>);

impl Spare {
    pub(crate) fn new() -> Spare {
        Spare(eventfd(0, EventfdFlags::CLOEXEC).ok())
    }

    /// Accepts the connection that waits, and gives it to `refuse`.
    pub(crate) fn turn_away(&mut self, listener: &UnixListener, refuse: impl FnOnce(UnixStream)) {
        drop(self.0.take());
        match listener.accept() {
            Ok((stream, _)) => refuse(stream),
            // The limit was lowered below what is open, say: it goes on waiting, but not busily.
            Err(_) => std::thread::sleep(PAUSE),
        }
        *self = Spare::new();
    }
}

/// Was it for want of descriptors, of this process or of all?
pub(crate) fn ran_out(error: &io::Error) -> bool {
    let found = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|e| Some(e.raw_os_error()) == found)
}

/// Can so many files be opened now?
///
/// # Errors
/// Why not, for users.
pub(crate) fn enough(needed: usize) -> io::Result<()> {
    let one = eventfd(0, EventfdFlags::CLOEXEC);
    let one = one.map_err(|e| told(needed, e))?;
    // All of them are closed again at the end.
    let all: Result<Vec<OwnedFd>, Errno> =
        (1..needed).map(|_| fcntl_dupfd_cloexec(&one, 0)).collect();
    all.map(drop).map_err(|e| told(needed, e))
}

fn told(needed: usize, why: Errno) -> io::Error {
    let why = io::Error::from(why);
    let what = format!(
        "{needed} more files would have to be open ({why}): raise the limit (ulimit -n), or offer \
         fewer queues (--num-queues)"
    );
    io::Error::other(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That it is refused, `tests/host/limits.rs` shows: it would leave the other tests of this
    /// process without descriptors.
    #[test]
    fn what_is_too_much_is_told() {
        assert!(enough(20).is_ok());
        let told = told(1000, Errno::MFILE).to_string();
        assert!(told.contains("1000 more files") && told.contains("ulimit -n"), "{told}");
        assert!(ran_out(&Errno::MFILE.into()) && !ran_out(&Errno::PERM.into()));
    }
}

//! One front-end after another.

use super::backend::Backend;
use super::peer::{Peer, accepted_at, told};
use super::ring::{Space, collected};
use super::socket::Socket;
use crate::device::{Device, Memory};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};

/// How long a second front-end waits before it is turned away: the first may just be going, and
/// its place is then free.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the socket {path} can no longer be listened at: {source}")]
    Listen { path: String, source: io::Error },
    #[error("no threads for the queues: {0}")]
    Daemon(String),
}

/// Serves `device` to whoever connects to `socket`, one at a time, until `stop` is readable.
///
/// # Errors
/// Only what makes further serving impossible; a front-end's errors end its connection.
pub fn serve(
    device: &Arc<dyn Device>,
    socket: &Socket,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let lost = |source: io::Error| ServeError::Listen {
        path: socket.path().display().to_string(),
        source,
    };
    loop {
        match wait(&[stop, socket.as_fd()], None).map_err(lost)? {
            Some(0) => return Ok(()),
            Some(_) => one(device, socket, stop)?,
            None => {}
        }
    }
}

/// Serves the front-end that waits at the socket.
fn one(device: &Arc<dyn Device>, socket: &Socket, stop: BorrowedFd<'_>) -> Result<(), ServeError> {
    let lost = |source: io::Error| ServeError::Listen {
        path: socket.path().display().to_string(),
        source,
    };
    let no_threads = |error: DaemonError| ServeError::Daemon(error.to_string());
    let mem = Space::new(Memory::new());
    let backend = Backend::new(device.clone(), mem.clone());
    let (daemon, rings) =
        collected(|| VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), mem));
    let mut daemon = daemon.map_err(no_threads)?;
    backend.connect(rings, &daemon.get_epoll_handlers());

    let mut listener = Listener::from(socket.listener().try_clone().map_err(lost)?);
    if let Err(error) = daemon.start(&mut listener) {
        log::warn!("a front-end could not be accepted: {error}");
        drop(daemon);
        backend.disconnect();
        return Ok(());
    }
    let peer = accepted_at(socket.path());
    let who = told(peer.as_ref());
    log::info!("a front-end is connected: {who}");
    let over = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| lost(error.into()))?;
    let ended = std::thread::scope(|scope| {
        let handle = daemon.shutdown_handle();
        let (over, who) = (over.as_fd(), who.as_str());
        scope.spawn(move || turn_away(socket, stop, over, who, handle.as_ref()));
        let ended = daemon.wait();
        // Cannot fail: the counter is far from its maximum.
        let _ = rustix::io::write(over, &1u64.to_ne_bytes());
        ended
    });
    // Ends the threads of the queues.
    drop(daemon);
    backend.disconnect();
    match ended {
        Ok(()) => log::info!("the front-end is gone"),
        Err(DaemonError::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage,
        )) => log::info!("the front-end is gone"),
        Err(error) => log::warn!("the front-end's connection is closed: {error}"),
    }
    Ok(())
}

/// While a front-end is served: accepts the others and closes at once, until `over`. Ends the
/// connection when `stop` is readable.
fn turn_away(
    socket: &Socket,
    stop: BorrowedFd<'_>,
    over: BorrowedFd<'_>,
    who: &str,
    served: Option<&ShutdownHandle>,
) {
    loop {
        match wait(&[over, stop, socket.as_fd()], None) {
            Ok(Some(0)) => return,
            Ok(Some(1)) => {
                if let Some(served) = served {
                    served.shutdown();
                }
                return;
            }
            Ok(_) => {}
            Err(error) => {
                log::error!("the socket cannot be watched: {error}");
                return;
            }
        }
        // Anything else is said by the first `wait` again.
        if let Ok(None) = wait(&[over, stop], Some(&PATIENCE)) {
            match socket.listener().accept() {
                Ok((stream, _)) => log::warn!(
                    "{} wants to connect to {}, where {who} is connected: turned away",
                    told(Peer::of(&stream).as_ref()),
                    socket.path().display()
                ),
                Err(error) => log::warn!("a second front-end could not be accepted: {error}"),
            }
        }
    }
}

/// The first of `fds` that is readable; `None` after `patience`, or after a signal.
fn wait(fds: &[BorrowedFd<'_>], patience: Option<&Timespec>) -> io::Result<Option<usize>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match poll(&mut polled, patience) {
        Ok(_) => Ok(polled.iter().position(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

//! One front-end after another.

use super::backend::Backend;
use super::relay::{Ended, Relay, Watched, ready};
use super::ring::{Space, collected};
use super::socket::Socket;
use crate::complaints;
use crate::descriptors::{Spare, enough};
use crate::device::{Device, Memory};
use crate::peer::{Peer, told};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::Error as ProtocolError;
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the socket {path} can no longer be listened at: {source}")]
    Listen { path: String, source: io::Error },
    #[error("no front-end can be served: {0}")]
    Descriptors(io::Error),
}

/// Can a front-end be served at all? To be asked before anything listens.
///
/// # Errors
/// The process may not open as many files as that takes.
pub fn can_serve(device: &dyn Device) -> Result<(), ServeError> {
    // The sockets are yet to be made.
    enough(needed(device.queues()) + 16).map_err(ServeError::Descriptors)
}

/// Files that serving a front-end opens: a queue has the epoll instance of its thread, two that end
/// it, kick and call, and what wakes it; the rest is the connection and the guest's memory.
fn needed(queues: u16) -> usize {
    usize::from(queues) * 8 + 32
}

/// Serves `device` to whoever connects to `socket`, one at a time, until `stop` is readable. A queue's
/// thread that found something looks for more for as long as `poll` before it sleeps: that takes a
/// processor, and spares both sides the waking.
///
/// # Errors
/// Only what makes further serving impossible; a front-end's errors, and what cannot be had for
/// one of them (threads, descriptors), end its connection.
pub fn serve(
    device: &Arc<dyn Device>,
    socket: &Socket,
    stop: BorrowedFd<'_>,
    poll: Duration,
) -> Result<(), ServeError> {
    let lost = |source: io::Error| ServeError::Listen {
        path: socket.path().display().to_string(),
        source,
    };
    let default_writeback = device.writeback();
    if let Some(on) = socket.beside().writeback() {
        log::info!("the driver had set writeback to {}: it stays so", u8::from(on));
        device.restore_writeback(on);
    }
    let needed = needed(device.queues());
    let mut spare = Spare::new();
    loop {
        match ready(&[stop, socket.as_fd()], None).map_err(lost)? {
            [true, _] => return Ok(()),
            [_, true] => match enough(needed).map(|()| socket.listener().accept()) {
                // A daemon that is made in part would keep what it has.
                Err(error) => spare.turn_away(socket.listener(), |stream| {
                    let who = told(Peer::of(&stream).as_ref());
                    log::warn!("{who} wants to connect and is turned away: {error}");
                }),
                Ok(Ok((front, _))) => {
                    let who = told(Peer::of(&front).as_ref());
                    let watched = Watched { socket, stop, spare: &mut spare };
                    if let Err(error) = one(device, watched, front, &who, (default_writeback, poll))
                    {
                        log::warn!("{who} cannot be served: {error}");
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(Err(error)) => {
                    log::warn!("a front-end could not be accepted: {error}");
                    // Out of descriptors, most likely: others may give some back.
                    std::thread::sleep(Duration::from_millis(100));
                }
            },
            [false, false] => {}
        }
    }
}

/// Serves the front-end at the other end of `front`.
fn one(
    device: &Arc<dyn Device>,
    watched: Watched<'_>,
    front: UnixStream,
    who: &str,
    (default_writeback, poll): (bool, Duration),
) -> io::Result<()> {
    front.set_nonblocking(false)?;
    let socket = watched.socket;
    let beside = Arc::clone(socket.beside());
    let backend = Backend::new(device.clone(), beside, default_writeback, poll)?;
    let mem = Space::new(Memory::new());
    let (daemon, rings) =
        collected(|| VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), mem));
    let said = |error: DaemonError| io::Error::other(error.to_string());
    let mut daemon = daemon.map_err(said)?;
    backend.connect(rings, &daemon.get_epoll_handlers());

    // Of a start that failed half-way.
    socket.door().clear();
    let begun = daemon.start_client(&socket.door().path()).map_err(said);
    let inner = begun.and_then(|()| socket.door().accept());
    let relay = inner.and_then(|inner| Relay::new(&backend, front, inner, who, watched));
    let result = relay.and_then(|relay| {
        log::info!("a front-end is connected: {who}");
        std::thread::scope(|scope| {
            let name = "tornblk-relay".to_owned();
            let relaying =
                std::thread::Builder::new().name(name).spawn_scoped(scope, move || relay.run())?;
            let ended = daemon.wait();
            // Where its thread did not end in order, its stream is still open, and relayed.
            daemon.request_shutdown();
            let why = relaying.join().unwrap_or(Ended::ByDaemon);
            if matches!(why, Ended::Stopped) {
                socket.beside().keep();
            }
            tell(who, why, ended);
            Ok(())
        })
    });
    // Where it was not waited for.
    daemon.request_shutdown();
    let _ = daemon.wait();
    // Ends the threads of the queues.
    backend.ends();
    drop(daemon);
    backend.disconnect();
    complaints::rest_of_guests();
    result
}

/// How a connection ended.
fn tell(who: &str, ended: Ended, daemon: Result<(), DaemonError>) {
    match (ended, daemon) {
        (Ended::Refused(why), _) => log::warn!("{who} is let go: {why}"),
        (
            _,
            Ok(())
            | Err(DaemonError::HandleRequest(
                ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_),
            )),
        ) => log::info!("the front-end is gone"),
        (Ended::Gone | Ended::Stopped, Err(error)) => {
            log::info!("the front-end is gone ({error})");
        }
        (Ended::ByDaemon, Err(error)) => {
            log::warn!("the front-end's connection is closed: {error}");
        }
    }
}

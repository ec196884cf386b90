//! The socket: made, guarded against a second device, and taken away again.

use super::client::{self, Session};
use crate::complaints::Complaints;
use crate::descriptors::{Spare, ran_out};
use crate::listening::{Listening, Taken};
use crate::store::Machine;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tornblk_proto::{Answer, Refusal, RefusalKind, codec};

/// Clients at a time.
pub(super) const MAX_CLIENTS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "the control socket {} is in use: {who} listens there; end it, or choose another --control",
        path.display()
    )]
    InUse { path: PathBuf, who: String },
    #[error("{} exists and is no socket: choose another --control, or remove it", .0.display())]
    NoSocket(PathBuf),
    #[error(
        "the control socket {} has too long a name (at most 107 bytes): choose a shorter \
         --control",
        .0.display()
    )]
    TooLong(PathBuf),
    #[error("the control socket {} cannot be made: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Listens until it is dropped; then every client is disconnected and the socket is removed.
#[derive(Debug)]
pub struct Server {
    bound: Bound,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The socket, which clients can connect to and nobody serves yet. Removed when dropped.
#[derive(Debug)]
pub struct Bound(Arc<Listening>);

/// The clients that are connected, by their numbers.
#[derive(Default)]
struct Clients(Mutex<HashMap<u64, Connected>>);

struct Connected {
    /// To end the connection.
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Bound {
    /// Makes the socket, for its owner alone (0600). A stale one is replaced.
    pub fn at(path: &Path) -> Result<Bound, ControlError> {
        let own = || path.to_owned();
        let listening = Listening::at(path).map_err(|taken| match taken {
            Taken::Live(who) => ControlError::InUse { path: own(), who },
            Taken::NoSocket => ControlError::NoSocket(own()),
            Taken::TooLong => ControlError::TooLong(own()),
            Taken::Io(source) => ControlError::Io { path: own(), source },
        })?;
        Ok(Bound(Arc::new(listening)))
    }

    /// Serves who is there and who comes.
    pub fn serve(self, machine: Arc<Machine>) -> Result<Server, ControlError> {
        let failed =
            |source: io::Error| ControlError::Io { path: self.0.path().to_owned(), source };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|e| failed(e.into()))?);
        let (until, listening) = (Arc::clone(&stop), Arc::clone(&self.0));
        let thread = std::thread::Builder::new()
            .name("tornblk-control".to_owned())
            .spawn(move || accept(listening.listener(), &until, &machine))
            .map_err(failed)?;
        Ok(Server { bound: self, stop, thread: Some(thread) })
    }
}

impl Server {
    /// Makes the socket and serves it.
    pub fn start(path: &Path, machine: Arc<Machine>) -> Result<Server, ControlError> {
        Bound::at(path)?.serve(machine)
    }

    pub fn path(&self) -> &Path {
        self.bound.0.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only where the counter is full: then it is readable anyway.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, until: &OwnedFd, machine: &Arc<Machine>) {
    let clients = Arc::new(Clients::default());
    let (mut spare, complaints) = (Spare::new(), Complaints::default());
    let mut number = 0;
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(until, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                log::error!("the control socket cannot be served any more: {e}");
                break;
            }
        }
        if !fds[1].revents().is_empty() {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                number += 1;
                if let Err(e) = clients.welcome(number, &stream, machine) {
                    refuse(stream, &e);
                    complaints.say(
                        log::Level::Warn,
                        format_args!("a control client was turned away: {e}"),
                    );
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if ran_out(&e) => {
                spare.turn_away(listener, |stream| refuse(stream, &e));
                complaints
                    .say(log::Level::Warn, format_args!("a control client was turned away: {e}"));
            }
            Err(e) => {
                complaints
                    .say(log::Level::Warn, format_args!("no control client can be accepted: {e}"));
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
    clients.end();
}

/// Says why, and hangs up.
fn refuse(mut stream: UnixStream, why: &io::Error) {
    let error = Refusal { kind: RefusalKind::Busy, message: why.to_string() };
    // Whoever is turned away shall not hold up the others: what does not fit now is not said.
    let _ = stream.set_nonblocking(true);
    let _ = codec::write(&mut stream, &Answer { id: None, ok: None, error: Some(error) });
}

impl Clients {
    fn welcome(
        self: &Arc<Self>,
        number: u64,
        stream: &UnixStream,
        machine: &Arc<Machine>,
    ) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(client::PATIENCE))?;
        let session = Session::new(number, stream.try_clone()?, Arc::clone(machine))?;
        let stream = stream.try_clone()?;
        let mut known = self.known();
        if known.len() >= MAX_CLIENTS {
            return Err(io::Error::other(format!(
                "{MAX_CLIENTS} clients are connected already: end one of them"
            )));
        }
        known.insert(number, Connected { stream, thread: None });
        let clients = Arc::clone(self);
        let thread =
            std::thread::Builder::new().name(format!("tornblk-client-{number}")).spawn(move || {
                session.serve();
                clients.known().remove(&number);
            });
        match thread {
            Ok(thread) => {
                // It cannot be gone yet: to leave, it needs the lock that we hold.
                if let Some(client) = known.get_mut(&number) {
                    client.thread = Some(thread);
                }
                Ok(())
            }
            Err(e) => {
                known.remove(&number);
                Err(e)
            }
        }
    }

    /// Disconnects all, and waits until they are gone.
    fn end(&self) {
        let all: Vec<_> = self.known().drain().map(|(_, client)| client).collect();
        for client in &all {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        for thread in all.into_iter().filter_map(|client| client.thread) {
            let _ = thread.join();
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Connected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

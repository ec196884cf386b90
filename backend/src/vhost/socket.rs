//! The listening socket's path.

use super::door::Door;
use super::in_flight::Beside;
use super::peer::{Peer, told};
use crate::made::{Made, folder_of};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

/// A listening socket, whose path goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    door: Door,
    beside: Arc<Beside>,
    made: Made,
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path} is in use: {who} listens there; stop it, or take another path")]
    Live { path: String, who: String },
    #[error("{path} exists and is no socket: take another path, or remove it")]
    NoSocket { path: String },
    #[error("cannot listen at {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path}.state cannot be kept: {source}; make its folder writable, or take another path"
    )]
    State { path: String, source: io::Error },
}

impl Socket {
    /// Listens at `path`, which only this user may connect to. A socket that nobody listens at any
    /// more is replaced.
    ///
    /// # Errors
    /// The path is in use, is something else, or cannot be made.
    pub fn bind(path: &Path) -> Result<Socket, SocketError> {
        let shown = || path.display().to_string();
        let io = |source: io::Error| SocketError::Io { path: shown(), source };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => match UnixStream::connect(path) {
                Ok(stream) => {
                    let who = told(Peer::of(&stream).as_ref());
                    return Err(SocketError::Live { path: shown(), who });
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    log::info!("{} is left over from somebody who is gone: replaced", shown());
                    std::fs::remove_file(path).map_err(io)?;
                }
                Err(error) => return Err(io(error)),
            },
            Ok(_) => return Err(SocketError::NoSocket { path: shown() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let door = Door::new(folder_of(path)).map_err(io)?;
        let listener = listen(path).map_err(|error| io(error.into()))?;
        let kept = (|| {
            let made = Made::new(path, &std::fs::symlink_metadata(path).map_err(io)?);
            let state = |source: io::Error| SocketError::State { path: shown(), source };
            let beside = Arc::new(Beside::open(path).map_err(state)?);
            Ok((beside, made))
        })();
        match kept {
            Ok((beside, made)) => Ok(Socket { listener, door, beside, made }),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.made.path()
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// What is kept beside it.
    pub(super) fn beside(&self) -> &Arc<Beside> {
        &self.beside
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // First: whoever finds no socket here may make both anew.
        self.beside.remove();
        if let Err(error) = self.made.remove() {
            log::warn!("{} is left behind: {error}", self.path().display());
        }
    }
}

fn listen(path: &Path) -> rustix::io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Linux gives the path the mode of the unbound socket, less the umask: there is no moment at
    // which others could connect, and no process-wide umask to change.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 16)?;
    let listener = UnixListener::from(socket);
    // Who waited may be gone when it is accepted.
    let _ = listener.set_nonblocking(true);
    Ok(listener)
}

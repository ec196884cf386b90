//! The listening socket's path.

use super::door::Door;
use super::in_flight::Beside;
use crate::listening::{Listening, Taken};
use crate::made::folder_of;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

/// A listening socket, whose path goes when this does.
#[derive(Debug)]
pub struct Socket {
    beside: Arc<Beside>,
    door: Door,
    listening: Listening,
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path} is in use: {who} listens there; stop it, or take another path")]
    Live { path: String, who: String },
    #[error("{path} exists and is no socket: take another path, or remove it")]
    NoSocket { path: String },
    #[error("{path} is too long a name for a socket (at most 107 bytes): take a shorter one")]
    TooLong { path: String },
    #[error(
        "cannot listen at {path}: {source}; make its folder one in which you may make files, or take \
         another path"
    )]
    Io { path: String, source: io::Error },
    #[error(
        "no folder can be made for a moment in {folder}: {source}; make it writable, and remove \
         what is left there of others (.tornblkd-*)"
    )]
    Door { folder: String, source: io::Error },
    #[error(
        "{path}.state cannot be kept: {source}; move it out of the way, make its folder writable, or \
         take another path"
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
        let listening = Listening::at(path).map_err(|taken| match taken {
            Taken::Live(who) => SocketError::Live { path: shown(), who },
            Taken::NoSocket => SocketError::NoSocket { path: shown() },
            Taken::TooLong => SocketError::TooLong { path: shown() },
            Taken::Io(source) => SocketError::Io { path: shown(), source },
        })?;
        let folder = folder_of(path);
        let door = Door::new(folder)
            .map_err(|source| SocketError::Door { folder: folder.display().to_string(), source })?;
        let state = |source: io::Error| SocketError::State { path: shown(), source };
        let beside = Arc::new(Beside::open(path).map_err(state)?);
        Ok(Socket { beside, door, listening })
    }

    pub fn path(&self) -> &Path {
        self.listening.path()
    }

    /// What is served here, for people. Says so where a device that did not end in order served
    /// something else: a guest may still be there, and find another disk.
    pub fn shows(&self, what: &str) {
        if let Some(before) = self.beside.shows(what) {
            log::warn!(
                "the device before at {} served {before}, and this one serves {what}: a guest that \
                 still runs goes on with another disk",
                self.path().display()
            );
        }
    }

    pub(super) fn listener(&self) -> &UnixListener {
        self.listening.listener()
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
        self.listening.listener().as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // First: whoever finds no socket here may make both anew.
        self.beside.remove();
    }
}

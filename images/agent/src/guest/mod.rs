//! The agent: what runs inside the guest.
//!
//! - [`init`]: the duties of PID 1.
//! - [`port`]: the byte stream to the host, a virtio-serial port or (in tests) a socket.
//! - [`outbox`]: what is said to the host, in order; marks and their acknowledgement.
//! - [`serve`]: takes commands and answers them.
//! - [`child`]: processes of the agent's own.
//! - [`check`]: a disk's content found out in one go, for those who have thousands to look at.
//! - [`disk`], [`exec`], [`fs`], [`log`]: the commands, by what they work on.
//! - [`program`]: programs of the user's own.
//! - [`workload`]: writes that describe themselves, and reading them back.
//! - [`race`]: system calls against each other, on purpose.
//! - [`sys`]: the ioctls that no crate has.
//!
//! Nothing here prints: the guest may have no console, and then `println!` panics.

use crate::channel::Outcome;
pub mod btrfs;

pub mod check;
pub mod child;
pub mod disk;
pub mod exec;
pub mod fs;
pub mod init;
pub mod log;
pub mod outbox;
pub mod port;
pub mod program;
pub mod race;
pub mod serve;
pub mod sys;
pub mod workload;

/// Why a command was not done. The texts are for the host's user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed: which, on what.
    #[error("{what}: {}", explain(*errno))]
    System { what: String, errno: i32 },
    /// A program did not end in time.
    #[error("{0}")]
    TimedOut(String),
    /// The command cannot be meant like this.
    #[error("{0}")]
    Refused(String),
    /// The kernel or the file system cannot do it.
    #[error("{0}")]
    Unsupported(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: `what` was tried when this error came.
    pub fn system<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |e| {
            let e = e.into();
            match e.raw_os_error() {
                Some(errno) => Error::System { what, errno },
                None => Error::Refused(format!("{what}: {e}")),
            }
        }
    }

    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::System { errno, .. } => Some(*errno),
            Error::TimedOut(_) => Some(libc::ETIMEDOUT),
            Error::Refused(_) | Error::Unsupported(_) => None,
        }
    }
}

impl From<Error> for Outcome {
    fn from(e: Error) -> Outcome {
        match e {
            Error::Unsupported(message) => Outcome::Unsupported { message },
            e => Outcome::Failed { message: e.to_string(), errno: e.errno() },
        }
    }
}

/// An errno by its name and meaning: `EIO (Input/output error)`.
pub fn explain(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match errno_name(errno) {
        Some(name) => format!("{name} ({text})"),
        None => format!("errno {errno} ({text})"),
    }
}

/// The names of those that disks and file systems give.
fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ENOEXEC => "ENOEXEC",
        libc::ENOSYS => "ENOSYS",
        libc::ENODATA => "ENODATA",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ESHUTDOWN => "ESHUTDOWN",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EUCLEAN => "EUCLEAN",
        libc::EREMOTEIO => "EREMOTEIO",
        libc::EBADMSG => "EBADMSG",
        libc::ECANCELED => "ECANCELED",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_tried_and_what_came_back() {
        let e = std::fs::File::open("/nonexistent/file")
            .map_err(Error::system("cannot open /nonexistent/file"))
            .expect_err("is not there");
        assert_eq!(
            e.to_string(),
            "cannot open /nonexistent/file: ENOENT (No such file or directory)"
        );
        let Outcome::Failed { errno, .. } = Outcome::from(e) else { panic!("not failed") };
        assert_eq!(errno, Some(libc::ENOENT));
    }
}

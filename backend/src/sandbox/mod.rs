//! What a guest that took over this process could still do with it: as little as can be.
//!
//! The guest decides which bytes the device reads, so the process is restricted before the first
//! front-end is served, and after everything is open:
//!
//! - `privileges`: no capability is left, and no program gives any (`no_new_privs`). The user stays
//!   who it is: the files are theirs.
//! - `landlock`: files. Only those that the device opens while it runs ([`Policy`]) can be opened,
//!   and nothing can be executed. No TCP, no signal and no connection to an abstract socket of
//!   anybody outside.
//! - `seccomp`: system calls. An allow-list, by argument where that matters: no programs, no
//!   processes, no executable memory, no sockets but UNIX stream sockets, no signals to others.
//!   What is not on it ends the process, with a line that says which call it was.
//!
//! seccomp does not see what is done through an io_uring. A raw disk's are made before, without SQPOLL
//! (its thread needs no system call to submit): each can read, write and flush the one file that is
//! registered with it (IORING_REGISTER_RESTRICTIONS), and nothing can be registered any more. Then
//! only `io_uring_enter` is allowed, and only where there are such rings: a recorded disk has none.
//!
//! What it cannot do: any file in a socket's folder, and in those beneath it, can be removed, since a
//! socket has to be at the end. What /proc shows everybody of other processes (their command lines,
//! say, and not their memory, environments or open files) can be read. `connect` takes any UNIX socket that the user may connect to, since seccomp
//! does not see its name; landlock can tell them apart from ABI 9 on. Everything in the folders
//! where the device makes files is open to it, subfolders too: they should hold nothing else. The
//! process can still be dumped and traced from outside: it is a tool for tests, and a core that a
//! crash of it leaves is worth more here than one secret more that nobody can read.
//!
//! landlock's rules and capabilities belong to a thread, and are inherited by those it starts. So
//! [`enter`] wants to be called while there is one.

mod landlock;
mod privileges;
mod seccomp;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What is opened after [`enter`].
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Files that are read, by their names: they must be there.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, read, written and removed; those beneath them, too.
    pub folders: Vec<PathBuf>,
    /// Folders in which files are only removed: a socket, at the end.
    pub unlink: Vec<PathBuf>,
    /// There are rings that were made before, each restricted by itself: they may be entered.
    pub rings: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(
        "the sandbox cannot be entered: {0} threads run already, and each would have to enter by \
         itself; please report this, and start tornblkd with --sandbox off until it is repaired"
    )]
    Threads(usize),
    #[error(
        "{} is no folder that the sandbox could leave open: {why}; make it, or leave its --allow out",
        path.display()
    )]
    NoFolder { path: PathBuf, why: io::Error },
    #[error(
        "{} cannot be opened for the sandbox: {why}; put it back, or start tornblkd with --sandbox off",
        path.display()
    )]
    Path { path: PathBuf, why: String },
    #[error(
        "the sandbox's {layer} cannot be had from this kernel: {why}; start tornblkd with \
         --sandbox off, or with TORNBLKD_SANDBOX=off where another program starts it"
    )]
    Refused { layer: &'static str, why: String },
}

impl SandboxError {
    fn refused(layer: &'static str, why: impl fmt::Display) -> SandboxError {
        SandboxError::Refused { layer, why: why.to_string() }
    }
}

/// The layers that are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// ABI of landlock in use; `None`: the kernel has none.
    pub landlock: Option<i32>,
    /// Capabilities that are left, and the folder that needs them.
    kept: Option<PathBuf>,
}

/// `seccomp, landlock (ABI 7), no new privileges, no capabilities`
impl fmt::Display for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seccomp, ")?;
        if let Some(abi) = self.landlock {
            write!(f, "landlock (ABI {abi}), ")?;
        }
        write!(f, "no new privileges, ")?;
        match &self.kept {
            None => write!(f, "no capabilities"),
            Some(path) => write!(
                f,
                "no capability but CAP_DAC_OVERRIDE, without which {} is closed to this user",
                path.display()
            ),
        }
    }
}

/// Where files may be opened, once landlock says so.
static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Restricts this process for good. Everything is to be open, and no thread started.
///
/// # Errors
/// There are threads, a path is not there, or the kernel has no seccomp. Without landlock it goes
/// on, with a warning: many kernels have none.
pub fn enter(policy: &Policy) -> Result<Entered, SandboxError> {
    let threads = threads().map_err(|e| SandboxError::refused("thread count", e))?;
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    for folder in policy.folders.iter().chain(&policy.unlink) {
        let no_folder = |why| SandboxError::NoFolder { path: folder.clone(), why };
        if !std::fs::metadata(folder).map_err(no_folder)?.is_dir() {
            return Err(no_folder(io::ErrorKind::NotADirectory.into()));
        }
    }
    let landlock = landlock::restrict(policy)?;
    match landlock {
        Some(_) => {
            let known = policy.folders.iter().map(|f| f.canonicalize().unwrap_or(f.clone()));
            let _ = FOLDERS.set(known.collect());
        }
        None => log::warn!(
            "this kernel has no landlock, so the sandbox does not restrict which files can be \
             opened{}",
            if rustix::process::geteuid().is_root() {
                ": start tornblkd as a user who owns only its files, and not as root"
            } else {
                ""
            }
        ),
    }
    let kept = privileges::drop_capabilities(policy)?;
    // Last: nothing of the above is allowed after it.
    seccomp::restrict(policy.rings)?;
    Ok(Entered { landlock, kept })
}

fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Why a file at `path` cannot be opened, if the sandbox is why.
pub fn refusal(path: &Path) -> Option<String> {
    refused_by(FOLDERS.get()?, path)
}

fn refused_by(folders: &[PathBuf], path: &Path) -> Option<String> {
    // The file itself may be a link, or not there yet.
    let folder = match path.canonicalize() {
        Ok(file) => file.parent()?.to_owned(),
        Err(_) => match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.canonicalize().ok()?,
            _ => std::env::current_dir().ok()?,
        },
    };
    if folders.iter().any(|allowed| folder.starts_with(allowed)) {
        return None;
    }
    let listed: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Some(format!(
        "the sandbox keeps tornblkd from {}: choose a file in {}, or start it with --allow {}",
        path.display(),
        listed.join(" or "),
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_in_another_folder_is_told_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (a, b) = (root.join("a"), root.join("b"));
        std::fs::create_dir_all(a.join("deep")).unwrap();
        std::fs::create_dir(&b).unwrap();
        let allowed = [a.clone()];
        assert_eq!(refused_by(&allowed, &a.join("new")), None);
        assert_eq!(refused_by(&allowed, &a.join("deep/new")), None);
        assert_eq!(refused_by(&allowed, &b.join("../a/new")), None);
        let told = refused_by(&allowed, &b.join("new")).unwrap();
        assert!(told.contains(&format!("--allow {}", b.display())), "{told}");
        assert!(refused_by(&allowed, &a.join("../b/new")).is_some());
        // A link leads to where it leads.
        std::fs::write(b.join("there"), "").unwrap();
        std::os::unix::fs::symlink(b.join("there"), a.join("link")).unwrap();
        assert!(refused_by(&allowed, &a.join("link")).is_some());
        // What is not there at all is the business of whoever opens it.
        assert_eq!(refused_by(&allowed, &root.join("c/new")), None);
    }

    #[test]
    fn it_is_not_entered_by_one_thread_of_many() {
        std::thread::scope(|scope| {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || ended.recv());
            let error = enter(&Policy::default()).unwrap_err();
            assert!(matches!(error, SandboxError::Threads(2..)), "{error}");
            drop(end);
        });
        assert!(!rustix::thread::no_new_privs().unwrap());
    }
}

//! Who may use a file: locks that QEMU and its tools understand, so that no two programs write to
//! one disk, and nobody writes to what somebody reads.
//!
//! QEMU (`block/file-posix.c`) puts open file description locks (fcntl(2), `F_OFD_SETLK`) on single
//! bytes. Each bit of its block permissions has two: byte 100 + bit is read-locked by whoever has
//! that permission, byte 200 + bit by whoever does not let others have it. Who has locked his own
//! bytes then asks for the others' (`F_OFD_GETLK`): where two want what the other refuses, at
//! least one sees it.
//!
//! Such a lock belongs to the open file: it goes when the last descriptor of it is closed, however
//! its process ends; and where the kernel has the file, too (io_uring), when it is done with it.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, flock, off_t};
use rustix::fs::{fstat, stat};
use std::fmt;
use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The permission's byte, and that of who does not share it.
const HAS: off_t = 100;
const KEEPS: off_t = 200;
/// Bits: `BLK_PERM_CONSISTENT_READ`, `BLK_PERM_WRITE`, `BLK_PERM_RESIZE`.
const READ: off_t = 0;
const WRITE: off_t = 1;
const RESIZE: off_t = 3;

/// What a file is locked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading what nobody changes: any number of these at a time, and no writer.
    Read,
    /// Writing, alone. The file must be open for writing.
    Write,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("it is in use by {0}")]
    InUse(Holder),
    /// A file system without locks.
    #[error("it cannot be locked: {0}")]
    Impossible(io::Error),
}

/// Who has a file that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Known(Process),
    /// Another user's, or one in a container of its own.
    Hidden,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Known(process) => process.fmt(f),
            Holder::Hidden => f.write_str(
                "a process that cannot be seen from here (another user's, or in a container)",
            ),
        }
    }
}

/// A process, as the kernel knows it: `pid 4711 (qemu-system-x86)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    name: Option<String>,
}

impl Process {
    pub fn new(pid: i32) -> Process {
        let name = read_to_string(format!("/proc/{pid}/comm")).ok();
        Process { pid, name: name.map(|name| name.trim_end().to_owned()) }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// Locks the file for as long as it is open.
///
/// # Errors
/// Somebody has it, or it is on a file system without locks. It is not locked then.
pub fn lock(file: &File, access: Access) -> Result<(), LockError> {
    let locked = take(file, access);
    if locked.is_err() {
        // Closed soon, but perhaps not at once.
        unlock(file);
    }
    locked
}

/// Gives back what [`lock`] took, though the file stays open for a while, here or in the kernel.
pub fn unlock(file: &File) {
    for byte in [HAS + READ, HAS + WRITE, KEEPS + WRITE, KEEPS + RESIZE] {
        let _ = set(file, libc::F_UNLCK, byte);
    }
}

fn take(file: &File, access: Access) -> Result<(), LockError> {
    if access == Access::Write {
        // For itself at first, unlike QEMU: of two of us who come at the same time one gets it.
        set(file, libc::F_WRLCK, HAS + WRITE)?;
    }
    for byte in [HAS + READ, KEEPS + WRITE, KEEPS + RESIZE] {
        set(file, libc::F_RDLCK, byte)?;
    }
    free(file, KEEPS + READ)?;
    free(file, HAS + RESIZE)?;
    match access {
        Access::Read => free(file, HAS + WRITE),
        Access::Write => {
            free(file, KEEPS + WRITE)?;
            set(file, libc::F_RDLCK, HAS + WRITE)
        }
    }
}

fn byte_lock(kind: libc::c_int, byte: off_t) -> flock {
    // Small constants, both.
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 }
}

fn set(file: &File, kind: libc::c_int, byte: off_t) -> Result<(), LockError> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(kind, byte))) {
        Ok(_) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
            Err(LockError::InUse(holder(file, byte, None)))
        }
        Err(e) => Err(LockError::Impossible(e.into())),
    }
}

/// Does nobody else have this byte?
fn free(file: &File, byte: off_t) -> Result<(), LockError> {
    let mut found = byte_lock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|e| LockError::Impossible(e.into()))?;
    if libc::c_int::from(found.l_type) == libc::F_UNLCK {
        return Ok(());
    }
    // -1 for a lock as ours are; 0 for a process in another namespace.
    let pid = Some(found.l_pid).filter(|pid| *pid > 0);
    Err(LockError::InUse(holder(file, byte, pid)))
}

/// Who has this byte: the kernel does not say it of such a lock (`/proc/locks` has -1), but tells
/// of every open file which locks it has (`/proc/PID/fdinfo`, proc(5)).
fn holder(file: &File, byte: off_t, known: Option<i32>) -> Holder {
    let found = known.or_else(|| search(file, byte).ok().flatten());
    found.map_or(Holder::Hidden, |pid| Holder::Known(Process::new(pid)))
}

fn search(file: &File, byte: off_t) -> io::Result<Option<i32>> {
    let ours = fstat(file)?;
    let own = (std::process::id() as i32, file.as_fd().as_raw_fd());
    let numbers = |dir: &str| {
        let entries = read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    for pid in numbers("/proc") {
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let same = stat(format!("/proc/{pid}/fd/{fd}"))
                .is_ok_and(|s| (s.st_dev, s.st_ino) == (ours.st_dev, ours.st_ino));
            if !same || (pid, fd) == own {
                continue;
            }
            let info = read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            if info.lines().any(|line| covers(line, byte)) {
                return Ok(Some(pid));
            }
        }
    }
    Ok(None)
}

/// Is the line of `fdinfo` about a lock of this byte? It ends with the first and the last byte.
fn covers(line: &str, byte: off_t) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let words: Vec<&str> = lock.split_whitespace().collect();
    // One who waits has nothing; flock(2) is about something else.
    if words.contains(&"->") || words.contains(&"FLOCK") {
        return false;
    }
    let [.., first, last] = words[..] else { return false };
    let last = if last == "EOF" { Some(off_t::MAX) } else { last.parse().ok() };
    matches!((first.parse::<off_t>(), last), (Ok(first), Some(last)) if first <= byte && byte <= last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn one_writes_or_many_read_and_the_one_who_comes_late_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap();
        let me = format!("pid {} (", std::process::id());
        let told = |access| {
            let file = open(&path);
            let Err(LockError::InUse(holder)) = lock(&file, access) else { panic!("{access:?}") };
            assert!(holder.to_string().starts_with(&me), "{holder}");
            // It has nothing that would be in the way of others.
            assert!(
                !read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
                    .unwrap()
                    .contains("lock:")
            );
        };
        let writer = open(&path);
        lock(&writer, Access::Write).unwrap();
        told(Access::Write);
        told(Access::Read);
        // As long as one descriptor of it is open.
        let copy = writer.try_clone().unwrap();
        drop(writer);
        told(Access::Read);
        drop(copy);
        let readers = [File::open(&path).unwrap(), open(&path)];
        readers.iter().for_each(|reader| lock(reader, Access::Read).unwrap());
        told(Access::Write);
        drop(readers);
        lock(&open(&path), Access::Write).unwrap();
    }

    #[test]
    fn of_many_writers_at_a_time_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap();
        for _ in 0..200 {
            let files: Vec<File> = (0..2).map(|_| open(&path)).collect();
            // Nobody sleeps before it: a few microseconds decide.
            let there = AtomicUsize::new(0);
            let won = std::thread::scope(|scope| {
                let threads: Vec<_> = files
                    .iter()
                    .map(|file| {
                        scope.spawn(|| {
                            there.fetch_add(1, Ordering::SeqCst);
                            while there.load(Ordering::SeqCst) < files.len() {
                                std::hint::spin_loop();
                            }
                            lock(file, Access::Write).is_ok()
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).filter(|won| *won).count()
            });
            assert_eq!(won, 1);
        }
    }

    #[test]
    fn a_line_of_fdinfo_is_understood() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10010850 100 101";
        assert!(covers(line, 100) && covers(line, 101));
        assert!(!covers(line, 99) && !covers(line, 102));
        assert!(covers("lock:\t1: POSIX  ADVISORY  WRITE 4711 00:1f:7 0 EOF", 203));
        for other in [
            "lock:\t1: FLOCK  ADVISORY  WRITE 4711 00:1f:7 0 EOF",
            "lock:\t1: -> OFDLCK ADVISORY  READ -1 fe:00:10010850 100 101",
            "pos:\t100",
            "lock:",
        ] {
            assert!(!covers(other, 100), "{other}");
        }
    }
}

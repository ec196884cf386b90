//! A file that is there when it is whole, and not before.

use super::RecordingError;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A file without a name, which [`Fresh::keep`] gives it: whatever ends the process before leaves
/// nothing. On file systems that cannot do that it has its name from the beginning, and loses it
/// when this is dropped.
#[derive(Debug)]
pub struct Fresh {
    path: PathBuf,
    file: File,
    named: bool,
    kept: bool,
}

impl Fresh {
    /// A file that will be at `path`.
    ///
    /// # Errors
    /// There is something of that name already, or no file can be made there.
    pub fn create(path: &Path) -> Result<Fresh, RecordingError> {
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => RecordingError::Exists { path: path.to_owned() },
            _ => RecordingError::io("create", path)(e),
        };
        if path.symlink_metadata().is_ok() {
            return Err(RecordingError::Exists { path: path.to_owned() });
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
        let (file, named) = match rustix::fs::open(dir, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => (File::from(fd), false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
                (file.map_err(fail)?, true)
            }
            Err(e) => return Err(fail(e.into())),
        };
        Ok(Fresh { path: path.to_owned(), file, named, kept: false })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is whole: gives it its name.
    ///
    /// # Errors
    /// Somebody took the name meanwhile.
    pub fn keep(mut self) -> Result<(), RecordingError> {
        if !self.named {
            let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, from, CWD, &self.path, AtFlags::SYMLINK_FOLLOW).map_err(
                |e| match e {
                    Errno::EXIST => RecordingError::Exists { path: self.path.clone() },
                    e => RecordingError::io("name", &self.path)(e.into()),
                },
            )?;
        }
        self.kept = true;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.named && !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn it_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let fresh = Fresh::create(&path).unwrap();
        fresh.file().write_all_at(b"half", 0).unwrap();
        drop(fresh);
        assert!(!path.exists());
        let fresh = Fresh::create(&path).unwrap();
        fresh.file().write_all_at(b"whole", 0).unwrap();
        fresh.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert!(matches!(Fresh::create(&path), Err(RecordingError::Exists { .. })));
        // Taken in between: the other one's stays.
        let other = dir.path().join("b");
        let fresh = Fresh::create(&other).unwrap();
        if !fresh.named {
            std::fs::write(&other, "theirs").unwrap();
            assert!(matches!(fresh.keep(), Err(RecordingError::Exists { .. })));
            assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

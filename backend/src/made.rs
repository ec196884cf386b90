//! Names in the file system: those that this process made, and where they lie.

use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A name that this process made; somebody else may have put another file there since.
#[derive(Debug)]
pub(crate) struct Made {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Made {
    /// `meta` is that of what was made.
    pub(crate) fn new(path: &Path, meta: &Metadata) -> Made {
        Made { path: path.to_owned(), identity: (meta.dev(), meta.ino()) }
    }

    /// `file` is what was made.
    pub(crate) fn of(path: &Path, file: impl AsFd) -> io::Result<Made> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Made { path: path.to_owned(), identity: (stat.st_dev, stat.st_ino) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, where it is still what was made: somebody else's is not ours to unlink.
    ///
    /// # Errors
    /// It is, and stays.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours { std::fs::remove_file(&self.path) } else { Ok(()) }
    }

    /// The same where it is of no use to anybody.
    pub(crate) fn take_back(&self) {
        if let Err(error) = self.remove() {
            log::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// The folder in which a file lies, or shall lie.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

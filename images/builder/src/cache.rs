//! The cache folder: folders that are complete or not there, one builder at a time.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::{At, ImageError};

/// `$XDG_CACHE_HOME/tornblk`, else `~/.cache/tornblk`.
pub fn default_dir() -> Result<PathBuf, ImageError> {
    // A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let base = xdg.or_else(|| home.map(|h| h.join(".cache"))).ok_or(ImageError::NoCache)?;
    Ok(base.join("tornblk"))
}

/// See the [crate].
const FOLDERS: [&str; 8] =
    ["packages", "resolved", "kernels", "programs", "toolchains", "modules", "roots", "images"];

/// An open cache folder.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    stop: Option<Arc<AtomicBool>>,
}

impl Cache {
    /// Makes the folder where it is missing.
    pub fn open(dir: &Path) -> Result<Cache, ImageError> {
        for sub in FOLDERS {
            let dir = dir.join(sub);
            fs::create_dir_all(&dir).at("cannot make the cache folder", &dir)?;
        }
        // Others get this path (apt, QEMU), from other working directories.
        let dir = dir.canonicalize().at("cannot use the cache folder", dir)?;
        Ok(Cache { dir, stop: None })
    }

    /// What is done with it ends with [`ImageError::Stopped`] once this is set.
    pub(crate) fn until(self, stop: Option<Arc<AtomicBool>>) -> Cache {
        Cache { stop, ..self }
    }

    /// Shall it go on?
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        match &self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(ImageError::Stopped),
            _ => Ok(()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, parts: &[&str]) -> PathBuf {
        parts.iter().fold(self.dir.clone(), |p, part| p.join(part))
    }

    /// Waits until nobody else builds. The lock goes with the returned file, and with its process.
    pub(crate) fn lock(&self, progress: &mut dyn FnMut(&str)) -> Result<File, ImageError> {
        let path = self.dir.join("building.lock");
        let file = open_lock(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress("waiting for another build to end");
            loop {
                match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(rustix::io::Errno::WOULDBLOCK) => {}
                    Err(e) => return Err(e.into()).at("cannot lock", &path),
                }
                self.check()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // What a killed build left is nobody's now.
        for sub in FOLDERS {
            let sub = self.dir.join(sub);
            for entry in fs::read_dir(&sub).at("cannot read", &sub)?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(file)
    }

    /// A folder that goes when it is dropped, or with the next build.
    pub(crate) fn temporary(&self, parent: &Path) -> Result<tempfile::TempDir, ImageError> {
        let folder = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent);
        folder.at("cannot make a folder in", parent)
    }

    /// Puts a folder in place that `fill` has made, whole or not at all.
    pub(crate) fn make_dir(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.dir);
        let temporary = self.temporary(parent)?;
        fill(temporary.path())?;
        self.check()?;
        fs::rename(temporary.path(), path).at("cannot put in place", path)?;
        // Its content is at `path` now.
        let _ = temporary.keep();
        Ok(())
    }

    /// Puts a file in place, whole or not at all.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        let parent = path.parent().unwrap_or(&self.dir);
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(parent)
            .at("cannot write in", parent)?;
        file.write_all(content).at("cannot write", file.path())?;
        file.persist(path).map_err(|e| e.error).at("cannot put in place", path)?;
        Ok(())
    }

    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
        self.write(path, &json(value, path)?)
    }
}

const TEMPORARY: &str = ".tmp-";

pub(crate) fn open_lock(path: &Path) -> Result<File, ImageError> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .at("cannot open the lock file", path)
}

pub(crate) fn json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut out =
        serde_json::to_vec_pretty(value).map_err(std::io::Error::from).at("cannot write", path)?;
    out.push(b'\n');
    Ok(out)
}

/// `None` where there is no such file, or one of another version of this program.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

pub(crate) fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("cannot remove", path),
    }
}

/// Hexadecimal.
pub(crate) fn sha256(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

/// A key from the parts that it covers: 32 hexadecimal digits.
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize()[..16])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(tmp.path()).unwrap();
        let path = cache.path(&["kernels", "k"]);
        let failed = cache.make_dir(&path, |dir| {
            fs::write(dir.join("half"), "x").unwrap();
            Err(ImageError::NoMirror)
        });
        assert!(matches!(failed, Err(ImageError::NoMirror)));
        assert_eq!(fs::read_dir(cache.path(&["kernels"])).unwrap().count(), 0);
        cache
            .make_dir(&path, |dir| {
                fs::write(dir.join("all"), "x").unwrap();
                Ok(())
            })
            .unwrap();
        assert_eq!(fs::read_to_string(path.join("all")).unwrap(), "x");
        assert_eq!(fs::read_dir(cache.path(&["kernels"])).unwrap().count(), 1);
    }

    #[test]
    fn one_builder_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let inside = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                let (dir, inside) = (tmp.path(), inside.clone());
                s.spawn(move || {
                    let cache = Cache::open(dir).unwrap();
                    for _ in 0..50 {
                        let _lock = cache.lock(&mut |_| ()).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn keys_do_not_run_together() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab"]).len(), 32);
    }

    #[test]
    fn what_a_killed_build_left_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(tmp.path()).unwrap();
        let left = cache.path(&["images", ".tmp-x"]);
        fs::create_dir(&left).unwrap();
        drop(cache.lock(&mut |_| ()).unwrap());
        assert!(!left.exists());
    }
}

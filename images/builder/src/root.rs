//! Whole packages with all that they depend on, unpacked into one folder: a root for programs that are
//! not in the image, servers above all. Nothing is configured in it, no script of a package is run.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::apt::{Apt, package_path};
use crate::cache::{self, Cache, key, open_lock, read_json};
use crate::index::Index;
use crate::initrd::IN_USE;
use crate::{At, FORMAT, ImageError, Package, process};

/// What to unpack.
#[derive(Clone, Debug)]
pub struct RootRequest<'a> {
    pub packages: &'a [&'a str],
    /// Dependencies that are left out, with what only they need: tools of the distribution's own.
    pub without: &'a [&'a str],
    /// The cache folder, when it is not the user's.
    pub cache: Option<PathBuf>,
    /// Set from outside: give up.
    pub stop: Option<Arc<AtomicBool>>,
}

/// An unpacked root.
#[derive(Clone, Debug)]
pub struct Root {
    pub dir: PathBuf,
    pub packages: Vec<Package>,
    /// A shared lock on the folder: while it lives, [`crate::gc`] leaves the root alone.
    _in_use: Arc<File>,
}

impl Root {
    /// Of one of its packages.
    pub fn version(&self, package: &str) -> Option<&str> {
        self.packages.iter().find(|p| p.name == package).map(|p| p.version.as_str())
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootLock {
    packages: Vec<Package>,
}

/// Unpacks it, or finds it in the cache (then without any network).
pub fn root(request: &RootRequest<'_>, progress: &mut dyn FnMut(&str)) -> Result<Root, ImageError> {
    let dir = match &request.cache {
        Some(dir) => dir.clone(),
        None => cache::default_dir()?,
    };
    let cache = Cache::open(&dir)?.until(request.stop.clone());
    let names = [request.packages, &["without"], request.without].concat();
    let key = key(&[&[FORMAT.to_string().as_str()], names.as_slice()].concat());
    let path = cache.path(&["roots", &key]);
    if let Some(root) = open(&path)? {
        return Ok(root);
    }
    let _building = cache.lock(progress)?;
    let made = make(request, &cache, &path, progress);
    // Ctrl-C ends what unpacks, too: its failure is not the news.
    made.map_err(|error| cache.check().err().unwrap_or(error))?;
    open(&path)?.ok_or_else(|| ImageError::NoPackage { name: request.packages.join(", ") })
}

fn open(path: &Path) -> Result<Option<Root>, ImageError> {
    if !path.is_dir() {
        return Ok(None);
    }
    let file = open_lock(&path.join(IN_USE))?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        // It is being removed.
        return Ok(None);
    }
    // Only now: it may have been removed before.
    let lock = read_json::<RootLock>(&path.join("lock.json"));
    let root = |lock: RootLock| Root {
        dir: path.join("root"),
        packages: lock.packages,
        _in_use: Arc::new(file),
    };
    Ok(lock.map(root))
}

fn make(
    request: &RootRequest<'_>,
    cache: &Cache,
    path: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    let mut apt = Apt::new(cache, false);
    let index = &apt.indexes(progress)?.programs;
    let names = closure(index, request)?;
    let stanzas: Vec<_> = names.iter().filter_map(|name| index.newest(name)).collect();
    let size = stanzas.iter().map(|s| s.size()).sum();
    let packages: Vec<Package> = stanzas.into_iter().map(Package::from).collect();
    apt.fetch(&packages, size, progress)?;
    progress(&format!("unpacking {} packages", packages.len()));
    cache.make_dir(path, |dir| {
        let root = dir.join("root");
        std::fs::create_dir(&root).at("cannot make", &root)?;
        for package in &packages {
            unpack(package, cache, &root)?;
        }
        cache.write_json(&dir.join("lock.json"), &RootLock { packages: packages.clone() })
    })
}

/// As it would be installed, but for its scripts.
pub(crate) fn unpack(package: &Package, cache: &Cache, root: &Path) -> Result<(), ImageError> {
    let path = package_path(cache, package);
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(&path).arg(root);
    let out = process::run(&mut unpack, Signal::TERM, cache)?
        .map_err(|_| ImageError::NoApt("dpkg-deb"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(std::io::Error::other(said)).at("cannot unpack", &path)
}

/// The names of all packages, those that are asked for among them. What is only virtual is passed over: of
/// what is unpacked here nothing needs any of it.
fn closure(index: &Index, request: &RootRequest<'_>) -> Result<BTreeSet<String>, ImageError> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<&str> = request.packages.to_vec();
    while let Some(name) = next.pop() {
        let Some(stanza) = index.newest(name) else {
            if request.packages.contains(&name) {
                return Err(ImageError::NoPackage { name: name.to_owned() });
            }
            continue;
        };
        if request.without.contains(&name) || !names.insert(name.to_owned()) {
            continue;
        }
        next.extend(stanza.depends());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_root_that_nobody_uses_is_collected() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(tmp.path()).unwrap();
        let path = cache.path(&["roots", "k"]);
        std::fs::create_dir_all(path.join("root")).unwrap();
        let lock = RootLock { packages: Vec::new() };
        cache.write_json(&path.join("lock.json"), &lock).unwrap();
        let collect = || crate::gc(Some(tmp.path()), &mut |_| ()).unwrap();
        let root = open(&path).unwrap().unwrap();
        collect();
        assert!(root.dir.is_dir());
        drop(root);
        collect();
        assert!(open(&path).unwrap().is_none());
    }

    #[test]
    fn all_that_is_needed_comes_along_but_what_is_left_out() {
        let mut index = Index::default();
        index.add(
            "Package: server\nVersion: 2\nDepends: libc6, tools (>= 1), virtual\n\n\
             Package: server\nVersion: 1\nDepends: old\n\n\
             Package: tools\nVersion: 1\nDepends: perl, tzdata\n\n\
             Package: perl\nVersion: 1\nDepends: perl-base\n\n\
             Package: tzdata\nVersion: 1\n\nPackage: libc6\nVersion: 1\nDepends: server\n\n"
                .to_owned(),
        );
        let request =
            |packages| RootRequest { packages, without: &["perl"], cache: None, stop: None };
        let names = closure(&index, &request(&["server"])).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["libc6", "server", "tools", "tzdata"]);
        assert!(closure(&index, &request(&["nothing"])).is_err());
    }
}

//! What is in the cache, and removing what nothing needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::cache::{Cache, open_lock, read_json, remove};
use crate::guest_module::ToolchainLock;
use crate::initrd::IN_USE;
use crate::kernel::Resolved;
use crate::programs::ProgramsLock;
use crate::{At, ImageError, KernelLock, Lock, ModuleLock, cache};

/// An image in the cache.
#[derive(Clone, Debug)]
pub struct Listed {
    pub key: String,
    pub dir: PathBuf,
    pub lock: Lock,
    /// Bytes, saved VM states among them.
    pub size: u64,
    pub last_used: SystemTime,
}

/// What [`gc`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: usize,
    pub packages: usize,
    /// Bytes.
    pub freed: u64,
}

/// All images, the last used first. `dir`: the cache, when it is not the user's.
pub fn list(dir: Option<&Path>) -> Result<Vec<Listed>, ImageError> {
    let cache = open(dir)?;
    let mut found = Vec::new();
    for (key, dir) in folders(&cache, "images")? {
        let Some(lock) = read_json::<Lock>(&dir.join("lock.json")) else { continue };
        let used = fs::metadata(dir.join(IN_USE)).or_else(|_| fs::metadata(&dir));
        let last_used = used.and_then(|m| m.modified()).at("cannot read", &dir)?;
        found.push(Listed { key, size: size(&dir), dir, lock, last_used });
    }
    found.sort_by_key(|l| std::cmp::Reverse(l.last_used));
    Ok(found)
}

/// Removes all images but the last used one of each kernel release, and whatever no image that is
/// left was made of, roots of whole packages among it. What is in use stays.
pub fn gc(dir: Option<&Path>, progress: &mut dyn FnMut(&str)) -> Result<Collected, ImageError> {
    let cache = open(dir)?;
    let _building = cache.lock(progress)?;
    let mut collected = Collected::default();
    let mut kept = BTreeMap::new();
    let mut locks = Vec::new();
    for image in list(Some(cache.dir()))? {
        let newest = kept.insert(image.lock.kernel.release.clone(), ()).is_none();
        if newest || !unused(&image.dir)? {
            locks.push(image.lock);
            continue;
        }
        progress(&format!("removing an image with {}", image.lock.kernel.release));
        collected.images += 1;
        collected.freed += image.size;
        remove(&image.dir)?;
    }
    let kernels: Vec<&KernelLock> = locks.iter().map(|l| &l.kernel).collect();
    for (_, dir) in folders(&cache, "kernels")? {
        let lock = read_json::<KernelLock>(&dir.join("lock.json"));
        if lock.is_none_or(|lock| !kernels.contains(&&lock)) {
            collected.freed += size(&dir);
            remove(&dir)?;
        }
    }
    for (_, dir) in folders(&cache, "programs")? {
        let lock = read_json::<ProgramsLock>(&dir.join("lock.json"));
        if lock.is_none_or(|lock| !locks.iter().any(|l| l.programs == lock.packages)) {
            collected.freed += size(&dir);
            remove(&dir)?;
        }
    }
    let guest_modules: Vec<&ModuleLock> =
        locks.iter().filter_map(|l| l.guest_module.as_ref()).collect();
    for (key, dir) in folders(&cache, "modules")? {
        if !guest_modules.iter().any(|m| m.key == key) {
            collected.freed += size(&dir);
            remove(&dir)?;
        }
    }
    // Of two that were made of the same packages, the newer one is used.
    let resolved: BTreeSet<String> = folders(&cache, "resolved")?
        .into_iter()
        .filter_map(|(_, path)| Some(read_json::<Resolved>(&path)?.key))
        .collect();
    for (key, dir) in folders(&cache, "toolchains")? {
        let lock = read_json::<ToolchainLock>(&dir.join("lock.json"));
        let made_by =
            |m: &ModuleLock, l: &ToolchainLock| l.packages.iter().all(|p| m.packages.contains(p));
        let used = |lock| guest_modules.iter().any(|m| made_by(m, &lock));
        if !resolved.contains(&key) || !lock.is_some_and(used) {
            collected.freed += size(&dir);
            remove(&dir)?;
        }
    }
    // They come back with their newest packages when they are wanted again.
    for (_, dir) in folders(&cache, "roots")? {
        if unused(&dir)? {
            collected.freed += size(&dir);
            remove(&dir)?;
        }
    }
    let needed: BTreeSet<String> = locks
        .iter()
        .flat_map(|l| {
            let module = l.guest_module.iter().flat_map(|m| &m.packages);
            l.programs.iter().chain(&l.kernel.packages).chain(module)
        })
        .map(|p| format!("{}.deb", p.sha256))
        .collect();
    for (name, path) in folders(&cache, "packages")? {
        if !needed.contains(&name) {
            collected.packages += 1;
            collected.freed += size(&path);
            remove(&path)?;
        }
    }
    Ok(collected)
}

fn open(dir: Option<&Path>) -> Result<Cache, ImageError> {
    match dir {
        Some(dir) => Cache::open(dir),
        None => Cache::open(&cache::default_dir()?),
    }
}

/// Name and path of each entry, ordered.
fn folders(cache: &Cache, sub: &str) -> Result<Vec<(String, PathBuf)>, ImageError> {
    let dir = cache.path(&[sub]);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).at("cannot read", &dir)? {
        let entry = entry.at("cannot read", &dir)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether nobody has an [`Image`](crate::Image) of it.
fn unused(dir: &Path) -> Result<bool, ImageError> {
    let file = open_lock(&dir.join(IN_USE))?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn size(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|e| size(&e.path())).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::{KernelFormat, Package, initrd};

    fn package(name: &str) -> Package {
        Package { name: name.into(), version: "1".into(), sha256: format!("{name}-hash") }
    }

    fn lock(release: &str, kernel: &str) -> Lock {
        Lock {
            kernel: KernelLock {
                release: release.into(),
                format: KernelFormat::BzImage,
                sha256: String::new(),
                packages: vec![package(kernel)],
                file: None,
                modules: Vec::new(),
            },
            programs: vec![package("fio")],
            agent_sha256: String::new(),
            guest_module: Some(ModuleLock {
                key: format!("module-{kernel}"),
                path: Ok(String::new()),
                packages: vec![package("gcc"), package(&format!("headers-{kernel}"))],
            }),
        }
    }

    fn add(cache: &Cache, key: &str, lock: &Lock, age: u64) {
        let dir = cache.path(&["images", key]);
        fs::create_dir_all(dir.join("saved")).unwrap();
        cache.write_json(&dir.join("lock.json"), lock).unwrap();
        fs::write(dir.join("saved/x.state"), [0; 1000]).unwrap();
        let used = open_lock(&dir.join(IN_USE)).unwrap();
        used.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        let kernel = cache.path(&["kernels", key]);
        fs::create_dir_all(&kernel).unwrap();
        cache.write_json(&kernel.join("lock.json"), &lock.kernel).unwrap();
        let module = lock.guest_module.as_ref().unwrap();
        fs::create_dir_all(cache.path(&["modules", &module.key])).unwrap();
        let all = [&lock.programs[..], &lock.kernel.packages, &module.packages].concat();
        for package in all {
            fs::write(cache.path(&["packages", &format!("{}.deb", package.sha256)]), "x").unwrap();
        }
    }

    #[test]
    fn what_is_needed_or_in_use_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(tmp.path()).unwrap();
        add(&cache, "new", &lock("7.2.12", "k12"), 10);
        add(&cache, "old", &lock("7.2.12", "k12"), 1000);
        add(&cache, "other", &lock("7.3.4", "k34"), 500);
        add(&cache, "used", &lock("7.3.4", "k34-before"), 900);
        fs::write(cache.path(&["packages", "nobodys.deb"]), "x").unwrap();
        for (key, gcc) in [("toolchain", "gcc"), ("made-before", "gcc"), ("older", "older-gcc")] {
            let dir = cache.path(&["toolchains", key]);
            fs::create_dir(&dir).unwrap();
            let lock = ToolchainLock { packages: vec![package(gcc)] };
            cache.write_json(&dir.join("lock.json"), &lock).unwrap();
            if key != "made-before" {
                let resolved = Resolved { format: String::new(), key: key.to_owned() };
                let path = cache.path(&["resolved", &format!("toolchain-{gcc}.json")]);
                cache.write_json(&path, &resolved).unwrap();
            }
        }
        let image = initrd::open(&cache, "used").unwrap().unwrap();
        let listed: Vec<String> =
            list(Some(tmp.path())).unwrap().into_iter().map(|l| l.key).collect();
        // Opening it was a use.
        assert_eq!(listed, ["used", "new", "other", "old"]);
        let collected = gc(Some(tmp.path()), &mut |_| ()).unwrap();
        assert_eq!((collected.images, collected.packages), (2, 3));
        assert!(collected.freed >= 2000, "{collected:?}");
        let left = |sub| -> Vec<String> {
            folders(&cache, sub).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(left("images"), ["new", "used"]);
        let packages = left("packages").join(" ").replace("-hash.deb", "");
        assert_eq!(packages, "fio gcc headers-k12 headers-k34-before k12 k34-before");
        assert_eq!(left("modules"), ["module-k12", "module-k34-before"]);
        assert_eq!(left("toolchains"), ["toolchain"]);
        drop(image);
        assert_eq!(gc(Some(tmp.path()), &mut |_| ()).unwrap(), Collected::default());
    }

    #[test]
    fn an_image_in_use_is_no_hindrance_to_another_user() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(tmp.path()).unwrap();
        add(&cache, "a", &lock("7.2.12", "k12"), 10);
        let first = initrd::open(&cache, "a").unwrap().unwrap();
        let second = initrd::open(&cache, "a").unwrap().unwrap();
        assert!(!unused(&first.dir).unwrap());
        drop((first, second));
        assert!(unused(&cache.path(&["images", "a"])).unwrap());
        assert!(initrd::open(&cache, "nothing").unwrap().is_none());
    }
}

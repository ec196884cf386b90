//! The kernel part of an image: `kernels/KEY/{kernel,modules.cpio,lock.json}`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::{Apt, package_path};
use crate::cache::{Cache, key, read_json, sha256};
use crate::deb::{self, Files, Node};
use crate::index::{Index, Stanza};
use crate::{
    At, FORMAT, ImageError, KernelFormat, KernelLock, KernelSource, Package, Request, modules,
    version, vmlinux,
};

/// A kernel in the cache.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) key: String,
    pub(crate) dir: PathBuf,
    pub(crate) lock: KernelLock,
}

/// What a request came down to the last time.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resolved {
    /// Of what made it: another version of this program may make something else.
    pub(crate) format: String,
    pub(crate) key: String,
}

/// Changes with all that is not in the packages: which modules are taken, and how.
fn format() -> String {
    key(&[&FORMAT.to_string(), &modules::lists()])
}

/// A kernel that was built before, if the request still means it.
pub(crate) fn cached(cache: &Cache, request: &Request) -> Result<Option<Kernel>, ImageError> {
    let key = match &request.kernel {
        KernelSource::Debian(wanted) => {
            let path = cache.path(&["resolved", &format!("kernel-{wanted}.json")]);
            match read_json::<Resolved>(&path) {
                Some(r) if r.format == format() => r.key,
                _ => return Ok(None),
            }
        }
        KernelSource::File(path) => Own::of_file(path, request.modules.as_deref())?.key()?,
        KernelSource::BuildTree(dir) => Own::of_tree(dir)?.key()?,
    };
    Ok(open(cache, &key))
}

fn open(cache: &Cache, key: &str) -> Option<Kernel> {
    let dir = cache.path(&["kernels", key]);
    let lock = read_json(&dir.join("lock.json"))?;
    Some(Kernel { key: key.to_owned(), dir, lock })
}

pub(crate) fn build(
    cache: &Cache,
    apt: &mut Apt<'_>,
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    if !apt.refresh
        && let Some(kernel) = cached(cache, request)?
    {
        return Ok(kernel);
    }
    match &request.kernel {
        KernelSource::Debian(wanted) => debian(cache, apt, wanted, progress),
        KernelSource::File(path) => {
            own(cache, &Own::of_file(path, request.modules.as_deref())?, progress)
        }
        KernelSource::BuildTree(dir) => own(cache, &Own::of_tree(dir)?, progress),
    }
}

// --- Debian's

fn debian(
    cache: &Cache,
    apt: &mut Apt<'_>,
    wanted: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    let index = &apt.indexes(progress)?.kernels;
    let stanzas = choose(index, wanted)?;
    let packages: Vec<Package> = stanzas.iter().map(|s| Package::from(*s)).collect();
    let size = stanzas.iter().map(|s| s.size()).sum();
    let hashes: Vec<&str> = packages.iter().map(|p| p.sha256.as_str()).collect();
    let key = key(&[&[format().as_str()], hashes.as_slice()].concat());
    if open(cache, &key).is_none() {
        apt.fetch(&packages, size, progress)?;
        progress("unpacking the kernel");
        let mut files = Files::new();
        for package in &packages {
            cache.check()?;
            files.extend(deb::read(&package_path(cache, package), &is_kernel_file)?);
        }
        let name = packages.first().map(|p| p.name.clone()).unwrap_or_default();
        let missing = || ImageError::NotInPackage { package: name.clone(), what: "kernel".into() };
        let (path, image) = files
            .iter()
            .find_map(|(path, node)| match node {
                Node::File { data, .. } if is_kernel_image(path) => Some((path, data)),
                _ => None,
            })
            .ok_or_else(missing)?;
        let kernel = vmlinux::read(image.clone())
            .map_err(|why| ImageError::Kernel { path: PathBuf::from(path), why })?;
        let source = modules::Source::new(files.keys().map(PathBuf::from), |path| {
            match files.get(&*path.to_string_lossy()) {
                Some(Node::File { data, .. }) => Ok(data.clone()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            }
        });
        store(cache, &key, &kernel, &source, packages, None)?;
    }
    let path = cache.path(&["resolved", &format!("kernel-{wanted}.json")]);
    cache.write_json(&path, &Resolved { format: format(), key: key.clone() })?;
    open(cache, &key).ok_or(ImageError::NoPackage { name: wanted.to_owned() })
}

fn is_kernel_image(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|f| f == "vmlinuz" || f.starts_with("vmlinuz-"))
}

fn is_kernel_file(path: &str) -> bool {
    is_kernel_image(path) || path.starts_with("usr/lib/modules/")
}

/// The packages of the newest cloud kernel of a series or version.
fn choose<'i>(index: &'i Index, wanted: &str) -> Result<Vec<Stanza<'i>>, ImageError> {
    // Upstream version → newest packages.
    let mut there: BTreeMap<String, Vec<Stanza<'i>>> = BTreeMap::new();
    for release in releases(index) {
        let Some(found) = packages_of(index, &release) else { continue };
        let upstream = release.split(['+', '-']).next().unwrap_or_default().to_owned();
        let newer = match there.get(&upstream).and_then(|old| old.last()) {
            None => true,
            Some(old) => {
                found.last().is_some_and(|f| version::compare(f.version(), old.version()).is_gt())
            }
        };
        if newer {
            there.insert(upstream, found);
        }
    }
    let mut versions: Vec<String> = there.keys().cloned().collect();
    versions.sort_by(|a, b| version::compare(a, b));
    let series = format!("{wanted}.");
    let best = versions.iter().rfind(|v| *v == wanted || v.starts_with(&series)).cloned();
    match best.and_then(|v| there.remove(&v)) {
        Some(stanzas) => Ok(stanzas),
        None => {
            Err(ImageError::NoSuchKernel { wanted: wanted.to_owned(), there: newest(&versions) })
        }
    }
}

/// The last version of each series, of ordered ones.
fn newest(versions: &[String]) -> Vec<String> {
    let series = |v: &String| v.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let last_of_each = versions.chunk_by(|a, b| series(a) == series(b));
    last_of_each.filter_map(|chunk| chunk.last().cloned()).collect()
}

/// `7.2.12+deb13-cloud-amd64` and so on.
fn releases(index: &Index) -> Vec<String> {
    let mut found: Vec<String> = index
        .names()
        .filter(|n| n.ends_with("-cloud-amd64"))
        .filter_map(|n| {
            let n = n.strip_prefix("linux-")?;
            let n = n.strip_prefix("binary-").or_else(|| n.strip_prefix("image-"))?;
            Some(n.strip_prefix("unsigned-").unwrap_or(n))
        })
        .filter(|r| r.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// All packages of a kernel, or `None` where one is missing: of old kernels, some stay behind in
/// the archive.
fn packages_of<'i>(index: &'i Index, release: &str) -> Option<Vec<Stanza<'i>>> {
    let newest = |prefix: &str| index.newest(&format!("linux-{prefix}-{release}"));
    let binary = newest("binary").or_else(|| newest("binary-unsigned"));
    match binary {
        Some(binary) => Some(vec![binary, newest("modules")?]),
        None => {
            // Up to 6.18 one package has everything; a later one of this name is but a frame.
            let image = newest("image")?;
            let frame = image.depends().iter().any(|d| d.starts_with("linux-binary-"));
            (!frame).then(|| vec![image])
        }
    }
}

// --- The user's own

/// A kernel of the user's own.
#[derive(Debug)]
struct Own {
    kernel: PathBuf,
    /// What the user named.
    named: PathBuf,
    modules: Vec<PathBuf>,
}

impl Own {
    fn of_file(path: &Path, dir: Option<&Path>) -> Result<Own, ImageError> {
        let mut modules = Vec::new();
        if let Some(dir) = dir {
            find_modules(dir, &mut modules, 0).at("cannot read the modules in", dir)?;
            if modules.is_empty() {
                let why = "there is no .ko file in this folder".to_owned();
                return Err(ImageError::Module { path: dir.to_owned(), why });
            }
        }
        Ok(Own { kernel: path.to_owned(), named: path.to_owned(), modules })
    }

    fn of_tree(dir: &Path) -> Result<Own, ImageError> {
        let candidates = ["arch/x86/boot/bzImage", "vmlinux"].map(|p| dir.join(p));
        let kernel = candidates.into_iter().find(|p| p.is_file()).ok_or_else(|| {
            let why = "no arch/x86/boot/bzImage in this folder: build the kernel first".to_owned();
            ImageError::Kernel { path: dir.to_owned(), why }
        })?;
        // Its build lists the modules, one a line: kernel/fs/xfs/xfs.ko, with .o in newer ones.
        let order = fs::read_to_string(dir.join("modules.order")).unwrap_or_default();
        let modules = order
            .lines()
            .map(|l| dir.join(l.strip_prefix("kernel/").unwrap_or(l)).with_extension("ko"))
            .filter(|p| p.is_file())
            .collect();
        Ok(Own { kernel, named: dir.to_owned(), modules })
    }

    /// The kernel's content, and of the modules what tells a new build.
    fn key(&self) -> Result<String, ImageError> {
        let data = fs::read(&self.kernel).at("cannot read the kernel", &self.kernel)?;
        let mut parts = vec![format(), sha256(&data)];
        for path in &self.modules {
            let meta = fs::metadata(path).at("cannot read the module", path)?;
            let modified = meta.modified().at("cannot read the module", path)?;
            parts.push(format!("{} {} {modified:?}", path.display(), meta.len()));
        }
        Ok(key(&parts.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

fn find_modules(dir: &Path, found: &mut Vec<PathBuf>, depth: usize) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        // `build` and `source` are links, and must not be followed.
        if kind.is_dir() && depth < 16 {
            find_modules(&path, found, depth + 1)?;
        } else if kind.is_file() && entry.file_name().to_string_lossy().contains(".ko") {
            found.push(path);
        }
    }
    Ok(())
}

fn own(cache: &Cache, own: &Own, progress: &mut dyn FnMut(&str)) -> Result<Kernel, ImageError> {
    if own.modules.is_empty() {
        progress("no modules: the kernel must have virtio_blk and file systems built in");
    }
    progress("unpacking the kernel");
    let key = own.key()?;
    let data = fs::read(&own.kernel).at("cannot read the kernel", &own.kernel)?;
    let bad = |why| ImageError::Kernel { path: own.kernel.clone(), why };
    let kernel = vmlinux::read(data).map_err(bad)?;
    let source = modules::Source::new(own.modules.iter().cloned(), |path| fs::read(path));
    store(cache, &key, &kernel, &source, Vec::new(), Some(own.named.clone()))?;
    open(cache, &key).ok_or_else(|| bad("it is not in the cache any more".into()))
}

fn store(
    cache: &Cache,
    key: &str,
    kernel: &vmlinux::Kernel,
    source: &modules::Source<'_>,
    packages: Vec<Package>,
    file: Option<PathBuf>,
) -> Result<(), ImageError> {
    let selected = source.select(&kernel.release)?;
    let lock = KernelLock {
        release: kernel.release.clone(),
        format: kernel.format,
        sha256: sha256(&kernel.data),
        packages,
        file,
        modules: selected.iter().map(|(m, _)| m.clone()).collect(),
    };
    let archive = modules::archive(&kernel.release, &selected);
    cache.make_dir(&cache.path(&["kernels", key]), |dir| {
        for (name, data) in [("kernel", &kernel.data), ("modules.cpio", &archive)] {
            fs::write(dir.join(name), data).at("cannot write", &dir.join(name))?;
        }
        cache.write_json(&dir.join("lock.json"), &lock)
    })
}

impl std::fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KernelFormat::Vmlinux => "vmlinux (PVH)",
            KernelFormat::BzImage => "bzImage",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn index() -> Index {
        let mut text = String::new();
        let mut add = |name: &str, version: &str, depends: &str| {
            text += &format!(
                "Package: linux-{name}-cloud-amd64\nVersion: {version}\nDepends: {depends}\n\n"
            );
        };
        add("image-6.12.9+deb12", "6.12.9-1~bpo12+1", "kmod");
        add("image-6.12.95+deb12", "6.12.95-1~bpo12+1", "kmod");
        add("image-7.2.9+deb13", "7.2.9-1", "linux-binary-7.2.9+deb13-cloud-amd64");
        for v in ["7.2.9", "7.2.12"] {
            add(&format!("binary-{v}+deb13"), v, "");
            add(&format!("modules-{v}+deb13"), v, "");
        }
        // Left behind: its modules are gone; and nothing but the frame.
        add("binary-7.2.13+deb13", "7.2.13", "");
        add("image-7.2.14+deb13", "7.2.14", "linux-binary-7.2.14+deb13-cloud-amd64");
        add("binary-unsigned-7.3.4+deb13", "7.3.4", "");
        add("modules-7.3.4+deb13", "7.3.4", "");
        text += "Package: linux-image-cloud-amd64\nVersion: 7.2.12\n\n";
        text += "Package: linux-image-7.2.9+deb13-cloud-amd64-dbg\nVersion: 7.2.9\n";
        let mut index = Index::default();
        index.add(text);
        index
    }

    #[test]
    fn the_newest_complete_kernel_of_a_series_is_taken() {
        let index = index();
        let names = |wanted: &str| -> Vec<String> {
            choose(&index, wanted).unwrap().iter().map(|s| s.name().to_owned()).collect()
        };
        let of = |p: &str, v: &str| format!("linux-{p}-{v}-cloud-amd64");
        assert_eq!(names("7.2"), [of("binary", "7.2.12+deb13"), of("modules", "7.2.12+deb13")]);
        assert_eq!(names("7.2.9"), [of("binary", "7.2.9+deb13"), of("modules", "7.2.9+deb13")]);
        assert_eq!(names("6.12"), [of("image", "6.12.95+deb12")]);
        assert_eq!(names("7.3")[0], of("binary-unsigned", "7.3.4+deb13"));
    }

    #[test]
    fn an_unknown_series_lists_what_is_there() {
        let error = choose(&index(), "7.20").unwrap_err().to_string();
        assert!(error.contains("7.20"), "{error}");
        assert!(error.ends_with("the mirror has 6.12.95, 7.2.12, 7.3.4"), "{error}");
    }

    #[test]
    fn a_build_tree_is_read_as_kbuild_leaves_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let error = Own::of_tree(dir).unwrap_err().to_string();
        assert!(error.contains("build the kernel first"), "{error}");
        fs::create_dir_all(dir.join("arch/x86/boot")).unwrap();
        fs::create_dir_all(dir.join("fs/xfs")).unwrap();
        fs::write(dir.join("arch/x86/boot/bzImage"), "k").unwrap();
        fs::write(dir.join("fs/xfs/xfs.ko"), "m").unwrap();
        fs::write(dir.join("modules.order"), "fs/xfs/xfs.o\nfs/gone/gone.o\n").unwrap();
        let tree = Own::of_tree(dir).unwrap();
        assert_eq!(tree.modules, [dir.join("fs/xfs/xfs.ko")]);
        let before = tree.key().unwrap();
        fs::write(dir.join("fs/xfs/xfs.ko"), "rebuilt").unwrap();
        assert_ne!(Own::of_tree(dir).unwrap().key().unwrap(), before);
    }
}

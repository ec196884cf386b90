//! The programs part of an image: `programs/KEY/{programs.cpio,lock.json}`.
//!
//! Only the files that are named here are taken, and the shared libraries that they need, found
//! by name through the packages' dependencies: fio and xfsprogs as packages would bring Python, ICU
//! and more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::apt::{Apt, package_path};
use crate::cache::{Cache, key, read_json};
use crate::cpio::Archive;
use crate::deb::{self, Files, Node};
use crate::index::Index;
use crate::kernel::Resolved;
use crate::{At, FORMAT, ImageError, Package, elf};

/// Package → its files that are taken.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("busybox-static", &["usr/bin/busybox"]),
    (
        "xfsprogs",
        &[
            "usr/sbin/mkfs.xfs",
            "usr/sbin/xfs_db",
            "usr/sbin/xfs_io",
            "usr/sbin/xfs_logprint",
            "usr/sbin/xfs_mdrestore",
            "usr/sbin/xfs_metadump",
            "usr/sbin/xfs_repair",
        ],
    ),
    (
        "e2fsprogs",
        &[
            "etc/mke2fs.conf",
            "usr/sbin/debugfs",
            "usr/sbin/dumpe2fs",
            "usr/sbin/e2fsck",
            "usr/sbin/e2image",
            "usr/sbin/filefrag",
            "usr/sbin/mke2fs",
            "usr/sbin/resize2fs",
            "usr/sbin/tune2fs",
        ],
    ),
    ("fio", &["usr/bin/fio"]),
];

/// Names under which programs look at how they were called.
const LINKS: [(&str, &str); 5] = [
    ("usr/sbin/mkfs.ext4", "mke2fs"),
    ("usr/sbin/mkfs.ext3", "mke2fs"),
    ("usr/sbin/mkfs.ext2", "mke2fs"),
    ("usr/sbin/fsck.ext4", "e2fsck"),
    // The kernel starts it to load a module.
    ("usr/sbin/modprobe", "../bin/busybox"),
];

/// The applets that get a name of their own; all are there as `busybox NAME`.
const APPLETS: [&str; 58] = [
    "awk",
    "basename",
    "blkdiscard",
    "blkid",
    "blockdev",
    "cat",
    "chmod",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hexdump",
    "kill",
    "ln",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "od",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "umount",
    "uname",
    "vi",
];

/// Libraries that are loaded by name at run time: glibc does it to end a thread.
const LOADED_LATER: [&str; 1] = ["libgcc_s.so.1"];

/// Programs in the cache.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) key: String,
    pub(crate) dir: PathBuf,
    pub(crate) lock: Vec<Package>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProgramsLock {
    pub(crate) packages: Vec<Package>,
}

/// Names the lists above: another list is another request.
fn request() -> String {
    let named = format!("{PROGRAMS:?} {LINKS:?} {APPLETS:?} {LOADED_LATER:?}");
    key(&[&FORMAT.to_string(), &named])
}

pub(crate) fn cached(cache: &Cache) -> Option<Programs> {
    let resolved = cache.path(&["resolved", &format!("programs-{}.json", request())]);
    open(cache, &read_json::<Resolved>(&resolved)?.key)
}

fn open(cache: &Cache, key: &str) -> Option<Programs> {
    let dir = cache.path(&["programs", key]);
    let lock: ProgramsLock = read_json(&dir.join("lock.json"))?;
    Some(Programs { key: key.to_owned(), dir, lock: lock.packages })
}

pub(crate) fn build<'c>(
    cache: &'c Cache,
    apt: &mut Apt<'c>,
    refresh: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<Programs, ImageError> {
    if !refresh && let Some(programs) = cached(cache) {
        return Ok(programs);
    }
    let (files, packages) = Closure::collect(cache, apt, progress)?;
    let hashes: Vec<&str> = packages.iter().map(|p| p.sha256.as_str()).collect();
    let key = key(&[&[request().as_str()], hashes.as_slice()].concat());
    let mut archive = Archive::default();
    base(&mut archive);
    archive.files(&files);
    let archive = archive.finish();
    cache.make_dir(&cache.path(&["programs", &key]), |dir| {
        let path = dir.join("programs.cpio");
        fs::write(&path, &archive).at("cannot write", &path)?;
        cache.write_json(&dir.join("lock.json"), &ProgramsLock { packages: packages.clone() })
    })?;
    let resolved = cache.path(&["resolved", &format!("programs-{}.json", request())]);
    cache.write_json(&resolved, &Resolved { format: request(), key: key.clone() })?;
    open(cache, &key).ok_or(ImageError::NoPackage { name: "programs".into() })
}

/// What is there before any package.
fn base(archive: &mut Archive) {
    for dir in [
        "dev",
        "etc",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "var",
    ] {
        archive.directory(dir);
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        archive.link(dir, &format!("usr/{dir}"));
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    for (path, target) in LINKS {
        archive.link(path, target);
    }
    for applet in APPLETS {
        archive.link(&format!("usr/bin/{applet}"), "busybox");
    }
    archive.link("etc/mtab", "/proc/self/mounts");
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
}

/// Files with the libraries that they need.
struct Closure<'a, 'c> {
    cache: &'c Cache,
    apt: &'a mut Apt<'c>,
    /// Everything in each fetched package.
    opened: BTreeMap<String, Files>,
    packages: BTreeMap<String, Package>,
    taken: Files,
    /// Packages of which something is taken.
    used: BTreeSet<String>,
}

/// A library that something needs.
struct Wanted {
    library: String,
    /// The package of what needs it.
    by: String,
}

impl Closure<'_, '_> {
    fn collect<'c>(
        cache: &'c Cache,
        apt: &mut Apt<'c>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Files, Vec<Package>), ImageError> {
        let mut closure = Closure {
            cache,
            apt,
            opened: BTreeMap::new(),
            packages: BTreeMap::new(),
            taken: Files::new(),
            used: BTreeSet::new(),
        };
        let names: Vec<&str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
        closure.open(&names, progress)?;
        let mut wanted = VecDeque::new();
        for (package, paths) in PROGRAMS {
            for path in paths {
                wanted.extend(closure.take(package, path)?);
            }
        }
        wanted.extend(LOADED_LATER.map(|l| Wanted { library: l.into(), by: "libc6".into() }));
        // Level by level, so that apt is called a few times and not a hundred.
        while !wanted.is_empty() {
            closure.open_for(&wanted, progress)?;
            for want in std::mem::take(&mut wanted) {
                wanted.extend(closure.library(&want, progress)?);
            }
        }
        let packages = closure.packages.into_iter().filter(|(name, _)| closure.used.contains(name));
        Ok((closure.taken, packages.map(|(_, p)| p).collect()))
    }

    /// Fetches and opens packages that are not open yet.
    fn open(&mut self, names: &[&str], progress: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        let index = &self.apt.indexes(progress)?.programs;
        let mut fetch = Vec::new();
        let mut size = 0;
        for name in names {
            if self.opened.contains_key(*name) || fetch.iter().any(|p: &Package| p.name == *name) {
                continue;
            }
            let Some(stanza) = index.newest(name) else {
                return Err(ImageError::NoPackage { name: (*name).to_owned() });
            };
            size += stanza.size();
            fetch.push(Package::from(stanza));
        }
        self.apt.fetch(&fetch, size, progress)?;
        for package in fetch {
            self.cache.check()?;
            let files = deb::read(&package_path(self.cache, &package), &is_wanted)?;
            self.opened.insert(package.name.clone(), files);
            self.packages.insert(package.name.clone(), package);
        }
        Ok(())
    }

    /// Opens what by its name has a wanted library.
    fn open_for(
        &mut self,
        wanted: &VecDeque<Wanted>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), ImageError> {
        let missing: Vec<&Wanted> =
            wanted.iter().filter(|w| self.find(&w.library).is_none()).collect();
        let index = &self.apt.indexes(progress)?.programs;
        let mut names = BTreeSet::new();
        for want in missing {
            let like = package_names(&want.library);
            names.extend(depends(index, &want.by).into_iter().filter(|d| like.contains(d)));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.open(&names, progress)
    }

    /// Takes a library, and tells what it needs itself.
    fn library(
        &mut self,
        want: &Wanted,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Wanted>, ImageError> {
        if self.find(&want.library).is_none() {
            // Its package has another name than is usual: open all that may be meant.
            let index = &self.apt.indexes(progress)?.programs;
            let names: Vec<String> = depends(index, &want.by)
                .into_iter()
                .filter(|d| {
                    (d.starts_with("lib") || d.starts_with("zlib")) && index.newest(d).is_some()
                })
                .collect();
            self.open(&names.iter().map(String::as_str).collect::<Vec<_>>(), progress)?;
        }
        match self.find(&want.library) {
            Some((package, path)) => self.take(&package, &path),
            None => Err(ImageError::NoLibrary {
                library: want.library.clone(),
                needed_by: want.by.clone(),
            }),
        }
    }

    /// Package and path of a library, given by name or path.
    fn find(&self, library: &str) -> Option<(String, String)> {
        let suffix = format!("/{library}");
        self.opened.iter().find_map(|(package, files)| {
            let path = files.keys().find(|p| {
                (*p == library || p.ends_with(&suffix)) && deb::resolve(files, p).is_some()
            })?;
            Some((package.clone(), path.clone()))
        })
    }

    /// Takes a file with the links that lead to it; tells which libraries it needs.
    fn take(&mut self, package: &str, path: &str) -> Result<Vec<Wanted>, ImageError> {
        let missing =
            || ImageError::NotInPackage { package: package.to_owned(), what: path.to_owned() };
        if self.taken.contains_key(path) {
            return Ok(Vec::new());
        }
        let files = self.opened.get(package).ok_or_else(missing)?;
        let content = deb::resolve(files, path).ok_or_else(missing)?;
        let Some(node @ Node::File { data, .. }) = files.get(&content) else {
            return Err(missing());
        };
        let mut needed = elf::needed(data);
        // Wanted at its very path, for which a library's name is not enough.
        needed.extend(elf::interpreter(data).map(|path| deb::normal(&path)));
        let node = node.clone();
        if content != path {
            let target = format!("/{content}");
            self.taken.insert(path.to_owned(), Node::Link { target });
        }
        self.taken.insert(content, node);
        self.used.insert(package.to_owned());
        let by = package.to_owned();
        Ok(needed.into_iter().map(|library| Wanted { library, by: by.clone() }).collect())
    }
}

fn is_wanted(path: &str) -> bool {
    PROGRAMS.iter().any(|(_, paths)| paths.contains(&path))
        || (path.starts_with("usr/lib") && path.contains(".so") && !path.contains("/gconv/"))
}

fn depends(index: &Index, package: &str) -> Vec<String> {
    let depends = index.newest(package).map(|s| s.depends()).unwrap_or_default();
    depends.into_iter().map(str::to_owned).collect()
}

/// What Debian calls the package of a library (policy 8.1): `libext2fs.so.2` → `libext2fs2`, and
/// `libext2fs2t64` since times have 64 bits everywhere.
fn package_names(library: &str) -> [String; 4] {
    let (name, number) = library.split_once(".so.").unwrap_or((library, ""));
    let name = name.to_lowercase().replace('_', "-");
    let number = number.trim_end_matches("t64");
    [
        format!("{name}{number}"),
        format!("{name}-{number}"),
        format!("{name}{number}t64"),
        format!("{name}-{number}t64"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_tell_their_package() {
        for (library, package) in [
            ("libext2fs.so.2", "libext2fs2t64"),
            ("libcom_err.so.2", "libcom-err2"),
            ("libaio.so.1t64", "libaio1t64"),
            ("libgcc_s.so.1", "libgcc-s1"),
            ("libdevmapper.so.1.02.1", "libdevmapper1.02.1"),
            ("libpcre2-8.so.0", "libpcre2-8-0"),
        ] {
            assert!(package_names(library).iter().any(|n| n == package), "{library}");
        }
    }

    #[test]
    fn only_named_files_and_libraries_are_wanted() {
        assert!(is_wanted("usr/sbin/mkfs.xfs"));
        assert!(is_wanted("usr/lib/x86_64-linux-gnu/libm.so.6"));
        assert!(is_wanted("usr/lib64/ld-linux-x86-64.so.2"));
        assert!(!is_wanted("usr/sbin/xfs_scrub_all"));
        assert!(!is_wanted("usr/lib/x86_64-linux-gnu/gconv/BIG5.so"));
        assert!(!is_wanted("usr/share/doc/libc6/copyright"));
    }
}

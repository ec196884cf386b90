//! What compiles the guest module: `toolchains/KEY/{root/,lock.json}`. A compiler, an assembler, a
//! linker and make, with the libraries that they need, and busybox for everything that the kernel's
//! makefiles call besides: files out of some twenty packages. Kernels of the same compiler share it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chroot;
use crate::apt::Apt;
use crate::cache::{Cache, key, read_json};
use crate::closure::{self, List};
use crate::deb::{Files, Node};
use crate::kernel::Resolved;
use crate::{At, FORMAT, ImageError, Package};

/// In the folder: where the source is compiled.
pub(super) const WORK: &str = "work";

pub(super) const STRIP: &str = "x86_64-linux-gnu-strip";

/// Of binutils; each is there under its name without the prefix, too: gcc calls `as`.
const PREFIX: &str = "usr/bin/x86_64-linux-gnu-";
const BINUTILS: [&str; 8] = [
    "usr/bin/x86_64-linux-gnu-ar",
    "usr/bin/x86_64-linux-gnu-as",
    "usr/bin/x86_64-linux-gnu-ld.bfd",
    "usr/bin/x86_64-linux-gnu-nm",
    "usr/bin/x86_64-linux-gnu-objcopy",
    "usr/bin/x86_64-linux-gnu-objdump",
    "usr/bin/x86_64-linux-gnu-readelf",
    "usr/bin/x86_64-linux-gnu-strip",
];

/// What the kernel's own programs need (linux-kbuild).
const LIBRARIES: [(&str, &[&str]); 1] = [("libelf1t64", &["usr/lib/x86_64-linux-gnu/libelf.so.1"])];

/// What the kernel's makefiles and scripts call.
const APPLETS: [&str; 42] = [
    "awk", "basename", "cat", "chmod", "cmp", "cp", "cut", "date", "dirname", "echo", "env",
    "expr", "false", "find", "grep", "head", "ln", "ls", "mkdir", "mktemp", "mv", "od", "printf",
    "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq", "sh", "sleep", "sort", "stat",
    "tail", "tee", "test", "touch", "tr", "true", "uniq", "xargs",
];

/// An empty folder: without any to search in, gcc compiles nothing at all. The kernel brings all
/// headers itself.
const INCLUDE: &str = "usr/include";

/// A toolchain in the cache.
#[derive(Debug)]
pub(super) struct Toolchain {
    root: PathBuf,
    pub(super) packages: Vec<Package>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolchainLock {
    pub(crate) packages: Vec<Package>,
}

/// Names the lists above.
pub(super) fn lists() -> String {
    format!("{BINUTILS:?} {LIBRARIES:?} {APPLETS:?} {INCLUDE} {WORK} {STRIP}")
}

/// The one with gcc of this major version.
pub(super) fn build<'c>(
    cache: &'c Cache,
    apt: &mut Apt<'c>,
    gcc: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<Toolchain, ImageError> {
    let format = key(&[&FORMAT.to_string(), &lists(), gcc]);
    let resolved = cache.path(&["resolved", &format!("toolchain-gcc-{gcc}.json")]);
    if !apt.refresh
        && let Some(found) = read_json::<Resolved>(&resolved)
        && found.format == format
        && let Some(toolchain) = open(cache, &found.key)
    {
        return Ok(toolchain);
    }
    // From gcc 13 on, what is for the processor is in packages of its own, and elsewhere.
    let processor = "x86-64-linux-gnu";
    let split = apt.indexes(progress)?.programs.newest(&format!("cpp-{gcc}-{processor}")).is_some();
    let (suffix, place) =
        if split { (format!("-{processor}"), "libexec") } else { (String::new(), "lib") };
    let (gcc_package, cpp_package) = (format!("gcc-{gcc}{suffix}"), format!("cpp-{gcc}{suffix}"));
    let driver = format!("{PREFIX}gcc-{gcc}");
    let cc1 = format!("usr/{place}/gcc/x86_64-linux-gnu/{gcc}/cc1");
    let (driver, cc1) = ([driver.as_str()], [cc1.as_str()]);
    let mut files: Vec<(&str, &[&str])> = vec![
        ("busybox-static", &["usr/bin/busybox"]),
        ("make", &["usr/bin/make"]),
        ("binutils-x86-64-linux-gnu", &BINUTILS),
        (&gcc_package, &driver),
        (&cpp_package, &cc1),
    ];
    files.extend(LIBRARIES);
    let (files, packages) =
        closure::collect(&List { files: &files, later: &[] }, cache, apt, progress)?;
    let hashes: Vec<&str> = packages.iter().map(|p| p.sha256.as_str()).collect();
    let key = key(&[&[format.as_str()], hashes.as_slice()].concat());
    cache.make_dir(&cache.path(&["toolchains", &key]), |dir| {
        write(&files, &dir.join("root"))?;
        let lock = ToolchainLock { packages: packages.clone() };
        cache.write_json(&dir.join("lock.json"), &lock)
    })?;
    cache.write_json(&resolved, &Resolved { format, key: key.clone() })?;
    open(cache, &key).ok_or(ImageError::NoPackage { name: format!("gcc-{gcc}") })
}

fn open(cache: &Cache, key: &str) -> Option<Toolchain> {
    let dir = cache.path(&["toolchains", key]);
    let lock: ToolchainLock = read_json(&dir.join("lock.json"))?;
    Some(Toolchain { root: dir.join("root"), packages: lock.packages })
}

fn write(files: &Files, root: &Path) -> Result<(), ImageError> {
    for (path, node) in files {
        let path = root.join(path);
        parents(&path)?;
        match node {
            Node::File { mode, data } => {
                fs::write(&path, data).at("cannot write", &path)?;
                let mode = fs::Permissions::from_mode(*mode);
                fs::set_permissions(&path, mode).at("cannot write", &path)?;
            }
            Node::Link { target } => link(target, &path)?,
        }
    }
    let include = root.join(INCLUDE);
    fs::create_dir_all(&include).at("cannot make", &include)?;
    for dir in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{dir}"), &root.join(dir))?;
    }
    for applet in APPLETS {
        link("busybox", &root.join("usr/bin").join(applet))?;
    }
    for program in BINUTILS {
        // Without its suffix, the linker is a link in its package.
        let plain = program.strip_suffix(".bfd");
        if let Some(plain) = plain {
            link(&format!("/{program}"), &root.join(plain))?;
        }
        let name = plain.unwrap_or(program).trim_start_matches(PREFIX);
        link(&format!("/{program}"), &root.join("usr/bin").join(name))?;
    }
    Ok(())
}

fn parents(path: &Path) -> Result<(), ImageError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).at("cannot make", parent),
        None => Ok(()),
    }
}

fn link(target: &str, path: &Path) -> Result<(), ImageError> {
    symlink(target, path).at("cannot make the link", path)
}

impl Toolchain {
    /// Copies it into another folder, which can then be entered. Links would be quicker (0.01 s
    /// instead of 0.1 s), but make runs there as root, and would write into the cache's own files.
    pub(super) fn copy_into(&self, root: &Path) -> Result<(), ImageError> {
        copy_tree(&self.root, root)?;
        chroot::prepare(root)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(to).at("cannot make", to)?;
    for entry in fs::read_dir(from).at("cannot read", from)? {
        let entry = entry.at("cannot read", from)?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().at("cannot read", &path)?;
        if kind.is_dir() {
            copy_tree(&path, &to)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).at("cannot read", &path)?;
            symlink(target, &to).at("cannot make the link", &to)?;
        } else {
            fs::copy(&path, &to).at("cannot write", &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_is_put_together_as_a_system() {
        let tmp = tempfile::tempdir().unwrap();
        let mut files = Files::new();
        let file = Node::File { mode: 0o755, data: b"#!".to_vec() };
        files.insert("usr/bin/busybox".into(), file.clone());
        files.insert("usr/bin/x86_64-linux-gnu-as".into(), file);
        let target = "/usr/lib/ld.so".to_owned();
        files.insert("usr/lib64/ld-linux-x86-64.so.2".into(), Node::Link { target });
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        write(&files, &from).unwrap();
        let toolchain = Toolchain { root: from, packages: Vec::new() };
        toolchain.copy_into(&to).unwrap();
        // What is written there stays there.
        fs::write(to.join("usr/bin/busybox"), "other").unwrap();
        let kept = fs::read(toolchain.root.join("usr/bin/busybox")).unwrap();
        assert_eq!(kept, b"#!");
        let mode = fs::metadata(to.join("bin/sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(
            fs::read_link(to.join("usr/bin/as")).unwrap(),
            Path::new("/usr/bin/x86_64-linux-gnu-as")
        );
        assert_eq!(
            fs::read_link(to.join("lib64/ld-linux-x86-64.so.2")).unwrap(),
            Path::new("/usr/lib/ld.so")
        );
        assert!(to.join(chroot::PROC).is_dir() && to.join(chroot::NULL).is_file());
    }
}

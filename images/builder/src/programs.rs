//! The programs part of an image: `programs/KEY/{programs.cpio,lock.json}`.
//!
//! Only the files that are named here are taken, and the shared libraries that they need
//! ([`closure`]): fio and xfsprogs as packages would bring Python, ICU and more.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::apt::Apt;
use crate::cache::{Cache, key, read_json};
use crate::closure::{self, List};
use crate::cpio::Archive;
use crate::kernel::Resolved;
use crate::{At, FORMAT, ImageError, Package};

/// Package → its files that are taken.
const PROGRAMS: [(&str, &[&str]); 8] = [
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
    ("btrfs-progs", &["usr/bin/btrfs", "usr/sbin/mkfs.btrfs"]),
    ("fio", &["usr/bin/fio"]),
    (
        "sg3-utils",
        &[
            "usr/bin/sg_compare_and_write",
            "usr/bin/sg_inq",
            "usr/bin/sg_luns",
            "usr/bin/sg_modes",
            "usr/bin/sg_opcodes",
            "usr/bin/sg_raw",
            "usr/bin/sg_readcap",
            "usr/bin/sg_requests",
            "usr/bin/sg_reset",
            "usr/bin/sg_sync",
            "usr/bin/sg_turs",
            "usr/bin/sg_unmap",
            "usr/bin/sg_vpd",
            "usr/bin/sg_write_same",
            "usr/bin/sg_write_x",
        ],
    ),
    ("util-linux", &["usr/bin/lsblk", "usr/sbin/blkid"]),
    ("fdisk", &["usr/sbin/sfdisk"]),
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
const APPLETS: [&str; 59] = [
    "awk",
    "basename",
    "blkdiscard",
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
    "ionice",
    "kill",
    "ln",
    "losetup",
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
    let list = List { files: &PROGRAMS, later: &LOADED_LATER };
    let (files, packages) = closure::collect(&list, cache, apt, progress)?;
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

//! Writes the initramfs: "newc" cpio, uncompressed. The kernel takes several one after the other
//! (Documentation/driver-api/early-userspace/buffer-format.rst), so parts are made on their own.

use std::collections::BTreeSet;
use std::io::Write as _;

use cpio::newc::Builder;

use crate::deb::{Files, Node};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// One archive.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    out: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
        }
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | mode, (0, 0), data);
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    pub(crate) fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    pub(crate) fn files(&mut self, files: &Files) {
        for (path, node) in files {
            match node {
                Node::File { mode, data } => self.file(path, *mode, data),
                Node::Link { target } => self.link(path, target),
            }
        }
    }

    /// The archive; its length is a multiple of 512.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        // Writing to memory does not fail.
        let _ = cpio::newc::trailer(&mut self.out);
        self.out.resize(self.out.len().next_multiple_of(512), 0);
        self.out
    }

    /// A file needs its directory before it: the kernel makes none by itself.
    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.inode += 1;
        let mut writer = Builder::new(path)
            .ino(self.inode)
            .mode(mode)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.out, data.len() as u32);
        // Writing to memory does not fail.
        let _ = writer.write_all(data);
        let _ = writer.finish();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o755, b"hello");
        archive.link("a/l", "b/c");
        archive.device("dev/console", 0o600, 5, 1);
        archive.directory("a");
        let out = archive.finish();
        assert_eq!(out.len() % 512, 0);
        let mut found = Vec::new();
        let mut rest: &[u8] = &out;
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut data = String::new();
            reader.read_to_string(&mut data).unwrap();
            let e = reader.entry();
            found.push((e.name().to_owned(), e.mode(), e.rdev_major(), e.rdev_minor(), data));
            rest = reader.finish().unwrap();
        }
        let found: Vec<_> = found.iter().map(|f| (&*f.0, f.1, f.2, f.3, &*f.4)).collect();
        assert_eq!(
            found,
            [
                ("a", 0o040_755, 0, 0, ""),
                ("a/b", 0o040_755, 0, 0, ""),
                ("a/b/c", 0o100_755, 0, 0, "hello"),
                ("a/l", 0o120_777, 0, 0, "b/c"),
                ("dev", 0o040_755, 0, 0, ""),
                ("dev/console", 0o020_600, 5, 1, ""),
            ]
        );
    }
}

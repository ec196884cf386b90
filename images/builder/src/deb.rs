//! What is in a .deb: its files as they would be installed, kept in memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{At, ImageError};

/// Path (no leading slash, merged-/usr) → what is there. Directories are not kept.
pub(crate) type Files = BTreeMap<String, Node>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File { mode: u32, data: Vec<u8> },
    Link { target: String },
}

/// Reads the files of a package that `wanted` says yes to; links always.
pub(crate) fn read(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Files, ImageError> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|_| ImageError::NoApt("dpkg-deb"))?;
    let files = match child.stdout.take() {
        Some(out) => read_tar(out, wanted).at("cannot unpack", path),
        None => Ok(Files::new()),
    };
    if files.is_err() {
        // It may still want to write what nobody reads any more.
        let _ = child.kill();
    }
    let status = child.wait().at("cannot unpack", path)?;
    let files = files?;
    if status.success() {
        return Ok(files);
    }
    Err(std::io::Error::other("dpkg-deb says that it is no sound package"))
        .at("cannot unpack", path)
}

fn read_tar(from: impl Read, wanted: &dyn Fn(&str) -> bool) -> std::io::Result<Files> {
    let mut files = Files::new();
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = normal(&entry.path()?.to_string_lossy());
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let Some(target) = entry.link_name()? else { continue };
            let mut target = target.to_string_lossy().into_owned();
            if kind.is_hard_link() {
                target = format!("/{}", normal(&target));
            }
            files.insert(name, Node::Link { target });
        } else if kind.is_file() && wanted(&name) {
            let mut data = Vec::with_capacity(entry.size() as usize);
            entry.read_to_end(&mut data)?;
            files.insert(name, Node::File { mode: entry.header().mode()? & 0o777, data });
        }
    }
    Ok(files)
}

/// No `./`, and below `usr/` what merged-/usr has there.
pub(crate) fn normal(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_start_matches('/').trim_end_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if ["bin", "sbin", "lib", "lib64"].contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// Follows links within the files: the path where the content is.
pub(crate) fn resolve(files: &Files, path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..8 {
        match files.get(&path)? {
            Node::File { .. } => return Some(path),
            Node::Link { target } => path = join(&path, target),
        }
    }
    None
}

/// Where a link at `path` leads.
fn join(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        let mut parts: Vec<&str> = path.split('/').collect();
        parts.pop();
        parts
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    normal(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_are_followed() {
        let mut files = Files::new();
        let link = |target: &str| Node::Link { target: target.to_owned() };
        files.insert("usr/lib/x/libm.so.6".into(), Node::File { mode: 0o644, data: vec![1] });
        files.insert("usr/lib64/ld.so".into(), link("../lib/x/libm.so"));
        files.insert("usr/lib/x/libm.so".into(), link("/lib/x/libm.so.6"));
        files.insert("loop".into(), link("loop"));
        assert_eq!(resolve(&files, "usr/lib64/ld.so").unwrap(), "usr/lib/x/libm.so.6");
        assert_eq!(resolve(&files, "loop"), None);
        assert_eq!(resolve(&files, "nothing"), None);
    }

    #[test]
    fn tar_entries_are_taken_as_wanted() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["./lib/modules/a.ko", "./usr/share/doc/b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o100_755);
            builder.append_data(&mut header, name, &b"abc"[..]).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "./sbin/fsck.ext4", "e2fsck").unwrap();
        let tar = builder.into_inner().unwrap();
        let files = read_tar(&tar[..], &|name| name.ends_with(".ko")).unwrap();
        assert_eq!(files.len(), 2);
        let expected = Node::File { mode: 0o755, data: b"abc".to_vec() };
        assert_eq!(files["usr/lib/modules/a.ko"], expected);
        assert_eq!(files["usr/sbin/fsck.ext4"], Node::Link { target: "e2fsck".into() });
        assert!(read_tar(&tar[..700], &|_| true).is_err());
    }
}

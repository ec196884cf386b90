//! File systems: mounting them, and what they say about atomic writes.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use super::{Error, Result};
use crate::channel::AtomicLimits;

/// `STATX_WRITE_ATOMIC` of `linux/stat.h` (Linux 6.11).
const STATX_WRITE_ATOMIC: u32 = 0x0001_0000;
/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Mounts; `options` as in fstab.
pub fn mount(device: &str, target: &str, fstype: &str, options: &str) -> Result<Value> {
    let what = format!("cannot mount {device} ({fstype}) on {target}");
    let (flags, data) = split_options(options);
    let data = CString::new(data)
        .map_err(|_| Error::Refused(format!("{what}: the options hold a NUL byte")))?;
    std::fs::create_dir_all(target).map_err(Error::system(format!("cannot make {target}")))?;
    let what = if options.is_empty() { what } else { format!("{what} with {options:?}") };
    rustix::mount::mount(device, target, fstype, flags, data.as_c_str())
        .map_err(Error::system(what))?;
    Ok(json!({}))
}

/// Unmounts, at once or not at all.
pub fn umount(target: &str) -> Result<Value> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)
        .map_err(Error::system(format!("cannot unmount {target}")))?;
    Ok(json!({}))
}

/// Unmounts. What was closed is let go in the background (io_uring, loop devices, processes that end): that
/// may take a while, `time` at most.
pub fn umount_soon(target: &str, time: Duration) -> Result<Value> {
    let end = Instant::now() + time;
    loop {
        match umount(target) {
            Err(e) if e.errno() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            answer => return answer,
        }
    }
}

/// Where something is mounted at `folder` or below it, in the order in which it was.
pub fn mounts_below(folder: &str) -> Result<Vec<String>> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table =
        std::fs::read_to_string(TABLE).map_err(Error::system(format!("cannot read {TABLE}")))?;
    let below = |at: &String| {
        at.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    Ok(table.lines().filter_map(mount_point).filter(below).collect())
}

/// The fifth word of a line of mountinfo (proc(5)), where a blank is `\040`.
fn mount_point(line: &str) -> Option<String> {
    let word = line.split(' ').nth(4)?;
    let (mut bytes, mut rest) = (Vec::new(), word.as_bytes());
    while let [first, behind @ ..] = rest {
        let octal = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// The options that are flags of mount(2), and what is left for the file system.
fn split_options(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let flag = match option {
            "ro" => MountFlags::RDONLY,
            "sync" => MountFlags::SYNCHRONOUS,
            "dirsync" => MountFlags::DIRSYNC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "strictatime" => MountFlags::STRICTATIME,
            "lazytime" => MountFlags::LAZYTIME,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "defaults" | "rw" | "async" => MountFlags::empty(),
            other => {
                data.push(other);
                continue;
            }
        };
        flags |= flag;
    }
    (flags, data.join(","))
}

/// statx's atomic-write fields; all 0 where the kernel or the file system has none.
pub fn stat_atomic(path: &str) -> Result<AtomicLimits> {
    let mask = StatxFlags::from_bits_retain(STATX_WRITE_ATOMIC);
    let stat = statx(CWD, path, AtFlags::empty(), mask | StatxFlags::BASIC_STATS)
        .map_err(Error::system(format!("cannot stat {path}")))?;
    if stat.stx_mask & STATX_WRITE_ATOMIC == 0 {
        return Ok(AtomicLimits::default());
    }
    Ok(AtomicLimits {
        unit_min: stat.stx_atomic_write_unit_min,
        unit_max: stat.stx_atomic_write_unit_max,
        unit_max_opt: stat.stx_atomic_write_unit_max_opt,
        segments_max: stat.stx_atomic_write_segments_max,
    })
}

/// Loads a kernel module. One that is there already is no error.
pub fn load_module(path: &str, params: &str) -> Result<Value> {
    let what = format!("cannot load the module {path}");
    let params = CString::new(params)
        .map_err(|_| Error::Refused(format!("{what}: the parameters hold a NUL byte")))?;
    let file = File::open(path).map_err(Error::system(what.clone()))?;
    let plain = Path::new(path).extension().is_some_and(|ext| ext == "ko");
    let flags = if plain { 0 } else { MODULE_INIT_COMPRESSED_FILE };
    match rustix::system::finit_module(&file, &params, flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(json!({})),
        Err(e) => Err(Error::system(what)(e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let (flags, data) = split_options("ro,norecovery,,noatime,max_atomic_write=16k,rw");
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(data, "norecovery,max_atomic_write=16k");
        assert_eq!(split_options("defaults"), (MountFlags::empty(), String::new()));
    }

    #[test]
    fn errors_name_the_errno() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().to_string_lossy().into_owned();
        let e = umount(&target).unwrap_err().to_string();
        assert!(
            e.starts_with(&format!("cannot unmount {target}: E")),
            "EINVAL as root, EPERM else: {e}"
        );
        assert!(stat_atomic(&target).is_ok());
        assert!(stat_atomic("/nonexistent").is_err());
    }
}

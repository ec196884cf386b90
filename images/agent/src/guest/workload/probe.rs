//! Whether the kernel and the file system take such writes at all: by asking, never by version.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use rustix::io::{ReadWriteFlags, pwritev2};

use super::buffer::Buffer;
use super::{describe, is_block_device, open, rwf};
use crate::channel::{Prepare, Target, WriteFlags};
use crate::guest::fs::stat_atomic;
use crate::guest::{Error, Result, explain};

/// Asks for one write of each kind. A device, or a file that is used as it is, gets the bytes of
/// its first unit once more; else a file beside the target is used and removed.
pub fn probe(target: &Target) -> Result<()> {
    let mut kinds: Vec<WriteFlags> = Vec::new();
    for flags in &target.flags {
        if (flags.atomic || flags.dsync || flags.direct) && !kinds.contains(flags) {
            kinds.push(*flags);
        }
    }
    if kinds.is_empty() {
        return Ok(());
    }
    let in_place =
        target.prepare == Prepare::AsIs && std::fs::exists(&target.path).unwrap_or(false);
    if in_place {
        return kinds.iter().try_for_each(|flags| probe_write(target, *flags, target.offset));
    }
    let beside = Target { path: format!("{}.probe", target.path), offset: 0, ..target.clone() };
    // Written once: extending a file is more than is asked here.
    let result = open(&beside, false)
        .and_then(|file| {
            file.write_all_at(&vec![0; beside.unit as usize], 0)
                .and_then(|()| file.sync_data())
                .map_err(Error::system(format!("cannot write {}", beside.path)))
        })
        .and_then(|()| kinds.iter().try_for_each(|flags| probe_write(&beside, *flags, 0)));
    let _ = std::fs::remove_file(&beside.path);
    result
}

fn probe_write(target: &Target, flags: WriteFlags, offset: u64) -> Result<()> {
    let file = open(target, flags.direct)?;
    let mut buffer = Buffer::new(target.unit as usize);
    let n = read_up_to(&file, buffer.bytes_mut(), offset)
        .map_err(Error::system(format!("cannot read {} to probe it", target.path)))?;
    if n < buffer.bytes().len() && !is_block_device(&file)? {
        // Nothing there to write once more, and writing zeroes would make the file longer.
        return Ok(());
    }
    let how = ReadWriteFlags::from_bits_retain(rwf(flags, false));
    match pwritev2(&file, &[IoSlice::new(buffer.bytes())], offset, how) {
        Ok(_) => Ok(()),
        Err(e) => Err(refused(target, flags, offset, e.raw_os_error())),
    }
}

fn refused(target: &Target, flags: WriteFlags, offset: u64, errno: i32) -> Error {
    let Target { path, unit, .. } = target;
    let what = format!("a write of {unit} bytes at {offset} of {path} ({})", describe(flags));
    if !matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) {
        return Error::System { what: format!("probing with {what}"), errno };
    }
    let limits = match stat_atomic(path) {
        Ok(l) if flags.atomic => format!(
            "; statx says atomic_write_unit_min {}, unit_max {}, unit_max_opt {}",
            l.unit_min, l.unit_max, l.unit_max_opt
        ),
        _ => String::new(),
    };
    Error::Unsupported(format!("{what} was refused: {}{limits}", explain(errno)))
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_probe_changes_nothing_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f").to_string_lossy().into_owned();
        let content: Vec<u8> = (0..8192u32).map(|i| i as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mut target = Target {
            file: 1,
            path: path.clone(),
            offset: 4096,
            unit: 4096,
            units: 1,
            threads: 1,
            depth: 1,
            flags: vec![WriteFlags { dsync: true, ..WriteFlags::default() }],
            prepare: Prepare::AsIs,
            ..Target::default()
        };
        for prepare in [Prepare::AsIs, Prepare::Hole] {
            target.prepare = prepare;
            probe(&target).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        // No kernel to this day takes an atomic write through the page cache of such a file.
        target.flags = vec![WriteFlags { atomic: true, ..WriteFlags::default() }];
        let e = probe(&target).unwrap_err();
        let Error::Unsupported(text) = e else { panic!("{e}") };
        assert!(text.contains("RWF_ATOMIC | buffered") && text.contains("4096 bytes"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

//! Block devices, and what the kernel says of them in sysfs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::workload::buffer::Buffer;
use super::{Error, Result, sys};

const BLOCK: &str = "/sys/block";
/// Bytes of GET_ID (VIRTIO 1.2, 5.2.6.1).
const ID_BYTES: usize = 20;
/// The last of them, where the device shows its nonce.
const TAIL: usize = 8;
const READ_FILE_MAX: u64 = 1 << 20;
const CHECKSUM_CHUNK: usize = 1 << 20;

/// Waits for the disk with this serial; its name and queue limits.
pub fn wait(serial: &str, timeout: Duration) -> Result<Value> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(name) = find(Path::new(BLOCK), serial) {
            let device = format!("/dev/{name}");
            // The node follows the sysfs entry.
            if File::open(&device).is_ok() {
                return Ok(describe(Path::new(BLOCK), &name, &device));
            }
        }
        if Instant::now() >= end {
            let there = serials(Path::new(BLOCK))
                .map(|(name, serial)| format!("{name} ({serial:?})"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Error::Refused(format!(
                "no disk with serial {serial:?} appeared within {} ms; there are: {}",
                timeout.as_millis(),
                if there.is_empty() { "none" } else { &there },
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn find(block: &Path, serial: &str) -> Option<String> {
    serials(block).find(|(_, found)| is_serial(found, serial)).map(|(name, _)| name)
}

/// The serial as far as GET_ID holds it; or, while the disk shows a state, the beginning of the
/// serial, `@` and a nonce of 8 hexadecimal digits. SCSI has room for all of it.
fn is_serial(found: &str, serial: &str) -> bool {
    let first = |bytes: usize| &serial.as_bytes()[..serial.len().min(bytes)];
    if found == serial || found.as_bytes() == first(ID_BYTES) {
        return true;
    }
    let Some((head, nonce)) = found.rsplit_once('@') else { return false };
    let is_nonce = nonce.len() == TAIL && nonce.bytes().all(|b| b.is_ascii_hexdigit());
    is_nonce && (head == serial || head.as_bytes() == first(ID_BYTES - TAIL - 1))
}

/// All disks and what they call themselves.
fn serials(block: &Path) -> impl Iterator<Item = (String, String)> {
    let entries = std::fs::read_dir(block).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let serial = read_serial(&entry.path())?;
        Some((entry.file_name().to_string_lossy().into_owned(), serial))
    })
}

/// virtio-blk has `serial`, NVMe `device/serial`, SCSI page 80h of its vital product data.
fn read_serial(disk: &Path) -> Option<String> {
    for name in ["serial", "device/serial"] {
        if let Ok(bytes) = std::fs::read(disk.join(name)) {
            return Some(String::from_utf8_lossy(&bytes).trim().to_owned());
        }
    }
    let page = std::fs::read(disk.join("device/vpd_pg80")).ok()?;
    Some(String::from_utf8_lossy(page.get(4..)?).trim().to_owned())
}

fn describe(block: &Path, name: &str, device: &str) -> Value {
    let disk = block.join(name);
    let number = |path: &Path| read_text(path).and_then(|text| text.parse::<u64>().ok());
    let mut queue = Map::new();
    for entry in std::fs::read_dir(disk.join("queue")).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(text) = read_text(&path).filter(|_| path.is_file()) else { continue };
        let value = text.parse::<u64>().map_or_else(|_| Value::from(text.as_str()), Value::from);
        queue.insert(entry.file_name().to_string_lossy().into_owned(), value);
    }
    json!({
        "device": device,
        "name": name,
        "serial": read_serial(&disk),
        "bytes": number(&disk.join("size")).map(|sectors| sectors * 512),
        "read_only": number(&disk.join("ro")).map(|ro| ro != 0),
        "queues": std::fs::read_dir(disk.join("mq")).map(Iterator::count).ok(),
        "queue": queue,
    })
}

fn read_text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Writes to files under /sys or /proc, in order; ends at the first that is refused.
pub fn tune(set: &[(String, String)]) -> Result<Value> {
    for (path, value) in set {
        // Not created where missing: a misspelt name must not pass.
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.write_all_at(value.as_bytes(), 0))
            .map_err(Error::system(format!("cannot write {value:?} to {path}")))?;
    }
    Ok(json!({}))
}

/// A small file as text.
pub fn read_file(path: &str) -> Result<Value> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(READ_FILE_MAX).read_to_end(&mut bytes))
        .map_err(Error::system(format!("cannot read {path}")))?;
    Ok(json!({ "text": String::from_utf8_lossy(&bytes) }))
}

/// Proves that nobody holds the device, and forgets what is cached of it.
pub fn flush_buffers(device: &str) -> Result<Value> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
        .map_err(Error::system(format!("cannot open {device} exclusively")))?;
    sys::blkflsbuf(&file).map_err(Error::system(format!("BLKFLSBUF of {device}")))?;
    Ok(json!({}))
}

/// The serial once more, from the device: virtio-blk asks it whenever sysfs is read, but SCSI keeps
/// what it read when the disk came.
pub fn read_nonce(device: &str) -> Result<Value> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let disk = Path::new(BLOCK).join(name);
    let serial = if disk.join("device/vpd_pg80").exists() {
        inquire_serial(device)?
    } else {
        read_serial(&disk).ok_or_else(|| {
            Error::Refused(format!("{device} has no serial number in {BLOCK}/{name}"))
        })?
    };
    let tail = serial.char_indices().rev().nth(TAIL - 1).map_or(0, |(at, _)| at);
    Ok(json!({ "serial": serial, "tail": &serial[tail..] }))
}

/// INQUIRY of the page Unit Serial Number (SPC-5, 7.7.20).
fn inquire_serial(device: &str) -> Result<String> {
    const LEN: u8 = 252;
    let file = File::open(device).map_err(Error::system(format!("cannot open {device}")))?;
    let mut page = [0; LEN as usize];
    let n = sys::scsi_read(&file, &[0x12, 1, 0x80, 0, LEN, 0], &mut page)
        .map_err(Error::system(format!("INQUIRY of {device}'s serial number")))?;
    let end = n.min(4 + usize::from(page[3]));
    let serial = page.get(4..end).unwrap_or_default();
    Ok(String::from_utf8_lossy(serial).trim().to_owned())
}

/// Discards or zeroes a range of a block device.
pub fn discard(device: &str, offset: u64, len: u64, zeroes: bool) -> Result<Value> {
    let what = if zeroes { "BLKZEROOUT" } else { "BLKDISCARD" };
    let file = OpenOptions::new()
        .write(true)
        .open(device)
        .map_err(Error::system(format!("cannot open {device}")))?;
    let call = if zeroes { sys::blkzeroout } else { sys::blkdiscard };
    call(&file, offset, len)
        .map_err(Error::system(format!("{what} of {len} bytes at {offset} of {device}")))?;
    Ok(json!({}))
}

/// SHA-256 of a range.
pub fn checksum(path: &str, offset: u64, len: Option<u64>) -> Result<Value> {
    let failed = |e| Error::system(format!("cannot read {path}"))(e);
    let plain = File::open(path).map_err(failed)?;
    let end = (&plain).seek(SeekFrom::End(0)).map_err(failed)?;
    let len = len.unwrap_or(end.saturating_sub(offset));
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok();
    let mut buffer = Buffer::new(CHECKSUM_CHUNK);
    let mut hash = Sha256::new();
    let mut done = 0;
    while done < len {
        let want = (len - done).min(CHECKSUM_CHUNK as u64) as usize;
        let piece = &mut buffer.bytes_mut()[..want];
        // Direct where the kernel takes it, which it does not at an odd offset or length.
        let read = direct.as_ref().and_then(|f| f.read_at(piece, offset + done).ok());
        let n = match read {
            Some(n) => n,
            None => plain.read_at(piece, offset + done).map_err(failed)?,
        };
        if n == 0 {
            return Err(Error::Refused(format!(
                "{path} ends {} bytes before the range whose checksum was asked for",
                len - done
            )));
        }
        hash.update(&piece[..n]);
        done += n as u64;
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(json!({ "sha256": hex, "bytes": done }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_found_by_serial_and_described() {
        let dir = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", "root"), ("vdb", "torn-blk-0\n")] {
            std::fs::create_dir_all(dir.path().join(disk).join("queue")).unwrap();
            std::fs::write(dir.path().join(disk).join("serial"), serial).unwrap();
        }
        let queue = dir.path().join("vdb/queue");
        std::fs::write(queue.join("atomic_write_unit_max_bytes"), "65536\n").unwrap();
        std::fs::write(queue.join("scheduler"), "[none] mq-deadline\n").unwrap();
        std::fs::write(dir.path().join("vdb/size"), "2048\n").unwrap();
        assert_eq!(find(dir.path(), "torn-blk-0").as_deref(), Some("vdb"));
        assert_eq!(find(dir.path(), "torn-blk"), None);
        let found = describe(dir.path(), "vdb", "/dev/vdb");
        assert_eq!(found["queue"]["atomic_write_unit_max_bytes"], 65536);
        assert_eq!(found["queue"]["scheduler"], "[none] mq-deadline");
        assert_eq!(found["bytes"], 1 << 20);
        assert_eq!(found["serial"], "torn-blk-0");
    }

    #[test]
    fn a_serial_may_be_followed_by_the_nonce() {
        assert!(is_serial("disk0@0123abcd", "disk0"));
        assert!(is_serial("a-long-seri@0123abcd", "a-long-serial-indeed"));
        assert!(is_serial("a-serial-of-20-bytes", "a-serial-of-20-bytes-and-more"));
        assert!(is_serial("tornblk-a-name_of_16-long", "tornblk-a-name_of_16-long"));
        assert!(is_serial("tornblk-a-name_of_16-long@0123abcd", "tornblk-a-name_of_16-long"));
        assert!(!is_serial("disk0@0123abcd", "disk1"));
        assert!(!is_serial("disk0@x", "disk0"));
        assert!(!is_serial("disk0x", "disk0"));
    }

    #[test]
    fn tune_makes_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(dir.path().join("nomerges"), "0").unwrap();
        tune(&[(path("nomerges"), "2".into())]).unwrap();
        assert_eq!(std::fs::read(dir.path().join("nomerges")).unwrap(), b"2");
        assert!(tune(&[(path("nomergers"), "2".into())]).is_err());
        assert!(!dir.path().join("nomergers").exists());
    }

    #[test]
    fn a_checksum_of_a_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f").to_string_lossy().into_owned();
        std::fs::write(&path, b"xxabcyy").unwrap();
        let sum = checksum(&path, 2, Some(3)).unwrap();
        // FIPS 180-4's own example.
        assert_eq!(
            sum["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(checksum(&path, 2, None).unwrap()["bytes"], 5);
        assert!(checksum(&path, 2, Some(6)).is_err());
    }
}

//! The agent's own words, and the kernel's.
//!
//! As PID 1 the agent logs to `/dev/kmsg`, so that its lines stand among the kernel's on the
//! console; else to standard error. A line that cannot be written is dropped: there is nowhere to
//! complain.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use super::{Error, Result};

static SINK: OnceLock<File> = OnceLock::new();

/// From now on [`log`] writes to `/dev/kmsg`, or to `/dev/console` where there is none.
pub fn use_kernel_log() {
    // Else the kernel drops all but ten lines in five seconds.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    let opened = ["/dev/kmsg", "/dev/console"]
        .into_iter()
        .find_map(|path| OpenOptions::new().write(true).open(path).ok());
    if let Some(file) = opened {
        let _ = SINK.set(file);
    }
}

/// One line.
pub fn log(text: impl std::fmt::Display) {
    // In one write: /dev/kmsg makes a record of each.
    let line = format!("tornblk-agent: {}\n", text.to_string().replace('\n', " "));
    let _ = match SINK.get() {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

/// The kernel's messages since boot, as far as its buffer still has them, in `dmesg`'s form.
pub fn dmesg() -> Result<String> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .map_err(Error::system("cannot open /dev/kmsg"))?;
    let mut text = String::new();
    let mut record = vec![0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => return Ok(text),
            Ok(n) => push_record(&mut text, &String::from_utf8_lossy(&record[..n])),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(text),
                // Overwritten while we read: the next read goes on with the oldest there is.
                Some(libc::EPIPE) | Some(libc::EINTR) => {}
                _ => return Err(Error::system("cannot read /dev/kmsg")(e)),
            },
        }
    }
}

/// A record is `priority,sequence,microseconds,flags[,...];text`, then lines ` KEY=value`.
pub(super) fn push_record(text: &mut String, record: &str) {
    let Some((head, body)) = record.split_once(';') else { return };
    let micros: u64 = head.split(',').nth(2).and_then(|f| f.parse().ok()).unwrap_or(0);
    let message = body.lines().next().unwrap_or_default();
    // The kernel escapes newlines inside a message.
    for line in message.split("\\x0a") {
        text.push_str(&format!("[{:5}.{:06}] {line}\n", micros / 1_000_000, micros % 1_000_000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_records_become_lines() {
        let mut text = String::new();
        push_record(&mut text, "6,339,5140900,-;XFS (vda): Mounting\n SUBSYSTEM=block\n");
        push_record(&mut text, "4,340,12005140900,-;two\\x0alines; here\n");
        assert_eq!(
            text,
            "[    5.140900] XFS (vda): Mounting\n[12005.140900] two\n[12005.140900] lines; here\n"
        );
    }
}

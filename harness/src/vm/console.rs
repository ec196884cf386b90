//! The guest's serial console: a file that QEMU writes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{VmError, io};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_millis(200);
/// What is shown of it.
const TAIL_LINES: usize = 20;

/// What the kernel says when it gives up (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    file: File,
    /// Where this guest begins, and up to where it was searched.
    start: u64,
    searched: u64,
    looked: Instant,
}

impl Console {
    /// Opens the file, or makes it: what an earlier guest left stays before this one's words.
    pub(super) fn open(path: PathBuf) -> Result<Console, VmError> {
        let cannot = || format!("cannot open the console's file {}", path.display());
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(|e| io(cannot())(e))?;
        let start = file.metadata().map_err(|e| io(cannot())(e))?.len();
        Ok(Console { path, file, start, searched: start, looked: Instant::now() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The line of a panic, if there was one; looks now and then only.
    pub(super) fn panic(&mut self) -> Option<String> {
        if self.looked.elapsed() < EVERY {
            return None;
        }
        self.panic_now()
    }

    pub(super) fn panic_now(&mut self) -> Option<String> {
        self.looked = Instant::now();
        let bytes = self.read_from(self.searched);
        if let Some(line) = plain(&bytes).lines().find(|l| l.contains(PANIC)) {
            return Some(line.trim().to_owned());
        }
        // The line may not be whole yet.
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        self.searched += whole as u64;
        None
    }

    /// The last lines.
    pub(super) fn tail(&self) -> String {
        let text = plain(&self.read_from(self.start));
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn read_from(&self, offset: u64) -> Vec<u8> {
        let mut file = &self.file;
        let mut bytes = Vec::new();
        // Not being able to read it is no reason to give up the guest.
        if file.seek(SeekFrom::Start(offset)).is_ok() {
            let _ = file.read_to_end(&mut bytes);
        }
        bytes
    }
}

/// Colours and the like stay out of messages.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_panic_is_seen_once_its_line_is_there() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("console.log");
        std::fs::write(&path, "[1] Kernel panic - not syncing: of an earlier guest\n").unwrap();
        let mut console = Console::open(path.clone()).unwrap();
        assert_eq!(console.panic_now(), None);
        assert_eq!(console.tail(), "");
        let mut write = File::options().append(true).open(&path).unwrap();
        write.write_all(b"[2] fine\r\n[3] Kernel pan").unwrap();
        assert_eq!(console.panic_now(), None);
        write.write_all(b"ic - not syncing: VFS\r\nmore\r\n").unwrap();
        assert_eq!(console.panic_now().unwrap(), "[3] Kernel panic - not syncing: VFS");
        assert_eq!(console.tail(), "[2] fine\n[3] Kernel panic - not syncing: VFS\nmore");
    }
}

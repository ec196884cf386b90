//! What the front-end's descriptors may be of, and what of that the device may write to.

use super::CUT_SHORT;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// Bytes of the guest's memory, in two regions of one file; and of what lies behind them. That file
/// may be cut short; the small one never is.
pub(super) const REGION: u64 = 0x4_0000;
const BEHIND: u64 = 0x1_0000;
const SMALL: u64 = 0x2000;
const CANARY: u8 = 0x5c;
/// That descriptors are of.
const FILES: u8 = 12;

/// What descriptors may be of.
pub(super) struct Files {
    pub(super) memory: File,
    /// Zeroes, which nobody but the device may change.
    small: File,
    /// Parts of both that were shown to the device, by the number of the file in [`Files::of`].
    shown: [Vec<Range<u64>>; 2],
    sealed: OwnedFd,
    pub(super) kicks: Vec<OwnedFd>,
    call: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    pair: (UnixStream, UnixStream),
    null: File,
}

impl Files {
    pub(super) fn new() -> Files {
        let memfd = |len: u64, flags| {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC | flags).unwrap();
            let file = File::from(fd);
            file.set_len(len).unwrap();
            file
        };
        let memory = memfd(2 * REGION + BEHIND, MemfdFlags::empty());
        memory.write_all_at(&vec![CANARY; BEHIND as usize], 2 * REGION).unwrap();
        let sealed = memfd(REGION, MemfdFlags::ALLOW_SEALING);
        rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Files {
            memory,
            small: memfd(SMALL, MemfdFlags::empty()),
            shown: Default::default(),
            sealed: sealed.into(),
            kicks: (0..3).map(|_| event()).collect(),
            call: event(),
            pipe: rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap(),
            pair: UnixStream::pair().unwrap(),
            null: File::open("/dev/null").unwrap(),
        }
    }

    /// 0 is the guest's memory, 1 the small file.
    pub(super) fn of(&self, n: u8) -> BorrowedFd<'_> {
        match n % FILES {
            0 => self.memory.as_fd(),
            1 => self.small.as_fd(),
            2 => self.sealed.as_fd(),
            n @ 3..=5 => self.kicks[usize::from(n) - 3].as_fd(),
            6 | 7 => self.call.as_fd(),
            8 => self.pipe.0.as_fd(),
            9 => self.pipe.1.as_fd(),
            10 => self.pair.0.as_fd(),
            _ => self.null.as_fd(),
        }
    }

    /// Part of a file may be written from now on.
    pub(super) fn show(&mut self, file: u8, range: Range<u64>) {
        if let Some(shown) = self.shown.get_mut(usize::from(file % FILES)) {
            shown.push(range);
        }
    }

    /// Whatever the message means.
    pub(super) fn show_all(&mut self) {
        self.show(0, 0..u64::MAX);
        self.show(1, 0..u64::MAX);
    }

    /// Takes away memory that the device has mapped.
    pub(super) fn cut_short(&self, len: u64) {
        if len < self.memory.metadata().unwrap().len() {
            self.memory.set_len(len).unwrap();
            CUT_SHORT.one();
        }
    }

    /// Is nothing written that was never shown?
    pub(super) fn check(&self) {
        let [of_memory, of_small] = &self.shown;
        let behind = 2 * REGION..self.memory.metadata().unwrap().len().max(2 * REGION);
        unchanged(&self.memory, behind, CANARY, of_memory);
        unchanged(&self.small, 0..SMALL, 0, of_small);
    }
}

/// Outside of what was shown, all bytes of the range are that one.
fn unchanged(file: &File, range: Range<u64>, was: u8, shown: &[Range<u64>]) {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).unwrap();
    let is_shown = |at: u64| shown.iter().any(|range| range.contains(&at));
    let written = range.zip(&bytes).find(|(at, byte)| **byte != was && !is_shown(*at));
    assert_eq!(written, None, "memory that was never shown is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &File, at: u64) {
        file.write_all_at(&[7], at).unwrap();
    }

    #[test]
    #[should_panic(expected = "memory that was never shown is written")]
    fn memory_that_was_never_shown_is_watched() {
        let mut files = Files::new();
        files.shown[0].push(2 * REGION..2 * REGION + 100);
        write(&files.memory, 2 * REGION + 99);
        files.check();
        write(&files.memory, 2 * REGION + 100);
        files.check();
    }

    /// What is left of it, and the other file.
    #[test]
    fn memory_is_watched_where_it_was_cut_short() {
        for behind in [true, false] {
            let mut files = Files::new();
            files.shown[0].push(0..2 * REGION);
            files.shown[1].push(0..0x800);
            files.cut_short(if behind { 2 * REGION + 0x3000 } else { 0x1000 });
            write(&files.small, 0x7ff);
            files.check();
            match behind {
                true => write(&files.memory, 2 * REGION + 0x2fff),
                false => write(&files.small, 0x800),
            }
            let check = std::panic::AssertUnwindSafe(|| files.check());
            assert!(std::panic::catch_unwind(check).is_err(), "{behind}");
        }
    }
}

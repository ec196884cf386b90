//! The writer's view of its file: one range of addresses, into which segments are mapped as the
//! file grows. A [`Guard`] keeps a file cut short from ending the process.
//!
//! The unsafe code of the crate is here, in the guard, and in the few lines of the writer that lend
//! payload out of the mapping. Byte `p` of the file is at address `base + p`, always.

#![allow(unsafe_code)]

use super::slot::{WORDS, Words};
use crate::guard::Guard;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Addresses that are set aside for one writer; fewer where the process may not have so many.
const RESERVE: [usize; 5] = [1 << 40, 1 << 38, 1 << 36, 1 << 34, 1 << 32];

/// A shared mapping of a file that grows.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    reserved: usize,
    /// Bytes from the start that are mapped to the file.
    mapped: AtomicU64,
    /// Gone only while this is dropped.
    guard: Option<Guard>,
}

// SAFETY: the range belongs to this value alone. What is in it is reached through atomics, or by
// the holder of a `Space` (unique by construction of the writer's cursor), or is not changed any
// more.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Sets addresses aside; nothing is mapped yet.
    pub(super) fn new() -> io::Result<Mapping> {
        let mut last = io::Error::from(io::ErrorKind::OutOfMemory);
        for reserved in RESERVE {
            // SAFETY: a fresh range, chosen by the kernel, that cannot be touched.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    reserved,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                last = io::Error::last_os_error();
                continue;
            }
            // SAFETY: made above, and unmapped only after the guard is gone.
            let Some(guard) = (unsafe { Guard::new(base as usize, reserved) }) else {
                // SAFETY: the range made above, which nobody else knows.
                unsafe { libc::munmap(base, reserved) };
                return Err(io::Error::other("too many files are mapped"));
            };
            return Ok(Mapping {
                base: base.cast(),
                reserved,
                mapped: AtomicU64::new(0),
                guard: Some(guard),
            });
        }
        Err(last)
    }

    /// Bytes a file may have.
    pub(super) fn limit(&self) -> u64 {
        self.reserved as u64
    }

    /// Bytes from the start that are there.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Acquire)
    }

    /// Maps the file's bytes up to `end`, which must be allocated. One thread at a time.
    pub(super) fn extend(&self, file: &File, end: u64) -> io::Result<()> {
        let from = self.mapped.load(Ordering::Acquire);
        if end <= from {
            return Ok(());
        }
        if end > self.limit() {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        // SAFETY: lies inside the range set aside in `new`, beyond what is mapped to the file, so
        // it replaces only untouchable pages.
        let got = unsafe {
            libc::mmap(
                self.base.add(from as usize).cast(),
                (end - from) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                from as libc::off_t,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.mapped.store(end, Ordering::Release);
        Ok(())
    }

    /// Lets go of the memory that the bytes up to `end` take of this process: they stay what they
    /// are, in the kernel's page cache or on the disk, and whoever touches them gets them back.
    pub(super) fn let_go(&self, end: u64) {
        let end = end.min(self.mapped.load(Ordering::Acquire)) as usize;
        // SAFETY: mapped to the file, and shared: nothing that is in it is lost by that (madvise(2)).
        // Where it fails, the memory stays.
        unsafe { libc::madvise(self.base.cast(), end, libc::MADV_DONTNEED) };
    }

    /// The file failed beneath the mapping, and zeroes stand where it failed.
    pub(super) fn poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::poisoned)
    }

    /// Was the kernel unable to write some page of the file to its disk? It says so once to each
    /// open file, when that is asked to sync, or (sync_file_range(2)) only to wait for a page.
    pub(super) fn lost(&self, file: &File) -> bool {
        const PAGE: libc::off64_t = 4096;
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
        // SAFETY: a call about a descriptor that is open.
        let failed = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, PAGE, flags) } != 0;
        let told = [Some(libc::EIO), Some(libc::ENOSPC)];
        let lost = failed && told.contains(&io::Error::last_os_error().raw_os_error());
        if lost {
            self.poison();
        }
        lost
    }

    /// The file is known to have failed.
    pub(super) fn poison(&self) {
        if let Some(guard) = &self.guard {
            guard.poison();
        }
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.mapped.load(Ordering::Acquire),
            "a word outside of the recording"
        );
        // SAFETY: mapped and aligned (checked), and words are only ever reached as atomics.
        unsafe { AtomicU64::from_ptr(self.base.add(at as usize).cast()) }
    }

    pub(super) fn store(&self, at: u64, value: u64) {
        self.word(at).store(value.to_le(), Ordering::Release);
    }

    /// Stores a slot: everything but word 0, and then that.
    pub(super) fn commit(&self, at: u64, words: &Words) {
        for i in (1..WORDS).chain([0]) {
            let order = if i == 0 { Ordering::Release } else { Ordering::Relaxed };
            self.word(at + 8 * i as u64).store(words[i].to_le(), order);
        }
    }

    /// Bytes to be written by the only one who knows of them.
    ///
    /// # Safety
    /// Nobody else reaches these bytes, through [`Mapping::bytes`] or otherwise, while the slice
    /// lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn exclusive(&self, at: u64, len: usize) -> &mut [u8] {
        self.check(at, len);
        // SAFETY: mapped (checked), exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at as usize), len) }
    }

    /// Bytes that do not change any more.
    ///
    /// # Safety
    /// No slice of [`Mapping::exclusive`] over any of them lives, or will be made.
    pub(super) unsafe fn bytes(&self, at: u64, len: usize) -> &[u8] {
        self.check(at, len);
        // SAFETY: mapped (checked), and constant by contract.
        unsafe { std::slice::from_raw_parts(self.base.add(at as usize), len) }
    }

    fn check(&self, at: u64, len: usize) {
        let end = at.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.mapped.load(Ordering::Acquire)),
            "bytes outside of the recording"
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.guard.take());
        // SAFETY: the range made in `new`; nothing borrows from it any more.
        unsafe { libc::munmap(self.base.cast(), self.reserved) };
    }
}

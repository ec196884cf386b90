//! Mappings that are read and written while others pull at them.
//!
//! Stores are the processor's own, so that they fault as a program's do; each 8 bytes at once.
//! [`Map::load`] goes through the kernel instead: where there is nothing to be read (behind the end
//! of the file) it is an error, and no signal that ends the agent.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, MprotectFlags, MsyncFlags, ProtFlags};

pub const PAGE: usize = 4096;

/// A mapping, shared with a file or private memory. Unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address range that nobody borrows from: all access is through atomic stores of 8
// bytes and through the kernel, which any thread may do at any time.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Shares `len` bytes of a file from `offset` (a multiple of the page) on.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn shared(file: &File, offset: u64, len: usize) -> io::Result<Map> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at =
            unsafe { rustix::mm::mmap(null_mut(), len, prot, MapFlags::SHARED, file, offset)? };
        Ok(Map { at: NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }

    /// The same, to be read only.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn shared_to_read(file: &File, offset: u64, len: usize) -> io::Result<Map> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe {
            rustix::mm::mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, offset)?
        };
        Ok(Map { at: NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }

    /// Private memory, zeroes at first.
    ///
    /// # Errors
    /// There is none.
    pub fn private(len: usize) -> io::Result<Map> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { rustix::mm::mmap_anonymous(null_mut(), len, prot, MapFlags::PRIVATE)? };
        Ok(Map { at: NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For system calls that take an address. Whoever dereferences it minds what may be there.
    pub fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "within the mapping");
        self.at.as_ptr().wrapping_add(offset)
    }

    /// Stores bytes, 8 at a time, by the processor: `offset` and the length are multiples of 8. What is
    /// stored to must be there: behind the end of a file it is a SIGBUS, which ends the agent.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8), "8 bytes at a time");
        assert!(offset + bytes.len() <= self.len, "within the mapping");
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let mut whole = [0; 8];
            whole.copy_from_slice(word);
            let at = self.address(offset + i * 8).cast::<u64>();
            // SAFETY: within the mapping, as asserted, and aligned, for it begins at a page; everybody
            // in this process reaches it by atomics or through the kernel.
            let at = unsafe { AtomicU64::from_ptr(at) };
            at.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
    }

    /// Reads bytes by way of the kernel (process_vm_readv), which takes the same faults.
    ///
    /// # Errors
    /// `EFAULT`: there is nothing to be read.
    pub fn load(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        assert!(offset + bytes.len() <= self.len, "within the mapping");
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let remote = libc::iovec { iov_base: self.address(offset).cast(), iov_len: bytes.len() };
        // SAFETY: both name memory of this process: a buffer that is borrowed until the call returns,
        // and the mapping, whose pages the kernel checks.
        let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        match usize::try_from(n) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// madvise(2) of a range: whole pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn advise(&self, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
        assert!(offset + len <= self.len, "within the mapping");
        // SAFETY: of this mapping alone, to which nobody has a reference: what it holds may change.
        unsafe { Ok(rustix::mm::madvise(self.address(offset).cast(), len, advice)?) }
    }

    /// msync(2) with `MS_SYNC`, of all of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: of this mapping alone; nothing is changed in it.
        unsafe { Ok(rustix::mm::msync(self.address(0).cast(), self.len, MsyncFlags::SYNC)?) }
    }

    /// mprotect(2) of a range: whole pages. What may not be written must not be stored to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn protect(&self, offset: usize, len: usize, prot: MprotectFlags) -> io::Result<()> {
        assert!(offset + len <= self.len, "within the mapping");
        // SAFETY: of this mapping alone, to which nobody has a reference.
        unsafe { Ok(rustix::mm::mprotect(self.address(offset).cast(), len, prot)?) }
    }

    /// Writes from this memory to a file, whatever is there: bytes, or a negative errno.
    pub fn pwrite(&self, offset: usize, len: usize, file: &File, to: u64, flags: i32) -> i64 {
        assert!(offset + len <= self.len, "within the mapping");
        pwrite_from(self.address(offset), len, file, to, flags)
    }
}

/// pwritev2(2) from an address, whatever is there: bytes, or a negative errno.
pub fn pwrite_from(address: *const u8, len: usize, file: &File, to: u64, flags: i32) -> i64 {
    let from = libc::iovec { iov_base: address.cast_mut().cast(), iov_len: len };
    // SAFETY: the kernel only reads the memory, and checks that it may; the vector lives until the
    // call returns.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), &from, 1, to as i64, flags) };
    if n < 0 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    } else {
        n as i64
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: a mapping of our own, which nobody uses any more.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_stored_is_read_and_what_is_not_there_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(PAGE as u64).unwrap();
        let map = Map::shared(&file, 0, 2 * PAGE).unwrap();
        map.store(8, b"12345678");
        let mut bytes = [0; 16];
        map.load(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0\0\0\0\x0012345678");
        file.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes[8..], b"12345678");
        let error = map.load(PAGE, &mut bytes).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn a_write_from_memory_that_is_not_there_is_short() {
        let file = tempfile::tempfile().unwrap();
        let map = Map::private(2 * PAGE).unwrap();
        map.store(0, &[7; PAGE]);
        map.protect(PAGE, PAGE, MprotectFlags::empty()).unwrap();
        assert_eq!(map.pwrite(0, 2 * PAGE, &file, 0, 0), PAGE as i64);
        assert_eq!(map.pwrite(PAGE, PAGE, &file, 0, 0), -i64::from(libc::EFAULT));
    }
}

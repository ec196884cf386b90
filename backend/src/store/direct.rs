//! O_DIRECT: past the host's page cache, where the kernel wants memory, place and length aligned.

#![allow(unsafe_code)]

use super::Buffers;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Where the kernel does not say (before Linux 6.1): as large as any logical block of a disk.
const UNTOLD: u64 = 4096;

/// The image once more, opened with O_DIRECT.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// Of memory.
    memory: u64,
    /// Of place and length.
    place: u64,
}

impl Direct {
    /// # Errors
    /// The file system or the device cannot do it.
    pub(super) fn open(file: &File, read_only: bool) -> io::Result<Direct> {
        let mode = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = reopened(file, mode | OFlags::DIRECT)?;
        let told = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let told_of = |n: u32| if n == 0 { UNTOLD } else { n.into() };
        // STATX_DIOALIGN of linux/stat.h, where the kernel knows of it.
        let known = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        if known && told.stx_dio_offset_align == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (memory, place) = if known {
            (told_of(told.stx_dio_mem_align), told_of(told.stx_dio_offset_align))
        } else {
            (UNTOLD, UNTOLD)
        };
        Ok(Direct { file, memory, place })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes that places and lengths are multiples of.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// Are place and length as they have to be?
    pub(super) fn is_placed(&self, offset: u64, len: usize) -> bool {
        offset.is_multiple_of(self.place) && (len as u64).is_multiple_of(self.place)
    }

    /// Is the memory?
    pub(super) fn fits(&self, buffers: &Buffers) -> bool {
        let aligned = |n: u64| n.is_multiple_of(self.memory);
        let fits = |v: &libc::iovec| {
            aligned(v.iov_base as u64)
                && (v.iov_len as u64).is_multiple_of(self.memory.max(self.place))
        };
        buffers.iovecs().iter().all(fits)
    }

    /// Memory of our own for a request whose is not aligned.
    pub(super) fn bounce(&self, len: usize) -> Bounce {
        Bounce::new(len, self.memory.max(self.place) as usize)
    }
}

/// Opens an open file anew: as another open file, which is told of losses by itself.
pub(super) fn reopened(file: &File, flags: OFlags) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Aligned memory.
#[derive(Debug)]
pub(super) struct Bounce {
    base: *mut u8,
    layout: Layout,
}

impl Bounce {
    fn new(len: usize, align: usize) -> Bounce {
        let layout = Layout::from_size_align(len.max(1), align.next_power_of_two());
        let Ok(layout) = layout else {
            unreachable!("alignments are powers of two, and a chain has at most 64 MiB")
        };
        // SAFETY: the size is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Bounce { base, layout }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as many zeroed bytes were allocated, for this value alone.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.layout.size()) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.base, self.layout) };
    }
}

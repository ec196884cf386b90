//! The system calls of this suite that no crate has.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};

use crate::guest::race::memory::Map;
use crate::guest::sys::{Fiemap, extents};

/// `EXT4_IOC_GET_ES_CACHE` of `linux/ext4.h`: of the head of its structure, a `fiemap`.
const EXT4_IOC_GET_ES_CACHE: Opcode = opcode::read_write::<[u64; 4]>(b'f', 42);
/// `EXT4_IOC_PRECACHE_EXTENTS`, `EXT4_IOC_CLEAR_ES_CACHE`, `EXT4_IOC_CHECKPOINT` of `linux/ext4.h`.
const EXT4_IOC_PRECACHE_EXTENTS: Opcode = opcode::none(b'f', 18);
const EXT4_IOC_CLEAR_ES_CACHE: Opcode = opcode::none(b'f', 40);
const EXT4_IOC_CHECKPOINT: Opcode = opcode::write::<u32>(b'f', 43);
/// `XFS_IOC_SET_RESBLKS` of `xfs_fs.h`.
const XFS_IOC_SET_RESBLKS: Opcode = opcode::read_write::<[u64; 2]>(b'X', 114);
/// `FIDEDUPERANGE` of `linux/fs.h`, of the head of its structure.
const FIDEDUPERANGE: Opcode = opcode::read_write::<[u64; 3]>(0x94, 54);

/// `FIEMAP_FLAG_CACHE` of `linux/fiemap.h`: ext4 reads all of the extents into its cache for it.
const CACHE: u32 = 4;
/// Extents that are asked for at once.
const ROOM: usize = 32;

/// Where on the disk a range of a file lies: (offset, length) in bytes, in the order of the file. Holes are
/// left out.
pub fn places(file: &File, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let end = offset + len;
    let clipped = extents(file, offset, len)?.into_iter().filter_map(|extent| {
        let first = extent.offset.max(offset);
        let last = (extent.offset + extent.len).min(end);
        (first < last).then(|| (extent.at + (first - extent.offset), last - first))
    });
    Ok(clipped.collect())
}

/// Has ext4 read all extents of a file into its cache of extents.
pub fn precache_extents(file: &File) -> io::Result<()> {
    // SAFETY: it takes no argument.
    unsafe { Ok(ioctl(file, NoArg::<EXT4_IOC_PRECACHE_EXTENTS>::new())?) }
}

/// The same by way of `EXT4_IOC_GET_ES_CACHE`, which tells what the cache holds then.
pub fn cached_extents(file: &File, len: u64) -> io::Result<()> {
    let mut map = Fiemap::<ROOM>::of(0, len, CACHE);
    // SAFETY: as FIEMAP.
    unsafe { Ok(ioctl(file, Updater::<EXT4_IOC_GET_ES_CACHE, Fiemap<ROOM>>::new(&mut map))?) }
}

/// Has ext4 forget the extents of a file that it has in memory.
pub fn forget_extents(file: &File) -> io::Result<()> {
    // SAFETY: it takes no argument.
    unsafe { Ok(ioctl(file, NoArg::<EXT4_IOC_CLEAR_ES_CACHE>::new())?) }
}

/// Has ext4 write back what its journal holds: what is on the disk in its own place can be dropped.
pub fn checkpoint(file: &File) -> io::Result<()> {
    // SAFETY: it reads one integer.
    unsafe { Ok(ioctl(file, Setter::<EXT4_IOC_CHECKPOINT, u32>::new(0))?) }
}

/// How many blocks XFS keeps back for itself when the file system is full.
pub fn set_xfs_reserve(file: &File, blocks: u64) -> io::Result<()> {
    let mut reserve = [blocks, 0];
    // SAFETY: it reads and writes two 64-bit integers.
    unsafe { Ok(ioctl(file, Updater::<XFS_IOC_SET_RESBLKS, [u64; 2]>::new(&mut reserve))?) }
}

/// `struct file_dedupe_range` of `linux/fs.h` with one destination.
#[repr(C)]
#[derive(Default)]
struct Dedupe {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// Shares a range (bytes) of `from` with `to`, at the same offset, if both hold the same: do they?
pub fn dedupe_range(from: &File, to: &File, offset: u64, len: u64) -> io::Result<bool> {
    let mut range = Dedupe {
        src_offset: offset,
        src_length: len,
        dest_count: 1,
        dest_fd: i64::from(to.as_raw_fd()),
        dest_offset: offset,
        ..Dedupe::default()
    };
    // SAFETY: it reads and writes one `file_dedupe_range` with one destination; its descriptor is open
    // during the call.
    unsafe { ioctl(from, Updater::<FIDEDUPERANGE, Dedupe>::new(&mut range))? };
    match range.status {
        0 => Ok(true),
        // FILE_DEDUPE_RANGE_DIFFERS
        1 => Ok(false),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// readahead(2).
pub fn readahead(file: &File, offset: u64, len: usize) -> io::Result<()> {
    // SAFETY: of a descriptor and two numbers.
    match unsafe { libc::readahead(file.as_raw_fd(), offset as i64, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stores bytes to a mapping: the kernel does, in a read of a file in memory. It is the processor that
/// faults, at the address of the mapping, as a program's own stores do; but where there is no space for
/// them it is `EFAULT`, and no signal that ends the agent. Not process_vm_writev: that gets hold of the pages
/// first, and what takes them out of the file before it copies is not told.
pub fn store(map: &Map, offset: usize, bytes: &[u8]) -> io::Result<()> {
    assert!(offset + bytes.len() <= map.len(), "within the mapping");
    let memory = memory()?;
    memory.write_all_at(bytes, 0)?;
    let to = map.address(offset).cast();
    // SAFETY: within the mapping, to whose memory nobody has a reference; the kernel checks its pages.
    let n = unsafe { libc::pread(memory.as_raw_fd(), to, bytes.len(), 0) };
    all(n, bytes.len())
}

/// Reads bytes of a mapping in the same way.
pub fn load(map: &Map, offset: usize, len: usize) -> io::Result<Vec<u8>> {
    assert!(offset + len <= map.len(), "within the mapping");
    let memory = memory()?;
    let from = map.address(offset).cast();
    // SAFETY: within the mapping; the kernel checks its pages.
    let n = unsafe { libc::pwrite(memory.as_raw_fd(), from, len, 0) };
    all(n, len)?;
    let mut bytes = vec![0; len];
    memory.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn memory() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("bytes", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// Fewer is a fault on the way.
fn all(n: isize, len: usize) -> io::Result<()> {
    match usize::try_from(n) {
        Ok(n) if n == len => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

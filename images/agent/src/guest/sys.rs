//! The ioctls that no crate has. The only other `unsafe` of the agent is the submission to io_uring
//! and the descriptor that a test hands to the program.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// `BLKFLSBUF`, `BLKDISCARD`, `BLKZEROOUT` of `linux/fs.h`.
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
/// `FICLONERANGE` of `linux/fs.h`.
const FICLONERANGE: Opcode = opcode::write::<libc::file_clone_range>(0x94, 13);

/// Writes back and drops what the page cache has of a block device.
pub fn blkflsbuf(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { Ok(ioctl(device, NoArg::<BLKFLSBUF>::new())?) }
}

/// Discards a range of a block device (bytes).
pub fn blkdiscard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two 64-bit integers, as they are given.
    unsafe { Ok(ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len]))?) }
}

/// Zeroes a range of a block device (bytes).
pub fn blkzeroout(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two 64-bit integers, as they are given.
    unsafe { Ok(ioctl(device, Setter::<BLKZEROOUT, [u64; 2]>::new([offset, len]))?) }
}

/// `SG_IO` of `scsi/sg.h`, an ioctl from before these had sizes in their numbers.
const SG_IO: Opcode = 0x2285;
/// `SG_DXFER_FROM_DEV`, `'S'`: the third version of the interface.
const FROM_DEVICE: i32 = -3;
const INTERFACE: i32 = b'S' as i32;

/// `struct sg_io_hdr` of `scsi/sg.h`.
#[repr(C)]
struct SgIo {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

/// A SCSI command that gives data; how many bytes.
pub fn scsi_read(device: &File, cdb: &[u8], data: &mut [u8]) -> io::Result<usize> {
    let mut sense = [0u8; 96];
    let mut header = SgIo {
        interface_id: INTERFACE,
        dxfer_direction: FROM_DEVICE,
        cmd_len: cdb.len() as u8,
        mx_sb_len: sense.len() as u8,
        iovec_count: 0,
        dxfer_len: data.len() as u32,
        dxferp: data.as_mut_ptr(),
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: 30_000,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: SG_IO reads and writes one `sg_io_hdr`; the three buffers that it names are as long
    // as it says, and live until the call returns.
    unsafe { ioctl(device, Updater::<SG_IO, SgIo>::new(&mut header))? };
    if header.status != 0 || header.host_status != 0 || header.driver_status & 0x0f != 0 {
        return Err(io::Error::other(format!(
            "SCSI status {:#x}, host status {:#x}, sense key {:#x}",
            header.status,
            header.host_status,
            sense[2] & 0x0f
        )));
    }
    Ok(data.len().saturating_sub(header.resid.max(0) as usize))
}

/// `FS_IOC_FIEMAP` of `linux/fs.h`, of the head of its structure.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u64; 4]>(b'f', 11);
/// `FIEMAP_EXTENT_UNKNOWN` and `FIEMAP_EXTENT_ENCODED` of `linux/fiemap.h`: no place that could be told.
const NOWHERE: u32 = 0x2 | 0x8;

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved32: [u32; 3],
}

/// `struct fiemap` of `linux/fiemap.h` with room for `N` extents.
#[repr(C)]
#[derive(Debug)]
pub struct Fiemap<const N: usize> {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; N],
}

impl<const N: usize> Fiemap<N> {
    /// Asks for a range of a file (bytes).
    pub fn of(start: u64, length: u64, flags: u32) -> Self {
        let extents = [RawExtent::default(); N];
        let extent_count = N as u32;
        Fiemap { start, length, flags, mapped_extents: 0, extent_count, reserved: 0, extents }
    }

    /// Has it filled in.
    fn ask(mut self, file: &File) -> io::Result<Self> {
        // SAFETY: FIEMAP reads the head of a `fiemap`, and writes it and as many extents behind it as
        // it says there is room for.
        unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Self>::new(&mut self))? };
        Ok(self)
    }

    fn told(&self) -> &[RawExtent] {
        &self.extents[..(self.mapped_extents as usize).min(N)]
    }
}

/// Where on its disk the bytes `offset..offset + len` of a file lie, where that is one place.
pub fn place_of(file: &File, offset: u64, len: u64) -> Option<u64> {
    let map = Fiemap::<1>::of(offset, len, 0).ask(file).ok()?;
    let [extent] = map.told() else { return None };
    let inside = extent.flags & NOWHERE == 0
        && extent.logical <= offset
        && offset + len <= extent.logical + extent.length;
    inside.then(|| extent.physical + (offset - extent.logical))
}

/// `FIEMAP_EXTENT_LAST`, and extents asked for at once.
const LAST: u32 = 0x1;
const EXTENTS: usize = 64;

/// A piece of a file that has blocks, or has them promised. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
    /// On the disk; says nothing where `delayed`.
    pub at: u64,
    /// Blocks are reserved, but not chosen yet.
    pub delayed: bool,
    /// Compressed or encrypted: it has other bytes there, and not as many.
    pub encoded: bool,
    /// It has blocks and reads as zeroes.
    pub unwritten: bool,
}

/// The extents that overlap the bytes `offset..offset + len` of a file, in their order.
pub fn extents(file: &File, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
    let end = offset + len;
    let mut start = offset;
    let mut all = Vec::new();
    while start < end {
        let list = Fiemap::<EXTENTS>::of(start, end - start, 0).ask(file)?;
        let mapped = list.told();
        all.extend(mapped.iter().map(|raw| Extent {
            offset: raw.logical,
            len: raw.length,
            at: raw.physical,
            // FIEMAP_EXTENT_ENCODED, FIEMAP_EXTENT_DELALLOC, FIEMAP_EXTENT_UNWRITTEN
            encoded: raw.flags & 0x8 != 0,
            delayed: raw.flags & 0x4 != 0,
            unwritten: raw.flags & 0x800 != 0,
        }));
        match mapped.last() {
            Some(last) if last.flags & LAST == 0 && last.length > 0 => {
                start = last.logical + last.length;
            }
            _ => break,
        }
    }
    Ok(all)
}

/// `struct xfs_fs_eofblocks` of `xfs/xfs_fs.h`.
#[repr(C)]
#[derive(Default)]
struct XfsEofblocks {
    version: u32,
    flags: u32,
    ids: [u32; 3],
    pad32: u32,
    min_file_size: u64,
    pad64: [u64; 12],
}

/// `XFS_IOC_FREE_EOFBLOCKS`
const XFS_FREE_EOFBLOCKS: Opcode = opcode::read::<XfsEofblocks>(b'X', 58);

/// Has XFS give back what it reserved on speculation, and waits for it. `file`: any of the file system.
pub fn xfs_free_speculative(file: &File) -> io::Result<()> {
    // XFS_EOFBLOCKS_VERSION, XFS_EOF_FLAGS_SYNC
    let which = XfsEofblocks { version: 1, flags: 1, ..XfsEofblocks::default() };
    // SAFETY: the ioctl reads one `xfs_fs_eofblocks`, whatever its number says of the direction.
    unsafe { Ok(ioctl(file, Setter::<XFS_FREE_EOFBLOCKS, XfsEofblocks>::new(which))?) }
}

/// Shares a range (bytes) of `from` with `to`, at the same offset.
pub fn clone_range(from: &File, to: &File, offset: u64, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_fd().as_raw_fd()),
        src_offset: offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: FICLONERANGE reads one `file_clone_range`; its descriptor is open during the call.
    unsafe { Ok(ioctl(to, Setter::<FICLONERANGE, libc::file_clone_range>::new(range))?) }
}

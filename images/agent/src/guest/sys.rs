//! The ioctls that no crate has. The only other `unsafe` of the agent is the submission to io_uring
//! and the descriptor that a test hands to the program.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

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

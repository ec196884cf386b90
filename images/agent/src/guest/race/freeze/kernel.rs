//! What of the kernel no crate has: freezing, loop devices, permission events, the limit on a file's size.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// `FIFREEZE`, `FITHAW` of `linux/fs.h`: the argument is not looked at.
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Bytes, or 0, or a negative errno.
fn result(outcome: rustix::io::Result<()>) -> i64 {
    outcome.map_or_else(|e| -i64::from(e.raw_os_error()), |()| 0)
}

/// Freezes the file system that this is on: 0, or a negative errno.
pub(super) fn freeze(on: &File) -> i64 {
    // SAFETY: FIFREEZE takes no argument.
    result(unsafe { ioctl(on, NoArg::<FIFREEZE>::new()) })
}

/// Lets it go on: 0, or a negative errno.
pub(super) fn thaw(on: &File) -> i64 {
    // SAFETY: FITHAW takes no argument.
    result(unsafe { ioctl(on, NoArg::<FITHAW>::new()) })
}

/// `linux/loop.h`, from before ioctls had sizes in their numbers.
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    fn with(flags: u32) -> LoopInfo {
        LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// A loop device over a file, with direct I/O: its number.
///
/// # Errors
/// The kernel's; `Unsupported` where it takes the file, but not with direct I/O.
pub(super) fn loop_over(file: &File) -> io::Result<u32> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and answers with a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    let number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
    let device = loop_device(number)?;
    let config = LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info: LoopInfo::with(LO_FLAGS_DIRECT_IO),
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `loop_config`; the descriptor in it is open.
    unsafe { ioctl(&device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config))? };
    let mut info = LoopInfo::with(0);
    // SAFETY: LOOP_GET_STATUS64 writes one `loop_info64`.
    unsafe { ioctl(&device, Updater::<LOOP_GET_STATUS64, LoopInfo>::new(&mut info))? };
    if info.flags & LO_FLAGS_DIRECT_IO == 0 {
        loop_let_go(number)?;
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(number)
}

/// Ends a loop device, at the latest when nobody has it open any more.
///
/// # Errors
/// The kernel's.
pub(super) fn loop_let_go(number: u32) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument that is looked at.
    unsafe { Ok(ioctl(&loop_device(number)?, IntegerSetter::<LOOP_CLR_FD>::new_usize(0))?) }
}

fn loop_device(number: u32) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/dev/loop{number}"))
}

/// While it lives, no write of this process goes beyond so many bytes of a file: RLIMIT_FSIZE, without
/// the signal that would come with it. Of the whole process: but nobody else in it writes to files then.
#[derive(Debug)]
pub(super) struct SizeLimit {
    before: libc::rlimit,
}

impl SizeLimit {
    /// # Errors
    /// The kernel's.
    pub(super) fn set(bytes: u64) -> io::Result<SizeLimit> {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one `rlimit`.
        if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no handler of ours is replaced: the signal ends the process where it is not ignored.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let now = libc::rlimit { rlim_cur: bytes, ..before };
        // SAFETY: reads one `rlimit`.
        if unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &now) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(SizeLimit { before })
    }
}

impl Drop for SizeLimit {
    fn drop(&mut self) {
        // SAFETY: reads one `rlimit`: the one that held before.
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &self.before) };
    }
}

/// `FAN_CLASS_PRE_CONTENT`, `FAN_PRE_ACCESS` of `linux/fanotify.h` (events before a write: Linux 6.14).
const PRE_CONTENT: u32 = 0x8;
const PRE_ACCESS: u64 = 0x0010_0000;

/// Who is asked before a file is opened or written to, and always says no.
#[derive(Debug)]
pub(super) struct Guard {
    group: OwnedFd,
}

/// What a [`Guard`] is asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Open,
    Access,
}

impl Guard {
    /// # Errors
    /// The kernel has no such events, or not for this file.
    pub(super) fn over(path: &str, before: Before) -> io::Result<Guard> {
        let (class, mask) = match before {
            Before::Open => (libc::FAN_CLASS_CONTENT, libc::FAN_OPEN_PERM),
            Before::Access => (PRE_CONTENT, PRE_ACCESS),
        };
        // SAFETY: takes numbers alone.
        let group = unsafe {
            libc::fanotify_init(
                class | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK,
                (libc::O_RDONLY | libc::O_CLOEXEC) as u32,
            )
        };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else has.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        let path = std::ffi::CString::new(path)?;
        // SAFETY: the path is a string that ends in a NUL and lives until the call returns.
        let marked = unsafe {
            libc::fanotify_mark(
                group.as_raw_fd(),
                libc::FAN_MARK_ADD,
                mask,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        if marked < 0 { Err(io::Error::last_os_error()) } else { Ok(Guard { group }) }
    }

    /// Says no to all who wait now: how many.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn deny(&self) -> io::Result<u32> {
        let mut denied = 0;
        let mut bytes = [0u8; 4096];
        loop {
            let n = match rustix::io::read(&self.group, &mut bytes) {
                Ok(n) => n,
                Err(rustix::io::Errno::AGAIN) => return Ok(denied),
                Err(e) => return Err(e.into()),
            };
            let mut at = 0;
            // `struct fanotify_event_metadata`: the length first, the descriptor at 16.
            while let Some(event) = bytes[..n].get(at..at + 24) {
                let word = |i: usize| event[i..i + 4].try_into().map_or(0, i32::from_ne_bytes);
                let (len, fd) = (word(0), word(16));
                if fd >= 0 {
                    // SAFETY: the kernel opened it for whoever reads the event.
                    let file = unsafe { OwnedFd::from_raw_fd(fd) };
                    let mut answer = [0u8; 8];
                    answer[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
                    answer[4..].copy_from_slice(&libc::FAN_DENY.to_ne_bytes());
                    rustix::io::write(&self.group, &answer)?;
                    denied += 1;
                }
                at += usize::try_from(len).unwrap_or(0).max(24);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!((FIFREEZE, FITHAW), (0xC004_5877, 0xC004_5878));
    }
}

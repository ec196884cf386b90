//! Memory of which each missing page is asked for: who touches one waits until it is answered
//! (userfaultfd(2)). So a system call can be kept in the middle of what it reads.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use super::memory::{Map, PAGE};
use crate::guest::{Error, Result, explain};

/// `struct uffdio_api`, `uffdio_register`, `uffdio_range` and `uffdio_copy` of `linux/userfaultfd.h`,
/// of 64-bit words all of them.
type UffdioApi = [u64; 3];
type UffdioRegister = [u64; 4];
type UffdioRange = [u64; 2];
type UffdioCopy = [u64; 5];

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: Opcode = opcode::read_write::<UffdioApi>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<UffdioRegister>(0xaa, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<UffdioRange>(0xaa, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<UffdioCopy>(0xaa, 0x03);
const REGISTER_MODE_MISSING: u64 = 1;

/// `struct uffd_msg`: its length, `UFFD_EVENT_PAGEFAULT`, and where the address is.
const MESSAGE: usize = 32;
const EVENT_PAGEFAULT: u8 = 0x12;
const ADDRESS: usize = 16;

/// Answers for the missing pages of a mapping. When dropped, who waits goes on with zeroes.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    map: Arc<Map>,
}

impl Userfault {
    /// From now on the missing pages of all of `map`, which is private memory, are asked for.
    ///
    /// # Errors
    /// The kernel does not let us: [`Error::Unsupported`].
    pub fn of(map: &Arc<Map>) -> Result<Userfault> {
        let cannot = |what: &str, e: io::Error| {
            let why = e.raw_os_error().map_or_else(|| e.to_string(), explain);
            Error::Unsupported(format!("{what}: {why}"))
        };
        // Faults within system calls are what it is for: not UFFD_USER_MODE_ONLY.
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: what is registered below is a mapping to which nobody has a reference.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }
            .map_err(|e| cannot("userfaultfd", e.into()))?;
        let mut api: UffdioApi = [UFFD_API, 0, 0];
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        unsafe { ioctl(&fd, Updater::<UFFDIO_API, UffdioApi>::new(&mut api)) }
            .map_err(|e| cannot("UFFDIO_API", e.into()))?;
        let mut register: UffdioRegister =
            [map.address(0) as u64, map.len() as u64, REGISTER_MODE_MISSING, 0];
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`, which names a mapping that
        // is kept as long as this is.
        unsafe { ioctl(&fd, Updater::<UFFDIO_REGISTER, UffdioRegister>::new(&mut register)) }
            .map_err(|e| cannot("UFFDIO_REGISTER", e.into()))?;
        Ok(Userfault { fd, map: Arc::clone(map) })
    }

    /// Waits until somebody waits for a page: where in the mapping. `None`: nobody did in time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn asked(&self, time: Duration) -> io::Result<Option<usize>> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let mut message = [0; MESSAGE];
            match rustix::io::read(&self.fd, &mut message) {
                Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                    let mut address = [0; 8];
                    address.copy_from_slice(&message[ADDRESS..ADDRESS + 8]);
                    let at = u64::from_ne_bytes(address) - self.map.address(0) as u64;
                    return Ok(Some(at as usize));
                }
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Answers with the bytes of whole pages, and wakes who waits for them.
    ///
    /// # Errors
    /// The kernel's: a page is there already, say.
    pub fn answer(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE), "whole pages");
        assert!(offset + bytes.len() <= self.map.len(), "within the mapping");
        let to = self.map.address(offset) as u64;
        let mut copy: UffdioCopy = [to, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0];
        // SAFETY: UFFDIO_COPY reads and writes one `uffdio_copy`; it fills missing pages of our own
        // mapping from bytes that are borrowed until the call returns.
        unsafe { Ok(ioctl(&self.fd, Updater::<UFFDIO_COPY, UffdioCopy>::new(&mut copy))?) }
    }

    /// Has who waits for one of these pages try again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self, offset: usize, len: usize) -> io::Result<()> {
        let range: UffdioRange = [self.map.address(offset) as u64, len as u64];
        // SAFETY: UFFDIO_WAKE reads one `uffdio_range`.
        unsafe { Ok(ioctl(&self.fd, Setter::<UFFDIO_WAKE, UffdioRange>::new(range))?) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::guest::race::Task;
    use rustix::mm::Advice;

    #[test]
    fn a_write_waits_for_a_page_until_it_is_answered() {
        let map = Arc::new(Map::private(2 * PAGE).unwrap());
        map.store(0, &[1; 2 * PAGE]);
        let fault = match Userfault::of(&map) {
            Ok(fault) => fault,
            // Where the tests run it may be forbidden.
            Err(Error::Unsupported(_)) => return,
            Err(e) => panic!("{e}"),
        };
        map.advise(PAGE, PAGE, Advice::LinuxDontNeed).unwrap();
        let (from, file) = (Arc::clone(&map), tempfile::tempfile().unwrap());
        let writer = Task::start("writer", move || from.pwrite(0, 2 * PAGE, &file, 0, 0)).unwrap();
        let time = Duration::from_secs(20);
        assert_eq!(fault.asked(time).unwrap(), Some(PAGE));
        assert_eq!(fault.asked(Duration::ZERO).unwrap(), None);
        fault.answer(PAGE, &[2; PAGE]).unwrap();
        assert_eq!(writer.wait(time).unwrap(), 2 * PAGE as i64);
    }
}

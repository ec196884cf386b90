//! Writes that are submitted and waited for apart, by io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

use crate::guest::workload::buffer::Buffer;
use crate::guest::{Error, Result};

/// Writes in flight, with their memory. Dropping it waits for them.
pub struct Writes {
    ring: IoUring,
    /// What the kernel may read, until all of it has returned.
    buffers: Vec<Buffer>,
    in_flight: usize,
}

impl Writes {
    /// Room for so many.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: the kernel has no io_uring for us.
    pub fn new(room: usize) -> Result<Writes> {
        let ring = IoUring::new(room as u32).map_err(|e| {
            Error::Unsupported(format!("the kernel refuses to set up an io_uring: {e}"))
        })?;
        Ok(Writes { ring, buffers: Vec::new(), in_flight: 0 })
    }

    /// Submits a write; its answer carries `id`. The file may be closed afterwards: the kernel has
    /// a reference of its own by then.
    ///
    /// # Errors
    /// There is no room, or the kernel does not take it.
    pub fn submit(&mut self, id: u64, file: &File, buffer: Buffer, offset: u64) -> Result<()> {
        let bytes = buffer.bytes();
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .offset(offset)
            .build()
            .user_data(id);
        // SAFETY: the descriptor is open until the kernel has taken the entry, below. The buffer's
        // memory stays where it is when the buffer is moved, and is kept until everything in
        // flight has returned.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| Error::Refused("the io_uring has no room for a write".into()))?;
        self.buffers.push(buffer);
        self.in_flight += 1;
        self.ring.submit().map_err(Error::system("io_uring_enter"))?;
        Ok(())
    }

    /// Waits for all of them: (id, bytes or a negative errno).
    ///
    /// # Errors
    /// The kernel does not let us wait.
    pub fn reap(&mut self) -> Result<Vec<(u64, i64)>> {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::system("io_uring_enter")(e)),
            }
            for entry in self.ring.completion() {
                self.in_flight -= 1;
                done.push((entry.user_data(), i64::from(entry.result())));
            }
        }
        self.buffers.clear();
        Ok(done)
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        if self.reap().is_err() {
            // The kernel may still read them: better lost than given to others.
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
    }
}

impl std::fmt::Debug for Writes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

//! Commits by a protocol of several calls, each submitted and waited for as it says.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::buffer::Buffer;
use super::plan::Plan;
use super::prepare::stamp;
use super::write::{Tally, intent};
use super::{Opened, Shared};
use crate::channel::Target;
use crate::guest::{Error, Result};
use crate::payload::fill;
use crate::planted::{Committer, FLAGS, Planted, Step, fill_slot, slot_len, slot_of};

/// More than a protocol ever submits before it waits.
const ENTRIES: u32 = 8;
/// What an entry is, so that its result can be judged.
const FLUSH: u64 = 0;

/// Whether the kernel can write and flush through io_uring.
pub fn probe() -> Result<()> {
    super::ring::probe()?;
    let ring = IoUring::new(1).map_err(Error::system("cannot set up an io_uring"))?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(Error::system("cannot ask what io_uring can do"))?;
    for (code, name) in [(opcode::Write::CODE, "WRITE"), (opcode::Fsync::CODE, "FSYNC")] {
        if !probe.is_supported(code) {
            return Err(Error::Unsupported(format!(
                "this kernel's io_uring has no IORING_OP_{name}"
            )));
        }
    }
    Ok(())
}

/// Commits a thread's plan.
pub fn run(
    shared: &Shared<'_>,
    target: &Target,
    planted: Planted,
    opened: &Opened,
    plan: Plan,
) -> Result<()> {
    let mut tally = Tally::new(shared, target, opened);
    let mut ring = Ring::new(target)?;
    let mut committer = Committer::new(target, planted);
    let file = opened.file(FLAGS)?;
    for commit in plan {
        if shared.is_over() {
            break;
        }
        let batch = tally.mark(vec![intent(target, opened, &commit)]);
        // Nothing is in flight: every commit ends by waiting.
        let stamp = stamp(target, shared.workload, commit.unit, commit.generation);
        fill(ring.page.bytes_mut(), stamp);
        let slot = slot_of(target, commit.unit);
        if slot.is_some() {
            fill_slot(ring.slot.bytes_mut(), stamp);
        }
        shared.outbox.wait(batch)?;
        let mut outcome: i64 = target.unit.into();
        for step in committer.commit() {
            match step {
                _ if outcome < 0 => {}
                Step::Page { from, len } => {
                    let offset = target.offset_of(commit.unit) + u64::from(from);
                    ring.write_page(file, from, len, offset)?;
                }
                Step::Slot => {
                    if let Some(range) = &slot {
                        ring.write_slot(file, range.start)?;
                    }
                }
                Step::Flush => ring.flush(file)?,
                Step::Wait => outcome = outcome.min(ring.wait()?),
                Step::Acknowledge => {
                    tally.done(&commit, outcome)?;
                    tally.flush();
                }
            }
        }
        if outcome < 0 {
            ring.wait()?;
            tally.done(&commit, outcome)?;
        }
    }
    tally.flush();
    Ok(())
}

/// A ring and the memory of what is in flight in it.
struct Ring {
    ring: IoUring,
    page: Buffer,
    slot: Buffer,
    in_flight: usize,
}

impl Ring {
    fn new(target: &Target) -> Result<Ring> {
        Ok(Ring {
            ring: IoUring::new(ENTRIES).map_err(Error::system("cannot set up an io_uring"))?,
            page: Buffer::new(target.unit as usize),
            slot: Buffer::new(slot_len(target) as usize),
            in_flight: 0,
        })
    }

    fn write_page(&mut self, file: &File, from: u32, len: u32, offset: u64) -> Result<()> {
        let bytes = &self.page.bytes()[from as usize..(from + len) as usize];
        let entry = write(file, bytes, offset);
        self.push(entry)
    }

    fn write_slot(&mut self, file: &File, offset: u64) -> Result<()> {
        let entry = write(file, self.slot.bytes(), offset);
        self.push(entry)
    }

    fn flush(&mut self, file: &File) -> Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.push(entry.user_data(FLUSH))
    }

    /// Submits at once, so that what is submitted after it is queued behind it.
    fn push(&mut self, entry: squeue::Entry) -> Result<()> {
        // SAFETY: a write's bytes are in `page` or `slot`, which stay where they are; nobody writes
        // to them while something is in flight (`run` fills them after a `wait`), and dropping the
        // ring waits first. The descriptor is borrowed for longer than the ring lives.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| Error::Refused("the io_uring has no room".into()))?;
        self.in_flight += 1;
        self.enter(0)
    }

    /// Waits for all that is in flight: the first error, as a negative errno, or `i64::MAX`.
    fn wait(&mut self) -> Result<i64> {
        let mut outcome = i64::MAX;
        while self.in_flight > 0 {
            self.enter(1)?;
            for entry in self.ring.completion() {
                self.in_flight -= 1;
                let (result, wanted) = (i64::from(entry.result()), entry.user_data() as i64);
                if result < 0 {
                    outcome = outcome.min(result);
                } else if result < wanted {
                    // A short write is as bad as none.
                    outcome = outcome.min(-i64::from(libc::EIO));
                }
            }
        }
        Ok(outcome)
    }

    fn enter(&mut self, want: usize) -> Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory for now, or wants completions to be taken first.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                    if want > 0 && !self.ring.completion().is_empty() {
                        return Ok(());
                    }
                }
                Err(e) => return Err(Error::system("io_uring_enter")(e)),
            }
        }
    }
}

/// A write, whose `user_data` is how long it is.
fn write(file: &File, bytes: &[u8], offset: u64) -> squeue::Entry {
    opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
        .offset(offset)
        .build()
        .user_data(bytes.len() as u64)
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.wait().is_err() {
            // The kernel may still read the buffers: better lost than given to others.
            std::mem::forget(std::mem::replace(&mut self.page, Buffer::new(0)));
            std::mem::forget(std::mem::replace(&mut self.slot, Buffer::new(0)));
        }
    }
}

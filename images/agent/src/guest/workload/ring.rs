//! Several writes of a thread in flight, by io_uring.
//!
//! Only here a write can have an I/O priority of its own, and so a name ([`crate::naming`]): a
//! thread's would be inherited by everything that is written for it, a file system's log too.
//!
//! Intents of all writes that can start now go in one message, and wait for one acknowledgement;
//! meanwhile those already in flight go on.

use std::collections::VecDeque;
use std::io;
use std::iter::Peekable;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, types};

use super::buffer::Buffer;
use super::plan::{Plan, Step};
use super::prepare::stamp;
use super::write::{Tally, intent};
use super::{Opened, Shared, rwf};
use crate::channel::Target;
use crate::guest::{Error, Result};
use crate::naming;
use crate::payload::fill;

/// Whether the kernel lets us write through io_uring.
pub fn probe() -> Result<()> {
    let refused = |e: io::Error| {
        Error::Unsupported(format!(
            "a depth above 1 needs io_uring, and the kernel refuses to set one up: {}",
            e.raw_os_error().map_or_else(|| e.to_string(), crate::guest::explain)
        ))
    };
    let ring = IoUring::new(1).map_err(refused)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(refused)?;
    if probe.is_supported(opcode::Writev::CODE) {
        return Ok(());
    }
    Err(Error::Unsupported("this kernel's io_uring has no IORING_OP_WRITEV".into()))
}

/// Writes a thread's plan.
pub fn run(shared: &Shared<'_>, target: &Target, opened: &Opened, plan: Plan) -> Result<()> {
    let mut tally = Tally::new(shared, target, opened);
    let mut ring = Ring::new(target)?;
    let outcome = feed(shared, target, opened, plan, &mut ring, &mut tally);
    // Whatever happened: what is in flight returns, and its results are told.
    while ring.in_flight > 0 {
        match ring.reap(1) {
            Ok(done) => {
                for (step, result) in done {
                    // The first error is already on its way.
                    let _ = tally.done(&step, result);
                }
            }
            Err(e) => return outcome.and(Err(e)),
        }
    }
    tally.flush();
    outcome
}

fn feed(
    shared: &Shared<'_>,
    target: &Target,
    opened: &Opened,
    plan: Plan,
    ring: &mut Ring,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let mut plan = plan.peekable();
    loop {
        let starting = if shared.is_over() { Vec::new() } else { ring.take_startable(&mut plan) };
        if !starting.is_empty() {
            let batch =
                tally.mark(starting.iter().map(|(_, step)| intent(target, opened, step)).collect());
            for (slot, step) in &starting {
                let bytes = ring.slots[*slot].buffer.bytes_mut();
                fill(bytes, stamp(target, shared.workload, step.unit, step.generation));
            }
            shared.outbox.wait(batch)?;
            for (slot, step) in starting {
                let fd = types::Fd(opened.file(step.flags)?.as_raw_fd());
                let how = How {
                    flags: rwf(step.flags, shared.workload.skip_sync),
                    ioprio: name(target, &step),
                };
                ring.push(slot, fd, target.offset_of(step.unit), how)?;
            }
        } else {
            tally.flush();
        }
        if ring.in_flight == 0 {
            return Ok(());
        }
        let done = ring.reap(1)?;
        let sync = done.iter().any(|(step, _)| step.sync);
        let mut outcome = Ok(());
        for (step, result) in done {
            outcome = outcome.and(tally.done(&step, result));
        }
        outcome?;
        if sync {
            // With others in flight: whatever it waits for, it makes none of them durable.
            tally.sync()?;
        }
    }
}

/// The I/O priority that names a write; 0: none of its own.
fn name(target: &Target, step: &Step) -> u16 {
    if target.named && step.flags.atomic { naming::ioprio(target.unit) } else { 0 }
}

/// Flags of pwritev2(2), and an I/O priority.
#[derive(Clone, Copy, Debug)]
struct How {
    flags: u32,
    ioprio: u16,
}

/// A ring and the memory of what is in flight in it.
struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    free: VecDeque<usize>,
    in_flight: usize,
}

struct Slot {
    buffer: Buffer,
    /// What the kernel reads when the write is submitted: one element, never moved.
    iovec: Box<libc::iovec>,
    step: Option<Step>,
}

impl Ring {
    fn new(target: &Target) -> Result<Ring> {
        let (depth, unit) = (target.depth as usize, target.unit as usize);
        let ring =
            IoUring::new(depth as u32).map_err(Error::system("cannot set up an io_uring"))?;
        let slots = (0..depth)
            .map(|_| Slot {
                buffer: Buffer::behind_a_page(unit, target.buffer_offset as usize),
                iovec: Box::new(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }),
                step: None,
            })
            .collect();
        Ok(Ring { ring, slots, free: (0..depth).collect(), in_flight: 0 })
    }

    fn holds(&self, unit: u64) -> bool {
        self.slots.iter().any(|s| s.step.is_some_and(|step| step.unit == unit))
    }

    /// Takes the writes of the plan that can start now, each with a slot. Never past one whose unit
    /// is still in flight: the order is the plan's.
    fn take_startable(
        &mut self,
        plan: &mut Peekable<impl Iterator<Item = Step>>,
    ) -> Vec<(usize, Step)> {
        let mut taken = Vec::new();
        while let Some(step) = plan.peek()
            && !self.holds(step.unit)
            && let Some(slot) = self.take_slot(*step)
        {
            taken.push((slot, *step));
            plan.next();
        }
        taken
    }

    fn take_slot(&mut self, step: Step) -> Option<usize> {
        let slot = self.free.pop_front()?;
        self.slots[slot].step = Some(step);
        Some(slot)
    }

    /// Prepares the write of a slot that was taken and filled; the next [`Ring::reap`] submits it.
    fn push(&mut self, slot: usize, fd: types::Fd, offset: u64, how: How) -> Result<()> {
        let Slot { buffer, iovec, .. } = &mut self.slots[slot];
        let bytes = buffer.bytes_mut();
        **iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let entry = opcode::Writev::new(fd, &raw const **iovec, 1)
            .offset(offset)
            .rw_flags(how.flags as i32)
            .ioprio(how.ioprio)
            .build()
            .user_data(slot as u64);
        // SAFETY: the slot's buffer and iovec stay where they are, and nobody writes to them, until
        // its completion was reaped: a taken slot is not taken again before, and dropping the ring
        // waits for all that is in flight. The descriptor outlives the ring: `Opened` is borrowed
        // for longer.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| Error::Refused("the io_uring has no room for a write".into()))?;
        self.in_flight += 1;
        Ok(())
    }

    /// Submits what was pushed, waits until `want` writes returned, and takes all that did.
    fn reap(&mut self, want: usize) -> Result<Vec<(Step, i64)>> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory for now, or wants completions to be taken first.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                    if !self.ring.completion().is_empty() {
                        break;
                    }
                }
                Err(e) => return Err(Error::system("io_uring_enter")(e)),
            }
        }
        let mut done = Vec::new();
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            self.in_flight -= 1;
            self.free.push_back(slot);
            if let Some(step) = self.slots[slot].step.take() {
                done.push((step, i64::from(entry.result())));
            }
        }
        Ok(done)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.reap(1).is_err() {
                // The kernel may still read the buffers: better lost than given to others.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::channel::WriteFlags;

    fn ring() -> Ring {
        Ring::new(&Target { depth: 4, unit: 4096, ..Target::default() }).unwrap()
    }

    fn step(unit: u64) -> Step {
        Step { unit, generation: 1, flags: WriteFlags::default(), sync: false }
    }

    #[test]
    fn a_write_whose_unit_is_in_flight_holds_up_those_after_it() {
        if let Err(e) = probe() {
            println!("skipped: {e}");
            return;
        }
        let mut ring = ring();
        let held = ring.take_slot(step(3)).unwrap();
        let mut plan = [1, 3, 2, 5, 6].map(step).into_iter().peekable();
        let mut units = |ring: &mut Ring| -> Vec<u64> {
            ring.take_startable(&mut plan).iter().map(|(_, step)| step.unit).collect()
        };
        assert_eq!(units(&mut ring), [1]);
        assert_eq!(units(&mut ring), [0; 0]);
        ring.slots[held].step = None;
        ring.free.push_back(held);
        assert_eq!(units(&mut ring), [3, 2, 5], "as many as there are slots");
    }

    #[test]
    fn writes_through_the_ring_return_what_the_kernel_says() {
        if let Err(e) = probe() {
            println!("skipped: {e}");
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let read_only = std::fs::File::open("/proc/self/exe").unwrap();
        let mut ring = ring();
        for unit in 0..4 {
            let slot = ring.take_slot(step(unit)).unwrap();
            assert!(ring.holds(unit));
            ring.slots[slot].buffer.bytes_mut().fill(unit as u8 + 1);
            let fd = types::Fd(if unit == 3 { read_only.as_raw_fd() } else { file.as_raw_fd() });
            // A priority of its own is one that the kernel takes.
            let how = How { flags: 0, ioprio: if unit == 1 { naming::ioprio(4096) } else { 0 } };
            ring.push(slot, fd, unit * 4096, how).unwrap();
        }
        assert!(ring.take_slot(step(9)).is_none());
        let mut done = Vec::new();
        while ring.in_flight > 0 {
            done.extend(ring.reap(1).unwrap());
        }
        done.sort_by_key(|(step, _)| step.unit);
        let results: Vec<i64> = done.iter().map(|(_, result)| *result).collect();
        assert_eq!(results, [4096, 4096, 4096, -i64::from(libc::EBADF)]);
        for unit in 0..3u8 {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, u64::from(unit) * 4096).unwrap();
            assert_eq!(bytes, [unit + 1; 4096]);
        }
    }
}

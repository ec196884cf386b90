//! A queue of the machine: passes requests on to a queue of whatever store lies beneath.

use super::Shared;
use crate::store::{Done, Op, Request, StoreQueue};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tornblk_proto::Counters;

/// What one queue did, on a cache line that is its own.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Submitted and not reaped.
    pub(super) in_flight: AtomicU64,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
    failed: AtomicU64,
    eligible: AtomicU64,
    sub_block: AtomicU64,
}

impl Counts {
    /// Of all of them.
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Counts> + Clone) -> Counters {
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            all.clone().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
        };
        Counters {
            reads: sum(|c| &c.reads),
            writes: sum(|c| &c.writes),
            flushes: sum(|c| &c.flushes),
            discards: sum(|c| &c.discards),
            write_zeroes: sum(|c| &c.write_zeroes),
            failed: sum(|c| &c.failed),
            eligible: sum(|c| &c.eligible),
            sub_block: sum(|c| &c.sub_block),
        }
    }

    fn submitted(&self, request: &Request, shared: &Shared) {
        let one = |n: &AtomicU64| n.fetch_add(1, Ordering::Relaxed);
        let block = u64::from(shared.disk.lb_size);
        let part = |at: u64, n: u64| !at.is_multiple_of(block) || !n.is_multiple_of(block);
        let len = request.buffers.len() as u64;
        let sub_block = match &request.op {
            Op::Read { offset } => {
                one(&self.reads);
                part(*offset, len)
            }
            Op::Write { offset, atomic, .. } => {
                one(&self.writes);
                let whole = request.pieces.is_empty();
                if whole && shared.eligible(*offset, len, *atomic) {
                    one(&self.eligible);
                }
                part(*offset, len)
            }
            Op::Flush { .. } => {
                one(&self.flushes);
                false
            }
            Op::Discard { segments } => {
                one(&self.discards);
                segments.iter().any(|s| part(s.offset, s.len))
            }
            Op::WriteZeroes { segments } => {
                one(&self.write_zeroes);
                segments.iter().any(|s| part(s.offset, s.len))
            }
        };
        if sub_block {
            one(&self.sub_block);
        }
    }
}

pub(super) struct MachineQueue {
    n: u16,
    shared: Arc<Shared>,
    inner: Box<dyn StoreQueue>,
    epoch: u64,
    /// Of this queue: submitted and not reaped.
    in_flight: u64,
    bell: Arc<OwnedFd>,
}

impl MachineQueue {
    pub(super) fn new(n: u16, shared: Arc<Shared>) -> io::Result<MachineQueue> {
        let own = shared.beneath().store.bell(n);
        let bell = match own {
            Some(bell) => bell,
            None => Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        };
        shared.gate.hang_bell(n, Arc::clone(&bell));
        let (inner, epoch) = {
            let beneath = shared.beneath();
            (beneath.store.queue(n), beneath.epoch)
        };
        Ok(MachineQueue { n, shared, inner, epoch, in_flight: 0, bell })
    }
}

impl StoreQueue for MachineQueue {
    fn submit(&mut self, request: Request) {
        // Held to the end: the store is not exchanged beneath a request.
        let MachineQueue { n, shared, inner, epoch, in_flight, .. } = self;
        let beneath = shared.beneath();
        let tally = shared.tally(*n);
        // One that could not be made, for want of descriptors, cannot be woken: it is tried again.
        let broken = inner.wake_fd().is_none() && inner.in_flight() == 0;
        if beneath.epoch != *epoch || broken {
            // What was in flight is over.
            tally.in_flight.fetch_sub(std::mem::take(in_flight), Ordering::AcqRel);
            *inner = beneath.store.queue(*n);
            *epoch = beneath.epoch;
        }
        tally.counts.submitted(&request, shared);
        if matches!(request.op, Op::Flush { .. }) {
            shared.look();
        }
        tally.in_flight.fetch_add(1, Ordering::AcqRel);
        *in_flight += 1;
        inner.submit(request);
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        let mut reaped = 0;
        let tally = self.shared.tally(self.n);
        self.inner.reap(&mut |done| {
            reaped += 1;
            if done.result.is_err() {
                tally.counts.failed.fetch_add(1, Ordering::Relaxed);
            }
            f(done);
        });
        self.in_flight -= reaped;
        tally.in_flight.fetch_sub(reaped, Ordering::AcqRel);
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn drain(&mut self) {
        self.inner.drain();
    }
}

impl Drop for MachineQueue {
    fn drop(&mut self) {
        self.shared.tally(self.n).in_flight.fetch_sub(self.in_flight, Ordering::AcqRel);
    }
}

//! One queue of the device: takes chains from the available ring, gives them to the store, and
//! returns them through the used ring.

use super::request::{Bounds, Parsed, Work, parse};
use super::{Blk, chain};
use crate::complaints::Complaints;
use crate::device::Memory;
use crate::store::{Done, Failure, Op, Origin, Request, StoreQueue};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tornblk_model::event::Status;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A queue at work. Belongs to one thread at a time.
pub struct BlkQueue {
    device: Arc<Blk>,
    index: u16,
    store: Box<dyn StoreQueue>,
    /// Requests that the store has, by head: a driver gives a head only once until it is returned.
    submitted: Vec<Option<Submitted>>,
    in_flight: usize,
    complaints: Complaints,
}

/// A chain that the store works on. Becomes an [`Answer`] once.
struct Submitted {
    head: u16,
    position: u16,
    status: GuestAddress,
    /// Bytes that a success returns, without the status.
    returns: u32,
    /// The memory as it was when the chain was read: the status belongs there.
    mem: Arc<Memory>,
}

/// A chain to be returned to the driver.
struct Answer {
    head: u16,
    len: u32,
}

impl Submitted {
    fn finish(self, status: Status) -> Answer {
        let returned = if status == Status::Ok { self.returns } else { 0 };
        let written = write_status(&self.mem, self.status, status);
        Answer { head: self.head, len: returned + u32::from(written) }
    }
}

/// Says whether it could be written: the memory was checked when the chain was walked.
fn write_status(mem: &Memory, at: GuestAddress, status: Status) -> bool {
    let byte = match status {
        Status::Ok => VIRTIO_BLK_S_OK,
        Status::IoErr => VIRTIO_BLK_S_IOERR,
        Status::Unsupp => VIRTIO_BLK_S_UNSUPP,
    } as u8;
    mem.write_obj(byte, at).is_ok()
}

impl BlkQueue {
    pub(super) fn new(device: Arc<Blk>, index: u16) -> Self {
        let store = device.store.queue(index);
        BlkQueue {
            device,
            index,
            store,
            submitted: Vec::new(),
            in_flight: 0,
            complaints: Complaints::default(),
        }
    }

    /// Readable when [`BlkQueue::pump`] has something to do without a kick; cleared by reading 8
    /// bytes. The same for the life of the queue.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.store.wake_fd()
    }

    /// Requests taken from the guest and not returned to it.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes all there is (nothing, unless `take`), and returns what is done. Says whether the
    /// guest wants to be told.
    #[must_use]
    pub fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool {
        let mut used = 0;
        loop {
            if take && ring.disable_notification(&**mem).is_err() {
                break;
            }
            if take {
                used += self.take(ring, mem);
            }
            used += self.reap(ring, mem);
            // `true`: the driver added something before it could know that it has to kick.
            let more = take && ring.enable_notification(&**mem).unwrap_or(false);
            if !more || !self.may_take(ring, mem) {
                break;
            }
        }
        used > 0 && ring.needs_notification(&**mem).unwrap_or(true)
    }

    /// Ends everything that is in flight, and returns it. Says whether the guest wants to be told.
    #[must_use]
    pub fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        self.store.drain();
        let used = self.reap(ring, mem);
        used > 0 && ring.needs_notification(&**mem).unwrap_or(true)
    }

    /// False where taking is pointless: the ring makes no sense, or the driver gave out more heads
    /// than there are.
    fn may_take(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        if self.in_flight >= usize::from(ring.size()) {
            return false;
        }
        match ring.iter(&**mem) {
            Ok(_) => true,
            Err(error) => {
                self.complaints.say(format_args!("queue {}: {error}", self.index));
                false
            }
        }
    }

    fn take(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> usize {
        let mut used = 0;
        self.submitted.resize_with(usize::from(ring.max_size()), || None);
        while self.may_take(ring, mem) {
            let position = ring.next_avail();
            let head = ring.iter(&**mem).ok().and_then(|mut ring| Some(ring.next()?.head_index()));
            let Some(head) = head else { break };
            if let Some(answer) = self.begin(ring, mem, position, head) {
                used += self.give_back(ring, mem, answer);
            }
        }
        used
    }

    /// From a head to a request of the store's; to an answer where it does not come to that.
    fn begin(
        &mut self,
        ring: &Queue,
        mem: &Arc<Memory>,
        position: u16,
        head: u16,
    ) -> Option<Answer> {
        let table = GuestAddress(ring.desc_table());
        let limit = self.device.seg_max() as usize + 2;
        let chain = match chain::walk(mem, table, ring.size(), head, limit) {
            Ok(chain) => chain,
            Err(broken) => {
                self.complain(position, &broken.why);
                let written = broken.status.is_some_and(|at| write_status(mem, at, Status::IoErr));
                return Some(Answer { head, len: written.into() });
            }
        };
        let submitted =
            Submitted { head, position, status: chain.status, returns: 0, mem: mem.clone() };
        let slot = &mut self.submitted[usize::from(head)];
        if slot.is_some() {
            self.complain(position, &"its head is in use");
            return Some(submitted.finish(Status::IoErr));
        }
        let bounds =
            Bounds { capacity: self.device.disk.capacity, read_only: self.device.read_only };
        match parse(mem, &chain, bounds) {
            Err(refused) => {
                self.complain(position, &refused);
                Some(submitted.finish(refused.status()))
            }
            Ok(Parsed { work: Work::Id(mut buffers), returns, .. }) => {
                buffers.copy_from(0, &self.device.id());
                Some(Submitted { returns, ..submitted }.finish(Status::Ok))
            }
            Ok(Parsed { work: Work::Store { op, buffers }, returns, ioprio }) => {
                *slot = Some(Submitted { returns, ..submitted });
                self.in_flight += 1;
                let origin = Origin { queue: self.index, position, head, ioprio };
                self.store.submit(Request { origin, op, buffers });
                None
            }
        }
    }

    fn reap(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> usize {
        let mut used = 0;
        let BlkQueue { store, submitted, in_flight, complaints, index, .. } = self;
        store.reap(&mut |done| {
            let Done { request, result } = done;
            let Origin { position, head, .. } = request.origin;
            let known = submitted.get_mut(usize::from(head));
            let Some(chain) = known.and_then(|s| s.take_if(|s| s.position == position)) else {
                // A store that answers what it was not asked.
                log::error!("queue {index}: an answer for {position}, which is not in flight");
                return;
            };
            *in_flight -= 1;
            let status = match result {
                Ok(()) => Status::Ok,
                Err(failure) => {
                    if !matches!(failure, Failure::Injected) {
                        complaints.say(format_args!(
                            "queue {index}: {} failed: {failure}",
                            name(&request.op)
                        ));
                    }
                    Status::IoErr
                }
            };
            used += publish(ring, mem, &chain.finish(status), complaints);
        });
        used
    }

    fn give_back(&mut self, ring: &mut Queue, mem: &Arc<Memory>, answer: Answer) -> usize {
        publish(ring, mem, &answer, &mut self.complaints)
    }

    fn complain(&mut self, position: u16, why: &dyn fmt::Display) {
        let queue = self.index;
        self.complaints.say(format_args!("queue {queue}: request {position} is refused: {why}"));
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "a read",
        Op::Write { .. } => "a write",
        Op::Flush => "a flush",
        Op::Discard { .. } => "a discard",
        Op::WriteZeroes { .. } => "a write of zeroes",
    }
}

/// 1 where the chain is in the used ring now.
fn publish(ring: &mut Queue, mem: &Memory, answer: &Answer, complaints: &mut Complaints) -> usize {
    match ring.add_used(mem, answer.head, answer.len) {
        Ok(()) => 1,
        Err(error) => {
            complaints.say(format_args!("head {} cannot be returned: {error}", answer.head));
            0
        }
    }
}

impl fmt::Debug for BlkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkQueue")
            .field("index", &self.index)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

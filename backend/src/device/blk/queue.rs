//! One queue of the device: from chains to the store's requests, and from what became of them to
//! the status byte.

use super::Blk;
use super::request::{Bounds, Parsed, Work, parse};
use crate::complaints;
use crate::device::Memory;
use crate::device::queue::{Answer, Requests, Taken, Worker};
use crate::store::{Done, Failure, Origin, Request, StoreQueue};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tornblk_model::event::Status;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::{Bytes, GuestAddress};

/// A queue at work.
pub type BlkQueue = Worker<BlkRequests>;

/// The requests of one queue.
pub struct BlkRequests {
    device: Arc<Blk>,
    index: u16,
    store: Box<dyn StoreQueue>,
    /// Requests that the store has, by head: a driver gives a head only once until it is returned.
    submitted: Vec<Option<Submitted>>,
    in_flight: usize,
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

impl BlkRequests {
    pub(super) fn new(device: Arc<Blk>, index: u16) -> Self {
        let store = device.store.queue(index);
        BlkRequests { device, index, store, submitted: Vec::new(), in_flight: 0 }
    }

    fn complain(&mut self, position: u16, why: &dyn fmt::Display) {
        let queue = self.index;
        complaints::guest(format_args!("queue {queue}: request {position} is refused: {why}"));
    }
}

impl Requests for BlkRequests {
    fn limit(&self) -> usize {
        self.device.seg_max() as usize + 2
    }

    fn size(&mut self, heads: usize) {
        self.submitted.resize_with(heads, || None);
    }

    /// From a chain to a request of the store's; to an answer where it does not come to that.
    fn begin(&mut self, taken: Taken<'_>) -> Option<Answer> {
        let Taken { mem, position, head, chain, past, note } = taken;
        let mut chain = match chain {
            Ok(chain) => chain,
            Err(broken) => {
                self.complain(position, &broken.why);
                let written = broken.last.is_some_and(|at| write_status(mem, at, Status::IoErr));
                return Some(Answer { head, len: written.into() });
            }
        };
        // A well-formed chain has a writable byte.
        let Some(status) = chain.take_last() else { return Some(Answer { head, len: 0 }) };
        let submitted = Submitted { head, position, status, returns: 0, mem: mem.clone() };
        let slot = &mut self.submitted[usize::from(head)];
        if slot.is_some() {
            self.complain(position, &"its head is in use");
            return Some(submitted.finish(Status::IoErr));
        }
        let bounds = Bounds { capacity: self.device.capacity(), read_only: self.device.read_only };
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
                let pieces = Vec::new();
                self.store.submit(Request { origin, op, buffers, past, note, pieces });
                None
            }
        }
    }

    fn reap(&mut self, f: &mut dyn FnMut(Answer)) {
        let BlkRequests { store, submitted, in_flight, index, .. } = self;
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
                        complaints::guest(format_args!(
                            "queue {index}: {} failed: {failure}",
                            request.op.name()
                        ));
                    }
                    Status::IoErr
                }
            };
            f(chain.finish(status));
        });
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn drain(&mut self) {
        self.store.drain();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.store.wake_fd()
    }
}

impl fmt::Debug for BlkRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkRequests").field("index", &self.index).finish_non_exhaustive()
    }
}

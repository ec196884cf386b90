//! One queue of a device: takes chains from the available ring, gives them to whoever understands
//! them, and returns them through the used ring. The same for every device.

use super::chain::{self, Broken, Chain};
use super::{DeviceQueue, Memory};
use crate::complaints::Complaints;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

/// A chain as it comes from the available ring.
pub(crate) struct Taken<'a> {
    pub(crate) mem: &'a Arc<Memory>,
    /// Free-running position in the available ring.
    pub(crate) position: u16,
    pub(crate) head: u16,
    pub(crate) chain: Result<Chain, Broken>,
}

/// A chain to be returned to the driver, with the number of bytes that were written to it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: u16,
    pub(crate) len: u32,
}

/// What a device makes of the chains of one queue.
pub(crate) trait Requests: Send {
    /// Descriptors that a chain may have.
    fn limit(&self) -> usize;

    /// Heads that a ring may have.
    fn size(&mut self, heads: usize);

    /// Before all that is visible is taken: what came from elsewhere until now is about that, too.
    fn listen(&mut self) {}

    /// Takes a chain. An answer where it comes to one at once; else [`Requests::reap`] gives it.
    fn begin(&mut self, taken: Taken<'_>) -> Option<Answer>;

    /// Hands every chain that is done to `f`.
    fn reap(&mut self, f: &mut dyn FnMut(Answer));

    /// Chains that were taken and not answered.
    fn in_flight(&self) -> usize;

    /// Lets held requests go and ends the others, so that `reap` gives all there is.
    fn drain(&mut self);

    /// As of [`DeviceQueue::wake_fd`].
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A queue at work. Belongs to one thread at a time.
pub struct Worker<R> {
    index: u16,
    requests: R,
    complaints: Complaints,
}

#[allow(private_bounds)]
impl<R: Requests> Worker<R> {
    pub(crate) fn new(index: u16, requests: R) -> Self {
        Worker { index, requests, complaints: Complaints::default() }
    }

    /// See [`DeviceQueue::wake_fd`].
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.requests.wake_fd()
    }

    /// See [`DeviceQueue::in_flight`].
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// See [`DeviceQueue::pump`].
    #[must_use]
    pub fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool {
        let mut used = 0;
        loop {
            if take && ring.disable_notification(&**mem).is_err() {
                break;
            }
            self.requests.listen();
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

    /// See [`DeviceQueue::drain`].
    #[must_use]
    pub fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        self.requests.drain();
        let used = self.reap(ring, mem);
        used > 0 && ring.needs_notification(&**mem).unwrap_or(true)
    }

    /// False where taking is pointless: the ring makes no sense, or the driver gave out more heads
    /// than there are.
    fn may_take(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        if self.requests.in_flight() >= usize::from(ring.size()) {
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
        self.requests.size(usize::from(ring.max_size()));
        while self.may_take(ring, mem) {
            let position = ring.next_avail();
            let head = ring.iter(&**mem).ok().and_then(|mut ring| Some(ring.next()?.head_index()));
            let Some(head) = head else { break };
            let table = GuestAddress(ring.desc_table());
            let chain = chain::walk(mem, table, ring.size(), head, self.requests.limit());
            if let Some(answer) = self.requests.begin(Taken { mem, position, head, chain }) {
                used += publish(ring, mem, &answer, &mut self.complaints);
            }
        }
        used
    }

    fn reap(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> usize {
        let mut used = 0;
        let Worker { requests, complaints, .. } = self;
        requests.reap(&mut |answer| used += publish(ring, mem, &answer, complaints));
        used
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

impl<R: Requests> DeviceQueue for Worker<R> {
    fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool {
        Worker::pump(self, ring, mem, take)
    }

    fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        Worker::drain(self, ring, mem)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.requests.wake_fd()
    }

    fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }
}

impl<R: Requests> fmt::Debug for Worker<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index)
            .field("in_flight", &self.requests.in_flight())
            .finish_non_exhaustive()
    }
}

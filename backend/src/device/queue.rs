//! One queue of a device: takes chains from the available ring, gives them to whoever understands
//! them, and returns them through the used ring. The same for every device.

use super::chain::{self, Broken, Chain};
use super::ledger::{Came, Ledger, Left};
use super::{DeviceQueue, Memory, Polled};
use crate::complaints;
use crate::store::{Moves, Note, Past};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

/// Chains that are taken before what is done is returned and told: a driver on another processor works
/// on those while the next are done.
const BATCH: usize = 4;

/// A chain as it comes from the available ring.
pub(crate) struct Taken<'a> {
    pub(crate) mem: &'a Arc<Memory>,
    /// Free-running position in the available ring.
    pub(crate) position: u16,
    pub(crate) head: u16,
    pub(crate) chain: Result<Chain, Broken>,
    /// For the store.
    pub(crate) past: Past,
    pub(crate) note: Note,
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

    /// As [`Requests::drain`], where what cannot be ended well may stay: it comes again.
    fn leave(&mut self) {
        self.drain();
    }

    /// As of [`DeviceQueue::wake_fd`].
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A queue at work. Belongs to one thread at a time.
pub struct Worker<R> {
    index: u16,
    requests: R,
    ring: Returns,
}

/// The way back to the driver.
#[derive(Default)]
struct Returns {
    ledger: Option<Box<dyn Ledger>>,
    moves: Option<Arc<dyn Moves>>,
    /// Chains that were returned, and the driver was not told of yet.
    untold: usize,
}

#[allow(private_bounds)]
impl<R: Requests> Worker<R> {
    pub(crate) fn new(index: u16, requests: R) -> Self {
        Worker { index, requests, ring: Returns::default() }
    }

    /// See [`DeviceQueue::wake_fd`].
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.requests.wake_fd()
    }

    /// See [`DeviceQueue::in_flight`].
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// See [`DeviceQueue::resume`].
    pub fn resume(
        &mut self,
        mut ledger: Box<dyn Ledger>,
        ring: &mut Queue,
        mem: &Arc<Memory>,
    ) -> usize {
        let indexes = ring.used_idx(&**mem, Ordering::Acquire).and_then(|used| {
            let available = ring.avail_idx(&**mem, Ordering::Acquire)?;
            Ok((used.0, available.0.wrapping_sub(used.0)))
        });
        let (used, offered) = match indexes {
            Ok(indexes) => indexes,
            Err(error) => {
                complaints::guest(format_args!("queue {}: {error}", self.index));
                return 0;
            }
        };
        let left = ledger.left(used);
        self.ring.moves = Some(ledger.moves());
        self.requests.size(usize::from(ring.max_size()));
        ring.set_next_used(used);
        if left.len() > usize::from(offered) || offered > ring.size() {
            // Not this ring's notes, or no ring that makes sense: what is noted is nobody's.
            complaints::guest(format_args!(
                "queue {}: {} requests are noted as in flight, and the driver has {offered}: none \
                 is taken again",
                self.index,
                left.len()
            ));
            ledger.forget();
            self.ring.ledger = Some(ledger);
            return 0;
        }
        if !left.is_empty() {
            complaints::guest_did(format_args!(
                "queue {}: {} requests were in flight: taken again",
                self.index,
                left.len()
            ));
        }
        // All that was taken is either returned or noted. As many as there are offered: fits.
        ring.set_next_avail(used.wrapping_add(left.len() as u16));
        self.ring.ledger = Some(ledger);
        let again = left.len();
        for Left { head, position, came } in left {
            match came {
                Came::Answered(len) => self.ring.publish(ring, mem, &Answer { head, len }, true),
                Came::Begun(past) => self.begin(ring, mem, (position, head), past, true),
            }
        }
        again
    }

    /// See [`DeviceQueue::pump`].
    #[must_use]
    pub fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool {
        loop {
            if take && ring.disable_notification(&**mem).is_err() {
                break;
            }
            self.requests.listen();
            if take {
                self.take(ring, mem, usize::MAX);
            }
            self.reap(ring, mem);
            // `true`: the driver added something before it could know that it has to kick.
            let more = take && ring.enable_notification(&**mem).unwrap_or(false);
            if !more || !self.may_take(ring, mem) {
                break;
            }
        }
        self.ring.tell(ring, mem)
    }

    /// See [`DeviceQueue::poll`].
    pub fn poll(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> Polled {
        let before = (ring.next_avail(), ring.next_used());
        if ring.disable_notification(&**mem).is_ok() {
            self.requests.listen();
            self.take(ring, mem, BATCH);
            self.reap(ring, mem);
        }
        let moved = before != (ring.next_avail(), ring.next_used());
        Polled { tell: self.ring.tell(ring, mem), moved }
    }

    /// See [`DeviceQueue::drain`].
    #[must_use]
    pub fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        self.requests.drain();
        self.reap(ring, mem);
        self.ring.tell(ring, mem)
    }

    /// See [`DeviceQueue::abandon`].
    pub fn abandon(&mut self) {
        let Some(ledger) = &mut self.ring.ledger else { return };
        self.requests.leave();
        self.requests.reap(&mut |answer| {
            if ledger.sound() {
                ledger.answered(answer.head, answer.len);
            }
        });
    }

    /// False where taking is pointless: the ring makes no sense, or the driver gave out more heads
    /// than there are.
    fn may_take(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        if self.requests.in_flight() >= usize::from(ring.size()) || !self.ring.sound() {
            return false;
        }
        match ring.iter(&**mem) {
            Ok(_) => true,
            Err(error) => {
                complaints::guest(format_args!("queue {}: {error}", self.index));
                false
            }
        }
    }

    fn take(&mut self, ring: &mut Queue, mem: &Arc<Memory>, most: usize) {
        self.requests.size(usize::from(ring.max_size()));
        for _ in 0..most {
            if !self.may_take(ring, mem) {
                break;
            }
            let position = ring.next_avail();
            let head = ring.iter(&**mem).ok().and_then(|mut ring| Some(ring.next()?.head_index()));
            let Some(head) = head else { break };
            // A head that is in flight already, or that the table does not have, is refused.
            let noted = self.ring.ledger.as_mut().is_some_and(|l| l.take(head, position));
            self.begin(ring, mem, (position, head), Past::New, noted);
        }
    }

    fn begin(
        &mut self,
        ring: &mut Queue,
        mem: &Arc<Memory>,
        (position, head): (u16, u16),
        past: Past,
        noted: bool,
    ) {
        let table = GuestAddress(ring.desc_table());
        let chain = chain::walk(mem, table, ring.size(), head, self.requests.limit());
        let note = match &self.ring.moves {
            Some(moves) if noted => Note::new(Arc::clone(moves), head),
            _ => Note::default(),
        };
        let taken = Taken { mem, position, head, chain, past, note };
        if let Some(answer) = self.requests.begin(taken) {
            self.ring.publish(ring, mem, &answer, noted);
        }
    }

    fn reap(&mut self, ring: &mut Queue, mem: &Arc<Memory>) {
        let Worker { requests, ring: returns, .. } = self;
        // Whatever the store had was noted when it was taken: see `begin`.
        requests.reap(&mut |answer| returns.publish(ring, mem, &answer, true));
    }
}

impl Returns {
    /// Puts a chain into the used ring, and strikes it out if it was `noted`.
    fn publish(&mut self, ring: &mut Queue, mem: &Memory, answer: &Answer, noted: bool) {
        if !self.sound() {
            return;
        }
        let Answer { head, len } = *answer;
        let known = noted.then_some(head);
        if let Some(ledger) = &mut self.ledger {
            if noted {
                ledger.answered(head, len);
            }
            ledger.returning(known);
        }
        if let Err(error) = ring.add_used(mem, head, len) {
            complaints::guest(format_args!("head {head} cannot be returned: {error}"));
            return;
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.returned(known, ring.next_used());
        }
        self.untold += 1;
    }

    fn sound(&self) -> bool {
        self.ledger.as_ref().is_none_or(|ledger| ledger.sound())
    }

    /// Does the driver want to be told of what was returned?
    fn tell(&mut self, ring: &mut Queue, mem: &Memory) -> bool {
        std::mem::take(&mut self.untold) > 0 && ring.needs_notification(mem).unwrap_or(true)
    }
}

impl<R: Requests> DeviceQueue for Worker<R> {
    fn resume(&mut self, ledger: Box<dyn Ledger>, ring: &mut Queue, mem: &Arc<Memory>) -> usize {
        Worker::resume(self, ledger, ring, mem)
    }

    fn pump(&mut self, ring: &mut Queue, mem: &Arc<Memory>, take: bool) -> bool {
        Worker::pump(self, ring, mem, take)
    }

    fn poll(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> Polled {
        Worker::poll(self, ring, mem)
    }

    fn drain(&mut self, ring: &mut Queue, mem: &Arc<Memory>) -> bool {
        Worker::drain(self, ring, mem)
    }

    fn abandon(&mut self) {
        Worker::abandon(self);
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

//! A request queue: from chains to commands, to the store's requests, and to responses.

use super::command::{Asked, Moved, Work, fits, understand};
use super::sense::{Refused, Sense};
use super::tasks::{Inbox, Open, Order, What, Which};
use super::wire::{Address, Command, REQUEST_BYTES, RESPONSE_BYTES, Response};
use super::{FRONT_END_SEG_MAX, Scsi};
use crate::complaints;
use crate::device::Memory;
use crate::device::chain::{Broken, Chain};
use crate::device::queue::{Answer, Requests, Taken, Worker};
use crate::device::spans::{Spans, fill, gather, split, total};
use crate::store::{Buffers, Done, Failure, Note, Op, Origin, Past, Request, StoreQueue};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use virtio_bindings::virtio_scsi::{
    VIRTIO_SCSI_S_BAD_TARGET, VIRTIO_SCSI_S_FAILURE, VIRTIO_SCSI_S_OVERRUN,
};

/// A request queue at work.
pub type ScsiQueue = Worker<ScsiRequests>;

/// The commands of one request queue.
pub struct ScsiRequests {
    device: Arc<Scsi>,
    index: u16,
    store: Box<dyn StoreQueue>,
    inbox: Arc<Inbox>,
    /// What the control queue had ordered when chains were last taken: about them, too. What it
    /// orders later may be about commands that are not taken yet.
    orders: Vec<Order>,
    /// Commands that the store has, by head.
    submitted: Vec<Option<Submitted>>,
    in_flight: usize,
}

/// Where a command is answered. Becomes an [`Answer`] once.
struct Place {
    head: u16,
    response: Spans,
    /// Bytes of the data buffers, in the one direction that they have.
    room: u64,
    /// The memory as it was when the chain was read: the response belongs there.
    mem: Arc<Memory>,
}

/// A command that the store works on.
struct Submitted {
    place: Place,
    position: u16,
    /// Number of the logical unit.
    unit: usize,
    tag: u64,
    moved: Moved,
    /// Functions that wait for it.
    awaited: Vec<Open>,
    /// It switched the write cache off: on again if it fails.
    cache_off: bool,
}

impl Place {
    fn finish(self, response: Response, given: u64) -> Answer {
        let written = fill(&self.mem, &self.response, &response.bytes()).unwrap_or(0);
        // A chain is below 4 GiB.
        Answer { head: self.head, len: written as u32 + given as u32 }
    }

    fn refuse(self, service: u32) -> Answer {
        let residual = self.room;
        self.finish(Response::service(service, residual), 0)
    }

    fn check(self, sense: Sense) -> Answer {
        let residual = self.room;
        self.finish(Response::check(sense, residual), 0)
    }

    fn good(self, moved: Moved) -> Answer {
        let residual = self.room.saturating_sub(moved.taken + moved.given);
        self.finish(Response::good(residual), moved.given)
    }
}

impl ScsiRequests {
    pub(super) fn new(device: Arc<Scsi>, index: u16) -> Self {
        let store = device.store.queue(index);
        let inbox = device.tasks.inbox(store.wake_fd());
        ScsiRequests {
            device,
            index,
            store,
            inbox,
            orders: Vec::new(),
            submitted: Vec::new(),
            in_flight: 0,
        }
    }

    fn complain(&mut self, position: u16, why: &dyn fmt::Display) {
        let queue = self.index;
        complaints::guest(format_args!("queue {queue}: request {position} is refused: {why}"));
    }

    /// A chain in which no command can be found: a response where there is a place for it.
    fn broken(&mut self, from: Spot<'_>, broken: &Broken) -> Answer {
        self.complain(from.position, &broken.why);
        let (mem, head) = (from.mem.clone(), from.head);
        match split(&broken.writable, RESPONSE_BYTES as u64) {
            Some((response, _)) => {
                Place { head, response, room: 0, mem }.refuse(VIRTIO_SCSI_S_FAILURE)
            }
            None => Answer { head, len: 0 },
        }
    }

    /// A command, its answer's place and its data buffers.
    fn open(&mut self, from: Spot<'_>, chain: &Chain) -> Result<Opened, Answer> {
        let (head, mem) = (from.head, from.mem);
        let Some((response, data_in)) = split(&chain.writable, RESPONSE_BYTES as u64) else {
            self.complain(from.position, &"it has no room for a response");
            return Err(Answer { head, len: 0 });
        };
        let mut place = Place { head, response, room: 0, mem: mem.clone() };
        let Some((header, data_out)) = split(&chain.readable, REQUEST_BYTES as u64) else {
            self.complain(from.position, &"it is shorter than a request's header");
            return Err(place.refuse(VIRTIO_SCSI_S_FAILURE));
        };
        if !data_in.is_empty() && !data_out.is_empty() {
            // VIRTIO_SCSI_F_INOUT is not offered.
            self.complain(from.position, &"it has data buffers in both directions");
            return Err(place.refuse(VIRTIO_SCSI_S_FAILURE));
        }
        place.room = total(&data_in) + total(&data_out);
        let Ok(header) = gather(mem, &header) else {
            return Err(place.refuse(VIRTIO_SCSI_S_FAILURE));
        };
        Ok(Opened { place, command: Command::read(&header), data_in, data_out })
    }

    fn run(&mut self, from: Spot<'_>, opened: Opened) -> Option<Answer> {
        let Opened { place, command, data_in, data_out } = opened;
        if command.to == Address::NoTarget {
            // What a driver meets when it looks for disks: no complaint.
            return Some(place.refuse(VIRTIO_SCSI_S_BAD_TARGET));
        }
        let asked = Asked {
            to: command.to,
            cdb: &command.cdb,
            mem: from.mem,
            data_out: &data_out,
            data_in: &data_in,
        };
        match understand(&self.device, &asked) {
            Ok(Work::Tell(data)) => {
                let moved = Moved { given: data.len() as u64, taken: 0 };
                if !fits(&asked, moved) {
                    return Some(place.refuse(VIRTIO_SCSI_S_OVERRUN));
                }
                match fill(from.mem, &data_in, &data) {
                    Ok(_) => Some(place.good(moved)),
                    Err(_) => Some(place.refuse(VIRTIO_SCSI_S_FAILURE)),
                }
            }
            Ok(Work::Done { taken }) => Some(place.good(Moved { taken, given: 0 })),
            Ok(Work::Store { op, buffers, pieces, moved }) => {
                self.submit(from, (place, &command), (op, buffers, pieces), moved, false);
                None
            }
            Ok(Work::WriteThrough { flush, was_on, taken }) => {
                let flush = (flush, Buffers::empty(), Vec::new());
                let moved = Moved { taken, given: 0 };
                self.submit(from, (place, &command), flush, moved, was_on);
                None
            }
            Err(Refused::Check(sense, why)) => {
                if let Some(why) = why {
                    complaints::guest(format_args!("queue {}: {why}", self.index));
                }
                Some(place.check(sense))
            }
            Err(Refused::Overrun) => {
                self.complain(from.position, &"its buffers are shorter than its transfer");
                Some(place.refuse(VIRTIO_SCSI_S_OVERRUN))
            }
            Err(Refused::Memory) => Some(place.refuse(VIRTIO_SCSI_S_FAILURE)),
        }
    }

    fn submit(
        &mut self,
        from: Spot<'_>,
        (place, command): (Place, &Command),
        (op, buffers, pieces): (Op, Buffers, Vec<u64>),
        moved: Moved,
        cache_off: bool,
    ) {
        let (position, head) = (from.position, place.head);
        // Nobody else has anything for the store.
        let unit = self.device.number_of(command.to).unwrap_or_default();
        let tag = command.tag;
        self.submitted[usize::from(head)] =
            Some(Submitted { place, position, unit, tag, moved, awaited: Vec::new(), cache_off });
        self.in_flight += 1;
        // The command's own priority is no I/O priority of Linux.
        let origin = Origin { queue: self.index, position, head, ioprio: 0 };
        let (past, note) = (from.past, from.note.clone());
        self.store.submit(Request { origin, op, buffers, past, note, pieces });
    }

    /// Does what the control queue ordered.
    fn obey(&mut self) {
        for order in std::mem::take(&mut self.orders) {
            let (What::Find(which) | What::Wait(which) | What::End(which)) = order.what;
            let tasks = self.submitted.iter_mut().flatten().filter(|task| task.is(which));
            let mut found = 0;
            for task in tasks {
                found += 1;
                match order.what {
                    What::Find(_) => order.open.found(),
                    What::Wait(_) | What::End(_) => task.awaited.push(order.open.clone()),
                }
            }
            if matches!(order.what, What::End(_)) && found > 0 {
                complaints::guest_did(format_args!(
                    "queue {}: {found} requests in flight end now: the driver resets the logical unit",
                    self.index
                ));
                // Those of other logical units come to their own ends, a little early.
                self.store.drain();
            }
        }
    }
}

/// Where a chain came from.
#[derive(Clone, Copy)]
struct Spot<'a> {
    mem: &'a Arc<Memory>,
    position: u16,
    head: u16,
    past: Past,
    note: &'a Note,
}

/// A chain, taken apart.
struct Opened {
    place: Place,
    command: Command,
    data_in: Spans,
    data_out: Spans,
}

impl Submitted {
    fn is(&self, which: Which) -> bool {
        which.unit.is_none_or(|unit| unit == self.unit)
            && which.tag.is_none_or(|tag| tag == self.tag)
    }

    /// Its request ended: an answer, and the functions that wait until it is published.
    fn end(self, failed: Option<Sense>) -> (Answer, Vec<Open>) {
        let answer = match failed {
            None => self.place.good(self.moved),
            Some(sense) => self.place.check(sense),
        };
        (answer, self.awaited)
    }
}

/// What a failure of the store is to the driver.
fn sense_of(op: &Op, failure: &Failure) -> Sense {
    match (failure, op) {
        (Failure::ReadOnly, _) => Sense::WRITE_PROTECTED,
        (_, Op::Read { .. }) => Sense::READ_ERROR,
        _ => Sense::WRITE_ERROR,
    }
}

impl Requests for ScsiRequests {
    fn limit(&self) -> usize {
        // What the front-end shows may be more than what the device says; header and response are
        // beside it.
        self.device.seg_max().max(FRONT_END_SEG_MAX) as usize + 2
    }

    fn size(&mut self, heads: usize) {
        self.submitted.resize_with(heads, || None);
    }

    fn listen(&mut self) {
        self.inbox.take(&mut self.orders);
    }

    fn begin(&mut self, taken: Taken<'_>) -> Option<Answer> {
        let Taken { mem, position, head, chain, past, note } = taken;
        let from = Spot { mem, position, head, past, note: &note };
        let chain = match chain {
            Ok(chain) => chain,
            Err(broken) => return Some(self.broken(from, &broken)),
        };
        let opened = match self.open(from, &chain) {
            Ok(opened) => opened,
            Err(answer) => return Some(answer),
        };
        if self.submitted[usize::from(head)].is_some() {
            self.complain(position, &"its head is in use");
            return Some(opened.place.refuse(VIRTIO_SCSI_S_FAILURE));
        }
        self.run(from, opened)
    }

    fn reap(&mut self, f: &mut dyn FnMut(Answer)) {
        if !self.orders.is_empty() {
            self.obey();
        }
        let ScsiRequests { device, store, submitted, in_flight, index, .. } = self;
        store.reap(&mut |done| {
            let Done { request: Request { origin, op, .. }, result } = done;
            let Origin { position, head, .. } = origin;
            let known = submitted.get_mut(usize::from(head));
            let Some(task) = known.and_then(|s| s.take_if(|s| s.position == position)) else {
                // A store that answers what it was not asked.
                log::error!("queue {index}: an answer for {position}, which is not in flight");
                return;
            };
            let failed = result.err().map(|failure| {
                if !matches!(failure, Failure::Injected) {
                    complaints::guest(format_args!(
                        "queue {index}: {} failed: {failure}",
                        op.name()
                    ));
                }
                sense_of(&op, &failure)
            });
            if failed.is_some() && task.cache_off {
                complaints::guest(format_args!(
                    "the write cache could not be written out: it stays on"
                ));
                device.set_wce(true);
            }
            let (answer, awaited) = task.end(failed);
            *in_flight -= 1;
            f(answer);
            drop(awaited);
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

impl fmt::Debug for ScsiRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScsiRequests").field("index", &self.index).finish_non_exhaustive()
    }
}

//! The control queue (VIRTIO 1.2, 5.6.6.2): task management and asynchronous notification.
//!
//! What a task management function means here (SAM-5, 7): the store has every command that the
//! disk took, and a command that was given to it cannot be taken back. So none is ever aborted
//! halfway; each has its own answer before the function that was to end it.
//!
//! | function | what happens before it is answered |
//! | --- | --- |
//! | ABORT TASK, ABORT TASK SET, CLEAR TASK SET | the commands in question are answered; a stall holds the function with them |
//! | LOGICAL UNIT RESET, I_T NEXUS RESET | what is held is let go, the commands in question are answered, a unit attention is set; the write cache stays as it was switched |
//! | QUERY TASK, QUERY TASK SET | says whether there is such a command |
//! | CLEAR ACA | rejected: there is no ACA (NORMACA is 0) |
//!
//! A function is about the commands of its logical unit; I_T NEXUS RESET about all. Where commands of
//! one unit are let go, so are those of the others on the same queue, each to its own answer. There is one
//! driver, so each unit has one task set. After a power cut a function that has
//! something to wait for is never answered, as nothing is.
//!
//! No asynchronous event is ever reported: a query or subscription is answered with that.

use super::Scsi;
use super::sense::Sense;
use super::tasks::{self, Function, What, Which};
use super::wire::{AN_BYTES, Address, TMF_BYTES, array};
use crate::complaints;
use crate::device::Memory;
use crate::device::queue::{Answer, Requests, Taken, Worker};
use crate::device::spans::{Spans, fill, gather, split};
use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use virtio_bindings::virtio_scsi::{
    VIRTIO_SCSI_S_BAD_TARGET, VIRTIO_SCSI_S_FAILURE, VIRTIO_SCSI_S_FUNCTION_REJECTED,
    VIRTIO_SCSI_S_FUNCTION_SUCCEEDED, VIRTIO_SCSI_S_INCORRECT_LUN, VIRTIO_SCSI_S_OK,
    VIRTIO_SCSI_T_AN_QUERY, VIRTIO_SCSI_T_AN_SUBSCRIBE, VIRTIO_SCSI_T_TMF,
    VIRTIO_SCSI_T_TMF_ABORT_TASK, VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
    VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
    VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, VIRTIO_SCSI_T_TMF_QUERY_TASK,
    VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, virtio_scsi_ctrl_an_req, virtio_scsi_ctrl_tmf_req,
};

/// VIRTIO_SCSI_S_FUNCTION_COMPLETE: 0 as VIRTIO_SCSI_S_OK.
const COMPLETE: u32 = VIRTIO_SCSI_S_OK;
/// Bytes of the response: `event_actual` and `response` of a notification, `response` of a TMF.
const AN_RESPONSE: u64 = 5;
const TMF_RESPONSE: u64 = 1;

/// The control queue at work.
pub type ControlQueue = Worker<ControlRequests>;

/// What came through the control queue.
pub struct ControlRequests {
    device: Arc<Scsi>,
    index: u16,
    /// `None` where none could be made: then no function can be carried out.
    bell: Option<Arc<OwnedFd>>,
    pending: Vec<Pending>,
    /// The queue stops: nothing is waited for any more.
    ending: bool,
}

/// A task management function, until it is answered.
struct Pending {
    place: Place,
    function: Arc<Function>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Abort,
    Query,
    /// Of this logical unit, or of all.
    Reset(Option<usize>, Sense),
}

/// Where the one byte goes that answers.
struct Place {
    head: u16,
    response: Spans,
    mem: Arc<Memory>,
}

impl Place {
    fn finish(self, response: u32) -> Answer {
        // All responses are below 256.
        let written = fill(&self.mem, &self.response, &[response as u8]).unwrap_or(0);
        Answer { head: self.head, len: written as u32 }
    }
}

impl ControlRequests {
    pub(super) fn new(device: Arc<Scsi>, index: u16) -> Self {
        let bell = match tasks::bell() {
            Ok(bell) => Some(bell),
            Err(error) => {
                log::error!("no task management: {error}");
                None
            }
        };
        ControlRequests { device, index, bell, pending: Vec::new(), ending: false }
    }

    fn complain(&mut self, position: u16, why: &dyn fmt::Display) {
        let queue = self.index;
        complaints::guest(format_args!("queue {queue}: request {position} is refused: {why}"));
    }

    fn notification(&mut self, taken: &Taken<'_>, readable: &Spans, writable: &Spans) -> Answer {
        let (head, mem) = (taken.head, taken.mem);
        let (Some((request, _)), Some((response, _))) =
            (split(readable, AN_BYTES as u64), split(writable, AN_RESPONSE))
        else {
            self.complain(taken.position, &"it is too short for a notification request");
            return Answer { head, len: 0 };
        };
        let Ok(request) = gather::<AN_BYTES>(mem, &request) else { return Answer { head, len: 0 } };
        let answer = match self.address(&request, offset_of!(virtio_scsi_ctrl_an_req, lun)) {
            Ok(_) => COMPLETE,
            Err(wrong) => wrong,
        };
        let written = fill(mem, &response, &[0, 0, 0, 0, answer as u8]).unwrap_or(0);
        Answer { head, len: written as u32 }
    }

    fn manage(&mut self, taken: &Taken<'_>, readable: &Spans, writable: &Spans) -> Option<Answer> {
        let (head, mem) = (taken.head, taken.mem);
        let (Some((request, _)), Some((response, _))) =
            (split(readable, TMF_BYTES as u64), split(writable, TMF_RESPONSE))
        else {
            self.complain(taken.position, &"it is too short for a task management function");
            return Some(Answer { head, len: 0 });
        };
        let place = Place { head, response, mem: mem.clone() };
        let Ok(request) = gather::<TMF_BYTES>(mem, &request) else {
            return Some(place.finish(VIRTIO_SCSI_S_FAILURE));
        };
        let unit = match self.address(&request, offset_of!(virtio_scsi_ctrl_tmf_req, lun)) {
            Ok(unit) => unit,
            Err(wrong) => return Some(place.finish(wrong)),
        };
        let tag = u64::from_le_bytes(array(&request, offset_of!(virtio_scsi_ctrl_tmf_req, tag)));
        let subtype =
            u32::from_le_bytes(array(&request, offset_of!(virtio_scsi_ctrl_tmf_req, subtype)));
        let (all, one) = (Which { unit, tag: None }, Which { unit, tag: Some(tag) });
        let (kind, what) = match subtype {
            VIRTIO_SCSI_T_TMF_ABORT_TASK => (Kind::Abort, What::Wait(one)),
            VIRTIO_SCSI_T_TMF_ABORT_TASK_SET | VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET => {
                (Kind::Abort, What::Wait(all))
            }
            VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET => {
                (Kind::Reset(unit, Sense::WAS_RESET), What::End(all))
            }
            VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET => {
                (Kind::Reset(None, Sense::NEXUS_LOST), What::End(Which::default()))
            }
            VIRTIO_SCSI_T_TMF_QUERY_TASK => (Kind::Query, What::Find(one)),
            VIRTIO_SCSI_T_TMF_QUERY_TASK_SET => (Kind::Query, What::Find(all)),
            // CLEAR ACA, and what no standard knows.
            _ => return Some(place.finish(VIRTIO_SCSI_S_FUNCTION_REJECTED)),
        };
        let Some(bell) = &self.bell else {
            return Some(place.finish(VIRTIO_SCSI_S_FAILURE));
        };
        let function = Function::begin(&self.device.tasks, what, bell);
        self.pending.push(Pending { place, function, kind });
        None
    }

    /// Which logical unit is meant; the well-known one stands for all.
    fn address(&self, request: &[u8], at: usize) -> Result<Option<usize>, u32> {
        match Address::of(array(request, at)) {
            Address::ReportLuns => Ok(None),
            Address::NoTarget => Err(VIRTIO_SCSI_S_BAD_TARGET),
            to => self.device.number_of(to).map(Some).ok_or(VIRTIO_SCSI_S_INCORRECT_LUN),
        }
    }
}

impl Requests for ControlRequests {
    fn limit(&self) -> usize {
        self.device.queue_size.into()
    }

    fn size(&mut self, _heads: usize) {}

    fn begin(&mut self, taken: Taken<'_>) -> Option<Answer> {
        let head = taken.head;
        let (readable, writable) = match &taken.chain {
            Ok(chain) => (chain.readable.clone(), chain.writable.clone()),
            Err(broken) => {
                let why = broken.why;
                self.complain(taken.position, &why);
                return Some(Answer { head, len: 0 });
            }
        };
        if self.pending.iter().any(|pending| pending.place.head == head) {
            self.complain(taken.position, &"its head is in use");
            return Some(Answer { head, len: 0 });
        }
        let kind = split(&readable, 4).and_then(|(kind, _)| gather::<4>(taken.mem, &kind).ok());
        match kind.map(u32::from_le_bytes) {
            Some(VIRTIO_SCSI_T_TMF) => self.manage(&taken, &readable, &writable),
            Some(VIRTIO_SCSI_T_AN_QUERY | VIRTIO_SCSI_T_AN_SUBSCRIBE) => {
                Some(self.notification(&taken, &readable, &writable))
            }
            Some(kind) => {
                self.complain(taken.position, &format_args!("its type {kind} is not known"));
                Some(Answer { head, len: 0 })
            }
            None => {
                self.complain(taken.position, &"it has no type");
                Some(Answer { head, len: 0 })
            }
        }
    }

    fn reap(&mut self, f: &mut dyn FnMut(Answer)) {
        let device = &self.device;
        for mut pending in std::mem::take(&mut self.pending) {
            let Some(found) = pending.function.over() else {
                if self.ending {
                    complaints::guest_did(format_args!(
                        "queue {}: a task management function is given up",
                        self.index
                    ));
                    f(pending.place.finish(VIRTIO_SCSI_S_FAILURE));
                } else {
                    self.pending.push(pending);
                }
                continue;
            };
            let response = match pending.kind {
                Kind::Query if found => VIRTIO_SCSI_S_FUNCTION_SUCCEEDED,
                Kind::Query | Kind::Abort => COMPLETE,
                Kind::Reset(unit, attention) => {
                    device.attend(unit, attention);
                    COMPLETE
                }
            };
            f(pending.place.finish(response));
        }
        self.ending = false;
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// What a function waits for may be on queues that stop later: it fails.
    fn drain(&mut self) {
        self.ending = true;
    }

    /// A function that is asked for again begins again.
    fn leave(&mut self) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }
}

impl fmt::Debug for ControlRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlRequests").field("index", &self.index).finish_non_exhaustive()
    }
}

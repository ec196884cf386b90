//! What can happen on a recorded device.
//!
//! Every event has a [`Seq`], its place in the device's one total order. The order of work of a
//! recording device is part of the meaning:
//!
//! 1. the payload of a write is copied out of the guest's memory;
//! 2. [`Event::Submit`] is recorded;
//! 3. the I/O happens;
//! 4. the available index of *every* queue is read, and [`Event::Visible`] is recorded where one
//!    moved: what lies below it was submitted by then, whenever the device parses it;
//! 5. [`Event::Complete`] is recorded, and only then
//! 6. the used ring is published to the guest.
//!
//! Step 4 is what keeps a missing wait in a guest visible: a FLUSH that the driver queued before
//! the write completed was submitted before it completed, even if the device looked later.
//!
//! Offsets and lengths are bytes, and multiples of 512 as VIRTIO requires, whatever the logical
//! block size is.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a VIRTIO sector (VIRTIO 1.2, 5.2: "sector" is 512 bytes whatever `blk_size` says).
pub const SECTOR: u64 = 512;

/// An event's place in the total order: its slot number in the recording. Rises from event to
/// event, but for [`Event::Visible`]: what became visible until a request ended is recorded with
/// its [`Event::Complete`], comes before it, and has the same `Seq`. So have the two ends of a
/// request that was submitted and completed at one moment, as those of an imported log are: no
/// crash point lies between them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The available index of `queue` was seen to be `index` (free-running 16 bit, VIRTIO 2.7.6).
    /// Every request of that queue at a position below `index` was submitted by now.
    Visible { queue: u16, index: u16 },
    /// The device took a request from an available ring.
    Submit(Submit),
    /// A request ended; `request` is the `Seq` of its [`Event::Submit`].
    Complete { request: Seq, status: Status },
    /// Somebody named this moment.
    Mark(Mark),
    /// The driver wrote `writeback` in the configuration space (VIRTIO_BLK_F_CONFIG_WCE).
    SetWriteback { on: bool },
    /// Feature negotiation ended. Also the beginning of a recording.
    Negotiate(Negotiation),
    /// Requests in flight ended without an answer. Makes nothing stable, and is no power loss.
    Reset { cause: ResetCause, queue: Option<u16> },
}

/// A request as the device parsed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    pub queue: u16,
    /// Free-running 16 bit position in the available ring: compare with [`Event::Visible`].
    pub position: u16,
    /// Head descriptor of the chain.
    pub head: u16,
    /// `virtio_blk_outhdr.ioprio` as the driver sent it.
    pub ioprio: u16,
    pub op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Read {
        offset: u64,
        len: u64,
    },
    /// `payload` holds the whole logical blocks that `offset..offset + len` touches: where the
    /// request covers only part of a block, the device read the rest before (read-modify-write).
    Write {
        offset: u64,
        len: u64,
        /// Stable when complete (SCSI FUA).
        fua: bool,
        /// Sent as atomic (SCSI WRITE ATOMIC(16)); virtio-blk cannot say so.
        atomic: bool,
        payload: Payload,
    },
    /// Of the bytes `offset..offset + len`, where several disks share one recording; `len` 0: of
    /// everything, as every flush of a disk that is alone.
    Flush {
        offset: u64,
        len: u64,
    },
    Discard {
        segments: Vec<Segment>,
    },
    /// `unmap` in each segment is VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: it changes nothing about
    /// what is read back.
    WriteZeroes {
        segments: Vec<Segment>,
    },
}

impl Op {
    /// A flush of everything.
    pub const FLUSH: Op = Op::Flush { offset: 0, len: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub offset: u64,
    pub len: u64,
    pub unmap: bool,
}

/// Where the recording keeps the data of a write: opaque to the crash model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payload {
    /// Byte position in the recording file; 0 = not kept (a trace without data).
    pub position: u64,
    /// crc32c over the recording's own copy.
    pub crc: u32,
}

/// VIRTIO 5.2.6 `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    IoErr,
    Unsupp,
}

/// What was agreed about caching: decides when a completed write is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Negotiation {
    /// VIRTIO_BLK_F_FLUSH was offered.
    pub flush_offered: bool,
    /// VIRTIO_BLK_F_FLUSH was accepted.
    pub flush: bool,
    /// VIRTIO_BLK_F_CONFIG_WCE was accepted.
    pub config_wce: bool,
    /// `writeback` at this moment; means something only with `config_wce`.
    pub writeback: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// At most 4,000 bytes, any text.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetCause {
    /// The driver reset the device.
    Device,
    /// One queue was stopped (`GET_VRING_BASE`).
    QueueStop,
    /// The front-end went away or came back.
    Reconnect,
    /// The device itself was started again.
    Restart,
    /// The power was cut: what follows happened on a crash state and is not part of this order.
    PowerCut,
}

/// The disk that a recording is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes; a multiple of `lb_size`.
    pub capacity: u64,
    /// Logical block size in bytes: never torn itself.
    pub lb_size: u32,
}

impl Disk {
    pub fn blocks(&self) -> u64 {
        self.capacity / u64::from(self.lb_size)
    }

    /// The logical blocks that the bytes `offset..offset + len` touch. Beyond 2^64 there are none.
    pub fn touched(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let lb = u64::from(self.lb_size);
        offset / lb..offset.saturating_add(len).div_ceil(lb)
    }

    /// Do all bytes that a request is about lie on the disk?
    pub fn holds(&self, op: &Op) -> bool {
        let inside =
            |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= self.capacity);
        match op {
            Op::Read { offset, len }
            | Op::Write { offset, len, .. }
            | Op::Flush { offset, len } => inside(*offset, *len),
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().all(|s| inside(s.offset, s.len))
            }
        }
    }
}

//! What a machine refuses, in words for users.

use crate::store::{ImageError, ResizeError};
use tornblk_model::crash::ModelError;
use tornblk_model::event::Seq;
use tornblk_model::recording::RecordingError;
use tornblk_proto::{Refusal, RefusalKind};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no io_uring can be had: {0}; use --io-engine sync, or leave it out")]
    NoRing(std::io::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the logical block size {0} does not work: it is a power of two from 512 to 65536")]
    LogicalBlock(u32),
    #[error(
        "the physical block size {physical} does not work: it is a power of two, and not below \
         the logical block size {logical}"
    )]
    PhysicalBlock { physical: u32, logical: u32 },
    #[error(
        "{} is a recording, not an image: name the image that it was made on, or show its states with \
         --states", .0.display()
    )]
    IsRecording(std::path::PathBuf),
    #[error(transparent)]
    Profile(ModelError),
    /// A fault that cannot be armed.
    #[error(transparent)]
    Fault(MachineError),
    #[error(transparent)]
    Recording(RecordingError),
    #[error("the device cannot start: {0}")]
    Host(std::io::Error),
    #[error(
        "{} is of a disk with logical blocks of {has} bytes, not {asked}: leave out \
         --logical-block-size", path.display()
    )]
    OtherBlocks { path: std::path::PathBuf, has: u32, asked: u32 },
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{0} needs a recording: start tornblkd with --recording FILE")]
    NeedsRecording(String),
    #[error("{0} needs the data of writes: start tornblkd without --record-payload no")]
    NeedsData(String),
    #[error("{0} is only there with --states FILE: start tornblkd so")]
    NeedsStates(&'static str),
    #[error("{0} is not there with --states FILE: no disk is live then")]
    OnlyStates(String),
    #[error(
        "the difference is against the state {from}, and the one that is shown is {shown}: give \
         the whole, or another difference"
    )]
    OtherContent { from: String, shown: String },
    #[error("the blocks {0} to {1} lie outside of the disk")]
    Outside(u64, u64),
    #[error("no recording is made here: use-state, and then record-here")]
    NoInner,
    #[error(transparent)]
    Malformed(ModelError),
    #[error("the fault {fault} is about bytes beyond the disk's end at {capacity}")]
    BeyondTheEnd { fault: String, capacity: u64 },
    #[error("{0} requests are in flight: unmount, or wait until the guest is done, and try again")]
    InFlight(u64),
    #[error(
        "a crash is armed already: wait for it, or disconnect the client that armed it, which \
         disarms it"
    )]
    Armed,
    #[error("the power was cut after event {0}: start tornblkd anew, with another recording")]
    Cut(Seq),
    #[error(
        "the power was cut after event {0}, and the disk has not started again: connect a \
         front-end first"
    )]
    Off(Seq),
    /// As `Cut`, in the moment before it is known after which event.
    #[error("the power was just cut: start tornblkd anew, with another recording")]
    JustCut,
    #[error("the disk shows the state {0}: go back with use-state live first")]
    Shown(String),
    #[error("there are {n} {what} already: release some of them")]
    TooMany { what: &'static str, n: usize },
    #[error("the crash was disarmed before its trigger came")]
    Disarmed,
    #[error("there is no stall and no fault with token {0}: it may have been released already")]
    NoToken(u64),
    #[error("{0}")]
    NoState(ModelError),
    #[error(transparent)]
    Resize(ResizeError),
    #[error("{0}")]
    Failed(String),
}

impl MachineError {
    pub fn kind(&self) -> RefusalKind {
        use MachineError::*;
        match self {
            NeedsRecording(_)
            | NeedsData(_)
            | NeedsStates(_)
            | OnlyStates(_)
            | Resize(ResizeError::Fixed | ResizeError::Traced | ResizeError::Divided) => {
                RefusalKind::Unsupported
            }
            Resize(ResizeError::Io(_)) => RefusalKind::Failed,
            Resize(_) => RefusalKind::Busy,
            Malformed(_) | BeyondTheEnd { .. } | Outside(..) => RefusalKind::Malformed,
            InFlight(_) | Armed | TooMany { .. } | Cut(_) | JustCut | Off(_) | Shown(_) => {
                RefusalKind::Busy
            }
            NoToken(_) | NoState(_) | OtherContent { .. } | NoInner => RefusalKind::NotFound,
            Disarmed | Failed(_) => RefusalKind::Failed,
        }
    }
}

impl From<MachineError> for Refusal {
    fn from(error: MachineError) -> Refusal {
        Refusal { kind: error.kind(), message: error.to_string() }
    }
}

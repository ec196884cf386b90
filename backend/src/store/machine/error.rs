//! What a machine refuses, in words for users.

use super::ImageError;
use tornblk_model::crash::ModelError;
use tornblk_proto::{Refusal, RefusalKind};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the logical block size {0} does not work: it is a power of two from 512 to 65536")]
    LogicalBlock(u32),
    #[error(
        "the physical block size {physical} does not work: it is a power of two, and not below \
         the logical block size {logical}"
    )]
    PhysicalBlock { physical: u32, logical: u32 },
    #[error("{0}")]
    Profile(ModelError),
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{0} needs a recording: start tornblkd with --recording FILE")]
    NeedsRecording(&'static str),
}

impl MachineError {
    pub fn kind(&self) -> RefusalKind {
        match self {
            MachineError::NeedsRecording(_) => RefusalKind::Unsupported,
        }
    }
}

impl From<MachineError> for Refusal {
    fn from(error: MachineError) -> Refusal {
        Refusal { kind: error.kind(), message: error.to_string() }
    }
}

//! What a machine opens while it runs: for whoever restricts which files can be opened.

use super::{Machine, OpenError};
use crate::made::folder_of;
use std::path::PathBuf;
use tornblk_model::recording::{Header, Reader};

/// Paths, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Files that are read again: for a state after a crash, or a state that is asked for.
    pub read: Vec<PathBuf>,
    /// The folder of the recording: overlays of states are made there, and other recordings.
    pub folder: Option<PathBuf>,
}

impl Machine {
    /// What is opened while the disk is served. A raw image never is.
    ///
    /// # Errors
    /// The recording was made on a state of another one, which cannot be read.
    pub fn files(&self) -> Result<Files, OpenError> {
        let shared = &self.shared;
        if let Some(trace) = &shared.trace {
            // Nothing is made there; but a start that fails removes what it made.
            return Ok(Files { read: Vec::new(), folder: Some(trace.folder()) });
        }
        let (recording, header) = match (&shared.recorded, &shared.states) {
            (Some(recorded), _) => (recorded.file(), recorded.header().clone()),
            (None, Some(states)) => (states.file(), states.header().clone()),
            (None, None) => return Ok(Files::default()),
        };
        let mut read = vec![recording.to_owned()];
        beneath(header, &mut read)?;
        Ok(Files { read, folder: Some(folder_of(recording).to_owned()) })
    }
}

/// What a recording was made on: its base image, and the recordings beneath it.
fn beneath(mut header: Header, read: &mut Vec<PathBuf>) -> Result<(), OpenError> {
    while let Some(on) = header.on.take() {
        let outer = Reader::open(&on.recording).map_err(OpenError::Recording)?;
        read.push(on.recording);
        header = outer.header().clone();
    }
    // Where a copy is shown it need not be in its place.
    if header.base.path.exists() {
        read.push(header.base.path);
    }
    Ok(())
}

//! What a machine has that records its requests without their data: a raw disk, and beside it the
//! events, with marks. No power can be cut, since nothing could be shown after it.

use super::{MachineError, OpenError, Options, RawStore};
use crate::made::{Made, folder_of};
use crate::store::Store;
use crate::store::live::LiveGate;
use crate::store::recording::{RecordingOptions, RecordingStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::event::Seq;
use tornblk_model::recording::Writer;
use tornblk_proto::RecordingStatus;

pub(super) struct Trace {
    file: PathBuf,
    /// Where this process made it.
    made: Option<Arc<Made>>,
    store: Arc<RecordingStore>,
}

impl Trace {
    /// Makes the trace of what is done to an image, or goes on with it where it is there.
    pub(super) fn open(
        file: &Path,
        image: &Path,
        raw: RawStore,
        options: &Options,
        gate: &Arc<LiveGate>,
    ) -> Result<Trace, OpenError> {
        let own = RecordingOptions {
            profile: options.profile.clone(),
            seed: options.seed,
            read_only: options.read_only,
        };
        let said = super::recorded::description(options);
        let gate = Arc::clone(gate) as _;
        let store = RecordingStore::trace(file, image, raw, said, gate, own);
        let (store, made) = store.map_err(OpenError::Recording)?;
        super::recorded::warn_of_another_profile(file, store.writer(), &options.profile);
        let made = made.then(|| Made::of(file, store.writer()).ok().map(Arc::new)).flatten();
        Ok(Trace { file: file.to_owned(), made, store: Arc::new(store) })
    }

    /// The file, if it was made here.
    pub(super) fn made(&self) -> Option<Arc<Made>> {
        self.made.clone()
    }

    pub(super) fn live(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    /// Of the trace.
    pub(super) fn folder(&self) -> PathBuf {
        folder_of(&self.file).to_owned()
    }

    pub(super) fn writer(&self) -> &Writer {
        self.store.writer()
    }

    pub(super) fn status(&self) -> RecordingStatus {
        RecordingStatus { file: self.file.display().to_string(), events: self.writer().events() }
    }

    pub(super) fn mark(&self, name: &str) -> Result<Seq, MachineError> {
        self.store.mark(name).map_err(super::recorded::failed)
    }
}

//! Disks out of recordings, in the formats that others read.

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, StorageOpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tornblk_model::crash::{History, ModelError, StateName};
use tornblk_model::recording::{Exported, Fresh, Reader, RecordingError, StateReader, Trust};

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error("{name:?} is no state of the recording: {source}")]
    State { name: String, source: ModelError },
    #[error("interrupted")]
    Interrupted,
}

/// Writes the state to a qcow2 image (version 3, clusters of 64 KiB, zeroes not allocated) at
/// `path`, which must not exist.
///
/// # Errors
/// The file exists or cannot be written, or the state cannot be read. Nothing is left at `path`
/// then.
pub fn qcow2(state: &StateReader, path: &Path) -> Result<Exported, RecordingError> {
    let failed =
        |source: io::Error| RecordingError::Io { what: "write", path: path.to_owned(), source };
    let fresh = Fresh::create(path)?;
    let size = state.disk().capacity;
    let data = {
        let file = fresh.file().try_clone().map_err(failed)?;
        let file = imago::file::File::from_open_file(file, StorageOpenOptions::new().write(true))
            .map_err(failed)?;
        let image = Qcow2::<imago::file::File>::create_builder(file)
            .size(size)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                use imago::FormatDriverBuilder;
                Ok(Qcow2::builder(image).backing(None).write(true))
            })
            .map_err(failed)?;
        let image = FormatAccess::new(image);
        let data = state.each_data(path, |at, bytes| image.write(bytes, at))?;
        image.flush().map_err(failed)?;
        data
    };
    fresh.keep()?;
    Ok(Exported { size, data })
}

/// Calls `tell` with every name and the SHA-256 of its disk, in order. No image is built; the cost
/// is hashing the whole disk for each, on every core.
///
/// # Errors
/// A name is no state of the recording: `tell` was not called then. The recording or its base
/// cannot be read, or `stop` was set: it was called for those before.
pub fn hashes(
    reader: &Arc<Reader>,
    history: &History,
    (base, trust): (Option<&Path>, Trust),
    names: &[StateName],
    stop: &AtomicBool,
    mut tell: impl FnMut(&StateName, &[u8; 32]),
) -> Result<(), ExportError> {
    let build = |name: &StateName| {
        history.build(name).map_err(|source| ExportError::State { name: name.0.clone(), source })
    };
    // All or nothing, where it is cheap.
    for name in names {
        build(name)?;
    }
    let next = AtomicUsize::new(0);
    let hash = |name: &StateName| -> Result<[u8; 32], ExportError> {
        let state = StateReader::new(Arc::clone(reader), base, trust, build(name)?)?;
        Ok(state.sha256()?)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(names.len());
    let (to, from) = std::sync::mpsc::sync_channel(2 * threads.max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (to, next, hash) = (to.clone(), &next, &hash);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(i) else { return };
                    if stop.load(Ordering::Relaxed) || to.send((i, hash(name))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(to);
        // They come in any order.
        let mut early = std::collections::BTreeMap::new();
        let mut told = 0;
        for (i, found) in from {
            early.insert(i, found);
            while let Some(found) = early.remove(&told) {
                tell(&names[told], &found?);
                told += 1;
            }
        }
        if told < names.len() { Err(ExportError::Interrupted) } else { Ok(()) }
    })
}

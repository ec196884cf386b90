//! The inputs in the tree: `fuzz/corpus/TARGET/` are those that together reach the most, and
//! `fuzz/found/TARGET/` those that broke a promise once.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An input and its bytes.
pub type Input = (PathBuf, Vec<u8>);

/// The inputs of a target in one of the folders, in the order of their names.
///
/// # Panics
/// They cannot be read.
pub fn inputs(folder: &str, target: &str) -> Vec<Input> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target);
    let Ok(entries) = std::fs::read_dir(&dir) else { return Vec::new() };
    let mut all: Vec<Input> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

/// What is measured is the process's: two cases at a time would be taken for one.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

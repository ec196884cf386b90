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
    let dir = Path::new(folder).join(target);
    let mut all: Vec<Input> = entries(&dir)
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path);
            let bytes = bytes.unwrap_or_else(|e| panic!("{} cannot be read: {e}", path.display()));
            (path, bytes)
        })
        .collect();
    all.sort();
    all
}

/// The names of what lies in a folder of this package, in their order, without extensions.
///
/// # Panics
/// It cannot be read.
pub fn names(folder: &str) -> Vec<String> {
    let stem = |path: &PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let mut all: Vec<String> = entries(Path::new(folder)).iter().filter_map(stem).collect();
    all.sort();
    all
}

/// A folder that is missing or misspelt is an error: an empty list would pass for one that has nothing.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let read = std::fs::read_dir(&dir).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()
    });
    read.unwrap_or_else(|e| panic!("{} cannot be read: {e}", dir.display()))
}

/// What is measured is the process's: two cases at a time would be taken for one.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A failing state in one file: what is needed of the base image and of the recording, the state's
//! name, and what judged it. Enough to build the state again, and to judge it again, on another
//! machine.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 to 8 | `TORNBNDL` |
//! | 8 to 12 | format of all that follows, little-endian |
//! | 12 to 20 | bytes after byte 52, little-endian |
//! | 20 to 52 | SHA-256 of bytes 0 to 20 and of all after byte 52 |
//! | 52 to the end | zlib: the [`Meta`] as JSON (its length first, LEB128), the base's blocks, the events |
//!
//! The base's blocks are runs: number of the first, count, bytes; a count of 0 ends them. The events
//! are those up to the crash point, with the data of every write; where the state failed in a state
//! of its recovery, those of the recovery follow. Nothing in it depends on when or where it was made:
//! the same failing state gives the same bytes.

mod events;
mod pack;
mod unpack;

#[cfg(test)]
mod tests;

pub use pack::{Needed, pack};
pub use unpack::{Bundle, Unpacked};

use super::{JudgedPages, StateText};
use crate::oracle::Finding;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use tornblk_image::Lock;
use tornblk_model::crash::{ModelError, StateName};
use tornblk_model::event::Disk;
use tornblk_model::recording::RecordingError;

/// What bundles are called.
pub const EXTENSION: &str = "tornblk";

const MAGIC: [u8; 8] = *b"TORNBNDL";
const FORMAT: u32 = 2;
/// The same, with flushes of one disk of several: only where there is one.
const SEVERAL: u32 = 3;
/// Counts up when what judges a state may say something else of the same bytes.
const CHECKER: u32 = 2;
const HASH_AT: usize = 20;
const DATA_AT: usize = 52;
/// The longest [`Meta`]: a hundred findings of a file system.
const META_MAX: u64 = 64 << 20;

/// What judged the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judge {
    /// Units, in place.
    InPlace,
    /// A guest that mounts the disk and reads it.
    Guest,
}

/// A race, with all that it needs to be run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaceAgain {
    pub suite: String,
    /// The suite as it is written.
    pub text: String,
    pub lane: String,
    pub seed: u64,
    /// Which cut of how many.
    pub cut: u32,
    pub cuts: u32,
    #[serde(default)]
    pub faults: Vec<String>,
}

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Version of tornblk that made it, for people.
    pub tornblk: String,
    /// [`Bundle::open`] refuses another than its own.
    pub checker: u32,
    pub disk: Disk,
    /// Bytes of the base image.
    pub base_size: u64,
    pub state: StateText,
    /// The disk that was looked for; the state's name may say it in short.
    pub profile: String,
    /// The fault that made the state illegal on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    pub judge: Judge,
    /// What judged in place were pages, and which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<JudgedPages>,
    /// The guest's image; `None` where no guest judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Lock>,
    /// What fails is this state of the recovery, which is in the bundle, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<StateText>,
    /// What shows it is a race that is run again: it is in no state of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub race: Option<RaceAgain>,
    /// What was found, when the bundle was made.
    pub findings: Vec<Finding>,
    /// SHA-256 of number and content of every block that is here and not zero, in the state.
    pub content: String,
}

impl Meta {
    /// A bundle of this version; [`pack`] fills in the rest.
    pub fn new(state: StateName, profile: String, judge: Judge) -> Meta {
        Meta {
            tornblk: env!("CARGO_PKG_VERSION").to_owned(),
            checker: CHECKER,
            disk: Disk { capacity: 0, lb_size: 0 },
            base_size: 0,
            state: state.into(),
            profile,
            fault: None,
            judge,
            pages: None,
            image: None,
            recovery: None,
            race: None,
            findings: Vec::new(),
            content: String::new(),
        }
    }
}

/// Why there is no bundle, or nothing in it. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write the bundle: {0}")]
    Pack(io::Error),
    #[error(
        "{} is no bundle (its first bytes are not TORNBNDL): give a .tornblk file that `tornblk \
         explore` left, or the folder of a kept cut",
        path.display()
    )]
    Foreign { path: PathBuf },
    #[error(
        "{} is a bundle of format {found}, and this program knows {FORMAT} and {SEVERAL}: use the tornblk \
         that made it",
        path.display()
    )]
    Format { path: PathBuf, found: u32 },
    #[error(
        "{} was made by tornblk {tornblk}, which judges by other rules ({found}, here {CHECKER}): use \
         the tornblk that made it",
        path.display()
    )]
    Checker { path: PathBuf, tornblk: String, found: u32 },
    #[error("{} was cut short: it has {has} bytes of {needs}; get a complete copy", path.display())]
    Truncated { path: PathBuf, has: u64, needs: u64 },
    #[error("{} is damaged: {what}; get another copy", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{}: this program builds other bytes for {state} than the one that made the bundle ({} {}): \
         use that one",
        path.display(), "tornblk", tornblk
    )]
    OtherContent { path: PathBuf, state: StateText, tornblk: String },
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Something in it makes no sense; whoever knows its path says [`BundleError::Damaged`].
    #[error("what is in it does not fit together")]
    Nonsense,
}

impl BundleError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
        let path = path.to_owned();
        move |source| BundleError::Io { what, path, source }
    }

    fn nonsense() -> BundleError {
        BundleError::Nonsense
    }

    fn at(self, path: &Path) -> BundleError {
        match self {
            BundleError::Nonsense => {
                let what = BundleError::Nonsense.to_string();
                BundleError::Damaged { path: path.to_owned(), what }
            }
            other => other,
        }
    }
}

/// Looks like a bundle: a file, or something that is called like one.
pub fn is_bundle(path: &Path) -> bool {
    path.is_file() || !path.is_dir() && path.extension().is_some_and(|e| e == EXTENSION)
}

//! The first 64 KiB of a recording: what it is of.

use super::reader::Reader;
use super::slot::{DATA_START, Geometry};
use super::state::StateReader;
use super::{LB_MAX, RecordingError};
use crate::crash::{History, ModelError, StateName};
use crate::event::Disk;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const MAGIC: [u8; 8] = *b"TORNBLK\n";
pub(super) const FORMAT: u32 = 1;

/// Byte position of the count of segments: the only part of the header that changes.
pub(super) const SEGMENTS_AT: u64 = 24;
const TEXT_AT: usize = 32;

/// What a recording says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub disk: Disk,
    pub base: BaseImage,
    /// Where it began on a state of another recording (whose base image is `base`): which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<OuterState>,
    /// Are the data of writes kept? Without them it is a trace: no state can be shown.
    #[serde(default = "kept", skip_serializing_if = "Clone::clone")]
    pub data: bool,
    /// The device's options as it was started with, for people and reports.
    pub options: serde_json::Value,
    /// Seconds since 1970-01-01 UTC.
    pub created: u64,
    /// Bytes in a segment.
    pub segment_size: u64,
}

fn kept() -> bool {
    true
}

/// The image that a recording starts from, and how to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImage {
    /// Absolute.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds since 1970; `None` for a block device.
    pub modified: Option<(i64, i64)>,
    /// Of the first and the last 64 KiB and of 64 samples of 4 KiB in between (xxh3): cheap, and
    /// notices another image at the same path. Not a proof that all bytes are the same.
    pub sample: u64,
}

/// A state of a recording on which another recording was made: what a recovery did, say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterState {
    /// Absolute.
    pub recording: PathBuf,
    pub state: String,
}

impl OuterState {
    /// The disk as the inner recording began. `base` is a copy of the base image.
    ///
    /// # Errors
    /// The recording is not there or damaged, or has no such state; the base image is another.
    pub fn state_reader(
        &self,
        base: Option<&Path>,
        trust: Trust,
    ) -> Result<StateReader, RecordingError> {
        let reader = Arc::new(Reader::open(&self.recording)?);
        // Nobody records on a state of a recovery. One that says so may name itself.
        if reader.header().on.is_some() {
            return Err(RecordingError::Invalid(format!(
                "{} was itself made on a state of another recording: give one that was made on a \
                 state of a recording of a disk",
                self.recording.display()
            )));
        }
        let events: Vec<_> = reader.events().collect::<Result<_, _>>()?;
        let bad =
            |e: ModelError| RecordingError::Invalid(format!("{}: {e}", self.recording.display()));
        let history = History::new(reader.header().disk.clone(), events).map_err(bad)?;
        let content = history.build(&StateName(self.state.clone())).map_err(bad)?;
        StateReader::new(reader, base, trust, content)
    }
}

/// How much of a [`BaseImage`] must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Size, sample and modification time.
    Unchanged,
    /// Size and sample: for a copy of the image.
    SameContent,
}

impl BaseImage {
    /// Looks at the image at `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn identify(path: &Path) -> Result<BaseImage, RecordingError> {
        let file = File::open(path).map_err(RecordingError::io("open the image", path))?;
        BaseImage::identify_open(&file, path)
    }

    /// As [`BaseImage::identify`], of a file that is open, whatever is at `path` by now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn identify_open(mut file: &File, path: &Path) -> Result<BaseImage, RecordingError> {
        let io = |e| RecordingError::short("read the image", path)(e);
        let meta = file.metadata().map_err(io)?;
        if meta.is_dir() {
            return Err(RecordingError::Invalid(format!(
                "{} is a directory: give the file or block device that holds the image",
                path.display()
            )));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(io)?;
        let modified =
            (!meta.file_type().is_block_device()).then(|| (meta.mtime(), meta.mtime_nsec()));
        // One that was deleted since has the path that it had.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&size.to_le_bytes());
        let mut buf = vec![0; 64 << 10];
        let mut take = |at: u64, len: usize| {
            let n = usize::try_from(size.saturating_sub(at)).map_or(len, |left| left.min(len));
            file.read_exact_at(&mut buf[..n], at).map(|()| hash.update(&buf[..n]))
        };
        take(0, 64 << 10).map_err(io)?;
        for i in 1..=64 {
            take(size / 65 * i, 4 << 10).map_err(io)?;
        }
        take(size.saturating_sub(64 << 10), 64 << 10).map_err(io)?;
        Ok(BaseImage { path, size, modified, sample: hash.digest() })
    }

    /// Is the image at `path` (where this one was, if `None`) still the same?
    ///
    /// # Errors
    /// [`RecordingError::BaseChanged`] says what is different.
    pub fn check(&self, path: Option<&Path>, trust: Trust) -> Result<(), RecordingError> {
        let path = path.unwrap_or(&self.path);
        let file = File::open(path).map_err(RecordingError::io("open the image", path))?;
        self.check_open(&file, path, trust)
    }

    /// As [`BaseImage::check`], of a file that is open, whatever is at `path` by now.
    pub fn check_open(&self, file: &File, path: &Path, trust: Trust) -> Result<(), RecordingError> {
        let now = BaseImage::identify_open(file, path)?;
        let how = if now.size != self.size {
            format!("it has {} bytes and had {}", now.size, self.size)
        } else if now.sample != self.sample {
            "its content differs".to_owned()
        } else if trust == Trust::Unchanged && now.modified != self.modified {
            "it was modified since".to_owned()
        } else {
            return Ok(());
        };
        Err(RecordingError::BaseChanged { path: path.to_owned(), how })
    }
}

impl Header {
    /// The header's bytes, from 0 to [`DATA_START`], with no segments yet.
    pub(super) fn encode(&self) -> Result<Vec<u8>, RecordingError> {
        let text = serde_json::to_vec(self).map_err(|e| {
            RecordingError::Invalid(format!(
                "the recording's header cannot be written ({e}): the image's path must be UTF-8"
            ))
        })?;
        if TEXT_AT + text.len() > DATA_START as usize {
            return Err(RecordingError::Invalid(
                "the device's options are too long to be recorded (60 KiB)".to_owned(),
            ));
        }
        let mut out = vec![0; DATA_START as usize];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        out[TEXT_AT..TEXT_AT + text.len()].copy_from_slice(&text);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..16]), &text);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        let at = SEGMENTS_AT as usize;
        out[at..at + 8].copy_from_slice(&segments_word(0).to_le_bytes());
        Ok(out)
    }

    /// Does a file begin as a recording, whole and of this format?
    pub fn is_at_start_of(file: &File, path: &Path) -> bool {
        Header::read(file, path).is_ok()
    }

    /// Reads a recording's header.
    pub(super) fn read(file: &File, path: &Path) -> Result<(Header, Geometry), RecordingError> {
        let io = |e| RecordingError::io("read", path)(e);
        let has = file.metadata().map_err(io)?.len();
        let mut bytes = vec![0; DATA_START.min(has) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let known = bytes.len().min(8);
        if known == 0 || bytes[..known] != MAGIC[..known] {
            return Err(RecordingError::Foreign { path: path.to_owned() });
        }
        if bytes.len() < DATA_START as usize {
            return Err(RecordingError::Truncated {
                path: path.to_owned(),
                has,
                needs: DATA_START,
            });
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(8) != FORMAT {
            return Err(RecordingError::Version {
                path: path.to_owned(),
                found: word(8),
                known: FORMAT,
            });
        }
        let damaged = || RecordingError::corrupt(path, "its header does not fit its checksum");
        let len = word(12) as usize;
        let text = bytes.get(TEXT_AT..TEXT_AT.saturating_add(len)).ok_or_else(damaged)?;
        // Not covered by the checksum, and nothing yet.
        let unused = &bytes[20..SEGMENTS_AT as usize];
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), text);
        if sum != word(16) || unused.iter().any(|byte| *byte != 0) {
            return Err(damaged());
        }
        let header: Header = serde_json::from_slice(text)
            .map_err(|e| RecordingError::corrupt(path, format!("its header says: {e}")))?;
        let geometry = Geometry::new(header.segment_size)
            .ok_or_else(|| RecordingError::corrupt(path, "its segment size is impossible"))?;
        let lb_size = header.disk.lb_size;
        if !(512..=LB_MAX).contains(&lb_size) || !lb_size.is_power_of_two() {
            return Err(RecordingError::corrupt(path, "its logical block size is impossible"));
        }
        // A disk may be a little larger than its image, and all of it is read as zeroes: not more.
        let Disk { capacity, lb_size } = header.disk;
        let most = header.base.size.checked_next_multiple_of(u64::from(lb_size));
        if most.is_none_or(|most| capacity > most) {
            let what = "its disk is larger than the image that it began on";
            return Err(RecordingError::corrupt(path, what));
        }
        Ok((header, geometry))
    }
}

/// The count of segments with its checksum, as one word so that it changes at once.
pub(super) fn segments_word(count: u32) -> u64 {
    u64::from(count) | u64::from(crc32c::crc32c(&count.to_le_bytes())) << 32
}

/// Reads the count of segments. A live writer may change it at any time.
pub(super) fn read_segments(file: &File, path: &Path) -> Result<u32, RecordingError> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, SEGMENTS_AT).map_err(RecordingError::io("read", path))?;
    let word = u64::from_le_bytes(word);
    let count = word as u32;
    if segments_word(count) != word {
        return Err(RecordingError::corrupt(path, "its count of segments fails its checksum"));
    }
    Ok(count)
}

//! Reading a bundle.

use super::pack::{self, Needed, Scope};
use super::{
    BundleError, CHECKER, DATA_AT, FORMAT, HASH_AT, MAGIC, META_MAX, Meta, SEVERAL, events,
};
use crate::oracle::Recovery;
use events::Input;
use flate2::bufread::ZlibDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::recording::{BaseImage, LB_MAX, NewRecording, OuterState, Reader};
use tornblk_model::recording::{StateReader, Trust, Writer};

/// Blocks of the base in one run: as many as [`pack`](super::pack()) puts there.
const RUN: u64 = 1 << 20;
/// Bytes of the base that are moved at once.
const PIECE: u64 = 1 << 20;
/// zlib makes no more of a byte (RFC 1951: a match of 258 bytes takes two bits or more).
const MOST_OF_A_BYTE: u64 = 1032;
/// Of the recording that is made: a bundle's is small.
const SEGMENT: u64 = 4 << 20;

/// A bundle that is whole.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    meta: Meta,
    /// Bytes that may be in it.
    most: u64,
    /// Behind the meta.
    rest: ZlibDecoder<BufReader<File>>,
}

/// What was in a bundle, as files.
#[derive(Debug)]
pub struct Unpacked {
    pub meta: Meta,
    pub reader: Arc<Reader>,
    pub base: PathBuf,
    /// The state of the recovery on the state that is to be judged, if that is what failed.
    pub recovery: Option<Recovery>,
    /// The disk in the state, or in that of the recovery.
    pub state: StateReader,
}

impl Bundle {
    /// Opens the bundle at `path` and checks all of it; nothing is written.
    ///
    /// # Errors
    /// It is not there, foreign, of another version, cut short or damaged.
    pub fn open(path: &Path) -> Result<Bundle, BundleError> {
        let mut file = File::open(path).map_err(BundleError::io("open the bundle", path))?;
        let io = |e| BundleError::io("read", path)(e);
        let has = file.metadata().map_err(io)?.len();
        let mut head = [0; DATA_AT];
        let known = has.min(DATA_AT as u64) as usize;
        file.read_exact(&mut head[..known]).map_err(io)?;
        let magic = known.min(8);
        if magic == 0 || head[..magic] != MAGIC[..magic] {
            return Err(BundleError::Foreign { path: path.to_owned() });
        }
        let path_of = || path.to_owned();
        if known < DATA_AT {
            return Err(BundleError::Truncated { path: path_of(), has, needs: DATA_AT as u64 });
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if !(FORMAT..=SEVERAL).contains(&found) {
            return Err(BundleError::Format { path: path_of(), found });
        }
        let mut len = [0; 8];
        len.copy_from_slice(&head[12..HASH_AT]);
        let needs = u64::from_le_bytes(len).saturating_add(DATA_AT as u64);
        if has < needs {
            return Err(BundleError::Truncated { path: path_of(), has, needs });
        }
        if pack::hash(&head[..HASH_AT], &mut file).map_err(io)? != head[HASH_AT..] {
            let what = "it does not fit its checksum".to_owned();
            return Err(BundleError::Damaged { path: path_of(), what });
        }
        file.seek(SeekFrom::Start(DATA_AT as u64)).map_err(io)?;
        let mut rest = ZlibDecoder::new(BufReader::new(file));
        let meta = read_meta(&mut rest).map_err(|e| e.at(path))?;
        // Whatever else it says may mean something else there.
        if meta.checker != CHECKER {
            let (tornblk, found) = (meta.tornblk, meta.checker);
            return Err(BundleError::Checker { path: path_of(), tornblk, found });
        }
        Ok(Bundle { path: path.to_owned(), meta, most: has.saturating_mul(MOST_OF_A_BYTE), rest })
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Makes base image and recording in `dir`, an empty folder, builds the state and compares it
    /// with what the bundle says of its content.
    ///
    /// # Errors
    /// No space, or this program understands the state's name differently.
    pub fn unpack(mut self, dir: &Path) -> Result<Unpacked, BundleError> {
        let path = self.path.clone();
        self.unpack_all(dir).map_err(|e| e.at(&path))
    }

    fn unpack_all(&mut self, dir: &Path) -> Result<Unpacked, BundleError> {
        let meta = self.meta.clone();
        let lb = meta.disk.lb_size;
        if !(512..=LB_MAX).contains(&lb)
            || !lb.is_power_of_two()
            || !meta.disk.capacity.is_multiple_of(u64::from(lb))
        {
            return Err(BundleError::nonsense());
        }
        let base = dir.join("base.img");
        self.write_base(&base)?;
        let recording = dir.join("disk.recording");
        let image = BaseImage::identify(&base)?;
        let new = || NewRecording {
            segment_size: SEGMENT,
            ..NewRecording::new(
                meta.disk.clone(),
                image.clone(),
                serde_json::json!({ "from": "bundle" }),
            )
        };
        let reader = self.write_recording(&recording, new())?;
        let content = pack::build(&reader, &meta.state)?;
        let state =
            StateReader::new(Arc::clone(&reader), Some(&base), Trust::SameContent, content)?;
        let file = File::open(&base).map_err(BundleError::io("open the base image", &base))?;
        let extents = pack::extents(&file, meta.base_size)
            .map_err(BundleError::io("read the base image", &base))?;
        if Scope::new(&state, &Needed::All, &extents).digest(&state)? != meta.content {
            let (path, state, tornblk) = (self.path.clone(), meta.state, meta.tornblk);
            return Err(BundleError::OtherContent { path, state, tornblk });
        }
        let Some(inner) = &meta.recovery else {
            return Ok(Unpacked { meta, reader, base, recovery: None, state });
        };
        let file = dir.join("recovery.recording");
        let on = OuterState { recording, state: meta.state.0.clone() };
        let new = NewRecording { on: Some(on), ..new() };
        let recovered = self.write_recording(&file, new)?;
        let content = pack::build(&recovered, inner)?;
        let state = StateReader::on(recovered, state, content)?;
        let recovery = Some(Recovery { state: inner.0.clone(), recording: file });
        Ok(Unpacked { meta, reader, base, recovery, state })
    }

    /// The events that come next, as a recording.
    fn write_recording(
        &mut self,
        path: &Path,
        new: NewRecording,
    ) -> Result<Arc<Reader>, BundleError> {
        let writer = Writer::create(path, new)?;
        events::read(&mut self.rest, self.most, &writer)?;
        drop(writer);
        Ok(Arc::new(Reader::open(path)?))
    }

    fn write_base(&mut self, base: &Path) -> Result<(), BundleError> {
        let io = |e| BundleError::io("write", base)(e);
        let file = File::create_new(base).map_err(io)?;
        file.set_len(self.meta.base_size).map_err(io)?;
        let lb = u64::from(self.meta.disk.lb_size);
        let mut input = Input(&mut self.rest);
        let mut piece = vec![0; PIECE as usize];
        loop {
            let (first, count) = (input.number()?, input.number()?);
            if count == 0 {
                return Ok(());
            }
            let end = first.checked_add(count);
            if count > RUN || end.is_none_or(|end| end > self.meta.disk.blocks()) {
                return Err(BundleError::nonsense());
            }
            let (mut at, end) = (first * lb, (first + count) * lb);
            while at < end {
                let bytes = &mut piece[..(end - at).min(PIECE) as usize];
                input.bytes(bytes)?;
                // An image may end within a block.
                let n = self.meta.base_size.saturating_sub(at).min(bytes.len() as u64);
                file.write_all_at(&bytes[..n as usize], at).map_err(io)?;
                at += bytes.len() as u64;
            }
        }
    }
}

fn read_meta(rest: &mut dyn Read) -> Result<Meta, BundleError> {
    let mut input = Input(rest);
    let len = input.number()?;
    if len > META_MAX {
        return Err(BundleError::nonsense());
    }
    // As much as there is, and not as much as it says.
    let mut json = Vec::new();
    rest.take(len).read_to_end(&mut json).map_err(|_| BundleError::nonsense())?;
    serde_json::from_slice(&json).map_err(|_| BundleError::nonsense())
}

//! Making a bundle.

use super::super::StateText;
use super::{BundleError, DATA_AT, FORMAT, HASH_AT, MAGIC, Meta, SEVERAL, events};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tornblk_model::crash::{Content, History, Parsed, Source, StateName};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::{Reader, RecordingError, StateReader, Trust};

/// Blocks looked at in one read.
const PIECE: u64 = 1 << 20;

/// Which blocks of the disk matter to what judges it.
#[derive(Clone, Debug)]
pub enum Needed {
    /// All of them: a file system may look anywhere.
    All,
    /// These, in any order.
    Blocks(Vec<Range<u64>>),
}

/// Writes a bundle of a state to `path`, over what was there. `base`: where the recording's base
/// image is now, if it moved. Of `meta`, the disk and the content are filled in here.
///
/// # Errors
/// The recording has no such state, its base image changed, the recovery's recording that a finding
/// names cannot be read, or the bundle cannot be written. Nothing is left at `path` then that was not there before.
pub fn pack(
    path: &Path,
    reader: &Arc<Reader>,
    base: Option<&Path>,
    needed: &Needed,
    meta: &Meta,
) -> Result<Meta, BundleError> {
    let parsed: Parsed = meta.state.0.parse()?;
    let content = build(reader, &meta.state)?;
    let trust = if base.is_some() { Trust::SameContent } else { Trust::Unchanged };
    let state = StateReader::new(Arc::clone(reader), base, trust, content)?;
    let base_path = base.unwrap_or(&reader.header().base.path);
    let file = File::open(base_path).map_err(BundleError::io("open the base image", base_path))?;
    let extents = extents(&file, reader.header().base.size)
        .map_err(BundleError::io("read the base image", base_path))?;
    let scope = Scope::new(&state, needed, &extents);
    let mut meta = meta.clone();
    meta.disk = reader.header().disk.clone();
    meta.base_size = reader.header().base.size;
    meta.content = scope.digest(&state)?;
    let recovery = meta.findings.iter().find_map(|finding| finding.recovery.clone());
    let recovery = recovery.map(|r| Ok::<_, BundleError>((Reader::open(&r.recording)?, r.state)));
    let recovery = recovery.transpose()?;
    meta.recovery = recovery.as_ref().map(|(_, state)| StateText(state.clone()));

    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let io = |e| BundleError::io("write", path)(e);
    let mut file = tempfile::Builder::new().prefix(".bundle-").tempfile_in(dir).map_err(io)?;
    file.write_all(&[0; DATA_AT]).map_err(io)?;
    let mut out = ZlibEncoder::new(BufWriter::new(file), Compression::default());
    let json = serde_json::to_vec(&meta).map_err(|e| BundleError::Pack(e.into()))?;
    let mut length = Vec::new();
    events::number(json.len() as u64, &mut length);
    out.write_all(&length).and_then(|()| out.write_all(&json)).map_err(BundleError::Pack)?;
    // The base alone: a state in which nothing was written.
    let blank = StateReader::new(Arc::clone(reader), base, trust, Content::default())?;
    scope.write_base(&blank, &mut out)?;
    let mut several = events::write(reader, parsed.after, &mut out)?;
    if let Some((recovery, state)) = &recovery {
        let inner: Parsed = state.parse()?;
        several |= events::write(recovery, inner.after, &mut out)?;
    }
    let mut file = out
        .finish()
        .and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error))
        .map_err(BundleError::Pack)?;
    let format = if several { SEVERAL } else { FORMAT };
    seal(file.as_file_mut(), format).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(meta)
}

/// What a state of the recording holds.
pub(super) fn build(reader: &Reader, state: &StateText) -> Result<Content, BundleError> {
    let events: Result<Vec<(Seq, Event)>, RecordingError> = reader.events().collect();
    let history = History::new(reader.header().disk.clone(), events?)?;
    Ok(history.build(&StateName::from(state))?)
}

/// Writes the head: what it is, how long, and its hash.
fn seal(file: &mut File, format: u32) -> io::Result<()> {
    let mut head = [0; DATA_AT];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&format.to_le_bytes());
    let len = file.metadata()?.len() - DATA_AT as u64;
    head[12..HASH_AT].copy_from_slice(&len.to_le_bytes());
    let hash = hash(&head[..HASH_AT], file)?;
    head[HASH_AT..].copy_from_slice(&hash);
    file.write_all_at(&head, 0)
}

/// Of the head's beginning and of everything behind the head.
pub(super) fn hash(head: &[u8], file: &mut File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(head);
    file.seek(std::io::SeekFrom::Start(DATA_AT as u64))?;
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => hash.update(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The parts of an image that are no holes, in bytes.
pub(super) fn extents(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => break,
            // A block device, or a file system that cannot tell: all of it.
            Err(_) => return Ok(std::iter::once(0..size).collect()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(from))?.min(size);
        if from >= end {
            break;
        }
        extents.push(from..end);
        at = end;
    }
    Ok(extents)
}

/// The blocks that are in the bundle.
#[derive(Debug)]
pub(super) struct Scope {
    /// Rising, apart from one another; of the base.
    base: Vec<Range<u64>>,
    /// Of the state.
    state: Vec<Range<u64>>,
    lb: u64,
}

impl Scope {
    /// `extents`: what is in the base image at all, in bytes.
    pub(super) fn new(state: &StateReader, needed: &Needed, extents: &[Range<u64>]) -> Scope {
        let lb = u64::from(state.disk().lb_size);
        let blocks = state.disk().blocks();
        let there: Vec<Range<u64>> =
            union(extents.iter().map(|e| e.start / lb..e.end.div_ceil(lb).min(blocks)).collect());
        let written = state.content().blocks.keys().map(|b| *b..*b + 1);
        let base = match needed {
            Needed::All => there,
            Needed::Blocks(needed) => {
                // A bit that is inverted in the base needs the rest of its block.
                let shows = |s: &Source| matches!(s, Source::Flipped { request: None, .. });
                let shown = state.content().blocks.iter().filter(|(_, s)| shows(s));
                let shown = shown.map(|(b, _)| *b..*b + 1);
                let needed = needed.iter().map(|r| r.start..r.end.min(blocks));
                common(&union(needed.chain(shown).collect()), &there)
            }
        };
        // What the base does not show is in there, however little of the base is needed: so that
        // who unpacks it finds the same blocks without knowing what was needed.
        let state = union(base.iter().cloned().chain(written).collect());
        Scope { base, state, lb }
    }

    /// SHA-256 over number and bytes of every block of the state that is not zero, in hexadecimal.
    pub(super) fn digest(&self, state: &StateReader) -> Result<String, BundleError> {
        let mut hash = Sha256::new();
        self.each(state, &self.state, |block, bytes| {
            hash.update(block.to_le_bytes());
            hash.update(bytes);
            Ok(())
        })?;
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Blocks that are not zero, in rising order.
    fn each(
        &self,
        state: &StateReader,
        ranges: &[Range<u64>],
        mut f: impl FnMut(u64, &[u8]) -> Result<(), BundleError>,
    ) -> Result<(), BundleError> {
        let step = (PIECE / self.lb).max(1);
        let mut bytes = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let n = step.min(range.end - at);
                bytes.resize((n * self.lb) as usize, 0);
                state.read_at(at * self.lb, &mut bytes)?;
                for (i, block) in bytes.chunks_exact(self.lb as usize).enumerate() {
                    if block.iter().any(|b| *b != 0) {
                        f(at + i as u64, block)?;
                    }
                }
                at += n;
            }
        }
        Ok(())
    }

    fn write_base(&self, base: &StateReader, out: &mut dyn Write) -> Result<(), BundleError> {
        let most = (PIECE / self.lb).max(1);
        let mut first = 0;
        let mut run: Vec<u8> = Vec::new();
        let mut put = |first: u64, run: &mut Vec<u8>| {
            let mut head = Vec::new();
            events::number(first, &mut head);
            events::number(run.len() as u64 / self.lb, &mut head);
            out.write_all(&head).and_then(|()| out.write_all(run)).map_err(BundleError::Pack)?;
            run.clear();
            Ok::<(), BundleError>(())
        };
        self.each(base, &self.base, |block, bytes| {
            let count = run.len() as u64 / self.lb;
            if count == most || count > 0 && block != first + count {
                put(first, &mut run)?;
            }
            if run.is_empty() {
                first = block;
            }
            run.extend_from_slice(bytes);
            Ok(())
        })?;
        if !run.is_empty() {
            put(first, &mut run)?;
        }
        put(0, &mut Vec::new())
    }
}

/// Sorted, and joined where they touch.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// What is in both; both are sorted and apart.
fn common(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let both = x.start.max(y.start)..x.end.min(y.end);
        if both.start < both.end {
            out.push(both);
        }
        if x.end < y.end { i += 1 } else { j += 1 }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut() {
        let ranges = union(vec![5..7, 0..2, 2..3, 6..9, 4..4]);
        assert_eq!(ranges, [0..3, 5..9]);
        assert_eq!(common(&ranges, &[1..6, 8..20]), [1..3, 5..6, 8..9]);
        assert!(common(&ranges, &[]).is_empty());
    }
}

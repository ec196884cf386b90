//! The disk as it is in one state: base image, recorded data, and the crash model's word on which
//! block holds what.

use super::RecordingError;
use super::fresh::Fresh;
use super::header::Trust;
use super::reader::Reader;
use crate::crash::{Content, Source};
use crate::event::{Disk, Event, Op, Payload, Seq, Submit};
use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes handled at once by [`StateReader::export`] and [`StateReader::sha256`].
const PIECE: u64 = 1 << 20;

/// Shows a state. Cheap to make; reads are O(1) for each block.
#[derive(Debug)]
pub struct StateReader {
    reader: Arc<Reader>,
    base: Base,
    content: Content,
    /// The write that was looked up last: neighbours mostly come from the same.
    last: Mutex<Option<(Seq, Written)>>,
}

/// What shows where the content says nothing.
#[derive(Debug)]
enum Base {
    Image {
        file: File,
        path: PathBuf,
    },
    /// A state of another recording: this one was made on it.
    State(Box<StateReader>),
}

#[derive(Clone, Copy, Debug)]
struct Written {
    payload: Payload,
    blocks: u64,
}

fn has_data(reader: &Reader) -> Result<(), RecordingError> {
    if reader.header().data {
        return Ok(());
    }
    Err(RecordingError::NoPayload { path: reader.path().to_owned() })
}

/// What [`StateReader::export`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the image.
    pub size: u64,
    /// Bytes that are not zero, by the 4 KiB.
    pub data: u64,
}

impl StateReader {
    /// Shows `content` on the recording's base image, or on the copy of it at `base`. Where the
    /// recording was made on a state of another one ([`Header::on`](super::Header)), that is
    /// opened and built.
    ///
    /// # Errors
    /// The base image is not there, or is not the one of the recording as far as `trust` asks; the
    /// other recording is not there, or has no such state.
    pub fn new(
        reader: Arc<Reader>,
        base: Option<&Path>,
        trust: Trust,
        content: Content,
    ) -> Result<StateReader, RecordingError> {
        has_data(&reader)?;
        let image = &reader.header().base;
        image.check(base, trust)?;
        if let Some(on) = &reader.header().on {
            let outer = on.state_reader(base, trust)?;
            return StateReader::on(reader, outer, content);
        }
        let path = base.unwrap_or(&image.path).to_owned();
        let file = File::open(&path).map_err(RecordingError::io("open the base image", &path))?;
        let base = Base::Image { file, path };
        Ok(StateReader { reader, base, content, last: Mutex::new(None) })
    }

    /// As [`StateReader::new`] with the base image that is open as `file`: it may have lost its
    /// name since, or its name may be another file's.
    ///
    /// # Errors
    /// It is not the one of the recording any more.
    pub fn over(
        reader: Arc<Reader>,
        file: File,
        content: Content,
    ) -> Result<StateReader, RecordingError> {
        has_data(&reader)?;
        let image = &reader.header().base;
        image.check_open(&file, &image.path, Trust::Unchanged)?;
        let base = Base::Image { file, path: image.path.clone() };
        Ok(StateReader { reader, base, content, last: Mutex::new(None) })
    }

    /// Shows `content` of a recording that was made on `base`, a state of another recording.
    ///
    /// # Errors
    /// The two are not of one disk.
    pub fn on(
        reader: Arc<Reader>,
        base: StateReader,
        content: Content,
    ) -> Result<StateReader, RecordingError> {
        has_data(&reader)?;
        if reader.header().disk != *base.disk() {
            return Err(RecordingError::Invalid(format!(
                "{} was not made on a state of {}: their disks differ",
                reader.path().display(),
                base.reader().path().display()
            )));
        }
        let base = Base::State(Box::new(base));
        Ok(StateReader { reader, base, content, last: Mutex::new(None) })
    }

    /// Another reader of the same state.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn try_clone(&self) -> Result<StateReader, RecordingError> {
        let base = match &self.base {
            Base::Image { file, path } => {
                let io = RecordingError::io("open the base image once more", path);
                Base::Image { file: file.try_clone().map_err(io)?, path: path.clone() }
            }
            Base::State(state) => Base::State(Box::new(state.try_clone()?)),
        };
        let (reader, content) = (Arc::clone(&self.reader), self.content.clone());
        Ok(StateReader { reader, base, content, last: Mutex::new(None) })
    }

    /// Shows another source in a block from now on.
    pub fn set(&mut self, block: u64, source: Source) {
        match source {
            Source::Base => self.content.blocks.remove(&block),
            source => self.content.blocks.insert(block, source),
        };
    }

    /// Shows another state of the same recording from now on.
    pub fn set_content(&mut self, content: Content) {
        self.content = content;
    }

    pub fn disk(&self) -> &Disk {
        &self.reader.header().disk
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    pub fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// Reads the bytes from `offset` on, any offset, any length.
    ///
    /// # Errors
    /// They lie outside of the disk, or what they come from cannot be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), RecordingError> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.disk().capacity) {
            return Err(RecordingError::Invalid(format!(
                "bytes {offset} to {} lie outside of the disk ({} bytes)",
                offset.saturating_add(buf.len() as u64),
                self.disk().capacity
            )));
        }
        let lb = u64::from(self.disk().lb_size);
        let touched = self.disk().touched(offset, buf.len() as u64);
        // The base first, in one read where it shows at all, then what covers it.
        let mut covered = self.content.blocks.range(touched.clone()).peekable();
        let shows = |s: &Source| matches!(s, Source::Base | Source::Flipped { request: None, .. });
        let all = covered.clone().filter(|(_, s)| !shows(s)).count() as u64
            == touched.end - touched.start;
        if !all {
            match &self.base {
                Base::Image { file, path } => read_base(file, offset, buf)
                    .map_err(RecordingError::short("read the base image", path))?,
                Base::State(state) => state.read_at(offset, buf)?,
            }
        }
        let mut block_bytes = Vec::new();
        while let Some((block, source)) = covered.next() {
            let start = block * lb;
            let from = start.max(offset);
            let upto = (start + lb).min(offset + buf.len() as u64);
            let skip = from - start;
            // Blocks in a row that one write left are one read.
            if let Source::Written { request, block: first } = source {
                let mut upto = upto;
                let mut n = 1;
                while let Some((next, Source::Written { request: r, block: b })) = covered.peek()
                    && **next == block + n
                    && r == request
                    && u64::from(*b) == u64::from(*first) + n
                {
                    n += 1;
                    upto = (start + n * lb).min(offset + buf.len() as u64);
                    covered.next();
                }
                let part = &mut buf[(from - offset) as usize..(upto - offset) as usize];
                self.written(*request, u64::from(*first) * lb + skip, n + u64::from(*first), part)?;
                continue;
            }
            let part = &mut buf[(from - offset) as usize..(upto - offset) as usize];
            match source {
                Source::Base | Source::Written { .. } => {}
                Source::Zeroes => part.fill(0),
                Source::Garbage { seed } => {
                    block_bytes.resize(lb as usize, 0);
                    garbage(*seed, &mut block_bytes);
                    part.copy_from_slice(&block_bytes[skip as usize..skip as usize + part.len()]);
                }
                Source::Flipped { request, block: n, bit } => {
                    if let Some(request) = request {
                        let at = u64::from(*n) * lb + skip;
                        self.written(*request, at, u64::from(*n) + 1, part)?;
                    }
                    let byte = u64::from(bit / 8) % lb;
                    if byte >= skip
                        && let Some(byte) = part.get_mut((byte - skip) as usize)
                    {
                        *byte ^= 1 << (bit % 8);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads from the payload of a write, which must have `blocks` blocks or more.
    fn written(
        &self,
        request: Seq,
        skip: u64,
        blocks: u64,
        buf: &mut [u8],
    ) -> Result<(), RecordingError> {
        let known = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match known {
            Some((seq, written)) if seq == request => written,
            _ => {
                let Event::Submit(Submit { op: Op::Write { offset, len, payload, .. }, .. }) =
                    self.reader.event(request)?
                else {
                    return Err(RecordingError::Invalid(format!(
                        "event {request} of {} is no write: the state is of another recording",
                        self.reader.path().display()
                    )));
                };
                self.reader.check_payload(
                    request,
                    &payload,
                    self.reader.payload_len(offset, len),
                )?;
                let touched = self.disk().touched(offset, len);
                let written = Written { payload, blocks: touched.end - touched.start };
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((request, written));
                written
            }
        };
        if blocks > written.blocks {
            return Err(RecordingError::Invalid(format!(
                "the write at event {request} has {} blocks, and the state wants {blocks}",
                written.blocks
            )));
        }
        self.reader.read_payload(&written.payload, skip, buf)
    }

    /// The first byte from `at` on that may not be zero.
    fn next_data(&self, at: u64) -> Option<u64> {
        let lb = u64::from(self.disk().lb_size);
        let base = match &self.base {
            Base::State(state) => state.next_data(at),
            Base::Image { file, .. } => match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => Some(data.max(at)),
                Err(rustix::io::Errno::NXIO) => None,
                // It cannot say where holes are.
                Err(_) => Some(at),
            },
        };
        let mut later = self.content.blocks.range(at / lb..);
        let written = later.find(|(_, source)| !matches!(source, Source::Base | Source::Zeroes));
        let written = written.map(|(block, _)| (block * lb).max(at));
        let found = [base, written].into_iter().flatten().min();
        found.filter(|at| *at < self.disk().capacity)
    }

    /// Calls `f` with the bytes that are not zero, by the 4 KiB, in order, and says how many they
    /// are. What cannot be anything else than zero is not even read.
    ///
    /// # Errors
    /// The state cannot be read; or `f` fails, which is told to be about writing `to`.
    pub fn each_data(
        &self,
        to: &Path,
        mut f: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<u64, RecordingError> {
        const GRAIN: usize = 4096;
        let size = self.disk().capacity;
        let mut buf = vec![0; PIECE.min(size) as usize];
        let (mut at, mut data) = (0, 0);
        while let Some(next) = self.next_data(at) {
            at = next / GRAIN as u64 * GRAIN as u64;
            let bytes = &mut buf[..(size - at).min(PIECE) as usize];
            self.read_at(at, bytes)?;
            // Runs of grains that are not all zero.
            let mut start = None;
            let mut out = |run: &[u8], from: usize| {
                data += run.len() as u64;
                f(at + from as u64, run).map_err(RecordingError::io("write", to))
            };
            for (i, grain) in bytes.chunks(GRAIN).enumerate() {
                if grain.iter().any(|b| *b != 0) {
                    start.get_or_insert(i * GRAIN);
                } else if let Some(from) = start.take() {
                    out(&bytes[from..i * GRAIN], from)?;
                }
            }
            if let Some(from) = start {
                out(&bytes[from..], from)?;
            }
            at += bytes.len() as u64;
        }
        Ok(data)
    }

    /// Writes the state to a raw sparse image at `path`, which must not exist.
    ///
    /// # Errors
    /// The file exists or cannot be written, or the state cannot be read. Nothing is left at `path`
    /// then.
    pub fn export(&self, path: &Path) -> Result<Exported, RecordingError> {
        let fresh = Fresh::create(path)?;
        let size = self.disk().capacity;
        let file = fresh.file();
        file.set_len(size).map_err(RecordingError::io("write", path))?;
        let data = self.each_data(path, |at, bytes| file.write_all_at(bytes, at))?;
        fresh.keep()?;
        Ok(Exported { size, data })
    }

    /// Sha256 of the whole disk in this state.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn sha256(&self) -> Result<[u8; 32], RecordingError> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut hash = Sha256::new();
        let mut done = 0;
        let zeroes = |hash: &mut Sha256, mut n: u64| {
            while n > 0 {
                let some = n.min(ZEROES.len() as u64);
                hash.update(&ZEROES[..some as usize]);
                n -= some;
            }
        };
        self.each_data(self.reader.path(), |at, bytes| {
            zeroes(&mut hash, at - done);
            hash.update(bytes);
            done = at + bytes.len() as u64;
            Ok(())
        })?;
        zeroes(&mut hash, self.disk().capacity - done);
        Ok(hash.finalize().into())
    }
}

/// Reads from an image; beyond its end are zeroes.
pub(super) fn read_base(file: &File, offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    let mut at = offset;
    while !buf.is_empty() {
        match file.read_at(buf, at) {
            Ok(0) => {
                buf.fill(0);
                break;
            }
            Ok(n) => {
                at += n as u64;
                buf = &mut buf[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The bytes of [`Source::Garbage`]: the same for a seed on every machine.
fn garbage(seed: u64, buf: &mut [u8]) {
    for (i, chunk) in buf.chunks_mut(8).enumerate() {
        let word = xxhash_rust::xxh3::xxh3_64_with_seed(&(i as u64).to_le_bytes(), seed);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

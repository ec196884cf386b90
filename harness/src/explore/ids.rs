//! Which contents of a block are equal: by the bytes that the recording keeps.

use super::{ContentIds, ExploreError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tornblk_model::crash::{Content, Source};
use tornblk_model::event::{Event, Op, Seq, Submit};
use tornblk_model::recording::{Reader, StateReader, Trust};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Of what is all zero.
const ZEROES: u64 = 0;

/// Hashes the data in the recording, and the base image where something was written over it.
pub struct RecordingIds {
    reader: Arc<Reader>,
    base: File,
    base_path: PathBuf,
    /// The write that was hashed last: what is asked for next mostly is the same one's.
    last: Mutex<(Option<Seq>, Vec<u64>)>,
    /// The piece of the base that was read last.
    piece: Mutex<(Option<u64>, Vec<u8>)>,
    /// What went wrong first: the trait's answer is a number.
    failed: Mutex<Option<String>>,
}

/// Bytes of the base that are read at once, or a block where that is more: what was written lies
/// scattered over it.
const PIECE: u64 = 16 << 10;

impl RecordingIds {
    /// `base`: a copy of the base image, where it is not the one that the recording names.
    ///
    /// # Errors
    /// The base image is not there, or not the one of the recording as far as `trust` asks.
    pub fn new(
        reader: Arc<Reader>,
        base: Option<&Path>,
        trust: Trust,
    ) -> Result<RecordingIds, ExploreError> {
        // Checks the base image.
        drop(StateReader::new(reader.clone(), base, trust, Content::default())?);
        let base_path = base.unwrap_or(&reader.header().base.path).to_owned();
        let base = File::open(&base_path).map_err(|source| ExploreError::Io {
            what: "open the base image",
            path: base_path.clone(),
            source,
        })?;
        Ok(RecordingIds {
            reader,
            base,
            base_path,
            last: Mutex::default(),
            piece: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    fn lb(&self) -> usize {
        self.reader.header().disk.lb_size as usize
    }

    fn fail(&self, why: impl std::fmt::Display) -> u64 {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| why.to_string());
        ZEROES
    }

    fn payload(&self, request: Seq) -> Result<Vec<u8>, String> {
        match self.reader.event(request) {
            Ok(Event::Submit(Submit { op: Op::Write { offset, len, payload, .. }, .. })) => {
                let len = self.reader.payload_len(offset, len) as usize;
                self.reader.payload(&payload, len).map_err(|e| e.to_string())
            }
            Ok(_) => {
                Err(format!("event {request} of {} is no write", self.reader.path().display()))
            }
            Err(e) => Err(e.to_string()),
        }
    }

    fn written(&self, request: Seq, block: u32) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != Some(request) {
            match self.payload(request) {
                Ok(data) => *last = (Some(request), data.chunks(self.lb()).map(hash).collect()),
                Err(why) => return self.fail(why),
            }
        }
        match last.1.get(block as usize) {
            Some(id) => *id,
            None => self.fail(format!(
                "the write at event {request} has {} blocks, and block {block} of it is wanted",
                last.1.len()
            )),
        }
    }

    fn base(&self, block: u64) -> u64 {
        match self.base_bytes(block) {
            Ok(bytes) => hash(&bytes),
            Err(e) => {
                self.fail(format!("cannot read the base image {}: {e}", self.base_path.display()))
            }
        }
    }

    /// Beyond its end are zeroes.
    fn base_bytes(&self, block: u64) -> std::io::Result<Vec<u8>> {
        let lb = self.lb() as u64;
        let size = lb.max(PIECE);
        let (number, skip) = (block * lb / size, (block * lb % size) as usize);
        let mut piece = self.piece.lock().unwrap_or_else(PoisonError::into_inner);
        if piece.0 != Some(number) {
            let mut bytes = vec![0; size as usize];
            let mut at = 0;
            while at < bytes.len() {
                match self.base.read_at(&mut bytes[at..], number * size + at as u64) {
                    Ok(0) => break,
                    Ok(n) => at += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            *piece = (Some(number), bytes);
        }
        Ok(piece.1[skip..skip + lb as usize].to_vec())
    }
}

fn hash(bytes: &[u8]) -> u64 {
    if bytes.iter().all(|b| *b == 0) {
        return ZEROES;
    }
    // No data may pass for zeroes.
    xxh3_64(bytes).max(1)
}

impl std::fmt::Debug for RecordingIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordingIds({})", self.reader.path().display())
    }
}

impl ContentIds for RecordingIds {
    fn check(&self) -> Result<(), ExploreError> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(ExploreError::Bad(why.clone())),
            None => Ok(()),
        }
    }

    fn id(&self, block: u64, source: Source) -> u64 {
        match source {
            Source::Base => self.base(block),
            Source::Written { request, block } => self.written(request, block),
            Source::Zeroes => ZEROES,
            // The same bytes for the same seed; anything else by chance only.
            Source::Garbage { seed } => xxh3_64_with_seed(b"garbage", seed).max(1),
            Source::Flipped { request, block: n, bit } => {
                let bytes = match request {
                    Some(request) => self.payload(request).and_then(|data| {
                        let from = n as usize * self.lb();
                        data.get(from..from + self.lb())
                            .map(<[u8]>::to_vec)
                            .ok_or_else(|| format!("event {request} has no block {n}"))
                    }),
                    None => self.base_bytes(block).map_err(|e| e.to_string()),
                };
                match bytes {
                    Ok(mut bytes) => {
                        if let Some(byte) = bytes.get_mut(bit as usize / 8) {
                            *byte ^= 1 << (bit % 8);
                        }
                        hash(&bytes)
                    }
                    Err(why) => self.fail(why),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::testing::Recorded;

    #[test]
    fn equal_bytes_have_equal_numbers_wherever_they_come_from() {
        for lb in [512u32, 4096, 32768] {
            let mut recorded = Recorded::new(lb);
            let n = lb as usize;
            // As the base is there, other data, and zeroes.
            let data = [vec![0xb5; n], vec![1; n], vec![0; n], vec![1; n]].concat();
            let first = recorded.write(0, &data);
            let second = recorded.write(0, &vec![1; n]);
            let recorded = recorded.end();
            let reader = Arc::new(Reader::open(&recorded.path()).unwrap());
            let ids = RecordingIds::new(reader, None, Trust::Unchanged).unwrap();
            let written = |request, block| ids.id(0, Source::Written { request, block });
            assert_eq!(written(first, 0), ids.id(0, Source::Base));
            assert_eq!(written(first, 1), written(second, 0));
            assert_eq!(written(first, 1), written(first, 3));
            assert_eq!(written(first, 2), ids.id(3, Source::Zeroes));
            // Beyond its 32 KiB the base is empty, and so is what lies beyond its end.
            let empty = (32 << 10) / u64::from(lb);
            assert_eq!(ids.id(empty, Source::Base), ids.id(0, Source::Zeroes));
            assert_ne!(ids.id(0, Source::Base), written(second, 0));
            assert_ne!(ids.id(0, Source::Base), ids.id(0, Source::Zeroes));
            let flip = |request, bit| Source::Flipped { request, block: 0, bit };
            assert_eq!(ids.id(0, flip(Some(first), 3)), ids.id(0, flip(None, 3)));
            assert_ne!(ids.id(0, flip(None, 3)), ids.id(0, Source::Base));
            assert_ne!(ids.id(0, flip(None, 3)), ids.id(0, flip(None, 4)));
            let garbage = |seed| ids.id(0, Source::Garbage { seed });
            assert_eq!(garbage(5), garbage(5));
            assert_ne!(garbage(5), garbage(6));
            ids.check().unwrap();
            // What the recording does not have is an error, not a content.
            written(second, 7);
            let error = ids.check().unwrap_err().to_string();
            assert!(error.contains("has 1 blocks, and block 7 of it is wanted"), "{error}");
        }
    }
}

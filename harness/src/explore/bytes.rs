//! The bytes of a disk's blocks, from where they come from: a write's payload, the base image, or neither.

use super::ExploreError;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tornblk_model::crash::{Content, Source};
use tornblk_model::event::{Event, Op, Payload, Seq, Submit};
use tornblk_model::recording::{Reader, StateReader, Trust};

/// Reads blocks of the states of one recording.
#[derive(Debug)]
pub(super) struct Bytes {
    lb_size: u32,
    reader: Arc<Reader>,
    base: StateReader,
    writes: HashMap<u64, Payload>,
}

impl Bytes {
    /// `base`: a copy of the base image, where it is not the one that the recording names.
    ///
    /// # Errors
    /// The base image cannot be read, or `trust` is broken.
    pub(super) fn of(
        reader: Arc<Reader>,
        base: Option<&Path>,
        trust: Trust,
        events: &[(Seq, Event)],
    ) -> Result<Bytes, ExploreError> {
        let base = StateReader::new(reader.clone(), base, trust, Content::default())?;
        let payload = |(seq, event): &(Seq, Event)| match event {
            Event::Submit(Submit { op: Op::Write { payload, .. }, .. }) => Some((seq.0, *payload)),
            _ => None,
        };
        let writes = events.iter().filter_map(payload).collect();
        Ok(Bytes { lb_size: reader.header().disk.lb_size, reader, base, writes })
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    pub(super) fn lb_size(&self) -> u32 {
        self.lb_size
    }

    /// The bytes of consecutive blocks from `first` on: blocks in a row of one write are one read.
    pub(super) fn read(
        &self,
        first: u64,
        sources: &[Source],
        out: &mut [u8],
    ) -> Result<(), ExploreError> {
        let lb = self.lb_size as usize;
        let mut i = 0;
        while i < sources.len() {
            let follows = |n: usize| match (sources[i], sources.get(i + n)) {
                (Source::Base, Some(Source::Base)) => true,
                (
                    Source::Written { request, block },
                    Some(Source::Written { request: r, block: b }),
                ) => *r == request && *b as usize == block as usize + n,
                _ => false,
            };
            let n = (1..).find(|n| !follows(*n)).unwrap_or(1);
            self.one(first + i as u64, sources[i], &mut out[i * lb..(i + n) * lb])?;
            i += n;
        }
        Ok(())
    }

    /// The bytes of a block, and where a write or the base image goes on for more, of as many.
    fn one(&self, block: u64, source: Source, out: &mut [u8]) -> Result<(), ExploreError> {
        let lb = u64::from(self.lb_size);
        let written = |request: Seq, n: u32, out: &mut [u8]| match self.writes.get(&request.0) {
            Some(payload) => Ok(self.reader.read_payload(payload, u64::from(n) * lb, out)?),
            None => Err(ExploreError::Bad(format!(
                "event {request} of {} is no write: the state is of another recording",
                self.reader.path().display()
            ))),
        };
        match source {
            Source::Base => self.base.read_at(block * lb, out)?,
            Source::Written { request, block } => written(request, block, out)?,
            Source::Zeroes => out.fill(0),
            Source::Garbage { .. } => {
                let mut one = self.base.try_clone()?;
                one.set(block, source);
                one.read_at(block * lb, out)?;
            }
            Source::Flipped { request, block: n, bit } => {
                match request {
                    Some(request) => written(request, n, out)?,
                    None => self.base.read_at(block * lb, out)?,
                }
                if let Some(byte) = out.get_mut(bit as usize / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
        Ok(())
    }
}

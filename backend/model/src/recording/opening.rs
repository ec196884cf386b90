//! Looks at a recording before it is gone on with, in one pass: a start should take no longer than it
//! has to, and what is refused must be as it was.

use super::RecordingError;
use super::header::Header;
use super::reader::Reader;
use super::slot::Decoded;
use super::writer::{Writer, lock};
use crate::event::{Event, Op, ResetCause, SECTOR, Seq, Submit};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::path::Path;

/// What [`Reader::survey`] found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// One more than the last committed slot.
    pub(super) next: u64,
    /// Where the payload ends.
    pub(super) used: u64,
    /// The requests that ended without having changed anything: they failed before their turn. A
    /// device that is started again shows all others, in the order of their submission.
    pub not_executed: HashSet<Seq>,
    /// The first power cut: there is no live disk to go on with.
    pub power_cut: Option<Seq>,
    /// The events contradict each other, or the file.
    pub nonsense: Option<String>,
}

impl Reader {
    /// Goes over all slots once, before the recording is gone on with.
    ///
    /// # Errors
    /// The recording is damaged.
    pub fn survey(&self) -> Result<Survey, RecordingError> {
        let mut out = Survey::default();
        // A bit for each slot: a submission that has not ended. Only words with bits, since slots may be
        // far apart, and few requests are open at a time.
        let mut goes: BTreeMap<u64, u64> = BTreeMap::new();
        for found in self.scan() {
            let (seq, decoded) = found?;
            out.next = seq + 1;
            let end = self.payload_end(&decoded);
            out.used = out.used.max(end);
            if let Some(what) = self.misplaced(seq, &decoded, end) {
                out.nonsense.get_or_insert(what);
            }
            let (word, bit) = (seq / 64, 1 << (seq % 64));
            match decoded.event {
                Some(Event::Submit(_)) if !decoded.at_once => {
                    *goes.entry(word).or_default() |= bit;
                }
                Some(Event::Complete { request, .. }) => {
                    let (word, bit) = (request.0 / 64, 1 << (request.0 % 64));
                    match goes.get_mut(&word) {
                        Some(bits) if *bits & bit != 0 => {
                            *bits &= !bit;
                            if *bits == 0 {
                                goes.remove(&word);
                            }
                        }
                        // As whoever takes it for a history will find.
                        _ => {
                            let what = format!("event {seq} ends request {request}, which is none");
                            out.nonsense.get_or_insert(what);
                        }
                    }
                    if decoded.not_executed {
                        out.not_executed.insert(request);
                    }
                }
                Some(Event::Reset { cause: ResetCause::PowerCut, .. }) => {
                    out.power_cut.get_or_insert(Seq(seq));
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// What is wrong with the place of a write's data, which ends at `end`, if anything is.
    fn misplaced(&self, seq: u64, decoded: &Decoded, end: u64) -> Option<String> {
        let Some(Event::Submit(Submit { op: Op::Write { payload, .. }, .. })) = &decoded.event
        else {
            return None;
        };
        let from = payload.position;
        let sound = from == 0 || from.is_multiple_of(SECTOR) && self.is_room(from, end);
        (!sound).then(|| format!("event {seq}: no data are kept at byte {from}"))
    }

    /// The requests that ended without having changed anything: see [`Survey::not_executed`].
    ///
    /// # Errors
    /// The recording is damaged.
    pub fn not_executed(&self) -> Result<HashSet<Seq>, RecordingError> {
        Ok(self.survey()?.not_executed)
    }
}

/// A recording that is to be gone on with: locked and read once, and not changed yet.
#[derive(Debug)]
pub struct Opening {
    file: File,
    reader: Reader,
    survey: Survey,
}

impl Opening {
    /// # Errors
    /// No sound recording, or another process writes to it.
    pub fn new(path: &Path) -> Result<Opening, RecordingError> {
        super::is_file(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(RecordingError::io("open the recording", path))?;
        lock(&file, path)?;
        // This file, whatever is at its path by now.
        let same =
            file.try_clone().map_err(RecordingError::io("open the recording once more", path))?;
        let reader = Reader::of(same, path)?;
        let survey = reader.survey()?;
        Ok(Opening { file, reader, survey })
    }

    pub fn header(&self) -> &Header {
        self.reader.header()
    }

    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// From here on it is written to: see [`Writer::open`].
    ///
    /// # Errors
    /// No space, or the file failed.
    pub fn go_on(self) -> Result<Writer, RecordingError> {
        Writer::go_on(self.file, &self.reader, &self.survey)
    }
}

//! What each write of a recording carried, sector by sector: its payload is read and classified
//! once, and remembered as runs.

use super::bytes::Bytes;
use super::{Call, Explain, ExploreError, Ledgers};
use crate::oracle::{Asking, call};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tornblk_agent::channel::{Found, Target, Workload};
use tornblk_agent::payload::{self, Read, SECTOR};
use tornblk_agent::planted::{HEADER, read_header, slot_of};
use tornblk_model::crash::Source;
use tornblk_model::event::{Event, Op, Seq, Submit};
use tornblk_model::recording::{Reader, Trust};

/// What a run of sectors holds, wherever it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Stamped by this run: sectors `first`, `first + 1`, ... of one generation of a unit.
    Ours {
        file: u32,
        unit: u64,
        r#gen: u32,
        first: u32,
        of: u32,
    },
    Foreign {
        nonce: u64,
    },
    /// Our magic, a wrong checksum; what it says it is, if it says that it is of this run.
    Corrupt {
        place: Option<(u32, u64, u32)>,
    },
    /// The head of a slot, with a unit's image behind it.
    Slot {
        file: u32,
        unit: u64,
        r#gen: u32,
    },
    Zero,
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Its first sector, counted from the payload's beginning.
    pub(super) at: u32,
    pub(super) n: u32,
    pub(super) what: What,
}

/// One write.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) atomic: bool,
    runs: Box<[Run]>,
}

/// Everything that a recording's writes carried, and its base image.
#[derive(Debug)]
pub struct Carried {
    nonce: u64,
    bytes: Bytes,
    writes: HashMap<u64, Written>,
    /// The requests that carried sectors of a generation of a unit, in their order.
    carriers: HashMap<(u32, u64, u32), Vec<Carrier>>,
    /// Of a unit: (request, which carried some of it), rising.
    units: HashMap<(u32, u64), Vec<u64>>,
    /// For whoever explains a write.
    workload: Workload,
    ledgers: Arc<Ledgers>,
}

/// As the oracle's, but for what the profile and the crash point say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carrier {
    pub(super) request: u64,
    pub(super) whole: bool,
    pub(super) mixed: bool,
    /// Where on the disk its sectors lie (bytes), and how many bytes.
    pub(super) at: u64,
    pub(super) len: u64,
}

/// Where on the disk a generation of a unit was written, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub write: Seq,
    pub generation: u32,
    pub bytes: Range<u64>,
}

impl Carried {
    /// Reads every write of the recording. `base`: a copy of the base image, where it is not the one
    /// that the recording names.
    ///
    /// # Errors
    /// The recording or its base image cannot be read, or `trust` is broken.
    pub fn of(
        reader: Arc<Reader>,
        base: Option<&Path>,
        trust: Trust,
        events: &[(Seq, Event)],
        workload: &Workload,
        ledgers: Arc<Ledgers>,
    ) -> Result<Carried, ExploreError> {
        let mut carried = Carried {
            nonce: workload.nonce,
            bytes: Bytes::of(reader, base, trust, events)?,
            writes: HashMap::new(),
            carriers: HashMap::new(),
            units: HashMap::new(),
            workload: workload.clone(),
            ledgers,
        };
        for (seq, event) in events {
            if let Event::Submit(Submit { op: Op::Write { .. }, .. }) = event {
                carried.add(*seq, event)?;
            }
        }
        Ok(carried)
    }

    fn add(&mut self, seq: Seq, event: &Event) -> Result<(), ExploreError> {
        let Event::Submit(Submit { op: Op::Write { offset, len, atomic, payload, .. }, .. }) =
            event
        else {
            return Ok(());
        };
        let (offset, len) = (*offset, *len);
        let reader = self.bytes.reader();
        let bytes = reader.payload(payload, reader.payload_len(offset, len) as usize)?;
        let mut runs: Vec<Run> = Vec::new();
        for (i, sector) in (0u32..).zip(bytes.chunks_exact(SECTOR)) {
            push(&mut runs, i, self.what(sector));
        }
        let skip = (offset % u64::from(self.lb_size())) as usize / SECTOR;
        let asked = skip as u32..skip as u32 + (len as usize / SECTOR) as u32;
        self.note_carriers(seq.0, offset - (skip * SECTOR) as u64, &runs, asked);
        let written = Written { offset, len, atomic: *atomic, runs: runs.into() };
        self.writes.insert(seq.0, written);
        Ok(())
    }

    fn what(&self, sector: &[u8]) -> What {
        match payload::read(sector) {
            Read::Stamped(s) if s.nonce != self.nonce => What::Foreign { nonce: s.nonce },
            Read::Stamped(s) => What::Ours {
                file: s.file,
                unit: s.unit,
                r#gen: s.generation,
                first: s.sector,
                of: s.sectors,
            },
            Read::Corrupt => {
                let claimed = payload::claimed(sector).filter(|s| s.nonce == self.nonce);
                What::Corrupt { place: claimed.map(|s| (s.file, s.unit, s.sector)) }
            }
            Read::Zero => What::Zero,
            Read::Poison | Read::Unknown => match read_header(sector, self.nonce) {
                Some((unit, file, r#gen)) => What::Slot { file, unit, r#gen },
                None => What::Unknown,
            },
        }
    }

    /// `asked`: the sectors that the request itself wrote; the rest filled up a logical block.
    /// `from`: where on the disk the first of the runs lies (bytes).
    fn note_carriers(&mut self, request: u64, from: u64, runs: &[Run], asked: Range<u32>) {
        struct Part {
            key: (u32, u64, u32),
            first: u32,
            n: u32,
            of: u32,
            /// In the request, in sectors.
            start: u32,
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut unstable: HashSet<(u32, u64)> = HashSet::new();
        for run in runs {
            let start = run.at.max(asked.start);
            let end = (run.at + run.n).min(asked.end);
            if start >= end {
                continue;
            }
            match run.what {
                What::Ours { file, unit, r#gen, first, of } => parts.push(Part {
                    key: (file, unit, r#gen),
                    first: first + (start - run.at),
                    n: end - start,
                    of,
                    start,
                }),
                What::Corrupt { place: Some((file, unit, _)) } => {
                    unstable.insert((file, unit));
                }
                _ => {}
            }
        }
        for (i, part) in parts.iter().enumerate() {
            let (file, unit, _) = part.key;
            let same_unit = |o: &Part| (o.key.0, o.key.1) == (file, unit);
            let mixed = unstable.contains(&(file, unit))
                || parts.iter().any(|o| same_unit(o) && o.key.2 != part.key.2);
            let alone = !parts.iter().enumerate().any(|(k, o)| k != i && same_unit(o));
            let whole = alone && !mixed && part.first == 0 && part.n == part.of;
            let at = from + u64::from(part.start) * SECTOR as u64;
            let len = u64::from(part.n) * SECTOR as u64;
            let carrier = Carrier { request, whole, mixed, at, len };
            self.carriers.entry(part.key).or_default().push(carrier);
            let unit = self.units.entry((file, unit)).or_default();
            if unit.last() != Some(&request) {
                unit.push(request);
            }
        }
    }

    pub(super) fn lb_size(&self) -> u32 {
        self.bytes.lb_size()
    }

    /// See [`Bytes::read`].
    pub(super) fn read(
        &self,
        first: u64,
        sources: &[Source],
        out: &mut [u8],
    ) -> Result<(), ExploreError> {
        self.bytes.read(first, sources, out)
    }

    pub(super) fn write(&self, request: u64) -> Option<&Written> {
        self.writes.get(&request)
    }

    /// Up to this crash point.
    pub(super) fn carriers(&self, key: (u32, u64, u32), after: u64) -> &[Carrier] {
        let all = self.carriers.get(&key).map_or(&[][..], Vec::as_slice);
        &all[..all.partition_point(|carrier| carrier.request <= after)]
    }

    /// The requests that carried some of a unit, rising.
    pub(super) fn requests_of(&self, unit: (u32, u64)) -> &[u64] {
        self.units.get(&unit).map_or(&[], Vec::as_slice)
    }

    /// Where on the disk a unit was written, by which requests, in their order.
    pub fn places(&self, file: u32, unit: u64) -> Vec<Place> {
        let own = self.carriers.iter().filter(|(key, _)| (key.0, key.1) == (file, unit));
        let mut places: Vec<Place> = own
            .flat_map(|((.., generation), carriers)| {
                carriers.iter().map(|carrier| Place {
                    write: Seq(carrier.request),
                    generation: *generation,
                    bytes: carrier.at..carrier.at + carrier.len,
                })
            })
            .collect();
        places.sort_by_key(|place| (place.write, place.bytes.start));
        places
    }

    /// What the sectors of a logical block of a write hold: sectors from the block's first, how
    /// many, what.
    pub(super) fn block_runs(&self, request: Seq, block: u32) -> Vec<(u32, u32, What)> {
        let per = self.lb_size() / SECTOR as u32;
        let (start, end) = (block * per, (block + 1) * per);
        let Some(written) = self.writes.get(&request.0) else {
            return vec![(0, per, What::Unknown)];
        };
        let first = written.runs.partition_point(|run| run.at + run.n <= start);
        written.runs[first..]
            .iter()
            .take_while(|run| run.at < end)
            .map(|run| {
                let from = run.at.max(start);
                let n = (run.at + run.n).min(end) - from;
                (from - start, n, advance(run.what, from - run.at))
            })
            .collect()
    }

    /// Appends what the sectors of a disk's block hold where sectors of this unit are expected.
    pub(super) fn sectors(
        &self,
        block: u64,
        source: Source,
        target: &Target,
        unit: u64,
        out: &mut Vec<Found>,
    ) -> Result<(), ExploreError> {
        let per = self.lb_size() as usize / SECTOR;
        match source {
            Source::Written { request, block } => {
                for (_, n, what) in self.block_runs(request, block) {
                    for i in 0..n {
                        let sector = out.len() as u32;
                        out.push(found(advance(what, i), target, unit, sector));
                    }
                }
            }
            Source::Zeroes => out.extend(std::iter::repeat_n(Found::Zero {}, per)),
            Source::Garbage { .. } => out.extend(std::iter::repeat_n(Found::Unknown {}, per)),
            Source::Base | Source::Flipped { .. } => {
                let mut bytes = vec![0; self.lb_size() as usize];
                self.bytes.read(block, &[source], &mut bytes)?;
                for sector in bytes.chunks_exact(SECTOR) {
                    let number = out.len() as u32;
                    out.push(payload::classify(sector, self.nonce, target.file, unit, number));
                }
            }
        }
        Ok(())
    }
}

/// What a request carried of one unit, or of its slot.
#[derive(Debug)]
struct Part {
    /// (file, unit, generation)
    of: (u32, u64, u32),
    slot: bool,
    /// Sectors: from the payload's beginning, from that of the unit or slot, how many.
    at: u32,
    first: u32,
    n: u32,
}

impl Written {
    fn parts(&self) -> Vec<Part> {
        let head = HEADER / SECTOR as u32;
        let mut parts: Vec<Part> = Vec::new();
        for run in &self.runs {
            match run.what {
                What::Slot { file, unit, r#gen } => {
                    let of = (file, unit, r#gen);
                    parts.push(Part { of, slot: true, at: run.at, first: 0, n: head });
                }
                What::Ours { file, unit, r#gen, first, .. } => match parts.last_mut() {
                    // The image behind its head.
                    Some(part)
                        if part.slot
                            && part.of == (file, unit, r#gen)
                            && (run.at, first) == (part.at + head, 0) =>
                    {
                        part.n += run.n;
                    }
                    _ => {
                        let of = (file, unit, r#gen);
                        parts.push(Part { of, slot: false, at: run.at, first, n: run.n });
                    }
                },
                _ => {}
            }
        }
        parts
    }
}

/// The same run of sectors, so many sectors later.
fn advance(what: What, by: u32) -> What {
    match what {
        What::Ours { file, unit, r#gen, first, of } => {
            What::Ours { file, unit, r#gen, first: first + by, of }
        }
        other => other,
    }
}

/// Equal neighbours together, and sectors of one generation in a row.
fn push(runs: &mut Vec<Run>, at: u32, what: What) {
    if let Some(last) = runs.last_mut()
        && advance(last.what, last.n) == what
        && !matches!(what, What::Corrupt { .. } | What::Slot { .. })
    {
        last.n += 1;
        return;
    }
    runs.push(Run { at, n: 1, what });
}

/// [`payload::classify`], of what was read already.
fn found(what: What, target: &Target, unit: u64, sector: u32) -> Found {
    match what {
        What::Ours { file, unit: of, r#gen, first, .. } => {
            if (file, of, first) == (target.file, unit, sector) {
                Found::Own { r#gen }
            } else {
                Found::Misplaced { file, unit: of, sector: first, r#gen }
            }
        }
        What::Foreign { nonce } => Found::Foreign { nonce },
        What::Corrupt { .. } => Found::Corrupt {},
        What::Zero => Found::Zero {},
        What::Slot { .. } | What::Unknown => Found::Unknown {},
    }
}

impl Explain for Carried {
    fn call(&self, write: Seq, blocks: &Range<u64>) -> Option<Call> {
        let written = self.write(write.0)?;
        let first = written.offset / u64::from(self.lb_size());
        let last = (written.offset + written.len).div_ceil(u64::from(self.lb_size()));
        let per = u64::from(self.lb_size()) / SECTOR as u64;
        let (from, to) = (blocks.start.max(first) - first, blocks.end.min(last).max(first) - first);
        let part = written.parts().into_iter().find(|part| {
            u64::from(part.at) < to * per && from * per < u64::from(part.at + part.n)
        })?;
        let (file, unit, generation) = part.of;
        let target = self.workload.files.iter().find(|target| target.file == file)?;
        let asked = self.ledgers.unit((file, unit), Seq(u64::MAX)).asked(generation)?;
        let text = match (asked.load, part.slot) {
            (true, _) => "(load)".to_owned(),
            (false, false) => call(asked.len, asked.offset, asked.flags),
            (false, true) => {
                format!("the record of {}", call(asked.len, asked.offset, asked.flags))
            }
        };
        let begins = if part.slot { slot_of(target, unit)?.start } else { target.offset_of(unit) };
        Some(Call {
            call: text,
            path: target.path.clone(),
            offset: begins + u64::from(part.first) * SECTOR as u64,
            len: u64::from(part.n) * SECTOR as u64,
            unit,
            generation,
        })
    }
}

//! What depends neither on the profile nor on the crash point: which writes cover each block.

use super::super::cut::extents;
use super::super::{History, Request, RequestKind, Source, content_hash};
use crate::event::Seq;
use std::ops::Range;

/// Says which contents of a block are equal: the same number for the same bytes.
pub type Ids<'a> = dyn Fn(u64, Source) -> u64 + Sync + 'a;

/// The writes of one recording, by block. Made once, for all threads, profiles and points.
pub struct Walk<'a> {
    pub(super) history: &'a History,
    pub(super) ids: &'a Ids<'a>,
    /// The power cut on whose crash state all this happened.
    base: Option<Seq>,
    /// What changes the disk: indexes in the history's requests.
    writes: Vec<u32>,
    /// The blocks that anything was written to, in runs: (first block, its number here).
    runs: Vec<(u64, u32)>,
    blocks: Vec<u64>,
    base_ids: Vec<u64>,
    /// Where the versions of each block begin; one more than there are blocks.
    first: Vec<u32>,
    versions: Vec<Version>,
    version_ids: Vec<u64>,
    /// Since when a write is stable, or its chain was fetched again: rising.
    pub(super) stable: Vec<(Seq, u32)>,
    pub(super) again: Vec<(Seq, u32)>,
    /// When writes that were in flight together begin to matter over one block, and when a later
    /// stable write ends that: each rising.
    tangled: Vec<Seq>,
    untangled: Vec<Seq>,
    first_discard: Option<Seq>,
}

/// A write over a block: index in [`Walk::writes`], and which of its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) write: u32,
    pub(super) extent: u32,
}

/// A version of a block: its number in [`Walk::versions`] and one; 0 is the base.
pub(super) type Code = u32;

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("writes", &self.writes.len())
            .field("blocks", &self.blocks.len())
            .field("versions", &self.versions.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Walk<'a> {
    /// Of the crash points after the power cut `base` (`None`: from the recording's beginning) and
    /// up to the next. Asks `ids` once for every block of every write, write by write.
    pub fn new(history: &'a History, base: Option<Seq>, ids: &'a Ids<'a>) -> Walk<'a> {
        let next = history.power_cuts.iter().find(|cut| base.is_none_or(|base| **cut > base));
        let epoch = history.epoch(next.copied().unwrap_or(Seq(u64::MAX)));
        let epoch = if history.base_of(next.copied().unwrap_or(Seq(u64::MAX))) == base {
            epoch
        } else {
            &[]
        };
        let offset = epoch.first().map_or(0, |first| {
            history.requests().partition_point(|request| request.id() < first.id())
        });
        let writes: Vec<u32> = epoch
            .iter()
            .enumerate()
            .filter(|(_, request)| request.changes())
            .map(|(i, _)| (offset + i) as u32)
            .collect();
        let mut walk = Walk {
            history,
            ids,
            base,
            writes,
            runs: Vec::new(),
            blocks: Vec::new(),
            base_ids: Vec::new(),
            first: Vec::new(),
            versions: Vec::new(),
            version_ids: Vec::new(),
            stable: Vec::new(),
            again: Vec::new(),
            tangled: Vec::new(),
            untangled: Vec::new(),
            first_discard: None,
        };
        walk.find_blocks();
        walk.find_versions();
        walk.find_times();
        walk.find_tangles();
        walk
    }

    pub fn history(&self) -> &'a History {
        self.history
    }

    /// Is this crash point one of those?
    pub fn covers(&self, after: Seq) -> bool {
        self.history.base_of(after) == self.base
    }

    pub(super) fn writes(&self) -> usize {
        self.writes.len()
    }

    pub(super) fn request(&self, write: u32) -> &'a Request {
        &self.history.requests()[self.writes[write as usize] as usize]
    }

    /// How many writes were submitted up to this event.
    pub(super) fn submitted(&self, after: Seq) -> u32 {
        let requests = self.history.requests();
        self.writes.partition_point(|i| requests[*i as usize].id() <= after) as u32
    }

    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The number of a block, if anything was ever written to it.
    pub(super) fn number(&self, block: u64) -> Option<u32> {
        self.number_near(block, &mut 0)
    }

    /// As [`Walk::number`]; quick where it lies in the run `hint`, which is then its run.
    pub(super) fn number_near(&self, block: u64, hint: &mut usize) -> Option<u32> {
        let inside = |run: usize| {
            let (start, number) = *self.runs.get(run)?;
            let next =
                self.runs.get(run + 1).map_or(self.blocks.len() as u64, |(_, n)| (*n).into());
            let number = u64::from(number) + block.checked_sub(start)?;
            (number < next).then_some(number as u32)
        };
        if let Some(number) = inside(*hint) {
            return Some(number);
        }
        *hint = self.runs.partition_point(|(start, _)| *start <= block).checked_sub(1)?;
        inside(*hint)
    }

    /// The codes of the versions of a block, the oldest first.
    pub(super) fn codes(&self, number: u32) -> Range<Code> {
        self.first[number as usize] + 1..self.first[number as usize + 1] + 1
    }

    pub(super) fn version(&self, code: Code) -> Version {
        self.versions[code as usize - 1]
    }

    pub(super) fn code_id(&self, number: u32, code: Code) -> u64 {
        match code {
            0 => self.base_ids[number as usize],
            code => self.version_ids[code as usize - 1],
        }
    }

    pub(super) fn base_id(&self, number: u32) -> u64 {
        self.base_ids[number as usize]
    }

    pub(super) fn source(&self, number: u32, code: Code) -> Source {
        if code == 0 {
            return Source::Base;
        }
        let version = self.version(code);
        source(self.history, self.request(version.write), self.blocks[number as usize])
    }

    /// Which content this is, wherever it came from.
    pub(super) fn id(&self, block: u64, source: Source) -> u64 {
        let known = self.number(block).and_then(|number| {
            match source {
                Source::Base => Some(0),
                Source::Written { request, .. } => {
                    let codes = self.codes(number);
                    let mut codes = codes.skip_while(|c| self.id_of(*c) < request);
                    codes.next().filter(|c| self.source(number, *c) == source)
                }
                _ => None,
            }
            .map(|code| self.code_id(number, code))
        });
        known.unwrap_or_else(|| (self.ids)(block, source))
    }

    fn id_of(&self, code: Code) -> Seq {
        self.request(self.version(code).write).id()
    }

    /// What a content adds to a fingerprint.
    pub(super) fn hash(&self, block: u64, number: Option<u32>, id: u64) -> u128 {
        let base = match number {
            Some(number) => self.base_id(number),
            None => (self.ids)(block, Source::Base),
        };
        if id == base {
            return 0;
        }
        content_hash(block, id).wrapping_sub(content_hash(block, base))
    }

    /// May more than one order of writes matter at this crash point?
    pub(super) fn is_tangled(&self, after: Seq) -> bool {
        let begun = self.tangled.partition_point(|at| *at <= after);
        let ended = self.untangled.partition_point(|at| *at <= after);
        begun > ended
    }

    pub(super) fn has_discards(&self, after: Seq) -> bool {
        self.first_discard.is_some_and(|first| first <= after)
    }

    pub(super) fn ranges(&self, request: &Request) -> impl Iterator<Item = Range<u64>> + use<'a> {
        extents(self.history, request, 1).0.into_iter().map(|extent| extent.blocks)
    }

    fn find_blocks(&mut self) {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for i in &self.writes {
            ranges.extend(self.ranges(&self.history.requests()[*i as usize]));
        }
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            let start = range.start.max(self.blocks.last().map_or(0, |last| last + 1));
            if start >= range.end {
                continue;
            }
            if self.blocks.last().is_none_or(|last| last + 1 != start) {
                self.runs.push((start, self.blocks.len() as u32));
            }
            self.blocks.extend(start..range.end);
        }
        self.base_ids = self.blocks.iter().map(|b| (self.ids)(*b, Source::Base)).collect();
    }

    fn find_versions(&mut self) {
        let mut count = vec![0u32; self.blocks.len() + 1];
        let each = |f: &mut dyn FnMut(Version, &Request, u64, u32)| {
            for write in 0..self.writes.len() as u32 {
                let request = self.request(write);
                for (extent, range) in (0u32..).zip(self.ranges(request)) {
                    // Every block that was written to has a number; those of a range follow one
                    // another.
                    let Some(first) = self.number(range.start) else { continue };
                    for (number, block) in (first..).zip(range) {
                        f(Version { write, extent }, request, block, number);
                    }
                }
            }
        };
        each(&mut |_, _, _, number| count[number as usize + 1] += 1);
        for i in 1..count.len() {
            count[i] += count[i - 1];
        }
        let mut next = count.clone();
        let total = count.last().copied().unwrap_or(0) as usize;
        let mut versions = vec![Version { write: 0, extent: 0 }; total];
        let mut ids = vec![0u64; total];
        each(&mut |version, request, block, number| {
            let at = next[number as usize] as usize;
            next[number as usize] += 1;
            versions[at] = version;
            ids[at] = (self.ids)(block, source(self.history, request, block));
        });
        (self.first, self.versions, self.version_ids) = (count, versions, ids);
    }

    fn find_times(&mut self) {
        for write in 0..self.writes.len() as u32 {
            let request = self.request(write);
            self.stable.extend(request.stable().map(|(since, _)| (since, write)));
            self.again.extend(request.fetched_again().map(|again| (again, write)));
            if request.kind() == RequestKind::Discard {
                let first = self.first_discard.get_or_insert(request.id());
                *first = (*first).min(request.id());
            }
        }
        self.stable.sort_unstable();
        self.again.sort_unstable();
    }

    /// Pairs of writes over one block, neither of which ended before the other was submitted.
    fn find_tangles(&mut self) {
        // The earliest submission from each write on: what ended before it is before all of them.
        let mut earliest: Vec<Seq> =
            (0..self.writes.len() as u32).map(|i| self.request(i).submitted()).collect();
        for i in (1..earliest.len()).rev() {
            earliest[i - 1] = earliest[i - 1].min(earliest[i]);
        }
        let mut together: Vec<(u32, Version)> = Vec::new();
        for number in 0..self.blocks.len() as u32 {
            together.clear();
            for code in self.codes(number) {
                let version = self.version(code);
                let request = self.request(version.write);
                let from = earliest[version.write as usize];
                together.retain(|(_, old)| {
                    self.request(old.write).end().is_none_or(|end| end.at() >= from)
                });
                for (_, other) in &together {
                    let other = self.request(other.write);
                    // The same request, fetched again: never both.
                    let gone = other.fetched_again().is_some_and(|again| again <= request.id());
                    if gone || other.id() != request.id() && other.is_before(request) {
                        continue;
                    }
                    self.tangled.push(request.id());
                    let mut later = (code + 1..self.codes(number).end)
                        .map(|code| self.request(self.version(code).write));
                    let settles = later.find_map(|later| {
                        let firm = !(later.kind() == RequestKind::Discard)
                            && later.fetched_again().is_none();
                        let after = other.is_before(later) && request.is_before(later);
                        later.stable().filter(|_| firm && after).map(|(since, _)| since)
                    });
                    self.untangled.extend(settles);
                }
                together.push((code, version));
            }
        }
        self.tangled.sort_unstable();
        self.untangled.sort_unstable();
    }
}

fn source(history: &History, request: &Request, block: u64) -> Source {
    match (request.kind(), request.ranges().first()) {
        (RequestKind::Write { .. }, Some((offset, len))) => {
            let first = history.disk().touched(*offset, *len).start;
            Source::Written { request: request.id(), block: (block - first) as u32 }
        }
        _ => Source::Zeroes,
    }
}

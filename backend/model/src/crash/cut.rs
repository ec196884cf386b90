//! A crash point: which writes there are, which of their fragments may still go either way.

use super::RequestKind;
use super::{AtomicMode, DiscardReads, History, Mask, ModelError, Parsed, Profile, Request};
use super::{Choice, Source, Stable, StateName};
use crate::event::Seq;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A crash point seen with a profile.
#[derive(Debug)]
pub struct Cut<'a> {
    pub history: &'a History,
    pub after: Seq,
    pub profile: &'a Profile,
    /// Every write up to here that the content is made of, in submission order (of `id`).
    pub(super) writes: Vec<Write<'a>>,
    /// The blocks whose content is not settled. Every other block shows the last write over it.
    pub(super) open: BTreeMap<u64, Unsettled>,
}

/// The writes over a block whose content is not settled, each list in submission order.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsettled {
    /// What may show.
    pub(super) shows: SmallVec<[u32; 4]>,
    /// What a later stable write hides for ever, but was in flight together with one of the above:
    /// it takes part in their order.
    pub(super) hidden: SmallVec<[u32; 4]>,
}

impl Unsettled {
    /// All of them, in submission order.
    pub(super) fn all(&self) -> SmallVec<[u32; 4]> {
        let mut all: SmallVec<[u32; 4]> = self.shows.iter().chain(&self.hidden).copied().collect();
        all.sort_unstable();
        all
    }
}

/// What is written in one go: a write; a segment of a discard or of a write zeroes.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub(super) blocks: Range<u64>,
    /// The number of its first fragment.
    first: usize,
    /// Blocks before its first: of a discard's segments, one after another.
    skipped: u64,
}

/// A write, discard or write zeroes at a crash point.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) request: &'a Request,
    /// It is one fragment, because the profile makes it atomic.
    pub(super) whole: bool,
    /// Why it is stable here.
    pub(super) stable: Option<Stable>,
    pub(super) extents: SmallVec<[Extent; 1]>,
    /// Blocks in a tear unit.
    unit: u64,
    /// Tear units, whether it may be cut there or not.
    pub(super) units: usize,
}

/// A fragment: which write (index into [`Cut::writes`]), and which of its fragments.
pub(super) type Fragment = (u32, usize);

impl<'a> Write<'a> {
    /// `unit`: blocks in a tear unit of the profile.
    pub(super) fn new(
        history: &History,
        profile: &Profile,
        unit: u64,
        request: &'a Request,
        after: Seq,
    ) -> Write<'a> {
        // What may show through does so block by block: nothing holds its blocks together.
        let apart =
            request.kind() == RequestKind::Discard && profile.discard == DiscardReads::Either;
        let unit = if apart { 1 } else { unit };
        let (extents, units) = extents(history, request, unit);
        let whole = match (request.kind(), request.ranges().first()) {
            (RequestKind::Write { atomic, .. }, Some((offset, len))) => {
                profile.eligible(*offset, *len, atomic)
            }
            _ => false,
        };
        let stable = request.stable().filter(|(since, _)| *since <= after).map(|(_, why)| why);
        Write { request, whole, stable, extents, unit, units }
    }
}

impl Write<'_> {
    pub(super) fn id(&self) -> Seq {
        self.request.id()
    }

    /// How many fragments it has.
    pub(super) fn fragments(&self) -> usize {
        if self.whole { self.units.min(1) } else { self.units }
    }

    pub(super) fn is_discard(&self) -> bool {
        self.request.kind() == RequestKind::Discard
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.extents.iter().flat_map(|extent| extent.blocks.clone())
    }

    /// Which tear unit of the extent's a block lies in, counted over the whole write.
    pub(super) fn unit_of(&self, extent: &Extent, block: u64) -> usize {
        let unit = block / self.unit - extent.blocks.start / self.unit;
        extent.first + unit as usize
    }

    pub(super) fn fragment_of(&self, extent: &Extent, block: u64) -> usize {
        if self.whole { 0 } else { self.unit_of(extent, block) }
    }

    /// Its fragments over this block: more than one where its segments overlap.
    pub(super) fn fragments_over(&self, block: u64) -> impl Iterator<Item = usize> + '_ {
        let over = self.extents.iter().filter(move |e| e.blocks.contains(&block));
        over.map(move |extent| self.fragment_of(extent, block))
    }

    /// Where in a discard's mask this block is.
    pub(super) fn bit_of(&self, extent: &Extent, block: u64) -> usize {
        (extent.skipped + block - extent.blocks.start) as usize
    }

    /// Blocks over all extents.
    pub(super) fn length(&self) -> usize {
        self.extents.last().map_or(0, |e| (e.skipped + e.blocks.end - e.blocks.start) as usize)
    }

    /// The blocks of one fragment.
    pub(super) fn blocks_of(&self, fragment: usize) -> Range<u64> {
        let next = self.extents.partition_point(|extent| extent.first <= fragment);
        let Some(extent) = next.checked_sub(1).map(|i| &self.extents[i]) else { return 0..0 };
        if self.whole {
            return extent.blocks.clone();
        }
        let start =
            (extent.blocks.start / self.unit + (fragment - extent.first) as u64) * self.unit;
        start.max(extent.blocks.start)..(start + self.unit).min(extent.blocks.end)
    }

    /// All-or-nothing in a way that matters: the profile makes the write atomic, or the fragment
    /// is a tear unit of several blocks.
    pub(super) fn is_atomic(&self, fragment: usize) -> bool {
        let blocks = self.blocks_of(fragment);
        self.whole || blocks.end - blocks.start > 1
    }

    /// What a block holds when this write shows there.
    pub(super) fn source(&self, block: u64) -> Source {
        match (self.request.kind(), self.extents.first()) {
            (RequestKind::Write { .. }, Some(extent)) => {
                let block = (block - extent.blocks.start) as u32;
                Source::Written { request: self.request.id(), block }
            }
            _ => Source::Zeroes,
        }
    }
}

/// The extents of a request, and how many tear units they have.
pub(super) fn extents(
    history: &History,
    request: &Request,
    unit: u64,
) -> (SmallVec<[Extent; 1]>, usize) {
    let disk = history.disk();
    let lb = u64::from(disk.lb_size);
    let (mut first, mut skipped) = (0, 0);
    let mut extents = SmallVec::new();
    for (offset, len) in request.ranges() {
        let blocks = match request.kind() {
            // A disk forgets whole blocks or none.
            RequestKind::Discard => offset.div_ceil(lb)..(offset + len) / lb,
            _ => disk.touched(offset, len),
        };
        if len == 0 || blocks.is_empty() {
            continue;
        }
        let length = blocks.end - blocks.start;
        let units = (blocks.end - 1) / unit - blocks.start / unit + 1;
        extents.push(Extent { blocks, first, skipped });
        first += units as usize;
        skipped += length;
    }
    (extents, first)
}

impl<'a> Cut<'a> {
    pub(super) fn new(history: &'a History, after: Seq, profile: &'a Profile) -> Cut<'a> {
        let unit = profile.tear_unit_on(history.disk()) / u64::from(history.disk().lb_size);
        let live = history.epoch(after).iter().filter(|request| {
            request.changes() && request.fetched_again().is_none_or(|again| again > after)
        });
        let writes = live.map(|request| Write::new(history, profile, unit, request, after));
        let mut cut =
            Cut { history, after, profile, writes: writes.collect(), open: BTreeMap::new() };
        cut.open = cut.unsettled();
        cut
    }

    /// May a discard leave a block as it was, even where it is stable?
    pub(super) fn may_show_through(&self, write: &Write<'_>) -> bool {
        write.is_discard() && self.profile.discard == DiscardReads::Either
    }

    /// Does it never change anything?
    pub(super) fn is_void(&self, write: &Write<'_>) -> bool {
        write.units == 0 || write.is_discard() && self.profile.discard == DiscardReads::Old
    }

    /// The blocks of volatile writes, of discards that may show through, and of writes that were in
    /// flight together: what may show there.
    fn unsettled(&self) -> BTreeMap<u64, Unsettled> {
        let mut open: BTreeMap<u64, Unsettled> = BTreeMap::new();
        // The earliest submission from each write on: what ended before it is before all of them.
        let mut earliest: Vec<Seq> = self.writes.iter().map(|w| w.request.submitted()).collect();
        for i in (1..earliest.len()).rev() {
            earliest[i - 1] = earliest[i - 1].min(earliest[i]);
        }
        let may_matter = |i: u32, from: usize| {
            let end = self.writes[i as usize].request.end();
            end.is_none_or(|end| end.at() >= earliest[from])
        };
        let mut together: Vec<u32> = Vec::new();
        let numbered = || (0u32..).zip(&self.writes).filter(|(_, w)| !self.is_void(w));
        for (i, write) in numbered() {
            if write.stable.is_none() || self.may_show_through(write) {
                open.extend(write.blocks().map(|block| (block, Unsettled::default())));
            }
            together.retain(|other| may_matter(*other, i as usize));
            for other in together.iter().filter(|other| !self.is_before(**other, i)) {
                for a in &write.extents {
                    for b in &self.writes[*other as usize].extents {
                        let start = a.blocks.start.max(b.blocks.start);
                        let end = a.blocks.end.min(b.blocks.end);
                        open.extend((start..end).map(|block| (block, Unsettled::default())));
                    }
                }
            }
            together.push(i);
        }
        for (i, write) in numbered() {
            let settles = write.stable.is_some() && !self.may_show_through(write);
            for extent in &write.extents {
                for (_, Unsettled { shows, hidden }) in open.range_mut(extent.blocks.clone()) {
                    if shows.last() == Some(&i) {
                        continue;
                    }
                    if settles {
                        let settled = |old: &&u32| self.is_before(**old, i);
                        hidden.extend(shows.iter().filter(settled).copied());
                        shows.retain(|old| !self.is_before(*old, i));
                    }
                    shows.push(i);
                    hidden.retain(|old| {
                        may_matter(*old, i as usize)
                            || shows.iter().any(|new| !self.is_before(*old, *new))
                    });
                }
            }
        }
        for Unsettled { shows, hidden } in open.values_mut() {
            hidden.retain(|old| shows.iter().any(|new| !self.is_before(*old, *new)));
        }
        open
    }

    /// Did write `a` end before write `b` was submitted?
    pub(super) fn is_before(&self, a: u32, b: u32) -> bool {
        self.writes[a as usize].request.is_before(self.writes[b as usize].request)
    }

    /// The volatile fragments that may show somewhere, in order.
    pub(super) fn open_fragments(&self) -> BTreeSet<Fragment> {
        let mut fragments = BTreeSet::new();
        for (block, open) in &self.open {
            for i in &open.shows {
                let write = &self.writes[*i as usize];
                if write.stable.is_none() {
                    fragments.extend(write.fragments_over(*block).map(|f| (*i, f)));
                }
            }
        }
        fragments
    }

    /// The index in `writes`.
    pub(super) fn find(&self, id: Seq) -> Result<u32, ModelError> {
        match self.writes.binary_search_by_key(&id, |w| w.request.id()) {
            Ok(i) => Ok(i as u32),
            Err(_) => Err(ModelError::State(format!(
                "event {id} submitted no write that counts at crash point {}",
                self.after
            ))),
        }
    }

    /// Submit events of the writes (discards and write zeroes among them) that are not stable here.
    pub fn volatile(&self) -> Vec<Seq> {
        self.writes.iter().filter(|w| w.stable.is_none() && w.units > 0).map(Write::id).collect()
    }

    /// Is this write all-or-nothing here?
    pub fn is_whole(&self, id: Seq) -> Result<bool, ModelError> {
        let write = &self.writes[self.find(id)? as usize];
        Ok(write.whole && self.profile.mode != AtomicMode::None)
    }

    /// How many fragments a write has, from the first (bit 0 of a mask) to the last.
    pub fn fragments(&self, id: Seq) -> Result<usize, ModelError> {
        Ok(self.writes[self.find(id)? as usize].fragments())
    }

    /// The blocks that each of these fragments of a write covers.
    pub fn fragment_blocks(&self, id: Seq, mask: &Mask) -> Result<Vec<Range<u64>>, ModelError> {
        let write = &self.writes[self.find(id)? as usize];
        Ok(mask.iter().filter(|f| *f < write.fragments()).map(|f| write.blocks_of(f)).collect())
    }

    /// A name says the profile as briefly as this disk allows, so that a state has one name
    /// however the profile was spelt.
    pub(super) fn name(&self, choice: Choice) -> StateName {
        let profile = self.profile.on(self.history.disk());
        StateName::from(&Parsed { profile, after: self.after, choice })
    }
}

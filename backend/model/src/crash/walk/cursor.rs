//! Where a walk stands: one state of one crash point.

use super::super::coverage::{Coverage, Cuts};
use super::super::cut::Cut;
use super::super::state::State;
use super::super::{Content, ModelError, Profile, Source};
use super::slow::Overlay;
use super::steps::Steps;
use super::tables::{Code, Walk};
use crate::event::Seq;
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// [`Cursor::class`]: not there at this point, or never showing.
pub(super) const GONE: u32 = u32::MAX;
/// There for sure. Anything else is an index in [`Cursor::live`].
pub(super) const STABLE: u32 = u32::MAX - 1;

/// One state after another, at one crash point after another, with one profile.
pub struct Cursor<'w, 'a> {
    pub(super) walk: &'w Walk<'a>,
    pub(super) profile: &'w Profile,
    /// Blocks in a tear unit.
    pub(super) unit: u64,
    pub(super) after: Option<Seq>,
    /// Of each write.
    pub(super) class: Vec<u32>,
    pub(super) volatile: BTreeSet<u32>,
    /// What each block shows where everything is persisted.
    pub(super) reference: Vec<Code>,
    pub(super) reference_sum: u128,
    /// What each block shows now, but for the overlay.
    pub(super) now: Vec<Code>,
    pub(super) sum: u128,
    /// The volatile writes here, rising.
    pub(super) live: Vec<Live>,
    /// Those that may show somewhere: indexes in `live`.
    pub(super) open: Vec<u32>,
    pub(super) fragments: Vec<Fragment>,
    /// The fragment over each block of each live write: index in `fragments`.
    pub(super) cells: Vec<u32>,
    pub(super) changed: Changed,
    /// What the walk's own representation cannot say.
    pub(super) overlay: Option<Overlay>,
    pub(super) steps: Steps,
    /// The state that is shown is this one: (seed, n).
    pub(super) sample: Option<(u64, u64)>,
    pub(super) cut: Option<Box<Cut<'w>>>,
    /// Live writes that were changed since coverage was noted.
    pub(super) touched: Vec<u32>,
    /// What was covered of each write that can be torn.
    pub(super) cuts: Vec<Option<Box<Cuts>>>,
    pub(super) slow_coverage: Coverage,
    /// The run of blocks that was looked up last.
    pub(super) hint: Cell<usize>,
}

/// A volatile write.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) write: u32,
    pub(super) id: Seq,
    /// Its fragments are `first..first + count`.
    pub(super) first: u32,
    pub(super) count: u32,
    /// Of each extent: the number of its first block, the cell of that, and how many blocks.
    pub(super) extents: SmallVec<[(u32, u32, u32); 1]>,
    /// Was it changed since coverage was noted?
    pub(super) touched: bool,
}

/// A fragment of a volatile write.
#[derive(Clone, Debug)]
pub(super) struct Fragment {
    pub(super) live: u32,
    /// Numbers of its blocks.
    pub(super) blocks: (u32, u32),
    /// It may show somewhere.
    pub(super) open: bool,
    pub(super) kept: bool,
    /// In how many blocks it shows now.
    pub(super) shows: u32,
}

/// The blocks that changed since somebody looked.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    /// Everything may have.
    all: bool,
    blocks: Vec<u64>,
    stamps: Vec<u32>,
    stamp: u32,
}

impl Changed {
    pub(super) fn new(blocks: usize) -> Changed {
        Changed { all: true, blocks: Vec::new(), stamps: vec![0; blocks], stamp: 1 }
    }

    pub(super) fn note(&mut self, number: u32, block: u64) {
        let stamp = &mut self.stamps[number as usize];
        if *stamp != self.stamp {
            *stamp = self.stamp;
            self.blocks.push(block);
        }
    }

    /// A block without a number.
    pub(super) fn note_other(&mut self, block: u64) {
        self.blocks.push(block);
    }

    pub(super) fn note_all(&mut self) {
        self.all = true;
    }

    fn clear(&mut self) {
        self.all = false;
        self.blocks.clear();
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            self.stamps.fill(0);
            self.stamp = 1;
        }
    }
}

impl std::fmt::Debug for Cursor<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor({} at {:?}, {:032x})", self.profile, self.after, self.fingerprint())
    }
}

impl<'w, 'a> Cursor<'w, 'a> {
    pub fn walk(&self) -> &'w Walk<'a> {
        self.walk
    }

    pub fn profile(&self) -> &'w Profile {
        self.profile
    }

    /// The crash point; `None`: it was not told to [go](Cursor::go) anywhere.
    pub fn after(&self) -> Option<Seq> {
        self.after
    }

    /// The same for states of equal content, at whatever point and with whatever profile.
    pub fn fingerprint(&self) -> u128 {
        match &self.overlay {
            Some(overlay) => overlay.sum,
            None => self.sum,
        }
    }

    /// Where a block's bytes come from.
    pub fn of(&self, block: u64) -> Source {
        match self.overlay.as_ref().and_then(|overlay| overlay.blocks.get(&block)) {
            Some((source, _)) => *source,
            None => match self.number(block) {
                Some(number) => self.walk.source(number, self.now[number as usize]),
                None => Source::Base,
            },
        }
    }

    /// Equal for equal bytes of one block.
    pub fn id(&self, block: u64) -> u64 {
        match self.overlay.as_ref().and_then(|overlay| overlay.blocks.get(&block)) {
            Some((_, id)) => *id,
            None => match self.number(block) {
                Some(number) => self.walk.code_id(number, self.now[number as usize]),
                None => (self.walk.ids)(block, Source::Base),
            },
        }
    }

    /// Neighbours are mostly asked for together.
    fn number(&self, block: u64) -> Option<u32> {
        let mut hint = self.hint.get();
        let number = self.walk.number_near(block, &mut hint);
        self.hint.set(hint);
        number
    }

    /// The blocks that changed since [`Cursor::shown`] was called, some maybe back again; `None`:
    /// any.
    pub fn changed(&self) -> Option<&[u64]> {
        (!self.changed.all).then_some(&self.changed.blocks)
    }

    /// Somebody looked at this state: from now on changes count against it.
    pub fn shown(&mut self) {
        self.changed.clear();
    }

    /// The blocks in which this state differs from the reference of its point, rising.
    pub fn delta(&self) -> Vec<(u64, Source)> {
        let mut delta: BTreeMap<u64, Source> = BTreeMap::new();
        for fragment in self.fragments.iter().filter(|fragment| !fragment.kept) {
            for number in fragment.blocks.0..fragment.blocks.1 {
                let now = self.now[number as usize];
                if now != self.reference[number as usize] {
                    let block = self.walk.blocks()[number as usize];
                    delta.insert(block, self.walk.source(number, now));
                }
            }
        }
        if let Some(overlay) = &self.overlay {
            delta.extend(overlay.blocks.iter().map(|(block, (source, _))| (*block, *source)));
        }
        let reference = |block| match self.walk.number(block) {
            Some(number) => self.walk.source(number, self.reference[number as usize]),
            None => Source::Base,
        };
        delta.into_iter().filter(|(block, source)| reference(*block) != *source).collect()
    }

    /// The whole state.
    pub fn content(&self) -> Content {
        let numbered = (0u32..).zip(self.walk.blocks()).zip(&self.now);
        let mut blocks: BTreeMap<u64, Source> = numbered
            .filter(|(_, code)| **code != 0)
            .map(|((number, block), code)| (*block, self.walk.source(number, *code)))
            .collect();
        if let Some(overlay) = &self.overlay {
            blocks.extend(overlay.blocks.iter().map(|(block, (source, _))| (*block, *source)));
            blocks.retain(|_, source| *source != Source::Base);
        }
        Content { blocks }
    }

    /// The newest version of a block that is persisted.
    pub(super) fn top(&self, number: u32) -> Code {
        let bottom = self.walk.codes(number).start;
        let mut code = self.reference[number as usize];
        while code >= bottom {
            let version = self.walk.version(code);
            match self.class[version.write as usize] {
                GONE => {}
                STABLE => return code,
                live => {
                    if self.fragments[self.cell(live, version.extent, number)].kept {
                        return code;
                    }
                }
            }
            code -= 1;
        }
        0
    }

    /// The fragment of a live write over a block.
    pub(super) fn cell(&self, live: u32, extent: u32, number: u32) -> usize {
        let (first, cell, _) = self.live[live as usize].extents[extent as usize];
        self.cells[(cell + number - first) as usize] as usize
    }

    fn fragment_of(&self, number: u32, code: Code) -> Option<usize> {
        if code == 0 {
            return None;
        }
        let version = self.walk.version(code);
        match self.class[version.write as usize] {
            GONE | STABLE => None,
            live => Some(self.cell(live, version.extent, number)),
        }
    }

    /// Keeps or loses a fragment.
    pub(super) fn set(&mut self, fragment: u32, keep: bool) {
        let one = &mut self.fragments[fragment as usize];
        if one.kept == keep {
            return;
        }
        one.kept = keep;
        let ((from, to), live) = (one.blocks, one.live);
        if !std::mem::replace(&mut self.live[live as usize].touched, true) {
            self.touched.push(live);
        }
        for number in from..to {
            let (old, new) = (self.now[number as usize], self.top(number));
            if old == new {
                continue;
            }
            if let Some(fragment) = self.fragment_of(number, old) {
                self.fragments[fragment].shows -= 1;
            }
            if let Some(fragment) = self.fragment_of(number, new) {
                self.fragments[fragment].shows += 1;
            }
            self.show(number, new);
        }
    }

    /// Lets a block show this version.
    pub(super) fn show(&mut self, number: u32, new: Code) {
        let block = self.walk.blocks()[number as usize];
        let old = std::mem::replace(&mut self.now[number as usize], new);
        let (old, new) = (self.walk.code_id(number, old), self.walk.code_id(number, new));
        if old != new {
            let hash = |id| self.walk.hash(block, Some(number), id);
            self.sum = self.sum.wrapping_sub(hash(old)).wrapping_add(hash(new));
        }
        self.changed.note(number, block);
    }

    /// Takes the overlay away.
    pub(super) fn uncover(&mut self) {
        let Some(overlay) = self.overlay.take() else { return };
        for block in overlay.blocks.keys() {
            self.note_block(*block);
        }
    }

    pub(super) fn note_block(&mut self, block: u64) {
        match self.walk.number(block) {
            Some(number) => self.changed.note(number, block),
            None => self.changed.note_other(block),
        }
    }

    /// Everything that may show is kept, or lost.
    pub(super) fn set_all(&mut self, keep: bool) {
        for i in 0..self.fragments.len() as u32 {
            if self.fragments[i as usize].open {
                self.set(i, keep);
            }
        }
    }

    /// The state that is shown now, as the slow way has it.
    pub(super) fn state(&self, cut: &Cut<'_>) -> Result<State, ModelError> {
        if let Some((seed, n)) = self.sample {
            return Ok(cut.sample(seed, n));
        }
        if let Some(overlay) = &self.overlay {
            // As its name has it.
            return cut.resolve(&cut.select(&overlay.state));
        }
        cut.resolve(&self.selection())
    }
}

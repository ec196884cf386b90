//! From a state to the content of the disk.

use super::cut::Fragment;
use super::state::State;
use super::{Content, Cut, History, ModelError, Parsed, Source, StateName};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

impl History {
    /// Builds the state of that name (which says profile and point). Also names of illegal
    /// states, as faults make them: see [`Cut::violations`].
    ///
    /// # Errors
    /// The name cannot be read, or names what this history does not have.
    pub fn build(&self, name: &StateName) -> Result<Content, ModelError> {
        let parsed: Parsed = name.0.parse()?;
        let cut = self.cut(parsed.after, &parsed.profile)?;
        cut.content(&cut.resolve_choice(&parsed.choice)?)
    }
}

impl Cut<'_> {
    /// As [`History::build`], for a name of this very crash point and profile: cheaper where many
    /// states of one point are built.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn build(&self, name: &StateName) -> Result<Content, ModelError> {
        self.content(&self.state(name)?)
    }

    /// Which fragment shows in each block.
    pub(super) fn paint(&self, state: &State) -> BTreeMap<u64, Fragment> {
        self.paint_within(state, 0..u64::MAX)
    }

    /// Which fragment shows in each of these blocks: the writes are pushed under one another, the
    /// last submitted first, unless the state says that one lies over what is there.
    fn paint_within(&self, state: &State, within: Range<u64>) -> BTreeMap<u64, Fragment> {
        let mut top: BTreeMap<u64, Fragment> = BTreeMap::new();
        for (i, write) in self.writes.iter().enumerate().rev() {
            if self.is_void(write) && state.discards.is_empty() {
                continue;
            }
            let i = i as u32;
            for extent in write.extents.iter().rev() {
                let start = extent.blocks.start.max(within.start);
                for block in start..extent.blocks.end.min(within.end) {
                    let Some(fragment) = self.persisted(state, i, extent, block) else { continue };
                    match top.entry(block) {
                        Entry::Vacant(entry) => {
                            entry.insert((i, fragment));
                        }
                        Entry::Occupied(mut entry) => {
                            if state.says_over((i, fragment), *entry.get()) {
                                entry.insert((i, fragment));
                            }
                        }
                    }
                }
            }
        }
        top
    }

    /// The blocks of write `i` that show, and are neither garbage nor hidden by a write that landed
    /// at the wrong place.
    pub(super) fn shown(&self, state: &State, i: u32) -> BTreeSet<u64> {
        let extents = self.writes[i as usize].extents.iter();
        let tops = extents.flat_map(|extent| self.paint_within(state, extent.blocks.clone()));
        let hidden = |block: &u64| {
            let landed = state.misdirected.iter().any(|(other, at)| {
                (*at..*at + self.writes[*other as usize].length() as u64).contains(block)
            });
            landed || state.garbage.contains_key(block)
        };
        tops.filter(|(block, top)| top.0 == i && !hidden(block)).map(|(block, _)| block).collect()
    }

    pub(super) fn content(&self, state: &State) -> Result<Content, ModelError> {
        let mut blocks: BTreeMap<u64, Source> = self
            .paint(state)
            .into_iter()
            .map(|(block, (i, _))| (block, self.writes[i as usize].source(block)))
            .collect();
        blocks
            .extend(state.garbage.iter().map(|(at, seed)| (*at, Source::Garbage { seed: *seed })));
        self.damage_blocks(state, &mut blocks)?;
        Ok(Content { blocks })
    }

    /// What faults did on top of what the writes left: writes that landed elsewhere, bits inverted.
    pub(super) fn damage_blocks(
        &self,
        state: &State,
        blocks: &mut BTreeMap<u64, Source>,
    ) -> Result<(), ModelError> {
        for (i, target) in &state.misdirected {
            let write = &self.writes[*i as usize];
            let landed = write.blocks().zip(*target..);
            blocks.extend(landed.map(|(block, at)| (at, write.source(block))));
        }
        for (block, bit) in &state.flipped {
            let (request, number) = match blocks.get(block) {
                None | Some(Source::Base) => (None, 0),
                Some(Source::Written { request, block }) => (Some(*request), *block),
                Some(_) => return Err(ModelError::no_bit(*block)),
            };
            blocks.insert(*block, Source::Flipped { request, block: number, bit: *bit });
        }
        Ok(())
    }
}

impl ModelError {
    pub(super) fn no_bit(block: u64) -> ModelError {
        ModelError::State(format!(
            "no bit of block {block} can be inverted: it holds no written data"
        ))
    }
}

impl Content {
    /// A sum of one hash for each block that is not the base's, so that it can be kept up to date
    /// block by block. By where the bytes come from, not by the bytes.
    pub fn fingerprint(&self) -> u128 {
        self.blocks
            .iter()
            .filter(|(_, source)| **source != Source::Base)
            .fold(0, |sum: u128, (block, source)| sum.wrapping_add(source.fingerprint(*block)))
    }
}

impl Source {
    /// What this source at this block adds to [`Content::fingerprint`].
    pub fn fingerprint(&self, block: u64) -> u128 {
        let (kind, a, b, c) = match *self {
            Source::Base => return 0,
            Source::Written { request, block } => (1u64, request.0, u64::from(block), 0),
            Source::Zeroes => (2, 0, 0, 0),
            Source::Garbage { seed } => (3, seed, 0, 0),
            Source::Flipped { request: Some(request), block, bit } => {
                (4, request.0, u64::from(block), u64::from(bit))
            }
            Source::Flipped { request: None, block, bit } => {
                (5, 0, u64::from(block), u64::from(bit))
            }
        };
        let mut hash = Xxh3::new();
        for word in [block, kind, a, b, c] {
            hash.update(&word.to_le_bytes());
        }
        hash.digest128()
    }
}

/// What a block adds to a fingerprint that goes by bytes: `id` stands for what it holds. Both are
/// mixed so that sums of these are as good as random.
pub fn content_hash(block: u64, id: u64) -> u128 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let place = mix(block.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let low = mix(place ^ id);
    let high =
        mix(low.wrapping_add(id.rotate_left(32)) ^ block.wrapping_mul(0xd6e8_feb8_6659_fd93));
    u128::from(high) << 64 | u128::from(low)
}

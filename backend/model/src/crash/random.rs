//! Samples: the nth state of a seed, the same on every machine.
//!
//! Version 1. Everything is drawn from one generator (splitmix64) that begins with the hash of the
//! state's own name, but for what a discard leaves behind: that depends on nothing but seed,
//! request and block, because it must be the same live and after every crash. Whatever changes a
//! draw is a new version: a name means the same content for ever.

use super::cut::Fragment;
use super::state::State;
use super::{Choice, Cut, Mask, StateName};
use crate::event::Seq;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Of the way in which samples are drawn.
pub(super) const VERSION: u32 = 1;

/// splitmix64: tiny, and the same everywhere.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0..n, of a positive `n`; the bias is far below what anybody could measure.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// True in `n` of 256 cases.
    pub(super) fn chance(&mut self, n: u64) -> bool {
        self.below(256) < n
    }
}

/// With `discard-either`: does this block read as zeroes after the discard that was submitted at
/// `request`, on the device of that seed? The same live and after a crash.
pub fn discard_reads_zeroes(seed: u64, request: Seq, block: u64) -> bool {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&request.0.to_le_bytes());
    bytes[8..].copy_from_slice(&block.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed) & 1 == 1
}

impl Cut<'_> {
    /// The nth random legal state of that seed.
    pub fn random(&self, seed: u64, n: u64) -> StateName {
        self.name(Choice::Random { version: VERSION, seed, n })
    }

    /// What [`Cut::random`] names.
    pub(super) fn sample(&self, seed: u64, n: u64) -> State {
        let mut rng = Rng::new(xxh3_64(self.random(seed, n).0.as_bytes()));
        let mut state = State { all: true, ..State::default() };
        let keep = draw_keep(&mut rng);
        for (i, fragments) in self.open_writes() {
            let write = &self.writes[i as usize];
            let mut lost = vec![false; fragments.len()];
            draw_lost(&mut rng, keep, &mut lost);
            if lost.contains(&true) {
                let mut mask = Mask::first(write.fragments());
                let gone = fragments.iter().zip(lost).filter(|(_, lost)| *lost);
                gone.for_each(|(fragment, _)| mask.set(*fragment, false));
                state.kept.insert(i, mask);
            }
        }
        self.sample_discards(seed, &mut state);
        if self.profile.garbage {
            for block in self.open.keys() {
                if self.may_be_garbage(*block) && rng.chance(64) {
                    state.garbage.insert(*block, rng.next());
                }
            }
        }
        if rng.chance(128) {
            self.sample_order(&mut rng, &mut state);
        }
        state
    }

    fn sample_discards(&self, seed: u64, state: &mut State) {
        for (block, open) in &self.open {
            for i in &open.shows {
                let write = &self.writes[*i as usize];
                if !self.may_show_through(write) || discard_reads_zeroes(seed, write.id(), *block) {
                    continue;
                }
                let mask = state.discards.entry(*i).or_insert_with(|| Mask::first(write.length()));
                for extent in write.extents.iter().filter(|e| e.blocks.contains(block)) {
                    mask.set(write.bit_of(extent, *block), false);
                }
            }
        }
    }

    /// Each fragment reaches the medium at a moment between its submission and its end: so the
    /// moments are an order that every rule allows.
    fn sample_order(&self, rng: &mut Rng, state: &mut State) {
        let mut moments: BTreeMap<Fragment, (u64, u64)> = BTreeMap::new();
        let mut winners = Vec::new();
        for (block, open) in &self.open {
            let layers = self.layers(state, &open.all(), *block);
            for fragment in &layers {
                moments.entry(*fragment).or_insert_with(|| {
                    let request = self.writes[fragment.0 as usize].request;
                    let end = request.end().map_or(self.after, |end| end.at().min(self.after)).0;
                    let from = request.submitted().0.min(end);
                    (from + rng.below(end - from + 1), rng.next())
                });
            }
            if let Some(winner) = layers.iter().copied().max_by_key(|f| (moments[f], f.0, f.1)) {
                winners.push((winner, layers));
            }
        }
        self.order_by_winners(state, winners);
    }
}

/// How much of what is volatile a sample keeps, of 256: of a cache that is nearly written back,
/// nearly not, and in between.
pub(super) fn draw_keep(rng: &mut Rng) -> u64 {
    [16, 64, 128, 192, 240][rng.below(5) as usize]
}

/// Which of the fragments of a write that may show a sample loses; all are kept so far.
pub(super) fn draw_lost(rng: &mut Rng, keep: u64, lost: &mut [bool]) {
    if lost.len() > 1 && rng.chance(96) {
        tear(rng, lost);
    } else if !rng.chance(keep) {
        lost.fill(true);
    }
}

/// Loses some fragments of a write and keeps some.
fn tear(rng: &mut Rng, lost: &mut [bool]) {
    let n = lost.len() as u64;
    match rng.below(4) {
        0 => lost[rng.below(n - 1) as usize + 1..].fill(true),
        1 => lost[..rng.below(n - 1) as usize + 1].fill(true),
        2 if n > 2 => {
            let from = rng.below(n - 2) + 1;
            let to = from + 1 + rng.below(n - 1 - from);
            lost[from as usize..to as usize].fill(true);
        }
        _ => lost.iter_mut().for_each(|lost| *lost = rng.chance(128)),
    }
}

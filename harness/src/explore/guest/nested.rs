//! The recovery on a crash state is recorded, and the power cut once more in the middle of it.
//!
//! The second recording's base is the crash state: what was persisted there is stable there. It has
//! crash points and states as any other; a recovery adds no promises, so that those of the first
//! cut are what must hold.

use super::super::ExploreError;
use super::GuestSettings;
use std::collections::HashSet;
use std::path::Path;
use tornblk_model::crash::{Content, History, Profile, Source, StateName};
use tornblk_model::recording::Reader;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Draws for each state that is wanted, before it is clear that there are no more.
const DRAWS: u64 = 8;

/// States of the recording of a recovery: drawn by the seed and the outer state's name, each
/// content once.
pub(super) fn sample(
    recording: &Path,
    profile: &Profile,
    outer: &str,
    settings: &GuestSettings,
) -> Result<Vec<(StateName, Content)>, ExploreError> {
    let reader = Reader::open(recording)?;
    let events = reader.events().collect::<Result<Vec<_>, _>>()?;
    let history = History::new(reader.header().disk.clone(), events)?;
    let points = history.points(true);
    let seed = xxh3_64_with_seed(outer.as_bytes(), settings.seed);
    let mut known = HashSet::new();
    let mut states = Vec::new();
    for n in 0..settings.nested.saturating_mul(DRAWS) {
        if points.is_empty() || states.len() as u64 >= settings.nested {
            break;
        }
        let draw = xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let after = points[(draw % points.len() as u64) as usize];
        let cut = history.cut(after, profile)?;
        let name = cut.spell_out(&cut.random(seed, n))?;
        let content = cut.build(&name)?;
        if known.insert(content.fingerprint()) {
            states.push((name, content));
        }
    }
    Ok(states)
}

/// What a state of a recovery still holds of the recording before the first cut.
pub(super) fn beneath(outer: &Content, inner: &Content) -> Content {
    let mut content = outer.clone();
    for (block, source) in &inner.blocks {
        if *source != Source::Base {
            // Whatever recovery wrote there, it is no recorded write of the workload.
            content.blocks.insert(*block, Source::Zeroes);
        }
    }
    content
}

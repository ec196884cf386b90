//! The recovery on a crash state is recorded, and the power cut once more in the middle of it.
//!
//! The second recording's base is the crash state: what was persisted there is stable there. It has
//! crash points and states as any other; a recovery adds no promises, so that those of the first
//! cut are what must hold.

use super::super::ExploreError;
use crate::oracle::Recovery;
use std::collections::HashSet;
use std::path::Path;
use tornblk_model::crash::{Content, History, Profile, Source, StateName};
use tornblk_model::recording::Reader;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Draws for each state that is wanted, before it is clear that there are no more.
const DRAWS: u64 = 8;

/// So many states of the recording of a recovery, or fewer where there are no more: drawn by the
/// seed and the outer state's name, each content once.
pub(super) fn sample(
    recording: &Path,
    profile: &Profile,
    outer: &str,
    wanted: u64,
    seed: u64,
) -> Result<Vec<(StateName, Content)>, ExploreError> {
    let history = history(recording)?;
    let points = history.points(true);
    let seed = xxh3_64_with_seed(outer.as_bytes(), seed);
    let mut known = HashSet::new();
    let mut states = Vec::new();
    for n in 0..wanted.saturating_mul(DRAWS) {
        if points.is_empty() || states.len() as u64 >= wanted {
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

/// What a state of a recovery holds, by its name.
pub(super) fn content(recovery: &Recovery) -> Result<Content, ExploreError> {
    let history = history(&recovery.recording)?;
    Ok(history.build(&StateName(recovery.state.clone()))?)
}

fn history(recording: &Path) -> Result<History, ExploreError> {
    let reader = Reader::open(recording)?;
    let events = reader.events().collect::<Result<Vec<_>, _>>()?;
    Ok(History::new(reader.header().disk.clone(), events)?)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::testing::Recorded;
    use super::*;
    use tornblk_model::event::Seq;

    #[test]
    fn states_of_a_recovery_are_drawn_by_the_seed_and_each_content_once() {
        let recorded = Recorded::some(512).end();
        let profile = "lb512".parse().unwrap();
        let draw = |outer: &str, n: u64, seed: u64| {
            let sample = sample(&recorded.path(), &profile, outer, n, seed).unwrap();
            sample.into_iter().map(|(name, content)| (name, content.fingerprint())).collect()
        };
        let first: Vec<_> = draw("lb512/p1:all", 6, 3);
        assert_eq!(first.len(), 6);
        let contents: HashSet<u128> = first.iter().map(|(_, content)| *content).collect();
        assert_eq!(contents.len(), 6);
        assert_eq!(first, draw("lb512/p1:all", 6, 3));
        assert_ne!(first, draw("lb512/p1:none", 6, 3));
        assert_ne!(first, draw("lb512/p1:all", 6, 4));
        // Far more than there are.
        let reader = Reader::open(&recorded.path()).unwrap();
        let events = reader.events().map(Result::unwrap);
        let history = History::new(reader.header().disk.clone(), events).unwrap();
        for (name, content) in draw("x", 50, 0) {
            assert_eq!(history.build(&name).unwrap().fingerprint(), content);
            assert!(history.violations(&name).unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn what_a_recovery_wrote_is_no_write_of_the_workload() {
        let written = |request| Source::Written { request: Seq(request), block: 0 };
        let outer = Content { blocks: [(1, written(5)), (2, written(6))].into() };
        let inner = Content { blocks: [(2, written(5)), (3, Source::Zeroes)].into() };
        let left = beneath(&outer, &inner);
        assert_eq!(
            (left.of(1), left.of(2), left.of(3)),
            (written(5), Source::Zeroes, Source::Zeroes)
        );
    }
}

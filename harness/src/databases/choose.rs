//! Which crash states a server is started from.

use super::Cell;
use crate::audit::PageWrites;
use crate::explore::{ExploreError, Opened};
use tornblk_model::crash::{Profile, StateName, Strategy};
use tornblk_model::event::{Event, Op, Seq, Submit};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// States of one strategy at one moment of which one is chosen.
const LOOKED_AT: usize = 1000;

/// Requests after which the power may be cut: those that overwrite pages that say by themselves whether they
/// are torn. Else all writes, since what else there is, a journal or a log, matters as much.
pub(super) fn candidates(cell: &Cell, opened: &Opened, pages: &PageWrites) -> Vec<Seq> {
    let all: Vec<u64> = if cell.database.judged().is_some() {
        let overwriting = pages.writes.iter().filter(|write| write.overwrites);
        overwriting.filter_map(|write| Some(write.carriers.last()?.request)).collect()
    } else {
        let is_write = |event: &Event| matches!(event, Event::Submit(Submit { op: Op::Write { len, .. }, .. }) if *len > 0);
        opened.events.iter().filter(|(_, event)| is_write(event)).map(|(seq, _)| seq.0).collect()
    };
    let mut all: Vec<Seq> = all.into_iter().map(Seq).collect();
    // A page write may begin before another one, and end after it.
    all.sort_unstable();
    all
}

/// So many of them, spread over all; the last one first, when most was acknowledged.
pub(super) fn moments(all: &[Seq], n: usize) -> Vec<Seq> {
    if all.is_empty() {
        return Vec::new();
    }
    let at = |i: usize| all[((i + 1) * all.len() / n).saturating_sub(1)];
    let mut some: Vec<Seq> = (0..n).map(at).collect();
    some.dedup();
    some.reverse();
    some
}

/// A state at this moment of the first of these strategies that has one. The seed chooses.
pub(super) fn state_at(
    opened: &Opened,
    profile: &Profile,
    at: Seq,
    strategies: &[Strategy],
    seed: u64,
) -> Result<Option<StateName>, ExploreError> {
    let cut = opened.history.cut(at, profile)?;
    for strategy in strategies {
        let mut names: Vec<StateName> = cut.states(*strategy).take(LOOKED_AT).collect();
        if !names.is_empty() {
            let drawn = xxh3_64_with_seed(&at.0.to_le_bytes(), seed);
            let at = (drawn % names.len() as u64) as usize;
            return Ok(Some(names.swap_remove(at)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_and_begin_with_the_last() {
        let all: Vec<Seq> = (10..110).map(Seq).collect();
        let seen: Vec<u64> = moments(&all, 4).iter().map(|at| at.0).collect();
        assert_eq!(seen, [109, 84, 59, 34]);
        // Fewer than asked for: each once.
        assert_eq!(moments(&all[..2], 5), [Seq(11), Seq(10)]);
        assert!(moments(&[], 3).is_empty());
    }
}

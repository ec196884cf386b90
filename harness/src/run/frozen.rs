//! What may not happen while a file system is frozen.

use super::relay::Batches;
use super::volume::make;
use super::{Lab, RunError};
use crate::explore::{ExploreError, GuestNeeds, Opened};
use crate::oracle::{self, Finding, Frozen};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What was wrong while the file system was frozen, of the cut in `dir`: what changed the disk, and what
/// a snapshot of it would have had. `guests`: a folder for their consoles.
pub(super) fn frozen(
    lab: &mut dyn Lab,
    dir: &Path,
    guests: &Path,
    batches: &Batches,
) -> Result<Vec<Finding>, RunError> {
    if !batches.iter().flatten().any(|(_, mark)| oracle::is_frozen(mark)) {
        return Ok(Vec::new());
    }
    let bad = |error: ExploreError| match error {
        ExploreError::Run(error) => error,
        ExploreError::Interrupted => RunError::Interrupted,
        other => RunError::Bad(format!("what was frozen cannot be judged: {other}")),
    };
    let opened = Opened::open(dir, None).map_err(bad)?;
    let (times, mut findings) = oracle::frozen(&opened.events);
    let Some(subject) = opened.subject.clone().filter(|_| !times.is_empty()) else {
        return Ok(findings);
    };
    let needs = GuestNeeds {
        dir: make(guests, "frozen")?,
        fsck_every: 1,
        nested: 0,
        seed: 0,
        // The guests' own waiting is ended by the lab's.
        stop: Arc::new(AtomicBool::new(false)),
    };
    findings.extend(lab.frozen(&opened, &subject, &needs, &some(&times)).map_err(bad)?);
    Ok(findings)
}

/// The first, the last and one between.
fn some(times: &[Frozen]) -> Vec<&Frozen> {
    let n = times.len();
    let mut chosen = vec![0, n / 2, n.saturating_sub(1)];
    chosen.dedup();
    chosen.into_iter().filter_map(|i| times.get(i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tornblk_model::event::Seq;

    #[test]
    fn of_many_frozen_times_three_are_mounted() {
        let times = |n: u64| -> Vec<Frozen> {
            (0..n).map(|i| Frozen { name: format!("frozen {i}"), since: Seq(i) }).collect()
        };
        let chosen = |n| some(&times(n)).iter().map(|t| t.since.0).collect::<Vec<_>>();
        assert_eq!(chosen(0), [0; 0]);
        assert_eq!(chosen(1), [0]);
        assert_eq!(chosen(2), [0, 1]);
        assert_eq!(chosen(9), [0, 4, 8]);
    }
}

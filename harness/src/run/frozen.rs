//! What may not happen while a file system is frozen.

use super::RunError;
use crate::explore::guest::{self, Case, GuestSettings};
use crate::explore::{ExploreError, Opened};
use crate::oracle::{self, Finding, Frozen};
use std::path::Path;

/// What was wrong while the file system was frozen, of the cut in `dir`: see [`super::Lab::frozen`].
pub(super) fn frozen(
    dir: &Path,
    settings: &GuestSettings,
    only_one: bool,
) -> Result<Vec<Finding>, RunError> {
    look(dir, settings, only_one).map_err(|error| match error {
        ExploreError::Run(error) => error,
        ExploreError::Interrupted => RunError::Interrupted,
        other => RunError::Bad(format!("what was frozen cannot be judged: {other}")),
    })
}

fn look(
    dir: &Path,
    settings: &GuestSettings,
    only_one: bool,
) -> Result<Vec<Finding>, ExploreError> {
    let opened = Opened::open(dir, None)?;
    let (times, mut findings) = oracle::frozen(&opened.events);
    let Some(subject) = opened.subject.clone().filter(|_| !times.is_empty()) else {
        return Ok(findings);
    };
    let times = if only_one { times.iter().take(1).collect() } else { some(&times) };
    let (base, events) = (opened.base.as_deref(), &opened.events);
    let case = Case::new(&opened.reader, base, subject, events, &opened.history)?;
    findings.extend(guest::frozen(&case, settings, &times)?);
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

//! Which events there are. A recording has millions, so only what is special is listed.

use crate::event::Seq;

/// What makes an event a crash point that is worth looking at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointKind {
    FlushCompleted,
    Mark,
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Moments {
    /// Numbers without a gap: first and last.
    runs: Vec<(u64, u64)>,
    /// Those that are not [`PointKind::Other`].
    special: Vec<(Seq, PointKind)>,
}

impl Moments {
    /// Adds an event, no earlier than the last; at the same moment, what is said last counts.
    pub(super) fn push(&mut self, at: Seq, kind: PointKind) {
        match self.runs.last_mut() {
            Some((_, last)) if *last == at.0 => {
                self.special.pop_if(|(known, _)| *known == at);
            }
            Some((_, last)) if *last + 1 == at.0 => *last = at.0,
            _ => self.runs.push((at.0, at.0)),
        }
        if kind != PointKind::Other {
            self.special.push((at, kind));
        }
    }

    pub(super) fn shrink(&mut self) {
        self.runs.shrink_to_fit();
        self.special.shrink_to_fit();
    }

    pub(super) fn last(&self) -> Option<Seq> {
        self.runs.last().map(|(_, last)| Seq(*last))
    }

    /// The event before this one.
    fn before(&self, at: Seq) -> Option<Seq> {
        let run = self.runs.partition_point(|(first, _)| *first < at.0).checked_sub(1)?;
        Some(Seq(self.runs[run].1.min(at.0 - 1)))
    }

    /// See [`History::points`](super::History::points).
    pub(super) fn points(&self, every_event: bool) -> Vec<Seq> {
        if every_event {
            return self.runs.iter().flat_map(|(first, last)| (*first..=*last).map(Seq)).collect();
        }
        let mut points = Vec::new();
        for (at, kind) in &self.special {
            if *kind == PointKind::FlushCompleted {
                points.extend(self.before(*at));
            }
            points.push(*at);
        }
        points.extend(self.last());
        points.dedup();
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_around_flushes_and_after_marks() {
        let mut moments = Moments::default();
        assert!(moments.points(false).is_empty());
        for (at, kind) in [
            (1, PointKind::Other),
            (2, PointKind::Other),
            (2, PointKind::FlushCompleted),
            (5, PointKind::FlushCompleted),
            (6, PointKind::Mark),
            (7, PointKind::FlushCompleted),
            (9, PointKind::Other),
        ] {
            moments.push(Seq(at), kind);
        }
        let seqs = |points: &[u64]| points.iter().copied().map(Seq).collect::<Vec<_>>();
        assert_eq!(moments.points(false), seqs(&[1, 2, 5, 6, 7, 9]));
        assert_eq!(moments.points(true), seqs(&[1, 2, 5, 6, 7, 9]));
        assert_eq!(moments.last(), Some(Seq(9)));
    }
}

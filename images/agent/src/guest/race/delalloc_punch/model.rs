//! What each unit of the file has to show, as far as it is known.

use crate::channel::Found;

/// A generation that is never asked for: what a write would have written behind the place where its
/// source ends.
pub(super) const NEVER: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// As the file was made: generation 0, or a hole.
    Made,
    Own(u32),
    /// Punched or zeroed.
    Zeroes,
    /// A call that told less than a whole unit: not looked at.
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    now: Content,
    /// The last generation that was asked for.
    asked: u32,
}

#[derive(Debug)]
pub(super) struct Model {
    loaded: bool,
    units: Vec<Unit>,
}

impl Model {
    pub(super) fn new(units: u32, loaded: bool) -> Model {
        Model { loaded, units: vec![Unit { now: Content::Made, asked: 0 }; units as usize] }
    }

    /// The next generation of a unit, which is about to be asked for.
    pub(super) fn ask(&mut self, unit: u64) -> u32 {
        let unit = &mut self.units[unit as usize];
        unit.asked += 1;
        unit.asked
    }

    pub(super) fn set(&mut self, unit: u64, now: Content) {
        self.units[unit as usize].now = now;
    }

    pub(super) fn now(&self, unit: u64) -> Content {
        self.units[unit as usize].now
    }

    /// What it has to show; `None`: anything.
    pub(super) fn expected(&self, unit: u64) -> Option<Found> {
        Some(match self.now(unit) {
            Content::Own(r#gen) => Found::Own { r#gen },
            Content::Made if self.loaded => Found::Own { r#gen: 0 },
            Content::Made | Content::Zeroes => Found::Zero {},
            Content::Any => return None,
        })
    }

    /// Does it have data of ours, so that there must be blocks under it?
    pub(super) fn has_data(&self, unit: u64) -> bool {
        matches!(self.expected(unit), Some(Found::Own { .. }))
    }

    /// May somebody who reads while others write see this? `moving`: the unit is being stored to.
    pub(super) fn may_show(&self, unit: u64, found: &Found, moving: bool) -> bool {
        match found {
            Found::Own { r#gen } => *r#gen <= self.units[unit as usize].asked,
            Found::Zero {} => true,
            // Caught between two of a store's words.
            Found::Corrupt {} | Found::Unknown {} => moving,
            _ => false,
        }
    }
}

/// Which promise is broken where `found` is shown instead of `expected`.
pub(super) fn clause(expected: &Found, found: &Found) -> &'static str {
    match (expected, found) {
        (_, Found::Poison {} | Found::Unknown {} | Found::Foreign { .. }) => "foreign",
        (_, Found::Misplaced { .. }) => "misdirected",
        (_, Found::Corrupt {}) => "corrupt",
        (_, Found::Error { .. } | Found::Missing {}) => "unreadable",
        // Bytes that the write says it has not written.
        (_, Found::Own { r#gen }) if *r#gen >= NEVER => "wrong-result",
        (Found::Own { .. }, _) => "lost",
        (_, _) => "stale",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_shows_what_was_done_last() {
        let own = |r#gen| Found::Own { r#gen };
        let mut model = Model::new(3, false);
        assert_eq!(model.expected(1), Some(Found::Zero {}));
        assert_eq!(model.ask(1), 1);
        assert_eq!(model.expected(1), Some(Found::Zero {}), "asked for is not done");
        model.set(1, Content::Own(1));
        assert_eq!((model.expected(1), model.has_data(1)), (Some(own(1)), true));
        assert!(model.may_show(1, &own(1), false) && !model.may_show(1, &own(2), false));
        assert!(!model.may_show(1, &Found::Poison {}, true));
        model.set(1, Content::Zeroes);
        assert!(!model.has_data(1));
        assert_eq!(Model::new(3, true).expected(2), Some(own(0)));
    }

    #[test]
    fn each_wrong_has_its_clause() {
        let own = |r#gen| Found::Own { r#gen };
        assert_eq!(clause(&own(3), &Found::Zero {}), "lost");
        assert_eq!(clause(&own(3), &own(2)), "lost");
        assert_eq!(clause(&Found::Zero {}, &own(2)), "stale");
        assert_eq!(clause(&Found::Zero {}, &own(NEVER)), "wrong-result");
        assert_eq!(clause(&Found::Zero {}, &Found::Poison {}), "foreign");
    }
}

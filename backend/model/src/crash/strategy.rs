//! Which states of a crash point to try.

use super::state::State;
use super::{Cut, Mask, ModelError, StateName};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A way to choose states. `FromStr` and `Display`: `prefix`, `one-lost`, `one-kept`, `tear`,
/// `exhaustive[=<at most>]`, `random[=<count>]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Everything submitted so far is persisted; nothing volatile is.
    Prefix,
    /// For every volatile write: all but it.
    OneLost,
    /// For every volatile write: only it.
    OneKept,
    /// For every volatile write that may be torn: cut after each fragment, both halves, and with
    /// its middle missing; everything else persisted.
    Tear,
    /// Every legal content, where there are at most this many [`Cut::choices`]; else nothing.
    Exhaustive { at_most: u32 },
    /// Samples 0 to `count` of a seed.
    Random { seed: u64, count: u64 },
}

/// [`Strategy::Exhaustive`] where no number is given: 4,096 subsets at most.
const AT_MOST: u32 = 12;
/// [`Strategy::Random`] where no number is given.
const COUNT: u64 = 100;

impl FromStr for Strategy {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = |why: &str| ModelError::State(format!("strategy '{text}': {why}"));
        let (name, number) = match text.split_once('=') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let number = match (name, number) {
            (_, None) => None,
            ("exhaustive" | "random", Some(number)) => {
                let number: u32 = number
                    .parse()
                    .map_err(|_| bad("what follows = is a number of at most 9 digits"))?;
                Some(number)
            }
            _ => return Err(bad("only exhaustive and random take a number")),
        };
        Ok(match name {
            "prefix" => Strategy::Prefix,
            "one-lost" => Strategy::OneLost,
            "one-kept" => Strategy::OneKept,
            "tear" => Strategy::Tear,
            "exhaustive" => Strategy::Exhaustive { at_most: number.unwrap_or(AT_MOST) },
            "random" => Strategy::Random { seed: 0, count: number.map_or(COUNT, u64::from) },
            _ => {
                return Err(bad("there are prefix, one-lost, one-kept, tear, exhaustive, random"));
            }
        })
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Prefix => f.write_str("prefix"),
            Strategy::OneLost => f.write_str("one-lost"),
            Strategy::OneKept => f.write_str("one-kept"),
            Strategy::Tear => f.write_str("tear"),
            Strategy::Exhaustive { at_most } => write!(f, "exhaustive={at_most}"),
            Strategy::Random { count, .. } => write!(f, "random={count}"),
        }
    }
}

impl Cut<'_> {
    /// The states that a strategy chooses here, in an order that never changes. All are legal.
    pub fn states(&self, strategy: Strategy) -> Box<dyn Iterator<Item = StateName> + '_> {
        match strategy {
            Strategy::Prefix => {
                let state = |all| State { all, ..State::default() };
                let (all, none) = (self.name_of(&state(true)), self.name_of(&state(false)));
                let different = (none != all).then_some(none);
                Box::new(std::iter::once(all).chain(different))
            }
            Strategy::OneLost => self.one_changed(true),
            Strategy::OneKept => self.one_changed(false),
            Strategy::Tear => self.torn(),
            Strategy::Exhaustive { at_most } => Box::new(self.exhaustive(at_most)),
            Strategy::Random { seed, count } => {
                Box::new((0..count).map(move |n| self.random(seed, n)))
            }
        }
    }

    /// The volatile writes that may show, with those of their fragments that may.
    pub(super) fn open_writes(&self) -> BTreeMap<u32, Vec<usize>> {
        let mut open: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (i, fragment) in self.open_fragments() {
            open.entry(i).or_default().push(fragment);
        }
        open
    }

    fn one_changed(&self, all: bool) -> Box<dyn Iterator<Item = StateName> + '_> {
        Box::new(self.open_writes().into_keys().map(move |i| {
            let n = self.writes[i as usize].fragments();
            let kept = if all { Mask::new() } else { Mask::first(n) };
            self.name_of(&State { all, kept: [(i, kept)].into(), ..State::default() })
        }))
    }

    fn torn(&self) -> Box<dyn Iterator<Item = StateName> + '_> {
        Box::new(self.open_writes().into_keys().flat_map(move |i| {
            let n = self.writes[i as usize].fragments();
            let name = move |kept: Mask| {
                self.name_of(&State { all: true, kept: [(i, kept)].into(), ..State::default() })
            };
            let halves =
                (1..n).flat_map(move |at| [name((0..at).collect()), name((at..n).collect())]);
            let hollow = (n > 2).then(|| name([0, n - 1].into_iter().collect()));
            halves.chain(hollow)
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn strategies_are_read_and_written() {
        for text in ["prefix", "one-lost", "one-kept", "tear", "exhaustive=20", "random=7"] {
            assert_eq!(text.parse::<Strategy>().unwrap().to_string(), text);
        }
        assert_eq!("exhaustive".parse(), Ok(Strategy::Exhaustive { at_most: AT_MOST }));
        assert_eq!("random".parse(), Ok(Strategy::Random { seed: 0, count: COUNT }));
        for bad in ["", "all", "tear=3", "random=x", "random="] {
            assert!(bad.parse::<Strategy>().is_err(), "{bad}");
        }
    }
}

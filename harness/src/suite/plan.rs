//! Where the power is cut: drawn from the seed, told by what the workload does, never by time.
//!
//! A cut begins at a write of the workload, counted by its intent mark. When that intent is about
//! to be acknowledged to the guest, the device is told to cut at one of the next requests, so a cut
//! is always near a place that has a name, whatever the machine's speed.

use super::{Lane, Place, Wrong};
use std::fmt;
use tornblk_model::crash::Fault;

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each (seed, words, number).
    pub fn new(seed: u64, words: &[&str], number: u64) -> Rng {
        // FNV-1a over the words, so that their order and borders count.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in words.iter().flat_map(|w| w.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut rng = Rng(seed ^ hash.rotate_left(23) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next();
        rng
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }
}

/// One cut of a lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// From 1; 0 is the negative control.
    pub number: u32,
    /// Of the workload, of the state that survives, and of faults.
    pub seed: u64,
    /// Stamped into every block.
    pub nonce: u64,
    pub plan: Plan,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Somewhere in the lane's whole workload.
    Spread { write: u32, kind: CutKind },
    /// A fault on one write of the placed workload, and the cut right after it.
    Placed { write: u32, fault: PlacedFault },
    /// At rest, after a race.
    Race { wrong: Option<Wrong> },
}

/// Which request after the intent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutKind {
    /// The nth write from then on is submitted, and in flight.
    Submitted(u32),
    /// The nth write from then on was executed, not yet answered.
    Executed(u32),
    FlushSubmitted,
    FlushExecuted,
    /// The guest was told that a write returned: right after that mark.
    Told,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PlacedFault {
    pub fault: Fault,
    pub place: Place,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Spread { write, kind } => match kind {
                CutKind::Submitted(n) => {
                    write!(f, "from write {write} on, when request {n} was submitted")
                }
                CutKind::Executed(n) => {
                    write!(f, "from write {write} on, when request {n} was executed")
                }
                CutKind::FlushSubmitted => {
                    write!(f, "from write {write} on, when a flush was submitted")
                }
                CutKind::FlushExecuted => {
                    write!(f, "from write {write} on, when a flush was executed")
                }
                CutKind::Told => write!(f, "right after write {write} returned"),
            },
            Plan::Race { wrong: None } => f.write_str("at rest, after the race"),
            Plan::Race { wrong: Some(wrong) } => {
                write!(f, "at rest, after the race with {wrong}")
            }
            Plan::Placed { write, fault } => match fault.place {
                Place::InFlight => {
                    write!(f, "{} on write {write}, right after its request", fault.fault)
                }
                Place::Acknowledged => write!(
                    f,
                    "{} from write {write} on, right after a durable write returned",
                    fault.fault
                ),
            },
        }
    }
}

/// Writes that a placed workload makes before the one that is meant.
const LEAD: u32 = 12;

impl Plan {
    /// The write whose intent starts it, counted from 1.
    pub fn write(&self) -> u32 {
        match self {
            Plan::Spread { write, .. } | Plan::Placed { write, .. } => *write,
            Plan::Race { .. } => u32::MAX,
        }
    }

    /// What the disk does wrong on purpose.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Plan::Spread { .. } | Plan::Race { wrong: None | Some(Wrong::Work(_)) } => None,
            Plan::Placed { fault, .. } => Some(&fault.fault),
            Plan::Race { wrong: Some(Wrong::Fault(fault)) } => Some(fault),
        }
    }

    /// Writes that a placed workload makes: some are left after the one that is meant, where the
    /// cut needs one that is acknowledged.
    pub fn placed_writes(&self) -> u32 {
        self.write() + 2 * LEAD
    }
}

/// Cut `number` of `of` (from 1): spread evenly over the workload, at random inside of its part.
pub fn plan_cut(lane: &Lane, seed: u64, number: u32, of: u32) -> Cut {
    let mut rng = Rng::new(seed, &["cut", &lane.name], u64::from(number));
    // The last tenth is left, so that the requests that the cut waits for still come; and as many as
    // can begin at once, before which nothing was acknowledged.
    let last = u64::from(lane.writes * 9 / 10).max(1);
    let at_once: u64 = lane.targets.iter().map(|t| u64::from(t.threads * t.depth)).sum();
    let first = at_once.min(last / 2);
    let (number64, of) = (u64::from(number.max(1)) - 1, u64::from(of.max(number).max(1)));
    let part = |n: u64| first + (last - first) * n / of;
    let (from, to) = (part(number64), part(number64 + 1));
    let write = (from + rng.below((to - from).max(1))) as u32 + 1;
    let flushes =
        lane.sync_every > 0 || lane.targets.iter().flat_map(|t| &t.flags).any(|f| f.dsync);
    let kind = match rng.below(if flushes { 8 } else { 5 }) {
        0 | 1 => CutKind::Submitted(rng.below(3) as u32 + 1),
        2 | 3 => CutKind::Executed(rng.below(3) as u32 + 1),
        4 | 5 => CutKind::Told,
        6 => CutKind::FlushSubmitted,
        _ => CutKind::FlushExecuted,
    };
    // However few cuts there are, some have a write in flight: or nothing that must be whole may
    // ever have been at risk.
    let kind = if number % 2 == 1 { CutKind::Submitted(1) } else { kind };
    Cut { number, seed: rng.next(), nonce: rng.next() | 1, plan: Plan::Spread { write, kind } }
}

/// Cut `number` of a lane with a race, which `wrong` is done to.
pub fn plan_race(lane: &Lane, seed: u64, number: u32, wrong: Option<Wrong>) -> Cut {
    let mut rng = Rng::new(seed, &["race", &lane.name], u64::from(number));
    Cut { number, seed: rng.next(), nonce: rng.next() | 1, plan: Plan::Race { wrong } }
}

/// The negative control (`number` 0), or cut `number` of a run with a fault.
pub fn plan_control(lane: &Lane, seed: u64, number: u32, fault: PlacedFault) -> Cut {
    let mut rng = Rng::new(seed, &["placed", &lane.name], u64::from(number));
    let write = LEAD + rng.below(u64::from(LEAD)) as u32;
    Cut { number, seed: rng.next(), nonce: rng.next() | 1, plan: Plan::Placed { write, fault } }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::suite::load;

    fn lane(n: usize) -> Lane {
        load("direct-atomic").unwrap().lanes.swap_remove(n)
    }

    #[test]
    fn the_same_seed_gives_the_same_cuts_and_another_one_others() {
        let lane = lane(0);
        for number in 1..20 {
            assert_eq!(plan_cut(&lane, 7, number, 20), plan_cut(&lane, 7, number, 20));
        }
        assert_ne!(plan_cut(&lane, 7, 1, 20), plan_cut(&lane, 8, 1, 20));
        assert_ne!(plan_cut(&lane, 7, 1, 20).nonce, plan_cut(&lane, 7, 2, 20).nonce);
    }

    #[test]
    fn cuts_are_spread_over_the_workload_and_leave_its_end() {
        let lane = lane(0);
        let mut last = 0;
        let mut kinds = Vec::new();
        for number in 1..=40 {
            let Plan::Spread { write, kind } = plan_cut(&lane, 1, number, 40).plan else {
                panic!()
            };
            assert!(write > last && write <= lane.writes * 9 / 10, "{write} after {last}");
            last = write;
            kinds.push(std::mem::discriminant(&kind));
        }
        assert!(last > lane.writes * 8 / 10);
        kinds.sort_by_key(|k| format!("{k:?}"));
        kinds.dedup();
        assert_eq!(kinds.len(), 5, "every kind comes up");
    }

    #[test]
    fn a_cut_beyond_the_planned_number_is_still_a_cut() {
        let lane = lane(0);
        let Plan::Spread { write, .. } = plan_cut(&lane, 1, 9, 3).plan else { panic!() };
        assert!(write >= 1 && write <= lane.writes);
    }

    #[test]
    fn a_lane_without_flushes_never_waits_for_one() {
        let mut lane = lane(0);
        lane.sync_every = 0;
        for target in &mut lane.targets {
            target.flags.iter_mut().for_each(|f| f.dsync = false);
        }
        for number in 1..=100 {
            let Plan::Spread { kind, .. } = plan_cut(&lane, 1, number, 100).plan else { panic!() };
            assert!(!matches!(kind, CutKind::FlushSubmitted | CutKind::FlushExecuted));
        }
    }

    #[test]
    fn rngs_differ_by_every_input() {
        let first = |seed, words: &[&str], n| Rng::new(seed, words, n).next();
        let base = first(1, &["a", "b"], 0);
        assert_ne!(base, first(2, &["a", "b"], 0));
        assert_ne!(base, first(1, &["ab"], 0));
        assert_ne!(base, first(1, &["b", "a"], 0));
        assert_ne!(base, first(1, &["a", "b"], 1));
        assert_eq!(Rng::new(1, &[], 0).below(0), 0);
    }
}

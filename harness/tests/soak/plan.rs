//! What is done in which order: all of it thrown before anything is done, so that it follows from
//! the seed alone, whatever the blows find.

use super::blows::{Blow, HARD, MILD};
use super::rest::{RESTS, Rest};
use super::rig::{Dice, Load, Part};
use std::time::Duration;
use tornblk_proto::StallWhen;

/// What fio uses where there is no file system.
const ROOM: u64 = 64 << 20;

/// Things that come up in any order, each as often as it is there, before any of them comes again.
#[derive(Clone, Debug)]
struct Deck<T> {
    of: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    fn new(of: &[T]) -> Deck<T> {
        Deck { of: of.to_vec(), left: Vec::new() }
    }

    fn draw(&mut self, dice: &mut Dice) -> T {
        if self.left.is_empty() {
            self.left.clone_from(&self.of);
            dice.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or(self.of[0])
    }
}

/// One cycle.
#[derive(Debug)]
pub(crate) struct Cycle {
    pub(crate) fs: Option<&'static str>,
    pub(crate) load: Load,
    /// fio's.
    pub(crate) seed: u64,
    /// Each after so long, and with dice of its own: how many it throws depends on what it finds.
    pub(crate) blows: Vec<(Duration, Blow, Dice)>,
    /// Each with the part of the disk that is compared.
    pub(crate) rests: Vec<(Rest, Part)>,
}

/// The cycles of a leg, in which whatever can be done is done at least once.
pub(crate) fn leg(dice: &mut Dice, killed: bool, cycles: u32, looks: &[Part]) -> Vec<Cycle> {
    let mut deck = MILD.to_vec();
    let mut least = 4;
    if killed {
        deck.extend(HARD);
        deck.extend(HARD);
        least = 5;
    }
    let (mut deck, mut rests) = (Deck::new(&deck), Deck::new(&RESTS));
    let mut cycle = |dice: &mut Dice| {
        let n = least + dice.below(2);
        let blows = (0..n).map(|_| deck.draw(dice)).collect();
        let rest = rests.draw(dice);
        Cycle::new(dice, blows, &[rest], looks)
    };
    (0..cycles).map(|_| cycle(dice)).collect()
}

/// Two cycles, the shortest in which whatever can be done is done, of two devices that are killed.
pub(crate) fn shortest(dice: &mut Dice, looks: &[Part]) -> [Cycle; 2] {
    let mut when = [StallWhen::BeforeIo, StallWhen::BeforeCompletion];
    dice.shuffle(&mut when);
    let mut others = [
        Blow::Kill,
        Blow::KillInFlight,
        Blow::KillFrozen,
        Blow::Freeze,
        Blow::CacheSwitch,
        Blow::Discard,
    ];
    dice.shuffle(&mut others);
    let mut rests = Deck::new(&RESTS);
    let mut cycle = |n: usize| {
        // Both have a request that a dead device left behind, so that there is one to take up.
        let mut blows = vec![Blow::KillStalled(when[n]), Blow::Stall(when[1 - n])];
        blows.extend(&others[3 * n..3 * n + 3]);
        dice.shuffle(&mut blows);
        let rests = [rests.draw(dice), rests.draw(dice)];
        Cycle::new(dice, blows, &rests, looks)
    };
    [cycle(0), cycle(1)]
}

impl Cycle {
    fn new(dice: &mut Dice, blows: Vec<Blow>, rests: &[Rest], looks: &[Part]) -> Cycle {
        let fs = dice.one(&[None, None, Some("ext4"), Some("xfs")]);
        Cycle {
            fs,
            load: Load::random(dice, fs, ROOM),
            seed: dice.below(1 << 30),
            blows: blows
                .into_iter()
                .map(|blow| (dice.millis(100, 1500), blow, Dice(dice.next())))
                .collect(),
            rests: rests.iter().map(|rest| (*rest, dice.one(looks))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKS: [Part; 2] = [Part { offset: 0, len: 1 }, Part { offset: 1, len: 1 }];

    /// What kinds of blows, and of what is done at rest, are in these.
    fn kinds(cycles: &[Cycle]) -> (Vec<Blow>, Vec<Rest>) {
        let blows = cycles.iter().flat_map(|c| c.blows.iter().map(|(_, blow, _)| *blow));
        let rests = cycles.iter().flat_map(|c| c.rests.iter().map(|(rest, _)| *rest));
        (blows.collect(), rests.collect())
    }

    #[test]
    fn whatever_the_seed_all_of_it_is_done() {
        for seed in 0..200 {
            let mut dice = Dice(seed);
            for (killed, cycles) in [(true, 4), (false, 3)] {
                let (blows, rests) = kinds(&leg(&mut dice, killed, cycles, &LOOKS));
                assert!(MILD.iter().all(|blow| blows.contains(blow)), "{seed}: {blows:?}");
                assert_eq!(HARD.iter().all(|blow| blows.contains(blow)), killed, "{blows:?}");
                assert!(RESTS.iter().all(|rest| rests.contains(rest)), "{seed}: {rests:?}");
            }
            let (blows, rests) = kinds(&shortest(&mut dice, &LOOKS));
            assert!(MILD.iter().chain(&HARD).all(|blow| blows.contains(blow)), "{blows:?}");
            assert!(RESTS.iter().all(|rest| rests.contains(rest)), "{seed}: {rests:?}");
        }
    }

    #[test]
    fn what_a_blow_throws_changes_nothing_of_what_comes_after() {
        let order = |seed, greedy: bool| {
            let mut dice = Dice(seed);
            let mut legs = Vec::new();
            for killed in [true, false, true] {
                let mut cycles = leg(&mut dice, killed, 4, &LOOKS);
                for (_, _, own) in cycles.iter_mut().flat_map(|cycle| &mut cycle.blows) {
                    // As one that found something to strike does.
                    if greedy {
                        own.next();
                    }
                }
                let told = |c: &Cycle| {
                    let blows: Vec<_> = c.blows.iter().map(|(after, b, _)| (*after, *b)).collect();
                    format!("{blows:?} {:?} {:?} {}", c.rests, c.load, c.seed)
                };
                legs.extend(cycles.iter().map(told));
            }
            legs
        };
        assert_eq!(order(3, true), order(3, false));
        assert_ne!(order(3, true), order(4, true));
    }
}

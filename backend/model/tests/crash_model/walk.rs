//! The walk against the slow way: the same states, names and contents, and fingerprints that are
//! equal where contents are.

use crate::generate::{self, Dice};
use crate::{history, profiles, recording};
use std::collections::{BTreeMap, HashMap};
use tornblk_model::crash::walk::{Cursor, Walk};
use tornblk_model::crash::{
    Content, Coverage, Covered, Fault, History, ModelError, Outcome, Profile, Request, RequestKind,
    Source, Strategy,
};
use tornblk_model::event::Seq;

/// Few different contents, so that many states that came about differently are equal.
fn ids(block: u64, source: Source) -> u64 {
    match source {
        Source::Base => block % 2,
        Source::Written { request, block } => (request.0 + u64::from(block)) % 3,
        Source::Zeroes => 0,
        Source::Garbage { seed } => 1000 + seed,
        Source::Flipped { bit, .. } => 2000 + u64::from(bit),
    }
}

fn bytes(history: &History, content: &Content) -> Vec<u64> {
    (0..history.disk().blocks()).map(|block| ids(block, content.of(block))).collect()
}

const STRATEGIES: [Strategy; 6] = [
    Strategy::Prefix,
    Strategy::OneLost,
    Strategy::OneKept,
    Strategy::Tear,
    Strategy::Exhaustive { at_most: 9 },
    Strategy::Random { seed: 3, count: 12 },
];

/// What a verifier keeps that only looks where something changed.
#[derive(Default)]
struct Follower {
    seen: Vec<u64>,
}

impl Follower {
    fn look(&mut self, cursor: &mut Cursor<'_, '_>) {
        let blocks = cursor.walk().history().disk().blocks();
        match cursor.changed() {
            None => self.seen = (0..blocks).map(|block| cursor.id(block)).collect(),
            Some(changed) => {
                for block in changed {
                    self.seen[*block as usize] = cursor.id(*block);
                }
            }
        }
        cursor.shown();
    }
}

struct Checked<'h> {
    history: &'h History,
    /// Fingerprint ↔ bytes, over all points and profiles of a recording.
    bytes: HashMap<u128, Vec<u64>>,
    fingerprints: HashMap<Vec<u64>, u128>,
    states: usize,
    equal: usize,
}

impl Checked<'_> {
    fn check(&mut self, cursor: &mut Cursor<'_, '_>, content: &Content, follower: &mut Follower) {
        assert_eq!(cursor.content(), *content, "{}", cursor.name().unwrap());
        let bytes = bytes(self.history, content);
        for block in 0..self.history.disk().blocks() {
            assert_eq!(cursor.of(block), content.of(block));
            assert_eq!(cursor.id(block), bytes[block as usize]);
        }
        follower.look(cursor);
        assert_eq!(follower.seen, bytes, "what is said to have changed");
        let fingerprint = cursor.fingerprint();
        self.states += 1;
        if let Some(known) = self.bytes.insert(fingerprint, bytes.clone()) {
            assert_eq!(known, bytes, "one fingerprint, two contents");
            self.equal += 1;
        }
        if let Some(known) = self.fingerprints.insert(bytes, fingerprint) {
            assert_eq!(known, fingerprint, "one content, two fingerprints");
        }
    }
}

fn reference(history: &History, after: Seq, profile: &Profile) -> Content {
    let cut = history.cut(after, profile).unwrap();
    cut.build(&cut.states(Strategy::Prefix).next().unwrap()).unwrap()
}

/// All crash points of a recording that one walk covers, with their power cut, latest first.
fn epochs(history: &History) -> Vec<(Option<Seq>, Vec<Seq>)> {
    let mut epochs: BTreeMap<Option<Seq>, Vec<Seq>> = BTreeMap::new();
    for after in history.points(true) {
        epochs.entry(history.base_of(after)).or_default().insert(0, after);
    }
    epochs.into_iter().collect()
}

#[test]
fn a_walk_shows_what_the_slow_way_builds() {
    let (mut states, mut equal, mut slow) = (0, 0, 0);
    for seed in 0..1000 {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed ^ 77);
        let mut checked = Checked {
            history: &history,
            bytes: HashMap::new(),
            fingerprints: HashMap::new(),
            states: 0,
            equal: 0,
        };
        for (base, points) in epochs(&history) {
            let walk = Walk::new(&history, base, &ids);
            // Contents on different bases are not comparable.
            checked.bytes.clear();
            checked.fingerprints.clear();
            let profile = &all[dice.below(all.len() as u64) as usize];
            let mut cursor = Cursor::new(&walk, profile).unwrap();
            let mut follower = Follower::default();
            for after in points.iter().copied() {
                if !dice.one_in(3) {
                    continue;
                }
                assert!(walk.covers(after));
                cursor.go(after).unwrap();
                checked.check(&mut cursor, &reference(&history, after, profile), &mut follower);
                assert_eq!(cursor.delta(), []);
                let reference = cursor.content();
                let cut = history.cut(after, profile).unwrap();
                for strategy in STRATEGIES {
                    cursor.start(strategy).unwrap();
                    for name in cut.states(strategy) {
                        assert!(cursor.step().unwrap(), "{name} is missing");
                        assert_eq!(cursor.name().unwrap(), name);
                        // A verifier is not shown every state.
                        if dice.one_in(2) {
                            let content = cut.build(&name).unwrap();
                            checked.check(&mut cursor, &content, &mut follower);
                            let mut changed = reference.clone();
                            changed.blocks.extend(cursor.delta());
                            changed.blocks.retain(|_, source| *source != Source::Base);
                            assert_eq!(changed, content);
                        }
                    }
                    assert!(!cursor.step().unwrap(), "{}", cursor.name().unwrap());
                    assert!(!cursor.step().unwrap());
                }
                slow += usize::from(cut.profile.garbage);
            }
        }
        states += checked.states;
        equal += checked.equal;
    }
    assert!(states > 100_000, "{states}");
    assert!(equal > 50_000, "{equal}");
    assert!(slow > 500, "{slow}");
}

/// Forwards, backwards, anywhere; and by name.
#[test]
fn a_cursor_goes_anywhere() {
    for seed in 2000..2200 {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed);
        for (base, points) in epochs(&history) {
            let walk = Walk::new(&history, base, &ids);
            let profile = &all[dice.below(all.len() as u64) as usize];
            let mut cursor = Cursor::new(&walk, profile).unwrap();
            for _ in 0..8 {
                let after = points[dice.below(points.len() as u64) as usize];
                cursor.go(after).unwrap();
                assert_eq!(cursor.content(), reference(&history, after, profile));
                let cut = history.cut(after, profile).unwrap();
                let name = cut.random(seed, dice.below(20));
                cursor.go_to(&name).unwrap();
                assert_eq!(cursor.content(), cut.build(&name).unwrap());
                assert_eq!(cursor.name().unwrap(), cut.spell_out(&name).unwrap());
            }
            let elsewhere = history.last().map(|last| Seq(last.0 + 1));
            if history.base_of(Seq(u64::MAX)) != base {
                assert!(cursor.go(elsewhere.unwrap()).is_err());
            }
        }
    }
}

/// The states from a position on, with the position of each.
fn rest(
    cursor: &mut Cursor<'_, '_>,
    strategy: Strategy,
    from: u64,
) -> Vec<(u64, String, u128, Content)> {
    cursor.start(strategy).unwrap();
    let positions = cursor.positions();
    cursor.seek(from);
    let mut rest = Vec::new();
    let mut more = false;
    while cursor.step().unwrap() {
        let at = cursor.position();
        let last = rest.last().map(|(last, ..): &(u64, _, _, _)| *last);
        assert!(from <= at && at < positions);
        assert!(last.is_none_or(|last| last < at || more && last == at));
        rest.push((at, cursor.name().unwrap().0, cursor.fingerprint(), cursor.content()));
        more = cursor.has_more_here();
    }
    assert!(!more);
    rest
}

#[test]
fn the_states_of_a_strategy_can_be_begun_anywhere() {
    let mut begun = 0;
    for seed in 0..150 {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let mut dice = Dice::new(seed ^ 5);
        for (base, points) in epochs(&history) {
            let walk = Walk::new(&history, base, &ids);
            for profile in &profiles(recording.disk.lb_size) {
                let mut cursor = Cursor::new(&walk, profile).unwrap();
                cursor.go(points[dice.below(points.len() as u64) as usize]).unwrap();
                for strategy in STRATEGIES {
                    let all = rest(&mut cursor, strategy, 0);
                    cursor.start(strategy).unwrap();
                    let positions = cursor.positions();
                    for from in [dice.below(positions + 1), dice.below(positions + 1), positions] {
                        let some = rest(&mut cursor, strategy, from);
                        let wanted: Vec<_> = all.iter().filter(|s| s.0 >= from).cloned().collect();
                        assert_eq!(some, wanted, "{strategy} from {from}");
                        begun += usize::from(from > 0 && !some.is_empty());
                    }
                }
            }
        }
    }
    assert!(begun > 1000, "{begun}");
}

#[test]
fn damaged_states_are_those_of_the_slow_way() {
    let faults: Vec<Fault> =
        ["tear-atomic", "ignore-flush", "lose-write", "reorder-flush", "misdirect", "corrupt"]
            .iter()
            .map(|fault| fault.parse().unwrap())
            .collect();
    let mut broken = BTreeMap::<String, usize>::new();
    let alone = (3000..3300).map(|seed| (seed, generate::recording(seed, 12, false)));
    let several = (3300..3400).map(|seed| (seed, generate::recording(seed, 12, true)));
    for (seed, recording) in alone.chain(several) {
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed);
        let (base, points) = epochs(&history).remove(0);
        let walk = Walk::new(&history, base, &ids);
        let profile = &all[dice.below(all.len() as u64) as usize];
        let mut cursor = Cursor::new(&walk, profile).unwrap();
        let mut follower = Follower::default();
        let mut checked = Checked {
            history: &history,
            bytes: HashMap::new(),
            fingerprints: HashMap::new(),
            states: 0,
            equal: 0,
        };
        for after in points.iter().copied() {
            if !dice.one_in(4) {
                continue;
            }
            cursor.go(after).unwrap();
            follower.look(&mut cursor);
            let cut = history.cut(after, profile).unwrap();
            let fault = &faults[dice.below(faults.len() as u64) as usize..][..1];
            for strategy in STRATEGIES {
                cursor.start(strategy).unwrap();
                for name in cut.states(strategy) {
                    assert!(cursor.step().unwrap());
                    let slow = cut.break_with(&name, fault, seed);
                    match (cursor.damage(fault, seed), slow) {
                        (Ok(words), Ok((name, slow))) => {
                            assert_eq!(words, slow);
                            assert_eq!(cursor.name().unwrap(), name);
                            let content = cut.build(&name).unwrap();
                            checked.check(&mut cursor, &content, &mut follower);
                            let done = broken.entry(fault[0].to_string()).or_default();
                            *done += usize::from(!words.is_empty());
                        }
                        (Err(_), Err(_)) => {}
                        (fast, slow) => panic!("{fast:?}, but the slow way {slow:?}"),
                    }
                }
                assert!(!cursor.step().unwrap());
                checked.check(&mut cursor, &reference(&history, after, profile), &mut follower);
            }
        }
    }
    assert_eq!(broken.len(), faults.len());
    assert!(broken.values().all(|n| *n > 100), "{broken:?}");
}

/// "This block must not hold that": what to shrink against.
fn fails(history: &History, content: &Content, salt: u64) -> bool {
    let ids = bytes(history, content);
    let sum: u64 = ids.iter().zip(1..).map(|(id, n)| id % 1000 * n).sum();
    (sum + salt).is_multiple_of(3)
}

#[test]
fn shrinking_in_place_is_shrinking() {
    let mut compared = 0;
    for seed in 4000..4400 {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed);
        let (base, points) = epochs(&history).remove(0);
        let walk = Walk::new(&history, base, &ids);
        let profile = &all[dice.below(all.len() as u64) as usize];
        let mut cursor = Cursor::new(&walk, profile).unwrap();
        let after = points[dice.below(points.len() as u64) as usize];
        cursor.go(after).unwrap();
        let cut = history.cut(after, profile).unwrap();
        for strategy in STRATEGIES {
            cursor.start(strategy).unwrap();
            let mut follower = Follower::default();
            while cursor.step().unwrap() {
                let name = cursor.name().unwrap();
                follower.seen.clear();
                let before = cursor.content();
                let fast = cursor
                    .shrink(
                        || false,
                        |cursor| {
                            assert_eq!(
                                cursor.content(),
                                cut.build(&cursor.name().unwrap()).unwrap()
                            );
                            Ok::<_, ModelError>(fails(&history, &cursor.content(), seed))
                        },
                    )
                    .unwrap();
                assert_eq!(cursor.content(), before);
                assert_eq!(cursor.name().unwrap(), name);
                let slow = cut
                    .shrink(&name, |name| {
                        Ok::<_, ModelError>(fails(&history, &cut.build(name).unwrap(), seed))
                    })
                    .unwrap();
                let short = |shrunk: &tornblk_model::crash::Shrunk| {
                    (shrunk.failing.clone(), shrunk.passing.clone(), shrunk.left.clone())
                };
                assert_eq!(fast.as_ref().map(short), slow.as_ref().map(short));
                compared += usize::from(fast.is_some_and(|fast| fast.minimal));
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn shrinking_takes_what_there_is_when_it_must_end() {
    let recording = recording(4001, 12);
    let history = history(&recording);
    let profile: Profile = "lb".parse().unwrap();
    let walk = Walk::new(&history, None, &ids);
    let mut cursor = Cursor::new(&walk, &profile).unwrap();
    let mut ended = 0;
    for after in history.points(true).into_iter().rev().filter(|p| walk.covers(*p)) {
        cursor.go(after).unwrap();
        let everything = cursor.fingerprint();
        cursor.start(Strategy::Prefix).unwrap();
        while cursor.step().unwrap() {
            if cursor.fingerprint() == everything {
                continue;
            }
            let fails = |c: &Cursor<'_, '_>| Ok::<_, ModelError>(c.fingerprint() != everything);
            let shrunk = cursor.shrink(|| true, fails).unwrap().unwrap();
            assert!(shrunk.passing.is_some());
            ended += usize::from(!shrunk.minimal);
        }
    }
    assert!(ended > 0);
}

#[test]
fn coverage_is_that_of_the_slow_way() {
    let mut cuts = 0;
    for seed in 6000..6200 {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed);
        let profile = &all[dice.below(all.len() as u64) as usize];
        let (base, points) = epochs(&history).remove(0);
        let walk = Walk::new(&history, base, &ids);
        let mut cursor = Cursor::new(&walk, profile).unwrap();
        let mut slow = Coverage::new();
        let mut parts = Coverage::new();
        for after in points {
            cursor.go(after).unwrap();
            let cut = history.cut(after, profile).unwrap();
            slow.visit(&cut);
            for strategy in STRATEGIES {
                let part = dice.one_in(2);
                cursor.start(strategy).unwrap();
                for name in cut.states(strategy) {
                    assert!(cursor.step().unwrap());
                    if part {
                        cursor.note(Outcome::Built);
                        slow.note(&cut, &name, Outcome::Built).unwrap();
                    }
                }
            }
            if dice.one_in(3) {
                parts.merge(&cursor.coverage());
            }
        }
        parts.merge(&cursor.coverage());
        assert_eq!(cursor.coverage().covered(), slow.covered());
        assert_eq!(parts.covered(), slow.covered());
        let mut again = Coverage::new();
        slow.writes().iter().for_each(|cuts| again.add(cuts).unwrap());
        assert_eq!(again, slow);
        let Covered { cuts: n, built, .. } = slow.covered();
        cuts += n.min(built);
    }
    assert!(cuts > 200, "{cuts}");
}

/// The recordings have everything in them that the walk treats in its own way.
#[test]
fn the_recordings_have_what_matters() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..1000 {
        let history = history(&recording(seed, 12));
        let mut note = |what, there: bool| *counts.entry(what).or_default() += usize::from(there);
        let requests = history.requests();
        note("fetched again", requests.iter().any(|r| r.fetched_again().is_some()));
        note("discards", requests.iter().any(|r| r.kind() == RequestKind::Discard));
        note("power cuts", epochs(&history).len() > 1);
        note("segments", requests.iter().any(|r| r.ranges().len() > 1));
        let writes: Vec<_> = requests.iter().filter(|r| r.changes()).collect();
        let meet = |a: &Request, b: &Request| {
            a.ranges()
                .iter()
                .any(|(at, n)| b.ranges().iter().any(|(o, m)| at < &(o + m) && o < &(at + n)))
        };
        for after in history.points(true) {
            let until: Vec<_> = writes.iter().filter(|r| r.id() <= after).collect();
            let together = until.iter().enumerate().any(|(i, a)| {
                let gone = a.fetched_again().is_some();
                until[i + 1..].iter().any(|b| !gone && !a.is_before(b) && meet(a, b))
            });
            let volatile = until.iter().filter(|r| r.stable().is_none_or(|(at, _)| after < at));
            let several = volatile.count() > 2;
            note("points with writes in flight together", several && together);
            note("points with none", several && !together);
        }
    }
    assert!(counts.values().all(|n| *n > 30), "{counts:?}");
}

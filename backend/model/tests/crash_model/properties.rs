//! What must hold of names, strategies, shrinking and faults.

use crate::brute::Holds;
use crate::generate::Dice;
use crate::{ANY_NUMBER, exhaustive, held, history, profiles, recording, some_points};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tornblk_model::crash::{
    AtomicMode, Choice, Clause, Coverage, Cut, DiscardReads, Fault, FaultKind, Mask, ModelError,
    Outcome, Parsed, Part, Profile, RequestKind, Selection, StateName, Strategy as Explore,
};
use tornblk_model::event::Seq;

/// Calls `f` with crash points of small recordings that have few enough states.
fn cuts(recordings: u64, mut f: impl FnMut(&Cut<'_>, &mut Dice)) {
    for seed in 5000..5000 + recordings {
        let recording = recording(seed, 12);
        let history = history(&recording);
        let all = profiles(recording.disk.lb_size);
        let mut dice = Dice::new(seed);
        for point in some_points(&recording, seed) {
            let profile = &all[dice.below(all.len() as u64) as usize];
            let cut = history.cut(point, profile).unwrap();
            if cut.choices() <= 12 {
                f(&cut, &mut dice);
            }
        }
    }
}

const SAMPLES: Explore = Explore::Random { seed: 7, count: 40 };

#[test]
fn every_strategy_chooses_legal_states_and_no_others() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    cuts(300, |cut, _| {
        let disk = cut.history.disk();
        let all = exhaustive(cut);
        for (what, strategy) in [
            ("prefix", Explore::Prefix),
            ("one-lost", Explore::OneLost),
            ("one-kept", Explore::OneKept),
            ("tear", Explore::Tear),
            ("random", SAMPLES),
            ("exhaustive", ANY_NUMBER),
        ] {
            for name in cut.states(strategy) {
                let content = cut.build(&name).unwrap();
                assert!(all.contains(&held(disk, &content)), "{what}: {name}");
                assert_eq!(cut.violations(&name).unwrap(), [], "{what}: {name}");
                *counts.entry(what).or_default() += 1;
                // The name alone is enough, and has one spelling.
                assert_eq!(cut.history.build(&name).unwrap(), content);
                let spelt = cut.spell_out(&name).unwrap();
                assert_eq!(cut.build(&spelt).unwrap(), content, "{name} {spelt}");
                assert_eq!(cut.spell_out(&spelt).unwrap(), spelt);
                assert!(strategy == SAMPLES || spelt == name, "{name} {spelt}");
                let parsed: Parsed = name.0.parse().unwrap();
                assert_eq!(StateName::from(&parsed), name);
            }
        }
    });
    for (what, count) in counts {
        assert!(count > 150, "{what}: {count}");
    }
}

/// Samples reach every kind of state, not only the frequent ones.
#[test]
fn samples_reach_nearly_everything() {
    let (mut reached, mut there) = (0, 0);
    cuts(100, |cut, _| {
        let disk = cut.history.disk();
        // What a discard leaves behind is one choice for each seed, and garbage is endless.
        let either = cut.profile.discard == DiscardReads::Either;
        if cut.choices() > 5 || either || cut.profile.garbage {
            return;
        }
        let samples: BTreeSet<Vec<Holds>> = cut
            .states(Explore::Random { seed: 1, count: 3000 })
            .map(|name| held(disk, &cut.build(&name).unwrap()))
            .collect();
        reached += samples.len();
        there += exhaustive(cut).len();
    });
    assert!(there > 500, "{there}");
    assert!(reached * 100 > there * 85, "{reached} of {there}");
}

/// Any selection at all, legal or not, of the writes at this point.
fn any_selection(cut: &Cut<'_>, dice: &mut Dice) -> Selection {
    let writes: Vec<Seq> = cut
        .history
        .requests()
        .iter()
        .map(|r| r.id())
        .filter(|id| cut.fragments(*id).is_ok_and(|n| n > 0))
        .collect();
    let mut selection = Selection { all: dice.one_in(2), ..Selection::default() };
    let mask = |dice: &mut Dice, n: usize| -> Mask { (0..n).filter(|_| dice.one_in(2)).collect() };
    for id in &writes {
        let n = cut.fragments(*id).unwrap();
        if dice.one_in(3) {
            let part = dice.one_in(2).then(|| mask(dice, n));
            selection.changes.push((dice.one_in(2), *id, part));
        }
        for other in writes.iter().filter(|other| *other != id) {
            if dice.one_in(4) {
                let fragments = dice.one_in(3).then(|| mask(dice, n));
                let over = Part { write: *id, fragments };
                selection.order.push((over, Part { write: *other, fragments: None }));
            }
        }
        let kind = cut.history.request(*id).unwrap().kind();
        if kind == RequestKind::Discard && dice.one_in(2) {
            let blocks: usize = (1..200)
                .take_while(|n| {
                    let mut one = Selection::default();
                    one.discards.push((*id, std::iter::once(n - 1).collect()));
                    cut.build(&name(cut, one)).is_ok()
                })
                .count();
            selection.discards.push((*id, mask(dice, blocks)));
        }
    }
    selection
}

fn name(cut: &Cut<'_>, selection: Selection) -> StateName {
    let profile = cut.profile.on(cut.history.disk());
    StateName::from(&Parsed { profile, after: cut.after, choice: Choice::These(selection) })
}

#[test]
fn a_name_is_legal_only_if_its_content_is() {
    let (mut legal, mut illegal) = (0, 0);
    let mut clauses = BTreeSet::new();
    cuts(300, |cut, dice| {
        let disk = cut.history.disk();
        let all = exhaustive(cut);
        for _ in 0..20 {
            let name = name(cut, any_selection(cut, dice));
            let content = held(disk, &cut.build(&name).unwrap());
            let violations = cut.violations(&name).unwrap();
            assert_eq!(cut.history.violations(&name).unwrap(), violations);
            if violations.is_empty() {
                assert!(all.contains(&content), "{name} is called legal");
                legal += 1;
            } else if !all.contains(&content) {
                illegal += 1;
            }
            clauses.extend(violations.iter().map(|v| v.clause));
        }
    });
    assert!(legal > 500 && illegal > 500, "{legal} legal, {illegal} illegal");
    for clause in [Clause::Stable, Clause::Order, Clause::OneOrder, Clause::Discard] {
        assert!(clauses.contains(&clause), "{clause:?} was never broken");
    }
}

#[test]
fn tearing_every_write_covers_every_cut() {
    let mut total = 0;
    cuts(200, |cut, _| {
        let mut coverage = Coverage::new();
        coverage.visit(cut);
        let before = coverage.covered();
        assert_eq!(before.missing(), before.cuts);
        for name in cut.states(Explore::Tear) {
            coverage.note(cut, &name, Outcome::Built).unwrap();
        }
        let covered = coverage.covered();
        assert_eq!((covered.missing(), covered.built), (0, before.cuts), "{covered}");
        total += covered.cuts;
        // What was only equal is said to be.
        let mut equal = Coverage::new();
        equal.visit(cut);
        for name in cut.states(Explore::Tear) {
            equal.note(cut, &name, Outcome::Equal).unwrap();
        }
        assert_eq!((equal.covered().equal, equal.covered().built), (before.cuts, 0));
    });
    assert!(total > 300, "{total}");
}

#[test]
fn shrinking_ends_in_a_failing_state_where_every_change_matters() {
    let (mut shrunk_some, mut changes) = (0, 0);
    cuts(300, |cut, dice| {
        let disk = cut.history.disk();
        let all = exhaustive(cut);
        for n in 0..6 {
            let from = cut.random(dice.below(1000), n);
            // A state fails where one of two blocks, or both, hold what they hold here.
            let content = held(disk, &cut.build(&from).unwrap());
            let blocks = content.len() as u64;
            let (a, b) = (dice.below(blocks) as usize, dice.below(blocks) as usize);
            let both = dice.one_in(2);
            let fails = |name: &StateName| {
                let now = held(disk, &cut.build(name).unwrap());
                assert!(all.contains(&now), "a legal state was shrunk to {name}");
                let (a, b) = (now[a] == content[a], now[b] == content[b]);
                Ok::<bool, ModelError>(if both { a && b } else { a || b })
            };
            let shrunk = cut.shrink(&from, fails).unwrap().unwrap();
            assert_eq!(cut.shrink(&from, fails).unwrap().unwrap(), shrunk, "deterministic");
            assert!(fails(&shrunk.failing).unwrap());
            assert!(shrunk.tried <= 4 + all.len());
            if let Some(passing) = &shrunk.passing {
                assert!(!fails(passing).unwrap());
                assert!(shrunk.changes > 0);
                shrunk_some += 1;
                changes += shrunk.changes;
            } else {
                assert_eq!(shrunk.changes, 0);
            }
            // Again: nothing is left to take away.
            let again = cut.shrink(&shrunk.failing, fails).unwrap().unwrap();
            if again.passing == shrunk.passing {
                assert_eq!(again.failing, shrunk.failing);
                assert_eq!(again.changes, shrunk.changes);
            }
            assert!(again.changes <= shrunk.changes);
            assert!(cut.shrink(&from, |_| Ok::<_, ModelError>(false)).unwrap().is_none());
        }
    });
    assert!(shrunk_some > 100, "{shrunk_some}");
    assert!(changes < shrunk_some * 3, "{changes} changes in {shrunk_some} states");
}

#[test]
fn shrinking_hands_on_what_the_predicate_says() {
    cuts(5, |cut, _| {
        let refused = |_: &StateName| Err(ModelError::State("no guest".into()));
        assert!(cut.shrink(&cut.random(1, 1), refused).is_err());
    });
}

#[test]
fn faults_break_the_clause_that_they_are_about() {
    let mut broken: HashMap<FaultKind, usize> = HashMap::new();
    cuts(700, |cut, dice| {
        let disk = cut.history.disk();
        for (kind, clause) in [
            (FaultKind::TearAtomic, Clause::Atomic),
            (FaultKind::IgnoreFlush, Clause::Stable),
            (FaultKind::LoseWrite, Clause::Stable),
            (FaultKind::ReorderFlush, Clause::Stable),
            (FaultKind::Misdirect, Clause::Foreign),
            (FaultKind::Corrupt, Clause::Foreign),
        ] {
            let from = cut.random(3, dice.below(50));
            let mut fault = Fault::everywhere(kind);
            match dice.below(4) {
                0 => fault.nth = Some(1 + dice.below(3)),
                1 => fault.probability = Some(0.5),
                2 => fault.range = Some((0, disk.capacity / 2 / 512 * 512)),
                _ => {}
            }
            let seed = dice.below(100);
            let (name, words) = cut.break_with(&from, &[fault.clone()], seed).unwrap();
            let again = cut.break_with(&from, &[fault.clone()], seed).unwrap();
            assert_eq!((&name, &words), (&again.0, &again.1), "same seed, same fault");
            if words.is_empty() {
                assert_eq!(name, from);
                continue;
            }
            assert_eq!(words.len(), 1, "one a fault");
            *broken.entry(kind).or_default() += 1;
            let violations = cut.violations(&name).unwrap();
            assert!(
                violations.iter().any(|v| v.clause == clause),
                "{fault} of {from}: {name} breaks {violations:?}"
            );
            if clause == Clause::Stable {
                assert!(violations.iter().all(|v| v.clause == clause), "{name}: {violations:?}");
            }
            if !matches!(kind, FaultKind::LoseWrite) && clause == Clause::Stable {
                let flush = |v: &str| v.contains("(stability 1)");
                assert!(violations.iter().any(|v| flush(&v.words)), "{violations:?}");
            }
            // The name builds what was made, and has one spelling.
            let content = cut.history.build(&name).unwrap();
            assert_eq!(cut.spell_out(&name).unwrap(), name);
            if !matches!(kind, FaultKind::IgnoreFlush | FaultKind::ReorderFlush) {
                assert_ne!(content, cut.build(&from).unwrap(), "{fault} shows in {name}");
            }
        }
        let live = [FaultKind::StaleRead, FaultKind::Eio].map(Fault::everywhere);
        let (name, words) = cut.break_with(&cut.random(0, 0), &live, 0).unwrap();
        assert_eq!((name, words), (cut.random(0, 0), vec![]), "live faults are for others");
    });
    for (kind, least) in [
        (FaultKind::TearAtomic, 50),
        (FaultKind::IgnoreFlush, 50),
        (FaultKind::LoseWrite, 100),
        (FaultKind::ReorderFlush, 5),
        (FaultKind::Misdirect, 100),
        (FaultKind::Corrupt, 100),
    ] {
        let count = broken.get(&kind).copied().unwrap_or(0);
        assert!(count >= least, "{kind}: only {count} times");
    }
}

/// The nth counts requests from the beginning, whatever became of them.
#[test]
fn the_nth_is_the_nth() {
    let mut seen = 0;
    cuts(200, |cut, _| {
        let everywhere = Fault::everywhere(FaultKind::Misdirect);
        let count = cut.history.count_for(&everywhere, cut.profile, cut.after);
        let from = cut.states(Explore::Prefix).next().unwrap();
        let moved = |faults: &[Fault]| -> Vec<(Seq, u64)> {
            let (name, _) = cut.break_with(&from, faults, 1).unwrap();
            match name.0.parse::<Parsed>().unwrap().choice {
                Choice::These(selection) => selection.misdirected,
                Choice::Random { .. } => vec![],
            }
        };
        let all = moved(std::slice::from_ref(&everywhere));
        let each: BTreeSet<(Seq, u64)> = (1..=count)
            .flat_map(|n| moved(&[Fault { nth: Some(n), ..everywhere.clone() }]))
            .collect();
        for one in all {
            assert!(each.contains(&one));
            seen += 1;
        }
        assert!(moved(&[Fault { nth: Some(count + 1), ..everywhere }]).is_empty());
    });
    assert!(seen > 100, "{seen}");
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), (0u32..40).prop_map(|log| 1 << log), 0u64..100_000, any::<u64>()]
}

fn profile() -> impl Strategy<Value = Profile> {
    let mode =
        prop::sample::select(vec![AtomicMode::None, AtomicMode::Implicit, AtomicMode::Explicit]);
    let discard =
        prop::sample::select(vec![DiscardReads::Zeroes, DiscardReads::Old, DiscardReads::Either]);
    let sizes = [size(), size(), size(), size(), size()].prop_map(|sizes| sizes);
    let lb = prop::option::of(1u32..=u32::MAX);
    (mode, sizes, lb, discard, any::<bool>()).prop_map(
        |(mode, sizes, lb_size, discard, garbage)| {
            let [unit_min, unit_max, max_bytes, boundary, tear_unit] = sizes;
            Profile {
                mode,
                unit_min,
                unit_max,
                max_bytes,
                boundary,
                tear_unit,
                lb_size,
                discard,
                garbage,
            }
        },
    )
}

fn mask() -> impl Strategy<Value = Mask> {
    prop::collection::vec(0usize..300, 0..6).prop_map(|bits| bits.into_iter().collect())
}

fn part() -> impl Strategy<Value = Part> {
    (any::<u64>(), prop::option::of(mask()))
        .prop_map(|(id, fragments)| Part { write: Seq(id), fragments })
}

fn id() -> impl Strategy<Value = Seq> {
    any::<u64>().prop_map(Seq)
}

prop_compose! {
    fn selection()(
        all in any::<bool>(),
        changes in prop::collection::vec((any::<bool>(), id(), prop::option::of(mask())), 0..4),
        order in prop::collection::vec((part(), part()), 0..4),
        discards in prop::collection::vec((id(), mask()), 0..3),
        garbage in prop::collection::vec(any::<(u64, u64)>(), 0..3),
        torn in prop::collection::vec((id(), mask()), 0..3),
        misdirected in prop::collection::vec((id(), any::<u64>()), 0..3),
        flipped in prop::collection::vec(any::<(u64, u32)>(), 0..3),
    ) -> Selection {
        Selection { all, changes, order, discards, garbage, torn, misdirected, flipped }
    }
}

fn choice() -> impl Strategy<Value = Choice> {
    let random =
        any::<(u32, u64, u64)>().prop_map(|(version, seed, n)| Choice::Random { version, seed, n });
    prop_oneof![selection().prop_map(Choice::These), random]
}

proptest! {
    #[test]
    fn every_profile_has_one_name(profile in profile()) {
        let name = profile.to_string();
        prop_assert_eq!(name.parse::<Profile>().unwrap(), profile, "{}", name);
    }

    #[test]
    fn every_choice_has_one_name(profile in profile(), after in any::<u64>(), choice in choice()) {
        let parsed = Parsed { profile, after: Seq(after), choice };
        let name = StateName::from(&parsed);
        prop_assert_eq!(name.0.parse::<Parsed>().unwrap(), parsed);
        prop_assert!(name.shard(7) < 7);
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused(text in "\\PC{0,40}") {
        let _ = text.parse::<Profile>();
        let _ = text.parse::<Fault>();
        if let Ok(parsed) = text.parse::<Parsed>() {
            prop_assert_eq!(StateName::from(&parsed).0.parse::<Parsed>().unwrap(), parsed);
        }
    }
}

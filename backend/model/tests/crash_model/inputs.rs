//! `exhaustive` yields exactly what the brute force yields, on inputs that hold everything that
//! the model's page names.

use crate::brute::{self, Piece, Req};
use crate::generate::Recording;
use crate::{exhaustive, history, profiles, recording, some_points};
use std::collections::{BTreeMap, BTreeSet};
use tornblk_model::crash::{DiscardReads, Profile};
use tornblk_model::event::{Event, Op, ResetCause, Seq};

const RECORDINGS: u64 = 1000;
const FRAGMENTS: u64 = 12;

/// Kinds of input, each with how often it was met at least.
#[derive(Default)]
struct Met(BTreeMap<&'static str, u64>);

impl Met {
    fn note(&mut self, what: &'static str, met: bool) {
        *self.0.entry(what).or_default() += u64::from(met);
    }

    fn recording(&mut self, recording: &Recording) {
        let events = &recording.events;
        let mut queues = BTreeSet::new();
        let mut wrapped = false;
        let mut last = BTreeMap::new();
        for (_, event) in events {
            if let Event::Submit(submit) = event {
                queues.insert(submit.queue);
                let before = last.insert(submit.queue, submit.position);
                wrapped |= before.is_some_and(|before| before > 0xff00 && submit.position < 0x100);
            }
        }
        self.note("several queues", queues.len() > 1);
        self.note("positions that wrap", wrapped);
        let power_cut =
            |(_, e): &(Seq, Event)| matches!(e, Event::Reset { cause: ResetCause::PowerCut, .. });
        self.note("power cuts", events.iter().any(power_cut));
    }

    fn point(&mut self, recording: &Recording, point: Seq, profile: &Profile) {
        let lb = u64::from(recording.disk.lb_size);
        let reqs = brute::requests(&recording.events, point.0);
        let pieces = brute::pieces(&recording.disk, &reqs, profile);
        let touching = |a: &Req, b: &Req| {
            let of = |r: &Req| -> BTreeSet<u64> {
                let mine = |p: &&Piece| std::ptr::eq(&raw const reqs[p.req], r);
                pieces.iter().filter(mine).flat_map(|p| p.blocks.clone()).collect()
            };
            !of(a).is_disjoint(&of(b))
        };
        let changes = || reqs.iter().filter(|r| r.changes());
        let pairs = || changes().flat_map(|a| changes().map(move |b| (a, b)));
        let fua = |r: &Req| matches!(r.op, Op::Write { fua: true, .. });
        self.note(
            "FUA over an older volatile write",
            pairs().any(|(a, b)| {
                !a.stable && b.stable && fua(b) && a.ok.is_some() && a.before(b) && touching(a, b)
            }),
        );
        self.note(
            "a FLUSH that only looks as if it came after the write",
            changes().any(|w| {
                reqs.iter().any(|f| {
                    let done = w.ok.unwrap_or(u64::MAX);
                    matches!(f.op, Op::Flush { .. })
                        && f.ok.is_some()
                        && !f.refetched
                        && f.id > done
                        && f.submitted < done
                        && !w.stable
                })
            }),
        );
        self.note("writes without a moment inside", changes().any(|r| r.ok == Some(r.id)));
        self.note("failed writes", changes().any(|r| r.failed));
        self.note(
            "a failed write under a later stable one",
            pairs().any(|(a, b)| a.failed && b.stable && a.before(b) && touching(a, b)),
        );
        let of_some = |f: &&Req| f.ok.is_some() && matches!(f.op, Op::Flush { len, .. } if len > 0);
        let later = |r: &Req| {
            let after = |f: &&Req| r.ok.is_some_and(|ok| f.submitted > ok);
            reqs.iter().filter(of_some).filter(after).count()
        };
        self.note("flushes of one disk", reqs.iter().any(|f| of_some(&f)));
        self.note(
            "a write that only a flush of one disk makes stable",
            changes()
                .any(|r| r.stable && !fua(r) && later(r) > 0 && later(r) == later_any(r, &reqs)),
        );
        self.note(
            "a write that the flush of another disk leaves volatile",
            changes().any(|r| !r.stable && later(r) > 0),
        );
        self.note(
            "a write over the end of a disk, which two flushes leave volatile",
            changes().any(|r| !r.stable && later(r) > 1),
        );
        let failed_flush = |r: &Req| matches!(r.op, Op::Flush { .. }) && r.failed;
        self.note("failed flushes", reqs.iter().any(failed_flush));
        for (what, cause) in [
            ("writes ended by a device reset", ResetCause::Device),
            ("writes ended by a queue stop", ResetCause::QueueStop),
            ("writes ended by a reconnect", ResetCause::Reconnect),
            ("writes ended by a restart", ResetCause::Restart),
        ] {
            self.note(what, changes().any(|r| r.reset == Some(cause)));
        }
        self.note("writes fetched again", changes().any(|r| r.refetched));
        let flush_again =
            |r: &Req| matches!(r.op, Op::Flush { .. }) && r.refetched && r.ok.is_some();
        self.note("flushes fetched again", reqs.iter().any(flush_again));
        self.note("writes resumed", changes().any(|r| r.resumed));
        let flush_resumed =
            |r: &Req| matches!(r.op, Op::Flush { .. }) && r.resumed && r.ok.is_some();
        self.note("flushes resumed", reqs.iter().any(flush_resumed));
        let toggled = |r: &Req| {
            recording.events.iter().any(|(at, e)| {
                matches!(e, Event::SetWriteback { .. })
                    && r.submitted < at.0
                    && r.ok.is_some_and(|ok| at.0 < ok)
            })
        };
        self.note("writeback toggled in flight", changes().any(toggled));
        let later_flush = |r: &Req| {
            let after = |f: &&Req| matches!(f.op, Op::Flush { .. }) && f.ok.is_some();
            reqs.iter().filter(after).any(|f| r.ok.is_some_and(|ok| f.submitted > ok))
        };
        self.note(
            "stable without FLUSH or FUA",
            changes().any(|r| r.stable && !fua(r) && !later_flush(r)),
        );
        let discards = || changes().filter(|r| matches!(r.op, Op::Discard { .. }));
        self.note("volatile discards", discards().any(|r| !r.stable));
        for (what, reads) in [
            ("stable discards that read zeroes", DiscardReads::Zeroes),
            ("stable discards that read old data", DiscardReads::Old),
            ("stable discards that read either", DiscardReads::Either),
        ] {
            self.note(what, profile.discard == reads && discards().any(|r| r.stable));
        }
        let zeroes = |r: &Req| matches!(r.op, Op::WriteZeroes { .. });
        self.note("write zeroes", changes().any(zeroes));
        self.note(
            "requests that cover a part of a block",
            changes().any(|r| match r.op {
                Op::Write { offset, len, .. } => offset % lb != 0 || len % lb != 0,
                _ => false,
            }),
        );
        let atomic: Vec<&Piece> =
            pieces.iter().filter(|p| p.atomic && p.blocks.len() > 1).collect();
        let clash = |a: &Piece, b: &Piece| {
            let (ra, rb) = (&reqs[a.req], &reqs[b.req]);
            a.req != b.req && !ra.before(rb) && !rb.before(ra) && !a.blocks.is_disjoint(&b.blocks)
        };
        let two = |a: &&Piece| atomic.iter().any(|b| clash(a, b));
        self.note("two concurrent overlapping atomic writes", atomic.iter().any(two));
        self.note(
            "two of them, both stable",
            atomic.iter().any(|a| !a.free && atomic.iter().any(|b| !b.free && clash(a, b))),
        );
        let three = |a: &&Piece| {
            let with: Vec<_> = atomic.iter().filter(|b| clash(a, b)).collect();
            with.iter().any(|b| with.iter().any(|c| clash(b, c)))
        };
        self.note("three concurrent overlapping atomic writes", atomic.iter().any(three));
        self.note(
            "concurrent overlapping writes that may be torn",
            pieces.iter().any(|a| !a.atomic && pieces.iter().any(|b| !b.atomic && clash(a, b))),
        );
    }
}

/// Flushes that worked and were submitted after the write completed, whatever they are of.
fn later_any(r: &Req, reqs: &[Req]) -> usize {
    let flush = |f: &&Req| matches!(f.op, Op::Flush { .. }) && f.ok.is_some();
    reqs.iter().filter(flush).filter(|f| r.ok.is_some_and(|ok| f.submitted > ok)).count()
}

fn lines(recording: &Recording) -> String {
    let line = |(at, event): &(Seq, Event)| format!("{at}: {event:?}\n");
    format!("{:?}\n", recording.disk) + &recording.events.iter().map(line).collect::<String>()
}

/// States found, and what the inputs were.
fn compare(seeds: impl Iterator<Item = u64>) -> (usize, Met) {
    let mut met = Met::default();
    let mut states = 0;
    for seed in seeds {
        let recording = recording(seed, FRAGMENTS);
        let history = history(&recording);
        met.recording(&recording);
        let all = profiles(recording.disk.lb_size);
        for (n, point) in (0..).zip(some_points(&recording, seed)) {
            for profile in [seed + n, seed * 5 + n * 7 + 3] {
                let profile = &all[profile as usize % all.len()];
                let cut = history.cut(point, profile).unwrap();
                // Anything in every block takes the brute force minutes.
                if profile.garbage && cut.choices() > 14 {
                    continue;
                }
                let expected =
                    brute::contents(&recording.disk, &recording.events, point.0, profile);
                let found = exhaustive(&cut);
                assert!(
                    found == expected,
                    "seed {seed}, point {point}, profile {profile}\n{}\nonly in the model: \
                     {:?}\nonly in the brute force: {:?}",
                    lines(&recording),
                    found.difference(&expected).next(),
                    expected.difference(&found).next(),
                );
                states += found.len();
                met.point(&recording, point, profile);
            }
        }
    }
    (states, met)
}

#[test]
fn exhaustive_is_what_the_brute_force_finds() {
    let mut met = Met::default();
    let mut states = 0;
    std::thread::scope(|scope| {
        let half = |first| scope.spawn(move || compare((first..RECORDINGS).step_by(2)));
        for half in [half(0), half(1)] {
            let (found, inputs) = half.join().unwrap();
            states += found;
            for (what, count) in inputs.0 {
                *met.0.entry(what).or_default() += count;
            }
        }
    });
    println!("{states} states; {:#?}", met.0);
    for (what, count) in &met.0 {
        assert!(*count >= 20, "{what}: only {count} times");
    }
    assert_eq!(met.0.len(), 33, "every kind of input is counted");
    assert!(states > 50_000, "only {states} states");
}

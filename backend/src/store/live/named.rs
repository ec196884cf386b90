//! Writes that say how long they were when they were sent, and how they arrived: seen without any
//! crash, whichever front-end they come from.
//!
//! On virtio-blk a write says it by its I/O priority ([`Named`]); on SCSI one that was sent as
//! atomic is what it is. Judging changes nothing about the write.

use super::lock;
use crate::complaints::Complaints;
use crate::store::Op;
use crate::store::gate::GateContext;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tornblk_model::crash::{AtomicMode, Profile};
use tornblk_model::named::Named;
use tornblk_proto::NamedWrites;

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Observed {
    writes: AtomicU64,
    whole: AtomicU64,
    split: AtomicU64,
    merged: AtomicU64,
    merged_beyond_limit: AtomicU64,
    misaligned: AtomicU64,
    across_boundary: AtomicU64,
    /// How many of `first` are there or about to be.
    told: AtomicUsize,
    first: Mutex<Vec<String>>,
    complaints: Complaints,
}

/// A request that carries a named write: bytes all.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    offset: u64,
    len: u64,
    /// What the write says: its own length.
    says: u64,
    /// `None`: sent as atomic, without a name.
    name: Option<u8>,
}

/// How the length that arrived stands to the one that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Whole,
    Split,
    Merged,
    /// Over this limit.
    MergedBeyond(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judged {
    length: Length,
    misaligned: bool,
    /// The boundary.
    across: Option<u64>,
}

/// What is wrong with an arrival.
#[derive(Clone, Copy, Debug)]
enum Anomaly {
    Split,
    MergedBeyond(u64),
    Misaligned,
    Across(u64),
}

impl Observed {
    /// A request came. Costs next to nothing where it says nothing.
    pub(super) fn arrived(&self, profile: &Profile, ctx: &GateContext<'_>) {
        let Some(arrival) = Arrival::of(ctx) else { return };
        let one = |n: &AtomicU64| n.fetch_add(1, Ordering::Relaxed);
        let judged = arrival.judge(profile);
        one(&self.writes);
        match judged.length {
            Length::Whole => one(&self.whole),
            Length::Merged => one(&self.merged),
            Length::Split => {
                self.tell(arrival, Anomaly::Split);
                one(&self.split)
            }
            Length::MergedBeyond(limit) => {
                self.tell(arrival, Anomaly::MergedBeyond(limit));
                one(&self.merged_beyond_limit)
            }
        };
        if judged.misaligned {
            one(&self.misaligned);
            self.tell(arrival, Anomaly::Misaligned);
        }
        if let Some(boundary) = judged.across {
            one(&self.across_boundary);
            self.tell(arrival, Anomaly::Across(boundary));
        }
    }

    /// Every queue's threads come by here: nothing is formatted or logged under a lock, and once
    /// enough was told none is taken.
    fn tell(&self, arrival: Arrival, anomaly: Anomaly) {
        let text = Sentence { arrival, anomaly };
        let more = |told| (told < NamedWrites::FIRST).then_some(told + 1);
        if self.told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            let text = text.to_string();
            lock(&self.first).push(text);
        }
        self.complaints.say(log::Level::Warn, format_args!("{text}"));
    }

    pub(super) fn get(&self) -> NamedWrites {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        NamedWrites {
            writes: get(&self.writes),
            whole: get(&self.whole),
            split: get(&self.split),
            merged: get(&self.merged),
            merged_beyond_limit: get(&self.merged_beyond_limit),
            misaligned: get(&self.misaligned),
            across_boundary: get(&self.across_boundary),
            first: lock(&self.first).clone(),
        }
    }
}

impl Arrival {
    fn of(ctx: &GateContext<'_>) -> Option<Arrival> {
        let Op::Write { offset, atomic, .. } = *ctx.op else { return None };
        let (says, name) = if atomic {
            (ctx.len, None)
        } else {
            let named = Named::from_ioprio(ctx.origin.ioprio)?;
            (named.len, Some(named.name))
        };
        Some(Arrival { offset, len: ctx.len, says, name })
    }

    /// What merges over a limit that does not exist is no anomaly: on a disk that keeps nothing
    /// whole, only lengths and places can be wrong. A name is no more than that: a disk that keeps
    /// only what was sent as atomic has no limit for a write that was not. What was sent as atomic
    /// heeds no boundary of the disk: SCSI has none.
    fn judge(&self, profile: &Profile) -> Judged {
        let Arrival { offset, len, says, name } = *self;
        let limited = name.is_none() || profile.mode == AtomicMode::Implicit;
        let limit = if limited { profile.max_bytes } else { 0 };
        let length = if len < says {
            Length::Split
        } else if len == says {
            Length::Whole
        } else if limit != 0 && len > limit {
            Length::MergedBeyond(limit)
        } else {
            Length::Merged
        };
        // Where the whole of a split write began is not known. A length that is no power of two
        // has no natural place; and one that was sent as atomic may be of several that were merged:
        // SCSI asks for no alignment but the granularity.
        let place = if name.is_some() { says } else { profile.unit_min.max(1) };
        let placed = length != Length::Split && place.is_power_of_two();
        let across = name.is_some() && limited && profile.crosses_boundary(offset, len);
        Judged {
            length,
            misaligned: placed && !offset.is_multiple_of(place),
            across: across.then_some(profile.boundary),
        }
    }
}

/// For the log and `status`: begins with the anomaly's own name.
struct Sentence {
    arrival: Arrival,
    anomaly: Anomaly,
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Arrival { offset, len, says, name } = self.arrival;
        let write = match name {
            Some(name) => format!("write of {says} bytes, named {name},"),
            None => format!("write of {says} bytes, sent as atomic,"),
        };
        let request = if len == says { String::new() } else { format!(" in a request of {len}") };
        match self.anomaly {
            Anomaly::Split => write!(
                f,
                "split: of a {write} only {len} bytes at offset {offset} arrived in one request"
            ),
            Anomaly::MergedBeyond(limit) => write!(
                f,
                "merged-beyond-limit: a {write} arrived in a request of {len} bytes at offset \
                 {offset}, and the disk keeps no more than {limit} bytes whole"
            ),
            Anomaly::Misaligned => write!(
                f,
                "misaligned: a {write} arrived{request} at offset {offset}, which is not where such a \
                 write may begin"
            ),
            Anomaly::Across(boundary) => write!(
                f,
                "across-boundary: a {write} arrived{request} at offset {offset} across a multiple \
                 of {boundary} bytes, over which the disk keeps nothing whole"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Origin;
    use proptest::prelude::*;

    fn profile(name: &str) -> Profile {
        name.parse().unwrap()
    }

    fn tag(len: u64) -> u16 {
        Named::new(len, 9).unwrap().to_ioprio()
    }

    fn see(seen: &Observed, profile: &Profile, op: &Op, len: u64, ioprio: u16) {
        let origin = Origin { queue: 0, position: 0, head: 0, ioprio };
        let eligible = false;
        let ctx = GateContext {
            id: 1,
            origin,
            op,
            len,
            seq: None,
            eligible,
            pieces: false,
            again: false,
        };
        seen.arrived(profile, &ctx);
    }

    fn at(offset: u64) -> Op {
        Op::Write { offset, fua: false, atomic: false }
    }

    fn atomic(offset: u64) -> Op {
        Op::Write { offset, fua: false, atomic: true }
    }

    /// What is seen of one write.
    fn one(name: &str, op: &Op, len: u64, ioprio: u16) -> NamedWrites {
        let seen = Observed::default();
        see(&seen, &profile(name), op, len, ioprio);
        seen.get()
    }

    const K: u64 = 1 << 10;

    #[test]
    fn what_says_nothing_is_not_counted() {
        let nothing = NamedWrites::default();
        for ioprio in [0, 2 << 13 | 4, 1 << 13 | 6 << 3] {
            assert_eq!(one("req16k+b16k", &at(512), 64 * K, ioprio), nothing, "{ioprio:#x}");
        }
        for op in [Op::Read { offset: 512 }, Op::FLUSH, Op::Discard { segments: Vec::new() }] {
            assert_eq!(one("req16k", &op, 512, tag(16 * K)), nothing, "{op:?}");
        }
    }

    #[test]
    fn a_write_as_it_was_sent_is_whole() {
        let whole = NamedWrites { writes: 1, whole: 1, ..NamedWrites::default() };
        assert_eq!(one("req16k+b16k", &at(16 * K), 16 * K, tag(16 * K)), whole);
        assert_eq!(one("lb512", &at(16 * K), 16 * K, tag(16 * K)), whole);
        assert_eq!(one("explicit16k", &atomic(0), 4 * K, 0), whole);
    }

    #[test]
    fn a_part_is_split_wherever_it_lies() {
        for offset in [0, 4 * K] {
            let seen = one("req16k", &at(offset), 4 * K, tag(16 * K));
            assert_eq!((seen.writes, seen.split, seen.misaligned), (1, 1, 0));
            let first = &seen.first[0];
            assert!(first.starts_with("split: "), "{first}");
            assert!(first.contains("16384") && first.contains("4096"), "{first}");
        }
    }

    #[test]
    fn merging_is_legal_up_to_the_limit() {
        let seen = one("req64k", &at(0), 64 * K, tag(16 * K));
        assert_eq!((seen.merged, seen.merged_beyond_limit), (1, 0));
        assert!(seen.first.is_empty());
        let seen = one("req64k", &at(0), 64 * K + 512, tag(16 * K));
        assert_eq!((seen.merged, seen.merged_beyond_limit), (0, 1));
        let first = &seen.first[0];
        assert!(first.starts_with("merged-beyond-limit: "), "{first}");
        assert!(first.contains("no more than 65536"), "{first}");
        // Nothing is promised, so no limit is crossed.
        assert_eq!(one("lb512", &at(0), 256 * K, tag(16 * K)).merged, 1);
        assert_eq!(one("explicit16k", &at(0), 64 * K, tag(16 * K)).merged, 1);
    }

    #[test]
    fn a_write_has_a_natural_place() {
        let seen = one("req64k", &at(4 * K), 16 * K, tag(16 * K));
        assert_eq!((seen.whole, seen.misaligned), (1, 1));
        assert!(seen.first[0].starts_with("misaligned: "), "{}", seen.first[0]);
        // Two that were merged begin where the first did.
        assert_eq!(one("req64k", &at(16 * K), 32 * K, tag(16 * K)).misaligned, 0);
        assert_eq!(one("req64k", &at(8 * K), 32 * K, tag(16 * K)).misaligned, 1);
        // Three blocks have none.
        assert_eq!(one("explicit16k", &atomic(512), 1536, 0).misaligned, 0);
        assert_eq!(one("explicit16k", &atomic(512), 1024, 0).misaligned, 0, "merged, perhaps");
        assert_eq!(one("explicit16k+min4k", &atomic(512), 4 * K, 0).misaligned, 1);
    }

    #[test]
    fn nothing_is_whole_across_a_boundary() {
        let seen = one("req16k+b32k", &at(24 * K), 16 * K, tag(16 * K));
        assert_eq!((seen.whole, seen.misaligned, seen.across_boundary), (1, 1, 1));
        assert!(seen.first[1].starts_with("across-boundary: "), "{}", seen.first[1]);
        assert_eq!(one("req16k+b32k", &at(16 * K), 16 * K, tag(16 * K)).across_boundary, 0);
        assert_eq!(one("req16k", &at(24 * K), 16 * K, tag(16 * K)).across_boundary, 0);
        assert_eq!(one("explicit16k+b32k", &atomic(24 * K), 16 * K, 0).across_boundary, 0);
        assert_eq!(one("explicit16k+b32k", &at(24 * K), 16 * K, tag(16 * K)).across_boundary, 0);
        // Two merged ones, each of which lies on its side.
        let seen = one("req32k+b32k", &at(16 * K), 32 * K, tag(16 * K));
        assert_eq!((seen.merged, seen.misaligned, seen.across_boundary), (1, 0, 1));
    }

    #[test]
    fn only_the_first_are_told_in_words() {
        let (seen, profile) = (Observed::default(), profile("req16k"));
        for n in 0..20 {
            see(&seen, &profile, &at(n * 4 * K), 4 * K, tag(16 * K));
        }
        let seen = seen.get();
        assert_eq!((seen.split, seen.first.len()), (20, NamedWrites::FIRST));
        assert!(seen.first[1].contains("at offset 4096"), "{}", seen.first[1]);
    }

    proptest! {
        /// What is found agrees with what the crash model keeps whole.
        #[test]
        fn no_anomaly_and_the_model_agree(
            writes in prop::collection::vec((0u64..512, 1u64..200, 0u32..8, any::<bool>()), 1..40),
            limits in prop::sample::select(&["lb512", "req16k", "req16k+b16k", "req32k+b64k", "explicit16k", "explicit16k+b16k"]),
        ) {
            let (seen, profile) = (Observed::default(), profile(limits));
            let mut anomalies = 0;
            for (sector, sectors, shift, sent_as_atomic) in &writes {
                let (offset, len) = (sector * 512, sectors * 512);
                let op = if *sent_as_atomic { atomic(offset) } else { at(offset) };
                see(&seen, &profile, &op, len, tag(512 << shift));
                let says = if *sent_as_atomic { len } else { 512 << shift };
                let name = (!*sent_as_atomic).then_some(0);
                let arrival = Arrival { offset, len, says, name };
                let judged = arrival.judge(&profile);
                // A disk that keeps only what was sent as atomic promises nothing to a name.
                let limited = *sent_as_atomic || profile.mode == AtomicMode::Implicit;
                let kept = profile.eligible(offset, len, *sent_as_atomic);
                let beyond = matches!(judged.length, Length::MergedBeyond(_));
                if beyond || judged.across.is_some() {
                    prop_assert!(limited && !kept);
                } else if limited && profile.max_bytes >= len {
                    prop_assert!(kept || *sent_as_atomic && profile.crosses_boundary(offset, len));
                }
                anomalies += usize::from(!matches!(judged.length, Length::Whole | Length::Merged))
                    + usize::from(judged.misaligned)
                    + usize::from(judged.across.is_some());
            }
            let s = seen.get();
            prop_assert_eq!(s.writes, writes.len() as u64);
            prop_assert_eq!(s.writes, s.whole + s.split + s.merged + s.merged_beyond_limit);
            let told = s.split + s.merged_beyond_limit + s.misaligned + s.across_boundary;
            prop_assert_eq!(told, anomalies as u64);
            prop_assert_eq!(s.first.len(), anomalies.min(NamedWrites::FIRST));
        }
    }
}

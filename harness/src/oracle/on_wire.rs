//! How writes with RWF_ATOMIC reached the disk.
//!
//! The kernel takes such a write only where it can go to the disk as one request that the disk keeps
//! whole; then it has to go like that. A file system that takes more than the disk can keep (XFS, by
//! copy-on-write) sends ordinary requests, and makes the write whole by itself. Which of the two a
//! lane is about is its suite's to say: on the wire of virtio-blk they look alike.

use super::{Asked, Carrier, Clause, Finding, Key, Ledger, Wire, call};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tornblk_agent::channel::Workload;
use tornblk_model::crash::{AtomicMode, Profile};

/// How a write with RWF_ATOMIC must reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnWire {
    /// As the file system likes.
    #[default]
    Any,
    /// As one atomic request, or by the file system's own means.
    Either,
    /// As one atomic request: wholly inside it, and that within the disk's limits.
    Atomic,
}

/// What became of the writes with RWF_ATOMIC up to the cut.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reached {
    /// Inside one atomic request each.
    pub atomic: u64,
    /// Requests that held more than one of these.
    pub merged: u64,
    /// The others, where none may be.
    pub findings: Vec<Finding>,
}

/// Looks at each write with RWF_ATOMIC of which a request was seen.
pub fn on_wire(
    workload: &Workload,
    ledger: &Ledger,
    wire: &Wire,
    profile: &Profile,
    how: OnWire,
) -> Reached {
    let mut reached = Reached::default();
    let mut requests: HashMap<u64, u64> = HashMap::new();
    for (&(file, unit), of) in &ledger.units {
        for (&r#gen, asked) in of.writes.iter().filter(|(_, a)| a.flags.atomic && !a.load) {
            let carriers = wire.carriers(Key { file, unit, r#gen });
            let why = match carriers.first() {
                // Its request had to be answered before it returned.
                None if asked.complete() => "it returned, and no request carried it".to_owned(),
                None => continue,
                Some(first) => match why_not(carriers, profile) {
                    Some(why) => why,
                    None => {
                        *requests.entry(first.request).or_default() += 1;
                        reached.atomic += u64::from(by_the_disk(first, asked, how));
                        continue;
                    }
                },
            };
            if how != OnWire::Atomic {
                continue;
            }
            let Some(target) = workload.files.iter().find(|t| t.file == file) else { continue };
            let offset = target.offset_of(unit);
            let text = format!(
                "generation {gen}, written with RWF_ATOMIC, did not reach the disk as one atomic \
                 request: {why}"
            );
            reached.findings.push(Finding {
                file,
                path: target.path.clone(),
                unit,
                offset,
                len: asked.len,
                generation: Some(r#gen),
                call: call(asked.len, offset, asked.flags),
                ..Finding::new(Clause::NotAtomic, text)
            });
        }
    }
    reached.merged = requests.values().filter(|writes| **writes > 1).count() as u64;
    reached
}

/// Was it the disk that had to keep it whole? Where a file system may do it by itself, an ordinary
/// request looks the same on virtio-blk, but then it goes to another place than the one that the
/// write was for.
fn by_the_disk(carrier: &Carrier, asked: &Asked, how: OnWire) -> bool {
    how == OnWire::Atomic || carrier.atomic || asked.at == Some(carrier.at)
}

/// `None`: it was one request that the disk keeps whole, or none yet.
fn why_not(carriers: &[Carrier], profile: &Profile) -> Option<String> {
    let carrier = carriers.first()?;
    // One that failed is sent again as it was: a driver may do that.
    let again = |c: &Carrier| c.whole && (c.offset, c.len) == (carrier.offset, carrier.len);
    if !carriers.iter().all(again) && carriers.len() > 1 {
        return Some(format!("it came in {} requests, {}", carriers.len(), list(carriers)));
    }
    let Carrier { offset, len, .. } = *carrier;
    let request = format!("a request of {len} bytes at {offset}");
    if !carrier.whole {
        return Some(format!("only a part of it came, in {request}"));
    }
    if carrier.eligible {
        return None;
    }
    Some(if profile.mode == AtomicMode::Explicit && !carrier.atomic {
        format!("{request} was not sent as atomic")
    } else if len > profile.max_bytes {
        format!("it came in {request}, and the disk keeps at most {} whole", profile.max_bytes)
    } else if profile.crosses_boundary(offset, len) {
        format!("it came in {request}, which crosses a boundary of {}", profile.boundary)
    } else {
        format!("the disk keeps no such request whole: {request}")
    })
}

fn list(carriers: &[Carrier]) -> String {
    const SHOWN: usize = 4;
    let mut texts: Vec<String> =
        carriers.iter().take(SHOWN).map(|c| format!("{} at {}", c.len, c.offset)).collect();
    if carriers.len() > SHOWN {
        texts.push("...".to_owned());
    }
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::judge::tests::{intent, workload};
    use super::super::{LedgerBuilder, WireBuilder};
    use super::*;
    use tornblk_agent::channel::{MarkText, WriteFlags};
    use tornblk_agent::payload::{self, Stamp};
    use tornblk_model::event::Seq;

    const UNIT: u64 = 16384;

    fn bytes(unit: u64) -> Vec<u8> {
        let mut bytes = vec![0; UNIT as usize];
        let stamp = Stamp { nonce: 7, unit, file: 1, generation: 1, sector: 0, sectors: 0 };
        payload::fill(&mut bytes, stamp);
        bytes
    }

    /// Requests (offset, bytes, sent as atomic) on a disk of this profile; units 0 and 1 were asked
    /// for.
    fn reached(profile: &str, how: OnWire, requests: &[(u64, &[u8], bool)]) -> Reached {
        let profile: Profile = profile.parse().unwrap();
        let atomic = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        let w = workload();
        let mut ledger = LedgerBuilder::new(&w);
        let placed = |unit: u64| match intent(unit, 1, atomic) {
            MarkText::Intent { file, unit, r#gen, offset, len, flags, .. } => {
                MarkText::Intent { file, unit, r#gen, offset, len, flags, at: Some(offset) }
            }
            other => other,
        };
        ledger.batch([(1, placed(0)), (2, placed(1))]);
        let mut wire = WireBuilder::new(7, 512);
        for (seq, (offset, bytes, sent)) in (10..).zip(requests.iter().copied()) {
            if sent {
                wire.sent_as_atomic(Seq(seq));
            }
            let len = bytes.len() as u64;
            wire.write(Seq(seq), offset, len, bytes, profile.eligible(offset, len, sent), true);
        }
        on_wire(&w, &ledger.finish(), &wire.finish(), &profile, how)
    }

    fn said(profile: &str, requests: &[(u64, &[u8], bool)]) -> String {
        let reached = reached(profile, OnWire::Atomic, requests);
        let texts: Vec<&str> = reached.findings.iter().map(|f| f.text.as_str()).collect();
        texts.join("\n")
    }

    #[test]
    fn one_request_within_the_limits_is_atomic_merged_or_not() {
        let (a, b) = (bytes(0), bytes(1));
        let both = [a.clone(), b.clone()].concat();
        let each: [(u64, &[u8], bool); 2] = [(0, &a, true), (UNIT, &b, true)];
        for profile in ["req16k", "explicit16k"] {
            let reached = reached(profile, OnWire::Atomic, &each);
            assert_eq!((reached.atomic, reached.findings.len()), (2, 0), "{profile}");
        }
        let merged = reached("explicit64k", OnWire::Atomic, &[(0, &both, true)]);
        assert_eq!((merged.atomic, merged.merged, merged.findings.len()), (2, 1, 0));
        assert_eq!(reached("req16k", OnWire::Atomic, &each).merged, 0);
    }

    #[test]
    fn a_request_that_is_sent_again_as_it_was_is_no_other() {
        let a = bytes(0);
        let twice: [(u64, &[u8], bool); 2] = [(0, &a, true), (0, &a, true)];
        for profile in ["req16k", "explicit16k"] {
            assert_eq!(said(profile, &twice), "", "{profile}");
        }
        let other: [(u64, &[u8], bool); 2] = [(0, &a, true), (65536, &a, true)];
        assert!(said("req16k", &other).contains("came in 2 requests"));
    }

    #[test]
    fn what_a_file_system_may_do_by_itself_counts_only_in_its_place() {
        let a = bytes(0);
        // On virtio-blk, in the place that it was for, or by copy-on-write elsewhere.
        assert_eq!(reached("req16k", OnWire::Either, &[(0, &a, false)]).atomic, 1);
        assert_eq!(reached("req16k", OnWire::Either, &[(1 << 20, &a, false)]).atomic, 0);
        assert_eq!(reached("explicit16k", OnWire::Either, &[(1 << 20, &a, true)]).atomic, 1);
    }

    #[test]
    fn a_write_that_returned_without_a_request_is_named() {
        let w = workload();
        let atomic = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        let mut ledger = LedgerBuilder::new(&w);
        ledger.batch([(1, intent(0, 1, atomic))]);
        let profile: Profile = "req16k".parse().unwrap();
        let look = |ledger: &Ledger| {
            on_wire(&w, ledger, &Wire::default(), &profile, OnWire::Atomic).findings.len()
        };
        assert_eq!(look(ledger.ledger()), 0, "not yet");
        let done = MarkText::Done { file: 1, unit: 0, r#gen: 1, result: UNIT as i64 };
        ledger.batch([(2, done)]);
        assert_eq!(look(ledger.ledger()), 1);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_seen_yet() {
        assert_eq!(reached("req16k", OnWire::Atomic, &[]), Reached::default());
    }

    #[test]
    fn every_other_way_is_named() {
        let (a, b) = (bytes(0), bytes(1));
        let both = [a.clone(), b].concat();
        let halves: [(u64, &[u8], bool); 2] = [(0, &a[..8192], true), (8192, &a[8192..], true)];
        assert!(said("req16k", &halves).contains("came in 2 requests, 8192 at 0, 8192 at 8192"));
        assert!(said("req16k", &halves[..1]).contains("only a part of it came"));
        let merged = said("req16k", &[(0, &both, false)]);
        assert!(merged.contains("keeps at most 16384 whole"), "{merged}");
        assert_eq!(merged.lines().count(), 2, "both writes were in it");
        let crossing = said("req64k+b64k", &[(65536 - UNIT, &both, false)]);
        assert!(crossing.contains("crosses a boundary of 65536"), "{crossing}");
        // SCSI's boundary is one of each command.
        assert_eq!(said("explicit64k+b64k", &[(65536 - UNIT, &both, true)]), "");
        assert!(said("explicit16k", &[(0, &a, false)]).contains("was not sent as atomic"));
        let reached = reached("explicit16k", OnWire::Either, &[(0, &a, false)]);
        assert_eq!(reached, Reached::default(), "the file system may do it otherwise");
    }
}

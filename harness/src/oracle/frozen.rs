//! What reached the disk while its file system was frozen.
//!
//! The guest marks when FIFREEZE has returned (`frozen N`) and when it is about to ask for FITHAW
//! (`thawing N`). Between the two nobody may change the disk, and at the first one nothing that
//! changes it may be on its way: FIFREEZE waits for every write that began before.

use super::{Clause, Finding};
use std::collections::BTreeMap;
use tornblk_agent::channel::MarkText;
use tornblk_model::event::{Event, Op, ResetCause, Seq};

/// How the marks begin.
const FROZEN: &str = "frozen ";
const THAWING: &str = "thawing ";

/// Requests that are told of one frozen time; what follows them is mostly the same again.
const TOLD: usize = 4;

/// A time in which a file system was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The mark: `frozen 3`.
    pub name: String,
    /// Its event: FIFREEZE had returned.
    pub since: Seq,
}

/// Does this mark say that a file system is frozen?
pub fn is_frozen(mark: &MarkText) -> bool {
    matches!(mark, MarkText::Phase { name } if name.starts_with(FROZEN))
}

/// The times that are marked, and what changed the disk in them.
pub fn frozen<'a>(
    events: impl IntoIterator<Item = &'a (Seq, Event)>,
) -> (Vec<Frozen>, Vec<Finding>) {
    let mut watch = Watch::default();
    for (seq, event) in events {
        match event {
            // What follows is on a crash state: not of this order.
            Event::Reset { cause: ResetCause::PowerCut, .. } => break,
            Event::Reset { queue: None, .. } => watch.on_its_way.clear(),
            Event::Submit(submit) => watch.submitted(*seq, &submit.op),
            Event::Complete { request, .. } => {
                watch.on_its_way.remove(request);
            }
            Event::Mark(mark) => {
                if let Some((_, MarkText::Phase { name })) = MarkText::from_record(&mark.name) {
                    watch.phase(*seq, &name);
                }
            }
            Event::Reset { .. }
            | Event::Visible { .. }
            | Event::SetWriteback { .. }
            | Event::Negotiate(_) => {}
        }
    }
    watch.end();
    (watch.times, watch.findings)
}

#[derive(Default)]
struct Watch<'a> {
    on_its_way: BTreeMap<Seq, &'a Op>,
    times: Vec<Frozen>,
    /// Is the last of the times not over?
    is_frozen: bool,
    /// Of that time.
    told: usize,
    more: usize,
    findings: Vec<Finding>,
}

impl<'a> Watch<'a> {
    fn phase(&mut self, at: Seq, name: &str) {
        if name.starts_with(FROZEN) {
            self.end();
            self.is_frozen = true;
            self.times.push(Frozen { name: name.to_owned(), since: at });
            for (seq, op) in std::mem::take(&mut self.on_its_way) {
                self.tell(seq, op, "was on its way still when FIFREEZE had returned");
                self.on_its_way.insert(seq, op);
            }
        } else if name.starts_with(THAWING) {
            self.end();
        }
    }

    fn submitted(&mut self, at: Seq, op: &'a Op) {
        if matches!(op, Op::Read { .. } | Op::Flush { .. }) {
            return;
        }
        self.on_its_way.insert(at, op);
        if self.is_frozen {
            self.tell(at, op, "came while the file system was frozen");
        }
    }

    fn tell(&mut self, at: Seq, op: &Op, what: &str) {
        let Some(time) = self.times.last() else { return };
        if self.told == TOLD {
            self.more += 1;
            return;
        }
        self.told += 1;
        let text = format!(
            "{}, event {at}, {what} (\"{}\", event {})",
            in_words(op),
            time.name,
            time.since
        );
        self.findings.push(Finding::new(Clause::WroteFrozen, text));
    }

    /// The time is over, if there is one.
    fn end(&mut self) {
        if let (Some(last), true) = (self.findings.last_mut(), self.more > 0) {
            last.text += &format!("; so did {} more", self.more);
        }
        (self.is_frozen, self.told, self.more) = (false, 0, 0);
    }
}

/// `a write of 4096 bytes at 1048576 of the disk`
fn in_words(op: &Op) -> String {
    let segments = |what: &str, segments: &[tornblk_model::event::Segment]| {
        let len: u64 = segments.iter().map(|s| s.len).sum();
        let at = segments.first().map_or(0, |s| s.offset);
        format!("{what} of {len} bytes at {at} of the disk")
    };
    match op {
        Op::Write { offset, len, .. } => format!("a write of {len} bytes at {offset} of the disk"),
        Op::Discard { segments: s } => segments("a discard", s),
        Op::WriteZeroes { segments: s } => segments("a write of zeroes", s),
        Op::Read { .. } => "a read".to_owned(),
        Op::Flush { .. } => "a flush".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tornblk_model::event::{Mark, Payload, Segment, Status, Submit};

    fn submit(op: Op) -> Event {
        Event::Submit(Submit { queue: 0, position: 0, head: 0, ioprio: 0, op })
    }

    fn write(offset: u64) -> Event {
        submit(Op::Write {
            offset,
            len: 4096,
            fua: false,
            atomic: false,
            payload: Payload::default(),
        })
    }

    fn done(request: u64) -> Event {
        Event::Complete { request: Seq(request), status: Status::Ok }
    }

    fn phase(name: &str) -> Event {
        let mark = MarkText::Phase { name: name.to_owned() };
        Event::Mark(Mark { name: mark.to_record(7) })
    }

    /// The texts, of events numbered from 0.
    fn texts(events: Vec<Event>) -> Vec<String> {
        let events: Vec<_> =
            events.into_iter().enumerate().map(|(i, e)| (Seq(i as u64), e)).collect();
        let (_, findings) = frozen(&events);
        assert!(findings.iter().all(|f| f.clause == Clause::WroteFrozen));
        findings.into_iter().map(|f| f.text).collect()
    }

    #[test]
    fn what_ends_before_and_begins_after_is_allowed() {
        let flush = submit(Op::FLUSH);
        let read = submit(Op::Read { offset: 0, len: 4096 });
        let events = vec![
            write(0),
            done(0),
            phase("frozen 1"),
            read,
            flush,
            done(3),
            phase("thawing 1"),
            write(4096),
            phase("writes-done"),
        ];
        assert!(texts(events).is_empty());
    }

    #[test]
    fn a_write_in_between_or_on_its_way_is_named() {
        let discard =
            Op::Discard { segments: vec![Segment { offset: 512, len: 1024, unmap: false }] };
        let events = vec![
            write(8192),
            phase("frozen 1"),
            done(0),
            submit(discard),
            phase("thawing 1"),
            phase("frozen 2"),
        ];
        assert_eq!(
            texts(events),
            [
                "a write of 4096 bytes at 8192 of the disk, event 0, was on its way still when \
                 FIFREEZE had returned (\"frozen 1\", event 1)",
                "a discard of 1024 bytes at 512 of the disk, event 3, came while the file system \
                 was frozen (\"frozen 1\", event 1)",
                "a discard of 1024 bytes at 512 of the disk, event 3, was on its way still when \
                 FIFREEZE had returned (\"frozen 2\", event 5)",
            ]
        );
    }

    #[test]
    fn many_are_counted_and_nothing_is_said_of_what_follows_a_cut() {
        let mut events = vec![phase("frozen 1")];
        events.extend((0..7).map(|n| write(n * 4096)));
        events.push(Event::Reset { cause: ResetCause::PowerCut, queue: None });
        events.extend((0..7).map(|n| write(n * 4096)));
        let texts = texts(events);
        assert_eq!(texts.len(), TOLD);
        assert!(texts[TOLD - 1].ends_with("; so did 3 more"), "{}", texts[TOLD - 1]);
    }

    #[test]
    fn the_times_are_told_with_their_events() {
        let events = [
            (Seq(4), phase("frozen 1")),
            (Seq(9), phase("thawing 1")),
            (Seq(12), phase("frozen 2")),
        ];
        let (times, _) = frozen(&events);
        let told: Vec<_> = times.iter().map(|t| (t.name.as_str(), t.since.0)).collect();
        assert_eq!(told, [("frozen 1", 4), ("frozen 2", 12)]);
    }
}

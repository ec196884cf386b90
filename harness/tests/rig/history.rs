//! What a recording must say of requests that a dead device left behind: each is answered in the
//! end, and none was taken, recorded and executed a second time.

use super::{Result, told};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tornblk_model::event::{Event, ResetCause, Seq};
use tornblk_model::recording::Reader;

/// The mark that says that the next front-end is another one, with rings of its own.
pub(crate) const ANOTHER: &str = "another QEMU";

/// What it said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resumed {
    pub(crate) restarts: u64,
    /// Requests that were taken before a restart, and answered after it.
    pub(crate) resumed: u64,
}

/// Of the front-end that there is now.
#[derive(Debug, Default)]
struct Now {
    /// Where in a ring requests were taken: (queue, position) → the last one there, and how many
    /// were taken from that queue before it.
    taken: HashMap<(u16, u16), (Seq, u64)>,
    count: HashMap<u16, u64>,
    /// Not answered: the queue of each.
    open: HashMap<Seq, u16>,
    /// Of those, taken before the last restart.
    old: HashSet<Seq>,
}

impl Now {
    /// What was in flight, and what positions meant, is over: on one queue, or on all.
    fn over(&mut self, queue: Option<u16>) {
        let goes = |q: u16| queue.is_none_or(|queue| queue == q);
        self.taken.retain(|(q, _), _| !goes(*q));
        self.open.retain(|_, q| !goes(*q));
        self.count.retain(|q, _| !goes(*q));
    }

    fn take(&mut self, at: Seq, queue: u16, position: u16) -> Result<()> {
        let count = self.count.entry(queue).or_default();
        *count += 1;
        // A position comes again after 65,536 requests; half of that is far from both.
        if let Some((before, then)) = self.taken.insert((queue, position), (at, *count))
            && *count - then < 1 << 15
        {
            return Err(format!(
                "the request at position {position} of queue {queue} was taken twice: event {before}, event {at}"
            ));
        }
        self.open.insert(at, queue);
        Ok(())
    }
}

/// Reads all of it. `blk`: a position in a ring is one request (a SCSI command may be several).
pub(crate) fn check(recording: &Path, blk: bool) -> Result<Resumed> {
    let reader = Reader::open(recording).map_err(told("the recording"))?;
    judge(reader.events().map(|found| found.map_err(told("the recording"))), blk)
}

fn judge(events: impl Iterator<Item = Result<(Seq, Event)>>, blk: bool) -> Result<Resumed> {
    let (mut now, mut all) = (Now::default(), Resumed::default());
    for found in events {
        let (at, event) = found?;
        match event {
            Event::Submit(submit) if blk => now.take(at, submit.queue, submit.position)?,
            Event::Submit(submit) => drop(now.open.insert(at, submit.queue)),
            Event::Complete { request, .. } => {
                now.open.remove(&request);
                all.resumed += u64::from(now.old.remove(&request));
            }
            Event::Reset { cause: ResetCause::Restart, .. } => {
                all.restarts += 1;
                now.old = now.open.keys().copied().collect();
            }
            Event::Reset { cause: ResetCause::Device | ResetCause::PowerCut, queue }
            | Event::Reset { cause: ResetCause::QueueStop, queue } => now.over(queue),
            Event::Mark(mark) if mark.name == ANOTHER => now.over(None),
            _ => {}
        }
    }
    match now.open.keys().min() {
        None => Ok(all),
        Some(first) => Err(format!(
            "{} requests were never answered, the first of event {first}",
            now.open.len()
        )),
    }
}

#[test]
fn what_is_taken_twice_or_never_answered_is_told() {
    use tornblk_model::event::{Mark, Op, Status, Submit};
    let submit = |position| {
        let op = Op::Read { offset: 0, len: 512 };
        Event::Submit(Submit { queue: 1, position, head: 0, ioprio: 0, op })
    };
    let end = |request| Event::Complete { request: Seq(request), status: Status::Ok };
    let reset = |cause, queue| Event::Reset { cause, queue };
    let restart = reset(ResetCause::Restart, None);
    let told = |events: &[&Event]| {
        let numbered = (0..).map(Seq).zip(events.iter().map(|e| (*e).clone()));
        judge(numbered.map(Ok), true)
    };
    // The first is held, the second overtakes it, and the device dies.
    let before = [submit(7), submit(8), end(1), restart];
    let [a, b, b_ends, restart] = &before;
    let good = told(&[a, b, b_ends, restart, &end(0), &submit(9), &end(5)]).unwrap();
    assert_eq!(good, Resumed { restarts: 1, resumed: 1 });
    let twice = told(&[a, b, b_ends, restart, b, &end(4)]).unwrap_err();
    assert!(twice.contains("position 8 of queue 1 was taken twice: event 1, event 4"), "{twice}");
    let lost = told(&[a, b, b_ends, restart, &submit(9), &end(4)]).unwrap_err();
    assert!(lost.contains("1 requests were never answered, the first of event 0"), "{lost}");
    // Where the queue was stopped, or the front-end is another one, it all begins anew.
    let mark = Event::Mark(Mark { name: ANOTHER.into() });
    for over in [reset(ResetCause::QueueStop, Some(1)), mark] {
        told(&[a, b, b_ends, &over, a, &end(4)]).unwrap();
    }
    let other = reset(ResetCause::QueueStop, Some(2));
    assert!(told(&[a, &end(0), &other, a, &end(3)]).is_err());
}

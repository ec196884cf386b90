//! Which writes and events are worth drawing.

use super::shows::{State, blocks};
use super::{About, Moment, Standing};
use crate::explore::{Subject, is_piece};
use std::collections::BTreeSet;
use std::ops::Range;
use tornblk_agent::channel::MarkText;
use tornblk_model::crash::{Request, RequestKind};
use tornblk_model::event::{Event, ResetCause, Seq, Status};

/// Writes that are to blame.
const BLAMED: usize = 5;
/// Writes over the same blocks.
const OVER: usize = 3;
/// Writes that were in flight together with one that is to blame.
const TOGETHER: usize = 2;
/// Flushes that nothing depends on.
const SPARE: usize = 1;
const MARKS: usize = 3;
/// More than that, and what is only in the neighbourhood goes.
const COLUMNS: usize = 14;
/// Blocks of one write that are looked at.
pub(super) const BLOCKS: u64 = 1 << 16;
/// Letters of a mark.
const LETTERS: usize = 40;

/// A write that is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn<'a> {
    pub(super) request: &'a Request,
    pub(super) blamed: bool,
}

pub(super) struct Chosen<'a> {
    /// In the order in which they were submitted.
    pub(super) writes: Vec<Drawn<'a>>,
    pub(super) left_out: usize,
    /// The blocks that are the point of it.
    pub(super) focus: Vec<Range<u64>>,
}

/// `states`: the one that is told, and the one that was found.
pub(super) fn writes<'a>(states: &[State<'a>], about: &About) -> Chosen<'a> {
    let told = &states[0];
    let history = told.history;
    let first = history.base_of(told.after).map_or(0, |cut| cut.0 + 1);
    let counts = |r: &&'a Request| {
        r.changes()
            && (first..=told.after.0).contains(&r.id().0)
            && r.fetched_again().is_none_or(|again| again > told.after)
    };
    let all: Vec<&'a Request> = history.requests().iter().filter(counts).collect();
    let named: BTreeSet<Seq> = about.writes.iter().copied().collect();
    let mut blamed: Vec<&Request> =
        all.iter().filter(|r| named.contains(&r.id())).copied().collect();
    // The newest matter most.
    let left_out = blamed.len().saturating_sub(BLAMED);
    blamed.drain(..left_out);
    if blamed.is_empty() && about.place.is_none() {
        // Nobody says which: what could be lost at this cut, else what came last.
        let volatile = |r: &&&Request| !matches!(told.standing(r), Standing::Stable(_));
        blamed = all.iter().rev().filter(volatile).take(BLAMED).copied().collect();
        if blamed.is_empty() {
            blamed = all.iter().rev().take(2).copied().collect();
        }
        blamed.reverse();
    }
    let lb = u64::from(history.disk().lb_size);
    let mut focus: Vec<Range<u64>> = Vec::new();
    focus.extend(
        about.place.iter().map(|place| place.bytes.start / lb..place.bytes.end.div_ceil(lb)),
    );
    focus.extend(blamed.iter().flat_map(|r| blocks(history, r)).map(short));
    focus.extend(states.iter().flat_map(State::damaged).map(short));

    // What shows there, and what might have.
    let showing: BTreeSet<Seq> = focus
        .iter()
        .flat_map(|range| range.clone().take(BLOCKS as usize))
        .flat_map(|block| states.iter().filter_map(move |state| state.source(block)))
        .collect();
    let is_blamed = |r: &Request| blamed.iter().any(|b| b.id() == r.id());
    let meets = |r: &Request| blocks(history, r).iter().any(|b| focus.iter().any(|f| meet(b, f)));
    let matters = |r: &&&Request| {
        showing.contains(&r.id()) || !matches!(told.standing(r), Standing::Stable(_))
    };
    let mut over: Vec<&Request> = all
        .iter()
        .rev()
        .filter(|r| !is_blamed(r) && meets(r))
        .filter(matters)
        .take(OVER + BLAMED)
        .copied()
        .collect();
    // Those that show first, then the newest.
    over.sort_by_key(|r| (!showing.contains(&r.id()), std::cmp::Reverse(r.id())));
    over.truncate(OVER.max(over.iter().filter(|r| showing.contains(&r.id())).count().min(BLAMED)));
    let apart = |r: &Request, other: &Request| r.is_before(other) || other.is_before(r);
    let mut together: Vec<&Request> = all
        .iter()
        .filter(|r| !is_blamed(r) && !meets(r) && blamed.iter().any(|b| !apart(r, b)))
        .copied()
        .collect();
    let near = |r: &Request| blamed.iter().map(|b| b.id().0.abs_diff(r.id().0)).min();
    together.sort_by_key(|r| (near(r), r.id()));
    together.truncate(TOGETHER);
    if 2 * (blamed.len() + over.len() + together.len()) > COLUMNS {
        together.clear();
    }
    let drawn = |blamed| move |request| Drawn { request, blamed };
    let mut writes: Vec<Drawn<'a>> = blamed
        .iter()
        .copied()
        .map(drawn(true))
        .chain(over.into_iter().chain(together).map(drawn(false)))
        .collect();
    writes.sort_by_key(|w| (w.request.submitted(), w.request.id()));
    Chosen { writes, left_out, focus }
}

fn short(range: Range<u64>) -> Range<u64> {
    range.start..range.end.min(range.start + BLOCKS)
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Does the flush make such a write stable? One of several disks is flushed by itself.
fn is_of(flush: &Request, write: &Request) -> bool {
    let lies_in = |(at, len): (u64, u64)| {
        write.ranges().iter().all(|(from, n)| at <= *from && from + n <= at + len)
    };
    flush.ranges().first().is_none_or(|range| lies_in(*range))
}

/// The flushes that are drawn, in their order.
pub(super) fn flushes<'a>(state: &State<'a>, writes: &[Drawn<'_>]) -> Vec<&'a Request> {
    let Some(from) = writes.iter().map(|w| w.request.submitted()).min() else { return Vec::new() };
    let first = state.history.base_of(state.after).unwrap_or(Seq(0));
    let all: Vec<&Request> = state
        .history
        .requests()
        .iter()
        .filter(|r| r.kind() == RequestKind::Flush && r.submitted() >= from && r.id() > first)
        .filter(|r| r.submitted() <= state.after && r.id() <= state.after)
        // Those of other disks say nothing of these blocks.
        .filter(|flush| {
            let blamed = writes.iter().any(|w| w.blamed);
            writes.iter().any(|w| (w.blamed || !blamed) && is_of(flush, w.request))
        })
        .collect();
    let mut wanted: BTreeSet<Seq> = BTreeSet::new();
    for write in writes {
        if let Standing::Stable(Some(flush)) = state.standing(write.request) {
            wanted.insert(flush);
        }
    }
    // The first one that could have made a write stable.
    for write in writes.iter().filter(|w| w.blamed) {
        if let Some(end) = write.request.end() {
            let mut of_it = all.iter().filter(|flush| is_of(flush, write.request));
            wanted.extend(of_it.find(|f| f.submitted() > end.at()).map(|f| f.id()));
        }
    }
    // What came last says how far the disk was.
    wanted.extend(all.iter().rev().take(SPARE).map(|flush| flush.id()));
    all.into_iter().filter(|flush| wanted.contains(&flush.id())).collect()
}

/// Marks and resets between the first write and the cut.
pub(super) fn marks(
    events: &[(Seq, Event)],
    between: (Seq, Seq),
    about: &About,
    subject: Option<&Subject>,
) -> Vec<(Seq, Moment)> {
    let (from, to) = between;
    let start = events.partition_point(|(seq, _)| *seq < from);
    // What the program did before it wrote what is drawn is near.
    let start = start.saturating_sub(2 * MARKS);
    let mut marks: Vec<(bool, Seq, Moment)> = Vec::new();
    let mut resets = Vec::new();
    for (seq, event) in events[start..].iter().take_while(|(seq, _)| *seq <= to) {
        match event {
            Event::Mark(mark) if !is_piece(mark) => {
                if let Some((own, text)) = mark_words(&mark.name, about) {
                    marks.push((own, *seq, Moment::Mark(text)));
                }
            }
            Event::Reset { cause, .. } if *cause != ResetCause::PowerCut && *seq >= from => {
                resets.push((*seq, Moment::Reset(reset_words(*cause).to_owned())));
            }
            _ => {}
        }
    }
    let users = subject.is_some_and(|subject| subject.checker.is_some());
    // Syncs before the last write that is to blame was asked for say nothing about it.
    let asked = marks.iter().rposition(|(.., what)| is_called(what));
    let mut at = 0;
    marks.retain(|(.., what)| {
        at += 1;
        !is_sync(what) || asked.is_none_or(|asked| at > asked)
    });
    // A workload marks every write: of others than the one it is about nobody wants to know.
    if !users && marks.iter().any(|(own, ..)| *own) {
        marks.retain(|(own, ..)| *own);
    }
    let mut marks: Vec<(Seq, Moment)> =
        marks.into_iter().map(|(_, seq, what)| (seq, what)).collect();
    marks.drain(..marks.len().saturating_sub(MARKS));
    resets.drain(..resets.len().saturating_sub(2));
    marks.extend(resets);
    marks
}

fn reset_words(cause: ResetCause) -> &'static str {
    match cause {
        ResetCause::Device => "device reset",
        ResetCause::QueueStop => "queue stopped",
        ResetCause::Reconnect => "reconnect",
        ResetCause::Restart => "restart",
        ResetCause::PowerCut => "power cut",
    }
}

fn is_called(what: &Moment) -> bool {
    matches!(what, Moment::Mark(text) if text.starts_with("gen ") && text.ends_with(" called"))
}

fn is_sync(what: &Moment) -> bool {
    matches!(what, Moment::Mark(text) if text.starts_with("fsync "))
}

/// A mark in words, and whether it is of what the finding is about. `None`: of another write.
fn mark_words(name: &str, about: &About) -> Option<(bool, String)> {
    let is_own = |file: u32, unit: u64| about.unit == Some((file, unit));
    let short = |text: &str| match text.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    };
    Some(match MarkText::from_record(name) {
        Some((_, MarkText::Intent { file, unit, r#gen, .. })) if is_own(file, unit) => {
            (true, format!("gen {} called", r#gen))
        }
        Some((_, MarkText::Done { file, unit, r#gen, result })) if is_own(file, unit) => {
            let how = if result < 0 { "failed" } else { "done" };
            (true, format!("gen {} {how}", r#gen))
        }
        Some((_, MarkText::Synced { file, result, .. }))
            if about.unit.is_some_and(|(own, _)| own == file) =>
        {
            let how = if result < 0 { "failed" } else { "returned" };
            (true, format!("fsync {how}"))
        }
        Some((_, MarkText::Said { name })) => (true, format!("\u{201c}{}\u{201d}", short(&name))),
        Some((_, MarkText::Phase { name })) => (false, short(&name)),
        Some(_) => return None,
        None => (true, format!("\u{201c}{}\u{201d}", short(name))),
    })
}

/// The events of a request: when it was sent, when it was answered.
pub(super) fn ends(request: &Request, after: Seq) -> (Seq, Option<(Seq, Option<bool>)>) {
    use tornblk_model::crash::End;
    let end = request.end().filter(|end| end.at() <= after).map(|end| match end {
        End::Completed { at, status } => (at, Some(status == Status::Ok)),
        End::Reset { at } => (at, None),
    });
    (request.submitted(), end)
}

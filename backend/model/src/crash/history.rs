//! What the events say about the requests: when each was submitted, how it ended, since when it
//! is stable.

use super::{Cut, History, ModelError, Profile};
use crate::event::{
    Disk, Event, Negotiation, Op, ResetCause, SECTOR, Segment, Seq, Status, Submit,
};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};

/// One request, from its submission to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its [`Event::Submit`]: the request's name in states.
    pub id: Seq,
    /// When it was submitted: earlier than `id` where an [`Event::Visible`] showed it before the
    /// device took it.
    pub submitted: Seq,
    pub end: Option<End>,
    /// The request that took its place: the same chain, fetched again after a reconnect.
    pub fetched_again: Option<Seq>,
    pub op: Op,
    pub queue: u16,
    pub position: u16,
    pub head: u16,
    /// Since when a power cut leaves it there, and why; only for what changes the disk.
    pub stable: Option<(Seq, Stable)>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed {
        at: Seq,
        status: Status,
    },
    /// By a reset, unanswered.
    Reset {
        at: Seq,
    },
}

impl End {
    pub fn at(self) -> Seq {
        match self {
            End::Completed { at, .. } | End::Reset { at } => at,
        }
    }
}

/// Why a write is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stable {
    /// A flush that was submitted after the write completed has completed.
    Flushed { flush: Seq },
    /// The write cache was off from its submission to its completion, or never agreed on.
    WriteThrough,
    /// It carried FUA.
    Fua,
}

impl Request {
    /// Does it change what is on the disk?
    pub fn changes(&self) -> bool {
        matches!(self.op, Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. })
    }

    /// When it completed with status OK.
    pub fn succeeded(&self) -> Option<Seq> {
        match self.end {
            Some(End::Completed { at, status: Status::Ok }) => Some(at),
            _ => None,
        }
    }

    /// Did it end before `other` was submitted?
    pub fn is_before(&self, other: &Request) -> bool {
        self.end.is_some_and(|end| end.at() < other.submitted)
    }

    /// The bytes it is about, of each segment.
    pub fn ranges(&self) -> SmallVec<[(u64, u64); 1]> {
        match &self.op {
            Op::Read { offset, len } | Op::Write { offset, len, .. } => {
                SmallVec::from_slice(&[(*offset, *len)])
            }
            Op::Flush => SmallVec::new(),
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().map(|s| (s.offset, s.len)).collect()
            }
        }
    }
}

/// When the rule "no write cache" held.
#[derive(Clone, Copy, Debug)]
struct Regime {
    flush_offered: bool,
    flush: bool,
    config_wce: bool,
    writeback: bool,
}

impl Regime {
    /// Until the driver says otherwise there is a cache, and flushing it is the driver's business.
    const UNKNOWN: Regime =
        Regime { flush_offered: true, flush: true, config_wce: false, writeback: true };

    fn write_through(self) -> bool {
        if self.config_wce { !self.writeback } else { self.flush_offered && !self.flush }
    }
}

/// What was seen of one queue since its last reset. Indexes and positions are free-running 16 bit
/// numbers; here they are unwrapped to the nearest number to what was seen last, which is exact
/// because no queue holds more than 32,768 requests.
#[derive(Debug)]
struct Ring {
    /// Available indexes, rising, with the moment when each was first seen.
    visible: Vec<(u64, Seq)>,
    last: u64,
}

impl Ring {
    fn new(number: u16) -> Ring {
        Ring { visible: Vec::new(), last: (1 << 32) + u64::from(number) }
    }

    fn unwrap(&self, number: u16) -> u64 {
        let step = number.wrapping_sub(self.last as u16).cast_signed();
        self.last.wrapping_add_signed(i64::from(step))
    }

    fn saw(&mut self, index: u16, at: Seq) {
        let index = self.unwrap(index);
        if self.visible.last().is_none_or(|(known, _)| *known < index) {
            self.visible.push((index, at));
            self.last = self.last.max(index);
        }
    }

    /// When the request at `position`, taken at `at`, was submitted.
    fn submitted(&mut self, position: u16, at: Seq) -> Seq {
        let position = self.unwrap(position);
        let above = self.visible.partition_point(|(index, _)| *index <= position);
        self.last = self.last.max(position + 1);
        self.visible.get(above).map_or(at, |(_, seen)| (*seen).min(at))
    }
}

/// Reads the events one after another.
struct Reader {
    disk: Disk,
    requests: Vec<Request>,
    by_id: HashMap<Seq, usize>,
    in_flight: Vec<usize>,
    /// Ended by a reconnect, and maybe fetched again.
    left: Vec<usize>,
    rings: HashMap<u16, Ring>,
    regime: Regime,
    /// Where the write cache was switched on or off: from this moment on it was so.
    regimes: Vec<(Seq, bool)>,
    first_of_epoch: usize,
    events: Vec<(Seq, PointKind)>,
    /// The last event was an [`Event::Visible`].
    after_visible: bool,
    power_cuts: Vec<Seq>,
}

/// What makes an event a crash point that is worth looking at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointKind {
    FlushCompleted,
    Mark,
    Other,
}

fn bad(at: Seq, why: impl std::fmt::Display) -> ModelError {
    ModelError::History(format!("event {at}: {why}"))
}

impl Reader {
    fn read(&mut self, at: Seq, event: Event) -> Result<(), ModelError> {
        // What became visible right before a completion is recorded with it, as one event.
        let shared = self.events.last().is_some_and(|(last, _)| *last == at) && self.after_visible;
        if let Some((last, _)) = self.events.last()
            && *last >= at
            && !shared
        {
            return Err(bad(at, format_args!("events must rise, but it follows event {last}")));
        }
        self.after_visible = matches!(event, Event::Visible { .. });
        let mut kind = PointKind::Other;
        match event {
            Event::Visible { queue, index } => {
                self.rings.entry(queue).or_insert_with(|| Ring::new(index)).saw(index, at);
            }
            Event::Submit(submit) => self.submit(at, submit)?,
            Event::Complete { request, status } => {
                if self.complete(at, request, status)? {
                    kind = PointKind::FlushCompleted;
                }
            }
            Event::Mark(_) => kind = PointKind::Mark,
            Event::SetWriteback { on } => {
                self.regime.writeback = on;
                self.note_regime(at);
            }
            Event::Negotiate(Negotiation { flush_offered, flush, config_wce, writeback }) => {
                self.regime = Regime { flush_offered, flush, config_wce, writeback };
                self.note_regime(at);
            }
            Event::Reset { cause, queue } => self.reset(at, cause, queue),
        }
        if shared {
            self.events.pop();
        }
        self.events.push((at, kind));
        Ok(())
    }

    fn note_regime(&mut self, at: Seq) {
        let now = self.regime.write_through();
        if self.regimes.last().is_none_or(|(_, known)| *known != now) {
            self.regimes.push((at, now));
        }
    }

    /// Was the write cache off all the time?
    fn write_through(&self, from: Seq, to: Seq) -> bool {
        let next = self.regimes.partition_point(|(at, _)| *at < from);
        let then = next.checked_sub(1).is_some_and(|before| self.regimes[before].1);
        then && self.regimes[next..].iter().take_while(|(at, _)| *at < to).all(|(_, off)| *off)
    }

    fn submit(&mut self, at: Seq, submit: Submit) -> Result<(), ModelError> {
        self.check(at, &submit.op)?;
        let Submit { queue, position, head, op, .. } = submit;
        let ring = self.rings.entry(queue).or_insert_with(|| Ring::new(position));
        let mut submitted = ring.submitted(position, at);
        let again = self.left.iter().position(|i| {
            let old = &self.requests[*i];
            (old.queue, old.position, old.head) == (queue, position, head) && same(&old.op, &op)
        });
        if let Some(again) = again {
            let old = &mut self.requests[self.left.swap_remove(again)];
            old.fetched_again = Some(at);
            submitted = old.submitted;
        }
        self.by_id.insert(at, self.requests.len());
        self.in_flight.push(self.requests.len());
        self.requests.push(Request {
            id: at,
            submitted,
            end: None,
            fetched_again: None,
            op,
            queue,
            position,
            head,
            stable: None,
        });
        Ok(())
    }

    /// What a device never lets through to its store.
    fn check(&self, at: Seq, op: &Op) -> Result<(), ModelError> {
        let inside = |offset: u64, len: u64| {
            let end = offset.checked_add(len);
            if end.is_none_or(|end| end > self.disk.capacity) {
                return Err(bad(
                    at,
                    format_args!(
                        "{len} bytes at {offset} reach past the end of the disk ({} bytes)",
                        self.disk.capacity
                    ),
                ));
            }
            if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
                return Err(bad(at, format_args!("{len} bytes at {offset} are no whole sectors")));
            }
            Ok(())
        };
        match op {
            Op::Flush => Ok(()),
            Op::Read { offset, len } | Op::Write { offset, len, .. } => inside(*offset, *len),
            Op::Discard { segments } => {
                segments.iter().try_for_each(|s: &Segment| inside(s.offset, s.len))
            }
            Op::WriteZeroes { segments } => segments.iter().try_for_each(|s| {
                inside(s.offset, s.len)?;
                let lb = u64::from(self.disk.lb_size);
                if s.offset.is_multiple_of(lb) && s.len.is_multiple_of(lb) {
                    return Ok(());
                }
                Err(bad(
                    at,
                    format_args!(
                        "WRITE ZEROES of {} bytes at {} covers a part of a logical block; the \
                         block's other bytes are needed, so it is recorded as a write",
                        s.len, s.offset
                    ),
                ))
            }),
        }
    }

    /// Was it a flush?
    fn complete(&mut self, at: Seq, id: Seq, status: Status) -> Result<bool, ModelError> {
        let Some(index) = self.by_id.get(&id).copied() else {
            return Err(bad(
                at,
                format_args!("it completes request {id}, which was not submitted"),
            ));
        };
        let request = &mut self.requests[index];
        match request.end {
            // It ended when the reset did, or the power was cut: the driver never sees this.
            None if index < self.first_of_epoch => return Ok(false),
            Some(End::Reset { .. }) => return Ok(false),
            None => {}
            Some(End::Completed { at: first, .. }) => {
                return Err(bad(
                    at,
                    format_args!("it completes request {id}, which event {first} completed"),
                ));
            }
        }
        request.end = Some(End::Completed { at, status });
        self.in_flight.retain(|i| *i != index);
        let request = &self.requests[index];
        let flush = matches!(request.op, Op::Flush);
        if request.changes() && status == Status::Ok {
            let fua = matches!(request.op, Op::Write { fua: true, .. });
            let why = if fua {
                Some(Stable::Fua)
            } else if self.write_through(request.submitted, at) {
                Some(Stable::WriteThrough)
            } else {
                None
            };
            self.requests[index].stable = why.map(|why| (at, why));
        }
        Ok(flush)
    }

    fn reset(&mut self, at: Seq, cause: ResetCause, queue: Option<u16>) {
        let hit = |request: &Request| queue.is_none_or(|queue| queue == request.queue);
        if cause == ResetCause::PowerCut {
            // What was in flight stays in flight, for ever.
            self.in_flight.clear();
            self.left.clear();
            self.rings.clear();
            self.regime = Regime::UNKNOWN;
            self.note_regime(at);
            self.first_of_epoch = self.requests.len();
            self.power_cuts.push(at);
            return;
        }
        let requests = &mut self.requests;
        if !matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
            self.left.retain(|i| !hit(&requests[*i]));
        }
        for index in std::mem::take(&mut self.in_flight) {
            if hit(&requests[index]) {
                requests[index].end = Some(End::Reset { at });
                if matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
                    self.left.push(index);
                }
            } else {
                self.in_flight.push(index);
            }
        }
        match queue {
            Some(queue) => drop(self.rings.remove(&queue)),
            None => self.rings.clear(),
        }
    }
}

/// The same request, wherever its data was kept.
fn same(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (
            Op::Write { offset, len, fua, atomic, .. },
            Op::Write { offset: offset_b, len: len_b, fua: fua_b, atomic: atomic_b, .. },
        ) => (offset, len, fua, atomic) == (offset_b, len_b, fua_b, atomic_b),
        _ => a == b,
    }
}

impl History {
    /// Reads a recording's events, in rising order of their `Seq` (holes are no error).
    ///
    /// A chain that is fetched again after a [`ResetCause::Reconnect`] or [`ResetCause::Restart`]
    /// is submitted again, with the same queue, position, head and operation: it keeps its first
    /// submission time, and what was fetched first counts no more. After a
    /// [`ResetCause::PowerCut`] a new order begins, on the crash state as its base: see
    /// [`History::base_of`].
    ///
    /// # Errors
    /// Events that contradict each other or the disk; the message names the event.
    pub fn new(
        disk: Disk,
        events: impl IntoIterator<Item = (Seq, Event)>,
    ) -> Result<History, ModelError> {
        let lb = u64::from(disk.lb_size);
        if lb < SECTOR || !lb.is_power_of_two() || !disk.capacity.is_multiple_of(lb) {
            return Err(ModelError::History(format!(
                "a disk of {} bytes cannot have logical blocks of {lb} bytes",
                disk.capacity
            )));
        }
        let mut reader = Reader {
            disk,
            requests: Vec::new(),
            by_id: HashMap::new(),
            in_flight: Vec::new(),
            left: Vec::new(),
            rings: HashMap::new(),
            regime: Regime::UNKNOWN,
            regimes: Vec::new(),
            first_of_epoch: 0,
            events: Vec::new(),
            after_visible: false,
            power_cuts: Vec::new(),
        };
        for (at, event) in events {
            reader.read(at, event)?;
        }
        let mut history = History {
            disk: reader.disk,
            requests: reader.requests,
            events: reader.events,
            power_cuts: reader.power_cuts,
        };
        let stable = history.stability(|_| true);
        for (request, stable) in history.requests.iter_mut().zip(stable) {
            request.stable = stable;
        }
        Ok(history)
    }

    /// Since when each request is stable, if only the flushes that `counts` accepts had worked.
    pub(super) fn stability(&self, counts: impl Fn(Seq) -> bool) -> Vec<Option<(Seq, Stable)>> {
        // Flushes by submission, each with the earliest completion among it and all later ones.
        let mut flushes: Vec<(Seq, Seq, Seq)> = self
            .requests
            .iter()
            .filter(|r| matches!(r.op, Op::Flush) && counts(r.id))
            .filter_map(|r| Some((r.submitted, r.succeeded()?, r.id)))
            .collect();
        flushes.sort_unstable();
        for i in (1..flushes.len()).rev() {
            if flushes[i].1 < flushes[i - 1].1 {
                (flushes[i - 1].1, flushes[i - 1].2) = (flushes[i].1, flushes[i].2);
            }
        }
        self.requests
            .iter()
            .map(|request| {
                let own = request.stable.filter(|(_, why)| !matches!(why, Stable::Flushed { .. }));
                let done = request.succeeded().filter(|_| request.changes())?;
                // At the same event it was there before: see [`Seq`].
                let next = flushes.partition_point(|(submitted, ..)| *submitted <= done);
                let flushed = flushes
                    .get(next)
                    .filter(|(_, at, _)| self.base_of(*at) == self.base_of(done))
                    .map(|(_, at, flush)| (*at, Stable::Flushed { flush: *flush }));
                own.or(flushed)
            })
            .collect()
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Every request, by its `id`.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    pub fn request(&self, id: Seq) -> Option<&Request> {
        self.requests.binary_search_by_key(&id, |r| r.id).ok().map(|i| &self.requests[i])
    }

    /// The last event; `None` where there is none.
    pub fn last(&self) -> Option<Seq> {
        self.events.last().map(|(at, _)| *at)
    }

    /// The power cut whose crash state is the base of everything at crash point `after`; `None`:
    /// the base is the image that the recording began with.
    pub fn base_of(&self, after: Seq) -> Option<Seq> {
        let cuts = self.power_cuts.partition_point(|cut| *cut < after);
        cuts.checked_sub(1).map(|i| self.power_cuts[i])
    }

    /// The requests that the state at crash point `after` is made of.
    pub(super) fn epoch(&self, after: Seq) -> &[Request] {
        let first = match self.base_of(after) {
            Some(cut) => self.requests.partition_point(|r| r.id <= cut),
            None => 0,
        };
        let end = self.requests.partition_point(|r| r.id <= after);
        &self.requests[first..end]
    }

    /// The crash points that are worth looking at: before and after every completion of a flush,
    /// after every mark, after the last event; with `every_event` after each event. Rising.
    pub fn points(&self, every_event: bool) -> Vec<Seq> {
        let mut points = Vec::new();
        let mut previous = None;
        for (at, kind) in &self.events {
            if *kind == PointKind::FlushCompleted {
                points.extend(previous);
            }
            if every_event || *kind != PointKind::Other {
                points.push(*at);
            }
            previous = Some(*at);
        }
        points.extend(previous);
        points.dedup();
        points
    }

    /// The crash point right after event `after`.
    ///
    /// # Errors
    /// The recording has no such event, or the disk cannot have the profile.
    pub fn cut<'a>(&'a self, after: Seq, profile: &'a Profile) -> Result<Cut<'a>, ModelError> {
        profile.check(&self.disk)?;
        if self.last().is_none_or(|last| last < after) && after != Seq(0) {
            return Err(ModelError::State(match self.last() {
                Some(last) => {
                    format!("there is no crash point {after}: the recording ends at event {last}")
                }
                None => format!("there is no crash point {after}: the recording has no event"),
            }));
        }
        Ok(Cut::new(self, after, profile))
    }

    /// How many requests of each kind changed the disk, or flushed it; for summaries.
    pub fn count(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for request in &self.requests {
            let kind = match request.op {
                Op::Read { .. } => "read",
                Op::Write { .. } => "write",
                Op::Flush => "flush",
                Op::Discard { .. } => "discard",
                Op::WriteZeroes { .. } => "write-zeroes",
            };
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}

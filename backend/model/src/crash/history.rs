//! What the events say about the requests: when each was submitted, how it ended, since when it
//! is stable.

use super::moments::{Moments, PointKind};
use super::request::{Facts, Ranges};
use super::{Cut, History, ModelError, Profile, Request, RequestKind};
use crate::event::{
    Disk, Event, Negotiation, Op, ResetCause, SECTOR, Segment, Seq, Status, Submit,
};
use std::collections::{BTreeMap, HashMap, VecDeque};

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
    /// A flush of its bytes that was submitted after the write completed has completed.
    Flushed { flush: Seq },
    /// The write cache was off from its submission to its completion, or never agreed on.
    WriteThrough,
    /// It carried FUA.
    Fua,
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

/// The most requests in a queue (VIRTIO 1.2, 2.7).
const QUEUE_MAX: u64 = 32_768;

/// What was seen of one queue since its last reset. Indexes and positions are free-running 16 bit
/// numbers; here they are unwrapped to the nearest number to what was seen last, which is exact
/// because no queue holds more than 32,768 requests.
#[derive(Debug)]
struct Ring {
    /// Available indexes, rising, with the moment when each was first seen.
    visible: VecDeque<(u64, Seq)>,
    last: u64,
}

impl Ring {
    fn new(number: u16) -> Ring {
        Ring { visible: VecDeque::new(), last: (1 << 32) + u64::from(number) }
    }

    fn unwrap(&self, number: u16) -> u64 {
        let step = number.wrapping_sub(self.last as u16).cast_signed();
        self.last.wrapping_add_signed(i64::from(step))
    }

    fn saw(&mut self, index: u16, at: Seq) {
        let index = self.unwrap(index);
        if self.visible.back().is_none_or(|(known, _)| *known < index) {
            self.visible.push_back((index, at));
            self.last = self.last.max(index);
        }
    }

    /// When the request at `position`, taken at `at`, was submitted.
    fn submitted(&mut self, position: u16, at: Seq) -> Seq {
        let position = self.unwrap(position);
        let mut above = self.visible.partition_point(|(index, _)| *index <= position);
        self.last = self.last.max(position + 1);
        // No position that far back comes again.
        while self.visible.front().is_some_and(|(index, _)| index + QUEUE_MAX < position) {
            self.visible.pop_front();
            above -= 1;
        }
        self.visible.get(above).map_or(at, |(_, seen)| (*seen).min(at))
    }
}

/// What a request was fetched from, as long as it matters.
#[derive(Debug)]
struct Chain {
    /// Its number in [`Reader::requests`].
    index: usize,
    queue: u16,
    position: u16,
    head: u16,
    op: Op,
}

/// Reads the events one after another.
struct Reader {
    disk: Disk,
    requests: Vec<Request>,
    in_flight: Vec<Chain>,
    /// Ended by a reconnect or restart, unless they are completed after all or fetched again.
    left: Vec<Chain>,
    rings: HashMap<u16, Ring>,
    regime: Regime,
    /// Where the write cache was switched on or off: from this moment on it was so.
    regimes: Vec<(Seq, bool)>,
    first_of_epoch: usize,
    moments: Moments,
    /// Whether the next event may have the number of the last one.
    share: Share,
    power_cuts: Vec<Seq>,
}

/// What may share its number with the event before it: see [`Seq`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Nothing,
    /// After an [`Event::Visible`].
    Anything,
    /// After an [`Event::Submit`].
    ItsEnd,
}

fn bad(at: Seq, why: impl std::fmt::Display) -> ModelError {
    ModelError::History(format!("event {at}: {why}"))
}

impl Reader {
    fn read(&mut self, at: Seq, event: Event) -> Result<(), ModelError> {
        if let Some(last) = self.moments.last()
            && last >= at
        {
            let shared = match self.share {
                Share::Nothing => false,
                Share::Anything => true,
                Share::ItsEnd => {
                    matches!(event, Event::Complete { request, .. } if request == at)
                }
            };
            if last > at || !shared {
                return Err(bad(at, format_args!("events must rise, but it follows event {last}")));
            }
        }
        self.share = match event {
            Event::Visible { .. } => Share::Anything,
            Event::Submit(_) => Share::ItsEnd,
            _ => Share::Nothing,
        };
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
        self.moments.push(at, kind);
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
        let again = self.left.iter().position(|old| {
            (old.queue, old.position, old.head) == (queue, position, head) && same(&old.op, &op)
        });
        if let Some(again) = again {
            let old = &mut self.requests[self.left.swap_remove(again).index];
            old.set_fetched_again(at);
            submitted = old.submitted();
        }
        let ranges = match &op {
            Op::Read { offset, len } | Op::Write { offset, len, .. } => [(*offset, *len)].into(),
            Op::Flush { len: 0, .. } => Ranges::new(),
            Op::Flush { offset, len } => [(*offset, *len)].into(),
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().map(|s| (s.offset, s.len)).collect()
            }
        };
        let kind = RequestKind::of(&op);
        self.in_flight.push(Chain { index: self.requests.len(), queue, position, head, op });
        self.requests.push(Request::new(Facts {
            id: at,
            submitted,
            end: None,
            fetched_again: None,
            kind,
            ranges,
            stable: None,
        }));
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
            Op::Read { offset, len }
            | Op::Write { offset, len, .. }
            | Op::Flush { offset, len } => inside(*offset, *len),
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
        let Ok(index) = self.requests.binary_search_by_key(&id, Request::id) else {
            return Err(bad(
                at,
                format_args!("it completes request {id}, which was not submitted"),
            ));
        };
        let request = &mut self.requests[index];
        match request.end() {
            // It ended when the reset did, or the power was cut: the driver never sees this.
            None if index < self.first_of_epoch => return Ok(false),
            Some(End::Reset { .. }) => {
                // Not where the device still knew of it: it was in flight all the time.
                let Some(left) = self.left.iter().position(|chain| chain.index == index) else {
                    return Ok(false);
                };
                self.left.swap_remove(left);
            }
            None => {}
            Some(End::Completed { at: first, .. }) => {
                return Err(bad(
                    at,
                    format_args!("it completes request {id}, which event {first} completed"),
                ));
            }
        }
        request.set_end(End::Completed { at, status });
        self.in_flight.retain(|chain| chain.index != index);
        let request = &self.requests[index];
        if request.changes() && status == Status::Ok {
            let why = if matches!(request.kind(), RequestKind::Write { fua: true, .. }) {
                Some(Stable::Fua)
            } else if self.write_through(request.submitted(), at) {
                Some(Stable::WriteThrough)
            } else {
                None
            };
            self.requests[index].set_stable(why.map(|why| (at, why)));
        }
        Ok(self.requests[index].kind() == RequestKind::Flush)
    }

    fn reset(&mut self, at: Seq, cause: ResetCause, queue: Option<u16>) {
        let hit = |chain: &Chain| queue.is_none_or(|queue| queue == chain.queue);
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
        if !matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
            self.left.retain(|chain| !hit(chain));
        }
        for chain in std::mem::take(&mut self.in_flight) {
            if hit(&chain) {
                self.requests[chain.index].set_end(End::Reset { at });
                if matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
                    self.left.push(chain);
                }
            } else {
                self.in_flight.push(chain);
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

/// The flushes that worked, by what they are about: of everything (`None`), and of each range. There
/// are as many ranges as disks.
#[derive(Debug)]
pub(super) struct Flushes(BTreeMap<Option<(u64, u64)>, Vec<Flushed>>);

/// When a flush was submitted, the earliest completion among it and all later ones of the same
/// bytes, and whose that is.
type Flushed = (Seq, Seq, Seq);

impl History {
    /// Reads a recording's events, in rising order of their `Seq` (holes are no error).
    ///
    /// A request that is in flight at a [`ResetCause::Reconnect`] or [`ResetCause::Restart`] and
    /// completes later was in flight all the time. A chain that is fetched again after one of those
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
            in_flight: Vec::new(),
            left: Vec::new(),
            rings: HashMap::new(),
            regime: Regime::UNKNOWN,
            regimes: Vec::new(),
            first_of_epoch: 0,
            moments: Moments::default(),
            share: Share::Nothing,
            power_cuts: Vec::new(),
        };
        for (at, event) in events {
            reader.read(at, event)?;
        }
        reader.requests.shrink_to_fit();
        reader.moments.shrink();
        let mut history = History {
            disk: reader.disk,
            requests: reader.requests,
            moments: reader.moments,
            power_cuts: reader.power_cuts,
        };
        let flushes = history.flushes(|_| true);
        let mut requests = std::mem::take(&mut history.requests);
        for request in &mut requests {
            request.set_stable(history.stable_by(&flushes, request));
        }
        history.requests = requests;
        Ok(history)
    }

    /// The flushes that worked, of those that `counts` accepts.
    pub(super) fn flushes(&self, counts: impl Fn(Seq) -> bool) -> Flushes {
        let mut all: BTreeMap<_, Vec<Flushed>> = BTreeMap::new();
        for r in self.requests.iter().filter(|r| r.kind() == RequestKind::Flush && counts(r.id())) {
            let Some(at) = r.succeeded() else { continue };
            let of = r.ranges().first().copied();
            all.entry(of).or_default().push((r.submitted(), at, r.id()));
        }
        for flushes in all.values_mut() {
            flushes.sort_unstable();
            for i in (1..flushes.len()).rev() {
                if flushes[i].1 < flushes[i - 1].1 {
                    (flushes[i - 1].1, flushes[i - 1].2) = (flushes[i].1, flushes[i].2);
                }
            }
        }
        Flushes(all)
    }

    /// Since when a request is stable, if only these flushes had worked.
    pub(super) fn stable_by(&self, flushes: &Flushes, request: &Request) -> Option<(Seq, Stable)> {
        let own = request.stable().filter(|(_, why)| !matches!(why, Stable::Flushed { .. }));
        let done = request.succeeded().filter(|_| request.changes())?;
        let first = |flushes: &Vec<Flushed>| {
            // At the same event it was there before: see [`Seq`].
            let next = flushes.partition_point(|(submitted, ..)| *submitted <= done);
            let (_, at, flush) = *flushes.get(next)?;
            (self.base_of(at) == self.base_of(done)).then_some((at, flush))
        };
        let flushed = flushes
            .0
            .iter()
            .filter(|(of, _)| of.is_none_or(|range| request.lies_in(range)))
            .filter_map(|(_, flushes)| first(flushes))
            .min();
        own.or(flushed.map(|(at, flush)| (at, Stable::Flushed { flush })))
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Every request, by its `id`.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    pub fn request(&self, id: Seq) -> Option<&Request> {
        self.requests.binary_search_by_key(&id, Request::id).ok().map(|i| &self.requests[i])
    }

    /// The last event; `None` where there is none.
    pub fn last(&self) -> Option<Seq> {
        self.moments.last()
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
            Some(cut) => self.requests.partition_point(|r| r.id() <= cut),
            None => 0,
        };
        let end = self.requests.partition_point(|r| r.id() <= after);
        &self.requests[first..end]
    }

    /// The crash points that are worth looking at: before and after every completion of a flush,
    /// after every mark, after the last event; with `every_event` after each event. Rising.
    pub fn points(&self, every_event: bool) -> Vec<Seq> {
        self.moments.points(every_event)
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
            let kind = match request.kind() {
                RequestKind::Read => "read",
                RequestKind::Write { .. } => "write",
                RequestKind::Flush => "flush",
                RequestKind::Discard => "discard",
                RequestKind::WriteZeroes => "write-zeroes",
            };
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}

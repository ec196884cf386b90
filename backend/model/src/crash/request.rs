//! One request in memory: 32 bytes, since a recording may hold millions.

use super::{End, Stable};
use crate::event::{Op, SECTOR, Seq, Status};
use smallvec::SmallVec;
use std::fmt;

/// The bytes that a request is about: (offset, length) of each segment.
pub type Ranges = SmallVec<[(u64, u64); 1]>;

/// What a request asks for; [`Request::ranges`] says of which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    Read,
    Write {
        /// Stable when complete (SCSI FUA).
        fua: bool,
        /// Sent as atomic (SCSI WRITE ATOMIC(16)).
        atomic: bool,
    },
    Flush,
    Discard,
    WriteZeroes,
}

impl RequestKind {
    pub(super) fn of(op: &Op) -> RequestKind {
        match op {
            Op::Read { .. } => RequestKind::Read,
            Op::Write { fua, atomic, .. } => RequestKind::Write { fua: *fua, atomic: *atomic },
            Op::Flush { .. } => RequestKind::Flush,
            Op::Discard { .. } => RequestKind::Discard,
            Op::WriteZeroes { .. } => RequestKind::WriteZeroes,
        }
    }
}

/// All there is to know of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) id: Seq,
    pub(super) submitted: Seq,
    pub(super) end: Option<End>,
    pub(super) fetched_again: Option<Seq>,
    pub(super) kind: RequestKind,
    pub(super) ranges: Ranges,
    pub(super) stable: Option<(Seq, Stable)>,
}

/// One request, from its submission to its end.
///
/// Kept in 32 bytes: times are distances from its `id`. What does not fit (several segments, a
/// request that was fetched again, or that took very long) is kept aside, unpacked.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    words: [u64; 3],
    aside: Option<Box<Facts>>,
}

/// The fields of the words: (word, lowest bit, bits).
type Field = (usize, u32, u32);
const ID: Field = (0, 0, 40);
const LEN: Field = (0, 40, 24);
const SECTOR_AT: Field = (1, 0, 38);
const SUBMITTED: Field = (1, 38, 16);
const KIND: Field = (1, 54, 5);
const END: Field = (1, 59, 3);
const WHY: Field = (1, 62, 2);
const END_AT: Field = (2, 0, 16);
const SINCE: Field = (2, 16, 32);
const FLUSH: Field = (2, 48, 16);

fn get(words: &[u64; 3], (word, shift, bits): Field) -> u64 {
    words[word] >> shift & ((1 << bits) - 1)
}

/// `None`: it does not fit.
fn put(words: &mut [u64; 3], (word, shift, bits): Field, value: u64) -> Option<()> {
    if value >> bits != 0 {
        return None;
    }
    words[word] |= value << shift;
    Some(())
}

fn pack(facts: &Facts) -> Option<[u64; 3]> {
    let mut words = [0; 3];
    let id = facts.id.0;
    put(&mut words, ID, id)?;
    if facts.fetched_again.is_some() {
        return None;
    }
    let (kind, ranges) = match facts.kind {
        RequestKind::Flush if facts.ranges.is_empty() => (0, 0),
        RequestKind::Flush => (8, 1),
        RequestKind::Read => (1, 1),
        RequestKind::Discard => (2, 1),
        RequestKind::WriteZeroes => (3, 1),
        RequestKind::Write { fua, atomic } => (4 | u64::from(fua) | u64::from(atomic) << 1, 1),
    };
    put(&mut words, KIND, kind)?;
    if facts.ranges.len() != ranges {
        return None;
    }
    if let [(offset, len)] = facts.ranges[..] {
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return None;
        }
        put(&mut words, SECTOR_AT, offset / SECTOR)?;
        put(&mut words, LEN, len / SECTOR)?;
    }
    put(&mut words, SUBMITTED, id.checked_sub(facts.submitted.0)?)?;
    let (end, at) = match facts.end {
        None => (0, id),
        Some(End::Reset { at }) => (1, at.0),
        Some(End::Completed { at, status: Status::Ok }) => (2, at.0),
        Some(End::Completed { at, status: Status::IoErr }) => (3, at.0),
        Some(End::Completed { at, status: Status::Unsupp }) => (4, at.0),
    };
    put(&mut words, END, end)?;
    put(&mut words, END_AT, at.checked_sub(id)?)?;
    let (why, since, flush) = match facts.stable {
        None => (0, id, id),
        Some((since, Stable::Flushed { flush })) => (1, since.0, flush.0),
        Some((since, Stable::WriteThrough)) => (2, since.0, since.0),
        Some((since, Stable::Fua)) => (3, since.0, since.0),
    };
    put(&mut words, WHY, why)?;
    put(&mut words, SINCE, since.checked_sub(id)?)?;
    put(&mut words, FLUSH, since.checked_sub(flush)?)?;
    Some(words)
}

impl Request {
    pub(super) fn new(facts: Facts) -> Request {
        match pack(&facts) {
            Some(words) => Request { words, aside: None },
            None => Request { words: [0; 3], aside: Some(Box::new(facts)) },
        }
    }

    fn field(&self, field: Field) -> u64 {
        get(&self.words, field)
    }

    /// Its [`Event::Submit`](crate::event::Event::Submit): the request's name in states.
    pub fn id(&self) -> Seq {
        self.aside.as_ref().map_or_else(|| Seq(self.field(ID)), |aside| aside.id)
    }

    /// When it was submitted: earlier than `id` where an
    /// [`Event::Visible`](crate::event::Event::Visible) showed it before the device took it.
    pub fn submitted(&self) -> Seq {
        match &self.aside {
            Some(aside) => aside.submitted,
            None => Seq(self.field(ID) - self.field(SUBMITTED)),
        }
    }

    pub fn end(&self) -> Option<End> {
        if let Some(aside) = &self.aside {
            return aside.end;
        }
        let at = Seq(self.field(ID) + self.field(END_AT));
        match self.field(END) {
            0 => None,
            1 => Some(End::Reset { at }),
            2 => Some(End::Completed { at, status: Status::Ok }),
            3 => Some(End::Completed { at, status: Status::IoErr }),
            _ => Some(End::Completed { at, status: Status::Unsupp }),
        }
    }

    /// The request that took its place: the same chain, fetched again after a reconnect.
    pub fn fetched_again(&self) -> Option<Seq> {
        self.aside.as_ref().and_then(|aside| aside.fetched_again)
    }

    pub fn kind(&self) -> RequestKind {
        if let Some(aside) = &self.aside {
            return aside.kind;
        }
        match self.field(KIND) {
            0 | 8 => RequestKind::Flush,
            1 => RequestKind::Read,
            2 => RequestKind::Discard,
            3 => RequestKind::WriteZeroes,
            bits => RequestKind::Write { fua: bits & 1 != 0, atomic: bits & 2 != 0 },
        }
    }

    /// The bytes it is about, of each segment; of a flush of everything, none.
    pub fn ranges(&self) -> Ranges {
        match &self.aside {
            Some(aside) => aside.ranges.clone(),
            None if self.field(KIND) == 0 => Ranges::new(),
            None => Ranges::from_buf([(self.field(SECTOR_AT) * SECTOR, self.field(LEN) * SECTOR)]),
        }
    }

    /// Since when a power cut leaves it there, and why; only for what changes the disk.
    pub fn stable(&self) -> Option<(Seq, Stable)> {
        if let Some(aside) = &self.aside {
            return aside.stable;
        }
        let since = Seq(self.field(ID) + self.field(SINCE));
        let why = match self.field(WHY) {
            0 => return None,
            1 => Stable::Flushed { flush: Seq(since.0 - self.field(FLUSH)) },
            2 => Stable::WriteThrough,
            _ => Stable::Fua,
        };
        Some((since, why))
    }

    /// Does it change what is on the disk?
    pub fn changes(&self) -> bool {
        !matches!(self.kind(), RequestKind::Read | RequestKind::Flush)
    }

    /// Do all its bytes lie in `offset..offset + len`?
    pub(super) fn lies_in(&self, (offset, len): (u64, u64)) -> bool {
        let end = offset.saturating_add(len);
        self.ranges().iter().all(|(at, n)| *n == 0 || offset <= *at && at.saturating_add(*n) <= end)
    }

    /// When it completed with status OK.
    pub fn succeeded(&self) -> Option<Seq> {
        match self.end() {
            Some(End::Completed { at, status: Status::Ok }) => Some(at),
            _ => None,
        }
    }

    /// Did it end before `other` was submitted?
    pub fn is_before(&self, other: &Request) -> bool {
        self.end().is_some_and(|end| end.at() < other.submitted())
    }

    fn facts(&self) -> Facts {
        Facts {
            id: self.id(),
            submitted: self.submitted(),
            end: self.end(),
            fetched_again: self.fetched_again(),
            kind: self.kind(),
            ranges: self.ranges(),
            stable: self.stable(),
        }
    }

    fn change(&mut self, f: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts();
        f(&mut facts);
        *self = Request::new(facts);
    }

    pub(super) fn set_end(&mut self, end: End) {
        self.change(|facts| facts.end = Some(end));
    }

    pub(super) fn set_fetched_again(&mut self, again: Seq) {
        self.change(|facts| facts.fetched_again = Some(again));
    }

    pub(super) fn set_stable(&mut self, stable: Option<(Seq, Stable)>) {
        if self.stable() != stable {
            self.change(|facts| facts.stable = stable);
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_takes_32_bytes() {
        assert_eq!(size_of::<Request>(), 32);
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..1000u64,
            65_530..65_540u64,
            (1u64 << 40) - 3..(1u64 << 40) + 3,
            0..1u64 << 50
        ]
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let kind = prop_oneof![
            Just(RequestKind::Read),
            Just(RequestKind::Flush),
            Just(RequestKind::Discard),
            Just(RequestKind::WriteZeroes),
            any::<(bool, bool)>().prop_map(|(fua, atomic)| RequestKind::Write { fua, atomic }),
        ];
        let status = prop_oneof![Just(Status::Ok), Just(Status::IoErr), Just(Status::Unsupp)];
        let ranges = prop::collection::vec((number(), number()), 0..3);
        let times = (number(), number(), number(), number(), number());
        (kind, ranges, times, status, 0..4u8, 0..5u8, any::<bool>()).prop_map(
            |(kind, ranges, (id, a, b, c, d), status, end, why, again)| {
                let at = Seq(id + b);
                let since = Seq(id + c);
                Facts {
                    id: Seq(id),
                    submitted: Seq(id.saturating_sub(a)),
                    end: match end {
                        0 => None,
                        1 => Some(End::Reset { at }),
                        _ => Some(End::Completed { at, status }),
                    },
                    fetched_again: again.then_some(Seq(d)),
                    kind,
                    ranges: ranges.iter().map(|(a, n)| (a * SECTOR, n * SECTOR)).collect(),
                    stable: match why {
                        0 | 1 => None,
                        2 => Some((since, Stable::Fua)),
                        3 => Some((since, Stable::WriteThrough)),
                        _ => {
                            Some((since, Stable::Flushed { flush: Seq(since.0.saturating_sub(d)) }))
                        }
                    },
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn nothing_is_lost(facts in facts()) {
            prop_assert_eq!(&Request::new(facts.clone()).facts(), &facts);
        }
    }

    #[test]
    fn the_usual_request_is_packed() {
        let facts = Facts {
            id: Seq(1 << 33),
            submitted: Seq((1 << 33) - 500),
            end: Some(End::Completed { at: Seq((1 << 33) + 900), status: Status::Ok }),
            fetched_again: None,
            kind: RequestKind::Write { fua: false, atomic: true },
            ranges: Ranges::from_buf([(1 << 46, 1 << 20)]),
            stable: Some((
                Seq((1 << 33) + 4_000_000),
                Stable::Flushed { flush: Seq((1 << 33) + 3_999_000) },
            )),
        };
        let request = Request::new(facts.clone());
        assert!(request.aside.is_none());
        assert_eq!(request.facts(), facts);
    }
}

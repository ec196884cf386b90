//! The crash model a second time: written from its page, by brute force, and sharing nothing with
//! the implementation but the vocabulary (events, the fields of a profile). Every subset of the
//! volatile fragments, every linear order of the atomic ones, every order in every block.

use std::collections::BTreeSet;
use tornblk_model::crash::{AtomicMode, DiscardReads, Profile};
use tornblk_model::event::{Disk, Event, Op, ResetCause, Seq, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Holds {
    Base,
    Data(u64, u64),
    Zeroes,
    Anything,
}

#[derive(Clone, Debug)]
pub(crate) struct Req {
    pub(crate) id: u64,
    pub(crate) queue: u16,
    pub(crate) position: u16,
    pub(crate) head: u16,
    pub(crate) op: Op,
    pub(crate) submitted: u64,
    /// Completed or ended by a reset.
    pub(crate) over: Option<u64>,
    pub(crate) ok: Option<u64>,
    pub(crate) failed: bool,
    pub(crate) reset: Option<ResetCause>,
    pub(crate) refetched: bool,
    /// In flight over a reconnect or restart.
    pub(crate) resumed: bool,
    pub(crate) stable: bool,
}

impl Req {
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.op, Op::Read { .. } | Op::Flush { .. })
    }

    pub(crate) fn before(&self, other: &Req) -> bool {
        self.over.is_some_and(|over| over < other.submitted)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) req: usize,
    pub(crate) blocks: BTreeSet<u64>,
    pub(crate) atomic: bool,
    /// The profile makes its request atomic.
    pub(crate) eligible: bool,
    /// May be there or not.
    pub(crate) free: bool,
}

fn equal_but_payload(a: &Op, b: &Op) -> bool {
    let strip = |op: &Op| {
        let mut op = op.clone();
        if let Op::Write { payload, .. } = &mut op {
            *payload = Default::default();
        }
        op
    };
    strip(a) == strip(b)
}

fn applies(queue: Option<u16>, to: u16) -> bool {
    queue.is_none() || queue == Some(to)
}

/// The requests as they are right after event `point`.
pub(crate) fn requests(events: &[(Seq, Event)], point: u64) -> Vec<Req> {
    let seen: Vec<(u64, &Event)> =
        events.iter().map(|(at, e)| (at.0, e)).filter(|(at, _)| *at <= point).collect();
    // What happened before the last power cut is in the base.
    let start = seen
        .iter()
        .rposition(|(at, e)| {
            *at < point && matches!(e, Event::Reset { cause: ResetCause::PowerCut, .. })
        })
        .map_or(0, |i| i + 1);
    let seen = &seen[start..];
    let mut reqs: Vec<Req> = Vec::new();
    for (i, (at, event)) in seen.iter().enumerate() {
        match event {
            Event::Submit(s) => {
                let last_reset = seen[..i].iter().rposition(
                    |(_, e)| matches!(e, Event::Reset { queue, .. } if applies(*queue, s.queue)),
                );
                let mut submitted = *at;
                for (at, e) in &seen[last_reset.map_or(0, |r| r + 1)..i] {
                    if let Event::Visible { queue, index } = e
                        && *queue == s.queue
                        && index.wrapping_sub(s.position) as i16 > 0
                    {
                        submitted = submitted.min(*at);
                    }
                }
                let earlier = reqs.iter().position(|r| {
                    matches!(r.reset, Some(ResetCause::Reconnect | ResetCause::Restart))
                        && (r.queue, r.position, r.head) == (s.queue, s.position, s.head)
                        && equal_but_payload(&r.op, &s.op)
                        // Nothing else may have used that ring in between.
                        && !seen[..i].iter().any(|(at, e)| {
                            *at > r.over.unwrap()
                                && matches!(e, Event::Reset {
                                        cause: ResetCause::Device | ResetCause::QueueStop, queue }
                                    if applies(*queue, s.queue))
                        })
                });
                let mut refetched = false;
                if let Some(earlier) = earlier {
                    submitted = reqs.remove(earlier).submitted;
                    refetched = true;
                }
                reqs.push(Req {
                    id: *at,
                    queue: s.queue,
                    position: s.position,
                    head: s.head,
                    op: s.op.clone(),
                    submitted,
                    over: None,
                    ok: None,
                    failed: false,
                    reset: None,
                    refetched,
                    resumed: false,
                    stable: false,
                });
            }
            Event::Complete { request, status } => {
                if let Some(r) = reqs.iter_mut().find(|r| r.id == request.0 && r.over.is_none()) {
                    r.over = Some(*at);
                    if *status == Status::Ok {
                        r.ok = Some(*at);
                    } else {
                        r.failed = true;
                    }
                }
            }
            Event::Reset { cause, queue } if *cause != ResetCause::PowerCut => {
                let resumes = |r: &Req| resumed(events, *at, *cause, r);
                for r in reqs.iter_mut().filter(|r| applies(*queue, r.queue) && r.over.is_none()) {
                    r.resumed |= resumes(r);
                }
                for r in reqs
                    .iter_mut()
                    .filter(|r| applies(*queue, r.queue) && r.over.is_none() && !resumes(r))
                {
                    r.over = Some(*at);
                    r.reset = Some(*cause);
                }
            }
            _ => {}
        }
    }
    let stable: Vec<bool> = reqs.iter().map(|r| is_stable(r, &reqs, seen)).collect();
    for (r, stable) in reqs.iter_mut().zip(stable) {
        r.stable = stable;
    }
    reqs
}

/// Does the device finish `r` after the reset at event `at`?
fn resumed(events: &[(Seq, Event)], at: u64, cause: ResetCause, r: &Req) -> bool {
    if !matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
        return false;
    }
    for (_, e) in events.iter().filter(|(seq, _)| seq.0 > at) {
        match e {
            Event::Complete { request, .. } if request.0 == r.id => return true,
            Event::Reset { cause: ResetCause::PowerCut, .. } => return false,
            Event::Reset { cause: ResetCause::Device | ResetCause::QueueStop, queue }
                if applies(*queue, r.queue) =>
            {
                return false;
            }
            Event::Submit(s)
                if (s.queue, s.position, s.head) == (r.queue, r.position, r.head)
                    && equal_but_payload(&s.op, &r.op) =>
            {
                return false;
            }
            _ => {}
        }
    }
    false
}

fn is_stable(r: &Req, reqs: &[Req], seen: &[(u64, &Event)]) -> bool {
    let Some(done) = r.ok else { return false };
    let flushed =
        reqs.iter().any(|f| f.ok.is_some() && f.submitted > done && is_flush_of_all(&f.op, &r.op));
    let fua = matches!(r.op, Op::Write { fua: true, .. });
    flushed || fua || no_cache_between(r.submitted, done, seen)
}

/// Is every byte of `op` one that this FLUSH is of? Byte by byte, but that all are whole sectors.
fn is_flush_of_all(flush: &Op, op: &Op) -> bool {
    let Op::Flush { offset: first, len: bytes } = flush else { return false };
    let ranges: Vec<(u64, u64)> = match op {
        Op::Write { offset, len, .. } => vec![(*offset, *len)],
        Op::Discard { segments } | Op::WriteZeroes { segments } => {
            segments.iter().map(|s| (s.offset, s.len)).collect()
        }
        Op::Read { .. } | Op::Flush { .. } => return false,
    };
    let flushed: BTreeSet<u64> = (first / 512..(first + bytes) / 512).collect();
    *bytes == 0
        || ranges.iter().all(|(at, n)| (at / 512..(at + n) / 512).all(|s| flushed.contains(&s)))
}

/// Rules 2 and 3, at every moment from `from` to `to`.
fn no_cache_between(from: u64, to: u64, seen: &[(u64, &Event)]) -> bool {
    let mut agreed = None;
    let mut off_before = false;
    let mut all = true;
    for (at, e) in seen.iter().take_while(|(at, _)| *at < to) {
        match e {
            Event::Negotiate(n) => agreed = Some(*n),
            Event::SetWriteback { on } => {
                if let Some(n) = agreed.as_mut() {
                    n.writeback = *on;
                }
            }
            _ => {}
        }
        let off = agreed.is_some_and(|n| {
            let never = n.flush_offered && !n.flush && !n.config_wce;
            never || (n.config_wce && !n.writeback)
        });
        if *at < from {
            off_before = off;
        } else {
            all &= off;
        }
    }
    off_before && all
}

/// The fragments at that point, of that disk.
pub(crate) fn pieces(disk: &Disk, reqs: &[Req], p: &Profile) -> Vec<Piece> {
    let lb = u64::from(disk.lb_size);
    let unit = if p.tear_unit == 0 { lb } else { p.tear_unit };
    let mut pieces = Vec::new();
    for (req, r) in reqs.iter().enumerate().filter(|(_, r)| r.changes()) {
        let free = !r.stable;
        let cut = |pieces: &mut Vec<Piece>, blocks: BTreeSet<u64>| {
            let units: BTreeSet<u64> = blocks.iter().map(|b| b * lb / unit).collect();
            for u in units {
                let blocks: BTreeSet<u64> =
                    blocks.iter().copied().filter(|b| b * lb / unit == u).collect();
                let atomic = blocks.len() > 1;
                pieces.push(Piece { req, blocks, atomic, eligible: false, free });
            }
        };
        let touched = |offset: u64, len: u64| -> BTreeSet<u64> {
            (0..disk.capacity / lb)
                .filter(|b| len > 0 && b * lb < offset + len && offset < (b + 1) * lb)
                .collect()
        };
        match &r.op {
            Op::Write { offset, len, atomic, .. } => {
                let short = *len > 0 && *len <= p.max_bytes;
                let inside = p.boundary == 0
                    || (short && offset / p.boundary == (offset + len - 1) / p.boundary);
                // SCSI has no boundary of the disk.
                let whole = match p.mode {
                    AtomicMode::None => false,
                    AtomicMode::Implicit => short && inside,
                    AtomicMode::Explicit => short && *atomic,
                };
                if whole {
                    let blocks = touched(*offset, *len);
                    pieces.push(Piece { req, blocks, atomic: true, eligible: true, free });
                } else {
                    cut(&mut pieces, touched(*offset, *len));
                }
            }
            Op::WriteZeroes { segments } => {
                segments.iter().for_each(|s| cut(&mut pieces, touched(s.offset, s.len)));
            }
            Op::Discard { segments } => {
                for s in segments {
                    // Blocks that are discarded completely.
                    let blocks: BTreeSet<u64> = touched(s.offset, s.len)
                        .into_iter()
                        .filter(|b| s.offset <= b * lb && (b + 1) * lb <= s.offset + s.len)
                        .collect();
                    match p.discard {
                        DiscardReads::Old => {}
                        DiscardReads::Zeroes => cut(&mut pieces, blocks),
                        DiscardReads::Either => pieces.extend(blocks.into_iter().map(|b| Piece {
                            req,
                            blocks: [b].into(),
                            atomic: false,
                            eligible: false,
                            free: true,
                        })),
                    }
                }
            }
            Op::Read { .. } | Op::Flush { .. } => {}
        }
    }
    pieces
}

/// Every linear order of `left` that keeps `before`.
fn orders(
    left: &mut Vec<usize>,
    order: &mut Vec<usize>,
    before: &dyn Fn(usize, usize) -> bool,
    each: &mut dyn FnMut(&[usize]),
) {
    if left.is_empty() {
        return each(order);
    }
    for i in 0..left.len() {
        let next = left[i];
        if left.iter().any(|other| *other != next && before(*other, next)) {
            continue;
        }
        left.remove(i);
        order.push(next);
        orders(left, order, before, each);
        order.pop();
        left.insert(i, next);
    }
}

/// Every content that is legal after `point`.
pub(crate) fn contents(
    disk: &Disk,
    events: &[(Seq, Event)],
    point: u64,
    p: &Profile,
) -> BTreeSet<Vec<Holds>> {
    let lb = u64::from(disk.lb_size);
    let blocks = disk.capacity / lb;
    let reqs = requests(events, point);
    let pieces = pieces(disk, &reqs, p);
    let before = |a: usize, b: usize| reqs[pieces[a].req].before(&reqs[pieces[b].req]);
    let holds = |piece: usize, block: u64| match &reqs[pieces[piece].req] {
        Req { id, op: Op::Write { offset, .. }, .. } => Holds::Data(*id, block - offset / lb),
        _ => Holds::Zeroes,
    };
    let free: Vec<usize> = (0..pieces.len()).filter(|i| pieces[*i].free).collect();
    let mut found = BTreeSet::new();
    for subset in 0u32..1 << free.len() {
        let there: Vec<usize> = (0..pieces.len())
            .filter(|i| match free.iter().position(|f| f == i) {
                Some(bit) => subset >> bit & 1 == 1,
                None => true,
            })
            .collect();
        let mut atomic: Vec<usize> = there.iter().copied().filter(|i| pieces[*i].atomic).collect();
        let mut seen_orders = BTreeSet::new();
        orders(&mut atomic, &mut Vec::new(), &before, &mut |order| {
            let place = |i: usize| order.iter().position(|o| *o == i);
            // Only the order of those that overlap can be seen.
            let mut pairs = Vec::new();
            for (n, a) in order.iter().enumerate() {
                for b in &order[n + 1..] {
                    if !pieces[*a].blocks.is_disjoint(&pieces[*b].blocks) {
                        pairs.push((*a, *b));
                    }
                }
            }
            pairs.sort_unstable();
            if !seen_orders.insert(pairs) {
                return;
            }
            let earlier = |a: usize, b: usize| {
                before(a, b) || matches!((place(a), place(b)), (Some(a), Some(b)) if a < b)
            };
            let mut states: Vec<Vec<Holds>> = vec![Vec::new()];
            for block in 0..blocks {
                let mut over: Vec<usize> =
                    there.iter().copied().filter(|i| pieces[*i].blocks.contains(&block)).collect();
                let mut tops = BTreeSet::new();
                orders(&mut over, &mut Vec::new(), &earlier, &mut |order| {
                    tops.insert(order.last().map_or(Holds::Base, |top| holds(*top, block)));
                });
                if p.garbage && may_be_anything(block, &reqs, &pieces) {
                    tops.insert(Holds::Anything);
                }
                states = states
                    .into_iter()
                    .flat_map(|state| {
                        tops.iter().map(move |top| {
                            let mut state = state.clone();
                            state.push(*top);
                            state
                        })
                    })
                    .collect();
            }
            found.extend(states);
        });
    }
    found
}

fn may_be_anything(block: u64, reqs: &[Req], pieces: &[Piece]) -> bool {
    let over = |piece: &&Piece| piece.blocks.contains(&block);
    pieces.iter().filter(over).any(|v| {
        !reqs[v.req].stable
            && !v.eligible
            && !pieces
                .iter()
                .filter(over)
                .any(|s| reqs[s.req].stable && !s.free && reqs[v.req].before(&reqs[s.req]))
    })
}

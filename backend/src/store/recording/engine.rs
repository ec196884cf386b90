//! One queue of the recorded store: requests become events, data and work for the index.

use super::index::{Piece, Place};
use super::open::Before;
use super::{Shared, Work, failed};
use crate::store::gate::{Engine, Moved, Step};
use crate::store::{Failure, Op, Origin, Past, Request};
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use tornblk_model::event::{self, Event, Payload, Segment, Seq, Status, Submit};
use tornblk_model::guard;
use tornblk_model::recording::{Completion, RecordingError};

/// A part of a request that has its own place in the order. All but WRITE ZEROES of parts of
/// blocks and writes of pieces have one.
#[derive(Debug)]
struct Part {
    seq: Seq,
    work: Work,
}

#[derive(Debug, Default)]
pub(super) struct Ticket {
    parts: SmallVec<[Part; 1]>,
    executed: bool,
    /// It ended before the device was started again, so: that is on record.
    ended: Option<Status>,
}

impl Ticket {
    /// How it ended before the device was started again, if it did.
    fn ended(&self) -> Option<Result<(), Failure>> {
        let what = "it failed before the device was started again";
        self.ended.map(|status| match status {
            Status::Ok => Ok(()),
            _ => Err(Failure::Io(io::Error::other(what))),
        })
    }
}

/// Is `op` what the request asks for?
fn same(op: &event::Op, request: &Request) -> bool {
    let bytes = request.buffers.len() as u64;
    match (op, &request.op) {
        (event::Op::Read { offset, len }, Op::Read { offset: at }) => (offset, *len) == (at, bytes),
        (
            event::Op::Write { offset, len, fua, atomic, .. },
            Op::Write { offset: at, fua: fua_too, atomic: atomic_too },
        ) => (offset, *len, fua, atomic) == (at, bytes, fua_too, atomic_too),
        (event::Op::Flush { offset, len }, Op::Flush { offset: at, len: bytes }) => {
            (offset, len) == (at, bytes)
        }
        (event::Op::Discard { segments }, Op::Discard { segments: those })
        | (event::Op::WriteZeroes { segments }, Op::WriteZeroes { segments: those }) => {
            segments == those
        }
        _ => false,
    }
}

/// What comes of recording one part.
enum Recorded {
    Next,
    Last,
    Off,
}

pub(super) struct RecordingEngine(pub(super) Arc<Shared>);

impl RecordingEngine {
    /// Records the submission of one part, and announces it.
    fn record(
        &self,
        request: &Request,
        op: event::Op,
        work: Work,
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        // Of a trace, the bytes are somebody else's.
        let work = if shared.keeps_data() { work } else { Work::Nothing };
        let pieces = match &work {
            Work::Put(pieces) if shared.whole_needed() => pieces.as_slice(),
            _ => &[],
        };
        let blocks: SmallVec<[_; 1]> = pieces.iter().map(|p| p.blocks.clone()).collect();
        let mut locked = shared.index.lock(&blocks);
        let seq = match submit(shared, request, op, last) {
            Ok(seq) => seq,
            Err(RecordingError::Frozen) => return Ok(Recorded::Off),
            Err(e) => return Err(failed(e)),
        };
        for piece in pieces {
            locked.announce(seq, piece);
        }
        drop(locked);
        ticket.parts.push(Part { seq, work });
        Ok(if last { Recorded::Last } else { Recorded::Next })
    }

    /// Records the submission of a write of `len` bytes, given by `fill`, which gets the bytes of
    /// the request's own range from some byte on.
    #[allow(clippy::too_many_arguments)]
    fn record_write(
        &self,
        request: &Request,
        (offset, len): (u64, u64),
        (fua, atomic): (bool, bool),
        fill: impl Fn(usize, &mut [u8]),
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        if !shared.keeps_data() {
            let op = event::Op::Write { offset, len, fua, atomic, payload: Payload::default() };
            return self.record(request, op, Work::Nothing, last, ticket);
        }
        let lb = u64::from(shared.disk.lb_size);
        let blocks = shared.disk.touched(offset, len);
        let room = ((blocks.end - blocks.start) * lb) as usize;
        let mut space = shared.writer.reserve(room).map_err(failed)?;
        let skip = (offset % lb) as usize;
        let poisonings = guard::poisonings();
        // Zeroes instead of the guest's data, perhaps: not to be recorded as such.
        let copied = || match guard::poisonings() == poisonings {
            true => Ok(()),
            false => Err(Failure::Io(io::Error::other("memory failed while its data was copied"))),
        };
        let op = |payload| event::Op::Write { offset, len, fua, atomic, payload };
        if skip == 0 && room == len as usize {
            let payload = space.fill(fill).map_err(failed)?;
            copied()?;
            let work = shared.write_work(offset, len, payload);
            return self.record(request, op(payload), work, last, ticket);
        }
        fill(0, &mut space.as_mut_slice()[skip..skip + len as usize]);
        copied()?;
        // A part of a block: the rest of it is read, and the write takes its place in the order,
        // before anybody else can touch the block.
        let mut locked = shared.index.lock(std::slice::from_ref(&blocks));
        let bytes = space.as_mut_slice();
        let mut block = vec![0; lb as usize];
        if skip > 0 {
            shared.read_block(blocks.start, locked.submitted(blocks.start), &mut block)?;
            bytes[..skip].copy_from_slice(&block[..skip]);
        }
        let end = skip + len as usize;
        if end < room {
            let last = blocks.end - 1;
            shared.read_block(last, locked.submitted(last), &mut block)?;
            let from = end % lb as usize;
            bytes[end..].copy_from_slice(&block[from..]);
        }
        let payload = space.finish().map_err(failed)?;
        let work = shared.write_work(offset, len, payload);
        let seq = match submit(shared, request, op(payload), last) {
            Ok(seq) => seq,
            Err(RecordingError::Frozen) => return Ok(Recorded::Off),
            Err(e) => return Err(failed(e)),
        };
        locked.announce(seq, &Piece { blocks, place: Place::At(payload.position) });
        drop(locked);
        ticket.parts.push(Part { seq, work });
        Ok(if last { Recorded::Last } else { Recorded::Next })
    }

    fn record_zeroes(
        &self,
        request: &Request,
        segments: &[Segment],
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let lb = u64::from(self.0.disk.lb_size);
        let whole = |s: &Segment| s.offset.is_multiple_of(lb) && s.len.is_multiple_of(lb);
        if segments.iter().all(whole) {
            let op = event::Op::WriteZeroes { segments: segments.to_vec() };
            return self.record(request, op, self.0.zero_work(segments), last, ticket);
        }
        // Segments are independent, and so are the pieces that one is made of.
        let (mut blocks, mut parts) = (Vec::new(), Vec::new());
        for s in segments {
            let (start, end) = (s.offset, s.offset + s.len);
            let (first, upto) = (start.next_multiple_of(lb).min(end), end / lb * lb);
            if first >= upto {
                // Inside of one block, or over one border and no whole block.
                parts.push((start, first - start));
                parts.push((first, end - first));
            } else {
                parts.push((start, first - start));
                blocks.push(Segment { offset: first, len: upto - first, unmap: s.unmap });
                parts.push((upto, end - upto));
            }
        }
        parts.retain(|(_, len)| *len > 0);
        if !blocks.is_empty() {
            let op = event::Op::WriteZeroes { segments: blocks.clone() };
            let cut = last && parts.is_empty();
            match self.record(request, op, self.0.zero_work(&blocks), cut, ticket)? {
                Recorded::Next => {}
                other => return Ok(other),
            }
        }
        let n = parts.len();
        for (i, part) in parts.into_iter().enumerate() {
            let cut = last && i + 1 == n;
            let fill = |_: usize, bytes: &mut [u8]| bytes.fill(0);
            match self.record_write(request, part, (false, false), fill, cut, ticket)? {
                Recorded::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Recorded::Next)
    }

    fn take(
        &self,
        request: &Request,
        last: bool,
        ticket: &mut Ticket,
    ) -> Result<Recorded, Failure> {
        let shared = &*self.0;
        let len = request.buffers.len() as u64;
        match &request.op {
            Op::Read { offset } => {
                let op = event::Op::Read { offset: *offset, len };
                self.record(request, op, Work::Nothing, last, ticket)
            }
            Op::Flush { offset, len } => {
                let op = event::Op::Flush { offset: *offset, len: *len };
                self.record(request, op, Work::Nothing, last, ticket)
            }
            Op::Write { offset, fua, atomic } => {
                let one = [len];
                let pieces = if request.pieces.is_empty() { &one } else { &request.pieces[..] };
                let (flags, mut at) = ((*fua, *atomic), 0);
                for (i, piece) in pieces.iter().enumerate() {
                    let fill = |from: usize, to: &mut [u8]| {
                        request.buffers.copy_to(at as usize + from, to);
                    };
                    let (range, cut) = ((offset + at, *piece), last && i + 1 == pieces.len());
                    match self.record_write(request, range, flags, fill, cut, ticket)? {
                        Recorded::Next => at += piece,
                        other => return Ok(other),
                    }
                }
                Ok(Recorded::Next)
            }
            Op::Discard { segments } => {
                let op = event::Op::Discard { segments: segments.clone() };
                self.record(request, op, shared.discard_work(segments), last, ticket)
            }
            Op::WriteZeroes { segments } => self.record_zeroes(request, segments, last, ticket),
        }
    }

    fn is_sub_block(&self, request: &Request) -> bool {
        let lb = u64::from(self.0.disk.lb_size);
        let part = |at: u64, n: u64| !at.is_multiple_of(lb) || !n.is_multiple_of(lb);
        match &request.op {
            Op::Read { offset } | Op::Write { offset, .. } => {
                part(*offset, request.buffers.len() as u64)
            }
            Op::Flush { .. } => false,
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().any(|s| part(s.offset, s.len))
            }
        }
    }
}

fn submit(
    shared: &Shared,
    request: &Request,
    op: event::Op,
    last: bool,
) -> Result<Seq, RecordingError> {
    let origin = request.origin;
    let event = Event::Submit(Submit {
        queue: origin.queue,
        position: origin.position,
        head: origin.head,
        ioprio: origin.ioprio,
        op,
    });
    if last { shared.writer.append_last(&event) } else { shared.writer.append(&event) }
}

impl Engine for RecordingEngine {
    type Ticket = Ticket;

    fn begin(&mut self, request: &Request, last: bool) -> Result<Step<Ticket>, Failure> {
        let shared = &self.0;
        if shared.broken.load(Ordering::Acquire) {
            return Err(Failure::Io(io::Error::other("the recording cannot be continued")));
        }
        let changes = !matches!(request.op, Op::Read { .. } | Op::Flush { .. });
        if changes && shared.options.read_only {
            return Err(Failure::ReadOnly);
        }
        if self.is_sub_block(request) {
            shared.sub_block.fetch_add(1, Ordering::Relaxed);
        }
        let mut ticket = Ticket::default();
        let Origin { queue, position, head, .. } = request.origin;
        let known = if request.past == Past::New || last {
            None
        } else {
            shared.open.take((queue, position, head), |op| same(op, request))
        };
        // What it changes is shown since the recording was opened again.
        ticket.executed = known.is_some() && changes;
        match known {
            Some(Before::Goes(seq)) => {
                ticket.parts.push(Part { seq, work: Work::Nothing });
                return Ok(Step::Next(ticket));
            }
            Some(Before::Ended(status)) => {
                ticket.ended = Some(status);
                return Ok(Step::Next(ticket));
            }
            None => {}
        }
        match self.take(request, last, &mut ticket) {
            Ok(Recorded::Next) => Ok(Step::Next(ticket)),
            Ok(Recorded::Last) => Ok(Step::Last(ticket)),
            Ok(Recorded::Off) => Ok(Step::Off),
            Err(failure) => {
                // Its first parts are recorded and will never happen: they failed.
                self.end(&ticket, Status::IoErr, false).map_err(failed)?;
                Err(failure)
            }
        }
    }

    fn can_cut(&self) -> bool {
        true
    }

    fn notes_moves(&self) -> bool {
        false
    }

    fn seq(&self, ticket: &Ticket) -> Option<Seq> {
        ticket.parts.first().map(|part| part.seq)
    }

    fn last_seq(&self, ticket: &Ticket) -> Option<Seq> {
        ticket.parts.last().map(|part| part.seq)
    }

    fn execute(
        &mut self,
        request: &mut Request,
        ticket: &mut Ticket,
        stale: bool,
        _: usize,
    ) -> Moved {
        if let Op::Read { offset } = request.op {
            return self.0.read(offset, &mut request.buffers, stale).into();
        }
        for part in &ticket.parts {
            self.0.apply(part.seq, &part.work);
        }
        ticket.executed = true;
        ticket.ended().unwrap_or(Ok(())).into()
    }

    fn finish(
        &mut self,
        _: &Request,
        ticket: Ticket,
        result: &Result<(), Failure>,
        last: bool,
    ) -> Result<Step<Seq>, Failure> {
        if ticket.ended.is_some() && last {
            return Ok(self.0.writer.freeze().map_or(Step::Off, Step::Last));
        }
        let status = if result.is_ok() { Status::Ok } else { Status::IoErr };
        match self.end(&ticket, status, last) {
            Ok(Some(seq)) if last => Ok(Step::Last(seq)),
            Ok(seq) => Ok(Step::Next(seq.unwrap_or_default())),
            Err(RecordingError::Frozen) => Ok(Step::Off),
            Err(e) => Err(failed(e)),
        }
    }

    fn off(&self) -> bool {
        self.0.off()
    }

    fn forget(&mut self, ticket: Ticket) {
        // With the power off, nothing is shown any more. Otherwise old and new are both right:
        // new is what the disk shows when it is opened again.
        if !ticket.executed && !self.off() {
            for part in &ticket.parts {
                self.0.apply(part.seq, &part.work);
            }
        }
    }
}

impl RecordingEngine {
    /// Records that the parts ended. What became visible until then comes first.
    fn end(
        &self,
        ticket: &Ticket,
        status: Status,
        last: bool,
    ) -> Result<Option<Seq>, RecordingError> {
        let shared = &*self.0;
        if !ticket.executed {
            for part in &ticket.parts {
                shared.withdraw(part.seq, &part.work);
            }
        }
        // Held until they are recorded: an index is never news after the reset of its queue.
        let rings = shared.rings.read().unwrap_or_else(PoisonError::into_inner);
        let look = |f: &mut dyn FnMut(u16, u16)| {
            if let Some(rings) = &*rings {
                rings.available(f);
            }
        };
        let parts = ticket.parts.len();
        let end = |i: usize, visible: &[(u16, u16)]| {
            let completion = Completion {
                request: ticket.parts[i].seq,
                status,
                executed: ticket.executed || status == Status::Ok,
                last: last && i + 1 == parts,
            };
            shared.writer.complete(visible, completion)
        };
        if parts == 0 {
            return Ok(None);
        }
        let mut seq = shared.seen.record(look, |visible| end(0, visible))?;
        for i in 1..parts {
            seq = end(i, &[])?;
        }
        Ok(Some(seq))
    }
}

/// A trace's: the requests are recorded, and a raw store moves the bytes.
pub(super) struct TraceEngine<E> {
    pub(super) trace: RecordingEngine,
    pub(super) raw: E,
}

impl<E: Engine<Ticket = ()>> Engine for TraceEngine<E> {
    type Ticket = Ticket;

    fn begin(&mut self, request: &Request, last: bool) -> Result<Step<Ticket>, Failure> {
        self.raw.begin(request, last)?;
        self.trace.begin(request, last)
    }

    /// Nothing could be shown after it.
    fn can_cut(&self) -> bool {
        false
    }

    fn notes_moves(&self) -> bool {
        self.raw.notes_moves()
    }

    fn seq(&self, ticket: &Ticket) -> Option<Seq> {
        self.trace.seq(ticket)
    }

    fn last_seq(&self, ticket: &Ticket) -> Option<Seq> {
        self.trace.last_seq(ticket)
    }

    fn execute(
        &mut self,
        request: &mut Request,
        ticket: &mut Ticket,
        stale: bool,
        key: usize,
    ) -> Moved {
        ticket.executed = true;
        match ticket.ended() {
            // Reading again harms nobody, and the guest's memory may have changed since.
            Some(ended) if !matches!(request.op, Op::Read { .. }) => ended.into(),
            _ => self.raw.execute(request, &mut (), stale, key),
        }
    }

    fn moved(&mut self, wait: bool, f: &mut dyn FnMut(usize, i32)) {
        self.raw.moved(wait, f);
    }

    fn outcome(&mut self, request: &mut Request, moved: i32) -> Result<(), Failure> {
        self.raw.outcome(request, moved)
    }

    fn finish(
        &mut self,
        request: &Request,
        ticket: Ticket,
        result: &Result<(), Failure>,
        last: bool,
    ) -> Result<Step<Seq>, Failure> {
        self.trace.finish(request, ticket, result, last)
    }

    fn off(&self) -> bool {
        self.trace.off()
    }
}

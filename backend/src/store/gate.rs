//! Where a request can be held, failed or cut off: the one place that live faults, stalls and the
//! power switch use, the same for every store.
//!
//! A [`GatedQueue`] takes each request through these steps, and asks the [`Gate`] between them:
//!
//! 1. [`Engine::begin`]: the request is taken (and recorded); it has a [`Seq`] where there is a
//!    recording. Just before, [`Gate::cut_after`] may say that this event is the last one.
//! 2. [`Gate::before_io`].
//! 3. [`Engine::execute`]: the bytes move; where that takes its time, [`Engine::moved`] tells its end.
//! 4. [`Gate::before_completion`].
//! 5. [`Engine::finish`]: the completion is recorded. Just before, [`Gate::cut_after`] again.
//! 6. [`StoreQueue::reap`] hands it out.
//!
//! A request that is held costs nobody else anything: the queue goes on with the next one. It is
//! asked about again, with `again` set, in the `reap` that follows [`Waker::wake`].

use super::{Done, Failure, Op, Origin, Request, StoreQueue};
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tornblk_lockfree::Flag;
use tornblk_model::crash::Profile;
use tornblk_model::event::Seq;

/// What shall become of a request at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// Ask again when the queue was woken.
    Hold,
    /// Ends with [`Failure::Injected`]; before I/O: without any.
    Fail,
    /// A read answers with the version before the newest, where there is one. Otherwise as `Go`.
    Stale,
    /// The power is cut: never executed if it was not yet, and never completed.
    Drop,
}

/// Which event [`Gate::cut_after`] is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Submit,
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// The request that a gate is asked about.
#[derive(Clone, Copy, Debug)]
pub struct GateContext<'a> {
    /// The same at every question about one request, and never given twice in a process.
    pub id: u64,
    pub origin: Origin,
    pub op: &'a Op,
    /// Bytes of the buffers; 0 for all but reads and writes.
    pub len: u64,
    /// Its submit event; `None` before that is recorded, and without a recording.
    pub seq: Option<Seq>,
    /// A write that the disk's limits make atomic.
    pub eligible: bool,
    /// A write of pieces: never whole.
    pub pieces: bool,
    /// Asked before at this point, and answered with [`Verdict::Hold`].
    pub again: bool,
}

impl GateContext<'_> {
    pub fn kind(&self) -> Kind {
        match self.op {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Flush { .. } => Kind::Flush,
            Op::Discard { .. } => Kind::Discard,
            Op::WriteZeroes { .. } => Kind::WriteZeroes,
        }
    }

    /// First byte; `None` for a flush. Of several segments, the first one's.
    pub fn offset(&self) -> Option<u64> {
        match self.op {
            Op::Read { offset } | Op::Write { offset, .. } => Some(*offset),
            Op::Flush { .. } => None,
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.first().map(|s| s.offset)
            }
        }
    }

    /// Does it touch a byte of `offset..offset + len`? A flush touches none.
    pub fn touches(&self, offset: u64, len: u64) -> bool {
        let meets =
            |at: u64, n: u64| at < offset.saturating_add(len) && offset < at.saturating_add(n);
        match self.op {
            Op::Read { offset } | Op::Write { offset, .. } => meets(*offset, self.len),
            Op::Flush { .. } => false,
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                segments.iter().any(|s| meets(s.offset, s.len))
            }
        }
    }
}

/// Decides what becomes of each request. Called from the threads of the queues, at the same time
/// from several, and never while a lock of the store is held: it may call back into the store
/// (to freeze it, say).
pub trait Gate: Send + Sync {
    /// Queue `n` exists from now on; `waker` makes it ask again. A queue that is asked for anew
    /// (after a reset) comes with a new waker.
    fn attach(&self, _n: u16, _waker: Waker) {}

    /// A request came: the first word about it, whatever becomes of it. It has no `seq` yet.
    fn arrived(&self, _ctx: &GateContext<'_>) {}

    /// Right before the request's submit or complete event is recorded: shall the power be cut
    /// right after it? The event is then the last of the order, exactly, and [`Gate::cut`] is
    /// called. Asked once for each request and point, `again` is never set. At
    /// [`Point::Submit`] the request has no `seq` yet. Never asked without a recording.
    fn cut_after(&self, _ctx: &GateContext<'_>, _point: Point) -> bool {
        false
    }

    /// The power was cut by the answer to [`Gate::cut_after`]; `after` is the last event.
    fn cut(&self, _after: Seq) {}

    fn before_io(&self, ctx: &GateContext<'_>) -> Verdict;

    /// The request was executed, whatever came of it.
    fn before_completion(&self, ctx: &GateContext<'_>) -> Verdict;

    /// A held request is let go by [`StoreQueue::drain`], and nothing may hold it any more: what
    /// was decided about it before it was held. [`Verdict::Hold`] is as `Go`.
    fn released(&self, _ctx: &GateContext<'_>) -> Verdict {
        Verdict::Go
    }

    /// A request is over: completed or dropped. The last word about this `id`.
    fn ended(&self, _id: u64) {}
}

/// Holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysGo;

impl Gate for AlwaysGo {
    fn before_io(&self, _: &GateContext<'_>) -> Verdict {
        Verdict::Go
    }

    fn before_completion(&self, _: &GateContext<'_>) -> Verdict {
        Verdict::Go
    }
}

/// Makes one queue ask its gate again about what it holds. Cheap to clone, from any thread, and
/// harmless after the queue is gone.
#[derive(Clone)]
pub struct Waker(Arc<WakerInner>);

struct WakerInner {
    fd: Arc<OwnedFd>,
    woken: Flag,
}

impl Waker {
    /// # Errors
    /// The process has too many open files.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker::ringing(Arc::new(fd)))
    }

    /// Rings this eventfd.
    pub fn ringing(fd: Arc<OwnedFd>) -> Self {
        Waker(Arc::new(WakerInner { fd, woken: Flag::new() }))
    }

    pub fn wake(&self) {
        self.0.woken.wake(|| {
            // Fails only where the counter is full: then it is readable anyway.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
        });
    }

    /// Was it woken since the last call?
    pub fn take(&self) -> bool {
        self.0.woken.take()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("woken", &self.0.woken).finish()
    }
}

/// What [`Engine::begin`] and [`Engine::finish`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Go on.
    Next(T),
    /// This was the last event: the power is off.
    Last(T),
    /// The power was off before.
    Off,
}

/// How far [`Engine::execute`] came.
#[derive(Debug)]
pub enum Moved {
    Done(Result<(), Failure>),
    /// The bytes are on their way, and the request has to stay: [`Engine::moved`] tells.
    Later,
}

impl From<Result<(), Failure>> for Moved {
    fn from(result: Result<(), Failure>) -> Moved {
        Moved::Done(result)
    }
}

/// One way of moving the bytes of one queue: what a store gives to a [`GatedQueue`].
pub trait Engine: Send {
    /// What the engine remembers about a request between its steps.
    type Ticket: Send;

    /// Takes the request. `last`: cut the power right after its event.
    ///
    /// # Errors
    /// The request ends with it; nothing was recorded, and `finish` is not called.
    fn begin(&mut self, request: &Request, last: bool) -> Result<Step<Self::Ticket>, Failure>;

    /// Can the power be cut between two events? Only then is [`Gate::cut_after`] asked.
    fn can_cut(&self) -> bool {
        false
    }

    /// Is it to be noted that a request's bytes moved ([`Past::Moved`](super::Past))? Where they are of
    /// a disk that executes a request again, not where the recording knows.
    fn notes_moves(&self) -> bool {
        true
    }

    /// Its submit event; the first, where it is recorded as several.
    fn seq(&self, _ticket: &Self::Ticket) -> Option<Seq> {
        None
    }

    /// Its last submit event: the one that a cut at [`Point::Submit`] lies after.
    fn last_seq(&self, ticket: &Self::Ticket) -> Option<Seq> {
        self.seq(ticket)
    }

    /// Moves the bytes, unless they moved before ([`Past`](super::Past)). `stale`: a read shall show
    /// the version before the newest. `key`: under which [`Engine::moved`] tells the end, where that
    /// comes later. An error ends the request, by way of `finish`.
    fn execute(
        &mut self,
        request: &mut Request,
        ticket: &mut Self::Ticket,
        stale: bool,
        key: usize,
    ) -> Moved;

    /// Sends on its way what `execute` left, and tells what ended, as the kernel says it. `wait`: at
    /// least one. Without `wait` it sees to it that [`StoreQueue::wake_fd`] is readable when another
    /// ends.
    fn moved(&mut self, _wait: bool, _f: &mut dyn FnMut(usize, i32)) {}

    /// What that means for the request; what is not done yet is done now.
    ///
    /// # Errors
    /// As of `execute`.
    fn outcome(&mut self, _request: &mut Request, _moved: i32) -> Result<(), Failure> {
        Ok(())
    }

    /// Records how it ended. `last`: cut the power right after. The answer's value is the event;
    /// without a recording there is none.
    ///
    /// # Errors
    /// Replaces `result`.
    fn finish(
        &mut self,
        _request: &Request,
        _ticket: Self::Ticket,
        _result: &Result<(), Failure>,
        _last: bool,
    ) -> Result<Step<Seq>, Failure> {
        Ok(Step::Next(Seq(0)))
    }

    /// The power is off: nothing may be executed any more.
    fn off(&self) -> bool {
        false
    }

    /// A request that will not be finished (its queue stops, or the power is off).
    fn forget(&mut self, _ticket: Self::Ticket) {}
}

/// A request between two steps.
struct Held<T> {
    id: u64,
    request: Request,
    ticket: T,
    eligible: bool,
    /// How its execution ended; `None`: not executed.
    executed: Option<Result<(), Failure>>,
}

impl<T> Held<T> {
    fn context(&self, seq: Option<Seq>, again: bool) -> GateContext<'_> {
        GateContext {
            id: self.id,
            origin: self.request.origin,
            op: &self.request.op,
            len: self.request.buffers.len() as u64,
            seq,
            eligible: self.eligible,
            pieces: !self.request.pieces.is_empty(),
            again,
        }
    }
}

/// A [`StoreQueue`] that takes an [`Engine`]'s requests through a [`Gate`].
pub struct GatedQueue<E: Engine> {
    engine: E,
    gate: Arc<dyn Gate>,
    profile: Option<Profile>,
    waker: Waker,
    held: Vec<Held<E::Ticket>>,
    /// Those whose bytes are on their way.
    moving: Slab<Held<E::Ticket>>,
    ended: Vec<(usize, i32)>,
    done: Vec<Done>,
    /// Names the next request: no other queue's, of whatever time.
    next: u64,
}

/// Requests that one queue may name.
const NAMES: u64 = 1 << 40;

impl<E: Engine> fmt::Debug for GatedQueue<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatedQueue")
            .field("held", &self.held.len())
            .field("done", &self.done.len())
            .finish_non_exhaustive()
    }
}

impl<E: Engine> GatedQueue<E> {
    /// `profile` says which writes are eligible; without one, none is.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new(
        n: u16,
        engine: E,
        gate: Arc<dyn Gate>,
        profile: Option<Profile>,
    ) -> io::Result<Self> {
        Ok(GatedQueue::woken_by(n, Waker::new()?, engine, gate, profile))
    }

    /// The same with a waker that the engine rings, too.
    pub fn woken_by(
        n: u16,
        waker: Waker,
        engine: E,
        gate: Arc<dyn Gate>,
        profile: Option<Profile>,
    ) -> Self {
        static QUEUES: AtomicU64 = AtomicU64::new(0);
        gate.attach(n, waker.clone());
        GatedQueue {
            engine,
            gate,
            profile,
            waker,
            held: Vec::new(),
            moving: Slab::new(),
            ended: Vec::new(),
            done: Vec::new(),
            next: QUEUES.fetch_add(1, Ordering::Relaxed) * NAMES,
        }
    }

    pub fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    fn eligible(&self, request: &Request) -> bool {
        match (&request.op, &self.profile) {
            (Op::Write { offset, atomic, .. }, Some(profile)) if request.pieces.is_empty() => {
                profile.eligible(*offset, request.buffers.len() as u64, *atomic)
            }
            _ => false,
        }
    }

    fn drop_it(&mut self, held: Held<E::Ticket>) {
        self.engine.forget(held.ticket);
        self.gate.ended(held.id);
    }

    /// Takes a request as far as the gate lets it go. `asked`: it stands where the gate said
    /// `Hold` before. `decided`: the gate is not asked, this was its answer.
    fn advance(&mut self, held: Held<E::Ticket>, asked: bool, decided: Option<Verdict>) {
        if held.executed.is_some() {
            return self.complete(held, asked, decided.is_some());
        }
        let seq = self.engine.seq(&held.ticket);
        let verdict = match decided {
            Some(Verdict::Hold) => Verdict::Go,
            Some(verdict) => verdict,
            None => self.gate.before_io(&held.context(seq, asked)),
        };
        let Some(mut held) = self.judged(held, verdict) else { return };
        if held.executed.is_none() {
            let (stale, key) = (verdict == Verdict::Stale, self.moving.vacant_key());
            match self.engine.execute(&mut held.request, &mut held.ticket, stale, key) {
                Moved::Done(result) => held.executed = Some(self.noted(&held, result)),
                Moved::Later => {
                    self.moving.insert(held);
                    return;
                }
            }
        }
        self.complete(held, false, decided.is_some());
    }

    /// The request, if it goes on after this verdict; failed by now, where it is to fail.
    fn judged(&mut self, mut held: Held<E::Ticket>, verdict: Verdict) -> Option<Held<E::Ticket>> {
        match verdict {
            // Asked after the gate, which may have cut the power.
            _ if self.engine.off() => self.drop_it(held),
            Verdict::Drop => self.drop_it(held),
            Verdict::Hold => self.held.push(held),
            Verdict::Fail => {
                held.executed = Some(Err(Failure::Injected));
                return Some(held);
            }
            Verdict::Go | Verdict::Stale => return Some(held),
        }
        None
    }

    fn noted(&self, held: &Held<E::Ticket>, moved: Result<(), Failure>) -> Result<(), Failure> {
        if self.engine.notes_moves() {
            held.request.note.moved(moved.is_ok());
        }
        moved
    }

    /// What ended of that whose bytes were on their way. `release`: no gate holds it any more.
    fn settle(&mut self, wait: bool, release: bool) {
        let mut ended = std::mem::take(&mut self.ended);
        self.engine.moved(wait, &mut |key, result| ended.push((key, result)));
        for (key, result) in ended.drain(..) {
            let mut held = self.moving.remove(key);
            let moved = self.engine.outcome(&mut held.request, result);
            held.executed = Some(self.noted(&held, moved));
            self.complete(held, false, release);
        }
        self.ended = ended;
    }

    /// Takes a request that was executed to its end, if the gate lets it. `asked`: as above.
    /// `release`: it is not asked.
    fn complete(&mut self, held: Held<E::Ticket>, asked: bool, release: bool) {
        let seq = self.engine.seq(&held.ticket);
        let verdict = if release {
            Verdict::Go
        } else {
            self.gate.before_completion(&held.context(seq, asked))
        };
        let Some(held) = self.judged(held, verdict) else { return };
        let last = self.engine.can_cut()
            && self.gate.cut_after(&held.context(seq, false), Point::Complete);
        let Held { id, request, ticket, executed, .. } = held;
        let mut result = executed.unwrap_or(Ok(()));
        match self.engine.finish(&request, ticket, &result, last) {
            Ok(Step::Next(_)) => {}
            Ok(Step::Last(seq)) => {
                self.gate.cut(seq);
                return self.gate.ended(id);
            }
            Ok(Step::Off) => return self.gate.ended(id),
            Err(failure) => result = Err(failure),
        }
        self.gate.ended(id);
        self.done.push(Done { request, result });
    }
}

impl<E: Engine> Drop for GatedQueue<E> {
    fn drop(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.drop_it(held);
        }
        // Their memory is in use until they end.
        while !self.moving.is_empty() {
            self.settle(true, true);
        }
    }
}

impl<E: Engine> StoreQueue for GatedQueue<E> {
    fn submit(&mut self, request: Request) {
        let id = self.next;
        self.next += 1;
        if self.engine.off() {
            return;
        }
        let eligible = self.eligible(&request);
        let context = GateContext {
            id,
            origin: request.origin,
            op: &request.op,
            len: request.buffers.len() as u64,
            seq: None,
            eligible,
            pieces: !request.pieces.is_empty(),
            again: false,
        };
        self.gate.arrived(&context);
        let last = self.engine.can_cut() && self.gate.cut_after(&context, Point::Submit);
        match self.engine.begin(&request, last) {
            Ok(Step::Next(ticket)) => {
                self.advance(Held { id, request, ticket, eligible, executed: None }, false, None);
            }
            Ok(Step::Last(ticket)) => {
                if let Some(seq) = self.engine.last_seq(&ticket) {
                    self.gate.cut(seq);
                }
                self.engine.forget(ticket);
                self.gate.ended(id);
            }
            Ok(Step::Off) => self.gate.ended(id),
            Err(failure) => {
                self.gate.ended(id);
                self.done.push(Done { request, result: Err(failure) });
            }
        }
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        if self.waker.take() {
            for held in std::mem::take(&mut self.held) {
                self.advance(held, true, None);
            }
        }
        if !self.moving.is_empty() {
            self.settle(false, false);
        }
        for done in self.done.drain(..) {
            f(done);
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waker.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.held.len() + self.moving.len() + self.done.len()
    }

    fn drain(&mut self) {
        for held in std::mem::take(&mut self.held) {
            let seq = self.engine.seq(&held.ticket);
            let decided = self.gate.released(&held.context(seq, true));
            self.advance(held, true, Some(decided));
        }
        while !self.moving.is_empty() {
            self.settle(true, true);
        }
    }
}

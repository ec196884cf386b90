//! What happens to requests on purpose while the device runs: stalls, held completions and live
//! faults, and the moment at which the power is cut; and what is seen of writes that say what they
//! are. One [`Gate`] for every store.
//!
//! A request that reaches the gate is asked about twice, before its I/O and before its completion.
//! At each point what was armed against it is found once, in the order in which requests come; then
//! it is held for as long as anything holds it; then it goes, or fails.

mod faults;
mod hold;
mod named;
mod stalls;
#[cfg(test)]
mod tests;

pub use hold::HoldCompletions;
pub(super) use stalls::{counted, kept_whole, matches};

use super::gate::{Gate, GateContext, Point, Verdict, Waker};
use super::power::Power;
use faults::Faults;
use hold::Hold;
use named::Observed;
use stalls::Stalls;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tornblk_model::crash::{Fault, Profile};
use tornblk_model::event::{Disk, Seq};
use tornblk_proto::{Match, NamedWrites, StallStatus, StallWhen};

#[derive(Debug)]
pub(super) struct LiveGate {
    pub(super) power: Power,
    profile: Profile,
    disk: Disk,
    queues: Mutex<HashMap<u16, Wake>>,
    /// Something may hold or fail requests: else nobody needs the lock.
    active: AtomicBool,
    state: Mutex<State>,
    /// Something is held by `hold`, or `over` was set.
    held: Condvar,
    tokens: AtomicU64,
    named: Observed,
}

#[derive(Debug)]
struct State {
    stalls: Stalls,
    faults: Faults,
    hold: Hold,
    /// What becomes of a request once no stall holds it.
    decided: HashMap<u64, Verdict>,
    over: bool,
}

/// How a queue is woken: it shall ask again, and whoever waits for it shall notice.
#[derive(Debug, Default)]
struct Wake {
    waker: Option<Waker>,
    bell: Option<Arc<OwnedFd>>,
}

/// Lets held completions go when nothing comes any more. Ends with its owner.
#[derive(Debug)]
pub(super) struct Idler {
    gate: Arc<LiveGate>,
    thread: Option<JoinHandle<()>>,
}

impl LiveGate {
    /// `profile` says which writes are eligible.
    pub(super) fn new(seed: u64, mode: HoldCompletions, profile: Profile, disk: Disk) -> LiveGate {
        let hold = Hold::new(mode, seed);
        LiveGate {
            profile,
            disk,
            power: Power::default(),
            queues: Mutex::default(),
            active: AtomicBool::new(hold.active()),
            state: Mutex::new(State {
                stalls: Stalls::default(),
                faults: Faults::new(seed),
                hold,
                decided: HashMap::new(),
                over: false,
            }),
            held: Condvar::new(),
            tokens: AtomicU64::new(1),
            named: Observed::default(),
        }
    }

    /// `bell` is rung (an eventfd) whenever queue `n` has to be reaped.
    pub(super) fn hang_bell(&self, n: u16, bell: Arc<OwnedFd>) {
        lock(&self.queues).entry(n).or_default().bell = Some(bell);
    }

    /// A number that was never given before.
    pub(super) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn stall(&self, owner: u64, which: Match, when: StallWhen) -> u64 {
        let token = self.token();
        self.change(|s| s.stalls.add(token, owner, which, when));
        token
    }

    /// `since`: the event after which the `nth` of a fault that the model resolves counts.
    pub(super) fn arm(&self, fault: Fault, since: Option<Seq>) -> u64 {
        let token = self.token();
        self.change(|s| s.faults.add(token, fault, since));
        token
    }

    /// Ends a stall or a fault: how many requests it held. `None`: there is none.
    pub(super) fn release(&self, token: u64) -> Option<u64> {
        let (requests, queues) = self.change(|s| match s.stalls.release(token) {
            None => s.faults.remove(token).then(Default::default),
            stall => stall,
        })?;
        self.wake(&queues);
        Some(requests)
    }

    /// A client is gone: its stalls end.
    pub(super) fn release_all_of(&self, owner: u64) -> u64 {
        let tokens = lock(&self.state).stalls.tokens_of(owner);
        tokens.into_iter().filter_map(|token| self.release(token)).sum()
    }

    pub(super) fn faults(&self) -> Vec<(Fault, Option<Seq>)> {
        lock(&self.state).faults.all()
    }

    pub(super) fn stalls(&self) -> Vec<StallStatus> {
        lock(&self.state).stalls.status()
    }

    /// How the writes that say what they are arrived, from the start on.
    pub(super) fn named(&self) -> NamedWrites {
        self.named.get()
    }

    /// The front-end is gone, and whatever it had in flight: nobody will ask about it again.
    pub(super) fn forget_requests(&self) {
        self.change(|s| {
            s.stalls.forget_all();
            s.hold.forget_all();
            s.decided.clear();
        });
    }

    fn kept_whole(&self, ctx: &GateContext<'_>) -> bool {
        kept_whole(&self.profile, &self.disk, ctx)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        let active = state.hold.active() || !state.stalls.is_empty() || state.faults.any_live();
        // What is held or decided has to be asked about until it is over.
        self.active.store(active || !state.decided.is_empty(), Ordering::Release);
        result
    }

    fn wake(&self, queues: &HashSet<u16>) {
        let known = lock(&self.queues);
        for wake in queues.iter().filter_map(|n| known.get(n)) {
            if let Some(waker) = &wake.waker {
                waker.wake();
            }
            if let Some(bell) = &wake.bell {
                // Fails only where the counter is full: then it is readable anyway.
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        }
    }
}

impl Gate for LiveGate {
    fn attach(&self, n: u16, waker: Waker) {
        lock(&self.queues).entry(n).or_default().waker = Some(waker);
    }

    fn arrived(&self, ctx: &GateContext<'_>) {
        self.named.arrived(&self.profile, ctx);
    }

    fn cut_after(&self, ctx: &GateContext<'_>, point: Point) -> bool {
        self.power.cut_after(ctx, point)
    }

    fn cut(&self, after: Seq) {
        self.power.cut(after, self.faults());
    }

    fn before_io(&self, ctx: &GateContext<'_>) -> Verdict {
        self.power.submitted(ctx.id);
        if !self.active.load(Ordering::Acquire) {
            return Verdict::Go;
        }
        let mut state = lock(&self.state);
        if ctx.again {
            if state.stalls.holds(ctx.id) {
                return Verdict::Hold;
            }
            return state.decided.remove(&ctx.id).unwrap_or(Verdict::Go);
        }
        let go = if state.hold.active() { state.hold.arrive(ctx) } else { HashSet::new() };
        let verdict = state.faults.strike(ctx);
        let stalled = state.stalls.meets(ctx, StallWhen::BeforeIo, || self.kept_whole(ctx));
        if stalled && verdict != Verdict::Go {
            state.decided.insert(ctx.id, verdict);
        }
        drop(state);
        self.wake(&go);
        if stalled { Verdict::Hold } else { verdict }
    }

    fn before_completion(&self, ctx: &GateContext<'_>) -> Verdict {
        if !self.active.load(Ordering::Acquire) {
            return Verdict::Go;
        }
        let mut state = lock(&self.state);
        let mut go = HashSet::new();
        if !ctx.again {
            state.stalls.meets(ctx, StallWhen::BeforeCompletion, || self.kept_whole(ctx));
            if state.hold.active() {
                go = state.hold.execute(ctx);
                self.held.notify_all();
            }
        }
        let held = state.stalls.holds(ctx.id) || state.hold.holds(ctx.id);
        drop(state);
        self.wake(&go);
        if held { Verdict::Hold } else { Verdict::Go }
    }

    fn released(&self, ctx: &GateContext<'_>) -> Verdict {
        let (stalled, decided) =
            self.change(|s| (s.stalls.forget(ctx.id), s.decided.remove(&ctx.id)));
        if stalled {
            log::info!(
                "a stalled {:?} request of queue {} was let go: its queue stops or is reset",
                ctx.kind(),
                ctx.origin.queue
            );
        }
        self.ended(ctx.id);
        decided.unwrap_or(Verdict::Go)
    }

    fn ended(&self, id: u64) {
        self.power.ended(id);
        if self.active.load(Ordering::Acquire) {
            self.change(|s| {
                s.stalls.forget(id);
                s.hold.forget(id);
                s.decided.remove(&id);
            });
        }
    }
}

impl Idler {
    /// `None` where no completion is ever held.
    pub(super) fn start(gate: &Arc<LiveGate>) -> std::io::Result<Option<Idler>> {
        if !lock(&gate.state).hold.active() {
            return Ok(None);
        }
        let own = Arc::clone(gate);
        let thread = std::thread::Builder::new()
            .name("tornblk-idle".to_owned())
            .spawn(move || own.idle())?;
        Ok(Some(Idler { gate: Arc::clone(gate), thread: Some(thread) }))
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        lock(&self.gate.state).over = true;
        self.gate.held.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LiveGate {
    fn idle(&self) {
        let mut state = lock(&self.state);
        while !state.over {
            let now = Instant::now();
            match state.hold.idle_at() {
                None => state = self.held.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at > now => {
                    let timed = self.held.wait_timeout(state, at - now);
                    state = timed.unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    let queues = state.hold.let_all_go();
                    drop(state);
                    self.wake(&queues);
                    state = lock(&self.state);
                }
            }
        }
    }
}

/// What these locks guard is whole between two statements: a thread that died left it usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

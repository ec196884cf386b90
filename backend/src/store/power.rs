//! The power switch: on, armed, or cut for good.
//!
//! A cut is armed with a [`Plan`], one at a time. The gate finds the request that it waits for and
//! cuts right after that request's event; the store sees to it that no event follows. From then on
//! [`Power`] only remembers where it was cut, and with which plan.
//!
//! A plan that waits for the submission of the nth request lets those that match pass one at a
//! time, until their events are recorded: so the nth that is counted is the nth on record, and a
//! fault that names the nth write finds the very one that the power was cut after.

use super::gate::{GateContext, Point};
use super::live::{counted, kept_whole, lock, matches};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tornblk_model::crash::{Fault, Profile};
use tornblk_model::event::{Disk, Seq};
use tornblk_proto::Trigger;

/// When to cut, and what shall survive.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) trigger: Trigger,
    /// A state's name, or the choices of one; `None`: drawn.
    pub(super) state: Option<String>,
    pub(super) seed: u64,
    pub(super) profile: Profile,
    pub(super) disk: Disk,
}

/// Where the power was cut.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) plan: Plan,
    pub(super) after: Seq,
    /// What was armed then, and the event after which `nth` of each counts.
    pub(super) faults: Vec<(Fault, Option<Seq>)>,
}

/// Why a cut cannot be armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotArmed {
    Armed,
    Cut(Seq),
}

#[derive(Debug, Default)]
pub(super) struct Power {
    /// A request may be the one: else nobody needs the lock.
    armed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    On,
    Armed(Armed),
    Cut {
        token: u64,
        cut: Arc<Cut>,
    },
}

#[derive(Debug)]
struct Armed {
    token: u64,
    plan: Plan,
    /// Requests that matched.
    seen: u64,
    /// The request whose event shall be the last.
    firing: Option<u64>,
    /// The one that was meant ended without an event: the next that matches is.
    overdue: bool,
    /// The request that was counted, and whose event is not recorded yet.
    turn: Option<u64>,
}

impl Power {
    /// `token` names this plan to [`Power::wait`] and [`Power::disarm`].
    pub(super) fn arm(&self, token: u64, plan: Plan) -> Result<(), NotArmed> {
        let mut state = lock(&self.state);
        match &*state {
            State::Armed(_) => return Err(NotArmed::Armed),
            State::Cut { cut, .. } => return Err(NotArmed::Cut(cut.after)),
            State::On => {}
        }
        let on_request = matches!(plan.trigger, Trigger::Submit(_) | Trigger::Complete(_));
        *state =
            State::Armed(Armed { token, plan, seen: 0, firing: None, overdue: false, turn: None });
        self.armed.store(on_request, Ordering::Release);
        Ok(())
    }

    /// Forgets that plan, unless it was carried out.
    pub(super) fn disarm(&self, token: u64) {
        let mut state = lock(&self.state);
        if matches!(&*state, State::Armed(a) if a.token == token && a.firing.is_none()) {
            *state = State::On;
            self.armed.store(false, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Waits for the cut of that plan; `None`: it was disarmed.
    pub(super) fn wait(&self, token: u64) -> Option<Arc<Cut>> {
        let mut state = lock(&self.state);
        loop {
            match &*state {
                State::Cut { token: by, cut } => return (*by == token).then(|| Arc::clone(cut)),
                State::Armed(a) if a.token == token => {}
                _ => return None,
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn is_cut(&self) -> Option<Arc<Cut>> {
        match &*lock(&self.state) {
            State::Cut { cut, .. } => Some(Arc::clone(cut)),
            _ => None,
        }
    }

    /// Is it this mark that the plan waits for? Then the caller cuts right after it.
    pub(super) fn cut_after_mark(&self, name: &str) -> bool {
        matches!(&*lock(&self.state),
            State::Armed(Armed { plan: Plan { trigger: Trigger::Mark(m), .. }, .. }) if m == name)
    }

    /// Shall this event be the last?
    pub(super) fn cut_after(&self, ctx: &GateContext<'_>, point: Point) -> bool {
        if !self.armed.load(Ordering::Acquire) {
            return false;
        }
        let mut state = lock(&self.state);
        loop {
            let State::Armed(armed) = &mut *state else { return false };
            let which = match (&armed.plan.trigger, point) {
                (Trigger::Submit(which), Point::Submit) => which,
                (Trigger::Complete(which), Point::Complete) => which,
                _ => return false,
            };
            let eligible = kept_whole(&armed.plan.profile, &armed.plan.disk, ctx);
            if !matches(which, ctx, eligible) {
                return false;
            }
            if armed.turn.is_none() && armed.firing.is_none() {
                // Whoever asked for "every one" means the first.
                let fires = counted(which, &mut armed.seen) || armed.overdue;
                if fires {
                    armed.firing = Some(ctx.id);
                } else if point == Point::Submit {
                    armed.turn = Some(ctx.id);
                }
                return fires;
            }
            if point == Point::Complete {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The submission of this request is recorded.
    pub(super) fn submitted(&self, id: u64) {
        if self.armed.load(Ordering::Acquire) {
            self.end_turn(&mut lock(&self.state), id);
        }
    }

    fn end_turn(&self, state: &mut State, id: u64) {
        if let State::Armed(armed) = state
            && armed.turn == Some(id)
        {
            armed.turn = None;
            self.changed.notify_all();
        }
    }

    /// The store cut the power: `after` is the last event.
    pub(super) fn cut(&self, after: Seq, faults: Vec<(Fault, Option<Seq>)>) {
        let mut state = lock(&self.state);
        match std::mem::take(&mut *state) {
            State::Armed(Armed { token, plan, .. }) => {
                *state = State::Cut { token, cut: Arc::new(Cut { plan, after, faults }) };
            }
            other => *state = other,
        }
        self.armed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    pub(super) fn ended(&self, id: u64) {
        if !self.armed.load(Ordering::Acquire) {
            return;
        }
        let mut state = lock(&self.state);
        self.end_turn(&mut state, id);
        if let State::Armed(armed) = &mut *state
            && armed.firing == Some(id)
        {
            armed.firing = None;
            armed.overdue = true;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Op;
    use crate::store::testing::origin;
    use tornblk_proto::{Match, OpKind};

    fn plan(trigger: Trigger) -> Plan {
        let disk = Disk { capacity: 1 << 20, lb_size: 512 };
        Plan { trigger, state: None, seed: 0, profile: Profile::PLAIN, disk }
    }

    fn ctx(id: u64, op: &Op) -> GateContext<'_> {
        GateContext {
            id,
            origin: origin(0),
            op,
            len: 512,
            seq: None,
            eligible: false,
            pieces: false,
            again: false,
        }
    }

    const WRITE: Op = Op::Write { offset: 0, fua: false, atomic: false };

    fn second_write() -> Match {
        Match { op: Some(OpKind::Write), nth: Some(2), ..Match::default() }
    }

    #[test]
    fn only_the_nth_match_at_the_right_point_fires() {
        let power = Power::default();
        assert!(!power.cut_after(&ctx(1, &WRITE), Point::Submit), "nothing is armed");
        power.arm(9, plan(Trigger::Submit(second_write()))).unwrap();
        assert_eq!(power.arm(10, plan(Trigger::Now)), Err(NotArmed::Armed));
        for (id, op, point, fires) in [
            (2, &Op::FLUSH, Point::Submit, false),
            (3, &WRITE, Point::Submit, false),
            (3, &WRITE, Point::Complete, false),
            (4, &WRITE, Point::Submit, true),
        ] {
            assert_eq!(power.cut_after(&ctx(id, op), point), fires, "{id}");
            power.submitted(id);
        }
        power.disarm(9);
        assert!(power.is_cut().is_none(), "it fires: too late to disarm");
        power.cut(Seq(17), Vec::new());
        assert_eq!(power.wait(9).unwrap().after, Seq(17));
        assert_eq!(power.arm(11, plan(Trigger::Now)), Err(NotArmed::Cut(Seq(17))));
        assert!(power.wait(10).is_none());
    }

    #[test]
    fn where_the_nth_got_no_event_the_next_one_is_it() {
        let power = Power::default();
        power.arm(9, plan(Trigger::Submit(second_write()))).unwrap();
        assert!(!power.cut_after(&ctx(1, &WRITE), Point::Submit));
        // It was refused, for want of space, before it was recorded.
        power.ended(1);
        assert!(power.cut_after(&ctx(2, &WRITE), Point::Submit));
        power.ended(2);
        assert!(power.cut_after(&ctx(3, &WRITE), Point::Submit));
        power.cut(Seq(5), Vec::new());
        power.ended(3);
        assert!(power.is_cut().is_some());
    }

    #[test]
    fn those_that_match_are_counted_one_at_a_time() {
        let power = Power::default();
        power.arm(9, plan(Trigger::Submit(second_write()))).unwrap();
        assert!(!power.cut_after(&ctx(1, &WRITE), Point::Submit));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| power.cut_after(&ctx(2, &WRITE), Point::Submit));
            // What does not match waits for nobody.
            assert!(!power.cut_after(&ctx(3, &Op::FLUSH), Point::Submit));
            assert!(!waiting.is_finished());
            power.submitted(1);
            assert!(waiting.join().unwrap());
        });
    }
}

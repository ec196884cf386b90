//! What the control socket asks for.

use super::recorded::{failed, state_name};
use super::{LIVE, Machine, MachineError, Recorded, Shared};
use crate::store::ResizeError;
use crate::store::live::lock;
use crate::store::power::{NotArmed, Plan};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tornblk_model::crash::{Fault, FaultKind, StateName};
use tornblk_model::event::{ResetCause, Seq};
use tornblk_proto::{Crashed, Match, StallWhen, StateShown, Trigger};

/// Stalls, and faults, at a time: each request is held against all of them.
const MANY: usize = 1000;

impl Machine {
    /// Names this moment in the recording: → its event.
    ///
    /// # Errors
    /// There is no recording, it cannot be written, or it does not go on: the power is cut, or a
    /// state is shown.
    pub fn mark(&self, name: &str) -> Result<u64, MachineError> {
        if let Some(trace) = &self.shared.trace {
            return Ok(trace.mark(name)?.0);
        }
        let recorded = self.recorded("a mark")?;
        self.on_the_live_disk()?;
        let power = &self.shared.gate.power;
        if power.cut_after_mark(name) {
            let event = recorded.mark_last(name)?;
            power.cut(event, self.shared.gate.faults());
            return Ok(event.0);
        }
        Ok(recorded.mark(name)?.0)
    }

    /// Holds requests from now on: → a token. Ends with [`Machine::release`], or when its `owner`
    /// is gone.
    ///
    /// # Errors
    /// There are too many.
    pub fn stall(&self, owner: u64, which: Match, when: StallWhen) -> Result<u64, MachineError> {
        if self.shared.gate.stalls().len() >= MANY {
            return Err(MachineError::TooMany { what: "stalls", n: MANY });
        }
        Ok(self.shared.gate.stall(owner, which, when))
    }

    /// Ends a stall or a fault: → how many requests it held.
    ///
    /// # Errors
    /// There is no such token.
    pub fn release(&self, token: u64) -> Result<u64, MachineError> {
        self.shared.gate.release(token).ok_or(MachineError::NoToken(token))
    }

    /// Looks at the size of the image again: → bytes. The front-end is told.
    ///
    /// # Errors
    /// It has not grown, or the disk keeps its size.
    pub fn resize(&self) -> Result<u64, MachineError> {
        if self.shared.options.divided {
            return Err(MachineError::Resize(ResizeError::Divided));
        }
        let capacity = self.shared.beneath().store.resize().map_err(MachineError::Resize)?;
        self.shared.capacity.fetch_max(capacity, Ordering::AcqRel);
        log::info!("the disk has {capacity} bytes now");
        // Fails only where the counter is full: then it is readable anyway.
        let _ = rustix::io::write(&self.shared.grown, &1u64.to_ne_bytes());
        Ok(capacity)
    }

    /// A client of the control socket is gone: what it held goes on.
    pub fn client_gone(&self, owner: u64) {
        let requests = self.shared.gate.release_all_of(owner);
        if requests > 0 {
            log::info!("a control client left: {requests} requests that it had stalled go on");
        }
    }

    /// Arms a fault, as on the command line: → a token.
    ///
    /// # Errors
    /// It is not understood, lies beyond the disk, or needs a recording.
    pub fn fault(&self, spec: &str) -> Result<u64, MachineError> {
        self.arm_fault(spec.parse().map_err(MachineError::Malformed)?)
    }

    pub(super) fn arm_fault(&self, fault: Fault) -> Result<u64, MachineError> {
        let capacity = self.shared.disk().capacity;
        if fault.range.is_some_and(|(offset, len)| offset.saturating_add(len) > capacity) {
            return Err(MachineError::BeyondTheEnd { fault: fault.to_string(), capacity });
        }
        if !fault.kind.is_live() || fault.kind == FaultKind::StaleRead {
            self.recorded(&format!("the fault {fault}"))?;
        }
        if self.shared.gate.faults().len() >= MANY {
            return Err(MachineError::TooMany { what: "faults", n: MANY });
        }
        let since = self.shared.recorded.as_ref().and_then(Recorded::last_event);
        Ok(self.shared.gate.arm(fault, since))
    }

    /// Arms a cut of the power, or cuts it right away: → a token for [`Machine::wait_for_crash`].
    ///
    /// `state` is the name of a state (`lb512/p120:all,-w97`), or only what it chooses (`none`,
    /// `all,-w97`, `r1.7.0`) at whichever event the power is cut; without one it is drawn.
    /// `seed` and `profile` are those of the command line unless given.
    ///
    /// # Errors
    /// There is no recording, a crash is armed already, the power is cut, a state is shown, or the
    /// profile or state is none.
    pub fn arm_crash(
        &self,
        at: Trigger,
        state: Option<String>,
        seed: Option<u64>,
        profile: Option<String>,
    ) -> Result<u64, MachineError> {
        let recorded = self.recorded("a crash")?;
        let options = &self.shared.options;
        let profile = match profile {
            None => options.profile.clone(),
            Some(name) => name.parse().map_err(MachineError::Malformed)?,
        };
        profile.check(&self.shared.disk).map_err(MachineError::Malformed)?;
        if let Some(state) = &state {
            state_name(state, &profile, Seq(0)).map_err(MachineError::Malformed)?;
        }
        self.on_the_live_disk()?;
        // A cut is for good: nothing could be shown after it.
        recorded.base_is_there()?;
        let gate = &self.shared.gate;
        let token = gate.token();
        let now = at == Trigger::Now;
        let (seed, disk) = (seed.unwrap_or(options.seed), self.shared.disk.clone());
        let plan = Plan { trigger: at, state, seed, profile, disk };
        gate.power.arm(token, plan).map_err(|e| match e {
            NotArmed::Armed => MachineError::Armed,
            NotArmed::Cut(after) => MachineError::Cut(after),
        })?;
        if now {
            gate.power.cut(recorded.freeze(), gate.faults());
        }
        Ok(token)
    }

    /// Waits until the power is cut, and says what is left.
    ///
    /// # Errors
    /// It was disarmed, or no state could be made.
    pub fn wait_for_crash(&self, token: u64) -> Result<Crashed, MachineError> {
        self.shared.gate.power.wait(token).ok_or(MachineError::Disarmed)?;
        let resolution = self.shared.resolution().ok_or(MachineError::Disarmed)?;
        resolution.answer.clone().map_err(MachineError::Failed)
    }

    /// Forgets a crash that was not carried out yet.
    pub fn disarm(&self, token: u64) {
        self.shared.gate.power.disarm(token);
    }

    /// Shows a state of the recording beneath the guest, or the disk as it is (`live`).
    ///
    /// # Errors
    /// There is no recording or no such state, requests are in flight, or the power is cut.
    pub fn use_state(&self, name: &str) -> Result<StateShown, MachineError> {
        let shared = &self.shared;
        if let Some(states) = &shared.states {
            let _one = lock(&shared.exchanging);
            shared.idle()?;
            return self.use_state_of(states, name);
        }
        let recorded = self.recorded("use-state")?;
        let _one = lock(&shared.exchanging);
        let cut = shared.gate.power.is_cut();
        if let Some(cut) = &cut
            && !lock(&shared.view).restarted
        {
            return Err(MachineError::Off(cut.after));
        }
        // Before the work, to say no at once; and again when nothing can come any more.
        shared.idle()?;
        if name == LIVE {
            if let Some(cut) = cut {
                return Err(MachineError::Cut(cut.after));
            }
            if lock(&shared.view).state.is_some() {
                let live = recorded.live();
                // The queues moved on while the guest was elsewhere: what they showed is over.
                live.reset(ResetCause::QueueStop, None);
                shared.exchange(live, Shared::idle)?;
            }
            let mut view = lock(&shared.view);
            (view.state, view.nonce) = (None, None);
            return Ok(StateShown { name: LIVE.to_owned(), nonce: 0, fingerprint: None });
        }
        let content = recorded
            .history()?
            .build(&StateName(name.to_owned()))
            .map_err(MachineError::NoState)?;
        let store = recorded.show(content)?;
        if !shared.options.read_only {
            store.writable().map_err(failed)?;
        }
        shared.exchange(store, Shared::idle)?;
        Ok(self.shown(name, None))
    }

    /// A state is shown now: gives it a nonce.
    pub(super) fn shown(&self, name: &str, fingerprint: Option<String>) -> StateShown {
        let shared = &self.shared;
        // 0 is for the live disk.
        let nonce = match shared.next_nonce.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff {
            0 => shared.next_nonce.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff,
            n => n,
        };
        let mut view = lock(&shared.view);
        (view.state, view.nonce) = (Some(name.to_owned()), Some(nonce));
        StateShown { name: name.to_owned(), nonce, fingerprint }
    }

    /// A front-end came: after a power cut it sees what that left. `true`: it does now.
    pub(super) fn restart(&self) -> bool {
        let shared = &self.shared;
        let _one = lock(&shared.exchanging);
        if lock(&shared.view).restarted {
            return false;
        }
        let Some(resolution) = shared.resolution() else { return false };
        let Some((state, store)) = &resolution.shown else {
            if let Err(problem) = &resolution.answer {
                log::warn!("no request is answered: {problem}");
            }
            return false;
        };
        // What was in flight died with the power.
        if shared.exchange(Arc::clone(store), |_| Ok(())).is_err() {
            return false;
        }
        if let Some(recorded) = &shared.recorded {
            recorded.power_is_back();
        }
        let mut view = lock(&shared.view);
        view.restarted = true;
        view.state = Some(state.clone());
        log::info!("the disk starts again after the power cut, as {state}");
        true
    }

    fn recorded(&self, what: &str) -> Result<&Recorded, MachineError> {
        if self.shared.states.is_some() {
            return Err(MachineError::OnlyStates(what.to_owned()));
        }
        if self.shared.trace.is_some() {
            return Err(MachineError::NeedsData(what.to_owned()));
        }
        let recorded = self.shared.recorded.as_ref();
        recorded.ok_or_else(|| MachineError::NeedsRecording(what.to_owned()))
    }

    fn on_the_live_disk(&self) -> Result<(), MachineError> {
        if let Some(cut) = self.shared.gate.power.is_cut() {
            return Err(MachineError::Cut(cut.after));
        }
        match &lock(&self.shared.view).state {
            Some(state) => Err(MachineError::Shown(state.clone())),
            None => Ok(()),
        }
    }
}

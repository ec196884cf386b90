//! What is said to the host, in order, by one thread that writes.
//!
//! Marks that come while an earlier message is being written are gathered into one message: a
//! round trip costs a millisecond and more where the guest's processor is emulated.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::port::Link;
use super::{Error, Result};
use crate::channel::{MarkText, ToHost, encode};
use crate::race::{DeviceAnswer, DeviceAsk};

/// Marks in one message, at most.
const MARKS: usize = 1024;
/// How long an acknowledgement may take before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(30);

/// The messages that wait to be written, and the state of the marks.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// For the thread that writes.
    wake: Condvar,
    /// For those who wait for an acknowledgement.
    acked: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Out>,
    /// Batches of marks numbered so far in this workload.
    numbered: u64,
    acked: u64,
    /// The `Run` whose workload runs, and the one that was told to stop.
    running: Option<u64>,
    stopped: Option<u64>,
    closed: bool,
    /// Questions so far, and the answers that nobody took yet.
    asked: u64,
    answers: HashMap<u64, DeviceAnswer>,
}

#[derive(Debug)]
enum Out {
    Message(ToHost),
    Marks(u64, Vec<MarkText>),
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn say(&self, message: ToHost) {
        self.lock().queue.push_back(Out::Message(message));
        self.wake.notify_one();
    }

    /// Sends marks, in this order, and says in which batch: [`Outbox::wait`] waits for it.
    pub fn mark(&self, marks: Vec<MarkText>) -> u64 {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(Out::Marks(number, batch)) = state.queue.back_mut()
            && batch.len() + marks.len() <= MARKS
        {
            batch.extend(marks);
            return *number;
        }
        state.numbered += 1;
        state.queue.push_back(Out::Marks(state.numbered, marks));
        self.wake.notify_one();
        state.numbered
    }

    /// Waits until a batch is recorded. An error where nobody will ever say so.
    pub fn wait(&self, batch: u64) -> Result<()> {
        let mut state = self.lock();
        while state.acked < batch {
            if state.closed {
                return Err(Error::Refused("the host has closed the channel".into()));
            }
            if state.is_stopped() {
                return Err(Error::Refused("the host has stopped the workload".into()));
            }
            let (guard, timeout) =
                self.acked.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() && state.acked < batch {
                let text = format!("waiting for the host to record mark {batch}");
                state.queue.push_back(Out::Message(ToHost::Progress { text }));
                self.wake.notify_one();
            }
        }
        Ok(())
    }

    /// Asks something of the disk under test, and waits for the answer. An error where none will come.
    pub fn ask(&self, what: DeviceAsk) -> Result<DeviceAnswer> {
        let mut state = self.lock();
        state.asked += 1;
        let ask = state.asked;
        state.queue.push_back(Out::Message(ToHost::Ask { ask, what }));
        self.wake.notify_one();
        loop {
            if let Some(answer) = state.answers.remove(&ask) {
                return Ok(answer);
            }
            if state.closed || state.is_stopped() {
                return Err(Error::Refused("the host does not answer any more".into()));
            }
            state = self.acked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The host has answered.
    pub fn answered(&self, ask: u64, answer: DeviceAnswer) {
        self.lock().answers.insert(ask, answer);
        self.acked.notify_all();
    }

    /// The last batch that is recorded.
    pub fn last_acked(&self) -> u64 {
        self.lock().acked
    }

    /// Begins to count marks for the workload of `Run` number `id`.
    pub fn begin(&self, id: u64) {
        let mut state = self.lock();
        state.numbered = 0;
        state.acked = 0;
        state.running = Some(id);
    }

    pub fn end(&self) {
        self.lock().running = None;
    }

    pub fn is_stopped(&self) -> bool {
        let state = self.lock();
        state.closed || state.is_stopped()
    }

    /// The host has recorded marks up to this batch.
    pub fn acknowledge(&self, batch: u64) {
        let mut state = self.lock();
        // A higher number belongs to an earlier workload that did not wait for its last marks.
        if batch <= state.numbered {
            state.acked = state.acked.max(batch);
        }
        self.acked.notify_all();
    }

    /// The host wants the workload of `Run` number `id` to end.
    pub fn stop(&self, id: u64) {
        self.lock().stopped = Some(id);
        self.acked.notify_all();
    }

    /// Nobody reads or acknowledges any more. [`Outbox::write_to`] ends.
    pub fn close(&self) {
        self.lock().closed = true;
        self.acked.notify_all();
        self.wake.notify_all();
    }

    /// Writes what is said, until [`Outbox::close`] or the link ends.
    pub fn write_to(&self, link: &dyn Link) {
        loop {
            let next = {
                let mut state = self.lock();
                loop {
                    if let Some(next) = state.queue.pop_front() {
                        break next;
                    }
                    if state.closed {
                        return;
                    }
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let line = match next {
                // A line of its own before it: what an earlier host left unread may end anywhere.
                Out::Message(hello @ ToHost::Hello { .. }) => {
                    let mut line = vec![b'\n'];
                    line.extend(encode(&hello));
                    line
                }
                Out::Message(message) => encode(&message),
                Out::Marks(mark, marks) => encode(&ToHost::Mark { mark, marks }),
            };
            if !link.send(&line) {
                self.close();
                return;
            }
        }
    }
}

impl State {
    fn is_stopped(&self) -> bool {
        self.running.is_some() && self.running == self.stopped
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn phase(name: &str) -> MarkText {
        MarkText::Phase { name: name.into() }
    }

    #[test]
    fn marks_that_wait_travel_together_and_in_order() {
        let outbox = Outbox::default();
        outbox.begin(1);
        assert_eq!(outbox.mark(vec![phase("a")]), 1);
        assert_eq!(outbox.mark(vec![phase("b"), phase("c")]), 1);
        outbox.say(ToHost::Progress { text: "between".into() });
        assert_eq!(outbox.mark(vec![phase("d")]), 2);
        let state = outbox.lock();
        let [Out::Marks(1, first), Out::Message(_), Out::Marks(2, second)] =
            &state.queue.iter().collect::<Vec<_>>()[..]
        else {
            panic!("{:?}", state.queue)
        };
        assert_eq!(first, &[phase("a"), phase("b"), phase("c")]);
        assert_eq!(second, &[phase("d")]);
    }

    #[test]
    fn an_acknowledgement_of_an_earlier_workload_is_not_one_of_this() {
        let outbox = Outbox::default();
        outbox.begin(1);
        for _ in 0..3 {
            outbox.mark(vec![phase("x")]);
            outbox.lock().queue.clear();
        }
        outbox.begin(2);
        let batch = outbox.mark(vec![phase("y")]);
        outbox.acknowledge(3);
        assert_eq!(outbox.last_acked(), 0);
        outbox.acknowledge(batch);
        outbox.wait(batch).unwrap();
    }

    #[test]
    fn stop_ends_the_wait_of_its_own_workload_only() {
        let outbox = Outbox::default();
        outbox.stop(4);
        outbox.begin(5);
        assert!(!outbox.is_stopped());
        let batch = outbox.mark(vec![phase("x")]);
        outbox.stop(5);
        let e = outbox.wait(batch).unwrap_err();
        assert_eq!(e.to_string(), "the host has stopped the workload");
    }
}

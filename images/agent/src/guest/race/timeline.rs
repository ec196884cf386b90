//! Who did what, in its order: what a finding is told with.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Lines that are kept.
const KEPT: usize = 400;
/// Lines that go with a finding.
const TOLD: usize = 40;

#[derive(Debug)]
pub struct Timeline {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    lines: VecDeque<String>,
    /// That were ever told.
    steps: u64,
}

impl Default for Timeline {
    fn default() -> Timeline {
        let state = State { since: Instant::now(), lines: VecDeque::new(), steps: 0 };
        Timeline { state: Mutex::new(state) }
    }
}

impl Timeline {
    /// A round begins: what was before is of no interest any more.
    pub fn begin(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.since = Instant::now();
        state.lines.clear();
    }

    /// This thread does, or did, something.
    pub fn push(&self, text: &str) {
        let thread = std::thread::current();
        let who = thread.name().unwrap_or("?");
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = state.since.elapsed().as_micros() as f64 / 1000.0;
        state.steps += 1;
        if state.lines.len() == KEPT {
            state.lines.pop_front();
        }
        state.lines.push_back(format!("{at:9.2} ms  {who:<10} {text}"));
    }

    /// How many there were so far: more, when somebody gets on.
    pub fn steps(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).steps
    }

    /// The last of it.
    pub fn tell(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = state.lines.len().saturating_sub(TOLD);
        state.lines.iter().skip(skip).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_told_in_their_order() {
        let timeline = Timeline::default();
        (0..KEPT + 5).for_each(|n| timeline.push(&format!("step {n}")));
        let told = timeline.tell();
        assert_eq!(told.len(), TOLD);
        assert!(told[TOLD - 1].ends_with(&format!("step {}", KEPT + 4)), "{}", told[TOLD - 1]);
        assert!(told[0].contains("the_last_lines"), "who it was: {}", told[0]);
        timeline.begin();
        assert!(timeline.tell().is_empty());
    }
}

//! Threads that may never come back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::guest::{Error, Result};

/// A thread of a race. Not joined when dropped: the kernel may keep it for ever.
#[derive(Debug)]
pub struct Task<T> {
    name: String,
    /// Thread id; 0 until it runs.
    tid: Arc<AtomicI32>,
    answer: Receiver<T>,
}

/// Why a task has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It is still at it: its kernel stack, the innermost function first; empty where the kernel
    /// does not tell.
    Stuck(String),
    /// It panicked.
    Gone,
}

/// What a call that may have to wait for somebody was seen to do.
#[derive(Debug)]
pub enum Seen<T> {
    Returned(T),
    /// It sleeps in the kernel, there.
    Asleep(String),
    /// Neither in that time; where in the kernel it was last.
    Neither(String),
}

/// How often a task is looked at.
const LOOK: Duration = Duration::from_millis(5);

impl<T: Send + 'static> Task<T> {
    /// `name` is what the timeline calls it: ten letters at most.
    pub fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<Task<T>> {
        let (sender, answer) = channel();
        let tid = Arc::new(AtomicI32::new(0));
        let own = Arc::clone(&tid);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                own.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
                // Nobody waits any more: nothing to be told.
                let _ = sender.send(work());
            })
            .map_err(Error::system(format!("cannot start the thread {name}")))?;
        Ok(Task { name: name.into(), tid, answer })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its answer that long. May be asked again where it is stuck.
    pub fn wait(&self, time: Duration) -> std::result::Result<T, NoAnswer> {
        match self.answer.recv_timeout(time) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Stuck(self.stack())),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Gone),
        }
    }

    /// Is it seen asleep in the kernel, within that time? A thread that has not come to its call yet, or
    /// is on its way back, is not.
    pub fn is_asleep(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.asleep().is_none() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Where in the kernel it is: `a < b < c`.
    pub fn stack(&self) -> String {
        stack_of(Path::new(&self.folder()))
    }

    fn folder(&self) -> String {
        format!("/proc/self/task/{}", self.tid.load(Ordering::Acquire))
    }

    /// Where in the kernel it sleeps. `None`: it runs, or waits for a processor, or for another thread
    /// of the agent (a futex: a mark is under way).
    pub fn asleep(&self) -> Option<String> {
        let sleeps = || {
            let stat = std::fs::read_to_string(format!("{}/stat", self.folder()));
            stat.is_ok_and(|stat| is_asleep(&stat))
        };
        // Before and after: it may have been woken while its stack was read.
        let stack = sleeps().then(|| self.stack())?;
        (!stack.is_empty() && !stack.contains("futex") && sleeps()).then_some(stack)
    }

    /// Waits until it has answered, or has slept for `still` at one place of the kernel that is `right`:
    /// for `time` at most.
    pub fn settle(&self, time: Duration, still: Duration, right: impl Fn(&str) -> bool) -> Seen<T> {
        let end = Instant::now() + time;
        let mut sleeps: Option<(Instant, String)> = None;
        loop {
            match self.answer.recv_timeout(LOOK) {
                Ok(answer) => return Seen::Returned(answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Seen::Neither(String::new()),
            }
            let now = Instant::now();
            sleeps = match (self.asleep().filter(|stack| right(stack)), sleeps) {
                (Some(stack), Some((since, before))) if stack == before => {
                    if now - since >= still {
                        return Seen::Asleep(stack);
                    }
                    Some((since, stack))
                }
                (stack, _) => stack.map(|stack| (now, stack)),
            };
            if now >= end {
                return Seen::Neither(self.stack());
            }
        }
    }
}

/// Does a thread sleep, by what its `stat` in `/proc` says? Its name may have any bytes.
fn is_asleep(stat: &str) -> bool {
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S") || rest.starts_with(" D"))
}

/// Where in the kernel a thread is, by its folder in `/proc`: `a < b < c`, the innermost function
/// first; empty where it is not in there, or the kernel does not tell.
pub fn stack_of(thread: &Path) -> String {
    let stack = std::fs::read_to_string(thread.join("stack")).unwrap_or_default();
    let functions = stack.lines().map(|line| {
        line.trim_start_matches("[<0>] ").split('+').next().unwrap_or_default().trim().to_owned()
    });
    functions.filter(|f| !f.is_empty()).collect::<Vec<_>>().join(" < ")
}

/// Where in the kernel the threads are that io_uring has for this process: `iou-wrk-71: a < b < c`.
pub fn workers() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let told = threads.filter_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let name = name.trim();
        name.starts_with("iou-").then(|| format!("{name}: {}", stack_of(&thread.path())))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_told_by_its_state_and_not_by_its_name() {
        assert!(is_asleep("71 (writer) D 1 1 0"));
        assert!(is_asleep("71 (a) R (b) S 1 1 0"));
        assert!(!is_asleep("71 (a) D (b) R 1 1 0"));
        assert!(!is_asleep(""));
    }

    #[test]
    fn who_waits_for_another_thread_is_not_asleep_in_a_call() {
        let (go, wait) = channel::<()>();
        let task = Task::start("waits", move || wait.recv().is_ok()).expect("starts");
        let time = Duration::from_millis(40);
        assert!(matches!(task.settle(time, LOOK, |_| true), Seen::Neither(_)));
        go.send(()).expect("it waits");
        let time = Duration::from_secs(20);
        assert!(matches!(task.settle(time, time, |_| true), Seen::Returned(true)));
    }

    #[test]
    fn a_task_that_does_not_end_is_told_and_may_end_later() {
        let (go, wait) = channel::<()>();
        let task = Task::start("slow", move || wait.recv().is_ok()).expect("starts");
        assert!(matches!(task.wait(Duration::from_millis(20)), Err(NoAnswer::Stuck(_))));
        go.send(()).expect("it waits");
        assert!(matches!(task.wait(Duration::from_secs(20)), Ok(true)));
        let gone: Task<()> = Task::start("gone", || panic!("on purpose")).expect("starts");
        assert!(matches!(gone.wait(Duration::from_secs(20)), Err(NoAnswer::Gone)));
    }
}

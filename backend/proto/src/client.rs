//! The asking side of the control socket.
//!
//! A thread of its own reads the answers and hands each to whoever waits for it, so that calls
//! from several threads, and a crash that waits for its trigger, never wait for one another.

use crate::codec::{self, CodecError, Decoder};
use crate::{
    Answer, Call, Command, Crashed, Limits, Marked, Match, Refusal, RefusalKind, Released, Resized,
    Run, StallWhen, StateShown, Status, Token, Trigger,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an answer may take that waits for nothing but the device.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no device at {}: is tornblkd running, with --control {}?", .0.display(), .0.display())]
    NoDevice(PathBuf),
    #[error("cannot connect to the device at {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The device understood, or not, and says no.
    #[error("the device refused: {0}")]
    Refused(Refusal),
    #[error("the device went away: its process ended, or it closed the control socket")]
    Gone,
    #[error("the device gave no answer for {} s: is its process stopped, or its disk?", .0.as_secs())]
    Silent(Duration),
    #[error("the device's answer is not understood ({0}): is tornblkd of the same version?")]
    Answer(String),
    #[error("the message cannot be sent: {0}")]
    Send(CodecError),
}

type Reply = Result<Value, Refusal>;

/// A connection to one device. Stalls that it asked for end when it is dropped.
#[derive(Debug)]
pub struct Client {
    writer: Mutex<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    calls: HashMap<u64, SyncSender<Reply>>,
    /// The reader ended.
    gone: bool,
    /// Said by the device before it closed the connection.
    farewell: Option<Refusal>,
}

/// A call that was sent and whose answer is not here yet.
#[derive(Debug)]
#[must_use = "the answer says whether it worked"]
pub struct Pending<T> {
    id: u64,
    answer: Receiver<Reply>,
    waiting: Arc<Mutex<Waiting>>,
    kind: PhantomData<fn() -> T>,
}

impl Client {
    pub fn connect(path: impl AsRef<Path>) -> Result<Client, ClientError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDevice(path.to_owned())
            }
            _ => ClientError::Connect { path: path.to_owned(), source },
        })?;
        Client::over(stream)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })
    }

    /// As [`Client::connect`], but gives a device that is just starting time to make its socket.
    pub fn connect_within(path: impl AsRef<Path>, time: Duration) -> Result<Client, ClientError> {
        let start = Instant::now();
        loop {
            match Client::connect(path.as_ref()) {
                Err(ClientError::NoDevice(_)) if start.elapsed() < time => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }

    /// Over a stream that is connected already.
    pub fn over(stream: UnixStream) -> io::Result<Client> {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (from, for_reader) = (stream.try_clone()?, Arc::clone(&waiting));
        let reader = std::thread::Builder::new()
            .name("tornblk-client".to_owned())
            .spawn(move || read_answers(from, &for_reader))?;
        Ok(Client { writer: Mutex::new(stream), waiting, reader: Some(reader) })
    }

    /// Asks, and waits for the answer: for ever where the command is a crash, which is answered
    /// when the power is cut.
    pub fn call(&self, command: &Command) -> Result<Value, ClientError> {
        self.ask(command)
    }

    /// Sends without waiting. [`Pending::wait`] gives the answer.
    pub fn start(&self, command: &Command) -> Result<Pending<Value>, ClientError> {
        self.send(command)
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        self.ask(&Command::Status {})
    }

    pub fn limits(&self) -> Result<Limits, ClientError> {
        self.ask(&Command::Limits {})
    }

    /// The mark is recorded when this returns.
    pub fn mark(&self, name: impl Into<String>) -> Result<Marked, ClientError> {
        self.ask(&Command::Mark { name: name.into() })
    }

    /// → the token that [`Client::release`] takes.
    pub fn stall(&self, which: Match, when: StallWhen) -> Result<u64, ClientError> {
        self.ask(&Command::Stall { which, when }).map(|t: Token| t.token)
    }

    /// → how many requests were held.
    pub fn release(&self, token: u64) -> Result<u64, ClientError> {
        self.ask(&Command::Release { token }).map(|r: Released| r.requests)
    }

    /// → the fault's token.
    pub fn fault(&self, spec: impl Into<String>) -> Result<u64, ClientError> {
        self.ask(&Command::Fault { spec: spec.into() }).map(|t: Token| t.token)
    }

    /// Cuts the power, and waits until it is cut. The arguments are those of [`Command::Crash`].
    pub fn crash(
        &self,
        at: Trigger,
        state: Option<&str>,
        seed: Option<u64>,
        profile: Option<&str>,
    ) -> Result<Crashed, ClientError> {
        self.crash_start(at, state, seed, profile)?.wait()
    }

    /// Arms the cut. Whether it was accepted is known to [`Pending::wait_for`] or [`Pending::wait`]:
    /// a refusal comes at once, [`Crashed`] when the power is cut.
    pub fn crash_start(
        &self,
        at: Trigger,
        state: Option<&str>,
        seed: Option<u64>,
        profile: Option<&str>,
    ) -> Result<Pending<Crashed>, ClientError> {
        let own = |s: Option<&str>| s.map(str::to_owned);
        self.send(&Command::Crash { at, state: own(state), seed, profile: own(profile) })
    }

    pub fn use_state(&self, name: impl Into<String>) -> Result<StateShown, ClientError> {
        self.ask(&Command::UseState { name: name.into() })
    }

    /// See [`Command::UseContent`].
    pub fn use_content(
        &self,
        name: impl Into<String>,
        from: Option<String>,
        runs: Vec<Run>,
    ) -> Result<StateShown, ClientError> {
        self.ask(&Command::UseContent { name: name.into(), from, runs })
    }

    /// See [`Command::RecordHere`].
    pub fn record_here(&self, file: &Path) -> Result<(), ClientError> {
        self.ask(&Command::RecordHere { file: utf8(file)? }).map(|_: Value| ())
    }

    /// See [`Command::RecordedHere`].
    pub fn recorded_here(&self, file: &Path) -> Result<(), ClientError> {
        self.ask(&Command::RecordedHere { file: utf8(file)? }).map(|_: Value| ())
    }

    /// See [`Command::Resize`]. → bytes.
    pub fn resize(&self) -> Result<u64, ClientError> {
        self.ask(&Command::Resize {}).map(|r: Resized| r.capacity)
    }

    fn ask<T: DeserializeOwned>(&self, command: &Command) -> Result<T, ClientError> {
        let pending = self.send(command)?;
        match command {
            Command::Crash { .. } => pending.wait(),
            _ => pending.wait_for(PATIENCE)?.ok_or(ClientError::Silent(PATIENCE)),
        }
    }

    /// Ends the connection from this side: what it armed is disarmed. What was asked before is
    /// answered still, so a crash that came first is not lost.
    pub fn hang_up(&self) {
        // Where the other side is gone already there is nothing to shut down.
        let _ = lock(&self.writer).shutdown(Shutdown::Write);
    }

    fn send<T>(&self, command: &Command) -> Result<Pending<T>, ClientError> {
        let (to, answer) = sync_channel(1);
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.gone {
                return Err(waiting.ended());
            }
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.calls.insert(id, to);
            id
        };
        let pending = Pending { id, answer, waiting: Arc::clone(&self.waiting), kind: PhantomData };
        let message = codec::encode(&Call { id, command: command.clone() });
        let sent = message.and_then(|bytes| {
            io::Write::write_all(&mut *lock(&self.writer), &bytes).map_err(CodecError::Io)
        });
        match sent {
            Ok(()) => Ok(pending),
            Err(CodecError::Io(_)) => {
                // What the device said before it closed is worth more than "broken pipe".
                Err(pending
                    .wait_raw(Some(Duration::from_secs(1)))
                    .err()
                    .unwrap_or_else(|| lock(&self.waiting).ended()))
            }
            Err(error) => Err(ClientError::Send(error)),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the reader; where the other side is gone already there is nothing to shut down.
        let _ = lock(&self.writer).shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl<T: DeserializeOwned> Pending<T> {
    /// Waits as long as it takes.
    pub fn wait(self) -> Result<T, ClientError> {
        match self.wait_raw(None)? {
            Some(value) => typed(value),
            None => Err(ClientError::Gone),
        }
    }

    /// Waits at most that long; `None`: no answer yet, ask again. After an answer (or an error)
    /// came out of here there is none left.
    pub fn wait_for(&self, time: Duration) -> Result<Option<T>, ClientError> {
        self.wait_raw(Some(time))?.map(typed).transpose()
    }
}

impl<T> Pending<T> {
    fn wait_raw(&self, time: Option<Duration>) -> Result<Option<Value>, ClientError> {
        let reply = match time {
            None => self.answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(time) => self.answer.recv_timeout(time),
        };
        match reply {
            Ok(Ok(value)) => Ok(Some(value)),
            Ok(Err(refusal)) => Err(ClientError::Refused(refusal)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(lock(&self.waiting).ended()),
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        lock(&self.waiting).calls.remove(&self.id);
    }
}

impl Waiting {
    fn ended(&self) -> ClientError {
        self.farewell.clone().map_or(ClientError::Gone, ClientError::Refused)
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|e| ClientError::Answer(e.to_string()))
}

fn read_answers(mut from: UnixStream, waiting: &Mutex<Waiting>) {
    let mut decoder = Decoder::default();
    while let Ok(Some(message)) = decoder.read(&mut from) {
        // An answer that cannot be read belongs to no call: nothing after it can be trusted.
        let Ok(answer) = serde_json::from_slice::<Answer>(&message) else { break };
        let mut waiting = lock(waiting);
        let reply = match (answer.ok, answer.error) {
            (Some(value), None) => Ok(value),
            (None, Some(refusal)) => Err(refusal),
            _ => break,
        };
        match answer.id {
            // Nobody waits any more: given up.
            Some(id) => {
                if let Some(to) = waiting.calls.remove(&id) {
                    let _ = to.try_send(reply);
                }
            }
            None => waiting.farewell = reply.err(),
        }
    }
    let mut waiting = lock(waiting);
    waiting.gone = true;
    // Dropping the senders tells everyone who waits.
    waiting.calls.clear();
    let _ = from.shutdown(Shutdown::Both);
}

/// What these locks guard is whole at every moment, so a thread that died holding one did no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn utf8(file: &Path) -> Result<String, ClientError> {
    file.to_str().map(str::to_owned).ok_or_else(|| {
        let text = format!("the path {} is not UTF-8: choose another", file.display());
        ClientError::Refused(Refusal { kind: RefusalKind::Malformed, message: text })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::RefusalKind;
    use serde_json::json;

    /// Reads calls with `each`, which may answer any of those that came, until the client leaves.
    fn device(
        mut each: impl FnMut(&mut UnixStream, Call) + Send + 'static,
    ) -> (Client, JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut decoder = Decoder::default();
            while let Ok(Some(message)) = decoder.read(&mut theirs.try_clone().unwrap()) {
                each(&mut theirs, codec::decode_call(&message).unwrap());
            }
        });
        (Client::over(ours).unwrap(), thread)
    }

    fn ok(to: &mut UnixStream, id: u64, value: Value) {
        codec::write(to, &Answer { id: Some(id), ok: Some(value), error: None }).unwrap();
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let mut crash = None;
        let (client, thread) = device(move |to, call| match call.command {
            Command::Crash { .. } => crash = Some(call.id),
            Command::Mark { name } => {
                let event: u64 = name.parse().unwrap();
                ok(to, call.id, json!({ "event": event }));
                if event == 399 {
                    let crashed = Crashed {
                        event: 400,
                        state: "lb512/p400:all".to_owned(),
                        faults: Vec::new(),
                        volatile_writes: 0,
                    };
                    ok(to, crash.unwrap(), serde_json::to_value(crashed).unwrap());
                }
            }
            _ => unreachable!(),
        });
        let crash = client.crash_start(Trigger::Now, None, Some(1), None).unwrap();
        assert!(crash.wait_for(Duration::ZERO).unwrap().is_none());
        std::thread::scope(|scope| {
            for t in 0..3 {
                let client = &client;
                scope.spawn(move || {
                    for n in 0..100 {
                        let n = t * 100 + n;
                        assert_eq!(client.mark(n.to_string()).unwrap().event, n);
                    }
                });
            }
        });
        assert_eq!(client.mark("399").unwrap().event, 399);
        assert_eq!(crash.wait().unwrap().event, 400);
        drop(client);
        thread.join().unwrap();
    }

    #[test]
    fn a_refusal_is_an_error_and_the_next_call_works() {
        let (client, thread) = device(|to, call| match call.command {
            Command::Release { .. } => {
                let error =
                    Refusal { kind: RefusalKind::NotFound, message: "no such stall".to_owned() };
                let answer = Answer { id: Some(call.id), ok: None, error: Some(error) };
                codec::write(to, &answer).unwrap();
            }
            _ => ok(to, call.id, json!({"token": 4})),
        });
        let error = client.release(9).unwrap_err();
        assert!(matches!(&error, ClientError::Refused(r) if r.kind == RefusalKind::NotFound));
        assert!(error.to_string().contains("no such stall"));
        assert_eq!(client.fault("eio").unwrap(), 4);
        assert!(matches!(client.limits(), Err(ClientError::Answer(_))));
        drop(client);
        thread.join().unwrap();
    }

    #[test]
    fn a_device_that_goes_away_ends_every_call() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = Client::over(ours).unwrap();
        let waiting = client.crash_start(Trigger::Now, None, None, None).unwrap();
        drop(theirs);
        assert!(matches!(waiting.wait(), Err(ClientError::Gone)));
        assert!(matches!(client.status(), Err(ClientError::Gone)));
    }

    #[test]
    fn what_the_device_says_before_it_closes_is_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = Client::over(ours).unwrap();
        let error = Refusal { kind: RefusalKind::Busy, message: "too many clients".to_owned() };
        codec::write(&mut theirs, &Answer { id: None, ok: None, error: Some(error) }).unwrap();
        drop(theirs);
        assert!(client.status().unwrap_err().to_string().contains("too many clients"));
    }

    #[test]
    fn no_device_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let error = Client::connect(&path).unwrap_err();
        assert!(matches!(&error, ClientError::NoDevice(_)));
        assert!(error.to_string().contains("is tornblkd running"), "{error}");
        // A socket that nobody listens on any more.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stale = Client::connect_within(&path, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(stale, ClientError::NoDevice(_)));
    }
}

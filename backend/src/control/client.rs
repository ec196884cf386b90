//! One client: its commands carried out, its answers sent.

use crate::store::{Machine, MachineError};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tornblk_proto::codec::{self, CodecError, Decoder};
use tornblk_proto::{Answer, Command, Marked, Refusal, RefusalKind, Released, Resized, Token};

/// How long a message may take that has begun, and an answer to be taken.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Session {
    /// Whose stalls are whose.
    number: u64,
    stream: UnixStream,
    answers: Answers,
    machine: Arc<Machine>,
    crashes: Vec<(u64, JoinHandle<()>)>,
}

/// Where answers go, from any thread.
#[derive(Clone)]
struct Answers(Arc<Mutex<Option<UnixStream>>>);

impl Session {
    /// # Errors
    /// The process has too many open files.
    pub(super) fn new(
        number: u64,
        stream: UnixStream,
        machine: Arc<Machine>,
    ) -> io::Result<Session> {
        let answers = Answers(Arc::new(Mutex::new(Some(stream.try_clone()?))));
        Ok(Session { number, stream, answers, machine, crashes: Vec::new() })
    }

    /// Until the client leaves, or cannot be understood any more.
    pub(super) fn serve(mut self) {
        let mut decoder = Decoder::default();
        loop {
            match self.next(&mut decoder) {
                Ok(Some(message)) => self.handle(&message),
                Ok(None) => break,
                Err(e) => {
                    let message = match &e {
                        CodecError::Io(e) if timed_out(e) => {
                            let seconds = PATIENCE.as_secs();
                            format!("a message has begun, but did not end within {seconds} s")
                        }
                        // The client is gone: nobody reads an answer.
                        CodecError::Io(_) => break,
                        e => e.to_string(),
                    };
                    let error = Refusal { kind: RefusalKind::Malformed, message };
                    self.answers.send(&Answer { id: None, ok: None, error: Some(error) });
                    break;
                }
            }
        }
        for (token, _) in &self.crashes {
            self.machine.disarm(*token);
        }
        self.machine.client_gone(self.number);
        for (_, thread) in self.crashes {
            let _ = thread.join();
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn next(&mut self, decoder: &mut Decoder) -> Result<Option<Vec<u8>>, CodecError> {
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(message) = decoder.take()? {
                return Ok(Some(message));
            }
            let begun = decoder.pending();
            self.stream.set_read_timeout((begun > 0).then_some(PATIENCE))?;
            match self.stream.read(&mut piece) {
                Ok(0) if begun == 0 => return Ok(None),
                Ok(0) => return Err(CodecError::Truncated { got: begun }),
                Ok(n) => decoder.push(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn handle(&mut self, message: &[u8]) {
        let call = match codec::decode_call(message) {
            Ok(call) => call,
            Err(answer) => return self.answers.send(&answer),
        };
        log::debug!("control client {}: {:?}", self.number, call.command);
        match self.carry_out(call.id, call.command) {
            Ok(None) => {}
            Ok(Some(value)) => self.answers.answer(call.id, Ok(value)),
            Err(e) => self.answers.answer(call.id, Err(e)),
        }
    }

    /// `None`: answered later.
    fn carry_out(&mut self, id: u64, command: Command) -> Result<Option<Value>, MachineError> {
        let machine = &self.machine;
        let value = match command {
            Command::Status {} => json(machine.status()),
            Command::Limits {} => json(machine.limits()),
            Command::Mark { name } => json(Marked { event: machine.mark(&name)? }),
            Command::Stall { which, when } => {
                json(Token { token: machine.stall(self.number, which, when)? })
            }
            Command::Release { token } => json(Released { requests: machine.release(token)? }),
            Command::Fault { spec } => json(Token { token: machine.fault(&spec)? }),
            Command::UseState { name } => json(machine.use_state(&name)?),
            Command::UseContent { name, from, runs } => {
                json(machine.use_content(&name, from.as_deref(), &runs)?)
            }
            Command::RecordHere { file } => {
                let file = Path::new(&file);
                machine.record_here(file).map_err(|e| explained(e, file))?;
                Ok(Value::Object(Default::default()))
            }
            Command::RecordedHere { file } => {
                let file = Path::new(&file);
                machine.recorded_here(file).map_err(|e| explained(e, file))?;
                Ok(Value::Object(Default::default()))
            }
            Command::Resize {} => json(Resized { capacity: machine.resize()? }),
            Command::Crash { at, state, seed, profile } => {
                let token = machine.arm_crash(at, state, seed, profile)?;
                self.wait_for_crash(id, token);
                return Ok(None);
            }
        };
        value.map(Some)
    }

    fn wait_for_crash(&mut self, id: u64, token: u64) {
        let (machine, answers) = (Arc::clone(&self.machine), self.answers.clone());
        let thread =
            std::thread::Builder::new().name("tornblk-crash".to_owned()).spawn(move || {
                answers.answer(id, machine.wait_for_crash(token).and_then(json));
            });
        self.crashes.retain(|(_, thread)| !thread.is_finished());
        match thread {
            Ok(thread) => self.crashes.push((token, thread)),
            Err(e) => {
                self.machine.disarm(token);
                self.answers.answer(id, Err(MachineError::Failed(format!("no thread: {e}"))));
            }
        }
    }
}

/// Where the sandbox is why: what to do.
fn explained(error: MachineError, file: &Path) -> MachineError {
    match (error, crate::sandbox::refusal(file)) {
        (MachineError::Failed(_), Some(refusal)) => MachineError::Failed(refusal),
        (error, _) => error,
    }
}

impl Answers {
    fn answer(&self, id: u64, result: Result<Value, MachineError>) {
        let answer = match result {
            Ok(value) => Answer { id: Some(id), ok: Some(value), error: None },
            Err(e) => Answer { id: Some(id), ok: None, error: Some(e.into()) },
        };
        self.send(&answer);
    }

    fn send(&self, answer: &Answer) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(to) = stream.as_mut() else { return };
        if let Err(e) = codec::write(to, answer) {
            log::debug!("an answer was not taken: {e}");
            // Part of it may be out: what follows could not be read.
            let _ = to.shutdown(std::net::Shutdown::Both);
            *stream = None;
        }
    }
}

fn json(value: impl Serialize) -> Result<Value, MachineError> {
    serde_json::to_value(value).map_err(|e| MachineError::Failed(e.to_string()))
}

fn timed_out(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

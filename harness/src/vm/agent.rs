//! The channel to the agent: one command at a time, and the marks that it makes.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use tornblk_agent::channel::{Command, Outcome, PROTOCOL, ToGuest, ToHost};

use super::lines::Lines;
use super::{Host, VmError};

#[derive(Debug)]
pub(super) struct Agent {
    lines: Lines,
    next_id: u64,
    running: Option<u64>,
}

impl Agent {
    pub(super) fn new(socket: UnixStream) -> Result<Agent, VmError> {
        Ok(Agent { lines: Lines::new(socket, "the agent")?, next_id: 1, running: None })
    }

    /// Whether the agent has said that it is ready.
    pub(super) fn hello(&mut self, wait: Duration) -> Result<bool, VmError> {
        while let Some(message) = self.read(wait)? {
            if let ToHost::Hello { kernel, protocol, .. } = message {
                check(protocol)?;
                log::debug!("the agent is ready on {kernel}");
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks for a hello; [`pong`](Self::pong) takes it.
    pub(super) fn ping(&mut self) -> Result<u64, VmError> {
        let id = self.take_id();
        // The guest may have the beginning of a line from a host that is gone: end it.
        self.lines.send(b"\n")?;
        self.send(&ToGuest::Ping { id })?;
        Ok(id)
    }

    /// The answer to a ping: the kernel's release.
    pub(super) fn pong(&mut self, id: u64, wait: Duration) -> Result<Option<String>, VmError> {
        while let Some(message) = self.read(wait)? {
            if let ToHost::Hello { id: Some(answered), kernel, protocol } = message
                && answered == id
            {
                check(protocol)?;
                return Ok(Some(kernel));
            }
        }
        Ok(None)
    }

    /// Starts a command.
    pub(super) fn run(&mut self, command: Command) -> Result<(), VmError> {
        let id = self.take_id();
        self.running = Some(id);
        self.send(&ToGuest::Run { id, command: Box::new(command) })
    }

    /// Serves the running command for a moment; `Some` when it has ended.
    pub(super) fn step(
        &mut self,
        host: &mut dyn Host,
        wait: Duration,
    ) -> Result<Option<Outcome>, VmError> {
        match self.read(wait)? {
            None | Some(ToHost::Hello { .. }) => {}
            Some(ToHost::Progress { text }) => host.progress(&text),
            Some(ToHost::Mark { mark, marks }) => {
                host.marks(&marks).map_err(VmError::Marks)?;
                self.send(&ToGuest::Acked { mark })?;
            }
            Some(ToHost::Ask { ask, what }) => {
                let answer = host.ask(what);
                self.send(&ToGuest::Answer { ask, answer })?;
            }
            Some(ToHost::Found { finding }) => host.found(finding),
            Some(ToHost::Ended { id, result }) => {
                if self.running == Some(id) {
                    self.running = None;
                    return Ok(Some(result));
                }
            }
        }
        Ok(None)
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn send(&mut self, message: &impl Serialize) -> Result<(), VmError> {
        let mut line = serde_json::to_vec(message)
            .map_err(|e| VmError::Protocol(format!("a message cannot be written: {e}")))?;
        line.push(b'\n');
        self.lines.send(&line)
    }

    fn read(&mut self, wait: Duration) -> Result<Option<ToHost>, VmError> {
        let Some(line) = self.lines.next(wait)? else { return Ok(None) };
        match serde_json::from_slice(&line) {
            Ok(message) => Ok(Some(message)),
            // The end of what was meant for a host that is gone.
            Err(e) if !line.starts_with(b"{") => {
                log::debug!("skipped what the agent said: {e}");
                Ok(None)
            }
            Err(e) => {
                let said: String = String::from_utf8_lossy(&line).chars().take(200).collect();
                Err(VmError::Protocol(format!("{e} in {said}")))
            }
        }
    }
}

fn check(protocol: u32) -> Result<(), VmError> {
    match protocol {
        PROTOCOL => Ok(()),
        other => Err(VmError::Protocol(format!("it speaks version {other}, not {PROTOCOL}"))),
    }
}

/// The command's name, for messages.
pub(super) fn name(command: &Command) -> String {
    let value = serde_json::to_value(command).unwrap_or_default();
    value.get("cmd").and_then(|c| c.as_str()).unwrap_or("a command").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead as _, BufReader, Write as _};

    use tornblk_agent::channel::MarkText;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[derive(Default)]
    struct Recorder {
        marks: Vec<MarkText>,
        said: Vec<String>,
        refuse: bool,
    }

    impl Host for Recorder {
        fn marks(&mut self, marks: &[MarkText]) -> Result<(), String> {
            if self.refuse {
                return Err("the disk is gone".into());
            }
            self.marks.extend_from_slice(marks);
            Ok(())
        }

        fn progress(&mut self, text: &str) {
            self.said.push(text.to_owned());
        }

        fn stop(&mut self) -> bool {
            false
        }
    }

    fn mark() -> ToHost {
        ToHost::Mark { mark: 7, marks: vec![MarkText::Phase { name: "x".into() }] }
    }

    fn line(message: &ToHost) -> String {
        format!("{}\n", serde_json::to_string(message).unwrap())
    }

    #[test]
    fn a_mark_is_recorded_and_then_acknowledged() {
        let (mine, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(mine).unwrap();
        let mut host = Recorder::default();
        agent.run(Command::Dmesg {}).unwrap();
        let ended = ToHost::Ended { id: 1, result: Outcome::Ok { value: 5.into() } };
        let other = ToHost::Ended { id: 99, result: Outcome::Unsupported { message: "".into() } };
        let said = ToHost::Progress { text: "half".into() };
        let all = ["junk of another time\n".into(), line(&other), line(&mark()), line(&said)];
        guest.write_all(all.concat().as_bytes()).unwrap();
        guest.write_all(line(&ended).as_bytes()).unwrap();
        let outcome = loop {
            if let Some(outcome) = agent.step(&mut host, SOON).unwrap() {
                break outcome;
            }
        };
        assert_eq!(outcome, Outcome::Ok { value: 5.into() });
        assert_eq!((host.marks.len(), &*host.said), (1, &["half".to_owned()][..]));
        drop(agent);
        let heard: Vec<String> = BufReader::new(guest).lines().map(Result::unwrap).collect();
        let heard: Vec<ToGuest> = heard.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        let run = ToGuest::Run { id: 1, command: Box::new(Command::Dmesg {}) };
        assert_eq!(heard, [run, ToGuest::Acked { mark: 7 }]);
    }

    #[test]
    fn a_mark_that_is_not_recorded_is_not_acknowledged() {
        let (mine, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(mine).unwrap();
        guest.write_all(line(&mark()).as_bytes()).unwrap();
        let mut host = Recorder { refuse: true, ..Recorder::default() };
        let error = agent.step(&mut host, SOON).unwrap_err().to_string();
        assert!(error.contains("the disk is gone"), "{error}");
        drop(agent);
        assert_eq!(BufReader::new(guest).lines().count(), 0);
    }

    #[test]
    fn an_agent_of_another_version_is_told() {
        let (mine, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(mine).unwrap();
        let hello = ToHost::Hello { id: None, protocol: 99, kernel: "7".into() };
        guest.write_all(line(&hello).as_bytes()).unwrap();
        assert!(matches!(agent.hello(SOON), Err(VmError::Protocol(_))));
    }

    #[test]
    fn commands_have_names() {
        assert_eq!(name(&Command::Dmesg {}), "dmesg");
    }
}

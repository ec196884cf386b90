//! QEMU's monitor. Commands and answers are the crate qapi's; lines are read here, with deadlines,
//! and so that events and fields of a newer QEMU do no harm.

use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lines::Lines;
use super::{TICK, VmError};

#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines,
    events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

impl Qmp {
    pub(super) fn new(socket: UnixStream) -> Result<Qmp, VmError> {
        Ok(Qmp { lines: Lines::new(socket, "QEMU's monitor")?, events: Vec::new() })
    }

    /// Waits for QEMU's greeting and begins.
    pub(super) fn handshake(&mut self, timeout: Duration) -> Result<(), VmError> {
        let start = Instant::now();
        loop {
            match self.read(TICK)? {
                Some(line) if line.get("QMP").is_some() => break,
                _ if start.elapsed() > timeout => {
                    let seconds = timeout.as_secs();
                    return Err(VmError::QmpTimeout { command: "its start", seconds });
                }
                _ => {}
            }
        }
        self.execute(&qapi::qmp::qmp_capabilities { enable: None }, timeout)?;
        Ok(())
    }

    pub(super) fn execute<C: qapi::Command>(
        &mut self,
        command: &C,
        timeout: Duration,
    ) -> Result<C::Ok, VmError> {
        let refused = |message: String| VmError::Qmp { command: C::NAME, message };
        let mut line = serde_json::to_vec(&qapi::Execute::<&C>::from(command))
            .map_err(|e| refused(e.to_string()))?;
        line.push(b'\n');
        self.lines.send(&line)?;
        let start = Instant::now();
        loop {
            let Some(mut line) = self.read(TICK)? else {
                if start.elapsed() > timeout {
                    let seconds = timeout.as_secs();
                    return Err(VmError::QmpTimeout { command: C::NAME, seconds });
                }
                continue;
            };
            if let Some(error) = line.get("error") {
                let message = error.get("desc").and_then(Value::as_str).unwrap_or("no reason told");
                return Err(refused(message.to_owned()));
            }
            if let Some(value) = line.get_mut("return") {
                return serde_json::from_value(value.take()).map_err(|e| refused(e.to_string()));
            }
        }
    }

    /// Waits for an event that `wanted` says yes to; others are dropped.
    pub(super) fn wait_for(
        &mut self,
        what: &'static str,
        timeout: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<(), VmError> {
        let start = Instant::now();
        loop {
            if self.events.drain(..).any(|e| wanted(&e)) {
                return Ok(());
            }
            if start.elapsed() > timeout {
                return Err(VmError::QmpTimeout { command: what, seconds: timeout.as_secs() });
            }
            self.read(TICK)?;
        }
    }

    /// Forgets events that nobody waited for.
    pub(super) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// The next line; an event is put aside.
    fn read(&mut self, wait: Duration) -> Result<Option<Value>, VmError> {
        let Some(line) = self.lines.next(wait)? else { return Ok(None) };
        let Ok(value) = serde_json::from_slice::<Value>(&line) else {
            log::warn!("QEMU said: {}", String::from_utf8_lossy(&line));
            return Ok(None);
        };
        if let Some(name) = value.get("event").and_then(Value::as_str) {
            log::trace!("QEMU: {value}");
            let data = value.get("data").cloned().unwrap_or_default();
            self.events.push(Event { name: name.to_owned(), data });
            return Ok(None);
        }
        Ok(Some(value))
    }
}

/// A command of the crate's with arguments that its type does not know.
#[derive(Debug)]
pub(super) struct Plain<C>(Value, PhantomData<C>);

impl<C> Plain<C> {
    pub(super) fn new(arguments: Value) -> Plain<C> {
        Plain(arguments, PhantomData)
    }
}

impl<C> serde::Serialize for Plain<C> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<C: qapi::Command> qapi::Command for Plain<C> {
    type Ok = C::Ok;
    const NAME: &'static str = C::NAME;
    const ALLOW_OOB: bool = C::ALLOW_OOB;
}

/// The crate's types have a field for every option there is: only those that are meant are
/// written here.
pub(super) fn from<C: serde::de::DeserializeOwned + qapi::Command>(
    value: Value,
) -> Result<C, VmError> {
    serde_json::from_value(value)
        .map_err(|e| VmError::Qmp { command: C::NAME, message: e.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn answers_are_found_among_events() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(a).unwrap();
        b.write_all(
            b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n\
              {\"event\": \"OF_QEMU_99\", \"timestamp\": {}}\n\
              {\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/a\"}}\n\
              {\"return\": {\"status\": \"running\", \"running\": true, \"new\": 1}}\n\
              {\"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}}\n\
              {\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d\", \"path\": \"/d\"}}\n",
        )
        .unwrap();
        qmp.handshake(SOON).unwrap();
        assert!(qmp.execute(&qapi::qmp::query_status {}, SOON).unwrap().running);
        let error = qmp.execute(&qapi::qmp::stop {}, SOON).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused stop: no way");
        qmp.wait_for("d", SOON, |e| e.data.get("device").is_some_and(|d| d == "d")).unwrap();
        let late = qmp.wait_for("more", Duration::ZERO, |_| true).unwrap_err();
        assert!(matches!(late, VmError::QmpTimeout { .. }));
        drop(b);
        assert!(qmp.execute(&qapi::qmp::quit {}, SOON).is_err());
    }
}

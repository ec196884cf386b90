//! Takes commands and answers them.
//!
//! Three threads: one reads (and answers pings at once), one writes, and this one runs the
//! commands, one at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::system::{RebootCommand, reboot};
use serde_json::{Value, json};

use super::log::{self, log};
use super::outbox::Outbox;
use super::port::{Link, Received};
use super::{Error, Result, check, disk, exec, fs, program, race, workload};
use crate::channel::{Command, Lines, Outcome, PROTOCOL, ToGuest, ToHost};

/// Orphans are looked for this often where nothing else happens.
const IDLE: Duration = Duration::from_secs(1);

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host is gone for good.
    Closed,
    /// The host wants the guest to be switched off, and this is not PID 1.
    PowerOff,
}

/// Serves one host. As PID 1 it takes care of orphans, and switches off itself.
pub fn serve(link: &dyn Link, as_init: bool) -> End {
    let outbox = Arc::new(Outbox::default());
    let (sender, commands) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| outbox.write_to(link));
        outbox.say(hello(None));
        scope.spawn(|| read_from(link, &outbox, sender));
        loop {
            let (id, command) = match commands.recv_timeout(IDLE) {
                Ok(next) => next,
                Err(RecvTimeoutError::Timeout) => {
                    if as_init {
                        exec::reap();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return End::Closed,
            };
            if matches!(command, Command::PowerOff {}) && !as_init {
                outbox.close();
                link.shut();
                return End::PowerOff;
            }
            let result = catch_unwind(AssertUnwindSafe(|| run(&outbox, id, command)));
            let result = match result {
                Ok(Ok(value)) => Outcome::Ok { value },
                Ok(Err(e)) => Outcome::from(e),
                Err(_) => Outcome::Failed {
                    message: "the agent panicked; the console has its words".into(),
                    errno: None,
                },
            };
            outbox.say(ToHost::Ended { id, result });
            if as_init {
                exec::reap();
            }
        }
    })
}

fn hello(id: Option<u64>) -> ToHost {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    ToHost::Hello { id, protocol: PROTOCOL, kernel }
}

/// Reads until the link ends.
fn read_from(link: &dyn Link, outbox: &Outbox, commands: Sender<(u64, Command)>) {
    let mut lines = Lines::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match link.receive(&mut buffer) {
            Received::Bytes(n) => {
                lines.push(&buffer[..n]);
                while let Some(line) = lines.next_line() {
                    take(line, outbox, &commands);
                }
            }
            Received::Gone => lines.reset(),
            Received::End => {
                outbox.close();
                return;
            }
        }
    }
}

fn take(line: &[u8], outbox: &Outbox, commands: &Sender<(u64, Command)>) {
    match serde_json::from_slice(line) {
        Ok(ToGuest::Ping { id }) => outbox.say(hello(Some(id))),
        Ok(ToGuest::Acked { mark }) => outbox.acknowledge(mark),
        Ok(ToGuest::Stop { id }) => outbox.stop(id),
        Ok(ToGuest::Answer { ask, answer }) => outbox.answered(ask, answer),
        // The receiver is gone only after PowerOff.
        Ok(ToGuest::Run { id, command }) => drop(commands.send((id, *command))),
        Err(e) => {
            // Whoever sent it waits for an answer, if it has a number.
            let text = format!("the agent does not understand a message of the host: {e}");
            log(format_args!("{text}: {:.200}", String::from_utf8_lossy(line)));
            let id = serde_json::from_slice::<Value>(line).ok().and_then(|v| v["id"].as_u64());
            outbox.say(match id {
                Some(id) => {
                    ToHost::Ended { id, result: Outcome::Failed { message: text, errno: None } }
                }
                None => ToHost::Progress { text },
            });
        }
    }
}

fn run(outbox: &Arc<Outbox>, id: u64, command: Command) -> Result<Value> {
    match command {
        Command::WaitDisk { serial, timeout_ms } => {
            disk::wait(&serial, Duration::from_millis(timeout_ms))
        }
        Command::Tune { set } => disk::tune(&set),
        Command::Exec { argv, timeout_ms } => exec::run(&argv, Duration::from_millis(timeout_ms)),
        Command::Mount { device, target, fstype, options } => {
            fs::mount(&device, &target, &fstype, &options)
        }
        Command::HostRoot { tag, now_ms } => program::host_root(&tag, now_ms),
        Command::Program { program } => {
            outbox.begin(id);
            let ran = program::run(&program, Some(outbox));
            outbox.end();
            to_value(&ran?)
        }
        Command::FileMap { folders } => to_value(&program::file_map(&folders)),
        Command::Umount { target } => fs::umount(&target),
        Command::StatAtomic { path } => to_value(&fs::stat_atomic(&path)?),
        Command::AtomicRefusals { path, offset, limits, block } => {
            to_value(&workload::refusals::ask(&path, offset, &limits, block)?)
        }
        Command::Workload { workload } => {
            outbox.begin(id);
            let written = workload::run(&workload, outbox);
            outbox.end();
            to_value(&written?)
        }
        Command::Race { race } => {
            outbox.begin(id);
            let raced = race::run(race, outbox);
            outbox.end();
            to_value(&raced?)
        }
        Command::Readback { workload } => to_value(&workload::readback::readback(&workload)?),
        Command::CheckState { check } => to_value(&check::check(&check)?),
        Command::Blkflsbuf { device } => disk::flush_buffers(&device),
        Command::ReadNonce { device } => disk::read_nonce(&device),
        Command::Sync {} => {
            rustix::fs::sync();
            Ok(json!({}))
        }
        Command::ReadFile { path } => disk::read_file(&path),
        Command::Checksum { path, offset, len } => disk::checksum(&path, offset, len),
        Command::Discard { device, offset, len, zeroes } => {
            disk::discard(&device, offset, len, zeroes)
        }
        Command::LoadModule { path, params } => fs::load_module(&path, &params),
        Command::Dmesg {} => Ok(json!({ "text": log::dmesg()? })),
        Command::PowerOff {} => {
            log("switching off");
            match reboot(RebootCommand::PowerOff) {
                Ok(()) => Ok(Value::Null),
                Err(e) => Err(Error::system("cannot switch off")(e)),
            }
        }
    }
}

fn to_value(answer: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|e| Error::Refused(format!("cannot say the answer: {e}")))
}

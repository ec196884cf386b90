//! Where the log goes: to the standard error, without ever waiting for whoever reads it.
//!
//! A pipe that nobody reads is full after 64 KiB, and who writes to it waits: a queue's thread, or
//! the one that shall end the program. So a thread of its own writes, and what comes while it waits
//! and there is no more room is counted instead.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that may wait.
const ROOM: usize = 1000;
/// For the end: what waits then is written first.
const END: Duration = Duration::from_secs(1);

static TO_THREAD: OnceLock<SyncSender<Said>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);

enum Said {
    Line(Vec<u8>),
    /// Tell when all before this is written.
    Done(SyncSender<()>),
}

/// For the logger.
#[derive(Debug)]
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match TO_THREAD.get() {
            // There is one thread yet, and it may wait.
            None => io::stderr().write_all(bytes)?,
            Some(thread) => {
                if let Err(TrySendError::Full(_)) = thread.try_send(Said::Line(bytes.to_vec())) {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on nobody waits. Not before the sandbox, which wants to be entered by one thread.
pub(crate) fn begin() -> io::Result<()> {
    let (to, from) = sync_channel(ROOM);
    std::thread::Builder::new().name("tornblk-log".to_owned()).spawn(move || write_out(&from))?;
    let _ = TO_THREAD.set(to);
    Ok(())
}

/// Until all is written that was said, or nobody reads it.
pub(crate) fn end() {
    let Some(thread) = TO_THREAD.get() else { return };
    let (tell, told) = sync_channel(1);
    if thread.try_send(Said::Done(tell)).is_ok() {
        let _ = told.recv_timeout(END);
    }
}

fn write_out(from: &Receiver<Said>) {
    for said in from {
        // There is nobody to be told of a failure.
        let _ = match said {
            Said::Line(line) => io::stderr().write_all(&line),
            Said::Done(tell) => tell.send(()).map_err(io::Error::other),
        };
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(io::stderr(), "... and {lost} lines that nobody read in time");
        }
    }
}

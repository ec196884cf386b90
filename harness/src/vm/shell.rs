//! A person in the guest: a shell on a console of its own, joined to this process's terminal.
//!
//! The console is a virtio one (`/dev/hvc0`), so that the kernel's messages do not come in between.
//! It is only there in guests that are booted for it: a saved state has none.

use super::machine::Threads;
use super::{Host, Vm, VmConfig, VmError, io, pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self as std_io, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Command, Outcome};

/// Nobody sits there longer.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the relay looks whether the shell is gone.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// What ends a shell's input on a terminal (VEOF).
const END_OF_INPUT: u8 = 4;

/// What the shell says when it takes input. What comes before that, its terminal would keep for
/// itself: an end of input would get lost.
const PROMPT: &[u8] = b"guest# ";

/// `$1` and `$2` are the terminal's size, `$3` is said first. `setsid -c` makes the console the
/// shell's own, so that Ctrl-C reaches what runs in it; it must not lead its group before, or it
/// would not wait.
const SCRIPT: &str = "exec </dev/hvc0 >/dev/hvc0 2>&1
busybox stty rows $1 cols $2
echo \"$3\"
HOME=/root TERM=linux PS1='guest# ' busybox setsid -c sh -i
:";

impl Vm {
    /// As [`Vm::boot`], with a console for [`Vm::shell`].
    ///
    /// # Errors
    /// As [`Vm::boot`].
    pub fn boot_with_console(
        config: &VmConfig<'_>,
        timeout: Duration,
    ) -> Result<(Vm, UnixStream), VmError> {
        let (mine, its) = pair()?;
        let more = [
            "-chardev".to_owned(),
            format!("socket,id=shell,fd={}", its.as_raw_fd()),
            "-device".to_owned(),
            "virtconsole,bus=ports.0,chardev=shell".to_owned(),
        ];
        let mut vm = Vm::launch(config, Threads::Each, &more, &[its.as_fd()])?;
        drop(its);
        vm.greet(timeout)?;
        Ok((vm, mine))
    }

    /// Joins this process's terminal with a shell in the guest until that ends. Where standard input
    /// is no terminal, its end ends the shell.
    ///
    /// # Errors
    /// The guest has no such console or went away, or `host` stopped it.
    pub fn shell(
        &mut self,
        console: &UnixStream,
        greeting: &str,
        host: &mut dyn Host,
    ) -> Result<(), VmError> {
        let size = tcgetwinsize(std_io::stdin()).ok().filter(|s| s.ws_row > 0 && s.ws_col > 0);
        let (rows, columns) = size.map_or((24, 80), |s| (s.ws_row, s.ws_col));
        let argv = ["sh", "-c", SCRIPT, "sh", &rows.to_string(), &columns.to_string(), greeting];
        let command = Command::Exec {
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            timeout_ms: LONGEST.as_millis() as u64,
        };
        let over = AtomicBool::new(false);
        let terminal = Terminal::raw();
        let outcome = std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay(console, &over));
            let outcome = self.call(command, host, Instant::now() + LONGEST);
            over.store(true, Ordering::Relaxed);
            let relayed = relay.join().unwrap_or(Ok(()));
            outcome.and_then(|outcome| {
                relayed.map_err(io("the guest's console broke off"))?;
                Ok(outcome)
            })
        });
        drop(terminal);
        match outcome? {
            Outcome::Ok { .. } => Ok(()),
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                Err(VmError::Shell(message))
            }
        }
    }
}

/// The user's terminal, given back as it was.
struct Terminal(Option<Termios>);

impl Terminal {
    /// Every key goes to the guest.
    fn raw() -> Terminal {
        let stdin = std_io::stdin();
        if !isatty(&stdin) {
            return Terminal(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Terminal(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let set = tcsetattr(&stdin, OptionalActions::Now, &raw);
        Terminal(set.is_ok().then_some(before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std_io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Bytes both ways, until the shell is gone and all that it said is told.
fn relay(console: &UnixStream, over: &AtomicBool) -> std_io::Result<()> {
    let stdin = std_io::stdin();
    let mut input = true;
    let mut said = Vec::new();
    let mut asked = false;
    let mut bytes = [0; 4096];
    loop {
        let last = over.load(Ordering::Relaxed);
        let mut fds = vec![PollFd::new(console, PollFlags::IN)];
        if input && asked {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        poll(&mut fds, Some(&LOOK))?;
        let ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
        let (from_guest, from_user) = (ready(0), ready(1));
        if from_guest {
            let n = (&*console).read(&mut bytes)?;
            if n == 0 {
                return Ok(());
            }
            let mut out = std_io::stdout().lock();
            out.write_all(&bytes[..n])?;
            out.flush()?;
            if !asked {
                said.extend_from_slice(&bytes[..n]);
                asked = said.windows(PROMPT.len()).any(|part| part == PROMPT);
            }
        } else if last {
            return Ok(());
        }
        if from_user && !last {
            // Past the buffer of `Stdin`: what is read must be what `poll` saw.
            let n = rustix::io::read(&stdin, &mut bytes)?;
            if n == 0 {
                input = false;
                (&*console).write_all(&[END_OF_INPUT])?;
            } else {
                (&*console).write_all(&bytes[..n])?;
            }
        }
    }
}

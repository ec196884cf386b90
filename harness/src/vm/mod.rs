//! A guest: a QEMU process, its console, and the agent in it.
//!
//! - [`qemu`]: which QEMU there is, and what it can do.
//! - [`accel`]: whether KVM really works.
//! - [`process`]: child processes that never outlive this one.
//! - [`qmp`]: the monitor.
//! - [`agent`]: the channel to the agent.
//! - [`console`]: the guest's serial console, and what a kernel panic looks like there.
//! - [`machine`]: the command line.
//! - [`saved`]: a booted guest kept in a file.
//! - [`disk`]: disks that come and go.
//! - [`root`]: the host's files, for programs of the user's.
//! - [`shell`]: a person in the guest.
//! - [`debug`]: parameters for its kernel, and a debugger.
//!
//! A power cut is [`Vm::kill`]: nothing of QEMU runs after it. A guest that is asked for something
//! is watched all the while: a panic, a death of QEMU and the [`Host`]'s own wish to stop are
//! noticed at once, everything else at the deadline.
//!
//! Sockets between this process and QEMU have no name in the file system: they are inherited, and
//! there is nothing to clean up.

pub mod accel;
mod agent;
mod console;
pub mod debug;
mod disk;
mod lines;
mod machine;
pub mod process;
pub mod qemu;
mod qmp;
mod root;
mod saved;
mod shell;

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tornblk_agent::channel::{Command, MarkText, Outcome};
use tornblk_agent::race::{DeviceAnswer, DeviceAsk, RaceFinding};
use tornblk_image::Image;

pub use accel::Accel;
pub use debug::{DEFAULT_PORT, Gdb};
pub use disk::{Disk, FrontEnd};
pub use qemu::Qemu;
pub(crate) use qemu::in_path;
pub use root::Virtiofsd;

use agent::Agent;
use console::Console;
use machine::Threads;
use process::Process;
use qmp::Qmp;

/// What a guest is started from.
#[derive(Clone, Debug)]
pub struct VmConfig<'a> {
    pub image: &'a Image,
    pub qemu: Qemu,
    pub accel: Accel,
    /// 512 are enough for all suites.
    pub memory_mib: u32,
    pub cpus: u16,
    /// An existing folder, where `console.log` and `qemu.log` are appended to.
    pub dir: &'a Path,
    /// Start from a saved state of a booted guest (made now where there is none): a second
    /// instead of several.
    pub use_saved: bool,
    /// Parameters for the kernel, beside those that every guest gets ([`debug::check_append`]).
    pub append: Option<String>,
    /// The guest waits for a debugger before its first instruction. Whoever sits in one may take
    /// any time: it is booted, no saved state is used, and no deadline holds.
    pub gdb: Option<Gdb>,
    /// Set from outside, by Ctrl-C: whoever waits for the guest gets [`VmError::Stopped`].
    pub stop: Option<Arc<AtomicBool>>,
}

/// What the agent may want while a command runs.
pub trait Host {
    /// Records marks; they are acknowledged to the agent when this returns `Ok`. The error is a
    /// sentence.
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String>;

    /// What the agent does, for the user.
    fn progress(&mut self, text: &str);

    /// Something that a race wants of the disk under test.
    fn ask(&mut self, _what: DeviceAsk) -> DeviceAnswer {
        DeviceAnswer::Refused { message: "nobody serves the disk now".into() }
    }

    /// A promise that a race saw broken.
    fn found(&mut self, _finding: RaceFinding) {}

    /// Asked at least every 20 ms: `true` gives up waiting ([`VmError::Stopped`]), because the
    /// power is to be cut, or was.
    fn stop(&mut self) -> bool;
}

/// For commands that make no marks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
        Err("nobody records marks now".into())
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn stop(&mut self) -> bool {
        false
    }
}

/// Why there is no guest, or no answer from it. `console` is the end of what it said.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("QEMU is missing ({looked}): install it, on Debian with `apt install qemu-system-x86`")]
    NoQemu { looked: String },
    #[error("{path} is no usable QEMU: {why}")]
    BadQemu { path: PathBuf, why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the guest was not ready {seconds} s after its start{}", tail(.console))]
    BootTimeout { seconds: u64, console: String },
    #[error("the guest did not answer to {what} within {seconds} s{}", tail(.console))]
    Hung { what: String, seconds: u64, console: String },
    #[error("the guest's kernel panicked: {line}{}", tail(.console))]
    Panic { line: String, console: String },
    #[error("QEMU ended ({status}){}{}", words(.stderr), tail(.console))]
    Exited { status: String, stderr: String, console: String },
    #[error("QEMU refused {command}: {message}")]
    Qmp { command: &'static str, message: String },
    #[error("QEMU did not answer to {command} within {seconds} s")]
    QmpTimeout { command: &'static str, seconds: u64 },
    #[error("the disk {serial} cannot be attached: {why}")]
    Attach { serial: String, why: String },
    #[error(
        "this QEMU has no vhost-user-test-device-pci, which lets all of a disk's limits through: take \
         QEMU 10.2 or newer (--qemu), or the front-end blk or scsi"
    )]
    NoTestDevice,
    #[error(
        "the guest cannot see this machine's files, which a program of yours needs: no usable virtiofsd \
         ({why}). Install it (on Debian 12 it comes with `apt install qemu-system-common`, later with \
         `apt install virtiofsd`), or name it in $TORNBLK_VIRTIOFSD"
    )]
    NoVirtiofsd { why: String },
    #[error("the guest cannot see this machine's files: {0}")]
    HostRoot(String),
    #[error("all {0} slots for disks are taken: detach one first")]
    NoSlot(usize),
    #[error("the marks of the guest's workload cannot be recorded: {0}")]
    Marks(String),
    #[error("the agent does not speak this version's language ({0}): build it and the image again")]
    Protocol(String),
    #[error("the guest's state cannot be saved: {0}")]
    Save(String),
    #[error("no shell can be had in the guest: {0}")]
    Shell(String),
    /// [`Host::stop`] or [`VmConfig::stop`] said so.
    #[error("interrupted")]
    Stopped,
}

fn tail(console: &str) -> String {
    let console = console.trim_end();
    if console.is_empty() {
        "; its console is empty".into()
    } else {
        format!("; the end of its console:\n{console}")
    }
}

fn words(stderr: &str) -> String {
    let stderr = stderr.trim();
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> VmError {
    let what = what.into();
    move |source| VmError::Io { what, source }
}

/// What a guest says on its serial console, in its folder.
pub const CONSOLE: &str = "console.log";

/// How long a boot may take: many times what it takes under emulation on a busy machine.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long QEMU may take for a command of its own.
const QMP_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a waiting call looks around.
const TICK: Duration = Duration::from_millis(10);

/// A running guest. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    // First, so that the process is gone before its sockets are.
    process: Process,
    root: Option<root::Root>,
    qmp: Qmp,
    agent: Agent,
    console: Console,
    slots: disk::Slots,
    /// Of the image, with what they need: the front-ends' drivers.
    drivers: Vec<(FrontEnd, Vec<String>)>,
    has_test_device: bool,
    reconnect: disk::Reconnect,
    cpus: u16,
    release: String,
    /// No deadline holds: see [`VmConfig::gdb`].
    patient: bool,
    stop: Option<Arc<AtomicBool>>,
}

impl Vm {
    /// Starts a guest; returns when its agent is ready.
    pub fn start(config: &VmConfig<'_>) -> Result<Vm, VmError> {
        if config.use_saved && config.gdb.is_none() {
            match saved::start(config) {
                Ok(vm) => return Ok(vm),
                Err(VmError::Stopped) => return Err(VmError::Stopped),
                Err(e) => {
                    log::warn!("the guest is booted, because no saved state can be used: {e}")
                }
            }
        }
        Vm::boot(config, BOOT_TIMEOUT)
    }

    /// Makes the saved state of such a guest where there is none, so that starting one takes a
    /// second from now on. `progress` is told where that takes longer.
    pub fn prepare(config: &VmConfig<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), VmError> {
        saved::ensure(config, progress)
    }

    /// Boots, saved state or not.
    pub fn boot(config: &VmConfig<'_>, timeout: Duration) -> Result<Vm, VmError> {
        let boot = || {
            let mut vm = Vm::launch(config, Threads::Each, &[], &[])?;
            vm.greet(timeout)?;
            Ok(vm)
        };
        match boot() {
            // No workload has begun: see `Threads` for what this mostly is.
            Err(VmError::Panic { line, .. })
                if config.accel == Accel::Tcg && config.gdb.is_none() =>
            {
                log::warn!(
                    "the guest's kernel panicked while it booted ({line}): booting it again"
                );
                boot()
            }
            other => other,
        }
    }

    /// Starts QEMU with these arguments added, and these sockets for them; nobody has heard of the
    /// guest yet.
    fn launch(
        config: &VmConfig<'_>,
        threads: Threads,
        more: &[String],
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Vm, VmError> {
        let (mine_qmp, its_qmp) = pair()?;
        let (mine_agent, its_agent) = pair()?;
        let log = config.dir.join("qemu.log");
        let console = Console::open(config.dir.join(CONSOLE))?;
        let mut args = machine::args(config, threads, console.path(), &its_qmp, &its_agent);
        args.extend(more.iter().map(OsString::from));
        let fds = [&[its_qmp.as_fd(), its_agent.as_fd()], sockets].concat();
        let cannot = || io(format!("cannot start {}", config.qemu.path().display()));
        let process = Process::spawn(config.qemu.path(), args, &fds, &log).map_err(cannot())?;
        // Else its end would never be seen on the sockets.
        drop((its_qmp, its_agent));
        let mut vm = Vm {
            process,
            root: None,
            qmp: Qmp::new(mine_qmp)?,
            agent: Agent::new(mine_agent)?,
            console,
            slots: disk::Slots::default(),
            drivers: drivers(config.image),
            has_test_device: config.qemu.has_test_device(),
            reconnect: disk::Reconnect::of(&config.qemu),
            cpus: config.cpus,
            release: config.image.release.clone(),
            patient: config.gdb.is_some(),
            stop: config.stop.clone(),
        };
        vm.qmp.handshake(QMP_TIMEOUT).map_err(|e| vm.what_really(e))?;
        Ok(vm)
    }

    /// Waits for the agent's first words.
    fn greet(&mut self, timeout: Duration) -> Result<(), VmError> {
        let start = Instant::now();
        while !self.agent.hello(TICK).map_err(|e| self.what_really(e))? {
            self.look()?;
            if start.elapsed() > timeout && !self.patient {
                let seconds = timeout.as_secs();
                return Err(VmError::BootTimeout { seconds, console: self.console_tail() });
            }
        }
        Ok(())
    }

    /// Modules, by name, of which the guest's kernel has the driver of a front-end.
    fn modules_for(&self, front_end: FrontEnd) -> Vec<String> {
        let of = self.drivers.iter().find(|(of, _)| *of == front_end);
        of.map_or_else(Vec::new, |(_, names)| names.clone())
    }

    /// Asks the agent for something and waits for its answer.
    pub fn call(
        &mut self,
        command: Command,
        host: &mut dyn Host,
        deadline: Instant,
    ) -> Result<Outcome, VmError> {
        let what = agent::name(&command);
        let start = Instant::now();
        self.agent.run(command).map_err(|e| self.what_really(e))?;
        loop {
            if host.stop() {
                return Err(VmError::Stopped);
            }
            match self.agent.step(host, TICK) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(e) => return Err(self.what_really(e)),
            }
            self.look()?;
            if Instant::now() > deadline && !self.patient {
                let seconds = start.elapsed().as_secs();
                return Err(VmError::Hung { what, seconds, console: self.console_tail() });
            }
        }
    }

    /// Whether the agent still answers: its kernel's release.
    pub fn ping(&mut self, timeout: Duration) -> Result<String, VmError> {
        let start = Instant::now();
        let id = self.agent.ping().map_err(|e| self.what_really(e))?;
        loop {
            if let Some(kernel) = self.agent.pong(id, TICK).map_err(|e| self.what_really(e))? {
                return Ok(kernel);
            }
            self.look()?;
            if start.elapsed() > timeout && !self.patient {
                let (what, seconds) = ("a ping".to_owned(), timeout.as_secs());
                return Err(VmError::Hung { what, seconds, console: self.console_tail() });
            }
        }
    }

    /// A panic on the console, the end of QEMU, or the wish to stop, as an error.
    fn look(&mut self) -> Result<(), VmError> {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(VmError::Stopped);
        }
        if let Some(line) = self.console.panic() {
            return Err(VmError::Panic { line, console: self.console_tail() });
        }
        if let Some(status) = self.process.ended() {
            // What it said at its end may not have been seen yet.
            if let Some(line) = self.console.panic_now() {
                return Err(VmError::Panic { line, console: self.console_tail() });
            }
            let stderr = self.process.words();
            return Err(VmError::Exited { status, stderr, console: self.console_tail() });
        }
        Ok(())
    }

    /// A broken socket is mostly but the first that is seen of something else.
    fn what_really(&mut self, error: VmError) -> VmError {
        if matches!(error, VmError::Io { .. }) {
            // The process may end a moment after its sockets.
            for _ in 0..50 {
                if let Err(better) = self.look() {
                    return better;
                }
                std::thread::sleep(TICK);
            }
        }
        error
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// The guest's kernel.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Halts the guest's processors; a vhost-user device is told to end what it has in flight.
    pub fn pause(&mut self) -> Result<(), VmError> {
        self.qmp.execute(&qapi::qmp::stop {}, QMP_TIMEOUT).map_err(|e| self.what_really(e))?;
        Ok(())
    }

    /// After [`Vm::pause`].
    pub fn resume(&mut self) -> Result<(), VmError> {
        self.qmp.execute(&qapi::qmp::cont {}, QMP_TIMEOUT).map_err(|e| self.what_really(e))?;
        Ok(())
    }

    /// Writes the guest, which must have no disk, into the file `path`, with what it said on its
    /// console beside it, and ends QEMU. [`Vm::restore`] goes on from there.
    pub fn save(self, config: &VmConfig<'_>, path: &Path) -> Result<(), VmError> {
        saved::keep(self, config, path)
    }

    /// A guest as it was at [`Vm::save`], started from the same configuration.
    pub fn restore(config: &VmConfig<'_>, path: &Path) -> Result<Vm, VmError> {
        saved::restore(config, path)
    }

    /// Cuts the power: SIGKILL. When it returns, the process is gone.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Ends QEMU in order (the guest is not asked).
    pub fn quit(mut self) {
        let _ = self.qmp.execute(&qapi::qmp::quit {}, Duration::from_secs(5));
        self.process.wait(Duration::from_secs(5));
    }
}

/// What the image has as modules of each front-end's driver; built in, it needs none.
fn drivers(image: &Image) -> Vec<(FrontEnd, Vec<String>)> {
    let names = |front_end: FrontEnd| {
        image.load_order(front_end.modules()).iter().map(|m| m.name.clone()).collect()
    };
    [FrontEnd::Blk, FrontEnd::BlkFull, FrontEnd::Scsi].map(|of| (of, names(of))).to_vec()
}

/// Two ends of a connection.
fn pair() -> Result<(UnixStream, UnixStream), VmError> {
    UnixStream::pair().map_err(io("cannot make a socket"))
}

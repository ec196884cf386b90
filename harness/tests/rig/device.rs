//! `tornblkd` as a process that may be killed at any moment and is started again as it was: the same
//! command line, the same sockets, the same files.

use super::history::{self, ANOTHER, Resumed};
use super::{Result, SERIAL, told, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tornblk::vm::FrontEnd;
use tornblk::vm::process::Process;
use tornblk_model::recording::Reader;
use tornblk_proto::{Client, Match, StallWhen, Status};

/// How long the device may take from its start to its control socket: it reads its recording.
const START: Duration = Duration::from_secs(60);

/// Where the bytes of the disk go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Raw,
    Recorded,
}

#[derive(Debug)]
pub(crate) struct Device {
    dir: PathBuf,
    store: Store,
    front_end: FrontEnd,
    more: Vec<String>,
    running: Option<(Process, Client)>,
    /// How often it was started.
    pub(crate) starts: u32,
}

/// Of a process, as proc_pid_status(5) has it, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) rss: u64,
    /// Its own.
    pub(crate) anon: u64,
    /// Mapped from files: the program, the end of the recording.
    pub(crate) file: u64,
    /// The guest's memory, as far as the device looked into it.
    pub(crate) shared: u64,
}

impl Device {
    /// Makes an empty disk of `size` bytes in `dir` and starts a device on it.
    pub(crate) fn new(
        dir: &Path,
        store: Store,
        front_end: FrontEnd,
        size: u64,
        more: &[&str],
    ) -> Result<Device> {
        std::fs::create_dir_all(dir).map_err(told("cannot make the disk's folder"))?;
        let made = std::fs::File::create(dir.join("disk.img")).and_then(|f| f.set_len(size));
        made.map_err(told("cannot make the disk"))?;
        let more = more.iter().map(|option| (*option).to_owned()).collect();
        let mut device =
            Device { dir: dir.to_owned(), store, front_end, more, running: None, starts: 0 };
        device.start()?;
        Ok(device)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    pub(crate) fn recording(&self) -> PathBuf {
        self.dir.join("disk.rec")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("tornblkd.log")
    }

    pub(crate) fn store(&self) -> Store {
        self.store
    }

    pub(crate) fn front_end(&self) -> FrontEnd {
        self.front_end
    }

    /// Starts it, and waits until it can be asked.
    pub(crate) fn start(&mut self) -> Result<()> {
        let control = self.dir.join("ctl");
        let mut args: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: &Path| args.extend([name.into(), value.into()]);
        option("--socket", &self.socket());
        option("--control", &control);
        option("--image", &self.image());
        option("--serial", Path::new(SERIAL));
        option("--front-end", Path::new(self.front_end.of_device()));
        if self.store == Store::Recorded {
            option("--recording", &self.recording());
        }
        args.extend(self.more.iter().map(OsString::from));
        let program = tornblk::device::find_tornblkd().map_err(told("no tornblkd"))?;
        let mut process = Process::spawn(&program, args, &[], &self.log())
            .map_err(told("tornblkd cannot be started"))?;
        self.starts += 1;
        let client = wait_until("the device's start", START, || match process.ended() {
            Some(how) => Err(format!("tornblkd ended ({how}): {}", process.words())),
            None => Ok(Client::connect(&control).ok()),
        })?;
        // The disk's own socket comes a moment later.
        wait_until("the device's socket", START, || Ok(client.status().ok()))?;
        self.running = Some((process, client));
        Ok(())
    }

    fn running(&self) -> Result<&(Process, Client)> {
        self.running.as_ref().ok_or_else(|| "the device does not run now".to_owned())
    }

    pub(crate) fn client(&self) -> Result<&Client> {
        self.running().map(|(_, client)| client)
    }

    pub(crate) fn status(&self) -> Result<Status> {
        self.client()?.status().map_err(told("the device does not tell its status"))
    }

    /// Holds the requests that match; gives the token by which they are let go.
    pub(crate) fn stall(&self, which: Match, when: StallWhen) -> Result<u64> {
        self.client()?.stall(which, when).map_err(told("no stall"))
    }

    /// How many requests are held now.
    pub(crate) fn held(&self) -> Result<u64> {
        Ok(self.status()?.stalls.iter().map(|stall| stall.held).sum())
    }

    /// Lets go what a stall holds, and gives how many that were.
    pub(crate) fn release(&self, token: u64) -> Result<u64> {
        self.client()?.release(token).map_err(told("a stall cannot be released"))
    }

    /// The next front-end is not the one that was here: what it had in flight is over.
    pub(crate) fn another_qemu(&self) -> Result<()> {
        wait_until("QEMU's end is seen", Duration::from_secs(10), || {
            Ok((!self.status()?.connected).then_some(()))
        })?;
        if self.store == Store::Recorded {
            self.client()?.mark(ANOTHER).map_err(told("no mark"))?;
        }
        Ok(())
    }

    /// What the recording tells of its requests, and of the device's restarts.
    pub(crate) fn history(&self) -> Result<Resumed> {
        let told = history::check(&self.recording(), self.front_end != FrontEnd::Scsi)?;
        if told.restarts + 1 == u64::from(self.starts) {
            return Ok(told);
        }
        Err(format!(
            "the device was started {} times, and its recording tells of {} restarts",
            self.starts, told.restarts
        ))
    }

    /// SIGKILL. When it returns, nothing of the process is left but its sockets' names.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.alive()?;
        // Process first: a client that goes would end its stalls, and the device would go on.
        if let Some((mut process, client)) = self.running.take() {
            process.kill();
            drop(client);
        }
        Ok(())
    }

    /// Ends it as a user does, and says how it ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.alive()?;
        let Some((mut process, client)) = self.running.take() else { return Ok(()) };
        drop(client);
        signal(process.pid(), Signal::TERM)?;
        let ended =
            wait_until("the device's end", Duration::from_secs(20), || Ok(process.ended()))?;
        if ended == "status 0" { Ok(()) } else { Err(format!("tornblkd ended with {ended}")) }
    }

    /// That it did not end by itself.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match &mut self.running {
            Some((process, _)) => match process.ended() {
                Some(how) => Err(format!("tornblkd ended by itself ({how}): {}", process.words())),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Stops the process where it is, all threads of it.
    pub(crate) fn freeze(&self) -> Result<()> {
        signal(self.running()?.0.pid(), Signal::STOP)
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        signal(self.running()?.0.pid(), Signal::CONT)
    }

    /// Waits until QEMU is connected, which it tries once a second.
    pub(crate) fn connected(&self) -> Result<()> {
        wait_until("QEMU connects again", Duration::from_secs(30), || {
            Ok(self.status()?.connected.then_some(()))
        })
    }

    /// That the recording is sound.
    pub(crate) fn verify(&self) -> Result<()> {
        match self.store {
            Store::Raw => Ok(()),
            Store::Recorded => tornblk(&["verify".as_ref(), self.recording().as_ref()]),
        }
    }

    /// The disk as the host has it, as a file: the image, or what the recording makes of it. While
    /// nothing is in flight.
    pub(crate) fn content(&self) -> Result<PathBuf> {
        if self.store == Store::Raw {
            return Ok(self.image());
        }
        let info = Reader::open(&self.recording()).and_then(|reader| reader.info());
        let last = info.map_err(told("the recording"))?.last.ok_or("the recording is empty")?;
        // All that was written until its last event.
        let (state, file) = (format!("lb512/p{last}:all"), self.dir.join("exported.img"));
        let _ = std::fs::remove_file(&file);
        let fixed = ["export", "--format", "raw", "--state", &state, "-o"];
        let files = [file.clone(), self.recording()];
        let args: Vec<&OsStr> =
            fixed.iter().map(OsStr::new).chain(files.iter().map(|f| f.as_os_str())).collect();
        tornblk(&args)?;
        Ok(file)
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let pid = self.running()?.0.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(told("the device's memory is not known"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.ok_or_else(|| format!("/proc/{pid}/status has no {name}"))
        };
        Ok(Memory {
            rss: field("VmRSS:")?,
            anon: field("RssAnon:")?,
            file: field("RssFile:")?,
            shared: field("RssShmem:")?,
        })
    }
}

/// `tornblk recording ...`, as a user runs it.
fn tornblk(args: &[&OsStr]) -> Result<()> {
    let program = env!("CARGO_BIN_EXE_tornblk");
    let out = Command::new(program).arg("recording").args(args).output();
    let out = out.map_err(told("tornblk cannot be run"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    let failed = || format!("tornblk recording {args:?}: {}", said.trim());
    if out.status.success() { Ok(()) } else { Err(failed()) }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or("no process")?;
    kill_process(pid, signal).map_err(told("the device cannot be signalled"))
}

//! Runs `tornblkd` as a process: starts it, waits for its sockets, stops it, keeps its log.
//!
//! The sockets live in a temporary folder (a socket's path has at most 107 bytes, the run's folder
//! may have more). The process is killed when this one dies, however that happens.

mod process;

pub use process::find_tornblkd;

use crate::vm::FrontEnd;
use process::Process;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tornblk_proto::{Client, ClientError};

/// How long the device may take from its start to its sockets.
const START: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "tornblkd was not found (looked in {}): build it with `cargo build -p tornblk-backend`, or name it in $TORNBLKD",
        .looked.join(", ")
    )]
    NoProgram { looked: Vec<String> },
    #[error("cannot run {}: {source}", program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// It ended by itself: what it said last.
    #[error("tornblkd ended ({status}): {said} (its log: {})", log.display())]
    Ended { status: String, said: String, log: PathBuf },
    #[error("tornblkd made no sockets within {} s (its log: {})", START.as_secs(), log.display())]
    Slow { log: PathBuf },
    #[error(transparent)]
    Control(#[from] ClientError),
}

/// What to start.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    pub image: PathBuf,
    /// `None`: the image itself is written.
    pub recording: Option<PathBuf>,
    pub profile: String,
    pub logical_block_size: u32,
    pub front_end: FrontEnd,
    /// `--lun`, each; none: one disk.
    pub luns: Vec<String>,
    pub serial: String,
    pub seed: u64,
    /// Armed from the start.
    pub faults: Vec<String>,
    /// `--hold-completions`; `None`: off.
    pub hold_completions: Option<String>,
    /// Gets everything that the device says.
    pub log: PathBuf,
}

/// A device that shows the states of a recording, and no live disk.
#[derive(Clone, Debug)]
pub struct StatesSpec {
    pub recording: PathBuf,
    /// A copy of its base image, where that is not in its place any more.
    pub base: Option<PathBuf>,
    pub profile: String,
    pub front_end: FrontEnd,
    /// `--lun`, each; none: one disk.
    pub luns: Vec<String>,
    pub serial: String,
    /// Where what is done to a state may be recorded, besides beside the recording.
    pub folder: PathBuf,
    /// Gets everything that the device says.
    pub log: PathBuf,
}

/// A device that runs. Killed when dropped.
#[derive(Debug)]
pub struct Device {
    client: Client,
    // Below the client: its sockets go after it, and the folder after the process.
    process: Process,
    folder: tempfile::TempDir,
}

impl Device {
    /// Starts `tornblkd` and waits until both sockets are there.
    pub fn start(program: &Path, spec: &DiskSpec) -> Result<Device, DeviceError> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        let mut option = |name: &str, value: &std::ffi::OsStr| {
            arguments.push(name.into());
            arguments.push(value.to_owned());
        };
        option("--image", spec.image.as_os_str());
        if let Some(recording) = &spec.recording {
            option("--recording", recording.as_os_str());
        }
        option("--profile", spec.profile.as_ref());
        option("--logical-block-size", spec.logical_block_size.to_string().as_ref());
        option("--serial", spec.serial.as_ref());
        if spec.front_end != FrontEnd::default() {
            option("--front-end", spec.front_end.of_device().as_ref());
        }
        for lun in &spec.luns {
            option("--lun", lun.as_ref());
        }
        option("--seed", spec.seed.to_string().as_ref());
        for fault in &spec.faults {
            option("--fault", fault.as_ref());
        }
        if let Some(hold) = &spec.hold_completions {
            option("--hold-completions", hold.as_ref());
        }
        Device::launch(program, arguments, &spec.log)
    }

    /// Starts one that shows states.
    pub fn start_states(program: &Path, spec: &StatesSpec) -> Result<Device, DeviceError> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        let mut option = |name: &str, value: &std::ffi::OsStr| {
            arguments.push(name.into());
            arguments.push(value.to_owned());
        };
        option("--states", spec.recording.as_os_str());
        if let Some(base) = &spec.base {
            option("--image", base.as_os_str());
        }
        option("--profile", spec.profile.as_ref());
        if spec.front_end != FrontEnd::default() {
            option("--front-end", spec.front_end.of_device().as_ref());
        }
        for lun in &spec.luns {
            option("--lun", lun.as_ref());
        }
        option("--serial", spec.serial.as_ref());
        option("--allow", spec.folder.as_os_str());
        Device::launch(program, arguments, &spec.log)
    }

    /// Starts it with these arguments and sockets of its own.
    pub(crate) fn launch(
        program: &Path,
        mut arguments: Vec<std::ffi::OsString>,
        log: &Path,
    ) -> Result<Device, DeviceError> {
        let folder = tempfile::Builder::new().prefix("tornblk-").tempdir().map_err(|source| {
            DeviceError::Io { what: "make a folder in", path: std::env::temp_dir(), source }
        })?;
        let (socket, control) = (folder.path().join("disk"), folder.path().join("control"));
        for (name, path) in [("--socket", &socket), ("--control", &control)] {
            arguments.push(name.into());
            arguments.push(path.into());
        }
        let mut process = Process::spawn(program, &arguments, log)?;
        let client = process.wait_for(START, || {
            if !is_listening(&socket) {
                return Ok(None);
            }
            match Client::connect(&control) {
                Ok(client) => Ok(Some(client)),
                Err(ClientError::NoDevice(_)) => Ok(None),
                Err(e) => Err(DeviceError::Control(e)),
            }
        })?;
        Ok(Device { client, process, folder })
    }

    /// Where QEMU connects.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Process id of `tornblkd`.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it is controlled.
    pub fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Why a call on [`Device::client`] may have failed: says so if the process is gone.
    pub fn check(&mut self) -> Result<(), DeviceError> {
        self.process.check()
    }

    /// What it said since it was asked last of writes that did not arrive as they should: split,
    /// merged, misaligned, across a boundary, or refused.
    pub fn said_of_writes(&mut self) -> Vec<String> {
        self.process.new_lines().iter().filter_map(|line| of_writes(line)).collect()
    }

    /// Ends it in order, so that everything it has is written.
    pub fn stop(mut self) -> Result<(), DeviceError> {
        self.process.stop()
    }
}

/// A warning of the device's log about how a write arrived, without its head.
fn of_writes(line: &str) -> Option<String> {
    const BEGIN: [&str; 4] =
        ["split: ", "merged-beyond-limit: ", "misaligned: ", "across-boundary: "];
    let text = line.split_once(" WARN ] ")?.1;
    let refused = text.contains("WRITE ATOMIC of ") && text.contains(" is refused");
    (refused || BEGIN.iter().any(|begin| text.starts_with(begin))).then(|| text.to_owned())
}

/// Does somebody listen at this path? A socket has its name a moment before that. Connecting would
/// tell, too, but the device would take it for its front-end.
pub(crate) fn is_listening(path: &Path) -> bool {
    /// `__SO_ACCEPTCON`, as /proc/net/unix shows it (proc_net_unix(5)).
    const LISTENS: u64 = 1 << 16;
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // Num RefCount Protocol Flags Type St Inode Path
    table.lines().skip(1).any(|line| {
        let flags = line.split_ascii_whitespace().nth(3);
        let flags = flags.and_then(|flags| u64::from_str_radix(flags, 16).ok());
        let rest = path.to_str().and_then(|path| line.strip_suffix(path));
        flags.is_some_and(|flags| flags & LISTENS != 0) && rest.is_some_and(|r| r.ends_with(' '))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

    #[test]
    fn what_the_device_says_of_writes_is_told_and_nothing_else() {
        let head = "[2026-01-31T23:59:59Z WARN ] ";
        for text in [
            "split: of a write of 16384 bytes, named 0, only 4096 bytes at offset 0 arrived",
            "queue 2: WRITE ATOMIC of 128k at byte 0 is refused: its atomic boundary, 128k, is more",
        ] {
            assert_eq!(of_writes(&format!("{head}{text}")).as_deref(), Some(text));
        }
        assert_eq!(of_writes(&format!("{head}2 requests were in flight when it went away")), None);
        assert_eq!(of_writes("[2026-01-31T23:59:59Z INFO ] split: "), None);
    }

    #[test]
    fn a_socket_is_ready_when_it_is_listened_at_not_when_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with a space");
        assert!(!is_listening(&path));
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert!(path.exists() && !is_listening(&path));
        rustix::net::listen(&socket, 1).unwrap();
        assert!(is_listening(&path));
        drop(socket);
        assert!(path.exists() && !is_listening(&path));
    }
}

//! The devices, as processes: started for one cell, ended after it.

use super::{BenchError, Server};
use crate::device::Device;
use crate::vm::process::Process;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For a device to make its socket.
const START: Duration = Duration::from_secs(20);
/// Of every device, whatever the load: as many as any load uses.
pub const QUEUES: u16 = 4;

/// Programs and places.
#[derive(Clone, Debug)]
pub struct Places {
    pub tornblkd: PathBuf,
    /// The other device, where there is one.
    pub against: Option<PathBuf>,
    /// Images, recordings and logs.
    pub folder: PathBuf,
    /// Bytes of a logical block, the same for all: 512, or what direct I/O takes in the folder.
    pub block: u32,
}

/// The smallest logical block with which an image can be used past the page cache: statx(2),
/// STATX_DIOALIGN. `None`: it cannot.
pub fn smallest_block(image: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(image, flags, Mode::empty()).ok()?;
    let told = statx(CWD, image, AtFlags::empty(), StatxFlags::DIOALIGN).ok();
    let told = told.filter(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    // What is not told (tmpfs) is taken for a page, as `tornblkd --direct` does.
    let align = told.map_or(4096, |told| told.stx_dio_offset_align);
    (align > 0).then(|| align.max(512))
}

/// A device that runs.
#[derive(Debug)]
pub enum Running {
    Own(Device),
    Other { process: Process, socket: PathBuf },
}

impl Running {
    pub fn start(places: &Places, server: Server, image: &Path) -> Result<Running, BenchError> {
        let log = log(places, server);
        if server.against() {
            return other(places, server, image, &log);
        }
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: &std::ffi::OsStr| {
            arguments.push(name.into());
            arguments.push(value.to_owned());
        };
        option("--image", image.as_os_str());
        option("--num-queues", QUEUES.to_string().as_ref());
        option("--logical-block-size", places.block.to_string().as_ref());
        match server {
            Server::Recording => {
                let recording = places.folder.join("recording");
                remove(&recording)?;
                option("--recording", recording.as_os_str());
            }
            // Looked for in every request; it strikes the first sector at some far time.
            Server::RawFault => option("--fault", "eio,range=0+512,nth=1000000000".as_ref()),
            Server::RawPoll => option("--poll-us", "50".as_ref()),
            _ => {}
        }
        if server.direct() {
            arguments.push("--direct".into());
        }
        Ok(Running::Own(Device::launch(&places.tornblkd, arguments, &log)?))
    }

    pub fn socket(&self) -> PathBuf {
        match self {
            Running::Own(device) => device.socket(),
            Running::Other { socket, .. } => socket.clone(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Running::Own(device) => device.pid(),
            Running::Other { process, .. } => process.pid(),
        }
    }

    /// Processor time until now, of all threads that it has or had.
    pub fn cpu(&self) -> Duration {
        let pid = Pid::from_raw(self.pid() as i32);
        let time = clock_getcpuclockid(pid).and_then(clock_gettime);
        // Zero where it is gone, which whoever asked it something finds out.
        time.map_or(Duration::ZERO, Duration::from)
    }

    /// Private memory, in KiB: proc_pid_status(5).
    pub fn anonymous_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    pub fn stop(self) -> Result<(), BenchError> {
        match self {
            Running::Own(device) => Ok(device.stop()?),
            Running::Other { .. } => Ok(()),
        }
    }
}

/// Where a device's words go.
pub fn log(places: &Places, server: Server) -> PathBuf {
    places.folder.join(if server.against() { "other.log" } else { "tornblkd.log" })
}

pub fn remove(path: &Path) -> Result<(), BenchError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(BenchError::Io { what: "remove", path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// qemu-storage-daemon, as its manual page shows a vhost-user-blk export.
fn other(places: &Places, server: Server, image: &Path, log: &Path) -> Result<Running, BenchError> {
    let program = places.against.clone().unwrap_or_default();
    let name = || program.display().to_string();
    let socket = places.folder.join("other.sock");
    remove(&socket)?;
    // A comma is doubled: it ends a value otherwise.
    let text = |path: &Path| path.display().to_string().replace(',', ",,");
    let direct = if server.direct() { "on" } else { "off" };
    let blockdev = format!(
        "driver=file,node-name=disk,filename={},aio=io_uring,cache.direct={direct},discard=unmap",
        text(image)
    );
    let export = format!(
        "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={},writable=on,\
         num-queues={QUEUES},logical-block-size={}",
        text(&socket),
        places.block
    );
    let arguments = ["--blockdev", &blockdev, "--export", &export].map(OsString::from).to_vec();
    let mut process = Process::spawn(&program, arguments, &[], log)
        .map_err(|source| BenchError::NoProgram { program: name(), source })?;
    let start = Instant::now();
    while !crate::device::is_listening(&socket) {
        if let Some(ended) = process.ended() {
            return Err(BenchError::Ended { program: name(), said: said(log, &ended) });
        }
        if start.elapsed() > START {
            let seconds = START.as_secs();
            return Err(BenchError::Slow { program: name(), seconds, said: said(log, "") });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(Running::Other { process, socket })
}

/// Its last line.
fn said(log: &Path, ended: &str) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    match text.lines().last() {
        Some(line) => line.to_owned(),
        None => format!("{ended}; it said nothing"),
    }
}

//! The user's own programs. They see the host's files: its root, read-only through virtiofs, with a
//! writable layer in the guest's memory above it; and in that the disk under test, which is where they
//! begin. What they change beside that disk is gone when they end, and so is whom they left behind: what
//! one run does cannot be seen by the next.
//!
//! `tornblk-mark NAME` marks the recording: the agent itself, under another name, which gives the name
//! to the agent that runs as PID 1 and waits until the host has recorded it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_settime};
use serde_json::{Value, json};

use super::outbox::Outbox;
use super::sys::{self, Extent};
use super::{Error, Result, btrfs, exec, fs};
use crate::channel::{
    FileMap, Folder, MarkText, Program, Ran, USER_DISK, USER_DISKS, USER_FILES, USER_MOUNT,
    USER_MOUNTS, USER_ROOT,
};

/// What the program that marks is called.
pub const MARKER: &str = "tornblk-mark";
/// This program, where the image has it.
const AGENT: &str = "/init";
/// In the user's root: where the program that marks asks, and the marks before the crash.
const SOCKET: &str = "mark";
const MARKS: &str = "marks";

/// The host's files, and the two halves of the layer above them.
const HOST: &str = "/host";
const OVER: &str = "/over";

/// Bytes of a mark's name: one line that can be read.
const NAME_MAX: usize = 512;
/// Files and their pieces that are told of, about.
const EXTENTS_MAX: usize = 20_000;
/// How often the thread that takes marks looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// How long a device may take to be there.
const PLUGGED: Duration = Duration::from_secs(20);
/// How long what is killed may take to be gone, and what is closed to be let go.
const TO_LET_GO: Duration = Duration::from_secs(5);
/// How long a program that asks for a mark may take to say which.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gets the host's files, of the virtiofs device with this tag, and what else every run needs.
///
/// # Errors
/// The kernel has no virtiofs, or there is no such device.
pub fn host_root(tag: &str, now_ms: u64) -> Result<Value> {
    set_clock(now_ms)?;
    let start = Instant::now();
    // Nobody tells when a device that was plugged in is there: until then there is no such tag.
    while let Err(e) = fs::mount(tag, HOST, "virtiofs", "ro") {
        if e.errno() != Some(libc::EINVAL) || start.elapsed() > PLUGGED {
            return Err(e);
        }
        std::thread::sleep(LOOK);
    }
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    // Where it is built in there is nothing to load; where it is missing that is told soon enough.
    let _ = exec::run(&words(&["/usr/sbin/modprobe", "overlay"]), PATIENCE);
    // Servers and their clients; a kernel without networks has programs without.
    let _ = exec::run(&words(&["/usr/bin/busybox", "ip", "link", "set", "lo", "up"]), PATIENCE);
    make(USER_MOUNT)?;
    Ok(json!({}))
}

fn set_clock(now_ms: u64) -> Result<()> {
    let seconds = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let now = Timespec { tv_sec: seconds, tv_nsec: (now_ms % 1000) as i64 * 1_000_000 };
    clock_settime(ClockId::Realtime, now).map_err(Error::system("cannot set the clock"))
}

fn inside(path: &str) -> String {
    format!("{USER_ROOT}{path}")
}

fn make(dir: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::system(format!("cannot make {dir}")))
}

fn set_mode(path: &str, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::system(format!("cannot change the mode of {path}")))
}

/// The root of one run. What it changed in there is gone with it, and so is everybody who is in it.
struct Root {
    mounted: Vec<String>,
}

impl Root {
    /// `disks`: further ones, which are mounted.
    fn build(disks: &[String]) -> Result<Root> {
        let mut root = Root { mounted: Vec::new() };
        root.mount("tmpfs", OVER, "tmpfs", "mode=0755")?;
        for half in ["upper", "work"] {
            make(&format!("{OVER}/{half}"))?;
        }
        // Its root's permissions are those of the upper layer.
        set_mode(&format!("{OVER}/upper"), 0o755)?;
        let layers = format!("lowerdir={HOST},upperdir={OVER}/upper,workdir={OVER}/work");
        root.mount("overlay", USER_ROOT, "overlay", &layers)?;
        for (fstype, at, options) in [
            ("proc", "/proc", ""),
            ("sysfs", "/sys", ""),
            ("devtmpfs", "/dev", ""),
            ("tmpfs", "/dev/shm", "mode=1777"),
            ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
            ("tmpfs", "/run", "mode=0755"),
        ] {
            root.mount(fstype, &inside(at), fstype, options)?;
        }
        for (name, of) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            // They stay: it is one and the same devtmpfs everywhere.
            let _ = std::os::unix::fs::symlink(
                format!("/proc/self/fd{of}"),
                inside(&format!("/dev/{name}")),
            );
        }
        root.bind(USER_MOUNT, &inside(USER_DISK), true)?;
        for name in disks {
            let at = inside(&format!("{USER_DISKS}/{name}"));
            root.bind(&format!("{USER_MOUNTS}/{name}"), &at, true)?;
        }
        root.bind(AGENT, &inside(&format!("{USER_FILES}/bin/{MARKER}")), false)?;
        Ok(root)
    }

    fn mount(&mut self, device: &str, at: &str, fstype: &str, options: &str) -> Result<()> {
        fs::mount(device, at, fstype, options)?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    fn bind(&mut self, from: &str, at: &str, folder: bool) -> Result<()> {
        if folder {
            make(at)?;
        } else {
            make(at.rsplit_once('/').map_or("/", |(dir, _)| dir))?;
            std::fs::write(at, "").map_err(Error::system(format!("cannot make {at}")))?;
        }
        rustix::mount::mount_bind(from, at)
            .map_err(Error::system(format!("cannot bind {from} to {at}")))?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    /// Ends everybody who is in it, and takes it down.
    fn leave(mut self) -> Result<()> {
        let end = Instant::now() + TO_LET_GO;
        loop {
            let left = inhabitants();
            let Some(one) = left.first() else { break };
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            exec::reap();
            if Instant::now() > end {
                let stack =
                    std::fs::read_to_string(format!("/proc/{}/stack", one.as_raw_nonzero()))
                        .unwrap_or_default();
                return Err(Error::TimedOut(format!(
                    "what a program left behind cannot be killed: it waits in the kernel: {}",
                    stack.lines().collect::<Vec<_>>().join(" < ")
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // What the program mounted itself lies above what it found there.
        for at in fs::mounts_below(USER_ROOT)?.iter().rev() {
            fs::umount_soon(at, TO_LET_GO)?;
        }
        self.mounted.clear();
        fs::umount_soon(OVER, TO_LET_GO)?;
        Ok(())
    }
}

/// Where something fails half-way.
impl Drop for Root {
    fn drop(&mut self) {
        while let Some(at) = self.mounted.pop() {
            let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
        }
    }
}

/// Processes that have that root.
fn inhabitants() -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let in_root = all.filter_map(|process| {
        let root = std::fs::read_link(process.path().join("root")).ok()?;
        let pid = process.file_name().to_str()?.parse().ok()?;
        root.starts_with(USER_ROOT).then(|| Pid::from_raw(pid)).flatten()
    });
    in_root.collect()
}

/// Runs a program in a root of its own, to its end; whatever it started ends with it. `outbox`: its marks
/// go there; without, nobody takes any.
///
/// # Errors
/// It cannot be started; [`Error::TimedOut`]: something of it waits in the kernel and cannot be killed.
pub fn run(program: &Program, outbox: Option<&Arc<Outbox>>) -> Result<Ran> {
    let [name, args @ ..] = program.argv.as_slice() else {
        return Err(Error::Refused("the program to run has no name".into()));
    };
    let root = Root::build(&program.disks)?;
    let marks = inside(&format!("{USER_FILES}/{MARKS}"));
    let lines: String = program.marks.iter().map(|mark| format!("{mark}\n")).collect();
    std::fs::write(&marks, lines).map_err(Error::system(format!("cannot write {marks}")))?;
    let marker = outbox.map(Marker::start).transpose()?;
    let mut command = Command::new(name);
    command.args(args).env_clear().envs(program.env.iter().map(|(k, v)| (k, v)));
    command.env("TORNBLK_MARKS", format!("{USER_FILES}/{MARKS}"));
    let enter = || {
        rustix::process::chroot(USER_ROOT)?;
        rustix::process::chdir(USER_DISK)?;
        Ok(())
    };
    // SAFETY: after fork it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    let ran = exec::carry_out(command, name, Duration::from_millis(program.timeout_ms))?;
    drop(marker);
    root.leave()?;
    Ok(ran)
}

/// Where the files on the disk lie; what cannot be read is left out.
pub fn file_map(folders: &[Folder]) -> FileMap {
    let (mut map, mut extents) = (FileMap::default(), 0);
    for folder in folders {
        look_through(folder, &mut map, &mut extents);
    }
    map
}

fn look_through(root: &Folder, map: &mut FileMap, extents: &mut usize) {
    let chunks = std::fs::File::open(&root.path)
        .ok()
        .filter(btrfs::is_btrfs)
        .map(|root| btrfs::Chunks::of(&root).unwrap_or_default());
    let mut folders = vec![std::path::PathBuf::from(&root.path)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                folders.push(path);
                continue;
            }
            if *extents + map.files.len() >= EXTENTS_MAX {
                map.more = true;
                return;
            }
            if !kind.is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let found = std::fs::File::open(&path)
                .and_then(|file| sys::extents(&file, 0, file.metadata()?.len()));
            let Ok(found) = found else {
                map.more = true;
                continue;
            };
            let on_disk = |e: &Extent| match &chunks {
                None => Some((e.offset, root.start + e.at, e.len)),
                Some(chunks) => {
                    let (at, most) = chunks.on_disk(e.at)?;
                    Some((e.offset, root.start + at, e.len.min(most)))
                }
            };
            let has_place = |e: &&Extent| !e.delayed && !e.encoded;
            let places: Vec<_> = found.iter().filter(has_place).filter_map(on_disk).collect();
            *extents += places.len();
            map.more |= places.len() < found.len();
            let name = path.strip_prefix(&root.path).unwrap_or(&path);
            map.files.push((format!("{}{}", root.prefix, name.display()), places));
        }
    }
}

/// A thread that takes marks while a program runs.
struct Marker {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Marker {
    fn start(outbox: &Arc<Outbox>) -> Result<Marker> {
        let path = inside(&format!("{USER_FILES}/{SOCKET}"));
        let _ = std::fs::remove_file(&path);
        let failed = || Error::system(format!("cannot listen on {path}"));
        let listener = UnixListener::bind(&path).map_err(failed())?;
        // Whoever the program is run as.
        set_mode(&path, 0o777)?;
        listener.set_nonblocking(true).map_err(failed())?;
        let (over, outbox) = (Arc::new(AtomicBool::new(false)), Arc::clone(outbox));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || take(&listener, &outbox, &until));
        Ok(Marker { over, thread: Some(thread) })
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn take(listener: &UnixListener, outbox: &Outbox, over: &AtomicBool) {
    let time = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    while !over.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&time));
        while let Ok((mut peer, _)) = listener.accept() {
            let said = match mark(&mut peer, outbox) {
                Ok(()) => "ok".to_owned(),
                Err(e) => e.to_string(),
            };
            // Whoever does not wait for the answer does not get it.
            let _ = peer.write_all(said.as_bytes());
        }
    }
}

fn mark(peer: &mut UnixStream, outbox: &Outbox) -> Result<()> {
    let failed = || Error::system("cannot read the mark's name");
    peer.set_nonblocking(false).map_err(failed())?;
    peer.set_read_timeout(Some(PATIENCE)).map_err(failed())?;
    let mut name = String::new();
    peer.take(NAME_MAX as u64 + 1).read_to_string(&mut name).map_err(failed())?;
    if name.is_empty() || name.len() > NAME_MAX || name.contains(char::is_control) {
        return Err(Error::Refused(format!(
            "a mark's name is one line of 1 to {NAME_MAX} bytes without control characters; this has {} bytes",
            name.len()
        )));
    }
    let batch = outbox.mark(vec![MarkText::Said { name }]);
    outbox.wait(batch)
}

/// `tornblk-mark NAME`: returns when the mark is on record.
pub fn mark_by_name(words: &[String]) -> ExitCode {
    let asked = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(format!("{USER_FILES}/{SOCKET}"))?;
        stream.write_all(words.join(" ").as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let why = match asked() {
        Ok(answer) if answer == "ok" => return ExitCode::SUCCESS,
        Ok(answer) if answer.is_empty() => "the guest's agent did not answer".to_owned(),
        Ok(answer) => answer,
        Err(e) => format!("nothing is recorded here ({e}): only the program of --exec marks"),
    };
    // A closed standard error is no reason to panic.
    let _ = writeln!(std::io::stderr(), "{MARKER}: {why}");
    ExitCode::FAILURE
}

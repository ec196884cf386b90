//! The user's own programs. They see the host's files: its root, read-only through virtiofs, with a
//! writable layer in the guest's memory above it; and in that the disk under test, which is where they
//! begin. What they change beside that disk is gone with the guest.
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
use rustix::process::{Signal, kill_process_group};
use serde_json::{Value, json};

use super::outbox::Outbox;
use super::{Error, Result, exec, fs, sys};
use crate::channel::{FileMap, MarkText, Program, Ran, USER_DISK, USER_FILES, USER_ROOT};

/// What the program that marks is called.
pub const MARKER: &str = "tornblk-mark";
/// In the user's root: where it is, where it asks, and the marks before the crash.
const BIN: &str = "bin";
const SOCKET: &str = "mark";
const MARKS: &str = "marks";

/// The host's files, and the two halves of the layer above them.
const HOST: &str = "/host";
const OVER: &str = "/over";

/// Bytes of a mark's name: one line that can be read.
const NAME_MAX: usize = 512;
/// Pieces of files that are told of, about.
const EXTENTS_MAX: usize = 20_000;
/// How often the thread that takes marks looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long a device may take to be there.
const PLUGGED: Duration = Duration::from_secs(20);
/// How long a program that asks for a mark may take to say which.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the root that the user's programs see, of the virtiofs device with this tag.
///
/// # Errors
/// The kernel has no virtiofs or overlayfs, or there is no such device.
pub fn host_root(tag: &str) -> Result<Value> {
    let start = Instant::now();
    // Nobody tells when a device that was plugged in is there: until then there is no such tag.
    while let Err(e) = fs::mount(tag, HOST, "virtiofs", "ro") {
        if e.errno() != Some(libc::EINVAL) || start.elapsed() > PLUGGED {
            return Err(e);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::mount("tmpfs", OVER, "tmpfs", "mode=0755")?;
    let layers = format!("lowerdir={HOST},upperdir={OVER}/upper,workdir={OVER}/work");
    for half in ["upper", "work"] {
        make(&format!("{OVER}/{half}"))?;
    }
    // Its root's permissions are those of the upper layer.
    set_mode(&format!("{OVER}/upper"), 0o755)?;
    exec::run(&["/usr/sbin/modprobe".into(), "overlay".into()], PATIENCE).map(drop).ok();
    fs::mount("overlay", USER_ROOT, "overlay", &layers)?;
    for (fstype, at, options) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("devtmpfs", "dev", ""),
        ("tmpfs", "dev/shm", "mode=1777"),
        ("tmpfs", "run", "mode=0755"),
    ] {
        fs::mount(fstype, &format!("{USER_ROOT}/{at}"), fstype, options)?;
    }
    make(&inside(USER_DISK))?;
    let bin = inside(&format!("{USER_FILES}/{BIN}"));
    make(&bin)?;
    let marker = format!("{bin}/{MARKER}");
    std::fs::copy("/proc/self/exe", &marker)
        .map_err(Error::system(format!("cannot write {marker}")))?;
    set_mode(&marker, 0o755)?;
    Ok(json!({}))
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

/// Runs a program in that root, to its end; whatever it started in its process group ends with it.
/// `outbox`: its marks go there; without, nobody takes any.
///
/// # Errors
/// It cannot be started.
pub fn run(program: &Program, outbox: Option<&Arc<Outbox>>) -> Result<Ran> {
    let [name, args @ ..] = program.argv.as_slice() else {
        return Err(Error::Refused("the program to run has no name".into()));
    };
    let marks = inside(&format!("{USER_FILES}/{MARKS}"));
    let mut lines = program.marks.join("\n");
    if !lines.is_empty() {
        lines.push('\n');
    }
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
    let ended = exec::carry_out(command, name, Duration::from_millis(program.timeout_ms))?;
    // A daemon of its would hold the disk.
    let _ = kill_process_group(ended.group, Signal::KILL);
    drop(marker);
    Ok(ended.ran)
}

/// Where the files on the disk lie; what cannot be read is left out.
pub fn file_map() -> FileMap {
    let root = inside(USER_DISK);
    let (mut map, mut extents) = (FileMap::default(), 0);
    let mut folders = vec![std::path::PathBuf::from(&root)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                folders.push(path);
                continue;
            }
            if extents >= EXTENTS_MAX || !kind.is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let found = std::fs::File::open(&path)
                .and_then(|file| sys::extents(&file, 0, file.metadata()?.len()));
            let Ok(found) = found else { continue };
            let places: Vec<_> =
                found.iter().filter(|e| !e.delayed).map(|e| (e.offset, e.at, e.len)).collect();
            extents += places.len();
            let name = path.strip_prefix(&root).unwrap_or(&path);
            map.files.push((name.to_string_lossy().into_owned(), places));
        }
    }
    map
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
    while !over.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&LOOK));
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
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\n') {
        return Err(Error::Refused(format!(
            "a mark's name is one line of 1 to {NAME_MAX} bytes; this has {} bytes",
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

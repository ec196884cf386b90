//! The part that the server's process plays.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, TimeOrNow,
};

use super::{Ask, Mode, Op, Spec, Status};
use crate::guest::child::answer;
use crate::guest::{Error, Result};

/// More than requests that are ever held: those must not keep the others from being answered.
const THREADS: usize = 24;
/// How long the kernel may keep names and attributes. Long, so that it must throw them away itself
/// whenever it changes them.
const KEEP: Duration = Duration::from_secs(3600);
const MAX_WRITE: u32 = 1 << 20;

/// Plays it: until the parent is gone, or asks no more.
///
/// # Errors
/// The arguments are not understood.
pub fn child(args: &[String]) -> Result<()> {
    let [spec] = args else { return Err(Error::Refused("one argument: the server's spec".into())) };
    let spec: Spec = serde_json::from_str(spec)
        .map_err(|e| Error::Refused(format!("the server's spec is not understood: {e}")))?;
    let shared = Arc::new(Shared::default());
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("tornblk".into())];
    config.n_threads = Some(THREADS);
    let server =
        Passthrough { spec: spec.clone(), shared: Arc::clone(&shared), files: Mutex::default() };
    let running = Session::new(server, &spec.mountpoint, &config).and_then(Session::spawn);
    let error = running.as_ref().err().map(io::Error::to_string);
    // It ends when it is unmounted, and the process with it: a parent that waits for that shall not
    // have to say so.
    if let Ok(running) = running {
        let _ = std::thread::Builder::new().name("end".into()).spawn(move || {
            let _ = running.join();
            #[allow(clippy::exit)]
            std::process::exit(0)
        });
    }
    answer(|ask: Ask| {
        match ask {
            Ask::Status {} => {}
            Ask::Hold { op } => {
                if op == Op::Write {
                    shared.most_writes.store(0, Ordering::SeqCst);
                }
                shared.gate(op).close();
            }
            Ask::Release { op } => shared.gate(op).open(),
        }
        shared.status(error.clone())
    })
}

/// What the session's threads and the parent's questions have in common.
#[derive(Debug, Default)]
struct Shared {
    offers: Mutex<(bool, bool)>,
    read: Gate,
    write: Gate,
    getattr: Gate,
    /// In the server now, and at once at most.
    writes: AtomicU32,
    most_writes: AtomicU32,
    opens: AtomicU32,
    one_at_a_time: Mutex<()>,
}

impl Shared {
    fn gate(&self, op: Op) -> &Gate {
        match op {
            Op::Read => &self.read,
            Op::Write => &self.write,
            Op::Getattr => &self.getattr,
        }
    }

    fn status(&self, error: Option<String>) -> Status {
        let (passthrough, mmap) = *lock(&self.offers);
        Status {
            error,
            passthrough,
            mmap,
            reads: self.read.held(),
            writes: self.write.held(),
            getattrs: self.getattr.held(),
            most_writes: self.most_writes.load(Ordering::SeqCst),
            opens: self.opens.load(Ordering::SeqCst),
        }
    }
}

/// Where requests wait while it is closed.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<(bool, u32)>,
    opened: Condvar,
}

impl Gate {
    fn close(&self) {
        lock(&self.state).0 = true;
    }

    fn open(&self) {
        lock(&self.state).0 = false;
        self.opened.notify_all();
    }

    fn held(&self) -> u32 {
        lock(&self.state).1
    }

    fn pass(&self) {
        let mut state = lock(&self.state);
        state.1 += 1;
        while state.0 {
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.1 -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of the directory, by its number.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    opens: u32,
    /// While it is open.
    file: Option<Arc<File>>,
    /// One for all opens of an inode, as the kernel wants it; as long as there is any.
    backing: Option<Arc<BackingId>>,
    /// What it held when it was opened first, where the server is to show that for ever.
    copy: Option<Vec<u8>>,
}

struct Passthrough {
    spec: Spec,
    shared: Arc<Shared>,
    files: Mutex<BTreeMap<u64, Entry>>,
}

impl Passthrough {
    fn wrong(&self, what: &str) -> bool {
        self.spec.wrong.as_deref() == Some(what)
    }

    fn path(&self, ino: INodeNo) -> std::result::Result<PathBuf, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(self.spec.backing.clone().into());
        }
        let files = lock(&self.files);
        files.get(&ino.0).map(|entry| entry.path.clone()).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: INodeNo) -> std::result::Result<FileAttr, Errno> {
        let stat = std::fs::symlink_metadata(self.path(ino)?).map_err(errno)?;
        Ok(attr(ino, &stat))
    }

    /// The open file behind a number.
    fn file(&self, ino: INodeNo) -> std::result::Result<Arc<File>, Errno> {
        let files = lock(&self.files);
        files.get(&ino.0).and_then(|entry| entry.file.clone()).ok_or(Errno::EBADF)
    }

    /// Opens the backing file, where it is not: what the kernel is to be told.
    fn opened(
        &self,
        ino: INodeNo,
        mode: Mode,
        reply: &ReplyOpen,
    ) -> std::result::Result<Option<Arc<BackingId>>, Errno> {
        let mut files = lock(&self.files);
        let entry = files.get_mut(&ino.0).ok_or(Errno::ENOENT)?;
        let file = match &entry.file {
            Some(file) => Arc::clone(file),
            None => Arc::new(
                OpenOptions::new().read(true).write(true).open(&entry.path).map_err(errno)?,
            ),
        };
        if mode.is_backed() && entry.backing.is_none() {
            entry.backing = Some(Arc::new(reply.open_backing(&*file).map_err(errno)?));
        }
        if self.wrong("stale-copy") && entry.copy.is_none() {
            entry.copy = Some(std::fs::read(&entry.path).map_err(errno)?);
        }
        entry.file = Some(file);
        entry.opens += 1;
        self.shared.opens.fetch_add(1, Ordering::SeqCst);
        Ok(entry.backing.clone().filter(|_| mode.is_backed()))
    }
}

fn errno(e: io::Error) -> Errno {
    Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))
}

fn attr(ino: INodeNo, stat: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        SystemTime::UNIX_EPOCH
            + Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0))
    };
    FileAttr {
        ino,
        size: stat.size(),
        blocks: stat.blocks(),
        atime: time(stat.atime(), stat.atime_nsec()),
        mtime: time(stat.mtime(), stat.mtime_nsec()),
        ctime: time(stat.ctime(), stat.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: if stat.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (stat.mode() & 0o7777) as u16,
        nlink: stat.nlink() as u32,
        uid: stat.uid(),
        gid: stat.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let passthrough = offered.contains(InitFlags::FUSE_PASSTHROUGH);
        let mmap = offered.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        *lock(&self.shared.offers) = (passthrough, mmap);
        let mut wanted = InitFlags::FUSE_ASYNC_DIO & offered;
        if passthrough {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            let _ = config.set_max_stack_depth(1);
        }
        if mmap && self.spec.mmap {
            wanted |= InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        }
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let path = Path::new(&self.spec.backing).join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_file() => {
                let ino = INodeNo(stat.ino());
                let new = || Entry { path, opens: 0, file: None, backing: None, copy: None };
                lock(&self.files).entry(ino.0).or_insert_with(new);
                reply.entry(&KEEP, &attr(ino, &stat), Generation(0));
            }
            Ok(_) => reply.error(Errno::ENOENT),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.attr(ino);
        if ino != INodeNo::ROOT {
            self.shared.getattr.pass();
        }
        match attr {
            Ok(attr) => reply.attr(&KEEP, &attr),
            Err(e) => reply.error(e),
        }
    }

    /// The size alone is ever changed.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = self.path(ino).and_then(|path| match size {
            Some(size) => OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(size))
                .map_err(errno),
            None => Ok(()),
        });
        match resized.and_then(|()| self.attr(ino)) {
            Ok(attr) => reply.attr(&KEEP, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut mode = self.spec.mode.unwrap_or_else(|| Mode::of_flags(flags.0));
        if self.wrong("other-mode") && mode == Mode::Cached {
            mode = Mode::Direct;
        }
        let backing = match self.opened(ino, mode, &reply) {
            Ok(backing) => backing,
            Err(e) => return reply.error(e),
        };
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let how = match mode {
            Mode::Passthrough => FopenFlags::empty(),
            Mode::Direct | Mode::Both => direct,
            Mode::Cached => FopenFlags::FOPEN_KEEP_CACHE,
        };
        match backing {
            Some(backing) => reply.opened_passthrough(FileHandle(0), how, &backing),
            None => reply.opened(FileHandle(0), how),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Both are let go outside of the lock: one is an ioctl.
        let last = lock(&self.files).get_mut(&ino.0).and_then(|entry| {
            entry.opens = entry.opens.saturating_sub(1);
            (entry.opens == 0).then(|| (entry.backing.take(), entry.file.take()))
        });
        drop(last);
        self.shared.opens.fetch_sub(1, Ordering::SeqCst);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let copy = lock(&self.files).get(&ino.0).and_then(|entry| entry.copy.clone());
        let read = match copy {
            Some(copy) => {
                let rest = copy.get(offset as usize..).unwrap_or_default();
                Ok(rest[..rest.len().min(size as usize)].to_vec())
            }
            None => self.file(ino).and_then(|file| {
                let mut bytes = vec![0; size as usize];
                let n = read_all(&file, &mut bytes, offset).map_err(errno)?;
                bytes.truncate(n);
                Ok(bytes)
            }),
        };
        self.shared.read.pass();
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: fuser::WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let now = self.shared.writes.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.most_writes.fetch_max(now, Ordering::SeqCst);
        let _alone = self.wrong("serial").then(|| lock(&self.shared.one_at_a_time));
        self.shared.write.pass();
        let dsync = flags.0 & libc::O_DSYNC != 0 && !self.wrong("forget-fsync");
        let written = self.file(ino).and_then(|file| {
            file.write_all_at(data, offset).map_err(errno)?;
            if dsync { file.sync_data().map_err(errno) } else { Ok(()) }
        });
        self.shared.writes.fetch_sub(1, Ordering::SeqCst);
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    /// In every mode: passthrough hands reads, writes and mappings to the backing file, no fsync.
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        let synced = self.file(ino).and_then(|file| {
            let sync = || if data { file.sync_data() } else { file.sync_all() };
            if self.wrong("forget-fsync") { Ok(()) } else { sync().map_err(errno) }
        });
        match synced {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        // Names are looked up, never listed.
        reply.ok();
    }
}

/// Reads up to the end of the file, or as much as there is room for.
fn read_all(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_holds_and_an_open_one_lets_go() {
        let gate = Arc::new(Gate::default());
        gate.pass();
        assert_eq!(gate.held(), 0);
        gate.close();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.pass())
            })
            .collect();
        while gate.held() < 3 {
            std::thread::yield_now();
        }
        gate.open();
        assert!(waiting.into_iter().all(|thread| thread.join().is_ok()));
        assert_eq!(gate.held(), 0);
    }
}

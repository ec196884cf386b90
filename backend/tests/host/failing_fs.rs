//! A file system whose disk fails when it is told to: one folder, files in memory, over FUSE.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, Session, WriteFlags,
};
use rustix::mount::UnmountFlags;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ROOT: INodeNo = INodeNo::ROOT;
/// For ever: only the kernel changes anything.
const KEEP: Duration = Duration::from_secs(3600);

/// What fails from now on.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    pub(crate) reads: AtomicBool,
    pub(crate) writes: AtomicBool,
    pub(crate) syncs: AtomicBool,
}

/// Mounted until it is dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) failing: Arc<Failing>,
    at: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

/// A device that has just ended has its files for a moment longer (its ring lets them go later), and then
/// nothing is unmounted: who removes the folder around it leaves all that is in it.
impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.session.take());
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

impl Mounted {
    /// With one file, `disk.img`.
    ///
    /// # Errors
    /// Nothing may be mounted here.
    pub(crate) fn at(path: &Path, image: Vec<u8>) -> io::Result<Mounted> {
        let failing = Arc::new(Failing::default());
        let files = Mutex::new(vec![("disk.img".into(), image)]);
        let disk = Disk { failing: Arc::clone(&failing), files };
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::new(disk, path, &config)?.spawn()?;
        Ok(Mounted { failing, at: path.to_owned(), session: Some(session) })
    }
}

struct Disk {
    failing: Arc<Failing>,
    /// The first has the number 2.
    files: Mutex<Vec<(OsString, Vec<u8>)>>,
}

impl Disk {
    fn with<T>(&self, ino: INodeNo, f: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, Errno> {
        let mut files = self.files.lock().unwrap();
        let number = (ino.0 as usize).checked_sub(2).ok_or(Errno::EISDIR)?;
        files.get_mut(number).map(|(_, bytes)| f(bytes)).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let folder = ino == ROOT;
        let size = if folder { 0 } else { self.with(ino, |bytes| bytes.len() as u64)? };
        let time: SystemTime = UNIX_EPOCH;
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn fails(what: &AtomicBool) -> Result<(), Errno> {
    if what.load(Ordering::SeqCst) { Err(Errno::EIO) } else { Ok(()) }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = self.files.lock().unwrap().iter().position(|(known, _)| known == name);
        match number.map(|n| self.attr(INodeNo(n as u64 + 2))) {
            Some(Ok(attr)) => reply.entry(&KEEP, &attr, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&KEEP, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let number = {
            let mut files = self.files.lock().unwrap();
            files.push((name.to_owned(), Vec::new()));
            files.len() + 1
        };
        match self.attr(INodeNo(number as u64)) {
            Ok(attr) => {
                reply.created(&KEEP, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(e) => reply.error(e),
        }
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
        let part = |bytes: &mut Vec<u8>| {
            let end = bytes.len().min(offset as usize + size as usize);
            bytes.get(offset as usize..end).unwrap_or_default().to_vec()
        };
        match fails(&self.failing.reads).and_then(|()| self.with(ino, part)) {
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
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let put = |bytes: &mut Vec<u8>| {
            let end = offset as usize + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(data);
        };
        match fails(&self.failing.writes).and_then(|()| self.with(ino, put)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match fails(&self.failing.syncs) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let end = (offset + length) as usize;
        match self.with(ino, |bytes| bytes.resize(bytes.len().max(end), 0)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }
}

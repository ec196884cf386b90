//! What the device keeps beside its socket, in `SOCKET.state`: the driver's choice of the write
//! cache, and what is in flight where the front-end offers no memory for that. It is there as long
//! as the socket is, so a device that was killed finds it when it is started again on the same one.
//!
//! It is removed at the end, unless a front-end is connected then and something in it matters.
//!
//! A block of 4 KiB, then a [`Region`]. Notes of a queue count again only where the rings lie where
//! they lay, in the same memory (its files by device and inode), and the used index is the one that
//! was noted, or the one after it: the device died just there.

use super::Region;
use super::region::Slot;
use crate::device::{Memory, RING_SIZE_MAX};
use crate::made::Made;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const MAGIC: [u8; 8] = *b"TORNSTA2";
const WRITEBACK_AT: u64 = 8;
/// What each queue's notes are about: 8 bytes.
const ABOUT_AT: u64 = 64;
/// What was shown at the socket, for people; zeroes behind it.
const SHOWN_AT: u64 = 1024;
const SHOWN_MAX: usize = 3000;
const BLOCK: u64 = 4096;
/// What vhost-user-backend can have.
const QUEUES: u16 = 64;

/// The file beside a socket.
#[derive(Debug)]
pub(in crate::vhost) struct Beside {
    made: Made,
    file: File,
    region: Arc<Region>,
    /// What the driver chose, as it stands in the file: 0 nothing, 1 off, 2 on.
    writeback: AtomicU8,
    writing: Mutex<()>,
    /// A front-end is there, and will look for the next device.
    kept: AtomicBool,
}

/// Of a driver that chose nothing.
const NO_CHOICE: u8 = 0;

impl Beside {
    /// Opens what was left beside `socket`, or begins anew. The socket is ours by now.
    pub(in crate::vhost) fn open(socket: &Path) -> io::Result<Beside> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".state");
        let path = PathBuf::from(path);
        let another = |what| Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        let there = std::fs::symlink_metadata(&path);
        if there.is_ok_and(|meta| !meta.is_file()) {
            return another("it is there, and no file");
        }
        // A pipe that comes in between is not waited for.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::open(&path, flags | OFlags::CLOEXEC, mode)?);
        let meta = file.metadata()?;
        if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
            return another("it is no file of this user");
        }
        let mut head = [0; 16];
        let len = BLOCK + Region::bytes(QUEUES, RING_SIZE_MAX);
        let known = file.read_exact_at(&mut head, 0).is_ok() && head[..7] == MAGIC[..7];
        if !known && meta.len() > 0 {
            // An image, say, or what somebody wrote.
            return another("it is a file of somebody else's");
        }
        if head[..8] != MAGIC || meta.len() != len {
            file.set_len(0)?;
            // So that a note always finds its place on the disk.
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    file.write_all_at(&vec![0; len as usize], 0)?
                }
                other => other?,
            }
            file.write_all_at(&MAGIC, 0)?;
            head = [0; 16];
        }
        let writeback = AtomicU8::new(head[WRITEBACK_AT as usize]);
        let region = Region::map(&file, BLOCK, QUEUES, RING_SIZE_MAX)?;
        let (writing, kept) = (Mutex::default(), AtomicBool::new(false));
        Ok(Beside { made: Made::new(&path, &meta), file, region, writeback, writing, kept })
    }

    /// What was shown at this socket before, where a device that showed it did not end in order; from
    /// now on it is `shown`.
    pub(in crate::vhost) fn shows(&self, shown: &str) -> Option<String> {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let mut now = shown.as_bytes().to_vec();
        now.resize(SHOWN_MAX, 0);
        let mut before = vec![0; SHOWN_MAX];
        let told = self.file.read_exact_at(&mut before, SHOWN_AT).is_ok();
        self.put(&now, SHOWN_AT);
        (told && before != now).then(|| text(&before)).filter(|before| !before.is_empty())
    }

    /// What the driver of the device before chose.
    pub(in crate::vhost) fn writeback(&self) -> Option<bool> {
        match self.writeback.load(Ordering::Acquire) {
            1 => Some(false),
            2 => Some(true),
            _ => None,
        }
    }

    /// Notes what the driver chose, where that is news and not what the device begins with.
    pub(in crate::vhost) fn keep_writeback(&self, on: bool, default: bool) {
        let choice = if on == default { NO_CHOICE } else { 1 + u8::from(on) };
        if self.writeback.load(Ordering::Relaxed) == choice {
            return;
        }
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.writeback.store(choice, Ordering::Release);
        self.put(&[choice], WRITEBACK_AT);
    }

    /// The notes of queue `n`, whose ring is `ring`: those of the device before, where they are
    /// about just this one.
    pub(in crate::vhost) fn queue(&self, n: usize, ring: &impl QueueT, mem: &Memory) -> Slot {
        let about = about(ring, mem).to_le_bytes();
        let at = ABOUT_AT + 8 * n as u64;
        let mut before = [0; 8];
        let same = self.file.read_exact_at(&mut before, at).is_ok() && before == about;
        let used = ring.used_idx(mem, Ordering::Acquire).map(|used| used.0);
        let noted = self.region.queue(n, false);
        let fits = used.is_ok_and(|used| used.wrapping_sub(noted.used()) <= 1);
        if same && fits {
            return noted;
        }
        let slot = self.region.queue(n, true);
        self.put(&about, at);
        slot
    }
}

impl Beside {
    fn put(&self, bytes: &[u8], at: u64) {
        if let Err(error) = self.file.write_all_at(bytes, at) {
            log::warn!("{} cannot be written: {error}", self.made.path().display());
        }
    }

    /// The program ends while a front-end is connected, which will go on with the next one.
    pub(in crate::vhost) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Removes it, unless a front-end will need it.
    pub(in crate::vhost) fn remove(&self) {
        let needed = self.writeback().is_some() || self.region.any_left();
        if self.kept.load(Ordering::Acquire) && needed {
            log::info!("{} stays, for the guest that goes on", self.made.path().display());
            return;
        }
        if let Err(error) = self.made.remove() {
            log::warn!("{} is left behind: {error}", self.made.path().display());
        }
    }
}

/// A number for one ring, where it lies in one guest's memory. Other memory may come and go.
fn about(ring: &impl QueueT, mem: &Memory) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut add = |n: u64| hash.update(&n.to_le_bytes());
    add(u64::from(ring.size()));
    for at in [ring.desc_table(), ring.avail_ring(), ring.used_ring()] {
        add(at);
        let Some(region) = mem.find_region(GuestAddress(at)) else { continue };
        add(region.start_addr().raw_value());
        add(region.len());
        if let Some(at) = region.file_offset() {
            add(at.start());
            if let Ok(meta) = at.file().metadata() {
                add(meta.dev());
                add(meta.ino());
            }
        }
    }
    hash.digest()
}

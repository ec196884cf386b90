//! The file or block device that holds a disk: opened with checks, and read and written whole.

use super::direct::{Direct, reopened};
use super::ring::Ring;
use super::{Buffers, Failure, ResizeError};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tornblk_model::event::Segment;
use tornblk_model::lock::{Access, Holder, LockError, lock, unlock};

/// Why an image cannot be a disk. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image {0}: make one with `truncate -s 1G {0}`")]
    Missing(PathBufText),
    #[error("the image {path} cannot be opened for {what}: {source}{advice}")]
    Open { path: PathBufText, what: &'static str, source: io::Error, advice: &'static str },
    #[error("the image {0} is a directory: name a file or a block device")]
    Directory(PathBufText),
    #[error("the image {0} is neither a file nor a block device")]
    NotADisk(PathBufText),
    #[error(
        "the image {path} has {size} bytes, less than one logical block of {block}: make it \
         larger with `truncate -s 1G {path}`"
    )]
    TooSmall { path: PathBufText, size: u64, block: u32 },
    #[error(
        "the size of the image {path}, {size} bytes, is no multiple of the logical block size \
         {block}: make it {larger} bytes with `truncate -s {larger} {path}`, or choose a \
         --logical-block-size that divides it"
    )]
    Odd { path: PathBufText, size: u64, block: u32, larger: u64 },
    #[error(
        "the image {path} is in use by {by}: end that one, or give this device an image of its own"
    )]
    InUse { path: PathBufText, by: Holder },
    #[error(
        "the image {path} cannot be read and written past the page cache: {source}; leave --direct \
         out, or put the image on a file system that can"
    )]
    NoDirect { path: PathBufText, source: io::Error },
    #[error(
        "--direct on {path} needs logical blocks of {needs} bytes, and the disk has {block}: use \
         --logical-block-size {needs}, or leave --direct out"
    )]
    DirectBlock { path: PathBufText, needs: u64, block: u32 },
    #[error("the image {path} failed: {source}")]
    Io { path: PathBufText, source: io::Error },
}

/// A path as messages show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathBufText(pub PathBuf);

impl std::fmt::Display for PathBufText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl From<&Path> for PathBufText {
    fn from(path: &Path) -> Self {
        PathBufText(path.to_owned())
    }
}

/// Pieces that the kernel takes at a time.
const IOV_MAX: usize = 1024;

impl Drop for Image {
    /// Nothing is on its way any more, and whoever comes next need not wait until the kernel has taken
    /// the rings apart.
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// How long the requests of a device that was killed may take.
const GONE: Duration = Duration::from_secs(10);

/// An image that is a disk: no smaller than a logical block (VIRTIO sets no minimum, so a
/// test may use a disk of one block), and a whole number of them.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    size: AtomicU64,
    /// A file, which can be cut short.
    can_shrink: bool,
    read_only: bool,
    /// Past the page cache, where that was asked for.
    direct: Option<Direct>,
    /// The file system can say that it would have to wait (not tmpfs).
    tells_waits: bool,
    lost: Lost,
}

/// Does a read that is not to wait (RWF_NOWAIT of preadv2(2)) work at all?
fn tells_waits(file: &File) -> bool {
    let mut byte = [0];
    let mut bytes = [io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut bytes, 0, rustix::io::ReadWriteFlags::NOWAIT);
    read != Err(rustix::io::Errno::OPNOTSUPP)
}

/// A device that was killed has its lock for as long as the kernel still does what it asked for, which
/// is what a lock is for; nobody is there then who has it.
fn lock_soon(file: &File, access: Access) -> Result<(), LockError> {
    let start = Instant::now();
    loop {
        match lock(file, access) {
            Err(LockError::InUse(Holder::Hidden)) if start.elapsed() < GONE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Did the medium fail to keep what was written? The kernel tells that once and forgets, so it is
/// kept here, and no later flush may claim that all is well.
#[derive(Debug, Default)]
struct Lost {
    noted: AtomicBool,
    /// Held by who asks the kernel, until its answer is noted: another one who asked meanwhile would
    /// be told that all is well.
    asking: Mutex<()>,
}

impl Lost {
    fn note(&self) {
        self.noted.store(true, Ordering::Relaxed);
    }

    fn sync(&self, ask: impl FnOnce() -> rustix::io::Result<()>) -> Result<(), Failure> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = ask() {
            self.note();
            return Err(Failure::Io(e.into()));
        }
        self.check()
    }

    fn check(&self) -> Result<(), Failure> {
        if self.noted.load(Ordering::Relaxed) {
            let what = "an earlier flush failed or the image was cut short, so what was written \
                        before may be lost";
            return Err(Failure::Io(io::Error::other(what)));
        }
        Ok(())
    }
}

impl Image {
    /// Opens and checks the image, and locks it against other devices, and QEMU and its tools:
    /// shared where it is only read. A block device that is written is opened exclusively, too, so
    /// that it is not mounted.
    pub fn open(path: &Path, block: u32, read_only: bool) -> Result<Image, ImageError> {
        let text = || PathBufText::from(path);
        let failed = |source: io::Error| ImageError::Io { path: text(), source };
        let stat = rustix::fs::stat(path).map_err(|e| match e {
            rustix::io::Errno::NOENT => ImageError::Missing(text()),
            e => ImageError::Open {
                path: text(),
                what: "reading",
                source: e.into(),
                advice: advice(e, read_only),
            },
        })?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let exclusive = match kind {
            FileType::RegularFile => OFlags::empty(),
            // open(2): without O_CREAT, and not with what is only read.
            FileType::BlockDevice if read_only => OFlags::empty(),
            FileType::BlockDevice => OFlags::EXCL,
            FileType::Directory => return Err(ImageError::Directory(text())),
            _ => return Err(ImageError::NotADisk(text())),
        };
        let (mode, what) = if read_only {
            (OFlags::RDONLY, "reading")
        } else {
            (OFlags::RDWR, "reading and writing")
        };
        let flags = mode | exclusive | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(
                |e| match busy(e, path) {
                    Some(by) => ImageError::InUse { path: text(), by },
                    None => ImageError::Open {
                        path: text(),
                        what,
                        source: e.into(),
                        advice: advice(e, read_only),
                    },
                },
            )?;
        let size =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        if size < u64::from(block) {
            return Err(ImageError::TooSmall { path: text(), size, block });
        }
        if !size.is_multiple_of(u64::from(block)) {
            let larger = size.next_multiple_of(u64::from(block));
            return Err(ImageError::Odd { path: text(), size, block, larger });
        }
        match lock_soon(&file, if read_only { Access::Read } else { Access::Write }) {
            Ok(()) => {}
            Err(LockError::InUse(by)) => return Err(ImageError::InUse { path: text(), by }),
            Err(LockError::Impossible(e)) => {
                log::warn!(
                    "the image {} cannot be locked, so nothing keeps a second writer off it: {e}",
                    path.display()
                );
            }
        }
        let (path, lost) = (path.to_owned(), Lost::default());
        let can_shrink = kind == FileType::RegularFile;
        let (size, direct) = (AtomicU64::new(size), None);
        let tells_waits = tells_waits(&file);
        Ok(Image { file, path, size, can_shrink, read_only, direct, tells_waits, lost })
    }

    /// From now on its bytes go past the host's page cache.
    ///
    /// # Errors
    /// The file system cannot do it, or only for blocks that are larger than `block`.
    pub fn go_direct(&mut self, block: u32) -> Result<(), ImageError> {
        let path = || PathBufText::from(&*self.path);
        let direct = Direct::open(&self.file, self.read_only)
            .map_err(|source| ImageError::NoDirect { path: path(), source })?;
        if direct.place() > u64::from(block) {
            return Err(ImageError::DirectBlock { path: path(), needs: direct.place(), block });
        }
        self.direct = Some(direct);
        Ok(())
    }

    /// Where requests go.
    fn way(&self) -> &File {
        self.direct.as_ref().map_or(&self.file, Direct::file)
    }

    /// A ring for it, which rings `bell`.
    ///
    /// # Errors
    /// The kernel has none for this process.
    pub(super) fn ring(&self, bell: Arc<OwnedFd>) -> io::Result<Ring> {
        let access = if self.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let direct = if self.direct.is_some() { OFlags::DIRECT } else { OFlags::empty() };
        Ring::new(reopened(&self.file, access | direct)?.into(), &self.file, bell)
    }

    /// Can a ring read or write these as they are?
    pub(super) fn takes(&self, offset: u64, buffers: &Buffers) -> bool {
        self.direct
            .as_ref()
            .is_none_or(|direct| direct.is_placed(offset, buffers.len()) && direct.fits(buffers))
    }

    /// A flush by way of a ring ended.
    pub(super) fn synced(&self, failed: Option<io::Error>) -> Result<(), Failure> {
        // Each ring is told of a loss by itself: nobody has to wait.
        if let Some(error) = failed {
            self.lost.note();
            return Err(Failure::Io(error));
        }
        self.lost.check()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Takes the size that the image has now, if that is larger. → the size.
    ///
    /// # Errors
    /// It is not, or no whole number of blocks.
    pub fn grow(&self, block: u32) -> Result<u64, ResizeError> {
        let end = rustix::fs::SeekFrom::End(0);
        let now = rustix::fs::seek(&self.file, end).map_err(io::Error::from)?;
        if !now.is_multiple_of(u64::from(block)) {
            let larger = now.next_multiple_of(u64::from(block));
            return Err(ResizeError::Odd { now, block, larger });
        }
        let before = self.size.fetch_max(now, Ordering::AcqRel);
        if now > before { Ok(now) } else { Err(ResizeError::NotLarger { before, now }) }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills the buffers from `offset` on.
    pub fn read(&self, offset: u64, buffers: &Buffers) -> Result<(), Failure> {
        self.inside(offset, buffers.len() as u64)?;
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.takes(offset, buffers)) {
            let mut bounce = direct.bounce(buffers.len());
            self.by_way_of(direct, offset, buffers.len())
                .read_exact_at(bounce.bytes(), offset)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => self.ended(),
                    _ => Failure::Io(error),
                })?;
            buffers.fill(bounce.bytes());
            return Ok(());
        }
        self.each(offset, buffers, |fd, iov, n, at| {
            // SAFETY: the pieces are valid for writes while `buffers` lives (contract of
            // `Buffers::new`; the request is a read).
            unsafe { libc::preadv(fd, iov, n, at) }
        })
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Where it cannot be told whether reads of the page cache wait, a ring gives each to a thread of the
    /// kernel's: calls are faster.
    pub(super) fn reads_by_ring(&self) -> bool {
        self.is_direct() || self.tells_waits
    }

    /// Fills the buffers, if all of it is in the page cache; waits for nothing.
    pub(super) fn read_cached(&self, offset: u64, buffers: &Buffers) -> bool {
        let iov = buffers.iovecs();
        if self.is_direct() || iov.len() > IOV_MAX {
            return false;
        }
        let (fd, n) = (self.file.as_fd().as_raw_fd(), iov.len() as libc::c_int);
        // SAFETY: as in `read`.
        let got =
            unsafe { libc::preadv2(fd, iov.as_ptr(), n, offset as libc::off_t, libc::RWF_NOWAIT) };
        usize::try_from(got).is_ok_and(|got| got == buffers.len())
    }

    /// Takes the buffers to `offset`.
    pub fn write(&self, offset: u64, buffers: &Buffers) -> Result<(), Failure> {
        self.there(offset, buffers.len() as u64)?;
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.takes(offset, buffers)) {
            let mut bounce = direct.bounce(buffers.len());
            buffers.copy_to(0, bounce.bytes());
            self.by_way_of(direct, offset, buffers.len()).write_all_at(bounce.bytes(), offset)?;
            return Ok(());
        }
        self.each(offset, buffers, |fd, iov, n, at| {
            // SAFETY: the pieces are valid for reads while `buffers` lives.
            unsafe { libc::pwritev(fd, iov, n, at) }
        })
    }

    /// The file for a request whose memory is ours and aligned: parts of a block go through the page
    /// cache, which the kernel keeps in step with what is written past it.
    fn by_way_of<'a>(&'a self, direct: &'a Direct, offset: u64, len: usize) -> &'a File {
        if direct.is_placed(offset, len) { direct.file() } else { &self.file }
    }

    /// Makes durable what was written.
    pub fn sync(&self) -> Result<(), Failure> {
        self.there(0, self.size())?;
        self.lost.sync(|| rustix::fs::fdatasync(&self.file))
    }

    /// Gives the space back. A medium that cannot keeps the content, which a driver must expect.
    pub fn discard(&self, segment: Segment) -> Result<(), Failure> {
        self.there(segment.offset, segment.len)?;
        match self.punch(segment) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(|e| Failure::Io(e.into())),
        }
    }

    /// Afterwards the bytes read as zero.
    pub fn zero(&self, segment: Segment) -> Result<(), Failure> {
        self.there(segment.offset, segment.len)?;
        let done = if segment.unmap {
            self.punch(segment)
        } else {
            rustix::fs::fallocate(
                &self.file,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                segment.offset,
                segment.len,
            )
        };
        match done {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeroes(segment),
            other => other.map_err(|e| Failure::Io(e.into())),
        }
    }

    fn punch(&self, segment: Segment) -> rustix::io::Result<()> {
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            segment.offset,
            segment.len,
        )
    }

    /// For file systems without ZERO_RANGE.
    fn write_zeroes(&self, segment: Segment) -> Result<(), Failure> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let (mut at, end) = (segment.offset, segment.offset + segment.len);
        while at < end {
            let n = (end - at).min(ZEROES.len() as u64) as usize;
            self.file.write_all_at(&ZEROES[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }

    /// The device keeps requests inside the disk; this is the last line before the file would grow.
    pub(super) fn inside(&self, offset: u64, len: u64) -> Result<(), Failure> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Failure::Io(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} lie beyond the disk's {} bytes", self.size()),
            ))),
        }
    }

    /// As [`Image::inside`], and inside of what is left of a file that somebody cut short: a write
    /// beyond its end would make it grow back, with zeroes where there was data.
    pub(super) fn there(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.inside(offset, len)?;
        if !self.can_shrink {
            return Ok(());
        }
        let stat = rustix::fs::fstat(&self.file).map_err(|e| Failure::Io(e.into()))?;
        // Never negative.
        if (stat.st_size as u64) < offset + len {
            self.lost.note();
            return Err(self.cut_short(stat.st_size as u64));
        }
        Ok(())
    }

    /// It has an end where there should be bytes.
    fn ended(&self) -> Failure {
        match rustix::fs::fstat(&self.file) {
            // Never negative.
            Ok(stat) => self.cut_short(stat.st_size as u64),
            Err(e) => Failure::Io(e.into()),
        }
    }

    fn cut_short(&self, has: u64) -> Failure {
        Failure::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "the image {0} was cut short: it has {has} of the disk's {1} bytes (truncate -s {1} \
                 {0} makes it as long again, with zeroes where there was data)",
                self.path.display(),
                self.size()
            ),
        ))
    }

    /// Calls `io(fd, pieces, how many, offset)` until all pieces are through: the kernel takes
    /// at most IOV_MAX at a time, and may do less than it was asked to.
    fn each(
        &self,
        mut offset: u64,
        buffers: &Buffers,
        io: impl Fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> Result<(), Failure> {
        let fd = self.way().as_fd().as_raw_fd();
        let mut rest: smallvec::SmallVec<[libc::iovec; 16]> =
            buffers.iovecs().iter().copied().filter(|v| v.iov_len > 0).collect();
        let mut first = 0;
        while first < rest.len() {
            let n = (rest.len() - first).min(IOV_MAX);
            let done = io(fd, rest[first..].as_ptr(), n as libc::c_int, offset as libc::off_t);
            let mut done = match done {
                0 => return Err(self.ended()),
                d if d > 0 => d as usize,
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(Failure::Io(e)),
                },
            };
            offset += done as u64;
            while done > 0 {
                let piece = &mut rest[first];
                let taken = done.min(piece.iov_len);
                // Only moves on inside the piece.
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(taken).cast();
                piece.iov_len -= taken;
                done -= taken;
                if piece.iov_len == 0 {
                    first += 1;
                }
            }
        }
        Ok(())
    }
}

/// Who has the block device that cannot be opened exclusively, if one who locks it does.
fn busy(e: rustix::io::Errno, path: &Path) -> Option<Holder> {
    if e != rustix::io::Errno::BUSY {
        return None;
    }
    let file = File::open(path).ok()?;
    match lock(&file, Access::Read) {
        Err(LockError::InUse(by)) => Some(by),
        _ => None,
    }
}

fn advice(e: rustix::io::Errno, read_only: bool) -> &'static str {
    match e {
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM if read_only => {
            " (change its permissions)"
        }
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
            " (change its permissions, or use --read-only where it may be read)"
        }
        rustix::io::Errno::ROFS => " (use --read-only)",
        rustix::io::Errno::BUSY => " (is it mounted, or in use?)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(path: &Path, block: u32) -> String {
        Image::open(path, block, false).unwrap_err().to_string()
    }

    #[test]
    fn an_image_that_is_no_disk_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        assert!(error(&path, 512).contains("truncate -s 1G"));
        assert!(error(dir.path(), 512).contains("directory"));
        assert!(error(Path::new("/dev/null"), 512).contains("neither"));
        let file = File::create(&path).unwrap();
        assert!(error(&path, 512).contains("less than one logical block"));
        file.set_len(4096 + 512).unwrap();
        let odd = error(&path, 4096);
        assert!(odd.contains("truncate -s 8192"), "{odd}");
        assert_eq!(Image::open(&path, 512, false).unwrap().size(), 4608);
    }

    #[test]
    fn one_image_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(4096).unwrap();
        let writer = Image::open(&path, 512, false).unwrap();
        assert!(matches!(Image::open(&path, 512, true), Err(ImageError::InUse { .. })));
        drop(writer);
        let _one = Image::open(&path, 512, true).unwrap();
        let _two = Image::open(&path, 512, true).unwrap();
        let me = format!("pid {}", std::process::id());
        assert!(error(&path, 512).contains(&me));
    }

    #[test]
    fn nothing_beyond_the_end_and_nothing_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(4096).unwrap();
        let image = Image::open(&path, 512, false).unwrap();
        let two = Buffers::from_vec(vec![1; 1024]);
        assert!(image.write(3584, &two).is_err());
        assert!(image.write(u64::MAX - 511, &two).is_err());
        let past = Segment { offset: 3584, len: 1024, unmap: false };
        assert!(image.zero(past).is_err());
        assert!(image.discard(Segment { unmap: true, ..past }).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        // Cut short beneath us.
        image.file().set_len(512).unwrap();
        let told = image.read(2048, &two).unwrap_err().to_string();
        assert!(told.contains("it has 512 of the disk's 4096 bytes"), "{told}");
        assert!(image.sync().is_err());
        image.file().set_len(4096).unwrap();
        assert!(image.sync().is_err(), "what is lost stays lost");
    }

    #[test]
    fn who_flushes_while_another_is_told_of_a_loss_is_told_of_it_too() {
        let lost = Lost::default();
        let (told, hears) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let late = lost.sync(|| {
                    // The kernel has said it, and does not say it again.
                    told.send(()).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    Err(rustix::io::Errno::IO)
                });
                assert!(late.is_err());
            });
            hears.recv().unwrap();
            assert!(lost.sync(|| Ok(())).is_err(), "its write is lost");
        });
    }
}

//! The region, in memory that is shared: with the front-end, or with whoever opens the same file.
//!
//! For each queue a header and an entry a descriptor (vhost-user protocol, "Inflight I/O tracking",
//! split virtqueue), all in the host's byte order:
//!
//! | bytes | header | |
//! | --- | --- | --- |
//! | 0..8 | features | 0 |
//! | 8..10 | version | 1; 0: not used yet |
//! | 10..12 | desc_num | entries |
//! | 12..14 | last_batch_head | the chain that was returned last |
//! | 14..16 | used_idx | the used index after it |
//!
//! | bytes | entry | |
//! | --- | --- | --- |
//! | 0 | inflight | 1: taken and not returned |
//! | 1..6 | padding | see below |
//! | 6..8 | next | the one returned before, in a batch; ours have one each |
//! | 8..16 | counter | order in which they were taken |
//!
//! The protocol leaves the padding open, and the counter's meaning but for its order: here byte 1
//! says how far the request came (0 taken, 1 moved, 2 failed to, 3 answered) and bytes 2..6 the
//! length of its answer; the lower 16 bits of the counter are the position in the available ring.
//!
//! Nothing in it is trusted: whoever shares it may write to it at any time.

use crate::device::ledger::{Came, Ledger, Left};
use crate::store::{Moves, Past};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use tornblk_model::guard::Guard;

const VERSION: u16 = 1;
/// Queues begin at multiples of this: none shares a cache line with another.
const ALIGN: u64 = 64;

/// No head: beyond any table.
const NOBODY: u16 = u16::MAX;

const TAKEN: u8 = 0;
const MOVED: u8 = 1;
const FAILED: u8 = 2;
const ANSWERED: u8 = 3;

#[repr(C)]
struct Header {
    features: AtomicU64,
    version: AtomicU16,
    desc_num: AtomicU16,
    last_batch_head: AtomicU16,
    used_idx: AtomicU16,
}

#[repr(C)]
struct Entry {
    inflight: AtomicU8,
    came: AtomicU8,
    len: [AtomicU16; 2],
    next: AtomicU16,
    counter: AtomicU64,
}

/// The region of all queues of a front-end.
#[derive(Debug)]
pub(in crate::vhost) struct Region {
    map: Map,
    queues: u16,
    /// Entries of each queue.
    size: u16,
}

/// Bytes that one queue takes.
fn stride(size: u16) -> u64 {
    let bytes = size_of::<Header>() as u64 + u64::from(size) * size_of::<Entry>() as u64;
    bytes.next_multiple_of(ALIGN)
}

impl Region {
    /// Bytes for so many queues of so many entries.
    pub(in crate::vhost) fn bytes(queues: u16, size: u16) -> u64 {
        stride(size) * u64::from(queues)
    }

    /// A new region, in memory that nobody can cut short.
    pub(in crate::vhost) fn memory(queues: u16, size: u16) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("tornblk-inflight", flags)?);
        file.set_len(Region::bytes(queues, size))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    }

    /// Maps the region that begins at byte `offset` of `file`.
    ///
    /// # Errors
    /// The file is too short, or cannot be mapped.
    pub(in crate::vhost) fn map(
        file: &File,
        offset: u64,
        queues: u16,
        size: u16,
    ) -> io::Result<Arc<Region>> {
        let len = Region::bytes(queues, size);
        let has = file.metadata()?.len();
        if offset.checked_add(len).is_none_or(|end| end > has) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{has} bytes cannot hold {len} from byte {offset} on"),
            ));
        }
        let map = Map::new(file, offset, len as usize)?;
        Ok(Arc::new(Region { map, queues, size }))
    }

    /// Has it room for that queue, of so many entries?
    pub(in crate::vhost) fn covers(&self, queue: usize, size: u16) -> bool {
        queue < usize::from(self.queues) && size <= self.size
    }

    /// Is anything noted?
    pub(in crate::vhost) fn any_left(self: &Arc<Self>) -> bool {
        (0..self.queues.into()).any(|queue| {
            let slot = Slot { region: Arc::clone(self), queue, order: 0 };
            let begun = slot.header().version.load(Ordering::Acquire) == VERSION;
            let left = |entry: &Entry| entry.inflight.load(Ordering::Acquire) == 1;
            begun && (0..self.size).filter_map(|head| slot.entry(head)).any(left)
        })
    }

    /// The notes of queue `queue`, which this region covers. `fresh`: nothing of what is there
    /// counts.
    pub(in crate::vhost) fn queue(self: &Arc<Self>, queue: usize, fresh: bool) -> Slot {
        let slot = Slot { region: Arc::clone(self), queue, order: 0 };
        slot.begin(fresh);
        slot
    }
}

/// Mapped bytes. What is in them is only reached through atomics.
#[derive(Debug)]
struct Map {
    /// The mapping, and its length.
    base: *mut u8,
    mapped: usize,
    /// Where the region begins in it.
    skip: usize,
    /// Gone only while this is dropped.
    guard: Option<Guard>,
}

// SAFETY: the mapping belongs to this value alone, and is only reached through atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(file: &File, offset: u64, len: usize) -> io::Result<Map> {
        let page = rustix::param::page_size() as u64;
        let from = offset / page * page;
        let skip = (offset - from) as usize;
        if !skip.is_multiple_of(8) {
            let what = format!("byte {offset} is no multiple of 8");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mapped = skip + len;
        // SAFETY: a new mapping, where the kernel puts it.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                from,
            )
        }?;
        // SAFETY: made above, and unmapped only after the guard is gone.
        let Some(guard) = (unsafe { Guard::new(base as usize, mapped) }) else {
            // SAFETY: made above, and nobody else knows it.
            let _ = unsafe { rustix::mm::munmap(base, mapped) };
            return Err(io::Error::other("too many files are mapped"));
        };
        Ok(Map { base: base.cast(), mapped, skip, guard: Some(guard) })
    }

    /// # Panics
    /// `T` does not lie at `at` inside of the region.
    ///
    /// # Safety
    /// All of `T` is atomics.
    unsafe fn at<T>(&self, at: u64) -> &T {
        let at = self.skip + at as usize;
        assert!(at + size_of::<T>() <= self.mapped && at.is_multiple_of(align_of::<T>()));
        // SAFETY: mapped and aligned (checked; the mapping begins at a page); any bytes are valid
        // for atomics, and everybody here reaches them as such.
        unsafe { &*self.base.add(at).cast::<T>() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        drop(self.guard.take());
        // SAFETY: made in `new`; nothing borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.mapped) };
    }
}

/// The notes of one queue.
#[derive(Debug)]
pub(in crate::vhost) struct Slot {
    region: Arc<Region>,
    queue: usize,
    /// The counter that was given last.
    order: u64,
}

impl Slot {
    fn header(&self) -> &Header {
        // SAFETY: nothing but atomics.
        unsafe { self.region.map.at(stride(self.region.size) * self.queue as u64) }
    }

    fn entry(&self, head: u16) -> Option<&Entry> {
        entry(&self.region, self.queue, head)
    }

    fn begin(&self, fresh: bool) {
        let header = self.header();
        if header.version.load(Ordering::Relaxed) == VERSION && !fresh {
            return;
        }
        for head in 0..self.region.size {
            if let Some(entry) = self.entry(head) {
                entry.inflight.store(0, Ordering::Relaxed);
            }
        }
        header.features.store(0, Ordering::Relaxed);
        header.desc_num.store(self.region.size, Ordering::Relaxed);
        header.version.store(VERSION, Ordering::Release);
    }

    /// The used index that was noted last.
    pub(in crate::vhost) fn used(&self) -> u16 {
        self.header().used_idx.load(Ordering::Acquire)
    }
}

fn entry(region: &Region, queue: usize, head: u16) -> Option<&Entry> {
    let at = stride(region.size) * queue as u64
        + size_of::<Header>() as u64
        + u64::from(head) * size_of::<Entry>() as u64;
    // SAFETY: nothing but atomics.
    (head < region.size).then(|| unsafe { region.map.at(at) })
}

// The order of stores below is the order in which a process that is killed leaves them behind: each
// is a release, so that the compiler keeps it.
impl Ledger for Slot {
    fn left(&mut self, used: u16) -> Vec<Left> {
        let header = self.header();
        if header.used_idx.load(Ordering::Acquire) != used
            && let Some(last) = self.entry(header.last_batch_head.load(Ordering::Acquire))
        {
            // It went into the used ring, and the device died before it could strike it out.
            last.inflight.store(0, Ordering::Release);
        }
        header.used_idx.store(used, Ordering::Release);
        let mut left: Vec<(u64, Left)> = (0..self.region.size)
            .filter_map(|head| {
                let entry = self.entry(head)?;
                if entry.inflight.load(Ordering::Acquire) != 1 {
                    return None;
                }
                let counter = entry.counter.load(Ordering::Relaxed);
                let came = match entry.came.load(Ordering::Acquire) {
                    MOVED => Came::Begun(Past::Moved { ok: true }),
                    FAILED => Came::Begun(Past::Moved { ok: false }),
                    ANSWERED => {
                        let [low, high] = &entry.len;
                        let (low, high) =
                            (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed));
                        Came::Answered(u32::from(low) | u32::from(high) << 16)
                    }
                    _ => Came::Begun(Past::Taken),
                };
                Some((counter, Left { head, position: counter as u16, came }))
            })
            .collect();
        left.sort_unstable_by_key(|(counter, _)| *counter);
        self.order = left.last().map_or(0, |(counter, _)| *counter);
        left.into_iter().map(|(_, left)| left).collect()
    }

    fn take(&mut self, head: u16, position: u16) -> bool {
        let before = self.order;
        let Some(entry) = entry(&self.region, self.queue, head) else { return false };
        if entry.inflight.load(Ordering::Relaxed) == 1 {
            return false;
        }
        let same = before & !0xffff | u64::from(position);
        let order = if same > before { same } else { same.wrapping_add(1 << 16) };
        self.order = order;
        entry.counter.store(order, Ordering::Release);
        entry.came.store(TAKEN, Ordering::Release);
        entry.inflight.store(1, Ordering::Release);
        true
    }

    fn answered(&mut self, head: u16, len: u32) {
        if let Some(entry) = self.entry(head) {
            entry.len[0].store(len as u16, Ordering::Release);
            entry.len[1].store((len >> 16) as u16, Ordering::Release);
            entry.came.store(ANSWERED, Ordering::Release);
        }
    }

    fn returning(&mut self, head: Option<u16>) {
        let header = self.header();
        let head = head.unwrap_or(NOBODY);
        if let Some(entry) = self.entry(head) {
            entry.next.store(header.last_batch_head.load(Ordering::Relaxed), Ordering::Release);
        }
        header.last_batch_head.store(head, Ordering::Release);
    }

    fn returned(&mut self, head: Option<u16>, used: u16) {
        if let Some(entry) = head.and_then(|head| self.entry(head)) {
            entry.inflight.store(0, Ordering::Release);
        }
        self.header().used_idx.store(used, Ordering::Release);
    }

    fn forget(&mut self) {
        self.begin(true);
    }

    fn sound(&self) -> bool {
        !self.region.map.guard.as_ref().is_some_and(Guard::poisoned)
    }

    fn moves(&self) -> Arc<dyn Moves> {
        Arc::new(MovesOf { region: Arc::clone(&self.region), queue: self.queue })
    }
}

struct MovesOf {
    region: Arc<Region>,
    queue: usize,
}

impl Moves for MovesOf {
    fn moved(&self, head: u16, ok: bool) {
        if let Some(entry) = entry(&self.region, self.queue, head) {
            entry.came.store(if ok { MOVED } else { FAILED }, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn region() -> (File, Arc<Region>) {
        let file = Region::memory(2, 8).unwrap();
        let region = Region::map(&file, 0, 2, 8).unwrap();
        (file, region)
    }

    /// As a device that is started again does it.
    fn again(file: &File, used: u16) -> Vec<Left> {
        Region::map(file, 0, 2, 8).unwrap().queue(1, false).left(used)
    }

    fn left(head: u16, position: u16, came: Came) -> Left {
        Left { head, position, came }
    }

    const TAKEN: Came = Came::Begun(Past::Taken);

    #[test]
    fn the_layout_is_the_protocol_s() {
        assert_eq!((size_of::<Header>(), size_of::<Entry>()), (16, 16));
        assert_eq!(std::mem::offset_of!(Entry, next), 6);
        assert_eq!(std::mem::offset_of!(Entry, counter), 8);
        assert_eq!(std::mem::offset_of!(Header, last_batch_head), 12);
    }

    #[test]
    fn what_was_taken_is_left_in_its_order_until_it_is_returned() {
        let (file, region) = region();
        let mut slot = region.queue(1, false);
        assert_eq!(slot.left(0), []);
        // The position wraps, the order does not.
        for (head, position) in [(5, 0xfffe), (2, 0xffff), (7, 0), (1, 1)] {
            assert!(slot.take(head, position));
        }
        assert!(!slot.take(2, 2), "in flight already");
        assert!(!slot.take(8, 2), "beyond the table");
        let order = |left: Vec<Left>| left.iter().map(|l| (l.head, l.position)).collect::<Vec<_>>();
        assert_eq!(order(again(&file, 0)), [(5, 0xfffe), (2, 0xffff), (7, 0), (1, 1)]);
        slot.answered(2, 0x12_3456);
        slot.returning(Some(2));
        slot.returned(Some(2), 1);
        slot.moves().moved(7, true);
        slot.moves().moved(1, false);
        slot.answered(5, 0xabcd_0001);
        assert_eq!(
            again(&file, 1),
            [
                left(5, 0xfffe, Came::Answered(0xabcd_0001)),
                left(7, 0, Came::Begun(Past::Moved { ok: true })),
                left(1, 1, Came::Begun(Past::Moved { ok: false })),
            ]
        );
        // A head comes again, as new.
        assert!(slot.take(2, 2));
        assert_eq!(again(&file, 1).last(), Some(&left(2, 2, TAKEN)));
        assert_eq!(region.queue(0, false).left(0), [], "another queue's");
    }

    #[test]
    fn a_death_around_the_used_ring_returns_nothing_twice_and_loses_nothing() {
        let (file, region) = region();
        let mut slot = region.queue(1, false);
        slot.take(3, 0);
        slot.take(4, 1);
        slot.answered(3, 1);
        slot.returning(Some(3));
        // Dead before the used index moved: it is still to be returned ...
        assert_eq!(again(&file, 0), [left(3, 0, Came::Answered(1)), left(4, 1, TAKEN)]);
        // ... and after that: not any more.
        assert_eq!(again(&file, 1), [left(4, 1, TAKEN)]);
        assert_eq!(again(&file, 1), [left(4, 1, TAKEN)], "noticed once");
    }

    #[test]
    fn a_return_that_is_not_noted_strikes_out_nobody() {
        let (file, region) = region();
        let mut slot = region.queue(1, false);
        slot.take(3, 0);
        slot.answered(3, 1);
        slot.returning(Some(3));
        slot.returned(Some(3), 1);
        slot.take(3, 1);
        // Another head, which the driver may not have given, and then the device dies.
        slot.returning(None);
        assert_eq!(again(&file, 2), [left(3, 1, TAKEN)]);
        assert!(region.any_left() && !region.covers(1, 9) && region.covers(1, 8));
        slot.forget();
        assert_eq!(again(&file, 2), []);
        assert!(!region.any_left());
    }

    #[test]
    fn a_fresh_one_has_nothing_left() {
        let (file, region) = region();
        region.queue(1, false).take(3, 0);
        assert_eq!(region.queue(1, true).left(0), []);
        assert_eq!(again(&file, 0), []);
    }

    #[test]
    fn nonsense_from_outside_is_bounded() {
        use std::os::unix::fs::FileExt;
        let (file, _region) = region();
        file.write_all_at(&vec![0xff; Region::bytes(2, 8) as usize], 0).unwrap();
        let mut slot = Region::map(&file, 0, 2, 8).unwrap().queue(1, false);
        // Version 0xffff is none that is known.
        assert_eq!(slot.left(7), []);
        assert!(slot.take(0, 0));
        let mut ones = vec![1; Region::bytes(2, 8) as usize];
        ones[stride(8) as usize + 9] = 0;
        file.write_all_at(&ones, 0).unwrap();
        let mut slot = Region::map(&file, 0, 2, 8).unwrap().queue(1, false);
        assert!(slot.left(7).len() <= 8);
        slot.returning(Some(0xffff));
        slot.returned(Some(0xffff), 3);
        assert!(Region::map(&file, 1 << 20, 2, 8).is_err());
        assert!(Region::map(&file, u64::MAX - 7, 2, 8).is_err());
        assert!(Region::map(&file, 4, 1, 8).is_err());
    }
}

//! The plain store: the disk is a file or a block device, and nothing is remembered.

use super::gate::{Engine, Gate, GatedQueue, Moved, Step, Waker};
use super::image::Image;
use super::ring::{Ask, Lent, RingPool};
use super::{Failure, Op, Past, Request, ResizeError, Rings, Store, StoreQueue};
use rustix::event::{EventfdFlags, eventfd};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tornblk_model::crash::{AtomicMode, Profile};
use tornblk_model::event::{Disk, Negotiation, ResetCause, Segment};

/// What happens to a write on the host, by the names of QEMU's `-drive cache=`.
///
/// What they promise is about power loss of the host: without `--direct` all go through its page cache.
/// A device that is killed loses nothing that it answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The guest sees a volatile write cache; its FLUSH is an `fdatasync`.
    #[default]
    Writeback,
    /// Each write is synced before it is answered; the guest sees no volatile write cache.
    Writethrough,
    /// As `writeback`, but a FLUSH does nothing: for disks that may be thrown away.
    Unsafe,
}

impl FromStr for Cache {
    type Err = String;

    fn from_str(name: &str) -> Result<Cache, String> {
        match name {
            "writeback" => Ok(Cache::Writeback),
            "writethrough" => Ok(Cache::Writethrough),
            "unsafe" => Ok(Cache::Unsafe),
            "none" => {
                Err("`none` is writeback past the page cache: --cache writeback --direct".into())
            }
            "directsync" => Err(
                "`directsync` is writethrough past the page cache: --cache writethrough --direct"
                    .into(),
            ),
            _ => Err(format!("there is no cache mode `{name}`: writeback, writethrough or unsafe")),
        }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cache::Writeback => "writeback",
            Cache::Writethrough => "writethrough",
            Cache::Unsafe => "unsafe",
        })
    }
}

/// How a raw disk's bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring(7) where the kernel lets this process have it, else [`IoEngine::Sync`].
    #[default]
    Auto,
    /// io_uring(7).
    IoUring,
    /// preadv(2) and pwritev(2), each queue's on its own thread.
    Sync,
}

pub struct RawStore {
    shared: Arc<Shared>,
    lb_size: u32,
    /// By queue; none: calls.
    rings: Option<Arc<RingPool>>,
    gate: Arc<dyn Gate>,
    profile: Profile,
}

/// What the queues of a store have in common.
struct Shared {
    image: Image,
    read_only: bool,
    cache: Cache,
    /// The driver agreed to, or asked for, write-through.
    write_through: AtomicBool,
}

impl fmt::Debug for RawStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawStore").field("image", &self.shared.image).finish_non_exhaustive()
    }
}

impl RawStore {
    /// `profile` only says which writes the gate is told to be eligible.
    pub fn new(
        image: Image,
        lb_size: u32,
        read_only: bool,
        cache: Cache,
        gate: Arc<dyn Gate>,
        profile: Profile,
    ) -> RawStore {
        let write_through = AtomicBool::new(false);
        let shared = Arc::new(Shared { image, read_only, cache, write_through });
        RawStore { shared, lb_size, rings: None, gate, profile }
    }

    /// Makes a ring for each of so many queues.
    ///
    /// # Errors
    /// The kernel lets this process have none.
    pub fn make_rings(&mut self, queues: u16) -> io::Result<()> {
        let ring = |_| {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            self.shared.image.ring(Arc::new(bell))
        };
        self.rings = Some(RingPool::new((0..queues).map(ring).collect::<io::Result<_>>()?));
        Ok(())
    }
}

impl RawStore {
    /// A queue whose engine is what `wrap` makes of the store's own.
    pub(super) fn queue_of<E: Engine + 'static>(
        &self,
        n: u16,
        wrap: impl FnOnce(RawEngine) -> E,
    ) -> Box<dyn StoreQueue> {
        let profile = Some(self.profile.clone()).filter(|p| p.mode != AtomicMode::None);
        let (shared, gate) = (Arc::clone(&self.shared), Arc::clone(&self.gate));
        // Where it is in use still, its queue is on its way out: calls do as well.
        if let Some(ring) = self.rings.as_ref().and_then(|rings| rings.lend(n)) {
            let waker = Waker::ringing(Arc::clone(ring.bell()));
            let engine = wrap(RawEngine { shared, ring: Some(ring) });
            return Box::new(GatedQueue::woken_by(n, waker, engine, gate, profile));
        }
        let engine = wrap(RawEngine { shared, ring: None });
        super::broken::or_broken(GatedQueue::new(n, engine, gate, profile))
    }
}

impl Store for RawStore {
    fn disk(&self) -> Disk {
        Disk { capacity: self.shared.image.size(), lb_size: self.lb_size }
    }

    fn resize(&self) -> Result<u64, ResizeError> {
        self.shared.image.grow(self.lb_size)
    }

    fn read_only(&self) -> bool {
        self.shared.read_only
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        self.queue_of(n, |engine| engine)
    }

    fn bell(&self, n: u16) -> Option<Arc<OwnedFd>> {
        self.rings.as_ref().and_then(|rings| rings.bell(n)).cloned()
    }

    fn connected(&self, _: Arc<dyn Rings>) {}

    fn negotiated(&self, what: Negotiation) {
        // VIRTIO 1.2, 5.2.5.2: CONFIG_WCE decides where the driver took it; a driver that took
        // neither does not know of a volatile cache.
        let through = match (what.config_wce, what.flush) {
            (true, _) => !what.writeback,
            (false, flush) => !flush,
        };
        self.shared.write_through.store(through, Ordering::Relaxed);
    }

    fn set_writeback(&self, on: bool) {
        self.shared.write_through.store(!on, Ordering::Relaxed);
    }

    fn reset(&self, _: ResetCause, _: Option<u16>) {}
}

/// Moves the bytes through a ring, where there is one and it can; else at once, in `execute`.
pub(super) struct RawEngine {
    shared: Arc<Shared>,
    ring: Option<Lent>,
}

impl Shared {
    /// Is a write durable when it is answered?
    fn through(&self, fua: bool) -> bool {
        match self.cache {
            Cache::Writethrough => true,
            Cache::Writeback => fua || self.write_through.load(Ordering::Relaxed),
            Cache::Unsafe => false,
        }
    }

    fn settle(&self, fua: bool) -> Result<(), Failure> {
        if self.through(fua) { self.image.sync() } else { Ok(()) }
    }

    fn flushes(&self) -> bool {
        self.cache != Cache::Unsafe && !self.read_only
    }

    fn each(
        &self,
        segments: &[Segment],
        f: impl Fn(&Image, Segment) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        segments.iter().try_for_each(|s| f(&self.image, *s))?;
        self.settle(false)
    }
}

impl Engine for RawEngine {
    type Ticket = ();

    fn begin(&mut self, request: &Request, _: bool) -> Result<Step<()>, Failure> {
        match request.op {
            Op::Read { .. } | Op::Flush { .. } => Ok(Step::Next(())),
            _ if self.shared.read_only => Err(Failure::ReadOnly),
            _ => Ok(Step::Next(())),
        }
    }

    fn execute(&mut self, request: &mut Request, (): &mut (), _: bool, key: usize) -> Moved {
        match request.past {
            // Reading again harms nobody, and the guest's memory may have changed since.
            Past::Moved { ok } if !matches!(request.op, Op::Read { .. }) => {
                let failed = "it failed before the device was started again";
                let failed = Err(Failure::Io(io::Error::other(failed)));
                return if ok { Ok(()) } else { failed }.into();
            }
            _ => {}
        }
        match self.ask(request, key) {
            Ok(Asked::Yes) => Moved::Later,
            Ok(Asked::Done) => Ok(()).into(),
            Ok(Asked::No) => self.shared.call(request).into(),
            Err(failure) => Err(failure).into(),
        }
    }

    fn moved(&mut self, wait: bool, f: &mut dyn FnMut(usize, i32)) {
        if let Some(ring) = &mut self.ring {
            ring.ended(wait, f);
        }
    }

    fn outcome(&mut self, request: &mut Request, moved: i32) -> Result<(), Failure> {
        let whole = usize::try_from(moved).is_ok_and(|moved| moved == request.buffers.len());
        let error = (moved < 0).then(|| io::Error::from_raw_os_error(-moved));
        match request.op {
            Op::Flush { .. } if !given_up(moved) => self.shared.image.synced(error),
            Op::Read { .. } | Op::Write { .. } if whole => Ok(()),
            // It may have been the sync that failed, after the write, which the kernel says once: all is
            // well if both work now. What is wrong otherwise the calls tell.
            Op::Write { .. } if moved < 0 && !given_up(moved) && !refused(moved) => {
                self.shared.call(request)?;
                if self.shared.flushes() { self.shared.image.sync() } else { Ok(()) }
            }
            // In part, or not at all: what is wrong, if anything is, a call tells as well.
            _ => self.shared.call(request),
        }
    }
}

/// What became of a request that was offered to a ring.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Yes,
    /// It is done already.
    Done,
    No,
}

/// The thread that asked has ended, or was interrupted, before anything was done.
fn given_up(moved: i32) -> bool {
    matches!(-moved, libc::ECANCELED | libc::EAGAIN | libc::EINTR)
}

/// Nothing was done: the request cannot be carried out like that.
fn refused(moved: i32) -> bool {
    matches!(-moved, libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP)
}

impl RawEngine {
    /// Asks the ring for it, if it is for a ring.
    fn ask(&mut self, request: &Request, key: usize) -> Result<Asked, Failure> {
        let RawEngine { shared, ring } = self;
        let Some(ring) = ring else { return Ok(Asked::No) };
        let len = request.buffers.len() as u64;
        let ask = match request.op {
            Op::Read { offset } => {
                shared.image.inside(offset, len)?;
                if !shared.image.reads_by_ring() {
                    return Ok(Asked::No);
                }
                // Alone it is as fast by a call, where it is in the page cache; where it is not, the
                // call says so at once.
                if ring.is_empty() && shared.image.read_cached(offset, &request.buffers) {
                    return Ok(Asked::Done);
                }
                Ask::Read { offset }
            }
            // Into the page cache: few file systems do that without a thread of the kernel's, which
            // costs more than the write.
            Op::Write { .. } if !shared.image.is_direct() => return Ok(Asked::No),
            Op::Write { offset, fua, .. } => {
                shared.image.there(offset, len)?;
                Ask::Write { offset, through: shared.through(fua) }
            }
            Op::Flush { .. } if shared.flushes() => {
                shared.image.there(0, shared.image.size())?;
                Ask::Sync
            }
            _ => return Ok(Asked::No),
        };
        if let Ask::Read { offset } | Ask::Write { offset, .. } = ask
            && !shared.image.takes(offset, &request.buffers)
        {
            return Ok(Asked::No);
        }
        // SAFETY: `GatedQueue` keeps the request until `outcome` is asked about it, and its buffers
        // keep the memory; that of a read may be written.
        Ok(if unsafe { ring.ask(key, ask, &request.buffers) } { Asked::Yes } else { Asked::No })
    }
}

impl Shared {
    /// Carries it out on this thread.
    fn call(&self, request: &Request) -> Result<(), Failure> {
        match &request.op {
            Op::Read { offset } => self.image.read(*offset, &request.buffers),
            Op::Write { offset, fua, .. } => {
                self.image.write(*offset, &request.buffers)?;
                self.settle(*fua)
            }
            Op::Flush { .. } if self.flushes() => self.image.sync(),
            Op::Flush { .. } => Ok(()),
            Op::Discard { segments } => self.each(segments, Image::discard),
            Op::WriteZeroes { segments } => self.each(segments, Image::zero),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::gate::AlwaysGo;
    use crate::store::testing::{
        ask, data, discard, flush, image, read, reap, reap_all, request, write, zeroes,
    };
    use crate::store::{Buffers, Op};
    use proptest::prelude::*;

    const SIZE: u64 = 64 << 10;

    fn store(path: &std::path::Path, read_only: bool, cache: Cache) -> RawStore {
        let image = Image::open(path, 512, read_only).unwrap();
        RawStore::new(image, 512, read_only, cache, Arc::new(AlwaysGo), Profile::PLAIN)
    }

    /// By calls and through rings, with the page cache and past it: `f` is asked for each, with what
    /// makes such a store.
    fn each_way(f: impl Fn(&dyn Fn(&std::path::Path, bool, Cache) -> RawStore)) {
        for (rings, direct) in [(false, false), (true, false), (false, true), (true, true)] {
            let (_dir, path, _) = image(4096);
            if direct && Image::open(&path, 512, false).unwrap().go_direct(512).is_err() {
                println!("no O_DIRECT in {}", path.display());
                continue;
            }
            f(&|path, read_only, cache| {
                let mut image = Image::open(path, 512, read_only).unwrap();
                if direct {
                    image.go_direct(512).unwrap();
                }
                let gate = Arc::new(AlwaysGo);
                let mut store = RawStore::new(image, 512, read_only, cache, gate, Profile::PLAIN);
                if rings {
                    store.make_rings(1).expect("io_uring");
                }
                store
            });
        }
    }

    /// (kind, first sector, sectors, byte): lies inside the disk.
    fn step() -> impl Strategy<Value = (u8, u64, u64, u8)> {
        (0..5u8, 0..SIZE / 512, 1..=16u64, any::<u8>())
            .prop_map(|(kind, at, n, byte)| (kind, at, n.min(SIZE / 512 - at), byte))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..Default::default() })]

        #[test]
        fn a_disk_is_what_was_written(steps in prop::collection::vec(step(), 1..40)) {
            each_way(|store| {
                let (_dir, path, mut disk) = image(SIZE);
                let made = store(&path, false, Cache::Writeback);
                let mut queue = made.queue(0);
                for (kind, at, n, byte) in steps.clone() {
                    let (offset, len) = (at * 512, n * 512);
                    let range = offset as usize..(offset + len) as usize;
                    match kind {
                        0 => {
                            let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8).collect();
                            ask(&mut *queue, write(0, offset, data.clone())).unwrap();
                            disk[range].copy_from_slice(&data);
                        }
                        1 => {
                            let data = ask(&mut *queue, read(0, offset, len as usize)).unwrap();
                            assert_eq!(&data, &disk[range]);
                        }
                        2 => {
                            ask(&mut *queue, flush(0)).unwrap();
                        }
                        // Punched by hosts that can, else unchanged: whatever is read then stays.
                        3 => {
                            ask(&mut *queue, discard(0, offset, len)).unwrap();
                            let data = ask(&mut *queue, read(0, offset, len as usize)).unwrap();
                            let old = &mut disk[range];
                            assert!(data == old || data.iter().all(|b| *b == 0));
                            old.copy_from_slice(&data);
                        }
                        _ => {
                            ask(&mut *queue, zeroes(0, offset, len, byte & 1 == 0)).unwrap();
                            disk[range].fill(0);
                        }
                    }
                }
                ask(&mut *queue, flush(0)).unwrap();
                drop((queue, made));
                assert!(std::fs::read(&path).unwrap() == disk);
            });
        }
    }

    #[test]
    fn many_small_pieces_arrive_whole() {
        each_way(|store| {
            let (_dir, path, _) = image(4 << 20);
            let made = store(&path, false, Cache::Writeback);
            let mut queue = made.queue(0);
            // More than IOV_MAX pieces, and some that are empty.
            let pieces = |memory: &mut Vec<u8>| {
                let base: *mut u8 = memory.as_mut_ptr();
                let iov: Vec<libc::iovec> = (0..2050)
                    .flat_map(|i| {
                        let at = base.wrapping_add(i * 512).cast();
                        [(at, 512), (at, 0)]
                            .map(|(iov_base, iov_len)| libc::iovec { iov_base, iov_len })
                    })
                    .collect();
                // SAFETY: `memory` outlives both requests below.
                unsafe { Buffers::new(iov, Arc::new(())) }
            };
            let mut from: Vec<u8> = (0..2050 * 512).map(|i| (i / 7) as u8).collect();
            let op = Op::Write { offset: 512, fua: true, atomic: false };
            ask(&mut *queue, request(0, op, pieces(&mut from))).unwrap();
            let mut to = vec![0; from.len()];
            ask(&mut *queue, request(1, Op::Read { offset: 512 }, pieces(&mut to))).unwrap();
            assert!(from == to);
        });
    }

    #[test]
    fn a_read_only_disk_is_never_written() {
        each_way(|store| {
            let (_dir, path, bytes) = image(4096);
            let made = store(&path, true, Cache::Writeback);
            let mut queue = made.queue(0);
            let refused = |r: Result<Vec<u8>, Failure>| matches!(r, Err(Failure::ReadOnly));
            assert!(refused(ask(&mut *queue, write(0, 0, vec![9; 512]))));
            assert!(refused(ask(&mut *queue, discard(1, 0, 512))));
            assert!(refused(ask(&mut *queue, zeroes(2, 0, 512, true))));
            assert!(ask(&mut *queue, flush(3)).is_ok());
            assert_eq!(ask(&mut *queue, read(4, 0, 4096)).unwrap(), bytes);
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        });
    }

    #[test]
    fn every_cache_mode_takes_every_request() {
        each_way(|store| {
            for cache in [Cache::Writeback, Cache::Writethrough, Cache::Unsafe] {
                assert_eq!(cache.to_string().parse::<Cache>().unwrap(), cache);
                let (_dir, path, _) = image(4096);
                let made = store(&path, false, cache);
                made.set_writeback(false);
                let mut queue = made.queue(0);
                ask(&mut *queue, write(0, 0, vec![9; 512])).unwrap();
                ask(&mut *queue, discard(1, 1024, 512)).unwrap();
                ask(&mut *queue, zeroes(2, 2048, 512, false)).unwrap();
                ask(&mut *queue, flush(3)).unwrap();
                assert_eq!(ask(&mut *queue, read(4, 0, 512)).unwrap(), vec![9; 512]);
                assert!(reap(&mut *queue).is_empty());
            }
            assert!("none".parse::<Cache>().unwrap_err().contains("writeback"));
            assert!("later".parse::<Cache>().unwrap_err().contains("unsafe"));
        });
    }

    #[test]
    fn negotiation_decides_about_write_through() {
        let (_dir, path, _) = image(4096);
        let store = store(&path, false, Cache::Writeback);
        let through = |flush, config_wce, writeback| {
            store.negotiated(Negotiation { flush_offered: true, flush, config_wce, writeback });
            store.shared.write_through.load(Ordering::Relaxed)
        };
        assert!(!through(true, false, false));
        assert!(!through(true, true, true));
        assert!(through(true, true, false));
        assert!(through(false, true, false));
        assert!(through(false, false, true));
    }

    #[test]
    fn more_than_a_ring_holds_are_on_their_way_at_once() {
        each_way(|store| {
            let (_dir, path, _) = image(1 << 20);
            let made = store(&path, false, Cache::Writeback);
            let mut queue = made.queue(0);
            for n in 0..1000 {
                queue.submit(write(n, u64::from(n) * 1024, vec![n as u8; 1024]));
            }
            assert_eq!(queue.in_flight(), 1000);
            let done = reap_all(&mut *queue, 1000);
            assert!(done.iter().all(|done| done.result.is_ok()));
            for n in 0..1000 {
                queue.submit(read(n, u64::from(n) * 1024, 1024));
            }
            for done in reap_all(&mut *queue, 1000) {
                assert!(data(&done) == vec![done.request.origin.position as u8; 1024]);
            }
            // What is on its way ends before the queue does, and the next one has a ring again.
            queue.submit(write(0, 0, vec![9; 1024]));
            drop(queue);
            let mut queue = made.queue(0);
            assert_eq!(ask(&mut *queue, read(1, 0, 1024)).unwrap(), vec![9; 1024]);
            queue.submit(read(2, 0, 1024));
            queue.drain();
            assert_eq!(reap(&mut *queue).len(), 1);
            assert_eq!(queue.in_flight(), 0);
        });
    }

    #[test]
    fn an_image_that_is_cut_short_fails_what_is_beyond_and_stays_lost() {
        each_way(|store| {
            let (_dir, path, bytes) = image(64 << 10);
            let made = store(&path, false, Cache::Writeback);
            let mut queue = made.queue(0);
            std::fs::File::options().write(true).open(&path).unwrap().set_len(32 << 10).unwrap();
            assert_eq!(ask(&mut *queue, read(0, 0, 4096)).unwrap(), &bytes[..4096]);
            for at in [28 << 10, 32 << 10, 60 << 10] {
                let failed = ask(&mut *queue, read(1, at, 8192.min((64 << 10) - at as usize)));
                assert!(failed.unwrap_err().to_string().contains("cut short"), "{at}");
            }
            assert!(ask(&mut *queue, write(2, 40 << 10, vec![1; 512])).is_err());
            ask(&mut *queue, write(2, 0, bytes[..512].to_vec())).unwrap();
            assert!(ask(&mut *queue, flush(3)).is_err());
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 32 << 10, "nothing grows back");
            std::fs::File::options().write(true).open(&path).unwrap().set_len(64 << 10).unwrap();
            assert!(ask(&mut *queue, flush(4)).is_err(), "what is lost stays lost");
        });
    }
}

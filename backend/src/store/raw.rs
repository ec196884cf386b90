//! The plain store: the disk is a file or a block device, and nothing is remembered.

use super::gate::{Engine, Gate, GatedQueue, Step};
use super::image::Image;
use super::{Failure, Op, Past, Request, ResizeError, Rings, Store, StoreQueue};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tornblk_model::crash::{AtomicMode, Profile};
use tornblk_model::event::{Disk, Negotiation, ResetCause, Segment};

/// What happens to a write on the host, by the names of QEMU's `-drive cache=`.
///
/// All go through the host's page cache, so what they promise is about power loss of the host; a
/// device that is killed loses nothing that it answered.
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
            "none" | "directsync" => Err(format!(
                "`{name}` needs O_DIRECT, which this device does not use: take writeback for \
                 none, or writethrough for directsync"
            )),
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

pub struct RawStore {
    shared: Arc<Shared>,
    lb_size: u32,
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
        RawStore { shared, lb_size, gate, profile }
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
        let engine = RawEngine(Arc::clone(&self.shared));
        let profile = Some(self.profile.clone()).filter(|p| p.mode != AtomicMode::None);
        let gate = Arc::clone(&self.gate);
        super::broken::or_broken(GatedQueue::new(n, engine, gate, profile))
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

/// Moves the bytes at once, in `execute`.
struct RawEngine(Arc<Shared>);

impl Shared {
    fn settle(&self, fua: bool) -> Result<(), Failure> {
        let through = match self.cache {
            Cache::Writethrough => true,
            Cache::Writeback => fua || self.write_through.load(Ordering::Relaxed),
            Cache::Unsafe => false,
        };
        if through { self.image.sync() } else { Ok(()) }
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
            Op::Read { .. } | Op::Flush => Ok(Step::Next(())),
            _ if self.0.read_only => Err(Failure::ReadOnly),
            _ => Ok(Step::Next(())),
        }
    }

    fn execute(&mut self, request: &mut Request, (): &mut (), _: bool) -> Result<(), Failure> {
        let shared = &self.0;
        match request.past {
            // Reading again harms nobody, and the guest's memory may have changed since.
            Past::Moved { ok } if !matches!(request.op, Op::Read { .. }) => {
                let failed = "it failed before the device was started again";
                return if ok { Ok(()) } else { Err(Failure::Io(io::Error::other(failed))) };
            }
            _ => {}
        }
        match &request.op {
            Op::Read { offset } => shared.image.read(*offset, &request.buffers),
            Op::Write { offset, fua, .. } => {
                shared.image.write(*offset, &request.buffers)?;
                shared.settle(*fua)
            }
            Op::Flush if shared.cache == Cache::Unsafe || shared.read_only => Ok(()),
            Op::Flush => shared.image.sync(),
            Op::Discard { segments } => shared.each(segments, Image::discard),
            Op::WriteZeroes { segments } => shared.each(segments, Image::zero),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::gate::AlwaysGo;
    use crate::store::testing::{ask, discard, flush, image, read, reap, request, write, zeroes};
    use crate::store::{Buffers, Op};
    use proptest::prelude::*;

    const SIZE: u64 = 64 << 10;

    fn store(path: &std::path::Path, read_only: bool, cache: Cache) -> RawStore {
        let image = Image::open(path, 512, read_only).unwrap();
        RawStore::new(image, 512, read_only, cache, Arc::new(AlwaysGo), Profile::PLAIN)
    }

    /// (kind, first sector, sectors, byte): lies inside the disk.
    fn step() -> impl Strategy<Value = (u8, u64, u64, u8)> {
        (0..5u8, 0..SIZE / 512, 1..=16u64, any::<u8>())
            .prop_map(|(kind, at, n, byte)| (kind, at, n.min(SIZE / 512 - at), byte))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_disk_is_what_was_written(steps in prop::collection::vec(step(), 1..40)) {
            let (_dir, path, mut disk) = image(SIZE);
            {
                let store = store(&path, false, Cache::Writeback);
                let mut queue = store.queue(0);
                for (kind, at, n, byte) in steps {
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
                            prop_assert_eq!(&data, &disk[range]);
                        }
                        2 => {
                            ask(&mut *queue, flush(0)).unwrap();
                        }
                        // Punched by hosts that can, else unchanged: whatever is read then stays.
                        3 => {
                            ask(&mut *queue, discard(0, offset, len)).unwrap();
                            let data = ask(&mut *queue, read(0, offset, len as usize)).unwrap();
                            let old = &mut disk[range];
                            prop_assert!(data == old || data.iter().all(|b| *b == 0));
                            old.copy_from_slice(&data);
                        }
                        _ => {
                            ask(&mut *queue, zeroes(0, offset, len, byte & 1 == 0)).unwrap();
                            disk[range].fill(0);
                        }
                    }
                }
            }
            prop_assert_eq!(std::fs::read(&path).unwrap(), disk);
        }
    }

    #[test]
    fn many_small_pieces_arrive_whole() {
        let (_dir, path, _) = image(4 << 20);
        let store = store(&path, false, Cache::Writeback);
        let mut queue = store.queue(0);
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
    }

    #[test]
    fn a_read_only_disk_is_never_written() {
        let (_dir, path, bytes) = image(4096);
        let store = store(&path, true, Cache::Writeback);
        let mut queue = store.queue(0);
        let refused = |r: Result<Vec<u8>, Failure>| matches!(r, Err(Failure::ReadOnly));
        assert!(refused(ask(&mut *queue, write(0, 0, vec![9; 512]))));
        assert!(refused(ask(&mut *queue, discard(1, 0, 512))));
        assert!(refused(ask(&mut *queue, zeroes(2, 0, 512, true))));
        assert!(ask(&mut *queue, flush(3)).is_ok());
        assert_eq!(ask(&mut *queue, read(4, 0, 4096)).unwrap(), bytes);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn every_cache_mode_takes_every_request() {
        for cache in [Cache::Writeback, Cache::Writethrough, Cache::Unsafe] {
            assert_eq!(cache.to_string().parse::<Cache>().unwrap(), cache);
            let (_dir, path, _) = image(4096);
            let store = store(&path, false, cache);
            store.set_writeback(false);
            let mut queue = store.queue(0);
            ask(&mut *queue, write(0, 0, vec![9; 512])).unwrap();
            ask(&mut *queue, discard(1, 1024, 512)).unwrap();
            ask(&mut *queue, zeroes(2, 2048, 512, false)).unwrap();
            ask(&mut *queue, flush(3)).unwrap();
            assert_eq!(ask(&mut *queue, read(4, 0, 512)).unwrap(), vec![9; 512]);
            assert!(reap(&mut *queue).is_empty());
        }
        assert!("none".parse::<Cache>().unwrap_err().contains("writeback"));
        assert!("later".parse::<Cache>().unwrap_err().contains("unsafe"));
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
}

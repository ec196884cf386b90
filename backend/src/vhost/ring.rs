//! The crate's rings, with what the device needs beside them: the rings by number, and where each
//! available index lies, readable without a lock.

use crate::device::Memory;
use crate::store::Rings;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

/// The guest's memory, which the front-end may replace.
pub(super) type Space = GuestMemoryAtomic<Memory>;

/// Where an available ring keeps its index, behind `flags` (VIRTIO 1.2, 2.7.6).
const AVAIL_INDEX: u64 = 2;
/// No guest address: the ring does not run.
const NOWHERE: u64 = u64::MAX;

thread_local! {
    /// The rings that this thread made. The daemon makes them without any context and keeps them
    /// to itself, and `stop_vring` gets only a number: so they are collected on the way.
    static MADE: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

/// Makes a daemon with `make`, and gives the rings that it made, in their order.
pub(super) fn collected<T>(make: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    MADE.with(|made| made.borrow_mut().clear());
    let made = make();
    (made, MADE.with(RefCell::take))
}

/// A ring.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Space>,
    /// Guest address of the available index while the ring runs.
    avail_index: Arc<AtomicU64>,
    /// How many wait for the ring, besides its own thread.
    wanted: Arc<AtomicUsize>,
}

impl Vring {
    /// From now on the available index is looked at, or, without `run`, no more.
    fn watch(&self, run: bool) {
        let at = if run {
            self.inner.get_ref().get_queue().avail_ring().saturating_add(AVAIL_INDEX)
        } else {
            NOWHERE
        };
        self.avail_index.store(at, Ordering::Release);
    }

    /// For the thread that serves the queue.
    pub(super) fn own(&self) -> <Self as VringStateMutGuard<'_, Space>>::G {
        self.inner.get_mut()
    }

    /// Does anybody else wait for it? Messages do: who polls a ring lets them in.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// Does something that locks the ring.
    fn wanting<T>(&self, f: impl FnOnce(&VringMutex<Space>) -> T) -> T {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let result = f(&self.inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Nothing that the guest adds counts any more. Not at `set_queue_ready(false)`: what is in
    /// flight then is still to be completed, and what is visible at that moment still counts.
    pub(super) fn forget(&self) {
        self.watch(false);
    }
}

impl<'a> VringStateGuard<'a, Space> for Vring {
    type G = <VringMutex<Space> as VringStateGuard<'a, Space>>::G;
}

impl<'a> VringStateMutGuard<'a, Space> for Vring {
    type G = <VringMutex<Space> as VringStateMutGuard<'a, Space>>::G;
}

impl VringT<Space> for Vring {
    fn new(mem: Space, max_queue_size: u16) -> Result<Self, Error> {
        let ring = Vring {
            inner: VringMutex::new(mem, max_queue_size)?,
            avail_index: Arc::new(AtomicU64::new(NOWHERE)),
            wanted: Arc::default(),
        };
        MADE.with(|made| made.borrow_mut().push(ring.clone()));
        Ok(ring)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Space>>::G {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.get_ref();
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Space>>::G {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.get_mut();
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.wanting(|ring| ring.set_enabled(enabled));
        if enabled && self.inner.get_ref().get_queue().ready() {
            self.watch(true);
        }
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), Error> {
        self.wanting(|ring| ring.set_queue_info(desc, avail, used))?;
        if self.inner.get_ref().get_queue().ready() {
            self.watch(true);
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.wanting(|ring| ring.queue_next_avail())
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.wanting(|ring| ring.set_queue_next_avail(base));
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.wanting(|ring| ring.set_queue_next_used(idx));
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.wanting(|ring| ring.queue_used_idx())
    }

    fn set_queue_size(&self, num: u16) {
        self.wanting(|ring| ring.set_queue_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.wanting(|ring| ring.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.wanting(|ring| ring.set_queue_ready(ready));
        if ready {
            self.watch(true);
        }
    }

    fn set_kick(&self, file: Option<File>) {
        self.wanting(|ring| ring.set_kick(file));
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.inner.read_kick() {
            // The kick was replaced between the event and this look at it. An error would end the
            // queue's thread, without a word.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.inner.get_ref().is_enabled())
            }
            Err(error) => {
                log::warn!("a kick cannot be read: {error}");
                Ok(false)
            }
            enabled => enabled,
        }
    }

    /// The front-end does not wait for this message: what was signalled through the old descriptor
    /// until now may be lost, as QEMU unmasks its interrupts right after it has enabled the rings.
    /// So the guest is told once more, and looks at its used ring; at worst in vain.
    fn set_call(&self, file: Option<File>) {
        self.wanting(|ring| ring.set_call(file));
        let runs = self.inner.get_ref().get_queue().ready();
        if runs && let Err(error) = self.inner.signal_used_queue() {
            log::warn!("the guest cannot be told where it has just asked for it: {error}");
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.wanting(|ring| ring.set_err(file));
    }
}

/// The available indices of a connection's rings: a load each, and no lock.
pub(super) struct Indices {
    mem: Space,
    /// By queue.
    at: Vec<Arc<AtomicU64>>,
}

impl Indices {
    pub(super) fn new(mem: Space, rings: &[Vring]) -> Indices {
        Indices { mem, at: rings.iter().map(|ring| ring.avail_index.clone()).collect() }
    }
}

impl Rings for Indices {
    fn available(&self, f: &mut dyn FnMut(u16, u16)) {
        let mem = self.mem.memory();
        for (queue, at) in (0..).zip(&self.at) {
            let at = at.load(Ordering::Acquire);
            if at == NOWHERE {
                continue;
            }
            if let Ok(index) = mem.load::<u16>(GuestAddress(at), Ordering::Acquire) {
                f(queue, u16::from_le(index));
            }
        }
    }
}

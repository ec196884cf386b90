//! What vhost-user messages and kicks do to the device.
//!
//! Locks are taken in this order: the daemon's handler (its thread only), a queue's, its ring's,
//! then whatever the store has. The store asks for available indices without any of them.

use super::guard::guard;
use super::in_flight::{Beside, Region};
use super::notes::{Notes, Watch};
use super::ring::{Indices, Space, Vring};
use crate::complaints;
use crate::device::{Device, DeviceQueue, Memory, RING_SIZE_MAX};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tornblk_model::event::ResetCause;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// Moments between two looks at a queue that is polled: about half a microsecond.
const SPINS: usize = 16;

/// Parts that are served before the queue's locks are given back.
const PARTS: usize = 16;

/// The device, as one front-end is served with it.
pub(super) struct Backend {
    device: Arc<dyn Device>,
    /// The guest's memory, once it is guarded. The daemon has a space of its own, in which it shows
    /// new memory before anybody can do that.
    mem: Space,
    rings: OnceLock<Vec<Vring>>,
    /// One for each thread, and there is a thread for each queue. Weak: a handler holds us.
    handlers: OnceLock<Vec<Weak<VringEpollHandler<Arc<Backend>>>>>,
    /// Made at a queue's first kick, or where another reaches it; gone at its stop.
    queues: Vec<Mutex<Option<Box<dyn DeviceQueue>>>>,
    /// Guest memory as it was told last: (start, length).
    regions: Mutex<Vec<(u64, u64)>>,
    watch: Arc<Watch>,
    /// Readable when the front-end has to go.
    trouble: OwnedFd,
    /// Memory that the front-end keeps, where it gave some.
    in_flight: Mutex<Option<Arc<Region>>>,
    beside: Arc<Beside>,
    exits: Mutex<Vec<RawFd>>,
    /// How long a queue's thread looks for more, after it found something, before it sleeps.
    poll: Duration,
    /// By queue: how many wait for it; its thread is not to look once more then.
    wanted: Vec<AtomicUsize>,
    /// The connection ends, and nobody is to look once more.
    over: AtomicBool,
}

impl Backend {
    pub(super) fn new(
        device: Arc<dyn Device>,
        beside: Arc<Beside>,
        default_writeback: bool,
        poll: Duration,
    ) -> io::Result<Arc<Backend>> {
        let watch = Watch::new(Arc::clone(&device), Arc::clone(&beside), default_writeback);
        let queues = (0..device.queues()).map(|_| Mutex::new(None)).collect();
        let wanted = (0..device.queues()).map(|_| AtomicUsize::new(0)).collect();
        Ok(Arc::new(Backend {
            device,
            mem: Space::new(Memory::new()),
            rings: OnceLock::new(),
            handlers: OnceLock::new(),
            queues,
            regions: Mutex::new(Vec::new()),
            watch,
            trouble: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            in_flight: Mutex::default(),
            beside,
            exits: Mutex::new(Vec::new()),
            poll,
            wanted,
            over: AtomicBool::new(false),
        }))
    }

    pub(super) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Readable when the front-end cut its guest's memory short, and cannot be served any more.
    pub(super) fn troubled(&self) -> BorrowedFd<'_> {
        self.trouble.as_fd()
    }

    /// From the next start of a queue on, what is in flight is noted in `region`.
    pub(super) fn remember_in(&self, region: Arc<Region>) {
        *whole(&self.in_flight) = Some(region);
    }

    /// What the daemon made: before it is started, and once.
    pub(super) fn connect(
        &self,
        rings: Vec<Vring>,
        handlers: &[Arc<VringEpollHandler<Arc<Backend>>>],
    ) {
        if let Some(bell) = self.device.store().resized() {
            // Of before: this front-end sees the size as it is.
            let _ = rustix::io::read(bell, &mut [0u8; 8]);
        }
        self.device.resized();
        self.device.store().connected(Arc::new(Indices::new(self.mem.clone(), &rings)));
        let _ = self.rings.set(rings);
        let _ = self.handlers.set(handlers.iter().map(Arc::downgrade).collect());
    }

    /// The threads of the queues end when they look at their events again: they do.
    pub(super) fn ends(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// After the daemon is gone, with its threads. What is in flight is ended and noted, not
    /// returned: the front-end has read the used index by now. The same one, come back, gets its
    /// answers; for any other the notes are void.
    pub(super) fn disconnect(&self) {
        let mut left = 0;
        for queue in &self.queues {
            if let Some(mut queue) = whole(queue).take() {
                left += queue.in_flight();
                queue.abandon();
            }
        }
        if left > 0 {
            log::info!("{left} requests were in flight when the front-end went away");
        }
        self.device.reset(ResetCause::Reconnect, None);
        for exit in whole(&self.exits).drain(..) {
            // SAFETY: made by `exit_event`, given away by the crate with `into_raw_fd` to an epoll
            // instance that is closed by now, and known to nobody else.
            drop(unsafe { OwnedFd::from_raw_fd(exit) });
        }
    }

    /// Event number by which a queue's store wakes its thread: above those of the crate.
    fn wake_event(&self) -> u16 {
        self.device.queues() + 1
    }

    /// Takes what is there and returns what is done, and goes on looking for more for as long as
    /// `poll` says. Only on the queue's own thread.
    fn serve(&self, n: usize, woken: bool) {
        // At most 64 queues.
        let reaches_all = self.device.reaches_all(n as u16);
        if reaches_all {
            (0..self.queues.len()).filter(|other| *other != n).for_each(|other| self.make(other));
        }
        // What reaches all the others has to make them first, each time that it takes something.
        let woken = if reaches_all { woken } else { self.look(n, woken) };
        self.pump(n, woken, false);
    }

    /// Serves the queue a part at a time, until nothing came for as long as `poll` says, or somebody
    /// wants it for something else: a lock knows no turns. Is the wake still to be cleared?
    fn look(&self, n: usize, mut woken: bool) -> bool {
        let Some(ring) = self.rings.get().and_then(|rings| rings.get(n)) else { return woken };
        // From when on nothing came. Where nothing came at all, it is not waited for.
        let mut since = None;
        while !self.is_wanted(n, ring) {
            match self.pump(n, std::mem::take(&mut woken), true) {
                Some(true) if self.poll.is_zero() => {}
                Some(true) => since = Some(Instant::now()),
                Some(false) if since.is_some_and(|at: Instant| at.elapsed() < self.poll) => {
                    // Others poll, too: what is shared is left alone for a moment.
                    (0..SPINS).for_each(|_| std::hint::spin_loop());
                }
                _ => break,
            }
        }
        woken
    }

    /// Is somebody waiting for the queue, or for its thread to end?
    fn is_wanted(&self, n: usize, ring: &Vring) -> bool {
        self.wanted[n].load(Ordering::Relaxed) > 0
            || ring.is_wanted()
            || self.over.load(Ordering::Relaxed)
    }

    /// Does so once. With `again`, the driver need not kick: it is looked again. Was there something?
    /// `None`: the queue does not run.
    fn pump(&self, n: usize, woken: bool, again: bool) -> Option<bool> {
        let ring = self.rings.get()?.get(n)?;
        let mut slot = whole(&self.queues[n]);
        let mut state = ring.own();
        let runs = runs(&state);
        if slot.is_none() {
            if !runs {
                return None;
            }
            *slot = Some(self.start(n, &mut state));
        }
        let queue = slot.as_mut()?;
        if woken && let Some(fd) = queue.wake_fd() {
            // Only ever readable here; where it is not, there is nothing to clear.
            let _ = rustix::io::read(fd, &mut [0u8; 8]);
        }
        let mem = self.mem.memory().into_inner();
        let told = |state: &VringState<Space>| {
            if let Err(error) = state.signal_used_queue() {
                log::warn!("queue {n}: the guest cannot be told: {error}");
            }
        };
        let mut moved = false;
        if again && runs {
            // The driver is told of each part while the next is done.
            for _ in 0..PARTS {
                let polled = queue.poll(state.get_queue_mut(), &mem);
                moved |= polled.moved;
                if polled.tell {
                    told(&state);
                }
                if !polled.moved || self.is_wanted(n, ring) {
                    break;
                }
            }
        } else if queue.pump(state.get_queue_mut(), &mem, runs) {
            told(&state);
        }
        if self.watch.is_cut_short() {
            // Fails only where the counter is full: then it is readable anyway.
            let _ = rustix::io::write(&self.trouble, &1u64.to_ne_bytes());
        }
        runs.then_some(moved)
    }

    /// The queue, for another thread than its own.
    fn wanting(&self, n: usize) -> MutexGuard<'_, Option<Box<dyn DeviceQueue>>> {
        self.wanted[n].fetch_add(1, Ordering::Relaxed);
        let slot = whole(&self.queues[n]);
        self.wanted[n].fetch_sub(1, Ordering::Relaxed);
        slot
    }

    /// A queue that runs and was not kicked yet is made all the same. Its thread is not woken: what
    /// reaches the queue does that.
    fn make(&self, n: usize) {
        let Some(ring) = self.rings.get().and_then(|rings| rings.get(n)) else { return };
        let mut slot = self.wanting(n);
        let mut state = ring.get_mut();
        if slot.is_none() && runs(&state) {
            *slot = Some(self.start(n, &mut state));
        }
    }

    fn start(&self, n: usize, state: &mut VringState<Space>) -> Box<dyn DeviceQueue> {
        // At most 64 queues.
        let mut queue = self.device.clone().queue(n as u16);
        let mem = self.mem.memory().into_inner();
        let ring = state.get_queue_mut();
        let slot = match &*whole(&self.in_flight) {
            Some(region) if region.covers(n, ring.size()) => region.queue(n, false),
            Some(_) => {
                log::warn!("queue {n}: what the front-end keeps for it is too small: kept here");
                self.beside.queue(n, ring, &mem)
            }
            None => self.beside.queue(n, ring, &mem),
        };
        let notes = Notes { slot, watch: Arc::clone(&self.watch) };
        let again = queue.resume(Box::new(notes), ring, &mem);
        // What a device before this one returned may never have been told.
        if let Err(error) = state.signal_used_queue() {
            log::warn!("queue {n}: the guest cannot be told: {error}");
        }
        self.device.store().begun(n as u16, again > 0);
        if let (Some(fd), Some(handler)) = (queue.wake_fd(), self.handler(n)) {
            let listened =
                handler.register_listener(fd.as_raw_fd(), EventSet::IN, self.wake_event().into());
            if let Err(error) = listened {
                log::error!("queue {n} cannot be woken by its store: {error}");
            }
        }
        log::debug!("queue {n} runs");
        queue
    }

    fn handler(&self, n: usize) -> Option<Arc<VringEpollHandler<Arc<Backend>>>> {
        self.handlers.get()?.get(n)?.upgrade()
    }

    /// Ends what is in flight on a queue and returns it; then the queue itself, if `end`.
    fn settle(&self, n: usize, why: &str, end: bool) {
        let Some(ring) = self.rings.get().and_then(|rings| rings.get(n)) else { return };
        let mut slot = self.wanting(n);
        if let Some(queue) = slot.as_mut() {
            let held = queue.in_flight();
            if held > 0 {
                complaints::guest_did(format_args!(
                    "queue {n}: {held} requests in flight end now: {why}"
                ));
            }
            let mut state = ring.get_mut();
            let mem = self.mem.memory().into_inner();
            if queue.drain(state.get_queue_mut(), &mem) {
                let _ = state.signal_used_queue();
            }
        }
        if end {
            ring.forget();
            if let Some(queue) = slot.take()
                && let (Some(fd), Some(handler)) = (queue.wake_fd(), self.handler(n))
            {
                let _ = handler.unregister_listener(
                    fd.as_raw_fd(),
                    EventSet::IN,
                    self.wake_event().into(),
                );
            }
        }
    }
}

fn runs(ring: &VringState<Space>) -> bool {
    ring.is_enabled() && ring.get_queue().ready()
}

/// No panic leaves these half-changed: a lock that a panicking thread held is as good as any.
fn whole<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.device.queues().into()
    }

    fn max_queue_size(&self) -> usize {
        // As many as any device here may have: QEMU 10.0.13 was seen to ask for 1,024 whatever its
        // `queue-size` says, and a ring that is longer than a request harms nobody.
        RING_SIZE_MAX.into()
    }

    fn features(&self) -> u64 {
        self.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.device.negotiated(features);
        self.watch.keep_writeback();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        wanted.set(VhostUserProtocolFeatures::CONFIG, self.device.shows_config());
        wanted
    }

    fn reset_device(&self) {
        for n in 0..self.queues.len() {
            self.settle(n, "the driver reset the device", true);
        }
        self.device.reset(ResetCause::Device, None);
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings themselves know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.config(offset, size)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        // An error would end the connection.
        self.device.set_config(offset, bytes);
        self.watch.keep_writeback();
        Ok(())
    }

    fn update_memory(&self, mem: Space) -> io::Result<()> {
        let memory: Arc<Memory> = mem.memory().into_inner();
        let Some(guards) = guard(&memory) else {
            return Err(io::Error::other("the guest's memory is in too many pieces"));
        };
        let ours = self.mem.lock().map_err(|e| io::Error::other(e.to_string()))?;
        ours.replace((*memory).clone());
        self.watch.guarded(|guarded| guarded.hold(guards, self.mem.memory().into_inner()));
        let now: Vec<(u64, u64)> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
        let before = std::mem::replace(&mut *whole(&self.regions), now.clone());
        let gone = before.iter().any(|region| !now.contains(region));
        if gone || self.watch.guarded(|guarded| guarded.too_many()) {
            // Whoever waits for other queues goes on waiting: they end what they have.
            let ending = (0..self.queues.len()).filter(|n| !self.device.reaches_all(*n as u16));
            ending.for_each(|n| self.settle(n, "the guest's memory changes", false));
        }
        if self.watch.guarded(|guarded| guarded.too_many()) {
            return Err(io::Error::other("the guest's memory changes faster than it is let go"));
        }
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.device.queues()).map(|n| 1 << n).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                // The crate never closes it.
                whole(&self.exits).push(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                log::error!("a queue's thread will not end by itself: {error}");
                None
            }
        }
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        let n = index as usize;
        if n < self.queues.len() {
            self.settle(n, "the front-end stops the queue", true);
            self.device.reset(ResetCause::QueueStop, Some(index as u16));
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        _rings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        if thread < self.queues.len() {
            self.serve(thread, event == self.wake_event());
        }
        // An error would end the thread.
        Ok(())
    }
}

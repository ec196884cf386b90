//! A disk in memory that remembers what it was asked.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tornblk_backend::store::{Done, Failure, Op, Origin, Request, Rings, Store, StoreQueue};
use tornblk_model::event::{Disk, Negotiation, ResetCause};

/// Everything but requests that a store is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Connected,
    Negotiated(Negotiation),
    Writeback(bool),
    Reset(ResetCause, Option<u16>),
}

#[derive(Default)]
pub(crate) struct MemStore {
    pub(crate) bytes: Mutex<Vec<u8>>,
    read_only: bool,
    /// Bytes; 0 is 512.
    block: u32,
    pub(crate) ops: Mutex<Vec<Op>>,
    origins: Mutex<Vec<Origin>>,
    pieces: Mutex<Vec<Vec<u64>>>,
    pub(crate) told: Mutex<Vec<Told>>,
    pub(crate) rings: Mutex<Option<Arc<dyn Rings>>>,
    /// Requests stay where they are.
    stalled: AtomicBool,
    /// Nothing is answered any more.
    cut: AtomicBool,
    /// So many of the next requests fail.
    failing: AtomicU32,
    bells: Mutex<Vec<Arc<OwnedFd>>>,
}

impl MemStore {
    /// Each byte says which sector it is in.
    pub(crate) fn new(sectors: u64) -> Arc<MemStore> {
        Self::made(sectors, false)
    }

    pub(crate) fn read_only(sectors: u64) -> Arc<MemStore> {
        Self::made(sectors, true)
    }

    pub(crate) fn with_blocks_of(block: u32, sectors: u64) -> Arc<MemStore> {
        let bytes = (0..sectors * 512).map(|i| pattern(i / 512)).collect();
        Arc::new(MemStore { bytes: Mutex::new(bytes), block, ..MemStore::default() })
    }

    fn made(sectors: u64, read_only: bool) -> Arc<MemStore> {
        let bytes = (0..sectors * 512).map(|i| pattern(i / 512)).collect();
        Arc::new(MemStore { bytes: Mutex::new(bytes), read_only, ..MemStore::default() })
    }

    pub(crate) fn stall(&self) {
        self.stalled.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.stalled.store(false, Ordering::SeqCst);
        for bell in self.bells.lock().unwrap().iter() {
            rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Closes what the store holds of queues that are gone.
    pub(crate) fn forget_bells(&self) {
        self.bells.lock().unwrap().clear();
    }

    pub(crate) fn cut_power(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn power_on(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }

    pub(crate) fn fail_next(&self, n: u32) {
        self.failing.store(n, Ordering::SeqCst);
    }

    pub(crate) fn sector(&self, n: u64) -> Vec<u8> {
        self.bytes.lock().unwrap()[n as usize * 512..][..512].to_vec()
    }

    pub(crate) fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock().unwrap())
    }

    /// The lengths of the pieces of each request since the last call.
    pub(crate) fn take_pieces(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut self.pieces.lock().unwrap())
    }

    pub(crate) fn origins(&self) -> Vec<Origin> {
        self.origins.lock().unwrap().clone()
    }

    pub(crate) fn take_told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    /// Queue and available index of every queue that runs.
    pub(crate) fn available(&self) -> Vec<(u16, u16)> {
        let rings = self.rings.lock().unwrap().clone();
        let mut all = Vec::new();
        if let Some(rings) = rings {
            rings.available(&mut |queue, index| all.push((queue, index)));
        }
        all
    }

    fn tell(&self, what: Told) {
        self.told.lock().unwrap().push(what);
    }

    fn execute(&self, request: &mut Request) -> Result<(), Failure> {
        let failing =
            self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if failing.is_ok() {
            return Err(Failure::Injected);
        }
        let mut bytes = self.bytes.lock().unwrap();
        let len = request.buffers.len();
        match &request.op {
            Op::Read { offset } => {
                let from = &bytes[*offset as usize..][..len];
                assert_eq!(request.buffers.copy_from(0, from), len);
            }
            Op::Write { offset, .. } => {
                let to = &mut bytes[*offset as usize..][..len];
                assert_eq!(request.buffers.copy_to(0, to), len);
            }
            Op::Flush { .. } => {}
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                for s in segments {
                    bytes[s.offset as usize..][..s.len as usize].fill(0);
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn pattern(sector: u64) -> u8 {
    (sector % 251 + 1) as u8
}

/// The store as a device gets it: its queues need the `Arc`.
pub(crate) struct Shared(pub(crate) Arc<MemStore>);

impl Store for Shared {
    fn disk(&self) -> Disk {
        let lb_size = if self.0.block == 0 { 512 } else { self.0.block };
        Disk { capacity: self.0.bytes.lock().unwrap().len() as u64, lb_size }
    }

    fn read_only(&self) -> bool {
        self.0.read_only
    }

    fn queue(&self, _n: u16) -> Box<dyn StoreQueue> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let bell = Arc::new(bell);
        self.0.bells.lock().unwrap().push(bell.clone());
        Box::new(MemQueue { store: self.0.clone(), bell, waiting: VecDeque::new() })
    }

    fn connected(&self, rings: Arc<dyn Rings>) {
        *self.0.rings.lock().unwrap() = Some(rings);
        self.0.tell(Told::Connected);
    }

    fn negotiated(&self, what: Negotiation) {
        self.0.tell(Told::Negotiated(what));
    }

    fn is_off(&self) -> bool {
        self.0.cut.load(Ordering::SeqCst)
    }

    fn set_writeback(&self, on: bool) {
        self.0.tell(Told::Writeback(on));
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        self.0.tell(Told::Reset(cause, queue));
    }
}

struct MemQueue {
    store: Arc<MemStore>,
    bell: Arc<OwnedFd>,
    waiting: VecDeque<Request>,
}

impl MemQueue {
    fn finish(&mut self, f: &mut dyn FnMut(Done)) {
        for mut request in self.waiting.drain(..) {
            let result = self.store.execute(&mut request);
            f(Done { request, result });
        }
    }
}

impl StoreQueue for MemQueue {
    fn submit(&mut self, request: Request) {
        self.store.ops.lock().unwrap().push(request.op.clone());
        self.store.origins.lock().unwrap().push(request.origin);
        self.store.pieces.lock().unwrap().push(request.pieces.clone());
        let pieces = request.pieces.iter().sum::<u64>();
        assert!(pieces == 0 || pieces == request.buffers.len() as u64);
        if !self.store.cut.load(Ordering::SeqCst) {
            self.waiting.push_back(request);
        }
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        if self.store.cut.load(Ordering::SeqCst) {
            self.waiting.clear();
        }
        if !self.store.stalled.load(Ordering::SeqCst) {
            self.finish(f);
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn drain(&mut self) {
        self.store.stalled.store(false, Ordering::SeqCst);
    }
}

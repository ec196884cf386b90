//! What QEMU would do: connect, negotiate, share memory, start queues, kick, and wait for calls.

use crate::common::driver::{Driver, Sent};
use crate::common::store::MemStore;
use crate::common::{device_with, scsi_with, store::Told};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::device::{Device, Memory};
use tornblk_backend::vhost::{Socket, serve};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Long enough for a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device that is served in this process, until dropped.
pub(crate) struct Server {
    pub(crate) store: Arc<MemStore>,
    dir: TempDir,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(queues: u16) -> Server {
        Server::with(queues, LimitOptions::default())
    }

    pub(crate) fn with(queues: u16, limits: LimitOptions) -> Server {
        let store = MemStore::new(4096);
        let device = device_with(&store, queues, limits);
        Server::of(device, store, Duration::ZERO)
    }

    /// One whose queues look for more for so long.
    pub(crate) fn polling(queues: u16, poll: Duration) -> Server {
        let store = MemStore::new(4096);
        Server::of(device_with(&store, queues, LimitOptions::default()), store, poll)
    }

    /// Serves a SCSI disk.
    pub(crate) fn scsi(request_queues: u16, limits: LimitOptions) -> Server {
        let store = MemStore::new(4096);
        Server::of(scsi_with(&store, request_queues, limits), store, Duration::ZERO)
    }

    fn of(device: Arc<dyn Device>, store: Arc<MemStore>, poll: Duration) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = Socket::bind(&dir.path().join("blk.sock")).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            serve(&device, &socket, stopped.as_fd(), poll).unwrap();
        });
        Server { store, dir, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("blk.sock")
    }

    /// Waits until the store was told `what`, and gives all that it was told up to then.
    pub(crate) fn until_told(&self, what: &Told) -> Vec<Told> {
        let mut all = Vec::new();
        until(|| {
            all.extend(self.store.take_told());
            all.contains(what)
        });
        all
    }

    pub(crate) fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for something that is to happen soon.
pub(crate) fn until(mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "it never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct Queue {
    pub(crate) driver: Driver,
    kick: EventFd,
    call: EventFd,
}

/// A front-end with a guest in it.
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) mem: Arc<Memory>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) features: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
    /// Where the device notes what is in flight; kept over connections.
    pub(crate) inflight: Option<(VhostUserInflight, File)>,
}

const REGION: usize = 0x10_0000;
/// Each queue has this much memory, its rings first.
const SHARE: u64 = 0x4_0000;

fn shared_memory() -> Arc<Memory> {
    let file = |len: usize| {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len as u64).unwrap();
        Some(FileOffset::new(file, 0))
    };
    let regions = [
        (GuestAddress(0), REGION, file(REGION)),
        (GuestAddress(REGION as u64), REGION, file(REGION)),
    ];
    Arc::new(GuestMemoryMmap::from_ranges_with_files(regions).unwrap())
}

impl Guest {
    /// Connects and negotiates everything, as far as QEMU does before its guest drives the disk.
    pub(crate) fn connect(path: &Path, queues: u16) -> Guest {
        let all = VhostUserProtocolFeatures::all();
        let (frontend, features, protocol) = Guest::agree(path, queues, all);
        let mem = shared_memory();
        Guest { frontend, mem, queues: Vec::new(), features, protocol, inflight: None }
    }

    /// As a front-end that knows only these protocol features.
    fn agree(
        path: &Path,
        queues: u16,
        known: VhostUserProtocolFeatures,
    ) -> (Frontend, u64, VhostUserProtocolFeatures) {
        let mut frontend = None;
        until(|| {
            frontend = Frontend::connect(path, queues.into()).ok();
            frontend.is_some()
        });
        let mut frontend = frontend.unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        for needed in [
            VhostUserProtocolFeatures::MQ,
            VhostUserProtocolFeatures::REPLY_ACK,
            VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            VhostUserProtocolFeatures::RESET_DEVICE,
            VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            VhostUserProtocolFeatures::BACKEND_REQ,
        ] {
            assert!(protocol.contains(needed), "{needed:?}");
        }
        let protocol = protocol & known;
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        (frontend, features, protocol)
    }

    /// As a front-end whose region for what is in flight has room for so many requests a queue.
    pub(crate) fn with_region_of(path: &Path, queues: u16, size: u16) -> Guest {
        let mut guest = Guest::connect(path, queues);
        let wanted = VhostUserInflight::new(0, 0, queues, size);
        guest.inflight = Some(guest.frontend.get_inflight_fd(&wanted).unwrap());
        guest.start(queues);
        guest
    }

    /// As a front-end that keeps no memory for what is in flight.
    pub(crate) fn forgetful(path: &Path, queues: u16) -> Guest {
        let mut guest = Guest::connect(path, queues);
        drop(guest.frontend);
        let known = !VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let (frontend, _, protocol) = Guest::agree(path, queues, known);
        (guest.frontend, guest.protocol) = (frontend, protocol);
        guest.start(queues);
        guest
    }

    /// The device was started again, and the guest goes on: as QEMU does it.
    pub(crate) fn reconnect(&mut self, path: &Path) {
        let queues = self.queues.len() as u16;
        // SAFETY: the connection lives until it is replaced below.
        let old = unsafe { BorrowedFd::borrow_raw(self.frontend.as_raw_fd()) };
        let _ = rustix::net::shutdown(old, rustix::net::Shutdown::Both);
        let (frontend, features, protocol) = Guest::agree(path, queues, self.protocol);
        assert_eq!((features, protocol), (self.features, self.protocol));
        self.frontend = frontend;
        self.share(queues);
        for n in 0..usize::from(queues) {
            // The device did not say where it was: what it returned is all that is known.
            self.start_queue(n, self.queues[n].driver.used_index());
        }
    }

    /// Features, what is in flight, and memory.
    fn share(&mut self, queues: u16) {
        if self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            let frontend = &mut self.frontend;
            let (what, file) = self.inflight.get_or_insert_with(|| {
                frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, queues, 128)).unwrap()
            });
            frontend.set_inflight_fd(what, file.as_raw_fd()).unwrap();
        }
        self.frontend.set_features(self.features).unwrap();
        self.frontend.set_mem_table(&self.regions()).unwrap();
    }

    pub(crate) fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.mem
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    /// The guest's driver says that it is ready.
    pub(crate) fn start(&mut self, queues: u16) {
        self.share(queues);
        for n in 0..queues {
            let base = u64::from(n) * SHARE;
            let driver = Driver::new(self.mem.clone(), base, 128, base + 0x4000);
            let queue = Queue {
                driver,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
            };
            self.queues.push(queue);
            self.start_queue(n.into(), 0);
        }
    }

    /// Sets a queue up, its available ring read from `base` on.
    pub(crate) fn start_queue(&mut self, n: usize, base: u16) {
        let host = |addr: u64| self.mem.get_host_address(GuestAddress(addr)).unwrap() as u64;
        let q = &self.queues[n];
        let frontend = &mut self.frontend;
        frontend.set_vring_num(n, q.driver.size).unwrap();
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: q.driver.size,
            flags: 0,
            desc_table_addr: host(q.driver.desc_table()),
            used_ring_addr: host(q.driver.used_ring()),
            avail_ring_addr: host(q.driver.avail_ring()),
            log_addr: None,
        };
        frontend.set_vring_base(n, base).unwrap();
        frontend.set_vring_addr(n, &config).unwrap();
        frontend.set_vring_call(n, &q.call).unwrap();
        frontend.set_vring_kick(n, &q.kick).unwrap();
        frontend.set_vring_enable(n, true).unwrap();
    }

    pub(crate) fn ready(path: &Path, queues: u16) -> Guest {
        let mut guest = Guest::connect(path, queues);
        guest.start(queues);
        guest
    }

    pub(crate) fn config(&mut self, offset: u32, size: u32) -> Vec<u8> {
        let room = vec![0; size as usize];
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend.get_config(offset, size, flags, &room).unwrap().1
    }

    pub(crate) fn kick(&self, n: usize) {
        self.queues[n].kick.write(1).unwrap();
    }

    /// Has a queue call through another descriptor; says how often that was done at once.
    pub(crate) fn replace_call(&mut self, n: usize) -> u64 {
        self.queues[n].call = EventFd::new(EFD_NONBLOCK).unwrap();
        self.frontend.set_vring_call(n, &self.queues[n].call).unwrap();
        self.queues[n].call.read().unwrap_or(0)
    }

    pub(crate) fn clear_call(&self, n: usize) {
        let _ = self.queues[n].call.read();
    }

    pub(crate) fn was_called(&self, n: usize) -> bool {
        self.queues[n].call.read().is_ok()
    }

    /// Waits for the next answers of a queue.
    pub(crate) fn wait(&mut self, n: usize) -> Vec<(u16, u32)> {
        let q = &mut self.queues[n];
        loop {
            // First say what to be told of, then look: what comes in between rings.
            q.driver.ask_to_be_told();
            let used = q.driver.take_used();
            if !used.is_empty() {
                return used;
            }
            // SAFETY: the eventfd lives as long as `q`.
            let call = unsafe { BorrowedFd::borrow_raw(q.call.as_raw_fd()) };
            let mut polled = [rustix::event::PollFd::new(&call, rustix::event::PollFlags::IN)];
            let patience = PATIENCE.try_into().unwrap();
            let ready = rustix::event::poll(&mut polled, Some(&patience)).unwrap();
            assert!(ready > 0, "queue {n} never answered");
            q.call.read().unwrap();
        }
    }

    /// Sends one request with `make`, and gives its status.
    pub(crate) fn ask(&mut self, n: usize, make: impl FnOnce(&mut Driver) -> Sent) -> (Sent, u8) {
        let sent = make(&mut self.queues[n].driver);
        self.kick(n);
        let used = self.wait(n);
        assert_eq!(used.iter().map(|used| used.0).collect::<Vec<_>>(), [sent.head]);
        (sent, self.queues[n].driver.byte(sent.status))
    }
}

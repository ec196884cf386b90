//! vhost-user messages, with bytes and descriptors, over a real socket to
//! [`tornblk_backend::vhost::serve`], and kicks to the queues that they started.
//!
//! Promised: the connection ends when the front-end ends it; answers are whole messages, in the order
//! of what was asked; no byte of a file is written that no memory region shows, whatever is cut short meanwhile; the next front-end is served; no descriptor is
//! left open; and what [`crate::store`] looks at.

mod files;

use crate::common::driver::Driver;
use crate::common::scsi as scsi_driver;
use crate::dish::Dish;
use crate::limits::open_files;
use crate::reach::{Count, Reached};
use crate::store::{self, Disks, Kind};
use files::{Files, REGION};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tornblk_backend::device::blk::{Blk, BlkOptions, seg_max};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{FRONT_END_SEG_MAX, Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd, Memory};
use tornblk_backend::vhost::{Socket, serve};
use tornblk_model::guard::Guard;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, MmapRegion};

static REPLIES: Count = Count::new("replies");
static RAN: Count = Count::new("queues that were started as they should be");
static ANSWERED: Count = Count::new("requests answered over a queue");
static STOPPED: Count = Count::new("queues stopped");
static CUT_SHORT: Count = Count::new("memories cut short");

pub(crate) fn reached() -> Vec<Reached> {
    let all = [&REPLIES, &RAN, &ANSWERED, &STOPPED, &CUT_SHORT, &store::READS, &store::WRITES];
    all.map(Count::get).into()
}

/// Messages and kicks in a case.
const STEPS: usize = 48;
/// How long the device may take to say something, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without which it says nothing more.
const MOMENT: Duration = Duration::from_millis(200);

/// Where the front-end has the guest's memory, as it says.
const THERE: u64 = 0x7000_0000_0000;
/// Each queue has this much memory, its rings first.
const SHARE: u64 = 0x2_0000;
const RING: u16 = 64;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const RESET_DEVICE: u32 = 34;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;

pub(crate) fn run(data: &[u8]) {
    let before = open_files();
    case(data);
    let after = open_files();
    assert_eq!(after, before, "descriptors are left open");
}

fn case(data: &[u8]) {
    let mut dish = Dish::new(data);
    let setup = dish.byte();
    let scsi = setup & 2 != 0;
    let kind = Kind { recorded: setup & 1 != 0, read_only: false, lb_size: 512 };
    let limits = Limits::new(&LimitOptions {
        seg_max: if scsi { FRONT_END_SEG_MAX } else { seg_max(256) },
        front_end: if scsi { FrontEnd::Scsi } else { FrontEnd::Blk },
        ..LimitOptions::default()
    })
    .unwrap();
    let disks = Disks::new(kind, &limits.profile);
    let store = disks.store.clone();
    let id = || *b"serial-of-20-letters";
    let device: Arc<dyn Device> = if scsi {
        let (request_queues, queue_size, luns) = (1, 256, Vec::new());
        let id = Box::new(id);
        Scsi::new(ScsiOptions {
            store,
            luns,
            limits,
            request_queues,
            queue_size,
            writeback: true,
            id,
        })
    } else {
        let (queues, queue_size, id) = (2, 256, Box::new(id));
        Blk::new(BlkOptions { store, limits, queues, queue_size, writeback: true, id })
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = Socket::bind(&dir.path().join("s")).unwrap();
    let path = socket.path().to_owned();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let served = device.clone();
    let server =
        std::thread::spawn(move || serve(&served, &socket, stopped.as_fd(), Duration::ZERO));
    hostile(&path, &mut dish, scsi, &disks);
    disks.gate.release();
    well_behaved(&path, &device);
    drop(stop);
    server.join().unwrap().unwrap();
    drop(device);
    disks.end();
}

/// A front-end that keeps to the rules is served after the other one. While the device is not yet
/// through with that, it may be turned away.
fn well_behaved(path: &Path, device: &Arc<dyn Device>) {
    let began = Instant::now();
    let answer = loop {
        match features(path) {
            Ok(answer) => break answer,
            Err(e) => assert!(began.elapsed() < PATIENCE, "the next front-end is not served: {e}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let features = u64::from_le_bytes(answer[12..].try_into().unwrap());
    assert_eq!(features & !PROTOCOL_FEATURES, device.features());
}

fn features(path: &Path) -> std::io::Result<[u8; 20]> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&message(GET_FEATURES, VERSION, &[]))?;
    let mut answer = [0; 20];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = request.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// The front-end.
struct Hostile {
    stream: UnixStream,
    files: Files,
    mem: Arc<Memory>,
    scsi: bool,
    queues: Vec<Option<Driver>>,
    /// What the front-end said, and what the device did.
    asked: Vec<u8>,
    said: Vec<u8>,
    gone: bool,
    /// Something was said that a front-end does not say.
    odd: bool,
}

fn hostile(path: &Path, dish: &mut Dish<'_>, scsi: bool, disks: &Disks) {
    let files = Files::new();
    let region = |at: u64| {
        let file = FileOffset::new(files.memory.try_clone().unwrap(), at);
        (GuestAddress(at), REGION as usize, Some(file))
    };
    let mem = Memory::from_ranges_with_files([region(0), region(REGION)]).unwrap();
    // Cut short beneath the driver, too.
    let mem = Arc::new(mem);
    let _guarded = guarded(mem.clone());
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut front_end = Hostile {
        stream,
        files,
        mem,
        scsi,
        queues: (0..3).map(|_| None).collect(),
        asked: Vec::new(),
        said: Vec::new(),
        gone: false,
        odd: false,
    };
    for _ in 0..STEPS {
        if dish.is_empty() || front_end.gone {
            break;
        }
        front_end.step(dish, disks);
    }
    front_end.end();
}

/// Guards, and behind them what they guard.
fn guarded(mem: Arc<Memory>) -> (Vec<Guard>, Arc<Memory>) {
    let guard = |region: &MmapRegion| {
        // SAFETY: the region is mapped as long as the memory lives, which is kept behind the guard.
        unsafe { Guard::new(region.as_ptr() as usize, region.size()) }.unwrap()
    };
    (mem.iter().map(|region| guard(region)).collect(), mem)
}

impl Hostile {
    fn step(&mut self, dish: &mut Dish<'_>, disks: &Disks) {
        match dish.below(16) {
            0 => self.negotiate(),
            1 | 2 => self.start(dish.byte()),
            3..=5 => self.request(dish),
            6 => {
                let index = u32::from(dish.below(4));
                self.vring(GET_VRING_BASE, index, 0, true);
                if let Some(queue) = self.queues.get_mut(index as usize)
                    && queue.take().is_some()
                {
                    STOPPED.one();
                }
            }
            7 => match dish.below(4) {
                0 => disks.gate.stall(false),
                1 => disks.gate.stall(true),
                _ => disks.gate.release(),
            },
            8 => {
                let kick = &self.files.kicks[usize::from(dish.below(3))];
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
            9 => {
                self.odd = true;
                let (bytes, fds) = (dish.bytes(40), dish.few(3));
                self.files.show_all();
                self.send(bytes, fds);
            }
            10 => {
                // Memory that the rings and chains lie in.
                self.odd = true;
                let at = u64::from(dish.u16()) * 8 % (2 * REGION - 8);
                self.mem.write_obj(dish.u64(), GuestAddress(at)).unwrap();
            }
            11 => {
                self.odd = true;
                self.files.cut_short(u64::from(dish.byte()) * 0x1000);
            }
            _ => self.any(dish),
        }
    }

    /// Sends bytes, with descriptors.
    fn send(&mut self, bytes: &[u8], fds: &[u8]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| self.files.of(*fd)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        if bytes.is_empty() {
            return;
        }
        let flags = SendFlags::NOSIGNAL;
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(sent) => self.asked.extend(&bytes[..sent]),
            Err(_) => self.gone = true,
        }
    }

    fn say(&mut self, request: u32, payload: &[u8], fds: &[u8]) {
        self.send(&message(request, VERSION, payload), fds);
    }

    /// Waits until the device is through with what it was told.
    fn wait(&mut self) {
        let before = self.replies(GET_FEATURES).len();
        self.say(GET_FEATURES, &[], &[]);
        let began = Instant::now();
        while self.replies(GET_FEATURES).len() == before && !self.gone && began.elapsed() < MOMENT {
            self.listen();
        }
    }

    /// Takes what is there, or waits a little for it.
    fn listen(&mut self) {
        let mut piece = [0; 4096];
        self.stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        match self.stream.read(&mut piece) {
            Ok(0) => self.gone = true,
            Ok(n) => self.said.extend(&piece[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
    }

    fn vring(&mut self, request: u32, index: u32, num: u32, wait: bool) {
        let mut payload = index.to_le_bytes().to_vec();
        payload.extend(num.to_le_bytes());
        self.say(request, &payload, &[]);
        if wait {
            self.wait();
        }
    }

    /// What a front-end does first.
    fn negotiate(&mut self) {
        self.say(SET_OWNER, &[], &[]);
        self.say(GET_PROTOCOL_FEATURES, &[], &[]);
        self.wait();
        // Not more than was offered.
        let offered = self.replies(GET_PROTOCOL_FEATURES).pop().unwrap_or(0);
        self.say(SET_PROTOCOL_FEATURES, &(offered & PROTOCOL).to_le_bytes(), &[]);
        let features = self.replies(GET_FEATURES).pop().unwrap_or(0);
        self.say(SET_FEATURES, &features.to_le_bytes(), &[]);
        let mut payload = 2u32.to_le_bytes().to_vec();
        payload.extend([0; 4]);
        for at in [0, REGION] {
            payload.extend(region(at, REGION, at));
        }
        self.files.show(0, 0..2 * REGION);
        self.say(SET_MEM_TABLE, &payload, &[0, 0]);
    }

    /// The replies of 8 bytes to such a request.
    fn replies(&self, to: u32) -> Vec<u64> {
        let mut found = Vec::new();
        let mut rest = &self.said[..];
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let Some((payload, after)) = tail.split_at_checked(word(8) as usize) else { break };
            if word(0) == to {
                found.extend(payload.try_into().ok().map(u64::from_le_bytes));
            }
            rest = after;
        }
        found
    }

    /// Sets a queue up and starts it.
    fn start(&mut self, how: u8) {
        let n = usize::from(how % 3);
        let base = n as u64 * SHARE;
        let driver = Driver::new(self.mem.clone(), base, RING, base + 0x2000);
        let index = (n as u32).to_le_bytes();
        self.vring(SET_VRING_NUM, n as u32, RING.into(), false);
        self.vring(SET_VRING_BASE, n as u32, 0, false);
        let mut payload = index.to_vec();
        payload.extend([0; 4]);
        for at in [driver.desc_table(), driver.used_ring(), driver.avail_ring(), 0] {
            payload.extend((THERE + at).to_le_bytes());
        }
        self.say(SET_VRING_ADDR, &payload, &[]);
        self.say(SET_VRING_CALL, &u64::from(index[0]).to_le_bytes(), &[6]);
        self.say(SET_VRING_KICK, &u64::from(index[0]).to_le_bytes(), &[3 + how % 3]);
        self.vring(SET_VRING_ENABLE, n as u32, 1, true);
        self.queues[n] = Some(driver);
        RAN.one();
    }

    /// A request that makes sense, and a kick.
    fn request(&mut self, dish: &mut Dish<'_>) {
        let (n, shape) = (usize::from(dish.below(3)), dish.byte());
        let sector = u64::from(dish.byte() % 130);
        let (scsi, odd) = (self.scsi, self.odd);
        let Some(driver) = &mut self.queues[n] else { return };
        if driver.avail() >= RING / 4 {
            // Its descriptors are used up.
            self.queues[n] = None;
            return;
        }
        if scsi {
            let disk = scsi_driver::DISK;
            let cdb = [0x28 | shape & 2, 0, 0, 0, 0, sector as u8, 0, 0, 1, 0];
            match n {
                0 => drop(driver.manage(u32::from(shape % 9), disk, 1)),
                _ if shape & 2 == 0 => drop(driver.command(disk, 1, &cdb, &[], 512)),
                _ => drop(driver.command(disk, 1, &cdb, &[shape; 512], 0)),
            }
        } else {
            match shape % 4 {
                0 => driver.wants(0, sector, 512),
                1 => driver.gives(1, sector, &[shape; 512]),
                2 => driver.gives(4, 0, &[]),
                _ => driver.wants(8, 0, 20),
            };
        }
        let _ = rustix::io::write(&self.files.kicks[n], &1u64.to_ne_bytes());
        // Where nothing came in between, its answer comes.
        let began = Instant::now();
        let driver = self.queues[n].as_mut().unwrap();
        while shape & 0x80 != 0 && !odd && began.elapsed() < MOMENT {
            let used = driver.take_used().len() as u64;
            ANSWERED.add(used);
            if used > 0 {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// A message that may be anything.
    fn any(&mut self, dish: &mut Dish<'_>) {
        self.odd = true;
        let request = match dish.byte() {
            n @ 0..=250 => u32::from(n) % 46,
            _ => dish.u32(),
        };
        let (mut payload, mut fds) = self.payload(request, dish);
        let shape = dish.byte();
        for _ in 0..shape & 3 {
            if !payload.is_empty() && request != SET_MEM_TABLE && request != ADD_MEM_REG {
                let at = usize::from(dish.byte()) % payload.len();
                payload[at] = dish.byte();
            }
        }
        match shape >> 2 & 7 {
            0 => payload.truncate(usize::from(dish.byte())),
            1 => payload.extend(dish.bytes(16)),
            2 => {
                fds = dish.few(33).to_vec();
                self.files.show_all();
            }
            _ => {}
        }
        let flags = match shape >> 5 {
            0 => VERSION | NEED_REPLY,
            1 => dish.u32(),
            _ => VERSION,
        };
        let mut bytes = message(request, flags, &payload);
        if shape == 255 {
            bytes[8..12].copy_from_slice(&dish.u32().to_le_bytes());
        }
        self.send(&bytes, &fds);
        if shape & 1 == 0 {
            self.wait();
        }
    }

    /// What a message of this kind carries, mostly.
    fn payload(&mut self, request: u32, dish: &mut Dish<'_>) -> (Vec<u8>, Vec<u8>) {
        let mut payload = Vec::new();
        let mut fds = Vec::new();
        match request {
            SET_FEATURES | SET_PROTOCOL_FEATURES => {
                let bits = match dish.below(4) {
                    0 => u64::MAX,
                    1 => dish.u64(),
                    2 => PROTOCOL_FEATURES,
                    _ => PROTOCOL & dish.u64(),
                };
                payload.extend(bits.to_le_bytes());
            }
            SET_MEM_TABLE => {
                let n = dish.byte() % 10;
                payload.extend(u32::from(n).to_le_bytes());
                payload.extend([0; 4]);
                for _ in 0..n {
                    let (region, range) = any_region(dish);
                    payload.extend(region);
                    let file = dish.pick(&[0, 0, 0, 0, 1, 2, 3, 8, 10, 11]);
                    self.files.show(file, range);
                    fds.push(file);
                }
            }
            ADD_MEM_REG | REM_MEM_REG => {
                payload.extend([0; 8]);
                let (region, range) = any_region(dish);
                payload.extend(region);
                if request == ADD_MEM_REG {
                    let file = dish.pick(&[0, 0, 0, 1, 2, 11]);
                    self.files.show(file, range);
                    fds.push(file);
                }
            }
            SET_VRING_NUM | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE => {
                payload.extend(u32::from(dish.below(4)).to_le_bytes());
                payload.extend((dish.number() as u32).to_le_bytes());
            }
            SET_VRING_ADDR => {
                payload.extend(u32::from(dish.below(4)).to_le_bytes());
                payload.extend(u32::from(dish.below(3)).to_le_bytes());
                for _ in 0..4 {
                    let at = match dish.below(4) {
                        0 => dish.number(),
                        1 => THERE + 2 * REGION - u64::from(dish.u16()),
                        _ => THERE + u64::from(dish.u16()) * 4,
                    };
                    payload.extend(at.to_le_bytes());
                }
            }
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
                let index = u64::from(dish.below(4)) | u64::from(dish.byte() & 1) << 8;
                payload.extend(index.to_le_bytes());
                if index < 0x100 {
                    let file = dish.byte();
                    // An interrupt is written to it, whatever it is.
                    if request != SET_VRING_KICK {
                        self.files.show(file, 0..u64::MAX);
                    }
                    fds.push(file);
                }
            }
            GET_CONFIG | SET_CONFIG => {
                let (at, len) = (dish.number() as u32, dish.byte());
                for word in [at, len.into(), u32::from(dish.below(4))] {
                    payload.extend(word.to_le_bytes());
                }
                payload.extend(vec![dish.byte(); len.into()]);
            }
            GET_INFLIGHT_FD | SET_INFLIGHT_FD => {
                payload.extend(dish.number().to_le_bytes());
                payload.extend(dish.number().to_le_bytes());
                payload.extend(dish.u16().to_le_bytes());
                payload.extend(dish.u16().to_le_bytes());
                if request == SET_INFLIGHT_FD {
                    let n = dish.pick(&[0, 1, 2, 3, 11]);
                    // Its place in the file may still be changed.
                    self.files.show(n, 0..u64::MAX);
                    fds.push(n);
                }
            }
            SET_LOG_BASE => {
                payload.extend(dish.number().to_le_bytes());
                payload.extend(dish.number().to_le_bytes());
                fds.push(1);
            }
            SET_BACKEND_REQ_FD => fds.push(dish.pick(&[10, 10, 3, 8, 11])),
            GET_FEATURES | SET_OWNER | GET_PROTOCOL_FEATURES | GET_QUEUE_NUM | RESET_DEVICE => {}
            _ => {
                payload = dish.few(48).to_vec();
                fds = dish.few(3).to_vec();
                self.files.show_all();
            }
        }
        (payload, fds)
    }

    /// The front-end leaves, and the device lets it.
    fn end(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let began = Instant::now();
        while !self.gone {
            self.listen();
            assert!(began.elapsed() < PATIENCE, "the connection does not end");
        }
        let mut replies = Vec::new();
        let mut rest = &self.said[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(12).expect("a reply has a header");
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            assert!(word(4) & 7 == VERSION | REPLY, "flags of a reply: {:#x}", word(4));
            (_, rest) = tail.split_at_checked(word(8) as usize).expect("a reply is whole");
            replies.push(word(0));
            REPLIES.one();
        }
        in_order(&requests(&self.asked), &replies);
        self.files.check();
    }
}

/// What kinds of messages these are. What was not said to its end is none.
fn requests(mut rest: &[u8]) -> Vec<u32> {
    let mut all = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(12) {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let Some((_, after)) = tail.split_at_checked(word(8) as usize) else { break };
        all.push(word(0));
        rest = after;
    }
    all
}

/// Each reply is to a message, and to one after that of the reply before. Most messages have none;
/// who asks for the features is answered before whatever comes after.
fn in_order(asked: &[u32], replies: &[u32]) {
    let mut left = asked.iter();
    for (n, reply) in replies.iter().enumerate() {
        let is_next = loop {
            match left.next() {
                Some(request) if request == reply => break true,
                Some(&GET_FEATURES) | None => break false,
                Some(_) => {}
            }
        };
        assert!(is_next, "reply {n} is out of order: {replies:?} to {asked:?}");
    }
}

/// A region of memory, perhaps one that cannot be, and what it shows of its file.
fn any_region(dish: &mut Dish<'_>) -> (Vec<u8>, Range<u64>) {
    let mut number = || match dish.below(4) {
        0 => dish.number(),
        1 => u64::from(dish.byte()) * 0x1000 % REGION,
        2 => REGION,
        _ => 0,
    };
    let (at, len, offset) = (number(), number(), number());
    (region(at, len, offset), offset..offset.saturating_add(len))
}

/// A region as it is in a message.
fn region(at: u64, len: u64, offset: u64) -> Vec<u8> {
    let words = [at, len, THERE.wrapping_add(at), offset];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_are_out_of_order_are_noticed() {
        let sent = [
            message(GET_FEATURES, VERSION, &[]),
            message(SET_FEATURES, VERSION, &[0; 8]),
            message(GET_INFLIGHT_FD, VERSION, &[0; 20]),
            message(GET_FEATURES, VERSION, &[]),
            message(GET_QUEUE_NUM, VERSION, &[0; 8])[..19].to_vec(),
        ];
        let asked = requests(&sent.concat());
        let (features, region) = (GET_FEATURES, GET_INFLIGHT_FD);
        assert_eq!(asked, [features, SET_FEATURES, region, features]);
        for replies in [
            &[][..],
            &[features],
            &[features, SET_FEATURES, region],
            &[features, region, features],
            &[features, features],
        ] {
            in_order(&asked, replies);
        }
        for replies in [
            &[region][..],
            &[region, features],
            &[features, region, SET_FEATURES],
            &[features, features, region],
            &[features, features, features],
            &[features, GET_QUEUE_NUM],
        ] {
            let caught = std::panic::catch_unwind(|| in_order(&asked, replies));
            assert!(caught.is_err(), "{replies:?}");
        }
    }
}

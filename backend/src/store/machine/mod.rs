//! The disk as a whole: what the device is attached to, and what the control socket drives.
//!
//! A [`Machine`] is a [`Store`] that passes requests on to the store beneath it, and can exchange
//! that: the live disk (raw, or recorded) or a state of the recording with an overlay. It carries
//! the power switch, the stalls and faults, and counts.

mod commands;
mod error;
mod files;
mod queue;
mod recorded;
mod states;
#[cfg(test)]
mod tests;
mod trace;
mod watch;

pub use error::{MachineError, OpenError};
pub use files::Files;

use super::image::Image;
use super::live::{HoldCompletions, Idler, LiveGate, lock};
use super::raw::{Cache, IoEngine, RawStore};
use super::{Rings, Store, StoreQueue};
use crate::made::Made;
use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard};
use queue::{Counts, MachineQueue, Tally};
use recorded::{Recorded, Resolution};
use rustix::event::{EventfdFlags, eventfd};
use states::States;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tornblk_model::crash::{AtomicMode, Fault, Profile};
use tornblk_model::event::{Disk, Negotiation, ResetCause};
use tornblk_model::recording::Header;
use tornblk_proto::{DEVICE_ID_BYTES, Limits, Status, device_id};
use trace::Trace;
use watch::{Watch, What};

/// What [`Status::state`] says of the disk as it is.
const LIVE: &str = "live";

/// Smallest and largest logical block (VIRTIO `blk_size`, and what Linux takes).
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=64 << 10;

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// A file or a block device: the disk, or with a recording what the disk was at its start. With
    /// `states`: a copy of their base image; empty: that itself.
    pub image: PathBuf,
    /// Show the states of this recording, and no live disk; `recording` is `None` then.
    pub states: Option<PathBuf>,
    /// Record to this file; the image is then never written, unless data are not recorded.
    pub recording: Option<PathBuf>,
    /// With a recording: the data of writes, too. Without them the disk is a raw one, and no state
    /// can be shown.
    pub record_payload: bool,
    /// Which disk this is: what the guest is told, and what a crash may leave.
    pub profile: Profile,
    /// Bytes: a power of two, 512 to 64 KiB.
    pub logical_block_size: u32,
    /// Bytes: a power of two, not below the logical block size.
    pub physical_block_size: u32,
    pub read_only: bool,
    /// Of a raw disk. With recorded data, nothing of the guest's is synced: what survives a power cut
    /// is up to the model, and what the guest sees of a cache is up to the device.
    pub cache: Cache,
    /// Of a raw disk: past the host's page cache.
    pub direct: bool,
    /// Of a raw disk.
    pub io_engine: IoEngine,
    /// All that there will be: a ring is made for each before anybody is served.
    pub queues: u16,
    /// Of every draw: crash states, faults with a probability, held completions.
    pub seed: u64,
    /// Armed from the start.
    pub faults: Vec<Fault>,
    pub hold_completions: HoldCompletions,
    /// The guest sees several disks in it, whose sizes are said once.
    pub divided: bool,
    /// Of the disk, as the guest sees it: 20 bytes count.
    pub serial: String,
}

pub struct Machine {
    shared: Arc<Shared>,
    /// Begun with the first queue: a machine that is only open has no thread yet, so that whoever
    /// restricts the process (the sandbox) has one thread to do it to.
    idler: Mutex<Option<Idler>>,
}

/// What the machine and its queues have in common.
struct Shared {
    options: Options,
    disk: Disk,
    /// Bytes now: a raw disk may grow.
    capacity: AtomicU64,
    /// Readable when it did.
    grown: OwnedFd,
    gate: Arc<LiveGate>,
    beneath: ShardedLock<Beneath>,
    tallies: Vec<CachePadded<Tally>>,
    front: Mutex<Front>,
    recorded: Option<Recorded>,
    trace: Option<Trace>,
    states: Option<States>,
    watch: Watch,
    view: Mutex<View>,
    /// One exchange of stores at a time.
    exchanging: Mutex<()>,
    /// What the cut left, once that was worked out.
    resolution: Mutex<Option<Arc<Resolution>>>,
    next_nonce: AtomicU64,
}

/// What the guest sees.
#[derive(Debug, Default)]
struct View {
    /// The name of the state; `None`: the live disk.
    state: Option<String>,
    /// Tells the guest which; `None` too for what a power cut left: a disk keeps its serial.
    nonce: Option<u64>,
    /// The power was cut, and a front-end has come since.
    restarted: bool,
}

/// What the disk is made on: at most one of them; none: an image alone.
#[derive(Default)]
struct Over {
    recorded: Option<Recorded>,
    trace: Option<Trace>,
    states: Option<States>,
}

impl Over {
    fn made(&self) -> Option<Arc<Made>> {
        made(self.recorded.as_ref(), self.trace.as_ref())
    }
}

/// A recording that this process made.
fn made(recorded: Option<&Recorded>, trace: Option<&Trace>) -> Option<Arc<Made>> {
    recorded.and_then(Recorded::made).or_else(|| trace.and_then(Trace::made))
}

/// The store that gets the requests now.
struct Beneath {
    store: Arc<dyn Store>,
    /// Counts the exchanges: a queue of an earlier one has to be made anew.
    epoch: u64,
}

/// The front-end, as far as a store has to know it.
#[derive(Default)]
struct Front {
    rings: Option<Arc<dyn Rings>>,
    negotiation: Option<Negotiation>,
    connected: bool,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Machine {
    /// Opens the image (and makes the recording).
    pub fn open(options: Options) -> Result<Arc<Machine>, OpenError> {
        let (logical, physical) = (options.logical_block_size, options.physical_block_size);
        if !logical.is_power_of_two() || !BLOCK_SIZES.contains(&logical) {
            return Err(OpenError::LogicalBlock(logical));
        }
        if !physical.is_power_of_two() || physical < logical {
            return Err(OpenError::PhysicalBlock { physical, logical });
        }
        if let Some(file) = options.states.clone() {
            return Machine::open_states(&file, options);
        }
        // With a recording the image is only read.
        let recorded = options.recording.clone().filter(|_| options.record_payload);
        let only_read = options.read_only || recorded.is_some();
        let mut image = Image::open(&options.image, logical, only_read)?;
        if Header::is_at_start_of(image.file(), image.path()) {
            return Err(OpenError::IsRecording(image.path().to_owned()));
        }
        if options.direct {
            image.go_direct(logical)?;
        }
        let disk = Disk { capacity: image.size(), lb_size: logical };
        let watch = Watch::default();
        watch.know(What::Image, image.path(), image.file());
        let profile = &options.profile;
        profile.check(&disk).map_err(OpenError::Profile)?;
        let (seed, hold) = (options.seed, options.hold_completions);
        let gate = Arc::new(LiveGate::new(seed, hold, profile.clone(), disk.clone()));
        let (store, over): (Arc<dyn Store>, _) = if let Some(file) = recorded {
            let recorded = Recorded::open(&file, image, &options, &gate)?;
            watch.know(What::Recording, &file, recorded.writer());
            (recorded.live(), Over { recorded: Some(recorded), ..Over::default() })
        } else {
            let (read_only, cache) = (options.read_only, options.cache);
            let path = image.path().to_owned();
            let (raw_gate, profile) = (Arc::clone(&gate) as _, profile.clone());
            let mut raw = RawStore::new(image, logical, read_only, cache, raw_gate, profile);
            add_rings(&mut raw, options.io_engine, options.queues)?;
            match &options.recording {
                Some(file) => {
                    let trace = Trace::open(file, &path, raw, &options, &gate)?;
                    watch.know(What::Recording, file, trace.writer());
                    (trace.live(), Over { trace: Some(trace), ..Over::default() })
                }
                None => (Arc::new(raw), Over::default()),
            }
        };
        let beneath = Beneath { store, epoch: 0 };
        let made = over.made();
        let machine = Machine::over(options, disk, gate, beneath, over, watch);
        if let (Err(_), Some(made)) = (&machine, made) {
            made.take_back();
        }
        machine
    }

    /// A machine that shows states.
    fn open_states(file: &std::path::Path, options: Options) -> Result<Arc<Machine>, OpenError> {
        let states = States::open(file, &options, |disk| {
            let (seed, hold) = (options.seed, options.hold_completions);
            Arc::new(LiveGate::new(seed, hold, options.profile.clone(), disk.clone()))
        })?;
        let (disk, gate) = (states.disk(), states.gate());
        options.profile.check(&disk).map_err(OpenError::Profile)?;
        let beneath = Beneath { store: states.store(), epoch: 0 };
        let watch = Watch::default();
        states.known(&watch);
        let over = Over { states: Some(states), ..Over::default() };
        Machine::over(options, disk, gate, beneath, over, watch)
    }

    fn over(
        options: Options,
        disk: Disk,
        gate: Arc<LiveGate>,
        beneath: Beneath,
        Over { recorded, trace, states }: Over,
        watch: Watch,
    ) -> Result<Arc<Machine>, OpenError> {
        let tallies = (0..options.queues.max(1)).map(|_| CachePadded::default()).collect();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let grown = eventfd(0, flags).map_err(|e| OpenError::Host(e.into()))?;
        let shared = Shared {
            options,
            capacity: AtomicU64::new(disk.capacity),
            grown,
            disk,
            gate,
            beneath: ShardedLock::new(beneath),
            tallies,
            front: Mutex::default(),
            recorded,
            trace,
            states,
            watch,
            view: Mutex::default(),
            exchanging: Mutex::default(),
            resolution: Mutex::default(),
            next_nonce: AtomicU64::new(first_nonce()),
        };
        let machine = Machine { shared: Arc::new(shared), idler: Mutex::default() };
        for fault in machine.options().faults.clone() {
            machine.arm_fault(fault).map_err(OpenError::Fault)?;
        }
        Ok(Arc::new(machine))
    }

    fn begin(&self) -> std::io::Result<()> {
        let mut idler = lock(&self.idler);
        if idler.is_none() {
            *idler = Idler::start(&self.shared.gate)?;
        }
        Ok(())
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// What VIRTIO_BLK_T_GET_ID answers now: see [`tornblk_proto::device_id`].
    pub fn id_string(&self) -> [u8; DEVICE_ID_BYTES] {
        device_id(&self.shared.options.serial, lock(&self.shared.view).nonce)
    }

    pub fn limits(&self) -> Limits {
        let Options { profile, logical_block_size, physical_block_size, .. } = &self.shared.options;
        Limits {
            logical_block_size: *logical_block_size,
            physical_block_size: *physical_block_size,
            unit_min: profile.unit_min,
            unit_max: profile.unit_max,
            max_bytes: profile.max_bytes,
            boundary: profile.boundary,
            mode: match profile.mode {
                AtomicMode::Implicit => "implicit",
                AtomicMode::Explicit => "explicit",
                AtomicMode::None => "none",
            }
            .to_owned(),
            tear_unit: match profile.tear_unit {
                0 => u64::from(*logical_block_size),
                n => n,
            },
            // As the states' names have it.
            profile: profile.on(&self.shared.disk).to_string(),
        }
    }

    /// Is anything done through io_uring?
    pub fn has_rings(&self) -> bool {
        self.shared.beneath().store.bell(0).is_some()
    }

    /// The device has served, and ends: the last moment to say what became of its files.
    pub fn look_back(&self) {
        self.shared.look_now();
    }

    /// The device does not come to serve anybody: a recording that was made for it goes.
    pub fn take_back(&self) {
        if let Some(made) = made(self.shared.recorded.as_ref(), self.shared.trace.as_ref()) {
            made.take_back();
        }
    }

    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let connected = lock(&shared.front).connected;
        let left = shared.resolution().and_then(|r| r.state());
        let view = lock(&shared.view);
        let power_cut = shared.gate.power.is_cut().is_some() && !view.restarted;
        let state = match left {
            _ if !power_cut => view.state.clone(),
            None => Some("none can be shown".to_owned()),
            left => left,
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connected,
            store: match (&shared.recorded, &shared.states) {
                (Some(_), _) => "recording",
                (None, Some(_)) => "states",
                // With a trace, too: that is where the bytes are.
                (None, None) => "raw",
            }
            .to_owned(),
            image: shared.options.image.display().to_string(),
            capacity: shared.disk().capacity,
            read_only: shared.options.read_only,
            state: state.unwrap_or_else(|| {
                if shared.states.is_some() { states::BASE } else { LIVE }.to_owned()
            }),
            power_cut,
            in_flight: shared.in_flight(),
            stalls: shared.gate.stalls(),
            faults: shared.gate.faults().iter().map(|(fault, _)| fault.to_string()).collect(),
            counters: Counts::sum(shared.tallies.iter().map(|tally| &tally.counts)),
            named: shared.gate.named(),
            recording: match &shared.states {
                Some(states) => Some(states.status()),
                None => {
                    let trace = shared.trace.as_ref().map(Trace::status);
                    trace.or_else(|| shared.recorded.as_ref().map(Recorded::status))
                }
            },
        }
    }
}

fn add_rings(raw: &mut RawStore, engine: IoEngine, queues: u16) -> Result<(), OpenError> {
    if engine == IoEngine::Sync {
        return Ok(());
    }
    match raw.make_rings(queues) {
        Err(e) if engine == IoEngine::Auto => {
            log::info!("this process may have no io_uring ({e}): preadv and pwritev do its work");
            Ok(())
        }
        made => made.map_err(OpenError::NoRing),
    }
}

/// Another one in each run: sixteenths of a second, which wrap in eight years.
fn first_nonce() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    (now.unwrap_or_default().as_millis() / 62) as u64 & 0xffff_ffff
}

impl Shared {
    fn disk(&self) -> Disk {
        Disk { capacity: self.capacity.load(Ordering::Acquire), lb_size: self.disk.lb_size }
    }

    /// Is a write of these bytes all-or-nothing?
    fn eligible(&self, offset: u64, len: u64, atomic: bool) -> bool {
        self.options.profile.eligible(offset, len, atomic)
    }

    fn tally(&self, n: u16) -> &Tally {
        // Tests may make more queues than they say.
        &self.tallies[usize::from(n) % self.tallies.len()]
    }

    /// Submitted and not reaped, over all queues.
    fn in_flight(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.in_flight.load(Ordering::Acquire)).sum()
    }

    /// Is nothing in flight?
    fn idle(&self) -> Result<(), MachineError> {
        match self.in_flight() {
            0 => Ok(()),
            n => Err(MachineError::InFlight(n)),
        }
    }

    /// What the power cut left; works it out if nobody has yet. `None`: the power is on.
    fn resolution(&self) -> Option<Arc<Resolution>> {
        let cut = self.gate.power.is_cut()?;
        let recorded = self.recorded.as_ref()?;
        let mut resolution = lock(&self.resolution);
        Some(Arc::clone(resolution.get_or_insert_with(|| {
            // Before anybody is told: whoever knows of the cut may kill this process.
            recorded.note_cut();
            let resolution = recorded.resolve(&cut);
            if let Err(problem) = &resolution.answer {
                log::error!("{problem}");
            }
            Arc::new(resolution)
        })))
    }

    /// Puts another store beneath the guest. Waits for those who are inside the one that is there;
    /// `unless` looks again when they are out.
    fn exchange(
        &self,
        store: Arc<dyn Store>,
        unless: impl FnOnce(&Shared) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let mut beneath = self.beneath.write().unwrap_or_else(PoisonError::into_inner);
        unless(self)?;
        let front = lock(&self.front);
        if let Some(rings) = &front.rings {
            store.connected(Arc::clone(rings));
        }
        if let Some(negotiation) = front.negotiation {
            store.negotiated(negotiation);
        }
        beneath.store = store;
        beneath.epoch += 1;
        Ok(())
    }

    /// Looks whether the files are still what they were, not too often.
    fn look(&self) {
        let trace = self.trace.as_ref().map(Trace::writer);
        let writer = self.recorded.as_ref().map(Recorded::writer).or(trace);
        self.watch.look(self.disk().capacity, writer);
    }

    /// The same, however long ago the last look was.
    fn look_now(&self) {
        self.watch.forget_when();
        self.look();
    }

    fn beneath(&self) -> ShardedLockReadGuard<'_, Beneath> {
        self.beneath.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Machine {
    fn disk(&self) -> Disk {
        self.shared.disk()
    }

    fn resized(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.grown.as_fd())
    }

    fn read_only(&self) -> bool {
        self.shared.options.read_only
    }

    fn queue(&self, n: u16) -> Box<dyn StoreQueue> {
        let made = self.begin().and_then(|()| MachineQueue::new(n, Arc::clone(&self.shared)));
        super::broken::or_broken(made)
    }

    fn connected(&self, rings: Arc<dyn Rings>) {
        self.shared.look_now();
        {
            let mut front = lock(&self.shared.front);
            front.rings = Some(Arc::clone(&rings));
            front.connected = true;
        }
        if !self.restart() {
            self.shared.beneath().store.connected(rings);
        }
    }

    fn negotiated(&self, what: Negotiation) {
        lock(&self.shared.front).negotiation = Some(what);
        self.shared.beneath().store.negotiated(what);
    }

    fn is_off(&self) -> bool {
        self.shared.gate.power.is_cut().is_some() && !lock(&self.shared.view).restarted
    }

    fn begun(&self, n: u16, again: bool) {
        self.shared.beneath().store.begun(n, again);
    }

    fn set_writeback(&self, on: bool) {
        if let Some(negotiation) = &mut lock(&self.shared.front).negotiation {
            negotiation.writeback = on;
        }
        self.shared.beneath().store.set_writeback(on);
    }

    fn reset(&self, cause: ResetCause, queue: Option<u16>) {
        if cause == ResetCause::Reconnect && queue.is_none() {
            let mut front = lock(&self.shared.front);
            front.connected = false;
            front.rings = None;
            self.shared.gate.forget_requests();
        }
        self.shared.beneath().store.reset(cause, queue);
    }
}

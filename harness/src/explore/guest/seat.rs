//! A guest and the device beneath it, taken from state to state.

use super::super::ExploreError;
use super::shown::{Differs, Shown, SwitchError, Wanted};
use super::{Case, GuestSettings};
use crate::device::{Device, StatesSpec};
use crate::run::{FurtherDisk, RunError, check, disks};
use crate::splat::Watch;
use crate::suite::MOUNT;
use crate::vm::{Host, NoHost, Virtiofsd, Vm, VmConfig, VmError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tornblk_agent::channel::{
    Command, FurtherCheck, MarkText, MountPoint, Outcome, Program, StateCheck, StateFound,
    StateMicros, USER_MOUNT, Workload,
};

/// As the guest finds it; the device needs the last 8 bytes of 20.
const SERIAL: &str = "tornblk";
/// Enough for a mount and a checker.
const MEMORY_MIB: u32 = 512;
/// More processors cost more than they bring: there is a guest for each of the host's.
const CPUS: u16 = 1;
/// For a state to be recovered and read: many times what it takes under emulation.
const CHECK_TIMEOUT: Duration = Duration::from_secs(180);
/// For every other command.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Devices that may go in the middle of it: after that something is wrong with this machine.
const DEVICES: u32 = 3;

/// For a program that is run there.
const EXEC_MS: u64 = 110_000;

/// Where the time goes, summed up over all states.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stopwatch {
    pub states: u64,
    /// The device is told.
    pub switch: Duration,
    /// The agent's command, from our side.
    pub check: Duration,
    /// Of that, the steps by the guest's own clock, in microseconds.
    pub steps: StateMicros,
}

/// A guest and its device. Both are killed when it is dropped.
#[derive(Debug)]
pub struct Seat {
    // First: the guest goes before its disk does.
    guest: Option<Guest>,
    device: Device,
    spec: StatesSpec,
    /// Devices that went.
    gone: u32,
    shown: Shown,
    settings: GuestSettings,
    dir: PathBuf,
    workload: Workload,
    /// File system and options; `None`: the raw disk.
    mount: Option<(String, String)>,
    /// Disks beside it.
    further: Vec<FurtherDisk>,
    /// Shows the host's files to the user's checker, where there is one.
    virtiofsd: Option<Virtiofsd>,
    /// Guests that were started.
    pub started: u64,
    pub watch: Stopwatch,
}

#[derive(Debug)]
struct Guest {
    vm: Vm,
    /// `/dev/vda`, and those of further disks.
    devices: Vec<String>,
    /// States it was taken through.
    states: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum SeatError {
    /// The kernel died, or did not answer, in the middle of a state: how.
    Died(String),
    /// Something of ours: another try may help.
    Failed(String),
    /// Nothing helps.
    Ends(ExploreError),
}

impl From<SeatError> for ExploreError {
    fn from(error: SeatError) -> ExploreError {
        match error {
            SeatError::Ends(error) => error,
            SeatError::Died(how) => ExploreError::Bad(format!("what the guest was told {how}")),
            SeatError::Failed(why) => ExploreError::Bad(why),
        }
    }
}

impl Seat {
    /// Starts the device. Guests are started when they are needed; `name` is that of the folder
    /// for their consoles.
    ///
    /// # Errors
    /// The device cannot be started.
    pub fn new(
        case: &Case<'_>,
        settings: &GuestSettings,
        name: &str,
    ) -> Result<Seat, ExploreError> {
        let dir = settings.dir.join(name);
        std::fs::create_dir_all(&dir).map_err(|source| ExploreError::Io {
            what: "make the folder",
            path: dir.clone(),
            source,
        })?;
        let volume = &case.subject.volume;
        let spec = StatesSpec {
            recording: case.recording.clone(),
            base: case.base.clone(),
            profile: volume.profile.clone(),
            front_end: volume.front_end,
            luns: disks::luns(case.history.disk().capacity, &case.subject.disks),
            serial: SERIAL.to_owned(),
            // And not `dir`: the recovery that another seat recorded may be shown here again.
            folder: settings.dir.clone(),
            log: dir.join("device.log"),
        };
        let virtiofsd = match &case.subject.checker {
            Some(_) => Some(Virtiofsd::find().map_err(|e| ExploreError::Bad(e.to_string()))?),
            None => None,
        };
        let device = Device::start_states(&settings.tornblkd, &spec)
            .map_err(|e| ExploreError::Run(e.into()))?;
        let mut shown = Shown::default();
        shown.forget();
        Ok(Seat {
            guest: None,
            device,
            spec,
            gone: 0,
            shown,
            settings: settings.clone(),
            dir,
            workload: case.subject.workload.clone(),
            mount: (!volume.is_raw())
                .then(|| (volume.fstype.clone(), volume.mount_options.clone())),
            further: case.subject.disks.clone(),
            virtiofsd,
            started: 0,
            watch: Stopwatch::default(),
        })
    }

    /// Ends the guest: the next state gets a new one.
    pub fn discard(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.vm.kill();
        }
    }

    /// States that the guest was taken through; 0: it is new, or there is none.
    pub fn age(&self) -> u64 {
        self.guest.as_ref().map_or(0, |guest| guest.states)
    }

    /// Runs a program in the guest, which is started where there is none.
    ///
    /// # Errors
    /// The guest died of it, or cannot be started.
    pub fn exec(&mut self, argv: &[&str]) -> Result<Outcome, ExploreError> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        Ok(self.call(Command::Exec { argv, timeout_ms: EXEC_MS })?)
    }

    /// Process id of the guest's QEMU.
    pub fn pid(&self) -> Option<u32> {
        self.guest.as_ref().map(|guest| guest.vm.pid())
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Records what the guest does to the state that is shown, in `file`, which is made anew.
    pub(super) fn record_here(&mut self, file: &Path) -> Result<(), SeatError> {
        let failed = |e: &dyn std::fmt::Display| {
            SeatError::Failed(format!("the recovery cannot be recorded: {e}"))
        };
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&e)),
            _ => {}
        }
        self.device.client().record_here(file).map_err(|e| failed(&e))
    }

    /// What is done to the state that is shown was recorded before, in `file`.
    pub(super) fn recorded_here(&mut self, file: &Path) -> Result<(), SeatError> {
        let failed = |e| SeatError::Failed(format!("the recovery cannot be shown again: {e}"));
        self.device.client().recorded_here(file).map_err(failed)
    }

    /// The disks in the guest, the main one first. Starts one where there is none.
    pub(super) fn disks(&mut self) -> Result<Vec<String>, SeatError> {
        Ok(self.guest()?.devices.clone())
    }

    fn guest(&mut self) -> Result<&mut Guest, SeatError> {
        check(&self.settings.stop).map_err(ends)?;
        if self.guest.is_none() {
            self.revive()?;
            let guest = self.start()?;
            self.started += 1;
            self.guest = Some(guest);
        }
        self.guest.as_mut().ok_or_else(|| SeatError::Failed("there is no guest".into()))
    }

    /// Starts the device again where it went (somebody killed it, or the memory was short). There
    /// must be no guest: it would wait for the old one.
    fn revive(&mut self) -> Result<(), SeatError> {
        let Err(why) = self.device.check() else { return Ok(()) };
        self.gone += 1;
        if self.gone > DEVICES {
            return Err(ends(why.into()));
        }
        log::warn!("{why}; another is started, and nothing is lost");
        let again = Device::start_states(&self.settings.tornblkd, &self.spec);
        self.device = again.map_err(|e| ends(e.into()))?;
        self.shown.forget();
        Ok(())
    }

    fn start(&self) -> Result<Guest, SeatError> {
        let settings = &self.settings;
        let vm = Vm::start(&VmConfig {
            image: &settings.image,
            qemu: settings.qemu.clone(),
            accel: settings.accel,
            memory_mib: MEMORY_MIB,
            cpus: CPUS,
            dir: &self.dir,
            use_saved: true,
            append: settings.append.clone(),
            gdb: None,
            stop: Some(Arc::clone(&settings.stop)),
        });
        // Nothing of a state was seen yet: it has nothing to do with them.
        let failed = |e: VmError| match e {
            VmError::Stopped => SeatError::Ends(ExploreError::Interrupted),
            e => SeatError::Failed(e.to_string()),
        };
        let mut vm = vm.map_err(failed)?;
        if let Some(virtiofsd) = &self.virtiofsd {
            vm.show_host_root(virtiofsd, &self.dir).map_err(failed)?;
        }
        let serials = disks::serials(SERIAL, &self.further);
        vm.attach_disk(&self.device.socket(), &serials[0], CPUS, self.spec.front_end)
            .map_err(failed)?;
        let devices = serials.iter().map(|serial| vm.find_disk(serial));
        let devices = devices.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let mut guest = Guest { vm, devices, states: 0 };
        guest.hurry()?;
        for device in guest.devices.clone() {
            // What the kernel read while it looked for partitions.
            match guest.call(Command::Blkflsbuf { device }, TIMEOUT)? {
                Outcome::Ok { .. } => {}
                Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                    return Err(SeatError::Failed(message));
                }
            }
        }
        Ok(guest)
    }

    /// Shows a state to the guest, which holds nothing of the last one: → the nonce.
    pub(super) fn switch(
        &mut self,
        name: &str,
        wanted: &dyn Wanted,
        differs: &Differs,
    ) -> Result<u64, SeatError> {
        // It must not read the disk (for partitions) while that changes.
        self.guest()?;
        let start = Instant::now();
        let switched = self.shown.switch(self.device.client(), name, wanted, differs);
        self.watch.switch += start.elapsed();
        match switched {
            Ok(shown) => Ok(shown.nonce),
            Err(SwitchError::State(error)) => Err(SeatError::Ends(error)),
            Err(SwitchError::Drifted) => {
                Err(SeatError::Failed("the device does not show what it was told to".into()))
            }
            Err(SwitchError::Device(error)) => {
                // Who tries again has another guest, and beneath it another device if this one went.
                Err(SeatError::Failed(match self.device.check() {
                    Err(gone) => gone.to_string(),
                    Ok(()) => error.to_string(),
                }))
            }
        }
    }

    /// Shows a state by its name: → the nonce.
    pub(super) fn use_state(&mut self, name: &str) -> Result<u64, SeatError> {
        self.guest()?;
        let start = Instant::now();
        let shown = self.device.client().use_state(name);
        self.watch.switch += start.elapsed();
        // Where it is no inner state, the content is another one now.
        if !name.contains(super::NESTED) {
            self.shown.forget();
        }
        shown.map(|shown| shown.nonce).map_err(|e| SeatError::Failed(e.to_string()))
    }

    /// Takes the guest through the state that is shown. `program`: the user's checker.
    pub(super) fn check(
        &mut self,
        nonce: u64,
        program: Option<Program>,
    ) -> Result<StateFound, SeatError> {
        let mut workload = self.workload.clone();
        let (mount, further) = (self.mount.clone(), self.further.clone());
        self.guest()?;
        let none = || SeatError::Failed("there is no guest".into());
        let guest = self.guest.as_mut().ok_or_else(none)?;
        guest.states += 1;
        if mount.is_none() {
            // The disk may have another name here.
            let targets = workload.files.iter_mut().filter(|t| t.path.starts_with("/dev/"));
            targets.for_each(|target| target.path.clone_from(&guest.devices[0]));
        }
        let target = match &program {
            Some(_) => USER_MOUNT.to_owned(),
            None => MOUNT.to_owned(),
        };
        let program = program.map(|mut program| {
            program.env.extend(disks::variables(&guest.devices, &further));
            program.disks = disks::mounted(&further);
            program
        });
        let others = further.iter().zip(&guest.devices[1..]);
        let others = others
            .map(|(disk, device)| FurtherCheck { device: device.clone(), mount: disk.mount() });
        let time = program.as_ref().map_or(Duration::ZERO, |p| Duration::from_millis(p.timeout_ms));
        let check = StateCheck {
            device: guest.devices[0].clone(),
            tail: format!("{nonce:08x}"),
            mount: mount.map(|(fstype, options)| MountPoint { target, fstype, options }),
            further: others.collect(),
            workload,
            program,
        };
        let start = Instant::now();
        let mut beneath =
            Beneath { device: &mut self.device, watch: Watch::of_recovery(&self.dir) };
        let outcome = guest.call_over(
            Command::CheckState { check: Box::new(check) },
            CHECK_TIMEOUT + time,
            &mut beneath,
        );
        let outcome = match (outcome, beneath.watch.complained()) {
            (Err(SeatError::Ends(ExploreError::Interrupted)), Some(title))
                if !self.settings.stop.load(Ordering::Relaxed) =>
            {
                Err(SeatError::Died(format!("did not come to an end: {title}")))
            }
            (outcome, _) => outcome,
        };
        let took = start.elapsed();
        let found: StateFound = match self.unless_gone(outcome)? {
            Outcome::Ok { value } => serde_json::from_value(value).map_err(|e| {
                SeatError::Failed(format!("what the guest found is not understood: {e}"))
            })?,
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                return Err(SeatError::Failed(message));
            }
        };
        let watch = &mut self.watch;
        watch.states += 1;
        watch.check += took;
        let (sum, one) = (&mut watch.steps, &found.micros);
        sum.nonce += one.nonce;
        sum.mount += one.mount;
        sum.read += one.read;
        sum.umount += one.umount;
        sum.flush += one.flush;
        Ok(found)
    }

    /// Whatever the guest made of a device that went says nothing about the state.
    fn unless_gone(&mut self, outcome: Result<Outcome, SeatError>) -> Result<Outcome, SeatError> {
        match (outcome, self.device.check()) {
            (_, Err(gone)) => Err(SeatError::Failed(gone.to_string())),
            (outcome, _) => outcome,
        }
    }

    /// Lets the guest do something else.
    pub(super) fn call(&mut self, command: Command) -> Result<Outcome, SeatError> {
        let outcome = self.guest()?.call(command, TIMEOUT);
        self.unless_gone(outcome)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.discard();
    }
}

impl Guest {
    /// Mounting and unmounting wait for much that costs nothing but time in a guest of one
    /// processor. None of it changes what is written or read.
    fn hurry(&mut self) -> Result<(), SeatError> {
        // Work queues come and go with each mount, each after a grace period.
        let mut settings = vec![("/sys/kernel/rcu_expedited".to_owned(), "1")];
        for device in &self.devices {
            let disk = device.trim_start_matches("/dev/");
            settings.extend([
                (format!("/sys/block/{disk}/queue/scheduler"), "none"),
                (format!("/sys/block/{disk}/queue/iostats"), "0"),
                (format!("/sys/block/{disk}/queue/wbt_lat_usec"), "0"),
            ]);
        }
        for (path, value) in settings {
            let set = vec![(path, value.to_owned())];
            // Not every kernel has each of them.
            if let Outcome::Failed { message, .. } = self.call(Command::Tune { set }, TIMEOUT)? {
                log::debug!("{message}");
            }
        }
        Ok(())
    }

    fn call(&mut self, command: Command, time: Duration) -> Result<Outcome, SeatError> {
        self.call_over(command, time, &mut NoHost)
    }

    fn call_over(
        &mut self,
        command: Command,
        time: Duration,
        host: &mut dyn Host,
    ) -> Result<Outcome, SeatError> {
        let called = self.vm.call(command, host, Instant::now() + time);
        called.map_err(|e| match e {
            VmError::Stopped => SeatError::Ends(ExploreError::Interrupted),
            VmError::Panic { line, .. } => SeatError::Died(format!("crashed the kernel: {line}")),
            VmError::Hung { .. } => SeatError::Died(format!("did not come to an end: {e}")),
            e => SeatError::Failed(e.to_string()),
        })
    }
}

/// Ends the wait for a guest whose device went, or whose kernel hangs: it would be for ever.
struct Beneath<'a> {
    device: &'a mut Device,
    watch: Watch,
}

impl Host for Beneath<'_> {
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String> {
        NoHost.marks(marks)
    }

    fn progress(&mut self, text: &str) {
        NoHost.progress(text);
    }

    fn stop(&mut self) -> bool {
        self.device.check().is_err() || self.watch.complained().is_some()
    }
}

fn ends(error: RunError) -> SeatError {
    SeatError::Ends(match error {
        RunError::Interrupted => ExploreError::Interrupted,
        error => ExploreError::Run(error),
    })
}

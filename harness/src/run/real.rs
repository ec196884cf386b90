//! The real lab: `tornblkd`, QEMU, recordings.

use super::{
    Arm, CallError, Debugger, Disk, Environment, Host, Lab, Machine, RunError, WireQuery, frozen,
    read_wire,
};
use crate::device::{Device, DeviceError, DiskSpec};
use crate::explore::guest::GuestSettings;
use crate::explore::{ExploreError, GuestNeeds, Guests, Means, Opened, Subject, Units};
use crate::oracle::{Finding, Wire};
use crate::vm::{self, Accel, BOOT_TIMEOUT, FrontEnd, Qemu, Vm, VmConfig, VmError};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Command, MarkText, Outcome};
use tornblk_agent::race::{
    DeviceAnswer, DeviceAsk, DeviceOp, DeviceStatus, RaceFinding, StallPoint,
};
use tornblk_image::{Image, Lock};
use tornblk_proto::{
    Client, ClientError, Counters, Crashed, Match, NamedWrites, OpKind, Pending, Range,
    RefusalKind, StallWhen,
};

/// For what was armed before to be forgotten.
const DISARM: Duration = Duration::from_secs(5);

/// For a guest: enough for every suite.
const MEMORY_MIB: u32 = 512;

#[derive(Debug)]
pub struct RealLab {
    pub tornblkd: PathBuf,
    pub image: Image,
    pub qemu: Qemu,
    pub accel: Accel,
    pub cpus: u16,
    /// Parameters for the guest's kernel.
    pub append: Option<String>,
    /// One guest at a time, which may take as long as its user wants.
    pub debugger: Option<Debugger>,
    /// Ctrl-C: who waits for a guest stops waiting.
    stop: Option<Arc<AtomicBool>>,
    spare: Option<Spare>,
}

/// A guest that is started while another one works.
#[derive(Debug)]
struct Spare {
    dir: PathBuf,
    starting: JoinHandle<Result<Vm, VmError>>,
}

impl RealLab {
    pub fn new(tornblkd: PathBuf, image: Image, qemu: Qemu, accel: Accel, cpus: u16) -> RealLab {
        RealLab {
            tornblkd,
            image,
            qemu,
            accel,
            cpus,
            append: None,
            debugger: None,
            stop: None,
            spare: None,
        }
    }

    /// Guests are waited for until this is set.
    pub fn until(mut self, stop: Arc<AtomicBool>) -> RealLab {
        self.stop = Some(stop);
        self
    }

    /// Makes what every guest starts from, where it is missing: a boot that no cut shall pay for.
    pub fn prepare(&self, progress: &mut dyn FnMut(&str)) -> Result<(), RunError> {
        // Nobody's console: the folder is not used.
        match Vm::prepare(&self.config(&self.image.dir), progress) {
            Err(VmError::Stopped) => Err(RunError::Interrupted),
            // One that does not boot now never will: this was its best chance.
            Err(error @ (VmError::Panic { .. } | VmError::BootTimeout { .. })) => {
                Err(boot_error(error))
            }
            Err(error) => {
                log::warn!("guests will be booted, because no state can be saved: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn config<'a>(&'a self, dir: &'a Path) -> VmConfig<'a> {
        VmConfig {
            image: &self.image,
            qemu: self.qemu.clone(),
            accel: self.accel,
            memory_mib: MEMORY_MIB,
            cpus: self.cpus,
            dir,
            use_saved: true,
            append: self.append.clone(),
            gdb: None,
            stop: self.stop.clone(),
        }
    }

    /// A booted guest with a console of its own for a person; its kernel's goes to `dir`.
    pub(super) fn boot_with_console(&self, dir: &Path) -> Result<(Vm, UnixStream), RunError> {
        let gdb = self.debugger.as_ref().and_then(|debugger| debugger.of(dir));
        let config = VmConfig { gdb, ..self.config(dir) };
        Vm::boot_with_console(&config, BOOT_TIMEOUT).map_err(boot_error)
    }

    /// A guest whose console goes to `dir`.
    pub(super) fn vm(&self, dir: &Path) -> Result<Vm, RunError> {
        self.starter(dir)().map_err(boot_error)
    }

    /// Starts a guest whose console goes to `dir`.
    fn starter(&self, dir: &Path) -> impl FnOnce() -> Result<Vm, VmError> + Send + 'static {
        let (image, qemu, dir) = (self.image.clone(), self.qemu.clone(), dir.to_owned());
        let (accel, cpus, stop) = (self.accel, self.cpus, self.stop.clone());
        let append = self.append.clone();
        let gdb = self.debugger.as_ref().and_then(|debugger| debugger.of(&dir));
        move || {
            Vm::start(&VmConfig {
                image: &image,
                qemu,
                accel,
                memory_mib: MEMORY_MIB,
                cpus,
                dir: &dir,
                use_saved: true,
                append,
                gdb,
                stop,
            })
        }
    }

    /// The guest that was started for this folder. One for another folder is ended.
    fn take_spare(&mut self, dir: &Path) -> Option<Result<Vm, VmError>> {
        let spare = self.spare.take()?;
        let vm = spare.starting.join().ok()?;
        (spare.dir == dir).then_some(vm)
    }
}

impl Drop for RealLab {
    fn drop(&mut self) {
        // It must be gone before its folder is.
        drop(self.take_spare(Path::new("")));
    }
}

impl Lab for RealLab {
    fn disk(&mut self, spec: &DiskSpec) -> Result<Box<dyn Disk>, RunError> {
        let device = Device::start(&self.tornblkd, spec)?;
        Ok(Box::new(RealDisk { armed: None, crashed: None, device }))
    }

    fn machine(&mut self, dir: &Path) -> Result<Box<dyn Machine>, RunError> {
        let vm = match self.take_spare(dir) {
            // One that failed may have lacked the time: the machine was busy with another.
            Some(Ok(vm)) => vm,
            _ => self.starter(dir)().map_err(boot_error)?,
        };
        Ok(Box::new(RealMachine(vm)))
    }

    fn expect(&mut self, dir: &Path) {
        drop(self.take_spare(Path::new("")));
        if self.debugger.is_some() {
            return;
        }
        let starting = std::thread::Builder::new().name("spare".into()).spawn(self.starter(dir));
        // Without the thread it is started when it is asked for.
        self.spare = starting.ok().map(|starting| Spare { dir: dir.to_owned(), starting });
    }

    fn means<'a>(
        &self,
        opened: &'a Opened,
        subject: &Subject,
        needs: &GuestNeeds,
    ) -> Result<Box<dyn Means + 'a>, ExploreError> {
        if subject.is_judged_in_place() {
            return Ok(Box::new(Units::of(opened, subject)?));
        }
        let stop = self.stop.clone().unwrap_or_else(|| Arc::clone(&needs.stop));
        let mut settings = GuestSettings::new(self, needs.dir.clone(), stop);
        (settings.fsck_every, settings.nested) = (needs.fsck_every, needs.nested);
        settings.seed = needs.seed;
        Ok(Box::new(Guests::of(opened, subject, settings)?))
    }

    fn frozen(
        &mut self,
        dir: &Path,
        guests: &Path,
        only_one: bool,
    ) -> Result<Vec<Finding>, RunError> {
        let stop = self.stop.clone().unwrap_or_default();
        let settings = GuestSettings::new(self, guests.to_owned(), stop);
        frozen::frozen(dir, &settings, only_one)
    }

    fn forget(&mut self) {
        drop(self.take_spare(Path::new("")));
    }

    fn cannot_attach(&self, front_end: FrontEnd) -> Option<String> {
        let missing = front_end == FrontEnd::BlkFull && !self.qemu.has_test_device();
        missing.then(|| VmError::NoTestDevice.to_string())
    }

    fn guest_module(&self) -> Result<String, String> {
        self.image.guest_module().map(str::to_owned).map_err(str::to_owned)
    }

    fn image_lock(&self) -> Option<Lock> {
        Some(self.image.lock.clone())
    }

    fn release(&self) -> String {
        self.image.release.clone()
    }

    fn environment(&self) -> Environment {
        let (major, minor, micro) = self.qemu.version();
        Environment {
            host_kernel: Environment::host_kernel(),
            accelerator: self.accel.to_string(),
            qemu: format!("{major}.{minor}.{micro}"),
            kernel: self.image.release.clone(),
            ..Environment::default()
        }
    }

    fn image(&self) -> Option<String> {
        Some(self.image.key.clone())
    }

    fn wire(&mut self, recording: &Path, query: &WireQuery) -> Result<Wire, RunError> {
        read_wire(recording, query)
    }
}

struct RealDisk {
    /// An armed cut belongs to a connection of its own: it is disarmed by closing that.
    armed: Option<(Pending<Crashed>, Client)>,
    /// The power was cut before anybody asked.
    crashed: Option<Crashed>,
    device: Device,
}

impl RealDisk {
    fn try_arm(&mut self, cut: &Arm) -> Result<(), ClientError> {
        let client = Client::connect(self.device.control())?;
        let pending = client.crash_start(
            cut.at.clone(),
            cut.state.as_deref(),
            Some(cut.seed),
            Some(&cut.profile),
        )?;
        // Answered after the crash was armed or refused: commands are taken in order.
        client.status()?;
        match pending.wait_for(Duration::ZERO)? {
            Some(crashed) => self.crashed = Some(crashed),
            None => self.armed = Some((pending, client)),
        }
        Ok(())
    }

    /// A broken connection mostly means that the process is gone.
    fn explain(&mut self, error: ClientError) -> RunError {
        if matches!(error, ClientError::Gone | ClientError::NoDevice(_)) {
            // It closes its sockets a moment before it is gone.
            for _ in 0..100 {
                if let Err(better) = self.device.check() {
                    return better.into();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        DeviceError::Control(error).into()
    }
}

impl Disk for RealDisk {
    fn socket(&self) -> PathBuf {
        self.device.socket()
    }

    fn seen(&mut self) -> Vec<String> {
        self.device.said_of_writes()
    }

    fn named(&mut self) -> Result<NamedWrites, RunError> {
        match self.device.client().status() {
            Ok(status) => Ok(status.named),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn mark(&mut self, line: &str) -> Result<Option<u64>, RunError> {
        match self.device.client().mark(line) {
            Ok(marked) => Ok(Some(marked.event)),
            Err(ClientError::Refused(r)) if r.kind == RefusalKind::Busy => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn ask(&mut self, what: DeviceAsk) -> DeviceAnswer {
        asked(self.device.client(), what)
            .unwrap_or_else(|error| DeviceAnswer::Refused { message: error.to_string() })
    }

    fn fault(&mut self, spec: &str) -> Result<(), RunError> {
        match self.device.client().fault(spec) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn arm(&mut self, cut: &Arm) -> Result<(), RunError> {
        let start = Instant::now();
        loop {
            match self.try_arm(cut) {
                Ok(()) => return Ok(()),
                // What was armed before goes a moment after its connection.
                Err(ClientError::Refused(r))
                    if r.kind == RefusalKind::Busy && start.elapsed() < DISARM =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    fn crashed(&mut self, wait: Duration) -> Result<Option<Crashed>, RunError> {
        if let Some(crashed) = self.crashed.take() {
            return Ok(Some(crashed));
        }
        let Some((pending, _)) = &self.armed else { return Ok(None) };
        let answer = pending.wait_for(wait);
        match answer {
            Ok(None) => Ok(None),
            Ok(Some(crashed)) => {
                self.armed = None;
                Ok(Some(crashed))
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    fn disarm(&mut self) -> Result<Option<Crashed>, RunError> {
        if let Some(crashed) = self.crashed.take() {
            return Ok(Some(crashed));
        }
        Ok(self.armed.take().and_then(|(pending, client)| hang_up(&pending, &client)))
    }

    fn stop(self: Box<Self>) -> Result<(), RunError> {
        drop(self.armed);
        Ok(self.device.stop()?)
    }
}

/// What a race wants, in the device's own words.
fn asked(client: &Client, what: DeviceAsk) -> Result<DeviceAnswer, ClientError> {
    Ok(match what {
        DeviceAsk::Stall { op, range, nth, when } => {
            let op = op.map(|op| match op {
                DeviceOp::Read => OpKind::Read,
                DeviceOp::Write => OpKind::Write,
                DeviceOp::Flush => OpKind::Flush,
                DeviceOp::Discard => OpKind::Discard,
                DeviceOp::WriteZeroes => OpKind::WriteZeroes,
            });
            let range = range.map(|(offset, len)| Range { offset, len });
            let when = match when {
                StallPoint::BeforeIo => StallWhen::BeforeIo,
                StallPoint::BeforeCompletion => StallWhen::BeforeCompletion,
            };
            let token = client.stall(Match { op, range, nth, eligible: false }, when)?;
            DeviceAnswer::Token { token }
        }
        DeviceAsk::Release { token } => DeviceAnswer::Released { requests: client.release(token)? },
        DeviceAsk::Status {} => {
            let status = client.status()?;
            let Counters { reads, writes, flushes, discards, write_zeroes, .. } = status.counters;
            DeviceAnswer::Status(DeviceStatus {
                held: status.stalls.iter().map(|stall| (stall.token, stall.held)).collect(),
                in_flight: status.in_flight,
                reads,
                writes,
                flushes,
                discards,
                write_zeroes,
            })
        }
    })
}

/// Ends the connection of an armed crash. The device answers it first: that the power was cut, or
/// that it was disarmed.
fn hang_up(pending: &Pending<Crashed>, client: &Client) -> Option<Crashed> {
    client.hang_up();
    pending.wait_for(DISARM).ok().flatten()
}

struct RealMachine(Vm);

impl Machine for RealMachine {
    fn attach(
        &mut self,
        socket: &Path,
        serial: &str,
        queues: u16,
        front_end: FrontEnd,
    ) -> Result<(), RunError> {
        self.0.attach_disk(socket, serial, queues, front_end).map_err(vm_error)?;
        Ok(())
    }

    fn call(
        &mut self,
        command: Command,
        host: &mut dyn Host,
        deadline: Duration,
    ) -> Result<Outcome, CallError> {
        let deadline = Instant::now() + deadline;
        self.0.call(command, &mut Adapter(host), deadline).map_err(|e| match e {
            // The host knows why.
            VmError::Stopped | VmError::Marks(_) => CallError::Stopped,
            other => CallError::Failed(vm_error(other)),
        })
    }

    fn kill(self: Box<Self>) {
        self.0.kill();
    }
}

struct Adapter<'a>(&'a mut dyn Host);

impl vm::Host for Adapter<'_> {
    fn marks(&mut self, marks: &[MarkText]) -> Result<(), String> {
        self.0.marks(marks)
    }

    fn progress(&mut self, text: &str) {
        self.0.progress(text);
    }

    fn ask(&mut self, what: DeviceAsk) -> DeviceAnswer {
        self.0.ask(what)
    }

    fn found(&mut self, finding: RaceFinding) {
        self.0.found(finding);
    }

    fn stop(&mut self) -> bool {
        self.0.stop()
    }
}

/// Of a guest that was not there yet.
fn boot_error(error: VmError) -> RunError {
    match error {
        VmError::Panic { .. } | VmError::BootTimeout { .. } => RunError::Boot(error.to_string()),
        other => vm_error(other),
    }
}

fn vm_error(error: VmError) -> RunError {
    match error {
        VmError::Panic { ref line, .. } => {
            log::error!("{error}");
            RunError::Panic(line.clone())
        }
        VmError::Stopped => RunError::Interrupted,
        VmError::Hung { .. } => RunError::Hung(error.to_string()),
        other => RunError::Guest(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use tornblk_proto::Trigger;

    #[test]
    fn a_crash_that_came_before_it_could_be_disarmed_is_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let device = std::thread::spawn(move || {
            // It answers when the client has gone, as a device does whose power was just cut.
            let mut asked = Vec::new();
            theirs.read_to_end(&mut asked).unwrap();
            let crashed = serde_json::json!({
                "event": 7, "state": "lb512/p7:all", "faults": [], "volatile_writes": 0
            });
            let answer = tornblk_proto::Answer { id: Some(1), ok: Some(crashed), error: None };
            tornblk_proto::codec::write(&mut theirs, &answer).unwrap();
        });
        let client = Client::over(ours).unwrap();
        let pending = client.crash_start(Trigger::Now, None, None, None).unwrap();
        assert_eq!(hang_up(&pending, &client).unwrap().event, 7);
        device.join().unwrap();
    }

    #[test]
    fn marks_that_were_not_recorded_are_not_acknowledged() {
        struct Refuses;
        impl Host for Refuses {
            fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
                Err("the recording is full".into())
            }
            fn progress(&mut self, _: &str) {}
            fn stop(&mut self) -> bool {
                false
            }
        }
        let marks = vm::Host::marks(&mut Adapter(&mut Refuses), &[]);
        assert_eq!(marks.unwrap_err(), "the recording is full");
    }
}

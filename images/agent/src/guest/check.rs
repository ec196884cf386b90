//! What a disk holds, or several that share a state, found out in one go: mounted, read back, unmounted,
//! let go.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::workload::readback::readback;
use super::{Error, Result, disk, fs, log, program};
use crate::channel::{MountPoint, StateCheck, StateFound};

/// What was read of it may be let go a moment later.
const TO_LET_GO: Duration = Duration::from_secs(5);

/// The kernel's messages, read up to where the last check ended.
static MESSAGES: Mutex<Option<File>> = Mutex::new(None);

/// Carries out a check. What is wrong with the file system is in the answer; an error is for what
/// was not checked at all.
pub fn check(check: &StateCheck) -> Result<StateFound> {
    let mut found = StateFound::default();
    let mut clock = Clock { last: Instant::now() };
    let disks: Vec<(&String, Option<&MountPoint>)> =
        std::iter::once((&check.device, check.mount.as_ref()))
            .chain(check.further.iter().map(|disk| (&disk.device, disk.mount.as_ref())))
            .collect();
    messages()?;
    for (device, _) in &disks {
        let nonce = disk::read_nonce(device)?;
        if nonce["tail"].as_str() != Some(&check.tail) {
            return Err(Error::Refused(format!(
                "{device} does not show the state that is to be checked: its serial number is {}, \
                 and should end in {}",
                nonce["serial"], check.tail
            )));
        }
    }
    found.micros.nonce = clock.lap();
    let mut mounted: Vec<&MountPoint> = Vec::new();
    for (device, at) in &disks {
        let Some(at) = at else { continue };
        match fs::mount(device, &at.target, &at.fstype, &at.options) {
            Ok(_) => mounted.push(at),
            Err(e) => {
                found.mount = Some(text(e));
                break;
            }
        }
    }
    found.micros.mount = clock.lap();
    if found.mount.is_none() {
        // Without targets the recovery is all that there is to try.
        if !check.workload.files.is_empty() {
            match readback(&check.workload) {
                Ok(all) => found.readback = Some(all.shorten()),
                Err(e) => found.read = Some(text(e)),
            }
        }
        if let Some(program) = &check.program {
            match program::run(program, None) {
                Ok(ran) => found.ran = Some(ran),
                Err(Error::TimedOut(how)) => {
                    found.stuck = Some(how);
                    found.messages = messages()?;
                    return Ok(found);
                }
                // Not the state's fault.
                Err(e) => {
                    for at in mounted.iter().rev() {
                        let _ = fs::umount(&at.target);
                    }
                    return Err(e);
                }
            }
        }
        found.micros.read = clock.lap();
    }
    // All of them, whatever becomes of one.
    let left = mounted.iter().rev().filter_map(|at| fs::umount_soon(&at.target, TO_LET_GO).err());
    found.umount = left.map(text).collect::<Vec<_>>().pop();
    found.micros.umount = clock.lap();
    let held = disks.iter().filter_map(|(device, _)| disk::flush_buffers(device).err());
    found.held = held.map(text).collect::<Vec<_>>().pop();
    found.micros.flush = clock.lap();
    found.messages = messages()?;
    Ok(found)
}

fn text(error: Error) -> String {
    error.to_string()
}

/// What the kernel said since this was asked last (the first time: since the boot).
fn messages() -> Result<Vec<String>> {
    let mut known = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let kmsg = match &mut *known {
        Some(kmsg) => kmsg,
        none => {
            let opened =
                File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
            none.insert(opened.map_err(Error::system("cannot open /dev/kmsg"))?)
        }
    };
    let mut text = String::new();
    let mut record = vec![0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => break,
            Ok(n) => log::push_record(&mut text, &String::from_utf8_lossy(&record[..n])),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => break,
                // Overwritten while nobody read: something else was loud.
                Some(libc::EPIPE | libc::EINTR) => {}
                _ => return Err(Error::system("cannot read /dev/kmsg")(e)),
            },
        }
    }
    Ok(text.lines().map(str::to_owned).collect())
}

struct Clock {
    last: Instant,
}

impl Clock {
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let took = now.duration_since(self.last).as_micros() as u64;
        self.last = now;
        took
    }
}

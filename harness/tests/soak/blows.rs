//! What happens to the disk while fio runs.

use super::rig::{Device, Dice, Guest, Result, wait_until};
use std::time::Duration;
use tornblk::vm::FrontEnd;
use tornblk_proto::{Match, OpKind, StallWhen};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// At any moment.
    Kill,
    /// While requests are in flight.
    KillInFlight,
    /// The first request that comes is held, later ones are completed; then it is killed.
    KillStalled(StallWhen),
    /// The device is stopped first, so that requests wait in the rings.
    KillFrozen,
    /// Requests are held for a while.
    Stall(StallWhen),
    Freeze,
    /// The guest switches the write cache off, and on again.
    CacheSwitch,
    Discard,
}

/// Those that leave the process alive.
pub(crate) const MILD: [Blow; 6] = [
    Blow::Stall(StallWhen::BeforeIo),
    Blow::Stall(StallWhen::BeforeCompletion),
    Blow::Stall(StallWhen::BeforeIo),
    Blow::Freeze,
    Blow::CacheSwitch,
    Blow::Discard,
];

pub(crate) const HARD: [Blow; 6] = [
    Blow::Kill,
    Blow::KillInFlight,
    Blow::KillInFlight,
    Blow::KillStalled(StallWhen::BeforeIo),
    Blow::KillStalled(StallWhen::BeforeCompletion),
    Blow::KillFrozen,
];

/// A part of the disk that fio leaves alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spare {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What came of a blow: counted under these names.
pub(crate) type Told = Vec<(&'static str, u64)>;

/// Found nothing to strike.
pub(crate) const NOTHING: &str = "blows that found nothing";

impl Blow {
    /// Gives what is to be counted.
    pub(crate) fn strike(
        self,
        device: &mut Device,
        guest: &mut Guest,
        dice: &mut Dice,
        fs: bool,
        spare: Spare,
    ) -> Result<Told> {
        match self {
            Blow::Kill => {
                device.kill()?;
                again(device, dice)?;
                Ok(vec![("kills", 1)])
            }
            Blow::KillInFlight => {
                // Not every moment of fio has one: then any moment will do.
                let end = std::time::Instant::now() + Duration::from_millis(1500);
                while device.status()?.in_flight < 2 && std::time::Instant::now() < end {}
                device.kill()?;
                again(device, dice)?;
                Ok(vec![("kills", 1)])
            }
            Blow::KillStalled(when) => {
                if hold(device, which(dice, Some(1)), when)?.is_none() {
                    return Ok(vec![(NOTHING, 1)]);
                }
                // The others go on, and overtake it.
                std::thread::sleep(dice.millis(50, 600));
                device.kill()?;
                again(device, dice)?;
                Ok(vec![("kills", 1), ("of them stalled", 1)])
            }
            Blow::KillFrozen => {
                device.freeze()?;
                std::thread::sleep(dice.millis(20, 300));
                device.kill()?;
                again(device, dice)?;
                Ok(vec![("kills", 1)])
            }
            Blow::Stall(when) => {
                let nth = dice.one(&[None, Some(1), Some(3)]);
                let Some(token) = hold(device, which(dice, nth), when)? else {
                    return Ok(vec![(NOTHING, 1)]);
                };
                std::thread::sleep(dice.millis(100, 1500));
                device.release(token)?;
                Ok(vec![("stalls", 1)])
            }
            Blow::Freeze => {
                device.freeze()?;
                std::thread::sleep(dice.millis(50, 1500));
                device.thaw()?;
                Ok(vec![("freezes", 1)])
            }
            Blow::CacheSwitch if device.front_end() == FrontEnd::Scsi => Ok(Vec::new()),
            Blow::CacheSwitch => {
                let file = format!("/sys/block/{}/cache_type", guest.name());
                for mode in ["write through", "write back"] {
                    let seen = guest.sh(&format!("echo {mode} >{file}; cat {file}"))?;
                    if seen.trim() != mode {
                        return Err(format!("the cache is {seen} after it was set to {mode}"));
                    }
                    std::thread::sleep(dice.millis(50, 500));
                }
                Ok(vec![("cache switches", 2)])
            }
            Blow::Discard if fs => {
                guest.sh("busybox fstrim /mnt")?;
                Ok(vec![("discards", 1)])
            }
            Blow::Discard => {
                discard(guest, dice, spare)?;
                Ok(vec![("discards", 1)])
            }
        }
    }
}

/// Starts it again after a while, and waits until QEMU is there.
fn again(device: &mut Device, dice: &mut Dice) -> Result<()> {
    device.verify()?;
    std::thread::sleep(dice.millis(0, 300));
    device.start()?;
    device.connected()
}

fn which(dice: &mut Dice, nth: Option<u64>) -> Match {
    let op = dice.one(&[None, Some(OpKind::Write), Some(OpKind::Write), Some(OpKind::Read)]);
    Match { op, nth, ..Match::default() }
}

/// Holds requests: the token. fio may have none of that kind for long; then any will do, and `None`
/// only where it has none at all.
fn hold(device: &Device, which: Match, when: StallWhen) -> Result<Option<u64>> {
    let any = Match { nth: Some(1), ..Match::default() };
    for (which, seconds) in [(which, 4), (any, 40)] {
        let token = device.stall(which, when)?;
        let held = wait_until("a request to hold", Duration::from_secs(seconds), || {
            Ok((device.held()? > 0).then_some(()))
        });
        if held.is_ok() {
            return Ok(Some(token));
        }
        // Or the device does not answer any more, which is no matter of patience.
        device.release(token)?;
    }
    Ok(None)
}

/// What was there reads as zeroes, and what lies beside it is as it was.
fn discard(guest: &mut Guest, dice: &mut Dice, spare: Spare) -> Result<()> {
    let device = guest.path().to_owned();
    let mib = spare.len >> 20;
    let at = (spare.offset >> 20) + dice.below(mib - 3);
    guest.sh(&format!(
        "dd if=/dev/urandom of=/tmp/noise bs=1M count=3 2>/dev/null
         dd if=/tmp/noise of={device} bs=1M seek={at} count=3 oflag=direct 2>/dev/null
         blkdiscard -o {}M -l 1M {device}
         dd if=/dev/zero of=/tmp/noise bs=1M seek=1 count=1 conv=notrunc 2>/dev/null
         dd if={device} bs=1M skip={at} count=3 iflag=direct 2>/dev/null | cmp - /tmp/noise",
        at + 1
    ))?;
    Ok(())
}

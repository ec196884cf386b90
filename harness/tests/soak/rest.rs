//! What happens to the disk while nothing is in flight. Its content is known before, and must be
//! the same after.

use super::cycle::{Seat, Soak};
use super::rig::{Part, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Unplugged and plugged in again.
    Replug,
    /// The guest is saved and goes on in another QEMU; the disk is unplugged meanwhile.
    Snapshot,
    /// QEMU dies, and another one connects to the same device.
    QemuKilled,
}

pub(crate) const RESTS: [Rest; 3] = [Rest::Replug, Rest::Snapshot, Rest::QemuKilled];

impl Soak {
    /// Does it; what is plugged in after it is the same disk.
    pub(crate) fn rest(&mut self, seat: &Seat, what: Rest, part: Part) -> Result<()> {
        let before = self.same(seat, part)?;
        match what {
            Rest::Replug => {
                self.unplug(seat)?;
                self.plug(seat)?;
                self.tally.count(seat.name, "hot-plugs", 1);
            }
            Rest::Snapshot => {
                self.unplug(seat)?;
                let dir = self.next_guest();
                let guest = self.take_guest()?.save_and_restore(&self.ground, &dir)?;
                self.set_guest(guest);
                self.plug(seat)?;
                self.tally.count(seat.name, "VM snapshots", 1);
                self.tally.count(seat.name, "hot-plugs", 1);
            }
            Rest::QemuKilled => {
                self.guest()?.no_complaints()?;
                self.new_qemu(Some(&seat.device))?;
                self.tally.count(seat.name, "QEMU kills", 1);
            }
        }
        let after = self.guest()?.sha256(part)?;
        if before == after {
            Ok(())
        } else {
            Err(format!("it changed the disk: {part:?} was {before}, is {after}"))
        }
    }
}

//! Disks that come and go while the guest runs: vhost-user-blk on a PCIe root port.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tornblk_agent::channel::{Command, Outcome};

use super::qmp::{Plain, from};
use super::{NoHost, QMP_TIMEOUT, Qemu, Vm, VmError};

/// How a disk is attached: which device the guest sees, and which of QEMU's devices stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontEnd {
    /// virtio-blk, as any QEMU has it: of the device's configuration space, the guest gets what that
    /// QEMU knows.
    #[default]
    Blk,
    /// virtio-blk through QEMU's device for testing, which lets every feature bit and the whole
    /// configuration space through. From QEMU 10.2 on.
    BlkFull,
    /// A virtio-scsi host adapter with one disk.
    Scsi,
}

impl FrontEnd {
    /// As in suites and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FrontEnd::Blk => "blk",
            FrontEnd::BlkFull => "blk-full",
            FrontEnd::Scsi => "scsi",
        }
    }

    /// As `tornblkd --front-end` calls it.
    pub fn of_device(self) -> &'static str {
        match self {
            FrontEnd::Blk | FrontEnd::BlkFull => "blk",
            FrontEnd::Scsi => "scsi",
        }
    }

    /// Modules of the guest's kernel beside those that it loads at its start.
    pub(super) fn modules(self) -> &'static [&'static str] {
        match self {
            FrontEnd::Blk | FrontEnd::BlkFull => &[],
            FrontEnd::Scsi => &["virtio_scsi", "sd_mod"],
        }
    }

    /// What QEMU plugs in, but for `id`, `bus` and `chardev`.
    fn driver(self, queues: u16) -> Value {
        match self {
            FrontEnd::Blk => json!({ "driver": "vhost-user-blk-pci", "num-queues": queues }),
            FrontEnd::BlkFull => json!({
                "driver": TEST_DEVICE,
                // VIRTIO 1.2, 5: a block device.
                "virtio-id": 2,
                "num_vqs": queues,
                "vq_size": QUEUE_SIZE,
                "config_size": CONFIG_BYTES,
            }),
            FrontEnd::Scsi => json!({ "driver": "vhost-user-scsi-pci", "num_queues": queues }),
        }
    }
}

impl fmt::Display for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const TEST_DEVICE: &str = "vhost-user-test-device-pci";
/// Of a queue of `tornblkd`, unless it is told otherwise.
const QUEUE_SIZE: u32 = 256;
/// `struct virtio_blk_config` and the four atomic-write limits behind it: VIRTIO-ATOMIC.md.
const CONFIG_BYTES: u32 = 112;

/// Root ports, each for one disk.
pub(super) const SLOTS: usize = 4;

/// How long a guest may take to see a disk, or to let it go.
const PLUG_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn slot_name(slot: usize) -> String {
    format!("slot{slot}")
}

/// How QEMU is told to connect again: the option of its socket, and what it is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reconnect {
    option: &'static str,
    each: u64,
}

impl Reconnect {
    /// Seconds, until 9.2 brought milliseconds (QEMU's "Deprecated features": `reconnect`).
    pub(super) fn of(qemu: &Qemu) -> Reconnect {
        if qemu.version() < (9, 2, 0) {
            Reconnect { option: "reconnect", each: 1 }
        } else {
            Reconnect { option: "reconnect-ms", each: 1000 }
        }
    }
}

/// Which slots are taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: [bool; SLOTS],
    /// Makes names that were never used before.
    count: u32,
}

/// An attached disk.
#[derive(Debug)]
pub struct Disk {
    slot: usize,
    id: String,
    pub serial: String,
    /// In the guest: `/dev/vda`.
    pub device: String,
    /// All that the agent tells of it, the queue limits of sysfs among it.
    pub info: Value,
}

impl Vm {
    /// Plugs in the disk that the back-end at `socket` serves, and waits until the guest has it
    /// under the serial number that the back-end gives it. `queues`: as many as the guest has
    /// CPUs, usually.
    pub fn attach_disk(
        &mut self,
        socket: &Path,
        serial: &str,
        queues: u16,
        front_end: FrontEnd,
    ) -> Result<Disk, VmError> {
        self.attach(socket, serial, queues, front_end, None)
    }

    /// As [`Vm::attach_disk`], for a back-end that may die and be started again at the same socket:
    /// QEMU tries to connect once a second for as long as the disk is plugged in. The guest's
    /// requests wait meanwhile.
    pub fn attach_disk_for_good(
        &mut self,
        socket: &Path,
        serial: &str,
        queues: u16,
        front_end: FrontEnd,
    ) -> Result<Disk, VmError> {
        self.attach(socket, serial, queues, front_end, Some(self.reconnect))
    }

    fn attach(
        &mut self,
        socket: &Path,
        serial: &str,
        queues: u16,
        front_end: FrontEnd,
        reconnect: Option<Reconnect>,
    ) -> Result<Disk, VmError> {
        if front_end == FrontEnd::BlkFull && !self.has_test_device {
            return Err(VmError::NoTestDevice);
        }
        self.load_for(front_end)?;
        let slot = self.free_slot()?;
        self.slots.count += 1;
        let id = format!("disk{}", self.slots.count);
        let chardev = format!("{id}-socket");
        let failed = |e: VmError| match e {
            VmError::Qmp { message, .. } => {
                VmError::Attach { serial: serial.to_owned(), why: message }
            }
            other => other,
        };
        self.connect(&chardev, socket, reconnect).map_err(failed)?;
        // Nobody tells the driver that there are fewer than the device offers: it takes one a CPU.
        let queues = if front_end == FrontEnd::BlkFull { queues.max(self.cpus) } else { queues };
        let mut plug = front_end.driver(queues);
        plug["id"] = id.as_str().into();
        plug["bus"] = slot_name(slot).into();
        plug["chardev"] = chardev.as_str().into();
        let plug: qapi::qmp::device_add = from(plug)?;
        if let Err(e) = self.qmp_execute(&plug) {
            let remove = qapi::qmp::chardev_remove { id: chardev };
            let _ = self.qmp.execute(&remove, QMP_TIMEOUT);
            return Err(failed(e));
        }
        self.slots.taken[slot] = true;
        let timeout_ms = PLUG_TIMEOUT.as_millis() as u64;
        let wait = Command::WaitDisk { serial: serial.to_owned(), timeout_ms };
        let deadline = Instant::now() + PLUG_TIMEOUT + Duration::from_secs(10);
        let why = match self.call(wait, &mut NoHost, deadline)? {
            Outcome::Ok { value } => {
                if let Some(device) = value.get("device").and_then(Value::as_str) {
                    let (device, serial) = (device.to_owned(), serial.to_owned());
                    return Ok(Disk { slot, id, serial, device, info: value });
                }
                "the agent does not say where it is".to_owned()
            }
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => message,
        };
        Err(VmError::Attach { serial: serial.to_owned(), why })
    }

    /// Connects to a back-end, under this name.
    pub(super) fn connect(
        &mut self,
        chardev: &str,
        socket: &Path,
        reconnect: Option<Reconnect>,
    ) -> Result<(), VmError> {
        let mut data = json!({
            "addr": { "type": "unix", "data": { "path": socket.to_string_lossy() } },
            "server": false,
        });
        if let Some(Reconnect { option, each }) = reconnect {
            data[option] = each.into();
        }
        let add = json!({ "id": chardev, "backend": { "type": "socket", "data": data } });
        // The crate's type has no `reconnect-ms`, and would drop it.
        self.qmp_execute(&Plain::<qapi::qmp::chardev_add>::new(add))?;
        Ok(())
    }

    fn free_slot(&self) -> Result<usize, VmError> {
        self.slots.taken.iter().position(|taken| !taken).ok_or(VmError::NoSlot(SLOTS))
    }

    /// A slot for what is no disk, and stays: its name.
    pub(super) fn take_slot(&mut self) -> Result<String, VmError> {
        let slot = self.free_slot()?;
        self.slots.taken[slot] = true;
        Ok(slot_name(slot))
    }

    /// What the front-end's driver needs: a guest that was booted, not restored, has not loaded it.
    fn load_for(&mut self, front_end: FrontEnd) -> Result<(), VmError> {
        let names = self.modules_for(front_end);
        if names.is_empty() {
            return Ok(());
        }
        let mut argv = vec!["/usr/sbin/modprobe".to_owned(), "-a".to_owned()];
        argv.extend(names);
        let load = Command::Exec { argv, timeout_ms: PLUG_TIMEOUT.as_millis() as u64 };
        match self.call(load, &mut NoHost, Instant::now() + PLUG_TIMEOUT)? {
            Outcome::Ok { value } if value["status"] == 0 => Ok(()),
            other => Err(VmError::Attach {
                serial: front_end.to_string(),
                why: format!("its driver cannot be loaded: {other:?}"),
            }),
        }
    }

    /// Unplugs a disk; returns when the guest has let it go. It must not be in use there.
    pub fn detach_disk(&mut self, disk: Disk) -> Result<(), VmError> {
        self.qmp.forget_events();
        self.qmp_execute(&qapi::qmp::device_del { id: disk.id.clone() })?;
        let start = Instant::now();
        // One DEVICE_DELETED comes for each part of the device; the last is the one with its id.
        let ours = |data: &Value| data.get("device").and_then(Value::as_str) == Some(&disk.id);
        loop {
            let tick = Duration::from_millis(100);
            let gone = self
                .qmp
                .wait_for("device_del", tick, |e| e.name == "DEVICE_DELETED" && ours(&e.data));
            match gone {
                Ok(()) => break,
                Err(VmError::QmpTimeout { .. }) if start.elapsed() < PLUG_TIMEOUT => self.look()?,
                Err(VmError::QmpTimeout { .. }) => {
                    return Err(VmError::Hung {
                        what: format!("the unplugging of the disk {}", disk.serial),
                        seconds: PLUG_TIMEOUT.as_secs(),
                        console: self.console_tail(),
                    });
                }
                Err(e) => return Err(self.what_really(e)),
            }
        }
        self.slots.taken[disk.slot] = false;
        self.qmp_execute(&qapi::qmp::chardev_remove { id: format!("{}-socket", disk.id) })?;
        Ok(())
    }

    /// A command that must not fail for any reason of the guest's.
    pub(super) fn qmp_execute<C: qapi::Command>(&mut self, command: &C) -> Result<C::Ok, VmError> {
        let done = self.qmp.execute(command, QMP_TIMEOUT);
        done.map_err(|e| self.what_really(e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_qemu_is_told_to_connect_again_in_its_own_words() {
        use std::os::unix::fs::PermissionsExt as _;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("qemu");
        for (version, told) in [("7.2.22", "reconnect"), ("9.2.0", "reconnect-ms")] {
            std::fs::write(&path, format!("#!/bin/sh\necho QEMU emulator version {version}\n"))
                .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(Reconnect::of(&Qemu::at(&path).unwrap()).option, told, "{version}");
        }
        // Whatever the crate knows of it.
        let add = json!({ "id": "c", "backend": { "reconnect-ms": 1000 } });
        let plain = Plain::<qapi::qmp::chardev_add>::new(add.clone());
        let written = serde_json::to_value(qapi::Execute::<&_>::from(&plain)).unwrap();
        assert_eq!(written, json!({ "execute": "chardev-add", "arguments": add }));
    }

    #[test]
    fn commands_are_written_as_qemu_takes_them() {
        for front_end in [FrontEnd::Blk, FrontEnd::BlkFull, FrontEnd::Scsi] {
            let _: qapi::qmp::device_add = from(front_end.driver(2)).unwrap_or_else(|e| {
                // `id` is not asked for here; a driver is.
                panic!("{front_end}: {e}")
            });
        }
        let plug: qapi::qmp::device_add =
            from(json!({ "driver": "d", "id": "i", "bus": "slot0", "num-queues": 2 })).unwrap();
        let written = serde_json::to_value(&plug).unwrap();
        let expected = json!({ "driver": "d", "id": "i", "bus": "slot0", "num-queues": 2 });
        assert_eq!(written, expected);
        assert!(from::<qapi::qmp::device_add>(json!({})).is_err());
    }
}

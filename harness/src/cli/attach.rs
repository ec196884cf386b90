//! `tornblk attach`: a disk for a virtual machine of one's own, and how to plug it in.

use super::{absolute, signals};
use crate::device::find_tornblkd;
use crate::out::say;
use crate::run::word;
use crate::vm::process::spawn;
use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tornblk_proto::Client;

/// From its start to its sockets.
const START: Duration = Duration::from_secs(20);
/// For its end in order.
const END: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
Examples:
  tornblk attach --image disk.img                           the image is written
  tornblk attach --image disk.img --recording disk.rec      it is only read; all is recorded";

/// Serve a disk to a virtual machine of your own, until Ctrl-C, and print how to plug it in
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AttachArgs {
    /// Options of tornblkd, which serves it (`tornblkd --help` has them all): --image FILE, --recording
    /// FILE, --profile NAME, --front-end scsi, ...; --socket and --control are chosen where they are not
    /// given
    #[arg(
        value_name = "OPTIONS",
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

impl AttachArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let tornblkd = find_tornblkd()?;
        let interrupted = signals::watch()?;
        let place = tempfile::Builder::new()
            .prefix("tornblk-")
            .tempdir()
            .context("cannot make a folder for the sockets")?;
        let mut options = self.options;
        let mut socket = |name: &str, file: &str| -> anyhow::Result<PathBuf> {
            if let Some(path) = value_of(&options, name) {
                return absolute(Path::new(&path));
            }
            let path = place.path().join(file);
            options.extend([name.to_owned(), path.display().to_string()]);
            Ok(path)
        };
        let (disk, control) = (socket("--socket", "disk")?, socket("--control", "control")?);
        let mut command = Command::new(&tornblkd);
        command.args(&options);
        let child =
            spawn(command, &[]).with_context(|| format!("cannot run {}", tornblkd.display()))?;
        let mut device = Device(child);
        let start = Instant::now();
        // A socket may lie there from before: who answers is there.
        while !Client::connect(&control).is_ok_and(|client| client.status().is_ok()) {
            if let Some(code) = device.ended()? {
                // It has said why.
                return Ok(if code == 0 { 2 } else { code });
            }
            if start.elapsed() > START {
                bail!("tornblkd made no sockets within {} s", START.as_secs());
            }
            if interrupted.load(Ordering::Relaxed) {
                return device.end();
            }
            std::thread::sleep(TICK);
        }
        let plug = Plug {
            scsi: value_of(&options, "--front-end").as_deref() == Some("scsi"),
            recorded: value_of(&options, "--recording").is_some(),
            disk: disk.display().to_string(),
            control: control.display().to_string(),
        };
        say!("{}", plug.text());
        loop {
            if let Some(code) = device.ended()? {
                return Ok(code);
            }
            if interrupted.load(Ordering::Relaxed) {
                return device.end();
            }
            std::thread::sleep(TICK);
        }
    }
}

/// What was given for an option: `--name VALUE` or `--name=VALUE`.
fn value_of(options: &[String], name: &str) -> Option<String> {
    let mut options = options.iter();
    while let Some(option) = options.next() {
        if option == name {
            return options.next().cloned();
        }
        if let Some(value) = option.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// Killed when dropped, if it is still there.
struct Device(Child);

impl Device {
    /// Its exit code, once it has ended.
    fn ended(&mut self) -> anyhow::Result<Option<u8>> {
        let status = self.0.try_wait().context("cannot wait for tornblkd")?;
        match status.map(|status| (status.code(), status)) {
            None => Ok(None),
            Some((Some(code), _)) => Ok(Some(code.try_into().unwrap_or(2))),
            Some((None, status)) => bail!("tornblkd was killed ({status})"),
        }
    }

    /// Asks it to end.
    fn end(&mut self) -> anyhow::Result<u8> {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < END {
            if let Some(code) = self.ended()? {
                return Ok(code);
            }
            std::thread::sleep(TICK);
        }
        bail!("tornblkd did not end within {} s, and was killed", END.as_secs())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How it is plugged in.
struct Plug {
    scsi: bool,
    recorded: bool,
    disk: String,
    control: String,
}

impl Plug {
    fn text(&self) -> String {
        let (disk, control) = (word(&self.disk), word(&self.control));
        let qemu = if self.scsi { "vhost-user-scsi-pci" } else { "vhost-user-blk-pci" };
        let mut text = format!(
            "\
QEMU (its guest's memory must be shared, hence the first line; -m has to be the same size):
  -object memory-backend-memfd,id=mem,size=2G,share=on -machine q35,memory-backend=mem -m 2G \\
  -chardev socket,id=tornblk,path={disk} -device {qemu},chardev=tornblk
"
        );
        if !self.scsi {
            text += &format!(
                "
libvirt, in <domain> and in <devices> (untried):
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <disk type='vhostuser' device='disk'>
    <driver name='qemu' type='raw'/>
    <source type='unix' path='{}'/>
    <target dev='vdb' bus='virtio'/>
  </disk>

cloud-hypervisor (untried):
  --memory size=2G,shared=on --disk vhost_user=true,socket={disk}

crosvm (untried):
  crosvm run --vhost-user block,socket={disk} ...
",
                xml(&self.disk)
            );
        }
        text += &format!(
            "
From another shell:
  tornblk status --control {control}
  tornblk stall --control {control} --op write --for 5s
"
        );
        if self.recorded {
            text += &format!(
                "  tornblk mark --control {control} 'transaction 17 acknowledged'
  tornblk crash --control {control}
"
            );
        }
        text + "\nCtrl-C ends it."
    }
}

/// In an attribute.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_however_they_are_given() {
        let options = ["--image", "a", "--front-end=scsi"].map(str::to_owned);
        assert_eq!(value_of(&options, "--image").as_deref(), Some("a"));
        assert_eq!(value_of(&options, "--front-end").as_deref(), Some("scsi"));
        assert_eq!(value_of(&options, "--recording"), None);
    }

    #[test]
    fn what_is_printed_can_be_pasted() {
        let plug = |scsi, recorded| Plug {
            scsi,
            recorded,
            disk: "/tmp/it's/disk".into(),
            control: "/tmp/c".into(),
        };
        let text = plug(false, true).text();
        assert!(text.contains(r"path='/tmp/it'\''s/disk' -device vhost-user-blk-pci"), "{text}");
        assert!(
            text.contains("path='/tmp/it&apos;s/disk'/>") && text.contains("tornblk crash"),
            "{text}"
        );
        let text = plug(true, false).text();
        assert!(
            text.contains("-device vhost-user-scsi-pci") && !text.contains("libvirt"),
            "{text}"
        );
        assert!(!text.contains("crash"), "{text}");
    }
}

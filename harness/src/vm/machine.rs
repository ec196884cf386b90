//! The command line: a q35 with a serial console, the agent's port, and empty slots for disks.

use std::ffi::OsString;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tornblk_agent::channel::PORT;

use super::{Accel, VmConfig, disk};

/// Kernel parameters for every guest. A panic ends QEMU (`-no-reboot`), so that it is noticed. What
/// the kernel warns of reaches the console before a power cut does (`loglevel=5`), the rest is not
/// worth the time that a serial line takes.
const PARAMETERS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic rdinit=/init nokaslr \
                          mitigations=off cryptomgr.notests random.trust_cpu=on";

/// What saves time where every instruction is emulated: no self-patching for one processor or
/// several, no timer checks, no calibration.
const EMULATED: &str = "tsc=reliable no_timer_check noreplace-smp";

/// How many host threads emulate the processors.
///
/// The kernel patches its own code all through its boot. With a thread for each processor, QEMU 7.2
/// was seen to run one into a breakpoint that the patching had already taken away (a panic at
/// `sched_clock_cpu`, once in a few hundred boots). One thread for all of them has no such race,
/// and a boot, which is one processor's work, is as fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    One,
    Each,
}

/// Everything but what is different at every start. A saved state fits the same text only.
pub(super) fn shape(config: &VmConfig<'_>) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |parts: &[&str]| args.extend(parts.iter().map(|p| (*p).to_owned()));
    add(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    add(&["-display", "none", "-nic", "none"]);
    let memory = config.memory_mib;
    add(&["-machine", "q35,memory-backend=ram,vmport=off,usb=off"]);
    // A vhost-user device writes into the guest's memory: it must be shared.
    add(&["-object", &format!("memory-backend-memfd,id=ram,size={memory}M,share=on")]);
    add(&["-m", &format!("{memory}M"), "-smp", &config.cpus.to_string()]);
    let mut parameters = match config.accel {
        Accel::Kvm => {
            add(&["-cpu", "host"]);
            PARAMETERS.to_owned()
        }
        Accel::Tcg => {
            add(&["-cpu", "max"]);
            format!("{PARAMETERS} {EMULATED}")
        }
    };
    if let Some(append) = &config.append {
        // The last one counts where a parameter comes twice.
        parameters = format!("{parameters} {append}");
    }
    add(&["-append", &parameters]);
    add(&["-device", "isa-serial,chardev=console"]);
    add(&["-device", "virtio-serial-pci,id=ports"]);
    add(&["-device", &format!("virtserialport,bus=ports.0,chardev=agent,name={PORT}")]);
    for slot in 0..disk::SLOTS {
        let id = disk::slot_name(slot);
        let number = slot + 1;
        add(&["-device", &format!("pcie-root-port,id={id},chassis={number},slot={number}")]);
    }
    args
}

/// The whole command line.
pub(super) fn args(
    config: &VmConfig<'_>,
    threads: Threads,
    console: &Path,
    qmp: &UnixStream,
    agent: &UnixStream,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = shape(config).into_iter().map(OsString::from).collect();
    let mut add = |name: &str, value: OsString| args.extend([OsString::from(name), value]);
    let accel = match (config.accel, threads) {
        (Accel::Kvm, _) => "kvm",
        (Accel::Tcg, Threads::One) => "tcg,thread=single",
        (Accel::Tcg, Threads::Each) => "tcg,thread=multi",
    };
    add("-accel", accel.into());
    add("-kernel", config.image.kernel.clone().into());
    add("-initrd", config.image.initrd.clone().into());
    let mut file = OsString::from("file,id=console,append=on,path=");
    file.push(option(console));
    add("-chardev", file);
    add("-chardev", format!("socket,id=agent,fd={}", agent.as_raw_fd()).into());
    add("-chardev", format!("socket,id=qmp,fd={}", qmp.as_raw_fd()).into());
    add("-mon", "chardev=qmp,mode=control".into());
    if let Some(gdb) = config.gdb {
        // Nobody else's machine may stop the guest, or read its memory.
        add("-gdb", format!("tcp:127.0.0.1:{}", gdb.port).into());
        args.push("-S".into());
    }
    args
}

/// A value within an option: a comma is written twice.
fn option(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        out.push(*byte);
        if *byte == b',' {
            out.push(b',');
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_a_path_are_written_twice() {
        assert_eq!(option(Path::new("/a,b/c")), "/a,,b/c");
    }
}

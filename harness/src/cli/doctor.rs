//! `tornblk doctor`: is everything here that a run needs?

use super::{run, signals};
use crate::device::find_tornblkd;
use crate::out::say;
use crate::report::terminal::{Live, Look};
use crate::run::GuestArgs;
use crate::vm::{Accel, Qemu, Virtiofsd, in_path};
use clap::Args;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// For two guests, their devices, and whoever asks.
const MEMORY: u64 = 2 << 30;
/// Kernels, programs, images, and a saved guest for each.
const CACHE: u64 = 2 << 30;
/// Recordings of a run.
const OUT: u64 = 1 << 30;
/// What QEMU can plug in, and whether nothing can be run without.
const DEVICES: [(&str, bool); 3] = [
    ("vhost-user-blk-pci", true),
    // --front-end scsi
    ("vhost-user-scsi-pci", false),
    // run --exec
    ("vhost-user-fs-pci", false),
];
/// What fetches kernels and programs of the guest.
const PROGRAMS: [&str; 2] = ["apt-get", "dpkg-deb"];

/// Look whether everything is here that a run needs, and say what to do where it is not
#[derive(Debug, Args)]
#[command(after_help = super::examples::DOCTOR)]
pub(super) struct DoctorArgs {
    /// Also build the guest's image and start one: whether KVM works is only known then
    #[arg(long)]
    guest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Something cannot be done, or takes longer.
    Less,
    /// Nothing can be run.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Ok => "ok",
            State::Less => "less",
            State::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Seen {
    what: &'static str,
    state: State,
    text: String,
}

fn seen(what: &'static str, state: State, text: impl Into<String>) -> Seen {
    Seen { what, state, text: text.into() }
}

impl DoctorArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let mut all = vec![device(), agent()];
        let qemu = Qemu::find();
        all.extend(look_at_qemu(&qemu));
        all.push(kvm(Path::new("/dev/kvm")));
        all.push(virtiofsd());
        all.push(memory(available(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())));
        all.push(programs());
        all.extend(space());
        if self.guest && !all.iter().any(|seen| seen.state == State::Missing) {
            all.push(guest()?);
        }
        for Seen { what, state, text } in &all {
            say!("{state:<8} {what:<11} {text}");
        }
        let worst = |state| all.iter().any(|seen| seen.state == state);
        say!("");
        if worst(State::Missing) {
            say!("what is missing has to be there before anything can be run");
            return Ok(2);
        }
        let less = if worst(State::Less) { ", with less where it says so" } else { "" };
        say!("everything that a run needs is here{less}");
        if !self.guest {
            say!("next: tornblk doctor --guest (starts one), or tornblk run");
        }
        Ok(0)
    }
}

fn device() -> Seen {
    match find_tornblkd() {
        Ok(path) => seen("tornblkd", State::Ok, path.display().to_string()),
        Err(error) => seen("tornblkd", State::Missing, error.to_string()),
    }
}

fn agent() -> Seen {
    match tornblk_image::agent::find(None) {
        Ok(path) => seen("agent", State::Ok, path.display().to_string()),
        Err(error) => seen("agent", State::Missing, error.to_string()),
    }
}

fn look_at_qemu(found: &Result<Qemu, crate::vm::VmError>) -> Vec<Seen> {
    let qemu = match found {
        Ok(qemu) => qemu,
        Err(error) => return vec![seen("QEMU", State::Missing, error.to_string())],
    };
    let (major, minor, micro) = qemu.version();
    let text = format!("{}, {major}.{minor}.{micro}", qemu.path().display());
    let mut all = vec![seen("QEMU", State::Ok, text)];
    let help = Command::new(qemu.path())
        .args(["-device", "help"])
        .stdin(Stdio::null())
        .output()
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let help = match help {
        Ok(help) => help,
        Err(e) => {
            let text = format!("{} -device help cannot be run: {e}", qemu.path().display());
            all.push(seen("its devices", State::Missing, text));
            return all;
        }
    };
    let lacks: Vec<&str> =
        DEVICES.iter().map(|(device, _)| *device).filter(|device| !help.contains(device)).collect();
    let names: Vec<&str> = DEVICES.iter().map(|(device, _)| *device).collect();
    all.push(if lacks.is_empty() {
        let full = if qemu.has_test_device() { "; and --front-end blk-full" } else { "" };
        seen("its devices", State::Ok, format!("{}{full}", names.join(", ")))
    } else {
        let needed = DEVICES.iter().any(|(device, needed)| *needed && lacks.contains(device));
        let text = format!(
            "this QEMU has no {}: install your distribution's whole package (on Debian \
             qemu-system-x86), or name another one in $TORNBLK_QEMU",
            lacks.join(", ")
        );
        seen("its devices", if needed { State::Missing } else { State::Less }, text)
    });
    all
}

fn kvm(device: &Path) -> Seen {
    let less = |why: String| {
        seen(
            "KVM",
            State::Less,
            format!("{why}: guests are emulated, which takes about three times as long"),
        )
    };
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => seen(
            "KVM",
            State::Ok,
            format!(
                "{} may be used; whether a guest runs on it, the first one shows",
                device.display()
            ),
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            less(format!("there is no {}", device.display()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => less(format!(
            "{} may not be used by this user (on Debian: `adduser {} kvm`, and log in again)",
            device.display(),
            std::env::var("USER").unwrap_or_else(|_| "NAME".into())
        )),
        Err(e) => less(format!("{} cannot be opened: {e}", device.display())),
    }
}

fn virtiofsd() -> Seen {
    match Virtiofsd::find() {
        Ok(found) => seen("virtiofsd", State::Ok, found.path().display().to_string()),
        Err(error) => {
            seen("virtiofsd", State::Less, format!("`run --exec` cannot be used: {error}"))
        }
    }
}

/// Of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn memory(available: Option<u64>) -> Seen {
    match available {
        None => seen("memory", State::Less, "/proc/meminfo does not say how much there is"),
        Some(bytes) if bytes >= MEMORY => seen("memory", State::Ok, format!("{} free", mib(bytes))),
        Some(bytes) => seen(
            "memory",
            State::Less,
            format!(
                "{} free: a guest takes 512 MiB, and there is one a processor while states are explored \
                 (--jobs 1: only one)",
                mib(bytes)
            ),
        ),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn programs() -> Seen {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let lacks: Vec<&str> =
        PROGRAMS.into_iter().filter(|name| in_path(name, &path).is_none()).collect();
    if lacks.is_empty() {
        return seen("apt", State::Ok, "fetches the guest's kernel and programs");
    }
    let text = format!(
        "there is no {}: the guest's kernel and programs come from Debian's archive through apt. Install \
         it, or run in a container of Debian",
        lacks.join(", ")
    );
    seen("apt", State::Missing, text)
}

fn space() -> Vec<Seen> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let cache = match tornblk_image::cache::default_dir() {
        Ok(dir) => room("cache", &dir, CACHE, "another place: $XDG_CACHE_HOME"),
        Err(error) => seen("cache", State::Missing, error.to_string()),
    };
    vec![cache, room("this folder", &here, OUT, "another place for recordings: --out DIR")]
}

/// Free space where `dir` is, or will be.
fn room(what: &'static str, dir: &Path, wanted: u64, todo: &str) -> Seen {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Err(e) => seen(what, State::Missing, format!("{} cannot be looked at: {e}", dir.display())),
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let text = format!("{}, {} free", dir.display(), mib(free));
            if free >= wanted {
                seen(what, State::Ok, text)
            } else {
                seen(
                    what,
                    State::Less,
                    format!("{text}, and {} may be needed ({todo})", mib(wanted)),
                )
            }
        }
    }
}

/// Starts one.
fn guest() -> anyhow::Result<Seen> {
    let interrupted = signals::watch()?;
    let live = Live::new(Look::detect());
    let lab = run::lab(&GuestArgs::default(), &mut |text| live.note(text), &interrupted);
    let tried = lab.and_then(|lab| Ok((lab.prepare(&mut |text| live.note(text))?, lab.accel, lab)));
    live.finish();
    Ok(match tried {
        Ok(((), Accel::Kvm, lab)) => {
            seen("guest", State::Ok, format!("{} runs on KVM", lab.image.release))
        }
        Ok(((), Accel::Tcg, lab)) => seen(
            "guest",
            State::Less,
            format!("{} runs emulated: KVM is not there, or does not work here", lab.image.release),
        ),
        Err(error) if super::interrupted(&error) => return Err(error),
        Err(error) => seen("guest", State::Missing, super::sentence(&error)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_lack_says_what_to_do() {
        let seen = kvm(Path::new("/nonexistent/kvm"));
        assert_eq!(seen.state, State::Less);
        assert!(
            seen.text.contains("there is no /nonexistent/kvm: guests are emulated"),
            "{seen:?}"
        );
        let meminfo = "MemTotal: 9 kB\nMemAvailable:    1048576 kB\n";
        let seen = memory(available(meminfo));
        assert_eq!(seen.state, State::Less);
        assert!(seen.text.starts_with("1024 MiB free: a guest takes 512 MiB"), "{seen:?}");
        assert_eq!(memory(Some(MEMORY)).state, State::Ok);
        assert_eq!(available("MemTotal: 1 kB"), None);
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("not/there/yet");
        assert_eq!(room("cache", &new, 1, "").state, State::Ok);
        let seen = room("cache", &new, u64::MAX, "another place: X");
        assert!(seen.state == State::Less && seen.text.ends_with("(another place: X)"), "{seen:?}");
        let none = look_at_qemu(&Qemu::at(Path::new("/nonexistent/qemu")));
        assert!(none[0].state == State::Missing && none[0].text.contains("install it"), "{none:?}");
    }
}

//! The host's files in a guest: virtiofsd shows them, a vhost-user-fs device that is plugged in brings
//! them, and the agent makes the root of the user's programs of them.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tempfile::TempDir;
use tornblk_agent::channel::{Command, Outcome};

use super::process::Process;
use super::qmp::from;
use super::{NoHost, Vm, VmError, io};

/// What the guest mounts.
const TAG: &str = "tornblk-host";
/// Where packages put it: that of QEMU up to 7.2, and the one that came after it.
const PLACES: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];
const VARIABLE: &str = "TORNBLK_VIRTIOFSD";
/// For the guest to make its root.
const MAKE: Duration = Duration::from_secs(60);

/// A virtiofsd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtiofsd {
    path: PathBuf,
    family: Family,
}

/// They are called in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// QEMU's own, in C: root only.
    C,
    /// `readonly`: it has that option.
    Rust { readonly: bool },
}

impl Virtiofsd {
    /// `$TORNBLK_VIRTIOFSD`, else where packages put it.
    ///
    /// # Errors
    /// There is none.
    pub fn find() -> Result<Virtiofsd, VmError> {
        if let Some(path) = std::env::var_os(VARIABLE) {
            return Virtiofsd::at(Path::new(&path));
        }
        let found = PLACES.iter().map(Path::new).find(|path| path.is_file());
        let looked = || format!("looked in {} and ${VARIABLE}", PLACES.join(", "));
        Virtiofsd::at(found.ok_or_else(|| VmError::NoVirtiofsd { why: looked() })?)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(path: &Path) -> Result<Virtiofsd, VmError> {
        let cannot =
            |why: String| VmError::NoVirtiofsd { why: format!("{} {why}", path.display()) };
        let said = Program::new(path).arg("--version").stdin(Stdio::null()).output();
        let said = said.map_err(|e| cannot(format!("cannot be run: {e}")))?;
        let text = [said.stdout, said.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let mut family = Family::of(&text)
            .ok_or_else(|| cannot(format!("does not say that it is one: {:.100}", text.trim())))?;
        match &mut family {
            Family::C if !rustix::process::geteuid().is_root() => {
                return Err(cannot("works for root only".to_owned()));
            }
            Family::C => {}
            Family::Rust { readonly } => {
                let help = Program::new(path).arg("--help").stdin(Stdio::null()).output();
                *readonly = help
                    .is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--readonly"));
            }
        }
        Ok(Virtiofsd { path: path.to_owned(), family })
    }

    /// `fd`: of the socket that it listens on.
    fn args(&self, fd: RawFd) -> Vec<String> {
        let more: &[&str] = match self.family {
            Family::C => &["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"],
            Family::Rust { readonly: true } => {
                &["--shared-dir=/", "--sandbox=none", "--cache=always", "--readonly"]
            }
            Family::Rust { readonly: false } => {
                &["--shared-dir=/", "--sandbox=none", "--cache=always"]
            }
        };
        let more = more.iter().map(|word| (*word).to_owned());
        std::iter::once(format!("--fd={fd}")).chain(more).collect()
    }

    /// It, for a socket that listens. It sees all of this machine's files read-only, where it is
    /// allowed to see them otherwise than we do: then not even a guest that has broken out of its own
    /// read-only mount writes to them.
    fn command(&self, listener: &UnixListener) -> Program {
        let mut command = Program::new(&self.path);
        command.args(self.args(listener.as_raw_fd()));
        if rustix::process::geteuid().is_root() {
            // SAFETY: after fork it makes system calls only, and allocates nothing.
            unsafe { command.pre_exec(read_only) };
        }
        command
    }
}

/// Everything below the root becomes read-only for this process and its children. Where that may not be
/// done (a container that may not mount), the guest's own mount is what is read-only.
fn read_only() -> std::io::Result<()> {
    /// `struct mount_attr` of `linux/mount.h` (mount_setattr(2), Linux 5.12).
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    // SAFETY: only this process's own view changes, and nobody else's thread is in it.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Ok(());
    }
    let attr =
        MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the path ends with a NUL byte, and the structure is as long as is said.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        );
    }
    Ok(())
}

impl Family {
    /// By what `--version` says: `virtiofsd version 7.2.22 (Debian ...)`, `virtiofsd 1.13.2`.
    fn of(said: &str) -> Option<Family> {
        match said.lines().find_map(|line| line.strip_prefix("virtiofsd "))? {
            rest if rest.starts_with("version ") => Some(Family::C),
            rest if rest.starts_with(|c: char| c.is_ascii_digit()) => {
                Some(Family::Rust { readonly: false })
            }
            _ => None,
        }
    }
}

/// What a guest has of the host. Ends with it.
#[derive(Debug)]
pub(super) struct Root {
    process: Process,
    _dir: TempDir,
}

impl Vm {
    /// Makes the root for programs of the user's: [`Command::HostRoot`]. Once a guest; `dir`: where
    /// the log goes.
    ///
    /// # Errors
    /// There is no virtiofsd, it does not start, or the guest's kernel cannot use it.
    pub fn show_host_root(&mut self, virtiofsd: &Virtiofsd, dir: &Path) -> Result<(), VmError> {
        let place = tempfile::Builder::new().prefix("tornblk-").tempdir();
        let place = place.map_err(io("cannot make a folder for a socket"))?;
        let socket = place.path().join("fs");
        let log = dir.join("virtiofsd.log");
        let listener = UnixListener::bind(&socket).map_err(io("cannot make a socket"))?;
        let process =
            Process::spawn_command(virtiofsd.command(&listener), &[listener.as_fd()], &log);
        let process = process.map_err(|e| {
            VmError::HostRoot(format!("{} cannot be run: {e}", virtiofsd.path.display()))
        })?;
        drop(listener);
        // From now on it ends with the guest, whatever comes.
        self.root = Some(Root { process, _dir: place });
        if let Err(e) = self.plug_root(&socket) {
            return Err(self.why_no_root(virtiofsd).unwrap_or(e));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let command = Command::HostRoot { tag: TAG.to_owned(), now_ms };
        match self.call(command, &mut NoHost, Instant::now() + MAKE)? {
            Outcome::Ok { .. } => Ok(()),
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                Err(VmError::HostRoot(message))
            }
        }
    }

    /// How virtiofsd ended, if that is what is wrong.
    fn why_no_root(&mut self, virtiofsd: &Virtiofsd) -> Option<VmError> {
        let process = &mut self.root.as_mut()?.process;
        let status = process.ended()?;
        let (path, said) = (virtiofsd.path.display(), process.words());
        Some(VmError::HostRoot(format!("{path} ended ({status}): {}", said.trim())))
    }

    fn plug_root(&mut self, socket: &Path) -> Result<(), VmError> {
        let slot = self.take_slot()?;
        let (id, chardev) = ("host-root", "host-root-socket");
        self.connect(chardev, socket, None)?;
        let plug = from::<qapi::qmp::device_add>(json!({
            "driver": "vhost-user-fs-pci", "id": id, "bus": slot, "chardev": chardev, "tag": TAG,
        }))?;
        self.qmp_execute(&plug)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_virtiofsd_is_called_in_its_own_way() {
        for (said, family) in [
            ("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n", Some(Family::C)),
            ("virtiofsd 1.13.2\n", Some(Family::Rust { readonly: false })),
            ("using FUSE\nvirtiofsd 1.10.0", Some(Family::Rust { readonly: false })),
            ("busybox v1.36", None),
        ] {
            assert_eq!(Family::of(said), family, "{said}");
        }
        let args = |family| Virtiofsd { path: "/x".into(), family }.args(7).join(" ");
        let rust = |readonly| args(Family::Rust { readonly });
        assert_eq!(rust(false), "--fd=7 --shared-dir=/ --sandbox=none --cache=always");
        assert!(rust(true).ends_with(" --readonly"));
        assert!(args(Family::C).starts_with("--fd=7 -o source=/ "));
    }
}

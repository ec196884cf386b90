//! The host's files in a guest: virtiofsd shows them, a vhost-user-fs device that is plugged in brings
//! them, and the agent makes the root of the user's programs of them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

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
/// From its start to its socket.
const START: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(5);
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
    Rust,
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
        let family = Family::of(&text)
            .ok_or_else(|| cannot(format!("does not say that it is one: {:.100}", text.trim())))?;
        Ok(Virtiofsd { path: path.to_owned(), family })
    }

    fn args(&self, socket: &Path) -> Vec<OsString> {
        let mut at = OsString::from("--socket-path=");
        at.push(socket);
        let more: &[&str] = match self.family {
            Family::C => &["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"],
            Family::Rust => &["--shared-dir=/", "--sandbox=none", "--cache=always"],
        };
        std::iter::once(at).chain(more.iter().map(OsString::from)).collect()
    }
}

impl Family {
    /// By what `--version` says: `virtiofsd version 7.2.22 (Debian ...)`, `virtiofsd 1.13.2`.
    fn of(said: &str) -> Option<Family> {
        match said.lines().find_map(|line| line.strip_prefix("virtiofsd "))? {
            rest if rest.starts_with("version ") => Some(Family::C),
            rest if rest.starts_with(|c: char| c.is_ascii_digit()) => Some(Family::Rust),
            _ => None,
        }
    }
}

/// What a guest has of the host. Ends with it.
#[derive(Debug)]
pub(super) struct Root {
    _process: Process,
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
        let cannot = |why: String| VmError::NoVirtiofsd { why };
        let mut process = Process::spawn(&virtiofsd.path, virtiofsd.args(&socket), &[], &log)
            .map_err(|e| cannot(format!("{} cannot be run: {e}", virtiofsd.path.display())))?;
        let start = Instant::now();
        while !socket.exists() {
            if let Some(status) = process.ended() {
                let said = process.words();
                return Err(cannot(format!(
                    "{} ended ({status}): {}",
                    virtiofsd.path.display(),
                    said.trim()
                )));
            }
            if start.elapsed() > START {
                return Err(cannot(format!(
                    "{} made no socket within {} s",
                    virtiofsd.path.display(),
                    START.as_secs()
                )));
            }
            self.look()?;
            std::thread::sleep(TICK);
        }
        self.plug_root(&socket)?;
        // From now on it ends with the guest, whatever comes.
        self.root = Some(Root { _process: process, _dir: place });
        let command = Command::HostRoot { tag: TAG.to_owned() };
        match self.call(command, &mut NoHost, Instant::now() + MAKE)? {
            Outcome::Ok { .. } => Ok(()),
            Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
                Err(VmError::HostRoot(message))
            }
        }
    }

    fn plug_root(&mut self, socket: &Path) -> Result<(), VmError> {
        let slot = self.take_slot()?;
        let (id, chardev) = ("host-root", "host-root-socket");
        let backend = from::<qapi::qmp::chardev_add>(json!({
            "id": chardev,
            "backend": { "type": "socket", "data": {
                "addr": { "type": "unix", "data": { "path": socket.to_string_lossy() } },
                "server": false,
            }},
        }))?;
        self.qmp_execute(&backend)?;
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
            ("virtiofsd 1.13.2\n", Some(Family::Rust)),
            ("using FUSE\nvirtiofsd 1.10.0", Some(Family::Rust)),
            ("busybox v1.36", None),
        ] {
            assert_eq!(Family::of(said), family, "{said}");
        }
        let args = |family| {
            let words = Virtiofsd { path: "/x".into(), family }.args(Path::new("/s"));
            words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            args(Family::Rust),
            "--socket-path=/s --shared-dir=/ --sandbox=none --cache=always"
        );
        assert!(args(Family::C).starts_with("--socket-path=/s -o source=/ "));
    }
}

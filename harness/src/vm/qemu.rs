//! Which QEMU there is, and what it can do.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::{VmError, io};

const PROGRAM: &str = "qemu-system-x86_64";
/// The oldest that was tried.
const OLDEST: (u32, u32) = (7, 2);

/// The vhost-user device that knows nothing of what it stands for, and what it is told to stand for
/// (upstream since 10.2; a packager may leave it out, or bring it earlier).
const TEST_DEVICE: &str = "vhost-user-test-device-pci";
const TEST_DEVICE_OPTION: &str = "virtio-id=";

/// A QEMU for x86-64.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    version: (u32, u32, u32),
    /// As it tells it, with the packager's part: another build may write another saved state.
    text: String,
    /// What it answered, once it was asked; for all clones.
    test_device: Arc<OnceLock<bool>>,
}

impl PartialEq for Qemu {
    fn eq(&self, other: &Qemu) -> bool {
        let parts = |q: &Qemu| (q.path.clone(), q.version, q.text.clone());
        parts(self) == parts(other)
    }
}

impl Eq for Qemu {}

impl Qemu {
    /// `$TORNBLK_QEMU`, else `qemu-system-x86_64` of the path.
    pub fn find() -> Result<Qemu, VmError> {
        if let Some(path) = std::env::var_os("TORNBLK_QEMU") {
            return Qemu::at(Path::new(&path));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        match in_path(PROGRAM, &path) {
            Some(found) => Qemu::at(&found),
            None => Err(VmError::NoQemu { looked: format!("no {PROGRAM} in the PATH") }),
        }
    }

    /// A given program.
    pub fn at(path: &Path) -> Result<Qemu, VmError> {
        if !path.is_file() {
            return Err(VmError::NoQemu { looked: format!("no file {}", path.display()) });
        }
        let out = Command::new(path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(io(format!("cannot start {}", path.display())))?;
        let bad = |why: String| VmError::BadQemu { path: path.to_owned(), why };
        let text = String::from_utf8_lossy(&out.stdout);
        let line = text.lines().next().unwrap_or_default();
        let Some(version) = version(line) else {
            return Err(bad(format!("--version says `{line}`")));
        };
        if (version.0, version.1) < OLDEST {
            let (major, minor) = OLDEST;
            return Err(bad(format!("it is {line}, and {major}.{minor} or newer is needed")));
        }
        // Others start it, perhaps from elsewhere.
        let path = path.canonicalize().map_err(io(format!("cannot find {}", path.display())))?;
        Ok(Qemu { path, version, text: line.to_owned(), test_device: Arc::default() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major, minor, micro.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a migration can go to a file by name (`file:`, since 8.2).
    pub(super) fn has_file_migration(&self) -> bool {
        self.version >= (8, 2, 0)
    }

    /// Whether it has a vhost-user device that knows nothing of what it stands for: QEMU is asked,
    /// once (14 to 33 ms).
    pub fn has_test_device(&self) -> bool {
        *self.test_device.get_or_init(|| {
            // Of this device alone: for `-device help` QEMU loads every module that it finds.
            let out = Command::new(&self.path)
                .args(["-device", &format!("{TEST_DEVICE},help")])
                .stdin(Stdio::null())
                .output();
            // The exit code is 0 where there is no such device, too.
            out.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(TEST_DEVICE_OPTION))
        })
    }

    /// Whether memory can be saved at fixed places in the file, which is read faster (since 9.0).
    pub(super) fn has_mapped_ram(&self) -> bool {
        self.version >= (9, 0, 0)
    }
}

impl std::fmt::Display for Qemu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, micro) = self.version;
        write!(f, "QEMU {major}.{minor}.{micro}")
    }
}

/// The program of that name that the path leads to.
pub(crate) fn in_path(program: &str, path: &OsStr) -> Option<PathBuf> {
    let runs = |p: &PathBuf| {
        p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path).map(|dir| dir.join(program)).find(runs)
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`
fn version(line: &str) -> Option<(u32, u32, u32)> {
    let rest = line.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split([' ', '(']).next()?.split('.').map(|n| {
        let digits = n.find(|c: char| !c.is_ascii_digit()).map_or(n, |end| &n[..end]);
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)";
        assert_eq!(version(debian), Some((7, 2, 22)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0, 2)));
        assert_eq!(version("QEMU emulator version 9.2.0-rc1"), Some((9, 2, 0)));
        assert_eq!(version("QEMU emulator version 11.0"), Some((11, 0, 0)));
        assert_eq!(version("qemu-img version 7"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn the_device_for_testing_is_asked_for_once() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("qemu");
        // 11.0 without it, 7.2 with it.
        for (version, help, has) in [("11.0.0", "", false), ("7.2.0", "  virtio-id=<uint16>", true)]
        {
            let script = format!(
                "#!/bin/sh\ncase $* in\n--version) echo 'QEMU emulator version {version}';;\n\
                 '-device vhost-user-test-device-pci,help') echo asked >>$0.asked; echo '{help}';;\n\
                 *) exit 9;;\nesac\n"
            );
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let asked = tmp.path().join("qemu.asked");
            let _ = std::fs::remove_file(&asked);
            let qemu = Qemu::at(&path).unwrap();
            let clone = qemu.clone();
            assert!(!asked.exists());
            assert_eq!(qemu.has_test_device(), has, "{version}");
            assert_eq!(clone.has_test_device(), has, "{version}");
            assert_eq!(std::fs::read_to_string(&asked).unwrap(), "asked\n");
            assert_eq!(qemu, clone);
        }
    }

    #[test]
    fn a_missing_or_old_qemu_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("qemu");
        let missing = Qemu::at(&path).unwrap_err().to_string();
        assert!(missing.contains("apt install qemu-system-x86"), "{missing}");
        for (says, told) in [("QEMU emulator version 4.2.1", "7.2 or newer"), ("hello", "`hello`")]
        {
            std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let error = Qemu::at(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        assert!(in_path("qemu", tmp.path().as_os_str()).is_some());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(in_path("qemu", tmp.path().as_os_str()).is_none());
    }
}

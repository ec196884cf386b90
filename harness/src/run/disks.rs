//! Several disks for a user's own program: logical units of one SCSI device, LUN 0 the main disk. They
//! share one order of events and one power cut, and each is flushed by itself.

use serde::{Deserialize, Serialize};
use tornblk_agent::channel::{Command, Folder, MountPoint, USER_DISKS, USER_MOUNT, USER_MOUNTS};
use tornblk_model::crash::Profile;

/// What the main disk is called where there are others.
pub const MAIN: &str = "main";
/// Disks that a device of `tornblkd` has at most.
pub const LUNS_MAX: usize = 64;
/// Letters of a disk's name.
const NAME_MAX: usize = 16;

/// A disk beside the main one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FurtherDisk {
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Empty: a raw disk.
    pub fstype: String,
    pub mount_options: String,
}

/// May a disk be called that?
///
/// # Errors
/// Why not: a sentence.
pub fn check_name(name: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_lowercase();
    let rest = |c: char| letter(c) || c.is_ascii_digit() || c == '_' || c == '-';
    if name == MAIN {
        return Err(format!("{MAIN} is the disk that there is anyway (--size, --fs)"));
    }
    if !name.starts_with(letter) || !name.chars().all(rest) || name.len() > NAME_MAX {
        return Err(format!(
            "'{name}' cannot be a disk's name: lower-case letters, digits, _ and -, at most \
             {NAME_MAX}, the first one a letter"
        ));
    }
    Ok(())
}

impl FurtherDisk {
    pub fn is_raw(&self) -> bool {
        self.fstype.is_empty()
    }

    /// As a part of the name of an environment variable.
    pub fn in_variables(&self) -> String {
        self.name.to_ascii_uppercase().replace('-', "_")
    }

    /// Where it is mounted in the guest; `None`: it is raw.
    pub fn mount(&self) -> Option<MountPoint> {
        (!self.is_raw()).then(|| MountPoint {
            target: format!("{USER_MOUNTS}/{}", self.name),
            fstype: self.fstype.clone(),
            options: self.mount_options.clone(),
        })
    }

    /// Its mount, if it has one, under the name that the guest gives it.
    pub(super) fn mount_on(&self, device: &str) -> Option<Command> {
        let MountPoint { target, fstype, options } = self.mount()?;
        Some(Command::Mount { device: device.to_owned(), target, fstype, options })
    }
}

/// Does each disk begin where the profile's own grid does? What a disk never tears lies on its own grid,
/// and not on that of all disks together.
///
/// # Errors
/// Which does not: a sentence.
pub fn check_grid(profile: &Profile, main: u64, further: &[FurtherDisk]) -> Result<(), String> {
    let mut start = main;
    for disk in further {
        for grid in [profile.tear_unit, profile.boundary] {
            if grid > 0 && !start.is_multiple_of(grid) {
                return Err(format!(
                    "profile {profile}: the disks before {} have {start} bytes, which is no multiple of \
                     {grid}: make them larger",
                    disk.name
                ));
            }
        }
        start += disk.size;
    }
    Ok(())
}

/// What `tornblkd` is told of them, where there are several; `capacity` is that of all together.
pub fn luns(capacity: u64, further: &[FurtherDisk]) -> Vec<String> {
    if further.is_empty() {
        return Vec::new();
    }
    let others: u64 = further.iter().map(|disk| disk.size).sum();
    let main = format!("{MAIN}={}", capacity.saturating_sub(others));
    let rest = further.iter().map(|disk| format!("{}={}", disk.name, disk.size));
    std::iter::once(main).chain(rest).collect()
}

/// The serial numbers by which a guest finds the disks, the main one first.
pub fn serials(serial: &str, further: &[FurtherDisk]) -> Vec<String> {
    if further.is_empty() {
        return vec![serial.to_owned()];
    }
    let names = std::iter::once(MAIN).chain(further.iter().map(|disk| disk.name.as_str()));
    names.map(|name| format!("{serial}-{name}")).collect()
}

/// What the user's programs are told of the disks, by the names that they have in the guest: the main
/// one first.
pub fn variables(devices: &[String], further: &[FurtherDisk]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    all.extend(devices.first().map(|main| ("TORNBLK_DEVICE".to_owned(), main.clone())));
    for (disk, device) in further.iter().zip(devices.iter().skip(1)) {
        let name = disk.in_variables();
        all.push((format!("TORNBLK_DEVICE_{name}"), device.clone()));
        if !disk.is_raw() {
            all.push((format!("TORNBLK_MOUNT_{name}"), format!("{USER_DISKS}/{}", disk.name)));
        }
    }
    all
}

/// The names of those that are mounted.
pub fn mounted(further: &[FurtherDisk]) -> Vec<String> {
    further.iter().filter(|disk| !disk.is_raw()).map(|disk| disk.name.clone()).collect()
}

/// A file system's FIEMAP is in bytes of the disk; that of btrfs in addresses of its own.
fn says_where(fstype: &str) -> bool {
    !fstype.is_empty() && fstype != "btrfs"
}

/// Where it is asked for where files lie, `main` being the main disk's bytes.
pub(super) fn folders(main: u64, main_fstype: &str, further: &[FurtherDisk]) -> Vec<Folder> {
    let own = Folder { path: USER_MOUNT.to_owned(), prefix: String::new(), start: 0 };
    let mut folders: Vec<Folder> = says_where(main_fstype).then_some(own).into_iter().collect();
    let mut start = main;
    for disk in further {
        if let Some(MountPoint { target: path, .. }) = disk.mount()
            && says_where(&disk.fstype)
        {
            folders.push(Folder { path, prefix: format!("{}:", disk.name), start });
        }
        start += disk.size;
    }
    folders
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn disk(name: &str, size: u64, fstype: &str) -> FurtherDisk {
        let (name, fstype) = (name.to_owned(), fstype.to_owned());
        FurtherDisk { name, size, fstype, mount_options: String::new() }
    }

    #[test]
    fn disks_lie_one_after_another_and_are_found_by_their_names() {
        let further = [disk("redo-log", 16 << 20, "ext4"), disk("b", 1 << 20, "")];
        assert_eq!(luns(49 << 20, &further), ["main=33554432", "redo-log=16777216", "b=1048576"]);
        assert_eq!(serials("t", &further), ["t-main", "t-redo-log", "t-b"]);
        let devices = ["/dev/sda", "/dev/sdc", "/dev/sdb"].map(str::to_owned);
        let told = variables(&devices, &further);
        let told: Vec<String> = told.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            told,
            [
                "TORNBLK_DEVICE=/dev/sda",
                "TORNBLK_DEVICE_REDO_LOG=/dev/sdc",
                "TORNBLK_MOUNT_REDO_LOG=/run/tornblk/disks/redo-log",
                "TORNBLK_DEVICE_B=/dev/sdb",
            ]
        );
        assert_eq!(mounted(&further), ["redo-log"]);
        let folders_of = |fstype: &str, further: &[FurtherDisk]| -> Vec<String> {
            folders(32 << 20, fstype, further).into_iter().map(|folder| folder.path).collect()
        };
        let folders = folders(32 << 20, "ext4", &further);
        let places: Vec<_> = folders.iter().map(|f| (&*f.path, &*f.prefix, f.start)).collect();
        assert_eq!(places, [("/disk", "", 0), ("/disks/redo-log", "redo-log:", 32 << 20)]);
        for fstype in ["", "btrfs"] {
            let places: Vec<_> = folders_of(fstype, &further);
            assert_eq!(places, ["/disks/redo-log"], "{fstype}");
        }
        // One alone is as it always was.
        assert!(luns(1 << 20, &[]).is_empty());
        assert_eq!(serials("t", &[]), ["t"]);
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["log", "a", "a-b_2", "sixteen-letters_"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "main", "Log", "2", "a b", "a/b", "ä", "more-than-sixteen"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}

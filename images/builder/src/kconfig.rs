//! What a kernel of the user's own has to have: one table, from which a fragment of a configuration
//! is printed, and against which a `.config` is held.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use crate::{At, ImageError};

/// Options for one purpose.
struct Group {
    purpose: &'static str,
    need: Need,
    options: &'static [Wanted],
}

/// How much depends on an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// No guest starts, or none can be talked to, or no disk is seen.
    Guest,
    /// Some lanes or workloads are unsupported.
    Suites,
    /// Bugs of the kernel show sooner, or are told better.
    Debug,
}

/// An option without its `CONFIG_`.
struct Wanted {
    name: &'static str,
    /// The module that an image takes where it is not built in, by itself or because another needs
    /// it.
    module: Option<&'static str>,
    /// It must not be set: something else cannot be had with it.
    off: bool,
}

const fn y(name: &'static str) -> Wanted {
    Wanted { name, module: None, off: false }
}

const fn m(name: &'static str, module: &'static str) -> Wanted {
    Wanted { name, module: Some(module), off: false }
}

const fn n(name: &'static str) -> Wanted {
    Wanted { name, module: None, off: true }
}

const GROUPS: [Group; 15] = [
    Group {
        purpose: "to boot: PVH, an initramfs, a console on the serial port, processors",
        need: Need::Guest,
        options: &[
            y("64BIT"),
            y("PRINTK"),
            y("BUG"),
            y("TTY"),
            y("SERIAL_8250"),
            y("SERIAL_8250_CONSOLE"),
            y("BLK_DEV_INITRD"),
            y("BINFMT_ELF"),
            y("ACPI"),
            y("PCI"),
            y("PCI_MSI"),
        ],
    },
    Group {
        purpose: "to boot faster, with several processors, and under KVM",
        need: Need::Suites,
        options: &[y("SMP"), y("HYPERVISOR_GUEST"), y("PARAVIRT"), y("KVM_GUEST"), y("PVH")],
    },
    Group {
        purpose: "for the agent and the programs of the image",
        need: Need::Guest,
        options: &[
            y("MULTIUSER"),
            y("BINFMT_SCRIPT"),
            y("FUTEX"),
            y("EPOLL"),
            y("EVENTFD"),
            y("SIGNALFD"),
            y("TIMERFD"),
            y("POSIX_TIMERS"),
            y("FILE_LOCKING"),
            y("ADVISE_SYSCALLS"),
            y("SHMEM"),
            y("SYSFS"),
            y("PROC_FS"),
            y("PROC_SYSCTL"),
            y("TMPFS"),
            y("DEVTMPFS"),
        ],
    },
    Group {
        purpose: "for the agent's channel, and disks that come and go",
        need: Need::Guest,
        options: &[
            y("VIRTIO_MENU"),
            m("VIRTIO_PCI", "virtio_pci"),
            m("VIRTIO_CONSOLE", "virtio_console"),
            y("PCIEPORTBUS"),
            y("HOTPLUG_PCI"),
            y("HOTPLUG_PCI_PCIE"),
            y("HOTPLUG_PCI_ACPI"),
            y("BLOCK"),
            y("BLK_DEV"),
            m("VIRTIO_BLK", "virtio_blk"),
        ],
    },
    Group {
        purpose: "for disks on SCSI (--front-end scsi)",
        need: Need::Suites,
        options: &[
            m("SCSI", "scsi_mod"),
            y("SCSI_LOWLEVEL"),
            m("SCSI_VIRTIO", "virtio_scsi"),
            m("BLK_DEV_SD", "sd_mod"),
            m("CHR_DEV_SG", "sg"),
        ],
    },
    Group {
        purpose: "for programs of one's own (run --exec)",
        need: Need::Suites,
        options: &[m("VIRTIO_FS", "virtiofs")],
    },
    Group {
        purpose: "for programs of one's own on btrfs (--fs btrfs)",
        need: Need::Suites,
        options: &[m("BTRFS_FS", "btrfs")],
    },
    Group {
        purpose: "for lanes on partitions",
        need: Need::Suites,
        options: &[y("MSDOS_PARTITION"), y("EFI_PARTITION")],
    },
    Group {
        purpose: "for lanes on file systems",
        need: Need::Suites,
        options: &[
            m("EXT4_FS", "ext4"),
            y("EXT4_USE_FOR_EXT2"),
            m("XFS_FS", "xfs"),
            m("OVERLAY_FS", "overlay"),
            y("FUSE_FS"),
            y("FUSE_PASSTHROUGH"),
            m("BLK_DEV_LOOP", "loop"),
        ],
    },
    Group {
        purpose: "for ways to write",
        need: Need::Suites,
        options: &[
            y("AIO"),
            y("IO_URING"),
            y("USERFAULTFD"),
            y("FANOTIFY"),
            y("INOTIFY_USER"),
            y("TRANSPARENT_HUGEPAGE"),
            y("CGROUPS"),
            y("MEMCG"),
            y("HIGH_RES_TIMERS"),
            y("NET"),
            y("UNIX"),
        ],
    },
    Group {
        purpose: "for the guest module, which sets atomic limits on virtio-blk",
        need: Need::Suites,
        options: &[y("MODULES"), y("MODULE_UNLOAD")],
    },
    Group {
        purpose: "so that what goes wrong is told",
        need: Need::Suites,
        options: &[y("PRINTK_TIME"), y("KALLSYMS"), y("DETECT_HUNG_TASK"), y("MAGIC_SYSRQ")],
    },
    Group {
        purpose: "debugging: symbols for gdb, and for reading call traces",
        need: Need::Debug,
        options: &[
            y("DEBUG_KERNEL"),
            y("DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT"),
            y("GDB_SCRIPTS"),
            y("DEBUG_FS"),
            y("STACKTRACE"),
        ],
    },
    Group {
        purpose: "debugging: locks",
        need: Need::Debug,
        options: &[y("PROVE_LOCKING"), y("DEBUG_ATOMIC_SLEEP"), y("SOFTLOCKUP_DETECTOR")],
    },
    Group {
        purpose: "debugging: memory, and what file systems and lists take for granted (slow)",
        need: Need::Debug,
        options: &[
            n("SLUB_TINY"),
            y("KASAN"),
            y("KASAN_VMALLOC"),
            y("KFENCE"),
            y("UBSAN"),
            y("DEBUG_LIST"),
            y("XFS_WARN"),
        ],
    },
];

/// An option that a kernel does not have as guests want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// With its `CONFIG_`.
    pub option: String,
    /// It is a module, but would have to be built in: images do not take it.
    pub is_module: bool,
    pub need: Need,
    pub purpose: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_module { "is a module, not built in" } else { "is not set" };
        write!(f, "{} {how}: {}", self.option, self.purpose)
    }
}

/// A fragment of a configuration with everything that guests and suites want, for
/// `scripts/kconfig/merge_config.sh` or to be appended to what `make tinyconfig` made. With `debug`,
/// what makes the kernel's own bugs show, too.
pub fn fragment(debug: bool) -> String {
    let mut out = String::new();
    for group in GROUPS.iter().filter(|g| debug || g.need != Need::Debug) {
        // Writing to memory does not fail.
        let _ = writeln!(out, "# {}", group.purpose);
        for option in group.options {
            let _ = match option.off {
                true => writeln!(out, "# CONFIG_{} is not set", option.name),
                false => writeln!(out, "CONFIG_{}=y", option.name),
            };
        }
    }
    out
}

/// What guests and suites want and a `.config` has not, what matters most first. Nothing of
/// [`Need::Debug`].
pub fn missing(config: &str) -> Vec<Missing> {
    let mut found = Vec::new();
    for group in GROUPS.iter().filter(|g| g.need != Need::Debug) {
        for option in group.options {
            let name = format!("CONFIG_{}", option.name);
            let value = config.lines().find_map(|l| l.strip_prefix(&name)?.strip_prefix('='));
            let is_module = value == Some("m");
            let is_set = value == Some("y");
            if is_set != option.off || (is_module && option.module.is_some()) {
                continue;
            }
            let (need, purpose) = (group.need, group.purpose);
            found.push(Missing { option: name, is_module, need, purpose });
        }
    }
    found.sort_by_key(|m| m.need);
    found
}

/// [`missing`] of the kernel that was built in a folder.
pub fn missing_in(tree: &Path) -> Result<Vec<Missing>, ImageError> {
    let path = tree.join(".config");
    Ok(missing(&fs::read_to_string(&path).at("cannot read the kernel's configuration", &path)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_kernel_of_the_fragment_misses_nothing() {
        assert_eq!(missing(&fragment(false)), []);
        assert_eq!(missing(&fragment(true)), []);
        assert!(!fragment(false).contains("KASAN") && fragment(true).contains("CONFIG_KASAN=y\n"));
    }

    #[test]
    fn what_is_missing_is_told_with_its_purpose() {
        let config = fragment(false)
            .replace("CONFIG_XFS_FS=y", "CONFIG_XFS_FS=m")
            .replace("CONFIG_FUSE_FS=y", "CONFIG_FUSE_FS=m")
            .replace("CONFIG_EXT4_FS=y", "# CONFIG_EXT4_FS is not set")
            .replace("CONFIG_PCI=y\n", "");
        let told: Vec<String> = missing(&config).iter().map(Missing::to_string).collect();
        // What guests need comes first.
        assert!(told[0].starts_with("CONFIG_PCI is not set: to boot"), "{told:?}");
        assert!(told[1].starts_with("CONFIG_EXT4_FS is not set: "), "{told:?}");
        assert!(told[2].starts_with("CONFIG_FUSE_FS is a module, not built in: "), "{told:?}");
        assert_eq!(told.len(), 3, "XFS is in the image as a module: {told:?}");
    }

    #[test]
    fn each_option_is_named_once_and_each_module_of_an_image_is_one() {
        let options = || GROUPS.iter().flat_map(|g| g.options);
        let names: BTreeSet<&str> = options().map(|o| o.name).collect();
        assert_eq!(names.len(), options().count());
        let mut modules: BTreeSet<&str> = options().filter_map(|o| o.module).collect();
        assert!(modules.remove("scsi_mod"), "the others of SCSI need it");
        assert_eq!(modules, crate::modules::WANTED.into_iter().collect());
    }
}

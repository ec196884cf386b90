//! What is a complaint and no finding: one list, with a reason for each.

use super::{Kind, Splat};

/// What was going on where a kernel complained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Requests were failed on purpose while the guest ran (the fault `eio`).
    pub eio: bool,
    /// The disk lied on purpose about what is on it.
    pub lied: bool,
    /// What this guest found on the disk is a finding already.
    pub broken: bool,
    /// It never answered again.
    pub hung: bool,
}

/// Why something is no finding.
#[derive(Clone, Copy, Debug)]
pub struct Harmless {
    is: fn(&Splat, Around) -> bool,
    pub why: &'static str,
}

const LIST: &[Harmless] = &[
    Harmless {
        is: |splat, around| {
            let of_the_host = !around.hung || splat.title.starts_with("clocksource: ");
            splat.kind == Kind::Time && of_the_host
        },
        why: "a guest has no time of its own: its processors stand still while the host is busy",
    },
    Harmless {
        is: |splat, around| around.eio && matches!(splat.kind, Kind::Io | Kind::FileSystem),
        why: "requests were failed on purpose",
    },
    Harmless {
        is: |splat, around| around.lied && matches!(splat.kind, Kind::Io | Kind::FileSystem),
        why: "the disk lied on purpose, and may be said to have",
    },
    Harmless {
        is: |splat, around| around.broken && matches!(splat.kind, Kind::Io | Kind::FileSystem),
        why: "that the file system cannot be recovered is told already",
    },
    Harmless {
        is: |splat, _| {
            let table = ["BUG: MAX_LOCKDEP_", "BUG: MAX_STACK_TRACE_ENTRIES "];
            table.iter().any(|t| splat.title.starts_with(t)) && splat.title.contains(" too low!")
        },
        why: "lockdep's tables are full, and it checks no more: no lock was taken wrongly",
    },
];

/// Why this is no finding; `None`: it is one.
pub fn harmless(splat: &Splat, around: Around) -> Option<&'static str> {
    LIST.iter().find(|entry| (entry.is)(splat, around)).map(|entry| entry.why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::find;
    use super::*;

    const WARN: &str = "------------[ cut here ]------------\n\
                        WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2\n\
                        ---[ end trace 0000000000000000 ]---\n";
    const IO: &str =
        "I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 2\n";
    const FS: &str = "EXT4-fs error (device vda): ext4_lookup:1787: inode #12: comm ls: iget: checksum invalid\n";
    const STALL: &str = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n";

    fn why(log: &str, around: Around) -> Option<&'static str> {
        harmless(&find(log)[0], around)
    }

    #[test]
    fn what_is_no_finding_is_told_why() {
        let none = Around::default();
        for log in [WARN, IO, FS] {
            assert_eq!(why(log, none), None, "{log}");
        }
        assert!(why(STALL, none).unwrap().contains("busy"));
        let hung = Around { hung: true, ..none };
        assert_eq!(why(STALL, hung), None);
        let drift =
            "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable\n";
        assert!(why(drift, hung).is_some());
        for table in ["MAX_LOCKDEP_CHAIN_HLOCKS", "MAX_LOCKDEP_KEYS", "MAX_STACK_TRACE_ENTRIES"] {
            let full = format!(
                "BUG: {table} too low!\nturning off the locking correctness validator.\n{WARN}"
            );
            assert!(why(&full, none).unwrap().contains("lockdep"), "{table}");
            assert_eq!(find(&full).len(), 2, "what follows is told");
        }
        // As many locks as one task may hold at a time: that is not lockdep's fault.
        assert_eq!(why("BUG: MAX_LOCK_DEPTH too low!\n", none), None);
    }

    #[test]
    fn what_was_done_on_purpose_excuses_only_what_comes_of_it() {
        let eio = Around { eio: true, ..Around::default() };
        assert!(why(IO, eio).is_some() && why(FS, eio).is_some() && why(WARN, eio).is_none());
        let broken = Around { broken: true, ..Around::default() };
        assert!(
            why(IO, broken).is_some() && why(FS, broken).is_some() && why(WARN, broken).is_none()
        );
        let lied = Around { lied: true, ..Around::default() };
        assert!(why(IO, lied).is_some() && why(FS, lied).is_some());
        let rule = "=".repeat(66);
        for log in [
            WARN,
            &format!("{rule}\nBUG: KASAN: slab-use-after-free in f+0x1/0x2\n{rule}\n"),
            &format!("{rule}\nWARNING: possible circular locking dependency detected\n"),
            "BUG: kernel NULL pointer dereference, address: 0000000000000008\n",
        ] {
            assert_eq!(why(log, lied), None, "{log}");
        }
    }
}

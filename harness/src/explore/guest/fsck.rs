//! A file system's own checker, on a disk whose log was replayed.

use super::seat::{Seat, SeatError};
use tornblk_agent::channel::{Command, Outcome};

/// Under emulation and with a large disk.
const TIMEOUT_MS: u64 = 110_000;
/// Of what it says.
const LINES: usize = 4;

/// What it said.
#[derive(Debug, PartialEq)]
pub(super) enum Fsck {
    Clean,
    /// What is wrong, in its words.
    Damaged(String),
    /// There is none for this file system, or it could not look.
    None(String),
}

/// How to look without changing anything.
fn command(fstype: &str, device: &str) -> Option<Vec<String>> {
    let argv: &[&str] = match fstype {
        "xfs" => &["/usr/sbin/xfs_repair", "-n"],
        "btrfs" => &["/usr/bin/btrfs", "check", "--readonly"],
        "ext2" | "ext3" | "ext4" => &["/usr/sbin/e2fsck", "-f", "-n"],
        _ => return None,
    };
    Some(argv.iter().copied().chain([device]).map(str::to_owned).collect())
}

/// Looks at the state that the guest was just taken through, recovered as it is.
pub(super) fn fsck(seat: &mut Seat, fstype: &str) -> Result<Fsck, SeatError> {
    let device = seat.disk()?;
    let Some(argv) = command(fstype, &device) else {
        return Ok(Fsck::None(format!("there is no checker for {fstype}")));
    };
    let outcome = seat.call(Command::Exec { argv, timeout_ms: TIMEOUT_MS })?;
    let said = match outcome {
        Outcome::Ok { value } => {
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            verdict(fstype, value["status"].as_i64(), &text("stdout"), &text("stderr"))
        }
        Outcome::Failed { message, .. } | Outcome::Unsupported { message } => Fsck::None(message),
    };
    // What it read is of this state.
    match seat.call(Command::Blkflsbuf { device })? {
        Outcome::Ok { .. } => Ok(said),
        Outcome::Failed { message, .. } | Outcome::Unsupported { message } => {
            Err(SeatError::Failed(message))
        }
    }
}

/// xfs_repair(8): 1 corruption, 2 a log that was not replayed. e2fsck(8): 4 errors were left
/// uncorrected, as they are with `-n`. btrfs-check(8): 1.
fn verdict(fstype: &str, status: Option<i64>, stdout: &str, stderr: &str) -> Fsck {
    let damaged = if matches!(fstype, "xfs" | "btrfs") { 1 } else { 4 };
    let lines = || {
        let ours = |line: &&str| {
            let line = line.trim();
            // Headings and progress.
            !(line.is_empty()
                || line.starts_with("Phase ")
                || line.starts_with("Pass ")
                || line.starts_with("- ")
                || line.starts_with('[')
                || line.starts_with("e2fsck "))
        };
        let lines: Vec<&str> = stderr.lines().chain(stdout.lines()).filter(ours).collect();
        let shown: Vec<&str> = lines.iter().take(LINES).map(|line| line.trim()).collect();
        let more = if lines.len() > LINES { " ..." } else { "" };
        format!("{}{more}", shown.join("; "))
    };
    match status {
        Some(0) => Fsck::Clean,
        Some(status) if status == damaged => Fsck::Damaged(lines()),
        Some(status) => Fsck::None(format!("it ended with status {status}: {}", lines())),
        None => Fsck::None("it did not say how it ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_damage_is_damage() {
        assert_eq!(verdict("xfs", Some(0), "Phase 1 - find\n", ""), Fsck::Clean);
        let said = "Phase 3 - for each AG...\n        - agno = 0\nsb_fdblocks 5, counted 6\n";
        let Fsck::Damaged(text) = verdict("xfs", Some(1), said, "") else { panic!() };
        assert_eq!(text, "sb_fdblocks 5, counted 6");
        assert!(matches!(verdict("xfs", Some(2), "", "ERROR: dirty log"), Fsck::None(_)));
        assert!(matches!(verdict("ext4", Some(4), "", ""), Fsck::Damaged(_)));
        assert!(matches!(verdict("ext4", Some(8), "", ""), Fsck::None(_)));
        assert!(matches!(verdict("ext4", Some(1), "", ""), Fsck::None(_)));
    }

    #[test]
    fn nothing_is_changed_and_not_every_file_system_has_one() {
        for fstype in ["xfs", "ext4", "btrfs"] {
            let argv = command(fstype, "/dev/vda").unwrap_or_default();
            assert!(
                argv.iter().any(|word| word == "-n" || word == "--readonly")
                    && argv.ends_with(&["/dev/vda".into()])
            );
        }
        assert_eq!(command("f2fs", "/dev/vda"), None);
    }
}

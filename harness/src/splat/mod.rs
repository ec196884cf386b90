//! What a guest's kernel complains about: WARN, BUG and oops, lockdep, the sanitizers, tasks that
//! hang, file systems and disks that report an error.
//!
//! - [`scan`]: finds complaints in a log, each with all that belongs to it.
//! - [`harmless`]: what is a complaint, and no finding; with the reason.
//! - [`decode`]: functions of a trace become lines of source, where the kernel's symbols are there.
//! - [`watch`]: sees them while the guest works.
//! - [`desk`]: complaints of a run become findings, each different one once.
//!
//! A guest is killed at the cut, so its log is what reached the serial console.

mod decode;
mod desk;
mod harmless;
mod scan;
mod watch;

pub use decode::Symbols;
pub use desk::{Again, Desk, Guest};
pub use harmless::{Around, Harmless, harmless};
pub use scan::find;
pub use watch::{IN_FULL, Watch};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What kind of complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// WARN and its like.
    Warning,
    /// BUG, an oops, a panic: the kernel cannot go on as before.
    Bug,
    /// Lockdep and RCU's own checks.
    Locking,
    /// KASAN, UBSAN, KCSAN, KMSAN, KFENCE.
    Sanitizer,
    /// A task waits too long.
    Hung,
    /// A file system or its journal.
    FileSystem,
    /// A request that failed.
    Io,
    /// Somebody was not given time: RCU stalls, soft lockups, clocks that drift.
    Time,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Warning,
        Kind::Bug,
        Kind::Locking,
        Kind::Sanitizer,
        Kind::Hung,
        Kind::FileSystem,
        Kind::Io,
        Kind::Time,
    ];
}

/// One complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splat {
    pub kind: Kind,
    /// The line that says what it is, without its time stamp.
    pub title: String,
    /// All of it, as the kernel printed it.
    pub lines: Vec<String>,
}

/// Why a splat cannot be put down.
#[derive(Debug, thiserror::Error)]
pub enum SplatError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

impl Splat {
    /// Complaints with the same signature are one complaint that came again: what differs each
    /// time (processors, process ids, addresses) is not in it.
    pub fn signature(&self) -> String {
        let title = without_whom(&self.title);
        let mut parts = vec![match self.kind {
            Kind::Hung | Kind::FileSystem | Kind::Io | Kind::Time => without_numbers(&title),
            _ => without_places(&title),
        }];
        match self.kind {
            // All of them have the same title: which locks they are tells them apart.
            Kind::Locking => parts.extend(self.lines.iter().filter_map(|l| lock(l)).take(2)),
            // The title says an address at most.
            Kind::Bug => parts.extend(self.lines.iter().find_map(|l| rip(l))),
            // Who waits is not what for.
            Kind::Hung => parts.extend(self.lines.iter().find_map(|l| waits_in(l))),
            _ => {}
        }
        parts.join(" | ")
    }
}

/// Without the tasks, of which each run has others: `fsx/77`, `[fsx:77]`, `comm fsx:`.
fn without_whom(title: &str) -> String {
    const BEFORE_NAME: [&str; 6] = ["comm", "Comm:", "process", "task", "thread", "name:"];
    const OF_ONE_PAGE: [&str; 8] =
        ["pfn:", "pte:", "pmd:", "mm:", "addr:", "val:", "Comm:", "Pid:"];
    let mut out: Vec<&str> = Vec::new();
    let mut is_name = false;
    for word in title.split_whitespace() {
        let bare = word.trim_end_matches([',', ':', '!', '.', ';']);
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // "kworker/u8:1/44", "fsx/44/0x00000002"
        let in_atomic = bare.rsplit_once("/0x").filter(|(task, _)| !task.contains("+0x"));
        let task = in_atomic.map_or(bare, |(task, _)| task);
        let is_task = task.rsplit_once('/').is_some_and(|(_, pid)| number(pid));
        // "[fsx:44]", "kworker/0:1[44]"
        let inner = bare.strip_suffix(']').and_then(|text| text.rsplit_once(['[', ':']));
        let is_task = is_task || inner.is_some_and(|(_, pid)| number(pid));
        let is_detail = OF_ONE_PAGE.iter().any(|w| bare.len() > w.len() && bare.starts_with(w));
        out.push(if is_name || is_task || is_detail { "#" } else { word });
        is_name = BEFORE_NAME.contains(&word);
    }
    out.join(" ")
}

fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in without_addresses(text).chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out
}

/// `WARNING: CPU: 1 PID: 77 at fs/a.c:12 f+0x1/0x2` and, from 6.18 on,
/// `WARNING: fs/a.c:12 at f+0x1/0x2, CPU#1: fsx/77`.
fn without_places(title: &str) -> String {
    let mut title = title.to_owned();
    if let Some((place, rest)) = title.split_once(", CPU#") {
        // What it is about stands behind.
        title = format!("{place}{}", rest.find(" (").map_or("", |at| &rest[at..]));
    }
    let mut out: Vec<&str> = Vec::new();
    let mut words = title.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "CPU:" | "PID:" => {
                words.next();
            }
            word => out.push(if is_address(word) { "#" } else { word }),
        }
    }
    out.join(" ")
}

fn without_addresses(text: &str) -> String {
    let is_number = |word: &str| is_address(word) || word.starts_with("0x");
    let words = text.split_whitespace().map(|word| if is_number(word) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn is_address(word: &str) -> bool {
    let digits = word.trim_end_matches([',', ']', '.']);
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The function in which a task waits, of a line of its trace: what every wait goes through is not
/// told.
fn waits_in(line: &str) -> Option<String> {
    let (before, rest) = line.split_once("+0x")?;
    let function = before.split_whitespace().last()?;
    let is_sure = !before.contains('?') && rest.contains("/0x");
    (is_sure && !function.contains("schedule")).then(|| function.to_owned())
}

/// The lock of `ffff888012345678 (&ip->i_lock){++++}-{4:4}, at: xfs_ilock+0x1/0x2`.
fn lock(line: &str) -> Option<String> {
    let (before, _) = line.split_once("){")?;
    let (_, name) = before.split_once('(')?;
    Some(name.to_owned())
}

/// The function of `RIP: 0010:xfs_foo+0x12/0x34 [xfs]`.
fn rip(line: &str) -> Option<String> {
    let (_, place) = line.split_once("RIP: ")?;
    let (_, function) = place.split_once(':')?;
    function.contains("+0x").then(|| function.split_whitespace().next().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splat(kind: Kind, lines: &[&str]) -> Splat {
        let lines: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
        Splat { kind, title: lines[0].clone(), lines }
    }

    #[test]
    fn the_same_complaint_elsewhere_is_the_same() {
        let old = |cpu: u32, pid: u32, line: u32| {
            let text = format!(
                "WARNING: CPU: {cpu} PID: {pid} at fs/iomap/buffered-io.c:{line} f+0x1c4/0x2a0"
            );
            splat(Kind::Warning, &[&text]).signature()
        };
        assert_eq!(old(0, 71, 9), old(1, 4_093, 9));
        assert_ne!(old(0, 71, 9), old(0, 71, 10));
        let new = |place: &str| {
            let text = format!("WARNING: fs/iomap/buffered-io.c:9 at f+0x1c4/0x2a0, {place}");
            splat(Kind::Warning, &[&text]).signature()
        };
        assert_eq!(new("CPU#0: fsx/71"), new("CPU#1: kworker/u8:3/4093"));
        let hung = |task: &str, seconds: u32, f: &str| {
            let text = format!("INFO: task {task} blocked for more than {seconds} seconds.");
            let f = format!("[  1.0]  {f}+0xe4/0x1e0");
            let trace = [&text, "[  1.0]  ? f+0x1/0x2", "[  1.0]  io_schedule+0x1/0x2", &f];
            splat(Kind::Hung, &trace).signature()
        };
        assert_eq!(hung("fsx:71", 120, "down_write"), hung("kworker/u8:2:4093", 241, "down_write"));
        assert_ne!(hung("fsx:71", 120, "down_write"), hung("fsx:71", 120, "iomap_dio_rw"));
    }

    #[test]
    fn whoever_it_happens_to_it_is_the_same() {
        for (kind, one, other) in [
            (
                Kind::Bug,
                "BUG: Bad page state in process fsx  pfn:12345",
                "BUG: Bad page state in process agent  pfn:ab",
            ),
            (
                Kind::Bug,
                "BUG: scheduling while atomic: fsx/7/0x00000002",
                "BUG: scheduling while atomic: kworker/0:1/44/0x00000002",
            ),
            (
                Kind::Bug,
                "BUG: using smp_processor_id() in preemptible [00000000] code: fsx/7",
                "BUG: using smp_processor_id() in preemptible [00000001] code: kworker/u8:2/44",
            ),
            (
                Kind::FileSystem,
                "EXT4-fs error (device vda): ext4_lookup:1787: inode #12: comm ls: checksum invalid",
                "EXT4-fs error (device vda): ext4_lookup:1787: inode #13: comm fsx: checksum invalid",
            ),
            (
                Kind::FileSystem,
                "XFS (vda): page discard on page 00000000a1b2c3d4, inode 0x83, pos 4096.",
                "XFS (vda): page discard on page 00000000ffb2c3d4, inode 0x8a, pos 8192.",
            ),
            (
                Kind::Time,
                "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [mkfs.xfs:80]",
                "watchdog: BUG: soft lockup - CPU#1 stuck for 27s! [agent:1]",
            ),
        ] {
            let (one, other) = (splat(kind, &[one]).signature(), splat(kind, &[other]).signature());
            assert_eq!(one, other);
        }
        let about = |about: &str| {
            let text = format!("WARNING: fs/a.c:9 at f+0x1/0x2, CPU#1: fsx/77 ({about})");
            splat(Kind::Warning, &[&text]).signature()
        };
        assert_ne!(about("refcount_t: underflow"), about("refcount_t: saturated"));
        let place = |place: &str| {
            splat(Kind::Warning, &[&format!("WARNING: {place} at f+0x1/0x2, CPU#1: x/1")])
                .signature()
        };
        assert_ne!(place("fs/a.c:9"), place("fs/a.c:10"));
    }

    #[test]
    fn what_has_the_same_title_is_told_apart_by_what_it_is_about() {
        let null = "BUG: kernel NULL pointer dereference, address: 0000000000000008";
        let other = "BUG: kernel NULL pointer dereference, address: 0000000000000fe0";
        let of = |title: &str, f: &str| {
            let rip = format!("RIP: 0010:{f}+0x12/0x80 [xfs]");
            splat(Kind::Bug, &[title, "#PF: supervisor read access in kernel mode", &rip])
                .signature()
        };
        assert_eq!(of(null, "xfs_a"), of(other, "xfs_a"));
        assert_ne!(of(null, "xfs_a"), of(null, "xfs_b"));
        let locks = |a: &str, b: &str| {
            let line = |l: &str| {
                format!("ffff88800f5c4d18 ({l}){{++++}}-{{4:4}}, at: xfs_ilock+0xb6/0x1a0")
            };
            let title = "WARNING: possible circular locking dependency detected";
            splat(Kind::Locking, &[title, &line(a), &line(b)]).signature()
        };
        assert_eq!(locks("&ip->i_lock", "sb_internal"), locks("&ip->i_lock", "sb_internal"));
        assert_ne!(locks("&ip->i_lock", "sb_internal"), locks("&ip->i_lock", "&mm->mmap_lock"));
    }
}

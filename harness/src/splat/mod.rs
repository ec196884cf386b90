//! What a guest's kernel complains about: WARN, BUG and oops, lockdep, the sanitizers, tasks that
//! hang, file systems and disks that report an error.
//!
//! - [`scan`]: finds complaints in a log, each with all that belongs to it.
//! - [`harmless`]: what is a complaint, and no finding; with the reason.
//! - [`decode`]: functions of a trace become lines of source, where the kernel's symbols are there.
//! - [`desk`]: complaints of a run become findings, each different one once.
//!
//! A guest is killed at the cut, so its log is what reached the serial console.

mod decode;
mod desk;
mod harmless;
mod scan;

pub use decode::Symbols;
pub use desk::{Desk, Guest};
pub use harmless::{Around, Harmless, harmless};
pub use scan::find;

use std::path::PathBuf;

/// What kind of complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        let mut parts = vec![match self.kind {
            Kind::Hung | Kind::FileSystem | Kind::Io | Kind::Time => without_numbers(&self.title),
            _ => without_places(&self.title),
        }];
        match self.kind {
            // All of them have the same title: which locks they are tells them apart.
            Kind::Locking => parts.extend(self.lines.iter().filter_map(|l| lock(l)).take(2)),
            // The title says an address at most.
            Kind::Bug => parts.extend(self.lines.iter().find_map(|l| rip(l))),
            _ => {}
        }
        parts.join(" | ")
    }
}

fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
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
    let title = title.split(", CPU#").next().unwrap_or(title);
    let mut out: Vec<&str> = Vec::new();
    let mut words = title.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "CPU:" | "PID:" => {
                words.next();
            }
            word => {
                let digits = word.trim_end_matches([',', ']', '.']);
                let digits = digits.strip_prefix("0x").unwrap_or(digits);
                let is_address = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
                out.push(if is_address { "#" } else { word });
            }
        }
    }
    out.join(" ")
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
        let hung = |task: &str, seconds: u32| {
            let text = format!("INFO: task {task} blocked for more than {seconds} seconds.");
            splat(Kind::Hung, &[&text]).signature()
        };
        assert_eq!(hung("fsx:71", 120), hung("fsx:4093", 241));
        assert_ne!(hung("fsx:71", 120), hung("umount:71", 120));
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

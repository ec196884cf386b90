//! Finds complaints in a kernel's log.
//!
//! A complaint begins with a line of its kind, a rule (`====`) above one, or a "cut here". Where it
//! ends is told by its own last line; a log that broke off in the middle of it ends it, too.

use super::{Kind, Splat};

const CUT_HERE: &str = "------------[ cut here ]------------";
/// Of a trace, and of a panic.
const END_TRACE: &str = "---[ end ";
const END_TASK: &str = "</TASK>";
const PANIC: &str = "Kernel panic - not syncing";
/// The agent writes to the kernel's log, too, and quotes it.
const AGENT: &str = "tornblk-agent:";

/// More lines has no complaint: with lockdep's chains some hundred.
const LONGEST: usize = 400;

/// How a message of each kind begins.
const BEGINS: &[(&str, Kind)] = &[
    ("WARNING: possible ", Kind::Locking),
    ("WARNING: suspicious RCU usage", Kind::Locking),
    ("WARNING: bad unlock balance", Kind::Locking),
    ("WARNING: held lock freed", Kind::Locking),
    ("WARNING: lock held when returning to user space", Kind::Locking),
    ("WARNING: Nested lock was not taken", Kind::Locking),
    ("WARNING: inconsistent lock state", Kind::Locking),
    ("WARNING: HARDIRQ-", Kind::Locking),
    ("WARNING: SOFTIRQ-", Kind::Locking),
    ("INFO: possible ", Kind::Locking),
    ("INFO: trying to register non-static key", Kind::Locking),
    ("INFO: suspicious RCU usage", Kind::Locking),
    ("BUG: Invalid wait context", Kind::Locking),
    ("BUG: KASAN", Kind::Sanitizer),
    ("BUG: KCSAN", Kind::Sanitizer),
    ("BUG: KMSAN", Kind::Sanitizer),
    ("BUG: KFENCE", Kind::Sanitizer),
    ("KASAN: ", Kind::Sanitizer),
    ("UBSAN: ", Kind::Sanitizer),
    ("BUG: soft lockup", Kind::Time),
    ("BUG: workqueue lockup", Kind::Time),
    ("watchdog: BUG: soft lockup", Kind::Time),
    ("rcu: INFO: ", Kind::Time),
    ("INFO: rcu_", Kind::Time),
    ("INFO: NMI handler", Kind::Time),
    ("clocksource: ", Kind::Time),
    ("WARNING: ", Kind::Warning),
    ("BUG: ", Kind::Bug),
    ("kernel BUG at ", Kind::Bug),
    ("Oops: ", Kind::Bug),
    ("general protection fault", Kind::Bug),
    ("usercopy: Kernel memory ", Kind::Bug),
    ("watchdog: Watchdog detected hard LOCKUP", Kind::Bug),
    ("PANIC: ", Kind::Bug),
    (PANIC, Kind::Bug),
    ("INFO: task ", Kind::Hung),
    ("EXT4-fs error", Kind::FileSystem),
    ("EXT4-fs warning", Kind::FileSystem),
    ("BTRFS error", Kind::FileSystem),
    ("BTRFS critical", Kind::FileSystem),
    ("Aborting journal on device", Kind::FileSystem),
    ("XFS: Assertion failed", Kind::FileSystem),
    ("Buffer I/O error on dev", Kind::Io),
];

/// Messages of these file systems that have one of the words.
const WORDS: &[(&str, &[&str])] = &[
    (
        "XFS (",
        &[
            "Corruption",
            "corruption",
            "Internal error",
            "page discard",
            "hut down",
            "hutting down",
            "hutdown",
            "failed",
            "Failed",
            "I/O error",
            "Assertion",
            "Unmount and run xfs_repair",
        ],
    ),
    ("EXT4-fs (", &["error", "failed", "corrupt", "Remounting filesystem read-only"]),
    ("JBD2: ", &["error", "failed", "Error"]),
    ("fuse: ", &["bad"]),
];

/// Complaints, in the order in which they came.
pub fn find(log: &str) -> Vec<Splat> {
    let lines: Vec<&str> = log.lines().map(|l| l.trim_end_matches('\r')).collect();
    let mut splats: Vec<Splat> = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some((kind, title, end)) = begin(&lines, at) else {
            at += 1;
            continue;
        };
        let text = lines[at..end].iter().map(|l| (*l).to_owned());
        at = end;
        match splats.last_mut() {
            // It is how the one before ended.
            Some(last) if title.starts_with(PANIC) && last.kind == Kind::Bug => {
                last.lines.extend(text)
            }
            _ => splats.push(Splat { kind, title, lines: text.collect() }),
        }
    }
    splats
}

/// The complaint that begins at this line: its kind, its title and the line after it.
fn begin(lines: &[&str], at: usize) -> Option<(Kind, String, usize)> {
    let message = message(lines[at]);
    if message == CUT_HERE {
        return Some(cut_here(lines, at));
    }
    if is_rule(message) {
        // Only with something to begin: rules close what they opened, too.
        let next = message_at(lines, at + 1)?;
        let title = next.trim_matches(['[', ']', ' ']);
        // Beneath a rule, what is not a sanitizer's is lockdep's, whatever word it begins with.
        let kind = match kind_of(title)? {
            Kind::Bug | Kind::Warning => Kind::Locking,
            kind => kind,
        };
        return Some((kind, title.to_owned(), end(lines, at + 1, kind, true)));
    }
    let kind = kind_of(message)?;
    Some((kind, message.to_owned(), end(lines, at, kind, false)))
}

/// From a "cut here" to its end trace. What it is about may stand in a line of its own before the
/// one with the place.
fn cut_here(lines: &[&str], at: usize) -> (Kind, String, usize) {
    let limit = lines.len().min(at + LONGEST);
    let mut stop = limit;
    for (i, line) in lines.iter().enumerate().take(limit).skip(at + 1) {
        if message(line).starts_with(END_TRACE) {
            stop = i + 1;
            break;
        }
        if message(line) == CUT_HERE {
            stop = i;
            break;
        }
    }
    let body: Vec<&str> = lines[at + 1..stop].iter().map(|l| message(l)).collect();
    let main = body.iter().take(8).position(|l| kind_of(l).is_some_and(|k| k <= Kind::Sanitizer));
    let (kind, title) = match main {
        Some(i) => {
            let kind = kind_of(body[i]).unwrap_or(Kind::Warning);
            let said = body[..i].iter().map(|l| l.trim()).filter(|l| !l.is_empty());
            let said: Vec<&str> = said.collect();
            let about =
                if said.is_empty() { String::new() } else { format!(" ({})", said.join(" ")) };
            (kind, format!("{}{about}", body[i]))
        }
        None => (Kind::Warning, body.first().map_or(CUT_HERE, |l| *l).to_owned()),
    };
    (kind, title, stop)
}

/// The line after a complaint that has no "cut here".
fn end(lines: &[&str], at: usize, kind: Kind, ruled: bool) -> usize {
    let last = match kind {
        // One line each; what follows says so itself.
        Kind::FileSystem | Kind::Io | Kind::Time => return at + 1,
        Kind::Bug => END_TRACE,
        _ => END_TASK,
    };
    let limit = lines.len().min(at + LONGEST);
    let mut in_trace = false;
    for (i, line) in lines.iter().enumerate().take(limit).skip(at + 1) {
        let message = message(line);
        // Sanitizers' reports have several traces, and a rule at the end.
        let closed = match (kind, ruled) {
            (Kind::Sanitizer, true) => is_rule(message),
            _ => message.trim_start().starts_with(last),
        };
        if closed {
            return i + 1;
        }
        if message == CUT_HERE {
            return i;
        }
        in_trace |= message.starts_with("Call Trace:");
        let goes_on = match kind {
            // Before their trace they say all kinds of things, but no other complaint.
            Kind::Locking if is_rule(message) => false,
            Kind::Locking => kind_of(message).is_none() && (!in_trace || is_dump(message)),
            _ => ruled || is_dump(message) || kind_of(message).is_some(),
        };
        if !goes_on {
            return i;
        }
    }
    limit
}

/// Is it of the kind of lines that follow a complaint?
fn is_dump(message: &str) -> bool {
    const WORDS: &[&str] = &[
        "CPU:",
        "RIP:",
        "RSP:",
        "RAX:",
        "RDX:",
        "RBP:",
        "R10:",
        "R13:",
        "FS:",
        "CS:",
        "CR2:",
        "DR0:",
        "DR3:",
        "PKRU:",
        "Code:",
        "Call Trace:",
        "Modules linked in:",
        "Hardware name:",
        "Tainted:",
        "Workqueue:",
        "PGD ",
        "#PF:",
        "Oops:",
        "EFLAGS:",
        "task:",
        "in_atomic():",
        "preempt_count:",
        "RCU nest depth:",
        "Preemption disabled at:",
        "INFO: lockdep is turned off.",
        "irq event stamp:",
        "hardirqs last ",
        "softirqs last ",
        "[<",
        "flags:",
        "raw:",
        "head:",
        "aops:",
        "memcg:",
        "page",
    ];
    message.is_empty()
        || message.starts_with([' ', '\t', '"'])
        || WORDS.iter().any(|w| message.starts_with(w))
        || message.contains("+0x")
        || message.contains(" held by ")
        || message.starts_with("---[")
}

fn kind_of(message: &str) -> Option<Kind> {
    if message.starts_with(AGENT) {
        return None;
    }
    let begins = BEGINS.iter().find(|(start, _)| message.starts_with(start));
    if let Some((_, kind)) = begins {
        return match kind {
            Kind::Time if message.starts_with("clocksource: ") => {
                message.contains("unstable").then_some(Kind::Time)
            }
            Kind::Hung => message.contains(" blocked ").then_some(Kind::Hung),
            kind => Some(*kind),
        };
    }
    if is_failed_request(message) {
        return Some(Kind::Io);
    }
    let words = WORDS.iter().find(|(start, _)| message.starts_with(start));
    if words.is_some_and(|(_, words)| words.iter().any(|w| message.contains(w))) {
        return Some(Kind::FileSystem);
    }
    // "invalid opcode: 0000 [#1] PREEMPT SMP"
    let oops = message.split_once(" [#").is_some_and(|(_, rest)| {
        rest.split_once(']').is_some_and(|(n, _)| n.parse::<u32>().is_ok())
    });
    oops.then_some(Kind::Bug)
}

/// "timeout error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2", and what
/// becomes of it: "vda: writeback error on inode 131, offset 0, sector 8".
fn is_failed_request(message: &str) -> bool {
    let error = message.split_once(" error, dev ").filter(|(_, rest)| rest.contains(", sector "));
    // What a disk cannot do is asked of it, and then done otherwise.
    error.is_some_and(|(what, _)| !what.ends_with("operation not supported"))
        || message.contains(": writeback error on inode ")
}

fn is_rule(message: &str) -> bool {
    message.len() >= 20 && message.bytes().all(|b| b == b'=')
}

fn message_at<'a>(lines: &[&'a str], at: usize) -> Option<&'a str> {
    lines.get(at).map(|line| message(line))
}

/// Without the time, and without who said it where that is told: `[    1.234567][    T1] `.
pub(super) fn message(line: &str) -> &str {
    let mut rest = line;
    while let Some(inner) = rest.strip_prefix('[') {
        let Some((stamp, after)) = inner.split_once(']') else { break };
        let stamp = stamp.trim_start();
        let is_time = stamp.contains('.') && stamp.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let is_caller = stamp
            .strip_prefix(['T', 'C'])
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !is_time && !is_caller {
            break;
        }
        rest = after;
    }
    if rest.len() == line.len() { line } else { rest.strip_prefix(' ').unwrap_or(rest) }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;

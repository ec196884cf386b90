//! Writes that describe themselves, and reading them back.
//!
//! - [`plan`]: which thread writes what, from the seed alone.
//! - [`prepare`]: files and ranges as they shall be before the first write.
//! - [`probe`]: whether the kernel and the file system take such writes at all.
//! - [`mod@write`]: one write after the other; marks; [`ring`]: several in flight; [`commit`]: by a
//!   protocol of several calls.
//! - [`readback`]: what is there afterwards.
//! - [`refusals`]: atomic writes that no kernel may take.
//!
//! Order is what a workload is about: an intent is recorded before its system call starts, a done
//! mark follows its return, and a sync covers what was recorded as done before it began.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::outbox::Outbox;
use super::{Error, Result};
use crate::channel::{MarkText, Prepare, Target, Workload, WriteFlags, Written};
use crate::planted::FLAGS;

pub mod buffer;
pub mod commit;
pub mod plan;
pub mod prepare;
pub mod probe;
pub mod readback;
pub mod refusals;
pub mod ring;
pub mod write;

/// `RWF_ATOMIC` of `linux/fs.h` (Linux 6.11).
const RWF_ATOMIC: u32 = 0x40;

/// Of one target; each thread has `depth` units in memory.
const MAX_THREADS: u32 = 256;
const MAX_DEPTH: u32 = 1024;

/// Runs a workload to its end.
pub fn run(workload: &Workload, outbox: &Outbox) -> Result<Written> {
    check(workload)?;
    if workload.files.iter().any(by_ring) {
        ring::probe()?;
    }
    if workload.files.iter().any(|t| t.planted.is_some()) {
        commit::probe()?;
    }
    for target in &workload.files {
        probe::probe(target)?;
    }
    for target in &workload.files {
        prepare::prepare(target, workload)?;
    }
    // Opened after that: a file system may say only then what it takes.
    let opened = workload.files.iter().map(Opened::new).collect::<Result<Vec<_>>>()?;
    phase(outbox, "load-done")?;
    let shared =
        Shared { workload, outbox, written: Mutex::default(), give_up: AtomicBool::new(false) };
    let outcome = std::thread::scope(|scope| {
        let threads: Vec<_> = plan::plans(workload)
            .into_iter()
            .map(|plan| {
                let (shared, opened) = (&shared, &opened[plan.target]);
                scope.spawn(move || {
                    let target = &shared.workload.files[plan.target];
                    let outcome = match target.planted {
                        Some(planted) => commit::run(shared, target, planted, opened, plan),
                        None if by_ring(target) => ring::run(shared, target, opened, plan),
                        None => write::run(shared, target, opened, plan),
                    };
                    if outcome.is_err() {
                        shared.give_up.store(true, Ordering::Relaxed);
                    }
                    outcome
                })
            })
            .collect();
        let mut first = Ok(());
        for thread in threads {
            let outcome = thread.join().unwrap_or_else(|_| {
                Err(Error::Refused("a writer panicked; the console has its words".into()))
            });
            first = first.and(outcome);
        }
        first
    });
    if !outbox.is_stopped() {
        // The last marks too are recorded before the answer.
        phase(outbox, "writes-done")?;
    }
    outcome?;
    if outbox.is_stopped() {
        return Err(Error::Refused("the host has stopped the workload".into()));
    }
    Ok(shared.written.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Is it written through io_uring?
fn by_ring(target: &Target) -> bool {
    target.depth > 1 || target.named
}

fn phase(outbox: &Outbox, name: &str) -> Result<()> {
    let batch = outbox.mark(vec![MarkText::Phase { name: name.into() }]);
    outbox.wait(batch)
}

/// What the threads of a workload share.
#[derive(Debug)]
pub struct Shared<'a> {
    pub workload: &'a Workload,
    pub outbox: &'a Outbox,
    written: Mutex<Written>,
    /// A thread met an error that ends the workload.
    give_up: AtomicBool,
}

impl Shared<'_> {
    /// Whether to ask for no more writes.
    pub fn is_over(&self) -> bool {
        self.give_up.load(Ordering::Relaxed) || self.outbox.is_stopped()
    }

    fn count(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A target's descriptors, one for each way it is written. Those that no flags ask for are not
/// opened.
#[derive(Debug)]
pub struct Opened {
    buffered: Option<File>,
    direct: Option<File>,
}

impl Opened {
    fn new(target: &Target) -> Result<Opened> {
        let open = |direct| {
            let wanted = target.flags.iter().any(|flags| flags.direct == direct);
            wanted.then(|| open(target, direct)).transpose()
        };
        Ok(Opened { buffered: open(false)?, direct: open(true)? })
    }

    pub fn file(&self, flags: WriteFlags) -> Result<&File> {
        let file = if flags.direct { &self.direct } else { &self.buffered };
        file.as_ref().ok_or_else(|| Error::Refused("a write has flags of no target".into()))
    }
}

/// Opens a target for writing; makes a file that is missing, but no device.
fn open(target: &Target, direct: bool) -> Result<File> {
    let path = &target.path;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(!path.starts_with("/dev/"))
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(errno @ (libc::EINVAL | libc::EOPNOTSUPP)) if direct => Error::Unsupported(
                format!("opening {path} with O_DIRECT: {}", super::explain(errno)),
            ),
            _ => Error::system(format!("cannot open {path} for writing"))(e),
        })
}

fn is_block_device(file: &File) -> Result<bool> {
    let meta = file.metadata().map_err(Error::system("cannot stat a target"))?;
    Ok(meta.file_type().is_block_device())
}

/// The flags of pwritev2(2), and of io_uring.
pub fn rwf(flags: WriteFlags, skip_sync: bool) -> u32 {
    let dsync = if flags.dsync && !skip_sync { libc::RWF_DSYNC as u32 } else { 0 };
    dsync | if flags.atomic { RWF_ATOMIC } else { 0 }
}

/// How a write is asked for, in words.
pub fn describe(flags: WriteFlags) -> String {
    let mut words = vec![];
    if flags.atomic {
        words.push("RWF_ATOMIC");
    }
    if flags.dsync {
        words.push("RWF_DSYNC");
    }
    words.push(if flags.direct { "O_DIRECT" } else { "buffered" });
    words.join(" | ")
}

/// Refuses what cannot be meant.
pub fn check(workload: &Workload) -> Result<()> {
    let refuse = |text: String| Err(Error::Refused(text));
    if workload.files.is_empty() {
        return refuse("the workload has no targets".into());
    }
    let mut numbers = HashSet::new();
    for t in &workload.files {
        let (path, unit) = (&t.path, t.unit);
        if !unit.is_power_of_two() || !(512..=65536).contains(&unit) {
            return refuse(format!(
                "{path}: a unit of {unit} bytes is no power of two from 512 bytes to 64 KiB"
            ));
        }
        if !t.offset.is_multiple_of(unit.into()) {
            return refuse(format!(
                "{path}: offset {} is no multiple of the unit, {unit}",
                t.offset
            ));
        }
        // Units and slots: each fewer bytes than 2^32 times 2^17.
        if t.offset.checked_add(1 << 51).is_none_or(|end| end > i64::MAX as u64) {
            return refuse(format!("{path}: offset {} is too large", t.offset));
        }
        if t.threads == 0 || t.threads > t.units.min(MAX_THREADS) {
            return refuse(format!(
                "{path}: {} threads cannot share {} units; there can be {MAX_THREADS} at most",
                t.threads, t.units
            ));
        }
        if !(1..=MAX_DEPTH).contains(&t.depth) {
            return refuse(format!("{path}: depth {} is not within 1 to {MAX_DEPTH}", t.depth));
        }
        if t.flags.is_empty() {
            return refuse(format!("{path}: no flags to write with"));
        }
        if t.buffer_offset >= 4096 || !t.buffer_offset.is_multiple_of(512) {
            return refuse(format!(
                "{path}: a buffer offset of {} is no multiple of 512 below 4096",
                t.buffer_offset
            ));
        }
        if t.flags.iter().any(|flags| (t.planted.is_some()) != (*flags == FLAGS)) {
            return refuse(format!(
                "{path}: the flags of a protocol of several calls, and no others, go with one"
            ));
        }
        if t.planted.is_some()
            && (t.depth > 1 || !matches!(t.prepare, Prepare::AsIs | Prepare::Written))
        {
            return refuse(format!(
                "{path}: commits by a protocol are made one by one (depth 1), in a range that is \
                 as-is or written"
            ));
        }
        if !numbers.insert(t.file) {
            return refuse(format!("two targets have the number {}", t.file));
        }
    }
    for (i, a) in workload.files.iter().enumerate() {
        for b in &workload.files[i + 1..] {
            let (a_end, b_end) = (a.end(), b.end());
            if a.path == b.path && a.offset < b_end && b.offset < a_end {
                return refuse(format!("targets {} and {} overlap in {}", a.file, b.file, a.path));
            }
        }
    }
    Ok(())
}

//! What the guest's kernel knows of the disk's atomic limits: told, shown, and kept to.
//!
//! virtio-blk has no way to tell them, so a module of the guest's reads them from the disk's
//! configuration space; SCSI's driver asks by itself. Then sysfs and statx(2) must say what the
//! device says, and what goes beyond must be refused, without a trace.

use super::Lab;
use super::RunError;
use super::volume::{Guest, SHORT, Volume};
use crate::oracle::{Clause, Finding};
use crate::suite::{Atomic, Lane, MOUNT};
use crate::vm::FrontEnd;
use serde_json::Value;
use tornblk_agent::channel::{AtomicLimits, Command, Refusal, RefusalCase};
use tornblk_model::crash::Profile;

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    Looked {
        /// What is not as the device says; empty: all is.
        findings: Vec<Finding>,
        /// What the kernel says that it takes.
        statx: AtomicLimits,
    },
    /// This kernel or file system knows no such limits: its own answer.
    Unsupported(String),
}

/// Why limits cannot be shown.
#[derive(Debug)]
pub(super) enum NotShown {
    Unsupported(String),
    Failed(RunError),
}

impl From<RunError> for NotShown {
    fn from(error: RunError) -> NotShown {
        NotShown::Failed(error)
    }
}

impl From<NotShown> for RunError {
    fn from(error: NotShown) -> RunError {
        match error {
            NotShown::Failed(error) => error,
            NotShown::Unsupported(text) => RunError::Guest(text),
        }
    }
}

impl NotShown {
    /// Unsupported is no error.
    pub(super) fn unsupported(self) -> Result<Shown, RunError> {
        match self {
            NotShown::Unsupported(text) => Ok(Shown::Unsupported(text)),
            NotShown::Failed(error) => Err(error),
        }
    }
}

/// In bytes; as in Linux `queue/atomic_write_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queue {
    unit_min: u64,
    unit_max: u64,
    max_bytes: u64,
    boundary: u64,
}

impl Queue {
    const FILES: [&str; 4] = [
        "atomic_write_unit_min_bytes",
        "atomic_write_unit_max_bytes",
        "atomic_write_max_bytes",
        "atomic_write_boundary_bytes",
    ];

    /// `None`: the kernel has no such files.
    fn read(disk: &Value) -> Option<Queue> {
        let [unit_min, unit_max, max_bytes, boundary] =
            Queue::FILES.map(|file| disk["queue"][file].as_u64());
        Some(Queue {
            unit_min: unit_min?,
            unit_max: unit_max?,
            max_bytes: max_bytes?,
            boundary: boundary?,
        })
    }

    /// What a kernel must show of a disk of this profile.
    fn of(profile: &Profile, front_end: FrontEnd, lb_size: u32) -> Queue {
        let all = Queue {
            unit_min: profile.unit_min.max(lb_size.into()),
            unit_max: profile.unit_max,
            max_bytes: profile.max_bytes,
            boundary: profile.boundary,
        };
        match front_end {
            FrontEnd::BlkFull => all,
            // One byte has no room for more; the boundary is a parameter of the module.
            FrontEnd::Blk => Queue { max_bytes: all.unit_max, ..all },
            // Linux has no boundary for SCSI's: it sends one with each write.
            FrontEnd::Scsi => Queue { boundary: 0, ..all },
        }
    }

    fn values(self) -> [u64; 4] {
        [self.unit_min, self.unit_max, self.max_bytes, self.boundary]
    }
}

/// Tells the guest's kernel, where its driver does not ask.
pub(super) fn show(
    guest: &mut Guest<'_>,
    lab: &mut dyn Lab,
    volume: &Volume,
) -> Result<(), NotShown> {
    if volume.front_end == FrontEnd::Scsi {
        return Ok(());
    }
    if Queue::read(&guest.describe()?).is_none() {
        return Err(NotShown::Unsupported(no_files()));
    }
    // The host's or the image's fault, not the kernel's.
    let module = lab.guest_module().map_err(RunError::Guest)?;
    let load = telling(volume, &guest.device, module)?;
    guest.ask(TELLING, load, SHORT)?;
    Ok(())
}

/// What [`telling`] does.
pub(super) const TELLING: &str = "telling the kernel the disk's atomic limits";

/// Tells a guest's kernel the limits of a virtio-blk disk.
pub(super) fn telling(volume: &Volume, device: &str, path: String) -> Result<Command, RunError> {
    let disk = device.strip_prefix("/dev/").unwrap_or(device);
    let params = format!("boundary={} disk={disk}", parse(volume)?.boundary);
    Ok(Command::LoadModule { path, params })
}

fn no_files() -> String {
    format!("this kernel knows no atomic limits of disks: there is no queue/{}", Queue::FILES[0])
}

fn parse(volume: &Volume) -> Result<Profile, RunError> {
    volume.profile.parse().map_err(|e| RunError::Bad(format!("{e}")))
}

/// Looks at everything that the kernel says of them, and tries to go beyond.
pub(super) fn look(
    guest: &mut Guest<'_>,
    lane: &Lane,
    volume: &Volume,
    atomic: &Atomic,
) -> Result<Shown, RunError> {
    let Some(queue) = Queue::read(&guest.describe()?) else {
        return Ok(Shown::Unsupported(no_files()));
    };
    let expected = Queue::of(&parse(volume)?, volume.front_end, volume.logical_block_size);
    let mut findings = Vec::new();
    if queue != expected {
        findings.push(about(&guest.device, Clause::Limits, otherwise(queue, expected)));
        if queue.unit_max == 0 {
            // Nothing to go beyond.
            return Ok(Shown::Looked { findings, statx: AtomicLimits::default() });
        }
    }
    let (path, refused) = match (lane.is_raw(), lane.partition) {
        (true, 0) => (guest.device.clone(), guest.device.clone()),
        (true, _) => (format!("{}1", guest.device), format!("{}1", guest.device)),
        (false, _) => {
            let path = format!("{MOUNT}/.limits");
            let argv = ["touch".to_owned(), path.clone()].to_vec();
            guest.ask("making a file", Command::Exec { argv, timeout_ms: 30_000 }, SHORT)?;
            (path, format!("{MOUNT}/.refused"))
        }
    };
    let stat = Command::StatAtomic { path: path.clone() };
    let stat = guest.ask("statx", stat, SHORT)?;
    let stat: AtomicLimits = understood(stat)?;
    if !lane.is_raw() && stat.unit_max == 0 {
        return Ok(Shown::Unsupported(format!(
            "{} on this kernel has no atomic writes: statx of a file says unit_max 0, on a disk whose \
             unit_max is {}",
            volume.fstype, queue.unit_max
        )));
    }
    let wanted = wanted(atomic, &queue);
    findings.extend(statx_finding(&path, &stat, &wanted));
    if stat.unit_max > 0 {
        let ask = Command::AtomicRefusals {
            path: refused.clone(),
            offset: scratch(lane, &stat),
            limits: stat.clone(),
            block: volume.logical_block_size,
        };
        let answers = guest.ask("writes that must be refused", ask, SHORT)?;
        let answers: Vec<Refusal> = understood(answers)?;
        findings.extend(answers.iter().filter_map(|answer| refusal_finding(&refused, answer)));
    }
    Ok(Shown::Looked { findings, statx: stat })
}

/// What statx must say: what the suite does, or what the disk itself does.
fn wanted(atomic: &Atomic, queue: &Queue) -> AtomicLimits {
    let disk = queue.unit_max as u32;
    match &atomic.statx {
        Some(statx) => AtomicLimits {
            unit_min: statx.unit_min,
            unit_max: statx.unit_max.of(disk),
            unit_max_opt: statx.unit_max_opt.map_or(0, |bound| bound.of(disk)),
            ..AtomicLimits::default()
        },
        None => AtomicLimits {
            unit_min: queue.unit_min as u32,
            unit_max: disk,
            ..AtomicLimits::default()
        },
    }
}

/// Where a raw disk's or partition's targets never are: its end.
fn scratch(lane: &Lane, limits: &AtomicLimits) -> u64 {
    if !lane.is_raw() {
        return 0;
    }
    let unit = 2 * u64::from(limits.unit_max);
    let end = (lane.capacity - lane.partition) / unit * unit;
    end.saturating_sub(limits.refusal_bytes())
}

fn understood<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, RunError> {
    serde_json::from_value(value)
        .map_err(|e| RunError::Guest(format!("what the guest answered is not understood: {e}")))
}

fn about(path: &str, clause: Clause, text: String) -> Finding {
    Finding { path: path.to_owned(), ..Finding::new(clause, text) }
}

fn otherwise(queue: Queue, expected: Queue) -> String {
    let differ = Queue::FILES.iter().zip(queue.values().into_iter().zip(expected.values()));
    let differ: Vec<String> = differ
        .filter(|(_, (shown, wanted))| shown != wanted)
        .map(|(file, (shown, wanted))| format!("queue/{file} is {shown} and not {wanted}"))
        .collect();
    format!("the kernel shows other limits than the device has: {}", differ.join(", "))
}

fn statx_finding(path: &str, stat: &AtomicLimits, wanted: &AtomicLimits) -> Option<Finding> {
    let mut differ = Vec::new();
    for (name, shown, wanted) in [
        ("unit_min", stat.unit_min, wanted.unit_min),
        ("unit_max", stat.unit_max, wanted.unit_max),
        ("unit_max_opt", stat.unit_max_opt, wanted.unit_max_opt),
        ("segments_max", stat.segments_max, 1),
    ] {
        let looked_at = name != "unit_max_opt" || wanted > 0;
        if looked_at && shown != wanted {
            differ.push(format!("stx_atomic_write_{name} is {shown} and not {wanted}"));
        }
    }
    (!differ.is_empty()).then(|| {
        about(path, Clause::Limits, format!("statx shows other limits: {}", differ.join(", ")))
    })
}

/// EINVAL, or, of a write through the page cache, EOPNOTSUPP; such a one may be taken by kernels to
/// come, as long as nothing else is changed.
fn refusal_finding(path: &str, answer: &Refusal) -> Option<Finding> {
    let errno = (answer.result < 0).then_some(-answer.result);
    let einval = Some(i64::from(rustix::io::Errno::INVAL.raw_os_error()));
    let eopnotsupp = Some(i64::from(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
    let good = match answer.case {
        RefusalCase::Buffered => errno.is_none() || errno == einval || errno == eopnotsupp,
        _ => errno == einval,
    };
    let why = match answer.case {
        RefusalCase::Buffered => "goes through the page cache",
        RefusalCase::Misaligned => "is not aligned to its length",
        RefusalCase::TooLong => "is longer than unit_max",
        RefusalCase::TooShort => "is shorter than unit_min",
        RefusalCase::OddLength => "is no power of two long",
        RefusalCase::TwoBuffers => "is in more than one buffer",
    };
    let call = answer.call.clone();
    let text = match errno {
        None if !good => format!("a write that {why} was taken (it returned {})", answer.result),
        Some(errno) if !good => {
            let error = std::io::Error::from_raw_os_error(errno as i32);
            format!("a write that {why} was refused with {error}, not with EINVAL")
        }
        Some(_) if answer.changed => {
            format!("a write that {why} was refused, and changed the disk")
        }
        _ => return None,
    };
    Some(Finding { call, ..about(path, Clause::Accepted, text) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn disk(values: [u64; 4]) -> Value {
        let files = Queue::FILES.iter().zip(values).map(|(f, v)| ((*f).to_owned(), v.into()));
        json!({ "queue": files.collect::<serde_json::Map<_, _>>() })
    }

    #[test]
    fn each_front_end_can_show_what_it_can_tell() {
        let profile: Profile = "req64k+unit16k+b128k".parse().unwrap();
        let of = |front_end| Queue::of(&profile, front_end, 4096).values();
        assert_eq!(of(FrontEnd::BlkFull), [4096, 16384, 65536, 131_072]);
        assert_eq!(of(FrontEnd::Blk), [4096, 16384, 16384, 131_072]);
        assert_eq!(of(FrontEnd::Scsi), [4096, 16384, 65536, 0]);
    }

    #[test]
    fn a_kernel_without_the_files_is_told_from_one_that_shows_none() {
        assert_eq!(Queue::read(&json!({ "queue": { "nomerges": 0 } })), None);
        let none = Queue::read(&disk([0; 4])).unwrap();
        let expected = Queue::of(&"req64k".parse().unwrap(), FrontEnd::Blk, 512);
        let text = otherwise(none, expected);
        assert!(text.contains("queue/atomic_write_unit_max_bytes is 0 and not 65536"), "{text}");
        assert!(!text.contains("boundary"), "{text}");
    }

    #[test]
    fn statx_is_held_against_what_the_suite_says() {
        let limits = |unit_min, unit_max, unit_max_opt| AtomicLimits {
            unit_min,
            unit_max,
            unit_max_opt,
            segments_max: 1,
        };
        let wanted = limits(4096, 65536, 0);
        assert_eq!(statx_finding("f", &limits(4096, 65536, 7), &wanted), None);
        let finding = statx_finding("f", &limits(4096, 16384, 7), &wanted).unwrap();
        assert_eq!((finding.clause, finding.path.as_str()), (Clause::Limits, "f"));
        assert!(finding.text.contains("unit_max is 16384 and not 65536"), "{}", finding.text);
        let wanted = limits(4096, 65536, 16384);
        assert!(statx_finding("f", &limits(4096, 65536, 0), &wanted).is_some());
    }

    #[test]
    fn refusals_are_einval_and_leave_no_trace() {
        let answer = |case, result, changed| Refusal { case, call: "c".into(), result, changed };
        let said = |case, result, changed| {
            refusal_finding("/dev/vda", &answer(case, result, changed)).map(|f| f.text)
        };
        use RefusalCase::{Buffered, Misaligned, TooLong};
        assert_eq!(said(TooLong, -22, false), None);
        assert_eq!(said(Buffered, -95, false), None);
        assert_eq!(said(Buffered, -22, false), None);
        assert_eq!(said(Buffered, 4096, true), None, "a kernel to come may take it");
        assert!(said(TooLong, 131_072, true).unwrap().contains("was taken"));
        assert!(said(Misaligned, -95, false).unwrap().contains("not with EINVAL"));
        assert!(said(Misaligned, -22, true).unwrap().contains("changed the disk"));
        assert!(said(Buffered, -95, true).unwrap().contains("changed the disk"));
    }
}

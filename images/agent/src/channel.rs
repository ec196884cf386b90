//! The channel between the host and the agent: a virtio-serial port, one JSON object a line.
//!
//! The host sends [`ToGuest`], the agent [`ToHost`]. The agent says [`ToHost::Hello`] once it is
//! ready, and again on every [`ToGuest::Ping`] (a guest restored from a saved state has said its
//! first hello to a host that is gone). Commands run one at a time, except that
//! [`ToGuest::Acked`] is always taken.
//!
//! A mark is a promise about order: the host records it on the disk's own device and only then
//! acknowledges it, and the agent waits for that before it goes on. So an *intent* is on record
//! before its system call starts, and a *done* only after it returned.

use serde::{Deserialize, Serialize};

/// The virtio-serial port's name: `/dev/virtio-ports/<NAME>` in the guest.
pub const PORT: &str = "tornblk.agent";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to-guest", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToGuest {
    /// → [`ToHost::Hello`]
    Ping { id: u64 },
    /// Marks up to this number are recorded.
    Acked { mark: u64 },
    /// → [`ToHost::Ended`] with the command's own `result`.
    Run { id: u64, command: Command },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to-host", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToHost {
    Hello {
        id: Option<u64>,
        protocol: u32,
        kernel: String,
    },
    /// To be recorded; `marks` count up from 1 in each [`Command::Workload`].
    Mark {
        mark: u64,
        marks: Vec<MarkText>,
    },
    /// Something for the log and the progress line.
    Progress {
        text: String,
    },
    Ended {
        id: u64,
        result: Outcome,
    },
}

/// What a mark says: one line in the recording, made and read by [`MarkText::to_line`] and
/// [`MarkText::from_line`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "m", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MarkText {
    /// A write of generation `gen` to `unit` of `file` is about to be asked for.
    Intent { file: u32, unit: u64, r#gen: u32, offset: u64, len: u32, flags: WriteFlags },
    /// It returned: `result` is bytes or a negative errno.
    Done { file: u32, unit: u64, r#gen: u32, result: i64 },
    /// fsync or fdatasync of `file` returned `result`: what was done before it *began* must last.
    /// `since` is the number of the mark batch that was last acknowledged when it began.
    Synced { file: u32, since: u64, result: i64 },
    /// A phase of the workload begins.
    Phase { name: String },
}

/// How a write was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteFlags {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
    /// RWF_DSYNC, or a file opened with O_DSYNC.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dsync: bool,
}

impl MarkText {
    /// One line of JSON.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` for a mark that somebody else made.
    pub fn from_line(line: &str) -> Option<MarkText> {
        serde_json::from_str(line).ok()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    Ok {
        value: serde_json::Value,
    },
    /// A sentence, and the errno where there is one.
    Failed {
        message: String,
        errno: Option<i32>,
    },
    /// The kernel or the file system cannot do it: the probe's own answer.
    Unsupported {
        message: String,
    },
}

/// What the host can ask of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Waits until the block device with this serial is there. → `{"device": "/dev/vda", ...}`
    /// with its sysfs queue limits.
    WaitDisk {
        serial: String,
        timeout_ms: u64,
    },
    /// Writes to files under /sys or /proc: `[path, value]` each.
    Tune {
        set: Vec<(String, String)>,
    },
    /// Runs a program of the image; → `{"status": N, "stdout": "...", "stderr": "..."}`.
    Exec {
        argv: Vec<String>,
        timeout_ms: u64,
    },
    Mount {
        device: String,
        target: String,
        fstype: String,
        options: String,
    },
    Umount {
        target: String,
    },
    /// Reads statx's atomic-write fields of a path. → [`AtomicLimits`]
    StatAtomic {
        path: String,
    },
    /// → `{}` when done; the marks tell what happened.
    Workload {
        workload: Workload,
    },
    /// Reads back what a workload wrote. → [`Readback`]
    Readback {
        workload: Workload,
    },
    /// Kernel messages since boot. → `{"text": "..."}`
    Dmesg {},
    /// Switches off; no answer.
    PowerOff {},
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtomicLimits {
    pub unit_min: u32,
    pub unit_max: u32,
    pub unit_max_opt: u32,
    pub segments_max: u32,
}

/// A workload: files (or one raw disk), each divided into units that are always written whole, by
/// one thread each, never two writes of one unit at a time. Same seed, same writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Stamped into every block: tells this run's blocks from any other's.
    pub nonce: u64,
    pub seed: u64,
    pub files: Vec<Target>,
    /// Write one generation of every unit first, and make it durable (before the first mark
    /// `phase load-done`).
    pub load: bool,
    /// Writes after that, over all targets.
    pub writes: u32,
    /// Every nth write of a thread is followed by fdatasync; 0: never.
    pub sync_every: u32,
    /// Forget to: the negative control of durability.
    #[serde(default)]
    pub skip_sync: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Number stamped into its blocks.
    pub file: u32,
    /// A file (made where missing) or a block device.
    pub path: String,
    /// Where the first unit begins (bytes).
    pub offset: u64,
    /// Bytes in a unit: a power of two, 4 KiB to 64 KiB.
    pub unit: u32,
    pub units: u32,
    pub threads: u32,
    /// Writes in flight a thread; above 1 through io_uring.
    pub depth: u32,
    /// Each write takes one of these in turn.
    pub flags: Vec<WriteFlags>,
    pub prepare: Prepare,
}

/// What a file's ranges are before the first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prepare {
    /// A block device, or a file as it is.
    #[default]
    AsIs,
    /// Written (generation 0 where `load`).
    Written,
    /// fallocate: unwritten extents.
    Unwritten,
    /// ftruncate: holes.
    Hole,
    /// Written, then shared with a clone (FICLONE), so that every first write copies.
    Reflinked,
}

/// What was found, one entry a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readback {
    pub units: Vec<UnitFound>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitFound {
    pub file: u32,
    pub unit: u64,
    /// The unit's 512-byte sectors in order, equal neighbours together: (sectors, what).
    pub runs: Vec<(u32, Found)>,
}

/// What one sector holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Found {
    /// This workload's own block in its own place.
    Own {
        r#gen: u32,
    },
    /// This workload's block from another place.
    Misplaced {
        file: u32,
        unit: u64,
        sector: u32,
        r#gen: u32,
    },
    /// A block with our magic, but of another run.
    Foreign {
        nonce: u64,
    },
    /// Our magic, but the checksum is wrong.
    Corrupt {},
    Zero {},
    /// Nothing we know.
    Unknown {},
    /// Beyond the end of the file, or no file.
    Missing {},
    /// The read failed.
    Error {
        errno: i32,
    },
}

//! The channel between the host and the agent: a virtio-serial port, one JSON object a line.
//!
//! The host sends [`ToGuest`], the agent [`ToHost`]. The agent says [`ToHost::Hello`] once it is
//! ready, and again on every [`ToGuest::Ping`] (a guest restored from a saved state has said its
//! first hello to a host that is gone). Commands run one at a time, in the order they came;
//! [`ToGuest::Acked`], [`ToGuest::Ping`] and [`ToGuest::Stop`] are always taken.
//!
//! Either side may find the rest of a line that was meant for a peer which is gone: it skips lines
//! that it cannot read, and whoever connects begins with an empty line ([`encode`] and [`Lines`]).
//! A host that connects to a guest which had another host before sends a `Ping` and passes over
//! everything up to the `Hello` with that `id`: answers to the other host may come first.
//!
//! A mark is a promise about order: the host records it on the disk's own device and only then
//! acknowledges it, and the agent waits for that before it goes on. So an *intent* is on record
//! before its system call starts, and a *done* only after it returned.

mod readback;

pub use crate::lines::{Lines, MAX_LINE};
use crate::planted::{self, Planted};
use crate::race::{DeviceAnswer, DeviceAsk, Race, RaceFinding};
pub use readback::{Found, Readback, ShortReadback, ShortUnit, UnitFound};
use serde::{Deserialize, Serialize};

/// The virtio-serial port's name: `/dev/virtio-ports/<NAME>` in the guest.
pub const PORT: &str = "tornblk.agent";

/// Said in [`ToHost::Hello`]; counts the incompatible changes of this file.
pub const PROTOCOL: u32 = 5;

/// The root that the user's own programs have, in the guest, while one runs.
pub const USER_ROOT: &str = "/user";
/// Where the disk under test is mounted for them, in the guest.
pub const USER_MOUNT: &str = "/disk";
/// The folder in which further disks are mounted for them, each under its name, in the guest.
pub const USER_MOUNTS: &str = "/disks";
/// Seen from their root: what the agent puts there for them.
pub const USER_FILES: &str = "/run/tornblk";
/// Seen from there: the disk under test, where they begin.
pub const USER_DISK: &str = "/run/tornblk/disk";
/// Seen from there: the folder of the further disks.
pub const USER_DISKS: &str = "/run/tornblk/disks";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to-guest", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToGuest {
    /// → [`ToHost::Hello`]
    Ping { id: u64 },
    /// Marks up to this number are recorded.
    Acked { mark: u64 },
    /// → [`ToHost::Ended`] with the command's own `result`.
    Run { id: u64, command: Box<Command> },
    /// Ends the workload that `Run` with this `id` started: it stops asking for writes, waits for
    /// those in flight and ends as [`Outcome::Failed`]. No answer of its own.
    Stop { id: u64 },
    /// What came of [`ToHost::Ask`] with this number.
    Answer { ask: u64, answer: DeviceAnswer },
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
    /// Something of the disk under test, while a [`Command::Race`] runs. → [`ToGuest::Answer`]
    Ask {
        ask: u64,
        what: DeviceAsk,
    },
    /// A promise that a race saw broken: told at once, for who breaks it may take the kernel along.
    Found {
        finding: RaceFinding,
    },
    Ended {
        id: u64,
        result: Outcome,
    },
}

/// What a mark says: one line in the recording, made and read by [`MarkText::to_record`] and
/// [`MarkText::from_record`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "m", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MarkText {
    /// A write of generation `gen` to `unit` of `file` is about to be asked for.
    /// `at`: where on the disk the unit lies (bytes), of a file where the file system says so before the
    /// write; only of targets that are `named`.
    Intent {
        file: u32,
        unit: u64,
        r#gen: u32,
        offset: u64,
        len: u32,
        flags: WriteFlags,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// It returned: `result` is bytes or a negative errno.
    Done { file: u32, unit: u64, r#gen: u32, result: i64 },
    /// fsync or fdatasync of `file` returned `result`: what was done before it *began* must last.
    /// `since` is the number of the mark batch that was last acknowledged when it began.
    Synced { file: u32, since: u64, result: i64 },
    /// A phase of the workload begins.
    Phase { name: String },
    /// The user's own program says so, by `tornblk-mark`.
    Said { name: String },
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
    /// Committed by a protocol of several calls ([`crate::planted`]), which claims that the unit is
    /// whole after recovery, and durable when it is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protocol: bool,
    /// It leaves zeroes: a hole is punched, or the range zeroed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero: bool,
    /// It is made to fail or to be cut short: any part of it may be there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_fail: bool,
}

impl WriteFlags {
    /// Through the page cache.
    pub const PLAIN: WriteFlags = WriteFlags {
        direct: false,
        atomic: false,
        dsync: false,
        protocol: false,
        zero: false,
        may_fail: false,
    };
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

    /// As it is recorded: the number of its batch (as the agent counts them, from 1), a space, and
    /// its line. With it a recording alone tells what a [`MarkText::Synced`] covers.
    pub fn to_record(&self, batch: u64) -> String {
        format!("{batch} {}", self.to_line())
    }

    /// The number of its batch, and the mark. `None` for a mark that somebody else made.
    pub fn from_record(record: &str) -> Option<(u64, MarkText)> {
        let (batch, line) = record.split_once(' ')?;
        Some((batch.parse().ok()?, MarkText::from_line(line)?))
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
    /// Waits until the block device with this serial is there, whatever state it shows.
    /// → `{"device": "/dev/vda", "name", "serial", "bytes", "read_only", "queues", "queue": {...}}`;
    /// `queue` has every file of sysfs' `queue/`, numbers as numbers: `atomic_write_max_bytes`,
    /// `logical_block_size`, `nomerges`, `scheduler` (`"[none] mq-deadline"`) and so on.
    WaitDisk {
        serial: String,
        timeout_ms: u64,
    },
    /// Writes to files under /sys or /proc: `[path, value]` each.
    Tune {
        set: Vec<(String, String)>,
    },
    /// Runs a program of the image, in a process group of its own; → `{"status": N, "signal": null,
    /// "stdout": "...", "stderr": "..."}`, `status` being 128 + the signal where one ended it. Of
    /// long output the middle is left out. After `timeout_ms` it is killed with all its group, and
    /// the answer is `Failed` with ETIMEDOUT.
    Exec {
        argv: Vec<String>,
        timeout_ms: u64,
    },
    /// Gets what [`Command::Program`] makes [`USER_ROOT`] of: the host's files, which the virtiofs device
    /// with this tag shows. Once a guest. → `{}`
    HostRoot {
        tag: String,
        /// Milliseconds since 1970: a guest that was restored has the clock of when it was saved.
        now_ms: u64,
    },
    /// Runs a program of the user's in such a root, made for it: the host's files, read-only beneath a
    /// writable layer in memory. → [`Ran`]; its marks are as those of a workload.
    Program {
        program: Program,
    },
    /// Where the files in these folders lie on the disk. → [`FileMap`]
    FileMap {
        folders: Vec<Folder>,
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
    /// Asks for atomic writes that must be refused, each a little beyond `limits`, and sees that
    /// nothing changed. → `[`[`Refusal`]`]`. A block device is used from `offset` on, over
    /// [`AtomicLimits::refusal_bytes`]; a file is made, and removed.
    AtomicRefusals {
        path: String,
        offset: u64,
        limits: AtomicLimits,
        /// Logical block size (bytes): what is no multiple of it is refused for another reason.
        block: u32,
    },
    /// → [`Written`] when done; the marks tell what happened. `Unsupported` where a probe, made
    /// before anything else, found that the kernel or the file system refuses one of the `flags`.
    /// `Failed` where the disk went away.
    Workload {
        workload: Workload,
    },
    /// → [`crate::race::Raced`] when done. `Unsupported` where a probe, made before anything else,
    /// found that the kernel or the file system cannot do it.
    Race {
        race: Race,
    },
    /// Reads back what a workload wrote. → [`Readback`]
    Readback {
        workload: Workload,
    },
    /// Finds out what a disk holds, in one go: see [`StateCheck`]. → [`StateFound`]. `Failed` where
    /// nothing was checked: the disk shows another state.
    CheckState {
        check: Box<StateCheck>,
    },
    /// Opens the block device exclusively, which proves that nobody else holds it, and drops what
    /// the page cache has of it (BLKFLSBUF). → `{}`
    Blkflsbuf {
        device: String,
    },
    /// Reads the serial number again, from the device: while that shows a state, it ends in a
    /// nonce. → `{"serial": "...", "tail": "..."}`; `tail` is the last 8 characters.
    ReadNonce {
        device: String,
    },
    /// sync(2). → `{}`
    Sync {},
    /// A small file as text, under /sys or /proc too; at most 1 MiB of it. → `{"text": "..."}`
    ReadFile {
        path: String,
    },
    /// SHA-256 of `len` bytes (`null`: up to the end) from `offset`, read with O_DIRECT where that
    /// works. → `{"sha256": "hex", "bytes": N}`
    Checksum {
        path: String,
        offset: u64,
        len: Option<u64>,
    },
    /// BLKDISCARD, or BLKZEROOUT where `zeroes`, of a range of a block device. → `{}`
    Discard {
        device: String,
        offset: u64,
        len: u64,
        #[serde(default)]
        zeroes: bool,
    },
    /// finit_module of a file of the image, with its parameters (`"a=1 b=2"`). → `{}`
    LoadModule {
        path: String,
        #[serde(default)]
        params: String,
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

impl AtomicLimits {
    /// Bytes that [`Command::AtomicRefusals`] may use of its target: the longest write is twice
    /// `unit_max`, and starts at the first multiple of its length.
    pub fn refusal_bytes(&self) -> u64 {
        4 * u64::from(self.unit_max)
    }
}

/// How a write was answered that must be refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    pub case: RefusalCase,
    /// The system call, as one would write it in C.
    pub call: String,
    /// Bytes or a negative errno.
    pub result: i64,
    /// The bytes on disk are not what they were.
    pub changed: bool,
}

/// Why a write must be refused. Each but `Buffered` is O_DIRECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCase {
    /// Through the page cache.
    Buffered,
    /// Its offset is no multiple of its length.
    Misaligned,
    /// Longer than `unit_max`.
    TooLong,
    /// Shorter than `unit_min`.
    TooShort,
    /// No power of two.
    OddLength,
    /// In two buffers.
    TwoBuffers,
}

/// What a [`Command::Workload`] did, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Writes that returned all bytes, fewer, or an error.
    pub whole: u64,
    pub short: u64,
    pub failed: u64,
    /// fdatasyncs that returned 0, or an error.
    pub synced: u64,
    pub sync_failed: u64,
    /// The first error as a sentence.
    pub first_error: Option<String>,
}

/// A workload: files (or one raw disk), each divided into units that are always written whole, by
/// one thread each, never two writes of one unit at a time. Same seed, same writes.
///
/// Unit `u` belongs to thread `u % threads`. Generation 0 is what `load` wrote; the writes of a
/// unit count up from 1, loaded or not. `writes` is shared out evenly over all threads of all
/// targets. The first mark is the phase `load-done`, the last one the phase `writes-done`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Stamped into every block: tells this run's blocks from any other's.
    pub nonce: u64,
    pub seed: u64,
    pub files: Vec<Target>,
    /// Write one generation of every unit first, and make it durable (before the first mark
    /// `phase load-done`). Not of targets prepared as [`Prepare::Unwritten`] or
    /// [`Prepare::Hole`], whose units read as zeroes until their first write: see
    /// [`Target::is_loaded`].
    pub load: bool,
    /// Writes after that, over all targets.
    pub writes: u32,
    /// Every nth write of a thread is followed by fdatasync; 0: never.
    pub sync_every: u32,
    /// Forget to: the negative control of durability. The marks say that it was done (`synced`
    /// with result 0, `dsync` in the flags); no fdatasync and no RWF_DSYNC is asked for.
    #[serde(default)]
    pub skip_sync: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Number stamped into its blocks.
    pub file: u32,
    /// A file (made where missing) or a block device.
    pub path: String,
    /// Where the first unit begins (bytes): a multiple of `unit`.
    pub offset: u64,
    /// Bytes in a unit: a power of two, 4 KiB to 64 KiB; of a race from 512 bytes on.
    pub unit: u32,
    pub units: u32,
    pub threads: u32,
    /// Writes in flight a thread; above 1 through io_uring.
    pub depth: u32,
    /// Each write takes one of these in turn.
    pub flags: Vec<WriteFlags>,
    pub prepare: Prepare,
    /// Units are committed by this protocol, with [`crate::planted::FLAGS`], and read back after
    /// its recovery; else each by one write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<Planted>,
    /// Where on the disk the path itself begins (bytes): that of a partition; else 0, as for files,
    /// of which nobody outside of the guest knows where they are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub start: u64,
    /// Units come in their order, again and again, instead of being drawn: neighbours are in flight
    /// together, and can be merged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sequential: bool,
    /// Writes with RWF_ATOMIC carry their length in their I/O priority ([`crate::naming`]), and
    /// go through io_uring for that, at depth 1 too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub named: bool,
    /// Buffers begin that many bytes behind a page boundary: a multiple of 512 below 4096.
    #[serde(default, skip_serializing_if = "is_default")]
    pub buffer_offset: u32,
    /// Its blocks may be anywhere in it, in any generation that was asked for, or zeroes: a range is
    /// collapsed or inserted. Nothing but whose they are is judged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub moves: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Target {
    /// Whether every unit holds generation 0 before the first write, given the workload's `load`.
    pub fn is_loaded(&self, load: bool) -> bool {
        load && !matches!(self.prepare, Prepare::Unwritten | Prepare::Hole)
    }

    /// Where `unit` begins in the file (bytes).
    pub fn offset_of(&self, unit: u64) -> u64 {
        self.offset + unit * u64::from(self.unit)
    }

    /// Where `unit` begins on the disk (bytes): only of a target that is a disk or a partition.
    pub fn disk_offset_of(&self, unit: u64) -> u64 {
        self.start + self.offset_of(unit)
    }

    /// Where the target ends in the file (bytes): behind its units, and the slots of its protocol.
    pub fn end(&self) -> u64 {
        let slots = u64::from(planted::slots(self)) * u64::from(planted::slot_len(self));
        self.offset_of(self.units.into()) + slots
    }
}

/// What a file's ranges are before the first write. All but `AsIs` are made new, durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prepare {
    /// A block device, or a file as it is.
    #[default]
    AsIs,
    /// Written (generation 0 where `load`, else zeroes).
    Written,
    /// fallocate: unwritten extents.
    Unwritten,
    /// ftruncate: holes.
    Hole,
    /// Written, then shared with a clone (FICLONE), so that every first write copies.
    Reflinked,
}

/// What is done, in this order: the nonce is read from the device, the disk is mounted, the
/// workload's blocks are read back (if it has targets), the disk is unmounted, opened exclusively (which proves that
/// nobody holds it any more) and its buffers are dropped. Whatever fails, the disk is let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateCheck {
    pub device: String,
    /// The end of the serial number while the disk shows the state that is meant: the nonce.
    pub tail: String,
    /// `None`: the workload's targets are the disk itself.
    pub mount: Option<MountPoint>,
    /// Other disks, which show the same state: the same is done with each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<FurtherCheck>,
    pub workload: Workload,
    /// Who else looks at it, once it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
}

/// Another disk in a [`StateCheck`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FurtherCheck {
    pub device: String,
    /// `None`: it is raw.
    pub mount: Option<MountPoint>,
}

/// A program of the user's, run in [`USER_ROOT`] with [`USER_DISK`] as its working directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// A path seen from [`USER_ROOT`], and its arguments.
    pub argv: Vec<String>,
    /// All that it has but `TORNBLK_MARKS`, the path of a file with `marks`, one a line.
    pub env: Vec<(String, String)>,
    pub marks: Vec<String>,
    /// After that its process group is killed.
    pub timeout_ms: u64,
    /// Disks that are mounted in [`USER_MOUNTS`]: it finds them in [`USER_DISKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
}

/// A folder whose files are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    pub path: String,
    /// What their names begin with.
    pub prefix: String,
    /// Where on the disk the file system in that folder begins (bytes).
    pub start: u64,
}

/// A piece of a file: (offset in it, place on the disk, bytes).
pub type Place = (u64, u64, u64);

/// Files, by their paths, and where their data lie; the first ones, where there are many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMap {
    pub files: Vec<(String, Vec<Place>)>,
    /// There are more, or pieces whose place cannot be told (compressed, say).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// How a [`Program`] ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// 128 + the signal where one ended it; `None`: it did not end in time, and was killed.
    pub status: Option<i32>,
    pub signal: Option<i32>,
    /// Of long output the middle is left out.
    pub stdout: String,
    pub stderr: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPoint {
    pub target: String,
    pub fstype: String,
    pub options: String,
}

/// What came of a [`StateCheck`]. `mount`, `read`, `umount` and `held` are why that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFound {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readback: Option<ShortReadback>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<String>,
    /// What came of [`StateCheck::program`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<Ran>,
    /// It waits in the kernel, cannot be killed, and still has the disk: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umount: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What the kernel said meanwhile.
    pub messages: Vec<String>,
    pub micros: StateMicros,
}

/// How long each step took, in microseconds of the guest's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateMicros {
    pub nonce: u64,
    pub mount: u64,
    pub read: u64,
    pub umount: u64,
    pub flush: u64,
}

/// A message as it goes over the channel: a line, with its newline.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Cannot fail: no map has a key that is no string, and writing to memory has no errors.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_their_line() {
        let flags = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        for mark in [
            MarkText::Intent {
                file: 1,
                unit: 2,
                r#gen: 3,
                offset: 4096,
                len: 16384,
                flags,
                at: None,
            },
            MarkText::Done { file: 1, unit: 2, r#gen: 3, result: -5 },
            MarkText::Synced { file: 1, since: 17, result: 0 },
            MarkText::Phase { name: "load-done".into() },
        ] {
            let line = mark.to_line();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(MarkText::from_line(&line), Some(mark.clone()), "{line}");
            let record = mark.to_record(12);
            assert_eq!(MarkText::from_record(&record), Some((12, mark)), "{record}");
            assert_eq!(MarkText::from_record(&line), None);
        }
        assert_eq!(MarkText::from_line("somebody else's mark"), None);
        assert_eq!(MarkText::from_record("7 of somebody else's marks"), None);
        assert_eq!(MarkText::from_line(r#"{"m":"phase","name":"x","more":1}"#), None);
    }

    #[test]
    fn a_readback_survives_being_shortened() {
        let target = |file| Target {
            file,
            path: String::new(),
            offset: 0,
            unit: 4096,
            units: 4,
            threads: 1,
            depth: 1,
            flags: vec![],
            prepare: Prepare::AsIs,
            ..Target::default()
        };
        let workload = Workload {
            nonce: 1,
            seed: 1,
            files: vec![target(3), target(1)],
            load: false,
            writes: 0,
            sync_every: 0,
            skip_sync: false,
        };
        let whole = |found| vec![(8, found)];
        let torn = vec![(3, Found::Own { r#gen: 2 }), (5, Found::Corrupt {})];
        let errors = whole(Found::Error { errno: 5 });
        let all = [
            [whole(Found::Own { r#gen: 0 }), whole(Found::Zero {}), torn, whole(Found::Missing {})],
            [errors, whole(Found::Own { r#gen: u32::MAX }), whole(Found::Unknown {}), vec![]],
        ];
        let mut readback = Readback::default();
        for (file, units) in [3, 1].into_iter().zip(all) {
            for (unit, runs) in (0..).zip(units) {
                readback.units.push(UnitFound { file, unit, runs });
            }
        }
        let line = serde_json::to_string(&readback.clone().shorten()).expect("JSON");
        let short: ShortReadback = serde_json::from_str(&line).expect("reads back");
        assert_eq!(short.clone().expand(&workload), Some(readback));
        let other = Workload { files: vec![target(3)], ..workload };
        assert_eq!(short.expand(&other), None);
    }

    #[test]
    fn messages_survive_the_channel() {
        let message = ToGuest::Run {
            id: 7,
            command: Box::new(Command::Exec { argv: vec!["a\nb".into()], timeout_ms: 1 }),
        };
        let mut lines = Lines::new();
        lines.push(&encode(&message));
        let line = lines.next_line().expect("one line");
        assert_eq!(serde_json::from_slice::<ToGuest>(line).expect("reads back"), message);
    }
}

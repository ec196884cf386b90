//! What can be asked of the device, and what it answers.
//!
//! Offsets and lengths are bytes on the disk; events are positions in the recording's order.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    pub id: u64,
    #[serde(flatten)]
    pub command: Command,
}

/// What a client gets: one for each call, and `error` or `ok`, never both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Of the call; absent where the call had none that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// A sentence for the user.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// Not understood: no JSON, an unknown command or field, a value out of range.
    Malformed,
    /// Understood, but not with this store (a crash without a recording, say).
    Unsupported,
    /// Not now: requests in flight, a crash already armed, the power already cut.
    Busy,
    /// No such token, state or fault.
    NotFound,
    /// The host failed: the message says how.
    Failed,
}

///
/// In JSON the fields of a stall's `which` stand beside `when`, not below it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub enum Command {
    /// → [`Status`]
    Status {},
    /// → [`Limits`]
    Limits {},
    /// Names this moment in the recording. Answered when it is recorded. → [`Marked`]
    Mark { name: String },
    /// Holds requests. → [`Token`]
    Stall { which: Match, when: StallWhen },
    /// Lets go what a stall holds, and ends the stall; or disarms a fault. → [`Released`]
    Release { token: u64 },
    /// Arms a fault, written as on the command line (`--fault`); its `nth` counts from now on.
    /// → [`Token`]
    Fault { spec: String },
    /// Cuts the power: from the trigger on no request is executed or answered. → [`Crashed`]
    Crash {
        at: Trigger,
        /// What survives: a state's name, or only its choices (`none`, `all,-w97`, `r1.7.0`),
        /// wherever the power is cut. `None`: drawn from the model with `seed`.
        state: Option<String>,
        /// `None`: the seed of the command line.
        seed: Option<u64>,
        /// Which disk this is; `None`: the one of the command line.
        profile: Option<String>,
    },
    /// Shows the disk as it is in a state of the recording (`live`: as it is now). Writes go to an
    /// overlay that the next change of state drops. Refused while requests are in flight.
    /// → [`StateShown`]
    UseState { name: String },
    /// As `UseState`, with the state given as what is different from the one that is shown: the
    /// cost is that of the difference. Only with `--states`. Many runs go in several calls.
    /// → [`StateShown`]
    UseContent {
        /// For status and log.
        name: String,
        /// [`StateShown::fingerprint`] of what `runs` are held against; `None`: the base image.
        from: Option<String>,
        runs: Vec<Run>,
    },
    /// Records what is written to the state that is shown, until the next change of state: as a
    /// recording of its own whose base is this state. Only with `--states`; refused while requests
    /// are in flight. The states of that recording are then known to `UseState` as `OUTER // INNER`.
    /// → `{}`
    RecordHere { file: String },
    /// What was recorded on the state that is shown, by `RecordHere`, some time ago; perhaps by
    /// another device. Its states are then known to `UseState`, as above. → `{}`
    RecordedHere { file: String },
    /// The image has been made larger: looks at its size again, and tells the front-end. A recorded
    /// disk, and a state, keep their size. → [`Resized`]
    Resize {},
}

/// Logical blocks in a row: the first, how many, and what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub u64, pub u64, pub RunSource);

/// What a run of blocks holds. Of several blocks, `block` is that of the first one, and counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RunSource {
    Base,
    Zeroes,
    /// (event that submitted the write, block of its payload)
    Written(u64, u32),
    /// Drawn from a seed.
    Garbage(u64),
    /// As `Written` (or, without an event, the base image), with this bit inverted.
    Flipped(Option<u64>, u32, u32),
}

/// [`Command`] as it is written. Apart from it because serde's `flatten` lets unknown fields pass,
/// and a misspelt field that is ignored would be a crash or a stall that nobody asked for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
enum Wire {
    Status {},
    Limits {},
    Mark {
        name: String,
    },
    Stall {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        op: Option<OpKind>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        range: Option<Range>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nth: Option<u64>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        eligible: bool,
        #[serde(default)]
        when: StallWhen,
    },
    Release {
        token: u64,
    },
    Fault {
        spec: String,
    },
    Crash {
        #[serde(default)]
        at: Trigger,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile: Option<String>,
    },
    UseState {
        name: String,
    },
    UseContent {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        runs: Vec<Run>,
    },
    RecordHere {
        file: String,
    },
    RecordedHere {
        file: String,
    },
    Resize {},
}

impl TryFrom<Wire> for Command {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Command, String> {
        let command = match wire {
            Wire::Status {} => Command::Status {},
            Wire::Limits {} => Command::Limits {},
            Wire::Mark { name } => Command::Mark { name },
            Wire::Stall { op, range, nth, eligible, when } => {
                Command::Stall { which: Match { op, range, nth, eligible }, when }
            }
            Wire::Release { token } => Command::Release { token },
            Wire::Fault { spec } => Command::Fault { spec },
            Wire::Crash { at, state, seed, profile } => Command::Crash { at, state, seed, profile },
            Wire::UseState { name } => Command::UseState { name },
            Wire::UseContent { name, from, runs } => Command::UseContent { name, from, runs },
            Wire::RecordHere { file } => Command::RecordHere { file },
            Wire::RecordedHere { file } => Command::RecordedHere { file },
            Wire::Resize {} => Command::Resize {},
        };
        command.check().map(|()| command)
    }
}

impl From<Command> for Wire {
    fn from(command: Command) -> Wire {
        match command {
            Command::Status {} => Wire::Status {},
            Command::Limits {} => Wire::Limits {},
            Command::Mark { name } => Wire::Mark { name },
            Command::Stall { which: Match { op, range, nth, eligible }, when } => {
                Wire::Stall { op, range, nth, eligible, when }
            }
            Command::Release { token } => Wire::Release { token },
            Command::Fault { spec } => Wire::Fault { spec },
            Command::Crash { at, state, seed, profile } => Wire::Crash { at, state, seed, profile },
            Command::UseState { name } => Wire::UseState { name },
            Command::UseContent { name, from, runs } => Wire::UseContent { name, from, runs },
            Command::RecordHere { file } => Wire::RecordHere { file },
            Command::RecordedHere { file } => Wire::RecordedHere { file },
            Command::Resize {} => Wire::Resize {},
        }
    }
}

/// Longest name of a mark, in bytes.
pub const MAX_MARK: usize = 4000;

impl Command {
    /// Says which value is out of range; what arrives over the socket is checked already.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Command::Mark { name } | Command::Crash { at: Trigger::Mark(name), .. }
                if name.is_empty() || name.len() > MAX_MARK =>
            {
                Err(format!("the name of a mark has 1 to {MAX_MARK} bytes, not {}", name.len()))
            }
            Command::Stall { which, .. }
            | Command::Crash { at: Trigger::Submit(which) | Trigger::Complete(which), .. } => {
                which.check()
            }
            _ => Ok(()),
        }
    }
}

impl Match {
    fn check(&self) -> Result<(), String> {
        if self.nth == Some(0) {
            return Err("`nth` counts from 1".to_owned());
        }
        if self.eligible && self.op.is_some_and(|op| op != OpKind::Write) {
            return Err("`eligible` is about writes: leave `op` out, or say `write`".to_owned());
        }
        match self.range {
            Some(r) if r.len == 0 => Err("`range` covers nothing: its `len` is 0".to_owned()),
            Some(r) if r.offset.checked_add(r.len).is_none() => {
                Err("`range` ends beyond 2^64".to_owned())
            }
            Some(_) if self.op == Some(OpKind::Flush) => {
                Err("a flush touches no bytes: leave `range` out".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Which requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpKind>,
    /// Only requests that touch these bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// Only the nth that matches from now on, counted from 1; `None`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Only writes that the disk's limits keep whole and that could be cut without them (that cover
    /// more than one tear unit): those that the fault `tear-atomic` counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eligible: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpKind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallWhen {
    /// Submitted, not executed: its content is not on the disk.
    #[default]
    BeforeIo,
    /// Executed, not answered.
    BeforeCompletion,
}

/// When the power is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trigger {
    #[default]
    Now,
    /// Right after a request that matches was submitted (it is in flight at the cut).
    Submit(Match),
    /// Right after a request that matches completed.
    Complete(Match),
    /// Right after this mark.
    Mark(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    pub event: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub token: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resized {
    /// Bytes, now.
    pub capacity: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub requests: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crashed {
    /// The cut lies after this event.
    pub event: u64,
    /// The state the disk is now in: enough to build it again from the recording.
    pub state: String,
    /// What the faults did, in words, one each; empty where none was armed or none applied.
    pub faults: Vec<String>,
    /// Writes that were not stable at the cut.
    pub volatile_writes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateShown {
    pub name: String,
    /// A number the device never gave before, below 2^32, also readable by the guest in the last 8
    /// characters of its `GET_ID` string (see [`crate::device_id`]): proof that the guest sees
    /// this state. 0 for `live`, where the string is the plain serial.
    pub nonce: u64,
    /// With `--states`: the content's, as 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// Atomic-write limits in bytes, named as in Linux `queue/atomic_write_*`; all 0 where the disk
/// promises nothing above the logical block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub logical_block_size: u32,
    pub physical_block_size: u32,
    pub unit_min: u64,
    pub unit_max: u64,
    pub max_bytes: u64,
    pub boundary: u64,
    /// `implicit`, `explicit` or `none`.
    pub mode: String,
    pub tear_unit: u64,
    /// The whole of it as a profile of the crash model.
    pub profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// A front-end is connected.
    pub connected: bool,
    /// `raw` or `recording`.
    pub store: String,
    pub image: String,
    pub capacity: u64,
    pub read_only: bool,
    /// `live`, or the name of the state that is shown.
    pub state: String,
    /// The power was cut, and no front-end has connected since.
    pub power_cut: bool,
    pub in_flight: u64,
    pub stalls: Vec<StallStatus>,
    pub faults: Vec<String>,
    pub counters: Counters,
    /// Writes that said what they are, and how they arrived.
    #[serde(default)]
    pub named: NamedWrites,
    /// Only with a recording.
    pub recording: Option<RecordingStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallStatus {
    pub token: u64,
    /// Requests held now.
    pub held: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub write_zeroes: u64,
    pub failed: u64,
    /// Writes that the limits make atomic.
    pub eligible: u64,
    /// Requests that covered only a part of a logical block.
    pub sub_block: u64,
}

/// Writes of which it is known how long they were when they were sent, and how they arrived: those
/// with a name in their I/O priority (virtio-blk), and those sent as atomic (SCSI). Each is counted
/// in one of `whole`, `split`, `merged` and `merged_beyond_limit`, by its length alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedWrites {
    pub writes: u64,
    /// As long as they say.
    pub whole: u64,
    /// Shorter than they say.
    pub split: u64,
    /// Longer than they say, and still kept whole: legal.
    pub merged: u64,
    /// Longer than they say, and than the longest write that the disk keeps whole.
    pub merged_beyond_limit: u64,
    /// Not split, and at no multiple of the length they say.
    pub misaligned: u64,
    /// Across a boundary over which the disk keeps nothing whole.
    pub across_boundary: u64,
    /// What was wrong with the first few, in words; at most [`NamedWrites::FIRST`].
    pub first: Vec<String>,
}

impl NamedWrites {
    /// How many are told in words.
    pub const FIRST: usize = 8;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingStatus {
    pub file: String,
    pub events: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_that_knows_no_named_writes_is_understood() {
        let old = json!({
            "version": "0.1.0", "connected": false, "store": "raw", "image": "disk.img",
            "capacity": 4096, "read_only": false, "state": "live", "power_cut": false,
            "in_flight": 0, "stalls": [], "faults": [], "recording": null,
            "counters": Counters::default(),
        });
        let status: Status = serde_json::from_value(old).unwrap();
        assert_eq!(status.named, NamedWrites::default());
        let part = json!({ "writes": 3, "split": 1, "first": ["split: ..."] });
        let named: NamedWrites = serde_json::from_value(part).unwrap();
        assert_eq!((named.writes, named.split, named.whole, named.first.len()), (3, 1, 0, 1));
    }
}

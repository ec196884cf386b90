//! Races: what the host asks for, what the guest tells of them.
//!
//! A race is two or more system calls that a kernel has to keep apart. It is made on purpose: the
//! disk holds a request back ([`DeviceAsk::Stall`]) until everybody is where they should be. What is
//! left to chance comes from the seed.
//!
//! What must be there after a cut of the power is told by the same marks as a workload's
//! ([`crate::channel::MarkText`]), over the targets of [`Race::workload`].

use crate::channel::{MountPoint, Workload};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Race {
    /// Which one: the name of its suite.
    pub name: String,
    /// `/dev/vda`
    pub device: String,
    /// Where its file system is mounted already; `None`: the disk itself.
    pub mount: Option<MountPoint>,
    /// The targets, and the seed and nonce of everything. `writes` and `sync_every` say nothing.
    pub workload: Workload,
    pub rounds: u32,
    /// What the lane sets, by name: each race says what it knows.
    #[serde(default)]
    pub set: BTreeMap<String, Setting>,
    /// What is done wrong on purpose: the negative control.
    #[serde(default)]
    pub wrong: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<String>),
}

/// What came of a race that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raced {
    pub rounds: u32,
    /// How often a moment that matters was met, by its name. What is never met proves nothing.
    pub reached: BTreeMap<String, u64>,
    /// What is worth a line, and no finding.
    pub notes: Vec<String>,
    /// Parts that the kernel or the file system cannot do: the probe's own answer.
    pub unsupported: Vec<String>,
}

/// A promise that was broken while the guest ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaceFinding {
    /// Which one: a name of the host's oracle (`torn`, `foreign`, `hung`, ...).
    pub clause: String,
    /// Of the target; 0: of none.
    pub file: u32,
    pub path: String,
    /// Bytes in the file.
    pub offset: u64,
    pub len: u32,
    /// What is wrong, in a sentence, with the bytes that show it.
    pub text: String,
    /// Who did what, in its order: the last things that happened.
    #[serde(default)]
    pub timeline: Vec<String>,
}

/// Of the disk under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceAsk {
    /// Holds requests until they are released. → [`DeviceAnswer::Token`]
    Stall {
        op: Option<DeviceOp>,
        /// (offset, length) on the disk, in bytes; `None`: anywhere.
        range: Option<(u64, u64)>,
        /// Only the nth from now on; `None`: all.
        nth: Option<u64>,
        when: StallPoint,
    },
    /// → [`DeviceAnswer::Released`]
    Release { token: u64 },
    /// → [`DeviceAnswer::Status`]
    Status {},
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceOp {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallPoint {
    /// Arrived, not executed.
    BeforeIo,
    /// Executed, not answered.
    BeforeCompletion,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceAnswer {
    Token {
        token: u64,
    },
    /// How many requests it held.
    Released {
        requests: u64,
    },
    Status(DeviceStatus),
    /// A sentence.
    Refused {
        message: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatus {
    /// (token, requests held now)
    pub held: Vec<(u64, u64)>,
    pub in_flight: u64,
    /// Since the device started: what it was asked for.
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub write_zeroes: u64,
}

//! What the host and the guest's agent share.
//!
//! - [`payload`]: how every block that a workload writes describes itself.
//! - [`planted`]: commits that are wrong on purpose, and their correct twins.
//! - [`naming`]: how a write tells the device its length.
//! - [`channel`]: the commands and answers between the host and the agent; [`lines`] it is cut into.
//! - [`race`]: races, and what is asked of the disk while they run.
//!
//! The agent itself (PID 1, workloads) is module `guest` and the binary, both only with feature `guest`:
//! the host links neither.

pub mod channel;
#[cfg(feature = "guest")]
pub mod guest;
pub mod lines;
pub mod naming;
pub mod payload;
pub mod planted;
pub mod race;

//! What the host and the guest's agent share.
//!
//! - [`payload`]: how every block that a workload writes describes itself.
//! - [`channel`]: the commands and answers between the host and the agent.
//!
//! The agent itself (PID 1, workloads) is the binary, built for the guest with feature `guest`.

pub mod channel;
pub mod payload;

//! Races between system calls, one file a suite.
//!
//! - [`ctx`]: what every race has: its settings, the disk's stalls, marks, findings, what was reached.
//! - [`timeline`]: who did what, in its order.
//! - [`task`]: threads that may never come back, because the kernel keeps them.
//! - [`memory`]: mappings that are read and written while others pull at them.
//! - [`aio`]: writes that are submitted and waited for apart.
//! - [`mapper`]: a process of its own that maps a file.
//! - [`fuse_server`]: a FUSE server of the agent's, in a process of its own.
//! - [`userfault`]: memory that keeps who reads it waiting.
//! - [`files`]: files of units: written with their marks, looked at from every side.
//!
//! A race ends in bounded time, whatever the kernel does: each wait has a limit, and a call that does
//! not return is a finding with the kernel's own stack of its thread. Threads are never joined but by
//! [`task::Task`]; who is stuck is left behind, and the host kills the guest.
//!
//! What is promised after a cut of the power is told by marks, as a workload tells it.

pub mod aio;
pub mod buffered_atomic;
pub mod ctx;
pub mod delalloc_punch;
pub mod files;
pub mod freeze;
pub mod fuse_passthrough;
pub mod fuse_server;
pub mod hole_punch;
pub mod mapper;
pub mod memory;
pub mod task;
pub mod timeline;
pub mod userfault;

pub use ctx::{Ctx, Stall, Which};
pub use task::Task;

use std::sync::Arc;

use super::outbox::Outbox;
use super::{Error, Result};
use crate::race::{Race, Raced};

/// How long a call may take that waits for nothing any more. Under emulation, on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Runs a race to its end.
pub fn run(race: Race, outbox: &Arc<Outbox>) -> Result<Raced> {
    let ctx = Ctx::new(race, Arc::clone(outbox));
    kernel_tells_soon();
    match ctx.race.name.as_str() {
        "buffered-atomic" => buffered_atomic::run(&ctx),
        "delalloc-punch" => delalloc_punch::run(&ctx),
        "freeze" => freeze::run(&ctx),
        "fuse-passthrough" => fuse_passthrough::run(&ctx),
        "hole-punch" => hole_punch::run(&ctx),
        other => Err(Error::Refused(format!("there is no race \"{other}\""))),
    }?;
    Ok(ctx.end())
}

/// A task that waits for a minute is told: longer than a race has the disk hold anything, whatever the
/// machine; without a limit on how many are told.
fn kernel_tells_soon() {
    for (path, value) in [
        ("/proc/sys/kernel/hung_task_timeout_secs", "60"),
        ("/proc/sys/kernel/hung_task_check_interval_secs", "10"),
        ("/proc/sys/kernel/hung_task_warnings", "-1"),
    ] {
        // Not every kernel has them; the race's own limits hold all the same.
        let _ = std::fs::write(path, value);
    }
}

//! The harness of tornblk: boots guests on a disk that can tear, cuts the power, verifies.
//!
//! - [`oracle`]: what must hold after a crash. Pure.
//! - [`vm`]: a guest: QEMU, its console, and the agent in it.

pub mod oracle;
pub mod vm;

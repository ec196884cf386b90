//! The harness of tornblk: boots guests on a disk that can tear, cuts the power, verifies.
//!
//! - [`cli`]: the command line.
//! - [`suite`]: what is tried, as TOML, and where the power is cut.
//! - [`run`]: one cut after another, to verdicts.
//! - [`device`]: `tornblkd` as a process.
//! - [`vm`]: a guest: QEMU, its console, and the agent in it.
//! - [`oracle`]: what must hold after a crash. Pure.
//! - [`explore`]: one recording, thousands of crash states.
//! - [`bench`]: how fast the disk is, beside others.
//! - [`report`]: what the user sees.

pub mod audit;
pub mod bench;
pub mod cli;
pub mod databases;
pub mod device;
pub mod explore;
pub mod export;
pub mod oracle;
mod out;
pub mod report;
pub mod run;
pub mod splat;
pub mod suite;
pub mod vm;

//! The harness of tornblk: boots guests on a disk that can tear, cuts the power, verifies.
//!
//! - [`oracle`]: what must hold after a crash. Pure.

pub mod oracle;

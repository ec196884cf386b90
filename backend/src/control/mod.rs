//! The control socket (`--control`): the device driven by hand, or by the harness.
//!
//! The messages are those of [`tornblk_proto`]. A thread accepts; each client has a thread, which
//! carries out its commands one after the other; only a crash that waits for its trigger is waited
//! for by another thread, so that its client can go on. When a client leaves, its stalls are
//! released and its crash, where the power is not cut yet, is disarmed.

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use server::{Bound, ControlError, Server};

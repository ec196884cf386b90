//! The device behind its socket, with a real vhost-user front-end and shared memory.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod front_end;
mod guest;
mod hostile;
mod load;
mod program;
mod reconnect;
mod scsi;

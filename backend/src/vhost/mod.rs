//! The vhost-user transport: a socket, and a thread for each queue. It knows
//! [`Device`](crate::device::Device) and its queues, never requests.
//!
//! - `socket`: the path: taken without stealing it from somebody who lives, 0600, unlinked.
//! - [`serve`]: one front-end after another.
//! - `relay`: between a front-end and the daemon; `wire`: messages; `door`: the way to the daemon.
//! - `in_flight`: what is in flight, kept where a device that is started again finds it; `notes`: with
//!   what has to be known before an answer goes out.
//! - `backend`: what vhost-user messages do to the device.
//! - `ring`: the crate's rings, and where the guest's available indices are.
//! - `guard`: the guest's memory, which its front-end may cut short.
//!
//! Each front-end gets a new daemon (vhost-user-backend cannot start one twice) and new guest
//! memory. What outlives it is the device: its store, its identity, and `writeback`; the last, and what
//! was in flight, outlive the process, too.

mod backend;
mod door;
mod guard;
mod in_flight;
mod notes;
mod relay;
mod ring;
mod serve;
mod socket;
mod wire;

pub use serve::{ServeError, can_serve, serve};
pub use socket::{Socket, SocketError};

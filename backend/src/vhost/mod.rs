//! The vhost-user transport: a socket, and a thread for each queue. It knows
//! [`Device`](crate::device::Device) and its queues, never requests.
//!
//! - `socket`: the path: taken without stealing it from somebody who lives, 0600, unlinked.
//! - [`serve`]: one front-end after another; a second one is told off while one is served.
//! - `backend`: what vhost-user messages do to the device.
//! - `ring`: the crate's rings, and where the guest's available indices are.
//!
//! Each front-end gets a new daemon (vhost-user-backend cannot start one twice) and new guest
//! memory. What outlives it is the device: its store, its identity, and `writeback`.

mod backend;
mod peer;
mod ring;
mod serve;
mod socket;

pub use serve::{ServeError, serve};
pub use socket::{Socket, SocketError};

//! The control socket of `tornblkd`.
//!
//! A message is a little-endian `u32` length and that many bytes of JSON. A client sends
//! `{"id": N, "cmd": "...", ...}`, and gets `{"id": N, "ok": {...}}` or
//! `{"id": N, "error": {"kind": "...", "message": "..."}}`. Answers may come in any order: a
//! [`Command::Crash`] that waits for its trigger is answered when the power is cut. An unknown
//! command or field is an error, never ignored. Stalls belong to the client that asked for them,
//! and are released when it disconnects; a crash that it armed and that has not happened is
//! disarmed. Faults stay until they are released.
//!
//! - [`message`](Command): what can be asked, and what is answered.
//! - [`codec`]: messages in a stream of bytes.
//! - [`Client`]: asks a device, from any number of threads.
//! - [`device_id`]: the disk's `GET_ID` string, which names the state that it shows.

#![forbid(unsafe_code)]

mod client;
pub mod codec;
mod id;
mod message;

pub use client::{Client, ClientError, Pending};
pub use id::{DEVICE_ID_BYTES, device_id, nonce_of};
pub use message::*;

//! The control socket of `tornblkd`.
//!
//! A message is a little-endian `u32` length and that many bytes of JSON. A client sends
//! `{"id": N, "cmd": "...", ...}`, and gets `{"id": N, "ok": {...}}` or
//! `{"id": N, "error": {"kind": "...", "message": "..."}}`. Answers may come in any order: a
//! [`Command::Crash`] that waits for its trigger is answered when the power is cut. An unknown
//! command or field is an error, never ignored. Stalls belong to the client that asked for them,
//! and are released when it disconnects.

mod message;

pub use message::*;

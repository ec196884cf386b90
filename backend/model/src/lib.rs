//! What a block device was asked to do, and what a power cut may leave of it.
//!
//! - [`event`]: the vocabulary everything shares: what happened on the device, in one total order.
//! - [`crash`]: the crash model. Pure: no I/O, no threads, no clocks. Nothing else in the project
//!   decides what is legal after a power cut.
//! - [`lock`]: who may use a file; QEMU's own locks.
//! - [`named`]: what the I/O priority of a virtio-blk write says about it.
//! - [`guard`]: mapped files that are cut short end nobody.
//! - [`recording`]: the file that holds the events and the written data, and a reader that shows
//!   the disk in any state the crash model names.
//!
//! Arrows point one way: `crash` and `recording` know `event`; `recording` knows what content a
//! crash state has ([`crash::Source`]), `crash` never knows where bytes are kept.

#![deny(unsafe_code)]

pub mod crash;
pub mod event;
pub mod extents;
pub mod guard;
pub mod lock;
pub mod named;
pub mod recording;

//! `tornblkd` as a program, on a host in trouble: files in use, full or failing, cut short, deleted
//! or replaced; signals, limits, and clocks that jump.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../vhost/guest.rs"]
mod guest;
mod locks;
mod rig;

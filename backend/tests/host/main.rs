//! `tornblkd` as a program, on a host in trouble: files in use, full or failing, cut short, deleted
//! or replaced; signals, limits, and clocks that jump.

#![allow(clippy::unwrap_used)]

mod broken;
mod clock;
#[path = "../common/mod.rs"]
mod common;
mod failing_fs;
mod files;
#[allow(dead_code)]
#[path = "../vhost/guest.rs"]
mod guest;
mod limits;
mod locks;
mod rig;
mod signals;
mod space;

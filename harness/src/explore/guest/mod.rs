//! Judging crash states of file systems in a guest that stays booted.
//!
//! Each worker thread has a [`GuestVerifier`]: a guest with one processor, restored from the saved
//! state, and a device that shows the recording's states ([`Device::start_states`]). For each state
//! the two are taken through one round:
//!
//! 1. the device is idle, since the guest has let the last state go: unmounted, opened exclusively,
//!    its buffers dropped;
//! 2. the device is told in which blocks the next state differs, and gives a nonce;
//! 3. the agent does the rest in one command ([`StateCheck`]): it reads the nonce from the disk,
//!    mounts (which replays the log), reads back, unmounts and lets the disk go;
//! 4. the oracle judges what was read, with the promises at that crash point.
//!
//! What recovery writes goes to an overlay of the device that ends with the state. A file system
//! whose log was replayed is looked over by its own checker on every failure, and on one state in
//! so many; a complaint is a finding, and so is what the kernel says of corruption.
//!
//! A guest whose kernel died, hung, or shut a file system down is discarded, and the state tried
//! again in a new one: only what fails there too is a finding. What cannot be judged is
//! [`Verdict::Unsure`](super::Verdict), never passed.
//!
//! [`Device::start_states`]: crate::device::Device::start_states
//! [`StateCheck`]: tornblk_agent::channel::StateCheck

mod case;
mod frozen;
mod fsck;
mod nested;
mod seat;
mod shown;
mod verifier;

pub use case::Case;
pub use frozen::frozen;
pub use seat::{Seat, Stopwatch};
pub use verifier::GuestVerifier;

use crate::run::RealLab;
use crate::vm::{Accel, Qemu};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_image::Image;

/// Of one state in so many a file system's own checker is asked even where nothing is wrong.
pub const FSCK_EVERY: u64 = 50;

/// Between the name of a state and that of a state of the recovery on it.
pub const NESTED: &str = " // ";

/// What guests are made of, and how thorough they are.
#[derive(Clone, Debug)]
pub struct GuestSettings {
    pub tornblkd: PathBuf,
    pub image: Image,
    pub qemu: Qemu,
    pub accel: Accel,
    /// Parameters for its kernel.
    pub append: Option<String>,
    /// An existing folder: each worker makes one of its own in it, for consoles and logs.
    pub dir: PathBuf,
    /// See [`FSCK_EVERY`]; 0: only where something is wrong.
    pub fsck_every: u64,
    /// So many states of the recovery on each state are judged, too.
    pub nested: u64,
    /// Of the choice of those.
    pub seed: u64,
    /// Ctrl-C: who waits for a guest stops waiting.
    pub stop: Arc<AtomicBool>,
}

impl GuestSettings {
    /// With the lab's programs and guest.
    pub fn new(lab: &RealLab, dir: PathBuf, stop: Arc<AtomicBool>) -> GuestSettings {
        GuestSettings {
            tornblkd: lab.tornblkd.clone(),
            image: lab.image.clone(),
            qemu: lab.qemu.clone(),
            accel: lab.accel,
            append: lab.append.clone(),
            dir,
            fsck_every: FSCK_EVERY,
            nested: 0,
            seed: 0,
            stop,
        }
    }
}

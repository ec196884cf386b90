//! One disk under load for long, while everything around it dies and comes back: its device, its
//! QEMU, requests that hang, queues that stop. What the guest wrote must be there, and nothing may
//! grow.
//!
//! `short` is a part of every test run. `long` is what `ci/soak` runs:
//!
//! ```text
//! SOAK_SECONDS=1800 SOAK_DIR=soak-out [SOAK_SEED=N] cargo test --release -p tornblk --test soak -- --ignored --nocapture
//! ```
//!
//! The seed is printed, and what is done in which order comes from it ([`plan`]); when it strikes does
//! not. Where something of it was not done, the soak is inconclusive, and fails.

#![allow(clippy::unwrap_used)]

#[path = "../rig/mod.rs"]
mod rig;

mod blows;
mod cycle;
mod plan;
mod rest;
mod tally;

use cycle::Soak;
use rig::{Device, Dice, Ground, Guest, Load, Store, told};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tornblk::vm::FrontEnd;

#[test]
fn short() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(error) = soak(dir.path(), Duration::ZERO, 3) {
        // What it was is of use; the folder would go.
        panic!("{error}; kept in {}", dir.keep().display());
    }
}

/// Needs minutes: see above.
#[test]
#[ignore = "takes as long as one likes: ci/soak runs it"]
fn long() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let seconds = number("SOAK_SECONDS").unwrap_or(180);
    let seed = number("SOAK_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Dice(now.as_nanos() as u64).next() % 1_000_000
    });
    let dir = PathBuf::from(std::env::var("SOAK_DIR").unwrap_or("soak-out".into()));
    // A test runs in its package's folder.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(dir);
    soak(&dir, Duration::from_secs(seconds), seed).unwrap_or_else(|error| panic!("{error}"));
}

/// The control: a read that shows what was there before is seen by fio, and ends the soak's load.
#[test]
fn a_disk_that_lies_is_caught() {
    let dir = tempfile::tempdir().unwrap();
    let ground = Ground::new();
    let size = 64 << 20;
    let disk = dir.path().join("disk");
    let device = Device::new(&disk, Store::Recorded, FrontEnd::Blk, size, &[]).unwrap();
    let mut guest = Guest::start(&ground, &dir.path().join("guest")).unwrap();
    guest.plug(&device).unwrap();
    let load = Load::random(&mut Dice(1), None, size);
    load.start(&mut guest, 1).unwrap();
    device.client().unwrap().fault("stale-read,p=0.05").unwrap();
    let error = load.end(&mut guest, Duration::from_secs(120)).unwrap_err();
    assert!(error.contains("of fio: status") && error.contains("verify: bad"), "{error}");
}

/// Cycles until the time is over, and at least one of each kind. The verdict and its table go to
/// the terminal and to the file `soak.txt`.
fn soak(dir: &Path, time: Duration, seed: u64) -> rig::Result<()> {
    println!("soak: seed {seed}");
    let mut soak = Soak::new(dir, seed)?;
    let ended = soak.run(time);
    let lacks = soak.lacks();
    let mut text = soak.tally.table();
    let verdict = match ended {
        Err(error) => {
            text += &format!("soak: FAILED (seed {seed}): {error}\n{}", soak.evidence());
            Err(error)
        }
        Ok(()) if !lacks.is_empty() => {
            let lacks = lacks.join("; ");
            text += &format!("soak: INCONCLUSIVE (seed {seed}): {lacks}\n");
            Err(format!("inconclusive: {lacks}"))
        }
        Ok(()) => {
            text += &format!("soak: passed (seed {seed})\n");
            Ok(())
        }
    };
    print!("{text}");
    std::fs::write(dir.join("soak.txt"), text).map_err(told("cannot write the verdict"))?;
    if verdict.is_ok() {
        soak.tidy();
    }
    verdict
}

//! What a hostile guest, front-end, client or file must not bring about.
//!
//! Each [`Target`] is a function of bytes: it makes something hostile of them (chains on real rings,
//! messages over a real socket, files with their checksums repaired), lets the project have it, and
//! panics where a promise is broken. What all of them promise is looked at by [`run`]: no panic on
//! any thread, no more than a second, bounded memory. What each promises besides is told in its
//! module.
//!
//! The same functions run under libFuzzer (`fuzz/libfuzzer`, `ci/fuzz`) and, over the corpora in the
//! tree, as a test on stable. [`Target::reached`] counts how far inputs got, so that a corpus that
//! decays to what is refused at once is noticed.

// A target panics where a promise is broken: that is what it is for.
#![allow(clippy::unwrap_used)]

mod bench;
mod bundles;
mod cdbs;
mod chains;
#[allow(dead_code)]
mod common;
mod control;
mod dish;
mod guest;
mod log_writes;
mod messages;
mod reach;
mod recorded;
mod recordings;
mod store;

pub mod corpus;
pub mod limits;

pub use reach::Reached;

/// Something that takes what others give it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// Panics where a promise is broken.
    pub run: fn(&[u8]),
    /// How far inputs got since the process began.
    pub reached: fn() -> Vec<Reached>,
    /// Bytes that a case may have allocated at a time.
    pub memory: usize,
}

const MIB: usize = 1 << 20;

pub const TARGETS: [Target; 7] = [
    Target { name: "chains", run: chains::run, reached: chains::reached, memory: 32 * MIB },
    Target { name: "messages", run: messages::run, reached: messages::reached, memory: 32 * MIB },
    Target { name: "cdbs", run: cdbs::run, reached: cdbs::reached, memory: 32 * MIB },
    Target {
        name: "recordings",
        run: recordings::run,
        reached: recordings::reached,
        memory: 64 * MIB,
    },
    Target {
        name: "log-writes",
        run: log_writes::run,
        reached: log_writes::reached,
        memory: 32 * MIB,
    },
    Target { name: "control", run: control::run, reached: control::reached, memory: 64 * MIB },
    Target { name: "bundles", run: bundles::run, reached: bundles::reached, memory: 64 * MIB },
];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Has a target take `data`, within the limits that hold for all.
///
/// # Panics
/// There is no such target, or a promise is broken.
pub fn run(name: &str, data: &[u8]) {
    let target = target(name).unwrap_or_else(|| panic!("there is no target `{name}`"));
    limits::within(target.memory, || (target.run)(data));
}

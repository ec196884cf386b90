//! Ctrl-C and its like: the first asks for an end in order, one that comes later ends at once.

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// As a shell says it of a program that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// What sends a signal to a process and to its group (timeout(1), a terminal that closes) is not
/// impatient: it is one wish.
const SAME: Duration = Duration::from_secs(1);

/// Set once SIGINT, SIGTERM or SIGHUP came.
pub(super) fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    static WATCHED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = WATCHED.get() {
        return Ok(Arc::clone(flag));
    }
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    let set = Arc::clone(&flag);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                let first = *first.get_or_insert_with(Instant::now);
                set.store(true, Ordering::Relaxed);
                if first.elapsed() > SAME {
                    // Children die with this process.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            }
        })
        .context("cannot watch for signals")?;
    Ok(Arc::clone(WATCHED.get_or_init(|| flag)))
}

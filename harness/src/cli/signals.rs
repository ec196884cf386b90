//! Ctrl-C and its like: the first asks for an end in order, the second ends at once.

use anyhow::Context;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// As a shell says it of a program that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// Set once SIGINT, SIGTERM or SIGHUP came.
pub(super) fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        // In this order, so that the first does not end it. Children die with this process.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(INTERRUPTED),
            Arc::clone(&flag),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
        .context("cannot watch for signals")?;
    }
    Ok(flag)
}

//! What the threads of a recording device share without a lock: only the protocols, no bytes, so
//! that every interleaving of them can be tried.
//!
//! - [`Order`]: the numbers of the events, and the power cut that lies between two of them.
//! - [`Places`]: where the slot of each number is, as the file grows.
//! - [`Flag`]: one thread wakes another.
//! - [`Seen`]: which available index of each queue was recorded.
//! - [`Window`]: how much may be said in a while.
//!
//! `tests/loom.rs` runs this very code under [loom](https://docs.rs/loom), which tries the orders
//! in which the threads can run and the older values that a load may still see (not that a store
//! overtakes an earlier load, which no test of it can show):
//!
//! ```console
//! $ RUSTFLAGS="--cfg loom" cargo test -p tornblk-lockfree --test loom --release --target-dir target/loom
//! ```

#![forbid(unsafe_code)]

mod order;
mod places;
mod seen;
mod wake;
mod window;

pub use order::Order;
pub use places::Places;
pub use seen::Seen;
pub use wake::Flag;
pub use window::Window;

/// The standard library's, or those of loom.
mod sync {
    #[cfg(loom)]
    pub(crate) use loom::{sync::atomic, thread::yield_now};
    #[cfg(not(loom))]
    pub(crate) use std::{sync::atomic, thread::yield_now};

    /// Another look at what somebody else is about to change.
    pub(crate) fn again(value: &atomic::AtomicU64) -> u64 {
        yield_now();
        value.load(atomic::Ordering::Acquire)
    }
}

//! The same states as [`Cut::states`](super::Cut::states), thousands of times as fast.
//!
//! A [`Walk`] knows, once for a recording, which writes cover each block, and a number for what
//! each of them leaves there. A [`Cursor`] stands at one crash point with one profile, and shows
//! one state after another: as the *reference* of the point (everything submitted so far is
//! persisted) and what is different from it. To go to the next state costs as much as there is
//! different between the two; to go to an earlier point, what happened in between (and a look at
//! what is volatile there).
//!
//! What shows in a block is the newest persisted write over it, wherever no two writes over it were
//! in flight together, no discard may show through and nothing may be garbage. Where that is not
//! so, `exhaustive` and `random` ask the [`Cut`](super::Cut) for their states, and only what shows
//! in the blocks that may differ is worked out here; so is every state that a fault broke. The
//! states, their names, their order and their contents are those of the slow way, always.
//!
//! A fingerprint goes by content: `ids` says which contents of a block are equal. It is the sum,
//! over all blocks, of [`content_hash`](super::content_hash) of what the block holds less that of
//! what the base holds.

mod cursor;
mod point;
mod slow;
mod steps;
mod tables;

pub use cursor::Cursor;
pub use tables::{Ids, Walk};

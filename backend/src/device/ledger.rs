//! What was taken from a queue and not returned yet, written where it outlives the device.
//!
//! A device that dies loses what it has in flight, and a driver waits for each of its requests for
//! ever. So a queue notes each chain before anything is done about it, and strikes it out when the
//! used ring has it; started anew, it takes again what was left, in the order in which it was taken
//! first. What is noted in between says how far a chain came, so that nothing is done twice:
//!
//! | noted | what is done about it again |
//! | --- | --- |
//! | taken | all of it |
//! | moved | its bytes are where they belong: only its answer (stores that record know by themselves) |
//! | answered | the answer is in the guest's memory: it only goes into the used ring |

use crate::store::{Moves, Past};
use std::sync::Arc;

/// The notes on one queue.
pub trait Ledger: Send {
    /// What was taken and never returned, oldest first, where the used ring has `used` entries. What
    /// it was about to be given is struck out first.
    fn left(&mut self, used: u16) -> Vec<Left>;

    /// Notes a chain before anything is done about it. False where its head is noted already, or is
    /// none that this queue has: it is not noted then.
    fn take(&mut self, head: u16, position: u16) -> bool;

    /// The chain's answer stands in the guest's memory, and `len` bytes with it.
    fn answered(&mut self, head: u16, len: u32);

    /// The used ring is about to get it; `None`: one that is not noted.
    fn returning(&mut self, head: Option<u16>);

    /// The used ring has it, and `used` entries now.
    fn returned(&mut self, head: Option<u16>, used: u16);

    /// Strikes out everything.
    fn forget(&mut self);

    /// False once memory failed beneath the guest or the notes, and shows zeroes instead of what was
    /// there: nothing that was read since may be acted upon, or answered.
    fn sound(&self) -> bool {
        true
    }

    /// For the store: where it notes that bytes have moved.
    fn moves(&self) -> Arc<dyn Moves>;
}

/// A chain that was taken and not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub head: u16,
    /// Free-running position in the available ring.
    pub position: u16,
    pub came: Came,
}

/// How far a chain came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// To the store, maybe.
    Begun(Past),
    /// To an answer of so many bytes.
    Answered(u32),
}

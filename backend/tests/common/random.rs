//! What the random tests share: how many, and descriptors that may be anything.

use super::driver::INDIRECT;
use proptest::prelude::*;
use std::ops::Range;

/// A case has at least so many chains or commands.
pub(crate) const EACH: u32 = 8;

/// As many cases as make two thousand chains or commands; as many of those as the environment
/// variable TORNBLK_FUZZ says, where it is set.
pub(crate) fn config() -> ProptestConfig {
    let wanted = std::env::var("TORNBLK_FUZZ").ok().map_or(2000, |n| n.parse().unwrap());
    ProptestConfig {
        cases: u32::div_ceil(wanted, EACH),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A descriptor of a buffer from `addr` with a length from `len`, or of an indirect table in
/// `tables`; `next` mostly stays among the first 32, where most chains begin.
pub(crate) fn piece(
    addr: impl Strategy<Value = u64>,
    len: impl Strategy<Value = u32>,
    tables: Range<u64>,
) -> impl Strategy<Value = Piece> {
    let flags = prop_oneof![6 => 0u16..4, 1 => 4u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..32, 1 => any::<u16>()];
    let table = (0..(tables.end - tables.start) / 16).prop_map(move |i| tables.start + 16 * i);
    let entries = prop_oneof![4 => 1u32..8, 1 => any::<u32>()];
    (addr, len, flags, next, table, entries).prop_map(|(addr, len, flags, next, table, entries)| {
        if flags & INDIRECT == 0 {
            Piece { addr, len, flags, next }
        } else {
            Piece { addr: table, len: entries.wrapping_mul(16), flags, next }
        }
    })
}

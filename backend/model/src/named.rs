//! Names of writes: what an I/O priority can say about one.
//!
//! A virtio-blk request cannot say that it is atomic, or how long it was meant to be. It carries
//! the submitter's I/O priority, though (`virtio_blk_outhdr.ioprio`), and Linux hands that through
//! unchanged from direct I/O whose priority is set per request. Of its 16 bits (Linux
//! `include/uapi/linux/ioprio.h`), 3 are a class, 10 a hint and 3 a level:
//!
//! | bits | in Linux | here |
//! | --- | --- | --- |
//! | 15..13 | class | 2, best effort: the one that every user may set |
//! | 12..7 | hint, upper 6 bits | a name of the guest's choice |
//! | 6..3 | hint, lower 4 bits | `k`: the named write is `512 << (k - 1)` bytes long; 0: no name |
//! | 2..0 | level | anything |
//!
//! Linux gives the lowest hints a meaning of its own (command duration limits: 1 to 7), which only
//! drives with such limits know; a virtio disk is none.
//!
//! Requests of different I/O priority are never merged by Linux; writes with the same name and
//! length may be. A name is for observing: no device refuses a write for it, or treats it otherwise.

/// Linux `IOPRIO_CLASS_BE`.
const BEST_EFFORT: u16 = 2;
const CLASS_SHIFT: u32 = 13;
const NAME_SHIFT: u32 = 7;
const LENGTH_SHIFT: u32 = 3;
const NAME_MASK: u16 = 0x3f;
const LENGTH_MASK: u16 = 0xf;
/// Linux `IOPRIO_BE_NORM`: what a request without a priority has, so that a name gives no
/// advantage.
const NORMAL: u16 = 4;
/// What `k` = 1 stands for, in bytes.
const SHORTEST: u64 = 512;

/// The name of a write: how long it was when it was sent, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// In bytes: a power of two from 512 to [`Named::LONGEST`].
    pub len: u64,
    /// At the guest's choice, up to [`Named::LAST_NAME`].
    pub name: u8,
}

impl Named {
    /// Bytes of the longest write that can be named.
    pub const LONGEST: u64 = SHORTEST << (LENGTH_MASK - 1);
    /// The largest name.
    pub const LAST_NAME: u8 = NAME_MASK as u8;

    /// `None` where an I/O priority cannot say it.
    pub fn new(len: u64, name: u8) -> Option<Named> {
        let sayable = len.is_power_of_two()
            && (SHORTEST..=Self::LONGEST).contains(&len)
            && name <= Self::LAST_NAME;
        sayable.then_some(Named { len, name })
    }

    /// What the I/O priority of a write says; `None` where it names nothing.
    pub fn from_ioprio(ioprio: u16) -> Option<Named> {
        let k = ioprio >> LENGTH_SHIFT & LENGTH_MASK;
        if ioprio >> CLASS_SHIFT != BEST_EFFORT || k == 0 {
            return None;
        }
        let name = (ioprio >> NAME_SHIFT & NAME_MASK) as u8;
        Some(Named { len: SHORTEST << (k - 1), name })
    }

    /// The I/O priority to send the write with; 0, which names nothing and is what Linux sends
    /// where no priority was set, for what [`Named::new`] would refuse.
    pub fn to_ioprio(self) -> u16 {
        let Some(Named { len, name }) = Named::new(self.len, self.name) else { return 0 };
        let k = (len / SHORTEST).ilog2() as u16 + 1;
        BEST_EFFORT << CLASS_SHIFT | u16::from(name) << NAME_SHIFT | k << LENGTH_SHIFT | NORMAL
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bits_lie_where_linux_has_class_hint_and_level() {
        let named = Named::new(16 << 10, 5).unwrap();
        // IOPRIO_PRIO_VALUE_HINT(IOPRIO_CLASS_BE, 4, hint) with hint = 5 << 4 | 6.
        assert_eq!(named.to_ioprio(), 2 << 13 | 0x56 << 3 | 4);
        assert_eq!(Named::LONGEST, 8 << 20);
        assert_eq!(Named::from_ioprio(2 << 13 | 1 << 3), Named::new(512, 0));
        assert_eq!(Named::from_ioprio(2 << 13 | 0x3ff << 3 | 7), Named::new(8 << 20, 63));
    }

    #[test]
    fn what_stock_programs_send_names_nothing() {
        // No priority; the default that Linux fills in; the lowest, and real time.
        for plain in [0, 2 << 13 | 4, 2 << 13, 2 << 13 | 7, 1 << 13 | 4, 3 << 13] {
            assert_eq!(Named::from_ioprio(plain), None, "{plain:#x}");
        }
    }

    #[test]
    fn what_cannot_be_said_is_not_said_wrongly() {
        for (len, name) in [(0, 0), (256, 0), (1000, 0), (12 << 10, 0), (16 << 20, 0), (512, 64)] {
            assert_eq!(Named::new(len, name), None, "{len} {name}");
            assert_eq!(Named { len, name }.to_ioprio(), 0, "{len} {name}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(shift in 0u32..15, name in 0u8..=63, level in 0u16..8) {
            let named = Named::new(512 << shift, name).unwrap();
            let ioprio = named.to_ioprio();
            prop_assert_eq!(Named::from_ioprio(ioprio), Some(named));
            prop_assert_eq!(Named::from_ioprio(ioprio & !7 | level), Some(named));
        }

        #[test]
        fn every_priority_is_understood_or_names_nothing(ioprio: u16) {
            match Named::from_ioprio(ioprio) {
                Some(named) => {
                    prop_assert_eq!(ioprio >> 13, 2);
                    prop_assert_eq!(Named::new(named.len, named.name), Some(named));
                    prop_assert_eq!(named.to_ioprio() & !7, ioprio & !7);
                }
                None => prop_assert!(ioprio >> 13 != 2 || ioprio >> 3 & 0xf == 0),
            }
        }

        #[test]
        fn different_names_differ_in_what_linux_compares(a in 0u8..=63, b in 0u8..=63, s in 0u32..15) {
            let ioprio = |name| Named::new(512 << s, name).unwrap().to_ioprio();
            prop_assert_eq!(ioprio(a) == ioprio(b), a == b);
        }
    }
}

//! The logical units. One disk is one of them, LUN 0; or the address space of the store is divided into
//! several, which lie in it one after another. They have the queues, the order of their requests, the
//! write cache and the power in common. What each has by itself: its addresses, which begin at 0 and end
//! where the next one begins; its serial number; its flushes, which are of its own bytes
//! ([`Op::Flush`]); its unit attention.
//!
//! Of several, the write cache cannot be switched: it is one, and turned off for one disk it would make
//! safe what another one's driver believes to be volatile.

use super::sense::Sense;
use super::wire::Address;
use super::{Scsi, inquiry};
use crate::device::size::Size;
use crate::store::Op;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};
use tornblk_model::event::Disk;

/// Logical units that there may be.
pub const UNITS_MAX: usize = 64;
/// A unit has a multiple of so many bytes.
pub const UNIT_BYTES: u64 = 1 << 20;
/// Letters of a unit's name.
const NAME_MAX: usize = 16;

/// One of several logical units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Its serial number ends in it: lower-case letters, digits, `_` and `-`, beginning with a letter.
    pub name: String,
    pub bytes: u64,
}

impl FromStr for Lun {
    type Err = String;

    /// `NAME=SIZE`
    fn from_str(text: &str) -> Result<Lun, String> {
        let Some((name, size)) = text.split_once('=') else {
            return Err("write NAME=SIZE, such as log=64m".to_owned());
        };
        let letter = |c: char| c.is_ascii_lowercase();
        let rest = |c: char| letter(c) || c.is_ascii_digit() || c == '_' || c == '-';
        if !name.starts_with(letter) || !name.chars().all(rest) || name.len() > NAME_MAX {
            return Err(format!(
                "'{name}' cannot be a disk's name: lower-case letters, digits, _ and -, at most \
                 {NAME_MAX}, the first one a letter"
            ));
        }
        let Size(bytes) =
            size.parse().map_err(|e: crate::device::size::SizeError| e.to_string())?;
        if bytes == 0 || !bytes.is_multiple_of(UNIT_BYTES) {
            return Err(format!("{name} has {}: give it a multiple of 1m", Size(bytes)));
        }
        Ok(Lun { name: name.to_owned(), bytes })
    }
}

impl Lun {
    /// Do they make up the whole disk?
    ///
    /// # Errors
    /// Why not: a sentence.
    pub fn check(luns: &[Lun], capacity: u64) -> Result<(), String> {
        if luns.len() > UNITS_MAX {
            return Err(format!("{} logical units are too many: at most {UNITS_MAX}", luns.len()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = luns.iter().find(|lun| !names.insert(&lun.name)) {
            return Err(format!(
                "two logical units have the name {}: give each its own",
                twice.name
            ));
        }
        let sum = luns.iter().try_fold(0u64, |sum, lun| sum.checked_add(lun.bytes));
        if luns.is_empty() || sum == Some(capacity) {
            return Ok(());
        }
        Err(format!(
            "the logical units have {} together, and the disk has {}: the one must be the other",
            sum.map_or("too much".to_owned(), |sum| Size(sum).to_string()),
            Size(capacity)
        ))
    }
}

/// A logical unit.
#[derive(Debug)]
pub(super) struct Unit {
    /// `None`: it is the only one, and all of the store's disk.
    part: Option<Part>,
    /// A unit attention that waits to be told: see [`ATTENTIONS`].
    attention: AtomicU8,
}

/// Where one of several lies.
#[derive(Debug)]
struct Part {
    name: String,
    start: u64,
    bytes: u64,
}

/// Unit attention conditions by their number; 0 is none.
const ATTENTIONS: [Sense; 3] = [Sense::WAS_RESET, Sense::NEXUS_LOST, Sense::CAPACITY_CHANGED];

impl Unit {
    pub(super) fn all(luns: Vec<Lun>) -> Vec<Unit> {
        if luns.is_empty() {
            return vec![Unit { part: None, attention: AtomicU8::new(0) }];
        }
        let mut start = 0;
        let unit = |Lun { name, bytes }| {
            let part = Some(Part { name, start, bytes });
            start += bytes;
            Unit { part, attention: AtomicU8::new(0) }
        };
        luns.into_iter().map(unit).collect()
    }

    /// From now on the next command is told this.
    pub(super) fn attend(&self, attention: Sense) {
        let number = ATTENTIONS.iter().position(|known| *known == attention);
        let number = number.map_or(0, |at| at as u8 + 1);
        self.attention.store(number, Ordering::Release);
    }

    /// Nobody is told what waited.
    pub(super) fn forget(&self) {
        self.attention.store(0, Ordering::Release);
    }

    /// The unit attention that waits: told once.
    fn attention(&self) -> Option<Sense> {
        if self.attention.load(Ordering::Acquire) == 0 {
            return None;
        }
        let number = self.attention.swap(0, Ordering::AcqRel);
        ATTENTIONS.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The device, seen through one of its logical units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lu<'a> {
    device: &'a Scsi,
    unit: &'a Unit,
}

impl Deref for Lu<'_> {
    type Target = Scsi;

    fn deref(&self) -> &Scsi {
        self.device
    }
}

impl Lu<'_> {
    pub(super) fn disk(&self) -> Disk {
        let all = self.device.disk();
        match &self.unit.part {
            Some(Part { bytes, .. }) => Disk { capacity: *bytes, ..all },
            None => all,
        }
    }

    /// Where its first byte lies in the store.
    pub(super) fn start(&self) -> u64 {
        self.unit.part.as_ref().map_or(0, |part| part.start)
    }

    /// A flush of all that it has.
    pub(super) fn flush(&self) -> Op {
        match &self.unit.part {
            Some(Part { start, bytes, .. }) => Op::Flush { offset: *start, len: *bytes },
            None => Op::FLUSH,
        }
    }

    /// May WCE be switched?
    pub(super) fn switches_wce(&self) -> bool {
        self.unit.part.is_none()
    }

    pub(super) fn attention(&self) -> Option<Sense> {
        self.unit.attention()
    }

    /// What GET_ID answers on virtio-blk; of several, with the unit's name between serial number and
    /// nonce.
    pub(super) fn serial(&self) -> String {
        let id = self.device.id();
        let len = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        let text = String::from_utf8_lossy(&id[..len]).into_owned();
        let Some(Part { name, .. }) = &self.unit.part else { return text };
        let plain = inquiry::plain(&text);
        format!("{plain}-{name}{}", &text[plain.len()..])
    }
}

impl Scsi {
    /// The number of the logical unit at that address.
    pub(super) fn number_of(&self, to: Address) -> Option<usize> {
        match to {
            Address::Unit(lun) => Some(usize::from(lun)).filter(|n| *n < self.units.len()),
            _ => None,
        }
    }

    pub(super) fn lu(&self, number: usize) -> Lu<'_> {
        Lu { device: self, unit: &self.units[number] }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_are_named_and_make_up_the_disk() {
        let lun = |text: &str| text.parse::<Lun>();
        let log = Lun { name: "log".into(), bytes: 64 << 20 };
        assert_eq!(lun("log=64m"), Ok(log.clone()));
        for (text, why) in [
            ("log", "NAME=SIZE"),
            ("=1m", "cannot be a disk's name"),
            ("Log=1m", "cannot be a disk's name"),
            ("1og=1m", "cannot be a disk's name"),
            ("a-name-too-long--=1m", "at most 16"),
            ("log=0", "a multiple of 1m"),
            ("log=1536k", "a multiple of 1m"),
            ("log=much", "is no size"),
        ] {
            let error = lun(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let main = Lun { name: "main".into(), bytes: 1 << 30 };
        assert_eq!(Lun::check(&[main.clone(), log.clone()], (1 << 30) + (64 << 20)), Ok(()));
        assert_eq!(Lun::check(&[], 5), Ok(()));
        let check = |luns: &[Lun]| Lun::check(luns, 1 << 30).unwrap_err();
        assert!(
            check(&[main.clone(), log.clone()]).contains("1088m together, and the disk has 1g")
        );
        assert!(check(&[log.clone(), log.clone()]).contains("two logical units have the name log"));
        let many = (0..=UNITS_MAX).map(|n| Lun { name: format!("d{n}"), bytes: 1 << 20 });
        assert!(check(&many.collect::<Vec<_>>()).contains("65 logical units are too many"));
        let huge = Lun { name: "huge".into(), bytes: u64::MAX << 20 };
        assert!(check(&[huge, log]).contains("too much together"));
    }
}

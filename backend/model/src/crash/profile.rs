//! What a disk promises, and the name of that promise.
//!
//! A name is a head and modifiers: `<head>[+<modifier>]...`, sizes as in [`size`].
//!
//! | head | `mode` | and |
//! | --- | --- | --- |
//! | `lb4k`, `lba16k` | none | `lb_size`; both spellings are read, `lba` is written above 4 KiB |
//! | `lb` | none | whatever the logical block is |
//! | `piece16k` | none | `tear_unit` |
//! | `garbage` | none | `garbage` |
//! | `req16k` | implicit | `max_bytes`, and `unit_max` the largest power of two in it |
//! | `explicit16k` | explicit | likewise |
//!
//! Modifiers, in the order in which they are written: `+max`, `+unit`, `+min`, `+b`, `+tear`,
//! `+lb` (each with a size: `max_bytes`, `unit_max`, `unit_min`, `boundary`, `tear_unit`,
//! `lb_size`), `+discard-old`, `+discard-either`, `+garbage`. So every value of [`Profile`] has
//! exactly one name.

use super::{AtomicMode, DiscardReads, ModelError, Profile, size};
use crate::event::{Disk, SECTOR};
use std::fmt;
use std::str::FromStr;

impl Profile {
    /// A disk that promises nothing above the logical block.
    pub const PLAIN: Profile = Profile {
        mode: AtomicMode::None,
        unit_min: 0,
        unit_max: 0,
        max_bytes: 0,
        boundary: 0,
        tear_unit: 0,
        lb_size: None,
        discard: DiscardReads::Zeroes,
        garbage: false,
    };

    /// Is a write of these bytes all-or-nothing? `offset` and `len` as the driver sent them.
    pub fn eligible(&self, offset: u64, len: u64, sent_as_atomic: bool) -> bool {
        let fits = 0 < len && len <= self.max_bytes;
        fits && match self.mode {
            AtomicMode::Implicit => !self.crosses_boundary(offset, len),
            AtomicMode::Explicit => sent_as_atomic,
            AtomicMode::None => false,
        }
    }

    /// Are these bytes, a part of a write or all of it, one piece that a tear leaves as it is, whatever
    /// else is written with it?
    pub fn is_one_piece(&self, lb_size: u32, offset: u64, len: u64) -> bool {
        let piece = if self.tear_unit == 0 { u64::from(lb_size) } else { self.tear_unit };
        !self.garbage && len > 0 && offset / piece == offset.saturating_add(len - 1) / piece
    }

    /// Does a write of these bytes cross a multiple of the boundary?
    pub fn crosses_boundary(&self, offset: u64, len: u64) -> bool {
        self.boundary != 0 && len > 0 && {
            let last = offset.saturating_add(len - 1);
            offset / self.boundary != last / self.boundary
        }
    }

    /// Bytes of the smallest piece that a non-atomic write to `disk` is cut into.
    pub fn tear_unit_on(&self, disk: &Disk) -> u64 {
        if self.tear_unit == 0 { u64::from(disk.lb_size) } else { self.tear_unit }
    }

    /// The same promise with nothing said that `disk` says already, for a short name: a tear unit
    /// or `unit_min` of one logical block, and the logical block size, where it is the disk's.
    #[must_use]
    pub fn on(&self, disk: &Disk) -> Profile {
        let lb = u64::from(disk.lb_size);
        let mut short = self.clone();
        if short.tear_unit == lb {
            short.tear_unit = 0;
        }
        if short.unit_min == lb && short.unit_max >= lb {
            short.unit_min = 0;
        }
        let needs_head = short.mode == AtomicMode::None && short.tear_unit == 0 && !short.garbage;
        short.lb_size = match short.lb_size {
            None if needs_head => Some(disk.lb_size),
            Some(size) if size == disk.lb_size && !needs_head => None,
            other => other,
        };
        short
    }

    /// Refuses what contradicts itself or the disk, with the value that would work.
    pub fn check(&self, disk: &Disk) -> Result<(), ModelError> {
        let refuse = |why: String| Err(ModelError::Profile(format!("profile {self}: {why}")));
        let lb = u64::from(disk.lb_size);
        if let Some(wanted) = self.lb_size
            && wanted != disk.lb_size
        {
            return refuse(format!(
                "it is about a logical block of {}, but the disk's is {}; use a profile without \
                 a block size (piece{} for untorn pieces of that size)",
                size::print(u64::from(wanted)),
                size::print(lb),
                size::print(u64::from(wanted)),
            ));
        }
        let tear = self.tear_unit_on(disk);
        if !tear.is_multiple_of(lb) {
            return refuse(format!(
                "the tear unit {} is no multiple of the logical block ({}); use {}",
                size::print(tear),
                size::print(lb),
                size::print(tear.next_multiple_of(lb)),
            ));
        }
        for (what, value) in [
            ("unit_min", self.unit_min),
            ("unit_max", self.unit_max),
            ("the boundary", self.boundary),
        ] {
            if value == 0 {
                continue;
            }
            if !value.is_power_of_two() {
                return refuse(format!(
                    "{what} is {}, which is no power of two; use {}",
                    size::print(value),
                    size::print(power_of_two_in(value).max(lb)),
                ));
            }
            if value < lb {
                return refuse(format!(
                    "{what} is {}, below the logical block; use {} or more",
                    size::print(value),
                    size::print(lb),
                ));
            }
        }
        if !self.max_bytes.is_multiple_of(SECTOR) {
            return refuse(format!(
                "max_bytes is {}, no multiple of {SECTOR}; use {}",
                size::print(self.max_bytes),
                size::print(self.max_bytes.next_multiple_of(SECTOR)),
            ));
        }
        if self.mode != AtomicMode::None && 0 < self.max_bytes && self.max_bytes < lb {
            return refuse(format!(
                "max_bytes is {}, below the logical block; use {} or more",
                size::print(self.max_bytes),
                size::print(lb),
            ));
        }
        if self.unit_min > self.unit_max {
            return refuse(format!(
                "unit_min ({}) is above unit_max ({}); use {} for both",
                size::print(self.unit_min),
                size::print(self.unit_max),
                size::print(self.unit_min.max(self.unit_max)),
            ));
        }
        if self.unit_max > self.max_bytes {
            return refuse(format!(
                "unit_max ({}) is above max_bytes ({}); use a max_bytes of {}",
                size::print(self.unit_max),
                size::print(self.max_bytes),
                size::print(self.unit_max),
            ));
        }
        if self.boundary != 0 && self.boundary < self.max_bytes {
            return refuse(format!(
                "the boundary ({}) is below max_bytes ({}), which no kernel accepts; use a \
                 boundary of {} or a max_bytes of {}",
                size::print(self.boundary),
                size::print(self.max_bytes),
                size::print(self.max_bytes.next_power_of_two()),
                size::print(self.boundary),
            ));
        }
        Ok(())
    }
}

/// The largest power of two that is at most `value`; 0 for 0.
fn power_of_two_in(value: u64) -> u64 {
    if value == 0 { 0 } else { 1 << value.ilog2() }
}

fn unknown(name: &str) -> ModelError {
    ModelError::Profile(format!(
        "'{name}' is no profile: write lb512, lb4k, req16k, req16k+b16k, piece16k, explicit16k, \
         lba16k or garbage, with any size, and modifiers such as +tear16k or +discard-either"
    ))
}

impl FromStr for Profile {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let sized = |text: &str| size::parse(text).ok_or_else(|| unknown(name));
        let block = |text: &str| {
            u32::try_from(sized(text)?).ok().filter(|b| *b != 0).ok_or_else(|| unknown(name))
        };
        let mut words = name.split('+');
        let head = words.next().unwrap_or_default();
        let mut profile = Profile::PLAIN;
        if head == "garbage" {
            profile.garbage = true;
        } else if head == "lb" {
        } else if let Some(text) = head.strip_prefix("lba").or(head.strip_prefix("lb")) {
            profile.lb_size = Some(block(text)?);
        } else if let Some(text) = head.strip_prefix("piece") {
            profile.tear_unit = sized(text)?;
        } else if let Some((mode, text)) = head
            .strip_prefix("req")
            .map(|text| (AtomicMode::Implicit, text))
            .or(head.strip_prefix("explicit").map(|text| (AtomicMode::Explicit, text)))
        {
            profile.mode = mode;
            profile.max_bytes = sized(text)?;
            profile.unit_max = power_of_two_in(profile.max_bytes);
        } else {
            return Err(unknown(name));
        }
        for word in words {
            match word {
                "discard-zeroes" => profile.discard = DiscardReads::Zeroes,
                "discard-old" => profile.discard = DiscardReads::Old,
                "discard-either" => profile.discard = DiscardReads::Either,
                "garbage" => profile.garbage = true,
                _ => {
                    if let Some(text) = word.strip_prefix("max") {
                        profile.max_bytes = sized(text)?;
                    } else if let Some(text) = word.strip_prefix("unit") {
                        profile.unit_max = sized(text)?;
                    } else if let Some(text) = word.strip_prefix("min") {
                        profile.unit_min = sized(text)?;
                    } else if let Some(text) = word.strip_prefix("tear") {
                        profile.tear_unit = sized(text)?;
                    } else if let Some(text) = word.strip_prefix("lb") {
                        profile.lb_size = Some(block(text)?);
                    } else if let Some(text) = word.strip_prefix('b') {
                        profile.boundary = sized(text)?;
                    } else {
                        return Err(unknown(name));
                    }
                }
            }
        }
        Ok(profile)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the head says need not be said again.
        let mut said = Profile::PLAIN;
        match self.mode {
            AtomicMode::Implicit | AtomicMode::Explicit => {
                let head = if self.mode == AtomicMode::Implicit { "req" } else { "explicit" };
                write!(f, "{head}{}", size::print(self.max_bytes))?;
                said.max_bytes = self.max_bytes;
                said.unit_max = power_of_two_in(self.max_bytes);
            }
            AtomicMode::None if self.tear_unit != 0 => {
                write!(f, "piece{}", size::print(self.tear_unit))?;
                said.tear_unit = self.tear_unit;
            }
            AtomicMode::None => match self.lb_size {
                Some(bytes) => {
                    let head = if bytes > 4096 { "lba" } else { "lb" };
                    write!(f, "{head}{}", size::print(u64::from(bytes)))?;
                    said.lb_size = self.lb_size;
                }
                None if self.garbage => {
                    f.write_str("garbage")?;
                    said.garbage = true;
                }
                None => f.write_str("lb")?,
            },
        }
        for (word, value, known) in [
            ("max", self.max_bytes, said.max_bytes),
            ("unit", self.unit_max, said.unit_max),
            ("min", self.unit_min, said.unit_min),
            ("b", self.boundary, said.boundary),
            ("tear", self.tear_unit, said.tear_unit),
        ] {
            if value != known {
                write!(f, "+{word}{}", size::print(value))?;
            }
        }
        if let Some(bytes) = self.lb_size
            && said.lb_size.is_none()
        {
            write!(f, "+lb{}", size::print(u64::from(bytes)))?;
        }
        match self.discard {
            DiscardReads::Zeroes => {}
            DiscardReads::Old => f.write_str("+discard-old")?,
            DiscardReads::Either => f.write_str("+discard-either")?,
        }
        if self.garbage && !said.garbage {
            f.write_str("+garbage")?;
        }
        Ok(())
    }
}

//! Block sizes and atomic-write limits: from what the user asked for to what the disk promises.
//!
//! Names and units are those of Linux `queue/atomic_write_*`: bytes. VIRTIO has no field for
//! atomic-write limits (1.4 ends at feature bit 17). The device offers a feature bit of its own with
//! fields for them, `blk::VIRTIO_BLK_F_ATOMIC`. A stock front-end drops that, but passes byte 33 of
//! the configuration space through, `unused0`, which a device must otherwise set to 0; see
//! [`Limits::config_byte`]. That is a deliberate deviation, made only when limits are set.
//!
//! SCSI has fields, in logical blocks, in the Block Limits VPD page (SBC-4, 6.6.4). They say less in
//! one way: there is none for `unit_max`. Linux takes the largest power of two in the longest
//! atomic transfer, or, where the disk has a boundary, in the largest atomic boundary.

use super::FrontEnd;
use super::scsi::{ATOMIC_MAX_BLOCKS, FRONT_END_SEG_MAX};
use super::size::Size;
use tornblk_model::crash::{AtomicMode, Profile};

/// Smallest and largest logical block, in bytes. Linux takes up to 64 KiB (from 6.15 on; before,
/// up to its page size).
pub const LOGICAL_BLOCK: std::ops::RangeInclusive<u32> = 512..=65536;
/// Largest physical block, in bytes.
pub const PHYSICAL_BLOCK_MAX: u32 = 1 << 20;
/// No limit is larger, in bytes: Linux, NVMe's and SCSI's fields and our own have 32 bits.
pub const LIMIT_MAX: u64 = 1 << 31;
/// Page size that a guest's segments are sure to have, for [`carried_by`].
const PAGE: u64 = 4096;
/// Linux never builds a bio of more segments (`BIO_MAX_VECS`).
const BIO_SEGMENTS: u64 = 256;
/// Largest logical block of a SCSI disk that Linux takes (`sd_read_capacity`).
const SCSI_BLOCK_MAX: u32 = 4096;
/// What four bits of [`Limits::config_byte`] can say above 512 bytes.
const CONFIG_UNIT_MAX: u64 = 512 << 14;

/// What the user asked for. `None`: not said.
#[derive(Clone, Debug, Default)]
pub struct LimitOptions {
    pub logical_block_size: Option<u64>,
    pub physical_block_size: Option<u64>,
    pub unit_min: Option<u64>,
    pub unit_max: Option<u64>,
    pub max_bytes: Option<u64>,
    pub boundary: Option<u64>,
    pub mode: Option<AtomicMode>,
    pub tear_unit: Option<u64>,
    /// The short form; not together with any of the above but the block sizes.
    pub profile: Option<Profile>,
    /// Segments that a request may have, as the driver is told.
    pub seg_max: u32,
    pub front_end: FrontEnd,
}

/// What the disk promises. Only made by [`Limits::new`], so they never contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `blk_size`, in bytes.
    pub logical_block_size: u32,
    /// In bytes; at least the logical block size.
    pub physical_block_size: u32,
    /// The whole of it, for the crash model.
    pub profile: Profile,
    /// Made for this one.
    pub front_end: FrontEnd,
}

/// Why the limits were refused: a sentence for the user, with a value that would work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitsError(String);

macro_rules! refuse {
    ($($arg:tt)*) => { return Err(LimitsError(format!($($arg)*))) };
}

impl Limits {
    /// # Errors
    /// The first thing that contradicts itself, VIRTIO, or what Linux would accept.
    pub fn new(want: &LimitOptions) -> Result<Limits, LimitsError> {
        let logical = logical_block(want)?;
        let physical = physical_block(want, logical)?;
        if want.front_end == FrontEnd::Scsi && logical > SCSI_BLOCK_MAX {
            refuse!(
                "the logical block size {} is too large for a SCSI disk, of which Linux takes 512 \
                 to 4k: use {} or less, or --front-end blk",
                Size(logical.into()),
                Size(SCSI_BLOCK_MAX.into())
            );
        }
        let profile = match &want.profile {
            Some(profile) => named(want, profile, logical)?,
            None => described(want, logical)?,
        };
        check(&profile, logical, want).map_err(|error| match &want.profile {
            // The user never said the option that the sentence is about.
            Some(profile) => LimitsError(format!("--profile {profile} means that {error}")),
            None => error,
        })?;
        Ok(Limits {
            logical_block_size: logical,
            physical_block_size: physical,
            profile,
            front_end: want.front_end,
        })
    }

    /// Are there writes above the logical block that the device can recognise as atomic and keep
    /// whole? virtio-blk cannot say which ones it asks for; SCSI can.
    pub fn atomic(&self) -> bool {
        let recognised = match self.profile.mode {
            AtomicMode::Implicit => true,
            AtomicMode::Explicit => self.front_end == FrontEnd::Scsi,
            AtomicMode::None => false,
        };
        recognised && self.profile.unit_max > 0
    }

    /// Byte 33 of `virtio_blk_config`: `((1 + log2(unit_max / 512)) << 4) | log2(unit_min / 512)`;
    /// 0 where there are no limits. The largest atomic write is `unit_max` as well.
    pub fn config_byte(&self) -> u8 {
        if !self.atomic() {
            return 0;
        }
        // Both nibbles fit: `check` bounds `unit_max` by `CONFIG_UNIT_MAX`.
        let log2 = |bytes: u64| (bytes / 512).ilog2() as u8;
        ((1 + log2(self.profile.unit_max)) << 4) | log2(self.profile.unit_min)
    }

    /// What a driver that only knows [`Limits::config_byte`] will take for true and is not: a
    /// sentence, for the log. `None` where the byte says all there is.
    pub fn beyond_config_byte(&self) -> Option<String> {
        let Profile { unit_max, max_bytes, boundary, .. } = self.profile;
        if !self.atomic() {
            return None;
        }
        let mut unsaid = Vec::new();
        if max_bytes > unit_max {
            unsaid.push(format!(
                "requests of up to {} are atomic: it will merge up to {} only",
                Size(max_bytes),
                Size(unit_max)
            ));
        }
        if boundary != 0 {
            unsaid.push(format!(
                "there is a boundary of {}: it may merge writes across it, which are then torn there",
                Size(boundary)
            ));
        }
        (!unsaid.is_empty()).then(|| {
            format!(
                "a driver that knows the atomic limits from byte 33 of the configuration space alone \
                 cannot know that {}",
                unsaid.join("; nor that ")
            )
        })
    }

    /// In bytes, never 0.
    pub fn tear_unit(&self) -> u64 {
        match self.profile.tear_unit {
            0 => u64::from(self.logical_block_size),
            unit => unit,
        }
    }
}

/// As on the command line.
pub fn mode_name(mode: AtomicMode) -> &'static str {
    match mode {
        AtomicMode::Implicit => "implicit",
        AtomicMode::Explicit => "explicit",
        AtomicMode::None => "none",
    }
}

/// The longest write, as a power of two, that a request of `seg_max` segments is sure to carry
/// whatever its buffer's alignment: Linux cuts `atomic_write_unit_max` down to this
/// (`blk_queue_max_guaranteed_bio`: the first and the last segment may hold as little as a logical
/// block).
pub fn carried_by(seg_max: u32, logical: u32) -> u64 {
    let segments = u64::from(seg_max).min(BIO_SEGMENTS);
    let bytes = segments.min(2) * u64::from(logical) + segments.saturating_sub(2) * PAGE;
    power_below(bytes)
}

fn longer_queue(helps: bool) -> &'static str {
    if helps { ", or a larger --queue-size" } else { "" }
}

fn power_below(n: u64) -> u64 {
    n.checked_ilog2().map_or(0, |log| 1 << log)
}

fn need_power_of_two(option: &str, value: u64) -> Result<(), LimitsError> {
    need_power_of_two_up_to(option, value, u64::MAX)
}

/// Names no value above `most`, which would be refused next.
fn need_power_of_two_up_to(option: &str, value: u64, most: u64) -> Result<(), LimitsError> {
    if value.is_power_of_two() {
        return Ok(());
    }
    let below = power_below(value).max(512).min(most);
    match value.checked_next_power_of_two().filter(|&above| above != below && above <= most) {
        Some(above) if value > 512 => refuse!(
            "{option} {} is no power of two: use {} or {}",
            Size(value),
            Size(below),
            Size(above)
        ),
        _ => refuse!("{option} {} is no power of two: use {}", Size(value), Size(below)),
    }
}

fn logical_block(want: &LimitOptions) -> Result<u32, LimitsError> {
    let demanded = want.profile.as_ref().and_then(|p| p.lb_size);
    let size = match (want.logical_block_size, demanded) {
        (Some(asked), Some(named)) if asked != u64::from(named) => refuse!(
            "the profile demands a logical block size of {}, and --logical-block-size says {}: \
             leave one out",
            Size(named.into()),
            Size(asked)
        ),
        (Some(asked), _) => asked,
        (None, Some(named)) => named.into(),
        (None, None) => 512,
    };
    need_power_of_two("--logical-block-size", size)?;
    match u32::try_from(size) {
        Ok(size) if LOGICAL_BLOCK.contains(&size) => Ok(size),
        _ => refuse!(
            "--logical-block-size {} is out of range: use a power of two from 512 to 64k",
            Size(size)
        ),
    }
}

fn physical_block(want: &LimitOptions, logical: u32) -> Result<u32, LimitsError> {
    let Some(size) = want.physical_block_size else { return Ok(logical) };
    need_power_of_two("--physical-block-size", size)?;
    if size < logical.into() {
        refuse!(
            "--physical-block-size {} is below the logical block size: use {} or more",
            Size(size),
            Size(logical.into())
        );
    }
    match u32::try_from(size) {
        Ok(size) if size <= PHYSICAL_BLOCK_MAX => Ok(size),
        _ => refuse!(
            "--physical-block-size {} is out of range: use at most {}",
            Size(size),
            Size(PHYSICAL_BLOCK_MAX.into())
        ),
    }
}

/// The short form: `--profile`.
fn named(want: &LimitOptions, profile: &Profile, logical: u32) -> Result<Profile, LimitsError> {
    let said = [
        ("--atomic-unit-min", want.unit_min.is_some()),
        ("--atomic-unit-max", want.unit_max.is_some()),
        ("--atomic-max-bytes", want.max_bytes.is_some()),
        ("--atomic-boundary", want.boundary.is_some()),
        ("--atomic-mode", want.mode.is_some()),
        ("--tear-unit", want.tear_unit.is_some()),
    ];
    if let Some((option, _)) = said.iter().find(|(_, said)| *said) {
        refuse!("--profile already says what {option} says: leave one of them out");
    }
    let mut profile = profile.clone();
    // A profile's name says only its largest write.
    if profile.unit_max > 0 {
        profile.unit_min = profile.unit_min.max(logical.into());
    }
    Ok(profile)
}

/// The long form: one option for each limit.
fn described(want: &LimitOptions, logical: u32) -> Result<Profile, LimitsError> {
    let lb = u64::from(logical);
    let mut profile = Profile { tear_unit: want.tear_unit.unwrap_or(0), ..Profile::PLAIN };
    if want.tear_unit == Some(0) {
        refuse!("--tear-unit 0 would cut a write into nothing: use {} or more", Size(lb));
    }
    let limits = [
        ("--atomic-unit-min", want.unit_min),
        ("--atomic-unit-max", want.unit_max),
        ("--atomic-max-bytes", want.max_bytes),
        ("--atomic-boundary", want.boundary),
    ];
    if let Some((option, _)) = limits.iter().find(|(_, value)| *value == Some(0)) {
        refuse!("{option} 0 promises nothing: leave it out, or use {} or more", Size(lb));
    }
    let Some(largest) = want.max_bytes.or(want.unit_max) else {
        if let Some((option, _)) = limits.iter().find(|(_, value)| value.is_some()) {
            refuse!("{option} says nothing without --atomic-unit-max: add it (16k, say)");
        }
        return match want.mode {
            None | Some(AtomicMode::None) => Ok(profile),
            Some(mode) => refuse!(
                "--atomic-mode {} says which writes are atomic, but not how long they may be: add \
                 --atomic-unit-max (16k, say)",
                mode_name(mode)
            ),
        };
    };
    profile.mode = want.mode.unwrap_or(AtomicMode::Implicit);
    if profile.mode == AtomicMode::None {
        refuse!("--atomic-mode none takes no limits: leave it out, or leave the limits out");
    }
    profile.unit_max = want.unit_max.unwrap_or_else(|| power_below(largest));
    if profile.unit_max < lb {
        let option =
            if want.unit_max.is_some() { "--atomic-unit-max" } else { "--atomic-max-bytes" };
        refuse!(
            "{option} {} is below the logical block size: use {} or more",
            Size(largest.min(profile.unit_max)),
            Size(lb)
        );
    }
    profile.unit_min = want.unit_min.unwrap_or(lb);
    profile.max_bytes = largest;
    profile.boundary = want.boundary.unwrap_or(0);
    Ok(profile)
}

/// What every profile must keep to, however it was said.
fn check(p: &Profile, logical: u32, want: &LimitOptions) -> Result<(), LimitsError> {
    let seg_max = want.seg_max;
    let lb = u64::from(logical);
    if !p.tear_unit.is_multiple_of(lb) {
        refuse!(
            "--tear-unit {} is no multiple of the logical block size, which is never torn: use {}",
            Size(p.tear_unit),
            Size(p.tear_unit.next_multiple_of(lb))
        );
    }
    if p.unit_max == 0 {
        return Ok(());
    }
    need_power_of_two("--atomic-unit-min", p.unit_min)?;
    need_power_of_two_up_to("--atomic-unit-max", p.unit_max, carried_by(seg_max, logical))?;
    if p.unit_min < lb {
        refuse!(
            "--atomic-unit-min {} is below the logical block size: use {} or more",
            Size(p.unit_min),
            Size(lb)
        );
    }
    if p.unit_min > p.unit_max {
        refuse!(
            "--atomic-unit-min {} is more than --atomic-unit-max {}: use {} or less",
            Size(p.unit_min),
            Size(p.unit_max),
            Size(p.unit_max)
        );
    }
    if p.max_bytes < p.unit_max {
        refuse!(
            "--atomic-max-bytes {} is less than --atomic-unit-max {}: use {} or more",
            Size(p.max_bytes),
            Size(p.unit_max),
            Size(p.unit_max)
        );
    }
    if !p.max_bytes.is_multiple_of(lb) {
        refuse!(
            "--atomic-max-bytes {} is no multiple of the logical block size: use {}",
            Size(p.max_bytes),
            Size(p.max_bytes - p.max_bytes % lb)
        );
    }
    for (option, value) in [("--atomic-max-bytes", p.max_bytes), ("--atomic-boundary", p.boundary)]
    {
        if value > LIMIT_MAX {
            refuse!(
                "{option} {} does not fit in a limit's 32 bits: use {} or less",
                Size(value),
                Size(LIMIT_MAX)
            );
        }
    }
    if p.boundary != 0 {
        need_power_of_two("--atomic-boundary", p.boundary)?;
        if p.boundary < p.max_bytes {
            refuse!(
                "--atomic-boundary {} is less than the longest atomic write, {}: use {} or more",
                Size(p.boundary),
                Size(p.max_bytes),
                Size(p.max_bytes.next_power_of_two())
            );
        }
    }
    if want.front_end == FrontEnd::Scsi {
        return check_scsi(p, logical, seg_max);
    }
    let carried = carried_by(seg_max, logical).min(CONFIG_UNIT_MAX);
    if p.unit_max > carried {
        refuse!(
            "--atomic-unit-max {} is more than a request of {seg_max} segments is sure to carry: \
             use {} or less{} (a request has two segments less than the \
             queue has entries, and Linux uses at most {BIO_SEGMENTS})",
            Size(p.unit_max),
            Size(carried),
            longer_queue(carried < carried_by(BIO_SEGMENTS as u32, logical))
        );
    }
    Ok(())
}

/// What SCSI can say, and Linux takes from it.
fn check_scsi(p: &Profile, logical: u32, seg_max: u32) -> Result<(), LimitsError> {
    let lb = u64::from(logical);
    let carried = carried_by(seg_max, logical);
    if p.unit_max > carried {
        refuse!(
            "--atomic-unit-max {} is more than a SCSI command of {seg_max} segments is sure to \
             carry: use {} or less{} (QEMU's front-end shows {FRONT_END_SEG_MAX} segments at most)",
            Size(p.unit_max),
            Size(carried),
            longer_queue(carried < carried_by(FRONT_END_SEG_MAX, logical))
        );
    }
    let longest = ATOMIC_MAX_BLOCKS * lb;
    if p.max_bytes > longest {
        refuse!(
            "--atomic-max-bytes {} is more than WRITE ATOMIC can say, {ATOMIC_MAX_BLOCKS} blocks: \
             use {} or less",
            Size(p.max_bytes),
            // Without a boundary Linux takes it for `unit_max`, which is checked next.
            Size(if p.boundary == 0 { p.unit_max } else { power_below(longest) })
        );
    }
    if p.boundary != 0 && p.mode == AtomicMode::Implicit {
        let unit_min = if p.unit_min == lb { 0 } else { p.unit_min };
        let works = Profile { mode: AtomicMode::Explicit, unit_min, ..p.clone() };
        refuse!(
            "writes are atomic without being asked for up to a boundary of {}, and SCSI has no \
             boundary in the disk's address space, only in each command: use --profile {works} \
             (as --atomic-mode explicit), or no boundary",
            Size(p.boundary)
        );
    }
    let taken = power_below(p.max_bytes);
    if p.boundary == 0 && p.unit_max != taken {
        let or = if taken <= carried {
            format!(", or --atomic-unit-max {}", Size(taken))
        } else {
            String::new()
        };
        refuse!(
            "SCSI has no field for --atomic-unit-max {}: Linux takes the largest power of two in \
             --atomic-max-bytes {}. Use --atomic-max-bytes {}{or}",
            Size(p.unit_max),
            Size(p.max_bytes),
            Size(p.unit_max)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;

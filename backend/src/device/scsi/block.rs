//! The commands that reach the store (SBC-4, 5).
//!
//! | command | becomes |
//! | --- | --- |
//! | READ | one read; DPO and FUA are taken and change nothing, there is one cache |
//! | WRITE | one write, with FUA as it came |
//! | WRITE ATOMIC(16) | one write marked atomic; with an atomic boundary shorter than the transfer, in pieces |
//! | SYNCHRONIZE CACHE | a flush of the whole logical unit, whatever its range; with IMMED answered after it all the same |
//! | UNMAP | a discard |
//! | WRITE SAME | of zeroes: a write of zeroes; of any other pattern, of at most [`PATTERN_MAX_BYTES`]: a write whose pieces are tear units |
//!
//! # When a command of several parts is complete
//!
//! WRITE ATOMIC with an atomic boundary, and WRITE SAME of a pattern, are one request of the store in
//! pieces ([`Request`](crate::store::Request)): faults and stalls meet it once. A recording has a
//! submit event for each piece and then, when all are done, their complete events back to back: the
//! crash points between those know some pieces as complete, and stable with FUA or with the write
//! cache off, and others not. No disk was asked for more there: the command is not answered yet.
//!
//! WRITE SAME is never whole, whatever its length. Its parts are as long as the tear unit of the disk
//! that was recorded: explored as a disk with a smaller one they are torn further where they are not
//! eligible, and where they are, such a part is whole.
//!
//! MAXIMUM WRITE SAME LENGTH is that of zeroes: no field says that other patterns have less.

use super::command::{Asked, Moved, Work};
use super::sense::{Refused, Sense};
use super::unit::Lu;
use super::wire::{be16, be32, be64};
use crate::device::chain::CHAIN_MAX_BYTES;
use crate::device::size::Size;
use crate::device::spans::{Spans, buffers, split};
use crate::store::{Buffers, Op};
use tornblk_model::event::Segment;

/// Bytes that one UNMAP may cover.
pub const UNMAP_MAX_BYTES: u64 = 64 << 20;
/// Block descriptors that one UNMAP may have.
pub const UNMAP_MAX_DESCRIPTORS: u32 = 32;
/// Bytes that one WRITE SAME may cover.
pub const WRITE_SAME_MAX_BYTES: u64 = 16 << 20;
/// Bytes that one WRITE SAME of anything but zeroes may cover: it is at most 2,048 pieces.
pub const PATTERN_MAX_BYTES: u64 = 1 << 20;
/// Bytes that one READ or WRITE may move: what a chain may carry.
pub const TRANSFER_MAX_BYTES: u64 = CHAIN_MAX_BYTES - 4096;
/// Blocks that WRITE ATOMIC(16) can say: its transfer length has 16 bits.
pub const ATOMIC_MAX_BLOCKS: u64 = 0xffff;

/// Pieces that the atomic boundary of one WRITE ATOMIC may make of it.
pub const ATOMIC_MAX_PIECES: u64 = 64;

/// What a command is about, in bytes: of the store's disk, not of the logical unit.
#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    len: u64,
}

/// LBA and number of blocks as the CDB has them, and where in it the number is.
fn said(cdb: &[u8]) -> (u64, u64, u16) {
    // SPC-5, 4.2.5.1: the upper three bits say how long the CDB is.
    match cdb[0] >> 5 {
        0 => {
            let lba = u64::from(be32(cdb, 0) & 0x1f_ffff);
            (lba, if cdb[4] == 0 { 256 } else { cdb[4].into() }, 4)
        }
        1 | 2 => (be32(cdb, 2).into(), be16(cdb, 7).into(), 7),
        4 => (be64(cdb, 2), be32(cdb, 10).into(), 10),
        _ => (be32(cdb, 2).into(), be32(cdb, 6).into(), 6),
    }
}

/// Of blocks to bytes, if they lie on the logical unit.
fn placed(disk: &Lu<'_>, lba: u64, blocks: u64) -> Result<Extent, Sense> {
    let end = lba.checked_add(blocks).filter(|&end| end <= disk.disk().blocks());
    let block = disk.block();
    match end {
        Some(_) => Ok(Extent { offset: disk.start() + lba * block, len: blocks * block }),
        None => Err(Sense::LBA_OUT_OF_RANGE),
    }
}

/// The extent of a transfer. READ and WRITE may be about no block at all.
fn transfer(disk: &Lu<'_>, cdb: &[u8]) -> Result<Extent, Sense> {
    let (lba, blocks, at) = said(cdb);
    let extent = placed(disk, lba, blocks)?;
    if extent.len > TRANSFER_MAX_BYTES {
        return Err(Sense::in_cdb(at, None));
    }
    Ok(extent)
}

fn may_write(disk: &Lu<'_>) -> Result<(), Sense> {
    if disk.read_only() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
}

fn first(spans: &Spans, len: u64) -> Result<Spans, Refused> {
    split(spans, len).map(|(first, _)| first).ok_or(Refused::Overrun)
}

fn one(op: Op, buffers: Buffers, moved: Moved) -> Work {
    Work::Store { op, buffers, pieces: Vec::new(), moved }
}

pub(super) fn flush(disk: &Lu<'_>) -> Work {
    one(disk.flush(), Buffers::empty(), Moved::default())
}

pub(super) fn read(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    let Extent { offset, len } = transfer(disk, asked.cdb)?;
    let to = first(asked.data_in, len)?;
    if len == 0 {
        return Ok(Work::Done { taken: 0 });
    }
    let moved = Moved { given: len, taken: 0 };
    Ok(one(Op::Read { offset }, buffers(asked.mem, &to)?, moved))
}

pub(super) fn write(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    may_write(disk)?;
    let Extent { offset, len } = transfer(disk, asked.cdb)?;
    let from = first(asked.data_out, len)?;
    if len == 0 {
        return Ok(Work::Done { taken: 0 });
    }
    let op = Op::Write { offset, fua: fua(asked.cdb), atomic: false };
    Ok(one(op, buffers(asked.mem, &from)?, Moved { taken: len, given: 0 }))
}

/// WRITE(6) has no such bit.
fn fua(cdb: &[u8]) -> bool {
    cdb[0] != 0x0a && cdb[1] & 0x08 != 0
}

/// SBC-4, 5.48. What is taken is kept whole: each piece by itself where there is an atomic
/// boundary shorter than the transfer. The pieces begin at the command's LBA: SCSI has no boundary
/// on the disk's own grid, as NVMe's NABSPF is one.
pub(super) fn write_atomic(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    may_write(disk)?;
    let cdb = asked.cdb;
    let block = disk.block();
    let blocks = u64::from(be16(cdb, 12));
    let piece = u64::from(be16(cdb, 10));
    let lba = be64(cdb, 2);
    let Extent { offset, len } = placed(disk, lba, blocks)?;
    let limits = AtomicLimits::of(disk);
    let refuse = |byte, why: String| {
        let what = format!("WRITE ATOMIC of {} at byte {offset} is refused: {why}", Size(len));
        Err(Refused::Check(Sense::in_cdb(byte, None), Some(what)))
    };
    if !blocks.is_multiple_of(limits.granularity.into()) {
        let granularity = Size(u64::from(limits.granularity) * block);
        return refuse(12, format!("its length is no multiple of {granularity}"));
    }
    if len > limits.longest * block {
        return refuse(12, format!("it is longer than {}", Size(limits.longest * block)));
    }
    if piece > limits.boundary.into() {
        return refuse(
            10,
            match limits.boundary {
                0 => "it has an atomic boundary, and the disk offers none".to_owned(),
                most => format!(
                    "its atomic boundary, {}, is more than {}",
                    Size(piece * block),
                    Size(u64::from(most) * block)
                ),
            },
        );
    }
    if !piece.is_multiple_of(limits.granularity.into()) {
        return refuse(10, "its atomic boundary is no multiple of the granularity".to_owned());
    }
    if piece != 0 && blocks.div_ceil(piece) > ATOMIC_MAX_PIECES {
        return refuse(
            10,
            format!("its atomic boundary makes more than {ATOMIC_MAX_PIECES} pieces"),
        );
    }
    let from = first(asked.data_out, len)?;
    if len == 0 {
        return Ok(Work::Done { taken: 0 });
    }
    let piece = piece * block;
    let mut pieces = Vec::new();
    if piece != 0 && piece < len {
        pieces.resize((len / piece) as usize, piece);
        pieces.extend(Some(len % piece).filter(|rest| *rest > 0));
    }
    let op = Op::Write { offset, fua: fua(cdb), atomic: true };
    let moved = Moved { taken: len, given: 0 };
    Ok(Work::Store { op, buffers: buffers(asked.mem, &from)?, pieces, moved })
}

/// The fields of the Block Limits VPD page that are about WRITE ATOMIC (SBC-4, 6.6.4), in logical
/// blocks. There is no alignment: Linux keeps to the natural one by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtomicLimits {
    /// Of one command, whichever of its two fields says it.
    pub(super) longest: u64,
    pub(super) granularity: u32,
    /// MAXIMUM ATOMIC BOUNDARY SIZE: 0 where the disk has no boundary. Linux takes it for its
    /// `atomic_write_unit_max`, so it is that.
    pub(super) boundary: u32,
}

impl AtomicLimits {
    /// All 0 where nothing is atomic.
    pub(super) fn of(disk: &Lu<'_>) -> AtomicLimits {
        let (limits, block) = (disk.limits(), disk.block());
        if !limits.atomic() {
            return AtomicLimits { longest: 0, granularity: 0, boundary: 0 };
        }
        let profile = &limits.profile;
        // Both fit: see `Limits::new`.
        let granularity = profile.unit_min / block;
        let longest = profile.max_bytes / block;
        let boundary = if profile.boundary == 0 { 0 } else { profile.unit_max / block };
        AtomicLimits {
            longest: longest - longest % granularity,
            granularity: granularity as u32,
            boundary: boundary as u32,
        }
    }
}

/// SBC-4, 5.33 and 5.34. 0 blocks mean all up to the end.
pub(super) fn synchronize(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    let (lba, blocks, _) = said(asked.cdb);
    placed(disk, lba, blocks)?;
    Ok(flush(disk))
}

/// SBC-4, 5.35.
pub(super) fn unmap(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    const HEADER: usize = 8;
    const DESCRIPTOR: usize = 16;
    may_write(disk)?;
    let len = u64::from(be16(asked.cdb, 7));
    let list = asked.parameters(len)?;
    if list.is_empty() {
        return Ok(Work::Done { taken: 0 });
    }
    if list.len() < HEADER {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    }
    let all = &list[HEADER..];
    // Only what is there counts, and only whole descriptors.
    let bytes = usize::from(be16(&list, 2)).min(all.len());
    let descriptors = all[..bytes].chunks_exact(DESCRIPTOR);
    if descriptors.len() > UNMAP_MAX_DESCRIPTORS as usize {
        return Err(Sense::in_list(2).into());
    }
    let (mut segments, mut sum) = (Vec::new(), 0);
    for (i, descriptor) in descriptors.enumerate() {
        let Extent { offset, len } = placed(disk, be64(descriptor, 0), be32(descriptor, 8).into())?;
        sum += len;
        if sum > UNMAP_MAX_BYTES {
            return Err(Sense::in_list((HEADER + i * DESCRIPTOR + 8) as u16).into());
        }
        if len > 0 {
            segments.push(Segment { offset, len, unmap: false });
        }
    }
    if segments.is_empty() {
        return Ok(Work::Done { taken: len });
    }
    let moved = Moved { taken: len, given: 0 };
    Ok(one(Op::Discard { segments }, Buffers::empty(), moved))
}

/// SBC-4, 5.53 and 5.54. WSNZ is 1: a number of blocks of 0 is refused.
pub(super) fn write_same(disk: &Lu<'_>, asked: &Asked<'_>) -> Result<Work, Refused> {
    const NDOB: u8 = 0x01;
    const UNMAP: u8 = 0x08;
    may_write(disk)?;
    let cdb = asked.cdb;
    let (lba, blocks, at) = said(cdb);
    let Extent { offset, len } = placed(disk, lba, blocks)?;
    if len == 0 || len > WRITE_SAME_MAX_BYTES {
        return Err(Sense::in_cdb(at, None).into());
    }
    let no_data = cdb[1] & NDOB != 0;
    let taken = if no_data { 0 } else { disk.block() };
    let pattern = asked.parameters(taken)?;
    let moved = Moved { taken, given: 0 };
    if pattern.iter().all(|byte| *byte == 0) {
        let segments = vec![Segment { offset, len, unmap: cdb[1] & UNMAP != 0 }];
        return Ok(one(Op::WriteZeroes { segments }, Buffers::empty(), moved));
    }
    if len > PATTERN_MAX_BYTES {
        return Err(Sense::in_cdb(at, None).into());
    }
    let op = Op::Write { offset, fua: false, atomic: false };
    let buffers = Buffers::repeating(&pattern, len as usize);
    Ok(Work::Store { op, buffers, pieces: tear_units(disk, offset, len), moved })
}

/// The pieces of a write that is never whole, whatever the profile promises for one of that length.
fn tear_units(disk: &Lu<'_>, offset: u64, len: u64) -> Vec<u64> {
    let unit = disk.limits().tear_unit();
    let end = offset + len;
    let inner = (offset / unit + 1..end.div_ceil(unit)).map(|n| n * unit);
    let (from, to) = (std::iter::once(offset).chain(inner.clone()), inner.chain([end]));
    from.zip(to).map(|(from, to)| to - from).collect()
}

/// SBC-4, 5.20.
pub(super) fn capacity_10(disk: &Lu<'_>) -> [u8; 8] {
    let last = disk.disk().blocks().saturating_sub(1);
    let mut data = [0; 8];
    data[..4].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
    data[4..].copy_from_slice(&disk.disk().lb_size.to_be_bytes());
    data
}

/// SBC-4, 5.21. LBPRZ is 0: what a discard leaves is up to the profile.
pub(super) fn capacity_16(disk: &Lu<'_>) -> [u8; 32] {
    const LBPME: u8 = 0x80;
    let mut data = [0; 32];
    data[..8].copy_from_slice(&disk.disk().blocks().saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&disk.disk().lb_size.to_be_bytes());
    // LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT; at most 11 (`limits::PHYSICAL_BLOCK_MAX`).
    data[13] = disk.blocks_a_physical().ilog2() as u8;
    data[14] = LBPME;
    data
}

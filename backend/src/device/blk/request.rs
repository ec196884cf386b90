//! From a chain to a request (VIRTIO 1.2, 5.2.6), or to the status that refuses it.

use super::{DISCARD_MAX_SECTORS, DISCARD_MAX_SEGMENTS};
use crate::device::Memory;
use crate::device::chain::Chain;
use crate::device::spans::{Gone, Span, buffers, copy, gather, split, total};
use crate::store::{Buffers, Op};
use std::mem::offset_of;
use std::sync::Arc;
use tornblk_model::event::{SECTOR, Segment, Status};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    virtio_blk_discard_write_zeroes, virtio_blk_outhdr,
};

const HEADER: usize = size_of::<virtio_blk_outhdr>();
const SEGMENT: usize = size_of::<virtio_blk_discard_write_zeroes>();

/// What the device knows about itself that decides whether a request is acceptable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes.
    pub(super) capacity: u64,
    pub(super) read_only: bool,
}

/// A request that was understood.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) ioprio: u16,
    pub(super) work: Work,
    /// Bytes that the guest finds in its buffers when it succeeded, without the status.
    pub(super) returns: u32,
}

#[derive(Debug)]
pub(super) enum Work {
    /// For the store.
    Store { op: Op, buffers: Buffers },
    /// GET_ID, which the device answers by itself.
    Id(Buffers),
}

/// Why a request is refused, and with which status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("its header is {0} bytes long instead of {HEADER}")]
    Header(u64),
    #[error("it is of type {0}, which was not offered")]
    Type(u32),
    #[error("it carries {0} bytes to write, which its type does not take")]
    DataOut(u64),
    #[error("it wants {0} bytes, which its type does not give")]
    DataIn(u64),
    #[error("it is about {0} bytes: not a multiple of 512 above 0")]
    Length(u64),
    #[error("it reaches from sector {sector} over {sectors} sectors, beyond the disk's end")]
    Range { sector: u64, sectors: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("its segments take {0} bytes: not 1 to {DISCARD_MAX_SEGMENTS} of {SEGMENT} bytes")]
    Segments(u64),
    #[error("a segment of {0} sectors: not 1 to {DISCARD_MAX_SECTORS}")]
    SegmentLength(u32),
    #[error("a segment has flags {0:#x}, which its type does not know")]
    Flags(u32),
    #[error("its buffers cannot be reached")]
    Memory,
}

impl Refused {
    pub(super) fn status(&self) -> Status {
        match self {
            Refused::Type(_) | Refused::Flags(_) => Status::Unsupp,
            _ => Status::IoErr,
        }
    }
}

impl From<Gone> for Refused {
    fn from(_: Gone) -> Refused {
        Refused::Memory
    }
}

/// `chain` is without its status byte.
pub(super) fn parse(mem: &Arc<Memory>, chain: &Chain, bounds: Bounds) -> Result<Parsed, Refused> {
    // The driver may lay the header and the data over its descriptors as it likes (2.7.4).
    let carried = total(&chain.readable);
    let (header, data) = split(&chain.readable, HEADER as u64).ok_or(Refused::Header(carried))?;
    let header: [u8; HEADER] = gather(mem, &header)?;
    let kind = u32_at(&header, offset_of!(virtio_blk_outhdr, type_));
    let ioprio = u32_at(&header, offset_of!(virtio_blk_outhdr, ioprio));
    let sector = u64_at(&header, offset_of!(virtio_blk_outhdr, sector));

    let out = total(&data);
    let wanted = total(&chain.writable);
    let no_out = || if out == 0 { Ok(()) } else { Err(Refused::DataOut(out)) };
    let no_in = || if wanted == 0 { Ok(()) } else { Err(Refused::DataIn(wanted)) };
    let may_write = || if bounds.read_only { Err(Refused::ReadOnly) } else { Ok(()) };

    let mut returns = 0;
    let work = match kind {
        VIRTIO_BLK_T_IN => {
            no_out()?;
            let offset = placed(sector, wanted, bounds.capacity)?;
            returns = wanted;
            Work::Store { op: Op::Read { offset }, buffers: buffers(mem, &chain.writable)? }
        }
        VIRTIO_BLK_T_OUT => {
            no_in()?;
            may_write()?;
            let offset = placed(sector, out, bounds.capacity)?;
            // VIRTIO-blk can say neither.
            let op = Op::Write { offset, fua: false, atomic: false };
            Work::Store { op, buffers: buffers(mem, &data)? }
        }
        VIRTIO_BLK_T_FLUSH => {
            no_out()?;
            no_in()?;
            Work::Store { op: Op::FLUSH, buffers: Buffers::empty() }
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            no_in()?;
            may_write()?;
            let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
            let segments = segments(mem, &data, zeroes, bounds.capacity)?;
            let op = if zeroes { Op::WriteZeroes { segments } } else { Op::Discard { segments } };
            Work::Store { op, buffers: Buffers::empty() }
        }
        VIRTIO_BLK_T_GET_ID => {
            no_out()?;
            if wanted == 0 {
                return Err(Refused::Length(0));
            }
            returns = wanted.min(tornblk_proto::DEVICE_ID_BYTES as u64);
            Work::Id(buffers(mem, &chain.writable)?)
        }
        other => return Err(Refused::Type(other)),
    };
    // The upper half of the field is reserved; chains are below 4 GiB.
    Ok(Parsed { ioprio: ioprio as u16, work, returns: returns as u32 })
}

/// The byte offset of `len` bytes at `sector`, if they lie on the disk.
fn placed(sector: u64, len: u64, capacity: u64) -> Result<u64, Refused> {
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Err(Refused::Length(len));
    }
    let offset = sector.checked_mul(SECTOR);
    offset
        .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= capacity))
        .ok_or(Refused::Range { sector, sectors: len / SECTOR })
}

fn segments(
    mem: &Memory,
    data: &[Span],
    zeroes: bool,
    capacity: u64,
) -> Result<Vec<Segment>, Refused> {
    let bytes = total(data);
    let most = SEGMENT as u64 * u64::from(DISCARD_MAX_SEGMENTS);
    if bytes == 0 || bytes > most || !bytes.is_multiple_of(SEGMENT as u64) {
        return Err(Refused::Segments(bytes));
    }
    let mut raw = vec![0; bytes as usize];
    copy(mem, data, &mut raw)?;
    let parsed = raw.chunks_exact(SEGMENT).map(|raw| {
        let sector = u64_at(raw, offset_of!(virtio_blk_discard_write_zeroes, sector));
        let sectors = u32_at(raw, offset_of!(virtio_blk_discard_write_zeroes, num_sectors));
        let flags = u32_at(raw, offset_of!(virtio_blk_discard_write_zeroes, flags));
        (sector, sectors, flags)
    });
    // 5.2.6.2: an unknown flag, and unmap on a discard, is UNSUPP, whatever else is wrong.
    let known = if zeroes { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
    if let Some((.., flags)) = parsed.clone().find(|(.., flags)| flags & !known != 0) {
        return Err(Refused::Flags(flags));
    }
    parsed
        .map(|(sector, sectors, flags)| {
            if sectors == 0 || sectors > DISCARD_MAX_SECTORS {
                return Err(Refused::SegmentLength(sectors));
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = placed(sector, len, capacity)?;
            Ok(Segment { offset, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
        })
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

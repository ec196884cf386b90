//! From a CDB to what has to be done (SPC-5, SBC-4), or to why it is refused.

use super::opcodes::{self, Kind, Opcode};
use super::sense::{Refused, SENSE_BYTES, Sense};
use super::wire::{Address, CDB_BYTES, be16, be32};
use super::{Scsi, block, inquiry, mode};
use crate::device::Memory;
use crate::device::spans::{Spans, copy, split, total};
use crate::store::{Buffers, Op};
use std::sync::Arc;

/// A command with the driver's buffers.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) to: Address,
    pub(super) cdb: &'a [u8; CDB_BYTES],
    pub(super) mem: &'a Arc<Memory>,
    pub(super) data_out: &'a Spans,
    pub(super) data_in: &'a Spans,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// GOOD, with parameter data: all that the allocation length leaves of it.
    Tell(Vec<u8>),
    /// GOOD, after so many bytes of parameter list.
    Done { taken: u64 },
    /// For the store, whole or in pieces (see [`Request`](crate::store::Request)).
    Store { op: Op, buffers: Buffers, pieces: Vec<u64>, moved: Moved },
    /// A flush for the store; if it fails, the write cache is on again where it was before.
    WriteThrough { flush: Op, was_on: bool, taken: u64 },
}

/// Bytes of the driver's buffers that a success is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) taken: u64,
    pub(super) given: u64,
}

impl Asked<'_> {
    /// The first `len` bytes of the data-out buffer.
    pub(super) fn parameters(&self, len: u64) -> Result<Vec<u8>, Refused> {
        let (list, _) = split(self.data_out, len).ok_or(Refused::Overrun)?;
        // Bounded by the CDB's 16 bits, or by a logical block.
        let mut bytes = vec![0; len as usize];
        copy(self.mem, &list, &mut bytes)?;
        Ok(bytes)
    }
}

/// As much of `data` as the driver allocated.
fn tell(mut data: Vec<u8>, allocated: u64) -> Result<Work, Refused> {
    data.truncate(usize::try_from(allocated).unwrap_or(usize::MAX));
    Ok(Work::Tell(data))
}

pub(super) fn understand(device: &Scsi, asked: &Asked<'_>) -> Result<Work, Refused> {
    let cdb = asked.cdb;
    let Some(number) = device.number_of(asked.to) else { return elsewhere(device, asked) };
    let disk = &device.lu(number);
    let opcode = Opcode::of(device, cdb);
    // SAM-5, 5.14: these three are carried out whatever happened before. All others are told first,
    // whether they make sense or not.
    let known = opcode.as_ref().map(|opcode| opcode.kind);
    let always = matches!(known, Ok(Kind::Inquiry | Kind::ReportLuns | Kind::RequestSense));
    if !always && let Some(attention) = disk.attention() {
        return Err(attention.into());
    }
    let opcode = opcode?;
    match opcode.kind {
        Kind::Read => block::read(disk, asked),
        Kind::Write => block::write(disk, asked),
        Kind::WriteAtomic => block::write_atomic(disk, asked),
        Kind::SynchronizeCache => block::synchronize(disk, asked),
        Kind::Unmap => block::unmap(disk, asked),
        Kind::WriteSame => block::write_same(disk, asked),
        Kind::ReadCapacity10 => Ok(Work::Tell(block::capacity_10(disk).to_vec())),
        Kind::ReadCapacity16 => tell(block::capacity_16(disk).to_vec(), be32(cdb, 10).into()),
        Kind::TestUnitReady | Kind::PreventAllow => Ok(Work::Done { taken: 0 }),
        // Stopping flushes what is cached (SBC-4, 5.31), and the disk stays ready.
        Kind::StartStop if cdb[4] & 0x05 == 0 => Ok(block::flush(disk)),
        Kind::StartStop => Ok(Work::Done { taken: 0 }),
        Kind::RequestSense => {
            // What is told once must arrive.
            let given = cdb[4].min(SENSE_BYTES as u8).into();
            if !fits(asked, Moved { given, taken: 0 }) {
                return Err(Refused::Overrun);
            }
            let sense = disk.attention().unwrap_or(Sense::NONE);
            tell(sense.bytes().to_vec(), cdb[4].into())
        }
        Kind::Inquiry => tell(inquiry::data(disk, cdb)?, be16(cdb, 3).into()),
        Kind::ModeSense => {
            let long = opcode.usage.len() == 10;
            let allocated = if long { be16(cdb, 7) } else { cdb[4].into() };
            tell(mode::sense(disk, cdb, long)?, allocated.into())
        }
        Kind::ModeSelect => mode::select(disk, asked, opcode.usage.len() == 10),
        Kind::ReportLuns => report_luns(device, cdb),
        Kind::ReportOpcodes => tell(opcodes::report(disk, cdb)?, be32(cdb, 6).into()),
        Kind::ReportFunctions => {
            let allocated = be32(cdb, 6);
            if allocated < 4 {
                return Err(Sense::in_cdb(6, None).into());
            }
            tell(functions(cdb[2] & 0x80 != 0), allocated.into())
        }
    }
}

/// What is addressed is no logical unit, or not the disk (SPC-5, 6.7.1; SAM-5, 4.8.4).
fn elsewhere(disk: &Scsi, asked: &Asked<'_>) -> Result<Work, Refused> {
    let cdb = asked.cdb;
    let opcode = Opcode::of(disk, cdb);
    match opcode.map(|opcode| opcode.kind) {
        Ok(Kind::ReportLuns) => report_luns(disk, cdb),
        Ok(Kind::Inquiry) if asked.to == Address::ReportLuns => {
            tell(inquiry::well_known(cdb)?, be16(cdb, 3).into())
        }
        Ok(Kind::TestUnitReady) if asked.to == Address::ReportLuns => Ok(Work::Done { taken: 0 }),
        Ok(Kind::RequestSense) if asked.to == Address::ReportLuns => {
            tell(Sense::NONE.bytes().to_vec(), cdb[4].into())
        }
        Ok(Kind::Inquiry) => tell(inquiry::nobody(cdb)?, be16(cdb, 3).into()),
        Ok(Kind::RequestSense) => tell(Sense::NO_SUCH_UNIT.bytes().to_vec(), cdb[4].into()),
        Err(sense) if asked.to == Address::ReportLuns => Err(sense.into()),
        Ok(_) if asked.to == Address::ReportLuns => Err(Sense::INVALID_OPCODE.into()),
        _ => Err(Sense::NO_SUCH_UNIT.into()),
    }
}

/// SPC-5, 6.36.
fn report_luns(device: &Scsi, cdb: &[u8; CDB_BYTES]) -> Result<Work, Refused> {
    /// REPORT LUNS well-known logical unit, extended addressing (SAM-5, 4.7.5.1).
    const WELL_KNOWN: [u8; 8] = [0xc1, 0x01, 0, 0, 0, 0, 0, 0];
    // Peripheral device addressing (SAM-5, 4.7.7.2): there are fewer than 256.
    let units = (0..device.units.len()).flat_map(|n| [0, n as u8, 0, 0, 0, 0, 0, 0]);
    let mut luns = Vec::new();
    match cdb[2] {
        0 => luns.extend(units),
        1 => luns.extend(WELL_KNOWN),
        2 => {
            luns.extend(units);
            luns.extend(WELL_KNOWN);
        }
        _ => return Err(Sense::in_cdb(2, None).into()),
    }
    let allocated = be32(cdb, 6);
    if allocated < 16 {
        return Err(Sense::in_cdb(6, None).into());
    }
    let mut data = (luns.len() as u32).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(luns);
    tell(data, allocated.into())
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5, 6.38): what `control` carries out.
fn functions(extended: bool) -> Vec<u8> {
    // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK.
    let mut data = vec![0x80 | 0x40 | 0x10 | 0x08 | 0x04, 0x02 | 0x01, 0, 0];
    if extended {
        data[3] = 12;
        data.extend([0; 12]);
    }
    data
}

/// Is there room for what a command gives and takes?
pub(super) fn fits(asked: &Asked<'_>, moved: Moved) -> bool {
    moved.given <= total(asked.data_in) && moved.taken <= total(asked.data_out)
}

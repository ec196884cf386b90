//! Which commands there are, and which of their bits mean something here: what REPORT SUPPORTED
//! OPERATION CODES tells (SPC-5, 6.37), and what every CDB is held against.

use super::Scsi;
use super::sense::{Refused, Sense};
use super::wire::CDB_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    WriteAtomic,
    SynchronizeCache,
    Unmap,
    WriteSame,
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSelect,
    ModeSense,
    StartStop,
    PreventAllow,
    ReadCapacity10,
    ReadCapacity16,
    ReportLuns,
    ReportOpcodes,
    ReportFunctions,
}

/// A command, with its CDB usage data: a bit is 1 where it is looked at, and must be 0 elsewhere.
#[derive(Debug)]
pub(super) struct Opcode {
    pub(super) kind: Kind,
    /// Where a service action belongs to the operation code.
    pub(super) action: Option<u8>,
    /// Byte 0 is the operation code; as long as the CDB.
    pub(super) usage: &'static [u8],
}

/// Where the service action is, for all that have one (SPC-5, 4.2.5.1).
const ACTION: u8 = 0x1f;
/// DPO and FUA. Protection information is not supported.
const ACCESS: u8 = 0x18;

const fn plain(kind: Kind, usage: &'static [u8]) -> Opcode {
    Opcode { kind, action: None, usage }
}

const fn acting(kind: Kind, action: u8, usage: &'static [u8]) -> Opcode {
    Opcode { kind, action: Some(action), usage }
}

/// The ones that a driver sends most come first.
#[rustfmt::skip]
static OPCODES: [Opcode; 28] = [
    plain(Kind::Read, &[0x28, ACCESS, 255, 255, 255, 255, 0, 255, 255, 0]),
    plain(Kind::Write, &[0x2a, ACCESS, 255, 255, 255, 255, 0, 255, 255, 0]),
    plain(Kind::WriteAtomic, &[0x9c, ACCESS, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::SynchronizeCache, &[0x35, 0x02, 255, 255, 255, 255, 0, 255, 255, 0]),
    plain(Kind::Read, &[0x88, ACCESS, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::Write, &[0x8a, ACCESS, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::SynchronizeCache, &[0x91, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::Read, &[0xa8, ACCESS, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::Write, &[0xaa, ACCESS, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::Unmap, &[0x42, 0, 0, 0, 0, 0, 0, 255, 255, 0]),
    plain(Kind::WriteSame, &[0x41, 0x08, 255, 255, 255, 255, 0, 255, 255, 0]),
    plain(Kind::WriteSame, &[0x93, 0x09, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(Kind::TestUnitReady, &[0x00, 0, 0, 0, 0, 0]),
    plain(Kind::RequestSense, &[0x03, 0, 0, 0, 255, 0]),
    plain(Kind::Inquiry, &[0x12, 0x01, 255, 255, 255, 0]),
    plain(Kind::ModeSelect, &[0x15, 0x11, 0, 0, 255, 0]),
    plain(Kind::ModeSense, &[0x1a, 0x08, 255, 255, 255, 0]),
    plain(Kind::StartStop, &[0x1b, 0x01, 0, 0, 0x05, 0]),
    plain(Kind::PreventAllow, &[0x1e, 0, 0, 0, 0x03, 0]),
    plain(Kind::ReadCapacity10, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Kind::ModeSelect, &[0x55, 0x11, 0, 0, 0, 0, 0, 255, 255, 0]),
    plain(Kind::ModeSense, &[0x5a, 0x18, 255, 255, 0, 0, 0, 255, 255, 0]),
    acting(Kind::ReadCapacity16, 0x10, &[0x9e, ACTION, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0]),
    plain(Kind::ReportLuns, &[0xa0, 0, 255, 0, 0, 0, 255, 255, 255, 255, 0, 0]),
    acting(Kind::ReportOpcodes, 0x0c, &[0xa3, ACTION, 0x87, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    acting(Kind::ReportFunctions, 0x0d, &[0xa3, ACTION, 0x80, 0, 0, 0, 255, 255, 255, 255, 0, 0]),
    plain(Kind::Read, &[0x08, 0x1f, 255, 255, 255, 0]),
    plain(Kind::Write, &[0x0a, 0x1f, 255, 255, 255, 0]),
];

/// All that this disk knows.
fn known(disk: &Scsi) -> impl Iterator<Item = &'static Opcode> {
    let atomic = disk.limits().atomic();
    OPCODES.iter().filter(move |code| code.kind != Kind::WriteAtomic || atomic)
}

impl Opcode {
    pub(super) fn code(&self) -> u8 {
        self.usage[0]
    }

    /// The command that `cdb` is, if all of it makes sense.
    pub(super) fn of(disk: &Scsi, cdb: &[u8; CDB_BYTES]) -> Result<&'static Opcode, Sense> {
        let mut any = false;
        let found = known(disk).find(|code| {
            any |= code.code() == cdb[0];
            code.code() == cdb[0] && code.action.is_none_or(|action| action == cdb[1] & ACTION)
        });
        let Some(found) = found else {
            // An operation code whose service action is not known has a field that is wrong.
            return Err(if any { Sense::in_cdb(1, Some(4)) } else { Sense::INVALID_OPCODE });
        };
        for (byte, usage) in found.usage.iter().enumerate().skip(1) {
            let wrong = cdb[byte] & !usage;
            if wrong != 0 {
                return Err(Sense::in_cdb(byte as u16, Some(wrong.ilog2() as u8)));
            }
        }
        Ok(found)
    }

    /// CDB usage data: with the service action where it belongs to the command.
    fn usage_data(&self) -> Vec<u8> {
        let mut usage = self.usage.to_vec();
        if let Some(action) = self.action {
            usage[1] = usage[1] & !ACTION | action;
        }
        usage
    }
}

/// Command timeouts descriptor (SPC-5, 6.37.4): nothing is said of how long it takes.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The parameter data of REPORT SUPPORTED OPERATION CODES.
pub(super) fn report(disk: &Scsi, cdb: &[u8; CDB_BYTES]) -> Result<Vec<u8>, Refused> {
    let timeouts = cdb[2] & 0x80 != 0;
    let (code, action) = (cdb[3], u16::from_be_bytes([cdb[4], cdb[5]]));
    let same = |known: &&Opcode| known.code() == code;
    let acts = |known: &&Opcode| known.action.map(u16::from) == Some(action);
    let one = match cdb[2] & 7 {
        0 => return Ok(all(disk, timeouts)),
        1 => match known(disk).find(same) {
            Some(found) if found.action.is_some() => return Err(Sense::in_cdb(2, Some(2)).into()),
            found => found,
        },
        2 => match known(disk).find(same) {
            Some(found) if found.action.is_none() => return Err(Sense::in_cdb(2, Some(2)).into()),
            _ => known(disk).filter(same).find(acts),
        },
        3 => known(disk).filter(same).find(|k| k.action.is_none() && action == 0 || acts(k)),
        _ => return Err(Sense::in_cdb(2, Some(2)).into()),
    };
    let mut data = vec![0; 4];
    match one {
        // Not supported.
        None => data[1] = 1,
        Some(found) => {
            // Supported as the standard says.
            data[1] = 3 | if timeouts { 0x80 } else { 0 };
            let usage = found.usage_data();
            data[2..4].copy_from_slice(&(usage.len() as u16).to_be_bytes());
            data.extend(usage);
            if timeouts {
                data.extend(TIMEOUTS);
            }
        }
    }
    Ok(data)
}

fn all(disk: &Scsi, timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for code in known(disk) {
        let flags = u8::from(code.action.is_some()) | if timeouts { 2 } else { 0 };
        data.extend([code.code(), 0, 0, code.action.unwrap_or(0), 0, flags]);
        data.extend((code.usage.len() as u16).to_be_bytes());
        if timeouts {
            data.extend(TIMEOUTS);
        }
    }
    let len = data.len() as u32 - 4;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

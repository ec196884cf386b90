//! The structures of virtio-scsi (VIRTIO 1.2, 5.6.6), as they lie in the driver's buffers.

use super::sense::{CHECK_CONDITION, GOOD, Sense};
use std::mem::offset_of;
use virtio_bindings::virtio_scsi::{
    VIRTIO_SCSI_S_OK, virtio_scsi_cmd_req, virtio_scsi_cmd_resp, virtio_scsi_ctrl_an_req,
    virtio_scsi_ctrl_tmf_req,
};

/// Bytes of a CDB that a request has room for (`cdb_size`).
pub(super) const CDB_BYTES: usize = 32;
pub(super) const REQUEST_BYTES: usize = size_of::<virtio_scsi_cmd_req>();
pub(super) const RESPONSE_BYTES: usize = size_of::<virtio_scsi_cmd_resp>();
/// Bytes of sense data that a response has room for (`sense_size`).
pub(super) const SENSE_ROOM: usize = 96;
pub(super) const TMF_BYTES: usize = size_of::<virtio_scsi_ctrl_tmf_req>();
pub(super) const AN_BYTES: usize = size_of::<virtio_scsi_ctrl_an_req>();

/// What a command is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// Target 0, and this LUN.
    Unit(u16),
    /// The REPORT LUNS well-known logical unit.
    ReportLuns,
    /// Target 0, and a LUN in a form that no logical unit has.
    NoUnit,
    /// A target that is not there, or no address at all.
    NoTarget,
}

impl Address {
    /// VIRTIO 1.2, 5.6.6.1: 1, target, a single level LUN structure (peripheral or flat space
    /// addressing, SAM-5 4.7), four zeroes; or C1h 01h and six zeroes.
    pub(super) fn of(lun: [u8; 8]) -> Address {
        match lun {
            [0xc1, 0x01, 0, 0, 0, 0, 0, 0] => Address::ReportLuns,
            [1, 0, 0, lun, 0, 0, 0, 0] => Address::Unit(lun.into()),
            [1, 0, 0xc1, 0x01, 0, 0, 0, 0] => Address::ReportLuns,
            [1, 0, high @ 0x40..=0x7f, low, 0, 0, 0, 0] => {
                Address::Unit(u16::from_be_bytes([high & 0x3f, low]))
            }
            [1, 0, ..] => Address::NoUnit,
            _ => Address::NoTarget,
        }
    }
}

/// `virtio_scsi_req_cmd`. Task attributes are taken and all treated as SIMPLE: the control mode
/// page says that commands may be reordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    pub(super) to: Address,
    pub(super) tag: u64,
    pub(super) cdb: [u8; CDB_BYTES],
}

impl Command {
    pub(super) fn read(bytes: &[u8; REQUEST_BYTES]) -> Command {
        Command {
            to: Address::of(array(bytes, offset_of!(virtio_scsi_cmd_req, lun))),
            tag: u64::from_le_bytes(array(bytes, offset_of!(virtio_scsi_cmd_req, tag))),
            cdb: array(bytes, offset_of!(virtio_scsi_cmd_req, cdb)),
        }
    }
}

/// `virtio_scsi_resp_cmd`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    /// `VIRTIO_SCSI_S_*`.
    pub(super) response: u32,
    /// SAM-5 status.
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    /// Bytes of the driver's data buffers that were not moved.
    pub(super) residual: u64,
}

impl Response {
    pub(super) fn service(response: u32, residual: u64) -> Response {
        Response { response, status: GOOD, sense: None, residual }
    }

    pub(super) fn good(residual: u64) -> Response {
        Response::service(VIRTIO_SCSI_S_OK, residual)
    }

    pub(super) fn check(sense: Sense, residual: u64) -> Response {
        Response {
            response: VIRTIO_SCSI_S_OK,
            status: CHECK_CONDITION,
            sense: Some(sense),
            residual,
        }
    }

    pub(super) fn bytes(&self) -> [u8; RESPONSE_BYTES] {
        let mut bytes = [0; RESPONSE_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        if let Some(sense) = &self.sense {
            let sense = sense.bytes();
            put(offset_of!(virtio_scsi_cmd_resp, sense_len), &(sense.len() as u32).to_le_bytes());
            put(offset_of!(virtio_scsi_cmd_resp, sense), &sense);
        }
        let residual = u32::try_from(self.residual).unwrap_or(u32::MAX);
        put(offset_of!(virtio_scsi_cmd_resp, resid), &residual.to_le_bytes());
        put(offset_of!(virtio_scsi_cmd_resp, status), &[self.status]);
        put(offset_of!(virtio_scsi_cmd_resp, response), &[self.response as u8]);
        bytes
    }
}

/// The `N` bytes at `at`, which lie inside `bytes`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

//! Why a command is refused: status, sense key and additional sense code (SPC-5, 4.4 and 5.14).

/// Sense data are always in fixed format (SPC-5, 4.4.3): D_SENSE is 0 and cannot be changed.
pub(super) const SENSE_BYTES: usize = 18;

/// SAM-5, 5.3: status codes.
pub(super) const GOOD: u8 = 0x00;
pub(super) const CHECK_CONDITION: u8 = 0x02;

const NO_SENSE: u8 = 0x0;
const MEDIUM_ERROR: u8 = 0x3;
const ILLEGAL_REQUEST: u8 = 0x5;
const UNIT_ATTENTION: u8 = 0x6;
const DATA_PROTECT: u8 = 0x7;

/// What CHECK CONDITION carries, and REQUEST SENSE answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    key: u8,
    asc: u8,
    ascq: u8,
    /// Which field is wrong (SPC-5, 4.4.2.4.2).
    field: Option<Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    in_cdb: bool,
    byte: u16,
    /// The most significant bit of the field, where it is not the whole byte.
    bit: Option<u8>,
}

impl Sense {
    pub(super) const NONE: Sense = Sense::new(NO_SENSE, 0, 0);
    pub(super) const INVALID_OPCODE: Sense = Sense {
        field: Some(Field { in_cdb: true, byte: 0, bit: None }),
        ..Sense::new(ILLEGAL_REQUEST, 0x20, 0)
    };
    pub(super) const LBA_OUT_OF_RANGE: Sense = Sense::new(ILLEGAL_REQUEST, 0x21, 0);
    pub(super) const NO_SUCH_UNIT: Sense = Sense::new(ILLEGAL_REQUEST, 0x25, 0);
    pub(super) const PARAMETER_LIST_LENGTH: Sense = Sense::new(ILLEGAL_REQUEST, 0x1a, 0);
    pub(super) const NOT_SAVED: Sense = Sense::new(ILLEGAL_REQUEST, 0x39, 0);
    pub(super) const WRITE_PROTECTED: Sense = Sense::new(DATA_PROTECT, 0x27, 0);
    pub(super) const READ_ERROR: Sense = Sense::new(MEDIUM_ERROR, 0x11, 0);
    pub(super) const WRITE_ERROR: Sense = Sense::new(MEDIUM_ERROR, 0x0c, 0);
    /// BUS DEVICE RESET FUNCTION OCCURRED: what a LOGICAL UNIT RESET leaves behind.
    pub(super) const WAS_RESET: Sense = Sense::new(UNIT_ATTENTION, 0x29, 0x03);
    pub(super) const NEXUS_LOST: Sense = Sense::new(UNIT_ATTENTION, 0x29, 0x07);

    pub(super) const CAPACITY_CHANGED: Sense = Sense::new(UNIT_ATTENTION, 0x2a, 0x09);

    const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq, field: None }
    }

    /// INVALID FIELD IN CDB.
    pub(super) const fn in_cdb(byte: u16, bit: Option<u8>) -> Sense {
        let field = Some(Field { in_cdb: true, byte, bit });
        Sense { field, ..Sense::new(ILLEGAL_REQUEST, 0x24, 0) }
    }

    /// INVALID FIELD IN PARAMETER LIST.
    pub(super) const fn in_list(byte: u16) -> Sense {
        let field = Some(Field { in_cdb: false, byte, bit: None });
        Sense { field, ..Sense::new(ILLEGAL_REQUEST, 0x26, 0) }
    }

    pub(super) fn bytes(&self) -> [u8; SENSE_BYTES] {
        let mut bytes = [0; SENSE_BYTES];
        // Current error, fixed format.
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = SENSE_BYTES as u8 - 8;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(Field { in_cdb, byte, bit }) = self.field {
            bytes[15] = 0x80 | u8::from(in_cdb) << 6 | bit.map_or(0, |bit| 0x08 | bit & 7);
            bytes[16..].copy_from_slice(&byte.to_be_bytes());
        }
        bytes
    }
}

/// A command that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// CHECK CONDITION. With a sentence for the log where the driver should have known better.
    Check(Sense, Option<String>),
    /// The CDB is about more data than the driver's buffers have room for
    /// (VIRTIO_SCSI_S_OVERRUN).
    Overrun,
    /// The buffers cannot be reached (VIRTIO_SCSI_S_FAILURE).
    Memory,
}

impl From<Sense> for Refused {
    fn from(sense: Sense) -> Refused {
        Refused::Check(sense, None)
    }
}

impl From<crate::device::spans::Gone> for Refused {
    fn from(_: crate::device::spans::Gone) -> Refused {
        Refused::Memory
    }
}

//! A SCSI driver's side: commands and task management functions as they lie in the guest's memory.

use super::driver::{Driver, WRITE};

pub(crate) const DISK: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
pub(crate) const REQUEST: u32 = 51;
pub(crate) const RESPONSE: u32 = 108;

/// A byte of a response or a buffer that nobody wrote.
pub(crate) const CANARY: u8 = 0xee;

/// A command as it lies in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentCommand {
    pub(crate) head: u16,
    pub(crate) response: u64,
    pub(crate) data: u64,
    pub(crate) room: u32,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// VIRTIO_SCSI_S_*.
    pub(crate) response: u8,
    pub(crate) status: u8,
    pub(crate) residual: u32,
    /// Sense data, as many as the response says.
    pub(crate) sense: Vec<u8>,
    /// The data-in buffer, all of it.
    pub(crate) data: Vec<u8>,
}

impl Reply {
    /// Sense key, ASC, ASCQ.
    pub(crate) fn code(&self) -> (u8, u8, u8) {
        assert_eq!(self.sense[0], 0x70, "fixed format");
        (self.sense[2] & 15, self.sense[12], self.sense[13])
    }

    pub(crate) fn good(&self) -> bool {
        self.response == 0 && self.status == 0 && self.sense.is_empty()
    }
}

pub(crate) fn header(lun: [u8; 8], tag: u64, cdb: &[u8]) -> Vec<u8> {
    let mut bytes = lun.to_vec();
    bytes.extend(tag.to_le_bytes());
    bytes.extend([0, 0, 0]);
    bytes.extend(cdb);
    bytes.resize(REQUEST as usize, 0);
    bytes
}

impl Driver {
    /// A command with what it gives, or room for what it wants.
    pub(crate) fn command(
        &mut self,
        lun: [u8; 8],
        tag: u64,
        cdb: &[u8],
        out: &[u8],
        room: u32,
    ) -> SentCommand {
        let header = self.place(&header(lun, tag, cdb));
        let out_at = self.place(out);
        let response = self.place(&[CANARY; RESPONSE as usize]);
        let data = self.place(&vec![CANARY; room as usize]);
        let mut parts = vec![(header, REQUEST, 0)];
        if !out.is_empty() {
            parts.push((out_at, out.len() as u32, 0));
        }
        parts.push((response, RESPONSE, WRITE));
        if room > 0 {
            parts.push((data, room, WRITE));
        }
        let head = self.chain(&parts);
        self.offer(head);
        SentCommand { head, response, data, room }
    }

    pub(crate) fn reply(&self, sent: &SentCommand) -> Reply {
        let bytes = self.bytes(sent.response, RESPONSE as usize);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Reply {
            response: bytes[11],
            status: bytes[10],
            residual: u32_at(4),
            sense: bytes[12..][..u32_at(0) as usize].to_vec(),
            data: self.bytes(sent.data, sent.room as usize),
        }
    }

    /// A task management function, or whatever else goes through the control queue: its head, and
    /// where the answer goes.
    pub(crate) fn control(&mut self, request: &[u8], room: u32) -> (u16, u64) {
        let request_at = self.place(request);
        let response = self.place(&vec![CANARY; room as usize]);
        let parts = [(request_at, request.len() as u32, 0), (response, room, WRITE)];
        let head = self.chain(&parts);
        self.offer(head);
        (head, response)
    }

    pub(crate) fn manage(&mut self, subtype: u32, lun: [u8; 8], tag: u64) -> (u16, u64) {
        let mut request = 0u32.to_le_bytes().to_vec();
        request.extend(subtype.to_le_bytes());
        request.extend(lun);
        request.extend(tag.to_le_bytes());
        self.control(&request, 1)
    }
}

//! Room for the data of one write: small data are stored through the mapping, large data written.
//!
//! A page of the mapping that is touched for the first time is cleared by the kernel, by itself, to
//! be overwritten a moment later: for 128 KiB that took seven tenths of the time of a write. A
//! write(2) of whole pages fills them at once. For a few pages the call costs more than it saves.

use super::RecordingError;
use super::writer::Writer;
use crate::event::Payload;
use std::cell::Cell;

/// Bytes from which data are written.
pub(super) const WRITTEN: usize = 32 << 10;
/// The largest buffer that a thread keeps for the next write.
const KEPT: usize = 1 << 20;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Room for the data of one write, in the recording. Fill it, then [`Space::finish`].
#[derive(Debug)]
pub struct Space<'a> {
    position: u64,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    Mapped(&'a mut [u8]),
    Written(&'a Writer, Buffer),
}

/// This thread's, while it is in use.
#[derive(Debug)]
struct Buffer(Vec<u8>);

impl Buffer {
    fn new(len: usize) -> Buffer {
        let mut bytes = BUFFER.take();
        bytes.resize(len, 0);
        Buffer(bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() <= KEPT {
            BUFFER.set(std::mem::take(&mut self.0));
        }
    }
}

impl<'a> Space<'a> {
    pub(super) fn mapped(position: u64, data: &'a mut [u8]) -> Space<'a> {
        Space { position, data: Data::Mapped(data) }
    }

    pub(super) fn written(writer: &'a Writer, position: u64, len: usize) -> Space<'a> {
        Space { position, data: Data::Written(writer, Buffer::new(len)) }
    }

    /// Zeroes, or what another write left: fill all of it.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.data {
            Data::Mapped(data) => data,
            Data::Written(_, buffer) => &mut buffer.0,
        }
    }

    /// Takes the checksum; the data cannot be changed any more.
    ///
    /// # Errors
    /// The file failed, or was cut short.
    pub fn finish(self) -> Result<Payload, RecordingError> {
        let data = match &self.data {
            Data::Mapped(data) => &**data,
            Data::Written(writer, buffer) => {
                writer.put_data(self.position, &buffer.0)?;
                &buffer.0
            }
        };
        Ok(Payload { position: self.position, crc: crc32c::crc32c(data) })
    }
}

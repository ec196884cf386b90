//! Room for the data of one write: what is less than a page is stored through the mapping, the rest written.
//!
//! A page of the mapping that is touched for the first time is cleared by the kernel, by itself, to
//! be overwritten a moment later: for 128 KiB that took seven tenths of the time of a write. A
//! write(2) of whole pages fills them at once.

use super::RecordingError;
use super::writer::Writer;
use crate::event::Payload;
use std::cell::Cell;

/// Bytes from which data are written: a page.
pub(super) const WRITTEN: usize = 4 << 10;
/// Bytes that are copied, summed up and written at a time: they stay in a processor's own cache.
const PIECE: usize = 256 << 10;
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
    /// How long; and a buffer for all of it, where somebody wants that.
    Written(&'a Writer, usize, Option<Buffer>),
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
        Space { position, data: Data::Written(writer, len, None) }
    }

    /// Zeroes, or what another write left: fill all of it.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.data {
            Data::Mapped(data) => data,
            Data::Written(_, len, buffer) => &mut buffer.get_or_insert_with(|| Buffer::new(*len)).0,
        }
    }

    /// Has `fill` give the data, which takes little memory however many they are: it is told from which
    /// byte on, and fills all that it is given. Instead of [`Space::as_mut_slice`].
    ///
    /// # Errors
    /// As of [`Space::finish`].
    pub fn fill(self, mut fill: impl FnMut(usize, &mut [u8])) -> Result<Payload, RecordingError> {
        let position = self.position;
        let mut crc = 0;
        match self.data {
            Data::Mapped(data) => {
                fill(0, data);
                crc = crc32c::crc32c(data);
            }
            Data::Written(writer, len, _) => {
                let mut buffer = Buffer::new(len.min(PIECE));
                for at in (0..len).step_by(PIECE) {
                    let piece = &mut buffer.0[..PIECE.min(len - at)];
                    fill(at, piece);
                    crc = crc32c::crc32c_append(crc, piece);
                    writer.put_data(position + at as u64, piece)?;
                }
            }
        }
        Ok(Payload { position, crc })
    }

    /// Takes the checksum; the data cannot be changed any more.
    ///
    /// # Errors
    /// The file failed, or was cut short.
    pub fn finish(mut self) -> Result<Payload, RecordingError> {
        let crc = crc32c::crc32c(self.as_mut_slice());
        if let Data::Written(writer, _, Some(buffer)) = &self.data {
            writer.put_data(self.position, &buffer.0)?;
        }
        Ok(Payload { position: self.position, crc })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::{Disk, Event, Mark};
    use crate::recording::{BaseImage, NewRecording};
    use std::fs::OpenOptions;

    #[test]
    fn large_data_do_not_make_a_file_grow_back_that_was_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("base.img"), dir.path().join("r"));
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let base = BaseImage::identify(&image).unwrap();
        let disk = Disk { capacity: base.size, lb_size: 512 };
        let new = NewRecording::new(disk, base, serde_json::Value::Null);
        let new = NewRecording { segment_size: 256 << 10, ..new };
        let writer = Writer::create(&path, new).unwrap();
        writer.payload(&vec![1; 128 << 10]).unwrap();
        let mark = || Event::Mark(Mark { name: "x".to_owned() });
        writer.append(&mark()).unwrap();
        // Nothing but the data: no slot that would be met first.
        let mut space = writer.reserve(128 << 10).unwrap();
        space.as_mut_slice().fill(2);
        let len = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
        let e = space.finish().unwrap_err();
        assert!(matches!(e, RecordingError::Poisoned { .. }), "{e}");
        assert!(matches!(writer.append(&mark()), Err(RecordingError::Poisoned { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), len - 1);
    }
}

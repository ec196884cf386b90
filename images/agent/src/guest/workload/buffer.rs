//! Memory as direct I/O wants it.

/// Direct I/O asks for the logical block size at most; a page also keeps a unit of N pages in N.
const ALIGN: usize = 4096;

/// Zeroed bytes that begin at a page boundary, and stay where they are.
#[derive(Debug)]
pub struct Buffer {
    // Longer than asked for: the aligned part begins at `start`. Never resized.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub fn new(len: usize) -> Buffer {
        Buffer::behind_a_page(len, 0)
    }

    /// Begins so many bytes, fewer than a page, behind a page boundary.
    pub fn behind_a_page(len: usize, offset: usize) -> Buffer {
        let memory = vec![0; len + 2 * ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN) + offset % ALIGN;
        Buffer { memory, start, len }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_page() {
        for len in [512, 4096, 65536] {
            let mut buffers: Vec<Buffer> = (0..5).map(|_| Buffer::new(len)).collect();
            for buffer in &mut buffers {
                assert_eq!(buffer.bytes().len(), len);
                assert_eq!(buffer.bytes_mut().as_ptr() as usize % ALIGN, 0);
            }
            for offset in [512, 3584] {
                let buffer = Buffer::behind_a_page(len, offset);
                assert_eq!(buffer.bytes().len(), len);
                assert_eq!(buffer.bytes().as_ptr() as usize % ALIGN, offset);
            }
        }
    }
}

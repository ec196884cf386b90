//! Cutting a byte stream into lines.

/// The longest line either side takes: a readback of some hundred thousand units.
pub const MAX_LINE: usize = 64 << 20;

/// Cuts what was read into lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`, and how far it was searched for its end.
    start: usize,
    searched: usize,
    /// The line is longer than [`MAX_LINE`]: skip the rest.
    skipping: bool,
}

impl Lines {
    pub fn new() -> Lines {
        Lines::default()
    }

    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its newline; empty ones are left out.
    pub fn next_line(&mut self) -> Option<&[u8]> {
        loop {
            let Some(n) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                if self.buffer.len() - self.start > MAX_LINE {
                    self.skipping = true;
                    self.reset_buffer();
                }
                return None;
            };
            let (from, to) = (self.start, self.searched + n);
            self.start = to + 1;
            self.searched = to + 1;
            if std::mem::take(&mut self.skipping) || from == to {
                continue;
            }
            return Some(&self.buffer[from..to]);
        }
    }

    /// Forgets the beginning of a line: its sender is gone.
    pub fn reset(&mut self) {
        self.skipping = false;
        self.reset_buffer();
    }

    fn reset_buffer(&mut self) {
        self.buffer.clear();
        self.start = 0;
        self.searched = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(l) = lines.next_line() {
            out.push(String::from_utf8_lossy(l).into_owned());
        }
        out
    }

    #[test]
    fn lines_come_whole_however_they_were_read() {
        let text = b"\nab\n\ncde\nf";
        for size in 1..text.len() {
            let mut lines = Lines::new();
            let mut got = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                got.extend(all(&mut lines));
            }
            assert_eq!(got, ["ab", "cde"], "pieces of {size}");
            lines.push(b"g\n");
            assert_eq!(all(&mut lines), ["fg"]);
        }
    }

    #[test]
    fn the_beginning_of_a_line_whose_sender_is_gone_is_forgotten() {
        let mut lines = Lines::new();
        lines.push(b"{\"half\":");
        assert!(lines.next_line().is_none());
        lines.reset();
        lines.push(b"whole\n");
        assert_eq!(all(&mut lines), ["whole"]);
    }

    #[test]
    fn a_line_without_end_is_skipped() {
        let mut lines = Lines::new();
        for _ in 0..=MAX_LINE >> 20 {
            lines.push(&[b'x'; 1 << 20]);
            assert!(lines.next_line().is_none());
        }
        assert!(lines.buffer.len() <= MAX_LINE, "it must not be kept");
        lines.push(b"the end of it\nnext\n");
        assert_eq!(all(&mut lines), ["next"]);
    }
}

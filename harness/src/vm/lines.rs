//! Lines from a socket, without ever waiting longer than one wants to.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{VmError, io};

/// How long the peer may take to take what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Lines {
    socket: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` in which there is no newline.
    searched: usize,
    ready: VecDeque<Vec<u8>>,
    peer: &'static str,
}

impl Lines {
    pub(super) fn new(socket: UnixStream, peer: &'static str) -> Result<Lines, VmError> {
        socket.set_nonblocking(true).map_err(io("cannot use a socket"))?;
        Ok(Lines { socket, buffer: Vec::new(), searched: 0, ready: VecDeque::new(), peer })
    }

    /// The next line without its newline, or `None` when there is none after `wait`.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Option<Vec<u8>>, VmError> {
        if self.ready.is_empty() && self.wait(PollFlags::IN, wait)? {
            self.fill()?;
        }
        Ok(self.ready.pop_front())
    }

    pub(super) fn send(&mut self, mut bytes: &[u8]) -> Result<(), VmError> {
        let start = Instant::now();
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && start.elapsed() < WRITE_TIMEOUT => {
                    self.wait(PollFlags::OUT, Duration::from_millis(100))?;
                }
                Err(e) => return Err(io(format!("cannot write to {}", self.peer))(e)),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, wait: Duration) -> Result<bool, VmError> {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), what)];
        let timeout =
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(n) => Ok(n > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(io(format!("cannot wait for {}", self.peer))(e.into())),
        }
    }

    fn fill(&mut self) -> Result<(), VmError> {
        let mut piece = [0; 65536];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) if self.ready.is_empty() => {
                    let gone = ErrorKind::UnexpectedEof.into();
                    return Err(io(format!("{} hung up", self.peer))(gone));
                }
                // What it said before is heard first.
                Ok(0) => return Ok(()),
                Ok(n) => self.take(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(io(format!("cannot read from {}", self.peer))(e)),
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
        while let Some(n) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let rest = self.buffer.split_off(self.searched + n + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.truncate(line.len() - 1);
            // QEMU ends its lines with a carriage return, too.
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                self.ready.push_back(line);
            }
        }
        self.searched = self.buffer.len();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn lines_come_whole_and_in_order() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(a, "a test").unwrap();
        assert_eq!(lines.next(NOW).unwrap(), None);
        b.write_all(b"one\r\n\ntw").unwrap();
        assert_eq!(lines.next(NOW).unwrap().unwrap(), b"one");
        assert_eq!(lines.next(NOW).unwrap(), None);
        b.write_all(b"o\nthree\n").unwrap();
        drop(b);
        assert_eq!(lines.next(NOW).unwrap().unwrap(), b"two");
        assert_eq!(lines.next(NOW).unwrap().unwrap(), b"three");
        assert!(lines.next(NOW).unwrap_err().to_string().contains("a test hung up"));
    }

    #[test]
    fn much_is_written_while_the_peer_reads() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(a, "a test").unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            b.read_to_end(&mut all).unwrap();
            all.len()
        });
        lines.send(&vec![b'x'; 3_000_000]).unwrap();
        drop(lines);
        assert_eq!(reader.join().unwrap(), 3_000_000);
    }
}

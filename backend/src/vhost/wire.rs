//! vhost-user messages on a stream: whole, with the files that come with them.
//!
//! A header of 12 bytes (request, flags, size of the payload; the host's byte order), then the
//! payload. Files arrive with the first byte.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

pub(super) const HEADER: usize = 12;
/// The longest payload that any message of ours has (as the crate: 4 KiB with the header).
pub(super) const PAYLOAD_MAX: usize = 4096 - HEADER;
/// Files that may come with one message (as the crate).
const FILES_MAX: usize = 32;
/// How long a message may take that has begun, and one to be taken by its receiver.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// A message.
#[derive(Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
}

/// Why a stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message announces {0} bytes, and the longest there is has {PAYLOAD_MAX}")]
    TooLong(u32),
    #[error("a message comes with more than {FILES_MAX} files, or with more than may be open here")]
    TooManyFiles,
    #[error("a message has begun, but did not end within {} s", PATIENCE.as_secs())]
    Unfinished,
    #[error("the stream ended in the middle of a message")]
    Cut,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Message {
    /// A reply to `request`.
    pub(super) fn reply(request: u32, payload: &[u8]) -> Message {
        Message::new(request, VERSION | REPLY, payload)
    }

    /// A message of our own.
    pub(super) fn request(request: u32) -> Message {
        Message::new(request, VERSION, &[])
    }

    fn new(request: u32, flags: u32, payload: &[u8]) -> Message {
        // Ours are far below 4 GiB.
        let mut bytes: Vec<u8> =
            [request, flags, payload.len() as u32].iter().flat_map(|n| n.to_ne_bytes()).collect();
        bytes.extend_from_slice(payload);
        Message { bytes, files: Vec::new() }
    }

    fn word(&self, at: usize) -> u32 {
        let word = self.bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        u32::from_ne_bytes(word.unwrap_or_default())
    }

    pub(super) fn id(&self) -> u32 {
        self.word(0)
    }

    pub(super) fn flags(&self) -> u32 {
        self.word(4)
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The payload as one number of 64 bits, where it is one.
    pub(super) fn number(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.payload().try_into().ok()?))
    }

    pub(super) fn set_number(&mut self, number: u64) {
        self.bytes.truncate(HEADER);
        self.bytes.extend_from_slice(&number.to_ne_bytes());
    }

    /// Sends it whole.
    pub(super) fn send(&self, to: &UnixStream) -> io::Result<()> {
        let files: Vec<BorrowedFd<'_>> = self.files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            match sendmsg(to, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    rest = &rest[n..];
                    // They went with the first byte.
                    control.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let what = format!("it takes no answer for {} s", PATIENCE.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Puts messages together from what a stream gives.
#[derive(Debug, Default)]
pub(super) struct Reader {
    message: Message,
    begun: Option<Instant>,
}

impl Reader {
    /// When the message that has begun must be complete.
    pub(super) fn until(&self) -> Option<Instant> {
        self.begun.map(|begun| begun + PATIENCE)
    }

    /// Reads what is there, without waiting: a message where one is complete by now. `Ok(None)` asks
    /// for more. `Err(None)`: the stream ended, between two messages.
    pub(super) fn next(&mut self, from: &UnixStream) -> Result<Option<Message>, Option<WireError>> {
        let Message { bytes, files } = &mut self.message;
        loop {
            let whole = if bytes.len() < HEADER {
                HEADER
            } else {
                let size = [bytes[8], bytes[9], bytes[10], bytes[11]];
                let size = u32::from_ne_bytes(size);
                if size as usize > PAYLOAD_MAX {
                    return Err(Some(WireError::TooLong(size)));
                }
                HEADER + size as usize
            };
            let has = bytes.len();
            if has == whole {
                self.begun = None;
                return Ok(Some(std::mem::take(&mut self.message)));
            }
            bytes.resize(whole, 0);
            let got = receive(from, &mut bytes[has..], files);
            bytes.truncate(has + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) if has == 0 => return Err(None),
                Ok(0) => return Err(Some(WireError::Cut)),
                Ok(_) => {
                    self.begun.get_or_insert_with(Instant::now);
                }
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match self.until() {
                        Some(until) if until <= Instant::now() => Err(Some(WireError::Unfinished)),
                        _ => Ok(None),
                    };
                }
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Some(error)),
            }
        }
    }
}

/// Reads at most `to`, and takes the files that come with it.
fn receive(from: &UnixStream, to: &mut [u8], files: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got =
        recvmsg(from, &mut [IoSliceMut::new(to)], &mut control, flags).map_err(io::Error::from)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            files.extend(came);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILES_MAX {
        return Err(WireError::TooManyFiles);
    }
    Ok(got.bytes)
}

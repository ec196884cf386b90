//! Walks a descriptor chain (VIRTIO 1.2, 2.7.5) and refuses what is not well formed.
//!
//! `virtio_queue` has a walker of its own, which ends without an error at a `next` that is out of
//! range, so that a broken chain looks like a shorter one. This one tells them apart, and where
//! the chain has a usable place for an answer in spite of being malformed, it says where.
//!
//! Where a device's header ends and its data begin, and which of the writable bytes are its
//! answer, is the device's to say: virtio-blk's status is the last byte ([`Chain::take_last`]),
//! virtio-scsi's response comes first.

use super::Memory;
use super::spans::{Span, Spans};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// Longest chain in bytes that is accepted, header and answer included.
pub const CHAIN_MAX_BYTES: u64 = (64 << 20) + 4096;

/// A well-formed chain: what the driver gives, then where the device may write.
#[derive(Debug)]
pub struct Chain {
    /// Device-readable, in order; no empty ones.
    pub readable: Spans,
    /// Device-writable, in order; no empty ones, and at least one byte.
    pub writable: Spans,
}

impl Chain {
    /// Takes the last writable byte, where virtio-blk has its status.
    pub fn take_last(&mut self) -> Option<GuestAddress> {
        let last = self.writable.last_mut()?;
        last.len -= 1;
        let at = GuestAddress(last.addr.0 + u64::from(last.len));
        if last.len == 0 {
            self.writable.pop();
        }
        Some(at)
    }
}

/// A chain that no request can be read from.
#[derive(Debug)]
pub struct Broken {
    pub why: Malformed,
    /// The last byte of the last descriptor, where the chain has an end and that is writable.
    pub last: Option<GuestAddress>,
    /// What is writable before anything that is wrong, where the chain has an end.
    pub writable: Spans,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("its head {0} lies beyond the descriptor table")]
    Head(u16),
    #[error("a descriptor lies outside the guest's memory")]
    Unreadable,
    #[error("a descriptor's next, {0}, lies beyond the table")]
    Next(u16),
    #[error("its descriptors form a loop")]
    Loop,
    #[error("it has more than {0} descriptors")]
    TooMany(usize),
    #[error("it is longer than {CHAIN_MAX_BYTES} bytes")]
    TooLong,
    #[error("a descriptor is empty")]
    Empty,
    #[error("a buffer lies outside the guest's memory")]
    Outside,
    #[error("a writable descriptor comes before a readable one")]
    Order,
    #[error("nothing in it is writable: there is no place for the answer")]
    NoAnswer,
    #[error("an indirect descriptor has a next one")]
    IndirectNext,
    #[error("an indirect table lies inside another")]
    IndirectNested,
    #[error("an indirect table of {0} bytes is no table")]
    IndirectSize(u32),
}

/// Walks the chain that begins at `head` of the table of `entries` descriptors at `table`, and
/// accepts at most `limit` descriptors.
///
/// # Errors
/// [`Broken`], with the first thing that is wrong.
pub fn walk(
    mem: &Memory,
    table: GuestAddress,
    entries: u16,
    head: u16,
    limit: usize,
) -> Result<Chain, Broken> {
    let mut walk = Walk { mem, limit, ..Walk::new(mem) };
    let ended = walk.run(table, entries, head);
    walk.result(ended)
}

struct Walk<'a> {
    mem: &'a Memory,
    limit: usize,
    count: usize,
    bytes: u64,
    readable: Spans,
    writable: Spans,
    /// First thing that is wrong with a descriptor, while the chain itself could be followed.
    fault: Option<Malformed>,
    /// The last descriptor's last byte, where it can be written.
    last: Option<GuestAddress>,
}

impl<'a> Walk<'a> {
    fn new(mem: &'a Memory) -> Self {
        Walk {
            mem,
            limit: 0,
            count: 0,
            bytes: 0,
            readable: Spans::new(),
            writable: Spans::new(),
            fault: None,
            last: None,
        }
    }

    /// Follows the chain to its end. An error here means that it has none.
    fn run(&mut self, table: GuestAddress, entries: u16, head: u16) -> Result<(), Malformed> {
        if head >= entries {
            return Err(Malformed::Head(head));
        }
        if let Some(indirect) = self.table(table, entries, head, false)? {
            let size = indirect.len();
            let one = size_of::<Descriptor>() as u32;
            let entries = u16::try_from(size / one).unwrap_or(0);
            if entries == 0 || !size.is_multiple_of(one) {
                return Err(Malformed::IndirectSize(size));
            }
            self.table(indirect.addr(), entries, 0, true)?;
        }
        Ok(())
    }

    /// Follows one table; gives the indirect descriptor that the chain goes on with, if it does.
    fn table(
        &mut self,
        table: GuestAddress,
        entries: u16,
        head: u16,
        indirect: bool,
    ) -> Result<Option<Descriptor>, Malformed> {
        let mut index = head;
        // As many steps as there are entries: one more would be a loop.
        for _ in 0..entries {
            let descriptor: Descriptor = table
                .checked_add(u64::from(index) * size_of::<Descriptor>() as u64)
                .and_then(|at| self.mem.read_obj(at).ok())
                .ok_or(Malformed::Unreadable)?;
            if descriptor.refers_to_indirect_table() {
                return match (indirect, descriptor.has_next()) {
                    (true, _) => Err(Malformed::IndirectNested),
                    (_, true) => Err(Malformed::IndirectNext),
                    _ => Ok(Some(descriptor)),
                };
            }
            self.take(&descriptor);
            if !descriptor.has_next() {
                return Ok(None);
            }
            index = descriptor.next();
            if index >= entries {
                return Err(Malformed::Next(index));
            }
        }
        Err(Malformed::Loop)
    }

    fn take(&mut self, descriptor: &Descriptor) {
        self.count += 1;
        self.bytes += u64::from(descriptor.len());
        self.last = None;
        let span = Span { addr: descriptor.addr(), len: descriptor.len() };
        let fault = if span.len == 0 {
            Some(Malformed::Empty)
        } else if !self.mem.check_range(span.addr, span.len as usize) {
            Some(Malformed::Outside)
        } else {
            if descriptor.is_write_only() {
                // `check_range` holds for the whole span, so this cannot overflow.
                self.last = span.addr.checked_add(u64::from(span.len) - 1);
            }
            self.place(span, descriptor.is_write_only())
        };
        self.fault = self.fault.or(fault);
    }

    /// Beyond its limits, or its first fault, a chain is only followed, not kept.
    fn place(&mut self, span: Span, writable: bool) -> Option<Malformed> {
        if self.count > self.limit {
            return Some(Malformed::TooMany(self.limit));
        }
        if self.bytes > CHAIN_MAX_BYTES {
            return Some(Malformed::TooLong);
        }
        if !writable && !self.writable.is_empty() {
            return Some(Malformed::Order);
        }
        if self.fault.is_none() {
            if writable { &mut self.writable } else { &mut self.readable }.push(span);
        }
        None
    }

    fn result(self, ended: Result<(), Malformed>) -> Result<Chain, Broken> {
        if let Err(why) = ended {
            let why = self.fault.unwrap_or(why);
            return Err(Broken { why, last: None, writable: Spans::new() });
        }
        if let Some(why) = self.fault {
            return Err(Broken { why, last: self.last, writable: self.writable });
        }
        if self.last.is_none() {
            return Err(Broken { why: Malformed::NoAnswer, last: None, writable: Spans::new() });
        }
        Ok(Chain { readable: self.readable, writable: self.writable })
    }
}

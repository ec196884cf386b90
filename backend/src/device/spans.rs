//! Pieces of guest memory: cut, copied from and to, and handed to a store.

use super::Memory;
use crate::store::Buffers;
use smallvec::SmallVec;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A piece of guest memory that lies wholly inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub addr: GuestAddress,
    pub len: u32,
}

pub type Spans = SmallVec<[Span; 4]>;

/// The guest took the memory away that the spans lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// In bytes.
pub(crate) fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}

/// The first `n` bytes, and the rest. `None` where there are fewer.
pub(crate) fn split(spans: &[Span], n: u64) -> Option<(Spans, Spans)> {
    let (mut first, mut rest, mut missing) = (Spans::new(), Spans::new(), n);
    for span in spans {
        // Not more than the span's length, which is an u32.
        let taken = u64::from(span.len).min(missing) as u32;
        missing -= u64::from(taken);
        if taken > 0 {
            first.push(Span { addr: span.addr, len: taken });
        }
        if taken < span.len {
            // Inside the span, which `chain::walk` found to lie in the guest's memory.
            let addr = GuestAddress(span.addr.0 + u64::from(taken));
            rest.push(Span { addr, len: span.len - taken });
        }
    }
    (missing == 0).then_some((first, rest))
}

/// Copies all that the spans hold; `to` is as long as they are.
pub(crate) fn copy(mem: &Memory, spans: &[Span], to: &mut [u8]) -> Result<(), Gone> {
    let mut at = 0;
    for span in spans {
        let end = at + span.len as usize;
        mem.read_slice(&mut to[at..end], span.addr).map_err(|_| Gone)?;
        at = end;
    }
    Ok(())
}

pub(crate) fn gather<const N: usize>(mem: &Memory, spans: &[Span]) -> Result<[u8; N], Gone> {
    let mut bytes = [0; N];
    copy(mem, spans, &mut bytes)?;
    Ok(bytes)
}

/// Writes `bytes` to the beginning of the spans, as far as they reach: how many it were.
pub(crate) fn fill(mem: &Memory, spans: &[Span], bytes: &[u8]) -> Result<usize, Gone> {
    let mut at = 0;
    for span in spans {
        let end = bytes.len().min(at + span.len as usize);
        mem.write_slice(&bytes[at..end], span.addr).map_err(|_| Gone)?;
        at = end;
    }
    Ok(at)
}

/// The host's view of `spans`, which keeps the guest's memory mapped.
pub(crate) fn buffers(mem: &Arc<Memory>, spans: &[Span]) -> Result<Buffers, Gone> {
    let mut pieces: SmallVec<[libc::iovec; 4]> = SmallVec::new();
    for span in spans {
        for slice in mem.get_slices(span.addr, span.len as usize) {
            let slice = slice.map_err(|_| Gone)?;
            pieces.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    // SAFETY: the slices lie inside mappings that are shared, writable, and live as long as `mem`,
    // of which the buffers keep a reference.
    Ok(unsafe { Buffers::new(pieces, mem.clone()) })
}

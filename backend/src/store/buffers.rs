//! The guest's memory that a request is about, kept mapped for as long as the request lives.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Pieces of memory, in order, that stay mapped while this lives.
///
/// The guest may change them at any time: they are only ever copied from or to, never borrowed as
/// slices. A store that needs the data twice copies it once and works on its copy.
pub struct Buffers {
    iov: smallvec::SmallVec<[libc::iovec; 4]>,
    len: usize,
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: the pointers are only dereferenced by copying, the memory is kept by `_owner`, which may
// be sent, and concurrent change by the guest is part of the contract.
unsafe impl Send for Buffers {}

impl Buffers {
    pub fn empty() -> Self {
        Buffers { iov: smallvec::SmallVec::new(), len: 0, _owner: None }
    }

    /// # Safety
    /// Every `iovec` is valid for reads and writes (for reads only where the request is a write)
    /// for as long as `owner` lives.
    pub unsafe fn new(
        iov: impl IntoIterator<Item = libc::iovec>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let iov: smallvec::SmallVec<[libc::iovec; 4]> = iov.into_iter().collect();
        let len = iov.iter().map(|v| v.iov_len).sum();
        Buffers { iov, len, _owner: Some(owner) }
    }

    /// Memory of our own, for tests and tools. Read it back with [`Buffers::copy_to`].
    pub fn from_vec(data: Vec<u8>) -> Self {
        let mut data = data.into_boxed_slice();
        let piece = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: the box is the owner, and nobody else holds a reference into it.
        unsafe { Self::new([piece], Arc::new(HeldBox(Box::into_raw(data)))) }
    }

    /// `len` bytes of `pattern` over and over, for a write. Takes little memory however long it is.
    pub fn repeating(pattern: &[u8], len: usize) -> Self {
        const CHUNK: usize = 64 << 10;
        if pattern.is_empty() || len == 0 {
            return Self::empty();
        }
        let times = (CHUNK.min(len) / pattern.len()).max(1);
        let chunk = Box::into_raw(pattern.repeat(times).into_boxed_slice());
        let (base, size) = (chunk.cast::<u8>(), chunk.len());
        let pieces = (0..len.div_ceil(size))
            .map(|i| libc::iovec { iov_base: base.cast(), iov_len: size.min(len - i * size) });
        let pieces: smallvec::SmallVec<[libc::iovec; 4]> = pieces.collect();
        // SAFETY: every piece begins where the box does and is not longer; the box is the owner.
        unsafe { Self::new(pieces, Arc::new(HeldBox(chunk))) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For `preadv`, `pwritev` and io_uring.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iov
    }

    /// Copies the bytes from `skip` on into `to`, as many as both have; says how many.
    pub fn copy_to(&self, skip: usize, to: &mut [u8]) -> usize {
        self.each(skip, to.len(), |piece, at, n| {
            // SAFETY: `piece` is valid for `n` bytes (contract of `new`), `to` has room for them.
            unsafe { std::ptr::copy_nonoverlapping(piece, to.as_mut_ptr().add(at), n) }
        })
    }

    /// Copies `from` to the bytes from `skip` on, as many as both have; says how many.
    pub fn copy_from(&mut self, skip: usize, from: &[u8]) -> usize {
        self.each(skip, from.len(), |piece, at, n| {
            // SAFETY: as in `copy_to`; the request is a read, so the memory may be written.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().add(at), piece, n) }
        })
    }

    /// As [`Buffers::copy_from`] from the first byte on, of a request that is shared.
    pub(crate) fn fill(&self, from: &[u8]) {
        self.each(0, from.len(), |piece, at, n| {
            // SAFETY: as in `copy_from`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().add(at), piece, n) }
        });
    }

    fn each(&self, skip: usize, len: usize, mut f: impl FnMut(*mut u8, usize, usize)) -> usize {
        let (mut skip, mut at) = (skip, 0);
        for v in &self.iov {
            if at == len {
                break;
            }
            if skip >= v.iov_len {
                skip -= v.iov_len;
                continue;
            }
            let n = (v.iov_len - skip).min(len - at);
            // SAFETY: `skip < iov_len`, so the result lies inside the piece.
            f(unsafe { v.iov_base.cast::<u8>().add(skip) }, at, n);
            at += n;
            skip = 0;
        }
        at
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("pieces", &self.iov.len()).field("len", &self.len).finish()
    }
}

/// Owns a box through its raw pointer, so that no `&mut` to its content exists beside the iovec.
struct HeldBox(*mut [u8]);

// SAFETY: sole owner of plain bytes.
unsafe impl Send for HeldBox {}
// SAFETY: as above; nothing is reachable through a shared reference.
unsafe impl Sync for HeldBox {}

impl Drop for HeldBox {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, dropped once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

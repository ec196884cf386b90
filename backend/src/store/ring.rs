//! An io_uring for one queue of a raw disk: reads and writes of one file that is registered with it,
//! and flushes of that.
//!
//! Rings are made before the sandbox is entered, which lets nobody make one: [`Ring::new`] takes away
//! from each all that the disk does not need (IORING_REGISTER_RESTRICTIONS), since seccomp does not
//! see what is done through it. Each has an open file of its own, so that the kernel tells each of
//! them of a loss (it tells every open file once); and the one that is locked, too, which the kernel
//! keeps until nothing is on its way any more: after a kill that is later than the process's end.

#![allow(unsafe_code)]

use super::Buffers;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries: more than that are sent in several batches.
const ENTRIES: u32 = 256;
/// As many as any queue may have in flight.
const COMPLETIONS: u32 = 2048;
/// The one file that is registered.
const FILE: types::Fixed = types::Fixed(0);
/// Of io_uring_enter(2).
const IORING_ENTER_GETEVENTS: u32 = 1;
/// Pieces of one request that the kernel takes (UIO_MAXIOV).
const IOV_MAX: usize = 1024;

/// What a disk can ask a ring for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Read {
        offset: u64,
    },
    /// `through`: durable when it is answered (RWF_DSYNC).
    Write {
        offset: u64,
        through: bool,
    },
    /// fdatasync(2).
    Sync,
}

pub(super) struct Ring {
    ring: IoUring,
    bell: Arc<OwnedFd>,
    /// Pieces of those in flight that have several, by key.
    pieces: Vec<Option<Box<[libc::iovec]>>>,
    /// In the ring, and the kernel was not told.
    unsent: usize,
    in_flight: usize,
    /// Kept open; the ring has it by itself.
    _file: OwnedFd,
}

// SAFETY: `pieces` point to memory that the requests in flight keep; they are only given to the kernel.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// A ring that can read, write and flush `file`, and nothing else, and to which nothing can be added.
///
/// # Errors
/// The kernel has none, or lets this process have none.
pub fn restricted(file: impl AsFd, locked: impl AsFd, bell: impl AsFd) -> io::Result<IoUring> {
    let ring: IoUring = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        // Completions are looked at when the queue's thread comes by: no need to interrupt it.
        .setup_coop_taskrun()
        // Who never comes by (a queue that polls) can see that there are some.
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(ENTRIES)?;
    let submitter = ring.submitter();
    submitter.register_files(&[file.as_fd().as_raw_fd(), locked.as_fd().as_raw_fd()])?;
    submitter.register_eventfd(bell.as_fd().as_raw_fd())?;
    let ops = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
    ];
    let mut allowed: Vec<Restriction> = ops.map(Restriction::sqe_op).into();
    let fixed = squeue::Flags::FIXED_FILE.bits();
    allowed.push(Restriction::sqe_flags_allowed(fixed));
    allowed.push(Restriction::sqe_flags_required(fixed));
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

impl Ring {
    /// A ring for `file`, which rings `bell` where it has to. `locked` stays open, and so locked, for as
    /// long as the kernel has anything of the ring's to do.
    ///
    /// # Errors
    /// The kernel has none, or lets this process have none.
    pub(super) fn new(file: OwnedFd, locked: impl AsFd, bell: Arc<OwnedFd>) -> io::Result<Ring> {
        let ring = restricted(&file, locked, &bell)?;
        let (pieces, unsent, in_flight) = (Vec::new(), 0, 0);
        Ok(Ring { ring, bell, pieces, unsent, in_flight, _file: file })
    }

    /// Is nothing in it, and nothing on its way?
    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    pub(super) fn bell(&self) -> &Arc<OwnedFd> {
        &self.bell
    }

    /// Takes a request; [`Ring::ended`] tells its end under `key`. False: it cannot (too many pieces),
    /// and somebody else has to.
    ///
    /// # Safety
    /// The memory of `buffers` stays until then; for a read it may be written.
    pub(super) unsafe fn ask(&mut self, key: usize, ask: Ask, buffers: &Buffers) -> bool {
        let iov = buffers.iovecs();
        if iov.len() > IOV_MAX {
            return false;
        }
        let flags = |through| if through { libc::RWF_DSYNC } else { 0 };
        let entry = match (ask, iov) {
            (Ask::Sync, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            // A length fits: a chain has at most 64 MiB.
            (Ask::Read { offset }, [one]) => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Ask::Write { offset, through }, [one]) => {
                opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .rw_flags(flags(through))
                    .build()
            }
            (Ask::Read { offset }, _) => {
                let (iov, n) = self.keep(key, iov);
                opcode::Readv::new(FILE, iov, n).offset(offset).build()
            }
            (Ask::Write { offset, through }, _) => {
                let (iov, n) = self.keep(key, iov);
                opcode::Writev::new(FILE, iov, n).offset(offset).rw_flags(flags(through)).build()
            }
        };
        let entry = entry.user_data(key as u64);
        // SAFETY: the memory stays (by contract), and so do the pieces until the request ended.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.send(0);
        }
        self.unsent += 1;
        self.in_flight += 1;
        true
    }

    /// Where the pieces stay until `key` ended: the request itself may move.
    fn keep(&mut self, key: usize, iov: &[libc::iovec]) -> (*const libc::iovec, u32) {
        if self.pieces.len() <= key {
            self.pieces.resize_with(key + 1, || None);
        }
        let kept = self.pieces[key].insert(iov.into());
        (kept.as_ptr(), kept.len() as u32)
    }

    /// Has the kernel take what is in the ring, and waits until so many ended.
    fn send(&mut self, wait: usize) {
        loop {
            match self.ring.submit_and_wait(wait) {
                Ok(n) => {
                    self.unsent = self.unsent.saturating_sub(n);
                    if self.unsent == 0 || wait > 0 {
                        return;
                    }
                }
                // Interrupted, or it has no room for more before some are taken from it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return,
                Err(e) => {
                    // Nothing in it can be wrong: see `ask`.
                    log::error!("the kernel takes nothing from a ring: {e}");
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    return;
                }
            }
        }
    }

    /// Sends what was asked for, and tells what ended: its key, and bytes moved, or a negative error
    /// number. `wait`: at least one. Otherwise the bell rings when another one ends.
    pub(super) fn ended(&mut self, wait: bool, f: &mut dyn FnMut(usize, i32)) {
        self.ring.completion().disable_eventfd();
        if self.unsent > 0 || (wait && self.in_flight > 0) {
            self.send(usize::from(wait));
        } else if self.ring.submission().taskrun() {
            // They come when this thread enters the kernel, which a thread that polls does not.
            let wants = IORING_ENTER_GETEVENTS;
            // SAFETY: nothing is submitted, and no signal mask given.
            let entered =
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, wants, None) };
            if let Err(error) = entered {
                log::debug!("a ring's completions are late: {error}");
            }
        }
        self.take(f);
        if self.in_flight > 0 && !wait {
            self.ring.completion().enable_eventfd();
            // What ended in between rang nobody: looked for after the kernel can see that it has to.
            fence(Ordering::SeqCst);
            self.take(f);
        }
    }

    fn take(&mut self, f: &mut dyn FnMut(usize, i32)) {
        let mut completion = self.ring.completion();
        completion.sync();
        for entry in completion {
            let key = entry.user_data() as usize;
            if let Some(kept) = self.pieces.get_mut(key) {
                *kept = None;
            }
            self.in_flight -= 1;
            f(key, entry.result());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Whoever asked has waited.
        debug_assert_eq!(self.in_flight, 0);
    }
}

/// The rings of a disk, by queue: each is used by one at a time, and comes back.
#[derive(Debug)]
pub(super) struct RingPool {
    idle: Vec<Mutex<Option<Ring>>>,
    bells: Vec<Arc<OwnedFd>>,
}

impl RingPool {
    pub(super) fn new(rings: Vec<Ring>) -> Arc<RingPool> {
        let bells = rings.iter().map(|ring| Arc::clone(ring.bell())).collect();
        let idle = rings.into_iter().map(|ring| Mutex::new(Some(ring))).collect();
        Arc::new(RingPool { idle, bells })
    }

    /// What queue `n`'s ring rings.
    pub(super) fn bell(&self, n: u16) -> Option<&Arc<OwnedFd>> {
        self.bells.get(usize::from(n))
    }

    /// `None`: it is in use.
    pub(super) fn lend(self: &Arc<Self>, n: u16) -> Option<Lent> {
        let ring = whole(self.idle.get(usize::from(n))?).take()?;
        Some(Lent { ring: Some(ring), n, rings: Arc::clone(self) })
    }
}

/// A ring, which comes back to where it was when this goes.
#[derive(Debug)]
pub(super) struct Lent {
    ring: Option<Ring>,
    n: u16,
    rings: Arc<RingPool>,
}

impl std::ops::Deref for Lent {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        self.ring.as_ref().unwrap_or_else(|| unreachable!("taken only when dropped"))
    }
}

impl std::ops::DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Ring {
        self.ring.as_mut().unwrap_or_else(|| unreachable!("taken only when dropped"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(place) = self.rings.idle.get(usize::from(self.n)) {
            *whole(place) = self.ring.take();
        }
    }
}

fn whole<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The writer's view of its file: one range of addresses, into which segments are mapped as the
//! file grows, and the SIGBUS handler that keeps a file cut short from ending the process.
//!
//! The unsafe code of the crate is here, and in the few lines of the writer that lend payload out
//! of the mapping. Byte `p` of the file is at address `base + p`, always.

#![allow(unsafe_code)]

use super::slot::{WORDS, Words};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Addresses that are set aside for one writer; fewer where the process may not have so many.
const RESERVE: [usize; 5] = [1 << 40, 1 << 38, 1 << 36, 1 << 34, 1 << 32];

/// A shared mapping of a file that grows.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    reserved: usize,
    /// Bytes from the start that are mapped to the file.
    mapped: AtomicU64,
    guard: &'static Guarded,
}

// SAFETY: the range belongs to this value alone. What is in it is reached through atomics, or by
// the holder of a `Space` (unique by construction of the writer's cursor), or is not changed any
// more.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Sets addresses aside; nothing is mapped yet.
    pub(super) fn new() -> io::Result<Mapping> {
        let mut last = io::Error::from(io::ErrorKind::OutOfMemory);
        for reserved in RESERVE {
            // SAFETY: a fresh range, chosen by the kernel, that cannot be touched.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    reserved,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                last = io::Error::last_os_error();
                continue;
            }
            let Some(guard) = Guarded::claim(base as usize, reserved) else {
                // SAFETY: the range made above, which nobody else knows.
                unsafe { libc::munmap(base, reserved) };
                return Err(io::Error::other("too many recordings are being written"));
            };
            return Ok(Mapping { base: base.cast(), reserved, mapped: AtomicU64::new(0), guard });
        }
        Err(last)
    }

    /// Bytes a file may have.
    pub(super) fn limit(&self) -> u64 {
        self.reserved as u64
    }

    /// Bytes from the start that are there.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Acquire)
    }

    /// Maps the file's bytes up to `end`, which must be allocated. One thread at a time.
    pub(super) fn extend(&self, file: &File, end: u64) -> io::Result<()> {
        let from = self.mapped.load(Ordering::Acquire);
        if end <= from {
            return Ok(());
        }
        if end > self.limit() {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        // SAFETY: lies inside the range set aside in `new`, beyond what is mapped to the file, so
        // it replaces only untouchable pages.
        let got = unsafe {
            libc::mmap(
                self.base.add(from as usize).cast(),
                (end - from) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                from as libc::off_t,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.mapped.store(end, Ordering::Release);
        Ok(())
    }

    /// The file failed beneath the mapping, and zeroes stand where it failed.
    pub(super) fn poisoned(&self) -> bool {
        self.guard.poisoned.load(Ordering::Acquire)
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.mapped.load(Ordering::Acquire),
            "a word outside of the recording"
        );
        // SAFETY: mapped and aligned (checked), and words are only ever reached as atomics.
        unsafe { AtomicU64::from_ptr(self.base.add(at as usize).cast()) }
    }

    pub(super) fn store(&self, at: u64, value: u64) {
        self.word(at).store(value.to_le(), Ordering::Release);
    }

    /// Stores a slot: everything but word 0, and then that.
    pub(super) fn commit(&self, at: u64, words: &Words) {
        for i in (1..WORDS).chain([0]) {
            let order = if i == 0 { Ordering::Release } else { Ordering::Relaxed };
            self.word(at + 8 * i as u64).store(words[i].to_le(), order);
        }
    }

    /// Bytes to be written by the only one who knows of them.
    ///
    /// # Safety
    /// Nobody else reaches these bytes, through [`Mapping::bytes`] or otherwise, while the slice
    /// lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn exclusive(&self, at: u64, len: usize) -> &mut [u8] {
        self.check(at, len);
        // SAFETY: mapped (checked), exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at as usize), len) }
    }

    /// Bytes that do not change any more.
    ///
    /// # Safety
    /// No slice of [`Mapping::exclusive`] over any of them lives, or will be made.
    pub(super) unsafe fn bytes(&self, at: u64, len: usize) -> &[u8] {
        self.check(at, len);
        // SAFETY: mapped (checked), and constant by contract.
        unsafe { std::slice::from_raw_parts(self.base.add(at as usize), len) }
    }

    fn check(&self, at: u64, len: usize) {
        let end = at.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.mapped.load(Ordering::Acquire)),
            "bytes outside of the recording"
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard.release();
        // SAFETY: the range made in `new`; nothing borrows from it any more.
        unsafe { libc::munmap(self.base.cast(), self.reserved) };
    }
}

/// A range of addresses in which SIGBUS means: poison, and go on with zeroes.
#[derive(Debug)]
struct Guarded {
    /// 0: this entry is free. Set last and cleared first.
    start: AtomicUsize,
    end: AtomicUsize,
    taken: AtomicBool,
    poisoned: AtomicBool,
}

static GUARDED: [Guarded; 256] = [const {
    Guarded {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
    }
}; 256];

/// What handled SIGBUS before us.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(4096);

impl Guarded {
    fn claim(start: usize, len: usize) -> Option<&'static Guarded> {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let entry = GUARDED.iter().find(|g| !g.taken.swap(true, Ordering::AcqRel))?;
        entry.poisoned.store(false, Ordering::Relaxed);
        entry.end.store(start + len, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(entry)
    }

    fn release(&self) {
        self.start.store(0, Ordering::Release);
        self.taken.store(false, Ordering::Release);
    }
}

fn install() {
    // SAFETY: `sysconf` and `sigaction` with valid arguments; the handler does only what a signal
    // handler may (atomics, mmap, sigaction).
    unsafe {
        if let Ok(page) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
            PAGE.store(page, Ordering::Relaxed);
        }
        let mut before = Box::new(std::mem::zeroed::<libc::sigaction>());
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut *before);
        BEFORE.store(Box::into_raw(before), Ordering::Release);
        let mut ours = std::mem::zeroed::<libc::sigaction>();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
        ours.sa_sigaction = handler as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut ours.sa_mask);
        libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut());
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid `siginfo_t` to a handler installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    for entry in &GUARDED {
        let start = entry.start.load(Ordering::Acquire);
        if start == 0 || address < start || address >= entry.end.load(Ordering::Relaxed) {
            continue;
        }
        entry.poisoned.store(true, Ordering::Release);
        let page = PAGE.load(Ordering::Relaxed);
        // SAFETY: one page inside a range that belongs to a `Mapping`, which is borrowed by the
        // thread that faulted; `errno` is the interrupted code's and is put back.
        unsafe {
            let errno = *libc::__errno_location();
            let got = libc::mmap(
                (address & !(page - 1)) as *mut c_void,
                page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            *libc::__errno_location() = errno;
            if got != libc::MAP_FAILED {
                return;
            }
        }
        break;
    }
    pass_on(signal, info, context);
}

/// Not ours: what was there before has its say. If that is nothing, the faulting instruction runs
/// again and ends the process, as it would have without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE.load(Ordering::Acquire);
    // SAFETY: `before` is null or a leaked box; a handler in it was installed by its owner for
    // this signal, with the signature that its flags say.
    unsafe {
        let handler = if before.is_null() { libc::SIG_DFL } else { (*before).sa_sigaction };
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            let mut default = std::mem::zeroed::<libc::sigaction>();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &default, std::ptr::null_mut());
        } else if (*before).sa_flags & libc::SA_SIGINFO != 0 {
            let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            call(signal);
        }
    }
}

//! Addresses at which a mapped file may end without ending the process.
//!
//! A file that is cut short, or whose disk fails, raises SIGBUS where its mapping is touched. Inside
//! a [`Guard`] a handler puts zeroes there, and remembers it: the guard is then *poisoned*, and
//! whoever made the mapping gives it up. Elsewhere SIGBUS is what it was.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// A range of addresses in which SIGBUS means: poison, and go on with zeroes.
#[derive(Debug)]
pub struct Guard(&'static Guarded);

impl Guard {
    /// Guards `len` bytes at `start`. `None`: there are too many guards.
    ///
    /// # Safety
    /// They are a mapping of the caller's own, which outlives the guard: its pages are replaced where
    /// the file beneath fails.
    pub unsafe fn new(start: usize, len: usize) -> Option<Guard> {
        Guarded::claim(start, len).map(Guard)
    }

    /// The file failed beneath the mapping, and zeroes stand where it failed.
    pub fn poisoned(&self) -> bool {
        self.0.poisoned.load(Ordering::Acquire)
    }

    /// What is beneath is known to have failed, though nobody met it.
    pub(crate) fn poison(&self) {
        self.0.poisoned.store(true, Ordering::Release);
        POISONINGS.fetch_add(1, Ordering::Release);
    }
}

/// How often a guard was poisoned in this process: to look at guards only where that changed.
pub fn poisonings() -> u64 {
    POISONINGS.load(Ordering::Acquire)
}

static POISONINGS: AtomicU64 = AtomicU64::new(0);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// What the handler looks at.
#[derive(Debug)]
struct Guarded {
    /// 0: this entry is free. Set last and cleared first.
    start: AtomicUsize,
    end: AtomicUsize,
    taken: AtomicBool,
    poisoned: AtomicBool,
}

/// Recordings that are written, and the memory of guests: a front-end may share it in 509 pieces,
/// and the pieces before are still looked at while new ones come.
const GUARDS: usize = 2048;

static GUARDED: [Guarded; GUARDS] = [const {
    Guarded {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
    }
}; GUARDS];

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
        POISONINGS.fetch_add(1, Ordering::Release);
        let page = PAGE.load(Ordering::Relaxed);
        let zeroes = |start: usize, len: usize| {
            // SAFETY: inside a range that outlives its guard, and that the thread that faulted
            // borrows; `errno` is the interrupted code's and is put back.
            unsafe {
                let errno = *libc::__errno_location();
                let got = libc::mmap(
                    start as *mut c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                );
                *libc::__errno_location() = errno;
                got != libc::MAP_FAILED
            }
        };
        // A page, or all of it: huge pages cannot be replaced in part.
        let end = entry.end.load(Ordering::Relaxed);
        if zeroes(address & !(page - 1), page) || zeroes(start, end - start) {
            return;
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

//! What holds whatever the input: time, memory, and no panic on any thread.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Of processor time, all threads together: what the machine does besides counts for nothing.
pub const PROCESSOR: Duration = Duration::from_secs(1);
/// Of time that passes. Far more, since others may have the machine: 22 s were seen for what takes a
/// tenth of a second, on two processors with twenty busy processes of a higher priority.
const PASSING: Duration = Duration::from_secs(120);

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: passes everything on to the system's allocator, and counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Panics since the process began, on any thread.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Log lines are made, as a user would have them, and thrown away.
struct Unread;

impl log::Log for Unread {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Sink;
        impl std::fmt::Write for Sink {
            fn write_str(&mut self, _: &str) -> std::fmt::Result {
                Ok(())
            }
        }
        let _ = write!(Sink, "{}", record.args());
    }

    fn flush(&self) {}
}

fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = log::set_logger(&Unread);
        log::set_max_level(log::LevelFilter::Debug);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            before(info);
        }));
    });
}

/// Runs one case.
///
/// # Panics
/// It panicked, on whatever thread; it took too long, or too much memory.
pub fn within(memory: usize, case: impl FnOnce()) {
    prepare();
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let (busy, began) = (processor(), Instant::now());
    case();
    let (busy, passed) = (processor().saturating_sub(busy), began.elapsed());
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(panics.is_empty(), "a thread panicked: {}", panics.join("; "));
    assert!(busy <= PROCESSOR, "it took {busy:?} of processor time, and may take {PROCESSOR:?}");
    assert!(passed <= PASSING, "it took {passed:?}, and may take {PASSING:?}");
    assert!(peak <= memory, "it had {peak} bytes allocated at a time, and may have {memory}");
}

/// Processor time that this process took so far.
///
/// # Panics
/// There is no such clock.
pub fn processor() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that there is, and a place for what it shows.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    assert_eq!(read, 0, "no clock");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The files that this process has open.
pub(crate) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

//! A guest's memory: two regions that touch each other for the guest and not on the host, with
//! pages around them that nobody may write to.
//!
//! | guest address | what is there |
//! | --- | --- |
//! | 0 | rings, with the descriptor table first |
//! | [`TABLES`] | indirect tables |
//! | [`GOOD`] | headers and buffers of chains that make sense |
//! | [`AREA`] | where descriptors that may be anything point, across the seam of the regions |
//!
//! Whatever is writable for the device lies above the rings and tables, so these stay as the driver
//! made them, and say afterwards what the device was allowed to change.

#![allow(unsafe_code)]

use crate::common::driver::Driver;
use crate::common::touched::{everything, outside, writable};
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use std::sync::Arc;
use tornblk_backend::device::Memory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

pub(crate) const SEAM: u64 = 0x2_0000;
pub(crate) const END: u64 = 0x3_0000;
pub(crate) const TABLES: Range<u64> = 0x2000..0x3000;
pub(crate) const GOOD: Range<u64> = 0x3000..AREA.start;
pub(crate) const AREA: Range<u64> = SEAM - 0x1000..SEAM + 0x1000;

const GUARD: usize = 4096;
const GUARDED: u8 = 0x5c;

/// Where each region begins and ends on the host, from the start of the mapping.
const REGIONS: [(u64, Range<usize>); 2] = [
    (0, GUARD..GUARD + SEAM as usize),
    (SEAM, 2 * GUARD + SEAM as usize..2 * GUARD + END as usize),
];
const MAPPED: usize = 3 * GUARD + END as usize;

/// The host's side of the memory.
pub(crate) struct Guest {
    mem: Arc<Memory>,
    base: *mut u8,
}

impl Guest {
    pub(crate) fn new() -> Guest {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh range, chosen by the kernel.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), MAPPED, prot, MapFlags::PRIVATE)
        };
        let base = base.unwrap().cast::<u8>();
        let regions = REGIONS.map(|(at, range)| {
            // SAFETY: inside the mapping, which lives until this is dropped; and that is after all
            // who know of the memory (checked there).
            let region = unsafe {
                MmapRegionBuilder::new(range.len()).with_raw_mmap_pointer(base.add(range.start))
            };
            let region = region
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
                .build()
                .unwrap();
            GuestRegionMmap::new(region, GuestAddress(at)).unwrap()
        });
        let guest = Guest { mem: Arc::new(Memory::from_regions(regions.into()).unwrap()), base };
        for guard in guest.guards() {
            // SAFETY: as in `guards`.
            unsafe { std::ptr::write_bytes(guard, GUARDED, GUARD) };
        }
        guest
    }

    pub(crate) fn mem(&self) -> &Arc<Memory> {
        &self.mem
    }

    fn guards(&self) -> [*mut u8; 3] {
        // SAFETY: inside the mapping.
        [0, REGIONS[0].1.end, REGIONS[1].1.end].map(|at| unsafe { self.base.add(at) })
    }

    /// Does nobody write outside of the guest's memory?
    fn check_guards(&self) {
        for guard in self.guards() {
            // SAFETY: mapped, and nobody shall write there.
            let bytes = unsafe { std::slice::from_raw_parts(guard, GUARD) };
            assert!(bytes == [GUARDED; GUARD], "a byte outside of the guest's memory is written");
        }
    }

    /// The device works; then nothing outside of what the descriptors name, or named when some
    /// request that is in flight was taken (`named`), may have changed.
    pub(crate) fn watch<T>(
        &self,
        driver: &Driver,
        named: &mut Vec<Range<u64>>,
        work: impl FnOnce() -> T,
    ) -> T {
        let before = everything(&self.mem, END);
        named.extend(writable(driver, &before, TABLES));
        join(named);
        let done = work();
        self.check_guards();
        let after = everything(&self.mem, END);
        let changed = outside(&before, &after, named);
        assert_eq!(changed, None, "a byte of the guest's memory that no chain names");
        done
    }
}

/// Sorts ranges, and joins those that touch.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges.drain(..) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    *ranges = joined;
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let held = Arc::strong_count(&self.mem) - 1;
            assert_eq!(held, 0, "somebody keeps the guest's memory");
        }
        // SAFETY: the mapping made in `new`, which nobody else knows any more; where a promise is
        // broken and somebody does, the process ends.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), MAPPED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::driver::{WRITE, descriptor};
    use vm_memory::Bytes;

    /// A queue with one buffer that the device may write to.
    fn watched(work: impl FnOnce(&Guest)) {
        let guest = Guest::new();
        let driver = Driver::new(guest.mem().clone(), 0, 8, GOOD.start);
        driver.put(0, descriptor(AREA.start, 512, WRITE, 0));
        guest.watch(&driver, &mut Vec::new(), || work(&guest));
    }

    fn write(guest: &Guest, at: u64) {
        guest.mem().write_obj(7u8, GuestAddress(at)).unwrap();
    }

    #[test]
    fn a_byte_that_a_chain_names_may_be_written() {
        watched(|guest| {
            write(guest, AREA.start);
            write(guest, AREA.start + 511);
        });
    }

    #[test]
    #[should_panic(expected = "that no chain names")]
    fn a_byte_that_no_chain_names_is_noticed() {
        watched(|guest| write(guest, AREA.start + 512));
    }

    #[test]
    #[should_panic(expected = "that no chain names")]
    fn a_descriptor_that_changes_is_noticed() {
        watched(|guest| write(guest, 3));
    }

    /// The available ring is the driver's: its index, an entry, and the event index.
    #[test]
    fn an_available_ring_that_changes_is_noticed() {
        for offset in [2, 4, 4 + 2 * 8] {
            let caught = std::panic::catch_unwind(|| {
                watched(|guest| {
                    let driver = Driver::new(guest.mem().clone(), 0, 8, GOOD.start);
                    write(guest, driver.avail_ring() + offset);
                });
            });
            let error = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(error.contains("that no chain names"), "{offset}: {error}");
        }
    }

    #[test]
    #[should_panic(expected = "outside of the guest's memory")]
    fn a_byte_behind_a_region_is_noticed() {
        // SAFETY: a guard, mapped as long as the guest is.
        watched(|guest| unsafe { guest.guards()[1].write(7) });
    }

    #[test]
    #[should_panic(expected = "somebody keeps the guest's memory")]
    fn memory_that_is_kept_is_noticed() {
        let mut kept = None;
        watched(|guest| kept = Some(guest.mem().clone()));
    }
}

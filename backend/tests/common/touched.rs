//! What of the guest's memory a device may change, and what it did change.

use super::driver::Driver;
use std::ops::Range;
use tornblk_backend::device::Memory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

pub(crate) fn everything(mem: &Memory, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; end as usize];
    mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Every place that some descriptor (of the table, and of those in `tables`) allows to be written,
/// and the used ring.
pub(crate) fn writable(driver: &Driver, before: &[u8], tables: Range<u64>) -> Vec<Range<u64>> {
    let table = (0..u64::from(driver.size)).map(|i| driver.desc_table() + 16 * i);
    let mut all = Vec::new();
    all.push(driver.used_ring()..driver.end());
    for at in table.chain(tables.step_by(16)) {
        let raw: [u8; 16] = before[at as usize..][..16].try_into().unwrap();
        let d = Descriptor::new(
            u64::from_le_bytes(raw[..8].try_into().unwrap()),
            u32::from_le_bytes(raw[8..12].try_into().unwrap()),
            u16::from_le_bytes(raw[12..14].try_into().unwrap()),
            0,
        );
        let end = d.addr().0.saturating_add(d.len().into());
        if d.is_write_only() && !d.refers_to_indirect_table() && end <= before.len() as u64 {
            all.push(d.addr().0..end);
        }
    }
    all
}

/// The first byte that changed and may not. What the driver itself does is done before `before`.
pub(crate) fn outside(before: &[u8], after: &[u8], may_change: &[Range<u64>]) -> Option<u64> {
    const PAGE: usize = 4096;
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    pages
        .filter(|(_, (was, is))| was != is)
        .flat_map(|(page, (was, is))| {
            let changed = (0..PAGE).filter(|&i| was[i] != is[i]);
            changed.map(move |i| (page * PAGE + i) as u64)
        })
        .find(|at| !may_change.iter().any(|range| range.contains(at)))
}

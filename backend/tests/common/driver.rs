//! The driver's side of a split queue, laid out by hand: whatever a driver may get wrong can be
//! said here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use tornblk_backend::device::Memory;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A status byte that nobody wrote.
pub(crate) const UNTOUCHED: u8 = 0xa5;

pub(crate) fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(addr, len, flags, next))
}

/// One queue's driver. Descriptors and buffers are not used twice, unless [`Driver::recycle`] says
/// so: a test is short.
pub(crate) struct Driver {
    pub(crate) mem: Arc<Memory>,
    /// Where its descriptor table begins.
    base: u64,
    pub(crate) size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
    /// Where the next buffer goes.
    bump: u64,
    /// Where the first one went.
    buffers: u64,
}

/// A request as it lies in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) head: u16,
    pub(crate) data: u64,
    pub(crate) status: u64,
}

impl Driver {
    /// The rings at `base`, the buffers from `buffers` on.
    pub(crate) fn new(mem: Arc<Memory>, base: u64, size: u16, buffers: u64) -> Driver {
        let driver = Driver {
            mem,
            base,
            size,
            next_descriptor: 0,
            avail: 0,
            used: 0,
            bump: buffers,
            buffers,
        };
        driver.mem.write_obj(0u32, GuestAddress(driver.avail_ring())).unwrap();
        driver.mem.write_obj(0u32, GuestAddress(driver.used_ring())).unwrap();
        driver
    }

    pub(crate) fn desc_table(&self) -> u64 {
        self.base
    }

    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub(crate) fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// First byte behind the rings.
    pub(crate) fn end(&self) -> u64 {
        self.used_ring() + 6 + 8 * u64::from(self.size)
    }

    /// The device's side, as a transport would set it up.
    pub(crate) fn ring(&self, event_idx: bool) -> Queue {
        let mut ring = Queue::new(256).unwrap();
        ring.set_size(self.size);
        ring.try_set_desc_table_address(GuestAddress(self.desc_table())).unwrap();
        ring.try_set_avail_ring_address(GuestAddress(self.avail_ring())).unwrap();
        ring.try_set_used_ring_address(GuestAddress(self.used_ring())).unwrap();
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        assert!(ring.is_valid(&*self.mem));
        ring
    }

    pub(crate) fn put(&self, index: u16, descriptor: RawDescriptor) {
        let at = self.base + 16 * u64::from(index);
        self.mem.write_obj(descriptor, GuestAddress(at)).unwrap();
    }

    /// Begins anew with descriptors and buffers: nothing is in flight.
    pub(crate) fn recycle(&mut self) {
        self.next_descriptor = 0;
        self.bump = self.buffers;
    }

    /// Free memory.
    pub(crate) fn alloc(&mut self, len: usize) -> u64 {
        let at = self.bump;
        self.bump += (len as u64).next_multiple_of(16);
        at
    }

    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = self.alloc(bytes.len());
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    /// Links these in a row, and gives the head. `NEXT` is added where it belongs.
    pub(crate) fn chain(&mut self, parts: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let index = self.next_descriptor;
            let next = if i + 1 < parts.len() { NEXT } else { 0 };
            self.put(index, descriptor(addr, len, flags | next, index + 1));
            self.next_descriptor += 1;
        }
        head
    }

    /// The same from descriptor `head` on, which nobody uses just now.
    pub(crate) fn chain_at(&mut self, head: u16, parts: &[(u64, u32, u16)]) {
        let next = std::mem::replace(&mut self.next_descriptor, head);
        self.chain(parts);
        self.next_descriptor = next;
    }

    /// The same in an indirect table.
    pub(crate) fn indirect(&mut self, parts: &[(u64, u32, u16)]) -> u16 {
        let table = self.alloc(16 * parts.len());
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let next = if i + 1 < parts.len() { NEXT } else { 0 };
            let one = descriptor(addr, len, flags | next, i as u16 + 1);
            self.mem.write_obj(one, GuestAddress(table + 16 * i as u64)).unwrap();
        }
        self.chain(&[(table, 16 * parts.len() as u32, INDIRECT)])
    }

    /// Makes a chain visible.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.mem.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        let index = GuestAddress(self.avail_ring() + 2);
        self.mem.store(self.avail.to_le(), index, Ordering::Release).unwrap();
    }

    /// Skips ahead, as a driver that has lost its mind.
    pub(crate) fn jump(&mut self, by: u16) {
        self.avail = self.avail.wrapping_add(by);
        let index = GuestAddress(self.avail_ring() + 2);
        self.mem.store(self.avail.to_le(), index, Ordering::Release).unwrap();
    }

    pub(crate) fn avail(&self) -> u16 {
        self.avail
    }

    pub(crate) fn used_index(&self) -> u16 {
        let index = GuestAddress(self.used_ring() + 2);
        u16::from_le(self.mem.load(index, Ordering::Acquire).unwrap())
    }

    /// What came back since the last call: (head, length).
    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        while self.used != self.used_index() {
            let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
            let raw: [u32; 2] = [
                self.mem.read_obj(GuestAddress(slot)).unwrap(),
                self.mem.read_obj(GuestAddress(slot + 4)).unwrap(),
            ];
            assert_eq!(size_of::<VirtqUsedElem>(), 8);
            all.push((u32::from_le(raw[0]) as u16, u32::from_le(raw[1])));
            self.used = self.used.wrapping_add(1);
        }
        all
    }

    /// The driver wants to hear of the next answer that it has not seen.
    pub(crate) fn ask_to_be_told(&self) {
        self.set_used_event(self.used);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The driver wants to hear of everything beyond `index`.
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.avail_ring() + 4 + 2 * u64::from(self.size);
        self.mem.write_obj(index.to_le(), GuestAddress(at)).unwrap();
    }

    pub(crate) fn header(&mut self, kind: u32, sector: u64) -> u64 {
        self.header_with(kind, 0, sector)
    }

    pub(crate) fn header_with(&mut self, kind: u32, ioprio: u32, sector: u64) -> u64 {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(ioprio.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        self.place(&bytes)
    }

    pub(crate) fn status_byte(&mut self) -> u64 {
        self.place(&[UNTOUCHED])
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.mem.read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Header, data to be filled, status.
    pub(crate) fn wants(&mut self, kind: u32, sector: u64, len: u32) -> Sent {
        let header = self.header(kind, sector);
        let data = self.place(&vec![0xee; len as usize]);
        let status = self.status_byte();
        let mut parts = vec![(header, 16, 0), (data, len, WRITE), (status, 1, WRITE)];
        if len == 0 {
            parts.remove(1);
        }
        let head = self.chain(&parts);
        self.offer(head);
        Sent { head, data, status }
    }

    /// Header, data, status.
    pub(crate) fn gives(&mut self, kind: u32, sector: u64, bytes: &[u8]) -> Sent {
        let header = self.header(kind, sector);
        let data = self.place(bytes);
        let status = self.status_byte();
        let mut parts = vec![(header, 16, 0), (data, bytes.len() as u32, 0), (status, 1, WRITE)];
        if bytes.is_empty() {
            parts.remove(1);
        }
        let head = self.chain(&parts);
        self.offer(head);
        Sent { head, data, status }
    }

    /// Segments of a DISCARD or WRITE_ZEROES: (sector, sectors, flags).
    pub(crate) fn segments(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> Sent {
        let mut bytes = Vec::new();
        for &(sector, sectors, flags) in segments {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.gives(kind, 0, &bytes)
    }
}

//! A queue of a device, its driver, and the guest's memory between them.
//!
//! Watched at every step: only what chains name is written (see [`Guest::watch`]), and no head comes
//! back more often than it was offered. While the driver keeps to the rules of the available ring,
//! every head comes back in the end.

use crate::common::driver::{Driver, INDIRECT, NEXT, descriptor};
use crate::dish::Dish;
use crate::guest::{AREA, END, GOOD, Guest, TABLES};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tornblk_backend::device::{Device, DeviceQueue};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

/// Bytes between buffers: whoever writes beyond one is noticed.
const APART: u64 = 32;

pub(crate) struct Bench {
    // Before the guest: they know of its memory.
    pub(crate) queue: Box<dyn DeviceQueue>,
    ring: Queue,
    pub(crate) driver: Driver,
    pub(crate) guest: Guest,
    /// Descriptors, entries of indirect tables, and bytes that are free from here on.
    next: u16,
    table: u64,
    at: u64,
    named: Vec<Range<u64>>,
    /// How often each head is out.
    out: HashMap<u16, u32>,
    /// Heads that were offered, are out of range and may not have been taken yet.
    strays: u32,
    /// The driver broke the rules of the available ring: heads are the device's guess.
    wild: bool,
    /// There are descriptors that may be anything, perhaps among those of a chain that made sense.
    changed: bool,
    /// What came back since it was last asked for.
    back: Vec<(u16, u32)>,
}

impl Bench {
    /// Queue `n`, with rings of `size`.
    pub(crate) fn new(device: &Arc<dyn Device>, n: u16, size: u16, event_idx: bool) -> Bench {
        let guest = Guest::new();
        let driver = Driver::new(guest.mem().clone(), 0, size, GOOD.start);
        assert!(driver.end() <= TABLES.start);
        let queue = device.clone().queue(n);
        let ring = driver.ring(event_idx);
        Bench {
            queue,
            ring,
            driver,
            guest,
            next: 0,
            table: TABLES.start,
            at: GOOD.start,
            named: Vec::new(),
            out: HashMap::new(),
            strays: 0,
            wild: false,
            changed: false,
            back: Vec::new(),
        }
    }

    /// Is there room for so many descriptors and bytes? Where nothing is out, there is all of it.
    pub(crate) fn room(&mut self, descriptors: usize, bytes: usize) -> bool {
        let fits = |bench: &Bench| {
            usize::from(bench.next) + descriptors <= usize::from(bench.driver.size)
                && bench.table + 16 * descriptors as u64 <= TABLES.end
                && bench.at + bytes as u64 + 16 * APART <= GOOD.end
        };
        if !fits(self) {
            self.pump(true);
            // Not before somebody has looked at what came back, in the memory where it is.
            let seen = self.back.is_empty();
            if seen && self.queue.in_flight() == 0 && self.out.is_empty() {
                (self.next, self.table, self.at) = (0, TABLES.start, GOOD.start);
                self.named.clear();
                self.changed = false;
            }
        }
        fits(self)
    }

    /// Puts bytes into the guest's memory: where they are.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = self.at;
        self.at += (bytes.len() as u64 + APART).next_multiple_of(16);
        self.guest.mem().write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    /// Links these in a row, in the table itself or in an indirect one: their head.
    pub(crate) fn chain(&mut self, parts: &[(u64, u32, u16)], indirect: bool) -> u16 {
        let last = parts.len() - 1;
        let next = |i: usize| if i < last { NEXT } else { 0 };
        let head = self.next;
        if indirect {
            let table = self.table;
            for (i, &(addr, len, flags)) in parts.iter().enumerate() {
                let one = descriptor(addr, len, flags | next(i), i as u16 + 1);
                self.guest.mem().write_obj(one, GuestAddress(self.table)).unwrap();
                self.table += 16;
            }
            let len = 16 * parts.len() as u32;
            self.driver.put(head, descriptor(table, len, INDIRECT, 0));
            self.next += 1;
            return head;
        }
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let one = descriptor(addr, len, flags | next(i), self.next + 1);
            self.driver.put(self.next, one);
            self.next += 1;
        }
        head
    }

    /// Makes a head visible, if the ring has room for one more.
    pub(crate) fn offer(&mut self, head: u16) -> bool {
        let out = self.out.values().sum::<u32>() + self.strays;
        if out >= self.driver.size.into() {
            return false;
        }
        self.driver.offer(head);
        // One that is out of range is taken, and cannot be returned.
        if head < self.driver.size {
            *self.out.entry(head).or_default() += 1;
        } else {
            self.strays += 1;
        }
        true
    }

    /// Makes any head visible, perhaps one of a chain that is out already.
    pub(crate) fn offer_anything(&mut self, head: u16) {
        self.changed = true;
        self.offer(head);
    }

    /// The device works.
    pub(crate) fn pump(&mut self, take: bool) {
        let Bench { guest, driver, queue, ring, named, .. } = self;
        let mem = guest.mem().clone();
        let _ = guest.watch(driver, named, || queue.pump(ring, &mem, take));
        drop(mem);
        if take && self.queue.in_flight() < self.driver.size.into() {
            self.strays = 0;
        }
        self.look();
    }

    /// Everything that is in flight ends.
    pub(crate) fn drain(&mut self) {
        let Bench { guest, driver, queue, ring, named, .. } = self;
        let mem = guest.mem().clone();
        let _ = guest.watch(driver, named, || queue.drain(ring, &mem));
        drop(mem);
        assert_eq!(self.queue.in_flight(), 0, "in flight after the end");
        self.look();
    }

    fn look(&mut self) {
        for (head, len) in self.driver.take_used() {
            if !self.wild {
                let out = self.out.get_mut(&head).filter(|out| **out > 0);
                let out = out.unwrap_or_else(|| panic!("head {head} came back, and was not out"));
                *out -= 1;
                if *out == 0 {
                    self.out.remove(&head);
                }
            }
            self.back.push((head, len));
        }
    }

    /// What came back.
    pub(crate) fn back(&mut self) -> Vec<(u16, u32)> {
        std::mem::take(&mut self.back)
    }

    /// May chains be other ones than [`Bench::chain`] made?
    pub(crate) fn changed(&self) -> bool {
        self.changed || self.wild
    }

    /// From now on the driver is not held to anything.
    pub(crate) fn go_wild(&mut self) {
        self.wild = true;
        self.out.clear();
    }

    /// Takes all there is, and ends it.
    pub(crate) fn end(&mut self) {
        self.pump(true);
        self.drain();
        self.pump(true);
        self.drain();
        assert!(self.wild || self.out.is_empty(), "never came back: {:?}", self.out);
    }

    /// A descriptor that may be anything.
    pub(crate) fn put_anything(&mut self, dish: &mut Dish<'_>) {
        self.changed = true;
        let index = dish.byte();
        let at = if index & 1 == 0 {
            self.driver.desc_table() + 16 * u64::from(u16::from(index / 2) % self.driver.size)
        } else {
            TABLES.start + 16 * u64::from(index / 2)
        };
        let one = anything(dish);
        let one = descriptor(one.0, one.1, one.2, one.3);
        self.guest.mem().write_obj(one, GuestAddress(at)).unwrap();
    }

    /// What the driver may do to its rings besides.
    pub(crate) fn misbehave(&mut self, dish: &mut Dish<'_>) {
        match dish.below(4) {
            // Nothing wrong with this one.
            0 => self.driver.set_used_event(dish.u16()),
            1 => {
                self.go_wild();
                self.driver.jump(dish.u16());
            }
            _ => {
                self.go_wild();
                let rings = self.driver.avail_ring()..self.driver.end() - 8;
                let at = rings.start + u64::from(dish.u16()) % (rings.end - rings.start);
                self.guest.mem().write_obj(dish.u16(), GuestAddress(at)).unwrap();
            }
        }
    }
}

/// Address, length, flags, next.
fn anything(dish: &mut Dish<'_>) -> (u64, u32, u16, u16) {
    let flags = match dish.below(8) {
        7 => dish.u16(),
        n => u16::from(n),
    };
    let next = match dish.byte() {
        255 => dish.u16(),
        n => u16::from(n % 64),
    };
    if flags & INDIRECT != 0 {
        let table = TABLES.start + 16 * u64::from(dish.byte());
        let len = match dish.below(8) {
            7 => dish.u32(),
            n => 16 * u32::from(n),
        };
        return (table, len, flags, next);
    }
    let addr = match dish.below(8) {
        0..=4 => AREA.start + u64::from(dish.u16() & 0x1ff0),
        5 => END - 600 + u64::from(dish.u16() % 608),
        6 => u64::MAX - u64::from(dish.u16() % 600),
        // Never on rings and tables, nor on what chains that make sense are made of.
        _ => dish.u64().max(AREA.start),
    };
    let len = match dish.below(8) {
        0 => 16,
        1 => 51,
        2 => 108,
        3 => 512,
        4 => 1,
        5 => u32::from(dish.u16()),
        6 => dish.u32(),
        _ => 0,
    };
    (addr, len, flags, next)
}

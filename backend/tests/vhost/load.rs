//! A driver with many requests in flight on several queues, which knows what it may see: the device
//! beneath it may die at any time, and nothing may be lost, done twice, torn or undone.
//!
//! Each block holds one number, repeated, so that a torn one is seen. Numbers are never used twice.
//!
//! - Blocks of one slot alone: a read shows what that slot wrote last.
//! - Blocks that many write and read at the same time: what was seen in one read after another
//!   never comes back once it was replaced. A write that is done a second time after it was seen, and
//!   another one after it, would come back. On a recorded disk all queues share them. On a raw one each
//!   queue has its own: a thread that is killed between its I/O and the note of it does that again, and
//!   another queue's could see that.

use crate::common::driver::{UNTOUCHED, WRITE};
use crate::guest::Guest;
use std::collections::HashSet;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress};

pub(crate) const BLOCK: usize = 4096;
const DESCRIPTORS: u16 = 3;
/// Blocks that the slots of a queue share.
const SHARED: u64 = 4;

pub(crate) struct Load {
    queues: Vec<Slots>,
    shared: Vec<Shared>,
    dice: u64,
    number: u64,
    /// A read sees all of a write or nothing, also while that is in flight.
    whole: bool,
    pub(crate) done: u64,
    pub(crate) flushes: u64,
}

/// One queue.
struct Slots {
    slots: Vec<Slot>,
}

struct Slot {
    head: u16,
    header: u64,
    data: u64,
    status: u64,
    /// Its own block, and what it holds.
    block: u64,
    holds: u64,
    busy: Option<Doing>,
}

#[derive(Clone, Copy, Debug)]
enum Doing {
    Read { block: u64 },
    Write { block: u64, number: u64 },
    Flush,
}

/// A block that several write at once.
#[derive(Default)]
struct Shared {
    /// What was seen last, and what was seen before that.
    seen: u64,
    gone: HashSet<u64>,
    /// Only one reads at a time: the order of what is seen is then known.
    read: bool,
    written: HashSet<u64>,
}

impl Load {
    /// `slots` on each of the queues that `guest` runs; the disk's blocks are zero.
    pub(crate) fn new(guest: &mut Guest, slots: u16, seed: u64, whole: bool) -> Load {
        let n = guest.queues.len() as u64;
        let mut queues = Vec::new();
        for (q, queue) in (0..).zip(&mut guest.queues) {
            let driver = &mut queue.driver;
            assert!(slots * DESCRIPTORS <= driver.size);
            let one = |i: u16| Slot {
                head: i * DESCRIPTORS,
                header: driver.alloc(16),
                data: driver.alloc(BLOCK),
                status: driver.alloc(1),
                block: n * SHARED + q * u64::from(slots) + u64::from(i),
                holds: 0,
                busy: None,
            };
            let slots = (0..slots).map(one).collect();
            queues.push(Slots { slots });
        }
        let shared = (0..n * SHARED).map(|_| Shared::default()).collect();
        Load { queues, shared, dice: seed | 1, number: 0, whole, done: 0, flushes: 0 }
    }

    /// Blocks that a disk must have.
    pub(crate) fn blocks(queues: u64, slots: u64) -> u64 {
        queues * SHARED + queues * slots
    }

    fn dice(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) % below
    }

    /// Takes what came back, and sends something new in its place.
    pub(crate) fn step(&mut self, guest: &mut Guest, send: bool) {
        for q in 0..self.queues.len() {
            for (head, len) in guest.queues[q].driver.take_used() {
                self.take(guest, q, head, len);
            }
            let idle = |slot: &Slot| slot.busy.is_none();
            let free: Vec<usize> = (0..self.queues[q].slots.len())
                .filter(|i| send && idle(&self.queues[q].slots[*i]))
                .collect();
            let any = !free.is_empty();
            for i in free {
                self.send(guest, q, i);
            }
            if any {
                guest.kick(q);
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.queues.iter().flat_map(|q| &q.slots).filter(|s| s.busy.is_some()).count()
    }

    fn send(&mut self, guest: &mut Guest, q: usize, i: usize) {
        let own = self.queues[q].slots[i].block;
        let first = if self.whole { 0 } else { q as u64 * SHARED };
        let block = first + self.dice(SHARED);
        self.number += 1;
        let number = self.number;
        let doing = match self.dice(16) {
            0 => Doing::Flush,
            1..=5 => Doing::Write { block: own, number },
            6..=9 => Doing::Read { block: own },
            10..=12 => Doing::Write { block, number },
            _ if !self.shared[block as usize].read => Doing::Read { block },
            _ => Doing::Write { block: own, number },
        };
        let Load { queues, shared: all, .. } = self;
        let slot = &mut queues[q].slots[i];
        let driver = &mut guest.queues[q].driver;
        let (kind, data) = match doing {
            Doing::Flush => (VIRTIO_BLK_T_FLUSH, None),
            Doing::Read { block } => {
                if block != own {
                    all[block as usize].read = true;
                }
                (VIRTIO_BLK_T_IN, Some((0xeeee_eeee_eeee_eeee, WRITE)))
            }
            Doing::Write { block, number } => {
                if block != own {
                    all[block as usize].written.insert(number);
                }
                (VIRTIO_BLK_T_OUT, Some((number, 0)))
            }
        };
        let sector = match doing {
            Doing::Read { block } | Doing::Write { block, .. } => block * BLOCK as u64 / 512,
            Doing::Flush => 0,
        };
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        header.extend(sector.to_le_bytes());
        driver.mem.write_slice(&header, GuestAddress(slot.header)).unwrap();
        driver.mem.write_obj(UNTOUCHED, GuestAddress(slot.status)).unwrap();
        let mut parts = vec![(slot.header, 16, 0)];
        if let Some((word, flag)) = data {
            let bytes: Vec<u8> =
                std::iter::repeat_n(word, BLOCK / 8).flat_map(u64::to_le_bytes).collect();
            driver.mem.write_slice(&bytes, GuestAddress(slot.data)).unwrap();
            parts.push((slot.data, BLOCK as u32, flag));
        }
        parts.push((slot.status, 1, WRITE));
        driver.chain_at(slot.head, &parts);
        driver.offer(slot.head);
        slot.busy = Some(doing);
    }

    fn take(&mut self, guest: &Guest, q: usize, head: u16, len: u32) {
        let Load { queues, shared, whole: strict, done, flushes, .. } = self;
        let slot = &mut queues[q].slots[usize::from(head / DESCRIPTORS)];
        assert_eq!(slot.head, head, "queue {q}: a head that was never given");
        let doing = slot.busy.take();
        let doing = doing.unwrap_or_else(|| panic!("queue {q}: head {head} came back twice"));
        let driver = &guest.queues[q].driver;
        assert_eq!(u32::from(driver.byte(slot.status)), VIRTIO_BLK_S_OK, "queue {q}: {doing:?}");
        *done += 1;
        match doing {
            Doing::Flush => {
                assert_eq!(len, 1);
                *flushes += 1;
            }
            Doing::Write { block, number } => {
                assert_eq!(len, 1);
                if block == slot.block {
                    slot.holds = number;
                }
            }
            Doing::Read { block } => {
                assert_eq!(len, BLOCK as u32 + 1);
                let words: Vec<u64> = driver
                    .bytes(slot.data, BLOCK)
                    .chunks_exact(8)
                    .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                    .collect();
                let found = words[0];
                let whole = words.iter().all(|word| *word == found);
                // The host's page cache lets a read pass a write that is on its way.
                if block == slot.block || *strict {
                    assert!(whole, "queue {q}: block {block} is torn: {words:?}");
                }
                if block == slot.block {
                    assert_eq!(found, slot.holds, "queue {q}: block {block}");
                    return;
                }
                let block = &mut shared[block as usize];
                block.read = false;
                assert!(found == 0 || block.written.contains(&found), "queue {q}: {found}");
                assert!(!block.gone.contains(&found), "queue {q}: {found} came back");
                if found != block.seen {
                    block.gone.insert(block.seen);
                    block.seen = found;
                }
            }
        }
    }
}

//! The order of things between queues, which no driver can force.

use super::tasks::{Function, What, Which, bell};
use super::{FRONT_END_SEG_MAX, Scsi, ScsiOptions, ScsiRequests};
use crate::device::chain::Chain;
use crate::device::limits::{LimitOptions, Limits};
use crate::device::queue::{Requests, Taken};
use crate::device::spans::Span;
use crate::device::{FrontEnd, Memory};
use crate::store::{Done, Note, Past, Request, Rings, Store, StoreQueue};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tornblk_model::event::{Disk, Negotiation, ResetCause};
use vm_memory::{Bytes, GuestAddress};

/// A disk whose requests do nothing, and end when they are let go.
struct Slow {
    capacity: u64,
}

struct SlowQueue {
    waiting: VecDeque<Request>,
    go: bool,
}

impl Store for Slow {
    fn disk(&self) -> Disk {
        Disk { capacity: self.capacity, lb_size: 512 }
    }

    fn read_only(&self) -> bool {
        false
    }

    fn queue(&self, _: u16) -> Box<dyn StoreQueue> {
        Box::new(SlowQueue { waiting: VecDeque::new(), go: false })
    }

    fn connected(&self, _: Arc<dyn Rings>) {}
    fn negotiated(&self, _: Negotiation) {}
    fn set_writeback(&self, _: bool) {}
    fn reset(&self, _: ResetCause, _: Option<u16>) {}
}

impl StoreQueue for SlowQueue {
    fn submit(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        if self.go {
            self.waiting.drain(..).for_each(|request| f(Done { request, result: Ok(()) }));
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn drain(&mut self) {
        self.go = true;
    }
}

fn disk(capacity: u64) -> Arc<Scsi> {
    disk_for(FrontEnd::Scsi, capacity)
}

fn disk_for(front_end: FrontEnd, capacity: u64) -> Arc<Scsi> {
    let seg_max = FRONT_END_SEG_MAX;
    let limits = LimitOptions { front_end, seg_max, ..LimitOptions::default() };
    Scsi::new(ScsiOptions {
        store: Arc::new(Slow { capacity }),
        luns: Vec::new(),
        limits: Limits::new(&limits).unwrap(),
        request_queues: 1,
        queue_size: 256,
        writeback: true,
        id: Box::new(|| [0; 20]),
    })
}

/// SYNCHRONIZE CACHE(10) with this tag, and room for its answer.
fn flush(mem: &Arc<Memory>, position: u16, tag: u64) -> Taken<'_> {
    let mut header = vec![1, 0, 0, 0, 0, 0, 0, 0];
    header.extend(tag.to_le_bytes());
    header.extend([0, 0, 0, 0x35]);
    header.resize(51, 0);
    let at = GuestAddress(u64::from(position) * 512);
    mem.write_slice(&header, at).unwrap();
    let span = |addr: GuestAddress, len| [Span { addr, len }].into_iter().collect();
    let response = GuestAddress(at.0 + 256);
    let chain = Chain { readable: span(at, 51), writable: span(response, 108) };
    Taken {
        mem,
        position,
        head: position,
        chain: Ok(chain),
        past: Past::New,
        note: Note::default(),
    }
}

fn queue(device: &Arc<Scsi>) -> ScsiRequests {
    let mut queue = ScsiRequests::new(device.clone(), super::FIXED_QUEUES);
    queue.size(16);
    queue
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
}

#[test]
fn a_function_is_over_only_after_the_answers_that_it_waits_for() {
    let (all, tagged) = (Which::default(), Which { unit: Some(0), tag: Some(7) });
    for what in [What::Wait(tagged), What::Wait(all), What::End(all)] {
        let (device, mem) = (disk(1 << 20), memory());
        let mut queue = queue(&device);
        assert!(queue.begin(flush(&mem, 0, 7)).is_none());
        let mut function = Function::begin(&device.tasks, what, &bell().unwrap());
        let mut answers = 0;
        for turn in 0..2 {
            queue.listen();
            queue.reap(&mut |_| {
                assert_eq!(function.over(), None, "{what:?}: the answer is not published yet");
                answers += 1;
            });
            if turn == 0 {
                queue.drain();
            }
        }
        assert_eq!((answers, function.over()), (1, Some(false)), "{what:?}");
    }
}

#[test]
fn a_function_sees_commands_that_came_before_it_though_it_overtook_them() {
    let (device, mem) = (disk(1 << 20), memory());
    let mut queue = queue(&device);
    // The queue's thread has taken all it saw; then command and function come, in this order.
    queue.listen();
    let find = What::Find(Which { unit: None, tag: Some(7) });
    let mut function = Function::begin(&device.tasks, find, &bell().unwrap());
    queue.reap(&mut |_| ());
    assert_eq!(function.over(), None, "what came before it was not looked for yet");
    queue.listen();
    assert!(queue.begin(flush(&mem, 0, 7)).is_none());
    queue.reap(&mut |_| ());
    assert_eq!(function.over(), Some(true));
}

#[test]
fn what_does_not_fit_in_32_bits_says_that_it_does_not() {
    for (blocks, last, described) in [
        ((1 << 32) - 1, u32::MAX - 1, u32::MAX),
        // READ CAPACITY(16) has it, and the long block descriptor.
        (1 << 32, u32::MAX, u32::MAX),
        ((1 << 32) + 8, u32::MAX, u32::MAX),
        (1 << 20, (1 << 20) - 1, 1 << 20),
    ] {
        let whole = disk(blocks * 512);
        let device = whole.lu(0);
        let capacity = super::block::capacity_10(&device);
        assert_eq!(capacity, [last.to_be_bytes(), 512u32.to_be_bytes()].concat()[..]);
        assert_eq!(super::block::capacity_16(&device)[..8], (blocks - 1).to_be_bytes());
        let mut cdb = [0; 32];
        cdb[2] = 0x08;
        let short = super::mode::sense(&device, &cdb, true).unwrap();
        let descriptor = [described.to_be_bytes(), 512u32.to_be_bytes()].concat();
        assert_eq!(short[8..16], descriptor[..], "{blocks}");
        cdb[1] = 0x10;
        let long = super::mode::sense(&device, &cdb, true).unwrap();
        assert_eq!(long[8..16], blocks.to_be_bytes());
    }
}

#[test]
#[should_panic(expected = "limits of a SCSI disk")]
fn limits_of_another_front_end_are_none_of_a_scsi_disk() {
    disk_for(FrontEnd::Blk, 1 << 20);
}

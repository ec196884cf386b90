//! What a queue makes of the notes that another left.

use crate::Bench;
use crate::common::driver::UNTOUCHED;
use crate::common::store::MemStore;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tornblk_backend::device::Device;
use tornblk_backend::device::ledger::{Came, Ledger, Left};
use tornblk_backend::store::{Moves, Past};
use virtio_bindings::virtio_blk::*;
use virtio_queue::QueueT;

const OK: u8 = VIRTIO_BLK_S_OK as u8;

/// Notes in memory, and what was written into them.
#[derive(Clone, Default)]
struct Paper {
    left: Vec<Left>,
    lines: Arc<Mutex<Vec<String>>>,
    broken: Arc<AtomicBool>,
}

impl Paper {
    fn line(&self, text: String) {
        self.lines.lock().unwrap().push(text);
    }

    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl Ledger for Paper {
    fn left(&mut self, _used: u16) -> Vec<Left> {
        self.left.clone()
    }

    fn take(&mut self, head: u16, position: u16) -> bool {
        self.line(format!("take {head} at {position}"));
        head < 200
    }

    fn answered(&mut self, head: u16, len: u32) {
        self.line(format!("answered {head} with {len}"));
    }

    fn returning(&mut self, head: Option<u16>) {
        self.line(format!("returning {head:?}"));
    }

    fn returned(&mut self, head: Option<u16>, used: u16) {
        self.line(format!("returned {head:?} as {used}"));
    }

    fn forget(&mut self) {
        self.line("forget".to_owned());
    }

    fn sound(&self) -> bool {
        !self.broken.load(Ordering::SeqCst)
    }

    fn moves(&self) -> Arc<dyn Moves> {
        struct Nowhere;
        impl Moves for Nowhere {
            fn moved(&self, _: u16, _: bool) {}
        }
        Arc::new(Nowhere)
    }
}

fn resume(b: &mut Bench, paper: &Paper) -> usize {
    let mem = b.driver.mem.clone();
    b.queue = b.device.clone().queue(0);
    b.queue.resume(Box::new(paper.clone()), &mut b.ring, &mem)
}

fn taken(head: u16, position: u16) -> Left {
    Left { head, position, came: Came::Begun(Past::Taken) }
}

#[test]
fn what_is_left_is_taken_again_before_anything_new() {
    let mut b = Bench::new(MemStore::new(64));
    let first = b.driver.wants(VIRTIO_BLK_T_IN, 1, 512);
    let second = b.driver.wants(VIRTIO_BLK_T_IN, 2, 512);
    let new = b.driver.wants(VIRTIO_BLK_T_IN, 3, 512);
    // The second was answered: only the used ring lacks it.
    let answered = Left { head: second.head, position: 1, came: Came::Answered(77) };
    let paper = Paper { left: vec![taken(first.head, 0), answered], ..Paper::default() };
    assert_eq!(resume(&mut b, &paper), 2);
    assert_eq!(b.ring.next_avail(), 2);
    let _ = b.pump();
    let used = b.driver.take_used();
    assert_eq!(used, [(second.head, 77), (first.head, 513), (new.head, 513)]);
    assert_eq!(b.driver.byte(second.status), UNTOUCHED);
    assert_eq!(b.store.take_ops().len(), 2);
    let lines = paper.lines();
    assert!(lines.contains(&format!("take {} at 2", new.head)), "{lines:?}");
    assert!(!lines.contains(&format!("take {} at 0", first.head)), "noted already: {lines:?}");
    assert_eq!(lines.last(), Some(&format!("returned Some({}) as 3", new.head)));
}

#[test]
fn notes_of_more_than_the_driver_has_offered_are_void() {
    let mut b = Bench::new(MemStore::new(64));
    let sent = b.driver.wants(VIRTIO_BLK_T_IN, 1, 512);
    let paper = Paper { left: vec![taken(9, 0), taken(12, 1)], ..Paper::default() };
    assert_eq!(resume(&mut b, &paper), 0);
    assert_eq!(paper.lines(), ["forget"]);
    // What the driver asks for now is noted all the same.
    assert_eq!(b.answer(sent), (OK, 513));
    assert!(paper.lines().contains(&format!("take {} at 0", sent.head)));
}

#[test]
fn a_chain_that_cannot_be_noted_is_returned_as_nobody_s() {
    let mut b = Bench::new(MemStore::new(64));
    let paper = Paper::default();
    resume(&mut b, &paper);
    b.driver.put(210, crate::common::driver::descriptor(0, 0, 0, 0));
    b.driver.offer(210);
    let _ = b.pump();
    assert_eq!(paper.lines(), ["take 210 at 0", "returning None", "returned None as 1"]);
}

#[test]
fn memory_that_failed_answers_nobody() {
    let mut b = Bench::new(MemStore::new(64));
    let paper = Paper::default();
    resume(&mut b, &paper);
    b.store.stall();
    b.driver.wants(VIRTIO_BLK_T_IN, 1, 512);
    let _ = b.pump();
    assert_eq!(b.store.take_ops().len(), 1);
    paper.broken.store(true, Ordering::SeqCst);
    b.store.release();
    b.driver.wants(VIRTIO_BLK_T_IN, 2, 512);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), [], "what may be made of zeroes");
    assert!(b.store.take_ops().is_empty(), "nothing more is taken");
}

#[test]
fn who_goes_away_leaves_answers_and_no_used_ring() {
    let mut b = Bench::new(MemStore::new(64));
    let paper = Paper::default();
    resume(&mut b, &paper);
    b.store.stall();
    let sent = b.driver.wants(VIRTIO_BLK_T_IN, 1, 512);
    let _ = b.pump();
    b.queue.abandon();
    assert_eq!(b.driver.take_used(), []);
    let head = sent.head;
    assert_eq!(paper.lines(), [format!("take {head} at 0"), format!("answered {head} with 513")]);
}

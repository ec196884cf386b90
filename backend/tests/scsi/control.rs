//! Task management: what is in flight on one queue, seen from another.

use crate::common::driver::Driver;
use crate::common::scsi::{CANARY, DISK};
use crate::common::scsi_with;
use crate::common::store::MemStore;
use crate::{Bench, FIRST, LimitOptions, SECTORS, cdb10, memory};
use tornblk_backend::device::Device;
use tornblk_backend::device::scsi::ControlQueue;
use tornblk_model::event::ResetCause;
use virtio_bindings::virtio_scsi::*;
use virtio_queue::Queue;

const COMPLETE: u8 = 0;
const FAILURE: u8 = VIRTIO_SCSI_S_FAILURE as u8;
const SUCCEEDED: u8 = VIRTIO_SCSI_S_FUNCTION_SUCCEEDED as u8;
const REJECTED: u8 = VIRTIO_SCSI_S_FUNCTION_REJECTED as u8;

/// A device with two request queues, and its control queue.
struct Both {
    first: Bench,
    second: Bench,
    driver: Driver,
    queue: ControlQueue,
    ring: Queue,
}

impl Both {
    fn new() -> Both {
        let store = MemStore::new(SECTORS);
        let device = scsi_with(&store, 2, LimitOptions::default());
        let mem = memory();
        let bench = |base, index| {
            Bench::with(store.clone(), device.clone(), mem.clone(), base, index, false)
        };
        let driver = Driver::new(mem.clone(), 0x1000, 256, 0x1_0000);
        let queue = device.control_queue();
        let ring = driver.ring(false);
        Both {
            first: bench(0x4_0000, FIRST),
            second: bench(0x9_0000, FIRST + 1),
            driver,
            queue,
            ring,
        }
    }

    fn pump(&mut self) {
        let mem = self.driver.mem.clone();
        let _ = self.queue.pump(&mut self.ring, &mem, true);
    }

    /// All threads, at their next turn.
    fn turn(&mut self) {
        self.pump();
        let _ = self.first.pump();
        let _ = self.second.pump();
        self.pump();
    }

    /// A function that ends at once.
    fn managed(&mut self, subtype: u32, lun: [u8; 8], tag: u64) -> u8 {
        let (head, at) = self.driver.manage(subtype, lun, tag);
        self.turn();
        assert_eq!(self.driver.take_used(), [(head, 1)], "function {subtype}");
        self.driver.byte(at)
    }
}

#[test]
fn with_nothing_in_flight_every_function_ends_at_once() {
    let mut b = Both::new();
    for (subtype, response) in [
        (VIRTIO_SCSI_T_TMF_ABORT_TASK, COMPLETE),
        (VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, COMPLETE),
        (VIRTIO_SCSI_T_TMF_CLEAR_ACA, REJECTED),
        (VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, COMPLETE),
        (VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, COMPLETE),
        (VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, COMPLETE),
        (VIRTIO_SCSI_T_TMF_QUERY_TASK, COMPLETE),
        (VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, COMPLETE),
        (8, REJECTED),
        (u32::MAX, REJECTED),
    ] {
        assert_eq!(b.managed(subtype, DISK, 7), response, "function {subtype}");
    }
    for (lun, response) in [
        ([1, 1, 0, 0, 0, 0, 0, 0], VIRTIO_SCSI_S_BAD_TARGET),
        ([1, 0, 0, 1, 0, 0, 0, 0], VIRTIO_SCSI_S_INCORRECT_LUN),
        ([0; 8], VIRTIO_SCSI_S_BAD_TARGET),
    ] {
        let subtype = VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET;
        assert_eq!(u32::from(b.managed(subtype, lun, 0)), response, "{lun:?}");
    }
}

#[test]
fn a_query_finds_what_is_in_flight() {
    let mut b = Both::new();
    b.first.store.stall();
    b.second.driver.command(DISK, 77, &cdb10(0x28, 0, 0, 1), &[], 512);
    // Made visible before the function: it counts, though no thread has taken it yet.
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 77), SUCCEEDED);
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 78), COMPLETE);
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, DISK, 0), SUCCEEDED);
    b.first.store.release();
    b.turn();
    assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, DISK, 0), COMPLETE);
}

#[test]
fn an_abort_waits_for_the_command_and_comes_after_its_answer() {
    for (subtype, others_too) in [
        (VIRTIO_SCSI_T_TMF_ABORT_TASK, false),
        (VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, true),
        (VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, true),
    ] {
        let mut b = Both::new();
        b.first.store.stall();
        let write = b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
        b.second.driver.command(DISK, 2, &cdb10(0x28, 0, 0, 1), &[], 512);
        let (head, at) = b.driver.manage(subtype, DISK, 1);
        b.turn();
        b.turn();
        assert_eq!(b.driver.take_used(), []);
        assert_eq!((b.queue.in_flight(), b.driver.byte(at)), (1, CANARY));
        b.first.store.release();
        let _ = b.first.pump();
        assert_eq!(b.first.driver.take_used(), [(write.head, 108)]);
        assert!(b.first.driver.reply(&write).good(), "it was carried out, and says so");
        b.pump();
        if others_too {
            assert_eq!(b.driver.take_used(), []);
            let _ = b.second.pump();
            b.pump();
        }
        assert_eq!(b.driver.take_used(), [(head, 1)]);
        assert_eq!(b.driver.byte(at), COMPLETE);
    }
}

#[test]
fn a_reset_ends_what_is_held_and_leaves_a_unit_attention() {
    for (subtype, ascq) in
        [(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 3), (VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, 7)]
    {
        let mut b = Both::new();
        b.first.store.stall();
        let held = b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
        let _ = b.first.pump();
        let (head, at) = b.driver.manage(subtype, DISK, 0);
        b.pump();
        assert_eq!(b.driver.take_used(), [], "not before the commands");
        b.turn();
        assert_eq!(b.first.driver.take_used(), [(held.head, 108)]);
        assert!(b.first.driver.reply(&held).good());
        assert_eq!(b.driver.take_used(), [(head, 1)]);
        assert_eq!(b.driver.byte(at), COMPLETE);
        // Told once, by the first command that is not one of three.
        assert!(b.first.ask(&[0x12, 0, 0, 0, 36, 0], &[], 36).good());
        assert_eq!(b.first.ask(&[0; 6], &[], 0).code(), (6, 0x29, ascq));
        assert!(b.first.ask(&[0; 6], &[], 0).good());
        // Also by one that makes no sense.
        assert_eq!(b.managed(subtype, DISK, 0), COMPLETE);
        assert_eq!(b.first.ask(&[0xff; 6], &[], 0).code(), (6, 0x29, ascq));
        assert_eq!(b.first.ask(&[0xff; 6], &[], 0).code(), crate::INVALID_OPCODE);
        // Or by REQUEST SENSE, if there is room for it.
        assert_eq!(b.managed(subtype, DISK, 0), COMPLETE);
        let overrun = b.first.ask(&[3, 0, 0, 0, 18, 0], &[], 8);
        assert_eq!(u32::from(overrun.response), VIRTIO_SCSI_S_OVERRUN);
        assert_eq!(b.first.told(&[3, 0, 0, 0, 18, 0], 18)[2], 6);
        let none = b.first.told(&[3, 0, 0, 0, 18, 0], 18);
        assert_eq!((none[0], none[2], none[12]), (0x70, 0, 0));
    }
}

#[test]
fn a_unit_attention_is_not_for_the_next_driver() {
    for cause in [ResetCause::Device, ResetCause::Reconnect, ResetCause::QueueStop] {
        let mut b = Both::new();
        assert_eq!(b.managed(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, DISK, 0), COMPLETE);
        b.first.device.reset(cause, None);
        let told = b.first.ask(&[0; 6], &[], 0).good();
        assert_eq!(told, cause != ResetCause::QueueStop, "{cause:?}");
    }
}

#[test]
fn a_head_that_is_in_use_is_not_taken_again() {
    let mut b = Both::new();
    b.first.store.stall();
    b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
    let (head, at) = b.driver.manage(VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 1);
    b.turn();
    b.driver.offer(head);
    b.turn();
    assert_eq!((b.driver.take_used(), b.queue.in_flight()), (vec![(head, 0)], 1));
    b.first.store.release();
    b.turn();
    assert_eq!((b.driver.take_used(), b.driver.byte(at)), (vec![(head, 1)], COMPLETE));
}

#[test]
fn after_a_power_cut_a_reset_of_what_was_in_flight_is_never_answered() {
    let mut b = Both::new();
    b.first.store.stall();
    b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
    let _ = b.first.pump();
    b.first.store.cut_power();
    b.driver.manage(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, DISK, 0);
    for _ in 0..3 {
        b.turn();
    }
    assert_eq!(b.driver.take_used(), []);
}

#[test]
fn a_queue_that_stops_holds_no_function_up() {
    // The request queue stops.
    let mut b = Both::new();
    b.first.store.stall();
    b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
    let (head, at) = b.driver.manage(VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 1);
    b.turn();
    let Both { first, second, mut driver, mut queue, mut ring } = b;
    drop((first, second));
    let mem = driver.mem.clone();
    let _ = queue.pump(&mut ring, &mem, true);
    assert_eq!((driver.take_used(), driver.byte(at)), (vec![(head, 1)], COMPLETE));

    // The control queue does: the function failed, and its end wakes nobody.
    let mut b = Both::new();
    b.first.store.stall();
    b.first.driver.command(DISK, 1, &cdb10(0x2a, 0, 5, 1), &[9; 512], 0);
    let (head, at) = b.driver.manage(VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 1);
    b.turn();
    let mem = b.driver.mem.clone();
    assert!(b.queue.drain(&mut b.ring, &mem));
    assert_eq!((b.driver.take_used(), b.driver.byte(at)), (vec![(head, 1)], FAILURE));
    drop(b.queue);
    b.first.store.release();
    let _ = b.first.pump();
    assert_eq!(b.first.driver.take_used().len(), 1);
}

#[test]
fn notifications_are_asked_for_in_vain() {
    let mut b = Both::new();
    for (kind, lun, response) in
        [(1u32, DISK, COMPLETE), (2, DISK, COMPLETE), (1, [1, 9, 0, 0, 0, 0, 0, 0], 3)]
    {
        let mut request = kind.to_le_bytes().to_vec();
        request.extend(lun);
        request.extend(u32::MAX.to_le_bytes());
        let (head, at) = b.driver.control(&request, 5);
        b.pump();
        assert_eq!(b.driver.take_used(), [(head, 5)]);
        assert_eq!(b.driver.bytes(at, 5), [0, 0, 0, 0, response]);
    }
    // Too short, or of no known type: returned.
    for (request, room) in
        [(vec![1, 0, 0, 0], 5), (vec![0; 23], 1), (vec![0; 3], 1), (vec![9; 24], 1)]
    {
        let (head, at) = b.driver.control(&request, room);
        b.pump();
        assert_eq!(b.driver.take_used(), [(head, 0)]);
        assert_eq!(b.driver.byte(at), CANARY);
    }
}

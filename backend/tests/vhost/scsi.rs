//! A SCSI disk over the socket: threads, kicks, and what one queue does to another.

use crate::common::scsi::{CANARY, DISK, Reply};
use crate::common::store::{Told, pattern};
use crate::guest::{Guest, Server, until};
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::store::Op;
use tornblk_model::event::{Negotiation, ResetCause};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_scsi::*;

const CONTROL: usize = 0;
const EVENT: usize = 1;
const FIRST: usize = 2;

fn ready(request_queues: u16) -> (Server, Guest) {
    let limits = LimitOptions { unit_max: Some(65536), ..LimitOptions::default() };
    let server = Server::scsi(request_queues, limits);
    let guest = Guest::ready(&server.path(), request_queues + 2);
    (server, guest)
}

fn command(guest: &mut Guest, n: usize, cdb: &[u8], out: &[u8], room: u32) -> Reply {
    let sent = guest.queues[n].driver.command(DISK, 1, cdb, out, room);
    guest.kick(n);
    let used = guest.wait(n);
    assert_eq!(used.iter().map(|used| used.0).collect::<Vec<_>>(), [sent.head]);
    guest.queues[n].driver.reply(&sent)
}

#[test]
fn a_front_end_drives_the_disk_through_its_request_queues() {
    let (server, mut guest) = ready(4);
    assert!(!guest.protocol.contains(VhostUserProtocolFeatures::CONFIG), "QEMU would warn");
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 6);
    // What QEMU adds by itself was offered.
    assert_eq!(guest.features & 0b110, 0b110);
    for n in 0..4u8 {
        let queue = FIRST + usize::from(n);
        let read = command(&mut guest, queue, &[0x28, 0, 0, 0, 0, n, 0, 0, 1, 0], &[], 512);
        assert!(read.good());
        assert_eq!(read.data, [pattern(n.into()); 512]);
        let mut atomic = [0; 16];
        (atomic[0], atomic[1], atomic[9], atomic[13]) = (0x9c, 8, 100 + n, 1);
        assert!(command(&mut guest, queue, &atomic, &[n; 512], 0).good());
        assert_eq!(server.store.sector(100 + u64::from(n)), [n; 512]);
        let offset = (100 + u64::from(n)) * 512;
        let ops = server.store.take_ops();
        assert_eq!(ops[1], Op::Write { offset, fua: true, atomic: true });
    }
    let (flush_offered, flush, config_wce, writeback) = (true, true, true, true);
    let said = Negotiation { flush_offered, flush, config_wce, writeback };
    assert_eq!(server.store.take_told(), [Told::Connected, Told::Negotiated(said)]);
    let indices = server.store.available();
    assert_eq!(indices, [(0, 0), (1, 0), (2, 2), (3, 2), (4, 2), (5, 2)]);
}

#[test]
fn buffers_for_events_are_kept() {
    let (server, mut guest) = ready(1);
    let buffer = guest.queues[EVENT].driver.place(&[CANARY; 16]);
    let head = guest.queues[EVENT].driver.chain(&[(buffer, 16, 2)]);
    guest.queues[EVENT].driver.offer(head);
    guest.kick(EVENT);
    assert!(command(&mut guest, FIRST, &[0; 6], &[], 0).good());
    assert_eq!(guest.queues[EVENT].driver.take_used(), []);
    // They are where they were when the queue starts again.
    assert_eq!(guest.frontend.get_vring_base(EVENT).unwrap(), 0);
    assert_eq!(server.store.take_told().last(), Some(&Told::Reset(ResetCause::QueueStop, Some(1))));
}

#[test]
fn a_reset_reaches_the_other_queues_and_is_answered_after_them() {
    let (server, mut guest) = ready(2);
    server.store.stall();
    let write = [0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0];
    let held = guest.queues[FIRST].driver.command(DISK, 1, &write, &[3; 512], 0);
    guest.kick(FIRST);
    until(|| server.store.take_ops().len() == 1);
    let subtype = VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET;
    let (head, at) = guest.queues[CONTROL].driver.manage(subtype, DISK, 0);
    guest.kick(CONTROL);
    assert_eq!(guest.wait(CONTROL), [(head, 1)]);
    assert_eq!(guest.queues[CONTROL].driver.byte(at), 0);
    assert_eq!(guest.queues[FIRST].driver.take_used(), [(held.head, 108)]);
    assert_eq!(server.store.sector(9), [3; 512]);
    // The other request queue was at rest, and tells of the reset.
    let attention = command(&mut guest, FIRST + 1, &[0; 6], &[], 0);
    assert_eq!(attention.code(), (6, 0x29, 3));
}

#[test]
fn an_abort_is_answered_when_the_command_is_let_go() {
    let (server, mut guest) = ready(1);
    server.store.stall();
    let read = [0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0];
    let held = guest.queues[FIRST].driver.command(DISK, 42, &read, &[], 512);
    guest.kick(FIRST);
    until(|| server.store.take_ops().len() == 1);
    let (head, _) = guest.queues[CONTROL].driver.manage(VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 42);
    guest.kick(CONTROL);
    // It is on its way when a query that came later is answered.
    let (query, at) = guest.queues[CONTROL].driver.manage(VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 42);
    guest.kick(CONTROL);
    assert_eq!(guest.wait(CONTROL), [(query, 1)]);
    assert_eq!(u32::from(guest.queues[CONTROL].driver.byte(at)), VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
    server.store.release();
    assert_eq!(guest.wait(FIRST), [(held.head, 620)]);
    assert_eq!(guest.wait(CONTROL), [(head, 1)]);
}

#[test]
fn a_function_reaches_queues_that_were_not_kicked_yet() {
    let (server, mut guest) = ready(2);
    server.store.stall();
    let read = [0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0];
    // Visible, and its kick is still on its way.
    let held = guest.queues[FIRST + 1].driver.command(DISK, 42, &read, &[], 512);
    let (query, at) = guest.queues[CONTROL].driver.manage(VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 42);
    guest.kick(CONTROL);
    assert_eq!(guest.wait(CONTROL), [(query, 1)]);
    assert_eq!(u32::from(guest.queues[CONTROL].driver.byte(at)), VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
    guest.kick(FIRST + 1);
    server.store.release();
    assert_eq!(guest.wait(FIRST + 1), [(held.head, 620)]);
}

/// An ABORT TASK that was taken, and whose command is held by the store: its head, and where its
/// response goes.
fn waits_for_a_stalled_command(server: &Server, guest: &mut Guest) -> (u16, u64) {
    server.store.stall();
    let read = [0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0];
    guest.queues[FIRST].driver.command(DISK, 42, &read, &[], 512);
    guest.kick(FIRST);
    until(|| server.store.take_ops().len() == 1);
    let (head, at) = guest.queues[CONTROL].driver.manage(VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 42);
    guest.kick(CONTROL);
    // It was taken when one that came later is answered.
    let (query, _) = guest.queues[CONTROL].driver.manage(VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 1);
    guest.kick(CONTROL);
    assert_eq!(guest.wait(CONTROL), [(query, 1)]);
    (head, at)
}

#[test]
fn a_function_outlives_a_change_of_the_guests_memory() {
    let (server, mut guest) = ready(1);
    let (head, at) = waits_for_a_stalled_command(&server, &mut guest);
    let regions = guest.regions();
    guest.frontend.remove_mem_region(&regions[1]).unwrap();
    assert_eq!(guest.wait(CONTROL), [(head, 1)]);
    assert_eq!(guest.queues[CONTROL].driver.byte(at), 0, "after the command, which was let go");
    assert_eq!(guest.queues[FIRST].driver.take_used().len(), 1);
}

#[test]
fn queues_that_stop_in_any_order_wait_for_no_function() {
    let (server, mut guest) = ready(1);
    let (head, at) = waits_for_a_stalled_command(&server, &mut guest);
    assert_eq!(guest.frontend.get_vring_base(CONTROL).unwrap(), 2);
    assert_eq!(guest.queues[CONTROL].driver.take_used(), [(head, 1)]);
    assert_eq!(u32::from(guest.queues[CONTROL].driver.byte(at)), VIRTIO_SCSI_S_FAILURE);
    assert_eq!(guest.frontend.get_vring_base(FIRST).unwrap(), 1);
    assert_eq!(guest.queues[FIRST].driver.take_used().len(), 1);
}

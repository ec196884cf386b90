//! From handshake to goodbye.

use crate::common::store::{Told, pattern};
use crate::guest::{Guest, Server, until};
use std::io::Read;
use std::mem::offset_of;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tornblk_backend::device::blk::VIRTIO_BLK_F_ATOMIC;
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::vhost::{Socket, SocketError};
use tornblk_model::event::{Negotiation, ResetCause};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use virtio_bindings::virtio_blk::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;

fn negotiated() -> Told {
    Told::Negotiated(Negotiation {
        flush_offered: true,
        flush: true,
        config_wce: true,
        writeback: true,
    })
}

#[test]
fn a_front_end_reads_and_writes_through_several_queues() {
    let server = Server::new(4);
    let mut guest = Guest::connect(&server.path(), 4);
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 4);
    assert!(guest.protocol.contains(VhostUserProtocolFeatures::CONFIG));
    assert_eq!(guest.frontend.get_max_mem_slots().unwrap(), 509);
    let capacity = guest.config(0, 8);
    assert_eq!(capacity, 4096u64.to_le_bytes());
    // The whole of what QEMU knows, and more than there is.
    assert_eq!(guest.config(0, 60).len(), 60);
    assert_eq!(guest.config(0, 250).len(), 250);
    guest.start(4);

    for n in 0..4u64 {
        let (sent, status) =
            guest.ask(n as usize, |driver| driver.wants(VIRTIO_BLK_T_IN, n * 10, 4096));
        assert_eq!(status, OK);
        let read = guest.queues[n as usize].driver.bytes(sent.data, 4096);
        for sector in 0..8 {
            assert_eq!(read[sector as usize * 512..][..512], [pattern(n * 10 + sector); 512]);
        }
        let data = [0x80 + n as u8; 1024];
        let (_, status) =
            guest.ask(n as usize, |driver| driver.gives(VIRTIO_BLK_T_OUT, 100 + 2 * n, &data));
        assert_eq!(status, OK);
        assert_eq!(server.store.sector(100 + 2 * n + 1), [0x80 + n as u8; 512]);
    }
    let (_, status) = guest.ask(3, |driver| driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]));
    assert_eq!(status, OK);

    // The store sees what each queue made visible, without asking any of them.
    assert_eq!(server.store.available(), [(0, 2), (1, 2), (2, 2), (3, 3)]);
    assert_eq!(server.store.take_told(), [Told::Connected, negotiated()]);
}

#[test]
fn what_was_answered_before_the_call_was_replaced_is_told_again() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    let sent = guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 5, 512);
    guest.queues[0].driver.ask_to_be_told();
    guest.kick(0);
    let mut used = Vec::new();
    until(|| {
        used.extend(guest.queues[0].driver.take_used());
        !used.is_empty()
    });
    assert_eq!(used[0].0, sent.head);
    // As QEMU does it while its guest drives the disk already.
    assert_eq!(guest.replace_call(0), 1);
    assert_eq!(guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 6, 512)).1, OK);
    // A queue that does not run has nothing to tell.
    guest.frontend.get_vring_base(0).unwrap();
    assert_eq!(guest.replace_call(0), 0);
}

#[test]
fn a_batch_in_one_kick_is_answered_whole() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    let mut sent = Vec::new();
    for i in 0..30 {
        let driver = &mut guest.queues[0].driver;
        sent.push(driver.wants(VIRTIO_BLK_T_IN, i, 512));
    }
    guest.kick(0);
    let mut heads = Vec::new();
    while heads.len() < sent.len() {
        heads.extend(guest.wait(0).into_iter().map(|used| used.0));
    }
    let mut expected: Vec<u16> = sent.iter().map(|sent| sent.head).collect();
    heads.sort_unstable();
    expected.sort_unstable();
    assert_eq!(heads, expected);
    for (i, sent) in (0..).zip(sent) {
        assert_eq!(guest.queues[0].driver.byte(sent.status), OK);
        assert_eq!(guest.queues[0].driver.bytes(sent.data, 512), [pattern(i); 512]);
    }
}

#[test]
fn a_queue_that_polls_finds_what_nobody_kicked_for() {
    // Far longer than the test: what ends it is not the time.
    let poll = Duration::from_secs(60);
    for (server, found) in [(Server::polling(2, poll), true), (Server::new(2), false)] {
        let mut guest = Guest::ready(&server.path(), 2);
        assert_eq!(guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 4, 512)).1, OK);
        if !found {
            // It may look once more after its answer, before it sleeps.
            std::thread::sleep(Duration::from_millis(100));
        }
        let sent = guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 5, 512);
        if !found {
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(guest.queues[0].driver.take_used(), []);
            guest.kick(0);
        }
        assert_eq!(guest.wait(0)[0].0, sent.head);
        // Messages get in.
        guest.replace_call(0);
        assert_eq!(guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 7, 512)).1, OK);
        // It lets go at once of a queue that is stopped, and of a front-end that goes.
        let start = Instant::now();
        guest.frontend.get_vring_base(0).unwrap();
        assert_eq!(guest.ask(1, |driver| driver.wants(VIRTIO_BLK_T_IN, 6, 512)).1, OK);
        drop(guest);
        drop(server);
        assert!(start.elapsed() < poll / 2, "{:?}", start.elapsed());
    }
}

#[test]
fn the_limits_of_atomic_writes_are_there_for_who_asks() {
    let limits = LimitOptions { unit_max: Some(16384), ..LimitOptions::default() };
    let server = Server::with(1, limits);
    let atomic = 1 << VIRTIO_BLK_F_ATOMIC;
    // A front-end that passes everything on, with a driver that takes every bit.
    let mut guest = Guest::connect(&server.path(), 1);
    assert_ne!(guest.features & atomic, 0);
    let config = guest.config(0, 112);
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!([96, 100, 104, 108].map(field), [512, 16384, 16384, 0]);
    guest.start(1);
    let write = |guest: &mut Guest, sector| {
        let (_, status) = guest.ask(0, |driver| driver.gives(VIRTIO_BLK_T_OUT, sector, &[9; 512]));
        assert_eq!(status, OK);
        assert_eq!(server.store.sector(sector), [9; 512]);
    };
    write(&mut guest, 7);
    drop(guest);
    // A stock one, which knows neither the bit nor the room behind its fields.
    let mut guest = Guest::connect(&server.path(), 1);
    guest.features &= !atomic;
    assert_eq!(guest.config(0, 60)[33], 6 << 4);
    guest.start(1);
    write(&mut guest, 8);
}

#[test]
fn the_cache_mode_is_switched_over_the_wire() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    let at = offset_of!(virtio_blk_config, wce) as u32;
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.frontend.set_config(at, flags, &[0]).unwrap();
    server.until_told(&Told::Writeback(false));
    assert_eq!(guest.config(at, 1), [0]);
    // What cannot be written is ignored, and the connection lives.
    guest.frontend.set_config(0, flags, &[1; 8]).unwrap();
    assert_eq!(guest.config(0, 8), 4096u64.to_le_bytes());
}

#[test]
fn what_was_held_is_answered_when_the_store_wakes_the_queue() {
    let server = Server::new(2);
    let mut guest = Guest::ready(&server.path(), 2);
    server.store.stall();
    let held = guest.queues[1].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
    guest.kick(1);
    until(|| server.store.take_ops().len() == 1);
    assert_eq!(guest.queues[1].driver.take_used(), []);
    server.store.release();
    assert_eq!(guest.wait(1), [(held.head, 513)]);
}

#[test]
fn stopping_a_queue_answers_what_is_stalled_and_says_where_it_was() {
    let server = Server::new(2);
    let mut guest = Guest::ready(&server.path(), 2);
    guest.ask(0, |driver| driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]));
    server.store.take_ops();
    server.store.stall();
    let held = guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
    guest.kick(0);
    until(|| server.store.take_ops().len() == 1);
    server.store.take_told();

    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 2);
    assert_eq!(guest.queues[0].driver.take_used().last(), Some(&(held.head, 513)));
    assert_eq!(guest.queues[0].driver.byte(held.status), OK);
    assert_eq!(server.store.take_told(), [Told::Reset(ResetCause::QueueStop, Some(0))]);
    // Only the other one counts now.
    assert_eq!(server.store.available(), [(1, 0)]);

    // A stopped queue does nothing until it is started again, where it was.
    let later = guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 3, 512);
    guest.kick(0);
    guest.start_queue(0, 2);
    guest.kick(0);
    assert_eq!(guest.wait(0), [(later.head, 513)]);
    assert_eq!(server.store.available(), [(0, 3), (1, 0)]);
}

#[test]
fn a_reset_ends_what_is_in_flight() {
    let server = Server::new(2);
    let mut guest = Guest::ready(&server.path(), 2);
    server.store.stall();
    guest.queues[1].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
    guest.kick(1);
    until(|| server.store.take_ops().len() == 1);
    server.store.take_told();
    guest.frontend.reset_device().unwrap();
    assert_eq!(server.store.take_told(), [Told::Reset(ResetCause::Device, None)]);
    assert_eq!(server.store.available(), []);
    // Started anew by the same front-end.
    guest.queues.clear();
    guest.start(2);
    let (_, status) = guest.ask(1, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
    assert_eq!(server.store.take_told(), [negotiated()]);
}

#[test]
fn memory_comes_and_goes() {
    let server = Server::new(1);
    let mut guest = Guest::connect(&server.path(), 1);
    guest.frontend.set_features(guest.features).unwrap();
    let regions = guest.regions();
    // One region at a time, as libblkio does it.
    guest.frontend.add_mem_region(&regions[0]).unwrap();
    let mem = guest.mem.clone();
    guest.queues.clear();
    guest.start(1);
    guest.frontend.set_mem_table(&regions[..1]).unwrap();
    guest.frontend.add_mem_region(&regions[1]).unwrap();

    // Into the second region, held, and then the region goes: answered before that.
    server.store.stall();
    let driver = &mut guest.queues[0].driver;
    let header = driver.header(VIRTIO_BLK_T_IN, 5);
    let far = 0x18_0000;
    let head = driver.chain(&[(header, 16, 0), (far, 513, crate::common::driver::WRITE)]);
    driver.offer(head);
    guest.kick(0);
    until(|| server.store.take_ops().len() == 1);
    guest.frontend.remove_mem_region(&regions[1]).unwrap();
    assert_eq!(guest.wait(0), [(head, 513)]);
    use vm_memory::{Bytes, GuestAddress};
    let mut read = [0u8; 513];
    mem.read_slice(&mut read, GuestAddress(far)).unwrap();
    assert_eq!(read[..512], [pattern(5); 512]);

    // Beyond what is left: an error, and no crash.
    let driver = &mut guest.queues[0].driver;
    let status = driver.status_byte();
    let parts = [(header, 16, 0), (far, 512, 2), (status, 1, 2)];
    let head = driver.chain(&parts);
    driver.offer(head);
    guest.kick(0);
    assert_eq!(guest.wait(0), [(head, 1)]);
    assert_eq!(guest.queues[0].driver.byte(status), VIRTIO_BLK_S_IOERR as u8);
}

#[test]
fn a_second_front_end_is_turned_away_and_the_first_goes_on() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    for _ in 0..3 {
        let mut second = UnixStream::connect(server.path()).unwrap();
        let mut byte = [0; 1];
        assert_eq!(second.read(&mut byte).unwrap(), 0, "closed at once");
    }
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 1, 512));
    assert_eq!(status, OK);
}

#[test]
fn one_front_end_after_another_is_served() {
    let server = Server::new(2);
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for round in 0..8u8 {
        {
            let mut guest = Guest::ready(&server.path(), 2);
            let told = server.until_told(&negotiated());
            assert_eq!(told, [Told::Connected, negotiated()]);
            let data = [round; 512];
            let (_, status) = guest.ask(1, |driver| driver.gives(VIRTIO_BLK_T_OUT, 7, &data));
            assert_eq!(status, OK);
            let (sent, _) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 7, 512));
            assert_eq!(guest.queues[0].driver.bytes(sent.data, 512), data);
        }
        let gone = Told::Reset(ResetCause::Reconnect, None);
        assert_eq!(server.until_told(&gone), [gone]);
        server.store.forget_bells();
        if round == 1 {
            before = files();
        }
    }
    // Nothing is left behind by a front-end (other tests open files in this process, too).
    assert!(files() < before + 64, "{before} files, then {}", files());
}

#[test]
fn a_front_end_that_goes_with_requests_in_flight_leaves_the_device_usable() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    server.store.stall();
    let held = guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
    guest.kick(0);
    until(|| server.store.take_ops().len() == 1);
    let Guest { frontend, mut queues, .. } = guest;
    drop(frontend);
    server.until_told(&Told::Reset(ResetCause::Reconnect, None));
    // Answered, but not returned: nobody may touch the used ring of a front-end that is gone.
    assert_eq!(queues[0].driver.take_used(), []);
    assert_eq!(queues[0].driver.byte(held.status), OK);

    let mut next = Guest::ready(&server.path(), 1);
    let (_, status) = next.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
}

#[test]
fn after_a_power_cut_the_guest_waits_and_the_next_one_is_served() {
    let server = Server::new(1);
    let mut guest = Guest::ready(&server.path(), 1);
    server.store.cut_power();
    guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
    guest.kick(0);
    until(|| server.store.take_ops().len() == 1);
    // Even a queue that is stopped in order gets no answers, and does not wait for any.
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 1);
    assert_eq!(guest.queues[0].driver.take_used(), []);
    drop(guest);
    server.until_told(&Told::Reset(ResetCause::Reconnect, None));
    server.store.power_on();
    let mut next = Guest::ready(&server.path(), 1);
    let (_, status) = next.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
}

#[test]
fn nonsense_on_the_socket_ends_that_connection_only() {
    let server = Server::new(1);
    for bytes in [&[0xffu8; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[]] {
        let mut stream = UnixStream::connect(server.path()).unwrap();
        use std::io::Write;
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        server.until_told(&Told::Reset(ResetCause::Reconnect, None));
    }
    let mut guest = Guest::ready(&server.path(), 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
}

#[test]
fn stopping_the_server_ends_the_connection_and_removes_the_socket() {
    let mut server = Server::new(1);
    let guest = Guest::ready(&server.path(), 1);
    assert!(server.path().exists());
    server.end();
    assert!(!server.path().exists());
    assert!(guest.frontend.get_features().is_err());
}

#[test]
fn a_socket_s_path_is_taken_with_care() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = Socket::bind(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // Somebody lives there.
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Live { .. }));
    let me = format!("pid {}", std::process::id());
    assert!(error.to_string().contains(&me), "{error}");
    // Somebody else took the path: not ours to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    drop(first);
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    assert!(matches!(Socket::bind(&path).unwrap_err(), SocketError::NoSocket { .. }));
    std::fs::remove_file(&path).unwrap();
    // Somebody died there.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Socket::bind(&path).unwrap());
    assert!(!path.exists());
    // Nobody can be there.
    let error = Socket::bind(&dir.path().join("no/such/folder")).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    let error = Socket::bind(&dir.path().join("x".repeat(200))).unwrap_err();
    assert!(matches!(error, SocketError::TooLong { .. }));
}

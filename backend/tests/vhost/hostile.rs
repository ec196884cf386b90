//! Front-ends that do what they must not: told off, and the next one is served.

use crate::guest::{Guest, Server, until};
use crate::program::{Place, Running};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tornblk_proto::{Client, Match, StallWhen};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use virtio_bindings::virtio_blk::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const OK: u8 = VIRTIO_BLK_S_OK as u8;

/// How long until the device hangs up.
fn hung_up(stream: &mut UnixStream) -> Duration {
    let begin = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may be in the middle of being told something.
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => begin.elapsed(),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => begin.elapsed(),
        Err(error) => panic!("not hung up: {error}"),
    }
}

fn serves(server: &Server) {
    let mut guest = Guest::ready(&server.path(), 1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
}

/// The device serves the next one, and ends in order: what it said.
fn lives(place: &Place, running: Running) -> String {
    let mut next = Guest::ready(&place.path("s"), 1);
    let (_, status) = next.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(status, OK);
    drop(next);
    let output = running.signal(rustix::process::Signal::TERM);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    log
}

fn message(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].iter().flat_map(|n| n.to_ne_bytes()).collect()
}

#[test]
fn half_a_message_is_waited_for_ten_seconds_and_nobody_else_waits_so_long() {
    let server = Server::new(1);
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.write_all(&message(1, 1, 8)[..7]).unwrap();
    let mut second = UnixStream::connect(server.path()).unwrap();
    assert!(hung_up(&mut second) < Duration::from_secs(5), "the second one is told off meanwhile");
    let waited = hung_up(&mut stream);
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(20), "{waited:?}");
    serves(&server);
}

#[test]
fn a_message_that_announces_too_much_ends_the_connection_at_once() {
    let server = Server::new(1);
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.write_all(&message(5, 1, u32::MAX)).unwrap();
    assert!(hung_up(&mut stream) < Duration::from_secs(5));
    serves(&server);
}

#[test]
fn answers_come_in_the_order_of_what_was_asked_whoever_gives_them() {
    let server = Server::new(1);
    // VHOST_USER_GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_INFLIGHT_FD.
    let (features, protocol, agree, region) = (1, 15, 16, 31);
    for _ in 0..20 {
        let mut stream = UnixStream::connect(server.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut all = message(agree, 1, 8);
        // REPLY_ACK and INFLIGHT_SHMFD.
        all.extend((1u64 << 3 | 1 << 12).to_ne_bytes());
        for request in [features, protocol, region, features, region, features] {
            let payload: Vec<u8> = if request == region {
                // 8 bytes of length, 8 of offset, 2 of queues, 2 of their size.
                [&[0; 16][..], &1u16.to_ne_bytes(), &128u16.to_ne_bytes()].concat()
            } else {
                Vec::new()
            };
            all.extend(message(request, 1, payload.len() as u32));
            all.extend(payload);
        }
        stream.write_all(&all).unwrap();
        let mut answered = Vec::new();
        for _ in 0..6 {
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            stream.read_exact(&mut vec![0; word(8) as usize]).unwrap();
            answered.push(word(0));
        }
        assert_eq!(answered, [features, protocol, region, features, region, features]);
    }
}

#[test]
fn who_asks_and_goes_is_not_let_go_but_gone() {
    let place = Place::new();
    let running = place.start("");
    for _ in 0..40 {
        let mut stream = UnixStream::connect(place.path("s")).unwrap();
        stream.write_all(&message(1, 1, 0)).unwrap();
        drop(stream);
        let mut next = UnixStream::connect(place.path("s")).unwrap();
        next.write_all(&message(1, 1, 0)).unwrap();
        let mut answer = [0; 20];
        // Where the first one still has its place it is turned away.
        let _ = next.read(&mut answer);
    }
    let output = running.signal(rustix::process::Signal::TERM);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the front-end is gone") && !said.contains("is let go"), "{said}");
}

#[test]
fn more_files_than_any_message_has_end_the_connection() {
    let server = Server::new(1);
    let mut stream = UnixStream::connect(server.path()).unwrap();
    let files: Vec<OwnedFd> =
        (0..40).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
    let files: Vec<_> = files.iter().map(std::os::fd::AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&files)));
    let bytes = message(5, 1, 8);
    rustix::net::sendmsg(
        &stream,
        &[std::io::IoSlice::new(&bytes)],
        &mut control,
        rustix::net::SendFlags::empty(),
    )
    .unwrap();
    assert!(hung_up(&mut stream) < Duration::from_secs(5));
    serves(&server);
}

#[test]
fn who_asks_and_never_listens_is_let_go() {
    let server = Server::new(1);
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Each is answered, until nothing more goes into the socket.
    let ask = message(1, 1, 0);
    let begin = Instant::now();
    while stream.write_all(&ask).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it takes for ever");
    }
    let mut byte = [0];
    until(|| {
        // Nothing is read but what was answered before.
        matches!(stream.write(&byte), Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    });
    assert!(stream.read(&mut byte).is_ok());
    serves(&server);
}

#[test]
fn a_region_that_is_none_is_refused_and_the_connection_lives() {
    let server = Server::new(1);
    let mut guest = Guest::connect(&server.path(), 1);
    let wanted = VhostUserInflight::new(0, 0, 1, 128);
    let (what, file) = guest.frontend.get_inflight_fd(&wanted).unwrap();
    let size = file.metadata().unwrap().len();
    assert!(what.mmap_size == size && size >= 16 + 128 * 16);
    assert!(file.set_len(0).is_err(), "nobody can cut it short");
    let short = std::fs::File::open("/dev/null").unwrap();
    assert!(guest.frontend.set_inflight_fd(&what, short.as_raw_fd()).is_err());
    let small = VhostUserInflight { mmap_size: 64, ..what };
    assert!(guest.frontend.set_inflight_fd(&small, file.as_raw_fd()).is_err());
    let beyond = VhostUserInflight { mmap_offset: size, ..what };
    assert!(guest.frontend.set_inflight_fd(&beyond, file.as_raw_fd()).is_err());
    guest.start(1);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 9, 512));
    assert_eq!(status, OK);
}

#[test]
fn a_guest_that_starts_its_queue_anew_does_not_fill_the_log() {
    let place = Place::new();
    let running = place.start("");
    let mut guest = Guest::ready(&place.path("s"), 1);
    for _ in 0..30 {
        for _ in 0..20 {
            let unknown = 0x77;
            let (_, status) = guest.ask(0, |driver| {
                driver.recycle();
                driver.wants(unknown, 0, 512)
            });
            assert_eq!(status, VIRTIO_BLK_S_UNSUPP as u8);
        }
        let base = guest.frontend.get_vring_base(0).unwrap();
        guest.start_queue(0, base as u16);
    }
    drop(guest);
    let output = running.signal(rustix::process::Signal::TERM);
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().filter(|line| line.contains("is refused")).count();
    // Ten in five seconds.
    assert!((1..100).contains(&lines), "{lines} lines");
    assert!(said.contains(" more of these"), "{said}");
}

#[test]
fn memory_that_is_replaced_over_and_over_beneath_requests_can_be_cut_short() {
    let place = Place::new();
    let running = place.start("--control c");
    let client = Client::connect(place.path("c")).unwrap();
    client.stall(Match::default(), StallWhen::BeforeCompletion).unwrap();
    let mut guest = Guest::ready(&place.path("s"), 1);
    for reads in 1..=6 {
        // Each is held, and holds the memory that it came with.
        guest.queues[0].driver.wants(VIRTIO_BLK_T_IN, 9, 512);
        guest.kick(0);
        until(|| client.status().unwrap().counters.reads == reads);
        guest.frontend.set_mem_table(&guest.regions()).unwrap();
    }
    for region in guest.mem.iter() {
        region.file_offset().unwrap().file().set_len(0).unwrap();
    }
    drop(client);
    until(|| guest.frontend.get_features().is_err());
    drop(guest);
    lives(&place, running);
}

#[test]
fn who_cuts_its_guest_s_memory_short_is_let_go_and_told() {
    let place = Place::new();
    let running = place.start("");
    let guest = Guest::ready(&place.path("s"), 2);
    for region in guest.mem.iter() {
        // Nobody here may touch it any more.
        region.file_offset().unwrap().file().set_len(0).unwrap();
    }
    guest.kick(1);
    until(|| guest.frontend.get_features().is_err());
    drop(guest);
    let log = lives(&place, running);
    let me = format!("pid {}", std::process::id());
    let told = |line: &str| line.contains("is let go: it cut the guest's memory short");
    assert!(log.lines().any(|line| told(line) && line.contains(&me)), "{log}");
}

#[test]
fn a_disk_that_grows_is_told_to_the_front_end() {
    let place = Place::new();
    let running = place.start("--control c");
    let control = Client::connect(place.path("c")).unwrap();
    let mut guest = Guest::ready(&place.path("s"), 1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    guest.frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 2048, 512));
    assert_ne!(status, OK, "beyond the end");

    let grow = |to: u64| {
        let image = std::fs::OpenOptions::new().write(true).open(place.path("disk.img")).unwrap();
        image.set_len(to).unwrap();
        control.resize()
    };
    assert_eq!(grow(2 << 20).unwrap(), 2 << 20);
    let mut header = [0; 12];
    (&ours).read_exact(&mut header).unwrap();
    assert_eq!(header, message(2, 1, 0)[..], "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG");
    assert_eq!(guest.config(0, 8), (2u64 << 20 >> 9).to_le_bytes());
    let (_, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 4095, 512));
    assert_eq!(status, OK);
    for (size, says) in [
        (2 << 20, "make it larger"),
        (1 << 20, "make it larger"),
        ((3 << 20) + 100, "no whole number of logical blocks"),
    ] {
        let refused = grow(size).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    assert_eq!(control.status().unwrap().capacity, 2 << 20);
    drop((guest, control));
    running.signal(rustix::process::Signal::TERM);
    std::fs::write(place.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let _running = place.start("--control c --recording r");
    let refused = Client::connect(place.path("c")).unwrap().resize().unwrap_err().to_string();
    assert!(refused.contains("only a raw disk can grow"), "{refused}");
}

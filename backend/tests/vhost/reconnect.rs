//! `tornblkd` is killed and started again beneath a guest that goes on.

use crate::common::scsi::DISK;
use crate::guest::{Guest, until};
use crate::load::{BLOCK, Load};
use crate::program::{Place, Running};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tornblk_model::crash::History;
use tornblk_model::event::{Event, ResetCause};
use tornblk_model::recording::Reader;
use tornblk_proto::{Client, Match, OpKind, StallWhen};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_scsi::{VIRTIO_SCSI_T_TMF_ABORT_TASK, VIRTIO_SCSI_T_TMF_QUERY_TASK};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const QUEUES: u16 = 4;
const SLOTS: u16 = 32;
/// Blocks that direct I/O takes on every file system.
const DIRECT: &str = "--direct --logical-block-size 4096";

/// So many by default; `TORNBLK_KILLS` says otherwise.
fn kills() -> u32 {
    std::env::var("TORNBLK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

fn place() -> Place {
    let place = Place::new();
    let blocks = Load::blocks(QUEUES.into(), SLOTS.into());
    std::fs::write(place.path("disk.img"), vec![0; blocks as usize * BLOCK]).unwrap();
    place
}

/// Serves until it is killed; then the guest is connected to the next one.
fn killed(place: &Place, running: Running, guest: &mut Guest, arguments: &str) -> Running {
    running.signal(Signal::KILL);
    let running = place.start(arguments);
    guest.reconnect(&place.path("s"));
    running
}

fn run_for(load: &mut Load, guest: &mut Guest, time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        load.step(guest, true);
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn all_come_back(load: &mut Load, guest: &mut Guest) {
    until(|| {
        load.step(guest, false);
        load.in_flight() == 0
    });
}

/// Kills while `place` is loaded; the stall that is asked for in every other round holds a request
/// while later ones complete.
fn survive(
    place: &Place,
    arguments: &str,
    kills: u32,
    mut guest: Guest,
    mut running: Running,
) -> (Load, Guest) {
    // Without data it is a raw disk.
    let whole = arguments.contains("--recording") && !arguments.contains("--record-payload no");
    let mut load = Load::new(&mut guest, SLOTS, 7, whole);
    for kill in 0..kills {
        let control = Client::connect(place.path("c")).unwrap();
        let when = [StallWhen::BeforeIo, StallWhen::BeforeCompletion][kill as usize / 2 % 2];
        if kill % 2 == 0 {
            let which = Match { op: Some(OpKind::Write), nth: Some(1), ..Match::default() };
            control.stall(which, when).unwrap();
        }
        let before = load.done;
        run_for(&mut load, &mut guest, Duration::from_millis(5 + u64::from(kill) * 7 % 23));
        // Later ones were completed.
        until(|| {
            load.step(&mut guest, true);
            load.done > before + 20
        });
        if kill % 2 == 0 {
            until(|| {
                load.step(&mut guest, true);
                control.status().unwrap().stalls[0].held == 1
            });
        }
        running = killed(place, running, &mut guest, arguments);
        // Only now: what it holds would be let go.
        drop(control);
    }
    run_for(&mut load, &mut guest, Duration::from_millis(50));
    all_come_back(&mut load, &mut guest);
    assert!(load.flushes > 0);
    running.signal(Signal::TERM);
    (load, guest)
}

#[test]
fn a_raw_disk_survives_a_hundred_kills() {
    let place = place();
    let running = place.start("--control c");
    let guest = Guest::ready(&place.path("s"), QUEUES);
    survive(&place, "--control c", kills(), guest, running);
}

#[test]
fn a_recorded_disk_survives_a_hundred_kills_and_goes_on_in_its_file() {
    each_is_on_record_once("--control c --recording r", kills());
}

#[test]
fn a_disk_recorded_without_data_survives_kills_and_polls_meanwhile() {
    let trace = "--control c --recording r --record-payload no --poll-us 500";
    each_is_on_record_once(trace, kills() / 5);
    // What the kernel still does for a device that was killed is over before the next one begins.
    each_is_on_record_once(&format!("{trace} {DIRECT}"), kills() / 5);
}

#[test]
fn a_disk_past_the_page_cache_survives_kills() {
    let place = place();
    let arguments = format!("--control c {DIRECT}");
    let running = place.start(&arguments);
    let guest = Guest::ready(&place.path("s"), QUEUES);
    survive(&place, &arguments, kills() / 5, guest, running);
}

fn each_is_on_record_once(arguments: &str, kills: u32) {
    let place = place();
    let running = place.start(arguments);
    let guest = Guest::ready(&place.path("s"), QUEUES);
    let (load, _guest) = survive(&place, arguments, kills, guest, running);
    let reader = Reader::open(&place.path("r")).unwrap();
    let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
    let restarts =
        |(_, e): &&(_, Event)| matches!(e, Event::Reset { cause: ResetCause::Restart, .. });
    assert_eq!(events.iter().filter(restarts).count(), kills as usize);
    let submitted = events.iter().filter(|(_, e)| matches!(e, Event::Submit(_))).count() as u64;
    let history = History::new(reader.header().disk.clone(), events).unwrap();
    // Each is on record once, however often it was taken, and each has ended.
    assert_eq!(submitted, load.done, "submissions, and requests that came back");
    let open = history.requests().iter().filter(|r| r.succeeded().is_none()).count();
    assert_eq!(open, 0, "requests that never succeeded");
}

#[test]
fn a_front_end_without_memory_for_it_survives_kills_by_the_file_beside_the_socket() {
    let place = place();
    let running = place.start("--control c");
    let guest = Guest::forgetful(&place.path("s"), QUEUES);
    assert!(guest.inflight.is_none());
    assert!(place.path("s.state").exists());
    survive(&place, "--control c", kills() / 4, guest, running);
    assert!(!place.path("s.state").exists());
}

#[test]
fn what_a_stranger_left_is_not_taken_for_ours() {
    let place = place();
    let running = place.start("--control c");
    let mut guest = Guest::forgetful(&place.path("s"), 1);
    let control = Client::connect(place.path("c")).unwrap();
    control.stall(Match::default(), StallWhen::BeforeIo).unwrap();
    guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, 0, &[9; 512]);
    guest.kick(0);
    until(|| control.status().unwrap().in_flight == 1);
    running.signal(Signal::KILL);
    // Only now: what it holds would be let go.
    drop(control);
    let running = place.start("");
    // Another guest: same addresses, other memory.
    let mut other = Guest::forgetful(&place.path("s"), 1);
    let (sent, status) = other.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!((status, other.queues[0].driver.bytes(sent.data, 512)), (OK, vec![0; 512]));
    drop(other);
    running.signal(Signal::TERM);
}

#[test]
fn the_driver_s_choice_of_the_write_cache_outlives_the_device() {
    let place = place();
    let mut running = place.start("");
    let mut guest = Guest::ready(&place.path("s"), 1);
    let at = std::mem::offset_of!(virtio_blk_config, wce) as u32;
    assert_eq!(guest.config(at, 1), [1]);
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    vhost::vhost_user::VhostUserFrontend::set_config(&mut guest.frontend, at, flags, &[0]).unwrap();
    running = killed(&place, running, &mut guest, "");
    assert_eq!(guest.config(at, 1), [0]);
    drop(guest);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::TERM);
    // A device that ended in order, with nobody connected, begins anew.
    let _running = place.start("");
    assert_eq!(Guest::connect(&place.path("s"), 1).config(at, 1), [1]);
}

#[test]
fn a_front_end_that_comes_back_to_a_living_device_gets_its_answers() {
    let place = place();
    let running = place.start("--control c");
    let control = Client::connect(place.path("c")).unwrap();
    let mut guest = Guest::ready(&place.path("s"), 1);
    let first = Match { nth: Some(1), ..Match::default() };
    control.stall(first, StallWhen::BeforeIo).unwrap();
    let sent = guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, 8, &[5; 512]);
    guest.kick(0);
    until(|| control.status().unwrap().in_flight == 1);
    guest.reconnect(&place.path("s"));
    assert_eq!(guest.wait(0), [(sent.head, 1)]);
    assert_eq!(guest.queues[0].driver.byte(sent.status), OK);
    let (read, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 8, 512));
    assert_eq!((status, guest.queues[0].driver.bytes(read.data, 512)), (OK, vec![5; 512]));
    drop(guest);
    running.signal(Signal::TERM);
}

#[test]
fn what_a_killed_device_returned_and_did_not_tell_is_told() {
    let place = place();
    let running = place.start("");
    let mut guest = Guest::ready(&place.path("s"), 1);
    guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    // As if it had died right before: the driver has to be told by the next one.
    guest.clear_call(0);
    let _running = killed(&place, running, &mut guest, "");
    until(|| guest.was_called(0));
}

#[test]
fn a_region_that_is_smaller_than_the_ring_is_not_used_for_it() {
    let place = place();
    let mut running = place.start("--control c");
    let mut guest = Guest::with_region_of(&place.path("s"), 1, 8);
    let control = Client::connect(place.path("c")).unwrap();
    control.stall(Match::default(), StallWhen::BeforeIo).unwrap();
    let held: Vec<_> = (0..20)
        .map(|n| guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, n, &[n as u8 + 1; 512]))
        .collect();
    guest.kick(0);
    until(|| control.status().unwrap().in_flight == 20);
    running = killed(&place, running, &mut guest, "--control c");
    drop(control);
    let mut back = Vec::new();
    while back.len() < held.len() {
        back.extend(guest.wait(0).into_iter().map(|used| used.0));
    }
    back.sort_unstable();
    assert_eq!(back, held.iter().map(|sent| sent.head).collect::<Vec<_>>());
    drop(guest);
    running.signal(Signal::TERM);
}

#[test]
fn a_device_that_is_stopped_beneath_a_guest_leaves_what_the_next_one_needs() {
    let place = place();
    let running = place.start("--control c");
    let mut guest = Guest::forgetful(&place.path("s"), 1);
    let control = Client::connect(place.path("c")).unwrap();
    control.stall(Match::default(), StallWhen::BeforeIo).unwrap();
    let sent = guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, 0, &[9; 512]);
    guest.kick(0);
    until(|| control.status().unwrap().in_flight == 1);
    assert_eq!(running.signal(Signal::TERM).status.code(), Some(0));
    assert!(place.path("s.state").exists() && !place.path("s").exists());
    let running = place.start("");
    guest.reconnect(&place.path("s"));
    assert_eq!(guest.wait(0), [(sent.head, 1)]);
    let (read, _) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, 0, 512));
    assert_eq!(guest.queues[0].driver.bytes(read.data, 512), [9; 512]);
    drop(guest);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::TERM);
    assert!(!place.path("s.state").exists());
}

#[test]
fn a_scsi_disk_goes_on_with_its_commands_and_its_functions() {
    let (control, request) = (0, 2);
    let place = place();
    for arguments in ["", "--recording r"] {
        let arguments = format!("--control c --front-end scsi --num-queues 1 {arguments}");
        let running = place.start(&arguments);
        let client = Client::connect(place.path("c")).unwrap();
        let mut guest = Guest::ready(&place.path("s"), 3);
        client.stall(Match::default(), StallWhen::BeforeCompletion).unwrap();
        let write = [0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0];
        let held = guest.queues[request].driver.command(DISK, 42, &write, &[3; 512], 0);
        guest.kick(request);
        until(|| client.status().unwrap().stalls[0].held == 1);
        let abort = VIRTIO_SCSI_T_TMF_ABORT_TASK;
        let (waits, at) = guest.queues[control].driver.manage(abort, DISK, 42);
        let query = VIRTIO_SCSI_T_TMF_QUERY_TASK;
        let (asked, _) = guest.queues[control].driver.manage(query, DISK, 42);
        guest.kick(control);
        assert_eq!(guest.wait(control), [(asked, 1)], "the abort waits");
        let running = killed(&place, running, &mut guest, &arguments);
        drop(client);
        assert_eq!(guest.wait(request), [(held.head, 108)]);
        assert!(guest.queues[request].driver.reply(&held).good());
        assert_eq!(guest.wait(control), [(waits, 1)]);
        assert_eq!(guest.queues[control].driver.byte(at), 0);
        let read = [0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0];
        let sent = guest.queues[request].driver.command(DISK, 1, &read, &[], 512);
        guest.kick(request);
        guest.wait(request);
        assert_eq!(guest.queues[request].driver.reply(&sent).data, [3; 512]);
        drop(guest);
        running.signal(Signal::TERM);
    }
}

//! A process that may open only so many files, or have only so much memory.

use crate::guest::{Guest, until};
use crate::rig::{IOERR, OK, Place};
use rustix::process::{Resource, Rlimit, prlimit};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tornblk_model::event::Event;

/// Connects to the control socket until there are no descriptors any more, and one is refused.
fn exhaust(place: &Place) -> Vec<UnixStream> {
    let mut clients = Vec::new();
    loop {
        let mut client = UnixStream::connect(place.path("c")).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut answer = String::new();
        match client.read_to_string(&mut answer) {
            // It waits for a command.
            Err(_) => clients.push(client),
            Ok(_) => {
                assert!(answer.contains("Too many open files"), "{answer}");
                return clients;
            }
        }
    }
}

/// A front-end that is turned away.
fn turned_away(place: &Place) {
    let mut stream = UnixStream::connect(place.path("s")).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed at once");
}

#[test]
fn at_the_start_it_is_one_line_or_it_works() {
    let place = Place::new();
    let line = "--socket s --control c --image disk.img --recording r --num-queues 2";
    let mut worked = 0;
    for files in (4..100).step_by(5) {
        let mut daemon = place.start_after(&format!("ulimit -n {files}"), line);
        let ready = || place.path("s").exists() && daemon.log().contains("waiting at");
        let begin = Instant::now();
        let mut ended = None;
        while ended.is_none() && !ready() && begin.elapsed().as_secs() < 10 {
            ended = rustix::process::waitid(
                rustix::process::WaitId::Pid(daemon.pid()),
                rustix::process::WaitIdOptions::EXITED
                    | rustix::process::WaitIdOptions::NOHANG
                    | rustix::process::WaitIdOptions::NOWAIT,
            )
            .unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        if ended.is_some() {
            assert_eq!(daemon.code(), Some(2), "{files}: {}", daemon.log());
            let told = crate::rig::one_line(&daemon.log());
            assert!(told.contains("open files") || told.contains("loading shared"), "{told}");
            assert!(!place.path("r").exists() || worked > 0, "{files}");
            place.no_sockets();
        } else {
            let mut guest = place.guest(2);
            assert_eq!(guest.write(0, &[1; 512]), OK);
            drop(guest);
            daemon.end();
            worked += 1;
        }
    }
    assert!((1..15).contains(&worked), "{worked}");
}

#[test]
fn a_front_end_that_comes_then_is_turned_away_and_the_next_is_served() {
    let place = Place::new();
    let daemon = place.start_limited("ulimit -n 100", "--num-queues 2");
    for left in [0, 1, 5] {
        let mut clients = exhaust(&place);
        clients.drain(..left);
        (0..3).for_each(|_| turned_away(&place));
        drop(clients);
        until(|| place.client().status().is_ok());
        let mut guest = place.guest(2);
        assert_eq!(guest.write(0, &[1; 512]), OK);
        drop(guest);
    }
    let log = daemon.end();
    assert_eq!(log.matches("is turned away: ").count(), 9, "{log}");
    assert!(log.contains("(ulimit -n)"), "{log}");
}

#[test]
fn a_guest_that_is_there_goes_on() {
    // What is left when the last client was refused is less than a client needs: 0 to 3.
    let refused = (100..104).filter(|files| a_guest_goes_on(*files)).count();
    assert!(refused > 0, "there were always enough");
}

/// Of so many files: was a state refused for want of them?
fn a_guest_goes_on(files: u32) -> bool {
    let place = Place::new();
    let setup = format!("ulimit -n {files}");
    let daemon = place.start_limited(&setup, "--num-queues 2 --recording r");
    let mut guest: Guest = place.guest(2);
    assert_eq!(guest.write(3, &[1; 512]), OK);
    assert_eq!(guest.flush(), OK);
    let client = place.client();
    let events = client.status().unwrap().recording.unwrap().events;
    let mut others = exhaust(&place);

    let refused = place.client().status().unwrap_err();
    assert!(refused.to_string().contains("open files"), "{refused}");
    turned_away(&place);
    for n in 0..50 {
        assert_eq!(guest.write(n, &[n as u8; 512]), OK);
    }
    assert_eq!(guest.read(3, 512).unwrap(), [3; 512]);
    assert_eq!(guest.flush(), OK);
    client.mark("still here").unwrap();

    // It is refused, and the disk stays live; or it works, and then all of it.
    let state = format!("lb512/p{}:all", events - 1);
    let mut often = 0;
    while let Err(refused) = client.use_state(&state) {
        assert!(refused.to_string().contains("open files"), "{refused}");
        assert_eq!(client.status().unwrap().state, "live");
        assert_eq!(guest.read(3, 512).unwrap(), [3; 512]);
        assert!(others.pop().is_some(), "never enough");
        often += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its queue may need one more, and is there as soon as it can be.
    let now = guest.read(3, 512);
    assert!(now == Ok(vec![1; 512]) || now == Err(IOERR));
    drop(others);
    until(|| place.client().status().is_ok());
    assert_eq!(guest.read(3, 512).unwrap(), [1; 512]);
    assert_eq!(guest.write(4, &[4; 512]), OK);
    assert_eq!(guest.read(4, 512).unwrap(), [4; 512]);
    client.use_state("live").unwrap();
    assert_eq!(guest.read(3, 512).unwrap(), [3; 512]);
    drop((guest, client));
    daemon.end();
    let marked = |e: &Event| matches!(e, Event::Mark(mark) if mark.name == "still here");
    assert!(place.recorded("r").iter().any(|(_, event)| marked(event)));
    often > 0
}

#[test]
fn a_crash_that_cannot_open_files_says_so_and_is_a_crash() {
    let mut failed = 0;
    for files in 100..104 {
        let place = Place::new();
        let setup = format!("ulimit -n {files}");
        let daemon = place.start_limited(&setup, "--num-queues 2 --recording r");
        let mut guest = place.guest(2);
        assert_eq!(guest.write(3, &[1; 512]), OK);
        let client = place.client();
        let others = exhaust(&place);
        if let Err(told) = client.crash(tornblk_proto::Trigger::Now, None, None, None) {
            assert!(told.to_string().contains("the power is cut, but no state"), "{told}");
            failed += 1;
        }
        drop((guest, client, others));
        daemon.end();
        let events = place.recorded("r");
        assert!(matches!(events.last(), Some((_, Event::Reset { .. }))), "{events:?}");
    }
    assert!(failed > 0, "there were always enough");
}

#[test]
fn a_limit_that_is_lowered_beneath_what_is_open_burns_no_time() {
    let place = Place::new();
    let daemon = place.start("--num-queues 2");
    let limits = |files| Rlimit { current: Some(files), maximum: Some(1024) };
    prlimit(Some(daemon.pid()), Resource::Nofile, limits(4)).unwrap();
    let _waits = UnixStream::connect(place.path("s")).unwrap();
    let _too = UnixStream::connect(place.path("c")).unwrap();
    let used = || {
        let stat = format!("/proc/{}/stat", daemon.pid().as_raw_nonzero());
        let stat = std::fs::read_to_string(stat).unwrap();
        let words: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    assert!(used() - before < 8, "hundredths of a second: {}", used() - before);
    prlimit(Some(daemon.pid()), Resource::Nofile, limits(1024)).unwrap();
    drop(_waits);
    place.client().status().unwrap();
    assert_eq!(place.guest(2).write(0, &[1; 512]), OK);
    daemon.end();
}

#[test]
fn too_little_memory_at_the_start_is_one_line() {
    let place = Place::new();
    let mut refused = 0;
    for megabytes in [12, 16, 32, 64, 128, 1024, 16 << 10] {
        let line = "--socket s --control c --image disk.img --recording r --num-queues 4";
        let mut daemon = place.start_after(&format!("ulimit -v {}", megabytes << 10), line);
        until(|| {
            let log = daemon.log();
            log.contains("waiting at") || log.contains("tornblkd: ") || log.contains("rror")
        });
        if daemon.log().contains("waiting at") {
            let mut guest = place.guest(2);
            assert_eq!(guest.write(0, &[1; 512]), OK);
            drop(guest);
            daemon.end();
            continue;
        }
        refused += 1;
        let (code, log) = (daemon.code(), daemon.log());
        // Where there is not even room for the program, the loader says so.
        if code != Some(127) {
            assert_eq!(code, Some(2), "{megabytes} MiB: {log}");
            let told = crate::rig::one_line(&log);
            assert!(told.contains("memory"), "{told}");
        }
        assert!(!place.path("r").exists(), "{megabytes} MiB");
        place.no_sockets();
    }
    assert!((1..7).contains(&refused), "{refused}");
}

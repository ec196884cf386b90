//! Signals: the device ends in order, or does not mind.

use crate::guest::{Guest, until};
use crate::rig::{Daemon, OK, Place};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tornblk_model::event::{Event, ResetCause};
use tornblk_proto::{Match, StallWhen, Trigger};
use virtio_bindings::virtio_blk::*;

const SIGNALS: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Writes on every queue as fast as answers come, until the device is gone.
fn load(place: &Place, queues: u16) -> std::thread::JoinHandle<u64> {
    let mut guest = place.guest(queues);
    std::thread::spawn(move || {
        let mut n = 0;
        while guest.frontend.is_there() {
            for queue in 0..usize::from(queues) {
                let driver = &mut guest.queues[queue].driver;
                if !driver.take_used().is_empty() || n < u64::from(queues) {
                    driver.recycle();
                    driver.gives(VIRTIO_BLK_T_OUT, n % 1000, &[n as u8; 1024]);
                    guest.kick(queue);
                    n += 1;
                }
            }
        }
        n
    })
}

trait There {
    fn is_there(&self) -> bool;
}

impl There for vhost::vhost_user::Frontend {
    fn is_there(&self) -> bool {
        use vhost::VhostBackend;
        self.get_features().is_ok()
    }
}

/// Ended, with exit code 0, soon, with one line, and nothing is left.
fn ended(place: &Place, daemon: &mut Daemon) {
    let begin = Instant::now();
    assert_eq!(daemon.code(), Some(0), "{}", daemon.log());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(daemon.log().matches("ended by a signal").count(), 1, "{}", daemon.log());
    place.no_sockets();
}

#[test]
fn under_load_it_ends_and_the_recording_is_sound() {
    for recording in ["", "--recording r"] {
        for signal in SIGNALS {
            let place = Place::new();
            let mut daemon = place.start(recording);
            let client = place.client();
            let load = load(&place, 4);
            until(|| client.status().unwrap().counters.writes > 200);
            daemon.signal(signal);
            ended(&place, &mut daemon);
            assert!(load.join().unwrap() > 200);
            if !recording.is_empty() {
                let events = place.recorded("r");
                assert!(events.len() > 400, "{}", events.len());
                // It goes on with it.
                drop(client);
                place.start(recording).end();
                place.recorded("r");
            }
        }
    }
}

#[test]
fn with_stalls_held_and_a_crash_that_waits_it_ends() {
    for signal in SIGNALS {
        let place = Place::new();
        let mut daemon = place.start("--recording r");
        let (client, idle) = (place.client(), place.client());
        client.stall(Match::default(), StallWhen::BeforeIo).unwrap();
        let crash =
            client.crash_start(Trigger::Mark("never".to_owned()), None, None, None).unwrap();
        let mut guest = place.guest(2);
        for queue in 0..2 {
            guest.queues[queue].driver.gives(VIRTIO_BLK_T_OUT, 8, &[1; 512]);
            guest.kick(queue);
        }
        until(|| client.status().unwrap().in_flight == 2);
        daemon.signal(signal);
        ended(&place, &mut daemon);
        assert!(crash.wait().is_err() && idle.status().is_err());
        assert!(place.recorded("r").len() > 2);
    }
}

#[test]
fn right_after_a_crash_it_ends_and_the_cut_is_on_record() {
    let mut cuts = 0;
    // The command may come too late where nobody waits for it.
    for known in [true, false, false] {
        let place = Place::new();
        let mut daemon = place.start("--recording r");
        let load = load(&place, 2);
        let client = place.client();
        until(|| client.status().unwrap().counters.writes > 50);
        let crash = client.crash_start(Trigger::Now, None, None, None).unwrap();
        if known {
            let another = place.client();
            until(|| another.status().unwrap().power_cut);
        }
        daemon.signal(Signal::TERM);
        ended(&place, &mut daemon);
        let _ = crash.wait();
        load.join().unwrap();
        let events = place.recorded("r");
        let cut = |e: &Event| matches!(e, Event::Reset { cause: ResetCause::PowerCut, .. });
        let at = events.iter().position(|(_, event)| cut(event));
        assert!(at.is_some() || !known, "a cut that was seen is not on record");
        if let Some(at) = at {
            cuts += 1;
            let after = &events[at + 1..];
            assert!(!after.iter().any(|(_, e)| matches!(e, Event::Submit(_))), "{after:?}");
        }
    }
    assert!(cuts > 0);
}

#[test]
fn a_second_signal_while_it_ends_changes_nothing() {
    let place = Place::new();
    let mut daemon = place.start("--recording r");
    let load = load(&place, 4);
    let clients: Vec<_> = (0..20).map(|_| place.client()).collect();
    until(|| clients[0].status().unwrap().counters.writes > 50);
    for signal in SIGNALS.into_iter().cycle().take(30) {
        // Gone by now, perhaps.
        let _ = rustix::process::kill_process(daemon.pid(), signal);
    }
    ended(&place, &mut daemon);
    load.join().unwrap();
    place.recorded("r");
}

#[test]
fn what_is_no_end_is_borne() {
    let place = Place::new();
    let daemon = place.start("--recording r");
    let mut guest = place.guest(1);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    // A client that goes before its answer: that is SIGPIPE.
    for _ in 0..5 {
        use std::io::Write;
        let mut client = std::os::unix::net::UnixStream::connect(place.path("c")).unwrap();
        client.write_all(&[b'\n'; 64]).unwrap();
    }
    daemon.signal(Signal::PIPE);
    daemon.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
    let stopped = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.contains("State:\tT")
    };
    until(|| std::fs::read_dir(&tasks).unwrap().all(|task| stopped(task.unwrap())));
    let sent = guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, 1, &[2; 512]);
    guest.kick(0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.queues[0].driver.take_used(), []);
    daemon.signal(Signal::CONT);
    assert_eq!(guest.wait(0), [(sent.head, 1)]);
    assert_eq!(guest.read(0, 1024).unwrap(), [[1; 512], [2; 512]].concat());
    daemon.end();
    place.recorded("r");
}

#[test]
fn a_guest_whose_driver_never_looks_does_not_hold_it_up() {
    let place = Place::new();
    let mut daemon = place.start("");
    let mut guest: Guest = place.guest(4);
    for n in 0..40 {
        guest.queues[n % 4].driver.gives(VIRTIO_BLK_T_OUT, n as u64, &[1; 512]);
    }
    (0..4).for_each(|n| guest.kick(n));
    daemon.signal(Signal::TERM);
    ended(&place, &mut daemon);
}

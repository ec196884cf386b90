//! A disk of the host that fails: EIO beneath the image, and beneath the recording.

use crate::failing_fs::Mounted;
use crate::guest::Guest;
use crate::rig::{Daemon, IOERR, OK, Place, SIZE, in_a_namespace, skipped};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

const FAR: u64 = SIZE as u64 / 512 - 256;

fn set(what: &AtomicBool, fails: bool) {
    what.store(fails, Ordering::SeqCst);
}

/// A place with a file system that can fail at `bad`.
fn place() -> Option<(Place, Mounted)> {
    let place = Place::new();
    let at = place.path("bad");
    std::fs::create_dir(&at).unwrap();
    match Mounted::at(&at, vec![7; SIZE]) {
        Ok(mounted) => Some((place, mounted)),
        Err(e) => {
            skipped(&format!("no FUSE can be mounted here: {e}"));
            None
        }
    }
}

fn start(place: &Place, line: &str) -> (Daemon, Guest) {
    let mut daemon = place.start_after(":", &format!("--socket s --control c {line}"));
    daemon.until_ready(&place.path("s"));
    let guest = place.guest(1);
    (daemon, guest)
}

#[test]
fn a_disk_of_the_host_that_fails() {
    for child in ["image", "base_image", "recording", "recording_in_the_background"] {
        in_a_namespace(&format!("broken::child_has_a_broken_{child}"));
    }
}

#[test]
#[ignore = "run by a_disk_of_the_host_that_fails"]
fn child_has_a_broken_image() {
    let Some((place, bad)) = place() else { return };
    let (daemon, mut guest) = start(&place, "--image bad/disk.img");
    assert_eq!(guest.read(0, 512).unwrap(), [7; 512]);
    set(&bad.failing.reads, true);
    assert_eq!(guest.read(FAR, 512).unwrap_err(), IOERR);
    assert_eq!(guest.write(8, &[1; 4096]), OK);
    assert_eq!(guest.read(8, 4096).unwrap(), [1; 4096]);
    set(&bad.failing.reads, false);
    assert_eq!(guest.read(FAR, 512).unwrap(), [7; 512]);
    set(&bad.failing.writes, true);
    assert_eq!(guest.write(16, &[2; 4096]), IOERR);
    assert_eq!(guest.read(8, 4096).unwrap(), [1; 4096]);
    set(&bad.failing.writes, false);
    assert_eq!(guest.write(16, &[2; 4096]), OK);
    assert_eq!(guest.flush(), OK);
    // A flush that failed once has lost something, and the next one cannot say otherwise.
    set(&bad.failing.syncs, true);
    assert_eq!(guest.flush(), IOERR);
    set(&bad.failing.syncs, false);
    assert_eq!(guest.flush(), IOERR);
    assert_eq!(guest.write(16, &[3; 4096]), OK);
    assert_eq!(guest.read(16, 4096).unwrap(), [3; 4096]);
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("Input/output error") && log.contains("an earlier flush failed"), "{log}");
}

#[test]
#[ignore = "run by a_disk_of_the_host_that_fails"]
fn child_has_a_broken_base_image() {
    let Some((place, bad)) = place() else { return };
    let (daemon, mut guest) = start(&place, "--image bad/disk.img --recording r");
    set(&bad.failing.reads, true);
    // What was looked at to know the image again is in the cache.
    let far = SIZE as u64 / 512 / 2 + 64;
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    let failed = (0..40).filter(|n| guest.read(far + n * 8, 512) == Err(IOERR)).count();
    if failed == 0 {
        set(&bad.failing.reads, false);
        return skipped("the image is in the cache, and only root can empty it");
    }
    assert_eq!(guest.write(far, &[1; 512]), OK);
    assert_eq!(guest.read(far, 512).unwrap(), [1; 512]);
    assert_eq!(guest.flush(), OK);
    set(&bad.failing.reads, false);
    assert_eq!(guest.read(far + 1, 512).unwrap(), [7; 512]);
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("cannot read the image"), "{log}");
    place.recorded("r");
}

#[test]
#[ignore = "run by a_disk_of_the_host_that_fails"]
fn child_has_a_broken_recording() {
    let Some((place, bad)) = place() else { return };
    let (daemon, mut guest) = start(&place, "--image disk.img --recording bad/r");
    assert_eq!(guest.write(0, &[1; 4096]), OK);
    let events = place.recorded("bad/r").len();
    // Data of pages are written: what fails is that request alone, and nothing is on record of it.
    set(&bad.failing.writes, true);
    assert_eq!(guest.write(8, &[2; 128 << 10]), IOERR);
    set(&bad.failing.writes, false);
    assert_eq!(guest.write(8, &[3; 128 << 10]), OK);
    assert_eq!(guest.read(8, 512).unwrap(), [3; 512]);
    // The next page of the mapping cannot be had: SIGBUS, if nobody caught it.
    set(&bad.failing.reads, true);
    let ended = (0..64).find(|_| guest.write(8, &[2; 512]) == IOERR);
    assert!(ended.is_some(), "nothing was read");
    assert_eq!(guest.read(0, 512).unwrap_err(), IOERR);
    assert!(place.client().status().unwrap().connected);
    set(&bad.failing.reads, false);
    assert_eq!(guest.write(0, &[1; 4096]), IOERR, "for good");
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("was cut short or its disk failed"), "{log}");
    let recorded = place.recorded("bad/r");
    assert!(recorded.len() >= events, "{} of {events}", recorded.len());
}

#[test]
#[ignore = "run by a_disk_of_the_host_that_fails"]
fn child_has_a_broken_recording_in_the_background() {
    let Some((place, bad)) = place() else { return };
    let (daemon, mut guest) = start(&place, "--image disk.img --recording bad/r");
    assert_eq!(guest.write(0, &[1; 4096]), OK);
    assert_eq!(guest.flush(), OK);
    // The host writes the pages back, as it does now and then, and its disk fails.
    set(&bad.failing.writes, true);
    assert!(File::open(place.path("bad/r")).unwrap().sync_data().is_err());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    guest.flush();
    daemon.until_says("every request fails from now on");
    assert_eq!(guest.write(0, &[1; 4096]), IOERR);
    drop(guest);
    daemon.end();
}

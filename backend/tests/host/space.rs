//! A disk that is full: what needs space fails, everything else goes on, and so does that when
//! there is space again.

use crate::guest::Guest;
use crate::rig::{Daemon, IOERR, OK, Place, SIZE, in_a_namespace};
use rustix::process::{Resource, Rlimit, prlimit};
use std::fs::File;
use std::path::Path;
use tornblk_model::event::{Event, Status};

/// A limit on the size of files, which needs no rights; `None`: none any more.
fn limit(daemon: &Daemon, bytes: Option<u64>) {
    let limits = Rlimit { current: bytes, maximum: None };
    prlimit(Some(daemon.pid()), Resource::Fsize, limits).unwrap();
}

/// Writes 64 KiB at a time until that fails: how often it went well.
fn fill(guest: &mut Guest) -> u64 {
    let data = vec![0x55; 64 << 10];
    for n in 0..10_000 {
        match guest.write(n % 8 * 128, &data) {
            OK => {}
            status => {
                assert_eq!(status, IOERR);
                return n;
            }
        }
    }
    panic!("it never gets full");
}

/// What must be so while the recording has no space for data.
fn full(place: &Place, guest: &mut Guest, before: u64) {
    assert!(before > 8, "{before}");
    for _ in 0..3 {
        assert_eq!(guest.write(0, &vec![1; 64 << 10]), IOERR);
    }
    // Not what failed, and everything before it.
    assert_eq!(guest.read(0, 64 << 10).unwrap(), vec![0x55; 64 << 10]);
    assert_eq!(guest.read(SIZE as u64 / 512 - 1, 512).unwrap(), [7; 512]);
    assert_eq!(guest.flush(), OK);
    place.client().mark("full").unwrap();
    let events = place.recorded("r");
    let failed = |e: &Event| matches!(e, Event::Complete { status: Status::IoErr, .. });
    assert!(events.iter().all(|(_, event)| !failed(event)), "a request that was refused");
    assert!(matches!(&events.last().unwrap().1, Event::Mark(mark) if mark.name == "full"));
}

#[test]
fn a_recording_that_meets_the_limit_of_a_file_goes_on_when_there_is_none() {
    let place = Place::new();
    let daemon = place.start("--recording r");
    let mut guest = place.guest(1);
    let segments = |n: u64| (64 << 10) + n * (64 << 20);
    limit(&daemon, Some(segments(2)));
    let before = fill(&mut guest);
    full(&place, &mut guest, before);
    limit(&daemon, None);
    assert_eq!(guest.write(0, &vec![1; 64 << 10]), OK);
    assert_eq!(guest.read(0, 64 << 10).unwrap(), vec![1; 64 << 10]);
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("no space for the recording r"), "{log}");
    place.recorded("r");
    // And none for a new one: one line, and no file.
    std::fs::remove_file(place.path("r")).unwrap();
    let line = "--socket s --image disk.img --recording r";
    let told = place.refused("ulimit -f 100", line);
    assert!(told.contains("no space for the recording r"), "{told}");
    assert!(!place.path("r").exists());
}

#[test]
fn a_raw_image_beyond_the_limit_of_a_file_fails_there_only() {
    let place = Place::new();
    let half = SIZE as u64 / 2;
    let daemon = place.start("");
    let mut guest = place.guest(1);
    limit(&daemon, Some(half));
    assert_eq!(guest.write(half / 512, &[1; 512]), IOERR);
    assert_eq!(guest.write(half / 512 - 1, &[1; 1024]), IOERR);
    assert_eq!(guest.write(half / 512 - 1, &[1; 512]), OK);
    assert_eq!(guest.read(half / 512, 512).unwrap(), [7; 512]);
    assert_eq!(guest.flush(), OK);
    limit(&daemon, None);
    assert_eq!(guest.write(half / 512, &[1; 512]), OK);
    drop(guest);
    daemon.end();
}

#[test]
fn a_full_file_system() {
    for child in ["child_has_a_full_disk_beneath_the_image", "child_has_one_beneath_the_recording"]
    {
        in_a_namespace(&format!("space::{child}"));
    }
}

/// Unmounted in the end, so that its folder can be removed.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        // Whatever is still open in it, the test's own files among them.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A file system of `kilobytes` at `place/small`, and a file in it that fills all but `free`.
fn small(place: &Place, kilobytes: u64, free: u64) -> Small {
    let at = place.path("small");
    std::fs::create_dir(&at).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={kilobytes}k"), "none"])
        .arg(&at)
        .status();
    assert!(mounted.unwrap().success());
    std::fs::write(at.join("ballast"), vec![1; ((kilobytes - free) << 10) as usize]).unwrap();
    Small(at)
}

fn remove_ballast(place: &Place) {
    std::fs::remove_file(place.path("small/ballast")).unwrap();
}

#[test]
#[ignore = "run by a_full_file_system"]
fn child_has_a_full_disk_beneath_the_image() {
    let place = Place::new();
    let _small = small(&place, 2048, 256);
    let image = Path::new("small/disk.img");
    File::create(place.path("small/disk.img")).unwrap().set_len(SIZE as u64).unwrap();
    let line = format!("--socket s --control c --image {}", image.display());
    let mut daemon = place.start_after(":", &line);
    daemon.until_ready(&place.path("s"));
    let mut guest = place.guest(1);
    let before = fill(&mut guest);
    assert!((1..=4).contains(&before), "{before}");
    // There is nothing of what failed, or its beginning; what has its place can be written anew.
    assert_eq!(guest.write(0, &vec![2; 64 << 10]), OK);
    assert_eq!(guest.read(0, 64 << 10).unwrap(), vec![2; 64 << 10]);
    assert_eq!(guest.read(SIZE as u64 / 512 - 1, 512).unwrap(), [0; 512]);
    assert_eq!(guest.write(SIZE as u64 / 512 - 8, &[2; 4096]), IOERR);
    assert_eq!(guest.flush(), OK);
    remove_ballast(&place);
    assert_eq!(guest.write(SIZE as u64 / 512 - 8, &[2; 4096]), OK);
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("No space left on device"), "{log}");
}

#[test]
#[ignore = "run by a_full_file_system"]
fn child_has_one_beneath_the_recording() {
    let place = Place::new();
    // Two segments of 64 MiB and their beginning; not three.
    let _small = small(&place, 200 << 10, 140 << 10);
    std::os::unix::fs::symlink("small/r", place.path("r")).unwrap();
    let daemon = place.start("--recording small/r");
    let mut guest = place.guest(1);
    let before = fill(&mut guest);
    full(&place, &mut guest, before);
    remove_ballast(&place);
    assert_eq!(guest.write(0, &vec![1; 64 << 10]), OK);
    drop(guest);
    daemon.end();
    place.recorded("r");
}

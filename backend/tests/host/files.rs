//! Files that somebody deletes, replaces, cuts short, or never let be made.

use crate::rig::{IOERR, OK, Place, SIZE};
use std::fs::{File, create_dir, metadata, remove_file, rename};
use std::os::unix::fs::FileExt;
use tornblk_model::event::Event;
use tornblk_model::recording::{Reader, RecordingError};

/// Each is looked at once a second at most, when the guest flushes.
fn until_seen(guest: &mut crate::guest::Guest, daemon: &crate::rig::Daemon, what: &str) {
    for _ in 0..100 {
        guest.flush();
        if daemon.log().contains(what) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("no `{what}` in {}", daemon.log());
}

#[test]
fn a_raw_image_that_is_deleted_or_replaced_goes_on_and_is_told_once() {
    for replaced in [false, true] {
        let place = Place::new();
        let daemon = place.start("");
        let mut guest = place.guest(1);
        let open = File::open(place.path("disk.img")).unwrap();
        let says = if replaced {
            std::fs::write(place.path("other"), vec![1; SIZE]).unwrap();
            rename(place.path("other"), place.path("disk.img")).unwrap();
            "disk.img was replaced"
        } else {
            remove_file(place.path("disk.img")).unwrap();
            "disk.img was deleted or renamed"
        };
        until_seen(&mut guest, &daemon, says);
        assert_eq!(guest.write(3, &[9; 512]), OK);
        assert_eq!(guest.read(3, 512).unwrap(), [9; 512]);
        assert_eq!(guest.flush(), OK);
        let mut there = [0; 512];
        open.read_exact_at(&mut there, 3 * 512).unwrap();
        assert_eq!(there, [9; 512], "the one that was opened");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        guest.flush();
        let log = daemon.end();
        assert_eq!(log.matches(says).count(), 1, "{log}");
        if replaced {
            assert_eq!(std::fs::read(place.path("disk.img")).unwrap(), vec![1; SIZE]);
        }
    }
}

#[test]
fn a_raw_image_that_is_cut_short_does_not_grow_back() {
    let place = Place::new();
    let daemon = place.start("");
    let mut guest = place.guest(1);
    let half = SIZE as u64 / 2;
    assert_eq!(guest.write(half / 512, &[9; 512]), OK);
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(half).unwrap();
    // Inside, across, beyond.
    assert_eq!(guest.write(0, &[8; 512]), OK);
    assert_eq!(guest.read(0, 512).unwrap(), [8; 512]);
    for sector in [half / 512 - 1, half / 512, SIZE as u64 / 512 - 2] {
        assert_eq!(guest.write(sector, &[9; 1024]), IOERR, "{sector}");
        assert_eq!(guest.read(sector, 1024).unwrap_err(), IOERR, "{sector}");
    }
    use virtio_bindings::virtio_blk::*;
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let (_, status) = guest.ask(0, |driver| driver.segments(kind, &[(half / 512, 8, 0)]));
        assert_eq!(status, IOERR);
    }
    assert_eq!(metadata(place.path("disk.img")).unwrap().len(), half);
    // What was written there is lost, and a flush must not say that all is well: never again.
    assert_eq!(guest.flush(), IOERR);
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(SIZE as u64).unwrap();
    assert_eq!(guest.write(half / 512, &[9; 512]), OK);
    assert_eq!(guest.flush(), IOERR);
    let log = daemon.end();
    assert!(log.contains("cut short: it has 524288 of the disk's 1048576 bytes"), "{log}");
}

#[test]
fn a_flush_is_the_first_that_finds_an_image_cut_short() {
    let place = Place::new();
    let daemon = place.start("");
    let mut guest = place.guest(1);
    assert_eq!(guest.flush(), OK);
    let image = File::options().write(true).open(place.path("disk.img")).unwrap();
    image.set_len(SIZE as u64 / 2).unwrap();
    assert_eq!(guest.flush(), IOERR);
    image.set_len(SIZE as u64).unwrap();
    assert_eq!(guest.flush(), IOERR, "zeroes are there now");
    daemon.end();
}

#[test]
fn a_base_image_that_is_cut_short_fails_the_reads_that_need_it() {
    let place = Place::new();
    let daemon = place.start("--recording r");
    let mut guest = place.guest(1);
    let last = SIZE as u64 / 512 - 1;
    assert_eq!(guest.write(last, &[9; 512]), OK);
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(4096).unwrap();
    assert_eq!(guest.read(last - 1, 512).unwrap_err(), IOERR);
    assert_eq!(guest.read(0, 512).unwrap(), [7; 512]);
    assert_eq!(guest.read(last, 512).unwrap(), [9; 512], "written since");
    until_seen(&mut guest, &daemon, "disk.img was cut short to 4096 bytes");
    assert_eq!(guest.flush(), OK);
    // There is no state to show any more, and that is said.
    let client = place.client();
    let problem = client.crash(tornblk_proto::Trigger::Now, None, None, None).unwrap_err();
    assert!(problem.to_string().contains("4096 bytes and had 1048576"), "{problem}");
    daemon.end();
    let events: Vec<_> =
        Reader::open(&place.path("r")).unwrap().events().map(Result::unwrap).collect();
    assert!(matches!(events.last(), Some((_, Event::Reset { .. }))), "{events:?}");
}

#[test]
fn a_recording_and_its_image_that_are_deleted_or_replaced_go_on_to_the_crash() {
    for replaced in [false, true] {
        let place = Place::new();
        let daemon = place.start("--recording r --profile lb512");
        let mut guest = place.guest(1);
        assert_eq!(guest.write(5, &[9; 512]), OK);
        assert_eq!(guest.flush(), OK);
        for name in ["r", "disk.img"] {
            if replaced {
                std::fs::write(place.path("other"), vec![1; SIZE]).unwrap();
                rename(place.path("other"), place.path(name)).unwrap();
            } else {
                remove_file(place.path(name)).unwrap();
            }
        }
        let says = if replaced { "was replaced" } else { "was deleted or renamed" };
        until_seen(&mut guest, &daemon, &format!("the recording r {says}"));
        assert!(daemon.log().contains(&format!("the image disk.img {says}")), "{}", daemon.log());
        assert_eq!(guest.write(6, &[8; 512]), OK);
        let client = place.client();
        client.crash(tornblk_proto::Trigger::Now, Some("all"), None, None).unwrap();
        drop(guest);
        let mut guest = place.guest(1);
        assert_eq!(guest.read(4, 1536).unwrap(), [[7; 512], [9; 512], [8; 512]].concat());
        drop((guest, client));
        daemon.end();
    }
}

#[test]
fn an_image_that_is_deleted_in_the_last_moment_is_told() {
    let place = Place::new();
    let daemon = place.start("");
    let mut guest = place.guest(1);
    assert_eq!(guest.flush(), OK);
    remove_file(place.path("disk.img")).unwrap();
    // Within a second of the last look.
    drop(guest);
    let log = daemon.end();
    assert!(log.contains("the image disk.img was deleted or renamed"), "{log}");
}

#[test]
fn no_power_is_cut_where_no_state_could_be_shown_after_it() {
    let place = Place::new();
    let daemon = place.start("--recording r --profile lb512");
    let mut guest = place.guest(1);
    assert_eq!(guest.write(5, &[9; 512]), OK);
    let image = File::options().write(true).open(place.path("disk.img")).unwrap();
    image.write_all_at(&[1], 0).unwrap();
    let client = place.client();
    let crash = || client.crash(tornblk_proto::Trigger::Now, Some("all"), None, None);
    let told = crash().unwrap_err().to_string();
    assert!(told.contains("disk.img is not the one that was recorded on"), "{told}");
    assert_eq!(guest.write(6, &[9; 512]), OK, "the disk lives");
    assert!(!client.status().unwrap().power_cut);
    drop(guest);
    daemon.end();
}

#[test]
fn a_recording_goes_on_under_another_profile_with_a_word_and_damaged_not_at_all() {
    let place = Place::new();
    place.start("--recording r --profile req16k").end();
    let log = place.start("--recording r --profile lb512").end();
    assert!(log.contains("the profile req16k+min512, and goes on with lb512"), "{log}");
    assert!(!place.start("--recording r --profile req16k").end().contains("goes on with"));
    // Some byte of the header that means nothing yet.
    let file = File::options().write(true).open(place.path("r")).unwrap();
    file.write_all_at(&[1], 0x14).unwrap();
    let line = "--socket s --image disk.img --recording r";
    assert!(place.refused(":", line).contains("does not fit its checksum"));
    let told = place.refused("mkfifo pipe", "--socket s --image disk.img --recording pipe");
    assert!(told.contains("is no file"), "{told}");
}

#[test]
fn a_recording_that_is_cut_short_ends_recording_and_not_the_device() {
    let place = Place::new();
    let daemon = place.start("--recording r");
    let mut guest = place.guest(1);
    assert_eq!(guest.write(5, &[9; 512]), OK);
    File::options().write(true).open(place.path("r")).unwrap().set_len(100).unwrap();
    assert_eq!(guest.write(6, &[9; 512]), IOERR);
    assert_eq!(guest.read(5, 512).unwrap_err(), IOERR);
    assert_eq!(guest.flush(), IOERR);
    assert!(place.client().mark("x").unwrap_err().to_string().contains("cut short"));
    assert!(place.client().status().unwrap().connected);
    let log = daemon.end();
    assert!(log.contains("the recording r was cut short or its disk failed"), "{log}");
    let error = Reader::open(&place.path("r")).unwrap_err();
    assert!(matches!(error, RecordingError::Truncated { .. }), "{error}");
}

#[test]
fn a_folder_that_takes_no_files_is_told_and_nothing_is_left() {
    let place = Place::at(crate::common::anybody::folder());
    create_dir(place.path("sealed")).unwrap();
    // As another user, where this one is root: root may write everywhere.
    let setup = "chmod 777 . disk.img; chmod 555 sealed";
    let line = "--socket s --image disk.img --recording sealed/r";
    let root = rustix::process::getuid().is_root();
    let as_nobody = if root {
        // It may lie where only root comes.
        std::fs::copy(crate::rig::program(), place.path("tornblkd")).unwrap();
        "exec setpriv --reuid=65534 --clear-groups ./tornblkd"
    } else {
        "exec \"$0\""
    };
    for (line, says) in [
        (line, "sealed/r"),
        ("--socket sealed/s --image disk.img", "sealed/s"),
        ("--socket s --control sealed/c --image disk.img", "sealed/c"),
    ] {
        let told = place.refused(&format!("{setup}\n{as_nobody} {line}"), "");
        assert!(told.contains(says) && told.contains("ermission denied"), "{told}");
        assert_eq!(std::fs::read_dir(place.path("sealed")).unwrap().count(), 0);
        place.no_sockets();
    }
    // An image that may only be read.
    let setup = format!("chmod 444 disk.img\n{as_nobody} --socket s --image disk.img");
    let told = place.refused(&setup, "");
    assert!(told.contains("use --read-only"), "{told}");
}

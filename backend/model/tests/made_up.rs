//! Recordings whose checksums are right and whose content nobody recorded: what they say is refused
//! with a sentence, whatever it would cost to believe it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::crash::Content;
use tornblk_model::event::*;
use tornblk_model::recording::*;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.img"), vec![0xb5; 256 << 10]).unwrap();
        Place { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a.rec")
    }

    /// A recording of a disk and a state as they are given, with these events.
    fn record(&self, disk: Disk, on: Option<OuterState>, events: &[Event]) -> PathBuf {
        let base = BaseImage::identify(&self.dir.path().join("base.img")).unwrap();
        let options = serde_json::Value::Null;
        let new =
            NewRecording { on, segment_size: 64 << 10, ..NewRecording::new(disk, base, options) };
        let writer = Writer::create(&self.path(), new).unwrap();
        for event in events {
            writer.append(event).unwrap();
        }
        self.path()
    }
}

fn disk() -> Disk {
    Disk { capacity: 256 << 10, lb_size: 512 }
}

fn write(offset: u64, len: u64) -> Event {
    let payload = Payload { position: 128 << 10, crc: 7 };
    let op = Op::Write { offset, len, fua: false, atomic: false, payload };
    Event::Submit(Submit { queue: 0, position: 0, head: 0, ioprio: 0, op })
}

fn says<T: std::fmt::Debug>(result: Result<T, RecordingError>, text: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn a_write_of_more_than_there_can_be_takes_no_memory() {
    for (offset, len) in
        [(0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX - 511, 512), (512, 1 << 60)]
    {
        let place = Place::new();
        let reader = Reader::open(&place.record(disk(), None, &[write(offset, len)])).unwrap();
        says(reader.verify(), "outside of the disk");
        assert_eq!(reader.info().unwrap().counts.writes, 1);
        assert!(reader.payload_len(offset, len) >= 512);
    }
    // On the disk, and not in the file.
    let place = Place::new();
    let reader = Reader::open(&place.record(disk(), None, &[write(0, 256 << 10)])).unwrap();
    says(reader.verify(), "cut short");
    let payload = Payload { position: 128 << 10, crc: 7 };
    says(reader.payload(&payload, 1 << 60), "cut short");
}

#[test]
fn a_flush_of_what_is_not_on_the_disk_is_no_history() {
    use tornblk_model::crash::History;
    let says = |offset, len, text: &str| {
        let op = Op::Flush { offset, len };
        let event =
            Event::Submit(Submit { queue: 0, position: 0, head: 0, ioprio: 0, op: op.clone() });
        let place = Place::new();
        let reader = Reader::open(&place.record(disk(), None, &[event])).unwrap();
        let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
        assert_eq!(disk().holds(&op), !text.contains("past the end"));
        let error = History::new(disk(), events).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    says(256 << 10, 512, "past the end of the disk");
    says(u64::MAX - 511, 512, "past the end of the disk");
    says(512, u64::MAX, "past the end of the disk");
    says(512, 100, "no whole sectors");
}

#[test]
fn a_disk_is_no_larger_than_its_image() {
    let place = Place::new();
    let larger = Disk { capacity: 1 << 62, lb_size: 4096 };
    says(Reader::open(&place.record(larger, None, &[])), "larger than the image");
    // But for the block that the image ends in.
    let place = Place::new();
    std::fs::write(place.dir.path().join("base.img"), vec![1; (256 << 10) - 512]).unwrap();
    let whole = Disk { capacity: 256 << 10, lb_size: 4096 };
    Reader::open(&place.record(whole, None, &[])).unwrap();
}

#[test]
fn a_logical_block_is_held_in_memory_and_no_larger() {
    let place = Place::new();
    std::fs::File::create(place.dir.path().join("base.img")).unwrap().set_len(2 << 30).unwrap();
    let disk = Disk { capacity: 2 << 30, lb_size: 1 << 30 };
    says(Reader::open(&place.record(disk, None, &[])), "logical block size is impossible");
}

#[test]
fn a_recording_on_a_state_of_itself_has_no_beginning() {
    let place = Place::new();
    let on = OuterState { recording: place.path(), state: "lb512/p0:all".to_owned() };
    let path = place.record(disk(), Some(on), &[Event::SetWriteback { on: true }]);
    let reader = Arc::new(Reader::open(&path).unwrap());
    let state = StateReader::new(reader, None::<&Path>, Trust::Unchanged, Content::default());
    says(state, "was itself made on a state");
}

#[test]
fn segments_beyond_any_file_are_cut_short() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let path = place.record(disk(), None, &[]);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let count = u32::MAX.to_le_bytes();
    file.write_all_at(&count, 24).unwrap();
    file.write_all_at(&crc32c::crc32c(&count).to_le_bytes(), 28).unwrap();
    says(Reader::open(&path), "cut short");
}

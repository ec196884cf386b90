#![allow(clippy::unwrap_used)]

use super::*;
use crate::explore::testing::{CAPACITY, Recorded, list, says};
use std::sync::Arc;
use tornblk_model::crash::{History, StateName};
use tornblk_model::event::{Event, Mark, Op, ResetCause, Segment, Seq, Status};
use tornblk_model::recording::{Completion, Reader, StateReader, Trust};

/// The second write is torn after 4 KiB.
fn name(recorded: &Recorded) -> StateName {
    let (history, reader) = read(recorded);
    let last = history.last().unwrap();
    let write = history.requests().iter().rfind(|r| r.changes()).unwrap().id();
    StateName(format!(
        "lb/p{last}:none,+w{write}.{}",
        if reader.header().disk.lb_size == 512 { "ff" } else { "1" }
    ))
}

fn read(recorded: &Recorded) -> (History, Arc<Reader>) {
    let reader = Arc::new(Reader::open(&recorded.path()).unwrap());
    let events: Result<Vec<_>, _> = reader.events().collect();
    (History::new(reader.header().disk.clone(), events.unwrap()).unwrap(), reader)
}

fn disk(reader: &Arc<Reader>, state: &StateName) -> Vec<u8> {
    let events: Result<Vec<_>, _> = reader.events().collect();
    let history = History::new(reader.header().disk.clone(), events.unwrap()).unwrap();
    let content = history.build(state).unwrap();
    let state = StateReader::new(Arc::clone(reader), None, Trust::Unchanged, content).unwrap();
    let mut bytes = vec![0; CAPACITY as usize];
    state.read_at(0, &mut bytes).unwrap();
    bytes
}

fn packed(recorded: &Recorded, needed: &Needed) -> PathBuf {
    let state = name(recorded);
    let reader = Arc::new(Reader::open(&recorded.path()).unwrap());
    let path = recorded.dir.path().join("failure.tornblk");
    let meta = Meta::new(state, "lb512".into(), Judge::InPlace);
    pack(&path, &reader, None, needed, &meta).unwrap();
    path
}

fn events(reader: &Reader) -> Vec<(Seq, Event)> {
    reader.events().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_bundle_alone_gives_the_same_disk() {
    let recorded = Recorded::some(512).end();
    let path = packed(&recorded, &Needed::All);
    let state = name(&recorded);
    let before = disk(&read(&recorded).1, &state);
    std::fs::remove_file(recorded.path()).unwrap();
    std::fs::remove_file(recorded.base()).unwrap();

    let to = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&path).unwrap();
    assert_eq!(
        (bundle.meta().state.clone(), bundle.meta().judge),
        (state.clone().into(), Judge::InPlace)
    );
    let unpacked = bundle.unpack(to.path()).unwrap();
    assert_eq!(disk(&unpacked.reader, &state), before);
    let mut bytes = vec![0; CAPACITY as usize];
    unpacked.state.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, before);
    assert_eq!((bytes[0], bytes[8192], bytes[8192 + 4096], bytes[40000]), (0xb5, 2, 1, 0));
}

#[test]
fn the_same_state_gives_the_same_file() {
    let recorded = Recorded::some(4096).end();
    let first = std::fs::read(packed(&recorded, &Needed::All)).unwrap();
    let second = std::fs::read(packed(&recorded, &Needed::All)).unwrap();
    assert_eq!(first, second);
    assert_eq!(list(recorded.dir.path()), ["base.img", "disk.recording", "failure.tornblk"]);
}

#[test]
fn only_the_blocks_that_are_needed_are_in_it() {
    let recorded = Recorded::some(512).end();
    let path = packed(&recorded, &Needed::Blocks(vec![4..6, 200..300]));
    let to = tempfile::tempdir().unwrap();
    let unpacked = Bundle::open(&path).unwrap().unpack(to.path()).unwrap();
    let mut bytes = vec![0; CAPACITY as usize];
    unpacked.state.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes.iter().filter(|b| **b == 0xb5).count(), 1024);
    assert!(bytes[2048..3072].iter().all(|b| *b == 0xb5));
    assert_eq!((bytes[8192], bytes[8192 + 4096]), (2, 1), "what was written is there");
}

#[test]
fn a_block_of_the_base_with_a_flipped_bit_is_in_it() {
    let recorded = Recorded::some(512).end();
    let (history, reader) = read(&recorded);
    let state = StateName(format!("lb/p{}:all;x3.9", history.last().unwrap()));
    let path = recorded.dir.path().join("f.tornblk");
    let meta = Meta::new(state.clone(), "lb512".into(), Judge::InPlace);
    pack(&path, &reader, None, &Needed::Blocks(Vec::new()), &meta).unwrap();
    let to = tempfile::tempdir().unwrap();
    let unpacked = Bundle::open(&path).unwrap().unpack(to.path()).unwrap();
    let mut block = [0; 512];
    unpacked.state.read_at(3 * 512, &mut block).unwrap();
    assert_eq!((block[0], block[1]), (0xb5, 0xb7));
}

#[test]
fn every_event_comes_back_with_its_number() {
    let mut recorded = Recorded::new(512);
    let segments = vec![
        Segment { offset: 0, len: 1024, unmap: true },
        Segment { offset: 8192, len: 512, unmap: false },
    ];
    let discard = recorded.submit(Op::Discard { segments: segments.clone() });
    let zeroes = recorded.submit(Op::WriteZeroes { segments });
    let read_ = recorded.submit(Op::Read { offset: 512, len: 1024 });
    let write = recorded.write(512, &[7; 512]);
    let writer = recorded.writer();
    // More queues than one event can tell of, with a completion and without.
    let many: Vec<(u16, u16)> = (0..9).map(|q| (q, 10 + q)).collect();
    writer.complete(&many, Completion::ok(discard)).unwrap();
    writer.append(&Event::Visible { queue: 3, index: 14 }).unwrap();
    writer.append(&Event::SetWriteback { on: false }).unwrap();
    let failed = Completion { status: Status::IoErr, executed: false, ..Completion::ok(write) };
    writer.complete(&[], failed).unwrap();
    writer.complete(&[], Completion { status: Status::Unsupp, ..Completion::ok(zeroes) }).unwrap();
    let reset = Event::Reset { cause: ResetCause::QueueStop, queue: Some(0) };
    writer.append(&reset).unwrap();
    writer.append(&Event::Reset { cause: ResetCause::Device, queue: None }).unwrap();
    recorded.complete(read_);
    let long = "x".repeat(4000);
    recorded.mark(&long);
    recorded.mark("");
    let last = recorded.mark("the last one that is needed");
    recorded.mark("too late");
    let recorded = recorded.end();

    let (_, reader) = read(&recorded);
    let path = recorded.dir.path().join("f.tornblk");
    let state = StateName(format!("lb512/p{last}:all"));
    pack(&path, &reader, None, &Needed::All, &Meta::new(state, "lb512".into(), Judge::Guest))
        .unwrap();
    let to = tempfile::tempdir().unwrap();
    let unpacked = Bundle::open(&path).unwrap().unpack(to.path()).unwrap();
    let plain = |event: Event| match event {
        // Where the data is kept is the new file's own business.
        Event::Submit(mut submit) => {
            if let Op::Write { payload, .. } = &mut submit.op {
                payload.position = 0;
            }
            Event::Submit(submit)
        }
        other => other,
    };
    let plain = |events: Vec<(Seq, Event)>| -> Vec<(Seq, Event)> {
        events.into_iter().map(|(seq, event)| (seq, plain(event))).collect()
    };
    let mut before = plain(events(&reader));
    assert_eq!(before.pop().unwrap().0, Seq(last.0 + 1));
    assert_eq!(plain(events(&unpacked.reader)), before);
    assert_eq!(unpacked.reader.not_executed().unwrap(), reader.not_executed().unwrap());
    assert_eq!(unpacked.reader.not_executed().unwrap().len(), 1);
}

#[test]
fn what_is_cut_short_damaged_or_foreign_is_refused_and_nothing_is_written() {
    let recorded = Recorded::some(512).end();
    let whole = std::fs::read(packed(&recorded, &Needed::All)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.tornblk");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Bundle::open(&path)
    };
    assert!(open(&whole).is_ok());
    for len in [9, 51, 52, whole.len() / 2, whole.len() - 1] {
        says(open(&whole[..len]), "was cut short: it has ");
    }
    says(open(b""), "is no bundle");
    says(open(b"TORNBLK\n..."), "is no bundle");
    // Every bit counts, what stands in the head too.
    for at in (20..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        says(open(&bytes), "does not fit its checksum");
    }
    let mut bytes = whole.clone();
    bytes[8] = 9;
    says(open(&bytes), "is a bundle of format 9, and this program knows 2 and 3");
    bytes = whole.clone();
    bytes[12] ^= 1;
    assert!(open(&bytes).is_err());
    says(Bundle::open(&dir.path().join("nosuch")), "cannot open the bundle");
    assert_eq!(list(dir.path()), ["b.tornblk"]);
}

#[test]
fn rules_of_another_version_are_refused() {
    let recorded = Recorded::some(512).end();
    let (_, reader) = read(&recorded);
    let path = recorded.dir.path().join("f.tornblk");
    let mut meta = Meta::new(name(&recorded), "lb512".into(), Judge::InPlace);
    (meta.checker, meta.tornblk) = (77, "9.9.9".into());
    pack(&path, &reader, None, &Needed::All, &meta).unwrap();
    says(Bundle::open(&path), "made by tornblk 9.9.9, which judges by other rules (77, here 2)");
}

#[test]
fn no_bundle_is_made_of_what_is_not_there_or_changed() {
    let recorded = Recorded::some(512).end();
    let (_, reader) = read(&recorded);
    let path = recorded.dir.path().join("f.tornblk");
    let make = |state: &str| {
        let meta = Meta::new(StateName(state.into()), "lb512".into(), Judge::InPlace);
        pack(&path, &reader, None, &Needed::All, &meta)
    };
    says(make("nonsense"), "is no state");
    says(make("lb512/p999:all"), "999");
    says(make("lb512/p5:all,-w4000"), "4000");
    std::fs::write(recorded.base(), vec![1; CAPACITY as usize]).unwrap();
    says(make("lb512/p5:all"), "is not the one that was recorded on");
    assert_eq!(list(recorded.dir.path()), ["base.img", "disk.recording"]);
}

#[test]
fn what_the_recording_is_of_is_in_it_though_the_crash_point_lies_before_that() {
    let mut recorded = Recorded::new(512);
    let first = recorded.write(8192, &[1; 4096]);
    let at = recorded.complete(first);
    let workload = recorded.mark("1 {}");
    let says = "tornblk-subject 1 1/1 {}";
    let subject = recorded.mark(says);
    recorded.write(65536, &[2; 4096]);
    let recorded = recorded.end();
    let reader = Arc::new(Reader::open(&recorded.path()).unwrap());
    let path = recorded.dir.path().join("early.tornblk");
    let state = StateName(format!("lb512/p{at}:none"));
    let meta = Meta::new(state, "lb512".into(), Judge::InPlace);
    pack(&path, &reader, None, &Needed::All, &meta).unwrap();
    let to = tempfile::tempdir().unwrap();
    let unpacked = Bundle::open(&path).unwrap().unpack(to.path()).unwrap();
    let events = events(&unpacked.reader);
    assert!(events.contains(&(subject, Event::Mark(Mark { name: says.into() }))), "{events:?}");
    assert!(!events.iter().any(|(seq, event)| {
        *seq == workload && *event == Event::Mark(Mark { name: "1 {}".into() })
    }));
    let written = |(_, event): &&(Seq, Event)| matches!(event, Event::Submit(_));
    assert_eq!(events.iter().filter(written).count(), 1);
}

#[test]
fn flushes_of_one_disk_of_several_come_back_and_have_a_format_of_their_own() {
    let format = |path: &Path| std::fs::read(path).unwrap()[8];
    let alone = Recorded::some(512).end();
    assert_eq!(format(&packed(&alone, &Needed::All)), 2);
    let mut recorded = Recorded::some(512);
    let flush = recorded.submit(Op::Flush { offset: 4096, len: 8192 });
    recorded.complete(flush);
    let recorded = recorded.end();
    let path = packed(&recorded, &Needed::All);
    assert_eq!(format(&path), 3);
    let to = tempfile::tempdir().unwrap();
    let unpacked = Bundle::open(&path).unwrap().unpack(to.path()).unwrap();
    // Where the data of writes lie is the new recording's own business.
    let flushes = |reader: &Reader| {
        let mut all = events(reader);
        all.retain(|(_, e)| matches!(e, Event::Submit(s) if matches!(s.op, Op::Flush { .. })));
        all
    };
    assert_eq!(flushes(&unpacked.reader).len(), 2);
    assert_eq!(flushes(&unpacked.reader), flushes(&read(&recorded).1));
}

//! The recording through its public face: what is appended comes back, whatever happens between.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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

    fn new_recording(&self, lb_size: u32) -> NewRecording {
        let base = BaseImage::identify(&self.dir.path().join("base.img")).unwrap();
        let disk = Disk { capacity: 256 << 10, lb_size };
        let options = serde_json::json!({"serial": "x", "seed": 7});
        NewRecording { segment_size: 64 << 10, ..NewRecording::new(disk, base, options) }
    }

    fn create(&self) -> Writer {
        Writer::create(&self.path(), self.new_recording(512)).unwrap()
    }
}

fn events(path: &Path) -> Vec<(Seq, Event)> {
    Reader::open(path).unwrap().events().collect::<Result<_, _>>().unwrap()
}

fn submit(op: Op) -> Event {
    Event::Submit(Submit { queue: 1, position: 2, head: 3, ioprio: 4, op })
}

fn write(writer: &Writer, offset: u64, data: &[u8]) -> Result<Seq, RecordingError> {
    let payload = writer.payload(data)?;
    let len = data.len() as u64;
    writer.append(&submit(Op::Write { offset, len, fua: false, atomic: false, payload }))
}

/// Of a finished payload, or none at all.
fn bytes(writer: &Writer, position: u64, len: usize) -> Result<Vec<u8>, RecordingError> {
    // SAFETY: nobody writes meanwhile.
    unsafe { writer.with_bytes(position, len, <[u8]>::to_vec) }
}

fn failed(request: Seq) -> Completion {
    Completion { status: Status::IoErr, executed: false, ..Completion::ok(request) }
}

fn mark(name: impl Into<String>) -> Event {
    Event::Mark(Mark { name: name.into() })
}

fn any_segments() -> impl Strategy<Value = Vec<Segment>> {
    let segment = (0u64..512, 0u64..64, any::<bool>()).prop_map(|(o, l, unmap)| Segment {
        offset: o * 512,
        len: l * 512,
        unmap,
    });
    prop::collection::vec(segment, 0..6)
}

fn any_event() -> impl Strategy<Value = Event> {
    let place = (any::<u64>(), any::<u64>());
    let op = prop_oneof![
        place.prop_map(|(offset, len)| Op::Read { offset, len }),
        (place, any::<bool>(), any::<bool>(), any::<u64>(), any::<u32>()).prop_map(
            |((offset, len), fua, atomic, position, crc)| Op::Write {
                offset,
                len,
                fua,
                atomic,
                payload: Payload { position, crc }
            }
        ),
        Just(Op::FLUSH),
        place.prop_map(|(offset, len)| Op::Flush { offset, len }),
        any_segments().prop_map(|segments| Op::Discard { segments }),
        any_segments().prop_map(|segments| Op::WriteZeroes { segments }),
    ];
    let status = prop_oneof![Just(Status::Ok), Just(Status::IoErr), Just(Status::Unsupp)];
    let cause = prop_oneof![
        Just(ResetCause::Device),
        Just(ResetCause::QueueStop),
        Just(ResetCause::Reconnect),
        Just(ResetCause::Restart),
        Just(ResetCause::PowerCut),
    ];
    prop_oneof![
        (any::<u16>(), any::<u16>()).prop_map(|(queue, index)| Event::Visible { queue, index }),
        (any::<[u16; 4]>(), op).prop_map(|([queue, position, head, ioprio], op)| {
            Event::Submit(Submit { queue, position, head, ioprio, op })
        }),
        (any::<u64>(), status)
            .prop_map(|(request, status)| Event::Complete { request: Seq(request), status }),
        // One letter of up to three bytes: names on both sides of what a slot holds.
        (prop::sample::select(vec!["a", "é", "€"]), 0usize..60)
            .prop_map(|(c, n)| mark(c.repeat(n))),
        any::<bool>().prop_map(|on| Event::SetWriteback { on }),
        any::<[bool; 4]>().prop_map(|[flush_offered, flush, config_wce, writeback]| {
            Event::Negotiate(Negotiation { flush_offered, flush, config_wce, writeback })
        }),
        (cause, any::<Option<u16>>()).prop_map(|(cause, queue)| Event::Reset { cause, queue }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_event_comes_back_in_order(
        first in prop::collection::vec(any_event(), 0..80),
        second in prop::collection::vec(any_event(), 0..80),
    ) {
        let place = Place::new();
        let mut expected = Vec::new();
        let writer = place.create();
        for event in first {
            expected.push((writer.append(&event).unwrap(), event));
        }
        drop(writer);
        // A write's payload may be anywhere in these events: too far away to go on after.
        let far = expected.iter().any(|(_, e)| {
            matches!(e, Event::Submit(Submit { op: Op::Write { .. }, .. }))
        });
        if !far {
            let writer = Writer::open(&place.path()).unwrap();
            let restart = Event::Reset { cause: ResetCause::Restart, queue: None };
            expected.push((Seq(expected.len() as u64), restart));
            for event in second {
                expected.push((writer.append(&event).unwrap(), event));
            }
        }
        prop_assert!(expected.iter().enumerate().all(|(i, (seq, _))| seq.0 == i as u64));
        prop_assert_eq!(&events(&place.path()), &expected);
        let reader = Reader::open(&place.path()).unwrap();
        for (seq, event) in expected {
            let single = reader.event(seq);
            if matches!(event, Event::Visible { .. }) {
                prop_assert!(single.is_err());
            } else {
                prop_assert_eq!(single.unwrap(), event);
            }
        }
    }

    #[test]
    fn what_became_visible_comes_before_its_completion(
        visible in prop::collection::vec((any::<u16>(), any::<u16>()), 0..13),
    ) {
        let place = Place::new();
        let writer = place.create();
        let request = writer.append(&submit(Op::FLUSH)).unwrap();
        let end = writer.complete(&visible, Completion::ok(request)).unwrap();
        let events = events(&place.path());
        let seen: Vec<(u16, u16)> = events[1..events.len() - 1]
            .iter()
            .map(|(seq, event)| match event {
                Event::Visible { queue, index } if *seq <= end => (*queue, *index),
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert_eq!(seen, visible);
        let last = (end, Event::Complete { request, status: Status::Ok });
        prop_assert_eq!(events.last(), Some(&last));
        prop_assert!(events.is_sorted_by_key(|(seq, _)| *seq));
    }
}

#[test]
fn the_header_says_what_it_was_given() {
    let place = Place::new();
    let new = place.new_recording(4096);
    let writer = Writer::create(&place.path(), new.clone()).unwrap();
    let reader = Reader::open(&place.path()).unwrap();
    assert_eq!(reader.header(), writer.header());
    assert_eq!(reader.header().disk, new.disk);
    assert_eq!(reader.header().base, new.base);
    assert_eq!(reader.header().options, new.options);
    let info = reader.info().unwrap();
    assert_eq!((info.events, info.last, info.holes), (0, None, 0));
}

#[test]
fn payload_of_any_length_comes_back_aligned_and_verified() {
    let place = Place::new();
    let writer = Writer::create(&place.path(), place.new_recording(4096)).unwrap();
    let mut kept = Vec::new();
    // From one byte to several segments at once, in no order.
    for (i, len) in [1, 4096, 70_000, 512, 60 << 10, 61_440, 200_000, 4096, 8192].iter().enumerate()
    {
        let data: Vec<u8> = (0..*len).map(|n| (n * 7 + i) as u8).collect();
        let payload = writer.payload(&data).unwrap();
        assert!(payload.position.is_multiple_of(4096), "{payload:?}");
        kept.push((payload, data));
    }
    let reader = Reader::open(&place.path()).unwrap();
    for (payload, data) in &kept {
        assert_eq!(&reader.payload(payload, data.len()).unwrap(), data);
        let same = bytes(&writer, payload.position, data.len()).unwrap() == *data;
        assert!(same);
    }
    let wrong = Payload { crc: !kept[0].0.crc, ..kept[0].0 };
    assert!(matches!(reader.payload(&wrong, 1), Err(RecordingError::Corrupt { .. })));
    let none = Payload::default();
    assert!(matches!(reader.payload(&none, 1), Err(RecordingError::NoPayload { .. })));
}

#[test]
fn many_threads_have_one_order_and_lose_nothing() {
    const THREADS: u16 = 8;
    const EACH: u16 = 600;
    let place = Place::new();
    let writer = place.create();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS)
            .map(|queue| {
                let writer = &writer;
                s.spawn(move || {
                    let mut before = None;
                    for position in 0..EACH {
                        let data = [queue as u8 ^ position as u8; 1024];
                        let payload = writer.payload(&data).unwrap();
                        let op =
                            Op::Write { offset: 0, len: 1024, fua: false, atomic: false, payload };
                        let submit = Submit { queue, position, head: 0, ioprio: 0, op };
                        let seq = writer.append(&Event::Submit(submit)).unwrap();
                        assert!(Some(seq) > before, "a thread's own events are in its order");
                        before = Some(writer.complete(&[], Completion::ok(seq)).unwrap());
                        assert!(before > Some(seq));
                    }
                })
            })
            .collect();
        // A reader beside them never sees damage.
        s.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Reader::open(&place.path()).unwrap().verify().unwrap();
                let events = Reader::open(&place.path()).unwrap();
                assert!(events.events().all(|e| e.is_ok()));
            }
        });
        let ended: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let all = events(&place.path());
    assert_eq!(all.len(), usize::from(THREADS) * usize::from(EACH) * 2);
    assert!(all.iter().enumerate().all(|(i, (seq, _))| seq.0 == i as u64), "no hole");
    let mut next = [0; THREADS as usize];
    let reader = Reader::open(&place.path()).unwrap();
    for (_, event) in &all {
        if let Event::Submit(Submit { queue, position, op: Op::Write { payload, .. }, .. }) = event
        {
            assert_eq!(*position, next[usize::from(*queue)]);
            next[usize::from(*queue)] += 1;
            let data = reader.payload(payload, 1024).unwrap();
            assert_eq!(data, [*queue as u8 ^ *position as u8; 1024]);
        }
    }
    assert_eq!(next, [EACH; THREADS as usize]);
    assert_eq!(reader.verify().unwrap().writes, u64::from(THREADS) * u64::from(EACH));
}

#[test]
fn the_power_cut_lies_after_one_event_for_all_threads() {
    for round in 0..20 {
        let place = Place::new();
        let writer = place.create();
        let cut = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(|| {
                        let mut last = None;
                        loop {
                            match writer.append(&submit(Op::FLUSH)) {
                                Ok(seq) => last = Some(seq),
                                Err(RecordingError::Frozen) => return last,
                                Err(e) => panic!("{e}"),
                            }
                        }
                    })
                })
                .collect();
            while writer.events() < 50 * round + 1 {
                std::thread::yield_now();
            }
            let cut = if round % 2 == 0 {
                writer.freeze().unwrap()
            } else {
                writer.append_last(&mark("last")).unwrap()
            };
            // All up to the cut are there at once, not only when the threads have ended.
            assert_eq!(events(&place.path()).len() as u64, cut.0 + 1);
            for thread in threads {
                assert!(thread.join().unwrap() <= Some(cut));
            }
            cut
        });
        assert_eq!(writer.freeze(), Some(cut), "once cut, it stays");
        assert_eq!(writer.frozen(), Some(Some(cut)));
        assert_eq!(writer.events(), cut.0 + 1);
        let all = events(&place.path());
        assert_eq!(all.len() as u64, cut.0 + 1);
        if round % 2 == 1 {
            assert_eq!(all.last().unwrap().1, mark("last"));
        }
        writer.thaw().unwrap();
        assert!(!writer.is_frozen());
        assert_eq!(writer.append(&mark("after")).unwrap(), Seq(cut.0 + 2));
        let power = Event::Reset { cause: ResetCause::PowerCut, queue: None };
        assert_eq!(events(&place.path())[cut.0 as usize + 1], (Seq(cut.0 + 1), power));
    }
}

#[test]
fn a_power_cut_is_put_on_record_while_the_power_stays_off() {
    let power = Event::Reset { cause: ResetCause::PowerCut, queue: None };
    // Slots are given back in grains of 64 KiB when the writer ends: also right before the cut's.
    for before in (0..4).chain(1000..1030) {
        let place = Place::new();
        let writer = place.create();
        writer.note_cut().unwrap();
        for n in 0..before {
            writer.append(&mark(format!("m{n}"))).unwrap();
        }
        let cut = writer.freeze();
        for _ in 0..2 {
            writer.note_cut().unwrap();
            assert_eq!((writer.frozen(), writer.events()), (Some(cut), before));
            assert!(matches!(writer.append(&mark("late")), Err(RecordingError::Frozen)));
            let all = events(&place.path());
            assert_eq!(all.len() as u64, before + 1);
            assert_eq!(all.last().unwrap(), &(Seq(before), power.clone()));
        }
        if before % 2 == 0 {
            writer.thaw().unwrap();
            assert_eq!(writer.append(&mark("after")).unwrap(), Seq(before + 1));
            assert_eq!(writer.freeze(), Some(Seq(before + 1)), "and once more");
            writer.note_cut().unwrap();
            drop(writer);
            let all = events(&place.path());
            assert_eq!(all[before as usize + 2..], [(Seq(before + 2), power.clone())]);
        } else {
            drop(writer);
            assert_eq!(events(&place.path()).last().unwrap(), &(Seq(before), power.clone()));
        }
    }
}

#[test]
fn freezing_before_the_first_event_leaves_none() {
    let place = Place::new();
    let writer = place.create();
    assert_eq!(writer.freeze(), None);
    assert!(writer.is_frozen());
    assert!(matches!(writer.append(&mark("x")), Err(RecordingError::Frozen)));
    writer.thaw().unwrap();
    assert_eq!(events(&place.path()).len(), 1);
}

#[test]
fn a_hole_is_skipped_and_order_goes_on_after_the_last_committed_slot() {
    let place = Place::new();
    let writer = place.create();
    for i in 0..5 {
        writer.append(&mark(format!("m{i}"))).unwrap();
    }
    drop(writer);
    // As if the process had died between taking slots 2 and 4 and committing them: the first word
    // is 0, the others may hold anything.
    let file = OpenOptions::new().write(true).open(place.path()).unwrap();
    for slot in [2, 4] {
        file.write_all_at(&[0; 8], (64 << 10) + 4096 + slot * 48).unwrap();
    }
    let names = |n: &[u64]| n.iter().map(|i| (Seq(*i), mark(format!("m{i}")))).collect::<Vec<_>>();
    assert_eq!(events(&place.path()), names(&[0, 1, 3]));
    let reader = Reader::open(&place.path()).unwrap();
    assert_eq!(reader.info().unwrap().holes, 1);
    assert!(matches!(reader.event(Seq(2)), Err(RecordingError::NoSuchEvent { seq: 2, .. })));

    let writer = Writer::open(&place.path()).unwrap();
    assert_eq!(writer.append(&mark("new")).unwrap(), Seq(5));
    let mut expected = names(&[0, 1, 3]);
    expected.push((Seq(4), Event::Reset { cause: ResetCause::Restart, queue: None }));
    expected.push((Seq(5), mark("new")));
    assert_eq!(events(&place.path()), expected);
    assert_eq!(Reader::open(&place.path()).unwrap().info().unwrap().counts.restarts, 1);
}

#[test]
fn payload_is_not_overwritten_after_a_restart() {
    let place = Place::new();
    let mut kept = Vec::new();
    for round in 0..8u8 {
        let writer = if round == 0 { place.create() } else { Writer::open(&place.path()).unwrap() };
        for i in 0..6u8 {
            let len = if i == 3 { 100_000 } else { 9_000 * usize::from(i + 1) / 512 * 512 };
            let data = vec![round * 16 + i; len.next_multiple_of(512)];
            kept.push((write(&writer, 0, &data).unwrap(), data));
        }
        // Taken and never used: given out again, or not, but never twice.
        writer.reserve(70_000).unwrap();
    }
    let reader = Reader::open(&place.path()).unwrap();
    for (seq, data) in kept {
        let Event::Submit(Submit { op: Op::Write { payload, .. }, .. }) =
            reader.event(seq).unwrap()
        else {
            panic!("event {seq} is no write");
        };
        assert_eq!(reader.payload(&payload, data.len()).unwrap(), data);
    }
    reader.verify().unwrap();
}

/// A recording with a bit of everything, as small as possible.
fn small(place: &Place) -> Vec<(Seq, Event)> {
    let writer = place.create();
    writer
        .append(&Event::Negotiate(Negotiation {
            flush_offered: true,
            flush: true,
            config_wce: false,
            writeback: true,
        }))
        .unwrap();
    let seq = write(&writer, 512, &[0x5a; 1024]).unwrap();
    writer.complete(&[(0, 1), (1, 1)], Completion::ok(seq)).unwrap();
    writer.append(&mark("a mark with a name that does not fit in its slot")).unwrap();
    let segments = vec![
        Segment { offset: 0, len: 512, unmap: false },
        Segment { offset: 1024, len: 512, unmap: true },
    ];
    let seq = writer.append(&submit(Op::Discard { segments })).unwrap();
    writer.complete(&[], failed(seq)).unwrap();
    drop(writer);
    events(&place.path())
}

/// Everything a reader can get from a file.
type All = (Header, Vec<(Seq, Event)>, Vec<Vec<u8>>);

fn all_of(path: &Path) -> Result<All, RecordingError> {
    let reader = Reader::open(path)?;
    reader.verify()?;
    reader.info()?;
    let events = reader.events().collect::<Result<Vec<_>, _>>()?;
    let mut data = Vec::new();
    for (_, event) in &events {
        if let Event::Submit(Submit { op: Op::Write { offset, len, payload, .. }, .. }) = event {
            let len = reader.payload_len(*offset, *len) as usize;
            data.push(reader.payload(payload, len)?);
        }
    }
    Ok((reader.header().clone(), events, data))
}

#[test]
fn damage_at_any_byte_is_noticed_or_harmless() {
    let place = Place::new();
    small(&place);
    let path = place.path();
    let before = all_of(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
    assert!(used.len() > 1000, "the recording holds something");
    let mut noticed = 0;
    // Every byte that holds something, those around it, and a sample of the empty rest.
    let places = (0..bytes.len()).filter(|i| {
        i % 4096 < 8 || bytes[i.saturating_sub(8)..(i + 8).min(bytes.len())] != [0; 16]
    });
    for i in places {
        for value in [bytes[i] ^ 1, bytes[i] ^ 0x80, !bytes[i]] {
            file.write_all_at(&[value], i as u64).unwrap();
            match all_of(&path) {
                Err(e) => {
                    noticed += 1;
                    assert!(e.to_string().contains("a.rec"), "{e}");
                }
                Ok(now) => assert_eq!(now, before, "byte {i} as {value:#x} passed unnoticed"),
            }
        }
        file.write_all_at(&bytes[i..=i], i as u64).unwrap();
    }
    assert!(noticed > used.len(), "only {noticed} noticed");
    assert_eq!(all_of(&path).unwrap(), before);
}

#[test]
fn a_file_cut_short_anywhere_is_refused_with_a_sentence() {
    let place = Place::new();
    let before = small(&place);
    let path = place.path();
    let bytes = std::fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut lengths: Vec<usize> = (0..64).chain((64..bytes.len()).step_by(997)).collect();
    lengths.extend([(64 << 10) - 1, 64 << 10, (64 << 10) + 1, 128 << 10, bytes.len() - 1]);
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    for len in lengths {
        file.set_len(len as u64).unwrap();
        let e = Reader::open(&path).unwrap_err();
        let known = matches!(e, RecordingError::Truncated { .. } | RecordingError::Foreign { .. });
        assert!(known, "at {len}: {e}");
        let e = Writer::open(&path).unwrap_err();
        assert!(e.to_string().contains("a.rec"), "{e}");
    }
    // A tail beyond the segments that count is a growth that was not finished: nothing is lost.
    file.write_all_at(&bytes, 0).unwrap();
    file.set_len(bytes.len() as u64 + 5000).unwrap();
    assert_eq!(events(&path), before);
    let writer = Writer::open(&path).unwrap();
    write(&writer, 0, &[1; 60 << 10]).unwrap();
    drop(writer);
    Reader::open(&path).unwrap().verify().unwrap();
}

#[test]
fn foreign_files_and_other_versions_are_told_apart() {
    let place = Place::new();
    small(&place);
    let path = place.path();
    let other = place.dir.path().join("other");
    for content in [&b""[..], b"QFI\xfb", &[0; 100_000], b"TORNBLX\n"] {
        std::fs::write(&other, content).unwrap();
        let e = Reader::open(&other).unwrap_err();
        assert!(matches!(e, RecordingError::Foreign { .. }), "{e}");
    }
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&9u32.to_le_bytes(), 8).unwrap();
    let e = Reader::open(&path).unwrap_err();
    assert!(matches!(e, RecordingError::Version { found: 9, known: 1, .. }), "{e}");
    let e = Reader::open(&place.dir.path().join("none")).unwrap_err();
    assert!(e.to_string().contains("cannot open the recording"), "{e}");
}

#[test]
fn a_second_writer_and_an_existing_file_are_refused() {
    let place = Place::new();
    let writer = place.create();
    let e = Writer::open(&place.path()).unwrap_err();
    assert!(matches!(e, RecordingError::Busy { .. }), "{e}");
    let e = Writer::create(&place.path(), place.new_recording(512)).unwrap_err();
    assert!(matches!(e, RecordingError::Exists { .. }), "{e}");
    drop(writer);
    Writer::open(&place.path()).unwrap();
}

#[test]
fn impossible_input_is_refused() {
    let place = Place::new();
    for bad in [0, 1, 4096, (64 << 10) + 512] {
        let new = NewRecording { segment_size: bad, ..place.new_recording(512) };
        let e = Writer::create(&place.path(), new).unwrap_err();
        assert!(matches!(e, RecordingError::Invalid(_)), "{e}");
        assert!(!place.path().exists());
    }
    for bad in [0, 1, 256, 513, 1536] {
        let e = Writer::create(&place.path(), place.new_recording(bad)).unwrap_err();
        assert!(matches!(e, RecordingError::Invalid(_)), "{e}");
    }
    let writer = place.create();
    writer.append(&mark("x".repeat(MARK_MAX))).unwrap();
    let e = writer.append(&mark("x".repeat(MARK_MAX + 1))).unwrap_err();
    assert!(matches!(e, RecordingError::Invalid(_)), "{e}");
    assert!(bytes(&writer, 0, 16).is_err());
    assert!(bytes(&writer, u64::MAX - 4, 16).is_err());
    assert_eq!(events(&place.path()).len(), 1);
}

#[test]
fn a_base_image_that_changed_since_is_noticed() {
    let place = Place::new();
    let image = place.dir.path().join("base.img");
    let base = BaseImage::identify(&image).unwrap();
    base.check(None, Trust::Unchanged).unwrap();
    let copy = place.dir.path().join("copy.img");
    std::fs::copy(&image, &copy).unwrap();
    base.check(Some(&copy), Trust::SameContent).unwrap();

    let changed = |path: Option<&Path>, trust, how: &str| {
        let e = base.check(path, trust).unwrap_err();
        assert!(matches!(&e, RecordingError::BaseChanged { how: h, .. } if h.contains(how)), "{e}");
    };
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    changed(None, Trust::Unchanged, "modified");
    base.check(None, Trust::SameContent).unwrap();
    file.write_all_at(b"x", 70).unwrap();
    changed(None, Trust::SameContent, "content");
    file.set_len(1000).unwrap();
    changed(None, Trust::SameContent, "1000 bytes");
    std::fs::remove_file(&image).unwrap();
    assert!(matches!(base.check(None, Trust::Unchanged), Err(RecordingError::Io { .. })));
}

#[test]
fn a_file_cut_short_beneath_its_writer_poisons_it_and_ends_nothing() {
    let place = Place::new();
    let writer = place.create();
    let seq = write(&writer, 0, &[1; 512]).unwrap();
    writer.complete(&[], Completion::ok(seq)).unwrap();
    let other = Place::new();
    let unharmed = other.create();

    OpenOptions::new().write(true).open(place.path()).unwrap().set_len(0).unwrap();
    let e = write(&writer, 0, &[2; 512]).unwrap_err();
    assert!(matches!(e, RecordingError::Poisoned { .. }), "{e}");
    assert!(matches!(writer.append(&mark("x")), Err(RecordingError::Poisoned { .. })));
    assert!(bytes(&writer, (128 << 10) + 4096, 512).is_err());
    assert!(Reader::open(&place.path()).is_err());

    write(&unharmed, 0, &[3; 512]).unwrap();
    Reader::open(&other.path()).unwrap().verify().unwrap();
}

#[test]
fn info_counts_what_happened() {
    let place = Place::new();
    let writer = Writer::create(&place.path(), place.new_recording(4096)).unwrap();
    let ops = [
        Op::Read { offset: 0, len: 4096 },
        Op::FLUSH,
        Op::Flush { offset: 0, len: 4096 },
        Op::Discard { segments: vec![] },
        Op::WriteZeroes { segments: vec![Segment { offset: 0, len: 4096, unmap: true }] },
    ];
    for op in ops {
        let seq = writer.append(&submit(op)).unwrap();
        writer.complete(&[(0, 1)], Completion::ok(seq)).unwrap();
    }
    // A part of one block: the payload holds all of it.
    let payload = writer.payload(&[1; 4096]).unwrap();
    let op = Op::Write { offset: 512, len: 1024, fua: true, atomic: false, payload };
    let seq = writer.append(&submit(op)).unwrap();
    writer.complete(&[], failed(seq)).unwrap();
    write(&writer, 4096, &[2; 8192]).unwrap();
    writer.append(&mark("here")).unwrap();
    writer.append(&Event::SetWriteback { on: true }).unwrap();
    writer.append(&Event::Reset { cause: ResetCause::Device, queue: None }).unwrap();
    let info = Reader::open(&place.path()).unwrap().info().unwrap();
    let counts = Counts {
        at_once: 0,
        reads: 1,
        writes: 2,
        sub_block: 1,
        flushes: 2,
        flushes_of_one: 1,
        discards: 1,
        write_zeroes: 1,
        failed: 1,
        unanswered: 1,
        marks: 1,
        visible: 5,
        negotiations: 0,
        writeback_changes: 1,
        resets: 1,
        restarts: 0,
        power_cuts: 0,
    };
    assert_eq!(info.counts, counts);
    assert_eq!((info.events, info.holes), (16, 0));
    // Only of the one that failed is it said that it was not executed.
    let reader = Reader::open(&place.path()).unwrap();
    assert_eq!(reader.not_executed().unwrap().into_iter().collect::<Vec<_>>(), [seq]);
    assert_eq!(info.payload_bytes, 4096 + 8192);
    assert_eq!(info.marks, [(Seq(13), Mark { name: "here".into() })]);
    assert_eq!(info.file_bytes, File::open(place.path()).unwrap().metadata().unwrap().len());
}

/// What the recorder puts into one slot is what the crash model takes apart again.
#[test]
fn the_crash_model_takes_events_that_share_a_slot() {
    use tornblk_model::crash::{History, Stable};
    let place = Place::new();
    let writer = place.create();
    let put = |position, op| {
        let submit = Submit { queue: 0, position, head: position, ioprio: 0, op };
        writer.append(&Event::Submit(submit)).unwrap()
    };
    let payload = writer.payload(&[1; 512]).unwrap();
    let op = Op::Write { offset: 0, len: 512, fua: false, atomic: false, payload };
    let write = put(0, op);
    // The flush at position 1 was there before the write completed: it does not cover it.
    writer.complete(&[(0, 2)], Completion::ok(write)).unwrap();
    let early = put(1, Op::FLUSH);
    writer.complete(&[(0, 2)], Completion::ok(early)).unwrap();
    let late = put(2, Op::FLUSH);
    let end = writer.complete(&[(0, 3)], Completion::ok(late)).unwrap();
    let reader = Reader::open(&place.path()).unwrap();
    let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
    assert_eq!(events.len(), 9);
    let history = History::new(reader.header().disk.clone(), events.clone()).unwrap();
    let stable = history.request(write).unwrap().stable();
    assert_eq!(stable, Some((end, Stable::Flushed { flush: late })));
    // The crash points around each flush, each once.
    assert_eq!(history.points(false), [Seq(2), Seq(3), Seq(4), Seq(5)]);
    // Anything else at one place is still refused.
    let twice = [events[0].clone(), (events[0].0, mark("x"))];
    assert!(History::new(reader.header().disk.clone(), twice).is_err());
}

#[test]
fn a_state_is_hashed_and_exported_as_it_reads() {
    use sha2::{Digest, Sha256};
    use tornblk_model::crash::{Content, Source};
    let place = Place::new();
    let writer = place.create();
    let seq = write(&writer, 1024, &[7; 4096]).unwrap();
    let blocks = (2..6).map(|b| (b, Source::Written { request: seq, block: b as u32 - 2 }));
    let content = Content { blocks: blocks.chain([(9, Source::Zeroes)]).collect() };
    let reader = std::sync::Arc::new(Reader::open(&place.path()).unwrap());
    let state = StateReader::new(reader, None, Trust::Unchanged, content).unwrap();
    let mut expected = vec![0xb5; 256 << 10];
    expected[1024..3072].fill(7);
    expected[4608..5120].fill(0);
    let hash: [u8; 32] = Sha256::digest(&expected).into();
    assert_eq!(state.sha256().unwrap(), hash);
    let out = place.dir.path().join("out.img");
    state.export(&out).unwrap();
    assert!(std::fs::read(&out).unwrap() == expected);

    // Not shown over an image that changed, and nothing half is left behind.
    let content = Content { blocks: [(0, Source::Written { request: Seq(5), block: 0 })].into() };
    let reader = std::sync::Arc::new(Reader::open(&place.path()).unwrap());
    let bad = StateReader::new(reader.clone(), None, Trust::Unchanged, content.clone()).unwrap();
    let none = place.dir.path().join("none.img");
    assert!(bad.export(&none).is_err());
    assert!(!none.exists());
    assert!(bad.sha256().is_err());
    std::fs::write(place.dir.path().join("base.img"), vec![0; 256 << 10]).unwrap();
    let e = StateReader::new(reader, None, Trust::SameContent, content).unwrap_err();
    assert!(matches!(e, RecordingError::BaseChanged { .. }), "{e}");
}

/// An export is sparse where the state is zero.
#[test]
fn an_export_takes_no_space_for_zeroes() {
    use std::os::unix::fs::MetadataExt;
    use tornblk_model::crash::{Content, Source};
    let place = Place::new();
    drop(place.create());
    let blocks = (8..512).map(|b| (b, Source::Zeroes)).collect();
    let reader = std::sync::Arc::new(Reader::open(&place.path()).unwrap());
    let state = StateReader::new(reader, None, Trust::Unchanged, Content { blocks }).unwrap();
    let out = place.dir.path().join("out.img");
    let exported = state.export(&out).unwrap();
    assert_eq!((exported.size, exported.data), (256 << 10, 4096));
    let meta = std::fs::metadata(&out).unwrap();
    assert_eq!(meta.len(), 256 << 10);
    assert!(meta.blocks() * 512 < 64 << 10, "{} bytes are taken", meta.blocks() * 512);
}

#[test]
fn a_closed_recording_is_as_large_as_what_it_holds() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let new = NewRecording { segment_size: 4 << 20, ..place.new_recording(512) };
    let writer = Writer::create(&place.path(), new).unwrap();
    let mut kept = Vec::new();
    for i in 0..10 {
        kept.push(write(&writer, 0, &[i; 8192]).unwrap());
    }
    let taken = || std::fs::metadata(place.path()).unwrap().blocks() * 512;
    let before = taken();
    assert!(before > 8 << 20, "{before}");
    drop(writer);
    assert!(taken() < 1 << 20, "{} bytes are taken", taken());
    assert_eq!(Reader::open(&place.path()).unwrap().verify().unwrap().writes, 10);
    // It can be gone on with, and space is met before anything is stored.
    let writer = Writer::open(&place.path()).unwrap();
    assert!(taken() >= before);
    write(&writer, 0, &[77; 8192]).unwrap();
    drop(writer);
    let reader = Reader::open(&place.path()).unwrap();
    assert_eq!(reader.verify().unwrap().writes, 11);
    for (i, seq) in kept.into_iter().enumerate() {
        let Event::Submit(Submit { op: Op::Write { payload, .. }, .. }) =
            reader.event(seq).unwrap()
        else {
            panic!("event {seq} is no write");
        };
        assert_eq!(reader.payload(&payload, 8192).unwrap(), [i as u8; 8192]);
    }
}

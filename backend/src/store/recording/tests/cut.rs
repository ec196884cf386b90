//! Power cuts, refusals, and what fails.

use super::*;

#[test]
fn from_the_cut_on_nothing_happens() {
    let place = Setup::new();
    let store = place.store(512);
    let mut queue = store.queue(0);
    ask(&mut *queue, write(0, 0, vec![1; 512])).unwrap();
    place.gate.tell(Point::Submit, 1, Verdict::Hold);
    place.gate.tell(Point::Complete, 2, Verdict::Hold);
    queue.submit(write(1, 512, vec![2; 512]));
    queue.submit(write(2, 1024, vec![3; 512]));
    assert_eq!(queue.in_flight(), 2);
    let cut = store.freeze();
    assert_eq!(cut, Seq(3));
    assert_eq!(store.freeze(), cut);
    place.gate.let_go();
    assert!(reap(&mut *queue).is_empty(), "what was in flight never completes");
    assert_eq!(queue.in_flight(), 0);
    queue.submit(read(4, 0, 512));
    queue.submit(write(5, 0, vec![4; 512]));
    queue.drain();
    assert!(reap(&mut *queue).is_empty());
    assert!(matches!(store.mark("late"), Err(RecordingError::Frozen)));
    store.negotiated(Negotiation {
        flush_offered: true,
        flush: true,
        config_wce: false,
        writeback: true,
    });
    assert_eq!(place.events().last().unwrap().0, cut);
    assert_eq!(place.gate.ended.load(Ordering::Relaxed), 3, "each request's end is told");
}

#[test]
fn the_gate_cuts_right_after_one_event() {
    for (position, point, expected) in
        [(1, Point::Submit, Seq(2)), (1, Point::Complete, Seq(3)), (2, Point::Complete, Seq(5))]
    {
        let place = Setup::new();
        let store = place.store(512);
        let mut queue = store.queue(0);
        *place.gate.cut.lock().unwrap() = Some((position, point));
        for n in 0..4u16 {
            queue.submit(write(n, u64::from(n) * 512, vec![0xc0; 512]));
        }
        let done = reap(&mut *queue);
        assert_eq!(done.len(), usize::from(position), "that one is not answered");
        assert_eq!(*place.gate.was_cut.lock().unwrap(), Some(expected));
        assert_eq!(store.freeze(), expected);
        assert_eq!(place.events().last().unwrap().0, expected);
        assert_eq!(queue.in_flight(), 0);
    }
}

#[test]
fn a_request_of_several_events_is_cut_after_its_last() {
    for (point, expected) in [(Point::Submit, Seq(2)), (Point::Complete, Seq(5))] {
        let place = Setup::new();
        let store = place.store(4096);
        let mut queue = store.queue(0);
        *place.gate.cut.lock().unwrap() = Some((1, point));
        // The end of a block, a whole one, and the start of the next.
        queue.submit(zeroes(1, 3584, 5120, false));
        assert!(reap(&mut *queue).is_empty());
        assert_eq!(*place.gate.was_cut.lock().unwrap(), Some(expected));
        assert_eq!(store.freeze(), expected);
        assert_eq!(place.events().last().unwrap().0, expected);
    }
}

#[test]
fn a_mark_can_be_the_last_event() {
    let place = Setup::new();
    let store = place.store(512);
    store.mark("one").unwrap();
    assert_eq!(store.mark_last("two").unwrap(), Seq(1));
    assert_eq!(store.freeze(), Seq(1));
    assert_eq!(place.reader().info().unwrap().marks.len(), 2);
}

#[test]
fn a_queue_that_drains_lets_its_requests_go_and_one_that_is_gone_forgets_them() {
    let place = Setup::new();
    let store = place.store(512);
    let mut queue = store.queue(0);
    place.gate.tell(Point::Submit, 1, Verdict::Hold);
    queue.submit(write(1, 0, vec![1; 512]));
    queue.drain();
    let done: Vec<Done> = reap(&mut *queue);
    assert!(done.len() == 1 && done[0].result.is_ok());
    assert_eq!(data(&done[0]), [1; 512]);
    // Unanswered: old or new from then on, and the same after the device was started again.
    queue.submit(write(1, 512, vec![2; 512]));
    store.reset(ResetCause::QueueStop, Some(0));
    drop(queue);
    let now = content(&store);
    drop(store);
    assert!(content(&place.reopen(512, DiscardReads::Zeroes)) == now);
    assert_eq!(place.gate.ended.load(Ordering::Relaxed), 2);
}

#[test]
fn a_read_only_disk_records_and_writes_nothing() {
    let place = Setup::new();
    drop(place.store(512));
    let options = RecordingOptions { read_only: true, ..options(DiscardReads::Zeroes) };
    let gate = Arc::new(AlwaysGo);
    let again = || {
        let (gate, options) = (gate.clone(), options.clone());
        let image = File::open(&place.image).unwrap();
        RecordingStore::reopen(&place.recording(), (&image, &place.image), 512, gate, options)
    };
    let store = free(again).unwrap();
    assert!(store.read_only());
    let mut queue = store.queue(0);
    for refused in [write(0, 0, vec![1; 512]), discard(0, 0, 512), zeroes(0, 0, 512, true)] {
        assert!(matches!(ask(&mut *queue, refused), Err(Failure::ReadOnly)));
    }
    assert_eq!(ask(&mut *queue, read(0, 0, 512)).unwrap(), place.bytes[..512]);
    assert!(ask(&mut *queue, flush(0)).is_ok());
}

#[test]
fn an_image_that_was_moved_is_read_where_it_is_and_not_where_it_was() {
    let place = Setup::new();
    let store = place.store(512);
    ask(&mut *store.queue(0), write(0, 512, vec![9; 512])).unwrap();
    let mut disk = place.bytes.clone();
    disk[512..1024].fill(9);
    drop(store);
    let moved = place.dir.path().join("moved.img");
    std::fs::rename(&place.image, &moved).unwrap();
    for other in [None, Some(vec![0xee; SIZE as usize])] {
        if let Some(other) = other {
            std::fs::write(&place.image, other).unwrap();
        }
        let image = File::open(&moved).unwrap();
        let again = || {
            let (gate, options) = (Arc::new(AlwaysGo), options(DiscardReads::Zeroes));
            RecordingStore::reopen(&place.recording(), (&image, &moved), 512, gate, options)
        };
        assert!(content(&free(again).unwrap()) == disk);
    }
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_with_a_sentence() {
    let place = Setup::new();
    let store = place.store(512);
    store.mark("x").unwrap();
    drop(store);
    let gate = || Arc::new(AlwaysGo) as Arc<dyn Gate>;
    let reopen = |image: &Path, lb_size| {
        let again = || {
            let options = options(DiscardReads::Zeroes);
            let file = File::open(image).unwrap();
            RecordingStore::reopen(&place.recording(), (&file, image), lb_size, gate(), options)
        };
        free(again).map(drop).unwrap_err().to_string()
    };
    assert!(reopen(&place.image, 4096).contains("--logical-block-size 512"));
    let other = place.dir.path().join("other.img");
    std::fs::write(&other, vec![1; SIZE as usize]).unwrap();
    assert!(reopen(&other, 512).contains("content differs"));
    let odd = place.dir.path().join("odd.img");
    std::fs::write(&odd, vec![1; 1000]).unwrap();
    let recording = place.dir.path().join("odd.rec");
    let e = RecordingStore::create(
        &recording,
        (&File::open(&odd).unwrap(), &odd),
        512,
        serde_json::Value::Null,
        gate(),
        options(DiscardReads::Zeroes),
    )
    .unwrap_err();
    assert!(e.to_string().contains("resize it to 1024"), "{e}");
    assert!(!recording.exists(), "nothing is left behind");
    // After a power cut there is no live disk.
    let writer = free(|| Writer::open(&place.recording())).unwrap();
    writer.freeze();
    writer.thaw().unwrap();
    drop(writer);
    assert!(reopen(&place.image, 512).contains("power was cut"));
}

#[test]
fn a_recording_that_fails_fails_requests_and_not_the_device() {
    let place = Setup::new();
    let store = place.store(512);
    let mut queue = store.queue(0);
    ask(&mut *queue, write(0, 0, vec![1; 512])).unwrap();
    File::options().write(true).open(place.recording()).unwrap().set_len(0).unwrap();
    assert!(matches!(ask(&mut *queue, write(1, 0, vec![2; 512])), Err(Failure::Io(_))));
    assert!(matches!(ask(&mut *queue, read(2, 0, 512)), Err(Failure::Io(_))));
    assert!(matches!(ask(&mut *queue, flush(3)), Err(Failure::Io(_))));
}

#[test]
fn sources_of_every_kind_are_shown() {
    let place = Setup::new();
    let store = place.store(512);
    let mut queue = store.queue(0);
    ask(&mut *queue, write(0, 0, pattern(2048, 0x31))).unwrap();
    let written = |block| Source::Written { request: Seq(0), block };
    let content = Content {
        blocks: [
            (0, written(3)),
            (1, written(1)),
            (2, written(2)),
            (3, Source::Zeroes),
            (4, Source::Garbage { seed: 1 }),
            (5, Source::Garbage { seed: 2 }),
            (6, Source::Flipped { request: Some(Seq(0)), block: 1, bit: 8 * 511 + 7 }),
            (7, Source::Flipped { request: None, block: 0, bit: 0 }),
            (9, Source::Base),
        ]
        .into(),
    };
    let all = place.bytes_of(content.clone());
    let data = pattern(2048, 0x31);
    assert_eq!(all[..512], data[1536..]);
    assert_eq!(all[512..1536], data[512..1536]);
    assert_eq!(all[1536..2048], [0; 512]);
    assert_ne!(all[2048..2560], all[2560..3072]);
    assert_eq!(all[3072..3583], data[512..1023]);
    assert_eq!(all[3583], data[1023] ^ 0x80);
    assert_eq!(all[3584], place.bytes[3584] ^ 1);
    assert_eq!(all[3585..], place.bytes[3585..]);

    // From any offset, any length: the same bytes.
    let state = StateReader::new(Arc::new(place.reader()), None, Trust::Unchanged, content.clone())
        .unwrap();
    for start in (0..5000).step_by(61) {
        for len in [0, 1, 7, 511, 512, 513, 3000] {
            let mut part = vec![0; len];
            state.read_at(start as u64, &mut part).unwrap();
            assert!(part == all[start..start + len], "{len} at {start}");
        }
    }
    assert!(state.read_at(SIZE, &mut [0]).is_err());
    assert!(state.read_at(u64::MAX, &mut [0]).is_err());

    let image = place.dir.path().join("state.img");
    let exported = state.export(&image).unwrap();
    assert!(std::fs::read(&image).unwrap() == all);
    assert_eq!(exported.size, SIZE);
    assert!(matches!(state.export(&image), Err(RecordingError::Exists { .. })));

    // Of another recording: an error, no panic.
    for source in [
        Source::Written { request: Seq(1), block: 0 },
        Source::Written { request: Seq(77), block: 0 },
        Source::Written { request: Seq(0), block: 4 },
        Source::Flipped { request: Some(Seq(0)), block: 9, bit: 0 },
    ] {
        let content = Content { blocks: [(0, source)].into() };
        let reader = Arc::new(place.reader());
        let state = StateReader::new(reader, None, Trust::Unchanged, content).unwrap();
        assert!(state.read_at(0, &mut [0; 512]).is_err(), "{source:?}");
    }
}

#[test]
fn a_queue_from_before_a_cut_stays_off_when_the_power_is_back() {
    let setup = Setup::new();
    let store = setup.store(512);
    let mut queue = store.queue(0);
    setup.gate.tell(Point::Complete, 1, Verdict::Hold);
    queue.submit(write(1, 0, vec![1; 512]));
    store.freeze();
    store.writer().thaw().unwrap();
    setup.gate.let_go();
    assert!(reap(&mut *queue).is_empty());
    queue.submit(write(2, 0, vec![1; 512]));
    assert!(reap(&mut *queue).is_empty());
    let events = setup.events();
    let last = Event::Reset { cause: ResetCause::PowerCut, queue: None };
    assert_eq!(events.last().map(|(_, e)| e), Some(&last));
}

/// A full disk: in a process of its own, since the limit is the process's.
#[test]
fn a_full_disk_fails_writes_and_not_the_device() {
    const CHILD: &str = "TORNBLK_TEST_FULL_DISK";
    if std::env::var_os(CHILD).is_none() {
        let name = "store::recording::tests::a_full_disk_fails_writes_and_not_the_device";
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let setup = Setup::new();
    let store = setup.store(512);
    let mut queue = store.queue(0);
    setup.gate.tell(Point::Complete, 1, Verdict::Hold);
    queue.submit(write(1, 0, vec![1; 4096]));
    let limit = getrlimit(Resource::Fsize);
    let size = File::open(setup.recording()).unwrap().metadata().unwrap().len();
    setrlimit(Resource::Fsize, Rlimit { current: Some(size), ..limit }).unwrap();
    let mut disk = setup.bytes.clone();
    disk[..4096].fill(1);
    let failed = loop {
        match ask(&mut *queue, write(2, 8192, vec![2; 8192])) {
            Ok(_) => disk[8192..16384].fill(2),
            Err(e) => break e,
        }
    };
    let full = |e: &Failure| matches!(e, Failure::Io(e) if e.kind() == io::ErrorKind::StorageFull);
    assert!(full(&failed), "{failed}");
    // What is out still ends well, and what needs no data goes on.
    setup.gate.let_go();
    let done = reap(&mut *queue);
    assert!(done.len() == 1 && done[0].result.is_ok());
    assert!(ask(&mut *queue, read(3, 0, SIZE as usize)).unwrap() == disk);
    ask(&mut *queue, zeroes(4, 0, 512, true)).unwrap();
    setrlimit(Resource::Fsize, limit).unwrap();
    ask(&mut *queue, write(5, 0, vec![5; 65536])).unwrap();
    drop((queue, store));
    assert!(content(&setup.reopen(512, DiscardReads::Zeroes)) == vec![5; 65536]);
}

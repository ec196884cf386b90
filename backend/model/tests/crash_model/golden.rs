//! States whose content is written down here: a name means the same bytes for ever, on every
//! machine. Where one of these fails, names that people kept have changed their meaning.

use tornblk_model::crash::{
    Clause, Fault, History, Mask, ModelError, Parsed, Profile, Source, StateName,
    discard_reads_zeroes,
};
use tornblk_model::event::{
    Disk, Event, Mark, Negotiation, Op, Payload, ResetCause, Segment, Seq, Status, Submit,
};

fn write(offset: u64, len: u64) -> Op {
    Op::Write { offset, len, fua: false, atomic: false, payload: Payload::default() }
}

fn submit(position: u16, op: Op) -> Event {
    Event::Submit(Submit { queue: 0, position, head: position, ioprio: 0, op })
}

fn done(request: u64) -> Event {
    Event::Complete { request: Seq(request), status: Status::Ok }
}

fn negotiated() -> Event {
    Event::Negotiate(Negotiation {
        flush_offered: true,
        flush: true,
        config_wce: false,
        writeback: true,
    })
}

fn discard(offset: u64, len: u64) -> Op {
    Op::Discard { segments: vec![Segment { offset, len, unmap: false }] }
}

/// 16 blocks of 512 bytes.
const DISK: Disk = Disk { capacity: 8192, lb_size: 512 };

fn history(events: Vec<Event>) -> History {
    History::new(DISK, (1..).map(Seq).zip(events)).unwrap()
}

/// A stable write, then a write, two concurrent overlapping ones and a discard.
fn sample() -> History {
    history(vec![
        negotiated(),
        submit(0, write(0, 4096)),
        done(2),
        submit(1, Op::FLUSH),
        done(4),
        submit(2, write(512, 1024)),
        done(6),
        submit(3, write(2048, 2048)),
        submit(4, write(3072, 2048)),
        submit(5, discard(0, 512)),
        done(9),
    ])
}

/// Each block in one word: `.` the base, `2:0` block 0 of write 2, `z` zeroes.
fn shown(history: &History, name: &str) -> String {
    let content = history.build(&StateName(name.into())).unwrap();
    let word = |block| match content.of(block) {
        Source::Base => ".".into(),
        Source::Zeroes => "z".into(),
        Source::Written { request, block } => format!("{request}:{block}"),
        Source::Garbage { seed } => format!("g{seed:x}"),
        Source::Flipped { request: Some(request), block, bit } => {
            format!("{request}:{block}x{bit}")
        }
        Source::Flipped { request: None, bit, .. } => format!("x{bit}"),
    };
    (0..DISK.blocks()).map(word).collect::<Vec<String>>().join(" ")
}

fn clauses(history: &History, name: &str) -> Vec<u32> {
    let violations = history.violations(&StateName(name.into())).unwrap();
    violations.iter().map(|violation| violation.clause.number()).collect()
}

#[test]
fn names_mean_what_they_say() {
    let history = sample();
    for (name, content) in [
        ("all", "z 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . ."),
        ("none", "2:0 2:1 2:2 2:3 2:4 2:5 2:6 2:7 . . . . . . . ."),
        ("all,-w6", "z 2:1 2:2 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . ."),
        ("none,+w6.2", "2:0 2:1 6:1 2:3 2:4 2:5 2:6 2:7 . . . . . . . ."),
        ("all,-w6,+w6.1", "z 6:0 2:2 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . ."),
        ("all;w8>w9", "z 6:0 6:1 2:3 8:0 8:1 8:2 8:3 9:2 9:3 . . . . . ."),
        ("all;w8.4>w9", "z 6:0 6:1 2:3 8:0 8:1 8:2 9:1 9:2 9:3 . . . . . ."),
    ] {
        let name = format!("lb512/p11:{name}");
        assert_eq!(shown(&history, &name), content, "{name}");
        assert_eq!(clauses(&history, &name), [0; 0], "{name}");
    }
    for (name, content, broken) in [
        ("req1k/p11:all,-w2", "z 6:0 6:1 . 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[1][..]),
        ("req1k/p11:all;t6=1", "z 6:0 2:2 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[4]),
        ("req1k/p11:all;m6=14", "z 2:1 2:2 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . 6:0 6:1", &[9]),
        ("req1k/p11:all;x3.5", "z 6:0 6:1 2:3x5 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[9]),
        ("req1k/p11:all;x15.4095", "z 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . x4095", &[9]),
        ("req1k/p11:all;g12=ff", "z 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . gff . . .", &[9]),
        ("lb/p11:all;w2>w6", "z 2:1 2:2 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[2]),
        ("req2k/p11:all;d10=0", "2:0 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[5]),
        ("garbage/p11:all;g1=7", "z g7 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[]),
        ("garbage/p11:all;g3=7", "z 6:0 6:1 g7 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[9]),
        ("lb+discard-old/p11:all", "2:0 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .", &[]),
        (
            "lb+discard-either/p11:all;d10=0",
            "2:0 6:0 6:1 2:3 8:0 8:1 9:0 9:1 9:2 9:3 . . . . . .",
            &[],
        ),
    ] {
        assert_eq!(shown(&history, name), content, "{name}");
        assert_eq!(clauses(&history, name), broken, "{name}");
    }
}

/// Version 1 of the samples.
#[test]
fn samples_never_change() {
    let history = sample();
    for (name, content) in [
        ("req1k/p11:r1.0.0", "z 6:0 6:1 2:3 8:0 2:5 2:6 2:7 . . . . . . . ."),
        ("req1k/p11:r1.0.1", "2:0 2:1 2:2 2:3 2:4 2:5 9:0 9:1 . . . . . . . ."),
        ("req1k/p11:r1.0.2", "z 6:0 6:1 2:3 8:0 2:5 9:0 9:1 9:2 9:3 . . . . . ."),
        ("lb512/p11:r1.7.3", "2:0 6:0 6:1 2:3 8:0 2:5 9:0 9:1 . 9:3 . . . . . ."),
        ("lb512/p11:r1.7.4", "z 6:0 6:1 2:3 8:0 8:1 8:2 9:1 9:2 . . . . . . ."),
        ("piece1k+discard-either/p11:r1.1.1", "2:0 2:1 2:2 2:3 8:0 8:1 2:6 2:7 . . . . . . . ."),
        ("garbage/p11:r1.4.4", "z 6:0 6:1 2:3 8:0 8:1 9:0 gc0dee94886853465 9:2 9:3 . . . . . ."),
    ] {
        assert_eq!(shown(&history, name), content, "{name}");
        assert_eq!(clauses(&history, name), [0; 0], "{name}");
    }
    let zeroes: Vec<bool> = (0..8).map(|block| discard_reads_zeroes(9, Seq(10), block)).collect();
    assert_eq!(zeroes, [true, false, false, false, true, true, true, true]);
    assert_eq!(StateName("req16k/p7:all".into()).shard(1000), 487);
    let content = history.build(&StateName("lb512/p11:all".into())).unwrap();
    assert_eq!(content.fingerprint(), 0xaf82_00a0_5d33_1c41_ce45_c96d_16a6_1e3d);
}

#[test]
fn faults_never_change() {
    let history = sample();
    let profile: Profile = "req2k".parse().unwrap();
    let cut = history.cut(Seq(11), &profile).unwrap();
    let all = StateName("req2k/p11:all".into());
    for (fault, name, words) in [
        (
            "tear-atomic,nth=1",
            "req2k/p11:all;t6=2",
            "tear-atomic,nth=1: write 6 is cut before tear unit 1 of 2; its last part is there",
        ),
        (
            "tear-atomic",
            "req2k/p11:all;t6=2;t8=e;t9=1",
            "tear-atomic: write 6 is cut before tear unit 1 of 2; its last part is there; write 8 \
             is cut before tear unit 1 of 4; its last part is there; write 9 is cut before tear \
             unit 1 of 4; its first part is there",
        ),
        ("lose-write", "req2k/p11:all,-w2", "lose-write: write 2 is lost though it was stable"),
        (
            "ignore-flush",
            "req2k/p11:all,-w2",
            "ignore-flush: lost although a flush had made it stable: write 2",
        ),
        (
            "misdirect,nth=3",
            "req2k/p11:all;m8=8",
            "misdirect,nth=3: write 8 landed at block 8, not 4",
        ),
        ("corrupt,p=0.5", "req2k/p11:all;x2.579", "corrupt,p=0.5: bit 579 of block 2 is inverted"),
    ] {
        let faults = [fault.parse::<Fault>().unwrap()];
        let (broken, said) = cut.break_with(&all, &faults, 5).unwrap();
        assert_eq!((broken.0.as_str(), said.join("|").as_str()), (name, words));
    }
}

#[test]
fn names_that_mean_nothing_here_are_refused() {
    let history = sample();
    for (name, hint) in [
        ("", "req16k/p120:all"),
        ("lb512/p11", "req16k/p120:all"),
        ("lb512/p11:some", "req16k/p120:all"),
        ("lb512/p012:all", "req16k/p120:all"),
        ("lb512/r1.0.0", "req16k/p120:all"),
        ("lb512/p11:all;", "req16k/p120:all"),
        ("lb512/p11:all;q1=2", "req16k/p120:all"),
        ("lb512/p11:all,w6", "req16k/p120:all"),
        ("lb512/p11:all,-w6.00", "req16k/p120:all"),
        ("disk/p11:all", "no profile"),
        ("lb4k/p11:all", "logical block"),
        ("lb512/p12:all", "ends at event 11"),
        ("lb512/p11:all,-w5", "no write"),
        ("lb512/p7:all,-w8", "no write"),
        ("lb512/p11:all,-w6.4", "more than the 2"),
        ("lb512/p11:all;d6=1", "no discard"),
        ("lb512/p11:all;x16.0", "16 blocks"),
        ("lb512/p11:all;x1.4096", "4096 bits"),
        ("lb512/p11:all;x0.1", "no written data"),
        ("lb512/p11:all;m6=15", "16 blocks"),
        ("lb512/p11:all;g16=1", "16 blocks"),
        ("lb512/p11:r2.0.0", "version 1"),
    ] {
        let said = history.build(&StateName(name.into())).unwrap_err().to_string();
        assert!(said.contains(hint), "{name}: {said}");
    }
    let profile: Profile = "req1k".parse().unwrap();
    let cut = history.cut(Seq(11), &profile).unwrap();
    assert!(cut.build(&StateName("req1k/p11:all".into())).is_ok());
    assert!(cut.build(&StateName("req1k+min512/p11:all".into())).is_ok(), "the same profile here");
    assert!(cut.build(&StateName("req1k/p10:all".into())).is_err());
    assert!(cut.build(&StateName("lb512/p11:all".into())).is_err());
}

#[test]
fn profiles_that_contradict_themselves_are_refused_with_what_would_work() {
    let disk = Disk { capacity: 1 << 20, lb_size: 4096 };
    for good in [
        "lb",
        "lb4k",
        "req16k",
        "req48k",
        "req16k+b16k",
        "piece12k",
        "explicit64k",
        "garbage",
        "req64k+min4k+tear8k+discard-either",
        "req1m",
    ] {
        let profile: Profile = good.parse().unwrap();
        assert_eq!(profile.to_string(), good);
        profile.check(&disk).unwrap();
        assert_eq!(profile.on(&disk), profile.on(&disk).on(&disk));
    }
    for (bad, hint) in [
        ("lb512", "piece512"),
        ("lba16k", "piece16k"),
        ("piece6k", "use 8k"),
        ("req16k+b24k", "use 16k"),
        ("req16k+unit12k", "use 8k"),
        ("req16k+min2k", "use 4k"),
        ("req2k", "use 4k"),
        ("req16k+min32k", "use 32k for both"),
        ("req16k+unit32k", "max_bytes of 32k"),
        ("req32k+b16k", "boundary of 32k or a max_bytes of 16k"),
    ] {
        let said = bad.parse::<Profile>().unwrap().check(&disk).unwrap_err().to_string();
        assert!(said.contains(hint), "{bad}: {said}");
    }
    for bad in ["", "req", "req16", "lb4K", "piece", "req16k+", "req16k+x", "lb0", "+b16k"] {
        assert!(bad == "req16" || bad.parse::<Profile>().is_err(), "{bad}");
    }
}

#[test]
fn eligible_is_as_the_standards_have_it() {
    let check = |name: &str, offset, len, atomic, eligible| {
        let profile: Profile = name.parse().unwrap();
        assert_eq!(profile.eligible(offset, len, atomic), eligible, "{name} {offset} {len}");
    };
    check("req16k", 512, 16384, false, true);
    check("req16k", 0, 16896, false, false);
    check("req16k+b16k", 512, 16384, false, false);
    check("req16k+b16k", 16384, 16384, false, true);
    check("req16k", 0, 0, true, false);
    check("explicit16k", 0, 16384, false, false);
    check("explicit16k", 0, 16384, true, true);
    check("explicit16k", 0, 32768, true, false);
    // SCSI has no boundary on the disk. NVMe has, whatever the recording's disk was asked.
    check("explicit16k+b16k", 8192, 16384, true, true);
    check("explicit16k+b16k", 8192, 16384, false, false);
    check("req16k+b16k", 8192, 16384, true, false);
    check("req16k+b16k", 8192, 16384, false, false);
    check("lb4k", 0, 4096, true, false);
    check("piece16k", 0, 16384, true, false);
}

#[test]
fn a_piece_is_never_cut_whatever_is_written_with_it() {
    for (profile, offset, len, whole) in [
        ("piece16k", 0, 16384, true),
        ("piece16k", 16384, 4096, true),
        ("piece16k", 8192, 16384, false),
        ("piece16k", 0, 0, false),
        ("lb512", 512, 512, true),
        ("lb512", 0, 4096, false),
        ("req16k", 0, 16384, false),
        ("garbage", 0, 512, false),
    ] {
        let of: Profile = profile.parse().unwrap();
        assert_eq!(of.is_one_piece(512, offset, len), whole, "{profile} {offset}+{len}");
    }
    assert!(Profile::PLAIN.is_one_piece(16384, 0, 16384), "a logical block");
}

#[test]
fn events_that_contradict_each_other_are_refused() {
    let past = Op::Write {
        offset: 8192,
        len: 512,
        fua: false,
        atomic: false,
        payload: Payload::default(),
    };
    let zeroes = Op::WriteZeroes {
        segments: vec![Segment { offset: u64::MAX - 511, len: 512, unmap: false }],
    };
    for (events, hint) in [
        (vec![done(7)], "event 1: it completes request 7, which was not submitted"),
        (vec![submit(0, write(0, 512)), done(1), done(1)], "event 3"),
        (vec![submit(0, past)], "past the end"),
        (vec![submit(0, zeroes)], "past the end"),
        (vec![submit(0, write(100, 512))], "whole sectors"),
    ] {
        let said = History::new(DISK, (1..).map(Seq).zip(events)).unwrap_err().to_string();
        assert!(said.contains(hint), "{said}");
    }
    let back = [(Seq(2), negotiated()), (Seq(2), negotiated())];
    assert!(History::new(DISK, back).is_err());
    let part = Op::WriteZeroes { segments: vec![Segment { offset: 512, len: 512, unmap: false }] };
    let disk = Disk { capacity: 8192, lb_size: 1024 };
    let said = History::new(disk, [(Seq(1), submit(0, part))]).unwrap_err().to_string();
    assert!(said.contains("part of a logical block"), "{said}");
    assert!(History::new(Disk { capacity: 1000, lb_size: 512 }, []).is_err());
    let empty = History::new(DISK, []).unwrap();
    assert_eq!(empty.last(), None);
    assert_eq!(shown(&empty, "lb512/p0:all"), [". "; 16].concat().trim());
    assert_eq!(empty.points(true), []);
}

#[test]
fn crash_points_are_before_and_after_flushes_marks_and_the_end() {
    let mark = || Event::Mark(Mark { name: "here".into() });
    let history = history(vec![
        negotiated(),
        submit(0, write(0, 512)),
        done(2),
        submit(1, Op::FLUSH),
        Event::Visible { queue: 0, index: 2 },
        done(4),
        mark(),
        mark(),
        submit(2, write(0, 512)),
        done(9),
    ]);
    let points = |every| history.points(every).into_iter().map(|at| at.0).collect::<Vec<_>>();
    assert_eq!(points(false), [5, 6, 7, 8, 10]);
    assert_eq!(points(true), (1..=10).collect::<Vec<_>>());
}

/// The reason for `Visible`: the driver that does not wait is found out.
#[test]
fn a_flush_that_was_queued_with_the_write_makes_nothing_stable() {
    let run = |visible: Option<u16>| {
        let mut events = vec![negotiated(), submit(0, write(0, 512))];
        events.extend(visible.map(|index| Event::Visible { queue: 0, index }));
        events.extend([done(2), submit(1, Op::FLUSH)]);
        let flush = events.len() as u64;
        events.push(done(flush));
        let history = history(events);
        let profile = Profile::PLAIN;
        let last = history.last().unwrap();
        history.cut(last, &profile).unwrap().volatile().len()
    };
    assert_eq!(run(None), 0, "submitted after the write completed");
    assert_eq!(run(Some(1)), 0, "the write itself was visible, the flush was not");
    assert_eq!(run(Some(2)), 1, "the flush was visible before the write completed");
}

/// Two disks of 8 blocks: what a flush is not of stays volatile.
#[test]
fn a_flush_of_one_disk_makes_nothing_stable_on_another() {
    let run = |flushes: &[(u64, u64)]| {
        let mut events = vec![negotiated()];
        for (i, (at, len)) in (0..).zip([(0, 1024), (4096, 1024), (3584, 1024)]) {
            let id = events.len() as u64 + 1;
            events.extend([submit(i, write(at, len)), done(id)]);
        }
        for (i, (offset, len)) in (3..).zip(flushes) {
            let id = events.len() as u64 + 1;
            events.extend([submit(i, Op::Flush { offset: *offset, len: *len }), done(id)]);
        }
        let history = history(events);
        let after = history.last().unwrap();
        history.cut(after, &Profile::PLAIN).unwrap().volatile().iter().map(|w| w.0).collect()
    };
    let volatile: Vec<u64> = run(&[]);
    assert_eq!(volatile, [2, 4, 6]);
    assert_eq!(run(&[(0, 4096)]), [4, 6]);
    assert_eq!(run(&[(4096, 4096)]), [2, 6]);
    assert_eq!(run(&[(0, 4096), (4096, 4096)]), [6], "the write over both, by neither");
    assert_eq!(run(&[(512, 7680)]), [2], "all its bytes, not some");
    let none: [u64; 0] = [];
    assert_eq!(run(&[(0, 8192)]), none);
    assert_eq!(run(&[(0, 0)]), none);
    // What the flush of one disk promises breaks where that flush is ignored, and nowhere else.
    let history = history(vec![
        negotiated(),
        submit(0, write(0, 512)),
        done(2),
        submit(1, write(4096, 512)),
        done(4),
        submit(2, Op::Flush { offset: 4096, len: 4096 }),
        done(6),
    ]);
    let cut = history.cut(Seq(7), &Profile::PLAIN).unwrap();
    let none = StateName("lb512/p7:none".into());
    assert_eq!(shown(&history, &none.0), ". . . . . . . . 4:0 . . . . . . .");
    let (name, _) = cut.break_with(&none, &["ignore-flush".parse().unwrap()], 0).unwrap();
    assert_eq!(shown(&history, &name.0), ". . . . . . . . . . . . . . . .");
    assert_eq!(clauses(&history, &name.0), [1]);
    let words = &cut.violations(&name).unwrap()[0].words;
    assert!(words.contains("FLUSH 6, of its disk, submitted after"), "{words}");
}

#[test]
fn each_power_cut_begins_a_new_order_on_a_new_base() {
    let history = history(vec![
        negotiated(),
        submit(0, write(0, 512)),
        Event::Reset { cause: ResetCause::PowerCut, queue: None },
        negotiated(),
        submit(0, write(512, 512)),
        done(5),
        done(2),
    ]);
    assert_eq!(history.base_of(Seq(3)), None);
    assert_eq!(history.base_of(Seq(4)), Some(Seq(3)));
    assert_eq!(shown(&history, "lb512/p3:all"), "2:0 . . . . . . . . . . . . . . .");
    assert_eq!(shown(&history, "lb512/p7:all"), ". 5:0 . . . . . . . . . . . . . .");
    assert!(history.build(&StateName("lb512/p7:all,-w2".into())).is_err());
}

#[test]
fn a_fault_on_the_nth_eligible_write_tears_it_right_after_its_submission() {
    let events = vec![
        negotiated(),
        submit(0, write(0, 1024)),
        done(2),
        submit(1, Op::FLUSH),
        done(4),
        submit(2, write(2048, 1024)),
        done(6),
        submit(3, write(0, 1024)),
    ];
    let history = history(events);
    let profile: Profile = "req1k".parse().unwrap();
    let cut = history.cut(Seq(8), &profile).unwrap();
    let from = cut.random(0, 0);
    let torn = |fault: &str| {
        let fault = fault.parse().unwrap();
        cut.break_with(&from, &[fault], 1).unwrap()
    };
    let (name, words) = torn("tear-atomic,nth=3");
    assert!(name.0.contains(";t8="), "{name}");
    assert!(words[0].starts_with("tear-atomic,nth=3: write 8 is cut"), "{words:?}");
    let violations = cut.violations(&name).unwrap();
    assert_eq!(violations.iter().map(|v| v.clause).collect::<Vec<_>>(), [Clause::Atomic]);
    // The first is stable: a power cut does not tear it.
    assert_eq!(torn("tear-atomic,nth=1"), (from.clone(), vec![]));
    assert_eq!(torn("tear-atomic,nth=4"), (from.clone(), vec![]));
}

#[test]
fn a_broken_barrier_keeps_what_came_later() {
    let history = history(vec![
        negotiated(),
        submit(0, write(0, 512)),
        done(2),
        submit(1, Op::FLUSH),
        done(4),
        submit(2, write(512, 512)),
    ]);
    let cut = history.cut(Seq(6), &Profile::PLAIN).unwrap();
    let none = StateName("lb512/p6:none".into());
    let fault = "reorder-flush".parse().unwrap();
    let (name, words) = cut.break_with(&none, &[fault], 0).unwrap();
    assert_eq!(shown(&history, &name.0), ". 6:0 . . . . . . . . . . . . . .");
    assert_eq!(
        words,
        ["reorder-flush: write 2, from before flush 4, is lost, and write 6, from after it, is \
          there"]
    );
    let fault = "ignore-flush".parse().unwrap();
    let (name, _) = cut.break_with(&none, &[fault], 0).unwrap();
    assert_eq!(shown(&history, &name.0), ". . . . . . . . . . . . . . . .");
}

#[test]
fn shrinking_leaves_the_one_fragment_that_matters() {
    let history = sample();
    let profile: Profile = "lb512".parse().unwrap();
    let cut = history.cut(Seq(11), &profile).unwrap();
    let from = StateName("lb512/p11:none,+w6.2,+w8.5;w8>w9".into());
    let fails = |name: &StateName| {
        Ok::<_, ModelError>(cut.build(name)?.of(1) != Source::Written { request: Seq(6), block: 0 })
    };
    let shrunk = cut.shrink(&from, fails).unwrap().unwrap();
    assert_eq!(shrunk.failing.0, "lb512/p11:all,-w6.1");
    assert_eq!(shrunk.passing.unwrap().0, "lb512/p11:all");
    assert_eq!(shrunk.changes, 1);
}

#[test]
fn masks_and_parsed_names_are_for_others_too() {
    let name: Parsed = "req1k/p11:all,-w8.5".parse().unwrap();
    let history = sample();
    let cut = history.cut(name.after, &name.profile).unwrap();
    assert_eq!(cut.fragments(Seq(8)).unwrap(), 4);
    assert!(cut.is_whole(Seq(6)).unwrap());
    let lost = cut.fragment_blocks(Seq(8), &Mask::parse("5").unwrap()).unwrap();
    assert_eq!(lost, [4..5, 6..7]);
}

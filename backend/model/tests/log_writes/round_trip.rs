//! Random recordings, with everything in them that a device does: exported, replayed, imported.

use crate::generate::{self, Dice};
use crate::{history, imported, replay};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use tornblk_model::crash::{Content, History, Profile, Source, Stable, Strategy};
use tornblk_model::event::{Disk, Event, Op, ResetCause, Seq, Submit};
use tornblk_model::recording::log_writes::{LogExported, export};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Reader, Writer};

const RECORDINGS: u64 = 80;

/// Block `block` of the data of the write at event `id`.
fn stamp(id: u64, block: u64, to: &mut [u8]) {
    to.fill(0xd0);
    to[..8].copy_from_slice(&(id + 1).to_le_bytes());
    to[8..16].copy_from_slice(&block.to_le_bytes());
}

/// Where the bytes of a block come from, as they say.
fn source(bytes: &[u8]) -> Source {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    match bytes[16] {
        0xba => Source::Base,
        0xd0 => Source::Written { request: Seq(word(0) - 1), block: word(8) as u32 },
        _ => Source::Zeroes,
    }
}

fn content(disk: &Disk, bytes: &[u8]) -> Content {
    let blocks = (0..).zip(bytes.chunks(disk.lb_size as usize).map(source));
    Content { blocks: blocks.filter(|(_, s)| *s != Source::Base).collect() }
}

/// Writes what was made up into a real recording, of which the numbers of events differ.
fn record(dir: &Path, made: &generate::Recording, seed: u64) -> (Arc<Reader>, Vec<u8>) {
    let base = vec![0xba; made.disk.capacity as usize];
    std::fs::write(dir.join("base"), &base).unwrap();
    let image = BaseImage::identify(&dir.join("base")).unwrap();
    let new = NewRecording::new(made.disk.clone(), image, serde_json::Value::Null);
    let new = NewRecording { segment_size: 64 << 10, ..new };
    let path = dir.join("rec");
    let writer = Writer::create(&path, new).unwrap();
    let mut dice = Dice::new(seed ^ 77);
    let mut ids: HashMap<Seq, Seq> = HashMap::new();
    let mut events = made.events.iter().peekable();
    let lb = u64::from(made.disk.lb_size);
    while let Some((at, event)) = events.next() {
        match event.clone() {
            Event::Submit(mut submit) => {
                if let Op::Write { offset, len, payload, .. } = &mut submit.op {
                    let blocks = made.disk.touched(*offset, *len);
                    let mut data = vec![0; ((blocks.end - blocks.start) * lb) as usize];
                    for (i, block) in (0..).zip(data.chunks_mut(lb as usize)) {
                        stamp(writer.events(), i, block);
                    }
                    *payload = writer.payload(&data).unwrap();
                }
                let at_once = events
                    .next_if(|(next, e)| next == at && matches!(e, Event::Complete { .. }))
                    .is_some();
                let id = match at_once {
                    true => writer.append_at_once(submit).unwrap(),
                    false => writer.append(&Event::Submit(submit)).unwrap(),
                };
                ids.insert(*at, id);
            }
            Event::Complete { request, status } => {
                let executed = dice.one_in(2);
                let ok = Completion::ok(ids[&request]);
                let executed = status == ok.status || executed;
                writer.complete(&[], Completion { status, executed, ..ok }).unwrap();
            }
            other => {
                writer.append(&other).unwrap();
            }
        }
    }
    drop(writer);
    (Arc::new(Reader::open(&path).unwrap()), base)
}

/// The writes in front of each FLUSH of the log, of those in `of`.
fn groups_of_log(disk: &Disk, log: &[u8], of: &BTreeSet<Seq>) -> BTreeSet<BTreeSet<Seq>> {
    let mut groups = BTreeSet::new();
    let mut so_far = BTreeSet::new();
    for step in replay::steps(log) {
        match step {
            replay::Step::Write { data, zeroes: false, .. } => {
                if let Source::Written { request, .. } = source(&data[..disk.lb_size as usize]) {
                    so_far.extend(of.contains(&request).then_some(request));
                }
            }
            replay::Step::Flush => {
                groups.insert(so_far.clone());
            }
            _ => {}
        }
    }
    groups
}

/// The end of the first order of events.
fn end(reader: &Reader) -> Seq {
    let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
    let cut = |e: &Event| matches!(e, Event::Reset { cause: ResetCause::PowerCut, .. });
    events.iter().find(|(_, e)| cut(e)).or(events.last()).unwrap().0
}

#[derive(Debug, Default)]
struct Met(BTreeMap<&'static str, u32>);

impl Met {
    fn note(&mut self, what: &'static str, yes: bool) {
        *self.0.entry(what).or_default() += u32::from(yes);
    }
}

fn groups_are_kept(
    history: &History,
    reader: &Reader,
    log: &[u8],
    untouched: &std::collections::HashSet<Seq>,
    met: &mut Met,
) {
    let end = end(reader);
    let disk = history.disk();
    let in_time = |at: Seq| at <= end;
    let waits: Vec<_> = history
        .requests()
        .iter()
        .filter(|r| matches!(reader.event(r.id()), Ok(Event::Submit(Submit { op: Op::Write { len, .. }, .. })) if len > 0))
        .filter(|r| r.succeeded().is_some_and(in_time) && r.fetched_again().is_none())
        .filter(|r| !matches!(r.stable(), Some((_, Stable::Fua | Stable::WriteThrough))))
        .filter(|r| !untouched.contains(&r.id()))
        .collect();
    let flushes = history
        .requests()
        .iter()
        .filter(|r| r.kind() == tornblk_model::crash::RequestKind::Flush)
        .filter_map(|r| r.succeeded().filter(|at| in_time(*at)));
    let expected: BTreeSet<BTreeSet<Seq>> = flushes
        .map(|flush| {
            let by_then = |since: Option<(Seq, Stable)>| since.is_some_and(|(at, _)| at <= flush);
            waits.iter().filter(|r| by_then(r.stable())).map(|r| r.id()).collect()
        })
        .collect();
    let all = waits.iter().map(|r| r.id()).collect();
    assert_eq!(groups_of_log(disk, log, &all), expected);
    met.note("several groups", expected.len() > 1);
}

/// What the log replays to is legal where it came from.
fn what_it_replays_to_is_legal(
    history: &History,
    reader: &Reader,
    log: &[u8],
    base: &[u8],
    met: &mut Met,
) {
    let end = end(reader);
    let profile: Profile = "lb".parse().unwrap();
    let cut = history.cut(end, &profile).unwrap();
    if cut.choices() > 12 {
        return;
    }
    let found = content(history.disk(), &replay::after(&replay::steps(log), base).0);
    let legal = cut
        .states(Strategy::Exhaustive { at_most: 12 })
        .any(|name| cut.build(&name).unwrap() == found);
    assert!(legal, "{found:?}");
    met.note("compared with every legal state", true);
}

#[test]
fn a_recording_goes_out_and_comes_back() {
    let mut met = Met::default();
    for seed in 0..RECORDINGS {
        let made = generate::recording(seed, if seed % 2 == 0 { 12 } else { 60 }, false);
        let dir = tempfile::tempdir().unwrap();
        let (reader, base) = record(dir.path(), &made, seed);
        let original = history(&reader);
        let (first, again) = (dir.path().join("log"), dir.path().join("again"));
        let done: LogExported = export(&reader, &original, &first).unwrap();
        let log = std::fs::read(&first).unwrap();
        assert_eq!(log.len() as u64, done.bytes);
        let untouched = reader.not_executed().unwrap();
        groups_are_kept(&original, &reader, &log, &untouched, &mut met);
        if done.failed == 0 {
            what_it_replays_to_is_legal(&original, &reader, &log, &base, &mut met);
        }
        let back = imported(&first, &dir.path().join("base"), None, dir.path().join("back"));
        back.is_what_the_log_replays_to(&log, &base);
        let second = export(&back.reader, &back.history, &again).unwrap();
        assert!(std::fs::read(&again).unwrap() == log, "seed {seed}: {done:?}, {second:?}");
        met.note("failed requests", done.failed > 0);
        met.note("requests without an answer", done.unanswered > 0);
        met.note("a power cut", done.cut.is_some());
        met.note("discards", done.discards > 0);
        met.note("marks", done.marks > 0);
        let steps = replay::steps(&log);
        let has = |f: fn(&replay::Step) -> bool| steps.iter().any(f);
        met.note("FUA", has(|s| matches!(s, replay::Step::Write { fua: true, .. })));
        met.note("atomic", has(|s| matches!(s, replay::Step::Write { atomic: true, .. })));
        met.note("zeroes", has(|s| matches!(s, replay::Step::Write { zeroes: true, .. })));
        met.note("stable discards", has(|s| matches!(s, replay::Step::Discard { fua: true, .. })));
    }
    println!("{met:#?}");
    for (what, count) in &met.0 {
        assert!(*count >= 3, "{what}: only {count} times");
    }
    assert_eq!(met.0.len(), 11, "every kind of input is counted");
}

/// A completes while the flush is out, B was complete before it; C is submitted before D and
/// completes after it; a long mark.
#[test]
fn order_and_marks() {
    use tornblk_model::event::Mark;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base"), vec![0xba; 64 << 10]).unwrap();
    let image = BaseImage::identify(&dir.path().join("base")).unwrap();
    let disk = Disk { capacity: 64 << 10, lb_size: 512 };
    let new = NewRecording::new(disk.clone(), image, serde_json::Value::Null);
    let path = dir.path().join("rec");
    let writer = Writer::create(&path, NewRecording { segment_size: 64 << 10, ..new }).unwrap();
    let ask = |op| {
        let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op };
        writer.append(&Event::Submit(submit)).unwrap()
    };
    let write = |offset: u64| {
        let mut data = vec![0; 512];
        stamp(writer.events(), 0, &mut data);
        let payload = writer.payload(&data).unwrap();
        ask(Op::Write { offset, len: 512, fua: false, atomic: false, payload })
    };
    let end = |request| writer.complete(&[], Completion::ok(request)).unwrap();
    let (a, b) = (write(0), write(512));
    end(b);
    let flush = ask(Op::FLUSH);
    end(a);
    let name: String = "é0123456789".repeat(200);
    writer.append(&Event::Mark(Mark { name: name.clone() })).unwrap();
    let (c, d) = (write(1024), write(1024));
    end(d);
    end(flush);
    end(c);
    drop(writer);
    let reader = Reader::open(&path).unwrap();
    let log = dir.path().join("log");
    export(&reader, &history(&reader), &log).unwrap();
    let written = |step: &replay::Step| match step {
        replay::Step::Write { data, .. } => Some(source(data)),
        _ => None,
    };
    let log = std::fs::read(&log).unwrap();
    let steps = replay::steps(&log);
    let expected = |request| Some(Source::Written { request, block: 0 });
    let found: Vec<_> = steps.iter().map(written).collect();
    let (flush, mark) = (None, None);
    assert_eq!(found, [expected(b), mark, flush, expected(a), expected(c), expected(d)]);
    assert_eq!(steps[1], replay::Step::Mark(name.clone().into_bytes()));
    let log = dir.path().join("log");
    let back = imported(&log, &dir.path().join("base"), None, dir.path().join("back"));
    assert_eq!(back.reader.info().unwrap().marks[0].1.name, name);
}

#[test]
fn what_the_log_cannot_say_is_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base"), vec![0xba; 64 << 10]).unwrap();
    let disk = Disk { capacity: 64 << 10, lb_size: 512 };
    let record = |name: &str, flush: Op, cut: bool| {
        let image = BaseImage::identify(&dir.path().join("base")).unwrap();
        let new = NewRecording::new(disk.clone(), image, serde_json::Value::Null);
        let path = dir.path().join(name);
        let writer = Writer::create(&path, NewRecording { segment_size: 64 << 10, ..new }).unwrap();
        if cut {
            writer.append(&Event::Reset { cause: ResetCause::PowerCut, queue: None }).unwrap();
        }
        let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op: flush };
        let flush = writer.append(&Event::Submit(submit)).unwrap();
        writer.complete(&[], Completion::ok(flush)).unwrap();
        drop(writer);
        let reader = Reader::open(&path).unwrap();
        let log = dir.path().join(format!("{name}.log"));
        let done = export(&reader, &history(&reader), &log);
        assert_eq!(done.is_ok(), log.exists());
        done
    };
    let half = Op::Flush { offset: 32 << 10, len: 32 << 10 };
    let error = record("half", half.clone(), false).unwrap_err().to_string();
    assert!(error.contains("several disks") && error.contains("event 0"), "{error}");
    // One that is of all by its range; and one after what is exported.
    let all = Op::Flush { offset: 0, len: 64 << 10 };
    assert_eq!(record("all", all, false).unwrap().flushes, 1);
    assert_eq!(record("after", half, true).unwrap().flushes, 0);
}

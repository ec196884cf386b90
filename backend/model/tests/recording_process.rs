//! What a recording keeps when its process is killed, and when its disk is full: in processes of
//! their own, this test program run again.

#![allow(clippy::unwrap_used)]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tornblk_model::event::*;
use tornblk_model::recording::*;

/// Where the child finds its recording.
const CHILD: &str = "TORNBLK_TEST_RECORDING";

fn child(test: &str, recording: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--nocapture", "--ignored", "--test-threads=1", test])
        .env(CHILD, recording)
        .stdin(Stdio::null());
    command
}

fn given() -> PathBuf {
    PathBuf::from(std::env::var_os(CHILD).expect("this test is only run by another one"))
}

/// The recording, which the parent has just closed. A process that another of its threads was
/// making in that moment may have had it for a little longer, and its lock with it.
fn opened() -> Writer {
    let begin = Instant::now();
    loop {
        match Writer::open(&given()) {
            Err(RecordingError::Busy { .. }) if begin.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.unwrap(),
        }
    }
}

fn create(dir: &Path) -> Writer {
    let image = dir.join("base.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let base = BaseImage::identify(&image).unwrap();
    let disk = Disk { capacity: 1 << 20, lb_size: 512 };
    let new = NewRecording::new(disk, base, serde_json::json!({}));
    let new = NewRecording { segment_size: 64 << 10, ..new };
    Writer::create(&dir.join("a.rec"), new).unwrap()
}

fn submit(queue: u16, op: Op) -> Event {
    Event::Submit(Submit { queue, position: 0, head: 0, ioprio: 0, op })
}

fn write(writer: &Writer, queue: u16, n: u64) -> Result<Seq, RecordingError> {
    let data = [n as u8; 1536];
    let payload = writer.payload(&data)?;
    let op = Op::Write { offset: n % 256 * 512, len: 1536, fua: false, atomic: false, payload };
    writer.append(&submit(queue, op))
}

#[test]
#[ignore = "run by a_killed_process_loses_nothing_that_it_said_was_done"]
fn child_appends_until_it_is_killed() {
    let writer = opened();
    let out = Mutex::new(std::io::stdout());
    std::thread::scope(|s| {
        for queue in 0..4 {
            let (writer, out) = (&writer, &out);
            s.spawn(move || {
                for n in 0.. {
                    let seq = write(writer, queue, n).unwrap();
                    let end = writer.complete(&[(queue, n as u16)], Completion::ok(seq)).unwrap();
                    writeln!(out.lock().unwrap(), "done {seq} {end} {}", n as u8).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_killed_process_loses_nothing_that_it_said_was_done() {
    let dir = tempfile::tempdir().unwrap();
    drop(create(dir.path()));
    let path = dir.path().join("a.rec");
    let mut done = Vec::new();
    let mut before = None;
    for round in 0..6 {
        let mut process = child("child_appends_until_it_is_killed", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in &mut lines {
            // The test harness says things too.
            seen += u64::from(remember(&line.unwrap(), &mut done));
            if seen == 40 + 97 * round {
                break;
            }
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(seen > 0, "the child worked");
        for line in lines {
            remember(&line.unwrap(), &mut done);
        }
        let reader = Reader::open(&path).unwrap();
        reader.verify().unwrap();
        let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
        assert!(events.is_sorted_by_key(|(seq, _)| *seq));
        let ends: BTreeSet<Seq> = events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Complete { .. }))
            .map(|(seq, _)| *seq)
            .collect();
        for (seq, end, byte) in &done {
            let Event::Submit(Submit { op: Op::Write { payload, .. }, .. }) =
                reader.event(*seq).unwrap()
            else {
                panic!("event {seq} is no write");
            };
            assert_eq!(reader.payload(&payload, 1536).unwrap(), [*byte; 1536]);
            assert!(ends.contains(end));
        }
        let info = reader.info().unwrap();
        assert_eq!(info.counts.restarts, round + 1);
        assert!(info.last > before, "the order goes on");
        before = info.last;
    }
}

/// `done SUBMIT COMPLETE BYTE`, a whole line of it. The harness's own words may stand before.
fn remember(line: &str, done: &mut Vec<(Seq, Seq, u8)>) -> bool {
    let Some((_, line)) = line.split_once("done ") else { return false };
    let words: Vec<&str> = line.split(' ').collect();
    // The last line may be cut off by the kill.
    let [seq, end, byte] = words[..] else { return false };
    let (Ok(seq), Ok(end), Ok(byte)) = (seq.parse(), end.parse(), byte.parse::<u8>()) else {
        return false;
    };
    done.push((Seq(seq), Seq(end), byte));
    true
}

/// Appends until there is no space, and shows that everything recorded is still good.
fn fill_up(writer: &Writer) -> u64 {
    let mut open = Vec::new();
    let mut n = 0;
    let e = loop {
        match write(writer, 0, n) {
            Ok(seq) => open.push(seq),
            Err(e) => break e,
        }
        n += 1;
    };
    assert!(matches!(e, RecordingError::NoSpace { .. }), "{e}");
    assert!(n > 10, "{n}");
    assert!(e.to_string().contains("stays valid"), "{e}");
    // No payload fits any more, but slots do; and when none is given to requests, those that are
    // out can still end.
    let e = loop {
        match writer.append(&submit(0, Op::FLUSH)) {
            Ok(seq) => open.push(seq),
            Err(e) => break e,
        }
    };
    assert!(matches!(e, RecordingError::NoSpace { .. }), "{e}");
    assert!(writer.append(&Event::Mark(Mark { name: "x".into() })).is_err());
    for seq in open {
        writer.complete(&[], Completion::ok(seq)).unwrap();
    }
    let reset = Event::Reset { cause: ResetCause::Device, queue: None };
    writer.append(&reset).unwrap();
    let reader = Reader::open(writer.path()).unwrap();
    let events = reader.verify().unwrap().events;
    let info = reader.info().unwrap();
    assert_eq!((info.holes, info.counts.unanswered), (0, 0));
    events
}

#[test]
#[ignore = "run by a_full_disk_fails_requests_and_keeps_the_recording"]
fn child_meets_the_limit_of_a_file() {
    let writer = opened();
    let limit = getrlimit(Resource::Fsize);
    let segments = |n: u64| Some((64 << 10) + n * (64 << 10) + 4096);
    setrlimit(Resource::Fsize, Rlimit { current: segments(4), ..limit }).unwrap();
    let before = fill_up(&writer);
    setrlimit(Resource::Fsize, limit).unwrap();
    // There is space again.
    write(&writer, 0, 1).unwrap();
    let reader = Reader::open(writer.path()).unwrap();
    assert_eq!(reader.verify().unwrap().events, before + 1);
}

#[test]
#[ignore = "run by a_full_disk_fails_requests_and_keeps_the_recording"]
fn child_fills_a_file_system() {
    let writer = create(given().parent().unwrap());
    let before = fill_up(&writer);
    std::fs::remove_file(given().with_file_name("ballast")).unwrap();
    write(&writer, 0, 1).unwrap();
    let reader = Reader::open(writer.path()).unwrap();
    assert_eq!(reader.verify().unwrap().events, before + 1);
    // And none for a new one: an error, and no file left behind.
    std::fs::write(given().with_file_name("ballast"), vec![1; 4 << 20]).unwrap_err();
    let header = writer.header().clone();
    let new = NewRecording::new(header.disk, header.base, header.options);
    let other = given().with_file_name("b.rec");
    let e = Writer::create(&other, new).unwrap_err();
    assert!(matches!(e, RecordingError::NoSpace { .. }), "{e}");
    assert!(!other.exists());
}

#[test]
fn a_full_disk_fails_requests_and_keeps_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    drop(create(dir.path()));
    let path = dir.path().join("a.rec");
    let out = child("child_meets_the_limit_of_a_file", &path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));

    // A file system of two megabytes in a mount namespace of its own, where that is allowed.
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m none \"$1\" || exit 77; \
                  head -c 200000 /dev/zero > \"$1/ballast\"; shift; exec \"$@\"";
    let out = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(place.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--ignored", "--test-threads=1"])
        .arg("child_fills_a_file_system")
        .env(CHILD, place.path().join("a.rec"))
        .stdin(Stdio::null())
        .output();
    match out {
        Ok(out) if out.status.success() => {}
        Ok(out) if out.status.code() != Some(77) && !out.stdout.is_empty() => {
            let text = String::from_utf8_lossy;
            panic!("{}\n{}", text(&out.stdout), text(&out.stderr));
        }
        _ => eprintln!("no file system may be mounted here: only the limit of a file was tried"),
    }
}

/// Memory of this process that the mapping of `path` takes, in bytes.
fn resident(path: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.display().to_string();
    let (mut ours, mut sum) = (false, 0);
    for line in maps.lines() {
        if line.split(' ').next().is_some_and(|word| word.contains('-')) {
            ours = line.ends_with(&name);
        } else if let Some(rss) = line.strip_prefix("Rss:")
            && ours
        {
            sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

#[test]
fn a_long_recording_takes_little_memory_and_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base.img"), dir.path().join("long.rec"));
    std::fs::write(&base, vec![0; 64 << 10]).unwrap();
    let disk = Disk { capacity: 64 << 10, lb_size: 512 };
    let new = NewRecording::new(disk, BaseImage::identify(&base).unwrap(), serde_json::json!({}));
    let segment_size = 1 << 20;
    let writer = Writer::create(&path, NewRecording { segment_size, ..new }).unwrap();
    let mut all = Vec::new();
    for n in 0..1024u32 {
        let payload = writer.payload(&n.to_le_bytes().repeat(8 << 10)).unwrap();
        all.push((n, payload));
    }
    let (has, takes) = (std::fs::metadata(&path).unwrap().len(), resident(&path));
    assert!(has > 32 << 20, "{has}");
    assert!(takes > 0 && takes <= 6 * segment_size, "{takes} of {has} bytes");
    for (n, payload) in all {
        // SAFETY: it is finished.
        let first = unsafe { writer.with_bytes(payload.position, 4, |b| b.to_vec()) }.unwrap();
        assert_eq!(first, n.to_le_bytes());
    }
}

//! Recordings that somebody damaged, or made up: opened, verified, read, taken as histories of which
//! states are built and shown, exported, and gone on with.
//!
//! Promised: an error that names the file, or what is told holds: what [`Reader::verify`] finds
//! sound can be read from its beginning to its end, each payload whole; and who goes on with it adds
//! to it, and changes nothing of it.

use crate::dish::Dish;
use crate::reach::{Count, Reached};
#[cfg(test)]
use crate::recorded::record;
use crate::recorded::{CAPACITY, Place, Recorded, set};
use std::path::Path;
use std::sync::Arc;
use tornblk_backend::store::gate::AlwaysGo;
use tornblk_backend::store::{RecordingOptions, RecordingStore};
use tornblk_model::crash::{Fault, History, Profile, Source, StateName, Strategy, walk};
use tornblk_model::event::{Event, Mark, Op, ResetCause, Seq, Submit};
use tornblk_model::recording::{Reader, RecordingError, StateReader, Trust, Writer, log_writes};

static OPENED: Count = Count::new("recordings opened");
static SOUND: Count = Count::new("recordings verified");
static DAMAGED: Count = Count::new("recordings found damaged by verify");
static HISTORIES: Count = Count::new("histories");
static STATES: Count = Count::new("states shown");
static WALKED: Count = Count::new("states walked over");
static EXPORTED: Count = Count::new("logs exported");
static CONTINUED: Count = Count::new("recordings gone on with");

pub(crate) fn reached() -> Vec<Reached> {
    let all = [&OPENED, &SOUND, &DAMAGED, &HISTORIES, &STATES, &WALKED, &EXPORTED, &CONTINUED];
    all.map(Count::get).into()
}

/// Changes to a recording, and looks at what it is then.
const CHANGES: usize = 24;
const LOOKS: usize = 6;
/// Of a file: no more than a case may take of the host's disk.
const LONGEST: u64 = 8 << 20;
/// Bytes of payloads that are read once more, for what a case may take of time: all of what a case
/// has, unless many of its writes name the same bytes.
const PAYLOADS: u64 = 16 << 20;

const PROFILES: [&str; 12] = [
    "lb512",
    "lb",
    "lb4k",
    "lb512",
    "req4k",
    "req16k+b16k",
    "piece16k",
    "explicit4k",
    "garbage",
    "discard-old",
    "discard-either",
    "req4k",
];

pub(crate) fn run(data: &[u8]) {
    let mut dish = Dish::new(data);
    let place = Place::new();
    let path = place.file("disk.rec");
    let setup = dish.byte();
    if setup == 255 {
        std::fs::write(&path, dish.rest()).unwrap();
    } else {
        let mut recorded = Recorded::new(setup);
        let mut len = None;
        let base = place.base();
        recorded.change_header(|header| set(header, "/base/path", base.to_str().into()));
        for _ in 0..dish.byte() as usize % CHANGES {
            len = change(&mut recorded, &mut dish, &path).or(len);
        }
        std::fs::write(&path, &recorded.bytes).unwrap();
        if let Some(len) = len {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
        }
    }
    if let Err(error) = look(&place, &path, &mut dish) {
        told(&error);
    }
}

/// Errors are sentences.
fn told(error: &dyn std::fmt::Display) {
    assert!(!error.to_string().is_empty());
}

/// → the length that the file is to have, if that changes.
fn change(recorded: &mut Recorded, dish: &mut Dish<'_>, own: &Path) -> Option<u64> {
    let seq = |recorded: &Recorded, dish: &mut Dish<'_>| match dish.byte() {
        n @ 0..=239 => u64::from(n) % (recorded.len() + 2),
        _ => u64::from(dish.u16()),
    };
    match dish.below(16) {
        0..=3 => {
            let at = seq(recorded, dish);
            let word = usize::from(dish.below(6));
            let value = dish.number();
            if let Some(mut words) = recorded.words(at) {
                words[word] = if word == 0 { value & 0xffff_ffff } else { value };
                recorded.set_words(at, words);
            }
        }
        4..=6 => {
            let at = seq(recorded, dish);
            let kind = match dish.byte() {
                n @ 0..=239 => n % 12 + if n & 0x40 != 0 && n % 12 < 6 { 0x20 } else { 0 },
                n => n,
            };
            let flags = dish.pick(&[0u8, 0x80, 1, 2, 3, 4, 0x81, 0xff, 0x90]);
            let aux = u64::from(dish.pick(&[0u16, 0, 1, 2, 3, 999]));
            let mut words = [u64::from(kind) | u64::from(flags) << 8 | aux << 16, 0, 0, 0, 0, 0];
            // Who: queue, position, head.
            words[1] = match kind {
                6 => seq(recorded, dish),
                _ => u64::from(dish.byte() % 4) | u64::from(dish.byte()) << 16,
            };
            for word in &mut words[2..4] {
                *word = match dish.below(4) {
                    3 => dish.number(),
                    _ => u64::from(dish.byte() % 64) * 512,
                };
            }
            words[4] = match dish.below(4) {
                0 => 0,
                1 => dish.number(),
                _ => recorded.place(u64::from(dish.u16() % 1024)).position,
            };
            recorded.set_words(at, words);
            recorded.seal_payload(at, words[3]);
        }
        7 => {
            let at = seq(recorded, dish);
            recorded.clear(at);
        }
        8 => {
            let (from, to) = (seq(recorded, dish), seq(recorded, dish));
            if let Some(words) = recorded.words(from) {
                recorded.set_words(to, words);
            }
        }
        9 => {
            let bytes = &mut recorded.bytes;
            let at = (dish.u32() as usize) % bytes.len();
            bytes[at] ^= dish.byte() | 1;
        }
        10 => recorded.set_segments(dish.number() as u32),
        11 => {
            let (n, kind) = (dish.below(12).into(), u32::from(dish.below(3)));
            recorded.set_segment(n, kind, dish.number() as u32);
        }
        12 => return Some(dish.u64() % LONGEST),
        13 => return Some(recorded.bytes.len() as u64 / 2 + u64::from(dish.u16()) * 8),
        14 => {
            let (at, len) = (seq(recorded, dish), dish.number());
            recorded.seal_payload(at, len);
        }
        _ => header(recorded, dish, own),
    }
    None
}

/// The header says something else.
fn header(recorded: &mut Recorded, dish: &mut Dish<'_>, own: &Path) {
    let what = dish.below(12);
    let number = dish.number();
    match what {
        0 => {
            let len = usize::from(dish.byte());
            recorded.set_header(dish.bytes(len));
            return;
        }
        1 => {
            recorded.set_header(&b"[".repeat(usize::from(dish.u16() % 60_000)));
            return;
        }
        _ => {}
    }
    // On a state of itself.
    let on = serde_json::json!({ "recording": own, "state": "lb512/p3:all" });
    let (key, value): (_, serde_json::Value) = match what {
        2 | 3 => ("/disk/capacity", number.into()),
        4 => ("/disk/lb_size", number.into()),
        5 => ("/disk/lb_size", (512u64 << (number % 24)).into()),
        6 => ("/base/size", number.into()),
        7 => ("/segment_size", number.into()),
        8 => ("/segment_size", ((64u64 << 10) << (number % 30)).into()),
        9 | 10 => ("/on", on),
        _ => ("/options", number.into()),
    };
    recorded.change_header(|header| set(header, key, value));
}

fn look(place: &Place, path: &Path, dish: &mut Dish<'_>) -> Result<(), RecordingError> {
    let reader = Arc::new(Reader::open(path)?);
    OPENED.one();
    match reader.info() {
        Ok(info) => drop((info.requests(), format!("{info:?}"))),
        Err(error) => told(&error),
    }
    let sound = reader.verify();
    match &sound {
        Ok(_) => SOUND.one(),
        Err(error) => {
            DAMAGED.one();
            told(error);
        }
    }
    if let Err(error) = reader.not_executed() {
        told(&error);
    }
    for _ in 0..dish.below(4) {
        if let Err(error) = reader.event(Seq(dish.number())) {
            told(&error);
        }
    }
    let events: Result<Vec<_>, _> = reader.events().collect();
    assert!(events.is_ok() || sound.is_err(), "verified, and then: {events:?}");
    let events = events?;
    if sound.is_ok() {
        read_payloads(&reader, &events);
    }
    let before = sound.is_ok().then(|| events.clone());
    match History::new(reader.header().disk.clone(), events) {
        Ok(history) => {
            HISTORIES.one();
            for _ in 0..usize::from(dish.byte()) % LOOKS {
                if let Err(error) = state(place, &reader, &history, dish) {
                    told(&error);
                }
            }
            walk_over(&history, dish);
            match log_writes::export(&reader, &history, &place.file("exported.log")) {
                Ok(_) => EXPORTED.one(),
                Err(error) => told(&error),
            }
        }
        Err(error) => told(&error),
    }
    drop(reader);
    let gone_on = go_on(place, path);
    if let Some(before) = before {
        added_to(path, &before, gone_on.is_ok());
    }
    gone_on
}

/// Of what was verified, every byte of a payload is there.
fn read_payloads(reader: &Reader, events: &[(Seq, Event)]) {
    let mut left = PAYLOADS;
    for (seq, event) in events {
        let Event::Submit(Submit { op: Op::Write { offset, len, payload, .. }, .. }) = event else {
            continue;
        };
        assert!(offset + len <= reader.header().disk.capacity);
        let len = reader.payload_len(*offset, *len);
        if payload.position == 0 || len > left {
            continue;
        }
        left -= len;
        if let Err(error) = reader.payload(payload, len as usize) {
            panic!("verified, and then the payload of event {seq}: {error}");
        }
    }
}

/// A sound recording that somebody went on with (`more`), or tried to: sound, and what it said.
fn added_to(path: &Path, before: &[(Seq, Event)], more: bool) {
    let reader = Reader::open(path).expect("a sound recording that was gone on with is readable");
    reader.verify().expect("a sound recording that was gone on with is sound");
    let after: Vec<_> = reader.events().collect::<Result<_, _>>().expect("verified");
    let (old, new) = after.split_at(before.len().min(after.len()));
    assert!(old == before, "a recording that was gone on with says something else: {old:?}");
    let restart = Event::Reset { cause: ResetCause::Restart, queue: None };
    assert!(!more || new.first().is_some_and(|(_, event)| *event == restart), "{new:?}");
}

/// Builds a state and shows it.
fn state(
    place: &Place,
    reader: &Arc<Reader>,
    history: &History,
    dish: &mut Dish<'_>,
) -> Result<(), RecordingError> {
    let bad = |e: tornblk_model::crash::ModelError| RecordingError::Invalid(e.to_string());
    let name = StateName(name(history, dish));
    if let Err(error) = history.violations(&name) {
        told(&error);
    }
    let content = history.build(&name).map_err(bad)?;
    let _ = content.fingerprint();
    let base = place.base();
    let state = StateReader::new(reader.clone(), Some(&base), Trust::SameContent, content)?;
    let mut bytes = vec![0; 4096];
    for _ in 0..3 {
        let at = dish.number();
        if let Err(error) = state.read_at(at, &mut bytes) {
            told(&error);
        }
    }
    state.sha256()?;
    state.export(&place.file("exported.img"))?;
    std::fs::remove_file(place.file("exported.img")).unwrap();
    STATES.one();
    Ok(())
}

/// A state's name, mostly one that there is.
fn name(history: &History, dish: &mut Dish<'_>) -> String {
    if dish.byte() > 240 {
        return String::from_utf8_lossy(dish.bytes(64)).into_owned();
    }
    let last = history.last().map_or(0, |last| last.0);
    let point = match dish.below(4) {
        0 => last,
        1 => dish.number(),
        _ => u64::from(dish.byte()) % (last + 1),
    };
    let profile = dish.pick(&PROFILES);
    let choice = match dish.below(4) {
        0 => return format!("{profile}/p{point}:r1.{}.{}", dish.byte(), dish.number()),
        1 => "none",
        _ => "all",
    };
    let mut name = format!("{profile}/p{point}:{choice}");
    let requests = history.requests();
    for _ in 0..dish.below(5) {
        let id = match usize::from(dish.byte()) {
            250.. => dish.number(),
            n => requests.get(n % (requests.len() + 1)).map_or(7, |request| request.id().0),
        };
        let number = match dish.below(3) {
            0 => dish.number(),
            _ => dish.byte().into(),
        };
        name += &match dish.below(9) {
            0 => format!(",+w{id}.{number:x}"),
            1 => format!(",-w{id}.{number:x}"),
            2 => format!(",-w{id}"),
            3 => format!(";w{id}>w{number}"),
            4 => format!(";d{id}={number:x}"),
            5 => format!(";g{}={number:x}", dish.number()),
            6 => format!(";t{id}={number:x}"),
            7 => format!(";m{id}={number}"),
            _ => format!(";x{number}.{}", dish.number() as u32),
        };
    }
    name
}

/// What exploring does.
fn walk_over(history: &History, dish: &mut Dish<'_>) {
    let points = history.points(dish.flag());
    let Ok(profile) = dish.pick(&PROFILES).parse::<Profile>() else { return };
    let ids = |block: u64, source: Source| source.fingerprint(block) as u64;
    let Some(after) = points.get(usize::from(dish.byte()) % points.len().max(1)) else { return };
    let strategy = match dish.below(6) {
        0 => Strategy::Prefix,
        1 => Strategy::OneLost,
        2 => Strategy::OneKept,
        3 => Strategy::Tear,
        4 => Strategy::Exhaustive { at_most: 8 },
        _ => Strategy::Random { seed: 1, count: 4 },
    };
    if let Ok(cut) = history.cut(*after, &profile) {
        let seen = cut.states(strategy).take(8).count();
        WALKED.add(seen as u64);
        if let Ok(fault) =
            dish.pick(&["corrupt", "lose-write", "tear-atomic", "misdirect"]).parse::<Fault>()
        {
            let name = StateName(format!("{}/p{after}:all", profile.on(history.disk())));
            let _ = cut.break_with(&name, &[fault], 3);
        }
    }
    let walk = walk::Walk::new(history, history.base_of(*after), &ids);
    if let Ok(mut cursor) = walk::Cursor::new(&walk, &profile)
        && cursor.go(*after).is_ok()
        && cursor.start(strategy).is_ok()
    {
        for _ in 0..8 {
            match cursor.step() {
                Ok(true) => {}
                _ => break,
            }
            // What is shown fast is what is built slowly.
            let built = cursor.name().and_then(|name| history.build(&name));
            assert_eq!(cursor.content(), built.unwrap());
        }
    }
}

/// A device that is started again with it.
fn go_on(place: &Place, path: &Path) -> Result<(), RecordingError> {
    let writer = Writer::open(path)?;
    writer.append(&Event::Mark(Mark { name: "again".to_owned() }))?;
    let profile = Profile::PLAIN;
    let options = RecordingOptions { profile, seed: 1, read_only: false };
    let store = RecordingStore::over(writer, Arc::new(AlwaysGo), options)?;
    let mut bytes = vec![0; 4096];
    for at in [0, 4096, CAPACITY - 4096] {
        if let Err(error) = store.peek(at, &mut bytes) {
            told(&error);
        }
    }
    drop(store);
    CONTINUED.one();
    assert!(std::fs::metadata(place.base()).unwrap().len() == CAPACITY, "the base image changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sound recording, and its events.
    fn sound() -> (Place, std::path::PathBuf, Vec<(Seq, Event)>) {
        let place = Place::new();
        let path = place.file("disk.rec");
        record(0, &path, &place.base());
        let events = Reader::open(&path).unwrap().events().map(Result::unwrap).collect();
        (place, path, events)
    }

    #[test]
    fn a_recording_that_is_gone_on_with_has_all_that_it_had() {
        let (place, path, events) = sound();
        go_on(&place, &path).unwrap();
        added_to(&path, &events, true);
    }

    #[test]
    #[should_panic(expected = "is readable")]
    fn a_recording_that_is_destroyed_is_noticed() {
        let (_place, path, events) = sound();
        std::fs::write(&path, b"nothing").unwrap();
        added_to(&path, &events, true);
    }

    #[test]
    #[should_panic(expected = "says something else")]
    fn a_recording_that_is_made_anew_is_noticed() {
        let (place, path, events) = sound();
        std::fs::remove_file(&path).unwrap();
        record(1, &path, &place.base());
        added_to(&path, &events, true);
    }

    #[test]
    #[should_panic(expected = "a sound recording that was gone on with is sound")]
    fn a_payload_that_changes_is_noticed() {
        let (place, path, events) = sound();
        go_on(&place, &path).unwrap();
        let position = events.iter().rev().find_map(|(_, event)| match event {
            Event::Submit(Submit { op: Op::Write { payload, .. }, .. }) => Some(payload.position),
            _ => None,
        });
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x3c], position.unwrap()).unwrap();
        added_to(&path, &events, true);
    }
}

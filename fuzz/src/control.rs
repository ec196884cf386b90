//! Messages to the control server over its real socket, and answers to the client that asks them.
//!
//! Promised: a message that has a number is answered with that number, once; a crash that waits for
//! its trigger need not be. What comes back is understood by the client. The server hangs up on who
//! cannot be understood any more, and on nobody else; it ends with its clients, whatever they left half
//! said. A client that is answered with nonsense gets an error.

use crate::dish::Dish;
use crate::limits::open_files;
use crate::reach::{Count, Reached};
use crate::recorded::{CAPACITY, Place, record};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tornblk_backend::control::Server;
use tornblk_backend::store::{
    Buffers, Cache, Done, HoldCompletions, IoEngine, Machine, Op, Options, Origin, Request, Store,
    StoreQueue,
};
use tornblk_model::crash::Profile;
use tornblk_proto::codec::{self, Decoder};
use tornblk_proto::{Answer, Call, Client, Command, Trigger};

static ANSWERED: Count = Count::new("commands carried out");
static REFUSED: Count = Count::new("commands refused");
static SHOWN: Count = Count::new("states shown");
static CRASHED: Count = Count::new("crashes");
static CALLED: Count = Count::new("calls of the client that were answered well");
static CONFUSED: Count = Count::new("calls of the client that were answered with nonsense");

pub(crate) fn reached() -> Vec<Reached> {
    [&ANSWERED, &REFUSED, &SHOWN, &CRASHED, &CALLED, &CONFUSED].map(Count::get).into()
}

/// Messages in a case.
const STEPS: usize = 24;
/// How long the device may take to say something, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(data: &[u8]) {
    let before = open_files();
    let mut dish = Dish::new(data);
    let setup = dish.byte();
    if setup & 7 == 7 {
        client(&mut dish)
    } else {
        server(setup, &mut dish)
    }
    assert_eq!(open_files(), before, "descriptors are left open");
}

fn machine(setup: u8, place: &Place) -> Arc<Machine> {
    let recording = place.file("disk.rec");
    let (states, recorded) = (setup & 3 == 1, setup & 3 >= 2);
    // Made before, since what a device makes by itself is larger than a case needs.
    if states || recorded {
        let kind = if recorded { 0 } else { setup >> 3 };
        record(kind & 2, &recording, &place.base());
    }
    Machine::open(Options {
        image: place.base(),
        states: states.then(|| recording.clone()),
        recording: recorded.then_some(recording),
        profile: Profile { lb_size: None, ..Profile::PLAIN },
        logical_block_size: 512,
        physical_block_size: 512,
        read_only: false,
        cache: Cache::Unsafe,
        seed: 1,
        faults: Vec::new(),
        direct: false,
        io_engine: IoEngine::Auto,
        record_payload: true,
        queues: 4,
        hold_completions: HoldCompletions::None,
        divided: false,
        serial: "tornblk".to_owned(),
    })
    .unwrap()
}

fn server(setup: u8, dish: &mut Dish<'_>) {
    let place = Place::new();
    let machine = machine(setup, &place);
    let server = Server::start(&place.file("control"), Arc::clone(&machine)).unwrap();
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut queue = machine.queue(0);
    let mut said = Said::default();
    let mut position = 0;
    for id in 0..STEPS as u64 {
        if dish.is_empty() || said.gone {
            break;
        }
        match dish.below(8) {
            0 => {
                work(&mut *queue, &mut position, dish);
                continue;
            }
            1 => {
                let len = usize::from(dish.byte());
                said.raw(&mut stream, dish.bytes(len), &place);
            }
            _ => {
                let call = call(id, dish, &place);
                said.call(&mut stream, &call, &place);
            }
        }
        if dish.flag() {
            said.listen(&mut stream);
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    said.listen_to_the_end(&mut stream);
    drop(stream);
    drop(queue);
    drop(server);
    assert_eq!(std::fs::metadata(place.base()).unwrap().len(), CAPACITY, "the image's length");
}

/// Requests of a guest, so that there is something to stall, to fail and to cut.
fn work(queue: &mut dyn StoreQueue, position: &mut u16, dish: &mut Dish<'_>) {
    let offset = u64::from(dish.byte()) * 512;
    let op = match dish.below(4) {
        0 => Op::Read { offset },
        1 => Op::FLUSH,
        _ => Op::Write { offset, fua: false, atomic: false },
    };
    let buffers = match op {
        Op::Flush { .. } => Buffers::empty(),
        _ => Buffers::from_vec(vec![dish.byte(); 1024]),
    };
    let origin = Origin { queue: 0, position: *position, head: *position, ioprio: 0 };
    *position = position.wrapping_add(1);
    queue.submit(Request::new(origin, op, buffers));
    queue.reap(&mut |done: Done| drop(done));
}

/// What the server was asked and what it said.
#[derive(Default)]
struct Said {
    decoder: Decoder,
    /// How many answers a number may have, and whether it must have one.
    open: HashMap<u64, (u32, bool)>,
    /// Of a message that was not sent to its end yet.
    begun: Vec<u8>,
    /// A message was too long: nothing that follows is listened to.
    cut: bool,
    gone: bool,
}

impl Said {
    fn call(&mut self, stream: &mut UnixStream, call: &Value, place: &Place) {
        let text = serde_json::to_vec(call).unwrap();
        let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
        bytes.extend(&text);
        self.raw(stream, &bytes, place);
    }

    /// Whatever the bytes are: those messages in them that name files name none outside of ours.
    fn raw(&mut self, stream: &mut UnixStream, bytes: &[u8], place: &Place) {
        let mut rest = [&self.begun[..], bytes].concat();
        let mut messages = Vec::new();
        let mut cut = false;
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len) as usize;
            cut |= len > codec::MAX_MESSAGE;
            if cut || after.len() < len {
                break;
            }
            messages.push(after[..len].to_vec());
            rest.drain(..4 + len);
        }
        let elsewhere = |message: &Vec<u8>| match codec::decode_call(message) {
            Ok(Call {
                command: Command::RecordHere { file } | Command::RecordedHere { file },
                ..
            }) => !Path::new(&file).starts_with(place.dir.path()),
            _ => false,
        };
        if self.cut || messages.iter().any(elsewhere) {
            return;
        }
        (self.begun, self.cut) = (rest, cut);
        for message in messages {
            if let Some((id, must)) = asked(&message) {
                let open = self.open.entry(id).or_insert((0, true));
                *open = (open.0 + 1, open.1 && must);
            }
        }
        self.gone |= stream.write_all(bytes).is_err();
    }

    /// Takes what is there.
    fn listen(&mut self, stream: &mut UnixStream) {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        self.read(stream);
        while let Some(message) = self.decoder.take().unwrap() {
            self.answer(&message);
        }
    }

    /// → whether there was anything.
    fn read(&mut self, stream: &mut UnixStream) -> bool {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => self.gone = true,
            Ok(n) => self.decoder.push(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.gone = true,
        }
        true
    }

    fn listen_to_the_end(&mut self, stream: &mut UnixStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // What follows a message that is too long is not listened to, and nobody else is hung up on.
        let whole = !self.cut;
        assert!(!(self.gone && whole), "the server hung up");
        self.gone = false;
        while !self.gone {
            assert!(self.read(stream), "the connection does not end");
            while let Some(message) = self.decoder.take().unwrap() {
                self.answer(&message);
            }
        }
        assert_eq!(self.decoder.pending(), 0, "an answer is cut short");
        let missing = self.open.iter().find(|(_, (n, must))| *must && *n > 0 && whole);
        assert_eq!(missing, None, "a call without an answer");
    }

    fn answer(&mut self, message: &[u8]) {
        let answer: Answer = serde_json::from_slice(message).expect("an answer is understood");
        if let Some(id) = answer.id {
            let open = self.open.get_mut(&id).filter(|open| open.0 > 0);
            open.unwrap_or_else(|| panic!("{id} is answered, and was not asked")).0 -= 1;
        }
        match (answer.ok, answer.error) {
            (Some(value), None) => {
                ANSWERED.one();
                SHOWN.add(u64::from(value.get("nonce").is_some()));
                CRASHED.add(u64::from(value.get("volatile_writes").is_some()));
            }
            (None, Some(refusal)) => {
                REFUSED.one();
                assert!(!refusal.message.is_empty());
            }
            other => panic!("neither one nor the other: {other:?}"),
        }
    }
}

/// The number of a message, told without the code that is tried, and whether it must be answered.
fn asked(message: &[u8]) -> Option<(u64, bool)> {
    let value: Value = serde_json::from_slice(message).ok()?;
    let id = value.get("id")?.as_u64()?;
    let now = Trigger::Now;
    // Whether it waits is known only of one that is understood; who refuses it must say so.
    let waits = codec::decode_call(message)
        .is_ok_and(|call| matches!(call.command, Command::Crash { at, .. } if at != now));
    Some((id, !waits))
}

const NAMES: [&str; 12] = [
    "live",
    "base",
    "lb512/p9:all",
    "lb512/p14:none",
    "lb/p20:all,-w1",
    "lb512/p9:r1.7.0",
    "lb512/p9:all // lb512/p1:all",
    "base // lb512/p1:none",
    "garbage/p20:none",
    "",
    "all",
    "lb512/p6:all;x3.9",
];

const SPECS: [&str; 10] = [
    "eio",
    "eio,nth=2",
    "stale-read,p=0.5",
    "tear-atomic",
    "ignore-flush,nth=1",
    "lose-write",
    "corrupt,range=0+1m",
    "misdirect",
    "reorder-flush",
    "eio,range=0+18446744073709551615",
];

/// A command that makes sense, but for what is changed.
fn call(id: u64, dish: &mut Dish<'_>, place: &Place) -> Value {
    let text = |dish: &mut Dish<'_>, of: &[&str]| match dish.byte() {
        n @ 0..=239 => of[usize::from(n) % of.len()].to_owned(),
        n => String::from_utf8_lossy(dish.bytes(usize::from(n))).into_owned(),
    };
    let inner = place.file(dish.pick(&["inner.rec", "disk.rec", "base.img"]));
    let mut call = match dish.below(14) {
        0 => json!({ "cmd": "status" }),
        1 => json!({ "cmd": "limits" }),
        2 => json!({ "cmd": "mark", "name": text(dish, &["here", "there", "m"]) }),
        3 | 4 => {
            let mut call = which(dish);
            call.insert("cmd".to_owned(), "stall".into());
            call.insert("when".to_owned(), dish.pick(&["before-io", "before-completion"]).into());
            Value::Object(call)
        }
        5 => json!({ "cmd": "release", "token": dish.number() }),
        6 => json!({ "cmd": "fault", "spec": text(dish, &SPECS) }),
        7 => {
            let at = match dish.below(4) {
                0 => json!({ "submit": which(dish) }),
                1 => json!({ "complete": which(dish) }),
                2 => json!({ "mark": "here" }),
                _ => json!("now"),
            };
            let mut call = json!({ "cmd": "crash", "at": at });
            if dish.flag() {
                call["state"] =
                    text(dish, &["all", "none", "all,-w9", "r1.7.0", "lb512/p9:all"]).into();
            }
            if dish.flag() {
                call["profile"] = text(dish, &["lb512", "req4k", "garbage", "piece16k"]).into();
            }
            call
        }
        8 | 9 => json!({ "cmd": "use-state", "name": text(dish, &NAMES) }),
        10 | 11 => {
            let runs: Vec<_> = (0..dish.below(6)).map(|_| run_of(dish)).collect();
            json!({ "cmd": "use-content", "name": "x", "runs": runs })
        }
        12 => json!({ "cmd": "record-here", "file": inner }),
        _ => json!({ "cmd": "recorded-here", "file": inner }),
    };
    call["id"] = id.into();
    match dish.byte() {
        250 => call["id"] = dish.number().into(),
        251 => call["more"] = dish.number().into(),
        252 => call["cmd"] = dish.number().into(),
        253 => call["token"] = json!(-1),
        254 => call["runs"] = json!([[0, dish.number(), "zeroes"]]),
        _ => {}
    }
    call
}

fn which(dish: &mut Dish<'_>) -> Map<String, Value> {
    let mut which = Map::new();
    let shape = dish.byte();
    if shape & 1 != 0 {
        which.insert("op".to_owned(), dish.pick(&["read", "write", "flush", "discard"]).into());
    }
    if shape & 2 != 0 {
        let range = json!({ "offset": dish.number(), "len": dish.number() });
        which.insert("range".to_owned(), range);
    }
    if shape & 4 != 0 {
        which.insert("nth".to_owned(), (dish.number() % 9).into());
    }
    if shape & 0xf0 == 0x80 {
        which.insert("eligible".to_owned(), true.into());
    }
    which
}

fn run_of(dish: &mut Dish<'_>) -> Value {
    let mut number = || match dish.below(3) {
        0 => dish.number(),
        _ => u64::from(dish.byte()) % 500,
    };
    let (first, n, a, b) = (number(), number(), number(), number() as u32);
    let source = match dish.below(6) {
        0 => json!("base"),
        1 => json!("zeroes"),
        2 | 3 => json!({ "written": [a, b] }),
        4 => json!({ "garbage": a }),
        _ => json!({ "flipped": [dish.flag().then_some(a), b, dish.number() as u32] }),
    };
    json!([first, n, source])
}

/// The other way round: a device that answers whatever it likes.
fn client(dish: &mut Dish<'_>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut answers = Vec::new();
    for _ in 0..STEPS {
        if dish.is_empty() {
            break;
        }
        let id = u64::from(dish.below(6));
        let answer = match dish.below(8) {
            0 => {
                let len = usize::from(dish.byte());
                answers.extend(dish.bytes(len));
                continue;
            }
            1 => json!({ "id": id, "ok": { "event": dish.number() } }),
            2 => json!({ "id": id, "ok": { "token": dish.number(), "requests": 1 } }),
            3 => json!({ "id": id, "error": { "kind": "busy", "message": "no" } }),
            4 => json!({ "error": { "kind": "malformed", "message": "bye" } }),
            5 => {
                json!({ "id": id, "ok": { "event": 1, "state": "x", "faults": [], "volatile_writes": 0 } })
            }
            6 => json!({ "id": dish.number(), "ok": dish.number() }),
            _ => json!({ "id": id }),
        };
        answers.extend(codec::encode(&answer).unwrap());
    }
    let client = Client::over(ours).unwrap();
    let calls = [
        client.start(&Command::Status {}),
        client.start(&Command::Mark { name: "m".to_owned() }),
        client.start(&Command::Release { token: 1 }),
    ];
    let crash = client.crash_start(Trigger::Now, None, None, None);
    // What is not read when a socket is closed takes along what was written.
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.read(&mut [0; 4096]);
    theirs.set_nonblocking(false).unwrap();
    let _ = theirs.write_all(&answers);
    let _ = theirs.shutdown(Shutdown::Both);
    let answered = |well: bool| if well { CALLED.one() } else { CONFUSED.one() };
    for call in calls {
        answered(call.is_ok_and(|call| call.wait().is_ok()));
    }
    answered(crash.is_ok_and(|crash| crash.wait().is_ok()));
    answered(client.mark("n").is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who_asked() -> Said {
        Said { open: HashMap::from([(7, (1, true))]), ..Said::default() }
    }

    #[test]
    #[should_panic(expected = "7 is answered, and was not asked")]
    fn a_second_answer_is_noticed() {
        let mut said = who_asked();
        said.answer(br#"{"id":7,"ok":{}}"#);
        said.answer(br#"{"id":7,"ok":{}}"#);
    }

    #[test]
    #[should_panic(expected = "a call without an answer")]
    fn an_answer_that_does_not_come_is_noticed() {
        let (mut ours, _) = UnixStream::pair().unwrap();
        who_asked().listen_to_the_end(&mut ours);
    }

    #[test]
    #[should_panic(expected = "the server hung up")]
    fn a_server_that_hangs_up_is_noticed() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (place, mut said) = (Place::new(), Said::default());
        said.call(&mut ours, &json!({ "id": 7, "cmd": "status" }), &place);
        drop(theirs);
        said.listen(&mut ours);
        said.listen_to_the_end(&mut ours);
    }

    /// Its answers may be lost with it.
    #[test]
    fn a_server_may_hang_up_on_a_message_that_is_too_long() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (place, mut said) = (Place::new(), Said::default());
        said.call(&mut ours, &json!({ "id": 7, "cmd": "status" }), &place);
        said.raw(&mut ours, &u32::MAX.to_le_bytes(), &place);
        drop(theirs);
        said.listen(&mut ours);
        said.listen_to_the_end(&mut ours);
    }

    #[test]
    fn a_number_is_read_without_the_code_that_is_tried() {
        for (message, is) in [
            (r#"{"id":7,"cmd":"status"}"#, Some((7, true))),
            (r#"{"id":7}"#, Some((7, true))),
            (r#"{"id":7,"cmd":"crash","at":{"mark":"m"}}"#, Some((7, false))),
            (r#"{"id":7,"cmd":"crash","at":{"mark":""}}"#, Some((7, true))),
            (r#"{"id":-7,"cmd":"status"}"#, None),
            (r#"[7]"#, None),
            (r#"{"id":7"#, None),
        ] {
            assert_eq!(asked(message.as_bytes()), is, "{message}");
        }
    }

    #[test]
    #[should_panic(expected = "an answer is understood")]
    fn nonsense_is_noticed() {
        who_asked().answer(br#"{"id":7,"good":{}}"#);
    }
}

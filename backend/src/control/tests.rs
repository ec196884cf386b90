#![allow(clippy::unwrap_used)]
use super::*;
use crate::store::testing::{ask, read, reap, write};
use crate::store::{Cache, HoldCompletions, IoEngine, Machine, Options, Store};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use tornblk_model::crash::Profile;
use tornblk_proto::codec::Decoder;
use tornblk_proto::{Answer, Client, ClientError, Match, OpKind, RefusalKind, StallWhen, Trigger};

struct Rig {
    server: Server,
    machine: Arc<Machine>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn machine(dir: &tempfile::TempDir, recording: bool) -> Arc<Machine> {
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    Machine::open(Options {
        image,
        recording: recording.then(|| dir.path().join("disk.rec")),
        states: None,
        profile: Profile { lb_size: None, ..Profile::PLAIN },
        logical_block_size: 512,
        physical_block_size: 512,
        read_only: false,
        cache: Cache::Writeback,
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

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(&dir, true);
    let path = dir.path().join("control");
    let server = Server::start(&path, Arc::clone(&machine)).unwrap();
    Rig { server, machine, path, _dir: dir }
}

impl Rig {
    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> RefusalKind {
    match result {
        Err(ClientError::Refused(refusal)) => refusal.kind,
        other => panic!("{other:?}"),
    }
}

/// Sends bytes as they are, and reads one answer.
fn exchange(stream: &mut UnixStream, bytes: &[u8]) -> Answer {
    stream.write_all(bytes).unwrap();
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> Answer {
    let message = Decoder::default().read(stream).unwrap().unwrap();
    serde_json::from_slice(&message).unwrap()
}

fn framed(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text].concat()
}

#[test]
fn every_command_is_carried_out() {
    let rig = rig();
    let client = rig.client();
    let status = client.status().unwrap();
    assert_eq!((status.store.as_str(), status.state.as_str()), ("recording", "live"));
    assert_eq!(status.capacity, 1 << 20);
    let limits = client.limits().unwrap();
    assert_eq!((limits.logical_block_size, limits.mode.as_str()), (512, "none"));

    let mark = client.mark("one").unwrap();
    assert!(client.mark("two").unwrap().event > mark.event);

    let mut queue = rig.machine.queue(0);
    let which = Match { op: Some(OpKind::Write), ..Match::default() };
    let token = client.stall(which, StallWhen::BeforeCompletion).unwrap();
    queue.submit(write(0, 0, vec![1; 512]));
    assert!(reap(&mut *queue).is_empty());
    assert_eq!(client.status().unwrap().stalls[0].held, 1);
    assert_eq!(refused(client.use_state("live")), RefusalKind::Busy);
    assert_eq!(client.release(token).unwrap(), 1);
    assert_eq!(refused(client.release(token)), RefusalKind::NotFound);
    assert_eq!(reap(&mut *queue).len(), 1);

    let fault = client.fault("eio,nth=1").unwrap();
    assert!(ask(&mut *queue, read(1, 0, 512)).is_err());
    assert_eq!(client.status().unwrap().faults, ["eio,nth=1"]);
    assert_eq!(client.release(fault).unwrap(), 0);
    assert_eq!(refused(client.fault("eio,nth=none")), RefusalKind::Malformed);

    let state = format!("lb512/p{}:none", mark.event);
    let shown = client.use_state(&state).unwrap();
    assert_eq!(shown.name, state);
    assert_ne!(shown.nonce, 0);
    assert_eq!(ask(&mut *queue, read(2, 0, 512)).unwrap(), vec![7; 512]);
    assert_eq!(client.use_state("live").unwrap().nonce, 0);
    assert_eq!(refused(client.use_state("dead")), RefusalKind::NotFound);

    // Waiting for the trigger, the client goes on.
    let crash = client
        .crash_start(Trigger::Mark("now".to_owned()), Some("all"), None, Some("req4k"))
        .unwrap();
    assert_eq!(refused(client.crash(Trigger::Now, None, None, None)), RefusalKind::Busy);
    assert!(!client.status().unwrap().power_cut);
    let event = client.mark("now").unwrap().event;
    let crashed = crash.wait().unwrap();
    assert_eq!((crashed.event, crashed.state), (event, format!("req4k/p{event}:all")));
    assert!(client.status().unwrap().power_cut);
    assert_eq!(refused(client.crash(Trigger::Now, None, None, None)), RefusalKind::Busy);
}

#[test]
fn a_client_that_leaves_releases_what_it_held() {
    let rig = rig();
    let (one, other) = (rig.client(), rig.client());
    let mut queue = rig.machine.queue(0);
    one.stall(Match::default(), StallWhen::BeforeIo).unwrap();
    let kept =
        other.stall(Match { nth: Some(2), ..Match::default() }, StallWhen::BeforeIo).unwrap();
    let armed = one.crash_start(Trigger::Mark("never".to_owned()), None, None, None).unwrap();
    assert!(armed.wait_for(std::time::Duration::ZERO).unwrap().is_none());
    // Answered after what was sent before it was carried out.
    one.status().unwrap();
    queue.submit(write(0, 0, vec![1; 512]));
    queue.submit(write(1, 512, vec![1; 512]));
    assert!(reap(&mut *queue).is_empty());
    drop(one);
    assert!(matches!(armed.wait(), Err(ClientError::Gone)));
    let mut done = reap(&mut *queue);
    while done.is_empty() {
        std::thread::yield_now();
        done = reap(&mut *queue);
    }
    assert_eq!(done.len(), 1);
    let stalls = other.status().unwrap().stalls;
    assert_eq!((stalls.len(), stalls[0].token, stalls[0].held), (1, kept, 1));
    // Its crash is disarmed: another can be armed.
    let mut again = other.crash(Trigger::Now, None, None, None);
    while matches!(&again, Err(ClientError::Refused(r)) if r.kind == RefusalKind::Busy) {
        std::thread::yield_now();
        again = other.crash(Trigger::Now, None, None, None);
    }
    again.unwrap();
}

#[test]
fn what_is_malformed_is_answered_and_the_next_message_is_read() {
    let rig = rig();
    let mut stream = rig.raw();
    let cases: [(&[u8], Option<u64>, &str); 8] = [
        (b"\xff\xfe\xfd", None, "JSON"),
        (b"{\"id\": 1", None, "JSON"),
        (b"", None, "JSON"),
        (b"[]", None, "object"),
        (br#"{"cmd": "status"}"#, None, "`id`"),
        (br#"{"id": 2, "cmd": "dance"}"#, Some(2), "dance"),
        (br#"{"id": 3, "cmd": "status", "loudly": true}"#, Some(3), "loudly"),
        (br#"{"id": 4, "cmd": "release", "token": "four"}"#, Some(4), "four"),
    ];
    for (text, id, says) in cases {
        let answer = exchange(&mut stream, &framed(text));
        assert_eq!(answer.id, id);
        let error = answer.error.unwrap();
        assert_eq!(error.kind, RefusalKind::Malformed);
        assert!(error.message.contains(says), "{error}");
    }
    let answer = exchange(&mut stream, &framed(br#"{"id": 5, "cmd": "limits"}"#));
    assert_eq!(answer.id, Some(5));
    assert_eq!(answer.ok.unwrap()["logical_block_size"], json!(512));
}

#[test]
fn a_message_that_comes_in_pieces_is_one() {
    let rig = rig();
    let mut stream = rig.raw();
    for byte in framed(br#"{"id": 1, "cmd": "status"}"#) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(answer(&mut stream).id, Some(1));
    let two = [framed(br#"{"id": 2, "cmd": "status"}"#), framed(br#"{"id": 3, "cmd": "limits"}"#)];
    stream.write_all(&two.concat()).unwrap();
    let mut decoder = Decoder::default();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let message = decoder.read(&mut stream).unwrap().unwrap();
        ids.push(serde_json::from_slice::<Value>(&message).unwrap()["id"].clone());
    }
    assert_eq!(ids, [json!(2), json!(3)]);
}

#[test]
fn a_length_that_cannot_be_ends_the_connection_with_an_answer() {
    let rig = rig();
    let mut stream = rig.raw();
    let told = exchange(&mut stream, &u32::MAX.to_le_bytes());
    assert!(told.error.unwrap().message.contains("4294967295"));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed");

    let mut stream = rig.raw();
    stream.write_all(&[5, 0]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let error = answer(&mut stream).error.unwrap();
    assert!(error.message.contains("ended inside a message"), "{error}");
    assert_eq!(error.kind, RefusalKind::Malformed);
    rig.client().status().unwrap();
}

#[test]
fn too_many_clients_are_told_so() {
    let rig = rig();
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..server::MAX_CLIENTS {
        clients.push(rig.client());
        clients[clients.len() - 1].limits().unwrap();
    }
    let error = rig.client().status().unwrap_err();
    assert!(error.to_string().contains("64 clients"), "{error}");
    clients.pop();
    // Its thread takes a moment to go.
    while rig.client().status().is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn only_the_owner_may_connect_and_nothing_is_left() {
    let rig = rig();
    let mode = std::fs::metadata(&rig.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(rig.server.path(), rig.path);
    let second = Server::start(&rig.path, Arc::clone(&rig.machine)).unwrap_err();
    assert!(matches!(second, ControlError::InUse { .. }), "{second}");
    let client = rig.client();
    let armed = client.crash_start(Trigger::Mark("never".to_owned()), None, None, None).unwrap();
    client.status().unwrap();
    let Rig { server, path, .. } = rig;
    drop(server);
    assert!(!path.exists());
    assert!(armed.wait().is_err());
    assert!(client.status().is_err());
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(&dir, false);
    let path = dir.path().join("control");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(&path, Arc::clone(&machine)).unwrap();
    let client = Client::connect(&path).unwrap();
    assert_eq!(client.status().unwrap().store, "raw");
    assert_eq!(refused(client.mark("m")), RefusalKind::Unsupported);
    assert_eq!(refused(client.use_state("live")), RefusalKind::Unsupported);
    let crash = client.crash(Trigger::Now, None, None, None);
    assert_eq!(refused(crash), RefusalKind::Unsupported);
    // Somebody else's by now.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"a file").unwrap();
    drop(server);
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    let error = Server::start(&path, Arc::clone(&machine)).unwrap_err();
    assert!(matches!(error, ControlError::NoSocket(_)), "{error}");

    let long = dir.path().join("c".repeat(120));
    let error = Server::start(&long, Arc::clone(&machine)).unwrap_err();
    assert!(matches!(error, ControlError::TooLong(_)), "{error}");
    let nowhere = dir.path().join("none/control");
    let error = Server::start(&nowhere, machine).unwrap_err();
    assert!(matches!(error, ControlError::Io { .. }), "{error}");
}

#[test]
fn stalls_and_faults_are_limited_so_that_a_status_can_always_be_told() {
    let rig = rig();
    let client = rig.client();
    for _ in 0..1000 {
        client.fault("eio,range=0+512,nth=1000000").unwrap();
        client.stall(Match { nth: Some(1), ..Match::default() }, StallWhen::BeforeIo).unwrap();
    }
    assert_eq!(refused(client.fault("eio")), RefusalKind::Busy);
    assert_eq!(refused(client.stall(Match::default(), StallWhen::BeforeIo)), RefusalKind::Busy);
    let status = client.status().unwrap();
    assert_eq!((status.faults.len(), status.stalls.len()), (1000, 1000));
}

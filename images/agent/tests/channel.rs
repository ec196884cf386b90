//! The channel, from the host's end.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command as Program;
use std::time::Duration;

use common::{Host, target, workload};
use tornblk_agent::channel::{
    Command, Found, Outcome, PROTOCOL, Prepare, Target, ToGuest, ToHost, encode,
};

#[test]
fn a_ping_is_answered_and_the_kernel_named() {
    let mut host = Host::new();
    host.send(&ToGuest::Ping { id: 9 });
    let ToHost::Hello { id, protocol, kernel } = host.receive() else { panic!("no hello") };
    assert_eq!((id, protocol), (Some(9), PROTOCOL));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(kernel, release.trim());
    host.power_off();
}

#[test]
fn what_an_earlier_host_left_is_skipped() {
    let mut host = Host::new();
    host.stream.write_all(b"{\"to-guest\":\"run\",\"id\":4,\"comm\n\n").unwrap();
    assert!(matches!(host.receive(), ToHost::Progress { .. }), "it is told, for the log");
    host.ok(Command::Sync {});
}

#[test]
fn a_command_that_the_agent_does_not_know_is_answered() {
    let mut host = Host::new();
    let line = b"{\"to-guest\":\"run\",\"id\":41,\"command\":{\"cmd\":\"make-coffee\"}}\n";
    host.stream.write_all(line).unwrap();
    let ToHost::Ended { id: 41, result: Outcome::Failed { message, .. } } = host.receive() else {
        panic!("no answer")
    };
    assert!(message.contains("make-coffee"), "{message}");
}

#[test]
fn a_large_readback_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(40_000 * 4096).unwrap();
    let mut host = Host::new();
    let whole = Target { prepare: Prepare::AsIs, ..target(1, &path, 40_000, 1, 1) };
    let found = host.readback(&workload(vec![whole], 0));
    assert_eq!(found.units.len(), 40_000);
    assert!(found.units.iter().enumerate().all(|(i, u)| u.unit == i as u64));
    assert!(found.units.iter().all(|u| u.runs == [(8, Found::Zero {})]));
}

#[test]
fn pings_are_answered_while_a_workload_runs_and_it_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new();
    let workload = workload(vec![target(1, &dir.path().join("a"), 16, 2, 1)], 1_000_000);
    host.send(&ToGuest::Run { id: 70, command: Box::new(Command::Workload { workload }) });
    let (mut marks, mut hellos) = (0, 0);
    let result = loop {
        match host.receive() {
            ToHost::Mark { mark, .. } => {
                marks += 1;
                if marks == 10 {
                    host.send(&ToGuest::Ping { id: 71 });
                }
                // After this one nothing is acknowledged any more.
                if hellos == 0 {
                    host.send(&ToGuest::Acked { mark });
                }
            }
            ToHost::Hello { id, .. } => {
                assert_eq!(id, Some(71));
                hellos += 1;
                host.send(&ToGuest::Stop { id: 70 });
            }
            ToHost::Ended { id: 70, result } => break result,
            other => panic!("{other:?}"),
        }
    };
    let Outcome::Failed { message, .. } = result else { panic!("{result:?}") };
    assert!(message.contains("stopped"), "{message}");
    assert_eq!(hellos, 1);
    host.ok(Command::Sync {});
}

#[test]
fn a_host_that_goes_away_ends_the_workload() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new();
    let workload = workload(vec![target(1, &dir.path().join("a"), 16, 2, 1)], 1_000_000);
    host.send(&ToGuest::Run { id: 1, command: Box::new(Command::Workload { workload }) });
    assert!(matches!(host.receive(), ToHost::Mark { .. }));
    // Dropping it waits for the agent to end.
    drop(host);
}

#[test]
fn commands_about_files_and_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").to_string_lossy().into_owned();
    let mut host = Host::new();
    let argv = vec!["sh".into(), "-c".into(), format!("echo hello >{path}; echo made; exit 4")];
    let ended = host.ok(Command::Exec { argv, timeout_ms: 60_000 });
    assert_eq!((ended["status"].as_i64(), ended["stdout"].as_str()), (Some(4), Some("made\n")));
    assert_eq!(host.ok(Command::ReadFile { path: path.clone() })["text"], "hello\n");
    host.ok(Command::Tune { set: vec![(path.clone(), "J".into())] });
    assert_eq!(std::fs::read(&path).unwrap(), b"Jello\n");
    let sum = host.ok(Command::Checksum { path: path.clone(), offset: 0, len: None });
    assert_eq!(sum["bytes"], 6);
    let limits = host.ok(Command::StatAtomic { path: path.clone() });
    assert!(limits["unit_max"].is_u64(), "{limits}");
    for refused in [
        Command::Blkflsbuf { device: path.clone() },
        Command::ReadNonce { device: "/dev/no-such-disk".into() },
        Command::Discard { device: path.clone(), offset: 0, len: 512, zeroes: false },
        Command::LoadModule { path: path.clone(), params: String::new() },
        Command::Umount { target: dir.path().to_string_lossy().into_owned() },
        Command::WaitDisk { serial: "no such disk".into(), timeout_ms: 10 },
    ] {
        let Outcome::Failed { message, .. } = host.run(refused.clone()) else {
            panic!("{refused:?} was done")
        };
        assert!(message.len() > 20, "{message}");
    }
}

#[test]
fn the_program_serves_one_host_after_the_other_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut agent = Program::new(env!("CARGO_BIN_EXE_tornblk-agent"))
        .arg("--serve")
        .arg(&socket)
        .spawn()
        .unwrap();
    let connect = || {
        for _ in 0..6000 {
            if let Ok(stream) = UnixStream::connect(&socket) {
                return stream;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the agent does not listen");
    };
    for _ in 0..2 {
        let mut lines = BufReader::new(connect()).lines().map(Result::unwrap);
        let hello = lines.find(|line| !line.is_empty()).unwrap();
        assert!(matches!(serde_json::from_str(&hello).unwrap(), ToHost::Hello { .. }));
    }
    let mut last = connect();
    last.write_all(&encode(&ToGuest::Run { id: 1, command: Box::new(Command::PowerOff {}) }))
        .unwrap();
    assert!(agent.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn the_program_without_arguments_says_how_it_is_used() {
    let output = Program::new(env!("CARGO_BIN_EXE_tornblk-agent")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--serve SOCKET"));
}

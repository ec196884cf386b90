//! A host for the agent, in this process, over a socket pair.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use tornblk_agent::channel::{
    Command, Lines, MarkText, Outcome, Prepare, Readback, Target, ToGuest, ToHost, Workload,
    WriteFlags, encode,
};
use tornblk_agent::guest::port::Stream;
use tornblk_agent::guest::serve::{End, serve};

pub struct Host {
    pub stream: UnixStream,
    lines: Lines,
    next_id: u64,
    agent: Option<JoinHandle<End>>,
    /// All marks of the last workload, with the number of the message they came in.
    pub marks: Vec<(u64, MarkText)>,
}

/// Called with each mark message before it is acknowledged.
pub type OnMarks<'a> = &'a mut dyn FnMut(&[MarkText]);

impl Host {
    pub fn new() -> Host {
        let (host, guest) = UnixStream::pair().unwrap();
        let agent = std::thread::spawn(move || serve(&Stream::new(OwnedFd::from(guest)), false));
        let mut host = Host {
            stream: host,
            lines: Lines::new(),
            next_id: 1,
            agent: Some(agent),
            marks: vec![],
        };
        assert!(matches!(host.receive(), ToHost::Hello { id: None, .. }));
        host
    }

    pub fn send(&mut self, message: &ToGuest) {
        self.stream.write_all(&encode(message)).unwrap();
    }

    pub fn receive(&mut self) -> ToHost {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(line) = self.lines.next_line() {
                return serde_json::from_slice(line).unwrap();
            }
            let n = self.stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the agent closed the channel");
            self.lines.push(&buffer[..n]);
        }
    }

    pub fn run(&mut self, command: Command) -> Outcome {
        self.run_watching(command, &mut |_| {})
    }

    pub fn run_watching(&mut self, command: Command, on_marks: OnMarks<'_>) -> Outcome {
        let id = self.next_id;
        self.next_id += 1;
        self.marks.clear();
        self.send(&ToGuest::Run { id, command: Box::new(command) });
        loop {
            match self.receive() {
                ToHost::Mark { mark, marks } => {
                    on_marks(&marks);
                    self.marks.extend(marks.into_iter().map(|m| (mark, m)));
                    self.send(&ToGuest::Acked { mark });
                }
                ToHost::Ended { id: ended, result } => {
                    assert_eq!(ended, id);
                    return result;
                }
                ToHost::Progress { .. } => {}
                hello => panic!("unexpected {hello:?}"),
            }
        }
    }

    pub fn ok(&mut self, command: Command) -> serde_json::Value {
        match self.run(command) {
            Outcome::Ok { value } => value,
            other => panic!("{other:?}"),
        }
    }

    pub fn readback(&mut self, workload: &Workload) -> Readback {
        let value = self.ok(Command::Readback { workload: workload.clone() });
        serde_json::from_value(value).unwrap()
    }

    pub fn power_off(mut self) {
        self.send(&ToGuest::Run { id: 0, command: Box::new(Command::PowerOff {}) });
        assert_eq!(self.agent.take().unwrap().join().unwrap(), End::PowerOff);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(agent) = self.agent.take()
            && !std::thread::panicking()
        {
            assert_eq!(agent.join().unwrap(), End::Closed);
        }
    }
}

pub const BUFFERED: WriteFlags = WriteFlags::PLAIN;
pub const DSYNC: WriteFlags = WriteFlags { dsync: true, ..BUFFERED };

/// A target of 4 KiB units in a file.
pub fn target(file: u32, path: &std::path::Path, units: u32, threads: u32, depth: u32) -> Target {
    Target {
        file,
        path: path.to_string_lossy().into_owned(),
        offset: 0,
        unit: 4096,
        units,
        threads,
        depth,
        flags: vec![BUFFERED, DSYNC],
        prepare: Prepare::Written,
        ..Target::default()
    }
}

pub fn workload(files: Vec<Target>, writes: u32) -> Workload {
    Workload { nonce: 77, seed: 5, files, load: true, writes, sync_every: 10, skip_sync: false }
}

//! Small recordings, made as a device makes them. Also a module of tests of the program: nothing of
//! the library is named here.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use tornblk_agent::channel::{MarkText, Prepare, Target, Workload, WriteFlags};
use tornblk_agent::payload::{self, Stamp};
use tornblk_model::event::{Disk, Event, Mark, Negotiation, Op, Seq, Submit};
use tornblk_model::recording::{BaseImage, Completion, NewRecording, Writer};

/// A base image, and a recording on it.
pub(crate) struct Recorded {
    pub(crate) dir: tempfile::TempDir,
    writer: Option<Writer>,
    position: u16,
}

pub(crate) const CAPACITY: u64 = 256 << 10;

/// Where the first of [`Recorded::units`] is: where the base is empty.
const FIRST: u64 = 64 << 10;

impl Recorded {
    /// The base holds 0xb5 in its first 32 KiB, and nothing after that.
    pub(crate) fn new(lb_size: u32) -> Recorded {
        Recorded::on(lb_size, &[(0, vec![0xb5; 32 << 10])])
    }

    /// The base holds this, and nothing else: (place, bytes).
    pub(crate) fn on(lb_size: u32, holds: &[(u64, Vec<u8>)]) -> Recorded {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.img");
        let file = std::fs::File::create(&base).unwrap();
        for (at, bytes) in holds {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, *at).unwrap();
        }
        file.set_len(CAPACITY).unwrap();
        let disk = Disk { capacity: CAPACITY, lb_size };
        let new = NewRecording {
            segment_size: 64 << 10,
            ..NewRecording::new(
                disk,
                BaseImage::identify(&base).unwrap(),
                serde_json::json!({"profile": "req16k"}),
            )
        };
        let writer = Writer::create(&dir.path().join("disk.recording"), new).unwrap();
        let negotiation =
            Negotiation { flush_offered: true, flush: true, config_wce: false, writeback: true };
        writer.append(&Event::Negotiate(negotiation)).unwrap();
        Recorded { dir, writer: Some(writer), position: 0 }
    }

    pub(crate) fn writer(&self) -> &Writer {
        self.writer.as_ref().unwrap()
    }

    pub(crate) fn submit(&mut self, op: Op) -> Seq {
        let position = self.position;
        self.position += 1;
        let submit = Submit { queue: 0, position, head: position, ioprio: 0, op };
        self.writer().append(&Event::Submit(submit)).unwrap()
    }

    /// A write that is in flight.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Seq {
        let payload = self.writer().payload(data).unwrap();
        let len = data.len() as u64;
        self.submit(Op::Write { offset, len, fua: false, atomic: false, payload })
    }

    pub(crate) fn complete(&mut self, request: Seq) -> Seq {
        let visible = [(0, self.position)];
        self.writer().complete(&visible, Completion::ok(request)).unwrap()
    }

    pub(crate) fn flush(&mut self) -> Seq {
        let flush = self.submit(Op::FLUSH);
        self.complete(flush)
    }

    pub(crate) fn mark(&mut self, name: &str) -> Seq {
        self.writer().append(&Event::Mark(Mark { name: name.into() })).unwrap()
    }

    /// Units of 16 KiB written one after another on the raw disk, each acknowledged as durable: with
    /// a flush between write and acknowledgement, or, where it is `forgotten`, without. `subject`
    /// makes the marks that say what it is a recording of.
    pub(crate) fn units(
        n: u64,
        forgotten: &[u64],
        subject: impl FnOnce(&Workload) -> Vec<String>,
    ) -> Recorded {
        let mut recorded = Recorded::new(512);
        for mark in subject(&workload(n)) {
            recorded.mark(&mark);
        }
        let flags = WriteFlags { direct: true, dsync: true, ..WriteFlags::default() };
        let mut batch = 0;
        let mut say = |recorded: &mut Recorded, mark: MarkText| {
            batch += 1;
            recorded.mark(&mark.to_record(batch));
        };
        say(&mut recorded, MarkText::Phase { name: "load-done".into() });
        for unit in 0..n {
            let offset = FIRST + unit * 16384;
            let intent =
                MarkText::Intent { file: 1, unit, r#gen: 1, offset, len: 16384, flags, at: None };
            say(&mut recorded, intent);
            let mut bytes = vec![0; 16384];
            let stamp = Stamp { nonce: 7, unit, file: 1, generation: 1, sector: 0, sectors: 0 };
            payload::fill(&mut bytes, stamp);
            let write = recorded.write(offset, &bytes);
            recorded.complete(write);
            if !forgotten.contains(&unit) {
                recorded.flush();
            }
            say(&mut recorded, MarkText::Done { file: 1, unit, r#gen: 1, result: 16384 });
        }
        say(&mut recorded, MarkText::Phase { name: "writes-done".into() });
        recorded.end()
    }

    /// The first `n` pages of an InnoDB file that begins at [`TABLE`], overwritten in place, each with a
    /// flush after it. `marks` say where the file lies, and whatever else.
    pub(crate) fn table(n: u64, marks: &[String]) -> Recorded {
        let places = (0..TABLE_PAGES).map(|page| (TABLE + page * 16384, innodb(page, 1)));
        let mut recorded = Recorded::on(512, &places.collect::<Vec<_>>());
        for mark in marks {
            recorded.mark(mark);
        }
        for page in 0..n {
            let write = recorded.write(TABLE + page * 16384, &innodb(page, 2));
            recorded.complete(write);
            recorded.flush();
        }
        recorded.end()
    }

    /// A flushed write of 1s, and one of 2s over 16 KiB that is only complete.
    pub(crate) fn some(lb_size: u32) -> Recorded {
        let mut recorded = Recorded::new(lb_size);
        let first = recorded.write(8192, &[1; 16384]);
        recorded.complete(first);
        recorded.flush();
        let second = recorded.write(8192, &[2; 16384]);
        recorded.complete(second);
        recorded.mark("done");
        recorded
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("disk.recording")
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.dir.path().join("base.img")
    }

    /// The device is gone.
    pub(crate) fn end(mut self) -> Recorded {
        self.writer = None;
        self
    }
}

/// Where the file of [`Recorded::table`] begins, and how many pages it has.
pub(crate) const TABLE: u64 = 64 << 10;
pub(crate) const TABLE_PAGES: u64 = 6;

/// A page of 16 KiB as MariaDB seals it (full_crc32).
pub(crate) fn innodb(number: u64, lsn: u64) -> Vec<u8> {
    let byte = |i: u64| (i * 7 + (i >> 9) * 13 + number * 31 + lsn * 101) as u8;
    let mut page: Vec<u8> = (0..16384).map(byte).collect();
    page[4..8].copy_from_slice(&(number as u32).to_be_bytes());
    page[16..24].copy_from_slice(&lsn.to_be_bytes());
    page[16376..16380].copy_from_slice(&(lsn as u32).to_be_bytes());
    let crc = crc32c::crc32c(&page[..16380]);
    page[16380..].copy_from_slice(&crc.to_be_bytes());
    page
}

/// That of [`Recorded::units`].
pub(crate) fn workload(n: u64) -> Workload {
    let target = Target {
        file: 1,
        path: "/dev/vda".into(),
        offset: FIRST,
        unit: 16384,
        units: n as u32,
        threads: 1,
        depth: 1,
        flags: vec![WriteFlags { direct: true, dsync: true, ..WriteFlags::default() }],
        prepare: Prepare::AsIs,
        ..Target::default()
    };
    Workload {
        nonce: 7,
        seed: 1,
        files: vec![target],
        load: false,
        writes: n as u32,
        sync_every: 0,
        skip_sync: false,
    }
}

/// What is in a folder.
pub(crate) fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub(crate) fn says<T: std::fmt::Debug, E: std::fmt::Display + std::fmt::Debug>(
    result: Result<T, E>,
    text: &str,
) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

//! What a recording says of a SCSI disk: which queue, in which order, atomic and forced or not; and
//! that the crash model understands it.

use crate::common::driver::Driver;
use crate::common::scsi::DISK;
use crate::{FIRST, atomic, cdb10, cdb16, memory};
use std::sync::{Arc, Mutex};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd};
use tornblk_backend::store::{Cache, HoldCompletions, Machine, Options, Rings, Store};
use tornblk_model::crash::{History, Profile};
use tornblk_model::event::{Event, Op, Seq};
use tornblk_model::recording::Reader;

/// The available indices, as the transport would read them: of the control and event queues, too.
#[derive(Default)]
struct Indices(Mutex<[u16; 3]>);

impl Rings for Indices {
    fn available(&self, f: &mut dyn FnMut(u16, u16)) {
        for (queue, index) in (0..).zip(*self.0.lock().unwrap()) {
            f(queue, index);
        }
    }
}

#[test]
fn a_recording_tells_the_request_queues_apart_and_the_model_understands_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let file = dir.path().join("disk.rec");
    let profile: Profile = "explicit16k".parse().unwrap();
    let limits = Limits::new(&LimitOptions {
        profile: Some(profile.clone()),
        seg_max: 126,
        front_end: FrontEnd::Scsi,
        ..LimitOptions::default()
    });
    let machine = Machine::open(Options {
        image,
        states: None,
        recording: Some(file.clone()),
        profile: profile.clone(),
        logical_block_size: 512,
        physical_block_size: 512,
        read_only: false,
        cache: Cache::Writeback,
        seed: 0,
        faults: Vec::new(),
        hold_completions: HoldCompletions::None,
        serial: "disk".to_owned(),
    });
    let machine = machine.unwrap();
    let identity = machine.clone();
    let device = Scsi::new(ScsiOptions {
        store: machine.clone() as Arc<dyn Store>,
        limits: limits.unwrap(),
        request_queues: 1,
        queue_size: 256,
        writeback: true,
        id: Box::new(move || identity.id_string()),
    });
    let indices = Arc::new(Indices::default());
    device.store().connected(indices.clone());
    device.negotiated(device.features());
    // Buffers for events, and functions, before the first command.
    *indices.0.lock().unwrap() = [3, 8, 0];

    let mem = memory();
    let mut driver = Driver::new(mem.clone(), 0x1000, 256, 0x1_0000);
    let (mut queue, mut ring) = (device.request_queue(FIRST), driver.ring(false));
    let off = [&[0, 0, 0, 0, 8, 18][..], &[0; 18]].concat();
    let commands: [(&[u8], &[u8]); 6] = [
        // No request of the store's: a position without one.
        (&[0; 6], &[]),
        (&atomic(0x08, 8, 0, 32), &[1; 16384]),
        (&cdb10(0x2a, 0, 8, 32), &[2; 16384]),
        (&cdb10(0x35, 0, 0, 0), &[]),
        (&cdb16(0x93, 0, 100, 8), &[3; 512]),
        (&[0x15, 0x10, 0, 0, 24, 0], &off),
    ];
    for (cdb, out) in commands {
        let sent = driver.command(DISK, 1, cdb, out, 0);
        indices.0.lock().unwrap()[2] = driver.avail();
        let _ = queue.pump(&mut ring, &mem, true);
        assert_eq!(driver.take_used(), [(sent.head, 108)]);
        assert!(driver.reply(&sent).good(), "{cdb:02x?}");
    }

    let reader = Reader::open(&file).unwrap();
    let events: Vec<(Seq, Event)> = reader.events().collect::<Result<_, _>>().unwrap();
    let mut said = Vec::new();
    let mut visible = Vec::new();
    for (_, event) in &events {
        match event {
            Event::Submit(submit) => {
                assert_eq!(submit.queue, FIRST);
                said.push((
                    submit.position,
                    match &submit.op {
                        Op::Write { offset, len, fua, atomic, .. } => {
                            format!("write {offset}+{len} {fua} {atomic}")
                        }
                        Op::Flush => "flush".to_owned(),
                        other => panic!("{other:?}"),
                    },
                ));
            }
            Event::Visible { queue, index } => visible.push((*queue, *index)),
            Event::SetWriteback { on } => assert!(!on),
            _ => {}
        }
    }
    assert_eq!(
        said,
        [
            (1, "write 4096+16384 true true".to_owned()),
            (2, "write 4096+16384 false false".to_owned()),
            (3, "flush".to_owned()),
            (4, "write 51200+4096 false false".to_owned()),
        ]
    );
    // Each queue's index by its own number, and only where it moved.
    assert_eq!(visible, [(0, 3), (1, 8), (2, 2), (2, 3), (2, 4), (2, 5)]);

    // After the flush the first two are stable; the pattern is not, and is torn at any block.
    let last = events.last().unwrap().0;
    let history = History::new(device.disk().clone(), events).unwrap();
    let cut = history.cut(last, &profile).unwrap();
    assert_eq!(cut.volatile().len(), 1);
}

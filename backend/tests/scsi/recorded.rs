//! What a recording says of a SCSI disk: which queue, in which order, atomic and forced or not; and
//! that the crash model understands it.

use crate::common::driver::Driver;
use crate::common::scsi::DISK;
use crate::{FIRST, atomic, cdb10, cdb16, memory};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tornblk_backend::device::limits::{LimitOptions, Limits};
use tornblk_backend::device::scsi::{Lun, Scsi, ScsiOptions};
use tornblk_backend::device::{Device, FrontEnd};
use tornblk_backend::store::{Cache, HoldCompletions, IoEngine, Machine, Options, Rings, Store};
use tornblk_model::crash::{History, Profile};
use tornblk_model::event::{Event, Op, Seq};
use tornblk_model::recording::Reader;

/// The available indices, as the transport would read them: of the control and event queues, too.
#[derive(Default)]
struct Indices(Mutex<[u16; 4]>);

impl Rings for Indices {
    fn available(&self, f: &mut dyn FnMut(u16, u16)) {
        for (queue, index) in (0..).zip(*self.0.lock().unwrap()) {
            f(queue, index);
        }
    }
}

/// A recorded disk of 1 MiB for each logical unit, two request queues.
fn recorded(dir: &Path, profile: &Profile, luns: Vec<Lun>) -> Arc<Scsi> {
    let image = dir.join("disk.img");
    std::fs::write(&image, vec![0; luns.len().max(1) << 20]).unwrap();
    let limits = Limits::new(&LimitOptions {
        profile: Some(profile.clone()),
        seg_max: 126,
        front_end: FrontEnd::Scsi,
        ..LimitOptions::default()
    });
    let machine = Machine::open(Options {
        image,
        states: None,
        recording: Some(dir.join("disk.rec")),
        profile: profile.clone(),
        logical_block_size: 512,
        physical_block_size: 512,
        read_only: false,
        cache: Cache::Writeback,
        seed: 0,
        faults: Vec::new(),
        direct: false,
        io_engine: IoEngine::Auto,
        record_payload: true,
        queues: 4,
        hold_completions: HoldCompletions::None,
        divided: !luns.is_empty(),
        serial: "disk".to_owned(),
    });
    let machine = machine.unwrap();
    let identity = machine.clone();
    Scsi::new(ScsiOptions {
        store: machine.clone() as Arc<dyn Store>,
        luns,
        limits: limits.unwrap(),
        request_queues: 2,
        queue_size: 256,
        writeback: true,
        id: Box::new(move || identity.id_string()),
    })
}

#[test]
fn a_recording_tells_the_request_queues_apart_and_the_model_understands_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk.rec");
    let profile: Profile = "explicit16k".parse().unwrap();
    let device = recorded(dir.path(), &profile, Vec::new());
    let indices = Arc::new(Indices::default());
    device.store().connected(indices.clone());
    device.negotiated(device.features());
    // Buffers for events, and functions, before the first command.
    *indices.0.lock().unwrap() = [3, 8, 0, 0];

    let mem = memory();
    let mut queues = [(FIRST, 0x1000), (FIRST + 1, 0x8_0000)].map(|(n, base)| {
        let driver = Driver::new(mem.clone(), base, 256, base + 0xf000);
        let ring = driver.ring(false);
        (driver, device.request_queue(n), ring)
    });
    let off = [&[0, 0, 0, 0, 8, 18][..], &[0; 18]].concat();
    let commands: [(usize, &[u8], &[u8]); 6] = [
        // No request of the store's: a position without one.
        (0, &[0; 6], &[]),
        (0, &atomic(0x08, 8, 0, 32), &[1; 16384]),
        (1, &cdb10(0x2a, 0, 8, 32), &[2; 16384]),
        (0, &cdb10(0x35, 0, 0, 0), &[]),
        (1, &cdb16(0x93, 0, 100, 8), &[3; 512]),
        (1, &[0x15, 0x10, 0, 0, 24, 0], &off),
    ];
    for (n, cdb, out) in commands {
        let (driver, queue, ring) = &mut queues[n];
        let sent = driver.command(DISK, 1, cdb, out, 0);
        indices.0.lock().unwrap()[2 + n] = driver.avail();
        let _ = queue.pump(ring, &mem, true);
        assert_eq!(driver.take_used(), [(sent.head, 108)]);
        assert!(driver.reply(&sent).good(), "{cdb:02x?}");
    }

    let reader = Reader::open(&file).unwrap();
    let events: Vec<(Seq, Event)> = reader.events().collect::<Result<_, _>>().unwrap();
    let mut said = Vec::new();
    let (mut visible, mut completed) = (Vec::new(), Vec::new());
    for (seq, event) in &events {
        match event {
            Event::Submit(submit) => {
                said.push((
                    submit.queue,
                    submit.position,
                    match &submit.op {
                        Op::Write { offset, len, fua, atomic, .. } => {
                            format!("write {offset}+{len} {fua} {atomic}")
                        }
                        Op::Flush { .. } => "flush".to_owned(),
                        other => panic!("{other:?}"),
                    },
                ));
            }
            Event::Visible { queue, index } => visible.push((*queue, *index)),
            Event::SetWriteback { on } => assert!(!on),
            Event::Complete { .. } => completed.push(*seq),
            _ => {}
        }
    }
    // WRITE SAME is a write a block: all of them on their way before the first is complete, and
    // complete together, whatever else is going on.
    let part = |n: u64| (3, 1, format!("write {}+512 false false", 51200 + n * 512));
    let (before, after) = (&said[..3], &said[11..]);
    assert_eq!(said[3..11], (0..8).map(part).collect::<Vec<_>>());
    assert_eq!(
        [before, after].concat(),
        [
            (2, 1, "write 4096+16384 true true".to_owned()),
            (3, 0, "write 4096+16384 false false".to_owned()),
            (2, 2, "flush".to_owned()),
            (3, 2, "flush".to_owned()),
        ]
    );
    // Each queue's index by its own number, and only where it moved.
    assert_eq!(visible, [(0, 3), (1, 8), (2, 2), (3, 0), (3, 1), (2, 3), (3, 2), (3, 3)]);

    // What was forced is stable when it is complete, before any flush; what was not, after one of
    // any queue, or after the one with which the cache is switched off.
    let history = History::new(device.disk().clone(), events).unwrap();
    let volatile = completed.iter().map(|at| history.cut(*at, &profile).unwrap().volatile().len());
    assert_eq!(volatile.collect::<Vec<_>>(), [0, 1, 0, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
}

#[test]
fn units_are_flushed_apart_and_the_model_understands_it() {
    const LOG: [u8; 8] = [1, 0, 0, 1, 0, 0, 0, 0];
    let dir = tempfile::tempdir().unwrap();
    let profile: Profile = "lb512".parse().unwrap();
    let lun = |name: &str| Lun { name: name.into(), bytes: 1 << 20 };
    let device = recorded(dir.path(), &profile, vec![lun("main"), lun("log")]);
    device.store().connected(Arc::new(Indices::default()));
    device.negotiated(device.features());
    let mem = memory();
    let mut driver = Driver::new(mem.clone(), 0x1000, 256, 0x1_0000);
    let (mut queue, mut ring) = (device.request_queue(FIRST), driver.ring(false));
    let flush = cdb10(0x35, 0, 0, 0);
    let commands: [([u8; 8], &[u8], &[u8]); 4] = [
        (DISK, &cdb10(0x2a, 0, 3, 1), &[1; 512]),
        (LOG, &cdb10(0x2a, 0, 3, 1), &[2; 512]),
        (DISK, &flush, &[]),
        (LOG, &flush, &[]),
    ];
    for (lun, cdb, out) in commands {
        let sent = driver.command(lun, 1, cdb, out, 0);
        let _ = queue.pump(&mut ring, &mem, true);
        assert_eq!(driver.take_used(), [(sent.head, 108)]);
        assert!(driver.reply(&sent).good(), "{cdb:02x?}");
    }
    let reader = Reader::open(&dir.path().join("disk.rec")).unwrap();
    let events: Vec<(Seq, Event)> = reader.events().collect::<Result<_, _>>().unwrap();
    let ops = events.iter().filter_map(|(_, event)| match event {
        Event::Submit(submit) => Some(&submit.op),
        _ => None,
    });
    let ops: Vec<&Op> = ops.collect();
    assert!(matches!(ops[1], Op::Write { offset: 0x10_0600, .. }), "{:?}", ops[1]);
    let mib = 1 << 20;
    assert_eq!(
        ops[2..],
        [&Op::Flush { offset: 0, len: mib }, &Op::Flush { offset: mib, len: mib }]
    );
    let history = History::new(device.disk(), events.clone()).unwrap();
    let done = events.iter().filter(|(_, event)| matches!(event, Event::Complete { .. }));
    let volatile = |at: Seq| {
        let volatile = history.cut(at, &profile).unwrap().volatile();
        volatile.iter().map(|w| history.request(*w).unwrap().ranges()[0].0).collect::<Vec<_>>()
    };
    let volatile: Vec<Vec<u64>> = done.map(|(at, _)| volatile(*at)).collect();
    assert_eq!(volatile, [vec![0x600], vec![0x600, 0x10_0600], vec![0x10_0600], vec![]]);
}

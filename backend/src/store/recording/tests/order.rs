//! The one order of all that happens, under four queues: what every read showed, and who came
//! before whom, must be what the recording says.

use super::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, AtomicU64};

const QUEUES: u16 = 4;
/// Few, so that they meet.
const BLOCKS: u64 = 6;
const BLOCK: u64 = 512;
const ROUNDS: u16 = 400;

/// The content of every block of a write: which write it was.
fn content_of(queue: u16, position: u16) -> u64 {
    (u64::from(queue) + 1) << 32 | u64::from(position)
}

fn bytes_of(content: u64) -> Vec<u8> {
    content.to_le_bytes().repeat((BLOCK / 8) as usize)
}

/// What one thread knows of one of its requests: a clock that all share was so before it was
/// submitted, and so after it was reaped; what each block read showed.
struct Lived {
    before: u64,
    after: u64,
    read: Vec<u64>,
}

/// The guest's available indexes.
#[derive(Default)]
struct Available([AtomicU16; QUEUES as usize]);

impl Rings for Available {
    fn available(&self, f: &mut dyn FnMut(u16, u16)) {
        (0..).zip(&self.0).for_each(|(queue, index)| f(queue, index.load(Ordering::Acquire)));
    }
}

/// Lets other threads go on, somewhere in the middle of a request. Asleep, since on a machine that is
/// busy a mere yield goes to somebody else.
#[derive(Default)]
struct Elsewhere(AtomicU64);

impl Elsewhere {
    fn perhaps(&self) -> Verdict {
        let n = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) >> 61;
        std::thread::sleep(std::time::Duration::from_micros(n * 20));
        Verdict::Go
    }
}

impl Gate for Elsewhere {
    fn before_io(&self, _: &GateContext<'_>) -> Verdict {
        self.perhaps()
    }

    fn before_completion(&self, _: &GateContext<'_>) -> Verdict {
        self.perhaps()
    }
}

/// As the event's own fields have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Id(u16, u16);

/// A request of the recording: its submission and its end.
struct Told {
    submit: u64,
    complete: u64,
    write: bool,
    blocks: std::ops::Range<u64>,
}

/// A thread's: reads and writes of one to three blocks, and now and then a flush or a mark.
fn work(
    store: &RecordingStore,
    clock: &AtomicU64,
    available: &Available,
    queue: u16,
) -> Vec<(Id, Lived)> {
    let mut own = store.queue(queue);
    let mut state = 0x9e37_79b9_u64.wrapping_mul(u64::from(queue) + 1);
    let mut all = Vec::new();
    for position in 0..ROUNDS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let first = state % BLOCKS;
        let n = (1 + state / 7 % 3).min(BLOCKS - first);
        let mut request = match state / 32 % 8 {
            0..4 => write(
                position,
                first * BLOCK,
                bytes_of(content_of(queue, position)).repeat(n as usize),
            ),
            4..7 => read(position, first * BLOCK, (n * BLOCK) as usize),
            _ => flush(position),
        };
        request.origin.queue = queue;
        let reads = matches!(request.op, Op::Read { .. });
        available.0[usize::from(queue)].store(position + 1, Ordering::SeqCst);
        let before = clock.fetch_add(1, Ordering::SeqCst);
        own.submit(request);
        let done = reap(&mut *own).remove(0);
        let after = clock.fetch_add(1, Ordering::SeqCst);
        assert!(done.result.is_ok());
        let mut shown = Vec::new();
        if reads {
            for block in data(&done).chunks(BLOCK as usize) {
                let word = u64::from_le_bytes(block[..8].try_into().unwrap());
                assert!(block.chunks(8).all(|w| w == word.to_le_bytes()), "a torn block");
                shown.push(word);
            }
        }
        all.push((Id(queue, position), Lived { before, after, read: shown }));
        if position % 50 == 0 {
            store.mark(&format!("{queue} {position}")).unwrap();
        }
    }
    all
}

fn told(events: &[(Seq, Event)]) -> HashMap<Id, Told> {
    let mut submitted = HashMap::new();
    let mut all = HashMap::new();
    let mut last = None;
    for (seq, event) in events {
        match event {
            Event::Submit(submit) => {
                assert!(last < Some(*seq), "every number once");
                last = Some(*seq);
                let (write, blocks) = match submit.op {
                    event::Op::Write { offset, len, .. } => (true, (offset, len)),
                    event::Op::Read { offset, len } => (false, (offset, len)),
                    _ => (false, (0, 0)),
                };
                let blocks = blocks.0 / BLOCK..(blocks.0 + blocks.1) / BLOCK;
                let id = Id(submit.queue, submit.position);
                submitted.insert(*seq, (id, write, blocks));
            }
            Event::Complete { request, status } => {
                assert!(last < Some(*seq), "every number once");
                last = Some(*seq);
                assert_eq!(*status, Status::Ok);
                let (id, write, blocks) =
                    submitted.remove(request).expect("submitted before, and ended once");
                let told = Told { submit: request.0, complete: seq.0, write, blocks };
                assert!(all.insert(id, told).is_none(), "{id:?} twice");
            }
            _ => {}
        }
    }
    assert!(submitted.is_empty(), "all ended");
    all
}

#[test]
fn what_four_queues_did_is_what_the_recording_says() {
    let place = Setup::new();
    let gate = Arc::new(Elsewhere::default());
    let store = place.create_with(BLOCK as u32, DiscardReads::Zeroes, gate);
    let base: Vec<u64> = (0..BLOCKS)
        .map(|b| u64::from_le_bytes(place.bytes[(b * BLOCK) as usize..][..8].try_into().unwrap()))
        .collect();
    let clock = AtomicU64::new(0);
    let available = Arc::new(Available::default());
    store.connected(Arc::clone(&available) as _);
    let lived: Vec<(Id, Lived)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..QUEUES)
            .map(|queue| {
                let (store, clock, available) = (&store, &clock, &*available);
                scope.spawn(move || work(store, clock, available, queue))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let events = place.events();
    // What became visible has the number of the end that it comes with.
    let ends = events.iter().filter(|(_, event)| !matches!(event, Event::Visible { .. }));
    assert!(ends.enumerate().all(|(n, (seq, _))| seq.0 == n as u64), "a number is missing");
    let told = told(&events);
    assert_eq!(told.len(), usize::from(QUEUES * ROUNDS));

    // Who had ended before another began is before it in the recording.
    let mut by_end: Vec<_> = lived.iter().map(|(id, l)| (l.after, told[id].complete)).collect();
    by_end.sort_unstable();
    let mut by_begin: Vec<_> = lived.iter().map(|(id, l)| (l.before, told[id].submit)).collect();
    by_begin.sort_unstable();
    let (mut ended, mut newest) = (by_end.into_iter().peekable(), None);
    for (begin, submit) in by_begin {
        while let Some((_, complete)) = ended.next_if(|(end, _)| *end < begin) {
            newest = newest.max(Some(complete));
        }
        assert!(newest < Some(submit), "one that had ended comes after event {submit}");
    }

    // What the guest had queued before another request began is on record, one way or the other,
    // before that one's end: no wait of a guest is made up.
    let mut known: HashMap<Id, u64> = told.iter().map(|(id, t)| (*id, t.submit)).collect();
    let mut visible = 0;
    for (seq, event) in &events {
        if let Event::Visible { queue, index } = event {
            visible += 1;
            for position in 0..*index {
                let first = known.get_mut(&Id(*queue, position)).unwrap();
                *first = (*first).min(seq.0);
            }
        }
    }
    assert!(visible > ROUNDS.into(), "only {visible} times something became visible");
    let queued: Vec<_> = lived.iter().map(|(id, l)| (l.before, known[id])).collect();
    for (id, l) in &lived {
        let end = told[id].complete;
        let hidden = queued.iter().find(|(before, known)| *before < l.before && *known > end);
        assert!(hidden.is_none(), "{hidden:?} was queued before {id:?} began, and not told");
    }

    // What a read showed was the newest of the writes that were executed by then: one that was
    // submitted before the read ended; and none newer that had ended before the read was submitted.
    let mut concurrent = 0;
    for (id, l) in &lived {
        let read = &told[id];
        for (block, shown) in read.blocks.clone().zip(&l.read) {
            let writes = || {
                let all = told.iter().filter(|(_, w)| w.write && w.blocks.contains(&block));
                all.map(|(id, w)| (content_of(id.0, id.1), w))
            };
            let seen = if *shown == base[block as usize] {
                None
            } else {
                let write = writes().find(|(content, _)| content == shown);
                Some(write.expect("somebody wrote it").1)
            };
            assert!(seen.is_none_or(|w| w.submit < read.complete), "from the future");
            let newer = writes().map(|(_, w)| w).filter(|w| {
                w.complete < read.submit && seen.is_none_or(|seen| seen.submit < w.submit)
            });
            assert_eq!(newer.count(), 0, "block {block} of {id:?} is older than it may be");
            concurrent += u64::from(seen.is_some_and(|w| w.complete > read.submit));
        }
    }
    // All blocks of a read are of one moment: no write is seen in one block and is missing in
    // another, unless one submitted later covers it there.
    for (id, l) in &lived {
        let read = &told[id];
        let seen: Vec<Option<&Told>> = l
            .read
            .iter()
            .map(|content| {
                let id = Id((content >> 32) as u16, *content as u16);
                let known = told.get(&Id(id.0.wrapping_sub(1), id.1));
                known.filter(|w| w.write)
            })
            .collect();
        for write in seen.iter().flatten() {
            for (block, other) in read.blocks.clone().zip(&seen) {
                let covered = write.blocks.contains(&block)
                    && other.is_none_or(|other| other.submit < write.submit);
                assert!(!covered, "block {block} of {id:?} is of before, another of after");
            }
        }
    }
    // The disk in the end is what was submitted last in each block.
    let shown = content(&store);
    for block in 0..BLOCKS {
        let last = told
            .iter()
            .filter(|(_, w)| w.write && w.blocks.contains(&block))
            .max_by_key(|(_, w)| w.submit);
        let (id, _) = last.unwrap();
        let expected = bytes_of(content_of(id.0, id.1));
        assert!(shown[(block * BLOCK) as usize..][..BLOCK as usize] == expected, "block {block}");
    }
    assert!(place.by_the_model(DiscardReads::Zeroes, &[]) == shown);
    // Otherwise little of this was tried.
    assert!(concurrent > 10, "{concurrent} blocks were read while they were written");
    // Marks are where the thread that made them was.
    for (seq, event) in &events {
        if let Event::Mark(mark) = event {
            let (queue, position) = mark.name.split_once(' ').unwrap();
            let (queue, position) = (queue.parse().unwrap(), position.parse::<u16>().unwrap());
            assert!(told[&Id(queue, position)].complete < seq.0);
            let next = told.get(&Id(queue, position + 1));
            assert!(next.is_none_or(|next| seq.0 < next.submit));
        }
    }
}

//! Small random recordings: a driver with one or two queues, and a device that sees, takes and
//! answers what it likes, when it likes.

use tornblk_model::event::{
    Disk, Event, Mark, Negotiation, Op, Payload, ResetCause, Segment, Seq, Status, Submit,
};

/// xorshift64*, so that the recordings do not change when the model's own generator does.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    /// Once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) disk: Disk,
    pub(crate) events: Vec<(Seq, Event)>,
}

struct Ring {
    /// Posted by the driver, in order; (position, op).
    posted: Vec<(u16, Op)>,
    avail: u16,
    told: u16,
}

struct Flight {
    id: Seq,
    queue: u16,
    position: u16,
    op: Op,
}

struct Maker {
    dice: Dice,
    disk: Disk,
    seq: u64,
    events: Vec<(Seq, Event)>,
    rings: Vec<Ring>,
    flight: Vec<Flight>,
    /// Blocks that writes may still touch in all: at most that many fragments.
    budget: u64,
    wce: bool,
    several: bool,
}

/// `several`: some flushes are of one disk of two, or of any range.
pub(crate) fn recording(seed: u64, fragments: u64, several: bool) -> Recording {
    let mut dice = Dice::new(seed);
    let lb = dice.pick(&[512u32, 1024, 4096]);
    let disk = Disk { capacity: u64::from(lb) * (4 + dice.below(4)), lb_size: lb };
    let queues = 1 + dice.below(2);
    let rings = (0..queues)
        .map(|_| {
            let start = dice.pick(&[0, 0xfffd, 0xffff, 0x7ffe, 1234]);
            Ring { posted: Vec::new(), avail: start, told: start }
        })
        .collect();
    let mut maker = Maker {
        dice,
        disk,
        seq: 0,
        events: Vec::new(),
        rings,
        flight: Vec::new(),
        budget: fragments,
        wce: false,
        several,
    };
    maker.negotiate();
    let steps = 14 + maker.dice.below(30) + 3 * fragments.saturating_sub(12);
    for _ in 0..steps {
        maker.step();
    }
    Recording { disk: maker.disk, events: maker.events }
}

impl Maker {
    fn put(&mut self, event: Event) -> Seq {
        // Holes are no error.
        self.seq += 1 + u64::from(self.dice.one_in(6));
        self.events.push((Seq(self.seq), event));
        Seq(self.seq)
    }

    fn negotiate(&mut self) {
        let (flush_offered, flush, config_wce) = self.dice.pick(&[
            (true, true, false),
            (true, true, true),
            (true, true, true),
            (true, false, true),
            (true, false, false),
            (false, false, false),
        ]);
        self.wce = config_wce;
        let writeback = if flush { self.dice.one_in(2) } else { false };
        self.put(Event::Negotiate(Negotiation { flush_offered, flush, config_wce, writeback }));
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0..=13 => self.post(),
            14..=24 => self.take(),
            25..=35 => self.complete(),
            36 => {
                let name = format!("mark {}", self.seq);
                self.put(Event::Mark(Mark { name }));
            }
            37 => {
                let on = self.dice.one_in(2);
                self.put(Event::SetWriteback { on });
            }
            38 => self.look(),
            _ => {
                if !self.dice.one_in(3) {
                    self.reset();
                }
            }
        }
    }

    fn range(&mut self, step: u64) -> (u64, u64) {
        let lb = u64::from(self.disk.lb_size);
        let blocks = self.disk.capacity / lb;
        let longest = blocks.min(self.budget).min(4);
        let len = (1 + self.dice.below(longest)) * lb;
        let offset = self.dice.below((self.disk.capacity - len) / step + 1) * step;
        if step == lb {
            return (offset, len);
        }
        // Some sectors less, or elsewhere.
        let len = (len - self.dice.below(lb / step) * step).max(step);
        let mut end = offset + len;
        while (end.div_ceil(lb) - offset / lb) > longest {
            end -= step;
        }
        (offset, end - offset)
    }

    fn flush(&mut self) -> Op {
        if !self.several || self.dice.one_in(5) {
            return Op::FLUSH;
        }
        let Disk { capacity, lb_size } = self.disk;
        let middle = capacity / 2 / u64::from(lb_size) * u64::from(lb_size);
        match self.dice.below(9) {
            0 => {
                let sectors = capacity / 512;
                let first = self.dice.below(sectors);
                let n = 1 + self.dice.below(sectors - first);
                Op::Flush { offset: first * 512, len: n * 512 }
            }
            n if n % 2 == 0 => Op::Flush { offset: 0, len: middle },
            _ => Op::Flush { offset: middle, len: capacity - middle },
        }
    }

    fn post(&mut self) {
        let queue = self.dice.below(self.rings.len() as u64) as usize;
        let lb = u64::from(self.disk.lb_size);
        let kind = self.dice.below(20);
        let op = if self.budget == 0 || kind < 5 {
            if self.dice.one_in(6) { Op::Read { offset: 0, len: 512 } } else { self.flush() }
        } else if kind < 16 {
            let step = if self.dice.one_in(4) { 512 } else { lb };
            let (offset, len) = self.range(step);
            self.budget -= (offset + len).div_ceil(lb) - offset / lb;
            let fua = self.dice.one_in(5);
            let atomic = self.dice.one_in(2);
            Op::Write { offset, len, fua, atomic, payload: Payload::default() }
        } else {
            let mut segments = Vec::new();
            let zeroes = kind < 18;
            for _ in 0..1 + self.dice.below(2) {
                if self.budget == 0 {
                    break;
                }
                let step = if !zeroes && self.dice.one_in(4) { 512 } else { lb };
                let (offset, len) = self.range(step);
                self.budget -= (offset + len).div_ceil(lb) - offset / lb;
                segments.push(Segment { offset, len, unmap: false });
            }
            if zeroes { Op::WriteZeroes { segments } } else { Op::Discard { segments } }
        };
        let ring = &mut self.rings[queue];
        ring.posted.push((ring.avail, op));
        ring.avail = ring.avail.wrapping_add(1);
    }

    fn look(&mut self) {
        for queue in 0..self.rings.len() {
            let ring = &mut self.rings[queue];
            if ring.told != ring.avail {
                ring.told = ring.avail;
                let index = ring.avail;
                self.put(Event::Visible { queue: queue as u16, index });
            }
        }
    }

    fn submit(&mut self, queue: u16, position: u16, mut op: Op) {
        if let Op::Write { payload, .. } = &mut op {
            payload.position = 4096 * (self.seq + 1);
        }
        let head = position % 8;
        let submit = Submit { queue, position, head, ioprio: 0, op: op.clone() };
        let id = self.put(Event::Submit(submit));
        if self.dice.one_in(10) {
            // As in an imported log: no moment lies between.
            self.events.push((id, Event::Complete { request: id, status: Status::Ok }));
            return;
        }
        self.flight.push(Flight { id, queue, position, op });
    }

    fn take(&mut self) {
        let queue = self.dice.below(self.rings.len() as u64) as usize;
        if !self.rings[queue].posted.is_empty() {
            let (position, op) = self.rings[queue].posted.remove(0);
            self.submit(queue as u16, position, op);
        }
    }

    fn complete(&mut self) {
        if self.flight.is_empty() {
            return;
        }
        let one = self.dice.below(self.flight.len() as u64) as usize;
        let request = self.flight.remove(one).id;
        let before = self.events.len();
        self.look();
        let status = self.dice.pick(&[
            Status::Ok,
            Status::Ok,
            Status::Ok,
            Status::Ok,
            Status::Ok,
            Status::IoErr,
            Status::Unsupp,
        ]);
        let at = self.put(Event::Complete { request, status });
        if self.dice.one_in(2) {
            // What was seen right before may be recorded as one with it.
            self.events[before..].iter_mut().for_each(|event| event.0 = at);
        }
    }

    fn reset(&mut self) {
        let cause = self.dice.pick(&[
            ResetCause::Device,
            ResetCause::QueueStop,
            ResetCause::Reconnect,
            ResetCause::Reconnect,
            ResetCause::Restart,
            ResetCause::PowerCut,
        ]);
        let queue = match cause {
            ResetCause::QueueStop => Some(self.dice.below(self.rings.len() as u64) as u16),
            _ => None,
        };
        self.put(Event::Reset { cause, queue });
        let hit = |q: usize| queue.is_none() || queue == Some(q as u16);
        let mut again = Vec::new();
        for flight in std::mem::take(&mut self.flight) {
            if hit(flight.queue.into()) { again.push(flight) } else { self.flight.push(flight) }
        }
        for (q, ring) in self.rings.iter_mut().enumerate().filter(|(q, _)| hit(*q)) {
            if matches!(cause, ResetCause::Device | ResetCause::PowerCut) {
                ring.posted.clear();
                ring.avail = 0;
            }
            ring.told = ring.avail.wrapping_sub(u16::from(q == 0 && !ring.posted.is_empty()));
        }
        if cause != ResetCause::QueueStop {
            self.negotiate();
        }
        if matches!(cause, ResetCause::Reconnect | ResetCause::Restart) {
            // In any order, perhaps not at all, perhaps after something else.
            while let Some(flight) = again.pop() {
                match self.dice.below(4) {
                    0 => {}
                    1 => self.look(),
                    _ => {}
                }
                if self.dice.one_in(2) {
                    // The device still knows of it.
                    self.flight.push(flight);
                } else if !self.dice.one_in(4) {
                    let op = match flight.op {
                        // Of other bytes, it is another request.
                        Op::Flush { .. } if self.several && self.dice.one_in(4) => self.flush(),
                        op => op,
                    };
                    self.submit(flight.queue, flight.position, op);
                }
            }
        }
    }
}

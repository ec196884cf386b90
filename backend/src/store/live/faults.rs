//! Live faults: requests that fail, and reads that answer with an earlier version.
//!
//! Whether a fault with a probability strikes is drawn for each request from the seed and from
//! what the request is: its kind, its bytes, and the how-manyth of its like it is. So the same seed
//! and the same requests give the same faults, however threads and queues take turns. `nth` counts
//! requests in the order in which they reach the device.

use crate::store::Op;
use crate::store::gate::{GateContext, Kind, Verdict};
use std::collections::HashMap;
use tornblk_model::crash::{Fault, FaultKind};
use tornblk_model::event::Seq;
use xxhash_rust::xxh3::Xxh3;

#[derive(Debug)]
struct Armed {
    token: u64,
    fault: Fault,
    /// The last event when it was armed; `None`: it was there before all events.
    since: Option<Seq>,
    /// Requests that it could have struck.
    seen: u64,
}

/// All armed faults: those that strike here, and those that the crash model resolves, which
/// are only kept.
#[derive(Debug)]
pub(super) struct Faults {
    seed: u64,
    armed: Vec<Armed>,
    /// How often each kind of request on each range came, while a draw depends on it.
    count: HashMap<u64, u64>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Faults {
        Faults { seed, armed: Vec::new(), count: HashMap::new() }
    }

    pub(super) fn add(&mut self, token: u64, fault: Fault, since: Option<Seq>) {
        self.armed.push(Armed { token, fault, since, seen: 0 });
    }

    pub(super) fn remove(&mut self, token: u64) -> bool {
        let before = self.armed.len();
        self.armed.retain(|a| a.token != token);
        self.armed.len() < before
    }

    pub(super) fn all(&self) -> Vec<(Fault, Option<Seq>)> {
        self.armed.iter().map(|a| (a.fault.clone(), a.since)).collect()
    }

    pub(super) fn any_live(&self) -> bool {
        self.armed.iter().any(|a| a.fault.kind.is_live())
    }

    /// What becomes of a request that just came.
    pub(super) fn strike(&mut self, ctx: &GateContext<'_>) -> Verdict {
        let mut verdict = Verdict::Go;
        let mut drawn = None;
        for (place, armed) in self.armed.iter_mut().enumerate() {
            let fault = &armed.fault;
            let applies = match fault.kind {
                FaultKind::Eio => true,
                FaultKind::StaleRead => ctx.kind() == Kind::Read,
                _ => false,
            };
            if !applies || fault.range.is_some_and(|(offset, len)| !ctx.touches(offset, len)) {
                continue;
            }
            armed.seen += 1;
            if fault.nth.is_some_and(|nth| nth != armed.seen) {
                continue;
            }
            if let Some(p) = fault.probability {
                let (like, nth) = *drawn.get_or_insert_with(|| {
                    let like = likeness(ctx);
                    let nth = self.count.entry(like).or_default();
                    *nth += 1;
                    (like, *nth)
                });
                if !draw(self.seed, place as u64, like, nth, p) {
                    continue;
                }
            }
            if fault.kind == FaultKind::Eio {
                verdict = Verdict::Fail;
            } else if verdict == Verdict::Go {
                verdict = Verdict::Stale;
            }
        }
        verdict
    }
}

/// The same for requests of one kind on the same bytes.
fn likeness(ctx: &GateContext<'_>) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&[ctx.kind() as u8]);
    match ctx.op {
        Op::Read { offset } | Op::Write { offset, .. } => {
            hash.update(&offset.to_le_bytes());
            hash.update(&ctx.len.to_le_bytes());
        }
        Op::Flush { len: 0, .. } => {}
        Op::Flush { offset, len } => {
            hash.update(&offset.to_le_bytes());
            hash.update(&len.to_le_bytes());
        }
        Op::Discard { segments } | Op::WriteZeroes { segments } => {
            for segment in segments {
                hash.update(&segment.offset.to_le_bytes());
                hash.update(&segment.len.to_le_bytes());
            }
        }
    }
    hash.digest()
}

fn draw(seed: u64, place: u64, like: u64, nth: u64, probability: f64) -> bool {
    let mut hash = Xxh3::with_seed(seed);
    for word in [place, like, nth] {
        hash.update(&word.to_le_bytes());
    }
    // 53 bits are what an f64 holds exactly: 0 <= unit < 1.
    let unit = (hash.digest() >> 11) as f64 / (1u64 << 53) as f64;
    unit < probability
}

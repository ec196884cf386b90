//! dm-log-writes logs: out of recordings and into them.
#![allow(clippy::unwrap_used)]

mod foreign;
#[path = "../crash_model/generate.rs"]
mod generate;
mod malformed;
mod replay;
mod round_trip;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_model::crash::{History, StateName};
use tornblk_model::event::Seq;
use tornblk_model::recording::log_writes::{ImportOptions, import};
use tornblk_model::recording::{Reader, StateReader, Trust};

pub(crate) fn history(reader: &Reader) -> History {
    let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
    History::new(reader.header().disk.clone(), events).unwrap()
}

/// The disk in a state.
pub(crate) fn bytes(reader: &Arc<Reader>, history: &History, name: &str) -> Vec<u8> {
    let content = history.build(&StateName(name.to_owned())).unwrap();
    let state = StateReader::new(Arc::clone(reader), None, Trust::Unchanged, content).unwrap();
    let mut bytes = vec![0; state.disk().capacity as usize];
    state.read_at(0, &mut bytes).unwrap();
    bytes
}

pub(crate) fn options(base: &Path, lb_size: Option<u32>) -> ImportOptions {
    let base = base.to_owned();
    ImportOptions { base, lb_size, atomic_unit_max: 0, segment_size: 64 << 10 }
}

pub(crate) struct Imported {
    pub(crate) reader: Arc<Reader>,
    pub(crate) history: History,
}

pub(crate) fn imported(log: &Path, base: &Path, lb_size: Option<u32>, to: PathBuf) -> Imported {
    import(log, &to, &options(base, lb_size)).unwrap();
    let reader = Arc::new(Reader::open(&to).unwrap());
    reader.verify().unwrap();
    let history = history(&reader);
    Imported { reader, history }
}

impl Imported {
    /// Every crash point: `prefix` is what the log replays to.
    pub(crate) fn is_what_the_log_replays_to(&self, log: &[u8], base: &[u8]) {
        let steps = replay::steps(log);
        let events: Vec<_> = self.reader.events().collect::<Result<_, _>>().unwrap();
        let points = self.history.points(true);
        for after in &points {
            use tornblk_model::event::Event;
            let done = events
                .iter()
                .filter(|(at, e)| at <= after && matches!(e, Event::Submit(_) | Event::Mark(_)))
                .count();
            let (all, none) = replay::after(&steps[..done], base);
            // Where entries cover parts of blocks, what is stable carries along what is not.
            let whole = u64::from(self.reader.header().disk.lb_size) <= replay::sector(log);
            for (what, expected) in [("all", all), ("none", none)] {
                if what == "none" && !whole {
                    continue;
                }
                let name = format!("lb/p{after}:{what}");
                assert!(
                    bytes(&self.reader, &self.history, &name) == expected,
                    "{name}, after {done} of {} steps",
                    steps.len()
                );
            }
        }
        // One moment an entry: none lies inside of one.
        let submits = |at: &Seq| {
            let mine = events.iter().filter(|(seq, _)| seq == at).collect::<Vec<_>>();
            mine.len() == 1 || mine.len() == 2
        };
        assert!(points.iter().all(submits));
        assert!(self.history.requests().iter().all(|r| r.succeeded() == Some(r.id())));
    }
}

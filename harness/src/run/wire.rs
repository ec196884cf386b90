//! What a recording says about a workload's blocks, seen from a cut.

use super::RunError;
use crate::oracle::{Wire, WireBuilder};
use std::collections::HashSet;
use std::path::Path;
use tornblk_agent::channel::Target;
use tornblk_model::crash::{History, Profile, StateName};
use tornblk_model::event::{Event, Op, Seq, Submit};
use tornblk_model::recording::Reader;

#[derive(Clone, Debug)]
pub struct WireQuery {
    /// Of the workload.
    pub nonce: u64,
    pub profile: String,
    /// The cut lies after this event.
    pub event: u64,
    /// The workload's targets, where they are the disk itself.
    pub raw: Option<Vec<Target>>,
    /// Where it is known: what is on the disk.
    pub state: Option<String>,
}

/// Reads every write up to the cut.
pub fn read_wire(recording: &Path, query: &WireQuery) -> Result<Wire, RunError> {
    let bad = |message: String| RunError::Recording { path: recording.to_owned(), message };
    let reader = Reader::open(recording).map_err(|e| RunError::Bad(e.to_string()))?;
    let disk = reader.header().disk.clone();
    let profile: Profile = query.profile.parse().map_err(|e| bad(format!("{e}")))?;
    let after = Seq(query.event);
    let mut events = Vec::new();
    for event in reader.events() {
        let event = event.map_err(|e| RunError::Bad(e.to_string()))?;
        if event.0 > after {
            break;
        }
        events.push(event);
    }
    let history =
        History::new(disk.clone(), events.iter().cloned()).map_err(|e| bad(e.to_string()))?;
    let cut = history.cut(after, &profile).map_err(|e| bad(e.to_string()))?;
    let volatile: HashSet<Seq> = cut.volatile().into_iter().collect();
    let mut builder = WireBuilder::new(query.nonce, disk.lb_size).with_pieces_of(&profile);
    if let Some(targets) = &query.raw {
        builder = builder.on_raw(targets);
    }
    for (seq, event) in &events {
        let Event::Submit(Submit { op: Op::Write { offset, len, atomic, payload, .. }, .. }) =
            event
        else {
            continue;
        };
        let bytes = reader
            .payload(payload, reader.payload_len(*offset, *len) as usize)
            .map_err(|e| RunError::Bad(e.to_string()))?;
        if *atomic {
            builder.sent_as_atomic(*seq);
        }
        let eligible = profile.eligible(*offset, *len, *atomic);
        builder.write(*seq, *offset, *len, &bytes, eligible, volatile.contains(seq));
    }
    let mut wire = builder.finish().with_anything(cut.may_be_anything());
    if let Some(state) = &query.state {
        let content = history.build(&StateName(state.clone())).map_err(|e| bad(e.to_string()))?;
        wire.set_content(&content);
    }
    Ok(wire)
}

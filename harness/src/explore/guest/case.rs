//! What all guests of an exploration have in common: the recording, and what it promises when.

use super::super::{ExploreError, Ledgers, Promises, Subject};
use crate::oracle::{Clause, Finding, Ledger, Wire, WireBuilder, judge};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tornblk_agent::channel::{Found, MarkText, Readback, Workload};
use tornblk_agent::payload::SECTOR;
use tornblk_model::crash::{Content, History, ModelError, Profile};
use tornblk_model::event::{self, Event, Seq};
use tornblk_model::recording::Reader;

/// A recording of a workload, ready to be judged at any crash point.
#[derive(Debug)]
pub struct Case<'a> {
    pub recording: PathBuf,
    /// A copy of its base image, where that is not in its place any more.
    pub base: Option<PathBuf>,
    pub subject: Subject,
    pub history: &'a History,
    ledgers: Ledgers,
    /// Of the whole recording; who sees how much of it is up to the crash point.
    wire: Wire,
    /// Writes that were sent as atomic.
    atomic: HashSet<u64>,
    /// What the user's program marked, and when.
    said: Vec<(Seq, String)>,
}

/// All that the verdict on a state depends on, but the state.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) profile: Profile,
    /// What the user's program had marked by then.
    pub(super) said: Vec<String>,
    ledger: Ledger,
    wire: Wire,
}

impl<'a> Case<'a> {
    /// `events` are all of the recording, and `history` what they say.
    ///
    /// # Errors
    /// The recorded data cannot be read.
    pub fn new(
        reader: &Reader,
        base: Option<&Path>,
        subject: Subject,
        events: &[(Seq, Event)],
        history: &'a History,
    ) -> Result<Case<'a>, ExploreError> {
        let workload = &subject.workload;
        let mut builder = WireBuilder::new(workload.nonce, history.disk().lb_size);
        if subject.volume.is_raw() {
            builder = builder.on_raw(&workload.files);
        }
        let mut atomics = HashSet::new();
        for (seq, event) in events {
            let Event::Submit(submit) = event else { continue };
            let event::Op::Write { offset, len, atomic, payload, .. } = &submit.op else {
                continue;
            };
            let bytes = reader.payload(payload, reader.payload_len(*offset, *len) as usize)?;
            builder.write(*seq, *offset, *len, &bytes, false, false);
            if *atomic {
                atomics.insert(seq.0);
            }
        }
        Ok(Case {
            recording: reader.path().to_owned(),
            base: base.map(Path::to_owned),
            ledgers: Ledgers::new(workload, events),
            wire: builder.finish(),
            atomic: atomics,
            said: said(events),
            subject,
            history,
        })
    }

    pub fn ledgers(&self) -> &Ledgers {
        &self.ledgers
    }

    /// The crash points at which more is promised.
    pub fn promises(&self) -> Promises {
        match &self.subject.checker {
            Some(_) => Promises::new(self.said.iter().map(|(seq, _)| *seq)),
            None => self.ledgers.promises(),
        }
    }

    /// What has to hold at a crash point.
    pub(super) fn bar(&self, profile: &Profile, after: Seq) -> Result<Bar, ModelError> {
        let cut = self.history.cut(after, profile)?;
        let volatile: HashSet<Seq> = cut.volatile().into_iter().collect();
        let wire = self.wire.seen_from(
            after.0,
            |c| {
                let here = u64::from(c.sectors.1) * SECTOR as u64;
                profile.eligible(c.offset, c.len, self.atomic.contains(&c.request))
                    || profile.is_one_piece(self.history.disk().lb_size, c.at, here)
            },
            |request| volatile.contains(&Seq(request)),
        );
        let wire = wire.with_anything(cut.may_be_anything());
        let ledger = self.ledgers.ledger(after);
        let before = self.said.iter().take_while(|(seq, _)| *seq <= after);
        let said = before.map(|(_, name)| name.clone()).collect();
        Ok(Bar { profile: profile.clone(), said, ledger, wire })
    }
}

/// The marks of the user's program.
fn said(events: &[(Seq, Event)]) -> Vec<(Seq, String)> {
    let said = |(seq, event): &(Seq, Event)| match event {
        Event::Mark(mark) => match MarkText::from_record(&mark.name) {
            Some((_, MarkText::Said { name })) => Some((*seq, name)),
            _ => None,
        },
        _ => None,
    };
    events.iter().filter_map(said).collect()
}

impl Bar {
    /// Judges what a guest read. `content` says what the disk held, and is asked only where
    /// something is wrong.
    ///
    /// System calls that failed while it was recorded are no finding here: they are the same in
    /// every state, and the run told of them.
    pub(super) fn judge(
        &self,
        workload: &Workload,
        lb_size: u32,
        readback: &Readback,
        content: impl FnOnce() -> Result<Content, ExploreError>,
    ) -> Result<Vec<Finding>, ExploreError> {
        let findings = |wire: &Wire, ledger: &Ledger| {
            let mut findings = judge(workload, lb_size, ledger, wire, readback).findings;
            findings.retain(|finding| finding.clause != Clause::Failed);
            findings
        };
        let first = findings(&self.wire, &self.ledger);
        let corrupt = |(_, found): &(u32, Found)| *found == Found::Corrupt {};
        if first.is_empty() && !readback.units.iter().any(|unit| unit.runs.iter().any(corrupt)) {
            return Ok(first);
        }
        // Lost, or stale; corrupt, or torn below the sector: what the disk holds says which.
        let mut wire = self.wire.clone();
        wire.set_content(&content()?);
        Ok(findings(&wire, &self.ledger))
    }
}

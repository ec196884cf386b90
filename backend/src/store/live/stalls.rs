//! Requests held until somebody lets them go.

use crate::store::Op;
use crate::store::gate::{GateContext, Kind};
use std::collections::{BTreeMap, HashMap, HashSet};
use tornblk_model::crash::Profile;
use tornblk_model::event::Disk;
use tornblk_proto::{Match, OpKind, Range, StallStatus, StallWhen};

/// Is `ctx` one of these requests? `nth` is the caller's to count; `eligible` is as the profile
/// in question says.
pub(in crate::store) fn matches(which: &Match, ctx: &GateContext<'_>, eligible: bool) -> bool {
    let kind = match ctx.kind() {
        Kind::Read => OpKind::Read,
        Kind::Write => OpKind::Write,
        Kind::Flush => OpKind::Flush,
        Kind::Discard => OpKind::Discard,
        Kind::WriteZeroes => OpKind::WriteZeroes,
    };
    which.op.is_none_or(|op| op == kind)
        && which.range.is_none_or(|Range { offset, len }| ctx.touches(offset, len))
        && (!which.eligible || eligible)
}

/// Is this a write that the profile's limits keep whole, and that could be cut without them? One
/// that lies within one tear unit could not.
pub(in crate::store) fn kept_whole(profile: &Profile, disk: &Disk, ctx: &GateContext<'_>) -> bool {
    let Op::Write { offset, atomic, .. } = ctx.op else { return false };
    let unit = profile.tear_unit_on(disk);
    let units = (offset + ctx.len).div_ceil(unit) - offset / unit;
    units > 1 && !ctx.pieces && profile.eligible(*offset, ctx.len, *atomic)
}

/// Counts matches: every one is meant, or only the nth.
pub(in crate::store) fn counted(which: &Match, seen: &mut u64) -> bool {
    *seen += 1;
    which.nth.is_none_or(|nth| nth == *seen)
}

#[derive(Debug)]
struct Stall {
    /// The client that asked for it.
    owner: u64,
    which: Match,
    when: StallWhen,
    seen: u64,
    /// Requests held now, and their queues.
    held: HashMap<u64, u16>,
}

/// All stalls, by their tokens.
#[derive(Debug, Default)]
pub(super) struct Stalls(BTreeMap<u64, Stall>);

impl Stalls {
    pub(super) fn add(&mut self, token: u64, owner: u64, which: Match, when: StallWhen) {
        self.0.insert(token, Stall { owner, which, when, seen: 0, held: HashMap::new() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A request arrives: is it held?
    pub(super) fn meets(
        &mut self,
        ctx: &GateContext<'_>,
        when: StallWhen,
        eligible: impl Fn() -> bool,
    ) -> bool {
        let mut held = false;
        for stall in self.0.values_mut().filter(|s| s.when == when) {
            let eligible = stall.which.eligible && eligible();
            if matches(&stall.which, ctx, eligible) && counted(&stall.which, &mut stall.seen) {
                stall.held.insert(ctx.id, ctx.origin.queue);
                held = true;
            }
        }
        held
    }

    /// Is it held still?
    pub(super) fn holds(&self, id: u64) -> bool {
        self.0.values().any(|s| s.held.contains_key(&id))
    }

    /// Ends a stall: how many it held, and the queues to wake.
    pub(super) fn release(&mut self, token: u64) -> Option<(u64, HashSet<u16>)> {
        let stall = self.0.remove(&token)?;
        Some((stall.held.len() as u64, stall.held.into_values().collect()))
    }

    pub(super) fn tokens_of(&self, owner: u64) -> Vec<u64> {
        self.0.iter().filter(|(_, s)| s.owner == owner).map(|(token, _)| *token).collect()
    }

    /// A request is let go, or over.
    pub(super) fn forget(&mut self, id: u64) -> bool {
        // All of them, not only the first.
        self.0.values_mut().filter_map(|s| s.held.remove(&id)).count() > 0
    }

    pub(super) fn forget_all(&mut self) {
        self.0.values_mut().for_each(|s| s.held.clear());
    }

    pub(super) fn status(&self) -> Vec<StallStatus> {
        let status =
            |(token, s): (&u64, &Stall)| StallStatus { token: *token, held: s.held.len() as u64 };
        self.0.iter().map(status).collect()
    }
}

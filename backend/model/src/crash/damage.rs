//! Faults: illegal states on purpose, each by one clause.

use super::cut::Write;
use super::random::Rng;
use super::state::State;
use super::{
    Cut, Fault, FaultKind, History, Mask, ModelError, Profile, Request, RequestKind, Stable,
    StateName,
};
use crate::event::Seq;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

impl Fault {
    /// Is this a request that the fault counts (`nth`)? `disk` as in [`Profile::eligible`].
    fn counts(&self, history: &History, profile: &Profile, request: &Request) -> bool {
        let (offset, len) = request.ranges().first().copied().unwrap_or_default();
        let kind = match (request.kind(), self.kind) {
            (RequestKind::Write { atomic, .. }, FaultKind::TearAtomic) => {
                let unit = profile.tear_unit_on(history.disk());
                let units = (offset + len).div_ceil(unit) - offset / unit;
                profile.eligible(offset, len, atomic) && units > 1
            }
            (
                RequestKind::Write { .. },
                FaultKind::LoseWrite | FaultKind::Misdirect | FaultKind::Corrupt,
            ) => len > 0,
            (RequestKind::Flush, FaultKind::IgnoreFlush | FaultKind::ReorderFlush) => true,
            _ => false,
        };
        kind && (request.kind() == RequestKind::Flush || self.in_range(request))
    }

    fn in_range(&self, request: &Request) -> bool {
        self.range.is_none_or(|(at, len)| {
            request.ranges().iter().any(|(offset, n)| *offset < at + len && at < offset + n)
        })
    }

    fn rng(&self, seed: u64, id: Seq) -> Rng {
        let mut bytes = self.kind.name().as_bytes().to_vec();
        bytes.extend(id.0.to_le_bytes());
        Rng::new(xxh3_64_with_seed(&bytes, seed))
    }
}

impl History {
    /// How many requests up to `after` a fault counts with `nth`, from the recording's beginning
    /// or the last power cut: so that "the 3rd from now on" can be said as a number.
    pub fn count_for(&self, fault: &Fault, profile: &Profile, after: Seq) -> u64 {
        let hit = |r: &&Request| fault.counts(self, profile, r);
        self.epoch(after).iter().filter(hit).count() as u64
    }
}

impl Cut<'_> {
    /// Breaks `name` with faults: the illegal state, and what was done in words, one a fault that
    /// found something to break. The same requests, name, faults and seed give the same state.
    ///
    /// A fault picks requests (writes; flushes for `ignore-flush` and `reorder-flush`) in
    /// submission order: the nth, or each with its probability; then it breaks those it can break
    /// at this point in a way that shows. Faults that are live are passed over.
    ///
    /// # Errors
    /// The name is no state of this crash point and profile, or has inverted bits already where a
    /// fault takes the data away.
    pub fn break_with(
        &self,
        name: &StateName,
        faults: &[Fault],
        seed: u64,
    ) -> Result<(StateName, Vec<String>), ModelError> {
        let (state, words) = self.break_state(self.state(name)?, faults, seed)?;
        if words.is_empty() {
            return Ok((name.clone(), words));
        }
        self.content(&state)?;
        Ok((self.name_of(&state), words))
    }

    /// As [`Cut::break_with`]; does not look whether what is left is a state.
    pub(super) fn break_state(
        &self,
        mut state: State,
        faults: &[Fault],
        seed: u64,
    ) -> Result<(State, Vec<String>), ModelError> {
        let mut words = Vec::new();
        let mut faults: Vec<&Fault> = faults.iter().filter(|fault| !fault.kind.is_live()).collect();
        // Where data lies is settled before it is moved, and moved before it is corrupted.
        faults.sort_by_key(|fault| match fault.kind {
            FaultKind::Misdirect => 1,
            FaultKind::Corrupt => 2,
            _ => 0,
        });
        for fault in faults {
            let picked = self.picked(fault, seed);
            let done = match fault.kind {
                FaultKind::TearAtomic => self.tear_atomic(&mut state, fault, seed, &picked),
                FaultKind::IgnoreFlush => self.ignore_flush(&mut state, fault, seed, &picked),
                FaultKind::LoseWrite => self.lose_write(&mut state, &picked),
                FaultKind::ReorderFlush => self.reorder_flush(&mut state, fault, seed, &picked),
                FaultKind::Misdirect => self.misdirect(&mut state, fault, seed, &picked),
                FaultKind::Corrupt => self.corrupt(&mut state, fault, seed, &picked),
                FaultKind::StaleRead | FaultKind::Eio => Vec::new(),
            };
            if !done.is_empty() {
                words.push(format!("{fault}: {}", done.join("; ")));
            }
        }
        Ok((state, words))
    }

    fn picked(&self, fault: &Fault, seed: u64) -> Vec<Seq> {
        let counted = self
            .history
            .epoch(self.after)
            .iter()
            .filter(|request| fault.counts(self.history, self.profile, request))
            .map(Request::id);
        match (fault.nth, fault.probability) {
            (Some(nth), _) => counted.skip(nth as usize - 1).take(1).collect(),
            (None, None) => counted.collect(),
            (None, Some(p)) => {
                let limit = (p * u64::MAX as f64) as u64;
                counted.filter(|id| fault.rng(seed, *id).next() <= limit).collect()
            }
        }
    }

    /// The writes among those picked that are part of the content, with their index.
    fn writes_of(&self, picked: &[Seq]) -> impl Iterator<Item = (u32, &Write<'_>)> {
        let found = picked.iter().filter_map(|id| self.find(*id).ok());
        found.map(|i| (i, &self.writes[i as usize]))
    }

    /// Clause 4. Only writes that are volatile here: a power cut catches no others at work.
    fn tear_atomic(
        &self,
        state: &mut State,
        fault: &Fault,
        seed: u64,
        picked: &[Seq],
    ) -> Vec<String> {
        let mut done = Vec::new();
        for (i, write) in self.writes_of(picked).filter(|(_, w)| w.stable.is_none()) {
            let mut there = state.clone();
            there.kept.insert(i, Mask::first(1));
            let mut units = BTreeSet::new();
            for block in self.shown(&there, i) {
                let over = write.extents.iter().filter(|e| e.blocks.contains(&block));
                units.extend(over.map(|extent| write.unit_of(extent, block)));
            }
            let units: Vec<usize> = units.into_iter().collect();
            if units.len() < 2 {
                continue;
            }
            let mut rng = fault.rng(seed, write.id());
            rng.next();
            let cut = units[1 + rng.below(units.len() as u64 - 1) as usize];
            let mask: Mask =
                if rng.chance(128) { (0..cut).collect() } else { (cut..write.units).collect() };
            done.push(format!(
                "write {} is cut before tear unit {cut} of {}; its {} part is there",
                write.id(),
                write.units,
                if mask.get(0) { "first" } else { "last" }
            ));
            state.kept.remove(&i);
            state.torn.insert(i, mask);
        }
        done
    }

    /// Stability 1: what only these flushes made stable is as volatile as it was before. Half of it
    /// is lost, drawn; all of it where the state keeps nothing that is volatile.
    fn ignore_flush(
        &self,
        state: &mut State,
        fault: &Fault,
        seed: u64,
        picked: &[Seq],
    ) -> Vec<String> {
        let nothing = !state.all && state.kept.values().all(Mask::is_empty);
        let ignored: BTreeSet<Seq> = picked.iter().copied().collect();
        let without = self.history.flushes(|flush| !ignored.contains(&flush));
        let mut lost = Vec::new();
        let mut last = None;
        for (i, write) in self.writes.iter().enumerate() {
            let i = i as u32;
            let without = self.history.stable_by(&without, write.request);
            let still = without.is_some_and(|(since, _)| since <= self.after);
            if write.stable.is_none() || still || self.is_void(write) {
                continue;
            }
            if !fault.in_range(write.request) {
                continue;
            }
            last = Some(i);
            let mut rng = fault.rng(seed, write.id());
            if nothing || rng.chance(128) {
                lost.push(i);
            }
        }
        // A fault that loses nothing is none: then the newest is lost.
        if lost.is_empty() {
            lost.extend(last);
        }
        for i in &lost {
            state.kept.insert(*i, Mask::new());
        }
        // A long recording may lose thousands; the state's name has them all.
        let ids = lost.iter().map(|i| format!("write {}", self.writes[*i as usize].id()));
        let named: Vec<String> = ids.take(5).collect();
        match lost.len().saturating_sub(named.len()) {
            _ if lost.is_empty() => Vec::new(),
            0 => vec![format!("lost although a flush had made it stable: {}", named.join(", "))],
            more => vec![format!(
                "lost although a flush had made it stable: {} and {more} more",
                named.join(", ")
            )],
        }
    }

    /// Clause 1.
    fn lose_write(&self, state: &mut State, picked: &[Seq]) -> Vec<String> {
        let mut done = Vec::new();
        for (i, write) in self.writes_of(picked).filter(|(_, w)| w.stable.is_some()) {
            if !self.shown(state, i).is_empty() {
                state.kept.insert(i, Mask::new());
                done.push(format!("write {} is lost though it was stable", write.id()));
            }
        }
        done
    }

    /// Clause 1, the way a barrier is broken: what came after the flush is there, what the flush
    /// was for is not.
    fn reorder_flush(
        &self,
        state: &mut State,
        fault: &Fault,
        seed: u64,
        picked: &[Seq],
    ) -> Vec<String> {
        let mut done = Vec::new();
        for id in picked {
            let Some(flush) = self.history.request(*id) else { continue };
            let survivor = (0..self.writes.len() as u32).find(|i| {
                let write = &self.writes[*i as usize];
                // A flush of one disk is no barrier on another.
                let ordered = flush.ranges().first().is_none_or(|of| write.request.lies_in(*of));
                ordered && flush.submitted() < write.request.submitted() && !self.is_void(write)
            });
            let Some(survivor) = survivor else { continue };
            let mut there = state.clone();
            let whole = Mask::first(self.writes[survivor as usize].fragments());
            there.kept.insert(survivor, whole);
            let before: Vec<u32> = (0..self.writes.len() as u32)
                .filter(|i| {
                    let write = &self.writes[*i as usize];
                    *i != survivor
                        && write.stable == Some(Stable::Flushed { flush: *id })
                        && fault.in_range(write.request)
                        && !self.shown(&there, *i).is_empty()
                })
                .collect();
            if before.is_empty() {
                continue;
            }
            let mut rng = fault.rng(seed, *id);
            rng.next();
            let victim = before[rng.below(before.len() as u64) as usize];
            *state = there;
            state.kept.insert(victim, Mask::new());
            done.push(format!(
                "write {}, from before flush {id}, is lost, and write {}, from after it, is there",
                self.writes[victim as usize].id(),
                self.writes[survivor as usize].id()
            ));
        }
        done
    }

    /// Clause 9.
    fn misdirect(
        &self,
        state: &mut State,
        fault: &Fault,
        seed: u64,
        picked: &[Seq],
    ) -> Vec<String> {
        let mut done = Vec::new();
        for (i, write) in self.writes_of(picked) {
            let room = self.history.disk().blocks() - write.length() as u64;
            if room == 0 || self.shown(state, i).is_empty() {
                continue;
            }
            let own = write.extents[0].blocks.start;
            let mut rng = fault.rng(seed, write.id());
            rng.next();
            // Any place but its own.
            let place = rng.below(room);
            let place = place + u64::from(place >= own);
            state.misdirected.insert(i, place);
            done.push(format!("write {} landed at block {place}, not {own}", write.id()));
        }
        done
    }

    /// Clause 9.
    fn corrupt(&self, state: &mut State, fault: &Fault, seed: u64, picked: &[Seq]) -> Vec<String> {
        let bits = u64::from(self.history.disk().lb_size) * 8;
        let mut done: BTreeMap<u64, String> = BTreeMap::new();
        for (i, write) in self.writes_of(picked) {
            let shown = self.shown(state, i);
            let shown: Vec<u64> = shown.into_iter().collect();
            if shown.is_empty() {
                continue;
            }
            let mut rng = fault.rng(seed, write.id());
            rng.next();
            let block = shown[rng.below(shown.len() as u64) as usize];
            let bit = rng.below(bits) as u32;
            state.flipped.insert(block, bit);
            done.insert(block, format!("bit {bit} of block {block} is inverted"));
        }
        done.into_values().collect()
    }
}

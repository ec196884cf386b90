//! From one crash point to another.

use super::super::coverage::{Coverage, Cuts};
use super::super::cut::Write;
use super::super::{DiscardReads, ModelError, Profile, RequestKind};
use super::cursor::{Changed, Cursor, Fragment, GONE, Live, STABLE};
use super::steps::Steps;
use super::tables::{Version, Walk};
use crate::event::Seq;
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::BTreeSet;

impl<'w, 'a> Cursor<'w, 'a> {
    /// # Errors
    /// The disk cannot have the profile.
    pub fn new(walk: &'w Walk<'a>, profile: &'w Profile) -> Result<Self, ModelError> {
        let disk = walk.history.disk();
        profile.check(disk)?;
        let blocks = walk.blocks().len();
        Ok(Cursor {
            walk,
            profile,
            unit: profile.tear_unit_on(disk) / u64::from(disk.lb_size),
            after: None,
            class: vec![GONE; walk.writes()],
            volatile: BTreeSet::new(),
            reference: vec![0; blocks],
            reference_sum: 0,
            now: vec![0; blocks],
            sum: 0,
            live: Vec::new(),
            open: Vec::new(),
            fragments: Vec::new(),
            cells: Vec::new(),
            changed: Changed::new(blocks),
            overlay: None,
            steps: Steps::Done,
            sample: None,
            cut: None,
            touched: Vec::new(),
            cuts: vec![None; walk.writes()],
            slow_coverage: Coverage::new(),
            hint: Cell::new(0),
        })
    }

    /// Goes to the crash point right after this event, and shows its reference: everything
    /// submitted so far is persisted. To go back or on costs what happened in between, but the
    /// first time as much as the recording is long.
    ///
    /// # Errors
    /// The walk does not [cover](Walk::covers) the point.
    pub fn go(&mut self, after: Seq) -> Result<(), ModelError> {
        if !self.walk.covers(after) {
            return Err(ModelError::State(format!(
                "crash point {after} lies on another side of a power cut in the recording"
            )));
        }
        self.uncover();
        self.sample = None;
        self.set_all(true);
        self.steps = Steps::Done;
        if self.after == Some(after) {
            return Ok(());
        }
        self.cut = None;
        match self.after {
            Some(now) => self.move_to(now, after),
            None => self.begin(after),
        }
        self.after = Some(after);
        self.find_live();
        Ok(())
    }

    fn never_shows(&self, write: u32) -> bool {
        self.profile.discard == DiscardReads::Old
            && self.walk.request(write).kind() == RequestKind::Discard
    }

    /// What a write is at a crash point; `None`: volatile.
    fn class_at(&self, write: u32, after: Seq) -> Option<u32> {
        let request = self.walk.request(write);
        let again = request.fetched_again().is_some_and(|again| again <= after);
        if after < request.id() || again || self.never_shows(write) {
            return Some(GONE);
        }
        request.stable().is_some_and(|(since, _)| since <= after).then_some(STABLE)
    }

    fn begin(&mut self, after: Seq) {
        self.volatile.clear();
        for write in 0..self.walk.writes() as u32 {
            let class = self.class_at(write, after);
            if class.is_none() {
                self.volatile.insert(write);
            }
            // Volatile writes get theirs in `find_live`; until then nothing asks.
            self.class[write as usize] = class.unwrap_or(STABLE);
        }
        for number in 0..self.reference.len() as u32 {
            let codes = self.walk.codes(number);
            let there = |code: &u32| self.class[self.walk.version(*code).write as usize] != GONE;
            let top = codes.rev().find(there).unwrap_or(0);
            self.reference[number as usize] = top;
            self.show(number, top);
        }
        self.reference_sum = self.sum;
        self.changed.note_all();
    }

    fn move_to(&mut self, now: Seq, after: Seq) {
        let walk = self.walk;
        let (low, high) = (now.min(after), now.max(after));
        let submitted = walk.submitted(after);
        let mut moved: Vec<u32> = (walk.submitted(low)..walk.submitted(high)).collect();
        for times in [&walk.stable, &walk.again] {
            let from = times.partition_point(|(at, _)| *at <= low);
            let to = times.partition_point(|(at, _)| *at <= high);
            moved.extend(times[from..to].iter().map(|(_, write)| *write));
        }
        moved.sort_unstable();
        moved.dedup();
        let mut dirty: Vec<(u32, u32)> = Vec::new();
        for write in moved {
            let before = self.class[write as usize];
            let class = self.class_at(write, after);
            if class.is_none() {
                self.volatile.insert(write);
            } else {
                self.volatile.remove(&write);
            }
            self.class[write as usize] = class.unwrap_or(STABLE);
            if (before == GONE) != (class == Some(GONE)) {
                for range in walk.ranges(walk.request(write)) {
                    if let Some(first) = walk.number(range.start) {
                        dirty.push((first, first + (range.end - range.start) as u32));
                    }
                }
            }
        }
        for (from, to) in dirty {
            for number in from..to {
                let codes = walk.codes(number);
                let reference = self.reference[number as usize];
                let mut code = reference.max(codes.start - 1);
                // Going on, what was submitted since is on top; in either direction, what was there
                // may be gone, or fetched again.
                while code + 1 < codes.end && walk.version(code + 1).write < submitted {
                    code += 1;
                }
                while code >= codes.start && self.class[walk.version(code).write as usize] == GONE {
                    code -= 1;
                }
                let top = if code >= codes.start { code } else { 0 };
                if top != reference {
                    self.reference[number as usize] = top;
                    self.show(number, top);
                }
            }
        }
        self.reference_sum = self.sum;
    }

    /// What is volatile here, and which of it may show.
    fn find_live(&mut self) {
        self.live.clear();
        self.open.clear();
        self.touched.clear();
        self.fragments.clear();
        self.cells.clear();
        let Some(after) = self.after else { return };
        let volatile = std::mem::take(&mut self.volatile);
        for write in &volatile {
            self.class[*write as usize] = self.live.len() as u32;
            self.add_live(*write, after);
        }
        self.volatile = volatile;
        self.touched.extend(0..self.live.len() as u32);
        for live in 0..self.live.len() as u32 {
            self.find_open(live);
            let Live { first, count, .. } = self.live[live as usize];
            let fragments = first as usize..(first + count) as usize;
            if self.fragments[fragments].iter().any(|fragment| fragment.open) {
                self.open.push(live);
                let cuts = &mut self.cuts[self.live[live as usize].write as usize];
                if count > 1 {
                    cuts.get_or_insert_with(|| Box::new(Cuts::new(count as usize)));
                }
            }
        }
    }

    fn add_live(&mut self, index: u32, after: Seq) {
        let request = self.walk.request(index);
        let write = Write::new(self.walk.history, self.profile, self.unit, request, after);
        let (first, count) = (self.fragments.len() as u32, write.fragments() as u32);
        let fragment = Fragment {
            live: self.live.len() as u32,
            blocks: (u32::MAX, 0),
            open: false,
            kept: true,
            shows: 0,
        };
        self.fragments.extend(std::iter::repeat_n(fragment, count as usize));
        let mut extents = SmallVec::new();
        for extent in &write.extents {
            let Some(number) = self.walk.number(extent.blocks.start) else { continue };
            let length = (extent.blocks.end - extent.blocks.start) as u32;
            extents.push((number, self.cells.len() as u32, length));
            for (number, block) in (number..).zip(extent.blocks.clone()) {
                let cell = first + write.fragment_of(extent, block) as u32;
                self.cells.push(cell);
                let blocks = &mut self.fragments[cell as usize].blocks;
                *blocks = (blocks.0.min(number), number + 1);
            }
        }
        self.live.push(Live {
            write: index,
            id: request.id(),
            first,
            count,
            extents,
            touched: true,
        });
    }

    /// A fragment may show in a block unless a stable write that came after it is there too.
    fn find_open(&mut self, live: u32) {
        let walk = self.walk;
        let (write, extents) = {
            let live = &self.live[live as usize];
            (live.write, live.extents.clone())
        };
        let request = walk.request(write);
        for (extent, (first, cell, length)) in (0u32..).zip(extents) {
            for (number, cell) in (first..first + length).zip(cell..) {
                let own = Version { write, extent };
                let top = self.reference[number as usize];
                let mut code = top;
                let mut hidden = false;
                while walk.version(code) != own {
                    let above = walk.version(code).write;
                    hidden |= self.class[above as usize] == STABLE
                        && !self.shows_through(above)
                        && request.is_before(walk.request(above));
                    code -= 1;
                }
                let fragment = &mut self.fragments[self.cells[cell as usize] as usize];
                fragment.open |= !hidden;
                fragment.shows += u32::from(code == top);
            }
        }
    }

    fn shows_through(&self, write: u32) -> bool {
        self.profile.discard == DiscardReads::Either
            && self.walk.request(write).kind() == RequestKind::Discard
    }
}

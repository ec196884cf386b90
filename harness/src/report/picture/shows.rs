//! What a state leaves of each write, block by block.

use super::{Fate, Kind, NoPicture, Shows, Standing};
use std::collections::HashMap;
use std::ops::Range;
use tornblk_model::crash::{
    Choice, Content, End, History, Mask, Parsed, Profile, Request, RequestKind, Selection, Source,
    Stable, StateName,
};
use tornblk_model::event::{Seq, Status};

/// A state, with all that is asked about it.
pub(super) struct State<'a> {
    pub(super) history: &'a History,
    pub(super) profile: Profile,
    pub(super) after: Seq,
    selection: Selection,
    content: Content,
    /// Of each write that was asked for: the blocks of its fragments.
    fragments: HashMap<Seq, Vec<Range<u64>>>,
    /// Blocks in a tear unit.
    pub(super) tear: u64,
}

impl<'a> State<'a> {
    pub(super) fn new(history: &'a History, name: &str) -> Result<State<'a>, NoPicture> {
        let bad = |e: &dyn std::fmt::Display| NoPicture(format!("the state cannot be built: {e}"));
        let parsed: Parsed = name.parse().map_err(|e| bad(&e))?;
        let cut = history.cut(parsed.after, &parsed.profile).map_err(|e| bad(&e))?;
        let name = StateName(name.to_owned());
        let content = cut.build(&name).map_err(|e| bad(&e))?;
        let spelled = cut.spell_out(&name).map_err(|e| bad(&e))?;
        let Choice::These(selection) = spelled.0.parse::<Parsed>().map_err(|e| bad(&e))?.choice
        else {
            return Err(NoPicture("the state does not say what it keeps".to_owned()));
        };
        let lb = u64::from(history.disk().lb_size);
        let tear = parsed.profile.tear_unit_on(history.disk()) / lb;
        Ok(State {
            history,
            after: parsed.after,
            selection,
            content,
            fragments: HashMap::new(),
            tear: tear.max(1),
            profile: parsed.profile,
        })
    }

    /// Asks for the fragments of these writes, which [`State::fate`] needs.
    pub(super) fn look_at(&mut self, writes: &[Seq]) -> Result<(), NoPicture> {
        let bad = |e: &dyn std::fmt::Display| NoPicture(format!("the state cannot be told: {e}"));
        let cut = self.history.cut(self.after, &self.profile).map_err(|e| bad(&e))?;
        for id in writes {
            let n = cut.fragments(*id).map_err(|e| bad(&e))?;
            let blocks = cut.fragment_blocks(*id, &Mask::first(n)).map_err(|e| bad(&e))?;
            self.fragments.insert(*id, blocks);
        }
        Ok(())
    }

    /// Where a write stood.
    pub(super) fn standing(&self, request: &Request) -> Standing {
        let Some(end) = request.end().filter(|end| end.at() <= self.after) else {
            return Standing::InFlight;
        };
        match (request.stable().filter(|(since, _)| *since <= self.after), end) {
            (Some((_, Stable::Flushed { flush })), _) => Standing::Stable(Some(flush)),
            (Some(_), _) => Standing::Stable(None),
            (None, End::Completed { status: Status::Ok, .. }) => Standing::Volatile,
            (None, _) => Standing::Failed,
        }
    }

    /// The profile makes it all-or-nothing.
    pub(super) fn is_whole(&self, request: &Request) -> bool {
        match (request.kind(), request.ranges().first()) {
            (RequestKind::Write { atomic, .. }, Some((offset, len))) => {
                self.profile.eligible(*offset, *len, atomic)
            }
            _ => false,
        }
    }

    fn torn(&self, id: Seq) -> Option<&Mask> {
        self.selection.torn.iter().find(|(torn, _)| *torn == id).map(|(_, mask)| mask)
    }

    /// Which of its tear units a block lies in.
    fn unit_of(&self, id: Seq, block: u64) -> usize {
        let first = self.fragments.get(&id).and_then(|f| f.first()).map_or(0, |f| f.start);
        (block / self.tear).saturating_sub(first / self.tear) as usize
    }

    fn keeps(&self, request: &Request, fragment: usize) -> bool {
        let id = request.id();
        let mut there = self.selection.all || matches!(self.standing(request), Standing::Stable(_));
        for (keep, _, mask) in self.selection.changes.iter().filter(|(_, of, _)| *of == id) {
            if mask.as_ref().is_none_or(|mask| mask.get(fragment)) {
                there = *keep;
            }
        }
        there
    }

    /// Did the part of it over this block survive?
    pub(super) fn survived(&self, request: &Request, block: u64) -> bool {
        let id = request.id();
        if self.selection.misdirected.iter().any(|(moved, _)| *moved == id) {
            return false;
        }
        if let Some(mask) = self.torn(id) {
            return mask.get(self.unit_of(id, block));
        }
        let Some(fragments) = self.fragments.get(&id) else { return false };
        // Segments may overlap: any of them.
        let over = fragments.iter().enumerate().filter(|(_, blocks)| blocks.contains(&block));
        over.map(|(i, _)| i).any(|i| self.keeps(request, i))
    }

    /// Its parts that come and go by themselves, and how many of them survived.
    pub(super) fn parts(&self, request: &Request) -> (usize, usize) {
        let id = request.id();
        let fragments = self.fragments.get(&id).map_or(&[][..], Vec::as_slice);
        if let (Some(mask), Some(all)) = (self.torn(id), fragments.first()) {
            let units = (all.end - 1) / self.tear - all.start / self.tear + 1;
            return (units as usize, mask.count());
        }
        if self.selection.misdirected.iter().any(|(moved, _)| *moved == id) {
            return (fragments.len(), 0);
        }
        let kept = (0..fragments.len()).filter(|i| self.keeps(request, *i)).count();
        (fragments.len(), kept)
    }

    /// The request whose content a block shows. `over`: requests that cover it, rising.
    fn shown(&self, block: u64, over: &[&Request]) -> Option<Seq> {
        match self.content.of(block) {
            Source::Written { request, .. } | Source::Flipped { request: Some(request), .. } => {
                Some(request)
            }
            Source::Zeroes => over
                .iter()
                .rfind(|r| {
                    !matches!(r.kind(), RequestKind::Write { .. }) && self.survived(r, block)
                })
                .map(|r| r.id()),
            Source::Base | Source::Garbage { .. } | Source::Flipped { .. } => None,
        }
    }

    /// The request that a block was taken from, whatever is drawn.
    pub(super) fn source(&self, block: u64) -> Option<Seq> {
        self.shown(block, &[])
    }

    pub(super) fn fate(&self, request: &Request, block: u64, over: &[&Request]) -> Fate {
        match self.shown(block, over) {
            Some(shown) if shown == request.id() => Fate::There,
            // Whether it survived makes no difference.
            Some(shown) if shown > request.id() => Fate::Covered,
            _ if self.survived(request, block) => Fate::Covered,
            _ => Fate::Lost,
        }
    }

    /// What a block shows. `over`: the requests that are drawn and cover it, rising.
    pub(super) fn shows(&self, block: u64, over: &[&Request]) -> Shows {
        let of = self.shown(block, over);
        let foreign = match self.content.of(block) {
            Source::Garbage { .. } | Source::Flipped { .. } => true,
            Source::Written { request, .. } => !self.is_about(request, block),
            Source::Base | Source::Zeroes => false,
        };
        let mut missing: Option<(u8, &Request)> = None;
        for request in over.iter().filter(|r| self.fate(r, block, over) == Fate::Lost) {
            let weight = match self.standing(request) {
                Standing::Stable(_) => 2,
                Standing::Volatile => 1,
                Standing::InFlight | Standing::Failed => 0,
            };
            if missing.is_none_or(|(known, _)| known <= weight) {
                missing = Some((weight, request));
            }
        }
        let kind = match (foreign, missing, of) {
            (true, ..) => Kind::Foreign,
            (_, Some((2, _)), _) => Kind::Broken,
            (_, Some((1, _)), _) => Kind::Lost,
            (_, Some(_), _) => Kind::Old,
            (_, None, Some(_)) => Kind::New,
            (_, None, None) => Kind::Before,
        };
        Shows { kind, of, missing: missing.map(|(_, request)| request.id()) }
    }

    /// Was this request sent for this block?
    fn is_about(&self, id: Seq, block: u64) -> bool {
        let Some(request) = self.history.request(id) else { return false };
        blocks(self.history, request).iter().any(|range| range.contains(&block))
    }

    /// Blocks that a fault changed: where a write landed that was for elsewhere, and inverted bits.
    pub(super) fn damaged(&self) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        for (id, at) in &self.selection.misdirected {
            let length = self.history.request(*id).map_or(0, |request| {
                blocks(self.history, request).iter().map(|b| b.end - b.start).sum()
            });
            out.push(*at..*at + length);
        }
        out.extend(self.selection.flipped.iter().map(|(block, _)| *block..*block + 1));
        out
    }
}

/// The blocks that a request changes.
pub(super) fn blocks(history: &History, request: &Request) -> Vec<Range<u64>> {
    let disk = history.disk();
    let lb = u64::from(disk.lb_size);
    let ranges = request.ranges();
    let ranges = ranges.iter().map(|(offset, len)| match request.kind() {
        // A disk forgets whole blocks or none.
        RequestKind::Discard => offset.div_ceil(lb)..(offset + len) / lb,
        _ => disk.touched(*offset, *len),
    });
    ranges.filter(|range| range.start < range.end).collect()
}

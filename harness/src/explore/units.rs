//! The units of a workload on a raw disk, judged in place: by the rules of [`oracle`](crate::oracle),
//! from where each of their blocks comes from.
//!
//! A unit's verdict depends on its own blocks, and where its protocol has a slot for it
//! ([`planted`](tornblk_agent::planted)) on the slot's: recovery, the protocol's own, is done on their
//! bytes first. What is not eligible under the explored profile may tear: it is counted, and no
//! finding. The verdict is that of [`judge`](crate::oracle::judge), with one difference: where a
//! fault put a durable write somewhere else on the disk, it is called stale, and here lost.

use super::carried::{Carried, Carrier, What};
use super::{ExploreError, Ledgers, Subject, UnitBlocks, UnitKey, UnitOracle};
use crate::oracle::{
    Anything, Asking, Clause, Counts, Eligibility, Finding, Judgement, Key, Seen, judge_unit,
};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tornblk_agent::channel::{Found, Target, Workload};
use tornblk_agent::payload::{self, SECTOR};
use tornblk_agent::planted::{PageId, recover, slot_of};
use tornblk_model::crash::{History, Profile, Source};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::{Reader, Trust};

/// A [`UnitOracle`] of one profile. Clones and other profiles share what was read.
#[derive(Clone, Debug)]
pub struct WorkloadUnits {
    shared: Arc<Shared>,
    profile: Profile,
    /// What the disk may have made up at the crash point that was asked about last.
    anything: Arc<Mutex<Option<AnythingAt>>>,
}

type AnythingAt = (Seq, Arc<Anything>);

#[derive(Debug)]
struct Shared {
    history: Arc<History>,
    carried: Arc<Carried>,
    ledgers: Arc<Ledgers>,
    targets: Vec<Target>,
    nonce: u64,
    blocks: Vec<UnitBlocks>,
    units: Vec<Unit>,
    /// (event, unit): it may change the unit's verdict; rising.
    changes: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct Unit {
    /// Index in `targets`, and the number in it.
    target: usize,
    number: u64,
    key: UnitKey,
    /// What its sectors hold in the base image.
    base: OnceLock<Box<[Found]>>,
}

/// Why a workload cannot be judged in place.
fn unfit(workload: &Workload, lb_size: u32, raw: bool) -> Option<String> {
    if !raw {
        return Some("it was made on a file system, which only a guest can read".into());
    }
    let lb = u64::from(lb_size);
    let crooked = |t: &Target| {
        !t.disk_offset_of(0).is_multiple_of(lb) || !u64::from(t.unit).is_multiple_of(lb)
    };
    if let Some(target) = workload.files.iter().find(|t| crooked(t)) {
        let (unit, path) = (target.unit, &target.path);
        return Some(format!(
            "the units of {path} ({unit} bytes) are no whole blocks of {lb} bytes"
        ));
    }
    None
}

impl WorkloadUnits {
    /// The units of a workload whose targets are the disk itself (`raw`).
    ///
    /// # Errors
    /// It cannot be judged in place; the message says why.
    pub fn new(
        workload: &Workload,
        raw: bool,
        history: Arc<History>,
        carried: Arc<Carried>,
        ledgers: Arc<Ledgers>,
        profile: Profile,
    ) -> Result<WorkloadUnits, ExploreError> {
        let disk = history.disk();
        if let Some(why) = unfit(workload, disk.lb_size, raw) {
            return Err(ExploreError::Bad(format!(
                "this recording cannot be judged in place: {why}"
            )));
        }
        let (mut blocks, mut units, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        for (index, target) in workload.files.iter().enumerate() {
            for number in 0..u64::from(target.units) {
                let offset = target.disk_offset_of(number);
                let mut ranges = vec![disk.touched(offset, target.unit.into())];
                if let Some(slot) = slot_of(target, number) {
                    ranges.push(disk.touched(slot.start, slot.end - slot.start));
                }
                let key = (target.file, number);
                let this = units.len() as u32;
                changes.extend(ledgers.events_of(key).iter().map(|event| (*event, this)));
                changes.extend(carried.requests_of(key).iter().map(|event| (*event, this)));
                blocks.push(UnitBlocks { ranges });
                units.push(Unit { target: index, number, key, base: OnceLock::new() });
            }
        }
        changes.sort_unstable();
        let (targets, nonce) = (workload.files.clone(), workload.nonce);
        let shared = Shared { history, carried, ledgers, targets, nonce, blocks, units, changes };
        Ok(WorkloadUnits { shared: Arc::new(shared), profile, anything: Arc::default() })
    }

    /// The units of a recording that says what it is of. `events` are all of its events, and
    /// `history` what they say; `base`: a copy of the base image, where it is not the one that the
    /// recording names.
    ///
    /// # Errors
    /// The recording or its base image cannot be read, or it cannot be judged in place.
    pub fn of_recording(
        reader: Arc<Reader>,
        base: Option<&Path>,
        trust: Trust,
        events: &[(Seq, Event)],
        history: Arc<History>,
        subject: &Subject,
        profile: Profile,
    ) -> Result<WorkloadUnits, ExploreError> {
        let workload = &subject.workload;
        let ledgers = Arc::new(Ledgers::new(workload, events));
        let carried = Carried::of(reader, base, trust, events, workload, Arc::clone(&ledgers))?;
        let raw = subject.volume.is_raw();
        WorkloadUnits::new(workload, raw, history, Arc::new(carried), ledgers, profile)
    }

    pub fn ledgers(&self) -> &Ledgers {
        &self.shared.ledgers
    }

    /// Says which system call a write came from.
    pub fn carried(&self) -> &Carried {
        &self.shared.carried
    }

    /// The same units on another disk.
    #[must_use]
    pub fn on(&self, profile: Profile) -> WorkloadUnits {
        WorkloadUnits { shared: Arc::clone(&self.shared), profile, anything: Arc::default() }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// How many writes asked for by a crash point had to be whole under this profile, how many need
    /// not be, and how many units had something to lose.
    pub fn counts(&self, after: Seq) -> Counts {
        let shared = &self.shared;
        let mut counts = Counts { units: shared.units.len() as u64, ..Counts::default() };
        for unit in &shared.units {
            let asking = shared.ledgers.unit(unit.key, after);
            let durable = asking.durable().and_then(|g| asking.asked(g));
            counts.durable += u64::from(durable.is_some_and(|asked| !asked.load));
            let target = &shared.targets[unit.target];
            for r#gen in 0..=asking.newest().unwrap_or(0) {
                let Some(asked) = asking.asked(r#gen).filter(|asked| !asked.load) else { continue };
                counts.writes += 1;
                let key = Key { file: target.file, unit: unit.number, r#gen };
                match self.eligibility(key, after) {
                    Eligibility::Unseen => {}
                    Eligibility::NotEligible(_) if !asked.must_be_whole() => {
                        counts.not_eligible += 1;
                    }
                    Eligibility::Eligible | Eligibility::NotEligible(_) => counts.eligible += 1,
                }
            }
        }
        counts
    }

    /// Judges a unit: findings, and tears that are allowed.
    ///
    /// # Errors
    /// The recording or its base image cannot be read.
    pub fn judge_unit(
        &self,
        unit: usize,
        after: Seq,
        blocks: &dyn Fn(u64) -> Source,
    ) -> Result<Judgement, ExploreError> {
        let shared = &self.shared;
        let this = &shared.units[unit];
        let target = &shared.targets[this.target];
        let sectors = self.sectors(unit, blocks)?;
        let here = Here { units: self, unit, after, blocks };
        let asking = shared.ledgers.unit(this.key, after);
        let lb_size = shared.carried.lb_size();
        Ok(judge_unit(target, this.number, &asking, &here, lb_size, sectors))
    }

    /// What a guest would read of the unit, after the recovery of its protocol.
    fn sectors(
        &self,
        unit: usize,
        blocks: &dyn Fn(u64) -> Source,
    ) -> Result<Vec<Found>, ExploreError> {
        let shared = &self.shared;
        let this = &shared.units[unit];
        let target = &shared.targets[this.target];
        let ranges = &shared.blocks[unit].ranges;
        if let [page, slot] = ranges.as_slice() {
            let mut bytes = self.read(page.clone(), blocks)?;
            let slot = self.read(slot.clone(), blocks)?;
            let id = PageId { nonce: shared.nonce, file: target.file, unit: this.number };
            recover(&mut bytes, &slot, id);
            return Ok(classify(&bytes, shared.nonce, target.file, this.number));
        }
        let mut sectors = Vec::with_capacity(target.unit as usize / SECTOR);
        for block in ranges.iter().cloned().flatten() {
            let source = blocks(block);
            if source == Source::Base {
                let base = self.base(unit)?;
                let from = sectors.len();
                let to = from + shared.carried.lb_size() as usize / SECTOR;
                sectors.extend_from_slice(&base[from..to]);
            } else {
                shared.carried.sectors(block, source, target, this.number, &mut sectors)?;
            }
        }
        Ok(sectors)
    }

    fn read(
        &self,
        range: std::ops::Range<u64>,
        blocks: &dyn Fn(u64) -> Source,
    ) -> Result<Vec<u8>, ExploreError> {
        let lb = self.shared.carried.lb_size() as usize;
        let mut bytes = vec![0; (range.end - range.start) as usize * lb];
        let sources: Vec<Source> = range.clone().map(blocks).collect();
        self.shared.carried.read(range.start, &sources, &mut bytes)?;
        Ok(bytes)
    }

    fn base(&self, unit: usize) -> Result<&[Found], ExploreError> {
        let this = &self.shared.units[unit];
        if let Some(base) = this.base.get() {
            return Ok(base);
        }
        let target = &self.shared.targets[this.target];
        let bytes = self.read(self.shared.blocks[unit].ranges[0].clone(), &|_| Source::Base)?;
        let found = classify(&bytes, self.shared.nonce, target.file, this.number);
        Ok(this.base.get_or_init(|| found.into()))
    }

    fn eligibility(&self, key: Key, after: Seq) -> Eligibility {
        let carried = &self.shared.carried;
        let carriers = carried.carriers((key.file, key.unit, key.r#gen), after.0);
        let eligible = |carrier: &Carrier| {
            let Some(w) = carried.write(carrier.request) else { return false };
            self.profile.eligible(w.offset, w.len, w.atomic)
                || self.profile.is_one_piece(carried.lb_size(), carrier.at, carrier.len)
        };
        Eligibility::of(carriers.iter().map(|c| (c.whole, c.mixed, eligible(c))))
    }

    fn anything(&self, after: Seq) -> Arc<Anything> {
        let mut last = self.anything.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, known)) = &*last
            && *at == after
        {
            return Arc::clone(known);
        }
        // Of a crash point or profile that the recording does not have there are no states either.
        let cut = self.shared.history.cut(after, &self.profile);
        let known = Arc::new(cut.map(|cut| cut.may_be_anything()).unwrap_or_default());
        *last = Some((after, Arc::clone(&known)));
        known
    }
}

fn classify(bytes: &[u8], nonce: u64, file: u32, unit: u64) -> Vec<Found> {
    let sectors = (0u32..).zip(bytes.chunks_exact(SECTOR));
    sectors.map(|(i, sector)| payload::classify(sector, nonce, file, unit, i)).collect()
}

/// A unit in a state.
struct Here<'a> {
    units: &'a WorkloadUnits,
    unit: usize,
    after: Seq,
    blocks: &'a dyn Fn(u64) -> Source,
}

impl Here<'_> {
    /// What the writes that show in the unit's blocks carried there; `whole` where no fault changed
    /// the block.
    fn any(&self, is: impl Fn(What, bool) -> bool) -> bool {
        let shared = &self.units.shared;
        shared.blocks[self.unit].ranges.iter().cloned().flatten().any(|block| {
            let (request, n, whole) = match (self.blocks)(block) {
                Source::Written { request, block } => (request, block, true),
                Source::Flipped { request: Some(request), block, .. } => (request, block, false),
                _ => return false,
            };
            shared.carried.block_runs(request, n).into_iter().any(|(_, _, what)| is(what, whole))
        })
    }
}

impl Seen for Here<'_> {
    fn eligibility(&self, key: Key) -> Eligibility {
        self.units.eligibility(key, self.after)
    }

    fn on_disk(&self, key: Key) -> Option<bool> {
        Some(self.any(|what, _| {
            matches!(what, What::Ours { file, unit, r#gen, .. }
                if (file, unit, r#gen) == (key.file, key.unit, key.r#gen))
        }))
    }

    fn is_mixed(&self, file: u32, unit: u64, sector: u32) -> bool {
        let place = Some((file, unit, sector));
        self.any(|what, whole| whole && what == What::Corrupt { place })
    }

    fn made_up_by(&self, _: u32, _: u64, sector: u32) -> Vec<Seq> {
        let shared = &self.units.shared;
        let per = u64::from(shared.carried.lb_size()) / SECTOR as u64;
        let page = &shared.blocks[self.unit].ranges[0];
        let block = page.start + u64::from(sector) / per;
        if !matches!((self.blocks)(block), Source::Garbage { .. }) {
            return Vec::new();
        }
        self.units.anything(self.after).get(&block).cloned().unwrap_or_default()
    }

    fn carried(&self, Key { file, unit, r#gen }: Key, request: Seq) -> bool {
        let carriers = self.units.shared.carried.carriers((file, unit, r#gen), self.after.0);
        carriers.iter().any(|carrier| carrier.request == request.0)
    }
}

impl UnitOracle for WorkloadUnits {
    fn units(&self) -> &[UnitBlocks] {
        &self.shared.blocks
    }

    fn promise(&self, unit: usize, after: Seq) -> u64 {
        if self.profile.garbage {
            // What may be made up changes with every write and flush.
            return after.0;
        }
        let key = self.shared.units[unit].key;
        let requests = self.shared.carried.requests_of(key);
        let carried = requests.partition_point(|request| *request <= after.0) as u64;
        self.shared.ledgers.version(key, after) << 32 | carried
    }

    fn promised_between(&self, from: Seq, to: Seq) -> Option<Vec<usize>> {
        if self.profile.garbage {
            return None;
        }
        let changes = &self.shared.changes;
        let start = changes.partition_point(|(event, _)| *event <= from.0);
        let end = changes.partition_point(|(event, _)| *event <= to.0);
        let mut units: Vec<usize> =
            changes[start..end].iter().map(|(_, unit)| *unit as usize).collect();
        units.sort_unstable();
        units.dedup();
        Some(units)
    }

    /// Which of a unit's volatile writes lets the disk make something up decides whether it may:
    /// another one later.
    fn is_monotone(&self) -> bool {
        !self.profile.garbage
    }

    fn judge(&self, unit: usize, after: Seq, blocks: &dyn Fn(u64) -> Source) -> Vec<Finding> {
        match self.judge_unit(unit, after, blocks) {
            Ok(judgement) => judgement.findings,
            // Never passed.
            Err(error) => {
                let this = &self.shared.units[unit];
                let target = &self.shared.targets[this.target];
                vec![Finding {
                    file: target.file,
                    path: target.path.clone(),
                    unit: this.number,
                    offset: target.offset_of(this.number),
                    len: target.unit,
                    ..Finding::new(Clause::Unreadable, format!("it cannot be judged: {error}"))
                }]
            }
        }
    }
}

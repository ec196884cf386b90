//! The rules of the module's page, applied to one readback.

use super::{
    Asked, Cell, Clause, Counts, Eligibility, Finding, Judgement, Key, Ledger, LegalTear, Reason,
    UnitLedger, Wire, call,
};
use std::collections::{BTreeMap, BTreeSet};
use tornblk_agent::channel::{Found, Readback, Target, UnitFound, Workload};
use tornblk_agent::payload::SECTOR;
use tornblk_model::event::Seq;

/// Sectors of a unit, as levels: 0 is no content yet, `n + 1` is generation n, `None` is neither.
type Levels = Vec<Option<u64>>;

/// Judges what a guest found after the cut.
pub fn judge(
    workload: &Workload,
    lb_size: u32,
    ledger: &Ledger,
    wire: &Wire,
    readback: &Readback,
) -> Judgement {
    let mut judgement = Judgement::default();
    let found: BTreeMap<(u32, u64), &UnitFound> =
        readback.units.iter().map(|u| ((u.file, u.unit), u)).collect();
    count_writes(ledger, wire, &mut judgement.counts);
    let empty = UnitLedger::default();
    for target in &workload.files {
        for number in 0..u64::from(target.units) {
            let unit = ledger.unit(target.file, number).unwrap_or(&empty);
            let runs = found.get(&(target.file, number)).map_or(&[][..], |u| &u.runs);
            judgement.counts.units += 1;
            judgement.counts.durable += u64::from(unit.acknowledged());
            let sectors = expand(target, runs);
            View { target, number, unit, seen: wire, lb_size, sectors }.judge(&mut judgement);
        }
    }
    judgement
}

/// What was asked of one unit, and promised, at a crash point.
pub trait Asking {
    /// The newest generation that had to survive.
    fn durable(&self) -> Option<u32>;
    /// The write of a generation, if it was asked for.
    fn asked(&self, r#gen: u32) -> Option<Asked>;
    /// The newest generation that was asked for.
    fn newest(&self) -> Option<u32>;
    /// Was it written through the page cache, but for the load?
    fn buffered(&self) -> bool;
    /// The writes that did not return all of their bytes, by generation.
    fn failed(&self) -> Vec<(u32, Asked)>;
}

impl Asking for UnitLedger {
    fn durable(&self) -> Option<u32> {
        self.durable
    }

    fn asked(&self, r#gen: u32) -> Option<Asked> {
        self.writes.get(&r#gen).copied()
    }

    fn newest(&self) -> Option<u32> {
        self.writes.keys().next_back().copied()
    }

    fn buffered(&self) -> bool {
        self.writes.values().any(|asked| !asked.load && !asked.flags.direct)
    }

    fn failed(&self) -> Vec<(u32, Asked)> {
        let failed = |(_, asked): &(&u32, &Asked)| asked.result.is_some() && !asked.complete();
        self.writes.iter().filter(failed).map(|(r#gen, asked)| (*r#gen, *asked)).collect()
    }
}

/// What the requests up to a crash point, and the state there, say about a unit.
pub trait Seen {
    fn eligibility(&self, key: Key) -> Eligibility;
    /// Does the state hold some of it, wherever? `None` where the state is not known.
    fn on_disk(&self, key: Key) -> Option<bool>;
    /// Does the state hold this sector as a request carried it, with a wrong checksum already?
    fn is_mixed(&self, file: u32, unit: u64, sector: u32) -> bool;
    /// The writes that let the disk make up what this sector holds, as its profile says; none: it
    /// did not, or was not allowed to.
    fn made_up_by(&self, file: u32, unit: u64, sector: u32) -> Vec<Seq>;
    /// Did this request carry some of it?
    fn carried(&self, key: Key, request: Seq) -> bool;
}

impl Seen for Wire {
    fn eligibility(&self, key: Key) -> Eligibility {
        Wire::eligibility(self, key)
    }

    fn on_disk(&self, key: Key) -> Option<bool> {
        Wire::on_disk(self, key)
    }

    fn is_mixed(&self, file: u32, unit: u64, sector: u32) -> bool {
        Wire::is_mixed(self, file, unit, sector)
    }

    fn made_up_by(&self, file: u32, unit: u64, sector: u32) -> Vec<Seq> {
        Wire::made_up_by(self, file, unit, sector).to_vec()
    }

    fn carried(&self, key: Key, request: Seq) -> bool {
        Wire::carried(self, key, request)
    }
}

/// Judges one unit of a target by what its sectors hold (after the recovery of its protocol, where
/// it has one): findings and legal tears.
pub fn judge_unit(
    target: &Target,
    number: u64,
    unit: &dyn Asking,
    seen: &dyn Seen,
    lb_size: u32,
    sectors: Vec<Found>,
) -> Judgement {
    let mut judgement = Judgement::default();
    View { target, number, unit, seen, lb_size, sectors }.judge(&mut judgement);
    judgement
}

fn count_writes(ledger: &Ledger, wire: &Wire, counts: &mut Counts) {
    for (&(file, unit), of) in &ledger.units {
        for (&r#gen, asked) in of.writes.iter().filter(|(_, asked)| !asked.load) {
            let key = Key { file, unit, r#gen };
            counts.writes += 1;
            let seen = wire.eligibility(key);
            match seen {
                // This cut could do nothing to it, whatever was promised.
                Eligibility::Unseen => {}
                Eligibility::NotEligible(_) if !asked.must_be_whole() => counts.not_eligible += 1,
                Eligibility::Eligible | Eligibility::NotEligible(_) => {
                    counts.eligible += 1;
                    counts.at_risk += u64::from(wire.volatile(key));
                }
            }
        }
    }
}

/// One found entry a sector; what a readback leaves out is missing.
fn expand(target: &Target, runs: &[(u32, Found)]) -> Vec<Found> {
    let n = target.unit as usize / SECTOR;
    let mut sectors: Vec<Found> = runs
        .iter()
        .flat_map(|(count, found)| std::iter::repeat_n(found.clone(), (*count as usize).min(n)))
        .take(n)
        .collect();
    sectors.resize(n, Found::Missing {});
    sectors
}

struct View<'a> {
    target: &'a Target,
    number: u64,
    unit: &'a dyn Asking,
    seen: &'a dyn Seen,
    lb_size: u32,
    sectors: Vec<Found>,
}

impl View<'_> {
    fn judge(&self, out: &mut Judgement) {
        self.origin(out);
        if self.target.moves {
            return;
        }
        let levels: Levels = self.sectors.iter().map(|found| self.level(found)).collect();
        self.durability(&levels, out);
        self.wholeness(&levels, out);
        self.results(out);
    }

    /// Everything that does not belong here.
    fn origin(&self, out: &mut Judgement) {
        let mut told = BTreeSet::new();
        for (i, sector) in self.sectors.iter().enumerate() {
            let (clause, text) = match sector {
                Found::Misplaced { file, .. } if self.target.moves && *file == self.target.file => {
                    continue;
                }
                Found::Misplaced { file, unit, sector, r#gen } => (
                    Clause::Misdirected,
                    format!(
                        "sector {i} holds sector {sector} of unit {unit} of file {file}, \
                         generation {gen}"
                    ),
                ),
                Found::Foreign { nonce } => (
                    Clause::Foreign,
                    format!("sector {i} holds a block of another run (nonce {nonce:#x})"),
                ),
                Found::Poison {} => (
                    Clause::Foreign,
                    format!(
                        "sector {i} holds what lay on the disk before the file system was made"
                    ),
                ),
                Found::Unknown {} if self.may_be_made_up(i) => continue,
                Found::Unknown {} => {
                    (Clause::Foreign, format!("sector {i} holds bytes that this run never wrote"))
                }
                Found::Own { r#gen } if self.unit.asked(*r#gen).is_none() => (
                    Clause::Foreign,
                    format!("sector {i} holds generation {gen}, which was not asked for yet"),
                ),
                // A legal tear: see `wholeness`.
                Found::Corrupt {} if self.is_mixed(i) => continue,
                Found::Corrupt {} => {
                    (Clause::Corrupt, format!("sector {i} is ours, but its checksum is wrong"))
                }
                Found::Error { errno } => (
                    Clause::Unreadable,
                    format!("reading sector {i} failed: {}", errno_text(i64::from(*errno))),
                ),
                Found::Own { .. } | Found::Zero {} | Found::Missing {} => continue,
            };
            if told.insert(clause) {
                let own = |f: &Found| match f {
                    Found::Own { r#gen } => self.unit.asked(*r#gen).map(|_| *r#gen),
                    _ => None,
                };
                let about = self.sectors.iter().filter_map(own).max().or(self.unit.durable());
                out.findings.push(self.finding(clause, about, 0, text));
            }
        }
    }

    fn durability(&self, levels: &Levels, out: &mut Judgement) {
        let Some(durable) = self.unit.durable() else { return };
        let needed = u64::from(durable) + 1;
        let old = levels.iter().flatten().filter(|l| **l < needed).count();
        if old == 0 {
            return;
        }
        let key = Key { file: self.target.file, unit: self.number, r#gen: durable };
        let all = if old == levels.len() { "the unit" } else { "a part of the unit" };
        let lowest = levels.iter().flatten().min().copied().unwrap_or_default();
        let shows = level_text(lowest);
        let (clause, text) = if self.seen.on_disk(key) == Some(true) {
            (
                Clause::Stale,
                format!(
                    "generation {durable} was acknowledged as durable and is on the disk, but \
                     {all} shows {shows}"
                ),
            )
        } else {
            (
                Clause::Lost,
                format!(
                    "generation {durable} was acknowledged as durable, but {all} shows {shows}"
                ),
            )
        };
        out.findings.push(self.finding(clause, Some(durable), needed, text));
    }

    fn wholeness(&self, levels: &Levels, out: &mut Judgement) {
        let shown: BTreeSet<u64> = levels.iter().flatten().copied().collect();
        let mut legal = self.mixed();
        // From the newest: a torn generation is one that shows while something older shows too.
        for level in shown.iter().skip(1).rev() {
            let r#gen = (*level - 1) as u32;
            let Some(asked) = self.unit.asked(r#gen) else { continue };
            let key = Key { file: self.target.file, unit: self.number, r#gen };
            let reason = match self.seen.eligibility(key) {
                _ if asked.flags.may_fail => Reason::Failed,
                _ if asked.result.is_some() && !asked.complete() => Reason::Failed,
                _ if asked.must_be_whole() => {
                    let promise = if asked.flags.atomic {
                        "written with RWF_ATOMIC"
                    } else {
                        "which its protocol promises to recover"
                    };
                    let text = self.torn_text(r#gen, levels, promise);
                    return out.findings.push(self.finding(
                        Clause::Torn,
                        Some(r#gen),
                        *level,
                        text,
                    ));
                }
                Eligibility::Eligible => {
                    let text =
                        self.torn_text(r#gen, levels, "in one request that the disk keeps whole");
                    return out.findings.push(self.finding(
                        Clause::Torn,
                        Some(r#gen),
                        *level,
                        text,
                    ));
                }
                Eligibility::NotEligible(reason) => reason,
                // Written by somebody else than the recorded requests: nothing to be said for it.
                Eligibility::Unseen => Reason::Split,
            };
            legal = legal.or(Some((r#gen, *level, reason)));
        }
        if let Some((generation, level, reason)) = legal {
            out.counts.legal_tears += 1;
            out.tears.push(LegalTear {
                file: self.target.file,
                unit: self.number,
                generation,
                reason,
                strip: self.strip(level),
            });
        }
    }

    /// Was this sector corrupt in its request already? That is legal only where writeback may have
    /// copied a page that was being written: a direct write's buffer is left alone.
    fn is_mixed(&self, sector: usize) -> bool {
        self.unit.buffered() && self.seen.is_mixed(self.target.file, self.number, sector as u32)
    }

    /// Did the disk make it up where its profile allows that, and is nobody promised that the unit is
    /// whole even so? One write that need not be whole is enough: the others may not be there.
    fn may_be_made_up(&self, sector: usize) -> bool {
        let (file, unit) = (self.target.file, self.number);
        let writes = self.seen.made_up_by(file, unit, sector as u32);
        if writes.is_empty() {
            return false;
        }
        let must_be_whole: Vec<u32> = (0..=self.unit.newest().unwrap_or(0))
            .filter(|g| self.unit.asked(*g).is_some_and(|asked| asked.must_be_whole()))
            .collect();
        writes.iter().any(|write| {
            let carried =
                |r#gen: &u32| self.seen.carried(Key { file, unit, r#gen: *r#gen }, *write);
            !must_be_whole.iter().any(carried)
        })
    }

    /// A tear below the sector, which is legal: its newest generation that is known.
    fn mixed(&self) -> Option<(u32, u64, Reason)> {
        let torn = |(i, found): (usize, &Found)| *found == Found::Corrupt {} && self.is_mixed(i);
        if !self.sectors.iter().enumerate().any(torn) {
            return None;
        }
        let r#gen = self.unit.newest()?;
        Some((r#gen, u64::from(r#gen) + 1, Reason::Mixed))
    }

    /// What a sector's content comes to.
    fn level(&self, found: &Found) -> Option<u64> {
        match found {
            Found::Own { r#gen } => Some(u64::from(*r#gen) + 1),
            Found::Zero {} | Found::Missing {} => Some(self.zeroes()),
            Found::Misplaced { .. }
            | Found::Foreign { .. }
            | Found::Corrupt {}
            | Found::Poison {}
            | Found::Unknown {}
            | Found::Error { .. } => None,
        }
    }

    /// Zeroes are no content yet, or what the last punch that was asked for left.
    fn zeroes(&self) -> u64 {
        let asked = |r#gen: &u32| self.unit.asked(*r#gen).is_some_and(|asked| asked.flags.zero);
        let newest = self.unit.newest();
        newest.and_then(|newest| (0..=newest).rev().find(asked)).map_or(0, |g| u64::from(g) + 1)
    }

    /// Calls that failed.
    fn results(&self, out: &mut Judgement) {
        for (r#gen, asked) in self.unit.failed() {
            let Some(result) = asked.result else { continue };
            if asked.flags.may_fail {
                continue;
            }
            let text = if result < 0 {
                format!("the write of generation {gen} failed: {}", errno_text(-result))
            } else {
                format!("the write of generation {gen} wrote {result} of {} bytes", asked.len)
            };
            let level = u64::from(r#gen) + 1;
            out.findings.push(self.finding(Clause::Failed, Some(r#gen), level, text));
        }
    }

    fn torn_text(&self, r#gen: u32, levels: &Levels, promise: &str) -> String {
        let level = u64::from(r#gen) + 1;
        let unit = self.lb_size.min(self.target.unit) as usize / SECTOR;
        let older = levels.iter().flatten().filter(|l| **l < level);
        let below = older.clone().max().map_or_else(String::new, |l| level_text(*l));
        format!(
            "generation {gen}, {promise}, is there only in part: {} of {} blocks show {below}",
            older.count().div_ceil(unit),
            levels.len().div_ceil(unit),
        )
    }

    fn finding(&self, clause: Clause, r#gen: Option<u32>, level: u64, text: String) -> Finding {
        let shown: BTreeSet<Option<u32>> = self
            .sectors
            .iter()
            .filter_map(|found| self.level(found))
            .map(|l| l.checked_sub(1).map(|g| g as u32))
            .collect();
        let asked: Option<Asked> = r#gen.and_then(|g| self.unit.asked(g));
        let offset = self.target.offset_of(self.number);
        Finding {
            clause,
            file: self.target.file,
            path: self.target.path.clone(),
            unit: self.number,
            offset,
            len: self.target.unit,
            generation: r#gen,
            shown: shown.into_iter().collect(),
            durable: self.unit.durable(),
            call: asked
                .filter(|a| !a.load)
                .map_or_else(|| "(load)".to_owned(), |a| call(a.len, a.offset, a.flags)),
            strip: self.strip(level),
            text,
            complaint: None,
            recovery: None,
            timeline: Vec::new(),
        }
    }

    /// One cell a logical block; `level` and above is new. With level 0 (a finding about origin)
    /// everything of ours is new.
    fn strip(&self, level: u64) -> Vec<Cell> {
        let per = (self.lb_size.min(self.target.unit) as usize / SECTOR).max(1);
        let cell = |f: &Found| match self.level(f) {
            Some(l) if l >= level => Cell::New,
            Some(_) => Cell::Old,
            None => Cell::Other,
        };
        self.sectors
            .chunks(per)
            .map(|block| {
                let first = cell(&block[0]);
                if block.iter().all(|f| cell(f) == first) { first } else { Cell::Mixed }
            })
            .collect()
    }
}

fn level_text(level: u64) -> String {
    match level.checked_sub(1) {
        None => "no content at all".to_owned(),
        Some(r#gen) => format!("generation {gen}"),
    }
}

/// "Input/output error (errno 5)".
fn errno_text(errno: i64) -> String {
    std::io::Error::from_raw_os_error(errno.unsigned_abs() as i32).to_string()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::oracle::{LedgerBuilder, WireBuilder};
    use tornblk_agent::channel::{MarkText, Prepare, WriteFlags};
    use tornblk_agent::payload::{self, Stamp};
    use tornblk_model::crash::{Content, Source};

    pub(in crate::oracle) fn workload() -> Workload {
        Workload {
            nonce: 7,
            seed: 1,
            files: vec![Target {
                file: 1,
                path: "/mnt/a".into(),
                offset: 0,
                unit: 16384,
                units: 4,
                threads: 1,
                depth: 1,
                flags: vec![dsync()],
                prepare: Prepare::Written,
                ..Target::default()
            }],
            load: false,
            writes: 10,
            sync_every: 0,
            skip_sync: false,
        }
    }

    pub(in crate::oracle) fn dsync() -> WriteFlags {
        WriteFlags { direct: true, dsync: true, ..WriteFlags::default() }
    }

    pub(in crate::oracle) fn intent(unit: u64, r#gen: u32, flags: WriteFlags) -> MarkText {
        MarkText::Intent { file: 1, unit, r#gen, offset: unit * 16384, len: 16384, flags, at: None }
    }

    /// Generation 1 of unit 0 durable, generation 2 in flight.
    fn ledger(w: &Workload, flags: WriteFlags) -> Ledger {
        let mut b = LedgerBuilder::new(w);
        b.batch([(1, intent(0, 1, dsync()))]);
        b.batch([(2, MarkText::Done { file: 1, unit: 0, r#gen: 1, result: 16384 })]);
        b.batch([(3, intent(0, 2, flags))]);
        b.finish()
    }

    fn wire(eligible: bool) -> Wire {
        let mut b = WireBuilder::new(7, 512);
        for (r#gen, seq) in [(1, 10), (2, 20)] {
            let mut bytes = vec![0; 16384];
            let stamp =
                Stamp { nonce: 7, unit: 0, file: 1, generation: r#gen, sector: 0, sectors: 0 };
            payload::fill(&mut bytes, stamp);
            b.write(Seq(seq), 0, 16384, &bytes, eligible, r#gen == 2);
        }
        b.finish()
    }

    fn found(runs: &[(u32, Found)]) -> Readback {
        let mut units = vec![UnitFound { file: 1, unit: 0, runs: runs.to_vec() }];
        for unit in 1..4 {
            units.push(UnitFound { file: 1, unit, runs: vec![(32, Found::Zero {})] });
        }
        Readback { units }
    }

    fn own(r#gen: u32) -> Found {
        Found::Own { r#gen }
    }

    fn clauses(flags: WriteFlags, wire: &Wire, runs: &[(u32, Found)]) -> Vec<Clause> {
        let w = workload();
        let j = judge(&w, 512, &ledger(&w, flags), wire, &found(runs));
        j.findings.iter().map(|f| f.clause).collect()
    }

    #[test]
    fn old_or_new_is_no_finding() {
        for runs in [vec![(32, own(1))], vec![(32, own(2))], vec![(8, own(2)), (24, own(2))]] {
            assert_eq!(clauses(dsync(), &wire(true), &runs), [], "{runs:?}");
            assert_eq!(clauses(dsync(), &wire(false), &runs), [], "{runs:?}");
        }
    }

    #[test]
    fn an_eligible_write_must_be_whole_and_another_need_not() {
        let runs = [(12, own(2)), (20, own(1))];
        let w = workload();
        let j = judge(&w, 512, &ledger(&w, dsync()), &wire(true), &found(&runs));
        assert_eq!(j.findings.len(), 1);
        let f = &j.findings[0];
        assert_eq!((f.clause, f.file, f.unit, f.generation), (Clause::Torn, 1, 0, Some(2)));
        assert_eq!(f.shown, [Some(1), Some(2)]);
        assert_eq!(f.durable, Some(1));
        assert_eq!(f.call, "pwritev2(len 16384, offset 0, RWF_DSYNC, O_DIRECT)");
        assert!(f.strip[..12].iter().all(|c| *c == Cell::New));
        assert!(f.strip[12..].iter().all(|c| *c == Cell::Old));
        assert_eq!((j.counts.eligible, j.counts.at_risk, j.counts.not_eligible), (2, 1, 0));

        let j = judge(&w, 512, &ledger(&w, dsync()), &wire(false), &found(&runs));
        assert_eq!(j.findings, []);
        assert_eq!(j.counts.legal_tears, 1);
        assert_eq!((j.tears[0].generation, j.tears[0].reason), (2, Reason::Beyond));
        assert_eq!((j.counts.eligible, j.counts.not_eligible), (0, 2));
    }

    #[test]
    fn an_atomic_write_must_be_whole_whatever_the_disk() {
        let atomic = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        let runs = [(12, own(2)), (20, own(1))];
        assert_eq!(clauses(atomic, &wire(false), &runs), [Clause::Torn]);
        assert_eq!(clauses(atomic, &Wire::default(), &runs), [Clause::Torn]);
        assert_eq!(clauses(atomic, &wire(false), &[(32, own(2))]), []);
    }

    #[test]
    fn a_failed_atomic_write_may_be_torn_but_is_told() {
        let w = workload();
        let atomic = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        let mut b = LedgerBuilder::new(&w);
        b.batch([(3, intent(0, 2, atomic))]);
        b.batch([(4, MarkText::Done { file: 1, unit: 0, r#gen: 2, result: -5 })]);
        let runs = [(12, own(2)), (20, Found::Zero {})];
        let j = judge(&w, 512, &b.finish(), &wire(true), &found(&runs));
        let clauses: Vec<_> = j.findings.iter().map(|f| f.clause).collect();
        assert_eq!(clauses, [Clause::Failed]);
        assert!(j.findings[0].text.contains("Input/output error"), "{}", j.findings[0].text);
    }

    #[test]
    fn a_tear_of_an_older_eligible_write_shows_through_a_newer_legal_one() {
        // 3 is torn legally (split), but 2, eligible, is torn below it.
        let w = workload();
        let mut b = LedgerBuilder::new(&w);
        for r#gen in [1, 2, 3] {
            b.batch([(u64::from(r#gen), intent(0, r#gen, dsync()))]);
        }
        let ledger = b.finish();
        let mut wire_builder = WireBuilder::new(7, 512);
        let bytes = |r#gen| {
            let mut bytes = vec![0; 16384];
            let stamp =
                Stamp { nonce: 7, unit: 0, file: 1, generation: r#gen, sector: 0, sectors: 0 };
            payload::fill(&mut bytes, stamp);
            bytes
        };
        wire_builder.write(Seq(9), 0, 16384, &bytes(2), true, true);
        wire_builder.write(Seq(10), 0, 8192, &bytes(3)[..8192], true, true);
        let wire = wire_builder.finish();
        let judged = |runs: &[(u32, Found)]| judge(&w, 512, &ledger, &wire, &found(runs));
        let j = judged(&[(4, own(3)), (14, own(2)), (14, own(1))]);
        assert_eq!(j.findings.len(), 1);
        assert_eq!((j.findings[0].clause, j.findings[0].generation), (Clause::Torn, Some(2)));
        let j = judged(&[(4, own(3)), (28, own(2))]);
        assert_eq!(j.findings, []);
        assert_eq!(j.counts.legal_tears, 1);
    }

    #[test]
    fn below_the_last_durable_generation_is_lost_even_in_part() {
        for (runs, n) in [
            (vec![(32, own(0))], "the unit shows generation 0"),
            (vec![(32, Found::Zero {})], "the unit shows no content"),
            (vec![(32, Found::Missing {})], "the unit shows no content"),
            (vec![], "the unit shows no content"),
        ] {
            let w = workload();
            let mut b = LedgerBuilder::new(&w);
            b.batch([(1, intent(0, 0, dsync())), (2, intent(0, 1, dsync()))]);
            b.batch([(3, MarkText::Done { file: 1, unit: 0, r#gen: 1, result: 16384 })]);
            let j = judge(&w, 512, &b.finish(), &Wire::default(), &found(&runs));
            assert_eq!(j.findings.len(), 1, "{runs:?}");
            assert_eq!(j.findings[0].clause, Clause::Lost);
            assert_eq!(j.findings[0].generation, Some(1));
            assert!(j.findings[0].text.contains(n), "{}", j.findings[0].text);
        }
        let w = workload();
        let j = judge(
            &w,
            512,
            &ledger(&w, dsync()),
            &wire(false),
            &found(&[(16, own(2)), (16, Found::Zero {})]),
        );
        let clauses: Vec<_> = j.findings.iter().map(|f| f.clause).collect();
        assert_eq!(clauses, [Clause::Lost], "a legal tear, but over content that had to last");
    }

    #[test]
    fn lost_bytes_that_are_on_the_disk_are_stale() {
        let mut wire = wire(true);
        let mut content = Content::default();
        wire.set_content(&content);
        assert_eq!(clauses(dsync(), &wire, &[(32, Found::Zero {})]), [Clause::Lost]);
        content.blocks.insert(4, Source::Written { request: Seq(10), block: 0 });
        wire.set_content(&content);
        assert_eq!(clauses(dsync(), &wire, &[(32, Found::Zero {})]), [Clause::Stale]);
    }

    #[test]
    fn what_does_not_belong_here_is_named() {
        let other = Found::Misplaced { file: 2, unit: 3, sector: 1, r#gen: 1 };
        for (found, clause) in [
            (other, Clause::Misdirected),
            (Found::Foreign { nonce: 9 }, Clause::Foreign),
            (Found::Unknown {}, Clause::Foreign),
            (own(7), Clause::Foreign),
            (Found::Corrupt {}, Clause::Corrupt),
            (Found::Error { errno: 5 }, Clause::Unreadable),
        ] {
            let runs = [(31, own(2)), (1, found.clone())];
            assert!(clauses(dsync(), &wire(false), &runs).contains(&clause), "{found:?}");
        }
    }

    #[test]
    fn what_writeback_copied_while_it_changed_is_a_legal_tear() {
        let w = workload();
        let stamped = |r#gen| {
            let mut bytes = vec![0; 16384];
            let stamp =
                Stamp { nonce: 7, unit: 0, file: 1, generation: r#gen, sector: 0, sectors: 0 };
            payload::fill(&mut bytes, stamp);
            bytes
        };
        let (mut bytes, old) = (stamped(2), stamped(1));
        bytes[31 * SECTOR + 100..].copy_from_slice(&old[31 * SECTOR + 100..]);
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(20), 0, 16384, &bytes, true, true);
        let mut wire = b.finish();
        let runs = [(31, own(2)), (1, Found::Corrupt {})];
        let judged = |wire: &Wire, flags| judge(&w, 512, &ledger(&w, flags), wire, &found(&runs));
        let clauses = |j: &Judgement| j.findings.iter().map(|f| f.clause).collect::<Vec<_>>();
        let buffered = WriteFlags::default();

        let j = judged(&wire, buffered);
        assert_eq!(clauses(&j), [Clause::Corrupt], "the disk does not hold it");
        let mut content = Content::default();
        content.blocks.insert(31, Source::Written { request: Seq(20), block: 31 });
        wire.set_content(&content);
        let j = judged(&wire, buffered);
        assert_eq!((clauses(&j), j.counts.legal_tears), (vec![], 1));
        assert_eq!((j.tears[0].generation, j.tears[0].reason), (2, Reason::Mixed));
        let j = judged(&wire, dsync());
        assert_eq!(clauses(&j), [Clause::Corrupt], "nobody writes over a direct write's buffer");
    }

    #[test]
    fn untouched_units_and_units_before_any_promise_are_no_findings() {
        let w = workload();
        let mut b = LedgerBuilder::new(&w);
        b.batch([(1, intent(0, 1, dsync()))]);
        let j = judge(&w, 512, &b.finish(), &wire(true), &found(&[(32, Found::Zero {})]));
        assert_eq!(j.findings, []);
        assert_eq!(j.counts.units, 4);
        assert_eq!(j.counts.durable, 0);
    }

    #[test]
    fn what_the_load_made_durable_exercises_nothing() {
        let mut w = workload();
        w.load = true;
        let mut b = LedgerBuilder::new(&w);
        b.batch([(1, MarkText::Phase { name: "load-done".into() })]);
        let loaded = Readback {
            units: (0..4)
                .map(|unit| UnitFound { file: 1, unit, runs: vec![(32, own(0))] })
                .collect(),
        };
        let j = judge(&w, 512, b.ledger(), &Wire::default(), &loaded);
        assert_eq!((j.findings.len(), j.counts.durable), (0, 0));
        b.batch([(2, intent(0, 1, dsync()))]);
        b.batch([(3, MarkText::Done { file: 1, unit: 0, r#gen: 1, result: 16384 })]);
        let j = judge(&w, 512, b.ledger(), &Wire::default(), &loaded);
        assert_eq!((j.findings.len(), j.counts.durable), (1, 1));
    }

    #[test]
    fn only_what_is_volatile_on_the_wire_is_at_risk() {
        let w = workload();
        let atomic = WriteFlags { direct: true, atomic: true, ..WriteFlags::default() };
        let counts = |wire: &Wire, r#gen| {
            let mut b = LedgerBuilder::new(&w);
            b.batch([(1, intent(0, r#gen, atomic))]);
            let c = judge(&w, 512, b.ledger(), wire, &found(&[(32, own(r#gen))])).counts;
            (c.writes, c.eligible, c.at_risk)
        };
        // Asked for and not answered, but no request of it was seen.
        assert_eq!(counts(&Wire::default(), 2), (1, 0, 0));
        // Seen and stable; seen and volatile.
        assert_eq!(counts(&wire(false), 1), (1, 1, 0));
        assert_eq!(counts(&wire(false), 2), (1, 1, 1));
    }

    #[test]
    fn the_strip_has_a_cell_a_logical_block() {
        let w = workload();
        let runs = [(12, own(2)), (20, own(1))];
        let j = judge(&w, 4096, &ledger(&w, dsync()), &wire(true), &found(&runs));
        assert_eq!(j.findings[0].strip, [Cell::New, Cell::Mixed, Cell::Old, Cell::Old]);
    }
}

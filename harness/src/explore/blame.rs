//! A state failed: again? what of it is to blame? was that found before?

use super::worker::Shown;
use super::{
    Explanation, ExploreError, Failure, Fingerprint, Job, Piece, State, Verdict, Verifier, View,
};
use crate::oracle::{Clause, Finding};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;
use tornblk_model::crash::walk::Cursor;
use tornblk_model::crash::{Difference, History, Profile, RequestKind, Shrunk, StateName};
use tornblk_model::event::Seq;

/// System calls named for a piece.
const CALLS: usize = 8;

/// What a finding is about: the same after other writes, at another crash point.
pub(super) type About = BTreeSet<(Clause, u32, u64, Option<u32>)>;

/// (file, unit)
pub(super) type Units = BTreeSet<(u32, u64)>;

pub(super) fn about(findings: &[Finding]) -> About {
    findings.iter().map(one).collect()
}

fn one(finding: &Finding) -> (Clause, u32, u64, Option<u32>) {
    (finding.clause, finding.file, finding.unit, finding.generation)
}

/// Says which write of which unit is meant, and so is the same whatever part of it is to blame.
pub(super) fn is_named(finding: &Finding) -> bool {
    finding.len > 0
}

/// A failure that was reported.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) number: u64,
    profile: String,
    left: Vec<Difference>,
    about: About,
    named: bool,
}

impl Reported {
    pub(super) fn new(number: u64, profile: &str, blame: &Blame) -> Reported {
        let profile = profile.to_owned();
        let left = blame.shrunk.left.clone();
        let named = blame.findings.iter().all(is_named);
        Reported { number, profile, left, about: about(&blame.findings), named }
    }

    /// Does it come to the same?
    pub(super) fn is(&self, profile: &str, blame: &Blame) -> bool {
        self.profile == profile
            && (self.named || self.left == blame.shrunk.left)
            && self.about == about(&blame.findings)
    }

    /// Is all that this one is to blame for in a state?
    fn is_in(&self, cursor: &Cursor<'_, '_>) -> bool {
        !self.left.is_empty() && cursor.has(&self.left)
    }
}

/// The findings that none of the `reported` failures accounts for, each of which is in the state
/// that the cursor shows; and the first of those that are.
pub(super) fn unexplained(
    reported: &[Reported],
    profile: &str,
    cursor: &Cursor<'_, '_>,
    findings: &[Finding],
) -> (Units, Option<u64>) {
    let mut left: Vec<&Finding> = findings.iter().collect();
    let mut first = None;
    for known in reported.iter().filter(|known| known.profile == profile) {
        if left.is_empty() {
            break;
        }
        let about = |f: &&Finding| known.about.contains(&one(f));
        if left.iter().any(about) {
            let is_in = known.is_in(cursor);
            let before = left.len();
            left.retain(|f| !(about(f) && (is_in || is_named(f))));
            if left.len() < before {
                first.get_or_insert(known.number);
            }
        }
    }
    (left.into_iter().map(|f| (f.file, f.unit)).collect(), first)
}

/// What is to blame.
#[derive(Debug)]
pub(super) struct Blame {
    pub(super) shrunk: Shrunk,
    /// Of the shrunk state.
    pub(super) findings: Vec<Finding>,
    pub(super) fingerprint: u128,
}

/// Where and under what a state is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) after: Seq,
    pub(super) promises: u64,
}

impl Place {
    pub(super) fn state<'a>(self, profile: &'a Profile, view: &'a dyn View) -> State<'a> {
        State::at(profile, self.after, self.promises, view)
    }
}

/// Shrinks the state that the cursor shows, which failed with `findings`, to one in which one of the
/// `units` still fails: else all states would be shrunk to what is known already.
pub(super) fn shrink(
    job: &Job<'_>,
    cursor: &mut Cursor<'_, '_>,
    place: Place,
    findings: Vec<Finding>,
    units: &Units,
    verifier: &mut dyn Verifier,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Blame>, ExploreError> {
    let began = Instant::now();
    let limit = job.settings.shrink;
    let own = (cursor.fingerprint(), cursor.name()?);
    let profile = cursor.profile();
    let shrunk = cursor.shrink(
        || stop() || began.elapsed() >= limit,
        |cursor| -> Result<bool, ExploreError> {
            // This is the state that failed already.
            if cursor.fingerprint() == own.0 {
                return Ok(true);
            }
            Ok(match verifier.verify(&place.state(profile, &Shown(cursor)))? {
                Verdict::Failed(now) => now.iter().any(|f| units.contains(&(f.file, f.unit))),
                Verdict::Passed | Verdict::Unsure(_) => false,
            })
        },
    )?;
    let Some(shrunk) = shrunk else { return Ok(None) };
    if shrunk.fingerprint == own.0 {
        return Ok(Some(Blame { shrunk, findings, fingerprint: own.0 }));
    }
    let name = shrunk.failing.clone();
    let verdict =
        cursor.look(&name, |cursor| verifier.confirm(&place.state(profile, &Shown(cursor))))??;
    Ok(Some(match verdict {
        Verdict::Failed(findings) => {
            let fingerprint = shrunk.fingerprint;
            Blame { shrunk, findings, fingerprint }
        }
        // It failed while it was shrunk, and not in fresh surroundings: the state that was found
        // did, twice.
        _ => Blame {
            shrunk: Shrunk { failing: own.1, minimal: false, ..shrunk },
            findings,
            fingerprint: own.0,
        },
    }))
}

/// Tells what was found.
pub(super) fn report(
    job: &Job<'_>,
    cursor: &mut Cursor<'_, '_>,
    place: Place,
    number: u64,
    found: StateName,
    blame: Blame,
    faults: Vec<String>,
) -> Result<Failure, ExploreError> {
    let Blame { shrunk, findings, fingerprint } = blame;
    let from_all = shrunk.passing.as_ref().is_none_or(|name| name.0.ends_with(":all"));
    let pieces = shrunk.left.iter().map(|left| piece(job, cursor, left, from_all)).collect();
    Ok(Failure {
        number,
        explanation: Explanation {
            pieces,
            changes: shrunk.changes as u64,
            minimal: shrunk.minimal,
            tried: shrunk.tried as u64,
            faults,
            violations: cursor.violations(&shrunk.failing)?,
            passing: shrunk.passing.map(Into::into),
        },
        state: shrunk.failing.into(),
        found: found.into(),
        profile: cursor.profile().to_string(),
        after: place.after,
        promises: place.promises,
        fingerprint: Fingerprint(fingerprint),
        findings,
    })
}

/// One difference, as a piece of a write. `from_all`: the passing state has everything persisted.
fn piece(job: &Job<'_>, cursor: &Cursor<'_, '_>, left: &Difference, from_all: bool) -> Piece {
    let history = job.history;
    match left {
        Difference::Fragments { write, there, mask, of } => {
            let changed: BTreeSet<u64> = mask.iter().map(|f| f as u64).collect();
            // What is not mentioned is as in the passing state.
            let survives = |f: &u64| if changed.contains(f) { *there } else { from_all };
            let kept = (0..*of as u64).filter(survives).collect();
            let blocks = cursor.fragment_blocks(*write, mask);
            let span = |blocks: &[Range<u64>]| match blocks {
                [one] if one.end - one.start == 1 => format!("block {}", one.start),
                [one] => format!("blocks {} to {}", one.start, one.end - 1),
                many => format!("{} runs of blocks from {} on", many.len(), many[0].start),
            };
            let which = match (mask.count(), *of) {
                (_, 1) => "as a whole".to_owned(),
                (n, of) if n == of => format!("all {of} fragments"),
                (1, of) => format!("fragment {} of {of}", mask.iter().next().unwrap_or(0) + 1),
                (n, of) => format!("{n} of {of} fragments"),
            };
            let what = if *there { "survived" } else { "was lost" };
            let place =
                if blocks.is_empty() { String::new() } else { format!(", {}", span(&blocks)) };
            Piece {
                text: format!("{} {what}: {which}{place}", describe(history, *write)),
                ..of_write(job, *write, *of as u64, kept, &blocks)
            }
        }
        Difference::Torn { write, there, of } => {
            let kept = there.iter().map(|f| f as u64).collect();
            let text = format!(
                "{} is cut although it is atomic: {} of {of} tear units survived",
                describe(history, *write),
                there.count()
            );
            Piece { text, ..of_write(job, *write, *of as u64, kept, &[]) }
        }
        Difference::Order { over, under } => {
            let text = format!(
                "{} lies over {}, which was in flight with it",
                describe(history, over.write),
                describe(history, under.write)
            );
            Piece { text, ..of_write(job, over.write, 1, vec![0], &[]) }
        }
        Difference::Discarded { discard, zeroes } => {
            let text = format!(
                "{}: {} of its blocks read as zeroes, the others as before",
                describe(history, *discard),
                zeroes.count()
            );
            Piece { text, ..of_write(job, *discard, 1, vec![0], &[]) }
        }
        Difference::Misdirected { write, block } => {
            let text = format!("{} landed at block {block}", describe(history, *write));
            Piece { text, ..of_write(job, *write, 1, vec![0], &[]) }
        }
        Difference::Garbage { block } => {
            Piece { text: format!("block {block} holds garbage"), ..nothing() }
        }
        Difference::Flipped { block, bit } => {
            Piece { text: format!("bit {bit} of block {block} is inverted"), ..nothing() }
        }
    }
}

/// `write 97 (16384 bytes at 65536, FUA)`
fn describe(history: &History, id: Seq) -> String {
    let Some(request) = history.request(id) else { return format!("request {id}") };
    let (what, flags) = match request.kind() {
        RequestKind::Write { fua, atomic } => {
            let flags = [(fua, ", FUA"), (atomic, ", sent as atomic")];
            ("write", flags.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect())
        }
        RequestKind::Discard => ("discard", String::new()),
        RequestKind::WriteZeroes => ("write zeroes", String::new()),
        RequestKind::Flush | RequestKind::Read => ("request", String::new()),
    };
    match request.ranges().as_slice() {
        [(offset, len)] => format!("{what} {id} ({len} bytes at {offset}{flags})"),
        ranges => format!("{what} {id} ({} segments)", ranges.len()),
    }
}

/// `blocks`: those it is about; none: all of the write's.
fn of_write(
    job: &Job<'_>,
    write: Seq,
    fragments: u64,
    kept: Vec<u64>,
    blocks: &[Range<u64>],
) -> Piece {
    let mut piece = Piece { write, fragments, kept, ..nothing() };
    let Some(request) = job.history.request(write) else { return piece };
    let lb = u64::from(job.history.disk().lb_size);
    if let Some((offset, len)) = request.ranges().first().copied() {
        (piece.offset, piece.len) = (offset, len);
        let all = offset / lb..(offset + len).div_ceil(lb);
        let whole = blocks.is_empty().then_some(&all);
        for blocks in blocks.iter().chain(whole) {
            // A whole write may carry hundreds of calls: the first ones tell what it was.
            if piece.calls.len() < CALLS
                && let Some(call) = job.explain.call(write, blocks)
                && !piece.calls.contains(&call)
            {
                piece.calls.push(call);
            }
        }
    }
    if let RequestKind::Write { fua, atomic } = request.kind() {
        (piece.fua, piece.atomic) = (fua, atomic);
    }
    piece
}

fn nothing() -> Piece {
    Piece {
        write: Seq(0),
        offset: 0,
        len: 0,
        fua: false,
        atomic: false,
        fragments: 0,
        kept: Vec::new(),
        calls: Vec::new(),
        text: String::new(),
    }
}

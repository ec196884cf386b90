//! Where pictures come from: an exploration's failures, a cut that was kept, a bundle.

use super::{About, NoPicture, Picture, Place, Scene};
use crate::explore::bundle::{Bundle, Unpacked};
use crate::explore::session::Kept;
use crate::explore::{Carried, Explain, Failure, Files, Ledgers, Opened};
use crate::oracle::Finding;
use crate::report::headline;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tornblk_model::crash::{Choice, Parsed};
use tornblk_model::event::Seq;

/// Letters of what was found.
const LONGEST: usize = 160;

/// A recording, and whoever knows where its writes came from.
pub struct Source<'a> {
    opened: &'a Opened,
    whose: Whose,
}

enum Whose {
    Workload(Box<Carried>),
    Files(Files),
    Nobody,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("recording", &self.opened.given).finish_non_exhaustive()
    }
}

impl<'a> Source<'a> {
    /// Where its data cannot be read, a picture says less, and is there all the same.
    pub fn of(opened: &'a Opened) -> Source<'a> {
        let whose = whose(opened).unwrap_or_else(|error| {
            log::info!("a picture cannot say where writes came from: {error}");
            Whose::Nobody
        });
        Source { opened, whose }
    }

    fn scene(&self) -> Scene<'_> {
        let explain: &dyn Explain = match &self.whose {
            Whose::Workload(carried) => &**carried,
            Whose::Files(files) => files,
            Whose::Nobody => &(),
        };
        Scene {
            history: &self.opened.history,
            events: &self.opened.events,
            explain,
            subject: self.opened.subject.as_ref(),
        }
    }

    /// Of what exploring found.
    ///
    /// # Errors
    /// There is nothing to be drawn.
    pub fn failure(&self, failure: &Failure) -> Result<Picture, NoPicture> {
        if failure.lost_nothing() {
            return Err(NoPicture(
                "all that was sent to the disk is there: no write was lost or torn, and what is missed was \
                 not sent"
                    .to_owned(),
            ));
        }
        let mut about = self.about(failure.findings.first(), &failure.state.0);
        let pieces = failure.explanation.pieces.iter().map(|piece| piece.write);
        about.writes.extend(pieces.filter(|write| *write != Seq(0)));
        about.found = Some(failure.found.0.clone());
        self.scene().draw(&about)
    }

    /// Of one finding in a state that nobody shrank.
    ///
    /// # Errors
    /// There is nothing to be drawn.
    pub fn finding(&self, finding: &Finding, state: &str) -> Result<Picture, NoPicture> {
        if !finding.clause.is_of_the_disk() {
            return Err(NoPicture(
                "what was found is in no block of the disk: it is what the guest's kernel said, took \
                 or sent"
                    .to_owned(),
            ));
        }
        let about = self.about(Some(finding), state);
        if about.writes.is_empty() {
            return Err(NoPicture(
                "it is about no single block: `tornblk explore` of this recording finds the write that \
                 is to blame"
                    .to_owned(),
            ));
        }
        self.scene().draw(&about)
    }

    fn about(&self, finding: Option<&Finding>, state: &str) -> About {
        let mut about = About { state: state.to_owned(), ..About::default() };
        let Some(finding) = finding else { return about };
        about.what = headline(finding);
        if finding.len == 0 {
            // It says too little by itself.
            let first = finding.text.lines().next().unwrap_or_default();
            about.what = super::svg::clipped(&format!("{}: {first}", about.what), LONGEST);
        }
        let Whose::Workload(carried) = &self.whose else { return about };
        if finding.len == 0 {
            return about;
        }
        about.unit = Some((finding.file, finding.unit));
        let after = state.parse::<Parsed>().map_or(Seq(u64::MAX), |parsed| parsed.after);
        let mut places = carried.places(finding.file, finding.unit);
        places.retain(|place| place.write <= after);
        // The write that it is about, or the newest ones.
        let wanted = finding.generation.or(finding.durable);
        let own: Vec<_> = places.iter().filter(|p| Some(p.generation) == wanted).collect();
        let own = if own.is_empty() { places.iter().rev().take(2).collect() } else { own };
        about.writes = own.iter().map(|place| place.write).collect();
        // Where it came last, as a whole, or in several requests.
        let len = u64::from(finding.len);
        let whole = own.iter().rfind(|place| place.bytes.end - place.bytes.start == len);
        let from = own.iter().map(|place| place.bytes.start).min();
        let to = own.iter().map(|place| place.bytes.end).max();
        let parts = from.zip(to).map(|(from, to)| from..to).filter(|b| b.end - b.start == len);
        if let Some(bytes) = whole.map(|place| place.bytes.clone()).or(parts) {
            about.place = Some(Place {
                bytes,
                name: format!("{} unit {}", finding.path, finding.unit),
                verdict: finding.clause.to_string(),
            });
        }
        about
    }
}

fn whose(opened: &Opened) -> Result<Whose, crate::explore::ExploreError> {
    let Some(subject) = &opened.subject else { return Ok(Whose::Nobody) };
    if subject.checker.is_some() {
        return Ok(Whose::Files(opened.files.clone()));
    }
    let workload = &subject.workload;
    let ledgers = Arc::new(Ledgers::new(workload, &opened.events));
    let (reader, base) = (opened.reader.clone(), opened.base.as_deref());
    let carried = Carried::of(reader, base, opened.trust(), &opened.events, workload, ledgers)?;
    Ok(Whose::Workload(Box::new(carried)))
}

/// Of each of these failures, in their order.
pub fn of_failures(opened: &Opened, failures: &[Kept]) -> Vec<Result<Picture, NoPicture>> {
    if failures.is_empty() {
        return Vec::new();
    }
    let source = Source::of(opened);
    failures.iter().map(|kept| source.failure(&kept.failure)).collect()
}

/// Of the findings of a cut that was kept in `dir`, in their order.
///
/// # Errors
/// Its recording cannot be read.
pub fn of_cut(
    dir: &Path,
    state: &str,
    findings: &[&Finding],
) -> Result<Vec<Result<Picture, NoPicture>>, NoPicture> {
    if !findings.iter().any(|finding| finding.clause.is_of_the_disk()) || state.is_empty() {
        let source = "what was found is in no state of the disk";
        return Err(NoPicture(source.to_owned()));
    }
    let opened = Opened::open(dir, None).map_err(|e| NoPicture(e.to_string()))?;
    let source = Source::of(&opened);
    Ok(findings.iter().map(|finding| source.finding(finding, state)).collect())
}

/// Of what a bundle shows.
///
/// # Errors
/// It cannot be read, or there is nothing to be drawn.
pub fn of_bundle(path: &Path) -> Result<Picture, NoPicture> {
    let bad = |e: &dyn std::fmt::Display| NoPicture(e.to_string());
    let temp = tempfile::Builder::new()
        .prefix("tornblk-picture-")
        .tempdir()
        .map_err(|e| NoPicture(format!("cannot make a temporary folder: {e}")))?;
    let bundle = Bundle::open(path).map_err(|e| bad(&e))?;
    let Unpacked { meta, reader, base, .. } = bundle.unpack(temp.path()).map_err(|e| bad(&e))?;
    let opened = Opened::open(reader.path(), Some(&base)).map_err(|e| bad(&e))?;
    let source = Source::of(&opened);
    let mut about = source.about(meta.findings.first(), &meta.state.0);
    // A state that was shrunk names what is to blame, and nothing else.
    about.writes.extend(named(&meta.state.0));
    let mut picture = source.scene().draw(&about)?;
    picture.told.extend(meta.fault.iter().map(|fault| format!("On purpose: {fault}.")));
    if let Some(recovery) = &meta.recovery {
        picture.told.push(format!(
            "What fails is the recovery on this state, cut off in its own state {recovery}."
        ));
    }
    Ok(picture)
}

/// The writes that a state's name mentions.
fn named(state: &str) -> BTreeSet<Seq> {
    let Ok(Parsed { choice: Choice::These(selection), .. }) = state.parse() else {
        return BTreeSet::new();
    };
    let changes = selection.changes.iter().map(|(_, id, _)| *id);
    let torn = selection.torn.iter().map(|(id, _)| *id);
    let moved = selection.misdirected.iter().map(|(id, _)| *id);
    let discards = selection.discards.iter().map(|(id, _)| *id);
    let order = selection.order.iter().flat_map(|(over, under)| [over.write, under.write]);
    changes.chain(torn).chain(moved).chain(discards).chain(order).collect()
}

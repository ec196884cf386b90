//! What the kernels of a lane's guests complained about: findings of its cuts.

use super::cut::CutReport;
use super::lane::LaneRun;
use super::verdict::Verdict;
use super::{GuestArgs, RunError};
use crate::oracle::{Clause, Finding, Judgement};
use crate::splat::{Again, Around, Desk, Guest, Kind, find, harmless};
use crate::vm::CONSOLE;
use std::path::Path;
use tornblk_model::crash::{Fault, FaultKind};

/// Of a run with this guest.
pub(super) fn desk(guest: &GuestArgs) -> Desk {
    Desk::new(guest.kernel.as_deref().map(Path::new).filter(|path| path.exists()))
}

/// How long a guest's console is. `dir` has it.
pub(super) fn said(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(CONSOLE)).map_or(0, |console| console.len())
}

/// Did a guest's kernel bring its workload to this end, by its own words? `dir` has its console, which
/// was so long when the workload began. → a finding, whatever the words are.
pub(super) fn ended(error: &RunError, dir: &Path, before: u64) -> Option<Finding> {
    let (kind, text) = match error {
        RunError::Panic(_) => (Kind::Bug, error.to_string()),
        RunError::Hung(_) => {
            let log = std::fs::read(dir.join(CONSOLE)).unwrap_or_default();
            let new = log.get(before as usize..).unwrap_or_default();
            let splats = find(&String::from_utf8_lossy(new));
            let around = Around { hung: true, ..Around::default() };
            if splats.iter().all(|splat| harmless(splat, around).is_some()) {
                return None;
            }
            (Kind::Hung, format!("the guest's kernel hung: {error}"))
        }
        _ => return None,
    };
    let text = format!("{text}\nit was at the workload, before the cut");
    Some(Finding { complaint: Some(kind), ..Finding::new(Clause::KernelWarning, text) })
}

/// Of the guest that recovers a kept cut again, whose folder is in `dir`.
pub(super) fn again(
    dir: &Path,
    then: &CutReport,
    now: &Judgement,
    guest: &GuestArgs,
) -> Result<Vec<Finding>, RunError> {
    let (lied, broken) = (!then.faults.is_empty(), is_broken(now));
    let around = Around { lied, broken, ..Around::default() };
    let mut desk = desk(guest);
    let dir = &dir.join("after");
    desk.hear(&Guest { dir, which: "that recovered after the cut", around })?;
    Ok(desk.findings(None)?)
}

fn is_broken(judgement: &Judgement) -> bool {
    judgement.findings.iter().any(|f| f.clause == Clause::Unrecoverable)
}

impl LaneRun<'_> {
    /// The guest that made the file system has no cut of its own: the next one tells it.
    pub(super) fn hear_mkfs(&mut self, dir: &Path) -> Result<(), RunError> {
        let (dir, which) = (&dir.join("mkfs"), "that made the file system");
        self.desk.hear(&Guest { dir, which, around: Around::default() })?;
        Ok(())
    }

    /// Nor has the guest whose limits were looked at.
    pub(super) fn hear_limits(&mut self, dir: &Path) -> Result<(), RunError> {
        let (dir, which) = (&dir.join("limits").join("guest"), "that showed its limits");
        self.desk.hear(&Guest { dir, which, around: Around::default() })?;
        Ok(())
    }

    /// The guest that said that it cannot do it.
    pub(super) fn hear_before(&mut self, dir: &Path) -> Result<(), RunError> {
        let (dir, which) = (&dir.join("before"), "that was to write");
        self.desk.hear(&Guest { dir, which, around: Around::default() })?;
        Ok(())
    }

    /// Both guests of a cut, whose folder is `dir`. What is heard in the control's is told by the
    /// first cut: a control is caught by what it breaks.
    pub(super) fn hear(&mut self, dir: &Path, report: &mut CutReport) -> Result<(), RunError> {
        let broken = is_broken(&report.judgement);
        let findings = &mut report.judgement.findings;
        let mut deaths: Vec<Finding> =
            findings.extract_if(.., |f| f.clause == Clause::KernelWarning).collect();
        let hung = deaths.iter().any(|death| death.complaint == Some(Kind::Hung));
        let lied = !report.faults.is_empty();
        let said = self.hear_both(report.number, dir, Around { lied, broken, hung, ..NONE })?;
        // Its own words say more than that it died.
        if said.iter().any(|kind| matches!(kind, Kind::Bug | Kind::Hung | Kind::Time)) {
            deaths.clear();
        }
        if report.number == 0 {
            deaths.into_iter().for_each(|death| self.desk.add(death));
            return Ok(());
        }
        findings.extend(self.desk.findings(Some(dir))?);
        findings.extend(deaths);
        Ok(())
    }

    /// → what is new of the guest before the cut. `known`: of what was done and is known around both.
    fn hear_both(&mut self, number: u32, dir: &Path, known: Around) -> Result<Vec<Kind>, RunError> {
        let fault = match number {
            0 => self.lane.control.wrong.fault().cloned(),
            number => self.fault_for(number),
        };
        let (before, after) = around(fault.as_ref(), known);
        let (old, new) = (&dir.join("before"), &dir.join("after"));
        let which = "that wrote until the cut";
        let said = self.desk.hear(&Guest { dir: old, which, around: before })?;
        let which = "that recovered after the cut";
        self.desk.hear(&Guest { dir: new, which, around: after })?;
        Ok(said)
    }

    /// A kernel died where no cut tells it.
    pub(super) fn died(&mut self, error: &RunError) -> Result<(), RunError> {
        self.report.verdict = Verdict::Violated;
        self.report.why = Some(error.to_string());
        match self.at.clone() {
            // Which of the two it was is in their words. What the faults did is not known then.
            Some((number, cut)) => {
                let lied = number == 0 || !self.settings.faults.is_empty();
                self.hear_both(number, &cut, Around { lied, ..NONE }).map(|_| ())
            }
            None => {
                let dir = self.folder.lane(&self.lane.name)?;
                // The one before has been heard where there was another.
                if dir.join("limits").is_dir() {
                    self.hear_limits(&dir)
                } else {
                    self.hear_mkfs(&dir)
                }
            }
        }
    }

    /// At the lane's end: what no cut could tell.
    pub(super) fn complained_elsewhere(&mut self) -> Result<(), RunError> {
        let Again { count, of_earlier } = self.desk.take_again();
        self.report.complaints_again = count;
        let findings = self.desk.findings(Some(&self.folder.lane(&self.lane.name)?))?;
        let mut why = Vec::from_iter(self.report.why.take());
        if !findings.is_empty() {
            let texts = findings.iter().map(|finding| finding.text.replace('\n', ", "));
            let texts = texts.collect::<Vec<_>>().join("; ");
            // Red without a finding: it died, and its own words say more.
            let died = self.report.verdict == Verdict::Violated && self.report.violations == 0;
            if died {
                why.clear();
            }
            let did = if died { "crashed" } else { "complained" };
            why.push(format!("the guest's kernel {did}: {texts}"));
        }
        if !of_earlier.is_empty() {
            // A finding of an earlier lane, and none the less wrong with this one.
            let titles = of_earlier.join("; ");
            why.push(format!("the guest's kernel complained as before: {titles}"));
        }
        if !findings.is_empty() || !of_earlier.is_empty() {
            self.report.verdict = Verdict::Violated;
        }
        self.report.why = (!why.is_empty()).then(|| why.join("; "));
        Ok(())
    }
}

const NONE: Around = Around { eio: false, lied: false, broken: false, hung: false };

/// What was done on purpose around the guests before and after a cut, and is `known` of it: that the
/// cut left another disk than it may, what is broken by it, that the first guest hung.
fn around(fault: Option<&Fault>, known: Around) -> (Around, Around) {
    // These stay armed, and nobody counts how often they strike.
    let is = |kind| fault.is_some_and(|fault| fault.kind == kind);
    let (eio, stale) = (is(FaultKind::Eio), is(FaultKind::StaleRead));
    let before = Around { eio, lied: stale, broken: false, hung: known.hung };
    (before, Around { eio, lied: stale || known.lied && !eio, hung: false, ..known })
}

#[cfg(test)]
#[path = "complaints_tests.rs"]
mod complaining;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fault_excuses_the_guest_that_meets_it() {
        let lied = Around { lied: true, ..NONE };
        let of = |fault: &str, known| around(Some(&fault.parse().unwrap()), known);
        assert_eq!(of("ignore-flush", lied), (NONE, lied));
        assert_eq!(of("ignore-flush", NONE), (NONE, NONE), "it found nothing to break");
        let eio = Around { eio: true, ..NONE };
        assert_eq!(of("eio,p=0.5", NONE), (eio, eio));
        assert_eq!(of("stale-read,p=0.5", NONE), (lied, lied));
        let broken = Around { broken: true, ..NONE };
        assert_eq!(around(None, broken), (NONE, broken));
        let hung = Around { hung: true, ..NONE };
        assert_eq!(around(None, hung), (hung, NONE));
    }
}

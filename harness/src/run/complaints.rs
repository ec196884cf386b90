//! What the kernels of a lane's guests complained about: findings of its cuts.

use super::cut::CutReport;
use super::lane::{LaneRun, Verdict};
use super::{GuestArgs, RunError};
use crate::oracle::{Clause, Finding, Judgement};
use crate::splat::{Around, Desk, Guest, find, harmless};
use crate::vm::CONSOLE;
use std::path::Path;
use tornblk_model::crash::{Fault, FaultKind};

/// Of a run with this guest.
pub(super) fn desk(guest: &GuestArgs) -> Desk {
    Desk::new(guest.kernel.as_deref().map(Path::new).filter(|path| path.exists()))
}

/// Did a guest's kernel bring its workload to this end, by its own words? `dir` has its console.
pub(super) fn ended(error: &RunError, dir: &Path) -> bool {
    match error {
        RunError::Panic(_) => true,
        RunError::Hung(_) => {
            let log = std::fs::read(dir.join(CONSOLE)).unwrap_or_default();
            let splats = find(&String::from_utf8_lossy(&log));
            splats.iter().any(|splat| harmless(splat, Around::default()).is_none())
        }
        _ => false,
    }
}

/// Of the guest that recovers a kept cut again, whose folder is in `dir`.
pub(super) fn again(
    dir: &Path,
    then: &CutReport,
    now: &Judgement,
    guest: &GuestArgs,
) -> Result<Vec<Finding>, RunError> {
    let around = Around { eio: false, lied: !then.faults.is_empty(), broken: is_broken(now) };
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
        Ok(self.desk.hear(&Guest { dir, which, around: Around::default() })?)
    }

    /// The guest that said that it cannot do it.
    pub(super) fn hear_before(&mut self, dir: &Path) -> Result<(), RunError> {
        let (dir, which) = (&dir.join("before"), "that was to write");
        Ok(self.desk.hear(&Guest { dir, which, around: Around::default() })?)
    }

    /// Both guests of a cut, whose folder is `dir`. What is heard in the control's is told by the
    /// first cut: a control is caught by what it breaks.
    pub(super) fn hear(&mut self, dir: &Path, report: &mut CutReport) -> Result<(), RunError> {
        let fault = match report.number {
            0 => Some(self.lane.control.fault.clone()),
            number => self.fault_for(number),
        };
        let (before, after) = around(fault.as_ref(), is_broken(&report.judgement));
        for (name, which, around) in [
            ("before", "that wrote until the cut", before),
            ("after", "that recovered after the cut", after),
        ] {
            self.desk.hear(&Guest { dir: &dir.join(name), which, around })?;
        }
        if report.number > 0 {
            report.judgement.findings.extend(self.desk.findings(Some(dir))?);
        }
        Ok(())
    }

    /// A kernel died where there was no cut yet.
    pub(super) fn died(&mut self, error: &RunError) -> Result<(), RunError> {
        self.report.verdict = Verdict::Violated;
        self.report.why = Some(error.to_string());
        match self.at.clone() {
            Some(cut) => self.hear_before(&cut),
            None => self.hear_mkfs(&self.folder.lane(&self.lane.name)?),
        }
    }

    /// At the lane's end: what no cut could tell.
    pub(super) fn complained_elsewhere(&mut self) -> Result<(), RunError> {
        self.report.complaints_again = self.desk.take_again();
        let findings = self.desk.findings(Some(&self.folder.lane(&self.lane.name)?))?;
        if findings.is_empty() {
            return Ok(());
        }
        let texts = findings.iter().map(|finding| finding.text.replace('\n', ", "));
        let texts = texts.collect::<Vec<_>>().join("; ");
        // Red without a finding: it died, and its own words say more.
        let died = self.report.verdict == Verdict::Violated && self.report.violations == 0;
        let why = match (died, &self.report.why) {
            (true, _) => format!("the guest's kernel crashed: {texts}"),
            (false, Some(why)) => format!("{why}; the guest's kernel complained: {texts}"),
            (false, None) => format!("the guest's kernel complained: {texts}"),
        };
        (self.report.verdict, self.report.why) = (Verdict::Violated, Some(why));
        Ok(())
    }
}

/// What was done on purpose around the guests before and after a cut.
pub(super) fn around(fault: Option<&Fault>, broken: bool) -> (Around, Around) {
    let eio = fault.is_some_and(|f| f.kind == FaultKind::Eio);
    let lied = !eio && fault.is_some_and(|f| f.kind.is_live());
    (Around { eio, lied, broken: false }, Around { eio: false, lied: fault.is_some(), broken })
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
        let of = |fault: &str| around(Some(&fault.parse().unwrap()), false);
        let (before, after) = of("ignore-flush");
        assert_eq!((before, after.lied), (Around::default(), true));
        let (before, after) = of("eio,p=0.5");
        assert!(before.eio && !before.lied && after.lied);
        let (before, after) = of("stale-read,p=0.5");
        assert!(before.lied && after.lied);
        assert_eq!(
            around(None, true),
            (Around::default(), Around { broken: true, ..Around::default() })
        );
    }
}

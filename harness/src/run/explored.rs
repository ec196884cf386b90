//! The crash states of a lane's last recording, explored as a part of the run.

use super::{Lab, RunError};
use crate::explore::session::{Choices, Kept, Session};
use crate::explore::{
    Drive, ExploreError, ExploreReport, GuestNeeds, Opened, Progress, Settings, Watch, report,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tornblk_model::crash::{Profile, Strategy};

/// Of one state in so many a file system's own checker is asked.
const FSCK_EVERY: u64 = 50;

pub(super) struct Asked<'a> {
    pub(super) profile: &'a str,
    pub(super) strategies: &'a [Strategy],
    /// So many at most; `None`: as many as there is time for.
    pub(super) states: Option<u64>,
    pub(super) seed: u64,
    pub(super) time: Option<Duration>,
    /// Where its failures are kept.
    pub(super) dir: &'a Path,
    pub(super) interrupted: &'a AtomicBool,
}

/// Explores the recording of the cut in `cut`.
pub(super) fn explored(
    lab: &mut dyn Lab,
    cut: &Path,
    asked: &Asked<'_>,
    phase: &mut dyn FnMut(&str),
) -> Result<ExploreReport, RunError> {
    phase("reading the recording");
    explore(lab, cut, asked, phase).map_err(|error| match error {
        ExploreError::Run(error) => error,
        ExploreError::Interrupted => RunError::Interrupted,
        other => RunError::Bad(format!("the crash states cannot be explored: {other}")),
    })
}

fn explore(
    lab: &mut dyn Lab,
    cut: &Path,
    asked: &Asked<'_>,
    phase: &mut dyn FnMut(&str),
) -> Result<ExploreReport, ExploreError> {
    let opened = Opened::open(cut, None)?;
    let Some(subject) = opened.subject.clone() else {
        return Err(ExploreError::Bad("the recording does not say what was written".into()));
    };
    let profile: Profile = asked.profile.parse()?;
    let choices = Choices {
        profiles: vec![profile.to_string()],
        strategies: asked.strategies.iter().map(ToString::to_string).collect(),
        faults: Vec::new(),
        seed: asked.seed,
        every_event: false,
        nested: 0,
        fsck_every: FSCK_EVERY,
        pages: None,
    };
    let settings = Settings {
        strategies: asked.strategies.to_vec(),
        seed: asked.seed,
        time: asked.time,
        states: asked.states,
        ..Settings::default()
    };
    let dir = asked.dir;
    std::fs::create_dir_all(dir).map_err(|source| ExploreError::Io {
        what: "make the folder",
        path: dir.to_owned(),
        source,
    })?;
    let needs = GuestNeeds {
        dir: dir.to_owned(),
        fsck_every: FSCK_EVERY,
        nested: 0,
        seed: asked.seed,
        // The guests' own waiting is ended by the lab's.
        stop: Arc::new(AtomicBool::new(false)),
    };
    let means = lab.means(&opened, &subject, &needs)?;
    let mut session = Session::new(opened.identity.clone(), choices, None);
    session.is_of(&subject);
    session.judge = means.judge();
    let profiles = [profile];
    let drive = Drive {
        opened: &opened,
        means: &*means,
        profiles: &profiles,
        settings: &settings,
        dir,
        stop: asked.interrupted,
    };
    drive.run(&mut session, Vec::new(), &mut Told(phase))?;
    if asked.interrupted.load(Ordering::Relaxed) {
        return Err(ExploreError::Interrupted);
    }
    let mut report = report(&session, session.judge, Vec::new())?;
    report.folder = Some(dir.to_owned());
    Ok(report)
}

struct Told<'a>(&'a mut dyn FnMut(&str));

impl Watch for Told<'_> {
    fn progress(&mut self, _: &str, _: usize, _: usize, at: &Progress) {
        let c = &at.counts;
        (self.0)(&format!("exploring: {} states, {} failed", c.states, c.failed));
    }

    fn failure(&mut self, kept: &Kept) {
        if let Some(finding) = kept.failure.findings.first() {
            (self.0)(&format!("found: {}", crate::report::headline(finding)));
        }
    }
}

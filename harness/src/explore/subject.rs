//! What a recording says of itself: who made it, what was written, and how its disk is used.
//!
//! `tornblk run` puts it into the recording as marks ([`pieces`](super::pieces)), before the workload
//! begins, so that exploring needs nothing but the recording and its base image.

use super::Pages;
use super::pieces::{Parts, SUBJECT};
use crate::run::{Environment, FurtherDisk, GuestArgs, Volume};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tornblk_agent::channel::{Program, Ran, Workload};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::{Reader, RecordingError};

/// Of each output of a program, for a sentence.
const LINES: usize = 4;
/// Of each line.
const LETTERS: usize = 200;
const SIGKILL: i32 = 9;

/// Why a recording does not tell.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error(
        "{} was made by another version of tornblk (what it says of itself has format {found}, and \
         this program knows format {known}): explore it with the tornblk that made it",
        path.display()
    )]
    Version { path: PathBuf, found: String, known: u32 },
    #[error(
        "{} says what it is a recording of, but that cannot be read: {why}; record anew",
        path.display()
    )]
    Bad { path: PathBuf, why: String },
}

/// What a recording is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// As it was named on the command line of the run, or its built-in name.
    pub suite: String,
    pub lane: String,
    /// Of the lane; 0 is the negative control.
    pub cut: u32,
    /// Of the run.
    pub seed: u64,
    pub workload: Workload,
    pub volume: Volume,
    pub guest: GuestArgs,
    /// Key of the guest's image; `None`: it was not one of ours.
    #[serde(default)]
    pub image: Option<String>,
    /// Who says whether a state is sound; `None`: a workload of the agent's is read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checker: Option<Checker>,
    /// Where it was made; `None`: it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Beside the disk of `volume`, which is then LUN 0 of the recorded device, these follow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<FurtherDisk>,
    /// How the data pages of its files can be judged in place, whoever else judges it: the caller chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Pages>,
}

/// A program of the user's that looks at the disk, mounted where [`USER_DISK`] is: exit status 0, and it
/// is sound.
///
/// [`USER_DISK`]: tornblk_agent::channel::USER_DISK
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checker {
    /// As it was given.
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub timeout_ms: u64,
    /// Only this exit status says that it is not; any other that is not 0, and the checker itself is
    /// at fault. `None`: any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt_status: Option<i32>,
}

impl Checker {
    /// As the guest is asked, with the marks before the crash.
    pub fn program(&self, marks: Vec<String>) -> Program {
        let Checker { argv, env, timeout_ms, .. } = self.clone();
        Program { argv, env, marks, timeout_ms, disks: Vec::new() }
    }

    /// What it says of a disk by how it ended.
    pub fn verdict(&self, ran: &Ran) -> Checked {
        let (name, said) = (&self.name, said(ran));
        let no_answer = |why: String| Checked::NoAnswer(format!("{name} {why}{said}"));
        let unsound = |why: String| Checked::Unsound(format!("{name} {why}{said}"));
        match (ran.status, ran.signal, self.corrupt_status) {
            (Some(0), ..) => Checked::Sound,
            (None, ..) => unsound(format!("did not end in {} s", self.timeout_ms / 1000)),
            // Nobody but the kernel does that, where there is no memory left.
            (_, Some(SIGKILL), _) => no_answer(
                "was killed (the guest has 512 MiB, for what it writes to /tmp, too)".into(),
            ),
            (Some(status), _, Some(corrupt)) if status != corrupt => no_answer(format!(
                "ended with status {status}, which by --corrupt-status says nothing of the disk"
            )),
            // As a shell says that it could not run something.
            (Some(status @ (126 | 127)), _, None) => no_answer(format!(
                "ended with status {status}: a program that it needs cannot be run"
            )),
            (_, Some(signal), _) => unsound(format!("was ended by signal {signal}")),
            (Some(status), ..) => unsound(format!("ended with status {status}")),
        }
    }
}

/// What a [`Checker`] says of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    Sound,
    Unsound(String),
    /// It could not tell.
    NoAnswer(String),
}

fn cut(line: &str) -> String {
    // Colours, say: no file that is made of it shows them.
    let line = &line.replace(char::is_control, " ");
    match line.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.to_owned(),
    }
}

/// The last lines of what a program said, for a sentence.
pub fn said(ran: &Ran) -> String {
    let last = |text: &str| {
        let lines: Vec<String> = text.lines().rev().take(LINES).map(cut).collect();
        lines.into_iter().rev().collect::<Vec<_>>()
    };
    let lines = [last(&ran.stdout), last(&ran.stderr)].concat();
    if lines.is_empty() {
        " and said nothing".to_owned()
    } else {
        format!(": {}", lines.join(" | "))
    }
}

impl Subject {
    /// Without a guest, where nobody chose: what the workload wrote is read off the disk itself. (Pages of
    /// files are judged in place where that is asked for.)
    pub fn is_judged_in_place(&self) -> bool {
        self.volume.is_raw() && self.checker.is_none()
    }

    /// The names of the marks that say it.
    pub fn marks(&self) -> Vec<String> {
        SUBJECT.marks(self)
    }

    /// What a recording says; `None` where it says nothing: `tornblk run` did not make it.
    ///
    /// # Errors
    /// The recording cannot be read, or what it says is of another version or incomplete.
    pub fn read(reader: &Reader) -> Result<Option<Subject>, SubjectError> {
        let mut parts = Parts::new(SUBJECT);
        for event in reader.events() {
            let (_, event) = event?;
            if let Event::Mark(mark) = event
                && let Some(subject) = parts.mark(reader.path(), &mark)?
            {
                return Ok(Some(subject));
            }
        }
        parts.end(reader.path()).map(|()| None)
    }

    /// As [`Subject::read`], of events that were read already; `path` names them in errors.
    ///
    /// # Errors
    /// What it says is of another version or incomplete.
    pub fn find<'a>(
        path: &Path,
        events: impl IntoIterator<Item = &'a (Seq, Event)>,
    ) -> Result<Option<Subject>, SubjectError> {
        let mut parts = Parts::new(SUBJECT);
        for (_, event) in events {
            if let Event::Mark(mark) = event
                && let Some(subject) = parts.mark(path, mark)?
            {
                return Ok(Some(subject));
            }
        }
        parts.end(path).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pieces::is_piece;
    use super::*;
    use crate::oracle::pages::PageFormat;
    use tornblk_agent::channel::{Prepare, Target, WriteFlags};
    use tornblk_model::event::Mark;
    use tornblk_model::recording::MARK_MAX;

    fn subject(targets: u32) -> Subject {
        let target = |file| Target {
            file,
            path: format!("/mnt/ä{file}"),
            offset: 0,
            unit: 16384,
            units: 8,
            threads: 1,
            depth: 1,
            flags: vec![WriteFlags { direct: true, dsync: true, ..WriteFlags::default() }],
            prepare: Prepare::Written,
            ..Target::default()
        };
        Subject {
            suite: "s".into(),
            lane: "l".into(),
            cut: 3,
            seed: u64::MAX,
            workload: Workload {
                nonce: u64::MAX - 1,
                seed: 5,
                files: (1..=targets).map(target).collect(),
                load: true,
                writes: 10,
                sync_every: 0,
                skip_sync: false,
            },
            volume: Volume {
                fstype: "xfs".into(),
                mount_options: String::new(),
                queues: 1,
                logical_block_size: 512,
                profile: "req16k".into(),
                front_end: Default::default(),
                shows_limits: false,
                on_wire: Default::default(),
            },
            guest: GuestArgs::default(),
            image: Some("abc".into()),
            checker: None,
            environment: Some(crate::run::Environment::default()),
            disks: Vec::new(),
            pages: (targets > 1).then(|| Pages::of(PageFormat::Postgres)),
        }
    }

    fn events(names: &[String]) -> Vec<(Seq, Event)> {
        let event =
            |(i, name): (usize, &String)| (Seq(i as u64), Event::Mark(Mark { name: name.clone() }));
        names.iter().enumerate().map(event).collect()
    }

    fn find(names: &[String]) -> Result<Option<Subject>, SubjectError> {
        Subject::find(Path::new("x.recording"), &events(names))
    }

    #[test]
    fn a_checker_says_by_its_end_what_it_found() {
        let mut checker = Checker {
            name: "./check".into(),
            argv: vec!["/x/check".into()],
            env: Vec::new(),
            timeout_ms: 3000,
            corrupt_status: None,
        };
        let ran = |status, signal| Ran {
            status,
            signal,
            stdout: "a\n".repeat(9),
            stderr: "x".repeat(500),
        };
        let text = |checked| match checked {
            Checked::Sound => "sound".to_owned(),
            Checked::Unsound(text) => format!("unsound: {text}"),
            Checked::NoAnswer(text) => format!("no answer: {text}"),
        };
        let says = |checker: &Checker, status, signal, wanted: &str| {
            let text = text(checker.verdict(&ran(status, signal)));
            assert!(text.starts_with(wanted), "{text}");
            assert!(text.len() < 400, "{text}");
        };
        says(&checker, Some(0), None, "sound");
        says(&checker, Some(1), None, "unsound: ./check ended with status 1: a | a | a | a | xxx");
        says(&checker, None, None, "unsound: ./check did not end in 3 s");
        says(&checker, Some(139), Some(11), "unsound: ./check was ended by signal 11");
        says(&checker, Some(137), Some(9), "no answer: ./check was killed");
        says(&checker, Some(127), None, "no answer: ./check ended with status 127");
        checker.corrupt_status = Some(127);
        says(&checker, Some(127), None, "unsound: ./check ended with status 127");
        says(&checker, Some(1), None, "no answer: ./check ended with status 1, which");
        says(&checker, Some(0), None, "sound");
    }

    #[test]
    fn what_a_recording_says_is_read_back_whatever_its_length() {
        for targets in [1, 50, 200] {
            let subject = subject(targets);
            let mut marks = subject.marks();
            assert!(marks.iter().all(|m| m.len() <= MARK_MAX));
            assert_eq!(marks.len() > 1, targets > 1);
            assert!(marks.iter().all(|name| is_piece(&Mark { name: name.clone() })));
            marks.insert(0, "somebody's own".into());
            assert_eq!(find(&marks).unwrap(), Some(subject));
        }
        assert_eq!(find(&["tornblk-subjective".into()]).unwrap(), None);
    }

    #[test]
    fn what_is_incomplete_or_of_another_version_is_said() {
        let marks = subject(60).marks();
        assert!(marks.len() > 2);
        let says = |names: &[String], text: &str| {
            let error = find(names).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("x.recording"), "{error}");
        };
        says(&marks[..1], "the last one there");
        says(&marks[1..], "came after part 0");
        says(&[marks[0].replace("subject 1 ", "subject 9 ")], "has format 9");
        says(&["tornblk-subject 1 x".into()], "no number");
        says(&["tornblk-subject 1 1/1 {}".into()], "missing field");
    }
}

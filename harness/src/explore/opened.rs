//! A recording that is to be explored: read, with its base image found.

use super::files::Files;
use super::session::Identity;
use super::{ExploreError, Subject, SubjectError};
use crate::run::SYNCED;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tornblk_agent::channel::MarkText;
use tornblk_model::crash::{History, Profile};
use tornblk_model::event::{Event, Seq};
use tornblk_model::recording::{Reader, RecordingError, Trust};

/// What a run calls a cut's recording, and a lane's base image.
const RECORDING: &str = "disk.recording";
const BASE: &str = "base.img";

#[derive(Debug)]
pub struct Opened {
    /// As it was given.
    pub given: PathBuf,
    pub reader: Arc<Reader>,
    pub events: Vec<(Seq, Event)>,
    pub history: Arc<History>,
    pub identity: Identity,
    /// `None`: it does not say what was written.
    pub subject: Option<Subject>,
    /// Where files lay, as far as it says that.
    pub files: Files,
    /// Where the base image is, if it is not where the recording says.
    pub base: Option<PathBuf>,
}

impl Opened {
    /// `given`: a recording, or the folder of a kept cut or lane. `base`: where the base image is
    /// now, if it moved. The base image is not looked at yet.
    ///
    /// # Errors
    /// There is no such recording, or it is damaged or empty.
    pub fn open(given: &Path, base: Option<&Path>) -> Result<Opened, ExploreError> {
        let path = recording_at(given)?;
        let reader = Arc::new(Reader::open(&path)?);
        let events: Result<Vec<(Seq, Event)>, RecordingError> = reader.events().collect();
        let events = events?;
        if events.is_empty() {
            return Err(ExploreError::Bad(format!(
                "{} has no events: nothing was recorded",
                path.display()
            )));
        }
        let told = |e: SubjectError| match e {
            SubjectError::Recording(e) => ExploreError::Recording(e),
            other => ExploreError::Bad(other.to_string()),
        };
        let subject = Subject::find(&path, &events).map_err(told)?;
        let files = Files::find(&path, &events, reader.header().disk.lb_size).map_err(told)?;
        let mut events = events;
        if subject.as_ref().is_some_and(|subject| subject.checker.is_some()) {
            // What comes then is the checker's first look, and no part of it.
            events.truncate(end_of_program(&events));
        }
        let disk = reader.header().disk.clone();
        let history = Arc::new(History::new(disk, events.iter().cloned())?);
        let identity = Identity::of(&reader, &events);
        let base = base.map(Path::to_owned).or_else(|| beside(&path, &reader));
        let given = given.to_owned();
        Ok(Opened { given, reader, events, history, identity, subject, files, base })
    }

    /// How much of the base image must fit: a copy has another modification time.
    pub fn trust(&self) -> Trust {
        if self.base.is_some() { Trust::SameContent } else { Trust::Unchanged }
    }

    /// Says of bytes of the disk (place, how many) whether they were all zeroes before anything was recorded; of
    /// those of which nobody knows any more, no.
    pub fn blank(&self) -> impl Fn(u64, u64) -> bool {
        let path = self.base.clone().unwrap_or_else(|| self.reader.header().base.path.clone());
        let file = File::open(path).ok();
        move |at, len| {
            let mut bytes = vec![0; len as usize];
            let read = file.as_ref().map(|file| file.read_exact_at(&mut bytes, at));
            matches!(read, Some(Ok(()))) && bytes.iter().all(|byte| *byte == 0)
        }
    }

    /// Is the base image still what was recorded on?
    ///
    /// # Errors
    /// It is not there, or it changed.
    pub fn check_base(&self) -> Result<(), ExploreError> {
        let image = &self.reader.header().base;
        image.check(self.base.as_deref(), self.trust()).map_err(|e| match e {
            RecordingError::Io { path, source, .. }
                if self.base.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
            {
                ExploreError::Bad(format!(
                    "the base image {} is not there: say with --base where it is now",
                    path.display()
                ))
            }
            other => other.into(),
        })
    }

    /// The disks that the recording was made for, where the user names none: what an import was
    /// told, else its subject's, else the device's, else one that promises nothing.
    ///
    /// # Errors
    /// None, for what a device recorded.
    pub fn profiles(&self) -> Result<Vec<Profile>, ExploreError> {
        let options = &self.reader.header().options;
        let imported = options.get("imported").is_some();
        let name = match (&self.subject, options["profile"].as_str()) {
            (_, Some(name)) if imported => name,
            (Some(subject), _) => subject.volume.profile.as_str(),
            (None, Some(name)) => name,
            (None, None) => "lb",
        };
        Ok(vec![name.parse()?])
    }
}

/// How many events there are up to the mark that says that all a program wrote was synced.
fn end_of_program(events: &[(Seq, Event)]) -> usize {
    let synced = |event: &Event| match event {
        Event::Mark(mark) => match MarkText::from_record(&mark.name) {
            Some((_, MarkText::Phase { name })) => name == SYNCED,
            _ => false,
        },
        _ => false,
    };
    events.iter().position(|(_, event)| synced(event)).map_or(events.len(), |at| at + 1)
}

/// Where a run keeps its lane's base image, should the run's folder have moved.
fn beside(recording: &Path, reader: &Reader) -> Option<PathBuf> {
    if reader.header().base.path.exists() {
        return None;
    }
    let cut = recording.parent()?;
    [cut.join("..").join(BASE), cut.join(BASE)].into_iter().find(|path| path.is_file())
}

/// `given`, or the recording in it where it is the folder of a cut or lane.
///
/// # Errors
/// It is a folder without one.
pub fn recording_at(given: &Path) -> Result<PathBuf, ExploreError> {
    if !given.is_dir() {
        return Ok(given.to_owned());
    }
    let own = given.join(RECORDING);
    if own.is_file() {
        return Ok(own);
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(given)
        .map_err(super::session::io("read", given))?
        .filter_map(|entry| entry.ok().map(|e| e.path().join(RECORDING)))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    // Cuts of one lane are of one thing; cells and programs are not.
    let is_cut = |path: &PathBuf| {
        let name = path.parent().and_then(|dir| dir.file_name()).and_then(|name| name.to_str());
        name.is_some_and(|name| name == "control" || name.starts_with("cut-"))
    };
    if found.len() > 1 && !found.iter().all(is_cut) {
        let some: Vec<_> = found.iter().filter_map(|path| path.parent()).take(3).collect();
        let some: Vec<String> = some.iter().map(|dir| dir.display().to_string()).collect();
        return Err(ExploreError::Bad(format!(
            "{} holds several recordings: name one of them, as {}",
            given.display(),
            some.join(", or ")
        )));
    }
    // "control" sorts before "cut-001": the last cut, where there is one.
    let cuts = |path: &&PathBuf| path.parent().is_some_and(|p| p.ends_with("control"));
    found.iter().rfind(|p| !cuts(p)).or(found.last()).cloned().ok_or_else(|| {
        ExploreError::Bad(format!(
            "{} holds no {RECORDING}: give a recording, or the folder of a cut that was kept \
             (`tornblk run --keep`)",
            given.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::testing::Recorded;

    #[test]
    fn a_recording_is_found_by_its_path_its_cut_and_its_lane() {
        let recorded = Recorded::some(512).end();
        let run = tempfile::tempdir().unwrap();
        for cut in ["control", "cut-001", "cut-002"] {
            std::fs::create_dir(run.path().join(cut)).unwrap();
            std::fs::copy(recorded.path(), run.path().join(cut).join(RECORDING)).unwrap();
        }
        let lane = Opened::open(run.path(), None).unwrap();
        assert_eq!(lane.reader.path(), run.path().join("cut-002").join(RECORDING));
        std::fs::create_dir(run.path().join("mariadb")).unwrap();
        std::fs::copy(recorded.path(), run.path().join("mariadb").join(RECORDING)).unwrap();
        let error = Opened::open(run.path(), None).unwrap_err().to_string();
        assert!(error.contains("holds several recordings: name one of them"), "{error}");
        std::fs::remove_dir_all(run.path().join("mariadb")).unwrap();
        let cut = Opened::open(&run.path().join("cut-001"), None).unwrap();
        assert!(cut.reader.path().ends_with("cut-001/disk.recording"));
        assert!(cut.identity.same(&lane.identity) && cut.subject.is_none());
        assert_eq!(lane.profiles().unwrap()[0].to_string(), "req16k");
        lane.check_base().unwrap();

        // The run moved to where its base image was not: it is beside the cut.
        std::fs::copy(recorded.base(), run.path().join(BASE)).unwrap();
        std::fs::remove_file(recorded.base()).unwrap();
        let error = cut.check_base().unwrap_err().to_string();
        assert!(error.contains("is not there: say with --base"), "{error}");
        Opened::open(run.path(), None).unwrap().check_base().unwrap();
        std::fs::write(run.path().join(BASE), vec![1; 256 << 10]).unwrap();
        let error = Opened::open(run.path(), None).unwrap().check_base().unwrap_err();
        assert!(error.to_string().contains("its content differs"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        let error = Opened::open(empty.path(), None).unwrap_err().to_string();
        assert!(error.contains("holds no disk.recording"), "{error}");
    }
}

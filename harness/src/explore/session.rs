//! What an exploration keeps in its folder, so that it can go on, and be merged with others.
//!
//! | file | what |
//! | --- | --- |
//! | `session.json` | what was explored, how, and how far: a [`Session`] |
//! | `judged.bin` | every content that was judged: `TORNJDG1`, count, 26 bytes each ([`Content`]), xxh3 of all before |
//! | `failure-….tornblk` | one bundle for each failure |
//! | `report.json` | the report, when it ended |
//!
//! `judged.bin` is written first, then `session.json`, each under another name and renamed: a
//! session never says that something was done whose contents are not kept.

use super::blame::{about, is_named};
use super::bundle::Judge;
use super::{
    Counts, Ended, ExploreError, Failure, Fingerprint, Judged, PageCounts, Pages, Position, Shard,
    Subject,
};
use crate::run::{Environment, Volume};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tornblk_model::crash::WriteCuts;
use tornblk_model::event::{Event, Op, Seq, Submit};
use tornblk_model::recording::Reader;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"TORNJDG1";
const SESSION: &str = "session.json";
const JUDGED: &str = "judged.bin";
const REPORT: &str = "report.json";
/// Bytes of one content.
const ENTRY: usize = 26;

/// A recording, to know it again wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Where it was.
    pub recording: PathBuf,
    /// Of every event and of the checksums of all data (xxh3), in hexadecimal.
    pub events: String,
    /// Sample of the base image.
    pub base: String,
    pub last: Option<Seq>,
}

impl Identity {
    /// Of a recording whose events were read already.
    pub fn of(reader: &Reader, events: &[(Seq, Event)]) -> Identity {
        let mut hash = Xxh3::new();
        for (seq, event) in events {
            hash.update(&seq.0.to_le_bytes());
            match event {
                // Where the data is kept differs from copy to copy, as in a bundle.
                Event::Submit(Submit { op: Op::Write { payload, offset, len, .. }, .. }) => {
                    for word in [1, u64::from(payload.crc), *offset, *len] {
                        hash.update(&word.to_le_bytes());
                    }
                }
                other => hash.update(format!("{other:?}").as_bytes()),
            }
        }
        Identity {
            recording: reader.path().to_owned(),
            events: format!("{:016x}", hash.digest()),
            base: format!("{:016x}", reader.header().base.sample),
            last: events.last().map(|(seq, _)| *seq),
        }
    }

    pub fn same(&self, other: &Identity) -> bool {
        (&self.events, &self.base, self.last) == (&other.events, &other.base, other.last)
    }
}

/// What decides which states are tried and how each is judged: the same for all parts of one
/// exploration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    pub profiles: Vec<String>,
    pub strategies: Vec<String>,
    pub faults: Vec<String>,
    pub seed: u64,
    pub every_event: bool,
    /// How deep recoveries are explored.
    pub nested: u32,
    /// A guest checks one state in so many with fsck, beside all that fail.
    pub fsck_every: u64,
    /// Pages are judged, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Pages>,
}

impl Choices {
    /// The first choice in which the other differs: what it is called on the command line, here and
    /// there.
    pub fn differs(&self, other: &Choices) -> Option<(&'static str, String, String)> {
        let list = |l: &[String]| if l.is_empty() { "none".to_owned() } else { l.join(",") };
        let pages = |c: &Choices| c.pages.as_ref().map_or("not given".to_owned(), Pages::to_string);
        let all = |c: &Choices| {
            [
                ("--profile", list(&c.profiles)),
                ("--strategy", list(&c.strategies)),
                ("--fault", list(&c.faults)),
                ("--seed", c.seed.to_string()),
                ("--every-event", if c.every_event { "given" } else { "not given" }.to_owned()),
                ("--nested", c.nested.to_string()),
                ("--fsck-every", c.fsck_every.to_string()),
                ("--pages", pages(c)),
            ]
        };
        let pairs = all(self).into_iter().zip(all(other));
        pairs.into_iter().find(|(a, b)| a != b).map(|((name, a), (_, b))| (name, a, b))
    }
}

/// A content that was judged, and the first profile (its place in [`Choices::profiles`]) under which
/// it was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    pub judged: Judged,
    pub profile: u16,
}

/// A failure, and the bundle that shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub failure: Failure,
    /// Name of its file in the folder; `None` where none could be made.
    pub bundle: Option<String>,
    /// Other contents that come to the same when shrunk.
    pub again: u64,
}

impl Kept {
    /// Two failures are one where the same promises are broken under the same profile: of the same
    /// writes, or, where nothing tells which, in the same shrunk content.
    pub fn is_same(&self, other: &Failure) -> bool {
        let own = &self.failure;
        if own.profile != other.profile {
            return false;
        }
        let named = |failure: &Failure| {
            !failure.findings.is_empty() && failure.findings.iter().all(is_named)
        };
        own.fingerprint == other.fingerprint
            || named(own) && named(other) && about(&own.findings) == about(&other.findings)
    }
}

/// One profile, so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileState {
    pub profile: String,
    pub counts: Counts,
    /// See [`Position::again`].
    #[serde(default)]
    pub again: u64,
    /// Everything that was asked for was gone through.
    pub complete: bool,
    /// Contents that failed beyond what was shrunk.
    pub not_shrunk: u64,
}

/// All of it but the contents that were judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    pub format: u32,
    pub tornblk: String,
    pub identity: Identity,
    pub choices: Choices,
    pub shard: Option<Shard>,
    pub judge: Judge,
    pub suite: String,
    pub lane: String,
    /// Crash points that are done, by profile and strategy.
    pub done: BTreeMap<String, BTreeMap<String, Vec<Seq>>>,
    /// Which cuts of which writes were looked at, by profile.
    pub cuts: BTreeMap<String, Vec<WriteCuts>>,
    pub profiles: Vec<ProfileState>,
    pub failures: Vec<Kept>,
    /// States that could not be judged, and why: the first of them.
    pub unsure: Vec<(String, String)>,
    /// `None`: it did not come to an end of its own.
    pub ended: Option<Ended>,
    pub seconds: f64,
    /// What the recording says of its disk, and of where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Where pages were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<PageCounts>,
}

impl Session {
    pub fn new(identity: Identity, choices: Choices, shard: Option<Shard>) -> Session {
        let profiles = choices.profiles.iter().cloned();
        let state = |profile| ProfileState { profile, ..ProfileState::default() };
        Session {
            format: FORMAT,
            tornblk: env!("CARGO_PKG_VERSION").to_owned(),
            identity,
            profiles: profiles.map(state).collect(),
            choices,
            shard,
            judge: Judge::InPlace,
            suite: String::new(),
            lane: String::new(),
            done: BTreeMap::new(),
            cuts: BTreeMap::new(),
            failures: Vec::new(),
            unsure: Vec::new(),
            ended: None,
            seconds: 0.0,
            volume: None,
            environment: None,
            pages: None,
        }
    }

    /// Takes over what its recording says of itself.
    pub fn is_of(&mut self, subject: &Subject) {
        (self.suite, self.lane) = (subject.suite.clone(), subject.lane.clone());
        self.volume = Some(subject.volume.clone());
        self.environment.clone_from(&subject.environment);
    }

    /// Is there one in this folder?
    pub fn is_in(dir: &Path) -> bool {
        dir.join(SESSION).is_file()
    }

    /// # Errors
    /// There is none, or it is of another version or damaged.
    pub fn load(dir: &Path) -> Result<Session, ExploreError> {
        let path = dir.join(SESSION);
        let bytes = match std::fs::read(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(ExploreError::Bad(none_in(dir)));
            }
            read => read.map_err(io("read", &path))?,
        };
        let bad = |why: String| {
            ExploreError::Bad(format!(
                "{} cannot be used ({why}): explore anew into another folder",
                path.display()
            ))
        };
        // Whatever else it says may mean something else in another format.
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        match value["format"].as_u64() {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => {
                return Err(bad(format!("it has format {found}, and this program knows {FORMAT}")));
            }
            None => return Err(bad("it says no format".to_owned())),
        }
        serde_json::from_value(value).map_err(|e| bad(e.to_string()))
    }

    /// The contents that were judged, rising by key.
    ///
    /// # Errors
    /// The file is not there or damaged.
    pub fn load_judged(dir: &Path) -> Result<Vec<Content>, ExploreError> {
        let path = dir.join(JUDGED);
        let bytes = std::fs::read(&path).map_err(io("read", &path))?;
        decode(&bytes).ok_or_else(|| {
            ExploreError::Bad(format!(
                "{} is damaged or was cut short: explore anew into another folder",
                path.display()
            ))
        })
    }

    /// Keeps it, with what was judged; `None`: that did not change.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, dir: &Path, judged: Option<&[Content]>) -> Result<(), ExploreError> {
        if let Some(judged) = judged {
            replace(&dir.join(JUDGED), &encode(judged))?;
        }
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| ExploreError::Bad(format!("the session cannot be written: {e}")))?;
        json.push(b'\n');
        replace(&dir.join(SESSION), &json)
    }

    /// Where the engine goes on.
    pub fn position(&self, judged: Vec<Judged>, counts: Counts) -> Position {
        let (done, coverage) = (self.done.clone(), self.cuts.clone());
        Position { done, judged, counts, again: 0, coverage }
    }
}

/// Why there is no session, and what to give instead.
fn none_in(dir: &Path) -> String {
    let place = dir.display();
    if !dir.is_dir() {
        return format!("there is no folder {place}: name one that `tornblk explore --out` made");
    }
    if dir.join(REPORT).is_file() {
        return format!(
            "{place} holds a report that was put together, and no exploration: name the folders of \
             its shards"
        );
    }
    format!("{place} holds no exploration: name a folder that `tornblk explore --out` made")
}

fn encode(judged: &[Content]) -> Vec<u8> {
    let mut judged = judged.to_vec();
    judged.sort_unstable();
    let mut out = Vec::with_capacity(24 + ENTRY * judged.len());
    out.extend(MAGIC);
    out.extend((judged.len() as u64).to_le_bytes());
    for Content { judged: Judged { key, promises }, profile } in judged {
        out.extend(key.0.to_le_bytes());
        out.extend(promises.to_le_bytes());
        out.extend(profile.to_le_bytes());
    }
    let hash = xxh3_64(&out);
    out.extend(hash.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Vec<Content>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let count = u64::from_le_bytes(body.get(8..16)?.try_into().ok()?);
    let right = body[..8] == MAGIC
        && hash == xxh3_64(body).to_le_bytes()
        && count.checked_mul(ENTRY as u64)? == body.len() as u64 - 16;
    let entry = |entry: &[u8]| {
        let (key, rest) = entry.split_at_checked(16)?;
        let (promises, profile) = rest.split_at_checked(8)?;
        let key = Fingerprint(u128::from_le_bytes(key.try_into().ok()?));
        let promises = u64::from_le_bytes(promises.try_into().ok()?);
        let profile = u16::from_le_bytes(profile.try_into().ok()?);
        Some(Content { judged: Judged { key, promises }, profile })
    };
    if right { body[16..].chunks_exact(ENTRY).map(entry).collect() } else { None }
}

/// Whole, or as it was.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ExploreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".session-")
        .tempfile_in(dir)
        .map_err(io("write into", dir))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.persist(path).map_err(|e| io("write", path)(e.error))?;
    Ok(())
}

pub(super) fn io(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> ExploreError + use<> {
    let path = path.to_owned();
    move |source| ExploreError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::testing::{Recorded, list};

    fn choices() -> Choices {
        Choices {
            profiles: vec!["lb512".into(), "req16k".into()],
            strategies: vec!["prefix".into()],
            faults: Vec::new(),
            seed: 1,
            every_event: false,
            nested: 0,
            fsck_every: 50,
            pages: None,
        }
    }

    fn identity(recorded: &Recorded) -> Identity {
        let reader = Reader::open(&recorded.path()).unwrap();
        let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
        Identity::of(&reader, &events)
    }

    fn judged(n: u128) -> Vec<Content> {
        // Not in order, as a map gives them.
        let judged = |i| Judged { key: Fingerprint((n - i) << 70), promises: i as u64 };
        (0..n).map(|i| Content { judged: judged(i), profile: (i % 3) as u16 }).collect()
    }

    #[test]
    fn a_session_comes_back_from_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Session::is_in(dir.path()));
        let shard = Some("2/3".parse().unwrap());
        let mut session = Session::new(identity(&Recorded::some(512).end()), choices(), shard);
        session.save(dir.path(), Some(&judged(1000))).unwrap();
        session.ended = Some(Ended::Stopped);
        session.done.entry("lb512".into()).or_default().insert("prefix".into(), vec![Seq(3)]);
        session.save(dir.path(), None).unwrap();
        assert_eq!(list(dir.path()), ["judged.bin", "session.json"]);
        assert_eq!(Session::load(dir.path()).unwrap(), session);
        let back = Session::load_judged(dir.path()).unwrap();
        let mut expected = judged(1000);
        expected.sort();
        assert_eq!(back, expected);
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::new(identity(&Recorded::some(512).end()), choices(), None);
        session.save(dir.path(), Some(&judged(10))).unwrap();
        let path = dir.path().join(JUDGED);
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 20, 30, bytes.len() - 1] {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_none(), "{at}");
        }
        std::fs::write(&path, b"").unwrap();
        let error = Session::load_judged(dir.path()).unwrap_err().to_string();
        assert!(error.contains("damaged or was cut short"), "{error}");
        let path = dir.path().join(SESSION);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 8")).unwrap();
        let error = Session::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it has format 8, and this program knows 1"), "{error}");
    }

    #[test]
    fn the_same_recording_is_known_and_another_is_not() {
        let one = Recorded::some(512).end();
        let id = identity(&one);
        let copy = tempfile::tempdir().unwrap();
        let to = copy.path().join("copy");
        std::fs::copy(one.path(), &to).unwrap();
        let reader = Reader::open(&to).unwrap();
        let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
        assert!(Identity::of(&reader, &events).same(&id));
        assert_ne!(Identity::of(&reader, &events), id, "it is elsewhere");
        let mut other = Recorded::some(512);
        other.mark("one more");
        assert!(!identity(&other.end()).same(&id));
        let mut data = Recorded::new(512);
        let (a, b) = (data.write(0, &[1; 512]), data.write(0, &[1; 512]));
        data.complete(a);
        data.complete(b);
        let mut more = Recorded::new(512);
        let (a, b) = (more.write(0, &[1; 512]), more.write(0, &[2; 512]));
        more.complete(a);
        more.complete(b);
        assert!(!identity(&data.end()).same(&identity(&more.end())));
    }

    #[test]
    fn the_first_difference_is_named_as_on_the_command_line() {
        assert_eq!(choices().differs(&choices()), None);
        let mut other = choices();
        other.seed = 2;
        assert_eq!(choices().differs(&other), Some(("--seed", "1".into(), "2".into())));
        other.profiles.pop();
        let (name, a, b) = choices().differs(&other).unwrap();
        assert_eq!((name, a.as_str(), b.as_str()), ("--profile", "lb512,req16k", "lb512"));
    }
}

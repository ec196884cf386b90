//! One recording, thousands of crash states: which of them break a promise?
//!
//! [`explore`] goes through {profiles} × {crash points, latest first} × {strategies}. Each state it
//! comes to is passed over where it is in another shard, or where its content was judged already
//! under at least as many promises; else a [`Verifier`] judges it. A state that fails is confirmed,
//! shrunk, explained and given to the [`Sink`].
//!
//! - A **content** is what the disk holds, by bytes: two states that came about in different ways
//!   are one content where every block holds the same ([`ContentIds`]).
//! - The **promises** at a crash point are the acknowledgements before it ([`Promises`]). They only
//!   ever rise with the point, and what breaks no promise breaks none of fewer: so points go latest
//!   first, and each content is judged once, under its strongest promises. A content that was
//!   judged under fewer (by another thread, or before a `--resume`) is judged again.
//! - A verifier sees one **stream of views**: the reference of a point (everything submitted so far
//!   persisted), then states at that point, then the next point's reference. Each says in which
//!   blocks it may differ from the view before ([`State::changed`], [`Point::changed`]), so that
//!   what a verifier keeps can be kept up to date at the cost of what changed.

mod blame;
pub mod bundle;
mod bytes;
mod carried;
mod drive;
mod engine;
mod files;
#[cfg(test)]
mod garbage;
pub mod guest;
mod ids;
mod in_place;
mod ledgers;
mod means;
pub mod merge;
mod opened;
mod outcome;
#[cfg(test)]
mod page_tests;
mod page_units;
mod pieces;
#[cfg(test)]
mod planted;
mod schedule;
mod seen;
pub mod session;
#[cfg(test)]
mod simulated;
mod slow;
mod subject;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod units;
mod worker;

pub use carried::{Carried, Place};
pub use drive::{Drive, Watch, keep};
pub use engine::{MakeVerifier, explore, list};
pub use files::{Files, Snapshot, fits, fits_any};
pub use ids::RecordingIds;
pub use in_place::InPlace;
pub use ledgers::{Ledgers, UnitKey};
pub use means::{GuestNeeds, Guests, Means, OnProfile, Units};
pub use opened::{Opened, recording_at};
pub use outcome::{Cuts, ExploreReport, ProfileReport, report};
pub use page_units::{JudgedPages, PageCounts, PageUnits, Pages};
pub use pieces::is_piece;
pub use slow::{ByName, Named, judge, named};
pub use subject::{Checked, Checker, Subject, SubjectError, said};
pub use units::WorkloadUnits;

use crate::oracle::{Finding, Recovery};
use crate::run::RunError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tornblk_model::crash::{
    Content, Covered, Fault, History, ModelError, Profile, Source, StateName, Strategy, WriteCuts,
};
use tornblk_model::event::Seq;
use tornblk_model::recording::RecordingError;

/// Why something could not be explored. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// What needs a device or a guest.
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Bad(String),
    /// By Ctrl-C or a signal.
    #[error("interrupted")]
    Interrupted,
}

/// The acknowledgements that a recording holds, as crash points: something is promised from each of
/// these events on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promises(Vec<Seq>);

impl Promises {
    pub fn new(acknowledged: impl IntoIterator<Item = Seq>) -> Promises {
        let mut events: Vec<Seq> = acknowledged.into_iter().collect();
        events.sort_unstable();
        Promises(events)
    }

    /// How many there are at the crash point right after this event.
    pub fn at(&self, after: Seq) -> u64 {
        self.0.partition_point(|event| *event <= after) as u64
    }
}

/// Says which contents of a block are equal: the same number, the same bytes. Only numbers of one
/// block are compared. Whoever implements it hashes the recording's own copy of the data; what is
/// all zero has one number, whoever wrote it.
pub trait ContentIds: Send + Sync {
    fn id(&self, block: u64, source: Source) -> u64;

    /// # Errors
    /// Data could not be read: what was answered since means nothing.
    fn check(&self) -> Result<(), ExploreError> {
        Ok(())
    }
}

/// What a disk holds at one moment.
pub trait View {
    /// Where the bytes of this block come from.
    fn of(&self, block: u64) -> Source;
    /// [`ContentIds::id`] of what this block holds.
    fn id(&self, block: u64) -> u64;
    /// The blocks in which it may differ from the view that the verifier was shown before this one;
    /// `None`: any.
    fn changed(&self) -> Option<&[u64]>;
    /// The blocks in which it differs from the reference of its point, rising. Not kept: computed.
    fn delta(&self) -> Vec<(u64, Source)>;
    /// The same for equal contents, and for no others. Of one recording.
    fn fingerprint(&self) -> u128;
    /// Built on demand.
    fn name(&self) -> Result<StateName, ModelError>;
    /// The whole, which takes as long as the recording is.
    fn content(&self) -> Result<Content, ModelError>;
}

/// A crash point begins.
#[derive(Clone, Copy)]
pub struct Point<'a> {
    pub profile: &'a Profile,
    /// The power is cut right after this event.
    pub after: Seq,
    /// [`Promises::at`] it.
    pub promises: u64,
    reference: &'a dyn View,
}

impl<'a> Point<'a> {
    pub fn new(
        profile: &'a Profile,
        after: Seq,
        promises: u64,
        reference: &'a dyn View,
    ) -> Point<'a> {
        Point { profile, after, promises, reference }
    }

    /// What a block holds where everything submitted so far is persisted.
    pub fn of(&self, block: u64) -> Source {
        self.reference.of(block)
    }

    pub fn id(&self, block: u64) -> u64 {
        self.reference.id(block)
    }

    /// Blocks in which the reference may differ from the last view that this verifier was shown (a
    /// state of the point before); `None`: any.
    pub fn changed(&self) -> Option<&'a [u64]> {
        self.reference.changed()
    }

    pub fn content(&self) -> Result<Content, ModelError> {
        self.reference.content()
    }
}

/// A state at the point that began last.
#[derive(Clone, Copy)]
pub struct State<'a> {
    pub profile: &'a Profile,
    pub after: Seq,
    pub promises: u64,
    view: &'a dyn View,
}

impl<'a> State<'a> {
    pub fn new(point: &Point<'a>, view: &'a dyn View) -> State<'a> {
        State { profile: point.profile, after: point.after, promises: point.promises, view }
    }

    /// Without the point's reference.
    pub fn at(profile: &'a Profile, after: Seq, promises: u64, view: &'a dyn View) -> State<'a> {
        State { profile, after, promises, view }
    }

    /// Built on demand, which costs more than judging it in place.
    ///
    /// # Errors
    /// None, if the state came from a strategy.
    pub fn name(&self) -> Result<StateName, ModelError> {
        self.view.name()
    }

    pub fn fingerprint(&self) -> u128 {
        self.view.fingerprint()
    }

    pub fn of(&self, block: u64) -> Source {
        self.view.of(block)
    }

    /// Equal for equal bytes of one block.
    pub fn id(&self, block: u64) -> u64 {
        self.view.id(block)
    }

    /// See [`View::changed`].
    pub fn changed(&self) -> Option<&'a [u64]> {
        self.view.changed()
    }

    /// See [`View::delta`].
    pub fn delta(&self) -> Vec<(u64, Source)> {
        self.view.delta()
    }

    /// See [`View::content`].
    ///
    /// # Errors
    /// None, if the state came from a strategy.
    pub fn content(&self) -> Result<Content, ModelError> {
        self.view.content()
    }
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("settings", self.settings).finish_non_exhaustive()
    }
}

impl fmt::Debug for Point<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Point({}/p{}, {} promises)", self.profile, self.after, self.promises)
    }
}

impl fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({}/p{}, {:032x})", self.profile, self.after, self.fingerprint())
    }
}

/// What is said about a state.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Passed,
    /// Never empty.
    Failed(Vec<Finding>),
    /// It could not be judged, and why. Never counted as passed.
    Unsure(String),
}

/// Judges states, one after another. Each worker thread has one of its own.
pub trait Verifier {
    /// A crash point begins; the states that follow are of it.
    ///
    /// # Errors
    /// Ends the exploration.
    fn point(&mut self, point: &Point<'_>) -> Result<(), ExploreError>;

    /// # Errors
    /// Ends the exploration. What is wrong with this one state only is [`Verdict::Unsure`].
    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError>;

    /// Judges a state that failed once more, in surroundings that the first time cannot have
    /// spoilt. It counts as failed only if it fails again.
    ///
    /// # Errors
    /// As [`Verifier::verify`].
    fn confirm(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.verify(state)
    }

    /// Judges a state of what was recorded of the recovery on a state.
    ///
    /// # Errors
    /// As [`Verifier::verify`].
    fn recovered(
        &mut self,
        state: &State<'_>,
        recovery: &Recovery,
    ) -> Result<Verdict, ExploreError> {
        Ok(Verdict::Unsure(format!(
            "{} is a state of the recovery on {}, and only a guest can judge that",
            recovery.state,
            state.name()?
        )))
    }

    /// Is the same content judged differently under another profile? Where it is not, a content is
    /// judged once for all profiles.
    fn depends_on_profile(&self) -> bool {
        true
    }

    /// May the same content be right after one promise and wrong after the next, and right again? Then it
    /// is judged once for each number of promises.
    fn depends_on_promises(&self) -> bool {
        false
    }

    /// See [`UnitOracle::is_monotone`]. Where it is not, a content is judged at every crash point.
    fn is_monotone(&self) -> bool {
        true
    }
}

/// A unit: what an in-place oracle judges at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitBlocks {
    /// The logical blocks on which its verdict depends.
    pub ranges: Vec<Range<u64>>,
}

/// Judges units by the contents of their blocks, without a guest.
pub trait UnitOracle: Send + Sync {
    fn units(&self) -> &[UnitBlocks];

    /// What is promised of a unit at a crash point, as a number: the same number, the same verdict
    /// for the same contents.
    fn promise(&self, unit: usize, after: Seq) -> u64;

    /// The units whose promise differs between two crash points (`from < to`), in any order, maybe
    /// some more; `None`: any may.
    fn promised_between(&self, _from: Seq, _to: Seq) -> Option<Vec<usize>> {
        None
    }

    /// Does what fails fail under more promises too? So it is where every write has content of its
    /// own, as those of workloads have. It is not where a content can be legal, illegal, and legal
    /// again, because it was written once more.
    fn is_monotone(&self) -> bool {
        true
    }

    /// Empty: nothing is wrong with it.
    fn judge(&self, unit: usize, after: Seq, blocks: &dyn Fn(u64) -> Source) -> Vec<Finding>;
}

/// `<k>/<n>`: shard `k` of `n`, from 1 as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Shard {
    /// From 0.
    pub index: u64,
    pub of: u64,
}

impl Shard {
    pub fn has(&self, name: &StateName) -> bool {
        name.shard(self.of) == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let bad = || format!("'{text}' is no shard: write K/N with K from 1 to N, as in 2/8");
        let (k, n) = text.split_once('/').ok_or_else(bad)?;
        let (k, n): (u64, u64) = (k.parse().map_err(|_| bad())?, n.parse().map_err(|_| bad())?);
        if k == 0 || k > n {
            return Err(bad());
        }
        Ok(Shard { index: k - 1, of: n })
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Shard, String> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> String {
        shard.to_string()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

/// What to explore.
#[derive(Clone, Debug)]
pub struct Settings {
    pub profiles: Vec<Profile>,
    pub strategies: Vec<Strategy>,
    /// Each state is broken by these before it is judged. Empty: only legal states.
    pub faults: Vec<Fault>,
    /// Of random states and of faults.
    pub seed: u64,
    /// At most this many different contents are judged, those before a `--resume` included. The
    /// crash points share them, and time, evenly; and so do the strategies, at each. Which ones
    /// depends on nothing but recording, settings, and what was judged before.
    pub states: Option<u64>,
    /// No state begins after that, counted from the call.
    pub time: Option<Duration>,
    pub shard: Option<Shard>,
    /// A crash point after each event, not only where something was promised.
    pub every_event: bool,
    pub threads: usize,
    /// So many different failures are shrunk and explained; what fails after that is counted.
    pub failures: u64,
    /// How long one failure may be shrunk; then what is left is reported, and said not to be
    /// minimal.
    pub shrink: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            profiles: Vec::new(),
            strategies: Vec::new(),
            faults: Vec::new(),
            seed: 0,
            states: None,
            time: None,
            shard: None,
            every_event: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            failures: 100,
            shrink: Duration::from_secs(60),
        }
    }
}

/// Everything that an exploration is about.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub history: &'a History,
    pub ids: &'a dyn ContentIds,
    pub promises: &'a Promises,
    pub explain: &'a dyn Explain,
    pub settings: &'a Settings,
    /// From an earlier exploration with the same settings (`--resume`).
    pub before: Option<&'a Position>,
}

/// Says where a write came from.
pub trait Explain: Send + Sync {
    /// The system call that these blocks of a write carried, where that is known.
    fn call(&self, write: Seq, blocks: &Range<u64>) -> Option<Call>;
}

/// Knows nothing.
impl Explain for () {
    fn call(&self, _: Seq, _: &Range<u64>) -> Option<Call> {
        None
    }
}

/// A system call of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// As one would write it in C.
    pub call: String,
    pub path: String,
    /// Bytes of the file that the request carried of it.
    pub offset: u64,
    pub len: u64,
    pub unit: u64,
    pub generation: u32,
}

/// How far an exploration got: what `--resume` needs, and what merging needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Done completely: profile → strategy → crash points.
    pub done: BTreeMap<String, BTreeMap<String, Vec<Seq>>>,
    /// What was judged: see [`Judged`].
    pub judged: Vec<Judged>,
    /// Sums up to here.
    pub counts: Counts,
    /// Of the states, those of crash points that were not gone through to the end: who goes on from
    /// here comes to them again.
    #[serde(default)]
    pub again: u64,
    /// Which cuts of which writes were looked at, by profile.
    #[serde(default)]
    pub coverage: BTreeMap<String, Vec<WriteCuts>>,
}

/// [`View::fingerprint`], written as 32 hexadecimal digits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(pub u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Fingerprint, String> {
        match u128::from_str_radix(&text, 16) {
            Ok(number) if text.len() == 32 => Ok(Fingerprint(number)),
            _ => Err(format!("'{text}' is no fingerprint: they have 32 hexadecimal digits")),
        }
    }
}

/// A content that was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Judged {
    /// With the profile mixed in where the verifier depends on it.
    pub key: Fingerprint,
    /// The most promises under which it was judged.
    pub promises: u64,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// States that the strategies chose (of this shard). After a `--resume` those of a crash point
    /// that was not done are counted again.
    pub states: u64,
    /// Different contents among them.
    pub unique: u64,
    /// Times a verifier was asked, shrinking not counted.
    pub judged: u64,
    /// Contents that failed, and again when confirmed. One that was judged again, under more
    /// promises than before, counts again.
    pub failed: u64,
    /// Contents that could not be judged, or failed only once.
    pub unsure: u64,
    /// Crash points (of each profile) that were gone through.
    pub points: u64,
}

/// What a fragment of a failing state came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The write (event of its submission), its bytes on the disk, and its flags.
    pub write: Seq,
    pub offset: u64,
    pub len: u64,
    pub fua: bool,
    pub atomic: bool,
    /// Fragments it has, those that survived, and the blocks that these cover.
    pub fragments: u64,
    pub kept: Vec<u64>,
    pub calls: Vec<Call>,
    /// What happened to it, in a sentence.
    pub text: String,
}

/// Why a state fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The writes in which it differs from the nearest passing state.
    pub pieces: Vec<Piece>,
    /// `None`: everything and nothing persisted both fail.
    pub passing: Option<StateText>,
    /// Changes that are left, each of which matters if `minimal`.
    pub changes: u64,
    pub minimal: bool,
    /// States tried while shrinking.
    pub tried: u64,
    /// What faults did, in words.
    pub faults: Vec<String>,
    /// Clauses of the model that it breaks; empty: legal.
    pub violations: Vec<String>,
}

/// A [`StateName`] as text, for reports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateText(pub String);

impl From<StateName> for StateText {
    fn from(name: StateName) -> StateText {
        StateText(name.0)
    }
}

impl From<&StateText> for StateName {
    fn from(name: &StateText) -> StateName {
        StateName(name.0.clone())
    }
}

impl fmt::Display for StateText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A failing state, confirmed, shrunk and explained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Counts up from 1.
    pub number: u64,
    /// Shrunk.
    pub state: StateText,
    /// As it was found.
    pub found: StateText,
    pub profile: String,
    pub after: Seq,
    pub promises: u64,
    /// Of the shrunk state.
    pub fingerprint: Fingerprint,
    pub findings: Vec<Finding>,
    pub explanation: Explanation,
}

impl Failure {
    /// Everything that was sent to the disk is there: nothing was lost or torn.
    pub fn lost_nothing(&self) -> bool {
        self.explanation.pieces.is_empty() && self.state.0.ends_with(":all")
    }
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub counts: Counts,
    /// Judged a second, since it began.
    pub rate: f64,
    pub elapsed: Duration,
    /// As far as that can be told.
    pub left: Option<Duration>,
    /// Share of the crash points that are done, 0 to 1.
    pub share: f64,
    /// Where it is: profile and crash point.
    pub at: String,
}

/// Is told what is found. Called from the thread that called [`explore`], in no order that matters.
pub trait Sink {
    /// A failure that is different from all before it.
    ///
    /// # Errors
    /// Ends the exploration.
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError>;

    /// One more content that comes to the same, when shrunk, as failure `number`.
    fn again(&mut self, _number: u64, _found: &StateText) {}

    /// A state that could not be judged, and why.
    fn unsure(&mut self, _state: &StateText, _why: &str) {}

    /// About once a second.
    fn progress(&mut self, _progress: &Progress) {}

    /// About every ten seconds, less often where it takes long; and in the end. To be kept for
    /// `--resume`.
    ///
    /// # Errors
    /// Ends the exploration.
    fn position(&mut self, _position: &Position) -> Result<(), ExploreError> {
        Ok(())
    }
}

/// How an exploration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// Everything that the settings ask for was gone through.
    Complete,
    /// The limit of states was reached.
    States,
    /// The time was up.
    Time,
    /// The stop flag was set.
    Stopped,
}

/// What came of an exploration.
#[derive(Clone, Debug)]
pub struct Summary {
    pub ended: Ended,
    pub counts: Counts,
    /// Different failures.
    pub failures: u64,
    /// Failing contents beyond [`Settings::failures`], which were neither shrunk nor compared.
    pub not_shrunk: u64,
    /// Which cuts of which writes were looked at, by profile.
    pub coverage: Vec<(String, Covered)>,
    pub elapsed: Duration,
    pub position: Position,
}

impl Summary {
    /// Judged a second.
    pub fn rate(&self) -> f64 {
        self.counts.judged as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

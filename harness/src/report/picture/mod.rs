//! A picture of the disk at a cut of the power: time across, blocks down.
//!
//! A [`Picture`] is made of a recording's events and a state's name ([`Scene::draw`]), and says nothing
//! that the crash model does not say. It has
//!
//! - a [`Row`] for each run of blocks to which the same happened: of the writes that the finding and its
//!   explanation name, and of those that lie over the same blocks or were in flight together with one;
//! - a [`Column`] for each event that matters to these, and one for the cut behind the last;
//! - a [`Bar`] for each write, from the event at which it was sent to the one at which it was answered,
//!   over its rows; a write that was in flight at the cut is open at that end;
//! - what each row shows after the cut ([`Shows`]), in the state as it was shrunk and as it was found.
//!
//! `svg` and `text` draw it, in words as well as in colours: nobody should have to look for a legend.

mod build;
mod choose;
mod shows;
mod source;
pub(super) mod svg;
mod tell;
#[cfg(test)]
mod tests;
pub mod text;

pub use source::{Source, of_bundle, of_cut, of_failures};
pub use svg::file as svg_file;
pub(crate) use tell::size;

use crate::explore::{Explain, Subject};
use std::ops::Range;
use tornblk_model::crash::{History, RequestKind};
use tornblk_model::event::{Event, Seq};

/// What a picture is made of.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub history: &'a History,
    pub events: &'a [(Seq, Event)],
    /// Where a write came from.
    pub explain: &'a dyn Explain,
    /// What the recording says of itself.
    pub subject: Option<&'a Subject>,
}

impl std::fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").field("events", &self.events.len()).finish_non_exhaustive()
    }
}

/// What a picture is of.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// A sentence: what was found.
    pub what: String,
    pub state: String,
    /// As it was found, before it was shrunk; `None`: it was not.
    pub found: Option<String>,
    /// The writes that are to blame.
    pub writes: Vec<Seq>,
    /// The bytes of the disk that the finding is about, and what they are called.
    pub place: Option<Place>,
    /// (file, unit) of the workload, of which marks are shown.
    pub unit: Option<(u32, u64)>,
}

/// Bytes of the disk that are one thing to whoever wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub bytes: Range<u64>,
    /// "/dev/vda unit 26"
    pub name: String,
    /// "torn"
    pub verdict: String,
}

/// Why there is no picture. A sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoPicture(pub String);

#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub what: String,
    pub profile: String,
    pub state: String,
    pub found: Option<String>,
    /// The power is cut right after this event.
    pub after: Seq,
    pub lb_size: u32,
    /// Blocks in a tear unit of the disk.
    pub tear: u64,
    /// Left to right; behind the last the power is cut.
    pub columns: Vec<Column>,
    /// Events between the last column and the cut.
    pub skipped: u64,
    pub flushes: Vec<Flush>,
    /// In the order in which they were sent.
    pub bars: Vec<Bar>,
    /// By block.
    pub rows: Vec<Row>,
    pub brackets: Vec<Bracket>,
    /// Writes that are to blame, too, and are not shown.
    pub left_out: usize,
    /// What happened, in sentences.
    pub told: Vec<String>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub at: Seq,
    pub what: Moment,
    /// Events between the column before and this one.
    pub skipped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A write (or discard, or write zeroes) is visible to the disk.
    Sent(Seq),
    Answered {
        request: Seq,
        ok: bool,
    },
    FlushSent(Seq),
    FlushAnswered {
        flush: Seq,
        ok: bool,
    },
    /// What the guest did or was told.
    Mark(String),
    /// Requests in flight ended without an answer.
    Reset(String),
}

/// A flush: from one column to another; `None`: it was in flight at the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    pub id: Seq,
    pub from: usize,
    pub to: Option<usize>,
    pub ok: bool,
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    pub write: Seq,
    pub kind: RequestKind,
    /// Of its first segment.
    pub offset: u64,
    /// Of all segments.
    pub len: u64,
    /// The column in which it was sent, and the one in which it ended; `None`: it was in flight at the cut.
    pub from: usize,
    pub to: Option<usize>,
    pub standing: Standing,
    /// The disk promises to keep it whole.
    pub whole: bool,
    /// The finding is about it.
    pub blamed: bool,
    /// Its parts that may come and go by themselves (where it is cut although it is whole: its tear units):
    /// how many there are, and how many of them survived.
    pub parts: usize,
    pub survived: usize,
    /// Where it came from.
    pub call: Option<String>,
}

impl Bar {
    /// There in part.
    pub fn is_torn(&self) -> bool {
        self.survived > 0 && self.survived < self.parts
    }
}

/// Where a write stood when the power was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    InFlight,
    /// Answered, and no flush after that was.
    Volatile,
    /// It failed, or a reset ended it.
    Failed,
    /// By this flush; `None`: there was no cache, or it carried FUA.
    Stable(Option<Seq>),
}

/// A run of blocks to which the same happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub blocks: Range<u64>,
    /// Whose they are: "/mnt/a bytes 0..4096".
    pub whose: Option<String>,
    /// (number of the bar, what became of it here)
    pub pieces: Vec<(usize, Fate)>,
    pub shows: Shows,
    /// As the state was found, from its first block to its last; empty: it was not shrunk.
    pub found: Vec<(Range<u64>, Kind)>,
}

/// What became of a write in some blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It shows.
    There,
    /// It did not survive.
    Lost,
    /// It may have survived, and something newer shows.
    Covered,
}

/// What is in some blocks after the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shows {
    pub kind: Kind,
    /// The request whose content it is; `None`: it was there before, or nobody wrote it.
    pub of: Option<Seq>,
    /// The newest write that is missing there.
    pub missing: Option<Seq>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The newest write over them.
    New,
    /// Something older: what is missing was in flight, so nothing had been said about it.
    Old,
    /// Something older, though what is missing had been answered.
    Lost,
    /// Something older, though what is missing was stable: no disk may do that.
    Broken,
    /// What nobody wrote there.
    Foreign,
    /// No write that is shown is about them.
    Before,
}

impl Kind {
    /// So that no colour is needed.
    pub fn letter(self) -> char {
        match self {
            Kind::New => 'N',
            Kind::Old => 'O',
            Kind::Lost => 'L',
            Kind::Broken => '!',
            Kind::Foreign => 'X',
            Kind::Before => '-',
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Kind::New => "new",
            Kind::Old => "old",
            Kind::Lost => "lost",
            Kind::Broken => "LOST",
            Kind::Foreign => "foreign",
            Kind::Before => "as before",
        }
    }
}

/// Rows that are one thing, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bracket {
    /// Rows, from the first to behind the last.
    pub rows: Range<usize>,
    /// "TORN: 20 of 32 sectors new"
    pub text: String,
    pub bad: bool,
}

impl Picture {
    /// `blocks` as sectors of the disk's logical blocks: "832-843".
    pub fn span(blocks: &Range<u64>) -> String {
        match blocks.end - blocks.start {
            1 => blocks.start.to_string(),
            _ => format!("{}-{}", blocks.start, blocks.end - 1),
        }
    }

    pub fn bar(&self, write: Seq) -> Option<&Bar> {
        self.bars.iter().find(|bar| bar.write == write)
    }
}

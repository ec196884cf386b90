//! The report as a page: one file that needs nothing else, with a picture of each finding.
//!
//! A [`Page`] is what is said; [`Page::render`] is how it looks. It begins with the answer, which says no
//! more than what was seen: where nothing was found, in how many states, and never that something is safe.
//! The page is well-formed XML, too, so that tests can read it; it works without its script.

mod answer;
mod databases;
mod environment;
mod explore;
mod page;
mod promise;
mod run;
#[cfg(test)]
mod tests;

pub use databases::of_databases;
pub use explore::of_exploration;
pub use run::of_run;

use crate::oracle::Cell;
use crate::report::picture::{NoPicture, Picture};
use std::io;
use std::path::Path;

/// What it is called in a folder.
pub const NAME: &str = "report.html";

/// Findings that are told in full; the rest is counted.
const TOLD: usize = 50;

/// Those of which there is more than a number.
pub fn told<T>(findings: &[T]) -> &[T] {
    &findings[..findings.len().min(TOLD)]
}

/// What a report says.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub title: String,
    pub answer: Vec<Answer>,
    pub tables: Vec<Table>,
    /// Sentences beneath the tables.
    pub notes: Vec<String>,
    pub shown: Vec<Shown>,
    /// Findings beyond those.
    pub more: u64,
    /// Groups of facts: the group's name, names and values.
    pub environment: Vec<(String, Vec<Fact>)>,
    /// The command that does all of it again, and the one that goes on.
    pub commands: Vec<(String, String)>,
}

/// A part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub tone: Tone,
    /// What comes before the rest: "not protected".
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Something was found.
    Bad,
    /// Nothing was found, in what was looked at.
    Nothing,
    /// It cannot be told.
    Unclear,
}

impl Tone {
    /// So that no colour is needed.
    pub(super) fn sign(self) -> &'static str {
        match self {
            Tone::Bad => "\u{2717}",
            Tone::Nothing => "\u{25cb}",
            Tone::Unclear => "?",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Tone::Bad => "bad",
            Tone::Nothing => "nothing",
            Tone::Unclear => "unclear",
        }
    }
}

/// A name, and what is so; `None`: it was not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub name: String,
    pub value: Option<String>,
}

impl Fact {
    pub(super) fn new(name: &str, value: impl Into<String>) -> Fact {
        let value: String = value.into();
        Fact { name: name.to_owned(), value: (!value.is_empty()).then_some(value) }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub caption: String,
    pub head: Vec<&'static str>,
    /// The last cell is a verdict.
    pub rows: Vec<(Tone, Vec<String>)>,
}

/// A finding.
#[derive(Clone, Debug)]
pub struct Shown {
    /// "lb512 failure 1", "raw cut 2"
    pub place: String,
    pub headline: String,
    pub text: String,
    pub call: String,
    pub strip: Vec<Cell>,
    pub picture: Result<Picture, NoPicture>,
    pub facts: Vec<Fact>,
    /// What is to blame, write by write.
    pub blame: Vec<String>,
    pub timeline: Vec<String>,
    /// The state as it was found, and as it was shrunk.
    pub found: Option<String>,
    pub state: String,
    pub passing: Option<String>,
    /// Other findings in this state.
    pub others: Vec<String>,
    pub commands: Vec<String>,
}

impl Page {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        crate::report::save(path, self.render().as_bytes())
    }
}

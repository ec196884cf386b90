//! Something long that a recording says of itself: one line of JSON, in as many marks as it takes.
//!
//! ```text
//! tornblk-subject 1 1/2 {"suite":"direct-atomic","lane":"raw", ...
//! tornblk-subject 1 2/2 ...}
//! ```
//!
//! A word, the format's version, the part and how many there are, and a piece.

use super::subject::SubjectError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tornblk_model::event::Mark;
use tornblk_model::recording::MARK_MAX;

/// Bytes of JSON in one mark: the rest is for what stands before them.
const PIECE: usize = MARK_MAX - 64;
/// What a recording is of.
pub(super) const SUBJECT: Word = Word { word: "tornblk-subject", version: 1 };
/// Where files lay at a moment.
pub(super) const FILES: Word = Word { word: "tornblk-files", version: 1 };

/// What such marks begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    word: &'static str,
    version: u32,
}

/// Is this mark a piece of something, and so nobody's who wrote?
pub fn is_piece(mark: &Mark) -> bool {
    [SUBJECT, FILES].iter().any(|word| word.after(mark).is_some())
}

impl Word {
    /// The names of the marks that say it.
    pub(super) fn marks(self, said: &impl Serialize) -> Vec<String> {
        // Cannot fail: no map has a key that is no string, and writing to memory has no errors.
        let json = serde_json::to_string(said).unwrap_or_default();
        let mut pieces = Vec::new();
        let mut rest = json.as_str();
        while !rest.is_empty() {
            let mut end = PIECE.min(rest.len());
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (piece, after) = rest.split_at(end);
            pieces.push(piece);
            rest = after;
        }
        let (of, Word { word, version }) = (pieces.len(), self);
        let mark = |(i, piece): (usize, &&str)| format!("{word} {version} {}/{of} {piece}", i + 1);
        pieces.iter().enumerate().map(mark).collect()
    }

    fn after(self, mark: &Mark) -> Option<&str> {
        mark.name.strip_prefix(self.word).and_then(|rest| rest.strip_prefix(' '))
    }
}

/// What was read so far.
#[derive(Debug)]
pub(super) struct Parts {
    word: Word,
    json: String,
    read: usize,
    of: usize,
}

impl Parts {
    pub(super) fn new(word: Word) -> Parts {
        Parts { word, json: String::new(), read: 0, of: 0 }
    }

    /// Takes the next mark; what it ends, if it is the last piece of something.
    pub(super) fn mark<T: DeserializeOwned>(
        &mut self,
        path: &Path,
        mark: &Mark,
    ) -> Result<Option<T>, SubjectError> {
        let bad = |why: String| SubjectError::Bad { path: path.to_owned(), why };
        let Some(rest) = self.word.after(mark) else { return Ok(None) };
        let mut words = rest.splitn(3, ' ');
        let (version, part, piece) = (words.next(), words.next(), words.next());
        let version = version.unwrap_or_default();
        if version != self.word.version.to_string() {
            let (path, found) = (path.to_owned(), version.to_owned());
            return Err(SubjectError::Version { path, found, known: self.word.version });
        }
        let numbers = part.and_then(|p| p.split_once('/'));
        let numbers = numbers.and_then(|(i, of)| Some((i.parse().ok()?, of.parse().ok()?)));
        let (Some((i, of)), Some(piece)) = (numbers, piece) else {
            return Err(bad("a part of it has no number".into()));
        };
        if i != self.read + 1 || self.read > 0 && of != self.of {
            return Err(bad(format!("part {i} of {of} came after part {}", self.read)));
        }
        (self.read, self.of) = (i, of);
        self.json += piece;
        if i < of {
            return Ok(None);
        }
        self.read = 0;
        let json = std::mem::take(&mut self.json);
        serde_json::from_str(&json).map(Some).map_err(|e| bad(e.to_string()))
    }

    /// There are no more marks.
    pub(super) fn end(&self, path: &Path) -> Result<(), SubjectError> {
        if self.read == 0 {
            return Ok(());
        }
        let why = format!("part {} of {} is the last one there", self.read, self.of);
        Err(SubjectError::Bad { path: path.to_owned(), why })
    }
}

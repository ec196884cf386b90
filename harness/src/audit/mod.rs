//! The page audit: which page writes of a program reached the disk in a way that the disk keeps whole. It
//! needs no crash: the recording has the requests, and says where the files lie.
//!
//! - A **page** is `page_size` bytes of a file, at a multiple of it, all of which has a place on the disk.
//! - A **page write** is what it took to write all of a page once: one request, or several. A request that
//!   brings a part of a page which the ones before had brought already begins another page write.
//! - Its **fate** under a profile says whether a power cut may leave it torn, and if so, how that came.
//!
//! [`page_writes`] finds the page writes, [`audit`] judges them under a profile, [`advice`] says what to
//! try. Whether a page *is* ever torn is not asked here: that is what exploring is for.

mod advice;
mod filefrag;
mod pages;

pub use advice::{Used, advice};
pub use filefrag::filefrag;
pub use pages::page_writes;

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use tornblk_model::crash::{AtomicMode, Profile};

/// Page writes that are named, of all that may be torn.
pub const NAMED: usize = 10;

/// What became of a page write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Inside one request that the disk keeps whole, or that part of it.
    Whole,
    /// It came in several requests.
    Split,
    /// Only a part of it came, in however many requests.
    InPart,
    /// The disk refused a request of it: of that, any part may be there.
    Failed,
    /// Its request holds more than the page, and is longer than the disk keeps whole.
    Merged,
    /// It crosses a boundary that the disk has.
    Boundary,
    /// In one request, but not inside one of the pieces that the disk never tears.
    Misaligned,
    /// The disk keeps only what is sent as atomic, and it was not.
    NotAtomic,
    /// The disk keeps nothing whole that is as long as a page.
    NotPromised,
}

impl Fate {
    pub const TORN: [Fate; 8] = [
        Fate::Split,
        Fate::InPart,
        Fate::Failed,
        Fate::Merged,
        Fate::Boundary,
        Fate::Misaligned,
        Fate::NotAtomic,
        Fate::NotPromised,
    ];

    /// At the head of a column, and in sentences.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Whole => "whole",
            Fate::Split => "split",
            Fate::InPart => "in part",
            Fate::Failed => "failed",
            Fate::Merged => "merged beyond",
            Fate::Boundary => "across a boundary",
            Fate::Misaligned => "misaligned",
            Fate::NotAtomic => "not sent as atomic",
            Fate::NotPromised => "too long",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that carried a page or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Carrier {
    /// Its submit event.
    pub request: u64,
    /// Bytes on the disk.
    pub offset: u64,
    pub len: u64,
    /// Sent as atomic (SCSI).
    pub atomic: bool,
    pub failed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// [`PageWrites::files`]
    pub file: usize,
    /// The page's number in it.
    pub page: u64,
    /// Where the page lies; `None`: in several places.
    pub at: Option<u64>,
    /// The whole page was brought.
    pub complete: bool,
    /// The page had been written before, before the recording or in it.
    pub overwrites: bool,
    /// In their order.
    pub carriers: Vec<Carrier>,
}

/// All page writes of a recording, in their order.
#[derive(Clone, Debug, Default)]
pub struct PageWrites {
    pub page_size: u64,
    pub lb_size: u32,
    /// Those with at least one page, by their paths.
    pub files: Vec<String>,
    pub writes: Vec<PageWrite>,
    /// How often it was looked where the files lie.
    pub snapshots: u64,
    /// There are files of which nothing is known.
    pub more: bool,
    /// Times that a discard or a write of zeroes went over a page that had been written in the recording: of
    /// what is there after a power cut nothing is said here.
    pub wiped: u64,
}

/// A page write that may be torn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    pub file: String,
    pub page: u64,
    pub fate: Fate,
    pub overwrites: bool,
    pub at: Option<u64>,
    pub carriers: Vec<Carrier>,
}

/// The page writes, by their fates under one profile.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    pub profile: String,
    pub page_writes: u64,
    pub overwrites: u64,
    /// Those that occurred.
    pub fates: BTreeMap<Fate, u64>,
    /// There are files of which nothing is known.
    pub more: bool,
    /// See [`PageWrites::wiped`].
    pub wiped: u64,
    /// The first that may be torn.
    pub named: Vec<Named>,
    /// What to try.
    pub advice: Vec<String>,
}

impl Audit {
    pub fn of(&self, fate: Fate) -> u64 {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    pub fn verdict(&self) -> Promised {
        if self.of(Fate::Whole) < self.page_writes {
            Promised::NotAll
        } else if self.page_writes == 0 || self.more || self.wiped > 0 {
            Promised::Nothing
        } else {
            Promised::All
        }
    }
}

/// Does the disk promise that no page is torn?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promised {
    All,
    NotAll,
    /// No page was written, there are some of which nothing is known, or some were wiped.
    Nothing,
}

impl fmt::Display for Promised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Promised::All => "promised",
            Promised::NotAll => "not promised",
            Promised::Nothing => "inconclusive",
        })
    }
}

/// What becomes of them on a disk of this profile.
pub fn audit(pages: &PageWrites, profile: &Profile) -> Audit {
    let mut fates = BTreeMap::new();
    let mut named = Vec::new();
    for write in &pages.writes {
        let fate = fate(write, pages, profile);
        *fates.entry(fate).or_default() += 1;
        if fate != Fate::Whole && named.len() < NAMED {
            named.push(Named {
                file: pages.files[write.file].clone(),
                page: write.page,
                fate,
                overwrites: write.overwrites,
                at: write.at,
                carriers: write.carriers.clone(),
            });
        }
    }
    Audit {
        profile: profile.to_string(),
        page_writes: pages.writes.len() as u64,
        overwrites: pages.writes.iter().filter(|write| write.overwrites).count() as u64,
        fates,
        more: pages.more,
        wiped: pages.wiped,
        named,
        advice: Vec::new(),
    }
}

fn fate(write: &PageWrite, pages: &PageWrites, profile: &Profile) -> Fate {
    if write.carriers.iter().any(|carrier| carrier.failed) {
        return Fate::Failed;
    }
    let &[Carrier { offset, len, atomic, .. }] = write.carriers.as_slice() else {
        return if write.complete { Fate::Split } else { Fate::InPart };
    };
    let page = pages.page_size;
    let in_one_piece = |at| profile.is_one_piece(pages.lb_size, at, page);
    if profile.eligible(offset, len, atomic) || write.at.is_some_and(in_one_piece) {
        return Fate::Whole;
    }
    if !write.complete {
        return Fate::InPart;
    }
    let piece = profile.tear_unit.max(u64::from(pages.lb_size));
    match profile.mode {
        AtomicMode::Explicit if !atomic => Fate::NotAtomic,
        AtomicMode::None if piece >= page && !profile.garbage => Fate::Misaligned,
        AtomicMode::None => Fate::NotPromised,
        _ if profile.max_bytes < page => Fate::NotPromised,
        _ if len > profile.max_bytes => Fate::Merged,
        _ => Fate::Boundary,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const K: u64 = 1024;

    fn carrier(offset: u64, len: u64) -> Carrier {
        Carrier { request: 1, offset, len, atomic: false, failed: false }
    }

    fn of(carriers: &[Carrier], complete: bool, profile: &str) -> Fate {
        let at = carriers.first().map(|c| c.offset);
        let carriers = carriers.to_vec();
        let write = PageWrite { file: 0, page: 3, at, complete, overwrites: true, carriers };
        let pages = PageWrites {
            page_size: 16 * K,
            lb_size: 512,
            files: vec!["a".into()],
            writes: vec![write],
            snapshots: 1,
            more: false,
            wiped: 0,
        };
        let audit = audit(&pages, &profile.parse().unwrap());
        let [(fate, 1)] = *audit.fates.iter().map(|(f, n)| (*f, *n)).collect::<Vec<_>>() else {
            panic!("{audit:?}")
        };
        assert_eq!(audit.verdict() == Promised::All, fate == Fate::Whole);
        assert_eq!(audit.named.is_empty(), fate == Fate::Whole);
        fate
    }

    #[test]
    fn fates_are_told_by_the_profile() {
        let own = [carrier(64 * K, 16 * K)];
        let atomic = [Carrier { atomic: true, ..own[0] }];
        let merged = [carrier(64 * K, 32 * K)];
        let odd = [carrier(60 * K, 16 * K)];
        let two = [carrier(64 * K, 8 * K), carrier(72 * K, 8 * K)];
        for (carriers, profile, fate) in [
            (&own[..], "req16k", Fate::Whole),
            (&own, "piece16k", Fate::Whole),
            (&own, "req8k", Fate::NotPromised),
            (&own, "piece8k", Fate::NotPromised),
            (&own, "lb512", Fate::NotPromised),
            (&own, "garbage", Fate::NotPromised),
            (&own, "explicit16k", Fate::NotAtomic),
            (&atomic, "explicit16k", Fate::Whole),
            (&merged, "req16k", Fate::Merged),
            (&merged, "req32k", Fate::Whole),
            (&merged, "piece16k", Fate::Whole),
            (&odd, "req16k", Fate::Whole),
            (&odd, "req16k+b16k", Fate::Boundary),
            (&odd, "piece16k", Fate::Misaligned),
            (&two, "req16k", Fate::Split),
            (&two, "piece16k", Fate::Split),
        ] {
            assert_eq!(of(carriers, true, profile), fate, "{carriers:?} {profile}");
        }
        // A part alone is whole where its request is kept whole.
        assert_eq!(of(&[carrier(64 * K, 4 * K)], false, "req16k"), Fate::Whole);
        assert_eq!(of(&[carrier(64 * K, 4 * K)], false, "lb512"), Fate::InPart);
        let failed = [Carrier { failed: true, ..own[0] }];
        assert_eq!(of(&failed, true, "req16k"), Fate::Failed);
        assert_eq!(of(&two, false, "req16k"), Fate::InPart);
    }
}

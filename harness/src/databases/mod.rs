//! May the double write be switched off? Databases, as Debian 13 has them, on disks that one might buy.
//!
//! - A **cell** is a database with a setting on a file system. It is recorded once ([`Trial`]): loaded and shut
//!   down cleanly before, then updated at random places until its server is killed. Disks with larger logical
//!   blocks need a recording of their own.
//! - For each profile it has three columns, which are never put together. **Promised**: of how many page
//!   writes the disk's promise leaves no tear (the [page audit](crate::audit)). **Observed**: what is torn, in
//!   the pages themselves before any recovery ([`crate::explore::Units::pages`]), and after the server has
//!   recovered from it. **Ledger**: acknowledged transactions that are gone.
//! - Its **word** says what that comes to. Nothing is called safe because nothing was found.
//!
//! What runs in the guest are the shell programs beside this file, each behind [`ENTER`].

mod answer;
mod cells;
mod choose;
mod trial;

pub use answer::answers;
pub use cells::{Cell, Database, Ground, Protection, cells};
pub use trial::{Place, Trial};

use crate::audit::{Audit, Fate, Promised};
use serde::{Deserialize, Serialize};
use std::fmt;
use tornblk_model::crash::{AtomicMode, Profile};

/// What each of the programs begins with.
pub const ENTER: &str = include_str!("enter.sh");
/// One disk each, in the order in which they are shown; one recording is of them all. `piece4k` has logical
/// blocks of 512 bytes, and physical ones of 4 KiB.
pub const PROFILES: [&str; 7] =
    ["lb512", "piece4k", "req8k", "req16k", "req16k+b16k", "piece16k", "explicit16k"];
/// Disks with larger logical blocks: a guest sees those, so each has a recording of its own.
pub const OWN: [&str; 2] = ["lb4k", "lba16k"];
/// Contents that are judged in place, for each profile.
pub const IN_PLACE: u64 = 400;
/// Fewer than that are said to be few.
pub const IN_PLACE_LEAST: u64 = 200;
/// States from which the server recovers, for each profile.
pub const RECOVERIES: usize = 3;
pub const SQLITE_RECOVERIES: usize = 12;
/// Transactions of each program, all of which have to be acknowledged on record.
pub const TRANSACTIONS: u64 = 40;
/// The disk on which everything that is not protected has to be torn: the negative control.
pub const CONTROL: &str = "lb512";
/// The exit status with which a program says what is wrong. Any other says nothing of the disk.
pub const WRONG: i32 = 10;
/// How a server came back from a crash state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovered {
    Sound,
    /// It came back, and is not right.
    Corrupt(String),
    /// It does not start.
    Refused(String),
    /// It came back, and an acknowledged transaction is gone.
    Lost(String),
    /// The file system itself is not right: that says nothing of the database.
    FileSystem(String),
    /// Nobody knows.
    Unsure(String),
}

impl Recovered {
    /// By the word with which the program says it.
    pub fn of_failure(text: &str) -> Recovered {
        type Make = fn(String) -> Recovered;
        let words: [(&str, Make); 3] = [
            ("corrupt: ", Recovered::Corrupt),
            ("refused: ", Recovered::Refused),
            ("lost: ", Recovered::Lost),
        ];
        // The program's own word is the first: what follows may be the server's.
        let said =
            words.into_iter().filter_map(|(word, make)| Some((text.find(word)?, word, make)));
        match said.min_by_key(|(at, ..)| *at) {
            Some((at, word, make)) => {
                make(text[at + word.len()..].trim().trim_end_matches(" |").to_owned())
            }
            // Emulated guests are slow.
            None if text.contains("did not end in") => Recovered::Unsure(text.to_owned()),
            None => Recovered::FileSystem(text.to_owned()),
        }
    }

    pub fn is_torn(&self) -> bool {
        matches!(self, Recovered::Corrupt(_) | Recovered::Refused(_))
    }

    /// It says something of the database.
    pub fn is_judged(&self) -> bool {
        !matches!(self, Recovered::FileSystem(_) | Recovered::Unsure(_))
    }
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recovered::Sound => f.write_str("it came back, and is right"),
            Recovered::Corrupt(why) => write!(f, "it came back, and is corrupt: {why}"),
            Recovered::Refused(why) => write!(f, "it does not start: {why}"),
            Recovered::Lost(why) => write!(f, "it came back: {why}"),
            Recovered::FileSystem(why) => write!(f, "the file system is not right: {why}"),
            Recovered::Unsure(why) => write!(f, "it cannot be told: {why}"),
        }
    }
}

/// A state from which a server recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub state: String,
    /// A page was torn in it before.
    pub torn_before: bool,
    pub recovered: Recovered,
    /// The state in one file, of the first that is not right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

/// What was seen of pages before any recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    pub pages: u64,
    /// Pages that could not be judged: they are none of that format, or lay elsewhere.
    pub left_out: u64,
    /// Unique states.
    pub states: u64,
    /// Those with a torn page.
    pub torn: u64,
}

/// A cell on one disk.
#[derive(Clone, Debug, Serialize)]
pub struct OnDisk {
    pub profile: String,
    pub audit: Audit,
    /// `None`: its pages have no checksums.
    pub in_place: Option<InPlace>,
    pub recoveries: Vec<Recovery>,
    /// The first bundle of a torn page.
    pub bundle: Option<String>,
}

/// A disk that a cell cannot lie on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotApplicable {
    pub profile: String,
    pub why: String,
}

impl OnDisk {
    pub fn torn_after(&self) -> usize {
        self.recoveries.iter().filter(|r| r.recovered.is_torn()).count()
    }

    pub fn lost(&self) -> usize {
        self.recoveries.iter().filter(|r| matches!(r.recovered, Recovered::Lost(_))).count()
    }

    pub fn judged(&self) -> usize {
        self.recoveries.iter().filter(|r| r.recovered.is_judged()).count()
    }

    /// Why a recovery could not be judged.
    pub fn unsure(&self) -> Option<&str> {
        self.recoveries.iter().find_map(|r| match &r.recovered {
            Recovered::Unsure(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// The disk keeps every page write whole that was seen.
    pub fn was_kept_whole(&self, cell: &Cell) -> bool {
        !cell.buffered && self.audit.verdict() == Promised::All
    }

    /// Those that were not seen, too: the file system never puts the two halves of a page in two places.
    pub fn is_promised(&self, cell: &Cell) -> bool {
        self.was_kept_whole(cell) && cell.ground.unit() >= cell.database.pages().0
    }

    /// It keeps whole what comes in one request, whatever that was made of.
    fn is_of_requests(&self) -> bool {
        let profile: Option<Profile> = self.profile.parse().ok();
        profile.is_some_and(|profile| profile.mode == AtomicMode::Implicit)
    }

    /// Why what was seen is no promise for what was not.
    fn why_not_promised(&self, cell: &Cell) -> &'static str {
        if cell.protection == Protection::NotWaited {
            "what protects pages is not waited for"
        } else if cell.buffered {
            "the page cache promises nothing"
        } else {
            match self.audit.verdict() {
                Promised::NotAll => "not every page write lies within what the disk keeps whole",
                Promised::Nothing => {
                    "pages were zeroed or discarded, or it is not known where some files lie"
                }
                Promised::All => {
                    "blocks of the file system that are smaller than a page keep it together only by luck"
                }
            }
        }
    }

    pub fn promised(&self) -> String {
        format!("{} of {}", self.audit.of(Fate::Whole), self.audit.page_writes)
    }

    /// Why the file system was not right, for each state in which it was not.
    pub fn not_right(&self) -> impl Iterator<Item = &str> {
        self.recoveries.iter().filter_map(|r| match &r.recovered {
            Recovered::FileSystem(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// No page write is kept whole, and of those states that cut one none has a torn page: the negative control
    /// of what finds them.
    fn tears_were_missed(&self) -> bool {
        self.audit.page_writes > 0
            && self.audit.of(Fate::Whole) == 0
            && self.in_place.is_some_and(|seen| seen.torn == 0)
    }

    /// Fewer states than are asked for.
    pub fn is_few(&self, cell: &Cell) -> bool {
        self.in_place.is_some_and(|seen| seen.states < IN_PLACE_LEAST)
            || self.judged() < cell.recoveries()
    }

    /// A state of it in a file: from which the server did not recover, or else with a torn page.
    pub fn any_bundle(&self) -> Option<&String> {
        self.recoveries.iter().find_map(|r| r.bundle.as_ref()).or(self.bundle.as_ref())
    }

    /// Without what the cell's controls say ([`CellReport::word`]).
    fn word(&self, cell: &Cell) -> Word {
        if self.torn_after() > 0 {
            Word::Torn
        } else if self.lost() > 0 && !cell.may_lose {
            Word::Lost
        } else if self.audit.overwrites == 0 || self.judged() == 0 || self.unsure().is_some() {
            Word::Inconclusive
        } else if cell.is_protected() {
            Word::Protected
        } else if cell.protection == Protection::NotWaited {
            // Torn pages are put right, or not: that is not promised.
            Word::NotPromised
        } else if self.in_place.is_some_and(|seen| seen.torn > 0) {
            Word::TornBefore
        } else if self.is_promised(cell) {
            // What is called safe has been looked at.
            if self.is_few(cell) { Word::Inconclusive } else { Word::Promised }
        } else {
            Word::NotPromised
        }
    }
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// Every page write that was seen is one that the disk keeps whole, goes there past the page cache, and
    /// the file system keeps pages together; nothing was found.
    Promised,
    /// The database writes so that tears do no harm; nothing was found.
    Protected,
    NotPromised,
    /// Pages were torn, and those states from which the server recovered came out right.
    TornBefore,
    Torn,
    /// What was acknowledged is gone, and may not be.
    Lost,
    Inconclusive,
}

impl Word {
    pub fn is_red(self) -> bool {
        matches!(self, Word::Torn | Word::TornBefore | Word::Lost)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Word::Promised => "safe by promise",
            Word::Protected => "none found, protected",
            Word::NotPromised => "none found, not promised",
            Word::TornBefore => "torn before recovery",
            Word::Torn => "torn",
            Word::Lost => "lost",
            Word::Inconclusive => "inconclusive",
        })
    }
}

/// A cell with what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct CellReport {
    pub cell: Cell,
    /// Of the database's package.
    pub version: String,
    /// What the server says of itself.
    pub settings: String,
    pub disks: Vec<OnDisk>,
    pub not_applicable: Vec<NotApplicable>,
    /// What the program says of a disk that ignored every flush: that all is lost, or the ledger's figures prove
    /// nothing.
    pub ledger_control: Option<Recovered>,
    /// What it says of a page of which half was zeroed on purpose: that it is corrupt. Where pages have
    /// checksums the disks that keep nothing whole are what shows that tears are found.
    pub damage_control: Option<Recovered>,
    /// Failing states of which no bundle could be made, and why.
    pub not_packed: Vec<String>,
    pub seconds: f64,
    /// It could not be tried, or not to its end, and why.
    pub error: Option<String>,
    /// Why it was not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_tried: Option<&'static str>,
}

/// What is not as it has to be; each a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Odd {
    pub violations: Vec<String>,
    pub inconclusive: Vec<String>,
    /// Which changes nothing.
    pub notes: Vec<String>,
}

impl CellReport {
    /// Of a cell of which nothing is known yet. `version`: of its database's package.
    pub fn new(cell: Cell, version: String) -> CellReport {
        CellReport {
            cell,
            version,
            settings: String::new(),
            disks: Vec::new(),
            not_applicable: Vec::new(),
            ledger_control: None,
            damage_control: None,
            not_packed: Vec::new(),
            seconds: 0.0,
            error: None,
            not_tried: None,
        }
    }

    /// What the cell on this disk comes to. What no control shows to be able to fail proves nothing, whatever
    /// was found or not.
    pub fn word(&self, disk: &OnDisk) -> Word {
        let word = disk.word(&self.cell);
        let blind = !self.blind().is_empty() || disk.tears_were_missed();
        if blind && !word.is_red() { Word::Inconclusive } else { word }
    }

    /// Controls of the whole cell that did not show what they have to.
    fn blind(&self) -> Vec<String> {
        let mut blind = Vec::new();
        let told = |control: &Option<Recovered>| match control {
            Some(recovered) => format!("what came of it: {recovered}"),
            None => "it was not tried".to_owned(),
        };
        if self.disks.is_empty() {
            return blind;
        }
        if !matches!(self.ledger_control, Some(Recovered::Lost(_))) {
            blind.push(format!(
                "a disk that ignores every flush has to lose what was acknowledged: {}",
                told(&self.ledger_control)
            ));
        }
        let damaged = self.damage_control.as_ref().is_some_and(Recovered::is_torn);
        if self.cell.database.judged().is_none() && !damaged {
            blind.push(format!(
                "a page of which half was zeroed on purpose has to be found: {}",
                told(&self.damage_control)
            ));
        }
        blind
    }

    /// Of every disk that was asked for.
    pub fn profiles(&self) -> impl Iterator<Item = &str> {
        let tried = self.disks.iter().map(|disk| disk.profile.as_str());
        tried.chain(self.not_applicable.iter().map(|none| none.profile.as_str()))
    }

    /// What is wrong on this disk, of the sentences of [`CellReport::odd`].
    pub fn of_disk<'a>(&self, sentences: &'a [String], disk: &OnDisk) -> Vec<&'a str> {
        let start = format!("{} on {}: ", self.cell.name, disk.profile);
        sentences.iter().filter(|text| text.starts_with(&start)).map(String::as_str).collect()
    }

    pub fn odd(&self) -> Odd {
        let mut odd = Odd::default();
        let name = &self.cell.name;
        // After an error that is what has to be mended.
        let blind = if self.error.is_some() { Vec::new() } else { self.blind() };
        odd.inconclusive.extend(blind.into_iter().map(|why| format!("{name}: {why}")));
        odd.inconclusive.extend(self.not_packed.iter().map(|why| format!("{name}: {why}")));
        if let Some(why) = self.not_tried {
            odd.inconclusive.push(format!("{name}: not tried: {why}"));
        }
        // What is documented to be so is no violation.
        let protects = self.cell.protection != Protection::NotWaited;
        for disk in &self.disks {
            let place = format!("{name} on {}", disk.profile);
            let word = self.word(disk);
            let kept = disk.was_kept_whole(&self.cell);
            if word == Word::Torn && protects && (self.cell.is_protected() || kept) {
                let why = if kept {
                    "although the disk keeps every page write whole"
                } else {
                    "although the database protects its pages"
                };
                odd.violations.push(format!("{place}: torn after recovery, {why}"));
            }
            if let Some(seen) = disk.in_place.filter(|seen| seen.torn > 0 && kept) {
                odd.violations.push(format!(
                    "{place}: pages are torn in {} of {} states, although the disk keeps every page write whole",
                    seen.torn, seen.states
                ));
            }
            if disk.lost() > 0 && !self.cell.may_lose && protects {
                odd.violations.push(format!(
                    "{place}: acknowledged transactions are gone in {} of {} states",
                    disk.lost(),
                    disk.judged()
                ));
            }
            if disk.tears_were_missed() {
                odd.inconclusive.push(format!(
                    "{place}: no state has a torn page, although nothing keeps one whole"
                ));
            } else if word == Word::Inconclusive {
                let why = match (disk.audit.overwrites, disk.unsure()) {
                    (0, _) => "no page was overwritten",
                    (_, Some(why)) => why,
                    _ if disk.judged() == 0 => "no recovery could be judged",
                    _ if !self.blind().is_empty() => "a control of the cell shows nothing",
                    _ => "there are too few states to call it safe",
                };
                odd.inconclusive.push(format!("{place}: {why}"));
            }
            if let Some(why) = disk.not_right().next() {
                odd.notes.push(format!(
                    "{place}: the file system was not right in {} of {} states, which say nothing of the \
                     database: {why}",
                    disk.not_right().count(),
                    disk.recoveries.len()
                ));
            }
        }
        odd
    }
}

/// 0 as expected, 1 a violation, 2 a cell could not be tried, 3 inconclusive.
pub fn exit_code(cells: &[CellReport]) -> u8 {
    let odd: Vec<Odd> = cells.iter().map(CellReport::odd).collect();
    if odd.iter().any(|odd| !odd.violations.is_empty()) {
        1
    } else if cells.iter().any(|report| report.error.is_some()) {
        2
    } else if cells.is_empty() || odd.iter().any(|odd| !odd.inconclusive.is_empty()) {
        3
    } else {
        0
    }
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    pub(crate) fn disk(profile: &str, whole: u64, torn: u64, recovered: Recovered) -> OnDisk {
        let fates = BTreeMap::from([(Fate::Whole, whole), (Fate::Split, 10 - whole)]);
        OnDisk {
            profile: profile.into(),
            audit: Audit {
                profile: profile.into(),
                page_writes: 10,
                overwrites: 10,
                fates,
                more: false,
                wiped: 0,
                named: Vec::new(),
                advice: Vec::new(),
            },
            in_place: Some(InPlace { pages: 5, left_out: 0, states: 300, torn }),
            recoveries: vec![
                Recovery {
                    state: "s".into(),
                    torn_before: torn > 0,
                    recovered,
                    bundle: None
                };
                3
            ],
            bundle: None,
        }
    }

    pub(crate) fn report(cell: &str, disks: Vec<OnDisk>) -> CellReport {
        let cell = cells().into_iter().find(|c| c.name == cell).unwrap();
        let damage = cell.database.judged().is_none().then(|| Recovered::Corrupt("half".into()));
        CellReport {
            disks,
            ledger_control: Some(Recovered::Lost("transaction 40".into())),
            damage_control: damage,
            ..CellReport::new(cell, String::new())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::testing::{disk, report};
    use super::*;

    #[test]
    fn nothing_is_safe_because_nothing_was_found() {
        let off = "mariadb-off-direct-xfs16k";
        let fast = "mariadb-fast-direct-xfs16k";
        let refused = || Recovered::Refused("page 3 is corrupt".into());
        for (cell, disk, word, exit) in [
            (off, disk("lb512", 0, 40, refused()), Word::Torn, 0),
            (off, disk("req16k", 10, 0, Recovered::Sound), Word::Promised, 0),
            (off, disk("req16k", 9, 0, Recovered::Sound), Word::NotPromised, 0),
            // Its file system may put the quarters of a page that was not seen in four places.
            (
                "mariadb-off-direct-ext4",
                disk("req16k", 10, 0, Recovered::Sound),
                Word::NotPromised,
                0,
            ),
            ("mariadb-off-direct-ext4", disk("req16k", 10, 0, refused()), Word::Torn, 1),
            (
                "postgres-off-direct-xfs",
                disk("req8k", 10, 0, Recovered::Sound),
                Word::NotPromised,
                0,
            ),
            // Written twice, and the second one not waited for: nobody promises that it helps.
            (fast, disk("lb512", 0, 40, Recovered::Sound), Word::NotPromised, 0),
            (fast, disk("piece16k", 10, 0, Recovered::Sound), Word::NotPromised, 0),
            (fast, disk("lb512", 0, 40, refused()), Word::Torn, 0),
            (fast, disk("lb512", 0, 40, Recovered::Lost("t".into())), Word::Lost, 0),
            // The page cache promises nothing, whatever was seen.
            (
                "mariadb-off-buffered-ext4",
                disk("piece16k", 10, 0, Recovered::Sound),
                Word::NotPromised,
                0,
            ),
            (off, disk("req16k", 9, 2, Recovered::Sound), Word::TornBefore, 0),
            // What was promised is not kept.
            (off, disk("req16k", 10, 1, Recovered::Sound), Word::TornBefore, 1),
            (off, disk("req16k", 10, 0, refused()), Word::Torn, 1),
            // The control: nothing keeps them whole, and none is torn.
            (off, disk("lb512", 0, 0, Recovered::Sound), Word::Inconclusive, 3),
            ("mariadb-on-direct-ext4", disk("lb4k", 0, 0, Recovered::Sound), Word::Inconclusive, 3),
            ("mariadb-on-direct-ext4", disk("lb512", 0, 40, Recovered::Sound), Word::Protected, 0),
            ("mariadb-on-direct-ext4", disk("lb512", 0, 40, refused()), Word::Torn, 1),
            (off, disk("req16k", 10, 0, Recovered::Lost("t".into())), Word::Lost, 1),
            // A file system that is not right is nobody's fault here.
            (off, disk("req16k", 10, 0, Recovered::FileSystem("x".into())), Word::Inconclusive, 3),
            (
                "sqlite-wal-normal-ext4",
                disk("req16k", 10, 0, Recovered::Lost("t".into())),
                Word::Protected,
                0,
            ),
            (off, disk("req16k", 10, 0, Recovered::Unsure("t".into())), Word::Inconclusive, 3),
        ] {
            let report = report(cell, vec![disk]);
            assert_eq!(report.word(&report.disks[0]), word, "{:?}", report.disks);
            assert_eq!(exit_code(std::slice::from_ref(&report)), exit, "{:?}", report.odd());
        }
        assert_eq!(exit_code(&[]), 3);
    }

    #[test]
    fn what_no_control_shows_to_fail_is_called_nothing() {
        let (off, wal) = ("mariadb-off-direct-xfs16k", "sqlite-wal-normal-ext4");
        for (cell, tamper, word) in [
            (off, None, Word::Promised),
            (off, Some((true, Some(Recovered::Sound))), Word::Inconclusive),
            (off, Some((true, None)), Word::Inconclusive),
            (off, Some((false, None)), Word::Promised),
            (wal, None, Word::Protected),
            (wal, Some((true, None)), Word::Inconclusive),
            (wal, Some((false, None)), Word::Inconclusive),
            (wal, Some((false, Some(Recovered::Sound))), Word::Inconclusive),
        ] {
            let mut report = report(cell, vec![disk("req16k", 10, 0, Recovered::Sound)]);
            let one = report.disks[0].recoveries[0].clone();
            report.disks[0].recoveries.resize(12, one);
            match tamper {
                Some((true, control)) => report.ledger_control = control,
                Some((false, control)) => report.damage_control = control,
                None => {}
            }
            let seen = report.word(&report.disks[0]);
            let exit = exit_code(std::slice::from_ref(&report));
            assert_eq!((seen, exit == 3), (word, word == Word::Inconclusive), "{report:?}");
        }
        // What is red stays red.
        let torn = Recovered::Refused("page 3".into());
        let mut red = report(off, vec![disk("lb512", 0, 40, torn)]);
        red.ledger_control = None;
        assert_eq!(red.word(&red.disks[0]), Word::Torn);
        // Called safe with one state left of three: no.
        let mut few = report(off, vec![disk("req16k", 10, 0, Recovered::Sound)]);
        few.disks[0].recoveries.truncate(1);
        assert_eq!(few.word(&few.disks[0]), Word::Inconclusive);
        assert!(few.odd().inconclusive[0].contains("too few states"), "{:?}", few.odd());
    }

    /// What the shell programs share, as it runs in the guest.
    fn shell(text: &str, marks: &str) -> (Option<i32>, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("marks");
        std::fs::write(&file, marks).unwrap();
        let ran = std::process::Command::new("sh")
            .args(["-c", &format!("{ENTER}\n{text}")])
            .envs([("TORNBLK_INSIDE", "1"), ("TORNBLK_SEED", "3")])
            .env("TORNBLK_MARKS", file)
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
    }

    #[test]
    fn the_shell_programs_know_what_has_to_be_there() {
        let marks = "other\nacknowledged 7\nacknowledged 12\nacknowledged\n";
        assert_eq!(shell("acknowledged", marks), (Some(0), "12\n".into()));
        assert_eq!(shell("acknowledged", "exec-done\n"), (Some(0), "0\n".into()));
        // The rows that two transactions of three wrote last, of five.
        let mut x: u64 = 3 * 7919 + 12345;
        let mut of = [0; 5];
        for i in 0..6 {
            x = x * 16807 % 2_147_483_647;
            of[(x % 5) as usize] = i / 3 + 1;
        }
        let rows: String = of.iter().enumerate().map(|(i, t)| format!("{} {t}\n", i + 1)).collect();
        assert_eq!(shell("expected 2 5 3", ""), (Some(0), rows));
        let none = "1 0\n2 0\n3 0\n4 0\n5 0\n";
        assert_eq!(shell("expected 0 5 3", ""), (Some(0), none.into()));
        for (says, word) in
            [("corrupt a", "corrupt: a"), ("lost b", "lost: b"), ("refused c", "refused: c")]
        {
            assert_eq!(shell(says, ""), (Some(WRONG), format!("{word}\n")));
            assert!(Recovered::of_failure(word).is_judged());
        }
        assert_eq!(shell("failed d", "").0, Some(2));
    }

    #[test]
    fn the_shell_programs_are_shell_programs() {
        let dir = tempfile::tempdir().unwrap();
        for database in [Database::MariaDb, Database::Postgres, Database::Sqlite] {
            let file = dir.path().join("program");
            std::fs::write(&file, format!("{ENTER}{}", database.program())).unwrap();
            let ran = std::process::Command::new("sh").arg("-n").arg(&file).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
    }

    #[test]
    fn what_a_program_says_is_told_by_its_word() {
        let said = "x check ended with status 10: corrupt: the table has 3 rows |";
        assert_eq!(Recovered::of_failure(said), Recovered::Corrupt("the table has 3 rows".into()));
        assert!(matches!(Recovered::of_failure("x: refused: no"), Recovered::Refused(_)));
        assert!(matches!(Recovered::of_failure("lost: 4"), Recovered::Lost(_)));
        assert!(matches!(Recovered::of_failure("cannot be mounted"), Recovered::FileSystem(_)));
        assert!(matches!(Recovered::of_failure("it did not end in 9 s"), Recovered::Unsure(_)));
        // What the server says comes after the program's own word.
        let said = "x: refused: [ERROR] corrupt: page 3; lost: 4";
        assert!(matches!(Recovered::of_failure(said), Recovered::Refused(_)));
    }
}

//! Complaints of a run's guests become findings: each different one once.

use super::{Around, Kind, Splat, SplatError, Symbols, find, harmless};
use crate::oracle::{Clause, Finding};
use crate::vm::CONSOLE;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A guest that ran, and what went on around it.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Where its console's file is.
    pub dir: &'a Path,
    /// Which one: "before the cut".
    pub which: &'a str,
    pub around: Around,
}

/// Takes the complaints of a run.
#[derive(Debug, Default)]
pub struct Desk {
    symbols: Symbols,
    /// Signatures of what is a finding of some lane, and of this one; of what was excused.
    told: HashSet<String>,
    here: HashSet<String>,
    excused: HashSet<String>,
    /// What the suite expects of this lane: told here, and none the less news to the next lane.
    expected: Vec<Kind>,
    /// That a guest died where no cut tells it.
    deaths: Vec<Finding>,
    /// Not handed out yet, with the guest.
    waiting: Vec<(String, Splat)>,
    again: Again,
}

/// What came again, and is no finding again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Again {
    pub count: u64,
    /// Titles of what is a finding of an earlier lane alone.
    pub of_earlier: Vec<String>,
}

impl Desk {
    /// `kernel`: as it was given, where that is a path.
    pub fn new(kernel: Option<&Path>) -> Desk {
        Desk { symbols: kernel.map(Symbols::of).unwrap_or_default(), ..Desk::default() }
    }

    /// A lane begins, of which the suite expects complaints of these kinds.
    pub fn lane(&mut self, expects: impl Fn(Kind) -> bool) {
        self.here.clear();
        self.expected = Kind::ALL.into_iter().filter(|kind| expects(*kind)).collect();
    }

    /// Tells this with the next findings.
    pub fn add(&mut self, death: Finding) {
        self.deaths.push(death);
    }

    /// Reads a guest's console, which must have ended. → the kinds of what will be findings.
    ///
    /// # Errors
    /// There is one, and it cannot be read.
    pub fn hear(&mut self, guest: &Guest<'_>) -> Result<Vec<Kind>, SplatError> {
        let path = guest.dir.join(CONSOLE);
        let log = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(SplatError::Io { what: "read", path, source }),
        };
        let mut kinds = Vec::new();
        for splat in find(&String::from_utf8_lossy(&log)) {
            let signature = splat.signature();
            // One that was excused elsewhere is none the less a finding where nothing excuses it.
            if let Some(why) = harmless(&splat, guest.around) {
                if self.excused.insert(signature) {
                    log::warn!(
                        "the kernel of the guest {} says, and it is no finding ({why}): {}",
                        guest.which,
                        splat.title
                    );
                }
                continue;
            }
            let new_here = self.here.insert(signature.clone());
            let is_new = match self.expected.contains(&splat.kind) {
                true => new_here,
                false => self.told.insert(signature),
            };
            if is_new {
                kinds.push(splat.kind);
                self.waiting.push((guest.which.to_owned(), splat));
                continue;
            }
            self.again.count += 1;
            if new_here {
                self.again.of_earlier.push(splat.title);
            }
        }
        Ok(kinds)
    }

    /// What was heard since the last time, as findings; all that belongs to each is put into a file
    /// in `dir`, if that is given.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn findings(&mut self, dir: Option<&Path>) -> Result<Vec<Finding>, SplatError> {
        let mut findings = std::mem::take(&mut self.deaths);
        for (number, (which, splat)) in (1..).zip(std::mem::take(&mut self.waiting)) {
            let lines = self.symbols.decode(&splat.lines);
            let title = lines.iter().find(|line| line.contains(&splat.title));
            let title = title.map_or(splat.title.as_str(), |line| super::scan::message(line));
            let mut text = format!("{title}\nsaid by the kernel of the guest {which}");
            if let Some(dir) = dir {
                let path = dir.join(format!("splat-{number}.txt"));
                write(&path, &lines)?;
                text += &format!("; all of it: {}", path.display());
            }
            findings.push(Finding {
                complaint: Some(splat.kind),
                ..Finding::new(Clause::KernelWarning, text)
            });
        }
        Ok(findings)
    }

    /// What came again since the last time.
    pub fn take_again(&mut self) -> Again {
        std::mem::take(&mut self.again)
    }
}

fn write(path: &Path, lines: &[String]) -> Result<(), SplatError> {
    let mut text = lines.join("\n");
    text.push('\n');
    std::fs::write(path, text).map_err(|source| SplatError::Io {
        what: "write",
        path: PathBuf::from(path),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const WARN: &str = "[    1.0] ------------[ cut here ]------------\n\
                        [    1.0] WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2\n\
                        [    1.0] ---[ end trace 0000000000000000 ]---\n";

    const IO: &str = "I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1\n";

    fn hear(desk: &mut Desk, dir: &Path, log: &str, around: Around) {
        std::fs::write(dir.join(CONSOLE), log).unwrap();
        desk.hear(&Guest { dir, which: "before the cut", around }).unwrap();
    }

    #[test]
    fn each_different_complaint_is_a_finding_once() {
        let tmp = tempfile::tempdir().unwrap();
        let mut desk = Desk::new(None);
        let none = Around::default();
        hear(
            &mut desk,
            tmp.path(),
            &format!("fine\n{WARN}{}", WARN.replace("PID: 9", "PID: 4")),
            none,
        );
        let found = desk.findings(Some(tmp.path())).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].clause, Clause::KernelWarning);
        let (first, rest) = found[0].text.split_once('\n').unwrap();
        assert_eq!(first, "WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2");
        assert!(rest.contains("the guest before the cut"), "{rest}");
        assert_eq!(std::fs::read_to_string(tmp.path().join("splat-1.txt")).unwrap(), WARN);
        // Again, and another.
        hear(&mut desk, tmp.path(), &format!("{WARN}{}", WARN.replace("f+", "g+")), none);
        assert_eq!(desk.findings(None).unwrap().len(), 1);
        assert_eq!((desk.take_again().count, desk.take_again()), (2, Again::default()));
    }

    #[test]
    fn a_lane_tells_what_an_earlier_one_told_and_what_is_expected_is_told_to_nobody_else() {
        let tmp = tempfile::tempdir().unwrap();
        let mut desk = Desk::new(None);
        let both = format!("{WARN}{IO}");
        desk.lane(|kind| kind == Kind::Io);
        for again in [0, 2] {
            hear(&mut desk, tmp.path(), &both, Around::default());
            assert_eq!(desk.take_again(), Again { count: again, of_earlier: Vec::new() });
        }
        let kinds = |desk: &mut Desk| {
            let found = desk.findings(None).unwrap();
            found.iter().map(|f| f.complaint.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&mut desk), [Kind::Warning, Kind::Io]);
        desk.lane(|_| false);
        for again in [1, 2] {
            hear(&mut desk, tmp.path(), &both, Around::default());
            let Again { count, of_earlier } = desk.take_again();
            assert_eq!((count, of_earlier.len()), (again, usize::from(again == 1)));
        }
        assert_eq!(kinds(&mut desk), [Kind::Io]);
    }

    #[test]
    fn what_was_excused_once_is_not_excused_elsewhere() {
        let tmp = tempfile::tempdir().unwrap();
        let mut desk = Desk::new(None);
        hear(&mut desk, tmp.path(), IO, Around { lied: true, ..Around::default() });
        assert!(desk.findings(None).unwrap().is_empty());
        hear(&mut desk, tmp.path(), IO, Around::default());
        let found = desk.findings(None).unwrap();
        assert!(found[0].text.starts_with("I/O error, dev vda, sector 8"));
        assert!(desk.findings(None).unwrap().is_empty());
    }

    #[test]
    fn a_guest_that_never_spoke_has_no_complaints() {
        let tmp = tempfile::tempdir().unwrap();
        let guest = Guest { dir: tmp.path(), which: "x", around: Around::default() };
        Desk::new(None).hear(&guest).unwrap();
    }
}

//! Complaints of a run's guests become findings: each different one once.

use super::{Around, Splat, SplatError, Symbols, find, harmless};
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
    /// Signatures.
    told: HashSet<String>,
    /// Not handed out yet, with the guest.
    waiting: Vec<(String, Splat)>,
    again: u64,
}

impl Desk {
    /// `kernel`: as it was given, where that is a path.
    pub fn new(kernel: Option<&Path>) -> Desk {
        Desk { symbols: kernel.map(Symbols::of).unwrap_or_default(), ..Desk::default() }
    }

    /// Reads a guest's console. It must have ended.
    ///
    /// # Errors
    /// There is one, and it cannot be read.
    pub fn hear(&mut self, guest: &Guest<'_>) -> Result<(), SplatError> {
        let path = guest.dir.join(CONSOLE);
        let log = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(SplatError::Io { what: "read", path, source }),
        };
        for splat in find(&String::from_utf8_lossy(&log)) {
            let why = harmless(&splat, guest.around);
            // One that was excused elsewhere is none the less a finding where nothing excuses it.
            let key =
                format!("{}{}", if why.is_some() { "excused " } else { "" }, splat.signature());
            match (self.told.insert(key), why) {
                (true, Some(why)) => log::warn!(
                    "the kernel of the guest {} says, and it is no finding ({why}): {}",
                    guest.which,
                    splat.title
                ),
                (true, None) => self.waiting.push((guest.which.to_owned(), splat)),
                (false, None) => self.again += 1,
                (false, Some(_)) => {}
            }
        }
        Ok(())
    }

    /// What was heard since the last time, as findings; all that belongs to each is put into a file
    /// in `dir`, if that is given.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn findings(&mut self, dir: Option<&Path>) -> Result<Vec<Finding>, SplatError> {
        let mut findings = Vec::new();
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
            findings.push(Finding::new(Clause::KernelWarning, text));
        }
        Ok(findings)
    }

    /// How many came again since the last time, and are no findings again.
    pub fn take_again(&mut self) -> u64 {
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
        assert_eq!((desk.take_again(), desk.take_again()), (2, 0));
    }

    #[test]
    fn what_was_excused_once_is_not_excused_elsewhere() {
        let tmp = tempfile::tempdir().unwrap();
        let mut desk = Desk::new(None);
        hear(&mut desk, tmp.path(), WARN, Around { lied: true, ..Around::default() });
        assert!(desk.findings(None).unwrap().is_empty());
        hear(&mut desk, tmp.path(), WARN, Around::default());
        let found = desk.findings(None).unwrap();
        assert!(found[0].text.starts_with("WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2"));
        assert!(desk.findings(None).unwrap().is_empty());
    }

    #[test]
    fn a_guest_that_never_spoke_has_no_complaints() {
        let tmp = tempfile::tempdir().unwrap();
        let guest = Guest { dir: tmp.path(), which: "x", around: Around::default() };
        Desk::new(None).hear(&guest).unwrap();
    }
}

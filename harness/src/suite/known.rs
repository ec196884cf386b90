//! What kernels are known to get wrong: lanes whose red is no news.
//!
//! ```toml
//! [[known]]
//! suite = "direct-atomic"
//! lane = "boundary-merged"
//! kernels = ["6.12", "7.2"]     # series or releases; left out: all
//! clauses = ["failed"]          # as what it shows; anything else is news
//! text = "EREMOTEIO"            # what the finding says, too; left out: anything
//! where = "a thread or a commit"
//! about = "what is wrong, in a sentence"
//! ```

use super::SuiteError;
use crate::oracle::{Clause, Finding};
use serde::Deserialize;
use std::fmt;
use std::path::Path;

const BUILTIN: &str = include_str!("../../suites/known.toml");

/// As the command line names the list that comes with the program.
const BUILTIN_NAME: &str = "builtin";

/// The whole list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    #[serde(default, rename = "known")]
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub suite: String,
    pub lane: String,
    #[serde(default)]
    pub kernels: Vec<String>,
    pub clauses: Vec<Clause>,
    /// What the finding says, too; left out: anything.
    #[serde(default)]
    pub text: String,
    /// The thread, or the commit.
    #[serde(rename = "where")]
    pub place: String,
    pub about: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.about, self.place)
    }
}

impl Known {
    /// `builtin`, or a file.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub fn load(what: &str) -> Result<Known, SuiteError> {
        if what == BUILTIN_NAME {
            return Known::parse(BUILTIN, "the list that is built in");
        }
        let path = Path::new(what);
        let text = std::fs::read_to_string(path)
            .map_err(|source| SuiteError::Known { path: path.to_owned(), source })?;
        Known::parse(&text, what)
    }

    fn parse(text: &str, origin: &str) -> Result<Known, SuiteError> {
        let bad = |message: String| SuiteError::Bad { origin: origin.to_owned(), message };
        let known: Known = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let at = line.map(|n| format!("line {n}: ")).unwrap_or_default();
            bad(format!("{at}{}", e.message()))
        })?;
        match known.entries.iter().find(|entry| entry.clauses.is_empty()) {
            Some(entry) => {
                Err(bad(format!("{}: `clauses` is empty: as what does it show?", entry.lane)))
            }
            None => Ok(known),
        }
    }

    /// The entries that speak of a lane on a kernel.
    pub fn of<'a>(
        &'a self,
        suite: &'a str,
        lane: &'a str,
        release: &'a str,
    ) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.suite == suite && entry.lane == lane && entry.is_of(release))
    }

    /// The entries that a lane's findings are all known by, each one used; `None`: something is news.
    pub fn explain<'a>(
        &'a self,
        suite: &'a str,
        lane: &'a str,
        release: &'a str,
        findings: &[&Finding],
    ) -> Option<Vec<&'a Entry>> {
        let entries: Vec<&Entry> = self.of(suite, lane, release).collect();
        let mut used: Vec<&Entry> = Vec::new();
        for finding in findings {
            let explains = |entry: &&&Entry| {
                entry.clauses.contains(&finding.clause) && finding.text.contains(&entry.text)
            };
            let entry = entries.iter().find(explains)?;
            if !used.contains(entry) {
                used.push(entry);
            }
        }
        (!used.is_empty()).then_some(used)
    }
}

impl Entry {
    /// `7.2` is of `7.2.12+deb13-cloud-amd64`, and not of `7.20.1`.
    fn is_of(&self, release: &str) -> bool {
        let begins = |kernel: &String| {
            release
                .strip_prefix(kernel.as_str())
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        self.kernels.is_empty() || self.kernels.iter().any(begins)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = r#"
        [[known]]
        suite = "freeze"
        lane = "loop"
        kernels = ["7.2", "7.3.4"]
        clauses = ["hung"]
        text = "FIFREEZE"
        where = "thread x"
        about = "it hangs"
        [[known]]
        suite = "freeze"
        lane = "loop"
        clauses = ["kernel-warning"]
        where = "thread y"
        about = "it warns"
    "#;

    fn known(clauses: &[Clause], release: &str) -> Option<Vec<String>> {
        let known = Known::parse(TEXT, "x").unwrap();
        let finding = |clause: &Clause| Finding::new(*clause, "FIFREEZE hangs".into());
        let findings: Vec<Finding> = clauses.iter().map(finding).collect();
        let findings: Vec<&Finding> = findings.iter().collect();
        let entries = known.explain("freeze", "loop", release, &findings)?;
        Some(entries.iter().map(|entry| entry.place.clone()).collect())
    }

    #[test]
    fn a_finding_is_known_by_lane_kernel_and_clause() {
        use Clause::{Hung, KernelWarning, Lost};
        assert_eq!(known(&[Hung], "7.2.12+deb13").unwrap(), ["thread x"]);
        assert_eq!(known(&[Hung, Hung, KernelWarning], "7.3.4").unwrap(), ["thread x", "thread y"]);
        assert_eq!(known(&[Hung], "7.20.1"), None, "another series");
        assert_eq!(known(&[Hung], "7.3.40"), None, "another release");
        assert_eq!(known(&[KernelWarning], "6.12.1").unwrap(), ["thread y"]);
        assert_eq!(known(&[Hung, Lost], "7.2.12"), None, "one of them is news");
        assert_eq!(known(&[], "7.2.12"), None, "nothing was found");
    }

    #[test]
    fn a_list_that_makes_no_sense_is_told() {
        let error = |from: &str, to: &str| {
            Known::parse(&TEXT.replacen(from, to, 1), "l.toml").unwrap_err().to_string()
        };
        let text = error("\"hung\"", "\"stuck\"");
        assert!(text.starts_with("l.toml: line 6:") && text.contains("stuck"), "{text}");
        assert!(error("[\"hung\"]", "[]").contains("as what does it show"));
        let other = TEXT.replace("FIFREEZE", "umount");
        let known = Known::parse(&other, "x").unwrap();
        let finding = Finding::new(Clause::Hung, "FIFREEZE hangs".into());
        assert_eq!(known.explain("freeze", "loop", "7.2.1", &[&finding]), None, "another hang");
        assert!(Known::load("/nonexistent/l.toml").unwrap_err().to_string().contains("l.toml"));
    }

    #[test]
    fn the_list_that_is_built_in_names_lanes_that_are_there() {
        for entry in Known::load(BUILTIN_NAME).unwrap().entries {
            let suite = super::super::load(&entry.suite).unwrap();
            assert!(suite.lanes.iter().any(|lane| lane.name == entry.lane), "{}", entry.lane);
            assert!(!entry.kernels.is_empty(), "{}: on which kernels was it seen?", entry.lane);
        }
    }
}

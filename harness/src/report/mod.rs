//! What the user sees.
//!
//! - [`terminal`]: progress while it works, then the table and the findings.
//! - `matrix`: the table of several kernels.
//! - [`json`]: everything, for programs.
//! - [`junit`]: for CI servers.
//! - [`github`]: annotations on a workflow's page.
//! - [`summary`]: Markdown, for the page of a CI job.
//! - [`explore`]: the same of an exploration.
//! - [`picture`]: the disk at a cut, drawn.
//! - [`html`]: all of it as a page.

pub mod audit;
pub mod databases;
pub mod explore;
pub mod github;
pub mod html;
pub mod json;
pub mod junit;
mod matrix;
pub mod picture;
pub mod strip;
pub mod summary;
pub mod terminal;

use crate::oracle::{Clause, Finding};
use crate::run::{CutReport, LaneReport};
use std::io;
use std::path::Path;
use tornblk_agent::race::Raced;
use tornblk_proto::NamedWrites;

/// Whole or not at all: half a report would be taken for one.
fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = std::fs::write(path, bytes);
    if written.is_err() && path.is_file() {
        // The error is what matters.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Findings of a lane with the cut that showed them; of the control none.
pub fn findings(lane: &LaneReport) -> impl Iterator<Item = (&CutReport, &Finding)> {
    lane.reports
        .iter()
        .filter(|cut| cut.number != 0)
        .flat_map(|cut| cut.judgement.findings.iter().map(move |finding| (cut, finding)))
}

/// What came of the writes that say what they are; `None`: there was none.
pub fn named_in_words(named: &NamedWrites) -> Option<String> {
    if named.writes == 0 {
        return None;
    }
    let counts = [
        (named.whole, "as they were sent"),
        (named.merged, "merged with others, within the limit"),
        (named.split, "split"),
        (named.merged_beyond_limit, "merged beyond the limit"),
        (named.misaligned, "misaligned"),
        (named.across_boundary, "across a boundary"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{n} {how}")).collect();
    let mut text = format!("named writes: {} arrived: {}", named.writes, counts.join(", "));
    if let Some(first) = named.first.first() {
        text = format!("{text}; the first that is wrong: {first}");
    }
    Some(text)
}

/// What came of races, beside what is wrong: a line each.
pub fn raced_in_words(raced: &Raced) -> Vec<String> {
    let met: Vec<String> =
        raced.reached.iter().map(|(what, times)| format!("{what} {times}")).collect();
    let rounds = format!("{} rounds", raced.rounds);
    let mut lines = match met.as_slice() {
        // It did not come to its end.
        [] if raced.rounds == 0 => Vec::new(),
        [] => vec![rounds],
        met => vec![format!("{rounds}; met: {}", met.join(", "))],
    };
    lines.extend(raced.notes.iter().map(|note| format!("seen: {note}")));
    lines.extend(raced.unsupported.iter().map(|part| format!("not tried: {part}")));
    lines
}

/// "torn: /mnt/a unit 3 (bytes 49152..65536), generation 7", or what the kernel said
pub fn headline(finding: &Finding) -> String {
    if finding.clause == Clause::KernelWarning {
        let said = finding.text.lines().next().unwrap_or_default();
        return format!("{}: {said}", finding.clause);
    }
    let place = if finding.len == 0 {
        finding.path.clone()
    } else {
        let (from, to) = (finding.offset, finding.offset + u64::from(finding.len));
        match finding.timeline.is_empty() {
            true => format!("{} unit {} (bytes {from}..{to})", finding.path, finding.unit),
            // A race tells of bytes, which need not be a unit.
            false => format!("{} bytes {from}..{to}", finding.path),
        }
    };
    match finding.generation {
        Some(generation) => format!("{}: {place}, generation {generation}", finding.clause),
        // Of no file: the text says it all.
        None if place.is_empty() => finding.clause.to_string(),
        None => format!("{}: {place}", finding.clause),
    }
}

/// What the headline does not say.
pub(crate) fn text(finding: &Finding) -> &str {
    match finding.clause {
        Clause::KernelWarning => finding.text.split_once('\n').map_or("", |(_, rest)| rest),
        _ => &finding.text,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use crate::explore::bundle::Judge;
    use crate::explore::session::Kept;
    use crate::explore::{
        Counts as Tried, Cuts, Ended, Explanation, ExploreReport, Failure, Fingerprint, Piece,
        ProfileReport, StateText,
    };
    use crate::oracle::{Cell, Clause, Counts, Finding, Judgement};
    use crate::run::{ControlReport, CutReport, LaneReport, RunReport, Verdict};
    use tornblk_model::event::Seq;

    /// Holds a JUnit report against the schema; where there is no xmllint, that is noted.
    pub(crate) fn check_junit(text: &str) {
        match valid_junit(text) {
            Some(valid) => assert_eq!(valid, Ok(()), "{text}"),
            None => crate::out::note!("SKIPPED: JUnit against its schema: there is no xmllint"),
        }
    }

    fn valid_junit(text: &str) -> Option<Result<(), String>> {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../ci/schema/junit.xsd");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("junit.xml");
        std::fs::write(&file, text).unwrap();
        let mut xmllint = std::process::Command::new("xmllint");
        let output = match xmllint.args(["--noout", "--schema", schema]).arg(&file).output() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            output => output.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Some(if output.status.success() { Ok(()) } else { Err(said) })
    }

    #[test]
    fn the_schema_refuses_what_is_no_report() {
        let good = r#"<testsuites tests="1"><testsuite name="s" tests="1"><testcase name="a"/></testsuite></testsuites>"#;
        check_junit(good);
        for (was, is) in [
            (r#"<testcase name="a"/>"#, "<testcase/>"),
            (r#"tests="1"><testcase"#, r#"tests="one"><testcase"#),
            (r#"<testcase name="a"/>"#, r#"<testcase name="a"><failed/></testcase>"#),
            ("testsuites", "report"),
        ] {
            let bad = good.replace(was, is);
            assert_ne!(bad, good);
            assert!(valid_junit(&bad).is_none_or(|valid| valid.is_err()), "{bad}");
        }
    }

    pub(crate) fn finding() -> Finding {
        let mut strip = vec![Cell::New; 3];
        strip.resize(8, Cell::Old);
        Finding {
            clause: Clause::Torn,
            file: 1,
            path: "/dev/vda".into(),
            unit: 3,
            offset: 49152,
            len: 16384,
            generation: Some(7),
            shown: vec![Some(6), Some(7)],
            durable: Some(6),
            call: "pwritev2(len 16384, offset 49152, 0, O_DIRECT)".into(),
            strip,
            text: "generation 7, in one request that the disk keeps whole, is there only in part: \
                   5 of 8 blocks show generation 6"
                .into(),
            complaint: None,
            recovery: None,
            timeline: Vec::new(),
        }
    }

    fn cut(findings: Vec<Finding>) -> CutReport {
        CutReport {
            number: 2,
            plan: "from write 7 on, when request 1 was executed".into(),
            fired: true,
            seed: 5,
            nonce: 9,
            event: 120,
            state: "req64k/p120:none,+w97.7".into(),
            volatile_writes: 4,
            faults: Vec::new(),
            write: Some((1, 3, 7)),
            named: Default::default(),
            raced: None,
            environment: None,
            judgement: Judgement { findings, ..Judgement::default() },
            folder: Some("/tmp/run/raw/cut-002".into()),
            again: vec!["tornblk repro '/tmp/run/raw/cut-002'".into()],
        }
    }

    fn lane(name: &str, verdict: Verdict, why: Option<&str>) -> LaneReport {
        let red = verdict == Verdict::Violated;
        LaneReport {
            suite: "direct-atomic".into(),
            name: name.into(),
            about: String::new(),
            profile: "req64k".into(),
            front_end: Default::default(),
            kernel: "7.2.12".into(),
            verdict,
            why: why.map(str::to_owned),
            cuts: 4,
            planned: 4,
            at_rest: 0,
            counts: Counts { eligible: 1200, not_eligible: 3, ..Counts::default() },
            complaints_again: 0,
            violations: u64::from(red),
            control: Some(ControlReport {
                fault: "tear-atomic".into(),
                caught: verdict != Verdict::Inconclusive,
                text: "torn".into(),
            }),
            seconds: 12.5,
            reports: if red { vec![cut(vec![finding()])] } else { Vec::new() },
            named: Default::default(),
            raced: None,
            not_seen: Vec::new(),
            volume: None,
            environment: None,
            explored: None,
        }
    }

    /// One lane of each kind.
    pub(crate) fn report() -> RunReport {
        let lanes = vec![
            lane("raw", Verdict::Violated, None),
            lane("xfs-cow", Verdict::Passed, None),
            lane("old", Verdict::Unsupported, Some("RWF_ATOMIC: Operation not supported")),
            lane("weak", Verdict::Inconclusive, Some("its control was not caught")),
            lane("known", Verdict::KnownRed, Some("known: bug 7")),
            lane("sick", Verdict::Error, Some("the guest did not answer")),
        ];
        RunReport {
            version: "0.1.0".into(),
            suites: vec!["direct-atomic".into()],
            options: " direct-atomic".into(),
            chosen: String::new(),
            seed: 1,
            accelerator: "tcg".into(),
            qemu: "7.2.0".into(),
            kernel: "7.2.12".into(),
            kernels: Vec::new(),
            seconds: 75.0,
            exit: RunReport::exit_code(&lanes, &[]),
            folder: Some("/tmp/run".into()),
            lanes,
        }
    }

    fn kept() -> Kept {
        let piece = Piece {
            write: Seq(22),
            offset: 49152,
            len: 16384,
            fua: true,
            atomic: false,
            fragments: 4,
            kept: vec![0, 3],
            calls: Vec::new(),
            text: "write 22 was torn".into(),
        };
        let explanation = Explanation {
            pieces: vec![piece],
            passing: Some(StateText("req16k/p28:all".into())),
            minimal: true,
            ..Explanation::default()
        };
        Kept {
            failure: Failure {
                number: 1,
                state: StateText("req16k/p28:all,-w22.6".into()),
                found: StateText("req16k/p28:r1.1.7".into()),
                profile: "req16k".into(),
                after: Seq(28),
                promises: 3,
                fingerprint: Fingerprint(5),
                findings: vec![finding()],
                explanation,
            },
            bundle: Some("failure-001.tornblk".into()),
            again: 2,
        }
    }

    fn profile(name: &str, verdict: Verdict, why: Option<&str>) -> ProfileReport {
        let red = verdict == Verdict::Violated;
        ProfileReport {
            profile: name.into(),
            counts: Tried {
                states: 900,
                unique: 400,
                judged: 400,
                failed: 3 * u64::from(red),
                unsure: 0,
                points: 25,
            },
            coverage: Cuts { writes: 2, cuts: 12, built: 8, equal: 3 },
            failures: u64::from(red),
            not_shrunk: 0,
            complete: true,
            verdict,
            why: why.map(str::to_owned),
        }
    }

    /// A profile of each kind.
    pub(crate) fn explored() -> ExploreReport {
        ExploreReport {
            version: "0.1.0".into(),
            recording: "/r/disk.recording".into(),
            suite: "s".into(),
            lane: "raw".into(),
            judge: Judge::InPlace,
            strategies: vec!["prefix".into()],
            faults: Vec::new(),
            seed: 1,
            shard: None,
            missing: Vec::new(),
            ended: Some(Ended::Stopped),
            seconds: 2.0,
            verdict: Verdict::Violated,
            why: None,
            exit: 1,
            profiles: vec![
                profile("req16k", Verdict::Violated, None),
                profile("req64k", Verdict::Passed, None),
                profile(
                    "lb512",
                    Verdict::Inconclusive,
                    Some("2 of 400 states could not be judged"),
                ),
            ],
            failures: vec![kept()],
            unsure: vec![("lb512/p3:all".into(), "the guest hung".into())],
            volume: None,
            environment: None,
            pages: None,
            folder: Some("/out dir".into()),
            resume: Some("tornblk explore r --out '/out dir' --resume".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn named_writes_are_told_in_a_line() {
        assert_eq!(named_in_words(&NamedWrites::default()), None);
        let well = NamedWrites { writes: 5, whole: 3, merged: 2, ..NamedWrites::default() };
        let text = named_in_words(&well).unwrap();
        assert_eq!(
            text,
            "named writes: 5 arrived: 3 as they were sent, 2 merged with others, within the limit"
        );
        let first = vec!["split: of a write".to_owned(), "second".to_owned()];
        let torn = NamedWrites { writes: 2, whole: 1, split: 1, first, ..NamedWrites::default() };
        let text = named_in_words(&torn).unwrap();
        assert!(text.contains("1 split; the first that is wrong: split: of a write"), "{text}");
        assert!(!text.contains("second") && !text.contains("merged"), "{text}");
    }
}

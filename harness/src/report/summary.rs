//! What came of it as Markdown, for the page that a CI server shows of a job.

use super::explore::{again, failure};
use super::terminal::{Look, duration, lane_name, write_finding};
use super::{findings, headline};
use crate::explore::ExploreReport;
use crate::run::{LaneReport, RunReport, Verdict};
use std::fmt::Write as _;
use std::time::Duration;

/// Findings of a lane, and failures of an exploration, that are told in full; the rest is counted.
const TOLD: usize = 5;
/// Characters of one finding: servers take a megabyte for a whole job.
const LONGEST: usize = 4000;

const LOOK: Look = Look { colour: false, utf8: true };

/// Of a run of suites.
pub fn run(report: &RunReport) -> String {
    let mut out = String::new();
    let worst = match report.exit {
        0 => "as expected",
        1 => "VIOLATED",
        2 => "could not run",
        130 => "interrupted",
        _ => "inconclusive",
    };
    heading(&mut out, 3, &format!("tornblk run{}: {worst}", report.options));
    let mut about = vec![format!("tornblk {}", report.version)];
    let known = [("QEMU", &report.qemu), ("kernel", &report.kernel)];
    about.extend(known.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k} {v}")));
    if !report.accelerator.is_empty() {
        about.push(report.accelerator.clone());
    }
    about.push(format!("seed {}", report.seed));
    about.push(duration(Duration::from_secs_f64(report.seconds.max(0.0))));
    paragraph(&mut out, &about.join(", "));
    if !report.lanes.is_empty() {
        let tried = if report.lanes.iter().all(by_states) { "states" } else { "eligible" };
        row(&mut out, &["lane", "cuts", tried, "findings", "control", "verdict"]);
        out += "| --- | ---: | ---: | ---: | --- | --- |\n";
    }
    for lane in &report.lanes {
        let control = match &lane.control {
            None => "-".to_owned(),
            Some(c) if c.caught => format!("caught: {}", c.text),
            Some(_) => "not caught".to_owned(),
        };
        let why = lane.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let tried = match by_states(lane) {
            true => lane.explored.as_ref().map_or(0, ExploreReport::unique),
            false => lane.counts.eligible,
        };
        let cells = [
            lane_name(report, lane),
            if lane.is_explored_only() { "-".to_owned() } else { lane.cuts.to_string() },
            tried.to_string(),
            lane.violations.to_string(),
            control,
            format!("{}{why}", strong(lane.verdict)),
        ];
        row(&mut out, &cells.each_ref().map(String::as_str));
    }
    out += "\n";
    for kernel in report.kernels.iter().filter(|kernel| kernel.error.is_some()) {
        let name = if kernel.given.is_empty() { "it" } else { &kernel.given };
        let error = kernel.error.as_deref().unwrap_or_default();
        paragraph(&mut out, &format!("{name} could not be run: {error}"));
    }
    for lane in report.lanes.iter().filter(|lane| lane.verdict == Verdict::Violated) {
        let name = lane_name(report, lane);
        let explored = lane.explored.as_ref().map_or(0, |e| e.failures.len() as u64);
        let mut told = 0;
        for (cut, finding) in findings(lane).take(TOLD) {
            told += 1;
            let title = format!("{name} cut {}: {}", cut.number, headline(finding));
            let shown = written(|out| write_finding(&name, cut, finding, LOOK, out));
            one(&mut out, &title, &shown, cut.again.last());
        }
        let rest = lane.violations.saturating_sub(told + explored);
        if rest > 0 {
            paragraph(&mut out, &format!("And {rest} more in lane {name}, in the report."));
        }
        if let Some(explored) = lane.explored.as_ref().filter(|e| !e.failures.is_empty()) {
            failures(&mut out, explored);
        }
    }
    out
}

/// What it is held against is the crash states of its recording.
fn by_states(lane: &LaneReport) -> bool {
    lane.raced.is_some() || lane.is_explored_only()
}

/// Of an exploration, of a program of one's own, too.
pub fn explored(report: &ExploreReport) -> String {
    let mut out = String::new();
    let what = match (report.suite.as_str(), report.lane.as_str()) {
        ("exec", program) => format!("tornblk run --exec {program}"),
        (_, "") => format!("tornblk explore {}", report.recording.display()),
        (suite, lane) => format!("tornblk explore: {suite} {lane}"),
    };
    let worst = match report.verdict {
        Verdict::Passed => "no finding".to_owned(),
        Verdict::Error => "could not run".to_owned(),
        other => other.to_string(),
    };
    heading(&mut out, 3, &format!("{what}: {worst}"));
    let time = duration(Duration::from_secs_f64(report.seconds.max(0.0)));
    paragraph(&mut out, &format!("tornblk {}, seed {}, {time}", report.version, report.seed));
    if let Some(why) = &report.why {
        paragraph(&mut out, why);
    }
    if !report.profiles.is_empty() {
        row(&mut out, &["disk", "different states", "that fail", "cuts covered", "verdict"]);
        out += "| --- | ---: | ---: | ---: | --- |\n";
    }
    for profile in &report.profiles {
        let cuts = &profile.coverage;
        let covered = match cuts.cuts {
            0 => "-".to_owned(),
            all => format!("{} of {all}", cuts.built + cuts.equal),
        };
        let verdict = match profile.verdict {
            Verdict::Passed => "no finding".to_owned(),
            other => strong(other),
        };
        let why = profile.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let (unique, failed) =
            (profile.counts.unique.to_string(), profile.counts.failed.to_string());
        row(&mut out, &[&profile.profile, &unique, &failed, &covered, &format!("{verdict}{why}")]);
    }
    out += "\n";
    failures(&mut out, report);
    out
}

fn failures(out: &mut String, report: &ExploreReport) {
    for kept in report.failures.iter().take(TOLD) {
        let shown = written(|out| failure(report, kept, LOOK, out));
        let title = shown.lines().next().unwrap_or_default().to_owned();
        one(out, &title, &shown, again(report, kept).as_ref());
    }
    let rest = report.failures.len().saturating_sub(TOLD);
    if rest > 0 {
        paragraph(out, &format!("And {rest} more, in the report."));
    }
}

/// One finding: its title, what the terminal says of it, and the command that shows it again.
fn one(out: &mut String, title: &str, shown: &str, command: Option<&String>) {
    heading(out, 4, title);
    // The title stands above, the command below.
    let lines = shown.lines().skip(1).filter(|line| !line.starts_with("  again:"));
    let text = lines.collect::<Vec<_>>().join("\n");
    fenced(out, "text", &shortened(&text));
    if let Some(command) = command {
        fenced(out, "sh", &here(command));
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    // Memory takes everything.
    let _ = write(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn strong(verdict: Verdict) -> String {
    match verdict {
        Verdict::Passed => verdict.to_string(),
        bad => format!("**{bad}**"),
    }
}

/// Who reads it has what was kept in another place: paths from where the command was given.
fn here(command: &str) -> String {
    match std::env::current_dir() {
        Ok(dir) if dir.parent().is_some() => command.replace(&format!("{}/", dir.display()), ""),
        _ => command.to_owned(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}\n... (the report has all of it)", &text[..at]),
        None => text.to_owned(),
    }
}

fn heading(out: &mut String, level: usize, text: &str) {
    // Into memory: it does not fail.
    let _ = writeln!(out, "{} {}\n", "#".repeat(level), plain(text));
}

fn paragraph(out: &mut String, text: &str) {
    let _ = writeln!(out, "{}\n", plain(text));
}

fn row(out: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| plain(cell).replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

/// A fence that nothing in the text can close.
fn fenced(out: &mut String, language: &str, text: &str) {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = writeln!(out, "{fence}{language}\n{}\n{fence}\n", text.trim_end());
}

/// One line, in which nothing is markup that a program or a kernel said.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            '`' | '_' | '[' | ']' | '~' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_red_run_shows_its_table_strip_state_and_command() {
        let text = run(&crate::report::testing::report());
        for part in [
            "### tornblk run direct-atomic: VIOLATED\n",
            "| lane | cuts | eligible | findings | control | verdict |\n| --- | ---: |",
            "| raw | 4 | 1200 | 1 | caught: torn | **VIOLATED** |\n",
            "#### raw cut 2: torn: /dev/vda unit 3 (bytes 49152..65536), generation 7\n",
            "  blocks ■■■□□□□□  (■ new, □ old)\n",
            "  state  req64k/p120:none,+w97.7\n",
            "```sh\ntornblk repro '/tmp/run/raw/cut-002'\n```\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("again:"), "{text}");
    }

    #[test]
    fn nothing_that_was_said_is_taken_for_markup() {
        assert_eq!(plain("<b>a_b`c`\nd & e"), "&lt;b>a\\_b\\`c\\` d &amp; e");
        let mut out = String::new();
        row(&mut out, &["a|b", "c"]);
        assert_eq!(out, "| a\\|b | c |\n");
        let mut out = String::new();
        fenced(&mut out, "text", "one ```` two");
        assert_eq!(out, "`````text\none ```` two\n`````\n\n");
    }

    #[test]
    fn a_path_below_the_current_folder_is_told_from_there() {
        let dir = std::env::current_dir().unwrap();
        let command = format!("tornblk repro '{}/run/raw/cut-002'", dir.display());
        assert_eq!(here(&command), "tornblk repro 'run/raw/cut-002'");
        assert_eq!(here("tornblk repro /elsewhere/x"), "tornblk repro /elsewhere/x");
    }
}

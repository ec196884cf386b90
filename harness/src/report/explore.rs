//! What the user sees of an exploration: progress, a table of the profiles, the failures explained.

use super::terminal::{Look, duration, typed};
use super::{headline, strip};
use crate::explore::session::Kept;
use crate::explore::{
    Ended, ExploreReport, Failure, PageCounts, Piece, ProfileReport, Progress, Watch,
};
use crate::oracle::Cell;
use crate::out::note;
use crate::run::Verdict;
use comfy_table::{
    CellAlignment, Table,
    presets::{ASCII_BORDERS_ONLY_CONDENSED, UTF8_FULL_CONDENSED},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tornblk_model::crash::size;

/// Failures that are told in full; the rest is counted.
const TOLD: usize = 5;
/// Writes of a failure that are told.
const WRITES: usize = 4;
/// Characters of a state that are shown.
const LONGEST: usize = 160;
/// Between two lines of progress where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// A bar on a terminal; elsewhere a line now and then. On stderr.
#[derive(Debug)]
pub struct Live {
    bar: Option<ProgressBar>,
    look: Look,
    last: Option<Instant>,
}

impl Live {
    pub fn new(look: Look) -> Live {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // A line that went over to the next row would stay there when it changes.
            let template =
                if look.utf8 { "{spinner} {elapsed} {wide_msg}" } else { "{elapsed} {wide_msg}" };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Live { bar, look, last: None }
    }

    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => note!("{text}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Live {
    fn progress(&mut self, profile: &str, n: usize, of: usize, at: &Progress) {
        let line = progress_line(profile, n, of, at);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => {
                if self.last.is_none_or(|last| last.elapsed() >= EVERY) {
                    self.last = Some(Instant::now());
                    note!("{line}");
                }
            }
        }
    }

    fn failure(&mut self, kept: &Kept) {
        let line = self.look.paint(&title(kept), "31");
        match &self.bar {
            Some(bar) => bar.println(line),
            None => note!("{line}"),
        }
    }
}

fn progress_line(profile: &str, n: usize, of: usize, at: &Progress) -> String {
    let c = &at.counts;
    let place = if of > 1 { format!("{profile} ({n} of {of})") } else { profile.to_owned() };
    let left = at.left.map(|left| format!("{} left, ", duration(left))).unwrap_or_default();
    let rate = if at.rate >= 10.0 { format!("{:.0}", at.rate) } else { format!("{:.1}", at.rate) };
    format!(
        "{place}: {left}{} states, {} unique, {} failed, {rate}/s",
        c.states, c.unique, c.failed
    )
}

/// "lb512 failure 1: torn: /dev/vda unit 3 ..."
pub(super) fn title(kept: &Kept) -> String {
    let what = kept.failure.findings.first().map(headline).unwrap_or_default();
    format!("{} failure {}: {what}", kept.failure.profile, kept.failure.number)
}

/// Everything that is known at the end.
///
/// # Errors
/// `out` cannot be written.
pub fn write(report: &ExploreReport, look: Look, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", table(report, look))?;
    for profile in &report.profiles {
        writeln!(out, "{}", said(profile))?;
        let cuts = &profile.coverage;
        if cuts.cuts > 0 && report.faults.is_empty() {
            writeln!(out, "  {}", coverage(profile))?;
        }
    }
    if let Some(pages) = &report.pages {
        writeln!(out, "pages: {}", pages_in_words(pages))?;
    }
    for (state, why) in report.unsure.iter().take(TOLD) {
        writeln!(out, "  not judged: {}: {why}", shortened(state))?;
    }
    for kept in report.failures.iter().take(TOLD) {
        failure(report, kept, look, out)?;
    }
    let (all, beyond) =
        (report.failures.len(), report.profiles.iter().map(|p| p.not_shrunk).sum::<u64>());
    if all > TOLD {
        let rest = all - TOLD;
        let s = if rest == 1 { "" } else { "s" };
        writeln!(out, "and {rest} more failure{s}, in the report")?;
    }
    if beyond > 0 {
        let (s, fail) = if beyond == 1 { ("", "fails") } else { ("s", "fail") };
        writeln!(out, "{beyond} more state{s} {fail}, not shrunk: see --failures")?;
    }
    ending(report, look, out)
}

fn ending(report: &ExploreReport, look: Look, out: &mut dyn Write) -> io::Result<()> {
    if let Some(why) = &report.why {
        let verdict = look.verdict(report.verdict);
        writeln!(out, "{verdict}: {why}")?;
    }
    match report.ended {
        _ if !report.missing.is_empty() => {
            // Where it is not the reason already.
            let absent = report.absent().filter(|absent| report.why.as_ref() != Some(absent));
            absent.map_or(Ok(()), |absent| writeln!(out, "{absent}: this is not all"))?;
        }
        Some(Ended::Complete) => {}
        Some(Ended::States) => writeln!(out, "ended: as many states as --states allows")?,
        Some(Ended::Time) => writeln!(out, "ended: the time was over (--time)")?,
        Some(Ended::Stopped) => writeln!(out, "stopped, with what it had")?,
        None => writeln!(out, "it did not come to its end")?,
    }
    if let Some(folder) = report.folder.as_ref().filter(|f| !f.as_os_str().is_empty()) {
        writeln!(out, "kept in {}", folder.display())?;
    }
    if let Some(command) = &report.resume {
        writeln!(out, "go on: {command}")?;
    }
    match next(report) {
        Some(next) => writeln!(out, "next: {next}"),
        None => Ok(()),
    }
}

/// What to try then, where nothing else says it.
fn next(report: &ExploreReport) -> Option<String> {
    if let Some(kept) = report.failures.first() {
        return again(report, kept).map(|command| format!("{} --shell", typed(&command)));
    }
    // What is one of several lanes has no word of its own.
    let whole = report.verdict == Verdict::Passed && report.ended == Some(Ended::Complete);
    whole.then(|| "another disk (--profile req16k,piece16k), or another --seed".to_owned())
}

/// Nothing is called safe: only what was looked at is said.
/// How many failures; what was not shrunk may be one more, or one of these.
fn different(profile: &ProfileReport) -> String {
    let least = if profile.not_shrunk > 0 { "at least " } else { "" };
    let s = if profile.failures == 1 { "" } else { "s" };
    format!("{least}{} different failure{s}", profile.failures)
}

fn said(profile: &ProfileReport) -> String {
    let ProfileReport { profile: name, counts, .. } = profile;
    let points = match counts.points {
        // A limit is spent on a few states of many of them.
        0 => String::new(),
        n => format!(" ({n} crash points)"),
    };
    let under = format!("in {} states{points}", counts.unique);
    match profile.verdict {
        Verdict::Violated => {
            format!("{name}: {} {under}", different(profile))
        }
        Verdict::Passed => format!("{name}: no finding {under}"),
        _ => {
            let why = profile.why.as_deref().unwrap_or("inconclusive");
            format!("{name}: {why} {under}")
        }
    }
}

/// What was judged, and what was not.
pub(super) fn pages_in_words(pages: &PageCounts) -> String {
    let PageCounts { format, page_size, files, judged, unsound } = pages;
    let s = |n: &u64| if *n == 1 { "" } else { "s" };
    let left_out = match unsound {
        0 => String::new(),
        n => format!(
            "; {n} more left out: by {} checksum not sound before or after, or no page in between",
            if *n == 1 { "its" } else { "their" }
        ),
    };
    format!(
        "{judged} page{} of {files} file{} judged ({format}, {}){left_out}",
        s(judged),
        s(files),
        size::print(*page_size)
    )
}

pub(super) fn coverage(profile: &ProfileReport) -> String {
    let cuts = &profile.coverage;
    let built = format!(
        "for the {} writes that can be torn, each of the {} cuts was built ({}) or proved equal to one \
         that was ({})",
        cuts.writes, cuts.cuts, cuts.built, cuts.equal
    );
    match cuts.missing() {
        0 => built,
        missing => format!("{built}, but for {missing}"),
    }
}

fn verdict(profile: &ProfileReport) -> String {
    match profile.verdict {
        Verdict::Passed => "no finding".to_owned(),
        other => other.to_string(),
    }
}

fn table(report: &ExploreReport, look: Look) -> String {
    let mut table = Table::new();
    table.load_style(if look.utf8 { UTF8_FULL_CONDENSED } else { ASCII_BORDERS_ONLY_CONDENSED });
    table.set_header(["profile", "states", "unique", "failed", "cuts covered", "verdict"]);
    for profile in &report.profiles {
        let cuts = &profile.coverage;
        let covered = match cuts.cuts {
            0 => "-".to_owned(),
            all => format!("{} of {all}", cuts.built + cuts.equal),
        };
        let counts = &profile.counts;
        let failed = match profile.failures {
            n if n == counts.failed => n.to_string(),
            n => format!("{n} ({} states)", counts.failed),
        };
        table.add_row([
            profile.profile.clone(),
            counts.states.to_string(),
            counts.unique.to_string(),
            failed,
            covered,
            verdict(profile),
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Painted afterwards: the columns' widths are those of the plain text.
    let mut rows = report.profiles.iter();
    let lines = table.to_string();
    let painted =
        lines.lines().enumerate().map(|(i, line)| match (i >= 3).then(|| rows.next()).flatten() {
            Some(profile) => {
                let plain = verdict(profile);
                let code = if profile.verdict == Verdict::Violated { "1;31" } else { "33" };
                match (profile.verdict, line.rfind(&plain)) {
                    (Verdict::Passed, _) | (_, None) => line.to_owned(),
                    (_, Some(at)) => {
                        let (end, text) = (at + plain.len(), look.paint(&plain, code));
                        format!("{}{text}{}", &line[..at], &line[end..])
                    }
                }
            }
            None => line.to_owned(),
        });
    painted.collect::<Vec<_>>().join("\n")
}

/// One failure, explained; its first line is what it is called.
pub(super) fn failure(
    report: &ExploreReport,
    kept: &Kept,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let failure = &kept.failure;
    writeln!(out, "{}", look.paint(&title(kept), "1"))?;
    if let Some(finding) = failure.findings.first() {
        writeln!(out, "  {}", finding.text)?;
        if !finding.call.is_empty() {
            writeln!(out, "  call    {}", finding.call)?;
        }
        if !finding.strip.is_empty() {
            let strip = strip::strip(&finding.strip, look.utf8);
            writeln!(out, "  blocks  {strip}  {}", legend(look))?;
        }
        let rest = failure.findings.len() - 1;
        if rest > 0 {
            let s = if rest == 1 { "" } else { "s" };
            writeln!(out, "  and {rest} more finding{s} in this state")?;
        }
    }
    let pieces = &failure.explanation.pieces;
    for piece in pieces.iter().take(WRITES) {
        write_piece(piece, look, out)?;
    }
    if pieces.len() > WRITES {
        let rest = pieces.len() - WRITES;
        writeln!(out, "  and {rest} more write{}", if rest == 1 { "" } else { "s" })?;
    }
    for fault in &failure.explanation.faults {
        writeln!(out, "  fault   {}", shortened(fault))?;
    }
    writeln!(out, "  state   {}", shortened(&failure.state.0))?;
    if !failure.explanation.minimal {
        writeln!(out, "          not minimal: the time for shrinking was over")?;
    }
    match &failure.explanation.passing {
        Some(passing) => writeln!(out, "  passes  {}", shortened(&passing.0))?,
        None => writeln!(out, "  passes  {}", none_near(failure))?,
    }
    match kept.again {
        0 => {}
        1 => writeln!(out, "  one more state comes to the same")?,
        n => writeln!(out, "  {n} more states come to the same")?,
    }
    if let Some(command) = again(report, kept) {
        writeln!(out, "  again:  {command}")?;
    }
    Ok(())
}

/// Why no state near it passes.
pub(super) fn none_near(failure: &Failure) -> &'static str {
    if failure.lost_nothing() {
        "nothing near: all that was sent to the disk is there, so what is missed was never sent, or was sent \
         in an order that the program did not wait for (fsync?)"
    } else {
        "nothing near: everything and nothing persisted both fail"
    }
}

fn legend(look: Look) -> &'static str {
    if look.utf8 { "(■ new, □ old)" } else { "(# new, . old)" }
}

fn write_piece(piece: &Piece, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let flags: Vec<&str> = [(piece.fua, "FUA"), (piece.atomic, "sent as atomic")]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
    let flags = if flags.is_empty() { String::new() } else { format!(" ({})", flags.join(", ")) };
    writeln!(out, "  write   {}{flags}", piece.text)?;
    for call in piece.calls.iter().take(2) {
        let (from, to) = (call.offset, call.offset + call.len);
        writeln!(out, "          {} on {}, its bytes {from}..{to}", call.call, call.path)?;
    }
    if piece.fragments > 1 {
        let cells: Vec<Cell> = (0..piece.fragments)
            .map(|n| if piece.kept.contains(&n) { Cell::New } else { Cell::Old })
            .collect();
        let (there, gone) = if look.utf8 { ('■', '□') } else { ('#', '.') };
        let strip = strip::strip(&cells, look.utf8);
        writeln!(out, "          {strip}  ({there} survived, {gone} lost)")?;
    }
    Ok(())
}

/// The command that shows a failure again.
pub fn again(report: &ExploreReport, kept: &Kept) -> Option<String> {
    let (folder, bundle) = (report.folder.as_ref()?, kept.bundle.as_ref()?);
    let path = folder.join(bundle).display().to_string();
    Some(format!("tornblk repro {}", crate::run::word(&path)))
}

/// The whole of it stands in the report.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text.to_owned(),
    }
}

/// As JSON.
///
/// # Errors
/// The file cannot be written.
pub fn json(report: &ExploreReport, path: &Path) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    super::save(path, &text)
}

/// As JUnit XML: a test case a profile. Violations are failures, what is inconclusive is an error.
///
/// # Errors
/// The file cannot be written.
pub fn junit(report: &ExploreReport, path: &Path) -> io::Result<()> {
    super::save(path, render(report)?.as_bytes())
}

fn render(report: &ExploreReport) -> io::Result<String> {
    let mut out = Report::new("tornblk");
    out.set_time(Duration::from_secs_f64(report.seconds));
    let name = match report.lane.as_str() {
        "" => report.recording.display().to_string(),
        lane => format!("{} {lane}", report.suite),
    };
    let mut suite = TestSuite::new(format!("explore {}", name.trim()));
    for profile in &report.profiles {
        suite.add_test_case(case(report, profile));
    }
    let missing = (!report.missing.is_empty()).then_some("shards");
    // It could not be run: there is no other case that would say so.
    let nothing = report.profiles.is_empty().then_some("exploration");
    if let Some(name) = missing.or(nothing) {
        let why = report.why.clone().unwrap_or_else(|| "nothing was explored".to_owned());
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_type(report.verdict.to_string()).set_message(&*why).set_description(why);
        let mut case = TestCase::new(name, status);
        case.set_classname(class(report));
        suite.add_test_case(case);
    }
    out.add_test_suite(suite);
    out.to_string().map_err(io::Error::other)
}

/// All failures, in plain text.
pub(super) fn failures(report: &ExploreReport) -> String {
    told(report, |_| true)
}

pub(super) fn told(report: &ExploreReport, which: impl Fn(&Kept) -> bool) -> String {
    let mut text = String::new();
    for kept in report.failures.iter().filter(|kept| which(kept)) {
        let mut told = Vec::new();
        // Memory takes everything.
        let _ = failure(report, kept, Look { colour: false, utf8: true }, &mut told);
        text += &String::from_utf8_lossy(&told);
        for finding in kept.failure.findings.iter().skip(1) {
            text += &format!("{}: {}\n{}\n", headline(finding), finding.text, finding.call);
        }
        let state = &kept.failure.state.0;
        if shortened(state) != *state {
            text += &format!("the whole state: {state}\n");
        }
    }
    text
}

/// `tornblk.exec.in-place_sh`: what a server takes for packages and a class.
fn class(report: &ExploreReport) -> String {
    let (suite, lane) = match (report.suite.as_str(), report.lane.as_str()) {
        (_, "") => ("explore", report.recording.file_name().unwrap_or_default().to_string_lossy()),
        ("", lane) => ("explore", lane.into()),
        // A program is a path or a whole command.
        (suite, lane) => (suite, lane.rsplit('/').next().unwrap_or(lane).into()),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
    let lane: String = lane.chars().map(plain).collect();
    format!("tornblk.{suite}.{lane}").trim_end_matches('.').to_owned()
}

fn case(report: &ExploreReport, profile: &ProfileReport) -> TestCase {
    let status = match profile.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Violated => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let text = told(report, |kept| kept.failure.profile == profile.profile);
            status.set_message(different(profile)).set_description(text);
            status
        }
        _ => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            let why = profile.why.clone().unwrap_or_default();
            status.set_type(profile.verdict.to_string()).set_message(&*why).set_description(why);
            status
        }
    };
    let mut case = TestCase::new(profile.profile.as_str(), status);
    case.set_classname(class(report));
    let c = &profile.counts;
    case.set_system_out(format!(
        "{}\n{} states chosen, {} unique, {} crash points, {} judged, seed {}\n{}",
        said(profile),
        c.states,
        c.unique,
        c.points,
        c.judged,
        report.seed,
        coverage(profile)
    ));
    case
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::Counts;
    use crate::oracle::pages::PageFormat;
    use crate::report::testing::explored as report;

    const PLAIN: Look = Look { colour: false, utf8: false };

    fn text(report: &ExploreReport, look: Look) -> String {
        let mut out = Vec::new();
        write(report, look, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pages_are_counted_and_those_left_out_too() {
        let pages = |files, judged, unsound| {
            let format = PageFormat::Innodb;
            let pages = PageCounts { format, page_size: 16384, files, judged, unsound };
            let report = ExploreReport { pages: Some(pages), ..report() };
            let text = text(&report, PLAIN);
            text.lines().find(|line| line.starts_with("pages: ")).unwrap().to_owned()
        };
        assert_eq!(pages(2, 64, 0), "pages: 64 pages of 2 files judged (innodb, 16k)");
        let left_out =
            "; 1 more left out: by its checksum not sound before or after, or no page in between";
        assert_eq!(
            pages(1, 1, 1),
            format!("pages: 1 page of 1 file judged (innodb, 16k){left_out}")
        );
    }

    #[test]
    fn the_report_says_what_was_looked_at_and_how_to_see_it_again() {
        let text = text(&report(), PLAIN);
        for part in [
            "| req16k       900      400   1 (3 states)       11 of 12   VIOLATED     |",
            "| req64k       900      400              0       11 of 12   no finding   |",
            "req16k: 1 different failure in 400 states (25 crash points)",
            "req64k: no finding in 400 states (25 crash points)",
            "lb512: 2 of 400 states could not be judged in 400 states",
            "each of the 12 cuts was built (8) or proved equal to one that was (3), but for 1",
            "not judged: lb512/p3:all: the guest hung",
            "req16k failure 1: torn: /dev/vda unit 3 (bytes 49152..65536), generation 7",
            "write   write 22 was torn (FUA)",
            "#..#  (# survived, . lost)",
            "state   req16k/p28:all,-w22.6",
            "passes  req16k/p28:all",
            "2 more states come to the same",
            "again:  tornblk repro '/out dir/failure-001.tornblk'",
            "stopped, with what it had",
            "go on: tornblk explore r --out '/out dir' --resume",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for never in ["passed", "safe", "\x1b"] {
            assert!(!text.contains(never), "{never}\n{text}");
        }
    }

    #[test]
    fn colour_and_blocks_only_where_they_can_be_seen() {
        let text = text(&report(), Look { colour: true, utf8: true });
        assert!(text.contains("■□□■  (■ survived, □ lost)"), "{text}");
        assert!(text.contains("\x1b[1;31mVIOLATED\x1b[0m"), "{text}");
    }

    #[test]
    fn junit_has_a_case_for_each_profile_and_the_missing_shards() {
        let mut report = report();
        report.missing = vec!["2/3".parse().unwrap()];
        report.why = Some("shard 2/3 is missing".into());
        let text = render(&report).unwrap();
        assert!(text.contains(r#"tests="4""#), "{text}");
        assert!(text.contains(r#"failures="1""#) && text.contains(r#"errors="2""#), "{text}");
        assert!(text.contains("shard 2/3 is missing") && text.contains("no finding in 400 states"));
        assert!(text.contains("tornblk repro") && text.contains("blocks  ■■■□□□□□"), "{text}");
        assert!(text.contains(r#"classname="tornblk.s.raw""#), "{text}");
        crate::report::testing::check_junit(&text);
    }

    #[test]
    fn what_could_not_be_explored_is_an_error_with_its_reason() {
        let mut report = report();
        (report.suite, report.lane) = ("exec".into(), "/x/in-place.sh".into());
        (report.profiles, report.failures) = (Vec::new(), Vec::new());
        (report.verdict, report.exit) = (Verdict::Error, 2);
        report.why = Some("in-place.sh ended with status 3: oh".into());
        let text = render(&report).unwrap();
        assert!(text.contains(r#"tests="1""#) && text.contains(r#"errors="1""#), "{text}");
        assert!(text.contains(">in-place.sh ended with status 3: oh</error>"), "{text}");
        assert!(text.contains(r#"classname="tornblk.exec.in-place_sh""#), "{text}");
        crate::report::testing::check_junit(&text);
        let summary = crate::report::summary::explored(&report);
        assert!(
            summary.starts_with("### tornblk run --exec /x/in-place.sh: could not run\n"),
            "{summary}"
        );
        assert!(summary.contains("in-place.sh ended with status 3: oh"), "{summary}");
    }

    #[test]
    fn a_summary_shows_the_table_the_strip_and_the_command() {
        let text = crate::report::summary::explored(&report());
        for part in [
            "### tornblk explore: s raw: VIOLATED\n",
            "| req16k | 400 | 3 | 11 of 12 | **VIOLATED** |\n",
            "| req64k | 400 | 0 | 11 of 12 | no finding |\n",
            "| lb512 | 400 | 0 | 11 of 12 | **inconclusive**: 2 of 400 states could not be judged |",
            "#### req16k failure 1: torn: /dev/vda unit 3 (bytes 49152..65536), generation 7\n",
            "  blocks  ■■■□□□□□  (■ new, □ old)\n",
            "          ■□□■  (■ survived, □ lost)\n",
            "```sh\ntornblk repro '/out dir/failure-001.tornblk'\n```\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn annotations_name_each_failure_and_what_was_not_judged() {
        let mut out = Vec::new();
        crate::report::github::explored(&report(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("::error title=s raw on req16k::req16k failure 1: torn"),
            "{text}"
        );
        assert!(lines[0].contains("%0A  again:  tornblk repro"), "{text}");
        assert!(lines[1].starts_with("::error title=s raw on lb512::2 of 400 states"), "{text}");
    }

    #[test]
    fn progress_tells_states_rate_and_time_left() {
        let mut at = Progress {
            counts: Counts { states: 12, unique: 9, failed: 1, ..Counts::default() },
            rate: 2.34,
            left: Some(Duration::from_secs(95)),
            ..Progress::default()
        };
        assert_eq!(
            progress_line("lb512", 1, 2, &at),
            "lb512 (1 of 2): 1 min 35 s left, 12 states, 9 unique, 1 failed, 2.3/s"
        );
        (at.rate, at.left) = (20_000.4, None);
        let line = progress_line("lb512", 1, 1, &at);
        assert_eq!(line, "lb512: 12 states, 9 unique, 1 failed, 20000/s");
    }
}

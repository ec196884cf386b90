//! The terminal: progress while it works, then a table, the findings, and what to do next.

use super::{findings, headline, strip, text};
use crate::explore::ExploreReport;
use crate::oracle::Finding;
use crate::out::note;
use crate::run::{CutReport, LaneReport, Phase, Progress, RunReport, Verdict, word};
use comfy_table::{
    CellAlignment, Table,
    presets::{ASCII_BORDERS_ONLY_CONDENSED, UTF8_FULL_CONDENSED},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Findings of a lane that are told in full; the rest is counted.
const TOLD: usize = 3;

/// Steps of a time line that are shown.
const STEPS: usize = 16;

/// Characters of a state or a fault that are shown.
const LONGEST: usize = 160;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub colour: bool,
    pub utf8: bool,
}

impl Look {
    /// Colour only on a terminal and without `NO_COLOR`.
    pub fn detect() -> Look {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Look { colour: io::stdout().is_terminal() && !no_colour, utf8: strip::utf8_locale() }
    }

    pub(super) fn paint(self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn verdict(self, verdict: Verdict) -> String {
        let code = match verdict {
            Verdict::Passed => "32",
            Verdict::Violated => "1;31",
            Verdict::KnownRed | Verdict::Unsupported => "2",
            Verdict::Inconclusive | Verdict::Error => "33",
        };
        self.paint(&verdict.to_string(), code)
    }
}

/// A bar on a terminal; elsewhere a line for every lane and cut, on stderr.
#[derive(Debug)]
pub struct Live {
    bar: Option<ProgressBar>,
    look: Look,
    last: Option<(String, u32)>,
}

impl Live {
    pub fn new(look: Look) -> Live {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(mut style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                if !look.utf8 {
                    style = style.tick_chars("|/-\\ ");
                }
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Live { bar, look, last: None }
    }

    /// Lines on a terminal, too: somebody else writes there.
    pub fn lines(look: Look) -> Live {
        Live { bar: None, look, last: None }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => note!("{line}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Something that is done before the lanes.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => note!("{text}"),
        }
    }
}

impl Progress for Live {
    fn phase(&mut self, at: &Phase<'_>) {
        let line = phase_line(at);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => {
                // A line a cut is enough for a log.
                let place = (at.lane.to_owned(), at.cut);
                if self.last.as_ref() != Some(&place) {
                    note!("{line}");
                    self.last = Some(place);
                }
            }
        }
    }

    fn seen(&mut self, lane: &str, cut: u32, text: &str) {
        let cut = if cut == 0 { "control".to_owned() } else { format!("cut {cut}") };
        self.say(&format!("{lane}, {cut}: {text}"));
    }

    fn cut(&mut self, lane: &str, report: &CutReport) {
        if report.number == 0 {
            return;
        }
        for finding in report.judgement.findings.iter().take(1) {
            let text = format!("{lane}, cut {}: {}", report.number, headline(finding));
            self.say(&self.look.paint(&text, "31"));
        }
    }

    fn lane_done(&mut self, report: &LaneReport) {
        let why = report.why.as_ref();
        let why = why.map(|w| format!(": {}", reason(report.verdict, w))).unwrap_or_default();
        let verdict = self.look.verdict(report.verdict);
        self.say(&format!("{} {verdict} ({:.0} s){why}", report.name, report.seconds));
    }
}

/// The verdict stands before it already.
fn reason(verdict: Verdict, why: &str) -> &str {
    why.strip_prefix(&format!("{verdict}: ")).unwrap_or(why)
}

fn phase_line(at: &Phase<'_>) -> String {
    let cut = match at.cut {
        0 => "control".to_owned(),
        n => format!("cut {n} of {}", at.of),
    };
    let left = at.left.map(|left| format!(", {} left", duration(left))).unwrap_or_default();
    format!("{}: {cut}, {}{left}", at.lane, at.what)
}

pub(super) fn duration(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// Everything that is known at the end.
pub fn write(report: &RunReport, look: Look, out: &mut dyn Write) -> io::Result<()> {
    if report.kernels.len() > 1 {
        if !report.lanes.is_empty() {
            writeln!(out, "{}", super::matrix::table(report, look))?;
        }
        for kernel in &report.kernels {
            if let Some(error) = &kernel.error {
                writeln!(out, "kernel {}: could not be run - {error}", kernel.given)?;
            }
        }
    } else {
        writeln!(out, "{}", table(report, look))?;
    }
    for lane in &report.lanes {
        let name = lane_name(report, lane);
        if let Some(why) = &lane.why {
            writeln!(out, "{name}: {} - {}", lane.verdict, reason(lane.verdict, why))?;
        }
        if lane.cuts < lane.planned && lane.verdict != Verdict::Unsupported {
            let (cuts, planned) = (lane.cuts, lane.planned);
            // Red without a finding: its guest's kernel died.
            let died = lane.verdict == Verdict::Violated && lane.violations == 0;
            let ended = lane.verdict == Verdict::Error || died;
            let what = if ended { "it ended" } else { "the time was over" };
            writeln!(out, "{name}: {what} after {cuts} of {planned} cuts")?;
        }
        for entry in &lane.not_seen {
            writeln!(out, "{name}: passed, though it is known to fail: {entry}")?;
        }
        if lane.complaints_again > 0 {
            writeln!(
                out,
                "{}: complaints of its guests' kernels that were told before in this run: {}",
                name, lane.complaints_again
            )?;
        }
        if lane.at_rest > 0 {
            let (cuts, rest) = (lane.cuts, lane.at_rest);
            writeln!(
                out,
                "{name}: {rest} of {cuts} cuts were made at rest: their moment never came"
            )?;
        }
    }
    for lane in &report.lanes {
        for text in lane.raced.iter().flat_map(super::raced_in_words) {
            writeln!(out, "{}: {text}", lane_name(report, lane))?;
        }
    }
    for lane in &report.lanes {
        let n = &lane.named;
        let wrong = n.split + n.merged_beyond_limit + n.misaligned + n.across_boundary > 0;
        if let Some(text) = super::named_in_words(n).filter(|_| wrong) {
            writeln!(out, "{}: {text}", lane_name(report, lane))?;
        }
    }
    // Of what is known to be red, the reason is enough: `--json` has the rest.
    let told = |l: &&LaneReport| l.violations > 0 && l.verdict != Verdict::KnownRed;
    for lane in report.lanes.iter().filter(told) {
        write_findings(report, lane, look, out)?;
    }
    for lane in &report.lanes {
        // Of a race the table says how many; there is more to tell only where one failed.
        let races = lane.raced.is_some();
        // That a control was caught is said.
        let caught = lane.is_caught();
        let worth = |e: &&ExploreReport| !caught && (!races || e.exit != 0);
        if let Some(explored) = lane.explored.as_ref().filter(worth) {
            let last = if lane.is_explored_only() { "" } else { "last " };
            writeln!(out, "{}: the crash states of its {last}recording", lane_name(report, lane))?;
            super::explore::write(explored, look, out)?;
        }
    }
    if let Some(folder) = &report.folder {
        writeln!(out, "kept in {}", folder.display())?;
    }
    writeln!(out, "next: {}", typed(&next(report)))
}

/// Where there are several kernels, a lane is told with its own.
pub(super) fn lane_name(report: &RunReport, lane: &LaneReport) -> String {
    if report.kernels.len() > 1 {
        format!("{} on {}", lane.name, lane.kernel)
    } else {
        lane.name.clone()
    }
}

/// A command as the user can type it here: a program that was called by its path is not in `PATH`.
pub(crate) fn typed(command: &str) -> String {
    let called = std::env::args().next().unwrap_or_default();
    match command.strip_prefix("tornblk ") {
        Some(rest) if called.ends_with("/tornblk") => format!("{} {rest}", word(&called)),
        _ => command.to_owned(),
    }
}

fn table(report: &RunReport, look: Look) -> String {
    // Names and words as short as this, so that a line fits into 80 columns.
    let mut table = Table::new();
    table.load_style(if look.utf8 { UTF8_FULL_CONDENSED } else { ASCII_BORDERS_ONLY_CONDENSED });
    // What a race is held against is the crash states of its recording.
    let by_states = |lane: &LaneReport| lane.raced.is_some() || lane.is_explored_only();
    let tried = if report.lanes.iter().all(by_states) { "states" } else { "eligible" };
    table.set_header(["lane", "cuts", tried, "findings", "control", "verdict"]);
    for lane in &report.lanes {
        let counts = &lane.counts;
        let explored = lane.explored.as_ref().map_or(0, ExploreReport::unique);
        let tried = match counts.not_eligible {
            _ if by_states(lane) => explored.to_string(),
            0 => counts.eligible.to_string(),
            n => format!("{}/{}", counts.eligible, counts.eligible + n),
        };
        let control = match &lane.control {
            None => "-".to_owned(),
            Some(c) if c.caught => format!("caught: {}", c.text),
            Some(_) => "not caught".to_owned(),
        };
        table.add_row([
            lane.name.clone(),
            if lane.is_explored_only() { "-".to_owned() } else { lane.cuts.to_string() },
            tried,
            lane.violations.to_string(),
            control,
            lane.verdict.to_string(),
        ]);
    }
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Painted afterwards: the columns' widths are those of the plain text.
    let mut lanes = report.lanes.iter();
    let header = 3;
    let lines = table.to_string();
    let painted = lines.lines().enumerate().map(|(i, line)| {
        match (i >= header).then(|| lanes.next()).flatten() {
            Some(lane) => paint_last(line, &lane.verdict.to_string(), &look.verdict(lane.verdict)),
            None => line.to_owned(),
        }
    });
    painted.collect::<Vec<_>>().join("\n")
}

pub(super) fn paint_last(line: &str, plain: &str, painted: &str) -> String {
    match line.rfind(plain) {
        Some(at) => format!("{}{painted}{}", &line[..at], &line[at + plain.len()..]),
        None => line.to_owned(),
    }
}

fn write_findings(
    report: &RunReport,
    lane: &LaneReport,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut told = 0;
    let mut last = None;
    for (cut, finding) in findings(lane).take(TOLD) {
        told += 1;
        write_finding(&lane_name(report, lane), cut, finding, look, out)?;
        last = Some(cut);
    }
    let explored = lane.explored.as_ref().map_or(0, |e| e.failures.len() as u64);
    let rest = lane.violations.saturating_sub(told as u64 + explored);
    if rest > 0 {
        writeln!(out, "  and {rest} more in lane {}", lane_name(report, lane))?;
    }
    if let Some(cut) = last {
        for command in cut.again.iter().filter(|c| c.len() <= LONGEST * 2) {
            writeln!(out, "  again: {}", typed(command))?;
        }
    }
    Ok(())
}

pub(super) fn write_finding(
    lane: &str,
    cut: &CutReport,
    finding: &Finding,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let title = format!("{lane} cut {}: {}", cut.number, headline(finding));
    writeln!(out, "{}", look.paint(&title, "1"))?;
    writeln!(out, "  {}", text(finding))?;
    if !finding.call.is_empty() {
        writeln!(out, "  call   {}", finding.call)?;
    }
    if !finding.strip.is_empty() {
        let (new, old) = if look.utf8 { ('■', '□') } else { ('#', '.') };
        let strip = strip::strip(&finding.strip, look.utf8);
        writeln!(out, "  blocks {strip}  ({new} new, {old} old)")?;
    }
    writeln!(out, "  cut    {}, event {}", cut.plan, cut.event)?;
    if !cut.state.is_empty() {
        writeln!(out, "  state  {}", shortened(&cut.state))?;
    }
    for fault in &cut.faults {
        writeln!(out, "  fault  {}", shortened(fault))?;
    }
    if !finding.timeline.is_empty() {
        writeln!(out, "  what happened:")?;
    }
    for line in last(&finding.timeline) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// The end of a time line: the whole of it stands in the report.
fn last(timeline: &[String]) -> &[String] {
    &timeline[timeline.len().saturating_sub(STEPS)..]
}

/// The whole of it stands in the report.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text.to_owned(),
    }
}

/// The command to try next.
fn next(report: &RunReport) -> String {
    let again = format!("tornblk run{}", report.options);
    let red = report.lanes.iter().find(|l| l.verdict == Verdict::Violated);
    if let Some(command) =
        red.and_then(|l| findings(l).next()).and_then(|(cut, _)| cut.again.first())
    {
        return command.clone();
    }
    let explored = red.and_then(|lane| lane.explored.as_ref());
    let kept = explored.and_then(|e| Some((e, e.failures.first()?)));
    if let Some(command) = kept.and_then(|(e, kept)| super::explore::again(e, kept)) {
        return command;
    }
    let stuck = |l: &&LaneReport| matches!(l.verdict, Verdict::Inconclusive | Verdict::Error);
    // Red without a finding: its guest's kernel died.
    if let Some(lane) = red.or_else(|| report.lanes.iter().find(stuck)) {
        let folder = match &report.folder {
            Some(folder) => {
                let kernel = if report.kernels.len() > 1 { lane.kernel.as_str() } else { "" };
                word(&folder.join(kernel).join(&lane.name).display().to_string())
            }
            None => "the lane's folder".to_owned(),
        };
        return match lane.verdict {
            _ if lane.is_explored_only() => format!("look into {folder}"),
            Verdict::Error | Verdict::Violated => format!("look into {folder}: consoles and logs"),
            _ => format!("{again} --lane {} --crashes {}", lane.name, 4 * lane.planned.max(1)),
        };
    }
    let next_seed = report.seed.wrapping_add(1);
    if report.exit == 0 && report.lanes.iter().all(LaneReport::is_explored_only) {
        let chosen = &report.chosen;
        return match again.contains(" --profile ") {
            true => format!("{again}{chosen} --seed {next_seed}"),
            false => format!("{again}{chosen} --profile lb4k,piece16k (other disks)"),
        };
    }
    if report.exit == 0 && report.lanes.iter().all(|lane| lane.raced.is_some()) {
        return format!("{again}{} --seed {next_seed}, or --soak (hours)", report.chosen);
    }
    if report.exit == 0 {
        return format!(
            "{again}{} --fault tear-atomic (see it notice), or --soak --seed {}",
            report.chosen, next_seed
        );
    }
    match report.lanes.iter().find(|lane| lane.verdict == Verdict::Unsupported) {
        Some(lane) => format!("another --kernel or --qemu, on which {} can be tried", lane.name),
        None => "the same again, once it can be run".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::testing::report;

    const PLAIN: Look = Look { colour: false, utf8: false };

    fn text(report: &RunReport, look: Look) -> String {
        let mut out = Vec::new();
        write(report, look, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_as_drawn_here() {
        let expected = "\
+---------------------------------------------------------------------+
| lane      cuts    eligible   findings   control        verdict      |
+=====================================================================+
| raw          4   1200/1203          1   caught: torn   VIOLATED     |
| xfs-cow      4   1200/1203          0   caught: torn   passed       |
| old          4   1200/1203          0   caught: torn   unsupported  |
| weak         4   1200/1203          0   not caught     inconclusive |
| known        4   1200/1203          0   caught: torn   known        |
| sick         4   1200/1203          0   caught: torn   error        |
+---------------------------------------------------------------------+";
        assert_eq!(table(&report(), PLAIN), expected);
    }

    #[test]
    fn a_violation_says_everything_that_is_needed() {
        let text = text(&report(), PLAIN);
        for part in [
            "raw cut 2: torn: /dev/vda unit 3 (bytes 49152..65536), generation 7",
            "call   pwritev2(len 16384, offset 49152, 0, O_DIRECT)",
            "blocks ###.....  (# new, . old)",
            "state  req64k/p120:none,+w97.7",
            "again: tornblk repro '/tmp/run/raw/cut-002'",
            "old: unsupported - RWF_ATOMIC",
            "known: known - bug 7",
            "kept in /tmp/run",
            "next: tornblk repro",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn colour_and_blocks_only_where_they_can_be_seen() {
        let text = text(&report(), Look { colour: true, utf8: true });
        assert!(text.contains("■■■□□□□□") && text.contains("\x1b[1;31mVIOLATED\x1b[0m"));
    }

    #[test]
    fn long_states_are_shortened_and_not_offered_for_typing() {
        let mut report = report();
        let cut = &mut report.lanes[0].reports[0];
        cut.state = format!("lb512/p1:all{}", ",-w1".repeat(200));
        cut.again.push(format!("tornblk recording export r --state {}", cut.state));
        let text = text(&report, PLAIN);
        assert!(text.lines().all(|l| l.len() < 200), "{text}");
        assert!(text.contains("-w1,-w1 ..."), "{text}");
    }

    #[test]
    fn many_findings_are_counted_not_listed() {
        let mut report = report();
        let findings = &mut report.lanes[0].reports[0].judgement.findings;
        *findings = vec![findings[0].clone(); 40];
        report.lanes[0].violations = 40;
        let text = text(&report, PLAIN);
        assert!(text.contains("and 37 more in lane raw"), "{text}");
    }

    #[test]
    fn progress_names_lane_phase_cut_and_time_left() {
        let at = Phase {
            lane: "raw",
            what: "writing",
            cut: 2,
            of: 4,
            left: Some(Duration::from_secs(95)),
        };
        assert_eq!(phase_line(&at), "raw: cut 2 of 4, writing, 1 min 35 s left");
        let at = Phase { cut: 0, left: None, ..at };
        assert_eq!(phase_line(&at), "raw: control, writing");
        assert_eq!(duration(Duration::from_secs(3700)), "1 h 1 min");
    }
}

//! The answer: made of what was seen, and saying no more than that.

use super::promise;
use super::{Answer, Tone};
use crate::explore::session::Kept;
use crate::explore::{ExploreReport, ProfileReport};
use crate::oracle::{Clause, Finding};
use crate::report::picture::size;
use crate::report::{findings, text};
use crate::run::{CAUGHT, LaneReport, RunReport, Verdict};

/// How a broken promise is told of a block.
fn was(clause: Clause) -> &'static str {
    match clause {
        Clause::Torn => "was torn",
        Clause::Lost => "was lost though it had been acknowledged as durable",
        Clause::Stale => "showed old content though newer was durable",
        Clause::Misdirected => "was found in the wrong place",
        Clause::Foreign => "held what nobody wrote",
        Clause::Corrupt => "was corrupt",
        Clause::Unreadable => "could not be read",
        Clause::Unrecoverable => "belonged to a file system that could not be recovered",
        Clause::Inconsistent => "was found unsound by the checker",
        _ => "broke a promise",
    }
}

/// What the finding is about: "16 KiB writes to /dev/vda".
fn what(finding: Option<&Finding>, lane: &str) -> String {
    match finding {
        Some(f) if f.len > 0 && !f.path.is_empty() => {
            format!("{} writes to {}", size(f.len.into()), f.path)
        }
        Some(f) if f.clause == Clause::Inconsistent => format!("what {lane} writes is"),
        Some(f) if f.clause == Clause::Unrecoverable => "the file system is".to_owned(),
        _ => format!("what {lane} writes is"),
    }
}

/// "16 KiB writes to /dev/vda are not protected"
fn not_protected(finding: Option<&Finding>, lane: &str) -> String {
    let what = what(finding, lane);
    match what.strip_suffix(" is") {
        Some(one) => format!("{one} is not protected"),
        None => format!("{what} are not protected"),
    }
}

/// "On a disk of profile req16k (it keeps ...)".
fn on(profile: &str) -> String {
    match promise::words(profile).as_str() {
        "" => format!("On a disk of profile {profile}"),
        words => format!("On a disk of profile {profile}, which {words}"),
    }
}

fn states(n: u64) -> String {
    if n == 1 { "1 different state".to_owned() } else { format!("{n} different states") }
}

/// Why the first failure fails: the write that is to blame.
fn because(kept: &Kept) -> String {
    let failure = &kept.failure;
    let Some(piece) = failure.explanation.pieces.first() else {
        return failure.findings.first().map(|f| first_line(text(f))).unwrap_or_default();
    };
    let mut text = piece.text.clone();
    if let Some(call) = piece.calls.first() {
        text += &format!(" ({} on {})", call.call, call.path);
    }
    match failure.explanation.pieces.len() {
        0 | 1 => text,
        n => format!("{text}, and of {} more", counted(n as u64 - 1, "write")),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A sentence for each disk.
pub(super) fn of_exploration(report: &ExploreReport) -> Vec<Answer> {
    let mut answers: Vec<Answer> =
        report.profiles.iter().map(|profile| of_profile(report, profile)).collect();
    if let Some(absent) = report.absent() {
        let text = format!("Only a part was explored: {absent}.");
        answers.push(Answer { tone: Tone::Unclear, text });
    }
    if answers.is_empty() {
        let text = report.why.clone().unwrap_or_else(|| "nothing was explored".to_owned());
        answers.push(Answer { tone: Tone::Unclear, text: sentence(&text) });
    }
    answers
}

fn of_profile(report: &ExploreReport, profile: &ProfileReport) -> Answer {
    let on = on(&profile.profile);
    let counts = &profile.counts;
    let lane = match report.lane.as_str() {
        "" => "this recording",
        lane => lane,
    };
    let faults = match report.faults.as_slice() {
        [] => String::new(),
        faults => format!(" With {} on purpose:", faults.join(" and ")),
    };
    match profile.verdict {
        Verdict::Violated => {
            let own = |kept: &&Kept| kept.failure.profile == profile.profile;
            let first = report.failures.iter().find(own);
            let finding = first.and_then(|kept| kept.failure.findings.first());
            let came = match finding {
                Some(f) if f.len > 0 => format!("a block {}", was(f.clause)),
                Some(f) if f.clause == Clause::Inconsistent => {
                    "the checker found the disk unsound".to_owned()
                }
                Some(f) if f.clause == Clause::Unrecoverable => {
                    "the file system could not be recovered".to_owned()
                }
                _ => "a promise was broken".to_owned(),
            };
            let n = counts.failed.max(profile.failures);
            let because = first.map(because).filter(|text| !text.is_empty());
            let because = because.map(|text| format!(", because {text}")).unwrap_or_default();
            let fail = if n == 1 { "fails" } else { "fail" };
            let text = format!(
                "{on},{faults} {}: {n} of {} {fail}. In the first, {came}{because}.",
                not_protected(finding, lane),
                states(counts.unique)
            );
            Answer { tone: Tone::Bad, text }
        }
        Verdict::Passed => {
            let cuts = match (profile.coverage.cuts, profile.coverage.missing()) {
                (0, _) => String::new(),
                (all, missing) if missing == all => {
                    format!(", none of the {all} cuts of its writes among them")
                }
                (all, 0) => format!(", each of the {all} cuts of its writes among them"),
                (all, missing) => {
                    format!(", {} of the {all} cuts of its writes among them", all - missing)
                }
            };
            let ended = match profile.complete {
                true => "",
                false => " Not all that was asked for was tried.",
            };
            let text = format!(
                "{on}, no finding in {} of {lane} at {} of the power{cuts}.{ended} This is not a proof.",
                states(counts.unique),
                counted(counts.points, "cut")
            );
            Answer { tone: Tone::Nothing, text }
        }
        _ => {
            let why = profile.why.as_deref().unwrap_or("it is inconclusive");
            let text = format!(
                "{on}, it cannot be told whether {lane} is protected: {why}, in {}.",
                states(counts.unique)
            );
            Answer { tone: Tone::Unclear, text }
        }
    }
}

/// A sentence for each lane that is not as all others, and one for those of which there is nothing to say.
pub(super) fn of_run(report: &RunReport) -> Vec<Answer> {
    let several = report.kernels.len() > 1;
    let name = |lane: &LaneReport| match several {
        true => format!("{} on {}", lane.name, lane.kernel),
        false => lane.name.clone(),
    };
    let of = |verdict| report.lanes.iter().filter(move |lane| lane.verdict == verdict);
    let mut answers = Vec::new();
    for lane in of(Verdict::Violated) {
        answers.push(violated(lane, &name(lane)));
    }
    let unclear = |lane: &LaneReport, how: &str, unsaid: &str| {
        let why = lane.why.as_deref().unwrap_or(unsaid);
        Answer { tone: Tone::Unclear, text: format!("Lane {} {how}: {why}.", name(lane)) }
    };
    for (verdict, how, unsaid) in [
        (Verdict::Error, "could not be run", "it says no more"),
        (Verdict::Inconclusive, "proves nothing", "it is inconclusive"),
        (Verdict::KnownRed, "is red, and that is known", "known"),
    ] {
        answers.extend(of(verdict).map(|lane| unclear(lane, how, unsaid)));
    }
    let passed: Vec<&LaneReport> = of(Verdict::Passed).filter(|lane| !lane.is_caught()).collect();
    if !passed.is_empty() {
        answers.push(nothing_found(&passed, &name));
    }
    for lane in of(Verdict::Passed).filter(|lane| lane.is_caught()) {
        let text = format!("{}: {CAUGHT}.", name(lane));
        answers.push(Answer { tone: Tone::Nothing, text });
    }
    let unsupported = of(Verdict::Unsupported);
    answers
        .extend(unsupported.map(|lane| unclear(lane, "cannot be tried here", "it says no more")));
    for kernel in &report.kernels {
        if let Some(error) = &kernel.error {
            let text = format!("Kernel {} could not be run: {error}.", kernel.given);
            answers.push(Answer { tone: Tone::Unclear, text });
        }
    }
    if answers.is_empty() {
        let text = "Nothing was run.".to_owned();
        answers.push(Answer { tone: Tone::Unclear, text });
    }
    answers
}

fn violated(lane: &LaneReport, name: &str) -> Answer {
    let on = on(&lane.profile);
    let first = findings(lane).next();
    let explored = lane.explored.as_ref().and_then(|e| e.failures.first());
    let finding = first
        .map(|(_, finding)| finding)
        .or(explored.and_then(|kept| kept.failure.findings.first()));
    let Some(finding) = finding else {
        let why = lane.why.as_deref().unwrap_or("its guest's kernel died");
        return Answer { tone: Tone::Bad, text: format!("Lane {name} failed: {why}.") };
    };
    if !finding.clause.is_of_the_disk() {
        let said = crate::report::headline(finding);
        let n = counted(lane.violations, "finding");
        let text =
            format!("Lane {name}: {n} in {}; first {said}.", counted(lane.cuts.into(), "cut"));
        return Answer { tone: Tone::Bad, text };
    }
    let because = match first {
        Some(_) => first_line(text(finding)),
        None => explored.map(because).unwrap_or_default(),
    };
    let states = lane.explored.as_ref().map_or(0, ExploreReport::unique);
    let cuts = format!("{} of the power", counted(lane.cuts.into(), "cut"));
    let tried = match states {
        0 => cuts,
        n if lane.is_explored_only() => self::states(n),
        n => format!("{cuts} and {}", self::states(n)),
    };
    // A file, or the disk as a whole.
    let whole = matches!(finding.clause, Clause::Inconsistent | Clause::Unrecoverable);
    let what = if whole { "the disk" } else { "a block" };
    // The words of a fault begin with its name.
    let fault = first.and_then(|(cut, _)| cut.faults.first());
    let fault = fault.and_then(|words| words.split([',', ':']).next());
    let on = match fault {
        Some(fault) => format!("{on} but lies on purpose ({fault})"),
        None => on,
    };
    let text = format!(
        "{on}, {} (lane {name}): {} in {tried}. In the first, {what} {}, because {because}.",
        not_protected(Some(finding), &lane.name),
        counted(lane.violations, "finding"),
        was(finding.clause)
    );
    Answer { tone: Tone::Bad, text }
}

fn nothing_found(lanes: &[&LaneReport], name: &dyn Fn(&LaneReport) -> String) -> Answer {
    let cuts: u64 = lanes.iter().map(|lane| u64::from(lane.cuts)).sum();
    let states: u64 =
        lanes.iter().filter_map(|l| l.explored.as_ref()).map(ExploreReport::unique).sum();
    let eligible: u64 = lanes.iter().map(|lane| lane.counts.eligible).sum();
    let names: Vec<String> = lanes.iter().map(|lane| name(lane)).collect();
    let s = if names.len() == 1 { "" } else { "s" };
    let mut seen = Vec::new();
    if cuts > 0 || states == 0 {
        seen.push(format!("{} of the power", counted(cuts, "cut")));
    }
    if states > 0 {
        seen.push(self::states(states));
    }
    let mut seen = seen.join(" and ");
    if eligible > 0 {
        seen += &format!(", with {} that had to be whole", counted(eligible, "write"));
    }
    let survived = lanes.iter().filter_map(|lane| lane.why.as_ref()).next();
    let survived = survived.map(|why| format!(" ({why})")).unwrap_or_default();
    let text = format!(
        "No finding in lane{s} {}: {seen}{survived}. This is not a proof.",
        names.join(", ")
    );
    Answer { tone: Tone::Nothing, text }
}

/// With a great letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

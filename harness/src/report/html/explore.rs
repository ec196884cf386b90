//! The page of an exploration.

use super::{Fact, Page, Shown, TOLD, Table, Tone, answer, environment, promise};
use crate::explore::session::Kept;
use crate::explore::{Ended, ExploreReport, ProfileReport};
use crate::report::explore::{again, coverage, none_near, pages_in_words, title};
use crate::report::picture::{NoPicture, Picture};
use crate::report::terminal::typed;
use crate::report::{headline, text};
use crate::run::Verdict;

/// `pictures`: of its failures, in their order; of those that are missing there is none.
pub fn of_exploration(report: &ExploreReport, pictures: Vec<Result<Picture, NoPicture>>) -> Page {
    let name = match (report.suite.as_str(), report.lane.as_str()) {
        (_, "") => report.recording.display().to_string(),
        ("exec", lane) => lane.to_owned(),
        (suite, lane) => format!("{suite} {lane}"),
    };
    let mut commands = Vec::new();
    if let Some(resume) = &report.resume {
        commands.push(("Go on from here".to_owned(), typed(resume)));
    }
    Page {
        title: format!("tornblk: crash states of {name}"),
        answer: answer::of_exploration(report),
        tables: vec![table(report)],
        notes: notes(report),
        shown: shown(report, pictures),
        more: (report.failures.len() as u64).saturating_sub(TOLD as u64)
            + report.profiles.iter().map(|p| p.not_shrunk).sum::<u64>(),
        environment: facts(report),
        commands,
    }
}

pub(super) fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Violated => Tone::Bad,
        Verdict::Passed => Tone::Nothing,
        Verdict::KnownRed | Verdict::Inconclusive | Verdict::Unsupported | Verdict::Error => {
            Tone::Unclear
        }
    }
}

pub(super) fn table(report: &ExploreReport) -> Table {
    let row = |p: &ProfileReport| {
        let c = &p.counts;
        let covered = match p.coverage.cuts {
            0 => "none".to_owned(),
            all => format!("{} of {all}", p.coverage.built + p.coverage.equal),
        };
        let verdict = match p.verdict {
            Verdict::Passed => "no finding".to_owned(),
            other => other.to_string(),
        };
        let cells = [
            p.profile.clone(),
            promise::words(&p.profile),
            c.points.to_string(),
            c.states.to_string(),
            c.unique.to_string(),
            c.failed.to_string(),
            p.failures.to_string(),
            covered,
            verdict,
        ];
        (tone(p.verdict), cells.to_vec())
    };
    Table {
        caption: "Each disk, and what came of it".to_owned(),
        head: vec![
            "profile",
            "what the disk promises",
            "cuts of the power",
            "states chosen",
            "different",
            "failed",
            "different failures",
            "cuts of writes covered",
            "verdict",
        ],
        rows: report.profiles.iter().map(row).collect(),
    }
}

fn notes(report: &ExploreReport) -> Vec<String> {
    let mut notes: Vec<String> =
        report.profiles.iter().map(|p| format!("{}: {}.", p.profile, coverage(p))).collect();
    notes.extend(match report.ended {
        Some(Ended::Complete) => None,
        Some(Ended::States) => {
            Some("It ended at the number of states that was asked for.".to_owned())
        }
        Some(Ended::Time) => Some("It ended when the time was up.".to_owned()),
        Some(Ended::Stopped) => Some("It was interrupted.".to_owned()),
        None => Some("It broke off.".to_owned()),
    });
    for (state, why) in &report.unsure {
        notes.push(format!("Not judged: {state}: {why}."));
    }
    notes
}

pub(super) fn shown(
    report: &ExploreReport,
    pictures: Vec<Result<Picture, NoPicture>>,
) -> Vec<Shown> {
    let none = || Err(NoPicture("its recording could not be looked at".to_owned()));
    let pictures = pictures.into_iter().chain(std::iter::repeat_with(none));
    report.failures.iter().zip(pictures).take(TOLD).map(|(k, p)| one(report, k, p)).collect()
}

fn one(report: &ExploreReport, kept: &Kept, picture: Result<Picture, NoPicture>) -> Shown {
    let failure = &kept.failure;
    let explanation = &failure.explanation;
    let finding = failure.findings.first();
    let mut facts = vec![
        Fact::new("disk", format!("{}: {}", failure.profile, promise::words(&failure.profile))),
        Fact::new("power cut", format!("right after event {}", failure.after)),
    ];
    if kept.again > 0 {
        facts.push(Fact::new("comes again", format!("in {} more states", kept.again)));
    }
    if !explanation.minimal {
        facts.push(Fact::new("shrunk", "not to the end: the time for it was over"));
    }
    if explanation.passing.is_none() {
        facts.push(Fact::new("nearest state that passes", none_near(failure)));
    }
    facts.extend(explanation.faults.iter().map(|fault| Fact::new("on purpose", fault.as_str())));
    facts.extend(
        explanation
            .violations
            .iter()
            .map(|clause| Fact::new("broken by the disk", clause.as_str())),
    );
    let blame = explanation.pieces.iter().map(|piece| {
        let calls: Vec<String> = piece
            .calls
            .iter()
            .take(2)
            .map(|c| format!("{} {}, bytes {}..{}", c.call, c.path, c.offset, c.offset + c.len))
            .collect();
        match calls.as_slice() {
            [] => piece.text.clone(),
            calls => format!("{}: {}", piece.text, calls.join("; ")),
        }
    });
    Shown {
        place: title(kept).split(':').next().unwrap_or_default().to_owned(),
        headline: finding.map(headline).unwrap_or_default(),
        text: finding.map(|f| text(f).to_owned()).unwrap_or_default(),
        call: finding.map(|f| f.call.clone()).unwrap_or_default(),
        strip: finding.map(|f| f.strip.clone()).unwrap_or_default(),
        picture,
        facts,
        blame: blame.collect(),
        timeline: finding.map(|f| f.timeline.clone()).unwrap_or_default(),
        found: (failure.found != failure.state).then(|| failure.found.0.clone()),
        state: failure.state.0.clone(),
        passing: explanation.passing.as_ref().map(|state| state.0.clone()),
        others: failure.findings.iter().skip(1).take(20).map(headline).collect(),
        commands: again(report, kept).map(|command| typed(&command)).into_iter().collect(),
    }
}

fn facts(report: &ExploreReport) -> Vec<(String, Vec<Fact>)> {
    let mut tool = vec![
        Fact::new("tornblk", report.version.as_str()),
        Fact::new("recording", report.recording.display().to_string()),
        Fact::new("suite", report.suite.as_str()),
        Fact::new("lane or program", report.lane.as_str()),
        Fact::new(
            "judged",
            match report.judge {
                crate::explore::bundle::Judge::InPlace => "in place, without a guest",
                crate::explore::bundle::Judge::Guest => "by a guest that mounts each state",
            },
        ),
        Fact::new("strategies", report.strategies.join(", ")),
        Fact::new("seed", report.seed.to_string()),
        Fact::new("took", format!("{:.1} s", report.seconds)),
    ];
    if let Some(pages) = &report.pages {
        tool.push(Fact::new("pages", pages_in_words(pages)));
    }
    if let Some(shard) = report.shard {
        tool.push(Fact::new("shard", shard.to_string()));
    }
    if !report.faults.is_empty() {
        tool.push(Fact::new("faults on purpose", report.faults.join(", ")));
    }
    let e = report.environment.as_ref();
    vec![
        ("This report".to_owned(), tool),
        ("Where it was recorded".to_owned(), environment::machine(e)),
        ("The disk in the guest".to_owned(), environment::disk(report.volume.as_ref(), e)),
    ]
}

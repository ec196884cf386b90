#![allow(clippy::unwrap_used)]

use super::*;
use crate::report::picture::{About, Scene};
use crate::report::testing::{explored, report};
use crate::run::{RunReport, Verdict};
use roxmltree::{Document, Node, ParsingOptions};
use tornblk_model::crash::History;
use tornblk_model::event::{Disk, Event, Op, Payload, Seq, Submit};

fn parse(text: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn all<'a>(tree: &'a Document<'_>, name: &str) -> Vec<Node<'a, 'a>> {
    tree.root().descendants().filter(|n| n.tag_name().name() == name).collect()
}

fn words(node: Node<'_, '_>) -> String {
    node.descendants().filter_map(|n| n.text().filter(|_| n.is_text())).collect()
}

/// As large as they get: a write that is torn in every other block.
fn picture() -> Picture {
    let disk = Disk { capacity: 1 << 20, lb_size: 512 };
    let op = Op::Write {
        offset: 0,
        len: 256 << 10,
        fua: false,
        atomic: false,
        payload: Payload::default(),
    };
    let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op };
    let events = vec![(Seq(0), Event::Submit(submit))];
    let history = History::new(disk, events.iter().cloned()).unwrap();
    let scene = Scene { history: &history, events: &events, explain: &(), subject: None };
    let state = format!("lb512/p0:none,+w0.{}", "5".repeat(128));
    scene.draw(&About { state, writes: vec![Seq(0)], ..About::default() }).unwrap()
}

#[test]
fn a_page_is_one_well_formed_file_that_asks_for_nothing() {
    for text in
        [of_run(&report()).render(), of_exploration(&explored(), vec![Ok(picture())]).render()]
    {
        let tree = parse(&text);
        assert_eq!(all(&tree, "h1").len(), 1);
        assert!(all(&tree, "table").iter().all(|t| {
            t.descendants().any(|n| n.has_tag_name(("http://www.w3.org/1999/xhtml", "caption")))
        }));
        // Nothing is fetched: not even where a style or script would.
        for node in tree.root().descendants() {
            for attribute in node.attributes().filter(|a| matches!(a.name(), "src" | "href")) {
                let value = attribute.value();
                assert!(value.starts_with('#') || value == "data:,", "{value}");
            }
        }
        assert!(!text.contains("@import") && !text.contains("url(h"), "{text}");
        // Each name once, and whatever is named is there.
        let ids: Vec<&str> = tree.root().descendants().filter_map(|n| n.attribute("id")).collect();
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ids.len());
        for node in tree.root().descendants() {
            for name in ["aria-labelledby", "aria-controls"] {
                assert!(node.attribute(name).is_none_or(|id| ids.contains(&id)), "{name}");
            }
        }
    }
}

#[test]
fn the_answer_says_what_was_seen_and_never_that_something_is_safe() {
    let answer = |report: &RunReport| -> Vec<(Tone, String)> {
        of_run(report).answer.into_iter().map(|a| (a.tone, a.text)).collect()
    };
    let report = report();
    let told = answer(&report);
    let text: Vec<&str> = told.iter().map(|(_, text)| text.as_str()).collect();
    assert!(
        text[0].starts_with(
            "On a disk of profile req64k, which keeps every request of at most 64 KiB whole, 16 KiB \
             writes to /dev/vda are not protected (lane raw): 1 finding in 4 cuts of the power. In \
             the first, a block was torn, because generation 7"
        ),
        "{}",
        text[0]
    );
    for part in [
        "Lane sick could not be run: the guest did not answer.",
        "Lane weak proves nothing: its control was not caught.",
        "Lane known is red, and that is known: known: bug 7.",
        "No finding in lane xfs-cow: 4 cuts of the power, with 1200 writes that had to be whole. This is not a proof.",
        "Lane old cannot be tried here: RWF_ATOMIC: Operation not supported.",
    ] {
        assert!(text.contains(&part), "{part}\n{text:#?}");
    }
    assert!(told.iter().map(|(tone, _)| *tone).is_sorted_by_key(|t| t != Tone::Bad));
    // Only what is green.
    let mut green = report.clone();
    green.lanes.retain(|lane| lane.verdict == Verdict::Passed);
    let told = answer(&green);
    assert_eq!((told.len(), told[0].0), (1, Tone::Nothing));
    assert_eq!(answer(&RunReport::default())[0].0, Tone::Unclear);
    for page in [of_run(&report).render(), of_run(&green).render()] {
        let page = page.to_lowercase();
        for never in [" safe", "are protected", "is protected"] {
            assert!(!page.contains(never), "{never}");
        }
    }
}

#[test]
fn of_an_exploration_each_disk_has_its_own_answer() {
    let page = of_exploration(&explored(), vec![Ok(picture())]);
    let text: Vec<&str> = page.answer.iter().map(|a| a.text.as_str()).collect();
    assert!(
        text[0].contains("16 KiB writes to /dev/vda are not protected: 3 of 400 different states fail. In the first, a block was torn, because write 22 was torn"),
        "{}",
        text[0]
    );
    assert!(
        text[1].contains("no finding in 400 different states of raw at 25 cuts"),
        "{}",
        text[1]
    );
    assert!(text[1].ends_with("This is not a proof."));
    assert!(text[2].contains("cannot be told whether raw is protected"), "{}", text[2]);
    let tones: Vec<Tone> = page.answer.iter().map(|a| a.tone).collect();
    assert_eq!(tones, Tone::ALL);
    let html = page.render();
    let tree = parse(&html);
    let text = words(tree.root());
    for part in [
        "tornblk repro '/out dir/failure-001.tornblk'",
        "req16k/p28:r1.1.7",
        "req16k/p28:all,-w22.6",
        "not asked",
        "queue/scheduler",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn text_of_others_stays_text() {
    let bad = "<img src=x onerror=alert(1)>&\"'</style></script>";
    let mut report = explored();
    report.lane = bad.into();
    report.suite = bad.into();
    let kept = &mut report.failures[0];
    kept.bundle = Some(bad.into());
    let finding = &mut kept.failure.findings[0];
    (finding.path, finding.text, finding.call) = (bad.into(), bad.into(), bad.into());
    finding.timeline = vec![bad.into()];
    let html = of_exploration(&report, vec![Err(NoPicture(bad.into()))]).render();
    let tree = parse(&html);
    assert!(all(&tree, "img").is_empty());
    assert_eq!((all(&tree, "script").len(), all(&tree, "style").len()), (1, 1));
    assert!(words(tree.root()).matches(bad).count() >= 6);
}

#[test]
fn many_findings_fit_into_two_megabytes() {
    let mut report = explored();
    report.failures = vec![report.failures[0].clone(); 80];
    let page = of_exploration(&report, vec![Ok(picture()); 50]);
    assert_eq!((page.shown.len(), page.more), (50, 30));
    let html = page.render();
    assert!(html.len() < 2 << 20, "{} bytes", html.len());
    parse(&html);
}

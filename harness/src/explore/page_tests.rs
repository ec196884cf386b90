//! Pages of files, judged in place: which are found torn, which are left out, and whether a bundle alone
//! shows the same.

#![allow(clippy::unwrap_used)]

use super::bundle::{Bundle, Judge};
use super::session::{Choices, Kept, Session};
use super::testing::{Recorded, TABLE, TABLE_PAGES, innodb, says};
use super::{
    ByName, Drive, Means, Opened, PageCounts, Pages, Settings, Snapshot, Units, Verdict, judge,
};
use crate::oracle::Clause;
use crate::oracle::pages::{PageFormat, testing};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tornblk_agent::channel::{FileMap, Place};
use tornblk_model::crash::{Profile, Strategy};

const K: u64 = 1024;
const PAGE: u64 = 16 * K;

fn lies(files: &[(&str, &[Place])]) -> Vec<String> {
    let files = files.iter().map(|(path, places)| ((*path).to_owned(), places.to_vec()));
    Snapshot { map: FileMap { files: files.collect(), more: false } }.marks()
}

fn innodb_pages() -> Pages {
    Pages::of(PageFormat::Innodb)
}

/// In `dir`, which is left with the bundles.
fn explore(opened: &Opened, pages: &Pages, profiles: &[&str], dir: &Path) -> Session {
    let means = Units::pages(opened, pages).unwrap();
    assert_eq!(means.judge(), Judge::InPlace);
    let profiles: Vec<Profile> = profiles.iter().map(|p| p.parse().unwrap()).collect();
    let choices = Choices {
        profiles: profiles.iter().map(ToString::to_string).collect(),
        strategies: Vec::new(),
        faults: Vec::new(),
        seed: 1,
        every_event: true,
        nested: 0,
        fsck_every: 0,
        pages: Some(pages.clone()),
    };
    let strategies = ["prefix", "one-lost", "one-kept", "tear", "random=50"];
    let settings = Settings {
        strategies: strategies.iter().map(|s| s.parse::<Strategy>().unwrap()).collect(),
        seed: 1,
        every_event: true,
        threads: 1,
        shrink: Duration::from_secs(600),
        ..Settings::default()
    };
    let mut session = Session::new(opened.identity.clone(), choices, None);
    let drive = Drive {
        opened,
        means: &means,
        profiles: &profiles,
        settings: &settings,
        dir,
        stop: &AtomicBool::new(false),
    };
    drive.run(&mut session, Vec::new(), &mut ()).unwrap();
    Session::load(dir).unwrap()
}

fn torn(session: &Session, profile: &str) -> BTreeSet<u64> {
    let of = session.failures.iter().filter(|kept| kept.failure.profile == profile);
    of.flat_map(|kept| &kept.failure.findings)
        .inspect(|finding| assert_eq!((finding.clause, finding.len), (Clause::Torn, PAGE as u32)))
        .map(|finding| finding.unit)
        .collect()
}

/// Judges what a bundle holds, as `tornblk repro` does.
fn again(dir: &Path, kept: &Kept) -> Verdict {
    let to = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&dir.join(kept.bundle.as_ref().unwrap())).unwrap();
    let unpacked = bundle.unpack(to.path()).unwrap();
    let meta = unpacked.meta;
    let opened = Opened::open(unpacked.reader.path(), Some(&unpacked.base)).unwrap();
    let means = Units::pages_again(&opened, meta.pages.as_ref().unwrap()).unwrap();
    assert_eq!((means.judge(), meta.judge), (Judge::InPlace, Judge::InPlace));
    let (name, profile) = ((&meta.state).into(), meta.profile.parse().unwrap());
    let wanted = ByName { name: &name, recovery: None };
    let base = Some(unpacked.base.as_path());
    judge(&opened, &means, base, &profile, &[wanted]).unwrap().remove(0)
}

#[test]
fn pages_overwritten_in_place_are_torn_unless_the_disk_keeps_them_whole() {
    let file = (0, TABLE, TABLE_PAGES * PAGE);
    let recorded = Recorded::table(3, &lies(&[("data/t.ibd", &[file])]));
    let opened = Opened::open(&recorded.path(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let session = explore(&opened, &innodb_pages(), &["lb512", "req16k", "piece16k"], dir.path());
    assert_eq!(torn(&session, "lb512"), BTreeSet::from([0, 1, 2]));
    assert_eq!(torn(&session, "req16k"), BTreeSet::new());
    assert_eq!(torn(&session, "piece16k"), BTreeSet::new());
    let counts =
        PageCounts { format: PageFormat::Innodb, page_size: PAGE, files: 1, judged: 3, unsound: 0 };
    assert_eq!(session.pages, Some(counts));

    let finding = &session.failures[0].failure.findings[0];
    assert_eq!((finding.path.as_str(), finding.offset), ("data/t.ibd", finding.unit * PAGE));
    assert!(finding.text.starts_with("its checksum is "), "{}", finding.text);
    assert!(!finding.text.contains("zeroes"), "{}", finding.text);
    let piece = &session.failures[0].failure.explanation.pieces[0];
    assert_eq!(piece.calls[0].path, "data/t.ibd");

    drop((opened, recorded));
    for kept in &session.failures {
        assert_eq!(again(dir.path(), kept), Verdict::Failed(kept.failure.findings.clone()));
    }
}

/// A file whose pages lie in several places, and were of other formats before or after.
fn scattered() -> Recorded {
    let marks = lies(&[
        (
            "t.ibd",
            &[
                (0, 64 * K, 3 * PAGE),
                (3 * PAGE, 160 * K, 8 * K),
                (3 * PAGE + 8 * K, 128 * K, 24 * K),
            ],
        ),
        ("other", &[(0, 192 * K, PAGE)]),
        ("new.ibd", &[(0, 208 * K, PAGE + 4 * K)]),
    ]);
    let mut base = vec![
        (64 * K, innodb(0, 1)),
        // Something else lay there before.
        (80 * K, vec![0xb5; PAGE as usize]),
        (96 * K, innodb(2, 1)),
        (192 * K, innodb(0, 1)),
    ];
    let third = innodb(3, 1);
    base.push((160 * K, third[..8192].to_vec()));
    base.push((128 * K, third[8192..].to_vec()));
    base.push((136 * K, innodb(4, 1)));
    let mut recorded = Recorded::on(512, &base);
    for mark in &marks {
        recorded.mark(mark);
    }
    let write = |recorded: &mut Recorded, at: u64, bytes: &[u8]| {
        let write = recorded.write(at, bytes);
        recorded.complete(write);
    };
    let third = innodb(3, 2);
    // Page 3, in two requests; what is after it is page 4, which is not written.
    write(&mut recorded, 128 * K, &third[8192..]);
    write(&mut recorded, 160 * K, &third[..8192]);
    recorded.flush();
    write(&mut recorded, 80 * K, &innodb(1, 2));
    // Another file's, which was removed.
    write(&mut recorded, 64 * K, &[0xd7; 4096]);
    write(&mut recorded, 64 * K, &innodb(0, 2));
    write(&mut recorded, 192 * K, &innodb(0, 2));
    write(&mut recorded, 208 * K, &innodb(0, 2));
    recorded.flush();
    // Something else in the end.
    write(&mut recorded, 96 * K, &innodb(2, 2));
    recorded.flush();
    write(&mut recorded, 96 * K, &[0xc6; PAGE as usize]);
    // Half a page at the file's end is none.
    write(&mut recorded, 224 * K, &[1; 4096]);
    recorded.flush();
    recorded.end()
}

#[test]
fn what_has_another_format_before_or_after_is_left_out_and_counted() {
    let recorded = scattered();
    let opened = Opened::open(&recorded.path(), None).unwrap();
    let units = Units::pages(&opened, &innodb_pages()).unwrap();
    let pages = Means::pages(&units).unwrap();
    assert_eq!((pages.unsound(), pages.counts().judged, pages.counts().files), (3, 2, 2));
    let judged = pages.judged();
    assert_eq!(judged.unsound["t.ibd"], [(0, 2)]);
    let text = serde_json::to_string(&judged).unwrap();
    assert_eq!(serde_json::from_str::<super::JudgedPages>(&text).unwrap(), judged);

    let dir = tempfile::tempdir().unwrap();
    let session = explore(&opened, &innodb_pages(), &["lb512", "req16k"], dir.path());
    // What is left of the file that was new, and of the one in two places.
    let found = |profile: &str| -> BTreeSet<(String, u64)> {
        let of = session.failures.iter().filter(|kept| kept.failure.profile == profile);
        let all = of.flat_map(|kept| &kept.failure.findings);
        all.map(|finding| (finding.path.clone(), finding.unit)).collect()
    };
    let (new, old) = (("new.ibd".to_owned(), 0), ("t.ibd".to_owned(), 3));
    assert_eq!(found("lb512"), BTreeSet::from([new, old.clone()]));
    assert_eq!(found("req16k"), BTreeSet::from([old]), "it takes two requests");
    let fresh = session.failures.iter().flat_map(|kept| &kept.failure.findings);
    for finding in fresh {
        let was_empty = finding.text.ends_with("; before the recording it was all zeroes");
        assert_eq!(was_empty, finding.path == "new.ibd", "{}", finding.text);
    }
    drop((units, opened, recorded));
    for kept in &session.failures {
        // A bundle ends where the power is cut, and has nothing of what came then.
        assert_eq!(again(dir.path(), kept), Verdict::Failed(kept.failure.findings.clone()));
    }
}

#[test]
fn segments_of_a_relation_are_judged_by_the_numbers_of_its_blocks() {
    let page =
        |n: u64, version: u64| testing::page(PageFormat::Postgres, 8192, 131_072 + n, version);
    let mut recorded = Recorded::on(512, &[(64 * K, page(0, 1)), (72 * K, page(1, 1))]);
    let marks = lies(&[("pg/base/5/16384.1", &[(0, 64 * K, 16 * K)])]);
    for mark in &marks {
        recorded.mark(mark);
    }
    let write = recorded.write(64 * K, &[page(0, 2), page(1, 2)].concat());
    recorded.complete(write);
    recorded.flush();
    let recorded = recorded.end();
    let opened = Opened::open(&recorded.path(), None).unwrap();
    let pages = Pages::of(PageFormat::Postgres);
    let dir = tempfile::tempdir().unwrap();
    let session = explore(&opened, &pages, &["lb512", "piece8k", "req16k"], dir.path());
    let torn: BTreeSet<_> = session
        .failures
        .iter()
        .flat_map(|kept| {
            kept.failure.findings.iter().map(|f| (kept.failure.profile.as_str(), f.unit))
        })
        .collect();
    assert_eq!(torn, BTreeSet::from([("lb512", 0), ("lb512", 1)]));
    assert_eq!(session.pages.unwrap().judged, 2);
}

/// PostgreSQL's pages do not say which they are: only the checksum, over the block's number, does.
#[test]
fn a_place_that_another_relation_had_before_is_left_out() {
    let page = |n: u64, version: u64| testing::page(PageFormat::Postgres, 8192, n, version);
    let mut recorded = Recorded::on(512, &[(64 * K, page(0, 1))]);
    for mark in &lies(&[("base/5/16384", &[(0, 64 * K, 16 * K)])]) {
        recorded.mark(mark);
    }
    // Block 1 in the end; block 9 of a relation that is gone before.
    for (at, bytes) in [(72 * K, page(9, 1)), (72 * K, page(1, 1)), (64 * K, page(0, 2))] {
        let write = recorded.write(at, &bytes);
        recorded.complete(write);
        recorded.flush();
    }
    let recorded = recorded.end();
    let opened = Opened::open(&recorded.path(), None).unwrap();
    let units = Units::pages(&opened, &Pages::of(PageFormat::Postgres)).unwrap();
    let pages = Means::pages(&units).unwrap();
    assert_eq!((pages.counts().judged, pages.unsound()), (1, 1));
}

#[test]
fn where_no_page_can_be_judged_it_is_said_why() {
    let units = |recorded: &Recorded, pages: &Pages| {
        let opened = Opened::open(&recorded.path(), None).unwrap();
        Units::pages(&opened, pages).map(drop)
    };
    let pages = innodb_pages();
    says(units(&Recorded::table(1, &[]), &pages), "does not say where files lie");
    let file = (0, TABLE, TABLE_PAGES * PAGE);
    let table = |n| Recorded::table(n, &lies(&[("t.myd", &[file])]));
    says(units(&table(1), &pages), "has a name like *.ibd; there are, for example: t.myd");
    let any = Pages { files: vec!["*".into()], ..pages.clone() };
    says(units(&table(0), &any), "no page of * was written in");
    assert!(units(&table(1), &any).is_ok());
    let postgres = Pages { format: PageFormat::Postgres, page_size: 8 * K, ..any.clone() };
    says(units(&table(1), &postgres), "of 2 pages that were written in");
    says(units(&table(1), &postgres), "--data-checksums`, and pages of 8k");
    for page_size in [0, 256, 12 * K, 2 << 20] {
        says(units(&table(1), &Pages { page_size, ..any.clone() }), "write a power of two");
    }
    let wrong = Pages { files: vec!["[".into()], ..pages };
    says(units(&table(1), &wrong), "'[' is no pattern of files");
}

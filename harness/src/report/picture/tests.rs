#![allow(clippy::unwrap_used)]

use super::*;
use crate::explore::testing::Recorded;
use crate::suite::Rng;
use tornblk_model::crash::{Profile, Source, StateName};
use tornblk_model::event::{Disk, Mark, Negotiation, Op, Payload, Status, Submit};
use tornblk_model::recording::Reader;

/// Events, and what is made of them.
struct Told {
    events: Vec<(Seq, Event)>,
    history: History,
}

impl Told {
    fn new(disk: Disk, events: Vec<(Seq, Event)>) -> Told {
        let history = History::new(disk, events.iter().cloned()).unwrap();
        Told { events, history }
    }

    fn of(recorded: &Recorded) -> Told {
        let reader = Reader::open(&recorded.path()).unwrap();
        let events: Vec<_> = reader.events().collect::<Result<_, _>>().unwrap();
        Told::new(reader.header().disk.clone(), events)
    }

    fn draw(&self, about: &About) -> Result<Picture, NoPicture> {
        let (history, events) = (&self.history, self.events.as_slice());
        Scene { history, events, explain: &(), subject: None }.draw(about)
    }

    /// The writes, in their order.
    fn writes(&self) -> Vec<Seq> {
        self.history.requests().iter().filter(|r| r.changes()).map(|r| r.id()).collect()
    }
}

/// The second write is there in its first 4 KiB; it was answered, and not flushed.
fn torn() -> (Told, Picture) {
    let told = Told::of(&Recorded::some(512).end());
    let (first, second) = (told.writes()[0], told.writes()[1]);
    assert!(first < second);
    let last = told.history.last().unwrap();
    let about = About {
        what: "torn: /dev/vda unit 3".into(),
        state: format!("lb512/p{last}:none,+w{second}.ff"),
        found: Some(format!("lb512/p{last}:none,+w{second}.f")),
        writes: vec![second],
        place: Some(Place {
            bytes: 8192..24576,
            name: "/dev/vda unit 3".into(),
            verdict: "torn".into(),
        }),
        unit: None,
    };
    let picture = told.draw(&about).unwrap();
    (told, picture)
}

#[test]
fn a_torn_write_has_a_row_for_each_part_and_the_events_in_their_order() {
    let (told, picture) = torn();
    let (first, second) = (told.writes()[0], told.writes()[1]);
    let bars: Vec<_> = picture.bars.iter().map(|b| (b.write, b.standing, b.blamed)).collect();
    let Standing::Stable(Some(flush)) = picture.bars[0].standing else {
        panic!("{:?}", picture.bars)
    };
    assert_eq!(
        bars,
        [(first, Standing::Stable(Some(flush)), false), (second, Standing::Volatile, true)]
    );
    assert_eq!((picture.bars[1].survived, picture.bars[1].parts), (8, 32));
    let moments: Vec<Moment> = picture.columns.iter().map(|c| c.what.clone()).collect();
    let answered = |request| Moment::Answered { request, ok: true };
    assert_eq!(
        moments,
        [
            Moment::Sent(first),
            answered(first),
            Moment::FlushSent(flush),
            Moment::FlushAnswered { flush, ok: true },
            Moment::Sent(second),
            answered(second),
            Moment::Mark("\u{201c}done\u{201d}".into()),
        ]
    );
    assert!(picture.columns.is_sorted_by_key(|c| c.at));
    let shows = |kind, of, missing| Shows { kind, of: Some(of), missing };
    let row = |blocks, fates: [Fate; 2], shows, found: &[(Range<u64>, Kind)]| Row {
        blocks,
        whose: Some("/dev/vda unit 3".into()),
        pieces: fates.into_iter().enumerate().collect(),
        shows,
        found: found.to_vec(),
    };
    assert_eq!(
        picture.rows,
        [
            row(
                16..24,
                [Fate::Covered, Fate::There],
                shows(Kind::New, second, None),
                &[(16..20, Kind::New), (20..24, Kind::Lost)]
            ),
            row(
                24..48,
                [Fate::There, Fate::Lost],
                shows(Kind::Lost, first, Some(second)),
                &[(24..48, Kind::Lost)]
            ),
        ]
    );
    assert_eq!(picture.brackets.len(), 1);
    assert_eq!(picture.brackets[0].text, "TORN: of 32 blocks 8 new, 24 lost");
    assert!(picture.told[0].contains("8 of its 32 parts survived"), "{:?}", picture.told);
}

#[test]
fn what_is_in_flight_at_the_cut_has_no_end_and_leaves_old_content() {
    let mut recorded = Recorded::new(512);
    let write = recorded.write(4096, &[7; 4096]);
    let last = recorded.mark("now");
    let told = Told::of(&recorded.end());
    let about =
        About { state: format!("req16k/p{last}:none"), writes: vec![write], ..About::default() };
    let picture = told.draw(&about).unwrap();
    assert_eq!(picture.bars[0].to, None);
    assert_eq!(picture.bars[0].standing, Standing::InFlight);
    assert!(picture.bars[0].whole);
    let shows = Shows { kind: Kind::Old, of: None, missing: Some(write) };
    assert_eq!(picture.rows.len(), 1);
    assert_eq!((&picture.rows[0].shows, picture.rows[0].found.len()), (&shows, 0));
}

#[test]
fn what_faults_did_is_told_as_what_it_is() {
    let told = Told::of(&Recorded::some(512).end());
    let (first, second) = (told.writes()[0], told.writes()[1]);
    let last = told.history.last().unwrap();
    let draw = |profile: &str, rest: String, writes: Vec<Seq>| {
        let about =
            About { state: format!("{profile}/p{last}:{rest}"), writes, ..About::default() };
        told.draw(&about).unwrap()
    };
    // Cut although it is whole.
    let picture = draw("req16k", format!("all;t{second}=ff"), vec![second]);
    assert_eq!((picture.bars[1].survived, picture.bars[1].parts), (8, 32));
    assert_eq!(picture.rows[0].pieces, [(0, Fate::Covered), (1, Fate::There)]);
    assert_eq!(picture.rows[1].pieces, [(0, Fate::There), (1, Fate::Lost)]);
    assert!(picture.told[0].contains("although req16k keeps such a write whole"));
    // Stable, and gone.
    let picture = draw("req16k", format!("none,-w{first}"), vec![first]);
    assert_eq!(picture.rows[0].shows.kind, Kind::Broken);
    // At another place.
    let picture = draw("req16k", format!("all;m{second}=200"), vec![second]);
    let landed = picture.rows.iter().find(|row| row.blocks.start == 200).unwrap();
    assert_eq!((landed.shows.kind, landed.blocks.end), (Kind::Foreign, 232));
    // One bit.
    let picture = draw("req16k", "all;x20.5".to_owned(), vec![second]);
    let flipped = picture.rows.iter().find(|row| row.blocks == (20..21)).unwrap();
    assert_eq!(flipped.shows.kind, Kind::Foreign);
}

#[test]
fn where_nobody_is_to_blame_what_could_be_lost_is_drawn() {
    let told = Told::of(&Recorded::some(512).end());
    let (second, last) = (told.writes()[1], told.history.last().unwrap());
    let draw = |told: &Told, state: String| told.draw(&About { state, ..About::default() });
    let picture = draw(&told, format!("lb/p{last}:none")).unwrap();
    let blamed: Vec<Seq> = picture.bars.iter().filter(|b| b.blamed).map(|b| b.write).collect();
    assert_eq!(blamed, [second]);
    assert!(draw(&told, "nonsense".into()).unwrap_err().0.contains("the state cannot be built"));
    let mut empty = Recorded::new(512);
    let last = empty.mark("nothing was written");
    let why = draw(&Told::of(&empty.end()), format!("lb/p{last}:all")).unwrap_err().0;
    assert_eq!(why, "no write of the recording is to blame");
}

/// Writes, answers and flushes, drawn at random, on a disk of 64 blocks.
fn recording(rng: &mut Rng) -> Told {
    let disk = Disk { capacity: 64 * 512, lb_size: 512 };
    let mut at = 0;
    let mut events = Vec::new();
    let mut add = |event| {
        events.push((Seq(at), event));
        at += 1;
        Seq(at - 1)
    };
    add(Event::Negotiate(Negotiation {
        flush_offered: true,
        flush: true,
        config_wce: false,
        writeback: true,
    }));
    let (mut out, mut position): (Vec<Seq>, u16) = (Vec::new(), 0);
    for _ in 0..4 + rng.below(30) {
        match rng.below(8) {
            0..=3 => {
                let (block, len) = (rng.below(56), 1 + rng.below(8));
                let op = match rng.below(6) {
                    0 => Op::FLUSH,
                    fua => Op::Write {
                        offset: block * 512,
                        len: len * 512,
                        fua: fua == 1,
                        atomic: false,
                        payload: Payload::default(),
                    },
                };
                let submit = Submit { queue: 0, position, head: position, ioprio: 0, op };
                position += 1;
                out.push(add(Event::Submit(submit)));
            }
            4..=6 if !out.is_empty() => {
                let request = out.swap_remove(rng.below(out.len() as u64) as usize);
                let status = if rng.below(9) == 0 { Status::IoErr } else { Status::Ok };
                add(Event::Complete { request, status });
            }
            _ => {
                add(Event::Mark(Mark { name: "m".into() }));
            }
        }
    }
    add(Event::Mark(Mark { name: "end".into() }));
    Told::new(disk, events)
}

/// Everything that a picture says of a state is held against what the model builds of names that differ
/// in one write.
#[test]
fn every_fragment_of_a_state_is_in_its_picture_with_its_own_fate() {
    let mut rng = Rng::new(7, &["picture"], 0);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let told = recording(&mut rng);
        let writes = told.writes();
        if writes.is_empty() {
            continue;
        }
        let profile: Profile =
            ["lb512", "req1k", "req4k", "piece2k"][rng.below(4) as usize].parse().unwrap();
        let after = told.history.last().unwrap();
        let cut = told.history.cut(after, &profile).unwrap();
        let sample = StateName(format!("{profile}/p{after}:r1.{}.0", rng.below(1000)));
        let state = cut.spell_out(&sample).unwrap();
        if state.0.contains(';') {
            continue;
        }
        let blamed = writes[rng.below(writes.len() as u64) as usize];
        let about = About { state: state.0.clone(), writes: vec![blamed], ..About::default() };
        let picture = told.draw(&about).unwrap();
        let content = cut.build(&state).unwrap();
        let with =
            |id: Seq, sign: char| cut.build(&StateName(format!("{state},{sign}w{id}"))).unwrap();
        for (i, bar) in picture.bars.iter().enumerate() {
            let (all, none) = (with(bar.write, '+'), with(bar.write, '-'));
            let n = cut.fragments(bar.write).unwrap();
            assert_eq!(bar.parts, n, "{state}");
            let mask = tornblk_model::crash::Mask::first(n);
            for block in cut.fragment_blocks(bar.write, &mask).unwrap().into_iter().flatten() {
                let rows: Vec<&Row> =
                    picture.rows.iter().filter(|row| row.blocks.contains(&block)).collect();
                assert_eq!(rows.len(), 1, "block {block} of write {} in {state}", bar.write);
                let own = rows[0].pieces.iter().find(|(own, _)| *own == i).unwrap();
                let shows = content.of(block);
                let fate = if with_request(shows) == Some(bar.write) {
                    assert_ne!(none.of(block), shows);
                    Fate::There
                } else if all.of(block) != shows {
                    Fate::Lost
                } else {
                    Fate::Covered
                };
                assert_eq!(own.1, fate, "block {block} of write {} in {state}", bar.write);
                *seen.entry(fate).or_insert(0u32) += 1;
                *seen.entry(Fate::There).or_default() += 0;
                assert_eq!(rows[0].shows.of, with_request(shows), "block {block} in {state}");
            }
        }
    }
    assert!(seen.len() == 3 && seen.values().all(|n| *n > 100), "{seen:?}");
}

fn with_request(source: Source) -> Option<Seq> {
    match source {
        Source::Written { request, .. } => Some(request),
        _ => None,
    }
}

#[test]
fn as_text_it_fits_into_a_mail() {
    let (_, picture) = torn();
    for utf8 in [true, false] {
        let text = text::text(&picture, utf8);
        assert!(text.lines().all(|line| line.chars().count() <= text::WIDTH), "{text}");
        assert_eq!(text.is_ascii(), !utf8);
    }
}

#[test]
fn as_svg_it_is_one_well_formed_file_and_text_stays_text() {
    let (told, _) = torn();
    let second = told.writes()[1];
    let last = told.history.last().unwrap();
    let about = About {
        what: "</title><script>alert('&')</script>".into(),
        state: format!("lb512/p{last}:none,+w{second}.ff"),
        writes: vec![second],
        ..About::default()
    };
    let svg = svg::file(&told.draw(&about).unwrap());
    let tree = roxmltree::Document::parse(&svg).unwrap();
    assert!(!tree.descendants().any(|node| node.has_tag_name("script")));
    let title = tree.descendants().find(|n| n.tag_name().name() == "title").unwrap();
    assert_eq!(title.text(), Some(about.what.as_str()));
    for outside in ["href", "@import", "src="] {
        assert!(!svg.contains(outside), "{outside}");
    }
}

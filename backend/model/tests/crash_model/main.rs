//! The crash model against a brute-force implementation of its page, and its other properties.
#![allow(clippy::unwrap_used)]

mod brute;
mod generate;
mod golden;
mod inputs;
mod properties;
mod walk;

use brute::Holds;
use generate::Recording;
use std::collections::BTreeSet;
use tornblk_model::crash::{Content, Cut, History, Profile, Source, Strategy, size};
use tornblk_model::event::{Disk, Seq};

/// More choices than any of these recordings has.
pub(crate) const ANY_NUMBER: Strategy = Strategy::Exhaustive { at_most: 62 };

/// A content as the brute force writes it.
pub(crate) fn held(disk: &Disk, content: &Content) -> Vec<Holds> {
    (0..disk.blocks())
        .map(|block| match content.of(block) {
            Source::Base => Holds::Base,
            Source::Written { request, block } => Holds::Data(request.0, u64::from(block)),
            Source::Zeroes => Holds::Zeroes,
            Source::Garbage { .. } => Holds::Anything,
            Source::Flipped { .. } => panic!("no legal state has inverted bits"),
        })
        .collect()
}

pub(crate) fn exhaustive(cut: &Cut<'_>) -> BTreeSet<Vec<Holds>> {
    let disk = cut.history.disk();
    cut.states(ANY_NUMBER).map(|name| held(disk, &cut.build(&name).unwrap())).collect()
}

/// Disks that a recording with this logical block is explored for.
pub(crate) fn profiles(lb: u32) -> Vec<Profile> {
    let blocks = |n: u64| size::print(n * u64::from(lb));
    [
        format!("lb{}", blocks(1)),
        "lb+discard-either".into(),
        format!("req{}", blocks(2)),
        format!("req{}+discard-old", blocks(4)),
        format!("req{0}+b{0}", blocks(2)),
        format!("req{}+tear{}", blocks(2), blocks(2)),
        format!("req{}+discard-either", blocks(3)),
        format!("piece{}", blocks(2)),
        format!("piece{}+discard-either", blocks(3)),
        format!("explicit{}", blocks(4)),
        "garbage".into(),
        format!("req{}+garbage", blocks(2)),
    ]
    .iter()
    .map(|name| name.parse().unwrap())
    .collect()
}

/// Every third is of several disks.
pub(crate) fn recording(seed: u64, fragments: u64) -> Recording {
    generate::recording(seed, fragments, seed.is_multiple_of(3))
}

pub(crate) fn history(recording: &Recording) -> History {
    History::new(recording.disk.clone(), recording.events.clone()).unwrap()
}

/// The last event, and two others.
pub(crate) fn some_points(recording: &Recording, seed: u64) -> BTreeSet<Seq> {
    let mut dice = generate::Dice::new(seed ^ 0x5eed);
    let n = recording.events.len();
    let mut points: BTreeSet<Seq> = [recording.events[n - 1].0].into();
    for _ in 0..2 {
        points.insert(recording.events[dice.below(n as u64) as usize].0);
    }
    points
}

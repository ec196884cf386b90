//! Several shards of one exploration, put together.

use super::session::{Content, Kept, Session};
use super::{Counts, Ended, ExploreError, Fingerprint, Shard};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tornblk_model::crash::Coverage;

/// Put together: a session of all shards that are there.
#[derive(Clone, Debug)]
pub struct Merged {
    pub session: Session,
    pub judged: Vec<Content>,
    /// Shards that are not there, or not through.
    pub missing: Vec<Shard>,
    /// Where each failure's bundle is.
    pub bundles: Vec<Option<PathBuf>>,
}

/// Puts the sessions in these folders together: the same failure in two is one, and so is the same
/// content. They must be of one recording and explored with the same choices.
///
/// # Errors
/// A folder holds no session, or they do not belong together.
pub fn merge(dirs: &[PathBuf]) -> Result<Merged, ExploreError> {
    let mut parts = Vec::new();
    for dir in dirs {
        parts.push((dir.as_path(), Session::load(dir)?));
    }
    let Some((first_dir, first)) = parts.first() else {
        return Err(ExploreError::Bad(
            "there is nothing to merge: name the shards' folders".into(),
        ));
    };
    for (dir, part) in &parts[1..] {
        fits((first_dir, first), (dir, part))?;
    }
    for (i, (dir, part)) in parts.iter().enumerate() {
        parts[..i].iter().try_for_each(|(other, earlier)| apart((other, earlier), (dir, part)))?;
    }
    let mut merged = Session::new(first.identity.clone(), first.choices.clone(), None);
    (merged.suite, merged.lane) = (first.suite.clone(), first.lane.clone());
    (merged.volume, merged.environment) = (first.volume.clone(), first.environment.clone());
    (merged.judge, merged.pages) = (first.judge, first.pages.clone());
    let mut judged: BTreeMap<Fingerprint, Content> = BTreeMap::new();
    let mut bundles = Vec::new();
    let mut coverage: BTreeMap<String, Coverage> = BTreeMap::new();
    for (dir, part) in &parts {
        for content in Session::load_judged(dir)? {
            let known = judged.entry(content.judged.key).or_insert(content);
            known.judged.promises = known.judged.promises.max(content.judged.promises);
            // As one that explored it all would have met it.
            known.profile = known.profile.min(content.profile);
        }
        for (profile, cuts) in &part.cuts {
            let coverage = coverage.entry(profile.clone()).or_default();
            cuts.iter().try_for_each(|cuts| coverage.add(cuts))?;
        }
        failures(&mut merged, &mut bundles, dir, part);
        merged.unsure.extend(part.unsure.iter().cloned());
        merged.seconds = merged.seconds.max(part.seconds);
    }
    merged.unsure.sort();
    merged.unsure.dedup();
    merged.cuts = coverage.iter().map(|(p, c)| (p.clone(), c.writes())).collect();
    let missing = missing(&parts);
    let judged: Vec<Content> = judged.into_values().collect();
    counts(&mut merged, &parts, &judged);
    done(&mut merged, &parts, missing.is_empty());
    let complete =
        missing.is_empty() && parts.iter().all(|(_, p)| p.ended == Some(Ended::Complete));
    merged.ended = if complete {
        Some(Ended::Complete)
    } else {
        parts.iter().find_map(|(_, p)| p.ended.filter(|e| *e != Ended::Complete))
    };
    Ok(Merged { session: merged, judged, missing, bundles })
}

fn fits(a: (&Path, &Session), b: (&Path, &Session)) -> Result<(), ExploreError> {
    let (one, other) = (a.0.display(), b.0.display());
    let bad = |why: String| Err(ExploreError::Bad(why));
    if !a.1.identity.same(&b.1.identity) {
        return bad(format!(
            "{one} and {other} are of two recordings ({} and {}): merge the shards of one",
            a.1.identity.recording.display(),
            b.1.identity.recording.display()
        ));
    }
    if let Some((what, here, there)) = a.1.choices.differs(&b.1.choices) {
        return bad(format!(
            "{one} and {other} were explored differently ({what}: {here}, and {there}): merge the \
             shards of one exploration"
        ));
    }
    match (a.1.shard, b.1.shard) {
        (Some(x), Some(y)) if x.of != y.of => bad(format!(
            "{one} is shard {x} and {other} is shard {y}: merge shards of the same number"
        )),
        _ => Ok(()),
    }
}

/// What is in both would be counted twice.
fn apart(a: (&Path, &Session), b: (&Path, &Session)) -> Result<(), ExploreError> {
    let (one, other) = (a.0.display(), b.0.display());
    let text = match (a.1.shard, b.1.shard) {
        _ if a.0.canonicalize().is_ok_and(|a| b.0.canonicalize().is_ok_and(|b| a == b)) => {
            format!("{one} and {other} are one folder: name it once")
        }
        (Some(x), Some(y)) if x == y => {
            format!("{one} and {other} are both shard {x}: name one of them")
        }
        (Some(_), Some(_)) => return Ok(()),
        (None, None) => format!("{one} and {other} are both the whole: name one of them"),
        (None, Some(_)) => format!("{one} is the whole, and {other} a part of it: name one"),
        (Some(_), None) => format!("{other} is the whole, and {one} a part of it: name one"),
    };
    Err(ExploreError::Bad(text))
}

/// The same failure, when shrunk, is one, whoever found it.
fn failures(merged: &mut Session, bundles: &mut Vec<Option<PathBuf>>, dir: &Path, part: &Session) {
    for kept in &part.failures {
        let same = |other: &Kept| other.is_same(&kept.failure);
        let bundle = kept.bundle.as_ref().map(|name| dir.join(name));
        match merged.failures.iter().position(same) {
            Some(i) => {
                merged.failures[i].again += kept.again + 1;
                bundles[i] = bundles[i].take().or(bundle);
            }
            None => {
                let mut kept = kept.clone();
                kept.failure.number = merged.failures.len() as u64 + 1;
                merged.failures.push(kept);
                bundles.push(bundle);
            }
        }
    }
}

/// What each shard counted, added up, but for contents: one that several shards had is one.
fn counts(merged: &mut Session, parts: &[(&Path, Session)], judged: &[Content]) {
    for (i, state) in merged.profiles.iter_mut().enumerate() {
        let sum = &mut state.counts;
        for own in parts.iter().filter_map(|(_, part)| part.profiles.get(i)) {
            let c = own.counts;
            *sum = Counts {
                states: sum.states + c.states,
                unique: 0,
                judged: sum.judged + c.judged,
                failed: sum.failed + c.failed,
                unsure: sum.unsure + c.unsure,
                points: sum.points.max(c.points),
            };
            state.not_shrunk += own.not_shrunk;
        }
        sum.unique = judged.iter().filter(|c| usize::from(c.profile) == i).count() as u64;
    }
}

/// A profile is through where every shard is; a crash point is done where it is in every shard.
fn done(merged: &mut Session, parts: &[(&Path, Session)], all_there: bool) {
    for (i, state) in merged.profiles.iter_mut().enumerate() {
        let complete = |p: &Session| p.profiles.get(i).is_some_and(|p| p.complete);
        state.complete = all_there && parts.iter().all(|(_, p)| complete(p));
    }
    for (profile, strategies) in &parts[0].1.done {
        for (strategy, points) in strategies {
            let mut points = points.clone();
            for (_, part) in &parts[1..] {
                let theirs = part.done.get(profile).and_then(|s| s.get(strategy));
                points.retain(|point| theirs.is_some_and(|theirs| theirs.contains(point)));
            }
            let strategies = merged.done.entry(profile.clone()).or_default();
            strategies.insert(strategy.clone(), points);
        }
    }
}

/// Shards that are not there or were broken off. One that is no shard is all of them.
fn missing(parts: &[(&Path, Session)]) -> Vec<Shard> {
    let shards: Option<Vec<(Shard, bool)>> = parts
        .iter()
        .map(|(_, part)| {
            let through = !matches!(part.ended, None | Some(Ended::Stopped));
            part.shard.map(|shard| (shard, through))
        })
        .collect();
    let Some(shards) = shards else { return Vec::new() };
    let of = shards.first().map_or(0, |(shard, _)| shard.of);
    let through = |index: u64| shards.iter().any(|(shard, t)| shard.index == index && *t);
    (0..of).filter(|index| !through(*index)).map(|index| Shard { index, of }).collect()
}

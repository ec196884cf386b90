//! A state by its name, built whole: for single states, and where the walk has no faster way.

use super::{
    ContentIds, ExploreError, Means, Opened, Point, Promises, RecordingIds, State, Verdict,
    Verifier, View,
};
use crate::oracle::Recovery;
use std::collections::BTreeMap;
use std::path::Path;
use tornblk_model::crash::{
    Content, Cut, History, ModelError, Parsed, Profile, Source, StateName, content_hash,
};

/// A state that has a name and a content.
pub struct Named<'a> {
    name: StateName,
    content: Content,
    reference: &'a Content,
    ids: &'a dyn ContentIds,
}

impl<'a> Named<'a> {
    /// # Errors
    /// The name is no state of this crash point and profile.
    pub fn new(
        cut: &Cut<'_>,
        name: &StateName,
        reference: &'a Content,
        ids: &'a dyn ContentIds,
    ) -> Result<Named<'a>, ModelError> {
        Ok(Named { content: cut.build(name)?, name: name.clone(), reference, ids })
    }

    /// Everything submitted so far is persisted.
    ///
    /// # Errors
    /// None, in fact.
    pub fn reference(cut: &Cut<'_>) -> Result<(StateName, Content), ModelError> {
        let name = format!("{}/p{}:all", cut.profile.on(cut.history.disk()), cut.after);
        let name = cut.spell_out(&StateName(name))?;
        let content = cut.build(&name)?;
        Ok((name, content))
    }
}

impl std::fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Named({})", self.name)
    }
}

impl View for Named<'_> {
    fn of(&self, block: u64) -> Source {
        self.content.of(block)
    }

    fn id(&self, block: u64) -> u64 {
        self.ids.id(block, self.of(block))
    }

    fn changed(&self) -> Option<&[u64]> {
        None
    }

    fn delta(&self) -> Vec<(u64, Source)> {
        let mut blocks: BTreeMap<u64, Source> = self.content.blocks.clone();
        for block in self.reference.blocks.keys() {
            blocks.entry(*block).or_insert(Source::Base);
        }
        blocks.into_iter().filter(|(block, now)| self.reference.of(*block) != *now).collect()
    }

    fn fingerprint(&self) -> u128 {
        self.content.blocks.iter().fold(0, |sum: u128, (block, source)| {
            let (now, base) = (self.ids.id(*block, *source), self.ids.id(*block, Source::Base));
            sum.wrapping_add(content_hash(*block, now)).wrapping_sub(content_hash(*block, base))
        })
    }

    fn name(&self) -> Result<StateName, ModelError> {
        Ok(self.name.clone())
    }

    fn content(&self) -> Result<Content, ModelError> {
        Ok(self.content.clone())
    }
}

/// A state by its name (which says profile and crash point), or that of the recovery on it.
#[derive(Clone, Copy, Debug)]
pub struct ByName<'a> {
    pub name: &'a StateName,
    pub recovery: Option<&'a Recovery>,
}

/// Judges these states, which are of one profile, one after another, without exploring. `base`: where the
/// recording's base image is not where it was.
///
/// # Errors
/// The recording has no such state, or the verifier's own.
pub fn judge(
    opened: &Opened,
    means: &dyn Means,
    base: Option<&Path>,
    profile: &Profile,
    wanted: &[ByName<'_>],
) -> Result<Vec<Verdict>, ExploreError> {
    let ids = RecordingIds::new(opened.reader.clone(), base, opened.trust())?;
    let judging = means.on(profile)?;
    let mut verifier = judging.verifier(0)?;
    let one = |wanted: &ByName<'_>| {
        named(&opened.history, &ids, means.promises(), wanted, &mut *verifier)
    };
    wanted.iter().map(one).collect()
}

/// One of them.
///
/// # Errors
/// The recording has no such state, or the verifier's own.
pub fn named(
    history: &History,
    ids: &dyn ContentIds,
    promises: &Promises,
    wanted: &ByName<'_>,
    verifier: &mut dyn Verifier,
) -> Result<Verdict, ExploreError> {
    let parsed: Parsed = wanted.name.0.parse()?;
    let cut = history.cut(parsed.after, &parsed.profile)?;
    let (all, content) = Named::reference(&cut)?;
    let reference = Named { name: all, content: content.clone(), reference: &content, ids };
    let point = Point::new(&parsed.profile, parsed.after, promises.at(parsed.after), &reference);
    verifier.point(&point)?;
    let state = Named::new(&cut, wanted.name, &content, ids)?;
    let state = State::new(&point, &state);
    match wanted.recovery {
        Some(recovery) => verifier.recovered(&state, recovery),
        None => verifier.verify(&state),
    }
}

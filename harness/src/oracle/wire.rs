//! Which requests carried which block, from the recording.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tornblk_agent::channel::Target;
use tornblk_agent::payload::{self, Read, SECTOR};
use tornblk_model::crash::{Content, Profile, Source};
use tornblk_model::event::Seq;

/// One generation of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub file: u32,
    pub unit: u64,
    pub r#gen: u32,
}

/// A request that carried sectors of a [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Its submit event.
    pub request: u64,
    pub offset: u64,
    pub len: u64,
    /// It held another generation of the unit too.
    pub mixed: bool,
    /// All of the unit, in order, and nothing of another generation of that unit.
    pub whole: bool,
    /// The disk promises to keep this request whole, or these sectors of it.
    pub eligible: bool,
    /// It was sent as atomic (SCSI); virtio-blk cannot say so.
    pub atomic: bool,
    /// Not stable at the cut.
    pub volatile: bool,
    /// Where on the disk the first of these sectors of the unit lies (bytes); first, how many.
    pub at: u64,
    pub sectors: (u32, u32),
}

/// Why a write need not be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// More than one request carried it, or one carried only a part.
    Split,
    /// A request carried it together with another generation of the same unit.
    Mixed,
    /// The request was beyond what the disk keeps whole.
    Beyond,
    /// The call failed.
    Failed,
}

impl Reason {
    pub fn text(self) -> &'static str {
        match self {
            Reason::Split => "it was split over several requests",
            Reason::Mixed => "one request held two generations of it",
            Reason::Beyond => "its request is not one that the disk keeps whole",
            Reason::Failed => "the call failed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// Must be whole.
    Eligible,
    NotEligible(Reason),
    /// Never seen on the wire.
    Unseen,
}

impl Eligibility {
    /// Of a write that these requests carried: all of it, mixed with another, kept whole by the disk?
    pub fn of(carriers: impl IntoIterator<Item = (bool, bool, bool)>) -> Eligibility {
        let mut eligibility = Eligibility::Unseen;
        for carrier in carriers {
            eligibility = match carrier {
                (true, _, true) => Eligibility::Eligible,
                (true, _, false) => return Eligibility::NotEligible(Reason::Beyond),
                (false, true, _) => return Eligibility::NotEligible(Reason::Mixed),
                (false, false, _) => return Eligibility::NotEligible(Reason::Split),
            };
        }
        eligibility
    }
}

/// Where a sector belongs: (file, unit, sector).
type Place = (u32, u64, u32);

/// The blocks that the disk may have made up at a cut, each with the writes that let it: see
/// [`Cut::may_be_anything`](tornblk_model::crash::Cut::may_be_anything).
pub type Anything = BTreeMap<u64, Vec<Seq>>;

/// What the recording says about the blocks of one workload, up to the cut.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    carriers: HashMap<Key, Vec<Carrier>>,
    /// What logical block number `block` of a request's payload carries.
    blocks: Arc<HashMap<(u64, u32), Vec<Key>>>,
    /// Keys of which the state after the cut holds at least one logical block.
    on_disk: Option<HashSet<Key>>,
    /// What logical block number `block` of a request's payload held that was corrupt before it
    /// ever reached the disk: pages of the page cache are not kept still
    /// while a disk without checksums reads them.
    unstable: Arc<HashMap<(u64, u32), Vec<Place>>>,
    /// Those of them that the state after the cut holds.
    mixed: HashSet<Place>,
    lb_size: u32,
    /// The targets, where they are the disk itself; `None`: what lies where is up to a file system.
    raw: Option<Arc<[Target]>>,
    anything: Arc<Anything>,
    /// What the state after the cut holds of it, by the writes that let the disk.
    made_up: HashMap<Place, Vec<Seq>>,
}

impl Wire {
    pub fn carriers(&self, key: Key) -> &[Carrier] {
        self.carriers.get(&key).map_or(&[], Vec::as_slice)
    }

    pub fn eligibility(&self, key: Key) -> Eligibility {
        Eligibility::of(self.carriers(key).iter().map(|c| (c.whole, c.mixed, c.eligible)))
    }

    /// Could this cut still change it?
    pub fn volatile(&self, key: Key) -> bool {
        self.carriers(key).iter().any(|c| c.volatile)
    }

    /// Does the state hold some of it, wherever? `None` where the state is not known.
    pub fn on_disk(&self, key: Key) -> Option<bool> {
        self.on_disk.as_ref().map(|keys| keys.contains(&key))
    }

    /// Does the state hold this sector as a request carried it, with a wrong checksum already?
    pub fn is_mixed(&self, file: u32, unit: u64, sector: u32) -> bool {
        self.mixed.contains(&(file, unit, sector))
    }

    /// The writes that let the disk make up what this sector holds, as its profile says; none: it
    /// did not, or was not allowed to.
    pub fn made_up_by(&self, file: u32, unit: u64, sector: u32) -> &[Seq] {
        self.made_up.get(&(file, unit, sector)).map_or(&[], Vec::as_slice)
    }

    /// Did this request carry some of it?
    pub fn carried(&self, key: Key, request: Seq) -> bool {
        self.carriers(key).iter().any(|carrier| carrier.request == request.0)
    }

    /// Says what the disk may have made up at the cut.
    #[must_use]
    pub fn with_anything(self, anything: Anything) -> Wire {
        Wire { anything: Arc::new(anything), ..self }
    }

    /// The same recording seen from a crash point right after event `upto`, on a disk that keeps
    /// other requests whole: `eligible` and `volatile` are asked about each. Of a wire of the whole
    /// recording this is much cheaper than reading all payload again.
    pub fn seen_from(
        &self,
        upto: u64,
        eligible: impl Fn(&Carrier) -> bool,
        volatile: impl Fn(u64) -> bool,
    ) -> Wire {
        let seen = |carriers: &Vec<Carrier>| -> Vec<Carrier> {
            let before = carriers.iter().filter(|c| c.request <= upto);
            before
                .map(|c| Carrier { eligible: eligible(c), volatile: volatile(c.request), ..*c })
                .collect()
        };
        let carriers = self.carriers.iter().map(|(key, carriers)| (*key, seen(carriers)));
        Wire {
            carriers: carriers.filter(|(_, carriers)| !carriers.is_empty()).collect(),
            blocks: Arc::clone(&self.blocks),
            unstable: Arc::clone(&self.unstable),
            on_disk: None,
            mixed: HashSet::new(),
            lb_size: self.lb_size,
            raw: self.raw.clone(),
            anything: Arc::default(),
            made_up: HashMap::new(),
        }
    }

    /// Tells which state the disk is in.
    pub fn set_content(&mut self, content: &Content) {
        let mut keys = HashSet::new();
        self.mixed.clear();
        for source in content.blocks.values() {
            if let Source::Written { request, block } = source
                && let Some(sectors) = self.unstable.get(&(request.0, *block))
            {
                self.mixed.extend(sectors);
            }
            let (Source::Written { request, block }
            | Source::Flipped { request: Some(request), block, .. }) = source
            else {
                continue;
            };
            if let Some(found) = self.blocks.get(&(request.0, *block)) {
                keys.extend(found.iter().copied());
            }
        }
        self.on_disk = Some(keys);
        self.made_up = self.made_up(content);
    }

    fn made_up(&self, content: &Content) -> HashMap<Place, Vec<Seq>> {
        let mut made_up: HashMap<Place, Vec<Seq>> = HashMap::new();
        let is_made_up = |block: u64| matches!(content.of(block), Source::Garbage { .. });
        let garbage: Anything = self
            .anything
            .iter()
            .filter(|(block, _)| is_made_up(**block))
            .map(|(block, writes)| (*block, writes.clone()))
            .collect();
        if garbage.is_empty() {
            return made_up;
        }
        let lb = u64::from(self.lb_size.max(1));
        // So many sectors of a unit, from this one on, lie from this byte of the disk on.
        let mut look = |(file, unit): (u32, u64), (first, n): (u32, u32), at: u64| {
            let end = at + u64::from(n) * SECTOR as u64;
            for (block, writes) in garbage.range(at / lb..end.div_ceil(lb)) {
                for i in 0..n {
                    let byte = at + u64::from(i) * SECTOR as u64;
                    if byte / lb == *block {
                        made_up.entry((file, unit, first + i)).or_default().extend(writes);
                    }
                }
            }
        };
        match &self.raw {
            Some(targets) => {
                for target in targets.iter() {
                    let sectors = (0, target.unit / SECTOR as u32);
                    for unit in 0..u64::from(target.units) {
                        look((target.file, unit), sectors, target.disk_offset_of(unit));
                    }
                }
            }
            // Where it was ever put: a file system may have it in more than one place.
            None => {
                for (key, carriers) in &self.carriers {
                    for carrier in carriers {
                        look((key.file, key.unit), carrier.sectors, carrier.at);
                    }
                }
            }
        }
        for writes in made_up.values_mut() {
            writes.sort_unstable();
            writes.dedup();
        }
        made_up
    }
}

/// A run of sectors of one generation of one unit inside a request.
#[derive(Clone, Copy)]
struct Run {
    key: Key,
    first: u32,
    n: u32,
    of: u32,
    /// Bytes into the payload.
    from: u64,
}

/// Builds a [`Wire`] from the writes of a recording.
#[derive(Debug)]
pub struct WireBuilder {
    nonce: u64,
    lb_size: u32,
    wire: Wire,
    blocks: HashMap<(u64, u32), Vec<Key>>,
    unstable: HashMap<(u64, u32), Vec<Place>>,
    atomic: HashSet<u64>,
    pieces: Option<Profile>,
}

impl WireBuilder {
    pub fn new(nonce: u64, lb_size: u32) -> Self {
        let wire = Wire { lb_size, ..Wire::default() };
        WireBuilder {
            nonce,
            lb_size,
            wire,
            blocks: HashMap::new(),
            unstable: HashMap::new(),
            atomic: HashSet::new(),
            pieces: None,
        }
    }

    /// The disk leaves pieces as they are, as this profile says, whatever request they are in.
    #[must_use]
    pub fn with_pieces_of(mut self, profile: &Profile) -> Self {
        self.pieces = Some(profile.clone());
        self
    }

    /// The write request that comes next was sent as atomic.
    pub fn sent_as_atomic(&mut self, request: Seq) {
        self.atomic.insert(request.0);
    }

    /// The targets are the disk itself: where their units lie is known.
    #[must_use]
    pub fn on_raw(mut self, targets: &[Target]) -> Self {
        self.wire.raw = Some(targets.into());
        self
    }

    /// A write request: `payload` is the whole logical blocks that `offset..offset + len` touches.
    pub fn write(
        &mut self,
        request: Seq,
        offset: u64,
        len: u64,
        payload: &[u8],
        eligible: bool,
        volatile: bool,
    ) {
        let lb = u64::from(self.lb_size);
        let skip = (offset % lb) as usize;
        let end = payload.len().min(skip + len as usize);
        let mut runs: Vec<Run> = Vec::new();
        let mut unstable = HashSet::new();
        for (i, sector) in payload.chunks_exact(SECTOR).enumerate() {
            let at = i * SECTOR;
            let Read::Stamped(s) = payload::read(sector) else {
                let claimed = payload::claimed(sector).filter(|s| s.nonce == self.nonce);
                if let Some(s) = claimed.filter(|_| at >= skip && at < end) {
                    let block = (request.0, (at as u64 / lb) as u32);
                    self.unstable.entry(block).or_default().push((s.file, s.unit, s.sector));
                    unstable.insert((s.file, s.unit));
                }
                continue;
            };
            if s.nonce != self.nonce {
                continue;
            }
            let key = Key { file: s.file, unit: s.unit, r#gen: s.generation };
            let block = (at as u64 / lb) as u32;
            let keys = self.blocks.entry((request.0, block)).or_default();
            if keys.last() != Some(&key) {
                keys.push(key);
            }
            // What a partial block was filled up with was not asked for by this request.
            if at < skip || at >= end {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.key == key && run.first + run.n == s.sector => run.n += 1,
                _ => runs.push(Run { key, first: s.sector, n: 1, of: s.sectors, from: at as u64 }),
            }
        }
        for (i, run) in runs.iter().enumerate() {
            let same_unit = |o: &Run| (o.key.file, o.key.unit) == (run.key.file, run.key.unit);
            let mixed = unstable.contains(&(run.key.file, run.key.unit))
                || runs.iter().any(|o| same_unit(o) && o.key.r#gen != run.key.r#gen);
            let at = offset - skip as u64 + run.from;
            let (lb_size, len_here) = (self.lb_size, u64::from(run.n) * SECTOR as u64);
            let one_piece =
                self.pieces.as_ref().is_some_and(|p| p.is_one_piece(lb_size, at, len_here));
            let alone = !runs.iter().enumerate().any(|(k, o)| k != i && same_unit(o));
            self.wire.carriers.entry(run.key).or_default().push(Carrier {
                request: request.0,
                offset,
                len,
                mixed,
                whole: alone && !mixed && run.first == 0 && run.n == run.of,
                eligible: eligible || one_piece,
                atomic: self.atomic.contains(&request.0),
                volatile,
                at,
                sectors: (run.first, run.n),
            });
        }
    }

    pub fn finish(self) -> Wire {
        let (blocks, unstable) = (Arc::new(self.blocks), Arc::new(self.unstable));
        Wire { blocks, unstable, ..self.wire }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tornblk_agent::payload::Stamp;

    fn unit(unit: u64, r#gen: u32, sectors: usize) -> Vec<u8> {
        let mut bytes = vec![0; sectors * SECTOR];
        let stamp = Stamp { nonce: 7, unit, file: 1, generation: r#gen, sector: 0, sectors: 0 };
        payload::fill(&mut bytes, stamp);
        bytes
    }

    fn key(unit: u64, r#gen: u32) -> Key {
        Key { file: 1, unit, r#gen }
    }

    #[test]
    fn one_whole_request_is_eligible_where_the_disk_says_so() {
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 4096, &unit(0, 1, 8), true, true);
        b.write(Seq(4), 4096, 4096, &unit(1, 1, 8), false, false);
        let wire = b.finish();
        assert_eq!(wire.eligibility(key(0, 1)), Eligibility::Eligible);
        assert!(wire.volatile(key(0, 1)));
        assert_eq!(wire.eligibility(key(1, 1)), Eligibility::NotEligible(Reason::Beyond));
        assert!(!wire.volatile(key(1, 1)));
        assert_eq!(wire.eligibility(key(2, 1)), Eligibility::Unseen);
    }

    #[test]
    fn a_piece_is_eligible_in_whatever_request_it_is() {
        let mut bytes = unit(0, 1, 8);
        bytes.extend(unit(1, 1, 8));
        let of = |profile: &str, from: u64| {
            let profile: Profile = profile.parse().unwrap();
            let mut b = WireBuilder::new(7, 512).with_pieces_of(&profile);
            b.write(Seq(3), from, 8192, &bytes, false, true);
            let wire = b.finish();
            [0, 1].map(|u| wire.eligibility(key(u, 1)) == Eligibility::Eligible)
        };
        assert_eq!(of("piece4k", 8192), [true, true]);
        assert_eq!(of("piece4k", 2048), [false, false], "each lies in two of them");
        assert_eq!(of("piece8k", 4096), [true, true]);
        assert_eq!(of("lb512", 8192), [false, false]);
    }

    #[test]
    fn a_split_write_and_a_second_partial_request_are_not_eligible() {
        let bytes = unit(0, 1, 8);
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 2048, &bytes[..2048], true, true);
        b.write(Seq(4), 2048, 2048, &bytes[2048..], true, true);
        assert_eq!(b.finish().eligibility(key(0, 1)), Eligibility::NotEligible(Reason::Split));

        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 4096, &bytes, true, true);
        b.write(Seq(4), 0, 512, &bytes[..512], true, true);
        assert_eq!(b.finish().eligibility(key(0, 1)), Eligibility::NotEligible(Reason::Split));
    }

    #[test]
    fn two_generations_in_one_request_are_not_eligible() {
        let mut bytes = unit(0, 2, 8);
        bytes[2048..].copy_from_slice(&unit(0, 1, 8)[2048..]);
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 4096, &bytes, true, true);
        let wire = b.finish();
        assert_eq!(wire.eligibility(key(0, 2)), Eligibility::NotEligible(Reason::Mixed));
        assert_eq!(wire.eligibility(key(0, 1)), Eligibility::NotEligible(Reason::Mixed));
    }

    #[test]
    fn a_sector_that_was_corrupt_in_its_request_is_mixed_where_the_state_holds_it() {
        let mut bytes = unit(0, 2, 8);
        // Its stamp is of the newer generation, its end of the older.
        bytes[3 * SECTOR + 256..4 * SECTOR]
            .copy_from_slice(&unit(0, 1, 8)[3 * SECTOR + 256..4 * SECTOR]);
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 4096, &bytes, true, true);
        let mut wire = b.finish();
        assert_eq!(wire.eligibility(key(0, 2)), Eligibility::NotEligible(Reason::Mixed));
        assert!(!wire.is_mixed(1, 0, 3), "the state is not known");
        let mut content = Content::default();
        content.blocks.insert(2, Source::Written { request: Seq(3), block: 2 });
        wire.set_content(&content);
        assert!(!wire.is_mixed(1, 0, 3), "the state holds another block");
        content.blocks.insert(3, Source::Written { request: Seq(3), block: 3 });
        wire.set_content(&content);
        assert!(wire.is_mixed(1, 0, 3) && !wire.is_mixed(1, 0, 2) && !wire.is_mixed(1, 1, 3));
    }

    #[test]
    fn several_units_in_one_request_are_whole_each() {
        let mut bytes = unit(0, 1, 8);
        bytes.extend(unit(1, 5, 8));
        let mut b = WireBuilder::new(7, 4096);
        b.write(Seq(3), 0, 8192, &bytes, true, true);
        let wire = b.finish();
        assert_eq!(wire.eligibility(key(0, 1)), Eligibility::Eligible);
        assert_eq!(wire.eligibility(key(1, 5)), Eligibility::Eligible);
    }

    #[test]
    fn what_filled_up_a_partial_block_is_not_the_requests() {
        // 512 bytes of generation 2 written into a 4 KiB block of generation 1.
        let mut bytes = unit(0, 1, 8);
        bytes[512..1024].copy_from_slice(&unit(0, 2, 8)[512..1024]);
        let mut b = WireBuilder::new(7, 4096);
        b.write(Seq(3), 512, 512, &bytes, true, true);
        let wire = b.finish();
        assert_eq!(wire.carriers(key(0, 1)), []);
        assert_eq!(wire.eligibility(key(0, 2)), Eligibility::NotEligible(Reason::Split));
    }

    #[test]
    fn a_crash_point_sees_what_was_submitted_before_it() {
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 2048, &unit(0, 1, 8)[..2048], false, false);
        b.write(Seq(4), 2048, 2048, &unit(0, 1, 8)[2048..], false, false);
        b.write(Seq(5), 4096, 4096, &unit(1, 1, 8), false, false);
        let all = b.finish();
        let wire = all.seen_from(5, |c| c.len <= 4096, |request| request == 5);
        assert_eq!(wire.eligibility(key(0, 1)), Eligibility::NotEligible(Reason::Split));
        assert_eq!(wire.eligibility(key(1, 1)), Eligibility::Eligible);
        assert!(wire.volatile(key(1, 1)) && !wire.volatile(key(0, 1)));
        let wire = all.seen_from(3, |_| true, |_| false);
        assert_eq!(wire.carriers(key(0, 1)).len(), 1);
        assert_eq!(wire.eligibility(key(1, 1)), Eligibility::Unseen);
    }

    #[test]
    fn other_runs_and_other_data_are_ignored() {
        let mut b = WireBuilder::new(8, 512);
        b.write(Seq(3), 0, 4096, &unit(0, 1, 8), true, true);
        b.write(Seq(4), 0, 4096, &[9; 4096], true, true);
        assert_eq!(b.finish().eligibility(key(0, 1)), Eligibility::Unseen);
    }

    #[test]
    fn what_the_state_holds_is_told_by_block() {
        let mut b = WireBuilder::new(7, 512);
        b.write(Seq(3), 0, 4096, &unit(0, 1, 8), true, true);
        b.write(Seq(4), 4096, 4096, &unit(0, 2, 8), true, true);
        let mut wire = b.finish();
        assert_eq!(wire.on_disk(key(0, 1)), None);
        let mut content = Content::default();
        content.blocks.insert(9, Source::Written { request: Seq(3), block: 1 });
        wire.set_content(&content);
        assert_eq!(wire.on_disk(key(0, 1)), Some(true));
        assert_eq!(wire.on_disk(key(0, 2)), Some(false));
    }
}

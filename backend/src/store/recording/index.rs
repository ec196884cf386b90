//! Which bytes each logical block shows now: the newest version of each, and the one before.
//!
//! Blocks are kept by the 64, and those by the 8; what was never written costs nothing, and neither do
//! chunks that were only zeroed, in rows. A lock guards each 64th of the chunks, and a request takes the
//! locks of all its blocks at once, in order: so a read sees all of a write or nothing of it.

use foldhash::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tornblk_model::event::{SECTOR, Seq};
use tornblk_model::extents::{Extents, Run};

const CHUNK: u64 = 64;
/// Of a chunk, blocks that are kept together: a lone small write takes no more than that.
const PART: usize = 8;
const SHARDS: u64 = 64;

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Base,
    Zeroes,
    /// Byte position in the recording.
    At(u64),
}

impl Place {
    /// In sectors, so that it takes 4 bytes: a recording is at most 1 TiB. Its header fills the
    /// first sectors, which leaves small numbers for other things.
    fn pack(self) -> u32 {
        match self {
            Place::Base => 0,
            Place::Zeroes => 1,
            Place::At(position) => (position / SECTOR) as u32,
        }
    }

    fn unpack(packed: u32) -> Place {
        match packed {
            0 => Place::Base,
            1 => Place::Zeroes,
            sectors => Place::At(u64::from(sectors) * SECTOR),
        }
    }

    /// The place of the block `n` blocks later in the same piece.
    pub(super) fn plus(self, bytes: u64) -> Place {
        match self {
            Place::At(position) => Place::At(position + bytes),
            other => other,
        }
    }
}

/// Blocks in a row that are in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub blocks: Range<u64>,
    pub place: Place,
}

#[derive(Default)]
struct Chunk {
    /// What blocks are whose part is not there.
    zeroed: Option<Zeroed>,
    parts: [Option<Box<Part>>; CHUNK as usize / PART],
}

struct Part {
    /// 1 + the submit event of what was executed here; 0: nothing was.
    seq: [u64; PART],
    place: [u32; PART],
    /// The version before.
    earlier: [u32; PART],
}

impl Chunk {
    /// Of block `i`: as [`Part::seq`], its place, and the one before.
    fn get(&self, i: usize) -> (u64, u32, u32) {
        match &self.parts[i / PART] {
            Some(part) => (part.seq[i % PART], part.place[i % PART], part.earlier[i % PART]),
            None => Zeroed::block(self.zeroed),
        }
    }

    /// Block `i` is at `place` since event `seq`, unless it is newer.
    fn put(&mut self, i: usize, seq: u64, place: u32) {
        let zeroed = self.zeroed;
        let part = self.parts[i / PART].get_or_insert_with(|| {
            let (seq, place, earlier) = Zeroed::block(zeroed);
            Box::new(Part { seq: [seq; PART], place: [place; PART], earlier: [earlier; PART] })
        });
        let i = i % PART;
        if part.seq[i] <= seq {
            part.earlier[i] = part.place[i];
            part.place[i] = place;
            part.seq[i] = seq + 1;
        } else {
            part.earlier[i] = place;
        }
    }
}

/// All blocks of a chunk were zeroed at once, and nothing was written there.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Zeroed {
    /// As in [`Part`].
    seq: u64,
    /// The version before was zeroes, too.
    earlier: bool,
}

impl Run for Zeroed {
    fn skip(self, _: u64) -> Zeroed {
        self
    }
}

impl Zeroed {
    /// As [`Chunk::get`], of any block.
    fn block(found: Option<Zeroed>) -> (u64, u32, u32) {
        let zeroes = |yes: bool| if yes { Place::Zeroes } else { Place::Base }.pack();
        let earlier = zeroes(found.is_some_and(|z| z.earlier));
        (found.map_or(0, |z| z.seq), zeroes(found.is_some()), earlier)
    }

    /// What is zeroed by event `seq` where this was.
    fn then(found: Option<Zeroed>, seq: u64) -> Zeroed {
        match found {
            // That was submitted later, and was executed before.
            Some(known) if known.seq > seq => Zeroed { earlier: true, ..known },
            Some(_) => Zeroed { seq: seq + 1, earlier: true },
            None => Zeroed { seq: seq + 1, earlier: false },
        }
    }
}

/// A write that was submitted and is not yet executed.
struct Pending {
    seq: Seq,
    piece: Piece,
}

#[derive(Default)]
struct Shard {
    chunks: HashMap<u64, Box<Chunk>>,
    /// By the number of the chunk in this shard: those that are not in `chunks`.
    zeroed: Extents<Zeroed>,
    pending: Vec<Pending>,
}

pub(super) struct Index {
    lb: u64,
    shards: [Mutex<Shard>; SHARDS as usize],
}

/// Some blocks, locked.
pub(super) struct Locked<'a> {
    lb: u64,
    /// By number of the shard.
    shards: smallvec::SmallVec<[(u64, MutexGuard<'a, Shard>); 4]>,
}

impl Index {
    pub(super) fn new(lb_size: u32) -> Index {
        let shards = std::array::from_fn(|_| Mutex::default());
        Index { lb: u64::from(lb_size), shards }
    }

    pub(super) fn lock(&self, ranges: &[Range<u64>]) -> Locked<'_> {
        let wanted = ranges.iter().fold(0, |all, range| all | mask(range));
        let shards = (0..SHARDS)
            .filter(|n| wanted & 1 << n != 0)
            .map(|n| (n, self.shards[n as usize].lock().unwrap_or_else(PoisonError::into_inner)))
            .collect();
        Locked { lb: self.lb, shards }
    }
}

impl Locked<'_> {
    fn shard(&self, chunk: u64) -> &Shard {
        let i = self.position(chunk);
        &self.shards[i].1
    }

    fn shard_mut(&mut self, chunk: u64) -> &mut Shard {
        let i = self.position(chunk);
        &mut self.shards[i].1
    }

    fn position(&self, chunk: u64) -> usize {
        match self.shards.binary_search_by_key(&(chunk % SHARDS), |(n, _)| *n) {
            Ok(i) => i,
            Err(_) => unreachable!("chunk {chunk} was locked with its request"),
        }
    }

    /// What the blocks show; `stale`: what they showed before their newest version.
    pub(super) fn pieces(&self, blocks: Range<u64>, stale: bool) -> smallvec::SmallVec<[Piece; 4]> {
        let mut pieces: smallvec::SmallVec<[Piece; 4]> = smallvec::SmallVec::new();
        for (chunk, part) in chunks(blocks) {
            let shard = self.shard(chunk);
            let found = shard.chunks.get(&chunk);
            let zeroed = found.is_none().then(|| shard.zeroed.get(chunk / SHARDS)).flatten();
            let all = Zeroed::block(zeroed);
            for block in part {
                let (_, place, earlier) = found.map_or(all, |c| c.get((block % CHUNK) as usize));
                let place = Place::unpack(if stale { earlier } else { place });
                match pieces.last_mut() {
                    Some(last)
                        if last.place.plus((block - last.blocks.start) * self.lb) == place =>
                    {
                        last.blocks.end = block + 1;
                    }
                    _ => pieces.push(Piece { blocks: block..block + 1, place }),
                }
            }
        }
        pieces
    }

    /// The blocks were written: they show the piece, unless a write submitted later was executed
    /// before.
    pub(super) fn put(&mut self, seq: Seq, piece: &Piece) {
        let Range { start, end } = piece.blocks;
        let whole = start.div_ceil(CHUNK)..end / CHUNK;
        if piece.place != Place::Zeroes || whole.is_empty() {
            return self.put_blocks(seq, piece, start..end);
        }
        self.put_blocks(seq, piece, start..whole.start * CHUNK);
        self.zero_chunks(seq, piece, whole.clone());
        self.put_blocks(seq, piece, whole.end * CHUNK..end);
    }

    /// As [`Locked::put`] of zeroes, for whole chunks: their number costs nothing.
    fn zero_chunks(&mut self, seq: Seq, piece: &Piece, chunks: Range<u64>) {
        let mut kept = Vec::new();
        for (n, shard) in &mut self.shards {
            // Its chunks among them, by their number in the shard.
            let first = (chunks.start + SHARDS - 1 - *n) / SHARDS;
            let end = (chunks.end + SHARDS - 1 - *n) / SHARDS;
            if first >= end {
                continue;
            }
            let runs: Vec<_> = shard.zeroed.runs(first..end).collect();
            for (run, found) in runs {
                shard.zeroed.set(run, Zeroed::then(found, seq.0));
            }
            let own = first..end;
            if (own.end - own.start) < shard.chunks.len() as u64 {
                let numbers = own.map(|i| i * SHARDS + *n);
                kept.extend(numbers.filter(|chunk| shard.chunks.contains_key(chunk)));
            } else {
                kept.extend(shard.chunks.keys().filter(|c| own.contains(&(*c / SHARDS))));
            }
        }
        for chunk in kept {
            let own = chunk / SHARDS;
            self.shard_mut(chunk).zeroed.clear(own..own + 1);
            self.put_blocks(seq, piece, chunk * CHUNK..(chunk + 1) * CHUNK);
        }
    }

    /// Of the piece, these blocks.
    fn put_blocks(&mut self, seq: Seq, piece: &Piece, blocks: Range<u64>) {
        let lb = self.lb;
        for (number, part) in chunks(blocks) {
            let Shard { chunks, zeroed, .. } = self.shard_mut(number);
            let chunk = chunks.entry(number).or_insert_with(|| {
                let own = number / SHARDS;
                let found = zeroed.get(own);
                zeroed.clear(own..own + 1);
                Box::new(Chunk { zeroed: found, ..Chunk::default() })
            });
            for block in part {
                let place = piece.place.plus((block - piece.blocks.start) * lb).pack();
                chunk.put((block % CHUNK) as usize, seq.0, place);
            }
        }
    }

    /// A write of these blocks was submitted, and will be executed.
    pub(super) fn announce(&mut self, seq: Seq, piece: &Piece) {
        let wanted = mask(&piece.blocks);
        for (n, shard) in &mut self.shards {
            if wanted & 1 << *n != 0 {
                shard.pending.push(Pending { seq, piece: piece.clone() });
            }
        }
    }

    /// It was executed, or never will be.
    pub(super) fn withdraw(&mut self, seq: Seq) {
        for (_, shard) in &mut self.shards {
            shard.pending.retain(|p| p.seq != seq);
        }
    }

    /// Where the bytes are that a block will show once all that was submitted is executed.
    pub(super) fn submitted(&self, block: u64) -> Place {
        let chunk = block / CHUNK;
        let shard = self.shard(chunk);
        let (newest, place, _) = match shard.chunks.get(&chunk) {
            Some(c) => c.get((block % CHUNK) as usize),
            None => Zeroed::block(shard.zeroed.get(chunk / SHARDS)),
        };
        let pending = shard
            .pending
            .iter()
            .filter(|p| p.piece.blocks.contains(&block) && p.seq.0 >= newest)
            .max_by_key(|p| p.seq);
        match pending {
            Some(p) => p.piece.place.plus((block - p.piece.blocks.start) * self.lb),
            None => Place::unpack(place),
        }
    }
}

fn mask(blocks: &Range<u64>) -> u64 {
    let chunks = chunks(blocks.clone()).take(SHARDS as usize);
    chunks.fold(0, |mask, (chunk, _)| mask | 1 << (chunk % SHARDS))
}

/// The blocks by their chunks.
fn chunks(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let Range { start, end } = blocks;
    let numbers = if start < end { start / CHUNK..(end - 1) / CHUNK + 1 } else { 0..0 };
    numbers.map(move |n| (n, start.max(n * CHUNK)..end.min((n + 1) * CHUNK)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = CHUNK * SHARDS * 3 + 100;

    /// Every block by itself: 1 + its newest event, the place, and the one before.
    type Plain = Vec<(u64, Place, Place)>;

    fn put(plain: &mut Plain, seq: u64, piece: &Piece) {
        for block in piece.blocks.clone() {
            let (newest, place, earlier) = &mut plain[block as usize];
            let mine = piece.place.plus((block - piece.blocks.start) * 512);
            if *newest <= seq {
                (*newest, *earlier, *place) = (seq + 1, *place, mine);
            } else {
                *earlier = mine;
            }
        }
    }

    fn step() -> impl Strategy<Value = (u64, u64, bool, u64)> {
        let len = prop_oneof![1..100u64, 1..BLOCKS, Just(CHUNK), Just(BLOCKS)];
        (0..BLOCKS, len, any::<bool>(), 0..12u64)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        /// Whatever the order in which they are executed.
        #[test]
        fn it_is_what_a_list_of_blocks_is(steps in prop::collection::vec(step(), 1..12)) {
            let index = Index::new(512);
            let mut plain: Plain = vec![(0, Place::Base, Place::Base); BLOCKS as usize];
            for (i, (start, len, zeroes, seq)) in (1u64..).zip(steps) {
                let blocks = start..(start + len).min(BLOCKS);
                let place = if zeroes { Place::Zeroes } else { Place::At(i << 30) };
                let (seq, piece) = (seq * 100 + i, Piece { blocks: blocks.clone(), place });
                index.lock(std::slice::from_ref(&blocks)).put(Seq(seq), &piece);
                put(&mut plain, seq, &piece);
            }
            let all = 0..BLOCKS;
            let locked = index.lock(std::slice::from_ref(&all));
            for stale in [false, true] {
                for piece in locked.pieces(all.clone(), stale) {
                    for block in piece.blocks.clone() {
                        let (_, place, earlier) = plain[block as usize];
                        let expected = if stale { earlier } else { place };
                        let found = piece.place.plus((block - piece.blocks.start) * 512);
                        prop_assert_eq!(found, expected, "block {} stale {}", block, stale);
                    }
                }
            }
            for block in (0..BLOCKS).step_by(17) {
                prop_assert_eq!(locked.submitted(block), plain[block as usize].1);
            }
        }
    }

    #[test]
    fn a_discard_of_a_whole_disk_takes_a_run_a_shard() {
        let index = Index::new(512);
        // 1 TiB.
        let blocks = 5..1 << 31;
        let locked = &mut index.lock(std::slice::from_ref(&blocks));
        for seq in 0..3 {
            locked.put(Seq(seq), &Piece { blocks: blocks.clone(), place: Place::Zeroes });
        }
        let (mut chunks, mut runs) = (0, 0);
        for (_, shard) in &locked.shards {
            chunks += shard.chunks.len();
            runs += shard.zeroed.len();
        }
        assert_eq!((chunks, runs), (1, 64));
        assert_eq!(locked.submitted(1 << 30), Place::Zeroes);
        assert_eq!(locked.submitted(4), Place::Base);
    }
}

//! Which bytes each logical block shows now: the newest version of each, and the one before.
//!
//! Blocks are kept by the 64; a chunk that was never written costs nothing. A lock guards each
//! 64th of the chunks, and a request takes the locks of all its blocks at once, in order: so a
//! read sees all of a write or nothing of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tornblk_model::event::{SECTOR, Seq};

const CHUNK: u64 = 64;
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

struct Chunk {
    /// 1 + the submit event of what was executed here; 0: nothing was.
    seq: [u64; CHUNK as usize],
    place: [u32; CHUNK as usize],
    /// The version before.
    earlier: [u32; CHUNK as usize],
}

/// A write that was submitted and is not yet executed.
struct Pending {
    seq: Seq,
    piece: Piece,
}

#[derive(Default)]
struct Shard {
    chunks: HashMap<u64, Box<Chunk>>,
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
            let found = self.shard(chunk).chunks.get(&chunk);
            for block in part {
                let i = (block % CHUNK) as usize;
                let place = found.map_or(Place::Base, |c| {
                    Place::unpack(if stale { c.earlier[i] } else { c.place[i] })
                });
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
        let lb = self.lb;
        for (number, part) in chunks(piece.blocks.clone()) {
            let chunk = self.shard_mut(number).chunks.entry(number).or_insert_with(|| {
                let (seq, place) = ([0; CHUNK as usize], [0; CHUNK as usize]);
                Box::new(Chunk { seq, place, earlier: place })
            });
            for block in part {
                let i = (block % CHUNK) as usize;
                let place = piece.place.plus((block - piece.blocks.start) * lb).pack();
                if chunk.seq[i] <= seq.0 {
                    chunk.earlier[i] = chunk.place[i];
                    chunk.place[i] = place;
                    chunk.seq[i] = seq.0 + 1;
                } else {
                    chunk.earlier[i] = place;
                }
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
        let i = (block % CHUNK) as usize;
        let executed = shard.chunks.get(&chunk).map_or((0, 0), |c| (c.seq[i], c.place[i]));
        let newest = shard
            .pending
            .iter()
            .filter(|p| p.piece.blocks.contains(&block) && p.seq.0 >= executed.0)
            .max_by_key(|p| p.seq);
        match newest {
            Some(p) => p.piece.place.plus((block - p.piece.blocks.start) * self.lb),
            None => Place::unpack(executed.1),
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

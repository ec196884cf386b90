//! Where btrfs keeps what. The places that it tells of its files (FIEMAP) are in an address space of its
//! own, which its chunk tree maps to the disk.

use std::fs::File;
use std::io;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
const SUPER_MAGIC: u32 = 0x9123_683e;

/// `struct btrfs_ioctl_search_key` of `linux/btrfs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct Key {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused64: [u64; 4],
}

const FOUND: usize = 4096 - size_of::<Key>();

/// `struct btrfs_ioctl_search_args` of `linux/btrfs.h`.
#[repr(C)]
struct Search {
    key: Key,
    /// Items one after another: a head of [`HEAD`] bytes, and what it is about.
    found: [u8; FOUND],
}

/// `BTRFS_IOC_TREE_SEARCH`
const TREE_SEARCH: Opcode = opcode::read_write::<Search>(0x94, 17);
/// `struct btrfs_ioctl_search_header`: transid, objectid, offset, type, len.
const HEAD: usize = 32;
/// `BTRFS_CHUNK_TREE_OBJECTID`, `BTRFS_FIRST_CHUNK_TREE_OBJECTID` and `BTRFS_CHUNK_ITEM_KEY` of
/// `linux/btrfs_tree.h`.
const CHUNK_TREE: u64 = 3;
const FIRST_CHUNK: u64 = 256;
const CHUNK_ITEM: u32 = 228;
/// In `struct btrfs_chunk` there: its length, its kind, how many stripes it has, and where on the disk the
/// first of them is.
const LENGTH_AT: usize = 0;
const TYPE_AT: usize = 24;
const STRIPES_AT: usize = 44;
const FIRST_STRIPE_AT: usize = 48 + 8;
/// `BTRFS_BLOCK_GROUP_DUP`: its stripes are copies of one another.
const DUP: u64 = 1 << 5;

/// A piece of the address space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    logical: u64,
    len: u64,
    /// Of the first copy.
    on_disk: u64,
}

/// The address space of one file system, which lies on one disk.
#[derive(Clone, Debug, Default)]
pub struct Chunks(Vec<Chunk>);

/// Is it of btrfs?
pub fn is_btrfs(file: &File) -> bool {
    // The kernel's type is signed here, and unsigned there.
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u32 == SUPER_MAGIC)
}

impl Chunks {
    /// Of the file system that has this file or folder.
    pub fn of(file: &File) -> io::Result<Chunks> {
        let (mut chunks, mut from) = (Vec::new(), 0);
        loop {
            let key = Key {
                tree_id: CHUNK_TREE,
                min_objectid: FIRST_CHUNK,
                max_objectid: FIRST_CHUNK,
                min_offset: from,
                max_offset: u64::MAX,
                max_transid: u64::MAX,
                min_type: CHUNK_ITEM,
                max_type: CHUNK_ITEM,
                nr_items: u32::MAX,
                ..Key::default()
            };
            let mut search = Search { key, found: [0; FOUND] };
            // SAFETY: the ioctl reads and writes one `btrfs_ioctl_search_args`, and nothing behind it.
            unsafe { ioctl(file, Updater::<TREE_SEARCH, Search>::new(&mut search))? };
            let n = search.key.nr_items;
            let last = read(&search.found, n, &mut chunks);
            match last {
                Some(last) if last < u64::MAX => from = last + 1,
                _ => return Ok(Chunks(chunks)),
            }
        }
    }

    /// Where on the disk this place of the address space is, and for how many bytes at most; `None`: it is
    /// no place of a file's data (what lies in the tree itself), or in more pieces than can be told.
    pub fn on_disk(&self, logical: u64) -> Option<(u64, u64)> {
        let inside = |c: &&Chunk| (c.logical..c.logical.saturating_add(c.len)).contains(&logical);
        let chunk = self.0.iter().find(inside)?;
        let into = logical - chunk.logical;
        Some((chunk.on_disk + into, chunk.len - into))
    }
}

/// Reads the items that were found. → where the last chunk begins.
fn read(found: &[u8], items: u32, chunks: &mut Vec<Chunk>) -> Option<u64> {
    let (mut rest, mut last) = (found, None);
    for _ in 0..items {
        let (head, behind) = rest.split_at_checked(HEAD)?;
        let (logical, len) = (number(head, 16)?, u32_at(head, 28)? as usize);
        let (item, behind) = behind.split_at_checked(len)?;
        (rest, last) = (behind, Some(logical));
        let stripes = u16::from_le_bytes(item.get(STRIPES_AT..)?.first_chunk().copied()?);
        if stripes == 1 || number(item, TYPE_AT)? & DUP != 0 {
            let (len, on_disk) = (number(item, LENGTH_AT)?, number(item, FIRST_STRIPE_AT)?);
            chunks.push(Chunk { logical, len, on_disk });
        }
    }
    last
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn item(logical: u64, len: u64, kind: u64, stripes: &[u64]) -> Vec<u8> {
        let mut chunk = Vec::new();
        for n in [len, 2, 65536, kind] {
            chunk.extend(n.to_le_bytes());
        }
        chunk.extend([0; 12]);
        chunk.extend((stripes.len() as u16).to_le_bytes());
        chunk.extend([0; 2]);
        for offset in stripes {
            chunk.extend(1u64.to_le_bytes());
            chunk.extend(offset.to_le_bytes());
            chunk.extend([7; 16]);
        }
        let mut item = Vec::new();
        for n in [5, FIRST_CHUNK, logical] {
            item.extend(n.to_le_bytes());
        }
        item.extend(CHUNK_ITEM.to_le_bytes());
        item.extend((chunk.len() as u32).to_le_bytes());
        [item, chunk].concat()
    }

    #[test]
    fn places_of_the_address_space_are_found_on_the_disk() {
        let found = [
            item(1 << 20, 1 << 20, 1, &[3 << 20]),
            item(2 << 20, 1 << 20, 4 | DUP, &[8 << 20, 9 << 20]),
            item(4 << 20, 1 << 20, 8, &[20 << 20, 21 << 20]),
        ]
        .concat();
        let mut chunks = Vec::new();
        assert_eq!(read(&found, 3, &mut chunks), Some(4 << 20));
        let chunks = Chunks(chunks);
        assert_eq!(chunks.on_disk((1 << 20) + 4096), Some(((3 << 20) + 4096, (1 << 20) - 4096)));
        assert_eq!(chunks.on_disk(2 << 20), Some((8 << 20, 1 << 20)));
        // In stripes: it has no one place.
        assert_eq!((chunks.on_disk(4 << 20), chunks.on_disk(0)), (None, None));
        // Less than is said, or nothing: no panic, and no chunk that is not there.
        let mut none = Vec::new();
        assert_eq!(read(&found[..50], 1, &mut none), None);
        assert_eq!((read(&[], 0, &mut none), none.len()), (None, 0));
    }

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Key>(), size_of::<Search>()), (104, 4096));
    }
}

//! Ways of making a page last that are wrong on purpose, and their correct twins.
//!
//! They show that exploring finds what it is for. A page is committed by a sequence of [`Step`]s,
//! which a driver carries out: the agent on a real disk, tests on a simulated one. After a crash
//! [`recover`] looks at a page and its slot, and the page must be whole, and no older than the last
//! commit that was acknowledged. All of this is pure: no I/O, no clocks.
//!
//! | protocol | a commit | the bug |
//! | --- | --- | --- |
//! | `journal` | record; flush; page in place; flush | no flush after the record: the page may be torn while the record is lost |
//! | `page` | one request for the page; flush | four requests, on a disk that keeps each whole, and not the four of them |
//! | `double-write` | flush of the pages that the slot guards; slot; flush, and it is acknowledged; page in place | the slot is used again with no flush of the page that it guards |
//! | `flush` | page; when that has returned: flush | the flush is queued at once: it need not cover the page |
//!
//! On the disk, from [`Target::offset`]: the pages (the target's units), then the slots.
//!
//! ```text
//! slot:  header (4096 bytes)   then the page's image
//!   0  magic        8  "tornlog1"
//!   8  nonce        8  the run
//!  16  unit         8  number of the page in its file
//!  24  file         4  number of the file
//!  28  generation   4  of the image
//!  32  checksum     8  of the image (FNV-1a by 8 bytes)
//! 508  crc32c       4  of bytes 0..508; the rest is zero
//! ```

use crate::channel::{Found, Target, WriteFlags};
use crate::payload::{self, SECTOR, Stamp};
use serde::{Deserialize, Serialize};
use std::ops::Range;

const MAGIC: [u8; 8] = *b"tornlog1";
/// Bytes before a slot's image: the largest common logical block, so that the image is aligned.
pub const HEADER: u32 = 4096;
/// Pieces of a page that is wrongly sent in several requests.
const PIECES: u32 = 4;

/// How a target's units are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    pub protocol: Protocol,
    /// Wrong on purpose; else its correct twin.
    #[serde(default)]
    pub bug: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Journal,
    Page,
    DoubleWrite,
    Flush,
}

impl Protocol {
    pub const ALL: [Protocol; 4] =
        [Protocol::Journal, Protocol::Page, Protocol::DoubleWrite, Protocol::Flush];

    /// Needs a disk that keeps a request for a page whole.
    pub fn needs_whole_requests(self) -> bool {
        matches!(self, Protocol::Page | Protocol::Flush)
    }
}

/// The flags of every write of a planted target.
pub const FLAGS: WriteFlags = WriteFlags { direct: true, protocol: true, ..WriteFlags::PLAIN };

/// What a driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Submits a write of these bytes of the page, in place.
    Page { from: u32, len: u32 },
    /// Submits a write of the page's slot: header and image.
    Slot,
    /// Submits a flush (fdatasync).
    Flush,
    /// Waits until all that this thread submitted has returned.
    Wait,
    /// Tells that the commit is durable.
    Acknowledge,
}

/// The commits of one thread, which has its units for itself.
#[derive(Clone, Debug)]
pub struct Committer {
    planted: Planted,
    unit: u32,
    /// A page that its slot guards may not be on the disk yet.
    guarding: bool,
}

impl Committer {
    pub fn new(target: &Target, planted: Planted) -> Committer {
        Committer { planted, unit: target.unit, guarding: false }
    }

    /// The steps of the thread's next commit.
    pub fn commit(&mut self) -> Vec<Step> {
        use Step::{Acknowledge, Flush, Page, Slot, Wait};
        let page = Page { from: 0, len: self.unit };
        match self.planted {
            Planted { protocol: Protocol::Journal, bug } => {
                let mut steps = vec![Slot, Wait];
                if !bug {
                    steps.extend([Flush, Wait]);
                }
                steps.extend([page, Wait, Flush, Wait, Acknowledge]);
                steps
            }
            Planted { protocol: Protocol::Page, bug } => {
                let mut steps = if bug {
                    let len = self.unit / PIECES;
                    (0..PIECES).map(|i| Page { from: i * len, len }).collect()
                } else {
                    vec![page]
                };
                steps.extend([Wait, Flush, Wait, Acknowledge]);
                steps
            }
            Planted { protocol: Protocol::DoubleWrite, bug } => {
                let mut steps = Vec::new();
                if std::mem::replace(&mut self.guarding, true) && !bug {
                    steps.extend([Flush, Wait]);
                }
                steps.extend([Slot, Wait, Flush, Wait, Acknowledge, page, Wait]);
                steps
            }
            Planted { protocol: Protocol::Flush, bug } => {
                let mut steps = vec![page];
                if !bug {
                    steps.push(Wait);
                }
                steps.extend([Flush, Wait, Acknowledge]);
                steps
            }
        }
    }
}

/// How many slots a target has: of a journal one a page, of a double-write buffer one a thread,
/// which its pages share.
pub fn slots(target: &Target) -> u32 {
    match target.planted.map(|p| p.protocol) {
        Some(Protocol::Journal) => target.units,
        Some(Protocol::DoubleWrite) => target.threads,
        Some(Protocol::Page | Protocol::Flush) | None => 0,
    }
}

/// Bytes of one slot.
pub fn slot_len(target: &Target) -> u32 {
    HEADER + target.unit
}

/// Where the slot of a unit is in the file (bytes); `None`: its protocol has none.
pub fn slot_of(target: &Target, unit: u64) -> Option<Range<u64>> {
    let number = match target.planted?.protocol {
        Protocol::Journal => unit,
        Protocol::DoubleWrite => unit % u64::from(target.threads),
        Protocol::Page | Protocol::Flush => return None,
    };
    let len = u64::from(slot_len(target));
    let start = target.offset_of(target.units.into()) + number * len;
    Some(start..start + len)
}

/// Fills a slot with the record of what `stamp` says, the page's image among it.
pub fn fill_slot(slot: &mut [u8], stamp: Stamp) {
    let (header, image) = slot.split_at_mut(HEADER as usize);
    payload::fill(image, stamp);
    header.fill(0);
    header[0..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&stamp.nonce.to_le_bytes());
    header[16..24].copy_from_slice(&stamp.unit.to_le_bytes());
    header[24..28].copy_from_slice(&stamp.file.to_le_bytes());
    header[28..32].copy_from_slice(&stamp.generation.to_le_bytes());
    header[32..40].copy_from_slice(&checksum(image).to_le_bytes());
    let crc = crc32c::crc32c(&header[..508]);
    header[508..512].copy_from_slice(&crc.to_le_bytes());
}

/// No crc32c: every sector of an image ends in its own, and over such data it is always the same,
/// torn or not.
fn checksum(image: &[u8]) -> u64 {
    image.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a slot's record says, if all of it is there: (unit, file, generation).
pub fn read_slot(slot: &[u8], nonce: u64) -> Option<(u64, u32, u32)> {
    let (header, image) = slot.split_at_checked(HEADER as usize)?;
    let of = read_header(header, nonce)?;
    (checksum(image) == u64_at(header, 32)).then_some(of)
}

/// What a slot's header says, whatever became of the image, by its first sector: (unit, file,
/// generation).
pub fn read_header(header: &[u8], nonce: u64) -> Option<(u64, u32, u32)> {
    let sector = header.get(..SECTOR)?;
    let sound = sector[..8] == MAGIC
        && crc32c::crc32c(&sector[..508]) == u32_at(sector, 508)
        && u64_at(sector, 8) == nonce;
    sound.then(|| (u64_at(sector, 16), u32_at(sector, 24), u32_at(sector, 28)))
}

fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]])
}

fn u64_at(bytes: &[u8], i: usize) -> u64 {
    u64::from(u32_at(bytes, i)) | u64::from(u32_at(bytes, i + 4)) << 32
}

/// Which page it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageId {
    pub nonce: u64,
    pub file: u32,
    pub unit: u64,
}

/// The generation of a page whose sectors are all of one.
pub fn whole(page: &[u8], id: PageId) -> Option<u32> {
    let mut generation = None;
    for (i, sector) in page.chunks(SECTOR).enumerate() {
        match payload::classify(sector, id.nonce, id.file, id.unit, i as u32) {
            Found::Own { r#gen } if generation.is_none_or(|g| g == r#gen) => {
                generation = Some(r#gen);
            }
            _ => return None,
        }
    }
    generation
}

/// What recovery makes of a page: its image from the slot where that holds one of this page, and
/// the page itself is older or not whole. Returns whether it did.
pub fn recover(page: &mut [u8], slot: &[u8], id: PageId) -> bool {
    let Some((unit, file, logged)) = read_slot(slot, id.nonce) else { return false };
    if (unit, file) != (id.unit, id.file) || whole(page, id).is_some_and(|g| g >= logged) {
        return false;
    }
    page.copy_from_slice(&slot[HEADER as usize..]);
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::channel::Prepare;

    const ID: PageId = PageId { nonce: 7, file: 2, unit: 5 };

    fn target(protocol: Protocol, bug: bool) -> Target {
        Target {
            file: 2,
            path: "/dev/vda".into(),
            offset: 65536,
            unit: 16384,
            units: 8,
            threads: 2,
            depth: 1,
            flags: vec![FLAGS],
            prepare: Prepare::AsIs,
            planted: Some(Planted { protocol, bug }),
            ..Target::default()
        }
    }

    fn stamp(generation: u32) -> Stamp {
        let PageId { nonce, file, unit } = ID;
        Stamp { nonce, unit, file, generation, sector: 0, sectors: 0 }
    }

    fn page(generation: u32) -> Vec<u8> {
        let mut page = vec![0; 16384];
        payload::fill(&mut page, stamp(generation));
        page
    }

    fn slot(generation: u32) -> Vec<u8> {
        let mut slot = vec![9; 16384 + 4096];
        fill_slot(&mut slot, stamp(generation));
        slot
    }

    #[test]
    fn slots_lie_behind_the_pages_and_apart() {
        let journal = target(Protocol::Journal, false);
        assert_eq!(slots(&journal), 8);
        let of = |t: &Target, unit| slot_of(t, unit).unwrap();
        assert_eq!(of(&journal, 0).start, 65536 + 8 * 16384);
        assert_eq!(of(&journal, 1).start, of(&journal, 0).end);
        assert_eq!(of(&journal, 7).end, journal.end());
        let buffer = target(Protocol::DoubleWrite, false);
        assert_eq!(slots(&buffer), 2);
        assert_eq!((of(&buffer, 0), of(&buffer, 1)), (of(&buffer, 6), of(&buffer, 7)));
        assert_eq!(of(&buffer, 1).end, buffer.end());
        let page = target(Protocol::Page, true);
        assert_eq!((slots(&page), slot_of(&page, 0)), (0, None));
        assert_eq!(page.end(), page.offset_of(8));
    }

    #[test]
    fn a_torn_or_older_page_is_taken_from_its_slot_and_a_newer_one_is_kept() {
        for (mut found, logged, restored, shows) in [
            (page(3), 4, true, 4),
            (page(4), 4, false, 4),
            (page(5), 4, false, 5),
            ([&page(3)[..8192], &page(4)[8192..]].concat(), 4, true, 4),
            (vec![0; 16384], 4, true, 4),
        ] {
            assert_eq!(recover(&mut found, &slot(logged), ID), restored);
            assert_eq!(whole(&found, ID), Some(shows));
        }
    }

    #[test]
    fn a_record_that_is_torn_or_of_another_page_or_run_is_none() {
        let torn = [&page(3)[..8192], &page(4)[8192..]].concat();
        let other = |id: PageId, slot: &[u8]| {
            let mut page = torn.clone();
            assert!(!recover(&mut page, slot, id));
            assert_eq!(page, torn);
        };
        for at in [0, 33, 510, 4096, 9000, 20479] {
            let mut slot = slot(4);
            slot[at] ^= 1;
            other(ID, &slot);
        }
        // Sectors that are sound each, and of two generations.
        for sector in 0..32 {
            let mut slot = slot(4);
            let at = 4096 + sector * 512;
            slot[at..at + 512].copy_from_slice(&page(3)[sector * 512..][..512]);
            other(ID, &slot);
        }
        other(PageId { unit: 6, ..ID }, &slot(4));
        other(PageId { file: 3, ..ID }, &slot(4));
        other(PageId { nonce: 8, ..ID }, &slot(4));
        other(ID, &[0; 20480]);
        other(ID, &[]);
    }

    #[test]
    fn a_bug_is_one_flush_or_wait_less_or_more_requests() {
        let steps = |protocol, bug| {
            let target = target(protocol, bug);
            let mut committer = Committer::new(&target, target.planted.unwrap());
            [committer.commit(), committer.commit()].concat()
        };
        let count =
            |protocol, bug, step| steps(protocol, bug).into_iter().filter(|s| *s == step).count();
        assert_eq!(count(Protocol::Journal, false, Step::Flush), 4);
        assert_eq!(count(Protocol::Journal, true, Step::Flush), 2);
        // The first commit has nothing to flush before it uses the slot.
        assert_eq!(count(Protocol::DoubleWrite, false, Step::Flush), 3);
        assert_eq!(count(Protocol::DoubleWrite, true, Step::Flush), 2);
        assert_eq!(count(Protocol::Flush, false, Step::Wait), 4);
        assert_eq!(count(Protocol::Flush, true, Step::Wait), 2);
        let page = Step::Page { from: 0, len: 16384 };
        assert_eq!(count(Protocol::Page, false, page), 2);
        assert_eq!(count(Protocol::Page, true, page), 0);
        assert_eq!(count(Protocol::Page, true, Step::Page { from: 12288, len: 4096 }), 2);
        for protocol in Protocol::ALL {
            for bug in [false, true] {
                assert_eq!(count(protocol, bug, Step::Acknowledge), 2);
            }
        }
    }
}

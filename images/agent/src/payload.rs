//! How every 512-byte sector that a workload writes describes itself.
//!
//! ```text
//!   0  magic        8  "tornblk1"
//!   8  nonce        8  the run
//!  16  unit         8  number of the unit in its file
//!  24  file         4  number of the file
//!  28  generation   4  counts the writes of this unit, from 0
//!  32  sector       4  number of the sector in its unit
//!  36  sectors      4  in the unit
//!  40  body       468  pseudo-random, from all of the above
//! 508  crc32c       4  of bytes 0..508
//! ```
//! All little-endian. 512 bytes and not a logical block, so that one format serves every disk.
//! Torn, stale, misdirected, lost and foreign are five different findings with it.

use crate::channel::Found;

pub const MAGIC: [u8; 8] = *b"tornblk1";
pub const SECTOR: usize = 512;

/// What the disk holds before its file system is made, so that whoever shows it to a file is caught:
/// this, again and again.
pub const POISON: [u8; 8] = *b"poison!\n";

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub nonce: u64,
    pub unit: u64,
    pub file: u32,
    pub generation: u32,
    pub sector: u32,
    pub sectors: u32,
}

/// Fills `unit` (a multiple of 512 bytes) with stamped sectors. `sector` and `sectors` of `stamp`
/// are set here.
pub fn fill(unit: &mut [u8], stamp: Stamp) {
    let sectors = (unit.len() / SECTOR) as u32;
    for (i, block) in unit.chunks_exact_mut(SECTOR).enumerate() {
        let s = Stamp { sector: i as u32, sectors, ..stamp };
        block[0..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&s.nonce.to_le_bytes());
        block[16..24].copy_from_slice(&s.unit.to_le_bytes());
        block[24..28].copy_from_slice(&s.file.to_le_bytes());
        block[28..32].copy_from_slice(&s.generation.to_le_bytes());
        block[32..36].copy_from_slice(&s.sector.to_le_bytes());
        block[36..40].copy_from_slice(&s.sectors.to_le_bytes());
        body(&mut block[40..508], &s);
        let crc = crc32c::crc32c(&block[..508]);
        block[508..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Different in every sector and generation, so that no two are equal by chance, and the same on
/// every machine (SplitMix64).
fn body(out: &mut [u8], s: &Stamp) {
    let mut x = s.nonce
        ^ s.unit.rotate_left(17)
        ^ (u64::from(s.file) << 40)
        ^ (u64::from(s.generation) << 8)
        ^ u64::from(s.sector).rotate_left(52);
    for word in out.chunks_mut(8) {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = x;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
    }
}

/// What a sector holds, whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Stamped(Stamp),
    /// Our magic, but a wrong checksum.
    Corrupt,
    Zero,
    /// [`POISON`]
    Poison,
    Unknown,
}

/// Reads one 512-byte sector.
pub fn read(sector: &[u8]) -> Read {
    let u32_at =
        |i: usize| u32::from_le_bytes([sector[i], sector[i + 1], sector[i + 2], sector[i + 3]]);
    if sector.len() != SECTOR {
        return Read::Unknown;
    }
    if sector[..8] != MAGIC {
        return if sector.iter().all(|b| *b == 0) {
            Read::Zero
        } else if sector.chunks(POISON.len()).all(|word| word == POISON) {
            Read::Poison
        } else {
            Read::Unknown
        };
    }
    if crc32c::crc32c(&sector[..508]) != u32_at(508) {
        return Read::Corrupt;
    }
    Read::Stamped(stamp(sector))
}

/// What a corrupt sector says it is; `None` for every other. Where it was copied while it was
/// written over, all but the generation is right.
pub fn claimed(sector: &[u8]) -> Option<Stamp> {
    (read(sector) == Read::Corrupt).then(|| stamp(sector))
}

/// The stamp of a whole sector, whatever its checksum.
fn stamp(sector: &[u8]) -> Stamp {
    let u32_at =
        |i: usize| u32::from_le_bytes([sector[i], sector[i + 1], sector[i + 2], sector[i + 3]]);
    let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
    Stamp {
        nonce: u64_at(8),
        unit: u64_at(16),
        file: u32_at(24),
        generation: u32_at(28),
        sector: u32_at(32),
        sectors: u32_at(36),
    }
}

/// What a sector means where sector number `sector` of `unit` of `file` is expected.
pub fn classify(block: &[u8], nonce: u64, file: u32, unit: u64, sector: u32) -> Found {
    match read(block) {
        Read::Stamped(s) if s.nonce != nonce => Found::Foreign { nonce: s.nonce },
        Read::Stamped(s) if (s.file, s.unit, s.sector) == (file, unit, sector) => {
            Found::Own { r#gen: s.generation }
        }
        Read::Stamped(s) => {
            Found::Misplaced { file: s.file, unit: s.unit, sector: s.sector, r#gen: s.generation }
        }
        Read::Corrupt => Found::Corrupt {},
        Read::Zero => Found::Zero {},
        Read::Poison => Found::Poison {},
        Read::Unknown => Found::Unknown {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_where_it_belongs() {
        let mut unit = vec![0; 4096];
        let stamp = Stamp { nonce: 7, unit: 3, file: 2, generation: 9, sector: 0, sectors: 0 };
        fill(&mut unit, stamp);
        assert_eq!(classify(&unit[512..1024], 7, 2, 3, 1), Found::Own { r#gen: 9 });
        assert_eq!(
            classify(&unit[512..1024], 7, 2, 3, 0),
            Found::Misplaced { file: 2, unit: 3, sector: 1, r#gen: 9 }
        );
        assert_eq!(classify(&unit[512..1024], 8, 2, 3, 1), Found::Foreign { nonce: 7 });
        unit[600] ^= 1;
        assert_eq!(classify(&unit[512..1024], 7, 2, 3, 1), Found::Corrupt {});
        assert_eq!(classify(&[0; 512], 7, 2, 3, 1), Found::Zero {});
        assert_eq!(classify(&[1; 512], 7, 2, 3, 1), Found::Unknown {});
        assert_eq!(classify(&POISON.repeat(64), 7, 2, 3, 1), Found::Poison {});
    }
}

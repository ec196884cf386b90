//! PostgreSQL's pages with data checksums (`initdb --data-checksums`): 16 bits of the page and of its number
//! in the relation, so that a page in another's place is not sound either. How they come about is in
//! src/include/storage/checksum_impl.h, the page's head in src/include/storage/bufpage.h (PostgreSQL 9.3 to
//! 17): 32 sums go over the page's words side by side, each a variant of FNV-1a that begins at an offset of
//! its own.
//!
//! The forks `fsm` and `vm` have them as the main fork has; what is no relation (`pg_control`, the log)
//! does not.

/// `pd_checksum`: 16 bits, little-endian on all machines that guests run on.
const CHECKSUM: usize = 8;
/// `pd_upper`: 16 bits; 0 in a page that is new, which is all zeroes then.
const UPPER: usize = 14;
/// `pd_pagesize_version`: 16 bits, the page's size and the version of its layout.
const SIZE_VERSION: usize = 18;
/// Since PostgreSQL 8.3.
const VERSION: u64 = 4;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each sum begins.
const OFFSETS: [u32; LANES] = [
    0x5b1f_36e9,
    0xb852_5960,
    0x02ab_50aa,
    0x1de6_6d2a,
    0x79ff_467a,
    0x9bb9_f8a3,
    0x217e_7cd2,
    0x83e1_3d2c,
    0xf8d4_474f,
    0xe39e_b970,
    0x42c6_ae16,
    0x9932_16fa,
    0x7b09_3b5d,
    0x98da_ff3c,
    0xf718_902a,
    0x0b1c_9cdb,
    0xe58f_764b,
    0x1876_36bc,
    0x5d7b_3bb1,
    0xe73d_e7de,
    0x92be_c979,
    0xcca6_c0b2,
    0x304a_0979,
    0x85aa_43d4,
    0x7831_25bb,
    0x6ca8_eaa2,
    0xe407_eac6,
    0x4b5c_fc3e,
    0x9fbf_8c76,
    0x15ca_20be,
    0xf2ca_9fd3,
    0x959b_d756,
];
/// Rounds of zeroes after the last word.
const MORE: usize = 2;

/// A relation goes on in another file after so many bytes.
const SEGMENT: u64 = 1 << 30;

fn u16_at(page: &[u8], at: usize) -> Option<u16> {
    page.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

/// What is wrong with it, if anything is; it is not all zeroes.
pub(super) fn wrong(page: &[u8], number: u64) -> Option<String> {
    let (Some(checksum), Some(upper), true) =
        (u16_at(page, CHECKSUM), u16_at(page, UPPER), page.len() >= super::HEAD)
    else {
        return Some(format!("it has {} bytes, which is no page", page.len()));
    };
    if upper == 0 {
        return Some("its head says that it is new, and not all of it is zero".to_owned());
    }
    let bytes = sum(page, number);
    (checksum != bytes)
        .then(|| format!("its checksum is {checksum:04x}, and its bytes come to {bytes:04x}"))
}

/// What `pd_checksum` has to be in this page.
fn sum(page: &[u8], number: u64) -> u16 {
    let round = |sum: u32, word: u32| {
        let mixed = sum ^ word;
        mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
    };
    let mut sums = OFFSETS;
    // `pd_checksum` counts as zero: the lower half of this word.
    let own = CHECKSUM / 4;
    let (words, _) = page.as_chunks::<4>();
    for (i, word) in words.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        let word = if i == own { word & 0xffff_0000 } else { word };
        let sum = &mut sums[i % LANES];
        *sum = round(*sum, word);
    }
    let all =
        sums.into_iter().fold(0, |all, sum| all ^ (0..MORE).fold(sum, |sum, _| round(sum, 0)));
    // Numbers of pages have 32 bits.
    ((all ^ number as u32) % 65535 + 1) as u16
}

pub(super) fn is_headed(head: &[u8], page_size: u64) -> bool {
    u16_at(head, SIZE_VERSION).is_some_and(|own| u64::from(own) == page_size | VERSION)
}

/// The number of a file's first block in its relation: `16384.2` is the third segment of `16384`.
pub(super) fn first_block(path: &str, page_size: u64) -> u64 {
    let name = path.rsplit(['/', ':']).next().unwrap_or(path);
    let segment = name.rsplit_once('.').and_then(|(_, segment)| segment.parse::<u32>().ok());
    u64::from(segment.unwrap_or(0)) * (SEGMENT / page_size.max(1))
}

/// Makes a page of these bytes.
#[cfg(test)]
pub(super) fn seal(page: &mut [u8], number: u64) {
    page[UPPER] |= 1;
    let own = (page.len() as u64 | VERSION) as u16;
    page[SIZE_VERSION..SIZE_VERSION + 2].copy_from_slice(&own.to_le_bytes());
    let sum = sum(page, number);
    page[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::pattern;
    use super::super::{PageFormat, PageLook, look};
    use super::*;

    /// The sums come from a program of a few lines that finds all pages sound of a cluster that PostgreSQL 15
    /// made.
    #[test]
    fn the_checksum_is_that_of_an_independent_program() {
        let page = pattern(3, 8192);
        for (number, expected) in [(0, 0xfe6d), (1, 0xfe6e), (131_072 + 5, 0xfe6c)] {
            assert_eq!(sum(&page, number), expected, "{number}");
            let mut sealed = page.clone();
            sealed[CHECKSUM..CHECKSUM + 2].copy_from_slice(&expected.to_le_bytes());
            assert_eq!(wrong(&sealed, number), None);
            let text = wrong(&sealed, number + 100).unwrap();
            assert!(text.contains(&format!("its checksum is {expected:04x}, and")), "{text}");
        }
    }

    #[test]
    fn a_new_page_is_all_zeroes() {
        let mut page = vec![0; 8192];
        assert_eq!(look(PageFormat::Postgres, &page, 3), PageLook::Unused);
        page[8191] = 1;
        assert!(wrong(&page, 3).unwrap().contains("it is new"));
    }

    #[test]
    fn segments_go_on_where_the_one_before_ends() {
        let first = |path| PageFormat::Postgres.first_page(path, 8192);
        assert_eq!((first("base/5/16384"), first("base/5/16384.1")), (0, 131_072));
        assert_eq!((first("base/5.4/16384_vm"), first("16384_fsm.2")), (0, 262_144));
        assert_eq!(PageFormat::Postgres.first_page("log:16384.1", 32768), 32768);
        assert_eq!(PageFormat::Innodb.first_page("t.1", 16384), 0);
    }
}

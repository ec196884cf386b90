//! Data pages of databases, each judged by the checksum that it carries: a page of which a power cut left
//! some blocks and not the others says so itself.
//!
//! | format | page | checksum |
//! | --- | --- | --- |
//! | [`innodb`](PageFormat::Innodb) | MariaDB, `innodb_checksum_algorithm=full_crc32` | CRC-32C, 32 bits |
//! | [`postgres`](PageFormat::Postgres) | PostgreSQL, `initdb --data-checksums` | 16 bits |
//!
//! A checksum cannot see everything: one torn page in 2³² or in 65535 has the right one by chance. And it
//! says nothing of *which* version of a page is there: an old one is as sound as a new one.

mod innodb;
mod postgres;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Whose pages they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageFormat {
    Innodb,
    Postgres,
}

impl PageFormat {
    pub const ALL: [PageFormat; 2] = [PageFormat::Innodb, PageFormat::Postgres];

    pub fn name(self) -> &'static str {
        match self {
            PageFormat::Innodb => "innodb",
            PageFormat::Postgres => "postgres",
        }
    }

    /// Bytes of a page, where nobody chose another size.
    pub fn page_size(self) -> u64 {
        match self {
            PageFormat::Innodb => 16 << 10,
            PageFormat::Postgres => 8 << 10,
        }
    }

    /// Patterns of the files that hold such pages.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            PageFormat::Innodb => &["*.ibd"],
            // The folder of the databases may be in another, or on another disk.
            PageFormat::Postgres => {
                &["base/*/[0-9]*", "*[/:]base/*/[0-9]*", "global/[0-9]*", "*[/:]global/[0-9]*"]
            }
        }
    }

    /// May a power cut leave no half of this page? InnoDB's double writes, two runs of an extent each behind the
    /// first one of `ibdata1` (buf0dblwr.cc), are copies of other pages: half of one is no harm.
    pub fn is_data(self, path: &str, page: u64, page_size: u64) -> bool {
        // FSP_EXTENT_SIZE (fsp0types.h): a megabyte, or 64 pages where that is more.
        let extent = ((1 << 20) / page_size).max(64);
        let is_system = path.rsplit(['/', ':']).next() == Some("ibdata1");
        self != PageFormat::Innodb || !is_system || !(extent..3 * extent).contains(&page)
    }

    /// What has to be so for a page to carry its checksum.
    pub fn needs(self) -> &'static str {
        match self {
            PageFormat::Innodb => {
                "MariaDB with innodb_checksum_algorithm=full_crc32, without compression"
            }
            PageFormat::Postgres => "PostgreSQL with `initdb --data-checksums`",
        }
    }

    /// The number of a file's first page, as [`look`] wants it: a relation of PostgreSQL goes on in files
    /// of their own.
    pub fn first_page(self, path: &str, page_size: u64) -> u64 {
        match self {
            PageFormat::Innodb => 0,
            PageFormat::Postgres => postgres::first_block(path, page_size),
        }
    }
}

impl fmt::Display for PageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<PageFormat, String> {
        let known = PageFormat::ALL.into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| format!("'{text}' is no format of pages: write innodb or postgres"))
    }
}

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageLook {
    Sound,
    /// All zeroes: the database never wrote it.
    Unused,
    /// Why it is not sound, in a sentence without its end.
    Torn(String),
}

/// Looks at a page. `number`: which page of its file it is, from [`PageFormat::first_page`] on.
pub fn look(format: PageFormat, page: &[u8], number: u64) -> PageLook {
    if page.iter().all(|byte| *byte == 0) {
        return PageLook::Unused;
    }
    let wrong = match format {
        PageFormat::Innodb => innodb::wrong(page),
        PageFormat::Postgres => postgres::wrong(page, number),
    };
    wrong.map_or(PageLook::Sound, PageLook::Torn)
}

/// Does a page that begins so say that it is this one, or nothing yet? Whatever is torn does; what another
/// file had there, when the place was its own, does not. `head`: a page's first bytes, [`HEAD`] at least.
pub fn is_headed(format: PageFormat, head: &[u8], page_size: u64, number: u64) -> bool {
    head.iter().all(|byte| *byte == 0)
        || match format {
            PageFormat::Innodb => innodb::is_headed(head, number),
            PageFormat::Postgres => postgres::is_headed(head, page_size),
        }
}

/// Bytes at a page's beginning that tell whose it is.
pub const HEAD: usize = 24;

/// Pages for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::{PageFormat, innodb, postgres};

    /// A sound page whose content differs with `version`.
    pub(crate) fn page(format: PageFormat, size: usize, number: u64, version: u64) -> Vec<u8> {
        let mut page = pattern(version.wrapping_mul(31) ^ number, size);
        match format {
            PageFormat::Innodb => innodb::seal(&mut page, number, version),
            PageFormat::Postgres => postgres::seal(&mut page, number),
        }
        page
    }

    pub(crate) fn pattern(n: u64, size: usize) -> Vec<u8> {
        let byte = |i: u64| i.wrapping_mul(131) + (i >> 8) * 17 + n.wrapping_mul(29) + 7;
        (0..size as u64).map(|i| byte(i) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::testing::page;
    use super::*;
    use crate::suite::Rng;

    #[test]
    fn double_writes_are_no_data() {
        let is_data = |path: &str, page| PageFormat::Innodb.is_data(path, page, 16384);
        for page in [0, 63, 192] {
            assert!(is_data("data/ibdata1", page), "{page}");
        }
        for page in [64, 100, 191] {
            assert!(!is_data("data/ibdata1", page) && !is_data("b:ibdata1", page), "{page}");
            assert!(is_data("data/t/a.ibd", page) && is_data("data/my-ibdata1", page), "{page}");
            assert!(PageFormat::Postgres.is_data("ibdata1", page, 8192), "{page}");
        }
        // An extent of pages of 4 KiB is a megabyte, too; one of 64 KiB has 64 of them.
        assert!(PageFormat::Innodb.is_data("ibdata1", 255, 4096));
        assert!(!PageFormat::Innodb.is_data("ibdata1", 256, 4096));
        assert!(PageFormat::Innodb.is_data("ibdata1", 63, 65536));
        assert!(!PageFormat::Innodb.is_data("ibdata1", 64, 65536));
    }

    #[test]
    fn formats_are_told_by_their_names() {
        for format in PageFormat::ALL {
            assert_eq!(format.to_string().parse::<PageFormat>().unwrap(), format);
            assert_eq!(serde_json::to_string(&format).unwrap(), format!("\"{format}\""));
        }
        let error = "oracle".parse::<PageFormat>().unwrap_err();
        assert!(error.contains("'oracle'") && error.contains("innodb or postgres"), "{error}");
    }

    #[test]
    fn a_mix_of_two_sound_pages_that_is_neither_is_torn() {
        let mut rng = Rng::new(1, &["mixes"], 0);
        let mut torn = 0;
        for (format, size) in [
            (PageFormat::Innodb, 4096),
            (PageFormat::Innodb, 16384),
            (PageFormat::Postgres, 8192),
            (PageFormat::Postgres, 16384),
        ] {
            let number = 131_072 + 7;
            let (old, new) = (page(format, size, number, 1), page(format, size, number, 2));
            let zero = vec![0; size];
            for (a, b) in [(&old, &new), (&zero, &new), (&new, &zero)] {
                for block in [512, 4096] {
                    let blocks = (size / block) as u32;
                    let prefixes = (0..=blocks).map(|n| (1u64 << n) - 1);
                    let random = (0..40).map(|_| rng.below(1 << blocks.min(63)));
                    for mask in prefixes.chain(random).collect::<Vec<_>>() {
                        let mut mix = a.clone();
                        for i in (0..blocks).filter(|i| mask >> i & 1 == 1) {
                            let bytes = i as usize * block..(i as usize + 1) * block;
                            mix[bytes.clone()].copy_from_slice(&b[bytes]);
                        }
                        let expected = |look: &PageLook| match look {
                            PageLook::Unused => mix == zero,
                            PageLook::Sound => mix == old || mix == new,
                            PageLook::Torn(_) => ![&zero, &old, &new].contains(&&mix),
                        };
                        let look = look(format, &mix, number);
                        assert!(expected(&look), "{format} {size} {block} {mask:x}: {look:?}");
                        torn += u32::from(matches!(look, PageLook::Torn(_)));
                    }
                }
            }
        }
        assert!(torn > 1000, "{torn}");
    }

    #[test]
    fn heads_tell_pages_from_what_is_none() {
        for format in PageFormat::ALL {
            let size = format.page_size();
            let sound = page(format, size as usize, 7, 1);
            assert!(is_headed(format, &sound[..HEAD], size, 7));
            assert!(is_headed(format, &[0; HEAD], size, 7));
            assert!(!is_headed(format, &[0xb5; HEAD], size, 7));
            assert!(!is_headed(format, &[1; 3], size, 7));
        }
        let sound = page(PageFormat::Innodb, 16384, 7, 1);
        assert!(!is_headed(PageFormat::Innodb, &sound, 16384, 8));
        let sound = page(PageFormat::Postgres, 8192, 7, 1);
        assert!(!is_headed(PageFormat::Postgres, &sound, 16384, 7));
    }

    #[test]
    fn whatever_the_bytes_are_there_is_an_answer() {
        for format in PageFormat::ALL {
            for size in [0, 1, 7, 15, 16, 23, 24, 100, 512, 8192] {
                assert!(
                    matches!(look(format, &vec![0xa5; size], 0), PageLook::Torn(_)) == (size > 0)
                );
                assert_eq!(look(format, &vec![0; size], 9), PageLook::Unused);
            }
        }
    }
}

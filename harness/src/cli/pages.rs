//! `--pages` of `tornblk explore`: pages of a database are judged, and nothing else.

use super::audit::{page_size, pattern};
use crate::explore::{Pages, Subject};
use crate::oracle::pages::PageFormat;
use clap::Args;
use glob::Pattern;

#[derive(Clone, Debug, Default, Args)]
pub(super) struct PageOptions {
    /// Judge the data pages of a database by their own checksums, without a guest, instead of what the
    /// recording says: innodb (MariaDB, full_crc32), postgres (initdb --data-checksums)
    #[arg(long, value_name = "FORMAT")]
    pages: Option<PageFormat>,

    /// Of a page, with --pages [default: what the recording says, else 16k of innodb, 8k of postgres]
    #[arg(long, value_name = "SIZE", value_parser = page_size, requires = "pages")]
    page_size: Option<u64>,

    /// Files with pages, with --pages, as patterns: of their names, or of their paths on the disk where
    /// there is a slash; can be given several times [default: what the recording says, else *.ibd of
    /// innodb, base/*/[0-9]* and global/[0-9]* of postgres]
    #[arg(long, value_name = "PATTERN", value_parser = pattern, requires = "pages")]
    files: Vec<Pattern>,
}

impl PageOptions {
    pub(super) fn are_asked_for(&self) -> bool {
        self.pages.is_some()
    }

    /// `None`: no pages are asked for. What is not said is as the recording has it, where its pages have
    /// this format.
    pub(super) fn of(&self, subject: Option<&Subject>) -> Option<Pages> {
        let format = self.pages?;
        let own = subject.and_then(|subject| subject.pages.clone());
        let mut pages = own.filter(|own| own.format == format).unwrap_or_else(|| Pages::of(format));
        if let Some(size) = self.page_size {
            pages.page_size = size;
        }
        if !self.files.is_empty() {
            pages.files = self.files.iter().map(|pattern| pattern.as_str().to_owned()).collect();
        }
        Some(pages)
    }
}

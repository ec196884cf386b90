//! The data pages of chosen files as units, judged in place, each by its own checksum
//! ([`oracle::pages`](crate::oracle::pages)): no guest, no database.
//!
//! A page is where its file lies in the end, as the file system said. Only pages that a request of the
//! recording touched are looked at: no others can change. One that is not sound in the base image, or with
//! everything persisted at the recording's end, is nobody's fault: what lies there has another format, or had
//! it, and the page is left out and counted. So is one whose place something else was written to in between,
//! which was another file's then: that did not begin as a page does.
//!
//! What the disk holds is looked at, and not what a file system shows of it: blocks that it would not show
//! yet, of a file that was about to grow, count as well. The finding says where nothing was there before.
//!
//! Nothing is promised of a page: whether a state shows the old one or the new one is not asked. So one content
//! has one verdict, at whatever crash point.

use super::bytes::Bytes;
use super::{ExploreError, Files, Named, Opened, UnitBlocks, UnitOracle, fits};
use crate::oracle::pages::{HEAD, PageFormat, PageLook, is_headed, look};
use crate::oracle::{Clause, Finding};
use glob::Pattern;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tornblk_model::crash::{Content, Profile, RequestKind, Source, size};
use tornblk_model::event::Seq;

/// The least and the most bytes of a page.
const SIZES: [u64; 2] = [512, 1 << 20];
/// Files named in an error.
const NAMED: usize = 5;

/// Which files have pages, and how these are judged. A recording may say it of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    pub format: PageFormat,
    /// Bytes: a power of two, from 512 to 1 MiB.
    pub page_size: u64,
    /// Patterns, as of [`fits`].
    pub files: Vec<String>,
}

impl Pages {
    /// As the database has them where nobody chose otherwise.
    pub fn of(format: PageFormat) -> Pages {
        let files = format.files().iter().map(|pattern| (*pattern).to_owned()).collect();
        Pages { format, page_size: format.page_size(), files }
    }

    fn patterns(&self, lb_size: u32) -> Result<Vec<Pattern>, ExploreError> {
        let bytes = self.page_size;
        if !bytes.is_power_of_two() || !(SIZES[0]..=SIZES[1]).contains(&bytes) {
            return Err(ExploreError::Bad(format!(
                "a page of {bytes} bytes cannot be: write a power of two from 512 to 1m"
            )));
        }
        if bytes < u64::from(lb_size) {
            return Err(ExploreError::Bad(format!(
                "a page of {bytes} bytes is less than a block of this disk ({lb_size} bytes), and no disk \
                 tears that"
            )));
        }
        let pattern = |text: &String| {
            Pattern::new(text)
                .map_err(|e| ExploreError::Bad(format!("'{text}' is no pattern of files: {e}")))
        };
        self.files.iter().map(pattern).collect()
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pages { format, page_size, files } = self;
        write!(f, "{format} (pages of {}, files {})", size::print(*page_size), files.join(" "))
    }
}

/// Pages that were judged, so that they can be judged again where less of the recording is left: in a bundle,
/// which does not hold what came after its crash point, nor all of the base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedPages {
    pub pages: Pages,
    /// Left out ([`PageUnits::unsound`]), by file: the first and the last of each run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unsound: BTreeMap<String, Vec<(u64, u64)>>,
}

/// How many pages an exploration was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageCounts {
    pub format: PageFormat,
    pub page_size: u64,
    /// Those with a page that was judged.
    pub files: u64,
    pub judged: u64,
    /// Left out: see [`PageUnits::unsound`].
    pub unsound: u64,
}

/// A [`UnitOracle`] of pages, the same for all profiles. Clones share what was read.
#[derive(Clone, Debug)]
pub struct PageUnits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: Bytes,
    pages: Pages,
    files: Files,
    blocks: Vec<UnitBlocks>,
    units: Vec<Page>,
    /// (file, page), rising.
    unsound: Vec<(usize, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    /// In [`Files`], and the page's number in it.
    file: usize,
    page: u64,
    /// As the format counts them.
    number: u64,
    /// All zeroes in the base image.
    fresh: bool,
}

/// Which pages are not judged.
enum LeaveOut<'a> {
    /// Those that show it: this is on the disk in the end.
    ByLooks(Content),
    AsThen(&'a JudgedPages),
}

impl PageUnits {
    /// The pages of a recording.
    ///
    /// # Errors
    /// The recording or its base image cannot be read, or it has no page that can be judged; the message says
    /// why.
    pub fn of(opened: &Opened, pages: &Pages) -> Result<PageUnits, ExploreError> {
        let end = match opened.history.last() {
            Some(last) => Named::reference(&opened.history.cut(last, &Profile::PLAIN)?)?.1,
            None => Content::default(),
        };
        PageUnits::new(opened, pages, &LeaveOut::ByLooks(end))
    }

    /// Those that were judged, as far as the recording is there.
    ///
    /// # Errors
    /// As [`PageUnits::of`].
    pub fn again(opened: &Opened, judged: &JudgedPages) -> Result<PageUnits, ExploreError> {
        PageUnits::new(opened, &judged.pages, &LeaveOut::AsThen(judged))
    }

    fn new(
        opened: &Opened,
        pages: &Pages,
        leave_out: &LeaveOut<'_>,
    ) -> Result<PageUnits, ExploreError> {
        let patterns = pages.patterns(opened.history.disk().lb_size)?;
        let files = opened.files.clone();
        let wanted: Vec<bool> = (0..files.count())
            .map(|file| patterns.iter().any(|pattern| fits(pattern, files.path(file))))
            .collect();
        if !wanted.contains(&true) {
            return Err(no_file(opened, pages));
        }
        let (reader, base) = (opened.reader.clone(), opened.base.as_deref());
        let bytes = Bytes::of(reader, base, opened.trust(), &opened.events)?;
        let mut shared = Shared {
            bytes,
            pages: pages.clone(),
            files,
            blocks: Vec::new(),
            units: Vec::new(),
            unsound: Vec::new(),
        };
        let touched = shared.touched(opened, &wanted);
        for ((file, page), heads) in touched {
            let Some(blocks) = shared.blocks_of(file, page) else { continue };
            let path = shared.files.path(file);
            let first = pages.format.first_page(path, pages.page_size);
            let number = first.saturating_add(page);
            let base = shared.look(&blocks, number, &|_| Source::Base)?;
            let is_sound = match leave_out {
                LeaveOut::AsThen(judged) => !judged.has_unsound(path, page),
                LeaveOut::ByLooks(end) => {
                    let end = shared.look(&blocks, number, &|block| end.of(block))?;
                    ![&base, &end].iter().any(|look| matches!(look, PageLook::Torn(_)))
                        && shared.are_headed(&blocks, number, &heads)?
                }
            };
            if is_sound {
                let fresh = base == PageLook::Unused;
                shared.units.push(Page { file, page, number, fresh });
                shared.blocks.push(blocks);
            } else {
                shared.unsound.push((file, page));
            }
        }
        if shared.units.is_empty() {
            return Err(no_page(opened, &shared));
        }
        Ok(PageUnits { shared: Arc::new(shared) })
    }

    /// Pages that were written and are not judged: by their checksums they are not sound in the base image or
    /// at the recording's end, or they were no pages in between, so that nothing can be said of them.
    pub fn unsound(&self) -> u64 {
        self.shared.unsound.len() as u64
    }

    pub fn counts(&self) -> PageCounts {
        let Shared { pages, units, .. } = &*self.shared;
        let files: BTreeSet<usize> = units.iter().map(|unit| unit.file).collect();
        PageCounts {
            format: pages.format,
            page_size: pages.page_size,
            files: files.len() as u64,
            judged: units.len() as u64,
            unsound: self.unsound(),
        }
    }

    /// What is needed to judge them again.
    pub fn judged(&self) -> JudgedPages {
        let shared = &self.shared;
        let mut unsound: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for (file, page) in &shared.unsound {
            let runs = unsound.entry(shared.files.path(*file).to_owned()).or_default();
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *page => *last = *page,
                _ => runs.push((*page, *page)),
            }
        }
        JudgedPages { pages: shared.pages.clone(), unsound }
    }
}

/// The first block of a page, as a request brought it.
struct Brought {
    request: Seq,
    /// Of the request's own.
    block: u32,
    /// The page's other blocks follow in the same request.
    whole: bool,
}

impl JudgedPages {
    fn has_unsound(&self, path: &str, page: u64) -> bool {
        let runs = self.unsound.get(path).map_or(&[][..], Vec::as_slice);
        let run = runs.get(runs.partition_point(|(_, last)| *last < page));
        run.is_some_and(|(first, _)| *first <= page)
    }
}

impl Shared {
    /// (file, page) of everything that a request changes, with what was written to the page's first block.
    fn touched(&self, opened: &Opened, wanted: &[bool]) -> BTreeMap<(usize, u64), Vec<Brought>> {
        let (disk, bytes) = (opened.history.disk(), self.pages.page_size);
        let mut touched: BTreeMap<(usize, u64), Vec<Brought>> = BTreeMap::new();
        for request in opened.history.requests().iter().filter(|request| request.changes()) {
            let writes = matches!(request.kind(), RequestKind::Write { .. });
            for (at, total) in request.ranges() {
                let (first, len) = (disk.touched(at, total).start, total);
                let parts = self.files.within(at, at.saturating_add(len));
                for (place, len, file, offset) in parts.filter(|(_, _, file, _)| wanted[*file]) {
                    for page in offset / bytes..(offset + len).div_ceil(bytes) {
                        if !self.pages.format.is_data(self.files.path(file), page, bytes) {
                            continue;
                        }
                        let heads = touched.entry((file, page)).or_default();
                        if let Some(skip) = (page * bytes).checked_sub(offset).filter(|_| writes) {
                            let block = (place + skip) / u64::from(disk.lb_size);
                            let whole = place + skip + bytes <= at.saturating_add(total);
                            let (request, block) = (request.id(), (block - first) as u32);
                            heads.push(Brought { request, block, whole });
                        }
                    }
                }
            }
        }
        touched
    }

    /// Was all that was written to a page's first block this page? It begins as the page does, and where one
    /// request brought all of a page, it is sound: blocks may have been another file's in between, and
    /// PostgreSQL's pages do not say by their heads which they are.
    fn are_headed(
        &self,
        blocks: &UnitBlocks,
        number: u64,
        heads: &[Brought],
    ) -> Result<bool, ExploreError> {
        let Some(first) = blocks.ranges.first() else { return Ok(true) };
        let Pages { format, page_size, .. } = self.pages;
        let mut block = vec![0; self.bytes.lb_size() as usize];
        for Brought { request, block: at, whole } in heads {
            let written = |block| Source::Written { request: *request, block };
            self.bytes.read(first.start, &[written(*at)], &mut block)?;
            if !is_headed(format, &block[..HEAD], page_size, number) {
                return Ok(false);
            }
            if *whole && blocks.ranges.len() == 1 {
                let of = |block: u64| written(*at + (block - first.start) as u32);
                if matches!(self.look(blocks, number, &of)?, PageLook::Torn(_)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The page's blocks, in its order; `None`: not all of it has a place on the disk.
    fn blocks_of(&self, file: usize, page: u64) -> Option<UnitBlocks> {
        let (lb, bytes) = (u64::from(self.bytes.lb_size()), self.pages.page_size);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut there = 0;
        for (at, len) in self.files.places(file, page * bytes, bytes) {
            if !at.is_multiple_of(lb) || !len.is_multiple_of(lb) {
                return None;
            }
            let (from, to) = (at / lb, (at + len) / lb);
            match ranges.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => ranges.push(from..to),
            }
            there += len;
        }
        (there == bytes).then_some(UnitBlocks { ranges })
    }

    fn look(
        &self,
        blocks: &UnitBlocks,
        number: u64,
        of: &dyn Fn(u64) -> Source,
    ) -> Result<PageLook, ExploreError> {
        let mut page = vec![0; self.pages.page_size as usize];
        let mut rest = &mut page[..];
        for range in &blocks.ranges {
            let sources: Vec<Source> = range.clone().map(of).collect();
            let (part, after) = rest.split_at_mut(sources.len() * self.bytes.lb_size() as usize);
            self.bytes.read(range.start, &sources, part)?;
            rest = after;
        }
        Ok(look(self.pages.format, &page, number))
    }

    fn finding(&self, unit: usize, clause: Clause, text: String) -> Finding {
        let Page { file, page, .. } = self.units[unit];
        Finding {
            file: file as u32,
            path: self.files.path(file).to_owned(),
            unit: page,
            offset: page * self.pages.page_size,
            len: self.pages.page_size as u32,
            ..Finding::new(clause, text)
        }
    }
}

fn no_file(opened: &Opened, pages: &Pages) -> ExploreError {
    let (path, files) = (opened.reader.path().display(), &opened.files);
    if files.snapshots == 0 {
        return ExploreError::Bad(format!(
            "{path} does not say where files lie, so that no page of theirs can be found: recordings of \
             `tornblk run --exec` do"
        ));
    }
    let some: Vec<&str> = (0..files.count().min(NAMED)).map(|file| files.path(file)).collect();
    let there = match some.is_empty() {
        true => String::new(),
        false => format!("; there are, for example: {}", some.join(", ")),
    };
    ExploreError::Bad(format!(
        "no file in {path} has a name like {}{there} (say which with --files)",
        pages.files.join(" or ")
    ))
}

fn no_page(opened: &Opened, shared: &Shared) -> ExploreError {
    let (path, Pages { format, page_size, files }) =
        (opened.reader.path().display(), &shared.pages);
    ExploreError::Bad(match shared.unsound.len() {
        0 => format!("no page of {} was written in {path}", files.join(" or ")),
        n => format!(
            "of {n} pages that were written in {path} none is sound by its checksum before or after, of \
             whatever state: {format} means {}, and pages of {}",
            format.needs(),
            size::print(*page_size)
        ),
    })
}

impl UnitOracle for PageUnits {
    fn units(&self) -> &[UnitBlocks] {
        &self.shared.blocks
    }

    fn promise(&self, _: usize, _: Seq) -> u64 {
        0
    }

    fn promised_between(&self, _: Seq, _: Seq) -> Option<Vec<usize>> {
        Some(Vec::new())
    }

    fn judge(&self, unit: usize, _: Seq, blocks: &dyn Fn(u64) -> Source) -> Vec<Finding> {
        let shared = &self.shared;
        let page = &shared.units[unit];
        match shared.look(&shared.blocks[unit], page.number, blocks) {
            Ok(PageLook::Sound | PageLook::Unused) => Vec::new(),
            Ok(PageLook::Torn(why)) => {
                let fresh =
                    if page.fresh { "; before the recording it was all zeroes" } else { "" };
                vec![shared.finding(unit, Clause::Torn, format!("{why}{fresh}"))]
            }
            // Never passed.
            Err(error) => {
                let text = format!("it cannot be judged: {error}");
                vec![shared.finding(unit, Clause::Unreadable, text)]
            }
        }
    }
}

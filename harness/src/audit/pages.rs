//! From requests to page writes.

use super::{Carrier, PageWrite, PageWrites};
use crate::explore::Files;
use std::collections::{BTreeSet, HashMap, HashSet};
use tornblk_model::event::{Event, Op, Segment, Seq, Status, Submit};

/// A page that is not complete yet.
struct Open {
    /// In [`PageWrites::writes`].
    write: usize,
    /// What came of it: (place, bytes).
    brought: BTreeSet<(u64, u64)>,
    bytes: u64,
}

impl Open {
    fn has(&self, at: u64, len: u64) -> bool {
        let before = self.brought.range(..(at + len, 0)).next_back();
        before.is_some_and(|(from, bytes)| from + bytes > at)
    }
}

/// The page writes of the files of which `is_wanted` says so. `was_blank`: were these bytes of the disk (place,
/// how many) all zeroes before anything was recorded?
pub fn page_writes<'a>(
    events: impl IntoIterator<Item = &'a (Seq, Event)> + Clone,
    files: &Files,
    lb_size: u32,
    page_size: u64,
    is_wanted: impl Fn(&str) -> bool,
    was_blank: impl Fn(u64, u64) -> bool,
) -> PageWrites {
    let failed = failed(events.clone());
    let wanted: Vec<bool> = (0..files.count()).map(|file| is_wanted(files.path(file))).collect();
    let mut finder = Finder {
        files,
        page_size,
        numbers: HashMap::new(),
        open: HashMap::new(),
        written: HashSet::new(),
        found: PageWrites {
            page_size,
            lb_size,
            snapshots: files.snapshots,
            more: files.more,
            ..PageWrites::default()
        },
    };
    for (seq, event) in events {
        let Event::Submit(Submit { op, .. }) = event else { continue };
        match op {
            Op::Write { offset, len, atomic, .. } if *len > 0 => {
                let (offset, len, atomic) = (*offset, *len, *atomic);
                let (request, failed) = (seq.0, failed.contains(seq));
                finder.request(&wanted, Carrier { request, offset, len, atomic, failed });
            }
            Op::Discard { segments } | Op::WriteZeroes { segments } => {
                finder.wiped(&wanted, segments, &was_blank);
            }
            _ => {}
        }
    }
    finder.found
}

/// Writes that the disk refused: the driver tries again, or tells the program. What is there of them is for the
/// disk to know.
fn failed<'a>(events: impl IntoIterator<Item = &'a (Seq, Event)>) -> HashSet<Seq> {
    let failed = events.into_iter().filter_map(|(_, event)| match event {
        Event::Complete { request, status } if *status != Status::Ok => Some(*request),
        _ => None,
    });
    failed.collect()
}

struct Finder<'a> {
    files: &'a Files,
    page_size: u64,
    /// Of a file among [`PageWrites::files`].
    numbers: HashMap<usize, usize>,
    open: HashMap<(usize, u64), Open>,
    /// Pages that were written once.
    written: HashSet<(usize, u64)>,
    found: PageWrites,
}

impl Finder<'_> {
    /// Pages of which nothing was there yet had nothing to lose: file systems zero blocks before their first use.
    fn wiped(
        &mut self,
        wanted: &[bool],
        segments: &[Segment],
        was_blank: &dyn Fn(u64, u64) -> bool,
    ) {
        for segment in segments {
            let touched = self.files.within(segment.offset, segment.offset + segment.len);
            let pages: BTreeSet<(usize, u64)> = touched
                .filter(|(_, _, file, _)| wanted[*file])
                .flat_map(|(_, len, file, offset)| {
                    let pages = offset / self.page_size..(offset + len).div_ceil(self.page_size);
                    pages.map(move |page| (file, page))
                })
                .collect();
            let had_something = |(file, page): &(usize, u64)| {
                let places = || self.files.places(*file, page * self.page_size, self.page_size);
                let existed = || self.files.existed(*file, page * self.page_size, self.page_size);
                self.written.contains(&(*file, *page))
                    || existed() && !places().iter().all(|(at, len)| was_blank(*at, *len))
            };
            self.found.wiped += pages.iter().filter(|page| had_something(page)).count() as u64;
        }
    }

    fn request(&mut self, wanted: &[bool], carrier: Carrier) {
        // Pages in the order of their first part on the disk, each with its parts.
        let mut order: Vec<(usize, u64)> = Vec::new();
        let mut parts: HashMap<(usize, u64), Vec<(u64, u64)>> = HashMap::new();
        let (start, end) = (carrier.offset, carrier.offset + carrier.len);
        for (at, len, file, offset) in self.files.within(start, end) {
            if !wanted[file] {
                continue;
            }
            let (mut from, last) = (offset, offset + len);
            while from < last {
                let page = from / self.page_size;
                let to = last.min((page + 1) * self.page_size);
                let of = parts.entry((file, page)).or_insert_with(|| {
                    order.push((file, page));
                    Vec::new()
                });
                of.push((at + (from - offset), to - from));
                from = to;
            }
        }
        for key in order {
            if let Some(parts) = parts.remove(&key) {
                self.page(key, &parts, carrier);
            }
        }
    }

    fn page(&mut self, (file, page): (usize, u64), parts: &[(u64, u64)], carrier: Carrier) {
        let places = self.files.places(file, page * self.page_size, self.page_size);
        if places.iter().map(|(_, len)| len).sum::<u64>() < self.page_size {
            // The file ends in it, or it has a hole.
            return;
        }
        let key = (file, page);
        let again = |open: &Open| parts.iter().any(|(at, len)| open.has(*at, *len));
        if self.open.get(&key).is_some_and(again) {
            // What was missing of it never came.
            self.open.remove(&key);
        }
        let write = match self.open.get(&key) {
            Some(open) => open.write,
            None => self.begin(key, &places, parts),
        };
        let open = self.open.entry(key).or_insert_with(|| Open {
            write,
            brought: BTreeSet::new(),
            bytes: 0,
        });
        for (at, len) in parts {
            open.brought.insert((*at, *len));
            open.bytes += len;
        }
        let complete = open.bytes >= self.page_size;
        self.found.writes[write].carriers.push(carrier);
        if complete {
            self.found.writes[write].complete = true;
            self.open.remove(&key);
            self.written.insert(key);
        }
    }

    /// Begins another page write; its number.
    fn begin(
        &mut self,
        (file, page): (usize, u64),
        places: &[(u64, u64)],
        parts: &[(u64, u64)],
    ) -> usize {
        let path = self.files.path(file);
        let number = *self.numbers.entry(file).or_insert_with(|| {
            self.found.files.push(path.to_owned());
            self.found.files.len() - 1
        });
        // Where it was written, should it lie elsewhere in the end.
        let all =
            |parts: &[(u64, u64)]| parts.iter().map(|(_, len)| len).sum::<u64>() >= self.page_size;
        let places = if all(parts) { parts } else { places };
        let in_a_row = places.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0);
        let offset = page * self.page_size;
        self.found.writes.push(PageWrite {
            file: number,
            page,
            at: places.first().filter(|_| in_a_row).map(|(at, _)| *at),
            complete: false,
            overwrites: self.files.existed(file, offset, self.page_size)
                || self.written.contains(&(file, page)),
            carriers: Vec::new(),
        });
        self.found.writes.len() - 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::explore::Snapshot;
    use tornblk_agent::channel::{FileMap, Place};
    use tornblk_model::event::Payload;

    const K: u64 = 1024;
    const PAGE: u64 = 16 * K;

    fn files(snapshots: &[&[(&str, &[Place])]]) -> Files {
        let all = snapshots.iter().map(|files| {
            let files = files.iter().map(|(path, places)| ((*path).to_owned(), places.to_vec()));
            Snapshot { map: FileMap { files: files.collect(), more: false } }
        });
        Files::of(all.collect(), 512)
    }

    fn write(seq: u64, offset: u64, len: u64) -> (Seq, Event) {
        let op = Op::Write { offset, len, fua: false, atomic: false, payload: Payload::default() };
        let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op };
        (Seq(seq), Event::Submit(submit))
    }

    /// (page, complete, overwrites, requests)
    fn found(files: &Files, events: &[(Seq, Event)]) -> Vec<(u64, bool, bool, Vec<u64>)> {
        let pages =
            page_writes(events, files, 512, PAGE, |path| path.ends_with(".ibd"), |_, _| true);
        let told = |w: &PageWrite| {
            let requests = w.carriers.iter().map(|c| c.request).collect();
            (w.page, w.complete, w.overwrites, requests)
        };
        pages.writes.iter().map(told).collect()
    }

    #[test]
    fn requests_are_put_together_to_page_writes() {
        let files = files(&[&[
            // Two pages in a row, one in two pieces, and half a page at the end.
            (
                "t.ibd",
                &[(0, 1024 * K, 32 * K), (32 * K, 2048 * K, 8 * K), (40 * K, 4096 * K, 16 * K)],
            ),
            ("log", &[(0, 1024 * K + 32 * K, 16 * K)]),
        ]]);
        let at = 1024 * K;
        // Two pages in one request, with what is another file's.
        assert_eq!(
            found(&files, &[write(1, at, 48 * K)]),
            [(0, true, false, vec![1]), (1, true, false, vec![1])]
        );
        // In four pieces, out of order; then again in one.
        let four = [3, 1, 0, 2].map(|i| write(i + 1, at + i * 4 * K, 4 * K));
        let mut events = four.to_vec();
        events.push(write(9, at, PAGE));
        assert_eq!(
            found(&files, &events),
            [(0, true, false, vec![4, 2, 1, 3]), (0, true, true, vec![9])]
        );
        // A part that comes again begins another one.
        let events = [write(1, at, 4 * K), write(2, at, 4 * K), write(3, at + 4 * K, 12 * K)];
        assert_eq!(
            found(&files, &events),
            [(0, false, false, vec![1]), (0, true, false, vec![2, 3])]
        );
        // What lies in two places needs two; half a page is none.
        let events = [write(1, 2048 * K, 8 * K), write(2, 4096 * K, 16 * K)];
        assert_eq!(found(&files, &events), [(2, true, false, vec![1, 2])]);
        // What was refused is a page write of its own.
        let failed = Event::Complete { request: Seq(1), status: Status::IoErr };
        let events = [write(1, at, PAGE), (Seq(2), failed), write(3, at, PAGE)];
        assert_eq!(found(&files, &events), [(0, true, false, vec![1]), (0, true, true, vec![3])]);
    }

    #[test]
    fn what_is_zeroed_or_discarded_is_counted_once_it_was_written() {
        let table: (&str, &[Place]) = ("t.ibd", &[(0, 64 * K, 64 * K)]);
        let other: (&str, &[Place]) = ("log", &[(0, 128 * K, 16 * K)]);
        let files = files(&[&[table, other], &[table, other]]);
        let wipe = |seq: u64, zeroes: bool, offset: u64, len: u64| {
            let segments = vec![Segment { offset, len, unmap: false }];
            let op = if zeroes { Op::WriteZeroes { segments } } else { Op::Discard { segments } };
            let submit = Submit { queue: 0, position: 0, head: 0, ioprio: 0, op };
            (Seq(seq), Event::Submit(submit))
        };
        for zeroes in [false, true] {
            // Before its first write; a page that was never written; another file's.
            let mut events = vec![
                wipe(1, zeroes, 64 * K, 64 * K),
                write(2, 64 * K, PAGE),
                wipe(3, zeroes, 80 * K, PAGE),
                wipe(4, zeroes, 128 * K, PAGE),
            ];
            let wanted = |path: &str| path.ends_with(".ibd");
            assert_eq!(page_writes(&events, &files, 512, PAGE, wanted, |_, _| true).wiped, 0);
            // What was loaded before is something to lose: four pages, and one of them again.
            assert_eq!(page_writes(&events, &files, 512, PAGE, wanted, |_, _| false).wiped, 5);
            // A part of it is enough.
            events.push(wipe(5, zeroes, 76 * K, 8 * K));
            let found = page_writes(&events, &files, 512, PAGE, wanted, |_, _| true);
            assert_eq!(found.wiped, 1);
            let promised = super::super::audit(&found, &"piece16k".parse().unwrap());
            assert_eq!(promised.verdict(), super::super::Promised::Nothing);
        }
    }

    #[test]
    fn what_was_there_before_is_overwritten() {
        let table: (&str, &[Place]) = ("t.ibd", &[(0, 0, 32 * K)]);
        let old = files(&[&[table], &[table]]);
        assert_eq!(found(&old, &[write(1, 0, PAGE)]), [(0, true, true, vec![1])]);
        // A file that grew: the page that it has more was not there.
        let short: (&str, &[Place]) = ("t.ibd", &[(0, 0, 16 * K)]);
        let grown = files(&[&[short], &[table]]);
        assert_eq!(found(&grown, &[write(1, PAGE, PAGE)]), [(1, true, false, vec![1])]);
        // One that moved: it lies where the last snapshot says, and was written where the first one does.
        let moved: (&str, &[Place]) = ("t.ibd", &[(0, 64 * K, 32 * K)]);
        let moved = files(&[&[table], &[moved]]);
        let pages = page_writes(&[write(1, 0, PAGE)], &moved, 512, PAGE, |_| true, |_, _| true);
        assert_eq!((pages.writes[0].at, pages.writes[0].complete), (Some(0), true));
        let new = files(&[&[], &[table]]);
        assert_eq!(found(&new, &[write(1, 0, PAGE)]), [(0, true, false, vec![1])]);
    }
}

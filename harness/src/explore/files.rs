//! Whose blocks these are, where there is a file system that we did not write to ourselves: as it said
//! itself (FIEMAP) at some moments of the recording, which has it as marks.

use super::pieces::{FILES, Parts};
use super::subject::SubjectError;
use super::{Call, Explain};
use glob::Pattern;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use tornblk_agent::channel::{FileMap, Place};
use tornblk_model::event::{Event, Seq};

/// Does a file have such a name? A pattern without a slash is of the name alone.
pub fn fits(pattern: &Pattern, path: &str) -> bool {
    let name = path.rsplit(['/', ':']).next().unwrap_or(path);
    pattern.matches(if pattern.as_str().contains('/') { path } else { name })
}

/// Does it fit one of them? What is no pattern fits nothing.
pub fn fits_any(patterns: &[String], path: &str) -> bool {
    patterns.iter().any(|text| Pattern::new(text).is_ok_and(|pattern| fits(&pattern, path)))
}

/// Where the files lay at the moment of the recording at which this stands in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub map: FileMap,
}

impl Snapshot {
    /// The names of the marks that say it.
    pub fn marks(&self) -> Vec<String> {
        FILES.marks(self)
    }
}

/// The files, by where they lie: as the last snapshot says, and where that says nothing, the ones before.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// (place on the disk, bytes, file, offset in it), rising; none overlaps another.
    extents: Vec<(u64, u64, usize, u64)>,
    paths: Vec<String>,
    /// Of each file: (offset in it, place on the disk, bytes), rising.
    places: Vec<Vec<Place>>,
    /// As `places`, at the first snapshot, where another one came later.
    before: Vec<Vec<Place>>,
    lb_size: u64,
    /// How often it was looked; 0: the recording does not say.
    pub snapshots: u64,
    /// There are files of which it says nothing.
    pub more: bool,
}

impl Files {
    /// What a recording says; `path` names it in errors.
    ///
    /// # Errors
    /// What it says is of another version or incomplete.
    pub fn find<'a>(
        path: &Path,
        events: impl IntoIterator<Item = &'a (Seq, Event)>,
        lb_size: u32,
    ) -> Result<Files, SubjectError> {
        let mut parts = Parts::new(FILES);
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for (_, event) in events {
            if let Event::Mark(mark) = event {
                snapshots.extend(parts.mark(path, mark)?);
            }
        }
        parts.end(path)?;
        Ok(Files::of(snapshots, lb_size))
    }

    pub fn of(snapshots: Vec<Snapshot>, lb_size: u32) -> Files {
        let mut first = snapshots.first().filter(|_| snapshots.len() > 1).cloned();
        let mut files = Files {
            lb_size: u64::from(lb_size),
            snapshots: snapshots.len() as u64,
            more: snapshots.iter().any(|s| s.map.more),
            ..Files::default()
        };
        let mut numbers: HashMap<String, usize> = HashMap::new();
        for Snapshot { map } in snapshots.into_iter().rev() {
            let known = files.extents.clone();
            for (path, places) in map.files {
                let file = *numbers.entry(path).or_insert_with_key(|path| {
                    files.paths.push(path.clone());
                    files.paths.len() - 1
                });
                for place in &places {
                    files.extents.extend(gaps(&known, *place).map(|(o, at, n)| (at, n, file, o)));
                }
                // Where it lay last is where it lies.
                if file == files.places.len() {
                    files.places.push(rising(places));
                }
            }
            files.extents.sort_unstable();
            // Of files that share blocks only one is told.
            let mut end = 0;
            files.extents.retain(|(at, len, ..)| {
                let keeps = *at >= end;
                end = if keeps { at + len } else { end };
                files.more |= !keeps;
                keeps
            });
        }
        files.before = vec![Vec::new(); files.paths.len()];
        for (path, places) in first.take().map(|first| first.map.files).unwrap_or_default() {
            if let Some(file) = numbers.get(&path) {
                files.before[*file] = rising(places);
            }
        }
        files
    }

    /// A disk that is all one file.
    pub fn of_disk(capacity: u64, lb_size: u32) -> Files {
        let files = vec![("the disk".to_owned(), vec![(0, 0, capacity)])];
        let mut all = Files::of(vec![Snapshot { map: FileMap { files, more: false } }], lb_size);
        all.snapshots = 0;
        all
    }

    /// Which file a number is of.
    pub fn path(&self, file: usize) -> &str {
        &self.paths[file]
    }

    /// Did these bytes of it have blocks before anything was recorded?
    pub fn existed(&self, file: usize, offset: u64, len: u64) -> bool {
        within(&self.before[file], offset, len).iter().map(|(_, len)| len).sum::<u64>() >= len
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.paths.len()
    }

    /// What lies in the bytes `start..end` of the disk: (place, bytes, file, offset in it).
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, usize, u64)> {
        let first = self.extents.partition_point(|(at, len, ..)| at + len <= start);
        let some = self.extents[first..].iter().take_while(move |(at, ..)| *at < end);
        some.map(move |&(at, len, file, offset)| {
            let (from, to) = (start.max(at), end.min(at + len));
            (from, to - from, file, offset + (from - at))
        })
    }

    /// Where the bytes `offset..offset + len` of a file lie: (place, bytes), in the file's order.
    pub fn places(&self, file: usize, offset: u64, len: u64) -> Vec<(u64, u64)> {
        within(&self.places[file], offset, len)
    }
}

fn rising(mut places: Vec<Place>) -> Vec<Place> {
    places.sort_unstable();
    places
}

/// Where the bytes `offset..offset + len` of a file with these pieces lie: (place, bytes), in its order.
fn within(all: &[Place], offset: u64, len: u64) -> Vec<(u64, u64)> {
    let end = offset + len;
    let first = all.partition_point(|(begins, _, bytes)| begins + bytes <= offset);
    let some = all[first..].iter().take_while(|(begins, ..)| *begins < end);
    let part = |&(begins, at, bytes): &Place| {
        let (from, to) = (offset.max(begins), end.min(begins + bytes));
        (at + (from - begins), to - from)
    };
    some.map(part).collect()
}

/// The parts of a piece of a file that `known` has nothing of.
fn gaps(known: &[(u64, u64, usize, u64)], place: Place) -> impl Iterator<Item = Place> {
    let (offset, at, len) = place;
    let (mut from, end) = (at, at + len);
    let mut parts = Vec::new();
    let first = known.partition_point(|(at, len, ..)| at + len <= from);
    for (at, len, ..) in known[first..].iter().take_while(|(at, ..)| *at < end) {
        if from < *at {
            parts.push((from, *at));
        }
        from = at + len;
    }
    if from < end {
        parts.push((from, end));
    }
    parts.into_iter().map(move |(from, to)| (offset + (from - at), from, to - from))
}

impl Explain for Files {
    fn call(&self, _: Seq, blocks: &Range<u64>) -> Option<Call> {
        let (start, end) = (blocks.start * self.lb_size, blocks.end * self.lb_size);
        let (_, len, file, offset) = self.within(start, end).last()?;
        Some(Call {
            call: "a write into blocks that in the end are".to_owned(),
            path: self.paths[file].clone(),
            offset,
            len,
            unit: 0,
            generation: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::oracle::pages::PageFormat;
    use tornblk_model::event::Mark;

    fn snapshot(files: &[(&str, &[Place])]) -> Snapshot {
        let files = files.iter().map(|(path, places)| ((*path).to_owned(), places.to_vec()));
        Snapshot { map: FileMap { files: files.collect(), more: false } }
    }

    fn find(snapshots: &[Snapshot]) -> Files {
        let marks = snapshots.iter().flat_map(Snapshot::marks).enumerate();
        let events: Vec<_> =
            marks.map(|(i, name)| (Seq(i as u64), Event::Mark(Mark { name }))).collect();
        Files::find(Path::new("x"), &events, 512).unwrap()
    }

    #[test]
    fn patterns_are_of_names_or_of_paths() {
        let fits = |pattern: &str, path: &str| super::fits(&Pattern::new(pattern).unwrap(), path);
        assert!(fits("*.ibd", "data/test/t.ibd") && fits("*.ibd", "log:t.ibd"));
        assert!(!fits("*.ibd", "data/t.ibd.bak"));
        assert!(fits("base/*/16*", "base/5/16384") && !fits("base/*/16*", "pg/base/5/16384"));
        let postgres = PageFormat::Postgres.files();
        let any = |path: &str| postgres.iter().any(|pattern| fits(pattern, path));
        let own = ["base/5/16384", "base/5/16384.1", "pg/base/5/1259_vm", "data:base/5/1259"];
        assert!(own.into_iter().all(any));
        let others = ["base/5/PG_VERSION", "pg_wal/000000010000000000000001", "mybase/5/16384"];
        assert!(!others.into_iter().any(any));
    }

    #[test]
    fn blocks_are_told_by_the_file_that_has_them() {
        assert!(find(&[]).call(Seq(0), &(0..100)).is_none());
        let files = find(&[snapshot(&[
            ("a", &[(0, 8192, 4096), (4096, 32768, 4096)]),
            ("b", &[(0, 12288, 8192)]),
        ])]);
        let call = |blocks| files.call(Seq(0), &blocks).map(|c| (c.path, c.offset, c.len));
        assert_eq!(call(16..24), Some(("a".into(), 0, 4096)));
        assert_eq!(call(65..66), Some(("a".into(), 4608, 512)));
        assert_eq!(call(30..34), Some(("b".into(), 3072, 2048)));
        assert_eq!((call(0..16), call(40..64), call(72..99)), (None, None, None));
        assert_eq!(files.places(0, 0, 8192), [(8192, 4096), (32768, 4096)]);
        assert_eq!(files.places(1, 4096, 512), [(16384, 512)]);
    }

    #[test]
    fn the_last_snapshot_says_it_and_the_ones_before_fill_its_gaps() {
        let files = find(&[
            snapshot(&[("old", &[(0, 0, 16384)]), ("kept", &[(0, 65536, 4096)])]),
            snapshot(&[("new", &[(0, 4096, 4096)]), ("kept", &[(0, 65536, 4096)])]),
        ]);
        let all: Vec<_> = files
            .within(0, 1 << 20)
            .map(|(at, len, file, offset)| (at, len, files.path(file), offset))
            .collect();
        assert_eq!(
            all,
            [
                (0, 4096, "old", 0),
                (4096, 4096, "new", 0),
                (8192, 8192, "old", 8192),
                (65536, 4096, "kept", 0)
            ]
        );
        assert_eq!((files.snapshots, files.count()), (2, 3));
    }
}

//! From a recording to a log.

use super::super::fresh::Fresh;
use super::super::{Reader, RecordingError};
use super::{ATOMIC, DISCARD, ENTRY, Entry, FLUSH, FUA, MAGIC, MARK, SUPER, VERSION, ZEROES};
use crate::crash::{End, History, Request, RequestKind, Stable};
use crate::event::{Event, Mark, Op, Seq, Submit};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes moved at once.
const PIECE: u64 = 1 << 20;

/// What [`export`] wrote, and what it left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogExported {
    pub entries: u64,
    /// Entries with data; those of WRITE ZEROES among them.
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    /// Marks, however many entries one takes.
    pub marks: u64,
    /// Bytes of the log; what is zero takes no space in the file.
    pub bytes: u64,
    /// Requests that failed and changed nothing.
    pub failed: u64,
    /// Requests that were never answered: they come last.
    pub unanswered: u64,
    /// The power cut at which the log ends, though the recording goes on.
    pub cut: Option<Seq>,
}

/// What becomes entries, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// Index of a request.
    Change(usize),
    /// Event of a mark.
    Mark(Seq),
    Flush,
}

/// Writes the recording of `history` to a log at `log`, which must not exist.
///
/// # Errors
/// The log exists or cannot be written, the recording is damaged, or it has flushes of one disk of
/// several. Nothing is left at `log` then.
pub fn export(
    reader: &Reader,
    history: &History,
    log: &Path,
) -> Result<LogExported, RecordingError> {
    let (marks, cut) = marks(reader)?;
    if let Some(flush) = of_some(history, cut) {
        return Err(RecordingError::Invalid(format!(
            "{} is of several disks, and the flush at event {flush} is of one of them: a log of \
             dm-log-writes knows only flushes of everything, and would say more than was promised",
            reader.path().display()
        )));
    }
    let fresh = Fresh::create(log)?;
    let mut done = LogExported { cut, ..LogExported::default() };
    let untouched = reader.not_executed()?;
    let items = order(history, &marks, &untouched, cut, &mut done);
    let sector = u64::from(reader.header().disk.lb_size);
    let mut sink = Sink { file: fresh.file(), path: log, sector, at: sector, done };
    for item in items {
        match item {
            Item::Change(i) => sink.change(reader, &history.requests()[i])?,
            Item::Mark(at) => match reader.event(at)? {
                Event::Mark(mark) => sink.mark(&mark)?,
                _ => unreachable!("event {at} was a mark when they were listed"),
            },
            Item::Flush => {
                sink.entry(Entry { flags: FLUSH, ..Entry::default() }, &[])?;
                sink.done.flushes += 1;
            }
        }
    }
    let done = sink.finish()?;
    fresh.keep()?;
    Ok(done)
}

/// A flush that worked, and that is not of the whole disk: before the cut.
fn of_some(history: &History, cut: Option<Seq>) -> Option<Seq> {
    let everything = (0, history.disk().capacity);
    let before = |at: Seq| cut.is_none_or(|cut| at < cut);
    let flushes = history.requests().iter().filter(|r| r.kind() == RequestKind::Flush);
    let mut found = flushes.filter(|r| r.succeeded().is_some_and(before));
    let of_some = |r: &&Request| r.ranges().iter().any(|range| *range != everything);
    found.find(of_some).map(Request::id)
}

/// The marks before the first power cut, and that cut, if something follows it.
fn marks(reader: &Reader) -> Result<(Vec<Seq>, Option<Seq>), RecordingError> {
    use crate::event::ResetCause::PowerCut;
    let (mut marks, mut cut) = (Vec::new(), None);
    for found in reader.events() {
        match found? {
            (_, _) if cut.is_some() => return Ok((marks, cut)),
            (at, Event::Mark(_)) => marks.push(at),
            (at, Event::Reset { cause: PowerCut, .. }) => cut = Some(at),
            _ => {}
        }
    }
    Ok((marks, None))
}

/// The flushes that decide: each completed before all that were submitted after it. Any other
/// makes nothing stable that one of these did not. Both times rise.
fn deciding(flushes: &[(Seq, Seq)]) -> Vec<(Seq, Seq)> {
    let mut by_end = flushes.to_vec();
    by_end.sort_unstable_by_key(|(submitted, done)| (*done, *submitted));
    let mut out: Vec<(Seq, Seq)> = Vec::new();
    for (submitted, done) in by_end {
        if out.last().is_none_or(|(last, _)| *last < submitted) {
            out.push((submitted, done));
        }
    }
    out
}

/// Of each change that is in the log, by its index: how many deciding flushes come before it.
type Changes = HashMap<usize, usize>;

/// What is in the log, in its order.
fn order(
    history: &History,
    marks: &[Seq],
    untouched: &HashSet<Seq>,
    cut: Option<Seq>,
    done: &mut LogExported,
) -> Vec<Item> {
    let requests = history.requests();
    let upto = cut.map_or(requests.len(), |cut| requests.partition_point(|r| r.id() < cut));
    let requests = &requests[..upto];
    let ended = |r: &Request| r.end().filter(|end| cut.is_none_or(|cut| end.at() < cut));
    let flushes: Vec<(Seq, Seq)> = requests
        .iter()
        .filter(|r| r.kind() == RequestKind::Flush && ended(r).is_some())
        .filter_map(|r| Some((r.submitted(), r.succeeded()?)))
        .collect();
    let deciding = deciding(&flushes);
    // Where each flush stands: with the first deciding one that was submitted no earlier.
    let mut items: Vec<(Seq, u8, Seq, Item)> = flushes
        .iter()
        .map(|(submitted, own)| {
            let with = deciding.partition_point(|(s, _)| s < submitted);
            (deciding.get(with).map_or(*own, |(_, at)| *at), 0, *own, Item::Flush)
        })
        .collect();
    items.extend(marks.iter().map(|at| (*at, 0, *at, Item::Mark(*at))));
    let mut changes = Changes::new();
    for (index, request) in requests.iter().enumerate() {
        if !request.changes()
            || request.fetched_again().is_some_and(|at| cut.is_none_or(|c| at < c))
        {
            continue;
        }
        let id = request.id();
        let end = ended(request);
        if end.is_some() && untouched.contains(&id) {
            done.failed += 1;
            continue;
        }
        let own = matches!(request.stable(), Some((_, Stable::Fua | Stable::WriteThrough)));
        let (at, after) = match end.map(End::at) {
            None => {
                done.unanswered += 1;
                (Seq(u64::MAX), deciding.len())
            }
            // No flush has to do with it.
            Some(at) if own => (at, 0),
            Some(at) => {
                let after = deciding.partition_point(|(submitted, _)| *submitted <= at);
                let out = after.checked_sub(1).map_or(Seq(0), |i| deciding[i].1);
                (at.max(out), after)
            }
        };
        items.push((at, 1, id, Item::Change(index)));
        changes.insert(index, after);
    }
    items.sort_unstable_by_key(|(at, class, id, _)| (*at, *class, *id));
    overlaps(history, requests, &items, &changes, &deciding)
}

/// Puts what was submitted first before what overlaps it, where both were in flight together and
/// no flush lies between.
fn overlaps(
    history: &History,
    requests: &[Request],
    items: &[(Seq, u8, Seq, Item)],
    changes: &Changes,
    deciding: &[(Seq, Seq)],
) -> Vec<Item> {
    let disk = history.disk();
    let blocks = |index: usize| -> Vec<Range<u64>> {
        requests[index].ranges().iter().map(|(at, len)| disk.touched(*at, *len)).collect()
    };
    let meet = |a: &[Range<u64>], b: &[Range<u64>]| {
        a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
    };
    let mut out = Vec::with_capacity(items.len());
    // Requests up to the greatest seen that are not in `out`: what is in flight, few.
    let (mut waiting, mut seen) = (BTreeSet::new(), 0);
    for (at, _, _, item) in items {
        let Item::Change(index) = item else {
            out.push(*item);
            continue;
        };
        while seen <= *index {
            if changes.contains_key(&seen) {
                waiting.insert(seen);
            }
            seen += 1;
        }
        if !waiting.contains(index) {
            continue;
        }
        let flushed = deciding.partition_point(|(_, done)| done <= at);
        // What must come before, and what must before that.
        let mut first = vec![*index];
        let mut next = 0;
        while let Some(over) = first.get(next).copied() {
            next += 1;
            let mine = blocks(over);
            for under in waiting.range(..over) {
                let may = changes[under] <= flushed;
                if may && !first.contains(under) && meet(&mine, &blocks(*under)) {
                    first.push(*under);
                }
            }
        }
        first.sort_unstable();
        for index in first {
            waiting.remove(&index);
            out.push(Item::Change(index));
        }
    }
    debug_assert!(waiting.is_empty(), "each is in the log");
    out
}

struct Sink<'a> {
    file: &'a File,
    path: &'a Path,
    sector: u64,
    at: u64,
    done: LogExported,
}

impl Sink<'_> {
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), RecordingError> {
        self.file.write_all_at(bytes, at).map_err(RecordingError::io("write", self.path))
    }

    fn entry(&mut self, entry: Entry, text: &[u8]) -> Result<(), RecordingError> {
        self.write(&entry.encode(), self.at)?;
        self.write(text, self.at + ENTRY as u64)?;
        self.at += self.sector;
        self.done.entries += 1;
        Ok(())
    }

    fn mark(&mut self, mark: &Mark) -> Result<(), RecordingError> {
        // Readers want a zero after the text.
        let most = self.sector as usize - ENTRY - 1;
        let text = mark.name.as_bytes();
        let mut pieces: Vec<&[u8]> = text.chunks(most).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let n = pieces.len() as u64;
        for (i, piece) in (1..).zip(pieces) {
            let data_len = piece.len() as u64;
            self.entry(Entry { sector: n - i, sectors: 0, flags: MARK, data_len }, piece)?;
        }
        self.done.marks += 1;
        Ok(())
    }

    fn change(&mut self, reader: &Reader, request: &Request) -> Result<(), RecordingError> {
        let own = matches!(request.stable(), Some((_, Stable::Fua | Stable::WriteThrough)));
        let fua = if own { FUA } else { 0 };
        let lb = self.sector;
        let id = request.id();
        if let RequestKind::Write { atomic, .. } = request.kind() {
            let Event::Submit(Submit { op: Op::Write { offset, len, payload, .. }, .. }) =
                reader.event(id)?
            else {
                unreachable!("event {id} was a write when the history was read");
            };
            if len == 0 {
                return Ok(());
            }
            let room = reader.payload_len(offset, len);
            let flags = fua | if atomic { ATOMIC } else { 0 };
            let (sector, sectors) = (offset / lb, room / lb);
            self.entry(Entry { sector, sectors, flags, data_len: 0 }, &[])?;
            let mut buf = vec![0; PIECE.min(room) as usize];
            let (mut skip, mut crc) = (0, 0);
            while skip < room {
                let piece = &mut buf[..PIECE.min(room - skip) as usize];
                reader.read_payload(&payload, skip, piece)?;
                crc = crc32c::crc32c_append(crc, piece);
                self.write(piece, self.at + skip)?;
                skip += piece.len() as u64;
            }
            if crc != payload.crc {
                let what = format!("the data of the write at event {id} fails its checksum");
                return Err(RecordingError::corrupt(reader.path(), what));
            }
            self.at += room;
            self.done.writes += 1;
            return Ok(());
        }
        let discard = request.kind() == RequestKind::Discard;
        for (offset, len) in request.ranges() {
            let blocks = if discard {
                // A disk forgets whole blocks or none.
                offset.div_ceil(lb)..(offset + len) / lb
            } else {
                offset / lb..(offset + len).div_ceil(lb)
            };
            if len == 0 || blocks.is_empty() {
                continue;
            }
            let (sector, sectors) = (blocks.start, blocks.end - blocks.start);
            let flags = fua | if discard { DISCARD } else { ZEROES };
            self.entry(Entry { sector, sectors, flags, data_len: 0 }, &[])?;
            if discard {
                self.done.discards += 1;
            } else {
                // The file is sparse there.
                self.at += sectors * lb;
                self.done.writes += 1;
            }
        }
        Ok(())
    }

    /// Writes the super block.
    fn finish(mut self) -> Result<LogExported, RecordingError> {
        self.file.set_len(self.at).map_err(RecordingError::io("write", self.path))?;
        let mut bytes = [0; SUPER];
        for (to, word) in bytes.chunks_exact_mut(8).zip([MAGIC, VERSION, self.done.entries]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes[24..].copy_from_slice(&(self.sector as u32).to_le_bytes());
        self.write(&bytes, 0)?;
        self.done.bytes = self.at;
        Ok(self.done)
    }
}

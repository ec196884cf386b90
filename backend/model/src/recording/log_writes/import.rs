//! From a log to a recording.

use super::super::fresh::Fresh;
use super::super::{BaseImage, LB_MAX, MARK_MAX, NewRecording, RecordingError, Writer};
use super::{
    ATOMIC, DISCARD, ENTRY, Entry, FLUSH, FUA, MAGIC, MARK, METADATA, SUPER, VERSION, ZEROES, bad,
    le64,
};
use crate::crash::{AtomicMode, Profile};
use crate::event::{Disk, Event, Mark, Negotiation, Op, Payload, Segment, Seq, Submit};
use crate::extents::{Extents, Run};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes moved at once.
const PIECE: u64 = 1 << 20;
/// Zeroes longer than this, with nothing that makes them special, are a WRITE ZEROES: no profile
/// keeps that much whole, and a log may have terabytes of them.
const MANY_ZEROES: u64 = 1 << 20;

/// What the log does not say.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The disk as it was when the log began.
    pub base: PathBuf,
    /// Bytes; `None`: the log's sector.
    pub lb_size: Option<u32>,
    /// The largest write that the disk keeps whole, in bytes (`unit_max` and `max_bytes`); 0: a
    /// logical block.
    pub atomic_unit_max: u64,
    /// [`NewRecording::segment_size`].
    pub segment_size: u64,
}

/// What [`import`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub entries: u64,
    pub writes: u64,
    pub write_zeroes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub marks: u64,
    /// Of written data.
    pub bytes: u64,
}

/// Makes a recording at `recording` of a log.
///
/// # Errors
/// The log is none, was cut short, or says what cannot be; the base image does not fit it; the
/// recording exists or cannot be written. Nothing is left at `recording` then.
pub fn import(
    log: &Path,
    recording: &Path,
    options: &ImportOptions,
) -> Result<Imported, RecordingError> {
    let mut source = Source::open(log)?;
    let base = BaseImage::identify(&options.base)?;
    let lb_size = options.lb_size.unwrap_or(source.sector as u32);
    let disk = Disk { capacity: base.size, lb_size };
    let profile = profile(&disk, options)?;
    let description = serde_json::json!({
        "profile": profile,
        "logical_block_size": lb_size,
        "imported": { "format": "dm-log-writes", "log": log, "entries": source.entries },
    });
    let new = NewRecording {
        segment_size: options.segment_size,
        ..NewRecording::new(disk, base, description)
    };
    let fresh = Fresh::create(recording)?;
    let file = fresh.file().try_clone().map_err(RecordingError::io("open", recording))?;
    let base = File::open(&options.base)
        .map_err(RecordingError::io("open the base image", &options.base))?;
    let mut importer = Importer {
        writer: Writer::create_over(file, recording, new)?,
        base,
        base_path: &options.base,
        places: (u64::from(lb_size) > source.sector).then(Extents::default),
        requests: 0,
        found: Imported { entries: source.entries, ..Imported::default() },
    };
    importer.run(&mut source)?;
    let found = importer.found;
    drop(importer);
    fresh.keep()?;
    Ok(found)
}

/// The name of the profile of the imported disk.
fn profile(disk: &Disk, options: &ImportOptions) -> Result<String, RecordingError> {
    let lb = u64::from(disk.lb_size);
    if !(512..=LB_MAX).contains(&disk.lb_size) || !lb.is_power_of_two() {
        return Err(RecordingError::Invalid(format!(
            "a logical block of {lb} bytes is impossible: give a power of two from 512 to {LB_MAX}"
        )));
    }
    if disk.capacity == 0 || !disk.capacity.is_multiple_of(lb) {
        return Err(RecordingError::Invalid(format!(
            "the base image {} has {} bytes, which is no whole number of logical blocks of {lb} \
             bytes: give the image that the log began on, or another --logical-block-size",
            options.base.display(),
            disk.capacity,
        )));
    }
    let max = options.atomic_unit_max;
    let profile = Profile {
        mode: if max == 0 { AtomicMode::None } else { AtomicMode::Implicit },
        unit_max: max,
        max_bytes: max,
        lb_size: (max == 0).then_some(disk.lb_size),
        ..Profile::PLAIN
    };
    profile.check(disk).map_err(|e| RecordingError::Invalid(e.to_string()))?;
    Ok(profile.to_string())
}

/// The log, read from its beginning to its end.
struct Source<'a> {
    path: &'a Path,
    file: File,
    /// Bytes.
    len: u64,
    sector: u64,
    entries: u64,
    /// Where the next entry is, and which it is.
    at: u64,
    next: u64,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Source<'a>, RecordingError> {
        let mut file = File::open(path).map_err(RecordingError::io("open the log", path))?;
        let io = |e| RecordingError::io("read the log", path)(e);
        if file.metadata().map_err(io)?.is_dir() {
            return Err(bad(path, "it is a directory"));
        }
        let len = file.seek(io::SeekFrom::End(0)).map_err(io)?;
        if len < SUPER as u64 {
            return Err(bad(path, format!("it has {len} bytes, and no super block")));
        }
        let mut bytes = [0; SUPER];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let (magic, version, entries) = (le64(&bytes), le64(&bytes[8..]), le64(&bytes[16..]));
        let sector = u64::from(u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]));
        if magic != MAGIC {
            return Err(bad(
                path,
                format!("it begins with {magic:#x}, and such a log with {MAGIC:#x}"),
            ));
        }
        if version != VERSION {
            return Err(bad(path, format!("its version is {version}, and {VERSION} is known")));
        }
        if !(512..=u64::from(LB_MAX)).contains(&sector) || !sector.is_power_of_two() {
            return Err(bad(path, format!("its sectors are said to have {sector} bytes")));
        }
        // Each takes a sector or more.
        let room = (len / sector).saturating_sub(1);
        if entries > room {
            return Err(bad(
                path,
                format!(
                    "it was cut short: it is said to have {entries} entries, and its {len} bytes \
                     hold at most {room}"
                ),
            ));
        }
        Ok(Source { path, file, len, sector, entries, at: sector, next: 0 })
    }

    fn bad(&self, what: impl std::fmt::Display) -> RecordingError {
        bad(self.path, format!("entry {} {what}", self.next.saturating_sub(1)))
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), RecordingError> {
        self.file.read_exact_at(buf, at).map_err(RecordingError::io("read the log", self.path))
    }

    /// The next entry, and where its data is; `None`: that was all.
    fn entry(&mut self) -> Result<Option<(Entry, u64)>, RecordingError> {
        if self.next >= self.entries {
            return Ok(None);
        }
        self.next += 1;
        if self.at + self.sector > self.len {
            let (at, len) = (self.at, self.len);
            return Err(self.bad(format_args!(
                "would be at byte {at}, and the log ends at {len}: it was cut short"
            )));
        }
        let mut bytes = [0; ENTRY];
        self.read(&mut bytes, self.at)?;
        let entry = Entry::decode(&bytes);
        let unknown = entry.flags & !(FLUSH | FUA | DISCARD | MARK | METADATA | ATOMIC | ZEROES);
        if unknown != 0 {
            return Err(self.bad(format_args!(
                "has flags that mean nothing here ({unknown:#x}): the log is damaged, or of a \
                 newer kind"
            )));
        }
        if entry.flags == 0 && entry.sectors == 0 {
            return Err(self.bad("is empty: the log is damaged"));
        }
        let data = self.at + self.sector;
        let follows = if entry.flags & DISCARD != 0 { 0 } else { entry.sectors };
        let end = follows.checked_mul(self.sector).and_then(|n| n.checked_add(data));
        match end.filter(|end| *end <= self.len) {
            Some(end) => self.at = end,
            None => {
                let (sectors, len) = (entry.sectors, self.len);
                return Err(self.bad(format_args!(
                    "is said to have {sectors} sectors of data, and the log ends before that, at \
                     byte {len}: it was cut short, or is damaged"
                )));
            }
        }
        Ok(Some((entry, data)))
    }

    /// The text of a mark, `more` entries of which follow.
    fn text(&mut self, mark: &Entry, data: u64) -> Result<String, RecordingError> {
        let (mut mark, mut data) = (*mark, data);
        let mut text = Vec::new();
        let mut left = mark.sector;
        loop {
            if mark.data_len > self.sector - ENTRY as u64 {
                return Err(self.bad(format_args!(
                    "is a mark of {} bytes, which do not fit in its sector of {}",
                    mark.data_len, self.sector
                )));
            }
            let from = text.len();
            if from as u64 + mark.data_len > MARK_MAX as u64 {
                return Err(self.bad(format_args!("is a mark of more than {MARK_MAX} bytes")));
            }
            text.resize(from + mark.data_len as usize, 0);
            self.read(&mut text[from..], data - self.sector + ENTRY as u64)?;
            if left == 0 {
                // What is no text was none of ours.
                return Ok(match String::from_utf8(text) {
                    Ok(text) => text,
                    Err(e) => String::from_utf8_lossy(e.as_bytes())
                        .chars()
                        .scan(0, |n, c| {
                            *n += c.len_utf8();
                            (*n <= MARK_MAX).then_some(c)
                        })
                        .collect(),
                });
            }
            left -= 1;
            match self.entry()? {
                Some((next, at)) if next.flags == MARK && next.sector == left => {
                    (mark, data) = (next, at);
                }
                _ => return Err(self.bad("does not go on with the mark before it")),
            }
        }
    }

    /// Are these bytes all zero?
    fn is_zero(&self, at: u64, len: u64) -> Result<bool, RecordingError> {
        let mut buf = vec![0; PIECE.min(len) as usize];
        let (mut at, end) = (at, at + len);
        while at < end {
            match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data >= end => return Ok(true),
                Ok(data) => at = data.max(at),
                Err(rustix::io::Errno::NXIO) => return Ok(true),
                // It cannot say where holes are.
                Err(_) => {}
            }
            let n = PIECE.min(end - at);
            self.read(&mut buf[..n as usize], at)?;
            if buf[..n as usize].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += n;
        }
        Ok(true)
    }
}

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Zeroes,
    /// In the recording, with the size of a block.
    At(u64, u64),
}

impl Run for Place {
    fn skip(self, n: u64) -> Place {
        match self {
            Place::Zeroes => Place::Zeroes,
            Place::At(position, lb) => Place::At(position + n * lb, lb),
        }
    }
}

struct Importer<'a> {
    writer: Writer,
    base: File,
    base_path: &'a Path,
    /// What was written, where entries may cover parts of blocks.
    places: Option<Extents<Place>>,
    requests: u16,
    found: Imported,
}

impl Importer<'_> {
    fn run(&mut self, log: &mut Source<'_>) -> Result<(), RecordingError> {
        self.writer.append(&Event::Negotiate(Negotiation {
            flush_offered: true,
            flush: true,
            config_wce: true,
            writeback: true,
        }))?;
        while let Some((entry, data)) = log.entry()? {
            if entry.flags & MARK != 0 {
                let name = log.text(&entry, data)?;
                self.writer.append(&Event::Mark(Mark { name }))?;
                self.found.marks += 1;
                // Of a mark the first sector means something else.
                continue;
            }
            if entry.flags & FLUSH != 0 {
                self.request(Op::FLUSH)?;
                self.found.flushes += 1;
            }
            if entry.sectors > 0 {
                self.change(log, &entry, data)?;
            }
        }
        Ok(())
    }

    fn request(&mut self, op: Op) -> Result<Seq, RecordingError> {
        let position = self.requests;
        self.requests = self.requests.wrapping_add(1);
        self.writer.append_at_once(Submit { queue: 0, position, head: 0, ioprio: 0, op })
    }

    /// What is no write has no FUA: the write cache is off for that moment.
    fn through(&mut self, fua: bool, op: Op) -> Result<(), RecordingError> {
        if fua {
            self.writer.append(&Event::SetWriteback { on: false })?;
        }
        self.request(op)?;
        if fua {
            self.writer.append(&Event::SetWriteback { on: true })?;
        }
        Ok(())
    }

    fn change(&mut self, log: &Source<'_>, entry: &Entry, data: u64) -> Result<(), RecordingError> {
        let capacity = self.writer.disk().capacity;
        let lb = u64::from(self.writer.disk().lb_size);
        let offset = entry.sector.checked_mul(log.sector);
        let len = entry.sectors.checked_mul(log.sector);
        let inside =
            |offset: &u64, len: &u64| offset.checked_add(*len).is_some_and(|end| end <= capacity);
        let (offset, len) = match (offset, len) {
            (Some(offset), Some(len)) if inside(&offset, &len) => (offset, len),
            _ => {
                return Err(log.bad(format_args!(
                    "is of {} sectors from sector {} on, past the end of the base image {} \
                     ({capacity} bytes): give the image that the log began on",
                    entry.sectors,
                    entry.sector,
                    self.base_path.display()
                )));
            }
        };
        let fua = entry.flags & FUA != 0;
        let whole = offset.is_multiple_of(lb) && len.is_multiple_of(lb);
        let segments = || vec![Segment { offset, len, unmap: false }];
        if entry.flags & DISCARD != 0 {
            self.through(fua, Op::Discard { segments: segments() })?;
            self.found.discards += 1;
            // A disk forgets whole blocks.
            self.note(offset.div_ceil(lb)..(offset + len) / lb, Place::Zeroes);
            return Ok(());
        }
        let said = entry.flags & ZEROES != 0;
        let plain = entry.flags & (FUA | ATOMIC) == 0;
        if whole && (said || plain && len > MANY_ZEROES) && log.is_zero(data, len)? {
            self.through(fua, Op::WriteZeroes { segments: segments() })?;
            self.found.write_zeroes += 1;
            self.note(offset / lb..(offset + len) / lb, Place::Zeroes);
            return Ok(());
        }
        let atomic = entry.flags & ATOMIC != 0;
        let payload = self.payload(log, offset, len, data)?;
        self.request(Op::Write { offset, len, fua, atomic, payload })?;
        self.found.writes += 1;
        self.found.bytes += len;
        let blocks = self.writer.disk().touched(offset, len);
        self.note(blocks, Place::At(payload.position, lb));
        Ok(())
    }

    fn note(&mut self, blocks: std::ops::Range<u64>, place: Place) {
        if let Some(places) = &mut self.places {
            places.set(blocks, place);
        }
    }

    /// Copies the data; whole blocks of it, where it covers only parts.
    fn payload(
        &self,
        log: &Source<'_>,
        offset: u64,
        len: u64,
        data: u64,
    ) -> Result<Payload, RecordingError> {
        let lb = u64::from(self.writer.disk().lb_size);
        let blocks = self.writer.disk().touched(offset, len);
        let room = (blocks.end - blocks.start) * lb;
        let mut space = self.writer.reserve(room as usize)?;
        let bytes = space.as_mut_slice();
        let skip = offset % lb;
        if skip > 0 {
            self.block(blocks.start, &mut bytes[..lb as usize])?;
        }
        if skip + len < room && (skip == 0 || blocks.end - blocks.start > 1) {
            self.block(blocks.end - 1, &mut bytes[(room - lb) as usize..])?;
        }
        let to = &mut bytes[skip as usize..(skip + len) as usize];
        for (i, piece) in to.chunks_mut(PIECE as usize).enumerate() {
            log.read(piece, data + i as u64 * PIECE)?;
        }
        space.finish()
    }

    /// What a block holds by now.
    #[allow(unsafe_code)]
    fn block(&self, block: u64, to: &mut [u8]) -> Result<(), RecordingError> {
        match self.places.as_ref().and_then(|places| places.get(block)) {
            Some(Place::Zeroes) => to.fill(0),
            Some(Place::At(position, _)) => {
                // SAFETY: `places` has only what was finished.
                unsafe {
                    self.writer
                        .with_bytes(position, to.len(), |bytes| to.copy_from_slice(bytes))?;
                }
            }
            None => self
                .base
                .read_exact_at(to, block * to.len() as u64)
                .map_err(RecordingError::io("read the base image", self.base_path))?,
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::crash::size;

    #[test]
    fn the_profile_is_what_the_options_say() {
        let disk = Disk { capacity: 1 << 20, lb_size: 4096 };
        let of = |atomic_unit_max| {
            let base = PathBuf::from("base.img");
            let segment_size = 64 << 10;
            profile(&disk, &ImportOptions { base, lb_size: None, atomic_unit_max, segment_size })
        };
        assert_eq!(of(0).unwrap(), "lb4k");
        let name = of(16 << 10).unwrap();
        assert_eq!(name, "req16k");
        let parsed: Profile = name.parse().unwrap();
        assert_eq!((parsed.unit_max, parsed.max_bytes), (16 << 10, 16 << 10));
        let refused = of(12 << 10).unwrap_err().to_string();
        assert!(refused.contains(&size::print(8 << 10)), "{refused}");
        assert!(of(512).is_err());
    }
}

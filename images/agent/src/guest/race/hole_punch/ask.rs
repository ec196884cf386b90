//! The two sides of the race: calls that take blocks away from a file, and calls that fill its page cache.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fadvise, fallocate, ftruncate, sendfile};
use rustix::pipe::{SpliceFlags, splice};

use super::sys;
use crate::guest::race::memory::{Map, PAGE};
use crate::guest::workload::buffer::Buffer;

/// `RWF_DONTCACHE` of `linux/fs.h` (Linux 6.14).
const RWF_DONTCACHE: u32 = 0x80;

/// Takes blocks away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Punch,
    Zero,
    Collapse,
    Insert,
    Truncate,
}

impl Op {
    pub const ALL: [Op; 5] = [Op::Punch, Op::Zero, Op::Collapse, Op::Insert, Op::Truncate];

    pub fn name(self) -> &'static str {
        match self {
            Op::Punch => "punch",
            Op::Zero => "zero",
            Op::Collapse => "collapse",
            Op::Insert => "insert",
            Op::Truncate => "truncate",
        }
    }

    /// Does what lies behind the range move?
    pub fn moves(self) -> bool {
        matches!(self, Op::Collapse | Op::Insert)
    }

    /// Are the range's blocks free then? Zeroing may keep them.
    pub fn frees(self) -> bool {
        matches!(self, Op::Punch | Op::Collapse | Op::Truncate)
    }

    /// A truncation takes everything from `offset` on.
    pub fn ask(self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let keep = FallocateFlags::KEEP_SIZE;
        let mode = match self {
            Op::Punch => FallocateFlags::PUNCH_HOLE | keep,
            Op::Zero => FallocateFlags::ZERO_RANGE,
            Op::Collapse => FallocateFlags::COLLAPSE_RANGE,
            Op::Insert => FallocateFlags::INSERT_RANGE,
            Op::Truncate => return Ok(ftruncate(file, offset)?),
        };
        Ok(fallocate(file, mode, offset, len)?)
    }

    /// What a file that held `image` holds then.
    pub fn image(self, image: &[u8], offset: usize, len: usize) -> Vec<u8> {
        let (before, behind) = (&image[..offset], &image[offset + len..]);
        let hole = vec![0; len];
        match self {
            Op::Punch | Op::Zero => [before, &hole, behind].concat(),
            Op::Collapse => [before, behind].concat(),
            Op::Insert => [before, &hole, &image[offset..]].concat(),
            Op::Truncate => before.to_vec(),
        }
    }
}

/// Fills the page cache, or reads past it, or fills the cache of extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Read,
    Uncached,
    Direct,
    Readahead,
    Fadvise,
    Madvise,
    Populate,
    Fault,
    Splice,
    Sendfile,
    Fiemap,
    Precache,
    EsCache,
}

impl Fill {
    pub const ALL: [Fill; 13] = [
        Fill::Read,
        Fill::Uncached,
        Fill::Direct,
        Fill::Readahead,
        Fill::Fadvise,
        Fill::Madvise,
        Fill::Populate,
        Fill::Fault,
        Fill::Splice,
        Fill::Sendfile,
        Fill::Fiemap,
        Fill::Precache,
        Fill::EsCache,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fill::Read => "read",
            Fill::Uncached => "read-dontcache",
            Fill::Direct => "read-direct",
            Fill::Readahead => "readahead",
            Fill::Fadvise => "fadvise",
            Fill::Madvise => "madvise",
            Fill::Populate => "populate",
            Fill::Fault => "fault",
            Fill::Splice => "splice",
            Fill::Sendfile => "sendfile",
            Fill::Fiemap => "fiemap",
            Fill::Precache => "precache-extents",
            Fill::EsCache => "get-es-cache",
        }
    }

    /// Does it read where the blocks are, and not what is in them?
    pub fn is_of_extents(self) -> bool {
        matches!(self, Fill::Fiemap | Fill::Precache | Fill::EsCache)
    }

    /// Does it return before what it asks of the disk is there?
    pub fn returns_early(self) -> bool {
        matches!(self, Fill::Readahead | Fill::Fadvise | Fill::Madvise)
    }

    /// Is it an advice of madvise(2)?
    pub fn is_advice(self) -> bool {
        matches!(self, Fill::Madvise | Fill::Populate)
    }
}

/// A range of a file, with all ways to it.
#[derive(Clone, Debug)]
pub struct Way {
    pub file: Arc<File>,
    pub direct: Arc<File>,
    pub map: Arc<Map>,
    pub offset: u64,
    pub len: usize,
}

impl Way {
    /// Its range in whole pages of the mapping.
    fn pages(&self) -> (usize, usize) {
        let first = self.offset as usize / PAGE * PAGE;
        let end = (self.offset as usize + self.len).next_multiple_of(PAGE);
        (first, end - first)
    }

    /// Asks for it: → its bytes, where it gives any; fewer at the end of the file.
    pub fn ask(&self, fill: Fill) -> io::Result<Option<Vec<u8>>> {
        use rustix::fs::Advice as File;
        use rustix::mm::Advice as Memory;
        let (first, len) = self.pages();
        match fill {
            Fill::Read => return self.read(&self.file, 0).map(Some),
            Fill::Uncached => return self.read(&self.file, RWF_DONTCACHE).map(Some),
            Fill::Direct => return self.read(&self.direct, 0).map(Some),
            Fill::Readahead => sys::readahead(&self.file, self.offset, self.len)?,
            Fill::Fadvise => {
                let len = std::num::NonZeroU64::new(self.len as u64);
                fadvise(&*self.file, self.offset, len, File::WillNeed)?;
            }
            Fill::Madvise => self.map.advise(first, len, Memory::WillNeed)?,
            Fill::Populate => self.map.advise(first, len, Memory::LinuxPopulateRead)?,
            Fill::Fault => {
                return sys::load(&self.map, self.offset as usize, self.len).map(Some);
            }
            Fill::Splice => {
                return through_a_pipe(self.offset, self.len, |at, len, pipe| {
                    let how = SpliceFlags::empty();
                    Ok(splice(&*self.file, Some(at), pipe, None, len, how)?)
                });
            }
            Fill::Sendfile => {
                return through_a_pipe(self.offset, self.len, |at, len, pipe| {
                    Ok(sendfile(pipe, &*self.file, Some(at), len)?)
                });
            }
            Fill::Fiemap => drop(sys::places(&self.file, 0, self.map.len() as u64)?),
            Fill::Precache => sys::precache_extents(&self.file)?,
            Fill::EsCache => sys::cached_extents(&self.file, self.map.len() as u64)?,
        }
        Ok(None)
    }

    fn read(&self, file: &File, how: u32) -> io::Result<Vec<u8>> {
        use rustix::io::{ReadWriteFlags, preadv2};
        let how = ReadWriteFlags::from_bits_retain(how);
        let mut buffer = Buffer::new(self.len);
        let mut done = 0;
        while done < self.len {
            let rest = io::IoSliceMut::new(&mut buffer.bytes_mut()[done..]);
            match preadv2(file, &mut [rest], self.offset + done as u64, how) {
                Ok(0) => break,
                Ok(n) => done += n,
                // A direct read behind the end.
                Err(rustix::io::Errno::INVAL) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(buffer.bytes()[..done].to_vec())
    }
}

/// Has a pipe filled with a range of a file, and empties it. It has room for 64 KiB.
fn through_a_pipe(
    offset: u64,
    len: usize,
    fill: impl Fn(&mut u64, usize, &io::PipeWriter) -> io::Result<usize>,
) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let (mut reader, writer) = io::pipe()?;
    let (mut at, mut done) = (offset, 0);
    while done < len {
        match fill(&mut at, len - done, &writer)? {
            0 => break,
            n => done += n,
        }
    }
    drop(writer);
    let mut bytes = Vec::with_capacity(len);
    reader.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// May who read while `old` became `new` have got `bytes`? Each byte is of one of them: a page may be
/// zeroed while it is copied. Fewer bytes, where the file ends there by now.
pub fn may_be_seen(bytes: &[u8], old: &[u8], new: &[u8]) -> bool {
    let of_either =
        |(i, byte): (usize, &u8)| old.get(i) == Some(byte) || new.get(i).unwrap_or(&0) == byte;
    let whole = bytes.len() == old.len() || (bytes.len() < old.len() && new.len() <= bytes.len());
    whole && bytes.iter().enumerate().all(of_either)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_holds_what_is_foretold() {
        let image: Vec<u8> = (0..8 * PAGE).map(|i| (i / PAGE + 1) as u8).collect();
        for op in Op::ALL {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&image, 0).unwrap();
            let (offset, len) = (2 * PAGE, PAGE);
            let told = op.image(&image, offset, len);
            match op.ask(&file, offset as u64, len as u64) {
                // Not every file system can.
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                other => other.unwrap(),
            }
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == told, "{op:?}");
        }
    }

    #[test]
    fn every_way_gives_the_bytes() {
        let file = tempfile::tempfile().unwrap();
        let image: Vec<u8> = (0..4 * PAGE).map(|i| (i * 7 + i / PAGE) as u8).collect();
        file.write_all_at(&image, 0).unwrap();
        let map = Arc::new(Map::shared(&file, 0, image.len()).unwrap());
        let file = Arc::new(file);
        let way = Way { direct: Arc::clone(&file), file, map, offset: 1024, len: 8192 };
        for fill in [Fill::Read, Fill::Fault, Fill::Splice, Fill::Sendfile] {
            assert_eq!(way.ask(fill).unwrap().unwrap(), image[1024..9216], "{fill:?}");
        }
        sys::store(&way.map, 2048, &[7; 4096]).unwrap();
        assert_eq!(way.ask(Fill::Read).unwrap().unwrap()[1024..5120], [7; 4096]);
        file_end_is_a_fault(&way);
        for fill in [Fill::Readahead, Fill::Fadvise, Fill::Madvise, Fill::Populate] {
            assert_eq!(way.ask(fill).unwrap(), None, "{fill:?}");
        }
    }

    /// Behind the end of the file there is nothing to fault in.
    fn file_end_is_a_fault(way: &Way) {
        let map = Map::shared(&way.file, 0, 5 * PAGE).unwrap();
        for result in [sys::store(&map, 4 * PAGE, &[1]), sys::load(&map, 3 * PAGE, 8192).map(drop)]
        {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
    }

    #[test]
    fn what_is_seen_meanwhile_is_old_or_new() {
        let (old, zero) = ([1, 2, 3, 4], [0; 4]);
        assert!(may_be_seen(&old, &old, &zero));
        assert!(may_be_seen(&[1, 0, 0, 4], &old, &zero));
        assert!(!may_be_seen(&[1, 2, 3, 5], &old, &zero));
        assert!(!may_be_seen(&[1, 2], &old, &zero), "short, and the file did not end");
        assert!(may_be_seen(&[1, 0], &old, &zero[..2]));
        assert!(
            may_be_seen(&[0; 4], &old, &[]),
            "the page was zeroed, its end not looked at again"
        );
    }
}

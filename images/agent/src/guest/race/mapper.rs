//! A process of its own that maps a file: the second address space of a race, and one that may end
//! in SIGBUS without taking the agent along.

use std::fs::File;

use serde::{Deserialize, Serialize};

use super::fuse_server::open;
use super::memory::Map;
use crate::channel::{Found, Target};
use crate::guest::child::{Child, answer};
use crate::guest::{Error, Result};
use crate::payload::{SECTOR, Stamp, classify, fill};

/// As [`crate::guest::child`] knows it.
pub const PART: &str = "mapper";

/// What the process is told to do; it has one file and one mapping of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
enum Ask {
    Open {
        path: String,
        flags: i32,
    },
    Map {
        len: usize,
    },
    /// Stores a unit's bytes, by the processor.
    Store {
        at: usize,
        len: usize,
        nonce: u64,
        file: u32,
        unit: u64,
        generation: u32,
    },
    /// What is there, sector by sector.
    Load {
        at: usize,
        len: usize,
        nonce: u64,
        file: u32,
        unit: u64,
    },
    /// msync(2) with MS_SYNC, of all of it.
    Sync {},
    Unmap {},
    Close {},
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Answer {
    Done {},
    Sectors { found: Vec<Found> },
    Failed { errno: i32 },
}

/// Plays the part.
///
/// # Errors
/// The parent is gone, or not understood.
pub fn child(_: &[String]) -> Result<()> {
    let (mut file, mut map): (Option<File>, Option<Map>) = (None, None);
    answer(|ask: Ask| {
        let result = (|| match ask {
            Ask::Open { path, flags } => {
                file = Some(open(&path, flags)?);
                Ok(Answer::Done {})
            }
            Ask::Map { len } => {
                map = Some(Map::shared(file.as_ref().ok_or_else(badf)?, 0, len)?);
                Ok(Answer::Done {})
            }
            Ask::Store { at, len, nonce, file, unit, generation } => {
                let mut bytes = vec![0; len];
                fill(&mut bytes, Stamp { nonce, unit, file, generation, sector: 0, sectors: 0 });
                map.as_ref().ok_or_else(badf)?.store(at, &bytes);
                Ok(Answer::Done {})
            }
            Ask::Load { at, len, nonce, file, unit } => {
                let mut bytes = vec![0; len];
                map.as_ref().ok_or_else(badf)?.load(at, &mut bytes)?;
                let sectors = bytes.chunks_exact(SECTOR).zip(0..);
                let found = sectors.map(|(bytes, i)| classify(bytes, nonce, file, unit, i));
                Ok(Answer::Sectors { found: found.collect() })
            }
            Ask::Sync {} => map.as_ref().ok_or_else(badf)?.sync().map(|()| Answer::Done {}),
            Ask::Unmap {} => {
                map = None;
                Ok(Answer::Done {})
            }
            Ask::Close {} => {
                file = None;
                Ok(Answer::Done {})
            }
        })();
        result.unwrap_or_else(|e: std::io::Error| Answer::Failed {
            errno: e.raw_os_error().unwrap_or(libc::EIO),
        })
    })
}

fn badf() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::EBADF)
}

/// The process, from outside. Each call waits for the kernel as long as it takes.
#[derive(Debug)]
pub struct Mapper {
    child: Child,
    nonce: u64,
}

/// What a call came to: the kernel's errno, where it failed.
pub type Called<T> = std::result::Result<T, i32>;

impl Mapper {
    /// # Errors
    /// It cannot be started.
    pub fn start(nonce: u64) -> Result<Mapper> {
        Ok(Mapper { child: Child::start(PART, &[])?, nonce })
    }

    fn ask(&self, ask: &Ask) -> Result<Called<Vec<Found>>> {
        Ok(match self.child.ask(ask)? {
            Answer::Done {} => Ok(Vec::new()),
            Answer::Sectors { found } => Ok(found),
            Answer::Failed { errno } => Err(errno),
        })
    }

    fn done(&self, ask: &Ask) -> Result<Called<()>> {
        Ok(self.ask(ask)?.map(|_| ()))
    }

    /// Opens a file to be read and written.
    ///
    /// # Errors
    /// The process is gone, as with all of these.
    pub fn open(&self, path: &str, flags: i32) -> Result<Called<()>> {
        self.done(&Ask::Open { path: path.into(), flags })
    }

    /// Maps the file from its begin, shared, to be read and written.
    ///
    /// # Errors
    /// As [`Mapper::open`].
    pub fn map(&self, len: u64) -> Result<Called<()>> {
        self.done(&Ask::Map { len: len as usize })
    }

    /// Stores a unit in a generation.
    ///
    /// # Errors
    /// As [`Mapper::open`].
    pub fn store(&self, target: &Target, unit: u64, generation: u32) -> Result<()> {
        let (nonce, file, len) = (self.nonce, target.file, target.unit as usize);
        let at = target.offset_of(unit) as usize;
        match self.done(&Ask::Store { at, len, nonce, file, unit, generation })? {
            Ok(()) => Ok(()),
            Err(errno) => Err(Error::System { what: "a store".into(), errno }),
        }
    }

    /// What the mapping shows of a unit.
    ///
    /// # Errors
    /// As [`Mapper::open`].
    pub fn load(&self, target: &Target, unit: u64) -> Result<Called<Vec<Found>>> {
        let (nonce, file, len) = (self.nonce, target.file, target.unit as usize);
        self.ask(&Ask::Load { at: target.offset_of(unit) as usize, len, nonce, file, unit })
    }

    /// msync(2) of the mapping.
    ///
    /// # Errors
    /// As [`Mapper::open`].
    pub fn sync(&self) -> Result<Called<()>> {
        self.done(&Ask::Sync {})
    }

    /// # Errors
    /// As [`Mapper::open`].
    pub fn unmap(&self) -> Result<()> {
        self.done(&Ask::Unmap {}).map(|_| ())
    }

    /// # Errors
    /// As [`Mapper::open`].
    pub fn close(&self) -> Result<()> {
        self.done(&Ask::Close {}).map(|_| ())
    }

    /// Where it is in the kernel.
    pub fn stacks(&self) -> Vec<String> {
        self.child.stacks()
    }
}

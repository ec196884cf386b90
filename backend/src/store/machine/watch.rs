//! Whether the files are still what they were when they were opened: somebody may delete one,
//! replace it, or cut it short. The device goes on with what it has open, and says so, once.

use rustix::fs::{fstat, stat};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tornblk_model::recording::{RecordingError, Writer};

/// Between two looks: a guest may flush a thousand times a second.
const EACH: Duration = Duration::from_secs(1);

/// The files of a machine.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    files: Vec<Known>,
    last: Option<Instant>,
    /// It was told that the recording cannot go on.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Image,
    Recording,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Image => "image",
            What::Recording => "recording",
        })
    }
}

#[derive(Debug)]
struct Known {
    what: What,
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Has the bytes of the disk: a recording has a guard of its own, and a block device no size.
    sized: bool,
    told: Option<Fate>,
}

/// What may become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Deleted or renamed.
    Gone,
    Replaced,
    CutShort(u64),
}

impl Known {
    fn look(&mut self, capacity: u64) {
        let fate = match stat(&self.path) {
            Ok(now) if (now.st_dev, now.st_ino) != (self.device, self.inode) => {
                Some(Fate::Replaced)
            }
            // Never negative.
            Ok(now) if self.sized && (now.st_size as u64) < capacity => {
                Some(Fate::CutShort(now.st_size as u64))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Some(Fate::Gone),
            // Back in its place, or nothing can be said.
            _ => None,
        };
        if fate != self.told {
            self.told = fate;
            if let Some(fate) = fate {
                log::warn!("{}", self.tell(fate));
            }
        }
    }

    fn tell(&self, fate: Fate) -> String {
        let Known { what, path, .. } = self;
        let path = path.display();
        match fate {
            Fate::Gone => format!(
                "the {what} {path} was deleted or renamed: the device goes on with it; where it \
                 was deleted it is lost when the device ends, and can be copied until then from \
                 /proc/{}/fd",
                std::process::id()
            ),
            Fate::Replaced => format!(
                "the {what} {path} was replaced: the device goes on with the file that it opened, \
                 not with the one that is there now"
            ),
            Fate::CutShort(has) => {
                format!("the {what} {path} was cut short to {has} bytes: requests beyond them fail")
            }
        }
    }
}

impl Watch {
    /// Watches over a file that was just opened by its path.
    pub(super) fn know(&self, what: What, path: &Path, file: impl AsFd) {
        // One that cannot be asked about is not watched over.
        if let Ok(stat) = fstat(file) {
            let sized = what == What::Image && stat.st_size > 0;
            let (path, device, inode) = (path.to_owned(), stat.st_dev, stat.st_ino);
            let known = Known { what, path, device, inode, sized, told: None };
            crate::store::live::lock(&self.looks).files.push(known);
        }
    }

    /// The next look is made in any case.
    pub(super) fn forget_when(&self) {
        crate::store::live::lock(&self.looks).last = None;
    }

    /// Looks at them, not too often.
    pub(super) fn look(&self, capacity: u64, writer: Option<&Writer>) {
        // Whoever comes while another looks need not wait.
        let Ok(mut looks) = self.looks.try_lock() else { return };
        if looks.last.is_some_and(|last| last.elapsed() < EACH) {
            return;
        }
        looks.last = Some(Instant::now());
        looks.files.iter_mut().for_each(|known| known.look(capacity));
        if let Some(Err(e @ RecordingError::Poisoned { .. })) = writer.map(Writer::look)
            && !looks.ended
        {
            looks.ended = true;
            log::error!("{e}; every request fails from now on");
        }
    }
}

//! Looks at a guest's console while it works: a kernel that complains is not waited for in vain.

use super::{Around, Kind, find, harmless};
use crate::vm::CONSOLE;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a console is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a complaint has to be told in full: its trace.
pub const IN_FULL: Duration = Duration::from_secs(3);

/// How long who complained may take to come to an end by itself.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Watch {
    console: PathBuf,
    /// So long was the console when it began.
    from: u64,
    patience: Duration,
    /// Of a complaint after which nothing goes on: not of a warning.
    fatal: bool,
    looked: Instant,
    /// The first complaint: when, and its title.
    first: Option<(Instant, String)>,
}

impl Watch {
    /// What the guest in `dir` says from now on; it may go on for so long after that.
    pub fn new(dir: &Path, patience: Duration) -> Watch {
        let console = dir.join(CONSOLE);
        let from = std::fs::metadata(&console).map_or(0, |console| console.len());
        Watch { console, from, patience, fatal: false, looked: Instant::now(), first: None }
    }

    /// A guest that recovers: it is waited for unless a task hangs, or the kernel cannot go on.
    pub fn of_recovery(dir: &Path) -> Watch {
        Watch { fatal: true, ..Watch::new(dir, PATIENCE) }
    }

    /// Has the kernel complained of what is a finding, whatever comes of its work, that long ago? That
    /// requests failed is none of this: who works sees it, too.
    pub fn complained(&mut self) -> Option<&str> {
        if self.first.is_none() && self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let log = std::fs::read(&self.console).unwrap_or_default();
            let new = log.get(self.from as usize..).unwrap_or_default();
            let splats = find(&String::from_utf8_lossy(new));
            let bad = splats.into_iter().find(|splat| {
                let kind = match self.fatal {
                    true => matches!(splat.kind, Kind::Hung | Kind::Bug),
                    false => splat.kind != Kind::Io,
                };
                kind && harmless(splat, Around::default()).is_none()
            });
            self.first = bad.map(|splat| (Instant::now(), splat.title));
        }
        let (since, title) = self.first.as_ref()?;
        (since.elapsed() >= self.patience).then_some(title.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_said_before_or_is_no_complaint_is_not_heard() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join(CONSOLE);
        let warn = "WARNING: CPU: 0 PID: 9 at fs/a.c:1 f+0x1/0x2\n";
        std::fs::write(&console, warn).unwrap();
        let mut watch = Watch::new(dir.path(), Duration::ZERO);
        let mut later = Watch::new(dir.path(), Duration::from_secs(3600));
        let mut hear = |text: &str| {
            std::fs::write(&console, text).unwrap();
            for watch in [&mut watch, &mut later] {
                watch.looked = Instant::now().checked_sub(LOOK).unwrap();
            }
            assert_eq!(later.complained(), None, "it may still come to an end");
            watch.complained().map(str::to_owned)
        };
        assert_eq!(hear(&format!("{warn}all is well\n")), None);
        assert_eq!(hear(&format!("{warn}I/O error, dev vda, sector 8 op 0x1:(WRITE)\n")), None);
        let title = "INFO: task a:7 blocked for more than 30 seconds.";
        assert_eq!(hear(&format!("{warn}{title}\n")).unwrap(), title);
    }
}

//! One folder a run: consoles, device logs, recordings, verdicts.

use super::RunError;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder that runs are kept in where the user names none.
pub(super) const DEFAULT: &str = "tornblk-out";

#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The folder above was made for this run, and is removed with it if nothing else is in it.
    parent: Option<PathBuf>,
}

impl RunFolder {
    /// `out`, which must be empty or not there; else a new one below [`DEFAULT`].
    pub fn create(out: Option<&Path>, seed: u64) -> Result<RunFolder, RunError> {
        if let Some(out) = out {
            std::fs::create_dir_all(out).map_err(RunError::io("make the folder", out))?;
            let mut entries = std::fs::read_dir(out).map_err(RunError::io("read", out))?;
            if entries.next().is_some() {
                return Err(RunError::Bad(format!(
                    "{} is not empty: name a new folder with --out",
                    out.display()
                )));
            }
            return Ok(RunFolder { path: absolute(out)?, parent: None });
        }
        let parent = absolute(Path::new(DEFAULT))?;
        std::fs::create_dir_all(&parent).map_err(RunError::io("make the folder", &parent))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = format!("{}-seed{seed}", stamp(now));
        for n in 1.. {
            let path = parent.join(if n == 1 { name.clone() } else { format!("{name}-{n}") });
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(RunFolder { path, parent: Some(parent) }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(RunError::io("make the folder", &path)(e)),
            }
        }
        unreachable!("one of the numbers is free")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A part of it, with lanes of its own.
    pub fn below(&self, name: &str) -> Result<RunFolder, RunError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+".contains(c);
        let name: String = name.chars().map(|c| if plain(c) { c } else { '-' }).collect();
        Ok(RunFolder { path: make(self.path.join(name))?, parent: None })
    }

    /// A lane's own folder.
    pub fn lane(&self, lane: &str) -> Result<PathBuf, RunError> {
        make(self.path.join(lane))
    }

    /// Of one cut; 0 is the control.
    pub fn cut(&self, lane: &str, number: u32) -> Result<PathBuf, RunError> {
        let name = if number == 0 { "control".to_owned() } else { format!("cut-{number:03}") };
        make(self.path.join(lane).join(name))
    }

    /// Removes what is not worth keeping.
    pub fn remove(&self, path: &Path) {
        if path.starts_with(&self.path)
            && let Err(e) = std::fs::remove_dir_all(path)
        {
            log::warn!("cannot remove {}: {e}", path.display());
        }
    }

    /// Removes the whole folder.
    pub fn remove_all(self) {
        self.remove(&self.path);
        if let Some(parent) = &self.parent {
            // Fails where other runs are in it, as it should.
            let _ = std::fs::remove_dir(parent);
        }
    }
}

fn make(path: PathBuf) -> Result<PathBuf, RunError> {
    std::fs::create_dir_all(&path).map_err(RunError::io("make the folder", &path))?;
    Ok(path)
}

fn absolute(path: &Path) -> Result<PathBuf, RunError> {
    std::path::absolute(path).map_err(RunError::io("find", path))
}

/// Seconds since 1970 as `20260131-235959` (UTC).
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Years that begin in March, so that the leap day is the last: days since 0000-03-01.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, text) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (951_868_800, "20000301-000000"),
            (1_709_164_800, "20240229-000000"),
            (1_798_761_599, "20261231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(stamp(seconds), text);
        }
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(Some(&dir.path().join("new/run")), 1).unwrap();
        let cut = folder.cut("raw", 3).unwrap();
        assert!(cut.ends_with("raw/cut-003") && cut.is_dir());
        assert!(folder.cut("raw", 0).unwrap().ends_with("raw/control"));
        let error = RunFolder::create(Some(&dir.path().join("new/run")), 1).unwrap_err();
        assert!(error.to_string().contains("is not empty"), "{error}");
        folder.remove(&cut);
        assert!(!cut.exists());
        folder.remove(dir.path());
        assert!(dir.path().exists(), "nothing outside of it is removed");
        folder.remove_all();
        assert!(!dir.path().join("new/run").exists());
    }
}

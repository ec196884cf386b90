//! `tornblk audit`

use super::{check_writable, examples, told};
use crate::audit::{Audit, PageWrites, Promised, Used, advice, audit, filefrag, page_writes};
use crate::explore::{Files, Opened, Snapshot, fits};
use crate::out::{Stdout, say};
use crate::report::audit as shown;
use crate::report::terminal::Look;
use anyhow::{Context, bail};
use clap::Args;
use glob::Pattern;
use serde::Serialize;
use std::path::PathBuf;
use tornblk_model::crash::{Profile, size};

/// Which page writes of a recording reached the disk whole, without any crash
///
/// A page is a part of a file that begins at a multiple of --page-size. Its write is whole where all of it
/// is inside one request that the disk keeps whole, or inside one of the pieces that it never tears. Where
/// files lie is in recordings of `tornblk run --exec`; else say it with --map. Exits 0 where no page can be
/// torn on any of the disks, 1 where one can, and 3 where no page was written.
#[derive(Debug, Args)]
#[command(after_help = examples::AUDIT)]
pub(super) struct AuditArgs {
    /// A recording, or the folder of a run that was kept
    #[arg(value_name = "RECORDING")]
    recording: PathBuf,

    /// Of a page (4k, 8k, 16k): a power of two, 512 at least
    #[arg(long, value_name = "SIZE", value_parser = page_size)]
    page_size: u64,

    /// Files with pages, as patterns: of their names, or of their paths on the disk where there is a slash;
    /// can be given several times [default: all files; a disk without a file system is one]
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    files: Vec<Pattern>,

    /// Which disks: lb512, req16k, req16k+b16k, piece16k, explicit16k, ... [default: that of the recording]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    profile: Vec<Profile>,

    /// Where files lie, as `filefrag -v FILE...` said in the guest
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,

    /// Where on the disk the file system of --map begins: the partition's first byte
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = bytes, requires = "map")]
    map_start: u64,

    /// Write all of it as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    recording: String,
    page_size: u64,
    files: &'a [String],
    /// Looks at where the files lie; 0: the recording has none.
    snapshots: u64,
    /// There are files of which that is not known.
    more: bool,
    /// Times that pages were zeroed or discarded after they had been written.
    wiped: u64,
    profiles: &'a [Audit],
}

/// Files that are named in a sentence.
const FEW: usize = 5;

impl AuditArgs {
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        check_writable(&self.json)?;
        let opened = Opened::open(&self.recording, None)?;
        let files = self.places(&opened)?;
        let disk = opened.history.disk().clone();
        let wanted = |path: &str| self.files.is_empty() || self.files.iter().any(|p| fits(p, path));
        let (lb_size, blank) = (disk.lb_size, opened.blank());
        let pages = page_writes(&opened.events, &files, lb_size, self.page_size, wanted, blank);
        let profiles = match self.profile.as_slice() {
            [] => opened.profiles()?,
            some => some.to_vec(),
        };
        let cut_short = self.map.is_none()
            && files.snapshots == 1
            && opened.subject.as_ref().is_some_and(|subject| subject.checker.is_some());
        let used = Used::of(&opened);
        let mut audits = Vec::new();
        for profile in &profiles {
            profile.check(&disk)?;
            let mut one = audit(&pages, profile);
            one.advice = advice(&one, &pages, profile, &used);
            audits.push(one);
        }
        let look = Look::detect();
        shown::write(&pages, &audits, look, &mut Stdout)?;
        if pages.writes.is_empty() {
            say!("inconclusive: {}", self.nothing(&files));
        } else if cut_short {
            say!(
                "inconclusive: the recording ends before its program did: files may lie elsewhere in the end, \
                 and more was to be written"
            );
        } else if audits.iter().any(|audit| audit.verdict() == Promised::All) {
            say!(
                "promised is said of what was seen: it holds for O_DIRECT while the kernel merges requests as it \
                 did here; the page cache may write a page in halves, or while it changes"
            );
        }
        // What is not whole yet may be torn, and may not be called whole.
        let exit = match exit(&audits) {
            0 if cut_short => 3,
            exit => exit,
        };
        told(self.write(&pages, &audits), exit)
    }

    /// Where the files lie.
    fn places(&self, opened: &Opened) -> anyhow::Result<Files> {
        let disk = opened.history.disk();
        if let Some(path) = &self.map {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let map = filefrag(&text, self.map_start)
                .map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
            return Ok(Files::of(vec![Snapshot { map }], disk.lb_size));
        }
        if opened.subject.as_ref().is_some_and(|subject| subject.volume.fstype == "btrfs") {
            bail!(
                "{} is of btrfs, which says where files lie in addresses of its own and not in the disk's: record \
                 the program on ext4 or XFS",
                opened.reader.path().display()
            );
        }
        if opened.files.snapshots > 0 {
            return Ok(opened.files.clone());
        }
        let raw = opened.subject.as_ref().is_none_or(|subject| subject.volume.is_raw());
        if !raw || !self.files.is_empty() {
            bail!(
                "{} does not say where files lie: recordings of `tornblk run --exec` do; else give --map \
                 FILE with what `filefrag -v` of the files said in the guest",
                opened.reader.path().display()
            );
        }
        Ok(Files::of_disk(disk.capacity, disk.lb_size))
    }

    fn nothing(&self, files: &Files) -> String {
        let known = (0..files.count()).map(|file| files.path(file));
        if self.files.is_empty() {
            return "no page was written".to_owned();
        }
        let some: Vec<&str> =
            known.clone().filter(|path| self.files.iter().any(|p| fits(p, path))).collect();
        if some.is_empty() {
            // A pattern with a slash is of the whole path.
            let below = |p: &Pattern| Pattern::new(&format!("*/{}", p.as_str())).ok();
            let below = self.files.iter().filter_map(below);
            let below = below.into_iter().find(|p| known.clone().any(|path| fits(p, path)));
            let hint =
                below.map_or(String::new(), |p| format!(" (did you mean '{}'?)", p.as_str()));
            let few: Vec<&str> = known.take(FEW).collect();
            return format!(
                "no file has such a name{hint}; there are, for example: {}",
                few.join(", ")
            );
        }
        let more = some.len().saturating_sub(FEW);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("no page of {}{more} was written", some[..some.len().min(FEW)].join(", "))
    }

    fn write(&self, pages: &PageWrites, audits: &[Audit]) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let report = Report {
            recording: self.recording.display().to_string(),
            page_size: self.page_size,
            files: &pages.files,
            snapshots: pages.snapshots,
            more: pages.more,
            wiped: pages.wiped,
            profiles: audits,
        };
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn exit(audits: &[Audit]) -> u8 {
    let is = |promised| audits.iter().any(|audit| audit.verdict() == promised);
    if is(Promised::NotAll) {
        1
    } else if is(Promised::Nothing) {
        3
    } else {
        0
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text).ok_or_else(|| "write bytes, or take k, m, g".to_owned())
}

pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|e| e.to_string())
}

pub(super) fn page_size(text: &str) -> Result<u64, String> {
    let size = bytes(text)?;
    if size < 512 || !size.is_power_of_two() {
        return Err("a page has a power of two, 512 bytes at least".to_owned());
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_a_power_of_two() {
        assert!(page_size("16k").is_ok());
        assert!(page_size("12k").is_err() && page_size("256").is_err());
    }
}

//! Is everything that was reserved given back, and is the file system sound?

use std::fs::File;
use std::time::Duration;

use super::ground::Ground;
use crate::guest::race::{Ctx, Task, files};
use crate::guest::{Error, Result, exec, fs, sys};
use std::sync::Arc;

/// How long the checker may take.
const CHECK: Duration = Duration::from_secs(120);

/// What can be counted before and after a mount.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    free: u64,
    /// Of the file that was raced, in 512 bytes.
    of_file: i64,
}

fn count(ctx: &Ctx, mount: &str) -> Result<Counted> {
    let stat = rustix::fs::statvfs(mount).map_err(Error::system(format!("cannot stat {mount}")))?;
    let path = &ctx.target(0)?.path;
    let file = rustix::fs::stat(path).map_err(Error::system(format!("cannot stat {path}")))?;
    Ok(Counted { free: stat.f_bfree, of_file: file.st_blocks })
}

/// Lets go of the file, counts what is free, unmounts, has the file system checked, mounts, counts
/// again, and looks at the whole of the file. What a file system keeps in memory alone is gone then:
/// what is free only now had leaked.
pub(super) fn settle(ctx: &Arc<Ctx>, ground: Arc<Ground>) -> Result<Arc<Ground>> {
    let Some(at) = ctx.race.mount.clone() else {
        return Err(Error::Refused("this race needs a file system".into()));
    };
    let of_control = hold_blocks(ctx, &at.target)?;
    let kept = ground.give_up()?;
    let root = at.target.clone();
    let forget = Task::start("forget", move || forget(&root))?;
    ctx.answer(&forget, "sync, and forgetting all files")??;
    let before = count(ctx, &at.target)?;
    drop(of_control);
    ctx.did(format!("{before:?}; umount"));
    let target = at.target.clone();
    let umount = Task::start("umount", move || fs::umount(&target))?;
    ctx.answer(&umount, "umount after all files were closed")??;

    // Bounded by itself.
    let argv = ["xfs_repair", "-n", &ctx.race.device].map(str::to_owned);
    let checked = exec::run(&argv, CHECK)?;
    if checked["status"] != 0 {
        let said = format!("{}{}", checked["stdout"], checked["stderr"]);
        // A reservation that nobody gave back is missing in the count that umount wrote.
        let clause = if said.contains("sb_fdblocks") { "leaked" } else { "not-clean" };
        ctx.found(clause, None, format!("xfs_repair -n after umount says: {}", last(&said)));
    }
    let (device, again) = (ctx.race.device.clone(), at.clone());
    let mount = Task::start("mount", move || {
        fs::mount(&device, &again.target, &again.fstype, &again.options)
    })?;
    ctx.answer(&mount, "mount after a clean umount")??;
    let after = count(ctx, &at.target)?;
    ctx.did(format!("mounted again: {after:?}"));
    if after.free > before.free || after.of_file < before.of_file {
        let text = format!(
            "{} blocks were free when everything was written, closed and given back, and {} are \
             after umount and mount; the file had {} sectors, and has {}",
            before.free, after.free, before.of_file, after.of_file
        );
        ctx.found("leaked", None, text);
    } else if after != before {
        ctx.note(format!("before umount {before:?}, after it {after:?}"));
    }
    Ground::again(ctx, kept)
}

/// Has everything written, and every file forgotten, with what was reserved for it on speculation.
fn forget(root: &str) -> Result<()> {
    rustix::fs::sync();
    for _ in 0..3 {
        std::fs::write("/proc/sys/vm/drop_caches", "3")
            .map_err(Error::system("cannot drop caches"))?;
    }
    let root = File::open(root).map_err(Error::system(format!("cannot open {root}")))?;
    sys::xfs_free_speculative(&root).map_err(Error::system("XFS_IOC_FREE_EOFBLOCKS"))
}

/// The control's: blocks of a file that has no name any more, and is open.
fn hold_blocks(ctx: &Ctx, mount: &str) -> Result<Option<File>> {
    if !ctx.wrong("hold-blocks") {
        return Ok(None);
    }
    let path = format!("{mount}/nameless");
    let failed = |what: &str| Error::system(format!("cannot {what} {path}"));
    let file = files::open(&path, false)?;
    std::io::Write::write_all(&mut &file, &[7; 256 << 10]).map_err(failed("write"))?;
    file.sync_all().map_err(failed("sync"))?;
    std::fs::remove_file(&path).map_err(failed("remove"))?;
    Ok(Some(file))
}

/// The end of what a program said.
fn last(said: &str) -> String {
    let lines: Vec<&str> = said.split("\\n").filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join(" | ")
}

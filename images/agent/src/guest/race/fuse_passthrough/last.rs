//! The end of a server: everything is closed, and nobody holds the disk's files any more.

use std::time::Duration;

use super::super::fuse_server::{Mode, unmount};
use super::super::{PATIENCE, Task, files};
use super::{SHOWN, Stage};
use crate::guest::{Error, Result, fs};

/// How long is waited where it never will, on purpose.
const NEVER: Duration = Duration::from_secs(1);

/// Ends the server, in one round as it should be, in the next by a kill with a file open; then
/// unmounts the disk's file system, which nobody may hold, and mounts it again.
pub(super) fn close(stage: &Stage) -> Result<()> {
    let (ctx, mount) = (&stage.ctx, &stage.mount);
    ctx.phase("close")?;
    let kept = if ctx.wrong("keeps-backing") {
        Some(files::open(&stage.written()?.path, false)?)
    } else {
        None
    };
    let ended = if stage.round.is_multiple_of(2) { stage.server.stop() } else { killed(stage) };
    match ended {
        Ok(()) => {}
        Err(e) if e.errno() == Some(libc::EBUSY) => {
            let text = format!("every file is closed, but {e}; {}", who_has(SHOWN));
            ctx.found("leaked", None, text);
            return Ok(());
        }
        Err(e @ Error::TimedOut(_)) => {
            ctx.found("hung", None, e.to_string());
            return Err(e);
        }
        Err(e) => return Err(e),
    }
    // The kernel lets go of a backing file after a grace period of RCU.
    let limit = if kept.is_some() { NEVER } else { PATIENCE };
    match unmount(&mount.target, limit) {
        Ok(()) => {}
        Err(e) if e.errno() == Some(libc::EBUSY) => {
            let text = format!(
                "every file is closed, FUSE is unmounted and its server has ended, but the file \
                 system of the backing files cannot be unmounted: EBUSY for {} s; {}",
                limit.as_secs(),
                who_has(&mount.target)
            );
            ctx.found("leaked", None, text);
            return Ok(());
        }
        Err(e) => return Err(e),
    }
    drop(kept);
    ctx.reached("unmounted");
    let MountedAgain { device, target, fstype, options } = MountedAgain::of(stage);
    let task = Task::start("mount", move || fs::mount(&device, &target, &fstype, &options))?;
    ctx.answer(&task, "mount")??;
    Ok(())
}

struct MountedAgain {
    device: String,
    target: String,
    fstype: String,
    options: String,
}

impl MountedAgain {
    fn of(stage: &Stage) -> MountedAgain {
        let mount = stage.mount.clone();
        MountedAgain {
            device: stage.ctx.race.device.clone(),
            target: mount.target,
            fstype: mount.fstype,
            options: mount.options,
        }
    }
}

/// The server dies with a file open. What goes past it goes on; then the file is closed.
fn killed(stage: &Stage) -> Result<()> {
    let (ctx, target) = (&stage.ctx, stage.written()?);
    let file = stage.open(target, stage.mode, 0)?;
    ctx.did("kills the server");
    stage.server.kill();
    if stage.mode == Mode::Passthrough {
        let found = files::read_unit(&file, target, 0)
            .map(|bytes| files::in_words(&files::sectors(ctx, target, 0, &bytes)));
        ctx.did(format!("read(2) without a server: {found:?}"));
        match found {
            Ok(_) => ctx.note("a file in passthrough mode can be read after its server died"),
            Err(e) => ctx.note(format!("read(2) in passthrough mode, after the server died: {e}")),
        }
    }
    drop(file);
    unmount(SHOWN, PATIENCE)?;
    ctx.reached("server-killed");
    Ok(())
}

/// Whose open files lie there: nobody's, where the kernel itself keeps one.
fn who_has(mount: &str) -> String {
    let mut who = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        for fd in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(path) = std::fs::read_link(fd.path()) else { continue };
            if path.starts_with(mount) {
                who.push(format!("process {pid} has {} open", path.display()));
            }
        }
    }
    if who.is_empty() { "no process has a file open there".into() } else { who.join(", ") }
}

/// What is durable when the power goes off: writes and an fsync through FUSE, with the server
/// running and files open.
pub(super) fn words(stage: &Stage) -> Result<()> {
    stage.ctx.phase("last-words")?;
    for target in [stage.written()?, stage.mapped()?] {
        for direct in [false, true] {
            let flags = if direct { libc::O_DIRECT } else { 0 };
            let file = stage.open(target, stage.mode, flags)?;
            let mut flags = stage.flags(stage.mode, direct);
            let first = u64::from(direct) * 4;
            for unit in first..first + 4 {
                // The last of them says for itself that it is durable.
                flags.dsync = unit == first + 3;
                stage.write(&file, target, unit, flags)?;
            }
            stage.sync(&file, target)?;
        }
    }
    stage.ctx.reached("last-words");
    // In flight, and promised to nobody.
    let target = stage.written()?;
    let file = stage.open(target, stage.mode, 0)?;
    for unit in 8..12 {
        stage.write(&file, target, unit, stage.flags(stage.mode, false))?;
    }
    Ok::<_, Error>(())
}

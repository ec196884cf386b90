//! What lies between the writers and the file system that is frozen.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::kernel;
use crate::channel::Target;
use crate::guest::race::fuse_server::{Mode, Server, Spec};
use crate::guest::race::{Ctx, PATIENCE, Task, files};
use crate::guest::{Error, Result, disk, exec, fs};

/// For what is let go in the background.
const TO_LET_GO: Duration = Duration::from_secs(15);

/// Directories in the file system that is frozen: upper layers, and what overlayfs works in.
const INSIDE: [&str; 4] = ["upper", "work", "upper2", "work2"];
/// The rest: a lower layer, and where it all is mounted.
const LOWER: &str = "/tmp/lower";
const MERGED: &str = "/tmp/merged";
const OUTER: &str = "/tmp/outer";
const SHOWN: &str = "/tmp/shown";

/// How a write reaches the file system that is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    Plain,
    /// A file of overlayfs, whose upper layer is there.
    Overlay,
    /// The same, or a file of a second one, whose lower layer is the first.
    Nested,
    /// A loop device with direct I/O over a file.
    Loop,
    /// The same over a file of overlayfs.
    LoopOverlay,
    /// A file of FUSE, whose server has the kernel write to the file there by itself.
    FusePassthrough,
}

impl Via {
    pub(super) fn named(name: &str) -> Result<Via> {
        Ok(match name {
            "plain" => Via::Plain,
            "overlay" => Via::Overlay,
            "nested" => Via::Nested,
            "loop" => Via::Loop,
            "loop-overlay" => Via::LoopOverlay,
            "fuse-passthrough" => Via::FusePassthrough,
            other => return Err(Error::Refused(format!("there is no way via \"{other}\""))),
        })
    }

    fn overlays(self) -> bool {
        matches!(self, Via::Overlay | Via::Nested | Via::LoopOverlay)
    }

    fn loops(self) -> bool {
        matches!(self, Via::Loop | Via::LoopOverlay)
    }
}

/// Makes the directories that the lane's targets are in.
///
/// # Errors
/// The file system's.
pub(super) fn prepare(mount: &str) -> Result<()> {
    for dir in INSIDE {
        let path = format!("{mount}/{dir}");
        std::fs::create_dir_all(&path).map_err(Error::system(format!("cannot make {path}")))?;
    }
    Ok(())
}

/// What was put together. Taken down by [`Stage::end`] only: that may wait for ever.
#[derive(Debug)]
pub(super) struct Stage {
    mount: String,
    via: Via,
    /// Mounted above it, the last one on top.
    mounted: Vec<String>,
    /// Loop devices: (target, number).
    loops: Vec<(u32, u32)>,
    /// Who shows the files by FUSE. None of them is opened while the file system is frozen: so the
    /// server has nothing to do then that could have to wait for the thaw.
    server: Option<Arc<Server>>,
}

impl Stage {
    /// # Errors
    /// It cannot be put together; `Unsupported` where the kernel has no such thing.
    pub(super) fn build(ctx: &Ctx, via: Via, mount: &str) -> Result<Stage> {
        let mut stage = Stage {
            mount: mount.to_owned(),
            via,
            mounted: Vec::new(),
            loops: Vec::new(),
            server: None,
        };
        if via.overlays() {
            load_module("overlay");
            std::fs::create_dir_all(LOWER).map_err(Error::system("cannot make a lower layer"))?;
            stage.overlay(LOWER, &format!("{mount}/upper"), &format!("{mount}/work"), MERGED)?;
        }
        if via == Via::Nested {
            // Would a write go through two layers? So far no kernel takes one that may be written to.
            let deep = [format!("{MERGED}/deep"), format!("{MERGED}/deep-work")];
            for dir in &deep {
                std::fs::create_dir_all(dir)
                    .map_err(Error::system(format!("cannot make {dir}")))?;
            }
            let [upper, work] = &deep;
            match stage.overlay(LOWER, upper, work, "/tmp/deep") {
                Ok(()) => ctx.note("this kernel takes overlayfs for the upper layer of another"),
                Err(e) => ctx.cannot(e.to_string()),
            }
            stage.overlay(MERGED, &format!("{mount}/upper2"), &format!("{mount}/work2"), OUTER)?;
        }
        if via.loops() {
            load_module("loop");
            for target in &ctx.race.workload.files {
                stage.add_loop(target)?;
            }
        }
        if via == Via::FusePassthrough {
            load_module("fuse");
            let spec = Spec::new(&format!("{mount}/upper"), SHOWN, Some(Mode::Passthrough));
            stage.server = Some(Arc::new(Server::start(spec)?));
            stage.mounted.push(SHOWN.to_owned());
        }
        Ok(stage)
    }

    fn overlay(&mut self, lower: &str, upper: &str, work: &str, at: &str) -> Result<()> {
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        fs::mount("overlay", at, "overlay", &options).map_err(|e| match e {
            Error::System { what, errno: libc::ENODEV } => {
                Error::Unsupported(format!("{what}: this kernel has no overlayfs"))
            }
            other => other,
        })?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    fn add_loop(&mut self, target: &Target) -> Result<()> {
        let path = self.file_of(target);
        let file = files::open(&path, true)?;
        let number = kernel::loop_over(&file).map_err(|e: io::Error| match e.kind() {
            io::ErrorKind::Unsupported => {
                Error::Unsupported(format!("no loop device with direct I/O over {path}"))
            }
            io::ErrorKind::NotFound => {
                Error::Unsupported("this kernel has no loop devices".to_owned())
            }
            _ => Error::system(format!("cannot put a loop device over {path}"))(e),
        })?;
        self.loops.push((target.file, number));
        // One write, one request: what is held can be counted.
        let queue = format!("/sys/block/loop{number}/queue");
        disk::tune(&[
            (format!("{queue}/scheduler"), "none".to_owned()),
            (format!("{queue}/nomerges"), "2".to_owned()),
        ])?;
        Ok(())
    }

    /// Where a path inside the file system that is frozen is reached by a file of the stage.
    pub(super) fn above(&self, path: &str) -> String {
        let inside = path.strip_prefix(&self.mount).unwrap_or(path);
        let under =
            |dir: &str, at: &str| inside.strip_prefix(dir).map(|rest| format!("{at}{rest}"));
        match self.via {
            Via::Plain | Via::Loop => None,
            Via::Overlay | Via::LoopOverlay => under("/upper/", &format!("{MERGED}/")),
            Via::FusePassthrough => under("/upper/", &format!("{SHOWN}/")),
            Via::Nested => under("/upper2/", &format!("{OUTER}/"))
                .or_else(|| under("/upper/", &format!("{MERGED}/"))),
        }
        .unwrap_or_else(|| path.to_owned())
    }

    /// Where to open a file of the first overlay for writing, so that the second has to copy it up.
    pub(super) fn to_copy_up(&self, path: &str) -> Option<String> {
        let name = path.rsplit('/').next().unwrap_or(path);
        (self.via == Via::Nested).then(|| format!("{OUTER}/{name}"))
    }

    fn file_of(&self, target: &Target) -> String {
        self.above(&target.path)
    }

    /// What is written to for a target's units.
    pub(super) fn path_of(&self, target: &Target) -> String {
        match self.loops.iter().find(|(file, _)| *file == target.file) {
            Some((_, number)) => format!("/dev/loop{number}"),
            None => self.file_of(target),
        }
    }

    /// Takes it all down, the file system that was frozen, too. What stays busy though nobody has it
    /// any more is `leaked`.
    ///
    /// # Errors
    /// It hangs.
    pub(super) fn end(self, ctx: &Arc<Ctx>) -> Result<()> {
        for (_, number) in &self.loops {
            let number = *number;
            let task = Task::start("loop", move || kernel::loop_let_go(number))?;
            if let Err(e) = ctx.answer(&task, "LOOP_CLR_FD")? {
                ctx.found("leaked", None, format!("/dev/loop{number} cannot be let go: {e}"));
            }
        }
        if let Some(server) = &self.server {
            let server = Arc::clone(server);
            let task = Task::start("server", move || server.status())?;
            if ctx.answer(&task, "a word of the FUSE server's")??.most_writes == 0 {
                ctx.reached("passed-through");
            }
        }
        for at in self.mounted.iter().rev() {
            if !taken_down(ctx, at)? {
                return Ok(());
            }
        }
        if let Some(server) = self.server {
            let task = Task::start("server", move || server.must_end())?;
            match ctx.answer_within(&task, "the FUSE server's end", 2 * PATIENCE)? {
                Ok(()) => ctx.did("the FUSE server ended"),
                Err(e) => ctx.found("hung", None, e.to_string()),
            }
        }
        if taken_down(ctx, &self.mount)? {
            ctx.reached("unmounted");
        }
        Ok(())
    }
}

/// Unmounts; else it is a finding.
fn taken_down(ctx: &Ctx, at: &str) -> Result<bool> {
    let path = at.to_owned();
    let task = Task::start("umount", move || fs::umount_soon(&path, TO_LET_GO))?;
    match ctx.answer(&task, &format!("umount of {at}"))? {
        Ok(_) => {
            ctx.did(format!("umount of {at}"));
            Ok(true)
        }
        Err(e) => {
            let text = format!("{e}, {} s after everything in it was closed", TO_LET_GO.as_secs());
            ctx.found("leaked", None, text);
            Ok(false)
        }
    }
}

fn load_module(name: &str) {
    // Where it is built in there is nothing to load; where it is missing that is told soon enough.
    let _ = exec::run(&["/usr/sbin/modprobe".to_owned(), name.to_owned()], TO_LET_GO);
}

/// The directory that the file system is mounted at, for FIFREEZE.
pub(super) fn root(mount: &str) -> Result<Arc<File>> {
    let file = File::open(mount).map_err(Error::system(format!("cannot open {mount}")))?;
    Ok(Arc::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_reached_through_what_lies_above_it() {
        let stage = |via| Stage {
            mount: "/mnt".into(),
            via,
            mounted: vec![],
            loops: vec![(3, 5)],
            server: None,
        };
        let above = |via, path: &str| stage(via).above(path);
        assert_eq!(above(Via::Plain, "/mnt/upper/a"), "/mnt/upper/a");
        assert_eq!(above(Via::Overlay, "/mnt/upper/a"), "/tmp/merged/a");
        assert_eq!(above(Via::Overlay, "/mnt/plain"), "/mnt/plain");
        assert_eq!(above(Via::Nested, "/mnt/upper/a"), "/tmp/merged/a");
        assert_eq!(above(Via::FusePassthrough, "/mnt/upper/a"), "/tmp/shown/a");
        assert_eq!(above(Via::Nested, "/mnt/upper2/a"), "/tmp/outer/a");
        let target = Target { file: 3, path: "/mnt/upper/a".into(), ..Target::default() };
        assert_eq!(stage(Via::Loop).path_of(&target), "/dev/loop5");
    }
}

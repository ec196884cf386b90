//! Writes that fail, before they began and after: each has to leave as many references as there were.
//!
//! After each of them the disk holds one write, and FIFREEZE is asked for. It must wait for that one
//! (a reference that was given back too often would hide it), and return once it is let go (one that was
//! not given back would keep it).

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::{EAGAIN, EBADF, EFAULT, EFBIG, EINVAL, EOPNOTSUPP, EPERM};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::mm::MprotectFlags;

use super::kernel::{Before, Guard, SizeLimit};
use super::stage::Stage;
use super::write::{Piece, Way, write_all};
use super::{NEVER, Race, SOON};
use crate::guest::race::memory::{Map, PAGE};
use crate::guest::race::{Ctx, Task, Which, files};
use crate::guest::{Error, Result, explain};
use crate::race::DeviceOp;

/// Files beside the targets: what happens to them is nobody's promise.
const SCRATCH: [&str; 3] = ["upper/scratch", "upper/append", "upper/guarded"];
const LEN: u64 = 64 << 10;
/// Files that a second overlay has to copy up.
const LOWER: u32 = 8;
/// No file may be longer while RLIMIT_FSIZE is lowered.
const LIMIT: u64 = 1 << 20;

/// `RWF_NOWAIT`, `RWF_NOAPPEND` of `linux/fs.h` (the second: Linux 6.9).
const NOWAIT: u32 = 0x8;
const NOAPPEND: u32 = 0x20;

/// A file that a second overlay has to copy up when it is opened for writing.
pub(super) fn lower(mount: &str, n: u32) -> String {
    format!("{mount}/upper/lower{}", n % LOWER)
}

/// Makes the files.
///
/// # Errors
/// The file system's.
pub(super) fn prepare(mount: &str) -> Result<()> {
    let scratch = SCRATCH.iter().map(|name| format!("{mount}/{name}"));
    for path in scratch.chain((0..LOWER).map(|n| lower(mount, n))) {
        let failed = |what: &str| Error::system(format!("cannot {what} {path}"));
        let file = files::open(&path, false)?;
        file.write_all_at(&vec![7; LEN as usize], 0).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
    }
    Ok(())
}

/// One way to fail.
#[derive(Clone)]
struct Case {
    name: &'static str,
    file: Arc<File>,
    piece: Piece,
    rwf: u32,
    limited: bool,
    /// Does it fail behind the point where a write counts as begun?
    began: bool,
    /// What may come of it. Anything else is worth a line: results are another suite's.
    comes: &'static [i32],
}

/// Fails in all ways, and sees each time that FIFREEZE still counts right.
///
/// # Errors
/// It does not; or something could not be set up.
pub(super) fn run(race: &mut Race, stage: &Stage, mount: &str, round: u32) -> Result<()> {
    let inside = |name: &str| format!("{mount}/{name}");
    let paths = |name: &str| [stage.above(&inside(name)), inside(name)];
    for (i, where_) in ["above", "in"].into_iter().enumerate() {
        let [scratch, append, guarded] = SCRATCH.map(|name| paths(name)[i].clone());
        files_of(race, where_, &scratch, &append, round)?;
        no_open(race, where_, &guarded)?;
        no_access(race, where_, &guarded, round)?;
    }
    Ok(())
}

fn files_of(race: &mut Race, where_: &str, scratch: &str, append: &str, round: u32) -> Result<()> {
    let memory = Map::private(2 * PAGE).map_err(Error::system("cannot map memory"))?;
    memory.store(0, &[7; PAGE]);
    let nothing = MprotectFlags::empty();
    memory.protect(PAGE, PAGE, nothing).map_err(Error::system("cannot protect memory"))?;
    let memory = Arc::new(memory);
    let file = Arc::new(files::open(scratch, true)?);
    let read_only = File::options().read(true).custom_flags(libc::O_DIRECT).open(scratch);
    let read_only = read_only.map_err(Error::system(format!("cannot open {scratch}")))?;
    let read_only = Arc::new(read_only);
    let appended = Arc::new(append_only(append)?);

    let good = |offset| Piece { address: memory.address(0) as usize, len: PAGE, offset };
    let bad = |offset| Piece { address: memory.address(PAGE) as usize, len: PAGE, offset };
    let case = |name, file: &Arc<File>, piece, comes| Case {
        name,
        file: Arc::clone(file),
        piece,
        rwf: 0,
        limited: false,
        began: true,
        comes,
    };
    let half = Piece { len: 2 * PAGE, ..good(0) };
    let odd = Piece { len: 100, ..good(100) };
    let cases = [
        Case { began: false, ..case("without the right to write", &read_only, good(0), &[-EBADF]) },
        Case {
            began: false,
            rwf: NOAPPEND,
            ..case("append-only", &appended, good(0), &[-EPERM, -EOPNOTSUPP])
        },
        case("beyond what a file can be", &file, good(1 << 50), &[-EFBIG]),
        Case { limited: true, ..case("beyond RLIMIT_FSIZE", &file, good(2 * LIMIT), &[-EFBIG]) },
        case("misaligned", &file, odd, &[-EINVAL]),
        case("from memory that is not there", &file, bad(0), &[-EFAULT]),
        case("from memory of which half is there", &file, half, &[-EFAULT, PAGE as i32]),
        Case {
            rwf: NOWAIT,
            ..case("behind the end, without waiting", &file, good(LEN), &[-EAGAIN, -EOPNOTSUPP])
        },
        // It does not fail, but it is waited for where others are not.
        case("behind the end", &appended, good(0), &[PAGE as i32]),
    ];
    for case in &cases {
        for way in Way::ALL {
            let ctx = Arc::clone(&race.ctx);
            let (memory, one) = (Arc::clone(&memory), case.clone());
            let task = Task::start("failing", move || {
                let result = one.write(way);
                drop(memory);
                result
            })?;
            let result = race.answer(&task, &format!("a write {}", case.name))??;
            ctx.did(format!("{} {} {where_} the stage: {result}", way.name(), case.name));
            tell(&ctx, case.name, way, where_, result, case.comes);
            if result < 0 || case.piece.len as i64 > result {
                ctx.reached(if case.began { "failed-after" } else { "failed-before" });
            }
            balanced(race, way, round)?;
        }
    }
    let flags = ioctl_getflags(&appended).map_err(Error::system("cannot get flags"))?;
    ioctl_setflags(&appended, flags - IFlags::APPEND).map_err(Error::system("cannot set flags"))?;
    Ok(())
}

impl Case {
    fn write(&self, way: Way) -> Result<i64> {
        let limit = match self.limited {
            true => Some(SizeLimit::set(LIMIT).map_err(Error::system("cannot limit the size"))?),
            false => None,
        };
        let results = write_all(way, &self.file, &[self.piece], self.rwf);
        drop(limit);
        let results = results.map_err(Error::system(format!("cannot write by {}", way.name())))?;
        Ok(results.first().copied().unwrap_or_default())
    }
}

/// A result that was not to be thought of: for who reads the report.
fn tell(ctx: &Ctx, what: &str, way: Way, where_: &str, result: i64, comes: &[i32]) {
    if comes.iter().any(|may| i64::from(*may) == result) {
        return;
    }
    let came = match result {
        0.. => format!("{result} bytes"),
        errno => explain(-errno as i32),
    };
    ctx.note(format!("{} {what}, {where_} the stage: {came}", way.name()));
}

/// FIFREEZE waits for one write that the disk holds, and returns when it is let go.
fn balanced(race: &mut Race, way: Way, round: u32) -> Result<()> {
    let ctx = Arc::clone(&race.ctx);
    let at = usize::from(way == Way::Aio);
    let place = race.places.get(at).copied();
    let stall = ctx.stall(Which { range: place, ..Which::answers(DeviceOp::Write) })?;
    let writer = race.writers.remove(at);
    let name = writer.way.name();
    let burst = race.burst(writer, name, 1, round)?;
    if !stall.holds(1, SOON)? {
        return Err(Error::Refused("the disk saw no write to hold".into()));
    }
    let freezing = race.freezing()?;
    if !race.skips() && race.look(&freezing)? {
        ctx.reached("counted-right");
    }
    if ctx.wrong("holds-reference") {
        // The disk lets nothing go: it cannot return.
        ctx.answer_within(&freezing, "FIFREEZE, after a write that failed,", NEVER)?;
    }
    stall.release()?;
    race.must_freeze(&freezing, "FIFREEZE, after a write that failed,")?;
    race.let_go()?;
    race.take_back(&burst, "a write that was let go")
}

/// Opened for appending, and then made append-only.
fn append_only(path: &str) -> Result<File> {
    let what = format!("cannot make {path} append-only");
    let file = File::options()
        .read(true)
        .append(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(Error::system(what.clone()))?;
    let flags = ioctl_getflags(&file).map_err(Error::system(what.clone()))?;
    ioctl_setflags(&file, flags | IFlags::APPEND).map_err(Error::system(what))?;
    Ok(file)
}

/// An open that a guard denies.
fn no_open(race: &mut Race, where_: &str, path: &str) -> Result<()> {
    let ctx = Arc::clone(&race.ctx);
    let guard = match Guard::over(path, Before::Open) {
        Ok(guard) => guard,
        Err(e) => {
            ctx.cannot(format!("fanotify, permission to open {where_} the stage: {e}"));
            return Ok(());
        }
    };
    let name = path.to_owned();
    let opened = guarded(&ctx, guard, "an open that is denied", move || {
        files::open(&name, true).map(drop).map_or_else(|e| e.errno().unwrap_or(0), |()| 0)
    })?;
    if opened == EPERM {
        ctx.reached("denied-open");
    }
    Ok(())
}

/// A write that a guard denies.
fn no_access(race: &mut Race, where_: &str, path: &str, round: u32) -> Result<()> {
    let ctx = Arc::clone(&race.ctx);
    for way in Way::ALL {
        let guard = match Guard::over(path, Before::Access) {
            Ok(guard) => guard,
            Err(e) => {
                ctx.cannot(format!("fanotify, permission to write {where_} the stage: {e}"));
                return Ok(());
            }
        };
        let name = path.to_owned();
        let result = guarded(&ctx, guard, "a write that is denied", move || {
            // Who had it open before the guard came is not asked about.
            let file = files::open(&name, true)?;
            let memory = Map::private(PAGE).map_err(Error::system("cannot map memory"))?;
            let piece = Piece { address: memory.address(0) as usize, len: PAGE, offset: 0 };
            let results = write_all(way, &file, &[piece], 0);
            let results = results.map_err(Error::system("cannot write"))?;
            Ok::<i64, Error>(results.first().copied().unwrap_or_default())
        })??;
        tell(&ctx, "denied by fanotify", way, where_, result, &[-EPERM]);
        if result < 0 {
            ctx.reached("denied-write");
        }
        balanced(race, way, round)?;
    }
    Ok(())
}

/// Does something while a guard denies whatever it is asked.
fn guarded<T: Send + 'static>(
    ctx: &Ctx,
    guard: Guard,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let guarding = Task::start("guard", move || {
        while !seen.load(Ordering::Relaxed) {
            if guard.deny().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })?;
    let task = Task::start("guarded", work)?;
    let answer = ctx.answer(&task, what);
    stop.store(true, Ordering::Relaxed);
    // Then it lets everybody go.
    ctx.answer(&guarding, "who denies")?;
    answer
}

//! Writes that are cut short against page faults that dirty what they reserved: suite `delalloc-punch`.
//!
//! A buffered write of XFS reserves blocks for all of its range, copies, and where the copy ends too
//! early gives the rest back (`iomap_write_delalloc_release`): all but what is dirty, for page faults
//! may have dirtied pages there meanwhile. What is given back beneath a dirty page is data lost without
//! a word; what is not given back is space lost. Here the write is held in its copy until the stores
//! are made, and is cut short then: no scene is left to luck but the last, [`storm`].
//!
//! - [`ground`]: the file, sources that end too early, the calls with their marks.
//! - [`model`]: what each unit has to show.
//! - [`look`]: looks at it from every side.
//! - [`space`]: is all space given back?

mod ground;
mod look;
mod model;
mod space;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use self::ground::{Ground, PER_PAGE, Region, Short, Source, Writing};
use self::model::Content;
use super::{Ctx, PATIENCE, Stall, Task, Which, files};
use crate::channel::Found;
use crate::guest::workload::plan::Rng;
use crate::guest::{Error, Result};
use crate::payload::SECTOR;
use crate::race::{DeviceOp, Setting, StallPoint};

/// How long a storm blows.
const STORM: Duration = Duration::from_millis(1200);

/// Where in the kernel a write waits for a page of its file.
const FOR_A_PAGE: [&str; 3] = ["folio_wait_bit", "__folio_lock", "__filemap_get_folio"];
/// Where it waits for the lock that page faults share, to give back: by how its kernel was compiled.
const FOR_THE_LOCK: [&str; 4] = [
    "xfs_buffered_write_iomap_end",
    "xfs_buffered_write_iomap_next",
    "iomap_write_delalloc_release",
    "iomap_file_buffered_write_punch_delalloc",
];

/// Where everybody else waits for the locks of a file.
const FOR_OTHERS: [&str; 4] =
    ["xfs_ilock", "filemap_fault", "__xfs_filemap_fault", "xfs_write_fault"];

/// Runs the lane's scenes in turn, each over a part of the file of its own; has all space counted; and
/// ends with one scene of which not everything is synced.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    let scenes: Vec<String> = match ctx.race.set.get("scenes") {
        Some(Setting::List(scenes)) if !scenes.is_empty() => scenes.clone(),
        _ => return Err(Error::Refused("the lane sets no `scenes`".into())),
    };
    let units = ctx.number("region", 64 << 10) / SECTOR as u64;
    let stride = ctx.number("stride", units * SECTOR as u64) / SECTOR as u64;
    let region = |n: u32| Region { first: u64::from(n) * stride, units };
    let last = region(ctx.race.rounds);
    if last.first + units > u64::from(ctx.target(0)?.units) {
        return Err(Error::Refused("the file has no region for each round, and one more".into()));
    }
    files::load(ctx)?;
    let mut ground = Ground::new(ctx)?;
    for n in 0..ctx.race.rounds {
        if !ctx.round(n) {
            break;
        }
        let scene = &scenes[n as usize % scenes.len()];
        ctx.phase(scene)?;
        let plan = Plan::draw(ctx.rng(&[u64::from(n)]), n, region(n), ground.block);
        let play = Play { ctx, ground: &ground, plan: &plan };
        play.scene(scene)?;
        if n == 0 && ctx.wrong("poisoned") {
            let untouched = |unit: &u64| ground.model().now(*unit) == Content::Made;
            let unit = (plan.region.first..plan.region.first + units).rfind(untouched);
            ground.store_poison(unit.unwrap_or(plan.region.first));
        }
        settled(ctx, play.sync(false)?);
        play.look(plan.region)?;
    }
    if !ctx.is_over() {
        ctx.phase("counting")?;
        ground = space::settle(ctx, ground)?;
        the_last(ctx, &ground, region(ctx.race.rounds))?;
    }
    Ok(())
}

/// A write that is cut short again, of which the power cut may take what is not synced yet.
fn the_last(ctx: &Arc<Ctx>, ground: &Arc<Ground>, region: Region) -> Result<()> {
    ctx.phase("the last")?;
    let plan = Plan::draw(ctx.rng(&[u64::MAX]), 0, region, ground.block);
    let play = Play { ctx, ground, plan: &plan };
    // As the disk alone has it.
    play.look(Region { first: 0, units: region.first })?;
    play.cut_short(Meanwhile::Nothing)?;
    settled(ctx, play.sync(ctx.wrong("forget-fsync"))?);
    let again: Vec<u64> = plan.later.iter().copied().filter(|u| u % 2 == 0).collect();
    play.stores(&again)
}

fn settled(ctx: &Ctx, fsync: i64) {
    if fsync < 0 {
        let why = crate::guest::explain((-fsync) as i32);
        ctx.found(
            "failed",
            None,
            format!("fsync fails with {why} on a disk that answers everything"),
        );
    }
}

/// Who does what in a region.
#[derive(Debug)]
struct Plan {
    region: Region,
    short: Short,
    /// Stored to while the write is in its copy, and later: all behind its cut, the first right there.
    first: Vec<u64>,
    later: Vec<u64>,
    /// Pages (by their first unit) that are read there.
    read: Vec<u64>,
    /// Punched or zeroed: nobody else's, but at the edges of pages that are stored to.
    zeroed: std::ops::Range<u64>,
}

impl Plan {
    /// `block`: of the file system (bytes). Every third write fails as a whole.
    fn draw(mut rng: Rng, round: u32, region: Region, block: u64) -> Plan {
        let step = PER_PAGE.max(block / SECTOR as u64);
        let Region { first, units } = region;
        let from = rng.below(PER_PAGE as usize) as u64;
        let good = if round % 3 == 1 { 0 } else { 1 + rng.below(units as usize / 3) as u64 };
        let cut = from + good;
        let to = units - rng.below(2) as u64 * rng.below(PER_PAGE as usize) as u64;
        let zeroed_from = units / 2 + rng.below(units as usize / 8) as u64;
        let zeroed = zeroed_from..zeroed_from + 3 + rng.below(units as usize / 6) as u64;
        let mut plan = Plan {
            region,
            short: Short { from: first + from, cut: first + cut, to: first + to },
            first: vec![first + cut],
            later: Vec::new(),
            read: Vec::new(),
            zeroed: first + zeroed.start..first + zeroed.end,
        };
        for at in (cut / step..units / step).map(|n| n * step) {
            plan.step(&mut rng, at.max(cut + 1)..at + step, at);
        }
        plan
    }

    /// What becomes of a page, or a block where that is more: its units behind the cut.
    fn step(&mut self, rng: &mut Rng, units: std::ops::Range<u64>, at: u64) {
        let first = self.region.first;
        // Both edges of what is zeroed are stored to, for they share pages.
        let zeroed = self.zeroed.start - first..self.zeroed.end - first;
        let edges = at..units.end;
        let is_edge = edges.contains(&zeroed.start) || edges.contains(&(zeroed.end - 1));
        match rng.below(4) {
            0 if !is_edge => return,
            1 if !is_edge => return self.read.push(first + at),
            _ => {}
        }
        let mut free: Vec<u64> = units.filter(|u| !zeroed.contains(u)).map(|u| first + u).collect();
        for stores in [&mut self.first, &mut self.later] {
            for _ in 0..1 + rng.below(2) {
                if !free.is_empty() {
                    stores.push(free.swap_remove(rng.below(free.len())));
                }
            }
        }
    }
}

/// What goes on while the write is held in its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// fsync, of which the disk holds the writes until the write has returned.
    Writeback,
    /// A direct read, and DONTNEED.
    Direct,
    /// A punch, or a zero range.
    Zero {
        punch: bool,
    },
}

/// One round.
struct Play<'a> {
    ctx: &'a Arc<Ctx>,
    ground: &'a Arc<Ground>,
    plan: &'a Plan,
}

impl Play<'_> {
    fn scene(&self, name: &str) -> Result<()> {
        match name {
            "nobody" => self.nobody_stores(),
            "stores" => self.cut_short(Meanwhile::Nothing),
            "writeback" => self.cut_short(Meanwhile::Writeback),
            "direct" => self.cut_short(Meanwhile::Direct),
            "punch" => self.cut_short(Meanwhile::Zero { punch: true }),
            "zero" => self.cut_short(Meanwhile::Zero { punch: false }),
            "page" => self.waits_for_a_page(),
            "fault" => self.punch_waits_for_a_fault(),
            "release" => self.fault_waits_for_the_punch(),
            "storm" => self.storm(),
            other => Err(Error::Refused(format!("there is no scene \"{other}\""))),
        }
    }

    // ---- parts

    /// Has a thread do what may take a moment, and no more: this one is never kept by the kernel.
    fn alone<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Ground) -> T + Send + 'static,
    ) -> Result<T> {
        let task = self.ground.task("helper", work)?;
        self.ctx.answer(&task, what)
    }

    fn look(&self, region: Region) -> Result<()> {
        self.alone("looking at the file", move |ground| look::look(ground, region))?
    }

    fn drop_cache(&self) -> Result<()> {
        let Region { first, units } = self.plan.region;
        self.alone("DONTNEED", move |ground| ground.drop_cache(first, units))
    }

    fn stores(&self, units: &[u64]) -> Result<()> {
        let task = self.mapper(units.to_vec())?;
        self.ctx.answer(&task, "a store through a mapping")?
    }

    fn mapper(&self, units: Vec<u64>) -> Result<Task<Result<()>>> {
        self.ground.task("mapper", move |ground| ground.store(&units))
    }

    fn sync(&self, forget: bool) -> Result<i64> {
        let task = self.ground.task("syncer", move |ground| ground.sync(forget))?;
        self.ctx.answer(&task, "fsync")?
    }

    /// Waits until the disk holds something: → does it?
    fn held(&self, stall: &Stall, what: &str) -> Result<bool> {
        let holds = stall.holds(1, PATIENCE)?;
        self.ctx.did(format!("the disk holds {what}: {holds}"));
        Ok(holds)
    }

    /// A write is over: was the rest of what it had reserved given back? `before`: its blocks before it
    /// began, `held`: while it was held.
    fn given_back(&self, before: u64, held: u64) -> Result<()> {
        let after = self.ground.blocks()?;
        self.ctx
            .did(format!("sectors of the file: {before} before, {held} meanwhile, {after} after"));
        if held > before && after < held {
            self.ctx.reached("the rest of a reservation was given back");
        }
        Ok(())
    }

    fn cut_off(&self, writing: Writing, before: u64, held: u64) -> Result<()> {
        let n = self.ground.end_write(writing)?;
        let good = (self.plan.short.cut - self.plan.short.from) as i64 * SECTOR as i64;
        if n == good || n < 0 {
            self.ctx.reached(if n < 0 {
                "a write failed after stores"
            } else {
                "a write was short after stores"
            });
        }
        self.given_back(before, held)
    }

    // ---- scenes

    /// Nobody stores: what a write reserved and did not write is given back to the last block.
    fn nobody_stores(&self) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let per_block = ground.block / SECTOR as u64;
        let from = plan.short.from;
        for good in [0, PER_PAGE + 3] {
            let short = Short { from, cut: from + good, to: plan.short.to };
            let (source, generations, at) = self.source_on_disk(short)?;
            let before = ground.blocks()?;
            let reads = ground.hold_reads(at)?;
            let writing = ground.start_write(short, &source, generations)?;
            self.held(&reads, "the page that the write copies from")?;
            let held = ground.blocks()?;
            source.take_away()?;
            reads.release()?;
            let n = ground.end_write(writing)?.max(0) as u64;
            let after = ground.blocks()?;
            ctx.did(format!(
                "sectors of the file: {before} before, {held} meanwhile, {after} after"
            ));
            // Whole blocks under what was copied.
            let end = (from + n.div_ceil(SECTOR as u64)).next_multiple_of(per_block);
            let kept = if n > 0 { end - from / per_block * per_block } else { 0 };
            if held <= before {
                continue;
            }
            ctx.reached("a reservation that nobody else used was given back");
            if after > before + kept && ctx.flag("exact") {
                let text = format!(
                    "of {} sectors that a write had reserved it wrote {n} bytes, and {} sectors are \
                     still reserved, {} more than it needs",
                    held - before,
                    after - before,
                    after - before - kept
                );
                let len = ((short.to - from) * SECTOR as u64) as u32;
                ctx.found("leaked", Some((&ground.target, ground.byte(from), len)), text);
            }
        }
        self.stores(&plan.first)?;
        self.stores(&plan.later)
    }

    /// The write waits in its copy for a page of its source, which the disk holds. What it has reserved
    /// is stored to; then the page is taken away, and the write ends before it.
    fn cut_short(&self, meanwhile: Meanwhile) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let (source, generations, at) = self.source_on_disk(plan.short)?;
        let before = ground.blocks()?;
        let reads = ground.hold_reads(at)?;
        let writing = ground.start_write(plan.short, &source, generations)?;
        let is_held = self.held(&reads, "the page that the write copies from")?;
        let held = ground.blocks()?;
        let read = plan.read.clone();
        self.alone("a read of a mapping", move |ground| {
            read.iter().for_each(|unit| ground.touch(*unit));
        })?;
        self.stores(&plan.first)?;
        if is_held {
            ctx.reached("stores into what a write had reserved");
        }
        match meanwhile {
            Meanwhile::Nothing => {
                source.take_away()?;
                reads.release()?;
                self.cut_off(writing, before, held)?;
                self.stores(&plan.later)
            }
            Meanwhile::Writeback => {
                let writes = ctx.stall(Which {
                    op: Some(DeviceOp::Write),
                    range: None,
                    nth: None,
                    when: StallPoint::BeforeIo,
                })?;
                let fsync = ground.task("syncer", |ground| ground.sync(false))?;
                let in_writeback = self.held(&writes, "a write of the fsync")?
                    && ground.waits_in(&fsync, &FOR_A_PAGE, "fdatawait");
                // Into pages that are being written, too.
                self.stores(&plan.later)?;
                source.take_away()?;
                reads.release()?;
                self.cut_off(writing, before, held)?;
                if in_writeback && fsync.wait(Duration::ZERO).is_err() {
                    ctx.reached("a write was cut short while writeback was held");
                }
                writes.release()?;
                settled(ctx, ctx.answer(&fsync, "fsync, when its writes were let go")??);
                Ok(())
            }
            Meanwhile::Direct => {
                self.drop_cache()?;
                let direct = self.direct_read()?;
                if ground.waits_in(&direct, &FOR_OTHERS, "read") {
                    ctx.reached("a direct read waited for a write");
                }
                self.drop_cache()?;
                source.take_away()?;
                reads.release()?;
                self.cut_off(writing, before, held)?;
                ctx.answer(&direct, "a direct read of what a write was cut short in")??;
                self.stores(&plan.later)
            }
            Meanwhile::Zero { punch } => {
                // What is punched is dirty, and nobody else's.
                self.stores(&plan.zeroed.clone().step_by(2).collect::<Vec<_>>())?;
                let zeroed = plan.zeroed.clone();
                let zero = ground.task("puncher", move |ground| ground.zero(zeroed, punch))?;
                if ground.waits_in(&zero, &FOR_OTHERS, "fallocate") {
                    ctx.reached("a punch or zero range waited for a write");
                }
                source.take_away()?;
                let mapper = self.mapper(plan.later.clone())?;
                reads.release()?;
                self.cut_off(writing, before, held)?;
                ctx.answer(&mapper, "a store beside a punch")??;
                self.zeroed(&zero)
            }
        }
    }

    fn zeroed(&self, zero: &Task<Result<i64>>) -> Result<()> {
        let result = self.ctx.answer(zero, "fallocate")??;
        if result < 0 {
            let why = crate::guest::explain((-result) as i32);
            self.ctx.found("failed", None, format!("fallocate fails with {why}"));
        }
        Ok(())
    }

    /// A thread that reads the region past the page cache, and looks at what it got.
    fn direct_read(&self) -> Result<Task<Result<()>>> {
        let region = self.plan.region;
        self.ground.task("reader", move |ground| judged_read(ground, region, false))
    }

    /// A page of the file that has to be read before it is written to: where on the disk. Of a hole it
    /// is one that has a block of data, at its beginning or at its end.
    fn page_on_disk(&self, page: u64, at_end: bool) -> Result<(u64, u64)> {
        let per_block = self.ground.block / SECTOR as u64;
        let unit = if at_end { page + PER_PAGE - per_block } else { page };
        if !self.ground.is_shared() {
            if per_block >= PER_PAGE {
                return Err(Error::Refused("a page of this file has no block of its own".into()));
            }
            self.alone("a write with RWF_DSYNC", move |ground| {
                ground.write_through(unit..unit + per_block)
            })??;
        }
        self.drop_cache()?;
        self.alone("FIEMAP", move |ground| files::place(&ground.file, &ground.target, unit))?
    }

    /// A source of which the page behind its end is on the disk alone: where.
    fn source_on_disk(&self, short: Short) -> Result<(Source, Vec<u32>, (u64, u64))> {
        let (source, generations) =
            self.alone("making a source", move |ground| ground.source_on_disk(short))??;
        match source.at {
            Some(at) => Ok((source, generations, at)),
            None => Err(Error::Refused("the source of a write is not in one place".into())),
        }
    }

    /// Has a page read, and waits for nothing but its READ to be sent.
    fn read_ahead(&self, page: u64) -> Result<()> {
        let result = self.alone("WILLNEED", move |ground| {
            let len = std::num::NonZeroU64::new(PER_PAGE * SECTOR as u64);
            fadvise(&ground.file, ground.byte(page), len, Advice::WillNeed)
        })?;
        self.ctx.did(format!("WILLNEED of the page at unit {page}: {result:?}"));
        Ok(())
    }

    /// The write waits in its copy for a page of the file itself, that is being read ahead. Then its
    /// source is taken away: the copy, not the look at the source before it, is what fails.
    fn waits_for_a_page(&self) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let region = plan.region;
        // Of a shared file in the middle of the write; of a hole where it begins.
        let (page, from) = if ground.is_shared() {
            (region.first + 2 * PER_PAGE, plan.short.from)
        } else {
            (region.first, region.first + ground.block / SECTOR as u64)
        };
        let short =
            Short { from, cut: page + PER_PAGE - 1 - plan.short.from % 3, to: plan.short.to };
        let at = self.page_on_disk(page, false)?;
        let reads = ground.hold_reads(at)?;
        self.read_ahead(page)?;
        let is_held = self.held(&reads, "a page of the file")?;
        let before = ground.blocks()?;
        let (source, generations) = ground.private_source(short)?;
        let writing = ground.start_write(short, &source, generations)?;
        let waits = ground.waits_in(&writing.task, &FOR_A_PAGE, "iomap_write_begin");
        let held = ground.blocks()?;
        // Whole pages behind the one that is held: those in it would wait for it, too.
        let behind = |units: &[u64]| -> Vec<u64> {
            units.iter().copied().filter(|u| *u >= page + PER_PAGE).collect()
        };
        self.stores(&behind(&plan.first))?;
        source.take_away()?;
        if is_held && waits && writing.task.wait(Duration::ZERO).is_err() {
            ctx.reached("a write waited for a page in the middle of its copy");
        }
        reads.release()?;
        let n = ground.end_write(writing)?;
        ctx.did(format!("it copied {n} bytes"));
        self.given_back(before, held)?;
        self.stores(&behind(&plan.later))
    }

    /// A page fault waits for the disk, with the lock that the write needs for giving back.
    fn punch_waits_for_a_fault(&self) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let Region { first, units } = plan.region;
        let page = first + units - PER_PAGE;
        let at = self.page_on_disk(page, true)?;
        let stored = if ground.is_shared() { page + 3 } else { page };
        let reads = ground.hold_reads(at)?;
        let mapper = self.mapper(vec![stored, stored + 1])?;
        let is_held = self.held(&reads, "the page of a fault")?;
        let before = ground.blocks()?;
        // Up to what the fault's page has of its own.
        let to = if ground.is_shared() { plan.short.to } else { page + 2 };
        let short = Short { to, ..plan.short };
        let (source, generations) = ground.private_source(short)?;
        source.take_away()?;
        let writing = ground.start_write(short, &source, generations)?;
        let waits = ground.waits_in(&writing.task, &FOR_THE_LOCK, "");
        let held = ground.blocks()?;
        if is_held && waits && mapper.wait(Duration::ZERO).is_err() {
            ctx.reached("the giving back waited for a page fault");
        }
        reads.release()?;
        self.cut_off(writing, before, held)?;
        ctx.answer(&mapper, "a store whose page was let go")??;
        let rest: Vec<u64> = plan.first.iter().chain(&plan.later).copied().collect();
        let rest: Vec<u64> = rest.into_iter().filter(|u| *u < page).collect();
        self.stores(&rest)
    }

    /// The write, cut short already, waits for a page that is being read ahead while it gives back, with
    /// the lock that page faults need: stores wait for it, and find nothing reserved any more.
    fn fault_waits_for_the_punch(&self) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let Region { first, units } = plan.region;
        let page = first + units - PER_PAGE;
        let at = self.page_on_disk(page, true)?;
        let reads = ground.hold_reads(at)?;
        self.read_ahead(page)?;
        let is_held = self.held(&reads, "a page that is read ahead")?;
        let before = ground.blocks()?;
        let short = Short { to: page + 2, ..plan.short };
        let (source, generations) = ground.private_source(short)?;
        source.take_away()?;
        let writing = ground.start_write(short, &source, generations)?;
        let gives_back = ground.waits_in(&writing.task, &FOR_A_PAGE, "delalloc_release");
        let held = ground.blocks()?;
        let stores: Vec<u64> =
            [&plan.first[..], &plan.later[..]].concat().into_iter().filter(|u| *u < page).collect();
        let mapper = self.mapper(stores)?;
        if is_held && gives_back && ground.waits_in(&mapper, &FOR_OTHERS, "fault") {
            ctx.reached("a page fault waited for the giving back");
        }
        reads.release()?;
        self.cut_off(writing, before, held)?;
        ctx.answer(&mapper, "a store that waited for a write to give back")?
    }

    /// Everybody at once, for a while: what the scenes have not thought of.
    fn storm(&self) -> Result<()> {
        let Play { ctx, ground, plan } = self;
        let end = Arc::new(AtomicBool::new(false));
        let seed = ctx.rng(&[0x5708, plan.region.first]).next();
        let blows = |end: &Arc<AtomicBool>| {
            let end = Arc::clone(end);
            move |ground: &Ground| !end.load(Ordering::Relaxed) && !ground.ctx.is_over()
        };
        let region = plan.region;
        let (go, stores) = (blows(&end), [&plan.first[..], &plan.later[..]].concat());
        let mapper = ground.task("mapper", move |ground| {
            let mut rng = Rng::new(seed);
            while go(ground) {
                let n = 1 + rng.below(4);
                let mut units: Vec<u64> = (0..n).map(|_| stores[rng.below(stores.len())]).collect();
                units.sort_unstable();
                units.dedup();
                ground.store(&units)?;
            }
            Ok(())
        })?;
        let go = blows(&end);
        let reader = ground.task("reader", move |ground| {
            while go(ground) {
                judged_read(ground, region, true)?;
                ground.drop_cache(region.first, region.units);
            }
            Ok(())
        })?;
        let (go, zeroed) = (blows(&end), plan.zeroed.clone());
        let puncher = ground.task("puncher", move |ground| {
            let mut punch = false;
            while go(ground) {
                ground.store(&zeroed.clone().step_by(3).collect::<Vec<_>>())?;
                punch = !punch;
                let result = ground.zero(zeroed.clone(), punch)?;
                if result < 0 {
                    return Ok(result);
                }
            }
            Ok(0)
        })?;
        let go = blows(&end);
        let syncer = ground.task("syncer", move |ground| {
            let mut worst = 0;
            while go(ground) {
                worst = ground.sync(false)?.min(worst);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(worst)
        })?;
        let (until, mut rng) = (Instant::now() + STORM, Rng::new(!seed));
        loop {
            let back = rng.below((plan.short.cut - region.first) as usize + 1) as u64;
            let short = Short { from: plan.short.cut - back, ..plan.short };
            let (source, generations) = ground.private_source(short)?;
            source.take_away()?;
            let writing = ground.start_write(short, &source, generations)?;
            ground.end_write(writing)?;
            if Instant::now() >= until || ctx.is_over() {
                break;
            }
        }
        end.store(true, Ordering::Relaxed);
        ctx.answer(&mapper, "a store in a storm")??;
        ctx.answer(&reader, "a direct read in a storm")??;
        self.zeroed(&puncher)?;
        settled(ctx, ctx.answer(&syncer, "fsync in a storm")??);
        ctx.reached("a storm of short writes");
        Ok(())
    }
}

/// Reads past the page cache: nothing may be there that nobody wrote.
fn judged_read(ground: &Ground, region: Region, moving: bool) -> Result<()> {
    let bytes = match ground.read(&ground.direct, region.first, region.units) {
        // Direct reads are not kept apart from stores: one that meets a page made dirty behind its own
        // flush is refused by iomap_dio_iter, which says so.
        Err(e) if moving && e.raw_os_error() == Some(libc::EIO) => {
            ground.ctx.did("a direct read met a store: EIO");
            return Ok(());
        }
        bytes => bytes.map_err(Error::system("a direct read"))?,
    };
    ground.ctx.did("a direct read is back");
    for (unit, bytes) in (region.first..).zip(bytes.bytes().chunks_exact(SECTOR)) {
        let found = files::sectors(&ground.ctx, &ground.target, unit, bytes);
        let Some(one) = found.first() else { continue };
        if !ground.model().may_show(unit, one, moving) {
            let words = files::in_words(std::slice::from_ref(one));
            let text = format!("a direct read shows {words} in unit {unit} while others write");
            let at = (&ground.target, ground.byte(unit), SECTOR as u32);
            ground.ctx.found(model::clause(&Found::Zero {}, one), Some(at), text);
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_stored_to_is_nobody_elses() {
        for (seed, block) in (0..300).zip([1024, 4096, 16384].into_iter().cycle()) {
            let region = Region { first: 512, units: 256 };
            let plan = Plan::draw(Rng::new(seed), seed as u32, region, block);
            let Short { from, cut, to } = plan.short;
            assert!(region.first <= from && from <= cut && cut < plan.zeroed.start, "{plan:?}");
            assert!(plan.zeroed.end <= to && to <= region.first + region.units, "{plan:?}");
            assert_eq!(from == cut, seed % 3 == 1, "{plan:?}");
            let stores: Vec<u64> = [&plan.first[..], &plan.later[..]].concat();
            assert_eq!(stores.iter().collect::<BTreeSet<_>>().len(), stores.len(), "{plan:?}");
            assert!(stores.iter().all(|u| *u >= cut && !plan.zeroed.contains(u)), "{plan:?}");
            assert!(stores.iter().all(|u| *u < region.first + region.units), "{plan:?}");
        }
    }
}

//! Ranges that are cloned and deduplicated, against page faults and reads of either file.
//!
//! To share blocks, the file system keeps out whoever fills the page cache of either file, and to
//! deduplicate it fills it itself. A page fault holds the memory's lock when it asks to be let in: whoever
//! takes these in another order is never done. The donor's bytes say that they are the victim's next
//! generation, so that a clone is a write like any other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::ask::{Fill, Way, may_be_seen};
use super::bed::{Bed, Space, is_no_space};
use super::{HELD, Waiter, error_text, first_read, onlook, step, sys};
use crate::channel::WriteFlags;
use crate::guest::race::memory::Map;
use crate::guest::race::{Ctx, Task, files};
use crate::guest::sys::clone_range;
use crate::guest::workload::buffer::Buffer;
use crate::guest::{Error, Result};
use crate::payload::SECTOR;

/// Shares blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Clone,
    Dedupe,
}

impl Share {
    fn name(self) -> &'static str {
        match self {
            Share::Clone => "FICLONERANGE",
            Share::Dedupe => "FIDEDUPERANGE",
        }
    }
}

/// Whose READ is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Victim,
    Donor,
}

/// Reads, or stores through a mapping, which reads first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Fill(Fill),
    Store,
}

impl Want {
    const ALL: [Want; 7] = [
        Want::Fill(Fill::Fault),
        Want::Store,
        Want::Fill(Fill::Populate),
        Want::Fill(Fill::Read),
        Want::Fill(Fill::Readahead),
        Want::Fill(Fill::Splice),
        Want::Fill(Fill::Direct),
    ];

    fn name(self) -> &'static str {
        match self {
            Want::Fill(fill) => fill.name(),
            Want::Store => "store",
        }
    }

    fn returns_early(self) -> bool {
        matches!(self, Want::Fill(fill) if fill.returns_early())
    }
}

/// Goes through all combinations, again and again.
///
/// # Errors
/// It could not be carried out, or a call hangs.
pub fn race(ctx: &Arc<Ctx>) -> Result<()> {
    files::load(ctx)?;
    step();
    let (victim, other) = (Bed::open(ctx, 0)?, Bed::open(ctx, 1)?);
    let donor = Donor::make(&victim)?;
    let space = Arc::new(Mutex::new(Space::fill(ctx, other)?));
    let mut round = Round { ctx, victim, donor, space };
    let mut all = Vec::new();
    for share in [Share::Clone, Share::Dedupe] {
        for held in [Held::Victim, Held::Donor] {
            all.extend(Want::ALL.map(|want| (share, held, want)));
        }
    }
    if ctx.race.wrong.is_some() {
        all.retain(|(share, _, want)| *share == Share::Clone && *want != Want::Store);
    }
    let mut rng = ctx.rng(&[3]);
    rng.shuffle(&mut all);
    let mut met = vec![false; all.len()];
    for n in 0..ctx.race.rounds {
        step();
        if !ctx.round(n) || ctx.findings() > 0 {
            break;
        }
        let place = n as usize % all.len();
        let (share, held, want) = all[place];
        met[place] |= round.run(n, share, held, want)?;
    }
    if met.iter().all(|met| *met) {
        // That the READ was held; not everybody who shares blocks waits for it.
        ctx.reached("every-read-held");
    }
    Ok(())
}

/// The file whose blocks are shared. Not a target: its bytes are those of the victim.
struct Donor {
    path: String,
    file: Arc<File>,
    direct: Arc<File>,
    len: usize,
}

impl Donor {
    fn make(victim: &Bed) -> Result<Donor> {
        let path = format!("{}.donor", victim.target.path);
        let (file, direct) = (files::open(&path, false)?, files::open(&path, true)?);
        let len = victim.image.len();
        file.write_all_at(&victim.image, 0)
            .and_then(|()| file.sync_all())
            .map_err(Error::system(format!("cannot write {path}")))?;
        Ok(Donor { path, file: Arc::new(file), direct: Arc::new(direct), len })
    }

    /// Does it hold what it must, however it is looked at? Each of its bytes in `unit` is of one of
    /// `due`.
    fn look(
        &self,
        ctx: &Ctx,
        victim: &Bed,
        unit: u64,
        due: (&Vec<u8>, &Vec<u8>),
        after: &str,
    ) -> Result<()> {
        let way = self.way(victim.offset(unit), victim.unit())?;
        for fill in [Fill::Read, Fill::Fault, Fill::Direct] {
            let failed = || Error::system(format!("cannot read {} ({})", self.path, fill.name()));
            let bytes = way.ask(fill).map_err(failed())?.unwrap_or_default();
            if !may_be_seen(&bytes, due.0, due.1) {
                let what = format!("{after}, {} of the donor", fill.name());
                victim.alien(ctx, unit, &bytes, &what);
            }
        }
        Ok(())
    }

    fn way(&self, offset: u64, len: usize) -> Result<Way> {
        let map = Map::shared(&self.file, 0, self.len);
        Ok(Way {
            file: Arc::clone(&self.file),
            direct: Arc::clone(&self.direct),
            map: Arc::new(map.map_err(Error::system(format!("cannot map {}", self.path)))?),
            offset,
            len,
        })
    }
}

struct Round<'a> {
    ctx: &'a Arc<Ctx>,
    victim: Bed,
    donor: Donor,
    space: Arc<Mutex<Space>>,
}

/// What is raced in a round.
struct Combination {
    what: String,
    share: Share,
    held: Held,
    want: Want,
}

/// A unit's bytes: of the victim before and after, of the donor, and what is stored to one of them.
struct Bytes {
    old: Vec<u8>,
    new: Vec<u8>,
    given: Vec<u8>,
    stored: Option<Vec<u8>>,
}

type Got = io::Result<Option<Vec<u8>>>;

/// What came of sharing.
struct Shared {
    /// Were they the same, and are they shared?
    result: io::Result<bool>,
    reused: bool,
}

impl Round<'_> {
    /// One combination: → was the READ held?
    fn run(&mut self, n: u32, share: Share, held: Held, want: Want) -> Result<bool> {
        let ctx = self.ctx;
        let mut rng = ctx.rng(&[4, n.into()]);
        let unit = rng.below(self.victim.units() as usize) as u64;
        let (at, len) = (self.victim.offset(unit), self.victim.unit());
        let what = format!("{} against {} of the {held:?}", share.name(), want.name());
        ctx.did(format!("round {n}: {what}, unit {unit}"));

        if !self.victim.write(ctx, unit)? {
            return Err(Error::Refused(format!("there is no space for unit {unit}")));
        }
        self.victim.sync(ctx)?;
        let old = self.victim.bytes(unit).to_vec();
        let generation = match share {
            Share::Clone => Some(self.victim.next(unit)),
            Share::Dedupe => None,
        };
        let given = match generation {
            Some(generation) => {
                files::unit_bytes(ctx, &self.victim.target, unit, generation).bytes().to_vec()
            }
            None => old.clone(),
        };
        self.give(at, &given)?;
        for file in [&self.victim.file, &self.donor.file] {
            files::drop_cache(file, 0, 0).map_err(Error::system("cannot drop the page cache"))?;
        }
        let freed = places(&self.victim.file, at, len)?;
        let (way, place) = match held {
            Held::Victim => (self.victim.way(unit)?, freed.first().copied()),
            Held::Donor => {
                let place = places(&self.donor.file, at, len)?.first().copied();
                (self.donor.way(at, len)?, place)
            }
        };
        let Some(place) = place else {
            return Err(Error::Refused(format!("FIEMAP shows no place for unit {unit}")));
        };
        let stored = match want {
            Want::Store => Some(self.announce_store(unit)?),
            Want::Fill(_) => None,
        };
        step();
        let stall = ctx.stall(first_read(Some(place)))?;
        let reader = Arc::new(Waiter::default());
        let filler = {
            let (ctx, way, stored) = (Arc::clone(ctx), way, stored.clone());
            let own = Arc::clone(&reader);
            Task::start("filler", move || {
                ctx.did(format!("asks: {}", want.name()));
                let got = own.call(|| match (want, &stored) {
                    (Want::Fill(fill), _) => way.ask(fill),
                    (Want::Store, Some(bytes)) => {
                        sys::store(&way.map, way.offset as usize, bytes).map(|()| None)
                    }
                    (Want::Store, None) => Ok(None),
                });
                ctx.did(format!("{} returned{}", want.name(), error_text(&got)));
                got
            })?
        };
        let met = reader.reads(ctx, &stall, want.returns_early())?;
        let end = Instant::now() + HELD;
        step();
        if met {
            ctx.reached("read-held");
        } else {
            ctx.note(format!("{}: asks the disk for nothing here", want.name()));
        }
        let (sharer, waiter) = self.share(share, unit, generation, freed, rng.below(2) == 0)?;
        // Who only reads what is given away need not be waited for.
        if met && let Some(stack) = waiter.waits(ctx, &sharer, end)? {
            ctx.did(format!("{} waits in {stack}", share.name()));
            ctx.reached("waited");
        }
        let onlooker = onlook(&self.victim)?;
        stall.release()?;
        step();
        let got = ctx.answer(&filler, &format!("{} during {}", want.name(), share.name()))?;
        step();
        let shared = ctx.answer(&sharer, &what)??;
        step();
        ctx.answer(&onlooker, &format!("FIEMAP during {}", share.name()))?;

        let new = if generation.is_some() { given.clone() } else { old.clone() };
        let combination = Combination { what, share, held, want };
        self.judge(&combination, unit, &Bytes { old, new, given, stored }, got, shared)?;
        Ok(met)
    }

    /// The donor has these bytes, durably.
    fn give(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut buffer = Buffer::new(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        let Donor { path, direct, .. } = &self.donor;
        direct
            .write_all_at(buffer.bytes(), at)
            .and_then(|()| direct.sync_all())
            .map_err(Error::system(format!("cannot write {path}")))
    }

    /// What will be stored. Whether it is there in the end depends on who comes first: nothing is
    /// promised of it.
    fn announce_store(&mut self, unit: u64) -> Result<Vec<u8>> {
        let (ctx, victim) = (self.ctx, &mut self.victim);
        let generation = victim.next(unit);
        let flags = WriteFlags { may_fail: true, ..WriteFlags::PLAIN };
        ctx.mark(vec![
            files::intent(&victim.target, unit, generation, flags),
            files::done(&victim.target, unit, generation, 0),
        ])?;
        Ok(files::unit_bytes(ctx, &victim.target, unit, generation).bytes().to_vec())
    }

    /// Shares the donor's blocks with the victim, whose own go to another file.
    fn share(
        &self,
        share: Share,
        unit: u64,
        generation: Option<u32>,
        freed: Vec<(u64, u64)>,
        sync: bool,
    ) -> Result<(Task<Result<Shared>>, Arc<Waiter>)> {
        let waiter = Arc::new(Waiter::default());
        let (ctx, space, own) =
            (Arc::clone(self.ctx), Arc::clone(&self.space), Arc::clone(&waiter));
        let (from, to) = (Arc::clone(&self.donor.file), Arc::clone(&self.victim.file));
        let target = self.victim.target.clone();
        let (at, len) = (self.victim.offset(unit), self.victim.unit() as u64);
        let task = Task::start("sharer", move || {
            let mut space = space.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(generation) = generation {
                let flags = WriteFlags { may_fail: true, ..WriteFlags::PLAIN };
                ctx.mark(vec![files::intent(&target, unit, generation, flags)])?;
            }
            ctx.did(format!("asks: {} of {len} bytes at {at}", share.name()));
            let result = own.call(|| match share {
                Share::Clone if ctx.wrong("no-clone") => Ok(true),
                Share::Clone => clone_range(&from, &to, at, len).map(|()| true),
                Share::Dedupe => sys::dedupe_range(&from, &to, at, len),
            });
            ctx.did(format!("{} returned: {result:?}", share.name()));
            let mut reused = false;
            if result.as_ref().is_ok_and(|same| *same) {
                if let Some(generation) = generation {
                    let result = target.unit.into();
                    ctx.mark(vec![files::done(&target, unit, generation, result)])?;
                }
                if sync {
                    files::sync(&ctx, &to, &target, false)?;
                }
                reused = space.reuse(&ctx, &freed)?;
            }
            Ok(Shared { result, reused })
        })?;
        Ok((task, waiter))
    }

    /// What was seen meanwhile, and what is seen now.
    fn judge(
        &mut self,
        of: &Combination,
        unit: u64,
        bytes: &Bytes,
        got: Got,
        shared: Shared,
    ) -> Result<()> {
        let ctx = self.ctx;
        let Combination { what, share, held, want } = of;
        let (victim, after) = (&mut self.victim, format!("after {what}"));
        let space = Arc::clone(&self.space);
        let mut space = space.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Some((&victim.target, victim.offset(unit), victim.target.unit));
        // A donor that nobody stores to does not change.
        let (old, new) = match held {
            Held::Victim => (&bytes.old, &bytes.new),
            Held::Donor => (&bytes.given, &bytes.given),
        };
        let mut whole = true;
        match &got {
            Ok(Some(seen)) if may_be_seen(seen, old, new) => ctx.reached("overlapped"),
            Ok(Some(seen)) => victim.alien(ctx, unit, seen, what),
            Ok(None) => {}
            Err(e) if *want == Want::Store && is_no_space(ctx, e)? => {
                whole = false;
                ctx.note("a store: the file system is too full");
            }
            Err(e) => ctx.found("wrong-result", at, format!("{} failed: {e}", want.name())),
        }
        let stored_to = |who: Held| bytes.stored.as_ref().filter(|_| *held == who);
        let errno = shared.result.as_ref().err().and_then(io::Error::raw_os_error);
        // A clone that ended early has no errno of its own.
        let full = match errno {
            Some(libc::ENOSPC) => true,
            Some(libc::EINVAL) => {
                *share == Share::Clone && begins_with(victim, unit, &bytes.given)?
            }
            _ => false,
        };
        match &shared.result {
            Ok(true) => {}
            // A store came first.
            Ok(false) if bytes.stored.is_some() => ctx.reached("differed"),
            Ok(false) => {
                ctx.found("wrong-result", at, format!("{what}: equal ranges are said to differ"));
            }
            Err(_) if full => ctx.note(format!("{}: the file system is too full", share.name())),
            Err(e) => ctx.found("wrong-result", at, format!("{what} failed: {e}")),
        }
        if shared.reused {
            ctx.reached("reused");
        }

        // Page by page, who came later; a range that is deduplicated keeps its bytes.
        let stored = bytes.stored.as_ref();
        let due: Vec<&Vec<u8>> = match (share, stored_to(Held::Victim)) {
            // Of a clone that ended early a part may be there.
            (Share::Clone, _) if full => {
                [&bytes.old, &bytes.given].into_iter().chain(stored).collect()
            }
            (Share::Clone, _) => std::iter::once(&bytes.given).chain(stored).collect(),
            (Share::Dedupe, Some(stored)) if whole => vec![stored],
            (Share::Dedupe, Some(stored)) => vec![&bytes.old, stored],
            _ => vec![&bytes.new],
        };
        settle(ctx, victim, unit, &due, &after)?;
        victim.look(ctx, &after)?;
        let stored = stored_to(Held::Donor);
        let due =
            (stored.filter(|_| whole).unwrap_or(&bytes.given), stored.unwrap_or(&bytes.given));
        self.donor.look(ctx, victim, unit, due, &after)?;

        if bytes.stored.is_none() && ctx.findings() == 0 && shared.result.is_ok() {
            let (ours, others) = (
                places(&victim.file, victim.offset(unit), victim.unit())?,
                places(&self.donor.file, victim.offset(unit), victim.unit())?,
            );
            if ours == others {
                ctx.reached("shared");
            }
            // What is stored to one of two that share does not show in the other.
            let map = victim.way(unit)?.map;
            if victim.store(ctx, unit, &map)? {
                ctx.reached("stored-after");
                let after = format!("{after}, and a store to the victim");
                victim.look(ctx, &after)?;
                self.donor.look(ctx, victim, unit, (&bytes.given, &bytes.given), &after)?;
            } else {
                victim.empty(ctx, &[unit])?;
            }
        }
        space.other.look(ctx, &format!("{after}, the other file"))?;
        space.give_back(ctx)
    }
}

fn places(file: &File, at: u64, len: usize) -> Result<Vec<(u64, u64)>> {
    sys::places(file, at, len as u64).map_err(Error::system("FIEMAP"))
}

/// Is the first sector of the unit that of `bytes`?
fn begins_with(bed: &Bed, unit: u64, bytes: &[u8]) -> Result<bool> {
    let mut first = [0; SECTOR];
    bed.file
        .read_exact_at(&mut first, bed.offset(unit))
        .map_err(Error::system(format!("cannot read {}", bed.target.path)))?;
    Ok(bytes.starts_with(&first))
}

/// The unit holds one of `due`, byte by byte: what it is to hold from now on is what it holds.
fn settle(ctx: &Ctx, bed: &mut Bed, unit: u64, due: &[&Vec<u8>], after: &str) -> Result<()> {
    let mut bytes = due.first().map(|first| first.to_vec()).unwrap_or_default();
    if due.len() > 1 {
        bed.file
            .read_exact_at(&mut bytes, bed.offset(unit))
            .map_err(Error::system(format!("cannot read {}", bed.target.path)))?;
        let of_any = |(i, byte): (usize, &u8)| due.iter().any(|due| due.get(i) == Some(byte));
        if !bytes.iter().enumerate().all(of_any) {
            bed.alien(ctx, unit, &bytes, &format!("{after}, read(2)"));
        }
    }
    bed.set(unit, &bytes);
    Ok(())
}

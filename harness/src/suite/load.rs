//! Reads suites, and refuses what cannot work before anything is started.

use super::race::RaceText;
use super::{
    Atomic, Bound, Budget, Control, Exercise, Expect, Lane, Place, Statx, Suite, Wrong, parse_flags,
};
use crate::oracle::{Clause, OnWire};
use crate::vm::FrontEnd;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tornblk_agent::channel::{AtomicLimits, Prepare, Target, Workload, WriteFlags};
use tornblk_agent::planted::{self, Planted};
use tornblk_model::crash::{AtomicMode, Fault, FaultKind, Profile};
use tornblk_model::event::Disk;

#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error(
        "there is no suite \"{0}\": built in are {known}, databases; a suite of your own is given by its path, as in ./{0}.toml",
        known = builtin().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    )]
    Unknown(String),
    #[error("cannot read the suite {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot read the list of what is known, {}: {source}; the one that comes with the program is \
         called builtin",
        path.display()
    )]
    Known { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Bad { origin: String, message: String },
}

/// The suites that come with the program: name and text.
pub fn builtin() -> &'static [(&'static str, &'static str)] {
    &[
        ("direct-atomic", include_str!("../../suites/direct-atomic.toml")),
        ("planted", include_str!("../../suites/planted.toml")),
        ("buffered-atomic", include_str!("../../suites/buffered-atomic.toml")),
        ("delalloc-punch", include_str!("../../suites/delalloc-punch.toml")),
        ("freeze", include_str!("../../suites/freeze.toml")),
        ("fuse-passthrough", include_str!("../../suites/fuse-passthrough.toml")),
        ("hole-punch", include_str!("../../suites/hole-punch.toml")),
    ]
}

/// A built-in suite by its name, or a file by its path (with a `/` or ending in `.toml`).
pub fn load(what: &str) -> Result<Suite, SuiteError> {
    if let Some((name, text)) = builtin().iter().find(|(name, _)| *name == what) {
        return parse(text, name);
    }
    if !what.contains('/') && !what.ends_with(".toml") {
        return Err(SuiteError::Unknown(what.to_owned()));
    }
    let path = Path::new(what);
    let text = std::fs::read_to_string(path)
        .map_err(|source| SuiteError::Read { path: path.to_owned(), source })?;
    parse(&text, what)
}

/// `origin` names the text in errors.
pub fn parse(text: &str, origin: &str) -> Result<Suite, SuiteError> {
    let bad = |message: String| SuiteError::Bad { origin: origin.to_owned(), message };
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| text[..span.start].matches('\n').count() + 1);
        let at = line.map(|n| format!("line {n}: ")).unwrap_or_default();
        bad(format!("{at}{}", e.message()))
    })?;
    let mut suite = file.build().map_err(bad)?;
    for race in suite.lanes.iter_mut().filter_map(|lane| lane.race.as_mut()) {
        race.text = text.to_owned();
    }
    Ok(suite)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    about: String,
    quick: BudgetText,
    soak: BudgetText,
    lane: Vec<LaneText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetText {
    cuts: u32,
    time: String,
}

/// A lane as it is written. What it does not say is as in the lane that it is `like`, or as usual.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LaneText {
    name: String,
    like: Option<String>,
    about: Option<String>,
    profile: Option<String>,
    capacity: Option<Size>,
    logical_block_size: Option<Size>,
    front_end: Option<FrontEnd>,
    queues: Option<u16>,
    partition: Option<Size>,
    atomic: Option<AtomicText>,
    survives: Option<Vec<String>>,
    hold_completions: Option<String>,
    mkfs: Option<Vec<String>>,
    fstype: Option<String>,
    mount_options: Option<String>,
    tune: Option<Vec<(String, String)>>,
    race: Option<RaceText>,
    poison: Option<bool>,
    writes: Option<u32>,
    sync_every: Option<u32>,
    target: Option<Vec<TargetText>>,
    control: Option<ControlText>,
    exercise: Option<Vec<Exercise>>,
    expect: Option<ExpectText>,
    expect_as: Option<Vec<Clause>>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct AtomicText {
    on_wire: OnWire,
    #[serde(default)]
    statx: Option<StatxText>,
}

/// By the names of statx(2), without `stx_atomic_write_`.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatxText {
    unit_min: Size,
    unit_max: BoundText,
    unit_max_opt: Option<BoundText>,
}

/// Bytes, or `"disk"`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "SizeText")]
struct BoundText(Bound);

impl TryFrom<SizeText> for BoundText {
    type Error = String;

    fn try_from(text: SizeText) -> Result<BoundText, String> {
        match text {
            SizeText::Text(text) if text == "disk" => Ok(BoundText(Bound::Disk)),
            other => Ok(BoundText(Bound::Bytes(bytes(Size::try_from(other)?)?))),
        }
    }
}

fn bytes(size: Size) -> Result<u32, String> {
    u32::try_from(size.0).map_err(|_| "[atomic] `statx`: below 4g".to_owned())
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TargetText {
    path: String,
    #[serde(default)]
    offset: Size,
    unit: Size,
    units: u32,
    #[serde(default = "one_u32")]
    threads: u32,
    #[serde(default = "one_u32")]
    depth: u32,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    prepare: Prepare,
    #[serde(default)]
    planted: Option<Planted>,
    #[serde(default)]
    sequential: bool,
    #[serde(default)]
    named: bool,
    #[serde(default)]
    buffer_offset: Size,
    #[serde(default)]
    moves: bool,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ControlText {
    fault: Option<String>,
    wrong: Option<String>,
    place: Option<Place>,
    caught_as: Vec<Clause>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum ExpectText {
    #[default]
    Passed,
    Violated(String),
}

/// Bytes, as a number or as text with k, m or g.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "SizeText")]
struct Size(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Size, String> {
        match text {
            SizeText::Number(n) => Ok(Size(n)),
            SizeText::Text(text) => parse_size(&text).map(Size),
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is no size: bytes, or a number with k, m or g");
    let (digits, shift) = match text.trim().to_ascii_lowercase() {
        t if t.ends_with('k') => (t[..t.len() - 1].to_owned(), 10),
        t if t.ends_with('m') => (t[..t.len() - 1].to_owned(), 20),
        t if t.ends_with('g') => (t[..t.len() - 1].to_owned(), 30),
        t => (t, 0),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(bad)
}

/// `90s`, `3m`, `2h`, or seconds.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is no time: seconds, or a number with s, m or h");
    let text_trimmed = text.trim();
    let (digits, factor) = match text_trimmed.as_bytes().last() {
        Some(b's') => (&text_trimmed[..text_trimmed.len() - 1], 1),
        Some(b'm') => (&text_trimmed[..text_trimmed.len() - 1], 60),
        Some(b'h') => (&text_trimmed[..text_trimmed.len() - 1], 3600),
        _ => (text_trimmed, 1),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(factor).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(bad)
}

fn one_u32() -> u32 {
    1
}

impl File {
    fn build(self) -> Result<Suite, String> {
        if self.lane.is_empty() {
            return Err("it has no [[lane]]".into());
        }
        let mut texts: Vec<LaneText> = Vec::new();
        let mut lanes = Vec::new();
        for text in self.lane {
            let name = text.name.clone();
            if texts.iter().any(|other| other.name == name) {
                return Err(format!("two lanes are called {name}"));
            }
            let text = text.filled_up(&texts).map_err(|e| format!("lane {name}: {e}"))?;
            lanes.push(text.build(&self.name).map_err(|e| format!("lane {name}: {e}"))?);
            texts.push(text);
        }
        Ok(Suite {
            name: self.name,
            about: self.about,
            quick: self.quick.build("quick")?,
            soak: self.soak.build("soak")?,
            lanes,
        })
    }
}

impl BudgetText {
    fn build(self, what: &str) -> Result<Budget, String> {
        if self.cuts == 0 {
            return Err(format!("[{what}] cuts = 0 tries nothing"));
        }
        let time = parse_time(&self.time).map_err(|e| format!("[{what}] {e}"))?;
        Ok(Budget { cuts: self.cuts, time })
    }
}

impl LaneText {
    /// With what it does not say taken from the lane that it is `like`, one of those before it.
    fn filled_up(self, before: &[LaneText]) -> Result<LaneText, String> {
        let Some(like) = &self.like else { return Ok(self) };
        let Some(other) = before.iter().find(|other| other.name == *like) else {
            return Err(format!("`like` names a lane before it: there is no \"{like}\" there"));
        };
        macro_rules! or {
            ($($field:ident),*) => {
                LaneText {
                    name: self.name,
                    like: None,
                    $($field: self.$field.or_else(|| other.$field.clone()),)*
                }
            };
        }
        Ok(or!(
            about,
            profile,
            capacity,
            logical_block_size,
            front_end,
            queues,
            partition,
            atomic,
            survives,
            hold_completions,
            mkfs,
            fstype,
            mount_options,
            tune,
            race,
            poison,
            writes,
            sync_every,
            target,
            control,
            exercise,
            expect,
            expect_as
        ))
    }

    fn build(&self, suite: &str) -> Result<Lane, String> {
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(name_ok) {
            return Err("a lane's name is made of letters, digits, '-', '_' and '.'".into());
        }
        let mkfs = self.mkfs.clone().unwrap_or_default();
        let fstype = self.fstype.clone().unwrap_or_default();
        if mkfs.is_empty() != fstype.is_empty() {
            return Err("`mkfs` and `fstype` go together".into());
        }
        let race = self.race.clone().map(|race| race.build(suite)).transpose()?;
        // A race says by itself what it does.
        let writes = self.writes.or(race.as_ref().map(|_| 1));
        let (queues, writes) = (self.queues.unwrap_or(1), need(writes, "`writes`")?);
        let poison = self.poison.unwrap_or(false);
        if poison && mkfs.is_empty() {
            return Err("`poison` is what lies beneath a file system: add `mkfs`".into());
        }
        if queues == 0 || writes == 0 {
            return Err("`queues` and `writes` are at least 1".into());
        }
        let lb = u32::try_from(self.logical_block_size.unwrap_or(Size(512)).0)
            .ok()
            .filter(|lb| lb.is_power_of_two() && (512..=65536).contains(lb))
            .ok_or("`logical-block-size` is a power of two from 512 to 64k")?;
        let capacity = need(self.capacity, "`capacity`")?.0;
        if capacity == 0 || !capacity.is_multiple_of(u64::from(lb)) {
            return Err(format!("`capacity` is a multiple of the logical block ({lb})"));
        }
        let disk = Disk { capacity, lb_size: lb };
        let named = need(self.profile.clone(), "`profile`")?;
        let profile: Profile = named.parse().map_err(|e| format!("`profile`: {e}"))?;
        profile.check(&disk).map_err(|e| format!("`profile`: {e}"))?;
        if let Some(hold) = &self.hold_completions
            && !matches!(hold.as_str(), "idle" | "random")
            && hold.parse::<u32>().is_err()
        {
            return Err(
                "`hold-completions` is \"idle\", \"random\", or a number of requests".into()
            );
        }
        let raw = mkfs.is_empty();
        let partition = self.partition.unwrap_or_default().0;
        let grid = profile.unit_max.max(profile.boundary).max(1 << 16);
        if partition > 0 && (!raw || !partition.is_multiple_of(grid)) {
            return Err(format!(
                "`partition` is where the partition of a raw disk begins, on a lane without `mkfs`: a \
                 multiple of {grid}, or nothing in it is where the disk keeps it whole"
            ));
        }
        let front_end = self.front_end.unwrap_or_default();
        fits(front_end, &profile)?;
        let atomic = self.atomic.clone().map(AtomicText::build).transpose()?;
        let passes = matches!(self.expect, None | Some(ExpectText::Passed));
        if passes && self.expect_as.is_some() {
            return Err("`expect-as` says how an expected violation shows: add `expect`".into());
        }
        // The end of a raw disk is where writes are tried that must be refused.
        let tried = if raw && atomic.is_some() { tried_at_the_end(&profile) } else { 0 };
        let ground = Ground { raw, partition, usable: capacity.saturating_sub(tried) };
        Ok(Lane {
            name: self.name.clone(),
            about: self.about.clone().unwrap_or_default(),
            profile: named,
            capacity,
            logical_block_size: lb,
            front_end,
            partition,
            atomic,
            survives: self.survives()?,
            queues,
            hold_completions: self.hold_completions.clone(),
            mkfs,
            fstype,
            mount_options: self.mount_options.clone().unwrap_or_default(),
            tune: self.tune.clone().unwrap_or_default(),
            poison,
            writes,
            sync_every: self.sync_every.unwrap_or(0),
            targets: self.targets(&ground, race.is_some())?,
            control: need(self.control.clone(), "[lane.control]")?.build(race.is_some())?,
            exercise: need(
                self.exercise.clone().or(race.as_ref().map(|_| Vec::new())),
                "`exercise`",
            )?,
            race,
            expect: match self.expect.clone().unwrap_or_default() {
                ExpectText::Passed => Expect::Passed,
                ExpectText::Violated(why) => Expect::Violated(why),
            },
            expect_as: self.expect_as.clone().unwrap_or_default(),
        })
    }

    fn survives(&self) -> Result<Vec<FaultKind>, String> {
        let kind = |name: &String| {
            let fault: Result<Fault, _> = name.parse();
            fault.map(|f| f.kind).map_err(|e| format!("`survives`: {e}"))
        };
        self.survives.iter().flatten().map(kind).collect()
    }

    fn targets(&self, ground: &Ground, race: bool) -> Result<Vec<Target>, String> {
        let texts = need(self.target.as_ref(), "[[lane.target]]")?;
        if texts.is_empty() {
            return Err("it has no [[lane.target]]".into());
        }
        let mut targets = Vec::new();
        for (i, text) in texts.iter().cloned().enumerate() {
            let number = i as u32 + 1;
            let target = text.build(number, race).and_then(|target| ground.put(target));
            targets.push(target.map_err(|e| format!("target {number}: {e}"))?);
        }
        match overlap(&targets) {
            Some((a, b)) => Err(format!("targets {a} and {b} overlap")),
            None => Ok(targets),
        }
    }
}

/// Bytes at the end of a raw disk where writes are tried that must be refused.
pub fn tried_at_the_end(profile: &Profile) -> u64 {
    let unit_max = u32::try_from(profile.unit_max).unwrap_or(u32::MAX);
    let limits = AtomicLimits { unit_max, ..AtomicLimits::default() };
    // It begins at a multiple of what is tried.
    limits.refusal_bytes() + 2 * u64::from(unit_max)
}

/// Can such a disk be had through this front-end?
pub fn fits(front_end: FrontEnd, profile: &Profile) -> Result<(), String> {
    match (front_end, profile.mode) {
        (FrontEnd::Blk | FrontEnd::BlkFull, AtomicMode::Explicit) => Err(format!(
            "a disk of profile {profile} keeps whole what is sent as atomic, which virtio-blk cannot \
             say: use the front-end scsi"
        )),
        (FrontEnd::Scsi, AtomicMode::Implicit) if profile.boundary > 0 => Err(format!(
            "a SCSI disk has no boundary on its own grid, as profile {profile} has: use one that \
             begins with explicit"
        )),
        _ => Ok(()),
    }
}

pub(super) fn need<T>(value: Option<T>, what: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("it has no {what}"))
}

/// What targets are put on.
struct Ground {
    raw: bool,
    /// Where the one partition begins; 0: there is none.
    partition: u64,
    /// Bytes from the disk's start.
    usable: u64,
}

impl Ground {
    fn put(&self, mut target: Target) -> Result<Target, String> {
        if self.raw != (target.path == DEVICE) {
            return Err("without `mkfs` the path is {device}, with it one below {mount}".to_owned());
        }
        if self.raw && self.partition > 0 {
            if target.planted.is_some() {
                return Err("`planted` is not for a partition".to_owned());
            }
            target.path = format!("{DEVICE}1");
            target.start = self.partition;
        }
        let (end, usable) = (target.start + target.end(), self.usable);
        if end > usable {
            return Err(format!(
                "ends beyond what can be used of the disk ({end} of {usable} bytes)"
            ));
        }
        Ok(target)
    }
}

/// Where a raw disk's targets are; its partition, where it has one.
const DEVICE: &str = "{device}";

impl ControlText {
    fn build(self, race: bool) -> Result<Control, String> {
        let wrong = match (self.fault, self.wrong) {
            (Some(fault), None) => {
                Wrong::Fault(fault.parse().map_err(|e| format!("[control] `fault`: {e}"))?)
            }
            (None, Some(name)) if race => Wrong::Work(name),
            _ if race => return Err("[control] has a `fault` or a `wrong`".into()),
            _ => return Err("[control] has a `fault`; a `wrong` is for a race".into()),
        };
        // A race is cut when it is over.
        let place = match self.place {
            None if race => Place::Acknowledged,
            place => need(place, "[control] `place`")?,
        };
        if self.caught_as.is_empty() {
            return Err("[control] `caught-as` is empty: what would show that it works?".into());
        }
        if self.caught_as.contains(&Clause::KernelWarning) {
            return Err(
                "[control] `caught-as`: what a kernel says of a disk that lies proves nothing; \
                        name what the disk breaks (torn, lost, ...)"
                    .into(),
            );
        }
        Ok(Control { wrong, place, caught_as: self.caught_as })
    }
}

impl AtomicText {
    fn build(self) -> Result<Atomic, String> {
        let statx = self.statx.map(StatxText::build).transpose()?;
        Ok(Atomic { on_wire: self.on_wire, statx })
    }
}

impl StatxText {
    fn build(self) -> Result<Statx, String> {
        Ok(Statx {
            unit_min: bytes(self.unit_min)?,
            unit_max: self.unit_max.0,
            unit_max_opt: self.unit_max_opt.map(|bound| bound.0),
        })
    }
}

impl TargetText {
    fn build(self, file: u32, race: bool) -> Result<Target, String> {
        let least = if race { 512 } else { 4096 };
        let unit = u32::try_from(self.unit.0)
            .ok()
            .filter(|u| u.is_power_of_two() && (least..=65536).contains(u))
            .ok_or("`unit` is a power of two from 4k (of a race: 512) to 64k")?;
        if !self.offset.0.is_multiple_of(u64::from(unit)) {
            return Err("`offset` is a multiple of `unit`".into());
        }
        if self.units == 0 || self.threads == 0 || self.depth == 0 {
            return Err("`units`, `threads` and `depth` are at least one".into());
        }
        if self.planted.is_some() && (self.depth > 1 || !self.flags.is_empty()) {
            return Err(
                "`planted` says how units are written: no `flags`, and a `depth` of 1".into()
            );
        }
        if self.planted.is_none() && self.flags.is_empty() && !race {
            return Err("`flags` are at least one".into());
        }
        if self.threads.saturating_mul(self.depth) > self.units {
            return Err(format!(
                "{} threads with {} writes in flight each need as many `units`",
                self.threads, self.depth
            ));
        }
        let buffer_offset = u32::try_from(self.buffer_offset.0)
            .ok()
            .filter(|offset| *offset < 4096 && offset.is_multiple_of(512))
            .ok_or("`buffer-offset` is a multiple of 512 below 4096")?;
        let flags: Result<Vec<_>, _> = match self.planted {
            None if self.flags.is_empty() => Ok(vec![WriteFlags::PLAIN]),
            Some(_) => Ok(vec![planted::FLAGS]),
            None => self.flags.iter().map(|f| parse_flags(f)).collect(),
        };
        Ok(Target {
            file,
            path: self.path,
            offset: self.offset.0,
            unit,
            units: self.units,
            threads: self.threads,
            depth: self.depth,
            flags: flags?,
            prepare: self.prepare,
            planted: self.planted,
            start: 0,
            sequential: self.sequential,
            named: self.named,
            buffer_offset,
            moves: self.moves,
        })
    }
}

/// Numbers (from 1) of two targets that write the same bytes.
fn overlap(targets: &[Target]) -> Option<(u32, u32)> {
    targets.iter().find_map(|a| {
        targets
            .iter()
            .find(|b| {
                a.file < b.file && a.path == b.path && a.offset < b.end() && b.offset < a.end()
            })
            .map(|b| (a.file, b.file))
    })
}

// A workload of a suite must be one that the agent takes: its fields are checked above.
const _: fn(&Lane) -> Workload = |lane| lane.workload(0, 0, "");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        name = "s"
        [quick]
        cuts = 1
        time = "10s"
        [soak]
        cuts = 2
        time = "1h"
        [[lane]]
        name = "raw"
        profile = "req64k"
        capacity = "1m"
        writes = 10
        exercise = ["whole"]
        [[lane.target]]
        path = "{device}"
        unit = "16k"
        units = 8
        flags = ["direct", "direct dsync"]
        [lane.control]
        fault = "tear-atomic"
        place = "in-flight"
        caught-as = ["torn"]
    "#;

    fn error(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        parse(&GOOD.replace(from, to), "x.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_suite_is_read() {
        let suite = parse(GOOD, "x.toml").unwrap();
        assert_eq!(suite.soak, Budget { cuts: 2, time: Duration::from_secs(3600) });
        let lane = &suite.lanes[0];
        assert!(lane.is_raw());
        assert_eq!((lane.capacity, lane.logical_block_size, lane.queues), (1 << 20, 512, 1));
        let w = lane.workload(7, 8, "/dev/vdb");
        assert_eq!((w.nonce, w.seed, w.writes, w.load), (7, 8, 10, true));
        assert_eq!(w.files[0].path, "/dev/vdb");
        assert!(w.files[0].flags[1].dsync && w.files[0].flags[1].direct);
    }

    #[test]
    fn the_built_in_suites_are_read() {
        for (name, _) in builtin() {
            let suite = load(name).unwrap();
            assert_eq!(suite.name, *name);
            assert!(!suite.lanes.is_empty());
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_place() {
        for (from, to, says) in [
            ("cuts = 1", "cuts = 0", "[quick] cuts = 0"),
            ("10s", "soon", "\"soon\" is no time"),
            ("req64k", "disk64k", "lane raw: `profile`"),
            ("\"1m\"", "\"1000\"", "multiple of the logical block"),
            ("units = 8", "units = 80", "target 1: ends beyond what"),
            ("\"16k\"", "\"20k\"", "`unit` is a power of two"),
            ("\"16k\"", "\"big\"", "\"big\" is no size"),
            ("tear-atomic", "tear-apart", "[control] `fault`"),
            ("[\"torn\"]", "[]", "`caught-as` is empty"),
            ("[\"torn\"]", "[\"burnt\"]", "unknown variant"),
            ("{device}", "{mount}/a", "target 1: without `mkfs`"),
            ("direct dsync", "direct sync", "\"sync\" is no flag"),
            ("writes = 10", "writes = 10\nwrite = 3", "line 14: unknown field `write`"),
            ("name = \"raw\"", "name = \"../raw\"", "a lane's name"),
            ("units = 8", "units = 8\nthreads = 3\ndepth = 4", "need as many `units`"),
            ("units = 8", "units = 8\nplanted = { protocol = \"page\" }", "no `flags`"),
            ("units = 8", "units = 8\nplanted = { protocol = \"pages\" }", "unknown variant"),
            ("capacity = \"1m\"", "capacity = \"1m\"\nhold-completions = \"on\"", "or a number"),
        ] {
            let message = error(from, to);
            assert!(message.starts_with("x.toml: ") && !message.contains('\n'), "{message}");
            assert!(message.contains(says), "{from} -> {to}: {message}");
        }
    }

    #[test]
    fn overlapping_targets_are_refused() {
        let second = "[[lane.target]]\npath = \"{device}\"\noffset = \"64k\"\nunit = \"64k\"\n\
                      units = 1\nflags = [\"direct\"]\n[lane.control]";
        let message = error("[lane.control]", second);
        assert!(message.contains("targets 1 and 2 overlap"), "{message}");
    }

    #[test]
    fn a_lane_can_be_like_one_before_it() {
        let more = "[[lane]]\nname = \"b\"\nlike = \"raw\"\npartition = \"64k\"\n\
                    front-end = \"scsi\"\nprofile = \"explicit64k\"\n\
                    atomic = { on-wire = \"atomic\" }\n";
        let suite = parse(&format!("{GOOD}\n{more}"), "x.toml").unwrap();
        let [raw, b] = &suite.lanes[..] else { panic!() };
        assert_eq!(
            (b.front_end, b.profile.as_str(), b.partition),
            (FrontEnd::Scsi, "explicit64k", 65536)
        );
        assert_eq!((b.writes, &b.control, &b.exercise), (raw.writes, &raw.control, &raw.exercise));
        let w = b.workload(1, 1, "/dev/sda");
        assert_eq!((w.files[0].path.as_str(), w.files[0].disk_offset_of(1)), ("/dev/sda1", 81920));
        assert!(b.partition_command("/dev/sda").unwrap()[2].contains("start=128,"));
        assert_eq!(raw.partition_command("/dev/sda"), None);
        let forward = parse(&GOOD.replace("[[lane]]", "[[lane]]\nlike = \"b\""), "x.toml");
        assert!(forward.unwrap_err().to_string().contains("no \"b\" there"));
        // Its end is where writes are tried that must be refused.
        let long = format!("{GOOD}\n{more}").replace("\"1m\"", "\"256k\"");
        let error = parse(&long, "x.toml").unwrap_err().to_string();
        assert!(error.contains("lane b: target 1: ends beyond"), "{error}");
    }

    #[test]
    fn a_suite_that_is_not_there_names_those_that_are() {
        let message = load("direct-atmic").unwrap_err().to_string();
        assert!(message.contains("direct-atomic"), "{message}");
        let message = load("./no/such.toml").unwrap_err().to_string();
        assert!(message.contains("cannot read the suite ./no/such.toml"), "{message}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_time("3m").unwrap(), Duration::from_secs(180));
        assert!(parse_time("0s").is_err());
        assert!(parse_time("").is_err());
    }
}

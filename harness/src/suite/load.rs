//! Reads suites, and refuses what cannot work before anything is started.

use super::{Budget, Control, Exercise, Expect, Lane, Place, Suite, parse_flags};
use crate::oracle::Clause;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tornblk_agent::channel::{Prepare, Target, Workload};
use tornblk_agent::planted::{self, Planted};
use tornblk_model::crash::{Fault, Profile};
use tornblk_model::event::Disk;

#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error(
        "there is no suite \"{0}\": built in are {known}; a suite of your own is given by its path, as in ./{0}.toml",
        known = builtin().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    )]
    Unknown(String),
    #[error("cannot read the suite {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Bad { origin: String, message: String },
}

/// The suites that come with the program: name and text.
pub fn builtin() -> &'static [(&'static str, &'static str)] {
    &[
        ("direct-atomic", include_str!("../../suites/direct-atomic.toml")),
        ("planted", include_str!("../../suites/planted.toml")),
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
    let suite = file.build().map_err(bad)?;
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LaneText {
    name: String,
    #[serde(default)]
    about: String,
    profile: String,
    capacity: Size,
    #[serde(default = "default_lb")]
    logical_block_size: Size,
    #[serde(default = "one_u16")]
    queues: u16,
    #[serde(default)]
    hold_completions: Option<String>,
    #[serde(default)]
    mkfs: Vec<String>,
    #[serde(default)]
    fstype: String,
    #[serde(default)]
    mount_options: String,
    #[serde(default)]
    tune: Vec<(String, String)>,
    writes: u32,
    #[serde(default)]
    sync_every: u32,
    target: Vec<TargetText>,
    control: ControlText,
    exercise: Vec<Exercise>,
    #[serde(default)]
    expect: ExpectText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ControlText {
    fault: String,
    place: Place,
    caught_as: Vec<Clause>,
}

#[derive(Default, Deserialize)]
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

fn default_lb() -> Size {
    Size(512)
}

fn one_u16() -> u16 {
    1
}

fn one_u32() -> u32 {
    1
}

impl File {
    fn build(self) -> Result<Suite, String> {
        if self.lane.is_empty() {
            return Err("it has no [[lane]]".into());
        }
        let mut lanes: Vec<Lane> = Vec::new();
        for text in self.lane {
            let name = text.name.clone();
            let lane = text.build().map_err(|e| format!("lane {name}: {e}"))?;
            if lanes.iter().any(|l| l.name == lane.name) {
                return Err(format!("two lanes are called {name}"));
            }
            lanes.push(lane);
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
    fn build(self) -> Result<Lane, String> {
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(name_ok) {
            return Err("a lane's name is made of letters, digits, '-', '_' and '.'".into());
        }
        if self.mkfs.is_empty() != self.fstype.is_empty() {
            return Err("`mkfs` and `fstype` go together".into());
        }
        if self.target.is_empty() {
            return Err("it has no [[lane.target]]".into());
        }
        if self.queues == 0 || self.writes == 0 {
            return Err("`queues` and `writes` are at least 1".into());
        }
        let lb = u32::try_from(self.logical_block_size.0)
            .ok()
            .filter(|lb| lb.is_power_of_two() && (512..=65536).contains(lb))
            .ok_or("`logical-block-size` is a power of two from 512 to 64k")?;
        if self.capacity.0 == 0 || !self.capacity.0.is_multiple_of(u64::from(lb)) {
            return Err(format!("`capacity` is a multiple of the logical block ({lb})"));
        }
        let disk = Disk { capacity: self.capacity.0, lb_size: lb };
        let profile: Profile = self.profile.parse().map_err(|e| format!("`profile`: {e}"))?;
        profile.check(&disk).map_err(|e| format!("`profile`: {e}"))?;
        let fault: Fault =
            self.control.fault.parse().map_err(|e| format!("[control] `fault`: {e}"))?;
        if self.control.caught_as.is_empty() {
            return Err("[control] `caught-as` is empty: what would show that it works?".into());
        }
        if self.control.caught_as.contains(&Clause::KernelWarning) {
            return Err(
                "[control] `caught-as`: what a kernel says of a disk that lies proves nothing; \
                        name what the disk breaks (torn, lost, ...)"
                    .into(),
            );
        }
        if let Some(hold) = &self.hold_completions
            && !matches!(hold.as_str(), "idle" | "random")
            && hold.parse::<u32>().is_err()
        {
            return Err(
                "`hold-completions` is \"idle\", \"random\", or a number of requests".into()
            );
        }
        let raw = self.mkfs.is_empty();
        let mut targets = Vec::new();
        for (i, text) in self.target.into_iter().enumerate() {
            let target = text.build(i as u32 + 1).map_err(|e| format!("target {}: {e}", i + 1))?;
            let end = target.end();
            if end > self.capacity.0 {
                return Err(format!("target {}: ends beyond the disk ({end} bytes)", i + 1));
            }
            if raw != target.path.starts_with("{device}") {
                return Err(format!(
                    "target {}: without `mkfs` the path is {{device}}, with it one below {{mount}}",
                    i + 1
                ));
            }
            targets.push(target);
        }
        if let Some((a, b)) = overlap(&targets) {
            return Err(format!("targets {a} and {b} overlap"));
        }
        Ok(Lane {
            name: self.name,
            about: self.about,
            profile: self.profile,
            capacity: self.capacity.0,
            logical_block_size: lb,
            queues: self.queues,
            hold_completions: self.hold_completions,
            mkfs: self.mkfs,
            fstype: self.fstype,
            mount_options: self.mount_options,
            tune: self.tune,
            writes: self.writes,
            sync_every: self.sync_every,
            targets,
            control: Control {
                fault,
                place: self.control.place,
                caught_as: self.control.caught_as,
            },
            exercise: self.exercise,
            expect: match self.expect {
                ExpectText::Passed => Expect::Passed,
                ExpectText::Violated(why) => Expect::Violated(why),
            },
        })
    }
}

impl TargetText {
    fn build(self, file: u32) -> Result<Target, String> {
        let unit = u32::try_from(self.unit.0)
            .ok()
            .filter(|u| u.is_power_of_two() && (4096..=65536).contains(u))
            .ok_or("`unit` is a power of two from 4k to 64k")?;
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
        if self.planted.is_none() && self.flags.is_empty() {
            return Err("`flags` are at least one".into());
        }
        if self.threads.saturating_mul(self.depth) > self.units {
            return Err(format!(
                "{} threads with {} writes in flight each need as many `units`",
                self.threads, self.depth
            ));
        }
        let flags: Result<Vec<_>, _> = match self.planted {
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
            ("units = 8", "units = 80", "target 1: ends beyond the disk"),
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

//! Suites of the user's own programs: `tornblk run ./mine.toml`.
//!
//! A `[[program]]` of such a file says what the command line says of one program, by the same names and
//! without the dashes, and is read by the same parser:
//!
//! ```toml
//! name = "settings"
//!
//! [[program]]
//! name = "replace"
//! exec = "./replace.sh"               # from the file's folder
//! check = "./settings-check.sh"
//! size = "64m"
//! profile = ["piece4k", "lb4k"]
//!
//! [[program]]
//! name = "in-place"
//! like = "replace"                    # what is not said here
//! exec = "./in-place.sh"
//! expect = "violated"                 # a negative control: it must be caught
//! ```

use super::exec::{Around, One, machine};
use super::explore::Explored;
use super::run::{self, RunArgs};
use super::{Cli, Command};
use crate::explore::session::Kept;
use crate::explore::{Ended, ProfileReport};
use crate::oracle::Clause;
use crate::out::say;
use crate::report::terminal::{Live, Look};
use crate::run::{CAUGHT, LaneReport, RealLab, RunError, RunFolder, RunReport, Verdict};
use anyhow::{Context, bail};
use clap::Parser;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use toml::{Table, Value};

/// What a program may say: options of `tornblk run --exec`.
const OPTIONS: [&str; 16] = [
    "exec",
    "setup",
    "check",
    "fs",
    "mkfs-opts",
    "mount-opts",
    "size",
    "disk",
    "env",
    "exec-timeout",
    "check-timeout",
    "corrupt-status",
    "profile",
    "explore",
    "states",
    "front-end",
];

/// A suite of programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) name: String,
    programs: Vec<OneOf>,
}

#[derive(Debug)]
struct OneOf {
    name: String,
    about: String,
    expect: Expect,
    args: Box<RunArgs>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    #[default]
    Passed,
    /// A negative control.
    Violated,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default, rename = "about")]
    _about: String,
    program: Vec<Table>,
}

impl Programs {
    /// The suites that were named, if they are one of programs. What was given on the command line goes
    /// before what it says.
    ///
    /// # Errors
    /// It cannot be read, or says what is not understood.
    pub(super) fn load(given: &RunArgs) -> anyhow::Result<Option<Programs>> {
        for path in &given.suites {
            // What cannot be read is told by who reads the other suites.
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            match text.parse::<Table>() {
                Ok(table) if table.contains_key("lane") => continue,
                Ok(table) if table.contains_key("program") => {}
                Ok(_) => bail!("{path} has neither a [[program]] nor a [[lane]]"),
                Err(error) => bail!("{path}: {}", error.to_string().trim_end()),
            }
            if given.suites.len() > 1 {
                bail!("{path} is a suite of programs: give it alone");
            }
            given.refuse_for_programs(path)?;
            let folder = Path::new(path).parent().unwrap_or(Path::new(""));
            return Programs::parse(&text, folder, given).map(Some).context(path.clone());
        }
        Ok(None)
    }

    fn parse(text: &str, folder: &Path, given: &RunArgs) -> anyhow::Result<Programs> {
        let file: File = toml::from_str(text)?;
        let mut tables: Vec<(String, Table)> = Vec::new();
        for mut table in file.program {
            let name = take_text(&mut table, "name")?.context("a [[program]] has no `name`")?;
            let fits = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
                bail!("`{name}` is no name of a program: letters, digits, - and .");
            }
            if tables.iter().any(|(other, _)| *other == name) {
                bail!("two programs are called {name}");
            }
            if let Some(like) = take_text(&mut table, "like")? {
                let like = tables.iter().find(|(name, _)| *name == like).with_context(|| {
                    format!("{name}: there is no program {like} before it that it could be like")
                })?;
                for (key, value) in &like.1 {
                    // What it is for is its own.
                    if !["about", "expect"].contains(&key.as_str()) && !table.contains_key(key) {
                        table.insert(key.clone(), value.clone());
                    }
                }
            }
            tables.push((name, table));
        }
        if tables.is_empty() {
            bail!("there is no [[program]] in it");
        }
        let one = |(name, table): (String, Table)| {
            OneOf::new(name.clone(), table, folder, given).context(name)
        };
        Ok(Programs {
            name: file.name,
            programs: tables.into_iter().map(one).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Those of `--lane`: all that begin so.
    fn chosen(&self, lanes: &[String]) -> anyhow::Result<Vec<&OneOf>> {
        let of = |lane: &String| self.programs.iter().any(|p| p.name.starts_with(lane.as_str()));
        if let Some(lane) = lanes.iter().find(|lane| !of(lane)) {
            let names: Vec<&str> = self.programs.iter().map(|p| p.name.as_str()).collect();
            bail!("--lane {lane}: {} has the programs {}", self.name, names.join(", "));
        }
        let wanted = |p: &&OneOf| {
            lanes.is_empty() || lanes.iter().any(|lane| p.name.starts_with(lane.as_str()))
        };
        Ok(self.programs.iter().filter(wanted).collect())
    }

    /// Runs and explores each, and fills `report`. What could not be run is told as such, and the others are
    /// run all the same.
    ///
    /// # Errors
    /// Nothing could be run, or it was interrupted.
    pub(super) fn run(
        &self,
        given: &RunArgs,
        report: &mut RunReport,
        folder: &mut Option<RunFolder>,
        interrupted: &Arc<AtomicBool>,
    ) -> anyhow::Result<()> {
        let chosen = self.chosen(&given.lane)?;
        let around = given.around()?;
        // All of it is looked at before anything takes its time.
        let wanted =
            |one: &&OneOf| one.args.exec.wanted(&one.args.around()?).context(one.name.clone());
        let wanted = chosen.iter().map(wanted).collect::<anyhow::Result<Vec<_>>>()?;
        let live = Live::new(Look::detect());
        let mut lab = run::lab(&around.guest, &mut |text| live.note(text), interrupted)?;
        lab.prepare(&mut |text| live.note(text))?;
        report.about_machine(&lab);
        report.kernel.clone_from(&lab.image.release);
        let all = folder.insert(RunFolder::create(around.out, around.seed)?);
        let s = if chosen.len() == 1 { "" } else { "s" };
        say!("{}, seed {}: {} program{s}", machine(&lab), around.seed, chosen.len());
        // All of them share it.
        let each = Around {
            time: around.time.map(|time| time / u32::try_from(chosen.len()).unwrap_or(u32::MAX)),
            ..around
        };
        for (one, wanted) in chosen.into_iter().zip(wanted) {
            let folder = all.below(&one.name)?;
            let program = One { wanted, folder: &folder, live: &live, interrupted };
            let lane = one.run(&self.name, program, &mut lab, &each);
            live.finish();
            let lane = lane?;
            let why = lane.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            say!("{}: {} ({:.0} s){why}", lane.name, lane.verdict, lane.seconds);
            let stopped = lane.explored.as_ref().is_some_and(|e| e.ended == Some(Ended::Stopped));
            report.lanes.push(lane);
            if stopped {
                return Err(RunError::Interrupted.into());
            }
        }
        Ok(())
    }
}

impl OneOf {
    fn new(
        name: String,
        mut table: Table,
        folder: &Path,
        given: &RunArgs,
    ) -> anyhow::Result<OneOf> {
        let about = take_text(&mut table, "about")?.unwrap_or_default();
        let expect = table.remove("expect").map(Value::try_into).transpose();
        let expect: Option<Expect> = expect.context("`expect` is passed or violated")?;
        let mut words = vec!["tornblk".to_owned(), "run".to_owned()];
        for (key, value) in &table {
            if !OPTIONS.contains(&key.as_str()) {
                bail!(
                    "`{key}` is nothing that a program has: name, about, like, expect, {}",
                    OPTIONS.join(", ")
                );
            }
            words.extend(options(key, value)?.into_iter().map(|text| format!("--{key}={text}")));
        }
        for needed in ["exec", "check"] {
            if !table.contains_key(needed) {
                bail!("`{needed}` is missing");
            }
        }
        let cli = Cli::try_parse_from(words).map_err(|error| {
            // The rest is how to type it, which nobody did.
            let text = error.render().to_string();
            anyhow::anyhow!("{}", text.lines().next().unwrap_or_default().to_owned())
        })?;
        let Command::Run(mut args) = cli.command else { bail!("it is no run") };
        args.exec.base = folder.to_owned();
        args.under(given);
        Ok(OneOf { name, about, expect: expect.unwrap_or_default(), args })
    }

    fn run(
        &self,
        suite: &str,
        program: One<'_>,
        lab: &mut RealLab,
        given: &Around<'_>,
    ) -> anyhow::Result<LaneReport> {
        let start = Instant::now();
        let mut around = self.args.around()?;
        // Kept or not is decided at the end, and for all of them.
        (around.out, around.keep, around.time) = (given.out, given.keep, given.time);
        say!("{}: {}", self.name, program.wanted.told());
        let volume = program.wanted.volume.clone();
        let mut lane = LaneReport::empty(suite, &self.name, &self.about);
        (lane.profile, lane.kernel) = (volume.profile.clone(), lab.image.release.clone());
        (lane.front_end, lane.volume) = (volume.front_end, Some(volume));
        match self.args.exec.explored(lab, program, &around) {
            Ok(Explored { report, .. }) => self.judge(&mut lane, report),
            Err(error) if super::interrupted(&error) => return Err(error),
            Err(error) => {
                lane.verdict = Verdict::Error;
                lane.why = Some(super::sentence(&error));
            }
        }
        lane.seconds = start.elapsed().as_secs_f64();
        Ok(lane)
    }

    fn judge(&self, lane: &mut LaneReport, report: crate::explore::ExploreReport) {
        let profiles = report.profiles.iter();
        lane.profile = profiles.clone().map(|p| p.profile.as_str()).collect::<Vec<_>>().join(",");
        lane.violations = profiles.clone().map(|p| p.failures).sum();
        lane.environment = report.environment.clone();
        // A file system that cannot be mounted says nothing of the checker.
        let complained = |profile: &&ProfileReport| {
            let own = |kept: &&Kept| kept.failure.profile == profile.profile;
            let mut findings = report.failures.iter().filter(own).flat_map(|k| &k.failure.findings);
            findings.any(|finding| finding.clause == Clause::Inconsistent)
        };
        let unnoticed = profiles.clone().find(|profile| !complained(profile));
        (lane.verdict, lane.why) = match (self.expect, unnoticed) {
            (Expect::Passed, _) => (report.verdict, report.why.clone()),
            (Expect::Violated, None) => (Verdict::Passed, Some(CAUGHT.to_owned())),
            (Expect::Violated, Some(profile)) => {
                let why = report.why.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
                let on = &profile.profile;
                let why = format!(
                    "it has to be caught (`expect`), and on {on} the checker is content with each \
                     state that was tried{why}"
                );
                (Verdict::Inconclusive, Some(why))
            }
        };
        lane.explored = Some(report);
    }
}

fn take_text(table: &mut Table, key: &str) -> anyhow::Result<Option<String>> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => bail!("`{key}` is a text, and not {other}"),
    }
}

/// The values of an option that may be given several times, or one that takes a list.
fn options(key: &str, value: &Value) -> anyhow::Result<Vec<String>> {
    let single = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        other => bail!("`{key}`: {other} is neither a text nor a number"),
    };
    match (key, value) {
        ("env", Value::Table(table)) => {
            table.iter().map(|(name, value)| Ok(format!("{name}={}", single(value)?))).collect()
        }
        ("profile" | "explore", Value::Array(values)) => {
            let values = values.iter().map(single).collect::<anyhow::Result<Vec<_>>>()?;
            Ok(vec![values.join(",")])
        }
        (_, Value::Array(values)) => values.iter().map(single).collect(),
        _ => Ok(vec![single(value)?]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn given(line: &str) -> RunArgs {
        let words = ["tornblk", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => *args,
            _ => panic!("not a run"),
        }
    }

    const TWO: &str = r#"
        name = "mine"
        about = "both ways"
        [[program]]
        name = "replace"
        exec = "echo b >b && sync b"
        check = "true"
        size = "64m"
        env = { A = "1", B = 2 }
        profile = ["piece4k", "lb4k"]
        states = 40
        [[program]]
        name = "in-place"
        like = "replace"
        exec = "echo a >b && sync b"
        expect = "violated"
    "#;

    #[test]
    fn a_program_says_what_the_command_line_says() {
        let suite = Programs::parse(TWO, Path::new("/suites"), &given("x.toml")).unwrap();
        let names: Vec<&str> = suite.programs.iter().map(|p| p.name.as_str()).collect();
        assert_eq!((suite.name.as_str(), names.as_slice()), ("mine", &["replace", "in-place"][..]));
        let [one, other] = suite.programs.as_slice() else { panic!() };
        assert_eq!((one.expect, other.expect), (Expect::Passed, Expect::Violated));
        let around = other.args.around().unwrap();
        let profiles: Vec<String> = around.profiles.iter().map(ToString::to_string).collect();
        assert_eq!(profiles, ["piece4k", "lb4k"]);
        assert_eq!(other.args.exec.exec.as_deref(), Some("echo a >b && sync b"));
        assert_eq!(other.args.exec.base, Path::new("/suites"));
        assert_eq!(suite.chosen(&["in".into()]).unwrap().len(), 1);
        let error = suite.chosen(&["none".into()]).unwrap_err().to_string();
        assert_eq!(error, "--lane none: mine has the programs replace, in-place");
    }

    #[test]
    fn the_command_line_goes_before_the_suite() {
        let given = given("x.toml --profile lb512 --seed 9 --kernel 7.3");
        let suite = Programs::parse(TWO, Path::new(""), &given).unwrap();
        let around = suite.programs[0].args.around().unwrap();
        assert_eq!(around.profiles, ["lb512".parse().unwrap()]);
        assert_eq!((around.seed, around.guest.kernel.as_deref()), (9, Some("7.3")));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let says = |change: (&str, &str), wanted: &str| {
            let text = TWO.replace(change.0, change.1);
            let error = Programs::parse(&text, Path::new(""), &given("x.toml")).unwrap_err();
            let error = crate::cli::sentence(&error);
            assert!(error.contains(wanted), "{error}");
        };
        says(("check =", "chek ="), "replace: `chek` is nothing that a program has: name, about,");
        says(("check =", "about ="), "replace: `check` is missing");
        says(("\"64m\"", "\"soon\""), "replace: error: invalid value 'soon' for '--size <SIZE>'");
        says(("like = \"replace\"", "like = \"else\""), "no program else before it");
        says(("\"violated\"", "\"red\""), "in-place: `expect` is passed or violated");
        says(("name = \"in-place\"", "name = \"replace\""), "two programs are called replace");
        says(("name = \"in-place\"", "name = \"../x\""), "`../x` is no name of a program");
        says(("[\"piece4k\", \"lb4k\"]", "[true]"), "neither a text nor a number");
    }
}

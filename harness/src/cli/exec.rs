//! `tornblk run --exec`: the user's own program and its checker.

use super::bench::parse_size;
use super::explore::{ExploreArgs, Explored};
use super::run;
use crate::explore::Checker;
use crate::out::say;
use crate::report::terminal::{Live, Look};
use crate::run::disks::{self, FurtherDisk, LUNS_MAX};
use crate::run::{GuestArgs, RealLab, RunFolder, Volume, Wanted, first_looks, program, word};
use crate::suite::parse_time;
use crate::vm::{FrontEnd, Virtiofsd};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tornblk_agent::channel::{Program, USER_DISK, USER_FILES};
use tornblk_image::KernelSource;
use tornblk_model::crash::{Profile, Strategy};

/// Different states that are judged, unless something else is asked for.
const STATES: u64 = 10_000;
/// What is wrong is mostly wrong in many states: so many are shrunk.
const FAILURES: u64 = 10;
const SIZE: u64 = 256 << 20;
/// mkfs.xfs makes none below 300 MiB.
const XFS_SIZE: u64 = 320 << 20;
const XFS_LEAST: u64 = 300 << 20;
/// Parts of 4 KiB are never torn: else ext4 cannot be mounted where the two sectors of its superblock are not
/// of one write, and every program would be to blame.
const DEFAULT_PROFILE: &str = "piece4k";

/// Unless others are given.
const EXEC_TIMEOUT: Duration = Duration::from_secs(600);
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(next_help_heading = "Your own program")]
pub(super) struct ExecOptions {
    /// Run this program (a file, or a command line for sh) on a fresh disk in a guest that sees this
    /// machine's files, and try the crash states of what it wrote; --check judges them
    #[arg(long, value_name = "PROGRAM", requires = "check", conflicts_with_all = [
        "suites", "lane", "crashes", "cut", "soak", "known", "fault", "shell", "gdb", "bisect"
    ])]
    pub(super) exec: Option<String>,

    /// Says by exit status 0 that a disk is sound; begins where it is mounted, with the marks before the
    /// crash in the file $TORNBLK_MARKS
    #[arg(long, value_name = "PROGRAM", requires = "exec")]
    check: Option<String>,

    /// Run this program first, in a guest of its own: what it leaves on the disk is there when that of
    /// --exec begins, and nothing of it is recorded
    #[arg(long, value_name = "PROGRAM", requires = "exec")]
    setup: Option<String>,

    /// The disk's file system
    #[arg(long, value_name = "NAME", default_value = "ext4", requires = "exec")]
    fs: FileSystem,

    /// Options for mkfs, as for a shell
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "",
        allow_hyphen_values = true,
        requires = "exec"
    )]
    mkfs_opts: String,

    /// Mount options, as in fstab
    #[arg(long, value_name = "OPTIONS", default_value = "", requires = "exec")]
    mount_opts: String,

    /// Of the disk [default: 256m; for XFS 320m]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "exec")]
    size: Option<u64>,

    /// Another disk for both programs, with a file system FS of its own [default: that of --fs; raw: none]:
    /// its device is $TORNBLK_DEVICE_NAME, and it is mounted at $TORNBLK_MOUNT_NAME (in capitals, _ for -).
    /// All disks share one order of events and one power cut, and each is flushed by itself; they are
    /// SCSI disks. --mkfs-opts and --mount-opts are for those with the file system of --fs. Can be given
    /// several times
    #[arg(long = "disk", value_name = "NAME=SIZE[,FS]", value_parser = another, requires = "exec")]
    disks: Vec<Another>,

    /// Of both programs' environment; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable, requires = "exec")]
    env: Vec<(String, String)>,

    /// How long the program may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time, requires = "exec")]
    exec_timeout: Duration,

    /// How long the checker may take on one state; one that takes longer finds it unsound
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time, requires = "exec")]
    check_timeout: Duration,

    /// The only exit status by which the checker says that a disk is not sound; any other but 0 is its own
    /// failure [default: any other]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=255), requires = "exec")]
    corrupt_status: Option<i32>,

    /// Judge at most this many different states of each program [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) states: Option<u64>,

    /// Where the programs are named from.
    #[arg(skip)]
    pub(super) base: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
    Raw,
}

impl FileSystem {
    /// As the kernel calls it.
    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
            FileSystem::Raw => "",
        }
    }

    fn mkfs(self) -> &'static [&'static str] {
        match self {
            FileSystem::Ext4 => &["mkfs.ext4", "-q", "-F"],
            FileSystem::Xfs => &["mkfs.xfs", "-q", "-f"],
            FileSystem::Btrfs => &["mkfs.btrfs", "-q", "-f"],
            FileSystem::Raw => &[],
        }
    }
}

/// What else was asked of `tornblk run`.
#[derive(Clone)]
pub(super) struct Around<'a> {
    pub(super) guest: GuestArgs,
    pub(super) front_end: Option<FrontEnd>,
    pub(super) profiles: Vec<Profile>,
    pub(super) strategies: Vec<Strategy>,
    pub(super) seed: u64,
    pub(super) time: Option<Duration>,
    pub(super) out: Option<&'a Path>,
    pub(super) keep: bool,
    pub(super) html: Option<&'a Path>,
}

impl Around<'_> {
    /// Does everything go where there was no finding?
    pub(super) fn goes(&self) -> bool {
        !self.keep && self.out.is_none()
    }
}

/// One program that is run and explored.
pub(super) struct One<'a> {
    pub(super) wanted: Wanted,
    /// Its own.
    pub(super) folder: &'a RunFolder,
    pub(super) live: &'a Live,
    pub(super) interrupted: &'a Arc<AtomicBool>,
}

/// "tcg, QEMU 7.2.22, kernel 7.2.12-..."
pub(super) fn machine(lab: &RealLab) -> String {
    let (major, minor, micro) = lab.qemu.version();
    format!("{}, QEMU {major}.{minor}.{micro}, kernel {}", lab.accel, lab.image.release)
}

impl ExecOptions {
    /// An option that says nothing without --exec, if one was given: clap does not ask for what another
    /// argument rules out.
    pub(super) fn in_vain(&self) -> Option<&'static str> {
        let given = [
            ("--check", self.check.is_some()),
            ("--setup", self.setup.is_some()),
            ("--fs", !matches!(self.fs, FileSystem::Ext4)),
            ("--mkfs-opts", !self.mkfs_opts.is_empty()),
            ("--mount-opts", !self.mount_opts.is_empty()),
            ("--size", self.size.is_some()),
            ("--disk", !self.disks.is_empty()),
            ("--env", !self.env.is_empty()),
            ("--exec-timeout", self.exec_timeout != EXEC_TIMEOUT),
            ("--check-timeout", self.check_timeout != CHECK_TIMEOUT),
            ("--corrupt-status", self.corrupt_status.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }

    pub(super) fn run(
        &self,
        around: &Around<'_>,
        interrupted: &Arc<AtomicBool>,
    ) -> anyhow::Result<Explored> {
        // What cannot work is said before anything that takes its time.
        let wanted = self.wanted(around)?;
        let live = Live::new(Look::detect());
        let mut lab = run::lab(&around.guest, &mut |text| live.note(text), interrupted)?;
        lab.prepare(&mut |text| live.note(text))?;
        let folder = RunFolder::create(around.out, around.seed)?;
        say!("{}: {}", machine(&lab), wanted.told());
        let one = One { wanted, folder: &folder, live: &live, interrupted };
        let explored = self.explored(&mut lab, one, around);
        live.finish();
        drop(lab);
        let explored = match explored {
            Ok(explored) => explored,
            Err(error) => {
                if super::interrupted(&error) && around.out.is_none() {
                    folder.remove_all();
                }
                return Err(error);
            }
        };
        if explored.is_clean() && around.goes() {
            folder.remove_all();
        }
        Ok(explored)
    }

    /// Runs the program, has the checker look at what must be sound, and explores.
    ///
    /// # Errors
    /// The program or the checker fails where nothing is wrong: then nothing is explored.
    pub(super) fn explored(
        &self,
        lab: &mut RealLab,
        one: One<'_>,
        around: &Around<'_>,
    ) -> anyhow::Result<Explored> {
        let start = Instant::now();
        let One { wanted, folder, live, interrupted } = one;
        let mut phase = |text: &str| live.note(text);
        let ran = program(lab, &wanted, folder, interrupted, &mut phase)
            .map_err(anyhow::Error::from)
            .and_then(|ran| {
                live.note("the checker's first looks");
                first_looks(lab, &ran.recording, folder, around.seed, interrupted)?;
                Ok(ran)
            })
            .with_context(|| {
                let place = folder.path().display();
                format!("nothing was explored (what there is: {place})")
            })?;
        live.finish();
        say!(
            "{} ended in {:.1} s, with {} of its own marks; {} is content with the disk before, and with \
             what it left",
            wanted.name,
            ran.took.as_secs_f64(),
            ran.marks,
            wanted.checker.name
        );
        let mut explore = ExploreArgs::of(ran.recording);
        explore.out = Some(folder.path().join("explored"));
        explore.seed = Some(around.seed);
        explore.failures = FAILURES;
        explore.states = Some(self.states.unwrap_or(STATES));
        explore.profile.clone_from(&around.profiles);
        explore.strategy.clone_from(&around.strategies);
        explore.time = around.time.map(|time| time.saturating_sub(start.elapsed()));
        explore.goes = around.goes();
        explore.html = around.html.map(Path::to_owned);
        explore.explore(Some(lab))
    }

    /// # Errors
    /// It cannot work: nothing has been started yet.
    pub(super) fn wanted(&self, around: &Around<'_>) -> anyhow::Result<Wanted> {
        let exec = self.exec.as_deref().unwrap_or_default();
        let check = self.check.as_deref().unwrap_or_default();
        let env = self.environment()?;
        let profile = match around.profiles.first() {
            Some(profile) => profile.clone(),
            None => DEFAULT_PROFILE.parse()?,
        };
        let logical_block_size = logical_block_size(&around.profiles)?;
        if let Some(kernel) = &around.guest.kernel {
            kernel.parse::<KernelSource>()?;
        }
        if !self.mkfs_opts.is_empty() && self.fs == FileSystem::Raw {
            bail!("--mkfs-opts: no file system is made on a raw disk");
        }
        let mkfs_opts = words(&self.mkfs_opts)?;
        let mkfs = |fs: FileSystem| -> Vec<String> {
            let mut mkfs: Vec<String> = fs.mkfs().iter().map(|word| (*word).to_owned()).collect();
            if !mkfs.is_empty() {
                mkfs.extend(mkfs_opts.iter().filter(|_| fs == self.fs).cloned());
                mkfs.push("{device}".to_owned());
            }
            mkfs
        };
        let front_end = self.front_end(around.front_end)?;
        let usual = if self.fs == FileSystem::Xfs { XFS_SIZE } else { SIZE };
        let size = self.size.unwrap_or(usual);
        let sizes = self.disks.iter().map(|disk| (disk.fs.unwrap_or(self.fs), disk.size));
        if let Some((_, small)) = std::iter::once((self.fs, size))
            .chain(sizes)
            .find(|(fs, size)| *fs == FileSystem::Xfs && *size < XFS_LEAST)
        {
            bail!(
                "XFS is not made on a disk of {} MiB: it wants {} at least (--size, --disk)",
                small >> 20,
                XFS_LEAST >> 20
            );
        }
        let disks = self.disks.iter().map(|disk| {
            let fs = disk.fs.unwrap_or(self.fs);
            let mount_options = if fs == self.fs { self.mount_opts.clone() } else { String::new() };
            let (name, fstype) = (disk.name.clone(), fs.name().to_owned());
            (FurtherDisk { name, size: disk.size, fstype, mount_options }, mkfs(fs))
        });
        let disks: Vec<_> = disks.collect();
        let further: Vec<FurtherDisk> = disks.iter().map(|(disk, _)| disk.clone()).collect();
        for profile in around.profiles.iter().chain([&profile]) {
            disks::check_grid(profile, size, &further).map_err(anyhow::Error::msg)?;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let program = |option: &str, given: &str| -> anyhow::Result<Program> {
            Ok(Program {
                argv: argv(option, given, &self.base)?,
                env: env.clone(),
                marks: Vec::new(),
                timeout_ms: millis(self.exec_timeout),
                disks: Vec::new(),
            })
        };
        let setup = self.setup.as_deref();
        let setup = setup.map(|given| anyhow::Ok((given.to_owned(), program("--setup", given)?)));
        Ok(Wanted {
            name: exec.to_owned(),
            setup: setup.transpose()?,
            program: program("--exec", exec)?,
            checker: Checker {
                name: check.to_owned(),
                argv: argv("--check", check, &self.base)?,
                env,
                timeout_ms: millis(self.check_timeout),
                corrupt_status: self.corrupt_status,
            },
            mkfs: mkfs(self.fs),
            volume: Volume {
                fstype: self.fs.name().to_owned(),
                mount_options: self.mount_opts.clone(),
                queues: 1,
                logical_block_size,
                profile: profile.to_string(),
                front_end,
                shows_limits: false,
                on_wire: Default::default(),
            },
            size,
            disks,
            seed: around.seed,
            guest: around.guest.clone(),
            // Before anything that takes its time.
            virtiofsd: Virtiofsd::find()?,
        })
    }

    /// Several disks are logical units of one SCSI device.
    fn front_end(&self, asked: Option<FrontEnd>) -> anyhow::Result<FrontEnd> {
        if self.disks.is_empty() {
            return Ok(asked.unwrap_or_default());
        }
        let mut known = BTreeSet::new();
        for disk in &self.disks {
            if !known.insert(disk.name.replace('-', "_")) {
                bail!("--disk {}: there is one that is called so, or nearly so", disk.name);
            }
        }
        if self.disks.len() >= LUNS_MAX {
            bail!(
                "--disk: {} disks and the main one are too many: at most {LUNS_MAX}",
                self.disks.len()
            );
        }
        match asked {
            None | Some(FrontEnd::Scsi) => Ok(FrontEnd::Scsi),
            Some(other) => bail!(
                "--disk: several disks are logical units of one SCSI device, and --front-end {other} has \
                 none: leave it out"
            ),
        }
    }

    /// Of both programs.
    fn environment(&self) -> anyhow::Result<Vec<(String, String)>> {
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        // Of an empty path the result would end with a slash.
        let here = if self.base.as_os_str().is_empty() { here } else { here.join(&self.base) };
        let own = std::env::var("PATH").unwrap_or_default();
        let path = format!("{USER_FILES}/bin:{own}:/usr/sbin:/usr/bin:/sbin:/bin");
        let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
        let mut env: Vec<(String, String)> = [
            ("PATH", path),
            ("HOME", home),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("TORNBLK_MOUNT", USER_DISK.to_owned()),
            ("TORNBLK_CWD", here.display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        env.extend(self.env.iter().cloned());
        Ok(env)
    }
}

/// A file that can be run, else a command line for sh.
fn argv(option: &str, given: &str, base: &Path) -> anyhow::Result<Vec<String>> {
    let path = &base.join(given);
    if path.is_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let full = std::fs::canonicalize(path)
            .with_context(|| format!("{option}: cannot find {given}"))?;
        let mode = std::fs::metadata(&full).map(|m| m.permissions().mode()).unwrap_or(0);
        if mode & 0o111 == 0 {
            bail!(
                "{option}: {given} may not be executed: chmod +x {}",
                word(&path.display().to_string())
            );
        }
        return Ok(vec![utf8(option, full)?]);
    }
    if given.trim().is_empty() {
        bail!("{option} names no program");
    }
    if given.contains('/') && !given.contains(char::is_whitespace) {
        bail!("{option}: there is no file {}", path.display());
    }
    Ok(["/bin/sh", "-c", given].map(str::to_owned).into())
}

fn utf8(option: &str, path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        anyhow::anyhow!("{option}: the path {} is no UTF-8", Path::new(&path).display())
    })
}

/// One recording is of one disk, whose logical blocks have one size.
fn logical_block_size(profiles: &[Profile]) -> anyhow::Result<u32> {
    let sizes: BTreeSet<u32> = profiles.iter().filter_map(|profile| profile.lb_size).collect();
    match sizes.iter().collect::<Vec<_>>().as_slice() {
        [] => Ok(512),
        [size] => Ok(**size),
        _ => bail!(
            "--profile: these are disks with logical blocks of different sizes, and a recording is of one: run \
             it for each"
        ),
    }
}

/// Words apart, as a shell has them without quotes.
fn words(options: &str) -> anyhow::Result<Vec<String>> {
    if options.contains(['"', '\'', '\\']) {
        bail!("--mkfs-opts: quotes and backslashes are not understood: {options}");
    }
    Ok(options.split_whitespace().map(str::to_owned).collect())
}

/// A disk as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Another {
    name: String,
    size: u64,
    /// `None`: that of --fs.
    fs: Option<FileSystem>,
}

fn another(text: &str) -> Result<Another, String> {
    let Some((name, rest)) = text.split_once('=') else {
        return Err("write NAME=SIZE or NAME=SIZE,FS, such as log=64m,ext4".to_owned());
    };
    disks::check_name(name)?;
    let (size, fs) = match rest.split_once(',') {
        Some((size, fs)) => {
            let known = FileSystem::from_str(fs, false)
                .map_err(|_| format!("{fs} is none of ext4, xfs, btrfs, raw"))?;
            (size, Some(known))
        }
        None => (rest, None),
    };
    Ok(Another { name: name.to_owned(), size: parse_size(size)?, fs })
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_program_is_a_file_or_a_line_for_the_shell() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("write.sh");
        std::fs::write(&file, "").unwrap();
        let given = file.display().to_string();
        let error = argv("--exec", &given, Path::new("")).unwrap_err().to_string();
        assert!(error.contains("may not be executed: chmod +x "), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(argv("--exec", &given, Path::new("")).unwrap(), [given]);
        let line = argv("--exec", "echo a >b && sync", Path::new("")).unwrap();
        assert_eq!(line, ["/bin/sh", "-c", "echo a >b && sync"]);
        let error = argv("--check", "./no-such-file", Path::new("")).unwrap_err().to_string();
        assert_eq!(error, "--check: there is no file ./no-such-file");
        assert!(argv("--check", " ", Path::new("")).is_err());
    }

    #[test]
    fn options_are_split_as_a_shell_would() {
        assert_eq!(words("-b 4096  -O bigalloc").unwrap(), ["-b", "4096", "-O", "bigalloc"]);
        assert!(words("-L 'a b'").is_err());
        let log = another("log=64m,xfs").unwrap();
        assert_eq!((&*log.name, log.size, log.fs), ("log", 64 << 20, Some(FileSystem::Xfs)));
        assert_eq!(another("b=1m").unwrap().fs, None);
        for (text, why) in [
            ("log", "NAME=SIZE"),
            ("main=1m", "is the disk that there is anyway"),
            ("LOG=1m", "lower-case"),
            ("log=1k", "whole MiB"),
            ("log=0", "whole MiB"),
            ("log=1m,fat", "fat"),
        ] {
            let error = another(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(variable("=x").is_err() && variable("x").is_err());
    }
}

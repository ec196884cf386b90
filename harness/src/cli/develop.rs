//! What a kernel developer asks of `tornblk run`: parameters, a debugger, a shell, `git bisect run`.

use super::explore::append;
use crate::out::note;
use crate::run::{Debugger, GuestArgs, LaneReport, RunReport, Verdict};
use crate::vm::{DEFAULT_PORT, FrontEnd, Gdb};
use anyhow::{Context, bail};
use clap::Args;
use std::ffi::OsString;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

/// What `git bisect run` takes for "cannot be tried: skip it".
pub(super) const SKIP: u8 = 125;

pub(super) const EXAMPLES: &str = "\
For kernel developers:
  tornblk run --kernel ~/linux --append 'slub_debug=FZP'     bzImage and modules of a build tree
  tornblk run --lane raw --cut 1 --kernel ~/linux --gdb      both guests of that cut wait for gdb
  tornblk run --lane buffered-xfs-4k --shell                 the lane's disk, and a shell
  git bisect run sh -c 'make -j8 olddefconfig bzImage modules || exit 125
      tornblk run --lane raw --kernel . --bisect'            builds, then judges: 0 good, 1 bad, 125 skip

A complaint of the guest's kernel (WARNING, BUG, lockdep, KASAN, a hung task, a file system's error)
is a violation; where --kernel is a build tree with vmlinux, its functions are told with file and line.";

#[derive(Debug, Args)]
#[command(next_help_heading = "For kernel developers")]
pub(super) struct DevelopOptions {
    /// Parameters for the guest's kernel, beside those that every guest gets
    #[arg(long, value_name = "PARAMS", value_parser = append, allow_hyphen_values = true)]
    pub(super) append: Option<String>,

    #[arg(long, value_name = "PORT", num_args = 0..=1, help = format!(
        "The guests of one cut (--lane, --cut) wait for gdb at their start, without any deadline \
         [default port: {DEFAULT_PORT}]"
    ))]
    pub(super) gdb: Option<Option<Gdb>>,

    /// A shell in a guest with the lane's disk (--lane), formatted and mounted, before any workload;
    /// what is done there is recorded
    #[arg(long, conflicts_with_all = ["cut", "fault", "crashes", "explore", "bisect", "soak", "time", "json", "junit"])]
    pub(super) shell: bool,

    /// Exit as `git bisect run` wants it: 0 good, 1 bad (a violation), 125 where any lane could not be
    /// judged; for one --kernel that was built (a build tree, or a file)
    #[arg(long)]
    pub(super) bisect: bool,
}

impl DevelopOptions {
    /// What does not go together, before anything is made.
    pub(super) fn check(&self, lanes: usize, cut: bool, kernels: &[String]) -> anyhow::Result<()> {
        if (self.shell || self.gdb.is_some()) && kernels.len() > 1 {
            bail!("--shell and --gdb are for one --kernel");
        }
        if self.shell && lanes != 1 {
            bail!("--shell is on the disk of one lane, and {lanes} are meant: name it with --lane");
        }
        if let Some(gdb) = self.gdb() {
            if !self.shell && (lanes != 1 || !cut) {
                bail!(
                    "--gdb is for one cut of one lane: name them with --lane and --cut (0 is the \
                     control, 1 the first)"
                );
            }
            let port = gdb.port;
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!("--gdb: port {port} cannot be had (give another: --gdb PORT)")
            })?;
        }
        let one = |kernels: &[String]| kernels.len() == 1 && Path::new(&kernels[0]).exists();
        if self.bisect && !one(kernels) {
            bail!(
                "--bisect is for a kernel that was built: give its build tree or file with --kernel"
            );
        }
        Ok(())
    }

    fn gdb(&self) -> Option<Gdb> {
        self.gdb.map(Option::unwrap_or_default)
    }

    /// The exit of a run.
    pub(super) fn exit(&self, report: &RunReport) -> u8 {
        // Bad is bad whatever else; good is only what was tried. What this QEMU cannot do says nothing
        // of the kernel.
        let judged = |lane: &LaneReport| {
            matches!(lane.verdict, Verdict::Passed | Verdict::KnownRed)
                || lane.verdict == Verdict::Unsupported && lane.front_end == FrontEnd::BlkFull
        };
        if self.bisect && report.exit == 0 && !report.lanes.iter().all(judged) {
            return 3;
        }
        report.exit
    }

    pub(super) fn debugger(&self, guest: &GuestArgs) -> Option<Debugger> {
        self.gdb().map(|gdb| Debugger { gdb, vmlinux: vmlinux(guest) })
    }
}

/// The kernel with its symbols: in a build tree, or what was given itself.
pub(super) fn vmlinux(guest: &GuestArgs) -> Option<PathBuf> {
    let given = Path::new(guest.kernel.as_deref()?);
    let vmlinux = if given.is_dir() { given.join("vmlinux") } else { given.to_owned() };
    let mut magic = [0; 4];
    std::fs::File::open(&vmlinux).ok()?.read_exact(&mut magic).ok()?;
    (magic == *b"\x7fELF").then(|| std::path::absolute(&vmlinux).unwrap_or(vmlinux))
}

/// Whether it was asked for, even where the command line cannot be read; not by who wants its help.
pub(super) fn is_bisecting(
    args: impl Iterator<Item = OsString>,
    error: Option<&clap::Error>,
) -> bool {
    let args: Vec<OsString> = args.collect();
    error.is_none_or(clap::Error::use_stderr)
        && args.get(1).is_some_and(|command| command == "run")
        && args.iter().any(|arg| arg == "--bisect")
}

/// An exit code as `git bisect run` wants it, which takes most others for "bad"; says which.
pub(super) fn for_bisect(exit: u8) -> u8 {
    let (code, what) = match exit {
        0 => (0, "good".to_owned()),
        1 => (1, "bad".to_owned()),
        exit => (SKIP, format!("this kernel cannot be judged (exit {exit}): skip it ({SKIP})")),
    };
    note!("git bisect: {what}");
    code
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn options(gdb: Option<u16>, shell: bool, bisect: bool) -> DevelopOptions {
        DevelopOptions { append: None, gdb: gdb.map(|port| Some(Gdb { port })), shell, bisect }
    }

    fn refused(options: &DevelopOptions, lanes: usize, cut: bool, kernels: &[&str]) -> String {
        let kernels: Vec<String> = kernels.iter().map(|k| (*k).to_owned()).collect();
        options.check(lanes, cut, &kernels).unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let gdb = options(Some(port), false, false);
        assert!(refused(&gdb, 2, true, &[]).contains("one cut of one lane"));
        assert!(refused(&gdb, 1, false, &[]).contains("one cut of one lane"));
        assert!(refused(&gdb, 1, true, &[]).contains("cannot be had"));
        assert!(refused(&gdb, 1, true, &["7.2", "7.3"]).contains("one --kernel"));
        // One that is free, whichever.
        options(Some(0), false, false).check(1, true, &[]).unwrap();
        options(Some(0), true, false).check(1, false, &[]).unwrap();
        assert!(refused(&options(None, true, false), 6, false, &[]).contains("6 are meant"));
        let bisect = options(None, false, true);
        for kernels in [&[][..], &["7.2"], &["/no/linux"], &["/", "/"]] {
            assert!(refused(&bisect, 1, false, kernels).contains("that was built"));
        }
        bisect.check(6, false, &["/".to_owned()]).unwrap();
    }

    #[test]
    fn only_good_and_bad_are_told_to_git_bisect() {
        let codes = [0, 1, 2, 3, 101, 130].map(for_bisect);
        assert_eq!(codes, [0, 1, 125, 125, 125, 125]);
        let args = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            is_bisecting(words.clone(), Cli::try_parse_from(words).err().as_ref())
        };
        assert!(args("tornblk run --bogus --bisect") && args("tornblk run --bisect"));
        assert!(!args("tornblk run") && !args("tornblk mark --bisect"));
        assert!(!args("tornblk run --help --bisect") && !args("tornblk run --bisect -h"));
    }

    #[test]
    fn a_kernel_is_judged_where_every_lane_is() {
        let all = crate::report::testing::report();
        let exit = |verdicts: &[Verdict], bisect| {
            let of = |v: &Verdict| all.lanes.iter().find(|lane| lane.verdict == *v).unwrap();
            let lanes: Vec<_> = verdicts.iter().map(|v| of(v).clone()).collect();
            let exit = RunReport::exit_code(&lanes, &[]);
            let code = options(None, false, bisect).exit(&RunReport { lanes, exit, ..all.clone() });
            (code, for_bisect(code))
        };
        assert_eq!(exit(&[Verdict::Passed, Verdict::KnownRed], true).1, 0);
        assert_eq!(exit(&[Verdict::Passed, Verdict::Violated], true).1, 1);
        for verdict in [Verdict::Unsupported, Verdict::Inconclusive, Verdict::Error] {
            assert_eq!(exit(&[Verdict::Passed, verdict], true).1, SKIP, "{verdict}");
            assert_eq!(exit(&[Verdict::Violated, verdict], true).1, 1, "bad is bad: {verdict}");
        }
        assert_eq!(exit(&[Verdict::Passed, Verdict::Unsupported], false).0, 0);
    }

    #[test]
    fn a_shell_and_a_debugger_as_they_are_typed() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')) {
            Ok(Cli { command: Command::Run(args) }) => Ok(args.develop.gdb()),
            Ok(_) => panic!("not a run"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(parse("tornblk run --gdb").unwrap(), Some(Gdb { port: DEFAULT_PORT }));
        assert_eq!(parse("tornblk run --gdb 77 --shell").unwrap(), Some(Gdb { port: 77 }));
        assert_eq!(parse("tornblk run --shell").unwrap(), None);
        let error = parse("tornblk run --shell --fault eio").unwrap_err();
        assert!(error.contains("--fault"), "{error}");
    }

    #[test]
    fn symbols_are_those_of_the_kernel_that_was_given() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |name: &str| tmp.path().join(name);
        let of = |kernel: &Path| {
            vmlinux(&GuestArgs {
                kernel: Some(kernel.display().to_string()),
                ..GuestArgs::default()
            })
        };
        assert_eq!(of(tmp.path()), None);
        assert_eq!(of(Path::new("7.2")), None);
        std::fs::write(path("vmlinux"), b"\x7fELF...").unwrap();
        std::fs::write(path("bzImage"), b"MZ").unwrap();
        assert_eq!(of(tmp.path()), Some(path("vmlinux")));
        assert_eq!((of(&path("vmlinux")), of(&path("bzImage"))), (Some(path("vmlinux")), None));
    }
}

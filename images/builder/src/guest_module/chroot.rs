//! Running programs in a folder as if it were the whole system: in a mount namespace of their own,
//! which root can make, and in a user namespace everybody where the host allows it. What is mounted
//! there goes with the last of these programs, and nobody else sees it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::cache::Cache;
use crate::{At, ImageError, process};

/// What has to be in the folder to be mounted on.
pub(super) const PROC: &str = "proc";
pub(super) const NULL: &str = "dev/null";

/// `$1`: the folder. The kernel's own tools want /proc and /dev/null.
const SCRIPT: &str = r#"mount --rbind /proc "$1/proc" &&
mount --bind /dev/null "$1/dev/null" &&
root=$1 && shift && exec "$@""#;

/// How to get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enter {
    Root,
    /// As root of a user namespace.
    User,
}

impl Enter {
    /// What works here; else why nothing does.
    pub(super) fn find(cache: &Cache) -> Result<Result<Enter, String>, ImageError> {
        let root = super::temporary(cache)?;
        prepare(root.path())?;
        let mut why = String::new();
        for enter in [Enter::Root, Enter::User] {
            if enter == Enter::Root && !rustix::process::geteuid().is_root() {
                continue;
            }
            let mut command = enter.command(root.path());
            match process::run(command.arg("true"), Signal::KILL, cache)? {
                Ok(out) if out.status.success() => return Ok(Ok(enter)),
                Ok(out) => {
                    let said = String::from_utf8_lossy(&out.stderr);
                    why = said.lines().next().unwrap_or("it failed").to_owned();
                }
                Err(e) => why = format!("unshare: {e}"),
            }
        }
        Ok(Err(format!(
            "the guest module's compiler runs in a mount namespace, which this host does not allow ({why}): build \
             the image once as root, or allow user namespaces (sysctl \
             kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, or \
             user.max_user_namespaces)"
        )))
    }

    /// Runs a program that is in the folder.
    pub(super) fn run(
        self,
        root: &Path,
        argv: &[&str],
        cache: &Cache,
    ) -> Result<std::io::Result<Output>, ImageError> {
        let mut command = self.command(root);
        command.arg("chroot").arg(root).args(argv);
        process::run(&mut command, Signal::KILL, cache)
    }

    fn command(self, root: &Path) -> Command {
        let mut command = Command::new("unshare");
        if self == Enter::User {
            command.args(["--user", "--map-root-user"]);
        }
        // All that is started there ends with unshare itself.
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ]);
        command.arg(root);
        // The user's variables are not meant for these programs.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }
}

/// Makes what is mounted on.
pub(super) fn prepare(root: &Path) -> Result<(), ImageError> {
    for dir in [PROC, "dev", "tmp"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).at("cannot make", &dir)?;
    }
    let null = root.join(NULL);
    fs::write(&null, "").at("cannot write", &null)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_is_mounted_there_is_seen_there_only() {
        let tmp = tempfile::tempdir().unwrap();
        let tmp = tmp.path().join("a folder");
        let cache = Cache::open(&tmp).unwrap();
        let enter = match Enter::find(&cache).unwrap() {
            Ok(enter) => enter,
            // A host that does not allow it says how to.
            Err(why) => return assert!(why.contains("user namespaces"), "{why}"),
        };
        let root = tmp.join("root");
        prepare(&root).unwrap();
        let mut look = enter.command(&root);
        let line = format!("test -e '{0}/proc/self/exe' && test -c '{0}/dev/null'", root.display());
        let out = process::run(look.args(["sh", "-c", &line]), Signal::KILL, &cache);
        assert!(out.unwrap().unwrap().status.success());
        assert_eq!(fs::read_dir(root.join(PROC)).unwrap().count(), 0);
        assert!(root.join(NULL).is_file());
        // What fails says so.
        let out = enter.run(&root, &["/nothing"], &cache).unwrap().unwrap();
        assert!(!out.status.success());
        assert!(String::from_utf8_lossy(&out.stderr).contains("/nothing"), "{out:?}");
    }

    /// Set for the test's other process: the folder to work in.
    const FOLDER: &str = "TORNBLK_TEST_FOLDER";

    /// A program that enters, and is killed with SIGKILL; it tells who runs inside.
    fn enter_and_wait(dir: &Path) {
        let cache = Cache::open(&dir.join("cache")).unwrap();
        let inside = dir.join("inside");
        let Ok(enter) = Enter::find(&cache).unwrap() else {
            return fs::write(&inside, "nobody").unwrap();
        };
        let root = dir.join("root");
        prepare(&root).unwrap();
        // /proc is the host's: its numbers are.
        let line = r#"read pid rest < /proc/self/stat && echo $pid > "$0.new" &&
            mv "$0.new" "$0" && exec sleep 60"#;
        let mut command = enter.command(&root);
        command.args(["sh", "-c", line]).arg(&inside);
        process::run(&mut command, Signal::KILL, &cache).unwrap().unwrap();
    }

    #[test]
    fn what_runs_inside_ends_even_where_this_program_is_killed() {
        if let Some(dir) = std::env::var_os(FOLDER) {
            return enter_and_wait(Path::new(&dir));
        }
        let tmp = tempfile::tempdir().unwrap();
        let name = "guest_module::chroot::tests::\
                    what_runs_inside_ends_even_where_this_program_is_killed";
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(FOLDER, tmp.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let wait_for = |is: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !is() && start.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(10));
            }
            is()
        };
        let inside = tmp.path().join("inside");
        let told = wait_for(&|| inside.is_file());
        let pid = fs::read_to_string(&inside).unwrap_or_default();
        let runs = || {
            let line = fs::read(Path::new("/proc").join(pid.trim()).join("cmdline"));
            line.is_ok_and(|line| line.starts_with(b"sleep\0"))
        };
        let ran = pid == "nobody" || wait_for(&runs);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(told, "nothing was run");
        // A host that does not allow it says so: see above.
        assert!(ran, "{pid} is not what was run");
        assert!(wait_for(&|| !runs()), "{pid} is still there");
    }
}

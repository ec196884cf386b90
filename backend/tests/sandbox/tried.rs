//! One try: a process of its own, in the sandbox or not, and how it ended.

use crate::forbidden::{self, Attempt, Ends};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;
use tornblk_backend::sandbox::{self, Policy};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("what_the_device_does_is_allowed", what_the_device_does_is_allowed),
    ("a_panic_is_told_with_where_it_was", a_panic_is_told_with_where_it_was),
    ("a_folder_that_is_not_there_is_told", a_folder_that_is_not_there_is_told),
    ("a_kernel_without_landlock_is_told_and_served", a_kernel_without_landlock_is_told_and_served),
    ("a_kernel_without_seccomp_is_refused", a_kernel_without_seccomp_is_refused),
];

/// Says what came of it on standard output, and how.
const WORKED: &str = "it worked";

/// Beneath the folder: what belongs to the device, and what does not.
pub(crate) const OWN: &str = "own";
pub(crate) const OTHER: &str = "other";
/// A file that the device reads again.
pub(crate) const READ: &str = "other/read";
pub(crate) const SECRET: &str = "other/secret";

fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in [OWN, OTHER] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    for file in [READ, SECRET, "own/there"] {
        std::fs::write(dir.path().join(file), "content").unwrap();
    }
    dir
}

/// In the child: with what is made before the sandbox is entered, tries from a thread that was
/// started after it.
pub(crate) fn run(name: &str, folder: &Path, sandboxed: bool) {
    std::env::set_current_dir(folder).unwrap();
    env_logger::init();
    // As in tornblkd.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    forbidden::INSIDE.store(sandboxed, std::sync::atomic::Ordering::Relaxed);
    let known = forbidden::ALL.iter().find(|attempt| attempt.name == name);
    let attempt: Box<dyn FnOnce() -> io::Result<()> + Send> = match name {
        "what-is-allowed" => crate::allowed::prepare(),
        "a-panic" => Box::new(|| panic!("as it was planned")),
        "no-folder" | "a-file-as-folder" => Box::new(|| Ok(())),
        "no-landlock" => {
            absent(&[libc::SYS_landlock_create_ruleset], libc::ENOSYS);
            Box::new(|| std::fs::read(SECRET).map(drop))
        }
        "no-seccomp" => {
            absent(&[libc::SYS_seccomp], libc::EINVAL);
            Box::new(|| Ok(()))
        }
        _ => (known.unwrap().prepare)(),
    };
    if sandboxed {
        let folder = match name {
            "no-folder" => "nowhere",
            "a-file-as-folder" => READ,
            _ => OWN,
        };
        let (read, folders) = (vec![READ.into()], vec![folder.into()]);
        let policy =
            Policy { read, folders, unlink: Vec::new(), rings: known.is_some_and(|k| k.rings) };
        match sandbox::enter(&policy) {
            Ok(entered) => println!("entered: {entered}"),
            Err(e) => return println!("not entered: {e}"),
        }
    }
    match std::thread::spawn(attempt).join().unwrap() {
        Ok(()) => println!("{WORKED}"),
        Err(e) => println!("error {}", e.raw_os_error().unwrap_or(-1)),
    }
}

/// Has the kernel refuse these calls to this process.
fn absent(calls: &[i64], error: i32) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let refused = SeccompAction::Errno(error as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// → how the child ended, and all it said.
fn child(place: &TempDir, name: &str, sandboxed: bool) -> (Output, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("--try")
        .arg(name)
        .arg(place.path())
        .arg(if sandboxed { "on" } else { "off" })
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "warn")
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output, said)
}

pub(crate) fn forbidden(attempt: &Attempt) {
    let root = rustix::process::geteuid().is_root();
    if !attempt.as_root || root {
        let (output, said) = child(&place(), attempt.name, false);
        assert!(output.status.success() && said.contains(WORKED), "not tried at all: {said}");
    }
    if attempt.as_root && !root && matches!(attempt.ends, Ends::Refused(_)) {
        // It cannot even be prepared.
        return;
    }
    let (output, said) = child(&place(), attempt.name, true);
    assert!(said.contains("entered: seccomp"), "{said}");
    assert!(!said.contains(WORKED), "{said}");
    match attempt.ends {
        Ends::Trapped(call) => {
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
            let told = said.lines().any(|line| {
                line.starts_with("tornblkd: forbidden system call ")
                    && line.contains(&format!(" ({call}), first arguments "))
                    && line.ends_with("start it with --sandbox off and report this")
            });
            assert!(told, "{said}");
        }
        Ends::Refused(errors) => {
            assert!(output.status.success(), "{said}");
            // The layer that refuses files is there where the kernel has it.
            let told = errors.iter().any(|error| said.contains(&format!("error {error}\n")));
            assert!(told, "{said}");
        }
    }
}

fn what_the_device_does_is_allowed() {
    for sandboxed in [false, true] {
        let place = place();
        let (output, said) = child(&place, "what-is-allowed", sandboxed);
        assert!(output.status.success() && said.contains(WORKED), "{sandboxed}: {said}");
    }
}

fn a_panic_is_told_with_where_it_was() {
    let (output, said) = child(&place(), "a-panic", true);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("as it was planned") && !said.contains("forbidden"), "{said}");
    // The symbols of this program can be read.
    assert!(said.contains("tried::run"), "{said}");
}

fn a_folder_that_is_not_there_is_told() {
    let (output, said) = child(&place(), "no-folder", true);
    assert!(output.status.success() && said.contains("not entered: nowhere is no"), "{said}");
    let (_, said) = child(&place(), "a-file-as-folder", true);
    assert!(said.contains("not entered: other/read is no folder"), "{said}");
}

fn a_kernel_without_landlock_is_told_and_served() {
    let (output, said) = child(&place(), "no-landlock", true);
    assert!(output.status.success() && said.contains(WORKED), "{said}");
    assert!(said.contains("entered: seccomp, no new privileges, no capabilities"), "{said}");
    assert!(said.contains("this kernel has no landlock"), "{said}");
    let as_root = said.contains("and not as root");
    assert_eq!(as_root, rustix::process::geteuid().is_root(), "{said}");
    // Only then is there something to warn of.
    let (_, said) = child(&place(), "what-is-allowed", true);
    assert!(said.contains("landlock (ABI") && !said.contains("WARN"), "{said}");
}

fn a_kernel_without_seccomp_is_refused() {
    let (output, said) = child(&place(), "no-seccomp", true);
    assert!(output.status.success() && !said.contains(WORKED), "{said}");
    assert!(said.contains("not entered: the sandbox's seccomp cannot be had"), "{said}");
    assert!(said.contains("start tornblkd with --sandbox off"), "{said}");
}

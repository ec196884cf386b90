//! The guest module, `tornblk_atomic.ko`: compiled for the kernel of an image.
//!
//! Debian's kernels: with their own headers and the compiler that those ask for, which is unpacked
//! into the cache ([`toolchain`]) and run there ([`chroot`]); nothing has to be installed. Kernels of
//! the user's own: by `make` in the folder in which they were built ([`tree`]).
//!
//! An image without the module is still of use: why there is none stands in its lock.

mod chroot;
mod headers;
mod toolchain;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::Apt;
use crate::cache::{Cache, key, read_json, remove};
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::{At, FORMAT, ImageError, KernelSource, ModuleLock, Package, Request, elf, modules};

pub(crate) use toolchain::ToolchainLock;

const NAME: &str = "tornblk_atomic";

/// What is compiled: name and content of each file.
const SOURCES: [(&str, &str); 2] = [
    ("Kbuild", include_str!("../../../kmod/Kbuild")),
    ("tornblk_atomic.c", include_str!("../../../kmod/tornblk_atomic.c")),
];

/// A module in the cache, or none.
#[derive(Debug)]
pub(crate) struct GuestModule {
    pub(crate) lock: ModuleLock,
    /// The part of the initramfs with it.
    pub(crate) archive: Option<PathBuf>,
}

/// What came of compiling.
enum Made {
    Module {
        data: Vec<u8>,
        packages: Vec<Package>,
    },
    /// It will fail in the same way again.
    Never(String),
    /// It may do better the next time.
    NotNow(String),
}

/// What it is compiled against.
enum Against {
    Packages,
    Tree(PathBuf),
    Nothing(String),
}

impl Against {
    fn of(request: &Request) -> Against {
        match &request.kernel {
            KernelSource::Debian(_) => Against::Packages,
            KernelSource::BuildTree(dir) => Against::Tree(dir.clone()),
            KernelSource::File(file) => {
                let build = request.modules.as_ref().map(|dir| dir.join("build"));
                match build {
                    Some(build) if tree::is_usable(&build) => Against::Tree(build),
                    _ => Against::Nothing(format!(
                        "{} comes without headers to compile the guest module with: give --modules \
                         with its lib/modules/RELEASE, where the link `build` leads to them, or the \
                         folder in which the kernel was built",
                        file.display()
                    )),
                }
            }
        }
    }
}

/// Changes with the source, and with how it is compiled.
fn format() -> String {
    key(&[&FORMAT.to_string(), &format!("{SOURCES:?}"), &toolchain::lists()])
}

fn key_of(kernel: &Kernel, against: &Against) -> String {
    let against = match against {
        Against::Packages => String::new(),
        Against::Tree(dir) => dir.to_string_lossy().into_owned(),
        Against::Nothing(why) => why.clone(),
    };
    key(&[&format(), &kernel.key, &against])
}

pub(crate) fn cached(cache: &Cache, request: &Request, kernel: &Kernel) -> Option<GuestModule> {
    let against = Against::of(request);
    let key = key_of(kernel, &against);
    match against {
        Against::Nothing(why) => Some(none(key, why)),
        _ => open(cache, &key),
    }
}

fn open(cache: &Cache, key: &str) -> Option<GuestModule> {
    let dir = cache.path(&["modules", key]);
    let lock: ModuleLock = read_json(&dir.join("lock.json"))?;
    let archive = lock.path.is_ok().then(|| dir.join("module.cpio"));
    Some(GuestModule { lock, archive })
}

fn none(key: String, why: String) -> GuestModule {
    GuestModule { lock: ModuleLock { key, path: Err(why), packages: Vec::new() }, archive: None }
}

pub(crate) fn build<'c>(
    cache: &'c Cache,
    apt: &mut Apt<'c>,
    request: &Request,
    kernel: &Kernel,
    progress: &mut dyn FnMut(&str),
) -> Result<GuestModule, ImageError> {
    let found = cached(cache, request, kernel);
    if let Some(module) = found
        && (module.archive.is_some() || !request.refresh)
    {
        return Ok(module);
    }
    let against = Against::of(request);
    let key = key_of(kernel, &against);
    let made = match against {
        Against::Nothing(why) => return Ok(none(key, why)),
        Against::Packages => or_not_now(of_packages(cache, apt, kernel, progress))?,
        Against::Tree(dir) => tree::compile(cache, &dir, &kernel.lock.release, progress)?,
    };
    let (lock, archive) = match made {
        Made::Module { data, packages } => {
            let path = format!("/usr/lib/modules/{}/extra/{NAME}.ko", kernel.lock.release);
            let archive =
                modules::archive_of_extra(&kernel.lock.release, &kernel.lock.modules, &path, &data);
            (ModuleLock { key: key.clone(), path: Ok(path), packages }, archive)
        }
        Made::Never(why) => {
            let lock = ModuleLock { key: key.clone(), path: Err(why), packages: Vec::new() };
            (lock, Archive::default().finish())
        }
        Made::NotNow(why) => {
            // Another image than the one that has it.
            return Ok(none(crate::cache::key(&[&key, &why]), why));
        }
    };
    let path = cache.path(&["modules", &key]);
    remove(&path)?;
    cache.make_dir(&path, |dir| {
        let file = dir.join("module.cpio");
        fs::write(&file, &archive).at("cannot write", &file)?;
        cache.write_json(&dir.join("lock.json"), &lock)
    })?;
    open(cache, &key).ok_or(ImageError::NoPackage { name: NAME.to_owned() })
}

/// An image does not fail for want of a mirror to get the compiler from.
fn or_not_now(made: Result<Made, ImageError>) -> Result<Made, ImageError> {
    match made {
        Err(
            error @ (ImageError::Network { .. }
            | ImageError::NoMirror
            | ImageError::NoApt(_)
            | ImageError::Apt { .. }),
        ) => Ok(Made::NotNow(format!("what compiles the guest module is not there: {error}"))),
        other => other,
    }
}

fn of_packages<'c>(
    cache: &'c Cache,
    apt: &mut Apt<'c>,
    kernel: &Kernel,
    progress: &mut dyn FnMut(&str),
) -> Result<Made, ImageError> {
    // Before anything is fetched for it.
    let enter = match chroot::Enter::find(cache)? {
        Ok(enter) => enter,
        Err(why) => return Ok(Made::NotNow(why)),
    };
    let headers = match headers::find(cache, apt, kernel, progress)? {
        Ok(headers) => headers,
        Err(why) => return Ok(Made::NotNow(why)),
    };
    let toolchain = toolchain::build(cache, apt, &headers.compiler, progress)?;
    apt.fetch(&headers.packages, headers.size, progress)?;
    progress("compiling the guest module");
    let root = temporary(cache)?;
    toolchain.copy_into(root.path())?;
    headers.unpack(cache, root.path())?;
    let work = root.path().join(toolchain::WORK);
    put_sources(&work)?;
    let tree = format!("/usr/src/linux-headers-{}", kernel.lock.release);
    let script = format!(
        "make -C {tree} M=/{work} modules && {strip} --strip-debug /{work}/{NAME}.ko",
        work = toolchain::WORK,
        strip = toolchain::STRIP,
    );
    let out = enter.run(root.path(), &["/bin/sh", "-c", &script], cache)?;
    let out = match out {
        Ok(out) => out,
        Err(e) => {
            return Ok(Made::NotNow(format!("the guest module's compiler cannot be run: {e}")));
        }
    };
    if !out.status.success() {
        let why = format!(
            "the guest module does not compile for {}: {}",
            kernel.lock.release,
            last_lines(&out)
        );
        return Ok(if is_refused(&out) { Made::Never(why) } else { Made::NotNow(why) });
    }
    let packages = [headers.packages, toolchain.packages].concat();
    let file = work.join(format!("{NAME}.ko"));
    Ok(match read_module(&file, &kernel.lock.release)? {
        Ok(data) => Made::Module { data, packages },
        Err(why) => Made::Never(why),
    })
}

/// A folder to compile in.
fn temporary(cache: &Cache) -> Result<tempfile::TempDir, ImageError> {
    let parent = cache.path(&["modules"]);
    cache.temporary(&parent)
}

fn put_sources(dir: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(dir).at("cannot make", dir)?;
    for (name, content) in SOURCES {
        let path = dir.join(name);
        fs::write(&path, content).at("cannot write", &path)?;
    }
    Ok(())
}

/// What was compiled, if it is for this kernel.
fn read_module(path: &Path, release: &str) -> Result<Result<Vec<u8>, String>, ImageError> {
    let data = fs::read(path).at("cannot read the module", path)?;
    let magic = elf::modinfo(&data, "vermagic").concat();
    let built_for = magic.split(' ').next().unwrap_or_default();
    Ok(if built_for == release {
        Ok(data)
    } else {
        Err(format!("the guest module was compiled for {built_for}, but the kernel is {release}"))
    })
}

/// Whether the compiler (or what resolves the module's symbols) found errors in what it was given.
/// Everything else is the host's: a full disk, too little memory, a compiler that was killed.
fn is_refused(out: &std::process::Output) -> bool {
    /// make's, where what it called has failed.
    const FAILED: i32 = 2;
    const OF_HOST: [&str; 5] = [
        "No space left on device",
        "Disk quota exceeded",
        "Cannot allocate memory",
        "Input/output error",
        "Killed",
    ];
    let said = [&out.stderr[..], b"\n", &out.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    // `file.c:12:3: error: ...`. A "fatal error" may be one in writing.
    let found = said.lines().any(|line| {
        let place = line.split_once(": error: ").map(|(place, _)| place);
        place.is_some_and(|p| p.ends_with(|c: char| c.is_ascii_digit()) && p.contains(':'))
            || line.starts_with("ERROR: modpost: ") && line.ends_with(" undefined!")
    });
    out.status.code() == Some(FAILED) && found && !OF_HOST.iter().any(|text| said.contains(text))
}

/// The end of what a program said, of its errors before anything else.
fn last_lines(out: &std::process::Output) -> String {
    const LINES: usize = 12;
    let stderr = String::from_utf8_lossy(&out.stderr);
    let text = if stderr.trim().is_empty() { String::from_utf8_lossy(&out.stdout) } else { stderr };
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let first = lines.len().saturating_sub(LINES);
    format!("{}\n{}", out.status, lines[first..].join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_alone_has_no_headers() {
        let tmp = tempfile::tempdir().unwrap();
        let mut request = Request::new(KernelSource::File("/boot/vmlinuz".into()));
        let Against::Nothing(why) = Against::of(&request) else { panic!() };
        assert!(why.contains("/boot/vmlinuz") && why.contains("--modules"), "{why}");
        request.modules = Some(tmp.path().to_owned());
        assert!(matches!(Against::of(&request), Against::Nothing(_)));
        fs::create_dir(tmp.path().join("build")).unwrap();
        assert!(matches!(Against::of(&request), Against::Nothing(_)));
        for file in ["Makefile", ".config"] {
            fs::write(tmp.path().join("build").join(file), "").unwrap();
        }
        assert!(matches!(Against::of(&request), Against::Tree(_)));
    }

    #[test]
    fn without_a_mirror_there_is_no_module_and_an_image() {
        let detail = "no route".to_owned();
        let Ok(Made::NotNow(why)) = or_not_now(Err(ImageError::Network { detail })) else {
            panic!("the image fails")
        };
        assert!(why.contains("no route"), "{why}");
        assert!(matches!(or_not_now(Err(ImageError::Stopped)), Err(ImageError::Stopped)));
    }

    #[test]
    fn the_source_is_the_one_that_is_named() {
        assert!(SOURCES[0].1.contains(&format!("{NAME}.o")));
        assert_eq!(SOURCES[1].0, format!("{NAME}.c"));
        // The kernel asks for it: functions for GPL modules only are used.
        assert!(SOURCES[1].1.contains("MODULE_LICENSE(\"GPL\")"));
    }

    #[test]
    fn only_what_the_compiler_refuses_fails_in_the_same_way_again() {
        let refused = |line: &str| {
            is_refused(&std::process::Command::new("sh").args(["-c", line]).output().unwrap())
        };
        let error = "echo 'a.c:12:3: error: no member named `x`' >&2;";
        assert!(refused(&format!("{error} exit 2")));
        assert!(refused("echo 'ERROR: modpost: \"a\" [b.ko] undefined!' >&2; exit 2"));
        // make, or a shell above it, was killed.
        assert!(!refused(&format!("{error} kill -9 $$")));
        assert!(!refused(&format!("{error} exit 137")));
        for line in [
            "make[2]: *** [scripts/Makefile.build:229: a.o] Error 1",
            "gcc: fatal error: Killed signal terminated program cc1",
            "a.c:9:1: fatal error: error writing to /tmp/c.s: No space left on device",
            "a.c:9:1: internal compiler error: Segmentation fault",
            "as: error while loading shared libraries: libz.so.1",
        ] {
            assert!(!refused(&format!("echo '{line}' >&2; exit 2")), "{line}");
        }
        // What was cut short does not compile either.
        assert!(!refused(&format!(
            "{error} echo 'sh: write error: No space left on device'; exit 2"
        )));
    }

    #[test]
    fn the_end_of_what_was_said_is_told() {
        let out =
            |line: &str| std::process::Command::new("sh").args(["-c", line]).output().unwrap();
        let text = last_lines(&out("seq 100; echo a b >&2; exit 2"));
        assert_eq!(text, "exit status: 2\na b");
        let text = last_lines(&out("seq 100; exit 2"));
        assert!(text.ends_with("\n99\n100") && !text.contains("88"), "{text}");
    }
}

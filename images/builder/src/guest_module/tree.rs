//! Against a folder in which a kernel was built: by its own makefile, and the host's own compiler.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::{Made, NAME, last_lines, put_sources, read_module, temporary};
use crate::cache::Cache;
use crate::{ImageError, process};

/// Whether modules can be compiled against it, as far as that can be seen.
pub(super) fn is_usable(dir: &Path) -> bool {
    ["Makefile", ".config"].iter().all(|f| dir.join(f).is_file())
}

/// Whether make can be told this path (`M=`): spaces end it, `:`, `#`, `$` and others mean something
/// to it or to the shell.
fn can_be_named(path: &Path) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "/._+-,@=".contains(c);
    path.to_str().is_some_and(|path| path.chars().all(plain))
}

pub(super) fn compile(
    cache: &Cache,
    tree: &Path,
    release: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<Made, ImageError> {
    if !is_usable(tree) {
        let why = format!(
            "{} has no Makefile and .config to compile the guest module with",
            tree.display()
        );
        return Ok(Made::NotNow(why));
    }
    let config = fs::read_to_string(tree.join(".config")).unwrap_or_default();
    let is_set = |option: &str| config.lines().any(|l| l == format!("{option}=y"));
    if !is_set("CONFIG_MODULES") {
        return Ok(Made::NotNow(
            "the kernel is built without CONFIG_MODULES: it takes no guest module".to_owned(),
        ));
    }
    let work = temporary(cache)?;
    if !can_be_named(work.path()) {
        return Ok(Made::NotNow(format!(
            "the guest module is compiled in the cache folder, and make cannot be told of {}: set \
             XDG_CACHE_HOME to a folder that has only letters, digits and any of `/._+-` in its name",
            work.path().display()
        )));
    }
    progress("compiling the guest module in the kernel's build folder");
    put_sources(work.path())?;
    let mut make = Command::new("make");
    make.arg("-C").arg(tree).arg(format!("M={}", work.path().display()));
    if is_set("CONFIG_CC_IS_CLANG") {
        make.arg("LLVM=1");
    }
    make.arg("modules");
    // Of a make that this program may have been started by.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        make.env_remove(variable);
    }
    let shown = format!("make -C {} M=... modules", tree.display());
    // make ends what it has started.
    let out = match process::run(make.env("LC_ALL", "C"), Signal::TERM, cache)? {
        Ok(out) => out,
        Err(e) => {
            return Ok(Made::NotNow(format!(
                "the guest module is compiled by `{shown}`, which cannot be run: {e}"
            )));
        }
    };
    if !out.status.success() {
        return Ok(Made::NotNow(format!(
            "the guest module is compiled by `{shown}`, which failed: {}",
            last_lines(&out)
        )));
    }
    Ok(match read_module(&work.path().join(format!("{NAME}.ko")), release)? {
        Ok(data) => Made::Module { data, packages: Vec::new() },
        Err(why) => Made::NotNow(format!("{why}: build the kernel again")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn compile_in(config: &str, makefile: &str) -> Made {
        compile_with("cache", config, makefile)
    }

    fn compile_with(cache: &str, config: &str, makefile: &str) -> Made {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::open(&tmp.path().join(cache)).unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join(".config"), config).unwrap();
        fs::write(tree.join("Makefile"), makefile).unwrap();
        compile(&cache, &tree, "7.9.9", &mut |_| ()).unwrap()
    }

    #[test]
    fn a_cache_that_make_cannot_be_told_is_refused() {
        let makefile = "modules:\n\t@echo it runs >&2; exit 3\n";
        for name in ["my cache", "a:b", "a#b", "a$b"] {
            let Made::NotNow(why) = compile_with(name, "CONFIG_MODULES=y\n", makefile) else {
                panic!("{name}: it is not told")
            };
            assert!(why.contains(name) && why.contains("XDG_CACHE_HOME"), "{why}");
            assert!(!why.contains("it runs"), "{why}");
        }
    }

    #[test]
    fn why_there_is_no_module_is_told() {
        let why = |config: &str, makefile: &str| match compile_in(config, makefile) {
            Made::NotNow(why) => why,
            _ => panic!("it is not told"),
        };
        let off = why("# CONFIG_MODULES is not set\n", "");
        assert!(off.contains("CONFIG_MODULES"), "{off}");
        let failed = why("CONFIG_MODULES=y\n", "modules:\n\t@echo cannot do it >&2; exit 3\n");
        assert!(failed.contains("make -C") && failed.contains("cannot do it"), "{failed}");
        let other =
            why("CONFIG_MODULES=y\n", "modules:\n\t@echo no module > $(M)/tornblk_atomic.ko\n");
        assert!(other.contains("the kernel is 7.9.9"), "{other}");
    }
}

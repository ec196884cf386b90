//! Finding the agent: a static program that is the guest's init.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::sha256;
use crate::{At, ImageError, elf};

/// What builds it.
pub const BUILD: &str = "images/build-agent";

/// What puts it beside programs that `cargo install` installed.
pub const INSTALL: &str = "cargo install --path images/agent --features guest";

const NAME: &str = "tornblk-agent";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where packages put it, seen from the folder of the programs: `/usr/bin`, `/usr/lib/tornblk`.
const PACKAGED: &str = "lib/tornblk";

/// The agent's content.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) data: Vec<u8>,
    pub(crate) sha256: String,
}

/// The agent's binary: the given one; else `$TORNBLK_AGENT`; else beside the running program, or where
/// a package has it (`../lib/tornblk`); else in the target folder of the build that made the running
/// program.
pub fn find(given: Option<&Path>) -> Result<PathBuf, ImageError> {
    if let Some(path) = given {
        return existing([path.to_owned()]);
    }
    if let Some(path) = std::env::var_os("TORNBLK_AGENT").filter(|path| !path.is_empty()) {
        return existing([PathBuf::from(path)]);
    }
    let me = std::env::current_exe().and_then(|p| p.canonicalize()).unwrap_or_default();
    // The tests build a dynamic one beside the programs, which is not meant.
    let usable =
        |p: &PathBuf| !p.is_file() || fs::read(p).is_ok_and(|data| elf::is_static_program(&data));
    let (usable, dynamic): (Vec<_>, Vec<_>) = candidates(&me).into_iter().partition(usable);
    existing(usable).or_else(|none| existing(dynamic).map_err(|_| none))
}

/// The newest of the builds is the one that is meant.
fn existing(looked: impl IntoIterator<Item = PathBuf>) -> Result<PathBuf, ImageError> {
    let looked: Vec<PathBuf> = looked.into_iter().collect();
    let built = |p: &&PathBuf| fs::metadata(p).and_then(|m| m.modified()).ok();
    let newest = looked.iter().filter(|p| p.is_file()).max_by_key(built);
    newest.cloned().ok_or_else(|| ImageError::NoAgent { looked: looked.clone() })
}

fn candidates(me: &Path) -> Vec<PathBuf> {
    let mut looked = Vec::new();
    let Some(dir) = me.parent() else { return looked };
    looked.push(dir.join(NAME));
    if let Some(prefix) = dir.parent().filter(|_| dir.file_name().is_some_and(|n| n == "bin")) {
        looked.push(prefix.join(PACKAGED).join(NAME));
    }
    // target/debug/tornblk, target/debug/deps/boot-0123, target/TRIPLE/release/tornblk
    for target in dir.ancestors().filter(|a| a.file_name().is_some_and(|n| n == "target")) {
        for profile in ["release", "debug"] {
            looked.push(target.join(TARGET).join(profile).join(NAME));
        }
    }
    looked
}

pub(crate) fn read(path: &Path) -> Result<Agent, ImageError> {
    let data = fs::read(path).at("cannot read the agent", path)?;
    if !elf::is_static_program(&data) {
        let why = "it is no static program for x86-64".to_owned();
        return Err(ImageError::BadAgent { path: path.to_owned(), why });
    }
    let sha256 = sha256(&data);
    Ok(Agent { data, sha256 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_is_looked_for_in_the_builds_target_folder() {
        let looked = candidates(Path::new("/x/target/debug/deps/boot-1"));
        assert!(looked.contains(&PathBuf::from("/x/target/debug/deps/tornblk-agent")));
        let built = "/x/target/x86_64-unknown-linux-gnu/release/tornblk-agent";
        assert!(looked.contains(&PathBuf::from(built)), "{looked:?}");
        let installed =
            ["/usr/bin/tornblk-agent", "/usr/lib/tornblk/tornblk-agent"].map(PathBuf::from);
        assert_eq!(candidates(Path::new("/usr/bin/tornblk")), installed);
        assert_eq!(candidates(Path::new("/opt/tornblk")).len(), 1);
    }

    #[test]
    fn a_missing_or_dynamic_agent_is_told_with_what_to_do() {
        let error = find(Some(Path::new("/nowhere/agent"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/agent") && error.contains(BUILD), "{error}");
        assert!(error.contains(INSTALL) && error.contains("$TORNBLK_AGENT"), "{error}");
        let error = read(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no static program") && error.contains(BUILD), "{error}");
    }
}

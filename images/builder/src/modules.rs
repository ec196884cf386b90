//! The kernel modules that a guest needs, with what they depend on.
//!
//! Packages hold no `modules.dep` (it is made where they are installed), so the dependencies are
//! read where depmod reads them: in each module's own `.modinfo`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cpio::Archive;
use crate::{At, ImageError, compress, elf};

/// Taken where the kernel has them as modules; what it has built in needs none.
pub(crate) const WANTED: [&str; 12] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "sg",
    "ext4",
    "xfs",
    "btrfs",
    "loop",
    "overlay",
    "virtiofs",
];

/// Loaded by the agent before anything else; the rest when somebody asks for it (`modprobe`, or
/// mount): under emulation SCSI takes half a second, and xfs five.
const AT_START: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_blk"];

/// Where the agent finds what to load: a path a line, in order.
const LIST: &str = "etc/tornblk/modules";

/// Names the lists above.
pub(crate) fn lists() -> String {
    format!("{WANTED:?} {AT_START:?} {LIST}")
}

/// A module in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// As `lsmod` shows it: `virtio_blk`.
    pub name: String,
    /// In the guest.
    pub path: String,
    /// Names that must be loaded before it.
    pub needs: Vec<String>,
}

type Read<'a> = dyn Fn(&Path) -> std::io::Result<Vec<u8>> + 'a;

/// A source of modules: name → where its file is. The file may be packed.
pub(crate) struct Source<'a> {
    paths: HashMap<String, PathBuf>,
    read: Box<Read<'a>>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("modules", &self.paths.len()).finish_non_exhaustive()
    }
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        paths: impl IntoIterator<Item = PathBuf>,
        read: impl Fn(&Path) -> std::io::Result<Vec<u8>> + 'a,
    ) -> Source<'a> {
        let named = paths.into_iter().filter_map(|p| Some((name_of(&p)?, p)));
        Source { paths: named.collect(), read: Box::new(read) }
    }

    /// The wanted ones, dependencies first, unpacked.
    pub(crate) fn select(&self, release: &str) -> Result<Vec<(Module, Vec<u8>)>, ImageError> {
        let mut taken = BTreeMap::new();
        let mut order = Vec::new();
        for name in WANTED {
            self.take(name, release, &mut taken, &mut order)?;
        }
        Ok(order.into_iter().filter_map(|name| taken.remove(&name).flatten()).collect())
    }

    fn take(
        &self,
        name: &str,
        release: &str,
        taken: &mut BTreeMap<String, Option<(Module, Vec<u8>)>>,
        order: &mut Vec<String>,
    ) -> Result<(), ImageError> {
        let Some(path) = self.paths.get(name) else { return Ok(()) };
        if taken.contains_key(name) {
            return Ok(());
        }
        taken.insert(name.to_owned(), None);
        let data = (self.read)(path).at("cannot read the module", path)?;
        let data = match compress::unpack(&data) {
            None => data,
            Some(unpacked) => unpacked.at("cannot unpack the module", path)?,
        };
        let bad = |why: String| ImageError::Module { path: path.clone(), why };
        let magic = elf::modinfo(&data, "vermagic");
        let magic = magic.first().ok_or_else(|| bad("it is no ELF module".into()))?;
        let built_for = magic.split(' ').next().unwrap_or_default();
        if built_for != release {
            return Err(bad(format!("it was built for {built_for}, not for {release}")));
        }
        let needs = needs(&elf::modinfo(&data, "depends").concat());
        for need in &needs {
            if !self.paths.contains_key(need) {
                return Err(bad(format!("it needs the module {need}, which is not there")));
            }
            self.take(need, release, taken, order)?;
        }
        let module = Module {
            name: name.to_owned(),
            path: format!("/usr/lib/modules/{release}/kernel/{name}.ko"),
            needs,
        };
        taken.insert(name.to_owned(), Some((module, data)));
        order.push(name.to_owned());
        Ok(())
    }
}

/// The part of the initramfs with the modules, and what modprobe needs to find them.
pub(crate) fn archive(release: &str, modules: &[(Module, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    let dir = format!("usr/lib/modules/{release}");
    let mut aliases = String::new();
    for (module, data) in modules {
        archive.file(module.path.trim_start_matches('/'), 0o644, data);
        // By these the kernel asks for a module: fs-xfs.
        for alias in elf::modinfo(data, "alias") {
            aliases += &format!("alias {alias} {}\n", module.name);
        }
    }
    let modules: Vec<Module> = modules.iter().map(|(m, _)| m.clone()).collect();
    archive.file(&format!("{dir}/modules.dep"), 0o644, dep(&modules).as_bytes());
    archive.file(&format!("{dir}/modules.alias"), 0o644, aliases.as_bytes());
    let list: String =
        load_order(&modules, &AT_START).iter().map(|m| format!("{}\n", m.path)).collect();
    archive.file(LIST, 0o644, list.as_bytes());
    archive.finish()
}

/// The part of the initramfs with a module of ours, which needs no other, beside the kernel's own:
/// modprobe finds them all.
pub(crate) fn archive_of_extra(
    release: &str,
    modules: &[Module],
    path: &str,
    data: &[u8],
) -> Vec<u8> {
    let mut archive = Archive::default();
    let dir = format!("usr/lib/modules/{release}");
    let path = path.trim_start_matches('/');
    archive.file(path, 0o644, data);
    let short = path.strip_prefix(&dir).unwrap_or(path).trim_start_matches('/');
    // In place of the one in the archive before.
    let all = format!("{}{short}: \n", dep(modules));
    archive.file(&format!("{dir}/modules.dep"), 0o644, all.as_bytes());
    archive.finish()
}

/// Names with all that they need, in an order in which they can be loaded. Names that are not
/// there are left out: they are built in.
pub(crate) fn load_order<'a>(modules: &'a [Module], names: &[&str]) -> Vec<&'a Module> {
    let mut wanted: Vec<&str> = names.to_vec();
    let mut i = 0;
    while i < wanted.len() {
        if let Some(module) = modules.iter().find(|m| m.name == wanted[i]) {
            wanted.extend(module.needs.iter().map(String::as_str));
        }
        i += 1;
    }
    // They are stored in such an order.
    modules.iter().filter(|m| wanted.contains(&m.name.as_str())).collect()
}

/// modules.dep: `path: all that it needs, the nearest first`.
fn dep(modules: &[Module]) -> String {
    let short = |m: &Module| format!("kernel/{}.ko", m.name);
    modules
        .iter()
        .map(|m| {
            let mut needs = load_order(modules, &[&m.name]);
            needs.pop();
            let needs: Vec<String> = needs.into_iter().rev().map(short).collect();
            format!("{}: {}\n", short(m), needs.join(" "))
        })
        .collect()
}

fn needs(depends: &str) -> Vec<String> {
    depends.split(',').filter(|d| !d.is_empty()).map(|d| d.replace('-', "_")).collect()
}

/// `kernel/fs/xfs/xfs.ko.xz` → `xfs`; `None` for what is no module.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"].contains(&rest).then(|| name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn module(name: &str, needs: &[&str]) -> Module {
        Module {
            name: name.into(),
            path: format!("/usr/lib/modules/1/kernel/{name}.ko"),
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    #[test]
    fn dependencies_come_first() {
        let modules = [
            module("crc", &[]),
            module("lib", &["crc"]),
            module("xfs", &["lib"]),
            module("sd", &[]),
        ];
        let names = |m: Vec<&Module>| m.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(load_order(&modules, &["xfs"])), ["crc", "lib", "xfs"]);
        assert_eq!(names(load_order(&modules, &["sd", "lib", "built_in"])), ["crc", "lib", "sd"]);
        assert_eq!(
            dep(&modules),
            "kernel/crc.ko: \nkernel/lib.ko: kernel/crc.ko\n\
             kernel/xfs.ko: kernel/lib.ko kernel/crc.ko\nkernel/sd.ko: \n"
        );
    }

    #[test]
    fn names_are_those_of_lsmod() {
        assert_eq!(name_of(Path::new("a/virtio-rng.ko.xz")).unwrap(), "virtio_rng");
        assert_eq!(name_of(Path::new("xfs.ko")).unwrap(), "xfs");
        assert_eq!(name_of(Path::new("xfs.ko.debug")), None);
        assert_eq!(name_of(Path::new("modules.order")), None);
        assert_eq!(needs("libcrc32c,dm-mod"), ["libcrc32c", "dm_mod"]);
        assert!(needs("").is_empty());
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let source = Source::new([PathBuf::from("x/xfs.ko")], |_| Ok(b"junk".to_vec()));
        let error = source.select("1").unwrap_err().to_string();
        assert!(error.contains("x/xfs.ko"), "{error}");
        let none = Source::new([], |_| Ok(Vec::new()));
        assert!(none.select("1").unwrap().is_empty());
    }
}

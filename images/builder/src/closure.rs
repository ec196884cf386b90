//! Files out of Debian's packages, with the shared libraries that they need: these are found by
//! name through the packages' dependencies, so that a package's other files do not come along.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::apt::{Apt, package_path};
use crate::cache::Cache;
use crate::deb::{self, Files, Node};
use crate::index::Index;
use crate::{ImageError, Package, elf};

/// What to take.
#[derive(Debug)]
pub(crate) struct List<'a> {
    /// Package → its files that are taken.
    pub(crate) files: &'a [(&'a str, &'a [&'a str])],
    /// Libraries that are loaded by name at run time, of libc6's dependencies.
    pub(crate) later: &'a [&'a str],
}

impl List<'_> {
    /// Whether a file of a package may be needed.
    fn wants(&self, path: &str) -> bool {
        self.files.iter().any(|(_, paths)| paths.contains(&path))
            || (path.starts_with("usr/lib") && path.contains(".so") && !path.contains("/gconv/"))
    }
}

/// Files with the libraries that they need.
struct Closure<'a, 'c> {
    list: &'a List<'a>,
    cache: &'c Cache,
    apt: &'a mut Apt<'c>,
    /// Everything in each fetched package.
    opened: BTreeMap<String, Files>,
    packages: BTreeMap<String, Package>,
    taken: Files,
    /// Packages of which something is taken.
    used: BTreeSet<String>,
}

/// A library that something needs.
struct Wanted {
    library: String,
    /// The package of what needs it.
    by: String,
}

/// The files of a list with all that they need, and the packages that they are of.
pub(crate) fn collect<'c>(
    list: &List<'_>,
    cache: &'c Cache,
    apt: &mut Apt<'c>,
    progress: &mut dyn FnMut(&str),
) -> Result<(Files, Vec<Package>), ImageError> {
    let mut closure = Closure {
        list,
        cache,
        apt,
        opened: BTreeMap::new(),
        packages: BTreeMap::new(),
        taken: Files::new(),
        used: BTreeSet::new(),
    };
    let names: Vec<&str> = list.files.iter().map(|(name, _)| *name).collect();
    closure.open(&names, progress)?;
    let mut wanted = VecDeque::new();
    for (package, paths) in list.files {
        for path in *paths {
            wanted.extend(closure.take(package, path)?);
        }
    }
    let later = list.later.iter();
    wanted.extend(later.map(|l| Wanted { library: (*l).into(), by: "libc6".into() }));
    // Level by level, so that apt is called a few times and not a hundred.
    while !wanted.is_empty() {
        closure.open_for(&wanted, progress)?;
        for want in std::mem::take(&mut wanted) {
            wanted.extend(closure.library(&want, progress)?);
        }
    }
    let packages = closure.packages.into_iter().filter(|(name, _)| closure.used.contains(name));
    Ok((closure.taken, packages.map(|(_, p)| p).collect()))
}

impl Closure<'_, '_> {
    /// Fetches and opens packages that are not open yet.
    fn open(&mut self, names: &[&str], progress: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        let index = &self.apt.indexes(progress)?.programs;
        let mut fetch = Vec::new();
        let mut size = 0;
        for name in names {
            if self.opened.contains_key(*name) || fetch.iter().any(|p: &Package| p.name == *name) {
                continue;
            }
            let Some(stanza) = index.newest(name) else {
                return Err(ImageError::NoPackage { name: (*name).to_owned() });
            };
            size += stanza.size();
            fetch.push(Package::from(stanza));
        }
        self.apt.fetch(&fetch, size, progress)?;
        for package in fetch {
            self.cache.check()?;
            let files =
                deb::read(&package_path(self.cache, &package), &|path| self.list.wants(path))?;
            self.opened.insert(package.name.clone(), files);
            self.packages.insert(package.name.clone(), package);
        }
        Ok(())
    }

    /// Opens what by its name has a wanted library.
    fn open_for(
        &mut self,
        wanted: &VecDeque<Wanted>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), ImageError> {
        let missing: Vec<&Wanted> =
            wanted.iter().filter(|w| self.find(&w.library).is_none()).collect();
        let index = &self.apt.indexes(progress)?.programs;
        let mut names = BTreeSet::new();
        for want in missing {
            let like = package_names(&want.library);
            names.extend(depends(index, &want.by).into_iter().filter(|d| like.contains(d)));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.open(&names, progress)
    }

    /// Takes a library, and tells what it needs itself.
    fn library(
        &mut self,
        want: &Wanted,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Wanted>, ImageError> {
        if self.find(&want.library).is_none() {
            // Its package has another name than is usual: open all that may be meant.
            let index = &self.apt.indexes(progress)?.programs;
            let names: Vec<String> = depends(index, &want.by)
                .into_iter()
                .filter(|d| {
                    (d.starts_with("lib") || d.starts_with("zlib")) && index.newest(d).is_some()
                })
                .collect();
            self.open(&names.iter().map(String::as_str).collect::<Vec<_>>(), progress)?;
        }
        match self.find(&want.library) {
            Some((package, path)) => self.take(&package, &path),
            None => Err(ImageError::NoLibrary {
                library: want.library.clone(),
                needed_by: want.by.clone(),
            }),
        }
    }

    /// Package and path of a library, given by name or path.
    fn find(&self, library: &str) -> Option<(String, String)> {
        let suffix = format!("/{library}");
        self.opened.iter().find_map(|(package, files)| {
            let path = files.keys().find(|p| {
                (*p == library || p.ends_with(&suffix)) && deb::resolve(files, p).is_some()
            })?;
            Some((package.clone(), path.clone()))
        })
    }

    /// Takes a file with the links that lead to it; tells which libraries it needs.
    fn take(&mut self, package: &str, path: &str) -> Result<Vec<Wanted>, ImageError> {
        let missing =
            || ImageError::NotInPackage { package: package.to_owned(), what: path.to_owned() };
        if self.taken.contains_key(path) {
            return Ok(Vec::new());
        }
        let files = self.opened.get(package).ok_or_else(missing)?;
        let content = deb::resolve(files, path).ok_or_else(missing)?;
        let Some(node @ Node::File { data, .. }) = files.get(&content) else {
            return Err(missing());
        };
        let mut needed = elf::needed(data);
        // Wanted at its very path, for which a library's name is not enough.
        needed.extend(elf::interpreter(data).map(|path| deb::normal(&path)));
        let node = node.clone();
        if content != path {
            let target = format!("/{content}");
            self.taken.insert(path.to_owned(), Node::Link { target });
        }
        self.taken.insert(content, node);
        self.used.insert(package.to_owned());
        let by = package.to_owned();
        Ok(needed.into_iter().map(|library| Wanted { library, by: by.clone() }).collect())
    }
}

fn depends(index: &Index, package: &str) -> Vec<String> {
    let depends = index.newest(package).map(|s| s.depends()).unwrap_or_default();
    depends.into_iter().map(str::to_owned).collect()
}

/// What Debian calls the package of a library (policy 8.1): `libext2fs.so.2` → `libext2fs2`, and
/// `libext2fs2t64` since times have 64 bits everywhere.
fn package_names(library: &str) -> [String; 4] {
    let (name, number) = library.split_once(".so.").unwrap_or((library, ""));
    let name = name.to_lowercase().replace('_', "-");
    let number = number.trim_end_matches("t64");
    [
        format!("{name}{number}"),
        format!("{name}-{number}"),
        format!("{name}{number}t64"),
        format!("{name}-{number}t64"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_tell_their_package() {
        for (library, package) in [
            ("libext2fs.so.2", "libext2fs2t64"),
            ("libcom_err.so.2", "libcom-err2"),
            ("libaio.so.1t64", "libaio1t64"),
            ("libgcc_s.so.1", "libgcc-s1"),
            ("libdevmapper.so.1.02.1", "libdevmapper1.02.1"),
            ("libpcre2-8.so.0", "libpcre2-8-0"),
        ] {
            assert!(package_names(library).iter().any(|n| n == package), "{library}");
        }
    }

    #[test]
    fn only_named_files_and_libraries_are_wanted() {
        let list = List { files: &[("xfsprogs", &["usr/sbin/mkfs.xfs"])], later: &[] };
        assert!(list.wants("usr/sbin/mkfs.xfs"));
        assert!(list.wants("usr/lib/x86_64-linux-gnu/libm.so.6"));
        assert!(list.wants("usr/lib64/ld-linux-x86-64.so.2"));
        assert!(!list.wants("usr/sbin/xfs_scrub_all"));
        assert!(!list.wants("usr/lib/x86_64-linux-gnu/gconv/BIG5.so"));
        assert!(!list.wants("usr/share/doc/libc6/copyright"));
    }
}

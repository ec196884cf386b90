//! The headers of Debian's kernels: three packages, and the name of a compiler.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apt::Apt;
use crate::cache::{Cache, read_json, remove};
use crate::index::{Index, Stanza};
use crate::kernel::Kernel;
use crate::root::unpack;
use crate::{ImageError, Package};

const KBUILD: &str = "linux-kbuild-";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Headers {
    pub(super) packages: Vec<Package>,
    /// Bytes to fetch.
    pub(super) size: u64,
    /// Its major version: "14".
    pub(super) compiler: String,
}

/// The headers of a kernel; else why there are none.
pub(super) fn find(
    cache: &Cache,
    apt: &mut Apt<'_>,
    kernel: &Kernel,
    progress: &mut dyn FnMut(&str),
) -> Result<Result<Headers, String>, ImageError> {
    let version = kernel.lock.packages.first().map(|p| p.version.as_str()).unwrap_or_default();
    let resolved = cache.path(&["resolved", &format!("headers-{}.json", kernel.key)]);
    let known = read_json::<Headers>(&resolved).filter(|h| h.are_of(version));
    if !apt.refresh
        && let Some(headers) = known
    {
        return Ok(Ok(headers));
    }
    let found = choose(&apt.indexes(progress)?.kernels, &kernel.lock.release, version);
    match (&found, known) {
        (Ok(headers), _) => cache.write_json(&resolved, headers)?,
        // What is not on the mirror any more may be in the cache.
        (Err(_), Some(headers)) => return Ok(Ok(headers)),
        (Err(_), None) => {}
    }
    Ok(found)
}

fn choose(index: &Index, release: &str, version: &str) -> Result<Headers, String> {
    let same = |name: &str| index.all(name).find(|s| s.version() == version);
    // Another revision has the same release, and so the same vermagic, but not the same structures.
    let of_kernel = |name: &str| -> Result<Stanza<'_>, String> {
        same(name).ok_or_else(|| match index.newest(name) {
            Some(other) => format!(
                "the guest module is compiled with the package {name} {version}, and the mirror has \
                 {} of it: get the kernel of this revision with --refresh",
                other.version()
            ),
            None => missing(name),
        })
    };
    let headers = of_kernel(&format!("linux-headers-{release}"))?;
    let depends = headers.depends();
    let named = |what: &str, is: &dyn Fn(&str) -> bool| {
        let name = depends.iter().find(|d| is(d)).copied();
        name.ok_or_else(|| {
            format!(
                "the package {} names no {what} to compile the guest module with",
                headers.name()
            )
        })
    };
    let common =
        named("common headers", &|d| d.starts_with("linux-headers-") && d.ends_with("-common"))?;
    let kbuild = named("linux-kbuild", &|d| d.starts_with(KBUILD))?;
    // gcc-12, gcc-14-for-host
    let compiler = named("compiler", &|d| number_of_gcc(d).is_some())?;
    // Programs only: a kernel's revisions share them.
    let programs = same(kbuild).or_else(|| index.newest(kbuild)).ok_or_else(|| missing(kbuild))?;
    let stanzas = [headers, of_kernel(common)?, programs];
    Ok(Headers {
        packages: stanzas.iter().map(|s| Package::from(*s)).collect(),
        size: stanzas.iter().map(|s| s.size()).sum(),
        compiler: number_of_gcc(compiler).unwrap_or_default().to_owned(),
    })
}

fn missing(package: &str) -> String {
    format!(
        "the package {package}, which the guest module is compiled with, is not on the mirror (any \
         more): get the newest kernel with --refresh"
    )
}

fn number_of_gcc(package: &str) -> Option<&str> {
    let number = package.strip_prefix("gcc-")?.split('-').next()?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

impl Headers {
    /// Whether the headers are the kernel's own. linux-kbuild may be another revision's.
    fn are_of(&self, version: &str) -> bool {
        self.packages.iter().filter(|p| !p.name.starts_with(KBUILD)).all(|p| p.version == version)
    }

    /// Unpacks them as they would be installed.
    pub(super) fn unpack(&self, cache: &Cache, root: &Path) -> Result<(), ImageError> {
        for package in &self.packages {
            unpack(package, cache, root)?;
        }
        // Only there for BTF, which would need one tool more, and nobody needs here.
        if let Some(headers) = self.packages.first() {
            remove(&root.join("usr/src").join(&headers.name).join("vmlinux"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn index() -> Index {
        let mut text = String::new();
        let mut add = |name: &str, version: &str, depends: &str| {
            text += &format!(
                "Package: linux-{name}\nVersion: {version}\nSize: 10\nDepends: {depends}\n\n"
            );
        };
        let depends = "gcc-14-for-host, linux-base (>= 4.12~), linux-base-7.2.12-cloud-amd64, \
                       linux-headers-7.2.12-common (= 7.2.12-1), linux-kbuild-7.2.12";
        add("headers-7.2.12-cloud-amd64", "7.2.12-1", depends);
        add("headers-7.2.12-common", "7.2.12-1", "");
        add("kbuild-7.2.12", "7.2.12-1", "pahole");
        add("kbuild-7.2.12", "7.2.12-2", "pahole");
        let depends = "linux-base, linux-headers-6.12-common, linux-image-6.12-cloud-amd64 | \
                       linux-image-6.12-cloud-amd64-unsigned, linux-kbuild-6.12, gcc-12";
        add("headers-6.12-cloud-amd64", "6.12-1", depends);
        add("headers-6.12-common", "6.12-1", "");
        let mut index = Index::default();
        index.add(text);
        index
    }

    #[test]
    fn the_packages_and_the_compiler_are_those_that_the_headers_ask_for() {
        let headers = choose(&index(), "7.2.12-cloud-amd64", "7.2.12-1").unwrap();
        let names: Vec<&str> = headers.packages.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "linux-headers-7.2.12-cloud-amd64",
                "linux-headers-7.2.12-common",
                "linux-kbuild-7.2.12"
            ]
        );
        assert!(headers.packages.iter().all(|p| p.version == "7.2.12-1"));
        assert_eq!((headers.compiler.as_str(), headers.size), ("14", 30));
    }

    #[test]
    fn headers_of_another_revision_are_not_taken() {
        // 7.2.12-2 has a linux-kbuild there, and no headers; 7.2.12-1 has headers.
        let why = choose(&index(), "7.2.12-cloud-amd64", "7.2.12-2").unwrap_err();
        assert!(why.contains("linux-headers-7.2.12-cloud-amd64 7.2.12-2"), "{why}");
        assert!(why.contains("has 7.2.12-1") && why.contains("--refresh"), "{why}");
        let depends = "gcc-14-for-host, linux-headers-7.2.12-common, linux-kbuild-7.2.12";
        let mut half = index();
        let name = "linux-headers-7.2.12-cloud-amd64";
        half.add(format!("Package: {name}\nVersion: 7.2.12-3\nDepends: {depends}\n\n"));
        let why = choose(&half, "7.2.12-cloud-amd64", "7.2.12-3").unwrap_err();
        assert!(why.contains("linux-headers-7.2.12-common 7.2.12-3"), "{why}");
        // linux-kbuild may be of another.
        half.add("Package: linux-headers-7.2.12-common\nVersion: 7.2.12-3\n\n".to_owned());
        let headers = choose(&half, "7.2.12-cloud-amd64", "7.2.12-3").unwrap();
        assert_eq!(headers.packages[2].version, "7.2.12-2");
        assert!(headers.are_of("7.2.12-3") && !headers.are_of("7.2.12-2"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let why = choose(&index(), "6.12-cloud-amd64", "6.12-1").unwrap_err();
        assert!(why.contains("linux-kbuild-6.12"), "{why}");
        let why = choose(&index(), "7.9-cloud-amd64", "7.9-1").unwrap_err();
        assert!(why.contains("linux-headers-7.9-cloud-amd64"), "{why}");
        assert_eq!(number_of_gcc("gcc-12"), Some("12"));
        assert_eq!(number_of_gcc("gcc-for-host"), None);
    }
}

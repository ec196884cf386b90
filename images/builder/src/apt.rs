//! The host's own apt with a private configuration: the mirror that the host uses, but suites of
//! our own, and nothing of the host's state is read or written. Works as any user.
//!
//! Signatures are checked by apt (InRelease → index), the packages' hashes by apt and again here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::cache::{self, Cache};
use crate::index::{Index, Stanza};
use crate::{At, ImageError, Package, process};

/// Programs and their libraries come from the first; kernels from the newest of all.
const SUITES: [&str; 3] = ["trixie", "trixie-backports", "bookworm-backports"];
const PROGRAMS_SUITE: &str = SUITES[0];

/// Debian's own keys, where the package debian-archive-keyring puts them; else apt's default trust.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// The host's apt; asked for nothing until something has to be fetched.
#[derive(Debug)]
pub struct Apt<'a> {
    cache: &'a Cache,
    indexes: Option<Indexes>,
    /// Ask again what is newest.
    pub(crate) refresh: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Indexes {
    /// Where programs come from.
    pub(crate) programs: Index,
    /// All suites.
    pub(crate) kernels: Index,
}

impl<'a> Apt<'a> {
    pub(crate) fn new(cache: &'a Cache, refresh: bool) -> Apt<'a> {
        Apt { cache, indexes: None, refresh }
    }

    /// What the mirror has now.
    pub(crate) fn indexes(
        &mut self,
        progress: &mut dyn FnMut(&str),
    ) -> Result<&Indexes, ImageError> {
        let indexes = match self.indexes.take() {
            Some(indexes) => indexes,
            None => {
                progress("asking the package mirror what is there");
                self.update()?
            }
        };
        Ok(self.indexes.insert(indexes))
    }

    fn update(&self) -> Result<Indexes, ImageError> {
        if !Path::new("/usr/bin/dpkg-deb").exists() {
            return Err(ImageError::NoApt("dpkg-deb"));
        }
        let mut last = ImageError::NoMirror;
        for mirror in mirrors(self.cache)? {
            log::debug!("trying the mirror {mirror}");
            self.configure(&mirror)?;
            let mut update = self.apt_get();
            // Without this, apt goes on with old lists when it gets no new ones.
            update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
            match run(&mut update, self.cache) {
                Ok(_) => return self.read(),
                Err(ImageError::Stopped) => return Err(ImageError::Stopped),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn folder(&self) -> PathBuf {
        self.cache.path(&["apt"])
    }

    fn configure(&self, mirror: &str) -> Result<(), ImageError> {
        let dir = self.folder();
        for sub in ["state/lists/partial", "cache/archives/partial", "log"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).at("cannot make", &sub)?;
        }
        let status = dir.join("state/status");
        fs::write(&status, "").at("cannot write", &status)?;
        let conf = dir.join("apt.conf");
        fs::write(&conf, configuration(&dir)).at("cannot write", &conf)?;
        let keyring = KEYRINGS.iter().find(|k| Path::new(k).exists()).copied();
        let sources = dir.join("sources.list");
        fs::write(&sources, sources_list(mirror, keyring)).at("cannot write", &sources)
    }

    fn apt_get(&self) -> Command {
        let mut command = apt_get();
        // Read after everything of the host's, hooks among it: an APT_CONFIG file would not be.
        command.arg("-q").arg("-c").arg(self.folder().join("apt.conf"));
        command
    }

    fn read(&self) -> Result<Indexes, ImageError> {
        let mut ask = self.apt_get();
        ask.args(["indextargets", "--format", "$(CODENAME)|$(FILENAME)", "Created-By: Packages"]);
        let out = run(&mut ask, self.cache)?;
        let mut indexes = Indexes::default();
        for (suite, path) in index_files(&String::from_utf8_lossy(&out.stdout)) {
            let text = fs::read(&path).at("cannot read the package index", &path)?;
            let text = String::from_utf8_lossy(&text).into_owned();
            if suite == PROGRAMS_SUITE {
                indexes.programs.add(text.clone());
            }
            indexes.kernels.add(text);
        }
        Ok(indexes)
    }

    /// Fetches what is not in the cache yet.
    pub(crate) fn fetch(
        &mut self,
        packages: &[Package],
        bytes: u64,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), ImageError> {
        let missing: Vec<&Package> =
            packages.iter().filter(|p| !package_path(self.cache, p).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        progress(&match missing.as_slice() {
            [one] => format!("fetching {} {} ({})", one.name, one.version, megabytes(bytes)),
            more => format!("fetching {} packages ({})", more.len(), megabytes(bytes)),
        });
        let folder = self.cache.path(&["packages"]);
        let temporary = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempdir_in(&folder)
            .at("cannot make a folder in", &folder)?;
        let mut download = self.apt_get();
        download.arg("download").current_dir(temporary.path());
        download.args(missing.iter().map(|p| format!("{}={}", p.name, p.version)));
        run(&mut download, self.cache)?;
        for entry in fs::read_dir(temporary.path()).at("cannot read", temporary.path())?.flatten() {
            let path = entry.path();
            let data = fs::read(&path).at("cannot read", &path)?;
            let hash = cache::sha256(&data);
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.split('_').next().unwrap_or_default();
            match missing.iter().find(|p| p.name == name) {
                Some(p) if p.sha256 == hash => {
                    let to = package_path(self.cache, p);
                    fs::rename(&path, &to).at("cannot put in place", &to)?;
                }
                Some(p) => {
                    return Err(ImageError::WrongHash {
                        package: p.name.clone(),
                        expected: p.sha256.clone(),
                        found: hash,
                    });
                }
                None => {}
            }
        }
        match missing.iter().find(|p| !package_path(self.cache, p).exists()) {
            None => Ok(()),
            Some(p) => Err(ImageError::NoPackage { name: p.name.clone() }),
        }
    }
}

/// Where a fetched package is.
pub(crate) fn package_path(cache: &Cache, package: &Package) -> PathBuf {
    cache.path(&["packages", &format!("{}.deb", package.sha256)])
}

impl From<Stanza<'_>> for Package {
    fn from(s: Stanza<'_>) -> Package {
        Package {
            name: s.name().to_owned(),
            version: s.version().to_owned(),
            sha256: s.sha256().to_owned(),
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Messages are read below.
    command.env("LC_ALL", "C").env_remove("APT_CONFIG");
    command
}

fn run(command: &mut Command, cache: &Cache) -> Result<Output, ImageError> {
    let out = process::run(command, Signal::TERM, cache)?;
    let out = out.map_err(|_| ImageError::NoApt("apt-get"))?;
    if out.status.success() {
        return Ok(out);
    }
    Err(explain(&String::from_utf8_lossy(&out.stderr)))
}

/// What apt's messages come down to.
fn explain(stderr: &str) -> ImageError {
    let lines: Vec<&str> = stderr
        .lines()
        .filter_map(|l| l.strip_prefix("E: ").or_else(|| l.strip_prefix("W: ")))
        .collect();
    let has = |words: &[&str]| {
        lines.iter().find(|l| words.iter().any(|w| l.contains(w))).map(|l| (*l).to_owned())
    };
    // A signature first: a file that fails it also "failed to fetch".
    let signature = [
        "NO_PUBKEY",
        "not signed",
        "BADSIG",
        "EXPKEYSIG",
        "REVKEYSIG",
        "signature",
        "not valid yet",
        "expired",
    ];
    if let Some(detail) = has(&signature) {
        return ImageError::Signature { detail };
    }
    // The mirror answers, but not with that: no fault of the network.
    if let Some(detail) = has(&["404", "does not have a Release file"]) {
        return ImageError::Apt { detail };
    }
    let network = [
        "Could not resolve",
        "Temporary failure",
        "Could not connect",
        "Unable to connect",
        "Connection failed",
        "Connection timed out",
        "Cannot initiate the connection",
        "Network is unreachable",
        "Failed to fetch",
    ];
    if let Some(detail) = has(&network) {
        return ImageError::Network { detail };
    }
    let detail = lines.first().map_or_else(|| stderr.trim().to_owned(), |l| (*l).to_owned());
    ImageError::Apt { detail }
}

/// Mirrors that may be Debian's, the likeliest first.
fn mirrors(cache: &Cache) -> Result<Vec<String>, ImageError> {
    let format = "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)";
    let mut ask = apt_get();
    ask.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let known = run(&mut ask, cache)?;
    let mut found = mirrors_of_targets(&String::from_utf8_lossy(&known.stdout));
    if found.is_empty() {
        // The host has no lists (a fresh container): then apt still says what it would fetch.
        let out = run(apt_get().args(["update", "--print-uris"]), cache)?;
        found = mirrors_of_uris(&String::from_utf8_lossy(&out.stdout));
    }
    if found.is_empty() { Err(ImageError::NoMirror) } else { Ok(found) }
}

fn mirrors_of_targets(out: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in out.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        if let ["Debian", "Debian", _, uri] = fields[..]
            && !found.iter().any(|f| f == uri)
        {
            found.push(uri.to_owned());
        }
    }
    found
}

/// Lines are `'URI' NAME SIZE HASH`. Nothing says whose a repository is, but its signature will.
fn mirrors_of_uris(out: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in out.lines() {
        let Some(uri) = line.strip_prefix('\'').and_then(|l| l.split('\'').next()) else {
            continue;
        };
        let Some((base, rest)) = uri.split_once("/dists/") else { continue };
        let base = format!("{base}/");
        if rest.ends_with("/InRelease") && !rest.contains("security") && !found.contains(&base) {
            found.push(base);
        }
    }
    found
}

fn index_files(out: &str) -> Vec<(String, PathBuf)> {
    out.lines()
        .filter_map(|l| l.split_once('|'))
        .map(|(suite, path)| (suite.to_owned(), PathBuf::from(path)))
        .collect()
}

fn sources_list(mirror: &str, keyring: Option<&str>) -> String {
    let options = match keyring {
        Some(keyring) => format!("[arch=amd64 signed-by={keyring}]"),
        None => "[arch=amd64]".to_owned(),
    };
    SUITES.iter().map(|suite| format!("deb {options} {mirror} {suite} main\n")).collect()
}

fn configuration(dir: &Path) -> String {
    let quoted = |p: &OsStr| p.to_string_lossy().replace('"', "%22");
    let at = |sub: &str| quoted(dir.join(sub).as_os_str());
    format!(
        r#"// Hooks are the host's business.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Dir::State "{state}";
Dir::State::status "{status}";
Dir::Cache "{cache}";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{sources}";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Log "{log}";
"#,
        state = at("state"),
        status = at("state/status"),
        cache = at("cache"),
        sources = at("sources.list"),
        log = at("log"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_is_found() {
        let out = "Debian|Debian|bookworm|http://a.example/debian/\n\
                   Debian|Debian|bookworm-updates|http://a.example/debian/\n\
                   Debian|Debian-Security|bookworm-security|http://a.example/debian-security/\n\
                   Other|Other|x|http://b.example/\n";
        assert_eq!(mirrors_of_targets(out), ["http://a.example/debian/"]);
        assert!(mirrors_of_targets("").is_empty());
        let out = "'http://b.example/x/dists/nodistro/InRelease' b 0 \n\
                   'http://a.example/debian/dists/bookworm/InRelease' a_InRelease 0 \n\
                   'http://a.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' p 0 \n\
                   'http://a.example/sec/dists/bookworm-security/InRelease' s 0 \n";
        assert_eq!(mirrors_of_uris(out), ["http://b.example/x/", "http://a.example/debian/"]);
    }

    #[test]
    fn messages_are_told_apart() {
        let unsigned = "W: GPG error: http://a trixie InRelease: The following signatures couldn't \
                        be verified because the public key is not available: NO_PUBKEY 00\n\
                        E: The repository 'http://a trixie InRelease' is not signed.\n";
        assert!(matches!(explain(unsigned), ImageError::Signature { .. }));
        let offline = "W: Failed to fetch http://a/InRelease  Temporary failure resolving 'a'\n\
                       E: Some index files failed to download.\n";
        assert!(matches!(explain(offline), ImageError::Network { .. }));
        let gone = "E: Failed to fetch http://a/x.deb  404  Not Found [IP: ::1 80]\n";
        assert!(matches!(explain(gone), ImageError::Apt { .. }));
        assert!(matches!(explain("E: Something else\n"),
            ImageError::Apt { detail } if detail == "Something else"));
    }

    #[test]
    fn sources_name_the_keyring() {
        let list = sources_list("http://a.example/", Some("/k"));
        assert!(list.starts_with("deb [arch=amd64 signed-by=/k] http://a.example/ trixie main\n"));
        assert_eq!(list.lines().count(), SUITES.len());
    }
}

//! Builds what a guest boots: a kernel, an initramfs with a few of Debian's programs and the
//! kernel modules for the disk under test, and the agent as `/init`.
//!
//! Kernel and programs are the distribution's signed packages, fetched through the host's own apt
//! from the mirror that the host already uses ([`apt`]). What was taken stands in the image's
//! [`Lock`]. Everything is kept in one cache folder ([`cache`]):
//!
//! ```text
//! apt/                 apt's private lists
//! packages/SHA256.deb  what was fetched
//! resolved/NAME.json   a request (say, kernel "7.2") → the key of what it resolved to
//! kernels/KEY/         kernel, modules.cpio, lock.json
//! programs/KEY/        programs.cpio, lock.json
//! toolchains/KEY/      what compiles the guest module, lock.json
//! modules/KEY/         module.cpio: the guest module; lock.json
//! roots/KEY/           root/: whole packages, unpacked for servers; lock.json
//! images/KEY/          kernel, initrd, lock.json; saved VM states of this image
//! ```
//! A folder with a key is complete, or it is not there: it is made under another name and renamed.
//! The image's key covers the agent, so a new agent makes a new image from the same packages.

pub mod agent;
pub mod apt;
pub mod cache;
mod closure;
mod compress;
mod cpio;
mod deb;
mod elf;
mod gc;
mod guest_module;
mod index;
mod initrd;
pub mod kconfig;
mod kernel;
mod modules;
mod process;
mod programs;
mod root;
mod version;
mod vmlinux;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

pub use gc::{Collected, Listed, gc, list};
pub use modules::Module;
pub use root::{Root, RootRequest, root};

/// Counts up when the same inputs would give another image.
const FORMAT: u32 = 4;

/// The kernel that `tornblk image build` takes when none is named: the oldest series on which
/// everything that the suites try is there.
pub const DEFAULT_KERNEL: &str = "7.2";

/// Where a guest's kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// The newest Debian cloud kernel of a series ("7.2"), or one version ("7.2.12").
    Debian(String),
    /// A bzImage or vmlinux.
    File(PathBuf),
    /// A folder in which a kernel was built.
    BuildTree(PathBuf),
}

impl FromStr for KernelSource {
    type Err = ImageError;

    fn from_str(s: &str) -> Result<Self, ImageError> {
        let path = Path::new(s);
        if path.is_dir() {
            return Ok(KernelSource::BuildTree(path.to_owned()));
        }
        if path.is_file() {
            return Ok(KernelSource::File(path.to_owned()));
        }
        let parts: Vec<&str> = s.split('.').collect();
        let number = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
        if (2..=3).contains(&parts.len()) && parts.iter().all(number) {
            return Ok(KernelSource::Debian(s.to_owned()));
        }
        Err(ImageError::BadKernel { given: s.to_owned() })
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    pub kernel: KernelSource,
    /// `lib/modules/RELEASE`, or any folder with `.ko` files, of a [`KernelSource::File`].
    pub modules: Option<PathBuf>,
    /// Where the agent's static binary is, when it is not in one of the places that
    /// [`agent::find`] looks into.
    pub agent: Option<PathBuf>,
    /// The cache folder, when it is not the user's ([`cache::default_dir`]).
    pub cache: Option<PathBuf>,
    /// Ask the mirror again for the newest versions, although something suitable is cached.
    pub refresh: bool,
    /// Set from outside: give up, and leave nothing half made ([`ImageError::Stopped`]).
    pub stop: Option<Arc<AtomicBool>>,
}

impl Request {
    /// A kernel as on the command line, all else as usual.
    pub fn new(kernel: KernelSource) -> Request {
        Request { kernel, modules: None, agent: None, cache: None, refresh: false, stop: None }
    }
}

/// A built image. While it (or a clone) lives, [`gc`] leaves it alone.
#[derive(Clone, Debug)]
pub struct Image {
    /// A vmlinux with a PVH entry point, or a bzImage where that cannot be had.
    pub kernel: PathBuf,
    /// Uncompressed cpio.
    pub initrd: PathBuf,
    /// As `uname -r` tells it.
    pub release: String,
    pub lock: Lock,
    /// The image's folder. Saved VM states may be kept in `saved/` here: they go with the image.
    pub dir: PathBuf,
    /// Names the image: hexadecimal, changes with everything that is in it.
    pub key: String,
    /// A shared lock on the folder.
    _in_use: Arc<std::fs::File>,
}

impl Image {
    /// What to load in the guest to have these modules (`xfs`), in order. What the kernel has
    /// built in needs nothing.
    pub fn load_order(&self, names: &[&str]) -> Vec<&Module> {
        modules::load_order(&self.lock.kernel.modules, names)
    }

    /// Where in the guest the module for atomic limits is (`images/kmod`), or why the image has
    /// none: a sentence. It is not loaded at start.
    pub fn guest_module(&self) -> Result<&str, &str> {
        self.lock.guest_module()
    }
}

/// What an image was made of; `lock.json` beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub kernel: KernelLock,
    pub programs: Vec<Package>,
    /// Hexadecimal, of the agent's binary.
    pub agent_sha256: String,
    /// Older images have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_module: Option<ModuleLock>,
}

impl Lock {
    /// See [`Image::guest_module`].
    pub fn guest_module(&self) -> Result<&str, &str> {
        match &self.guest_module {
            Some(module) => module.path.as_deref().map_err(String::as_str),
            None => Err("the image is older than the guest module: build it again"),
        }
    }
}

/// The guest module of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleLock {
    /// Hexadecimal; changes with the module's source and the kernel.
    pub key: String,
    /// Its path in the guest, or why there is none.
    pub path: Result<String, String>,
    /// Headers and compiler; empty for a kernel of the user's own.
    pub packages: Vec<Package>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelLock {
    pub release: String,
    /// The file that boots.
    pub format: KernelFormat,
    /// Hexadecimal, of the file that boots.
    pub sha256: String,
    /// Debian's packages; empty for a kernel of the user's own.
    pub packages: Vec<Package>,
    /// The user's file or build tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// In the image, in an order in which they can be loaded.
    pub modules: Vec<Module>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelFormat {
    /// An ELF file with a PVH note: QEMU enters it directly.
    Vmlinux,
    BzImage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Hexadecimal, of the .deb, as the signed index tells it.
    pub sha256: String,
}

/// Why there is no image. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(
        "`{given}` is no kernel: give a series (7.2), a version (7.2.12), a bzImage or vmlinux, \
         or the folder in which a kernel was built"
    )]
    BadKernel { given: String },
    #[error(
        "no {0} found: an image is built from Debian's packages; on a host without apt, give \
             --kernel and copy the cache folder from a Debian host"
    )]
    NoApt(&'static str),
    #[error(
        "apt on this host knows no Debian mirror (it is asked with `apt-get indextargets`): \
         images are built on Debian 12 or 13"
    )]
    NoMirror,
    #[error("the package mirror cannot be reached: {detail}; check the network and try again")]
    Network { detail: String },
    #[error(
        "the package lists' signatures cannot be verified: {detail}; is the package \
         debian-archive-keyring up to date?"
    )]
    Signature { detail: String },
    #[error("apt failed: {detail}")]
    Apt { detail: String },
    #[error("there is no Debian cloud kernel {wanted}; the mirror has {}", .there.join(", "))]
    NoSuchKernel { wanted: String, there: Vec<String> },
    #[error("the package {name} is not on the mirror; try again with --refresh")]
    NoPackage { name: String },
    #[error("{package} is not what the signed index says (sha256 {found}, not {expected})")]
    WrongHash { package: String, expected: String, found: String },
    #[error("the package {package} holds no {what}: it is not built as expected")]
    NotInPackage { package: String, what: String },
    #[error("no package has the shared library {library} that {needed_by} needs")]
    NoLibrary { library: String, needed_by: String },
    #[error("{path} cannot be used as a kernel: {why}")]
    Kernel { path: PathBuf, why: String },
    #[error("{path} is no usable kernel module: {why}")]
    Module { path: PathBuf, why: String },
    #[error(
        "the guest's own program, tornblk-agent, was not found (looked for {}). In tornblk's source, `{}` \
         builds it for what was built there, and `{}` installs it beside what cargo installed; \
         or name one in $TORNBLK_AGENT",
        .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        agent::BUILD,
        agent::INSTALL
    )]
    NoAgent { looked: Vec<PathBuf> },
    #[error("the agent {path} cannot be the guest's init: {why}; build it: {}", agent::BUILD)]
    BadAgent { path: PathBuf, why: String },
    #[error("interrupted")]
    Stopped,
    #[error("no cache folder: set HOME or XDG_CACHE_HOME")]
    NoCache,
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

/// Makes an `io::Error` a sentence about a path.
trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io { what, path: path.to_owned(), source })
    }
}

/// Builds the image, or finds it in the cache (then without any network, in well under a second).
/// `progress` is told what is being done, a short phrase each.
pub fn build(request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Image, ImageError> {
    let agent = agent::find(request.agent.as_deref())?;
    let agent = agent::read(&agent)?;
    let dir = match &request.cache {
        Some(dir) => dir.clone(),
        None => cache::default_dir()?,
    };
    let cache = cache::Cache::open(&dir)?.until(request.stop.clone());
    if !request.refresh
        && let Some(image) = initrd::cached(&cache, request, &agent)?
    {
        return Ok(image);
    }
    let built = build_in(&cache, request, &agent, progress);
    // Ctrl-C ends the programs that unpack, too: their failure is not the news.
    built.map_err(|error| cache.check().err().unwrap_or(error))
}

fn build_in(
    cache: &cache::Cache,
    request: &Request,
    agent: &agent::Agent,
    progress: &mut dyn FnMut(&str),
) -> Result<Image, ImageError> {
    let _building = cache.lock(progress)?;
    // Somebody else may have built it while this one waited.
    if !request.refresh
        && let Some(image) = initrd::cached(cache, request, agent)?
    {
        return Ok(image);
    }
    let mut apt = apt::Apt::new(cache, request.refresh);
    let kernel = kernel::build(cache, &mut apt, request, progress)?;
    let programs = programs::build(cache, &mut apt, request.refresh, progress)?;
    let module = guest_module::build(cache, &mut apt, request, &kernel, progress)?;
    initrd::build(cache, &kernel, &programs, &module, agent, progress)
}

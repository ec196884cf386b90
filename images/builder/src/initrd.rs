//! Putting an image together: the programs', the modules', the guest module's and the agent's
//! archives, one after the other.

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::agent::Agent;
use crate::cache::{Cache, key, open_lock, read_json};
use crate::cpio::Archive;
use crate::guest_module::{self, GuestModule};
use crate::kernel::{self, Kernel};
use crate::programs::{self, Programs};
use crate::{At, FORMAT, Image, ImageError, Lock, Request};

/// In an image's folder: locked while somebody uses the image.
pub(crate) const IN_USE: &str = "in-use.lock";

/// The image, if everything that it is made of is known and it was built.
pub(crate) fn cached(
    cache: &Cache,
    request: &Request,
    agent: &Agent,
) -> Result<Option<Image>, ImageError> {
    let Some(programs) = programs::cached(cache) else { return Ok(None) };
    let Some(kernel) = kernel::cached(cache, request)? else { return Ok(None) };
    match guest_module::cached(cache, request, &kernel) {
        Some(module) => open(cache, &key_of(&kernel, &programs, &module, agent)),
        None => Ok(None),
    }
}

fn key_of(kernel: &Kernel, programs: &Programs, module: &GuestModule, agent: &Agent) -> String {
    let parts = [&kernel.key, &programs.key, &module.lock.key, &agent.sha256];
    key(&[&[FORMAT.to_string().as_str()], parts.map(String::as_str).as_slice()].concat())
}

/// Opens a built image and marks it as in use.
pub(crate) fn open(cache: &Cache, key: &str) -> Result<Option<Image>, ImageError> {
    let dir = cache.path(&["images", key]);
    if !dir.is_dir() {
        return Ok(None);
    }
    let in_use = dir.join(IN_USE);
    let file = open_lock(&in_use)?;
    flock(&file, FlockOperation::LockShared)
        .map_err(std::io::Error::from)
        .at("cannot lock", &in_use)?;
    // Tells gc which images are used.
    let _ = file.set_modified(std::time::SystemTime::now());
    // It may have been collected just before the lock was taken.
    let Some(lock) = read_json::<Lock>(&dir.join("lock.json")) else { return Ok(None) };
    Ok(Some(image(dir, key, lock, file)))
}

fn image(dir: std::path::PathBuf, key: &str, lock: Lock, in_use: File) -> Image {
    Image {
        kernel: dir.join("kernel"),
        initrd: dir.join("initrd"),
        release: lock.kernel.release.clone(),
        lock,
        key: key.to_owned(),
        dir,
        _in_use: Arc::new(in_use),
    }
}

pub(crate) fn build(
    cache: &Cache,
    kernel: &Kernel,
    programs: &Programs,
    module: &GuestModule,
    agent: &Agent,
    progress: &mut dyn FnMut(&str),
) -> Result<Image, ImageError> {
    let key = key_of(kernel, programs, module, agent);
    if let Some(image) = open(cache, &key)? {
        return Ok(image);
    }
    progress("putting the image together");
    let lock = Lock {
        kernel: kernel.lock.clone(),
        programs: programs.lock.clone(),
        agent_sha256: agent.sha256.clone(),
        guest_module: Some(module.lock.clone()),
    };
    let mut own = Archive::default();
    own.file("init", 0o755, &agent.data);
    let own = own.finish();
    let path = cache.path(&["images", &key]);
    // What is left of an image that could not be opened is in the way.
    crate::cache::remove(&path)?;
    cache.make_dir(&path, |dir| {
        let boot = dir.join("kernel");
        if fs::hard_link(kernel.dir.join("kernel"), &boot).is_err() {
            fs::copy(kernel.dir.join("kernel"), &boot).at("cannot write", &boot)?;
        }
        let initrd = dir.join("initrd");
        let mut out = File::create(&initrd).at("cannot write", &initrd)?;
        let parts = [programs.dir.join("programs.cpio"), kernel.dir.join("modules.cpio")];
        for part in parts.into_iter().chain(module.archive.clone()) {
            let mut part_file = File::open(&part).at("cannot read", &part)?;
            std::io::copy(&mut part_file, &mut out).at("cannot write", &initrd)?;
        }
        out.write_all(&own).at("cannot write", &initrd)?;
        cache.write_json(&dir.join("lock.json"), &lock)
    })?;
    match open(cache, &key)? {
        Some(image) => Ok(image),
        None => Err(std::io::Error::from(std::io::ErrorKind::NotFound)).at("cannot open", &path),
    }
}

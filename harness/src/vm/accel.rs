//! Whether KVM really works: /dev/kvm may be there, and a guest still fail, hang or crawl with it,
//! as often in containers and in nested virtualisation. Only a guest tells.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tornblk_image::Image;

use super::{Qemu, Vm, VmConfig, VmError};

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    /// Emulation: slower, and always there.
    Tcg,
}

/// A guest that is not ready by then is no faster than an emulated one.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Accel {
    /// KVM if the image's guest boots with it, else emulation. The answer is kept in `cache` (a
    /// folder) until the machine boots again.
    pub fn probe(qemu: &Qemu, image: &Image, cache: Option<&Path>) -> Accel {
        if !Path::new("/dev/kvm").exists() {
            return Accel::Tcg;
        }
        Accel::remembered(&question(qemu), cache, || match boots(qemu, image) {
            Ok(()) => Accel::Kvm,
            Err(e) => {
                log::info!("guests are emulated, because KVM does not work here: {e}");
                Accel::Tcg
            }
        })
    }

    fn remembered(question: &str, cache: Option<&Path>, ask: impl FnOnce() -> Accel) -> Accel {
        let kept = cache.map(|dir| dir.join("accel"));
        let known = kept.as_ref().and_then(|path| fs::read_to_string(path).ok());
        if let Some((asked, answer)) = known.as_deref().and_then(|k| k.split_once('\n'))
            && asked == question
            && let Some(accel) = Accel::named(answer.trim())
        {
            return accel;
        }
        let accel = ask();
        if let Some(path) = kept {
            // It only saves time.
            let _ = fs::write(&path, format!("{question}\n{accel}\n"));
        }
        accel
    }

    fn named(name: &str) -> Option<Accel> {
        [Accel::Kvm, Accel::Tcg].into_iter().find(|a| a.to_string() == name)
    }
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// What the answer depends on, in a line: this boot of the machine, the user (who may not be
/// allowed to use /dev/kvm), and QEMU.
fn question(qemu: &Qemu) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    format!("{} {user} {} {}", boot.trim(), qemu.path().display(), qemu.text())
}

fn boots(qemu: &Qemu, image: &Image) -> Result<(), VmError> {
    let dir = tempfile::tempdir().map_err(super::io("cannot make a temporary folder"))?;
    let config = VmConfig {
        image,
        qemu: qemu.clone(),
        accel: Accel::Kvm,
        memory_mib: 512,
        cpus: 1,
        dir: dir.path(),
        use_saved: false,
        append: None,
        gdb: None,
        stop: None,
    };
    Vm::boot(&config, TIMEOUT).map(Vm::kill)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_answer_is_kept_for_the_same_question() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Some(tmp.path());
        assert_eq!(Accel::remembered("a", dir, || Accel::Tcg), Accel::Tcg);
        assert_eq!(Accel::remembered("a", dir, || Accel::Kvm), Accel::Tcg);
        assert_eq!(Accel::remembered("b", dir, || Accel::Kvm), Accel::Kvm);
        assert_eq!(Accel::remembered("b", dir, || Accel::Tcg), Accel::Kvm);
        fs::write(tmp.path().join("accel"), "b\nxen\n").unwrap();
        assert_eq!(Accel::remembered("b", dir, || Accel::Tcg), Accel::Tcg);
        assert_eq!(Accel::remembered("b", None, || Accel::Kvm), Accel::Kvm);
    }
}

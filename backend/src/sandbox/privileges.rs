//! What the user may do beyond others: capabilities(7). That no program gives more
//! (`no_new_privs`) is what unprivileged landlock and seccomp need, so their crates see to it.

use super::{Policy, SandboxError};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::path::PathBuf;

const LAYER: &str = "dropping of privileges";

/// Drops all capabilities of this thread. Root's own files stay open to root without any; where a
/// file or folder of the device's is another user's and closed, the one capability that opens it is
/// kept: → that path.
pub(super) fn drop_capabilities(policy: &Policy) -> Result<Option<PathBuf>, SandboxError> {
    let refused = |e: Errno| SandboxError::refused(LAYER, e);
    let before = rustix::thread::capabilities(None).map_err(refused)?;
    if before.effective.contains(CapabilitySet::SETPCAP) {
        forget_bounds().map_err(refused)?;
    }
    // Kernels before 4.3 have none.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let permitted = before.permitted;
    let asleep = CapabilitySets { effective: none, permitted, inheritable: none };
    rustix::thread::set_capabilities(None, asleep).map_err(refused)?;
    let wanted = CapabilitySet::DAC_OVERRIDE;
    let closed = if before.effective.contains(wanted) { closed(policy) } else { None };
    let left = if closed.is_some() { wanted } else { none };
    let after = CapabilitySets { effective: left, permitted: left, inheritable: none };
    rustix::thread::set_capabilities(None, after).map_err(refused)?;
    Ok(closed)
}

/// Nothing that is executed could get them back.
fn forget_bounds() -> rustix::io::Result<()> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // One more than this kernel knows.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The first file or folder that this user cannot use as it is now.
fn closed(policy: &Policy) -> Option<PathBuf> {
    use rustix::fs::Access;
    let files = policy.read.iter().map(|file| (file, Access::READ_OK));
    let folders = policy.folders.iter().chain(&policy.unlink);
    let folders = folders.map(|folder| (folder, Access::WRITE_OK | Access::EXEC_OK));
    let mut all = files.chain(folders);
    let closed = all.find(|(path, access)| {
        rustix::fs::accessat(CWD, *path, *access, AtFlags::EACCESS) == Err(Errno::ACCESS)
    });
    closed.map(|(path, _)| path.clone())
}

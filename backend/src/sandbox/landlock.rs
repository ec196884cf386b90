//! Which files can be opened: landlock(7).

use super::{Policy, SandboxError};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use std::path::Path;

/// The newest whose rights were tried. What a newer one could restrict (connections to UNIX
/// sockets by their names, from 9 on) stays as it is until somebody tries that.
const NEWEST: ABI = ABI::V7;

/// Restricts this thread: → the ABI that does it, `None` where the kernel has no landlock.
pub(super) fn restrict(policy: &Policy) -> Result<Option<i32>, SandboxError> {
    let refused = |e: RulesetError| SandboxError::refused("landlock", e);
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(refused)?;
    let mut rule = |path: &Path, access: BitFlags<AccessFs>| {
        let opened = PathFd::new(path)
            .map_err(|e| SandboxError::Path { path: path.to_owned(), why: e.to_string() })?;
        (&mut rules).add_rule(PathBeneath::new(opened, access)).map(|_| ()).map_err(refused)
    };
    for file in &policy.read {
        rule(file, AccessFs::ReadFile.into())?;
    }
    for folder in &policy.folders {
        rule(folder, own_folder())?;
    }
    for folder in &policy.unlink {
        rule(folder, AccessFs::RemoveFile.into())?;
    }
    // Its own open files, and the names of who connects. What is secret about other processes is
    // kept from this one all the same: landlock lets nobody look into a process outside.
    rule(Path::new("/proc"), AccessFs::ReadFile | AccessFs::ReadDir)?;
    // For the names in a backtrace.
    if let Ok(program) = std::env::current_exe() {
        rule(&program, AccessFs::ReadFile.into())?;
    }
    let status = rules.restrict_self().map_err(refused)?;
    Ok(match status.landlock {
        // The numbers are those of the kernel.
        LandlockStatus::Available { effective_abi, .. } => Some(effective_abi as i32),
        _ => None,
    })
}

/// Files, and nothing but files: no folders, links, sockets or devices.
fn own_folder() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile
}

//! The disk as it was while its file system was frozen: what a snapshot of it would have.
//!
//! It was made consistent before FIFREEZE returned. So it mounts; on ext4, which writes its log back
//! and says so in its superblock, with nothing to recover (XFS covers its log, and may look at it
//! again); its own checker has nothing to say; and every write that was acknowledged is there.

use super::super::ExploreError;
use super::{Case, GuestSettings, GuestVerifier};
use crate::oracle::{Clause, Finding, Frozen};
use tornblk_model::crash::{Profile, StateName};

/// What ext4 says when it had something to recover.
const RECOVERED: [&str; 2] = ["recovery complete", "recovery required"];

/// Mounts the disk as it was at each of these times, and says what is wrong with it.
///
/// # Errors
/// No guest can be started, or the recording cannot be read.
pub fn frozen(
    case: &Case<'_>,
    settings: &GuestSettings,
    times: &[&Frozen],
) -> Result<Vec<Finding>, ExploreError> {
    let profile: Profile = case.subject.volume.profile.parse()?;
    let mut verifier = GuestVerifier::new(case, settings, 0)?;
    let mut all = Vec::new();
    for time in times {
        let name = StateName(format!("{profile}/p{}:all", time.since));
        let (mut findings, said) = verifier.named(&profile, time.since, &name)?;
        if let Some(line) = said.iter().find(|line| recovered(line)) {
            let text = format!("it was mounted, and the kernel had to recover it: {}", line.trim());
            findings.push(Finding::new(Clause::NotClean, text));
        }
        for finding in &mut findings {
            finding.text =
                format!("the disk as it was at \"{}\" ({}): {}", time.name, name.0, finding.text);
        }
        all.append(&mut findings);
    }
    Ok(all)
}

fn recovered(line: &str) -> bool {
    line.contains("EXT4-fs") && RECOVERED.iter().any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ext4_may_have_nothing_to_recover() {
        assert!(recovered("[    3.1] EXT4-fs (vda): recovery complete"));
        assert!(!recovered("[    3.1] EXT4-fs (vda): mounted filesystem with ordered data mode"));
        assert!(!recovered("[    3.1] XFS (vda): Ending recovery (logdev: internal)"));
    }
}

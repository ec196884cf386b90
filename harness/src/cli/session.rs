//! `tornblk run --shell`: what is said around it.

use crate::out::{note, say};
use crate::report::headline;
use crate::report::terminal::{Live, typed};
use crate::run::{RECORDING, RealLab, RunFolder, Settings, session, word};
use crate::suite::Lane;
use std::sync::atomic::AtomicBool;

pub(super) fn run(
    lab: &mut RealLab,
    (suite, lane): &(String, Lane),
    settings: &Settings,
    folder: RunFolder,
    interrupted: &AtomicBool,
    live: &Live,
) -> anyhow::Result<u8> {
    let mut began = false;
    let mut phase = |text: &str| match text {
        // The terminal is the guest's from now on.
        "" => {
            began = true;
            live.finish();
        }
        text => live.note(text),
    };
    let done = session(lab, (suite, lane), settings, &folder, interrupted, &mut phase);
    live.finish();
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            leave(folder, &lane.name, began);
            return Err(error.into());
        }
    };
    say!("the guest is gone");
    for finding in &done.complaints {
        say!("{}", headline(finding));
        say!("  {}", crate::report::text(finding));
    }
    let recording = word(&done.recording.display().to_string());
    let state = word(&format!("{}/p{}:all", done.profile, done.to));
    let events = done.to.saturating_sub(done.from);
    say!("recorded in {recording}: {events} events since the shell began (event {})", done.from);
    say!("the disk as it is now, and as a power cut at any moment could have left it:");
    let mut commands = vec![
        format!("tornblk recording export {recording} --state {state} -o disk.img"),
        format!("tornblk explore {recording} --list"),
    ];
    if done.explorable {
        say!("(explored is whether the file system recovers from each, and is sound then)");
        commands.push(format!("tornblk explore {recording} --fsck-every 1"));
    }
    for command in commands {
        say!("  {}", typed(&command));
    }
    Ok(0)
}

/// After an error. What a person did in the shell is not done again: it is kept, whatever went wrong.
fn leave(folder: RunFolder, lane: &str, began: bool) {
    if !began {
        folder.remove_all();
        return;
    }
    let recording = folder.path().join(lane).join(RECORDING);
    note!("what was done in the shell is kept: {}", recording.display());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_error_after_the_shell_began_leaves_the_recording() {
        let tmp = tempfile::tempdir().unwrap();
        for began in [false, true] {
            let folder = RunFolder::create(Some(&tmp.path().join("run")), 1).unwrap();
            let recording = folder.lane("raw").unwrap().join(RECORDING);
            std::fs::write(&recording, "").unwrap();
            leave(folder, "raw", began);
            assert_eq!(recording.exists(), began);
        }
    }
}

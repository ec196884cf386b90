//! Alone in its program: whoever reaps takes every child, also those of other tests.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use tornblk_agent::guest::exec::reap;

#[test]
fn children_of_other_process_groups_are_reaped_too() {
    let child = Command::new("true").process_group(0).spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    // Never waited for, as an orphan that PID 1 inherited.
    drop(child);
    for _ in 0..6000 {
        reap();
        if std::fs::metadata(&stat).is_err() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{:?}", std::fs::read_to_string(&stat));
}

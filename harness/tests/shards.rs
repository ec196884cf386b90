//! `ci/shards`: N processes on this machine give what one gives.

#![allow(clippy::unwrap_used)]

#[path = "../src/explore/testing.rs"]
mod testing;

use std::path::Path;
use std::process::Command;
use testing::Recorded;
use tornblk::explore::Subject;
use tornblk::explore::session::Session;
use tornblk::run::{GuestArgs, Volume};

#[test]
fn shards_by_the_script_are_the_whole() {
    let recorded = Recorded::units(4, &[2], |workload| {
        let volume = Volume {
            fstype: String::new(),
            mount_options: String::new(),
            queues: 1,
            logical_block_size: 512,
            profile: "lb512".into(),
            front_end: Default::default(),
            shows_limits: false,
            on_wire: Default::default(),
        };
        let (suite, lane, guest) = ("made-here".into(), "raw".into(), GuestArgs::default());
        let workload = workload.clone();
        Subject {
            suite,
            lane,
            cut: 1,
            seed: 1,
            workload,
            volume,
            guest,
            image: None,
            checker: None,
            environment: None,
            disks: Vec::new(),
            pages: None,
        }
        .marks()
    });
    let dir = recorded.dir.path();
    let tornblk = env!("CARGO_BIN_EXE_tornblk");
    let strategies = ["--strategy", "prefix,one-lost,tear"];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/shards");
    let shards = Command::new(&script)
        .args(["3", "disk.recording"])
        .args(strategies)
        .current_dir(dir)
        .envs([("TORNBLK", tornblk), ("OUT", "shards")])
        .output()
        .unwrap();
    assert_eq!(shards.status.code(), Some(1), "{shards:?}");
    let text = String::from_utf8(shards.stdout).unwrap();
    assert!(text.contains("/dev/vda unit 2"), "{text}");
    let whole = Command::new(tornblk)
        .args(["explore", "disk.recording", "--out", "whole"])
        .args(strategies)
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(whole.status.code(), Some(1), "{whole:?}");
    let keys = |names: &[&str]| {
        let mut keys: Vec<_> = names
            .iter()
            .flat_map(|name| Session::load_judged(&dir.join(name)).unwrap())
            .map(|content| content.judged.key)
            .collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let parts = ["shards/shard-1", "shards/shard-2", "shards/shard-3"];
    assert!(keys(&parts).len() > 50);
    assert_eq!(keys(&parts), keys(&["whole"]));

    // What cannot be explored is said, and nothing is put together.
    let none = Command::new(&script)
        .args(["2", "nosuch"])
        .current_dir(dir)
        .envs([("TORNBLK", tornblk), ("OUT", "none")])
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let text = String::from_utf8(none.stderr).unwrap();
    assert!(text.contains("cannot open the recording nosuch"), "{text}");
    assert!(!dir.join("none").exists());

    // A folder of before is no verdict.
    let there = Command::new(&script)
        .args(["2", "disk.recording"])
        .current_dir(dir)
        .envs([("TORNBLK", tornblk), ("OUT", "shards")])
        .output()
        .unwrap();
    assert_eq!(there.status.code(), Some(2), "{there:?}");
    let text = String::from_utf8(there.stderr).unwrap();
    assert!(text.contains("shards is there already: remove it"), "{text}");
}

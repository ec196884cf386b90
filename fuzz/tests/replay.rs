//! The corpora in the tree, and what was found once, on stable: no promise is broken, and the
//! corpora still reach what they are there for.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use tornblk_fuzz::corpus::{inputs, names, one_at_a_time};
use tornblk_fuzz::{TARGETS, run, target};

/// After so long a case is taken to hang, and the process ends: no panic would end that.
const PATIENCE: Duration = Duration::from_secs(180);

/// Replays the inputs in a folder: how many they are, and how often each thing was reached.
fn replay(folder: &str, name: &str) -> (usize, HashMap<&'static str, u64>) {
    // Before they are read: descriptors are counted, too.
    let _one = one_at_a_time();
    let inputs = inputs(folder, name);
    let counts = || (target(name).unwrap().reached)();
    let before: HashMap<_, _> = counts().iter().map(|r| (r.what, r.times)).collect();
    let (tell, told) = channel::<String>();
    let watch = std::thread::spawn(move || {
        let mut at = String::new();
        loop {
            match told.recv_timeout(PATIENCE) {
                Ok(next) => at = next,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{at} hangs");
                    std::process::abort();
                }
            }
        }
    });
    for (path, bytes) in &inputs {
        tell.send(path.display().to_string()).unwrap();
        // Said where it fails.
        println!("{}", path.display());
        run(name, bytes);
    }
    drop(tell);
    watch.join().unwrap();
    let reached = counts().iter().map(|r| (r.what, r.times - before[r.what])).collect();
    (inputs.len(), reached)
}

/// Replays a target's corpus, which must reach each of these at least so often. Half of what it
/// reached when it was made, about: a change to the target or the code moves some inputs elsewhere,
/// and a corpus of which most are refused at once is of no use.
fn corpus(name: &str, floors: &[(&str, u64)]) {
    let (inputs, reached) = replay("corpus", name);
    assert!(inputs > 0, "fuzz/corpus/{name} is empty: ci/fuzz --merge {name}");
    println!("{name}: {inputs} inputs, {reached:?}");
    for (what, floor) in floors {
        let times = reached[what];
        assert!(times >= *floor, "{name}: only {times} {what}, of {floor}: ci/fuzz --merge {name}");
    }
}

#[test]
fn what_was_found_stays_mended() {
    for name in names("found") {
        let (inputs, _) = replay("found", &name);
        assert!(inputs > 0, "fuzz/found/{name} is empty");
    }
}

/// Nothing is left out because of its name.
#[test]
fn every_target_has_its_program_and_its_folders() {
    let mut targets: Vec<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    targets.sort();
    assert_eq!(names("libfuzzer/src/bin"), targets);
    assert_eq!(names("corpus"), targets);
    // Where nothing was found there is none.
    let found = names("found");
    assert!(found.iter().all(|name| targets.contains(name)), "{found:?}");
}

#[test]
#[should_panic(expected = "cannot be read")]
fn a_folder_that_is_missing_is_an_error() {
    inputs("corpus", "mesages");
}

#[test]
fn no_chain_breaks_the_device() {
    corpus(
        "chains",
        &[
            ("chains returned", 30000),
            ("chains answered with OK", 30),
            ("chains answered with an error", 30),
            ("reads", 500),
            ("writes", 350),
            ("flushes", 150),
            ("discards and zeroes", 15),
        ],
    );
}

#[test]
fn no_message_breaks_the_transport() {
    corpus(
        "messages",
        &[
            ("replies", 1000),
            ("queues that were started as they should be", 180),
            ("requests answered over a queue", 60),
            ("queues stopped", 15),
            ("memories cut short", 20),
        ],
    );
}

#[test]
fn no_command_breaks_the_disk() {
    corpus(
        "cdbs",
        &[
            ("commands answered", 1200),
            ("commands that ended with GOOD", 380),
            ("commands that ended with CHECK CONDITION", 500),
            ("atomic writes that ended with GOOD", 2),
            ("commands that gave data other than the disk's", 50),
            ("functions answered", 500),
        ],
    );
}

#[test]
fn no_recording_breaks_its_reader() {
    corpus(
        "recordings",
        &[
            ("recordings opened", 120),
            ("recordings verified", 80),
            ("recordings found damaged by verify", 40),
            ("histories", 80),
            ("states shown", 30),
            ("states walked over", 200),
            ("logs exported", 75),
            ("recordings gone on with", 18),
        ],
    );
}

#[test]
fn no_log_breaks_the_import() {
    corpus(
        "log-writes",
        &[
            ("logs imported", 75),
            ("writes imported", 1100),
            ("discards and zeroes imported", 390),
            ("flushes imported", 600),
            ("marks imported", 200),
            ("logs refused", 20),
        ],
    );
}

#[test]
fn no_message_breaks_the_control_server() {
    corpus(
        "control",
        &[
            ("commands carried out", 700),
            ("commands refused", 1000),
            ("states shown", 120),
            ("crashes", 12),
            ("calls of the client that were answered well", 5),
        ],
    );
}

#[test]
fn no_bundle_breaks_unpacking() {
    corpus(
        "bundles",
        &[
            ("bundles opened", 80),
            ("bundles unpacked", 6),
            ("bundles found damaged inside", 45),
            ("bundles of another content than they say", 4),
        ],
    );
}

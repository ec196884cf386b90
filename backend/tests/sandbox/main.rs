//! The sandbox: what is forbidden is tried in a process that entered it, and must fail there and
//! work outside; what `tornblkd` does is done, and must work inside.
//!
//! A process that enters must have one thread, and its end is what is looked at. So this program
//! starts itself: with `--try NAME FOLDER on|off` it is that process.

#![allow(clippy::unwrap_used)]

mod allowed;
#[path = "../common/mod.rs"]
mod common;
mod cost;
mod forbidden;
#[allow(dead_code)]
#[path = "../vhost/guest.rs"]
mod guest;
mod served;
mod tried;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, first, name, folder, sandbox] = &words[..]
        && first == "--try"
    {
        return tried::run(name, folder.as_ref(), sandbox == "on");
    }
    let trial = |name: &'static str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let mut trials: Vec<Trial> =
        served::TESTS.iter().chain(tried::TESTS).map(|(name, test)| trial(name, *test)).collect();
    trials
        .extend(cost::TESTS.iter().map(|(name, test)| trial(name, *test).with_ignored_flag(true)));
    for attempt in forbidden::ALL {
        trials.push(Trial::test(format!("forbidden::{}", attempt.name), || {
            tried::forbidden(attempt);
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

//! What holds for every target is looked at, and noticed. In a process of its own: a panic on any thread
//! counts.

#![allow(clippy::unwrap_used)]

use tornblk_fuzz::corpus::one_at_a_time;
use tornblk_fuzz::limits::{PROCESSOR, processor, within};

fn says(case: impl FnOnce(), what: &str) {
    let _one = one_at_a_time();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| within(1 << 20, case)));
    let error = *caught.unwrap_err().downcast::<String>().unwrap();
    assert!(error.contains(what), "{error}");
}

#[test]
fn a_panic_on_another_thread_is_noticed() {
    says(
        || {
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
        },
        "on purpose",
    );
}

#[test]
fn what_takes_too_long_is_noticed() {
    says(
        || {
            let began = processor();
            while processor() - began <= PROCESSOR {
                std::hint::spin_loop();
            }
        },
        "of processor time",
    );
}

#[test]
fn what_takes_too_much_memory_is_noticed() {
    says(|| drop(std::hint::black_box(vec![1u8; 2 << 20])), "bytes allocated");
    says(
        || {
            let mut grown = vec![1u8; 100];
            grown.resize(2 << 20, 1);
            std::hint::black_box(grown);
        },
        "bytes allocated",
    );
}

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tornblk_fuzz::run("control", data));

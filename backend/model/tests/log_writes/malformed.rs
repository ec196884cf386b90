//! Logs that say what cannot be: a sentence, and nothing is left.

use crate::foreign::Log;
use crate::options;
use std::path::Path;
use tornblk_model::recording::log_writes::{ImportOptions, export, import};
use tornblk_model::recording::{Reader, RecordingError};

fn sound() -> Vec<u8> {
    let mut log = Log::new(512);
    log.entry([0, 2, 0, 0], b"", &[1; 1024]);
    log.entry([0, 0, 8, 3], b"one", b"");
    log.entry([1, 1, 1, 0], b"", &[2; 512]);
    log.finish().to_vec()
}

fn put(log: &mut [u8], at: usize, value: u64) {
    log[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// What is said of this log on a disk of 64 KiB.
fn refused(log: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (base, file) = (dir.path().join("base"), dir.path().join("log"));
    std::fs::write(&base, vec![0; 64 << 10]).unwrap();
    std::fs::write(&file, log).unwrap();
    let error = import(&file, &dir.path().join("rec"), &options(&base, None)).unwrap_err();
    assert!(matches!(error, RecordingError::Log { .. }), "{error:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left");
    error.to_string()
}

#[test]
fn each_is_told_apart() {
    let change = |at: usize, value: u64| {
        let mut log = sound();
        put(&mut log, at, value);
        refused(&log)
    };
    // Entries are at 512, 512 + 1536 and 512 + 1536 + 512.
    let (first, mark, third) = (512, 2048, 2560);
    for (found, said) in [
        (refused(b""), "0 bytes"),
        (refused(&sound()[..27]), "27 bytes"),
        (refused(&vec![0x55; 4096]), "begins with 0x5555555555555555"),
        (change(8, 2), "version is 2"),
        (change(16, u64::MAX), "18446744073709551615 entries"),
        (change(16, 7), "7 entries"),
        (change(16, 4), "entry 3 would be at byte 3584"),
        (change(24, 0), "0 bytes"),
        (change(24, 513), "513 bytes"),
        (change(24, 1 << 31), "2147483648 bytes"),
        (change(first, 127), "entry 0 is of 2 sectors from sector 127 on, past the end"),
        (change(first, u64::MAX), "past the end"),
        (change(first + 8, 1 << 60), "entry 0 is said to have 1152921504606846976 sectors"),
        (change(first + 8, 100), "entry 0 is said to have 100 sectors"),
        (change(first + 16, 1 << 20), "entry 0 has flags that mean nothing here (0x100000)"),
        (change(mark + 16, 0), "entry 1 is empty"),
        (change(mark + 24, 481), "entry 1 is a mark of 481 bytes"),
        (change(mark + 24, u64::MAX), "entry 1 is a mark of 18446744073709551615 bytes"),
        (change(mark, 1), "entry 2 does not go on with the mark before it"),
        (change(third + 8, 2), "entry 2 is said to have 2 sectors"),
        (refused(&sound()[..3000]), "entry 2 would be at byte 2560, and the log ends at 3000"),
        (refused(&sound()[..3100]), "entry 2 is said to have 1 sectors of data"),
    ] {
        assert!(found.contains(said), "{said}: {found}");
        assert!(found.contains("no sound dm-log-writes log"), "{found}");
    }
    let mut long = Log::new(8192);
    long.entry([0, 0, 8, 4001], &[b'x'; 4001], b"");
    assert!(refused(long.finish()).contains("more than 4000 bytes"));
}

/// Whatever bytes there are: no panic, and all or nothing.
#[test]
fn any_damage_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (base, file, rec) =
        (dir.path().join("base"), dir.path().join("log"), dir.path().join("rec"));
    std::fs::write(&base, vec![0; 64 << 10]).unwrap();
    let mut dice = crate::generate::Dice::new(11);
    let mut whole = 0;
    for _ in 0..1500 {
        let mut log = sound();
        for _ in 0..1 + dice.below(3) {
            // Where it matters: the super block and the entries' first words.
            let at = dice.pick(&[0, 512, 2048, 2560]) + dice.below(40);
            log[at as usize] = dice.pick(&[0, 1, 2, 0x7f, 0x80, 0xff]);
        }
        log.truncate(log.len() - dice.pick(&[0, 0, 0, 1, 600]));
        std::fs::write(&file, &log).unwrap();
        let done = import(&file, &rec, &options(&base, None));
        assert_eq!(rec.exists(), done.is_ok());
        if done.is_ok() {
            Reader::open(&rec).unwrap().verify().unwrap();
            std::fs::remove_file(&rec).unwrap();
            whole += 1;
        }
    }
    assert!((50..1450).contains(&whole), "{whole}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (base, file, rec) =
        (dir.path().join("base"), dir.path().join("log"), dir.path().join("rec"));
    std::fs::write(&base, vec![0; 64 << 10]).unwrap();
    std::fs::write(&file, sound()).unwrap();
    let with = |change: fn(&mut ImportOptions)| {
        let mut options = options(&base, None);
        change(&mut options);
        let said = import(&file, &rec, &options).unwrap_err().to_string();
        assert!(!rec.exists());
        said
    };
    assert!(with(|o| o.lb_size = Some(600)).contains("600"));
    assert!(with(|o| o.lb_size = Some(1 << 20)).contains("no whole number"));
    assert!(with(|o| o.atomic_unit_max = 3000).contains("power of two"));
    assert!(with(|o| o.base = "/nowhere/base".into()).contains("/nowhere/base"));
    std::fs::write(&rec, "mine").unwrap();
    let exists = import(&file, &rec, &options(&base, None)).unwrap_err();
    assert!(matches!(exists, RecordingError::Exists { .. }));
    assert_eq!(std::fs::read(&rec).unwrap(), b"mine");
}

/// An export that fails leaves no half log.
#[test]
fn a_damaged_recording_gives_no_log() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (base, file, rec) =
        (dir.path().join("base"), dir.path().join("log"), dir.path().join("rec"));
    std::fs::write(&base, vec![0; 64 << 10]).unwrap();
    std::fs::write(&file, sound()).unwrap();
    import(&file, &rec, &options(&base, None)).unwrap();
    let reader = Reader::open(&rec).unwrap();
    let history = crate::history(&reader);
    let at = at_of(&rec, &[1; 1024]);
    std::fs::File::options().write(true).open(&rec).unwrap().write_all_at(b"?", at).unwrap();
    let out = dir.path().join("out");
    let error = export(&reader, &history, &out).unwrap_err();
    assert!(error.to_string().contains("event 1 fails its checksum"), "{error}");
    assert!(!out.exists());
}

fn at_of(file: &Path, bytes: &[u8]) -> u64 {
    let all = std::fs::read(file).unwrap();
    all.windows(bytes.len()).position(|w| w == bytes).unwrap() as u64
}

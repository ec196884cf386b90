//! A reader of logs, from the description of the format alone: it shares nothing with the importer.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Mark(Vec<u8>),
    Flush,
    Write { at: usize, data: Vec<u8>, fua: bool, atomic: bool, zeroes: bool },
    Discard { at: usize, len: usize, fua: bool },
}

fn number(log: &[u8], at: usize, bytes: usize) -> u64 {
    log[at..at + bytes].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

pub(crate) fn sector(log: &[u8]) -> u64 {
    number(log, 24, 4)
}

/// What the log says, one after another. Panics where it is not well-formed.
pub(crate) fn steps(log: &[u8]) -> Vec<Step> {
    assert_eq!(number(log, 0, 8), 0x6a736677736872);
    assert_eq!(number(log, 8, 8), 1);
    let entries = number(log, 16, 8);
    let sector = number(log, 24, 4) as usize;
    let mut out = Vec::new();
    let mut at = sector;
    // Entries that a mark still goes on in.
    let mut more = 0;
    for _ in 0..entries {
        let word = |i: usize| number(log, at + 8 * i, 8);
        let (first, sectors, flags, text) = (word(0) as usize, word(1) as usize, word(2), word(3));
        let inside = &log[at + 32..at + sector];
        at += sector;
        if flags & 8 != 0 {
            assert_eq!(inside[text as usize], 0, "readers want a zero after the text");
            let text = &inside[..text as usize];
            match out.last_mut() {
                Some(Step::Mark(known)) if more > 0 => known.extend_from_slice(text),
                _ => out.push(Step::Mark(text.to_vec())),
            }
            more = first;
            continue;
        }
        assert_eq!(inside[0], 0, "readers refuse an entry with a text that is no mark");
        if flags & 1 != 0 {
            out.push(Step::Flush);
        }
        let (at_disk, len, fua) = (first * sector, sectors * sector, flags & 2 != 0);
        if flags & 4 != 0 {
            out.push(Step::Discard { at: at_disk, len, fua });
        } else if sectors > 0 {
            let (atomic, zeroes) = (flags >> 32 & 1 == 1, flags >> 33 & 1 == 1);
            let data = log[at..at + len].to_vec();
            out.push(Step::Write { at: at_disk, data, fua, atomic, zeroes });
            at += len;
        }
    }
    assert!(at <= log.len(), "the log is as long as it says");
    out
}

pub(crate) fn apply(step: &Step, disk: &mut [u8]) {
    match step {
        Step::Write { at, data, .. } => disk[*at..at + data.len()].copy_from_slice(data),
        Step::Discard { at, len, .. } => disk[*at..at + len].fill(0),
        Step::Mark(_) | Step::Flush => {}
    }
}

/// The disk after these steps: with all of them, and with only what was stable by then.
pub(crate) fn after(steps: &[Step], base: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut all, mut none) = (base.to_vec(), base.to_vec());
    let flushed = steps.iter().rposition(|step| *step == Step::Flush).unwrap_or(0);
    for (i, step) in steps.iter().enumerate() {
        apply(step, &mut all);
        let own = matches!(step, Step::Write { fua: true, .. } | Step::Discard { fua: true, .. });
        if i < flushed || own {
            apply(step, &mut none);
        }
    }
    (all, none)
}

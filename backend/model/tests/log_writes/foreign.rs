//! Logs as others write them.

use crate::generate::Dice;
use crate::imported;
use tornblk_model::event::{Event, Op, Submit};

const DISK: u64 = 64 << 10;

pub(crate) struct Log {
    pub(crate) sector: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: u64,
}

impl Log {
    pub(crate) fn new(sector: usize) -> Log {
        Log { sector, bytes: vec![0; sector], entries: 0 }
    }

    /// Words 0 to 3 of an entry, the text in its sector, and the data after it.
    pub(crate) fn entry(&mut self, words: [u64; 4], text: &[u8], data: &[u8]) {
        let at = self.bytes.len();
        words.iter().for_each(|word| self.bytes.extend(word.to_le_bytes()));
        self.bytes.extend(text);
        self.bytes.resize(at + self.sector, 0);
        self.bytes.extend(data);
        self.entries += 1;
    }

    pub(crate) fn finish(&mut self) -> &[u8] {
        let words = [0x006a_7366_7773_6872u64, 1, self.entries];
        for (i, word) in words.iter().enumerate() {
            self.bytes[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
        self.bytes[24..28].copy_from_slice(&(self.sector as u32).to_le_bytes());
        &self.bytes
    }
}

/// A flush and FUA on writes with data, metadata, discards, marks.
fn made_up(dice: &mut Dice, sector: u64, discard_grain: u64) -> Log {
    let mut log = Log::new(sector as usize);
    for n in 0..3 + dice.below(25) {
        let len = 1 + dice.below(9);
        let first = dice.below(DISK / sector - len + 1);
        match dice.below(10) {
            0 => log.entry([0, 0, 1, 0], b"", b""),
            1 => {
                let text = format!("mark {n}");
                log.entry([0, 0, 8, text.len() as u64], text.as_bytes(), b"");
            }
            2 => {
                let grains = discard_grain / sector;
                let first = first / grains * grains;
                log.entry([first, len.div_ceil(grains) * grains, 4, 0], b"", b"");
            }
            _ => {
                let flags = [0, 0, 0, 1, 2, 3, 16, 18, 19][dice.below(9) as usize];
                let data: Vec<u8> =
                    (0..len * sector).map(|i| (1 + n * 31 + i / sector) as u8 | 1).collect();
                log.entry([first, len, flags, 0], b"", &data);
            }
        }
    }
    log
}

#[test]
fn any_log_replays_to_its_prefixes_on_any_logical_block() {
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let sector = dice.pick(&[512, 512, 1024, 4096]);
        let lb = dice.pick(&[None, Some(512), Some(4096), Some(16 << 10)]);
        let grain = lb.map_or(sector, |lb| u64::from(lb).max(sector));
        let mut log = made_up(&mut dice, sector, grain);
        let dir = tempfile::tempdir().unwrap();
        // Room for a discard that was rounded up.
        let size = DISK + 32 * 4096;
        let base: Vec<u8> = (0..size).map(|i| (i / 512 * 7) as u8 | 2).collect();
        std::fs::write(dir.path().join("base"), &base).unwrap();
        std::fs::write(dir.path().join("log"), log.finish()).unwrap();
        let (from, to) = (dir.path().join("base"), dir.path().join("rec"));
        let back = imported(&dir.path().join("log"), &from, lb, to);
        let disk = &back.reader.header().disk;
        assert_eq!(u64::from(disk.lb_size), lb.map_or(sector, u64::from));
        back.is_what_the_log_replays_to(&log.bytes, &base);
    }
}

#[test]
fn many_zeroes_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::File::create(&base).unwrap().set_len(64 << 30).unwrap();
    let mut log = Log::new(4096);
    // 32 GiB of zeroes, as QEMU logs them: a hole.
    log.entry([7, 8 << 20, 0, 0], b"", b"");
    let hole = 32 << 30;
    let path = dir.path().join("log");
    let bytes = log.finish().to_vec();
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8192 + hole).unwrap();
    let back = imported(&path, &base, None, dir.path().join("rec"));
    let events: Vec<_> = back.reader.events().collect::<Result<_, _>>().unwrap();
    let zeroes = |e: &Event| {
        matches!(e, Event::Submit(Submit { op: Op::WriteZeroes { segments }, .. })
            if segments[0].offset == 7 * 4096 && segments[0].len == hole)
    };
    assert_eq!(events.iter().filter(|(_, e)| zeroes(e)).count(), 1);
    assert_eq!(back.reader.info().unwrap().payload_bytes, 0);
}

#[test]
fn text_that_is_none_does_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::write(&base, vec![0; 4096]).unwrap();
    let mut log = Log::new(512);
    log.entry([0, 0, 8, 4], b"a\xff\xfeb", b"");
    log.entry([0, 0, 8, 0], b"", b"");
    std::fs::write(dir.path().join("log"), log.finish()).unwrap();
    let back = imported(&dir.path().join("log"), &base, None, dir.path().join("rec"));
    let marks: Vec<String> =
        back.reader.info().unwrap().marks.into_iter().map(|(_, mark)| mark.name).collect();
    assert_eq!(marks, ["a\u{fffd}\u{fffd}b", ""]);
}
